//! The three TCP options that tracking knows: window scale, SACK permitted, SACK.
//!
//! Options are at most 40 bytes (RFC 9293 section 3.1), so every walk here ends after at most 40 steps. A walk ends
//! early at end-of-list and at a length that does not fit; what came before counts.

/// Largest shift that counts (RFC 7323 section 2.3).
const MAX_SCALE: u8 = 14;

const END: u8 = 0;
const NOP: u8 = 1;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;

/// Two NOPs and a time stamp of 10 bytes: how nearly every segment carries it (RFC 7323 appendix A).
const TIMESTAMP_ONLY: [u8; 4] = [NOP, NOP, 8, 10];

/// What a SYN offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offer {
    /// Window scale (RFC 7323 section 2.2), at most 14.
    pub scale: Option<u8>,
    /// SACK permitted (RFC 2018 section 2).
    pub sack: bool,
}

/// The next option: its kind and data, and what follows it.
fn next(mut bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    while let Some((&kind, rest)) = bytes.split_first() {
        match kind {
            END => return None,
            NOP => bytes = rest,
            _ => {
                let (&length, rest) = rest.split_first()?;
                let (data, rest) = rest.split_at_checked(usize::from(length).checked_sub(2)?)?;
                return Some((kind, data, rest));
            }
        }
    }
    None
}

/// Reads what a SYN offers.
pub(super) fn offer(mut options: &[u8]) -> Offer {
    let mut offer = Offer::default();
    while let Some((kind, data, rest)) = next(options) {
        match (kind, data) {
            (WINDOW_SCALE, &[shift]) => offer.scale = Some(shift.min(MAX_SCALE)),
            (SACK_PERMITTED, []) => offer.sack = true,
            _ => {}
        }
        options = rest;
    }
    offer
}

/// The right-most edge of the SACK blocks (RFC 2018 section 3), or the acknowledgement if none lies beyond it.
#[inline]
pub(super) fn right_edge(options: &[u8], ack: u32) -> u32 {
    if options.len() == 12 && options.starts_with(&TIMESTAMP_ONLY) {
        return ack;
    }
    sack_edge(options, ack)
}

fn sack_edge(mut options: &[u8], ack: u32) -> u32 {
    while let Some((kind, data, rest)) = next(options) {
        let (blocks, odd) = data.as_chunks::<8>();
        if kind == SACK && !blocks.is_empty() && odd.is_empty() {
            return blocks.iter().fold(ack, |edge, &[_, _, _, _, right @ ..]| {
                let right = u32::from_be_bytes(right);
                if super::window::after(right, edge) { right } else { edge }
            });
        }
        options = rest;
    }
    ack
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syn_offers_scale_and_sack_wherever_they_stand() {
        let usual = [2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
        assert_eq!(offer(&usual), Offer { scale: Some(7), sack: true });
        assert_eq!(offer(&[]), Offer::default());
        assert_eq!(offer(&[3, 3, 15]), Offer { scale: Some(14), sack: false });
        assert_eq!(offer(&[1, 1, 1, 3, 3, 0]), Offer { scale: Some(0), sack: false });
        // The last of several counts.
        assert_eq!(offer(&[3, 3, 2, 3, 3, 4]).scale, Some(4));
    }

    #[test]
    fn a_walk_ends_at_the_list_end_and_at_lengths_that_do_not_fit() {
        for broken in [&[0, 4, 2][..], &[9, 1, 4, 2], &[9, 0, 4, 2], &[9, 9, 4, 2], &[9], &[3, 4, 7]] {
            assert_eq!(offer(broken), Offer::default(), "{broken:?}");
        }
        assert_eq!(offer(&[4, 2, 9, 0, 3, 3, 1]), Offer { scale: None, sack: true });
        // Of another length they are other options.
        assert_eq!(offer(&[3, 4, 7, 7, 4, 3, 0]), Offer::default());
    }

    #[test]
    fn the_right_most_edge_of_all_blocks_counts_if_it_lies_beyond_the_acknowledgement() {
        let mut options = vec![1, 1, 5, 18];
        for word in [200_u32, 300, 150, 180] {
            options.extend(word.to_be_bytes());
        }
        assert_eq!(right_edge(&options, 100), 300);
        assert_eq!(right_edge(&options, 300), 300);
        assert_eq!(right_edge(&options, 301), 301);
        // Beyond in the sense of sequence numbers.
        assert_eq!(right_edge(&options, u32::MAX - 5), 300);
        options[3] = 17;
        assert_eq!(right_edge(&options, 100), 100, "half a block is none");
        assert_eq!(right_edge(&[5, 2], 100), 100);
        assert_eq!(right_edge(&[5, 10, 0, 0, 0], 100), 100);
    }

    #[test]
    fn time_stamps_alone_are_not_walked_through_and_beside_sack_they_are() {
        let stamps = [1, 1, 8, 10, 5, 10, 0, 0, 0, 0, 1, 0];
        assert_eq!(right_edge(&stamps, 7), 7);
        let mut both = stamps.to_vec();
        both.extend([1, 1, 5, 10, 0, 0, 0, 50, 0, 0, 0, 90]);
        assert_eq!(right_edge(&both, 7), 90);
    }

    #[test]
    fn no_options_of_any_content_are_walked_for_ever() {
        let mut state = 1_u32;
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..40)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24).to_le_bytes()[0] % 12
                })
                .collect();
            let _ = (offer(&bytes), right_edge(&bytes, 5));
        }
    }
}

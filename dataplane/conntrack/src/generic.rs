//! Protocols that are tracked by addresses alone.

use erhu_planes::timeouts::TimeoutKey;

use crate::{Refresh, Timeouts, watch};

/// The timeout of a new connection, in ticks.
pub fn first(timeouts: &Timeouts) -> u32 {
    timeouts.get(TimeoutKey::Generic)
}

/// What a later packet does; `dir` is 0 for original, 1 for reply.
pub fn packet(status: u32, dir: usize, timeouts: &Timeouts) -> Refresh {
    watch(status, dir, first(timeouts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use erhu_planes::connections::status::SEEN_REPLY;

    #[test]
    fn every_packet_renews_the_generic_timeout() {
        let timeouts = Timeouts::default();
        let expected = Refresh { refresh: true, timeout: 600 * 16, set_status: 0, steady: true };
        assert_eq!(packet(0, 0, &timeouts), expected);
        assert_eq!(packet(0, 1, &timeouts), Refresh { set_status: SEEN_REPLY, ..expected });
    }
}

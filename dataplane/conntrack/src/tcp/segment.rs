//! What tracking reads of a segment.

/// Bits of the header's flags byte (RFC 9293 section 3.1).
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 0x10;
}

/// Bytes of a header without options.
const FIXED: usize = 20;
/// Flags that make a segment's class.
const CONTROLS: u8 = flag::SYN | flag::FIN | flag::RST | flag::ACK;

/// What a packet is to the state table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PacketClass {
    /// SYN without ACK.
    Syn,
    /// SYN with ACK.
    SynAck,
    /// FIN.
    Fin,
    /// ACK without any of the others.
    Ack,
    /// RST, whatever else is set.
    Rst,
    /// None of these flags.
    None,
}

/// The class of a flags byte; RST before SYN before FIN before ACK.
pub const fn classify(flags: u8) -> PacketClass {
    if flags & flag::RST != 0 {
        PacketClass::Rst
    } else if flags & flag::SYN != 0 {
        if flags & flag::ACK != 0 { PacketClass::SynAck } else { PacketClass::Syn }
    } else if flags & flag::FIN != 0 {
        PacketClass::Fin
    } else if flags & flag::ACK != 0 {
        PacketClass::Ack
    } else {
        PacketClass::None
    }
}

/// One segment as tracking sees it. Numbers in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'p> {
    /// Class of its flags.
    pub class: PacketClass,
    /// The flags byte; bits are those of [`flag`], others are carried along.
    pub flags: u8,
    /// Window as sent, not scaled.
    pub window: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number as sent, whether or not ACK is set.
    pub ack: u32,
    /// Sequence number behind its last byte; SYN and FIN count one each.
    pub end: u32,
    /// What lies between the fixed header and the data; at most 40 bytes.
    pub options: &'p [u8],
}

impl<'p> Segment<'p> {
    /// Reads a segment: the bytes from the start of the TCP header to the end of the IP packet. `None` if the header
    /// does not fit. Checksum and flags are judged elsewhere, options are not looked at.
    #[inline]
    pub fn parse(l4: &'p [u8]) -> Option<Self> {
        let (fixed, rest) = l4.split_first_chunk::<FIXED>()?;
        let header = usize::from(fixed[12] >> 4) * 4;
        let (options, payload) = rest.split_at_checked(header.checked_sub(FIXED)?)?;
        let flags = fixed[13];
        let counts = u32::from(flags & flag::SYN != 0) + u32::from(flags & flag::FIN != 0);
        Some(Self { options, ..Self::of(fixed, classify(flags), counts, payload.len())? })
    }

    /// Reads a segment that carries an acknowledgement, perhaps data, perhaps time stamps (RFC 7323 section 3.2, laid out
    /// as appendix A there suggests), and nothing else: no SYN, FIN, RST, no other option. `None` of all others. Other
    /// flags than ACK, and options, are left out of it.
    #[inline(always)]
    pub fn parse_plain(l4: &'p [u8]) -> Option<Self> {
        let (fixed, rest) = l4.split_first_chunk::<FIXED>()?;
        let stamps = time_stamps(fixed, rest)?;
        if fixed[13] & CONTROLS != flag::ACK {
            return None;
        }
        Some(Self { flags: flag::ACK, ..Self::of(fixed, PacketClass::Ack, 0, rest.len() - stamps)? })
    }

    /// The same, perhaps with FIN.
    #[inline(always)]
    pub(super) fn parse_plain_or_fin(l4: &'p [u8]) -> Option<Self> {
        const FIN_ACK: u8 = flag::FIN | flag::ACK;
        let (fixed, rest) = l4.split_first_chunk::<FIXED>()?;
        let stamps = time_stamps(fixed, rest)?;
        let (class, counts) = match fixed[13] & CONTROLS {
            flag::ACK => (PacketClass::Ack, 0),
            FIN_ACK => (PacketClass::Fin, 1),
            _ => return None,
        };
        Some(Self { flags: flag::ACK, ..Self::of(fixed, class, counts, rest.len() - stamps)? })
    }

    /// What the fixed header says, without options; `counts` is what SYN and FIN do.
    #[inline(always)]
    fn of(fixed: &[u8; FIXED], class: PacketClass, counts: u32, payload: usize) -> Option<Self> {
        let word = |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let (seq, ack) = (word(4), word(8));
        let end = seq.wrapping_add(u32::try_from(payload).ok()?).wrapping_add(counts);
        let window = u16::from_be_bytes([fixed[14], fixed[15]]);
        Some(Self { class, flags: fixed[13], window, seq, ack, end, options: &[] })
    }

    /// Whether all of these flags are set.
    #[inline]
    pub(super) const fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }
}

/// Bytes of options, of a header that has none or nothing but time stamps.
#[inline(always)]
fn time_stamps(fixed: &[u8; FIXED], rest: &[u8]) -> Option<usize> {
    const TIME_STAMPS: [u8; 4] = [1, 1, 8, 10];
    match fixed[12] >> 4 {
        5 => Some(0),
        8 if rest.len() >= 12 && rest.first_chunk() == Some(&TIME_STAMPS) => Some(12),
        _ => None,
    }
}

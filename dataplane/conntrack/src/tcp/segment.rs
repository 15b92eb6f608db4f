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
        let word = |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let header = usize::from(fixed[12] >> 4) * 4;
        let (options, payload) = rest.split_at_checked(header.checked_sub(FIXED)?)?;
        let flags = fixed[13];
        let controls = u32::from(flags & flag::SYN != 0) + u32::from(flags & flag::FIN != 0);
        let seq = word(4);
        Some(Self {
            class: classify(flags),
            flags,
            window: u16::from_be_bytes([fixed[14], fixed[15]]),
            seq,
            ack: word(8),
            end: seq.wrapping_add(u32::try_from(payload.len()).ok()?).wrapping_add(controls),
            options,
        })
    }

    /// Reads a segment that carries an acknowledgement, perhaps data, perhaps time stamps (RFC 7323 section 3.2, laid out
    /// as appendix A there suggests), and nothing else: no SYN, FIN, RST, no other option. `None` of all others. Flags
    /// and options are left out of it.
    #[inline(always)]
    pub fn parse_plain(l4: &'p [u8]) -> Option<Self> {
        const TIME_STAMPS: [u8; 4] = [1, 1, 8, 10];
        let (fixed, rest) = l4.split_first_chunk::<FIXED>()?;
        let word = |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let controls = flag::SYN | flag::FIN | flag::RST | flag::ACK;
        let options = match fixed[12] >> 4 {
            5 => 0,
            8 if rest.first_chunk() == Some(&TIME_STAMPS) => 12,
            _ => return None,
        };
        if fixed[13] & controls != flag::ACK {
            return None;
        }
        let bytes = u32::try_from(rest.len().checked_sub(options)?).ok()?;
        let seq = word(4);
        let (ack, end) = (word(8), seq.wrapping_add(bytes));
        let window = u16::from_be_bytes([fixed[14], fixed[15]]);
        Some(Self { class: PacketClass::Ack, flags: flag::ACK, window, seq, ack, end, options: &[] })
    }

    /// Whether all of these flags are set.
    #[inline]
    pub(super) const fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }
}

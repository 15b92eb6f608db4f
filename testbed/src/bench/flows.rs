//! Flows by number, and frames of them.

use erhu_planes::tuple::proto;

use super::frames::Frame;

/// Bytes of a frame as it comes in, tagged: 64 with its FCS would be 68.
pub const FRAME: usize = 64;
/// VLAN of the tenant.
pub const VLAN: u16 = 100;
/// MAC addresses of the router's ports and of what is behind them.
pub const LAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// See [`LAN_MAC`].
pub const WAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// See [`LAN_MAC`].
pub const INSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
/// See [`LAN_MAC`].
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
/// Most flows that differ: what 22 bits name.
pub const MOST: u32 = 1 << 22;
/// Time to live of packets that come in.
pub const TTL: u8 = 64;

/// Where a flow's ends are, before translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Inside address and port.
    pub inside: (u32, u16),
    /// Remote address and port.
    pub remote: (u32, u16),
}

impl Flow {
    /// Flow number `n`, below [`MOST`]: 65 536 inside hosts, each flow with an inside port of its own, remotes all over
    /// 198.18.0.0/15.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "below 65536 by the mask or the modulus")]
    pub const fn of(n: u32) -> Self {
        let (host, round) = (n & 0xffff, n >> 16);
        let port = 1024 + (host.wrapping_mul(40_503) % 64_512 + round * 1009) % 64_512;
        let remote = 0xc612_0000 + (n.wrapping_mul(0x9e37_79b1) >> 15);
        Self { inside: (0x0a00_0000 + host, port as u16), remote: (remote, 53) }
    }
}

/// Flags of TCP.
pub mod tcp {
    /// Ends its direction.
    pub const FIN: u8 = 0x01;
    /// Begins it.
    pub const SYN: u8 = 0x02;
    /// To be delivered at once.
    pub const PSH: u8 = 0x08;
    /// Acknowledges.
    pub const ACK: u8 = 0x10;
}

/// What a TCP segment says besides its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement.
    pub ack: u32,
    /// Flags, see [`tcp`].
    pub flags: u8,
}

/// Bytes of payload of a TCP segment with data.
pub const SEGMENT_BYTES: u8 = 6;

/// Writes frames that differ in addresses, ports, a number and some TCP fields only.
///
/// The number of a flow is in what the router leaves alone: UDP's payload; of TCP packets the IP header's
/// identification and DSCP, of 22 bits together.
#[derive(Clone, Debug)]
pub struct Writer {
    template: [u8; FRAME],
    l3: usize,
    len: usize,
    trusted: bool,
    l3_sum: u64,
    l4_sum: u64,
}

/// Bytes of Ethernet header and tag.
const TAGGED: usize = 18;

impl Writer {
    /// Of UDP packets from inside, tagged, with 18 bytes of payload.
    pub fn udp_from_inside() -> Self {
        Self::new(&Self::inside(), proto::UDP, 46)
    }

    /// Of UDP packets from outside, untagged, four bytes of padding.
    pub fn udp_from_outside() -> Self {
        Self::new(&Self::outside(), proto::UDP, 46)
    }

    /// Of TCP segments from inside, tagged, with so many bytes of payload.
    pub fn tcp_from_inside(payload: u8) -> Self {
        Self::new(&Self::inside(), proto::TCP, 40 + u16::from(payload))
    }

    /// Of TCP segments from outside, untagged.
    pub fn tcp_from_outside(payload: u8) -> Self {
        Self::new(&Self::outside(), proto::TCP, 40 + u16::from(payload))
    }

    /// Of UDP packets from inside that are so long, IP header included. What a template does not hold of the payload
    /// is 0.
    pub fn long_udp_from_inside(length: u16) -> Self {
        Self::new(&Self::inside(), proto::UDP, length)
    }

    /// The same, with checksums that nobody vouches for.
    pub fn unverified(self) -> Self {
        Self { trusted: false, ..self }
    }

    fn inside() -> [u8; TAGGED] {
        let mut header = [0; TAGGED];
        header[..6].copy_from_slice(&LAN_MAC);
        header[6..12].copy_from_slice(&INSIDE_MAC);
        header[12..14].copy_from_slice(&[0x81, 0]);
        header[14..16].copy_from_slice(&VLAN.to_be_bytes());
        header[16..].copy_from_slice(&[8, 0]);
        header
    }

    fn outside() -> [u8; 14] {
        let mut header = [0; 14];
        header[..6].copy_from_slice(&WAN_MAC);
        header[6..12].copy_from_slice(&GATEWAY_MAC);
        header[12..].copy_from_slice(&[8, 0]);
        header
    }

    fn new(link: &[u8], protocol: u8, length: u16) -> Self {
        let l3 = link.len();
        let is_tcp = protocol == proto::TCP;
        let mut template = [0; FRAME];
        template[..l3].copy_from_slice(link);
        template[l3] = 0x45;
        template[l3 + 2..l3 + 4].copy_from_slice(&length.to_be_bytes());
        template[l3 + 8] = TTL;
        template[l3 + 9] = protocol;
        if is_tcp {
            // 20 bytes, a window of 64 KiB less one.
            template[l3 + 32..l3 + 36].copy_from_slice(&[0x50, 0, 0xff, 0xff]);
        } else {
            template[l3 + 24..l3 + 26].copy_from_slice(&(length - 20).to_be_bytes());
        }
        let sum = |bytes: &[u8]| -> u64 {
            bytes.chunks(2).map(|w| u64::from(u16::from_le_bytes([w[0], w.get(1).copied().unwrap_or(0)]))).sum()
        };
        let pseudo = u64::from(u16::from_le_bytes([0, protocol])) + u64::from((length - 20).swap_bytes());
        let (l3_sum, l4_sum) = (sum(&template[l3..l3 + 20]), pseudo + sum(&template[l3 + 20..]));
        Self { len: FRAME.max(l3 + usize::from(length)), template, l3, trusted: true, l3_sum, l4_sum }
    }

    /// Writes a UDP frame with right checksums.
    #[inline(always)]
    pub fn write(&self, frame: &mut Frame, from: (u32, u16), to: (u32, u16), number: u32) {
        self.write_tagged(frame, VLAN, from, to, number);
    }

    /// The same with another tag, where there is one.
    #[inline(always)]
    pub fn write_tagged(&self, frame: &mut Frame, vlan: u16, from: (u32, u16), to: (u32, u16), number: u32) {
        let payload = number.to_be();
        let (l3, sums, bytes) = (self.l3.min(TAGGED), self.sums(from, to), frame.receive(self.len, self.trusted));
        let Some(bytes) = bytes else { return };
        *bytes = self.template;
        if l3 == TAGGED {
            bytes[14..16].copy_from_slice(&vlan.to_be_bytes());
        }
        ends(bytes, l3, from, to);
        bytes[l3 + 10..l3 + 12].copy_from_slice(&checksum(sums.0));
        bytes[l3 + 28..l3 + 32].copy_from_slice(&payload.to_ne_bytes());
        bytes[l3 + 26..l3 + 28].copy_from_slice(&checksum(sums.1 + u64::from(payload)));
    }

    /// Writes a TCP frame with right checksums.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "parts of a number of 22 bits")]
    pub fn segment(&self, frame: &mut Frame, from: (u32, u16), to: (u32, u16), number: u32, segment: Segment) {
        let (l3, sums, bytes) = (self.l3.min(TAGGED), self.sums(from, to), frame.receive(self.len, self.trusted));
        let Some(bytes) = bytes else { return };
        *bytes = self.template;
        let (tos, id) = ((number >> 16 << 2) as u8, (number as u16).to_be());
        let (seq, ack) = (segment.seq.to_be(), segment.ack.to_be());
        bytes[l3 + 1] = tos;
        bytes[l3 + 4..l3 + 6].copy_from_slice(&id.to_ne_bytes());
        ends(bytes, l3, from, to);
        let l3_sum = sums.0 + (u64::from(tos) << 8) + u64::from(id);
        bytes[l3 + 10..l3 + 12].copy_from_slice(&checksum(l3_sum));
        bytes[l3 + 24..l3 + 28].copy_from_slice(&seq.to_ne_bytes());
        bytes[l3 + 28..l3 + 32].copy_from_slice(&ack.to_ne_bytes());
        bytes[l3 + 33] = segment.flags;
        let l4_sum = sums.1 + u64::from(seq) + u64::from(ack) + (u64::from(segment.flags) << 8);
        bytes[l3 + 36..l3 + 38].copy_from_slice(&checksum(l4_sum));
    }

    /// Sums of words of both headers, addresses and ports included.
    #[inline(always)]
    fn sums(&self, from: (u32, u16), to: (u32, u16)) -> (u64, u64) {
        let addresses = u64::from(from.0.to_be()) + u64::from(to.0.to_be());
        let ports = u64::from(from.1.to_be()) + u64::from(to.1.to_be());
        (self.l3_sum + addresses, self.l4_sum + addresses + ports)
    }
}

#[inline(always)]
fn ends(bytes: &mut [u8; FRAME], l3: usize, from: (u32, u16), to: (u32, u16)) {
    bytes[l3 + 12..l3 + 16].copy_from_slice(&from.0.to_be_bytes());
    bytes[l3 + 16..l3 + 20].copy_from_slice(&to.0.to_be_bytes());
    bytes[l3 + 20..l3 + 22].copy_from_slice(&from.1.to_be_bytes());
    bytes[l3 + 22..l3 + 24].copy_from_slice(&to.1.to_be_bytes());
}

/// The checksum that belongs to a sum of words as they lie in a frame.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "after three rounds nothing is left above 16 bits")]
pub(super) fn checksum(sum: u64) -> [u8; 2] {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    // A UDP checksum of 0 would mean none; in one's complement 0xffff is the same.
    let sum = if sum == 0xffff { 0 } else { sum };
    (!(sum as u16)).to_le_bytes()
}

/// Visits the numbers below a power of two once each, in an order that looks random (a Weyl sequence through two
/// bijections).
#[derive(Clone, Copy, Debug)]
pub struct Shuffle {
    mask: u32,
    shift: u32,
}

impl Shuffle {
    /// Of the numbers below `count`, which is rounded down to a power of two.
    pub const fn new(count: u32) -> Self {
        let bits = count.ilog2();
        Self { mask: (1 << bits) - 1, shift: bits.div_ceil(2) }
    }

    /// The number in place `at`.
    #[inline(always)]
    pub const fn nth(self, at: u32) -> u32 {
        let mut n = at & self.mask;
        n = n.wrapping_mul(0x9e37_79b1) & self.mask;
        n ^= n >> self.shift;
        n = n.wrapping_mul(0x85eb_ca6b) & self.mask;
        n ^ n >> self.shift
    }
}

/// Random numbers below a power of two, with repetition.
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Random {
    /// The next one below `count`, a power of two.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "any 32 bits will do")]
    pub const fn below(&mut self, count: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) as u32 & (count - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::Ipv4Addr;

    use erhu_pipeline::Buffer;

    use super::*;
    use crate::bench::frames::Supply;
    use crate::bench::verify::number_of;
    use crate::packet::read::Seen;

    #[test]
    fn no_two_flows_have_the_same_inside_end() {
        let mut seen = HashSet::new();
        for n in (0..MOST).filter(|n| n & 0xff < 3) {
            let flow = Flow::of(n);
            assert!(flow.inside.1 >= 1024 && seen.insert(flow.inside), "{n}: {flow:?}");
        }
    }

    fn check(frame: &Frame, protocol: u8, number: u32, flow: Flow) -> Seen {
        let seen = Seen::of(0, frame.frame().to_vec());
        assert_eq!(seen.faults(), Vec::<&str>::new(), "{number}: {seen}");
        assert_eq!((seen.ip().protocol, seen.source().port()), (protocol, flow.inside.1));
        assert_eq!(*seen.destination().ip(), Ipv4Addr::from(flow.remote.0));
        assert_eq!(number_of(&seen), Some(number), "{seen}");
        seen
    }

    #[test]
    fn udp_frames_are_right_to_the_last_checksum() {
        let mut supply = Supply::new();
        for (writer, len) in [
            (Writer::udp_from_inside(), 64),
            (Writer::udp_from_outside(), 64),
            (Writer::long_udp_from_inside(576), 594),
            (Writer::long_udp_from_inside(1500).unverified(), 1518),
        ] {
            for n in (0..MOST).step_by(9973) {
                let (flow, mut frame) = (Flow::of(n), supply.take().unwrap());
                writer.write(&mut frame, flow.inside, flow.remote, n);
                assert_eq!(frame.len(), len);
                check(&frame, proto::UDP, n, flow);
                supply.give(frame);
            }
        }
    }

    #[test]
    fn tcp_frames_are_right_to_the_last_checksum_with_and_without_data() {
        let mut supply = Supply::new();
        for (writer, payload) in [
            (Writer::tcp_from_inside(0), 0),
            (Writer::tcp_from_inside(SEGMENT_BYTES), 6),
            (Writer::tcp_from_outside(0), 0),
            (Writer::tcp_from_outside(SEGMENT_BYTES), 6),
        ] {
            for n in (0..MOST).step_by(9973) {
                let (flow, mut frame) = (Flow::of(n), supply.take().unwrap());
                let segment = Segment { seq: n.wrapping_mul(77_777), ack: !n, flags: tcp::ACK | tcp::FIN };
                writer.segment(&mut frame, flow.inside, flow.remote, n, segment);
                let seen = check(&frame, proto::TCP, n, flow);
                let tcp = seen.tcp();
                assert_eq!((tcp.seq, tcp.ack, tcp.flags), (segment.seq, segment.ack, segment.flags));
                assert_eq!(tcp.payload.len(), payload);
                supply.give(frame);
            }
        }
    }

    #[test]
    fn a_shuffle_visits_every_number_once_and_not_in_order() {
        for count in [64_u32, 1 << 9, 1 << 16] {
            let shuffle = Shuffle::new(count);
            let all: Vec<u32> = (0..count).map(|at| shuffle.nth(at)).collect();
            assert_eq!(all.iter().collect::<HashSet<_>>().len(), count as usize);
            let neighbours = all.windows(2).filter(|w| w[0].abs_diff(w[1]) < 3).count();
            assert!(neighbours < all.len() / 4, "{neighbours} of {count}");
        }
    }
}

//! Flows by number, and frames of them.

use erhu_planes::tuple::proto;

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
/// Most flows that differ.
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

/// Writes frames that differ in addresses, ports and a number only.
#[derive(Clone, Debug)]
pub struct Writer {
    template: [u8; FRAME],
    l3: usize,
    proto: u8,
    l3_sum: u64,
    l4_sum: u64,
}

impl Writer {
    /// Of packets from inside, tagged: UDP with 18 bytes of payload, or TCP, a SYN with padding.
    pub fn from_inside(protocol: u8) -> Self {
        let mut header = [0; 18];
        header[..6].copy_from_slice(&LAN_MAC);
        header[6..12].copy_from_slice(&INSIDE_MAC);
        header[12..14].copy_from_slice(&[0x81, 0]);
        header[14..16].copy_from_slice(&VLAN.to_be_bytes());
        header[16..].copy_from_slice(&[8, 0]);
        Self::new(&header, protocol)
    }

    /// Of UDP packets from outside, untagged, four bytes of padding.
    pub fn from_outside() -> Self {
        let mut header = [0; 14];
        header[..6].copy_from_slice(&WAN_MAC);
        header[6..12].copy_from_slice(&GATEWAY_MAC);
        header[12..].copy_from_slice(&[8, 0]);
        Self::new(&header, proto::UDP)
    }

    fn new(link: &[u8], protocol: u8) -> Self {
        let l3 = link.len();
        let is_tcp = protocol == proto::TCP;
        let length: u8 = if is_tcp { 40 } else { 46 };
        let mut template = [0; FRAME];
        template[..l3].copy_from_slice(link);
        template[l3] = 0x45;
        template[l3 + 3] = length;
        template[l3 + 8] = TTL;
        template[l3 + 9] = protocol;
        if is_tcp {
            // 20 bytes, SYN, a window of 64 KiB less one.
            template[l3 + 32..l3 + 36].copy_from_slice(&[0x50, 0x02, 0xff, 0xff]);
        } else {
            template[l3 + 25] = length - 20;
        }
        let sum = |bytes: &[u8]| -> u64 {
            bytes.chunks(2).map(|w| u64::from(u16::from_le_bytes([w[0], w.get(1).copied().unwrap_or(0)]))).sum()
        };
        let pseudo = u64::from(u16::from_le_bytes([0, protocol])) + u64::from(u16::from_le_bytes([0, length - 20]));
        Self {
            l3_sum: sum(&template[l3..l3 + 20]),
            l4_sum: pseudo + sum(&template[l3 + 20..l3 + usize::from(length)]),
            template,
            l3,
            proto: protocol,
        }
    }

    /// Writes a frame with right checksums. `number` comes in its payload, or as TCP's sequence number.
    #[inline(always)]
    pub fn write(&self, frame: &mut [u8; FRAME], from: (u32, u16), to: (u32, u16), number: u32) {
        *frame = self.template;
        let l3 = self.l3.min(18); // known to be within the frame
        let (src, dst) = (from.0.to_be(), to.0.to_be());
        let ports = u32::from(from.1.to_be()) | u32::from(to.1.to_be()) << 16;
        let addresses = u64::from(src) + u64::from(dst);
        let payload = number.to_be();
        let l4_sum = self.l4_sum + addresses + u64::from(ports) + u64::from(payload);
        let (number_at, sum_at) = if self.proto == proto::TCP { (24, 36) } else { (28, 26) };
        frame[l3 + 10..l3 + 12].copy_from_slice(&checksum(self.l3_sum + addresses));
        frame[l3 + 12..l3 + 16].copy_from_slice(&src.to_ne_bytes());
        frame[l3 + 16..l3 + 20].copy_from_slice(&dst.to_ne_bytes());
        frame[l3 + 20..l3 + 24].copy_from_slice(&ports.to_ne_bytes());
        frame[l3 + number_at..l3 + number_at + 4].copy_from_slice(&payload.to_ne_bytes());
        frame[l3 + sum_at..l3 + sum_at + 2].copy_from_slice(&checksum(l4_sum));
    }
}

/// The checksum that belongs to a sum of words as they lie in a frame.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "after three rounds nothing is left above 16 bits")]
fn checksum(sum: u64) -> [u8; 2] {
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

    use super::*;
    use crate::packet::read::Seen;

    #[test]
    fn no_two_flows_have_the_same_inside_end() {
        let mut seen = HashSet::new();
        for n in (0..MOST).filter(|n| n & 0xff < 3) {
            let flow = Flow::of(n);
            assert!(flow.inside.1 >= 1024 && seen.insert(flow.inside), "{n}: {flow:?}");
        }
    }

    #[test]
    fn frames_are_right_to_the_last_checksum() {
        for (writer, protocol) in [
            (Writer::from_inside(proto::UDP), proto::UDP),
            (Writer::from_inside(proto::TCP), proto::TCP),
            (Writer::from_outside(), proto::UDP),
        ] {
            for n in (0..MOST).step_by(997) {
                let (flow, mut frame) = (Flow::of(n), [0; FRAME]);
                writer.write(&mut frame, flow.inside, flow.remote, n);
                let seen = Seen::of(0, frame.to_vec());
                assert_eq!(seen.faults(), Vec::<&str>::new(), "{n}: {seen}");
                assert_eq!((seen.ip().protocol, seen.source().port()), (protocol, flow.inside.1));
                assert_eq!(*seen.destination().ip(), Ipv4Addr::from(flow.remote.0));
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

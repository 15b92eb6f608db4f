//! The same flows over IPv6: their addresses are the last four bytes of IPv6 ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use erhu_planes::tuple::proto;

use super::flows::{self, GATEWAY_MAC, INSIDE_MAC, LAN_MAC, TTL, VLAN, WAN_MAC, Writer};
use super::frames::Frame;

/// Bytes of a frame as it comes in, tagged: the least that has room for a flow's number behind both headers.
pub const FRAME: usize = 70;
/// What inside addresses begin with: fd00::/96.
const INSIDE: u128 = 0xfd00 << 112;
/// What remote addresses begin with, of the network for benchmarks (RFC 5180): 2001:2::/96.
const REMOTE: u128 = 0x2001_0002 << 96;
/// What the pools' addresses begin with: 2001:db8::/96.
const POOL: u128 = 0x2001_0db8 << 96;

/// What flows go over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    fn address(self, prefix: u128, address: u32) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::from(address).into(),
            Self::V6 => Ipv6Addr::from(prefix | u128::from(address)).into(),
        }
    }

    /// An inside address.
    pub fn inside(self, address: u32) -> IpAddr {
        self.address(INSIDE, address)
    }

    /// A remote address.
    pub fn remote(self, address: u32) -> IpAddr {
        self.address(REMOTE, address)
    }

    /// An address of a pool.
    pub fn pool(self, address: u32) -> IpAddr {
        self.address(POOL, address)
    }

    /// The inverse of [`Family::pool`]. `None` for what it never returns.
    #[expect(clippy::cast_possible_truncation, reason = "the low 32 bits are meant")]
    pub fn of_pool(self, address: IpAddr) -> Option<u32> {
        let low = match address {
            IpAddr::V4(address) => u32::from(address),
            IpAddr::V6(address) => u128::from(address) as u32,
        };
        (self.pool(low) == address).then_some(low)
    }
}

/// As [`Writer`], for UDP over IPv6. The number of a flow is the UDP payload.
#[derive(Clone, Debug)]
pub struct Writer6 {
    template: [u8; FRAME],
    l3: usize,
    len: usize,
    /// Of the words that are the same in all packets.
    sum: u64,
}

/// Bytes of Ethernet header and tag.
const TAGGED: usize = 18;
/// Bytes of UDP header and payload.
const DATAGRAM: u8 = 12;

impl Writer6 {
    /// Of packets from inside, tagged.
    pub fn from_inside() -> Self {
        let link = [&LAN_MAC[..], &INSIDE_MAC, &[0x81, 0], &VLAN.to_be_bytes(), &[0x86, 0xdd]].concat();
        Self::new(&link, INSIDE, REMOTE)
    }

    /// Of packets from outside, untagged.
    pub fn from_outside() -> Self {
        Self::new(&[&WAN_MAC[..], &GATEWAY_MAC, &[0x86, 0xdd]].concat(), REMOTE, POOL)
    }

    fn new(link: &[u8], from: u128, to: u128) -> Self {
        let l3 = link.len();
        let mut template = [0; FRAME];
        template[..l3].copy_from_slice(link);
        template[l3] = 0x60;
        template[l3 + 5] = DATAGRAM;
        template[l3 + 6] = proto::UDP;
        template[l3 + 7] = TTL;
        template[l3 + 8..l3 + 24].copy_from_slice(&from.to_be_bytes());
        template[l3 + 24..l3 + 40].copy_from_slice(&to.to_be_bytes());
        template[l3 + 45] = DATAGRAM;
        let words = template[l3 + 8..].chunks_exact(2).map(|word| u64::from(u16::from_le_bytes([word[0], word[1]])));
        let pseudo = u64::from(u16::from_le_bytes([0, proto::UDP])) + u64::from(u16::from_le_bytes([0, DATAGRAM]));
        Self { template, l3, len: l3 + 40 + usize::from(DATAGRAM), sum: pseudo + words.sum::<u64>() }
    }

    /// Writes a frame with a right checksum, with another tag, where there is one.
    #[inline(always)]
    pub fn write_tagged(&self, frame: &mut Frame, vlan: u16, from: (u32, u16), to: (u32, u16), number: u32) {
        let Some(bytes) = frame.receive(self.len, true) else { return };
        let l3 = self.l3.min(TAGGED);
        *bytes = self.template;
        if l3 == TAGGED {
            bytes[14..16].copy_from_slice(&vlan.to_be_bytes());
        }
        bytes[l3 + 20..l3 + 24].copy_from_slice(&from.0.to_be_bytes());
        bytes[l3 + 36..l3 + 40].copy_from_slice(&to.0.to_be_bytes());
        bytes[l3 + 40..l3 + 42].copy_from_slice(&from.1.to_be_bytes());
        bytes[l3 + 42..l3 + 44].copy_from_slice(&to.1.to_be_bytes());
        bytes[l3 + 48..l3 + 52].copy_from_slice(&number.to_be_bytes());
        let long = u64::from(from.0.to_be()) + u64::from(to.0.to_be()) + u64::from(number.to_be());
        let short = u64::from(from.1.to_be()) + u64::from(to.1.to_be());
        bytes[l3 + 46..l3 + 48].copy_from_slice(&flows::checksum(self.sum + long + short));
    }
}

/// Writes UDP packets of either family.
#[derive(Clone, Debug)]
pub enum UdpWriter {
    /// Over IPv4.
    V4(Writer),
    /// Over IPv6.
    V6(Writer6),
}

impl UdpWriter {
    /// Of packets from inside, the shortest with a number.
    pub fn from_inside(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4(Writer::udp_from_inside()),
            Family::V6 => Self::V6(Writer6::from_inside()),
        }
    }

    /// Of packets from outside.
    pub fn from_outside(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4(Writer::udp_from_outside()),
            Family::V6 => Self::V6(Writer6::from_outside()),
        }
    }

    /// Writes a frame with right checksums, and with this tag where it has one.
    #[inline(always)]
    pub fn write_tagged(&self, frame: &mut Frame, vlan: u16, from: (u32, u16), to: (u32, u16), number: u32) {
        match self {
            Self::V4(writer) => writer.write_tagged(frame, vlan, from, to, number),
            Self::V6(writer) => writer.write_tagged(frame, vlan, from, to, number),
        }
    }
}

#[cfg(test)]
mod tests {
    use erhu_pipeline::Buffer;

    use super::*;
    use crate::bench::flows::{Flow, MOST};
    use crate::bench::frames::Supply;
    use crate::bench::verify::number_of;
    use crate::packet::read::{Content, Seen, Upper};

    #[test]
    fn frames_are_right_to_the_last_checksum_and_as_short_as_they_can_be() {
        let mut supply = Supply::of(1);
        for n in (0..MOST).step_by(9973) {
            let Flow { inside, remote } = Flow::of(n);
            let external = (0xc633_0001 + n % 64, inside.1);
            let v6 = Family::V6;
            for (writer, from, to, tags, ends) in [
                (Writer6::from_inside(), inside, remote, 1, [v6.inside(inside.0), v6.remote(remote.0)]),
                (Writer6::from_outside(), remote, external, 0, [v6.remote(remote.0), v6.pool(external.0)]),
            ] {
                let mut frame = supply.take().unwrap();
                writer.write_tagged(&mut frame, 7, from, to, n);
                let seen = Seen::of(0, frame.frame().to_vec());
                assert_eq!(seen.faults(), Vec::<&str>::new(), "{n}: {seen}");
                assert_eq!((seen.frame.len(), seen.tags.len()), (66 + 4 * tags, tags));
                let Content::Ip6(ip) = &seen.content else { panic!("{seen}") };
                assert_eq!(([ip.source.into(), ip.destination.into()], ip.hop_limit), (ends, TTL));
                let Upper::Udp(udp) = &ip.upper else { panic!("{seen}") };
                assert_eq!((udp.sport, udp.dport, udp.has_checksum), (from.1, to.1, true));
                assert_eq!(number_of(&seen), Some(n), "{seen}");
                supply.give(frame);
            }
        }
    }

    #[test]
    fn an_address_of_the_pool_is_one_of_its_family_and_network() {
        assert_eq!(Family::V6.of_pool("2001:db8::c633:5".parse().unwrap()), Some(0xc633_0005));
        assert_eq!(Family::V4.of_pool("198.51.0.5".parse().unwrap()), Some(0xc633_0005));
        for other in ["198.51.0.5", "2001:db8:1::c633:5", "fd00::c633:5"] {
            assert_eq!(Family::V6.of_pool(other.parse().unwrap()), None);
        }
    }
}

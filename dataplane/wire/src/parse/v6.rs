//! The IPv6 half of the pass.

use erhu_planes::tuple::{icmp_answer, proto};
use zerocopy::FromBytes;

use super::{Kind, Link, LinkWords, Odd, Parsed, TagWords, Transport, Verify};
use crate::checksum::l4_ok6;
use crate::ethernet;
use crate::header::{Icmp, Ipv6, Tcp, Udp};
use crate::icmp6::{is_discovery, is_error, is_listener};
use crate::ipv6::{Addresses6, Chain, NO_NEXT_HEADER, walk};
use crate::tcp::flags_valid;

const FAULT: Kind = Kind::Ipv6Odd(Odd::L4Fault);

/// As [`super::parse_common`], for the commonest IPv6 frames: no tag or one, no extension headers, UDP, TCP or an
/// ICMPv6 query, everything sound. Returns the addresses, which [`Parsed`] has no place for; `None`, with nothing stored,
/// for all other frames.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a length that was compared with the frame's, which is a u16")]
pub fn parse_common6(frame: &[u8], verify: Verify, out: &mut Parsed) -> Option<Addresses6> {
    // As there, and not shared with it: a function for both cost IPv4 nine instructions.
    if frame.len() > usize::from(u16::MAX) {
        return None;
    }
    let (link, below) = LinkWords::ref_from_prefix(frame).ok()?;
    let (mut l3, mut vlan, mut ethertype, mut packet) = (14, 0, link.ethertype.get(), below);
    if ethertype == ethernet::VLAN.swap_bytes() {
        let (tag, below) = TagWords::ref_from_prefix(below).ok()?;
        (l3, vlan, ethertype, packet) = (18, tag.control.get() & 0xfff, tag.ethertype.get(), below);
    }
    let (ip, _) = Ipv6::ref_from_prefix(packet).ok()?;
    if ethertype != ethernet::IPV6.swap_bytes() || !ip.is_ipv6() {
        return None;
    }
    let length = ip.length();
    let l4 = packet.get(size_of::<Ipv6>()..length)?;
    let transport = match ip.next {
        proto::UDP => udp(ip, l4, verify, Kind::Fast6),
        proto::TCP => tcp(ip, l4, verify, Kind::Fast6),
        proto::ICMPV6 => icmp(ip, l4, Kind::Fast6),
        _ => return None,
    };
    if transport.kind != Kind::Fast6 {
        return None;
    }
    out.destination = link.destination.get() & ethernet::MAC_BITS;
    out.addresses = 0;
    out.ports = transport.ports;
    out.kind = Kind::Fast6;
    out.l3 = l3;
    out.l4 = l3 + size_of::<Ipv6>() as u16;
    out.end = l3 + length as u16;
    out.vlan = vlan;
    out.length = length as u16;
    out.proto = ip.next;
    out.ttl = ip.hop_limit;
    Some(ip.addresses())
}

/// Reads an IPv6 packet and its padding.
#[inline(never)]
pub(super) fn ipv6(link: Link, packet: &[u8], verify: Verify) -> Parsed {
    let malformed = || link.without_ip(Kind::Malformed);
    let Ok((ip, _)) = Ipv6::ref_from_prefix(packet) else { return malformed() };
    let Some(packet) = packet.get(..ip.length()).filter(|_| ip.is_ipv6()) else { return malformed() };
    let without = |kind| Transport { kind, ports: 0 };
    let (protocol, at, transport) = match walk(packet) {
        Chain::Broken => return malformed(),
        Chain::Fragment { proto, at, .. } => (proto, at, without(Kind::Ipv6Odd(Odd::Fragment))),
        Chain::Long { proto, at } | Chain::Upper { proto: proto @ NO_NEXT_HEADER, at, .. } => {
            (proto, at, without(FAULT))
        }
        Chain::Upper { proto, at, extended } => {
            let l4 = packet.get(usize::from(at)..).unwrap_or_default();
            let sound = if extended { Kind::Ipv6Odd(Odd::Options) } else { Kind::Fast6 };
            let transport = match proto {
                proto::UDP => udp(ip, l4, verify, sound),
                proto::TCP => tcp(ip, l4, verify, sound),
                proto::ICMPV6 => icmp(ip, l4, sound),
                _ => without(Kind::Ipv6Odd(Odd::OtherProtocol)),
            };
            (proto, at, transport)
        }
    };
    // Both lie in the frame, whose length is a u16.
    let (Ok(length), l4) = (u16::try_from(packet.len()), link.l3 + at) else { return malformed() };
    Parsed {
        destination: link.destination,
        addresses: 0,
        ports: transport.ports,
        kind: transport.kind,
        l3: link.l3,
        l4,
        end: link.l3 + length,
        vlan: link.vlan,
        length,
        proto: protocol,
        ttl: ip.hop_limit,
    }
}

/// A header that is cut short but may still have ports.
#[cold]
fn cut_short(l4: &[u8]) -> Transport {
    let ports = l4.first_chunk().map_or(0, |ports| u32::from_le_bytes(*ports));
    Transport { kind: FAULT, ports }
}

/// Whether the L4 checksum is right. Reads the addresses only here: whoever trusts the NIC has them in registers.
#[inline(never)]
fn is_right(ip: &Ipv6, protocol: u8, l4: &[u8]) -> bool {
    l4_ok6(&ip.addresses(), protocol, l4)
}

/// A checksum of 0 passes in transit, as in the kernel: tunnels send none (RFC 6935).
#[inline(always)]
fn udp(ip: &Ipv6, l4: &[u8], verify: Verify, sound: Kind) -> Transport {
    let Ok((udp, _)) = Udp::ref_from_prefix(l4) else { return cut_short(l4) };
    let length = usize::from(udp.length.get());
    let is_sound = length >= size_of::<Udp>()
        && l4.get(..length).is_some_and(|datagram| !verify.l4() || is_right(ip, proto::UDP, datagram));
    Transport { kind: if is_sound { sound } else { FAULT }, ports: udp.ports.get() }
}

#[inline(always)]
fn tcp(ip: &Ipv6, l4: &[u8], verify: Verify, sound: Kind) -> Transport {
    let Ok((tcp, _)) = Tcp::ref_from_prefix(l4) else { return cut_short(l4) };
    let header = tcp.header_bytes();
    let is_sound = header >= size_of::<Tcp>()
        && header <= l4.len()
        && flags_valid(tcp.flags)
        && (!verify.l4() || is_right(ip, proto::TCP, l4));
    Transport { kind: if is_sound { sound } else { FAULT }, ports: tcp.ports.get() }
}

#[inline(never)]
fn icmp(ip: &Ipv6, l4: &[u8], sound: Kind) -> Transport {
    let Ok((message, _)) = Icmp::ref_from_prefix(l4) else {
        let ports = match *l4 {
            [icmp_type, code, ..] => u32::from(icmp_type) << 16 | u32::from(code) << 24,
            _ => 0,
        };
        return Transport { kind: FAULT, ports };
    };
    let ports = message.ports();
    let without_id = |kind| Transport { kind, ports: ports & 0xffff_0000 };
    let icmp_type = message.icmp_type;
    if !is_right(ip, proto::ICMPV6, l4) {
        without_id(FAULT)
    } else if icmp_answer(proto::ICMPV6, icmp_type).is_some() {
        Transport { kind: sound, ports }
    } else if is_error(icmp_type) {
        without_id(Kind::Ipv6Odd(Odd::IcmpError))
    } else if is_discovery(icmp_type) {
        without_id(Kind::Ipv6Odd(Odd::Discovery))
    } else if is_listener(icmp_type) {
        without_id(Kind::Ipv6Odd(Odd::Listener))
    } else {
        without_id(Kind::Ipv6Odd(Odd::IcmpOther))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{VLAN_STACKED, thorough};
    use super::*;
    use crate::checksum::fill_l4_v6;
    use proptest::prelude::*;

    /// Frames that [`parse_common6`] takes, or nearly: some bytes of a good one are overwritten, some cut off.
    fn nearly_common() -> impl Strategy<Value = Vec<u8>> {
        let damage = proptest::collection::vec((0usize..82, any::<u8>()), 0..3);
        let upper = (0usize..4, any::<bool>());
        (any::<bool>(), upper, damage, 0usize..30, any::<u16>()).prop_map(
            |(tagged, (upper, checked), damage, tail, tag)| {
                let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
                if tagged {
                    frame.extend([0x81, 0x00]);
                    frame.extend(tag.to_be_bytes());
                }
                frame.extend([0x86, 0xdd]);
                let l3 = frame.len();
                // The last of them looks as if it had a fragment header.
                let next = [17, 6, 58, 44][upper];
                frame.extend([0x6b, 0x8a, 0xbc, 0xde, 0, 24, next, 64]);
                frame.extend([[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], [0xfd; 16]].concat());
                frame.extend(match upper {
                    0 => [0x12, 0x34, 0, 53, 0, 24, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8],
                    1 => [0x12, 0x34, 0, 53, 0, 0, 0, 1, 0, 0, 0, 2, 0x60, 0x10, 0xff, 0xff],
                    _ => [128, 0, 0, 0, 0, 7, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8],
                });
                frame.extend([0; 8]);
                if checked {
                    fill_l4_v6(&mut frame[l3..], 40, next);
                }
                for (at, byte) in damage {
                    if let Some(place) = frame.get_mut(at) {
                        *place = byte;
                    }
                }
                frame.resize(frame.len() + tail.saturating_sub(20), 9);
                frame.truncate(frame.len() - tail.min(20) * usize::from(tail < 20));
                frame
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_quick_look_finds_what_the_thorough_one_finds_or_nothing(frame in nearly_common(), verify in 0u8..4) {
            let verify = [Verify::All, Verify::TrustIp, Verify::TrustL4, Verify::TrustBoth][usize::from(verify)];
            let mut quick = Parsed::NOTHING;
            let full = thorough(&frame, verify);
            if let Some(addresses) = parse_common6(&frame, verify, &mut quick) {
                prop_assert_eq!(quick, full);
                prop_assert_eq!(Some(addresses), Addresses6::read(&frame, full.l3));
            } else {
                prop_assert_eq!(quick, Parsed::NOTHING);
                prop_assert!(full.kind != Kind::Fast6 || full.vlan == VLAN_STACKED, "{:?}", full);
            }
        }
    }
}

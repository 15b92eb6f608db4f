//! The IPv6 half of the pass.

use erhu_planes::tuple::{icmp_answer, proto};
use zerocopy::FromBytes;

use super::{Kind, Link, Odd, Parsed, Transport, Verify};
use crate::checksum::l4_ok6;
use crate::header::{Icmp, Ipv6, Tcp, Udp};
use crate::icmp6::{is_discovery, is_error, is_listener};
use crate::ipv6::{Addresses6, Chain, NO_NEXT_HEADER, walk};
use crate::tcp::flags_valid;

const FAULT: Kind = Kind::Ipv6Odd(Odd::L4Fault);

/// Reads an IPv6 packet and its padding.
#[inline(never)]
pub(super) fn ipv6(link: Link, packet: &[u8], verify: Verify) -> Parsed {
    let malformed = || link.without_ip(Kind::Malformed);
    let Ok((ip, _)) = Ipv6::ref_from_prefix(packet) else { return malformed() };
    let Some(packet) = packet.get(..ip.length()).filter(|_| ip.is_ipv6()) else { return malformed() };
    let without = |kind| Transport { kind, ports: 0, tcp_flags: 0 };
    let (protocol, at, transport) = match walk(packet) {
        Chain::Broken => return malformed(),
        Chain::Fragment { proto, at, .. } => (proto, at, without(Kind::Ipv6Odd(Odd::Fragment))),
        Chain::Long { proto, at } | Chain::Upper { proto: proto @ NO_NEXT_HEADER, at, .. } => {
            (proto, at, without(FAULT))
        }
        Chain::Upper { proto, at, extended } => {
            let l4 = packet.get(usize::from(at)..).unwrap_or_default();
            let addresses = ip.addresses();
            let sound = if extended { Kind::Ipv6Odd(Odd::Options) } else { Kind::Fast6 };
            let transport = match proto {
                proto::UDP => udp(&addresses, l4, verify, sound),
                proto::TCP => tcp(&addresses, l4, verify, sound),
                proto::ICMPV6 => icmp(&addresses, l4, sound),
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
        tos: ip.traffic_class(),
        tcp_flags: transport.tcp_flags,
        l4_fault: transport.kind == FAULT,
    }
}

/// A header that is cut short but may still have ports.
#[cold]
fn cut_short(l4: &[u8]) -> Transport {
    let ports = l4.first_chunk().map_or(0, |ports| u32::from_le_bytes(*ports));
    Transport { kind: FAULT, ports, tcp_flags: 0 }
}

/// A checksum of 0 passes in transit, as in the kernel: tunnels send none (RFC 6935).
#[inline(always)]
fn udp(addresses: &Addresses6, l4: &[u8], verify: Verify, sound: Kind) -> Transport {
    let Ok((udp, _)) = Udp::ref_from_prefix(l4) else { return cut_short(l4) };
    let length = usize::from(udp.length.get());
    let is_sound = length >= size_of::<Udp>()
        && l4.get(..length).is_some_and(|datagram| !verify.l4() || l4_ok6(addresses, proto::UDP, datagram));
    Transport { kind: if is_sound { sound } else { FAULT }, ports: udp.ports.get(), tcp_flags: 0 }
}

#[inline(always)]
fn tcp(addresses: &Addresses6, l4: &[u8], verify: Verify, sound: Kind) -> Transport {
    let Ok((tcp, _)) = Tcp::ref_from_prefix(l4) else { return cut_short(l4) };
    let header = tcp.header_bytes();
    let is_sound = header >= size_of::<Tcp>()
        && header <= l4.len()
        && flags_valid(tcp.flags)
        && (!verify.l4() || l4_ok6(addresses, proto::TCP, l4));
    Transport { kind: if is_sound { sound } else { FAULT }, ports: tcp.ports.get(), tcp_flags: tcp.flags }
}

#[inline(never)]
fn icmp(addresses: &Addresses6, l4: &[u8], sound: Kind) -> Transport {
    let Ok((message, _)) = Icmp::ref_from_prefix(l4) else {
        let ports = match *l4 {
            [icmp_type, code, ..] => u32::from(icmp_type) << 16 | u32::from(code) << 24,
            _ => 0,
        };
        return Transport { kind: FAULT, ports, tcp_flags: 0 };
    };
    let ports = message.ports();
    let without_id = |kind| Transport { kind, ports: ports & 0xffff_0000, tcp_flags: 0 };
    let icmp_type = message.icmp_type;
    if !l4_ok6(addresses, proto::ICMPV6, l4) {
        without_id(FAULT)
    } else if icmp_answer(proto::ICMPV6, icmp_type).is_some() {
        Transport { kind: sound, ports, tcp_flags: 0 }
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

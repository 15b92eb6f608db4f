//! Storing a translation into an IPv6 packet.

use erhu_planes::tuple::proto;
use zerocopy::{FromBytes, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{add, apply, apply_udp, delta, delta_addresses6, delta32};
use crate::header::{Icmp, Ipv6, Tcp, Udp};
use crate::icmp::id_of;
use crate::ipv6::Addresses6;
use crate::{Kind, Odd, Parsed};

/// What to store in an IPv6 packet, and what it does to the L4 checksum. Made once per direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite6 {
    /// New addresses.
    pub addresses: Addresses6,
    /// New ports as [`erhu_planes::tuple::pack_ports`] has them; of ICMPv6 only the identifier is stored.
    pub ports: u32,
    /// Change of the L4 sum: by addresses and ports, of ICMPv6 by addresses and identifier (RFC 4443 section 2.3).
    pub l4_delta: u16,
}

impl Rewrite6 {
    /// From the tuple that packets come with, `(addresses, ports)`, to the one that they leave with.
    pub fn new(protocol: u8, from: (Addresses6, u32), to: (Addresses6, u32)) -> Self {
        let ports = match protocol {
            proto::ICMPV6 => delta(&[id_of(from.1)], &[id_of(to.1)]),
            _ => delta32(from.1, to.1),
        };
        Self { addresses: to.0, ports: to.1, l4_delta: add(delta_addresses6(&from.0, &to.0), ports) }
    }

    /// Stores the translation into the packet in `frame` that `parsed` is of, takes one from its hop limit, and updates
    /// its checksum.
    ///
    /// For a hop limit above 0. Packets that are neither [`Kind::Fast6`] nor [`Odd::Options`] keep their L4 as it is.
    /// Does nothing if `parsed` is not of this frame.
    #[inline]
    pub fn apply(&self, frame: &mut [u8], parsed: &Parsed) {
        let Some(l4) = forward_header(frame, parsed, &self.addresses) else { return };
        if !matches!(parsed.kind, Kind::Fast6 | Kind::Ipv6Odd(Odd::Options)) {
            return;
        }
        match parsed.proto {
            proto::UDP => {
                if let Ok((udp, _)) = Udp::mut_from_prefix(l4) {
                    self.apply_udp(udp);
                }
            }
            proto::TCP => {
                if let Ok((tcp, _)) = Tcp::mut_from_prefix(l4) {
                    self.apply_tcp(tcp);
                }
            }
            _ => {
                if let Ok((icmp, _)) = Icmp::mut_from_prefix(l4) {
                    self.apply_icmp(icmp);
                }
            }
        }
    }

    /// As [`Self::apply`] for a [`Kind::Fast6`] packet, given from its IPv6 header on: where everything lies is known
    /// beforehand.
    #[inline(always)]
    pub fn apply_plain(&self, packet: &mut [u8], protocol: u8) {
        match protocol {
            proto::UDP => {
                if let Ok((packet, _)) = UdpPacket::mut_from_prefix(packet) {
                    forward_ip(&mut packet.ip, &self.addresses);
                    self.apply_udp(&mut packet.udp);
                }
            }
            proto::TCP => {
                if let Ok((packet, _)) = TcpPacket::mut_from_prefix(packet) {
                    forward_ip(&mut packet.ip, &self.addresses);
                    self.apply_tcp(&mut packet.tcp);
                }
            }
            _ => {
                if let Ok((packet, _)) = IcmpPacket::mut_from_prefix(packet) {
                    forward_ip(&mut packet.ip, &self.addresses);
                    self.apply_icmp(&mut packet.icmp);
                }
            }
        }
    }

    #[inline(always)]
    fn apply_udp(&self, udp: &mut Udp) {
        udp.ports.set(self.ports);
        apply_udp(&mut udp.checksum, self.l4_delta);
    }

    #[inline(always)]
    fn apply_tcp(&self, tcp: &mut Tcp) {
        tcp.ports.set(self.ports);
        apply(&mut tcp.checksum, self.l4_delta);
    }

    #[inline(always)]
    fn apply_icmp(&self, icmp: &mut Icmp) {
        icmp.id.set(id_of(self.ports));
        apply(&mut icmp.checksum, self.l4_delta);
    }
}

/// IPv6 without extension headers, and UDP.
#[derive(FromBytes, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct UdpPacket {
    ip: Ipv6,
    udp: Udp,
}

/// … and TCP.
#[derive(FromBytes, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct TcpPacket {
    ip: Ipv6,
    tcp: Tcp,
}

/// … and ICMPv6.
#[derive(FromBytes, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct IcmpPacket {
    ip: Ipv6,
    icmp: Icmp,
}

/// Stores both addresses into the IPv6 header that `parsed` is of and takes one from its hop limit. L4 stays as it is,
/// but for the checksum of an ICMPv6 error, which covers the addresses: for those errors, and for packets that are
/// forwarded as they are, with the addresses that they have.
///
/// For a hop limit above 0. Does nothing if `parsed` is not of this frame.
pub fn forward(frame: &mut [u8], parsed: &Parsed, addresses: &Addresses6) {
    let Some(old) = Addresses6::read(frame, parsed.l3) else { return };
    let Some(l4) = forward_header(frame, parsed, addresses) else { return };
    if old == *addresses || parsed.kind != Kind::Ipv6Odd(Odd::IcmpError) {
        return;
    }
    if let Ok((icmp, _)) = Icmp::mut_from_prefix(l4) {
        apply(&mut icmp.checksum, delta_addresses6(&old, addresses));
    }
}

/// Returns what follows the header and its extensions, up to the end of the packet.
#[inline(always)]
fn forward_header<'f>(frame: &'f mut [u8], parsed: &Parsed, addresses: &Addresses6) -> Option<&'f mut [u8]> {
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let (head, body) = frame.get_mut(..usize::from(parsed.end))?.split_at_mut_checked(l4)?;
    let (ip, _) = Ipv6::mut_from_prefix(head.get_mut(l3..)?).ok()?;
    forward_ip(ip, addresses);
    Some(body)
}

#[inline(always)]
fn forward_ip(ip: &mut Ipv6, addresses: &Addresses6) {
    ip.set_addresses(addresses);
    ip.hop_limit = ip.hop_limit.wrapping_sub(1);
}

//! Storing a translation into a packet.

use erhu_planes::tuple::proto;
use zerocopy::{FromBytes, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{TTL_DELTA, add, apply, apply_udp, delta, delta32, delta64};
use crate::header::{Icmp, Ipv4, Tcp, Udp};
use crate::icmp::id_of;
use crate::{Kind, Odd, Parsed};

/// What to store in an IPv4 packet, and what it does to the checksums. Made once per direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite4 {
    /// New source and destination address, as in word 0 of [`erhu_planes::tuple::Key4`].
    pub addresses: u64,
    /// New ports as [`erhu_planes::tuple::pack_ports`] has them; of ICMP only the identifier is stored.
    pub ports: u32,
    /// Change of the IP header's ones' complement sum (RFC 1624 equation 3) by the addresses, and by a TTL that is one less.
    pub l3_delta: u16,
    /// Change of the L4 sum: by ports and addresses for TCP and UDP, by the identifier for ICMP.
    pub l4_delta: u16,
}

impl Rewrite4 {
    /// From the tuple that packets come with, `(addresses, ports)`, to the one that they leave with.
    pub fn new(protocol: u8, from: (u64, u32), to: (u64, u32)) -> Self {
        let by_addresses = delta64(from.0, to.0);
        let l4_delta = match protocol {
            proto::ICMP => delta(&[id_of(from.1)], &[id_of(to.1)]),
            _ => add(by_addresses, delta32(from.1, to.1)),
        };
        Self { addresses: to.0, ports: to.1, l3_delta: add(by_addresses, TTL_DELTA), l4_delta }
    }

    /// The way back, to `to`, addresses and ports: what these add to the sums is what they take off on the way there.
    #[inline]
    pub const fn reversed(&self, to: (u64, u32)) -> Self {
        const fn negative(delta: u16) -> u16 {
            // In ones' complement; all ones are 0 too.
            if delta == 0 { 0 } else { !delta }
        }
        // The TTL goes down on either way.
        let l3_delta = add(negative(self.l3_delta), add(TTL_DELTA, TTL_DELTA));
        Self { addresses: to.0, ports: to.1, l3_delta, l4_delta: negative(self.l4_delta) }
    }

    /// Stores the translation into the packet in `frame` that `parsed` is of, takes one from its TTL, and updates its
    /// checksums.
    ///
    /// For a TTL above 0. Packets that are neither [`Kind::Fast`] nor [`Odd::Options`] keep their L4 as it is. Does
    /// nothing if `parsed` is not of this frame.
    #[inline]
    pub fn apply(&self, frame: &mut [u8], parsed: &Parsed) {
        let Some(l4) = forward_header(frame, parsed, self.addresses, self.l3_delta) else { return };
        if !matches!(parsed.kind, Kind::Fast | Kind::Ipv4Odd(Odd::Options)) {
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

    /// As [`Self::apply`] for a [`Kind::Fast`] packet, given from its IPv4 header on: where everything lies is known
    /// beforehand.
    #[inline(always)]
    pub fn apply_plain(&self, packet: &mut [u8], protocol: u8) {
        match protocol {
            proto::UDP => {
                if let Ok((packet, _)) = UdpPacket::mut_from_prefix(packet) {
                    forward_ip(&mut packet.ip, self.addresses, self.l3_delta);
                    self.apply_udp(&mut packet.udp);
                }
            }
            proto::TCP => {
                if let Ok((packet, _)) = TcpPacket::mut_from_prefix(packet) {
                    forward_ip(&mut packet.ip, self.addresses, self.l3_delta);
                    self.apply_tcp(&mut packet.tcp);
                }
            }
            _ => {
                if let Ok((packet, _)) = IcmpPacket::mut_from_prefix(packet) {
                    forward_ip(&mut packet.ip, self.addresses, self.l3_delta);
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

/// IPv4 without options, and UDP.
#[derive(FromBytes, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct UdpPacket {
    ip: Ipv4,
    udp: Udp,
}

/// … and TCP.
#[derive(FromBytes, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct TcpPacket {
    ip: Ipv4,
    tcp: Tcp,
}

/// … and ICMP.
#[derive(FromBytes, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct IcmpPacket {
    ip: Ipv4,
    icmp: Icmp,
}

/// Stores both addresses into the IPv4 header that `parsed` is of, takes one from its TTL and updates its checksum. L4
/// stays as it is: for ICMP errors, whose checksum does not cover addresses, and for packets that are forwarded as they
/// are, with [`Parsed::addresses`].
///
/// For a TTL above 0. Does nothing if `parsed` is not of this frame.
pub fn forward(frame: &mut [u8], parsed: &Parsed, addresses: u64) {
    forward_header(frame, parsed, addresses, add(delta64(parsed.addresses, addresses), TTL_DELTA));
}

/// Returns what follows the header, up to the end of the packet.
#[inline(always)]
fn forward_header<'f>(frame: &'f mut [u8], parsed: &Parsed, addresses: u64, l3_delta: u16) -> Option<&'f mut [u8]> {
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let (head, body) = frame.get_mut(..usize::from(parsed.end))?.split_at_mut_checked(l4)?;
    let (ip, _) = Ipv4::mut_from_prefix(head.get_mut(l3..)?).ok()?;
    forward_ip(ip, addresses, l3_delta);
    Some(body)
}

#[inline(always)]
fn forward_ip(ip: &mut Ipv4, addresses: u64, l3_delta: u16) {
    ip.addresses.set(addresses);
    ip.ttl = ip.ttl.wrapping_sub(1);
    apply(&mut ip.checksum, l3_delta);
}

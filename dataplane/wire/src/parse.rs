//! One pass over a frame.

mod v6;

use erhu_planes::tuple::{icmp_answer, proto};
use zerocopy::{FromBytes, IntoBytes};

use crate::checksum::{ipv4_header_ok, l4_ok};
use crate::ethernet::{self, pack_mac};
use crate::header::{Ethernet, Icmp, Ipv4, Tag, Tcp, Udp};
use crate::icmp::{HIGHEST_TYPE, is_error};
use crate::tcp::flags_valid;

/// [`Parsed::vlan`] of a frame with two tags, or with an outer tag that is not 802.1Q: no single VLAN id names its
/// interface.
pub const VLAN_STACKED: u16 = 0xffff;

/// Everything that one pass over a frame finds. Fields that [`Parsed::kind`] does not promise are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Destination MAC address, packed ([`ethernet::pack_mac`]).
    pub destination: u64,
    /// IPv4: both addresses, word 0 of [`erhu_planes::tuple::Key4`]. IPv6: 0, see [`crate::Addresses6::read`].
    pub addresses: u64,
    /// IP: ports as [`erhu_planes::tuple::pack_ports`] has them, where the packet has them; for ICMP errors and
    /// other ICMP messages that are no queries, type and code without an identifier.
    pub ports: u32,
    /// What it is.
    pub kind: Kind,
    /// Offset of the L3 header from the start of the frame.
    pub l3: u16,
    /// IP: offset of the L4 header, behind options or extension headers; of an IPv6 fragment, of its data.
    pub l4: u16,
    /// IP: offset of the first byte after the packet; what follows is padding. Else the frame's length.
    pub end: u16,
    /// VLAN id of a single 802.1Q tag, 0 without tag or for a priority tag, [`VLAN_STACKED`].
    pub vlan: u16,
    /// IP: total length, header included.
    pub length: u16,
    /// IP: protocol; of IPv6, of what follows the extension headers, or of the one that is not looked into.
    pub proto: u8,
    /// IP: time to live, hop limit.
    pub ttl: u8,
    /// IP: type of service, traffic class.
    pub tos: u8,
    /// Flags of a TCP segment whose header is whole.
    pub tcp_flags: u8,
    /// L4 is broken: conntrack calls the packet INVALID. Set with [`Odd::L4Fault`] and only then.
    pub l4_fault: bool,
}

const _: () = assert!(size_of::<Parsed>() <= 64);

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 without options, unfragmented, TCP, UDP or an ICMP query with a sound L4 header: trackable.
    Fast,
    /// IPv4 that needs a closer look.
    Ipv4Odd(Odd),
    /// IPv6 without extension headers, TCP, UDP or an ICMPv6 query with a sound L4 header: trackable.
    Fast6,
    /// IPv6 that needs a closer look.
    Ipv6Odd(Odd),
    /// ARP, not yet read.
    Arp,
    /// Another EtherType, or the length field of an 802.3 frame.
    Other(u16),
    /// The link or IP header, or an IPv6 extension header, is broken or cut short, or the frame is shorter than the
    /// packet.
    Malformed,
    /// The checksum of the IPv4 header is wrong.
    BadChecksum,
}

/// What is odd about an IP packet. Of several, the first in this order: fragment, fault, protocol, options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Odd {
    /// As [`Kind::Fast`] but for IP options, as [`Kind::Fast6`] but for extension headers.
    Options,
    /// An ICMP error: about another packet, see [`crate::icmp::parse_error`] and [`crate::icmp6::parse_error`].
    IcmpError,
    /// An ICMP message that is neither query, answer nor error.
    IcmpOther,
    /// ICMPv6: neighbour and router discovery, redirects (RFC 4861), see [`crate::nd`].
    Discovery,
    /// ICMPv6: who listens to which group (RFC 2710, RFC 3810).
    Listener,
    /// A fragment, the first one included; its L4 was not looked at.
    Fragment,
    /// A protocol other than TCP, UDP and the family's ICMP.
    OtherProtocol,
    /// L4 header cut short or contradicting itself, wrong checksum, impossible TCP flags, ICMP type above 18. IPv6: no
    /// L4 header at all, or behind more extension headers than [`crate::ipv6::MOST_EXTENSIONS`].
    L4Fault,
}

/// Which checksums to verify: those that the NIC does not vouch for.
///
/// ICMP checksums are always verified. NICs know those of TCP and UDP, and many report "L4 good" for all else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verify {
    /// All.
    All = 0,
    /// The NIC found the IPv4 header checksum right.
    TrustIp = 1,
    /// The NIC found the TCP or UDP checksum right.
    TrustL4 = 2,
    /// Both.
    TrustBoth = 3,
}

impl Verify {
    /// From what the NIC vouches for.
    #[inline]
    pub const fn new(ip_good: bool, l4_good: bool) -> Self {
        match (ip_good, l4_good) {
            (false, false) => Self::All,
            (true, false) => Self::TrustIp,
            (false, true) => Self::TrustL4,
            (true, true) => Self::TrustBoth,
        }
    }

    const fn ip(self) -> bool {
        self as u8 & 1 == 0
    }

    const fn l4(self) -> bool {
        self as u8 & 2 == 0
    }
}

/// What comes before the L3 header.
#[derive(Clone, Copy)]
struct Link {
    destination: u64,
    l3: u16,
    vlan: u16,
    /// Length of the frame.
    end: u16,
}

/// What an L4 header says.
#[derive(Clone, Copy)]
struct Transport {
    kind: Kind,
    ports: u32,
    tcp_flags: u8,
}

/// Reads a frame, without FCS, once.
///
/// Strict about lengths: each header must lie in what contains it; a frame may be longer than its packet (padding),
/// never shorter. Follows RFC 1812 section 5.2.2 for the IPv4 header, RFC 8200 for IPv6 and the kernel's connection
/// tracking for L4 faults, but UDP may end before the IP payload does, and its checksum is that of its own length (RFC
/// 768).
// The result is put together at the end, from values in registers: read back soon after its fields were stored one
// by one, it would wait for the stores.
#[inline]
pub fn parse(frame: &[u8], verify: Verify) -> Parsed {
    // Offsets are u16; no port receives frames of 64 KiB.
    let (Ok(end), Ok((ethernet, mut rest))) = (u16::try_from(frame.len()), Ethernet::ref_from_prefix(frame)) else {
        return Link { destination: 0, l3: 0, vlan: 0, end: 0 }.without_ip(Kind::Malformed);
    };
    let mut link = Link { destination: pack_mac(ethernet.destination), l3: 14, vlan: 0, end };
    let mut ethertype = ethernet.ethertype.get();
    if ethertype == ethernet::VLAN {
        let Ok((tag, below)) = Tag::ref_from_prefix(rest) else { return link.without_ip(Kind::Malformed) };
        link = Link { l3: 18, vlan: tag.control.get() & 0xfff, ..link };
        (ethertype, rest) = (tag.ethertype.get(), below);
    }
    if ethertype == ethernet::IPV4 { ipv4(link, rest, verify) } else { not_ipv4(link, ethertype, rest, verify) }
}

impl Link {
    fn without_ip(self, kind: Kind) -> Parsed {
        let Self { destination, l3, vlan, end } = self;
        Parsed {
            destination,
            addresses: 0,
            ports: 0,
            kind,
            l3,
            l4: 0,
            end,
            vlan,
            length: 0,
            proto: 0,
            ttl: 0,
            tos: 0,
            tcp_flags: 0,
            l4_fault: false,
        }
    }
}

/// Goes through the tags that are left, three in all; what lies below more is not looked for.
#[cold]
#[inline(never)]
fn not_ipv4(mut link: Link, mut ethertype: u16, mut rest: &[u8], verify: Verify) -> Parsed {
    while matches!(ethertype, ethernet::VLAN | ethernet::QINQ | ethernet::QINQ_OLD) && link.l3 < 26 {
        link.vlan = VLAN_STACKED;
        let Ok((tag, below)) = Tag::ref_from_prefix(rest) else { return link.without_ip(Kind::Malformed) };
        (ethertype, rest) = (tag.ethertype.get(), below);
        link.l3 += 4;
    }
    match ethertype {
        ethernet::IPV4 => ipv4(link, rest, verify),
        ethernet::ARP => link.without_ip(Kind::Arp),
        ethernet::IPV6 => v6::ipv6(link, rest, verify),
        other => link.without_ip(Kind::Other(other)),
    }
}

/// Reads an IPv4 packet and its padding.
#[inline(always)]
fn ipv4(link: Link, packet: &[u8], verify: Verify) -> Parsed {
    let malformed = || link.without_ip(Kind::Malformed);
    let Ok((ip, _)) = Ipv4::ref_from_prefix(packet) else { return malformed() };
    let Some(ihl) = ip.header_bytes() else { return malformed() };
    let length = ip.length.get();
    let (Some(header), Some(l4)) = (packet.get(..ihl), packet.get(ihl..usize::from(length))) else {
        return malformed();
    };
    let addresses = ip.addresses.get();
    let plain = ihl == size_of::<Ipv4>();
    // Of a known length the sum needs no loop.
    let right = !verify.ip() || if plain { ipv4_header_ok(ip.as_bytes()) } else { ipv4_header_ok(header) };
    let trackable = if plain { Kind::Fast } else { Kind::Ipv4Odd(Odd::Options) };
    let without = |kind| Transport { kind, ports: 0, tcp_flags: 0 };
    let transport = if !right {
        without(Kind::BadChecksum)
    } else if ip.is_fragment() {
        without(Kind::Ipv4Odd(Odd::Fragment))
    } else {
        match ip.proto {
            proto::UDP => udp(addresses, l4, verify, trackable),
            proto::TCP => tcp(addresses, l4, verify, trackable),
            proto::ICMP => icmp(l4, trackable),
            _ => without(Kind::Ipv4Odd(Odd::OtherProtocol)),
        }
    };
    Parsed {
        destination: link.destination,
        addresses,
        ports: transport.ports,
        kind: transport.kind,
        l3: link.l3,
        l4: link.l3 + u16::from(ip.version_ihl & 15) * 4,
        end: link.l3 + length, // within the frame, whose length is a u16
        vlan: link.vlan,
        length,
        proto: ip.proto,
        ttl: ip.ttl,
        tos: ip.tos,
        tcp_flags: transport.tcp_flags,
        l4_fault: transport.kind == FAULT,
    }
}

const FAULT: Kind = Kind::Ipv4Odd(Odd::L4Fault);

/// A header that is cut short but may still have ports.
#[cold]
fn cut_short(l4: &[u8]) -> Transport {
    let ports = l4.first_chunk().map_or(0, |ports| u32::from_le_bytes(*ports));
    Transport { kind: FAULT, ports, tcp_flags: 0 }
}

#[inline(always)]
fn udp(addresses: u64, l4: &[u8], verify: Verify, sound: Kind) -> Transport {
    let Ok((udp, _)) = Udp::ref_from_prefix(l4) else { return cut_short(l4) };
    let length = usize::from(udp.length.get());
    let is_sound = length >= size_of::<Udp>()
        && l4.get(..length).is_some_and(|datagram| !verify.l4() || l4_ok(addresses, proto::UDP, datagram));
    Transport { kind: if is_sound { sound } else { FAULT }, ports: udp.ports.get(), tcp_flags: 0 }
}

#[inline(always)]
fn tcp(addresses: u64, l4: &[u8], verify: Verify, sound: Kind) -> Transport {
    let Ok((tcp, _)) = Tcp::ref_from_prefix(l4) else { return cut_short(l4) };
    let header = tcp.header_bytes();
    let is_sound = header >= size_of::<Tcp>()
        && header <= l4.len()
        && flags_valid(tcp.flags)
        && (!verify.l4() || l4_ok(addresses, proto::TCP, l4));
    Transport { kind: if is_sound { sound } else { FAULT }, ports: tcp.ports.get(), tcp_flags: tcp.flags }
}

#[inline(never)]
fn icmp(l4: &[u8], sound: Kind) -> Transport {
    let Ok((message, _)) = Icmp::ref_from_prefix(l4) else {
        let ports = match *l4 {
            [icmp_type, code, ..] => u32::from(icmp_type) << 16 | u32::from(code) << 24,
            _ => 0,
        };
        return Transport { kind: FAULT, ports, tcp_flags: 0 };
    };
    let ports = message.ports();
    let without_id = |kind| Transport { kind, ports: ports & 0xffff_0000, tcp_flags: 0 };
    if message.icmp_type > HIGHEST_TYPE || !l4_ok(0, proto::ICMP, l4) {
        without_id(FAULT)
    } else if is_error(message.icmp_type) {
        without_id(Kind::Ipv4Odd(Odd::IcmpError))
    } else if icmp_answer(proto::ICMP, message.icmp_type).is_none() {
        without_id(Kind::Ipv4Odd(Odd::IcmpOther))
    } else {
        Transport { kind: sound, ports, tcp_flags: 0 }
    }
}

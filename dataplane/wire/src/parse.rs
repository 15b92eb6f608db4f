//! One pass over a frame.

mod v6;

pub use v6::parse_common6;

use erhu_planes::tuple::{icmp_answer, proto};
use zerocopy::byteorder::{big_endian, little_endian};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

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
}

const _: () = assert!(size_of::<Parsed>() <= 64);

impl Parsed {
    /// What an empty frame is.
    pub const NOTHING: Self = Self {
        destination: 0,
        addresses: 0,
        ports: 0,
        kind: Kind::Malformed,
        l3: 0,
        l4: 0,
        end: 0,
        vlan: 0,
        length: 0,
        proto: 0,
        ttl: 0,
    };
}

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
}

/// Reads a frame, without FCS, once.
///
/// Strict about lengths: each header must lie in what contains it; a frame may be longer than its packet (padding),
/// never shorter. Follows RFC 1812 section 5.2.2 for the IPv4 header, RFC 8200 for IPv6 and the kernel's connection
/// tracking for L4 faults, but UDP may end before the IP payload does, and its checksum is that of its own length (RFC
/// 768).
#[inline]
pub fn parse(frame: &[u8], verify: Verify) -> Parsed {
    let mut parsed = Parsed::NOTHING;
    parse_into(frame, verify, &mut parsed);
    parsed
}

/// As [`parse`], into a place of the caller's, all of it. Every field is stored once, from a register: a copy made soon
/// after would load wide what was stored narrow, and wait for the stores.
#[inline(always)]
pub fn parse_into(frame: &[u8], verify: Verify, out: &mut Parsed) {
    if !parse_common(frame, verify, out) {
        *out = thorough(frame, verify);
    }
}

/// An Ethernet header as words.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct LinkWords {
    /// Destination, and two bytes of the source.
    destination: little_endian::U64,
    _source: [u8; 4],
    /// As a frame word.
    ethertype: little_endian::U16,
}

/// A tag as a word.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct TagWords {
    control: big_endian::U16,
    /// As a frame word.
    ethertype: little_endian::U16,
}

/// An IPv4 header without options as words.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Ipv4Words {
    /// Version, header length, type of service, length, identification, flags, fragment offset.
    first: little_endian::U64,
    ttl: u8,
    proto: u8,
    _checksum: [u8; 2],
    addresses: little_endian::U64,
}

/// Of [`Ipv4Words::first`]: version, header length, more fragments, fragment offset.
const SHAPE: u64 = u64::from_le_bytes([0xff, 0, 0, 0, 0, 0, 0x3f, 0xff]);
/// What they are in an unfragmented packet without options.
const PLAIN: u64 = 0x45;

/// [`parse_into`] for the commonest frames, with a quick look: no tag or one, IPv4 without options, unfragmented, UDP or
/// TCP, everything sound. `false`, with nothing stored, for all others.
///
/// What it finds is what the thorough look finds (a test compares them); where it succeeds, everything is still in
/// registers.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "fields are cut out of words on purpose")]
pub fn parse_common(frame: &[u8], verify: Verify, out: &mut Parsed) -> bool {
    // Offsets are u16.
    if frame.len() > usize::from(u16::MAX) {
        return false;
    }
    let Ok((link, below)) = LinkWords::ref_from_prefix(frame) else { return false };
    let (mut l3, mut vlan, mut ethertype, mut packet) = (14, 0, link.ethertype.get(), below);
    if ethertype == ethernet::VLAN.swap_bytes() {
        let Ok((tag, below)) = TagWords::ref_from_prefix(below) else { return false };
        (l3, vlan, ethertype, packet) = (18, tag.control.get() & 0xfff, tag.ethertype.get(), below);
    }
    let Ok((ip, _)) = Ipv4Words::ref_from_prefix(packet) else { return false };
    let first = ip.first.get();
    let length = ((first >> 16) as u16).swap_bytes();
    if ethertype != ethernet::IPV4.swap_bytes() || first & SHAPE != PLAIN {
        return false;
    }
    let Some(l4) = packet.get(size_of::<Ipv4Words>()..usize::from(length)) else { return false };
    let addresses = ip.addresses.get();
    let transport = match ip.proto {
        proto::UDP => udp(addresses, l4, verify, Kind::Fast),
        proto::TCP => tcp(addresses, l4, verify, Kind::Fast),
        _ => return false,
    };
    if transport.kind != Kind::Fast || verify.ip() && !ipv4_header_ok(ip.as_bytes()) {
        return false;
    }
    out.destination = link.destination.get() & ethernet::MAC_BITS;
    out.addresses = addresses;
    out.ports = transport.ports;
    out.kind = Kind::Fast;
    out.l3 = l3;
    out.l4 = l3 + size_of::<Ipv4Words>() as u16;
    out.end = l3 + length; // within the frame, whose length is a u16
    out.vlan = vlan;
    out.length = length;
    out.proto = ip.proto;
    out.ttl = ip.ttl;
    true
}

/// [`parse`] for every frame.
#[cold]
#[inline(never)]
fn thorough(frame: &[u8], verify: Verify) -> Parsed {
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
        Parsed { destination, addresses: 0, ports: 0, kind, l3, l4: 0, end, vlan, length: 0, proto: 0, ttl: 0 }
    }
}

/// Goes through the tags that are left, three in all; what lies below more is not looked for.
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
    let without = |kind| Transport { kind, ports: 0 };
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
    }
}

const FAULT: Kind = Kind::Ipv4Odd(Odd::L4Fault);

/// A header that is cut short but may still have ports.
#[cold]
fn cut_short(l4: &[u8]) -> Transport {
    let ports = l4.first_chunk().map_or(0, |ports| u32::from_le_bytes(*ports));
    Transport { kind: FAULT, ports }
}

#[inline(always)]
fn udp(addresses: u64, l4: &[u8], verify: Verify, sound: Kind) -> Transport {
    let Ok((udp, _)) = Udp::ref_from_prefix(l4) else { return cut_short(l4) };
    let length = usize::from(udp.length.get());
    let is_sound = length >= size_of::<Udp>()
        && l4.get(..length).is_some_and(|datagram| !verify.l4() || l4_ok(addresses, proto::UDP, datagram));
    Transport { kind: if is_sound { sound } else { FAULT }, ports: udp.ports.get() }
}

#[inline(always)]
fn tcp(addresses: u64, l4: &[u8], verify: Verify, sound: Kind) -> Transport {
    let Ok((tcp, _)) = Tcp::ref_from_prefix(l4) else { return cut_short(l4) };
    let header = tcp.header_bytes();
    let is_sound = header >= size_of::<Tcp>()
        && header <= l4.len()
        && flags_valid(tcp.flags)
        && (!verify.l4() || l4_ok(addresses, proto::TCP, l4));
    Transport { kind: if is_sound { sound } else { FAULT }, ports: tcp.ports.get() }
}

#[inline(never)]
fn icmp(l4: &[u8], sound: Kind) -> Transport {
    let Ok((message, _)) = Icmp::ref_from_prefix(l4) else {
        let ports = match *l4 {
            [icmp_type, code, ..] => u32::from(icmp_type) << 16 | u32::from(code) << 24,
            _ => 0,
        };
        return Transport { kind: FAULT, ports };
    };
    let ports = message.ports();
    let without_id = |kind| Transport { kind, ports: ports & 0xffff_0000 };
    if message.icmp_type > HIGHEST_TYPE || !l4_ok(0, proto::ICMP, l4) {
        without_id(FAULT)
    } else if is_error(message.icmp_type) {
        without_id(Kind::Ipv4Odd(Odd::IcmpError))
    } else if icmp_answer(proto::ICMP, message.icmp_type).is_none() {
        without_id(Kind::Ipv4Odd(Odd::IcmpOther))
    } else {
        Transport { kind: sound, ports }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Frames that [`parse_common`] takes, or nearly: some bytes of a good one are overwritten, some cut off.
    fn nearly_common() -> impl Strategy<Value = Vec<u8>> {
        let damage = proptest::collection::vec((0usize..60, any::<u8>()), 0..3);
        (any::<bool>(), any::<bool>(), damage, 0usize..30, any::<u16>()).prop_map(
            |(tagged, tcp, damage, tail, tag)| {
                let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
                if tagged {
                    frame.extend([0x81, 0x00]);
                    frame.extend(tag.to_be_bytes());
                }
                frame.extend([0x08, 0x00, 0x45, 0x10, 0, 44, 1, 2, 0x40, 0, 64, if tcp { 6 } else { 17 }, 0, 0]);
                frame.extend([10, 0, 0, 1, 192, 0, 2, 1, 0x12, 0x34, 0, 53]);
                frame.extend(if tcp {
                    [0, 0, 0, 1, 0, 0, 0, 2, 0x60, 0x10, 0xff, 0xff]
                } else {
                    [0, 24, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
                });
                frame.extend([0; 12]);
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
        #[test]
        fn the_quick_look_finds_what_the_thorough_one_finds_or_nothing(frame in nearly_common(), verify in 0u8..4) {
            let verify = [Verify::All, Verify::TrustIp, Verify::TrustL4, Verify::TrustBoth][usize::from(verify)];
            let mut quick = Parsed::NOTHING;
            let full = thorough(&frame, verify);
            if parse_common(&frame, verify, &mut quick) {
                prop_assert_eq!(quick, full);
            } else {
                prop_assert_eq!(quick, Parsed::NOTHING);
                let simple = matches!(full.proto, proto::UDP | proto::TCP);
                let stacked = full.vlan == VLAN_STACKED;
                prop_assert!(full.kind != Kind::Fast || !simple || stacked, "{:?}", full);
            }
        }
    }
}

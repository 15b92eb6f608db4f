//! IPv6: addresses as frame words, headers of packets to send, the walk over extension headers, well-known addresses.

use std::net::Ipv6Addr;

use erhu_planes::tuple::{Key6, pack_v6, unpack_v6};
use zerocopy::FromBytes;

use crate::ethernet::Mac;
use crate::header::Ipv6;

/// Bytes of a header without extension headers.
pub const HEADER_BYTES: usize = size_of::<Ipv6>();
/// Hop limit of packets that the router originates (RFC 1700, "current recommended default").
pub const DEFAULT_HOP_LIMIT: u8 = 64;
/// What every link carries unfragmented (RFC 8200 section 5).
pub const LEAST_MTU: u16 = 1280;
/// Extension headers that [`walk`] looks at, at most.
pub const MOST_EXTENSIONS: usize = 8;
/// All nodes of a link (RFC 4291 section 2.7.1).
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Extension header: hop-by-hop options (RFC 8200 section 4.3).
const HOP_BY_HOP: u8 = 0;
/// Extension header: routing (RFC 8200 section 4.4).
const ROUTING: u8 = 43;
/// Extension header: fragment (RFC 8200 section 4.5).
const FRAGMENT: u8 = 44;
/// Extension header: destination options (RFC 8200 section 4.6).
const DESTINATION: u8 = 60;
/// Nothing follows (RFC 8200 section 4.7).
pub const NO_NEXT_HEADER: u8 = 59;
/// Bytes of a fragment header.
pub const FRAGMENT_BYTES: usize = 8;

/// Source and destination of an IPv6 packet as frame words, the form of [`Key6`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Addresses6 {
    /// Source.
    pub src: [u64; 2],
    /// Destination.
    pub dst: [u64; 2],
}

impl Addresses6 {
    /// Packs two addresses.
    pub fn new(src: Ipv6Addr, dst: Ipv6Addr) -> Self {
        Self { src: pack_v6(src), dst: pack_v6(dst) }
    }

    /// Reads the addresses of the packet whose IPv6 header starts at `l3`. `None` if the frame ends before they do.
    ///
    /// Four loads of eight bytes each, of what the NIC wrote: nothing that would have to wait for a shorter store.
    #[inline(always)]
    pub fn read(frame: &[u8], l3: u16) -> Option<Self> {
        Ipv6::ref_from_prefix(frame.get(usize::from(l3)..)?).ok().map(|(ip, _)| ip.addresses())
    }

    /// The inverse of [`Addresses6::new`].
    pub fn unpack(&self) -> (Ipv6Addr, Ipv6Addr) {
        (unpack_v6(self.src), unpack_v6(self.dst))
    }

    /// Those of an answer.
    #[inline]
    pub const fn swapped(&self) -> Self {
        Self { src: self.dst, dst: self.src }
    }

    /// The key of a tuple with these addresses; `low` as [`erhu_planes::tuple::pack_low`] makes it.
    #[inline(always)]
    pub const fn key(&self, low: u64) -> Key6 {
        Key6 { src: self.src, dst: self.dst, low }
    }
}

/// A header to send; nothing is said about extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source.
    pub src: Ipv6Addr,
    /// Destination.
    pub dst: Ipv6Addr,
    /// Protocol of what follows.
    pub next: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Traffic class.
    pub traffic_class: u8,
    /// Bytes that follow the header.
    pub payload: u16,
}

impl Header {
    /// Writes the header, with flow label 0, and returns its length, 40 bytes. `None` if `buf` is shorter.
    pub fn write(&self, buf: &mut [u8]) -> Option<usize> {
        let (ip, _) = Ipv6::mut_from_prefix(buf).ok()?;
        *ip = Ipv6 {
            version_class_flow: (6 << 28 | u32::from(self.traffic_class) << 20).into(),
            payload: self.payload.into(),
            next: self.next,
            hop_limit: self.hop_limit,
            src: pack_v6(self.src).map(Into::into),
            dst: pack_v6(self.dst).map(Into::into),
        };
        Some(HEADER_BYTES)
    }
}

/// Where a chain of extension headers leads. Offsets count from the IPv6 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// To an upper layer, perhaps an empty one.
    Upper {
        /// Its protocol.
        proto: u8,
        /// Where it starts.
        at: u16,
        /// Whether there were extension headers.
        extended: bool,
    },
    /// To a fragment header of a packet in more than one piece.
    Fragment {
        /// Protocol of what is fragmented: of the first header behind the fragment header.
        proto: u8,
        /// Where the fragment's data starts, [`FRAGMENT_BYTES`] behind its header.
        at: u16,
        /// Whether it is the first piece.
        first: bool,
    },
    /// To one more extension header, of this protocol, than [`MOST_EXTENSIONS`].
    Long {
        /// Its protocol.
        proto: u8,
        /// Where it starts.
        at: u16,
    },
    /// Beyond the end of the packet, or to hop-by-hop options that do not come first (RFC 8200 section 4.1).
    Broken,
}

/// Walks over hop-by-hop options, routing headers, destination options and fragment headers of whole packets (RFC
/// 6946), none of which is looked into.
///
/// `packet` reaches from an IPv6 header to the end of its payload, or to where a quotation of it ends; shorter than a
/// header, it is [`Chain::Broken`]. Everything else counts as an upper layer: AH, ESP, mobility headers too.
#[inline]
pub fn walk(packet: &[u8]) -> Chain {
    let Ok((ip, _)) = Ipv6::ref_from_prefix(packet) else { return Chain::Broken };
    if matches!(ip.next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) {
        return walk_extensions(ip.next, packet);
    }
    Chain::Upper { proto: ip.next, at: 40, extended: false }
}

#[inline(never)]
fn walk_extensions(mut proto: u8, packet: &[u8]) -> Chain {
    let mut at = HEADER_BYTES;
    for number in 0..=MOST_EXTENSIONS {
        let Ok(offset) = u16::try_from(at) else { return Chain::Broken };
        let length = match proto {
            HOP_BY_HOP if number > 0 => return Chain::Broken,
            HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION if number == MOST_EXTENSIONS => {
                return Chain::Long { proto, at: offset };
            }
            FRAGMENT => FRAGMENT_BYTES,
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let Some(units) = packet.get(at + 1) else { return Chain::Broken };
                (usize::from(*units) + 1) * 8
            }
            _ => return Chain::Upper { proto, at: offset, extended: true },
        };
        let Some(&[next, _, high, low, ..]) = packet.get(at..at + length) else { return Chain::Broken };
        let place = u16::from_be_bytes([high, low]);
        at += length;
        // Offset (13 bits), two reserved ones, more fragments.
        if proto == FRAGMENT && place & 0xfff9 != 0 {
            let Ok(at) = u16::try_from(at) else { return Chain::Broken };
            return Chain::Fragment { proto: next, at, first: place & 0xfff8 == 0 };
        }
        proto = next;
    }
    Chain::Broken
}

/// Whether a router never forwards packets from or to an address, given as frame words: the unspecified address,
/// loopback, multicast, link-local (RFC 4291 sections 2.5.2, 2.5.3, 2.5.6) and IPv4-mapped ones (RFC 4942 section 2.2).
///
/// The router itself may be the one that such a packet is for, or that it is from.
#[inline]
pub const fn is_unforwardable_v6(address: [u64; 2]) -> bool {
    let [low, high] = address;
    let reserved = low == 0 && (high == 0 || high == 1 << 56 || high & 0xffff_ffff == 0xffff_0000);
    reserved || is_multicast(address) || is_link_local(address)
}

/// Whether an address, given as frame words, is a multicast one: ff00::/8.
#[inline]
pub const fn is_multicast(address: [u64; 2]) -> bool {
    address[0] & 0xff == 0xff
}

/// Whether an address, given as frame words, is a unicast one that means something on one link only: fe80::/10.
#[inline]
pub const fn is_link_local(address: [u64; 2]) -> bool {
    address[0] & 0xc0ff == 0x80fe
}

/// The group that whoever has an address listens to: ff02::1:ff00:0/104 and its last three bytes (RFC 4291 section
/// 2.7.1).
pub const fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., h, l] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | h & 0xff, l)
}

/// The MAC address that frames to a multicast address have: 33:33 and its last four bytes (RFC 2464 section 7).
pub const fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// The link-local address that follows from a MAC address: fe80::/64 and the modified EUI-64 (RFC 4291 appendix A, RFC
/// 2464 section 5).
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

//! Headers as views over frame bytes. Lengths are checked when a view is taken; reading a field cannot fail.

use zerocopy::byteorder::{big_endian, little_endian};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ipv6::Addresses6;

/// Ethernet II header without tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ethernet {
    /// Destination MAC address.
    pub destination: [u8; 6],
    /// Source MAC address.
    pub source: [u8; 6],
    /// EtherType, or the length of an 802.3 frame.
    pub ethertype: big_endian::U16,
}

/// An 802.1Q or 802.1ad tag after its own EtherType, with the EtherType that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Tag {
    /// Priority (3 bits), drop eligible (1), VLAN id (12).
    pub control: big_endian::U16,
    /// EtherType of what follows.
    pub ethertype: big_endian::U16,
}

/// ARP for IPv4 over Ethernet (RFC 826).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Arp {
    /// Hardware type: 1.
    pub hardware: big_endian::U16,
    /// Protocol type: 0x0800.
    pub protocol: big_endian::U16,
    /// Bytes of a hardware address: 6.
    pub hardware_bytes: u8,
    /// Bytes of a protocol address: 4.
    pub protocol_bytes: u8,
    /// 1 request, 2 reply.
    pub op: big_endian::U16,
    /// Sender's MAC address.
    pub sha: [u8; 6],
    /// Sender's IPv4 address.
    pub spa: [u8; 4],
    /// Target's MAC address.
    pub tha: [u8; 6],
    /// Target's IPv4 address.
    pub tpa: [u8; 4],
}

/// IPv4 header without options (RFC 791).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ipv4 {
    /// Version (high 4 bits) and header length in 4-byte words.
    pub version_ihl: u8,
    /// Type of service: DSCP and ECN.
    pub tos: u8,
    /// Header and payload, bytes.
    pub length: big_endian::U16,
    /// Identification.
    pub id: big_endian::U16,
    /// Flags (reserved, DF, MF) and fragment offset in 8-byte units.
    pub fragment: big_endian::U16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub proto: u8,
    /// Header checksum, as a frame word.
    pub checksum: [u8; 2],
    /// Source (low half) and destination, as a frame word.
    pub addresses: little_endian::U64,
}

impl Ipv4 {
    /// Don't fragment.
    pub const DONT_FRAGMENT: u16 = 0x4000;
    /// More fragments.
    pub const MORE_FRAGMENTS: u16 = 0x2000;
    /// Mask of the fragment offset.
    pub const OFFSET: u16 = 0x1fff;

    /// Bytes of the header by its own account; 20 to 60 if the version is 4 and the account is sound.
    #[inline]
    pub const fn header_bytes(&self) -> Option<usize> {
        // 0x45..=0x4f
        if self.version_ihl.wrapping_sub(0x45) <= 10 { Some(((self.version_ihl & 15) as usize) * 4) } else { None }
    }

    /// Whether it is a fragment, the first one included.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.fragment.get() & (Self::MORE_FRAGMENTS | Self::OFFSET) != 0
    }

    /// Whether it is a fragment other than the first.
    #[inline]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment.get() & Self::OFFSET != 0
    }
}

/// IPv6 header (RFC 8200).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ipv6 {
    /// Version (high 4 bits), traffic class (8), flow label (20).
    pub version_class_flow: big_endian::U32,
    /// Bytes that follow the header.
    pub payload: big_endian::U16,
    /// Protocol of what follows: an extension header's or an upper layer's.
    pub next: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source, as frame words ([`erhu_planes::tuple::pack_v6`]).
    pub src: [little_endian::U64; 2],
    /// Destination, likewise.
    pub dst: [little_endian::U64; 2],
}

impl Ipv6 {
    /// Whether the version is 6.
    #[inline]
    pub fn is_ipv6(&self) -> bool {
        self.version_class_flow.get() >> 28 == 6
    }

    /// Header and payload, bytes, by the header's own account.
    #[inline]
    pub fn length(&self) -> usize {
        size_of::<Self>() + usize::from(self.payload.get())
    }

    /// Both addresses.
    #[inline]
    pub fn addresses(&self) -> Addresses6 {
        Addresses6 { src: self.src.map(|word| word.get()), dst: self.dst.map(|word| word.get()) }
    }

    /// Stores both addresses.
    #[inline]
    pub fn set_addresses(&mut self, addresses: &Addresses6) {
        self.src = addresses.src.map(Into::into);
        self.dst = addresses.dst.map(Into::into);
    }
}

/// UDP header (RFC 768).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Udp {
    /// Source and destination port, as a frame word.
    pub ports: little_endian::U32,
    /// Header and payload, bytes.
    pub length: big_endian::U16,
    /// Checksum, as a frame word; 0: none was sent.
    pub checksum: [u8; 2],
}

/// TCP header without options (RFC 9293).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Tcp {
    /// Source and destination port, as a frame word.
    pub ports: little_endian::U32,
    /// Sequence number.
    pub seq: big_endian::U32,
    /// Acknowledgement number.
    pub ack: big_endian::U32,
    /// Data offset in 4-byte words (high 4 bits).
    pub offset: u8,
    /// Flags, see [`crate::tcp`].
    pub flags: u8,
    /// Window, unscaled.
    pub window: big_endian::U16,
    /// Checksum, as a frame word.
    pub checksum: [u8; 2],
    /// Urgent pointer.
    pub urgent: big_endian::U16,
}

impl Tcp {
    /// Bytes of the header by its own account: 0 to 60.
    #[inline]
    pub const fn header_bytes(&self) -> usize {
        ((self.offset >> 4) as usize) * 4
    }
}

/// ICMP header: of queries with their identifier, of errors with what stands in its place (RFC 792).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Icmp {
    /// Type.
    pub icmp_type: u8,
    /// Code.
    pub code: u8,
    /// Checksum, as a frame word.
    pub checksum: [u8; 2],
    /// Identifier of a query, as a frame word.
    pub id: little_endian::U16,
    /// Sequence number of a query.
    pub sequence: big_endian::U16,
}

impl Icmp {
    /// The tuple's port word (see [`erhu_planes::tuple::pack_ports`]): identifier, type, code.
    #[inline]
    pub fn ports(&self) -> u32 {
        u32::from(self.id.get()) | u32::from(self.icmp_type) << 16 | u32::from(self.code) << 24
    }
}

const _: () = assert!(size_of::<Ethernet>() == 14 && size_of::<Tag>() == 4 && size_of::<Arp>() == 28);
const _: () = assert!(size_of::<Ipv4>() == 20 && size_of::<Ipv6>() == 40 && size_of::<Udp>() == 8);
const _: () = assert!(size_of::<Tcp>() == 20 && size_of::<Icmp>() == 8);

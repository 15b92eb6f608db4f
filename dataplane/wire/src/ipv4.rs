//! IPv4 headers of packets to send, and which addresses a router forwards.

use std::net::Ipv4Addr;

use erhu_planes::tuple::pack_v4;
use zerocopy::{FromBytes, IntoBytes};

use crate::checksum;
use crate::header::Ipv4;

/// Bytes of a header without options.
pub const HEADER_BYTES: usize = size_of::<Ipv4>();
/// TTL of packets that the router originates (RFC 1700, "current recommended default").
pub const DEFAULT_TTL: u8 = 64;

/// A header without options, of an unfragmented packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source.
    pub src: Ipv4Addr,
    /// Destination.
    pub dst: Ipv4Addr,
    /// Protocol.
    pub proto: u8,
    /// Time to live.
    pub ttl: u8,
    /// Type of service.
    pub tos: u8,
    /// Identification.
    pub id: u16,
    /// Don't fragment.
    pub dont_fragment: bool,
    /// Bytes that follow the header, at most 65515.
    pub payload: u16,
}

impl Header {
    /// Writes the header with its checksum and returns its length, 20 bytes. `None` if it does not fit into `buf` or
    /// the payload is too long for a packet.
    pub fn write(&self, buf: &mut [u8]) -> Option<usize> {
        let (ip, _) = Ipv4::mut_from_prefix(buf).ok()?;
        *ip = Ipv4 {
            version_ihl: 0x45,
            tos: self.tos,
            length: self.payload.checked_add(20)?.into(),
            id: self.id.into(),
            fragment: if self.dont_fragment { Ipv4::DONT_FRAGMENT } else { 0 }.into(),
            ttl: self.ttl,
            proto: self.proto,
            checksum: [0; 2],
            addresses: pack_addresses(self.src, self.dst).into(),
        };
        checksum::fill_ipv4(ip.as_mut_bytes());
        Some(HEADER_BYTES)
    }
}

/// Both addresses as in word 0 of [`erhu_planes::tuple::Key4`].
pub const fn pack_addresses(src: Ipv4Addr, dst: Ipv4Addr) -> u64 {
    pack_v4(src) as u64 | (pack_v4(dst) as u64) << 32
}

/// Whether a router never forwards packets from or to an address, given as a frame word
/// ([`erhu_planes::tuple::pack_v4`]): 0/8, 127/8, multicast, 240/4 and broadcast (RFC 1812 sections 4.2.2.11, 5.3.7).
#[inline]
pub const fn is_unforwardable_v4(address: u32) -> bool {
    let first = address & 0xff;
    first == 0 || first == 127 || first >= 224
}

/// The inverse of [`pack_addresses`]: source and destination.
pub const fn unpack_addresses(addresses: u64) -> [Ipv4Addr; 2] {
    let b = addresses.to_le_bytes();
    [Ipv4Addr::new(b[0], b[1], b[2], b[3]), Ipv4Addr::new(b[4], b[5], b[6], b[7])]
}

/// Source and destination of [`Ipv4::addresses`], each as [`pack_v4`] has it.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "both halves are cut out on purpose")]
pub const fn split_addresses(addresses: u64) -> [u32; 2] {
    [addresses as u32, (addresses >> 32) as u32]
}

//! Ethernet: constants, packed MAC addresses, the header of frames to send.

use zerocopy::FromBytes;

use crate::header::{Ethernet, Tag};

/// A MAC address.
pub type Mac = [u8; 6];

/// The broadcast address.
pub const BROADCAST: Mac = [0xff; 6];
/// The address of nobody.
pub const ZERO: Mac = [0; 6];

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of an 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of an 802.1ad outer tag.
pub const QINQ: u16 = 0x88a8;
/// EtherType of an outer tag before 802.1ad.
pub const QINQ_OLD: u16 = 0x9100;

/// Bytes of an untagged header.
pub const HEADER_BYTES: usize = size_of::<Ethernet>();
/// Bytes that a tag adds.
pub const TAG_BYTES: usize = size_of::<Tag>();

/// A MAC address as a number: its six bytes loaded little-endian, the form of [`crate::Parsed::destination`].
#[inline]
pub const fn pack_mac(mac: Mac) -> u64 {
    u64::from_le_bytes([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], 0, 0])
}

/// The inverse of [`pack_mac`]; the two highest bytes are ignored.
#[inline]
pub const fn unpack_mac(packed: u64) -> Mac {
    let b = packed.to_le_bytes();
    [b[0], b[1], b[2], b[3], b[4], b[5]]
}

/// Whether a packed MAC address ([`pack_mac`]) is a group's: multicast or broadcast.
#[inline]
pub const fn is_group(packed: u64) -> bool {
    packed & 1 != 0
}

/// Writes a header, with an 802.1Q tag of priority 0 if `vlan` is given, and returns its length: 14 or 18 bytes.
/// `None` if `buf` is shorter.
#[inline]
pub fn write_header(buf: &mut [u8], dst: Mac, src: Mac, vlan: Option<u16>, ethertype: u16) -> Option<usize> {
    let (header, rest) = Ethernet::mut_from_prefix(buf).ok()?;
    let Some(vlan) = vlan else {
        *header = Ethernet { destination: dst, source: src, ethertype: ethertype.into() };
        return Some(HEADER_BYTES);
    };
    let (tag, _) = Tag::mut_from_prefix(rest).ok()?;
    *header = Ethernet { destination: dst, source: src, ethertype: VLAN.into() };
    *tag = Tag { control: (vlan & 0xfff).into(), ethertype: ethertype.into() };
    Some(HEADER_BYTES + TAG_BYTES)
}

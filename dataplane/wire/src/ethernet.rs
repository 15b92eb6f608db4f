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

/// The bits of a packed MAC address ([`pack_mac`]).
pub const MAC_BITS: u64 = (1 << 48) - 1;

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

/// As [`write_header`] from packed addresses ([`pack_mac`]; what is above their 48 bits is ignored), in wide stores.
/// VLAN 0 is no tag. Returns what follows the header.
#[inline(always)]
pub fn write_packed(frame: &mut [u8], dst: u64, src: u64, vlan: u16, ethertype: u16) -> Option<&mut [u8]> {
    let (dst, src) = (dst & MAC_BITS, src & MAC_BITS);
    let first = (dst | src << 48).to_le_bytes();
    // The stores share two bytes of the source, which both have.
    let second = |ethertype: u16| (src | u64::from(ethertype.swap_bytes()) << 48).to_le_bytes();
    if vlan == 0 {
        let (header, packet) = frame.split_first_chunk_mut::<HEADER_BYTES>()?;
        *header.first_chunk_mut()? = first;
        *header.last_chunk_mut()? = second(ethertype);
        return Some(packet);
    }
    let (header, packet) = frame.split_first_chunk_mut::<{ HEADER_BYTES + TAG_BYTES }>()?;
    *header.first_chunk_mut()? = first;
    *header.first_chunk_mut::<HEADER_BYTES>()?.last_chunk_mut()? = second(VLAN);
    let tag = u32::from((vlan & 0xfff).swap_bytes()) | u32::from(ethertype.swap_bytes()) << 16;
    *header.last_chunk_mut()? = tag.to_le_bytes();
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packed_addresses_make_the_header_that_plain_ones_make(
            dst: [u8; 6], src: [u8; 6], rest: u32, vlan in 0u16..4096, ethertype: u16, room in 0usize..20,
        ) {
            let (mut plain, mut packed) = ([7; 20], [7; 20]);
            let expected = write_header(&mut plain[..room], dst, src, (vlan != 0).then_some(vlan), ethertype);
            let above = u64::from(rest) << 48;
            let left = write_packed(&mut packed[..room], pack_mac(dst) | above, pack_mac(src) | above, vlan, ethertype);
            prop_assert_eq!(left.map(|left| room - left.len()), expected);
            if expected.is_some() {
                prop_assert_eq!(plain, packed);
            }
        }
    }
}

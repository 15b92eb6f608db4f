//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! All words are frame words: two bytes as they lie in the frame, loaded little-endian. Ones' complement sums do not
//! care about the byte order as long as it is one and the same (RFC 1071 section 2(B)), so nothing is ever swapped
//! except lengths and protocol numbers.

use erhu_planes::tuple::proto;
use zerocopy::FromBytes;

use crate::header::{Icmp, Ipv4, Ipv6, Tcp, Udp};
use crate::ipv6::Addresses6;

/// What adding does when a TTL goes down by one: the [`delta`] of `[ttl, proto]` to `[ttl - 1, proto]`.
pub const TTL_DELTA: u16 = u16::from_le_bytes([0xfe, 0xff]);

/// Ones' complement sum of `bytes` as words, the last one filled up with a zero byte, added to `init`; not yet
/// folded. `init` is 0 or what an earlier call over an even number of bytes returned.
#[inline]
pub fn sum(bytes: &[u8], init: u32) -> u32 {
    let mut total = u64::from(init);
    let mut quads = bytes.chunks_exact(4);
    for quad in &mut quads {
        // A slice of `chunks_exact(4)` has four bytes.
        total += u64::from(u32::from_le_bytes(quad.try_into().unwrap_or([0; 4])));
    }
    total += match *quads.remainder() {
        [a] => u64::from(a),
        [a, b] => u64::from(u16::from_le_bytes([a, b])),
        [a, b, c] => u64::from(u32::from_le_bytes([a, b, c, 0])),
        _ => 0,
    };
    narrow(total)
}

/// Folds a sum of 32-bit words to one that leaves room for adding some more words.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "both halves are added; the sum of four 16-bit numbers fits")]
const fn narrow(total: u64) -> u32 {
    ((total & 0xffff) + (total >> 16 & 0xffff) + (total >> 32 & 0xffff) + (total >> 48)) as u32
}

/// Adds the carries back in: 0 only for a sum of zeros, else 1 to 0xffff.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "after two rounds nothing is left above 16 bits")]
pub const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// Ones' complement sum of two words. The carry comes back in at the other end; there is none a second time.
#[inline(always)]
pub const fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u16
}

/// Whether the checksum of an IPv4 header, options included, is right. `header` is the header and nothing else.
#[inline]
pub fn ipv4_header_ok(header: &[u8]) -> bool {
    fold(sum(header, 0)) == 0xffff
}

/// Sum of the pseudo header of TCP and UDP: `addresses` as in [`Ipv4::addresses`], `length` of the L4 packet.
#[inline]
pub(crate) fn pseudo(addresses: u64, protocol: u8, length: u16) -> u32 {
    narrow(addresses) + u32::from(u16::from_le_bytes([0, protocol])) + u32::from(length.swap_bytes())
}

/// Whether the checksum in an L4 packet of any length is right; protocols without a checksum here are.
///
/// `l4` ends where the L4 packet ends: for UDP at its own length field. A packet too short for its checksum is wrong.
#[inline(never)]
pub(crate) fn l4_ok(addresses: u64, protocol: u8, l4: &[u8]) -> bool {
    let Ok(length) = u16::try_from(l4.len()) else { return false };
    let init = match protocol {
        proto::UDP => match Udp::ref_from_prefix(l4) {
            Ok((udp, _)) if udp.checksum == [0; 2] => return true,
            Ok(_) => pseudo(addresses, protocol, length),
            Err(_) => return false,
        },
        proto::TCP if l4.len() < size_of::<Tcp>() => return false,
        proto::TCP => pseudo(addresses, protocol, length),
        proto::ICMP if l4.len() < size_of::<Icmp>() => return false,
        proto::ICMP => 0,
        _ => return true,
    };
    fold(sum(l4, init)) == 0xffff
}

/// Sum of the pseudo header of IPv6 (RFC 8200 section 8.1); `length` of the L4 packet.
#[inline]
pub(crate) fn pseudo6(addresses: &Addresses6, protocol: u8, length: u16) -> u32 {
    let Addresses6 { src: [a, b], dst: [c, d] } = *addresses;
    let sum = narrow(a) + narrow(b) + narrow(c) + narrow(d);
    sum + u32::from(u16::from_le_bytes([0, protocol])) + u32::from(length.swap_bytes())
}

/// As [`l4_ok`], of an L4 packet in IPv6: ICMPv6 has a pseudo header too. UDP without a checksum is right; that is for
/// receivers to refuse (RFC 6935).
#[inline]
pub(crate) fn l4_ok6(addresses: &Addresses6, protocol: u8, l4: &[u8]) -> bool {
    let Ok(length) = u16::try_from(l4.len()) else { return false };
    match protocol {
        proto::UDP => match Udp::ref_from_prefix(l4) {
            Ok((udp, _)) if udp.checksum == [0; 2] => return true,
            Ok(_) => {}
            Err(_) => return false,
        },
        proto::TCP if l4.len() < size_of::<Tcp>() => return false,
        proto::ICMPV6 if l4.len() < size_of::<Icmp>() => return false,
        proto::TCP | proto::ICMPV6 => {}
        _ => return true,
    }
    fold(sum(l4, pseudo6(addresses, protocol, length))) == 0xffff
}

/// Splits an IPv4 packet without padding into addresses and L4 packet; UDP ends at its own length field.
fn split_v4(l3: &[u8], ihl: usize, protocol: u8) -> Option<(u64, usize)> {
    let (ip, _) = Ipv4::ref_from_prefix(l3).ok()?;
    let l4 = l3.get(ihl..)?;
    let length = match protocol {
        proto::UDP => usize::from(Udp::ref_from_prefix(l4).ok()?.0.length.get()),
        _ => l4.len(),
    };
    (length <= l4.len()).then_some((ip.addresses.get(), length))
}

/// Whether the TCP, UDP or ICMP checksum of an unfragmented IPv4 packet is right. UDP without a checksum is right, as
/// is any other protocol; what is too short for its header, or for its UDP length, is wrong.
///
/// `l3` reaches from the IPv4 header, `ihl` bytes long, to the packet's total length.
pub fn l4_ok_v4(l3: &[u8], ihl: usize, protocol: u8) -> bool {
    let Some((addresses, length)) = split_v4(l3, ihl, protocol) else { return false };
    l3.get(ihl..ihl + length).is_some_and(|l4| l4_ok(addresses, protocol, l4))
}

/// As [`split_v4`], of an IPv6 packet whose L4 starts at `at`.
fn split_v6(l3: &[u8], at: usize, protocol: u8) -> Option<(Addresses6, usize)> {
    let (ip, _) = Ipv6::ref_from_prefix(l3).ok()?;
    let l4 = l3.get(at..)?;
    let length = match protocol {
        proto::UDP => usize::from(Udp::ref_from_prefix(l4).ok()?.0.length.get()),
        _ => l4.len(),
    };
    (length <= l4.len()).then_some((ip.addresses(), length))
}

/// As [`l4_ok_v4`] for TCP, UDP and ICMPv6 in an unfragmented IPv6 packet.
///
/// `l3` reaches from the IPv6 header to the end of its payload, `at` is where L4 starts, behind extension headers.
pub fn l4_ok_v6(l3: &[u8], at: usize, protocol: u8) -> bool {
    let Some((addresses, length)) = split_v6(l3, at, protocol) else { return false };
    l3.get(at..at + length).is_some_and(|l4| l4_ok6(&addresses, protocol, l4))
}

/// What changing words of the packet adds to its ones' complement sum: RFC 1624 section 3, `~m + m'` for each word.
///
/// Words that only one of the slices has count as going to or coming from 0.
pub fn delta(old: &[u16], new: &[u16]) -> u16 {
    let out = old.iter().map(|word| u64::from(!word)).sum::<u64>();
    let into = new.iter().map(|word| u64::from(*word)).sum::<u64>();
    fold(narrow(out + into))
}

/// [`delta`] of four bytes, such as both ports.
#[inline]
pub const fn delta32(old: u32, new: u32) -> u16 {
    fold(narrow(!old as u64 + new as u64))
}

/// [`delta`] of eight bytes, such as both IPv4 addresses.
#[inline]
pub const fn delta64(old: u64, new: u64) -> u16 {
    fold(narrow(!old) + narrow(new))
}

/// [`delta`] of both IPv6 addresses.
#[inline]
pub const fn delta_addresses6(old: &Addresses6, new: &Addresses6) -> u16 {
    let (Addresses6 { src: [a, b], dst: [c, d] }, Addresses6 { src: [e, f], dst: [g, h] }) = (*old, *new);
    let out = narrow(!a) + narrow(!b) + narrow(!c) + narrow(!d);
    fold(out + narrow(e) + narrow(f) + narrow(g) + narrow(h))
}

/// Updates a checksum by a [`delta`]: `HC' = ~(~HC + delta)` (RFC 1624 equation 3).
///
/// Exactly what computing anew gives, if the field was what computing gave. Not for UDP, see [`apply_udp`].
#[inline(always)]
pub const fn apply(field: &mut [u8; 2], delta: u16) {
    *field = (!add(!u16::from_le_bytes(*field), delta)).to_le_bytes();
}

/// As [`apply`], for UDP: no checksum (0) stays none, and a checksum that comes out 0 is stored as 0xffff (RFC 768).
#[inline(always)]
pub const fn apply_udp(field: &mut [u8; 2], delta: u16) {
    // Selections, not branches: both depend on the packet.
    let old = u16::from_le_bytes(*field);
    let sum = add(!old, delta);
    let new = if sum == 0xffff { 0xffff } else { !sum };
    *field = (if old == 0 { 0 } else { new }).to_le_bytes();
}

/// Computes and stores the checksum of an IPv4 header, options included. `header` is the header and nothing else;
/// one shorter than 20 bytes is left alone.
pub fn fill_ipv4(header: &mut [u8]) {
    if let Some(field) = header.get_mut(10..12) {
        field.fill(0);
        let checksum = !fold(sum(header, 0));
        if let Ok((ip, _)) = Ipv4::mut_from_prefix(header) {
            ip.checksum = checksum.to_le_bytes();
        }
    }
}

/// Computes and stores the TCP, UDP or ICMP checksum of an IPv4 packet given as for [`l4_ok_v4`]. Other protocols and
/// packets too short for their header are left alone.
pub fn fill_l4_v4(l3: &mut [u8], ihl: usize, protocol: u8) {
    let Some((addresses, length)) = split_v4(l3, ihl, protocol) else { return };
    if let Some(l4) = l3.get_mut(ihl..ihl + length) {
        fill_l4(addresses, protocol, l4);
    }
}

/// As [`fill_l4_v4`] for TCP, UDP and ICMPv6 in an IPv6 packet given as for [`l4_ok_v6`].
pub fn fill_l4_v6(l3: &mut [u8], at: usize, protocol: u8) {
    let Some((addresses, length)) = split_v6(l3, at, protocol) else { return };
    if let Some(l4) = l3.get_mut(at..at + length) {
        fill_l4_6(&addresses, protocol, l4);
    }
}

/// As [`fill_l4_v4`], of the L4 packet alone.
pub(crate) fn fill_l4(addresses: u64, protocol: u8, l4: &mut [u8]) {
    let Ok(length) = u16::try_from(l4.len()) else { return };
    match protocol {
        proto::UDP => fill_at(6, pseudo(addresses, protocol, length), true, l4),
        proto::TCP => fill_at(16, pseudo(addresses, protocol, length), false, l4),
        proto::ICMP => fill_at(2, 0, false, l4),
        _ => {}
    }
}

/// As [`fill_l4_v6`], of the L4 packet alone.
pub(crate) fn fill_l4_6(addresses: &Addresses6, protocol: u8, l4: &mut [u8]) {
    let Ok(length) = u16::try_from(l4.len()) else { return };
    let init = pseudo6(addresses, protocol, length);
    match protocol {
        proto::UDP => fill_at(6, init, true, l4),
        proto::TCP => fill_at(16, init, false, l4),
        proto::ICMPV6 => fill_at(2, init, false, l4),
        _ => {}
    }
}

/// Computes the checksum of `l4` with `init` and stores it at an offset; 0 as 0xffff where 0 says that there is none.
fn fill_at(at: usize, init: u32, zero_is_none: bool, l4: &mut [u8]) {
    let Some(field) = l4.get_mut(at..at + 2) else { return };
    field.fill(0);
    let checksum = match !fold(sum(l4, init)) {
        0 if zero_is_none => 0xffff,
        checksum => checksum,
    };
    if let Some(field) = l4.get_mut(at..at + 2) {
        field.copy_from_slice(&checksum.to_le_bytes());
    }
}

//! TCP: flags, and the reset that answers a segment.

use erhu_planes::tuple::proto;
use zerocopy::{FromBytes, IntoBytes};

use crate::checksum;
use crate::header::{Ipv4, Ipv6, Tcp};
use crate::ipv4::{self, DEFAULT_TTL};
use crate::ipv6::{self, Chain, DEFAULT_HOP_LIMIT};

/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Reset the connection.
pub const RST: u8 = 0x04;
/// Push.
pub const PSH: u8 = 0x08;
/// The acknowledgement number counts.
pub const ACK: u8 = 0x10;
/// The urgent pointer counts.
pub const URG: u8 = 0x20;
/// Congestion experienced (RFC 3168).
pub const ECE: u8 = 0x40;
/// Congestion window reduced (RFC 3168).
pub const CWR: u8 = 0x80;

/// Sets that make sense, after PSH, ECE and CWR are masked out; those of the kernel's connection tracking.
const VALID: u64 = {
    let sets = [SYN, SYN | URG, SYN | ACK, RST, RST | ACK, FIN | ACK, FIN | ACK | URG, ACK, ACK | URG];
    let (mut bits, mut i) = (0, 0);
    while i < sets.len() {
        bits |= 1 << sets[i];
        i += 1;
    }
    bits
};

/// Whether a segment may carry this set of flags. Others are INVALID before anything is looked up.
#[inline]
pub const fn flags_valid(flags: u8) -> bool {
    VALID >> (flags & (FIN | SYN | RST | ACK | URG)) & 1 != 0
}

/// Builds the reset that answers a segment as if its port were closed (RFC 9293 section 3.10.7.1), from the IPv4
/// header on, and returns its length.
///
/// `original` reaches from the IPv4 header to the end of its packet or of the frame. `None` if `buf` is too small, or
/// if the original is a reset itself, a fragment other than the first, or no whole TCP header. Its checksum and flags
/// are not judged.
pub fn build_reset(buf: &mut [u8], original: &[u8]) -> Option<usize> {
    let (ip, _) = Ipv4::ref_from_prefix(original).ok()?;
    let ihl = ip.header_bytes()?;
    let length = usize::from(ip.length.get());
    let (segment, _) = Tcp::ref_from_prefix(original.get(ihl..length)?).ok()?;
    if ip.proto != proto::TCP || ip.is_later_fragment() {
        return None;
    }
    let reset = reset_of(segment, length - ihl)?;
    let addresses = ip.addresses.get().rotate_left(32);
    let [src, dst] = ipv4::unpack_addresses(addresses);
    let header = ipv4::Header {
        src,
        dst,
        proto: proto::TCP,
        ttl: DEFAULT_TTL,
        tos: 0,
        id: 0,
        dont_fragment: true,
        payload: 20,
    };
    let (out, _) = Tcp::mut_from_prefix(buf.get_mut(ipv4::HEADER_BYTES..)?).ok()?;
    *out = reset;
    checksum::fill_l4(addresses, proto::TCP, out.as_mut_bytes());
    header.write(buf)?;
    Some(ipv4::HEADER_BYTES + size_of::<Tcp>())
}

/// As [`build_reset`], for IPv6: from the IPv6 header on.
///
/// `original` reaches from the IPv6 header to the end of its packet or of the frame.
pub fn build_reset6(buf: &mut [u8], original: &[u8]) -> Option<usize> {
    let (ip, _) = Ipv6::ref_from_prefix(original).ok()?;
    let packet = original.get(..ip.length())?;
    let Chain::Upper { proto: proto::TCP, at, .. } = ipv6::walk(packet) else { return None };
    let l4 = packet.get(usize::from(at)..)?;
    let (segment, _) = Tcp::ref_from_prefix(l4).ok()?;
    let reset = reset_of(segment, l4.len())?;
    let addresses = ip.addresses().swapped();
    let (src, dst) = addresses.unpack();
    let header =
        ipv6::Header { src, dst, next: proto::TCP, hop_limit: DEFAULT_HOP_LIMIT, traffic_class: 0, payload: 20 };
    let (out, _) = Tcp::mut_from_prefix(buf.get_mut(ipv6::HEADER_BYTES..)?).ok()?;
    *out = reset;
    checksum::fill_l4_6(&addresses, proto::TCP, out.as_mut_bytes());
    header.write(buf)?;
    Some(ipv6::HEADER_BYTES + size_of::<Tcp>())
}

/// The reset, without its checksum, that answers a segment of `length` bytes; `None` if that is a reset itself or
/// shorter than its header says.
fn reset_of(segment: &Tcp, length: usize) -> Option<Tcp> {
    let payload = length.checked_sub(segment.header_bytes())?;
    if segment.flags & RST != 0 {
        return None;
    }
    let (seq, ack, flags) = if segment.flags & ACK != 0 {
        (segment.ack.get(), 0, RST)
    } else {
        let flags = u32::from(segment.flags & SYN != 0) + u32::from(segment.flags & FIN != 0);
        let taken = u32::try_from(payload).ok()?.wrapping_add(flags);
        (0, segment.seq.get().wrapping_add(taken), RST | ACK)
    };
    Some(Tcp {
        ports: segment.ports.get().rotate_left(16).into(),
        seq: seq.into(),
        ack: ack.into(),
        offset: 5 << 4,
        flags,
        window: 0.into(),
        checksum: [0; 2],
        urgent: 0.into(),
    })
}

//! ICMP: errors and the packets they quote, errors to send, echo.
//!
//! Checks and translation of errors follow RFC 5508 sections 4.1 and 4.2, sending them RFC 1812 section 4.3.2.

use std::mem::offset_of;
use std::net::Ipv4Addr;

use erhu_planes::tuple::{icmp_answer, proto};
use zerocopy::{FromBytes, IntoBytes};

use crate::checksum::{self, apply, apply_udp, delta32, delta64};
use crate::header::{Icmp, Ipv4, Tcp, Udp};
use crate::ipv4::{self, DEFAULT_TTL, is_unforwardable_v4};

/// Answer to [`ECHO_REQUEST`].
pub const ECHO_REPLY: u8 = 0;
/// Error: destination unreachable.
pub const UNREACHABLE: u8 = 3;
/// Error: source quench (deprecated by RFC 6633).
pub const SOURCE_QUENCH: u8 = 4;
/// Error in form, advice in meaning: a better first hop.
pub const REDIRECT: u8 = 5;
/// Query: echo.
pub const ECHO_REQUEST: u8 = 8;
/// Error: TTL or reassembly time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// Error: a field of the header makes no sense.
pub const PARAMETER_PROBLEM: u8 = 12;
/// The highest type that connection tracking knows; those above are INVALID.
pub const HIGHEST_TYPE: u8 = 18;

/// Codes of [`UNREACHABLE`].
pub mod unreachable {
    /// No route to the network.
    pub const NET: u8 = 0;
    /// The host does not answer.
    pub const HOST: u8 = 1;
    /// Nobody listens on the port.
    pub const PORT: u8 = 3;
    /// Larger than the next MTU and not to be fragmented; [`super::Error::rest`] is the MTU (RFC 1191).
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Administratively prohibited.
    pub const ADMIN: u8 = 13;
}

/// Longest packet of an error, from its IP header on (RFC 1812 section 4.3.2.3).
pub const LONGEST_ERROR: usize = 576;

/// Bytes of L4 that an error must quote (RFC 792) to be of use.
pub(crate) const QUOTED_L4: usize = 8;
/// Offset of a TCP segment's checksum.
const TCP_CHECKSUM: usize = offset_of!(Tcp, checksum);

/// Whether a type is an error: a message about another packet, which it quotes.
#[inline]
pub const fn is_error(icmp_type: u8) -> bool {
    matches!(icmp_type, UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

/// An ICMP error and the packet it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpErrorV4 {
    /// Type.
    pub icmp_type: u8,
    /// Code.
    pub code: u8,
    /// The packet quoted.
    pub inner: InnerV4,
}

/// A packet quoted by an ICMP error. Offsets count from the outer IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerV4 {
    /// Both addresses, word 0 of [`erhu_planes::tuple::Key4`].
    pub addresses: u64,
    /// Ports as [`erhu_planes::tuple::pack_ports`] has them.
    pub ports: u32,
    /// Protocol: TCP, UDP or ICMP.
    pub proto: u8,
    /// Offset of its IPv4 header.
    pub l3: u16,
    /// Offset of its L4 header, of which at least 8 bytes are there.
    pub l4: u16,
    /// Offset of the first byte that is not quoted of it.
    pub end: u16,
}

/// Reads an ICMP error from its IPv4 header, `ihl` bytes long, to the end of its packet.
///
/// Checks what RFC 5508 REQ-3 wants checked: the ICMP checksum and the quoted IP header with its checksum; skips
/// quoted IP options, does not check the quoted L4 checksum, takes RFC 4884 extensions for part of the quote. `None`
/// if a check fails, or if the error quotes a fragment other than the first, another ICMP error, fewer than 8 bytes of
/// L4 or a protocol other than TCP, UDP and ICMP.
pub fn parse_error(l3: &[u8], ihl: usize) -> Option<IcmpErrorV4> {
    let message = l3.get(ihl..)?;
    let (outer, quote) = Icmp::ref_from_prefix(message).ok()?;
    if !is_error(outer.icmp_type) || !checksum::l4_ok(0, proto::ICMP, message) {
        return None;
    }
    let (ip, _) = Ipv4::ref_from_prefix(quote).ok()?;
    let inner_ihl = ip.header_bytes()?;
    let payload = usize::from(ip.length.get()).checked_sub(inner_ihl)?;
    let quoted = quote.len().checked_sub(inner_ihl)?.min(payload);
    if quoted < QUOTED_L4 || ip.is_later_fragment() || !checksum::ipv4_header_ok(quote.get(..inner_ihl)?) {
        return None;
    }
    let l4 = quote.get(inner_ihl..)?;
    let ports = quoted_ports(ip.proto, proto::ICMP, l4)?;
    let at = ihl + size_of::<Icmp>();
    let inner = InnerV4 {
        addresses: ip.addresses.get(),
        ports,
        proto: ip.proto,
        l3: u16::try_from(at).ok()?,
        l4: u16::try_from(at + inner_ihl).ok()?,
        end: u16::try_from(at + inner_ihl + quoted).ok()?,
    };
    Some(IcmpErrorV4 { icmp_type: outer.icmp_type, code: outer.code, inner })
}

/// Translates the packet that an ICMP error quotes, in place, and makes the error's checksum anew.
///
/// `l3` and `ihl` are what `inner` was parsed from. `addresses` and `ports` are frame words to store, as in
/// [`InnerV4`]; of an ICMP query only the identifier is stored. The quoted IP checksum and, where it is quoted, the
/// quoted L4 checksum change with them, so that one that was wrong stays wrong; UDP without checksum stays without.
/// The outer IPv4 header is not touched. `None`, with nothing changed, if `inner` is not of these bytes.
#[must_use]
pub fn rewrite_inner(l3: &mut [u8], ihl: usize, inner: &InnerV4, addresses: u64, ports: u32) -> Option<()> {
    let (start, end) = (usize::from(inner.l3), usize::from(inner.end));
    let ihl_inner = usize::from(inner.l4).checked_sub(start)?;
    let fits = ihl.checked_add(size_of::<Icmp>())? <= start && ihl_inner >= size_of::<Ipv4>();
    let (header, l4) = l3.get_mut(start..end)?.split_at_mut_checked(ihl_inner)?;
    if !fits || l4.len() < QUOTED_L4 {
        return None;
    }
    let (ip, _) = Ipv4::mut_from_prefix(header).ok()?;
    let address_delta = delta64(ip.addresses.get(), addresses);
    ip.addresses.set(addresses);
    apply(&mut ip.checksum, address_delta);
    translate_quoted(inner.proto, l4, address_delta, ports)?;
    checksum::fill_l4(0, proto::ICMP, l3.get_mut(ihl..)?);
    Some(())
}

/// Ports of a quoted packet as [`erhu_planes::tuple::pack_ports`] has them: of TCP, UDP or a query of its family's ICMP,
/// which is protocol `icmp`. `None` for all others, errors among them.
pub(crate) fn quoted_ports(protocol: u8, icmp: u8, l4: &[u8]) -> Option<u32> {
    match protocol {
        proto::TCP | proto::UDP => Some(u32::from_le_bytes(*l4.first_chunk()?)),
        _ if protocol == icmp => {
            let (query, _) = Icmp::ref_from_prefix(l4).ok()?;
            icmp_answer(icmp, query.icmp_type)?;
            Some(query.ports())
        }
        _ => None,
    }
}

/// Stores the ports of a quoted packet, of an ICMP query only the identifier, and changes its checksum, where it is
/// quoted, by that and by `address_delta`, the change of its addresses. `None` if it ends before that.
pub(crate) fn translate_quoted(protocol: u8, l4: &mut [u8], address_delta: u16, ports: u32) -> Option<()> {
    match protocol {
        proto::UDP => {
            let (udp, _) = Udp::mut_from_prefix(l4).ok()?;
            let delta = checksum::add(address_delta, delta32(udp.ports.get(), ports));
            udp.ports.set(ports);
            apply_udp(&mut udp.checksum, delta);
        }
        proto::TCP => {
            let field = l4.first_chunk_mut()?;
            let delta = checksum::add(address_delta, delta32(u32::from_le_bytes(*field), ports));
            *field = ports.to_le_bytes();
            if let Some(field) = l4.get_mut(TCP_CHECKSUM..).and_then(|rest| rest.first_chunk_mut()) {
                apply(field, delta);
            }
        }
        _ => {
            let (query, _) = Icmp::mut_from_prefix(l4).ok()?;
            let id = id_of(ports);
            let delta = checksum::delta(&[query.id.get()], &[id]);
            query.id.set(id);
            // That of ICMPv4 covers no addresses.
            let of_addresses = if protocol == proto::ICMP { 0 } else { address_delta };
            apply(&mut query.checksum, checksum::add(of_addresses, delta));
        }
    }
    Some(())
}

/// The identifier in a port word.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the low half is the identifier")]
pub(crate) const fn id_of(ports: u32) -> u16 {
    ports as u16
}

/// An ICMP error to send; what it is about comes with [`build_error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// Source: an address of the router.
    pub src: Ipv4Addr,
    /// Destination: the source of the packet it is about.
    pub dst: Ipv4Addr,
    /// Type, see [`is_error`].
    pub icmp_type: u8,
    /// Code.
    pub code: u8,
    /// What stands in place of identifier and sequence number: 0, or the MTU with
    /// [`unreachable::FRAGMENTATION_NEEDED`].
    pub rest: u32,
    /// Time to live.
    pub ttl: u8,
    /// Type of service (RFC 1812 section 4.3.2.5).
    pub tos: u8,
    /// Identification of the IP packet.
    pub id: u16,
}

/// Builds an ICMP error from its IPv4 header on and returns its length, 576 at most.
///
/// `original` reaches from the IPv4 header of the packet it is about to the end of the packet or of the frame. As much
/// of it is quoted as fits (RFC 1812 section 4.3.2.3), padding never. Whether an error may be sent at all:
/// [`may_answer_with_error`]. `None` if `buf` is too small or `original` is no IPv4 packet.
pub fn build_error(buf: &mut [u8], error: &Error, original: &[u8]) -> Option<usize> {
    const HEADERS: usize = ipv4::HEADER_BYTES + size_of::<Icmp>();
    let (ip, _) = Ipv4::ref_from_prefix(original).ok()?;
    let whole = usize::from(ip.length.get()).min(original.len());
    let quote = original.get(..whole.min(LONGEST_ERROR - HEADERS))?;
    let length = HEADERS + quote.len();
    let packet = buf.get_mut(..length)?;
    let header = ipv4::Header {
        src: error.src,
        dst: error.dst,
        proto: proto::ICMP,
        ttl: error.ttl,
        tos: error.tos,
        id: error.id,
        dont_fragment: false,
        payload: u16::try_from(length - ipv4::HEADER_BYTES).ok()?,
    };
    header.write(packet)?;
    let message = packet.get_mut(ipv4::HEADER_BYTES..)?;
    let (icmp, payload) = Icmp::mut_from_prefix(message).ok()?;
    icmp.as_mut_bytes().copy_from_slice(&[error.icmp_type, error.code, 0, 0, 0, 0, 0, 0]);
    let rest = error.rest.to_be_bytes();
    icmp.id = u16::from_le_bytes([rest[0], rest[1]]).into();
    icmp.sequence = u16::from_be_bytes([rest[2], rest[3]]).into();
    payload.copy_from_slice(quote);
    checksum::fill_l4(0, proto::ICMP, message);
    Some(length)
}

/// Whether a packet may be answered with an ICMP error (RFC 1122 section 3.2.2, RFC 1812 section 4.3.2.7).
///
/// Not if it came as a link broadcast or multicast, is a fragment other than the first, is an ICMP error or of an
/// ICMP type unknown, or has a source that names no single host or a destination that is none (those of
/// [`is_unforwardable_v4`]). That a destination is a subnet's broadcast address is not known here.
pub fn may_answer_with_error(l3: &[u8], l2_is_broadcast: bool) -> bool {
    let Ok((ip, _)) = Ipv4::ref_from_prefix(l3) else { return false };
    let Some(ihl) = ip.header_bytes() else { return false };
    let [src, dst] = ipv4::split_addresses(ip.addresses.get());
    if l2_is_broadcast || ip.is_later_fragment() || is_unforwardable_v4(src) || is_unforwardable_v4(dst) {
        return false;
    }
    ip.proto != proto::ICMP
        || l3.get(ihl).is_some_and(|icmp_type| *icmp_type <= HIGHEST_TYPE && !is_error(*icmp_type))
}

/// Turns an echo request to the router into its answer, in place (RFC 792, RFC 1122 section 3.2.2.6).
///
/// `l3` reaches from the IPv4 header to the end of the packet, whose checksums are right. IP options go back as they
/// came. `None`, with nothing changed, if it is no unfragmented echo request or has a source route, which would have
/// to be reversed.
#[must_use]
pub fn echo_reply_in_place(l3: &mut [u8]) -> Option<()> {
    let (ip, _) = Ipv4::ref_from_prefix(l3).ok()?;
    let ihl = ip.header_bytes()?;
    if ip.proto != proto::ICMP || ip.is_fragment() || has_source_route(l3.get(size_of::<Ipv4>()..ihl)?) {
        return None;
    }
    let (header, message) = l3.split_at_mut_checked(ihl)?;
    let (echo, _) = Icmp::mut_from_prefix(message).ok()?;
    if (echo.icmp_type, echo.code) != (ECHO_REQUEST, 0) {
        return None;
    }
    let (ip, _) = Ipv4::mut_from_prefix(header).ok()?;
    ip.addresses.set(ip.addresses.get().rotate_left(32));
    ip.ttl = DEFAULT_TTL;
    checksum::fill_ipv4(header);
    echo.icmp_type = ECHO_REPLY;
    let word = |icmp_type| u16::from_le_bytes([icmp_type, 0]);
    apply(&mut echo.checksum, checksum::delta(&[word(ECHO_REQUEST)], &[word(ECHO_REPLY)]));
    Some(())
}

/// Whether IP options hold a loose or strict source route; options that make no sense count as if.
fn has_source_route(mut options: &[u8]) -> bool {
    loop {
        options = match *options {
            [] | [0, ..] => return false,
            [1, ref rest @ ..] => rest,
            [131 | 137, ..] => return true,
            [_, length, ..] if length >= 2 => match options.get(usize::from(length)..) {
                Some(rest) => rest,
                None => return true,
            },
            _ => return true,
        };
    }
}

//! ICMPv6: errors and the packets they quote, errors to send, echo.
//!
//! Errors are read and sent as RFC 4443 says, and translated as [`crate::icmp`] translates those of IPv4. Every ICMPv6
//! checksum covers the addresses of its packet, those of quoted queries too.

use std::net::Ipv6Addr;

use erhu_planes::tuple::proto;
use zerocopy::{FromBytes, IntoBytes};

use crate::checksum::{self, apply, delta_addresses6};
use crate::header::{Icmp, Ipv6};
use crate::icmp::{QUOTED_L4, quoted_ports, translate_quoted};
use crate::ipv6::{self, Addresses6, Chain, DEFAULT_HOP_LIMIT, LEAST_MTU, is_multicast, walk};

/// Error: destination unreachable.
pub const UNREACHABLE: u8 = 1;
/// Error: larger than the next MTU, which is [`Error::rest`].
pub const PACKET_TOO_BIG: u8 = 2;
/// Error: hop limit or reassembly time exceeded.
pub const TIME_EXCEEDED: u8 = 3;
/// Error: a field makes no sense.
pub const PARAMETER_PROBLEM: u8 = 4;
/// Query: echo.
pub const ECHO_REQUEST: u8 = 128;
/// Answer to [`ECHO_REQUEST`].
pub const ECHO_REPLY: u8 = 129;
/// Discovery: asks for routers.
pub const ROUTER_SOLICITATION: u8 = 133;
/// Discovery: a router tells of itself.
pub const ROUTER_ADVERTISEMENT: u8 = 134;
/// Discovery: asks for a neighbour.
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// Discovery: a neighbour tells of itself.
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Discovery: a better first hop.
pub const REDIRECT: u8 = 137;

/// Codes of [`UNREACHABLE`] (RFC 4443 section 3.1).
pub mod unreachable {
    /// No route to the destination.
    pub const NO_ROUTE: u8 = 0;
    /// Administratively prohibited.
    pub const ADMIN: u8 = 1;
    /// The source's scope is too narrow for the destination.
    pub const BEYOND_SCOPE: u8 = 2;
    /// The host does not answer.
    pub const ADDRESS: u8 = 3;
    /// Nobody listens on the port.
    pub const PORT: u8 = 4;
}

/// Code of [`PARAMETER_PROBLEM`]: an option that must be understood and is not.
pub const UNRECOGNIZED_OPTION: u8 = 2;

/// Longest packet of an error, from its IP header on (RFC 4443 section 2.4(c)).
pub const LONGEST_ERROR: usize = LEAST_MTU as usize;

/// Whether a type is an error: a message about another packet, which it quotes (RFC 4443 section 2.1).
#[inline]
pub const fn is_error(icmp_type: u8) -> bool {
    icmp_type < 128
}

/// Whether a type belongs to neighbour discovery (RFC 4861 section 4).
#[inline]
pub const fn is_discovery(icmp_type: u8) -> bool {
    matches!(icmp_type, ROUTER_SOLICITATION..=REDIRECT)
}

/// Whether a type belongs to multicast listener discovery: queries, reports and "done" of RFC 2710, reports of RFC
/// 3810.
#[inline]
pub const fn is_listener(icmp_type: u8) -> bool {
    matches!(icmp_type, 130..=132 | 143)
}

/// An ICMPv6 error and the packet it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpErrorV6 {
    /// Type.
    pub icmp_type: u8,
    /// Code.
    pub code: u8,
    /// The packet quoted.
    pub inner: InnerV6,
}

/// A packet quoted by an ICMPv6 error. Offsets count from the outer IPv6 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerV6 {
    /// Both addresses.
    pub addresses: Addresses6,
    /// Ports as [`erhu_planes::tuple::pack_ports`] has them.
    pub ports: u32,
    /// Protocol: TCP, UDP or ICMPv6.
    pub proto: u8,
    /// Offset of its IPv6 header.
    pub l3: u16,
    /// Offset of its L4 header, of which at least 8 bytes are there.
    pub l4: u16,
    /// Offset of the first byte that is not quoted of it.
    pub end: u16,
}

/// Reads an ICMPv6 error: `l3` reaches from its IPv6 header to the end of its packet, `at` is where ICMPv6 starts.
///
/// The error's checksum is checked, those of the quoted packet are not; RFC 4884 extensions count as part of the quote.
/// `None` if the checksum is wrong, or if the error quotes a fragment other than the first, another ICMPv6 error, fewer
/// than 8 bytes of L4 or a protocol other than TCP, UDP and ICMPv6.
pub fn parse_error(l3: &[u8], at: usize) -> Option<IcmpErrorV6> {
    let message = l3.get(at..)?;
    let (outer, quote) = Icmp::ref_from_prefix(message).ok()?;
    if !is_error(outer.icmp_type) || !checksum::l4_ok_v6(l3, at, proto::ICMPV6) {
        return None;
    }
    let (ip, _) = Ipv6::ref_from_prefix(quote).ok()?;
    let quoted = quote.get(..ip.length().min(quote.len())).filter(|_| ip.is_ipv6())?;
    let (protocol, inner_l4) = match walk(quoted) {
        Chain::Upper { proto, at, .. } | Chain::Fragment { proto, at, first: true } => (proto, usize::from(at)),
        _ => return None,
    };
    let l4 = quoted.get(inner_l4..).filter(|l4| l4.len() >= QUOTED_L4)?;
    let ports = quoted_ports(protocol, proto::ICMPV6, l4)?;
    let start = at + size_of::<Icmp>();
    let inner = InnerV6 {
        addresses: ip.addresses(),
        ports,
        proto: protocol,
        l3: u16::try_from(start).ok()?,
        l4: u16::try_from(start + inner_l4).ok()?,
        end: u16::try_from(start + quoted.len()).ok()?,
    };
    Some(IcmpErrorV6 { icmp_type: outer.icmp_type, code: outer.code, inner })
}

/// Translates the packet that an ICMPv6 error quotes, in place, and makes the error's checksum anew.
///
/// `l3` and `at` are what `inner` was parsed from. `addresses` and `ports` are to be stored; of an ICMPv6 query only the
/// identifier is. Where it is quoted, the quoted L4 checksum changes with them, so that one that was wrong stays wrong;
/// UDP without checksum stays without. The outer IPv6 header is not touched: the checksum is that of the addresses in
/// it, and [`crate::rewrite6::forward`] keeps it right when they change. `None`, with nothing changed, if `inner` is not
/// of these bytes.
#[must_use]
pub fn rewrite_inner(l3: &mut [u8], at: usize, inner: &InnerV6, addresses: &Addresses6, ports: u32) -> Option<()> {
    let (start, end) = (usize::from(inner.l3), usize::from(inner.end));
    let header_bytes = usize::from(inner.l4).checked_sub(start)?;
    let fits = at.checked_add(size_of::<Icmp>())? <= start && at >= ipv6::HEADER_BYTES;
    let (header, l4) = l3.get_mut(start..end)?.split_at_mut_checked(header_bytes)?;
    let (ip, _) = Ipv6::mut_from_prefix(header).ok()?;
    if !fits || l4.len() < QUOTED_L4 {
        return None;
    }
    let address_delta = delta_addresses6(&ip.addresses(), addresses);
    ip.set_addresses(addresses);
    translate_quoted(inner.proto, l4, address_delta, ports)?;
    checksum::fill_l4_v6(l3, at, proto::ICMPV6);
    Some(())
}

/// An ICMPv6 error to send; what it is about comes with [`build_error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// Source: an address of the router.
    pub src: Ipv6Addr,
    /// Destination: the source of the packet it is about.
    pub dst: Ipv6Addr,
    /// Type, see [`is_error`].
    pub icmp_type: u8,
    /// Code.
    pub code: u8,
    /// What stands behind the checksum: 0, the MTU with [`PACKET_TOO_BIG`], an offset with [`PARAMETER_PROBLEM`].
    pub rest: u32,
    /// Hop limit.
    pub hop_limit: u8,
    /// Traffic class.
    pub traffic_class: u8,
}

/// Builds an ICMPv6 error from its IPv6 header on and returns its length, [`LONGEST_ERROR`] at most.
///
/// `original` reaches from the IPv6 header of the packet it is about to the end of the packet or of the frame. As much
/// of it is quoted as fits (RFC 4443 section 2.4(c)), padding never. Whether an error may be sent at all:
/// [`may_answer_with_error`]. `None` if `buf` is too small or `original` is no IPv6 packet.
pub fn build_error(buf: &mut [u8], error: &Error, original: &[u8]) -> Option<usize> {
    const HEADERS: usize = ipv6::HEADER_BYTES + size_of::<Icmp>();
    let (ip, _) = Ipv6::ref_from_prefix(original).ok()?;
    let whole = ip.length().min(original.len());
    let quote = original.get(..whole.min(LONGEST_ERROR - HEADERS))?;
    let length = HEADERS + quote.len();
    let packet = buf.get_mut(..length)?;
    let header = ipv6::Header {
        src: error.src,
        dst: error.dst,
        next: proto::ICMPV6,
        hop_limit: error.hop_limit,
        traffic_class: error.traffic_class,
        payload: u16::try_from(length - ipv6::HEADER_BYTES).ok()?,
    };
    header.write(packet)?;
    let (icmp, payload) = Icmp::mut_from_prefix(packet.get_mut(ipv6::HEADER_BYTES..)?).ok()?;
    let [a, b, c, d] = error.rest.to_be_bytes();
    icmp.as_mut_bytes().copy_from_slice(&[error.icmp_type, error.code, 0, 0, a, b, c, d]);
    payload.copy_from_slice(quote);
    checksum::fill_l4_v6(packet, ipv6::HEADER_BYTES, proto::ICMPV6);
    Some(length)
}

/// Whether a packet may be answered with an ICMPv6 error of this type and code (RFC 4443 section 2.4(e)).
///
/// Not if it is an ICMPv6 error, a redirect, or a later fragment of a message that may be one; not if its source names
/// no single node; not if it came as a link multicast or broadcast, or is for a multicast address, unless the answer is
/// "packet too big" or is about an option. That a source is an anycast address is not known here.
pub fn may_answer_with_error(l3: &[u8], l2_is_group: bool, icmp_type: u8, code: u8) -> bool {
    let Ok((ip, _)) = Ipv6::ref_from_prefix(l3) else { return false };
    let Addresses6 { src, dst } = ip.addresses();
    let to_groups = matches!((icmp_type, code), (PACKET_TOO_BIG, _) | (PARAMETER_PROBLEM, UNRECOGNIZED_OPTION));
    if src == [0; 2] || is_multicast(src) || !to_groups && (l2_is_group || is_multicast(dst)) {
        return false;
    }
    match walk(l3) {
        Chain::Broken => false,
        Chain::Upper { proto: proto::ICMPV6, at, .. } | Chain::Fragment { proto: proto::ICMPV6, at, first: true } => {
            l3.get(usize::from(at)).is_some_and(|icmp_type| !is_error(*icmp_type) && *icmp_type != REDIRECT)
        }
        Chain::Fragment { proto: proto::ICMPV6, .. } => false,
        _ => true,
    }
}

/// Turns an echo request to the router into its answer, in place (RFC 4443 section 4.2).
///
/// `l3` reaches from the IPv6 header to the end of the packet, whose checksum is right and whose destination is an
/// address of the router. `None`, with nothing changed, if it is no echo request or has extension headers, which would
/// have to be left out.
#[must_use]
pub fn echo_reply_in_place(l3: &mut [u8]) -> Option<()> {
    let (ip, message) = Ipv6::mut_from_prefix(l3).ok()?;
    let (echo, _) = Icmp::mut_from_prefix(message).ok()?;
    if (ip.next, echo.icmp_type, echo.code) != (proto::ICMPV6, ECHO_REQUEST, 0) {
        return None;
    }
    ip.set_addresses(&ip.addresses().swapped());
    ip.hop_limit = DEFAULT_HOP_LIMIT;
    echo.icmp_type = ECHO_REPLY;
    let word = |icmp_type| u16::from_le_bytes([icmp_type, 0]);
    apply(&mut echo.checksum, checksum::delta(&[word(ECHO_REQUEST)], &[word(ECHO_REPLY)]));
    Some(())
}

//! Neighbour discovery (RFC 4861): solicitations and advertisements of neighbours.

use std::net::Ipv6Addr;

use erhu_planes::tuple::proto;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum;
use crate::ethernet::Mac;
use crate::header::{Icmp, Ipv6};
use crate::icmp6::{NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION};
use crate::ipv6::{self, ALL_NODES, is_multicast, solicited_node};

/// Hop limit of every message: a higher one cannot be, and a router would have lowered it.
pub const HOP_LIMIT: u8 = 255;
/// Bytes of a message to send, from its IPv6 header on, with the one option.
pub const BYTES: usize = ipv6::HEADER_BYTES + size_of::<Body>() + size_of::<MacOption>();

/// Option: the sender's MAC address (RFC 4861 section 4.6.1).
const SOURCE_MAC: u8 = 1;
/// Option: the target's MAC address.
const TARGET_MAC: u8 = 2;

/// Flags of an advertisement (RFC 4861 section 4.4), in its first byte.
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// A solicitation or advertisement without options: [`Icmp`], whose last four bytes are flags, and the target.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Body {
    icmp_type: u8,
    code: u8,
    checksum: [u8; 2],
    flags: u8,
    reserved: [u8; 3],
    target: [u8; 16],
}

/// A link-layer address option for Ethernet (RFC 2464 section 6).
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct MacOption {
    option: u8,
    /// In units of 8 bytes.
    length: u8,
    mac: Mac,
}

const _: () = assert!(size_of::<Body>() == size_of::<Icmp>() + 16 && size_of::<MacOption>() == 8);

/// Asks for the MAC address of a neighbour, or whether it is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Solicitation {
    /// Who asks; unspecified where it asks whether somebody has the address that it wants (RFC 4862 section 5.4).
    pub src: Ipv6Addr,
    /// Where the question went: to the target, or to its solicited-node group.
    pub dst: Ipv6Addr,
    /// The address asked for; no multicast one.
    pub target: Ipv6Addr,
    /// MAC address of who asks, where it says it.
    pub mac: Option<Mac>,
}

/// Tells the MAC address of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// Who tells.
    pub src: Ipv6Addr,
    /// Who is told; all nodes where nobody asked.
    pub dst: Ipv6Addr,
    /// The address that is told of; no multicast one.
    pub target: Ipv6Addr,
    /// Its MAC address; may be missing from the answer to a question that went to the target alone.
    pub mac: Option<Mac>,
    /// The sender is a router.
    pub router: bool,
    /// It answers a question of `dst`.
    pub solicited: bool,
    /// What is known already is to be replaced.
    pub overrides: bool,
}

/// A valid message of those that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Neighbour solicitation.
    Solicitation(Solicitation),
    /// Neighbour advertisement.
    Advertisement(Advertisement),
}

/// Reads a message: `l3` reaches from the IPv6 header to the end of the packet, which is in one piece (RFC 6980), `at`
/// is where ICMPv6 starts.
///
/// `None` unless it is a neighbour solicitation or advertisement that passes all of RFC 4861 section 7.1: hop limit 255,
/// checksum, code 0, length, a target that is no multicast address, no option of length 0 or beyond the end; a question
/// from the unspecified address goes to a solicited-node group and has no MAC address; an answer to a group is not
/// called solicited. Its source is no multicast address.
pub fn parse(l3: &[u8], at: usize) -> Option<Message> {
    let (ip, _) = Ipv6::ref_from_prefix(l3).ok()?;
    let (body, options) = Body::ref_from_prefix(l3.get(at..)?).ok()?;
    let words = ip.addresses();
    let (src, dst) = words.unpack();
    let target = Ipv6Addr::from(body.target);
    let valid = ip.hop_limit == HOP_LIMIT
        && body.code == 0
        && !target.is_multicast()
        && !is_multicast(words.src)
        && checksum::l4_ok_v6(l3, at, proto::ICMPV6);
    if !valid {
        return None;
    }
    match body.icmp_type {
        NEIGHBOUR_SOLICITATION => {
            let mac = find_mac(SOURCE_MAC, options)?;
            let is_probe = src.is_unspecified();
            let [a, b] = words.dst;
            let to_group = a == 0x02ff && b & 0xff_ffff_ffff == 0xff_0100_0000;
            if is_probe && (!to_group || mac.is_some()) {
                return None;
            }
            Some(Message::Solicitation(Solicitation { src, dst, target, mac }))
        }
        NEIGHBOUR_ADVERTISEMENT => {
            let mac = find_mac(TARGET_MAC, options)?;
            let has = |flag| body.flags & flag != 0;
            if has(SOLICITED) && is_multicast(words.dst) {
                return None;
            }
            let (router, solicited, overrides) = (has(ROUTER), has(SOLICITED), has(OVERRIDE));
            Some(Message::Advertisement(Advertisement { src, dst, target, mac, router, solicited, overrides }))
        }
        _ => None,
    }
}

/// The MAC address in the first option of a kind; the outer `None` if an option has length 0 or ends beyond the end.
fn find_mac(kind: u8, mut options: &[u8]) -> Option<Option<Mac>> {
    let mut found = None;
    while !options.is_empty() {
        let [option, units, ..] = *options else { return None };
        let length = usize::from(units) * 8;
        if length == 0 || length > options.len() {
            return None;
        }
        if option == kind && units == 1 && found.is_none() {
            found = MacOption::ref_from_prefix(options).ok().map(|(option, _)| option.mac);
        }
        options = options.get(length..)?;
    }
    Some(found)
}

impl Solicitation {
    /// Asks everybody on the link who has `target`.
    pub const fn new(src: Ipv6Addr, mac: Mac, target: Ipv6Addr) -> Self {
        Self { src, dst: solicited_node(target), target, mac: Some(mac) }
    }

    /// The answer: the address asked for is at `mac`. To one who has no address yet it goes to all nodes (RFC 4861
    /// section 7.2.4).
    pub fn answer(&self, mac: Mac, router: bool, overrides: bool) -> Advertisement {
        let solicited = !self.src.is_unspecified();
        let dst = if solicited { self.src } else { ALL_NODES };
        Advertisement { src: self.target, dst, target: self.target, mac: Some(mac), router, solicited, overrides }
    }

    /// Writes the message from its IPv6 header on and returns its length, [`BYTES`] at most. `None` if it does not fit.
    pub fn write(&self, buf: &mut [u8]) -> Option<usize> {
        let option = self.mac.map(|mac| (SOURCE_MAC, mac));
        write(buf, (self.src, self.dst), NEIGHBOUR_SOLICITATION, 0, self.target, option)
    }
}

impl Advertisement {
    /// Writes the message from its IPv6 header on and returns its length, [`BYTES`] at most. `None` if it does not fit.
    pub fn write(&self, buf: &mut [u8]) -> Option<usize> {
        let flag = |on, flag| if on { flag } else { 0 };
        let flags = flag(self.router, ROUTER) | flag(self.solicited, SOLICITED) | flag(self.overrides, OVERRIDE);
        let option = self.mac.map(|mac| (TARGET_MAC, mac));
        write(buf, (self.src, self.dst), NEIGHBOUR_ADVERTISEMENT, flags, self.target, option)
    }
}

fn write(
    buf: &mut [u8],
    (src, dst): (Ipv6Addr, Ipv6Addr),
    icmp_type: u8,
    flags: u8,
    target: Ipv6Addr,
    option: Option<(u8, Mac)>,
) -> Option<usize> {
    let payload = size_of::<Body>() + if option.is_some() { size_of::<MacOption>() } else { 0 };
    let packet = buf.get_mut(..ipv6::HEADER_BYTES + payload)?;
    let payload = u16::try_from(payload).ok()?;
    let header = ipv6::Header { src, dst, next: proto::ICMPV6, hop_limit: HOP_LIMIT, traffic_class: 0, payload };
    let at = header.write(packet)?;
    let (body, rest) = Body::mut_from_prefix(packet.get_mut(at..)?).ok()?;
    *body = Body { icmp_type, code: 0, checksum: [0; 2], flags, reserved: [0; 3], target: target.octets() };
    if let Some((option, mac)) = option {
        let (out, _) = MacOption::mut_from_prefix(rest).ok()?;
        *out = MacOption { option, length: 1, mac };
    }
    checksum::fill_l4_v6(packet, at, proto::ICMPV6);
    Some(packet.len())
}

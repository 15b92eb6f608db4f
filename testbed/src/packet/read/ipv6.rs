//! IPv6 in the reader.

use std::fmt;
use std::net::Ipv6Addr;

use super::{Upper, address6_at, long, word};
use crate::packet::Mac;

/// An IPv6 packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip6 {
    /// Source address.
    pub source: Ipv6Addr,
    /// Destination address.
    pub destination: Ipv6Addr,
    /// Hop limit.
    pub hop_limit: u8,
    /// Traffic class.
    pub class: u8,
    /// Flow label.
    pub flow: u32,
    /// Protocols of the extension headers.
    pub extensions: Vec<u8>,
    /// Offset in bytes, whether more follow, and identification, where it is a fragment.
    pub fragment: Option<(u16, bool, u32)>,
    /// Total length, bytes, header included.
    pub length: u16,
    /// Protocol behind the extension headers.
    pub protocol: u8,
    /// What it carries.
    pub upper: Upper,
}

/// A neighbour solicitation or advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nd {
    /// Whether it asks.
    pub asks: bool,
    /// The address that it is about.
    pub target: Ipv6Addr,
    /// The MAC address in its first option.
    pub mac: Option<Mac>,
    /// Router, solicited, override: the highest three bits.
    pub flags: u8,
}

impl Ip6 {
    pub(super) fn of(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() < 40 {
            return Err("shorter than an IPv6 header");
        }
        let length = word(bytes, 4).checked_add(40).ok_or("a payload length that does not fit")?;
        if bytes[0] >> 4 != 6 {
            return Err("not version 6");
        }
        let packet = bytes.get(..usize::from(length)).ok_or("a payload length that does not fit")?;
        let (source, destination) = (address6_at(bytes, 8), address6_at(bytes, 24));
        let chain = Chain::of(packet).ok_or("extension headers that do not fit")?;
        let body = &packet[chain.at..];
        let upper = match chain.fragment {
            Some((0, false, _)) | None => Upper::of(source.into(), destination.into(), chain.protocol, body),
            Some(_) => Upper::Fragment,
        };
        let word = long(bytes, 0);
        Ok(Self {
            source,
            destination,
            hop_limit: bytes[7],
            class: bytes[0] << 4 | bytes[1] >> 4,
            flow: word & 0xf_ffff,
            extensions: chain.extensions,
            fragment: chain.fragment,
            length,
            protocol: chain.protocol,
            upper,
        })
    }
}

/// The extension headers of an IPv6 packet, and where they end.
pub(super) struct Chain {
    extensions: Vec<u8>,
    fragment: Option<(u16, bool, u32)>,
    pub(super) protocol: u8,
    pub(super) at: usize,
}

impl Chain {
    /// Of a packet that has all of its IPv6 header.
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        let mut chain = Self { extensions: Vec::new(), fragment: None, protocol: packet[6], at: 40 };
        while matches!(chain.protocol, 0 | 43 | 44 | 60) {
            let header = packet.get(chain.at..chain.at + 8)?;
            chain.extensions.push(chain.protocol);
            let length = if chain.protocol == 44 {
                let place = word(header, 2);
                chain.fragment = Some((place & !7, place & 1 != 0, long(header, 4)));
                8
            } else {
                (usize::from(header[1]) + 1) * 8
            };
            (chain.protocol, chain.at) = (header[0], chain.at + length);
            if chain.at > packet.len() {
                return None;
            }
            if chain.fragment.is_some_and(|(offset, ..)| offset != 0) {
                break;
            }
        }
        Some(chain)
    }
}

impl fmt::Display for Ip6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let other = match (&self.upper, self.fragment) {
            (Upper::Fragment, Some((offset, _, id))) => format!("{id}+{offset}"),
            _ => format!("protocol-{}", self.protocol),
        };
        self.upper.line(f, self.source.into(), self.destination.into(), &other)
    }
}

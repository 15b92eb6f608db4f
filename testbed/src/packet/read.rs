//! The reader: frames as comparable structs and as one line of text, every checksum verified.
//!
//! It never fails: what cannot be decoded is content too. A line of text names the protocol, both ends and what tells
//! packets of one kind apart; a wrong checksum anywhere is part of the line, so that comparing lines verifies them:
//!
//! ```text
//! udp 10.0.0.5:5353 > 192.0.2.1:53
//! tcp 10.0.0.5:40000 > 192.0.2.1:443 SA
//! icmp 10.0.0.5 > 192.0.2.1 echo-request 77
//! icmp 192.0.2.1 > 10.0.0.5 3/3 about udp 10.0.0.5:5353 > 192.0.2.1:53
//! arp who-has 10.0.0.5 tell 10.0.0.1
//! udp [2001:db8::5]:5353 > [2001:db8:1::1]:53
//! icmpv6 2001:db8::1 > 2001:db8::5 1/4 about udp [2001:db8::5]:5353 > [2001:db8:1::1]:53
//! nd who-has 2001:db8::5 tell 2001:db8::1
//! udp 10.0.0.5:5353 > 192.0.2.1:53 !udp-checksum
//! ```

mod ipv6;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use ipv6::Chain;
pub use ipv6::{Ip6, Nd};

use super::{Mac, Packet, TCP_FLAGS, ethertype, icmp, internet_checksum, pseudo_header, tcp, udp};
use crate::pcap::Record;

/// A frame that was captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// All of it.
    pub frame: Vec<u8>,
    /// Destination MAC address.
    pub mac_to: Mac,
    /// Source MAC address.
    pub mac_from: Mac,
    /// Tags from the outermost: type, and priority with VLAN id as in the frame.
    pub tags: Vec<(u16, u16)>,
    /// What it carries.
    pub content: Content,
    /// Offset of the layer-3 header.
    l3: usize,
}

/// What a frame carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// ARP for IPv4 over Ethernet.
    Arp(Arp),
    /// IPv4.
    Ip(Ip),
    /// IPv6.
    Ip6(Ip6),
    /// Another ethertype.
    Other(u16),
    /// Nothing that can be decoded, and why.
    Broken(&'static str),
}

/// An ARP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1 asks, 2 answers.
    pub operation: u16,
    /// Who sent it.
    pub sender: (Mac, Ipv4Addr),
    /// Whom or what it is about.
    pub target: (Mac, Ipv4Addr),
}

/// An IPv4 packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Time to live.
    pub ttl: u8,
    /// Type of service byte.
    pub tos: u8,
    /// Identification.
    pub id: u16,
    /// Don't fragment.
    pub df: bool,
    /// More fragments follow.
    pub more: bool,
    /// Fragment offset, bytes.
    pub offset: u16,
    /// IP options.
    pub options: Vec<u8>,
    /// Total length, bytes.
    pub length: u16,
    /// Protocol.
    pub protocol: u8,
    /// Whether the header's checksum is right.
    pub checksum_ok: bool,
    /// What it carries.
    pub upper: Upper,
}

/// What an IP packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upper {
    /// A UDP datagram.
    Udp(Udp),
    /// A TCP segment.
    Tcp(Tcp),
    /// An ICMP message.
    Icmp(Icmp),
    /// Part of a datagram.
    Fragment,
    /// Another protocol's bytes.
    Other(Vec<u8>),
    /// Too short or inconsistent, and why.
    Broken(&'static str),
}

/// A UDP datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Udp {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Whether it has a checksum at all (field not 0).
    pub has_checksum: bool,
    /// Whether the checksum is right; true where there is none.
    pub checksum_ok: bool,
    /// Payload.
    pub payload: Vec<u8>,
}

/// A TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flags, all eight bits.
    pub flags: u8,
    /// Window as in the header.
    pub window: u16,
    /// Options.
    pub options: Vec<u8>,
    /// Whether the checksum is right.
    pub checksum_ok: bool,
    /// Payload.
    pub payload: Vec<u8>,
}

/// An ICMP message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// Whether it is ICMPv6.
    pub v6: bool,
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// The four bytes after the checksum.
    pub rest: [u8; 4],
    /// Whether the checksum is right.
    pub checksum_ok: bool,
    /// What follows.
    pub payload: Vec<u8>,
    /// The packet it quotes, if it is an error that quotes one.
    pub quoted: Option<Quoted>,
}

/// The packet that an ICMP error quotes: IP header and at least 8 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol.
    pub protocol: u8,
    /// Time to live.
    pub ttl: u8,
    /// Identification; of IPv6 0.
    pub id: u16,
    /// Total length that the header states, bytes.
    pub length: u16,
    /// Source port; for ICMP the identifier.
    pub sport: u16,
    /// Destination port; 0 for ICMP.
    pub dport: u16,
    /// Whether the header's checksum is right, or there is none.
    pub ip_checksum_ok: bool,
    /// Whether the checksum of layer 4 is right, where all of the packet is quoted.
    pub checksum_ok: Option<bool>,
    /// Ones' complement sum over what a checksum of layer 4 covers, the checksum field included, as far as it is
    /// quoted. A right translation leaves it as it was, however little is quoted.
    pub residue: u16,
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from(word(bytes, at)) << 16 | u32::from(word(bytes, at + 2))
}

fn address_at(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::from(long(bytes, at))
}

fn address6_at(bytes: &[u8], at: usize) -> Ipv6Addr {
    let octets: [u8; 16] = std::array::from_fn(|i| bytes[at + i]);
    octets.into()
}

fn mac_at(bytes: &[u8], at: usize) -> Mac {
    std::array::from_fn(|i| bytes[at + i])
}

/// Whether an ICMP type is an error, which quotes the packet it is about.
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 5 | 11 | 12)
}

impl From<&Record> for Seen {
    fn from(record: &Record) -> Self {
        Self::of(record.time_ns, record.data.clone())
    }
}

impl Seen {
    /// Decodes a frame.
    pub fn of(time_ns: u64, frame: Vec<u8>) -> Self {
        let mut seen = Self {
            time_ns,
            mac_to: [0; 6],
            mac_from: [0; 6],
            tags: Vec::new(),
            content: Content::Broken("shorter than an Ethernet header"),
            l3: frame.len(),
            frame,
        };
        if seen.frame.len() < 14 {
            return seen;
        }
        (seen.mac_to, seen.mac_from) = (mac_at(&seen.frame, 0), mac_at(&seen.frame, 6));
        let mut at = 12;
        let kind = loop {
            if seen.frame.len() < at + 2 {
                seen.content = Content::Broken("ends within its tags");
                return seen;
            }
            let kind = word(&seen.frame, at);
            at += 2;
            if !matches!(kind, ethertype::VLAN | ethertype::QINQ | 0x9100) || seen.frame.len() < at + 2 {
                break kind;
            }
            seen.tags.push((kind, word(&seen.frame, at)));
            at += 2;
        };
        seen.l3 = at;
        let bytes = &seen.frame[at..];
        seen.content = match kind {
            ethertype::ARP => Arp::of(bytes).map_or(Content::Broken("no ARP for IPv4"), Content::Arp),
            ethertype::IPV4 => Ip::of(bytes).map_or_else(Content::Broken, Content::Ip),
            ethertype::IPV6 => Ip6::of(bytes).map_or_else(Content::Broken, Content::Ip6),
            other => Content::Other(other),
        };
        seen
    }

    /// VLAN id of the only tag; `None` without tags or with several.
    pub fn vlan(&self) -> Option<u16> {
        match self.tags[..] {
            [(_, control)] => Some(control & 0xfff),
            _ => None,
        }
    }

    /// From the layer-3 header to the packet's end, padding left out.
    pub fn l3(&self) -> &[u8] {
        let length = match &self.content {
            Content::Ip(ip) => usize::from(ip.length),
            Content::Ip6(ip) => usize::from(ip.length),
            _ => usize::MAX,
        };
        &self.frame[self.l3..self.frame.len().min(self.l3.saturating_add(length))]
    }

    /// Whether it is ARP.
    pub const fn is_arp(&self) -> bool {
        matches!(self.content, Content::Arp(_))
    }

    /// Whether it is ARP or what IPv6 has instead: a neighbour solicitation or advertisement.
    pub fn is_neighbour_talk(&self) -> bool {
        self.is_arp() || self.nd().is_some()
    }

    /// Whether it is a report or farewell of multicast listener discovery, as Linux hosts send them by themselves.
    pub fn is_listener_report(&self) -> bool {
        matches!(&self.content, Content::Ip6(Ip6 { upper: Upper::Icmp(icmp), .. })
            if matches!(icmp.kind, 131 | 132 | 143))
    }

    /// The neighbour solicitation or advertisement, if it is one.
    pub fn nd(&self) -> Option<Nd> {
        let Content::Ip6(Ip6 { upper: Upper::Icmp(icmp), .. }) = &self.content else { return None };
        let is_one = matches!(icmp.kind, 135 | 136) && icmp.payload.len() >= 16;
        is_one.then(|| Nd {
            asks: icmp.kind == 135,
            target: address6_at(&icmp.payload, 0),
            mac: (icmp.payload.len() >= 24 && matches!(icmp.payload[16..18], [1 | 2, 1]))
                .then(|| mac_at(&icmp.payload, 18)),
            flags: icmp.rest[0],
        })
    }

    /// The ARP message.
    ///
    /// # Panics
    /// If it is none; so do the other accessors. For tests.
    #[track_caller]
    pub fn arp(&self) -> &Arp {
        match &self.content {
            Content::Arp(arp) => arp,
            _ => panic!("{self} is not ARP"),
        }
    }

    /// The IPv4 packet.
    #[track_caller]
    pub fn ip(&self) -> &Ip {
        match &self.content {
            Content::Ip(ip) => ip,
            _ => panic!("{self} is not IPv4"),
        }
    }

    /// The IPv6 packet.
    #[track_caller]
    pub fn ip6(&self) -> &Ip6 {
        match &self.content {
            Content::Ip6(ip) => ip,
            _ => panic!("{self} is not IPv6"),
        }
    }

    /// What the IP packet of either family carries.
    #[track_caller]
    pub fn upper(&self) -> &Upper {
        match &self.content {
            Content::Ip(ip) => &ip.upper,
            Content::Ip6(ip) => &ip.upper,
            _ => panic!("{self} is not IP"),
        }
    }

    /// The TCP segment.
    #[track_caller]
    pub fn tcp(&self) -> &Tcp {
        match self.upper() {
            Upper::Tcp(tcp) => tcp,
            _ => panic!("{self} is not TCP"),
        }
    }

    /// The UDP datagram.
    #[track_caller]
    pub fn udp(&self) -> &Udp {
        match self.upper() {
            Upper::Udp(udp) => udp,
            _ => panic!("{self} is not UDP"),
        }
    }

    /// The ICMP message.
    #[track_caller]
    pub fn icmp(&self) -> &Icmp {
        match self.upper() {
            Upper::Icmp(icmp) => icmp,
            _ => panic!("{self} is not ICMP"),
        }
    }

    /// The packet that this ICMP error quotes.
    #[track_caller]
    pub fn quoted(&self) -> &Quoted {
        self.icmp().quoted.as_ref().unwrap_or_else(|| panic!("{self} quotes nothing"))
    }

    /// Source and destination of either family, with ports; for ICMP the identifier stands in for both ports, for other
    /// protocols 0.
    #[track_caller]
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        let (source, destination): (IpAddr, IpAddr) = match &self.content {
            Content::Ip(ip) => (ip.source.into(), ip.destination.into()),
            Content::Ip6(ip) => (ip.source.into(), ip.destination.into()),
            _ => panic!("{self} is not IP"),
        };
        let (sport, dport) = self.upper().ports();
        (SocketAddr::new(source, sport), SocketAddr::new(destination, dport))
    }

    /// Source address and port of IPv4; for ICMP the identifier stands in for the port, for other protocols 0.
    #[track_caller]
    pub fn source(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip().source, self.ip().upper.ports().0)
    }

    /// Destination address and port; the port as in [`Self::source`].
    #[track_caller]
    pub fn destination(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip().destination, self.ip().upper.ports().1)
    }

    /// Payload of UDP, TCP or ICMP.
    #[track_caller]
    pub fn payload(&self) -> &[u8] {
        match self.upper() {
            Upper::Udp(udp) => &udp.payload,
            Upper::Tcp(tcp) => &tcp.payload,
            Upper::Icmp(icmp) => &icmp.payload,
            _ => panic!("{self} has no payload that is understood"),
        }
    }

    /// What a host would send back: ends exchanged, an echo request answered; TCP without flags. No payload, except
    /// for echo.
    #[track_caller]
    pub fn answer(&self) -> Packet {
        let (to, from) = self.ends();
        match self.upper() {
            Upper::Udp(_) => udp(&from.to_string(), &to.to_string()),
            Upper::Tcp(_) => tcp(&from.to_string(), &to.to_string()),
            Upper::Icmp(i) if i.is_echo_request() => {
                let kind = if i.v6 { 129 } else { 0 };
                icmp(&from.ip().to_string(), &to.ip().to_string(), kind, 0, i.rest).payload(&i.payload)
            }
            _ => panic!("nobody answers {self}"),
        }
    }

    /// Everything that is wrong with it: checksums, and what could not be decoded.
    pub fn faults(&self) -> Vec<&'static str> {
        match &self.content {
            Content::Ip(ip) => ip.faults(),
            Content::Ip6(ip) => ip.upper.faults(),
            Content::Broken(why) => vec![why],
            _ => Vec::new(),
        }
    }
}

impl Arp {
    fn of(bytes: &[u8]) -> Option<Self> {
        let good = bytes.len() >= 28 && bytes[..6] == [0, 1, 8, 0, 6, 4];
        good.then(|| Self {
            operation: word(bytes, 6),
            sender: (mac_at(bytes, 8), address_at(bytes, 14)),
            target: (mac_at(bytes, 18), address_at(bytes, 24)),
        })
    }
}

impl Ip {
    fn of(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() < 20 {
            return Err("shorter than an IPv4 header");
        }
        let header = usize::from(bytes[0] & 15) * 4;
        let length = word(bytes, 2);
        if bytes[0] >> 4 != 4 || header < 20 {
            return Err("not version 4, or a header length below 20");
        }
        if header > usize::from(length) || usize::from(length) > bytes.len() {
            return Err("a total length that does not fit");
        }
        let (source, destination) = (address_at(bytes, 12), address_at(bytes, 16));
        let fragment = word(bytes, 6);
        let (more, offset) = (fragment & 0x2000 != 0, (fragment & 0x1fff) * 8);
        let body = &bytes[header..usize::from(length)];
        Ok(Self {
            source,
            destination,
            ttl: bytes[8],
            tos: bytes[1],
            id: word(bytes, 4),
            df: fragment & 0x4000 != 0,
            more,
            offset,
            options: bytes[20..header].to_vec(),
            length,
            protocol: bytes[9],
            checksum_ok: internet_checksum(&bytes[..header]) == 0,
            upper: if more || offset != 0 {
                Upper::Fragment
            } else {
                Upper::of(source.into(), destination.into(), bytes[9], body)
            },
        })
    }

    fn faults(&self) -> Vec<&'static str> {
        let mut faults = Vec::new();
        if !self.checksum_ok {
            faults.push("ip-checksum");
        }
        faults.extend(self.upper.faults());
        faults
    }
}

impl Upper {
    fn of(source: IpAddr, destination: IpAddr, protocol: u8, body: &[u8]) -> Self {
        let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
        let sum_ok = |bytes: &[u8]| {
            let pseudo = pseudo_header(source, destination, protocol, u16::try_from(bytes.len()).unwrap_or(length));
            internet_checksum(&[&pseudo[..], bytes].concat()) == 0
        };
        match protocol {
            17 if body.len() < 8 => Self::Broken("shorter than a UDP header"),
            17 => {
                let stated = usize::from(word(body, 4));
                if stated < 8 || stated > body.len() {
                    return Self::Broken("a UDP length that does not fit");
                }
                let has_checksum = word(body, 6) != 0;
                Self::Udp(Udp {
                    sport: word(body, 0),
                    dport: word(body, 2),
                    has_checksum,
                    checksum_ok: !has_checksum || sum_ok(&body[..stated]),
                    payload: body[8..stated].to_vec(),
                })
            }
            6 if body.len() < 20 => Self::Broken("shorter than a TCP header"),
            6 => {
                let header = usize::from(body[12] >> 4) * 4;
                if header < 20 || header > body.len() {
                    return Self::Broken("a TCP data offset that does not fit");
                }
                Self::Tcp(Tcp {
                    sport: word(body, 0),
                    dport: word(body, 2),
                    seq: long(body, 4),
                    ack: long(body, 8),
                    flags: body[13],
                    window: word(body, 14),
                    options: body[20..header].to_vec(),
                    checksum_ok: sum_ok(body),
                    payload: body[header..].to_vec(),
                })
            }
            1 | 58 if body.len() < 8 => Self::Broken("shorter than an ICMP header"),
            1 | 58 => Self::Icmp(Icmp {
                v6: protocol == 58,
                kind: body[0],
                code: body[1],
                rest: [body[4], body[5], body[6], body[7]],
                checksum_ok: sum_ok(body),
                payload: body[8..].to_vec(),
                quoted: match protocol {
                    58 if body[0] < 128 => Quoted::of6(&body[8..]),
                    1 if is_error(body[0]) => Quoted::of(&body[8..]),
                    _ => None,
                },
            }),
            _ => Self::Other(body.to_vec()),
        }
    }

    /// Ports, or what stands in for them.
    fn ports(&self) -> (u16, u16) {
        match self {
            Self::Udp(udp) => (udp.sport, udp.dport),
            Self::Tcp(tcp) => (tcp.sport, tcp.dport),
            Self::Icmp(icmp) if !icmp.is_error() => (icmp.id(), icmp.id()),
            _ => (0, 0),
        }
    }

    fn faults(&self) -> Vec<&'static str> {
        let mut faults = Vec::new();
        match self {
            Self::Udp(udp) if !udp.checksum_ok => faults.push("udp-checksum"),
            Self::Tcp(tcp) if !tcp.checksum_ok => faults.push("tcp-checksum"),
            Self::Icmp(icmp) => {
                if !icmp.checksum_ok {
                    faults.push("icmp-checksum");
                }
                if let Some(quoted) = &icmp.quoted {
                    if !quoted.ip_checksum_ok {
                        faults.push("quoted-ip-checksum");
                    }
                    if quoted.checksum_ok == Some(false) {
                        faults.push("quoted-checksum");
                    }
                }
            }
            Self::Broken(why) => faults.push(why),
            _ => {}
        }
        faults
    }

    /// What lines say of it, between two addresses.
    fn line(&self, f: &mut fmt::Formatter<'_>, from: IpAddr, to: IpAddr, other: &str) -> fmt::Result {
        let end = SocketAddr::new;
        match self {
            Self::Udp(udp) => write!(f, "udp {} > {}", end(from, udp.sport), end(to, udp.dport)),
            Self::Tcp(tcp) => {
                let flags = tcp_flag_letters(tcp.flags);
                write!(f, "tcp {} > {} {flags}", end(from, tcp.sport), end(to, tcp.dport))
            }
            Self::Icmp(icmp) => {
                write!(f, "{} {from} > {to} ", if icmp.v6 { "icmpv6" } else { "icmp" })?;
                match (icmp.v6, icmp.kind, &icmp.quoted) {
                    (false, 8, _) | (true, 128, _) => write!(f, "echo-request {}", icmp.id()),
                    (false, 0, _) | (true, 129, _) => write!(f, "echo-reply {}", icmp.id()),
                    (_, kind, Some(quoted)) => write!(f, "{kind}/{} about {quoted}", icmp.code),
                    (_, kind, None) => write!(f, "{kind}/{}", icmp.code),
                }
            }
            Self::Fragment => write!(f, "fragment {from} > {to} {other}"),
            Self::Other(_) | Self::Broken(_) => write!(f, "{other} {from} > {to}"),
        }
    }
}

impl Icmp {
    /// Whether it is an error, which quotes the packet it is about.
    pub const fn is_error(&self) -> bool {
        if self.v6 { self.kind < 128 } else { is_error(self.kind) }
    }

    /// Whether it asks for an echo.
    pub const fn is_echo_request(&self) -> bool {
        self.kind == if self.v6 { 128 } else { 8 }
    }

    /// The identifier of an echo or another query.
    pub const fn id(&self) -> u16 {
        u16::from_be_bytes([self.rest[0], self.rest[1]])
    }

    /// The next-hop MTU of "fragmentation needed" and of "packet too big".
    pub const fn next_hop_mtu(&self) -> u16 {
        u16::from_be_bytes([self.rest[2], self.rest[3]])
    }
}

impl Quoted {
    fn of(bytes: &[u8]) -> Option<Self> {
        let header = usize::from(bytes.first()? & 15) * 4;
        if bytes[0] >> 4 != 4 || header < 20 || bytes.len() < header + 8 {
            return None;
        }
        let length = word(bytes, 2);
        // RFC 4884 pads the quote; what lies beyond the packet's own end is not part of it.
        let body = &bytes[header..bytes.len().min(usize::from(length).max(header + 8))];
        let upper_length = length.saturating_sub(u16::try_from(header).unwrap_or(0));
        let ends = (address_at(bytes, 12).into(), address_at(bytes, 16).into());
        let ip_checksum_ok = internet_checksum(&bytes[..header]) == 0;
        let quoted = Self::with(ends, bytes[9], body, upper_length);
        Some(Self { ttl: bytes[8], id: word(bytes, 4), length, ip_checksum_ok, ..quoted })
    }

    fn of6(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < 40 || bytes[0] >> 4 != 6 {
            return None;
        }
        let length = word(bytes, 4).checked_add(40)?;
        let packet = &bytes[..bytes.len().min(usize::from(length))];
        let chain = Chain::of(packet)?;
        let (body, at) = (packet.get(chain.at..)?, u16::try_from(chain.at).ok()?);
        let ends = (address6_at(bytes, 8).into(), address6_at(bytes, 24).into());
        let quoted = Self::with(ends, chain.protocol, body, length - at);
        (body.len() >= 8).then_some(Self { ttl: bytes[7], length, ..quoted })
    }

    /// What both families have in common; `upper_length` is what the header states.
    fn with((source, destination): (IpAddr, IpAddr), protocol: u8, body: &[u8], upper_length: u16) -> Self {
        let is_icmp = matches!(protocol, 1 | 58);
        let pseudo = if is_icmp || matches!(protocol, 6 | 17) {
            pseudo_header(source, destination, protocol, upper_length)
        } else {
            Vec::new()
        };
        let residue = !internet_checksum(&[&pseudo[..], body].concat());
        let whole = body.len() == usize::from(upper_length);
        let field = |at: usize| if body.len() >= at + 2 { word(body, at) } else { 0 };
        let no_checksum = protocol == 17 && field(6) == 0;
        Self {
            source,
            destination,
            protocol,
            ttl: 0,
            id: 0,
            length: 0,
            sport: field(if is_icmp { 4 } else { 0 }),
            dport: if is_icmp { 0 } else { field(2) },
            ip_checksum_ok: true,
            checksum_ok: (whole && (is_icmp || matches!(protocol, 6 | 17)))
                .then_some(no_checksum || residue == 0xffff),
            residue,
        }
    }
}

/// TCP flags as letters; `-` for none.
pub fn tcp_flag_letters(flags: u8) -> String {
    let letters: String = TCP_FLAGS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, letter)| *letter).collect();
    if letters.is_empty() { "-".into() } else { letters }
}

fn mac_text(mac: &Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.content {
            Content::Arp(arp) if arp.operation == 1 => {
                write!(f, "arp who-has {} tell {}", arp.target.1, arp.sender.1)?;
            }
            Content::Arp(arp) => write!(f, "arp {} is-at {}", arp.sender.1, mac_text(&arp.sender.0))?,
            Content::Ip(ip) => write!(f, "{ip}")?,
            Content::Ip6(ip) => match self.nd() {
                Some(nd) if nd.asks => write!(f, "nd who-has {} tell {}", nd.target, ip.source)?,
                Some(nd) => write!(f, "nd {} is-at {}", nd.target, mac_text(&nd.mac.unwrap_or_default()))?,
                None => write!(f, "{ip}")?,
            },
            Content::Other(kind) => write!(f, "ethertype {kind:#06x}")?,
            Content::Broken(_) => write!(f, "broken")?,
        }
        self.faults().iter().try_for_each(|fault| write!(f, " !{fault}"))
    }
}

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let other = match self.upper {
            Upper::Fragment => format!("{}+{}", self.id, self.offset),
            _ => format!("protocol-{}", self.protocol),
        };
        self.upper.line(f, self.source.into(), self.destination.into(), &other)
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.source, self.destination);
        let end = SocketAddr::new;
        match self.protocol {
            17 => write!(f, "udp {} > {}", end(from, self.sport), end(to, self.dport)),
            6 => write!(f, "tcp {} > {}", end(from, self.sport), end(to, self.dport)),
            1 => write!(f, "icmp {from} > {to} {}", self.sport),
            58 => write!(f, "icmpv6 {from} > {to} {}", self.sport),
            other => write!(f, "protocol-{other} {from} > {to}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{
        arp_reply, arp_request, icmp_error, ip_protocol, neighbour_advertisement, neighbour_solicitation, ping, pong,
        raw,
    };
    use super::*;

    #[test]
    fn lines_name_protocol_ends_and_kind() {
        let query = udp("10.0.0.5:5353", "192.0.2.1:53").payload(b"x");
        let lines = [
            (query.clone(), "udp 10.0.0.5:5353 > 192.0.2.1:53"),
            (tcp("10.0.0.5:1", "192.0.2.1:2").flags("AS"), "tcp 10.0.0.5:1 > 192.0.2.1:2 SA"),
            (tcp("10.0.0.5:1", "192.0.2.1:2"), "tcp 10.0.0.5:1 > 192.0.2.1:2 -"),
            (ping("10.0.0.5", "192.0.2.1", 7), "icmp 10.0.0.5 > 192.0.2.1 echo-request 7"),
            (pong("10.0.0.5", "192.0.2.1", 7), "icmp 10.0.0.5 > 192.0.2.1 echo-reply 7"),
            (
                icmp_error("192.0.2.9", "10.0.0.5", 11, 0).about(&query.l3()),
                "icmp 192.0.2.9 > 10.0.0.5 11/0 about udp 10.0.0.5:5353 > 192.0.2.1:53",
            ),
            (arp_request("10.0.0.1", "10.0.0.5"), "arp who-has 10.0.0.1 tell 10.0.0.5"),
            (arp_reply("10.0.0.5", ("10.0.0.1", [2; 6])), "arp 10.0.0.5 is-at 02:00:0a:00:00:05"),
            (ip_protocol("10.0.0.5", "192.0.2.1", 47), "protocol-47 10.0.0.5 > 192.0.2.1"),
            (udp("10.0.0.5:1", "192.0.2.1:2").fragment(8, true), "fragment 10.0.0.5 > 192.0.2.1 4660+8"),
            (raw(0x88cc, &[0; 40]), "ethertype 0x88cc"),
            (udp("[2001:db8::5]:1", "[2001:db8:1::1]:2"), "udp [2001:db8::5]:1 > [2001:db8:1::1]:2"),
            (
                tcp("[2001:db8::5]:1", "[2001:db8:1::1]:2").flags("S").extension(60, b"abc"),
                "tcp [2001:db8::5]:1 > [2001:db8:1::1]:2 S",
            ),
            (ping("2001:db8::5", "2001:db8:1::1", 7), "icmpv6 2001:db8::5 > 2001:db8:1::1 echo-request 7"),
            (pong("2001:db8::5", "2001:db8:1::1", 7), "icmpv6 2001:db8::5 > 2001:db8:1::1 echo-reply 7"),
            (
                icmp_error("2001:db8::1", "2001:db8::5", 1, 4).about(&udp("[::5]:1", "[::6]:2").payload(b"12").l3()),
                "icmpv6 2001:db8::1 > 2001:db8::5 1/4 about udp [::5]:1 > [::6]:2",
            ),
            (ip_protocol("::5", "::6", 47), "protocol-47 ::5 > ::6"),
            (udp("[::5]:1", "[::6]:2").fragment(8, true), "fragment ::5 > ::6 4660+8"),
            (neighbour_solicitation("2001:db8::1", "2001:db8::5"), "nd who-has 2001:db8::1 tell 2001:db8::5"),
            (
                neighbour_advertisement("2001:db8::5", ("2001:db8::1", [2; 6])),
                "nd 2001:db8::5 is-at 02:00:00:00:00:05",
            ),
        ];
        for (packet, line) in lines {
            assert_eq!((packet.seen().to_string(), packet.seen().faults().len()), (line.to_owned(), 0));
        }
    }

    #[test]
    fn every_wrong_checksum_shows() {
        let good = tcp("10.0.0.5:1", "192.0.2.1:2").flags("S").payload_len(33);
        assert!(good.seen().faults().is_empty());
        assert_eq!(good.clone().bad_checksum().seen().faults(), ["tcp-checksum"]);
        assert_eq!(good.clone().bad_ip_checksum().seen().faults(), ["ip-checksum"]);
        assert_eq!(ping("10.0.0.5", "192.0.2.1", 7).bad_checksum().seen().faults(), ["icmp-checksum"]);
        let error = |l3: &[u8]| icmp_error("192.0.2.9", "10.0.0.5", 3, 1).about_whole(l3).seen().faults();
        assert!(error(&good.l3()).is_empty());
        assert_eq!(error(&good.clone().bad_checksum().l3()), ["quoted-checksum"]);
        assert_eq!(error(&good.bad_ip_checksum().l3()), ["quoted-ip-checksum"]);
        let good = tcp("[::5]:1", "[::6]:2").flags("S").payload_len(33).extension(43, &[0; 6]);
        assert!(good.seen().faults().is_empty());
        assert_eq!(good.clone().bad_checksum().seen().faults(), ["tcp-checksum"]);
        assert_eq!(ping("::5", "::6", 7).bad_checksum().seen().faults(), ["icmp-checksum"]);
        let error = |l3: &[u8]| icmp_error("::9", "::5", 1, 1).about_whole(l3).seen().faults();
        assert!(error(&good.l3()).is_empty());
        assert_eq!(error(&good.bad_checksum().l3()), ["quoted-checksum"]);
        let bare = udp("10.0.0.5:1", "192.0.2.1:2").no_checksum().seen();
        assert!(bare.faults().is_empty() && !bare.udp().has_checksum);
    }

    #[test]
    fn the_residue_of_a_short_quote_survives_a_right_translation_only() {
        let residue = |from: &str, id: u16| {
            let whole = udp(from, "192.0.2.1:53").payload(b"question").id(id).l3();
            icmp_error("192.0.2.1", "10.0.0.5", 3, 3).about(&whole).seen().quoted().residue
        };
        // The builder makes a right checksum for either, as translation does incrementally.
        assert_eq!(residue("10.0.0.5:5353", 1), residue("198.51.100.10:1024", 2));
        let untouched = udp("10.0.0.5:5353", "192.0.2.1:53").payload(b"question").l3();
        let mut half_done = untouched.clone();
        half_done[20] ^= 1;
        let of = |l3: &[u8]| icmp_error("192.0.2.1", "10.0.0.5", 3, 3).about(l3).seen().quoted().residue;
        assert_ne!(of(&untouched), of(&half_done));
    }

    #[test]
    fn padding_is_not_payload_and_tags_are_listed() {
        let seen = udp("10.0.0.5:1", "192.0.2.1:2").payload(b"ab").padding(&[7; 20]).vlan(0x6064).seen();
        assert_eq!((seen.payload(), seen.vlan(), seen.l3().len()), (&b"ab"[..], Some(100), 30));
        let double = ping("10.0.0.5", "192.0.2.1", 1).tag(ethertype::QINQ, 5).vlan(6).seen();
        assert_eq!((double.vlan(), double.tags.len()), (None, 2));
    }

    #[test]
    fn an_answer_goes_back() {
        let answer = udp("10.0.0.5:5353", "192.0.2.1:53").seen().answer();
        assert_eq!(answer.seen().to_string(), "udp 192.0.2.1:53 > 10.0.0.5:5353");
        let answer = ping("10.0.0.5", "192.0.2.1", 7).payload(b"abc").seen().answer().seen();
        assert_eq!(answer.to_string(), "icmp 192.0.2.1 > 10.0.0.5 echo-reply 7");
        assert_eq!(answer.payload(), b"abc");
        let answer = ping("::5", "::6", 7).payload(b"abc").seen().answer().seen();
        assert_eq!((answer.to_string().as_str(), answer.payload()), ("icmpv6 ::6 > ::5 echo-reply 7", &b"abc"[..]));
        assert_eq!(udp("[::5]:1", "[::6]:2").seen().answer().seen().ends().0.to_string(), "[::6]:2");
    }

    proptest! {
        #[test]
        fn no_frame_breaks_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..120), kind in 0..5_usize) {
            let mut frame = bytes;
            let kinds = [0x0800_u16, 0x0806, 0x8100, 0x86dd];
            if let (Some(slot), Some(kind)) = (frame.get_mut(12..14), kinds.get(kind)) {
                slot.copy_from_slice(&kind.to_be_bytes());
            }
            if let (3, Some(slot)) = (kind, frame.get_mut(14..22)) {
                slot.copy_from_slice(&[0x60, 0, 0, 0, 0, 60, [0, 43, 44, 58][usize::from(slot[0] & 3)], 64]);
            }
            let seen = Seen::of(0, frame);
            let _ = (seen.to_string(), seen.l3().len(), seen.vlan(), seen.is_neighbour_talk());
        }

        #[test]
        fn what_is_built_is_read(
            ports in any::<(u16, u16)>(), seq in any::<u32>(), ack in any::<u32>(), flags in any::<u8>(),
            window in any::<u16>(), ttl in any::<u8>(), payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let (from, to) = (format!("10.1.2.3:{}", ports.0), format!("192.0.2.9:{}", ports.1));
            let letters = tcp_flag_letters(flags).replace('-', "");
            let packet = tcp(&from, &to).flags(&letters).seq(seq).ack(ack).window(window).ttl(ttl).payload(&payload);
            let seen = packet.seen();
            prop_assert!(seen.faults().is_empty());
            prop_assert_eq!((seen.source().to_string(), seen.destination().to_string()), (from, to));
            let tcp = seen.tcp();
            prop_assert_eq!((tcp.seq, tcp.ack, tcp.flags, tcp.window, seen.ip().ttl), (seq, ack, flags, window, ttl));
            prop_assert_eq!(&tcp.payload, &payload);
        }
    }
}

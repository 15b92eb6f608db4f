//! Filters of `erhu conntrack`: the options of conntrack(8) that say which connections are meant.

use std::net::IpAddr;

use clap::{ArgAction, Args};
use erhu_planes::connections::{Connection, TCP_STATES, status};
use erhu_planes::program::Prefix;
use erhu_planes::tuple::{Tuple, proto};

use super::export::STATUS_NAMES;
use super::format::{has_ports, protocol_name, protocol_number};

/// Which connections are meant; all of it must hold.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Filters")]
pub struct Filter {
    /// Source of the original direction: address or prefix
    #[arg(short = 's', long = "orig-src", visible_alias = "src", value_name = "ADDRESS", value_parser = prefix)]
    pub orig_src: Option<Prefix>,
    /// Destination of the original direction
    #[arg(short = 'd', long = "orig-dst", visible_alias = "dst", value_name = "ADDRESS", value_parser = prefix)]
    pub orig_dst: Option<Prefix>,
    /// Source of the reply direction
    #[arg(short = 'r', long = "reply-src", value_name = "ADDRESS", value_parser = prefix)]
    pub reply_src: Option<Prefix>,
    /// Destination of the reply direction
    #[arg(short = 'q', long = "reply-dst", value_name = "ADDRESS", value_parser = prefix)]
    pub reply_dst: Option<Prefix>,
    /// Protocol: a name or a number
    #[arg(short = 'p', long = "proto", visible_alias = "protonum", value_parser = protocol)]
    pub proto: Option<u8>,
    /// Source port of the original direction
    #[arg(long = "orig-port-src", visible_alias = "sport", value_name = "PORT")]
    pub orig_port_src: Option<u16>,
    /// Destination port of the original direction
    #[arg(long = "orig-port-dst", visible_alias = "dport", value_name = "PORT")]
    pub orig_port_dst: Option<u16>,
    /// Source port of the reply direction
    #[arg(long = "reply-port-src", value_name = "PORT")]
    pub reply_port_src: Option<u16>,
    /// Destination port of the reply direction
    #[arg(long = "reply-port-dst", value_name = "PORT")]
    pub reply_port_dst: Option<u16>,
    /// ICMP type of the original direction
    #[arg(long = "icmp-type", alias = "icmpv6-type", value_name = "TYPE")]
    pub icmp_type: Option<u8>,
    /// ICMP code of the original direction
    #[arg(long = "icmp-code", alias = "icmpv6-code", value_name = "CODE")]
    pub icmp_code: Option<u8>,
    /// ICMP identifier of the original direction
    #[arg(long = "icmp-id", alias = "icmpv6-id", value_name = "ID")]
    pub icmp_id: Option<u16>,
    /// TCP state
    #[arg(long = "state", value_parser = tcp_state)]
    pub state: Option<u8>,
    /// Connection mark, of the bits in MASK
    #[arg(short = 'm', long = "mark", value_name = "MARK[/MASK]", value_parser = mark)]
    pub mark: Option<(u32, u32)>,
    /// Zone: with N ≠ 0 either tuple's, with 0 both in main
    #[arg(short = 'w', long = "zone", value_name = "N")]
    pub zone: Option<u16>,
    /// Zone of the original tuple
    #[arg(long = "orig-zone", value_name = "N")]
    pub orig_zone: Option<u16>,
    /// Zone of the reply tuple
    #[arg(long = "reply-zone", value_name = "N")]
    pub reply_zone: Option<u16>,
    /// All of these: ASSURED, SEEN_REPLY, EXPECTED, FIXED_TIMEOUT; or UNSET: none of them
    #[arg(short = 'u', long = "status", value_delimiter = ',', action = ArgAction::Append, value_parser = status_bit)]
    pub status: Vec<u32>,
    /// Source-translated, to this address if one is given
    #[arg(short = 'n', long = "src-nat", value_name = "ADDRESS", value_parser = prefix)]
    pub src_nat: Option<Option<Prefix>>,
    /// Destination-translated, to this address if one is given
    #[arg(short = 'g', long = "dst-nat", value_name = "ADDRESS", value_parser = prefix)]
    pub dst_nat: Option<Option<Prefix>>,
    /// Translated either way
    #[arg(short = 'j', long = "any-nat", value_name = "ADDRESS", value_parser = prefix)]
    pub any_nat: Option<Option<Prefix>>,
    /// Address family
    #[arg(short = 'f', long = "family")]
    pub family: Option<Family>,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

fn prefix(text: &str) -> Result<Prefix, String> {
    let bad = || format!("`{text}` is neither an address nor a prefix");
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length.parse::<u8>().map_err(|_| bad())?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let length = length.unwrap_or(if address.is_ipv4() { 32 } else { 128 });
    Prefix::new(address, length).ok_or_else(bad)
}

fn protocol(text: &str) -> Result<u8, String> {
    protocol_number(text).ok_or_else(|| format!("`{text}` is no protocol"))
}

fn tcp_state(text: &str) -> Result<u8, String> {
    // conntrack(8) has kept the old name of what is SYN_SENT2 today.
    let text = if text == "LISTEN" { "SYN_SENT2" } else { text };
    let found = TCP_STATES.iter().position(|name| *name == text).and_then(|n| u8::try_from(n).ok());
    found.ok_or_else(|| format!("`{text}` is no TCP state; there are {}", TCP_STATES.join(", ")))
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn mark(text: &str) -> Result<(u32, u32), String> {
    let (value, mask) = text.split_once('/').map_or((text, None), |(value, mask)| (value, Some(mask)));
    number(value)
        .zip(mask.map_or(Some(u32::MAX), number))
        .ok_or_else(|| format!("`{text}` is no mark: a number, or two with / between"))
}

fn status_bit(text: &str) -> Result<u32, String> {
    let upper = text.to_ascii_uppercase();
    if upper == "UNSET" {
        return Ok(0);
    }
    STATUS_NAMES.iter().find(|(name, _)| *name == upper).map(|(_, bit)| *bit).ok_or_else(|| {
        format!("`{text}` is no status; there are ASSURED, SEEN_REPLY, EXPECTED, FIXED_TIMEOUT, UNSET")
    })
}

fn inside(prefix: Option<Prefix>, address: IpAddr) -> bool {
    prefix.is_none_or(|p| p.contains(address))
}

fn equal<T: PartialEq>(wanted: Option<T>, found: T) -> bool {
    wanted.is_none_or(|w| w == found)
}

impl Filter {
    fn wants_ports(&self) -> bool {
        [self.orig_port_src, self.orig_port_dst, self.reply_port_src, self.reply_port_dst].iter().any(Option::is_some)
    }

    fn wants_icmp(&self) -> bool {
        self.icmp_type.is_some() || self.icmp_code.is_some() || self.icmp_id.is_some()
    }

    /// Whether nothing is asked for but perhaps a zone.
    pub fn is_zone_only(&self) -> bool {
        Self { zone: None, ..self.clone() } == Self::default()
    }

    /// Refuses options that the protocol asked for does not have.
    ///
    /// # Errors
    /// Which option does not go with which protocol.
    pub fn check(&self) -> Result<(), String> {
        let is_icmp = |p| p == proto::ICMP || p == proto::ICMPV6;
        let clash = |what: &str| {
            let protocol = self.proto.map_or("this", protocol_name);
            Err(format!("{what} cannot be matched with protocol {protocol}"))
        };
        if self.wants_ports() && (self.proto.is_some_and(|p| !has_ports(p)) || self.wants_icmp()) {
            return clash("ports");
        }
        if self.wants_icmp() && self.proto.is_some_and(|p| !is_icmp(p)) {
            return clash("ICMP type, code and id");
        }
        if self.state.is_some() && (self.proto.is_some_and(|p| p != proto::TCP) || self.wants_icmp()) {
            return clash("a TCP state");
        }
        Ok(())
    }

    /// Refuses what does not name one whole tuple.
    ///
    /// # Errors
    /// What is missing.
    pub fn check_names_a_tuple(&self) -> Result<(), &'static str> {
        let Some(protocol) = self.proto else { return Err("-p") };
        let original = self.orig_src.is_some() && self.orig_dst.is_some();
        let reply = self.reply_src.is_some() && self.reply_dst.is_some();
        if !original && !reply {
            return Err("-s and -d, or -r and -q");
        }
        if has_ports(protocol) {
            let whole = original && self.orig_port_src.is_some() && self.orig_port_dst.is_some()
                || reply && self.reply_port_src.is_some() && self.reply_port_dst.is_some();
            return if whole { Ok(()) } else { Err("both ports of the direction") };
        }
        if (protocol == proto::ICMP || protocol == proto::ICMPV6) && self.icmp_type.is_none() {
            return Err("--icmp-type");
        }
        Ok(())
    }

    /// Whether a connection is meant.
    pub fn matches(&self, connection: &Connection) -> bool {
        let (original, reply) = (&connection.original.tuple, &connection.reply.tuple);
        equal(self.proto, original.proto)
            && self.zones_match(original.zone, reply.zone)
            && self.family.is_none_or(|f| (f == Family::Ipv4) == original.src.is_ipv4())
            && inside(self.orig_src, original.src)
            && inside(self.orig_dst, original.dst)
            && inside(self.reply_src, reply.src)
            && inside(self.reply_dst, reply.dst)
            && (!self.wants_ports() || self.ports_match(original, reply))
            && (!self.wants_icmp() || self.icmp_matches(original))
            && self.state.is_none_or(|s| original.proto == proto::TCP && connection.state == s)
            && self.mark.is_none_or(|(value, mask)| connection.mark & mask == value)
            && self.status_matches(connection)
            && self.translation_matches(connection)
    }

    fn zones_match(&self, original: u16, reply: u16) -> bool {
        let zone = match self.zone {
            None => true,
            Some(0) => original == 0 && reply == 0,
            Some(zone) => original == zone || reply == zone,
        };
        zone && equal(self.orig_zone, original) && equal(self.reply_zone, reply)
    }

    fn ports_match(&self, original: &Tuple, reply: &Tuple) -> bool {
        has_ports(original.proto)
            && equal(self.orig_port_src, original.sport)
            && equal(self.orig_port_dst, original.dport)
            && equal(self.reply_port_src, reply.sport)
            && equal(self.reply_port_dst, reply.dport)
    }

    fn icmp_matches(&self, original: &Tuple) -> bool {
        original.is_icmp()
            && equal(self.icmp_type.map(u16::from), original.dport >> 8)
            && equal(self.icmp_code.map(u16::from), original.dport & 0xff)
            && equal(self.icmp_id, original.sport)
    }

    fn status_matches(&self, connection: &Connection) -> bool {
        let known = STATUS_NAMES.iter().fold(0, |all, (_, bit)| all | bit);
        self.status.iter().all(|bit| match bit {
            0 => connection.status & known == 0,
            bit => connection.has(*bit),
        })
    }

    fn translation_matches(&self, connection: &Connection) -> bool {
        let source = |to: Option<Prefix>| connection.has(status::SRC_NAT) && inside(to, connection.reply.tuple.dst);
        let destination =
            |to: Option<Prefix>| connection.has(status::DST_NAT) && inside(to, connection.reply.tuple.src);
        self.src_nat.is_none_or(source)
            && self.dst_nat.is_none_or(destination)
            && self.any_nat.is_none_or(|to| source(to) || destination(to))
    }
}

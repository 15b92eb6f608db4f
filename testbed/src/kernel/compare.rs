//! In what two routers differ, translated ports aside.
//!
//! What left is compared as text: side, protocol, ends, kind, TTL and payload; the table by tuples, zones, state,
//! status and time. The one external port that each connection was given is replaced by `*` on both sides, as the
//! routers may choose it differently.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::packet::read::{Content, Icmp, Seen, Upper};
use crate::scenario::{Entry, Side};

/// What one router did with one packet.
#[derive(Clone, Debug)]
pub struct Observed {
    /// What left.
    pub left: Vec<(Side, Seen)>,
    /// The connections afterwards.
    pub table: Vec<Entry>,
}

/// The differences, as text; none if the routers did the same. `external` are the addresses that connections are
/// translated to. Times may differ by a second.
pub fn differences(kernel: &Observed, erhu: &Observed, external: &[IpAddr]) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, kernel: BTreeSet<String>, erhu: BTreeSet<String>| {
        found.extend(kernel.difference(&erhu).map(|line| format!("{what}: only the kernel has {line}")));
        found.extend(erhu.difference(&kernel).map(|line| format!("{what}: only erhu has {line}")));
    };
    let left = |observed: &Observed| observed.left.iter().map(|(side, seen)| packet(*side, seen, external)).collect();
    compare("left", left(kernel), left(erhu));
    let table = |observed: &Observed| observed.table.iter().map(connection).collect();
    compare("table", table(kernel), table(erhu));
    if kernel.left.len() != erhu.left.len() {
        found.push(format!("left: {} packets from the kernel, {} from erhu", kernel.left.len(), erhu.left.len()));
    }
    if found.is_empty() {
        found.extend(kernel.table.iter().filter_map(|entry| time_difference(entry, &erhu.table)));
    }
    found
}

/// A packet without what may differ.
fn packet(side: Side, seen: &Seen, external: &[IpAddr]) -> String {
    let (ttl, tos) = match &seen.content {
        Content::Ip(ip) => (ip.ttl, ip.tos),
        Content::Ip6(ip) => (ip.hop_limit, ip.class),
        _ => (0, 0),
    };
    let is_query = matches!(seen.upper(), Upper::Icmp(icmp) if !icmp.is_error());
    let mut text = seen.to_string();
    // The source of what leaves translated, and the quoted source in an error about it.
    for address in external {
        text = without_number(&text, &before_port(*address));
        if is_query && seen.ends().0.ip() == *address {
            text = without_number(&text, "echo-request ");
        }
    }
    let made_here = matches!(seen.upper(), Upper::Icmp(icmp) if icmp.is_error()) && ttl == 64;
    // How much an error quotes is its maker's choice.
    let rest = if made_here { String::new() } else { format!(" payload {:?}", without_ends(seen)) };
    format!("{side:?} {text} ttl {ttl} tos {:#x}{rest}", if made_here { 0 } else { tos })
}

/// How lines write an address that a port follows.
fn before_port(address: IpAddr) -> String {
    SocketAddr::new(address, 0).to_string().trim_end_matches('0').to_owned()
}

/// The payload; of ICMP errors only its length, as addresses, ports and checksums in it are translated.
fn without_ends(seen: &Seen) -> Vec<u8> {
    match seen.upper() {
        Upper::Icmp(icmp @ Icmp { payload, .. }) if icmp.is_error() => payload.len().to_be_bytes().to_vec(),
        Upper::Udp(_) | Upper::Tcp(_) | Upper::Icmp(_) => seen.payload().to_vec(),
        _ => seen.l3().to_vec(),
    }
}

/// A text in which the number after each occurrence of `before` is `*`.
fn without_number(text: &str, before: &str) -> String {
    let mut parts = text.split(before);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(before);
        out.push('*');
        out.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    out
}

/// A connection without what may differ: time, mark, counters, id, external port.
fn connection(entry: &Entry) -> String {
    let mut entry = entry.clone();
    entry.mark = 0;
    let text = entry.to_string();
    if !entry.is_translated() && entry.original.src == entry.reply.dst {
        return text;
    }
    let reply = entry.reply.to_string();
    let number = entry.reply.dport.map_or_else(|| "#".to_owned(), |_| before_port(entry.reply.dst));
    text.replacen(&reply, &without_number(&reply, &number), 1)
}

fn time_difference(entry: &Entry, others: &[Entry]) -> Option<String> {
    let line = connection(entry);
    let other = others.iter().find(|e| connection(e) == line)?;
    let (kernel, erhu) = (entry.timeout?, other.timeout?);
    (kernel.abs_diff(erhu) > 1).then(|| format!("time of {line}: {kernel} s in the kernel, {erhu} s in erhu"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{icmp_error, udp};

    const OUTSIDE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 10));
    const WAN: Side = Side::untagged("wan");

    fn observed(from: &str, entry: &str) -> Observed {
        let left = vec![(WAN, udp(from, "192.0.2.1:53").payload(b"x").seen())];
        Observed { left, table: vec![Entry::parse(entry).unwrap()] }
    }

    fn line(port: u16, seconds: u32) -> String {
        format!(
            "udp 17 {seconds} src=10.0.0.5 dst=192.0.2.1 sport=5353 dport=53 zone-orig=1 [UNREPLIED] src=192.0.2.1 \
             dst=198.51.100.10 sport=53 dport={port} mark=0 use=1"
        )
    }

    #[test]
    fn external_ports_and_a_second_may_differ() {
        let kernel = observed("198.51.100.10:5353", &line(5353, 30));
        let erhu = observed("198.51.100.10:1024", &line(1024, 29));
        assert_eq!(differences(&kernel, &erhu, &[OUTSIDE]), Vec::<String>::new());
        let late = observed("198.51.100.10:1024", &line(1024, 120));
        assert!(differences(&kernel, &late, &[OUTSIDE])[0].contains("30 s in the kernel, 120 s"));
    }

    #[test]
    fn addresses_states_and_verdicts_may_not() {
        let kernel = observed("198.51.100.10:5353", &line(5353, 30));
        let untranslated = observed("10.0.0.5:5353", &line(5353, 30));
        assert_eq!(differences(&kernel, &untranslated, &[OUTSIDE]).len(), 2);
        let replied = observed("198.51.100.10:5353", &line(5353, 30).replace("[UNREPLIED] ", ""));
        assert_eq!(differences(&kernel, &replied, &[OUTSIDE]).len(), 2);
        let dropped = Observed { left: Vec::new(), ..kernel.clone() };
        assert_eq!(differences(&kernel, &dropped, &[OUTSIDE]).len(), 2);
    }

    #[test]
    fn external_ports_of_ipv6_may_differ_too() {
        let outside: IpAddr = "2001:db8::10".parse().unwrap();
        let observed = |port: u16| {
            let entry = format!(
                "ipv6 10 udp 17 30 src=fd00::5 dst=2001:db8:1::1 sport=5353 dport=53 [UNREPLIED] src=2001:db8:1::1 \
                 dst=2001:db8::10 sport=53 dport={port} mark=0 use=1"
            );
            let left = udp(&format!("[2001:db8::10]:{port}"), "[2001:db8:1::1]:53").payload(b"x").seen();
            Observed { left: vec![(WAN, left)], table: vec![Entry::parse(&entry).unwrap()] }
        };
        let found = differences(&observed(5353), &observed(1024), &[outside]);
        assert_eq!(found, Vec::<String>::new());
        assert_eq!(differences(&observed(5353), &observed(1024), &[OUTSIDE]).len(), 2);
    }

    #[test]
    fn quoted_external_ports_may_differ_too() {
        let error = |port: u16| {
            let quoted = udp(&format!("198.51.100.10:{port}"), "192.0.2.1:53").l3();
            packet(WAN, &icmp_error("192.0.2.9", "192.0.2.1", 11, 0).ttl(63).about(&quoted).seen(), &[OUTSIDE])
        };
        assert_eq!(error(5353), error(1024));
        assert!(error(1).contains("about udp 198.51.100.10:* > 192.0.2.1:53"), "{}", error(1));
    }
}

//! Programs in words: names instead of indices, as a script would write them.

use std::fmt::Write;
use std::net::IpAddr;

use erhu_planes::program::{
    Action, AddressRange, Behaviour, DestinationChoice, Dnat, Encapsulation, Hook, MatchKey, PolicyVerdict,
    PortRange, Prefix, Program, RejectKind, RouteTarget, Rule, SourceChoice, Tracking,
};
use erhu_planes::timeouts::{TimeoutKey, UdpRefresh};

use super::Properties;
use crate::script::{direction_names, protocol_name, state_names, status_names};

pub fn zones(p: &Program) -> Vec<(String, Properties)> {
    let timeout = |index: u16| p.timeouts.get(usize::from(index)).map_or("?", |t| &t.name).to_owned();
    let tracking = |tracking: Tracking| match tracking {
        Tracking::Strict => "strict",
        Tracking::Loose => "loose",
        Tracking::Liberal => "liberal",
        Tracking::Asymmetric => "asymmetric",
    };
    let describe = |zone: &erhu_planes::program::Zone| {
        vec![
            ("id", zone.id.to_string()),
            ("limit", optional(zone.limit)),
            ("rate", optional(zone.rate)),
            ("reserve", zone.reserve.to_string()),
            ("tracking", tracking(zone.tracking).into()),
            ("timeout", timeout(zone.timeout)),
        ]
    };
    p.zones.iter().map(|zone| (zone.name.clone(), describe(zone))).collect()
}

pub fn interfaces(p: &Program) -> Vec<(String, Properties)> {
    let describe = |interface: &erhu_planes::program::Interface| {
        vec![
            (
                "port",
                match interface.encapsulation {
                    Encapsulation::Link(peer) => format!("link to {}", self::interface(p, peer)),
                    _ => interface.port.clone(),
                },
            ),
            (
                "vlan",
                match interface.encapsulation {
                    Encapsulation::Untagged | Encapsulation::Link(_) => "none".into(),
                    Encapsulation::Vlan(tag) => tag.to_string(),
                },
            ),
            ("zone", zone(p, interface.zone).into()),
            ("address", some(interface.addresses.iter().map(|a| format!("{}/{}", a.address, a.length)))),
            ("mtu", interface.mtu.to_string()),
            ("mac", interface.mac.map_or_else(|| "none".into(), mac)),
            ("proxy_arp", interface.proxy_arp.to_string()),
        ]
    };
    p.interfaces.iter().map(|i| (i.name.clone(), describe(i))).collect()
}

pub fn routes(p: &Program) -> Vec<String> {
    let describe = |route: &erhu_planes::program::Route| {
        let Prefix { network, length } = route.prefix;
        let target = match &route.target {
            RouteTarget::Via(hop) => format!("via {hop}"),
            RouteTarget::Interface(index) => format!("interface {}", interface(p, *index)),
            RouteTarget::Zone(id) => format!("zone {}", zone(p, *id)),
            RouteTarget::Blackhole => "blackhole".into(),
        };
        let metric = if route.metric == 0 { String::new() } else { format!(" metric {}", route.metric) };
        format!("route {} {network}/{length} {target}{metric}", zone(p, route.zone))
    };
    p.routes.iter().map(describe).collect()
}

pub fn neighbours(p: &Program) -> Vec<String> {
    let all = p.neighbours.iter();
    all.map(|n| format!("neighbour {} {} {}", interface(p, n.interface), n.address, mac(n.mac))).collect()
}

pub fn pools(p: &Program) -> Vec<(String, Properties)> {
    let behaviour = |behaviour: Behaviour| match behaviour {
        Behaviour::EndpointIndependent => "endpoint_independent",
        Behaviour::AddressDependent => "address_dependent",
        Behaviour::AddressPortDependent => "address_port_dependent",
    };
    let describe = |pool: &erhu_planes::program::Pool| {
        vec![
            ("addresses", some(pool.addresses.iter().map(range))),
            ("ports", ports(&pool.ports)),
            ("zone", zone(p, pool.zone).into()),
            ("mapping", behaviour(pool.mapping).into()),
            ("filtering", behaviour(pool.filtering).into()),
            ("preserve_port", pool.preserve_port.to_string()),
            ("parity", pool.parity.to_string()),
            ("pairing", if pool.paired { "paired" } else { "arbitrary" }.into()),
            ("reuse_delay", format!("{} ms", pool.reuse_delay_ms)),
            ("hairpin", pool.hairpin.to_string()),
        ]
    };
    p.pools.iter().map(|pool| (pool.name.clone(), describe(pool))).collect()
}

pub fn timeouts(p: &Program) -> Vec<(String, Properties)> {
    let describe = |policy: &erhu_planes::program::TimeoutPolicy| {
        let value = |key: TimeoutKey| policy.values.iter().find(|(k, _)| *k == key).map(|(_, ms)| format!("{ms} ms"));
        let mut all: Properties =
            TimeoutKey::ALL.iter().map(|key| (key.name(), value(*key).unwrap_or_else(|| "none".into()))).collect();
        let refresh = policy.udp_refresh.map_or("none", |refresh| match refresh {
            UdpRefresh::Any => "any",
            UdpRefresh::Replied => "replied",
        });
        all.push(("udp_refresh", refresh.into()));
        all
    };
    p.timeouts.iter().map(|t| (t.name.clone(), describe(t))).collect()
}

pub fn verdicts(p: &Program, hook: Hook) -> Vec<(String, Properties)> {
    let Some(rules) = p.hooks.get(hook.index()) else { return Vec::new() };
    let text = |verdict: PolicyVerdict| {
        let name = match verdict {
            PolicyVerdict::Accept => "accept",
            PolicyVerdict::Drop => "drop",
            PolicyVerdict::Reject => "reject",
        };
        vec![("verdict", name.to_owned())]
    };
    let own = rules.zone_policies.iter();
    let own = own.map(|(id, verdict)| (format!("{} of zone {}", hook.name(), zone(p, *id)), text(*verdict)));
    std::iter::once((hook.name().to_owned(), text(rules.policy))).chain(own).collect()
}

/// A rule as a script would write it, without the hook: `#{ zone: "blue", dport: 25 }, drop`.
pub fn rule_text(p: &Program, rule: &Rule) -> String {
    let matches: Vec<String> = rule
        .matches
        .iter()
        .map(|m| {
            let (key, value) = condition(p, &m.key);
            if m.negated { format!("{key}: not({value})") } else { format!("{key}: {value}") }
        })
        .collect();
    let actions: Vec<String> = rule.actions.iter().map(|action| self::action(p, action)).collect();
    let matches = if matches.is_empty() { "#{}".into() } else { format!("#{{ {} }}", matches.join(", ")) };
    match actions.as_slice() {
        [one] => format!("{matches}, {one}"),
        many => format!("{matches}, [{}]", many.join(", ")),
    }
}

fn condition(p: &Program, key: &MatchKey) -> (&'static str, String) {
    let interfaces = |v: &[u16]| array(v.iter().map(|i| quoted(interface(p, *i))));
    let zones = |v: &[u16]| array(v.iter().map(|id| quoted(zone(p, *id))));
    let addresses = |v: &[AddressRange]| array(v.iter().map(|r| quoted(&range(r))));
    let numbers = |v: &[PortRange]| {
        array(v.iter().map(|r| if r.first == r.last { r.first.to_string() } else { quoted(&ports(r)) }))
    };
    match key {
        MatchKey::Ingress(v) => ("ingress", interfaces(v)),
        MatchKey::Egress(v) => ("egress", interfaces(v)),
        MatchKey::Zone(v) => ("zone", zones(v)),
        MatchKey::EgressZone(v) => ("egress_zone", zones(v)),
        MatchKey::Source(v) => ("src", addresses(v)),
        MatchKey::Destination(v) => ("dst", addresses(v)),
        MatchKey::Protocol(v) => {
            let name = |number: u8| protocol_name(number).map_or_else(|| number.to_string(), quoted);
            ("proto", array(v.iter().map(|number| name(*number))))
        }
        MatchKey::SourcePort(v) => ("sport", numbers(v)),
        MatchKey::DestinationPort(v) => ("dport", numbers(v)),
        MatchKey::IcmpType(v) => ("icmp_type", numbers(v)),
        MatchKey::IcmpCode(v) => ("icmp_code", numbers(v)),
        MatchKey::State(bits) => ("state", array(state_names(*bits).map(quoted))),
        MatchKey::Status(bits) => ("status", array(status_names(*bits).map(quoted))),
        MatchKey::Direction(bits) => ("direction", array(direction_names(*bits).map(quoted))),
        MatchKey::Mark(v) => {
            let text = |(mark, mask): &(u32, u32)| match *mask {
                u32::MAX => mark.to_string(),
                mask => quoted(&format!("{mark:#x}/{mask:#x}")),
            };
            ("mark", array(v.iter().map(text)))
        }
    }
}

fn action(p: &Program, action: &Action) -> String {
    let chain = |index: u16| p.chains.get(usize::from(index)).map_or("?", |chain| &chain.name);
    let mut options: Vec<String> = Vec::new();
    let name = match action {
        Action::Accept => return "accept".into(),
        Action::Drop => return "drop".into(),
        Action::Reject(kind) => {
            let kind = match kind {
                RejectKind::Default => return "reject".into(),
                RejectKind::Admin => "admin",
                RejectKind::Host => "host",
                RejectKind::Net => "net",
                RejectKind::Port => "port",
                RejectKind::Reset => "reset",
            };
            return format!("reject(\"{kind}\")");
        }
        Action::Notrack => return "notrack".into(),
        Action::Jump(index) => return format!("jump({})", quoted(chain(*index))),
        Action::GoTo(index) => return format!("go_to({})", quoted(chain(*index))),
        Action::Return => return "return_()".into(),
        Action::Mark(mark) => return format!("mark({mark})"),
        Action::ConnMark(mark) => return format!("connmark({mark})"),
        Action::Netmap(Prefix { network, length }) => {
            return format!("netmap({})", quoted(&format!("{network}/{length}")));
        }
        Action::Count(index) => {
            return format!("count({})", quoted(p.counters.get(usize::from(*index)).map_or("?", String::as_str)));
        }
        Action::Continue => return "continue_".into(),
        Action::Snat(snat) => {
            options.push(match &snat.source {
                SourceChoice::Pool(index) => {
                    format!("pool: {}", quoted(p.pools.get(usize::from(*index)).map_or("?", |pool| &pool.name)))
                }
                SourceChoice::To(ranges) => format!("to: {}", array(ranges.iter().map(|r| quoted(&range(r))))),
            });
            translation(&mut options, snat.ports.as_ref(), snat.random);
            if snat.persistent {
                options.push("persistent: true".into());
            }
            "snat"
        }
        Action::Masquerade { ports, random } => {
            translation(&mut options, ports.as_ref(), *random);
            "masquerade"
        }
        Action::Dnat(Dnat { destination: DestinationChoice::Ingress, ports, .. }) => {
            let text = |r: &PortRange| if r.first == r.last { r.first.to_string() } else { quoted(&self::ports(r)) };
            let port = ports.as_ref().map_or_else(String::new, text);
            return format!("redirect({port})");
        }
        Action::Dnat(dnat) => {
            if let DestinationChoice::To(ranges) = &dnat.destination {
                options.push(format!("to: {}", array(ranges.iter().map(|r| quoted(&range(r))))));
            }
            options.extend(dnat.zone.map(|id| format!("zone: {}", quoted(zone(p, id)))));
            translation(&mut options, dnat.ports.as_ref(), dnat.random);
            if dnat.persistent {
                options.push("persistent: true".into());
            }
            "dnat"
        }
    };
    if options.is_empty() { name.into() } else { format!("{name}(#{{ {} }})", options.join(", ")) }
}

fn translation(options: &mut Vec<String>, given: Option<&PortRange>, random: bool) {
    options.extend(given.map(|range| format!("ports: {}", quoted(&ports(range)))));
    if random {
        options.push("random: true".into());
    }
}

fn zone(p: &Program, id: u16) -> &str {
    p.zone(id).map_or("?", |zone| &zone.name)
}

fn interface(p: &Program, index: u16) -> &str {
    p.interfaces.get(usize::from(index)).map_or("?", |interface| &interface.name)
}

fn optional(number: Option<u32>) -> String {
    number.map_or_else(|| "none".into(), |number| number.to_string())
}

fn some(items: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = items.collect();
    if all.is_empty() { "none".into() } else { all.join(" ") }
}

fn array(items: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = items.collect();
    match all.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn ports(range: &PortRange) -> String {
    format!("{}-{}", range.first, range.last)
}

fn mac(bytes: [u8; 6]) -> String {
    let mut text = String::with_capacity(17);
    for (index, byte) in bytes.iter().enumerate() {
        let colon = if index == 0 { "" } else { ":" };
        // Writing to a string cannot fail.
        let _ = write!(text, "{colon}{byte:02x}");
    }
    text
}

/// An address, a prefix where it is one, else a range.
fn range(range: &AddressRange) -> String {
    if range.first == range.last {
        return range.first.to_string();
    }
    let length = match (range.first, range.last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u32::from(a) ^ u32::from(b)).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b)).leading_zeros(),
        _ => 0,
    };
    let prefix = u8::try_from(length).ok().and_then(|length| Prefix::new(range.first, length));
    match prefix.filter(|prefix| crate::script::whole(*prefix) == *range) {
        Some(Prefix { network, length }) => format!("{network}/{length}"),
        None => format!("{}-{}", range.first, range.last),
    }
}

//! Declarations: zones, interfaces, routes, neighbours, pools, timeouts, chains, policies.

use std::net::IpAddr;

use erhu_planes::program::{Behaviour, Encapsulation, Hook, PolicyVerdict, PortRange, RejectKind, Tracking};
use erhu_planes::timeouts::{TimeoutKey, UdpRefresh};
use rhai::{Array, Dynamic};

use super::Call;
use crate::policy::{
    ActionKind, Chain, DEFAULT, HookVerdict, Interface, Kind, MAIN, Neighbour, Pool, Route, RouteTarget,
    TimeoutPolicy, Zone,
};
use crate::script::options::Options;
use crate::script::values::{
    Parsed, ScriptAction, any_of, choice, duration, expected, flag, given_ports, host, host_range, interface_address,
    mac, name, number, prefix, short, string,
};

const TRACKING: &[(&str, Tracking)] = &[
    ("strict", Tracking::Strict),
    ("loose", Tracking::Loose),
    ("liberal", Tracking::Liberal),
    ("asymmetric", Tracking::Asymmetric),
];

const BEHAVIOURS: &[(&str, Behaviour)] = &[
    ("endpoint_independent", Behaviour::EndpointIndependent),
    ("address_dependent", Behaviour::AddressDependent),
    ("address_port_dependent", Behaviour::AddressPortDependent),
];

/// Timeout keys of protocols and features that do not exist yet.
const LATER_TIMEOUTS: &[&str] = &[
    "sctp_closed",
    "sctp_cookie_wait",
    "sctp_cookie_echoed",
    "sctp_established",
    "sctp_shutdown_sent",
    "sctp_shutdown_recd",
    "sctp_shutdown_ack_sent",
    "sctp_heartbeat_sent",
    "dccp_request",
    "dccp_respond",
    "dccp_partopen",
    "dccp_open",
    "dccp_closereq",
    "dccp_closing",
    "dccp_timewait",
    "fragment_v4",
    "fragment_v6",
];

const TIMEOUTS: &[&str] = &[
    "tcp_syn_sent",
    "tcp_syn_recv",
    "tcp_established",
    "tcp_fin_wait",
    "tcp_close_wait",
    "tcp_last_ack",
    "tcp_time_wait",
    "tcp_close",
    "tcp_syn_sent2",
    "tcp_max_retrans",
    "tcp_unacknowledged",
    "udp",
    "udp_stream",
    "udp_refresh",
    "icmp",
    "icmpv6",
    "gre",
    "gre_stream",
    "generic",
];

/// Largest packet of a link: as large as any interface can have it.
const LINK_MTU: u16 = 9216;

/// The name in the first argument.
fn named(call: &Call) -> Option<String> {
    call.argument(0, "name", name)
}

/// Remembers a name whose declaration had an error, so that uses of it are not reported too.
fn broken(call: &Call, kind: Kind, name: Option<String>) {
    if let Some(name) = name {
        call.session.state().policy.broken.insert((kind, name));
    }
}

/// Options of an argument that exists.
fn options<'c>(
    call: &'c Call<'c>,
    index: usize,
    known: &'static [&'static str],
    later: &[&'static str],
) -> Options<'c> {
    Options::new(call, call.arguments.get(index).unwrap_or(&Dynamic::UNIT), known, later)
}

pub fn zone(call: &Call) -> Dynamic {
    let name = named(call);
    let known = &["id", "limit", "reserve", "rate", "tracking", "timeout"];
    let options = options(call, 1, known, &["pps", "bps", "ports_per_host"]);
    let is_main = name.as_deref() == Some(MAIN);
    let id = if is_main {
        if options.has("id") {
            options.refuse(Some("id"), "zone `main` always has id 0".into());
        }
        Some(0)
    } else {
        options.required("id", |v| short(v, 1, u16::MAX))
    };
    let limit = options.get("limit", |v| number(v, 0, u32::MAX));
    let reserve = options.get("reserve", |v| number(v, 0, u32::MAX)).unwrap_or(0);
    if let Some(limit) = limit
        && reserve > limit
    {
        options.refuse(Some("reserve"), format!("{reserve} is more than the limit of {limit}").into());
    }
    let rate = options.get("rate", |v| number(v, 1, u32::MAX));
    let tracking = options.get("tracking", |v| choice(v, TRACKING)).unwrap_or_default();
    let timeout = options.get("timeout", crate::script::values::name);
    match (name, id) {
        (Some(name), Some(id)) if !options.failed() => {
            let zone = Zone { at: call.at, name, id, limit, reserve, rate, tracking, timeout };
            call.session.state().policy.zones.push(zone);
        }
        (name, _) => broken(call, Kind::Zone, name),
    }
    Dynamic::UNIT
}

pub fn interface(call: &Call) -> Dynamic {
    const TUNNELS: [&str; 5] = ["vxlan", "geneve", "gre", "gretap", "ipip"];
    let name = named(call);
    let known = &["port", "vlan", "zone", "address", "mtu", "mac", "proxy_arp"];
    let later = &["qinq", "vxlan", "geneve", "gre", "gretap", "ipip", "rpf"];
    let options = options(call, 1, known, later);
    let port = if TUNNELS.iter().any(|tunnel| options.has(tunnel)) {
        options.get("port", crate::script::values::name)
    } else {
        options.required("port", crate::script::values::name)
    };
    let vlan = options.get("vlan", |v| short(v, 1, 4094));
    let zone = options.get("zone", crate::script::values::name).unwrap_or_else(|| MAIN.into());
    let addresses = options.get("address", |value| {
        if value.read_lock::<Array>().is_some_and(|array| array.is_empty()) {
            Ok(Vec::new())
        } else {
            any_of(value, interface_address)
        }
    });
    let mtu = options.get("mtu", |v| short(v, 576, 9216)).unwrap_or(1500);
    let mac = options.get("mac", mac);
    let proxy_arp = options.get("proxy_arp", flag).unwrap_or(false);
    match (name, port) {
        (Some(name), Some(port)) if !options.failed() => {
            let interface = Interface {
                at: call.at,
                name,
                port,
                peer: None,
                encapsulation: vlan.map_or(Encapsulation::Untagged, Encapsulation::Vlan),
                zone,
                addresses: addresses.unwrap_or_default(),
                mtu,
                mac,
                proxy_arp,
            };
            call.session.state().policy.interfaces.push(interface);
        }
        (name, _) => broken(call, Kind::Interface, name),
    }
    Dynamic::UNIT
}

pub fn link(call: &Call) -> Dynamic {
    let (a, b) = (call.argument(0, "a", name), call.argument(1, "b", name));
    let options = options(call, 2, &["zones", "addresses"], &[]);
    let zones = options.required("zones", |value| two(value, name));
    let addresses = options.get("addresses", |value| two(value, |end| any_of(end, interface_address)));
    if let Some([first, second]) = &zones
        && first == second
    {
        options.refuse(Some("zones"), format!("both ends are in zone `{first}`").into());
    }
    let (Some(first), Some(second), Some(zones), false) = (&a, &b, &zones, options.failed()) else {
        broken(call, Kind::Interface, a);
        broken(call, Kind::Interface, b);
        return Dynamic::UNIT;
    };
    for (at, (name, peer)) in [(first, second), (second, first)].into_iter().enumerate() {
        call.session.state().policy.interfaces.push(Interface {
            at: call.at,
            name: name.clone(),
            port: String::new(),
            peer: Some(peer.clone()),
            encapsulation: Encapsulation::Untagged,
            zone: zones[at].clone(),
            addresses: addresses.as_ref().map_or_else(Vec::new, |both| both[at].clone()),
            mtu: LINK_MTU,
            mac: None,
            proxy_arp: false,
        });
    }
    Dynamic::UNIT
}

/// An array with one value for each end of a link.
fn two<T>(value: &Dynamic, one: impl Fn(&Dynamic) -> Parsed<T>) -> Parsed<[T; 2]> {
    match value.read_lock::<Array>().as_deref().map(Vec::as_slice) {
        Some([first, second]) => Ok([one(first)?, one(second)?]),
        _ => Err(expected("an array of two, one for each end of the link", value)),
    }
}

pub fn route(call: &Call) -> Dynamic {
    let zone = call.argument(0, "zone", name);
    let prefix = call.argument(1, "prefix", prefix);
    let options = options(call, 2, &["via", "interface", "zone", "blackhole", "metric"], &[]);
    let target = match options.one_of(&["via", "interface", "zone", "blackhole"]) {
        Some(key @ "via") => options.get(key, host).map(RouteTarget::Via),
        Some(key @ "interface") => options.get(key, name).map(RouteTarget::Interface),
        Some(key @ "zone") => options.get(key, name).map(RouteTarget::Zone),
        Some(key) => options.get(key, |value| match flag(value) {
            Ok(true) => Ok(RouteTarget::Blackhole),
            Ok(false) => Err("a route that is no black hole leaves the key out".into()),
            Err(problem) => Err(problem),
        }),
        None => None,
    };
    let metric = options.get("metric", |v| number(v, 0, u32::MAX)).unwrap_or(0);
    if let (Some(prefix), Some(RouteTarget::Via(hop))) = (&prefix, &target)
        && prefix.network.is_ipv4() != hop.is_ipv4()
    {
        let of = |address: IpAddr| if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let message = format!("{hop} is an {} address, the prefix is {}", of(*hop), of(prefix.network));
        options.refuse(Some("via"), message.into());
    }
    if let (Some(zone), Some(prefix), Some(target), false) = (zone, prefix, target, options.failed()) {
        call.session.state().policy.routes.push(Route { at: call.at, zone, prefix, target, metric });
    }
    Dynamic::UNIT
}

pub fn neighbour(call: &Call) -> Dynamic {
    let interface = call.argument(0, "interface", name);
    let address = call.argument(1, "ip", host);
    let mac = call.argument(2, "mac", mac);
    if let (Some(interface), Some(address), Some(mac)) = (interface, address, mac) {
        call.session.state().policy.neighbours.push(Neighbour { at: call.at, interface, address, mac });
    }
    Dynamic::UNIT
}

pub fn pool(call: &Call) -> Dynamic {
    let name = named(call);
    let known = &[
        "addresses",
        "ports",
        "mapping",
        "filtering",
        "preserve_port",
        "parity",
        "reuse_delay",
        "pairing",
        "hairpin",
        "zone",
    ];
    let options = options(call, 1, known, &["block", "blocks_per_host", "deterministic"]);
    let addresses = options.required("addresses", |value| {
        let ranges = any_of(value, host_range)?;
        let count = ranges.iter().map(erhu_planes::program::AddressRange::count).fold(0, u64::saturating_add);
        let most = erhu_planes::program::limits::POOL_ADDRESSES;
        if count > most { Err(format!("{count} addresses are more than {most}").into()) } else { Ok(ranges) }
    });
    let ports = options.get("ports", given_ports).unwrap_or(PortRange { first: 1024, last: u16::MAX });
    let mapping = options.get("mapping", |v| choice(v, BEHAVIOURS)).unwrap_or(Behaviour::EndpointIndependent);
    let filtering = options.get("filtering", |v| choice(v, BEHAVIOURS)).unwrap_or(Behaviour::AddressPortDependent);
    let preserve_port = options.get("preserve_port", flag).unwrap_or(true);
    let parity = options.get("parity", flag).unwrap_or(true);
    let paired = options.get("pairing", |v| choice(v, &[("paired", true), ("arbitrary", false)])).unwrap_or(true);
    // RFC 6888 REQ-8: strangers must not reach the next owner of a port that was open to all.
    let rest = if filtering == Behaviour::EndpointIndependent { 120_000 } else { 0 };
    let reuse_delay_ms = options.get("reuse_delay", duration).unwrap_or(rest);
    let hairpin = options.get("hairpin", flag).unwrap_or(true);
    let zone = options.get("zone", crate::script::values::name).unwrap_or_else(|| MAIN.into());
    match (name, addresses) {
        (Some(name), Some(addresses)) if !options.failed() => {
            let pool = Pool {
                at: call.at,
                name,
                addresses,
                ports,
                mapping,
                filtering,
                preserve_port,
                parity,
                paired,
                reuse_delay_ms,
                hairpin,
                zone,
            };
            call.session.state().policy.pools.push(pool);
        }
        (name, _) => broken(call, Kind::Pool, name),
    }
    Dynamic::UNIT
}

pub fn timeout(call: &Call) -> Dynamic {
    let name = named(call);
    let options = options(call, 1, TIMEOUTS, LATER_TIMEOUTS);
    let mut values = Vec::new();
    for key in TimeoutKey::ALL.iter().filter(|key| TIMEOUTS.contains(&key.name())) {
        let value = options.get(key.name(), |value| match duration(value)? {
            0 => Err("a timeout of 0 would end every connection at once".into()),
            ms => Ok(ms),
        });
        values.extend(value.map(|ms| (*key, ms)));
    }
    let refresh = [("any", UdpRefresh::Any), ("replied", UdpRefresh::Replied)];
    let udp_refresh = options.get("udp_refresh", |v| choice(v, &refresh));
    match name {
        Some(name) if !options.failed() => {
            let policy = TimeoutPolicy { at: call.at, name, values, udp_refresh };
            call.session.state().policy.timeouts.push(policy);
        }
        name => broken(call, Kind::Timeout, name.filter(|name| name != DEFAULT)),
    }
    Dynamic::UNIT
}

pub fn chain(call: &Call) -> Dynamic {
    if let Some(name) = named(call) {
        call.session.state().policy.chains.push(Chain { at: call.at, name });
    }
    Dynamic::UNIT
}

pub fn policy(call: &Call) -> Dynamic {
    let hooks = Hook::ALL.map(|hook| (hook.name(), hook));
    let hook = call.argument(0, "hook", |value| match choice(value, &hooks)? {
        hook @ (Hook::Input | Hook::Forward | Hook::Output) => Ok(hook),
        hook => Err(format!("{} has no policy, only input, forward and output have one", hook.name()).into()),
    });
    let last = call.arguments.len() - 1;
    let zone = if last == 2 { call.argument(1, "zone", name) } else { None };
    let verdict = call.argument(last, "verdict", verdict);
    if let (Some(hook), Some(verdict)) = (hook, verdict)
        && zone.is_some() == (last == 2)
    {
        call.session.state().policy.verdicts.push(HookVerdict { at: call.at, hook, zone, verdict });
    }
    Dynamic::UNIT
}

fn verdict(value: &Dynamic) -> Parsed<PolicyVerdict> {
    let what = "accept, drop or reject";
    let action = value.read_lock::<ScriptAction>().ok_or_else(|| match string(value, what) {
        Ok(text) if ["accept", "drop", "reject"].contains(&text.as_str()) => {
            format!("{text} is a constant, write it without quotes").into()
        }
        _ => expected(what, value),
    })?;
    match action.0.kind {
        ActionKind::Accept => Ok(PolicyVerdict::Accept),
        ActionKind::Drop => Ok(PolicyVerdict::Drop),
        ActionKind::Reject(RejectKind::Default) => Ok(PolicyVerdict::Reject),
        ActionKind::Reject(_) => Err("a policy is plain reject; a last rule can choose the answer".into()),
        _ => Err(expected(what, value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_timeout_key_is_known_or_refused_by_name() {
        for key in TimeoutKey::ALL {
            assert!(TIMEOUTS.contains(&key.name()) != LATER_TIMEOUTS.contains(&key.name()), "{}", key.name());
        }
        let known = TimeoutKey::ALL.iter().filter(|key| TIMEOUTS.contains(&key.name())).count();
        assert_eq!(TIMEOUTS.len(), known + 1, "all but udp_refresh are durations");
    }
}

//! Declarations that exclude each other.

use std::collections::HashMap;
use std::fmt::Write;
use std::hash::Hash;
use std::net::IpAddr;

use erhu_planes::program::{AddressRange, Encapsulation, Position, Prefix};

use crate::policy::{MAIN, Policy, Pool};
use crate::script::Fault;

/// What appears again, where, and where it was first.
pub fn repeated<K: Hash + Eq + Clone>(
    all: impl Iterator<Item = (K, Position)>,
) -> impl Iterator<Item = (K, Position, Position)> {
    let mut first: HashMap<K, Position> = HashMap::new();
    all.filter_map(move |(key, at)| match first.get(&key) {
        Some(before) => Some((key, at, *before)),
        None => {
            first.insert(key, at);
            None
        }
    })
}

/// Finds all of them; names are compared elsewhere.
pub fn find(policy: &Policy, faults: &mut Vec<Fault>) {
    zone_ids(policy, faults);
    tags(policy, faults);
    addresses(policy, faults);
    routes(policy, faults);
    neighbours(policy, faults);
    pools(policy, faults);
    verdicts(policy, faults);
}

fn zone_ids(policy: &Policy, faults: &mut Vec<Fault>) {
    let mut first: HashMap<u16, &str> = HashMap::new();
    for zone in policy.zones.iter().filter(|zone| zone.name != MAIN) {
        match first.get(&zone.id) {
            Some(other) if *other != zone.name => {
                faults.push(Fault::new(zone.at, "zone", format!("id: {} is the id of zone `{other}`", zone.id)));
            }
            Some(_) => {}
            None => {
                first.insert(zone.id, &zone.name);
            }
        }
    }
}

fn tags(policy: &Policy, faults: &mut Vec<Fault>) {
    let mut first: HashMap<(&str, Encapsulation), &str> = HashMap::new();
    for interface in policy.interfaces.iter().filter(|i| i.peer.is_none()) {
        let port = interface.port.as_str();
        match first.get(&(port, interface.encapsulation)) {
            Some(other) if *other != interface.name => {
                let message = match interface.encapsulation {
                    Encapsulation::Vlan(tag) => {
                        format!("vlan: interface `{other}` has VLAN {tag} of port `{port}` already")
                    }
                    _ => format!("port: interface `{other}` is untagged on `{port}` already"),
                };
                faults.push(Fault::new(interface.at, "interface", message));
            }
            Some(_) => {}
            None => {
                first.insert((port, interface.encapsulation), &interface.name);
            }
        }
    }
}

/// In one zone an address belongs to one interface, and a connected prefix too: a packet to it has one way to go.
fn addresses(policy: &Policy, faults: &mut Vec<Fault>) {
    let mut owners: HashMap<(&str, IpAddr), usize> = HashMap::new();
    let mut prefixes: HashMap<(&str, Prefix), usize> = HashMap::new();
    for (index, interface) in policy.interfaces.iter().enumerate() {
        let zone = interface.zone.as_str();
        let mut say = |message: String| faults.push(Fault::new(interface.at, interface.function(), message));
        for own in &interface.addresses {
            if let Some(other) = owners.insert((zone, own.address), index) {
                let other = &policy.interfaces[other].name;
                say(format!(
                    "address: {} is an address of interface `{other}` in zone `{zone}` already",
                    own.address
                ));
                continue;
            }
            let Some(prefix) = Prefix::new(own.address, own.length) else { continue };
            if let Some(other) = prefixes.insert((zone, prefix), index)
                && other != index
            {
                let Prefix { network, length } = prefix;
                let other = &policy.interfaces[other].name;
                say(format!("address: {network}/{length} is connected to `{other}` in zone `{zone}` already"));
            }
        }
    }
}

fn routes(policy: &Policy, faults: &mut Vec<Fault>) {
    let all = policy.routes.iter().map(|r| ((&r.zone, r.prefix, &r.target, r.metric), r.at));
    faults.extend(repeated(all).map(|((zone, prefix, ..), at, first)| {
        let Prefix { network, length } = prefix;
        let message = format!("{network}/{length} of zone `{zone}` is declared already on line {}", first.line);
        Fault::new(at, "route", message)
    }));
}

fn neighbours(policy: &Policy, faults: &mut Vec<Fault>) {
    let all = policy.neighbours.iter().map(|n| ((&n.interface, n.address), n.at));
    faults.extend(repeated(all).map(|((interface, address), at, first)| {
        let message = format!("{address} of `{interface}` is declared already on line {}", first.line);
        Fault::new(at, "neighbour", message)
    }));
}

/// Pools of one zone share neither an address with a port, nor does one hold an address twice.
fn pools(policy: &Policy, faults: &mut Vec<Fault>) {
    let mut ranges: Vec<(&str, AddressRange, &Pool)> = Vec::new();
    for pool in &policy.pools {
        ranges.extend(pool.addresses.iter().map(|range| (pool.zone.as_str(), *range, pool)));
    }
    ranges.sort_by_key(|(zone, range, _)| (*zone, range.first));
    // By first address: what begins before the furthest end so far overlaps it. One report per range is enough, so the
    // furthest is the only one to compare with, unless their ports differ.
    let mut open: Vec<(&str, AddressRange, &Pool)> = Vec::new();
    for (zone, range, pool) in ranges {
        open.retain(|(z, r, _)| *z == zone && r.last >= range.first);
        let shares = |other: &Pool| other.ports.first <= pool.ports.last && pool.ports.first <= other.ports.last;
        if let Some((_, _, other)) = open.iter().find(|(_, _, other)| shares(other)) {
            // Blame the later of the two.
            let place = |p: &Pool| (p.at.source, p.at.line, p.at.column);
            let (first, later) = if place(other) <= place(pool) { (*other, pool) } else { (pool, *other) };
            let mut message = format!("addresses: {} ", range.first);
            let _ = if std::ptr::eq(first, later) {
                write!(message, "is in it twice")
            } else {
                write!(message, "is in pool `{}` already, with the same ports", first.name)
            };
            faults.push(Fault::new(later.at, "pool", message));
        }
        open.push((zone, range, pool));
    }
}

fn verdicts(policy: &Policy, faults: &mut Vec<Fault>) {
    let all = policy.verdicts.iter().map(|v| ((v.hook, v.zone.as_deref()), v.at));
    faults.extend(repeated(all).map(|((hook, zone), at, first)| {
        let whose = zone.map_or_else(String::new, |zone| format!(" for zone `{zone}`"));
        let message = format!("{} has one{whose} already on line {}", hook.name(), first.line);
        Fault::new(at, "policy", message)
    }));
}

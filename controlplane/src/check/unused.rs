//! Declarations without effect, and routes that lead nowhere.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use erhu_planes::program::{Action, MatchKey, Prefix, Program, RouteTarget, SourceChoice};

use super::{lists, zone_name};
use crate::policy::{DEFAULT, MAIN, Policy};
use crate::script::Fault;

pub fn find(policy: &Policy, program: &Program, found: &mut Vec<Fault>) {
    zones(policy, found);
    pools_and_chains(policy, program, found);
    timeouts(policy, found);
    next_hops(policy, program, found);
    circles(policy, program, found);
    own_addresses(policy, program, found);
}

fn zones(policy: &Policy, found: &mut Vec<Fault>) {
    let mut used: HashSet<&str> = policy.interfaces.iter().map(|i| i.zone.as_str()).collect();
    for route in &policy.routes {
        if let crate::policy::RouteTarget::Zone(into) = &route.target {
            used.insert(into);
        }
    }
    for zone in policy.zones.iter().filter(|z| z.name != MAIN && !used.contains(z.name.as_str())) {
        let message = format!("`{}` has no interface, and no route leads into it", zone.name);
        found.push(Fault::new(zone.at, "zone", message));
    }
}

fn pools_and_chains(policy: &Policy, program: &Program, found: &mut Vec<Fault>) {
    let (mut pools, mut chains) = (HashSet::new(), HashSet::new());
    for (_, function, rules) in lists(program) {
        for rule in rules {
            for action in &rule.actions {
                match action {
                    Action::Jump(chain) | Action::GoTo(chain) => {
                        chains.insert(usize::from(*chain));
                    }
                    Action::Snat(snat) => {
                        let SourceChoice::Pool(pool) = snat.source else { continue };
                        pools.insert(usize::from(pool));
                        let Some(used) = program.pools.get(usize::from(pool)) else { continue };
                        if let Some(zone) = leaves_elsewhere(program, rule, used.zone) {
                            let (pool, its) = (&used.name, zone_name(program, used.zone));
                            let message = format!(
                                "pool `{pool}` has addresses of zone `{its}`, but what this rule matches leaves by \
                                 zone `{zone}`: replies will not find their connection"
                            );
                            found.push(Fault::new(rule.at, function, message));
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    for (index, pool) in policy.pools.iter().enumerate().filter(|(index, _)| !pools.contains(index)) {
        debug_assert_eq!(program.pools[index].name, pool.name);
        found.push(Fault::new(pool.at, "pool", format!("no rule uses `{}`", pool.name)));
    }
    for (_, chain) in policy.chains.iter().enumerate().filter(|(index, _)| !chains.contains(index)) {
        found.push(Fault::new(chain.at, "chain", format!("no rule leads to `{}`", chain.name)));
    }
}

/// A zone that all a rule matches leaves by, if it is not the given one.
fn leaves_elsewhere<'p>(program: &'p Program, rule: &erhu_planes::program::Rule, zone: u16) -> Option<&'p str> {
    let zones: Vec<u16> = rule.matches.iter().filter(|m| !m.negated).find_map(|m| match &m.key {
        MatchKey::EgressZone(zones) => Some(zones.clone()),
        MatchKey::Egress(interfaces) => {
            let of = interfaces.iter().filter_map(|i| program.interfaces.get(usize::from(*i)));
            Some(of.map(|interface| interface.zone).collect())
        }
        _ => None,
    })?;
    if zones.contains(&zone) { None } else { zones.first().map(|other| zone_name(program, *other)) }
}

fn timeouts(policy: &Policy, found: &mut Vec<Fault>) {
    let used: HashSet<&str> = policy.zones.iter().filter_map(|zone| zone.timeout.as_deref()).collect();
    for timeout in policy.timeouts.iter().filter(|t| t.name != DEFAULT && !used.contains(t.name.as_str())) {
        found.push(Fault::new(timeout.at, "timeout", format!("no zone uses `{}`", timeout.name)));
    }
}

fn next_hops(policy: &Policy, program: &Program, found: &mut Vec<Fault>) {
    let mut connected: HashMap<u16, Vec<Prefix>> = HashMap::new();
    let mut own: HashSet<(u16, IpAddr)> = HashSet::new();
    for interface in &program.interfaces {
        for address in &interface.addresses {
            own.insert((interface.zone, address.address));
            let prefix = Prefix::new(address.address, address.length);
            connected.entry(interface.zone).or_default().extend(prefix);
        }
    }
    let mut known: HashMap<(u16, IpAddr), bool> = HashMap::new();
    for (route, made) in policy.routes.iter().zip(&program.routes) {
        let RouteTarget::Via(hop) = made.target else { continue };
        let zone = &route.zone;
        let is_reachable = *known.entry((made.zone, hop)).or_insert_with(|| {
            connected.get(&made.zone).is_some_and(|prefixes| prefixes.iter().any(|prefix| prefix.contains(hop)))
        });
        if own.contains(&(made.zone, hop)) {
            found.push(Fault::new(route.at, "route", format!("via: {hop} is the router's own address in `{zone}`")));
        } else if !is_reachable {
            let message = format!("via: no interface of zone `{zone}` is connected to {hop}");
            found.push(Fault::new(route.at, "route", message));
        }
    }
}

/// Leaks of one prefix that come back to where they began.
fn circles(policy: &Policy, program: &Program, found: &mut Vec<Fault>) {
    let mut leaks: HashMap<(u16, Prefix), Option<u16>> = HashMap::new();
    for route in &program.routes {
        let into = match route.target {
            RouteTarget::Zone(into) => Some(into),
            _ => None,
        };
        let only = leaks.entry((route.zone, route.prefix)).or_insert(into);
        // With more than one route the others may lead on.
        if *only != into {
            *only = None;
        }
    }
    let mut told = HashSet::new();
    for (route, made) in policy.routes.iter().zip(&program.routes) {
        let mut path = vec![made.zone];
        let mut at = made.zone;
        while let Some(Some(next)) = leaks.get(&(at, made.prefix)) {
            if path.contains(next) {
                break;
            }
            path.push(*next);
            at = *next;
        }
        let is_circle = leaks.get(&(at, made.prefix)).copied().flatten() == Some(made.zone);
        if is_circle && path.iter().all(|zone| told.insert((*zone, made.prefix))) {
            let names: Vec<&str> = path.iter().chain([&made.zone]).map(|zone| zone_name(program, *zone)).collect();
            let Prefix { network, length } = made.prefix;
            let message = format!("{network}/{length} leads in a circle: {}", names.join(", "));
            found.push(Fault::new(route.at, "route", message));
        }
    }
}

fn own_addresses(policy: &Policy, program: &Program, found: &mut Vec<Fault>) {
    let mut own: Vec<(u16, IpAddr, &str)> = Vec::new();
    for interface in &program.interfaces {
        own.extend(interface.addresses.iter().map(|a| (interface.zone, a.address, interface.name.as_str())));
    }
    own.sort_unstable();
    for (pool, made) in policy.pools.iter().zip(&program.pools) {
        for range in &made.addresses {
            let first = own.partition_point(|(zone, address, _)| (*zone, *address) < (made.zone, range.first));
            if let Some((_, address, interface)) =
                own.get(first).filter(|(zone, address, _)| *zone == made.zone && range.contains(*address))
            {
                let message = format!(
                    "addresses: {address} is the address of `{interface}`, which no longer answers for itself: \
                     what a pool holds is never local"
                );
                found.push(Fault::new(pool.at, "pool", message));
            }
        }
    }
}

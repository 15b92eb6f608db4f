//! Destinations that packets cannot get to, and services in the way of mappings.

use std::collections::HashMap;
use std::net::IpAddr;

use erhu_planes::program::{
    Action, AddressRange, Behaviour, DestinationChoice, Dnat, MatchKey, Pool, PortRange, Prefix, Program, Rule,
};

use super::{BUDGET, lists, zone_name};
use crate::script::Fault;

pub fn find(program: &Program, found: &mut Vec<Fault>) {
    let count = lists(program).flat_map(|(_, _, rules)| rules).flat_map(|rule| &rule.actions);
    let count = count.filter(|action| matches!(action, Action::Dnat(_) | Action::Netmap(_))).count();
    let others = program.routes.len() + program.interfaces.len() + program.pools.len();
    if count == 0 || count.saturating_mul(others) > BUDGET {
        return;
    }
    let reachable = Reachable::of(program);
    for (_, function, rules) in lists(program) {
        for rule in rules {
            for action in &rule.actions {
                let message = match action {
                    Action::Dnat(dnat) => {
                        no_route(program, &reachable, rule, dnat).or_else(|| shadowed_mapping(program, rule))
                    }
                    Action::Netmap(_) => shadowed_mapping(program, rule),
                    _ => None,
                };
                found.extend(message.map(|message| Fault::new(rule.at, function, message)));
            }
        }
    }
}

/// Destinations that a zone's interfaces and routes cover.
struct Reachable(HashMap<u16, Vec<Prefix>>);

impl Reachable {
    fn of(program: &Program) -> Self {
        let mut all: HashMap<u16, Vec<Prefix>> = HashMap::new();
        for interface in &program.interfaces {
            let connected = interface.addresses.iter().filter_map(|a| Prefix::new(a.address, a.length));
            all.entry(interface.zone).or_default().extend(connected);
        }
        for route in &program.routes {
            all.entry(route.zone).or_default().push(route.prefix);
        }
        Self(all)
    }

    fn covers(&self, zone: u16, address: IpAddr) -> bool {
        self.0.get(&zone).is_some_and(|prefixes| prefixes.iter().any(|prefix| prefix.contains(address)))
    }
}

/// Zones that all packets of a rule come in by, where it says so.
fn zones(program: &Program, rule: &Rule) -> Option<Vec<u16>> {
    rule.matches.iter().filter(|m| !m.negated).find_map(|m| match &m.key {
        MatchKey::Zone(zones) => Some(zones.clone()),
        MatchKey::Ingress(interfaces) => {
            let of = interfaces.iter().filter_map(|i| program.interfaces.get(usize::from(*i)));
            Some(of.map(|interface| interface.zone).collect())
        }
        _ => None,
    })
}

fn no_route(program: &Program, reachable: &Reachable, rule: &Rule, dnat: &Dnat) -> Option<String> {
    let DestinationChoice::To(ranges) = &dnat.destination else { return None };
    let zones = dnat.zone.map_or_else(|| zones(program, rule), |zone| Some(vec![zone]))?;
    let lost = ranges.iter().flat_map(|r| [r.first, r.last]);
    let (zone, address) = lost
        .flat_map(|address| zones.iter().map(move |zone| (*zone, address)))
        .find(|(zone, address)| !reachable.covers(*zone, *address))?;
    let hint = if dnat.zone.is_some() { "" } else { "; `zone` says whose routes to take" };
    Some(format!("dnat: no route of zone `{}` leads to {address}{hint}", zone_name(program, zone)))
}

/// What a rule names, where it does; else everything.
fn named<T>(rule: &Rule, of: impl Fn(&MatchKey) -> Option<Vec<T>>) -> Option<Vec<T>> {
    rule.matches.iter().filter(|m| !m.negated).find_map(|m| of(&m.key))
}

/// A pool whose mappings are open to others has a port that the rule takes.
fn shadowed_mapping(program: &Program, rule: &Rule) -> Option<String> {
    let addresses = named(rule, |key| match key {
        MatchKey::Destination(v) => Some(v.clone()),
        _ => None,
    })?;
    let zones = zones(program, rule);
    let ports = named(rule, |key| match key {
        MatchKey::DestinationPort(v) => Some(v.clone()),
        _ => None,
    });
    let all = || vec![PortRange { first: 0, last: u16::MAX }];
    let is_open = |pool: &Pool| {
        pool.mapping == Behaviour::EndpointIndependent && pool.filtering != Behaviour::AddressPortDependent
    };
    let in_zone = |pool: &Pool| zones.as_ref().is_none_or(|zones| zones.contains(&pool.zone));
    for pool in program.pools.iter().filter(|pool| is_open(pool) && in_zone(pool)) {
        let shared = pool.addresses.iter().find_map(|own| addresses.iter().find_map(|a| first_shared(own, a)));
        let port = ports.clone().unwrap_or_else(all).into_iter().find_map(|r| {
            let first = r.first.max(pool.ports.first);
            (first <= r.last.min(pool.ports.last)).then_some(first)
        });
        if let (Some(address), Some(port)) = (shared, port) {
            return Some(format!(
                "port {port} of {address} is one that pool `{}` gives too: who calls a mapping there gets to this rule",
                pool.name
            ));
        }
    }
    None
}

fn first_shared(a: &AddressRange, b: &AddressRange) -> Option<IpAddr> {
    let first = a.first.max(b.first);
    (a.first.is_ipv4() == b.first.is_ipv4() && first <= a.last.min(b.last)).then_some(first)
}

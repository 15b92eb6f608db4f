//! Tenants with the same addresses that cross into other zones as they are.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use erhu_planes::program::{
    Action, AddressRange, Encapsulation, Hook, Interface, PolicyVerdict, Prefix, Program, RouteTarget, Rule, states,
};

use super::sets::{About, Fit, Set, condition};
use super::{BUDGET, zone_name};
use crate::policy::Policy;
use crate::script::{Fault, whole};

pub fn find(policy: &Policy, program: &Program, found: &mut Vec<Fault>) {
    let graph = Graph::of(program);
    let mut budget = BUDGET;
    for (zone, overlap) in graph.overlaps() {
        let mut told = HashSet::new();
        for way in graph.ways_out(zone, &mut budget) {
            if way.prefix.network.is_ipv4() == overlap.prefix.network.is_ipv4()
                && !told.contains(&way.into)
                && let Some(egress) = way.egress.iter().find(|egress| {
                    let packet = Packet::of(program, zone, &overlap, &way, **egress);
                    packet.passes(program, &mut budget) && packet.keeps_its_source(program, &mut budget)
                })
            {
                told.insert(way.into);
                let (from, into) = (zone_name(program, zone), zone_name(program, way.into));
                let (other, interface) = (zone_name(program, overlap.with), &program.interfaces[*egress].name);
                let Prefix { network, length } = overlap.prefix;
                let by = match program.interfaces[*egress].encapsulation {
                    Encapsulation::Link(_) => format!("link `{interface}` into zone `{into}`"),
                    _ => format!("`{interface}` of zone `{into}`"),
                };
                let message = format!(
                    "zone `{from}` can leave by {by} without SNAT, and zone `{other}` has addresses of its \
                     {network}/{length} too"
                );
                found.push(match way.first {
                    First::Route(route) => Fault::new(policy.routes[route].at, "route", message),
                    First::Link(end) => Fault::new(policy.interfaces[end].at, "link", message),
                });
            }
        }
    }
}

/// An own prefix that another zone has too, or a part of it.
struct Overlap {
    prefix: Prefix,
    with: u16,
}

/// A declaration that leads out of a zone.
#[derive(Clone, Copy)]
enum First {
    /// A route.
    Route(usize),
    /// A link, whose end (interface) has a connected prefix.
    Link(usize),
}

/// A route into another zone's table, perhaps through more of them, or into a link.
struct Way {
    /// Where it begins.
    first: First,
    /// The zone it ends in, that of the link's other end.
    into: u16,
    /// What it leads to.
    prefix: Prefix,
    /// Interfaces by which it goes on from there.
    egress: Vec<usize>,
}

struct Graph<'p> {
    program: &'p Program,
    routes: HashMap<u16, Vec<usize>>,
    interfaces: HashMap<u16, Vec<usize>>,
    /// Zones that leak or are leaked into, or have a link.
    crossing: HashSet<u16>,
}

impl<'p> Graph<'p> {
    fn of(program: &'p Program) -> Self {
        let mut graph =
            Self { program, routes: HashMap::new(), interfaces: HashMap::new(), crossing: HashSet::new() };
        for (index, route) in program.routes.iter().enumerate() {
            graph.routes.entry(route.zone).or_default().push(index);
            if let RouteTarget::Zone(into) = route.target {
                graph.crossing.extend([route.zone, into]);
            }
        }
        for (index, interface) in program.interfaces.iter().enumerate() {
            graph.interfaces.entry(interface.zone).or_default().push(index);
            if far_zone(program, index).is_some() {
                graph.crossing.insert(interface.zone);
            }
        }
        graph
    }

    /// One overlap, in each family, of each zone that has any with another zone that crosses.
    fn overlaps(&self) -> Vec<(u16, Overlap)> {
        let mut ranges: Vec<(AddressRange, u16, Prefix)> = Vec::new();
        let are_hosts = |i: &&Interface| !matches!(i.encapsulation, Encapsulation::Link(_));
        let interfaces = self.program.interfaces.iter().filter(are_hosts);
        for interface in interfaces.filter(|i| self.crossing.contains(&i.zone)) {
            for own in &interface.addresses {
                let prefix = Prefix::new(own.address, own.length);
                ranges.extend(prefix.map(|prefix| (whole(prefix), interface.zone, prefix)));
            }
        }
        // Prefixes are nested or apart: in this order each is preceded by those it is in.
        ranges.sort_by_key(|(range, zone, _)| (range.first, std::cmp::Reverse(range.last), *zone));
        let mut found: HashMap<(u16, bool), Overlap> = HashMap::new();
        let mut open: Vec<(AddressRange, u16, Prefix)> = Vec::new();
        for (range, zone, prefix) in ranges {
            while open.last().is_some_and(|(outer, ..)| outer.last < range.first) {
                open.pop();
            }
            // The nearest of another zone will do, and for those around the first that lies in them.
            if let Some((_, other, _)) = open.iter().rfind(|(_, other, _)| *other != zone) {
                found.entry((zone, prefix.network.is_ipv4())).or_insert(Overlap { prefix, with: *other });
            }
            for (_, other, outer) in open.iter().rev().take_while(|(r, ..)| *r == range || r.contains(range.first)) {
                let of_other = (*other, outer.network.is_ipv4());
                if *other != zone && !found.contains_key(&of_other) {
                    found.insert(of_other, Overlap { prefix: *outer, with: zone });
                }
            }
            // Enough of them to find another zone in; deeper nesting would only cost time.
            if open.len() < 64 {
                open.push((range, zone, prefix));
            }
        }
        let mut all: Vec<(u16, Overlap)> = found.into_iter().map(|((zone, _), overlap)| (zone, overlap)).collect();
        all.sort_by_key(|(zone, overlap)| (*zone, overlap.prefix.network));
        all
    }

    fn ways_out(&self, zone: u16, budget: &mut usize) -> Vec<Way> {
        let mut ways = Vec::new();
        for end in self.interfaces.get(&zone).into_iter().flatten().copied() {
            let Some(into) = far_zone(self.program, end) else { continue };
            let connected = self.program.interfaces[end].addresses.iter();
            let prefixes = connected.filter_map(|own| Prefix::new(own.address, own.length));
            ways.extend(prefixes.map(|prefix| Way { first: First::Link(end), into, prefix, egress: vec![end] }));
        }
        for first in self.routes.get(&zone).into_iter().flatten().copied() {
            let route = &self.program.routes[first];
            let end = match route.target {
                RouteTarget::Interface(interface) => Some(usize::from(interface)),
                RouteTarget::Via(hop) => self.towards(zone, hop),
                _ => None,
            };
            if let Some(end) = end
                && let Some(into) = far_zone(self.program, end)
            {
                ways.push(Way { first: First::Route(first), into, prefix: route.prefix, egress: vec![end] });
            }
            let RouteTarget::Zone(into) = route.target else { continue };
            let mut seen = HashSet::from([zone]);
            let mut open = vec![(into, route.prefix)];
            while let Some((at, prefix)) = open.pop() {
                if !seen.insert(at) {
                    continue;
                }
                let mut egress = HashSet::new();
                for interface in self.interfaces.get(&at).into_iter().flatten().copied() {
                    let connected = self.program.interfaces[interface].addresses.iter();
                    let mut connected = connected.filter_map(|own| Prefix::new(own.address, own.length));
                    if connected.any(|own| narrower(own, prefix).is_some()) {
                        egress.insert(interface);
                    }
                }
                for next in self.routes.get(&at).into_iter().flatten() {
                    *budget = budget.saturating_sub(1);
                    if *budget == 0 {
                        return Vec::new();
                    }
                    let next = &self.program.routes[*next];
                    let Some(shared) = narrower(next.prefix, prefix) else { continue };
                    match next.target {
                        RouteTarget::Zone(further) => open.push((further, shared)),
                        RouteTarget::Interface(interface) => {
                            egress.insert(usize::from(interface));
                        }
                        RouteTarget::Via(hop) => egress.extend(self.towards(at, hop)),
                        RouteTarget::Blackhole => {}
                    }
                }
                let mut egress: Vec<usize> = egress.into_iter().collect();
                egress.sort_unstable();
                ways.push(Way { first: First::Route(first), into: at, prefix, egress });
            }
        }
        ways
    }

    fn towards(&self, zone: u16, hop: IpAddr) -> Option<usize> {
        self.interfaces.get(&zone)?.iter().copied().find(|interface| {
            let addresses = &self.program.interfaces[*interface].addresses;
            addresses.iter().any(|own| Prefix::new(own.address, own.length).is_some_and(|p| p.contains(hop)))
        })
    }
}

/// The zone of the other end of the link that an interface is an end of.
fn far_zone(program: &Program, end: usize) -> Option<u16> {
    let Encapsulation::Link(peer) = program.interfaces.get(end)?.encapsulation else { return None };
    program.interfaces.get(usize::from(peer)).map(|other| other.zone)
}

/// The longer of two prefixes, if it lies in the other.
fn narrower(a: Prefix, b: Prefix) -> Option<Prefix> {
    let (short, long) = if a.length <= b.length { (a, b) } else { (b, a) };
    short.contains(long.network).then_some(long)
}

/// What is known of the packets of one way.
struct Packet {
    zone: u16,
    known: Vec<(About, Set)>,
}

/// What may become of packets in a list of rules.
#[derive(Clone, Copy, Default)]
struct Ends {
    accepted: bool,
    translated: bool,
    /// Comes to the end of the list.
    falls_through: bool,
}

impl Packet {
    fn of(program: &Program, zone: u16, overlap: &Overlap, way: &Way, egress: usize) -> Self {
        let index = |i: usize| u16::try_from(i).unwrap_or(u16::MAX);
        let ingress = program.interfaces.iter().enumerate().filter(|(_, i)| i.zone == zone).map(|(i, _)| index(i));
        let (source, destination) = (whole(overlap.prefix), whole(way.prefix));
        let known = vec![
            (About::Ingress, Set::of_ids(ingress)),
            (About::Egress, Set::of_ids([index(egress)])),
            (About::Zone, Set::of_ids([zone])),
            (About::EgressZone, Set::of_ids([program.interfaces[egress].zone])),
            (About::Source, Set::of_addresses(source.first, source.last)),
            (About::Destination, Set::of_addresses(destination.first, destination.last)),
            (About::State, Set::of([(states::NEW.trailing_zeros().into(), states::NEW.trailing_zeros().into())])),
        ];
        Self { zone, known }
    }

    /// Whether forward rules may let some of them through.
    fn passes(&self, program: &Program, budget: &mut usize) -> bool {
        let hook = &program.hooks[Hook::Forward.index()];
        let own = hook.zone_policies.iter().find(|(zone, _)| *zone == self.zone).map(|(_, verdict)| *verdict);
        let Some(ends) = self.walk(program, &hook.rules, &mut HashMap::new(), budget) else { return false };
        ends.accepted || (ends.falls_through && own.unwrap_or(hook.policy) == PolicyVerdict::Accept)
    }

    /// Whether no postrouting rule translates any of them.
    fn keeps_its_source(&self, program: &Program, budget: &mut usize) -> bool {
        let hook = &program.hooks[Hook::Postrouting.index()];
        let ends = self.walk(program, &hook.rules, &mut HashMap::new(), budget);
        ends.is_some_and(|ends| !ends.translated)
    }

    /// `None` if it would take too long.
    fn walk(
        &self,
        program: &Program,
        rules: &[Rule],
        chains: &mut HashMap<u16, Ends>,
        budget: &mut usize,
    ) -> Option<Ends> {
        let mut all = Ends::default();
        for rule in rules {
            *budget = budget.checked_sub(1)?;
            let fit = self.fit(rule);
            if fit == Fit::Never {
                continue;
            }
            let mut is_over = false;
            for action in &rule.actions {
                match action {
                    Action::Accept => all.accepted = true,
                    Action::Drop | Action::Reject(_) => {}
                    Action::Snat(_) | Action::Masquerade { .. } | Action::Netmap(_) => all.translated = true,
                    Action::Dnat(_) => {}
                    Action::Return => all.falls_through = true,
                    Action::Jump(chain) | Action::GoTo(chain) => {
                        let inner = match chains.get(chain) {
                            Some(known) => *known,
                            None => {
                                let list = &program.chains.get(usize::from(*chain))?.rules;
                                let ends = self.walk(program, list, chains, budget)?;
                                chains.insert(*chain, ends);
                                ends
                            }
                        };
                        all.accepted |= inner.accepted;
                        all.translated |= inner.translated;
                        if matches!(action, Action::Jump(_)) && inner.falls_through {
                            continue;
                        }
                        all.falls_through |= inner.falls_through;
                    }
                    Action::Notrack | Action::Mark(_) | Action::ConnMark(_) | Action::Count(_) | Action::Continue => {
                        continue;
                    }
                }
                is_over = true;
                break;
            }
            if is_over && fit == Fit::Always {
                return Some(all);
            }
        }
        all.falls_through = true;
        Some(all)
    }

    fn fit(&self, rule: &Rule) -> Fit {
        let mut all = Fit::Always;
        for m in &rule.matches {
            let (about, set) = condition(m);
            let known = self.known.iter().find(|(a, _)| *a == about);
            match (known, set) {
                (Some((_, known)), Some(set)) => match known.fit(&set) {
                    Fit::Never => return Fit::Never,
                    Fit::Sometimes => all = Fit::Sometimes,
                    Fit::Always => {}
                },
                _ => all = Fit::Sometimes,
            }
        }
        all
    }
}

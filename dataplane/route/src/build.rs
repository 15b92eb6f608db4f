//! From a rule program to the table.

use std::cmp::Reverse;
use std::net::IpAddr;

use erhu_planes::program::{Interface, Prefix, Program, Route, RouteTarget};
use hashbrown::HashMap;

use crate::table::{Address, Group, Table};
use crate::{Found, MAX_SHARES, Routes, Target};

/// An entry that others of the same prefix may displace.
#[derive(Clone, Copy)]
struct Candidate {
    zone: u16,
    prefix: Prefix,
    rank: Rank,
    target: Target,
}

/// Of equal prefixes the lowest wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Own,
    Connected,
    Declared(u32),
}

impl Routes {
    /// Makes the table of a program that is valid ([`Program::validate`]).
    ///
    /// A next hop must lie in a prefix that is connected to, or declared as behind, an interface of the route's zone or
    /// of a zone that it leaks to; routes whose next hop does not are left out ([`Routes::unresolved`]).
    pub fn build(program: &Program) -> Self {
        let mut own = Vec::new();
        for (index, interface) in (0..).zip(&program.interfaces) {
            interface_candidates(index, interface, &mut own);
        }
        let without_hops = program.routes.iter().filter_map(|route| candidate(route, |_| None));
        let direct = Self::from_candidates(own.iter().copied().chain(without_hops).collect(), Vec::new());
        let mut unresolved = Vec::new();
        let mut candidates = own;
        for (index, route) in (0..).zip(&program.routes) {
            let resolve = |hop| match direct.lookup(route.zone, hop, 0) {
                Found::Via { interface, .. } => Some(interface),
                _ => None,
            };
            match candidate(route, resolve) {
                Some(candidate) => candidates.push(candidate),
                None => unresolved.push(index),
            }
        }
        Self::from_candidates(candidates, unresolved)
    }

    fn from_candidates(mut candidates: Vec<Candidate>, unresolved: Vec<u32>) -> Self {
        let place = |c: &Candidate| (c.zone, Reverse(c.prefix.length), c.prefix.network);
        candidates.sort_by_key(|c| (place(c), c.rank)); // stable: the first declared stays first
        let mut groups = Groups::default();
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for same_prefix in candidates.chunk_by(|a, b| place(a) == place(b)) {
            let Some(best) = same_prefix.first() else { continue };
            let shares = same_prefix.iter().take_while(|c| c.rank == best.rank);
            let Some(group) = (match best.rank {
                Rank::Declared(_) => groups.get(shares.map(|c| c.target)),
                Rank::Own | Rank::Connected => groups.get([best.target]),
            }) else {
                continue;
            };
            match best.prefix.network {
                IpAddr::V4(network) => v4.push((best.zone, network.into(), best.prefix.length, group)),
                IpAddr::V6(network) => v6.push((best.zone, network.into(), best.prefix.length, group)),
            }
        }
        Self {
            v4: Table::new(&v4),
            v6: Table::new(&v6),
            targets: groups.targets.into(),
            unresolved: unresolved.into(),
        }
    }
}

/// A declared route; `None` if `resolve` finds no interface for its next hop.
fn candidate(route: &Route, resolve: impl Fn(IpAddr) -> Option<u16>) -> Option<Candidate> {
    let target = match route.target {
        RouteTarget::Via(next_hop) => Target::Via { interface: resolve(next_hop)?, next_hop },
        RouteTarget::Interface(interface) => Target::Interface(interface),
        RouteTarget::Zone(zone) => Target::Zone(zone),
        RouteTarget::Blackhole => Target::Blackhole,
    };
    Some(Candidate { zone: route.zone, prefix: route.prefix, rank: Rank::Declared(route.metric), target })
}

/// What follows from an interface's addresses.
fn interface_candidates(index: u16, interface: &Interface, into: &mut Vec<Candidate>) {
    let zone = interface.zone;
    for own in &interface.addresses {
        let mut add = |address, length, rank, target| {
            if let Some(prefix) = Prefix::new(address, length) {
                into.push(Candidate { zone, prefix, rank, target });
            }
        };
        let host = if own.address.is_ipv4() { <u32 as Address>::BITS } else { <u128 as Address>::BITS };
        add(own.address, host, Rank::Own, Target::Local(index));
        add(own.address, own.length, Rank::Connected, Target::Connected(index));
        if let IpAddr::V4(address) = own.address
            && own.length <= 30
        {
            // Both ends of the prefix (RFC 1812 section 5.3.5); there are none in a /31 (RFC 3021).
            let mask = <u32 as Address>::mask(own.length);
            for end in [u32::from(address) & mask, u32::from(address) | !mask] {
                add(IpAddr::V4(end.into()), 32, Rank::Connected, Target::Broadcast(index));
            }
        }
    }
}

/// Lists of targets, each stored once.
#[derive(Default)]
struct Groups {
    targets: Vec<Target>,
    known: HashMap<Vec<Target>, Group>,
}

impl Groups {
    /// `None` if there is no target, or no room: a valid program has fewer than fit.
    fn get(&mut self, targets: impl IntoIterator<Item = Target>) -> Option<Group> {
        let mut list = Vec::new();
        for target in targets {
            if list.len() < MAX_SHARES && !list.contains(&target) {
                list.push(target);
            }
        }
        if let Some(group) = self.known.get(&list) {
            return Some(*group);
        }
        let group = Group::new(self.targets.len(), list.len())?;
        self.targets.extend_from_slice(&list);
        self.known.insert(list, group);
        Some(group)
    }
}

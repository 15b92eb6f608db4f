//! IPv4 and IPv6 in one policy: which packets a rule can match, and what is missing for one of the two.

use std::net::{IpAddr, Ipv4Addr};

use erhu_planes::program::{Action, AddressRange, MatchKey, Program, Rule, SourceChoice};
use erhu_planes::tuple::proto;

use super::lists;
use super::sets::{About, Set, condition};
use crate::policy::Policy;
use crate::script::Fault;

/// The least MTU of a link that carries IPv6 (RFC 8200 section 5).
const LEAST_MTU: u16 = 1280;

/// IPv4 and IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    pub v4: bool,
    pub v6: bool,
}

impl Families {
    /// Those that packets can have which fulfil all conditions.
    pub fn of<'s>(conditions: impl IntoIterator<Item = (About, &'s Set)>) -> Self {
        let v4 = Set::of_addresses(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into());
        let v6 = v4.all_but(u128::MAX);
        let mut all = Self { v4: true, v6: true };
        for (about, set) in conditions {
            match about {
                About::Source | About::Destination => {
                    all.v4 &= set.meets(&v4);
                    all.v6 &= set.meets(&v6);
                }
                About::Protocol => {
                    all.v4 &= !set.is_within(&Set::of_ids([proto::ICMPV6.into()]));
                    all.v6 &= !set.is_within(&Set::of_ids([proto::ICMP.into()]));
                }
                _ => {}
            }
        }
        all
    }

    fn of_rule(rule: &Rule) -> Self {
        let conditions: Vec<(About, Set)> =
            rule.matches.iter().filter_map(|m| Some((condition(m).0, condition(m).1?))).collect();
        Self::of(conditions.iter().map(|(about, set)| (*about, set)))
    }

    fn of_addresses(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let none = Self { v4: false, v6: false };
        addresses
            .into_iter()
            .fold(none, |all, address| Self { v4: all.v4 || address.is_ipv4(), v6: all.v6 || address.is_ipv6() })
    }

    fn and(self, other: Self) -> Self {
        Self { v4: self.v4 && other.v4, v6: self.v6 && other.v6 }
    }
}

pub fn find(policy: &Policy, program: &Program, found: &mut Vec<Fault>) {
    for (interface, made) in policy.interfaces.iter().zip(&program.interfaces) {
        if made.mtu < LEAST_MTU && made.addresses.iter().any(|a| a.address.is_ipv6()) {
            let message = format!("mtu: {} is below {LEAST_MTU}, which IPv6 needs", made.mtu);
            found.push(Fault::new(interface.at, "interface", message));
        }
    }
    for (_, function, rules) in lists(program) {
        for rule in rules {
            for action in &rule.actions {
                let Action::Snat(snat) = action else { continue };
                let (name, addresses): (_, &[AddressRange]) = match &snat.source {
                    SourceChoice::Pool(pool) => match program.pools.get(usize::from(*pool)) {
                        Some(pool) => (format!("pool `{}`", pool.name), &pool.addresses),
                        None => continue,
                    },
                    SourceChoice::To(ranges) => ("`to`".to_owned(), ranges),
                };
                let has = Families::of_addresses(addresses.iter().map(|range| range.first));
                let wanted = Families::of_rule(rule).and(routed(program, rule));
                let (family, example) = match (wanted.v4 && !has.v4, wanted.v6 && !has.v6) {
                    (true, false) => ("IPv4", "::/0"),
                    (false, true) => ("IPv6", "0.0.0.0/0"),
                    _ => continue,
                };
                let message = format!(
                    "{name} has no {family} address, so {family} packets that this rule matches do not leave; \
                     `src: \"{example}\"` leaves them alone"
                );
                found.push(Fault::new(rule.at, function, message));
            }
        }
    }
}

/// Families for which there are addresses on both ways that a rule names: where it names none, in some zone.
fn routed(program: &Program, rule: &Rule) -> Families {
    let of = |is_meant: &dyn Fn(usize, u16) -> bool| {
        let meant = program.interfaces.iter().enumerate().filter(|(index, i)| is_meant(*index, i.zone));
        Families::of_addresses(meant.flat_map(|(_, i)| i.addresses.iter().map(|a| a.address)))
    };
    let listed = |of: &[u16], index: usize| of.iter().any(|i| usize::from(*i) == index);
    let mut all = of(&|_, _| true);
    for m in rule.matches.iter().filter(|m| !m.negated) {
        all = match &m.key {
            MatchKey::Zone(zones) | MatchKey::EgressZone(zones) => all.and(of(&|_, zone| zones.contains(&zone))),
            MatchKey::Ingress(v) | MatchKey::Egress(v) => all.and(of(&|index, _| listed(v, index))),
            _ => all,
        };
    }
    all
}

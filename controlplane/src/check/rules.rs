//! Rules that never match, rules that never get the chance, and actions that never run.

use std::collections::HashMap;

use erhu_planes::program::{Action, Hook, Match, MatchKey, Program, Rule};

use super::families::Families;
use super::sets::{About, Set, condition};
use super::{BUDGET, lists, seen_from, zone_name};
use crate::script::Fault;

/// Protocols that have ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
const WITH_PORTS: [u16; 5] = [6, 17, 33, 132, 136];
/// ICMP and ICMPv6.
const WITH_TYPES: [u16; 2] = [1, 58];
/// Values under which a rule is filed at most.
const FILED: u128 = 32;

pub fn find(program: &Program, found: &mut Vec<Fault>) {
    let marks_change = lists(program).any(|(_, _, rules)| {
        rules.iter().any(|rule| rule.actions.iter().any(|action| matches!(action, Action::Mark(_))))
    });
    let mut budget = BUDGET;
    for (hook, function, rules) in lists(program) {
        let mut before = Before::default();
        for (index, rule) in rules.iter().enumerate() {
            let view = View::of(program, hook, rule);
            if let Some(why) = view.contradiction(program, rule) {
                found.push(Fault::new(rule.at, function, format!("never matches: {why}")));
                continue;
            }
            if let Some(earlier) = before.shadow(&view, &mut budget) {
                let line = seen_from(program, rule.at, rules[earlier].at);
                let message = format!("never reached: the rule on {line} ends every packet that this one matches");
                found.push(Fault::new(rule.at, function, message));
            }
            let ends = rule.actions.iter().position(ends);
            if let Some(last) = ends.filter(|last| last + 1 < rule.actions.len()) {
                let message = format!("action: what follows the action number {} never runs", last + 1);
                found.push(Fault::new(rule.at, function, message));
            }
            // A mark that is set between two rules would let the second match what the first did not.
            let is_steady = !marks_change || !rule.matches.iter().any(|m| matches!(m.key, MatchKey::Mark(_)));
            if ends.is_some() && is_steady {
                before.add(index, view);
            }
        }
    }
}

/// Whether no later rule of the same list sees a packet after it.
fn ends(action: &Action) -> bool {
    action.is_final() || matches!(action, Action::GoTo(_) | Action::Return)
}

/// The conditions of a rule as sets, with what follows from them.
struct View {
    conditions: Vec<(About, Set)>,
    /// Conditions that are no sets.
    opaque: Vec<Match>,
    /// How many of the conditions are the rule's own.
    own: usize,
}

impl View {
    fn of(program: &Program, hook: Option<Hook>, rule: &Rule) -> Self {
        let mut view = Self { conditions: Vec::new(), opaque: Vec::new(), own: 0 };
        for m in &rule.matches {
            match condition(m) {
                (about, Some(set)) => view.conditions.push((about, set)),
                (_, None) => view.opaque.push(m.clone()),
            }
        }
        view.own = view.conditions.len();
        // An interface implies its zone; what the router sends itself comes in by none, and a chain may serve it.
        for m in rule.matches.iter().filter(|m| !m.negated) {
            let zones = |of: &[u16]| {
                Set::of_ids(of.iter().filter_map(|i| program.interfaces.get(usize::from(*i))).map(|i| i.zone))
            };
            match &m.key {
                MatchKey::Ingress(of) if hook.is_some_and(|h| h != Hook::Output) => {
                    view.conditions.push((About::Zone, zones(of)));
                }
                MatchKey::Egress(of) => view.conditions.push((About::EgressZone, zones(of))),
                _ => {}
            }
        }
        view
    }

    fn get(&self, about: About) -> impl Iterator<Item = &Set> {
        self.conditions.iter().filter(move |(a, _)| *a == about).map(|(_, set)| set)
    }

    fn contradiction(&self, program: &Program, rule: &Rule) -> Option<String> {
        if let Some((about, _)) = self.conditions.iter().find(|(_, set)| set.is_empty()) {
            return Some(format!("`{}` leaves nothing", name(*about)));
        }
        for (place, zone) in [(About::Ingress, About::Zone), (About::Egress, About::EgressZone)] {
            let sets: Vec<&Set> = self.get(zone).collect();
            if let [stated, implied] = sets.as_slice()
                && !stated.meets(implied)
            {
                let interface = rule.matches.iter().find_map(|m| match &m.key {
                    MatchKey::Ingress(v) if place == About::Ingress => v.first(),
                    MatchKey::Egress(v) if place == About::Egress => v.first(),
                    _ => None,
                });
                let interface = interface.and_then(|i| program.interfaces.get(usize::from(*i)))?;
                let its_zone = zone_name(program, interface.zone);
                return Some(format!("interface `{}` is in zone `{its_zone}`", interface.name));
            }
        }
        let families = Families::of(self.conditions.iter().map(|(about, set)| (*about, set)));
        if !families.v4 && !families.v6 {
            return Some("addresses and protocol are of IPv4 and of IPv6".into());
        }
        let protocol = self.get(About::Protocol).next();
        let ports = self.get(About::SourcePort).chain(self.get(About::DestinationPort)).next();
        let types = self.get(About::IcmpType).chain(self.get(About::IcmpCode)).next();
        // A negated port may hold for what has none.
        let is_stated = |keys: [About; 2]| rule.matches.iter().any(|m| !m.negated && keys.contains(&condition(m).0));
        let wants_ports = ports.is_some() && is_stated([About::SourcePort, About::DestinationPort]);
        let wants_types = types.is_some() && is_stated([About::IcmpType, About::IcmpCode]);
        let never = |of: &[u16]| protocol.is_some_and(|set| !set.meets(&Set::of_ids(of.iter().copied())));
        if wants_ports && wants_types {
            Some("nothing has ports and an ICMP type".into())
        } else if wants_ports && never(&WITH_PORTS) {
            Some("`proto` has no ports".into())
        } else if wants_types && never(&WITH_TYPES) {
            Some("`proto` has no ICMP type".into())
        } else {
            None
        }
    }

    /// Whether whatever matches `self` matches `other`.
    fn implies(&self, other: &Self) -> bool {
        let own = other.conditions.iter().take(other.own);
        other.opaque.iter().all(|m| self.opaque.contains(m))
            && own.into_iter().all(|(about, wanted)| self.get(*about).any(|set| set.is_within(wanted)))
    }
}

fn name(about: About) -> &'static str {
    match about {
        About::Ingress => "ingress",
        About::Egress => "egress",
        About::Zone => "zone",
        About::EgressZone => "egress_zone",
        About::Source => "src",
        About::Destination => "dst",
        About::Protocol => "proto",
        About::SourcePort => "sport",
        About::DestinationPort => "dport",
        About::IcmpType => "icmp_type",
        About::IcmpCode => "icmp_code",
        About::State => "state",
        About::Status => "status",
        About::Direction => "direction",
        About::Mark => "mark",
    }
}

/// Earlier rules that end what they match, filed so that few must be compared.
#[derive(Default)]
struct Before {
    views: HashMap<usize, View>,
    /// Rules by a condition with few values, under each of them.
    filed: HashMap<(About, u128), Vec<usize>>,
    /// The others.
    rest: Vec<usize>,
}

impl Before {
    fn add(&mut self, index: usize, view: View) {
        let own = view.conditions.iter().take(view.own);
        let fewest = own.filter_map(|(about, set)| Some((*about, set.values(FILED)?))).min_by_key(|(_, v)| v.len());
        match fewest {
            Some((about, values)) => {
                values.into_iter().for_each(|value| self.filed.entry((about, value)).or_default().push(index));
            }
            None => self.rest.push(index),
        }
        self.views.insert(index, view);
    }

    /// An earlier rule that a rule implies. Its set lies within the earlier one's, so its first value does too.
    fn shadow(&self, view: &View, budget: &mut usize) -> Option<usize> {
        let keys = view.conditions.iter().filter_map(|(about, set)| Some((*about, set.first()?)));
        let filed = keys.filter_map(|key| self.filed.get(&key)).flatten();
        let mut candidates = filed.chain(&self.rest);
        candidates
            .find(|earlier| {
                *budget = budget.saturating_sub(1);
                *budget > 0 && self.views.get(earlier).is_some_and(|earlier| view.implies(earlier))
            })
            .copied()
    }
}

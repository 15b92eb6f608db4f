//! Pools that are smaller than what may use them.

use std::collections::{BTreeSet, HashMap};

use erhu_planes::program::{Action, AddressRange, Behaviour, MatchKey, Program, Rule, SourceChoice};

use super::{lists, zone_name};
use crate::policy::Policy;
use crate::script::{Facts, Fault, list};

pub fn find(policy: &Policy, program: &Program, facts: &Facts, found: &mut Vec<Fault>) {
    let mut users: HashMap<u16, BTreeSet<u16>> = HashMap::new();
    let mut choices: HashMap<u16, BTreeSet<u16>> = HashMap::new();
    for (_, _, rules) in lists(program) {
        for rule in rules {
            for action in &rule.actions {
                let Action::Snat(snat) = action else { continue };
                let SourceChoice::Pool(pool) = snat.source else { continue };
                for zone in zones(program, rule) {
                    users.entry(pool).or_default().insert(zone);
                    choices.entry(zone).or_default().insert(pool);
                }
            }
        }
    }
    for (index, pool) in program.pools.iter().enumerate() {
        // Only with endpoint-independent mapping does every inside endpoint need a port of its own.
        let Some(users) = u16::try_from(index).ok().and_then(|i| users.get(&i)) else { continue };
        if pool.mapping != Behaviour::EndpointIndependent {
            continue;
        }
        let per_address = u64::from(pool.ports.last - pool.ports.first) + 1;
        let ports = pool.addresses.iter().map(AddressRange::count).sum::<u64>().saturating_mul(per_address);
        // A zone that may choose between pools says nothing about one of them.
        let only = users.iter().filter(|zone| choices.get(zone).is_some_and(|pools| pools.len() == 1));
        let only: Vec<u16> = only.copied().collect();
        let limits = only.iter().filter_map(|zone| program.zone(*zone)).map(|zone| zone.limit.or(facts.capacity));
        let Some(wanted) = limits.map(|limit| limit.map(u64::from)).sum::<Option<u64>>() else { continue };
        let wanted = facts.capacity.map_or(wanted, |capacity| wanted.min(capacity.into()));
        if wanted > ports {
            let names = list(only.iter().take(3).map(|zone| zone_name(program, *zone))).replace(" or ", " and ");
            let more = if only.len() > 3 { format!(" and {} more", only.len() - 3) } else { String::new() };
            let message = format!(
                "has {ports} ports for each protocol, but {names}{more} may have {wanted} connections: \
                 more addresses, or a lower `limit`, keep it from running dry"
            );
            found.push(Fault::new(policy.pools[index].at, "pool", format!("`{}` {message}", pool.name)));
        }
    }
}

/// Zones whose packets a rule may match; none where it does not say.
fn zones(program: &Program, rule: &Rule) -> Vec<u16> {
    for m in rule.matches.iter().filter(|m| !m.negated) {
        match &m.key {
            MatchKey::Zone(zones) => return zones.clone(),
            MatchKey::Ingress(interfaces) => {
                let zones = interfaces.iter().filter_map(|i| program.interfaces.get(usize::from(*i)));
                return zones.map(|interface| interface.zone).collect();
            }
            _ => {}
        }
    }
    Vec::new()
}

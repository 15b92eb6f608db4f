//! Names and what they stand for.

use std::collections::{HashMap, HashSet};

use crate::policy::{DEFAULT, Kind, MAIN, Policy};
use crate::script::did_you_mean;

/// Index in the program of each name; for zones the id.
pub struct Names<'p> {
    known: HashMap<Kind, HashMap<&'p str, u16>>,
    broken: &'p HashSet<(Kind, String)>,
}

/// Why a name has no index.
pub struct Hint {
    /// Its declaration had an error of its own, or there are too many to count, which has been reported.
    pub is_silent: bool,
    /// `, did you mean …?`, or empty.
    pub text: String,
}

impl<'p> Names<'p> {
    pub fn of(policy: &'p Policy) -> Self {
        let mut known: HashMap<Kind, HashMap<&'p str, u16>> = HashMap::new();
        let zones = known.entry(Kind::Zone).or_default();
        zones.insert(MAIN, 0);
        for zone in &policy.zones {
            zones.entry(&zone.name).or_insert(zone.id);
        }
        let mut number = |kind, names: &mut dyn Iterator<Item = &'p str>, first: u16| {
            let all: &mut HashMap<&'p str, u16> = known.entry(kind).or_default();
            for (name, index) in names.zip(first..) {
                all.entry(name).or_insert(index);
            }
        };
        number(Kind::Interface, &mut policy.interfaces.iter().map(|i| i.name.as_str()), 0);
        number(Kind::Pool, &mut policy.pools.iter().map(|p| p.name.as_str()), 0);
        number(Kind::Chain, &mut policy.chains.iter().map(|c| c.name.as_str()), 0);
        number(Kind::Timeout, &mut std::iter::once(DEFAULT), 0);
        let others = policy.timeouts.iter().map(|t| t.name.as_str()).filter(|name| *name != DEFAULT);
        number(Kind::Timeout, &mut { others }, 1);
        Self { known, broken: &policy.broken }
    }

    pub fn get(&self, kind: Kind, name: &str) -> Result<u16, Hint> {
        let all = self.known.get(&kind);
        if let Some(index) = all.and_then(|all| all.get(name)) {
            return Ok(*index);
        }
        let is_silent = self.broken.contains(&(kind, name.to_owned()));
        // In order, so that the same script always gets the same message.
        let mut near: Vec<&str> = all.into_iter().flatten().map(|(name, _)| *name).collect();
        near.extend(self.broken.iter().filter(|(k, _)| *k == kind).map(|(_, name)| name.as_str()));
        near.sort_unstable();
        Err(Hint { is_silent, text: did_you_mean(name, near) })
    }
}

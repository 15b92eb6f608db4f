//! What was found, as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

/// Counts of one run. Warm-up packets count in none of them.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Whether everything was as it has to be.
    pub ok: bool,
    /// Packets the plan has.
    pub planned: u64,
    /// Packets sent from the inside.
    pub sent: u64,
    /// Packets that arrived outside.
    pub arrived: u64,
    /// Packets that came back inside.
    pub returned: u64,
    /// Outside addresses and ports seen in use.
    pub mappings: usize,
    /// What was wrong, and how often.
    pub faults: BTreeMap<&'static str, u64>,
    /// The first faults in words.
    pub examples: Vec<String>,
}

/// Faults described in words.
const EXAMPLES: usize = 10;

impl Report {
    /// Counts a fault.
    pub fn fault(&mut self, kind: &'static str, example: impl FnOnce() -> String) {
        *self.faults.entry(kind).or_default() += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(format!("{kind}: {}", example()));
        }
    }
}

//! How a NIC spreads packets over workers, without one.

use erhu_pipeline::rss::DEFAULT_KEY;
use erhu_pipeline::steering::{self, Role, Spread};

/// Ports that can hash whatever they are asked to, as the best NICs can, with the usual key and 128 entries.
pub fn spreads(roles: &[Role], workers: usize) -> Vec<Option<Spread>> {
    let workers = u16::try_from(workers).unwrap_or(1).max(1);
    let fields = steering::fields(roles, |_, _| true);
    let spread = |fields| Spread::new(fields, &DEFAULT_KEY, (0..128).map(|entry| entry % workers));
    fields.into_iter().map(spread).collect()
}

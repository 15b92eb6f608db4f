//! How much memory an instance takes: the formula that `erhu check --config` applies and `dataplane/MEMORY.md` explains.
//!
//! What lies in shared memory or has a fixed layout is exact; the rest are upper bounds, which tests of the crates that
//! hold it keep true.

use crate::connections::{Class, SEGMENT, SEGMENT_LINES, SlabLayout};
use crate::events::EventsRegion;
use crate::program::{AddressRange, Program};
use crate::stats::{self, StatsRegion};

/// Entries of an event ring, per worker.
pub const EVENTS: usize = 1 << 14;
/// Per cent of the index's places that are used at capacity. Look-ups would like 70, where one entry in 26 is displaced
/// instead of one in 17; but a connection would take 1.5 bytes more.
pub const INDEX_LOAD: u64 = 75;
/// Bytes of a connection's endpoint-independent mapping: a record of 16, 20 of the index of mappings, and a share of its
/// host's record where a host has eight connections or more.
pub const MAPPING: u64 = 40;
/// Bytes of a pool address that no connection uses: its place among those of its pool.
pub const POOL_ADDRESS: u64 = 16;
/// Bytes of a pool address whose ports are all in use, for three protocols.
pub const BUSY_POOL_ADDRESS: u64 = 28 << 10;
/// Bytes of a zone in a rule set; two rule sets live at once while one replaces another.
pub const ZONE: u64 = 320;
/// Bytes of an interface in a rule set, its addresses and routes included.
pub const INTERFACE: u64 = 640;
/// Bytes of a rule in a rule set.
pub const RULE: u64 = 640;
/// Bytes of a route in a rule set.
pub const ROUTE: u64 = 128;
/// Bytes that workers share, whatever is configured: accounts of zones, adjacencies, locks.
pub const SHARED: u64 = 16 << 20;
/// Bytes of a worker's own: wheel, memory of next hops, counters, stack, caches of packets.
pub const WORKER: u64 = 4 << 20;

/// What decides how much memory is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Connections that may live at once.
    pub connections: u32,
    /// Workers.
    pub workers: usize,
    /// MiB for packets.
    pub memory_mb: u32,
}

/// Bytes by what takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizing {
    /// The slab with as many connections as may live, by [`Class::ALL`].
    pub slab: [u64; Class::ALL.len()],
    /// The index.
    pub index: u64,
    /// Mappings of as many connections, and ports in use at pool addresses.
    pub nat: u64,
    /// Counters.
    pub stats: u64,
    /// Event rings.
    pub events: u64,
    /// Two rule sets, old and new.
    pub rules: u64,
    /// Packets.
    pub packets: u64,
    /// Everything else.
    pub rest: u64,
}

impl Sizing {
    /// Of a configuration with a rule set.
    pub fn of(wanted: Wanted, program: &Program) -> Self {
        let workers = wanted.workers.max(1);
        let connections = u64::from(wanted.connections);
        let addresses: u64 = program
            .pools
            .iter()
            .flat_map(|pool| &pool.addresses)
            .map(AddressRange::count)
            .fold(0, u64::saturating_add);
        // No more addresses can be busy than there are connections to keep them so.
        let busy = addresses.min(connections.div_ceil(1 << 10)).saturating_mul(BUSY_POOL_ADDRESS);
        let mappings = if program.pools.is_empty() { 0 } else { connections };
        let rules = program.hooks.iter().map(|h| h.rules.len()).chain(program.chains.iter().map(|c| c.rules.len()));
        let each = [
            (program.zones.len(), ZONE),
            (program.interfaces.len(), INTERFACE),
            (program.routes.len(), ROUTE),
            (rules.sum(), RULE),
        ];
        let rule_set: u64 = each.iter().map(|(count, bytes)| *count as u64 * bytes).sum();
        let names = |count: usize, bytes: usize| count as u64 * (64 + (workers * bytes) as u64);
        let stats = stats::FIXED
            + (workers * stats::WORKER_BYTES) as u64
            + names(program.zones.len(), size_of::<stats::ZoneBlock>())
            + names(
                program.interfaces.len(),
                size_of::<stats::InterfaceBlock>() + size_of::<stats::InterfaceDrops>(),
            )
            + names(program.counters.len(), size_of::<stats::NamedCounter>());
        Self {
            slab: Class::ALL.map(|class| slab(wanted.connections, workers, class)),
            index: index(wanted.connections),
            nat: (mappings * MAPPING).saturating_add(addresses.saturating_mul(POOL_ADDRESS)).saturating_add(busy),
            stats: stats.min(StatsRegion::size(workers) as u64),
            events: EventsRegion::size(workers, EVENTS) as u64,
            rules: 2 * rule_set,
            packets: u64::from(wanted.memory_mb) << 20,
            rest: SHARED + workers as u64 * WORKER,
        }
    }

    /// All of it, if all connections are of one class.
    pub fn total(&self, class: Class) -> u64 {
        let slab = Class::ALL.iter().zip(self.slab).find(|(c, _)| **c == class).map_or(0, |(_, bytes)| bytes);
        [slab, self.index, self.nat, self.stats, self.events, self.rules, self.packets, self.rest]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// What lies in the instance's folder, and so in its file system.
    pub fn folder(&self, class: Class) -> u64 {
        let slab = Class::ALL.iter().zip(self.slab).find(|(c, _)| **c == class).map_or(0, |(_, bytes)| bytes);
        slab + self.stats + self.events
    }
}

/// Bytes of the segments that so many connections of one class fill, one of every worker's partly.
pub fn slab(connections: u32, workers: usize, class: Class) -> u64 {
    let full = connections.div_ceil(class.per_segment()) as usize + workers - 1;
    let most = SlabLayout::for_capacity(connections, workers).segments as usize;
    (full.min(most) * SEGMENT) as u64
}

/// Bytes of the index: buckets of 64 bytes, in 2 MiB pages, with places for eight directions.
pub fn index(connections: u32) -> u64 {
    let buckets = (2 * u64::from(connections) * 100).div_ceil(INDEX_LOAD * 8).max(67);
    (buckets * 64).next_multiple_of(2 << 20)
}

/// Bytes of one connection of a class in slab and index, without what is left over at a segment's end.
pub fn connection(class: Class) -> f64 {
    f64::from(class.lines() * 64) * f64::from(SEGMENT_LINES) / f64::from(class.per_segment() * class.lines())
        + 2.0 * 64.0 * 100.0 / (8 * INDEX_LOAD) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{Behaviour, Pool, PortRange};

    const WANTED: Wanted = Wanted { connections: 1_000_000, workers: 2, memory_mb: 1024 };

    #[test]
    fn a_million_connections_take_what_their_lines_take() {
        let sizing = Sizing::of(WANTED, &Program::empty());
        let mib = |bytes: u64| bytes >> 20;
        assert_eq!(sizing.slab.map(mib), [186, 248, 308, 370]);
        assert_eq!(mib(sizing.index), 22);
        assert_eq!((mib(sizing.packets), sizing.nat), (1024, 0));
        assert_eq!(sizing.total(Class::Tcp4) - sizing.total(Class::Udp4), sizing.slab[1] - sizing.slab[0]);
        assert!(sizing.folder(Class::Udp4) < sizing.total(Class::Udp4));
    }

    #[test]
    fn an_ipv4_connection_stays_within_what_is_promised_mapping_included() {
        let [udp, tcp] = [Class::Udp4, Class::Tcp4].map(|class| connection(class) + MAPPING as f64);
        assert!(udp <= 256.0 && tcp <= 320.0, "{udp} {tcp}");
    }

    #[test]
    fn a_pool_too_large_to_count_takes_too_much_and_overflows_nothing() {
        let mut program = Program::empty();
        let all = AddressRange { first: [0; 16].into(), last: [255; 16].into() };
        program.pools.push(Pool {
            name: "all".into(),
            addresses: vec![all, all],
            ports: PortRange { first: 1024, last: u16::MAX },
            mapping: Behaviour::EndpointIndependent,
            filtering: Behaviour::EndpointIndependent,
            preserve_port: true,
            parity: true,
            paired: true,
            reuse_delay_ms: 0,
            hairpin: true,
            zone: 0,
        });
        assert_eq!(Sizing::of(WANTED, &program).total(Class::Udp4), u64::MAX);
    }
}

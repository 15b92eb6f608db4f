//! How much memory an instance takes: the formula that `erhu check --config` applies and `dataplane/MEMORY.md` explains.
//!
//! What lies in shared memory or has a fixed layout is exact; the rest are upper bounds, which tests of the crates that
//! hold it keep true.

use std::collections::BTreeSet;

use crate::connections::{Class, SEGMENT, SEGMENT_LINES, SlabLayout};
use crate::events::EventsRegion;
use crate::program::{Action, AddressRange, Behaviour, Hook, Pool, Program, Snat, SourceChoice};
use crate::stats::{self, StatsRegion};

/// Entries of an event ring, per worker.
pub const EVENTS: usize = 1 << 14;
/// Per cent of the index's places that are used at capacity. Look-ups would like 70, where one entry in 26 is displaced
/// instead of one in 17; but a connection would take 1.5 bytes more.
pub const INDEX_LOAD: u64 = 75;
/// The same of the index of mappings, where only first and last packets look something up.
pub const MAPPING_INDEX_LOAD: u64 = 85;
/// Bytes of a connection's endpoint-independent mapping: a record, and in the index of mappings two places and an
/// eighth of one for a host.
pub const MAPPING: u64 = RECORD + 20;
/// Bytes of a mapping's record.
const RECORD: u64 = 16;
/// Bytes of an inside host: a record of 32, a quarter of such for nothing, and a place of its own if the index of
/// translation, which has one for every eighth connection, is full.
pub const HOST: u64 = 56;
/// Bytes of a mapping that serves one remote address: a place of 25 in each of two tables, half full at worst.
pub const DEPENDENT: u64 = 116;
/// Bytes of a remote address that a mapping admits, where its pool's filtering is by address.
pub const REMOTE: u64 = 68;
/// Bytes of a pool: what is kept of it by shard of hosts.
pub const POOL: u64 = 20 << 10;
/// Bytes of a pool address that no connection uses: its place among those of its pool, of which there may be nearly
/// twice as many as addresses.
pub const POOL_ADDRESS: u64 = 20;
/// Bytes of an address that connections are translated to.
pub const USED_ADDRESS: u64 = 128;
/// Bytes of such an address's map of ports, for each protocol that uses any.
pub const USED_PROTOCOL: u64 = 448;
/// Bytes of a piece of a map: a bit for each of 8192 ports, made when the first of them is used.
pub const USED_PIECE: u64 = 1 << 10;
/// Bytes of what leads to the counts of those who share ports, for each map where connections to different remotes do.
pub const SHARED_PROTOCOL: u64 = 4 << 10;
/// Bytes of a piece of 256 such counts.
pub const SHARED_PIECE: u64 = 512;
/// Bytes of an address whose ports are all in use, each by one mapping, for three protocols.
pub const BUSY_POOL_ADDRESS: u64 = USED_ADDRESS + PROTOCOLS * (USED_PROTOCOL + PIECES * USED_PIECE);
/// Protocols that have ports or identifiers.
const PROTOCOLS: u64 = 3;
/// Pieces of a map of ports.
const PIECES: u64 = 8;
/// Pieces of the counts of one.
const SHARED_PIECES: u64 = 256;
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
    /// The largest class that connections can have: IPv6 counts where a rule set has an address of it.
    pub class: Class,
}

impl Sizing {
    /// Of a configuration with a rule set.
    pub fn of(wanted: Wanted, program: &Program) -> Self {
        let workers = wanted.workers.max(1);
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
            nat: translation(wanted.connections, program),
            stats: stats.min(StatsRegion::size(workers) as u64),
            events: EventsRegion::size(workers, EVENTS) as u64,
            rules: 2 * rule_set,
            packets: u64::from(wanted.memory_mb) << 20,
            rest: SHARED + workers as u64 * WORKER,
            class: if has_ipv6(program) { Class::Tcp6 } else { Class::Tcp4 },
        }
    }

    /// All of it, if all connections are of one class.
    pub fn total(&self, class: Class) -> u64 {
        let slab = Class::ALL.iter().zip(self.slab).find(|(c, _)| **c == class).map_or(0, |(_, bytes)| bytes);
        sum([slab, self.index, self.nat, self.stats, self.events, self.rules, self.packets, self.rest])
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

/// Bytes of the index.
pub fn index(connections: u32) -> u64 {
    buckets(2 * u64::from(connections), INDEX_LOAD)
}

/// Hosts that the index of mappings has places for: one for every eight connections. Few connections get as many as
/// more would, since hosts are counted by lock.
pub fn indexed_hosts(connections: u32) -> u32 {
    connections.max(1 << 15) / 8
}

/// Entries that the index of mappings is made for: two of each connection's mapping, and hosts. It is there whether
/// a rule set translates or not.
pub fn mapping_entries(connections: u32) -> u64 {
    17 * u64::from(indexed_hosts(connections))
}

/// Bytes of the buckets of an index, in 2 MiB pages: 64 for eight places, so many per cent of them used. Their number is
/// the next prime one, at most 336 further.
fn buckets(entries: u64, load: u64) -> u64 {
    (((entries * 100).div_ceil(load * 8) + 336) * 64).next_multiple_of(2 << 20)
}

/// Bytes of translation with as many connections as may live, each of a host of its own, and no two of them with ports in
/// one piece of a map as long as there are others.
fn translation(connections: u32, program: &Program) -> u64 {
    let index = buckets(mapping_entries(connections), MAPPING_INDEX_LOAD);
    let connections = u64::from(connections);
    let pools = || program.pools.iter();
    let each = connections * pools().map(|pool| HOST + mapping(pool)).max().unwrap_or(0);
    let idle = pools().map(|pool| POOL.saturating_add(count(&pool.addresses).saturating_mul(POOL_ADDRESS)));
    let of_pools = |shared: bool| {
        let pools = pools().filter(move |pool| (pool.mapping != Behaviour::EndpointIndependent) == shared);
        sum(pools.map(|pool| count(&pool.addresses)))
    };
    let shared = of_pools(true).saturating_add(without_pool(program));
    sum([index, each, sum(idle), used(connections, of_pools(false), false), used(connections, shared, true)])
}

/// Bytes of one connection's mapping in a pool, the index not counted.
fn mapping(pool: &Pool) -> u64 {
    match (pool.mapping, pool.filtering) {
        (Behaviour::EndpointIndependent, Behaviour::AddressDependent) => RECORD + REMOTE,
        (Behaviour::EndpointIndependent, _) => RECORD,
        (Behaviour::AddressDependent, _) => RECORD + DEPENDENT,
        (Behaviour::AddressPortDependent, _) => 0,
    }
}

/// Addresses that rules translate to without a pool: of interfaces, if any rule masquerades, and those that rules name.
fn without_pool(program: &Program) -> u64 {
    let hook = program.hooks.get(Hook::Postrouting.index()).map_or(&[][..], |hook| &hook.rules);
    let rules = hook.iter().chain(program.chains.iter().flat_map(|chain| &chain.rules));
    // Many rules may name the same ones.
    let mut ranges = BTreeSet::new();
    let mut own = 0;
    for action in rules.flat_map(|rule| &rule.actions) {
        match action {
            Action::Masquerade { .. } => own = program.interfaces.iter().map(|i| i.addresses.len() as u64).sum(),
            Action::Snat(Snat { source: SourceChoice::To(to), .. }) => {
                ranges.extend(to.iter().map(|range| (range.first, range.last)));
            }
            Action::Netmap(prefix) => {
                let ones = if prefix.network.is_ipv6() { [0xff; 16].into() } else { [0xff; 4].into() };
                ranges.extend(prefix.over(ones).map(|last| (prefix.network, last)));
            }
            _ => {}
        }
    }
    sum(ranges.into_iter().map(|(first, last)| AddressRange { first, last }.count())).saturating_add(own)
}

/// Bytes of the ports in use at some addresses, as far as there are connections to use them.
fn used(connections: u64, addresses: u64, shared: bool) -> u64 {
    let most = |of_each: u64| addresses.saturating_mul(of_each).min(connections);
    let maps = most(PROTOCOLS);
    let alone = most(1) * USED_ADDRESS + maps * USED_PROTOCOL + most(PROTOCOLS * PIECES) * USED_PIECE;
    let counts = maps * SHARED_PROTOCOL + most(PROTOCOLS * SHARED_PIECES) * SHARED_PIECE;
    if shared { alone + counts } else { alone }
}

/// Whether a program has an address of IPv6 that packets could come from or go to.
fn has_ipv6(program: &Program) -> bool {
    let interfaces = program.interfaces.iter().flat_map(|interface| &interface.addresses).map(|a| a.address);
    let routes = program.routes.iter().map(|route| route.prefix.network);
    let pools = program.pools.iter().flat_map(|pool| &pool.addresses).map(|range| range.first);
    interfaces.chain(routes).chain(pools).any(|address| address.is_ipv6())
}

fn count(ranges: &[AddressRange]) -> u64 {
    sum(ranges.iter().map(AddressRange::count))
}

fn sum(bytes: impl IntoIterator<Item = u64>) -> u64 {
    bytes.into_iter().fold(0, u64::saturating_add)
}

/// Bytes of one connection of a class in slab and index, without what is left over at a segment's end.
pub fn connection(class: Class) -> f64 {
    f64::from(class.lines() * 64) * f64::from(SEGMENT_LINES) / f64::from(class.per_segment() * class.lines())
        + 2.0 * 64.0 * 100.0 / (8 * INDEX_LOAD) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{Position, Prefix, Route, RouteTarget, Rule};

    const WANTED: Wanted = Wanted { connections: 1_000_000, workers: 2, memory_mb: 1024 };

    #[test]
    fn a_million_connections_take_what_their_lines_take() {
        let sizing = Sizing::of(WANTED, &Program::empty());
        let mib = |bytes: u64| bytes >> 20;
        assert_eq!(sizing.slab.map(mib), [186, 248, 308, 370]);
        assert_eq!(mib(sizing.index), 22);
        assert_eq!((mib(sizing.packets), mib(sizing.nat)), (1024, 20));
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
        let mut program = program();
        let all = AddressRange { first: [0; 16].into(), last: [255; 16].into() };
        program.pools[0].addresses = vec![all, all];
        assert_eq!(Sizing::of(WANTED, &program).total(Class::Udp4), u64::MAX);
    }

    #[test]
    fn a_rule_set_with_an_address_of_ipv6_is_reckoned_with_connections_of_ipv6() {
        let mut program = program();
        let four = Sizing::of(WANTED, &program);
        program.routes.push(Route {
            zone: 0,
            prefix: Prefix::new([0; 16].into(), 0).unwrap(),
            target: RouteTarget::Blackhole,
            metric: 0,
        });
        let both = Sizing::of(WANTED, &program);
        assert_eq!((four.class, both.class), (Class::Tcp4, Class::Tcp6));
        let more = both.total(both.class) - four.total(four.class);
        assert_eq!(more, both.slab[3] - four.slab[1] + 2 * ROUTE);
    }

    #[test]
    fn pools_that_map_by_remote_share_ports_and_count_for_that() {
        let mut program = program();
        let alone = Sizing::of(WANTED, &program).nat;
        program.pools[0].mapping = Behaviour::AddressPortDependent;
        let shared = Sizing::of(WANTED, &program).nat;
        assert_eq!(alone - shared, 1_000_000 * RECORD - 3 * (SHARED_PROTOCOL + 256 * SHARED_PIECE));
        program.pools[0].mapping = Behaviour::AddressDependent;
        assert_eq!(Sizing::of(WANTED, &program).nat - shared, 1_000_000 * (RECORD + DEPENDENT));
    }

    #[test]
    fn addresses_without_a_pool_count_once_however_many_rules_translate_to_them() {
        let mut program = program();
        let before = Sizing::of(WANTED, &program).nat;
        let to = SourceChoice::To(program.pools[0].addresses.clone());
        let snat = Action::Snat(Snat { source: to, ports: None, random: false, persistent: false });
        let netmap = Action::Netmap(Prefix::new([192, 0, 2, 0].into(), 24).unwrap());
        for actions in [vec![snat.clone()], vec![snat], vec![netmap]] {
            let rule = Rule { at: Position::default(), matches: Vec::new(), actions };
            program.hooks[Hook::Postrouting.index()].rules.push(rule);
        }
        assert_eq!(Sizing::of(WANTED, &program).nat - before, used(1_000_000, 1 + 256, true));
    }

    /// One pool of one IPv4 address.
    fn program() -> Program {
        let one = [198, 51, 100, 10].into();
        Program { pools: vec![Pool::new("public", vec![AddressRange { first: one, last: one }])], ..Program::empty() }
    }
}

//! What must hold of a router whatever came and went, looked up in its own memory.
//!
//! [`faults`] is asked after every replay, after every scene of the benchmarks and wherever a test drives workers itself.
//! It needs workers that stand still: all packets offered were carried to their end, or wait for a neighbour.
//!
//! | holds | |
//! |---|---|
//! | packets | what came or was made left, was consumed, was dropped for one reason, or waits for a neighbour |
//! | connections | created − ended = live, in all and as far as zones count; the slab shows exactly the living |
//! | tuples | no tuple leads to two connections, and the index finds each connection by both of its tuples |
//! | translation | what one direction makes of its packets is what the other is found by, turned round, and the checksum changes are those of exactly that |
//! | ports | given − returned is what living connections hold, of pools and outside of them; each held port is in use |
//! | bugs | no broken invariant was counted |

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use erhu_nat::{InUse, Lease, Target, kind};
use erhu_pipeline::Shared;
use erhu_pipeline::policy::Policy;
use erhu_planes::connections::status;
use erhu_planes::stats::{Directory, PortCounters, WorkerBlock, ZoneBlock};
use erhu_planes::tuple::{Key, Tuple, pack_ports, pack_v4, pack_v6};
use erhu_planes::{Counter, DropReason};
use erhu_table::{Entry, Reference};
use erhu_wire::Addresses6;
use erhu_wire::rewrite::Rewrite4;
use erhu_wire::rewrite6::Rewrite6;

/// Faults that are told; beyond them only their number.
const TOLD: usize = 20;

/// What does not hold; counters must have been published.
pub fn faults<B>(shared: &Shared<B>) -> Vec<String> {
    let mut faults = counters(shared);
    let connections = living(shared);
    faults.extend(tuples(shared, &connections));
    faults.extend(translations(&connections));
    faults.extend(ports(shared, &connections));
    if faults.len() > TOLD {
        let more = faults.len() - TOLD;
        faults.truncate(TOLD);
        faults.push(format!("… and {more} more"));
    }
    faults
}

/// Packets and connections, by what workers counted.
fn counters<B>(shared: &Shared<B>) -> Vec<String> {
    let mut faults = Vec::new();
    let of = |pick: &dyn Fn(&WorkerBlock) -> u64| shared.stats.sum(|w| shared.stats.worker(w).map_or(0, pick));
    let ports = |pick: &dyn Fn(&PortCounters) -> u64| of(&|b| b.ports.iter().map(pick).sum());
    let counter = |c: Counter| of(&|b| b.counters[c.index()].load(Relaxed));
    let waiting: u64 = shared.adjacencies.list().iter().map(|n| u64::from(n.waiting)).sum();
    let drops: u64 = DropReason::ALL.iter().map(|r| of(&|b| b.drops[r.index()].load(Relaxed))).sum();
    let came = ports(&|p| p.rx_packets.load(Relaxed)) + counter(Counter::Originated);
    let went = ports(&|p| p.tx_packets.load(Relaxed)) + counter(Counter::Consumed) + drops + waiting;
    if came != went {
        faults.push(format!("{came} packets came or were made, {went} left, were consumed, dropped or wait"));
    }
    if counter(Counter::Bug) != 0 {
        faults.push(format!("{} broken invariants were counted", counter(Counter::Bug)));
    }
    let [created, ended] = [of(&|b| b.created.load(Relaxed)), of(&|b| b.ended.load(Relaxed))];
    let live = u64::from(shared.table.live());
    if created.wrapping_sub(ended) != live {
        faults.push(format!("{created} connections created - {ended} ended are not the {live} that live"));
    }
    for (slot, _, name) in shared.stats.names(Directory::Zones) {
        let of = |pick: &dyn Fn(&ZoneBlock) -> u64| shared.stats.sum(|w| shared.stats.zone(w, slot).map_or(0, pick));
        let [created, ended] = [of(&|b| b.created.load(Relaxed)), of(&|b| b.ended.load(Relaxed))];
        if ended > created || created - ended > live {
            faults.push(format!("zone {name}: {created} connections created, {ended} ended, {live} live in all"));
        }
    }
    faults
}

/// A connection that lives, with its tuples.
struct Living<'t> {
    entry: Entry<'t>,
    original: Tuple,
    reply: Tuple,
}

fn living<B>(shared: &Shared<B>) -> Vec<Living<'_>> {
    let mut living = Vec::new();
    shared.table.region().for_each(|connection| {
        let (original, reply) = (connection.original.tuple, connection.reply.tuple);
        living.extend(shared.table.entry_at(connection.line).map(|entry| Living { entry, original, reply }));
    });
    living
}

fn tuples<B>(shared: &Shared<B>, connections: &[Living<'_>]) -> Vec<String> {
    let mut faults = Vec::new();
    let (live, shown) = (shared.table.live() as usize, connections.len());
    if live != shown {
        faults.push(format!("{live} connections live, the slab shows {shown}"));
    }
    let mut taken = HashSet::with_capacity(2 * shown);
    for Living { entry, original, reply } in connections {
        // A connection with itself has one tuple.
        let tuples = if original == reply { &[original][..] } else { &[original, reply] };
        for (direction, tuple) in tuples.iter().enumerate() {
            if !taken.insert(**tuple) {
                faults.push(format!("{tuple:?} leads to two connections"));
            }
            let found = shared.table.find(&entry.key(direction)).map(Reference::line);
            if found != Some(entry.reference(direction).line()) {
                faults.push(format!("{tuple:?}, direction {direction}: the index finds {found:?}"));
            }
        }
    }
    faults
}

/// Ports of packets that are turned round: answers of those that have a tuple. An echo's identifier is both ends'.
const fn turned_ports(tuple: &Tuple) -> u32 {
    match tuple.is_icmp() {
        true => pack_ports(tuple.proto, tuple.sport, tuple.dport),
        false => pack_ports(tuple.proto, tuple.dport, tuple.sport),
    }
}

fn translations(connections: &[Living<'_>]) -> Vec<String> {
    let mut faults = Vec::new();
    for Living { entry, original, reply } in connections {
        for (direction, (from, to)) in [(original, reply), (reply, original)].into_iter().enumerate() {
            if !is_turned(*entry, direction, from, to) {
                faults.push(format!("what comes as {from:?} does not leave as what {to:?} answers"));
            }
        }
    }
    faults
}

/// A ones' complement sum, which has two zeros.
const fn sum(delta: u16) -> u16 {
    delta % u16::MAX
}

/// Whether a direction's packets, which come with `from`, leave as what packets with `to` are answers to.
#[expect(clippy::cast_possible_truncation, reason = "fields are cut out of the word on purpose")]
fn is_turned(entry: Entry<'_>, direction: usize, from: &Tuple, to: &Tuple) -> bool {
    let ports = [pack_ports(from.proto, from.sport, from.dport), turned_ports(to)];
    let pair = |words: &[AtomicU64; 2]| [words[0].load(Relaxed), words[1].load(Relaxed)];
    match ([from.src, from.dst], [to.dst, to.src], entry.key(direction)) {
        ([IpAddr::V4(src), IpAddr::V4(dst)], [IpAddr::V4(new_src), IpAddr::V4(new_dst)], Key::V4(_)) => {
            let addresses = |src, dst| u64::from(pack_v4(src)) | u64::from(pack_v4(dst)) << 32;
            let want =
                Rewrite4::new(from.proto, (addresses(src, dst), ports[0]), (addresses(new_src, new_dst), ports[1]));
            let hot = entry.hot4(direction);
            let packed = hot.ports_deltas.load(Relaxed);
            let addresses = hot.addresses.load(Relaxed);
            let [l3_delta, l4_delta] = [(packed >> 32) as u16, (packed >> 48) as u16];
            let deltas = (sum(want.l3_delta), sum(want.l4_delta)) == (sum(l3_delta), sum(l4_delta));
            deltas && (want.addresses, want.ports) == (addresses, packed as u32)
        }
        ([IpAddr::V6(src), IpAddr::V6(dst)], [IpAddr::V6(new_src), IpAddr::V6(new_dst)], Key::V6(_)) => {
            let addresses = |src, dst| Addresses6 { src: pack_v6(src), dst: pack_v6(dst) };
            let want =
                Rewrite6::new(from.proto, (addresses(src, dst), ports[0]), (addresses(new_src, new_dst), ports[1]));
            let (hot, write) = entry.hot6(direction);
            let packed = hot.ports_deltas.load(Relaxed);
            let addresses = Addresses6 { src: pair(&write.src), dst: pair(&write.dst) };
            let delta = sum(want.l4_delta) == sum((packed >> 48) as u16);
            delta && (want.addresses, want.ports) == (addresses, packed as u32)
        }
        _ => false,
    }
}

/// What connections hold of the ports of a rule set's pools.
#[derive(Debug, Default)]
struct Held {
    /// Mappings, by pool.
    mappings: HashMap<u32, HashSet<u32>>,
    /// Shares of ports, by pool.
    shares: HashMap<u32, u64>,
    /// Outside pools.
    direct: u64,
    /// Somebody holds what is of no pool that the rule set has.
    is_partial: bool,
}

fn ports<B>(shared: &Shared<B>, connections: &[Living<'_>]) -> Vec<String> {
    let Some(policy) = shared.policy() else { return Vec::new() };
    let (mut faults, mut held) = (Vec::new(), Held::default());
    for living in connections {
        if !hold(shared, &policy, living, &mut held) {
            faults.push(format!("{:?} uses a port that nobody has", living.reply));
        }
    }
    for pool in shared.nat.status(&policy.pools) {
        let id = policy.pools.iter().find(|spec| spec.name == pool.name).map_or(0, |spec| spec.id());
        let mappings = held.mappings.get(&id).map_or(0, HashSet::len) as u64;
        let used = mappings + held.shares.get(&id).copied().unwrap_or(0);
        let in_use: u64 = pool.ports_in_use.iter().map(|(_, n)| n).sum();
        // What no connection was found to hold may be of those that are not known.
        let is_right = if held.is_partial { used <= in_use } else { used == in_use };
        if !is_right || pool.given.wrapping_sub(pool.returned) != in_use {
            faults.push(format!(
                "pool {}: {} ports given - {} returned, {in_use} in use, connections hold {used}",
                pool.name, pool.given, pool.returned
            ));
        }
    }
    let direct = shared.nat.direct_status();
    if direct.given.wrapping_sub(direct.returned) != held.direct {
        let (given, returned) = (direct.given, direct.returned);
        faults.push(format!("outside pools: {given} ports given - {returned} returned, {} held", held.direct));
    }
    faults
}

/// Notes what a connection holds. `false`: it holds what is not in use.
fn hold<B>(shared: &Shared<B>, policy: &Policy, living: &Living<'_>, held: &mut Held) -> bool {
    let Living { entry, original, reply } = living;
    let cold = entry.cold();
    let (kind, mapping) = (cold.nat_kind.load(Relaxed), cold.mapping.load(Relaxed));
    let is_turned = cold.status.load(Relaxed) & status::DST_NAT != 0;
    if is_turned {
        // It may have come in by a mapping, whose pool may be of another zone than it came from.
        let (called, port) = (original.dst, if original.is_icmp() { original.sport } else { original.dport });
        for spec in policy.pools.iter().filter(|spec| spec.contains(called)) {
            let way = shared.nat.way_in(spec.zone, called, port, original.proto);
            if let Some(way) = way.filter(|way| (way.inside.address, way.inside.pool) == (reply.src, spec.id())) {
                held.mappings.entry(spec.id()).or_default().insert(way.mapping);
            }
        }
    }
    let Some(lease) = Lease::rebuild(kind, mapping, reply) else { return true };
    match kind {
        kind::DIRECT => held.direct += 1,
        kind::POOL => {
            let gives = |target: &Target<'_>| shared.nat.would_give(&lease, target, None);
            match policy.pools.iter().find(|spec| gives(&Target::Pool(spec))) {
                Some(spec) => *held.shares.entry(spec.id()).or_default() += 1,
                None => held.is_partial = true,
            }
        }
        // Where the destination is translated too, the zone of its source's address is its owner's knowledge.
        _ if is_turned => {
            let spec = policy.pools.iter().find(|spec| spec.contains(lease.address));
            match spec {
                Some(spec) => drop(held.mappings.entry(spec.id()).or_default().insert(mapping)),
                None => held.is_partial = true,
            }
        }
        _ => {
            let found = shared.nat.mapping_at(lease.zone, lease.address, lease.port, lease.proto, lease.remote);
            let Some(InUse::Mapping(inside)) = found else { return false };
            if (inside.zone, inside.address) != (original.zone, original.src)
                || inside.port != original.sport
                || kind == kind::ENDPOINT
                    && shared
                        .nat
                        .way_in(lease.zone, lease.address, lease.port, lease.proto)
                        .is_none_or(|way| way.mapping != mapping)
            {
                return false;
            }
            match policy.pools.with_id(inside.pool) {
                Some(spec) => drop(held.mappings.entry(spec.id()).or_default().insert(mapping)),
                None => held.is_partial = true,
            }
        }
    }
    true
}

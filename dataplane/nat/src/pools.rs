//! Pools as a rule set has them, and what of them outlives rule sets.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};

use erhu_planes::TICKS_PER_SECOND;
use erhu_planes::program::{Behaviour, Pool, PortRange, Program};
use erhu_planes::protocol::PoolStatus;
use hashbrown::HashMap;

use crate::lock;
use crate::ports::Class;
use crate::spread::{AddressList, Cover, Spread, number};

/// What belongs to a pool's name over all rule sets: its number and its counters.
#[derive(Debug, Default)]
pub struct PoolState {
    number: u32,
    reuse_delay: AtomicU32,
    /// Its filtering is, or once was, by remote addresses, so that somebody counts these.
    remembers_remotes: AtomicBool,
    given: [AtomicU64; Class::ALL.len()],
    returned: [AtomicU64; Class::ALL.len()],
    exhausted: AtomicU64,
    hosts: AtomicU64,
    spreads: Mutex<Vec<Weak<Spread>>>,
}

impl PoolState {
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Counts a port given and one returned, of what has no host.
    pub fn count_given(&self, class: Class) {
        self.given[class as usize].fetch_add(1, Relaxed);
    }

    pub fn count_returned(&self, class: Class) {
        self.returned[class as usize].fetch_add(1, Relaxed);
    }

    /// Takes over what hosts that left were given and had returned, by class.
    pub fn count(&self, given: &[u64], returned: &[u64]) {
        for (all, new) in [(&self.given, given), (&self.returned, returned)] {
            for (count, new) in all.iter().zip(new) {
                count.fetch_add(*new, Relaxed);
            }
        }
    }

    pub fn count_exhausted(&self) {
        self.exhausted.fetch_add(1, Relaxed);
    }

    pub fn host_came(&self) {
        self.hosts.fetch_add(1, Relaxed);
    }

    pub fn host_left(&self) {
        self.hosts.fetch_sub(1, Relaxed);
    }

    pub fn remembers_remotes(&self) -> bool {
        self.remembers_remotes.load(Relaxed)
    }

    /// The tick until which a port given back now rests, if it does.
    pub fn rest_until(&self, now_tick: u32) -> Option<u32> {
        let delay = self.reuse_delay.load(Relaxed);
        (delay != 0).then(|| now_tick.saturating_add(delay))
    }

    /// Counters, with what hosts that are there were given and have returned, by class; names and sizes are the caller's
    /// to fill in.
    pub fn status(&self, of_hosts: &[[u64; 2]; Class::ALL.len()]) -> PoolStatus {
        // Returned ports are read first: each was given before, so the difference is never negative.
        let counts = Class::ALL.map(|class| {
            let [given, returned] = of_hosts[class as usize];
            let returned = returned + self.returned[class as usize].load(Relaxed);
            (class.protocol(), given + self.given[class as usize].load(Relaxed), returned)
        });
        let mut ports_in_use: Vec<(u8, u64)> =
            counts.iter().map(|(p, given, returned)| (*p, given.saturating_sub(*returned))).collect();
        ports_in_use.retain(|(_, n)| *n != 0);
        ports_in_use.sort_unstable();
        PoolStatus {
            hosts: self.hosts.load(Relaxed),
            ports_in_use,
            given: counts.iter().map(|c| c.1).sum(),
            returned: counts.iter().map(|c| c.2).sum(),
            exhausted: self.exhausted.load(Relaxed),
            ..PoolStatus::default()
        }
    }

    /// The spread over these addresses: the one that exists, or a new one without hosts.
    fn spread(self: &Arc<Self>, addresses: AddressList) -> Arc<Spread> {
        let mut spreads = lock(&self.spreads);
        spreads.retain(|s| s.strong_count() != 0);
        if let Some(spread) = spreads.iter().filter_map(Weak::upgrade).find(|s| s.addresses == addresses) {
            return spread;
        }
        let spread = Arc::new(Spread::new(Arc::clone(self), addresses));
        spreads.push(Arc::downgrade(&spread));
        spread
    }

    /// Heap bytes, spreads included.
    pub fn bytes(&self) -> usize {
        let spreads = lock(&self.spreads);
        size_of::<Self>() + spreads.iter().filter_map(Weak::upgrade).map(|s| s.bytes()).sum::<usize>()
    }
}

/// The states of all pools that a rule set has or a host uses.
#[derive(Debug, Default)]
pub struct Registry {
    by_name: BTreeMap<String, Arc<PoolState>>,
    last_number: u32,
}

impl Registry {
    fn state(&mut self, pool: &Pool) -> Arc<PoolState> {
        let state = self.by_name.entry(pool.name.clone()).or_insert_with(|| {
            self.last_number += 1;
            Arc::new(PoolState { number: self.last_number, ..PoolState::default() })
        });
        state.reuse_delay.store(ticks(pool.reuse_delay_ms), Relaxed);
        if pool.filtering == Behaviour::AddressDependent {
            state.remembers_remotes.store(true, Relaxed);
        }
        Arc::clone(state)
    }

    /// Forgets pools that no rule set and no host refers to.
    fn forget_unused(&mut self) {
        self.by_name.retain(|_, state| Arc::strong_count(state) > 1);
    }

    pub fn bytes(&self) -> usize {
        self.by_name.values().map(|s| s.bytes()).sum()
    }
}

/// Milliseconds as ticks, rounded up.
fn ticks(milliseconds: u64) -> u32 {
    let ticks = milliseconds.saturating_mul(u64::from(TICKS_PER_SECOND)).div_ceil(1000);
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

/// A pool as one rule set has it.
#[derive(Debug)]
pub struct PoolSpec {
    /// Name.
    pub name: String,
    /// Ports to give.
    pub ports: PortRange,
    /// Which remotes share a mapping.
    pub mapping: Behaviour,
    /// Which remotes may use a mapping inbound.
    pub filtering: Behaviour,
    /// Keep the source port where it is free.
    pub preserve_port: bool,
    /// Keep the port's parity where possible.
    pub parity: bool,
    /// A host keeps one address.
    pub paired: bool,
    /// Inside hosts may reach each other by their mapped addresses.
    pub hairpin: bool,
    /// Id of the zone whose addresses they are.
    pub zone: u16,
    state: Arc<PoolState>,
    v4: Option<Arc<Spread>>,
    v6: Option<Arc<Spread>>,
}

impl PoolSpec {
    /// The number of the pool's name: the same over rule sets, as long as one has the pool or ports of it are in use.
    pub fn id(&self) -> u32 {
        self.state.number
    }

    /// Whether an address is one of the pool's.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.spread(address.is_ipv6()).is_some_and(|s| s.addresses.place_of(address).is_some())
    }

    /// Number of addresses.
    pub fn addresses(&self) -> u64 {
        [&self.v4, &self.v6].into_iter().flatten().map(|s| u64::from(s.addresses.len())).sum()
    }

    pub(crate) fn state(&self) -> &Arc<PoolState> {
        &self.state
    }

    pub(crate) fn spread(&self, v6: bool) -> Option<&Arc<Spread>> {
        if v6 { self.v6.as_ref() } else { self.v4.as_ref() }
    }
}

/// Addresses that belong to one pool.
#[derive(Debug)]
struct Owned {
    zone: u16,
    v6: bool,
    first: u128,
    last: u128,
    pool: usize,
}

/// IPv4 addresses of a zone that belong to a pool.
#[derive(Debug)]
struct Owned4 {
    zone: u16,
    first: u32,
    last: u32,
}

/// The pools of one rule set.
#[derive(Debug, Default)]
pub struct Pools {
    specs: Vec<PoolSpec>,
    /// By zone, family and address; no two overlap.
    owned: Vec<Owned>,
    /// Those of IPv4 once more.
    owned4: Vec<Owned4>,
    /// Index by number.
    by_id: HashMap<u32, usize>,
}

impl Pools {
    pub(crate) fn compile(program: &Program, registry: &mut Registry) -> Self {
        registry.forget_unused();
        let mut covers: BTreeMap<(u16, bool), Cover> = BTreeMap::new();
        let mut pools = Self::default();
        for (index, pool) in program.pools.iter().enumerate() {
            let state = registry.state(pool);
            pools.by_id.insert(state.number, index);
            let spread = |v6| AddressList::new(&pool.addresses, v6).map(|list| state.spread(list));
            pools.specs.push(PoolSpec {
                name: pool.name.clone(),
                ports: pool.ports,
                mapping: pool.mapping,
                filtering: pool.filtering,
                preserve_port: pool.preserve_port,
                parity: pool.parity,
                paired: pool.paired,
                hairpin: pool.hairpin,
                zone: pool.zone,
                v4: spread(false),
                v6: spread(true),
                state,
            });
            for range in &pool.addresses {
                let v6 = range.first.is_ipv6();
                let cover = covers.entry((pool.zone, v6)).or_default();
                for (first, last) in cover.add(number(range.first), number(range.last)) {
                    pools.owned.push(Owned { zone: pool.zone, v6, first, last, pool: index });
                }
            }
        }
        pools.owned.sort_unstable_by_key(|o| (o.zone, o.v6, o.first));
        let low = |n: u128| u32::try_from(n).ok();
        let v4 = pools.owned.iter().filter(|o| !o.v6);
        let v4 = v4.filter_map(|o| Some(Owned4 { zone: o.zone, first: low(o.first)?, last: low(o.last)? }));
        pools.owned4 = v4.collect();
        pools
    }

    /// The pool at an index of the program.
    pub fn get(&self, index: usize) -> Option<&PoolSpec> {
        self.specs.get(index)
    }

    /// The pool with an id ([`PoolSpec::id`]).
    pub fn with_id(&self, id: u32) -> Option<&PoolSpec> {
        self.specs.get(*self.by_id.get(&id)?)
    }

    /// All pools, in the program's order.
    pub fn iter(&self) -> impl Iterator<Item = &PoolSpec> {
        self.specs.iter()
    }

    /// The index of the pool that has an address of a zone; the first in the program's order if there are several.
    pub fn owner(&self, zone: u16, address: IpAddr) -> Option<usize> {
        let wanted = (zone, address.is_ipv6(), number(address));
        let after = self.owned.partition_point(|o| (o.zone, o.v6, o.first) <= wanted);
        let owned = self.owned.get(after.checked_sub(1)?)?;
        ((owned.zone, owned.v6) == (wanted.0, wanted.1) && wanted.2 <= owned.last).then_some(owned.pool)
    }

    /// Whether some pool has an IPv4 address, in host order, of a zone.
    #[inline]
    pub fn owns4(&self, zone: u16, address: u32) -> bool {
        let after = self.owned4.partition_point(|o| (o.zone, o.first) <= (zone, address));
        let before = after.checked_sub(1).and_then(|at| self.owned4.get(at));
        before.is_some_and(|o| o.zone == zone && address <= o.last)
    }

    /// How full each pool is, in the program's order; `of_hosts` says by number what its hosts were given and have
    /// returned, by class.
    pub(crate) fn status(&self, of_hosts: &HashMap<u32, [[u64; 2]; Class::ALL.len()]>) -> Vec<PoolStatus> {
        let status = |s: &PoolSpec| {
            let own = of_hosts.get(&s.id()).copied().unwrap_or_default();
            PoolStatus { name: s.name.clone(), addresses: s.addresses(), ..s.state.status(&own) }
        };
        self.specs.iter().map(status).collect()
    }
}

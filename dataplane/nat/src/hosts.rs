//! Inside hosts: the external address each was given, and what else is kept by host.
//!
//! A host is a record of 32 bytes that stays where it is and is read without locks; it is changed under the lock of its
//! shard. Hosts are found in the [`Book`]; those for which that has no room are found in their shard.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use erhu_table::Apart;
use hashbrown::{HashMap, HashTable};
use spin::mutex::SpinMutexGuard;

use crate::Lock;
use crate::book::{As, Book, REFERENCES, host_hash};
use crate::mappings::{FreeMappings, Mappings};
use crate::ports::Class;
use crate::random::Hasher;
use crate::spread::Spread;

/// Locks; the lowest bits of a host's reference say which.
const SHARDS: usize = 1 << SHARD_BITS;
const SHARD_BITS: u32 = 8;
/// Records of a shard's first block. Four blocks have the same size, the next four twice that, so that at most a quarter
/// of the records is there for nothing.
const FIRST: u32 = 64;
/// Hosts of a shard that references can name.
const MOST: u32 = REFERENCES >> SHARD_BITS;
/// Blocks that hold so many.
const BLOCKS: usize = place_of(MOST).0 + 1;
/// End of a free list.
const NONE: u32 = u32::MAX;

/// What a host is, in words that each mean something alone. A reader without the lock may see a mixture of a host that
/// left and one that came: what it makes of that is only ever a guess about what to prefetch.
#[derive(Debug, Default)]
struct Record {
    /// Of IPv6 the address. Of IPv4 the address, then the external address and the zone of that.
    address: [AtomicU64; 2],
    /// Pool number, zone, family, place in the shard's list of spreads. All ones in a free record.
    owner: AtomicU64,
    /// Place of its external address.
    place: AtomicU32,
    /// Mappings, or ports that it shares; in a free record the next free one.
    leases: AtomicU32,
}
const _: () = assert!(size_of::<Record>() == 32);

/// A free record's owner: no pool has this number.
const FREE: u64 = u64::MAX;
const V6: u64 = 1 << 48;
const SPREAD_SHIFT: u32 = 49;
/// Spreads that one shard's hosts may have.
const SPREADS: usize = 1 << (u64::BITS - SPREAD_SHIFT);

fn owner(pool: u32, zone: u16, address: IpAddr, spread: usize) -> u64 {
    let family = if address.is_ipv6() { V6 } else { 0 };
    u64::from(pool) | u64::from(zone) << 32 | family | (spread as u64) << SPREAD_SHIFT
}

#[expect(clippy::cast_possible_truncation, reason = "halves of an address")]
fn words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(a) => [u64::from(u32::from(a)), 0],
        IpAddr::V6(a) => [u128::from(a) as u64, (u128::from(a) >> 64) as u64],
    }
}

/// A host as it is now.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Its address.
    pub address: IpAddr,
    /// Its zone.
    pub zone: u16,
    /// Number of its pool.
    pub pool: u32,
    /// Place of its external address.
    pub place: u32,
    /// Mappings, or ports that it shares.
    pub leases: u32,
    spread: usize,
}

impl Host {
    /// What openings and endings need of it.
    pub fn state(&self) -> HostState {
        HostState { place: self.place, leases: self.leases, spread: self.spread }
    }
}

/// What an opening or an ending needs of a host.
#[derive(Clone, Copy, Debug)]
pub struct HostState {
    /// Place of its external address.
    pub place: u32,
    /// Mappings, or ports that it shares.
    pub leases: u32,
    /// Place of its addresses in its shard's list of spreads.
    pub spread: usize,
}

/// What a worker can guess of a host's next opening.
#[derive(Clone, Copy, Debug)]
pub struct Guess {
    /// Number of its pool.
    pub pool: u32,
    /// External address, in host order.
    pub address: u32,
    /// Zone of that.
    pub zone: u16,
    /// Its place in the pool.
    pub place: u32,
}

/// A mapping for one remote address.
#[derive(Clone, Copy, Debug)]
struct Dependent {
    mapping: u32,
    remote: IpAddr,
}

/// A pool's addresses as one shard's hosts have them, with what was given to these hosts since the first came.
#[derive(Debug)]
struct Used {
    spread: Arc<Spread>,
    hosts: u32,
    given: [u64; Class::ALL.len()],
    returned: [u64; Class::ALL.len()],
}

/// What is behind one lock.
#[derive(Debug)]
pub struct Shard {
    /// Hosts made so far, and the first of those that left.
    made: u32,
    free: u32,
    /// Hosts in the book.
    booked: u32,
    /// Hosts that the book has no room for, by hash.
    others: HashTable<u32>,
    used: Vec<Option<Used>>,
    /// Mappings for one remote address, by that and the inside endpoint.
    dependent: HashTable<Dependent>,
    /// Free mapping records.
    pub records: FreeMappings,
}

impl Default for Shard {
    fn default() -> Self {
        Self {
            made: 0,
            free: NONE,
            booked: 0,
            others: HashTable::new(),
            used: Vec::new(),
            dependent: HashTable::new(),
            records: FreeMappings::default(),
        }
    }
}

/// An inside endpoint: host, port, protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Reference of the host.
    pub host: u32,
    /// Port or ICMP identifier.
    pub port: u16,
    /// Protocol.
    pub class: Class,
}

impl Endpoint {
    pub fn of(mappings: &Mappings, reference: u32) -> Self {
        let binding = mappings.get(reference);
        Self { host: binding.host, port: binding.inside_port, class: binding.class }
    }

    fn hash_towards(&self, remote: IpAddr, hasher: &Hasher) -> u64 {
        let own = hasher.two(u64::from(self.host), u64::from(self.port) | (self.class as u64) << 16);
        hasher.address(remote, own)
    }
}

type Blocks = [OnceLock<Box<[Record]>>; BLOCKS];

/// All hosts.
#[derive(Debug)]
pub struct Hosts {
    shards: Box<[Lock<Shard>]>,
    blocks: Box<[Blocks]>,
    /// Times that a shard's counts became a pool's: with the last host of each that leaves.
    folds: Apart<AtomicU32>,
}

/// Block and place in it of a shard's n-th host.
const fn place_of(n: u32) -> (usize, usize) {
    // In units of the first block, four of which come before the numbers that have a leading bit and two more to count.
    let units = n / FIRST + 4;
    let doublings = units.ilog2() - 2;
    let block = 4 * doublings + (units >> doublings & 3);
    let within = units & ((1 << doublings) - 1);
    (block as usize, (within * FIRST + n % FIRST) as usize)
}

/// Records of a block.
const fn records_of(block: usize) -> usize {
    (FIRST as usize) << (block / 4)
}

impl Hosts {
    pub fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Lock::default()).collect(),
            blocks: (0..SHARDS).map(|_| std::array::from_fn(|_| OnceLock::new())).collect(),
            folds: Apart::new(AtomicU32::new(0)),
        }
    }

    /// Locks what holds the hosts of a hash.
    #[inline]
    pub fn of(&self, hash: u64) -> Locked<'_> {
        self.locked(usize::try_from(hash >> 8).unwrap_or(0) % SHARDS)
    }

    /// Locks what holds the host with a reference.
    #[inline]
    pub fn at(&self, reference: u32) -> Locked<'_> {
        self.locked(reference as usize % SHARDS)
    }

    fn locked(&self, number: usize) -> Locked<'_> {
        Locked { number, blocks: &self.blocks[number], folds: &self.folds, shard: self.shards[number].lock() }
    }

    fn record(&self, reference: u32) -> Option<&Record> {
        let (block, place) = place_of(reference >> SHARD_BITS);
        self.blocks[reference as usize % SHARDS].get(block)?.get()?.get(place)
    }

    /// Asks for the record of the host that a hash most likely means, and returns its reference.
    #[inline]
    pub fn prefetch(&self, book: &Book, hash: u64) -> Option<u32> {
        let reference = book.candidate(hash, As::Host)?;
        erhu_table::prefetch_line(self.record(reference)?);
        Some(reference)
    }

    /// Asks for the record of a host.
    #[inline]
    pub fn prefetch_record(&self, reference: u32) {
        if let Some(record) = self.record(reference) {
            erhu_table::prefetch_line(record);
        }
    }

    /// What can be guessed of a host of IPv4, without its lock.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of the words on purpose")]
    pub fn guess(&self, reference: u32) -> Option<Guess> {
        let record = self.record(reference)?;
        let (owner, external) = (record.owner.load(Relaxed), record.address[1].load(Relaxed));
        (owner & V6 == 0).then_some(Guess {
            pool: owner as u32,
            address: external as u32,
            zone: (external >> 32) as u16,
            place: record.place.load(Relaxed),
        })
    }

    /// What hosts were given and have returned, by pool number and class; and what `then` makes of it before counts move
    /// from hosts to their pool.
    pub fn counted<T>(&self, then: impl Fn(&HashMap<u32, [[u64; 2]; Class::ALL.len()]>) -> T) -> T {
        loop {
            let folds = self.folds.load(Relaxed);
            let mut counts: HashMap<u32, [[u64; 2]; Class::ALL.len()]> = HashMap::new();
            for shard in &self.shards {
                for used in shard.lock().used.iter().flatten() {
                    let of_pool = counts.entry(used.spread.pool.number()).or_default();
                    for ([given, returned], at) in of_pool.iter_mut().zip(0..) {
                        *given += used.given[at];
                        *returned += used.returned[at];
                    }
                }
            }
            let result = then(&counts);
            if self.folds.load(Relaxed) == folds {
                return result;
            }
        }
    }

    /// Heap bytes.
    pub fn bytes(&self) -> usize {
        let blocks = self.blocks.iter().flatten().filter_map(OnceLock::get);
        let shard = |shard: &Lock<Shard>| {
            let shard = shard.lock();
            size_of::<Lock<Shard>>()
                + size_of::<Blocks>()
                + shard.others.allocation_size()
                + shard.used.capacity() * size_of::<Option<Used>>()
                + shard.dependent.allocation_size()
        };
        blocks.map(|b| size_of_val(&**b)).sum::<usize>() + self.shards.iter().map(shard).sum::<usize>()
    }
}

/// A shard that is locked, with its records.
pub struct Locked<'h> {
    number: usize,
    blocks: &'h Blocks,
    folds: &'h AtomicU32,
    /// What is behind the lock.
    pub shard: SpinMutexGuard<'h, Shard>,
}

impl Locked<'_> {
    fn record(&self, reference: u32) -> Option<&Record> {
        let (block, place) = place_of(reference >> SHARD_BITS);
        self.blocks.get(block)?.get()?.get(place)
    }

    /// The host with a reference.
    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of the words on purpose")]
    pub fn get(&self, reference: u32) -> Option<Host> {
        let record = self.record(reference)?;
        let owner = record.owner.load(Relaxed);
        if owner == FREE {
            return None;
        }
        let address = record.address.each_ref().map(|word| word.load(Relaxed));
        let address = if owner & V6 == 0 {
            Ipv4Addr::from(address[0] as u32).into()
        } else {
            Ipv6Addr::from(u128::from(address[0]) | u128::from(address[1]) << 64).into()
        };
        Some(Host {
            address,
            zone: (owner >> 32) as u16,
            pool: owner as u32,
            place: record.place.load(Relaxed),
            leases: record.leases.load(Relaxed),
            spread: (owner >> SPREAD_SHIFT) as usize,
        })
    }

    /// What an opening needs of the host with a reference.
    #[inline]
    pub fn state_of(&self, reference: u32) -> Option<HostState> {
        let record = self.record(reference)?;
        let owner = record.owner.load(Relaxed);
        let spread = (owner >> SPREAD_SHIFT) as usize;
        let (place, leases) = (record.place.load(Relaxed), record.leases.load(Relaxed));
        (owner != FREE).then_some(HostState { place, leases, spread })
    }

    /// Whether a place in the list of spreads ([`HostState::spread`]) is that of a spread.
    #[inline]
    pub fn has_spread(&self, at: usize, spread: &Spread) -> bool {
        matches!(self.shard.used.get(at), Some(Some(used)) if std::ptr::eq(&raw const *used.spread, spread))
    }

    /// The addresses that a host's is one of.
    pub fn spread(&self, host: &Host) -> Option<&Arc<Spread>> {
        self.shard.used.get(host.spread)?.as_ref().map(|used| &used.spread)
    }

    /// As [`Locked::find`] of an IPv4 host.
    #[inline]
    pub fn find4(&self, book: &Book, hash: u64, pool: u32, zone: u16, address: u32) -> Option<u32> {
        let wanted = u64::from(pool) | u64::from(zone) << 32;
        let here = |r: u32| {
            r as usize % SHARDS == self.number
                && self.record(r).is_some_and(|record| {
                    let owner = record.owner.load(Relaxed) & ((1 << SPREAD_SHIFT) - 1);
                    record.address[0].load(Relaxed) == u64::from(address) && owner == wanted
                })
        };
        let others = || if self.shard.others.is_empty() { None } else { self.shard.others.find(hash, |r| here(*r)) };
        book.find(hash, As::Host, here).or_else(|| others().copied())
    }

    fn is(&self, reference: u32, pool: u32, zone: u16, address: IpAddr) -> bool {
        let Some(record) = self.record(reference) else { return false };
        let wanted = words(address);
        // Of IPv4 the second word is something else.
        let same = record.address[0].load(Relaxed) == wanted[0]
            && (address.is_ipv4() || record.address[1].load(Relaxed) == wanted[1]);
        let mask = (1 << SPREAD_SHIFT) - 1;
        same && record.owner.load(Relaxed) & mask == owner(pool, zone, address, 0)
    }

    /// The reference of a host.
    pub fn find(&self, book: &Book, hash: u64, pool: u32, zone: u16, address: IpAddr) -> Option<u32> {
        // References of other shards can have the hash, too; `is` would look among the wrong records.
        let here = |r: u32| r as usize % SHARDS == self.number && self.is(r, pool, zone, address);
        book.find(hash, As::Host, here).or_else(|| self.shard.others.find(hash, |r| here(*r)).copied())
    }

    /// Enters a host at a place of a spread. `None` if there are too many.
    pub fn add(
        &mut self,
        book: &Book,
        hasher: &Hasher,
        hash: u64,
        (zone, address): (u16, IpAddr),
        spread: &Arc<Spread>,
        place: u32,
    ) -> Option<u32> {
        let used = self.use_spread(spread)?;
        let number = if self.shard.free == NONE {
            let number = self.shard.made;
            let (block, _) = place_of(number);
            if number >= MOST {
                self.leave_spread(used);
                return None;
            }
            self.blocks.get(block)?.get_or_init(|| (0..records_of(block)).map(|_| Record::default()).collect());
            self.shard.made += 1;
            number
        } else {
            self.shard.free
        };
        let reference = number << SHARD_BITS | u32::try_from(self.number).unwrap_or(0);
        let from_free_list = self.shard.free == number;
        let record = self.record(reference)?;
        let next = record.leases.load(Relaxed);
        let [low, high] = words(address);
        record.address[0].store(low, Relaxed);
        record.address[1].store(high, Relaxed);
        record.owner.store(owner(spread.pool.number(), zone, address, used), Relaxed);
        record.place.store(place, Relaxed);
        record.leases.store(0, Relaxed);
        if from_free_list {
            self.shard.free = next;
        }
        spread.pool.host_came();
        let room = book.hosts() >> SHARD_BITS;
        if self.shard.booked < room + room / 4 && book.add(hash, As::Host, reference) {
            self.shard.booked += 1;
        } else {
            let blocks = self.blocks;
            self.shard.others.insert_unique(hash, reference, |r| hash_of(blocks, hasher, *r));
        }
        Some(reference)
    }

    /// Removes a host without leases; others stay.
    pub fn remove_if_idle(&mut self, book: &Book, hasher: &Hasher, reference: u32) {
        let Some(host) = self.get(reference).filter(|h| h.leases == 0) else { return };
        let hash = host_hash(hasher, host.zone, host.address);
        self.remove(book, (reference, hash), &host.state());
    }

    /// Removes a host, given as its reference and hash.
    fn remove(&mut self, book: &Book, (reference, hash): (u32, u64), host: &HostState) {
        if book.remove(hash, As::Host, reference) {
            self.shard.booked -= 1;
        } else if let Ok(entry) = self.shard.others.find_entry(hash, |r| *r == reference) {
            entry.remove();
        }
        if let Some(spread) = self.spread_at(host.spread) {
            spread.leave(host.place);
            spread.pool.host_left();
        }
        self.leave_spread(host.spread);
        let free = self.shard.free;
        if let Some(record) = self.record(reference) {
            record.owner.store(FREE, Relaxed);
            record.leases.store(free, Relaxed);
            self.shard.free = reference >> SHARD_BITS;
        }
    }

    /// Moves a host to another place, of its own spread or of another one of the same pool.
    pub fn move_to(&mut self, reference: u32, host: &mut Host, spread: &Arc<Spread>, place: u32) {
        if self.spread(host).is_none_or(|own| !Arc::ptr_eq(own, spread)) {
            let Some(used) = self.use_spread(spread) else { return };
            self.leave_spread(host.spread);
            host.spread = used;
        }
        host.place = place;
        if let Some(record) = self.record(reference) {
            record.place.store(place, Relaxed);
            record.owner.store(owner(host.pool, host.zone, host.address, host.spread), Relaxed);
        }
    }

    /// Notes where a host's translated packets come from, for [`Hosts::guess`].
    pub fn note_external(&self, reference: u32, host: &Host, address: IpAddr, zone: u16) {
        if let (Some(record), IpAddr::V4(_), IpAddr::V4(external)) = (self.record(reference), host.address, address) {
            record.address[1].store(u64::from(u32::from(external)) | u64::from(zone) << 32, Relaxed);
        }
    }

    /// The same of IPv4 addresses.
    #[inline]
    pub fn note_external4(&self, reference: u32, address: u32, zone: u16) {
        if let Some(record) = self.record(reference) {
            record.address[1].store(u64::from(address) | u64::from(zone) << 32, Relaxed);
        }
    }

    /// Counts a lease of a host.
    pub fn gave(&mut self, reference: u32, host: &Host, class: Class) {
        self.count_lease(reference, host.spread, class);
    }

    /// The same of a host that has a place in the list of spreads ([`HostState::spread`]).
    #[inline]
    pub fn count_lease(&mut self, reference: u32, spread: usize, class: Class) {
        if let Some(record) = self.record(reference) {
            record.leases.store(record.leases.load(Relaxed) + 1, Relaxed);
        }
        if let Some(Some(used)) = self.shard.used.get_mut(spread) {
            used.given[class as usize] += 1;
        }
    }

    /// Takes off a lease of a host, given as its reference and hash, and the host with its last one.
    #[inline]
    pub fn took_back(&mut self, book: &Book, (reference, hash): (u32, u64), host: &HostState, class: Class) {
        let left = host.leases.saturating_sub(1);
        if let Some(record) = self.record(reference) {
            record.leases.store(left, Relaxed);
        }
        if let Some(Some(used)) = self.shard.used.get_mut(host.spread) {
            used.returned[class as usize] += 1;
        }
        if left == 0 {
            self.remove(book, (reference, hash), host);
        }
    }

    /// The addresses at a place in the list of spreads ([`HostState::spread`]).
    #[inline]
    pub fn spread_at(&self, at: usize) -> Option<&Spread> {
        self.shard.used.get(at)?.as_ref().map(|used| &*used.spread)
    }

    /// The tick until which a port of such a host, given back now, rests, if it does.
    #[inline]
    pub fn rest_until(&self, spread: usize, now_tick: u32) -> Option<u32> {
        self.spread_at(spread)?.pool.rest_until(now_tick)
    }

    fn use_spread(&mut self, spread: &Arc<Spread>) -> Option<usize> {
        let all = &mut self.shard.used;
        if let Some(at) = all.iter().position(|u| u.as_ref().is_some_and(|u| Arc::ptr_eq(&u.spread, spread))) {
            if let Some(Some(used)) = all.get_mut(at) {
                used.hosts += 1;
            }
            return Some(at);
        }
        let at = all.iter().position(Option::is_none).unwrap_or(all.len());
        if at >= SPREADS {
            return None;
        }
        let used = Some(Used { spread: Arc::clone(spread), hosts: 1, given: [0; 3], returned: [0; 3] });
        if at == all.len() {
            all.push(used);
        } else {
            all[at] = used;
        }
        Some(at)
    }

    fn leave_spread(&mut self, at: usize) {
        let Some(slot) = self.shard.used.get_mut(at) else { return };
        if let Some(used) = slot {
            used.hosts -= 1;
            if used.hosts == 0 {
                used.spread.pool.count(&used.given, &used.returned);
                self.folds.fetch_add(1, Relaxed);
                *slot = None;
            }
        }
    }

    /// The mapping of an endpoint for one remote address.
    pub fn dependent(&self, hasher: &Hasher, mappings: &Mappings, endpoint: Endpoint, remote: IpAddr) -> Option<u32> {
        let is_it = |d: &Dependent| d.remote == remote && Endpoint::of(mappings, d.mapping) == endpoint;
        self.shard.dependent.find(endpoint.hash_towards(remote, hasher), is_it).map(|d| d.mapping)
    }

    /// Enters such a mapping.
    pub fn add_dependent(&mut self, hasher: &Hasher, mappings: &Mappings, mapping: u32, remote: IpAddr) {
        let hash_of = |d: &Dependent| Endpoint::of(mappings, d.mapping).hash_towards(d.remote, hasher);
        let new = Dependent { mapping, remote };
        self.shard.dependent.insert_unique(hash_of(&new), new, hash_of);
    }

    /// Takes such a mapping out, if it is there.
    pub fn remove_dependent(&mut self, hasher: &Hasher, mappings: &Mappings, mapping: u32, remote: IpAddr) {
        let hash = Endpoint::of(mappings, mapping).hash_towards(remote, hasher);
        if let Ok(entry) = self.shard.dependent.find_entry(hash, |d| d.mapping == mapping) {
            entry.remove();
        }
    }
}

/// The hash of a host by its record.
#[expect(clippy::cast_possible_truncation, reason = "fields are cut out of the words on purpose")]
fn hash_of(blocks: &Blocks, hasher: &Hasher, reference: u32) -> u64 {
    let (block, place) = place_of(reference >> SHARD_BITS);
    let Some(record) = blocks.get(block).and_then(|b| b.get()?.get(place)) else { return 0 };
    let owner = record.owner.load(Relaxed);
    let [low, high] = record.address.each_ref().map(|word| word.load(Relaxed));
    let address = if owner & V6 == 0 {
        Ipv4Addr::from(low as u32).into()
    } else {
        Ipv6Addr::from(u128::from(low) | u128::from(high) << 64).into()
    };
    host_hash(hasher, (owner >> 32) as u16, address)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn what_hosts_that_leave_count_lies_on_no_line_that_leads_to_hosts() {
        let line = offset_of!(Hosts, folds) / 64;
        let read = [offset_of!(Hosts, shards), offset_of!(Hosts, blocks)];
        assert!(align_of::<Hosts>() >= 64 && read.iter().all(|at| at / 64 != line && (at + 15) / 64 != line));
    }

    #[test]
    fn hosts_fill_block_after_block_and_every_place_is_used_once() {
        let (mut block, mut place) = (0, 0);
        for n in 0..MOST {
            assert_eq!(place_of(n), (block, place), "{n}");
            place += 1;
            if place == records_of(block) {
                (block, place) = (block + 1, 0);
            }
        }
        assert!(block < BLOCKS);
    }
}

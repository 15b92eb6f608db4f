//! Inside hosts: the address each was given, and their mappings.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use hashbrown::HashTable;

use crate::lock;
use crate::mappings::{FreeMappings, Mappings};
use crate::ports::Class;
use crate::random::Hasher;
use crate::spread::Spread;
use crate::table::{REFERENCES, RefTable};

/// Locks; the lowest bits of a host's reference say which.
const SHARDS: usize = 256;
const SHARD_BITS: u32 = 8;
/// Hosts of a chunk.
const CHUNK: usize = 16;

/// A host of a pool that has a port.
#[derive(Debug)]
pub struct Host {
    /// The pool and its addresses.
    pub spread: Arc<Spread>,
    /// Its own address.
    pub address: IpAddr,
    /// Its zone.
    pub zone: u16,
    /// Place of its external address.
    pub place: u32,
    /// Mappings, or ports that it shares.
    pub leases: u32,
}

/// A mapping for one remote address.
#[derive(Clone, Copy, Debug)]
struct Dependent {
    mapping: u32,
    remote: IpAddr,
}

/// The hosts behind one lock, and their mappings.
#[derive(Debug, Default)]
pub struct Shard {
    number: u32,
    index: RefTable,
    /// In chunks, so that growing moves no host.
    hosts: Vec<Box<[Option<Host>]>>,
    free: Vec<u32>,
    /// Endpoint-independent mappings by host, inside port and protocol.
    mappings: RefTable,
    /// Mappings for one remote address, likewise and by that.
    dependent: HashTable<Dependent>,
    /// Free mapping records.
    pub records: FreeMappings,
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
    fn of(mappings: &Mappings, reference: u32) -> Self {
        let binding = mappings.get(reference);
        Self { host: binding.host, port: binding.inside_port, class: binding.class }
    }

    fn hash(&self, hasher: &Hasher) -> u64 {
        hasher.two(u64::from(self.host), u64::from(self.port) | (self.class as u64) << 16)
    }

    fn hash_towards(&self, remote: IpAddr, hasher: &Hasher) -> u64 {
        hasher.address(remote, self.hash(hasher))
    }
}

/// All hosts.
#[derive(Debug)]
pub struct Hosts {
    shards: Box<[Mutex<Shard>]>,
}

fn host_hash(hasher: &Hasher, pool: u32, zone: u16, address: IpAddr) -> u64 {
    hasher.address(address, u64::from(pool) << 16 | u64::from(zone))
}

impl Hosts {
    pub fn new() -> Self {
        let shard = |number| Mutex::new(Shard { number, ..Shard::default() });
        Self { shards: (0..1 << SHARD_BITS).map(shard).collect() }
    }

    /// Locks what holds a host; also returns the host's hash.
    pub fn of(&self, hasher: &Hasher, pool: u32, zone: u16, address: IpAddr) -> (MutexGuard<'_, Shard>, u64) {
        let hash = host_hash(hasher, pool, zone, address);
        // The table uses the upper half of a hash for places and the lowest bits for tags.
        (lock(&self.shards[usize::try_from(hash >> 8).unwrap_or(0) % SHARDS]), hash)
    }

    /// Locks what holds the host with a reference.
    pub fn at(&self, reference: u32) -> MutexGuard<'_, Shard> {
        lock(&self.shards[reference as usize % SHARDS])
    }

    /// Heap bytes.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|s| size_of::<Mutex<Shard>>() + lock(s).bytes()).sum()
    }
}

impl Shard {
    fn slot(hosts: &[Box<[Option<Host>]>], at: u32) -> Option<&Host> {
        hosts.get(at as usize / CHUNK)?[at as usize % CHUNK].as_ref()
    }

    /// The host with a reference.
    pub fn get(&self, reference: u32) -> Option<&Host> {
        Self::slot(&self.hosts, reference >> SHARD_BITS)
    }

    /// The host with a reference, to change it.
    pub fn get_mut(&mut self, reference: u32) -> Option<&mut Host> {
        let at = (reference >> SHARD_BITS) as usize;
        self.hosts.get_mut(at / CHUNK)?[at % CHUNK].as_mut()
    }

    fn hash_of(hosts: &[Box<[Option<Host>]>], hasher: &Hasher, at: u32) -> u64 {
        Self::slot(hosts, at).map_or(0, |h| host_hash(hasher, h.spread.pool.number(), h.zone, h.address))
    }

    /// The reference of a host.
    pub fn find(&self, hash: u64, pool: u32, zone: u16, address: IpAddr) -> Option<u32> {
        let is_it = |at| {
            Self::slot(&self.hosts, at)
                .is_some_and(|h| h.address == address && h.zone == zone && h.spread.pool.number() == pool)
        };
        self.index.find(hash, is_it).map(|at| at << SHARD_BITS | self.number)
    }

    /// Enters a host. `None` if there are too many.
    pub fn add(&mut self, hasher: &Hasher, hash: u64, host: Host) -> Option<u32> {
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                let start = u32::try_from(self.hosts.len() * CHUNK).ok()?;
                let end = start + u32::try_from(CHUNK).ok()?;
                if end > REFERENCES.min(1 << (u32::BITS - SHARD_BITS)) {
                    return None;
                }
                self.hosts.push((0..CHUNK).map(|_| None).collect());
                self.free.extend((start + 1..end).rev());
                start
            }
        };
        host.spread.pool.host_came();
        self.hosts[at as usize / CHUNK][at as usize % CHUNK] = Some(host);
        self.index.insert(hash, at, |at| Self::hash_of(&self.hosts, hasher, at));
        Some(at << SHARD_BITS | self.number)
    }

    /// Removes a host without leases; others stay.
    pub fn remove_if_idle(&mut self, hasher: &Hasher, reference: u32) {
        if self.get(reference).is_none_or(|h| h.leases != 0) {
            return;
        }
        let at = reference >> SHARD_BITS;
        let hash = Self::hash_of(&self.hosts, hasher, at);
        self.index.remove(hash, at, |at| Self::hash_of(&self.hosts, hasher, at));
        if let Some(host) = self.hosts[at as usize / CHUNK][at as usize % CHUNK].take() {
            host.spread.leave(host.place);
            host.spread.pool.host_left();
        }
        self.free.push(at);
    }

    /// The endpoint-independent mapping of an endpoint, or with `remote` the mapping for that address.
    pub fn mapping(
        &self,
        hasher: &Hasher,
        mappings: &Mappings,
        endpoint: Endpoint,
        remote: Option<IpAddr>,
    ) -> Option<u32> {
        match remote {
            None => self.mappings.find(endpoint.hash(hasher), |r| Endpoint::of(mappings, r) == endpoint),
            Some(remote) => {
                let is_it = |d: &Dependent| d.remote == remote && Endpoint::of(mappings, d.mapping) == endpoint;
                self.dependent.find(endpoint.hash_towards(remote, hasher), is_it).map(|d| d.mapping)
            }
        }
    }

    /// Enters a mapping.
    pub fn add_mapping(&mut self, hasher: &Hasher, mappings: &Mappings, reference: u32, remote: Option<IpAddr>) {
        match remote {
            None => {
                let hash_of = |r| Endpoint::of(mappings, r).hash(hasher);
                self.mappings.insert(hash_of(reference), reference, hash_of);
            }
            Some(remote) => {
                let hash_of = |d: &Dependent| Endpoint::of(mappings, d.mapping).hash_towards(d.remote, hasher);
                let new = Dependent { mapping: reference, remote };
                self.dependent.insert_unique(hash_of(&new), new, hash_of);
            }
        }
    }

    /// Takes a mapping out, if it is there.
    pub fn remove_mapping(&mut self, hasher: &Hasher, mappings: &Mappings, reference: u32, remote: Option<IpAddr>) {
        let endpoint = Endpoint::of(mappings, reference);
        match remote {
            None => {
                let hash_of = |r| Endpoint::of(mappings, r).hash(hasher);
                self.mappings.remove(endpoint.hash(hasher), reference, hash_of);
            }
            Some(remote) => {
                let hash = endpoint.hash_towards(remote, hasher);
                if let Ok(entry) = self.dependent.find_entry(hash, |d| d.mapping == reference) {
                    entry.remove();
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        self.index.bytes()
            + self.hosts.capacity() * size_of::<Box<[Option<Host>]>>()
            + self.hosts.len() * CHUNK * size_of::<Option<Host>>()
            + self.free.capacity() * size_of::<u32>()
            + self.mappings.bytes()
            + self.dependent.allocation_size()
    }
}

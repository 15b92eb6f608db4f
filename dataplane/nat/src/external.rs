//! External addresses and what is in use at each.

use std::net::IpAddr;

use hashbrown::HashTable;
use spin::mutex::SpinMutexGuard;

use crate::Lock;
use crate::ports::{Class, PortMap};
use crate::random::Hasher;

/// Locks; the lowest bits of an address's reference say which.
const SHARDS: usize = 256;
const SHARD_BITS: u32 = 8;
/// References fit into what a mapping record has for them.
const LARGEST: usize = 1 << (30 - SHARD_BITS);

/// One address of one zone. Without ports in use it has no maps.
#[derive(Debug)]
struct Address {
    zone: u16,
    address: IpAddr,
    maps: [Option<Box<PortMap>>; Class::ALL.len()],
}

/// The addresses behind one lock.
#[derive(Debug, Default)]
pub struct Shard {
    number: u32,
    index: HashTable<u32>,
    addresses: Vec<Option<Address>>,
    free: Vec<u32>,
}

/// All external addresses.
#[derive(Debug)]
pub struct External {
    shards: Box<[Lock<Shard>]>,
}

impl External {
    pub fn new() -> Self {
        let shard = |number| Lock::new(Shard { number, ..Shard::default() });
        Self { shards: (0..1 << SHARD_BITS).map(shard).collect() }
    }

    /// Locks what holds an address; also returns the address's hash.
    pub fn of(&self, hasher: &Hasher, zone: u16, address: IpAddr) -> (SpinMutexGuard<'_, Shard>, u64) {
        let hash = hasher.address(address, u64::from(zone));
        // The index of a shard uses the lowest and the highest bits of a hash.
        (self.shards[usize::try_from(hash >> 40).unwrap_or(0) % SHARDS].lock(), hash)
    }

    /// Locks what holds the address with a reference.
    pub fn at(&self, reference: u32) -> SpinMutexGuard<'_, Shard> {
        self.shards[reference as usize % SHARDS].lock()
    }

    /// Drops what unused addresses still hold.
    pub fn tidy(&self, hasher: &Hasher, now_tick: u32) {
        for shard in &self.shards {
            shard.lock().tidy(hasher, now_tick);
        }
    }

    /// Heap bytes.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|s| size_of::<Lock<Shard>>() + s.lock().bytes()).sum()
    }
}

impl Shard {
    fn slot(&self, reference: u32) -> Option<&Address> {
        self.addresses.get((reference >> SHARD_BITS) as usize)?.as_ref()
    }

    /// The reference of an address that has, or lately had, ports in use.
    pub fn find(&self, hash: u64, zone: u16, address: IpAddr) -> Option<u32> {
        let is_it = |r: &u32| self.slot(*r).is_some_and(|a| a.address == address && a.zone == zone);
        self.index.find(hash, is_it).copied()
    }

    /// The same, made if need be. `None` if there are too many.
    pub fn find_or_add(&mut self, hasher: &Hasher, hash: u64, zone: u16, address: IpAddr) -> Option<u32> {
        if let Some(found) = self.find(hash, zone, address) {
            return Some(found);
        }
        let new = Some(Address { zone, address, maps: Default::default() });
        let at = match self.free.pop() {
            Some(at) => {
                self.addresses[at as usize] = new;
                at
            }
            None => {
                let at = self.addresses.len();
                if at >= LARGEST {
                    return None;
                }
                self.addresses.push(new);
                u32::try_from(at).ok()?
            }
        };
        let reference = at << SHARD_BITS | self.number;
        let addresses = &self.addresses;
        self.index.insert_unique(hash, reference, |r| {
            addresses[(r >> SHARD_BITS) as usize].as_ref().map_or(0, |a| hasher.address(a.address, u64::from(a.zone)))
        });
        Some(reference)
    }

    /// Zone and address behind a reference.
    pub fn identity(&self, reference: u32) -> Option<(u16, IpAddr)> {
        self.slot(reference).map(|a| (a.zone, a.address))
    }

    /// Whether a reference is that of an IPv4 address, in host order, of a zone.
    #[inline]
    pub fn is4(&self, reference: u32, zone: u16, address: u32) -> bool {
        let is_it = |a: &Address| a.zone == zone && matches!(a.address, IpAddr::V4(own) if u32::from(own) == address);
        self.slot(reference).is_some_and(is_it)
    }

    /// The ports of an address, if any were ever taken.
    pub fn map(&self, reference: u32, class: Class) -> Option<&PortMap> {
        self.slot(reference)?.maps[class as usize].as_deref()
    }

    /// The ports of an address, to change them.
    pub fn map_mut(&mut self, reference: u32, class: Class) -> Option<&mut PortMap> {
        let address = self.addresses.get_mut((reference >> SHARD_BITS) as usize)?.as_mut()?;
        Some(address.maps[class as usize].get_or_insert_default())
    }

    fn tidy(&mut self, hasher: &Hasher, now_tick: u32) {
        for at in 0..self.addresses.len() {
            let Some(address) = &mut self.addresses[at] else { continue };
            for map in &mut address.maps {
                if let Some(used) = map {
                    used.wake(now_tick, usize::MAX);
                    if used.taken() == 0 {
                        *map = None;
                    }
                }
            }
            if address.maps.iter().all(Option::is_none) {
                let hash = hasher.address(address.address, u64::from(address.zone));
                let Ok(at) = u32::try_from(at) else { continue };
                let reference = at << SHARD_BITS | self.number;
                if let Ok(entry) = self.index.find_entry(hash, |r| *r == reference) {
                    entry.remove();
                }
                self.addresses[at as usize] = None;
                self.free.push(at);
            }
        }
    }

    fn bytes(&self) -> usize {
        let maps = self.addresses.iter().flatten().flat_map(|a| a.maps.iter().flatten());
        self.index.allocation_size()
            + self.addresses.capacity() * size_of::<Option<Address>>()
            + self.free.capacity() * size_of::<u32>()
            + maps.map(|m| size_of::<PortMap>() + m.bytes()).sum::<usize>()
    }
}

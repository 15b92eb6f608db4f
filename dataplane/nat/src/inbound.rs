//! The other direction: destinations that rules choose, and connections that come in by a mapping.
//!
//! A connection that comes for the external endpoint of an endpoint-independent mapping uses the mapping as one from
//! inside does, so that it lives as long as either. Whom a mapping admits is its pool's `filtering`; where that depends
//! on the remote address, [`Remotes`] counts the connections that a mapping has towards each.

use std::net::{IpAddr, Ipv4Addr};

use erhu_planes::program::{AddressRange, Behaviour};
use erhu_planes::tuple::Tuple;
use hashbrown::HashMap;

use crate::book::{As, external_hash};
use crate::pools::PoolSpec;
use crate::ports::Class;
use crate::{Inside, Lease, Lock, Nat, Rng, kind};

/// Locks of [`Remotes`].
const SHARDS: usize = 64;

/// A mapping that can be come in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WayIn {
    /// Who is behind it.
    pub inside: Inside,
    /// The mapping.
    pub mapping: u32,
}

/// Connections by mapping and remote address.
type Counts = HashMap<(u32, IpAddr), u32>;

/// Remote addresses that mappings have connections to, where somebody wants to know.
#[derive(Debug)]
pub struct Remotes {
    shards: Box<[Lock<Counts>]>,
}

impl Remotes {
    pub fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Lock::default()).collect() }
    }

    fn shard(&self, mapping: u32) -> &Lock<Counts> {
        &self.shards[mapping as usize % SHARDS]
    }

    /// One more connection of a mapping to an address.
    pub fn add(&self, mapping: u32, remote: IpAddr) {
        let mut shard = self.shard(mapping).lock();
        let count = shard.entry((mapping, remote)).or_default();
        *count = count.saturating_add(1);
    }

    /// One less.
    pub fn remove(&self, mapping: u32, remote: IpAddr) {
        let mut shard = self.shard(mapping).lock();
        if let Some(count) = shard.get_mut(&(mapping, remote)) {
            *count -= 1;
            if *count == 0 {
                shard.remove(&(mapping, remote));
            }
        }
    }

    fn contains(&self, mapping: u32, remote: IpAddr) -> bool {
        self.shard(mapping).lock().contains_key(&(mapping, remote))
    }

    /// Heap bytes.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|s| size_of_val(s) + s.lock().allocation_size()).sum()
    }
}

impl Nat {
    /// The endpoint-independent mapping at an external port, if there is one.
    pub fn way_in(&self, zone: u16, address: IpAddr, port: u16, proto: u8) -> Option<WayIn> {
        self.visit(zone, address, port, proto, |_| true)
    }

    /// The same, used by one more connection from now on; [`Nat::leave`] ends the use.
    pub fn enter(&self, zone: u16, address: IpAddr, port: u16, proto: u8) -> Option<WayIn> {
        self.visit(zone, address, port, proto, |mapping| self.mappings.add_use(mapping))
    }

    /// Ends the use of a mapping by a connection that came in by it. If it was the last, the port is free again, once it
    /// has rested if its pool wants that and the time is given.
    pub fn leave(&self, mapping: u32, now_tick: Option<u32>) {
        let binding = self.mappings.get(mapping);
        let Some((zone, address)) = self.external.at(binding.address).identity(binding.address) else { return };
        let (port, remote) = (binding.external_port, Ipv4Addr::UNSPECIFIED.into());
        self.give_back(&Lease { kind: kind::INBOUND, mapping, zone, address, port, proto: 0, remote }, now_tick);
    }

    /// Whether a pool lets a remote address come in by one of its mappings as a new connection.
    pub fn admits(&self, pool: &PoolSpec, mapping: u32, remote: IpAddr) -> bool {
        match pool.filtering {
            Behaviour::EndpointIndependent => true,
            Behaviour::AddressDependent => self.remotes.contains(mapping, remote),
            // Whoever may come in by this has a connection.
            Behaviour::AddressPortDependent => false,
        }
    }

    /// Finds a mapping and does something with it while it cannot end.
    fn visit(
        &self,
        zone: u16,
        address: IpAddr,
        port: u16,
        proto: u8,
        with: impl FnOnce(u32) -> bool,
    ) -> Option<WayIn> {
        let class = Class::of(proto)?;
        let (shard, hash) = self.external.of(&self.hasher, zone, address);
        let at = shard.find(hash, zone, address)?;
        let is_it = |r| {
            let binding = self.mappings.get(r);
            (binding.address, binding.class, binding.external_port) == (at, class, port)
        };
        let mapping = self.book.find(external_hash(&self.hasher, address, class, port), As::External, is_it)?;
        let binding = self.mappings.get(mapping);
        drop(shard);
        let hosts = self.hosts.at(binding.host);
        // It may have ended between the two locks.
        let host = hosts.get(binding.host).filter(|_| self.mappings.get(mapping) == binding)?;
        let inside = Inside { zone: host.zone, address: host.address, port: binding.inside_port, pool: host.pool };
        with(mapping).then_some(WayIn { inside, mapping })
    }

    /// The address that a rule's choice of several gives a new connection: by a hash of its source, and of its
    /// destination unless the choice is persistent; or at random. `None` if none is of its family.
    pub fn destination(
        &self,
        ranges: &[AddressRange],
        original: &Tuple,
        persistent: bool,
        random: Option<&mut Rng>,
    ) -> Option<IpAddr> {
        let hash = match random {
            Some(rng) => u64::from(rng.below(u32::MAX)) << 32 | u64::from(rng.below(u32::MAX)),
            None => self.spreading_hash(original, persistent),
        };
        crate::address_at(ranges, original.src.is_ipv6(), hash)
    }
}

//! Source translation: which external address and port a connection gets, and what is in use.
//!
//! # Overview
//!
//! [`Nat`] is the state that all workers share and that outlives rule sets; [`Pools`] is what one rule set says about
//! pools. A worker asks [`Nat::choose`] for a [`Lease`] for each new connection that a rule translates, and gives it
//! back when the connection ends. All rules share one map of ports per zone, external address and protocol. There are
//! two ways of using a port:
//!
//! - *alone*: an endpoint-independent mapping of a pool. One inside endpoint has the port, towards every remote, for
//!   as long as a connection uses it (RFC 4787 REQ-1 and REQ-3).
//! - *shared*: as the kernel does. Connections of several inside endpoints may have the port at once towards different
//!   remotes (RFC 7857 section 3); the connection table decides whether a reply tuple is free. Pools with
//!   address-dependent mapping share ports between remote addresses, and keep one port per remote address.
//!
//! # Life-cycle
//!
//! A lease is what a connection stores of it (`kind` and `mapping`) together with the connection's reply tuple;
//! [`Lease::rebuild`] makes it again from those. If the connection table refuses the reply tuple, the caller gives the
//! lease back with [`Nat::release_at_once`] and asks again with the next attempt number.
//!
//! # Synchronisation
//!
//! Short locks in a fixed order: the shard of an inside host, a pool's balance, the shard of an external address.
//! Each guards a bounded amount of work. Hosts and mappings are found in one index of fixed size that is read without
//! locks (see `book.rs`), so that [`Nat::prefetch_host`] and its kin can ask for memory before a burst's first packets
//! are worked on. Randomness comes from the caller's [`Rng`] and from keyed hashes, so a run with one seed repeats.
//!
//! # Limits
//!
//! 2²⁶ mappings, 2²² external addresses and 2¹⁸ hosts for each of 256 locks. TCP, UDP and ICMP queries.
#![forbid(unsafe_code)]

mod ahead;
mod book;
mod external;
mod hosts;
mod inbound;
mod mappings;
mod opening;
mod pools;
mod ports;
mod random;
mod spread;

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use erhu_planes::connections::NO_REFERENCE;
use erhu_planes::program::{AddressRange, Behaviour, PortRange, Program};
use erhu_planes::protocol::PoolStatus;
use erhu_planes::tuple::Tuple;
use erhu_table::Apart;
use spin::mutex::{SpinMutex, SpinMutexGuard};
use spin::relax::RelaxStrategy;

pub use ahead::Ahead;
pub use inbound::WayIn;
pub use opening::{Given4, Opening4};
pub use pools::{PoolSpec, Pools};
pub use random::Rng;

use book::{As, Book, external_hash, host_hash, inside_hash};
use external::External;
use hosts::{Endpoint, Hosts, Locked};
use inbound::Remotes;
use mappings::{Binding, Mappings};
use pools::{PoolState, Registry};
use ports::{Class, PortWish};
use random::Hasher;
use spread::Spread;

/// Choices that are tried for one connection before it is refused.
pub const ATTEMPTS: u32 = 128;
/// Further addresses that are tried when a host's own has no port left.
const FURTHER_ADDRESSES: u32 = 64;

/// How a connection holds its external port: the values of `Cold::nat_kind`.
pub mod kind {
    /// Not at all.
    pub const NONE: u8 = 0;
    /// By an endpoint-independent mapping; `mapping` is its reference.
    pub const ENDPOINT: u8 = 1;
    /// By a mapping for its remote address; `mapping` is its reference.
    pub const ADDRESS: u8 = 2;
    /// By a share of a port of a pool; `mapping` is the host's reference.
    pub const POOL: u8 = 3;
    /// By a share of a port outside pools; `mapping` is no reference.
    pub const DIRECT: u8 = 4;
    /// By having come in by an endpoint-independent mapping; `mapping` is its reference. No connection stores this: what
    /// holds its source is beside it.
    pub const INBOUND: u8 = 5;
}

/// Where an external address comes from.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A pool.
    Pool(&'a PoolSpec),
    /// Addresses without a pool, as `snat(#{ to })` has them. Chosen by a hash of the source, and of the destination
    /// unless the choice is persistent.
    Addresses {
        /// Those of the source's family count.
        ranges: &'a [AddressRange],
        /// A host has the same address towards every remote.
        persistent: bool,
    },
    /// One address, as `masquerade` has it.
    Address(IpAddr),
}

/// What is wished for a new connection.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Where the address comes from.
    pub target: Target<'a>,
    /// Ports to choose from, instead of the pool's or all.
    pub ports: Option<PortRange>,
    /// Choose the port at random even if the original one is free.
    pub random: bool,
    /// The connection as it is before its source is translated: the destination is the true remote.
    pub original: Tuple,
    /// Zone in which the external address lives: that of the reply tuple.
    pub zone: u16,
    /// Now.
    pub now_tick: u32,
}

/// Why there is no port for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exhausted {
    /// No port is left that it may have.
    Ports,
    /// Its mapping exists and cannot be another, but the reply tuple is taken.
    Clash,
    /// The target has no address of its family.
    Family,
    /// Its protocol has no ports that could be translated.
    Protocol,
}

/// One connection's use of an external port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// One of [`kind`].
    pub kind: u8,
    /// A reference whose meaning depends on the kind.
    pub mapping: u32,
    /// Zone of the external address.
    pub zone: u16,
    /// External address.
    pub address: IpAddr,
    /// External port, or ICMP identifier.
    pub port: u16,
    /// IP protocol.
    pub proto: u8,
    /// Remote address.
    pub remote: IpAddr,
}

impl Lease {
    /// The lease of a connection again, from what it stores and its reply tuple. `None` if it has none.
    pub fn rebuild(kind: u8, mapping: u32, reply: &Tuple) -> Option<Self> {
        let port = if reply.is_icmp() { reply.sport } else { reply.dport };
        (kind != kind::NONE).then_some(Self {
            kind,
            mapping,
            zone: reply.zone,
            address: reply.dst,
            port,
            proto: reply.proto,
            remote: reply.src,
        })
    }
}

/// An endpoint inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inside {
    /// Its zone.
    pub zone: u16,
    /// Its address.
    pub address: IpAddr,
    /// Its port, or ICMP identifier.
    pub port: u16,
    /// The pool ([`PoolSpec::id`]) of its mapping.
    pub pool: u32,
}

/// What is behind an external port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InUse {
    /// A mapping of this endpoint.
    Mapping(Inside),
    /// Connections to certain remotes only.
    Shared,
}

/// The state of source translation. See the crate's text.
#[derive(Debug)]
pub struct Nat {
    hasher: Hasher,
    registry: Mutex<Registry>,
    book: Book,
    mappings: Mappings,
    hosts: Hosts,
    external: External,
    remotes: Remotes,
    /// Counters of what is chosen outside pools. Each opening of that kind writes them.
    direct: Apart<PoolState>,
}

/// A lock of what workers share. It is held for an opening's or an ending's translation, some hundred instructions, now
/// and then for a look of the main thread; to unlock it is a plain store.
type Lock<T> = SpinMutex<T, Brief>;

/// Spins for about as long as a lock is held, then gives way: its holder may be without a CPU, and this one be the one
/// that it waits for.
struct Brief;

impl RelaxStrategy for Brief {
    fn relax() {
        for _ in 0..4 {
            std::hint::spin_loop();
        }
        std::thread::yield_now();
    }
}

/// Locks what only the control side changes. A holder that panicked leaves a state that is whole enough.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a choice needs to know beside the wish.
struct Choice<'a, 'w> {
    wish: &'a Wish<'w>,
    class: Class,
    attempt: u32,
    port: PortWish,
    /// Hashes of the inside host and endpoint.
    host: u64,
    inside: u64,
}

/// Connections that [`Nat::new`] provides for.
const CONNECTIONS: u32 = 1 << 18;

impl Nat {
    /// For so many connections; nothing is in use. The seed keys all hashes: secret where strangers choose tuples. With
    /// `huge_pages` the index takes 2 MiB pages at once, if there are enough; else it grows as it is touched.
    ///
    /// # Errors
    /// If there is no memory for the index.
    pub fn for_connections(connections: u32, seed: u64, huge_pages: bool) -> io::Result<Self> {
        Ok(Self {
            hasher: Hasher::new(seed),
            registry: Mutex::default(),
            book: Book::new(connections, huge_pages)?,
            mappings: Mappings::new(),
            hosts: Hosts::new(),
            external: External::new(),
            remotes: Remotes::new(),
            direct: Apart::default(),
        })
    }

    /// The same for a quarter of a million connections.
    ///
    /// # Panics
    /// If there is no memory for the index.
    pub fn new(seed: u64) -> Self {
        Self::for_connections(CONNECTIONS, seed, false).expect("a few megabytes of address space")
    }

    /// The pools of a rule set, joined to what is in use of pools of the same names. The program is valid.
    pub fn compile(&self, program: &Program) -> Pools {
        Pools::compile(program, &mut lock(&self.registry))
    }

    /// Chooses an external address and port for a new connection, and counts it as in use.
    ///
    /// `attempt` is 0 at first. If the connection table finds the reply tuple taken, the caller gives the lease back
    /// ([`Nat::release_at_once`]) and calls again with one more: another port comes out, up to [`ATTEMPTS`]. `prefer`
    /// says whether an address and port would be good for the caller; it is called under a lock.
    ///
    /// # Errors
    /// [`Exhausted`]; nothing was taken then. [`Exhausted::Ports`] is counted for the pool.
    pub fn choose(
        &self,
        wish: &Wish<'_>,
        attempt: u32,
        rng: &mut Rng,
        prefer: impl Fn(IpAddr, u16) -> bool,
    ) -> Result<Lease, Exhausted> {
        let class = Class::of(wish.original.proto).ok_or(Exhausted::Protocol)?;
        let host = host_hash(&self.hasher, wish.original.zone, wish.original.src);
        let inside = inside_hash(&self.hasher, host, class, wish.original.sport);
        let port = self.port_wish(wish, class, inside, rng);
        let choice = Choice { wish, class, attempt, port, host, inside };
        let (result, state) = match wish.target {
            Target::Pool(spec) => (self.choose_from_pool(&choice, spec, &prefer), &**spec.state()),
            Target::Addresses { ranges, persistent } => {
                let address = self.address_among(wish, ranges, persistent).ok_or(Exhausted::Family)?;
                (self.choose_direct(&choice, address, &prefer), &*self.direct)
            }
            Target::Address(address) if address.is_ipv6() == wish.original.src.is_ipv6() => {
                (self.choose_direct(&choice, address, &prefer), &*self.direct)
            }
            Target::Address(_) => return Err(Exhausted::Family),
        };
        if result == Err(Exhausted::Ports) {
            state.count_exhausted();
        }
        result
    }

    /// Ends a connection's use of its port. After the last use the port is free again, once it has rested if its pool
    /// wants that.
    pub fn release(&self, lease: &Lease, now_tick: u32) {
        self.give_back(lease, Some(now_tick));
    }

    /// The same without rest: for a TCP connection that was followed to its orderly end (RFC 6888 REQ-8), and for a
    /// lease that no connection came to use.
    pub fn release_at_once(&self, lease: &Lease) {
        self.give_back(lease, None);
    }

    /// Whether a rule with this target and these ports could have given a lease: what decides, after a new rule set,
    /// if a connection may keep its translation.
    pub fn would_give(&self, lease: &Lease, target: &Target<'_>, ports: Option<PortRange>) -> bool {
        let Some(class) = Class::of(lease.proto) else { return false };
        let port_fits = ports.is_none_or(|r| class == Class::Icmp || contains(r, lease.port));
        match target {
            Target::Pool(spec) => {
                let host = match lease.kind {
                    kind::ENDPOINT | kind::ADDRESS | kind::INBOUND => self.mappings.get(lease.mapping).host,
                    _ => lease.mapping,
                };
                lease.kind == kind_of(spec.mapping)
                    && lease.zone == spec.zone
                    && pool_allows(spec, ports, class, lease.address, lease.port)
                    && self.hosts.at(host).get(host).is_some_and(|h| h.pool == spec.id())
            }
            Target::Addresses { ranges, .. } => {
                lease.kind == kind::DIRECT && port_fits && ranges.iter().any(|r| r.contains(lease.address))
            }
            Target::Address(address) => lease.kind == kind::DIRECT && port_fits && lease.address == *address,
        }
    }

    /// What is behind an external port for packets from `remote`; `None` if nothing is, or the port rests.
    pub fn mapping_at(&self, zone: u16, address: IpAddr, port: u16, proto: u8, remote: IpAddr) -> Option<InUse> {
        let class = Class::of(proto)?;
        let (shard, hash) = self.external.of(&self.hasher, zone, address);
        let at = shard.find(hash, zone, address)?;
        let map = shard.map(at, class).filter(|m| m.is_taken(port))?;
        let hash = external_hash(&self.hasher, address, class, port);
        let is_it = |r| {
            let binding = self.mappings.get(r);
            (binding.address, binding.class, binding.external_port) == (at, class, port)
        };
        let found = self.book.find(hash, As::External, is_it).or_else(|| map.dependent(port, remote, &self.hasher));
        let Some(reference) = found else { return map.is_shared(port).then_some(InUse::Shared) };
        let binding = self.mappings.get(reference);
        drop(shard);
        let hosts = self.hosts.at(binding.host);
        // It may have ended between the two locks.
        let host = hosts.get(binding.host).filter(|_| self.mappings.get(reference) == binding)?;
        Some(InUse::Mapping(Inside {
            zone: host.zone,
            address: host.address,
            port: binding.inside_port,
            pool: host.pool,
        }))
    }

    /// How full the pools are, in the program's order. For each, `given` less `returned` are in use.
    pub fn status(&self, pools: &Pools) -> Vec<PoolStatus> {
        self.hosts.counted(|of_hosts| pools.status(of_hosts))
    }

    /// The counters of what was chosen outside pools.
    pub fn direct_status(&self) -> PoolStatus {
        self.direct.status(&Default::default())
    }

    /// Frees what unused addresses still hold, and ports that have rested. Takes one short lock after the other; to be
    /// called now and then, not by a worker.
    pub fn tidy(&self, now_tick: u32) {
        self.external.tidy(&self.hasher, now_tick);
    }

    /// Bytes that all of this takes. Walks everything: for statistics.
    pub fn bytes_in_use(&self) -> usize {
        size_of::<Self>()
            + lock(&self.registry).bytes()
            + self.book.bytes()
            + self.mappings.bytes()
            + self.hosts.bytes()
            + self.external.bytes()
            + self.remotes.bytes()
    }

    /// Where a connection's search among shared ports begins: the same for each attempt, and nobody outside can tell.
    fn secret(&self, wish: &Wish<'_>) -> u64 {
        let tuple = &wish.original;
        let ports = u64::from(tuple.sport) | u64::from(tuple.dport) << 16;
        let low = ports | u64::from(tuple.proto) << 32 | u64::from(tuple.zone) << 40;
        self.hasher.address(tuple.src, self.hasher.address(tuple.dst, low))
    }

    fn address_among(&self, wish: &Wish<'_>, ranges: &[AddressRange], persistent: bool) -> Option<IpAddr> {
        address_at(ranges, wish.original.src.is_ipv6(), self.spreading_hash(&wish.original, persistent))
    }

    /// What spreads connections over addresses.
    fn spreading_hash(&self, original: &Tuple, persistent: bool) -> u64 {
        let low = u64::from(original.zone);
        let low = if persistent { low } else { self.hasher.address(original.dst, low) };
        self.hasher.address(original.src, low)
    }

    fn choose_direct(
        &self,
        choice: &Choice<'_, '_>,
        address: IpAddr,
        prefer: &impl Fn(IpAddr, u16) -> bool,
    ) -> Result<Lease, Exhausted> {
        let (port, _) = self.take_shared(choice, address, None, None, prefer)?;
        self.direct.count_given(choice.class);
        Ok(lease(kind::DIRECT, NO_REFERENCE, choice, address, port))
    }

    /// Takes a share of a port of an address, which is `at` a place of a spread if it is a pool's. With `dependent` it
    /// must not serve a mapping for the remote yet, and the address stays locked for the caller to enter one.
    fn take_shared(
        &self,
        choice: &Choice<'_, '_>,
        address: IpAddr,
        at: Option<(&Spread, u32)>,
        dependent: Option<IpAddr>,
        prefer: &impl Fn(IpAddr, u16) -> bool,
    ) -> Result<(u16, (SpinMutexGuard<'_, external::Shard>, u32)), Exhausted> {
        if choice.attempt >= ATTEMPTS {
            return Err(Exhausted::Ports);
        }
        let zone = choice.wish.zone;
        let (mut shard, at) = match at {
            Some((spread, place)) => self.external_at(zone, spread, place).ok_or(Exhausted::Ports)?,
            None => {
                let (mut shard, hash) = self.external.of(&self.hasher, zone, address);
                let at = shard.find_or_add(&self.hasher, hash, zone, address).ok_or(Exhausted::Ports)?;
                (shard, at)
            }
        };
        let map = shard.map_mut(at, choice.class).ok_or(Exhausted::Ports)?;
        let remote = dependent.map(|r| (r, &self.hasher));
        let preferred = |port| prefer(address, port);
        let secret = self.secret(choice.wish);
        let port = map.take_shared(&choice.port, choice.attempt, choice.wish.now_tick, secret, remote, preferred);
        Ok((port.ok_or(Exhausted::Ports)?, (shard, at)))
    }

    fn choose_from_pool(
        &self,
        choice: &Choice<'_, '_>,
        spec: &PoolSpec,
        prefer: &impl Fn(IpAddr, u16) -> bool,
    ) -> Result<Lease, Exhausted> {
        let inside = &choice.wish.original;
        let spread = spec.spread(inside.src.is_ipv6()).ok_or(Exhausted::Family)?;
        let mut hosts = self.hosts.of(choice.host);
        let host = match hosts.find(&self.book, choice.host, spec.id(), inside.zone, inside.src) {
            Some(host) => host,
            None => {
                let place = spread.pick();
                let who = (inside.zone, inside.src);
                let Some(host) = hosts.add(&self.book, &self.hasher, choice.host, who, spread, place) else {
                    spread.leave(place);
                    return Err(Exhausted::Ports);
                };
                host
            }
        };
        let result = self.choose_for_host(choice, spec, spread, &mut hosts, host, prefer);
        if spec.filtering == Behaviour::AddressDependent
            && let Ok(lease) = &result
            && lease.kind == kind::ENDPOINT
        {
            self.remotes.add(lease.mapping, lease.remote);
        }
        if result.is_err() {
            hosts.remove_if_idle(&self.book, &self.hasher, host);
        }
        result
    }

    fn choose_for_host(
        &self,
        choice: &Choice<'_, '_>,
        spec: &PoolSpec,
        spread: &Arc<Spread>,
        hosts: &mut Locked<'_>,
        reference: u32,
        prefer: &impl Fn(IpAddr, u16) -> bool,
    ) -> Result<Lease, Exhausted> {
        let inside = &choice.wish.original;
        let mut host = hosts.get(reference).ok_or(Exhausted::Ports)?;
        if hosts.spread(&host).is_none_or(|own| !Arc::ptr_eq(own, spread)) {
            let place = place_in(hosts, &host, spread);
            hosts.move_to(reference, &mut host, spread, place);
        }
        let endpoint = Endpoint { host: reference, port: inside.sport, class: choice.class };
        let kind = kind_of(spec.mapping);
        if let Some(found) = self.mapping_of(choice, kind, hosts, endpoint) {
            let binding = self.mappings.get(found);
            let identity = self.external.at(binding.address).identity(binding.address);
            let allowed = |address, port| pool_allows(spec, choice.wish.ports, choice.class, address, port);
            match identity.filter(|(zone, a)| *zone == choice.wish.zone && allowed(*a, binding.external_port)) {
                Some(_) if choice.attempt != 0 || !self.mappings.add_use(found) => return Err(Exhausted::Clash),
                Some((_, address)) => return Ok(lease(kind, found, choice, address, binding.external_port)),
                // The pool no longer has its address or port: it serves the connections it has, and no new ones.
                None if kind == kind::ENDPOINT => _ = self.book.remove(choice.inside, As::Inside, found),
                None => hosts.remove_dependent(&self.hasher, &self.mappings, found, inside.dst),
            }
        }
        if choice.attempt >= ATTEMPTS {
            return Err(Exhausted::Ports);
        }
        let (own, is_new) = (host.place, host.leases == 0);
        let mut take = |place| -> Result<(IpAddr, u16, u32), Exhausted> {
            match kind {
                kind::ENDPOINT => self.take_alone(choice, spread, place, endpoint, hosts, prefer),
                kind::ADDRESS => self.take_for_remote(choice, spread, place, endpoint, hosts, prefer),
                _ => {
                    let address = spread.addresses.get(place);
                    let taken = self.take_shared(choice, address, Some((spread, place)), None, prefer);
                    taken.map(|(port, _)| (address, port, reference))
                }
            }
        };
        let mut taken = take(own).map(|t| (own, t));
        if taken.is_err() && (is_new || !spec.paired) {
            for place in spread.further(FURTHER_ADDRESSES).filter(|p| *p != own) {
                taken = take(place).map(|t| (place, t));
                if taken.is_ok() {
                    break;
                }
            }
        }
        let (place, (address, port, mapping)) = taken?;
        if is_new {
            if place != own {
                spread.leave(own);
                spread.join(place);
                hosts.move_to(reference, &mut host, spread, place);
            }
            hosts.note_external(reference, &host, address, choice.wish.zone);
        }
        hosts.gave(reference, &host, choice.class);
        Ok(lease(kind, mapping, choice, address, port))
    }

    /// The mapping that an endpoint has already, for the remote where that matters.
    fn mapping_of(&self, choice: &Choice<'_, '_>, kind: u8, hosts: &Locked<'_>, endpoint: Endpoint) -> Option<u32> {
        match kind {
            kind::ENDPOINT => {
                let is_it = |r| Endpoint::of(&self.mappings, r) == endpoint;
                self.book.find(choice.inside, As::Inside, is_it)
            }
            kind::ADDRESS => hosts.dependent(&self.hasher, &self.mappings, endpoint, choice.wish.original.dst),
            _ => None,
        }
    }

    /// Locks what holds an address of a spread, which is made known there if need be.
    fn external_at(
        &self,
        zone: u16,
        spread: &Spread,
        place: u32,
    ) -> Option<(SpinMutexGuard<'_, external::Shard>, u32)> {
        let address = spread.addresses.get(place);
        let noted = spread.external(place);
        let shard = self.external.at(noted);
        if shard.identity(noted) == Some((zone, address)) {
            return Some((shard, noted));
        }
        drop(shard);
        let (mut shard, hash) = self.external.of(&self.hasher, zone, address);
        let at = shard.find_or_add(&self.hasher, hash, zone, address)?;
        spread.note_external(place, at);
        Some((shard, at))
    }

    /// As [`Nat::external_at`] with the IPv4 address of the place.
    #[inline]
    fn external_at4(
        &self,
        zone: u16,
        spread: &Spread,
        place: u32,
        address: u32,
    ) -> Option<(SpinMutexGuard<'_, external::Shard>, u32)> {
        let noted = spread.external(place);
        let shard = self.external.at(noted);
        if shard.is4(noted, zone, address) {
            return Some((shard, noted));
        }
        drop(shard);
        self.external_at(zone, spread, place)
    }

    /// Makes an endpoint-independent mapping at an address.
    fn take_alone(
        &self,
        choice: &Choice<'_, '_>,
        spread: &Spread,
        place: u32,
        endpoint: Endpoint,
        hosts: &mut Locked<'_>,
        prefer: &impl Fn(IpAddr, u16) -> bool,
    ) -> Result<(IpAddr, u16, u32), Exhausted> {
        let address = spread.addresses.get(place);
        let (mut shard, at) = self.external_at(choice.wish.zone, spread, place).ok_or(Exhausted::Ports)?;
        let map = shard.map_mut(at, choice.class).ok_or(Exhausted::Ports)?;
        let preferred = |port| prefer(address, port);
        let port =
            map.take_alone(&choice.port, choice.attempt, choice.wish.now_tick, preferred).ok_or(Exhausted::Ports)?;
        let external = external_hash(&self.hasher, address, choice.class, port);
        let Some(mapping) = self.map_alone(hosts, endpoint, (at, port), (choice.inside, external)) else {
            map.give_back_alone(port, None);
            return Err(Exhausted::Ports);
        };
        Ok((address, port, mapping))
    }

    /// Enters a mapping of an endpoint at a port, taken for it, of an external address; the hashes are those of both.
    /// `None` if there is no room.
    #[inline]
    fn map_alone(
        &self,
        hosts: &mut Locked<'_>,
        endpoint: Endpoint,
        (at, port): (u32, u16),
        (inside, external): (u64, u64),
    ) -> Option<u32> {
        let mapping = self.mappings.take(&mut hosts.shard.records, &binding(endpoint, at, port))?;
        let is_inside = self.book.add(inside, As::Inside, mapping);
        if is_inside && self.book.add(external, As::External, mapping) {
            return Some(mapping);
        }
        if is_inside {
            self.book.remove(inside, As::Inside, mapping);
        }
        self.mappings.free(&mut hosts.shard.records, mapping);
        None
    }

    /// Makes a mapping for one remote address at an address.
    fn take_for_remote(
        &self,
        choice: &Choice<'_, '_>,
        spread: &Spread,
        place: u32,
        endpoint: Endpoint,
        hosts: &mut Locked<'_>,
        prefer: &impl Fn(IpAddr, u16) -> bool,
    ) -> Result<(IpAddr, u16, u32), Exhausted> {
        let (address, remote) = (spread.addresses.get(place), choice.wish.original.dst);
        let (port, (mut shard, at)) =
            self.take_shared(choice, address, Some((spread, place)), Some(remote), prefer)?;
        let map = shard.map_mut(at, choice.class).ok_or(Exhausted::Ports)?;
        let Some(mapping) = self.mappings.take(&mut hosts.shard.records, &binding(endpoint, at, port)) else {
            map.give_back_shared(port, None);
            return Err(Exhausted::Ports);
        };
        map.add_dependent(port, remote, mapping, &self.hasher);
        drop(shard);
        hosts.add_dependent(&self.hasher, &self.mappings, mapping, remote);
        Ok((address, port, mapping))
    }

    fn give_back(&self, lease: &Lease, now_tick: Option<u32>) {
        let rest = |hosts: &Locked<'_>, host: &hosts::Host| {
            now_tick.and_then(|now| hosts.spread(host)?.pool.rest_until(now))
        };
        match lease.kind {
            kind::ENDPOINT | kind::ADDRESS | kind::INBOUND => {
                let remote = (lease.kind == kind::ADDRESS).then_some(lease.remote);
                let binding = self.mappings.get(lease.mapping);
                let mut hosts = self.hosts.at(binding.host);
                let Some(host) = hosts.get(binding.host) else { return };
                let remembers = lease.kind == kind::ENDPOINT
                    && hosts.spread(&host).is_some_and(|spread| spread.pool.remembers_remotes());
                if remembers {
                    self.remotes.remove(lease.mapping, lease.remote);
                }
                let rest = rest(&hosts, &host);
                let own = host_hash(&self.hasher, host.zone, host.address);
                if !self.mappings.drop_use(lease.mapping) {
                    return;
                }
                let mut shard = self.external.at(binding.address);
                match remote {
                    None => {
                        let inside = inside_hash(&self.hasher, own, binding.class, binding.inside_port);
                        let port = binding.external_port;
                        let external = external_hash(&self.hasher, lease.address, binding.class, port);
                        // It may have left as an inside endpoint's before, when its pool lost its address.
                        self.book.remove(inside, As::Inside, lease.mapping);
                        self.book.remove(external, As::External, lease.mapping);
                    }
                    Some(remote) => hosts.remove_dependent(&self.hasher, &self.mappings, lease.mapping, remote),
                }
                if let Some(map) = shard.map_mut(binding.address, binding.class) {
                    match remote {
                        None => map.give_back_alone(binding.external_port, rest),
                        Some(remote) => {
                            map.remove_dependent(binding.external_port, remote, &self.hasher);
                            map.give_back_shared(binding.external_port, rest);
                        }
                    }
                }
                drop(shard);
                self.mappings.free(&mut hosts.shard.records, lease.mapping);
                hosts.took_back(&self.book, (binding.host, own), &host.state(), binding.class);
            }
            kind::POOL => {
                let Some(class) = Class::of(lease.proto) else { return };
                let mut hosts = self.hosts.at(lease.mapping);
                let Some(host) = hosts.get(lease.mapping) else { return };
                self.give_back_share(lease, class, rest(&hosts, &host));
                let own = host_hash(&self.hasher, host.zone, host.address);
                hosts.took_back(&self.book, (lease.mapping, own), &host.state(), class);
            }
            kind::DIRECT => {
                let Some(class) = Class::of(lease.proto) else { return };
                self.give_back_share(lease, class, None);
                self.direct.count_returned(class);
            }
            _ => {}
        }
    }

    fn give_back_share(&self, lease: &Lease, class: Class, rest: Option<u32>) {
        let (mut shard, hash) = self.external.of(&self.hasher, lease.zone, lease.address);
        if let Some(at) = shard.find(hash, lease.zone, lease.address)
            && let Some(map) = shard.map_mut(at, class)
        {
            map.give_back_shared(lease.port, rest);
        }
    }

    /// Range, preservation and parity for a connection.
    fn port_wish(&self, wish: &Wish<'_>, class: Class, inside: u64, rng: &mut Rng) -> PortWish {
        if let Target::Pool(spec) = wish.target
            && !wish.random
        {
            return self.pool_wish(spec, wish.ports, class, wish.original.sport, inside);
        }
        // The same inside endpoint begins at the same port, which nobody outside can foretell (RFC 6056 section 3.3.3).
        let start = if wish.random { rng.next_u64() } else { self.hasher.two(inside, 1) };
        let port = wish.original.sport;
        if class == Class::Icmp {
            // Identifiers are kept whatever the range says, else the next free one is taken.
            let upward_from = if wish.random { rng.below(1 << 16) } else { u32::from(port) };
            return PortWish {
                range: ports::ALL_PORTS,
                keep: (!wish.random).then_some(port),
                parity: None,
                upward_from: u16::try_from(upward_from).ok(),
                start,
            };
        }
        let (range, keepable, parity) = match wish.target {
            Target::Pool(spec) => {
                let range = wish.ports.unwrap_or(spec.ports);
                (range, if spec.preserve_port { Some(range) } else { None }, spec.parity)
            }
            _ => match wish.ports {
                Some(range) => (range, Some(range), false),
                None => (ports_like(port), Some(ports::ALL_PORTS), false),
            },
        };
        let keep = keepable.is_some_and(|r| contains(r, port) && !wish.random);
        PortWish { range, keep: keep.then_some(port), parity: parity.then_some(port & 1), upward_from: None, start }
    }

    /// The same of a pool, for an inside port or identifier, nothing being left to chance.
    #[inline]
    fn pool_wish(&self, spec: &PoolSpec, ports: Option<PortRange>, class: Class, port: u16, inside: u64) -> PortWish {
        let start = self.hasher.two(inside, 1);
        if class == Class::Icmp {
            let (keep, upward_from) = (Some(port), Some(port));
            return PortWish { range: ports::ALL_PORTS, keep, parity: None, upward_from, start };
        }
        let range = ports.unwrap_or(spec.ports);
        let keeps = spec.preserve_port && contains(range, port);
        let parity = spec.parity.then_some(port & 1);
        PortWish { range, keep: keeps.then_some(port), parity, upward_from: None, start }
    }
}

/// The address of a family at a place among ranges, the place being a hash's part of the whole.
fn address_at(ranges: &[AddressRange], v6: bool, hash: u64) -> Option<IpAddr> {
    let usable = || ranges.iter().filter(|r| r.first.is_ipv6() == v6);
    let count = usable().map(AddressRange::count).fold(0, u64::saturating_add);
    let mut place = u64::try_from((u128::from(hash) * u128::from(count)) >> 64).unwrap_or(0);
    for range in usable() {
        if place < range.count() {
            return Some(match range.first {
                IpAddr::V4(first) => IpAddr::V4((u32::from(first) + u32::try_from(place).ok()?).into()),
                IpAddr::V6(first) => IpAddr::V6((u128::from(first) + u128::from(place)).into()),
            });
        }
        place -= range.count();
    }
    None
}

/// How a pool's connections hold their ports.
const fn kind_of(mapping: Behaviour) -> u8 {
    match mapping {
        Behaviour::EndpointIndependent => kind::ENDPOINT,
        Behaviour::AddressDependent => kind::ADDRESS,
        Behaviour::AddressPortDependent => kind::POOL,
    }
}

const fn contains(range: PortRange, port: u16) -> bool {
    range.first <= port && port <= range.last
}

/// Whether a pool, or a rule that has ports of its own for it, may have given an address and port. A mapping that
/// another such rule made counts, so that an endpoint keeps it.
fn pool_allows(spec: &PoolSpec, ports: Option<PortRange>, class: Class, address: IpAddr, port: u16) -> bool {
    let in_range = contains(spec.ports, port) || ports.is_some_and(|r| contains(r, port));
    (class == Class::Icmp || in_range) && spec.contains(address)
}

/// A host's place in the addresses that its pool has now. It keeps its own if the pool still has it.
fn place_in(hosts: &Locked<'_>, host: &hosts::Host, spread: &Spread) -> u32 {
    let own = hosts.spread(host);
    let place = match own.and_then(|own| spread.addresses.place_of(own.addresses.get(host.place))) {
        Some(place) => {
            spread.join(place);
            place
        }
        None => spread.pick(),
    };
    if let Some(own) = own {
        own.leave(host.place);
    }
    place
}

fn binding(endpoint: Endpoint, address: u32, port: u16) -> Binding {
    Binding { host: endpoint.host, inside_port: endpoint.port, external_port: port, address, class: endpoint.class }
}

fn lease(kind: u8, mapping: u32, choice: &Choice<'_, '_>, address: IpAddr, port: u16) -> Lease {
    let original = &choice.wish.original;
    Lease { kind, mapping, zone: choice.wish.zone, address, port, proto: original.proto, remote: original.dst }
}

/// The ports among which another one is chosen for a port where no range was given: well-known ports stay among
/// themselves (RFC 4787 REQ-3a; the classes are the kernel's).
const fn ports_like(port: u16) -> PortRange {
    match port {
        0..512 => PortRange { first: 1, last: 511 },
        512..1024 => PortRange { first: 600, last: 1023 },
        _ => PortRange { first: 1024, last: u16::MAX },
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn what_openings_count_lies_on_no_line_that_leads_to_what_they_look_up() {
        let lines = |at: usize, bytes: usize| at / 64..=(at + bytes - 1) / 64;
        let read = [
            lines(offset_of!(Nat, hasher), size_of::<Hasher>()),
            lines(offset_of!(Nat, book), size_of::<Book>()),
            lines(offset_of!(Nat, mappings), size_of::<Mappings>()),
            lines(offset_of!(Nat, hosts), size_of::<Hosts>()),
            lines(offset_of!(Nat, external), size_of::<External>()),
            lines(offset_of!(Nat, remotes), size_of::<Remotes>()),
        ];
        for line in lines(offset_of!(Nat, direct), size_of::<PoolState>()) {
            assert!(align_of::<Nat>() >= 64 && read.iter().all(|read| !read.contains(&line)), "line {line}");
        }
    }
}

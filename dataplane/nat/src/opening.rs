//! What most openings need of a pool: IPv4, an address and port that nothing stands in the way of.
//!
//! [`Nat::choose`] does the same for all others, and for what is refused here; both leave the same behind.

use std::net::{IpAddr, Ipv4Addr};

use erhu_planes::program::{Behaviour, PortRange};

use crate::ahead::Ahead;
use crate::book::{As, external_hash_v4};
use crate::hosts::{Endpoint, Locked};
use crate::ports::Class;
use crate::spread::Spread;
use crate::{Lease, Nat, PoolSpec, kind, kind_of, pool_allows};

/// The first packet of a connection whose source a pool is to translate. Numbers are in host order.
#[derive(Clone, Copy, Debug)]
pub struct Opening4 {
    /// Its zone.
    pub zone: u16,
    /// Source and destination address.
    pub addresses: (u32, u32),
    /// Source and destination port; of ICMP identifier and `type << 8 | code`.
    pub ports: (u16, u16),
    /// IP protocol.
    pub proto: u8,
    /// Zone of the external address: that of the reply tuple.
    pub outside: u16,
    /// Now.
    pub now_tick: u32,
}

/// What [`Nat::open4`] gave: a lease in few words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given4 {
    /// One of [`kind`].
    pub kind: u8,
    /// A reference whose meaning depends on the kind.
    pub mapping: u32,
    /// External address, in host order.
    pub address: u32,
    /// External port, or ICMP identifier.
    pub port: u16,
}

impl Given4 {
    /// The lease, to give it back.
    pub fn lease(&self, opening: &Opening4) -> Lease {
        Lease {
            kind: self.kind,
            mapping: self.mapping,
            zone: opening.outside,
            address: Ipv4Addr::from(self.address).into(),
            port: self.port,
            proto: opening.proto,
            remote: Ipv4Addr::from(opening.addresses.1).into(),
        }
    }
}

impl Nat {
    /// As [`Nat::choose`] at the first attempt from a pool, `ports` being those that the rule names instead of the pool's.
    /// `None`, with nothing taken, where that needs more than most: the caller then asks [`Nat::choose`].
    #[inline]
    pub fn open4(
        &self,
        spec: &PoolSpec,
        ports: Option<PortRange>,
        opening: &Opening4,
        ahead: &Ahead,
        prefer: impl Fn(u32, u16) -> bool,
    ) -> Option<Given4> {
        let class = Class::of(opening.proto)?;
        let spread = spec.spread(false)?;
        if spec.mapping == Behaviour::AddressDependent || spec.filtering == Behaviour::AddressDependent {
            return None;
        }
        let mut hosts = self.hosts.of(ahead.host);
        let (zone, address) = (opening.zone, opening.addresses.0);
        if let Some(host) = hosts.find4(&self.book, ahead.host, spec.id(), zone, address) {
            return self.open_for(spec, ports, opening, ahead, spread, class, &mut hosts, host, &prefer);
        }
        let place = spread.pick();
        let who = (zone, IpAddr::V4(address.into()));
        let Some(host) = hosts.add(&self.book, &self.hasher, ahead.host, who, spread, place) else {
            spread.leave(place);
            return None;
        };
        let given = self.open_for(spec, ports, opening, ahead, spread, class, &mut hosts, host, &prefer);
        if given.is_none() {
            hosts.remove_if_idle(&self.book, &self.hasher, host);
        }
        given
    }

    #[expect(clippy::too_many_arguments, reason = "words that stay in registers")]
    #[inline(always)]
    fn open_for(
        &self,
        spec: &PoolSpec,
        ports: Option<PortRange>,
        opening: &Opening4,
        ahead: &Ahead,
        spread: &Spread,
        class: Class,
        hosts: &mut Locked<'_>,
        reference: u32,
        prefer: &impl Fn(u32, u16) -> bool,
    ) -> Option<Given4> {
        let host = hosts.state_of(reference)?;
        if !hosts.has_spread(host.spread, spread) {
            return None;
        }
        let kind = kind_of(spec.mapping);
        let endpoint = Endpoint { host: reference, port: opening.ports.0, class };
        if kind == kind::ENDPOINT
            && let Some(mapping) =
                self.book.find(ahead.inside, As::Inside, |r| Endpoint::of(&self.mappings, r) == endpoint)
        {
            return self.join(spec, ports, opening, class, mapping);
        }
        let address = spread.addresses.get4(host.place)?;
        let (mut shard, at) = self.external_at4(opening.outside, spread, host.place, address)?;
        let map = shard.map_mut(at, class)?;
        let wish = self.pool_wish(spec, ports, class, opening.ports.0, ahead.inside);
        let (port, mapping) = if kind == kind::ENDPOINT {
            let port = map.take_alone(&wish, 0, opening.now_tick, |port| prefer(address, port))?;
            let external = external_hash_v4(&self.hasher, address, class, port);
            match self.map_alone(hosts, endpoint, (at, port), (ahead.inside, external)) {
                Some(mapping) => (port, mapping),
                None => {
                    map.give_back_alone(port, None);
                    return None;
                }
            }
        } else {
            let secret = self.secret4(opening.addresses, opening.ports, (opening.proto, opening.zone));
            (map.take_shared(&wish, 0, opening.now_tick, secret, None, |port| prefer(address, port))?, reference)
        };
        drop(shard);
        if host.leases == 0 {
            hosts.note_external4(reference, address, opening.outside);
        }
        hosts.count_lease(reference, host.spread, class);
        Some(Given4 { kind, mapping, address, port })
    }

    /// A further connection of a mapping.
    fn join(
        &self,
        spec: &PoolSpec,
        ports: Option<PortRange>,
        opening: &Opening4,
        class: Class,
        mapping: u32,
    ) -> Option<Given4> {
        let binding = self.mappings.get(mapping);
        let (zone, IpAddr::V4(address)) = self.external.at(binding.address).identity(binding.address)? else {
            return None;
        };
        let port = binding.external_port;
        let serves = zone == opening.outside && pool_allows(spec, ports, class, address.into(), port);
        let joins = serves && self.mappings.add_use(mapping);
        joins.then(|| Given4 { kind: kind::ENDPOINT, mapping, address: address.into(), port })
    }

    /// As [`Nat::release`], or [`Nat::release_at_once`] if the port does not rest: ends what [`Nat::open4`] began.
    #[inline]
    pub fn close4(&self, given: &Given4, opening: &Opening4, ahead: &Ahead, rests: bool) {
        let class = Class::of(opening.proto);
        match (given.kind, class) {
            (kind::NONE, _) | (_, None) => {}
            (kind::ENDPOINT, Some(class)) => self.leave_mapping4(given, opening, ahead, (class, rests)),
            (kind::POOL, Some(class)) => {
                let mut hosts = self.hosts.at(given.mapping);
                let Some(host) = hosts.state_of(given.mapping) else { return };
                let rest = rests.then(|| hosts.rest_until(host.spread, opening.now_tick)).flatten();
                let shard = hosts.spread_at(host.spread).and_then(|spread| {
                    let own = spread.addresses.get4(host.place) == Some(given.address);
                    if own { self.external_at4(opening.outside, spread, host.place, given.address) } else { None }
                });
                match shard {
                    Some((mut shard, at)) => {
                        if let Some(map) = shard.map_mut(at, class) {
                            map.give_back_shared(given.port, rest);
                        }
                    }
                    None => self.give_back_share(&given.lease(opening), class, rest),
                }
                hosts.took_back(&self.book, (given.mapping, ahead.host), &host, class);
            }
            _ if rests => self.release(&given.lease(opening), opening.now_tick),
            _ => self.release_at_once(&given.lease(opening)),
        }
    }

    fn leave_mapping4(&self, given: &Given4, opening: &Opening4, ahead: &Ahead, (class, rests): (Class, bool)) {
        let binding = self.mappings.get(given.mapping);
        let mut hosts = self.hosts.at(binding.host);
        let Some(host) = hosts.state_of(binding.host) else { return };
        if hosts.spread_at(host.spread).is_some_and(|spread| spread.pool.remembers_remotes()) {
            self.remotes.remove(given.mapping, Ipv4Addr::from(opening.addresses.1).into());
        }
        if !self.mappings.drop_use(given.mapping) {
            return;
        }
        let rest = rests.then(|| hosts.rest_until(host.spread, opening.now_tick)).flatten();
        // It may have left as an inside endpoint's before, when its pool lost its address.
        self.book.remove(ahead.inside, As::Inside, given.mapping);
        let external = external_hash_v4(&self.hasher, given.address, class, given.port);
        self.book.remove(external, As::External, given.mapping);
        if let Some(map) = self.external.at(binding.address).map_mut(binding.address, class) {
            map.give_back_alone(given.port, rest);
        }
        self.mappings.free(&mut hosts.shard.records, given.mapping);
        hosts.took_back(&self.book, (binding.host, ahead.host), &host, class);
    }

    /// As [`Nat::secret`].
    #[inline]
    pub(crate) fn secret4(
        &self,
        (src, dst): (u32, u32),
        (sport, dport): (u16, u16),
        (proto, zone): (u8, u16),
    ) -> u64 {
        let ports = u64::from(sport) | u64::from(dport) << 16;
        let low = ports | u64::from(proto) << 32 | u64::from(zone) << 40;
        self.hasher.two(u64::from(src), self.hasher.two(u64::from(dst), low))
    }
}

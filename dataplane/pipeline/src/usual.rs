//! First packets as most are: IPv4, sent on by one route into one neighbour's hands, their source translated by a pool or
//! not at all.
//!
//! # Overview
//!
//! [`Worker::first_packet`] does for them what [`Worker::open`] does for all, in the same order and with the same
//! outcome, but on numbers in registers: nothing is packed, unpacked or copied between structures on the way. What it
//! cannot do it leaves to that, before anything has changed: whatever needs a rate, a reserve, a translated destination, a
//! choice among routes, or a second attempt; and whatever has to be refused.
//!
//! # Lines that an opening touches
//!
//! Its own, asked for beforehand by [`crate::ahead`]: two buckets of the index, three lines of the slab (four of TCP),
//! the bucket, record, and mapping of its host, two buckets of the mapping. Shared by many, mostly in the cache: rules,
//! routes, two adjacencies, the bits of its external address, the accounts and counters of both zones.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;

use erhu_nat::{Ahead, Given4, Opening4, PoolSpec};
use erhu_planes::connections::{Class, NO_REFERENCE, flags, status};
use erhu_planes::events::mask;
use erhu_planes::program::{Hook, PortRange, SourceChoice, states};
use erhu_planes::tuple::{Key4, proto};
use erhu_planes::{Counter, DropReason, TICKS_PER_SECOND};
use erhu_route::Found;
use erhu_rules::{Effects, Keys, Verdict};
use erhu_table::{Entry, Reference, Slot};
use erhu_wire::{Kind, ipv4, is_unforwardable_v4};

use crate::buffer::Buffers;
use crate::fast::forward;
use crate::judge::{Judged, refusal};
use crate::meta::Meta;
use crate::open::{Opening, Translation, translation_of, write_rewrites};
use crate::policy::Interface;
use crate::track::timer;
use crate::worker::{Fate, Held, Worker};

/// A first packet that rules have accepted.
struct Accepted<'h> {
    meta: &'h Meta,
    /// Pool that translates its source, and the ports that the rule names for that.
    pool: Option<(&'h PoolSpec, Option<PortRange>)>,
    egress: &'h Interface,
    /// Next hop's number.
    adjacency: u32,
    /// That of answers.
    back: u32,
    /// Its packets must be judged one by one.
    packet_kind: bool,
}

impl<P: Buffers> Worker<P> {
    /// A packet that seems to be the first of a connection.
    #[inline(never)]
    pub(crate) fn first_packet(
        &mut self,
        held: Held<'_, P::Buffer>,
        mut buffer: P::Buffer,
        meta: &mut Meta,
        ahead: Option<&Ahead>,
    ) {
        self.tally.count(Counter::SlowPath);
        let fate = match self.open_usual(held, &buffer, meta, ahead) {
            Some(fate) => fate,
            None => self.slow(held, &mut buffer, meta),
        };
        self.finish(buffer, meta, fate);
    }

    /// See the module's text. `None`: nothing was done.
    #[inline(always)]
    fn open_usual(
        &mut self,
        held: Held<'_, P::Buffer>,
        buffer: &P::Buffer,
        meta: &Meta,
        ahead: Option<&Ahead>,
    ) -> Option<Fate> {
        let Held { shared, policy } = held;
        let (src, dst) = meta.key().addresses();
        if meta.parsed.kind != Kind::Fast
            || meta.parsed.ttl <= 1
            || ipv4::split_addresses(meta.parsed.addresses).into_iter().any(is_unforwardable_v4)
            || policy.has_reserves
            || policy.rules.translates_destinations()
            || !policy.rules.accepts_all(Hook::Prerouting, states::NEW)
            || !policy.rules.accepts_all(Hook::Forward, states::ESTABLISHED)
            || policy.rules.asks_status()
            || (meta.parsed.proto != proto::UDP && !self.can_open(buffer, meta))
            || shared.table.find4(meta.hash, &meta.key()).is_some()
        {
            return None;
        }
        let (ingress, zone) = (policy.interface(meta.slot)?, policy.zone(meta.zone));
        let back = policy.routes.way4(meta.zone, src)?;
        let there = policy.routes.way4(meta.zone, dst)?;
        let (behind, egress) = (policy.interface_at(back.interface)?, policy.interface_at(there.interface)?);
        if zone.rate.is_some()
            || self.below_limit(zone).is_err()
            || behind.zone != meta.zone
            || egress.mtu < meta.parsed.length
            || policy.pools.owns4(meta.zone, dst)
            || policy.pools.owns4(egress.zone, dst)
            || (egress.zone != meta.zone && self.below_limit(policy.zone(egress.zone)).is_err())
        {
            return None;
        }
        let mut keys = Keys::of(&meta.packet(ingress, states::NEW));
        keys.set_egress(egress.index, egress.zone);
        self.connmark.set(None);
        // From here on rules have counted.
        let (verdict, effects) = self.run_keys(held, Hook::Forward, &mut keys, meta);
        let packet_kind = effects.packet_kind;
        if let Some((reason, reject)) = refusal(&verdict) {
            return Some(self.refuse_packet(buffer, meta, &Judged::Refuse { reason, reject, packet_kind: false }));
        }
        let (verdict, _) = self.run_keys(held, Hook::Postrouting, &mut keys, meta);
        let usual = match verdict {
            Verdict::Accept => Some(None),
            Verdict::Snat { action } => {
                let snat = policy.rules.snat(action);
                match snat.source {
                    SourceChoice::Pool(index) if !snat.random => {
                        policy.pools.get(usize::from(index)).map(|pool| Some((pool, snat.ports)))
                    }
                    _ => None,
                }
            }
            _ => None,
        };
        let translation = || translation_of(policy, &verdict, Ipv4Addr::from(src).into(), egress);
        if usual.is_none()
            && let Err(reason) = translation()
        {
            return Some(Fate::Drop(reason));
        }
        let Some(adjacency) = self.hops.find_or_add4(&shared.adjacencies, egress, there.next_hop) else {
            return Some(Fate::Drop(DropReason::NoNeighbour));
        };
        let answers = self.hops.find_or_add4(&shared.adjacencies, behind, back.next_hop);
        if let (Some(pool), Some(back)) = (usual, answers) {
            let accepted = Accepted { meta, pool, egress, adjacency, back, packet_kind };
            if let Some(reference) = self.confirm_usual(held, buffer, &accepted, ahead) {
                return Some(Fate::Forward { reference, adjacency });
            }
        }
        let opening = Opening {
            meta,
            translation: translation().unwrap_or(Translation::None),
            reply_zone: egress.zone,
            course: None,
            egress: Some(egress),
            target: Judged::Forward { adjacency, egress: egress.slot, packet_kind },
            mark: meta.mark,
            back: Some(Found::Via { interface: behind.index, next_hop: Ipv4Addr::from(back.next_hop).into() }),
        };
        self.confirm_and_send(held, buffer, &opening, adjacency)
    }

    /// Runs a hook's rules for a packet and counts what they count.
    #[inline(always)]
    fn run_keys(&self, held: Held<'_, P::Buffer>, hook: Hook, keys: &mut Keys, meta: &Meta) -> (Verdict, Effects) {
        let Held { shared, policy } = held;
        let mut effects = Effects::default();
        let verdict = policy.rules.run_keys(hook, keys, &mut effects, &mut |counter| {
            self.count_named(shared, policy, counter, meta.parsed.length.into());
        });
        if effects.connmark.is_some() {
            self.connmark.set(effects.connmark);
        }
        (verdict, effects)
    }

    /// As [`Worker::confirm`]. `None`: nothing was done.
    #[inline(always)]
    fn confirm_usual(
        &mut self,
        held: Held<'_, P::Buffer>,
        buffer: &P::Buffer,
        accepted: &Accepted<'_>,
        ahead: Option<&Ahead>,
    ) -> Option<Reference> {
        let shared = held.shared;
        let (zone, reply_zone, key) = (accepted.meta.zone, accepted.egress.zone, accepted.meta.key());
        let opening = Opening4 {
            zone,
            addresses: key.addresses(),
            ports: key.ports(),
            proto: key.proto(),
            outside: reply_zone,
            now_tick: self.clock.tick,
        };
        if !self.take_distant_place() {
            return None;
        }
        if self.book(zone, reply_zone).is_err() {
            self.give_place_back();
            return None;
        }
        let given = match accepted.pool {
            Some((pool, ports)) => {
                let own;
                let ahead = match ahead {
                    Some(ahead) => ahead,
                    None => {
                        own = shared.nat.ahead(key);
                        &own
                    }
                };
                let towards = held.policy.affinity.as_ref().and_then(|affinity| {
                    let remote = (Ipv4Addr::from(opening.addresses.1).into(), opening.ports.1);
                    affinity.towards(accepted.egress.port, self.index, opening.proto, remote)
                });
                let leads_here = |address: u32, port| {
                    towards.is_none_or(|towards| towards.is_reached_by(Ipv4Addr::from(address).into(), port))
                };
                match shared.nat.open4(pool, ports, &opening, ahead, leads_here) {
                    Some(given) => Some(given),
                    None => {
                        self.leave_usual(held, &opening, None, None);
                        return None;
                    }
                }
            }
            None => None,
        };
        let external = given.map_or((opening.addresses.0, opening.ports.0), |given| (given.address, given.port));
        let reply = key.reply(reply_zone, external).filter(|reply| *reply != key);
        let class = if key.proto() == proto::TCP { Class::Tcp4 } else { Class::Udp4 };
        let slot = self.own.alloc(&shared.table, class);
        let (Some(reply), Some(slot)) = (reply, slot) else {
            self.leave_usual(held, &opening, given, None);
            return None;
        };
        let entry = slot.entry(&shared.table);
        self.write_usual(held, entry, accepted, (key, reply), given);
        let hashes = (accepted.meta.hash, shared.table.hash4(&reply));
        if shared.table.insert4(&slot, (hashes.0, &key), (hashes.1, &reply)).is_err() {
            self.leave_usual(held, &opening, given, Some(slot));
            return None;
        }
        self.publish_usual(held, buffer, entry, accepted);
        Some(entry.reference(0))
    }

    /// Gives back what was taken for a connection that did not come about.
    #[cold]
    fn leave_usual(
        &mut self,
        held: Held<'_, P::Buffer>,
        opening: &Opening4,
        given: Option<Given4>,
        slot: Option<Slot>,
    ) {
        if let Some(given) = given {
            held.shared.nat.release_at_once(&given.lease(opening));
        }
        if let Some(slot) = slot {
            self.own.discard(&held.shared.table, slot);
        }
        self.unbook(opening.zone, opening.outside);
        self.give_place_back();
    }

    /// Writes all but what makes a connection visible and what tracking knows of it.
    #[inline(always)]
    fn write_usual(
        &self,
        held: Held<'_, P::Buffer>,
        entry: Entry<'_>,
        accepted: &Accepted<'_>,
        (key, reply): (Key4, Key4),
        given: Option<Given4>,
    ) {
        let relaxed = Ordering::Relaxed;
        let (meta, now) = (accepted.meta, self.clock);
        let owner = u16::try_from(self.index).unwrap_or(0) << flags::OWNER_SHIFT;
        let is_tcp = if entry.class().is_tcp() { flags::TCP } else { 0 };
        let [original, other] = [entry.original4(), entry.reply4()];
        let translates = write_rewrites(original, other, key, reply);
        let translate = translates.map(|translates| if translates { flags::TRANSLATE } else { 0 });
        let per_packet = if accepted.packet_kind { flags::PER_PACKET } else { 0 };
        let generation = u64::from(held.policy.generation);
        for (hot, key) in [(original, key), (other, reply)] {
            hot.key[0].store(key.0[0], relaxed);
            hot.key[1].store(key.0[1], relaxed);
        }
        original.flags.store(owner | is_tcp | translate[0] | per_packet, relaxed);
        original.interface.store(meta.slot, relaxed);
        original.decision.store(generation | u64::from(accepted.adjacency) << 32, relaxed);
        original.packets.store(1, relaxed);
        original.bytes.store(meta.parsed.length.into(), relaxed);
        original.last_seen.store(now.tick, relaxed);
        other.flags.store(owner | is_tcp | translate[1] | flags::REPLY, relaxed);
        other.interface.store(accepted.egress.slot, relaxed);
        other.decision.store(generation | u64::from(accepted.back) << 32, relaxed);
        other.packets.store(0, relaxed);
        other.bytes.store(0, relaxed);
        other.last_seen.store(0, relaxed);
        let cold = entry.cold();
        let translated = if translate[0] == 0 { 0 } else { status::SRC_NAT };
        cold.created_ns.store(now.wall_ns, relaxed);
        cold.status.store(status::CONFIRMED | status::SRC_NAT_DONE | status::DST_NAT_DONE | translated, relaxed);
        // Not taken: should the long way have to go on, it will ask, too.
        cold.mark.store(self.connmark.get().unwrap_or(0), relaxed);
        cold.first_mark.store(meta.mark, relaxed);
        cold.came_mark.store(meta.mark, relaxed);
        cold.mapping.store(given.map_or(NO_REFERENCE, |given| given.mapping), relaxed);
        cold.nat_kind.store(given.map_or(0, |given| given.kind), relaxed);
        cold.owner.store(u8::try_from(self.index).unwrap_or(0), relaxed);
        cold.egress.store(accepted.egress.slot, relaxed);
        cold.stream_from.store(now.tick + 2 * TICKS_PER_SECOND, relaxed);
    }

    /// The connection is in the index: starts its clock, counts and tells.
    #[inline(always)]
    fn publish_usual(
        &mut self,
        held: Held<'_, P::Buffer>,
        buffer: &P::Buffer,
        entry: Entry<'_>,
        accepted: &Accepted<'_>,
    ) {
        let shared = held.shared;
        for (hot, adjacency) in [(entry.original4(), accepted.adjacency), (entry.reply4(), accepted.back)] {
            if shared.adjacencies.get(adjacency).hold() {
                let bits = hot.flags.load(Ordering::Relaxed);
                hot.flags.store(bits | flags::HOLDS_ADJACENCY, Ordering::Relaxed);
            }
        }
        self.start_tracking(buffer, accepted.meta, entry);
        let id = self.own.next_id(&shared.table);
        // Release; pairs with the Acquire of readers: from here on the entry is visible to them.
        entry.cold().id.store(id, Ordering::Release);
        if let Some(wheel) = self.wheel.as_mut() {
            wheel.arm(&shared.table, entry, timer(entry, self.clock.tick));
        }
        self.count_in_zones(accepted.meta.zone, accepted.egress.zone, |block| &block.created);
        self.tally.created();
        self.tell(entry, mask::NEW);
    }

    /// Sends the first packet of a connection as further ones will be: translated as its direction says.
    #[inline(always)]
    pub(crate) fn depart(&mut self, mut buffer: P::Buffer, meta: &Meta, reference: Reference, adjacency: u32) {
        if meta.parsed.kind == Kind::Fast
            && let Some(egress) = self.shared.adjacencies.get(adjacency).ready(meta.parsed.length)
        {
            return match forward(&mut buffer, &meta.parsed, self.shared.table.hot4(reference), &egress) {
                Some(bytes) => {
                    self.pass_on(buffer, &egress, bytes);
                    self.sent.slow += 1;
                }
                None => self.count_drop(meta.slot, meta.zone, DropReason::NoBuffer),
            };
        }
        self.rewrite(&mut buffer, meta, reference);
        self.leave(buffer, meta, adjacency);
    }
}

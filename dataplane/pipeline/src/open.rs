//! First packets: from admission to confirmation. And connections judged again, and their end.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use erhu_nat::{ATTEMPTS, Exhausted, Lease, Target, Wish};
use erhu_planes::connections::{Class, Hot4, NO_REFERENCE, flags, status};
use erhu_planes::events::{Event, mask};
use erhu_planes::program::{AddressRange, Hook, PortRange, RejectKind, SourceChoice, states, statuses};
use erhu_planes::tuple::{Key, Key4, proto};
use erhu_planes::{Counter, DropReason, TICKS_PER_SECOND, Tuple};
use erhu_route::Found;
use erhu_rules::{Facts, Verdict};
use erhu_table::{Entry, Taken};
use erhu_wire::rewrite::Rewrite4;

use crate::buffer::Buffers;
use crate::destination::Course;
use crate::ending::rests;
use crate::judge::{Judged, refusal};
use crate::meta::Meta;
use crate::policy::{Interface, Policy};
use crate::slow::flow;
use crate::track::timer;
use crate::worker::{Fate, Held, Worker};

/// How a connection's source is translated.
#[derive(Clone, Debug)]
pub(crate) enum Translation<'p> {
    /// Not at all, unless its reply tuple is taken.
    None,
    /// To a pool.
    Pool { index: u16, ports: Option<PortRange>, random: bool },
    /// To some addresses.
    Addresses { ranges: &'p [AddressRange], ports: Option<PortRange>, random: bool, persistent: bool },
    /// To an interface's address.
    Address { address: IpAddr, ports: Option<PortRange>, random: bool },
}

/// A connection that rules have accepted.
pub(crate) struct Opening<'p> {
    pub meta: &'p Meta,
    pub translation: Translation<'p>,
    /// Zone of the reply tuple.
    pub reply_zone: u16,
    /// Where its destination is translated to, if it is.
    pub course: Option<&'p Course>,
    /// Interface that original packets leave by; none for connections to the router.
    pub egress: Option<&'p Interface>,
    /// Decision for original packets.
    pub target: Judged,
    /// Packet mark that it came to forward or input with.
    pub mark: u32,
    /// The way to where it came from, if all flows take the same.
    pub back: Option<Found>,
}

/// Tick at which a connection ends if nothing refreshes it: one more than the sum, for it was seen some time after its
/// tick had begun, and a timeout never fires early.
pub(crate) fn deadline(entry: Entry<'_>) -> u32 {
    last_seen(entry).saturating_add(entry.timeout().load(Ordering::Relaxed)).saturating_add(1)
}

fn last_seen(entry: Entry<'_>) -> u32 {
    let seen = |direction| entry.last_seen(direction).load(Ordering::Relaxed);
    seen(0).max(seen(1))
}

impl<P: Buffers> Worker<P> {
    /// A packet without a connection. `None`: another worker made one meanwhile, look again.
    pub(crate) fn open(&mut self, held: Held<'_, P::Buffer>, buffer: &mut P::Buffer, meta: &Meta) -> Option<Fate> {
        let policy = held.policy;
        if !self.can_open(buffer, meta) {
            return Some(self.invalid(buffer, meta));
        }
        let (src, dst) = meta.addresses();
        let (back, is_only_way) = policy.routes.lookup_all(meta.zone, src, 0);
        if matches!(back, Found::Broadcast { .. }) {
            return Some(Fate::Drop(DropReason::Unsupported));
        }
        let mut facts = meta.facts(policy, states::NEW);
        self.connmark.set(None);
        let is_pools = policy.pools.owner(meta.zone, dst).is_some();
        if is_pools && let Some(reason) = self.unsolicited(policy, meta, &facts) {
            return Some(Fate::Drop(reason));
        }
        let zone = policy.zone(meta.zone);
        if let Err(reason) = self.below_limit(zone).and_then(|()| self.take_rate(zone)) {
            return Some(self.refuse(meta, reason));
        }
        let (verdict, effects) = self.run_hook(Hook::Prerouting, &facts);
        facts.mark = effects.mark;
        if let Some((reason, _)) = refusal(&verdict) {
            return Some(Fate::Drop(reason));
        }
        let mut course = None;
        if is_pools || matches!(verdict, Verdict::Dnat { .. } | Verdict::Netmap { .. }) {
            course = match self.course(policy, meta, &mut facts, &verdict) {
                Ok(course) => course,
                Err(reason) => return Some(Fate::Drop(reason)),
            };
        }
        let mut found = policy.routes.lookup(course.map_or(meta.zone, |c| c.route_zone), facts.dst, flow(meta));
        if course.is_none() && Self::may_be_ours(policy, &found, dst) {
            course = match self.course(policy, meta, &mut facts, &verdict) {
                Ok(course) => course,
                Err(reason) => return Some(Fate::Drop(reason)),
            };
            if let Some(course) = course {
                found = policy.routes.lookup(course.route_zone, facts.dst, flow(meta));
            }
        }
        let (egress, hop) = match found {
            Found::Via { interface, next_hop } => match policy.interface_at(interface) {
                Some(interface) => (interface, next_hop),
                None => return Some(Fate::Drop(DropReason::NoRoute)),
            },
            Found::Local { .. } => return self.open_local(held, buffer, meta, &facts, course.as_ref()),
            other => return Some(self.unroutable(buffer, meta, &other)),
        };
        if let Some(course) = course.as_mut() {
            // A destination is translated once.
            if policy.pools.owner(egress.zone, facts.dst).is_some() {
                return Some(Fate::Drop(DropReason::NoMapping));
            }
            course.outside = course.outside.filter(|slot| *slot != egress.slot);
        }
        if meta.parsed.ttl <= 1 {
            return Some(self.ttl_expired(buffer, meta));
        }
        if let Some(fate) = self.too_big(buffer, meta, egress.mtu) {
            return Some(fate);
        }
        if egress.zone != meta.zone
            && let Err(reason) = self.below_limit(policy.zone(egress.zone))
        {
            return Some(self.refuse(meta, reason));
        }
        facts.egress = Some(egress.index);
        facts.egress_zone = Some(egress.zone);
        let (verdict, effects) = self.run_hook(Hook::Forward, &facts);
        let packet_kind = effects.packet_kind;
        let mark = std::mem::replace(&mut facts.mark, effects.mark);
        if let Some((reason, reject)) = refusal(&verdict) {
            let judged = Judged::Refuse { reason, reject, packet_kind: false };
            return Some(self.refuse_packet(buffer, meta, &judged));
        }
        let wanted = match course.and_then(|c| c.outside) {
            None => self.translation(policy, &facts, egress),
            outside => self.source_translation(policy, &facts, egress, outside, &meta.tuple()),
        };
        let translation = match wanted {
            Ok(translation) => translation,
            Err(reason) => return Some(Fate::Drop(reason)),
        };
        let Some(adjacency) = self.adjacency(egress, hop) else {
            return Some(Fate::Drop(DropReason::NoNeighbour));
        };
        let target = Judged::Forward { adjacency, egress: egress.slot, packet_kind };
        let back = is_only_way.then_some(back);
        let (reply_zone, course) = (egress.zone, course.as_ref());
        let opening = Opening { meta, translation, reply_zone, course, egress: Some(egress), target, mark, back };
        self.confirm_and_send(held, buffer, &opening, adjacency)
    }

    /// Confirms a connection whose first packet then leaves by an adjacency. `None`: somebody else was faster.
    pub(crate) fn confirm_and_send(
        &mut self,
        held: Held<'_, P::Buffer>,
        buffer: &P::Buffer,
        opening: &Opening<'_>,
        adjacency: u32,
    ) -> Option<Fate> {
        match self.confirm(held, buffer, opening) {
            Ok(line) => {
                let reference = held.shared.table.entry_at(line)?.reference(0);
                Some(Fate::Forward { reference, adjacency })
            }
            Err(None) => None,
            Err(Some(reason)) => {
                let meta = opening.meta;
                if reason == DropReason::PoolExhausted {
                    self.answer(buffer, &meta.parsed, meta.slot, meta.zone, RejectKind::Host);
                }
                Some(self.refuse(meta, reason))
            }
        }
    }

    fn refuse(&mut self, _meta: &Meta, reason: DropReason) -> Fate {
        self.tally.refuse(reason);
        Fate::Drop(reason)
    }

    /// What postrouting wants of a first packet.
    pub(crate) fn translation<'p>(
        &mut self,
        policy: &'p Policy,
        facts: &Facts,
        egress: &Interface,
    ) -> Result<Translation<'p>, DropReason> {
        let (verdict, _) = self.run_hook(Hook::Postrouting, facts);
        translation_of(policy, &verdict, facts.src, egress)
    }

    /// Whether postrouting would translate such a packet.
    pub(crate) fn would_translate(&mut self, facts: &Facts) -> bool {
        let (verdict, _) = self.run_hook(Hook::Postrouting, facts);
        matches!(verdict, Verdict::Snat { .. } | Verdict::Masquerade { .. } | Verdict::Netmap { .. })
    }

    /// Reserves, translates, publishes. `Ok`: the entry's line. `Err(None)`: somebody else was faster.
    pub(crate) fn confirm(
        &mut self,
        held: Held<'_, P::Buffer>,
        buffer: &P::Buffer,
        opening: &Opening<'_>,
    ) -> Result<u32, Option<DropReason>> {
        let table = &held.shared.table;
        let original = opening.meta.tuple();
        if !self.take_place(original.zone) {
            return Err(Some(DropReason::TableFull));
        }
        let class = class_of(&original);
        let Some(slot) = self.own.alloc(table, class) else {
            self.give_place_back();
            return Err(Some(DropReason::TableFull));
        };
        if let Err(reason) = self.book(original.zone, opening.reply_zone) {
            self.own.discard(table, slot);
            self.give_place_back();
            return Err(Some(reason));
        }
        let entered = match self.enter(opening, &original) {
            Ok(entered) => entered,
            Err(reason) => {
                self.unbook(original.zone, opening.reply_zone);
                self.own.discard(table, slot);
                self.give_place_back();
                return Err(Some(reason));
            }
        };
        let mut attempt = 0;
        let outcome = loop {
            let (reply, lease) = match self.reply_tuple(opening, &original, attempt) {
                Ok(found) => found,
                Err(reason) => break Err(Some(reason)),
            };
            let (key, reply_key) = (opening.meta.packed(), Key::from(&reply));
            if key == reply_key {
                self.give_back(lease.as_ref());
                break Err(Some(DropReason::Clash));
            }
            self.write_identity(slot.entry(table), &key, &reply_key, opening, lease.as_ref());
            let reply_hash = table.hash(&reply_key);
            match table.insert_hashed(&slot, (opening.meta.hash, &key), (reply_hash, &reply_key)) {
                Ok(()) => break Ok((reply, lease)),
                Err(taken) => {
                    self.give_back(lease.as_ref());
                    match taken {
                        Taken::Original(_) => break Err(None),
                        Taken::IndexFull => break Err(Some(DropReason::TableFull)),
                        Taken::Reply(_) => attempt += 1,
                    }
                }
            }
            if attempt > ATTEMPTS {
                break Err(Some(DropReason::Clash));
            }
        };
        match outcome {
            Ok((reply, _)) => {
                if attempt > 0 {
                    self.tally.count(Counter::ClashRemapped);
                }
                let entry = slot.entry(table);
                self.publish_entry(buffer, entry, opening, &reply, entered);
                Ok(entry.line())
            }
            Err(reason) => {
                self.leave_mapping(entered);
                self.unbook(original.zone, opening.reply_zone);
                self.own.discard(table, slot);
                self.give_place_back();
                Err(reason)
            }
        }
    }

    fn give_back(&self, lease: Option<&Lease>) {
        if let Some(lease) = lease {
            self.shared.nat.release_at_once(lease);
        }
    }

    /// The reply tuple, translated where rules want it or, from the second attempt on, where it is taken.
    fn reply_tuple(
        &mut self,
        opening: &Opening<'_>,
        original: &Tuple,
        attempt: u32,
    ) -> Result<(Tuple, Option<Lease>), DropReason> {
        let (aimed, attempt) = match opening.course {
            None => (*original, attempt),
            Some(course) if attempt > 0 && !course.leaves_a_choice(original) => return Err(DropReason::Clash),
            Some(course) => course.aimed(original, attempt),
        };
        let plain = translated_reply(&aimed, opening.reply_zone, None).ok_or(DropReason::Invalid)?;
        let policy = &*self.policy;
        let (target, ports, random) = match &opening.translation {
            Translation::None if attempt == 0 => return Ok((plain, None)),
            Translation::None if opening.egress.is_none() => return Err(DropReason::Clash),
            Translation::None => (Target::Address(original.src), None, false),
            Translation::Pool { index, ports, random } => {
                let spec = policy.pools.get(usize::from(*index)).ok_or(DropReason::PoolExhausted)?;
                (Target::Pool(spec), *ports, *random)
            }
            Translation::Addresses { ranges, ports, random, persistent } => {
                (Target::Addresses { ranges, persistent: *persistent }, *ports, *random)
            }
            Translation::Address { address, ports, random } => (Target::Address(*address), *ports, *random),
        };
        let (zone, now_tick) = (self.source_zone(opening), self.clock.tick);
        // Of a hairpin, the remote is whom it meant to call.
        let is_hairpin = opening.course.is_some_and(|c| c.outside.is_some());
        let wish_for = if is_hairpin { *original } else { aimed };
        let wish = Wish { target, ports, random, original: wish_for, zone, now_tick };
        let is_none = matches!(opening.translation, Translation::None);
        let towards = policy.affinity.as_ref().and_then(|affinity| {
            affinity.towards(opening.egress?.port, self.index, plain.proto, (plain.src, plain.sport))
        });
        let leads_here = |address, port| towards.is_none_or(|towards| towards.is_reached_by(address, port));
        match self.shared.nat.choose(&wish, attempt, &mut self.rng, leads_here) {
            Ok(lease) => {
                let external = Some((lease.address, lease.port));
                let reply = translated_reply(&aimed, opening.reply_zone, external).ok_or(DropReason::Invalid)?;
                Ok((reply, Some(lease)))
            }
            Err(Exhausted::Clash) => Err(DropReason::Clash),
            Err(_) if is_none => Err(DropReason::Clash),
            Err(_) => Err(DropReason::PoolExhausted),
        }
    }

    /// Writes both hot lines' keys and rewrites, and what ends a connection needs.
    fn write_identity(&self, entry: Entry<'_>, key: &Key, reply: &Key, opening: &Opening<'_>, lease: Option<&Lease>) {
        let relaxed = Ordering::Relaxed;
        let owner = u16::try_from(self.index).unwrap_or(0) << flags::OWNER_SHIFT;
        let is_tcp = if entry.class().is_tcp() { flags::TCP } else { 0 };
        let egress = opening.egress.map_or(opening.meta.slot, |i| i.slot);
        let translates = match (key, reply) {
            (Key::V4(key), Key::V4(reply)) => write_rewrites(entry.original4(), entry.reply4(), *key, *reply),
            (Key::V6(key), Key::V6(reply)) => [(0, key, reply), (1, reply, key)]
                .map(|(direction, key, other)| crate::fast6::store_rewrite(entry, direction, key, other)),
            _ => [false; 2],
        };
        let sides = [(key, opening.meta.slot, 0), (reply, egress, flags::REPLY)];
        for (direction, (key, interface, side)) in sides.into_iter().enumerate() {
            entry.store_key(direction, key);
            let translates = if translates[direction] { flags::TRANSLATE } else { 0 };
            let hot = entry.side(direction);
            hot.flags.store(owner | is_tcp | side | translates, relaxed);
            hot.interface.store(interface, relaxed);
            hot.decision.store(0, relaxed);
            hot.packets.store(0, relaxed);
            hot.bytes.store(0, relaxed);
            hot.last_seen.store(0, relaxed);
        }
        let cold = entry.cold();
        cold.mapping.store(lease.map_or(NO_REFERENCE, |l| l.mapping), relaxed);
        cold.nat_kind.store(lease.map_or(0, |l| l.kind), relaxed);
    }

    /// The connection exists: decides both directions, starts its clock, counts and tells.
    fn publish_entry(
        &mut self,
        buffer: &P::Buffer,
        entry: Entry<'_>,
        opening: &Opening<'_>,
        reply: &Tuple,
        entered: Option<u32>,
    ) {
        let relaxed = Ordering::Relaxed;
        let original = opening.meta.tuple();
        let now = self.clock;
        let cold = entry.cold();
        let is_translated = entry.flags(0).load(relaxed) & flags::TRANSLATE != 0;
        let mut bits = status::CONFIRMED | status::SRC_NAT_DONE | status::DST_NAT_DONE;
        if opening.course.is_some() {
            bits |= self.note_detour(entry, opening, (&original, reply), entered);
        } else if is_translated {
            bits |= status::SRC_NAT;
        }
        cold.created_ns.store(now.wall_ns, relaxed);
        cold.status.store(bits, relaxed);
        cold.mark.store(self.connmark.take().unwrap_or(0), relaxed);
        cold.first_mark.store(opening.mark, relaxed);
        cold.came_mark.store(opening.meta.mark, relaxed);
        cold.owner.store(u8::try_from(self.index).unwrap_or(0), relaxed);
        cold.class.store(entry.class() as u8, relaxed);
        cold.egress.store(opening.egress.map_or(crate::policy::NO_SLOT, |i| i.slot), relaxed);
        cold.stream_from.store(now.tick + 2 * TICKS_PER_SECOND, relaxed);
        self.start_tracking(buffer, opening.meta, entry);
        crate::fast::count(&entry.side(0), now.tick, opening.meta.parsed.length);
        self.decide_both(entry, opening.target, opening.back);
        let id = self.own.next_id(&self.shared.table);
        // Release; pairs with the Acquire of readers: from here on the entry is visible to them.
        cold.id.store(id, Ordering::Release);
        if let Some(wheel) = self.wheel.as_mut() {
            wheel.arm(&self.shared.table, entry, timer(entry, now.tick));
        }
        self.count_in_zones(original.zone, reply.zone, |block| &block.created);
        self.tally.created();
        self.tell(entry, mask::NEW);
    }

    /// Decides both directions, `first` being the decision for a new packet of the original one. That holds until an
    /// answer is seen; where it would be another one then, packets are judged one by one. `back`: the way of answers, if
    /// that is known.
    fn decide_both(&mut self, entry: Entry<'_>, first: Judged, back: Option<Found>) {
        if first == Judged::Local {
            self.store_decision(entry, 0, &Judged::Local);
            return self.store_decision(entry, 1, &Judged::Local);
        }
        let settled = match first {
            Judged::Forward { adjacency, egress, packet_kind } => {
                // It takes the same way whatever its state. Where the rules accept every established packet, there is
                // nothing to ask them.
                let is_steady = if self.policy.rules.asks_status() {
                    self.is_steady(entry, 0, first)
                } else {
                    self.policy.rules.accepts_all(Hook::Forward, states::ESTABLISHED) || {
                        let mut original = self.leg(entry, 0, states::ESTABLISHED);
                        self.judge(&mut original) == first
                    }
                };
                Judged::Forward { adjacency, egress, packet_kind: packet_kind || !is_steady }
            }
            other => other,
        };
        self.store_decision(entry, 0, &settled);
        let reply = match back {
            Some(back) if self.policy.rules.accepts_all(Hook::Forward, states::ESTABLISHED) => {
                self.take(&back, entry.zone(0))
            }
            _ => {
                let mut reply = self.leg(entry, 1, states::ESTABLISHED);
                let judged = self.judge(&mut reply);
                let may_change = self.policy.rules.asks_status() && !self.is_steady(entry, 1, judged);
                if may_change { judged.one_by_one() } else { judged }
            }
        };
        self.store_decision(entry, 1, &reply);
    }

    /// Judges a connection as its first packet would be judged now, and decides its directions anew. `false`: it must
    /// end.
    pub(crate) fn reevaluate(&mut self, entry: Entry<'_>) -> bool {
        let relaxed = Ordering::Relaxed;
        let policy = self.policy();
        let (original, reply) = (entry.key(0).tuple(), entry.key(1).tuple());
        let Some(ingress) = policy.interface(entry.side(0).interface.load(relaxed)) else { return false };
        if ingress.zone != original.zone {
            return false;
        }
        let mut first = self.leg(entry, 0, states::NEW);
        first.facts.dst = original.dst;
        first.facts.dport = original.dport;
        first.facts.status = 0;
        first.facts.mark = entry.cold().came_mark.load(relaxed);
        let (verdict, effects) = self.run_hook(Hook::Prerouting, &first.facts);
        if refusal(&verdict).is_some() {
            return false;
        }
        first.facts.mark = effects.mark;
        entry.cold().first_mark.store(effects.mark, relaxed);
        let is_turned = entry.cold().status.load(relaxed) & status::DST_NAT != 0;
        let is_pools = policy.pools.owner(original.zone, original.dst).is_some();
        let mut turn = None;
        if is_turned || is_pools || policy.rules.translates_destinations() {
            turn = match self.turn(&policy, &first.facts, (ingress.slot, first.flow), &verdict) {
                Ok(turn) => turn,
                Err(_) => return false,
            };
        }
        if !self.keeps_its_course(turn.as_ref(), entry, (&original, &reply)) {
            return false;
        }
        if let Some(turn) = &turn {
            first.route_zone = turn.route_zone;
            first.facts.status |= statuses::DNAT;
            first.facts.dst = reply.src;
            if !original.is_icmp() {
                first.facts.dport = reply.sport;
            }
        }
        if entry.cold().egress.load(relaxed) == crate::policy::NO_SLOT {
            return self.reevaluate_local(entry, &first.facts);
        }
        let decision = self.judge(&mut first);
        let Judged::Forward { egress, .. } = decision else { return false };
        let Some(egress) = policy.interface(egress) else { return false };
        // Where the forward rules accept all, the decision did without them.
        (first.facts.egress, first.facts.egress_zone) = (Some(egress.index), Some(egress.zone));
        if egress.zone != reply.zone || policy.pools.owner(egress.zone, first.facts.dst).is_some() {
            return false;
        }
        let outside = Self::outside_of(turn.as_ref(), egress);
        let wanted = self.source_translation(&policy, &first.facts, egress, outside, &original);
        let Ok(translation) = wanted else { return false };
        let port = if original.is_icmp() { reply.sport } else { reply.dport };
        if !agrees(&translation, &policy, original.src, (reply.dst, port), original.is_icmp()) {
            return false;
        }
        entry.side(1).interface.store(egress.slot, relaxed);
        entry.cold().egress.store(egress.slot, relaxed);
        self.decide_both(entry, decision, None);
        true
    }

    fn reevaluate_local(&mut self, entry: Entry<'_>, facts: &Facts) -> bool {
        let (verdict, _) = self.run_hook(Hook::Input, facts);
        let zone = facts.zone.unwrap_or(0);
        if refusal(&verdict).is_some() || !self.policy.routes.is_local(zone, facts.dst) {
            return false;
        }
        self.decide_both(entry, Judged::Local, None);
        true
    }

    /// Ends a connection: out of the index, ports back, counted, told.
    pub(crate) fn end(&mut self, entry: Entry<'_>, disarm: bool) {
        let relaxed = Ordering::Relaxed;
        let shared = self.shared();
        let keys = [entry.key(0), entry.key(1)];
        for direction in 0..2 {
            let hot = entry.side(direction);
            let bits = hot.flags.load(relaxed);
            if bits & flags::HOLDS_ADJACENCY != 0 {
                let number = u32::try_from(hot.decision.load(relaxed) >> 32).unwrap_or(0);
                shared.adjacencies.get(number).let_go();
            }
            hot.flags.store((bits | flags::DEAD) & !flags::HOLDS_ADJACENCY, relaxed);
        }
        let cold = entry.cold();
        cold.status.store(cold.status.load(relaxed) | status::DYING, relaxed);
        self.tell(entry, mask::DESTROY);
        if disarm && let Some(wheel) = self.wheel.as_mut() {
            wheel.disarm(&shared.table, entry);
        }
        shared.table.remove(entry, &keys[0], &keys[1]);
        let (original, reply) = (keys[0].tuple(), keys[1].tuple());
        let (kind, mapping) = (cold.nat_kind.load(relaxed), cold.mapping.load(relaxed));
        let mut lease = Lease::rebuild(kind, mapping, &reply);
        let rests = rests(entry, original.proto);
        if cold.status.load(relaxed) & status::DST_NAT != 0 {
            self.end_detour(entry, &mut lease, rests.then_some(self.clock.tick));
        }
        match lease {
            Some(lease) if rests => shared.nat.release(&lease, self.clock.tick),
            Some(lease) => shared.nat.release_at_once(&lease),
            None => {}
        }
        self.unbook(original.zone, reply.zone);
        self.count_in_zones(original.zone, reply.zone, |block| &block.ended);
        self.tally.ended();
        self.own.retire(&shared.table, entry);
        self.give_place_back();
    }

    /// Writes an event if anybody wants such.
    #[inline]
    pub(crate) fn tell(&self, entry: Entry<'_>, kind: u32) {
        if self.shared.events.wanted() & kind != 0 {
            self.write_event(entry, kind);
        }
    }

    #[cold]
    fn write_event(&self, entry: Entry<'_>, kind: u32) {
        let relaxed = Ordering::Relaxed;
        let (cold, sides) = (entry.cold(), [entry.side(0), entry.side(1)]);
        let counts = |d: usize| [sides[d].packets.load(relaxed), sides[d].bytes.load(relaxed)];
        let timeout = entry.timeout().load(relaxed);
        let left = last_seen(entry).saturating_add(timeout).saturating_sub(self.clock.tick);
        let event = Event {
            time_ns: self.clock.wall_ns,
            id: cold.id.load(relaxed),
            mask: kind,
            status: cold.status.load(relaxed),
            mark: cold.mark.load(relaxed),
            timeout: if kind == mask::DESTROY { left } else { timeout },
            state: cold.state.load(relaxed),
            original: entry.key(0).tuple(),
            reply: entry.key(1).tuple(),
            original_count: counts(0),
            reply_count: counts(1),
        };
        self.shared.events.write(self.index, &event);
    }
}

/// The reply tuple of a connection in a zone, with its source translated to an external address and port. `None` if no
/// answers can be told from its packets.
pub(crate) fn translated_reply(original: &Tuple, zone: u16, external: Option<(IpAddr, u16)>) -> Option<Tuple> {
    let plain = Tuple { zone, ..original.reversed()? };
    Some(match external {
        None => plain,
        Some((address, id)) if original.is_icmp() => Tuple { dst: address, sport: id, ..plain },
        Some((address, port)) => Tuple { dst: address, dport: port, ..plain },
    })
}

/// What a verdict of postrouting makes of a source address.
///
/// # Errors
/// Why the packet ends.
pub(crate) fn translation_of<'p>(
    policy: &'p Policy,
    verdict: &Verdict,
    src: IpAddr,
    egress: &Interface,
) -> Result<Translation<'p>, DropReason> {
    match verdict {
        Verdict::Snat { action } => {
            let snat = policy.rules.snat(*action);
            let (ports, random) = (snat.ports, snat.random);
            Ok(match &snat.source {
                SourceChoice::Pool(index) => Translation::Pool { index: *index, ports, random },
                SourceChoice::To(ranges) => {
                    Translation::Addresses { ranges, ports, random, persistent: snat.persistent }
                }
            })
        }
        Verdict::Masquerade { ports, random } => {
            let address = egress.primary_like(src).ok_or(DropReason::PoolExhausted)?;
            Ok(Translation::Address { address, ports: *ports, random: *random })
        }
        Verdict::Netmap { prefix } => {
            let address = policy.rules.netmap(*prefix).over(src).ok_or(DropReason::PoolExhausted)?;
            Ok(Translation::Address { address, ports: None, random: false })
        }
        other => refusal(other).map_or(Ok(Translation::None), |(reason, _)| Err(reason)),
    }
}

/// Whether a connection's translation, its source to an address and port or identifier, is one that the rules would give.
pub(crate) fn agrees(
    wanted: &Translation<'_>,
    policy: &Policy,
    source: IpAddr,
    (address, port): (IpAddr, u16),
    is_icmp: bool,
) -> bool {
    let in_range = |ports: Option<PortRange>| is_icmp || ports.is_none_or(|r| (r.first..=r.last).contains(&port));
    match wanted {
        Translation::None => address == source,
        Translation::Pool { index, ports, .. } => policy.program.pools.get(usize::from(*index)).is_some_and(|pool| {
            pool.addresses.iter().any(|r| r.contains(address)) && in_range(Some(ports.unwrap_or(pool.ports)))
        }),
        Translation::Addresses { ranges, ports, .. } => {
            ranges.iter().any(|r| r.contains(address)) && in_range(*ports)
        }
        Translation::Address { address: wanted, ports, .. } => *wanted == address && in_range(*ports),
    }
}

/// The class of a new connection's entry.
const fn class_of(original: &Tuple) -> Class {
    match (original.src.is_ipv6(), original.proto == proto::TCP) {
        (false, false) => Class::Udp4,
        (false, true) => Class::Tcp4,
        (true, false) => Class::Udp6,
        (true, true) => Class::Tcp6,
    }
}

/// Writes what packets of both directions leave as: the other direction's key turned round. Returns whether that is a
/// change, by direction.
#[inline(always)]
pub(crate) fn write_rewrites(original: &Hot4, reply: &Hot4, key: Key4, reply_key: Key4) -> [bool; 2] {
    let relaxed = Ordering::Relaxed;
    let store = |hot: &Hot4, rewrite: &Rewrite4| {
        hot.addresses.store(rewrite.addresses, relaxed);
        let deltas = u64::from(rewrite.l3_delta) << 32 | u64::from(rewrite.l4_delta) << 48;
        hot.ports_deltas.store(u64::from(rewrite.ports) | deltas, relaxed);
    };
    let protocol = key.proto();
    let (from, to) = ((key.0[0], low(key)), turned(reply_key));
    let back = ((reply_key.0[0], low(reply_key)), turned(key));
    let there = Rewrite4::new(protocol, from, to);
    store(original, &there);
    store(reply, &there.reversed(back.1));
    // Of ICMP the type differs between the directions, and only the identifier is written.
    let written = if protocol == proto::ICMP { 0xffff } else { u32::MAX };
    [(from, to), back].map(|(from, to)| from.0 != to.0 || (from.1 ^ to.1) & written != 0)
}

#[expect(clippy::cast_possible_truncation, reason = "the low half of the word")]
const fn low(key: Key4) -> u32 {
    key.0[1] as u32
}

/// What packets of a direction look like once translated: the other direction's key, turned round.
fn turned(other: Key4) -> (u64, u32) {
    let addresses = other.0[0].rotate_left(32);
    let ports = if other.proto() == proto::ICMP { low(other) } else { low(other).rotate_left(16) };
    (addresses, ports)
}

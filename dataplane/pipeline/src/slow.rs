//! The slow path of packets that have, or might have, a connection; and of those that never do.

use std::sync::atomic::Ordering;

use erhu_planes::connections::{flags, status};
use erhu_planes::events::mask;
use erhu_planes::program::{Hook, RejectKind, states};
use erhu_planes::{Counter, DropReason};
use erhu_route::Found;
use erhu_rules::Facts;
use erhu_table::{Entry, Reference};
use erhu_wire::{Kind, Odd, icmp, icmp6, ipv4, is_unforwardable_v4, is_unforwardable_v6};

use crate::buffer::{Buffer, Buffers};
use crate::judge::{Judged, LOCAL, Outcome, refusal};
use crate::meta::Meta;
use crate::worker::{Fate, Held, Worker};

/// Don't-fragment bit in the first octet of the flags field.
const DONT_FRAGMENT: u8 = 0x40;

impl<P: Buffers> Worker<P> {
    /// Everything that the fast path left: first packets, oddities, errors, what is not tracked.
    pub(crate) fn slow(&mut self, held: Held<'_, P::Buffer>, buffer: &mut P::Buffer, meta: &mut Meta) -> Fate {
        if meta.is_v6() {
            if is_unforwardable_v6(meta.key6.src) || is_unforwardable_v6(meta.key6.dst) {
                return self.on_link(buffer, meta);
            }
        } else {
            let [src, dst] = ipv4::split_addresses(meta.parsed.addresses);
            if is_unforwardable_v4(src) || is_unforwardable_v4(dst) {
                return Fate::Drop(DropReason::Unsupported);
            }
        }
        meta.hash = self.shared.table.hash(&meta.packed());
        match meta.parsed.kind {
            Kind::Ipv4Odd(Odd::Fragment | Odd::OtherProtocol) => Fate::Drop(DropReason::Unsupported),
            Kind::Ipv6Odd(Odd::Fragment | Odd::OtherProtocol | Odd::Listener) => Fate::Drop(DropReason::Unsupported),
            _ if meta.notrack => self.stateless(buffer, meta, states::UNTRACKED),
            Kind::Ipv4Odd(odd) | Kind::Ipv6Odd(odd) => match odd {
                Odd::L4Fault | Odd::IcmpOther => self.invalid(buffer, meta),
                Odd::IcmpError => self.related(buffer, meta),
                Odd::Options => self.tracked(held, buffer, meta),
                _ => Fate::Drop(DropReason::Unsupported),
            },
            Kind::Fast | Kind::Fast6 => self.tracked(held, buffer, meta),
            _ => Fate::Drop(DropReason::Unsupported),
        }
    }

    /// Finds the packet's connection or makes one. A race with another worker, or a connection that has to end first,
    /// makes it look again.
    pub(crate) fn tracked(&mut self, held: Held<'_, P::Buffer>, buffer: &mut P::Buffer, meta: &Meta) -> Fate {
        for _ in 0..8 {
            let fate = match held.shared.table.find_hashed(meta.hash, &meta.packed()) {
                Some(reference) => self.hit(buffer, meta, reference),
                None => self.open(held, buffer, meta),
            };
            if let Some(fate) = fate {
                return fate;
            }
        }
        self.tally.count(Counter::Bug);
        Fate::Drop(DropReason::Clash)
    }

    /// A packet of a known connection. `None`: the connection had to end, look again.
    fn hit(&mut self, buffer: &mut P::Buffer, meta: &Meta, reference: Reference) -> Option<Fate> {
        if let Some(owner) = self.other_owner(reference) {
            return Some(Fate::HandOver(owner));
        }
        if !self.is_current(reference) {
            return None;
        }
        let outcome = self.track(buffer.frame(), meta, reference);
        Some(self.after_tracking(buffer, meta, reference, outcome))
    }

    /// The worker that owns a connection, if it is another one.
    pub(crate) fn other_owner(&self, reference: Reference) -> Option<usize> {
        let bits = self.shared.table.side(reference).flags.load(Ordering::Relaxed);
        let owner = usize::from(bits >> flags::OWNER_SHIFT);
        (owner != self.index).then_some(owner)
    }

    /// Judges a connection again if that was last done under other rules. `false`: it ended.
    #[expect(clippy::cast_possible_truncation, reason = "the low half of the word")]
    pub(crate) fn is_current(&mut self, reference: Reference) -> bool {
        let decision = self.shared.table.side(reference).decision.load(Ordering::Relaxed);
        if decision as u32 == self.policy.generation {
            return true;
        }
        let shared = self.shared();
        let entry = shared.table.entry(reference);
        let stays = self.reevaluate(entry);
        self.tally.count(Counter::Reevaluated);
        if !stays {
            self.tally.count(Counter::EndedByRules);
            self.end(entry, true);
            return false;
        }
        self.retrack(entry, entry.zone(0));
        true
    }

    /// Carries out what tracking found.
    pub(crate) fn after_tracking(
        &mut self,
        buffer: &mut P::Buffer,
        meta: &Meta,
        reference: Reference,
        outcome: Outcome,
    ) -> Fate {
        match outcome {
            Outcome::Accept | Outcome::Ignore => self.pass(buffer, meta, reference),
            Outcome::Invalid => self.invalid(buffer, meta),
            Outcome::NoBuffer => Fate::Drop(DropReason::NoBuffer),
            Outcome::Kill => {
                let fate = self.pass(buffer, meta, reference);
                let shared = self.shared();
                self.end(shared.table.entry(reference), true);
                fate
            }
            Outcome::Reopen => {
                let (shared, policy) = (self.shared(), self.policy());
                self.end(shared.table.entry(reference), true);
                self.tracked(Held { shared: &shared, policy: &policy }, buffer, meta)
            }
        }
    }

    /// Forwards a packet that tracking accepted.
    fn pass(&mut self, buffer: &mut P::Buffer, meta: &Meta, reference: Reference) -> Fate {
        let shared = self.shared();
        let side = shared.table.side(reference);
        let bits = side.flags.load(Ordering::Relaxed);
        let decision = side.decision.load(Ordering::Relaxed);
        let target = (decision >> 32) as u32;
        if bits & flags::NOT_FORWARDED != 0 && target == LOCAL {
            return self.local_established(buffer, meta, reference);
        }
        if meta.parsed.ttl <= 1 {
            return self.ttl_expired(buffer, meta);
        }
        let usual = bits & flags::PER_PACKET == 0 && side.interface.load(Ordering::Relaxed) == meta.slot;
        let adjacency = if !usual {
            let state = self.state_of(reference);
            match self.judge_packet(meta, reference, state) {
                Judged::Forward { adjacency, .. } => adjacency,
                other => return self.refuse_packet(buffer, meta, &other),
            }
        } else if bits & flags::NOT_FORWARDED != 0 {
            let reason = DropReason::from_index(target as usize).unwrap_or(DropReason::Rule);
            return Fate::Drop(reason);
        } else {
            target
        };
        if let Some(fate) = self.too_big(buffer, meta, shared.adjacencies.get(adjacency).egress().mtu) {
            return fate;
        }
        self.rewrite(buffer, meta, reference);
        Fate::Send { adjacency }
    }

    /// What rules call a packet of a known connection: new until an answer was seen, as in the kernel.
    fn state_of(&self, reference: Reference) -> u8 {
        let status = self.shared.table.entry(reference).cold().status.load(Ordering::Relaxed);
        let unanswered = !reference.is_reply() && status & status::SEEN_REPLY == 0;
        if unanswered { states::NEW } else { states::ESTABLISHED }
    }

    /// Judges one packet of an established connection, or related to it, by the interface that it really came by.
    pub(crate) fn judge_packet(&mut self, meta: &Meta, reference: Reference, state: u8) -> Judged {
        let shared = self.shared();
        let entry = shared.table.entry(reference);
        let mut leg = self.leg(entry, reference.direction(), state);
        let own = meta.facts(&self.policy, state);
        let Facts { dst, dport, mark, status, is_reply, .. } = leg.facts;
        leg.facts = Facts { dst, dport, mark, status, is_reply, ..own };
        self.connmark.set(None);
        let judged = self.judge(&mut leg);
        self.mark_connection(entry);
        judged
    }

    /// Gives a connection the mark that the rules gave it on a packet's way through them, if they did.
    pub(crate) fn mark_connection(&mut self, entry: Entry<'_>) {
        let Some(mark) = self.connmark.take() else { return };
        if entry.cold().mark.swap(mark, Ordering::Relaxed) != mark {
            self.tell(entry, mask::UPDATE);
        }
    }

    /// Answers, where an answer is due, and drops.
    pub(crate) fn refuse_packet(&mut self, buffer: &P::Buffer, meta: &Meta, judged: &Judged) -> Fate {
        match judged {
            Judged::Refuse { reason, reject, .. } => {
                if let Some(kind) = reject {
                    self.answer(buffer, &meta.parsed, meta.slot, meta.zone, *kind);
                }
                Fate::Drop(*reason)
            }
            Judged::Local => Fate::Drop(DropReason::Unsupported),
            Judged::Forward { .. } => Fate::Drop(DropReason::Rule),
        }
    }

    /// The packet's time to live ran out.
    pub(crate) fn ttl_expired(&mut self, buffer: &P::Buffer, meta: &Meta) -> Fate {
        let kind = if meta.is_v6() { icmp6::TIME_EXCEEDED } else { icmp::TIME_EXCEEDED };
        self.answer_with(buffer, &meta.parsed, meta.slot, meta.zone, (kind, 0, 0));
        Fate::Drop(DropReason::TtlExpired)
    }

    /// Ends a packet that is larger than the egress MTU.
    pub(crate) fn too_big(&mut self, buffer: &P::Buffer, meta: &Meta, mtu: u16) -> Option<Fate> {
        if meta.parsed.length <= mtu {
            return None;
        }
        let flags = buffer.frame().get(usize::from(meta.parsed.l3) + 6).copied().unwrap_or(0);
        if meta.is_v6() {
            let what = (icmp6::PACKET_TOO_BIG, 0, u32::from(mtu));
            self.answer_with(buffer, &meta.parsed, meta.slot, meta.zone, what);
        } else if flags & DONT_FRAGMENT != 0 {
            let what = (icmp::UNREACHABLE, icmp::unreachable::FRAGMENTATION_NEEDED, u32::from(mtu));
            self.answer_with(buffer, &meta.parsed, meta.slot, meta.zone, what);
        }
        Some(Fate::Drop(DropReason::TooBig))
    }

    /// A packet that tracking calls INVALID: rules may drop it, and what should be translated does not leave.
    pub(crate) fn invalid(&mut self, buffer: &mut P::Buffer, meta: &Meta) -> Fate {
        self.tally.count(Counter::InvalidPackets);
        self.stateless(buffer, meta, states::INVALID)
    }

    /// Forwards a packet that belongs to no connection, as it is, if the rules let it.
    fn stateless(&mut self, buffer: &mut P::Buffer, meta: &Meta, state: u8) -> Fate {
        let policy = self.policy();
        let mut facts = meta.facts(&policy, state);
        let is_invalid = state == states::INVALID;
        let found = policy.routes.lookup(meta.zone, facts.dst, flow(meta));
        let (interface, hop) = match found {
            Found::Via { interface, next_hop } => match policy.interface_at(interface) {
                Some(interface) => (interface, next_hop),
                None => return Fate::Drop(DropReason::NoRoute),
            },
            Found::Local { .. } => return self.input_stateless(buffer, meta, &facts),
            _ if is_invalid && policy.pools.owner(meta.zone, facts.dst).is_some() => {
                return Fate::Drop(DropReason::Invalid);
            }
            other => return self.unroutable(buffer, meta, &other),
        };
        if meta.parsed.ttl <= 1 {
            return self.ttl_expired(buffer, meta);
        }
        if let Some(fate) = self.too_big(buffer, meta, interface.mtu) {
            return fate;
        }
        facts.egress = Some(interface.index);
        facts.egress_zone = Some(interface.zone);
        let (verdict, _) = self.run_hook(Hook::Forward, &facts);
        if let Some((reason, reject)) = refusal(&verdict) {
            let judged = Judged::Refuse { reason, reject, packet_kind: false };
            return self.refuse_packet(buffer, meta, &judged);
        }
        if is_invalid {
            let to_pool = policy.pools.owner(meta.zone, facts.dst).is_some()
                || policy.pools.owner(interface.zone, facts.dst).is_some();
            // Judged as a new packet: what its connection would be given must not leave without it.
            if to_pool || self.new_would_translate(&facts, meta.mark) {
                return Fate::Drop(DropReason::Invalid);
            }
        }
        self.forward(buffer, meta);
        match self.adjacency(interface, hop) {
            Some(adjacency) => Fate::Send { adjacency },
            None => Fate::Drop(DropReason::NoNeighbour),
        }
    }

    /// Whether a first packet with these facts would be translated, the marks included that rules would give it on its
    /// way. Nothing is counted.
    fn new_would_translate(&mut self, facts: &Facts, mark: u32) -> bool {
        let mut as_new = Facts { state: states::NEW, mark, bytes: 0, egress: None, egress_zone: None, ..*facts };
        let (_, effects) = self.run_hook(Hook::Prerouting, &as_new);
        (as_new.mark, as_new.egress, as_new.egress_zone) = (effects.mark, facts.egress, facts.egress_zone);
        let (_, effects) = self.run_hook(Hook::Forward, &as_new);
        as_new.mark = effects.mark;
        self.would_translate(&as_new)
    }

    /// A packet that no route takes on.
    pub(crate) fn unroutable(&mut self, buffer: &P::Buffer, meta: &Meta, found: &Found) -> Fate {
        match found {
            Found::Blackhole => Fate::Drop(DropReason::Blackhole),
            Found::Broadcast { .. } => Fate::Drop(DropReason::Unsupported),
            _ => {
                self.answer(buffer, &meta.parsed, meta.slot, meta.zone, RejectKind::Net);
                Fate::Drop(DropReason::NoRoute)
            }
        }
    }
}

/// What equal routes are chosen by: the same for every packet of a flow.
#[expect(clippy::cast_possible_truncation, reason = "any 32 bits of a hash will do")]
pub(crate) const fn flow(meta: &Meta) -> u32 {
    (meta.hash >> 16) as u32
}

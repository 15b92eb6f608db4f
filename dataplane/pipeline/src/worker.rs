//! One worker: its state, and the itinerary of a burst.

use std::cell::Cell;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use erhu_nat::{Ahead, Rng};
use erhu_planes::program::Hook;
use erhu_planes::protocol::Counted;
use erhu_planes::stats::InterfaceBlock;
use erhu_planes::tuple::Key4;
use erhu_planes::{Counter, DropReason};
use erhu_rules::{Effects, Facts, Verdict};
use erhu_table::{Apart, Entry, Reference, Table, Wheel, WorkerTable};

use crate::admission::Pending;
use crate::buffer::{Buffer, Buffers};
use crate::destination::Detours;
use crate::ending::Ending;
use crate::fast::{Usual, forward};
use crate::fast6::forward6;
use crate::jobs::Progress;
use crate::judge::Outcome;
use crate::link::Crossings;
use crate::meta::{Meta, Way, find_candidates, find_others};
use crate::neighbour::{Hops, Ready};
use crate::policy::{Interface, NO_SLOT, Policy};
use crate::shared::{BATCH, Batch, Handed, Job, Shared};
use crate::tally::{Run, Tally};
use crate::waiting::Waiting;

/// Packets that are processed together at most.
pub const BURST: usize = 64;
/// Entries that timers may look at in one loop: ending one costs about as much as a first packet does. For each
/// connection that was made since the last loop there is [`TIMERS_PER_OPENING`] more, or a storm of openings would leave
/// the endings behind.
const TIMER_BUDGET: u64 = 16;
/// See above; a connection is looked at once or twice for each time that it ends.
const TIMERS_PER_OPENING: u64 = 2;

/// What time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Boot time in ticks of 1/[`erhu_planes::TICKS_PER_SECOND`] s.
    pub tick: u32,
    /// Boot time in nanoseconds.
    pub mono_ns: u64,
    /// Real time in nanoseconds.
    pub wall_ns: u64,
}

impl Now {
    /// From boot time and real time, both in nanoseconds.
    #[expect(clippy::cast_possible_truncation, reason = "ticks wrap after 8.5 years of uptime")]
    pub const fn new(mono_ns: u64, wall_ns: u64) -> Self {
        let per_tick = 1_000_000_000 / erhu_planes::TICKS_PER_SECOND as u64;
        Self { tick: (mono_ns / per_tick) as u32, mono_ns, wall_ns }
    }
}

/// Counts a frame that came in by an interface.
#[inline(always)]
fn count_received(blocks: &[InterfaceBlock], slot: u16, bytes: u64) {
    if let Some(block) = blocks.get(usize::from(slot)) {
        erhu_planes::stats::add(&block.rx_packets, 1);
        erhu_planes::stats::add(&block.rx_bytes, bytes);
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It leaves by an adjacency, rewritten already. The key is what it came with, to quote it in an ICMP error.
    Send { adjacency: u32 },
    /// It is the first of a connection, leaves by an adjacency, and is not translated yet.
    Forward { reference: Reference, adjacency: u32 },
    /// It became a packet of the router's own, which leaves by an adjacency.
    Originate { adjacency: u32 },
    /// It ends.
    Drop(DropReason),
    /// The router consumed it.
    Consume,
    /// Another worker owns its connection.
    HandOver(usize),
}

/// What a worker holds for the length of a burst.
#[derive(Debug)]
pub(crate) struct Held<'h, B> {
    pub shared: &'h Shared<B>,
    pub policy: &'h Policy,
}

impl<B> Clone for Held<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Held<'_, B> {}

/// A worker's own handle of something shared: counting who holds it during a call writes no line of other workers.
/// Counting is two locked instructions all the same, which the way of first packets avoids where it can. The alignment
/// is that of the counts, too: else those of two workers may be neighbours in the heap.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Own<T>(Arc<T>);

impl<T> Deref for Own<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// A poll loop's own state.
pub struct Worker<P: Buffers> {
    pub(crate) shared: Arc<Shared<P::Buffer>>,
    own_shared: Arc<Own<Shared<P::Buffer>>>,
    pub(crate) index: usize,
    pub(crate) policy: Arc<Policy>,
    own_policy: Arc<Own<Policy>>,
    pub(crate) buffers: P,
    pub(crate) own: WorkerTable,
    pub(crate) wheel: Option<Wheel>,
    pub(crate) rng: Rng,
    pub(crate) tally: Tally,
    pub(crate) waiting: Waiting<P::Buffer>,
    pub(crate) hops: Hops,
    pub(crate) pending: Pending,
    pub(crate) detours: Detours,
    pub(crate) crossings: Crossings<P::Buffer>,
    /// What the rules made of the connection's mark on a packet's way through them.
    pub(crate) connmark: Cell<Option<u32>>,
    pub(crate) clock: Now,
    outboxes: Box<[Apart<Vec<P::Buffer>>]>,
    pub(crate) metas: Vec<Meta>,
    pub(crate) openings: Vec<(Key4, Ahead)>,
    /// Hashes of their likely reply tuples.
    pub(crate) replies: Vec<u64>,
    /// Connections of the last burst's packets that were judged again.
    pub(crate) judged_again: u64,
    /// Connections whose time has come.
    pub(crate) due: Vec<Ending>,
    pub(crate) scratch: Vec<P::Buffer>,
    handing: Box<[Apart<Batch<P::Buffer>>]>,
    pub(crate) job: Option<(Arc<Job>, Progress)>,
    /// Connections that it had made when timers last ran.
    timed_until: u64,
    published_tick: u32,
    /// Frames of the burst that left by one interface and are not counted yet.
    pub(crate) sent: Run,
}

impl<P: Buffers> Worker<P> {
    /// A worker that has not seen a packet, running `policy`.
    pub fn new(shared: Arc<Shared<P::Buffer>>, index: usize, policy: Arc<Policy>, buffers: P, seed: u64) -> Self {
        let (workers, ports) = (shared.workers(), shared.ports);
        let own = WorkerTable::new(index);
        let mut own = if shared.ids_in_order { own.with_ids_in_order() } else { own };
        own.quiesce(&shared.table);
        shared.set_adopted(index, policy.generation);
        Self {
            index,
            own_policy: Arc::new(Own(policy.clone())),
            own_shared: Arc::new(Own(shared.clone())),
            policy,
            buffers,
            own,
            wheel: Some(Wheel::new()),
            rng: Rng::new(seed ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            tally: Tally::new(ports),
            waiting: Waiting::default(),
            hops: Hops::default(),
            pending: Pending::default(),
            detours: Detours::default(),
            crossings: Crossings::default(),
            connmark: Cell::new(None),
            clock: Now::new(0, 0),
            outboxes: (0..ports).map(|_| Apart::new(Vec::with_capacity(2 * BURST))).collect(),
            metas: Vec::with_capacity(BURST),
            openings: Vec::with_capacity(BURST),
            replies: Vec::with_capacity(BURST),
            judged_again: 0,
            due: Vec::with_capacity(4 * BURST),
            scratch: Vec::with_capacity(BURST),
            handing: (0..workers).map(|_| Apart::new(Vec::with_capacity(BATCH))).collect(),
            job: None,
            timed_until: 0,
            published_tick: 0,
            sent: Run::NONE,
            shared,
        }
    }

    /// The policy, to hold during a call.
    pub(crate) fn policy(&self) -> Arc<Own<Policy>> {
        self.own_policy.clone()
    }

    /// What is shared, to hold during a call.
    pub(crate) fn shared(&self) -> Arc<Own<Shared<P::Buffer>>> {
        self.own_shared.clone()
    }

    /// The number for a next hop on an interface; `None` when there is no room for another unresolved one.
    #[inline]
    pub(crate) fn adjacency(&mut self, interface: &Interface, hop: IpAddr) -> Option<u32> {
        self.hops.find_or_add(&self.shared.adjacencies, interface, hop)
    }

    /// This worker's number.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The counters.
    pub fn tally_mut(&mut self) -> &mut Tally {
        &mut self.tally
    }

    /// Frames to send by a port; the caller takes them.
    pub fn outbox(&mut self, port: usize) -> Option<&mut Vec<P::Buffer>> {
        self.outboxes.get_mut(port).map(|outbox| &mut **outbox)
    }

    /// Takes a burst of one port's packets through the stages. At most [`BURST`] at a time; the buffers are consumed.
    pub fn receive(&mut self, port: u16, burst: &mut Vec<P::Buffer>, now: Now) {
        self.clock = now;
        let mut metas = std::mem::take(&mut self.metas);
        if metas.len() < burst.len() {
            metas.resize(burst.len(), Meta::NOTHING);
        }
        let places = metas.get_mut(..burst.len()).unwrap_or_default();
        self.look(port, burst, places);
        if self.policy.arrivals(port).have_raw() {
            self.decide_after_raw(burst, places);
        } else {
            self.decide(burst, places);
        }
        self.metas = metas;
        self.take_crossings();
        self.settle_accounts();
    }

    /// The first look at a burst: what the frames are, which interface they came in by, where their connections may be.
    fn look(&mut self, port: u16, burst: &[P::Buffer], metas: &mut [Meta]) {
        let (shared, policy) = (self.shared(), self.policy());
        let (table, arrivals) = (&shared.table, policy.arrivals(port));
        let blocks = shared.stats.interfaces(self.index);
        let mut bytes = 0;
        for (buffer, meta) in burst.iter().zip(metas.iter_mut()) {
            let frame = buffer.frame();
            meta.read(frame, buffer.trust(), arrivals, table);
            count_received(blocks, meta.slot, frame.len() as u64);
            bytes += frame.len() as u64;
        }
        self.tally.received(port, burst.len() as u64, bytes);
    }

    /// Raw rules, and then [`Self::decide`].
    pub(crate) fn decide_after_raw(&mut self, burst: &mut Vec<P::Buffer>, metas: &mut [Meta]) {
        metas.iter_mut().filter(|meta| self.raw_is_about(meta)).for_each(|meta| self.raw(meta));
        self.decide(burst, metas);
        metas.iter_mut().for_each(Meta::forget_raw);
    }

    /// Look up and decide, in order of arrival; `metas` are read and past the raw rules.
    fn decide(&mut self, burst: &mut Vec<P::Buffer>, metas: &mut [Meta]) {
        let (shared, policy) = (self.shared(), self.policy());
        let held = Held::<P::Buffer> { shared: &shared, policy: &policy };
        let usual = Usual::new(policy.generation, self.index, self.clock.tick);
        self.openings.clear();
        // One first packet alone would wait for the same lines in the same order.
        let left = find_candidates(&shared.table, metas);
        if left != 0 && find_others(&shared.table, metas, left) > 1 {
            self.look_ahead(metas);
        }
        if self.judged_again != 0 {
            self.look_again(held, metas);
        }
        let mut openings = 0;
        for (buffer, meta) in burst.drain(..).zip(metas.iter_mut()) {
            match meta.candidate {
                Some(reference) => self.look_up::<false>(held, usual, buffer, meta, reference),
                None if meta.way == Way::LookUp => {
                    let ahead = self.openings.get(openings).map(|(_, ahead)| *ahead);
                    openings += 1;
                    self.first_packet(held, buffer, meta, ahead.as_ref());
                }
                None if meta.way == Way::LookUp6 => self.look_up6(held, usual, buffer, meta),
                None => self.other_way(held, buffer, meta),
            }
        }
        self.count_sent_run();
    }

    /// The established packet's way: where its connection is this worker's, current, and has nothing odd about it.
    /// `AGAIN`: it was just judged again, which is no longer the fast path.
    #[inline(always)]
    pub(crate) fn look_up<const AGAIN: bool>(
        &mut self,
        held: Held<'_, P::Buffer>,
        usual: Usual,
        mut buffer: P::Buffer,
        meta: &mut Meta,
        reference: Reference,
    ) {
        let shared = held.shared;
        let hot = shared.table.hot4(reference);
        let Some(egress) = usual.egress(hot, meta, &shared.adjacencies) else {
            return if AGAIN { self.slow_path(held, buffer, meta) } else { self.unusual(held, buffer, meta) };
        };
        if !usual.counted(hot, meta.parsed.length) {
            match self.track_established::<false>(buffer.frame(), meta, reference) {
                Outcome::Accept | Outcome::Ignore => {}
                outcome => return self.carry_out(buffer, meta, reference, outcome),
            }
        }
        let Some(bytes) = forward(&mut buffer, &meta.parsed, hot, &egress) else {
            return self.carry_out(buffer, meta, reference, Outcome::NoBuffer);
        };
        self.pass_on(buffer, &egress, bytes);
        if AGAIN {
            self.tally.count(Counter::SlowPath);
            self.sent.slow += 1;
        }
    }

    /// A frame that is ready goes to its port's outbox, counted with those before it that leave by the same interface.
    #[inline(always)]
    pub(crate) fn pass_on(&mut self, buffer: P::Buffer, egress: &Ready, bytes: u16) {
        if egress.slot() != self.sent.slot {
            self.count_sent_run();
            self.sent = Run::of(egress.port(), egress.slot());
        }
        self.sent.packets += 1;
        self.sent.bytes += u64::from(bytes);
        if let Some(outbox) = self.outboxes.get_mut(usize::from(egress.port())) {
            outbox.push(buffer);
        }
    }

    /// Carries out what tracking found on the fast path.
    #[cold]
    #[inline(never)]
    fn carry_out(&mut self, mut buffer: P::Buffer, meta: &mut Meta, reference: Reference, outcome: Outcome) {
        self.tally.count(Counter::SlowPath);
        let fate = self.after_tracking(&mut buffer, meta, reference, outcome);
        self.finish(buffer, meta, fate);
    }

    /// Packets that have no connection yet, or never will.
    #[inline(never)]
    fn other_way(&mut self, held: Held<'_, P::Buffer>, buffer: P::Buffer, meta: &mut Meta) {
        match meta.way {
            Way::LookUp | Way::LookUp6 | Way::Slow => self.slow_path(held, buffer, meta),
            Way::Arp => self.arp(buffer, meta),
            Way::Discovery => self.discovery(buffer, meta),
            Way::Drop(reason) => self.finish(buffer, meta, Fate::Drop(reason)),
        }
    }

    /// As [`Self::look_up`], for IPv6, first packets included.
    #[cold] // As seen from IPv4.
    #[inline(never)]
    fn look_up6(&mut self, held: Held<'_, P::Buffer>, usual: Usual, mut buffer: P::Buffer, meta: &mut Meta) {
        let Some(reference) = meta.candidate6 else { return self.slow_path(held, buffer, meta) };
        let shared = held.shared;
        let lines = shared.table.hot6(reference);
        let Some(egress) = usual.egress6(lines.0, meta, &shared.adjacencies) else {
            return self.slow_path(held, buffer, meta);
        };
        if !usual.counted6(lines, meta.parsed.length) {
            match self.track_established::<true>(buffer.frame(), meta, reference) {
                Outcome::Accept | Outcome::Ignore => {}
                outcome => return self.carry_out(buffer, meta, reference, outcome),
            }
        }
        let Some(bytes) = forward6(&mut buffer, &meta.parsed, lines, &egress) else {
            return self.carry_out(buffer, meta, reference, Outcome::NoBuffer);
        };
        self.pass_on(buffer, &egress, bytes);
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn slow_path(&mut self, held: Held<'_, P::Buffer>, mut buffer: P::Buffer, meta: &mut Meta) {
        self.tally.count(Counter::SlowPath);
        let fate = self.slow(held, &mut buffer, meta);
        self.finish(buffer, meta, fate);
    }

    /// Whether raw rules may do something to a packet.
    #[inline(always)]
    pub(crate) fn raw_is_about(&self, meta: &Meta) -> bool {
        let Some(interface) = self.policy.interface(meta.slot).filter(|i| i.has_raw) else { return false };
        match meta.way {
            Way::LookUp => self.policy.rules.raw_rules_about(&meta.packet(interface, 0)),
            Way::LookUp6 | Way::Slow => true,
            Way::Arp | Way::Discovery | Way::Drop(_) => false,
        }
    }

    /// Raw rules.
    #[cold]
    pub(crate) fn raw(&self, meta: &mut Meta) {
        let facts = meta.facts(&self.policy, 0);
        let (verdict, effects) = self.run_hook(Hook::Raw, &facts);
        meta.mark = effects.mark;
        meta.notrack = effects.notrack;
        meta.candidate = None;
        if meta.notrack {
            meta.way = Way::Slow;
        }
        if !matches!(verdict, Verdict::Accept) {
            meta.way = Way::Drop(DropReason::RawRule);
        }
    }

    /// Runs a hook's rules and counts what they count. Facts of 0 bytes are of no packet, and nothing is counted.
    pub(crate) fn run_hook(&self, hook: Hook, facts: &Facts) -> (Verdict, Effects) {
        let mut effects = Effects { mark: facts.mark, ..Effects::default() };
        let verdict = self.policy.rules.run(hook, facts, &mut effects, &mut |counter| {
            if facts.bytes != 0 {
                self.count_named(&self.shared, &self.policy, counter, facts.bytes);
            }
        });
        if effects.connmark.is_some() && facts.bytes != 0 {
            self.connmark.set(effects.connmark);
        }
        (verdict, effects)
    }

    /// Counts a packet that a rule counts.
    pub(crate) fn count_named(&self, shared: &Shared<P::Buffer>, policy: &Policy, counter: u16, bytes: u32) {
        let slot = policy.counter_slots.get(usize::from(counter)).copied().unwrap_or(u16::MAX);
        if let Some(named) = shared.stats.named(self.index, usize::from(slot)) {
            erhu_planes::stats::add(&named.packets, 1);
            erhu_planes::stats::add(&named.bytes, u64::from(bytes));
        }
    }

    /// Carries out what was decided.
    pub(crate) fn finish(&mut self, buffer: P::Buffer, meta: &Meta, fate: Fate) {
        match fate {
            Fate::Send { adjacency } => self.leave(buffer, meta, adjacency),
            Fate::Forward { reference, adjacency } => self.depart(buffer, meta, reference, adjacency),
            Fate::Originate { adjacency } => {
                self.tally.count(Counter::Consumed);
                self.tally.count(Counter::Originated);
                self.send_or_wait(buffer, meta.parsed, adjacency, None);
            }
            Fate::Drop(reason) => self.count_drop(meta.slot, meta.zone, reason),
            Fate::Consume => self.tally.count(Counter::Consumed),
            Fate::HandOver(to) => self.hand_over(buffer, meta, to),
        }
    }

    /// Counts a packet that does not leave: per worker, per zone, per interface.
    pub(crate) fn count_drop(&mut self, slot: u16, zone: u16, reason: DropReason) {
        self.tally.drop(reason);
        if slot == NO_SLOT {
            return;
        }
        let zone = self.policy.zone_slot(zone);
        if let Some(block) = self.shared.stats.zone(self.index, usize::from(zone)) {
            erhu_planes::stats::add(&block.drops[reason.index()], 1);
        }
        if let Some(block) = self.shared.stats.interface_drops(self.index, usize::from(slot)) {
            erhu_planes::stats::add(&block.drops[reason.index()], 1);
        }
    }

    /// A frame that is ready goes to its port's outbox.
    #[inline]
    pub(crate) fn push(&mut self, port: u16, buffer: P::Buffer) {
        self.tally.sent(port, buffer.frame().len());
        if let Some(outbox) = self.outboxes.get_mut(usize::from(port)) {
            outbox.push(buffer);
        }
    }

    pub(crate) fn hand_over(&mut self, buffer: P::Buffer, meta: &Meta, to: usize) {
        let Some(batch) = self.handing.get_mut(to) else {
            self.tally.count(Counter::Bug);
            return self.count_drop(meta.slot, meta.zone, DropReason::HandoverFull);
        };
        let crossed = self.crossings.crossed;
        let port = || self.policy.interface(meta.slot).map_or(NO_SLOT, |interface| interface.port);
        let from = if crossed == 0 { port() } else { meta.slot };
        batch.push(Handed { buffer, from, crossed, mark: meta.mark });
        if batch.len() >= BATCH {
            self.send_batch(to);
        }
    }

    fn send_batch(&mut self, to: usize) {
        let empties = self.shared.empties(self.index);
        let empty = empties.pop().unwrap_or_else(|| Vec::with_capacity(BATCH));
        let batch = std::mem::replace(&mut *self.handing[to], empty);
        self.tally.count_many(Counter::HandedOver, batch.len() as u64);
        if let Err(mut batch) = self.shared.ring(self.index, to).push(batch) {
            for handed in batch.drain(..) {
                let mut meta = Meta::NOTHING;
                self.read_handed(&handed, &mut meta);
                self.count_drop(meta.slot, meta.zone, DropReason::HandoverFull);
            }
            // There is room: it has just been taken out, or there was none.
            let _ = self.shared.empties(self.index).push(batch);
        }
    }

    /// Fills the place of a packet that came from another worker.
    fn read_handed(&self, handed: &Handed<P::Buffer>, meta: &mut Meta) {
        let (frame, trust, table) = (handed.buffer.frame(), handed.buffer.trust(), &self.shared.table);
        if handed.crossed == 0 {
            meta.read(frame, trust, self.policy.arrivals(handed.from), table);
        } else {
            meta.read_crossed(frame, trust, self.policy.interface(handed.from), table);
        }
        // The raw rules' outcome comes along.
        meta.mark = handed.mark;
    }

    /// Sends on what was collected for other workers. Call after the last burst of a loop.
    /// `true` if there was anything.
    pub fn flush_handovers(&mut self) -> bool {
        let mut any = false;
        for to in 0..self.handing.len() {
            if !self.handing[to].is_empty() {
                self.send_batch(to);
                any = true;
            }
        }
        any
    }

    /// Takes packets that other workers handed over. Returns how many there were.
    pub fn take_handed(&mut self, now: Now) -> usize {
        self.clock = now;
        let mut taken = 0;
        for from in 0..self.shared.workers() {
            for _ in 0..BURST / BATCH {
                let Some(mut batch) = self.shared.ring(from, self.index).pop() else { break };
                taken += batch.len();
                self.take_batch(&mut batch);
                // Full only where its worker has more of them than were ever under way to one other.
                let _ = self.shared.empties(from).push(batch);
            }
        }
        taken
    }

    /// Takes a batch of another worker through the stages, from the look-up on: it is counted where it came in.
    fn take_batch(&mut self, batch: &mut Batch<P::Buffer>) {
        // The frames are in the other one's cache: asked for together, they are waited for once.
        for handed in batch.iter() {
            if let Some(first) = handed.buffer.frame().first() {
                erhu_table::prefetch_line(first);
            }
        }
        let mut metas = std::mem::take(&mut self.metas);
        if metas.len() < batch.len() {
            metas.resize(batch.len(), Meta::NOTHING);
        }
        let mut burst = std::mem::take(&mut self.scratch);
        for handed in batch.drain(..) {
            if handed.crossed != self.crossings.crossed {
                self.decide_first(&mut burst, &mut metas);
                self.crossings.crossed = handed.crossed;
            }
            if let Some(place) = metas.get_mut(burst.len()) {
                self.read_handed(&handed, place);
            }
            burst.push(handed.buffer);
        }
        self.decide_first(&mut burst, &mut metas);
        self.crossings.crossed = 0;
        (self.metas, self.scratch) = (metas, burst);
        self.take_crossings();
        self.settle_accounts();
    }

    /// [`Self::decide`] of a burst whose places are the first ones.
    fn decide_first(&mut self, burst: &mut Vec<P::Buffer>, metas: &mut [Meta]) {
        let places = metas.get_mut(..burst.len()).unwrap_or_default();
        self.decide(burst, places);
        metas.iter_mut().for_each(Meta::forget_raw);
    }

    /// Everything between bursts: a new policy, timers, packets that wait for a neighbour, jobs. Bounded work; `true`
    /// when nothing that is due now is left.
    pub fn between_bursts(&mut self, now: Now) -> bool {
        self.clock = now;
        if let Some(policy) = self.shared.newer_than(self.policy.generation) {
            let generation = policy.generation;
            self.own_policy = Arc::new(Own(policy.clone()));
            self.policy = policy;
            self.shared.set_adopted(self.index, generation);
        }
        let timers_done = self.run_timers(now.tick);
        let waiting_done = self.serve_waiting();
        self.take_crossings();
        let jobs_done = self.run_jobs();
        self.settle_accounts();
        self.own.quiesce(&self.shared.table);
        if now.tick != self.published_tick {
            self.published_tick = now.tick;
            let slab = self.shared.table.region().slab();
            slab.now_tick.store(now.tick, Ordering::Relaxed);
            slab.now_ns.store(now.wall_ns, Ordering::Relaxed);
            // One a tick: what a storm filled goes back in seconds, what comes and goes stays.
            self.own.release_idle(&self.shared.table);
        }
        timers_done && waiting_done && jobs_done
    }

    /// Whether nothing of this worker waits for time to pass: no timer, no packet without a next hop.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.wheel.as_ref().is_none_or(Wheel::is_empty)
    }

    /// Stores the counters where readers see them.
    pub fn publish(&self) {
        if let Some(block) = self.shared.stats.worker(self.index) {
            self.tally.publish(block, self.policy.generation);
        }
    }

    fn run_timers(&mut self, now_tick: u32) -> bool {
        let Some(mut wheel) = self.wheel.take() else { return true };
        let shared = self.shared();
        let mut due = std::mem::take(&mut self.due);
        let opened =
            self.tally.created_in_all() - std::mem::replace(&mut self.timed_until, self.tally.created_in_all());
        let budget = TIMER_BUDGET + TIMERS_PER_OPENING * opened;
        let budget = usize::try_from(budget).unwrap_or(usize::MAX);
        let caught_up = wheel.advance(&shared.table, now_tick, budget, |entry, tick| {
            let deadline = crate::open::deadline(entry);
            if deadline > tick {
                return Some(crate::track::timer(entry, tick));
            }
            Self::note_due(&mut due, entry);
            None
        });
        self.wheel = Some(wheel);
        self.due = due;
        self.end_due();
        caught_up
    }

    /// The connection at a line, if it is this worker's and still the one that was meant.
    pub(crate) fn mine(table: &Table, index: usize, line: u32, id: u64) -> Option<Entry<'_>> {
        let entry = table.entry_at(line)?;
        let mine = usize::from(entry.cold().owner.load(Ordering::Relaxed)) == index;
        (mine && id != 0 && entry.id() == id).then_some(entry)
    }

    pub(crate) fn discount(&self, read: &Counted) -> bool {
        let Some(entry) = Self::mine(&self.shared.table, self.index, read.line, read.id) else { return false };
        let [original, reply] = [entry.side(0), entry.side(1)];
        let counters = [original.packets, original.bytes, reply.packets, reply.bytes];
        for (counter, read) in counters.into_iter().zip(read.counters) {
            let now = counter.load(Ordering::Relaxed);
            counter.store(now.saturating_sub(read), Ordering::Relaxed);
        }
        true
    }
}

//! Connection tracking of single packets: protocol state, timeouts, status, counters.

use std::sync::atomic::Ordering;

use erhu_conntrack::tcp::{self, Bound, Segment};
use erhu_conntrack::{icmp, udp};
use erhu_planes::connections::{Class, TcpLine, flags};
use erhu_planes::events::mask;
use erhu_planes::tuple::{is_icmp, proto};
use erhu_planes::{Counter, TICKS_PER_SECOND};
use erhu_table::{Entry, Reference, Side, Table, Wheel};

use crate::buffer::{Buffer, Buffers};
use crate::fast::count;
use crate::judge::Outcome;
use crate::meta::Meta;
use crate::open::deadline;
use crate::worker::Worker;

impl<P: Buffers> Worker<P> {
    /// Whether a packet may be the first of a connection.
    pub(crate) fn can_open(&self, buffer: &P::Buffer, meta: &Meta) -> bool {
        match meta.parsed.proto {
            proto::TCP => {
                let mode = self.policy.zone(meta.zone).tracking;
                segment(buffer.frame(), meta).is_some_and(|s| tcp::opens(&s, mode).is_some())
            }
            icmp @ (proto::ICMP | proto::ICMPV6) => icmp::opens(icmp, meta.tuple().dport.to_be_bytes()[0]),
            _ => true,
        }
    }

    /// Sets a new connection's protocol state and timeout from its first packet.
    pub(crate) fn start_tracking(&self, buffer: &P::Buffer, meta: &Meta, entry: Entry<'_>) {
        let timeouts = self.policy.timeouts_of(meta.zone);
        let (cold, zone) = (entry.cold(), self.policy.zone(meta.zone));
        cold.timeout_policy.store(zone.timeout, Ordering::Relaxed);
        match (meta.parsed.proto, entry.tcp()) {
            (proto::TCP, Some(line)) => {
                line.policy.store(zone.timeout, Ordering::Relaxed);
                let status = cold.status.load(Ordering::Relaxed);
                let opened = segment(buffer.frame(), meta)
                    .and_then(|segment| tcp::open(line, status, &segment, zone.tracking, timeouts));
                cold.state.store(opened.map_or(0, |o| o.state as u8), Ordering::Relaxed);
            }
            (icmp @ (proto::ICMP | proto::ICMPV6), _) => {
                cold.timeout.store(icmp::first(icmp, timeouts), Ordering::Relaxed)
            }
            _ => cold.timeout.store(udp::first(timeouts), Ordering::Relaxed),
        }
    }

    /// Puts a connection that was judged anew under what its zone says of tracking now. Its timeout may be another one, so
    /// neither direction is steady any more.
    pub(crate) fn retrack(&self, entry: Entry<'_>, zone: u16) {
        let zone = self.policy.zone(zone);
        for direction in 0..2 {
            let flags = entry.flags(direction);
            flags.store(flags.load(Ordering::Relaxed) & !flags::STEADY, Ordering::Relaxed);
        }
        entry.cold().timeout_policy.store(zone.timeout, Ordering::Relaxed);
        if let Some(line) = entry.tcp() {
            line.policy.store(zone.timeout, Ordering::Relaxed);
            tcp::retrack(line, zone.tracking);
        }
    }

    /// Tracks one packet of a known connection and, if it is accepted, counts it.
    pub(crate) fn track(&mut self, frame: &[u8], meta: &Meta, reference: Reference) -> Outcome {
        if meta.parsed.proto == proto::TCP {
            return self.track_tcp(frame, meta, reference);
        }
        self.track_simple(meta, reference)
    }

    /// What nearly all segments of an established connection are: accepted, and no state changes. `false`: it has to be
    /// tracked in full, nothing was changed. Touches the TCP line and the direction's hot line.
    #[inline(always)]
    pub(crate) fn track_plain<const V6: bool>(&mut self, frame: &[u8], meta: &Meta, reference: Reference) -> bool {
        let table = &self.shared.table;
        let Some(line) = tcp_line::<V6>(table, reference) else { return false };
        let timeouts = self.policy.timeouts_numbered(line.policy.load(Ordering::Relaxed));
        let Some(is_shorter) = tcp::step_plain(line, reference.direction(), l4(frame, meta), timeouts) else {
            return false;
        };
        count(&side::<V6>(table, reference), self.clock.tick, meta.parsed.length);
        if is_shorter && line.timeout.load(Ordering::Relaxed) < TIMER_LEAD {
            arm(self.wheel.as_mut(), table, table.entry(reference), self.clock.tick);
        }
        true
    }

    /// What most other segments of a connection's life are: accepted, in order, the state may change. `false`: as
    /// [`Self::track_plain`].
    #[inline(never)]
    pub(crate) fn track_in_order<const V6: bool>(&mut self, frame: &[u8], meta: &Meta, reference: Reference) -> bool {
        let relaxed = Ordering::Relaxed;
        let (table, tick) = (&self.shared.table, self.clock.tick);
        let Some(line) = tcp_line::<V6>(table, reference) else { return false };
        let timeouts = self.policy.timeouts_numbered(line.policy.load(relaxed));
        let step = tcp::step_in_order(line, reference.direction(), l4(frame, meta), timeouts);
        let Some(change) = step else { return false };
        count(&side::<V6>(table, reference), tick, meta.parsed.length);
        let is_told = change.state_changed || change.set_status != 0;
        if !is_told && !change.shortened {
            return true;
        }
        let entry = if V6 { table.entry(reference) } else { table.entry4(reference, Class::Tcp4) };
        if change.shortened {
            // It was seen just now, so the other direction's line need not be asked.
            let deadline = tick.saturating_add(line.timeout.load(relaxed)).saturating_add(1);
            if deadline < latest_timer(entry, tick)
                && let Some(wheel) = self.wheel.as_mut()
            {
                wheel.arm(table, entry, deadline);
            }
        }
        let cold = entry.cold();
        cold.state.store(change.state as u8, relaxed);
        if change.set_status != 0 {
            cold.status.store(cold.status.load(relaxed) | change.set_status, relaxed);
        }
        if is_told {
            self.tell(entry, mask::UPDATE);
        }
        true
    }

    /// UDP and ICMP queries: two directions, no states.
    fn track_simple(&mut self, meta: &Meta, reference: Reference) -> Outcome {
        let relaxed = Ordering::Relaxed;
        let entry = self.shared.table.entry(reference);
        let (cold, direction) = (entry.cold(), reference.direction());
        let before = cold.status.load(relaxed);
        let timeouts = self.policy.timeouts_of(entry.zone(0));
        let refresh = if is_icmp(meta.parsed.proto) {
            icmp::packet(meta.parsed.proto, before, direction, timeouts)
        } else {
            udp::packet(before, direction, self.clock.tick, cold.stream_from.load(relaxed), timeouts)
        };
        let hot = entry.side(direction);
        let tick = if refresh.refresh { self.clock.tick } else { hot.last_seen.load(relaxed) };
        count(&hot, tick, meta.parsed.length);
        if refresh.refresh {
            set_timeout(self.wheel.as_mut(), &self.shared.table, entry, refresh.timeout);
        }
        if refresh.set_status != 0 {
            for side in 0..2 {
                let flags = entry.flags(side);
                flags.store(flags.load(relaxed) & !flags::STEADY, relaxed);
            }
            cold.status.store(before | refresh.set_status, relaxed);
            self.tell(entry, mask::UPDATE);
        }
        if refresh.steady {
            let bits = hot.flags.load(relaxed);
            hot.flags.store(bits | flags::STEADY, relaxed);
        }
        Outcome::Accept
    }

    /// TCP, in full.
    #[inline(never)]
    fn track_tcp(&mut self, frame: &[u8], meta: &Meta, reference: Reference) -> Outcome {
        let relaxed = Ordering::Relaxed;
        let entry = self.shared.table.entry(reference);
        let direction = reference.direction();
        let Some(line) = entry.tcp() else { return Outcome::Invalid };
        let timeouts = self.policy.timeouts_numbered(line.policy.load(relaxed));
        let Some(segment) = segment(frame, meta) else { return Outcome::Invalid };
        let step = tcp::step(line, direction, &segment, timeouts);
        if matches!(step.outcome, tcp::Outcome::Accept | tcp::Outcome::KillAccept) {
            let hot = entry.side(direction);
            let tick = if step.refresh { self.clock.tick } else { hot.last_seen.load(relaxed) };
            count(&hot, tick, meta.parsed.length);
        }
        let moves_timer = step.shortened && line.timeout.load(relaxed) < TIMER_LEAD;
        let quiet = !step.state_changed && !moves_timer && step.set_status == 0 && step.beyond.is_none();
        if quiet && step.outcome == tcp::Outcome::Accept {
            return Outcome::Accept;
        }
        self.after_segment(reference, &step)
    }

    /// What a TCP packet leaves to be done beside counting it.
    #[inline(never)]
    fn after_segment(&mut self, reference: Reference, step: &tcp::Step) -> Outcome {
        let relaxed = Ordering::Relaxed;
        let table = &self.shared.table;
        let entry = table.entry(reference);
        let (cold, tick) = (entry.cold(), self.clock.tick);
        if let Some(bound) = step.beyond {
            self.tally.count(counter(bound));
        }
        if step.shortened && entry.timeout().load(relaxed) < TIMER_LEAD {
            arm(self.wheel.as_mut(), table, entry, tick);
        }
        if let Some(limit) = step.lower_to {
            lower_to(self.wheel.as_mut(), table, entry, tick, limit);
        }
        if step.set_status != 0 {
            cold.status.store(cold.status.load(relaxed) | step.set_status, relaxed);
        }
        if step.state_changed {
            cold.state.store(step.state as u8, relaxed);
        }
        if (step.state_changed || step.set_status != 0) && step.outcome != tcp::Outcome::KillAccept {
            self.tell(entry, mask::UPDATE);
        }
        match step.outcome {
            tcp::Outcome::Accept => Outcome::Accept,
            tcp::Outcome::KillAccept => Outcome::Kill,
            tcp::Outcome::Ignore => Outcome::Ignore,
            tcp::Outcome::Invalid => Outcome::Invalid,
            tcp::Outcome::Reopen => Outcome::Reopen,
        }
    }
}

/// How far ahead the timer of a TCP connection is armed at most, in ticks: five minutes. The timeout of a connection
/// with data under way moves to and fro between the state's and `tcp_unacknowledged`, by default five minutes too, with
/// nearly every packet: as long as the timer comes up no later than the shorter one would, nothing has to be moved. A
/// timer that comes up early is armed again.
const TIMER_LEAD: u32 = 300 * TICKS_PER_SECOND;

/// How long a TCP connection is young, in ticks after [`erhu_planes::connections::Cold::stream_from`], which lies two
/// seconds behind its beginning. Until then its timer comes up no later than then: most connections close before that,
/// and of the four times that a life shortens the timeout, by default never to less than half a minute, none makes the
/// timer too late. Afterwards [`TIMER_LEAD`] holds, or millions of idle connections would come up twice a minute.
const YOUNG: u32 = 28 * TICKS_PER_SECOND;

/// The latest tick for which the timer of a TCP connection is armed.
fn latest_timer(entry: Entry<'_>, now_tick: u32) -> u32 {
    let young_until = entry.cold().stream_from.load(Ordering::Relaxed).saturating_add(YOUNG);
    if now_tick < young_until { young_until } else { now_tick.saturating_add(TIMER_LEAD) }
}

/// Tick at which a connection is to be looked at: when it is due, or before.
pub(crate) fn timer(entry: Entry<'_>, now_tick: u32) -> u32 {
    match entry.tcp() {
        Some(_) => deadline(entry).min(latest_timer(entry, now_tick)),
        None => deadline(entry),
    }
}

fn arm(wheel: Option<&mut Wheel>, table: &Table, entry: Entry<'_>, now_tick: u32) {
    if let Some(wheel) = wheel {
        wheel.arm(table, entry, timer(entry, now_tick));
    }
}

/// Of a connection with much time left, leaves no more than `limit` ticks from now.
fn lower_to(wheel: Option<&mut Wheel>, table: &Table, entry: Entry<'_>, now_tick: u32, limit: u32) {
    let left = deadline(entry).saturating_sub(now_tick);
    if left < tcp::LOWER_FROM || left <= limit {
        return;
    }
    let timeout = entry.timeout().load(Ordering::Relaxed);
    entry.timeout().store(timeout.saturating_sub(left - limit), Ordering::Relaxed);
    arm(wheel, table, entry, now_tick);
}

/// Stores the timeout of a connection other than TCP; one that is shorter than before may need an earlier timer.
#[inline]
fn set_timeout(wheel: Option<&mut Wheel>, table: &Table, entry: Entry<'_>, timeout: u32) {
    let cold = entry.cold();
    let old = cold.timeout.load(Ordering::Relaxed);
    if timeout == old {
        return;
    }
    cold.timeout.store(timeout, Ordering::Relaxed);
    if timeout < old
        && let Some(wheel) = wheel
    {
        wheel.arm(table, entry, deadline(entry));
    }
}

/// The counter of segments beyond a bound.
const fn counter(bound: Bound) -> Counter {
    match bound {
        Bound::SeqAbove => Counter::TcpSeqAbove,
        Bound::Overshoot => Counter::TcpOvershoot,
        Bound::SeqBelow => Counter::TcpSeqBelow,
        Bound::AckAbove => Counter::TcpAckAbove,
        Bound::AckBelow => Counter::TcpAckBelow,
        Bound::Reset => Counter::TcpResetBelow,
    }
}

/// The TCP line of a packet's connection.
#[inline(always)]
fn tcp_line<const V6: bool>(table: &Table, reference: Reference) -> Option<&TcpLine> {
    if V6 { table.entry(reference).tcp() } else { Some(table.tcp4(reference)) }
}

/// The direction of a packet.
#[inline(always)]
fn side<const V6: bool>(table: &Table, reference: Reference) -> Side<'_> {
    if V6 { Side::of6(table.hot6(reference)) } else { Side::of4(table.hot4(reference)) }
}

/// From a packet's transport header to its end.
#[inline(always)]
fn l4<'f>(frame: &'f [u8], meta: &Meta) -> &'f [u8] {
    frame.get(usize::from(meta.parsed.l4)..usize::from(meta.parsed.end)).unwrap_or_default()
}

fn segment<'f>(frame: &'f [u8], meta: &Meta) -> Option<Segment<'f>> {
    Segment::parse(l4(frame, meta))
}

//! Connection tracking of single packets: protocol state, timeouts, status, counters.

use std::sync::atomic::Ordering;

use erhu_conntrack::tcp::{self, Segment};
use erhu_conntrack::{icmp, udp};
use erhu_planes::connections::{flags, status};
use erhu_planes::events::mask;
use erhu_planes::tuple::proto;
use erhu_table::{Entry, Reference, Table, Wheel};

use crate::buffer::{Buffer, Buffers};
use crate::fast::count;
use crate::judge::Outcome;
use crate::open::deadline;
use crate::worker::{Meta, Worker};

impl<P: Buffers> Worker<P> {
    /// Whether a packet may be the first of a connection.
    pub(crate) fn can_open(&self, buffer: &P::Buffer, meta: &Meta) -> bool {
        match meta.parsed.proto {
            proto::TCP => {
                let mode = self.policy.zone(meta.zone).tracking;
                segment(buffer.frame(), meta).is_some_and(|s| tcp::opens(&s, mode).is_some())
            }
            proto::ICMP => icmp::opens(proto::ICMP, meta.tuple().dport.to_be_bytes()[0]),
            _ => true,
        }
    }

    /// Sets a new connection's protocol state and timeout from its first packet.
    pub(crate) fn start_tracking(&self, buffer: &P::Buffer, meta: &Meta, entry: Entry<'_>) {
        let timeouts = self.policy.timeouts_of(meta.zone);
        let (cold, mode) = (entry.cold(), self.policy.zone(meta.zone).tracking);
        cold.timeout_policy.store(self.policy.zone(meta.zone).timeout, Ordering::Relaxed);
        let timeout = match (meta.parsed.proto, entry.tcp()) {
            (proto::TCP, Some(line)) => {
                let opened = segment(buffer.frame(), meta).and_then(|s| tcp::open(line, &s, mode, timeouts));
                cold.state.store(opened.map_or(0, |o| o.state as u8), Ordering::Relaxed);
                opened.map_or(0, |o| o.timeout)
            }
            (proto::ICMP, _) => icmp::first(proto::ICMP, timeouts),
            _ => udp::first(timeouts),
        };
        cold.timeout.store(timeout, Ordering::Relaxed);
    }

    /// Tracks one packet of a known connection and, if it is accepted, counts it.
    #[inline(always)]
    pub(crate) fn track(&mut self, frame: &[u8], meta: &Meta, reference: Reference) -> Outcome {
        if meta.parsed.proto == proto::TCP {
            return self.track_tcp(frame, meta, reference);
        }
        self.track_simple(meta, reference)
    }

    /// UDP and ICMP queries: two directions, no states.
    fn track_simple(&mut self, meta: &Meta, reference: Reference) -> Outcome {
        let relaxed = Ordering::Relaxed;
        let entry = self.shared.table.entry(reference);
        let (cold, direction) = (entry.cold(), reference.direction());
        let before = cold.status.load(relaxed);
        let timeouts = self.policy.timeouts_of(entry.hot4(0).key_zone());
        let refresh = if meta.parsed.proto == proto::ICMP {
            icmp::packet(proto::ICMP, before, direction, timeouts)
        } else {
            udp::packet(before, direction, self.clock.tick, cold.stream_from.load(relaxed), timeouts)
        };
        let hot = entry.hot4(direction);
        let tick = if refresh.refresh { self.clock.tick } else { hot.last_seen.load(relaxed) };
        count(hot, tick, meta.parsed.length);
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

    #[inline(always)]
    fn track_tcp(&mut self, frame: &[u8], meta: &Meta, reference: Reference) -> Outcome {
        let relaxed = Ordering::Relaxed;
        let entry = self.shared.table.entry(reference);
        let (Some(line), Some(segment)) = (entry.tcp(), segment(frame, meta)) else { return Outcome::Invalid };
        let (cold, direction) = (entry.cold(), reference.direction());
        let zone = entry.hot4(0).key_zone();
        let before = cold.status.load(relaxed);
        let mode = self.policy.zone(zone).tracking;
        let step = tcp::step(line, before, direction, &segment, mode, self.policy.timeouts_of(zone));
        let outcome = match step.outcome {
            tcp::Outcome::Accept => Outcome::Accept,
            tcp::Outcome::KillAccept => Outcome::Kill,
            tcp::Outcome::Ignore => Outcome::Ignore,
            tcp::Outcome::Invalid => Outcome::Invalid,
            tcp::Outcome::Reopen => Outcome::Reopen,
        };
        if matches!(outcome, Outcome::Accept | Outcome::Kill) {
            let hot = entry.hot4(direction);
            let tick = if step.refresh { self.clock.tick } else { hot.last_seen.load(relaxed) };
            count(hot, tick, meta.parsed.length);
        }
        if let Some(timeout) = step.timeout {
            set_timeout(self.wheel.as_mut(), &self.shared.table, entry, timeout);
        }
        if let Some(limit) = step.lower_to {
            lower_to(self.wheel.as_mut(), &self.shared.table, entry, self.clock.tick, limit);
        }
        if step.set_status != 0 {
            cold.status.store(before | step.set_status, relaxed);
        }
        if step.state_changed {
            cold.state.store(step.state as u8, relaxed);
        }
        if (step.state_changed || step.set_status != 0) && outcome != Outcome::Kill {
            self.tell(entry, mask::UPDATE);
        }
        outcome
    }
}

/// Stores a timeout; one that is shorter than before may need an earlier timer.
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

/// Of an assured connection with much time left, leaves no more than `limit` ticks from now.
fn lower_to(wheel: Option<&mut Wheel>, table: &Table, entry: Entry<'_>, now_tick: u32, limit: u32) {
    let cold = entry.cold();
    let left = deadline(entry).saturating_sub(now_tick);
    if cold.status.load(Ordering::Relaxed) & status::ASSURED == 0 || left <= tcp::LOWER_ABOVE {
        return;
    }
    let seen = deadline(entry).saturating_sub(cold.timeout.load(Ordering::Relaxed));
    let timeout = now_tick.saturating_add(limit).saturating_sub(seen);
    set_timeout(wheel, table, entry, timeout);
}

fn segment(frame: &[u8], meta: &Meta) -> Option<Segment> {
    Segment::parse(frame.get(usize::from(meta.parsed.l4)..usize::from(meta.parsed.end))?)
}

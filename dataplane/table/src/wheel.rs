//! The timer wheel.
//!
//! # Overview
//!
//! 8192 slots of one tick, each a list of entries through the entries' own cold lines, and a bit per slot that holds
//! any. An entry lies in the slot of its deadline, or, if that is more than a lap away, in the last slot of the lap;
//! refreshing a connection does not move it. When an entry's slot comes round, the callback looks whether it is due,
//! and if it is not, says when.
//!
//! A jump of the clock goes from one occupied slot to the next, so entries come in the order of their ticks, those of
//! one tick in the order in which they were armed for it, and empty time costs nothing.

use std::sync::atomic::Ordering;

use erhu_planes::connections::NO_REFERENCE;

use crate::table::{Entry, Table};

/// How far ahead of the wheel's own time a slot can be; also the mask that makes a slot of a tick.
const LAP: u32 = 8191;
const SLOTS: usize = LAP as usize + 1;
/// Marks a link that leads to a slot and not to an entry: first lines are below 2³¹. [`NO_REFERENCE`] is neither.
const SLOT_LINK: u32 = 1 << 31;

/// First and last entry of a slot.
#[derive(Clone, Copy)]
struct Ends {
    first: u32,
    last: u32,
}

const NOTHING: Ends = Ends { first: NO_REFERENCE, last: NO_REFERENCE };

/// One worker's timers; its own entries only.
pub struct Wheel {
    slots: Box<[Ends; SLOTS]>,
    occupied: Box<[u64; SLOTS / 64]>,
    /// Everything before this tick has fired; the tick itself may be half done.
    now: u32,
    len: usize,
}

impl Default for Wheel {
    fn default() -> Self {
        Self::new()
    }
}

impl Wheel {
    /// An empty wheel at tick 0. Let it reach the present by [`Wheel::advance`] before anything is armed.
    pub fn new() -> Self {
        Self { slots: Box::new([NOTHING; SLOTS]), occupied: Box::new([0; SLOTS / 64]), now: 0, len: 0 }
    }

    /// Entries armed.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is armed.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Arms an entry (again, if it was): it comes up when time reaches the deadline, at once if that is past. Of a
    /// deadline more than 8191 ticks ahead it comes up before, to be armed again.
    pub fn arm(&mut self, table: &Table, entry: Entry<'_>, deadline_tick: u32) {
        self.disarm(table, entry);
        self.append(table, entry, deadline_tick.clamp(self.now, self.now.saturating_add(LAP)));
    }

    /// Takes an entry off the wheel, if it is on it.
    pub fn disarm(&mut self, table: &Table, entry: Entry<'_>) {
        let cold = entry.cold();
        let previous = cold.timer_prev.load(Ordering::Relaxed);
        if previous == NO_REFERENCE {
            return;
        }
        let next = cold.timer_next.load(Ordering::Relaxed);
        cold.timer_prev.store(NO_REFERENCE, Ordering::Relaxed);
        cold.timer_next.store(NO_REFERENCE, Ordering::Relaxed);
        self.len = self.len.saturating_sub(1);
        let (is_first, is_last) = (previous & SLOT_LINK != 0, next & SLOT_LINK != 0);
        if is_first && is_last {
            let slot = slot_of(previous);
            self.slots[slot] = NOTHING;
            self.occupied[slot / 64] &= !(1 << (slot % 64));
            return;
        }
        if is_first {
            self.slots[slot_of(previous)].first = next;
        } else {
            Entry::of_chain(table, previous).cold().timer_next.store(next, Ordering::Relaxed);
        }
        if is_last {
            self.slots[slot_of(next)].last = previous;
        } else {
            Entry::of_chain(table, next).cold().timer_prev.store(previous, Ordering::Relaxed);
        }
    }

    /// Lets time pass. Calls `f` for up to `budget` entries whose slot has come, with the tick of the slot; returns
    /// whether that was all, else the next call goes on there. A time before the last one changes nothing.
    ///
    /// The entry is off the wheel when `f` gets it. `f` judges by the tick it is given, which in a jump of the clock is
    /// earlier than now: if the entry's true deadline is later than that, it returns it, and the entry is armed again
    /// (and comes up in this same call if that time has come too). `None`: the entry is ended, or will be.
    pub fn advance(
        &mut self,
        table: &Table,
        now_tick: u32,
        budget: usize,
        mut f: impl FnMut(Entry<'_>, u32) -> Option<u32>,
    ) -> bool {
        let mut left = budget;
        while self.now <= now_tick {
            let Some(ahead) = self.next_occupied((now_tick - self.now).min(LAP)) else {
                self.now = now_tick;
                return true;
            };
            let tick = self.now + ahead;
            self.now = tick;
            let slot = slot_of(tick);
            while self.slots[slot].first != NO_REFERENCE {
                if left == 0 {
                    return false;
                }
                left -= 1;
                let entry = Entry::of_chain(table, self.slots[slot].first);
                self.disarm(table, entry);
                prefetch_ahead(table, self.slots[slot].first);
                if let Some(deadline) = f(entry, tick) {
                    // Not into the slot at hand: it would come up for ever.
                    let soonest = tick.saturating_add(1);
                    self.append(table, entry, deadline.clamp(soonest, tick.saturating_add(LAP).max(soonest)));
                }
            }
        }
        true
    }

    fn append(&mut self, table: &Table, entry: Entry<'_>, tick: u32) {
        let slot = slot_of(tick);
        let link = SLOT_LINK | (tick & LAP);
        let cold = entry.cold();
        cold.timer_next.store(link, Ordering::Relaxed);
        let ends = &mut self.slots[slot];
        if ends.first == NO_REFERENCE {
            cold.timer_prev.store(link, Ordering::Relaxed);
            ends.first = entry.line();
            self.occupied[slot / 64] |= 1 << (slot % 64);
        } else {
            cold.timer_prev.store(ends.last, Ordering::Relaxed);
            Entry::of_chain(table, ends.last).cold().timer_next.store(entry.line(), Ordering::Relaxed);
        }
        ends.last = entry.line();
        self.len += 1;
    }

    /// Looks at armed entries from a slot on, in slot order and round the wheel, until `f` has enough (`true`) or has
    /// seen them all.
    pub fn look_from(&self, table: &Table, slot: u32, mut f: impl FnMut(Entry<'_>) -> bool) {
        let start = slot_of(slot);
        for word in 0..=self.occupied.len() {
            let at = (start / 64 + word) % self.occupied.len();
            let mut bits = self.occupied[at];
            // The first word is looked at twice: what lies behind the start first, what lies before it last.
            if word == 0 {
                bits &= u64::MAX << (start % 64);
            } else if word == self.occupied.len() {
                bits &= !(u64::MAX << (start % 64));
            }
            while bits != 0 {
                let mut line = self.slots[at * 64 + bits.trailing_zeros() as usize].first;
                bits &= bits - 1;
                while line & SLOT_LINK == 0 {
                    let entry = Entry::of_chain(table, line);
                    if f(entry) {
                        return;
                    }
                    line = entry.cold().timer_next.load(Ordering::Relaxed);
                }
            }
        }
    }

    /// How far ahead the next occupied slot is, the present one included, if within `most` ticks.
    fn next_occupied(&self, most: u32) -> Option<u32> {
        let mut ahead = 0;
        while ahead <= most {
            let slot = slot_of(self.now.wrapping_add(ahead));
            let word = self.occupied[slot / 64] >> (slot % 64);
            if word != 0 {
                let found = ahead + word.trailing_zeros();
                return (found <= most).then_some(found);
            }
            ahead += 64 - (ahead.wrapping_add(self.now) % 64);
        }
        None
    }
}

/// The slot of a tick, or of a link that leads to a slot.
const fn slot_of(tick: u32) -> usize {
    (tick & LAP) as usize
}

/// Asks for the lines that the next entry of a slot will need: hot lines and cold line.
fn prefetch_ahead(table: &Table, line: u32) {
    if line != NO_REFERENCE {
        let lines = table.class_at(line).map_or(0, |class| class.cold_at() + 1);
        for ahead in 0..lines {
            table.prefetch_line(line + ahead);
        }
    }
}

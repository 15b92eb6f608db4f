//! A worker's own part of the table: slots, limbo, ids.
//!
//! # Overview
//!
//! A worker leases segments, each for one class, and gives out their entries: those that were used before first (a
//! chain per segment), then fresh ones. A retired entry waits in *limbo* until every worker has passed a quiescent
//! state. Limbo is three chains: `open` takes what is retired now, `closed` waits for one epoch, `ripe` has waited.
//! All chains run through the entries' own cold lines, so that a connection costs no memory beyond its entry.
//!
//! Traffic may move from one worker to another and leave the first with all segments. Of what is wholly empty, a worker
//! that calls [`WorkerTable::release_idle`] keeps the one of each class that entries are taken from; and none, not even
//! for that, from the moment that another worker gets no segment: then each gives one back between bursts, until that
//! one has it. A segment with one connection in it stays.

use std::ops::Range;
use std::sync::atomic::Ordering;

use erhu_planes::connections::{Class, NO_REFERENCE, SEGMENT_LINES, flags};

use crate::table::{Entry, ORIGINAL, REPLY, Table};

/// Ids taken from the slab's counter at once.
const ID_BLOCK: u64 = 64;
/// Entries made free by one call at most: bounded work between bursts.
const RECLAIM: usize = 64;
/// Calls of `quiesce` for which a worker that got no segment does not ask again, unless one was given back.
const PATIENCE: u32 = 256;

/// A reserved entry that nobody sees yet. Its lines are blank, keys and rewrites aside, which hold what was there.
///
/// After a successful [`Table::insert`] it is done with; one that is not inserted goes back by
/// [`WorkerTable::discard`].
#[must_use = "a slot that is neither inserted nor discarded is lost"]
#[derive(Debug)]
pub struct Slot {
    class: Class,
    line: u32,
}

impl Slot {
    /// Its lines.
    #[inline]
    pub fn entry<'t>(&self, table: &'t Table) -> Entry<'t> {
        Entry::new(table, self.class, self.line)
    }
}

/// A chain of entries through their `timer_next`, first in, first out.
struct Chain {
    head: u32,
    tail: u32,
}

impl Default for Chain {
    fn default() -> Self {
        Self { head: NO_REFERENCE, tail: NO_REFERENCE }
    }
}

impl Chain {
    fn is_empty(&self) -> bool {
        self.head == NO_REFERENCE
    }

    fn push(&mut self, table: &Table, entry: Entry<'_>) {
        entry.cold().timer_next.store(NO_REFERENCE, Ordering::Relaxed);
        self.append(table, Self { head: entry.line(), tail: entry.line() });
    }

    fn append(&mut self, table: &Table, other: Self) {
        if self.is_empty() {
            *self = other;
        } else if !other.is_empty() {
            Entry::of_chain(table, self.tail).cold().timer_next.store(other.head, Ordering::Relaxed);
            self.tail = other.tail;
        }
    }

    fn pop<'t>(&mut self, table: &'t Table) -> Option<Entry<'t>> {
        if self.is_empty() {
            return None;
        }
        let entry = Entry::of_chain(table, self.head);
        self.head = entry.cold().timer_next.load(Ordering::Relaxed);
        Some(entry)
    }
}

/// What the worker knows of a segment that it leases.
#[derive(Clone, Copy)]
struct Segment {
    /// Entries given out and not free again, limbo included.
    used: u32,
    /// Entries that were never given out start at this number.
    fresh: u32,
    /// First of the chain of free entries.
    free: u32,
    /// Neighbours in the list of its class.
    next: u32,
    previous: u32,
    is_listed: bool,
}

const UNLEASED: Segment =
    Segment { used: 0, fresh: 0, free: NO_REFERENCE, next: NO_REFERENCE, previous: NO_REFERENCE, is_listed: false };

/// A class's segments that have free entries, without the one that entries are taken from; wholly empty ones last.
#[derive(Clone, Copy)]
struct Segments {
    current: u32,
    head: u32,
    tail: u32,
}

/// One worker's allocator, limbo and ids. Used by that worker alone.
pub struct WorkerTable {
    worker: u8,
    ids: Range<u64>,
    ids_at_once: u64,
    /// By segment number; grown to the table's number of segments with the first lease.
    segments: Vec<Segment>,
    classes: [Segments; Class::ALL.len()],
    open: Chain,
    closed: Chain,
    closed_epoch: u64,
    ripe: Chain,
    patience: u32,
    /// [`Table::returns`] when it last got no segment.
    returns: u32,
}

impl WorkerTable {
    /// For the worker of that number (below [`erhu_planes::MAX_WORKERS`]). Leases nothing yet.
    pub fn new(worker: usize) -> Self {
        Self {
            worker: u8::try_from(worker).unwrap_or(u8::MAX),
            ids: 0..0,
            ids_at_once: ID_BLOCK,
            segments: Vec::new(),
            classes: [Segments { current: NO_REFERENCE, head: NO_REFERENCE, tail: NO_REFERENCE }; Class::ALL.len()],
            open: Chain::default(),
            closed: Chain::default(),
            closed_epoch: 0,
            ripe: Chain::default(),
            patience: 0,
            returns: 0,
        }
    }

    /// The same, but ids are taken one by one: in the order of creation over all workers, where that is worth a shared
    /// line for each.
    #[must_use]
    pub fn with_ids_in_order(self) -> Self {
        Self { ids_at_once: 1, ..self }
    }

    /// A blank entry. `None` when there is no memory for one more segment; asked again and again it does not ask the
    /// system again and again.
    pub fn alloc(&mut self, table: &Table, class: Class) -> Option<Slot> {
        let line = match self.take(table, class) {
            Some(line) => line,
            None => {
                self.reclaim(table, RECLAIM);
                match self.take(table, class) {
                    Some(line) => line,
                    None => {
                        self.lease(table, class)?;
                        self.take(table, class)?
                    }
                }
            }
        };
        let slot = Slot { class, line };
        slot.entry(table).blank();
        Some(slot)
    }

    /// Gives back a slot that was never inserted; it can be had again at once.
    pub fn discard(&mut self, table: &Table, slot: Slot) {
        self.free(table, slot.entry(table));
    }

    /// Ends an entry that was removed from the index and from the wheel: readers outside see it no more, both
    /// directions are marked dead, and it can be had again once every worker has passed a quiescent state.
    pub fn retire(&mut self, table: &Table, entry: Entry<'_>) {
        // Release: what was counted last is not seen later than the end. The fence that closes limbo keeps later
        // stores behind it.
        entry.cold().id.store(0, Ordering::Release);
        debug_assert_eq!(
            entry.cold().timer_prev.load(Ordering::Relaxed),
            NO_REFERENCE,
            "an entry that ends was disarmed before"
        );
        for direction in [ORIGINAL, REPLY] {
            let word = entry.flags(direction);
            word.store(word.load(Ordering::Relaxed) | flags::DEAD, Ordering::Relaxed);
        }
        self.open.push(table, entry);
    }

    /// The next connection id: never 0, never given twice; consecutive while one worker alone asks.
    pub fn next_id(&mut self, table: &Table) -> u64 {
        if self.ids.is_empty() {
            let last = table.region().slab().last_id.fetch_add(self.ids_at_once, Ordering::Relaxed);
            self.ids = last + 1..last + 1 + self.ids_at_once;
        }
        self.ids.next().unwrap_or_default()
    }

    /// The worker holds no reference and nothing else that it read: call between bursts, first before the first one.
    /// Also makes some retired entries free whose time has come, and gives back a segment if another worker has none.
    pub fn quiesce(&mut self, table: &Table) {
        let all = table.quiescence();
        all.pass(usize::from(self.worker));
        self.patience = self.patience.saturating_sub(1);
        if !self.closed.is_empty() && all.is_past(self.closed_epoch) {
            let closed = std::mem::take(&mut self.closed);
            self.ripe.append(table, closed);
        }
        if self.closed.is_empty() && !self.open.is_empty() {
            self.closed = std::mem::take(&mut self.open);
            self.closed_epoch = all.advance();
        }
        self.reclaim(table, RECLAIM);
        if table.is_short() {
            self.release_empty(table);
        }
    }

    /// Gives one wholly empty segment back to the system, if there is one besides those that entries are taken from.
    /// Returns whether there was. A short lock and no system call: the pages go by [`Table::provision`].
    pub fn release_idle(&mut self, table: &Table) -> bool {
        for class in Class::ALL {
            let tail = self.list(class).tail;
            if self.is_empty(tail) {
                self.unlist(class, tail);
                self.give_back(table, tail);
                return true;
            }
        }
        false
    }

    /// The same, those included.
    #[cold]
    fn release_empty(&mut self, table: &Table) -> bool {
        if self.release_idle(table) {
            return true;
        }
        for class in Class::ALL {
            let current = self.list(class).current;
            if self.is_empty(current) {
                self.list(class).current = NO_REFERENCE;
                self.give_back(table, current);
                return true;
            }
        }
        false
    }

    /// Whether it leases a segment and nothing in it is used.
    fn is_empty(&self, number: u32) -> bool {
        self.segments.get(number as usize).is_some_and(|segment| segment.used == 0)
    }

    /// Gives back a segment that is in no list any more.
    fn give_back(&mut self, table: &Table, number: u32) {
        if let Some(segment) = self.segments.get_mut(number as usize) {
            *segment = UNLEASED;
        }
        table.give_back(number);
    }

    fn list(&mut self, class: Class) -> &mut Segments {
        &mut self.classes[(class as usize - 1) % Class::ALL.len()]
    }

    /// An entry of the current segment, or of the next that has a free one.
    fn take(&mut self, table: &Table, class: Class) -> Option<u32> {
        loop {
            let number = self.list(class).current;
            if let Some(segment) = self.segments.get_mut(number as usize) {
                let line_of = |entry: u32| number * SEGMENT_LINES + entry * class.lines();
                let line = if segment.free != NO_REFERENCE {
                    let line = segment.free;
                    segment.free = Entry::new(table, class, line).cold().timer_next.load(Ordering::Relaxed);
                    Some(line)
                } else if segment.fresh < class.per_segment() {
                    segment.fresh += 1;
                    Some(line_of(segment.fresh - 1))
                } else {
                    None
                };
                if let Some(line) = line {
                    segment.used += 1;
                    let next = if segment.free == NO_REFERENCE { line_of(segment.fresh) } else { segment.free };
                    for line in next..next + class.lines() {
                        table.prefetch_line(line);
                    }
                    publish_used(table, number, segment.used);
                    return Some(line);
                }
            }
            let next = self.list(class).head;
            self.list(class).current = next;
            if next == NO_REFERENCE {
                return None;
            }
            self.unlist(class, next);
        }
    }

    fn free(&mut self, table: &Table, entry: Entry<'_>) {
        let (class, number) = (entry.class(), entry.line() / SEGMENT_LINES);
        let current = self.list(class).current;
        let Some(segment) = self.segments.get_mut(number as usize).filter(|segment| segment.used > 0) else {
            debug_assert!(false, "an entry of a segment that this worker does not lease");
            return;
        };
        entry.cold().timer_next.store(segment.free, Ordering::Relaxed);
        segment.free = entry.line();
        segment.used -= 1;
        publish_used(table, number, segment.used);
        let (is_listed, is_empty) = (segment.is_listed, segment.used == 0);
        if number != current && (!is_listed || is_empty) {
            if is_listed {
                self.unlist(class, number);
            }
            self.enlist(class, number, is_empty);
        }
    }

    fn lease(&mut self, table: &Table, class: Class) -> Option<()> {
        if self.patience > 0 && self.returns == table.returns() {
            return None;
        }
        let returns = table.returns();
        let mut leased = table.lease(class, self.worker);
        // What it has for nothing of another class serves as well.
        if leased.is_none() && self.release_empty(table) {
            leased = table.lease(class, self.worker);
        }
        let Some(number) = leased else {
            (self.patience, self.returns) = (PATIENCE, returns);
            return None;
        };
        if self.segments.is_empty() {
            self.segments = vec![UNLEASED; table.directory().len()];
        }
        self.list(class).current = number;
        Some(())
    }

    /// Frees up to `most` entries whose grace period is over.
    fn reclaim(&mut self, table: &Table, most: usize) {
        for _ in 0..most {
            let Some(entry) = self.ripe.pop(table) else { return };
            self.free(table, entry);
        }
    }

    fn enlist(&mut self, class: Class, number: u32, last: bool) {
        let list = *self.list(class);
        let (previous, next) = if last { (list.tail, NO_REFERENCE) } else { (NO_REFERENCE, list.head) };
        if let Some(segment) = self.segments.get_mut(number as usize) {
            (segment.previous, segment.next, segment.is_listed) = (previous, next, true);
        }
        self.join(class, previous, number);
        self.join(class, number, next);
    }

    fn unlist(&mut self, class: Class, number: u32) {
        let Some(segment) = self.segments.get_mut(number as usize) else { return };
        let (previous, next) = (segment.previous, segment.next);
        (segment.previous, segment.next, segment.is_listed) = (NO_REFERENCE, NO_REFERENCE, false);
        self.join(class, previous, next);
    }

    /// Makes two segments neighbours; in place of a missing one, the other becomes the list's end.
    fn join(&mut self, class: Class, previous: u32, next: u32) {
        match self.segments.get_mut(previous as usize) {
            Some(segment) => segment.next = next,
            None => self.list(class).head = next,
        }
        match self.segments.get_mut(next as usize) {
            Some(segment) => segment.previous = previous,
            None => self.list(class).tail = previous,
        }
    }
}

fn publish_used(table: &Table, segment: u32, used: u32) {
    if let Some(entry) = table.directory().get(segment as usize) {
        entry.used.store(used, Ordering::Relaxed);
    }
}

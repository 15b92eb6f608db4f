//! Event rings in shared memory: one per worker, newest entries overwrite the oldest.
//!
//! # Synchronisation
//!
//! An entry's `sequence` is its version word: the writer stores 0 (Release), the fields, then the sequence number
//! (Release), which starts at 1 and says which slot it is in. A reader copies between two loads of it. A reader that
//! falls behind finds a higher number in the slot than it asked for, and knows exactly which ones it lost.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use crate::region::{Expect, Region, RegionError, RegionKind, Shared, layout_hash};
use crate::tuple::{FAMILY_V6, Key, Key4, Key6, Tuple};

/// Kinds of events, as bits.
pub mod mask {
    /// A connection was confirmed.
    pub const NEW: u32 = 1;
    /// Its state, status or mark changed.
    pub const UPDATE: u32 = 2;
    /// It ended.
    pub const DESTROY: u32 = 4;
}

/// Two directions packed as keys: five words each; an IPv4 key has its two words in places 0 and 4.
type PackedTuple = [AtomicU64; 5];

/// One event: what happened and the whole state after it.
#[repr(C, align(64))]
pub struct EventEntry {
    /// Version word; see the module's text.
    pub sequence: AtomicU64,
    /// Nanoseconds of real time.
    pub time_ns: AtomicU64,
    /// The connection's id.
    pub id: AtomicU64,
    /// [`mask`] bits of everything that this packet changed.
    pub mask: AtomicU32,
    /// Status bits.
    pub status: AtomicU32,
    /// Connection mark.
    pub mark: AtomicU32,
    /// Timeout in ticks.
    pub timeout: AtomicU32,
    /// TCP state number, else 0.
    pub state: AtomicU8,
    _pad: AtomicU8,
    _pad2: AtomicU16,
    _pad3: AtomicU32,
    /// Original tuple.
    pub original: PackedTuple,
    /// Reply tuple.
    pub reply: PackedTuple,
    /// Packets and bytes of the original direction.
    pub original_count: [AtomicU64; 2],
    /// Packets and bytes of the reply direction.
    pub reply_count: [AtomicU64; 2],
    _reserved: [AtomicU64; 12],
}
// SAFETY: atomics only.
unsafe impl Shared for EventEntry {}
const _: () = assert!(size_of::<EventEntry>() == 256);

/// One ring's head. `[W]` its worker.
#[repr(C, align(64))]
pub struct RingHead {
    /// Sequence number of the newest entry; 0 before the first.
    pub newest: AtomicU64,
    _reserved: [AtomicU64; 7],
}
// SAFETY: atomics only.
unsafe impl Shared for RingHead {}

/// Second 64 bytes of the region.
#[repr(C, align(64))]
pub struct EventsHeader {
    /// `[I]` rings.
    pub workers: AtomicU32,
    /// `[I]` entries per ring, a power of two.
    pub entries: AtomicU32,
    /// `[W]` main thread: kinds that somebody wants. Nothing is written for the others.
    pub wanted: AtomicU32,
    _reserved: [AtomicU32; 13],
}
// SAFETY: atomics only.
unsafe impl Shared for EventsHeader {}
const _: () = assert!(size_of::<EventsHeader>() == 64);

const HEADER_AT: usize = 64;
const HEADS_AT: usize = 4096;

/// What an events region must say to be accepted.
pub const EXPECT: Expect = Expect {
    kind: RegionKind::Events,
    layout_version: 1,
    layout_hash: layout_hash(&[
        size_of::<EventEntry>(),
        HEADS_AT,
        offset_of!(EventEntry, mask),
        offset_of!(EventEntry, original),
        offset_of!(EventEntry, reply_count),
    ]),
};

/// An event as plain values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds of real time.
    pub time_ns: u64,
    /// The connection's id.
    pub id: u64,
    /// [`mask`] bits.
    pub mask: u32,
    /// Status bits.
    pub status: u32,
    /// Connection mark.
    pub mark: u32,
    /// Timeout in ticks.
    pub timeout: u32,
    /// TCP state number, else 0.
    pub state: u8,
    /// Original tuple.
    pub original: Tuple,
    /// Reply tuple.
    pub reply: Tuple,
    /// Packets, bytes.
    pub original_count: [u64; 2],
    /// Packets, bytes.
    pub reply_count: [u64; 2],
}

/// What reading one sequence number gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// The event.
    Event(Event),
    /// Not written yet.
    NotYet,
    /// Overwritten: everything before this number is lost.
    LostBefore(u64),
}

/// A mapped events region, for its writer and its readers alike.
#[derive(Debug)]
pub struct EventsRegion {
    region: Region,
    workers: usize,
    entries: usize,
}

impl EventsRegion {
    fn ring_at(entries: usize, worker: usize) -> usize {
        HEADS_AT + 4096 + worker * entries * size_of::<EventEntry>()
    }

    /// Bytes of a region with that many rings of that many entries (a power of two).
    pub fn size(workers: usize, entries: usize) -> usize {
        Self::ring_at(entries, workers)
    }

    /// Prepares a fresh region and publishes its header. Rings are backed when somebody wants events
    /// ([`EventsRegion::want`]).
    ///
    /// # Errors
    /// If the fixed part cannot be backed.
    pub fn create(region: Region, workers: usize, entries: usize, instance_id: u64) -> Result<Self, RegionError> {
        region.allocate(0, HEADS_AT + 4096)?;
        let this = Self { region, workers, entries: entries.next_power_of_two() };
        this.header().workers.store(u32::try_from(workers).unwrap_or(0), Ordering::Relaxed);
        this.header().entries.store(u32::try_from(this.entries).unwrap_or(0), Ordering::Relaxed);
        this.region.publish_header(&EXPECT, instance_id);
        Ok(this)
    }

    /// Takes an attached region and checks its sizes.
    ///
    /// # Errors
    /// [`RegionError::OutOfBounds`] if the rings do not fit the file.
    pub fn attached(region: Region) -> Result<Self, RegionError> {
        let header: &EventsHeader = region.get(HEADER_AT)?;
        let workers = header.workers.load(Ordering::Relaxed) as usize;
        let entries = header.entries.load(Ordering::Relaxed) as usize;
        let fits = workers <= crate::MAX_WORKERS
            && entries.is_power_of_two()
            && entries <= 1 << 24
            && Self::size(workers, entries) <= region.len();
        if !fits {
            return Err(RegionError::OutOfBounds {
                path: "events".into(),
                offset: 0,
                len: entries,
                size: region.len(),
            });
        }
        Ok(Self { region, workers, entries })
    }

    /// The mapping itself.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The header.
    #[inline]
    pub fn header(&self) -> &EventsHeader {
        self.region.get(HEADER_AT).expect("checked when the region was made")
    }

    /// Number of rings.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Backs the rings and says which kinds to write from now on.
    ///
    /// # Errors
    /// If memory runs out; then nothing is wanted.
    pub fn want(&self, kinds: u32) -> Result<(), RegionError> {
        if kinds != 0 {
            self.region.allocate(HEADS_AT, self.region.len() - HEADS_AT)?;
        }
        // Release; pairs with the Acquire in `wanted`.
        self.header().wanted.store(kinds, Ordering::Release);
        Ok(())
    }

    /// Kinds that somebody wants.
    #[inline]
    pub fn wanted(&self) -> u32 {
        self.header().wanted.load(Ordering::Acquire)
    }

    fn head(&self, worker: usize) -> Option<&RingHead> {
        (worker < self.workers).then(|| self.region.get(HEADS_AT + worker * size_of::<RingHead>()).ok()).flatten()
    }

    fn entry(&self, worker: usize, sequence: u64) -> Option<&EventEntry> {
        let slot = usize::try_from(sequence).ok()? & (self.entries - 1);
        let at = Self::ring_at(self.entries, worker) + slot * size_of::<EventEntry>();
        (worker < self.workers).then(|| self.region.get(at).ok()).flatten()
    }

    /// Sequence number of a ring's newest event.
    pub fn newest(&self, worker: usize) -> u64 {
        self.head(worker).map_or(0, |h| h.newest.load(Ordering::Acquire))
    }

    /// Appends an event to the caller's own ring.
    pub fn write(&self, worker: usize, event: &Event) {
        let Some(head) = self.head(worker) else { return };
        let sequence = head.newest.load(Ordering::Relaxed) + 1;
        let Some(entry) = self.entry(worker, sequence) else { return };
        let relaxed = Ordering::Relaxed;
        entry.sequence.store(0, relaxed);
        // Orders the 0 before the fields, for readers that copy meanwhile.
        fence(Ordering::Release);
        entry.time_ns.store(event.time_ns, relaxed);
        entry.id.store(event.id, relaxed);
        entry.mask.store(event.mask, relaxed);
        entry.status.store(event.status, relaxed);
        entry.mark.store(event.mark, relaxed);
        entry.timeout.store(event.timeout, relaxed);
        entry.state.store(event.state, relaxed);
        for (to, tuple) in [(&entry.original, &event.original), (&entry.reply, &event.reply)] {
            for (to, from) in to.iter().zip(pack(tuple)) {
                to.store(from, relaxed);
            }
        }
        for (to, from) in [(&entry.original_count, event.original_count), (&entry.reply_count, event.reply_count)] {
            to[0].store(from[0], relaxed);
            to[1].store(from[1], relaxed);
        }
        entry.sequence.store(sequence, Ordering::Release);
        head.newest.store(sequence, Ordering::Release);
    }

    /// Reads one event of a ring. Never waits.
    pub fn read(&self, worker: usize, sequence: u64) -> Read {
        let newest = self.newest(worker);
        if sequence > newest {
            return Read::NotYet;
        }
        let lost = || Read::LostBefore(self.newest(worker).saturating_sub(self.entries as u64 - 1).max(sequence + 1));
        let Some(entry) = self.entry(worker, sequence) else { return Read::NotYet };
        if entry.sequence.load(Ordering::Acquire) != sequence {
            return lost();
        }
        let relaxed = Ordering::Relaxed;
        let words = |from: &PackedTuple| -> [u64; 5] { std::array::from_fn(|i| from[i].load(relaxed)) };
        let pair = |from: &[AtomicU64; 2]| [from[0].load(relaxed), from[1].load(relaxed)];
        let event = Event {
            time_ns: entry.time_ns.load(relaxed),
            id: entry.id.load(relaxed),
            mask: entry.mask.load(relaxed),
            status: entry.status.load(relaxed),
            mark: entry.mark.load(relaxed),
            timeout: entry.timeout.load(relaxed),
            state: entry.state.load(relaxed),
            original: unpack(words(&entry.original)),
            reply: unpack(words(&entry.reply)),
            original_count: pair(&entry.original_count),
            reply_count: pair(&entry.reply_count),
        };
        fence(Ordering::Acquire);
        if entry.sequence.load(relaxed) == sequence { Read::Event(event) } else { lost() }
    }
}

fn pack(tuple: &Tuple) -> [u64; 5] {
    match Key::from(tuple) {
        Key::V4(Key4([addresses, low])) => [addresses, 0, 0, 0, low],
        Key::V6(Key6 { src, dst, low }) => [src[0], src[1], dst[0], dst[1], low],
    }
}

fn unpack(words: [u64; 5]) -> Tuple {
    let [a, b, c, d, low] = words;
    if low >> 40 & 0xff == u64::from(FAMILY_V6) {
        Key6 { src: [a, b], dst: [c, d], low }.tuple()
    } else {
        Key4([a, low]).tuple()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_holds_events_of_two_workers() {
        const WORKERS: usize = 3;
        const ENTRIES: usize = 8;
        let region = Region::anonymous("events", EventsRegion::size(WORKERS, ENTRIES)).unwrap();
        let events = EventsRegion::create(region, WORKERS, ENTRIES, 5).unwrap();
        let lines = |address: usize, bytes: usize| address / 64..=(address + bytes - 1) / 64;
        let mut owners = std::collections::HashMap::new();
        for worker in 0..WORKERS {
            let head = std::ptr::from_ref(events.head(worker).unwrap()).addr();
            let entries = (0..ENTRIES as u64).map(|n| std::ptr::from_ref(events.entry(worker, n).unwrap()).addr());
            let entries = entries.flat_map(|at| lines(at, size_of::<EventEntry>()));
            for line in lines(head, size_of::<RingHead>()).chain(entries) {
                assert_eq!(*owners.entry(line).or_insert(worker), worker, "line {line:#x}");
            }
        }
        // Who wants what is read by every worker.
        assert!(!owners.contains_key(&(std::ptr::from_ref(events.header()).addr() / 64)));
    }

    fn event(id: u64) -> Event {
        let original = Tuple {
            src: "2001:db8::1".parse().unwrap(),
            dst: "2001:db8::2".parse().unwrap(),
            sport: 1000,
            dport: 53,
            proto: 17,
            zone: 4,
        };
        Event {
            time_ns: 5,
            id,
            mask: mask::NEW,
            status: 8,
            mark: 0,
            timeout: 480,
            state: 0,
            original,
            reply: original.reversed().unwrap(),
            original_count: [1, 2],
            reply_count: [3, 4],
        }
    }

    #[test]
    fn a_reader_gets_every_event_or_knows_exactly_what_it_lost() {
        let region = Region::anonymous("events", EventsRegion::size(2, 8)).unwrap();
        let writer = EventsRegion::create(region, 2, 8, 1).unwrap();
        writer.want(mask::NEW).unwrap();
        let reader = EventsRegion::attached(writer.region().reattach(&EXPECT).unwrap()).unwrap();
        assert_eq!(reader.read(1, 1), Read::NotYet);
        for id in 1..=11 {
            writer.write(1, &event(id));
        }
        assert_eq!(reader.newest(0), 0);
        assert_eq!(reader.read(1, 1), Read::LostBefore(4));
        for sequence in 4..=11 {
            assert_eq!(reader.read(1, sequence), Read::Event(event(sequence)));
        }
        assert_eq!(reader.read(1, 12), Read::NotYet);
    }
}

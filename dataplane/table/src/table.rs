//! The table itself: slab lines, look-up, insertion, removal, admission, segments.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use erhu_planes::connections::{
    Class, Cold, ConnectionsRegion, Hot4, Hot6, LINE, Rewrite6, SEGMENT, SEGMENT_LINES, SegmentEntry, TcpLine,
};
use erhu_planes::region::{RegionError, Shared};
use erhu_planes::sizing::INDEX_LOAD;
use erhu_planes::tuple::{Key, Key4, Key6};
use erhu_planes::{MAX_WORKERS, connections};

use crate::apart::Apart;
use crate::hash::Secrets;
use crate::index::{Conflict, Index};
use crate::prefetch::prefetch;
use crate::quiescence::Quiescence;
use crate::worker::Slot;

/// Number of the original direction.
pub const ORIGINAL: usize = 0;
/// Number of the reply direction.
pub const REPLY: usize = 1;

/// One direction of a connection: its (first) hot line, and which direction that is.
///
/// Made by the table alone. Means the connection that was found until the thread that looked it up is quiescent;
/// later, whatever lies there then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reference(NonZeroU32);

impl Reference {
    pub(crate) const fn new(line: u32, direction: usize) -> Self {
        Self::of(line << 1 | (direction != ORIGINAL) as u32)
    }

    /// Of bits as [`Self::bits`] gives them: any but all ones, which no line has.
    #[inline(always)]
    const fn of(bits: u32) -> Self {
        match NonZeroU32::new(!bits) {
            Some(stored) => Self(stored),
            None => Self(NonZeroU32::MIN),
        }
    }

    /// Hot line × 2 + direction. They are kept inverted, as the index has them, so that no reference takes no more room
    /// than one.
    #[inline(always)]
    const fn bits(self) -> u32 {
        !self.0.get()
    }

    /// Whether it is the reply direction.
    #[inline(always)]
    pub const fn is_reply(self) -> bool {
        self.bits() & 1 != 0
    }

    /// [`ORIGINAL`] or [`REPLY`].
    #[inline(always)]
    pub const fn direction(self) -> usize {
        (self.bits() & 1) as usize
    }

    /// Number of its hot line.
    #[inline(always)]
    pub const fn line(self) -> u32 {
        self.bits() >> 1
    }
}

/// Why a table cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The region is another process's.
    #[error("the connections region is mapped read-only")]
    ReadOnly,
    /// Nothing could be tracked, or more than the layout can name.
    #[error("a table of {0} connections is not possible")]
    Capacity(u32),
    /// None, or more than the layout provides for.
    #[error("{0} workers: between 1 and {MAX_WORKERS} are possible")]
    Workers(usize),
    /// The region does not hold its own lines.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// No memory for the index.
    #[error("no memory for an index of {connections} connections: {source}")]
    Index {
        /// Connections it is for.
        connections: u32,
        /// The system's answer.
        source: io::Error,
    },
}

/// Why a connection was not inserted. Nothing was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The original tuple is some connection's already: that direction of it.
    Original(Reference),
    /// The reply tuple is.
    Reply(Reference),
    /// No place near the tuple's home in the index. Does not happen below the table's capacity except by the worst of
    /// luck.
    IndexFull,
}

impl Taken {
    fn of(conflict: Conflict) -> Self {
        match conflict {
            Conflict::First(bits) => Self::Original(Reference::of(bits)),
            Conflict::Second(bits) => Self::Reply(Reference::of(bits)),
            Conflict::Full => Self::IndexFull,
        }
    }
}

/// Segments that no worker leases.
struct Unleased {
    /// Those without pages.
    bare: BTreeSet<u32>,
    /// Those with pages, zeroed.
    ready: BTreeSet<u32>,
    /// Those with pages that hold what was there. There is room for all segments from the start: workers put them here.
    used: Vec<u32>,
}

/// How many segments were put on huge pages when they were prepared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HugePages {
    /// Segments that are, or were when they last had pages.
    pub segments: u32,
    /// Segments for which the kernel had none.
    pub refused: u32,
}

/// The connection table, shared by all workers.
pub struct Table {
    /// First line of the slab; the region's mapping, which lives as long as the table.
    lines: NonNull<Hot4>,
    /// Number of the slab's last line.
    last_line: u32,
    capacity: u32,
    index: Index,
    secrets: Secrets,
    directory: NonNull<[SegmentEntry]>,
    quiescence: Quiescence,
    region: ConnectionsRegion,
    unleased: Mutex<Unleased>,
    huge: [AtomicU32; 2],
    live: Apart<AtomicU32>,
    /// Whether a worker got no segment since one last got one: then everybody gives back what is wholly empty. Every
    /// worker looks between bursts.
    short: Apart<AtomicU32>,
    /// Segments given back so far.
    returns: Apart<AtomicU32>,
}

// SAFETY: the pointers lead into the region's mapping, which belongs to the table and stays where it is; what lies there
// is atomics only. Everything else is `Send` and `Sync` by itself.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    /// A table over a region, for `capacity` connections and workers numbered from 0. `seed` must be secret and
    /// random where packets are hostile: it keys the hash. With `huge_pages` the index takes 2 MiB pages at once, if
    /// there are enough; else it grows as it is touched.
    ///
    /// Segments that the region's directory calls leased are left alone.
    ///
    /// # Errors
    /// [`TableError`]; nothing was changed.
    pub fn new(
        region: ConnectionsRegion,
        capacity: u32,
        workers: usize,
        seed: u64,
        huge_pages: bool,
    ) -> Result<Self, TableError> {
        if !region.region().is_writable() {
            return Err(TableError::ReadOnly);
        }
        if workers == 0 || workers > MAX_WORKERS {
            return Err(TableError::Workers(workers));
        }
        let last_line = region.layout().segments.checked_mul(SEGMENT_LINES).and_then(|lines| lines.checked_sub(1));
        let (Some(last_line), 1..) = (last_line.filter(|&last| last < u32::MAX / 2), capacity) else {
            return Err(TableError::Capacity(capacity));
        };
        let lines: &[Hot4] = region.region().slice(region.offset_of_line(0), last_line as usize + 1)?;
        let (lines, directory) = (NonNull::from(lines).cast(), NonNull::from(region.directory()));
        let index = Index::for_entries(2 * u64::from(capacity), INDEX_LOAD, huge_pages)
            .map_err(|source| TableError::Index { connections: capacity, source })?;
        let region_segments = region.layout().segments;
        let bare = (0u32..)
            .zip(region.directory())
            .filter(|(_, entry)| entry.class.load(Ordering::Acquire) == 0)
            .map(|(segment, _)| segment)
            .collect();
        Ok(Self {
            lines,
            last_line,
            capacity,
            index,
            secrets: Secrets::new(seed),
            directory,
            quiescence: Quiescence::new(workers),
            region,
            unleased: Mutex::new(Unleased {
                bare,
                ready: BTreeSet::new(),
                used: Vec::with_capacity(region_segments as usize),
            }),
            huge: Default::default(),
            live: Apart::new(AtomicU32::new(0)),
            short: Apart::new(AtomicU32::new(0)),
            returns: Apart::new(AtomicU32::new(0)),
        })
    }

    /// The slab's region, for readers of this process.
    pub fn region(&self) -> &ConnectionsRegion {
        &self.region
    }

    /// The quiescent states of its workers, also for whatever else they read.
    pub fn quiescence(&self) -> &Quiescence {
        &self.quiescence
    }

    /// Bytes of the index.
    pub fn index_bytes(&self) -> usize {
        self.index.bytes()
    }

    /// Bytes of the segments that workers lease at present.
    pub fn slab_bytes_in_use(&self) -> usize {
        self.directory().iter().filter(|entry| entry.class.load(Ordering::Relaxed) != 0).count() * SEGMENT
    }

    /// The keyed hash of an IPv4 tuple.
    #[inline(always)]
    pub fn hash4(&self, key: &Key4) -> u64 {
        self.secrets.hash4(key)
    }

    /// The keyed hash of an IPv6 tuple.
    #[inline(always)]
    pub fn hash6(&self, key: &Key6) -> u64 {
        self.secrets.hash6(key)
    }

    /// The keyed hash of a tuple.
    #[inline]
    pub fn hash(&self, key: &Key) -> u64 {
        match key {
            Key::V4(key) => self.hash4(key),
            Key::V6(key) => self.hash6(key),
        }
    }

    /// Asks for the line of the index that a look-up of that hash reads first.
    #[inline(always)]
    pub fn prefetch_bucket(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// Asks for where an entry of that hash will lie, if the line that a look-up reads first, which is here, is full.
    #[inline]
    pub fn prefetch_room(&self, hash: u64) {
        self.index.prefetch_room(hash);
    }

    /// The first reference of the home bucket whose tag fits: most likely the connection, but its key was not compared,
    /// and `None` does not mean that there is none. For prefetching.
    #[inline(always)]
    pub fn candidate(&self, hash: u64) -> Option<Reference> {
        self.index.inverted_candidate(hash).map(Reference)
    }

    /// As [`Table::candidate`], among entries that found their home bucket full: for the hashes of a burst that had no
    /// candidate, once that pass is over. At capacity, one connection in 17 is found here.
    #[inline(always)]
    pub fn displaced_candidate(&self, hash: u64) -> Option<Reference> {
        self.index.displaced_candidate(hash).map(Reference::of)
    }

    /// Asks for a direction's (first) hot line.
    #[inline(always)]
    pub fn prefetch_hot(&self, reference: Reference) {
        self.prefetch_line(reference.line());
    }

    /// Asks for the TCP line of an IPv4 TCP connection.
    #[inline(always)]
    pub fn prefetch_tcp(&self, reference: Reference) {
        self.prefetch_line(reference.line() + Class::Tcp4.tcp_at() - (reference.bits() & 1));
    }

    /// Asks for the other direction's hot line and the cold line of an IPv4 connection.
    #[inline(always)]
    pub fn prefetch_rest4(&self, reference: Reference) {
        let first = reference.line() - (reference.bits() & 1);
        self.prefetch_line(first + 1 - (reference.bits() & 1));
        self.prefetch_line(first + Class::Udp4.cold_at());
    }

    /// The TCP line of an IPv4 TCP connection, whose key a packet was found to have: what [`Entry::tcp`] of
    /// [`Self::entry`] gives, without a look at the segment.
    #[inline(always)]
    pub fn tcp4(&self, reference: Reference) -> &TcpLine {
        self.line(reference.line() + Class::Tcp4.tcp_at() - (reference.bits() & 1))
    }

    #[inline(always)]
    pub(crate) fn prefetch_line(&self, line: u32) {
        prefetch(self.lines.as_ptr().wrapping_add(line as usize));
    }

    /// Whether a direction's packets have this key.
    #[inline(always)]
    pub fn matches4(&self, reference: Reference, key: &Key4) -> bool {
        let hot = self.hot4(reference);
        // Relaxed: the reference was loaded with Acquire, and keys are fixed before it is stored.
        let different =
            (hot.key[0].load(Ordering::Relaxed) ^ key.0[0]) | (hot.key[1].load(Ordering::Relaxed) ^ key.0[1]);
        different == 0
    }

    /// Whether a direction's packets have this key.
    #[inline]
    pub fn matches6(&self, reference: Reference, key: &Key6) -> bool {
        let hot: &Hot6 = self.line(reference.line());
        let different = (hot.src_low.load(Ordering::Relaxed) ^ key.src[0])
            | (hot.low.load(Ordering::Relaxed) ^ key.low)
            | (hot.src_high.load(Ordering::Relaxed) ^ key.src[1])
            | (hot.dst[0].load(Ordering::Relaxed) ^ key.dst[0])
            | (hot.dst[1].load(Ordering::Relaxed) ^ key.dst[1]);
        different == 0
    }

    fn matches(&self, reference: Reference, key: &Key) -> bool {
        match key {
            Key::V4(key) => self.matches4(reference, key),
            Key::V6(key) => self.matches6(reference, key),
        }
    }

    /// The direction with this key, if there is one. Takes no lock. What it finds may be ending at this instant: then
    /// its flags say [`connections::flags::DEAD`], or will.
    #[inline]
    pub fn find4(&self, hash: u64, key: &Key4) -> Option<Reference> {
        self.index.find(hash, |bits| self.matches4(Reference::of(bits), key)).map(Reference::of)
    }

    /// As [`Table::find4`].
    #[inline]
    pub fn find6(&self, hash: u64, key: &Key6) -> Option<Reference> {
        self.index.find(hash, |bits| self.matches6(Reference::of(bits), key)).map(Reference::of)
    }

    /// As [`Table::find4`], hashing included.
    pub fn find(&self, key: &Key) -> Option<Reference> {
        match key {
            Key::V4(key) => self.find4(self.hash4(key), key),
            Key::V6(key) => self.find6(self.hash6(key), key),
        }
    }

    /// A direction's line, of an IPv4 connection.
    #[inline(always)]
    pub fn hot4(&self, reference: Reference) -> &Hot4 {
        self.line(reference.line())
    }

    /// A direction's lines, of an IPv6 connection.
    #[inline(always)]
    pub fn hot6(&self, reference: Reference) -> (&Hot6, &Rewrite6) {
        (self.line(reference.line()), self.line(reference.line() + 1))
    }

    /// The connection that a reference is a direction of. Its class is that of its segment.
    #[inline]
    pub fn entry(&self, reference: Reference) -> Entry<'_> {
        let class = self.class_at(reference.line()).unwrap_or(Class::Udp4);
        let back = if reference.is_reply() { class.hot_lines() } else { 0 };
        Entry { table: self, class, line: reference.line().saturating_sub(back) }
    }

    /// [`Self::entry`] of an IPv4 connection whose class is known from the packet that was found to have its key: without
    /// a look at the segment.
    #[inline(always)]
    pub fn entry4(&self, reference: Reference, class: Class) -> Entry<'_> {
        Entry { table: self, class, line: reference.line() - (reference.bits() & 1) }
    }

    /// The entry that starts at a line, if that is a place where an entry of a leased segment starts. Whether a
    /// connection lives there, its id says.
    pub fn entry_at(&self, line: u32) -> Option<Entry<'_>> {
        let class = self.class_at(line)?;
        let within = line % SEGMENT_LINES;
        let is_start = within.is_multiple_of(class.lines()) && within / class.lines() < class.per_segment();
        is_start.then_some(Entry { table: self, class, line })
    }

    /// A reference from raw bits (hot line × 2 + direction), if it is a place where that direction of an entry lies.
    pub fn check(&self, raw: u32) -> Option<Reference> {
        let reference = Reference::of(raw);
        let back = if reference.is_reply() { self.class_at(reference.line())?.hot_lines() } else { 0 };
        let entry = self.entry_at(reference.line().checked_sub(back)?)?;
        Some(entry.reference(reference.direction()))
    }

    /// Adds a connection to the index: both tuples or none, and none if one of them is some connection's already. Its
    /// keys are in the slot's hot lines already. From here on look-ups of all workers find it.
    ///
    /// A connection whose two tuples are equal has one index entry, that of its original direction.
    ///
    /// # Errors
    /// [`Taken`] says what is in the way; the original tuple is looked at first.
    pub fn insert(&self, slot: &Slot, original: &Key, reply: &Key) -> Result<(), Taken> {
        self.insert_hashed(slot, (self.hash(original), original), (self.hash(reply), reply))
    }

    /// As [`Table::insert`], with the keys' hashes.
    ///
    /// # Errors
    /// [`Taken`].
    #[inline]
    pub fn insert_hashed(
        &self,
        slot: &Slot,
        (original_hash, original): (u64, &Key),
        (reply_hash, reply): (u64, &Key),
    ) -> Result<(), Taken> {
        let entry = slot.entry(self);
        debug_assert_eq!((entry.key(ORIGINAL), entry.key(REPLY)), (*original, *reply));
        debug_assert_eq!((self.hash(original), self.hash(reply)), (original_hash, reply_hash));
        let first = (original_hash, entry.reference(ORIGINAL).bits());
        let second = (original != reply).then(|| (reply_hash, entry.reference(REPLY).bits()));
        self.index
            .insert(
                first,
                second,
                |bits| self.matches(Reference::of(bits), original),
                |bits| self.matches(Reference::of(bits), reply),
            )
            .map_err(Taken::of)
    }

    /// As [`Table::insert_hashed`] of IPv4, for tuples that differ.
    ///
    /// # Errors
    /// [`Taken`].
    #[inline]
    pub fn insert4(
        &self,
        slot: &Slot,
        (original_hash, original): (u64, &Key4),
        (reply_hash, reply): (u64, &Key4),
    ) -> Result<(), Taken> {
        let entry = slot.entry(self);
        debug_assert_eq!((entry.key(ORIGINAL), entry.key(REPLY)), (Key::V4(*original), Key::V4(*reply)));
        debug_assert_eq!((self.hash4(original), self.hash4(reply)), (original_hash, reply_hash));
        self.index
            .insert(
                (original_hash, entry.reference(ORIGINAL).bits()),
                Some((reply_hash, entry.reference(REPLY).bits())),
                |bits| self.matches4(Reference::of(bits), original),
                |bits| self.matches4(Reference::of(bits), reply),
            )
            .map_err(Taken::of)
    }

    /// Takes a connection's tuples out of the index, both in one step: no look-up that starts later finds it. Returns
    /// whether they were there.
    pub fn remove(&self, entry: Entry<'_>, original: &Key, reply: &Key) -> bool {
        let (first, second) = self.pair(entry, original, reply);
        self.index.remove(first, second)
    }

    /// As [`Table::remove`], with the hashes of both tuples, which differ.
    #[inline]
    pub fn remove4(&self, entry: Entry<'_>, [original, reply]: [u64; 2]) -> bool {
        let second = (reply, entry.reference(REPLY).bits());
        self.index.remove((original, entry.reference(ORIGINAL).bits()), Some(second))
    }

    /// What the index is to hold of a connection: hash and reference of each tuple.
    fn pair(&self, entry: Entry<'_>, original: &Key, reply: &Key) -> ((u64, u32), Option<(u64, u32)>) {
        let side = |key, direction| (self.hash(key), entry.reference(direction).bits());
        (side(original, ORIGINAL), (original != reply).then(|| side(reply, REPLY)))
    }

    /// Connections admitted at present.
    pub fn live(&self) -> u32 {
        self.live.load(Ordering::Relaxed)
    }

    /// Connections that may be admitted at once.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Counts one connection more, unless the table is full.
    pub fn try_admit(&self) -> bool {
        let count = |live: u32| if live < self.capacity { Some(live + 1) } else { None };
        self.live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).is_ok()
    }

    /// Counts so many connections more, or less. More only where that many were far from filling the table.
    pub fn count_admitted(&self, change: i32) {
        self.live.fetch_add(change.cast_unsigned(), Ordering::Relaxed);
    }

    /// Counts one connection less.
    pub fn release_admission(&self) {
        let before = self.live.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "more connections ended than were admitted");
    }

    /// Takes and touches pages for free segments ahead of need, until `spare` are ready, on huge pages if there are such,
    /// and gives back to the system the pages of what workers gave back beyond that: so that no worker waits for the
    /// kernel. For a thread that is no worker; call it some hundred times a second. Returns how many are ready.
    ///
    /// # Errors
    /// If there are no pages. Workers then try by themselves when they must.
    pub fn provision(&self, spare: usize) -> Result<usize, RegionError> {
        loop {
            let (segment, is_wanted, is_used) = {
                let mut unleased = self.unleased();
                let is_wanted = unleased.ready.len() < spare;
                match unleased.used.pop() {
                    Some(segment) => (segment, is_wanted, true),
                    None if is_wanted => match unleased.bare.pop_first() {
                        Some(segment) => (segment, true, false),
                        None => return Ok(unleased.ready.len()),
                    },
                    None => return Ok(unleased.ready.len()),
                }
            };
            if !is_wanted {
                self.region.region().punch(self.segment_at(segment), SEGMENT);
                self.unleased().bare.insert(segment);
                continue;
            }
            if let Err(error) = self.prepare(segment) {
                self.unleased().bare.insert(segment);
                return Err(error);
            }
            if !is_used {
                let collapsed = self.region.region().collapse(self.segment_at(segment), SEGMENT);
                self.huge[usize::from(!collapsed)].fetch_add(1, Ordering::Relaxed);
                for line in (0..SEGMENT_LINES).step_by(4096 / LINE) {
                    self.line::<Hot4>(segment * SEGMENT_LINES + line).bytes.store(0, Ordering::Relaxed);
                }
            }
            self.unleased().ready.insert(segment);
        }
    }

    /// How many segments lie on huge pages, of those that [`Table::provision`] prepared.
    pub fn huge_pages(&self) -> HugePages {
        let [segments, refused] = self.huge.each_ref().map(|count| count.load(Ordering::Relaxed));
        HugePages { segments, refused }
    }

    /// Leases a segment for one class to a worker: zeroed, listed in the directory. `None` without memory; then workers
    /// that have a segment for nothing hear of it.
    pub(crate) fn lease(&self, class: Class, owner: u8) -> Option<u32> {
        let leased = self.take_unleased();
        // Relaxed: the word stands alone, and who sees it late gives late.
        if leased.is_some() == self.is_short() {
            self.short.store(u32::from(leased.is_none()), Ordering::Relaxed);
        }
        let segment = leased?;
        if let Some(entry) = self.directory().get(segment as usize) {
            entry.owner.store(owner, Ordering::Relaxed);
            entry.used.store(0, Ordering::Relaxed);
            // Release; pairs with the Acquire of whoever walks the slab: the pages are there and zero.
            entry.class.store(class as u8, Ordering::Release);
        }
        Some(segment)
    }

    fn take_unleased(&self) -> Option<u32> {
        let (segment, is_ready) = {
            let mut unleased = self.unleased();
            let ready = unleased.ready.pop_first();
            (ready.or_else(|| unleased.used.pop()).or_else(|| unleased.bare.pop_first())?, ready.is_some())
        };
        if !is_ready && self.prepare(segment).is_err() {
            self.unleased().bare.insert(segment);
            return None;
        }
        Some(segment)
    }

    /// Whether a worker waits for a segment.
    #[inline]
    pub(crate) fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed) != 0
    }

    /// Segments given back so far: who got none asks again when it is another number.
    pub(crate) fn returns(&self) -> u32 {
        self.returns.load(Ordering::Relaxed)
    }

    /// Takes a segment back in which nothing is used and nothing waits for a grace period. Its pages go with the next
    /// [`Table::provision`].
    pub(crate) fn give_back(&self, segment: u32) {
        if let Some(entry) = self.directory().get(segment as usize) {
            entry.class.store(0, Ordering::Release);
        }
        // `prepare` finds this mark where the pages did not go. A key lies here in every class: no reader minds.
        self.mark_of(segment).store(u64::MAX, Ordering::Relaxed);
        self.unleased().used.push(segment);
        self.returns.fetch_add(1, Ordering::Relaxed);
    }

    fn segment_at(&self, segment: u32) -> usize {
        self.region.offset_of_line(segment * SEGMENT_LINES)
    }

    /// Takes a segment's pages, and zeroes them where they are not fresh.
    fn prepare(&self, segment: u32) -> Result<(), RegionError> {
        let first = segment * SEGMENT_LINES;
        self.region.region().allocate(self.segment_at(segment), SEGMENT)?;
        if self.mark_of(segment).load(Ordering::Relaxed) != 0 {
            // Pairs with the fence of readers, before they look at an id again: who copied a zero sees that the
            // connection ended.
            fence(Ordering::Release);
            for line in first..first + SEGMENT_LINES {
                for word in self.line::<[AtomicU64; LINE / 8]>(line) {
                    word.store(0, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    fn mark_of(&self, segment: u32) -> &AtomicU64 {
        &self.line::<Hot4>(segment * SEGMENT_LINES).key[0]
    }

    fn unleased(&self) -> std::sync::MutexGuard<'_, Unleased> {
        self.unleased.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    #[inline]
    pub(crate) fn directory(&self) -> &[SegmentEntry] {
        // SAFETY: made from the region's own slice in `new`; the mapping lives as long as the table and its entries
        // are atomics only.
        unsafe { self.directory.as_ref() }
    }

    /// The class of the segment that a line lies in, if it is leased.
    #[inline]
    pub(crate) fn class_at(&self, line: u32) -> Option<Class> {
        // Relaxed: whoever has a line number learned it from someone who saw the lease.
        Class::from_u8(self.directory().get((line / SEGMENT_LINES) as usize)?.class.load(Ordering::Relaxed))
    }

    /// A line of the slab; of the last one if there is none of that number, so that a reference of another table, or a
    /// line behind the last, is harmless.
    #[inline(always)]
    pub(crate) fn line<T: Shared>(&self, line: u32) -> &T {
        const { assert!(size_of::<T>() == LINE && align_of::<T>() <= LINE) };
        let line = line.min(self.last_line) as usize;
        // SAFETY: `lines` leads to `last_line + 1` lines of 64 bytes, aligned to 64, in a writable mapping that lives as
        // long as the table; `line` was just bounded by `last_line`; `T` has a line's size, and `T: Shared` is valid
        // for any bytes and changes only through atomics.
        unsafe { self.lines.add(line).cast::<T>().as_ref() }
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("live", &self.live()).field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

/// A connection's lines. Reading is everybody's, writing its owner's.
#[derive(Clone, Copy)]
pub struct Entry<'t> {
    table: &'t Table,
    class: Class,
    line: u32,
}

impl<'t> Entry<'t> {
    pub(crate) fn new(table: &'t Table, class: Class, line: u32) -> Self {
        Self { table, class, line }
    }

    /// The entry of a line number that this crate stored itself: where a chain of entries goes on.
    #[inline]
    pub(crate) fn of_chain(table: &'t Table, line: u32) -> Self {
        Self { table, class: table.class_at(line).unwrap_or(Class::Udp4), line }
    }

    /// Its class.
    pub fn class(self) -> Class {
        self.class
    }

    /// Number of its first line: its name while it lives.
    pub fn line(self) -> u32 {
        self.line
    }

    /// The reference of one of its directions ([`ORIGINAL`], else reply).
    #[inline]
    pub fn reference(self, direction: usize) -> Reference {
        Reference::new(self.hot_line(direction), direction)
    }

    #[inline]
    fn hot_line(self, direction: usize) -> u32 {
        if direction == ORIGINAL { self.line } else { self.line + self.class.hot_lines() }
    }

    /// What established packets do not need.
    #[inline]
    pub fn cold(self) -> &'t Cold {
        self.table.line(self.line + self.class.cold_at())
    }

    /// The TCP line, if its class has one.
    #[inline]
    pub fn tcp(self) -> Option<&'t TcpLine> {
        self.class.is_tcp().then(|| self.table.line(self.line + self.class.tcp_at()))
    }

    /// A direction's line, of an IPv4 connection.
    #[inline]
    pub fn hot4(self, direction: usize) -> &'t Hot4 {
        self.table.line(self.hot_line(direction))
    }

    /// Idle time after which it ends, in ticks: where its class keeps it.
    #[inline]
    pub fn timeout(self) -> &'t AtomicU32 {
        self.tcp().map_or(&self.cold().timeout, |line| &line.timeout)
    }

    /// The original direction's line, of an IPv4 connection.
    #[inline]
    pub fn original4(self) -> &'t Hot4 {
        self.hot4(ORIGINAL)
    }

    /// The reply direction's line, of an IPv4 connection.
    #[inline]
    pub fn reply4(self) -> &'t Hot4 {
        self.hot4(REPLY)
    }

    /// A direction's lines, of an IPv6 connection.
    #[inline]
    pub fn hot6(self, direction: usize) -> (&'t Hot6, &'t Rewrite6) {
        let line = self.hot_line(direction);
        (self.table.line(line), self.table.line(line + 1))
    }

    /// A direction's key.
    pub fn key(self, direction: usize) -> Key {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        if self.class.is_v6() {
            let (hot, _) = self.hot6(direction);
            let [src, dst] = [[&hot.src_low, &hot.src_high], [&hot.dst[0], &hot.dst[1]]].map(|pair| pair.map(load));
            Key::V6(Key6 { src, dst, low: load(&hot.low) })
        } else {
            let hot = self.hot4(direction);
            Key::V4(Key4([load(&hot.key[0]), load(&hot.key[1])]))
        }
    }

    /// Writes a direction's key, before it is inserted. The key's family is that of the entry's class.
    pub fn store_key(self, direction: usize, key: &Key) {
        match (key, self.class.is_v6()) {
            (Key::V4(key), false) => {
                let hot = self.hot4(direction);
                hot.key[0].store(key.0[0], Ordering::Relaxed);
                hot.key[1].store(key.0[1], Ordering::Relaxed);
            }
            (Key::V6(key), true) => {
                let (hot, _) = self.hot6(direction);
                hot.src_low.store(key.src[0], Ordering::Relaxed);
                hot.src_high.store(key.src[1], Ordering::Relaxed);
                hot.dst[0].store(key.dst[0], Ordering::Relaxed);
                hot.dst[1].store(key.dst[1], Ordering::Relaxed);
                hot.low.store(key.low, Ordering::Relaxed);
            }
            _ => debug_assert!(false, "a key of the other family"),
        }
    }

    /// A direction's [`connections::flags`].
    #[inline]
    pub fn flags(self, direction: usize) -> &'t AtomicU16 {
        if self.class.is_v6() { &self.hot6(direction).0.flags } else { &self.hot4(direction).flags }
    }

    /// A direction's last refreshing packet, in ticks.
    #[inline]
    pub fn last_seen(self, direction: usize) -> &'t AtomicU32 {
        if self.class.is_v6() { &self.hot6(direction).0.last_seen } else { &self.hot4(direction).last_seen }
    }

    /// A direction's generation and adjacency.
    #[inline]
    pub fn decision(self, direction: usize) -> &'t AtomicU64 {
        if self.class.is_v6() { &self.hot6(direction).0.decision } else { &self.hot4(direction).decision }
    }

    /// Its connection's id; 0 while none lives here.
    #[inline]
    pub fn id(self) -> u64 {
        self.cold().id.load(Ordering::Acquire)
    }

    /// Shows it to readers outside: everything else is written, and it is in the index.
    pub fn publish(self, id: u64) {
        // Release; pairs with the Acquire of every reader of the slab.
        self.cold().id.store(id, Ordering::Release);
    }

    /// Makes it as good as new. Nobody sees it: its id is 0 and no grace period runs.
    pub(crate) fn blank(self) {
        // By words: a field at a time, iterated over, took 380 instructions for a TCP line alone.
        for line in self.line..self.line + self.class.lines() {
            for word in self.table.line::<[AtomicU64; LINE / 8]>(line) {
                word.store(0, Ordering::Relaxed);
            }
        }
        let cold = self.cold();
        for word in [&cold.mapping, &cold.timer_next, &cold.timer_prev, &cold.detour] {
            word.store(connections::NO_REFERENCE, Ordering::Relaxed);
        }
        cold.class.store(self.class as u8, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn what_workers_count_together_lies_on_no_line_that_every_packet_reads() {
        let lines = |at: usize, bytes: usize| at / LINE..=(at + bytes - 1) / LINE;
        let read = [
            lines(offset_of!(Table, lines), size_of::<NonNull<Hot4>>()),
            lines(offset_of!(Table, last_line), size_of::<u32>()),
            lines(offset_of!(Table, capacity), size_of::<u32>()),
            lines(offset_of!(Table, index), size_of::<Index>()),
            lines(offset_of!(Table, secrets), size_of::<Secrets>()),
            lines(offset_of!(Table, directory), size_of::<NonNull<[SegmentEntry]>>()),
            lines(offset_of!(Table, quiescence), size_of::<Quiescence>()),
        ];
        assert!(align_of::<Table>() >= LINE);
        for at in [offset_of!(Table, live), offset_of!(Table, short), offset_of!(Table, returns)] {
            for line in lines(at, size_of::<AtomicU32>()) {
                assert!(read.iter().all(|read| !read.contains(&line)), "line {line}");
            }
        }
        assert_eq!((size_of::<Apart<AtomicU32>>(), align_of::<Apart<AtomicU64>>()), (2 * LINE, 2 * LINE));
    }
}

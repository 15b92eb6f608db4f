//! The index: from a tuple's hash to references.
//!
//! # Overview
//!
//! A bucket is one cache line with eight places, each a tag (16 bits of the hash) and a reference. An entry lies in its
//! *home* bucket, or, if that was full, *displaced*: some strides of its own further on, so that crowds do not build up
//! behind full buckets. The home bucket counts its displaced entries and remembers the most strides, so that look-ups
//! almost always end in one line. When three quarters full, one entry in 17 is displaced, nearly all by one stride.
//!
//! # Synchronisation
//!
//! A bucket's lock protects the *set of entries whose home it is*, wherever they lie: adding one, removing one, and
//! the proof that a tuple is not there yet. An operation on two tuples takes both homes' locks, the lower bucket's
//! first. Places are shared between homes, so they are claimed with a compare-and-swap on the tags; the reference
//! follows when nothing can fail any more, and is what readers go by. Entries never move.
//!
//! ```text
//! insert   tag claimed (AcqRel) … reference stored (Release)
//! reader   tag seen … reference loaded (Acquire), empty: not there yet; else the key in the slab decides
//! remove   reference emptied … tag cleared (Release): the next claim (Acquire) stores its reference later
//! ```

use std::io;
use std::num::NonZeroU32;

use crate::prefetch::prefetch;
use crate::sync::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, spin_loop};

/// Strides that an entry may be away from its home. When the index is three quarters full, a third of the buckets is: one
/// entry in 10¹⁵ finds no place; at 85 % nearly half of them are, and one in 10¹⁰ does not.
const REACH: u8 = 32;
/// Places of a bucket.
const PLACES: usize = 8;
/// A place that holds nothing. References are stored inverted, so that fresh pages are empty.
const EMPTY: u32 = 0;
/// Fewest buckets of an index: well above [`REACH`].
const FEWEST: u32 = 67;

/// One cache line of the index.
#[repr(C, align(64))]
pub struct Bucket {
    /// Eight tags of 16 bits, the first in the lowest bits of the first word; 0 is free.
    tags: [AtomicU64; 2],
    /// Inverted reference bits, or [`EMPTY`].
    references: [AtomicU32; PLACES],
    /// Whether somebody changes the set of entries that have their home here.
    lock: AtomicU32,
    /// Entries with their home here that lie elsewhere.
    displaced: AtomicU16,
    /// Strides that the farthest of them may be away.
    depth: AtomicU8,
    _reserved: [AtomicU8; 9],
}

#[cfg(not(feature = "loom"))]
type Buckets = crate::memory::Pages<Bucket>;
#[cfg(feature = "loom")]
type Buckets = Box<[Bucket]>;

// SAFETY: atomics only; the assertion shows that there is no padding beyond the fields.
#[cfg(not(feature = "loom"))]
unsafe impl erhu_planes::region::Shared for Bucket {}
#[cfg(not(feature = "loom"))]
const _: () = assert!(size_of::<Bucket>() == 64);

/// Why a pair was not inserted.
#[derive(Debug, PartialEq, Eq)]
pub enum Conflict {
    /// The first of the pair is there already, with these reference bits.
    First(u32),
    /// The second is.
    Second(u32),
    /// No free place within reach.
    Full,
}

/// The buckets of an index. What is indexed is the user's: references are any 32 bits but all ones.
pub struct Index {
    buckets: Buckets,
    count: u32,
}

/// A claimed place.
struct Place {
    home: u32,
    bucket: u32,
    place: usize,
}

impl Index {
    /// An index for so many entries at a load of so many hundredths; 75 suits look-ups of most packets, 85 those of few.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn for_entries(entries: u64, load: u64, huge_pages: bool) -> io::Result<Self> {
        let wanted = (entries * 100).div_ceil(load.clamp(1, 100) * PLACES as u64);
        let at_least = u32::try_from(wanted).map_err(|_| io::ErrorKind::OutOfMemory)?.max(FEWEST);
        // A prime, so that every stride leads round through all buckets.
        let count = (at_least..).find(|&n| is_prime(n)).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { buckets: buckets(count as usize, huge_pages)?, count })
    }

    /// One of very few buckets, as models can afford.
    #[cfg(all(test, feature = "loom"))]
    pub fn tiny(count: u32) -> Self {
        Self { buckets: (0..count).map(|_| Bucket::empty()).collect(), count }
    }

    /// Bytes of all buckets.
    pub fn bytes(&self) -> usize {
        self.buckets.len() * size_of::<Bucket>()
    }

    /// The home bucket's number: the hash's high half scaled to the number of buckets.
    #[inline(always)]
    fn home(&self, hash: u64) -> u32 {
        scale(hash, self.count)
    }

    #[inline(always)]
    fn home_bucket(&self, hash: u64) -> &Bucket {
        // SAFETY: `scale` gives a number below `count`, which is the number of buckets.
        unsafe { self.buckets.get_unchecked(scale(hash, self.count) as usize) }
    }

    /// The buckets in which an entry of that hash may lie: home, then a stride further each.
    fn places(&self, hash: u64) -> impl Iterator<Item = u32> {
        let (count, stride) = (u64::from(self.count), stride(hash, self.count));
        std::iter::successors(Some(self.home(hash)), move |&bucket| {
            let next = u64::from(bucket) + u64::from(stride);
            u32::try_from(if next < count { next } else { next - count }).ok()
        })
    }

    /// Asks for the home bucket's line.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        prefetch(self.buckets.as_ptr().wrapping_add(self.home(hash) as usize));
    }

    /// The first reference in the home bucket whose tag fits: the wanted one, or (rarely) another.
    #[inline(always)]
    pub fn candidate(&self, hash: u64) -> Option<u32> {
        self.inverted_candidate(hash).map(|stored| !stored.get())
    }

    /// [`Self::candidate`] as it is stored, every bit of it inverted.
    #[inline(always)]
    pub fn inverted_candidate(&self, hash: u64) -> Option<NonZeroU32> {
        let bucket = self.home_bucket(hash);
        let hits = bucket.hits(tag_of(hash));
        if hits != 0 {
            return bucket.inverted(hits);
        }
        if bucket.depth.load(Ordering::Relaxed) != 0 {
            self.prefetch_displaced(hash);
        }
        None
    }

    /// Asks for where an entry of that hash will be displaced to, if its home bucket, whose line is here, is full.
    #[inline]
    pub fn prefetch_room(&self, hash: u64) {
        let tags = self.home_bucket(hash).tags.each_ref().map(|word| word.load(Ordering::Relaxed));
        if tags.into_iter().all(|word| first_free(word).is_none()) {
            self.prefetch_displaced(hash);
        }
    }

    #[cold]
    fn prefetch_displaced(&self, hash: u64) {
        if let Some(bucket) = self.places(hash).nth(1) {
            prefetch(self.buckets.as_ptr().wrapping_add(bucket as usize));
        }
    }

    /// As [`Self::candidate`] among the displaced entries, of which most homes have none.
    #[inline(always)]
    pub fn displaced_candidate(&self, hash: u64) -> Option<u32> {
        let depth = self.home_bucket(hash).depth.load(Ordering::Relaxed);
        if depth == 0 { None } else { self.find_displaced(hash, depth, &|_| true) }
    }

    /// The reference that `is_wanted` accepts, among those whose tag fits. Takes no lock.
    #[inline(always)]
    pub fn find(&self, hash: u64, is_wanted: impl Fn(u32) -> bool) -> Option<u32> {
        let bucket = self.home_bucket(hash);
        if let Some((_, bits)) = bucket.find(tag_of(hash), &is_wanted) {
            return Some(bits);
        }
        let depth = bucket.depth.load(Ordering::Relaxed);
        if depth == 0 { None } else { self.find_displaced(hash, depth, &is_wanted) }
    }

    #[cold]
    fn find_displaced(&self, hash: u64, depth: u8, is_wanted: &impl Fn(u32) -> bool) -> Option<u32> {
        self.places(hash)
            .take(usize::from(depth) + 1)
            .skip(1)
            .find_map(|bucket| Some(self.buckets.get(bucket as usize)?.find(tag_of(hash), is_wanted)?.1))
    }

    /// Adds a pair of entries (or one, if `second` is none), given as hash and reference bits, unless one of them is
    /// there already: `is_first` and `is_second` tell by reference bits.
    pub fn insert(
        &self,
        first: (u64, u32),
        second: Option<(u64, u32)>,
        is_first: impl Fn(u32) -> bool,
        is_second: impl Fn(u32) -> bool,
    ) -> Result<(), Conflict> {
        let _locks = self.lock(first.0, second.map(|(hash, _)| hash));
        if let Some(bits) = self.find(first.0, is_first) {
            return Err(Conflict::First(bits));
        }
        if let Some(bits) = second.and_then(|(hash, _)| self.find(hash, is_second)) {
            return Err(Conflict::Second(bits));
        }
        let place = self.claim(first.0).ok_or(Conflict::Full)?;
        if let Some((hash, bits)) = second {
            match self.claim(hash) {
                Some(place) => self.fill(&place, bits),
                None => {
                    self.release(&place);
                    return Err(Conflict::Full);
                }
            }
        }
        self.fill(&place, first.1);
        Ok(())
    }

    /// Takes a pair of entries (or one) out. Returns whether they all were there.
    pub fn remove(&self, first: (u64, u32), second: Option<(u64, u32)>) -> bool {
        let _locks = self.lock(first.0, second.map(|(hash, _)| hash));
        let first = self.take_out(first);
        second.is_none_or(|second| self.take_out(second)) && first
    }

    /// Adds an entry of which the caller knows that it is not there yet, because a lock of its own keeps others from
    /// adding the same. `false` if there is no free place within reach.
    pub fn add(&self, hash: u64, bits: u32) -> bool {
        let home = self.home(hash);
        // Only entries that lie elsewhere are counted at home, and so only they need its lock.
        let at_home = self.home_bucket(hash).claim(tag_of(hash)).map(|place| Place { home, bucket: home, place });
        let place = at_home.or_else(|| {
            let _lock = self.home_bucket(hash).lock();
            self.claim(hash)
        });
        if let Some(place) = &place {
            self.fill(place, bits);
        }
        place.is_some()
    }

    /// Takes out an entry that [`Self::add`] added; `false` if it is not there.
    pub fn drop_entry(&self, hash: u64, bits: u32) -> bool {
        let bucket = self.home_bucket(hash);
        if let Some((place, _)) = bucket.find(tag_of(hash), &|other| other == bits) {
            bucket.release(place);
            return true;
        }
        let _lock = bucket.lock();
        self.take_out((hash, bits))
    }

    /// Locks one or two homes, in the order of their numbers.
    fn lock(&self, first: u64, second: Option<u64>) -> [Option<Locked<'_>>; 2] {
        // Both lines at once: behind a locked instruction the second would wait for the first.
        self.prefetch(first);
        self.prefetch(second.unwrap_or(first));
        let first_home = self.home(first);
        let Some(second_home) = second.map(|hash| self.home(hash)).filter(|&home| home != first_home) else {
            return [Some(self.home_bucket(first).lock()), None];
        };
        let (low, high) = (first_home.min(second_home), first_home.max(second_home));
        [low, high].map(|home| self.buckets.get(home as usize).map(Bucket::lock))
    }

    /// Takes the nearest free place for an entry; its home is locked. Readers see no entry there until it is filled.
    #[inline(always)]
    fn claim(&self, hash: u64) -> Option<Place> {
        match self.home_bucket(hash).claim(tag_of(hash)) {
            Some(place) => Some(Place { home: self.home(hash), bucket: self.home(hash), place }),
            None => self.claim_elsewhere(hash),
        }
    }

    #[cold]
    fn claim_elsewhere(&self, hash: u64) -> Option<Place> {
        (1..=REACH).zip(self.places(hash).skip(1)).find_map(|(strides, bucket)| {
            let place = self.buckets.get(bucket as usize)?.claim(tag_of(hash))?;
            self.home_bucket(hash).note_displaced(strides);
            Some(Place { home: self.home(hash), bucket, place })
        })
    }

    fn fill(&self, place: &Place, bits: u32) {
        let reference = self.buckets.get(place.bucket as usize).and_then(|b| b.references.get(place.place));
        if let Some(reference) = reference {
            // Release; pairs with the Acquire in `Bucket::load`: the key in the slab is written.
            reference.store(!bits, Ordering::Release);
        }
    }

    /// Empties a place; its entry's home is locked.
    fn release(&self, place: &Place) {
        if let Some(bucket) = self.buckets.get(place.bucket as usize) {
            bucket.release(place.place);
        }
        if let Some(home) = self.buckets.get(place.home as usize).filter(|_| place.home != place.bucket) {
            home.forget_displaced();
        }
    }

    fn take_out(&self, (hash, bits): (u64, u32)) -> bool {
        let depth = self.home_bucket(hash).depth.load(Ordering::Relaxed);
        let found = self.places(hash).take(usize::from(depth) + 1).find_map(|bucket| {
            let (place, _) = self.buckets.get(bucket as usize)?.find(tag_of(hash), &|other| other == bits)?;
            Some(Place { home: self.home(hash), bucket, place })
        });
        if let Some(place) = &found {
            self.release(place);
        }
        found.is_some()
    }
}

impl Bucket {
    #[cfg(feature = "loom")]
    fn empty() -> Self {
        Self {
            tags: std::array::from_fn(|_| AtomicU64::new(0)),
            references: std::array::from_fn(|_| AtomicU32::new(EMPTY)),
            lock: AtomicU32::new(0),
            displaced: AtomicU16::new(0),
            depth: AtomicU8::new(0),
            _reserved: std::array::from_fn(|_| AtomicU8::new(0)),
        }
    }

    /// A bit for every place with that tag: bit 2n for place n.
    #[inline(always)]
    fn hits(&self, tag: u16) -> u32 {
        matching(self.tags[0].load(Ordering::Relaxed), self.tags[1].load(Ordering::Relaxed), tag)
    }

    /// The reference at the lowest of some hits, as it is stored.
    #[inline(always)]
    fn inverted(&self, hits: u32) -> Option<NonZeroU32> {
        const { assert!(EMPTY == 0) };
        // Acquire; pairs with the Release in `Index::fill`: the key in the slab can be read.
        let stored = self.references[hits.trailing_zeros() as usize / 2 % PLACES].load(Ordering::Acquire);
        NonZeroU32::new(stored)
    }

    #[inline(always)]
    fn find(&self, tag: u16, is_wanted: &impl Fn(u32) -> bool) -> Option<(usize, u32)> {
        let mut hits = self.hits(tag);
        while hits != 0 {
            if let Some(bits) = self.inverted(hits).map(|stored| !stored.get()).filter(|&bits| is_wanted(bits)) {
                return Some((hits.trailing_zeros() as usize / 2, bits));
            }
            hits &= hits - 1;
        }
        None
    }

    fn lock(&self) -> Locked<'_> {
        // Acquire; pairs with the Release of the unlocking.
        while self.lock.compare_exchange_weak(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            while self.lock.load(Ordering::Relaxed) != 0 {
                spin_loop();
            }
        }
        Locked(self)
    }

    /// Marks the first free place with a tag.
    #[inline]
    fn claim(&self, tag: u16) -> Option<usize> {
        for (number, word) in self.tags.iter().enumerate() {
            let mut tags = word.load(Ordering::Relaxed);
            while let Some(lane) = first_free(tags) {
                let claimed = tags | u64::from(tag) << (16 * lane);
                // Acquire: the reference was emptied before the tag was cleared, and is ours from here.
                match word.compare_exchange_weak(tags, claimed, Ordering::AcqRel, Ordering::Relaxed) {
                    Ok(_) => return Some(4 * number + lane),
                    Err(now) => tags = now,
                }
            }
        }
        None
    }

    fn release(&self, place: usize) {
        if let (Some(reference), Some(tags)) = (self.references.get(place), self.tags.get(place / 4)) {
            reference.store(EMPTY, Ordering::Relaxed);
            // Release; pairs with the Acquire of the next claim.
            tags.fetch_and(!(0xffff << (16 * (place % 4))), Ordering::Release);
        }
    }

    /// Under this home's lock: one more entry lies elsewhere, that far away.
    fn note_displaced(&self, strides: u8) {
        self.displaced.store(self.displaced.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
        self.depth.store(strides.max(self.depth.load(Ordering::Relaxed)), Ordering::Relaxed);
    }

    /// Under this home's lock: one fewer.
    fn forget_displaced(&self) {
        let left = self.displaced.load(Ordering::Relaxed).saturating_sub(1);
        self.displaced.store(left, Ordering::Relaxed);
        if left == 0 {
            self.depth.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(not(feature = "loom"))]
fn buckets(count: usize, huge_pages: bool) -> io::Result<Buckets> {
    Buckets::zeroed(count, huge_pages)
}

#[cfg(feature = "loom")]
fn buckets(count: usize, _huge_pages: bool) -> io::Result<Buckets> {
    Ok((0..count).map(|_| Bucket::empty()).collect())
}

/// A locked home bucket.
struct Locked<'a>(&'a Bucket);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Release; pairs with the Acquire in `Bucket::lock`.
        self.0.lock.store(0, Ordering::Release);
    }
}

/// Multiply-shift of the high half: below `count` for every hash.
#[inline(always)]
const fn scale(hash: u64, count: u32) -> u32 {
    (((hash >> 32) * count as u64) >> 32) as u32
}

/// What the tag leaves of the low half, scaled to between 1 and `count - 1`.
fn stride(hash: u64, count: u32) -> u32 {
    1 + scale(hash << 32, count - 1)
}

fn is_prime(number: u32) -> bool {
    let up_to = number.isqrt();
    number > 1 && (2..=up_to).all(|factor| number.checked_rem(factor) != Some(0))
}

/// Sixteen bits of the low half, never 0.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low bits are meant")]
const fn tag_of(hash: u64) -> u16 {
    let tag = hash as u16;
    if tag == 0 { 1 } else { tag }
}

/// The first free (zero) lane of four tags.
fn first_free(tags: u64) -> Option<usize> {
    const LOW: u64 = 0x7fff_7fff_7fff_7fff;
    let free = !(((tags & LOW) + LOW) | tags | LOW);
    (free != 0).then(|| free.trailing_zeros() as usize / 16)
}

/// Bit 2n is set where the n-th of eight tags is `tag`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn matching(low: u64, high: u64, tag: u16) -> u32 {
    use std::arch::x86_64::{_mm_cmpeq_epi16, _mm_movemask_epi8, _mm_set_epi64x, _mm_set1_epi16};
    // SAFETY: SSE2 is part of x86_64, and the operations touch nothing but their operands.
    let equal = unsafe {
        let tags = _mm_set_epi64x(high as i64, low as i64);
        _mm_movemask_epi8(_mm_cmpeq_epi16(tags, _mm_set1_epi16(tag as i16)))
    };
    equal as u32 & 0x5555
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn matching(low: u64, high: u64, tag: u16) -> u32 {
    matching_plainly(low, high, tag)
}

/// As [`matching`], one tag after the other; what the vector comparison is tested against.
#[cfg(any(all(test, not(feature = "loom")), not(target_arch = "x86_64")))]
fn matching_plainly(low: u64, high: u64, tag: u16) -> u32 {
    let tags = u128::from(low) | u128::from(high) << 64;
    (0..PLACES).fold(0, |hits, place| {
        let same = (tags >> (16 * place)) & 0xffff == u128::from(tag);
        hits | u32::from(same) << (2 * place)
    })
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const NEVER: fn(u32) -> bool = |_| false;

    /// A hash with that home and tag, and a stride of 1, in an index of 67 buckets.
    fn hash(home: u32, tag: u16) -> u64 {
        let hash = (u64::from(home) << 32).div_ceil(67) << 32 | u64::from(tag);
        assert_eq!((scale(hash, 67), stride(hash, 67)), (home, 1));
        hash
    }

    fn index() -> Index {
        let index = Index::for_entries(64, 70, false).unwrap();
        assert_eq!(index.count, 67);
        index
    }

    fn add(index: &Index, hash: u64, bits: u32) -> Result<(), Conflict> {
        index.insert((hash, bits), None, |other| other == bits, NEVER)
    }

    fn state(index: &Index, bucket: usize) -> (u16, u8) {
        let bucket = &index.buckets[bucket];
        (bucket.displaced.load(Ordering::Relaxed), bucket.depth.load(Ordering::Relaxed))
    }

    proptest! {
        #[test]
        fn the_vector_comparison_finds_what_the_plain_loop_finds(
            tags in proptest::array::uniform8(prop_oneof![Just(0u16), Just(1), Just(0x8000), any::<u16>()]),
            tag in prop_oneof![Just(1u16), Just(0x8000), any::<u16>()],
        ) {
            let word = |four: &[u16]| four.iter().rev().fold(0, |word, &tag| word << 16 | u64::from(tag));
            let (low, high) = (word(&tags[..4]), word(&tags[4..]));
            prop_assert_eq!(matching(low, high, tag), matching_plainly(low, high, tag));
            prop_assert_eq!(first_free(low), tags[..4].iter().position(|&tag| tag == 0));
        }

        #[test]
        fn homes_are_below_the_count_and_tags_and_strides_are_never_zero(hash: u64, count in 2u32..) {
            prop_assert!(scale(hash, count) < count);
            prop_assert!((1..count).contains(&stride(hash, count)));
            prop_assert_ne!(tag_of(hash), 0);
        }

        #[test]
        fn it_holds_what_a_map_holds_however_crowded_its_homes_are(
            steps in proptest::collection::vec((any::<bool>(), 63u32..67, 1u16..4, 0u32..60), 1..600),
        ) {
            let index = index();
            let mut model: HashMap<u32, u64> = HashMap::new();
            for (adding, home, tag, bits) in steps {
                let place = hash(home, tag);
                if adding {
                    // One hash per reference, as with keys.
                    let place = *model.get(&bits).unwrap_or(&place);
                    match add(&index, place, bits) {
                        Ok(()) => prop_assert_eq!(model.insert(bits, place), None),
                        Err(conflict) => {
                            prop_assert_eq!(conflict, Conflict::First(bits));
                            prop_assert!(model.contains_key(&bits));
                        }
                    }
                } else if let Some(place) = model.remove(&bits) {
                    prop_assert!(index.remove((place, bits), None));
                } else {
                    prop_assert!(!index.remove((place, bits), None));
                }
                for (&bits, &place) in &model {
                    prop_assert_eq!(index.find(place, |other| other == bits), Some(bits));
                }
            }
            let displaced: u32 = (0..67).map(|n| u32::from(state(&index, n).0)).sum();
            for (bits, place) in model.drain() {
                prop_assert!(index.remove((place, bits), None));
            }
            prop_assert!(displaced <= 60);
            for bucket in index.buckets.iter() {
                prop_assert!(bucket.tags.iter().all(|tags| tags.load(Ordering::Relaxed) == 0));
                prop_assert!(bucket.references.iter().all(|r| r.load(Ordering::Relaxed) == EMPTY));
                prop_assert_eq!(bucket.lock.load(Ordering::Relaxed), 0);
                prop_assert_eq!(bucket.displaced.load(Ordering::Relaxed), 0);
                prop_assert_eq!(bucket.depth.load(Ordering::Relaxed), 0);
            }
        }
    }

    #[test]
    fn a_full_home_displaces_to_the_next_buckets_round_the_end_and_remembers_how_far() {
        let index = index();
        for bits in 0..24 {
            add(&index, hash(66, 5), bits).unwrap();
        }
        assert_eq!(state(&index, 66), (16, 2));
        assert_eq!((state(&index, 0), state(&index, 1)), ((0, 0), (0, 0)));
        assert_eq!(index.find(hash(66, 5), |bits| bits == 23), Some(23));
        assert_eq!(index.find(hash(0, 5), |bits| bits == 23), None, "another home's entries are not found from here");
        for bits in 8..23 {
            assert!(index.remove((hash(66, 5), bits), None));
        }
        assert_eq!(state(&index, 66), (1, 2));
        assert!(index.remove((hash(66, 5), 23), None));
        assert_eq!(state(&index, 66), (0, 0));
    }

    #[test]
    fn beyond_its_reach_an_insertion_fails_and_leaves_nothing() {
        let index = index();
        let room = 8 * (u32::from(REACH) + 1);
        for bits in 0..room {
            add(&index, hash(0, 9), bits).unwrap();
        }
        assert_eq!(add(&index, hash(0, 9), room), Err(Conflict::Full));
        // The first of the pair finds a place far away, the second none.
        let pair = index.insert((hash(40, 1), 1000), Some((hash(0, 9), 1001)), NEVER, NEVER);
        assert_eq!(pair, Err(Conflict::Full));
        assert_eq!(index.candidate(hash(40, 1)), None);
        assert_eq!(index.find(hash(40, 1), |_| true), None);
        // Displaced or not, the first is given back.
        for bits in 2000..2008 {
            add(&index, hash(40, 2), bits).unwrap();
        }
        assert_eq!(index.insert((hash(40, 1), 1000), Some((hash(0, 9), 1001)), NEVER, NEVER), Err(Conflict::Full));
        assert_eq!(state(&index, 40), (0, 0));
        assert!(index.remove((hash(0, 9), 100), None));
        assert_eq!(index.insert((hash(40, 1), 1000), Some((hash(0, 9), 1001)), NEVER, NEVER), Ok(()));
    }

    #[test]
    fn a_pair_goes_in_and_out_together_or_not_at_all() {
        let index = index();
        let (a, b, c) = (hash(1, 1), hash(2, 2), hash(3, 3));
        let is = |bits: u32| move |other: u32| other == bits;
        index.insert((a, 10), Some((b, 11)), is(10), is(11)).unwrap();
        assert_eq!(index.insert((a, 20), Some((c, 21)), is(10), is(21)), Err(Conflict::First(10)));
        assert_eq!(index.insert((c, 20), Some((b, 21)), is(20), is(11)), Err(Conflict::Second(11)));
        assert_eq!(index.candidate(c), None);
        assert_eq!((index.candidate(a), index.candidate(b)), (Some(10), Some(11)));
        assert!(!index.remove((a, 10), Some((b, 99))), "one was not there, the other is gone");
        assert_eq!((index.candidate(a), index.candidate(b)), (None, Some(11)));
    }

    #[test]
    fn displaced_entries_are_candidates_when_asked_for() {
        let index = index();
        for bits in 0..9 {
            add(&index, hash(3, 10 + u16::try_from(bits).unwrap()), bits).unwrap();
        }
        assert_eq!((index.candidate(hash(3, 18)), index.displaced_candidate(hash(3, 18))), (None, Some(8)));
        assert_eq!((index.candidate(hash(3, 17)), index.displaced_candidate(hash(3, 17))), (Some(7), None));
        assert_eq!(index.displaced_candidate(hash(4, 18)), None);
    }

    #[test]
    fn a_pair_may_share_its_home_and_its_tag() {
        let index = index();
        let a = hash(7, 7);
        index.insert((a, 10), Some((a, 11)), |other| other == 10, |other| other == 11).unwrap();
        assert_eq!(index.find(a, |bits| bits == 11), Some(11));
        assert!(index.remove((a, 10), Some((a, 11))));
        assert_eq!(index.find(a, |_| true), None);
    }

    #[test]
    fn it_takes_under_22_bytes_per_connection_and_no_entry_is_refused_when_as_full_as_it_gets() {
        const CONNECTIONS: u32 = 1_000_000;
        let index = Index::for_entries(2 * u64::from(CONNECTIONS), 75, false).unwrap();
        assert!(index.bytes() <= 22 * CONNECTIONS as usize);
        let hash = |bits: u32| crate::hash::Secrets::new(u64::from(bits)).hash4(&Default::default());
        for bits in 0..2 * CONNECTIONS {
            index.insert((hash(bits), bits), None, NEVER, NEVER).unwrap();
        }
        let displaced: u32 = index.buckets.iter().map(|b| u32::from(b.displaced.load(Ordering::Relaxed))).sum();
        assert!(displaced < 2 * CONNECTIONS / 16, "{displaced} of {}", 2 * CONNECTIONS);
        let depths = |depth: u8| index.buckets.iter().filter(|b| b.depth.load(Ordering::Relaxed) > depth).count();
        assert!(depths(6) < index.buckets.len() / 1000, "{} buckets of {}", depths(6), index.buckets.len());
        assert!((0..2 * CONNECTIONS).all(|bits| index.find(hash(bits), |other| other == bits).is_some()));
    }
}

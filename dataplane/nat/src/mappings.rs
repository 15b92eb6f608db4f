//! Mapping records: 16 bytes each, read without locks by whoever holds a reference from an index.
//!
//! A record is filled before its reference enters an index, and freed after the reference left all of them, always
//! under the locks of those indices; so whoever finds a reference under an index's lock reads a whole record.
//!
//! Each lock's holders have free records of their own, so that they need no other lock for nearly every one. They keep
//! two blocks of [`BLOCK`] at most and give others back by the block: hosts come and go, and records that one had by
//! the ten thousand would else be of no use to those behind another lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use erhu_table::Apart;

use crate::Lock;
use crate::book::REFERENCES;
use crate::ports::Class;

/// Records of a chunk.
const CHUNK: usize = 4096;
/// Records that a free list takes, or gives back, at once.
const BLOCK: u32 = 32;
/// End of a free list.
const NONE: u32 = u32::MAX;
/// Bits of a place that are the external address; the protocol class follows.
const ADDRESS_BITS: u32 = 30;

#[derive(Debug, Default)]
struct Record {
    /// Host (low half), inside port, external port. In a free record no host, and in the high half of the first of a
    /// block that was given back the first of the next such block.
    key: AtomicU64,
    /// External address and protocol class.
    place: AtomicU32,
    /// Connections that use it; in a free record the next free one.
    uses: AtomicU32,
}

/// What a mapping joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Reference of the inside host.
    pub host: u32,
    /// Inside port or ICMP identifier.
    pub inside_port: u16,
    /// External port or ICMP identifier.
    pub external_port: u16,
    /// Reference of the external address.
    pub address: u32,
    /// Protocol.
    pub class: Class,
}

/// All mapping records. Chunks are made as needed and kept.
#[derive(Debug)]
pub struct Mappings {
    chunks: Box<[OnceLock<Box<[Record]>>]>,
    supply: Apart<Supply>,
}

/// Where free lists get records from.
#[derive(Debug)]
struct Supply {
    /// Records that were ever given to free lists.
    taken: AtomicU32,
    /// First record of the block that was given back last. The innermost of all locks.
    returned: Lock<u32>,
}

/// Free records of one lock's holders.
#[derive(Debug)]
pub struct FreeMappings {
    first: u32,
    /// How many follow from the first on.
    count: u32,
    /// The first of a whole block beside those: who takes and gives by turns shall not do it with blocks.
    spare: u32,
    /// Rest of the block taken last, if it was new.
    block: std::ops::Range<u32>,
}

impl Default for FreeMappings {
    fn default() -> Self {
        Self { first: NONE, count: 0, spare: NONE, block: 0..0 }
    }
}

impl Mappings {
    pub fn new() -> Self {
        let chunks = (REFERENCES as usize).div_ceil(CHUNK);
        Self {
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
            supply: Apart::new(Supply { taken: AtomicU32::new(0), returned: Lock::new(NONE) }),
        }
    }

    fn record(&self, reference: u32) -> &Record {
        let chunk =
            self.chunks[reference as usize / CHUNK].get_or_init(|| (0..CHUNK).map(|_| Record::default()).collect());
        &chunk[reference as usize % CHUNK]
    }

    /// Takes a record with one use and fills it. `None` when there are no more.
    pub fn take(&self, free: &mut FreeMappings, binding: &Binding) -> Option<u32> {
        if free.count == 0 && free.block.is_empty() {
            self.refill(free)?;
        }
        let reference = if free.count != 0 {
            let reference = free.first;
            free.first = self.record(reference).uses.load(Relaxed);
            free.count -= 1;
            // Only the record itself says which one follows it: by the next opening its line is here.
            if free.count != 0 {
                self.prefetch(free.first);
            }
            reference
        } else {
            free.block.next()?
        };
        let record = self.record(reference);
        let ports = u64::from(binding.inside_port) | u64::from(binding.external_port) << 16;
        record.key.store(u64::from(binding.host) | ports << 32, Relaxed);
        record.place.store(binding.address | (binding.class as u32) << ADDRESS_BITS, Relaxed);
        record.uses.store(1, Relaxed);
        Some(reference)
    }

    /// Gets a block for a free list that is empty: its own spare one, one that was given back, or a new one.
    #[cold]
    fn refill(&self, free: &mut FreeMappings) -> Option<()> {
        let mut first = std::mem::replace(&mut free.spare, NONE);
        if first == NONE {
            let mut returned = self.supply.returned.lock();
            first = *returned;
            if first != NONE {
                *returned = next_block(self.record(first).key.load(Relaxed));
            }
        }
        if first == NONE {
            let start =
                self.supply.taken.fetch_update(Relaxed, Relaxed, |n| (n < REFERENCES - BLOCK).then_some(n + BLOCK));
            let start = start.ok()?;
            free.block = start..start + BLOCK;
        } else {
            (free.first, free.count) = (first, BLOCK);
        }
        Some(())
    }

    /// Gives a record back.
    pub fn free(&self, free: &mut FreeMappings, reference: u32) {
        if free.count == BLOCK {
            let full = std::mem::replace(&mut free.spare, free.first);
            (free.first, free.count) = (NONE, 0);
            if full != NONE {
                let mut returned = self.supply.returned.lock();
                self.record(full).key.store(u64::from(NONE) | u64::from(*returned) << 32, Relaxed);
                *returned = full;
            }
        }
        let record = self.record(reference);
        // No host has this reference, so that nobody takes the record for a living one.
        record.key.store(u64::from(NONE), Relaxed);
        record.uses.store(free.first, Relaxed);
        (free.first, free.count) = (reference, free.count + 1);
    }

    /// Reads a record.
    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of the word on purpose")]
    pub fn get(&self, reference: u32) -> Binding {
        let record = self.record(reference);
        let (key, place) = (record.key.load(Relaxed), record.place.load(Relaxed));
        Binding {
            host: key as u32,
            inside_port: (key >> 32) as u16,
            external_port: (key >> 48) as u16,
            address: place & ((1 << ADDRESS_BITS) - 1),
            class: Class::from_bits(place >> ADDRESS_BITS),
        }
    }

    /// Asks for a record's line.
    #[inline]
    pub fn prefetch(&self, reference: u32) {
        erhu_table::prefetch_line(self.record(reference));
    }

    /// Adds a use; `false` if there are as many as can be counted. Under the host's lock.
    pub fn add_use(&self, reference: u32) -> bool {
        let uses = &self.record(reference).uses;
        let Some(more) = uses.load(Relaxed).checked_add(1) else { return false };
        uses.store(more, Relaxed);
        true
    }

    /// Drops a use; `true` if it was the last. Under the host's lock.
    pub fn drop_use(&self, reference: u32) -> bool {
        let uses = &self.record(reference).uses;
        let left = uses.load(Relaxed).saturating_sub(1);
        uses.store(left, Relaxed);
        left == 0
    }

    /// Heap bytes.
    pub fn bytes(&self) -> usize {
        let made = self.chunks.iter().filter(|c| c.get().is_some()).count();
        self.chunks.len() * size_of::<OnceLock<Box<[Record]>>>() + made * CHUNK * size_of::<Record>()
    }
}

/// What a free record's key says of the next block.
const fn next_block(key: u64) -> u32 {
    (key >> 32) as u32
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn records_keep_what_was_put_in_and_are_used_again() {
        let (mappings, mut free) = (Mappings::new(), FreeMappings::default());
        let mapping = |n: u16| Binding {
            host: u32::from(n) << 16 | 7,
            inside_port: n,
            external_port: !n,
            address: (1 << ADDRESS_BITS) - 1 - u32::from(n),
            class: Class::Icmp,
        };
        let taken: Vec<u32> = (0..100).map(|n| mappings.take(&mut free, &mapping(n)).unwrap()).collect();
        for (n, reference) in (0..100).zip(&taken) {
            assert_eq!(mappings.get(*reference), mapping(n));
        }
        assert!(mappings.add_use(taken[5]));
        assert!(!mappings.drop_use(taken[5]));
        assert!(mappings.drop_use(taken[5]));
        mappings.free(&mut free, taken[5]);
        assert_ne!(mappings.get(taken[5]).host, mapping(5).host);
        assert_eq!(mappings.take(&mut free, &mapping(500)), Some(taken[5]));
    }

    #[test]
    fn every_record_that_one_list_gives_up_another_gets_once() {
        let (mappings, mut lists) = (Mappings::new(), [(); 3].map(|()| FreeMappings::default()));
        let binding = Binding { host: 1, inside_port: 2, external_port: 3, address: 4, class: Class::Udp };
        for round in 0..9 {
            let count = [1000, 31, 32, 33, 64, 65, 1000, 96, 1000][round];
            let list = &mut lists[round % 3];
            let taken: std::collections::BTreeSet<u32> =
                (0..count).map(|_| mappings.take(list, &binding).unwrap()).collect();
            assert_eq!(taken.len(), count, "each once");
            taken.into_iter().for_each(|reference| mappings.free(list, reference));
            assert!(list.count <= BLOCK);
        }
        let made = mappings.supply.taken.load(Relaxed);
        assert!(made <= 1000 + 3 * 3 * BLOCK, "{made}");
    }

    #[test]
    fn the_supply_of_records_lies_on_no_line_that_leads_to_them() {
        assert!(align_of::<Mappings>() >= 64);
        assert_ne!(offset_of!(Mappings, supply) / 64, offset_of!(Mappings, chunks) / 64);
    }

    #[test]
    fn a_record_is_sixteen_bytes() {
        assert_eq!(size_of::<Record>(), 16);
    }
}

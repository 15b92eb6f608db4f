//! Mapping records: 16 bytes each, read without locks by whoever holds a reference from an index.
//!
//! A record is filled before its reference enters an index, and freed after the reference left all of them, always
//! under the locks of those indices; so whoever finds a reference under an index's lock reads a whole record.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::book::REFERENCES;
use crate::ports::Class;

/// Records of a chunk.
const CHUNK: usize = 4096;
/// Records that a free list takes at once.
const BLOCK: u32 = 32;
/// End of a free list.
const NONE: u32 = u32::MAX;
/// Bits of a place that are the external address; the protocol class follows.
const ADDRESS_BITS: u32 = 30;

#[derive(Debug, Default)]
struct Record {
    /// Host (low half), inside port, external port.
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
    /// Records given to free lists so far.
    taken: AtomicU32,
}

/// Free records of one lock's holders.
#[derive(Debug)]
pub struct FreeMappings {
    first: u32,
    /// Rest of the block taken last.
    block: std::ops::Range<u32>,
}

impl Default for FreeMappings {
    fn default() -> Self {
        Self { first: NONE, block: 0..0 }
    }
}

impl Mappings {
    pub fn new() -> Self {
        let chunks = (REFERENCES as usize).div_ceil(CHUNK);
        Self { chunks: (0..chunks).map(|_| OnceLock::new()).collect(), taken: AtomicU32::new(0) }
    }

    fn record(&self, reference: u32) -> &Record {
        let chunk =
            self.chunks[reference as usize / CHUNK].get_or_init(|| (0..CHUNK).map(|_| Record::default()).collect());
        &chunk[reference as usize % CHUNK]
    }

    /// Takes a record with one use and fills it. `None` when there are no more.
    pub fn take(&self, free: &mut FreeMappings, binding: &Binding) -> Option<u32> {
        let reference = if free.first != NONE {
            let reference = free.first;
            free.first = self.record(reference).uses.load(Relaxed);
            reference
        } else {
            if free.block.is_empty() {
                let start =
                    self.taken.fetch_update(Relaxed, Relaxed, |n| (n < REFERENCES - BLOCK).then_some(n + BLOCK));
                let start = start.ok()?;
                free.block = start..start + BLOCK;
            }
            free.block.next()?
        };
        let record = self.record(reference);
        let ports = u64::from(binding.inside_port) | u64::from(binding.external_port) << 16;
        record.key.store(u64::from(binding.host) | ports << 32, Relaxed);
        record.place.store(binding.address | (binding.class as u32) << ADDRESS_BITS, Relaxed);
        record.uses.store(1, Relaxed);
        Some(reference)
    }

    /// Gives a record back.
    pub fn free(&self, free: &mut FreeMappings, reference: u32) {
        let record = self.record(reference);
        // No host has this reference, so that nobody takes the record for a living one.
        record.key.store(u64::from(NONE), Relaxed);
        record.uses.store(free.first, Relaxed);
        free.first = reference;
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

#[cfg(test)]
mod tests {
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
    fn a_record_is_sixteen_bytes() {
        assert_eq!(size_of::<Record>(), 16);
    }
}

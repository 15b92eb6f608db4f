//! A hash table of 26-bit references that keys nothing itself: four bytes a slot, and it grows in small steps.
//!
//! A slot holds six bits of the hash and a reference; who asks compares the keys, which lie where the reference
//! leads. Open addressing with linear probing. When the table fills, a second array is made and every later change
//! moves a few slots, so that no change costs more than a bounded amount of work.

/// References are below this.
pub const REFERENCES: u32 = (1 << REFERENCE_BITS) - 2;

const REFERENCE_BITS: u32 = 26;
const EMPTY: u32 = 0;
const MOVED: u32 = u32::MAX;
const SMALLEST: usize = 16;
/// Slots that one change moves while two arrays exist.
const STEP: usize = 16;

#[derive(Debug, Default)]
pub struct RefTable {
    slots: Vec<u32>,
    /// The array before the last resizing, while slots from `next` on still live there.
    old: Vec<u32>,
    next: usize,
    live: usize,
    /// Slots of `slots` that are not empty.
    dirty: usize,
}

/// What a slot holds for a reference.
#[inline]
fn packed(hash: u64, reference: u32) -> u32 {
    debug_assert!(reference < REFERENCES);
    tag(hash) | (reference + 1)
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the low bits are wanted")]
const fn tag(hash: u64) -> u32 {
    (hash as u32) << REFERENCE_BITS
}

#[inline]
const fn reference(slot: u32) -> u32 {
    (slot & ((1 << REFERENCE_BITS) - 1)) - 1
}

#[inline]
const fn home(hash: u64, len: usize) -> usize {
    (((hash >> 32) * len as u64) >> 32) as usize
}

/// Position in `slots` of the first slot on the hash's way for which `wanted` holds.
#[inline]
fn probe(slots: &[u32], hash: u64, mut wanted: impl FnMut(u32) -> bool) -> Option<usize> {
    let tag = tag(hash);
    let mut at = home(hash, slots.len());
    for _ in 0..slots.len() {
        let slot = *slots.get(at)?;
        if slot == EMPTY {
            return None;
        }
        if (slot ^ tag) >> REFERENCE_BITS == 0 && slot != MOVED && wanted(reference(slot)) {
            return Some(at);
        }
        at = if at + 1 == slots.len() { 0 } else { at + 1 };
    }
    None
}

/// Puts a packed slot into the first free place on its way. There is one.
fn place(slots: &mut [u32], hash: u64, slot: u32) -> bool {
    let len = slots.len();
    let mut at = home(hash, len);
    for _ in 0..len {
        match &mut slots[at] {
            free @ (&mut EMPTY | &mut MOVED) => {
                let was_empty = *free == EMPTY;
                *free = slot;
                return was_empty;
            }
            _ => at = if at + 1 == len { 0 } else { at + 1 },
        }
    }
    debug_assert!(false, "the table is never full");
    false
}

impl RefTable {
    /// Heap bytes.
    pub const fn bytes(&self) -> usize {
        (self.slots.capacity() + self.old.capacity()) * size_of::<u32>()
    }

    /// The reference with this hash for which `is_it` holds.
    #[inline]
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        if let Some(at) = probe(&self.slots, hash, &mut is_it) {
            return Some(reference(self.slots[at]));
        }
        probe(&self.old, hash, is_it).map(|at| reference(self.old[at]))
    }

    /// Adds a reference that is not there yet. `hash_of` gives the hash of any reference held.
    pub fn insert(&mut self, hash: u64, reference: u32, hash_of: impl Fn(u32) -> u64) {
        self.advance(STEP, &hash_of);
        // Four fifths full, counting the places of removed ones.
        if (self.dirty + 1) * 5 > self.slots.len() * 4 {
            self.resize(&hash_of);
        }
        self.dirty += usize::from(place(&mut self.slots, hash, packed(hash, reference)));
        self.live += 1;
    }

    /// Takes a reference out; `false` if it was not there.
    pub fn remove(&mut self, hash: u64, reference: u32, hash_of: impl Fn(u32) -> u64) -> bool {
        let is_it = |r: u32| r == reference;
        if let Some(at) = probe(&self.slots, hash, is_it) {
            let after = if at + 1 == self.slots.len() { 0 } else { at + 1 };
            if self.slots[after] == EMPTY {
                // No way leads over this place, so it becomes free at once, and so do removed ones before it.
                let mut at = at;
                loop {
                    self.slots[at] = EMPTY;
                    self.dirty -= 1;
                    at = if at == 0 { self.slots.len() - 1 } else { at - 1 };
                    if self.slots[at] != MOVED {
                        break;
                    }
                }
            } else {
                self.slots[at] = MOVED;
            }
        } else if let Some(at) = probe(&self.old, hash, is_it) {
            self.old[at] = MOVED;
        } else {
            return false;
        }
        self.live -= 1;
        self.advance(STEP, &hash_of);
        if self.old.is_empty() && self.slots.len() > 4 * SMALLEST && self.live * 5 < self.slots.len() {
            self.resize(&hash_of);
        }
        true
    }

    /// Starts over with an array that suits what is held; slots move there step by step.
    fn resize(&mut self, hash_of: &impl Fn(u32) -> u64) {
        self.advance(usize::MAX, hash_of);
        // About half full afterwards.
        let len = (self.live * 15 / 8 + 1).max(SMALLEST);
        self.old = std::mem::replace(&mut self.slots, vec![EMPTY; len]);
        self.next = 0;
        self.dirty = 0;
    }

    /// Moves what lies in the next `count` slots of the old array.
    fn advance(&mut self, count: usize, hash_of: &impl Fn(u32) -> u64) {
        if self.old.is_empty() {
            return;
        }
        let end = self.next.saturating_add(count).min(self.old.len());
        for slots in self.old[self.next..end].chunks_mut(STEP) {
            // All hashes first: each waits for memory, and so they wait together.
            let mut hashes = [0; STEP];
            for (hash, slot) in hashes.iter_mut().zip(slots.iter()) {
                if *slot != EMPTY && *slot != MOVED {
                    *hash = hash_of(reference(*slot));
                }
            }
            for (hash, slot) in hashes.into_iter().zip(slots) {
                if *slot != EMPTY && *slot != MOVED {
                    self.dirty += usize::from(place(&mut self.slots, hash, *slot));
                    // Ways through the old array lead over this place until it is gone.
                    *slot = MOVED;
                }
            }
        }
        self.next = end;
        if end == self.old.len() {
            self.old = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Hasher;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn hash(weak: bool) -> impl Fn(u32) -> u64 {
        let hasher = Hasher::new(3);
        // The weak one puts everything into few places, so that ways are long and wrap.
        move |r| if weak { u64::from(r % 3) << 62 | u64::from(r % 2) } else { hasher.two(u64::from(r), 0) }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn it_holds_what_a_set_holds(weak: bool, span in 1u32..2000,
                                     changes in proptest::collection::vec((any::<u32>(), 0u8..3), 0..3000)) {
            let hash = hash(weak);
            let (mut table, mut model) = (RefTable::default(), BTreeSet::new());
            for (number, kind) in changes {
                let number = number % span;
                let found = table.find(hash(number), |r| r == number);
                prop_assert_eq!(found.is_some(), model.contains(&number));
                if kind == 0 {
                    prop_assert_eq!(table.remove(hash(number), number, &hash), model.remove(&number));
                } else if found.is_none() {
                    table.insert(hash(number), number, &hash);
                    model.insert(number);
                }
                prop_assert_eq!(table.live, model.len());
            }
            for number in 0..span {
                prop_assert_eq!(table.find(hash(number), |r| r == number).is_some(), model.contains(&number));
            }
        }
    }

    #[test]
    fn it_costs_at_most_eight_bytes_an_entry_at_rest_and_shrinks_again() {
        let hash = hash(false);
        let mut table = RefTable::default();
        for number in 0..200_000 {
            table.insert(hash(number), number, &hash);
            if number > 1000 && table.old.is_empty() {
                assert!(table.bytes() <= 8 * table.live, "{} bytes for {}", table.bytes(), table.live);
            }
        }
        for number in 0..200_000 {
            assert!(table.remove(hash(number), number, &hash));
        }
        assert!(table.bytes() <= 1024, "{}", table.bytes());
    }

    #[test]
    fn churn_at_one_size_does_not_grow_it() {
        let hash = hash(false);
        let mut table = RefTable::default();
        for number in 0..100_000 {
            table.insert(hash(number), number, &hash);
            if number >= 1000 {
                assert!(table.remove(hash(number - 1000), number - 1000, &hash));
            }
        }
        assert!(table.bytes() < 16 * 1024, "{}", table.bytes());
    }

    #[test]
    fn the_largest_reference_is_kept_apart_from_the_marks() {
        let largest = REFERENCES - 1;
        let all_ones = |_: u32| u64::MAX;
        let mut table = RefTable::default();
        table.insert(u64::MAX, largest, all_ones);
        assert_eq!(table.find(u64::MAX, |r| r == largest), Some(largest));
    }
}

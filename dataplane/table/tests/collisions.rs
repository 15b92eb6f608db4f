//! What somebody gains who makes tuples that collide: nothing that others would notice.

use std::cell::Cell;

use erhu_table::{Conflict, Index};

/// Entries of the index.
const ENTRIES: u64 = 40_000;
/// As many as one home can have: its own bucket's places and those of the 32 that it reaches.
const MOST: u32 = 33 * 8;

/// Looks an entry up; says whether it is there and how many keys had to be compared.
fn look_up(index: &Index, hash: u64, bits: u32) -> (bool, u32) {
    let compared = Cell::new(0);
    let is_it = |other| {
        compared.set(compared.get() + 1);
        other == bits
    };
    let found = index.find(hash, is_it);
    (found == Some(bits), compared.get())
}

/// N8: tuples that share all of their hash are refused once their home's reach is full; until then no look-up compares
/// more than that, and what others have is found as before, at once, and can be added to and taken out.
#[test]
fn crafted_collisions_are_bounded_and_leave_others_alone() {
    let index = Index::for_entries(ENTRIES, 75, false).unwrap();
    let other = |n: u32| u64::from(n).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let never = |_| false;
    for n in 0..20_000 {
        assert_eq!(index.insert((other(n), n), None, never, never), Ok(()));
    }
    let crafted = other(7);
    let of_attacker = |n: u32| 1_000_000 + n;
    let made =
        (0..10_000).take_while(|n| index.insert((crafted, of_attacker(*n)), None, never, never).is_ok()).count();
    let made = u32::try_from(made).unwrap();
    assert!((8..=MOST).contains(&made), "{made} entries with one hash");
    assert_eq!(index.insert((crafted, 1), None, never, never), Err(Conflict::Full));
    for n in 0..made {
        let (found, compared) = look_up(&index, crafted, of_attacker(n));
        assert!(found && compared <= MOST, "{compared} compared");
    }
    // Look-ups for nothing are bounded too.
    assert!(!look_up(&index, crafted, 5_000_000).0 && look_up(&index, crafted, 5_000_000).1 <= MOST);
    let mut all = 0;
    for n in (0..20_000).filter(|n| *n != 7) {
        let (found, compared) = look_up(&index, other(n), n);
        assert!(found && compared <= 3, "{n}: {compared} compared");
        all += compared;
    }
    assert!(all < 20_100, "{all} keys compared for 19 999 entries");
    for n in 20_000..21_000 {
        assert_eq!(index.insert((other(n), n), None, never, never), Ok(()));
        assert!(index.remove((other(n), n), None));
    }
    for n in 0..made {
        assert!(index.remove((crafted, of_attacker(n)), None));
    }
    assert_eq!(look_up(&index, crafted, 7), (true, 1), "nothing of it is left");
}

//! Models of what is concurrent, for every interleaving and every reordering that the memory model allows (up to a
//! bound on pre-emptions). The slab is a word per entry: the key that an entry's owner wrote before it inserted it.

use loom::sync::Arc;
use loom::thread;

use crate::index::{Conflict, Index};
use crate::quiescence::Quiescence;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Hashes in an index of three buckets: home, and tags all alike so that only keys tell tuples apart.
fn hash(home: u64) -> u64 {
    (home << 32).div_ceil(3) << 32 | 0x1234
}

/// The model of a slab: keys by reference.
struct Slab(Vec<AtomicU32>);

impl Slab {
    fn new(entries: usize) -> Self {
        Self((0..entries).map(|_| AtomicU32::new(0)).collect())
    }

    fn write(&self, reference: u32, key: u32) {
        self.0[reference as usize].store(key, Ordering::Relaxed);
    }

    /// Whether that reference has this key; every reference that is found was written.
    fn has(&self, reference: u32, key: u32) -> bool {
        let found = self.0[reference as usize].load(Ordering::Relaxed);
        assert_ne!(found, 0, "a reference is seen before its key");
        found == key
    }
}

/// Two pre-emptions find every fault that was put in on purpose: relaxed orders, missing fences, no lock.
fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_branches = 20_000;
    builder.check(model);
}

const A: u32 = 100;
const B: u32 = 101;

#[test]
fn both_directions_inserted_at_once_make_one_connection() {
    for homes in [[0, 1], [1, 1]] {
        check(move || {
            let shared = Arc::new((Index::tiny(3), Slab::new(4)));
            let run = move |shared: &(Index, Slab), first: u32, keys: [u32; 2]| {
                let (index, slab) = shared;
                slab.write(first, keys[0]);
                slab.write(first + 1, keys[1]);
                let home = |key: u32| hash(homes[(key - A) as usize]);
                index.insert(
                    (home(keys[0]), first),
                    Some((home(keys[1]), first + 1)),
                    |other| slab.has(other, keys[0]),
                    |other| slab.has(other, keys[1]),
                )
            };
            let other = thread::spawn({
                let shared = shared.clone();
                move || run(&shared, 2, [B, A])
            });
            let mine = run(&shared, 0, [A, B]);
            let theirs = other.join().unwrap();
            let winner = match (&mine, &theirs) {
                (Ok(()), Err(Conflict::First(1))) => [0, 1],
                (Err(Conflict::First(3)), Ok(())) => [3, 2],
                _ => panic!("{mine:?} {theirs:?}"),
            };
            let (index, slab) = &*shared;
            let found = [A, B].map(|key| index.find(hash(homes[(key - A) as usize]), |r| slab.has(r, key)));
            assert_eq!(found, winner.map(Some));
        });
    }
}

#[test]
fn a_reader_finds_what_stays_while_its_neighbours_come_and_go() {
    check(|| {
        let shared = Arc::new((Index::tiny(3), Slab::new(4)));
        let (index, slab) = &*shared;
        slab.write(0, A);
        slab.write(1, B);
        index.insert((hash(0), 0), None, |_| false, |_| false).unwrap();
        index.insert((hash(0), 1), None, |_| false, |_| false).unwrap();
        let other = thread::spawn({
            let shared = shared.clone();
            move || {
                let (index, slab) = &*shared;
                assert!(index.remove((hash(0), 0), None));
                slab.write(2, 102);
                index.insert((hash(0), 2), None, |other| slab.has(other, 102), |_| false).unwrap();
            }
        });
        assert_eq!(index.find(hash(0), |other| slab.has(other, B)), Some(1));
        let found = index.find(hash(0), |other| slab.has(other, 102));
        assert!(found.is_none_or(|reference| reference == 2));
        other.join().unwrap();
        assert_eq!(index.find(hash(0), |other| slab.has(other, A)), None);
        assert_eq!(index.find(hash(0), |other| slab.has(other, 102)), Some(2));
    });
}

#[test]
fn a_place_that_one_home_gives_back_another_takes_whole() {
    check(|| {
        let shared = Arc::new((Index::tiny(3), Slab::new(25)));
        let (index, slab) = &*shared;
        // All three buckets are full.
        for reference in 0..24 {
            slab.write(reference, 200 + reference);
            index.insert((hash(u64::from(reference / 8)), reference), None, |_| false, |_| false).unwrap();
        }
        let other = thread::spawn({
            let shared = shared.clone();
            move || assert!(shared.0.remove((hash(2), 20), None))
        });
        slab.write(24, A);
        let inserted = index.insert((hash(0), 24), None, |other| slab.has(other, A), |_| false);
        let found = index.find(hash(0), |other| slab.has(other, A));
        other.join().unwrap();
        match inserted {
            Ok(()) => assert_eq!([found, index.find(hash(0), |other| slab.has(other, A))], [Some(24); 2]),
            conflict => assert_eq!(conflict, Err(Conflict::Full)),
        }
        assert_eq!(index.find(hash(2), |other| slab.has(other, 220)), None);
        assert_eq!(index.find(hash(2), |other| slab.has(other, 221)), Some(21));
    });
}

#[test]
fn two_homes_that_displace_into_one_bucket_share_its_places() {
    check(|| {
        let shared = Arc::new((Index::tiny(3), Slab::new(24)));
        let (index, slab) = &*shared;
        // Homes 0 and 1 are full, and bucket 2 has two places left.
        for reference in 0..22 {
            slab.write(reference, 200 + reference);
            index.insert((hash(u64::from(reference / 8)), reference), None, |_| false, |_| false).unwrap();
        }
        let other = thread::spawn({
            let shared = shared.clone();
            move || {
                let (index, slab) = &*shared;
                slab.write(23, B);
                index.insert((hash(1), 23), None, |other| slab.has(other, B), |_| false).unwrap();
            }
        });
        slab.write(22, A);
        index.insert((hash(0), 22), None, |other| slab.has(other, A), |_| false).unwrap();
        assert_eq!(index.find(hash(0), |other| slab.has(other, A)), Some(22));
        other.join().unwrap();
        assert_eq!(index.find(hash(0), |other| slab.has(other, A)), Some(22));
        assert_eq!(index.find(hash(1), |other| slab.has(other, B)), Some(23));
        assert!(index.remove((hash(0), 22), None) && index.remove((hash(1), 23), None));
    });
}

/// The model of a segment of two words, and of the directory's entry for it: the protocol of `Table::lease`,
/// `Table::give_back` and `Table::provision`, and of readers that walk the slab.
struct Leased {
    /// 0: nobody's.
    class: AtomicU32,
    /// The one entry: its id, 0 while it is free, and what it holds.
    id: AtomicU64,
    contents: AtomicU64,
    /// Segments that were given back and not leased again: there is one at most.
    used: loom::sync::Mutex<u32>,
}

impl Leased {
    fn fill(&self, id: u64) {
        self.contents.store(id, Ordering::Relaxed);
        self.id.store(id, Ordering::Release);
    }

    /// The owner ends the entry and, a grace period later, gives the segment back.
    fn give_back(&self) {
        self.id.store(0, Ordering::Release);
        self.class.store(0, Ordering::Release);
        *self.used.lock().unwrap() += 1;
    }

    /// Takes the segment, zeroed, if there is one.
    fn lease(&self) -> bool {
        let taken = {
            let mut used = self.used.lock().unwrap();
            let taken = *used > 0;
            *used -= u32::from(taken);
            taken
        };
        if taken {
            crate::sync::fence(Ordering::Release);
            self.contents.store(0, Ordering::Relaxed);
            self.id.store(0, Ordering::Relaxed);
            self.class.store(1, Ordering::Release);
        }
        taken
    }

    /// What a reader of another process makes of the entry.
    fn read(&self) -> Option<(u64, u64)> {
        if self.class.load(Ordering::Acquire) == 0 {
            return None;
        }
        let id = self.id.load(Ordering::Acquire);
        let contents = self.contents.load(Ordering::Relaxed);
        crate::sync::fence(Ordering::Acquire);
        (id != 0 && self.id.load(Ordering::Relaxed) == id).then_some((id, contents))
    }
}

#[test]
fn a_segment_that_changes_hands_shows_a_reader_whole_entries_or_none() {
    check(|| {
        let shared = Arc::new(Leased {
            class: AtomicU32::new(1),
            id: AtomicU64::new(0),
            contents: AtomicU64::new(0),
            used: loom::sync::Mutex::new(0),
        });
        shared.fill(10);
        let giver = thread::spawn({
            let shared = shared.clone();
            move || shared.give_back()
        });
        let taker = thread::spawn({
            let shared = shared.clone();
            move || {
                let leased = shared.lease();
                if leased {
                    shared.fill(20);
                }
                leased
            }
        });
        if let Some((id, contents)) = shared.read() {
            assert_eq!(id, contents);
        }
        giver.join().unwrap();
        let leased = taker.join().unwrap();
        assert_eq!(shared.read(), leased.then_some((20, 20)));
        assert_eq!(*shared.used.lock().unwrap(), u32::from(!leased));
    });
}

#[test]
fn two_workers_never_lease_one_segment_nor_get_one_id() {
    check(|| {
        let shared = Arc::new((
            Leased {
                class: AtomicU32::new(0),
                id: AtomicU64::new(0),
                contents: AtomicU64::new(0),
                used: loom::sync::Mutex::new(1),
            },
            AtomicU64::new(0),
        ));
        let other = thread::spawn({
            let shared = shared.clone();
            move || (shared.0.lease(), shared.1.fetch_add(64, Ordering::Relaxed))
        });
        let mine = (shared.0.lease(), shared.1.fetch_add(64, Ordering::Relaxed));
        let theirs = other.join().unwrap();
        assert!(mine.0 != theirs.0, "one of them has it");
        assert_eq!(mine.1.abs_diff(theirs.1), 64, "blocks of ids that do not overlap");
    });
}

/// A shared word that names what may be used; what it named before may be written over after a grace period.
struct Published {
    quiescence: Quiescence,
    current: AtomicU32,
    contents: [AtomicU64; 2],
}

fn publish(shared: &Published) {
    shared.current.store(1, Ordering::Release);
    let epoch = shared.quiescence.advance();
    while !shared.quiescence.is_past(epoch) {
        thread::yield_now();
    }
    shared.contents[0].store(99, Ordering::Relaxed);
}

fn published() -> Arc<Published> {
    let contents = [AtomicU64::new(10), AtomicU64::new(11)];
    Arc::new(Published { quiescence: Quiescence::new(1), current: AtomicU32::new(0), contents })
}

fn read(shared: &Published) {
    let current = shared.current.load(Ordering::Acquire);
    let content = shared.contents[current as usize].load(Ordering::Relaxed);
    assert_eq!(content, 10 + u64::from(current), "it was written over while it was in use");
}

#[test]
fn nothing_is_reused_while_a_registered_worker_may_hold_it() {
    check(|| {
        let shared = published();
        shared.quiescence.register(0);
        let worker = thread::spawn({
            let shared = shared.clone();
            move || {
                read(&shared);
                shared.quiescence.pass(0);
                read(&shared);
                shared.quiescence.unregister(0);
            }
        });
        publish(&shared);
        worker.join().unwrap();
    });
}

#[test]
fn nothing_is_reused_that_a_worker_sees_which_starts_at_that_moment() {
    check(|| {
        let shared = published();
        let worker = thread::spawn({
            let shared = shared.clone();
            move || {
                shared.quiescence.pass(0);
                read(&shared);
                shared.quiescence.unregister(0);
            }
        });
        publish(&shared);
        worker.join().unwrap();
    });
}

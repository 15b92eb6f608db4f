//! Traffic that moves from one worker to another: what one leased, the next one gets.
#![cfg(not(feature = "loom"))]

mod common;

use common::{keys, table_with};
use erhu_planes::connections::{Class, SEGMENT_LINES, SlabLayout};
use erhu_table::{ORIGINAL, REPLY, Slot, Table, WorkerTable};

const WORKERS: usize = 3;
/// Connections that a worker makes, or ends, in one loop.
const BURST: usize = 64;
/// Loops in which nothing is gained, after which nothing will be.
const PATIENCE: usize = 100;

/// A small generator of its own, so that runs repeat.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// A table whose workers take turns, as their poll loops do. Time stands still unless it is told to pass.
struct Router {
    table: Table,
    workers: Vec<WorkerTable>,
    live: Vec<Vec<Slot>>,
    next: u32,
    created: u32,
    ended: u32,
}

impl Router {
    fn new(capacity: u32, segments: u32) -> Self {
        let table = table_with(capacity, WORKERS, segments);
        let mut workers: Vec<_> = (0..WORKERS).map(WorkerTable::new).collect();
        workers.iter_mut().for_each(|worker| worker.quiesce(&table));
        Self { table, workers, live: (0..WORKERS).map(|_| Vec::new()).collect(), next: 0, created: 0, ended: 0 }
    }

    /// One loop of every worker.
    fn turn(&mut self) {
        self.workers.iter_mut().for_each(|worker| worker.quiesce(&self.table));
    }

    /// Loops until what was retired is free.
    fn settle(&mut self) {
        (0..self.created as usize / BURST + 4).for_each(|_| self.turn());
    }

    /// The time of a tick passes for every worker; whether anything came of it.
    fn tick(&mut self) -> bool {
        self.workers.iter_mut().map(|worker| worker.release_idle(&self.table)).fold(false, |any, gave| any | gave)
    }

    /// A first packet: a place in the table, an entry, two tuples in the index.
    fn open_one(&mut self, worker: usize, class: Class) -> bool {
        if !self.table.try_admit() {
            return false;
        }
        let Some(slot) = self.workers[worker].alloc(&self.table, class) else {
            self.table.release_admission();
            return false;
        };
        let [original, reply] = keys(class, self.next);
        let entry = slot.entry(&self.table);
        entry.store_key(ORIGINAL, &original);
        entry.store_key(REPLY, &reply);
        self.table.insert(&slot, &original, &reply).expect("a tuple that nobody has, and an index that has room");
        entry.publish(self.workers[worker].next_id(&self.table));
        self.live[worker].push(slot);
        (self.next, self.created) = (self.next + 1, self.created + 1);
        true
    }

    /// First packets until so many of them have made a connection; how many did not. Fewer than asked for where loop
    /// after loop gains nothing.
    fn open(&mut self, worker: usize, class: Class, count: usize) -> usize {
        let wanted = self.live[worker].len() + count;
        let (mut refused, mut in_vain) = (0, 0);
        while self.live[worker].len() < wanted && in_vain < PATIENCE {
            let before = self.live[worker].len();
            for _ in 0..BURST.min(wanted - before) {
                refused += usize::from(!self.open_one(worker, class));
            }
            in_vain = if self.live[worker].len() > before { 0 } else { in_vain + 1 };
            self.turn();
        }
        refused
    }

    /// Ends so many of a worker's connections, any of them.
    fn end(&mut self, worker: usize, count: usize, random: &mut Random) {
        for n in 0..count {
            let at = random.below(self.live[worker].len());
            let slot = self.live[worker].swap_remove(at);
            common::end(&self.table, &mut self.workers[worker], slot);
            self.table.release_admission();
            self.ended += 1;
            if n % BURST == BURST - 1 {
                self.turn();
            }
        }
    }

    fn end_all(&mut self, worker: usize, random: &mut Random) {
        self.end(worker, self.live[worker].len(), random);
    }

    /// Segments that a worker leases, of each class.
    fn leased(&self, worker: usize) -> [usize; Class::ALL.len()] {
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        let own = self.table.region().directory().iter().filter(|s| usize::from(s.owner.load(relaxed)) == worker);
        let classes: Vec<u8> = own.map(|segment| segment.class.load(relaxed)).collect();
        Class::ALL.map(|class| classes.iter().filter(|c| **c == class as u8).count())
    }

    /// Everything adds up.
    fn check(&self) {
        let live: usize = self.live.iter().map(Vec::len).sum();
        let mut seen = 0;
        self.table.region().for_each(|_| seen += 1);
        assert_eq!((seen, self.table.live() as usize, (self.created - self.ended) as usize), (live, live, live));
    }
}

/// As many segments as `capacity` connections of a class fill, and not one more.
fn exactly(capacity: u32, class: Class) -> u32 {
    capacity.div_ceil(class.per_segment())
}

#[test]
fn a_worker_alone_fills_the_table_to_the_last_entry_whichever_did_so_before() {
    for class in Class::ALL {
        let capacity = 4 * class.per_segment();
        let mut router = Router::new(capacity, exactly(capacity, class));
        let mut random = Random(1);
        for worker in [0, 1, 2, 1, 0] {
            let refused = router.open(worker, class, capacity as usize);
            assert_eq!(router.live[worker].len(), capacity as usize, "{class:?} by worker {worker}");
            // Who has something for nothing gives a segment a loop to who is short.
            assert!(refused <= 4 * BURST, "{refused} first packets of worker {worker} refused");
            router.check();
            assert!(!router.open_one((worker + 1) % WORKERS, class));
            router.end_all(worker, &mut random);
            router.settle();
            router.check();
        }
    }
}

#[test]
fn a_worker_alone_fills_the_table_with_one_class_after_the_other() {
    // The class with most lines is what the slab is made for.
    let capacity = 4 * Class::Tcp6.per_segment();
    let mut router = Router::new(capacity, exactly(capacity, Class::Tcp6));
    let mut random = Random(2);
    for class in [Class::Tcp6, Class::Udp4, Class::Tcp6, Class::Tcp4, Class::Udp6, Class::Tcp6] {
        let refused = router.open(0, class, capacity as usize);
        assert_eq!((router.live[0].len(), refused), (capacity as usize, 0), "{class:?}");
        router.check();
        router.end_all(0, &mut random);
        router.settle();
    }
}

#[test]
fn an_idle_worker_keeps_at_most_a_segment_of_each_class_and_none_that_another_needs() {
    let capacity = 100_000;
    let mut router = Router::new(capacity, SlabLayout::for_capacity(capacity, WORKERS).segments);
    let mut random = Random(3);
    for class in Class::ALL {
        router.open(0, class, capacity as usize);
        assert_eq!(router.live[0].len(), capacity as usize);
        router.end_all(0, &mut random);
        router.settle();
    }
    while router.tick() {}
    assert_eq!(router.leased(0), [1; Class::ALL.len()], "one to be filled");
    // The slab has room for that: nobody is short, and nothing is taken from the idle one.
    assert_eq!(router.open(1, Class::Tcp6, capacity as usize), 0);
    assert_eq!((router.live[1].len(), router.leased(0)), (capacity as usize, [1; Class::ALL.len()]));
    router.end_all(1, &mut random);
    router.settle();
    // More entries than may live; the slab is short of segments then, and gets those that are kept for nothing.
    let all = router.table.region().layout().segments as usize;
    for _ in 0..PATIENCE {
        while let Some(slot) = router.workers[2].alloc(&router.table, Class::Tcp6) {
            router.live[2].push(slot);
        }
        router.turn();
    }
    assert_eq!(router.live[2].len(), all * Class::Tcp6.per_segment() as usize);
    assert_eq!([0, 1].map(|worker| router.leased(worker)), [[0; Class::ALL.len()]; 2]);
}

#[test]
fn a_connection_that_lives_on_keeps_its_segment_from_others_and_nothing_else() {
    const STAYING: u32 = 2;
    let class = Class::Tcp6;
    let capacity = 6 * class.per_segment();
    let mut router = Router::new(capacity, exactly(capacity, class));
    let mut random = Random(4);
    router.open(0, class, capacity as usize);
    // The first of each of some segments.
    let staying: Vec<Slot> = (0..STAYING)
        .map(|n| {
            let line = n * SEGMENT_LINES;
            let at = router.live[0].iter().position(|slot| slot.entry(&router.table).line() == line).unwrap();
            router.live[0].swap_remove(at)
        })
        .collect();
    router.end_all(0, &mut random);
    router.settle();
    router.open(1, class, capacity as usize);
    assert_eq!(router.table.live(), capacity - STAYING * (class.per_segment() - 1));
    assert_eq!(router.leased(0).iter().sum::<usize>(), STAYING as usize);
    // Its own worker has the rest of them.
    router.open(0, class, capacity as usize);
    assert_eq!(router.table.live(), capacity);
    router.live[0].extend(staying);
    router.check();
}

#[test]
fn after_any_mixture_of_skews_nothing_is_stranded() {
    for seed in 1..=6 {
        println!("seed {seed}");
        let mut random = Random(seed);
        let capacity = 3 * Class::Tcp6.per_segment();
        let mut router = Router::new(capacity, SlabLayout::for_capacity(capacity, WORKERS).segments);
        for _ in 0..12 {
            // Most of what comes goes to one worker, and most of what ends was another's.
            let (busy, class) = (random.below(WORKERS), Class::ALL[random.below(Class::ALL.len())]);
            for worker in 0..WORKERS {
                let free = (capacity - router.table.live()) as usize;
                let share = if worker == busy { free } else { free / 16 };
                router.open(worker, class, share);
                if random.below(2) == 0 {
                    router.tick();
                }
            }
            router.check();
            for worker in 0..WORKERS {
                let live = router.live[worker].len();
                let count = if random.below(3) == 0 { live } else { live - live / (2 + random.below(8)) };
                router.end(worker, count, &mut random);
            }
            router.check();
        }
        for worker in 0..WORKERS {
            (0..WORKERS).for_each(|worker| router.end_all(worker, &mut random));
            router.settle();
            router.check();
            assert_eq!(router.table.live(), 0);
            router.open(worker, Class::Tcp6, capacity as usize);
            assert_eq!(router.live[worker].len(), capacity as usize, "seed {seed}, worker {worker}");
        }
        (0..WORKERS).for_each(|worker| router.end_all(worker, &mut random));
        router.settle();
        while router.tick() {}
        for worker in 0..WORKERS {
            assert!(router.leased(worker).into_iter().all(|count| count <= 1), "{:?}", router.leased(worker));
        }
        router.check();
    }
}

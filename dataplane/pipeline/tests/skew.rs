//! Traffic that one worker gets, and then another: none of what the first one had is out of the second one's reach.

mod common;

use std::time::Duration;

use common::{INSIDE, Router, first};
use erhu_nat::Rng;
use erhu_pipeline::{BURST, Heap};
use erhu_planes::DropReason;
use erhu_planes::connections::{Class, SEGMENT};
use erhu_planes::program::{AddressRange, Pool, PortRange};

const WORKERS: usize = 2;
/// As many connections as fill some segments to the last entry.
const SEGMENTS: u32 = 3;
const CAPACITY: u32 = SEGMENTS * Class::Udp4.per_segment();
/// Loops in which nothing is gained, after which nothing will be.
const PATIENCE: usize = 100;

/// A pool with a port for each connection of a full table, and no more: each has an endpoint of its own.
fn pool() -> Pool {
    let (addresses, last) = ([[203, 0, 113, 1], [203, 0, 113, 2]], u16::try_from(1023 + CAPACITY / 2).unwrap());
    let [first, second] = addresses.map(|a| AddressRange { first: a.into(), last: a.into() });
    Pool { ports: PortRange { first: 1024, last }, paired: false, ..Pool::new("public", vec![first, second]) }
}

struct Skew {
    router: Router<Heap>,
    next: u32,
}

impl Skew {
    fn new(segments: Option<u32>) -> Self {
        Self { router: Router::new(CAPACITY, WORKERS, segments, Some(pool()), || Heap), next: 0 }
    }

    fn live(&self) -> u32 {
        self.router.shared.table.live()
    }

    /// First packets at the worker that `at` names, a burst a loop, until so many more connections live, or loop after
    /// loop gains none. Time stands still.
    fn open(&mut self, count: u32, mut at: impl FnMut() -> usize) {
        let wanted = self.live() + count;
        let mut in_vain = 0;
        while self.live() < wanted && in_vain < PATIENCE {
            let before = self.live();
            let burst = (wanted - before).min(u32::try_from(BURST).unwrap());
            let mut packets =
                (self.next..self.next + burst).map(|n| erhu_pipeline::HeapBuffer::new(&first(n))).collect();
            self.next += burst;
            let (now, worker) = (self.router.now(), &mut self.router.workers[at()]);
            worker.receive(INSIDE, &mut packets, now);
            (0..2).for_each(|port| worker.outbox(port).unwrap().clear());
            in_vain = if self.live() > before { 0 } else { in_vain + 1 };
            self.router.turn();
        }
    }

    /// Nobody speaks until every connection's time is over.
    fn end_all(&mut self) {
        self.router.pass(Duration::from_secs(600));
        self.router.settle();
        self.check();
        assert_eq!(self.live(), 0);
    }

    /// Connections, ports and entries add up.
    fn check(&self) {
        let shared = &self.router.shared;
        let [made, ended] = self.router.made_and_ended();
        assert_eq!(made - ended, u64::from(self.live()));
        let mut seen = 0;
        shared.table.region().for_each(|_| seen += 1);
        assert_eq!(seen, self.live());
        let pool = &shared.nat.status(&shared.policy().unwrap().pools)[0];
        assert_eq!(pool.given - pool.returned, u64::from(self.live()), "a port for each");
    }

    /// What is left when everything has ended and some time has passed.
    fn check_idle(&mut self) {
        self.end_all();
        (0..SEGMENTS + 8).for_each(|_| self.router.tick());
        let shared = &self.router.shared;
        // The one that it would fill next.
        assert!(shared.table.slab_bytes_in_use() <= WORKERS * SEGMENT);
        let pool = &shared.nat.status(&shared.policy().unwrap().pools)[0];
        assert_eq!((pool.hosts, pool.given), (0, pool.returned));
    }
}

#[test]
fn a_worker_alone_fills_the_table_and_takes_the_last_port_whichever_did_so_before() {
    let mut skew = Skew::new(Some(SEGMENTS));
    for worker in [0, 1, 0, 0, 1, 1] {
        skew.open(CAPACITY, || worker);
        assert_eq!(skew.live(), CAPACITY, "by worker {worker}");
        skew.check();
        skew.end_all();
    }
    skew.check_idle();
    let drops = skew.router.drops();
    // First packets that came while the other worker gave back its segments, one a loop, each time that it had any.
    assert!(
        drops.iter().all(|(reason, n)| *reason == DropReason::TableFull && *n <= 3 * 4 * BURST as u64),
        "{drops:?}"
    );
}

#[test]
fn after_any_mixture_of_skews_a_worker_alone_fills_the_table() {
    for seed in 1..=3 {
        println!("seed {seed}");
        let (mut skew, mut rng) = (Skew::new(None), Rng::new(seed));
        for _ in 0..8 {
            // In a hundred bursts so many reach worker 1.
            let share = [0, 5, 50, 95, 100][rng.below(5) as usize];
            let count = rng.below(CAPACITY - skew.live() + 1);
            skew.open(count, || usize::from(rng.below(100) < share));
            skew.check();
            // Shorter than an unanswered datagram is remembered, or longer.
            skew.router.pass(Duration::from_secs(u64::from(rng.below(45))));
            skew.router.settle();
            skew.check();
        }
        for worker in [1, 0] {
            skew.end_all();
            skew.open(CAPACITY, || worker);
            assert_eq!(skew.live(), CAPACITY, "seed {seed}, worker {worker}");
        }
        skew.check_idle();
    }
}

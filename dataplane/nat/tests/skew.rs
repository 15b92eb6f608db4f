//! Ports, hosts and records when all that opens connections is one worker, or one host, and then another.

mod common;

use std::collections::BTreeSet;
use std::net::IpAddr;

use common::*;
use erhu_nat::{Exhausted, Lease, Nat, Pools, Rng, Target};
use erhu_planes::Tuple;
use erhu_planes::program::{Behaviour, Pool};
use erhu_planes::tuple::proto;

const WORKERS: u16 = 4;
const PORTS: u16 = 500;

/// Workers that would each like a quarter of the ports: those whose answers reach it.
struct Router {
    nat: Nat,
    pools: Pools,
    workers: Vec<Worker>,
    /// Connections by worker.
    live: Vec<Vec<Lease>>,
    /// As a connection table has them, towards the one remote.
    taken: BTreeSet<(IpAddr, u16)>,
    sport: u16,
}

impl Router {
    fn new(pool: Pool) -> Self {
        let nat = Nat::new(1);
        let pools = compile(&nat, &[pool]);
        let workers = (0..WORKERS).map(|n| Worker::new(n.into())).collect();
        Self { nat, pools, workers, live: vec![Vec::new(); WORKERS.into()], taken: BTreeSet::new(), sport: 0 }
    }

    /// One more connection, from an endpoint of its own to the same server.
    fn open(&mut self, worker: u16) -> Result<(), Exhausted> {
        self.sport = self.sport.wrapping_add(1);
        let host = format!("10.0.{}.{}", worker, self.sport % 50);
        let wish = wish(Target::Pool(self.pools.get(0).unwrap()), udp(&host, self.sport));
        let own = |_: IpAddr, port: u16| port % WORKERS == worker;
        let rng = &mut self.workers[usize::from(worker)].rng;
        for attempt in 0.. {
            let lease = self.nat.choose(&wish, attempt, rng, own)?;
            if self.taken.insert((lease.address, lease.port)) {
                self.live[usize::from(worker)].push(lease);
                break;
            }
            self.nat.release_at_once(&lease);
        }
        Ok(())
    }

    fn end(&mut self, worker: u16, count: usize, random: &mut Rng) {
        let live = &mut self.live[usize::from(worker)];
        for _ in 0..count.min(live.len()) {
            let at = random.below(u32::try_from(live.len()).unwrap()) as usize;
            let lease = live.swap_remove(at);
            self.nat.release(&lease, 0);
            self.taken.remove(&(lease.address, lease.port));
        }
    }

    fn in_use(&self) -> usize {
        usize::try_from(in_use(&self.nat, &self.pools, 0)).unwrap()
    }
}

#[test]
fn a_worker_alone_gets_every_port_of_a_pool_whichever_had_them_before() {
    for mapping in [Behaviour::EndpointIndependent, Behaviour::AddressDependent, Behaviour::AddressPortDependent] {
        let two = "203.0.113.1-203.0.113.2";
        let range = ports(2000, 2000 + PORTS - 1);
        let mut router = Router::new(Pool { mapping, ports: range, paired: false, ..pool("p", two) });
        let all = 2 * usize::from(PORTS);
        let is_full = |router: &mut Router, worker| {
            // A port that connections share is looked for a bounded number of times, from where each begins.
            let mut in_vain = 0;
            while in_vain < 50 {
                in_vain = if router.open(worker).is_ok() { 0 } else { in_vain + 1 };
            }
            let found = router.taken.len();
            let enough = if mapping == Behaviour::AddressPortDependent { all * 99 / 100 } else { all };
            assert!((enough..=all).contains(&found), "{mapping:?}: {found} of {all} by worker {worker}");
            assert_eq!(router.in_use(), found);
        };
        let mut random = Rng::new(1);
        for worker in [0, 1, 3, 2, 0] {
            is_full(&mut router, worker);
            router.end(worker, all, &mut random);
            assert_eq!(router.in_use(), 0);
        }
        for seed in 1..=3 {
            println!("seed {seed}");
            let mut random = Rng::new(seed);
            for _ in 0..4 {
                let busy = u16::try_from(random.below(WORKERS.into())).unwrap();
                is_full(&mut router, busy);
                (0..WORKERS).for_each(|worker| {
                    let part = random.below(u32::from(PORTS)) as usize;
                    router.end(worker, part, &mut random);
                });
            }
            (0..WORKERS).for_each(|worker| router.end(worker, all, &mut random));
            let status = &router.nat.status(&router.pools)[0];
            assert_eq!((router.in_use(), status.hosts, status.given), (0, 0, status.returned));
        }
    }
}

#[test]
fn mapping_records_that_one_host_no_longer_needs_serve_any_other() {
    const MAPPINGS: u16 = 20_000;
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let pools = compile(&nat, &[pool("p", "203.0.113.1-203.0.113.4")]);
    let mut all_of = |host: u8| {
        let leases: Vec<Lease> = (0..MAPPINGS)
            .map(|n| {
                let original = Tuple { src: [10, 0, 0, host].into(), ..flow(proto::TCP, "10.0.0.1", 1024 + n) };
                worker.pool(&nat, &pools, 0, original).unwrap()
            })
            .collect();
        let bytes = nat.bytes_in_use();
        leases.iter().for_each(|lease| nat.release(lease, 0));
        nat.tidy(0);
        bytes
    };
    let first = all_of(0);
    let last = (1..40).map(&mut all_of).last().unwrap();
    // Hosts are kept behind 256 locks; behind each some records may wait for the next of its own, and no more.
    let waiting = 256 * 96 * 16;
    assert!(last <= first + waiting + (64 << 10), "{first} bytes for the first host, {last} for the last");
}

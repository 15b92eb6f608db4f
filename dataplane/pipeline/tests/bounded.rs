//! What a worker does between bursts is bounded, whatever there is to do.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use erhu_nat::Nat;
use erhu_pipeline::policy::PortFacts;
use erhu_pipeline::{BURST, Control, Heap, HeapBuffer, Job, JobKind, Now, Pending, Shared, Worker};
use erhu_planes::DropReason;
use erhu_planes::connections::{ConnectionsRegion, SlabLayout};
use erhu_planes::events::EventsRegion;
use erhu_planes::program::{
    Encapsulation, Interface, InterfaceAddress, Neighbour, Prefix, Program, Route, RouteTarget,
};
use erhu_planes::protocol::{Request, Status};
use erhu_planes::region::Region;
use erhu_planes::stats::StatsRegion;
use erhu_table::Table;
use erhu_wire::{arp, checksum, ethernet, ipv4};

const PORTS: [&str; 2] = ["a", "b"];
const HOST_MAC: [u8; 6] = [2, 9, 9, 9, 9, 9];
/// Loops after which something that should end never will.
const PATIENCE: usize = 1_000_000;

fn mac(port: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, u8::try_from(port).unwrap()]
}

/// `a` 10.1.0.1/16 — router — `b` 10.2.0.1/16, one zone, everything accepted. Behind the known neighbour 10.2.0.2 is
/// everything else.
fn program() -> Program {
    let mut program = Program::empty();
    for (number, port) in PORTS.iter().enumerate() {
        let net = u8::try_from(number + 1).unwrap();
        program.interfaces.push(Interface {
            name: (*port).into(),
            port: (*port).into(),
            encapsulation: Encapsulation::Untagged,
            zone: 0,
            addresses: vec![InterfaceAddress { address: [10, net, 0, 1].into(), length: 16 }],
            mtu: 1500,
            mac: None,
            proxy_arp: false,
        });
        program.neighbours.push(Neighbour {
            interface: u16::try_from(number).unwrap(),
            address: [10, net, 0, 2].into(),
            mac: HOST_MAC,
        });
    }
    for (net, hop) in [([0, 0, 0, 0], [10, 2, 0, 2]), ([10, 1, 1, 0], [10, 1, 0, 2])] {
        let length = if net == [0; 4] { 0 } else { 24 };
        program.routes.push(Route {
            zone: 0,
            prefix: Prefix::new(net.into(), length).unwrap(),
            target: RouteTarget::Via(hop.into()),
            metric: 0,
        });
    }
    program
}

struct Router {
    shared: Arc<Shared<HeapBuffer>>,
    control: Control<HeapBuffer>,
    worker: Worker<Heap>,
    now_ns: u64,
}

impl Router {
    fn new(capacity: u32) -> Self {
        let layout = SlabLayout::for_capacity(capacity, 1);
        let slab = Region::anonymous("connections", layout.size()).unwrap();
        let slab = ConnectionsRegion::create(slab, layout, capacity, 1).unwrap();
        let table = Table::new(slab, capacity, 1, 7, true).unwrap();
        let stats = Region::anonymous("stats", StatsRegion::size(1)).unwrap();
        let stats = StatsRegion::create(stats, 1, &PORTS.map(String::from), 1).unwrap();
        let events = Region::anonymous("events", EventsRegion::size(1, 64)).unwrap();
        let events = EventsRegion::create(events, 1, 64, 1).unwrap();
        let shared = Arc::new(Shared::new(table, Nat::new(3), stats, events, 1, PORTS.len()));
        let ports = PORTS.iter().enumerate().map(|(n, p)| PortFacts { name: (*p).into(), mac: mac(n) }).collect();
        let mut control = Control::new(shared.clone(), ports, Status::default());
        control.adopt(program().encode().unwrap(), 0).unwrap();
        let policy = shared.policy().unwrap();
        let worker = Worker::new(shared.clone(), 0, policy, Heap, 5);
        Self { shared, control, worker, now_ns: 1_000_000_000 }
    }

    fn now(&self) -> Now {
        Now::new(self.now_ns, self.now_ns)
    }

    fn pass(&mut self, time: Duration) {
        self.now_ns += u64::try_from(time.as_nanos()).unwrap();
    }

    /// One loop without packets; `true` when nothing is left to do.
    fn turn(&mut self) -> bool {
        self.worker.between_bursts(self.now())
    }

    /// Loops until there is nothing to do; the most connections that one of them ended.
    fn settle(&mut self) -> u32 {
        let (mut most, mut live) = (0, self.live());
        for _ in 0..PATIENCE {
            let done = self.turn();
            most = most.max(live - self.live());
            live = self.live();
            if done {
                return most;
            }
        }
        panic!("it never ends");
    }

    fn live(&self) -> u32 {
        self.shared.table.live()
    }

    /// A burst of first packets of flows from `first` on.
    fn open(&mut self, first: u32, count: usize) {
        let mut burst: Vec<HeapBuffer> = (first..).take(count).map(|n| flow(n, [192, 0, 2, 1])).collect();
        let now = self.now();
        self.worker.receive(0, &mut burst, now);
        self.worker.outbox(1).unwrap().clear();
    }

    fn open_many(&mut self, count: u32) {
        for first in (0..count).step_by(BURST) {
            self.open(first, BURST.min((count - first) as usize));
            self.turn();
        }
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.worker.publish();
        self.shared.stats.worker(0).unwrap().drops[reason.index()].load(Ordering::Relaxed)
    }

    fn ids(&self) -> Vec<(u32, u64)> {
        let mut ids = Vec::new();
        self.shared.table.region().for_each(|connection| ids.push((connection.line, connection.id)));
        ids
    }
}

/// The first packet of flow `n`, from 10.1.1.x to an address.
fn flow(n: u32, to: [u8; 4]) -> HeapBuffer {
    let mut frame = vec![0; 14 + 20 + 8 + 4];
    ethernet::write_header(&mut frame, mac(0), HOST_MAC, None, ethernet::IPV4).unwrap();
    let src = [10, 1, 1, 2 + u8::try_from(n >> 16).unwrap()].into();
    let header =
        ipv4::Header { src, dst: to.into(), proto: 17, ttl: 64, tos: 0, id: 0, dont_fragment: false, payload: 12 };
    header.write(&mut frame[14..]).unwrap();
    frame[34..36].copy_from_slice(&u16::try_from(n & 0xffff).unwrap().to_be_bytes());
    frame[36..38].copy_from_slice(&53_u16.to_be_bytes());
    frame[38..40].copy_from_slice(&12_u16.to_be_bytes());
    checksum::fill_l4_v4(&mut frame[14..], 20, 17);
    HeapBuffer::new(&frame)
}

/// N7: a flush of everything ends sixteen connections a loop, so other packets wait no longer than for that; and so do a
/// list of deletions and connections whose time is over.
#[test]
fn a_flush_a_list_of_deletions_and_an_expiry_storm_end_a_few_connections_a_loop_and_all_in_the_end() {
    const MANY: u32 = 5_000;
    let mut router = Router::new(1 << 14);
    router.open_many(MANY);
    assert_eq!(router.live(), MANY);
    let job = Job::new(JobKind::Flush(None), 1);
    assert!(router.shared.start(&job));
    assert!(router.settle() <= 16);
    assert_eq!((router.live(), job.result()), (0, Some(MANY.into())));

    router.open_many(MANY);
    let mut ids = router.ids();
    ids.insert(17, (3, 0));
    ids.push((1 << 30, 5));
    let job = Job::new(JobKind::Delete(ids), 1);
    assert!(router.shared.start(&job));
    assert!(router.settle() <= 16);
    assert_eq!((router.live(), job.result()), (0, Some(MANY.into())), "two that are nobody's aside");

    router.open_many(MANY);
    router.turn();
    router.pass(Duration::from_secs(600));
    assert!(router.settle() <= 16);
    assert_eq!(router.live(), 0);
}

#[test]
fn endings_keep_up_with_a_storm_of_openings() {
    let mut router = Router::new(1 << 14);
    // Unanswered datagrams live for 30 s, and the table for 16384: 64 a loop, and 200 ms between loops.
    for loops in 0..2_000_u32 {
        router.open(loops * 64, 64);
        router.turn();
        router.pass(Duration::from_millis(200));
    }
    let overdue = router.live().saturating_sub(64 * 5 * 30);
    assert!(overdue < 64 * 5, "{overdue} connections should have ended");
    assert_eq!(router.drops(DropReason::TableFull), 0);
}

#[test]
fn neither_an_old_policy_nor_a_done_job_is_freed_by_a_worker() {
    let mut router = Router::new(1 << 10);
    let old = Arc::downgrade(&router.shared.policy().unwrap());
    router.control.adopt(program().encode().unwrap(), 0).unwrap();
    assert_eq!(router.shared.tidy(), 1, "the worker still runs it");
    router.turn();
    assert_eq!(old.strong_count(), 1, "the worker let it go, and it is kept");
    assert_eq!(router.shared.tidy(), 0);
    assert_eq!(old.strong_count(), 0);

    let pending = router.control.request(&Request::Delete { connections: vec![(0, 1); 1000] }, None, 0);
    let Pending::Job(job) = pending else { panic!("{pending:?}") };
    router.settle();
    let kept = Arc::downgrade(&job);
    drop(job);
    assert_eq!(kept.strong_count(), 1, "the worker let it go, and it is kept");
    assert_eq!(router.shared.tidy(), 0);
    assert_eq!(kept.strong_count(), 0);
}

/// The answer of a host of `b`'s prefix.
fn arp_answer(host: [u8; 4]) -> HeapBuffer {
    let mut frame = vec![0; 14 + arp::BYTES];
    ethernet::write_header(&mut frame, mac(1), HOST_MAC, None, ethernet::ARP).unwrap();
    let asked = arp::Arp::request(mac(1), [10, 2, 0, 1].into(), host.into());
    arp::write(&asked.reply(HOST_MAC), &mut frame[14..]).unwrap();
    HeapBuffer::new(&frame)
}

#[test]
fn a_thousand_unknown_neighbours_are_asked_and_given_up_a_few_a_loop_and_one_that_answers_is_served_at_once() {
    let mut router = Router::new(1 << 14);
    let hosts: Vec<[u8; 4]> = (0..1000_u16).map(|n| [10, 2, 1 + (n >> 8) as u8, (n & 0xff) as u8]).collect();
    for (n, host) in (0..).zip(&hosts) {
        let now = router.now();
        router.worker.receive(0, &mut vec![flow(n, *host), flow(n + 2000, *host)], now);
    }
    assert_eq!(router.worker.outbox(1).unwrap().drain(..).count(), 1000, "one request each");
    let now = router.now();
    router.worker.receive(1, &mut vec![arp_answer(hosts[999])], now);
    assert_eq!(router.worker.outbox(1).unwrap().drain(..).count(), 2, "its two packets");
    for second in 1..=2 {
        router.pass(Duration::from_secs(1));
        let mut asked = 0;
        let mut loops = 0;
        while !router.turn() {
            let sent = router.worker.outbox(1).unwrap().drain(..).count();
            assert!(sent <= 64, "{sent}");
            asked += sent;
            loops += 1;
        }
        asked += router.worker.outbox(1).unwrap().drain(..).count();
        assert_eq!(asked, 999, "asked again after {second} s");
        assert!(loops >= 999 / 64);
    }
    router.pass(Duration::from_secs(1));
    let mut given_up = 0;
    for _ in 0..PATIENCE {
        let done = router.turn();
        let dropped = router.drops(DropReason::NoNeighbour);
        assert!(dropped - given_up < 128);
        given_up = dropped;
        if done {
            break;
        }
    }
    assert_eq!(given_up, 2 * 999);
}

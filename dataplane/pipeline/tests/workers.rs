//! Two workers on two threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use erhu_nat::Nat;
use erhu_pipeline::policy::PortFacts;
use erhu_pipeline::{Buffer, Control, Heap, HeapBuffer, Now, Shared, Worker};
use erhu_planes::Counter;
use erhu_planes::connections::{ConnectionsRegion, SlabLayout};
use erhu_planes::events::EventsRegion;
use erhu_planes::program::{
    Encapsulation, Interface, InterfaceAddress, Neighbour, Prefix, Program, Route, RouteTarget,
};
use erhu_planes::protocol::Status;
use erhu_planes::region::Region;
use erhu_planes::stats::StatsRegion;
use erhu_table::Table;
use erhu_wire::{checksum, ethernet, ipv4};

const PORTS: [&str; 2] = ["a", "b"];
const HOST_MAC: [u8; 6] = [2, 9, 9, 9, 9, 9];

fn mac(port: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, u8::try_from(port).unwrap()]
}

/// `a` 10.0.1.1/24 — router — `b` 10.0.2.1/24, one zone, everything accepted, neighbours known.
fn program(hosts: u8) -> Program {
    let mut program = Program::empty();
    for (number, port) in PORTS.iter().enumerate() {
        let net = u8::try_from(number + 1).unwrap();
        program.interfaces.push(Interface {
            name: (*port).into(),
            port: (*port).into(),
            encapsulation: Encapsulation::Untagged,
            zone: 0,
            addresses: vec![InterfaceAddress { address: [10, 0, net, 1].into(), length: 24 }],
            mtu: 1500,
            mac: None,
            proxy_arp: false,
        });
        for host in 2..2 + hosts {
            program.neighbours.push(Neighbour {
                interface: u16::try_from(number).unwrap(),
                address: [10, 0, net, host].into(),
                mac: HOST_MAC,
            });
        }
    }
    program.routes.push(Route {
        zone: 0,
        prefix: Prefix::new([0, 0, 0, 0].into(), 0).unwrap(),
        target: RouteTarget::Blackhole,
        metric: 0,
    });
    program
}

fn shared(workers: usize) -> (Arc<Shared<HeapBuffer>>, Control<HeapBuffer>) {
    let capacity = 1 << 16;
    let layout = SlabLayout::for_capacity(capacity, workers);
    let slab = Region::anonymous("connections", layout.size()).unwrap();
    let slab = ConnectionsRegion::create(slab, layout, capacity, 1).unwrap();
    let table = Table::new(slab, capacity, workers, 7, false).unwrap();
    let stats = Region::anonymous("stats", StatsRegion::size(workers)).unwrap();
    let stats = StatsRegion::create(stats, workers, &PORTS.map(String::from), 1).unwrap();
    let events = Region::anonymous("events", EventsRegion::size(workers, 64)).unwrap();
    let events = EventsRegion::create(events, workers, 64, 1).unwrap();
    let shared = Arc::new(Shared::new(table, Nat::new(3), stats, events, workers, PORTS.len()));
    let ports = PORTS.iter().enumerate().map(|(n, p)| PortFacts { name: (*p).into(), mac: mac(n) }).collect();
    let control = Control::new(shared.clone(), ports, Status::default());
    (shared, control)
}

/// A UDP datagram from one side of flow `n` to the other.
fn udp(from: usize, n: u16, hosts: u8) -> HeapBuffer {
    let mut frame = vec![0; 14 + 20 + 8 + 4];
    ethernet::write_header(&mut frame, mac(from), HOST_MAC, None, ethernet::IPV4).unwrap();
    let host = 2 + u8::try_from(n % u16::from(hosts)).unwrap();
    let ends = [[10, 0, 1, host], [10, 0, 2, host]];
    let (src, dst) = (ends[from].into(), ends[1 - from].into());
    let header = ipv4::Header { src, dst, proto: 17, ttl: 64, tos: 0, id: 0, dont_fragment: false, payload: 12 };
    header.write(&mut frame[14..]).unwrap();
    let ports = [1000 + n, 20_000 + n];
    frame[34..36].copy_from_slice(&ports[from].to_be_bytes());
    frame[36..38].copy_from_slice(&ports[1 - from].to_be_bytes());
    frame[38..40].copy_from_slice(&12_u16.to_be_bytes());
    checksum::fill_l4_v4(&mut frame[14..], 20, 17);
    HeapBuffer::new(&frame)
}

/// N9: ten thousand times, both directions of a flow arrive first at the same instant on two workers. There is one
/// connection, no packet is lost, and no port changes.
#[test]
fn both_directions_first_at_once_on_two_workers_make_one_connection_and_lose_nothing() {
    const FLOWS: u16 = 10_000;
    const HOSTS: u8 = 200;
    let (shared, mut control) = shared(2);
    control.adopt(program(HOSTS).encode().unwrap(), 0).unwrap();
    let policy = shared.policy().unwrap();
    let (turn, finished) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..2)
        .map(|side: usize| {
            let (shared, policy) = (shared.clone(), policy.clone());
            let (turn, finished, stop) = (turn.clone(), finished.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut worker = Worker::new(shared, side, policy, Heap, 5);
                let now = Now::new(1_000_000_000, 0);
                let mut sent: [Vec<HeapBuffer>; 2] = Default::default();
                let mut collect = |worker: &mut Worker<Heap>| {
                    for (port, sent) in sent.iter_mut().enumerate() {
                        sent.append(worker.outbox(port).unwrap());
                    }
                };
                for n in 0..FLOWS {
                    // Both workers leave this line together.
                    turn.fetch_add(1, Ordering::SeqCst);
                    while turn.load(Ordering::SeqCst) < 2 * (u64::from(n) + 1) {
                        std::hint::spin_loop();
                        std::thread::yield_now();
                    }
                    worker.receive(u16::try_from(side).unwrap(), &mut vec![udp(side, n, HOSTS)], now);
                    worker.flush_handovers();
                    worker.take_handed(now);
                    worker.between_bursts(now);
                    collect(&mut worker);
                }
                finished.fetch_add(1, Ordering::SeqCst);
                while !stop.load(Ordering::SeqCst) {
                    worker.take_handed(now);
                    worker.flush_handovers();
                    worker.between_bursts(now);
                    collect(&mut worker);
                    std::thread::yield_now();
                }
                worker.publish();
                sent
            })
        })
        .collect();
    while finished.load(Ordering::SeqCst) < 2 {
        std::thread::yield_now();
    }
    std::thread::sleep(std::time::Duration::from_millis(50));
    stop.store(true, Ordering::SeqCst);
    let mut left = [0; 2];
    for thread in threads {
        for (port, frames) in thread.join().unwrap().into_iter().enumerate() {
            for frame in frames {
                let (src, dst) = (port_at(&frame, 34), port_at(&frame, 36));
                // What leaves by `b` came from `a`: neither port was changed.
                let (inside, outside) = if port == 1 { (src, dst) } else { (dst, src) };
                assert_eq!((inside - 1000, outside), (outside - 20_000, outside));
                left[port] += 1;
            }
        }
    }
    let block = |worker: usize| shared.stats.worker(worker).unwrap();
    let total = |of: &dyn Fn(usize) -> u64| of(0) + of(1);
    assert_eq!(left, [usize::from(FLOWS); 2]);
    assert_eq!(total(&|w| block(w).created.load(Ordering::Relaxed)), u64::from(FLOWS));
    assert_eq!(total(&|w| block(w).drops.iter().map(|d| d.load(Ordering::Relaxed)).sum()), 0);
    assert_eq!(shared.table.live(), u32::from(FLOWS));
}

fn port_at(frame: &HeapBuffer, at: usize) -> u16 {
    u16::from_be_bytes([frame.frame()[at], frame.frame()[at + 1]])
}

/// A worker of that number for whose packets this thread waits.
fn worker(shared: &Arc<Shared<HeapBuffer>>, number: usize) -> Worker<Heap> {
    Worker::new(shared.clone(), number, shared.policy().unwrap(), Heap, 5)
}

/// Source ports of what leaves by `b`.
fn left(worker: &mut Worker<Heap>) -> Vec<u16> {
    worker.outbox(1).unwrap().drain(..).map(|frame| port_at(&frame, 34)).collect()
}

/// All packets come to one worker and belong to the other: batches come back empty and are filled again.
#[test]
fn handing_over_in_one_direction_allocates_no_batch_in_the_long_run() {
    let (shared, mut control) = shared(2);
    control.adopt(program(200).encode().unwrap(), 0).unwrap();
    let [mut other, mut owner] = [0, 1].map(|number| worker(&shared, number));
    let now = Now::new(1_000_000_000, 0);
    let burst = || (0..64).map(|n| udp(0, n, 200)).collect::<Vec<_>>();
    owner.receive(0, &mut burst(), now);
    let ports = left(&mut owner);
    assert_eq!(ports.len(), 64);
    let mut made = None;
    for _ in 0..50 {
        other.receive(0, &mut burst(), now);
        other.flush_handovers();
        assert_eq!(owner.take_handed(now), 64);
        assert_eq!(left(&mut owner), ports);
        let empties = shared.empties(0).len();
        assert!(empties > 0);
        assert_eq!(empties, *made.get_or_insert(empties));
        for worker in [&mut other, &mut owner] {
            worker.between_bursts(now);
        }
    }
    other.publish();
    let handed = &shared.stats.worker(0).unwrap().counters[Counter::HandedOver.index()];
    assert_eq!(handed.load(Ordering::Relaxed), 50 * 64);
}

/// By the time that a packet is taken its connection has ended, and its memory is another connection's: the packet is
/// the first of a new one.
#[test]
fn a_packet_whose_connection_ends_while_it_is_handed_over_opens_another_one() {
    let (shared, mut control) = shared(2);
    control.adopt(program(200).encode().unwrap(), 0).unwrap();
    let [mut other, mut owner] = [0, 1].map(|number| worker(&shared, number));
    let at = |seconds: u64| Now::new(seconds * 1_000_000_000, 0);
    let burst = |first: u16| (first..first + 64).map(|n| udp(0, n, 200)).collect::<Vec<_>>();
    owner.receive(0, &mut burst(0), at(1));
    let ports = left(&mut owner);
    other.receive(0, &mut burst(0), at(1));
    other.flush_handovers();
    // Nobody answered within half a minute. Workers are quiescent in turn until the entries are free again.
    for second in 30..40 {
        for worker in [&mut other, &mut owner] {
            worker.between_bursts(at(second));
        }
    }
    assert_eq!(shared.table.live(), 0);
    owner.receive(0, &mut burst(64), at(40));
    assert_eq!((left(&mut owner).len(), shared.table.live()), (64, 64));
    assert_eq!(owner.take_handed(at(40)), 64);
    assert_eq!((left(&mut owner), shared.table.live()), (ports, 128));
}

/// A packet is handed over, its connection ends, and the worker that it came to opens one with the same tuple: the packet
/// comes back to that one and leaves.
#[test]
fn a_packet_whose_connection_is_another_workers_by_now_goes_there_and_no_further() {
    let (shared, mut control) = shared(2);
    control.adopt(program(200).encode().unwrap(), 0).unwrap();
    let [mut other, mut owner] = [0, 1].map(|number| worker(&shared, number));
    let at = |seconds: u64| Now::new(seconds * 1_000_000_000, 0);
    let packet = || vec![udp(0, 1, 200)];
    owner.receive(0, &mut packet(), at(1));
    assert_eq!(left(&mut owner).len(), 1);
    other.receive(0, &mut packet(), at(1));
    other.flush_handovers();
    owner.between_bursts(at(40));
    assert_eq!(shared.table.live(), 0);
    other.receive(0, &mut packet(), at(40));
    assert_eq!((left(&mut other).len(), shared.table.live()), (1, 1));
    let mut taken = [0, 0];
    for _ in 0..10 {
        taken[0] += owner.take_handed(at(40));
        owner.flush_handovers();
        taken[1] += other.take_handed(at(40));
        other.flush_handovers();
        for worker in [&mut owner, &mut other] {
            worker.between_bursts(at(40));
        }
    }
    assert_eq!((taken, left(&mut other).len(), left(&mut owner).len()), ([1, 1], 1, 0));
}

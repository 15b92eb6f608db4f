//! Several workers on one thread, each with a poll loop's turns, and a virtual clock.
//!
//! ```text
//! 10.1.0.0/16 --- a [router] b --- 10.2.0.0/16      one zone, everything accepted, neighbours known;
//!                                                    what leaves by b comes from the pool, if there is one
//! ```
#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use erhu_nat::Nat;
use erhu_pipeline::policy::PortFacts;
use erhu_pipeline::{Buffers, Control, Now, Shared, Worker};
use erhu_planes::connections::{ConnectionsRegion, SlabLayout};
use erhu_planes::events::EventsRegion;
use erhu_planes::program::{
    Action, Encapsulation, Hook, Interface, InterfaceAddress, Match, MatchKey, Neighbour, Pool, Position, Program,
    Rule, Snat, SourceChoice,
};
use erhu_planes::protocol::Status;
use erhu_planes::region::Region;
use erhu_planes::stats::{StatsRegion, WorkerBlock};
use erhu_planes::{DropReason, TICKS_PER_SECOND};
use erhu_table::Table;
use erhu_wire::{checksum, ethernet, ipv4};

pub const INSIDE: u16 = 0;
pub const OUTSIDE: u16 = 1;
const PORTS: [&str; 2] = ["a", "b"];
const HOST_MAC: [u8; 6] = [2, 9, 9, 9, 9, 9];
/// Whom everybody talks to.
pub const SERVER: [u8; 4] = [10, 2, 0, 2];
/// Loops after which something that should end never will.
const PATIENCE: usize = 1_000_000;

fn mac(port: u16) -> [u8; 6] {
    [2, 0, 0, 0, 0, u8::try_from(port).unwrap()]
}

/// Two interfaces in `main`, all forwarded; with a pool, what leaves by the second is translated.
pub fn program(pool: Option<Pool>) -> Program {
    let mut program = Program::empty();
    for (net, port) in (1_u8..).zip(PORTS) {
        program.interfaces.push(Interface {
            name: port.into(),
            port: port.into(),
            encapsulation: Encapsulation::Untagged,
            zone: 0,
            addresses: vec![InterfaceAddress { address: [10, net, 0, 1].into(), length: 16 }],
            mtu: 1500,
            mac: None,
            proxy_arp: false,
        });
    }
    let mut is_at = |interface, address: [u8; 4]| {
        program.neighbours.push(Neighbour { interface, address: address.into(), mac: HOST_MAC });
    };
    is_at(OUTSIDE, SERVER);
    (2..=255).for_each(|host| is_at(INSIDE, [10, 1, 0, host]));
    if let Some(pool) = pool {
        let snat = Snat { source: SourceChoice::Pool(0), ports: None, random: false, persistent: false };
        program.hooks[Hook::Postrouting as usize].rules.push(Rule {
            at: Position::default(),
            matches: vec![Match { negated: false, key: MatchKey::Egress(vec![OUTSIDE]) }],
            actions: vec![Action::Snat(snat)],
        });
        program.pools.push(pool);
    }
    program
}

/// A frame to the router's own MAC address at a port, of 20 bytes IPv4, then what `l4` writes into so many bytes.
fn frame(port: u16, src: [u8; 4], dst: [u8; 4], proto: u8, l4: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 34 + l4.len()];
    ethernet::write_header(&mut frame, mac(port), HOST_MAC, None, ethernet::IPV4).unwrap();
    let payload = u16::try_from(l4.len()).unwrap();
    let (src, dst) = (src.into(), dst.into());
    let header = ipv4::Header { src, dst, proto, ttl: 64, tos: 0, id: 0, dont_fragment: false, payload };
    header.write(&mut frame[14..]).unwrap();
    frame[34..].copy_from_slice(l4);
    checksum::fill_l4_v4(&mut frame[14..], 20, proto);
    frame
}

/// A datagram that came in by a port.
pub fn udp(port: u16, (src, sport): ([u8; 4], u16), (dst, dport): ([u8; 4], u16)) -> Vec<u8> {
    let mut l4 = [0; 12];
    l4[..2].copy_from_slice(&sport.to_be_bytes());
    l4[2..4].copy_from_slice(&dport.to_be_bytes());
    l4[4..6].copy_from_slice(&12_u16.to_be_bytes());
    frame(port, src, dst, 17, &l4)
}

/// A TCP segment that came in by a port, with sequence and acknowledgement numbers, flags and so many bytes.
pub fn tcp(
    port: u16,
    (src, sport): ([u8; 4], u16),
    (dst, dport): ([u8; 4], u16),
    (seq, ack): (u32, u32),
    flags: u8,
    length: usize,
) -> Vec<u8> {
    let mut l4 = vec![0; 20 + length];
    l4[..2].copy_from_slice(&sport.to_be_bytes());
    l4[2..4].copy_from_slice(&dport.to_be_bytes());
    l4[4..8].copy_from_slice(&seq.to_be_bytes());
    l4[8..12].copy_from_slice(&ack.to_be_bytes());
    (l4[12], l4[13]) = (5 << 4, flags);
    l4[14..16].copy_from_slice(&60_000_u16.to_be_bytes());
    frame(port, src, dst, 6, &l4)
}

/// The first packet of inside endpoint `n`.
pub fn first(n: u32) -> Vec<u8> {
    let host = 2 + u8::try_from(n % 250).unwrap();
    udp(INSIDE, ([10, 1, 0, host], u16::try_from(n / 250 + 1).unwrap()), (SERVER, 53))
}

/// A router whose workers take turns.
pub struct Router<P: Buffers> {
    pub shared: Arc<Shared<P::Buffer>>,
    pub control: Control<P::Buffer>,
    pub workers: Vec<Box<Worker<P>>>,
    pub now_ns: u64,
}

impl<P: Buffers> Router<P> {
    /// With a slab of so many segments, or of as many as it should have.
    pub fn new(
        capacity: u32,
        workers: usize,
        segments: Option<u32>,
        pool: Option<Pool>,
        buffers: impl Fn() -> P,
    ) -> Self {
        let layout = segments.map_or(SlabLayout::for_capacity(capacity, workers), |segments| SlabLayout { segments });
        let slab = Region::anonymous("connections", layout.size()).unwrap();
        let slab = ConnectionsRegion::create(slab, layout, capacity, 1).unwrap();
        let table = Table::new(slab, capacity, workers, 7, false).unwrap();
        let stats = Region::anonymous("stats", StatsRegion::size(workers)).unwrap();
        let stats = StatsRegion::create(stats, workers, &PORTS.map(String::from), 1).unwrap();
        let events = Region::anonymous("events", EventsRegion::size(workers, 64)).unwrap();
        let events = EventsRegion::create(events, workers, 64, 1).unwrap();
        let nat = Nat::for_connections(capacity, 3, false).unwrap();
        let shared = Arc::new(Shared::new(table, nat, stats, events, workers, PORTS.len()));
        let ports = (0..).zip(PORTS).map(|(n, p)| PortFacts { name: p.into(), mac: mac(n) }).collect();
        let mut control = Control::new(shared.clone(), ports, Status::default());
        control.adopt(program(pool).encode().unwrap(), 0).unwrap();
        let policy = || shared.policy().unwrap();
        let workers =
            (0..workers).map(|n| Box::new(Worker::new(shared.clone(), n, policy(), buffers(), 5))).collect();
        Self { shared, control, workers, now_ns: 1_000_000_000 }
    }

    pub fn now(&self) -> Now {
        Now::new(self.now_ns, self.now_ns)
    }

    pub fn pass(&mut self, time: Duration) {
        self.now_ns += u64::try_from(time.as_nanos()).unwrap();
    }

    /// One loop of every worker without packets; `true` when nothing is left to do.
    pub fn turn(&mut self) -> bool {
        let now = self.now();
        self.workers.iter_mut().map(|worker| worker.between_bursts(now)).fold(true, |all, done| all & done)
    }

    /// Loops until there is nothing to do, and what was retired is free.
    pub fn settle(&mut self) {
        for left in (0..PATIENCE).rev() {
            if self.turn() {
                break;
            }
            assert!(left > 0, "it never ends");
        }
        (0..self.shared.table.capacity() / 64 + 4).for_each(|_| _ = self.turn());
    }

    /// A tick and the loops that fall into it.
    pub fn tick(&mut self) {
        self.pass(Duration::from_secs(1) / TICKS_PER_SECOND);
        self.turn();
    }

    pub fn block(&self, worker: usize) -> &WorkerBlock {
        self.workers[worker].publish();
        self.shared.stats.worker(worker).unwrap()
    }

    /// Packets dropped, for any reason, by any worker.
    pub fn drops(&self) -> Vec<(DropReason, u64)> {
        let of = |reason: &DropReason| {
            (0..self.workers.len()).map(|w| self.block(w).drops[reason.index()].load(Ordering::Relaxed)).sum()
        };
        DropReason::ALL.iter().map(|reason| (*reason, of(reason))).filter(|(_, count)| *count > 0).collect()
    }

    /// Connections made and ended, over all workers.
    pub fn made_and_ended(&self) -> [u64; 2] {
        let sum = |of: &dyn Fn(&WorkerBlock) -> u64| (0..self.workers.len()).map(|w| of(self.block(w))).sum();
        [sum(&|b| b.created.load(Ordering::Relaxed)), sum(&|b| b.ended.load(Ordering::Relaxed))]
    }
}

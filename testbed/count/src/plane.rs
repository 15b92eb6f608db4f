//! A router of one worker between two ports, with a fixed policy.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use erhu_nat::Nat;
use erhu_pipeline::policy::PortFacts;
use erhu_pipeline::{BURST, Control, Heap, HeapBuffer, Job, JobKind, Now, Shared, Worker};
use erhu_planes::DropReason;
use erhu_planes::connections::{ConnectionsRegion, SlabLayout};
use erhu_planes::events::EventsRegion;
use erhu_planes::program::{
    Action, AddressRange, Encapsulation, Hook, Interface, InterfaceAddress, Match, MatchKey, Neighbour, Pool,
    PortRange, Position, Prefix, Program, RejectKind, Route, RouteTarget, Rule, Snat, SourceChoice, Tracking, Zone,
    states,
};
use erhu_planes::protocol::Status;
use erhu_planes::region::Region;
use erhu_planes::stats::{StatsRegion, WorkerBlock};
use erhu_table::Table;

use crate::CountError;

/// Port of the tenant, VLAN 100.
pub const LAN: u16 = 0;
/// Port to the outside.
pub const WAN: u16 = 1;
/// Tag of the tenant's frames.
pub const VLAN: u16 = 100;
/// MAC addresses of both ports.
pub const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// MAC addresses of what is behind them.
pub const NEIGHBOURS: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]];
/// Connections that the table is for.
const CAPACITY: u32 = 1 << 16;
/// Loops after which something that should settle never will.
const PATIENCE: usize = 1_000_000;

/// Of which family everything is that the router is configured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// See the module's text.
pub struct Plane {
    shared: Arc<Shared<HeapBuffer>>,
    control: Control<HeapBuffer>,
    worker: Worker<Heap>,
    /// Boot time, nanoseconds.
    now_ns: u64,
    sent: Vec<HeapBuffer>,
}

fn router(error: impl ToString) -> CountError {
    CountError::Router(error.to_string())
}

impl Plane {
    /// Starts it.
    ///
    /// # Errors
    /// If there is no memory, or the policy is refused.
    pub fn new(family: Family) -> Result<Self, CountError> {
        let layout = SlabLayout::for_capacity(CAPACITY, 1);
        let slab = Region::anonymous("connections", layout.size()).map_err(router)?;
        let slab = ConnectionsRegion::create(slab, layout, CAPACITY, 1).map_err(router)?;
        let table = Table::new(slab, CAPACITY, 1, 1, false).map_err(router)?;
        let names = ["lan", "wan"].map(String::from);
        let stats = Region::anonymous("stats", StatsRegion::size(1)).map_err(router)?;
        let stats = StatsRegion::create(stats, 1, &names, 1).map_err(router)?;
        let events = Region::anonymous("events", EventsRegion::size(1, 64)).map_err(router)?;
        let events = EventsRegion::create(events, 1, 64, 1).map_err(router)?;
        let shared = Arc::new(Shared::new(table, Nat::new(1), stats, events, 1, names.len()));
        let ports = names.into_iter().zip(MACS).map(|(name, mac)| PortFacts { name, mac }).collect();
        let mut control = Control::new(shared.clone(), ports, Status::default());
        control.adopt(program(family).encode().map_err(router)?, 0).map_err(router)?;
        let policy = shared.policy().ok_or_else(|| router("no policy was published"))?;
        let worker = Worker::new(shared.clone(), 0, policy, Heap, 1);
        let mut plane =
            Self { shared, control, worker, now_ns: 1_000_000_000_000, sent: Vec::with_capacity(2 * BURST) };
        plane.pass(0);
        Ok(plane)
    }

    /// Lets time pass, and does what is due by then.
    pub fn pass(&mut self, seconds: u64) {
        self.now_ns += seconds * 1_000_000_000;
        let now = self.now();
        for _ in 0..PATIENCE {
            if self.worker.between_bursts(now) {
                return;
            }
        }
    }

    /// Lets time pass, and does nothing yet.
    pub fn let_pass(&mut self, seconds: u64) {
        self.now_ns += seconds * 1_000_000_000;
    }

    /// Asks that all connections end.
    ///
    /// # Errors
    /// If there is no room for the request.
    pub fn flush(&self) -> Result<(), CountError> {
        let job = Job::new(JobKind::Flush(None), 1);
        if self.shared.start(&job) { Ok(()) } else { Err(router("a flush is refused")) }
    }

    /// Gives the same rules again, as another rule set.
    ///
    /// # Errors
    /// If it is refused.
    pub fn reload(&mut self, family: Family) -> Result<(), CountError> {
        self.control.adopt(program(family).encode().map_err(router)?, self.now().tick).map(drop).map_err(router)
    }

    /// Connections that have ended.
    ///
    /// # Errors
    /// If the worker has no counters.
    pub fn ended(&self) -> Result<u64, CountError> {
        Ok(self.counters()?.ended.load(Ordering::Relaxed))
    }

    fn counters(&self) -> Result<&WorkerBlock, CountError> {
        self.shared.stats.worker(0).ok_or_else(|| router("worker 0 has no counters"))
    }

    fn now(&self) -> Now {
        Now::new(self.now_ns, self.now_ns)
    }

    /// Takes a burst through the router and returns what leaves by the other port. Its loop is among those that are
    /// counted, or not.
    pub fn turn(&mut self, port: u16, burst: &mut Vec<HeapBuffer>, counted: bool) -> &[HeapBuffer] {
        // A burst every 20 µs.
        self.now_ns += 20_000;
        let now = self.now();
        self.sent.clear();
        if counted {
            self.one_counted_loop(port, burst, now);
        } else {
            self.one_loop(port, burst, now);
        }
        if let Some(outbox) = self.worker.outbox(usize::from(LAN + WAN - port)) {
            std::mem::swap(outbox, &mut self.sent);
        }
        &self.sent
    }

    /// What valgrind looks at: it finds it by this name.
    #[inline(never)]
    fn one_counted_loop(&mut self, port: u16, burst: &mut Vec<HeapBuffer>, now: Now) {
        self.one_loop(port, burst, now);
    }

    #[inline(always)]
    fn one_loop(&mut self, port: u16, burst: &mut Vec<HeapBuffer>, now: Now) {
        let packets = burst.len();
        self.worker.between_bursts(now);
        self.worker.tally_mut().burst(packets);
        self.worker.receive(port, burst, now);
        self.worker.take_handed(now);
        self.worker.flush_handovers();
        self.worker.tally_mut().looped(packets, 1000);
        self.worker.publish();
    }

    /// Created less ended is live, and nothing was dropped.
    ///
    /// # Errors
    /// If it is not so.
    pub fn balance(&self) -> Result<(), CountError> {
        self.worker.publish();
        let block = self.counters()?;
        let (created, ended) = (block.created.load(Ordering::Relaxed), block.ended.load(Ordering::Relaxed));
        let live = u64::from(self.shared.table.live());
        let dropped: u64 = DropReason::ALL.iter().map(|r| block.drops[r.index()].load(Ordering::Relaxed)).sum();
        if created - ended != live || dropped != 0 || created == 0 {
            return Err(router(format!("created {created}, ended {ended}, live {live}, dropped {dropped}")));
        }
        Ok(())
    }
}

fn any_of(keys: impl IntoIterator<Item = MatchKey>) -> Vec<Match> {
    keys.into_iter().map(|key| Match { negated: false, key }).collect()
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("the policy below has addresses only")
}

fn range(first: &str, last: &str) -> AddressRange {
    AddressRange { first: address(first), last: address(last) }
}

/// What differs between the families.
struct Addresses {
    /// Of the interfaces, with the length of their prefix.
    own: [(&'static str, u8); 2],
    /// Of the hops behind them.
    hops: [&'static str; 2],
    /// Where the tenant's hosts are.
    inside: (&'static str, u8),
    everywhere: &'static str,
    pool: [&'static str; 2],
    /// What rules speak of: two networks that nobody goes to, one that nobody comes from.
    others: [[&'static str; 2]; 3],
}

const V4: Addresses = Addresses {
    own: [("10.255.255.1", 24), ("198.51.255.254", 16)],
    hops: ["10.255.255.2", "198.51.255.1"],
    inside: ("10.0.0.0", 16),
    everywhere: "0.0.0.0",
    pool: ["198.51.0.1", "198.51.0.64"],
    others: [["192.168.0.0", "192.168.255.255"], ["172.16.0.0", "172.31.255.255"], ["10.1.0.0", "10.1.255.255"]],
};

const V6: Addresses = Addresses {
    own: [("fd00:ff::1", 64), ("2001:db8:ff::ffff", 64)],
    hops: ["fd00:ff::2", "2001:db8:ff::1"],
    inside: ("fd00::", 64),
    everywhere: "::",
    pool: ["2001:db8::1", "2001:db8::40"],
    others: [
        ["fd01::", "fd01::ffff:ffff:ffff:ffff"],
        ["fd02::", "fd02::ffff:ffff:ffff:ffff"],
        ["fd03::", "fd03::ffff:ffff:ffff:ffff"],
    ],
};

/// One tenant behind VLAN 100, its pool of 64 addresses, ten rules: the policy that the benchmarks have.
fn program(family: Family) -> Program {
    let addresses = match family {
        Family::V4 => V4,
        Family::V6 => V6,
    };
    let hops = addresses.hops.map(address);
    let mut program = Program::empty();
    program.zones.push(Zone {
        id: 1,
        name: "tenant".into(),
        limit: None,
        reserve: 0,
        rate: None,
        tracking: Tracking::Loose,
        timeout: 0,
    });
    let sides = [("lan", Encapsulation::Vlan(VLAN), 1), ("wan", Encapsulation::Untagged, 0)];
    for (number, (name, encapsulation, zone)) in (0..).zip(sides) {
        let at = usize::from(number);
        let (own, length) = addresses.own[at];
        program.interfaces.push(Interface {
            name: name.into(),
            port: name.into(),
            encapsulation,
            zone,
            addresses: vec![InterfaceAddress { address: address(own), length }],
            mtu: 1500,
            mac: None,
            proxy_arp: false,
        });
        program.neighbours.push(Neighbour { interface: number, address: hops[at], mac: NEIGHBOURS[at] });
    }
    let route = |zone, network, length, target| {
        let prefix = Prefix::new(address(network), length);
        prefix.map(|prefix| Route { zone, prefix, target, metric: 0 })
    };
    program.routes.extend(route(1, addresses.inside.0, addresses.inside.1, RouteTarget::Via(hops[0])));
    program.routes.extend(route(1, addresses.everywhere, 0, RouteTarget::Zone(0)));
    program.routes.extend(route(0, addresses.everywhere, 0, RouteTarget::Via(hops[1])));
    program.pools.push(Pool::new("public", vec![range(addresses.pool[0], addresses.pool[1])]));
    let [one, other, inside] = addresses.others.map(|[first, last]| vec![range(first, last)]);
    let port = |port| vec![PortRange { first: port, last: port }];
    let forward = [
        (any_of([MatchKey::State(states::ESTABLISHED | states::RELATED)]), Action::Accept),
        (any_of([MatchKey::State(states::INVALID)]), Action::Drop),
        (any_of([MatchKey::Ingress(vec![1]), MatchKey::State(states::NEW)]), Action::Drop),
        (
            any_of([MatchKey::Protocol(vec![6]), MatchKey::DestinationPort(port(25))]),
            Action::Reject(RejectKind::Default),
        ),
        (any_of([MatchKey::Protocol(vec![17]), MatchKey::DestinationPort(port(137))]), Action::Drop),
        (any_of([MatchKey::Protocol(vec![17]), MatchKey::DestinationPort(port(1900))]), Action::Drop),
        (any_of([MatchKey::Destination(one)]), Action::Reject(RejectKind::Default)),
        (any_of([MatchKey::Destination(other)]), Action::Reject(RejectKind::Default)),
        (
            any_of([MatchKey::Source(inside), MatchKey::Protocol(vec![6]), MatchKey::DestinationPort(port(22))]),
            Action::Drop,
        ),
    ];
    let rule = |(matches, action)| Rule { at: Position::default(), matches, actions: vec![action] };
    program.hooks[Hook::Forward.index()].rules.extend(forward.map(rule));
    let snat = Snat { source: SourceChoice::Pool(0), ports: None, random: false, persistent: false };
    program.hooks[Hook::Postrouting.index()]
        .rules
        .push(rule((any_of([MatchKey::Zone(vec![1]), MatchKey::Egress(vec![1])]), Action::Snat(snat))));
    program
}

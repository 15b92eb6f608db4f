//! A router in this process: workers between two ports that are a generator and a sink.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use erhu_controlplane::client::{AskError, Dataplane};
use erhu_controlplane::{Facts, check_script};
use erhu_floor::clock;
use erhu_nat::Nat;
use erhu_pipeline::policy::PortFacts;
use erhu_pipeline::rss::Hashed;
use erhu_pipeline::{Control, Job, JobKind, Now, Shared, Worker};
use erhu_planes::connections::{self, Class, ConnectionsRegion, SEGMENT_LINES, SlabLayout};
use erhu_planes::events::{self, EventsRegion};
use erhu_planes::protocol::{Request, Response, Status};
use erhu_planes::region::{Region, RegionError};
use erhu_planes::stats::{self, StatsRegion};
use erhu_planes::{Counter, DropReason};
use erhu_table::Table;

use super::BenchError;
use super::flows::{LAN_MAC, WAN_MAC};
use super::frames::{Frame, Spares, Supply};
use super::script::Policy;
use crate::{audit, nic};

/// Port of the tenant.
pub const LAN: u16 = 0;
/// Port to the outside.
pub const WAN: u16 = 1;
/// Entries of the event ring; nobody reads it.
const EVENTS: usize = 1 << 10;
/// Boot time at the start, nanoseconds.
const BOOT_NS: u64 = 1_000_000_000_000;
/// Real time at the start, nanoseconds.
const WALL_NS: u64 = 1_700_000_000_000_000_000;
/// Loops after which something that should end never will.
const PATIENCE: usize = 10_000_000;

/// What a scene is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Connections that the table is for.
    pub connections: u32,
    /// What kind of connections.
    pub class: Class,
    /// What the router is configured to be.
    pub policy: Policy,
    /// Workers.
    pub workers: usize,
    /// Whether its ports spread packets over them by a hash of whatever fields they are asked to.
    pub spreads: bool,
}

impl Shape {
    /// One worker.
    pub const fn new(connections: u32, class: Class, policy: Policy) -> Self {
        Self { connections, class, policy, workers: 1, spreads: false }
    }

    fn layout(&self) -> SlabLayout {
        let full = (u64::from(self.connections) * u64::from(self.class.lines())).div_ceil(u64::from(SEGMENT_LINES));
        // One more per 32768 lines that do not divide, and some while retired entries wait.
        let segments = full + full / 64 + 4 * self.workers as u64;
        SlabLayout { segments: u32::try_from(segments).unwrap_or(u32::MAX) }
    }

    /// Bytes of memory that its slab and index take.
    pub fn bytes(&self) -> usize {
        self.layout().size() + self.connections as usize * (26 + 23)
    }

    /// What the control plane makes of its script, encoded.
    ///
    /// # Errors
    /// [`BenchError::Scene`] if it does not check.
    pub fn program(&self) -> Result<Vec<u8>, BenchError> {
        let folder = tempfile::tempdir().map_err(memory)?;
        let path = folder.path().join("bench.rhai");
        std::fs::write(&path, self.policy.script()).map_err(memory)?;
        let facts = Facts { ports: Some(vec!["lan".into(), "wan".into()]), capacity: Some(self.connections) };
        let checked = check_script(&path, &facts)
            .map_err(|errors| memory(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))?;
        checked.program.encode().map_err(memory)
    }
}

/// Boot time and real time that go on with the time stamp counter, and stand still in between.
#[derive(Clone, Debug)]
struct Clock {
    passed_ns: u64,
    running_since: Option<u64>,
    ns_per_tick: f64,
}

impl Clock {
    fn new() -> Self {
        Self { passed_ns: 0, running_since: None, ns_per_tick: 1e9 / clock::hz() }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and far below 2^63")]
    fn now(&self) -> Now {
        let running = self
            .running_since
            .map_or(0, |since| (clock::ticks().saturating_sub(since) as f64 * self.ns_per_tick) as u64);
        let passed = self.passed_ns + running;
        Now::new(BOOT_NS + passed, WALL_NS + passed)
    }

    fn run(&mut self) {
        self.running_since = Some(clock::ticks());
    }

    fn stop(&mut self) {
        self.passed_ns = self.now().mono_ns - BOOT_NS;
        self.running_since = None;
    }
}

/// Counters that must agree with each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// Connections made.
    pub created: u64,
    /// Connections ended.
    pub ended: u64,
    /// Connections that the table counts.
    pub live: u64,
    /// Ports given by the pool.
    pub given: u64,
    /// Ports given back.
    pub returned: u64,
    /// Ports in use.
    pub in_use: u64,
    /// Packets dropped, for any reason.
    pub dropped: u64,
    /// Packets that stayed on the fast path.
    pub fast: u64,
    /// Packets that were handed to another worker.
    pub handed: u64,
}

impl Accounts {
    /// Whether so many connections live, each with a port, and nothing was lost on the way.
    fn balance(&self, connections: u64) -> Result<(), BenchError> {
        let checks = [
            ("connections created less ended", self.created - self.ended.min(self.created), connections),
            ("live connections", self.live, connections),
            ("ports given less returned", self.given - self.returned.min(self.given), connections),
            ("ports in use", self.in_use, connections),
            ("packets dropped", self.dropped, 0),
        ];
        match checks.into_iter().find(|(_, found, expected)| found != expected) {
            Some((what, found, expected)) => {
                Err(BenchError::Wrong(format!("{what}: {found} instead of {expected} ({self:?})")))
            }
            None => Ok(()),
        }
    }
}

/// A worker with its clock, for one thread.
pub struct Lane {
    shared: Arc<Shared<Frame>>,
    /// It.
    pub worker: Worker<Spares>,
    clock: Clock,
}

impl Lane {
    /// One loop of a worker: a burst in by one port, what leaves by the other one out. As the dataplane's poll loop.
    #[inline(always)]
    pub fn turn(&mut self, port: u16, burst: &mut Vec<Frame>, sent: &mut Vec<Frame>) {
        let began = self.clock.now();
        let packets = burst.len();
        self.worker.between_bursts(began);
        self.worker.tally_mut().burst(packets);
        self.worker.receive(port, burst, began);
        if let Some(outbox) = self.worker.outbox(usize::from(LAN + WAN - port)) {
            std::mem::swap(outbox, sent);
        }
        self.worker.take_handed(began);
        self.worker.flush_handovers();
        self.worker.tally_mut().looped(packets, self.clock.now().mono_ns - began.mono_ns);
        self.worker.publish();
    }

    /// As [`Lane::turn`] where workers hand packets to each other: whatever leaves by any port is taken out.
    pub fn turn_all(&mut self, port: u16, burst: &mut Vec<Frame>, sent: &mut Vec<Frame>) {
        let began = self.clock.now();
        let mut packets = burst.len();
        self.worker.between_bursts(began);
        if !burst.is_empty() {
            self.worker.tally_mut().burst(packets);
            self.worker.receive(port, burst, began);
        }
        packets += self.worker.take_handed(began);
        self.worker.flush_handovers();
        for port in [LAN, WAN] {
            if let Some(outbox) = self.worker.outbox(usize::from(port)) {
                sent.append(outbox);
            }
        }
        self.worker.tally_mut().looped(packets, self.clock.now().mono_ns - began.mono_ns);
        self.worker.publish();
    }

    /// A loop without packets.
    pub fn idle(&mut self) {
        let now = self.clock.now();
        self.worker.between_bursts(now);
    }

    /// Moves the clock on, by hand.
    #[inline(always)]
    pub fn advance(&mut self, ns: u64) {
        self.clock.passed_ns += ns;
    }

    /// Time runs along with the time stamp counter until [`Lane::stop`].
    pub fn run(&mut self) {
        self.clock.run();
    }

    /// Time stands still from now on.
    pub fn stop(&mut self) {
        self.clock.stop();
    }

    /// Which drop reasons counted how much, over all workers, in words.
    pub fn drops(&self) -> String {
        self.worker.publish();
        let stats = &self.shared.stats;
        let count = |reason: &DropReason| {
            stats.sum(|w| stats.worker(w).map_or(0, |b| b.drops[reason.index()].load(Ordering::Relaxed)))
        };
        let all = DropReason::ALL.iter().map(|r| (r, count(r))).filter(|(_, n)| *n > 0);
        all.map(|(reason, n)| format!("{reason:?} {n}")).collect::<Vec<_>>().join(", ")
    }

    /// Connections of all workers that live.
    pub fn live(&self) -> u32 {
        self.shared.table.live()
    }
}

/// See the module's text.
pub struct Scene {
    /// What it is like.
    pub shape: Shape,
    shared: Arc<Shared<Frame>>,
    control: Control<Frame>,
    /// Its workers.
    pub lanes: Vec<Lane>,
    /// Whether the slab lies on reserved huge pages.
    pub is_huge: bool,
}

fn memory(error: impl ToString) -> BenchError {
    BenchError::Scene(error.to_string())
}

impl Scene {
    /// Makes the parts as the dataplane does, and lets the workers run the script's program.
    ///
    /// # Errors
    /// [`BenchError::Scene`]: no memory, or a script that does not check.
    pub fn new(shape: Shape) -> Result<Self, BenchError> {
        let program = shape.program()?;
        Self::running(shape, program)
    }

    /// The same with a program made already.
    ///
    /// # Errors
    /// [`BenchError::Scene`]: no memory, or a program that is refused.
    pub fn running(shape: Shape, program: Vec<u8>) -> Result<Self, BenchError> {
        let (layout, workers) = (shape.layout(), shape.workers);
        let (slab, is_huge) = match Region::anonymous_huge("connections", layout.size()) {
            Ok(region) => (region, true),
            Err(_) => {
                let region = Region::anonymous("connections", layout.size()).map_err(memory)?;
                region.advise_huge();
                (region, false)
            }
        };
        let slab = ConnectionsRegion::create(slab, layout, shape.connections, 1).map_err(memory)?;
        let table = Table::new(slab, shape.connections, workers, 1, true).map_err(memory)?;
        let ports = [("lan", LAN_MAC), ("wan", WAN_MAC)].map(|(name, mac)| PortFacts { name: name.into(), mac });
        let names = ports.each_ref().map(|p| p.name.clone());
        let stats = Region::anonymous("stats", StatsRegion::size(workers)).map_err(memory)?;
        let stats = StatsRegion::create(stats, workers, &names, 1).map_err(memory)?;
        let events = Region::anonymous("events", EventsRegion::size(workers, EVENTS)).map_err(memory)?;
        let events = EventsRegion::create(events, workers, EVENTS, 1).map_err(memory)?;
        let nat = Nat::for_connections(shape.connections, 1, true).map_err(memory)?;
        let shared = Arc::new(Shared::new(table, nat, stats, events, workers, ports.len()));
        let status = Status { instance: "bench".into(), capacity: shape.connections, ..Status::default() };
        let mut control = Control::new(shared.clone(), ports.to_vec(), status);
        if shape.spreads {
            control = control.steering(Box::new(move |roles| nic::spreads(roles, workers)));
        }
        let clock = Clock::new();
        control.adopt(program, clock.now().tick).map_err(memory)?;
        let policy = shared.policy().ok_or_else(|| memory("no policy was published"))?;
        let lanes = (0..workers).map(|index| {
            let worker = Worker::new(shared.clone(), index, policy.clone(), Supply::spares(), 1);
            Lane { shared: shared.clone(), worker, clock: clock.clone() }
        });
        let mut scene = Self { lanes: lanes.collect(), shape, shared, control, is_huge };
        scene.settle();
        Ok(scene)
    }

    /// The only worker.
    pub fn lane(&mut self) -> &mut Lane {
        &mut self.lanes[0]
    }

    /// The worker that a packet reaches which comes in by a port.
    pub fn worker_of(&self, port: u16, packet: &Hashed) -> Option<usize> {
        self.shared.policy()?.affinity.as_ref()?.worker_of(port, packet)
    }

    /// Its workers, and its control side for another thread.
    pub fn split(&mut self) -> (&mut [Lane], ControlSide<'_>) {
        (&mut self.lanes, ControlSide { shared: &self.shared, control: &mut self.control })
    }

    /// Lets time run along with the time stamp counter until [`Scene::stop`].
    pub fn run(&mut self) {
        self.lanes.iter_mut().for_each(Lane::run);
    }

    /// Time stands still from now on, at the same instant for all.
    pub fn stop(&mut self) {
        self.lanes.iter_mut().for_each(Lane::stop);
        let latest = self.lanes.iter().map(|l| l.clock.passed_ns).max().unwrap_or(0);
        self.lanes.iter_mut().for_each(|l| l.clock.passed_ns = latest);
    }

    /// Lets time pass at once, and does everything that is due by then.
    pub fn pass(&mut self, seconds: u64) {
        self.lanes.iter_mut().for_each(|l| l.advance(seconds * 1_000_000_000));
        self.settle();
    }

    /// Does everything that is due now.
    pub fn settle(&mut self) {
        for _ in 0..PATIENCE {
            let mut done = true;
            for lane in &mut self.lanes {
                done &= lane.worker.between_bursts(lane.clock.now());
            }
            if done {
                return;
            }
        }
    }

    /// Takes pages for free slab segments, as the dataplane's main thread does now and then.
    ///
    /// # Errors
    /// If there are none.
    pub fn provision(&self) -> Result<(), BenchError> {
        self.shared.table.provision(self.shape.layout().segments as usize).map(drop).map_err(memory)
    }

    /// Ends all connections of one zone, or all, and lets their entries and ports be free again.
    ///
    /// # Errors
    /// If they do not all end: `expected` of them.
    pub fn flush(&mut self, zone: Option<u16>, expected: u32) -> Result<(), BenchError> {
        let job = Job::new(JobKind::Flush(zone), self.lanes.len());
        self.shared.start(&job);
        for _ in 0..PATIENCE {
            self.settle();
            if let Some(ended) = job.result() {
                // Grace periods end, entries become free.
                (0..=self.shape.connections / 64).for_each(|_| self.settle());
                return if ended == u64::from(expected) {
                    Ok(())
                } else {
                    Err(BenchError::Wrong(format!("of {expected} connections {ended} were ended")))
                };
            }
        }
        Err(BenchError::Wrong("a flush never ends".into()))
    }

    /// What the counters say now.
    pub fn accounts(&self) -> Accounts {
        let relaxed = Ordering::Relaxed;
        let mut accounts = Accounts { live: self.shared.table.live().into(), ..Accounts::default() };
        for (index, lane) in self.lanes.iter().enumerate() {
            lane.worker.publish();
            let Some(block) = self.shared.stats.worker(index) else { continue };
            accounts.created += block.created.load(relaxed);
            accounts.ended += block.ended.load(relaxed);
            accounts.dropped += DropReason::ALL.iter().map(|r| block.drops[r.index()].load(relaxed)).sum::<u64>();
            accounts.fast += block.counters[Counter::FastPath.index()].load(relaxed);
            accounts.handed += block.counters[Counter::HandedOver.index()].load(relaxed);
        }
        let pools = self.shared.policy().map_or_else(Vec::new, |policy| self.shared.nat.status(&policy.pools));
        for pool in &pools {
            accounts.given += pool.given;
            accounts.returned += pool.returned;
            accounts.in_use += pool.ports_in_use.iter().map(|(_, n)| *n).sum::<u64>();
        }
        accounts
    }

    /// Whether so many connections live, each with a port, nothing was lost on the way, and the router's memory agrees
    /// with itself ([`audit`]).
    ///
    /// # Errors
    /// What does not add up.
    pub fn balance(&self, connections: u64) -> Result<(), BenchError> {
        self.accounts().balance(connections)?;
        match audit::faults(&self.shared) {
            faults if faults.is_empty() => Ok(()),
            faults => Err(BenchError::Wrong(faults.join("\n"))),
        }
    }

    /// Bytes of slab segments in use, of the index, and of mappings and port maps.
    pub fn bytes_in_use(&self) -> [usize; 3] {
        [self.shared.table.slab_bytes_in_use(), self.shared.table.index_bytes(), self.shared.nat.bytes_in_use()]
    }
}

/// What the dataplane's main thread does, for a thread beside the workers.
pub struct ControlSide<'s> {
    shared: &'s Arc<Shared<Frame>>,
    control: &'s mut Control<Frame>,
}

impl ControlSide<'_> {
    /// Takes a program over. Returns its generation.
    ///
    /// # Errors
    /// If it is refused.
    pub fn adopt(&mut self, program: Vec<u8>) -> Result<u32, BenchError> {
        // Boot time is of no concern to a program.
        self.control.adopt(program, Now::new(BOOT_NS, WALL_NS).tick).map_err(memory)
    }

    /// Whether every worker runs that generation.
    pub fn all_adopted(&self, generation: u32) -> bool {
        self.shared.all_adopted(generation)
    }

    /// Has the workers end a zone's connections.
    pub fn flush(&self, zone: u16) -> Arc<Job> {
        let job = Job::new(JobKind::Flush(Some(zone)), self.shared.workers());
        self.shared.start(&job);
        job
    }

    /// Takes pages for free slab segments now and then.
    ///
    /// # Errors
    /// If there are none.
    pub fn provision(&self) -> Result<(), BenchError> {
        self.shared.table.provision(self.shared.workers()).map(drop).map_err(memory)
    }
}

impl Dataplane for ControlSide<'_> {
    fn ask(&mut self, request: &Request, _: Option<&[u8]>) -> Result<(Response, Option<Vec<u8>>), AskError> {
        Err(AskError::Unexpected(format!("{request:?}: the benchmark's dataplane only shows its regions")))
    }

    fn connections(&self) -> Result<ConnectionsRegion, RegionError> {
        ConnectionsRegion::attached(self.shared.table.region().region().reattach(&connections::EXPECT)?)
    }

    fn stats(&self) -> Result<StatsRegion, RegionError> {
        StatsRegion::attached(self.shared.stats.region().reattach(&stats::EXPECT)?)
    }

    fn events(&self) -> Result<EventsRegion, RegionError> {
        EventsRegion::attached(self.shared.events.region().reattach(&events::EXPECT)?)
    }

    fn history(&self) -> Option<&Path> {
        None
    }
}

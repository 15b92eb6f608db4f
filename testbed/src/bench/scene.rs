//! A router in this process: one worker between two ports that are a generator and a sink.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use erhu_controlplane::{Facts, check_script};
use erhu_floor::clock;
use erhu_nat::Nat;
use erhu_pipeline::policy::PortFacts;
use erhu_pipeline::{Control, Job, JobKind, Now, Shared, Worker};
use erhu_planes::connections::{Class, ConnectionsRegion, SEGMENT_LINES, SlabLayout};
use erhu_planes::events::EventsRegion;
use erhu_planes::protocol::{PoolStatus, Status};
use erhu_planes::region::Region;
use erhu_planes::stats::StatsRegion;
use erhu_planes::{Counter, DropReason};
use erhu_table::Table;

use super::BenchError;
use super::flows::{GATEWAY_MAC, INSIDE_MAC, LAN_MAC, VLAN, WAN_MAC};
use super::frames::{Frame, Spares, Supply};

/// Port of the tenant.
pub const LAN: u16 = 0;
/// Port to the outside.
pub const WAN: u16 = 1;
/// The pool's first address, 198.51.0.1.
const POOL: u32 = 0xc633_0001;
/// Entries of the event ring; nobody reads it.
const EVENTS: usize = 1 << 10;
/// Boot time at the start, nanoseconds.
const BOOT_NS: u64 = 1_000_000_000_000;
/// Real time at the start, nanoseconds.
const WALL_NS: u64 = 1_700_000_000_000_000_000;
/// Loops after which something that should end never will.
const PATIENCE: usize = 10_000_000;

/// How a pool maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// One external port for an inside end, whatever the remote.
    EndpointIndependent,
    /// As the kernel does.
    AddressPortDependent,
}

impl Mapping {
    /// As scripts have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EndpointIndependent => "endpoint_independent",
            Self::AddressPortDependent => "address_port_dependent",
        }
    }
}

/// What a scene is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Connections that the table is for.
    pub connections: u32,
    /// What kind of connections.
    pub class: Class,
    /// Addresses of the pool.
    pub pool: u16,
    /// How it maps.
    pub mapping: Mapping,
    /// Whether it keeps ports where it can.
    pub preserve_port: bool,
    /// What postrouting does: `snat` to the pool, unless a test wants otherwise.
    pub postrouting: &'static str,
}

impl Shape {
    /// Source translation to a pool.
    pub const fn new(connections: u32, class: Class, pool: u16, mapping: Mapping, preserve_port: bool) -> Self {
        Self { connections, class, pool, mapping, preserve_port, postrouting: "snat(#{ pool: \"public\" })" }
    }

    /// Addresses of the pool.
    pub fn addresses(&self) -> RangeInclusive<u32> {
        POOL..=POOL + u32::from(self.pool) - 1
    }

    /// The rule script: one tenant, its pool, ten rules.
    pub fn script(&self) -> String {
        let mac = |m: [u8; 6]| m.map(|b| format!("{b:02x}")).join(":");
        let (first, last) = (Ipv4Addr::from(*self.addresses().start()), Ipv4Addr::from(*self.addresses().end()));
        format!(
            r#"zone("tenant", #{{ id: 1 }});
interface("lan", #{{ port: "lan", vlan: {VLAN}, zone: "tenant", address: ["10.255.255.1/24"] }});
interface("wan", #{{ port: "wan", address: ["198.51.255.254/16"] }});
neighbour("lan", "10.255.255.2", "{}");
neighbour("wan", "198.51.255.1", "{}");
route("tenant", "10.0.0.0/16", #{{ via: "10.255.255.2" }});
route("tenant", "0.0.0.0/0", #{{ zone: "main" }});
route("main", "0.0.0.0/0", #{{ via: "198.51.255.1" }});
pool("public", #{{ addresses: "{first}-{last}", mapping: "{}", preserve_port: {} }});
forward(#{{ state: ["established", "related"] }}, accept);
forward(#{{ state: "invalid" }}, drop);
forward(#{{ ingress: "wan", state: "new" }}, drop);
forward(#{{ proto: "tcp", dport: 25 }}, reject);
forward(#{{ proto: "udp", dport: 137 }}, drop);
forward(#{{ proto: "udp", dport: 1900 }}, drop);
forward(#{{ dst: "192.168.0.0/16" }}, reject);
forward(#{{ dst: "172.16.0.0/12" }}, reject);
forward(#{{ src: "10.1.0.0/16", proto: "tcp", dport: 22 }}, drop);
postrouting(#{{ zone: "tenant", egress: "wan" }}, {});
"#,
            mac(INSIDE_MAC),
            mac(GATEWAY_MAC),
            self.mapping.name(),
            self.preserve_port,
            self.postrouting,
        )
    }

    fn layout(&self) -> SlabLayout {
        let full = (u64::from(self.connections) * u64::from(self.class.lines())).div_ceil(u64::from(SEGMENT_LINES));
        // One more per 32768 lines that do not divide, and some while retired entries wait.
        SlabLayout { segments: u32::try_from(full + full / 64 + 4).unwrap_or(u32::MAX) }
    }

    /// Bytes of memory that its slab and index take.
    pub fn bytes(&self) -> usize {
        self.layout().size() + self.connections as usize * 26
    }
}

/// Boot time and real time that go on with the time stamp counter, and stand still in between.
#[derive(Debug)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

impl Accounts {
    /// Whether so many connections live, each with a port, and nothing was lost on the way.
    ///
    /// # Errors
    /// What does not add up.
    pub fn balance(&self, connections: u64) -> Result<(), BenchError> {
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

/// See the module's text.
pub struct Scene {
    /// What it is like.
    pub shape: Shape,
    shared: Arc<Shared<Frame>>,
    worker: Worker<Spares>,
    clock: Clock,
    /// Whether the slab lies on reserved huge pages.
    pub is_huge: bool,
}

fn memory(error: impl ToString) -> BenchError {
    BenchError::Scene(error.to_string())
}

impl Scene {
    /// Makes the parts as the dataplane does, and lets the worker run the script's program.
    ///
    /// # Errors
    /// [`BenchError::Scene`]: no memory, or a script that does not check.
    pub fn new(shape: Shape) -> Result<Self, BenchError> {
        let layout = shape.layout();
        let (slab, is_huge) = match Region::anonymous_huge("connections", layout.size()) {
            Ok(region) => (region, true),
            Err(_) => {
                let region = Region::anonymous("connections", layout.size()).map_err(memory)?;
                region.advise_huge();
                (region, false)
            }
        };
        let slab = ConnectionsRegion::create(slab, layout, shape.connections, 1).map_err(memory)?;
        let table = Table::new(slab, shape.connections, 1, 1, true).map_err(memory)?;
        let ports = [("lan", LAN_MAC), ("wan", WAN_MAC)].map(|(name, mac)| PortFacts { name: name.into(), mac });
        let names = ports.each_ref().map(|p| p.name.clone());
        let stats = Region::anonymous("stats", StatsRegion::size(1)).map_err(memory)?;
        let stats = StatsRegion::create(stats, 1, &names, 1).map_err(memory)?;
        let events = Region::anonymous("events", EventsRegion::size(1, EVENTS)).map_err(memory)?;
        let events = EventsRegion::create(events, 1, EVENTS, 1).map_err(memory)?;
        let shared = Arc::new(Shared::new(table, Nat::new(1), stats, events, 1, ports.len()));
        let status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            instance: "bench".into(),
            instance_id: 1,
            pid: 0,
            generation: 0,
            ports: Vec::new(),
            workers: vec![0],
            capacity: shape.connections,
        };
        let mut control = Control::new(shared.clone(), ports.to_vec(), status);
        let clock = Clock::new();
        control.adopt(program(&shape)?, clock.now().tick).map_err(memory)?;
        let policy = shared.policy().ok_or_else(|| memory("no policy was published"))?;
        let mut worker = Worker::new(shared.clone(), 0, policy, Supply::spares(), 1);
        worker.between_bursts(clock.now());
        Ok(Self { shape, shared, worker, clock, is_huge })
    }

    /// Lets time run along with the time stamp counter until [`Scene::stop`].
    pub fn run(&mut self) {
        self.clock.run();
    }

    /// Time stands still from now on.
    pub fn stop(&mut self) {
        self.clock.stop();
    }

    /// One loop of a worker: a burst in by one port, what leaves by the other one out. As the dataplane's poll loop.
    #[inline(always)]
    pub fn turn(&mut self, port: u16, burst: &mut Vec<Frame>, sent: &mut Vec<Frame>) {
        let began = self.clock.now();
        self.worker.between_bursts(began);
        self.worker.receive(port, burst, began);
        if let Some(outbox) = self.worker.outbox(usize::from(LAN + WAN - port)) {
            std::mem::swap(outbox, sent);
        }
        self.worker.take_handed(began);
        self.worker.flush_handovers();
        self.worker.tally_mut().looped(true, self.clock.now().mono_ns - began.mono_ns);
        self.worker.publish();
    }

    /// Lets time pass at once, and does everything that is due by then.
    pub fn pass(&mut self, seconds: u64) {
        self.clock.passed_ns += seconds * 1_000_000_000;
        self.settle();
    }

    /// Does everything that is due now.
    pub fn settle(&mut self) {
        let now = self.clock.now();
        for _ in 0..PATIENCE {
            if self.worker.between_bursts(now) {
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

    /// Ends all connections of the tenant, and lets their entries and ports be free again.
    ///
    /// # Errors
    /// If they do not all end.
    pub fn flush(&mut self) -> Result<(), BenchError> {
        let job = Job::new(JobKind::Flush(Some(1)), 1);
        self.shared.start(&job);
        let live = self.shared.table.live();
        for _ in 0..PATIENCE {
            self.settle();
            if let Some(ended) = job.result() {
                // Grace periods end, entries become free.
                (0..=self.shape.connections / 64).for_each(|_| self.settle());
                return if ended == u64::from(live) {
                    Ok(())
                } else {
                    Err(BenchError::Wrong(format!("of {live} connections {ended} were ended")))
                };
            }
        }
        Err(BenchError::Wrong("a flush never ends".into()))
    }

    /// What the counters say now.
    pub fn accounts(&self) -> Accounts {
        self.worker.publish();
        let relaxed = Ordering::Relaxed;
        let (created, ended, dropped, fast) = self.shared.stats.worker(0).map_or((0, 0, 0, 0), |block| {
            let dropped = DropReason::ALL.iter().map(|r| block.drops[r.index()].load(relaxed)).sum();
            let fast = block.counters[Counter::FastPath.index()].load(relaxed);
            (block.created.load(relaxed), block.ended.load(relaxed), dropped, fast)
        });
        let pools = self.shared.policy().map_or_else(Vec::new, |policy| self.shared.nat.status(&policy.pools));
        let sum = |of: fn(&PoolStatus) -> u64| pools.iter().map(of).sum();
        Accounts {
            created,
            ended,
            live: self.shared.table.live().into(),
            given: sum(|p| p.given),
            returned: sum(|p| p.returned),
            in_use: sum(|p| p.ports_in_use.iter().map(|(_, n)| *n).sum()),
            dropped,
            fast,
        }
    }

    /// Bytes of slab segments in use, of the index, and of mappings and port maps.
    pub fn bytes_in_use(&self) -> [usize; 3] {
        [self.shared.table.slab_bytes_in_use(), self.shared.table.index_bytes(), self.shared.nat.bytes_in_use()]
    }
}

fn program(shape: &Shape) -> Result<Vec<u8>, BenchError> {
    let folder = tempfile::tempdir().map_err(memory)?;
    let path = folder.path().join("bench.rhai");
    std::fs::write(&path, shape.script()).map_err(memory)?;
    let facts = Facts { ports: Some(vec!["lan".into(), "wan".into()]), capacity: Some(shape.connections) };
    let checked = check_script(&path, &facts)
        .map_err(|errors| memory(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))?;
    checked.program.encode().map_err(memory)
}

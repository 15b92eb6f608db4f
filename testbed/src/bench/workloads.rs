//! The workloads: what each does, and how its outcome is checked.

use std::io::Write as _;

use erhu_floor::Floor;
use erhu_pipeline::{BURST, Buffer};
use erhu_planes::connections::Class;
use erhu_planes::tuple::proto;

use super::BenchError;
use super::flows::{FRAME, Flow, MOST, Random, Shuffle, Writer};
use super::frames::{Frame, Supply};
use super::measure::{Io, Router, Spread, pass, unseen};
use super::scene::{LAN, Mapping, Scene, Shape, WAN};
use super::verify::Judge;

/// Packets that are read in full after the measurement.
const SAMPLE: u32 = 1 << 18;

/// What a workload's figure is compared with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Targets {
    /// Times the floor's ticks with `flows` flows.
    Floors {
        /// Flows of the floor.
        flows: u32,
        /// To be reached.
        must: f64,
        /// To be pursued.
        aims: f64,
        /// What no change may exceed for now, where that is more than `must`.
        limit: Option<f64>,
    },
    /// Bytes.
    Bytes {
        /// To be reached.
        must: f64,
        /// To be pursued.
        aims: f64,
    },
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Packets of established UDP connections, in random order.
    Established,
    /// First packets of UDP connections, in random order, into an empty table.
    Opening,
    /// Bytes that connections take when the table is full.
    Memory {
        /// Of which kind.
        class: Class,
    },
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    /// Its number.
    pub id: &'static str,
    /// In words.
    pub what: &'static str,
    /// What is done.
    pub kind: Kind,
    /// Flows or connections.
    pub flows: u32,
    /// Addresses of the pool.
    pub pool: u16,
    /// What is wanted.
    pub targets: Targets,
}

const fn established(
    id: &'static str,
    what: &'static str,
    flows: u32,
    pool: u16,
    [must, aims]: [f64; 2],
) -> Workload {
    let targets = Targets::Floors { flows, must, aims, limit: None };
    Workload { id, what, kind: Kind::Established, flows, pool, targets }
}

const fn memory(id: &'static str, what: &'static str, class: Class, [must, aims]: [f64; 2]) -> Workload {
    let targets = Targets::Bytes { must, aims };
    Workload { id, what, kind: Kind::Memory { class }, flows: 1 << 20, pool: 64, targets }
}

/// All workloads.
pub const ALL: [Workload; 7] = [
    established("A1", "established UDP, 1k flows", 1 << 10, 64, [3.5, 2.2]),
    established("A2", "established UDP, 64k flows", 1 << 16, 64, [2.7, 1.8]),
    Workload {
        targets: Targets::Floors { flows: 1 << 20, must: 2.3, aims: 1.5, limit: Some(5.0) },
        ..established("A3", "established UDP, 1M flows", 1 << 20, 64, [2.3, 1.5])
    },
    established("A4", "established UDP, 4M flows", 1 << 22, 256, [2.0, 1.4]),
    Workload {
        id: "B1",
        what: "new UDP connection, 10 rules",
        kind: Kind::Opening,
        flows: 1 << 19,
        pool: 64,
        targets: Targets::Floors { flows: 1 << 20, must: 10.0, aims: 5.0, limit: Some(25.0) },
    },
    memory("C1", "bytes per TCP connection", Class::Tcp4, [320.0, 256.0]),
    memory("C1u", "bytes per UDP connection", Class::Udp4, [256.0, 224.0]),
];

/// How a pool is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// How it maps.
    pub mapping: Mapping,
    /// Whether it keeps ports.
    pub preserve_port: bool,
}

impl Variant {
    /// All four; the default of scripts first.
    pub const ALL: [Self; 4] = [
        Self { mapping: Mapping::EndpointIndependent, preserve_port: true },
        Self { mapping: Mapping::EndpointIndependent, preserve_port: false },
        Self { mapping: Mapping::AddressPortDependent, preserve_port: true },
        Self { mapping: Mapping::AddressPortDependent, preserve_port: false },
    ];
}

/// One round's figures, in ticks per packet; of memory only `work`, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Round {
    /// The loop with the router, less `io`.
    pub work: f64,
    /// The loop doing nothing.
    pub io: f64,
    /// The floor.
    pub floor: Option<f64>,
}

/// What one variant reached.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Which.
    pub variant: Variant,
    /// Its rounds.
    pub rounds: Vec<Round>,
    /// Into memory never touched before, of new connections.
    pub first_fill: Option<f64>,
}

impl Outcome {
    /// Median and extremes of one of the figures.
    pub fn spread(&self, of: impl Fn(&Round) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(of))
    }
}

/// What runs share.
#[derive(Debug)]
pub struct Bench {
    /// Frames.
    pub supply: Supply,
    /// Rounds of each measurement.
    pub rounds: usize,
    /// Packets of a round.
    pub packets: u32,
    /// Most connections.
    pub connections: u32,
    /// Where a profiler listens.
    pub profiler: Option<std::fs::File>,
}

impl Bench {
    /// Lets the profiler look, or no longer. One that went away is no reason to stop.
    fn profile(&mut self, on: bool) {
        if let Some(profiler) = &mut self.profiler {
            let _ = profiler.write_all(if on { b"enable\n" } else { b"disable\n" });
        }
    }

    /// The measured pass: time runs along, and a profiler looks.
    fn timed(
        &mut self,
        scene: &mut Scene,
        packets: u32,
        write: impl FnMut(&mut [u8; FRAME]),
    ) -> Result<f64, BenchError> {
        self.profile(true);
        scene.run();
        let ticks = pass(&mut self.supply, packets, &mut Router { scene, port: LAN }, write, unseen);
        scene.stop();
        self.profile(false);
        ticks
    }
}

impl Workload {
    /// Flows or connections, of which there may be less for a quick look.
    pub fn flows(&self, most: u32) -> u32 {
        self.flows.min(most).min(MOST)
    }

    /// Flows of the floor that its figure is compared with.
    pub fn floor_flows(&self, most: u32) -> Option<u32> {
        match self.targets {
            Targets::Floors { flows, .. } => Some(flows.min(most)),
            Targets::Bytes { .. } => None,
        }
    }

    fn shape(&self, variant: Variant, most: u32) -> Shape {
        let class = match self.kind {
            Kind::Memory { class } => class,
            _ => Class::Udp4,
        };
        Shape::new(self.flows(most), class, self.pool, variant.mapping, variant.preserve_port)
    }

    /// Bytes that should lie on huge pages while it runs.
    pub fn bytes(&self, most: u32) -> usize {
        let floor = self.floor_flows(most).map_or(0, |flows| flows as usize * 144);
        self.shape(Variant::ALL[0], most).bytes() + floor + (64 << 20)
    }

    /// Runs it, with one kind of pool.
    ///
    /// # Errors
    /// [`BenchError::Wrong`] if what the router did is not right: then there is no figure.
    pub fn run(&self, bench: &mut Bench, variant: Variant, floor: &mut Option<Floor>) -> Result<Outcome, BenchError> {
        let shape = self.shape(variant, bench.connections);
        match self.kind {
            Kind::Established => established_udp(bench, shape, floor),
            Kind::Opening => opening(bench, shape, floor),
            Kind::Memory { class } => {
                let protocol = if class.is_tcp() { proto::TCP } else { proto::UDP };
                memory_in_use(bench, shape, protocol)
            }
        }
        .map(|(rounds, first_fill)| Outcome { variant, rounds, first_fill })
    }
}

type Figures = (Vec<Round>, Option<f64>);

fn yardsticks(bench: &Bench, floor: &mut Option<Floor>) -> Option<f64> {
    floor.as_mut().map(|floor| floor.run(bench.packets as usize).ticks)
}

/// Takes every flow's first packet through the router and reads what leaves.
fn open_all(bench: &mut Bench, scene: &mut Scene, judge: &mut Judge, protocol: u8) -> Result<(), BenchError> {
    let (writer, flows) = (Writer::from_inside(protocol), scene.shape.connections);
    let mut number = 0;
    let write = |frame: &mut _| {
        let flow = Flow::of(number);
        writer.write(frame, flow.inside, flow.remote, number);
        number += 1;
    };
    let mut router = Router { scene, port: LAN };
    pass(&mut bench.supply, flows, &mut router, write, |f: &Frame| judge.left(f.frame()).map(drop))?;
    judge.all_apart().map_err(BenchError::Wrong)?;
    scene.accounts().balance(flows.into())
}

/// Lets every flow be answered and become a stream, so that nothing but counters changes with further packets.
fn establish(bench: &mut Bench, scene: &mut Scene, judge: &mut Judge) -> Result<(), BenchError> {
    let flows = scene.shape.connections;
    let mut number = 0;
    let writer = Writer::from_outside();
    let answer = |frame: &mut _| {
        let to = judge.external(number).unwrap_or_default();
        writer.write(frame, Flow::of(number).remote, to, number);
        number += 1;
    };
    let mut router = Router { scene, port: WAN };
    pass(&mut bench.supply, flows, &mut router, answer, |f: &Frame| judge.came_back(f.frame()).map(drop))?;
    // A UDP connection is a stream two seconds after its first packet.
    scene.pass(3);
    for _ in 0..2 {
        refresh(bench, scene, flows, unseen)?;
    }
    // Timers of unanswered connections come round once, find them answered, and are armed for a stream's timeout.
    scene.pass(31);
    refresh(bench, scene, flows, unseen)
}

/// One packet of every flow, in order.
fn refresh(
    bench: &mut Bench,
    scene: &mut Scene,
    flows: u32,
    look: impl FnMut(&Frame) -> Result<(), String>,
) -> Result<(), BenchError> {
    let writer = Writer::from_inside(proto::UDP);
    let mut number = 0;
    let write = |frame: &mut _| {
        let flow = Flow::of(number);
        writer.write(frame, flow.inside, flow.remote, number);
        number += 1;
    };
    pass(&mut bench.supply, flows, &mut Router { scene, port: LAN }, write, look).map(drop)
}

fn established_udp(bench: &mut Bench, shape: Shape, floor: &mut Option<Floor>) -> Result<Figures, BenchError> {
    let flows = shape.connections;
    let mut judge = Judge::new(flows, shape.addresses(), shape.mapping);
    let mut scene = Scene::new(shape)?;
    open_all(bench, &mut scene, &mut judge, proto::UDP)?;
    establish(bench, &mut scene, &mut judge)?;
    let writer = Writer::from_inside(proto::UDP);
    let mut random = Random::default();
    let mut write = |frame: &mut _| {
        let number = random.below(flows);
        let flow = Flow::of(number);
        writer.write(frame, flow.inside, flow.remote, number);
    };
    let packets = bench.packets;
    let mut rounds = Vec::with_capacity(bench.rounds);
    for _ in 0..bench.rounds {
        let io = pass(&mut bench.supply, packets, &mut Io, &mut write, unseen)?;
        let before = scene.accounts();
        let all = bench.timed(&mut scene, packets, &mut write)?;
        let fast = scene.accounts().fast - before.fast;
        let offered = u64::from(packets) / BURST as u64 * BURST as u64;
        // Of a full table one connection in 25 lies displaced in the index, and may go the slow way.
        if fast < offered - offered / 10 {
            return Err(BenchError::Wrong(format!("of {offered} packets only {fast} took the fast path")));
        }
        rounds.push(Round { work: all - io, io, floor: yardsticks(bench, floor) });
    }
    let look = |f: &Frame| judge.left(f.frame()).map(drop);
    let sample = packets.min(SAMPLE);
    pass(&mut bench.supply, sample, &mut Router { scene: &mut scene, port: LAN }, &mut write, look)?;
    judge.all_apart().map_err(BenchError::Wrong)?;
    scene.accounts().balance(flows.into())?;
    Ok((rounds, None))
}

fn opening(bench: &mut Bench, shape: Shape, floor: &mut Option<Floor>) -> Result<Figures, BenchError> {
    let flows = shape.connections;
    let mut judge = Judge::new(flows, shape.addresses(), shape.mapping);
    let mut scene = Scene::new(shape)?;
    let (writer, shuffle) = (Writer::from_inside(proto::UDP), Shuffle::new(flows));
    let mut rounds = Vec::with_capacity(bench.rounds);
    let mut first_fill = None;
    for round in 0..=bench.rounds {
        let write = |at: &mut u32, frame: &mut _| {
            let number = shuffle.nth(*at);
            let flow = Flow::of(number);
            writer.write(frame, flow.inside, flow.remote, number);
            *at += 1;
        };
        let mut at = 0;
        let io = pass(&mut bench.supply, flows, &mut Io, |f: &mut _| write(&mut at, f), unseen)?;
        scene.provision()?;
        let (created, mut at) = (scene.accounts().created, 0);
        let all = bench.timed(&mut scene, flows, |f| write(&mut at, f))?;
        let accounts = scene.accounts();
        accounts.balance(flows.into())?;
        if accounts.created - created != u64::from(flows) {
            return Err(BenchError::Wrong(format!("{} connections instead of {flows}", accounts.created - created)));
        }
        // Second packets tell what the first were given.
        refresh(bench, &mut scene, flows, |f| judge.left(f.frame()).map(drop))?;
        judge.all_apart().map_err(BenchError::Wrong)?;
        judge.forget();
        scene.flush()?;
        scene.accounts().balance(0)?;
        if round == 0 {
            first_fill = Some(all - io);
        } else {
            rounds.push(Round { work: all - io, io, floor: yardsticks(bench, floor) });
        }
    }
    // And first packets themselves are right.
    open_all(bench, &mut scene, &mut judge, proto::UDP)?;
    Ok((rounds, first_fill))
}

fn memory_in_use(bench: &mut Bench, shape: Shape, protocol: u8) -> Result<Figures, BenchError> {
    let flows = shape.connections;
    let mut judge = Judge::new(flows, shape.addresses(), shape.mapping);
    let mut scene = Scene::new(shape)?;
    open_all(bench, &mut scene, &mut judge, protocol)?;
    let bytes: usize = scene.bytes_in_use().iter().sum();
    let work = bytes as f64 / f64::from(flows);
    Ok((vec![Round { work, io: 0.0, floor: None }], None))
}

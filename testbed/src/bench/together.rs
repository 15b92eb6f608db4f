//! Two workers on two CPUs.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;

use erhu_floor::clock::{self, Stopwatch};
use erhu_pipeline::rss::Hashed;
use erhu_pipeline::{BURST, Buffer};
use erhu_planes::connections::Class;

use super::established::{Load, Packets, Part};
use super::flows::{Flow, Random, WAN_MAC, Writer};
use super::frames::{Frame, Supply};
use super::goals::Round;
use super::measure::{By, Io, Source, pass, unseen};
use super::opening::FirstPackets;
use super::scene::{LAN, Lane, Scene, Shape, WAN};
use super::script::{Mapping, Policy};
use super::verify::Judge;
use super::{Bench, BenchError};

/// Workers of these workloads.
const WORKERS: usize = 2;
/// Frames of each worker's generator: a ring between workers takes as many packets even in small batches.
const FRAMES: usize = 1024;
/// Ticks of a loop without work above which its thread was away.
const AWAY: u64 = 20_000;

/// A router of two workers; the first owns even flows, the second odd ones.
struct Pair {
    scene: Scene,
    judge: Judge,
    supplies: [Supply; WORKERS],
    policy: Policy,
    flows: u32,
}

impl Pair {
    fn empty(policy: &Policy, flows: u32) -> Result<Self, BenchError> {
        Self::of(Shape { workers: WORKERS, ..Shape::new(flows, Class::Udp4, policy.clone()) }, policy, flows)
    }

    /// The same, behind ports that spread packets by their hash: whose flows are whose is up to that.
    fn spread(policy: &Policy, flows: u32) -> Result<Self, BenchError> {
        let shape = Shape::new(flows, Class::Udp4, policy.clone());
        Self::of(Shape { workers: WORKERS, spreads: true, ..shape }, policy, flows)
    }

    fn of(shape: Shape, policy: &Policy, flows: u32) -> Result<Self, BenchError> {
        let (scene, judge) = (Scene::new(shape)?, Judge::new(flows, policy));
        let supplies = [Supply::of(FRAMES), Supply::of(FRAMES)];
        Ok(Self { scene, judge, supplies, policy: policy.clone(), flows })
    }

    /// All flows established, each packet seen by the worker that owns its flow.
    fn established(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Self, BenchError> {
        let mut pair = Self::empty(policy, flows)?;
        pair.every_flow(bench, LAN, true)?;
        pair.judge.all_apart().map_err(BenchError::Wrong)?;
        pair.every_flow(bench, WAN, true)?;
        pair.scene.pass(3);
        for _ in 0..2 {
            pair.every_flow(bench, LAN, false)?;
        }
        pair.scene.pass(31);
        pair.every_flow(bench, LAN, false)?;
        pair.scene.balance(flows.into())?;
        Ok(pair)
    }

    /// A packet of every flow, in by a port.
    fn every_flow(&mut self, bench: &mut Bench, port: u16, read: bool) -> Result<(), BenchError> {
        let writers = [Writer::udp_from_inside(), Writer::udp_from_outside()];
        let Self { scene, judge, policy, flows, .. } = self;
        let external: Vec<(u32, u16)> = (0..*flows).map(|n| judge.external(n).unwrap_or_default()).collect();
        for (first, lane) in (0..).zip(&mut scene.lanes) {
            let mut number = first;
            let write = |frame: &mut Frame| {
                let flow = Flow::of(number);
                if port == LAN {
                    writers[0].write_tagged(frame, policy.vlan(number), flow.inside, flow.remote, number);
                } else {
                    let to = external.get(number as usize).copied().unwrap_or_default();
                    writers[1].write(frame, flow.remote, to, number);
                }
                number += 2;
            };
            let look = |f: &Frame| match (read, port) {
                (false, _) => Ok(()),
                (true, LAN) => judge.left(f.frame()).map(drop),
                (true, _) => judge.came_back(f.frame()).map(drop),
            };
            pass(&mut bench.supply, *flows / 2, lane, &mut By(port, write), look)?;
        }
        Ok(())
    }

    fn packets(&self, load: Load, first: u32) -> Packets {
        Packets::new(load, &self.policy, self.flows, Part { first, step: 2 }, &self.judge)
    }

    /// Packets of both halves, each worker's own, through the workers at once.
    fn own_packets(&mut self, bench: &Bench, packets: u32, load: Load) -> Result<[f64; WORKERS], BenchError> {
        let mut sources = [self.packets(load, 0), self.packets(load, 1)];
        let [first, second] = &mut sources;
        let [supply, other_supply] = &mut self.supplies;
        self.scene.run();
        let [lane, other_lane] = &mut self.scene.lanes[..] else {
            return Err(BenchError::Scene("there are not two workers".into()));
        };
        let ticks = at_once(
            bench,
            || pass(supply, packets, lane, first, unseen),
            || pass(other_supply, packets, other_lane, second, unseen),
        );
        self.scene.stop();
        ticks
    }

    /// The same packets through two loops that do nothing.
    fn io(&mut self, bench: &Bench, packets: u32, load: Load) -> Result<[f64; WORKERS], BenchError> {
        let mut sources = [self.packets(load, 0), self.packets(load, 1)];
        let [first, second] = &mut sources;
        let [supply, other_supply] = &mut self.supplies;
        at_once(
            bench,
            || pass(supply, packets, &mut Io, first, unseen),
            || pass(other_supply, packets, &mut Io, second, unseen),
        )
    }

    fn verify(&mut self, bench: &mut Bench) -> Result<(), BenchError> {
        self.every_flow(bench, LAN, true)?;
        self.every_flow(bench, WAN, true)?;
        self.judge.all_apart().map_err(BenchError::Wrong)?;
        self.scene.balance(self.flows.into())
    }
}

/// Runs one thing here and another on the other CPU, begun together.
fn at_once<T: Send>(
    bench: &Bench,
    here: impl FnOnce() -> Result<T, BenchError>,
    there: impl FnOnce() -> Result<T, BenchError> + Send,
) -> Result<[T; WORKERS], BenchError> {
    let (barrier, other) = (Barrier::new(WORKERS), bench.other_cpu);
    clock::hz();
    thread::scope(|scope| {
        let there = scope.spawn(|| {
            super::pin(other);
            barrier.wait();
            there()
        });
        barrier.wait();
        let here = here();
        let there = there.join().map_err(|_| BenchError::Wrong("the other thread panicked".into()))?;
        Ok([here?, there?])
    })
}

fn mean([a, b]: [f64; WORKERS]) -> f64 {
    f64::midpoint(a, b)
}

/// F1: both directions through two workers at once, against one of them alone.
pub fn two_workers(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    let mut pair = Pair::established(bench, policy, flows)?;
    let (packets, load) = (bench.packets, Load::UdpBoth);
    let mut rounds = Vec::new();
    for _ in 0..bench.rounds {
        let mut source = pair.packets(load, 0);
        let io_alone = pass(&mut pair.supplies[0], packets, &mut Io, &mut source, unseen)?;
        pair.scene.run();
        let Pair { scene, supplies, .. } = &mut pair;
        let alone = pass(&mut supplies[0], packets, scene.lane(), &mut source, unseen)? - io_alone;
        pair.scene.stop();
        let io = mean(pair.io(bench, packets, load)?);
        let each = mean(pair.own_packets(bench, packets, load)?) - io;
        // Packets in the time in which one worker takes one.
        rounds.push(Round { work: 2.0 * alone / each, io: Some(io), floor: None, base: Some(1.0) });
    }
    pair.verify(bench)?;
    Ok(vec![rounds])
}

/// What the threads of [`crossing`] know of each other.
#[derive(Default)]
struct Crossing {
    offered_all: [AtomicBool; WORKERS],
    sent: [Padded; WORKERS],
    failed: AtomicBool,
    /// Frames for a worker whose own ones have wandered to the other.
    returned: [Mutex<Vec<Frame>>; WORKERS],
}

/// A counter with a line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Padded(AtomicU64);

/// One worker's part of a run in which packets come to either worker, whoever owns their flows. Ticks per packet that
/// it was offered, time without work taken off.
fn crossing(
    index: usize,
    shared: &Crossing,
    supply: &mut Supply,
    lane: &mut Lane,
    packets: u32,
    source: &mut impl Source,
    mut look: impl FnMut(&Frame) -> Result<(), String>,
) -> Result<f64, BenchError> {
    let bursts = packets as usize / BURST;
    let total = (WORKERS * bursts * BURST) as u64;
    let (mut burst, mut sent) = (Vec::with_capacity(BURST), Vec::with_capacity(4 * BURST));
    let (mut offered, mut left, mut idle, mut ticks) = (0, 0_u64, 0.0, None);
    let mut outcome = Ok(());
    let mut since = clock::ticks();
    let watch = Stopwatch::start();
    while !shared.failed.load(Ordering::Relaxed) {
        let began = clock::ticks();
        let port = source.begin();
        if offered < bursts {
            if supply.waiting() < BURST {
                let mut returned = shared.returned[index].lock().unwrap_or_else(PoisonError::into_inner);
                returned.drain(..).for_each(|frame| supply.give(frame));
            } else {
                supply.fill(&mut burst, source);
                offered += 1;
            }
        }
        let is_empty = burst.is_empty();
        lane.turn_all(port, &mut burst, &mut sent);
        if is_empty && sent.is_empty() {
            idle += (clock::ticks() - began).min(AWAY) as f64;
        }
        left += sent.len() as u64;
        for frame in sent.drain(..) {
            outcome = outcome.and_then(|()| look(&frame));
            supply.give(frame);
        }
        if outcome.is_err() {
            shared.failed.store(true, Ordering::Relaxed);
        }
        if offered == bursts {
            if ticks.is_none() {
                ticks = Some(watch.ticks() - idle);
                shared.offered_all[index].store(true, Ordering::Release);
            }
            // Nothing more is to be made here: whoever still makes packets may have the frames.
            shared.returned[1 - index].lock().unwrap_or_else(PoisonError::into_inner).extend(supply.take_all());
            shared.sent[index].0.store(left, Ordering::Release);
            let all_sent = shared.sent.iter().map(|s| s.0.load(Ordering::Acquire)).sum::<u64>();
            if shared.offered_all[1 - index].load(Ordering::Acquire) && all_sent == total {
                break;
            }
            // Ten seconds without an end: something got lost.
            if (clock::ticks() - since) as f64 > 10.0 * clock::hz() {
                outcome = Err(format!("of {total} packets {all_sent} were sent"));
                shared.failed.store(true, Ordering::Relaxed);
            }
        } else {
            since = began;
        }
    }
    outcome.map_err(BenchError::Wrong)?;
    ticks.map(|t| t / (bursts * BURST) as f64).ok_or_else(|| BenchError::Wrong("the other worker failed".into()))
}

impl Pair {
    /// Both workers with sources whose flows either of them may own.
    fn cross<S: Source + Send>(
        &mut self,
        bench: &Bench,
        packets: u32,
        sources: [S; WORKERS],
        look: impl Fn(&Frame) -> Result<(), String> + Sync,
    ) -> Result<[f64; WORKERS], BenchError> {
        let [mut first, mut second] = sources;
        let [supply, other_supply] = &mut self.supplies;
        self.scene.run();
        let [lane, other_lane] = &mut self.scene.lanes[..] else {
            return Err(BenchError::Scene("there are not two workers".into()));
        };
        let shared = Crossing::default();
        let ticks = at_once(
            bench,
            || crossing(0, &shared, supply, lane, packets, &mut first, &look),
            || crossing(1, &shared, other_supply, other_lane, packets, &mut second, &look),
        );
        self.scene.stop();
        // Frames are where they happened to be; start anew.
        self.supplies = [Supply::of(FRAMES), Supply::of(FRAMES)];
        ticks
    }
}

impl Pair {
    /// The same, and reads all that leaves, in either direction.
    fn cross_read<S: Source + Send>(
        &mut self,
        bench: &Bench,
        packets: u32,
        sources: [S; WORKERS],
    ) -> Result<[f64; WORKERS], BenchError> {
        let judge = Mutex::new(std::mem::replace(&mut self.judge, Judge::new(0, &self.policy)));
        let look = |frame: &Frame| {
            let mut judge = judge.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes = frame.frame();
            if bytes.get(6..12) == Some(&WAN_MAC[..]) { judge.left(bytes) } else { judge.came_back(bytes) }.map(drop)
        };
        let outcome = self.cross(bench, packets, sources, look);
        self.judge = judge.into_inner().unwrap_or_else(PoisonError::into_inner);
        outcome
    }
}

/// Packets of all flows that come to either worker, as from a NIC that spreads packets by no rule at all.
struct Anywhere {
    writer: Writer,
    policy: Policy,
    flows: u32,
    random: Random,
    /// The worker that it feeds.
    index: u32,
    /// Packets of the other worker's flows.
    foreign: u64,
}

impl Source for &mut Anywhere {
    #[inline(always)]
    fn write(&mut self, frame: &mut Frame) {
        let number = self.random.below(self.flows);
        self.foreign += u64::from(number % 2 != self.index);
        let flow = Flow::of(number);
        self.writer.write_tagged(frame, self.policy.vlan(number), flow.inside, flow.remote, number);
    }
}

/// F2: what is handed over beyond what must be, where ports spread as they are asked to and where they do not.
pub fn handed_over(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    Ok(vec![host_affine(bench, policy, flows)?, anywhere(bench, policy, flows)?])
}

/// Packets that reach either worker at random: all that must be are handed over, none else, and all leave as they
/// should.
fn anywhere(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Round>, BenchError> {
    let mut pair = Pair::established(bench, policy, flows)?;
    let packets = bench.packets.min(1 << 18);
    let mut rounds = Vec::new();
    for _ in 0..bench.rounds {
        let before = pair.scene.accounts();
        let source = |index: u32| {
            let mut random = Random::default();
            // The second one starts elsewhere.
            for _ in 0..index {
                random.below(2);
            }
            Anywhere { writer: Writer::udp_from_inside(), policy: policy.clone(), flows, random, index, foreign: 0 }
        };
        let (mut here, mut there) = (source(0), source(1));
        pair.cross_read(bench, packets, [&mut here, &mut there])?;
        let must = here.foreign + there.foreign;
        let handed = pair.scene.accounts().handed - before.handed;
        rounds.push(Round { base: Some(must as f64), ..Round::alone(handed as f64 - must as f64) });
    }
    pair.verify(bench)?;
    Ok(rounds)
}

/// What ports that spread by a hash bring one worker: of some flows the packets from inside, of some the answers.
struct Dealt<'f> {
    writers: [Writer; 2],
    policy: &'f Policy,
    /// Flows whose packets from inside come here, and those whose answers do.
    flows: [Vec<u32>; 2],
    external: &'f [(u32, u16)],
    /// Every flow in its turn, from inside, instead of both ways at random.
    in_turn: bool,
    at: usize,
    random: Random,
    side: usize,
}

impl<'f> Dealt<'f> {
    fn new(policy: &'f Policy, flows: [Vec<u32>; 2], external: &'f [(u32, u16)], in_turn: bool) -> Self {
        let writers = [Writer::udp_from_inside(), Writer::udp_from_outside()];
        Self { writers, policy, flows, external, in_turn, at: 0, random: Random::default(), side: 1 }
    }
}

impl Source for Dealt<'_> {
    fn begin(&mut self) -> u16 {
        self.side = if self.in_turn { 0 } else { 1 - self.side };
        if self.side == 0 { LAN } else { WAN }
    }

    fn write(&mut self, frame: &mut Frame) {
        let flows = &self.flows[self.side];
        let place = if self.in_turn { self.at } else { self.random.below(1 << 22) as usize };
        self.at += 1;
        let Some(number) = flows.get(place % flows.len().max(1)).copied() else { return };
        let flow = Flow::of(number);
        if self.side == 0 {
            let vlan = self.policy.vlan(number);
            self.writers[0].write_tagged(frame, vlan, flow.inside, flow.remote, number);
        } else {
            let external = self.external.get(number as usize).copied().unwrap_or_default();
            self.writers[1].write(frame, flow.remote, external, number);
        }
    }
}

/// Behind ports that hash what they are asked to, and with ports chosen by the router, every packet
/// reaches the worker that owns its connection. What was handed over all the same, of first packets, further ones and
/// answers, for pools of both kinds.
fn host_affine(bench: &Bench, policy: &Policy, flows: u32) -> Result<Vec<Round>, BenchError> {
    let mut rounds = Vec::new();
    for _ in 0..bench.rounds {
        let mut handed = 0;
        for mapping in [Mapping::EndpointIndependent, Mapping::AddressPortDependent] {
            let policy = Policy { mapping, preserve_port: false, ..policy.clone() };
            handed += dealt_by_hash(bench, &policy, flows)?;
        }
        rounds.push(Round::alone(handed as f64));
    }
    Ok(rounds)
}

/// Opens all flows and lets packets go both ways, each to the worker that its port's hash leads to. How many were handed
/// over.
fn dealt_by_hash(bench: &Bench, policy: &Policy, flows: u32) -> Result<u64, BenchError> {
    let mut pair = Pair::spread(policy, flows)?;
    let unspread = || BenchError::Scene("the ports do not spread".into());
    let side = |(address, port): (u32, u16)| (IpAddr::from(Ipv4Addr::from(address)), port);
    let hashed = |from, to| {
        let ((src, sport), (dst, dport)) = (side(from), side(to));
        Hashed { src, dst, ports: Some((sport, dport)) }
    };
    let mut lists: [[Vec<u32>; 2]; WORKERS] = Default::default();
    for number in 0..flows {
        let flow = Flow::of(number);
        let worker = pair.scene.worker_of(LAN, &hashed(flow.inside, flow.remote)).ok_or_else(unspread)?;
        lists[worker % WORKERS][0].push(number);
    }
    let most = lists.iter().map(|[from_inside, _]| from_inside.len()).max().unwrap_or(0);
    if lists.iter().any(|[from_inside, _]| from_inside.is_empty()) {
        return Err(BenchError::Wrong("one worker has no flow".into()));
    }
    let first_packets = u32::try_from(most.next_multiple_of(BURST)).unwrap_or(u32::MAX);
    let sources = lists.clone().map(|lists| Dealt::new(policy, lists, &[], true));
    pair.cross_read(bench, first_packets, sources)?;
    pair.judge.all_apart().map_err(BenchError::Wrong)?;
    let external: Vec<(u32, u16)> = (0..flows).map(|n| pair.judge.external(n).unwrap_or_default()).collect();
    for (number, external) in (0..flows).zip(&external) {
        let answer = hashed(Flow::of(number).remote, *external);
        let worker = pair.scene.worker_of(WAN, &answer).ok_or_else(unspread)?;
        lists[worker % WORKERS][1].push(number);
    }
    let sources = lists.map(|lists| Dealt::new(policy, lists, &external, false));
    pair.cross_read(bench, bench.packets.min(1 << 18), sources)?;
    pair.scene.balance(flows.into())?;
    Ok(pair.scene.accounts().handed)
}

/// F3: what a hand-over adds to a packet; and how many times as fast two workers open connections.
pub fn hand_over_cost(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    let mut pair = Pair::established(bench, policy, bench.at_most(1 << 16))?;
    let mut added = Vec::new();
    for _ in 0..bench.rounds {
        let [even, odd] = [0, 1].map(|first| pair.packets(Load::Udp, first));
        let direct = mean(pair.cross(bench, bench.packets, [even, odd], unseen)?);
        let [even, odd] = [0, 1].map(|first| pair.packets(Load::Udp, first));
        let before = pair.scene.accounts().handed;
        let handed = mean(pair.cross(bench, bench.packets, [odd, even], unseen)?);
        let count = pair.scene.accounts().handed - before;
        let wanted = (WORKERS * (bench.packets as usize / BURST * BURST)) as u64;
        if count != wanted {
            return Err(BenchError::Wrong(format!("{count} packets were handed over instead of {wanted}")));
        }
        added.push(Round { base: Some(direct), ..Round::alone(handed) });
    }
    pair.verify(bench)?;
    drop(pair);
    Ok(vec![added, openings(bench, policy, flows)?])
}

fn openings(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Round>, BenchError> {
    let half = flows / 2;
    let mut pair = Pair::empty(policy, flows)?;
    let mut rounds = Vec::new();
    for round in 0..=bench.rounds {
        let sources = |first| FirstPackets::every_second(policy, half, first);
        let Pair { scene, supplies: [supply, other_supply], .. } = &mut pair;
        let io_alone = pass(supply, half, &mut Io, &mut sources(0), unseen)?;
        scene.provision()?;
        let alone = pass(supply, half, scene.lane(), &mut sources(0), unseen)? - io_alone;
        scene.balance(half.into())?;
        scene.flush(None, half)?;
        scene.provision()?;
        let io = mean(at_once(
            bench,
            || pass(supply, half, &mut Io, &mut sources(0), unseen),
            || pass(other_supply, half, &mut Io, &mut sources(1), unseen),
        )?);
        let [lane, other_lane] = &mut scene.lanes[..] else { continue };
        let each = mean(at_once(
            bench,
            || pass(supply, half, lane, &mut sources(0), unseen),
            || pass(other_supply, half, other_lane, &mut sources(1), unseen),
        )?) - io;
        scene.balance(flows.into())?;
        pair.every_flow(bench, LAN, true)?;
        pair.judge.all_apart().map_err(BenchError::Wrong)?;
        pair.judge.forget();
        pair.scene.flush(None, flows)?;
        pair.scene.balance(0)?;
        if round > 0 {
            rounds.push(Round { work: 2.0 * alone / each, io: Some(io), floor: None, base: Some(1.0) });
        }
    }
    Ok(rounds)
}

//! Connections that begin and end.

use erhu_pipeline::{BURST, Buffer};
use erhu_planes::connections::Class;

use super::established::{Load, Packets, Standing, open_all, refresh};
use super::flows::{Flow, MOST, Segment, Shuffle, Writer, tcp};
use super::frames::Frame;
use super::goals::Round;
use super::measure::{Handler, Io, Source, pass, unseen};
use super::scene::{LAN, Scene, Shape, WAN};
use super::script::Policy;
use super::verify::Judge;
use super::{Bench, BenchError};

/// Seconds after which a UDP connection without an answer ends.
pub const UDP_TIMEOUT: u64 = 30;

/// First packets of UDP connections, visited in an order that looks random.
pub struct FirstPackets<'p> {
    writer: Writer,
    policy: &'p Policy,
    shuffle: Shuffle,
    at: u32,
    /// Added to every number, modulo all that there are.
    base: u32,
    /// From one number to the next.
    step: u32,
}

impl<'p> FirstPackets<'p> {
    /// Of `flows` of them, a power of two, from number `base` on.
    pub fn new(policy: &'p Policy, flows: u32, base: u32) -> Self {
        Self { writer: Writer::udp_from_inside(), policy, shuffle: Shuffle::new(flows), at: 0, base, step: 1 }
    }

    /// Of `flows` of them, every second one from number `first` on.
    pub fn every_second(policy: &'p Policy, flows: u32, first: u32) -> Self {
        Self { step: 2, ..Self::new(policy, flows, first) }
    }
}

impl Source for FirstPackets<'_> {
    #[inline(always)]
    fn write(&mut self, frame: &mut Frame) {
        let number = self.base.wrapping_add(self.shuffle.nth(self.at) * self.step) & (MOST - 1);
        let flow = Flow::of(number);
        self.writer.write_tagged(frame, self.policy.vlan(number), flow.inside, flow.remote, number);
        self.at += 1;
    }
}

/// A router whose table is filled from empty, over and over.
pub struct Filling {
    scene: Scene,
    judge: Judge,
    flows: u32,
    policy: Policy,
}

impl Filling {
    /// A router that is configured so.
    ///
    /// # Errors
    /// [`BenchError::Scene`].
    pub fn new(policy: &Policy, flows: u32) -> Result<Self, BenchError> {
        let scene = Scene::new(Shape::new(flows, Class::Udp4, policy.clone()))?;
        Ok(Self { scene, judge: Judge::new(flows, policy), flows, policy: policy.clone() })
    }

    /// Fills it and empties it again. Ticks per connection of the loop, and of `io`.
    ///
    /// # Errors
    /// [`BenchError::Wrong`] if a connection is missing, or was translated wrongly.
    pub fn round(&mut self, bench: &mut Bench) -> Result<(f64, f64), BenchError> {
        let Self { scene, judge, flows, policy } = self;
        let flows = *flows;
        let io = pass(&mut bench.supply, flows, &mut Io, &mut FirstPackets::new(policy, flows, 0), unseen)?;
        scene.provision()?;
        let created = scene.accounts().created;
        let all = bench.timed(scene, flows, &mut FirstPackets::new(policy, flows, 0))?;
        let accounts = scene.accounts();
        scene.balance(flows.into())?;
        if accounts.created - created != u64::from(flows) {
            return Err(BenchError::Wrong(format!("{} connections instead of {flows}", accounts.created - created)));
        }
        // Second packets tell what the first were given.
        refresh(bench, scene, 0..flows, |f| judge.left(f.frame()).map(drop))?;
        judge.all_apart().map_err(BenchError::Wrong)?;
        judge.forget();
        scene.flush(None, flows)?;
        scene.balance(0)?;
        Ok((all, io))
    }

    /// First packets themselves are right too.
    ///
    /// # Errors
    /// [`BenchError::Wrong`] if one is not.
    pub fn verify(&mut self, bench: &mut Bench) -> Result<(), BenchError> {
        open_all(bench, &mut self.scene, &mut self.judge, Load::Udp)
    }
}

/// B1: fills from empty, then a table that stays as full as it is: every new connection comes as an old one ends.
pub fn new_connections(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    let mut filling = Filling::new(policy, flows)?;
    let (mut first, mut rounds) = (Vec::new(), Vec::new());
    for round in 0..=bench.rounds {
        let (all, io) = filling.round(bench)?;
        let round_of = Round { work: all - io, io: Some(io), floor: bench.floor(), base: None };
        if round == 0 { first.push(round_of) } else { rounds.push(round_of) }
    }
    filling.verify(bench)?;
    drop(filling);
    Ok(vec![rounds, steady(bench, policy, flows)?, first])
}

/// Lets each burst take a while, so that connections end as others begin.
pub struct Aging<'s> {
    /// The router.
    pub scene: &'s mut Scene,
    /// Nanoseconds of a burst.
    pub ns: u64,
}

impl Handler for Aging<'_> {
    #[inline(always)]
    fn handle(&mut self, port: u16, burst: &mut Vec<Frame>, sent: &mut Vec<Frame>) {
        let lane = self.scene.lane();
        lane.advance(self.ns);
        lane.turn(port, burst, sent);
    }

    fn explain(&self) -> String {
        self.scene.lanes.first().map_or_else(String::new, Handler::explain)
    }
}

fn steady(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Round>, BenchError> {
    // Twice as many fit as live at a time.
    let mut scene = Scene::new(Shape::new(flows * 2, Class::Udp4, policy.clone()))?;
    let ns = UDP_TIMEOUT * 1_000_000_000 / (u64::from(flows) / BURST as u64).max(1);
    let (mut base, mut rounds) = (0u32, Vec::new());
    for round in 0..=bench.rounds {
        let io = pass(&mut bench.supply, flows, &mut Io, &mut FirstPackets::new(policy, flows, base), unseen)?;
        scene.provision()?;
        let before = scene.accounts();
        bench.profile(true);
        let mut source = FirstPackets::new(policy, flows, base);
        let all = pass(&mut bench.supply, flows, &mut Aging { scene: &mut scene, ns }, &mut source, unseen);
        bench.profile(false);
        let all = all?;
        let after = scene.accounts();
        let (created, ended) = (after.created - before.created, after.ended - before.ended);
        scene.balance(after.live)?;
        // The first time nothing has ended yet; later as many end as begin, give or take what a second is.
        let expected = if round == 0 { 0 } else { u64::from(flows) };
        if created != u64::from(flows) || ended.abs_diff(expected) > u64::from(flows / 8) {
            return Err(BenchError::Wrong(format!("{created} began and {ended} ended, of {flows}")));
        }
        if round > 0 {
            rounds.push(Round { work: all - io, io: Some(io), floor: bench.floor(), base: None });
        }
        // The flows that have just ended are the next to begin, a while later.
        base = base.wrapping_add(flows) & (MOST - 1);
    }
    // Those that began last live still: second packets tell what they were given.
    let last = base.wrapping_sub(flows) & (MOST - 1);
    let mut judge = Judge::new(MOST, policy);
    let some = last..last + flows / 2;
    refresh(bench, &mut scene, some.clone(), |f| judge.left(f.frame()).map(drop))?;
    judge.seen_apart().map_err(BenchError::Wrong)?;
    let accounts = scene.accounts();
    scene.balance(accounts.live)?;
    Ok(rounds)
}

/// Flows of a group: their lives run side by side.
const GROUP: u32 = 1 << 14;
/// The first sequence number of both ends.
const FIRST_SEQ: [u32; 2] = [5000, 90_000];

/// A step of a TCP connection's life: from which side (0: inside), flags, and what either end has said before, in
/// sequence numbers.
type Step = (usize, u8, [u32; 2]);

/// SYN to last ACK.
const LIFE: [Step; 7] = [
    (0, tcp::SYN, [0, 0]),
    (1, tcp::SYN | tcp::ACK, [1, 0]),
    (0, tcp::ACK, [1, 1]),
    (0, tcp::FIN | tcp::ACK, [1, 1]),
    (1, tcp::ACK, [2, 1]),
    (1, tcp::FIN | tcp::ACK, [2, 1]),
    (0, tcp::ACK, [2, 2]),
];

/// Packets of one step of a group's lives.
struct Steps<'e> {
    writers: &'e [Writer; 2],
    step: Step,
    number: u32,
    /// What the group's flows were given, as SYNs that left told.
    external: &'e [(u32, u16)],
    first: u32,
}

impl Source for Steps<'_> {
    #[inline(always)]
    fn begin(&mut self) -> u16 {
        if self.step.0 == 0 { LAN } else { WAN }
    }

    #[inline(always)]
    fn write(&mut self, frame: &mut Frame) {
        let (side, flags, said) = self.step;
        let number = self.number;
        self.number += 1;
        let flow = Flow::of(number);
        let [own, other] = if side == 0 { [0, 1] } else { [1, 0] };
        let ack = if flags & tcp::ACK == 0 { 0 } else { FIRST_SEQ[other].wrapping_add(said[other]) };
        let segment = Segment { seq: FIRST_SEQ[own].wrapping_add(said[own]), ack, flags };
        let external = self.external.get((number - self.first) as usize).copied().unwrap_or_default();
        let (from, to) = if side == 0 { (flow.inside, flow.remote) } else { (flow.remote, external) };
        self.writers[side].segment(frame, from, to, number, segment);
    }
}

/// Source address and port of an untagged frame without options.
#[inline(always)]
fn source_of(frame: &[u8]) -> Option<(u32, u16)> {
    let address = u32::from_be_bytes(*frame.get(26..30)?.first_chunk()?);
    Some((address, u16::from_be_bytes(*frame.get(34..36)?.first_chunk()?)))
}

/// Lives of all flows, group by group; ticks per life. With `judge`, every packet that leaves is read in full.
fn lives(
    bench: &mut Bench,
    handler: &mut impl Handler,
    flows: u32,
    mut judge: Option<&mut Judge>,
) -> Result<f64, BenchError> {
    let writers = [Writer::tcp_from_inside(0), Writer::tcp_from_outside(0)];
    let group = GROUP.min(flows);
    let mut ticks = 0.0;
    for first in (0..flows).step_by(group as usize) {
        let mut external: Vec<(u32, u16)> = Vec::with_capacity(group as usize);
        for (place, step) in LIFE.into_iter().enumerate() {
            let known = std::mem::take(&mut external);
            let mut source = Steps { writers: &writers, step, number: first, external: &known, first };
            let mut learned = Vec::with_capacity(if place == 0 { group as usize } else { 0 });
            let look = |f: &Frame| {
                if place == 0 {
                    learned.push(source_of(f.frame()).unwrap_or_default());
                }
                match &mut judge {
                    Some(judge) if step.0 == 0 => judge.left(f.frame()).map(drop),
                    Some(judge) => judge.came_back(f.frame()).map(drop),
                    None => Ok(()),
                }
            };
            ticks += pass(&mut bench.supply, group, handler, &mut source, look)?;
            external = if place == 0 { learned } else { known };
        }
    }
    Ok(ticks / f64::from(flows / group))
}

/// B2: TCP connections from their SYN to their last ACK.
pub fn tcp_lives(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    let mut scene = Scene::new(Shape::new(flows, Class::Tcp4, policy.clone()))?;
    let mut rounds = Vec::new();
    for round in 0..=bench.rounds {
        let io = lives(bench, &mut Io, flows, None)?;
        scene.provision()?;
        let before = scene.accounts();
        bench.profile(true);
        scene.run();
        let all = lives(bench, scene.lane(), flows, None);
        scene.stop();
        bench.profile(false);
        let all = all?;
        let after = scene.accounts();
        scene.balance(flows.into())?;
        if after.created - before.created != u64::from(flows) {
            return Err(BenchError::Wrong(format!("{} lives instead of {flows}", after.created - before.created)));
        }
        // TIME_WAIT takes two minutes: then all have ended, by themselves.
        scene.pass(121);
        (0..=flows / 64).for_each(|_| scene.settle());
        scene.balance(0)?;
        if round > 0 {
            rounds.push(Round { work: all - io, io: Some(io), floor: bench.floor(), base: None });
        }
    }
    let mut judge = Judge::new(flows, policy);
    lives(bench, scene.lane(), flows, Some(&mut judge))?;
    judge.all_apart().map_err(BenchError::Wrong)?;
    scene.balance(flows.into())?;
    Ok(vec![rounds])
}

/// A tenth of new connections among packets of established ones.
struct Mixed<'p> {
    established: &'p mut Packets,
    new: FirstPackets<'p>,
    at: u32,
}

impl Source for Mixed<'_> {
    #[inline(always)]
    fn write(&mut self, frame: &mut Frame) {
        self.at = if self.at == 9 { 0 } else { self.at + 1 };
        if self.at == 0 { self.new.write(frame) } else { self.established.write(frame) }
    }
}

/// B3: every tenth packet is the first of a connection, the others are of established ones. Compared with what both
/// cost alone in the same router.
pub fn mixture(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    let new = (bench.packets / 10).next_power_of_two().min(1 << 18);
    let packets = new / 2 * 10;
    let mut standing = Standing::new(bench, policy, Load::Udp, flows, (flows + new) * 2)?;
    let mut rounds = Vec::new();
    for _ in 0..bench.rounds {
        let io = standing.io(bench)?;
        let established = standing.measure(bench)? - io;
        standing.scene.provision()?;
        let mut source = FirstPackets::new(policy, new, flows);
        let opening = bench.timed(&mut standing.scene, new, &mut source)? - io;
        only_established(bench, &mut standing, new)?;
        let Standing { scene, packets: established_packets, .. } = &mut standing;
        let mut source =
            Mixed { established: established_packets, new: FirstPackets::new(policy, new, flows), at: 0 };
        let both = bench.timed(scene, packets, &mut source)? - io;
        let begun = source.new.at;
        only_established(bench, &mut standing, begun)?;
        let base = Some(established + opening / 10.0);
        rounds.push(Round { work: both, io: Some(io), floor: None, base });
    }
    standing.verify(bench)?;
    Ok(vec![rounds])
}

/// Looks whether so many connections have begun besides those that stay, and lets them end.
fn only_established(bench: &mut Bench, standing: &mut Standing, begun: u32) -> Result<(), BenchError> {
    let (scene, flows) = (&mut standing.scene, standing.flows);
    scene.balance(u64::from(flows) + u64::from(begun))?;
    scene.pass(UDP_TIMEOUT + 1);
    (0..=begun / 64).for_each(|_| scene.settle());
    refresh(bench, scene, 0..flows, unseen)?;
    scene.balance(flows.into())
}

//! Connections that exist: how they come to be, and packets of theirs.

use erhu_pipeline::{BURST, Buffer};
use erhu_planes::connections::Class;

use super::flows::{Flow, Random, SEGMENT_BYTES, Segment, VLAN, Writer, tcp};
use super::flows6::{Family, UdpWriter};
use super::frames::Frame;
use super::measure::{By, Io, Source, pass, unseen};
use super::scene::{LAN, Scene, Shape, WAN};
use super::script::Policy;
use super::verify::Judge;
use super::{Bench, BenchError};

/// Packets that are read in full after the measurement.
const SAMPLE: u32 = 1 << 18;
/// The first sequence number of both ends of a TCP connection.
const FIRST_SEQ: [u32; 2] = [0x1000_0000, 0x8000_0000];

/// Which packets established connections have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// UDP outward, 64 bytes; over IPv6 70.
    Udp,
    /// UDP in both directions, in bursts by turns: 64 bytes.
    UdpBoth,
    /// TCP in both directions, in bursts by turns: 64 bytes, data and acknowledgement, in the window.
    Tcp,
    /// UDP outward, all of the longest (IP 1500 bytes). IPv4 only, as are TCP and what follows.
    Long,
    /// UDP outward, of twelve packets seven of 64 bytes, four of 594, one of 1518, tag included.
    Imix,
    /// As [`Load::Long`], with checksums that the router must verify.
    LongUnverified,
    /// As [`Load::Imix`], with checksums that the router must verify.
    ImixUnverified,
}

impl Load {
    const fn is_both_ways(self) -> bool {
        matches!(self, Self::Tcp | Self::UdpBoth)
    }

    const fn class(self, family: Family) -> Class {
        match (family, self) {
            (Family::V4, Self::Tcp) => Class::Tcp4,
            (Family::V4, _) => Class::Udp4,
            (Family::V6, Self::Tcp) => Class::Tcp6,
            (Family::V6, _) => Class::Udp6,
        }
    }

    fn writers(self, family: Family) -> [UdpWriter; 3] {
        let [short, middle, long] =
            [Writer::udp_from_inside(), Writer::long_udp_from_inside(576), Writer::long_udp_from_inside(1500)];
        let writers = match self {
            Self::Udp | Self::UdpBoth | Self::Tcp => return [(); 3].map(|()| UdpWriter::from_inside(family)),
            Self::Long => [long.clone(), long.clone(), long],
            Self::Imix => [short, middle, long],
            Self::LongUnverified => [long.clone(), long.clone(), long].map(Writer::unverified),
            Self::ImixUnverified => [short, middle, long].map(Writer::unverified),
        };
        writers.map(UdpWriter::V4)
    }
}

/// A connection as its ends know it.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    external: (u32, u16),
    /// Next sequence numbers of the inside and of the remote.
    next: [u32; 2],
}

/// Every so manieth flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The first one.
    pub first: u32,
    /// From one to the next: 1 or 2.
    pub step: u32,
}

impl Part {
    /// All flows.
    pub const ALL: Self = Self { first: 0, step: 1 };

    /// The flow of it that is nearest to a number.
    #[inline(always)]
    const fn of(self, number: u32) -> u32 {
        (number & !(self.step - 1)) | self.first
    }
}

/// Packets of established connections, visited in random order.
#[derive(Debug)]
pub struct Packets {
    load: Load,
    writers: [UdpWriter; 3],
    segments: [Writer; 2],
    answers: UdpWriter,
    policy: Policy,
    flows: u32,
    part: Part,
    random: Random,
    at: usize,
    streams: Vec<Stream>,
    side: usize,
    numbers: [u32; BURST],
}

/// Which of three writers the packets of an IMIX have in turn.
const IMIX: [usize; 12] = [0, 1, 0, 0, 1, 0, 2, 0, 1, 0, 0, 1];

impl Packets {
    /// Packets of those of the first `flows` connections (a power of two) that belong to a part.
    pub fn new(load: Load, policy: &Policy, flows: u32, part: Part, judge: &Judge) -> Self {
        let stream = |n| Stream {
            external: judge.external(n).unwrap_or_default(),
            next: FIRST_SEQ.map(|first| first.wrapping_add(1)),
        };
        let streams = if load.is_both_ways() { (0..flows).map(stream).collect() } else { Vec::new() };
        Self {
            load,
            writers: load.writers(policy.family),
            segments: [Writer::tcp_from_inside(SEGMENT_BYTES), Writer::tcp_from_outside(SEGMENT_BYTES)],
            answers: UdpWriter::from_outside(policy.family),
            policy: policy.clone(),
            flows,
            part,
            random: Random::default(),
            at: 0,
            streams,
            side: 1,
            numbers: [0; BURST],
        }
    }

    #[inline(always)]
    fn stream_packet(&mut self, frame: &mut Frame) {
        let number = self.numbers[self.at % BURST];
        self.at += 1;
        let Some(stream) = self.streams.get_mut(number as usize) else { return };
        let flow = Flow::of(number);
        if self.load == Load::UdpBoth {
            return if self.side == 0 {
                let vlan = self.policy.vlan(number);
                self.writers[0].write_tagged(frame, vlan, flow.inside, flow.remote, number);
            } else {
                self.answers.write_tagged(frame, VLAN, flow.remote, stream.external, number);
            };
        }
        let [own, other] = if self.side == 0 { [0, 1] } else { [1, 0] };
        let segment = Segment { seq: stream.next[own], ack: stream.next[other], flags: tcp::ACK | tcp::PSH };
        stream.next[own] = stream.next[own].wrapping_add(SEGMENT_BYTES.into());
        if own == 0 {
            self.segments[0].segment(frame, flow.inside, flow.remote, number, segment);
        } else {
            self.segments[1].segment(frame, flow.remote, stream.external, number, segment);
        }
    }
}

impl Source for Packets {
    #[inline(always)]
    fn begin(&mut self) -> u16 {
        if !self.load.is_both_ways() {
            return LAN;
        }
        self.side = 1 - self.side;
        self.at = 0;
        for number in &mut self.numbers {
            *number = self.part.of(self.random.below(self.flows));
            if let Some(stream) = self.streams.get(*number as usize) {
                erhu_floor::prefetch(stream);
            }
        }
        if self.side == 0 { LAN } else { WAN }
    }

    #[inline(always)]
    fn write(&mut self, frame: &mut Frame) {
        if self.load.is_both_ways() {
            return self.stream_packet(frame);
        }
        let number = self.part.of(self.random.below(self.flows));
        let flow = Flow::of(number);
        let writer = &self.writers[IMIX[self.at]];
        self.at = if self.at == IMIX.len() - 1 { 0 } else { self.at + 1 };
        writer.write_tagged(frame, self.policy.vlan(number), flow.inside, flow.remote, number);
    }
}

/// A router whose connections are all established.
pub struct Standing {
    /// It.
    pub scene: Scene,
    /// Knows what each connection was given.
    pub judge: Judge,
    /// Packets of theirs.
    pub packets: Packets,
    /// How many.
    pub flows: u32,
    load: Load,
}

impl Standing {
    /// Opens `flows` connections through a router that is configured so, reads every first packet and first answer
    /// that leaves, and lets them grow old enough that nothing but counters changes with further packets. The table is
    /// for `capacity` of them.
    ///
    /// # Errors
    /// [`BenchError::Wrong`] if anything that left was wrong.
    pub fn new(
        bench: &mut Bench,
        policy: &Policy,
        load: Load,
        flows: u32,
        capacity: u32,
    ) -> Result<Self, BenchError> {
        let mut judge = Judge::new(flows, policy);
        let mut scene = Scene::new(Shape::new(capacity, load.class(policy.family), policy.clone()))?;
        open_all(bench, &mut scene, &mut judge, load)?;
        if load == Load::Tcp {
            shake_hands(bench, &mut scene, &mut judge, flows)?;
        } else {
            establish(bench, &mut scene, &mut judge, flows)?;
        }
        let mut packets = Packets::new(load, policy, flows, Part::ALL, &judge);
        if load == Load::Tcp {
            // First data takes the slow path: nearly every connection has some before it is measured.
            pass(&mut bench.supply, flows.saturating_mul(8), scene.lane(), &mut packets, unseen)?;
        }
        Ok(Self { scene, judge, packets, flows, load })
    }

    /// Other packets of the same connections from now on.
    pub fn carry(&mut self, load: Load) {
        self.load = load;
        self.packets = Packets::new(load, &self.scene.shape.policy, self.flows, Part::ALL, &self.judge);
    }

    /// Ticks per packet of the loop that does nothing.
    ///
    /// # Errors
    /// If buffers get lost.
    pub fn io(&mut self, bench: &mut Bench) -> Result<f64, BenchError> {
        // What it sends nobody receives: the ends keep their sequence numbers.
        let streams = self.packets.streams.clone();
        let ticks = pass(&mut bench.supply, bench.packets, &mut Io, &mut self.packets, unseen);
        self.packets.streams = streams;
        ticks
    }

    /// Ticks per packet of the loop with the router.
    ///
    /// # Errors
    /// [`BenchError::Wrong`] if packets get lost, or leave the fast path.
    pub fn measure(&mut self, bench: &mut Bench) -> Result<f64, BenchError> {
        let before = self.scene.accounts();
        let packets = bench.packets;
        let all = bench.timed(&mut self.scene, packets, &mut self.packets)?;
        let fast = self.scene.accounts().fast - before.fast;
        let offered = u64::from(packets) / BURST as u64 * BURST as u64;
        // Of a full table one connection in 25 lies displaced in the index, and may go the slow way.
        if fast < offered - offered / 10 {
            return Err(BenchError::Wrong(format!("of {offered} packets only {fast} took the fast path")));
        }
        Ok(all)
    }

    /// Reads a sample of further packets in full, and counts.
    ///
    /// # Errors
    /// [`BenchError::Wrong`]: what is not as it should be.
    pub fn verify(&mut self, bench: &mut Bench) -> Result<(), BenchError> {
        let Self { scene, judge, packets, load, .. } = self;
        let look = |f: &Frame| {
            // Answers carry a tag towards the tenant.
            let is_answer = load.is_both_ways() && f.frame().get(12) == Some(&0x81);
            if is_answer { judge.came_back(f.frame()).map(drop) } else { judge.left(f.frame()).map(drop) }
        };
        pass(&mut bench.supply, bench.packets.min(SAMPLE), scene.lane(), packets, look)?;
        self.judge.all_apart().map_err(BenchError::Wrong)?;
        self.scene.balance(self.flows.into())
    }
}

/// Takes every flow's first packet through the router and reads what leaves.
///
/// # Errors
/// [`BenchError::Wrong`] if one is not translated as it should be, or the counters do not add up.
pub fn open_all(bench: &mut Bench, scene: &mut Scene, judge: &mut Judge, load: Load) -> Result<(), BenchError> {
    let (policy, flows) = (scene.shape.policy.clone(), judge.flows());
    let (udp, syn) = (UdpWriter::from_inside(policy.family), Writer::tcp_from_inside(0));
    let mut number = 0;
    let mut write = |frame: &mut Frame| {
        let flow = Flow::of(number);
        if load == Load::Tcp {
            let segment = Segment { seq: FIRST_SEQ[0], ack: 0, flags: tcp::SYN };
            syn.segment(frame, flow.inside, flow.remote, number, segment);
        } else {
            udp.write_tagged(frame, policy.vlan(number), flow.inside, flow.remote, number);
        }
        number += 1;
    };
    pass(&mut bench.supply, flows, scene.lane(), &mut write, |f: &Frame| judge.left(f.frame()).map(drop))?;
    judge.all_apart().map_err(BenchError::Wrong)?;
    scene.balance(flows.into())
}

/// Lets every UDP flow be answered and become a stream.
fn establish(bench: &mut Bench, scene: &mut Scene, judge: &mut Judge, flows: u32) -> Result<(), BenchError> {
    let mut number = 0;
    let writer = UdpWriter::from_outside(scene.shape.policy.family);
    let answer = |frame: &mut Frame| {
        let to = judge.external(number).unwrap_or_default();
        writer.write_tagged(frame, VLAN, Flow::of(number).remote, to, number);
        number += 1;
    };
    let look = |f: &Frame| judge.came_back(f.frame()).map(drop);
    pass(&mut bench.supply, flows, scene.lane(), &mut By(WAN, answer), look)?;
    // A UDP connection is a stream two seconds after its first packet.
    scene.pass(3);
    for _ in 0..2 {
        refresh(bench, scene, 0..flows, unseen)?;
    }
    // Timers of unanswered connections come round once, find them answered, and are armed for a stream's timeout.
    scene.pass(31);
    refresh(bench, scene, 0..flows, unseen)
}

/// One packet of every UDP flow of a range, in order.
///
/// # Errors
/// [`BenchError::Wrong`] if one gets lost, or what `look` says.
pub fn refresh(
    bench: &mut Bench,
    scene: &mut Scene,
    flows: std::ops::Range<u32>,
    look: impl FnMut(&Frame) -> Result<(), String>,
) -> Result<(), BenchError> {
    let policy = scene.shape.policy.clone();
    let writer = UdpWriter::from_inside(policy.family);
    let (mut number, count) = (flows.start, flows.len());
    let mut write = |frame: &mut Frame| {
        let flow = Flow::of(number);
        writer.write_tagged(frame, policy.vlan(number), flow.inside, flow.remote, number);
        number += 1;
    };
    let count = u32::try_from(count).unwrap_or(0);
    pass(&mut bench.supply, count, scene.lane(), &mut write, look).map(drop)
}

/// Ends the handshake of every TCP flow.
fn shake_hands(bench: &mut Bench, scene: &mut Scene, judge: &mut Judge, flows: u32) -> Result<(), BenchError> {
    let answers = Writer::tcp_from_outside(0);
    let mut number = 0;
    let answer = |frame: &mut Frame| {
        let segment = Segment { seq: FIRST_SEQ[1], ack: FIRST_SEQ[0].wrapping_add(1), flags: tcp::SYN | tcp::ACK };
        let to = judge.external(number).unwrap_or_default();
        answers.segment(frame, Flow::of(number).remote, to, number, segment);
        number += 1;
    };
    let look = |f: &Frame| judge.came_back(f.frame()).map(drop);
    pass(&mut bench.supply, flows, scene.lane(), &mut By(WAN, answer), look)?;
    let writer = Writer::tcp_from_inside(0);
    let mut number = 0;
    let mut last = |frame: &mut Frame| {
        let [seq, ack] = FIRST_SEQ.map(|first| first.wrapping_add(1));
        let flow = Flow::of(number);
        writer.segment(frame, flow.inside, flow.remote, number, Segment { seq, ack, flags: tcp::ACK });
        number += 1;
    };
    pass(&mut bench.supply, flows, scene.lane(), &mut last, |f: &Frame| judge.left(f.frame()).map(drop))?;
    // Timers of half-open connections come round once.
    scene.pass(61);
    Ok(())
}

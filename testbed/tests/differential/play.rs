//! Plays: packets that go into both routers, and the comparison after each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use erhu_testbed::kernel::Kernel;
use erhu_testbed::kernel::compare::{Observed, differences};
use erhu_testbed::packet::read::{Content, Seen};
use erhu_testbed::packet::{self, Packet};
use erhu_testbed::scenario::{Outcome, Scenario, Side};

use crate::{BLUE, GREEN, WAN};

/// Addresses that connections are translated to.
const EXTERNAL: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 20)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10)),
];

/// A connection to be: its client and server, and the address it is translated to.
#[derive(Clone, Debug)]
pub struct Flow {
    side: Side,
    client: (&'static str, u16),
    server: (&'static str, u16),
    /// Who answers: the server, or whom its address is translated to.
    real: (&'static str, u16),
    external: &'static str,
}

impl Flow {
    pub fn new(side: Side, client: (&'static str, u16), server: (&'static str, u16), external: &'static str) -> Self {
        Self { side, client, server, real: server, external }
    }

    /// The same, where the client calls another address, which is translated to the server's.
    pub fn called_at(self, address: (&'static str, u16)) -> Self {
        Self { server: address, ..self }
    }

    /// What left towards the server last, if anything did.
    fn sent<'h>(&self, history: &'h History, protocol: u8) -> Option<&'h Seen> {
        let [server, external] = [self.real.0, self.external].map(|text| text.parse::<IpAddr>().unwrap());
        let ours = |left: &&Left| left.flow == Some(self.key(protocol));
        let to_server = |seen: &&Seen| {
            let (source, destination) = seen.ends();
            protocol_of(seen) == protocol
                && destination.ip() == server
                && source.ip() == external
                && seen.faults().is_empty()
        };
        let left = history.iter().rev().filter(ours).flat_map(|l| &l.left);
        left.filter(|(side, _)| *side == WAN).map(|(_, seen)| seen).find(to_server)
    }

    /// What left towards the client last.
    fn received<'h>(&self, history: &'h History, protocol: u8) -> Option<&'h Seen> {
        let left = history.iter().rev().filter(|l| l.flow == Some(self.key(protocol))).flat_map(|l| &l.left);
        left.filter(|(side, _)| *side == self.side).map(|(_, seen)| seen).find(|s| protocol_of(s) == protocol)
    }

    /// Where the server sees the client: what left, else what would have without translation of the port.
    fn seen_as(&self, history: &History, protocol: u8) -> SocketAddr {
        let sent = self.sent(history, protocol).map(|seen| seen.ends().0);
        sent.unwrap_or_else(|| end((self.external, self.client.1)))
    }

    fn is_ipv6(&self) -> bool {
        self.server.0.contains(':')
    }

    fn key(&self, protocol: u8) -> Key {
        (self.side, self.client, self.server, protocol)
    }
}

fn end((address, port): (&str, u16)) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

fn protocol_of(seen: &Seen) -> u8 {
    match &seen.content {
        Content::Ip(ip) => ip.protocol,
        Content::Ip6(ip) => ip.protocol,
        _ => 0,
    }
}

type Key = (Side, (&'static str, u16), (&'static str, u16), u8);

/// What left after a packet of a flow.
struct Left {
    flow: Option<Key>,
    left: Vec<(Side, Seen)>,
}

type History = Vec<Left>;

/// What a step sends.
#[derive(Clone, Debug)]
enum What {
    Tcp(Segment),
    Udp,
    Echo,
    Error { from: &'static str, kind: u8, code: u8, quoted_port: Option<u16>, to: Option<&'static str> },
}

/// A TCP segment but for its ends.
#[derive(Clone, Debug)]
pub struct Segment {
    pub flags: String,
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    pub payload: usize,
    pub options: Vec<u8>,
}

/// One packet of a play.
#[derive(Clone, Debug)]
pub struct Step {
    flow: Flow,
    forward: bool,
    wait: f64,
    ttl: Option<u8>,
    bad_checksum: bool,
    what: What,
}

impl Step {
    fn new(flow: &Flow, forward: bool, what: What) -> Self {
        let flow = flow.clone();
        Self { flow, forward, wait: 0.0, ttl: None, bad_checksum: false, what }
    }

    fn with_ttl(mut self, ttl: u8) -> Self {
        self.ttl = Some(ttl);
        self
    }

    fn with_bad_checksum(mut self) -> Self {
        self.bad_checksum = true;
        self
    }

    /// An error that quotes another source port than the connection's.
    fn quoting_port(mut self, port: u16) -> Self {
        if let What::Error { quoted_port, .. } = &mut self.what {
            *quoted_port = Some(port);
        }
        self
    }

    /// An error that is sent to another address than the quoted packet's source.
    fn sent_to(mut self, address: &'static str) -> Self {
        if let What::Error { to, .. } = &mut self.what {
            *to = Some(address);
        }
        self
    }

    fn protocol(&self) -> u8 {
        match &self.what {
            What::Tcp(_) => 6,
            What::Udp => 17,
            What::Echo if self.flow.is_ipv6() => 58,
            What::Echo => 1,
            // Of the flow: whichever protocol it has been used with.
            What::Error { .. } => 0,
        }
    }

    fn side(&self) -> Side {
        if self.forward { self.flow.side } else { WAN }
    }

    /// The packet for a router with this history.
    fn packet(&self, history: &History) -> Packet {
        let Self { flow, forward, .. } = self;
        let ends = |protocol| {
            let client = if *forward { end(flow.client) } else { flow.seen_as(history, protocol) };
            let client = client.to_string();
            if *forward { (client, end(flow.server).to_string()) } else { (end(flow.real).to_string(), client) }
        };
        let packet = match &self.what {
            What::Tcp(segment) => {
                let (from, to) = ends(6);
                let Segment { flags, seq, ack, window, payload, options } = segment;
                let bare = packet::tcp(&from, &to).flags(flags.trim_matches('-')).seq(*seq).ack(*ack).window(*window);
                bare.tcp_options(options).payload_len(*payload)
            }
            What::Udp => {
                let (from, to) = ends(17);
                packet::udp(&from, &to).payload(b"a datagram")
            }
            What::Echo if *forward => packet::ping(flow.client.0, flow.server.0, flow.client.1).payload(b"an echo"),
            What::Echo => {
                let client = flow.seen_as(history, self.protocol());
                packet::pong(flow.real.0, &client.ip().to_string(), client.port()).payload(b"an echo")
            }
            What::Error { from, kind, code, quoted_port, to } => {
                let of = |p| if *forward { flow.received(history, p) } else { flow.sent(history, p) };
                let about = [6, 17, 1, 58].into_iter().find_map(of).expect("an error is about something that left");
                let mut quoted = about.l3().to_vec();
                if let Some(port) = quoted_port {
                    let at = if flow.is_ipv6() { 40 } else { 20 };
                    quoted[at..at + 2].copy_from_slice(&port.to_be_bytes());
                }
                let back = about.ends().0.ip().to_string();
                let error = packet::icmp_error(from, to.unwrap_or(&back), *kind, *code).about(&quoted);
                let tells_mtu = if flow.is_ipv6() { *kind == 2 } else { (*kind, *code) == (3, 4) };
                if tells_mtu { error.next_hop_mtu(1280) } else { error }
            }
        };
        let packet = self.ttl.map_or(packet.clone(), |ttl| packet.ttl(ttl));
        if self.bad_checksum { packet.bad_checksum() } else { packet }
    }
}

/// How most connections begin.
pub const OPEN: &str = "> S 100 0; < SA 900 101; > A 101 901";

/// Segments of a TCP connection from text: direction, flags, sequence and acknowledgement number, separated by `;`. What
/// may follow: a number of bytes of payload, `w` and a window, `s` and a window scale with SACK permitted, `b` and the
/// edges of a SACK block.
pub fn tcp(flow: Flow, life: &str) -> Vec<Step> {
    let segment = |line: &str| {
        let mut words = line.split_whitespace();
        let mut word = || words.next().unwrap_or_else(|| panic!("{line:?} lacks something")).to_owned();
        let (direction, flags) = (word(), word());
        let (seq, ack) = (word().parse().unwrap(), word().parse().unwrap());
        let mut segment = Segment { flags, seq, ack, window: 64_240, payload: 0, options: Vec::new() };
        for word in words {
            match word.split_at(1) {
                ("w", window) => segment.window = window.parse().unwrap(),
                ("s", scale) => segment.options = offer(Some(scale.parse().unwrap()), true),
                ("b", edges) => {
                    let (left, right) = edges.split_once('-').unwrap();
                    segment.options = block(left.parse().unwrap(), right.parse().unwrap());
                }
                _ => segment.payload = word.parse().unwrap(),
            }
        }
        Step::new(&flow, direction == ">", What::Tcp(segment))
    };
    life.replace("open", OPEN).split(';').map(str::trim).map(segment).collect()
}

/// One segment of a flow.
pub fn one(flow: &Flow, forward: bool, segment: Segment) -> Step {
    Step::new(flow, forward, What::Tcp(segment))
}

/// Options of a SYN.
pub fn offer(scale: Option<u8>, sack: bool) -> Vec<u8> {
    let mut options = vec![2, 4, 5, 180];
    if sack {
        options.extend([4, 2]);
    }
    if let Some(scale) = scale {
        options.extend([1, 3, 3, scale]);
    }
    options
}

/// A SACK block, behind a time stamp.
pub fn block(left: u32, right: u32) -> Vec<u8> {
    let mut options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 1, 5, 10];
    options.extend(left.to_be_bytes());
    options.extend(right.to_be_bytes());
    options
}

/// Datagrams: `>` and `<`, and `+2.2` for seconds to wait before the next.
pub fn udp(flow: Flow, talk: &str) -> Vec<Step> {
    exchange(&flow, talk, &What::Udp)
}

/// Echo requests (`>`) and replies (`<`), likewise. The client's port is the identifier.
pub fn echo(flow: Flow, talk: &str) -> Vec<Step> {
    exchange(&flow, talk, &What::Echo)
}

fn exchange(flow: &Flow, talk: &str, what: &What) -> Vec<Step> {
    let (mut steps, mut wait) = (Vec::new(), 0.0);
    for word in talk.split_whitespace() {
        match word.strip_prefix('+') {
            Some(seconds) => wait = seconds.parse().unwrap(),
            None => {
                steps.push(Step { wait: std::mem::take(&mut wait), ..Step::new(flow, word == ">", what.clone()) })
            }
        }
    }
    steps
}

/// An ICMP error from somewhere outside, about what the client sent last.
pub fn error_outside(flow: &Flow, from: &'static str, kind: u8, code: u8) -> Step {
    Step::new(flow, false, What::Error { from, kind, code, quoted_port: None, to: None })
}

/// An ICMP error from somewhere inside, about what the server answered last.
pub fn error_inside(flow: &Flow, from: &'static str, kind: u8, code: u8) -> Step {
    Step::new(flow, true, What::Error { from, kind, code, quoted_port: None, to: None })
}

/// A talk over UDP with an error in between about either direction: one from outside, one from each of some hosts
/// inside.
pub fn talk_with_errors(
    flow: &Flow,
    outside: &[&'static str],
    inside: &[&'static str],
    error: (u8, u8),
) -> Vec<Step> {
    let mut steps = udp(flow.clone(), "> <");
    steps.extend(outside.iter().map(|from| error_outside(flow, from, error.0, error.1)));
    steps.extend(inside.iter().map(|from| error_inside(flow, from, error.0, error.1)));
    steps.extend(udp(flow.clone(), "> <"));
    steps
}

/// A datagram and its answer, errors that fit neither, and at last one that does. `other` is an external address that
/// is not the flow's.
pub fn errors_that_fit_nothing(flow: &Flow, from: &'static str, other: &'static str, error: (u8, u8)) -> Vec<Step> {
    let error = || error_outside(flow, from, error.0, error.1);
    let mut steps = udp(flow.clone(), "> <");
    steps.extend([error().quoting_port(1), error().sent_to(other), error().with_bad_checksum(), error()]);
    steps
}

/// An echo, answered, with an error about either direction.
pub fn echo_with_errors(flow: &Flow, outside: (&'static str, u8, u8), inside: (&'static str, u8, u8)) -> Vec<Step> {
    let mut steps = echo(flow.clone(), "> <");
    steps.push(error_outside(flow, outside.0, outside.1, outside.2));
    steps.push(error_inside(flow, inside.0, inside.1, inside.2));
    steps
}

/// The same steps with wrong checksums.
pub fn broken(steps: Vec<Step>) -> Vec<Step> {
    steps.into_iter().map(Step::with_bad_checksum).collect()
}

/// The same steps with another time to live.
pub fn living(steps: Vec<Step>, ttl: u8) -> Vec<Step> {
    steps.into_iter().map(|step| step.with_ttl(ttl)).collect()
}

/// Packets in their order, from an empty table on.
pub struct Play {
    name: String,
    steps: Vec<Step>,
}

impl Play {
    pub fn new(name: &str, steps: Vec<Step>) -> Self {
        Self { name: name.into(), steps }
    }

    /// Plays it to both routers; panics at the first step after which they differ.
    #[track_caller]
    pub fn run(&self, kernel: &mut Kernel, erhu: &Scenario) {
        kernel.flush().unwrap_or_else(|fault| panic!("{fault}"));
        let began = Instant::now();
        let (mut of_kernel, mut of_erhu) = (History::new(), History::new());
        let mut scenario = erhu.clone();
        for (number, step) in self.steps.iter().enumerate() {
            std::thread::sleep(Duration::from_secs_f64(step.wait));
            let now = if number == 0 { 0.0 } else { began.elapsed().as_secs_f64() };
            let flow = Some(step.flow.key(step.protocol()));

            scenario = scenario.send(now, step.side(), step.packet(&of_erhu));
            let erhu = observe(&scenario.run(), now);
            let packet = step.packet(&of_kernel).mac_to_default(scenario.router_mac(step.side().port));
            kernel.send(step.side(), &packet);
            let kernel = kernel.outcome(erhu.left.len()).unwrap_or_else(|fault| panic!("{fault}"));

            let found = differences(&kernel, &erhu, &EXTERNAL);
            assert!(
                found.is_empty(),
                "{}, packet {}: {} into {:?}\n{}\nkernel: {}\nerhu: {}",
                self.name,
                number + 1,
                packet.seen(),
                step.side(),
                found.join("\n"),
                describe(&kernel),
                describe(&erhu),
            );
            of_kernel.push(Left { flow, left: kernel.left });
            of_erhu.push(Left { flow, left: erhu.left });
        }
    }
}

/// What erhu did at an instant, and its table then.
fn observe(outcome: &Outcome, now: f64) -> Observed {
    let now = (now * 1e6).round() / 1e6;
    let sides = [BLUE, GREEN, WAN].into_iter();
    let all = sides.flat_map(|side| outcome.packets(side).into_iter().map(move |seen| (side, seen)));
    let left = all.filter(|(_, seen)| Outcome::seconds(seen) > now - 1e-7).map(|(side, seen)| (side, seen.clone()));
    Observed { left: left.collect(), table: outcome.entries.clone() }
}

fn describe(observed: &Observed) -> String {
    let left = observed.left.iter().map(|(side, seen)| format!("\n  left {side:?}: {seen}"));
    let table = observed.table.iter().map(|e| format!("\n  {:?} s {e}", e.timeout));
    left.chain(table).collect()
}

/// A small generator of numbers: xorshift, Marsaglia 2003.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A number below another.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

//! Random packets of both directions, through the tracker and through the oracle.
//!
//! A flow begins with a first packet, or in any state with nothing known. Each packet is made of numbers that lie
//! at, just before, just behind, or anywhere around the bounds that hold at the moment, so that both sides of every
//! comparison are seen; hosts begin near 2³² as often as elsewhere. After each packet everything that can be seen, and
//! everything that is remembered of the windows, must be what the oracle says.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use erhu_conntrack::Timeouts;
use erhu_conntrack::tcp::{
    Change, Outcome, Segment, Step, TcpState, kept_status, open, step, step_in_order, step_plain,
};
use erhu_planes::connections::TcpLine;
use erhu_planes::connections::status::{ASSURED, FIXED_TIMEOUT, SEEN_REPLY};
use erhu_planes::program::{Program, TimeoutPolicy, Tracking};
use erhu_planes::timeouts::TimeoutKey;

use crate::oracle::{Hits, M, Oracle, Seconds, Wire, cell_name, table, wrap};
use crate::support::{COLUMNS, line, state_named, words};

/// Every rule has to be followed at least this often.
const ENOUGH: u64 = 100;

const FLOWS: u32 = 120_000;

/// Rules by the names under which the oracle counts them.
const RULES: &[&str] = &[
    "opened by a SYN",
    "picked up in mid-stream",
    "first packet invalid",
    "star: reopened after a close",
    "star: reopened after a reset",
    "star: ignored",
    "dagger",
    "challenge armed",
    "double dagger",
    "resynchronised",
    "reset (a)",
    "reset (b): number 0",
    "reset (b): before what was acknowledged",
    "reset (b): not established",
    "reset (b): exact",
    "reset (b): follows its own data",
    "reset (b): inexact",
    "reset (c): answers an ignored SYN",
    "reset (c): answers an ignored ACK",
    "reset (d)",
    "reset: judged",
    "SACK beyond the acknowledgement",
    "SACK that was not permitted",
    "scaling agreed",
    "scaling not agreed",
    "rule 1: bare SYN",
    "rule 1: SYN/ACK",
    "rule 1: both unknown",
    "rule 1: answer to a keep-alive",
    "rule 1: sender unknown",
    "rule 2: opener",
    "rule 2: answerer",
    "rule 2: bare SYN of the answerer",
    "rule 2: not later",
    "rule 3: no ACK",
    "rule 3: RST+ACK with ack 0",
    "rule 3: RST with seq 0 in SS",
    "rule 4: overshoot",
    "rule 4: invalid, no window",
    "rule 4: invalid, and II",
    "rule 4: invalid, and III",
    "rule 4: invalid, and IV",
    "rule 4: invalid, by too much",
    "rule 5: invalid",
    "rule 6: ignored",
    "rule 6: no window known",
    "rule 7: ignored, by window",
    "rule 7: ignored, by 66000",
    "rule 8: the window of a SYN is not scaled",
    "rule 8: scaled by 14",
    "rule 8: window grows",
    "rule 8: end moves",
    "rule 8: first acknowledgement",
    "rule 8: acknowledgement moves",
    "rule 8: acknowledgement stays",
    "rule 8: receiver's window grows",
    "rule 8: window closes",
    "rule 8: more is permitted",
    "rule 8: all is acknowledged",
    "rule 9: repeated",
    "rule 9: fresh",
    "liberal by mode",
    "liberal by flag",
    "killed by a reset without reply",
    "SYN sent again",
    "established without reply",
    "assured",
    "fixed timeout",
    "timeout lowered",
    "timeout: retransmissions",
    "timeout: reset",
    "timeout: unacknowledged",
    "timeout: closed window",
    "timeout: the state's",
];

/// A small generator of numbers: SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }

    fn number(&mut self, limit: i64) -> i64 {
        i64::try_from(self.below(u64::try_from(limit).unwrap())).unwrap()
    }
}

/// Where hosts begin to count.
fn beginning(random: &mut Random) -> i64 {
    match random.below(3) {
        0 => wrap(M - 1 - random.number(3000)),
        1 => random.number(3000),
        _ => random.number(M),
    }
}

/// A packet that is plausible, or nearly, to a connection as the oracle knows it.
fn packet(random: &mut Random, oracle: &Oracle<'_>, dir: usize, last: &[Option<Wire>; 2], begin: [i64; 2]) -> Wire {
    if let (Some(again), true) = (&last[dir], random.one_in(6)) {
        return again.clone();
    }
    let (sender, receiver) = (&oracle.sides[dir], &oracle.sides[1 - dir]);
    let class = match random.below(24) {
        0..=1 => "S",
        2..=3 => "SA",
        4..=5 => "F",
        6..=7 => "R",
        8 => "RA",
        9 => "-",
        _ => "A",
    };
    let class = match (oracle.state, dir, random.below(3)) {
        // Towards an established connection most of the time.
        ("SS", 1, 0..=1) => "SA",
        ("SR", 0, 0..=1) => "A",
        _ => class,
    };
    let syn = class.starts_with('S');
    let last_of_peer = last[1 - dir].as_ref();
    let seq = match random.below(16) {
        _ if syn && sender.maxwin == 0 => begin[dir],
        0 => sender.maxend + random.pick(&[-1, 0, 1, 2, 500]),
        1 => sender.end - receiver.maxwin + random.pick(&[-1, 0, 1]),
        2 => receiver.maxack.unwrap_or(0) + random.pick(&[-1, 0, 0, 0, 1]),
        3 => 0,
        4 => random.number(M),
        5 => sender.end - 1,
        6 => last[dir].as_ref().map_or(0, Wire::end),
        7 => last_of_peer.map_or(0, |p| p.ack),
        8 => sender.end - random.number(100_000),
        9 => sender.end + random.number(5000),
        _ => sender.end,
    };
    let ack = match random.below(16) {
        0 => receiver.end + random.pick(&[-1, 1, 2]),
        1 => receiver.end - sender.maxwin.max(66_000) + random.pick(&[-1, 0, 1]),
        2 => 0,
        3 => random.number(M),
        4 | 5 => last_of_peer.map_or(0, Wire::end),
        6 => receiver.end - random.number(100_000),
        7 => sender.maxack.unwrap_or(0),
        _ => receiver.end,
    };
    let payload = match random.below(10) {
        _ if syn || class.starts_with('R') => 0,
        0..=4 => 0,
        5 => 1,
        6 => 1460,
        7 => random.number(1461),
        8 => receiver.maxwin.min(60_000),
        _ => 10,
    };
    let window = match random.below(8) {
        0 => 0,
        1 => 65_535,
        2 => 1,
        3 => random.number(65_536),
        _ => 1000,
    };
    let has_options = syn && !random.one_in(5);
    let blocks = match random.below(4) {
        0 if !syn => {
            let mut edge =
                || receiver.end + random.pick(&[-2000, -1, 0, 0, 1, 700]) - i64::from(random.one_in(3)) * 500;
            (0..2).map(|_| wrap(edge())).collect()
        }
        _ => Vec::new(),
    };
    Wire {
        syn,
        fin: class == "F",
        rst: class.starts_with('R'),
        ack_set: class.contains('A') || class == "F",
        seq: wrap(seq),
        ack: wrap(ack),
        payload,
        window,
        has_options: has_options || !blocks.is_empty(),
        scale: (has_options && !random.one_in(4)).then(|| random.pick(&[0, 2, 7, 14, 15, 255])),
        sack_permitted: has_options && !random.one_in(4),
        blocks,
    }
}

/// The bytes of a packet from its TCP header on.
fn bytes(random: &mut Random, wire: &Wire) -> Vec<u8> {
    let mut options = Vec::new();
    if wire.has_options && random.one_in(2) {
        options.extend([1, 1, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0]);
    }
    if wire.sack_permitted {
        options.extend([4, 2]);
    }
    if let Some(scale) = wire.scale {
        options.extend([1, 3, 3, u8::try_from(scale).unwrap()]);
    }
    if !wire.blocks.is_empty() {
        options.extend([5, u8::try_from(2 + 8 * wire.blocks.len()).unwrap()]);
        for right in &wire.blocks {
            options.extend(u32::try_from(wrap(right - 1)).unwrap().to_be_bytes());
            options.extend(u32::try_from(*right).unwrap().to_be_bytes());
        }
    }
    // Options that say nothing are options too. Segments without SYN may carry time stamps and nothing else.
    if wire.has_options && options.is_empty() {
        options.extend([1; 4]);
    }
    if !wire.has_options && !wire.syn && random.one_in(2) {
        options.extend([1, 1, 8, 10, 5, 10, 0xff, 0xff, 0xff, 0xff, 0, 0]);
    }
    options.resize(options.len().next_multiple_of(4), 1);
    let bit = |set: bool, bit: u8| if set { bit } else { 0 };
    let flags = bit(wire.fin, 1) | bit(wire.syn, 2) | bit(wire.rst, 4) | bit(wire.ack_set, 16);
    let mut bytes = vec![0; 4];
    bytes.extend(u32::try_from(wire.seq).unwrap().to_be_bytes());
    bytes.extend(u32::try_from(wire.ack).unwrap().to_be_bytes());
    // Push, ECE, CWR say nothing.
    bytes.extend([u8::try_from((20 + options.len()) / 4).unwrap() << 4, flags | random.pick(&[0, 8, 0xc0])]);
    bytes.extend(u16::try_from(wire.window).unwrap().to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(options);
    bytes.resize(bytes.len() + usize::try_from(wire.payload).unwrap(), 7);
    bytes
}

/// Two timeout policies: the defaults, and one in which nothing is shorter than what is to be less.
fn policies() -> [(Timeouts, Seconds); 2] {
    let keys = [
        TimeoutKey::TcpSynSent,
        TimeoutKey::TcpSynSent,
        TimeoutKey::TcpSynRecv,
        TimeoutKey::TcpEstablished,
        TimeoutKey::TcpFinWait,
        TimeoutKey::TcpCloseWait,
        TimeoutKey::TcpLastAck,
        TimeoutKey::TcpTimeWait,
        TimeoutKey::TcpClose,
        TimeoutKey::TcpSynSent2,
    ];
    let long = |key: TimeoutKey| 1000 + 7 * u32::try_from(key as usize).unwrap();
    let usual = Seconds {
        states: COLUMNS.into_iter().zip(keys.map(TimeoutKey::default_seconds)).collect(),
        retrans: 300,
        unacked: 300,
    };
    let longer = Seconds { states: COLUMNS.into_iter().zip(keys.map(long)).collect(), retrans: 50, unacked: 70 };
    let mut values: Vec<_> = keys.iter().map(|key| (*key, u64::from(long(*key)) * 1000)).collect();
    values.extend([(TimeoutKey::TcpMaxRetrans, 50_000), (TimeoutKey::TcpUnacknowledged, 70_000)]);
    let mut program = Program::empty();
    program.timeouts[0] = TimeoutPolicy { name: "default".into(), values, udp_refresh: None };
    [(Timeouts::default(), usual), (Timeouts::compile_all(&program).remove(0), longer)]
}

/// What the line remembers of windows, as the oracle has it.
fn sides_differ(line: &TcpLine, oracle: &Oracle<'_>) -> Option<String> {
    for (dir, side) in oracle.sides.iter().enumerate() {
        let flags = line.flags[dir].load(Relaxed);
        let set = |bit: u8| flags & bit != 0;
        let word = |pair: &[std::sync::atomic::AtomicU32; 2]| i64::from(pair[dir].load(Relaxed));
        let known = crate::oracle::Side {
            end: word(&line.end),
            maxend: word(&line.max_end),
            maxwin: word(&line.max_window),
            maxack: set(0x20).then(|| word(&line.max_ack)),
            scale: i64::from(line.scale[dir].load(Relaxed)),
            wscale: set(0x01),
            sack_perm: set(0x02),
            close_init: set(0x04),
            be_liberal: set(0x08),
            data_unacked: set(0x10),
        };
        if known != *side {
            return Some(format!("side {dir}:\n tracker {known:?}\n oracle  {side:?}"));
        }
    }
    let retrans = i64::from(line.retransmissions.load(Relaxed));
    (retrans != oracle.retrans.min(255)).then(|| format!("{retrans} repetitions, not {}", oracle.retrans))
}

/// What an accepted segment does at least.
const ACCEPTED: Step = Step {
    outcome: Outcome::Accept,
    state: TcpState::Established,
    state_changed: false,
    refresh: true,
    shortened: false,
    beyond: None,
    set_status: 0,
    lower_to: None,
};

/// The short ways, and how many packets went them.
#[derive(Default)]
struct Short {
    plain: u32,
    in_order: u32,
}

impl Short {
    fn step(&mut self, line: &TcpLine, dir: usize, raw: &[u8], timeouts: &Timeouts) -> Option<Step> {
        let before = words(line);
        if let Some(shortened) = step_plain(line, dir, raw, timeouts) {
            self.plain += 1;
            return Some(Step { shortened, ..ACCEPTED });
        }
        assert_eq!(words(line), before, "changed before it was judged");
        let Change { state, state_changed, shortened, set_status } = step_in_order(line, dir, raw, timeouts)?;
        self.in_order += 1;
        Some(Step { state, state_changed, shortened, set_status, ..ACCEPTED })
    }
}

/// One flow; panics where the two differ. Counts the packets that went the short way.
fn play(
    seed: u64,
    written: &'static BTreeMap<(&'static str, usize, &'static str), &'static str>,
    hits: &mut Hits,
    short: &mut Short,
) {
    let mut random = Random(seed);
    let [usual, longer] = policies();
    let (timeouts, seconds) = if random.one_in(2) { usual } else { longer };
    let mode = random.pick(&[Tracking::Strict, Tracking::Loose, Tracking::Loose, Tracking::Liberal]);
    let begin = [beginning(&mut random), beginning(&mut random)];
    let line = line();
    line.mode.store(mode as u8, Relaxed);
    let begins_blank = random.one_in(4);
    let start = if begins_blank { random.pick(&COLUMNS) } else { "NO" };
    let mut oracle = Oracle::blank(written, hits, start, mode == Tracking::Liberal, seconds);
    let mut last = [None, None];
    let mut story = vec![format!("{mode:?}, begins in {start}, blank: {begins_blank}")];
    if begins_blank {
        line.state.store(state_named(start) as u8, Relaxed);
        oracle.replied = random.one_in(2);
        oracle.assured = oracle.replied && random.one_in(2);
    } else {
        let mut wire = packet(&mut random, &oracle, 0, &last, begin);
        if !random.one_in(8) {
            (wire.fin, wire.rst, wire.syn, wire.ack_set) = (false, false, true, false);
            (wire.payload, wire.seq, wire.blocks) = (0, begin[0], Vec::new());
        }
        let raw = bytes(&mut random, &wire);
        let segment = Segment::parse(&raw).unwrap();
        let opened = open(&line, 0, &segment, mode, &timeouts);
        let expected = oracle.first(&wire, mode != Tracking::Strict);
        story.push(format!("first {wire:?}"));
        assert_eq!(opened.is_some(), expected, "seed {seed}: {story:#?}");
        let Some(opened) = opened else { return };
        assert_eq!(opened.state, state_named(oracle.state), "seed {seed}: {story:#?}");
        assert_eq!(opened.timeout, oracle.timeout * 16, "seed {seed}: {story:#?}");
        last[0] = Some(wire);
    }
    oracle.fixed = random.one_in(20);
    let mut status = [(oracle.replied, SEEN_REPLY), (oracle.assured, ASSURED), (oracle.fixed, FIXED_TIMEOUT)]
        .into_iter()
        .filter(|(set, _)| *set)
        .fold(0, |all, (_, bit)| all | bit);
    line.status.store(kept_status(status), Relaxed);
    for _ in 0..random.below(50) {
        let dir = usize::from(random.one_in(2));
        let wire = packet(&mut random, &oracle, dir, &last, begin);
        let raw = bytes(&mut random, &wire);
        let segment = Segment::parse(&raw).unwrap();
        story.push(format!("{} in {}: {wire:?}", ["orig", "reply"][dir], oracle.state));
        // As the worker has it; every second flow goes the long way alone.
        let before = words(&line);
        let short_step = if seed.is_multiple_of(2) { short.step(&line, dir, &raw, &timeouts) } else { None };
        let result = short_step.unwrap_or_else(|| {
            assert_eq!(words(&line), before, "changed before it was judged, seed {seed}: {story:#?}");
            step(&line, dir, &segment, &timeouts)
        });
        let expected = oracle.packet(dir, &wire);
        let what = || format!("seed {seed}: {story:#?}\n{result:?}");
        assert_eq!((result.outcome, result.beyond), (expected.outcome, expected.beyond), "{}", what());
        if expected.outcome == Outcome::Reopen {
            return;
        }
        status |= result.set_status;
        assert_eq!(result.state, state_named(oracle.state), "{}", what());
        assert_eq!(TcpState::from_u8(line.state.load(Relaxed)), result.state, "{}", what());
        assert_eq!(status & SEEN_REPLY != 0, oracle.replied, "{}", what());
        assert_eq!(status & ASSURED != 0, oracle.assured, "{}", what());
        assert_eq!(line.status.load(Relaxed), kept_status(status), "{}", what());
        assert_eq!((result.refresh, result.lower_to.is_some()), (expected.refresh, expected.lower), "{}", what());
        if expected.outcome == Outcome::KillAccept {
            return;
        }
        assert_eq!(line.timeout.load(Relaxed), oracle.timeout * 16, "{}", what());
        if let Some(difference) = sides_differ(&line, &oracle) {
            panic!("{difference}\n{}", what());
        }
        last[dir] = Some(wire);
    }
}

/// N17: both directions, numbers near 2³², scaling up to 14, SACK: as an oracle says that shares no code.
#[test]
fn random_packets_do_what_the_rules_say_and_follow_each_a_hundred_times() {
    let seed = std::env::var("ERHU_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(17_u64);
    println!("seed {seed} (ERHU_SEED), {FLOWS} flows");
    let written = Box::leak(Box::new(table()));
    let (mut hits, mut short) = (Hits::new(), Short::default());
    for flow in 0..FLOWS {
        play(seed.wrapping_mul(0x1_0000_0000).wrapping_add(u64::from(flow)), written, &mut hits, &mut short);
    }
    let Short { plain, in_order } = short;
    println!("{plain:>9}  judged as plain\n{in_order:>9}  judged in order");
    assert!(plain > FLOWS / 4 && in_order > FLOWS / 4, "{plain} and {in_order} packets of {FLOWS} flows");
    let mut wanted: Vec<String> = RULES.iter().map(|rule| (*rule).to_owned()).collect();
    wanted.extend(written.keys().map(|(class, dir, state)| cell_name(class, *dir, state)));
    assert_eq!(wanted.len(), RULES.len() + 120);
    for rule in &wanted {
        println!("{:>9}  {rule}", hits.get(rule).copied().unwrap_or(0));
    }
    let missed: Vec<_> = wanted.iter().filter(|rule| hits.get(*rule).copied().unwrap_or(0) < ENOUGH).collect();
    assert!(missed.is_empty(), "followed less than {ENOUGH} times: {missed:#?}");
    let unnamed: Vec<_> = hits.keys().filter(|rule| !wanted.contains(rule)).collect();
    assert!(unnamed.is_empty(), "counted and not asked for: {unnamed:?}");
}

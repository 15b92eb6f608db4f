//! The TCP state table and the rules around it, against an independent oracle.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering::Relaxed};

use erhu_conntrack::Timeouts;
use erhu_conntrack::tcp::{LOWER_ABOVE, Outcome, PacketClass, Segment, TcpState, classify, open, step};
use erhu_planes::connections::status::{ASSURED, FIXED_TIMEOUT, SEEN_REPLY};
use erhu_planes::connections::{TCP_STATES, TcpLine};
use erhu_planes::program::{Program, TimeoutPolicy, Tracking};
use erhu_planes::timeouts::TimeoutKey;
use proptest::prelude::*;

/// The table as it is written down for people; parsed by the tests below.
/// A star: may reopen. A dagger (+): may answer a SYN that was let through. A double dagger (#): after a simultaneous
/// open ESTABLISHED.
const TABLE: &str = "
| SYN     | orig  | SS | SS | IG  | IG | IG | IG | IG  | SS* | SS* | S2 |
| SYN/ACK | orig  | IV | IV | SR  | IV | IV | IV | IV  | IV  | IV  | SR |
| FIN     | orig  | IV | IV | FW  | FW | LA | LA | LA  | TW  | CL  | IV |
| ACK     | orig  | ES | IV | ES  | ES | CW | CW | TW+ | TW  | CL  | IV |
| RST     | orig  | IV | CL | CL  | CL | CL | CL | CL  | CL  | CL  | CL |
| none    | orig  | IV | IV | IV  | IV | IV | IV | IV  | IV  | IV  | IV |
| SYN     | reply | IV | S2 | IV  | IV | IV | IV | IV  | SS* | IV  | S2 |
| SYN/ACK | reply | IV | SR | IG  | IG | IG | IG | IG  | IG  | IG  | SR |
| FIN     | reply | IV | IV | FW  | FW | LA | LA | LA  | TW  | CL  | IV |
| ACK     | reply | IV | IG | SR# | ES | CW | CW | TW+ | TW  | CL  | IG |
| RST     | reply | IV | CL | CL  | CL | CL | CL | CL  | CL  | CL  | CL |
| none    | reply | IV | IV | IV  | IV | IV | IV | IV  | IV  | IV  | IV |
";

const COLUMNS: [&str; 10] = ["NO", "SS", "SR", "ES", "FW", "CW", "LA", "TW", "CL", "S2"];

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

fn cells() -> impl Iterator<Item = (u8, usize, usize, String)> {
    TABLE.lines().filter(|l| !l.is_empty()).flat_map(|line| {
        let fields: Vec<String> = line.split('|').map(|f| f.trim().to_owned()).collect();
        let flags = match fields[1].as_str() {
            "SYN" => SYN,
            "SYN/ACK" => SYN | ACK,
            "FIN" => FIN | ACK,
            "ACK" => ACK,
            "RST" => RST | ACK,
            "none" => 0,
            other => panic!("no class {other}"),
        };
        let dir = usize::from(fields[2] == "reply");
        (0..10).map(move |state| (flags, dir, state, fields[3 + state].clone())).collect::<Vec<_>>()
    })
}

fn line() -> TcpLine {
    let pair = || [AtomicU32::new(0), AtomicU32::new(0)];
    let bytes = || [AtomicU8::new(0), AtomicU8::new(0)];
    TcpLine {
        end: pair(),
        max_end: pair(),
        max_window: pair(),
        max_ack: pair(),
        last_seq: AtomicU32::new(0),
        last_ack: AtomicU32::new(0),
        last_end: AtomicU32::new(0),
        last_window: AtomicU16::new(0),
        scale: bytes(),
        flags: bytes(),
        state: AtomicU8::new(0),
        last_dir: AtomicU8::new(0),
        last_index: AtomicU8::new(PacketClass::None as u8),
        retransmissions: AtomicU8::new(0),
        last_flags: AtomicU8::new(0),
        last_scale: AtomicU8::new(0),
        timeout: AtomicU32::new(0),
    }
}

fn segment(flags: u8, seq: u32, ack: u32, window: u16, payload: u32) -> Segment {
    let controls = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    let end = seq.wrapping_add(payload).wrapping_add(controls);
    Segment { class: classify(flags), seq, ack, end, window }
}

fn state_named(cell: &str) -> TcpState {
    let number = COLUMNS.iter().position(|c| *c == cell).unwrap_or_else(|| panic!("no state {cell}"));
    TcpState::from_u8(u8::try_from(number).unwrap())
}

/// Timeouts in which every state has a number of its own.
fn distinct() -> Timeouts {
    let keys = [
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
    let mut program = Program::empty();
    let values = keys.iter().zip(11u64..).map(|(key, seconds)| (*key, seconds * 1000)).collect();
    program.timeouts[0] = TimeoutPolicy { name: "default".into(), values, udp_refresh: None };
    Timeouts::compile_all(&program).remove(0)
}

#[test]
fn every_cell_of_the_table_does_what_it_says() {
    let timeouts = distinct();
    let mut seen = 0;
    for (flags, dir, number, cell) in cells() {
        for mode in [Tracking::Strict, Tracking::Loose, Tracking::Liberal] {
            let what = format!("{flags:#x} dir {dir} in {} gives {cell} ({mode:?})", COLUMNS[number]);
            let line = line();
            line.state.store(u8::try_from(number).unwrap(), Relaxed);
            let old = TcpState::from_u8(line.state.load(Relaxed));
            let status = SEEN_REPLY | ASSURED;
            let packet = segment(flags, 1000, 2000, 500, 0);
            let result = step(&line, status, dir, &packet, mode, &timeouts);
            let plain = cell.trim_end_matches(['*', '+', '#']);
            // Nothing was remembered that would make a star, a dagger or a double dagger apply.
            let (outcome, new) = match plain {
                "IV" => (Outcome::Invalid, old),
                "IG" => (Outcome::Ignore, old),
                _ if cell.ends_with('*') => (Outcome::Ignore, old),
                name => (Outcome::Accept, state_named(name)),
            };
            assert_eq!((result.outcome, result.state), (outcome, new), "{what}");
            assert_eq!(line.state.load(Relaxed), new as u8, "{what}");
            assert_eq!(result.state_changed, new != old, "{what}");
            assert_eq!((result.set_status, result.refresh), (0, outcome == Outcome::Accept), "{what}");
            if outcome == Outcome::Accept {
                // SYN_SENT is 11 s, and so on in the order of the numbers; a reset always gives CLOSE's.
                let state = if flags & RST != 0 { TcpState::Close } else { new };
                let expected = Some((10 + u32::from(state as u8)) * 16);
                assert_eq!(result.timeout, expected, "{what}");
            } else {
                assert_eq!(result.timeout, None, "{what}");
            }
            seen += 1;
        }
    }
    assert_eq!(seen, 6 * 2 * 10 * 3);
}

#[test]
fn states_are_numbered_as_readers_expect() {
    assert_eq!(TcpState::ALL.len(), TCP_STATES.len());
    assert_eq!(TCP_STATES[TcpState::SynSent2 as usize], "SYN_SENT2");
    assert_eq!(TCP_STATES[TcpState::TimeWait as usize], "TIME_WAIT");
    assert_eq!(TcpState::from_u8(10), TcpState::None);
}

#[test]
fn classes_take_reset_before_syn_before_fin_before_ack() {
    for flags in 0..=255u8 {
        let expected = if flags & RST != 0 {
            PacketClass::Rst
        } else if flags & (SYN | ACK) == SYN | ACK {
            PacketClass::SynAck
        } else if flags & SYN != 0 {
            PacketClass::Syn
        } else if flags & FIN != 0 {
            PacketClass::Fin
        } else if flags & ACK != 0 {
            PacketClass::Ack
        } else {
            PacketClass::None
        };
        assert_eq!(classify(flags), expected, "{flags:#x}");
    }
}

#[test]
fn a_segment_is_read_from_its_bytes_and_short_ones_are_refused() {
    let mut bytes = vec![0x9c, 0x40, 0x01, 0xbb, 0xff, 0xff, 0xff, 0xfe, 0, 0, 1, 2, 0x60, FIN | ACK, 0x12, 0x34];
    bytes.extend([0, 0, 0, 0, 1, 1, 1, 1, b'h', b'i']);
    let expected = Segment { class: PacketClass::Fin, seq: u32::MAX - 1, ack: 258, end: 1, window: 0x1234 };
    assert_eq!(Segment::parse(&bytes), Some(expected));
    for length in 0..24 {
        assert_eq!(Segment::parse(&bytes[..length]), None, "{length}");
    }
    assert!(Segment::parse(&bytes[..24]).is_some());
    bytes[12] = 0x40;
    assert_eq!(Segment::parse(&bytes), None);
}

/// Plays packets through one connection, as a table that keeps it would.
struct Flow {
    line: TcpLine,
    status: u32,
    timeout: u32,
    mode: Tracking,
    timeouts: Timeouts,
}

const ORIG: usize = 0;
const REPLY: usize = 1;

impl Flow {
    fn open_as(mode: Tracking, first: Segment) -> Option<Self> {
        let (line, timeouts) = (line(), Timeouts::default());
        let opened = open(&line, &first, mode, &timeouts)?;
        assert_eq!(line.state.load(Relaxed), opened.state as u8);
        assert_eq!(line.timeout.load(Relaxed), opened.timeout);
        Some(Self { line, status: 0, timeout: opened.timeout, mode, timeouts })
    }

    fn syn() -> Self {
        Self::open_as(Tracking::Loose, segment(SYN, 100, 0, 1000, 0)).unwrap()
    }

    /// Opened, answered, acknowledged: ESTABLISHED, and assured by one more acknowledgement.
    fn established() -> Self {
        let mut flow = Self::syn();
        flow.expect(REPLY, segment(SYN | ACK, 900, 101, 1000, 0), Outcome::Accept, "SR");
        flow.expect(ORIG, segment(ACK, 101, 901, 1000, 0), Outcome::Accept, "ES");
        assert_eq!(flow.status, SEEN_REPLY | ASSURED);
        flow
    }

    fn play(&mut self, dir: usize, packet: Segment) -> erhu_conntrack::tcp::Step {
        let result = step(&self.line, self.status, dir, &packet, self.mode, &self.timeouts);
        assert_eq!(result.set_status & self.status, 0, "only new bits are reported");
        self.status |= result.set_status;
        self.timeout = result.timeout.unwrap_or(self.timeout);
        assert_eq!(self.timeout, self.line.timeout.load(Relaxed));
        assert_eq!(result.state as u8, self.line.state.load(Relaxed));
        result
    }

    fn expect(&mut self, dir: usize, packet: Segment, outcome: Outcome, state: &str) {
        let result = self.play(dir, packet);
        assert_eq!((result.outcome, result.state), (outcome, state_named(state)), "{packet:?}");
    }

    fn seconds(&self) -> u32 {
        self.timeout / 16
    }
}

#[test]
fn a_whole_life_from_syn_to_time_wait() {
    let mut flow = Flow::syn();
    assert_eq!(flow.seconds(), 120);
    flow.expect(REPLY, segment(SYN | ACK, 900, 101, 1000, 0), Outcome::Accept, "SR");
    assert_eq!((flow.seconds(), flow.status), (60, SEEN_REPLY));
    flow.expect(ORIG, segment(ACK, 101, 901, 1000, 0), Outcome::Accept, "ES");
    assert_eq!((flow.seconds(), flow.status), (432_000, SEEN_REPLY | ASSURED));
    // T71: the FIN carries payload.
    flow.expect(ORIG, segment(FIN | ACK, 101, 901, 1000, 10), Outcome::Accept, "FW");
    assert_eq!(flow.seconds(), 120);
    flow.expect(REPLY, segment(ACK, 901, 112, 1000, 0), Outcome::Accept, "CW");
    assert_eq!(flow.seconds(), 60);
    flow.expect(REPLY, segment(FIN | ACK, 901, 112, 1000, 0), Outcome::Accept, "LA");
    assert_eq!(flow.seconds(), 30);
    flow.expect(ORIG, segment(ACK, 112, 902, 1000, 0), Outcome::Accept, "TW");
    assert_eq!(flow.seconds(), 120);
    // O38: a new SYN on the same ports is a new connection, for one side closed in order.
    flow.expect(ORIG, segment(SYN, 5000, 0, 1000, 0), Outcome::Reopen, "TW");
    flow.expect(REPLY, segment(SYN, 5000, 0, 1000, 0), Outcome::Reopen, "TW");
}

#[test]
fn a_repeated_syn_passes_without_being_counted_or_refreshing() {
    let mut flow = Flow::syn();
    let result = flow.play(ORIG, segment(SYN, 100, 0, 1000, 0));
    assert_eq!((result.outcome, result.refresh, result.timeout), (Outcome::Ignore, false, None));
    assert_eq!((result.state, result.state_changed), (TcpState::SynSent, false));
}

/// T70.
#[test]
fn a_simultaneous_open_reaches_established() {
    let mut flow = Flow::syn();
    // Not refreshed either, as in the kernel: it is a SYN before any answer.
    flow.expect(REPLY, segment(SYN, 900, 0, 1000, 0), Outcome::Ignore, "S2");
    assert_eq!(flow.status, SEEN_REPLY);
    flow.expect(REPLY, segment(SYN | ACK, 900, 101, 1000, 0), Outcome::Accept, "SR");
    flow.expect(ORIG, segment(SYN | ACK, 100, 901, 1000, 0), Outcome::Accept, "SR");
    flow.expect(REPLY, segment(ACK, 901, 101, 1000, 0), Outcome::Accept, "ES");
    assert_eq!(flow.status, SEEN_REPLY | ASSURED);
}

#[test]
fn without_a_simultaneous_open_an_answering_ack_leaves_syn_recv() {
    let mut flow = Flow::syn();
    flow.expect(REPLY, segment(SYN | ACK, 900, 101, 1000, 0), Outcome::Accept, "SR");
    flow.expect(REPLY, segment(ACK, 901, 101, 1000, 0), Outcome::Accept, "SR");
}

#[test]
fn first_packets_open_only_as_the_tracking_mode_allows() {
    use Tracking::{Asymmetric, Liberal, Loose, Strict};
    let cases = [
        (SYN, [Some("SS"), Some("SS"), Some("SS"), Some("SS")]),
        (ACK, [None, Some("ES"), Some("ES"), Some("ES")]),
        (SYN | ACK, [None, None, None, Some("SR")]),
        (FIN | ACK, [None, None, None, Some("FW")]),
        (RST, [None; 4]),
        (RST | ACK, [None; 4]),
        (0, [None; 4]),
    ];
    for (flags, expected) in cases {
        for (mode, expected) in [Strict, Loose, Liberal, Asymmetric].into_iter().zip(expected) {
            let flow = Flow::open_as(mode, segment(flags, 1, 2, 1000, 0));
            let state = flow.map(|f| TcpState::from_u8(f.line.state.load(Relaxed)));
            assert_eq!(state, expected.map(state_named), "{flags:#x} {mode:?}");
        }
    }
}

#[test]
fn a_picked_up_connection_lives_five_minutes_until_it_is_answered() {
    let mut flow = Flow::open_as(Tracking::Loose, segment(ACK, 100, 900, 1000, 10)).unwrap();
    assert_eq!((flow.seconds(), flow.status), (300, 0));
    flow.expect(ORIG, segment(ACK, 110, 900, 1000, 10), Outcome::Accept, "ES");
    assert_eq!((flow.seconds(), flow.status), (300, 0));
    flow.expect(REPLY, segment(ACK, 900, 120, 1000, 0), Outcome::Accept, "ES");
    assert_eq!((flow.seconds(), flow.status), (300, SEEN_REPLY));
    flow.expect(ORIG, segment(ACK, 120, 900, 1000, 10), Outcome::Accept, "ES");
    assert_eq!((flow.seconds(), flow.status), (432_000, SEEN_REPLY | ASSURED));
}

#[test]
fn opening_wipes_what_an_earlier_connection_left_in_the_line() {
    let used = Flow::established();
    let fresh = Flow::syn();
    for word in [&used.line.end, &used.line.max_end, &used.line.max_window, &used.line.max_ack] {
        word[1].store(77, Relaxed);
    }
    used.line.last_flags.store(0xff, Relaxed);
    used.line.flags[1].store(0xff, Relaxed);
    used.line.scale[0].store(9, Relaxed);
    used.line.retransmissions.store(200, Relaxed);
    open(&used.line, &segment(SYN, 100, 0, 1000, 0), Tracking::Loose, &used.timeouts).unwrap();
    assert_eq!(format!("{:?}", words(&used.line)), format!("{:?}", words(&fresh.line)));
}

fn words(line: &TcpLine) -> Vec<u32> {
    let pairs = [&line.end, &line.max_end, &line.max_window, &line.max_ack];
    let mut all: Vec<u32> = pairs.iter().flat_map(|p| p.iter().map(|w| w.load(Relaxed))).collect();
    all.extend([&line.last_seq, &line.last_ack, &line.last_end, &line.timeout].map(|w| w.load(Relaxed)));
    all.push(line.last_window.load(Relaxed).into());
    let bytes = [
        &line.scale[0],
        &line.scale[1],
        &line.flags[0],
        &line.flags[1],
        &line.state,
        &line.last_dir,
        &line.last_index,
        &line.retransmissions,
        &line.last_flags,
        &line.last_scale,
    ];
    all.extend(bytes.map(|b| u32::from(b.load(Relaxed))));
    all
}

#[test]
fn a_reset_before_any_answer_ends_the_connection_at_once() {
    for dir in [ORIG, REPLY] {
        let mut flow = Flow::syn();
        flow.expect(dir, segment(RST | ACK, 0, 101, 0, 0), Outcome::KillAccept, "CL");
    }
}

#[test]
fn a_reset_of_an_answered_connection_leaves_it_ten_seconds() {
    for dir in [ORIG, REPLY] {
        let mut flow = Flow::established();
        flow.expect(dir, segment(RST, 101, 0, 0, 0), Outcome::Accept, "CL");
        assert_eq!(flow.seconds(), 10);
        // A SYN from the side that reset is a new connection; from the other side it is not.
        let mut other = Flow::established();
        other.expect(dir, segment(RST, 101, 0, 0, 0), Outcome::Accept, "CL");
        if dir == ORIG {
            flow.expect(ORIG, segment(SYN, 7000, 0, 1000, 0), Outcome::Reopen, "CL");
        } else {
            flow.expect(ORIG, segment(SYN, 7000, 0, 1000, 0), Outcome::Ignore, "CL");
        }
        other.expect(REPLY, segment(SYN, 7000, 0, 1000, 0), Outcome::Invalid, "CL");
    }
}

/// KP4, as far as it needs no windows.
#[test]
fn a_challenge_ack_to_a_syn_passes_and_the_reset_that_follows_makes_room_for_the_retry() {
    let mut flow = Flow::syn();
    flow.expect(REPLY, segment(ACK, 145_824_453, 643_160_523, 240, 0), Outcome::Ignore, "SS");
    assert_eq!(flow.line.last_ack.load(Relaxed), 643_160_523);
    flow.expect(ORIG, segment(RST, 643_160_523, 0, 0, 0), Outcome::Accept, "CL");
    flow.expect(ORIG, segment(SYN, 100, 0, 1000, 0), Outcome::Reopen, "CL");
}

#[test]
fn a_syn_that_was_let_through_and_answered_exactly_resynchronises() {
    let mut flow = Flow::established();
    flow.expect(ORIG, segment(SYN, 5000, 0, 777, 0), Outcome::Ignore, "ES");
    assert_eq!(flow.line.last_end.load(Relaxed), 5001);
    // An answer to something else changes nothing.
    let mut other = Flow::established();
    other.expect(ORIG, segment(SYN, 5000, 0, 777, 0), Outcome::Ignore, "ES");
    other.expect(REPLY, segment(SYN | ACK, 1, 5000, 1000, 0), Outcome::Ignore, "ES");

    let result = flow.play(REPLY, segment(SYN | ACK, 6000, 5001, 1000, 0));
    assert_eq!((result.outcome, result.state), (Outcome::Accept, TcpState::SynRecv));
    assert!(result.state_changed);
    assert_eq!(flow.line.end[ORIG].load(Relaxed), 5001);
    assert_eq!(flow.line.max_window[ORIG].load(Relaxed), 777);
    flow.expect(ORIG, segment(ACK, 5001, 6001, 1000, 0), Outcome::Accept, "ES");
}

#[test]
fn an_ack_that_answers_a_stray_syn_in_last_ack_acknowledges_no_fin() {
    let mut flow = Flow::established();
    flow.expect(ORIG, segment(FIN | ACK, 101, 901, 1000, 0), Outcome::Accept, "FW");
    flow.expect(REPLY, segment(FIN | ACK, 901, 102, 1000, 0), Outcome::Accept, "LA");
    flow.expect(ORIG, segment(SYN, 5000, 0, 1000, 0), Outcome::Ignore, "LA");
    flow.expect(REPLY, segment(ACK, 902, 102, 1000, 0), Outcome::Ignore, "LA");
    // The flag is used up; the same ACK again is believed.
    flow.expect(REPLY, segment(ACK, 902, 102, 1000, 0), Outcome::Accept, "TW");
}

#[test]
fn a_stray_syn_before_last_ack_arms_nothing() {
    let mut flow = Flow::established();
    flow.expect(ORIG, segment(FIN | ACK, 101, 901, 1000, 0), Outcome::Accept, "FW");
    flow.expect(ORIG, segment(SYN, 5000, 0, 1000, 0), Outcome::Ignore, "FW");
    flow.expect(REPLY, segment(FIN | ACK, 901, 102, 1000, 0), Outcome::Accept, "LA");
    flow.expect(ORIG, segment(ACK, 102, 902, 1000, 0), Outcome::Accept, "TW");
}

#[test]
fn an_ack_repeated_three_times_limits_the_timeout_until_something_new_comes() {
    let mut flow = Flow::established();
    for expected in [432_000, 432_000, 432_000, 300, 300] {
        flow.expect(REPLY, segment(ACK, 901, 102, 1000, 0), Outcome::Accept, "ES");
        assert_eq!(flow.seconds(), expected);
    }
    // Another direction, number, length or window is no repetition.
    for (dir, packet) in [
        (ORIG, segment(ACK, 102, 901, 1000, 0)),
        (REPLY, segment(ACK, 901, 102, 1000, 5)),
        (REPLY, segment(ACK, 901, 103, 1000, 0)),
        (REPLY, segment(ACK, 901, 103, 1001, 0)),
    ] {
        for _ in 0..4 {
            flow.play(dir, packet);
        }
        assert_eq!(flow.seconds(), 300);
        flow.expect(dir, segment(ACK, packet.seq + 50, packet.ack, 999, 0), Outcome::Accept, "ES");
        assert_eq!(flow.seconds(), 432_000);
    }
    for _ in 0..1000 {
        flow.play(REPLY, segment(ACK, 901, 102, 1000, 0));
    }
    assert_eq!(flow.seconds(), 300, "the count does not run over");
}

#[test]
fn a_closed_window_limits_the_timeout() {
    let mut flow = Flow::established();
    flow.expect(REPLY, segment(ACK, 901, 101, 0, 0), Outcome::Accept, "ES");
    assert_eq!(flow.seconds(), 300);
    flow.expect(REPLY, segment(ACK, 901, 101, 10, 0), Outcome::Accept, "ES");
    assert_eq!(flow.seconds(), 432_000);
}

#[test]
fn a_fixed_timeout_is_never_refreshed() {
    let mut flow = Flow::established();
    flow.status |= FIXED_TIMEOUT;
    let result = flow.play(ORIG, segment(FIN | ACK, 101, 901, 1000, 0));
    assert_eq!((result.outcome, result.state), (Outcome::Accept, TcpState::FinWait));
    assert_eq!((result.refresh, result.timeout), (false, None));
}

#[test]
fn ends_that_are_not_believed_from_both_sides_shorten_an_assured_connection() {
    // No packet sequence leads here without sequence windows; the line is put there.
    let at = |status| {
        let mut flow = Flow::established();
        flow.line.state.store(TcpState::SynSent as u8, Relaxed);
        flow.status = status;
        flow
    };
    let fin = segment(FIN | ACK, 1, 1, 1000, 0);
    let mut flow = at(SEEN_REPLY | ASSURED);
    assert_eq!(flow.play(ORIG, fin).lower_to, None);
    assert_eq!(flow.play(ORIG, fin).lower_to, None);
    assert_eq!(flow.play(REPLY, fin).lower_to, Some(300 * 16));
    assert_eq!(LOWER_ABOVE, 120 * 16);
    for status in [SEEN_REPLY, SEEN_REPLY | ASSURED | FIXED_TIMEOUT] {
        let mut flow = at(status);
        flow.play(ORIG, fin);
        assert_eq!(flow.play(REPLY, fin).lower_to, None);
    }
}

/// N15, its first half.
#[test]
fn with_one_side_never_seen_asymmetric_tracking_finds_nothing_invalid() {
    // Only the opener's packets.
    let mut flow = Flow::open_as(Tracking::Asymmetric, segment(SYN, 100, 0, 1000, 0)).unwrap();
    flow.expect(ORIG, segment(SYN, 100, 0, 1000, 0), Outcome::Accept, "SS");
    flow.expect(ORIG, segment(ACK, 101, 901, 1000, 0), Outcome::Accept, "ES");
    assert_eq!((flow.seconds(), flow.status), (432_000, 0));
    flow.expect(ORIG, segment(ACK, 101, 901, 1000, 10), Outcome::Accept, "ES");
    assert_eq!(flow.status, ASSURED);
    flow.expect(ORIG, segment(FIN | ACK, 111, 901, 1000, 0), Outcome::Accept, "FW");
    flow.expect(ORIG, segment(ACK, 112, 950, 1000, 0), Outcome::Accept, "CW");
    flow.expect(ORIG, segment(RST, 112, 0, 0, 0), Outcome::Accept, "CL");
    assert_eq!(flow.seconds(), 10);
    // Only the answering side's.
    let mut flow = Flow::open_as(Tracking::Asymmetric, segment(SYN | ACK, 900, 101, 1000, 0)).unwrap();
    flow.expect(ORIG, segment(ACK, 901, 111, 1000, 0), Outcome::Accept, "ES");
    flow.expect(ORIG, segment(FIN | ACK, 901, 112, 1000, 0), Outcome::Accept, "FW");
}

#[test]
fn asymmetric_tracking_refuses_only_packets_without_flags() {
    let timeouts = Timeouts::default();
    for state in TcpState::ALL.into_iter().skip(1) {
        for flags in [SYN, SYN | ACK, FIN | ACK, ACK, RST, 0] {
            for dir in [ORIG, REPLY] {
                let line = line();
                line.state.store(state as u8, Relaxed);
                let result = step(&line, 0, dir, &segment(flags, 1, 1, 1000, 0), Tracking::Asymmetric, &timeouts);
                assert_eq!(result.outcome == Outcome::Invalid, flags == 0, "{flags:#x} in {state:?}");
                assert_ne!(result.outcome, Outcome::KillAccept);
            }
        }
    }
}

/// Follows a connection by the written table, with a memory of its own.
struct Oracle {
    table: BTreeMap<(u8, usize, String), String>,
    state: String,
    replied: bool,
    assured: bool,
    /// Class and direction of the last packet that was believed or let through, and where it ended.
    last: (u8, usize),
    last_end: u32,
    first_fin_seen: bool,
    simultaneous: bool,
    challenge_expected: bool,
}

impl Oracle {
    fn new() -> Self {
        let table =
            cells().map(|(flags, dir, state, cell)| ((flags, dir, COLUMNS[state].to_owned()), cell)).collect();
        Self {
            table,
            state: "SS".into(),
            replied: false,
            assured: false,
            last: (SYN, 0),
            last_end: 101,
            first_fin_seen: false,
            simultaneous: false,
            challenge_expected: false,
        }
    }

    fn packet(&mut self, dir: usize, flags: u8, packet: &Segment) -> Outcome {
        let cell = self.table[&(flags, dir, self.state.clone())].clone();
        let old = self.state.clone();
        let outcome = match cell.as_str() {
            "IV" => return Outcome::Invalid,
            "SS*" if self.first_fin_seen || self.last == (RST | ACK, dir) => return Outcome::Reopen,
            "SS*" | "IG" => {
                if flags == SYN | ACK && self.last == (SYN, dir ^ 1) && packet.ack == self.last_end {
                    (self.first_fin_seen, self.challenge_expected) = (false, false);
                    self.believe(dir, flags, "SR")
                } else {
                    if flags == SYN && dir == ORIG {
                        (self.simultaneous, self.challenge_expected) = (false, old == "LA");
                    }
                    (self.last, self.last_end) = ((flags, dir), packet.end);
                    Outcome::Ignore
                }
            }
            "TW+" if old == "LA" && self.challenge_expected && self.last == (SYN, dir ^ 1) => {
                self.challenge_expected = false;
                Outcome::Ignore
            }
            "SR#" if self.simultaneous => self.believe(dir, flags, "ES"),
            name => {
                self.simultaneous |= name == "S2";
                self.first_fin_seen |= name == "FW" && old != "FW";
                self.believe(dir, flags, name.trim_end_matches(['+', '#']))
            }
        };
        let outcome = match (self.replied, flags) {
            (false, f) if f & RST != 0 => return Outcome::KillAccept,
            (false, SYN) if old == "SS" => Outcome::Ignore,
            _ => outcome,
        };
        let settled = self.state == "ES" && (old == "SR" || old == "ES");
        self.assured |= self.replied && settled && outcome == Outcome::Accept;
        self.replied |= dir == REPLY;
        if flags == ACK && outcome == Outcome::Accept {
            self.last_end = packet.end;
        }
        outcome
    }

    fn believe(&mut self, dir: usize, flags: u8, state: &str) -> Outcome {
        self.last = (flags, dir);
        self.state = state.into();
        Outcome::Accept
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn random_packets_do_what_the_written_table_says(
        packets in proptest::collection::vec((0usize..2, 0usize..6, 0u32..3, 0u32..4, 0u32..2), 1..60)
    ) {
        let mut flow = Flow::syn();
        let mut oracle = Oracle::new();
        for (dir, class, seq, ack, payload) in packets {
            let flags = [SYN, SYN | ACK, FIN | ACK, ACK, RST | ACK, 0][class];
            let packet = segment(flags, 100 + seq, 100 + ack, 1000, payload);
            let expected = oracle.packet(dir, flags, &packet);
            let result = flow.play(dir, packet);
            prop_assert_eq!(result.outcome, expected);
            if matches!(expected, Outcome::KillAccept | Outcome::Reopen) {
                return Ok(());
            }
            prop_assert_eq!(result.state, state_named(&oracle.state));
            let status = (SEEN_REPLY * u32::from(oracle.replied)) | (ASSURED * u32::from(oracle.assured));
            prop_assert_eq!(flow.status, status);
        }
    }
}

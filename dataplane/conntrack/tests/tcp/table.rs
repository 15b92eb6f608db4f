//! The state table, cell by cell.

use std::sync::atomic::Ordering::Relaxed;

use erhu_conntrack::Timeouts;
use erhu_conntrack::tcp::{Outcome, PacketClass, Segment, TcpState, classify, kept_status, step};
use erhu_planes::connections::status::{ASSURED, SEEN_REPLY};
use erhu_planes::connections::{TCP_STATES, TcpLine};
use erhu_planes::program::{Program, TimeoutPolicy, Tracking};
use erhu_planes::timeouts::TimeoutKey;

use crate::support::{ACK, COLUMNS, FIN, ORIG, REPLY, RST, SYN, line, segment, state_named};

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

/// Cells of the written table: flags that are of the row's class, direction, number of the state, text.
pub fn cells() -> impl Iterator<Item = (u8, usize, usize, &'static str)> {
    TABLE.lines().filter(|l| !l.is_empty()).flat_map(|line| {
        let fields: Vec<&str> = line.split('|').map(str::trim).collect();
        let flags = match fields[1] {
            "SYN" => SYN,
            "SYN/ACK" => SYN | ACK,
            "FIN" => FIN | ACK,
            "ACK" => ACK,
            "RST" => RST | ACK,
            "none" => 0,
            other => panic!("no class {other}"),
        };
        let dir = usize::from(fields[2] == "reply");
        (0..10).map(move |state| (flags, dir, state, fields[3 + state])).collect::<Vec<_>>()
    })
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

/// In a state, with both sides known to have sent and acknowledged up to 1000 and 2000.
fn in_state(number: usize, mode: Tracking) -> TcpLine {
    let line = line();
    line.state.store(u8::try_from(number).unwrap(), Relaxed);
    line.mode.store(mode as u8, Relaxed);
    line.status.store(kept_status(SEEN_REPLY | ASSURED), Relaxed);
    for (dir, end) in [(ORIG, 1000), (REPLY, 2000)] {
        line.end[dir].store(end, Relaxed);
        line.max_end[dir].store(end + 500, Relaxed);
        line.max_window[dir].store(500, Relaxed);
    }
    line
}

#[test]
fn every_cell_of_the_table_does_what_it_says() {
    let timeouts = distinct();
    let mut seen = 0;
    for (flags, dir, number, cell) in cells() {
        for mode in [Tracking::Strict, Tracking::Loose, Tracking::Liberal] {
            let what = format!("{flags:#x} dir {dir} in {} gives {cell} ({mode:?})", COLUMNS[number]);
            let line = in_state(number, mode);
            let old = TcpState::from_u8(line.state.load(Relaxed));
            let (seq, ack) = if dir == ORIG { (1000, 2000) } else { (2000, 1000) };
            let result = step(&line, dir, &segment(flags, seq, ack, 500, 0), &timeouts);
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
                assert_eq!(line.timeout.load(Relaxed), (10 + u32::from(state as u8)) * 16, "{what}");
            } else {
                assert_eq!(line.timeout.load(Relaxed), 0, "{what}");
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
    bytes.extend([0, 0, 0, 0, 1, 1, 1, 2, b'h', b'i']);
    let expected = Segment {
        class: PacketClass::Fin,
        flags: FIN | ACK,
        seq: u32::MAX - 1,
        ack: 258,
        end: 1,
        window: 0x1234,
        options: &[1, 1, 1, 2],
    };
    assert_eq!(Segment::parse(&bytes), Some(expected));
    for length in 0..24 {
        assert_eq!(Segment::parse(&bytes[..length]), None, "{length}");
    }
    assert!(Segment::parse(&bytes[..24]).is_some());
    bytes[12] = 0x40;
    assert_eq!(Segment::parse(&bytes), None);
}

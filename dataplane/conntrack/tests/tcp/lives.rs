//! Lives of connections: handshakes, closes, resets, challenges, pick-ups, timeouts.

use std::sync::atomic::Ordering::Relaxed;

use erhu_conntrack::Timeouts;
use erhu_conntrack::tcp::{LOWER_FROM, Outcome, TcpState, open, step};
use erhu_planes::connections::status::{ASSURED, FIXED_TIMEOUT, SEEN_REPLY};
use erhu_planes::program::Tracking;

use crate::support::{ACK, FIN, Flow, ORIG, REPLY, RST, SYN, line, segment, state_named, words};

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
    assert_eq!((result.outcome, result.refresh, result.shortened), (Outcome::Ignore, false, false));
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
    assert_eq!((flow.seconds(), flow.status), (300, SEEN_REPLY | ASSURED));
    flow.expect(REPLY, segment(ACK, 900, 130, 1000, 0), Outcome::Accept, "ES");
    assert_eq!(flow.seconds(), 432_000);
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
    open(&used.line, 0, &segment(SYN, 100, 0, 1000, 0), Tracking::Loose, &used.timeouts).unwrap();
    assert_eq!(format!("{:?}", words(&used.line)), format!("{:?}", words(&fresh.line)));
}

#[test]
fn a_reset_before_any_answer_ends_the_connection_at_once() {
    for (dir, reset) in [(ORIG, segment(RST, 101, 0, 0, 0)), (REPLY, segment(RST | ACK, 0, 101, 0, 0))] {
        Flow::syn().expect(dir, reset, Outcome::KillAccept, "CL");
    }
}

#[test]
fn a_reset_of_an_answered_connection_leaves_it_ten_seconds() {
    for (dir, seq) in [(ORIG, 101), (REPLY, 901)] {
        let reset = || {
            let mut flow = Flow::established();
            // The last packet is not the reset's sender's, or its own would do.
            let (ack, other) = if dir == ORIG { (101, REPLY) } else { (901, ORIG) };
            flow.expect(other, segment(ACK, 1002 - ack, ack, 1000, 0), Outcome::Accept, "ES");
            flow.expect(dir, segment(RST, seq, 0, 0, 0), Outcome::Accept, "CL");
            flow
        };
        let mut flow = reset();
        assert_eq!(flow.seconds(), 10);
        // A SYN from the side that reset is a new connection; from the other side it is not.
        let expected = if dir == ORIG { Outcome::Reopen } else { Outcome::Ignore };
        flow.expect(ORIG, segment(SYN, 7000, 0, 1000, 0), expected, "CL");
        reset().expect(REPLY, segment(SYN, 7000, 0, 1000, 0), Outcome::Invalid, "CL");
    }
}

/// KP4.
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
    flow.expect(ORIG, segment(ACK, 101, 901, 1000, 100), Outcome::Accept, "ES");
    for expected in [432_000, 432_000, 432_000, 300, 300] {
        flow.expect(REPLY, segment(ACK, 901, 201, 1000, 0), Outcome::Accept, "ES");
        assert_eq!(flow.seconds(), expected);
    }
    // Another direction, acknowledgement or window is no repetition.
    for (dir, packet) in [
        (ORIG, segment(ACK, 201, 901, 1000, 0)),
        (REPLY, segment(ACK, 901, 201, 1000, 0)),
        (REPLY, segment(ACK, 901, 201, 999, 0)),
        (REPLY, segment(ACK, 900, 201, 999, 0)),
    ] {
        flow.expect(dir, packet, Outcome::Accept, "ES");
        assert_eq!((flow.line.retransmissions.load(Relaxed), flow.seconds()), (0, 432_000));
        for _ in 0..3 {
            flow.play(dir, packet);
        }
        assert_eq!(flow.seconds(), 300);
    }
    for _ in 0..1000 {
        flow.play(REPLY, segment(ACK, 901, 201, 1000, 0));
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
    flow.set_status(flow.status | FIXED_TIMEOUT);
    let result = flow.play(ORIG, segment(FIN | ACK, 101, 901, 1000, 0));
    assert_eq!((result.outcome, result.state), (Outcome::Accept, TcpState::FinWait));
    assert_eq!((result.refresh, flow.seconds()), (false, 432_000));
}

#[test]
fn ends_beyond_the_windows_from_both_sides_shorten_an_assured_connection() {
    let at = |status| {
        let mut flow = Flow::established();
        flow.set_status(status);
        flow
    };
    // Far above what may be sent.
    let fin = segment(FIN | ACK, 500_000, 1, 1000, 0);
    let mut flow = at(SEEN_REPLY | ASSURED);
    assert_eq!(flow.play(ORIG, fin).lower_to, None);
    assert_eq!(flow.play(ORIG, fin).lower_to, None);
    assert_eq!(flow.play(REPLY, fin).lower_to, Some(300 * 16));
    assert_eq!(LOWER_FROM, 120 * 16);
    // A reset that is refused for its number alone, or a packet that the table refuses, is no such end.
    let mut flow = at(SEEN_REPLY | ASSURED);
    flow.expect(ORIG, segment(RST, 1, 0, 0, 0), Outcome::Invalid, "ES");
    assert_eq!(flow.play(REPLY, fin).lower_to, None);
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
                line.mode.store(Tracking::Asymmetric as u8, Relaxed);
                let result = step(&line, dir, &segment(flags, 1, 1, 1000, 0), &timeouts);
                assert_eq!(result.outcome == Outcome::Invalid, flags == 0, "{flags:#x} in {state:?}");
                assert_ne!(result.outcome, Outcome::KillAccept);
            }
        }
    }
}

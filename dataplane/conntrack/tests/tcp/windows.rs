//! Sequence windows, rule by rule; numbers after `Flow::established` are 101 and 901, windows 1000.

use std::sync::atomic::Ordering::Relaxed;

use erhu_conntrack::Timeouts;
use erhu_conntrack::tcp::{Bound, Outcome, Segment, TcpState, retrack};
use erhu_planes::connections::TcpLine;
use erhu_planes::connections::status::{ASSURED, SEEN_REPLY};
use erhu_planes::program::Tracking;

use crate::support::{ACK, FIN, Flow, ORIG, REPLY, RST, SYN, line, offer, sack, segment, words};

fn end(line: &TcpLine, dir: usize) -> u32 {
    line.end[dir].load(Relaxed)
}

/// Rule 1.
#[test]
fn a_line_without_history_is_followed_from_its_first_packet_on() {
    let flow = || {
        let line = line();
        line.state.store(TcpState::Established as u8, Relaxed);
        Flow { line, status: 0, timeouts: Timeouts::default() }
    };
    let mut picked = flow();
    picked.expect(ORIG, segment(ACK, 5000, 7000, 300, 20), Outcome::Accept, "ES");
    assert_eq!((end(&picked.line, ORIG), end(&picked.line, REPLY)), (5020, 7000));
    // As the answer to a keep-alive, it acknowledges one byte more than was seen.
    picked.expect(REPLY, segment(ACK, 7000, 5021, 300, 0), Outcome::Accept, "ES");
    assert_eq!(end(&picked.line, ORIG), 5021);
    // More than one byte more is too much.
    let mut other = flow();
    other.expect(ORIG, segment(ACK, 5000, 7000, 300, 20), Outcome::Accept, "ES");
    let result = other.play(REPLY, segment(ACK, 7000, 5022, 300, 0));
    assert_eq!((result.outcome, result.beyond), (Outcome::Invalid, Some(Bound::AckAbove)));
}

/// Rule 2, KP5.
#[test]
fn a_new_try_with_a_later_number_replaces_what_was_known() {
    let mut flow = Flow::syn();
    let stale = flow.play(REPLY, segment(SYN | ACK, 900, 7777, 1000, 0));
    assert_eq!((stale.outcome, stale.beyond), (Outcome::Invalid, Some(Bound::AckAbove)));
    flow.expect(ORIG, segment(SYN, 100, 0, 1000, 0), Outcome::Ignore, "SS");
    flow.expect(REPLY, segment(SYN | ACK, 50_000, 101, 1000, 0), Outcome::Accept, "SR");
    flow.expect(ORIG, segment(ACK, 101, 50_001, 1000, 0), Outcome::Accept, "ES");
    assert_eq!(flow.status, SEEN_REPLY | ASSURED);
    // The opener's as well.
    let mut flow = Flow::syn();
    flow.expect(ORIG, segment(SYN, 60_000, 0, 1000, 0), Outcome::Ignore, "SS");
    flow.expect(REPLY, segment(SYN | ACK, 900, 60_001, 1000, 0), Outcome::Accept, "SR");
}

/// Rule 3.
#[test]
fn a_refusal_need_not_carry_numbers() {
    for refusal in [segment(RST | ACK, 0, 101, 0, 0), segment(RST | ACK, 0, 0, 0, 0), segment(RST, 0, 0, 0, 0)] {
        Flow::syn().expect(REPLY, refusal, Outcome::KillAccept, "CL");
    }
}

/// Rules 4 to 7, each at its edge: one number is within and the next beyond.
#[test]
fn every_bound_has_its_edge() {
    // What the reply side may send: up to 901 + 1000.
    let far = |seq| segment(ACK, seq, 101, 1000, 0);
    Flow::established().expect(REPLY, far(1901), Outcome::Accept, "ES");
    let beyond = segment(ACK, 1902, 101, 1000, 2000);
    Flow::established().expect_beyond(REPLY, beyond, Outcome::Invalid, Bound::SeqAbove);
    // What it may acknowledge: up to 101.
    Flow::established().expect(REPLY, segment(ACK, 901, 101, 1000, 0), Outcome::Accept, "ES");
    Flow::established().expect_beyond(REPLY, segment(ACK, 901, 102, 1000, 0), Outcome::Invalid, Bound::AckAbove);
    // How old it may be: a window of 1000 before what was sent.
    let mut long = Flow::established();
    long.expect(REPLY, segment(ACK, 901, 101, 1000, 900), Outcome::Accept, "ES");
    long.expect(ORIG, segment(ACK, 101, 1801, 1000, 0), Outcome::Accept, "ES");
    long.expect(REPLY, far(801), Outcome::Accept, "ES");
    long.expect_beyond(REPLY, far(800), Outcome::Ignore, Bound::SeqBelow);
    // How old its acknowledgement may be: 66000.
    Flow::established().expect(
        REPLY,
        segment(ACK, 901, 101_u32.wrapping_sub(66_000), 1000, 0),
        Outcome::Accept,
        "ES",
    );
    let old = segment(ACK, 901, 101_u32.wrapping_sub(66_001), 1000, 0);
    Flow::established().expect_beyond(REPLY, old, Outcome::Ignore, Bound::AckBelow);
}

/// Rule 4: a sender that sends more than it may is let through, and the acknowledgement of that is right.
#[test]
fn an_overshoot_of_less_than_a_window_passes_and_may_be_acknowledged() {
    let mut flow = Flow::established();
    let result = flow.play(REPLY, segment(ACK, 1902, 101, 1000, 500));
    assert_eq!((result.outcome, result.beyond), (Outcome::Ignore, Some(Bound::Overshoot)));
    assert_eq!((result.refresh, end(&flow.line, REPLY)), (false, 2402));
    flow.expect(ORIG, segment(ACK, 101, 2402, 1000, 0), Outcome::Accept, "ES");
    // 1902 to 2900 is one window less one; one byte more is too much.
    Flow::established().expect(REPLY, segment(ACK, 1902, 101, 1000, 998), Outcome::Ignore, "ES");
    Flow::established().expect(REPLY, segment(ACK, 1902, 101, 1000, 999), Outcome::Invalid, "ES");
    // Nor with an acknowledgement of what was not sent.
    Flow::established().expect(REPLY, segment(ACK, 1902, 102, 1000, 10), Outcome::Invalid, "ES");
}

/// KP1.
#[test]
fn an_old_segment_sent_again_within_the_window_is_not_invalid() {
    let mut flow = Flow::handshake(Tracking::Loose, offer(2), offer(0));
    flow.expect(ORIG, segment(ACK, 101, 901, 32_792, 0), Outcome::Accept, "ES");
    for k in 0..46 {
        flow.expect(REPLY, segment(ACK, 901 + k * 1460, 101, 1000, 1460), Outcome::Accept, "ES");
    }
    flow.expect(ORIG, segment(ACK, 101, 901 + 46 * 1460, 32_792, 0), Outcome::Accept, "ES");
    flow.expect(REPLY, segment(ACK, 901, 101, 1000, 1460), Outcome::Accept, "ES");
}

#[test]
fn scaling_holds_if_both_sides_offer_it() {
    // 1000 << 7 may be sent to the opener, 1000 << 14 by it; SYNs are not scaled.
    let mut flow = Flow::handshake(Tracking::Loose, offer(7), offer(15));
    assert_eq!([0, 1].map(|d| flow.line.scale[d].load(Relaxed)), [7, 14]);
    assert_eq!(flow.line.max_end[REPLY].load(Relaxed), 901 + (1000 << 7));
    flow.expect(REPLY, segment(ACK, 901, 101, 1000, 0), Outcome::Accept, "ES");
    flow.expect(ORIG, segment(ACK, 101 + (1000 << 14), 901, 1000, 0), Outcome::Accept, "ES");
    const NOTHING: &[u8] = &[];
    const SACK_ONLY: &[u8] = &[4, 2, 1, 1];
    for (syn, answer) in [(offer(7), NOTHING), (NOTHING, offer(7)), (offer(7), SACK_ONLY)] {
        let mut flow = Flow::handshake(Tracking::Loose, syn, answer);
        assert_eq!([0, 1].map(|d| flow.line.scale[d].load(Relaxed)), [0, 0]);
        flow.expect(REPLY, segment(ACK, 1903, 101, 1000, 2000), Outcome::Invalid, "ES");
    }
}

#[test]
fn selective_acknowledgements_count_where_the_other_side_understands_them() {
    let beyond = |right| Segment { options: sack(right), ..segment(ACK, 901, 101, 1000, 0) };
    let mut flow = Flow::handshake(Tracking::Loose, offer(0), offer(0));
    flow.expect(ORIG, segment(ACK, 201, 901, 1000, 100), Outcome::Accept, "ES");
    // The hole is 101 to 201; what is permitted reaches from the block on.
    flow.expect(REPLY, beyond(301), Outcome::Accept, "ES");
    assert_eq!(flow.line.max_end[ORIG].load(Relaxed), 1301);
    assert_eq!(flow.line.max_window[REPLY].load(Relaxed), 1200);
    flow.expect_beyond(REPLY, beyond(302), Outcome::Invalid, Bound::AckAbove);
    // The opener never said that it understands it.
    Flow::handshake(Tracking::Loose, &[], offer(0)).expect(REPLY, beyond(5000), Outcome::Accept, "ES");
}

/// Rule 8.
#[test]
fn data_under_way_limits_the_timeout_until_it_is_acknowledged() {
    let mut flow = Flow::established();
    flow.expect(ORIG, segment(ACK, 101, 901, 1000, 10), Outcome::Accept, "ES");
    assert_eq!(flow.seconds(), 300);
    flow.expect(REPLY, segment(ACK, 901, 105, 1000, 0), Outcome::Accept, "ES");
    assert_eq!(flow.seconds(), 300);
    flow.expect(REPLY, segment(ACK, 901, 111, 1000, 0), Outcome::Accept, "ES");
    assert_eq!(flow.seconds(), 432_000);
    // A keep-alive, one byte before the end, and its answer.
    flow.expect(ORIG, segment(ACK, 110, 901, 1000, 1), Outcome::Accept, "ES");
    flow.expect(REPLY, segment(ACK, 901, 111, 1000, 0), Outcome::Accept, "ES");
    assert_eq!(flow.seconds(), 432_000);
}

#[test]
fn a_closed_window_lets_one_byte_through() {
    let mut flow = Flow::established();
    flow.expect(REPLY, segment(ACK, 901, 101, 0, 0), Outcome::Accept, "ES");
    assert_eq!(flow.line.max_end[ORIG].load(Relaxed), 1101, "what was permitted stays so");
    flow.expect(ORIG, segment(ACK, 101, 901, 1000, 1000), Outcome::Accept, "ES");
    flow.expect(REPLY, segment(ACK, 901, 1101, 0, 0), Outcome::Accept, "ES");
    assert_eq!(flow.line.max_end[ORIG].load(Relaxed), 1102);
    flow.expect(ORIG, segment(ACK, 1101, 901, 1000, 1), Outcome::Accept, "ES");
}

#[test]
fn numbers_run_over() {
    let base = u32::MAX - 500;
    let mut flow = Flow::open_as(Tracking::Loose, segment(SYN, base, 0, 1000, 0)).unwrap();
    flow.expect(REPLY, segment(SYN | ACK, base, base + 1, 1000, 0), Outcome::Accept, "SR");
    flow.expect(ORIG, segment(ACK, base + 1, base + 1, 1000, 0), Outcome::Accept, "ES");
    flow.expect(ORIG, segment(ACK, base + 1, base + 1, 1000, 900), Outcome::Accept, "ES");
    assert_eq!(end(&flow.line, ORIG), 400);
    flow.expect(REPLY, segment(ACK, base + 1, 400, 1000, 0), Outcome::Accept, "ES");
    flow.expect_beyond(REPLY, segment(ACK, base + 1, 401, 1000, 0), Outcome::Invalid, Bound::AckAbove);
    flow.expect(ORIG, segment(FIN | ACK, 400, base + 1, 1000, 0), Outcome::Accept, "FW");
}

#[test]
fn resets_are_believed_only_where_they_are_exact() {
    let ready = || {
        let mut flow = Flow::established();
        flow.expect(REPLY, segment(ACK, 901, 101, 1000, 0), Outcome::Accept, "ES");
        flow
    };
    // (b) Before what was acknowledged.
    ready().expect_beyond(ORIG, segment(RST, 100, 0, 0, 0), Outcome::Invalid, Bound::Reset);
    // (b) Exact.
    ready().expect(ORIG, segment(RST, 101, 0, 0, 0), Outcome::Accept, "CL");
    // (b) Inexact: ten seconds, until the challenge ACK; the reset has moved its sender's end, so it is 300 s then.
    let mut flow = ready();
    flow.expect(ORIG, segment(RST, 600, 0, 0, 0), Outcome::Accept, "ES");
    assert_eq!(flow.seconds(), 10);
    flow.expect(REPLY, segment(ACK, 901, 101, 1000, 0), Outcome::Accept, "ES");
    assert_eq!(flow.seconds(), 300);
    // (b) Inexact and beyond the window.
    let far = segment(RST, 2000, 0, 0, 0);
    ready().expect(ORIG, far, Outcome::Ignore, "ES");
    let far = segment(RST, 90_000, 0, 0, 0);
    let mut flow = ready();
    let result = flow.play(ORIG, far);
    assert_eq!((result.outcome, result.beyond), (Outcome::Invalid, Some(Bound::SeqAbove)));
    // (b) It follows data of its own sender.
    let mut flow = ready();
    flow.expect(ORIG, segment(ACK, 101, 901, 1000, 50), Outcome::Accept, "ES");
    flow.expect(ORIG, segment(RST, 151, 0, 0, 0), Outcome::Accept, "CL");
    // (b) Number 0 is inexact in an assured connection, and a refusal in one that is half open.
    ready().expect(ORIG, segment(RST, 0, 0, 0, 0), Outcome::Invalid, "ES");
    let mut half = Flow::syn();
    half.expect(REPLY, segment(SYN | ACK, 900, 101, 1000, 0), Outcome::Accept, "SR");
    half.expect(ORIG, segment(RST, 0, 0, 0, 0), Outcome::Accept, "CL");
    // (a) KP2: closing, numbers do not matter.
    let mut flow = ready();
    flow.expect(ORIG, segment(FIN | ACK, 101, 901, 1000, 0), Outcome::Accept, "FW");
    flow.expect(ORIG, segment(RST, 5, 0, 0, 0), Outcome::Accept, "CL");
    flow.expect(REPLY, segment(RST, 3_000_000, 0, 0, 0), Outcome::Accept, "CL");
}

#[test]
fn a_reset_that_answers_what_was_let_through_is_believed() {
    // (c) A SYN, with an acknowledgement far beyond the windows.
    let mut flow = Flow::established();
    flow.expect(ORIG, segment(SYN, 5_000_000, 0, 1000, 0), Outcome::Ignore, "ES");
    flow.expect(REPLY, segment(RST | ACK, 0, 5_000_001, 0, 0), Outcome::Accept, "CL");
    // Not if it acknowledges something else.
    let mut flow = Flow::established();
    flow.expect(ORIG, segment(SYN, 5_000_000, 0, 1000, 0), Outcome::Ignore, "ES");
    flow.expect(REPLY, segment(RST | ACK, 901, 5_000_000, 0, 0), Outcome::Invalid, "ES");
    // (d) A challenge to the first SYN.
    let mut flow = Flow::syn();
    flow.expect(REPLY, segment(ACK, 77_000_000, 88_000_000, 1000, 0), Outcome::Ignore, "SS");
    flow.expect(ORIG, segment(RST, 88_000_000, 0, 0, 0), Outcome::Accept, "CL");
}

#[test]
fn liberal_tracking_counts_what_is_beyond_and_lets_it_pass() {
    let mut flow = Flow::established_as(Tracking::Liberal);
    let before = (end(&flow.line, REPLY), flow.line.max_end[REPLY].load(Relaxed));
    let result = flow.play(REPLY, segment(ACK, 900_000, 101, 1000, 50));
    assert_eq!((result.outcome, result.beyond, result.refresh), (Outcome::Accept, Some(Bound::SeqAbove), true));
    assert_eq!((end(&flow.line, REPLY), flow.line.max_end[REPLY].load(Relaxed)), before);
    let result = flow.play(REPLY, segment(FIN | ACK, 900_000, 101, 1000, 50));
    assert_eq!((result.outcome, result.state), (Outcome::Accept, TcpState::FinWait));
    // Resets are judged by their number nevertheless.
    let mut flow = Flow::established_as(Tracking::Liberal);
    flow.expect(REPLY, segment(ACK, 901, 101, 1000, 0), Outcome::Accept, "ES");
    flow.expect(ORIG, segment(RST, 1, 0, 0, 0), Outcome::Invalid, "ES");
}

#[test]
fn a_connection_picked_up_in_mid_stream_is_followed_liberally() {
    let mut flow = Flow::open_as(Tracking::Loose, segment(ACK, 5000, 7000, 100, 10)).unwrap();
    // The real window may be scaled by anything.
    flow.expect(REPLY, segment(ACK, 900_000, 6_000_000, 100, 10), Outcome::Accept, "ES");
    flow.expect(ORIG, segment(ACK, 6_000_000, 900_000, 100, 10), Outcome::Accept, "ES");
}

/// N15, its second half.
#[test]
fn a_strict_connection_of_which_one_side_is_never_seen_is_invalid_for_what_it_acknowledges() {
    let mut flow = Flow::open_as(Tracking::Strict, segment(SYN, 100, 0, 1000, 0)).unwrap();
    // The answers go another way: the table knows no ACK in SYN_SENT.
    flow.expect(ORIG, segment(ACK, 101, 901, 1000, 0), Outcome::Invalid, "SS");
    // They do so from some time on.
    let mut flow = Flow::established_as(Tracking::Strict);
    for k in 1..4 {
        let packet = segment(ACK, 101, 901 + k * 100, 1000, 0);
        flow.expect_beyond(ORIG, packet, Outcome::Invalid, Bound::AckAbove);
    }
}

#[test]
fn windows_that_were_not_followed_are_picked_up_when_they_shall_be() {
    let mut flow = Flow::open_as(Tracking::Asymmetric, segment(SYN, 100, 0, 1000, 0)).unwrap();
    flow.expect(REPLY, segment(SYN | ACK, 900, 101, 1000, 0), Outcome::Accept, "SR");
    flow.expect(ORIG, segment(ACK, 101, 901, 1000, 0), Outcome::Accept, "ES");
    for k in 0..50 {
        flow.expect(ORIG, segment(ACK, 101 + k * 1460, 901, 1000, 1460), Outcome::Accept, "ES");
    }
    retrack(&flow.line, Tracking::Strict);
    flow.expect(REPLY, segment(ACK, 901, 73_101, 1000, 10), Outcome::Accept, "ES");
    flow.expect(ORIG, segment(ACK, 73_101, 911, 1000, 10), Outcome::Accept, "ES");
    // The same mode again changes nothing.
    let before = words(&flow.line);
    retrack(&flow.line, Tracking::Strict);
    assert_eq!(words(&flow.line), before);
}

/// Rule 3.
#[test]
fn what_does_not_acknowledge_is_judged_by_its_number_alone() {
    let mut flow = Flow::syn();
    flow.expect(REPLY, segment(SYN | ACK, 900, 101, 1000, 0), Outcome::Accept, "SR");
    flow.expect(ORIG, segment(RST, 101, 9_999_999, 0, 0), Outcome::Accept, "CL");
}

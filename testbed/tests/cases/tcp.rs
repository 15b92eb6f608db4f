//! Lives of TCP connections.

use erhu_testbed::packet::{Packet, tcp};
use erhu_testbed::scenario::EventKind;

use crate::{FIREWALL, LAN, Talk, WAN, nat, plain};

const ENTRY: &str = "10.1.1.1:40000>10.2.2.2:80 10.2.2.2:80>10.1.1.1:40000";

/// F1: a SYN with another sequence number on a live connection passes, so does the peer's challenge, once; the
/// connection goes on.
#[test]
fn a_live_connection_survives_a_stray_syn() {
    let talk = Talk::PLAIN;
    let scenario = talk.open(plain(FIREWALL), 0.0);
    let scenario = talk.forth(scenario, 1.0, "S", 1_000_000, 0);
    let scenario = talk.back(scenario, 1.1, "A", 901, 101);
    let scenario = talk.forth(scenario, 2.0, "PA", 101, 901);
    let outcome = talk.back(scenario, 2.1, "A", 901, 101).run();
    outcome.count_left(WAN, 4);
    outcome.count_left(LAN, 3);
    let challenge = outcome.packets(LAN)[1];
    assert_eq!((challenge.tcp().seq, challenge.tcp().ack), (901, 101));
    outcome.table(&[&format!("tcp ESTABLISHED {ENTRY} [ASSURED]")]);
    outcome.expires_in(ENTRY, 432_000);
    outcome.drops(&[]);
}

/// F2: a reset at the acknowledged edge ends the connection; a new SYN on the same ports opens another.
#[test]
fn a_reset_makes_room_for_a_new_connection() {
    let talk = Talk::PLAIN;
    let scenario = talk.open(plain(FIREWALL), 0.0);
    let gap = tcp(talk.client, talk.server).flags("PA").seq(201).ack(901).payload_len(100);
    let scenario = talk.forth(scenario.send(1.0, LAN, gap), 1.1, "R", 101, 0).command(1.2, "conntrack:-L");
    let scenario = talk.forth(scenario, 2.0, "S", 500_000, 0);
    let outcome = talk.back(scenario, 2.1, "SA", 700_000, 500_001).run();
    assert_eq!(outcome.listed(1), [format!("tcp CLOSE {ENTRY} [ASSURED]")]);
    outcome.count_left(LAN, 2);
    outcome.table(&[&format!("tcp SYN_RECV {ENTRY}")]);
    assert_eq!(outcome.count_events(EventKind::New), 2);
    outcome.drops(&[]);
}

/// F5: two hundred kilobytes through the router come out byte for byte, plain and translated.
#[test]
fn a_long_transfer_is_unchanged() {
    for (talk, scenario) in [(Talk::PLAIN, plain("")), (Talk::NAT, nat())] {
        let data: Vec<u8> = (0..200_000_u32).map(|k| u8::try_from(k * 7 % 251).unwrap()).collect();
        let mut scenario = talk.open(scenario, 0.0);
        let mut seq = 101;
        for (k, chunk) in data.chunks(1460).enumerate() {
            let at = 1.0 + f64::from(u32::try_from(k).unwrap()) / 1000.0;
            let next = seq + u32::try_from(chunk.len()).unwrap();
            let forth = tcp(talk.client, talk.server).flags("A").seq(seq).ack(seq + 800).payload(chunk);
            let echo = tcp(talk.server, talk.seen_as).flags("A").seq(seq + 800).ack(next).payload(chunk);
            scenario = scenario.send(at, talk.near, forth).send(at + 0.0005, talk.far, echo);
            seq = next;
        }
        let outcome = scenario.run();
        for side in [talk.near, talk.far] {
            let through: Vec<u8> = outcome.packets(side).iter().flat_map(|s| s.payload().to_vec()).collect();
            assert!(through == data, "{side:?} saw other bytes");
        }
        outcome.drops(&[]);
    }
}

/// T70: both sides open at once: SYN and SYN, SYN/ACK and SYN/ACK, and it is established.
#[test]
fn a_connection_opened_from_both_sides_is_established() {
    let talk = Talk::PLAIN;
    let scenario = talk.forth(plain(""), 0.0, "S", 100, 0).command(0.01, "conntrack:-L");
    let scenario = talk.back(scenario, 0.05, "S", 900, 0).command(0.06, "conntrack:-L");
    let scenario = talk.forth(scenario, 0.1, "SA", 100, 901).command(0.11, "conntrack:-L");
    let scenario = talk.back(scenario, 0.15, "SA", 900, 101);
    let outcome = talk.forth(scenario, 0.2, "A", 101, 901).run();
    assert_eq!(outcome.listed(1), [format!("tcp SYN_SENT {ENTRY} [UNREPLIED]")]);
    assert_eq!(outcome.listed(2), [format!("tcp SYN_SENT2 {ENTRY}")]);
    assert_eq!(outcome.listed(3), [format!("tcp SYN_RECV {ENTRY}")]);
    outcome.table(&[&format!("tcp ESTABLISHED {ENTRY} [ASSURED]")]);
    outcome.count_left(WAN, 3);
    outcome.count_left(LAN, 2);
    outcome.drops(&[]);
}

/// T71: a FIN that carries data closes like one that does not.
#[test]
fn a_fin_with_data_closes() {
    let talk = Talk::PLAIN;
    let fin =
        |from: &str, to: &str, seq, ack| -> Packet { tcp(from, to).flags("FPA").seq(seq).ack(ack).payload(b"bye") };
    let scenario = talk.open(plain(FIREWALL), 0.0);
    let scenario = scenario.send(1.0, LAN, fin(talk.client, talk.server, 101, 901)).command(1.05, "conntrack:-L");
    let scenario = talk.back(scenario, 1.1, "A", 901, 105).command(1.15, "conntrack:-L");
    let scenario = scenario.send(1.2, WAN, fin(talk.server, talk.seen_as, 901, 105)).command(1.25, "conntrack:-L");
    let outcome = talk.forth(scenario, 1.3, "A", 105, 905).run();
    let states = ["FIN_WAIT", "CLOSE_WAIT", "LAST_ACK"];
    for (k, state) in (1..).zip(states) {
        assert_eq!(outcome.listed(k), [format!("tcp {state} {ENTRY} [ASSURED]")]);
    }
    outcome.table(&[&format!("tcp TIME_WAIT {ENTRY} [ASSURED]")]);
    outcome.expires_in(ENTRY, 120);
    outcome.drops(&[]);
}

/// T79: flags that no host sends are invalid and never make a connection.
#[test]
fn bogus_flags_are_invalid() {
    let flags = ["SF", "SR", "SFA", "FR", "", "F", "P", "U", "FPU", "SFRPAU"];
    let packets = flags.map(|f| tcp("10.1.1.1:40000", "10.2.2.2:80").flags(f).seq(100));
    let count = u64::try_from(flags.len()).unwrap();
    let outcome = plain(FIREWALL).send_every(0.0, 0.1, LAN, packets).run();
    outcome.left(WAN, &[]);
    outcome.table(&[]);
    outcome.drops(&[("rule", count)]);
    assert_eq!(outcome.counter("invalid_packets"), count);
    assert!(outcome.events.is_empty(), "{outcome}");
}

/// First packets that open nothing: anything but SYN, and ACK of a connection already under way.
#[test]
fn only_a_syn_or_an_ack_begins_a_connection() {
    let first = |flags: &str| plain(FIREWALL).send(0.0, LAN, tcp("10.1.1.1:40000", "10.2.2.2:80").flags(flags)).run();
    for flags in ["SA", "FA", "R", "RA"] {
        let outcome = first(flags);
        outcome.drops(&[("rule", 1)]);
        outcome.table(&[]);
    }
    first("S").table(&[&format!("tcp SYN_SENT {ENTRY} [UNREPLIED]")]);
    first("A").table(&[&format!("tcp ESTABLISHED {ENTRY} [UNREPLIED]")]);
}

/// A zone with strict tracking picks nothing up.
#[test]
fn a_strict_zone_picks_nothing_up() {
    let rules = r#"zone("main", #{ tracking: "strict" });"#;
    let ack = tcp("10.1.1.1:40000", "10.2.2.2:80").flags("A").seq(5).ack(7);
    let outcome = plain(&format!("{rules}{FIREWALL}")).send(0.0, LAN, ack).run();
    outcome.drops(&[("rule", 1)]);
    outcome.table(&[]);
}

/// A refused connection is gone at once, and so is one that was given up before any answer.
#[test]
fn a_reset_before_any_reply_ends_the_connection_at_once() {
    let talk = Talk::PLAIN;
    let refused = talk.back(talk.forth(plain(FIREWALL), 0.0, "S", 100, 0), 0.1, "RA", 0, 101).run();
    refused.left(LAN, &["tcp 10.2.2.2:80 > 10.1.1.1:40000 RA"]);
    refused.table(&[]);
    assert_eq!(refused.story(ENTRY).last(), Some(&EventKind::Destroy));
    let given_up = talk.forth(talk.forth(plain(FIREWALL), 0.0, "S", 100, 0), 0.1, "R", 101, 0).run();
    given_up.count_left(WAN, 2);
    given_up.table(&[]);
    for outcome in [refused, given_up] {
        outcome.drops(&[]);
    }
}

/// States and their times, step by step, as the kernel has them.
#[test]
fn every_state_has_its_time() {
    let talk = Talk::PLAIN;
    let steps: &[(bool, &str, u32, u32, &str, u64)] = &[
        (true, "S", 100, 0, "SYN_SENT", 120),
        (false, "SA", 900, 101, "SYN_RECV", 60),
        (true, "A", 101, 901, "ESTABLISHED", 432_000),
        (true, "FA", 101, 901, "FIN_WAIT", 120),
        (false, "A", 901, 102, "CLOSE_WAIT", 60),
        (false, "FA", 901, 102, "LAST_ACK", 30),
        (true, "A", 102, 902, "TIME_WAIT", 120),
    ];
    let mut scenario = plain("");
    for (k, (forth, flags, seq, ack, state, seconds)) in steps.iter().enumerate() {
        let at = f64::from(u32::try_from(k).unwrap()) * 5.0;
        let send = if *forth { Talk::forth } else { Talk::back };
        scenario = send(talk, scenario, at, flags, *seq, *ack);
        let outcome = scenario.run();
        assert_eq!(outcome.entry(ENTRY).state.as_deref(), Some(*state));
        outcome.expires_in(ENTRY, *seconds);
    }
}

/// A SYN that is sent again does not give an unanswered connection more time.
#[test]
fn a_repeated_syn_does_not_extend_the_wait() {
    let talk = Talk::PLAIN;
    let scenario = talk.forth(talk.forth(plain(""), 0.0, "S", 100, 0), 50.0, "S", 100, 0);
    scenario.run().expires_in(ENTRY, 70);
}

/// What an ignored packet leaves alone: state, time, and the right to be forwarded.
#[test]
fn a_delayed_synack_is_forwarded_and_changes_nothing() {
    let talk = Talk::PLAIN;
    let scenario = talk.open(plain(FIREWALL), 0.0);
    let outcome = talk.back(scenario, 100.0, "SA", 900, 101).run();
    outcome.count_left(LAN, 2);
    outcome.expires_in(ENTRY, 431_900);
    outcome.drops(&[]);
}

/// A connection in TIME_WAIT gives way to a SYN of either side.
#[test]
fn time_wait_gives_way_to_a_new_syn() {
    let talk = Talk::PLAIN;
    let closed = || talk.close(talk.open(plain(""), 0.0), 1.0);
    let same = talk.forth(closed(), 10.0, "S", 900_000, 0).run();
    same.table(&[&format!("tcp SYN_SENT {ENTRY} [UNREPLIED]")]);
    let other = talk.back(closed(), 10.0, "S", 900_000, 0).run();
    other.table(&["tcp SYN_SENT 10.2.2.2:80>10.1.1.1:40000 10.1.1.1:40000>10.2.2.2:80 [UNREPLIED]"]);
}

/// A segment of the server's, or with `forth` of the client's, with what a test says of it besides.
fn data(talk: Talk, forth: bool, numbers: (u32, u32), bytes: usize) -> Packet {
    let (from, to) = if forth { (talk.client, talk.server) } else { (talk.server, talk.seen_as) };
    tcp(from, to).flags("A").seq(numbers.0).ack(numbers.1).payload_len(bytes)
}

/// Options of a SYN: a window scale, and SACK permitted.
fn offer(scale: u8) -> [u8; 8] {
    [4, 2, 1, 1, 1, 3, 3, scale]
}

/// KP5: a SYN/ACK that acknowledges another number is invalid; the one that answers the SYN sent again opens, with
/// whatever sequence number it has.
#[test]
fn a_stale_synack_is_invalid_and_harms_nothing() {
    let talk = Talk::PLAIN;
    let scenario = talk.forth(plain(FIREWALL), 0.0, "S", 100, 0);
    let scenario = talk.back(scenario, 0.1, "SA", 900, 5_000_000);
    let scenario = talk.forth(scenario, 1.0, "S", 100, 0);
    let scenario = talk.back(scenario, 1.1, "SA", 70_000, 101);
    let outcome = talk.forth(scenario, 1.2, "A", 101, 70_001).run();
    outcome.table(&[&format!("tcp ESTABLISHED {ENTRY} [ASSURED]")]);
    outcome.count_left(LAN, 1);
    outcome.drops(&[("rule", 1)]);
    assert_eq!((outcome.counter("invalid_packets"), outcome.counter("tcp_ack_above")), (1, 1));
}

/// O37: in a connection far up, a segment with number 0 is invalid where windows are followed, and passes where
/// tracking is liberal.
#[test]
fn a_segment_far_from_the_window_is_invalid_unless_tracking_is_liberal() {
    let talk = Talk::PLAIN;
    let base = 3_000_000_000;
    for (mode, passes) in [("strict", false), ("loose", false), ("liberal", true)] {
        let rules = format!(r#"zone("main", #{{ tracking: "{mode}" }});{FIREWALL}"#);
        let scenario = talk.forth(plain(&rules), 0.0, "S", base, 0);
        let scenario = talk.back(scenario, 0.1, "SA", 900, base + 1);
        let scenario = talk.forth(scenario, 0.2, "A", base + 1, 901);
        let scenario = talk.forth(scenario, 0.3, "A", 0, 901);
        let outcome = talk.forth(scenario, 0.4, "A", base + 1, 901).run();
        outcome.count_left(WAN, if passes { 4 } else { 3 });
        assert_eq!(outcome.counter("tcp_seq_above"), 1, "{mode}");
        assert_eq!(outcome.counter("invalid_packets"), u64::from(!passes), "{mode}");
        outcome.table(&[&format!("tcp ESTABLISHED {ENTRY} [ASSURED]")]);
    }
}

/// N15: of a connection whose answers go another way nothing is invalid in an asymmetric zone; in a strict one the
/// counters say which bound failed.
#[test]
fn one_way_is_enough_for_an_asymmetric_zone() {
    let talk = Talk::PLAIN;
    let play = |mode: &str| {
        let rules = format!(r#"zone("main", #{{ tracking: "{mode}" }});{FIREWALL}"#);
        // Both see the handshake; after it only the client's side passes here.
        let mut scenario = talk.open(plain(&rules), 0.0);
        for k in 1..=5 {
            let at = 1.0 + f64::from(k);
            scenario = scenario.send(at, LAN, data(talk, true, (101 + (k - 1) * 10, 901 + k * 1000), 10));
        }
        talk.forth(scenario, 7.0, "FA", 151, 5901).run()
    };
    let asymmetric = play("asymmetric");
    asymmetric.count_left(WAN, 2 + 6);
    asymmetric.drops(&[]);
    asymmetric.table(&[&format!("tcp FIN_WAIT {ENTRY} [ASSURED]")]);
    assert_eq!(asymmetric.counter("invalid_packets"), 0);
    let strict = play("strict");
    strict.count_left(WAN, 2);
    strict.drops(&[("rule", 6)]);
    assert_eq!((strict.counter("invalid_packets"), strict.counter("tcp_ack_above")), (6, 6));

    // Not even the handshake is seen whole.
    let rules = format!(r#"zone("main", #{{ tracking: "asymmetric" }});{FIREWALL}"#);
    let scenario = talk.forth(plain(&rules), 0.0, "S", 100, 0);
    let scenario = talk.forth(talk.forth(scenario, 0.1, "A", 101, 901), 0.2, "A", 101, 901);
    let outcome = talk.forth(scenario, 0.3, "FA", 101, 901).run();
    outcome.count_left(WAN, 4);
    assert_eq!(outcome.counter("invalid_packets"), 0);
}

/// A reset within the window that is not exact leaves ten seconds; the challenge ACK that answers it puts them up to
/// five minutes, for the reset has moved its sender's end. Without a challenge the connection ends.
#[test]
fn an_inexact_reset_leaves_ten_seconds_until_the_challenge() {
    let talk = Talk::PLAIN;
    let reset = || {
        let scenario = talk.back(talk.open(plain(FIREWALL), 0.0), 0.5, "A", 901, 101);
        talk.forth(scenario, 1.0, "R", 600, 0)
    };
    let outcome = reset().run();
    outcome.expires_in(ENTRY, 10);
    outcome.table(&[&format!("tcp ESTABLISHED {ENTRY} [ASSURED]")]);
    let outcome = reset().until(30.0).run();
    let ended = outcome.ended_at(ENTRY);
    assert!(ended.len() == 1 && (11.0..11.2).contains(&ended[0]), "{ended:?}");
    let outcome = talk.back(reset(), 2.0, "A", 901, 101).run();
    outcome.expires_in(ENTRY, 300);
    let outcome = talk.forth(talk.back(reset(), 2.0, "A", 901, 101), 3.0, "R", 101, 0).run();
    outcome.table(&[&format!("tcp CLOSE {ENTRY} [ASSURED]")]);
    outcome.drops(&[]);
}

/// Resets before what was acknowledged, or beyond the window, are invalid.
#[test]
fn a_forged_reset_ends_nothing() {
    let talk = Talk::PLAIN;
    let scenario = talk.back(talk.open(plain(FIREWALL), 0.0), 0.5, "A", 901, 101);
    let scenario = talk.forth(scenario, 1.0, "R", 100, 0);
    let outcome = talk.forth(scenario, 2.0, "R", 5_000_000, 0).run();
    outcome.drops(&[("rule", 2)]);
    outcome.table(&[&format!("tcp ESTABLISHED {ENTRY} [ASSURED]")]);
    assert_eq!((outcome.counter("tcp_reset_below"), outcome.counter("tcp_seq_above")), (1, 1));
    outcome.expires_in(ENTRY, 431_998);
}

/// What is scaled, acknowledged selectively, kept alive, or stopped by a closed window lies within the windows,
/// translated as well.
#[test]
fn windows_follow_scaling_sack_keepalives_and_closing() {
    for (talk, scenario) in [(Talk::PLAIN, plain(FIREWALL)), (Talk::NAT, nat())] {
        let syn = tcp(talk.client, talk.server).flags("S").seq(100).window(1000).tcp_options(&offer(7));
        let answer =
            tcp(talk.server, talk.seen_as).flags("SA").seq(900).ack(101).window(1000).tcp_options(&offer(14));
        let block = |left: u32, right: u32| {
            let mut options = vec![1, 1, 5, 10];
            options.extend(left.to_be_bytes());
            options.extend(right.to_be_bytes());
            options
        };
        let scenario = scenario
            .send(0.0, talk.near, syn)
            .send(0.1, talk.far, answer)
            .send(0.2, talk.near, data(talk, true, (101, 901), 0).window(1000))
            // 1000 << 7 may be sent to the client.
            .send(0.3, talk.far, data(talk, false, (901 + 100_000, 101), 1000).window(1000))
            .send(0.4, talk.near, data(talk, true, (101, 901), 0).tcp_options(&block(100_901, 101_901)))
            .send(0.5, talk.far, data(talk, false, (901, 101), 1000))
            // A keep-alive, and its answer.
            .send(0.6, talk.far, data(talk, false, (101_900, 101), 1))
            .send(0.7, talk.near, data(talk, true, (101, 101_901), 0).window(0))
            .send(0.8, talk.far, data(talk, false, (101_901, 101), 1))
            .send(0.9, talk.near, data(talk, true, (101, 101_902), 0).window(100));
        let outcome = scenario.run();
        outcome.drops(&[]);
        outcome.count_left(talk.far, 5);
        outcome.count_left(talk.near, 5);
        for bound in ["tcp_seq_above", "tcp_seq_below", "tcp_ack_above", "tcp_ack_below", "tcp_overshoot"] {
            assert_eq!(outcome.counter(bound), 0, "{bound}");
        }
        let beyond = scenario.send(1.0, talk.near, data(talk, true, (101, 101_903), 0)).run();
        assert_eq!(beyond.counter("tcp_ack_above"), 1);
    }
}

/// Data that is not acknowledged leaves five minutes; it does so to the tick, though no timer is moved for it.
#[test]
fn data_under_way_limits_the_time() {
    let talk = Talk::PLAIN;
    let sent = |at| talk.open(plain(FIREWALL), 0.0).send(at, LAN, data(talk, true, (101, 901), 100));
    for at in [1.0, 100.0, 290.0, 1000.0, 4000.5] {
        let outcome = sent(at).run();
        outcome.expires_in(ENTRY, 300);
        let outcome = sent(at).until(at + 400.0).run();
        let ended = outcome.ended_at(ENTRY);
        assert!(ended.len() == 1 && (at + 300.0..at + 300.2).contains(&ended[0]), "sent at {at}, ended at {ended:?}");
        let outcome = talk.back(sent(at), at + 5.0, "A", 901, 201).run();
        outcome.expires_in(ENTRY, 432_000);
        assert_eq!(talk.back(sent(at), at + 5.0, "A", 901, 201).until(at + 5000.0).run().ended_at(ENTRY), [0.0; 0]);
    }
}

/// Each step towards the end leaves its own time, to the tick: of a young connection, whose timer is not moved for it, as
/// of an old one, and where the rules leave less time than the timer of a young one does.
#[test]
fn a_connection_ends_to_the_tick_whatever_its_age() {
    let talk = Talk::PLAIN;
    let short = format!(
        r#"timeout("short", #{{ tcp_fin_wait: 12, tcp_close_wait: 9, tcp_last_ack: 5, tcp_time_wait: 20 }});
        zone("main", #{{ timeout: "short" }});{FIREWALL}"#
    );
    for (rules, times) in [(FIREWALL, [120.0, 60.0, 30.0, 120.0]), (&short, [12.0, 9.0, 5.0, 20.0])] {
        for at in [0.5, 15.0, 27.0, 29.0, 29.9, 31.0, 299.0, 1000.0] {
            for (steps, time) in (1..).zip(times) {
                let mut scenario = talk.open(plain(rules), 0.0);
                for step in 0..steps {
                    let at = at + f64::from(step) / 10.0;
                    scenario = match step {
                        0 => talk.forth(scenario, at, "FA", 101, 901),
                        1 => talk.back(scenario, at, "A", 901, 102),
                        2 => talk.back(scenario, at, "FA", 901, 102),
                        _ => talk.forth(scenario, at, "A", 102, 902),
                    };
                }
                let last = at + f64::from(steps - 1) / 10.0;
                let ended = scenario.until(last + 2.0 * time).run().ended_at(ENTRY);
                let is_due = ended.len() == 1 && (last + time..last + time + 0.2).contains(&ended[0]);
                assert!(is_due, "{steps} steps from {at} on, {time} s left: ended at {ended:?}");
            }
        }
    }
}

/// The same of one that lives for less than a young one's timer, again and again.
#[test]
fn a_short_timeout_holds_while_a_connection_is_young() {
    let talk = Talk::PLAIN;
    let rules =
        format!(r#"timeout("short", #{{ tcp_established: 10 }});zone("main", #{{ timeout: "short" }});{FIREWALL}"#);
    for packets in 0..6 {
        let mut scenario = talk.open(plain(&rules), 0.0);
        for k in 1..=packets {
            scenario = talk.back(scenario, 8.0 * f64::from(k), "A", 901, 101);
        }
        let last = 8.0 * f64::from(packets);
        let ended = scenario.until(last + 100.0).run().ended_at(ENTRY);
        assert!(ended.len() == 1 && (last + 10.0..last + 10.5).contains(&ended[0]), "{packets}: {ended:?}");
    }
}

/// A sender that sends again and again, and a receiver whose window is closed: five minutes as well.
#[test]
fn repetition_and_a_closed_window_limit_the_time() {
    let talk = Talk::PLAIN;
    let mut scenario = talk.open(plain(FIREWALL), 0.0);
    for (k, seconds) in (0..5).zip([432_000, 432_000, 432_000, 300, 300]) {
        scenario = talk.back(scenario, 1.0 + f64::from(k), "A", 901, 101);
        scenario.run().expires_in(ENTRY, seconds);
    }
    let closed = data(talk, false, (901, 101), 0).window(0);
    let scenario = talk.open(plain(FIREWALL), 0.0).send(1.0, WAN, closed);
    scenario.run().expires_in(ENTRY, 300);
    talk.back(scenario, 2.0, "A", 901, 101).run().expires_in(ENTRY, 432_000);
}

/// Ends that are beyond the windows, from both sides, leave an assured connection five minutes; a good packet gives it
/// its time back.
#[test]
fn ends_that_nobody_believes_shorten_the_time() {
    let talk = Talk::PLAIN;
    let scenario = talk.forth(talk.open(plain(FIREWALL), 0.0), 1.0, "FA", 5_000_000, 901);
    scenario.run().expires_in(ENTRY, 431_999);
    let scenario = talk.back(scenario, 100.0, "FA", 5_000_000, 101);
    let outcome = scenario.run();
    outcome.expires_in(ENTRY, 300);
    outcome.drops(&[("rule", 2)]);
    let ended = scenario.clone().until(1000.0).run().ended_at(ENTRY);
    assert!(ended.len() == 1 && (400.0..400.2).contains(&ended[0]), "{ended:?}");
    talk.forth(scenario, 200.0, "A", 101, 901).run().expires_in(ENTRY, 432_000);
}

/// New rules change tracking mode and timeouts of connections that exist, from their next packet on.
#[test]
fn tracking_and_timeouts_follow_the_rules() {
    let talk = Talk::PLAIN;
    let other = crate::plain_script(&format!(
        r#"timeout("short", #{{ tcp_established: 50 }});
        zone("main", #{{ tracking: "strict", timeout: "short" }});{FIREWALL}"#
    ));
    let first = format!(r#"zone("main", #{{ tracking: "asymmetric" }});{FIREWALL}"#);
    let scenario = talk.open(plain(&first), 0.0);
    // Nobody followed these.
    let scenario = scenario.send(1.0, LAN, data(talk, true, (500_000, 901), 100)).apply(2.0, &other);
    let scenario = talk.back(scenario, 3.0, "A", 901, 500_100);
    let scenario = scenario.send(4.0, LAN, data(talk, true, (500_100, 901), 100));
    let outcome = talk.back(scenario, 5.0, "A", 901, 500_200).run();
    outcome.drops(&[]);
    assert_eq!(outcome.counter("invalid_packets"), 0);
    outcome.expires_in(ENTRY, 50);
}

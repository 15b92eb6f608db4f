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
            let forth = tcp(talk.client, talk.server).flags("A").seq(seq).ack(901).payload(chunk);
            let echo = tcp(talk.server, talk.seen_as).flags("A").seq(seq + 800).ack(101).payload(chunk);
            scenario = scenario.send(at, talk.near, forth).send(at + 0.0005, talk.far, echo);
            seq += u32::try_from(chunk.len()).unwrap();
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

//! Timeouts, and when connections end.

use erhu_testbed::packet::{ping, tcp, udp};
use erhu_testbed::scenario::{EventKind, Scenario};

use crate::{BLUE, GREEN, LAN, Talk, WAN, nat, nat_with, plain, tenants_script};

const FLOW: &str = "10.1.1.1:5000>10.2.2.2:53";

fn datagram() -> erhu_testbed::packet::Packet {
    udp("10.1.1.1:5000", "10.2.2.2:53")
}

fn answer() -> erhu_testbed::packet::Packet {
    udp("10.2.2.2:53", "10.1.1.1:5000")
}

/// Asserts that the connections like a text ended once each, at a time or up to a second later.
#[track_caller]
fn ended(outcome: &erhu_testbed::scenario::Outcome, containing: &str, seconds: &[f64]) {
    let at = outcome.ended_at(containing);
    let late = at.iter().zip(seconds).all(|(at, want)| (*want..=want + 1.0).contains(at));
    assert!(at.len() == seconds.len() && late, "{containing} ended at {at:?}, not {seconds:?}\n{outcome}");
}

/// T80: a table full of UDP empties by itself: refilled after their timeout, all are accepted, and the TCP connection
/// among them lives.
#[test]
fn a_table_full_of_expired_datagrams_takes_new_ones() {
    let short = r#"timeout("default", #{ udp: 1 });"#;
    let flood = |first: u16| (first..first + 63).map(|port| udp(&format!("10.1.1.1:{port}"), "10.2.2.2:53"));
    let scenario = Talk::PLAIN.open(plain(short).connections(64), 0.0);
    let scenario = scenario.send_all(1.0, LAN, flood(1000)).send_all(2.5, LAN, flood(2000));
    let outcome = Talk::PLAIN.forth(scenario, 2.6, "A", 101, 901).run();
    outcome.count_left(WAN, 2 + 63 + 63 + 1);
    outcome.drops(&[]);
    assert_eq!(outcome.entries.len(), 64, "{outcome}");
    assert_eq!(outcome.counter("early_drop"), 0);
    assert_eq!(outcome.entry("tcp").state.as_deref(), Some("ESTABLISHED"));
}

/// T82: an idle connection ends on time although others, made before and after it, are kept busy; those do not end.
#[test]
fn an_idle_connection_ends_among_busy_ones() {
    let busy = |port: u16| udp(&format!("10.1.1.1:{port}"), "10.2.2.2:53");
    let mut scenario = plain("").send_all(0.0, LAN, [busy(1), datagram(), busy(2)]);
    for k in 1..=6 {
        scenario = scenario.send_all(f64::from(k) * 10.0, LAN, [busy(1), busy(2)]);
    }
    let outcome = scenario.run();
    ended(&outcome, FLOW, &[30.0]);
    assert_eq!(outcome.entries.len(), 2, "{outcome}");
}

/// T83: deadlines far beyond a turn of any wheel fire once, and not early.
#[test]
fn deadlines_of_hours_and_days_fire_once() {
    let hours = r#"timeout("default", #{ udp: "3h", icmp: 7200 });"#;
    let scenario = Talk::PLAIN.open(plain(hours), 0.0);
    let scenario = scenario.send_all(0.0, LAN, [datagram(), ping("10.1.1.1", "10.2.2.2", 7)]);
    let outcome = scenario.until(432_010.0).run();
    ended(&outcome, FLOW, &[10_800.0]);
    ended(&outcome, "#7", &[7200.0]);
    ended(&outcome, "tcp", &[432_000.02]);
    outcome.table(&[]);
    assert_eq!(outcome.count_events(EventKind::Destroy), 3);
}

/// T88: the port of a TCP connection that was closed, and whose wait is over, is given out again at once.
#[test]
fn the_port_of_a_closed_connection_is_free_again() {
    let scenario = nat_with(r#"addresses: "198.51.100.10", ports: 40000, reuse_delay: 120"#);
    let scenario = Talk::NAT.close(Talk::NAT.open(scenario, 0.0), 1.0);
    let outcome = scenario
        .send(100.0, LAN, tcp("10.0.0.6:40000", "192.0.2.1:80").flags("S"))
        .send(130.0, LAN, tcp("10.0.0.6:40000", "192.0.2.1:80").flags("S"))
        .run();
    outcome.drops(&[("pool_exhausted", 1)]);
    outcome.table(&["tcp SYN_SENT 10.0.0.6:40000>192.0.2.1:80@1 192.0.2.1:80>198.51.100.10:40000 [UNREPLIED]"]);
}

/// T97: each zone has its own timeouts.
#[test]
fn zones_have_their_own_timeouts() {
    let rules = r#"timeout("short", #{ udp: 3 }); timeout("long", #{ udp: 30 });"#;
    let script = tenants_script(r#"timeout: "short""#, r#"timeout: "long""#, rules);
    let packet = || udp("10.0.0.5:1", "192.0.2.1:53");
    let outcome = Scenario::of(&script).send(0.0, BLUE, packet()).send(0.0, GREEN, packet()).until(40.0).run();
    ended(&outcome, "@1", &[3.0]);
    ended(&outcome, "@2", &[30.0]);
}

/// One-way UDP lives 30 s after its last packet; answered, likewise.
#[test]
fn udp_lives_thirty_seconds() {
    let one_way = plain("").send_every(0.0, 20.0, LAN, [datagram(), datagram()]).until(60.0).run();
    ended(&one_way, FLOW, &[50.0]);
    let answered = plain("").send(0.0, LAN, datagram()).send(1.0, WAN, answer()).until(60.0).run();
    ended(&answered, FLOW, &[31.0]);
}

/// A conversation that goes on after two seconds is a stream: assured, and 120 s.
#[test]
fn udp_becomes_a_stream() {
    let scenario = plain("").send(0.0, LAN, datagram()).send(1.0, WAN, answer());
    let early = scenario.clone().send(1.9, LAN, datagram()).run();
    assert!(!early.entry(FLOW).is("ASSURED"), "{early}");
    early.expires_in(FLOW, 30);
    let later = scenario.send(2.5, LAN, datagram()).run();
    assert!(later.entry(FLOW).is("ASSURED"), "{later}");
    later.expires_in(FLOW, 120);
}

/// Where only answered flows are extended, a flow that nobody answers ends though its host goes on.
#[test]
fn unanswered_udp_need_not_extend_itself() {
    let rules = r#"timeout("default", #{ udp_refresh: "replied" });"#;
    let outcome = plain(rules).send_every(0.0, 10.0, LAN, [datagram(), datagram(), datagram()]).until(29.9).run();
    outcome.expires_in(FLOW, 0);
    let gone = plain(rules).send_every(0.0, 10.0, LAN, [datagram(), datagram(), datagram()]).until(31.0).run();
    ended(&gone, FLOW, &[30.0]);
}

/// Echo lives 30 s after the last packet of either direction.
#[test]
fn echo_lives_thirty_seconds() {
    let request = ping("10.1.1.1", "10.2.2.2", 7);
    let reply = request.seen().answer();
    let outcome = plain("").send(0.0, LAN, request).send(5.0, WAN, reply).until(40.0).run();
    ended(&outcome, "#7", &[35.0]);
}

/// A mapping ends with its last connection: then its port is another host's.
#[test]
fn a_port_is_free_when_its_last_connection_ended() {
    let scenario = nat_with(r#"addresses: "198.51.100.10", ports: 5000"#)
        .send(0.0, LAN, udp("10.0.0.5:5000", "192.0.2.1:53"))
        .send(10.0, LAN, udp("10.0.0.5:5000", "192.0.2.2:53"))
        .send(35.0, LAN, udp("10.0.0.6:5000", "192.0.2.1:53"))
        .send(45.0, LAN, udp("10.0.0.6:5000", "192.0.2.1:53"));
    let outcome = scenario.run();
    outcome.left(
        WAN,
        &[
            "udp 198.51.100.10:5000 > 192.0.2.1:53",
            "udp 198.51.100.10:5000 > 192.0.2.2:53",
            "udp 198.51.100.10:5000 > 192.0.2.1:53",
        ],
    );
    outcome.drops(&[("pool_exhausted", 1)]);
}

/// What ends is told once: NEW, then DESTROY with what was counted.
#[test]
fn every_end_is_an_event_with_its_counters() {
    let outcome = nat()
        .send(0.0, LAN, udp("10.0.0.5:5353", "192.0.2.1:53").payload_len(12))
        .send(1.0, WAN, udp("192.0.2.1:53", "198.51.100.10:5353").payload_len(72))
        .until(60.0)
        .run();
    let story = outcome.story("10.0.0.5:5353");
    assert_eq!((story.first(), story.last()), (Some(&EventKind::New), Some(&EventKind::Destroy)), "{outcome}");
    assert_eq!(story.iter().filter(|kind| **kind == EventKind::Destroy).count(), 1);
    let last = outcome.events.last().expect("there is one");
    assert_eq!((last.entry.original_count, last.entry.reply_count), (Some((1, 40)), Some((1, 100))));
    let ids: std::collections::BTreeSet<_> = outcome.events.iter().map(|e| e.entry.id).collect();
    assert_eq!(ids.len(), 1);
}

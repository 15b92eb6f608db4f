//! Limits of zones, the full table, and who pays when it is.

use erhu_testbed::packet::{Packet, tcp, udp};
use erhu_testbed::scenario::{EventKind, Scenario, Side};

use crate::{BLUE, GREEN, LAN, Talk, WAN, plain, tenants_script, vlan_zones_script};

fn syn(port: u16) -> Packet {
    tcp(&format!("10.0.0.5:{port}"), "192.0.2.1:80").flags("S").seq(100)
}

/// Opens so many assured connections of a tenant, the first from a port on.
fn assured(mut scenario: Scenario, side: Side, external: &str, first: u16, count: u16, at: f64) -> Scenario {
    for port in first..first + count {
        let (client, seen_as) = (format!("10.0.0.5:{port}"), format!("{external}:{port}"));
        scenario = scenario
            .send(at, side, tcp(&client, "192.0.2.1:80").flags("S").seq(100))
            .send(at + 0.1, WAN, tcp("192.0.2.1:80", &seen_as).flags("SA").seq(900).ack(101))
            .send(at + 0.2, side, tcp(&client, "192.0.2.1:80").flags("A").seq(101).ack(901));
    }
    scenario
}

/// KS31: as many connections as the limit admits; one more is refused; when one closes, one is admitted.
#[test]
fn a_connection_that_ends_makes_room_under_the_limit() {
    let script = tenants_script("limit: 3", "", "");
    let scenario = assured(Scenario::of(&script), BLUE, "198.51.100.10", 2000, 3, 0.0);
    let outcome = scenario
        .send(1.0, BLUE, syn(3000))
        .send(2.0, WAN, tcp("192.0.2.1:80", "198.51.100.10:2000").flags("RA").seq(901).ack(101))
        .send(15.0, BLUE, syn(3001))
        .run();
    outcome.drops(&[("zone_limit", 1)]);
    assert_eq!(outcome.entries.len(), 3, "{outcome}");
    assert!(outcome.entry(":3001>").is("UNREPLIED"));
}

/// F13: with a limit of three, the fourth SYN gets no answer.
#[test]
fn the_fourth_syn_of_three_is_not_answered() {
    let outcome = Scenario::of(&tenants_script("limit: 3", "", ""))
        .send_every(0.0, 0.1, BLUE, [2001, 2002, 2003, 2004].map(syn))
        .answered(WAN, 0.05, |left| Some(left.answer().flags("SA").seq(900).ack(101)))
        .run();
    outcome.count_left(WAN, 3);
    outcome.count_left(BLUE, 3);
    outcome.drops(&[("zone_limit", 1)]);
}

/// A connection counts against the zones of both its tuples, and what was refused counts against none.
#[test]
fn the_egress_zones_limit_counts_too() {
    let script = tenants_script("", "", r#"zone("main", #{ limit: 2 });"#);
    let outcome =
        Scenario::of(&script).send_all(0.0, BLUE, [1, 2].map(syn)).send_all(0.1, GREEN, [1, 2].map(syn)).run();
    outcome.drops(&[("zone_limit", 2)]);
    let live = |zone| outcome.stat(&["zones", zone, "live"]);
    assert_eq!((live("blue"), live("green"), live("main")), (2, 0, 2), "{outcome}");
}

/// N1: a tenant that floods pays for it alone: the other's connections live and its new ones are made.
#[test]
fn a_flood_is_paid_by_its_zone() {
    let script = tenants_script("limit: 50", "limit: 50", "");
    let scenario = assured(Scenario::of(&script).connections(80), GREEN, "198.51.100.20", 2000, 20, 0.0);
    let mut scenario = scenario;
    for k in 0..500_u16 {
        scenario = scenario.send(1.0 + f64::from(k) / 1000.0, BLUE, syn(2000 + k));
    }
    let scenario = assured(scenario, GREEN, "198.51.100.20", 5000, 10, 1.6);
    let outcome = scenario.run();
    let of = |zone: u16| outcome.entries.iter().filter(|e| e.original.zone == zone).count();
    assert_eq!(of(2), 30, "{outcome}");
    assert!(outcome.entries.iter().filter(|e| e.original.zone == 2).all(|e| e.is("ASSURED")), "{outcome}");
    assert_eq!(outcome.ended_at("@2"), [0.0; 0]);
    outcome.drops(&[("zone_limit", 450)]);
    assert_eq!(outcome.zone_drops("green", "zone_limit"), 0);
}

/// N1: without limits the flood fills the table; then it is the flood's connections that go, none of the other zone.
#[test]
fn a_full_table_evicts_from_the_zone_furthest_above_its_share() {
    let script = tenants_script("", "", "");
    let mut scenario = assured(Scenario::of(&script).connections(64), GREEN, "198.51.100.20", 2000, 10, 0.0);
    scenario =
        scenario.send_all(0.5, GREEN, (3000..3005).map(|port| udp(&format!("10.0.0.5:{port}"), "192.0.2.1:53")));
    for k in 0..200_u16 {
        scenario = scenario.send(1.0 + f64::from(k) / 1000.0, BLUE, syn(2000 + k));
    }
    let outcome = assured(scenario, GREEN, "198.51.100.20", 5000, 5, 1.6).run();
    assert_eq!(outcome.ended_at("@2"), [0.0; 0], "{outcome}");
    assert_eq!(outcome.entries.iter().filter(|e| e.original.zone == 2).count(), 20, "{outcome}");
    assert!(outcome.counter("early_drop") >= 5, "{outcome}");
    assert!(outcome.entries.len() <= 64);
}

/// N2: what is kept free for a zone admits its connections however full the table is.
#[test]
fn a_reserve_always_admits() {
    let script = tenants_script("", "reserve: 8", "");
    let scenario = assured(Scenario::of(&script).connections(64), BLUE, "198.51.100.10", 2000, 56, 0.0);
    let scenario = scenario.send_all(2.0, BLUE, (3000..3014).map(syn));
    let outcome = assured(scenario, GREEN, "198.51.100.20", 5000, 8, 5.0).run();
    let of = |zone: u16| outcome.entries.iter().filter(|e| e.original.zone == zone).count();
    assert_eq!((of(1), of(2)), (56, 8), "{outcome}");
    assert_eq!(outcome.zone_drops("green", "table_full"), 0);
    assert_eq!(outcome.zone_drops("blue", "table_full"), 14);
}

/// N3, T85: a table full of assured connections admits nobody; the reason names the zone, and what lives is untouched.
#[test]
fn a_table_full_of_assured_connections_stays_as_it_is() {
    let scenario = Scenario::of(&tenants_script("", "", "")).connections(64);
    let scenario = assured(scenario, GREEN, "198.51.100.20", 2000, 64, 0.0);
    let mut scenario = scenario.send_all(1.0, BLUE, (1..=5).map(syn));
    for port in 2000..2064 {
        scenario =
            scenario.send(2.0, GREEN, tcp(&format!("10.0.0.5:{port}"), "192.0.2.1:80").flags("A").seq(101).ack(901));
    }
    let outcome = scenario.run();
    outcome.drops(&[("table_full", 5)]);
    assert_eq!(outcome.zone_drops("blue", "table_full"), 5);
    assert_eq!(outcome.count_events(EventKind::Destroy), 0);
    outcome.count_left(WAN, 64 * 3);
    assert_eq!(outcome.stat(&["connections", "refused", "table_full"]), 5);
}

/// F22: a zone's rate of new connections: what is over it is dropped; later it is admitted again.
#[test]
fn a_zone_makes_connections_no_faster_than_its_rate() {
    let outcome = Scenario::of(&tenants_script("rate: 10", "", ""))
        .send_all(0.0, BLUE, (1..=20).map(syn))
        .send_all(0.0, GREEN, (1..=20).map(syn))
        .send_all(5.0, BLUE, (101..=110).map(syn))
        .run();
    outcome.drops(&[("zone_rate", 10)]);
    assert_eq!(outcome.zone_drops("blue", "zone_rate"), 10);
    assert_eq!(outcome.entries.len(), 10 + 20 + 10);
}

/// O80: limits are per zone and per direction of counting exact: as many as the limit, whoever comes first.
#[test]
fn limits_of_many_zones_are_exact() {
    let script = vlan_zones_script("1..51", "limit: 7", "");
    let mut scenario = Scenario::of(&script).workers(3);
    for id in 1..=50 {
        let packets = (1..=10).map(|port| udp(&format!("10.1.1.1:{port}"), "10.2.2.2:53"));
        scenario = scenario.send_all(0.0, Side::vlan("lan", id), packets);
    }
    let outcome = scenario.run();
    assert_eq!(outcome.entries.len(), 50 * 7);
    outcome.drops(&[("zone_limit", 50 * 3)]);
    for id in 1..=50 {
        assert_eq!(outcome.stat(&["zones", &format!("z{id}"), "live"]), 7);
    }
}

/// A first packet that a rule drops leaves nothing behind and takes no room under a limit.
#[test]
fn what_a_rule_drops_takes_no_room() {
    let rules = r#"zone("main", #{ limit: 1 }); forward(#{ dport: 81 }, drop);"#;
    let outcome = plain(rules)
        .send_all(0.0, LAN, (1..=5).map(|port| udp(&format!("10.1.1.1:{port}"), "10.2.2.2:81")))
        .send(1.0, LAN, udp("10.1.1.1:9", "10.2.2.2:80"))
        .run();
    outcome.table(&["udp 10.1.1.1:9>10.2.2.2:80 10.2.2.2:80>10.1.1.1:9 [UNREPLIED]"]);
    outcome.drops(&[("rule", 5)]);
    assert_eq!(outcome.events.len(), 1, "{outcome}");
    let talk = Talk::PLAIN;
    let refused = talk.forth(plain(r#"forward(#{ proto: "tcp" }, reject);"#), 0.0, "S", 100, 0).run();
    refused.left(LAN, &["tcp 10.2.2.2:80 > 10.1.1.1:40000 RA"]);
    refused.table(&[]);
    refused.drops(&[("rule", 1)]);
}

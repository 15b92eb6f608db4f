//! The main example, as it stands in `configs/two-tenants.rhai`: two tenants with the same addresses send the same
//! tuples to one server at one instant.
//!
//! ```text
//!  blue  10.0.0.5 --- lan, VLAN 100 ---+
//!                                      +--- router --- wan --- 198.51.100.1 --- 192.0.2.1
//!  green 10.0.0.5 --- lan, VLAN 200 ---+
//! ```

use std::collections::{BTreeMap, BTreeSet};

use erhu_testbed::packet::read::Seen;
use erhu_testbed::packet::{Packet, ping, tcp, udp};
use erhu_testbed::scenario::{EventKind, Outcome, Scenario, Side};

const BLUE: Side = Side::vlan("lan", 100);
const GREEN: Side = Side::vlan("lan", 200);
const WAN: Side = Side::untagged("wan");

/// What both tenants send at the same instant.
fn requests(name: &str) -> [Packet; 3] {
    [
        udp("10.0.0.5:5353", "192.0.2.1:53").payload(name.as_bytes()),
        tcp("10.0.0.5:40000", "192.0.2.1:443").flags("S").seq(100).payload(name.as_bytes()),
        ping("10.0.0.5", "192.0.2.1", 77).payload(name.as_bytes()),
    ]
}

fn both_tenants() -> Scenario {
    Scenario::of_file("configs/two-tenants.rhai").send_all(0.0, BLUE, requests("blue")).send_all(
        0.0,
        GREEN,
        requests("green"),
    )
}

/// The server: it sends the name it was sent back.
fn server(request: &Seen) -> Option<Packet> {
    let answer = request.answer().payload(request.payload());
    Some(if request.ip().protocol == 6 { answer.flags("SA").seq(900).ack(101) } else { answer })
}

fn answered() -> Scenario {
    both_tenants().answered(WAN, 0.1, server)
}

#[test]
fn each_tenant_leaves_from_its_own_pool() {
    let outcome = both_tenants().run();
    for (name, pool) in [("blue", &["198.51.100.10", "198.51.100.11"][..]), ("green", &["198.51.100.20"])] {
        let of_tenant: Vec<_> = outcome.packets(WAN).into_iter().filter(|s| s.payload() == name.as_bytes()).collect();
        let protocols: Vec<_> = of_tenant.iter().map(|s| s.ip().protocol).collect();
        assert_eq!(protocols, [17, 6, 1], "{outcome}");
        let sources: BTreeSet<_> = of_tenant.iter().map(|s| s.ip().source.to_string()).collect();
        assert!(sources.len() == 1 && sources.iter().all(|s| pool.contains(&s.as_str())), "{name}: {sources:?}");
        for seen in of_tenant {
            assert_eq!(seen.ip().destination.to_string(), "192.0.2.1");
            assert_eq!(seen.ip().ttl, 63);
            assert_eq!(seen.mac_to, [2, 0, 198, 51, 100, 1]);
        }
    }
    outcome.count_left(WAN, 6);
    outcome.drops(&[]);
    outcome.accounted();
}

#[test]
fn replies_reach_the_tenant_they_are_for() {
    let outcome = answered().run();
    for (side, name) in [(BLUE, "blue"), (GREEN, "green")] {
        outcome.left(
            side,
            &[
                "udp 192.0.2.1:53 > 10.0.0.5:5353",
                "tcp 192.0.2.1:443 > 10.0.0.5:40000 SA",
                "icmp 192.0.2.1 > 10.0.0.5 echo-reply 77",
            ],
        );
        assert!(outcome.packets(side).iter().all(|s| s.payload() == name.as_bytes()), "{outcome}");
    }
    outcome.drops(&[]);
    outcome.accounted();
}

#[test]
fn the_table_shows_two_connections_per_tuple_with_zone_and_translation() {
    let outcome = answered().run();
    assert_eq!(outcome.entries.len(), 6);
    for zone in [1, 2] {
        let of_zone: Vec<_> = outcome.entries.iter().filter(|e| e.original.zone == zone).collect();
        let tuples: BTreeSet<_> = of_zone
            .iter()
            .map(|e| (e.proto.as_str(), e.original.src.to_string(), e.original.source_port()))
            .collect();
        let host = "10.0.0.5".to_owned();
        let want = [("icmp", host.clone(), 77), ("tcp", host.clone(), 40000), ("udp", host, 5353)];
        assert_eq!(tuples, want.into_iter().collect());
        for entry in of_zone {
            assert_eq!(entry.reply.zone, 0);
            assert!(entry.is_translated() && !entry.is("UNREPLIED"), "{outcome}");
            assert!(entry.reply.dst.to_string().starts_with("198.51.100."));
        }
    }
    assert_eq!(outcome.count_events(EventKind::New), 6);
    for zone in ["blue", "green"] {
        assert_eq!(outcome.stat(&["zones", zone, "live"]), 3);
    }
}

#[test]
fn bursts_make_no_difference_at_all() {
    let files = |burst| answered().burst(burst).run().files;
    let reference = files(32);
    for burst in [1, 7, 64] {
        assert!(files(burst) == reference, "bursts of {burst}");
    }
}

#[test]
fn a_run_repeated_is_the_same_byte_for_byte() {
    for workers in [1, 4] {
        assert!(answered().workers(workers).run().files == answered().workers(workers).run().files);
    }
    let other = answered().seed(2).run();
    assert_eq!(other.entries.len(), 6);
}

/// What left, with each external port replaced by the inside end it stands for.
fn up_to_ports(outcome: &Outcome) -> BTreeMap<Side, Vec<String>> {
    let mut inside = BTreeMap::new();
    for entry in &outcome.entries {
        let external = (entry.proto_number, entry.reply.dst.to_string(), entry.reply.destination_port());
        inside.insert(external, format!("{}", entry.original));
    }
    let line = |seen: &Seen| {
        let source = seen.source();
        let key = (seen.ip().protocol, source.ip().to_string(), source.port());
        let name =
            inside.get(&key).map_or_else(|| source.to_string(), |tuple| format!("{} for {tuple}", source.ip()));
        format!("{} {name} > {} {:?}", seen.ip().protocol, seen.destination(), seen.payload())
    };
    let sides = [BLUE, GREEN, WAN].into_iter();
    sides
        .map(|side| {
            let mut lines: Vec<_> = outcome.packets(side).into_iter().map(line).collect();
            lines.sort();
            (side, lines)
        })
        .collect()
}

#[test]
fn four_workers_differ_in_external_ports_at_most() {
    let reference = answered().run();
    for workers in 2..=4 {
        let outcome = answered().workers(workers).run();
        assert_eq!(up_to_ports(&outcome), up_to_ports(&reference));
        assert_eq!(outcome.stats["drops"], reference.stats["drops"]);
        assert_eq!(outcome.stats["ports"], reference.stats["ports"]);
        assert_eq!(outcome.stats["zones"], reference.stats["zones"]);
    }
}

#[test]
fn mail_of_blue_is_rejected_and_that_of_green_is_not() {
    let mail = || tcp("10.0.0.5:40000", "192.0.2.1:25").flags("S").seq(100);
    let outcome =
        Scenario::of_file("configs/two-tenants.rhai").send(0.0, BLUE, mail()).send(0.0, GREEN, mail()).run();
    outcome.left(BLUE, &["tcp 192.0.2.1:25 > 10.0.0.5:40000 RA"]);
    outcome.left(WAN, &["tcp 198.51.100.20:40000 > 192.0.2.1:25 S"]);
    outcome.drops(&[("rule", 1)]);
    assert_eq!(outcome.zone_drops("blue", "rule"), 1);
}

#[test]
fn what_comes_unasked_is_dropped() {
    let outcome = Scenario::of_file("configs/two-tenants.rhai")
        .send(0.0, WAN, tcp("192.0.2.1:443", "198.51.100.10:22").flags("S"))
        .send(0.1, WAN, udp("192.0.2.1:443", "198.51.100.20:22"))
        .send(0.2, WAN, tcp("192.0.2.1:443", "10.0.0.5:22").flags("S"))
        .run();
    outcome.left(BLUE, &[]);
    outcome.left(GREEN, &[]);
    outcome.left(WAN, &[]);
    outcome.drops(&[("no_mapping", 2), ("rule", 1)]);
}

#[test]
fn a_thousand_tenants_with_one_network_are_kept_apart() {
    let scenario = Scenario::of_file("configs/many-tenants.rhai");
    let outcome = match scenario.clone().try_run() {
        Ok(outcome) => outcome,
        Err(message) => panic!("{message}"),
    };
    assert_eq!(outcome.stats["zones"].as_object().map(|z| z.len()), Some(1001), "a thousand and main");
}

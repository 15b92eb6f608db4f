//! Marks, services that move, addresses of several outsides: what no other file has a place for.

use std::collections::BTreeSet;

use erhu_testbed::packet::{arp_request, tcp, udp};
use erhu_testbed::scenario::{EventKind, Scenario, Side};

use crate::{BLUE, GREEN, LAN, Talk, WAN, nat_script, plain, plain_script, tenants_script};

/// KS1: 128 datagrams from one socket to a virtual address with three ports behind it, spread over workers at one
/// instant: all are answered, all answers are the virtual address's; and likewise without translation.
#[test]
fn a_burst_from_one_socket_is_one_connection_and_all_of_it_is_answered() {
    let service = r#"prerouting(#{ dst: "10.1.1.64", proto: "udp", dport: 53 },
                                dnat(#{ to: "10.2.2.2", ports: "5001-5003", random: true }));"#;
    for (rules, called) in [(service, "10.1.1.64:53"), ("", "10.2.2.2:53")] {
        let burst = (0..128).map(|n| udp("10.1.1.1:4000", called).payload_len(n));
        let outcome = plain(rules)
            .workers(4)
            .send(0.0, LAN, arp_request("10.1.1.254", "10.1.1.1"))
            .send(0.0, WAN, arp_request("10.2.2.254", "10.2.2.2"))
            .send_all(0.1, LAN, burst)
            .answered(WAN, 0.01, |left| Some(left.answer()))
            .run();
        outcome.left(
            LAN,
            &vec![format!("udp {called} > 10.1.1.1:4000"); 128].iter().map(String::as_str).collect::<Vec<_>>(),
        );
        let backends: BTreeSet<_> = outcome.packets(WAN).iter().map(|s| s.destination()).collect();
        assert_eq!((backends.len(), outcome.entries.len()), (1, 1), "{outcome}");
        outcome.drops(&[]);
    }
    // From sockets of their own all ports behind the address have their share.
    let outcome = plain(service)
        .workers(4)
        .send(0.0, LAN, arp_request("10.1.1.254", "10.1.1.1"))
        .send(0.0, WAN, arp_request("10.2.2.254", "10.2.2.2"))
        .send_all(0.1, LAN, (0..128).map(|n| udp(&format!("10.1.1.1:{}", 4000 + n), "10.1.1.64:53")))
        .answered(WAN, 0.01, |left| Some(left.answer()))
        .run();
    let ports: BTreeSet<_> = outcome.packets(WAN).iter().map(|s| s.destination().port()).collect();
    assert_eq!(ports, BTreeSet::from([5001, 5002, 5003]));
    assert!(outcome.packets(LAN).iter().all(|s| s.source().to_string() == "10.1.1.64:53"), "{outcome}");
    outcome.count_left(LAN, 128);
    outcome.drops(&[]);
}

/// KS11: half a minute of new connections with a flush and a list every second: nothing is left behind, and every list
/// is of what came since the flush.
#[test]
fn a_flood_with_flushes_and_lists_leaves_nothing_behind() {
    let mut scenario = plain("").connections(8192).workers(2).send(0.0, WAN, arp_request("10.2.2.254", "10.2.2.2"));
    for second in 0..30_u16 {
        let at = f64::from(second) + 0.1;
        let flood = (0..200).map(|n| udp(&format!("10.1.1.{}:{}", n % 100 + 1, 1000 + second), "10.2.2.2:53"));
        scenario = scenario
            .send_all(at, LAN, flood)
            .command(at + 0.5, "conntrack:-L")
            .command(at + 0.6, "conntrack:-F")
            .command(at + 0.7, "conntrack:-C");
    }
    let outcome = scenario.until(31.0).run();
    for second in 0..30 {
        assert_eq!(outcome.listed(3 * second + 1).len(), 100, "second {second}\n{outcome}");
        assert_eq!(outcome.said(3 * second + 3).lines().next().map(str::trim), Some("0"), "second {second}");
    }
    outcome.table(&[]);
    assert_eq!((outcome.count_events(EventKind::New), outcome.count_events(EventKind::Destroy)), (3000, 3000));
    outcome.drops(&[]);
}

/// KS23: a host inside sends from the port of a service that the router has at the address that is masqueraded to: who
/// calls the service from where that host sent to reaches the host. A filter, no tracking, or a range of ports that
/// leaves the service's port out, each keep the service.
#[test]
fn a_hosts_port_hides_the_routers_own_unless_a_rule_prevents_it() {
    let script = |rules: &str, masquerade: &str| {
        format!(
            r#"
            zone("inside", #{{ id: 1 }});
            interface("lan", #{{ port: "lan", zone: "inside", address: ["10.0.0.1/24"] }});
            interface("wan", #{{ port: "wan", address: ["198.51.100.2/24"] }});
            route("inside", "0.0.0.0/0", #{{ zone: "main" }});
            route("main", "0.0.0.0/0", #{{ via: "198.51.100.1" }});
            input(#{{ proto: "udp", dport: 1405 }}, [count("router"), accept]);
            {rules}
            postrouting(#{{ egress: "wan" }}, {masquerade});
            "#
        )
    };
    let play = |rules, masquerade| {
        Scenario::of(&script(rules, masquerade))
            .send(0.0, LAN, udp("10.0.0.5:1405", "192.0.2.1:41404"))
            .send(1.0, WAN, udp("192.0.2.1:41404", "198.51.100.2:1405"))
            .run()
    };
    let hidden = play("", "masquerade");
    hidden.left(LAN, &["udp 192.0.2.1:41404 > 10.0.0.5:1405"]);
    assert_eq!(hidden.stat(&["named", "router", "packets"]), 0);
    let ways = [
        (r#"forward(#{ ingress: "lan", proto: "udp", sport: 1405 }, drop);"#, "masquerade"),
        (r#"raw(#{ ingress: "lan", proto: "udp", sport: 1405 }, notrack);"#, "masquerade"),
        ("", r#"masquerade(#{ ports: "32768-65535" })"#),
    ];
    for (rules, masquerade) in ways {
        let outcome = play(rules, masquerade);
        outcome.left(LAN, &[]);
        assert_eq!(outcome.stat(&["named", "router", "packets"]), 1, "{rules} {masquerade}\n{outcome}");
    }
}

/// N11: a backend is taken away under a stream of 64,000 packets a second: the next packet goes to the one that took its
/// place, and none is lost.
#[test]
fn a_stream_moves_to_the_new_backend_with_its_next_packet() {
    let to = |backend: &str| {
        plain_script(&format!(r#"prerouting(#{{ dst: "10.1.1.64" }}, dnat(#{{ to: "{backend}" }}));"#))
    };
    let packet = || udp("10.1.1.1:4000", "10.1.1.64:53");
    let (count, gap) = (640, 1.0 / 64_000.0);
    let outcome = Scenario::of(&to("10.2.2.2"))
        .send(0.0, WAN, arp_request("10.2.2.254", "10.2.2.2"))
        .send(0.0, WAN, arp_request("10.2.2.254", "10.2.2.3"))
        .send_every(0.1, gap, LAN, (0..count).map(|_| packet()))
        .apply(0.1 + 320.0 * gap - 1e-6, &to("10.2.2.3"))
        .run();
    let ends: Vec<_> = outcome.packets(WAN).iter().map(|s| s.destination().ip().octets()[3]).collect();
    assert_eq!(ends, [vec![2; 320], vec![3; 320]].concat(), "{outcome}");
    assert_eq!(outcome.counter("ended_by_rules"), 1);
    outcome.table(&["udp 10.1.1.1:4000>10.1.1.64:53 10.2.2.3:53>10.1.1.1:4000 [UNREPLIED]"]);
    outcome.drops(&[]);
}

/// O8: by a connection's mark, all of it or the bits of a mask, exactly the matching connections are deleted.
#[test]
fn connections_are_deleted_by_their_mark() {
    let rules = r#"
        forward(#{ dport: 1 }, [connmark(0xaa), accept]);
        forward(#{ dport: 2 }, [connmark(0x55), accept]);
        forward(#{ dport: 3 }, [connmark(0x2), accept]);
    "#;
    let opened = plain(rules).send_all(0.0, LAN, (1..=4).map(|port| udp("10.1.1.1:9", &format!("10.2.2.2:{port}"))));
    for (filter, gone) in [("0xaa", vec![1]), ("0x2/0x2", vec![1, 3]), ("0x1/0x3", vec![2]), ("7", vec![])] {
        let outcome = opened.clone().command(1.0, &format!("conntrack:-D -m {filter}")).run();
        let mut left: Vec<u16> = outcome.entries.iter().map(|e| e.original.destination_port()).collect();
        left.sort_unstable();
        let want: Vec<u16> = (1..=4).filter(|port| !gone.contains(port)).collect();
        assert_eq!(left, want, "-m {filter}\n{outcome}");
    }
}

/// O23: bits of a mark are set in turn, and seen together.
#[test]
fn a_mark_is_compared_under_a_mask() {
    // The language sets whole marks; what OVS writes under masks is written out here.
    let rules = r#"
        raw(#{}, mark(0x5));
        prerouting(#{ mark: "0x4/0x6" }, mark(0x3));
        forward(#{ mark: 3 }, [connmark(3), accept]);
        policy("forward", drop);
    "#;
    let outcome = plain(rules).send(0.0, LAN, udp("10.1.1.1:9", "10.2.2.2:1")).run();
    outcome.count_left(WAN, 1);
    assert!(outcome.lines[0].contains(" mark=3 "), "{outcome}");
}

/// O27: the same tuple in two zones has a mark of its own in each, which one zone's packets do not change for the other.
#[test]
fn connections_of_two_zones_keep_their_marks_apart() {
    let rules = r#"
        forward(#{ zone: "blue", state: "new" }, [connmark(0x1f), accept]);
        forward(#{ zone: "green", state: "new" }, [connmark(0x2e), accept]);
        forward(#{ zone: "green", state: "established" }, [connmark(0x3d), accept]);
    "#;
    let query = || udp("10.0.0.5:5353", "192.0.2.1:53");
    let opened = Scenario::of(&tenants_script("", "", rules)).send(0.0, BLUE, query()).send(0.0, GREEN, query());
    let outcome = opened
        .command(0.05, "conntrack:-L -m 0x2e")
        .answered(WAN, 0.1, |left| (left.source().ip().octets()[3] == 20).then(|| left.answer()))
        .send(1.0, GREEN, query())
        .send(1.0, BLUE, query())
        .command(2.0, "conntrack:-D -m 0x3d")
        .run();
    assert_eq!(outcome.listed(1).len(), 1, "{outcome}");
    outcome.table(&["udp 10.0.0.5:5353>192.0.2.1:53@1 192.0.2.1:53>198.51.100.10:5353 [UNREPLIED] mark=31"]);
}

/// O91: a rule that the answer meets marks the connection, which is source-translated.
#[test]
fn an_answer_marks_its_translated_connection() {
    let rules = r#"forward(#{ ingress: "wan", state: "established" }, [connmark(0xac), accept]);"#;
    let outcome = Scenario::of(&nat_script(r#"addresses: "198.51.100.10""#, rules))
        .send(0.0, LAN, udp("10.0.0.5:5353", "192.0.2.1:53"))
        .command(0.05, "conntrack:-L -m 0xac")
        .answered(WAN, 0.1, |left| Some(left.answer()))
        .run();
    assert!(outcome.listed(1).is_empty(), "{outcome}");
    outcome.table(&["udp 10.0.0.5:5353>192.0.2.1:53@1 192.0.2.1:53>198.51.100.10:5353 mark=172"]);
}

/// F19: what is published passes the filter by a mark of the rule that publishes it, and nothing else does.
#[test]
fn what_a_rule_publishes_passes_the_filter_and_nothing_else() {
    let rules = r#"
        prerouting(#{ ingress: "wan", dst: "198.51.100.2", proto: "tcp", dport: 80 },
                   [mark(1), dnat(#{ to: "10.0.0.5:8080", zone: "inside" })]);
        forward(#{ mark: 1, state: "new" }, accept);
    "#;
    let outcome = Scenario::of(&nat_script(r#"addresses: "198.51.100.10""#, rules))
        .send(0.0, WAN, tcp("203.0.113.7:40000", "198.51.100.2:80").flags("S").seq(100))
        .send(0.1, WAN, tcp("203.0.113.7:40001", "10.0.0.5:8080").flags("S").seq(100))
        .send(0.2, LAN, tcp("10.0.0.5:8080", "203.0.113.7:40000").flags("SA").seq(900).ack(101))
        .send(0.3, LAN, tcp("10.0.0.5:40002", "203.0.113.7:80").flags("S").seq(100))
        .run();
    outcome.left(LAN, &["tcp 203.0.113.7:40000 > 10.0.0.5:8080 S"]);
    outcome.left(WAN, &["tcp 198.51.100.2:80 > 203.0.113.7:40000 SA", "tcp 198.51.100.10:40002 > 203.0.113.7:80 S"]);
    outcome.drops(&[("rule", 1)]);
}

/// Three tenants, two outsides with a pool each.
const OUTSIDES: &str = r#"
    zone("one", #{ id: 1 });
    zone("two", #{ id: 2 });
    zone("three", #{ id: 3 });
    zone("left", #{ id: 11 });
    zone("right", #{ id: 12 });
    interface("lan.1", #{ port: "lan", vlan: 100, zone: "one",   address: ["10.0.0.1/24"] });
    interface("lan.2", #{ port: "lan", vlan: 200, zone: "two",   address: ["10.0.0.1/24"] });
    interface("lan.3", #{ port: "lan", vlan: 300, zone: "three", address: ["10.0.0.1/24"] });
    interface("wan.l", #{ port: "wan", vlan: 11, zone: "left",   address: ["198.51.100.2/24"] });
    interface("wan.r", #{ port: "wan", vlan: 12, zone: "right",  address: ["198.51.100.2/24"] });
    pool("left",  #{ addresses: "198.51.100.10", zone: "left" });
    pool("right", #{ addresses: "198.51.100.10", zone: "right" });
    route("one",   "0.0.0.0/0", #{ zone: "left" });
    route("two",   "0.0.0.0/0", #{ zone: "right" });
    route("three", "0.0.0.0/0", #{ zone: "left" });
    for side in ["left", "right"] { route(side, "0.0.0.0/0", #{ via: "198.51.100.1" }); }
    postrouting(#{ zone: "one", egress_zone: "left"  }, snat(#{ pool: "left" }));
    postrouting(#{ zone: "two", egress_zone: "right" }, snat(#{ pool: "right" }));
    forward(#{ state: "established" }, accept);
    forward(#{ zone: "three" }, drop);
    forward(#{ ingress: ["wan.l", "wan.r"] }, drop);
"#;

/// T19: one address belongs to the pools of two outsides: each tenant uses its own outside's, answers are found only
/// where they belong, and a tenant without a pool gets nowhere.
#[test]
fn each_outside_has_its_own_pool_though_the_addresses_are_the_same() {
    const LEFT: Side = Side::vlan("wan", 11);
    const RIGHT: Side = Side::vlan("wan", 12);
    let packet = || udp("10.0.0.5:5000", "192.0.2.1:53");
    let outcome = Scenario::of(OUTSIDES)
        .send(0.0, BLUE, packet())
        .send(0.1, GREEN, packet())
        .send(0.2, Side::vlan("lan", 300), packet())
        .send(1.0, LEFT, udp("192.0.2.1:53", "198.51.100.10:5000").payload(b"left"))
        .send(1.1, RIGHT, udp("192.0.2.1:53", "198.51.100.10:5000").payload(b"right"))
        .run();
    for (side, home, word) in [(LEFT, BLUE, "left"), (RIGHT, GREEN, "right")] {
        outcome.left(side, &["udp 198.51.100.10:5000 > 192.0.2.1:53"]);
        outcome.left(home, &["udp 192.0.2.1:53 > 10.0.0.5:5000"]);
        assert_eq!(outcome.only(home).payload(), word.as_bytes(), "{outcome}");
    }
    outcome.table(&[
        "udp 10.0.0.5:5000>192.0.2.1:53@1 192.0.2.1:53>198.51.100.10:5000@11",
        "udp 10.0.0.5:5000>192.0.2.1:53@2 192.0.2.1:53>198.51.100.10:5000@12",
    ]);
    outcome.drops(&[("rule", 1)]);
}

/// T49: a virtual address has its servers in one zone or the other, and its clients likewise: every client reaches the
/// server of the zone that the rule names, though both zones have the same addresses, and answers come from the virtual
/// address.
#[test]
fn a_virtual_address_leads_to_the_zone_that_its_rule_names() {
    let script = |backend: &str| {
        format!(
            r#"
            zone("one", #{{ id: 1 }});
            interface("lan.1", #{{ port: "lan", vlan: 100, zone: "one", address: ["10.0.0.1/24"] }});
            interface("lan.0", #{{ port: "lan", vlan: 200, address: ["10.9.0.1/24"] }});
            interface("wan.1", #{{ port: "wan", vlan: 11, zone: "one", address: ["10.2.2.254/24"] }});
            interface("wan.0", #{{ port: "wan", vlan: 12, address: ["10.2.2.254/24"] }});
            route("one", "10.9.0.0/24", #{{ zone: "main" }});
            route("main", "10.0.0.0/24", #{{ zone: "one" }});
            prerouting(#{{ dst: "203.0.113.80", proto: "udp", dport: 80 }},
                       dnat(#{{ to: "10.2.2.2:8080", zone: "{backend}" }}));
            "#
        )
    };
    let sides = [("one", Side::vlan("wan", 11)), ("main", Side::vlan("wan", 12))];
    let clients = [(BLUE, "10.0.0.5:4000"), (GREEN, "10.9.0.5:4000")];
    for (zone, server) in sides {
        let (_, other) = sides.into_iter().find(|(name, _)| *name != zone).unwrap();
        for (side, client) in clients {
            let outcome = Scenario::of(&script(zone))
                .send(0.0, side, udp(client, "203.0.113.80:80"))
                .answered(server, 0.1, |left| Some(left.answer()))
                .run();
            outcome.left(server, &[&format!("udp {client} > 10.2.2.2:8080")]);
            outcome.left(other, &[]);
            outcome.left(side, &[&format!("udp 203.0.113.80:80 > {client}")]);
            outcome.drops(&[]);
        }
    }
}

/// T124: a pool and a stateful firewall on one interface: the firewall sees what the host sent, before translation, and
/// what comes back after it is turned; of two rules that translate the first one does, alone.
#[test]
fn the_firewall_sees_packets_untranslated_and_one_rule_translates() {
    let rules = r#"
        forward(#{ src: "10.0.0.0/24", egress: "wan", dport: 53 }, [count("out"), accept]);
        forward(#{ ingress: "wan", dst: "10.0.0.5", state: "established" }, [count("back"), accept]);
        forward(#{ src: "198.51.100.0/24" }, [count("translated"), drop]);
        forward(#{ egress: "wan", state: "new" }, drop);
        postrouting(#{ egress: "wan" }, snat(#{ pool: "public" }));
        postrouting(#{ egress: "wan" }, snat(#{ to: "198.51.100.99" }));
    "#;
    let outcome = Scenario::of(&nat_script(r#"addresses: "198.51.100.10""#, rules))
        .send(0.0, LAN, udp("10.0.0.5:5000", "192.0.2.1:53"))
        .send(0.1, LAN, udp("10.0.0.5:5001", "192.0.2.1:54"))
        .answered(WAN, 0.5, |left| Some(left.answer()))
        .run();
    outcome.left(WAN, &["udp 198.51.100.10:5000 > 192.0.2.1:53"]);
    outcome.left(LAN, &["udp 192.0.2.1:53 > 10.0.0.5:5000"]);
    for (name, count) in [("out", 1), ("back", 1), ("translated", 0)] {
        assert_eq!(outcome.stat(&["named", name, "packets"]), count, "{name}\n{outcome}");
    }
    outcome.drops(&[("rule", 1)]);
}

/// O31: an address that floats is changed by a rule, and its connection goes on to its end with both sides' closing.
#[test]
fn a_floating_address_serves_a_connection_to_its_end() {
    let rules = r#"prerouting(#{ dst: "10.1.1.64" }, dnat(#{ to: "10.2.2.2" }));"#;
    let talk = Talk { server: "10.1.1.64:80", ..Talk::PLAIN };
    let real = |flags: &str, seq, ack| tcp("10.2.2.2:80", "10.1.1.1:40000").flags(flags).seq(seq).ack(ack);
    let scenario = talk.forth(plain(rules), 0.0, "S", 100, 0).send(0.1, WAN, real("SA", 900, 101));
    let scenario = talk.forth(scenario, 0.2, "A", 101, 901);
    let scenario = talk.forth(scenario, 1.0, "FA", 101, 901).send(1.1, WAN, real("FA", 901, 102));
    let outcome = talk.forth(scenario, 1.2, "A", 102, 902).run();
    outcome.table(&["tcp TIME_WAIT 10.1.1.1:40000>10.1.1.64:80 10.2.2.2:80>10.1.1.1:40000 [ASSURED]"]);
    assert!(outcome.packets(LAN).iter().all(|s| s.source().to_string() == "10.1.1.64:80"), "{outcome}");
    outcome.count_left(LAN, 2);
    outcome.drops(&[]);
}

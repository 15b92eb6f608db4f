//! Coming in by a mapping, and hosts inside that call each other by their outside addresses.

use erhu_testbed::packet::{icmp_error, ping, tcp, udp};
use erhu_testbed::scenario::{EventKind, Scenario, Side};

use crate::{BLUE, GREEN, LAN, WAN, nat, nat_script, nat_with, tenants_script};

/// A tenant behind a pool with these keys, whose hosts may be called from outside.
fn open_with(pool: &str) -> Scenario {
    Scenario::of(&open_script(pool))
}

fn open_script(pool: &str) -> String {
    nat_script(pool, r#"forward(#{ ingress: "wan", dst: "10.0.0.0/24" }, accept);"#)
}

const OPEN: &str = r#"addresses: "198.51.100.10", filtering: "endpoint_independent""#;

/// T113: after a packet to one server, others reach the host by its mapping, from any address and port; the next port
/// is nobody's. Forward rules see new connections with the inside destination.
#[test]
fn a_mapping_is_open_to_all_where_the_pool_says_so() {
    let outcome = open_with(OPEN)
        .send(0.0, LAN, udp("10.0.0.5:5000", "192.0.2.1:53"))
        .send(0.1, WAN, udp("192.0.2.2:9", "198.51.100.10:5000"))
        .send(0.2, WAN, udp("192.0.2.1:54", "198.51.100.10:5000"))
        .send(0.3, WAN, udp("192.0.2.2:9", "198.51.100.10:5001"))
        .send(0.4, LAN, udp("10.0.0.5:5000", "192.0.2.2:9"))
        .run();
    outcome.left(LAN, &["udp 192.0.2.2:9 > 10.0.0.5:5000", "udp 192.0.2.1:54 > 10.0.0.5:5000"]);
    outcome.left(WAN, &["udp 198.51.100.10:5000 > 192.0.2.1:53", "udp 198.51.100.10:5000 > 192.0.2.2:9"]);
    outcome.table(&[
        "udp 10.0.0.5:5000>192.0.2.1:53@1 192.0.2.1:53>198.51.100.10:5000 [UNREPLIED]",
        "udp 192.0.2.2:9>198.51.100.10:5000 10.0.0.5:5000>192.0.2.2:9@1",
        "udp 192.0.2.1:54>198.51.100.10:5000 10.0.0.5:5000>192.0.2.1:54@1 [UNREPLIED]",
    ]);
    outcome.drops(&[("no_mapping", 1)]);
    outcome.accounted();
}

/// T113: filtering by address admits other ports of an address that the host has called, and no other address; the
/// default admits nobody.
#[test]
fn filtering_decides_who_comes_in_by_a_mapping() {
    let run = |filtering: &str| {
        open_with(&format!(r#"addresses: "198.51.100.10", filtering: "{filtering}""#))
            .send(0.0, LAN, tcp("10.0.0.5:5000", "192.0.2.1:53").flags("S"))
            .send(0.1, WAN, tcp("192.0.2.2:53", "198.51.100.10:5000").flags("S"))
            .send(0.2, WAN, tcp("192.0.2.1:54", "198.51.100.10:5000").flags("S"))
            .run()
    };
    let by_address = run("address_dependent");
    by_address.left(LAN, &["tcp 192.0.2.1:54 > 10.0.0.5:5000 S"]);
    by_address.drops(&[("filtered", 1)]);
    let by_port = run("address_port_dependent");
    by_port.left(LAN, &[]);
    by_port.drops(&[("filtered", 2)]);
}

/// The customary firewall drops by rule what filtering admits, and nothing stays behind.
#[test]
fn forward_rules_decide_on_what_comes_by_a_mapping() {
    let outcome = nat_with(OPEN)
        .send(0.0, LAN, udp("10.0.0.5:5000", "192.0.2.1:53"))
        .send(0.1, WAN, udp("192.0.2.2:9", "198.51.100.10:5000"))
        .run();
    outcome.left(LAN, &[]);
    outcome.drops(&[("rule", 1)]);
    assert_eq!(outcome.entries.len(), 1);
}

/// A connection from outside holds the mapping when the one that made it is gone; after the last, the port rests for
/// two minutes and then it is nobody's.
#[test]
fn a_mapping_lives_as_long_as_any_connection_by_it() {
    let outcome = open_with(OPEN)
        .send(0.0, LAN, udp("10.0.0.5:5000", "192.0.2.1:53"))
        .send(20.0, WAN, udp("192.0.2.2:9", "198.51.100.10:5000"))
        .send(40.0, WAN, udp("192.0.2.3:9", "198.51.100.10:5000"))
        .send(80.0, WAN, udp("192.0.2.4:9", "198.51.100.10:5000"))
        // The port rests: another host does not get it.
        .send(90.0, LAN, udp("10.0.0.6:5000", "192.0.2.1:53"))
        .send(320.0, LAN, udp("10.0.0.7:5000", "192.0.2.1:53"))
        .run();
    outcome.left(LAN, &["udp 192.0.2.2:9 > 10.0.0.5:5000", "udp 192.0.2.3:9 > 10.0.0.5:5000"]);
    let ports: Vec<_> = outcome.packets(WAN).iter().map(|s| s.source().port()).collect();
    assert_eq!((ports[0], ports[1] == 5000, ports[2]), (5000, false, 5000), "{outcome}");
    outcome.drops(&[("no_mapping", 1)]);
}

/// Errors about connections that came in by a mapping are translated both ways.
#[test]
fn errors_about_connections_by_a_mapping_are_translated() {
    let outcome = open_with(OPEN)
        .send(0.0, LAN, udp("10.0.0.5:5000", "192.0.2.1:53"))
        .send(0.1, WAN, udp("192.0.2.2:9", "198.51.100.10:5000"))
        .answered(LAN, 0.1, |left| Some(icmp_error("10.0.0.5", "192.0.2.2", 3, 3).about(left.l3())))
        .run();
    outcome.left(
        WAN,
        &[
            "udp 198.51.100.10:5000 > 192.0.2.1:53",
            "icmp 198.51.100.10 > 192.0.2.2 3/3 about udp 192.0.2.2:9 > 198.51.100.10:5000",
        ],
    );
    outcome.drops(&[]);
}

/// N13: one host calls another by its mapping: each sees the other's outside address and port, whatever the pool's
/// filtering, and neither's packets leave.
#[test]
fn hosts_call_each_other_by_their_mappings() {
    let outcome = nat()
        .send(0.0, LAN, udp("10.0.0.5:5000", "192.0.2.1:53"))
        .send(0.1, LAN, udp("10.0.0.6:6000", "192.0.2.1:53"))
        .send(0.2, LAN, udp("10.0.0.5:5000", "198.51.100.10:6000"))
        .send(0.3, LAN, udp("10.0.0.6:6000", "198.51.100.10:5000"))
        .run();
    outcome.left(LAN, &["udp 198.51.100.10:5000 > 10.0.0.6:6000", "udp 198.51.100.10:6000 > 10.0.0.5:5000"]);
    outcome.count_left(WAN, 2);
    outcome.table(&[
        "udp 10.0.0.5:5000>192.0.2.1:53@1 192.0.2.1:53>198.51.100.10:5000 [UNREPLIED]",
        "udp 10.0.0.6:6000>192.0.2.1:53@1 192.0.2.1:53>198.51.100.10:6000 [UNREPLIED]",
        "udp 10.0.0.5:5000>198.51.100.10:6000@1 10.0.0.6:6000>198.51.100.10:5000@1",
    ]);
    outcome.drops(&[]);
}

/// N13: a caller without a mapping gets one, which it keeps for outside; and mappings end with their last connection,
/// hairpins included.
#[test]
fn a_hairpin_makes_and_holds_mappings() {
    let outcome = nat()
        .send(0.0, LAN, udp("10.0.0.6:6000", "192.0.2.1:53"))
        .send(0.1, LAN, udp("10.0.0.5:5000", "198.51.100.10:6000"))
        .send(20.0, LAN, udp("10.0.0.5:5000", "198.51.100.10:6000"))
        // The mapping of the host called is held by the hairpin alone now.
        .send(40.0, LAN, udp("10.0.0.7:7000", "198.51.100.10:6000"))
        .send(41.0, LAN, udp("10.0.0.5:5000", "192.0.2.9:53"))
        .send(200.0, LAN, udp("10.0.0.7:7000", "198.51.100.10:6000"))
        .run();
    outcome.left(
        LAN,
        &[
            "udp 198.51.100.10:5000 > 10.0.0.6:6000",
            "udp 198.51.100.10:5000 > 10.0.0.6:6000",
            "udp 198.51.100.10:7000 > 10.0.0.6:6000",
        ],
    );
    outcome.left(WAN, &["udp 198.51.100.10:6000 > 192.0.2.1:53", "udp 198.51.100.10:5000 > 192.0.2.9:53"]);
    outcome.drops(&[("no_mapping", 1)]);
    outcome.table(&[]);
}

/// T176: a host that calls its own outside address and port is told what the filter tells others; `hairpin: false` refuses all.
#[test]
fn a_call_to_oneself_follows_the_filter() {
    let run = |pool: &str| {
        let pool = format!(r#"addresses: "198.51.100.10", {pool}"#);
        nat_with(&pool)
            .send(0.0, LAN, udp("10.0.0.5:5000", "192.0.2.1:53"))
            .send(0.1, LAN, udp("10.0.0.5:5002", "198.51.100.10:5000"))
            .send(0.2, LAN, udp("10.0.0.6:6000", "198.51.100.10:5000"))
            .run()
    };
    let open = run(r#"filtering: "endpoint_independent""#);
    open.left(LAN, &["udp 198.51.100.10:5002 > 10.0.0.5:5000", "udp 198.51.100.10:6000 > 10.0.0.5:5000"]);
    let closed = run("");
    closed.left(LAN, &["udp 198.51.100.10:6000 > 10.0.0.5:5000"]);
    closed.drops(&[("filtered", 1)]);
    let none = run("hairpin: false");
    none.left(LAN, &[]);
    none.drops(&[("filtered", 2)]);
}

/// T53: between two one-to-one addresses: ports and ids are kept, addresses swapped.
#[test]
fn hosts_call_each_other_by_their_one_to_one_addresses() {
    let rules = r#"
        for n in 5..7 {
            prerouting(#{ ingress: "wan", dst: `198.51.100.${30 + n}` }, dnat(#{ to: `10.0.0.${n}`, zone: "inside" }));
            postrouting(#{ src: `10.0.0.${n}`, egress: "wan" }, netmap(`198.51.100.${30 + n}`));
        }
    "#;
    let outcome = Scenario::of(&nat_script(r#"addresses: "198.51.100.10""#, rules))
        .send(0.0, LAN, tcp("10.0.0.5:5000", "198.51.100.36:80").flags("S").seq(1))
        .send(0.1, LAN, udp("10.0.0.5:5000", "198.51.100.36:80"))
        .send(0.2, LAN, ping("10.0.0.5", "198.51.100.36", 77))
        .answered(LAN, 1.0, |left| {
            Some(if left.ip().protocol == 6 { left.answer().flags("SA").seq(9).ack(2) } else { left.answer() })
        })
        .run();
    outcome.left(
        LAN,
        &[
            "tcp 198.51.100.35:5000 > 10.0.0.6:80 S",
            "udp 198.51.100.35:5000 > 10.0.0.6:80",
            "icmp 198.51.100.35 > 10.0.0.6 echo-request 77",
            "tcp 198.51.100.36:80 > 10.0.0.5:5000 SA",
            "udp 198.51.100.36:80 > 10.0.0.5:5000",
            "icmp 198.51.100.36 > 10.0.0.5 echo-reply 77",
        ],
    );
    outcome.left(WAN, &[]);
    outcome.drops(&[]);
}

/// A published service is reached from inside by its outside address, though its rule is for what comes by `wan`; the
/// server answers through the router, for it sees the caller's outside address.
#[test]
fn a_published_service_is_reached_from_inside() {
    let rules = r#"
        prerouting(#{ ingress: "wan", dst: ["198.51.100.2", "198.51.100.10"], proto: "tcp", dport: 443 },
                   dnat(#{ to: "10.0.0.9:8443", zone: "inside" }));
    "#;
    for address in ["198.51.100.2", "198.51.100.10"] {
        let outcome = Scenario::of(&nat_script(r#"addresses: "198.51.100.10""#, rules))
            .send(0.0, LAN, tcp("10.0.0.5:5000", &format!("{address}:443")).flags("S").seq(1))
            .answered(LAN, 0.1, |left| Some(left.answer().flags("SA").seq(9).ack(2)))
            .send(1.0, LAN, tcp("10.0.0.5:5000", &format!("{address}:80")).flags("S").seq(1))
            .run();
        assert_eq!(
            outcome.packets(LAN).iter().take(2).map(|s| s.to_string()).collect::<Vec<_>>(),
            ["tcp 198.51.100.10:5000 > 10.0.0.9:8443 S".to_owned(), format!("tcp {address}:443 > 10.0.0.5:5000 SA")],
            "{outcome}"
        );
        outcome.left(WAN, &[]);
        // The next port is nobody's: the router's own address says so, the pool's does not.
        let reason = if address == "198.51.100.2" { "unsupported" } else { "no_mapping" };
        outcome.drops(&[(reason, 1)]);
    }
}

/// Whoever calls other addresses at a published port goes where the address says, also where the rule names none.
#[test]
fn a_rule_without_an_address_owns_only_the_routers_addresses() {
    let rules = r#"
        prerouting(#{ ingress: "wan", proto: "tcp", dport: 443 }, dnat(#{ to: "10.0.0.9", zone: "inside" }));
    "#;
    let outcome = Scenario::of(&nat_script(r#"addresses: "198.51.100.10""#, rules))
        .send(0.0, LAN, tcp("10.0.0.5:5000", "192.0.2.1:443").flags("S"))
        .send(0.1, LAN, tcp("10.0.0.5:5001", "198.51.100.10:443").flags("S"))
        .run();
    outcome.left(WAN, &["tcp 198.51.100.10:5000 > 192.0.2.1:443 S"]);
    outcome.left(LAN, &["tcp 198.51.100.10:5001 > 10.0.0.9:443 S"]);
    outcome.drops(&[]);
}

/// A hairpin across tenants: each has its own zone, both ends are translated, the answer finds its way, and a rule can
/// forbid it. Equal inside addresses do not matter.
#[test]
fn tenants_call_each_other_by_their_outside_addresses() {
    let scenario = |rules: &str| {
        Scenario::of(&tenants_script("", "", rules))
            .send(0.0, GREEN, udp("10.0.0.5:5000", "192.0.2.1:53"))
            .send(0.1, BLUE, udp("10.0.0.5:5000", "198.51.100.20:5000"))
            .send(0.2, GREEN, udp("10.0.0.5:5000", "198.51.100.10:5000"))
    };
    let outcome = scenario("").run();
    outcome.left(GREEN, &["udp 198.51.100.10:5000 > 10.0.0.5:5000"]);
    outcome.left(BLUE, &["udp 198.51.100.20:5000 > 10.0.0.5:5000"]);
    outcome.table(&[
        "udp 10.0.0.5:5000>192.0.2.1:53@2 192.0.2.1:53>198.51.100.20:5000 [UNREPLIED]",
        "udp 10.0.0.5:5000>198.51.100.20:5000@1 10.0.0.5:5000>198.51.100.10:5000@2",
    ]);
    outcome.drops(&[]);
    let apart = scenario(r#"forward(#{ zone: "blue", egress_zone: "green", state: "new" }, drop);"#).run();
    apart.left(GREEN, &[]);
    assert_eq!(apart.dropped().get("rule"), Some(&1));
}

/// T59: two outsides: the caller's address is of the one that the address it calls is on.
#[test]
fn a_hairpin_is_seen_from_the_outside_that_it_calls() {
    let script = r#"
        zone("inside", #{ id: 1 });
        interface("lan", #{ port: "lan", zone: "inside", address: ["10.0.0.1/24"] });
        interface("wan.1", #{ port: "wan", vlan: 1, address: ["198.51.100.2/24"] });
        interface("wan.2", #{ port: "wan", vlan: 2, address: ["203.0.113.2/24"] });
        pool("first", #{ addresses: "198.51.100.10" });
        pool("second", #{ addresses: "203.0.113.10" });
        route("inside", "0.0.0.0/0", #{ zone: "main" });
        route("main", "0.0.0.0/0", #{ via: "198.51.100.1" });
        route("main", "192.0.2.0/24", #{ via: "203.0.113.1" });
        postrouting(#{ egress: "wan.1" }, snat(#{ pool: "first" }));
        postrouting(#{ egress: "wan.2" }, snat(#{ pool: "second" }));
    "#;
    let outcome = Scenario::of(script)
        .send(0.0, LAN, udp("10.0.0.6:6000", "192.0.2.1:53"))
        .send(0.1, LAN, udp("10.0.0.5:5000", "8.8.8.8:53"))
        .send(0.2, LAN, udp("10.0.0.5:5000", "203.0.113.10:6000"))
        .run();
    outcome.left(Side::vlan("wan", 2), &["udp 203.0.113.10:6000 > 192.0.2.1:53"]);
    outcome.left(Side::vlan("wan", 1), &["udp 198.51.100.10:5000 > 8.8.8.8:53"]);
    outcome.left(LAN, &["udp 203.0.113.10:5000 > 10.0.0.6:6000"]);
    outcome.drops(&[]);
}

/// RFC 5508 REQ-7: an error about a hairpin reaches the caller as an error about what it sent.
#[test]
fn an_error_about_a_hairpin_reaches_the_caller() {
    let outcome = nat()
        .send(0.0, LAN, udp("10.0.0.6:6000", "192.0.2.1:53"))
        .send(0.1, LAN, udp("10.0.0.5:5000", "198.51.100.10:6000"))
        .answered(LAN, 0.1, |left| Some(icmp_error("10.0.0.6", "198.51.100.10", 3, 3).about(left.l3())))
        .run();
    outcome.left(
        LAN,
        &[
            "udp 198.51.100.10:5000 > 10.0.0.6:6000",
            "icmp 198.51.100.10 > 10.0.0.5 3/3 about udp 10.0.0.5:5000 > 198.51.100.10:6000",
        ],
    );
    outcome.drops(&[]);
}

/// What nobody inside would be translated for is no hairpin: a neighbour in the same zone is filtered like a stranger.
#[test]
fn a_sender_that_is_not_translated_is_filtered_like_a_stranger() {
    let script = |filtering: &str| {
        let pool = format!(r#"addresses: "198.51.100.10", filtering: "{filtering}""#);
        let dmz = r#"interface("dmz", #{ port: "wan", vlan: 9, address: ["192.0.2.254/24"] });"#;
        open_script(&pool).replacen("pool(", &format!("{dmz} pool("), 1)
    };
    let run = |filtering: &str| {
        Scenario::of(&script(filtering))
            .send(0.0, LAN, udp("10.0.0.5:5000", "203.0.113.1:53"))
            .send(0.1, Side::vlan("wan", 9), udp("192.0.2.7:7", "198.51.100.10:5000"))
            .run()
    };
    run("address_port_dependent").drops(&[("filtered", 1)]);
    run("endpoint_independent").left(LAN, &["udp 192.0.2.7:7 > 10.0.0.5:5000"]);
}

/// A reload keeps what came in by a mapping while the pool still admits it, and ends it when not; a hairpin likewise.
#[test]
fn a_reload_judges_what_came_by_a_mapping() {
    let closed = r#"addresses: "198.51.100.10", hairpin: false"#;
    let inbound = || udp("192.0.2.2:9", "198.51.100.10:5000");
    let hairpin = || udp("10.0.0.6:6000", "198.51.100.10:5000");
    let outcome = open_with(OPEN)
        .send(0.0, LAN, udp("10.0.0.5:5000", "192.0.2.1:53"))
        .send(0.1, WAN, inbound())
        .send(0.1, LAN, hairpin())
        .apply(1.0, &format!("{} forward(#{{ dport: 99 }}, drop);", open_script(OPEN)))
        .send(2.0, WAN, inbound())
        .send(2.0, LAN, hairpin())
        .apply(3.0, &open_script(closed))
        .send(4.0, WAN, inbound())
        .send(4.0, LAN, hairpin())
        .run();
    outcome.count_left(LAN, 4);
    assert_eq!(outcome.story("192.0.2.2:9>198.51.100.10:5000"), [EventKind::New, EventKind::Destroy]);
    assert_eq!(outcome.story("10.0.0.6:6000>198.51.100.10:5000"), [EventKind::New, EventKind::Destroy]);
    outcome.drops(&[("filtered", 2)]);
}

/// Hairpins among many hosts on several workers: all arrive, all are answered, nothing is left in use at the end.
#[test]
fn hairpins_work_on_many_workers() {
    let mut scenario = crate::known(nat().workers(4), &[LAN]);
    for host in 10..30 {
        scenario = scenario.send(1.0, LAN, udp(&format!("10.0.0.{host}:{}", 5000 + host), "192.0.2.1:53"));
    }
    for host in 10..30 {
        let to = format!("198.51.100.10:{}", 5000 + (host - 10 + 7) % 20 + 10);
        scenario = scenario.send(2.0, LAN, udp(&format!("10.0.0.{host}:{}", 5000 + host), &to));
    }
    let outcome = scenario.until(400.0).run();
    outcome.count_left(LAN, 20);
    outcome.count_left(WAN, 20);
    outcome.drops(&[]);
    outcome.table(&[]);
}

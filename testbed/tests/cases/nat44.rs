//! Source translation into pools.

use std::collections::{BTreeMap, BTreeSet};

use erhu_testbed::packet::{Packet, arp_request, icmp_error, ping, tcp, udp};
use erhu_testbed::scenario::{EventKind, Scenario};

use crate::{BLUE, FIREWALL, GREEN, LAN, Talk, WAN, known, nat, nat_script, nat_with, tenants};

/// T1: TCP, UDP and echo from inside: three connections from the pool's address; replies come home unchanged.
#[test]
fn three_protocols_leave_from_the_pool_and_come_home() {
    let outcome = nat()
        .send(0.0, LAN, tcp("10.0.0.5:6303", "192.0.2.1:80").flags("S"))
        .send(0.1, LAN, udp("10.0.0.5:6304", "192.0.2.1:53"))
        .send(0.2, LAN, ping("10.0.0.5", "192.0.2.1", 6305))
        .answered(WAN, 1.0, |left| {
            let answer = left.answer();
            Some(if left.ip().protocol == 6 { answer.flags("SA").seq(900).ack(1) } else { answer })
        })
        .run();
    for seen in outcome.packets(WAN) {
        assert_eq!(seen.ip().source.to_string(), "198.51.100.10");
        assert!(seen.source().port() >= 1024, "{outcome}");
        assert_eq!(seen.ip().ttl, 63);
    }
    outcome.left(
        LAN,
        &[
            "tcp 192.0.2.1:80 > 10.0.0.5:6303 SA",
            "udp 192.0.2.1:53 > 10.0.0.5:6304",
            "icmp 192.0.2.1 > 10.0.0.5 echo-reply 6305",
        ],
    );
    assert_eq!(outcome.entries.len(), 3);
    assert!(outcome.entries.iter().all(|e| e.is_translated() && !e.is("UNREPLIED")), "{outcome}");
    outcome.drops(&[]);
    outcome.accounted();
}

/// T2: a hundred of each, spread over four workers; replies come back to whichever worker their hash says: all
/// delivered, and as many connections as external ports and ids.
#[test]
fn replies_find_their_connection_whatever_worker_gets_them() {
    let mut scenario = known(nat().workers(4), &[LAN]);
    for k in 0..100_u16 {
        let port = 2000 + k * 37;
        scenario = scenario
            .send(1.0, LAN, tcp(&format!("10.0.0.5:{port}"), "192.0.2.1:80").flags("S"))
            .send(1.0, LAN, udp(&format!("10.0.0.5:{port}"), "192.0.2.1:53"))
            .send(1.0, LAN, ping("10.0.0.5", "192.0.2.1", port));
    }
    let outcome = scenario
        .answered(WAN, 1.0, |left| {
            let answer = left.answer();
            Some(if left.ip().protocol == 6 { answer.flags("SA").seq(900).ack(1) } else { answer })
        })
        .run();
    outcome.count_left(LAN, 300);
    let outside: BTreeSet<_> = outcome.packets(WAN).iter().map(|s| (s.ip().protocol, s.source())).collect();
    assert_eq!((outside.len(), outcome.entries.len()), (300, 300));
    outcome.drops(&[]);
}

/// T4: an interface without an address has nothing to masquerade with: dropped and counted; once it has one, the same
/// packet passes.
#[test]
fn a_packet_passes_once_there_is_an_address_to_leave_from() {
    let script = |address: &str| {
        format!(
            r#"
            zone("inside", #{{ id: 1 }});
            interface("lan", #{{ port: "lan", zone: "inside", address: ["10.0.0.1/24"] }});
            interface("wan", #{{ port: "wan", address: [{address}] }});
            route("inside", "0.0.0.0/0", #{{ zone: "main" }});
            route("main", "192.0.2.0/24", #{{ interface: "wan" }});
            postrouting(#{{ egress: "wan" }}, masquerade);
            "#
        )
    };
    let packet = || udp("10.0.0.5:1", "192.0.2.1:53");
    let outcome = Scenario::of(&script(""))
        .send(0.0, LAN, packet())
        .apply(1.0, &script(r#""198.51.100.2/24""#))
        .send(2.0, LAN, packet())
        .run();
    outcome.left(WAN, &["udp 198.51.100.2:1 > 192.0.2.1:53"]);
    outcome.drops(&[("pool_exhausted", 1)]);
}

/// T5: a hundred ports, two hundred connections: exactly a hundred pass and the first hundred go on working.
#[test]
fn a_pool_gives_exactly_the_ports_it_has() {
    let syn = |port: u16| tcp(&format!("10.0.0.5:{port}"), "192.0.2.1:49152").flags("S").seq(1);
    let outcome = nat_with(r#"addresses: "198.51.100.10", ports: "2000-2099""#)
        .send_every(0.0, 0.001, LAN, (1..=200).map(syn))
        .answered(WAN, 1.0, |left| Some(left.answer().flags("SA").seq(9).ack(2)))
        .run();
    outcome.count_left(WAN, 100);
    let answers: Vec<_> = outcome.packets(LAN).into_iter().filter(|s| s.ip().protocol == 6).collect();
    assert_eq!(answers.len(), 100);
    outcome.drops(&[("pool_exhausted", 100)]);
    let ports: BTreeSet<_> = outcome.packets(WAN).iter().map(|s| s.source().port()).collect();
    assert_eq!(ports, (2000..2100).collect());
    let homes: BTreeSet<_> = answers.iter().map(|s| s.destination().port()).collect();
    assert_eq!(homes, (1..=100).collect());
}

/// T7: one port, as TCP and as UDP, to one server: two connections, both keep the port.
#[test]
fn tcp_and_udp_keep_the_same_port() {
    let outcome = nat()
        .send(0.0, LAN, tcp("10.0.0.5:5000", "192.0.2.1:80").flags("S"))
        .send(0.1, LAN, udp("10.0.0.5:5000", "192.0.2.1:80"))
        .run();
    outcome.left(WAN, &["tcp 198.51.100.10:5000 > 192.0.2.1:80 S", "udp 198.51.100.10:5000 > 192.0.2.1:80"]);
    assert_eq!(outcome.entries.len(), 2);
}

/// T8: a hundred hosts over 64 addresses: spread evenly, and each host keeps its address.
#[test]
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn hosts_are_spread_over_the_pool_and_keep_their_address() {
    let mut scenario = nat_with(r#"addresses: "198.51.100.64/26""#);
    for host in 10..110_u16 {
        for port in 0..3 {
            let packet = udp(&format!("10.0.0.{host}:{}", 1000 + port), &format!("192.0.2.{}:53", port + 1));
            scenario = scenario.send(f64::from(host - 10) / 100.0, LAN, packet.id(host));
        }
    }
    let outcome = scenario.run();
    let mut address_of: BTreeMap<u16, BTreeSet<_>> = BTreeMap::new();
    for seen in outcome.packets(WAN) {
        address_of.entry(seen.ip().id).or_default().insert(seen.ip().source);
    }
    assert_eq!(address_of.len(), 100);
    assert!(address_of.values().all(|addresses| addresses.len() == 1), "{outcome}");
    let mut hosts_on = BTreeMap::new();
    for addresses in address_of.values() {
        *hosts_on.entry(*addresses.first().unwrap()).or_insert(0_u32) += 1;
    }
    let ideal = 100.0 / 64.0;
    let squares: f64 = hosts_on.values().map(|n| (f64::from(*n) - ideal).powi(2)).sum();
    let variance = (squares + (64 - hosts_on.len()) as f64 * ideal * ideal) / 64.0;
    assert!(variance / ideal < 0.33, "variance {variance} of {ideal} hosts per address: {hosts_on:?}");
}

/// T11: a TTL that ends at the router is answered from its inside address, and makes no connection.
#[test]
fn a_ttl_that_ends_here_is_answered_from_inside() {
    let outcome = nat().send(0.0, LAN, udp("10.0.0.5:6303", "192.0.2.1:53").ttl(1)).run();
    outcome.left(LAN, &["icmp 10.0.0.1 > 10.0.0.5 11/0 about udp 10.0.0.5:6303 > 192.0.2.1:53"]);
    outcome.left(WAN, &[]);
    outcome.table(&[]);
    outcome.drops(&[("ttl_expired", 1)]);
}

/// T13: the next hop's time exceeded reaches the host, about the packet it sent.
#[test]
fn the_next_hops_time_exceeded_reaches_the_host() {
    let outcome = nat()
        .send(0.0, LAN, udp("10.0.0.5:6303", "192.0.2.1:53").ttl(2))
        .answered(WAN, 0.1, |left| {
            assert_eq!(left.ip().ttl, 1);
            Some(icmp_error("198.51.100.1", &left.source().ip().to_string(), 11, 0).about(left.l3()))
        })
        .run();
    outcome.left(LAN, &["icmp 198.51.100.1 > 10.0.0.5 11/0 about udp 10.0.0.5:6303 > 192.0.2.1:53"]);
    outcome.drops(&[]);
}

/// T14: an inside router's time exceeded about a reply leaves as the pool's, about what the server sent.
#[test]
fn an_inside_routers_error_leaves_as_the_pools() {
    let outcome = nat()
        .send(0.0, LAN, udp("10.0.0.5:6303", "192.0.2.1:53"))
        .answered(WAN, 0.1, |left| Some(left.answer().ttl(2)))
        .answered(LAN, 0.1, |left| Some(icmp_error("10.0.0.254", "192.0.2.1", 11, 0).about(left.l3())))
        .run();
    outcome.left(
        WAN,
        &[
            "udp 198.51.100.10:6303 > 192.0.2.1:53",
            "icmp 198.51.100.10 > 192.0.2.1 11/0 about udp 192.0.2.1:53 > 198.51.100.10:6303",
        ],
    );
    outcome.drops(&[]);
}

/// T22: translation is for what leaves by one interface: what leaves by another is untouched; TTL 2 passes, 1 does not.
#[test]
fn translation_belongs_to_the_egress() {
    let rules = r#"
        interface("a", #{ port: "a", address: ["10.1.1.254/24"] });
        interface("b", #{ port: "b", address: ["198.51.100.2/24"] });
        interface("c", #{ port: "c", address: ["10.3.3.254/24"] });
        pool("p", #{ addresses: "198.51.100.10" });
        postrouting(#{ egress: "b" }, snat(#{ pool: "p" }));
    "#;
    let side = erhu_testbed::scenario::Side::untagged;
    let outcome = Scenario::of(rules)
        .ports(&["a", "b", "c"])
        .send(0.0, side("a"), udp("10.1.1.1:5000", "198.51.100.7:53").ttl(2))
        .send(0.1, side("a"), udp("10.1.1.1:5000", "10.3.3.3:53").ttl(2))
        .send(0.2, side("a"), udp("10.1.1.1:5000", "198.51.100.7:53").ttl(1))
        .run();
    outcome.left(side("b"), &["udp 198.51.100.10:5000 > 198.51.100.7:53"]);
    outcome.left(side("c"), &["udp 10.1.1.1:5000 > 10.3.3.3:53"]);
    outcome.left(side("a"), &["icmp 10.1.1.254 > 10.1.1.1 11/0 about udp 10.1.1.1:5000 > 198.51.100.7:53"]);
    outcome.drops(&[("ttl_expired", 1)]);
}

/// T23: what comes in directly to the host's own address is answered without translation.
#[test]
fn the_answer_to_a_direct_connection_is_not_translated() {
    let rules = r#"
        interface("lan", #{ port: "lan", address: ["10.0.0.1/24"] });
        interface("wan", #{ port: "wan", address: ["198.51.100.2/24"] });
        route("main", "0.0.0.0/0", #{ via: "198.51.100.1" });
        pool("p", #{ addresses: "198.51.100.10" });
        postrouting(#{ egress: "wan" }, snat(#{ pool: "p" }));
    "#;
    let outcome = Scenario::of(rules)
        .send(0.0, WAN, udp("192.0.2.1:53", "10.0.0.5:60303"))
        .send(0.1, LAN, udp("10.0.0.5:60303", "192.0.2.1:53"))
        .run();
    outcome.left(LAN, &["udp 192.0.2.1:53 > 10.0.0.5:60303"]);
    outcome.left(WAN, &["udp 10.0.0.5:60303 > 192.0.2.1:53"]);
    outcome.table(&["udp 192.0.2.1:53>10.0.0.5:60303 10.0.0.5:60303>192.0.2.1:53"]);
    outcome.drops(&[]);
}

/// T25: unasked packets to a pool address have no mapping; to the router's own address they are its own matter.
#[test]
fn unasked_packets_to_the_pool_are_dropped() {
    let outcome = nat()
        .send(0.0, WAN, udp("192.0.2.1:53", "198.51.100.10:4000"))
        .send(0.1, WAN, tcp("192.0.2.1:53", "198.51.100.10:4000").flags("S"))
        .send(0.2, WAN, ping("192.0.2.1", "198.51.100.10", 7))
        .send(1.0, WAN, ping("192.0.2.1", "198.51.100.2", 7))
        .run();
    outcome.drops(&[("no_mapping", 3)]);
    outcome.left(WAN, &["icmp 198.51.100.2 > 192.0.2.1 echo-reply 7"]);
    outcome.left(LAN, &[]);
}

/// T26: the private address is not reached from outside: dropped by the firewall, forwarded where that lets it.
#[test]
fn private_addresses_are_reached_only_where_rules_say_so() {
    let script = |rules: &str| {
        format!(
            r#"
            interface("lan", #{{ port: "lan", address: ["10.0.0.1/24"] }});
            interface("wan", #{{ port: "wan", address: ["198.51.100.2/24"] }});
            route("main", "0.0.0.0/0", #{{ via: "198.51.100.1" }});
            pool("p", #{{ addresses: "198.51.100.10" }});
            postrouting(#{{ egress: "wan" }}, snat(#{{ pool: "p" }}));
            {rules}
            "#
        )
    };
    let direct = || udp("192.0.2.1:53", "10.0.0.5:4000");
    let strict = Scenario::of(&script(FIREWALL)).send(0.0, WAN, direct()).run();
    strict.drops(&[("rule", 1)]);
    strict.left(LAN, &[]);
    let lenient = Scenario::of(&script("")).send(0.0, WAN, direct()).run();
    lenient.left(LAN, &["udp 192.0.2.1:53 > 10.0.0.5:4000"]);
}

/// T28: three ports for five connections: three leave with ports of the range, two are dropped.
#[test]
fn a_small_range_of_ports_is_kept_to() {
    let packets = (1125..=1129).map(|port| udp(&format!("10.0.0.5:{port}"), "192.0.2.1:53"));
    let outcome = nat_with(r#"addresses: "198.51.100.10", ports: "1025-1027""#).send_all(0.0, LAN, packets).run();
    let ports: BTreeSet<_> = outcome.packets(WAN).iter().map(|s| s.source().port()).collect();
    assert_eq!(ports, (1025..=1027).collect());
    outcome.drops(&[("pool_exhausted", 2)]);
}

/// T37: a rule exempts one service of a host from translation, in two zones; taken away in one, it stays in the other.
#[test]
fn an_exemption_holds_where_it_stands() {
    let exempt = |zones: &str| {
        let rule = format!(
            r#"for zone in [{zones}] {{
                postrouting(#{{ zone: zone, src: "10.0.0.5", proto: "tcp", sport: 6303 }}, accept);
            }}"#
        );
        // Rules are tried in script order: the exemption has to stand before the translation.
        crate::tenants_script("", "", "").replace("pool(\"blue-public\"", &format!("{rule}\n pool(\"blue-public\""))
    };
    let syn = |port: u16| tcp(&format!("10.0.0.5:{port}"), "192.0.2.1:80").flags("S");
    let outcome = Scenario::of(&exempt(r#""blue""#))
        .send_all(0.0, BLUE, [syn(6303), syn(6304)])
        .apply(200.0, &exempt(r#""green""#))
        .send(201.0, BLUE, syn(6303))
        .send(202.0, GREEN, syn(6303))
        .run();
    outcome.left(
        WAN,
        &[
            "tcp 10.0.0.5:6303 > 192.0.2.1:80 S",
            "tcp 198.51.100.10:6304 > 192.0.2.1:80 S",
            "tcp 198.51.100.10:6303 > 192.0.2.1:80 S",
            "tcp 10.0.0.5:6303 > 192.0.2.1:80 S",
        ],
    );
    outcome.drops(&[]);
}

/// F10: endpoint-independent mapping: one inside port to two servers is one outside port; address-and-port-dependent
/// may differ, and keeps the port where it can.
#[test]
fn mapping_depends_on_the_remote_or_not() {
    let two_servers = |mapping: &str| {
        nat_with(&format!(r#"addresses: "198.51.100.10", mapping: "{mapping}""#))
            .send(0.0, LAN, udp("10.0.0.6:5000", "192.0.2.1:53"))
            .send(1.0, LAN, udp("10.0.0.5:5000", "192.0.2.1:53"))
            .send(2.0, LAN, udp("10.0.0.5:5000", "192.0.2.2:53"))
            .run()
    };
    let port = |outcome: &erhu_testbed::scenario::Outcome, k: usize| outcome.packets(WAN)[k].source().port();
    let independent = two_servers("endpoint_independent");
    assert_eq!(port(&independent, 0), 5000);
    assert_ne!(port(&independent, 1), 5000);
    assert_eq!(port(&independent, 1), port(&independent, 2), "{independent}");
    let dependent = two_servers("address_port_dependent");
    assert_eq!((port(&dependent, 0), port(&dependent, 2)), (5000, 5000), "{dependent}");
    assert_ne!(port(&dependent, 1), 5000);
}

/// Address-dependent mapping: the same for all ports of one remote, free to differ for another remote.
#[test]
fn address_dependent_mapping_is_per_remote_address() {
    let outcome = nat_with(r#"addresses: "198.51.100.10", mapping: "address_dependent", preserve_port: false"#)
        .send(0.0, LAN, udp("10.0.0.5:5000", "192.0.2.1:53"))
        .send(0.1, LAN, udp("10.0.0.5:5000", "192.0.2.1:123"))
        .run();
    let ports: BTreeSet<_> = outcome.packets(WAN).iter().map(|s| s.source().port()).collect();
    assert_eq!(ports.len(), 1, "{outcome}");
}

/// Two inside ends never share an outside port of an endpoint-independent pool, whatever their remotes.
#[test]
fn an_endpoint_independent_port_has_one_owner() {
    let mut scenario = nat_with(r#"addresses: "198.51.100.10", ports: "4000-4199""#);
    for host in 10..30_u16 {
        for k in 0..10_u16 {
            let packet = udp(&format!("10.0.0.{host}:{}", 4000 + k), &format!("192.0.2.{}:53", host));
            scenario = scenario.send(f64::from(k), LAN, packet.id(host));
        }
    }
    let outcome = scenario.run();
    let mut owner = BTreeMap::new();
    for entry in &outcome.entries {
        let inside = (entry.original.src, entry.original.source_port());
        assert_eq!(*owner.entry(entry.reply.destination_port()).or_insert(inside), inside, "{outcome}");
    }
    assert_eq!(owner.len(), 200);
    outcome.drops(&[]);
}

/// F11: a pool without addresses is refused by name, and nothing runs.
#[test]
fn a_pool_without_addresses_is_refused() {
    let error = nat_with("addresses: []").try_run().unwrap_err();
    assert!(error.contains("pool") && error.contains("addresses"), "{error}");
}

/// T176: a host that gets no port is told so, not more often than the limit allows.
#[test]
fn exhaustion_is_answered_and_the_answers_are_limited() {
    let packets = (0..2000_u16).map(|k| udp(&format!("10.0.0.5:{}", 2000 + k), "192.0.2.1:53"));
    let outcome = nat_with(r#"addresses: "198.51.100.10", ports: 40000"#)
        .send(0.0, LAN, arp_request("10.0.0.1", "10.0.0.5"))
        .send_all(1.0, LAN, packets)
        .run();
    outcome.drops(&[("pool_exhausted", 1999)]);
    let answers = outcome.packets(LAN);
    assert!(answers.iter().all(|s| (s.icmp().kind, s.icmp().code) == (3, 1)), "{outcome}");
    assert!(!answers.is_empty() && answers.len() < 1999, "{} answers", answers.len());
    assert_eq!(outcome.counter("icmp_rate_limited") + u64::try_from(answers.len()).unwrap(), 1999);
}

/// T121: echo to an address that others leave from is answered by the router, whose own it is.
#[test]
fn the_routers_own_address_answers_though_others_leave_from_it() {
    let rules = r#"
        zone("inside", #{ id: 1 });
        interface("lan", #{ port: "lan", zone: "inside", address: ["10.0.0.1/24"] });
        interface("wan", #{ port: "wan", address: ["198.51.100.2/24"] });
        interface("dmz", #{ port: "lan", vlan: 9, address: ["203.0.113.1/24"] });
        route("inside", "0.0.0.0/0", #{ zone: "main" });
        route("main", "0.0.0.0/0", #{ via: "198.51.100.1" });
        postrouting(#{ zone: "inside", egress: "wan" }, masquerade);
    "#;
    let dmz = erhu_testbed::scenario::Side::vlan("lan", 9);
    let outcome = Scenario::of(rules)
        .send(0.0, LAN, udp("10.0.0.5:1", "192.0.2.1:53"))
        .send(1.0, WAN, ping("192.0.2.1", "198.51.100.2", 7))
        .send(2.0, WAN, udp("192.0.2.1:53", "203.0.113.5:99"))
        .run();
    outcome.left(WAN, &["udp 198.51.100.2:1 > 192.0.2.1:53", "icmp 198.51.100.2 > 192.0.2.1 echo-reply 7"]);
    outcome.left(dmz, &["udp 192.0.2.1:53 > 203.0.113.5:99"]);
    outcome.drops(&[]);
}

/// T122: what is not for the pool is not filtered by it.
#[test]
fn addresses_beside_the_pool_are_forwarded() {
    let rules = r#"
        interface("lan", #{ port: "lan", address: ["203.0.113.1/24"] });
        interface("wan", #{ port: "wan", address: ["198.51.100.2/24"] });
        pool("p", #{ addresses: "203.0.113.128/25" });
        postrouting(#{ egress: "wan", src: "10.0.0.0/8" }, snat(#{ pool: "p" }));
    "#;
    let outcome = Scenario::of(rules)
        .send(0.0, WAN, udp("198.51.100.7:53", "203.0.113.5:99"))
        .send(0.1, WAN, udp("198.51.100.7:53", "203.0.113.200:99"))
        .run();
    outcome.left(LAN, &["udp 198.51.100.7:53 > 203.0.113.5:99"]);
    outcome.drops(&[("no_mapping", 1)]);
}

/// A port is kept where it is free, and a taken one is changed to one of the same parity and range.
#[test]
fn ports_are_kept_where_free_and_their_parity_where_not() {
    let outcome = nat()
        .send(0.0, LAN, udp("10.0.0.5:5001", "192.0.2.1:53"))
        .send(0.1, LAN, udp("10.0.0.6:5001", "192.0.2.1:53"))
        .send(0.2, LAN, udp("10.0.0.7:80", "192.0.2.1:53"))
        .run();
    let ports: Vec<_> = outcome.packets(WAN).iter().map(|s| s.source().port()).collect();
    assert_eq!(ports[0], 5001);
    assert!(ports[1] != 5001 && ports[1] % 2 == 1 && ports[1] >= 1024, "{outcome}");
    assert!(ports[2] >= 1024 && ports[2] % 2 == 0, "{outcome}");
}

/// UDP without a checksum stays without one.
#[test]
fn a_datagram_without_checksum_stays_so() {
    let outcome = nat()
        .send(0.0, LAN, udp("10.0.0.5:5000", "192.0.2.1:53").payload(b"bare").no_checksum())
        .answered(WAN, 0.1, |left| Some(left.answer().payload(b"too").no_checksum()))
        .run();
    assert!(!outcome.only(WAN).udp().has_checksum && !outcome.only(LAN).udp().has_checksum);
    assert_eq!(outcome.only(WAN).payload(), b"bare");
    outcome.drops(&[]);
}

/// `snat(#{ to })` shares a port towards different remotes, and changes it towards the same one.
#[test]
fn translation_to_an_address_shares_ports_between_remotes() {
    let rules = r#"postrouting(#{ zone: "inside" }, snat(#{ to: "198.51.100.30" }));"#;
    let from = |host: &str, remote: &str| -> Packet { udp(&format!("{host}:5000"), remote) };
    let outcome = Scenario::of(&nat_script(r#"addresses: "198.51.100.10""#, rules))
        .send(0.0, LAN, from("10.0.0.5", "192.0.2.1:53"))
        .send(0.1, LAN, from("10.0.0.6", "192.0.2.2:53"))
        .send(0.2, LAN, from("10.0.0.7", "192.0.2.1:53"))
        .run();
    let sources: Vec<_> = outcome.packets(WAN).iter().map(|s| s.source().to_string()).collect();
    assert_eq!(sources[..2], ["198.51.100.30:5000", "198.51.100.30:5000"]);
    assert_ne!(sources[2], "198.51.100.30:5000");
    outcome.drops(&[]);
}

/// T89, T2: tenants with the same tuples, on four workers, each answered at home.
#[test]
fn tenants_on_four_workers_are_answered_at_home() {
    let mut scenario = known(tenants().workers(4), &[BLUE, GREEN]);
    for port in 2000..2100_u16 {
        let packet = |name: &[u8]| udp(&format!("10.0.0.5:{port}"), "192.0.2.1:53").payload(name);
        scenario = scenario.send(1.0, BLUE, packet(b"blue")).send(1.0, GREEN, packet(b"green"));
    }
    let outcome = scenario.answered(WAN, 1.0, |left| Some(left.answer().payload(left.payload()))).run();
    for (side, name) in [(BLUE, &b"blue"[..]), (GREEN, b"green")] {
        outcome.count_left(side, 100);
        assert!(outcome.packets(side).iter().all(|s| s.payload() == name), "{outcome}");
        let ports: BTreeSet<_> = outcome.packets(side).iter().map(|s| s.destination().port()).collect();
        assert_eq!(ports, (2000..2100).collect());
    }
    outcome.drops(&[]);
    assert_eq!(outcome.count_events(EventKind::New), 200);
}

/// A translated TCP connection from its first to its last packet.
#[test]
fn a_translated_connection_lives_and_closes() {
    let scenario = Talk::NAT.close(Talk::NAT.open(nat(), 0.0), 1.0);
    let outcome = scenario.until(130.0).run();
    outcome.count_left(WAN, 4);
    outcome.count_left(LAN, 3);
    outcome.table(&[]);
    outcome.drops(&[]);
    let story = outcome.story("10.0.0.5:40000");
    assert_eq!((story[0], *story.last().unwrap()), (EventKind::New, EventKind::Destroy));
    assert_eq!(story[1..story.len() - 1].iter().filter(|k| **k != EventKind::Update).count(), 0, "{outcome}");
}

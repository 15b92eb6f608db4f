//! Links: virtual wires between zones, so that a packet can be translated twice.

use std::collections::BTreeMap;

use erhu_testbed::packet::{arp_request, icmp_error, ping, tcp, udp};
use erhu_testbed::scenario::{Outcome, Scenario, Side};

use crate::{BLUE, GREEN, LAN, WAN};

/// A tenant whose zone translates to an address of the link, and `main`, which translates again on its way out.
///
/// ```text
/// 10.0.0.0/24 --- lan [inside] up --- down [main] wan --- 198.51.100.0/24
///                              100.64.0.2  100.64.0.1
/// ```
fn twice_script(rules: &str) -> String {
    format!(
        r#"
        zone("inside", #{{ id: 1 }});
        interface("lan", #{{ port: "lan", zone: "inside", address: ["10.0.0.1/24", "fd00:10::1/64"] }});
        interface("wan", #{{ port: "wan", address: ["198.51.100.2/24", "2001:db8:51::2/64"] }});
        link("up", "down", #{{
            zones: ["inside", "main"],
            addresses: [["100.64.0.2/30", "fd00:64::2/64"], ["100.64.0.1/30", "fd00:64::1/64"]],
        }});
        route("inside", "0.0.0.0/0", #{{ via: "100.64.0.1" }});
        route("inside", "::/0", #{{ via: "fd00:64::1" }});
        route("main", "0.0.0.0/0", #{{ via: "198.51.100.1" }});
        route("main", "::/0", #{{ via: "2001:db8:51::1" }});
        {rules}
        postrouting(#{{ egress: "up" }}, masquerade);
        postrouting(#{{ egress: "wan", src: "100.64.0.0/30" }}, snat(#{{ to: "198.51.100.10" }}));
        postrouting(#{{ egress: "wan", src: "fd00:64::/64" }}, snat(#{{ to: "2001:db8:51::10" }}));
        "#
    )
}

fn twice() -> Scenario {
    Scenario::of(&twice_script(""))
}

/// Two zones, of which each sends what is for 192.0.2.0/24 into a link to the other.
fn circle(rules: &str) -> Scenario {
    Scenario::of(&format!(
        r#"
        zone("inside", #{{ id: 1 }});
        interface("lan", #{{ port: "lan", zone: "inside", address: ["10.0.0.1/24"] }});
        interface("wan", #{{ port: "wan", address: ["198.51.100.2/24"] }});
        link("a1", "a2", #{{ zones: ["inside", "main"] }});
        link("b1", "b2", #{{ zones: ["main", "inside"] }});
        route("inside", "192.0.2.0/24", #{{ interface: "a1" }});
        route("main", "192.0.2.0/24", #{{ interface: "b1" }});
        {rules}
        "#
    ))
}

/// A number of what the first command, `show:stats --json`, printed.
fn shown(outcome: &Outcome, path: &[&str]) -> u64 {
    let all: serde_json::Value = serde_json::from_str(&outcome.said(1)).unwrap();
    path.iter().fold(&all, |at, key| &at[*key]).as_u64().unwrap_or_else(|| panic!("{path:?} is not in {all}"))
}

/// T94: a packet is translated in its own zone and again in the next: two connections with states of their own; each
/// zone costs one TTL, and the answer finds its way back through both.
#[test]
fn a_packet_is_translated_in_two_zones() {
    let outcome = twice()
        .send(0.0, LAN, tcp("10.0.0.5:40000", "192.0.2.1:80").flags("S").seq(100))
        .answered(WAN, 0.1, |left| Some(left.answer().flags("SA").seq(900).ack(101)))
        .send(0.2, LAN, tcp("10.0.0.5:40000", "192.0.2.1:80").flags("A").seq(101).ack(901))
        .run();
    outcome.left(WAN, &["tcp 198.51.100.10:40000 > 192.0.2.1:80 S", "tcp 198.51.100.10:40000 > 192.0.2.1:80 A"]);
    outcome.left(LAN, &["tcp 192.0.2.1:80 > 10.0.0.5:40000 SA"]);
    assert_eq!(outcome.packets(WAN)[0].ip().ttl, 62);
    assert_eq!(outcome.only(LAN).ip().ttl, 62);
    outcome.table(&[
        "tcp ESTABLISHED 10.0.0.5:40000>192.0.2.1:80@1 192.0.2.1:80>100.64.0.2:40000@1 [ASSURED]",
        "tcp ESTABLISHED 100.64.0.2:40000>192.0.2.1:80 192.0.2.1:80>198.51.100.10:40000 [ASSURED]",
    ]);
    outcome.drops(&[]);
    outcome.accounted();
}

/// T94: the same over IPv6, established packets included.
#[test]
fn an_ipv6_packet_is_translated_in_two_zones() {
    let host = || udp("[fd00:10::5]:5000", "[2001:db8:2::1]:53");
    let outcome = twice()
        .send(0.0, LAN, host())
        .send(0.1, WAN, udp("[2001:db8:2::1]:53", "[2001:db8:51::10]:5000"))
        .send(0.2, LAN, host())
        .send(0.3, WAN, udp("[2001:db8:2::1]:53", "[2001:db8:51::10]:5000"))
        .run();
    outcome.left(WAN, &["udp [2001:db8:51::10]:5000 > [2001:db8:2::1]:53"; 2]);
    outcome.left(LAN, &["udp [2001:db8:2::1]:53 > [fd00:10::5]:5000"; 2]);
    assert!(outcome.packets(LAN).iter().all(|s| s.ip6().hop_limit == 62), "{outcome}");
    outcome.table(&[
        "udp [fd00:10::5]:5000>[2001:db8:2::1]:53@1 [2001:db8:2::1]:53>[fd00:64::2]:5000@1",
        "udp [fd00:64::2]:5000>[2001:db8:2::1]:53 [2001:db8:2::1]:53>[2001:db8:51::10]:5000",
    ]);
    outcome.drops(&[]);
    outcome.accounted();
}

/// T94: a zone that only tracks follows one that translates. Clearing one zone leaves the other's connection; rules of
/// each zone see what is in it.
#[test]
fn each_zone_of_a_link_has_rules_and_state_of_its_own() {
    let rules = r#"
        postrouting(#{ egress: "wan" }, accept);
        forward(#{ ingress: "lan", egress: "up", src: "10.0.0.0/24" }, [count("inside"), accept]);
        forward(#{ ingress: "down", egress: "wan", src: "100.64.0.2" }, [count("outside"), accept]);
        forward(#{ state: "new" }, drop);
    "#;
    let packet = || udp("10.0.0.5:5000", "192.0.2.1:53");
    let outcome = Scenario::of(&twice_script(rules))
        .send(0.0, LAN, packet())
        .command(1.0, "conntrack:-F -w 1")
        .command(1.0, "conntrack:-L")
        .send(2.0, LAN, packet())
        .run();
    outcome.left(WAN, &["udp 100.64.0.2:5000 > 192.0.2.1:53"; 2]);
    assert_eq!(outcome.listed(2), ["udp 100.64.0.2:5000>192.0.2.1:53 192.0.2.1:53>100.64.0.2:5000 [UNREPLIED]"]);
    assert_eq!(outcome.stat(&["named", "inside", "packets"]), 2);
    assert_eq!(outcome.stat(&["named", "outside", "packets"]), 2);
    outcome.drops(&[]);
}

/// Errors come through both translations: of a router outside, of the router itself in the second zone, and of the host
/// about an answer, which outside comes from the address that the answer was sent to.
#[test]
fn errors_cross_links_with_what_they_quote() {
    let outcome = twice()
        .send(0.0, LAN, udp("10.0.0.5:5000", "192.0.2.1:53"))
        .answered(WAN, 0.1, |left| Some(icmp_error("198.51.100.1", "198.51.100.10", 11, 0).about(left.l3())))
        .send(1.0, LAN, udp("10.0.0.5:5001", "192.0.2.1:53").ttl(2))
        .send(2.0, WAN, udp("192.0.2.1:53", "198.51.100.10:5000"))
        .answered(LAN, 0.1, |left| {
            let is_answer = left.ip().protocol == 17;
            is_answer.then(|| icmp_error("10.0.0.5", "192.0.2.1", 3, 3).about(left.l3()))
        })
        .run();
    outcome.left(
        LAN,
        &[
            "icmp 198.51.100.1 > 10.0.0.5 11/0 about udp 10.0.0.5:5000 > 192.0.2.1:53",
            "icmp 100.64.0.1 > 10.0.0.5 11/0 about udp 10.0.0.5:5001 > 192.0.2.1:53",
            "udp 192.0.2.1:53 > 10.0.0.5:5000",
        ],
    );
    outcome.left(
        WAN,
        &[
            "udp 198.51.100.10:5000 > 192.0.2.1:53",
            "icmp 198.51.100.10 > 192.0.2.1 3/3 about udp 192.0.2.1:53 > 198.51.100.10:5000",
        ],
    );
    outcome.drops(&[("ttl_expired", 1)]);
}

/// T125: a packet that is too big only beyond the link is told to the host with the MTU of the way out, and its own
/// header; over IPv6 too.
#[test]
fn the_mtu_beyond_a_link_is_told_to_the_host() {
    let script = twice_script("").replace(r#"port: "wan", "#, r#"port: "wan", mtu: 1400, "#);
    let outcome = Scenario::of(&script)
        .send(0.0, LAN, udp("10.0.0.5:5000", "192.0.2.1:53").payload_len(1400).df())
        .send(0.1, LAN, udp("[fd00:10::5]:5000", "[2001:db8:2::1]:53").payload_len(1400))
        .run();
    outcome.left(WAN, &[]);
    outcome.left(
        LAN,
        &[
            "icmp 100.64.0.1 > 10.0.0.5 3/4 about udp 10.0.0.5:5000 > 192.0.2.1:53",
            "icmpv6 fd00:64::1 > fd00:10::5 2/0 about udp [fd00:10::5]:5000 > [2001:db8:2::1]:53",
        ],
    );
    outcome.drops(&[("too_big", 2)]);
}

/// The far end of a link is a host that answers pings; the echo crosses both ways. What is for no service there is told
/// so.
#[test]
fn the_far_end_answers() {
    let outcome = twice()
        .send(0.0, LAN, ping("10.0.0.5", "100.64.0.1", 7))
        .send(0.1, LAN, udp("10.0.0.5:5000", "100.64.0.1:53"))
        .send(0.2, LAN, ping("fd00:10::5", "fd00:64::1", 8))
        .run();
    outcome.left(
        LAN,
        &[
            "icmp 100.64.0.1 > 10.0.0.5 echo-reply 7",
            "icmp 100.64.0.1 > 10.0.0.5 3/3 about udp 10.0.0.5:5000 > 100.64.0.1:53",
            "icmpv6 fd00:64::1 > fd00:10::5 echo-reply 8",
        ],
    );
    outcome.drops(&[("unsupported", 1)]);
}

/// A packet may cross four links, and ends at the fifth; tracked, untracked and translated alike. A packet with a short
/// time to live ends by that, and the host is told.
#[test]
fn a_circle_of_links_ends_after_four_crossings() {
    let packet = || udp("10.0.0.5:5000", "192.0.2.1:53");
    for rules in ["", "raw(#{}, notrack);", r#"postrouting(#{ egress: ["a1", "b1"] }, snat(#{ to: "10.9.9.9" }));"#] {
        let outcome = circle(rules).send(0.0, LAN, packet()).command(1.0, "show:stats --json").run();
        outcome.drops(&[("link_loop", 1)]);
        outcome.accounted();
        let crossed = |end: &str| shown(&outcome, &["interfaces", end, "rx_packets"]);
        assert_eq!((crossed("a2"), crossed("b2")), (2, 2), "{outcome}");
    }
    let outcome = circle("").send(0.0, LAN, packet().ttl(4)).run();
    outcome.drops(&[("ttl_expired", 1)]);
}

/// A connection counts in the zone that it is in: each zone's limit holds for itself, and what the second zone refuses
/// was accepted by the first.
#[test]
fn limits_hold_on_both_sides_of_a_link() {
    let script = twice_script("").replace(
        r#"zone("inside", #{ id: 1 });"#,
        r#"zone("inside", #{ id: 1, limit: 2 }); zone("main", #{ limit: 1 });"#,
    );
    let outcome = Scenario::of(&script)
        .send_every(0.0, 0.1, LAN, (1..=4).map(|n| udp(&format!("10.0.0.5:500{n}"), "192.0.2.1:53")))
        .run();
    outcome.left(WAN, &["udp 198.51.100.10:5001 > 192.0.2.1:53"]);
    outcome.drops(&[("zone_limit", 3)]);
    assert_eq!((outcome.zone_drops("inside", "zone_limit"), outcome.zone_drops("main", "zone_limit")), (2, 1));
    assert_eq!(outcome.stat(&["connections", "created"]), 3);
    assert_eq!((outcome.stat(&["zones", "inside", "live"]), outcome.stat(&["zones", "main", "live"])), (2, 1));
    let later = Scenario::of(&script)
        .send(0.0, LAN, udp("10.0.0.5:5001", "192.0.2.1:53"))
        .send(40.0, LAN, udp("10.0.0.5:5002", "192.0.2.1:53"))
        .until(80.0)
        .run();
    later.count_left(WAN, 2);
    later.table(&[]);
    later.drops(&[]);
}

/// A service is published twice over: `main` sends it into the link, and the tenant to its server.
#[test]
fn a_destination_is_translated_in_two_zones() {
    let rules = r#"
        prerouting(#{ ingress: "wan", dst: "198.51.100.2", proto: "tcp", dport: 80 }, dnat(#{ to: "100.64.0.2:8080" }));
        prerouting(#{ ingress: "up", dst: "100.64.0.2", proto: "tcp", dport: 8080 }, dnat(#{ to: "10.0.0.5:80" }));
        prerouting(#{ ingress: "wan", dst: "2001:db8:51::2", proto: "tcp", dport: 80 },
                   dnat(#{ to: "[fd00:64::2]:8080" }));
        prerouting(#{ ingress: "up", dst: "fd00:64::2", proto: "tcp", dport: 8080 }, dnat(#{ to: "[fd00:10::5]:80" }));
        forward(#{ status: "dnat" }, accept);
        forward(#{ ingress: ["wan", "down"], state: "new" }, drop);
    "#;
    let outcome = Scenario::of(&twice_script(rules))
        .send(0.0, WAN, tcp("203.0.113.7:40000", "198.51.100.2:80").flags("S").seq(1))
        .send(0.1, WAN, tcp("[2001:db8:3::7]:40000", "[2001:db8:51::2]:80").flags("S").seq(1))
        .answered(LAN, 0.5, |left| Some(left.answer().flags("SA").seq(9).ack(2)))
        .run();
    outcome.left(LAN, &["tcp 203.0.113.7:40000 > 10.0.0.5:80 S", "tcp [2001:db8:3::7]:40000 > [fd00:10::5]:80 S"]);
    outcome.left(
        WAN,
        &["tcp 198.51.100.2:80 > 203.0.113.7:40000 SA", "tcp [2001:db8:51::2]:80 > [2001:db8:3::7]:40000 SA"],
    );
    outcome.table(&[
        "tcp SYN_RECV 203.0.113.7:40000>100.64.0.2:8080@1 10.0.0.5:80>203.0.113.7:40000@1",
        "tcp SYN_RECV 203.0.113.7:40000>198.51.100.2:80 100.64.0.2:8080>203.0.113.7:40000",
        "tcp SYN_RECV [2001:db8:3::7]:40000>[fd00:64::2]:8080@1 [fd00:10::5]:80>[2001:db8:3::7]:40000@1",
        "tcp SYN_RECV [2001:db8:3::7]:40000>[2001:db8:51::2]:80 [fd00:64::2]:8080>[2001:db8:3::7]:40000",
    ]);
    outcome.drops(&[]);
}

/// Raw rules see what arrives by an end, before it is tracked there; a mark does not cross.
#[test]
fn raw_rules_see_what_arrives_by_an_end() {
    let rules = r#"
        raw(#{ ingress: "lan" }, mark(7));
        raw(#{ ingress: "down", mark: 7 }, drop);
        raw(#{ ingress: "down", proto: "udp", dport: 99 }, drop);
        raw(#{ ingress: "down", proto: "udp", dport: 98 }, notrack);
        forward(#{ ingress: "lan", mark: 7 }, count("marked"));
    "#;
    let packet = |port: u16| udp("10.0.0.5:5000", &format!("192.0.2.1:{port}"));
    let outcome = Scenario::of(&twice_script(rules)).send_every(0.0, 0.1, LAN, [53, 98, 99].map(packet)).run();
    outcome.left(WAN, &["udp 198.51.100.10:5000 > 192.0.2.1:53", "udp 100.64.0.2:5000 > 192.0.2.1:98"]);
    assert_eq!(outcome.stat(&["named", "marked", "packets"]), 3);
    assert_eq!(outcome.entries.len(), 4);
    outcome.drops(&[("raw_rule", 1)]);
}

/// Two tenants with equal addresses that reach each other's published servers over a link, each translated at its end.
const TENANTS: &str = r#"
    zone("blue",  #{ id: 1 });
    zone("green", #{ id: 2 });
    interface("lan.100", #{ port: "lan", vlan: 100, zone: "blue",  address: ["10.0.0.1/24"] });
    interface("lan.200", #{ port: "lan", vlan: 200, zone: "green", address: ["10.0.0.1/24"] });
    link("to-green", "to-blue", #{ zones: ["blue", "green"], addresses: ["100.64.0.1/30", "100.64.0.2/30"] });
    postrouting(#{ egress: ["to-green", "to-blue"] }, masquerade);
    prerouting(#{ ingress: "to-blue", dst: "100.64.0.2", proto: "tcp", dport: 443 }, dnat(#{ to: "10.0.0.5" }));
"#;

#[test]
fn tenants_meet_over_a_link() {
    let syn = |n: u16| tcp(&format!("10.0.0.5:{}", 4000 + n), "100.64.0.2:443").flags("S").seq(0);
    let outcome = Scenario::of(TENANTS)
        .send_all(0.0, BLUE, (0..20).map(syn))
        .answered(GREEN, 0.1, |left| Some(left.answer().flags("SA").seq(9).ack(1)))
        .run();
    outcome.count_left(GREEN, 20);
    assert!(outcome.packets(GREEN).iter().all(|s| s.source().ip().to_string() == "100.64.0.1"), "{outcome}");
    assert!(outcome.packets(GREEN).iter().all(|s| s.destination().to_string() == "10.0.0.5:443"), "{outcome}");
    outcome.count_left(BLUE, 20);
    assert!(outcome.packets(BLUE).iter().all(|s| s.source().to_string() == "100.64.0.2:443"), "{outcome}");
    assert_eq!(outcome.entries.len(), 40);
    outcome.drops(&[]);
    outcome.accounted();
}

/// What comes of a run whichever worker did what: packets by side, without their order, the table and the drops.
fn told(outcome: &Outcome, sides: &[Side]) -> (Vec<Vec<String>>, Vec<String>, BTreeMap<String, u64>) {
    let packets = |side: &Side| {
        let mut all: Vec<_> = outcome.packets(*side).iter().map(ToString::to_string).collect();
        all.sort();
        all
    };
    let mut table: Vec<_> = outcome.entries.iter().map(ToString::to_string).collect();
    table.sort();
    (sides.iter().map(packets).collect(), table, outcome.dropped())
}

/// Packets of a connection that another worker owns are handed over in the middle of a link too: any number of workers
/// comes to the same, with errors, established packets, loops and packets larger than allowed beyond the link.
#[test]
fn any_number_of_workers_comes_to_the_same_over_links() {
    let host = |n: u16| tcp(&format!("10.0.0.{}:{}", 5 + n % 3, 4000 + n), "192.0.2.1:80");
    let conversation = |workers| {
        twice()
            .workers(workers)
            .send_all(0.0, LAN, (0..30).map(|n| host(n).flags("S").seq(100)))
            .answered(WAN, 0.1, |left| Some(left.answer().flags("SA").seq(900).ack(101)))
            .send_all(0.5, LAN, (0..30).map(|n| host(n).flags("A").seq(101).ack(901)))
            .send_all(1.0, LAN, (0..10).map(|n| udp(&format!("10.0.0.5:{}", 5000 + n), "192.0.2.2:53").ttl(2)))
            .send_all(2.0, LAN, (0..10).map(|n| ping("10.0.0.5", "192.0.2.3", n)))
            .answered(WAN, 0.1, |left| {
                let is_ping = left.ip().protocol == 1;
                is_ping.then(|| icmp_error("198.51.100.1", "198.51.100.10", 3, 1).about(left.l3()))
            })
            .command(9.0, "show:stats --json")
            .run()
    };
    let one = conversation(1);
    one.count_left(WAN, 70);
    one.drops(&[("ttl_expired", 10)]);
    for workers in [2, 4] {
        let several = conversation(workers);
        assert_eq!(told(&several, &[LAN, WAN]), told(&one, &[LAN, WAN]), "{workers} workers");
        assert!(shown(&several, &["counters", "handed_over"]) > 0, "{several}");
        several.accounted();
    }
    let meeting = |workers| {
        let syn = |n: u16| tcp(&format!("10.0.0.5:{}", 4000 + n), "100.64.0.2:443").flags("S").seq(0);
        Scenario::of(TENANTS)
            .workers(workers)
            .send_all(0.0, BLUE, (0..30).map(syn))
            .answered(GREEN, 0.1, |left| Some(left.answer().flags("SA").seq(9).ack(1)))
            .run()
    };
    assert_eq!(told(&meeting(4), &[BLUE, GREEN]), told(&meeting(1), &[BLUE, GREEN]));
    let round = |workers| circle("").workers(workers).send(0.0, LAN, udp("10.0.0.5:5000", "192.0.2.1:53")).run();
    assert_eq!(told(&round(4), &[LAN, WAN]), told(&round(1), &[LAN, WAN]));
}

/// What waits for a neighbour beyond the link leaves once that is known; where nobody answers, the host is told.
#[test]
fn neighbours_beyond_a_link_are_waited_for() {
    let packet = || udp("10.0.0.5:5000", "192.0.2.1:53");
    let unanswered = twice()
        .silent_neighbours()
        .send(0.0, LAN, arp_request("10.0.0.1", "10.0.0.5"))
        .send(0.5, LAN, packet())
        .until(10.0)
        .run();
    unanswered.left(LAN, &["icmp 100.64.0.1 > 10.0.0.5 3/1 about udp 10.0.0.5:5000 > 192.0.2.1:53"]);
    unanswered.drops(&[("no_neighbour", 1)]);
    let answered = twice()
        .silent_neighbours()
        .send(0.0, LAN, packet())
        .send(0.5, WAN, arp_request("198.51.100.2", "198.51.100.1"))
        .run();
    answered.left(WAN, &["udp 198.51.100.10:5000 > 192.0.2.1:53"]);
}

/// A link that goes with a reload takes its connections along, on both sides; one that stays keeps them, whatever else
/// the new rules say.
#[test]
fn connections_over_a_link_outlive_a_reload_that_keeps_it() {
    let packet = || udp("10.0.0.5:5000", "192.0.2.1:53");
    let without = r#"
        zone("inside", #{ id: 1 });
        interface("lan", #{ port: "lan", zone: "inside", address: ["10.0.0.1/24"] });
        interface("wan", #{ port: "wan", address: ["198.51.100.2/24"] });
        route("inside", "0.0.0.0/0", #{ zone: "main" });
        route("main", "0.0.0.0/0", #{ via: "198.51.100.1" });
        route("main", "198.51.100.10/32", #{ blackhole: true });
    "#;
    let outcome = twice()
        .send(0.0, LAN, packet())
        .apply(1.0, &twice_script("forward(#{ dport: 99 }, drop);"))
        .send(2.0, LAN, packet())
        .apply(3.0, without)
        .send(4.0, LAN, packet())
        .send(5.0, WAN, udp("192.0.2.1:53", "198.51.100.10:5000"))
        .run();
    outcome.left(
        WAN,
        &[
            "udp 198.51.100.10:5000 > 192.0.2.1:53",
            "udp 198.51.100.10:5000 > 192.0.2.1:53",
            "udp 10.0.0.5:5000 > 192.0.2.1:53",
        ],
    );
    outcome.left(LAN, &[]);
    assert_eq!(outcome.ended_at("192.0.2.1:53>100.64.0.2:5000"), [4.0]);
    assert_eq!(outcome.ended_at("192.0.2.1:53>198.51.100.10:5000"), [5.0]);
    outcome.table(&["udp 10.0.0.5:5000>192.0.2.1:53@1 192.0.2.1:53>10.0.0.5:5000 [UNREPLIED]"]);
    outcome.drops(&[("blackhole", 1)]);
}

/// An interface that becomes an end of a link, or the other way round, is another one: what was known of the one is not
/// taken for the other.
#[test]
fn an_interface_may_become_an_end_of_a_link() {
    let port = r#"
        zone("inside", #{ id: 1 });
        interface("lan", #{ port: "lan", zone: "inside", address: ["10.0.0.1/24"] });
        interface("up", #{ port: "wan", zone: "inside", address: ["100.64.0.2/30"] });
        route("inside", "0.0.0.0/0", #{ via: "100.64.0.1" });
    "#;
    let packet = || udp("10.0.0.5:5000", "192.0.2.1:53");
    let outcome = Scenario::of(port)
        .send(0.0, LAN, packet())
        .apply(1.0, &twice_script(""))
        .send(2.0, LAN, packet())
        .apply(3.0, port)
        .send(4.0, LAN, packet())
        .run();
    outcome.left(
        WAN,
        &[
            "udp 10.0.0.5:5000 > 192.0.2.1:53",
            "udp 198.51.100.10:5000 > 192.0.2.1:53",
            "udp 10.0.0.5:5000 > 192.0.2.1:53",
        ],
    );
    outcome.drops(&[]);
}

/// An end is shown with the interfaces, its traffic too, and a link between zones that are not there is refused.
#[test]
fn links_are_shown_and_checked() {
    let outcome = twice()
        .send(0.0, LAN, ping("10.0.0.5", "192.0.2.1", 1))
        .command(1.0, "show:stats --json")
        .command(1.0, "show:interfaces")
        .run();
    assert!(outcome.said(2).contains("link to down"), "{}", outcome.said(2));
    let packets = |end: &str, way: &str| shown(&outcome, &["interfaces", end, way]);
    assert_eq!((packets("up", "tx_packets"), packets("down", "rx_packets")), (1, 1), "{outcome}");
    let broken = twice_script("").replace(r#"["inside", "main"]"#, r#"["inside", "mian"]"#);
    let refused = Scenario::of(&broken).send(0.0, LAN, ping("10.0.0.5", "10.0.0.1", 1)).try_run().unwrap_err();
    assert!(refused.contains("there is no zone `mian`, did you mean `main`?"), "{refused}");
}

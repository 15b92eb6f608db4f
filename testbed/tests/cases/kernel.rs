//! What the kernel's own selftests ask for.

use erhu_testbed::packet::{icmp_error, ping, tcp, udp};
use erhu_testbed::scenario::{EventKind, Scenario};

use crate::{LAN, Talk, WAN, nat, nat_script, plain, vlan_zones};

const DROP_INVALID: &str = r#"forward(#{ state: "invalid" }, drop);"#;

/// KP1: a peer whose acknowledgements were lost sends its first segment again, long after it was acknowledged.
#[test]
fn an_old_segment_sent_again_is_not_invalid() {
    let talk = Talk::PLAIN;
    // The client offers 32792 bytes, scaled by two.
    let offer = [4, 2, 1, 1, 1, 3, 3, 1];
    let syn = tcp(talk.client, talk.server).flags("S").seq(100).window(32_792).tcp_options(&offer);
    let answer = tcp(talk.server, talk.seen_as).flags("SA").seq(900).ack(101).window(65_535).tcp_options(&offer);
    let ack = |number| tcp(talk.client, talk.server).flags("A").seq(101).ack(number).window(32_792);
    let mut scenario = plain(DROP_INVALID).send(0.0, LAN, syn).send(0.01, WAN, answer).send(0.02, LAN, ack(901));
    let segment = |seq| tcp(talk.server, talk.seen_as).flags("A").seq(seq).ack(101).payload_len(1460);
    for k in 0..46 {
        scenario = scenario.send(1.0 + f64::from(k) / 1000.0, WAN, segment(901 + k * 1460));
    }
    scenario = scenario.send(1.1, LAN, ack(901 + 46 * 1460)).send(1.2, WAN, segment(901));
    scenario = scenario.send(1.3, LAN, ack(901 + 46 * 1460));
    let outcome = scenario.run();
    outcome.count_left(LAN, 1 + 46 + 1);
    outcome.count_left(WAN, 2 + 1 + 1);
    outcome.drops(&[]);
    assert_eq!(outcome.counter("invalid_packets"), 0);
}

/// KP2: after the peer closed, an RST that is not exact still closes and nothing is invalid.
#[test]
fn an_inexact_reset_is_accepted_when_closing() {
    let talk = Talk::PLAIN;
    let scenario = talk.open(plain(DROP_INVALID), 0.0);
    let data = |seq, flags| tcp(talk.server, talk.seen_as).flags(flags).seq(seq).ack(101);
    let scenario =
        scenario.send(0.9, WAN, data(901, "A").payload_len(1000)).send(1.0, WAN, data(1901, "FA").payload_len(1099));
    let scenario = talk.forth(scenario, 1.1, "A", 101, 3001).command(1.2, "conntrack:-L");
    let scenario = talk.forth(scenario, 1.3, "RA", 101, 3001).command(1.4, "conntrack:-L");
    let outcome = talk.back(scenario, 1.5, "R", 2001, 0).run();
    assert_eq!(outcome.listed(1), ["tcp CLOSE_WAIT 10.1.1.1:40000>10.2.2.2:80 10.2.2.2:80>10.1.1.1:40000 [ASSURED]"]);
    assert_eq!(outcome.listed(2), ["tcp CLOSE 10.1.1.1:40000>10.2.2.2:80 10.2.2.2:80>10.1.1.1:40000 [ASSURED]"]);
    outcome.count_left(LAN, 4);
    outcome.drops(&[]);
    assert_eq!(outcome.counter("invalid_packets"), 0);
}

/// KP4: a peer that remembers an older connection answers a SYN with a challenge; the reset it asks for passes, and the
/// SYN that follows opens the connection.
#[test]
fn a_challenge_to_a_syn_leads_to_a_new_try() {
    let talk = Talk::PLAIN;
    let scenario = talk.forth(plain(DROP_INVALID), 0.0, "S", 100, 0);
    let scenario = talk.back(scenario, 0.1, "A", 145_824_453, 643_160_523).command(0.15, "conntrack:-L");
    let scenario = talk.forth(scenario, 0.2, "R", 643_160_523, 0);
    let scenario = talk.forth(scenario, 1.0, "S", 100, 0).command(1.05, "conntrack:-L");
    let scenario = talk.back(scenario, 1.1, "SA", 900, 101);
    let outcome = talk.forth(scenario, 1.2, "A", 101, 901).run();
    assert!(outcome.listed(1)[0].starts_with("tcp SYN_SENT "), "{outcome}");
    assert_eq!(outcome.listed(2), ["tcp SYN_SENT 10.1.1.1:40000>10.2.2.2:80 10.2.2.2:80>10.1.1.1:40000 [UNREPLIED]"]);
    outcome.table(&["tcp ESTABLISHED 10.1.1.1:40000>10.2.2.2:80 10.2.2.2:80>10.1.1.1:40000 [ASSURED]"]);
    outcome.count_left(WAN, 4);
    outcome.count_left(LAN, 2);
    outcome.drops(&[]);
    assert_eq!(outcome.counter("invalid_packets"), 0);
}

/// KS2: two hosts send to each other from the same pair of ports at one instant, while everything is flushed again and
/// again: the ports never change.
#[test]
fn both_directions_at_once_keep_their_ports() {
    let mut scenario = plain("").workers(4);
    for round in 0..20 {
        let at = f64::from(round);
        scenario = scenario
            .send(at, LAN, udp("10.1.1.1:56789", "10.2.2.2:56790"))
            .send(at, WAN, udp("10.2.2.2:56790", "10.1.1.1:56789"))
            .command(at + 0.5, "conntrack:-F");
    }
    let outcome = scenario.run();
    outcome.left(LAN, &["udp 10.2.2.2:56790 > 10.1.1.1:56789"; 20]);
    outcome.left(WAN, &["udp 10.1.1.1:56789 > 10.2.2.2:56790"; 20]);
    outcome.drops(&[]);
    assert_eq!(outcome.count_events(EventKind::New), 20);
    assert_eq!(outcome.counter("clash_remapped"), 0);
}

/// KS4: a flush of one zone leaves the others alone; a flush without a zone empties all.
#[test]
fn a_flush_is_of_one_zone_or_of_all() {
    let mut scenario = vlan_zones("[123, 124, 125]");
    for vlan in [None, Some(123), Some(124), Some(125)] {
        let side = erhu_testbed::scenario::Side { port: "lan", vlan };
        scenario = scenario.send_all(0.0, side, [1, 2].map(|port| udp(&format!("10.1.1.1:{port}"), "10.2.2.2:53")));
    }
    let scenario = scenario
        .command(1.0, "conntrack:-F -w 124")
        .command(1.1, "conntrack:-L")
        .command(1.2, "conntrack:-F")
        .command(1.3, "conntrack:-L");
    let outcome = scenario.run();
    let of = |zone: &str, port: u16| {
        format!("udp 10.1.1.1:{port}>10.2.2.2:53{zone} 10.2.2.2:53>10.1.1.1:{port}{zone} [UNREPLIED]")
    };
    let mut left: Vec<_> = ["", "@123", "@125"].iter().flat_map(|z| [of(z, 1), of(z, 2)]).collect();
    left.sort();
    assert_eq!(outcome.listed(2), left);
    assert!(outcome.listed(4).is_empty(), "{outcome}");
    outcome.table(&[]);
}

/// KS5: a hop behind the router has a smaller MTU; its error reaches the host inside, related.
#[test]
fn an_error_about_the_mtu_behind_the_router_is_related() {
    let count = r#"forward(#{ state: "related", proto: "icmp", icmp_type: 3 }, [count("related"), accept]);"#;
    let big = |bytes| ping("10.0.0.5", "192.0.2.1", 7).df().payload_len(bytes);
    let translated = ping("198.51.100.10", "192.0.2.1", 7).df().ttl(63).payload_len(1300).l3();
    let hop = icmp_error("203.0.113.1", "198.51.100.10", 3, 4).next_hop_mtu(1280).about_bytes(&translated, 548);
    let outcome = Scenario::of(&nat_script(r#"addresses: "198.51.100.10""#, count))
        .send(0.0, LAN, big(1000))
        .send(1.0, LAN, big(1300))
        .send(1.1, WAN, hop)
        .run();
    outcome.count_left(WAN, 2);
    outcome.left(LAN, &["icmp 203.0.113.1 > 10.0.0.5 3/4 about icmp 10.0.0.5 > 192.0.2.1 7"]);
    assert_eq!(outcome.only(LAN).icmp().next_hop_mtu(), 1280);
    assert_eq!(outcome.only(LAN).l3().len(), 576);
    assert_eq!(outcome.stat(&["named", "related", "packets"]), 1);
    outcome.drops(&[]);
}

/// KS5: the router that makes such an error does not count it related.
#[test]
fn an_error_about_the_mtu_of_the_router_itself_is_not_forwarded() {
    let rules = r#"
        interface("lan", #{ port: "lan", address: ["10.1.1.254/24"] });
        interface("wan", #{ port: "wan", address: ["10.2.2.254/24"], mtu: 1280 });
        forward(#{ state: "related" }, [count("related"), accept]);
    "#;
    let outcome = Scenario::of(rules).send(0.0, LAN, ping("10.1.1.1", "10.2.2.2", 7).df().payload_len(1300)).run();
    outcome.left(LAN, &["icmp 10.1.1.254 > 10.1.1.1 3/4 about icmp 10.1.1.1 > 10.2.2.2 7"]);
    assert_eq!(outcome.only(LAN).icmp().next_hop_mtu(), 1280);
    outcome.left(WAN, &[]);
    outcome.drops(&[("too_big", 1)]);
    assert_eq!(outcome.stat(&["named", "related", "packets"]), 0);
}

/// KS7: a redirect about a connection is related to it.
#[test]
fn a_redirect_is_related() {
    let translated = udp("198.51.100.10:5353", "192.0.2.1:53").ttl(63).l3();
    let outcome = nat()
        .send(0.0, LAN, udp("10.0.0.5:5353", "192.0.2.1:53"))
        .send(0.1, WAN, icmp_error("198.51.100.1", "198.51.100.10", 5, 1).about(&translated))
        .run();
    outcome.left(LAN, &["icmp 198.51.100.1 > 10.0.0.5 5/1 about udp 10.0.0.5:5353 > 192.0.2.1:53"]);
    outcome.drops(&[]);
}

/// KS10: the count, the full list and the lists per protocol agree, and no line is there twice.
#[test]
fn counting_and_listing_agree() {
    let mut scenario = plain("");
    for k in 0..200_u16 {
        let at = f64::from(k) / 1000.0;
        scenario = scenario.send(at, LAN, udp(&format!("10.1.1.{}:{}", k % 50 + 1, 1000 + k), "10.2.2.2:53")).send(
            at,
            LAN,
            ping(&format!("10.1.1.{}", k % 50 + 1), "10.2.2.2", k),
        );
    }
    let verbs = ["-C", "-L", "-L -p udp", "-L -p icmp"];
    let outcome = verbs.iter().fold(scenario, |s, verb| s.command(1.0, &format!("conntrack:{verb}"))).run();
    assert_eq!(outcome.said(1).lines().next().map(str::trim), Some("400"), "{outcome}");
    let all = outcome.listed(2);
    let mut parts = [outcome.listed(3), outcome.listed(4)].concat();
    parts.sort();
    assert_eq!((all.len(), &all), (400, &parts));
    assert!(all.windows(2).all(|w| w[0] != w[1]), "{outcome}");
}

/// KS17: a connection that crosses from a tenant's zone is masqueraded once, and answered.
#[test]
fn masquerade_over_a_crossing_translates_once() {
    let rules = r#"
        zone("inside", #{ id: 1 });
        interface("lan", #{ port: "lan", zone: "inside", address: ["10.0.0.1/24"] });
        interface("wan", #{ port: "wan", address: ["198.51.100.2/24"] });
        route("inside", "0.0.0.0/0", #{ zone: "main" });
        route("main", "0.0.0.0/0", #{ via: "198.51.100.1" });
        postrouting(#{ egress: "wan" }, masquerade);
    "#;
    let outcome = Scenario::of(rules)
        .send(0.0, LAN, udp("10.0.0.5:5353", "192.0.2.1:53"))
        .send(0.1, WAN, udp("192.0.2.1:53", "198.51.100.2:5353"))
        .run();
    outcome.left(WAN, &["udp 198.51.100.2:5353 > 192.0.2.1:53"]);
    outcome.left(LAN, &["udp 192.0.2.1:53 > 10.0.0.5:5353"]);
    outcome.table(&["udp 10.0.0.5:5353>192.0.2.1:53@1 192.0.2.1:53>198.51.100.2:5353"]);
    outcome.drops(&[]);
}

/// KS19: one tuple in two thousand zones is two thousand connections.
#[test]
fn one_tuple_lives_in_two_thousand_zones() {
    let mut scenario = vlan_zones("1..2001");
    for id in 1..=2000 {
        let side = erhu_testbed::scenario::Side::vlan("lan", id);
        scenario = scenario.send(0.0, side, udp("10.1.1.1:12345", "10.2.2.2:12345"));
    }
    let outcome = scenario.run();
    assert_eq!(outcome.entries.len(), 2000);
    let zones: std::collections::BTreeSet<_> =
        outcome.entries.iter().map(|e| (e.original.zone, e.reply.zone)).collect();
    assert_eq!(zones, (1..=2000).map(|id| (id, id)).collect());
    assert_eq!(outcome.port("wan").iter().filter(|s| !s.is_arp()).count(), 2000);
    outcome.drops(&[]);
}

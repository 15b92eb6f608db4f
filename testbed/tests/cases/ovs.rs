//! What Open vSwitch's system tests ask for.

use erhu_testbed::packet::{Packet, icmp_error, ping, pong, tcp, udp};
use erhu_testbed::scenario::{EventKind, Outcome, Scenario, Side};

use crate::{BLUE, FIREWALL, GREEN, LAN, Talk, WAN, nat, nat_script, nat_with, plain, tenants, vlan_zones};

/// O1: what nobody asked for is never established; once the other side opened, the same packet is.
#[test]
fn an_unsolicited_packet_is_established_only_after_the_other_side_opened() {
    let rules = r#"
        forward(#{ state: "established" }, [count("established"), accept]);
        forward(#{ ingress: "lan", state: "new" }, accept);
        policy("forward", drop);
    "#;
    let unsolicited = || udp("10.2.2.2:2", "10.1.1.1:1");
    let outcome = plain(rules)
        .send(0.0, WAN, unsolicited())
        .send(1.0, LAN, udp("10.1.1.1:1", "10.2.2.2:2"))
        .send(2.0, WAN, unsolicited())
        .run();
    outcome.left(LAN, &["udp 10.2.2.2:2 > 10.1.1.1:1"]);
    assert!(Outcome::seconds(outcome.only(LAN)) >= 2.0);
    outcome.drops(&[("policy", 1)]);
    outcome.table(&["udp 10.1.1.1:1>10.2.2.2:2 10.2.2.2:2>10.1.1.1:1"]);
    assert_eq!(outcome.stat(&["named", "established", "packets"]), 1);
}

/// O4: a deletion by ICMP type, code and id ends only that echo.
#[test]
fn one_echo_is_deleted_by_its_id() {
    let outcome = plain("")
        .send_all(0.0, LAN, [7, 8].map(|id| ping("10.1.1.1", "10.2.2.2", id)))
        .command(1.0, "conntrack:-D -p icmp --icmp-type 8 --icmp-code 0 --icmp-id 7")
        .run();
    assert_eq!(outcome.listed(1), ["icmp 10.1.1.1>10.2.2.2#7 10.2.2.2>10.1.1.1#7 [UNREPLIED]"]);
    outcome.table(&["icmp 10.1.1.1>10.2.2.2#8 10.2.2.2>10.1.1.1#8 [UNREPLIED]"]);
}

/// O5: a deletion by any one part of the tuple ends exactly the connection that has it, not its mirror image.
#[test]
fn one_part_of_a_tuple_is_enough_to_delete() {
    for filter in ["-s 10.1.1.1", "-d 10.2.2.2", "-p udp --sport 1", "-p udp --dport 2"] {
        let outcome = plain("")
            .send(0.0, LAN, udp("10.1.1.1:1", "10.2.2.2:2"))
            .send(0.0, WAN, udp("10.2.2.2:5", "10.1.1.1:6"))
            .command(1.0, &format!("conntrack:-D {filter}"))
            .run();
        outcome.table(&["udp 10.2.2.2:5>10.1.1.1:6 10.1.1.1:6>10.2.2.2:5 [UNREPLIED]"]);
    }
}

/// O10: a flush of zone 5 keeps zone 0, one of zone 0 keeps zone 5, one without a zone empties all.
#[test]
fn zone_zero_is_a_zone_to_flush() {
    let all = [("conntrack:-F -w 5", "main"), ("conntrack:-F -w 0", "5"), ("conntrack:-F", "none")];
    for (command, survivor) in all {
        let outcome = vlan_zones("[5]")
            .send(0.0, LAN, udp("10.1.1.1:1", "10.2.2.2:2"))
            .send(0.0, Side::vlan("lan", 5), udp("10.1.1.1:1", "10.2.2.2:2"))
            .command(1.0, command)
            .run();
        match survivor {
            "main" => outcome.table(&["udp 10.1.1.1:1>10.2.2.2:2 10.2.2.2:2>10.1.1.1:1 [UNREPLIED]"]),
            "5" => outcome.table(&["udp 10.1.1.1:1>10.2.2.2:2@5 10.2.2.2:2>10.1.1.1:1@5 [UNREPLIED]"]),
            _ => outcome.table(&[]),
        }
    }
}

/// O11: of 21 connections, the 20 from one port are deleted and one is left.
#[test]
fn a_deletion_by_source_port_leaves_the_rest() {
    let mut packets: Vec<_> = (1..=20).map(|port| udp("10.1.1.1:1", &format!("10.2.2.2:{port}"))).collect();
    packets.push(udp("10.1.1.1:2", "10.2.2.2:1"));
    let outcome = vlan_zones("[1]")
        .send_all(0.0, Side::vlan("lan", 1), packets)
        .command(1.0, "conntrack:-D -w 1 -p udp --sport 1")
        .run();
    assert_eq!(outcome.listed(1).len(), 20);
    outcome.table(&["udp 10.1.1.1:2>10.2.2.2:1@1 10.2.2.2:1>10.1.1.1:2@1 [UNREPLIED]"]);
}

/// O14, O86: the count is 1 after a connection and 0 after a flush.
#[test]
fn the_count_follows_the_table() {
    let outcome = plain("")
        .send(0.0, LAN, udp("10.1.1.1:1", "10.2.2.2:2"))
        .command(1.0, "conntrack:-C")
        .command(2.0, "conntrack:-F")
        .command(3.0, "conntrack:-C")
        .run();
    let count = |k| outcome.said(k).lines().next().map(|l| l.trim().to_owned());
    assert_eq!((count(1).as_deref(), count(3).as_deref()), (Some("1"), Some("0")), "{outcome}");
}

/// O16: where the SYN was never tracked, the SYN/ACK is invalid: it fails where invalid packets are dropped and passes
/// where they are let through.
#[test]
fn the_answer_to_an_untracked_syn_is_invalid() {
    let untracked = r#"raw(#{ ingress: "lan" }, notrack);"#;
    let play = |rules: &str| {
        let scenario = plain(&format!("{untracked}{rules}"));
        let scenario = Talk::PLAIN.forth(scenario, 0.0, "S", 100, 0);
        Talk::PLAIN.back(scenario, 0.1, "SA", 900, 101).run()
    };
    let strict = play(FIREWALL);
    strict.left(WAN, &["tcp 10.1.1.1:40000 > 10.2.2.2:80 S"]);
    strict.left(LAN, &[]);
    strict.drops(&[("rule", 1)]);
    let lenient = play("");
    lenient.left(LAN, &["tcp 10.2.2.2:80 > 10.1.1.1:40000 SA"]);
    lenient.drops(&[]);
    lenient.table(&[]);
}

/// O17: a connection's reply is found where its zone is, and nowhere else.
#[test]
fn a_reply_on_an_interface_of_another_zone_finds_nothing() {
    let rules = r#"
        forward(#{ state: "established" }, accept);
        forward(#{ ingress: ["lan.1", "lan.2"], state: "new" }, accept);
        policy("forward", drop);
    "#;
    let (one, two) = ("10.1.1.1:1", "10.2.2.2:2");
    let outcome = Scenario::of(&crate::vlan_zones_script("[1, 2]", "", rules))
        .send(0.0, Side::vlan("lan", 1), udp(one, two))
        .send(0.1, Side::vlan("wan", 1), udp(two, one))
        .send(0.2, Side::vlan("lan", 2), udp(one, "10.2.2.2:3"))
        .send(0.3, Side::vlan("wan", 1), udp("10.2.2.2:3", one))
        .run();
    outcome.left(Side::vlan("lan", 1), &["udp 10.2.2.2:2 > 10.1.1.1:1"]);
    outcome.left(Side::vlan("lan", 2), &[]);
    outcome.drops(&[("policy", 1)]);
    outcome.table(&[
        "udp 10.1.1.1:1>10.2.2.2:2@1 10.2.2.2:2>10.1.1.1:1@1",
        "udp 10.1.1.1:1>10.2.2.2:3@2 10.2.2.2:3>10.1.1.1:1@2 [UNREPLIED]",
    ]);
}

/// O28: one rule lets new connections to port 80 in; everything after the first packet is established.
#[test]
fn a_rule_for_new_packets_is_enough_for_a_conversation() {
    let rules = r#"
        forward(#{ state: "established" }, accept);
        forward(#{ state: "new", proto: "tcp", dport: 80 }, [count("new"), accept]);
        policy("forward", drop);
    "#;
    let talk = Talk::PLAIN;
    let scenario = talk.open(plain(rules), 0.0);
    let scenario = scenario
        .send(
            0.1,
            LAN,
            tcp(talk.client, talk.server).flags("PA").seq(101).ack(901).payload(b"GET / HTTP/1.0\r\n\r\n"),
        )
        .send(
            0.2,
            WAN,
            tcp(talk.server, talk.seen_as).flags("PA").seq(901).ack(119).payload(b"HTTP/1.0 200 OK\r\n\r\n"),
        );
    let outcome = scenario.send(1.0, LAN, tcp("10.1.1.1:40001", "10.2.2.2:81").flags("S")).run();
    outcome.count_left(WAN, 3);
    outcome.count_left(LAN, 2);
    outcome.drops(&[("policy", 1)]);
    assert_eq!(outcome.stat(&["named", "new", "packets"]), 1);
}

/// O32: two requests before any reply are one connection, and both are new.
#[test]
fn requests_before_a_reply_are_all_new() {
    let rules = r#"
        forward(#{ state: "new" }, [count("new"), accept]);
        policy("forward", drop);
    "#;
    let request = || ping("10.1.1.1", "10.2.2.2", 7);
    let outcome = plain(rules)
        .send(0.0, LAN, request())
        .send(0.1, LAN, request())
        .send(0.2, WAN, request().seen().answer())
        .run();
    outcome.count_left(WAN, 2);
    outcome.drops(&[("policy", 1)]);
    assert_eq!(outcome.stat(&["named", "new", "packets"]), 2);
    assert_eq!(outcome.count_events(EventKind::New), 1);
}

/// O38: two whole lives on one tuple are two connections, each with one new packet.
#[test]
fn a_tuple_used_again_is_a_new_connection() {
    let rules = r#"forward(#{ state: "new" }, [count("new"), accept]);"#;
    let talk = Talk::PLAIN;
    let scenario = talk.close(talk.open(plain(rules), 0.0), 1.0);
    let scenario = talk.forth(scenario, 5.0, "S", 500_000, 0);
    let scenario = talk.back(scenario, 5.1, "SA", 700_000, 500_001);
    let scenario = talk.forth(scenario, 5.2, "A", 500_001, 700_001);
    let scenario = talk.forth(scenario, 6.0, "FA", 500_001, 700_001);
    let scenario = talk.back(scenario, 6.1, "FA", 700_001, 500_002);
    let outcome = talk.forth(scenario, 6.2, "A", 500_002, 700_002).run();
    assert_eq!(outcome.stat(&["named", "new", "packets"]), 2);
    assert_eq!(outcome.count_events(EventKind::New), 2);
    outcome.table(&["tcp TIME_WAIT 10.1.1.1:40000>10.2.2.2:80 10.2.2.2:80>10.1.1.1:40000 [ASSURED]"]);
    outcome.drops(&[]);
}

/// O50: a closed port's answer is related to the datagram it is about.
#[test]
fn port_unreachable_is_related() {
    let rules = r#"
        forward(#{ state: "related" }, [count("related"), accept]);
        forward(#{ state: "new", ingress: "lan" }, accept);
        policy("forward", drop);
    "#;
    let datagram = udp("10.1.1.1:1", "10.2.2.2:10000").payload_len(16);
    let outcome = plain(rules)
        .send(0.0, LAN, datagram.clone())
        .send(0.1, WAN, icmp_error("10.2.2.2", "10.1.1.1", 3, 3).about_whole(&datagram.ttl(63).l3()))
        .run();
    outcome.left(LAN, &["icmp 10.2.2.2 > 10.1.1.1 3/3 about udp 10.1.1.1:1 > 10.2.2.2:10000"]);
    assert_eq!(outcome.only(LAN).l3().len(), 72);
    assert_eq!(outcome.stat(&["named", "related", "packets"]), 1);
    outcome.drops(&[]);
}

/// O52: an error about an unknown datagram is invalid; one by a third party about a known one is related, and makes no
/// connection of that party.
#[test]
fn errors_are_judged_by_what_they_quote_not_by_who_sends_them() {
    let datagram = udp("10.1.1.1:41614", "10.2.2.2:5555");
    let error = |from| icmp_error(from, "10.1.1.1", 3, 3).about(&datagram.clone().ttl(63).l3());
    let outcome = plain(FIREWALL)
        .send(0.0, WAN, error("10.2.2.2"))
        .send(1.0, LAN, datagram.clone())
        .send(2.0, WAN, error("10.2.2.3"))
        .run();
    outcome.left(LAN, &["icmp 10.2.2.3 > 10.1.1.1 3/3 about udp 10.1.1.1:41614 > 10.2.2.2:5555"]);
    outcome.drops(&[("rule", 1)]);
    outcome.table(&["udp 10.1.1.1:41614>10.2.2.2:5555 10.2.2.2:5555>10.1.1.1:41614 [UNREPLIED]"]);
}

/// O55: an error about a translated datagram is restored to what the host sent, with right checksums.
#[test]
fn an_error_about_a_translated_datagram_is_restored() {
    let sent = udp("10.0.0.5:5353", "192.0.2.1:53").payload(b"question");
    let scenario = nat_with(r#"addresses: "198.51.100.240-198.51.100.254""#).send(0.0, LAN, sent.clone());
    let outcome = scenario
        .answered(WAN, 0.1, |left| {
            Some(icmp_error("192.0.2.1", &left.source().ip().to_string(), 3, 3).about_whole(left.l3()))
        })
        .run();
    outcome.left(LAN, &["icmp 192.0.2.1 > 10.0.0.5 3/3 about udp 10.0.0.5:5353 > 192.0.2.1:53"]);
    assert_eq!(outcome.only(LAN).quoted().checksum_ok, Some(true));
    assert_eq!(&outcome.only(LAN).payload()[28..], b"question");
    outcome.drops(&[]);
}

/// O83: a limit of 0 admits none.
#[test]
fn a_zone_with_limit_zero_has_no_connections() {
    let outcome = Scenario::of(&crate::tenants_script("limit: 0", "", ""))
        .send(0.0, BLUE, udp("10.0.0.5:5000", "192.0.2.1:53"))
        .send(0.0, GREEN, udp("10.0.0.5:5000", "192.0.2.1:53"))
        .run();
    outcome.left(WAN, &["udp 198.51.100.20:5000 > 192.0.2.1:53"]);
    outcome.drops(&[("zone_limit", 1)]);
    assert_eq!(outcome.zone_drops("blue", "zone_limit"), 1);
}

/// O92: a range of ports given with the action is kept to, at random.
#[test]
fn ports_of_the_action_are_kept_to() {
    let rules =
        r#"postrouting(#{ zone: "inside" }, snat(#{ to: "198.51.100.30", ports: "34567-34568", random: true }));"#;
    let outcome = Scenario::of(&nat_script(r#"addresses: "198.51.100.10""#, rules))
        .send_all(0.0, LAN, [1, 2].map(|port| tcp(&format!("10.0.0.5:{port}"), "192.0.2.1:80").flags("S")))
        .answered(WAN, 0.1, |left| Some(left.answer().flags("SA").seq(900).ack(left.tcp().seq + 1)))
        .run();
    let mut sources: Vec<_> = outcome.packets(WAN).iter().map(|s| s.source().to_string()).collect();
    sources.sort();
    assert_eq!(sources, ["198.51.100.30:34567", "198.51.100.30:34568"], "{outcome}");
    outcome.count_left(LAN, 2);
    outcome.drops(&[]);
}

/// O94: three hosts ping with one id from one address; each gets its own answers with its own id.
#[test]
fn echo_ids_that_clash_are_changed_and_changed_back() {
    let hosts = ["10.0.0.11", "10.0.0.13", "10.0.0.14"];
    let outcome = nat()
        .send_every(0.0, 0.1, LAN, hosts.map(|host| ping(host, "192.0.2.1", 500)))
        .answered(WAN, 0.05, |left| Some(left.answer()))
        .run();
    let ids: Vec<_> = outcome.packets(WAN).iter().map(|s| s.icmp().id()).collect();
    assert_eq!(ids[0], 500);
    assert!(ids[1] != ids[2] && !ids[1..].contains(&500), "{outcome}");
    outcome
        .left(LAN, &hosts.map(|host| pong("192.0.2.1", host, 500).seen().to_string()).each_ref().map(|s| s.as_str()));
    outcome.drops(&[]);
}

/// O95: the only port is taken: the second connection fails, counted, and the table still shows one.
#[test]
fn the_second_connection_on_the_only_port_fails() {
    let syn = |port: u16| tcp(&format!("10.0.0.5:{port}"), "192.0.2.1:80").flags("S");
    let outcome = nat_with(r#"addresses: "198.51.100.10", ports: 34568"#)
        .send(0.0, LAN, syn(1))
        .send_every(1.0, 1.0, LAN, [syn(2), syn(2)])
        .run();
    outcome.left(WAN, &["tcp 198.51.100.10:34568 > 192.0.2.1:80 S"]);
    outcome.drops(&[("pool_exhausted", 2)]);
    assert_eq!(outcome.entries.len(), 1);
}

/// O22: a mark set before tracking is what later rules see; another mark does not match.
#[test]
fn a_mark_is_seen_by_later_rules() {
    let rules = r#"
        raw(#{ dport: 1 }, mark(0x5));
        raw(#{ dport: 2 }, mark(0x15));
        forward(#{ mark: "0x5/0xf", state: "new" }, [count("masked"), continue_]);
        forward(#{ mark: 5 }, accept);
        policy("forward", drop);
    "#;
    let to = |port: u16| -> Packet { udp("10.1.1.1:9", &format!("10.2.2.2:{port}")) };
    let outcome = plain(rules).send_all(0.0, LAN, [to(1), to(2), to(3)]).run();
    outcome.left(WAN, &["udp 10.1.1.1:9 > 10.2.2.2:1"]);
    outcome.drops(&[("policy", 2)]);
    assert_eq!(outcome.stat(&["named", "masked", "packets"]), 2);
}

/// O80: five connections in each of two zones with a limit of three: three each, the first three.
#[test]
fn the_first_connections_up_to_the_limit_stay() {
    let packets = || (2001..=2005).map(|port| udp(&format!("10.0.0.5:{port}"), "192.0.2.1:53"));
    let outcome = Scenario::of(&crate::tenants_script("limit: 3", "limit: 3", ""))
        .send_all(0.0, BLUE, packets())
        .send_all(0.0, GREEN, packets())
        .run();
    let line = |zone: u16, address: &str, port: u16| {
        format!("udp 10.0.0.5:{port}>192.0.2.1:53@{zone} 192.0.2.1:53>{address}:{port} [UNREPLIED]")
    };
    let want: Vec<_> =
        (2001..=2003).flat_map(|port| [line(1, "198.51.100.10", port), line(2, "198.51.100.20", port)]).collect();
    outcome.table(&want.iter().map(String::as_str).collect::<Vec<_>>());
    outcome.drops(&[("zone_limit", 4)]);
    assert_eq!((outcome.zone_drops("blue", "zone_limit"), outcome.zone_drops("green", "zone_limit")), (2, 2));
}

/// O82: where the limit is taken away by a new rule set, there is none.
#[test]
fn a_limit_taken_away_is_no_limit() {
    let packets = |first: u16| (first..first + 5).map(|port| udp(&format!("10.0.0.5:{port}"), "192.0.2.1:53"));
    let outcome = Scenario::of(&crate::tenants_script("limit: 3", "", ""))
        .send_all(0.0, BLUE, packets(1))
        .apply(1.0, &crate::tenants_script("", "", ""))
        .send_all(2.0, BLUE, packets(101))
        .run();
    assert_eq!(outcome.entries.len(), 8, "{outcome}");
    outcome.drops(&[("zone_limit", 2)]);
}

/// Two tenants with the same tuple are two connections.
#[test]
fn tenants_are_told_apart_by_interface_alone() {
    let packet = || udp("10.0.0.5:5000", "192.0.2.1:53");
    let outcome = tenants().send(0.0, BLUE, packet()).send(0.0, GREEN, packet()).run();
    outcome.table(&[
        "udp 10.0.0.5:5000>192.0.2.1:53@1 192.0.2.1:53>198.51.100.10:5000 [UNREPLIED]",
        "udp 10.0.0.5:5000>192.0.2.1:53@2 192.0.2.1:53>198.51.100.20:5000 [UNREPLIED]",
    ]);
}

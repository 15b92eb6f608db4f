//! ICMP errors about translated connections, and those the router makes.

use erhu_testbed::packet::{Packet, icmp_error, ping, pong, tcp, udp};
use erhu_testbed::scenario::{EventKind, Outcome, Scenario};

use crate::{FIREWALL, LAN, Talk, WAN, nat, plain};

const SENT: &str = "udp 10.0.0.5:5353 > 192.0.2.1:53";

fn query() -> Packet {
    udp("10.0.0.5:5353", "192.0.2.1:53").payload(b"a question of some length")
}

/// What `query` is when it has left.
fn query_outside() -> Packet {
    udp("198.51.100.10:5353", "192.0.2.1:53").payload(b"a question of some length").ttl(63)
}

/// After a query, one error from outside.
fn after_query(error: Packet) -> Outcome {
    nat().send(0.0, LAN, query()).send(0.1, WAN, error).run()
}

fn from_outside() -> Packet {
    icmp_error("203.0.113.9", "198.51.100.10", 3, 3)
}

#[track_caller]
fn delivered(outcome: &Outcome) {
    outcome.left(LAN, &[&format!("icmp 203.0.113.9 > 10.0.0.5 3/3 about {SENT}")]);
    outcome.drops(&[]);
}

/// T136: a quoted packet with IP options.
#[test]
fn a_quote_with_ip_options_is_translated() {
    let options = [0x94, 4, 0, 0]; // router alert, RFC 2113
    delivered(&after_query(from_outside().about(&query_outside().options(&options).l3())));
}

/// T136: a quoted packet of which no more than eight bytes of layer 4 are there: the part of the checksum that they
/// hold is right.
#[test]
fn a_quote_of_eight_bytes_is_translated() {
    let outcome = after_query(from_outside().about(&query_outside().l3()));
    delivered(&outcome);
    let as_sent = from_outside().about(&query().l3()).seen();
    assert_eq!(outcome.only(LAN).quoted().residue, as_sent.quoted().residue);
    let about_tcp = tcp("198.51.100.10:40000", "192.0.2.1:80").flags("S").ttl(63);
    let outcome = Talk::NAT
        .forth(nat(), 0.0, "S", 0, 0)
        .send(0.1, WAN, icmp_error("203.0.113.9", "198.51.100.10", 3, 1).about(&about_tcp.l3()))
        .run();
    outcome.left(LAN, &["icmp 203.0.113.9 > 10.0.0.5 3/1 about tcp 10.0.0.5:40000 > 192.0.2.1:80"]);
    assert_eq!(outcome.only(LAN).l3().len(), 20 + 8 + 20 + 8);
}

/// T136: a quoted datagram without a checksum stays without one.
#[test]
fn a_quoted_datagram_without_checksum_stays_so() {
    let bare = query_outside().no_checksum();
    let outcome = after_query(from_outside().about_whole(&bare.l3()));
    delivered(&outcome);
    assert_eq!(&outcome.only(LAN).payload()[26..28], &[0, 0]);
}

/// T136: what RFC 4884 puts after the quote is left alone.
#[test]
fn an_extension_after_the_quote_is_left_alone() {
    let mut quote = query_outside().l3();
    quote.resize(128, 0);
    quote.extend([0x20, 0, 0xdf, 0xff, 0, 4, 9, 9]); // version 2, checksum, one empty object
    let mut error = icmp_error("203.0.113.9", "198.51.100.10", 11, 0).about_bytes(&quote, quote.len());
    error = error.icmp_rest([0, 32, 0, 0]);
    let outcome = after_query(error);
    outcome.left(LAN, &[&format!("icmp 203.0.113.9 > 10.0.0.5 11/0 about {SENT}")]);
    assert_eq!(outcome.only(LAN).payload()[53..], quote[53..]);
    assert_eq!(outcome.only(LAN).icmp().rest, [0, 32, 0, 0]);
}

/// T137: a wrong checksum of the quoted IP header or of the error itself: dropped.
#[test]
fn errors_with_bad_checksums_are_dropped() {
    let inner = after_query(from_outside().about(&query_outside().bad_ip_checksum().l3()));
    let outer = after_query(from_outside().about(&query_outside().l3()).bad_checksum());
    for outcome in [inner, outer] {
        outcome.left(LAN, &[]);
        outcome.drops(&[("rule", 1)]);
        assert_eq!(outcome.counter("invalid_packets"), 1);
    }
    // The quoted packet's own checksum of layer 4 is not judged (RFC 5508 REQ-3c): it may be cut short.
    let cut = after_query(from_outside().about_whole(&query_outside().bad_checksum().l3()));
    cut.count_left(LAN, 1);
}

/// T139: an error about a packet that nothing knows is dropped silently and counted.
#[test]
fn errors_about_unknown_packets_are_dropped() {
    let unknown = udp("198.51.100.10:9999", "192.0.2.1:53").ttl(63);
    let outcome = after_query(from_outside().about(&unknown.l3()));
    outcome.left(LAN, &[]);
    outcome.count_left(WAN, 1);
    outcome.drops(&[("rule", 1)]);
    // Without a rule that drops what is invalid, the pool's address alone is enough.
    let script = crate::nat_script(r#"addresses: "198.51.100.10""#, r#"forward(#{}, accept);"#);
    let outcome = Scenario::of(&script).send(0.0, WAN, from_outside().about(&unknown.l3())).run();
    outcome.drops(&[("invalid", 1)]);
    outcome.left(LAN, &[]);
}

/// T140: an error neither refreshes nor ends the connection it is about.
#[test]
fn an_error_neither_refreshes_nor_ends() {
    let outcome = nat()
        .send(0.0, LAN, query())
        .send(10.0, WAN, from_outside().about(&query_outside().l3()))
        .send(11.0, LAN, icmp_error("10.0.0.5", "192.0.2.1", 3, 3).about(&udp("192.0.2.1:53", "10.0.0.5:5353").l3()))
        .until(20.0)
        .run();
    outcome.expires_in(":5353", 10);
    assert_eq!(outcome.count_events(EventKind::Destroy), 0);
    let open = Talk::NAT.open(nat(), 0.0);
    let quoted = tcp("198.51.100.10:40000", "192.0.2.1:80").flags("A").seq(101).ttl(63);
    let outcome = open.send(100.0, WAN, icmp_error("192.0.2.1", "198.51.100.10", 3, 1).about(&quoted.l3())).run();
    outcome.expires_in("tcp", 431_900);
    outcome.count_left(LAN, 2);
}

/// The outer destination must be who sent what is quoted.
#[test]
fn an_error_to_somebody_else_is_invalid() {
    let outcome = after_query(icmp_error("203.0.113.9", "198.51.100.2", 3, 3).about(&query_outside().l3()));
    outcome.left(LAN, &[]);
    assert_eq!(outcome.counter("invalid_packets"), 1);
}

/// Errors about echo are translated by the identifier.
#[test]
fn errors_about_echo_are_translated() {
    let outcome = nat()
        .send(0.0, LAN, ping("10.0.0.5", "192.0.2.1", 500))
        .send(0.1, LAN, ping("10.0.0.6", "192.0.2.1", 500))
        .answered(WAN, 1.0, |left| {
            Some(icmp_error("203.0.113.9", &left.source().ip().to_string(), 11, 0).about_whole(left.l3()))
        })
        .run();
    outcome.left(
        LAN,
        &[
            "icmp 203.0.113.9 > 10.0.0.5 11/0 about icmp 10.0.0.5 > 192.0.2.1 500",
            "icmp 203.0.113.9 > 10.0.0.6 11/0 about icmp 10.0.0.6 > 192.0.2.1 500",
        ],
    );
    outcome.drops(&[]);
}

/// A TTL of 1 in the error itself is spent like any other.
#[test]
fn an_error_is_not_answered_with_an_error() {
    let outcome = after_query(from_outside().about(&query_outside().l3()).ttl(1));
    outcome.left(LAN, &[]);
    outcome.count_left(WAN, 1);
    outcome.drops(&[("ttl_expired", 1)]);
}

/// No route, and no neighbour: net unreachable at once, host unreachable after three questions a second apart.
#[test]
fn unreachable_says_what_is_missing() {
    let outcome = plain("").send(0.0, LAN, udp("10.1.1.1:1", "192.0.2.1:2")).run();
    outcome.left(LAN, &["icmp 10.1.1.254 > 10.1.1.1 3/0 about udp 10.1.1.1:1 > 192.0.2.1:2"]);
    outcome.drops(&[("no_route", 1)]);
    let host = erhu_testbed::packet::arp_request("10.1.1.254", "10.1.1.1");
    let outcome = plain("")
        .silent_neighbours()
        .send(0.0, LAN, host)
        .send(0.1, LAN, udp("10.1.1.1:1", "10.2.2.2:2"))
        .until(10.0)
        .run();
    outcome.left(LAN, &["icmp 10.1.1.254 > 10.1.1.1 3/1 about udp 10.1.1.1:1 > 10.2.2.2:2"]);
    assert!((Outcome::seconds(outcome.only(LAN)) - 3.1).abs() < 0.2, "{outcome}");
    let asked: Vec<_> = outcome.frames(WAN).iter().map(ToString::to_string).collect();
    assert_eq!(asked, ["arp who-has 10.2.2.2 tell 10.2.2.254"; 3]);
    outcome.drops(&[("no_neighbour", 1)]);
}

/// No error answers a broadcast, a multicast, a fragment that is not the first, or another error.
#[test]
fn some_packets_are_never_answered() {
    let quoted = udp("10.1.1.1:1", "10.2.2.2:2").l3();
    let outcome = plain("")
        .send(0.0, LAN, udp("10.1.1.1:1", "255.255.255.255:2").mac_to([0xff; 6]))
        .send(0.1, LAN, udp("10.1.1.1:1", "224.0.0.9:2").ttl(1))
        .send(0.2, LAN, udp("10.1.1.1:1", "10.2.2.2:2").fragment(8, false).ttl(1))
        .send(0.3, LAN, icmp_error("10.1.1.1", "192.0.2.1", 3, 3).about(&quoted))
        .run();
    outcome.left(LAN, &[]);
    outcome.left(WAN, &[]);
}

/// The router answers pings to its own addresses, from either side.
#[test]
fn the_router_answers_pings() {
    let outcome = plain(FIREWALL)
        .send(0.0, LAN, ping("10.1.1.1", "10.1.1.254", 7).payload(b"near"))
        .send(0.1, LAN, ping("10.1.1.1", "10.2.2.254", 8).payload(b"far"))
        .run();
    outcome.left(
        LAN,
        &[
            &pong("10.1.1.254", "10.1.1.1", 7).seen().to_string(),
            &pong("10.2.2.254", "10.1.1.1", 8).seen().to_string(),
        ],
    );
    assert_eq!(outcome.packets(LAN)[1].payload(), b"far");
    outcome.drops(&[]);
}

/// What may not reach the router itself is decided by `input`, and its answers by `output`.
#[test]
fn input_and_output_rules_decide_on_the_routers_own_packets() {
    let request = || ping("10.1.1.1", "10.1.1.254", 7);
    let closed = plain(r#"input(#{ proto: "icmp" }, drop);"#).send(0.0, LAN, request()).run();
    closed.left(LAN, &[]);
    closed.drops(&[("rule", 1)]);
    let mute = plain(r#"output(#{ proto: "icmp", icmp_type: 0 }, drop);"#).send(0.0, LAN, request()).run();
    mute.left(LAN, &[]);
    let refused = plain(r#"policy("input", reject);"#).send(0.0, LAN, udp("10.1.1.1:1", "10.1.1.254:9")).run();
    refused.left(LAN, &["icmp 10.1.1.254 > 10.1.1.1 3/3 about udp 10.1.1.1:1 > 10.1.1.254:9"]);
    refused.drops(&[("policy", 1)]);
}

/// F4: the MTU of the way out is told to who sends more, about the packet as it was sent, translated or not.
#[test]
fn the_mtu_of_the_way_out_is_told() {
    let script = crate::nat_script(r#"addresses: "198.51.100.10""#, "")
        .replace(r#"address: ["198.51.100.2/24"]"#, r#"address: ["198.51.100.2/24"], mtu: 1300"#);
    let outcome = Scenario::of(&script)
        .send(0.0, LAN, ping("10.0.0.5", "192.0.2.1", 7).df().payload_len(1272))
        .send(1.0, LAN, ping("10.0.0.5", "192.0.2.1", 7).df().payload_len(1273))
        .run();
    outcome.count_left(WAN, 1);
    outcome.left(LAN, &["icmp 10.0.0.1 > 10.0.0.5 3/4 about icmp 10.0.0.5 > 192.0.2.1 7"]);
    let error = outcome.only(LAN);
    assert_eq!((error.icmp().next_hop_mtu(), error.quoted().length), (1300, 1301));
    assert_eq!(error.quoted().ttl, 64);
    outcome.drops(&[("too_big", 1)]);
}

/// T125: an error about the MTU behind translation quotes the host's own header.
#[test]
fn an_error_made_after_translation_quotes_what_the_host_sent() {
    let script = crate::nat_script(r#"addresses: "198.51.100.10""#, "")
        .replace(r#"address: ["198.51.100.2/24"]"#, r#"address: ["198.51.100.2/24"], mtu: 1300"#);
    let sent = udp("10.0.0.5:5353", "192.0.2.1:53").df().payload_len(1400);
    let outcome = Scenario::of(&script).send(0.0, LAN, query()).send(1.0, LAN, sent.clone()).run();
    outcome.left(LAN, &[&format!("icmp 10.0.0.1 > 10.0.0.5 3/4 about {SENT}")]);
    let quoted = &outcome.only(LAN).payload()[..28];
    assert_eq!(quoted, &sent.l3()[..28], "header and ports as the host sent them");
}

/// `reject` answers as it is told to.
#[test]
fn rejections_answer_as_they_are_told() {
    let cases = [
        ("reject", "icmp 10.1.1.254 > 10.1.1.1 3/3 about udp 10.1.1.1:1 > 10.2.2.2:2"),
        (r#"reject("admin")"#, "icmp 10.1.1.254 > 10.1.1.1 3/13 about udp 10.1.1.1:1 > 10.2.2.2:2"),
        (r#"reject("host")"#, "icmp 10.1.1.254 > 10.1.1.1 3/1 about udp 10.1.1.1:1 > 10.2.2.2:2"),
        (r#"reject("net")"#, "icmp 10.1.1.254 > 10.1.1.1 3/0 about udp 10.1.1.1:1 > 10.2.2.2:2"),
        (r#"reject("port")"#, "icmp 10.1.1.254 > 10.1.1.1 3/3 about udp 10.1.1.1:1 > 10.2.2.2:2"),
    ];
    for (action, answer) in cases {
        let outcome =
            plain(&format!("forward(#{{}}, {action});")).send(0.0, LAN, udp("10.1.1.1:1", "10.2.2.2:2")).run();
        outcome.left(LAN, &[answer]);
        outcome.drops(&[("rule", 1)]);
    }
    let reset = Talk::PLAIN.forth(plain("forward(#{}, reject);"), 0.0, "S", 100, 0).run();
    reset.left(LAN, &["tcp 10.2.2.2:80 > 10.1.1.1:40000 RA"]);
    let answer = reset.only(LAN).tcp();
    assert_eq!((answer.seq, answer.ack), (0, 101));
}

//! IPv6: forwarding, neighbours, errors, translation, next to IPv4 and like it.

use erhu_testbed::packet::read::Upper;
use erhu_testbed::packet::{
    Packet, host_mac, icmp_error, ip_protocol, neighbour_advertisement, neighbour_solicitation, ping, pong, tcp, udp,
};
use erhu_testbed::scenario::{Outcome, Scenario, router_mac};

use crate::{FIREWALL, LAN, WAN};

/// Both sides in `main`, all forwarded, with further rules.
fn plain6(rules: &str) -> Scenario {
    Scenario::of(&format!(
        r#"
        interface("lan", #{{ port: "lan", address: ["10.1.1.254/24", "2001:db8:1::fe/64"] }});
        interface("wan", #{{ port: "wan", address: ["10.2.2.254/24", "2001:db8:2::fe/64"] }});
        {rules}
        "#
    ))
}

/// A tenant with private addresses behind a pool.
fn nat66(rules: &str) -> Scenario {
    Scenario::of(&format!(
        r#"
        zone("inside", #{{ id: 1 }});
        interface("lan", #{{ port: "lan", zone: "inside", address: ["fd00::1/64"] }});
        interface("wan", #{{ port: "wan", address: ["2001:db8::2/64"] }});
        pool("public", #{{ addresses: "2001:db8::10" }});
        route("inside", "::/0", #{{ zone: "main" }});
        route("main", "::/0", #{{ via: "2001:db8::1" }});
        postrouting(#{{ zone: "inside", egress: "wan" }}, snat(#{{ pool: "public" }}));
        {FIREWALL}
        {rules}
        "#
    ))
}

const HOST: &str = "2001:db8:1::5";
const FAR: &str = "2001:db8:2::9";

/// Nothing is translated, the hop limit goes down, and every protocol is tracked.
#[test]
fn ipv6_is_forwarded_and_tracked_as_it_is() {
    let outcome = plain6("")
        .send(0.0, LAN, udp("[2001:db8:1::5]:1000", "[2001:db8:2::9]:53").payload_len(9))
        .send(0.1, LAN, tcp("[2001:db8:1::5]:1001", "[2001:db8:2::9]:80").flags("S").tos(0xb8))
        .send(0.2, LAN, ping(HOST, FAR, 77))
        .send(0.3, WAN, pong(FAR, HOST, 77))
        .send(0.4, LAN, udp("[2001:db8:1::5]:1000", "[2001:db8:2::9]:53").no_checksum().payload_len(9))
        .run();
    outcome.left(
        WAN,
        &[
            "udp [2001:db8:1::5]:1000 > [2001:db8:2::9]:53",
            "tcp [2001:db8:1::5]:1001 > [2001:db8:2::9]:80 S",
            "icmpv6 2001:db8:1::5 > 2001:db8:2::9 echo-request 77",
            "udp [2001:db8:1::5]:1000 > [2001:db8:2::9]:53",
        ],
    );
    outcome.left(LAN, &["icmpv6 2001:db8:2::9 > 2001:db8:1::5 echo-reply 77"]);
    let left = outcome.packets(WAN);
    assert_eq!((left[1].ip6().hop_limit, left[1].ip6().class), (63, 0xb8), "{outcome}");
    assert!(!left[3].udp().has_checksum, "none came, none left\n{outcome}");
    let line = outcome.lines.iter().find(|line| line.contains("icmpv6")).expect("a line about the echo");
    assert!(line.starts_with("ipv6     10 icmpv6   58 "), "{line}");
    assert!(line.contains(" src=2001:db8:1::5 dst=2001:db8:2::9 type=128 code=0 id=77 "), "{line}");
    assert!(line.contains(" src=2001:db8:2::9 dst=2001:db8:1::5 type=129 code=0 id=77 "), "{line}");
    outcome.drops(&[]);
    outcome.accounted();
}

/// Extension headers are walked over, whatever is in them; what cannot be is not forwarded, or not tracked.
#[test]
fn extension_headers_are_walked_over_within_bounds() {
    let packet = |port: u16| udp(&format!("[2001:db8:1::5]:{port}"), "[2001:db8:2::9]:53").payload_len(9);
    let many = |port, count: u8| (0..count).fold(packet(port), |packet, _| packet.extension(60, b""));
    let outcome = plain6("forward(#{ state: \"invalid\" }, drop);")
        .send(0.0, LAN, packet(1).extension(0, &[5, 2, 0, 0]).extension(60, &[0; 20]).extension(43, &[0; 6]))
        .send(0.1, LAN, many(2, 8))
        .send(0.2, LAN, many(3, 9))
        .send(0.3, LAN, packet(4).extension(60, b"").extension(0, b""))
        .send(0.4, LAN, packet(5).extension(60, b"").cut(60))
        .run();
    outcome.left(WAN, &["udp [2001:db8:1::5]:1 > [2001:db8:2::9]:53", "udp [2001:db8:1::5]:2 > [2001:db8:2::9]:53"]);
    assert_eq!(outcome.packets(WAN)[0].ip6().extensions, [0, 60, 43], "{outcome}");
    outcome.drops(&[("rule", 1), ("malformed", 2)]);
}

/// The router asks for a neighbour as it asks with ARP, and holds what waits.
#[test]
fn a_neighbour_is_asked_for_at_its_group_and_its_answer_is_used() {
    let outcome = plain6("")
        .silent_neighbours()
        .send(0.0, LAN, udp("[2001:db8:1::5]:1000", "[2001:db8:2::9]:53"))
        .send(0.5, WAN, neighbour_advertisement(FAR, ("2001:db8:2::fe", router_mac(1))))
        .run();
    let frames = outcome.frames(WAN);
    // The router asks from its link-local address.
    assert_eq!(frames[0].to_string(), "nd who-has 2001:db8:2::9 tell fe80::65:72ff:fe68:7501", "{outcome}");
    let asked = frames[0].ip6();
    assert_eq!(frames[0].mac_to, [0x33, 0x33, 0xff, 0, 0, 9]);
    assert_eq!((asked.destination.to_string().as_str(), asked.hop_limit), ("ff02::1:ff00:9", 255));
    assert_eq!(frames[0].nd().and_then(|nd| nd.mac), Some(router_mac(1)), "it says where it is");
    let left = outcome.only(WAN);
    assert_eq!((left.mac_to, Outcome::seconds(left) >= 0.5), (host_mac(left.ip6().destination), true), "{outcome}");
}

/// Three questions, a second apart; then the sender is told that the host does not answer.
#[test]
fn a_neighbour_that_is_silent_is_unreachable() {
    let outcome = plain6("")
        .silent_neighbours()
        .send(0.0, LAN, neighbour_solicitation("2001:db8:1::fe", HOST))
        .send(0.1, LAN, udp("[2001:db8:1::5]:1000", "[2001:db8:2::9]:53"))
        .until(6.0)
        .run();
    let asked = outcome.frames(WAN).iter().filter(|seen| seen.nd().is_some_and(|nd| nd.asks)).count();
    assert_eq!(asked, 3, "{outcome}");
    outcome.left(
        LAN,
        &["icmpv6 2001:db8:1::fe > 2001:db8:1::5 1/3 about udp [2001:db8:1::5]:1000 > [2001:db8:2::9]:53"],
    );
    outcome.drops(&[("no_neighbour", 1)]);
}

/// O41: solicitations are answered for what is the router's, and nothing of this is tracked.
#[test]
fn solicitations_for_the_router_and_its_pools_are_answered_and_not_tracked() {
    let outcome = nat66("")
        .send(0.0, WAN, neighbour_solicitation("2001:db8::2", "2001:db8::1"))
        .send(0.1, WAN, neighbour_solicitation("2001:db8::10", "2001:db8::1"))
        .send(0.2, WAN, neighbour_solicitation("2001:db8::77", "2001:db8::1"))
        .send(0.3, WAN, neighbour_solicitation("2001:db8::2", "2001:db8::1").ttl(64))
        .run();
    let told: Vec<_> = outcome.frames(WAN).iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        ["nd 2001:db8::2 is-at 02:65:72:68:75:01", "nd 2001:db8::10 is-at 02:65:72:68:75:01"],
        "{outcome}"
    );
    let answer = outcome.frames(WAN)[0];
    assert_eq!(answer.mac_to, host_mac("2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap()));
    assert_eq!(answer.ip6().destination.to_string(), "2001:db8::1");
    assert!(answer.nd().is_some_and(|nd| nd.flags & 0xc0 == 0xc0), "a router, solicited\n{outcome}");
    outcome.table(&[]);
}

/// The router as a host, and the errors that it sends.
#[test]
fn the_router_answers_echo_and_tells_why_packets_end_here() {
    let outcome = plain6("forward(#{ dport: 25 }, reject); forward(#{ dport: 26 }, reject(\"admin\"));")
        .send(0.0, LAN, ping(HOST, "2001:db8:1::fe", 5).payload(b"here?"))
        .send(0.1, LAN, udp("[2001:db8:1::5]:1", "[2001:db8:2::9]:1").ttl(1))
        .send(0.2, LAN, udp("[2001:db8:1::5]:2", "[2001:db8:77::9]:2"))
        .send(0.3, LAN, udp("[2001:db8:1::5]:3", "[2001:db8:2::9]:25"))
        .send(0.4, LAN, tcp("[2001:db8:1::5]:4", "[2001:db8:2::9]:25").flags("S").seq(7))
        .send(0.5, LAN, udp("[2001:db8:1::5]:5", "[2001:db8:2::9]:26"))
        .send(0.6, LAN, udp("[2001:db8:1::5]:6", "[2001:db8:1::fe]:6"))
        .run();
    outcome.left(
        LAN,
        &[
            "icmpv6 2001:db8:1::fe > 2001:db8:1::5 echo-reply 5",
            "icmpv6 2001:db8:1::fe > 2001:db8:1::5 3/0 about udp [2001:db8:1::5]:1 > [2001:db8:2::9]:1",
            "icmpv6 2001:db8:1::fe > 2001:db8:1::5 1/0 about udp [2001:db8:1::5]:2 > [2001:db8:77::9]:2",
            "icmpv6 2001:db8:1::fe > 2001:db8:1::5 1/4 about udp [2001:db8:1::5]:3 > [2001:db8:2::9]:25",
            "tcp [2001:db8:2::9]:25 > [2001:db8:1::5]:4 RA",
            "icmpv6 2001:db8:1::fe > 2001:db8:1::5 1/1 about udp [2001:db8:1::5]:5 > [2001:db8:2::9]:26",
            "icmpv6 2001:db8:1::fe > 2001:db8:1::5 1/4 about udp [2001:db8:1::5]:6 > [2001:db8:1::fe]:6",
        ],
    );
    assert_eq!(outcome.packets(LAN)[4].tcp().ack, 8);
    outcome.left(WAN, &[]);
    outcome.drops(&[("no_route", 1), ("rule", 3), ("ttl_expired", 1), ("unsupported", 1)]);
}

/// F4: a packet larger than the next link is told with that link's MTU, and as much of it as fits.
#[test]
fn a_packet_too_big_for_the_next_link_is_told_with_its_mtu() {
    let outcome = Scenario::of(
        r#"
        interface("lan", #{ port: "lan", address: "2001:db8:1::fe/64" });
        interface("wan", #{ port: "wan", address: "2001:db8:2::fe/64", mtu: 1300 });
        "#,
    )
    .send(0.0, LAN, udp("[2001:db8:1::5]:1", "[2001:db8:2::9]:1").payload_len(1400 - 48))
    .send(0.1, LAN, udp("[2001:db8:1::5]:1", "[2001:db8:2::9]:1").payload_len(1300 - 48))
    .run();
    let error = outcome.only(LAN);
    assert_eq!((error.icmp().kind, error.icmp().next_hop_mtu(), error.ip6().length), (2, 1300, 1280), "{outcome}");
    outcome.count_left(WAN, 1);
    outcome.drops(&[("too_big", 1)]);
}

/// RULES: what the router never forwards, and what nobody may be told about.
#[test]
fn addresses_of_one_link_of_nobody_or_of_groups_are_not_forwarded_and_not_answered() {
    let to = |destination: &str| udp("[2001:db8:1::5]:1", &format!("[{destination}]:1"));
    let from = |source: &str| udp(&format!("[{source}]:1"), "[2001:db8:2::9]:1");
    let outcome = plain6("")
        .send_all(0.0, LAN, ["fe80::9", "ff0e::9", "::1", "::", "::ffff:10.2.2.9"].map(to))
        .send_all(0.1, LAN, ["fe80::9", "ff0e::9", "::1", "::", "::ffff:10.1.1.9"].map(from))
        .send(0.2, LAN, ip_protocol(HOST, FAR, 59))
        .run();
    outcome.left(WAN, &["protocol-59 2001:db8:1::5 > 2001:db8:2::9"]);
    outcome.left(LAN, &[]);
    outcome.drops(&[("unsupported", 10)]);
}

/// O13: a tenant pings out and is answered; nobody pings in.
#[test]
fn pings_go_out_through_nat66_and_none_comes_in() {
    let outcome = nat66("")
        .send(0.0, LAN, ping("fd00::5", "2001:db8:1::1", 500).payload(b"one"))
        .send(0.1, LAN, ping("fd00::6", "2001:db8:1::1", 500).payload(b"two"))
        .send(0.2, WAN, ping("2001:db8:1::1", "2001:db8::10", 9))
        .answered(WAN, 0.01, |seen| Some(seen.answer()))
        .run();
    assert!(outcome.packets(WAN).iter().all(|seen| seen.ends().0.ip().to_string() == "2001:db8::10"), "{outcome}");
    assert_ne!(outcome.packets(WAN)[0].icmp().id(), outcome.packets(WAN)[1].icmp().id(), "{outcome}");
    outcome.left(
        LAN,
        &["icmpv6 2001:db8:1::1 > fd00::5 echo-reply 500", "icmpv6 2001:db8:1::1 > fd00::6 echo-reply 500"],
    );
    outcome.drops(&[("no_mapping", 1)]);
}

/// O58: an unreachable about a source-translated packet is restored, with right checksums, both ways.
#[test]
fn icmpv6_errors_are_translated_with_the_packet_that_they_quote() {
    for quoted in [48, 56, 80, 400] {
        let error = |from: &str, to: &str, l3: &[u8]| icmp_error(from, to, 1, 4).about_bytes(l3, quoted);
        let opened = nat66("").send(0.0, LAN, udp("[fd00::5]:1000", "[2001:db8:1::1]:53").payload_len(100)).answered(
            WAN,
            0.01,
            |seen| Some(seen.answer().payload_len(64)),
        );
        let answer = opened.run().only(LAN).l3().to_vec();
        let outcome = opened
            .clone()
            .answered(WAN, 0.02, |seen| Some(error("2001:db8:9::9", &seen.ends().0.ip().to_string(), seen.l3())))
            .send(0.5, LAN, error("fd00::5", "2001:db8:1::1", &answer))
            .run();
        let related = outcome.packets(LAN)[1];
        assert_eq!(
            related.to_string(),
            "icmpv6 2001:db8:9::9 > fd00::5 1/4 about udp [fd00::5]:1000 > [2001:db8:1::1]:53",
            "{outcome}"
        );
        let out = outcome.packets(WAN)[1].to_string();
        assert!(
            out.starts_with("icmpv6 2001:db8::10 > 2001:db8:1::1 1/4 about udp [2001:db8:1::1]:53 > [2001:db8::10]:")
        );
        assert_eq!(outcome.entries.len(), 1, "errors make no connections\n{outcome}");
        outcome.drops(&[]);
    }
}

/// O101: TCP through NAT66, opened, closed, and seen as such.
#[test]
fn tcp_through_nat66_lives_and_ends() {
    let (host, server) = ("[fd00::5]:40000", "[2001:db8:1::1]:80");
    let segment = |flags, seq, ack| tcp(host, server).flags(flags).seq(seq).ack(ack);
    let back = |flags, seq, ack| tcp(server, "[2001:db8::10]:40000").flags(flags).seq(seq).ack(ack);
    let outcome = nat66("")
        .send(0.0, LAN, segment("S", 100, 0))
        .send(0.1, WAN, back("SA", 900, 101))
        .send(0.2, LAN, segment("A", 101, 901))
        .send(0.3, LAN, segment("PA", 101, 901).payload_len(1000))
        .send(0.4, WAN, back("A", 901, 1101))
        .run();
    outcome.count_left(WAN, 3);
    outcome.count_left(LAN, 2);
    assert!(outcome.packets(WAN).iter().all(|seen| matches!(seen.upper(), Upper::Tcp(t) if t.sport == 40000)));
    outcome.table(&[
        "tcp ESTABLISHED [fd00::5]:40000>[2001:db8:1::1]:80@1 [2001:db8:1::1]:80>[2001:db8::10]:40000 [ASSURED]",
    ]);
    outcome.drops(&[]);
}

/// Without `--answer-arp` and with: the made-up neighbour has the address's last four bytes, or what it used before.
#[test]
fn replay_answers_solicitations_as_it_answers_arp() {
    let used: Packet = udp("[2001:db8:2::9]:9", "[2001:db8:1::5]:9").mac_from([2, 7, 7, 7, 7, 7]);
    let outcome = plain6("")
        .send(0.0, WAN, used)
        .send(0.1, LAN, udp("[2001:db8:1::5]:9", "[2001:db8:2::9]:9"))
        .send(0.2, LAN, udp("[2001:db8:1::5]:9", "[2001:db8:2::a:b]:9"))
        .run();
    let macs: Vec<_> = outcome.packets(WAN).iter().map(|seen| seen.mac_to).collect();
    assert_eq!(macs, [[2, 7, 7, 7, 7, 7], [2, 0, 0, 0x0a, 0, 0x0b]], "{outcome}");
    assert_eq!(outcome.only(LAN).mac_to, [2, 0, 0, 0, 0, 5], "{outcome}");
}

/// T148: extension headers in a row are walked over, and so is the header of a fragment that is the whole packet (RFC
/// 6946); what has no upper header, or cannot be walked to it, makes no connection.
#[test]
fn chains_without_an_upper_header_make_no_connection() {
    let packet = |port: u16| udp(&format!("[2001:db8:1::5]:{port}"), "[2001:db8:2::9]:53").payload_len(8);
    let outcome = plain6("forward(#{ state: \"invalid\" }, drop);")
        .send(0.0, LAN, packet(1).extension(0, b"").extension(43, &[0; 6]).extension(60, &[1, 4, 0, 0, 0, 0]))
        // Nothing behind a hop-by-hop header, nor behind a chain.
        .send(0.1, LAN, no_next(packet(2).extension(0, b"")))
        .send(0.2, LAN, no_next(packet(3).extension(0, b"").extension(60, b"")))
        // The length ends before the datagram's header does.
        .send(0.3, LAN, packet(4).extension(60, b"").cut(14 + 40 + 8 + 4))
        // Atomic: offset 0, and none follow.
        .send(0.4, LAN, packet(5).extension(44, &[0, 0, 0, 0, 0, 9]))
        // The same number again, and one that is a fragment.
        .send(0.5, LAN, packet(6).extension(44, &[0, 1, 0, 0, 0, 9]))
        .run();
    let from = |port: u16| format!("udp [2001:db8:1::5]:{port} > [2001:db8:2::9]:53");
    let datagrams = outcome.packets(WAN).into_iter().map(ToString::to_string).filter(|s| s.starts_with("udp"));
    assert_eq!(datagrams.collect::<Vec<_>>(), [from(1), from(5)], "{outcome}");
    assert_eq!(outcome.entries.len(), 2, "{outcome}");
    outcome.drops(&[("malformed", 1), ("rule", 2), ("unsupported", 1)]);
    outcome.accounted();
}

/// The packet's last header says that nothing follows.
fn no_next(packet: Packet) -> Packet {
    let extensions = packet.seen().ip6().extensions.len();
    // Of the header before the last one the first byte names what follows.
    let at = if extensions == 1 { 40 } else { 48 };
    packet.ip_byte(at, 59)
}

/// T155: neighbour discovery on the side whose packets are translated is the router's own matter: it is answered or
/// learnt from, leaves by no other interface and makes no connection, whomever it is sent to.
#[test]
fn neighbour_discovery_inside_is_not_translated() {
    let mac = router_mac(0);
    let outcome = nat66("")
        .send(0.0, LAN, neighbour_solicitation("fd00::1", "fd00::5"))
        .send(0.1, LAN, neighbour_solicitation("2001:db8:1::1", "fd00::5"))
        .send(0.2, LAN, neighbour_advertisement("fd00::5", ("fd00::1", mac)))
        .send(0.3, LAN, neighbour_advertisement("fd00::5", ("2001:db8:1::1", mac)))
        .send(1.0, LAN, ping("fd00::5", "2001:db8:1::1", 7))
        .run();
    let frames: Vec<_> = outcome.frames(LAN).iter().map(ToString::to_string).collect();
    assert_eq!(frames, ["nd fd00::1 is-at 02:65:72:68:75:00"], "{outcome}");
    outcome.left(WAN, &["icmpv6 2001:db8::10 > 2001:db8:1::1 echo-request 7"]);
    assert_eq!(outcome.entries.len(), 1, "{outcome}");
    outcome.accounted();
}

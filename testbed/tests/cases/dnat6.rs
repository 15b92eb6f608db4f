//! Destination translation over IPv6, as over IPv4: published services, whole networks, mappings, hairpins.

use std::collections::BTreeSet;

use erhu_testbed::packet::{icmp_error, ping, tcp, udp};
use erhu_testbed::scenario::{EventKind, Scenario};

use crate::{FIREWALL, LAN, WAN};

/// Both sides in `main`, all forwarded, with further rules.
fn plain6(rules: &str) -> Scenario {
    Scenario::of(&format!(
        r#"
        interface("lan", #{{ port: "lan", address: ["2001:db8:1::fe/64"] }});
        interface("wan", #{{ port: "wan", address: ["2001:db8:2::fe/64"] }});
        {rules}
        "#
    ))
}

/// A tenant behind a pool, whose options are given, that what comes by `wan` may reach once it is translated.
fn tenant6_script(pool: &str, rules: &str) -> String {
    format!(
        r#"
        zone("inside", #{{ id: 1 }});
        interface("lan", #{{ port: "lan", zone: "inside", address: ["fd00::1/64"] }});
        interface("wan", #{{ port: "wan", address: ["2001:db8::2/64"] }});
        pool("public", #{{ addresses: "2001:db8::10", {pool} }});
        route("inside", "::/0", #{{ zone: "main" }});
        route("main", "::/0", #{{ via: "2001:db8::1" }});
        {rules}
        postrouting(#{{ zone: "inside", egress: "wan" }}, snat(#{{ pool: "public" }}));
        forward(#{{ status: "dnat" }}, accept);
        {FIREWALL}
        "#
    )
}

fn tenant6(pool: &str, rules: &str) -> Scenario {
    Scenario::of(&tenant6_script(pool, rules))
}

/// Port 80 of the router's own outside address is a server's port 8080.
const SERVICE: &str = r#"
    prerouting(#{ ingress: "wan", dst: "2001:db8::2", proto: "tcp", dport: 80 },
               dnat(#{ to: "[fd00::5]:8080", zone: "inside" }));
"#;
const CLIENT: &str = "[2001:db8:7::7]:40000";

/// A client's handshake and close through a published service, as both ends see it.
#[test]
fn a_published_ipv6_service_is_a_connection_like_any_other() {
    let client = |flags: &str, seq, ack| tcp(CLIENT, "[2001:db8::2]:80").flags(flags).seq(seq).ack(ack);
    let server = |flags: &str, seq, ack| tcp("[fd00::5]:8080", CLIENT).flags(flags).seq(seq).ack(ack);
    let outcome = tenant6("", SERVICE)
        .send(0.0, WAN, client("S", 100, 0))
        .send(0.1, LAN, server("SA", 900, 101))
        .send(0.2, WAN, client("A", 101, 901))
        .send(0.3, WAN, client("A", 101, 901).payload_len(1000))
        .send(0.4, LAN, server("A", 901, 1101).payload_len(1000))
        .command(0.5, "conntrack:-L")
        .send(1.0, LAN, server("FA", 1901, 1101))
        .send(1.1, WAN, client("FA", 1101, 1902))
        .send(1.2, LAN, server("A", 1902, 1102))
        .until(130.0)
        .run();
    let (inward, outward) = (format!("tcp {CLIENT} > [fd00::5]:8080"), format!("tcp [2001:db8::2]:80 > {CLIENT}"));
    let lines = |way: &str, flags: &[&str]| flags.iter().map(|f| format!("{way} {f}")).collect::<Vec<_>>();
    let left = |side| outcome.packets(side).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(left(LAN), lines(&inward, &["S", "A", "A", "FA"]));
    assert_eq!(left(WAN), lines(&outward, &["SA", "A", "FA", "A"]));
    assert_eq!(outcome.packets(LAN)[2].ip6().hop_limit, 63);
    assert_eq!(
        outcome.listed(1),
        [format!("tcp ESTABLISHED {CLIENT}>[2001:db8::2]:80 [fd00::5]:8080>{CLIENT}@1 [ASSURED]")]
    );
    outcome.table(&[]);
    outcome.drops(&[]);
    outcome.accounted();
}

/// O53: errors of the server about what was translated to it, and of the client about an answer, say to each end what
/// it knows.
#[test]
fn ipv6_errors_about_a_translated_destination_are_translated_both_ways() {
    let rules = r#"
        prerouting(#{ dst: "2001:db8:1::240", proto: "udp", dport: 80 }, dnat(#{ to: "[2001:db8:2::2]:8080" }));
    "#;
    let outcome = plain6(rules)
        .send(0.0, LAN, udp("[2001:db8:1::1]:1234", "[2001:db8:1::240]:80"))
        .answered(WAN, 0.1, |left| Some(icmp_error("2001:db8:2::2", "2001:db8:1::1", 1, 4).about(left.l3())))
        .send(1.0, WAN, udp("[2001:db8:2::2]:8080", "[2001:db8:1::1]:1234"))
        .answered(LAN, 0.1, |left| {
            let is_answer = left.ends().0.port() == 80;
            is_answer.then(|| icmp_error("2001:db8:1::1", "2001:db8:1::240", 1, 4).about(left.l3()))
        })
        .run();
    outcome.left(
        LAN,
        &[
            "icmpv6 2001:db8:1::240 > 2001:db8:1::1 1/4 about udp [2001:db8:1::1]:1234 > [2001:db8:1::240]:80",
            "udp [2001:db8:1::240]:80 > [2001:db8:1::1]:1234",
        ],
    );
    outcome.left(
        WAN,
        &[
            "udp [2001:db8:1::1]:1234 > [2001:db8:2::2]:8080",
            "icmpv6 2001:db8:1::1 > 2001:db8:2::2 1/4 about udp [2001:db8:2::2]:8080 > [2001:db8:1::1]:1234",
        ],
    );
    outcome.drops(&[]);
}

/// KS22: what is redirected is for the router itself, which says as whom the client called that nobody listens, and
/// answers echoes likewise.
#[test]
fn what_is_redirected_over_ipv6_reaches_the_router_itself() {
    let rules = r#"
        prerouting(#{ ingress: "lan", dst: "2001:db8:9::/48" }, redirect(8080));
        input(#{ proto: "tcp", dport: 8080, dst: "2001:db8:1::fe" }, [count("redirected"), accept]);
    "#;
    let outcome = plain6(rules)
        .send(0.0, LAN, tcp("[2001:db8:1::1]:1000", "[2001:db8:9::7]:80").flags("S").seq(5))
        .send(0.1, LAN, ping("2001:db8:1::1", "2001:db8:9::7", 77))
        .send(0.2, LAN, ping("2001:db8:1::1", "2001:db8:9::7", 77))
        .run();
    outcome.left(
        LAN,
        &[
            "tcp [2001:db8:9::7]:80 > [2001:db8:1::1]:1000 RA",
            "icmpv6 2001:db8:9::7 > 2001:db8:1::1 echo-reply 77",
            "icmpv6 2001:db8:9::7 > 2001:db8:1::1 echo-reply 77",
        ],
    );
    outcome.left(WAN, &[]);
    outcome.table(&["icmpv6 2001:db8:1::1>2001:db8:9::7#77 2001:db8:1::fe>2001:db8:1::1#77"]);
    outcome.drops(&[("unsupported", 1)]);
    assert_eq!(outcome.stat(&["named", "redirected", "packets"]), 1);
}

/// T173, T172: a whole network is mapped to another, host by host, both ways, ports and identifiers kept.
#[test]
fn an_ipv6_network_is_mapped_to_another_host_by_host() {
    let rules = r#"
        interface("lan", #{ port: "lan", address: ["fd00:1::1/64"] });
        interface("wan", #{ port: "wan", address: ["2001:db8:2::fe/64"] });
        prerouting(#{ ingress: "wan", dst: "2001:db8:7::/64" }, netmap("fd00:1::/64"));
        postrouting(#{ ingress: "lan", egress: "wan" }, netmap("2001:db8:7::/64"));
    "#;
    let outcome = Scenario::of(rules)
        .send(0.0, LAN, udp("[fd00:1::42]:18000", "[2001:db8:2::2]:53"))
        .send(0.1, WAN, udp("[2001:db8:2::2]:17000", "[2001:db8:7::a:43]:9000"))
        .send(0.2, WAN, ping("2001:db8:2::2", "2001:db8:7::44", 7))
        .answered(WAN, 0.5, |left| Some(left.answer()))
        .answered(LAN, 0.5, |left| (left.ends().0.port() != 53).then(|| left.answer()))
        .run();
    outcome.left(
        WAN,
        &[
            "udp [2001:db8:7::42]:18000 > [2001:db8:2::2]:53",
            "udp [2001:db8:7::a:43]:9000 > [2001:db8:2::2]:17000",
            "icmpv6 2001:db8:7::44 > 2001:db8:2::2 echo-reply 7",
        ],
    );
    outcome.left(
        LAN,
        &[
            "udp [2001:db8:2::2]:17000 > [fd00:1::a:43]:9000",
            "icmpv6 2001:db8:2::2 > fd00:1::44 echo-request 7",
            "udp [2001:db8:2::2]:53 > [fd00:1::42]:18000",
        ],
    );
    outcome.table(&[
        "udp [fd00:1::42]:18000>[2001:db8:2::2]:53 [2001:db8:2::2]:53>[2001:db8:7::42]:18000",
        "udp [2001:db8:2::2]:17000>[2001:db8:7::a:43]:9000 [fd00:1::a:43]:9000>[2001:db8:2::2]:17000",
        "icmpv6 2001:db8:2::2>2001:db8:7::44#7 fd00:1::44>2001:db8:2::2#7",
    ]);
    outcome.drops(&[]);
}

/// KS25, KS26: one host calls a server and its virtual address from the same port: source ports are changed where
/// tuples would be the same, and all are answered.
#[test]
fn one_ipv6_port_to_a_server_and_to_its_virtual_addresses_is_changed() {
    let rules = r#"
        prerouting(#{ dst: "2001:db8:1::64", proto: "tcp", dport: [443, 5202] }, dnat(#{ to: "[2001:db8:2::2]:5201" }));
    "#;
    let syn = |to: &str| tcp("[2001:db8:1::1]:10000", to).flags("S").seq(100);
    let outcome = plain6(rules)
        .send(0.0, LAN, syn("[2001:db8:2::2]:5201"))
        .send(0.1, LAN, syn("[2001:db8:1::64]:443"))
        .send(0.2, LAN, syn("[2001:db8:1::64]:5202"))
        .answered(WAN, 0.05, |left| Some(left.answer().flags("SA").seq(900).ack(101)))
        .run();
    let ports: BTreeSet<_> = outcome.packets(WAN).iter().map(|s| s.ends().0.port()).collect();
    assert_eq!((ports.len(), ports.contains(&10000)), (3, true), "{outcome}");
    assert!(outcome.packets(WAN).iter().all(|s| s.ends().1.to_string() == "[2001:db8:2::2]:5201"), "{outcome}");
    outcome.left(
        LAN,
        &[
            "tcp [2001:db8:2::2]:5201 > [2001:db8:1::1]:10000 SA",
            "tcp [2001:db8:1::64]:443 > [2001:db8:1::1]:10000 SA",
            "tcp [2001:db8:1::64]:5202 > [2001:db8:1::1]:10000 SA",
        ],
    );
    assert_eq!(outcome.counter("clash_remapped"), 2);
    outcome.drops(&[]);
}

/// T41: both ends are translated at once, errors about either direction too.
#[test]
fn both_ends_are_translated_at_once_over_ipv6() {
    let rules = format!(
        r#"{SERVICE}
        pool("twice", #{{ addresses: "fd00:1::3", zone: "inside" }});
        postrouting(#{{ ingress: "wan", egress: "lan" }}, snat(#{{ pool: "twice" }}));"#
    );
    let outcome = tenant6("", &rules)
        .send(0.0, WAN, tcp(CLIENT, "[2001:db8::2]:80").flags("S"))
        .answered(LAN, 0.1, |left| Some(left.answer().flags("SA").seq(9).ack(1)))
        .answered(LAN, 0.2, |left| Some(icmp_error("fd00::5", "fd00:1::3", 1, 1).about(left.l3())))
        .run();
    outcome.left(LAN, &["tcp [fd00:1::3]:40000 > [fd00::5]:8080 S"]);
    outcome.left(
        WAN,
        &[
            &format!("tcp [2001:db8::2]:80 > {CLIENT} SA"),
            &format!("icmpv6 2001:db8::2 > 2001:db8:7::7 1/1 about tcp {CLIENT} > [2001:db8::2]:80"),
        ],
    );
    outcome.table(&[&format!("tcp SYN_RECV {CLIENT}>[2001:db8::2]:80 [fd00::5]:8080>[fd00:1::3]:40000@1")]);
    outcome.drops(&[]);
}

/// T125: an error about the MTU behind a translated destination quotes what the client sent.
#[test]
fn an_ipv6_error_made_after_translation_of_the_destination_quotes_what_the_client_sent() {
    let rules = r#"prerouting(#{ dst: "2001:db8:1::240" }, dnat(#{ to: "[2001:db8:2::2]:8080" }));"#;
    let script = format!(
        r#"
        interface("lan", #{{ port: "lan", address: ["2001:db8:1::fe/64"] }});
        interface("wan", #{{ port: "wan", mtu: 1300, address: ["2001:db8:2::fe/64"] }});
        {rules}
        "#
    );
    let outcome = Scenario::of(&script)
        .send(0.0, LAN, udp("[2001:db8:1::1]:1000", "[2001:db8:1::240]:80").payload_len(100))
        .send(0.1, LAN, udp("[2001:db8:1::1]:1000", "[2001:db8:1::240]:80").payload_len(1400))
        .run();
    outcome.left(WAN, &["udp [2001:db8:1::1]:1000 > [2001:db8:2::2]:8080"]);
    outcome.left(
        LAN,
        &["icmpv6 2001:db8:1::fe > 2001:db8:1::1 2/0 about udp [2001:db8:1::1]:1000 > [2001:db8:1::240]:80"],
    );
    outcome.drops(&[("too_big", 1)]);
}

/// A stranger comes in by a mapping as its filtering admits; nothing else has a way in.
#[test]
fn strangers_come_in_by_ipv6_mappings_as_the_filter_admits() {
    let run = |pool: &str| {
        tenant6(pool, "")
            .send(0.0, LAN, udp("[fd00::5]:5000", "[2001:db8:2::1]:53"))
            .send(0.1, WAN, udp("[2001:db8:2::2]:9", "[2001:db8::10]:5000"))
            .send(0.2, WAN, udp("[2001:db8:2::1]:9", "[2001:db8::10]:5000"))
            .send(0.3, WAN, udp("[2001:db8:2::1]:53", "[2001:db8::10]:5001"))
            .run()
    };
    let open = run(r#"filtering: "endpoint_independent""#);
    open.left(LAN, &["udp [2001:db8:2::2]:9 > [fd00::5]:5000", "udp [2001:db8:2::1]:9 > [fd00::5]:5000"]);
    open.drops(&[("no_mapping", 1)]);
    let known = run(r#"filtering: "address_dependent""#);
    known.left(LAN, &["udp [2001:db8:2::1]:9 > [fd00::5]:5000"]);
    known.drops(&[("filtered", 1), ("no_mapping", 1)]);
    let closed = run("");
    closed.left(LAN, &[]);
    closed.drops(&[("filtered", 2), ("no_mapping", 1)]);
}

/// N13: one host calls another by its mapping: each sees the other's outside address and port, and neither's packets
/// leave. T176: one that calls itself is told what the filter tells others. RFC 5508 REQ-7: errors come back too.
#[test]
fn ipv6_hosts_call_each_other_by_their_mappings() {
    let outcome = tenant6("", "")
        .send(0.0, LAN, udp("[fd00::5]:5000", "[2001:db8:2::1]:53"))
        .send(0.1, LAN, udp("[fd00::6]:6000", "[2001:db8:2::1]:53"))
        .send(0.2, LAN, udp("[fd00::5]:5000", "[2001:db8::10]:6000"))
        .send(0.3, LAN, udp("[fd00::6]:6000", "[2001:db8::10]:5000"))
        .send(0.4, LAN, udp("[fd00::6]:6001", "[2001:db8::10]:6000"))
        .answered(LAN, 1.0, |left| {
            let is_call = left.ends().1.to_string() == "[fd00::6]:6000";
            is_call.then(|| icmp_error("fd00::6", "2001:db8::10", 1, 4).about(left.l3()))
        })
        .run();
    outcome.left(
        LAN,
        &[
            "udp [2001:db8::10]:5000 > [fd00::6]:6000",
            "udp [2001:db8::10]:6000 > [fd00::5]:5000",
            "icmpv6 2001:db8::10 > fd00::5 1/4 about udp [fd00::5]:5000 > [2001:db8::10]:6000",
        ],
    );
    outcome.count_left(WAN, 2);
    outcome.table(&[
        "udp [fd00::5]:5000>[2001:db8:2::1]:53@1 [2001:db8:2::1]:53>[2001:db8::10]:5000 [UNREPLIED]",
        "udp [fd00::6]:6000>[2001:db8:2::1]:53@1 [2001:db8:2::1]:53>[2001:db8::10]:6000 [UNREPLIED]",
        "udp [fd00::5]:5000>[2001:db8::10]:6000@1 [fd00::6]:6000>[2001:db8::10]:5000@1",
    ]);
    outcome.drops(&[("filtered", 1)]);
}

/// T53: a published service and one-to-one addresses are reached from inside by their outside addresses, with ports
/// and identifiers kept.
#[test]
fn what_is_published_over_ipv6_is_reached_from_inside() {
    let rules = format!(
        r#"{SERVICE}
        for n in 5..7 {{
            prerouting(#{{ ingress: "wan", dst: `2001:db8::${{30 + n}}` }}, dnat(#{{ to: `fd00::${{n}}`, zone: "inside" }}));
            postrouting(#{{ src: `fd00::${{n}}`, egress: "wan" }}, netmap(`2001:db8::${{30 + n}}`));
        }}"#
    );
    let outcome = tenant6("", &rules)
        .send(0.0, LAN, tcp("[fd00::9]:5000", "[2001:db8::2]:80").flags("S").seq(1))
        .send(0.1, LAN, udp("[fd00::5]:5000", "[2001:db8::36]:80"))
        .send(0.2, LAN, ping("fd00::5", "2001:db8::36", 77))
        .answered(LAN, 1.0, |left| {
            let is_tcp = left.to_string().starts_with("tcp");
            Some(if is_tcp { left.answer().flags("SA").seq(9).ack(2) } else { left.answer() })
        })
        .run();
    outcome.left(
        LAN,
        &[
            "tcp [2001:db8::10]:5000 > [fd00::5]:8080 S",
            "udp [2001:db8::35]:5000 > [fd00::6]:80",
            "icmpv6 2001:db8::35 > fd00::6 echo-request 77",
            "tcp [2001:db8::2]:80 > [fd00::9]:5000 SA",
            "udp [2001:db8::36]:80 > [fd00::5]:5000",
            "icmpv6 2001:db8::36 > fd00::5 echo-reply 77",
        ],
    );
    outcome.left(WAN, &[]);
    outcome.drops(&[]);
}

/// A reload keeps what the rules would translate as it is, and ends the rest: rules' destinations, mappings and
/// hairpins alike.
#[test]
fn a_reload_judges_ipv6_destinations_too() {
    let to = |server: &str| {
        format!(
            r#"prerouting(#{{ dst: "2001:db8::2", proto: "udp", dport: 53 }}, dnat(#{{ to: "{server}", zone: "inside" }}));"#
        )
    };
    let open = r#"filtering: "endpoint_independent""#;
    let query = || udp("[2001:db8:7::7]:1000", "[2001:db8::2]:53");
    let inbound = || udp("[2001:db8:7::7]:9", "[2001:db8::10]:5000");
    let hairpin = || udp("[fd00::6]:6000", "[2001:db8::10]:5000");
    let closed = tenant6_script("hairpin: false", &to("fd00::6"));
    let outcome = tenant6(open, &to("fd00::5"))
        .send(0.0, LAN, udp("[fd00::5]:5000", "[2001:db8:2::1]:53"))
        .send(0.1, WAN, query())
        .send(0.2, WAN, inbound())
        .send(0.3, LAN, hairpin())
        .apply(1.0, &tenant6_script(open, &format!("{} forward(#{{ dport: 99 }}, drop);", to("fd00::4-fd00::5"))))
        .send(2.0, WAN, query())
        .send(2.1, WAN, inbound())
        .send(2.2, LAN, hairpin())
        .apply(3.0, &closed)
        .send(4.0, WAN, query())
        .send(4.1, WAN, inbound())
        .send(4.2, LAN, hairpin())
        .run();
    let round = [
        "udp [2001:db8:7::7]:1000 > [fd00::5]:53",
        "udp [2001:db8:7::7]:9 > [fd00::5]:5000",
        "udp [2001:db8::10]:6000 > [fd00::5]:5000",
    ];
    let last = ["udp [2001:db8:7::7]:1000 > [fd00::6]:53"];
    outcome.left(LAN, &[&round[..], &round, &last].concat());
    for ended in ["[2001:db8::2]:53 [fd00::5]:53", "[2001:db8:7::7]:9>", "[fd00::6]:6000>[2001:db8::10]:5000"] {
        assert_eq!(outcome.story(ended), [EventKind::New, EventKind::Destroy], "{ended}");
    }
    outcome.drops(&[("filtered", 2)]);
}

/// Translated destinations on several workers: services, mappings and hairpins find their connections whatever worker
/// their packets come to.
#[test]
fn ipv6_destinations_are_translated_on_many_workers() {
    let syn = |n: u16| tcp(&format!("[2001:db8:7::{n:x}]:{}", 2000 + n), "[2001:db8::2]:80").flags("S").seq(1);
    let scenario =
        (1..=100).fold(tenant6("", SERVICE).workers(4), |s, n| s.send(1.0 + f64::from(n) / 1e3, WAN, syn(n)));
    let mut scenario = scenario.send(0.0, LAN, udp("[fd00::1:0]:1", "[2001:db8:2::1]:53"));
    for host in 0x10..0x24_u16 {
        let own = format!("[fd00::{host:x}]:{}", 5000 + host);
        let other = format!("[2001:db8::10]:{}", 5000 + 0x10 + (host - 0x10 + 7) % 20);
        let out = udp(&own, "[2001:db8:2::1]:53");
        scenario = scenario.send(2.0, LAN, out).send(3.0, LAN, udp(&own, &other));
    }
    let answer = |left: &erhu_testbed::packet::read::Seen| {
        left.to_string().starts_with("tcp").then(|| left.answer().flags("SA").seq(9).ack(2))
    };
    let outcome = scenario.answered(LAN, 0.5, answer).run();
    outcome.count_left(LAN, 100 + 20);
    outcome.count_left(WAN, 1 + 100 + 20);
    let answers = outcome.packets(WAN).into_iter().filter(|s| s.to_string().starts_with("tcp"));
    assert!(answers.clone().all(|s| s.ends().0.to_string() == "[2001:db8::2]:80"), "{outcome}");
    outcome.drops(&[]);
}

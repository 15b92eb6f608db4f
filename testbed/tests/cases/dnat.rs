//! Destination translation: published services, one-to-one addresses, both translations at once.

use std::collections::{BTreeMap, BTreeSet};

use erhu_testbed::packet::{icmp_error, ping, tcp, udp};
use erhu_testbed::scenario::{EventKind, Scenario};

use crate::{BLUE, FIREWALL, GREEN, LAN, WAN, nat_script, plain, tenants_script};

/// A tenant that publishes by these rules; what comes by `wan` for its network passes.
fn published(rules: &str) -> Scenario {
    Scenario::of(&published_script(rules))
}

fn published_script(rules: &str) -> String {
    let rules = format!(r#"{rules} forward(#{{ ingress: "wan", dst: "10.0.0.0/24" }}, accept);"#);
    nat_script(r#"addresses: "198.51.100.10""#, &rules)
}

/// Port 80 of the router's own outside address is a server's port 8080.
const SERVICE: &str = r#"
    prerouting(#{ ingress: "wan", dst: "198.51.100.2", proto: "tcp", dport: 80 },
               dnat(#{ to: "10.0.0.5:8080", zone: "inside" }));
"#;

/// A client's handshake and close through a published service, as both ends see it.
#[test]
fn a_published_service_is_a_connection_like_any_other() {
    let client = |flags: &str, seq, ack| tcp("203.0.113.7:40000", "198.51.100.2:80").flags(flags).seq(seq).ack(ack);
    let server = |flags: &str, seq, ack| tcp("10.0.0.5:8080", "203.0.113.7:40000").flags(flags).seq(seq).ack(ack);
    let outcome = published(SERVICE)
        .send(0.0, WAN, client("S", 100, 0))
        .send(0.1, LAN, server("SA", 900, 101))
        .send(0.2, WAN, client("A", 101, 901))
        .command(0.3, "conntrack:-L")
        .send(1.0, LAN, server("FA", 901, 101))
        .send(1.1, WAN, client("FA", 101, 902))
        .send(1.2, LAN, server("A", 902, 102))
        .until(130.0)
        .run();
    outcome.left(
        LAN,
        &[
            "tcp 203.0.113.7:40000 > 10.0.0.5:8080 S",
            "tcp 203.0.113.7:40000 > 10.0.0.5:8080 A",
            "tcp 203.0.113.7:40000 > 10.0.0.5:8080 FA",
        ],
    );
    outcome.left(
        WAN,
        &[
            "tcp 198.51.100.2:80 > 203.0.113.7:40000 SA",
            "tcp 198.51.100.2:80 > 203.0.113.7:40000 FA",
            "tcp 198.51.100.2:80 > 203.0.113.7:40000 A",
        ],
    );
    assert_eq!(
        outcome.listed(1),
        ["tcp ESTABLISHED 203.0.113.7:40000>198.51.100.2:80 10.0.0.5:8080>203.0.113.7:40000@1 [ASSURED]"]
    );
    outcome.table(&[]);
    outcome.drops(&[]);
    outcome.accounted();
}

/// O53: an error of the server about a packet that was translated to it comes from whom the client called, and quotes
/// what the client sent; and one of the client about an answer reaches the server.
#[test]
fn errors_about_a_translated_destination_are_translated_both_ways() {
    let rules = r#"prerouting(#{ dst: "10.1.1.240", proto: "udp", dport: 80 }, dnat(#{ to: "10.2.2.2:8080" }));"#;
    let outcome = plain(rules)
        .send(0.0, LAN, udp("10.1.1.1:1234", "10.1.1.240:80"))
        .answered(WAN, 0.1, |left| Some(icmp_error("10.2.2.2", "10.1.1.1", 3, 3).about(left.l3())))
        .send(1.0, WAN, udp("10.2.2.2:8080", "10.1.1.1:1234"))
        .answered(LAN, 0.1, |left| {
            let is_answer = left.ip().protocol == 17;
            is_answer.then(|| icmp_error("10.1.1.1", "10.1.1.240", 3, 3).about(left.l3()))
        })
        .run();
    outcome.left(
        LAN,
        &[
            "icmp 10.1.1.240 > 10.1.1.1 3/3 about udp 10.1.1.1:1234 > 10.1.1.240:80",
            "udp 10.1.1.240:80 > 10.1.1.1:1234",
        ],
    );
    outcome.left(
        WAN,
        &[
            "udp 10.1.1.1:1234 > 10.2.2.2:8080",
            "icmp 10.1.1.1 > 10.2.2.2 3/3 about udp 10.2.2.2:8080 > 10.1.1.1:1234",
        ],
    );
    outcome.drops(&[]);
}

/// O97: a virtual address and the server's own both work, as two connections.
#[test]
fn the_virtual_address_and_the_servers_own_both_work() {
    let outcome = plain(r#"prerouting(#{ dst: "10.1.1.64" }, dnat(#{ to: "10.2.2.2" }));"#)
        .send(0.0, LAN, udp("10.1.1.1:1000", "10.1.1.64:53"))
        .send(0.1, LAN, udp("10.1.1.1:2000", "10.2.2.2:53"))
        .answered(WAN, 0.5, |left| Some(left.answer()))
        .run();
    outcome.left(LAN, &["udp 10.1.1.64:53 > 10.1.1.1:1000", "udp 10.2.2.2:53 > 10.1.1.1:2000"]);
    outcome.table(&[
        "udp 10.1.1.1:1000>10.1.1.64:53 10.2.2.2:53>10.1.1.1:1000",
        "udp 10.1.1.1:2000>10.2.2.2:53 10.2.2.2:53>10.1.1.1:2000",
    ]);
    outcome.drops(&[]);
}

/// KS25: one host calls a virtual address and the server behind it from the same port: the second one's source port is
/// changed, and both are answered.
#[test]
fn one_port_to_a_server_and_to_its_virtual_address_is_changed_once() {
    let outcome = plain(r#"prerouting(#{ dst: "10.1.1.64" }, dnat(#{ to: "10.2.2.2" }));"#)
        .send(0.0, LAN, tcp("10.1.1.1:4321", "10.1.1.64:1234").flags("S"))
        .send(0.1, LAN, tcp("10.1.1.1:4321", "10.2.2.2:1234").flags("S"))
        .answered(WAN, 0.5, |left| Some(left.answer().flags("SA").seq(9).ack(1)))
        .run();
    let ports: BTreeSet<_> = outcome.packets(WAN).iter().map(|s| s.source().port()).collect();
    assert_eq!((ports.len(), ports.contains(&4321)), (2, true), "{outcome}");
    outcome.left(LAN, &["tcp 10.1.1.64:1234 > 10.1.1.1:4321 SA", "tcp 10.2.2.2:1234 > 10.1.1.1:4321 SA"]);
    assert_eq!(outcome.counter("clash_remapped"), 1);
    outcome.drops(&[]);
}

/// KS26: a connection has the only source port there is; others that are translated to the same server port from it
/// keep their own original tuples, and are told apart by their source ports.
#[test]
fn several_virtual_ports_lead_to_one_server_port_from_one_source_port() {
    let rules = r#"
        prerouting(#{ dst: "10.1.1.64", proto: "tcp", dport: [443, 5202, 5203] }, dnat(#{ to: "10.2.2.2:5201" }));
    "#;
    let syn = |to: &str| tcp("10.1.1.1:10000", to).flags("S").seq(100);
    let outcome = plain(rules)
        .send(0.0, LAN, syn("10.2.2.2:5201"))
        .send(0.1, LAN, syn("10.1.1.64:443"))
        .send(0.2, LAN, syn("10.1.1.64:5202"))
        .send(0.3, LAN, syn("10.1.1.64:5203"))
        .answered(WAN, 0.05, |left| Some(left.answer().flags("SA").seq(900).ack(101)))
        .answered(LAN, 0.01, |left| Some(left.answer().flags("A").seq(101).ack(901)))
        .run();
    let ports: BTreeSet<_> = outcome.packets(WAN).iter().map(|s| s.source().port()).collect();
    assert_eq!(ports.len(), 4, "{outcome}");
    assert!(outcome.packets(WAN).iter().all(|s| s.destination().port() == 5201));
    let mut originals: Vec<_> = outcome.entries.iter().map(|e| e.original.destination_port()).collect();
    originals.sort_unstable();
    assert_eq!(originals, [443, 5201, 5202, 5203]);
    assert!(outcome.entries.iter().all(|e| e.state.as_deref() == Some("ESTABLISHED")), "{outcome}");
    assert_eq!(outcome.counter("clash_remapped"), 3);
    outcome.drops(&[]);
}

/// KS22: a redirected packet is for the router itself. It has no services and says so, as whom the client called; an
/// echo it answers, likewise.
#[test]
fn what_is_redirected_reaches_the_router_itself() {
    let rules = r#"
        prerouting(#{ ingress: "lan", dst: "192.0.2.0/24" }, redirect(8080));
        input(#{ proto: "tcp", dport: 8080, dst: "10.1.1.254" }, [count("redirected"), accept]);
    "#;
    let outcome = plain(rules)
        .send(0.0, LAN, tcp("10.1.1.1:1000", "192.0.2.7:80").flags("S").seq(5))
        .send(0.1, LAN, ping("10.1.1.1", "192.0.2.7", 77))
        .send(0.2, LAN, ping("10.1.1.1", "192.0.2.7", 77))
        .run();
    outcome.left(
        LAN,
        &[
            "tcp 192.0.2.7:80 > 10.1.1.1:1000 RA",
            "icmp 192.0.2.7 > 10.1.1.1 echo-reply 77",
            "icmp 192.0.2.7 > 10.1.1.1 echo-reply 77",
        ],
    );
    outcome.left(WAN, &[]);
    outcome.table(&["icmp 10.1.1.1>192.0.2.7#77 10.1.1.254>10.1.1.1#77"]);
    outcome.drops(&[("unsupported", 1)]);
    assert_eq!(outcome.stat(&["named", "redirected", "packets"]), 1);
}

/// T31: one-to-one, begun outside: ports are kept both ways, and other hosts are not affected.
#[test]
fn a_one_to_one_address_is_reached_from_outside() {
    let outcome = published(ONE_TO_ONE)
        .send(0.0, WAN, udp("203.0.113.7:17000", "198.51.100.30:9000"))
        .send(0.1, LAN, udp("10.0.0.5:9000", "203.0.113.7:17000"))
        .send(0.2, LAN, udp("10.0.0.5:18000", "203.0.113.7:53"))
        .send(0.3, LAN, udp("10.0.0.6:18001", "203.0.113.7:53"))
        .send(0.4, WAN, ping("203.0.113.7", "198.51.100.30", 5))
        .run();
    outcome.left(LAN, &["udp 203.0.113.7:17000 > 10.0.0.5:9000", "icmp 203.0.113.7 > 10.0.0.5 echo-request 5"]);
    outcome.left(
        WAN,
        &[
            "udp 198.51.100.30:9000 > 203.0.113.7:17000",
            "udp 198.51.100.30:18000 > 203.0.113.7:53",
            "udp 198.51.100.10:18001 > 203.0.113.7:53",
        ],
    );
    outcome.drops(&[]);
}

const ONE_TO_ONE: &str = r#"
    prerouting(#{ ingress: "wan", dst: "198.51.100.30" }, dnat(#{ to: "10.0.0.5", zone: "inside" }));
    postrouting(#{ src: "10.0.0.5", egress: "wan" }, netmap("198.51.100.30"));
"#;

/// T32: one-to-one, begun inside: the port is kept and the answer comes home.
#[test]
fn a_one_to_one_address_is_left_by_from_inside() {
    let outcome = published(ONE_TO_ONE)
        .send(0.0, LAN, tcp("10.0.0.5:40000", "192.0.2.1:80").flags("S"))
        .send(0.1, LAN, ping("10.0.0.5", "192.0.2.1", 9))
        .answered(WAN, 0.5, |left| {
            Some(if left.ip().protocol == 6 { left.answer().flags("SA") } else { left.answer() })
        })
        .run();
    outcome.left(WAN, &["tcp 198.51.100.30:40000 > 192.0.2.1:80 S", "icmp 198.51.100.30 > 192.0.2.1 echo-request 9"]);
    outcome.left(LAN, &["tcp 192.0.2.1:80 > 10.0.0.5:40000 SA", "icmp 192.0.2.1 > 10.0.0.5 echo-reply 9"]);
    outcome.drops(&[]);
}

/// T173, T172: a whole network is mapped to another, host by host, both ways, ports kept.
#[test]
fn a_network_is_mapped_to_another_host_by_host() {
    let rules = r#"
        interface("lan", #{ port: "lan", address: ["10.1.0.254/24"] });
        interface("wan", #{ port: "wan", address: ["10.2.2.254/24"] });
        prerouting(#{ ingress: "wan", dst: "198.18.7.0/24" }, netmap("10.1.0.0/24"));
        postrouting(#{ ingress: "lan", egress: "wan" }, netmap("198.18.7.0/24"));
    "#;
    let outcome = Scenario::of(rules)
        .send(0.0, LAN, udp("10.1.0.42:18000", "10.2.2.2:53"))
        .send(0.1, WAN, udp("10.2.2.2:17000", "198.18.7.43:9000"))
        .answered(WAN, 0.5, |left| Some(left.answer()))
        .answered(LAN, 0.5, |left| (left.source().port() == 17000).then(|| left.answer()))
        .run();
    outcome.left(WAN, &["udp 198.18.7.42:18000 > 10.2.2.2:53", "udp 198.18.7.43:9000 > 10.2.2.2:17000"]);
    outcome.left(LAN, &["udp 10.2.2.2:17000 > 10.1.0.43:9000", "udp 10.2.2.2:53 > 10.1.0.42:18000"]);
    outcome.table(&[
        "udp 10.1.0.42:18000>10.2.2.2:53 10.2.2.2:53>198.18.7.42:18000",
        "udp 10.2.2.2:17000>198.18.7.43:9000 10.1.0.43:9000>10.2.2.2:17000",
    ]);
    outcome.drops(&[]);
}

/// T34: a port forward whose server speaks first: it leaves as the forward's address and port, and what comes back to
/// those is the same connection.
#[test]
fn a_forward_whose_server_speaks_first_is_one_connection() {
    let rules = format!(
        r#"{SERVICE}
        postrouting(#{{ src: "10.0.0.5", proto: "tcp", sport: 8080, egress: "wan" }},
                    snat(#{{ to: "198.51.100.2", ports: 80 }}));"#
    );
    let outcome = published(&rules)
        .send(0.0, LAN, tcp("10.0.0.5:8080", "192.0.2.1:9").flags("S").seq(1))
        .send(0.1, WAN, tcp("192.0.2.1:9", "198.51.100.2:80").flags("SA").seq(7).ack(2))
        .run();
    outcome.left(WAN, &["tcp 198.51.100.2:80 > 192.0.2.1:9 S"]);
    outcome.left(LAN, &["tcp 192.0.2.1:9 > 10.0.0.5:8080 SA"]);
    assert_eq!(outcome.entries.len(), 1);
}

/// T35: a forward into one tenant does not touch the same address of another.
#[test]
fn a_forward_belongs_to_one_zone() {
    let rules = r#"
        prerouting(#{ ingress: "wan", dst: "198.51.100.30" }, dnat(#{ to: "10.0.0.5", zone: "blue" }));
        postrouting(#{ zone: "blue", src: "10.0.0.5", egress: "wan" }, snat(#{ to: "198.51.100.30" }));
        forward(#{ ingress: "wan", egress_zone: "blue" }, accept);
    "#;
    // The forward's rule comes before that of the tenants' pools.
    let script = tenants_script("", "", "").replacen("for tenant", &format!("{rules} for tenant"), 1);
    let outcome = Scenario::of(&script)
        .send(0.0, BLUE, udp("10.0.0.5:5000", "192.0.2.1:53"))
        .send(0.1, GREEN, udp("10.0.0.5:5000", "192.0.2.1:53"))
        .send(0.2, WAN, udp("192.0.2.9:1", "198.51.100.30:7"))
        .run();
    outcome.left(WAN, &["udp 198.51.100.30:5000 > 192.0.2.1:53", "udp 198.51.100.20:5000 > 192.0.2.1:53"]);
    outcome.left(BLUE, &["udp 192.0.2.9:1 > 10.0.0.5:7"]);
    outcome.left(GREEN, &[]);
    outcome.drops(&[]);
}

/// Two tenants publish servers with one address, each its own.
#[test]
fn two_tenants_publish_servers_with_the_same_address() {
    let rules = r#"
        for (tenant, n) in ["blue", "green"] {
            prerouting(#{ ingress: "wan", dst: `198.51.100.${30 + n}`, proto: "tcp" },
                       dnat(#{ to: "10.0.0.5", zone: tenant }));
        }
        forward(#{ ingress: "wan", dst: "10.0.0.5" }, accept);
    "#;
    let syn = |to: &str| tcp("203.0.113.7:40000", to).flags("S");
    let outcome = Scenario::of(&tenants_script("", "", rules))
        .send(0.0, WAN, syn("198.51.100.30:443"))
        .send(0.0, WAN, syn("198.51.100.31:443"))
        .answered(BLUE, 0.1, |left| Some(left.answer().flags("SA").seq(1)))
        .answered(GREEN, 0.1, |left| Some(left.answer().flags("SA").seq(2)))
        .run();
    outcome.left(BLUE, &["tcp 203.0.113.7:40000 > 10.0.0.5:443 S"]);
    outcome.left(GREEN, &["tcp 203.0.113.7:40000 > 10.0.0.5:443 S"]);
    outcome
        .left(WAN, &["tcp 198.51.100.30:443 > 203.0.113.7:40000 SA", "tcp 198.51.100.31:443 > 203.0.113.7:40000 SA"]);
    outcome.table(&[
        "tcp SYN_RECV 203.0.113.7:40000>198.51.100.30:443 10.0.0.5:443>203.0.113.7:40000@1",
        "tcp SYN_RECV 203.0.113.7:40000>198.51.100.31:443 10.0.0.5:443>203.0.113.7:40000@2",
    ]);
}

/// T38: a forward for what comes in alone: answers leave as the forward's address, and a direct connection to the
/// server is left as it is.
#[test]
fn a_forward_inwards_leaves_direct_connections_alone() {
    let rules = r#"
        interface("lan", #{ port: "lan", address: ["10.0.0.1/24"] });
        interface("wan", #{ port: "wan", address: ["198.51.100.2/24"] });
        prerouting(#{ ingress: "wan", dst: "198.51.100.2", proto: "tcp", dport: 80 }, dnat(#{ to: "10.0.0.5:8080" }));
    "#;
    let outcome = Scenario::of(rules)
        .send(0.0, WAN, tcp("198.51.100.7:12345", "198.51.100.2:80").flags("S"))
        .send(0.1, WAN, tcp("198.51.100.7:12346", "10.0.0.5:8080").flags("S"))
        .answered(LAN, 0.5, |left| Some(left.answer().flags("SA").seq(9).ack(1)))
        .run();
    outcome.left(LAN, &["tcp 198.51.100.7:12345 > 10.0.0.5:8080 S", "tcp 198.51.100.7:12346 > 10.0.0.5:8080 S"]);
    outcome.left(WAN, &["tcp 198.51.100.2:80 > 198.51.100.7:12345 SA", "tcp 10.0.0.5:8080 > 198.51.100.7:12346 SA"]);
    outcome.drops(&[]);
}

/// T40: a time exceeded about a published server's answer reaches the server, about what it sent.
#[test]
fn an_error_about_a_published_servers_answer_reaches_it() {
    let outcome = published(SERVICE)
        .send(0.0, WAN, tcp("203.0.113.7:40000", "198.51.100.2:80").flags("S"))
        .send(0.1, LAN, tcp("10.0.0.5:8080", "203.0.113.7:40000").flags("SA").seq(9).ack(1))
        .answered(WAN, 0.1, |left| Some(icmp_error("203.0.113.1", "198.51.100.2", 11, 0).about(left.l3())))
        .run();
    outcome.left(
        LAN,
        &[
            "tcp 203.0.113.7:40000 > 10.0.0.5:8080 S",
            "icmp 203.0.113.1 > 10.0.0.5 11/0 about tcp 10.0.0.5:8080 > 203.0.113.7:40000",
        ],
    );
    outcome.drops(&[]);
}

/// T41: both ends are translated: the server sees an address of a pool, the client the one that it called. Errors about
/// either direction too.
#[test]
fn both_ends_are_translated_at_once() {
    let rules = format!(
        r#"{SERVICE}
        pool("twice", #{{ addresses: "10.0.1.3", zone: "inside" }});
        postrouting(#{{ ingress: "wan", egress: "lan" }}, snat(#{{ pool: "twice" }}));"#
    );
    let outcome = published(&rules)
        .send(0.0, WAN, tcp("203.0.113.7:40000", "198.51.100.2:80").flags("S"))
        .answered(LAN, 0.1, |left| Some(left.answer().flags("SA").seq(9).ack(1)))
        .answered(LAN, 0.2, |left| Some(icmp_error("10.0.0.5", "10.0.1.3", 3, 10).about(left.l3())))
        .run();
    outcome.left(LAN, &["tcp 10.0.1.3:40000 > 10.0.0.5:8080 S"]);
    outcome.left(
        WAN,
        &[
            "tcp 198.51.100.2:80 > 203.0.113.7:40000 SA",
            "icmp 198.51.100.2 > 203.0.113.7 3/10 about tcp 203.0.113.7:40000 > 198.51.100.2:80",
        ],
    );
    outcome.table(&["tcp SYN_RECV 203.0.113.7:40000>198.51.100.2:80 10.0.0.5:8080>10.0.1.3:40000@1"]);
    outcome.drops(&[]);
}

/// T50: a host has a mapping at the very port that a new rule publishes for another: the rule wins for new connections,
/// the mapping keeps those that it has, and no two connections share a tuple.
#[test]
fn a_rule_wins_over_a_mapping_at_the_same_port() {
    let pool = r#"addresses: "198.51.100.10", filtering: "endpoint_independent""#;
    let open = r#"forward(#{ ingress: "wan", dst: "10.0.0.0/24" }, accept);"#;
    let rule = r#"
        prerouting(#{ ingress: "wan", dst: "198.51.100.10", dport: 6000 }, dnat(#{ to: "10.0.0.9", zone: "inside" }));
    "#;
    let outcome = Scenario::of(&nat_script(pool, open))
        .send(0.0, LAN, udp("10.0.0.5:6000", "192.0.2.1:53"))
        .apply(1.0, &nat_script(pool, &format!("{open} {rule}")))
        .send(2.0, WAN, udp("192.0.2.1:53", "198.51.100.10:6000"))
        .send(3.0, WAN, udp("192.0.2.2:53", "198.51.100.10:6000"))
        .run();
    outcome.left(LAN, &["udp 192.0.2.1:53 > 10.0.0.5:6000", "udp 192.0.2.2:53 > 10.0.0.9:6000"]);
    outcome.drops(&[]);
}

/// T37: what is translated to itself passes as it is, though a later rule would translate it.
#[test]
fn an_identity_exempts_from_later_rules() {
    let rules = r#"
        prerouting(#{ dst: "10.2.2.2", proto: "tcp", dport: 6303 }, dnat(#{ to: "10.2.2.2" }));
        prerouting(#{ dst: "10.2.2.2" }, dnat(#{ to: "10.2.2.9" }));
    "#;
    let outcome = plain(rules)
        .send(0.0, LAN, tcp("10.1.1.1:1", "10.2.2.2:6303").flags("S"))
        .send(0.1, LAN, tcp("10.1.1.1:1", "10.2.2.2:6304").flags("S"))
        .run();
    outcome.left(WAN, &["tcp 10.1.1.1:1 > 10.2.2.2:6303 S", "tcp 10.1.1.1:1 > 10.2.2.9:6304 S"]);
}

/// T55: an address that is translated to itself where nobody has it: dropped, no loop, nothing left behind.
#[test]
fn an_address_that_leads_to_itself_is_dropped() {
    let rules = r#"prerouting(#{ dst: "198.51.100.10" }, dnat(#{ to: "198.51.100.10" }));"#;
    let outcome = published(rules)
        .send(0.0, LAN, tcp("10.0.0.5:1000", "198.51.100.10:8765").flags("S"))
        .send(0.1, LAN, udp("10.0.0.5:5000", "192.0.2.1:53"))
        .run();
    outcome.left(WAN, &["udp 198.51.100.10:5000 > 192.0.2.1:53"]);
    outcome.left(LAN, &[]);
    outcome.drops(&[("no_mapping", 1)]);
}

/// Of several destinations each connection gets one by a hash, and keeps it; all of them have their share. Persistent
/// ones depend on the client alone.
#[test]
fn several_destinations_share_connections() {
    let script = |options: &str| {
        format!(r#"prerouting(#{{ dst: "10.9.0.0/16" }}, dnat(#{{ to: "10.2.2.10-10.2.2.13", {options} }}));"#)
    };
    let servers = |options: &str| {
        let mut scenario = plain(&script(options)).send(0.0, LAN, udp("10.1.1.1:1", "10.2.2.2:1"));
        for client in 1..=40 {
            for virtual_host in 1..=3 {
                let packet = || udp(&format!("10.1.1.{client}:1000"), &format!("10.9.0.{virtual_host}:53"));
                scenario = scenario.send(1.0, LAN, packet()).send(2.0, LAN, packet());
            }
        }
        let outcome = scenario.run();
        assert_eq!(outcome.entries.len(), 121, "{outcome}");
        let mut of_client: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for entry in outcome.entries.iter().filter(|e| e.original.source_port() == 1000) {
            of_client.entry(entry.original.src).or_default().insert(entry.reply.src);
        }
        of_client
    };
    for options in ["", "random: true", "persistent: true"] {
        let of_client = servers(options);
        let all: BTreeSet<_> = of_client.values().flatten().collect();
        assert_eq!(all.len(), 4, "{options}");
        let scattered = of_client.values().filter(|servers| servers.len() > 1).count();
        assert_eq!(scattered == 0, options.starts_with("persistent"), "{options}: {of_client:?}");
    }
}

/// Among several ports the one called is kept; else the first is taken, the next where its tuple is in use, and chosen
/// at random where the rule says so.
#[test]
fn ports_of_the_rule_are_kept_to() {
    let script = |options: &str| {
        format!(r#"prerouting(#{{ dst: "10.9.0.0/16" }}, dnat(#{{ to: "10.2.2.10", ports: "80-82", {options} }}));"#)
    };
    let ports = |options: &str, packets: &[(&str, &str)]| -> Vec<u16> {
        let scenario =
            packets.iter().fold(plain(&script(options)), |s, (from, to)| s.send(0.0, LAN, tcp(from, to).flags("S")));
        scenario.run().packets(WAN).iter().map(|s| s.destination().port()).collect()
    };
    assert_eq!(ports("", &[("10.1.1.1:1", "10.9.0.1:81"), ("10.1.1.1:2", "10.9.0.1:443")]), [81, 80]);
    let same: Vec<_> = ["10.9.0.1:443", "10.9.0.2:443", "10.9.0.3:443"].map(|to| ("10.1.1.1:7", to)).to_vec();
    assert_eq!(ports("", &same), [80, 81, 82]);
    let sources: Vec<_> = (1..=60).map(|n| format!("10.1.1.{n}:1")).collect();
    let many: Vec<_> = sources.iter().map(|from| (from.as_str(), "10.9.0.1:81")).collect();
    assert_eq!(ports("random: true", &many).into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([80, 81, 82]));
}

/// A reload keeps a connection whose rule still leads where it went, and ends one whose rule is gone or leads
/// elsewhere; one that had no rule ends with the rule that it would have now.
#[test]
fn a_reload_judges_destinations_too() {
    let to = |server: &str| {
        format!(
            r#"prerouting(#{{ dst: "198.51.100.2", proto: "udp", dport: 53 }},
                          dnat(#{{ to: "{server}", zone: "inside" }}));"#
        )
    };
    let query = || udp("203.0.113.7:1000", "198.51.100.2:53");
    let outcome = published(&to("10.0.0.5"))
        .send(0.0, WAN, query())
        .apply(1.0, &published_script(&format!("{} forward(#{{ dport: 99 }}, drop);", to("10.0.0.4-10.0.0.5"))))
        .send(2.0, WAN, query())
        .apply(3.0, &published_script(&to("10.0.0.6")))
        .send(4.0, WAN, query())
        .apply(5.0, &published_script(""))
        .send(6.0, WAN, query())
        .run();
    outcome.left(
        LAN,
        &[
            "udp 203.0.113.7:1000 > 10.0.0.5:53",
            "udp 203.0.113.7:1000 > 10.0.0.5:53",
            "udp 203.0.113.7:1000 > 10.0.0.6:53",
        ],
    );
    assert_eq!(outcome.story("203.0.113.7:1000>198.51.100.2:53 10.0.0.5"), [EventKind::New, EventKind::Destroy]);
    assert_eq!(outcome.story("203.0.113.7:1000>198.51.100.2:53 10.0.0.6"), [EventKind::New, EventKind::Destroy]);
    outcome.table(&[]);
    outcome.drops(&[("unsupported", 1)]);
}

/// … and the other way: a connection without translation ends when a rule would translate it.
#[test]
fn a_connection_that_a_new_rule_would_turn_ends() {
    let script = |rule: &str| crate::plain_script(rule);
    let outcome = plain("")
        .send(0.0, LAN, udp("10.1.1.1:1", "10.2.2.2:53"))
        .send(0.0, LAN, udp("10.1.1.1:1", "10.2.2.3:53"))
        .apply(1.0, &script(r#"prerouting(#{ dst: "10.2.2.2" }, dnat(#{ to: "10.2.2.9" }));"#))
        .send(2.0, LAN, udp("10.1.1.1:1", "10.2.2.2:53"))
        .send(2.0, LAN, udp("10.1.1.1:1", "10.2.2.3:53"))
        .run();
    outcome.left(
        WAN,
        &[
            "udp 10.1.1.1:1 > 10.2.2.2:53",
            "udp 10.1.1.1:1 > 10.2.2.3:53",
            "udp 10.1.1.1:1 > 10.2.2.3:53",
            "udp 10.1.1.1:1 > 10.2.2.9:53",
        ],
    );
    assert_eq!(outcome.count_events(EventKind::Destroy), 1);
}

/// T122: what is beside the published address is not touched, and what no rule publishes of it is the router's own.
#[test]
fn beside_a_published_service_nothing_is_translated() {
    let outcome = published(SERVICE)
        .send(0.0, WAN, tcp("203.0.113.7:1", "198.51.100.2:81").flags("S"))
        .send(0.1, WAN, ping("203.0.113.7", "198.51.100.2", 1))
        .run();
    outcome.left(WAN, &["tcp 198.51.100.2:81 > 203.0.113.7:1 RA", "icmp 198.51.100.2 > 203.0.113.7 echo-reply 1"]);
    outcome.left(LAN, &[]);
}

/// The reply of a published server finds its connection on whatever worker its hash leads to.
#[test]
fn published_services_work_on_many_workers() {
    let syn = |n: u16| tcp(&format!("203.0.113.{}:{}", n % 100 + 1, 2000 + n), "198.51.100.2:80").flags("S").seq(1);
    let next_hops = crate::known(published(SERVICE).workers(4), &[LAN]);
    let scenario = (0..200).fold(next_hops, |s, n| s.send(1.0, WAN, syn(n)));
    let outcome = scenario.answered(LAN, 0.5, |left| Some(left.answer().flags("SA").seq(9).ack(2))).run();
    outcome.count_left(LAN, 200);
    outcome.count_left(WAN, 200);
    assert!(outcome.packets(WAN).iter().all(|s| s.source().to_string() == "198.51.100.2:80"), "{outcome}");
    outcome.drops(&[]);
}

/// Rules after prerouting see where the packet really goes; prerouting and its marks what came.
#[test]
fn later_rules_see_the_translated_destination() {
    let rules = r#"
        prerouting(#{ dst: "10.1.1.64" }, [mark(7), dnat(#{ to: "10.2.2.2:8080" })]);
        forward(#{ dst: "10.1.1.64" }, drop);
        forward(#{ dst: "10.2.2.2", dport: 8080, mark: 7 }, accept);
        forward(#{}, drop);
        postrouting(#{ dst: "10.2.2.2", dport: 8080 }, snat(#{ to: "10.2.2.200" }));
    "#;
    let outcome = plain(rules).send(0.0, LAN, udp("10.1.1.1:1000", "10.1.1.64:80")).run();
    outcome.left(WAN, &["udp 10.2.2.200:1000 > 10.2.2.2:8080"]);
    outcome.drops(&[]);
}

/// The firewall of the main example keeps strangers from what is published unless a rule lets them.
#[test]
fn the_customary_firewall_holds_for_published_services() {
    let closed = nat_script(r#"addresses: "198.51.100.10""#, SERVICE);
    assert!(closed.contains(FIREWALL));
    let outcome = Scenario::of(&closed).send(0.0, WAN, tcp("203.0.113.7:1", "198.51.100.2:80").flags("S")).run();
    outcome.left(LAN, &[]);
    outcome.drops(&[("rule", 1)]);
    outcome.table(&[]);
}

/// O98: of two translations only that of the first packet counts: a rule for established packets changes nothing, as
/// postrouting sees first packets only. The connection has the mark that rules gave it.
#[test]
fn a_later_wish_for_translation_changes_nothing_but_the_mark() {
    let rules = r#"
        prerouting(#{ dst: "10.1.1.64" }, [connmark(0xab), dnat(#{ to: "10.2.2.2" })]);
        forward(#{ state: "established", egress: "lan" }, [connmark(0xac), accept]);
        postrouting(#{ state: "established" }, snat(#{ to: "10.2.2.200" }));
    "#;
    let outcome = plain(rules)
        .send(0.0, LAN, udp("10.1.1.1:1000", "10.1.1.64:53"))
        .command(0.05, "conntrack:-L -m 171")
        .answered(WAN, 0.1, |left| Some(left.answer()))
        .send(0.5, LAN, udp("10.1.1.1:1000", "10.1.1.64:53"))
        .run();
    outcome.left(WAN, &["udp 10.1.1.1:1000 > 10.2.2.2:53", "udp 10.1.1.1:1000 > 10.2.2.2:53"]);
    assert_eq!(outcome.listed(1).len(), 1, "{outcome}");
    outcome.table(&["udp 10.1.1.1:1000>10.1.1.64:53 10.2.2.2:53>10.1.1.1:1000 mark=172"]);
}

/// F19: a rule for what is translated lets exactly that in: published services and what came for a mapping, and not
/// what somebody routes to an inside address. Answers and later packets need no rule of their own.
#[test]
fn what_is_translated_may_come_in_and_nothing_else() {
    let rules = format!(
        r#"{SERVICE} route("main", "10.0.0.0/24", #{{ zone: "inside" }}); forward(#{{ status: "dnat" }}, accept);"#
    );
    let pool = r#"addresses: "198.51.100.10", filtering: "endpoint_independent""#;
    let outcome = Scenario::of(&nat_script(pool, &rules))
        .send(0.0, LAN, udp("10.0.0.6:6000", "192.0.2.1:53"))
        .send(0.1, WAN, tcp("203.0.113.7:40000", "198.51.100.2:80").flags("S"))
        .send(0.2, WAN, tcp("203.0.113.7:40000", "10.0.0.5:8080").flags("S"))
        .send(0.3, WAN, udp("203.0.113.7:9", "198.51.100.10:6000"))
        .send(0.4, LAN, udp("10.0.0.6:6000", "203.0.113.7:9"))
        .run();
    outcome.left(LAN, &["tcp 203.0.113.7:40000 > 10.0.0.5:8080 S", "udp 203.0.113.7:9 > 10.0.0.6:6000"]);
    outcome.left(WAN, &["udp 198.51.100.10:6000 > 192.0.2.1:53", "udp 198.51.100.10:6000 > 203.0.113.7:9"]);
    outcome.drops(&[("rule", 1)]);
}

/// Rules tell translated from untranslated, answered from unanswered and the directions apart, packet by packet where
/// that changes.
#[test]
fn rules_see_status_and_direction() {
    let rules = r#"
        prerouting(#{ dst: "10.1.1.64" }, dnat(#{ to: "10.2.2.2" }));
        postrouting(#{ dst: "10.2.2.3" }, snat(#{ to: "10.2.2.200" }));
        forward(#{ status: "dnat" }, count("dnat"));
        forward(#{ status: "snat" }, count("snat"));
        forward(#{ status: not(["dnat", "snat"]) }, count("neither"));
        forward(#{ status: "seen_reply" }, count("answered"));
        forward(#{ status: "assured" }, count("assured"));
        forward(#{ direction: "reply" }, count("reply"));
        forward(#{ direction: "original" }, count("original"));
    "#;
    let mut scenario = plain(rules);
    for (n, server) in ["10.1.1.64", "10.2.2.3", "10.2.2.4"].into_iter().enumerate() {
        let (host, at) = (format!("10.1.1.{}:1000", n + 1), n as f64);
        let (seen, real) = match n {
            0 => (host.clone(), "10.2.2.2:53"),
            1 => ("10.2.2.200:1000".into(), "10.2.2.3:53"),
            _ => (host.clone(), "10.2.2.4:53"),
        };
        let to = format!("{server}:53");
        scenario = scenario.send(at, LAN, udp(&host, &to)).send(at + 0.1, WAN, udp(real, &seen));
        scenario = scenario.send(at + 3.0, LAN, udp(&host, &to)).send(at + 3.1, LAN, udp(&host, &to));
    }
    let outcome = scenario.run();
    let counted = |name: &str| outcome.stat(&["named", name, "packets"]);
    assert_eq!((counted("original"), counted("reply")), (9, 3));
    assert_eq!(counted("dnat"), 4);
    // The first packet is not translated yet when it meets the forward rules.
    assert_eq!(counted("snat"), 3);
    assert_eq!(counted("neither"), 5);
    assert_eq!(counted("answered"), 9);
    // A stream is assured from its first packet after two seconds on.
    assert_eq!(counted("assured"), 6);
    outcome.drops(&[]);
}

/// F10: where destinations are translated too, an inside port is one outside port whatever is called, unless the
/// mapping depends on that.
#[test]
fn mappings_hold_for_translated_destinations() {
    let rules = r#"
        for n in 1..3 { prerouting(#{ ingress: "lan", dst: `203.0.113.${n}` }, dnat(#{ to: `192.0.2.${n}:5353` })); }
    "#;
    let ports = |mapping: &str| {
        let pool = format!(r#"addresses: "198.51.100.10", ports: "2000-60000", mapping: "{mapping}""#);
        let outcome = Scenario::of(&nat_script(&pool, rules))
            .send_every(0.0, 0.1, LAN, (1..3).map(|n| udp("10.0.0.5:1000", &format!("203.0.113.{n}:53"))))
            .send(1.0, LAN, udp("10.0.0.5:1000", "192.0.2.9:53"))
            .answered(WAN, 1.0, |left| Some(left.answer()))
            .run();
        let to: Vec<_> = outcome.packets(WAN).iter().map(|s| s.destination().to_string()).collect();
        assert_eq!(to, ["192.0.2.1:5353", "192.0.2.2:5353", "192.0.2.9:53"], "{outcome}");
        outcome.left(
            LAN,
            &[
                "udp 203.0.113.1:53 > 10.0.0.5:1000",
                "udp 203.0.113.2:53 > 10.0.0.5:1000",
                "udp 192.0.2.9:53 > 10.0.0.5:1000",
            ],
        );
        outcome.packets(WAN).iter().map(|s| s.source().port()).collect::<BTreeSet<_>>()
    };
    assert_eq!(ports("endpoint_independent").len(), 1);
    assert!(ports("address_dependent").len() > 1);
    // A port that the pool has is kept, as a static one would be.
    let kept = Scenario::of(&nat_script(r#"addresses: "198.51.100.10""#, rules))
        .send(0.0, LAN, udp("10.0.0.5:5000", "203.0.113.1:53"))
        .run();
    kept.left(WAN, &["udp 198.51.100.10:5000 > 192.0.2.1:5353"]);
}

/// KS20: where calls to one host are translated to another, that one answers; when the rule is gone and the
/// connections are cleared, the first does. A rule about the port alone is one about each address. (The router makes no
/// calls of its own, so these come through it.)
#[test]
fn calls_go_back_to_the_first_host_when_the_rule_is_gone() {
    let script = |rules: &str| {
        format!(
            r#"
            interface("lan", #{{ port: "lan", address: ["10.1.1.254/24", "2001:db8:1::fe/64"] }});
            interface("wan", #{{ port: "wan", address: ["10.2.2.254/24", "2001:db8:2::fe/64"] }});
            {rules}
            "#
        )
    };
    let rules = r#"
        prerouting(#{ dst: "10.2.2.1", dport: 8080 }, dnat(#{ to: "10.2.2.1", ports: 2000 }));
        prerouting(#{ dst: "10.2.2.1" }, dnat(#{ to: "10.2.2.2" }));
        prerouting(#{ dst: "2001:db8:2::1", dport: 8080 }, dnat(#{ to: "2001:db8:2::1", ports: 2000 }));
        prerouting(#{ dst: "2001:db8:2::1" }, dnat(#{ to: "2001:db8:2::2" }));
    "#;
    let calls = |scenario: Scenario, at| {
        let four = ["10.2.2.1:53", "10.2.2.1:8080"].map(|to| udp("10.1.1.1:1000", to));
        let six = ["[2001:db8:2::1]:53", "[2001:db8:2::1]:8080"].map(|to| udp("[2001:db8:1::1]:1000", to));
        scenario.send_every(at, 0.1, LAN, four.into_iter().chain(six))
    };
    let before = calls(Scenario::of(&script(rules)), 0.0).apply(2.0, &script("")).command(2.0, "conntrack:-F");
    let outcome = calls(before, 3.0).answered(WAN, 0.01, |left| Some(left.answer())).run();
    outcome.left(
        WAN,
        &[
            "udp 10.1.1.1:1000 > 10.2.2.2:53",
            "udp 10.1.1.1:1000 > 10.2.2.1:2000",
            "udp [2001:db8:1::1]:1000 > [2001:db8:2::2]:53",
            "udp [2001:db8:1::1]:1000 > [2001:db8:2::1]:2000",
            "udp 10.1.1.1:1000 > 10.2.2.1:53",
            "udp 10.1.1.1:1000 > 10.2.2.1:8080",
            "udp [2001:db8:1::1]:1000 > [2001:db8:2::1]:53",
            "udp [2001:db8:1::1]:1000 > [2001:db8:2::1]:8080",
        ],
    );
    let answers = [
        "udp 10.2.2.1:53 > 10.1.1.1:1000",
        "udp 10.2.2.1:8080 > 10.1.1.1:1000",
        "udp [2001:db8:2::1]:53 > [2001:db8:1::1]:1000",
        "udp [2001:db8:2::1]:8080 > [2001:db8:1::1]:1000",
    ];
    outcome.left(LAN, &[answers, answers].concat());
    outcome.drops(&[]);
}

/// T125: an error about the MTU behind a translated destination quotes what the client sent.
#[test]
fn an_error_made_after_translation_of_the_destination_quotes_what_the_client_sent() {
    let script = r#"
        interface("lan", #{ port: "lan", address: ["10.1.1.254/24"] });
        interface("wan", #{ port: "wan", mtu: 1300, address: ["10.2.2.254/24"] });
        prerouting(#{ dst: "10.1.1.240" }, dnat(#{ to: "10.2.2.2:8080" }));
        postrouting(#{ egress: "wan" }, masquerade);
    "#;
    let outcome = Scenario::of(script)
        .send(0.0, LAN, udp("10.1.1.1:1000", "10.1.1.240:80").payload_len(100))
        .send(0.1, LAN, udp("10.1.1.1:1000", "10.1.1.240:80").payload_len(1400).df())
        .send(0.2, LAN, tcp("10.1.1.1:1001", "10.1.1.240:81").flags("S").payload_len(1400).df())
        .run();
    outcome.left(WAN, &["udp 10.2.2.254:1000 > 10.2.2.2:8080"]);
    outcome.left(
        LAN,
        &[
            "icmp 10.1.1.254 > 10.1.1.1 3/4 about udp 10.1.1.1:1000 > 10.1.1.240:80",
            "icmp 10.1.1.254 > 10.1.1.1 3/4 about tcp 10.1.1.1:1001 > 10.1.1.240:81",
        ],
    );
    outcome.drops(&[("too_big", 2)]);
}

//! The same packets through Linux and through erhu: verdict, headers, connections, states and times must agree.
//!
//! Each play is a list of packets. A packet may depend on what left before it, as an answer does; each router gets
//! answers to what it sent itself. After every packet both tables are compared. The kernel runs in real time and
//! erhu's clock is set to it. What differs and may is in `testbed/DIFFERENCES.md`; connections of the router itself are
//! kept out of the plays, as they are in other zones here than there.
//!
//! ```text
//!  blue  10.0.0.0/24, zone 1 ---+
//!                               +--- router ---- wan 198.51.100.2/24, everything else
//!  green 10.0.0.0/24, zone 2 ---+
//! ```

mod play;
mod v6;
mod windows;

use erhu_testbed::kernel::{Device, Kernel};
use erhu_testbed::scenario::{Scenario, Side, router_mac};
use play::{
    Flow, Play, broken, echo, echo_with_errors, error_outside, errors_that_fit_nothing, living, talk_with_errors,
    tcp, udp,
};

const BLUE: Side = Side::vlan("lan", 100);
const GREEN: Side = Side::vlan("lan", 200);
const WAN: Side = Side::untagged("wan");

const RULES: &str = r#"
    zone("blue",  #{ id: 1 });
    zone("green", #{ id: 2 });
    interface("lan.100", #{ port: "lan", vlan: 100, zone: "blue",  address: ["10.0.0.1/24"] });
    interface("lan.200", #{ port: "lan", vlan: 200, zone: "green", address: ["10.0.0.1/24"] });
    interface("wan",     #{ port: "wan", address: ["198.51.100.2/24"] });
    let outside = #{ blue: "198.51.100.10", green: "198.51.100.20" };
    for tenant in ["blue", "green"] {
        route(tenant, "0.0.0.0/0", #{ zone: "main" });
        postrouting(#{ zone: tenant, egress: "wan" }, snat(#{ to: outside[tenant] }));
    }
    prerouting(#{ zone: ["blue", "green"], dst: "192.0.2.100", proto: ["tcp", "udp"], dport: 80 },
               dnat(#{ to: "192.0.2.1:443" }));
    prerouting(#{ zone: ["blue", "green"], dst: "192.0.2.100", proto: "icmp" }, dnat(#{ to: "192.0.2.1" }));
    route("main", "0.0.0.0/0", #{ via: "198.51.100.1" });
    forward(#{ state: ["established", "related"] }, accept);
    forward(#{ state: "invalid" }, drop);
    forward(#{ ingress: "wan", state: "new" }, drop);
"#;

const NFT: &str = r#"
    table ip erhu {
        chain zones {
            type filter hook prerouting priority raw
            iifname "blue" ct original zone set 1
            iifname "green" ct original zone set 2
        }
        chain marks {
            type filter hook prerouting priority mangle
            iifname "blue" ct mark set 1
            iifname "green" ct mark set 2
            iifname "blue" meta mark set 1
            iifname "green" meta mark set 2
            iifname "wan" meta mark set ct mark
        }
        chain destinations {
            type nat hook prerouting priority dstnat
            iifname { "blue", "green" } ip daddr 192.0.2.100 tcp dport 80 dnat to 192.0.2.1:443
            iifname { "blue", "green" } ip daddr 192.0.2.100 udp dport 80 dnat to 192.0.2.1:443
            iifname { "blue", "green" } ip daddr 192.0.2.100 ip protocol icmp dnat to 192.0.2.1
        }
        chain nat {
            type nat hook postrouting priority srcnat
            oifname "wan" meta mark 1 snat to 198.51.100.10
            oifname "wan" meta mark 2 snat to 198.51.100.20
        }
        chain rules {
            type filter hook forward priority filter
            ct state established,related accept
            ct state invalid drop
            iifname "wan" ct state new drop
        }
    }
"#;

/// The two routers.
fn routers() -> (Kernel, Scenario) {
    let lan = |side, name| Device {
        side,
        name,
        mac: router_mac(0),
        address: "10.0.0.1/24",
        hosts: &["10.0.0.5", "10.0.0.6", "10.0.0.7"],
    };
    let wan =
        Device { side: WAN, name: "wan", mac: router_mac(1), address: "198.51.100.2/24", hosts: &["198.51.100.1"] };
    let commands = [
        "route add default via 198.51.100.1 dev wan",
        "rule add fwmark 1 lookup 101",
        "route add 10.0.0.0/24 dev blue table 101",
        "route add default via 198.51.100.1 dev wan table 101",
        "rule add fwmark 2 lookup 102",
        "route add 10.0.0.0/24 dev green table 102",
        "route add default via 198.51.100.1 dev wan table 102",
    ];
    let devices = [lan(BLUE, "blue"), lan(GREEN, "green"), wan];
    let kernel = Kernel::new(&devices, &commands, NFT).unwrap_or_else(|fault| panic!("{fault}"));
    // Each packet is replayed after all before it: memory for few connections is there at once.
    (kernel, Scenario::of(RULES).connections(4096))
}

fn blue(port: u16) -> Flow {
    Flow::new(BLUE, ("10.0.0.5", port), ("192.0.2.1", 443), "198.51.100.10")
}

fn green(port: u16) -> Flow {
    Flow::new(GREEN, ("10.0.0.5", port), ("192.0.2.1", 443), "198.51.100.20")
}

/// Lives of TCP connections: direction, flags, sequence and acknowledgement number of each segment, and what
/// [`play::tcp`] has besides. `open` stands for [`play::OPEN`].
#[rustfmt::skip]
const LIVES: &[(&str, &str)] = &[
    ("closed by the client", "open; > FA 101 901; < A 901 102; < FA 901 102; > A 102 902"),
    ("closed by the server", "open; < FA 901 101; > A 101 902; > FA 101 902; < A 902 102"),
    ("closed by both at once", "open; > FA 101 901; < FA 901 101; > A 102 902; < A 902 102"),
    ("FIN of the server acknowledged with a FIN", "open; < FA 901 101; > FA 101 902; < A 902 102"),
    ("reset by the client", "open; > R 101 0"),
    ("reset by the server", "open; < RA 901 101"),
    ("refused", "> S 100 0; < RA 0 101"),
    ("given up before the answer", "> S 100 0; > R 101 0"),
    ("reset half open", "> S 100 0; < SA 900 101; > R 101 0"),
    ("SYN repeated", "> S 100 0; > S 100 0; < SA 900 101; > A 101 901"),
    ("SYN/ACK repeated", "> S 100 0; < SA 900 101; < SA 900 101; > A 101 901; < SA 900 101; > A 101 901"),
    ("opened by both at once", "> S 100 0; < S 900 0; > SA 100 901; < SA 900 101; > A 101 901; < A 901 101"),
    ("picked up in mid-stream", "> A 500 600; < A 600 500; > A 500 600"),
    ("picked up in mid-stream, with data of both", "> A 500 600 100; > A 600 600 100; < A 600 700 50; > A 700 650; < A 650 700"),
    ("picked up in mid-stream, beyond any window", "> A 500 600; < A 900000 8000000; > A 8000000 900000 10; < A 900000 500"),
    ("begins with SYN/ACK", "> SA 100 200"),
    ("begins with FIN", "> FA 100 200"),
    ("begins with RST", "> R 100 0"),
    ("begins with nothing", "> - 100 0"),
    ("bogus flags at first", "> SF 100 0; > SR 100 0; > FPU 100 0; > F 100 0; > P 100 0"),
    ("bogus flags in between", "open; > SFA 101 901; < - 901 101; > F 101 901; > A 101 901"),
    ("SYN of a live connection, and its challenge", "open; > S 1000000 0; < A 901 101; > A 101 901"),
    ("challenge to the first SYN", "> S 100 0; < A 5000 77; > S 100 0; < SA 900 101; > A 101 901"),
    ("challenge to the first SYN, and the reset it asks for",
     "> S 100 0; < A 5000 77; > R 77 0; > S 100 0; < SA 900 101; > A 101 901"),
    ("opened again from TIME_WAIT",
     "open; > FA 101 901; < A 901 102; < FA 901 102; > A 102 902; > S 90000 0; < SA 70000 90001; > A 90001 70001"),
    ("opened again after RST", "open; > R 101 0; > S 90000 0; < SA 70000 90001"),
    ("SYN from outside in TIME_WAIT", "open; > FA 101 901; < A 901 102; < FA 901 102; > A 102 902; < S 50000 0"),
    ("SYN/ACK of the client", "> S 100 0; > SA 100 901; < SA 900 101"),
    ("ACK before SYN/ACK", "> S 100 0; > A 101 901; < SA 900 101; > A 101 901"),
    ("data and its acknowledgement", "open; > A 101 901 100; < A 901 150; < A 901 201; < PA 901 201 50; > A 201 951"),
    ("a keep-alive and its answer", "open; > A 100 901 1; < A 901 101; > A 100 901; < A 901 101"),
    ("an acknowledgement four times", "open; > A 101 901 10; < A 901 101; < A 901 101; < A 901 101; < A 901 101; < A 901 111"),
    ("a closed window, a probe, and open again",
     "open; < A 901 101 w0; > A 101 901 1; < A 901 102 w0; < A 901 102 w100; > A 102 901 100; < A 901 202"),
    ("beyond the window by a little, and acknowledged", "open; > A 64342 901 10; < A 901 64352; > A 64352 901"),
    ("beyond the window by a lot", "open; > A 200000 901 10; < A 901 200010; > A 101 901"),
    ("acknowledges what was not sent", "open; > A 101 902; < A 901 102; > A 101 901"),
    ("old data again",
     "> S 100 0 w1000; < SA 900 101 w1000; > A 101 901 900; < A 901 1001 w1000; > A 1001 901 900; < A 901 1901 w1000; > A 101 901 100; > A 901 901 0"),
    ("an old acknowledgement", "open; < A 901 4294901397; < A 901 4294901396; < A 901 101"),
    ("scaled windows", "> S 100 0 s7; < SA 900 101 s14; > A 101 901; < A 901 101 w4; > A 65000 901 10; > A 117000 901; < A 901 101"),
    ("a scale that one side does not offer", "> S 100 0 s7; < SA 900 101; > A 101 901 w4; < A 1500 101 10; < A 906 101"),
    ("selective acknowledgements",
     "> S 100 0 s0; < SA 900 101 s0; > A 101 901; > A 201 901 100; < A 901 101 b201-301; < A 901 101 b201-302; > A 101 901 100; < A 901 301"),
    ("an exact reset", "open; > A 101 901 10; < A 901 111; < R 901 0"),
    ("an inexact reset, and the challenge", "open; < A 901 101; < R 1500 0; > A 101 901; < R 901 0"),
    ("an inexact reset of the client, and the challenge", "open; < A 901 101; > R 600 0; < A 901 101; > A 101 901 10"),
    ("a reset before the window", "open; > A 101 901 10; < A 901 111; < R 900 0; > R 110 0"),
    ("a reset beyond the window", "open; > A 101 901 10; < A 901 111; < R 500000 0; > R 500000 0"),
    ("a reset behind data", "open; > A 101 901 10; > R 111 0"),
    ("resets when closing need no number", "open; < FA 901 101; > A 101 902; > RA 101 902; < R 5 0"),
    ("ends beyond the windows, of both", "open; > FA 500000 901; < FA 500000 101; > A 101 901"),
    ("a SYN that was let through, refused", "open; > S 5000000 0; < RA 0 5000001"),
    ("a SYN that was let through, answered",
     "open; > S 5000000 0 s3; < SA 70000 5000001 s4; > A 5000001 70001; < A 70001 5000001 100; > A 5000001 70101"),
    ("a stale SYN/ACK", "> S 100 0; < SA 900 7777; > S 100 0; < SA 50000 101; > A 101 50001"),
    ("a later SYN", "> S 100 0 s2; > S 60000 0; < SA 900 60001 s5; > A 60001 901; < A 901 60001 10"),
    ("a stray SYN in LAST_ACK, and its challenge",
     "open; > FA 101 901; < FA 901 102; > S 5000 0; < A 902 102; < A 902 102"),
    ("numbers that run over",
     "> S 4294967000 0; < SA 4294967200 4294967001; > A 4294967001 4294967201 500; < A 4294967201 205 100; > A 205 5; > FA 205 5; < A 5 206"),
    // What is left of a client's half where its server is not heard.
    ("given up long after the SYN, unheard by us", "> S 100 0; > A 101 901; > R 887 0; > R 101 0"),
    ("reset with an acknowledgement long after the SYN, unheard by us", "> S 100 0; > RA 585 1840; > RA 101 901; > S 100 0"),
    ("ECN bits are nobody's business", "> SEC 100 0; < SAE 900 101; > A 101 901; > AC 101 901"),
];

#[test]
fn tcp_lives_take_the_same_states_and_times() {
    let (mut kernel, erhu) = routers();
    for (port, (name, life)) in (20_000..).zip(LIVES) {
        Play::new(name, tcp(blue(port), life)).run(&mut kernel, &erhu);
    }
}

#[test]
fn two_tenants_with_the_same_tuples_stay_apart() {
    let (mut kernel, erhu) = routers();
    let mut steps = Vec::new();
    for (a, b) in tcp(blue(30_000), "open").into_iter().zip(tcp(green(30_000), "open")) {
        steps.extend([a, b]);
    }
    for (a, b) in udp(blue(30_000), "> < > <").into_iter().zip(udp(green(30_000), "> < > <")) {
        steps.extend([a, b]);
    }
    for (a, b) in echo(blue(77), "> <").into_iter().zip(echo(green(77), "> <")) {
        steps.extend([a, b]);
    }
    Play::new("two tenants", steps).run(&mut kernel, &erhu);
}

#[test]
fn udp_becomes_a_stream_after_two_seconds() {
    let (mut kernel, erhu) = routers();
    Play::new("quick answer", udp(blue(31_000), "> < > <")).run(&mut kernel, &erhu);
    Play::new("late answer", udp(blue(31_001), "> +2.2 < > <")).run(&mut kernel, &erhu);
    Play::new("long talk", udp(blue(31_002), "> < +2.2 > <")).run(&mut kernel, &erhu);
    Play::new("never answered", udp(blue(31_003), "> > +2.2 >")).run(&mut kernel, &erhu);
}

#[test]
fn echoes_are_connections() {
    let (mut kernel, erhu) = routers();
    Play::new("ping", echo(blue(500), "> <")).run(&mut kernel, &erhu);
    Play::new("ping twice, answered twice", echo(blue(501), "> > < <")).run(&mut kernel, &erhu);
    Play::new("an answer that nobody asked for", echo(blue(502), "<")).run(&mut kernel, &erhu);
    let third = Flow::new(BLUE, ("10.0.0.6", 500), ("192.0.2.1", 443), "198.51.100.10");
    let both = echo(blue(500), "> <").into_iter().chain(echo(third, "> <")).collect();
    Play::new("two hosts with one id", both).run(&mut kernel, &erhu);
}

#[test]
fn ports_of_one_remote_clash_and_those_of_two_do_not() {
    let (mut kernel, erhu) = routers();
    let flow = |host, server| Flow::new(BLUE, (host, 32_000), (server, 443), "198.51.100.10");
    let steps = [("10.0.0.5", "192.0.2.1"), ("10.0.0.6", "192.0.2.1"), ("10.0.0.7", "192.0.2.2")]
        .into_iter()
        .flat_map(|(host, server)| udp(flow(host, server), "> <"));
    Play::new("three hosts with one port", steps.collect()).run(&mut kernel, &erhu);
}

#[test]
fn icmp_errors_are_related_and_translated_both_ways() {
    let (mut kernel, erhu) = routers();
    let errors = [(3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (11, 0), (11, 1), (12, 0)];
    for (port, error) in (33_000..).zip(errors) {
        let steps = talk_with_errors(&blue(port), &["203.0.113.9"], &["10.0.0.5", "10.0.0.6"], error);
        Play::new(&format!("error {error:?}"), steps).run(&mut kernel, &erhu);
    }
    let open = blue(33_100);
    let mut steps = tcp(open.clone(), "open");
    steps.push(error_outside(&open, "192.0.2.1", 3, 4));
    steps.push(error_outside(&open, "203.0.113.9", 11, 0));
    Play::new("errors about TCP", steps).run(&mut kernel, &erhu);
    let steps = echo_with_errors(&blue(600), ("203.0.113.9", 11, 0), ("10.0.0.5", 3, 1));
    Play::new("errors about echo", steps).run(&mut kernel, &erhu);
}

#[test]
fn icmp_errors_that_fit_nothing_are_invalid() {
    let (mut kernel, erhu) = routers();
    let steps = errors_that_fit_nothing(&blue(34_000), "203.0.113.9", "198.51.100.20", (3, 3));
    Play::new("errors about nothing", steps).run(&mut kernel, &erhu);
}

#[test]
fn a_ttl_that_ends_here_is_answered_and_makes_no_connection() {
    let (mut kernel, erhu) = routers();
    Play::new("TTL 1", living(udp(blue(35_000), ">"), 1)).run(&mut kernel, &erhu);
    Play::new("TTL 2", living(udp(blue(35_001), "> < >"), 2)).run(&mut kernel, &erhu);
}

#[test]
fn broken_checksums_are_invalid() {
    let (mut kernel, erhu) = routers();
    Play::new("UDP", broken(udp(blue(36_000), ">"))).run(&mut kernel, &erhu);
    Play::new("TCP", broken(tcp(blue(36_001), "> S 100 0"))).run(&mut kernel, &erhu);
    Play::new("echo", broken(echo(blue(601), ">"))).run(&mut kernel, &erhu);
    let mut steps = udp(blue(36_002), "> <");
    steps.extend(broken(udp(blue(36_002), "> <")));
    Play::new("in between", steps).run(&mut kernel, &erhu);
}

#[test]
fn what_comes_unasked_makes_nothing() {
    let (mut kernel, erhu) = routers();
    Play::new("UDP", udp(blue(37_000), "<")).run(&mut kernel, &erhu);
    Play::new("SYN", tcp(blue(37_001), "< S 100 0")).run(&mut kernel, &erhu);
    Play::new("ACK", tcp(blue(37_002), "< A 100 5")).run(&mut kernel, &erhu);
}

/// Destination and source translated at once. What is redirected ends at the router and is left out, as its other
/// connections are.
#[test]
fn both_ends_are_translated_alike() {
    let (mut kernel, erhu) = routers();
    let called = |flow: Flow| flow.called_at(("192.0.2.100", 80));
    for (port, (name, life)) in (50_000..).zip(LIVES) {
        Play::new(&format!("{name}, both ends"), tcp(called(blue(port)), life)).run(&mut kernel, &erhu);
    }
    Play::new("talk", udp(called(blue(51_000)), "> < > <")).run(&mut kernel, &erhu);
    Play::new("ping", echo(called(blue(700)), "> < > <")).run(&mut kernel, &erhu);
    let mut both = tcp(called(blue(51_001)), "open");
    both.extend(tcp(blue(51_001), "open"));
    Play::new("the address called and the server's own, from one port", both).run(&mut kernel, &erhu);
    for (port, error) in (51_100..).zip([(3, 3), (3, 4), (11, 0)]) {
        let steps = talk_with_errors(&called(blue(port)), &["203.0.113.9", "192.0.2.1"], &["10.0.0.5"], error);
        Play::new(&format!("error {error:?}, both ends"), steps).run(&mut kernel, &erhu);
    }
}

/// Lives, talks and echoes of both tenants, shuffled into each other.
#[test]
fn random_mixtures_agree() {
    let seed = std::env::var("ERHU_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_240_607);
    println!("seed {seed} (ERHU_SEED)");
    let mut random = play::Random::new(seed);
    let (mut kernel, erhu) = routers();
    for round in 0..3 {
        let mut queues: Vec<Vec<play::Step>> = (0..12)
            .map(|k| {
                let port = 40_000 + k;
                let flow = if random.below(2) == 0 { blue(port) } else { green(port) };
                match random.below(4) {
                    // One answer each: whether a further packet makes a stream hangs on when the kernel's clock calls
                    // two seconds over, which the plays of UDP alone settle by waiting.
                    0 => udp(flow, "> <"),
                    1 => echo(flow, "> < > <"),
                    _ => tcp(flow, LIVES[random.below(LIVES.len())].1),
                }
            })
            .map(|mut steps: Vec<_>| {
                steps.reverse();
                steps
            })
            .collect();
        let mut steps = Vec::new();
        while queues.iter().any(|queue| !queue.is_empty()) {
            let next = random.below(queues.len());
            steps.extend(queues[next].pop());
        }
        Play::new(&format!("mixture {round} of seed {seed}"), steps).run(&mut kernel, &erhu);
    }
}

//! The same for IPv6: one tenant that is translated, one that is not.
//!
//! ```text
//!  blue  fd00::/64, zone 1       ---+
//!                                   +--- router ---- wan 2001:db8::2/64, everything else
//!  open  2001:db8:5::/64, zone 0 ---+
//! ```

use erhu_testbed::kernel::{Device, Kernel};
use erhu_testbed::scenario::{Scenario, router_mac};

use crate::play::{
    Flow, Play, broken, echo, echo_with_errors, error_inside, error_outside, errors_that_fit_nothing, living,
    talk_with_errors, tcp, udp,
};
use crate::{BLUE, GREEN, LIVES, WAN};

const RULES: &str = r#"
    zone("blue", #{ id: 1 });
    interface("lan.100", #{ port: "lan", vlan: 100, zone: "blue", address: ["fd00::1/64"] });
    interface("lan.200", #{ port: "lan", vlan: 200, address: ["2001:db8:5::1/64"] });
    interface("wan",     #{ port: "wan", address: ["2001:db8::2/64"] });
    prerouting(#{ ingress: ["lan.100", "lan.200"], dst: "2001:db8:1::100", proto: ["tcp", "udp"], dport: 80 },
               dnat(#{ to: "[2001:db8:1::1]:443" }));
    prerouting(#{ ingress: ["lan.100", "lan.200"], dst: "2001:db8:1::100", proto: "icmpv6" },
               dnat(#{ to: "2001:db8:1::1" }));
    route("blue", "::/0", #{ zone: "main" });
    route("main", "::/0", #{ via: "2001:db8::1" });
    postrouting(#{ zone: "blue", egress: "wan" }, snat(#{ to: "2001:db8::10" }));
    forward(#{ state: ["established", "related"] }, accept);
    forward(#{ state: "invalid" }, drop);
    forward(#{ ingress: "wan", state: "new" }, drop);
"#;

const NFT: &str = r#"
    table ip6 erhu {
        chain zones {
            type filter hook prerouting priority raw
            iifname "blue" ct original zone set 1
        }
        chain marks {
            type filter hook prerouting priority mangle
            iifname "blue" ct mark set 1
            iifname "blue" meta mark set 1
            iifname "wan" meta mark set ct mark
        }
        chain destinations {
            type nat hook prerouting priority dstnat
            iifname { "blue", "open" } ip6 daddr 2001:db8:1::100 tcp dport 80 dnat to [2001:db8:1::1]:443
            iifname { "blue", "open" } ip6 daddr 2001:db8:1::100 udp dport 80 dnat to [2001:db8:1::1]:443
            iifname { "blue", "open" } ip6 daddr 2001:db8:1::100 meta l4proto ipv6-icmp dnat to 2001:db8:1::1
        }
        chain nat {
            type nat hook postrouting priority srcnat
            oifname "wan" meta mark 1 snat to 2001:db8::10
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
    let device = |side, name, port, address, hosts| Device { side, name, mac: router_mac(port), address, hosts };
    let devices = [
        device(BLUE, "blue", 0, "fd00::1/64", &["fd00::5", "fd00::6", "fd00::7"][..]),
        device(GREEN, "open", 0, "2001:db8:5::1/64", &["2001:db8:5::5"]),
        device(WAN, "wan", 1, "2001:db8::2/64", &["2001:db8::1"]),
    ];
    let commands = [
        "-6 route add default via 2001:db8::1 dev wan",
        "-6 rule add fwmark 1 lookup 101",
        "-6 route add fd00::/64 dev blue table 101",
        "-6 route add default via 2001:db8::1 dev wan table 101",
    ];
    let kernel = Kernel::new(&devices, &commands, NFT).unwrap_or_else(|fault| panic!("{fault}"));
    (kernel, Scenario::of(RULES).connections(4096))
}

const SERVER: (&str, u16) = ("2001:db8:1::1", 443);

fn blue(port: u16) -> Flow {
    Flow::new(BLUE, ("fd00::5", port), SERVER, "2001:db8::10")
}

fn open(port: u16) -> Flow {
    Flow::new(GREEN, ("2001:db8:5::5", port), SERVER, "2001:db8:5::5")
}

#[test]
fn ipv6_lives_take_the_same_states_and_times() {
    let (mut kernel, erhu) = routers();
    for (port, (name, life)) in (20_000..).zip(LIVES).step_by(3) {
        Play::new(name, tcp(blue(port), life)).run(&mut kernel, &erhu);
    }
    for (name, life) in &LIVES[..4] {
        Play::new(name, tcp(open(20_000), life)).run(&mut kernel, &erhu);
    }
}

#[test]
fn ipv6_datagrams_and_echoes_are_connections() {
    let (mut kernel, erhu) = routers();
    Play::new("translated", udp(blue(31_000), "> < > <")).run(&mut kernel, &erhu);
    Play::new("stream", udp(blue(31_001), "> < +2.2 > <")).run(&mut kernel, &erhu);
    Play::new("as it is", udp(open(31_000), "> < > <")).run(&mut kernel, &erhu);
    Play::new("ping", echo(blue(500), "> > < <")).run(&mut kernel, &erhu);
    Play::new("ping as it is", echo(open(500), "> <")).run(&mut kernel, &erhu);
    Play::new("an answer that nobody asked for", echo(blue(502), "<")).run(&mut kernel, &erhu);
    let third = Flow::new(BLUE, ("fd00::6", 500), SERVER, "2001:db8::10");
    let both = echo(blue(500), "> <").into_iter().chain(echo(third, "> <")).collect();
    Play::new("two hosts with one id", both).run(&mut kernel, &erhu);
}

#[test]
fn icmpv6_errors_are_related_and_translated_both_ways() {
    let (mut kernel, erhu) = routers();
    let errors = [(1, 0), (1, 1), (1, 3), (1, 4), (2, 0), (3, 0), (3, 1), (4, 1)];
    for (port, error) in (33_000..).zip(errors) {
        for (flow, host) in [(blue(port), "fd00::6"), (open(port), "2001:db8:5::6")] {
            let steps = talk_with_errors(&flow, &["2001:db8:9::9"], &[host], error);
            Play::new(&format!("error {error:?}"), steps).run(&mut kernel, &erhu);
        }
    }
    let of_tcp = blue(34_000);
    let mut steps = tcp(of_tcp.clone(), "open");
    steps.push(error_outside(&of_tcp, "2001:db8:1::1", 2, 0));
    Play::new("errors about TCP", steps).run(&mut kernel, &erhu);
    let steps = echo_with_errors(&blue(600), ("2001:db8:9::9", 3, 0), ("fd00::6", 1, 3));
    Play::new("errors about echo", steps).run(&mut kernel, &erhu);
    let steps = errors_that_fit_nothing(&blue(34_001), "2001:db8:9::9", "2001:db8::11", (1, 4));
    Play::new("errors about nothing", steps).run(&mut kernel, &erhu);
}

/// Destination and source translated at once, and the destination alone.
#[test]
fn ipv6_destinations_are_translated_alike() {
    let (mut kernel, erhu) = routers();
    let called = |flow: Flow| flow.called_at(("2001:db8:1::100", 80));
    for (port, (name, life)) in (50_000..).zip(LIVES).step_by(3) {
        Play::new(&format!("{name}, both ends"), tcp(called(blue(port)), life)).run(&mut kernel, &erhu);
    }
    for (name, life) in &LIVES[..4] {
        Play::new(&format!("{name}, one end"), tcp(called(open(50_000)), life)).run(&mut kernel, &erhu);
    }
    Play::new("talk", udp(called(blue(51_000)), "> < > <")).run(&mut kernel, &erhu);
    Play::new("talk, one end", udp(called(open(51_000)), "> < > <")).run(&mut kernel, &erhu);
    Play::new("ping", echo(called(blue(700)), "> < > <")).run(&mut kernel, &erhu);
    Play::new("ping, one end", echo(called(open(700)), "> <")).run(&mut kernel, &erhu);
    let mut both = tcp(called(blue(51_001)), "open");
    both.extend(tcp(blue(51_001), "open"));
    Play::new("the address called and the server's own, from one port", both).run(&mut kernel, &erhu);
    for (port, (kind, code)) in (51_100..).zip([(1, 4), (2, 0), (3, 0)]) {
        for (flow, host) in [(called(blue(port)), "fd00::5"), (called(open(port)), "2001:db8:5::5")] {
            let mut steps = udp(flow.clone(), "> <");
            steps.push(error_outside(&flow, "2001:db8:9::9", kind, code));
            steps.push(error_outside(&flow, "2001:db8:1::1", kind, code));
            steps.push(error_inside(&flow, host, kind, code));
            steps.extend(udp(flow, "> <"));
            Play::new(&format!("error {kind}/{code}, translated destination"), steps).run(&mut kernel, &erhu);
        }
    }
}

#[test]
fn ipv6_hop_limits_checksums_and_what_comes_unasked_are_judged_alike() {
    let (mut kernel, erhu) = routers();
    for (limit, talk) in [(1, ">"), (2, "> < >")] {
        Play::new(&format!("hop limit {limit}"), living(udp(blue(35_000), talk), limit)).run(&mut kernel, &erhu);
    }
    Play::new("UDP", broken(udp(blue(36_000), ">"))).run(&mut kernel, &erhu);
    Play::new("TCP", broken(tcp(open(36_001), "> S 100 0"))).run(&mut kernel, &erhu);
    Play::new("echo", broken(echo(blue(601), ">"))).run(&mut kernel, &erhu);
    Play::new("unasked UDP", udp(blue(37_000), "<")).run(&mut kernel, &erhu);
    Play::new("unasked SYN", tcp(open(37_001), "< S 100 0")).run(&mut kernel, &erhu);
}

//! Most first packets take a shorter way through the router than others, and so does what most connections' packets make
//! new rules judge again. What they leave behind is the same.

use std::fmt::Write as _;

use erhu_testbed::packet::{Packet, ping, tcp, udp};
use erhu_testbed::random::Random;
use erhu_testbed::scenario::{Outcome, Scenario};

use crate::{FIREWALL, LAN, WAN, plain_script};

/// Rules that translate, mark, count, refuse; what the tenant's zone has for keys is left open.
fn script(zone: &str) -> String {
    script_with(zone, "", "198.51.100.10-198.51.100.12")
}

/// The same with further rules before all others, and other addresses of a pool.
fn script_with(zone: &str, rules: &str, kept: &str) -> String {
    format!(
        r#"
        zone("inside", #{{ id: 1, limit: 150, {zone} }});
        interface("lan", #{{ port: "lan", zone: "inside", address: ["10.0.0.1/24"] }});
        interface("wan", #{{ port: "wan", address: ["198.51.100.2/24"], mtu: 1400 }});
        pool("kept",   #{{ addresses: "{kept}" }});
        pool("chosen", #{{ addresses: "198.51.100.20", preserve_port: false, ports: "2000-2200", reuse_delay: "2s" }});
        pool("shared", #{{ addresses: "198.51.100.30-198.51.100.31", mapping: "address_port_dependent",
                           ports: "3000-3010" }});
        route("inside", "0.0.0.0/0", #{{ zone: "main" }});
        route("inside", "10.9.0.0/16", #{{ via: "10.0.0.200" }});
        route("main", "0.0.0.0/0", #{{ via: "198.51.100.1" }});
        route("main", "203.0.113.0/24", #{{ blackhole: true }});
        {rules}
        forward(#{{ dport: 9, proto: "udp" }}, reject);
        forward(#{{ dport: 10, proto: "udp" }}, [count("tens"), drop]);
        forward(#{{ dst: "192.0.2.7" }}, [mark(7), count("sevens"), continue_]);
        {FIREWALL}
        postrouting(#{{ mark: 7, egress: "wan" }}, [mark(9), snat(#{{ pool: "chosen" }})]);
        postrouting(#{{ proto: "tcp", dport: 80, egress: "wan" }}, snat(#{{ pool: "kept", ports: "5000-5003" }}));
        postrouting(#{{ dst: "192.0.2.3", egress: "wan" }}, masquerade);
        postrouting(#{{ src: "10.0.0.16/28", egress: "wan" }}, snat(#{{ pool: "shared" }}));
        postrouting(#{{ src: "10.0.0.32/28", egress: "wan" }}, accept);
        postrouting(#{{ zone: "inside", egress: "wan" }}, snat(#{{ pool: "kept" }}));
        "#
    )
}

/// From inside, few hosts and ports, so that packets meet.
fn packet(chance: &mut Random) -> Packet {
    let host = chance.pick(&["10.0.0.5", "10.0.0.6", "10.0.0.17", "10.0.0.18", "10.0.0.40", "10.0.0.255"]);
    let odd = ["203.0.113.9", "10.9.0.1", "198.51.100.77", "198.51.100.10", "224.0.0.9"];
    let to = match chance.below(4) {
        0 => chance.pick(&odd),
        _ => chance.pick(&["192.0.2.1", "192.0.2.3", "192.0.2.7"]),
    };
    let (from, at) =
        (format!("{host}:{}", 4995 + chance.below(12)), format!("{to}:{}", chance.pick(&[9, 10, 53, 80])));
    let packet = match chance.below(8) {
        0..=3 => udp(&from, &at).payload_len(chance.pick(&[10, 10, 10, 10, 1420])),
        4 => tcp(&from, &at).flags("S").seq(5),
        5 => tcp(&from, &at).flags(chance.pick(&["A", "SA", "R", "FPU"])).seq(5).ack(9),
        6 => udp(&from, &at).options(&[1, 1, 1, 0]),
        _ => ping(host, to, chance.pick(&[100, 101, 102, 103])),
    };
    if chance.below(15) == 0 { packet.ttl(1) } else { packet }
}

fn story(outcome: &Outcome) -> String {
    let mut story = String::new();
    for side in [LAN, WAN] {
        for seen in outcome.frames(side) {
            let _ = writeln!(story, "{} {} {seen:?}", side.port, Outcome::seconds(seen));
        }
    }
    let _ = writeln!(story, "{}", outcome.said(1));
    let _ = writeln!(story, "{}", outcome.said(2));
    let _ = writeln!(story, "{:?}", outcome.stats);
    story
}

/// A zone with a rate, however high, makes every first packet go the long way.
#[test]
fn first_packets_leave_the_same_behind_whichever_way_they_take() {
    for seed in 1..=6 {
        let mut chance = Random::new(seed);
        let packets: Vec<Packet> = (0..600).map(|_| packet(&mut chance)).collect();
        let of = |zone: &str| {
            let scenario = Scenario::of(&script(zone)).seed(seed).burst(if seed % 2 == 0 { 64 } else { 1 });
            let scenario = scenario.send_every(0.0, 0.005, LAN, packets.iter().cloned());
            let scenario = scenario.command(3.1, "conntrack:-L -o extended").command(90.0, "conntrack:-S");
            story(&scenario.until(100.0).run())
        };
        let (short, long) = (of(""), of("rate: 4000000000"));
        for (short, long) in short.lines().zip(long.lines()) {
            assert_eq!(short, long, "seed {seed}");
        }
        assert_eq!(short.lines().count(), long.lines().count(), "seed {seed}");
    }
}

/// What an operator may change: rules that refuse, count, mark what runs, other addresses, other tracking.
fn changed(chance: &mut Random, way: &str) -> String {
    let rules = [
        "",
        "forward(#{ dport: 53 }, drop);",
        r#"forward(#{ dport: 80, proto: "tcp" }, reject);"#,
        r#"forward(#{ dst: "192.0.2.1" }, [mark(7), continue_]);"#,
        r#"forward(#{ dst: "192.0.2.3" }, [connmark(4), continue_]);"#,
        r#"forward(#{ src: "10.0.0.17", state: "established" }, drop);"#,
        r#"forward(#{ status: "assured", dport: 10 }, accept);"#,
        r#"forward(#{ src: "10.0.0.5" }, [count("fives"), continue_]);"#,
        r#"raw(#{ ingress: "lan", dport: 80 }, [mark(9), continue_]);"#,
        r#"postrouting(#{ src: "10.0.0.6" }, accept);"#,
        r#"route("inside", "192.0.2.3/32", #{ via: "10.0.0.201" });"#,
        r#"prerouting(#{ dst: "192.0.2.99" }, dnat(#{ to: "192.0.2.1" }));"#,
    ];
    let rules = format!("{} {}", chance.pick(&rules), chance.pick(&rules));
    let kept = ["198.51.100.10-198.51.100.12", "198.51.100.10-198.51.100.11", "198.51.100.11-198.51.100.14"];
    let zone = chance.pick(&["", "", r#"tracking: "liberal""#, r#"tracking: "strict""#]);
    script_with(zone, &rules, chance.pick(&kept)) + way
}

/// An idle rule of prerouting makes every connection go the long way.
#[test]
fn new_rules_find_the_same_whichever_way_connections_are_judged_again() {
    for seed in 1..=10 {
        let of = |way: &str| {
            let mut chance = Random::new(seed);
            let mut packets = || (0..250).map(|_| packet(&mut chance)).collect::<Vec<_>>();
            let [first, second, third] = [packets(), packets(), packets()];
            let scenario = Scenario::of(&(script("") + way));
            let scenario = scenario.seed(seed).burst(if seed % 2 == 0 { 64 } else { 1 });
            let scenario = scenario.send_every(0.0, 0.004, LAN, first.iter().cloned());
            let scenario = scenario.answered(WAN, 0.3, |left| {
                let is_tcp = left.ip().protocol == 6;
                let is_query = is_tcp || left.ip().protocol == 17;
                is_query.then(|| if is_tcp { left.answer().flags("SA").seq(900).ack(6) } else { left.answer() })
            });
            let scenario = scenario.apply(2.0, &changed(&mut chance, way));
            let scenario = scenario.send_every(2.5, 0.004, LAN, first.into_iter().chain(second));
            let scenario = scenario.answered(WAN, 0.4, |left| (left.ip().protocol == 17).then(|| left.answer()));
            let scenario = scenario.apply(6.0, &changed(&mut chance, way));
            let scenario = scenario.send_every(6.5, 0.004, LAN, third);
            let scenario = scenario.command(8.0, "conntrack:-L -o extended").command(90.0, "conntrack:-S");
            let outcome = scenario.until(100.0).run();
            (story(&outcome), outcome.counter("reevaluated"), outcome.counter("ended_by_rules"))
        };
        let (short, long) = (of(""), of(r#"prerouting(#{ src: "10.99.0.1" }, drop);"#));
        assert!(short.1 > 20, "seed {seed}: {} judged again, {} ended", short.1, short.2);
        for (short, long) in short.0.lines().zip(long.0.lines()) {
            assert_eq!(short, long, "seed {seed}");
        }
        assert_eq!(
            (short.0.lines().count(), short.1, short.2),
            (long.0.lines().count(), long.1, long.2),
            "seed {seed}"
        );
    }
}

/// Packets one by one, so that each has the place of the one before: what raw rules said of that, and which connection it
/// was of, is forgotten.
#[test]
fn nothing_of_a_packet_is_left_to_the_next_one() {
    let rules = r#"
        raw(#{ ingress: "lan", dport: 1 }, [mark(1), continue_]);
        raw(#{ ingress: "lan", dport: 2 }, notrack);
        raw(#{ ingress: "lan", dport: 3 }, drop);
        forward(#{ mark: 1 }, accept);
        forward(#{ state: ["untracked", "established"] }, accept);
        forward(#{}, drop);
    "#;
    let from_lan = |port: u16| udp("10.1.1.1:7", &format!("10.2.2.2:{port}"));
    let unasked = || udp("10.2.2.2:5", "10.1.1.1:9");
    for workers in [1, 3] {
        let outcome = Scenario::of(&plain_script(rules))
            .workers(workers)
            .send(0.0, LAN, from_lan(1))
            .send(0.1, WAN, unasked())
            .send(0.2, WAN, udp("10.2.2.2:1", "10.1.1.1:7"))
            .send(0.3, LAN, from_lan(1))
            .send(0.4, LAN, from_lan(2))
            .send(0.5, WAN, unasked())
            .send(0.6, LAN, from_lan(1))
            .send(0.7, LAN, from_lan(3))
            .send(0.8, LAN, from_lan(4))
            .send(0.9, LAN, from_lan(1))
            .run();
        let [one, two] = [1, 2].map(|port| format!("udp 10.1.1.1:7 > 10.2.2.2:{port}"));
        outcome.left(WAN, &[&one, &one, &two, &one, &one].map(String::as_str));
        outcome.left(LAN, &["udp 10.2.2.2:1 > 10.1.1.1:7"]);
        outcome.drops(&[("raw_rule", 1), ("rule", 3)]);
        outcome.table(&["udp 10.1.1.1:7>10.2.2.2:1 10.2.2.2:1>10.1.1.1:7"]);
    }
}

//! Most first packets take a shorter way through the router than others. What they leave behind is the same.

use std::fmt::Write as _;

use erhu_testbed::packet::{Packet, ping, tcp, udp};
use erhu_testbed::random::Random;
use erhu_testbed::scenario::{Outcome, Scenario};

use crate::{FIREWALL, LAN, WAN};

/// Rules that translate, mark, count, refuse; what the tenant's zone has for keys is left open.
fn script(zone: &str) -> String {
    format!(
        r#"
        zone("inside", #{{ id: 1, limit: 150, {zone} }});
        interface("lan", #{{ port: "lan", zone: "inside", address: ["10.0.0.1/24"] }});
        interface("wan", #{{ port: "wan", address: ["198.51.100.2/24"], mtu: 1400 }});
        pool("kept",   #{{ addresses: "198.51.100.10-198.51.100.12" }});
        pool("chosen", #{{ addresses: "198.51.100.20", preserve_port: false, ports: "2000-2200", reuse_delay: "2s" }});
        pool("shared", #{{ addresses: "198.51.100.30-198.51.100.31", mapping: "address_port_dependent",
                           ports: "3000-3010" }});
        route("inside", "0.0.0.0/0", #{{ zone: "main" }});
        route("inside", "10.9.0.0/16", #{{ via: "10.0.0.200" }});
        route("main", "0.0.0.0/0", #{{ via: "198.51.100.1" }});
        route("main", "203.0.113.0/24", #{{ blackhole: true }});
        forward(#{{ dport: 9, proto: "udp" }}, reject);
        forward(#{{ dport: 10, proto: "udp" }}, [count("tens"), drop]);
        forward(#{{ dst: "192.0.2.7" }}, [mark(7), count("sevens"), continue_]);
        {FIREWALL}
        postrouting(#{{ mark: 7, egress: "wan" }}, snat(#{{ pool: "chosen" }}));
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

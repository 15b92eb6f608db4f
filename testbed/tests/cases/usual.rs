//! Most first packets take a shorter way through the router than others, and so does what most connections' packets make
//! new rules judge again. What they leave behind is the same.

use std::fmt::Write as _;
use std::ops::RangeInclusive;

use erhu_controlplane::{Facts, check_script};
use erhu_planes::program::{Hook, states};
use erhu_rules::Rules;
use erhu_testbed::packet::{Packet, ping, tcp, udp};
use erhu_testbed::random::Random;
use erhu_testbed::scenario::{Outcome, Scenario};

use crate::{BLUE, FIREWALL, GREEN, LAN, WAN, plain_script};

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
        {FIREWALL}
        {rules}
        forward(#{{ dport: 9, proto: "udp" }}, reject);
        forward(#{{ dport: 10, proto: "udp" }}, [count("tens"), drop]);
        forward(#{{ dst: "192.0.2.7" }}, [mark(7), count("sevens"), continue_]);
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

fn story(outcome: &Outcome, commands: RangeInclusive<usize>) -> String {
    let mut story = String::new();
    for side in [LAN, WAN] {
        for seen in outcome.frames(side) {
            let _ = writeln!(story, "{} {} {seen:?}", side.port, Outcome::seconds(seen));
        }
    }
    for number in commands {
        let _ = writeln!(story, "{}", outcome.said(number));
    }
    let _ = writeln!(story, "{:?}", outcome.stats);
    story
}

fn same(short: &str, long: &str, seed: u64) {
    for (short, long) in short.lines().zip(long.lines()) {
        assert_eq!(short, long, "seed {seed}");
    }
    assert_eq!(short.lines().count(), long.lines().count(), "seed {seed}");
}

/// Whether a script's rules let the short ways be taken.
fn is_usual(script: &str) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("usual.rhai");
    std::fs::write(&path, script).expect("a file");
    let facts = Facts { ports: Some(vec!["lan".into(), "wan".into()]), capacity: None };
    let program = check_script(&path, &facts).unwrap_or_else(|errors| panic!("{errors:?}\n{script}")).program;
    let rules = Rules::compile(&program);
    rules.accepts_all(Hook::Forward, states::ESTABLISHED)
        && rules.accepts_all(Hook::Prerouting, states::NEW)
        && !rules.translates_destinations()
        && !rules.asks_status()
}

/// A zone with a rate, however high, makes every first packet go the long way.
#[test]
fn first_packets_leave_the_same_behind_whichever_way_they_take() {
    assert!(is_usual(&script("")));
    for seed in 1..=6 {
        let mut chance = Random::new(seed);
        let packets: Vec<Packet> = (0..600).map(|_| packet(&mut chance)).collect();
        let of = |zone: &str| {
            let scenario = Scenario::of(&script(zone)).seed(seed).burst(if seed % 2 == 0 { 64 } else { 1 });
            let scenario = scenario.send_every(0.0, 0.005, LAN, packets.iter().cloned());
            let scenario = scenario.command(3.1, "conntrack:-L -o extended").command(90.0, "conntrack:-S");
            story(&scenario.until(100.0).run(), 1..=2)
        };
        same(&of(""), &of("rate: 4000000000"), seed);
    }
}

/// What an operator may change: rules that refuse, count, mark what runs, other addresses, other tracking, other timeouts.
fn changed(chance: &mut Random) -> String {
    let rules = [
        "",
        "",
        "forward(#{ dport: 53 }, drop);",
        r#"forward(#{ dport: 80, proto: "tcp" }, reject);"#,
        r#"forward(#{ dst: "192.0.2.1" }, [mark(7), continue_]);"#,
        r#"forward(#{ dst: "192.0.2.3" }, [connmark(4), continue_]);"#,
        r#"forward(#{ proto: "udp" }, [connmark(5), continue_]);"#,
        r#"forward(#{ src: "10.0.0.17" }, drop);"#,
        r#"forward(#{ status: "assured", dport: 10 }, accept);"#,
        r#"forward(#{ src: "10.0.0.5" }, [count("fives"), continue_]);"#,
        r#"raw(#{ ingress: "lan", dport: 80 }, [mark(9), continue_]);"#,
        r#"raw(#{ ingress: "lan", dport: 53, src: "10.0.0.6" }, notrack);"#,
        r#"postrouting(#{ src: "10.0.0.6" }, accept);"#,
        r#"route("inside", "192.0.2.3/32", #{ via: "10.0.0.201" });"#,
        r#"prerouting(#{ dst: "192.0.2.99" }, dnat(#{ to: "192.0.2.1" }));"#,
    ];
    let rules = format!("{} {}", chance.pick(&rules), chance.pick(&rules));
    let kept = ["198.51.100.10-198.51.100.12", "198.51.100.10-198.51.100.11", "198.51.100.11-198.51.100.14"];
    let zone = chance.pick(&["", "", r#"tracking: "liberal","#, r#"tracking: "strict","#]);
    let more = chance.below(5);
    let timeouts = format!(
        r#"timeout("t", #{{ udp: {}, udp_stream: {}, tcp_syn_sent: {}, tcp_established: {} }});"#,
        20 + 7 * more,
        60 + 5 * more,
        30 + 5 * more,
        100 + 11 * more,
    );
    script_with(&format!(r#"{zone} timeout: "t""#), &rules, chance.pick(&kept)) + timeouts.as_str()
}

/// An idle rule of prerouting makes every connection go the long way. Some of the first packets come every second, so that
/// their connections are streams, steady in both directions, before the rules change.
#[test]
fn new_rules_find_the_same_whichever_way_connections_are_judged_again() {
    const LONG: &str = r#"prerouting(#{ src: "10.99.0.1" }, drop);"#;
    assert!(!is_usual(&(script("") + LONG)));
    let (mut usual, mut again) = (0, 0);
    for seed in 1..=16 {
        let mut chance = Random::new(seed);
        let mut packets = || (0..120).map(|_| packet(&mut chance)).collect::<Vec<_>>();
        let [first, second] = [packets(), packets()];
        let scripts = [(); 3].map(|()| changed(&mut chance));
        usual += scripts.iter().skip(1).filter(|script| is_usual(script)).count();
        let of = |way: &str| {
            let [before, then, last] = scripts.each_ref().map(|script| format!("{script}{way}"));
            let mut scenario = Scenario::of(&before).seed(seed).burst(if seed % 2 == 0 { 64 } else { 1 });
            for second in 0..5 {
                scenario = scenario.send_every(f64::from(second), 0.004, LAN, first.iter().cloned());
            }
            let scenario = scenario.answered(WAN, 0.3, |left| match left.ip().protocol {
                6 => Some(left.answer().flags("SA").seq(900).ack(6)),
                17 => Some(left.answer()),
                _ => None,
            });
            let scenario = scenario.apply(6.0, &then);
            let scenario = scenario.send_every(6.5, 0.004, LAN, first.iter().chain(&second).cloned());
            let scenario = scenario.answered(WAN, 0.4, |left| (left.ip().protocol == 17).then(|| left.answer()));
            let scenario = scenario.command(8.5, "conntrack:-L -o extended").apply(9.0, &last);
            let scenario = scenario.send_every(9.5, 0.004, LAN, second.iter().cloned());
            let scenario = scenario.command(11.0, "conntrack:-L -o extended").command(90.0, "conntrack:-S");
            let outcome = scenario.until(200.0).run();
            (story(&outcome, 1..=5), outcome.counter("reevaluated"))
        };
        let (short, long) = (of(""), of(LONG));
        same(&short.0, &long.0, seed);
        again += short.1;
    }
    assert!(usual > 15 && again > 500, "{usual} of 32 scripts are usual, {again} connections were judged again");
}

/// The short way of a first packet finds its port taken, by a connection that has that address without translation, and the
/// long one goes on: with the mark that the rules gave the connection.
#[test]
fn a_first_packet_that_changes_its_way_keeps_its_mark() {
    let script = format!(
        r#"
        zone("blue",  #{{ id: 1 }});
        zone("green", #{{ id: 2 }});
        interface("lan.100", #{{ port: "lan", vlan: 100, zone: "blue",  address: ["10.0.0.1/24"] }});
        interface("lan.200", #{{ port: "lan", vlan: 200, zone: "green", address: ["10.0.0.1/24"] }});
        interface("wan",     #{{ port: "wan", address: ["198.51.100.2/24"] }});
        pool("odd", #{{ addresses: "10.0.0.5" }});
        for tenant in ["blue", "green"] {{ route(tenant, "0.0.0.0/0", #{{ zone: "main" }}); }}
        route("main", "0.0.0.0/0", #{{ via: "198.51.100.1" }});
        {FIREWALL}
        forward(#{{ zone: "blue" }}, [connmark(4), continue_]);
        postrouting(#{{ zone: "blue", egress: "wan" }}, snat(#{{ pool: "odd" }}));
        "#
    );
    assert!(is_usual(&script));
    let outcome = Scenario::of(&script)
        .send(0.0, GREEN, udp("10.0.0.5:5000", "192.0.2.1:53"))
        .send(0.1, BLUE, udp("10.0.0.9:5000", "192.0.2.1:53"))
        .command(0.2, "conntrack:-L")
        .run();
    outcome.count_left(WAN, 2);
    assert_eq!(outcome.counter("clash_remapped"), 1);
    let said = outcome.said(1);
    let blue = said.lines().find(|line| line.contains("src=10.0.0.9")).unwrap_or_default();
    assert!(blue.contains("dst=10.0.0.5 ") && blue.contains("mark=4") && !blue.contains("dport=5000"), "{said}");
}

/// New timeouts hold from the first packet that new rules judge, whichever way it is judged.
#[test]
fn a_reload_gives_streams_their_new_timeouts() {
    for way in ["", r#"prerouting(#{ src: "10.99.0.1" }, drop);"#] {
        let script = |seconds: u32| {
            plain_script(&format!(
                r#"timeout("t", #{{ udp_stream: {seconds} }}); zone("main", #{{ timeout: "t" }}); {way}"#
            ))
        };
        for (before, then) in [(120, 600), (600, 150)] {
            let mut scenario = Scenario::of(&script(before));
            for second in 0..6 {
                let at = f64::from(second);
                scenario = scenario.send(at, LAN, udp("10.1.1.1:1", "10.2.2.2:2"));
                scenario = scenario.send(at + 0.5, WAN, udp("10.2.2.2:2", "10.1.1.1:1"));
            }
            let scenario = scenario.apply(10.0, &script(then)).send(11.0, LAN, udp("10.1.1.1:1", "10.2.2.2:2"));
            scenario.until(21.0).run().expires_in("udp", u64::from(then) - 10);
        }
    }
}

/// A SYN that opens a connection again in TIME_WAIT, at a worker that hands it over, after other packets had its place.
#[test]
fn a_segment_that_is_handed_over_may_open_a_connection_again() {
    for port in 40000..40016 {
        let (client, server) = (format!("10.1.1.1:{port}"), "10.2.2.2:80");
        let forth = |flags: &str, seq, ack| tcp(&client, server).flags(flags).seq(seq).ack(ack);
        let back = |flags: &str, seq, ack| tcp(server, &client).flags(flags).seq(seq).ack(ack);
        let outcome = Scenario::of(&plain_script(""))
            .workers(3)
            .send(0.0, LAN, forth("S", 100, 0))
            .send(0.1, WAN, back("SA", 900, 101))
            .send(0.2, LAN, forth("A", 101, 901))
            .send(1.0, LAN, forth("FA", 101, 901))
            .send(1.1, WAN, back("FA", 901, 102))
            .send(1.2, LAN, forth("A", 102, 902))
            .send(5.0, WAN, udp("10.2.2.2:1", "10.1.1.1:1"))
            .send(5.1, LAN, udp("10.1.1.1:3", "10.2.2.2:3"))
            .send(10.0, WAN, back("S", 900_000, 0))
            .send(10.1, WAN, back("S", 900_000, 0))
            .run();
        outcome.count_left(LAN, 5);
        assert!(outcome.entry(&format!("tcp SYN_SENT 10.2.2.2:80>10.1.1.1:{port}")).is("UNREPLIED"));
    }
}

/// Packets one by one, so that each has the place of the one before: what raw rules said of that, here or at the worker
/// that handed it over, and which connection it was of, is forgotten.
#[test]
fn nothing_of_a_packet_is_left_to_the_next_one() {
    let rules = r#"
        raw(#{ ingress: "lan", dport: 1 }, [mark(1), continue_]);
        raw(#{ ingress: "lan", dport: 2 }, notrack);
        raw(#{ ingress: "lan", dport: 3 }, drop);
        raw(#{ ingress: "wan", sport: 1 }, [mark(1), continue_]);
        forward(#{ mark: 1 }, accept);
        forward(#{ state: ["untracked", "established"] }, accept);
        forward(#{}, drop);
    "#;
    for (workers, client) in [(1, 7), (3, 7), (3, 8), (3, 9), (3, 10), (3, 11), (3, 12)] {
        let client = format!("10.1.1.1:{client}");
        let from_lan = |port: u16| udp(&client, &format!("10.2.2.2:{port}"));
        let unasked = || udp("10.2.2.2:5", "10.1.1.1:99");
        let outcome = Scenario::of(&plain_script(rules))
            .workers(workers)
            .send(0.0, LAN, from_lan(1))
            .send(0.1, WAN, unasked())
            .send(0.2, WAN, udp("10.2.2.2:1", &client))
            .send_every(0.21, 0.01, LAN, (4..12).map(from_lan))
            .send(0.3, LAN, from_lan(1))
            .send(0.4, LAN, from_lan(2))
            .send(0.5, WAN, unasked())
            .send(0.6, LAN, from_lan(1))
            .send(0.7, LAN, from_lan(3))
            .send(0.8, LAN, from_lan(4))
            .send(0.9, LAN, from_lan(1))
            .run();
        let [one, two] = [1, 2].map(|port| format!("udp {client} > 10.2.2.2:{port}"));
        outcome.left(WAN, &[&one, &one, &two, &one, &one].map(String::as_str));
        outcome.left(LAN, &[&format!("udp 10.2.2.2:1 > {client}")]);
        outcome.drops(&[("raw_rule", 1), ("rule", 11)]);
        outcome.table(&[&format!("udp {client}>10.2.2.2:1 10.2.2.2:1>{client}")]);
    }
}

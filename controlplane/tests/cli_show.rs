//! `erhu show`: tables and their JSON.

mod cli_fake;

use std::sync::atomic::Ordering::Relaxed;

use cli_fake::Fake;
use erhu_planes::program::{
    Action, AddressRange, Encapsulation, Hook, Interface, InterfaceAddress, Match, MatchKey, PolicyVerdict, Pool,
    PortRange, Position, Prefix, Program, RejectKind, Route, RouteTarget, Rule, Snat, SourceChoice, Zone, states,
};
use erhu_planes::protocol::{NeighbourStatus, PoolStatus};
use erhu_planes::stats::Directory;
use erhu_planes::{Counter, DropReason};

fn range(first: &str, last: &str) -> AddressRange {
    AddressRange { first: first.parse().unwrap(), last: last.parse().unwrap() }
}

fn rule(line: u32, matches: Vec<MatchKey>, actions: Vec<Action>) -> Rule {
    let matches = matches.into_iter().map(|key| Match { negated: false, key }).collect();
    Rule { at: Position { source: 0, line, column: 1 }, matches, actions }
}

/// The manual's example, one tenant of it.
fn program() -> Program {
    let mut p = Program::empty();
    p.sources = vec!["edge.rhai".into()];
    p.zones.push(Zone { id: 1, name: "blue".into(), limit: Some(60_000), ..p.zones[0].clone() });
    let interface = |name: &str, port: &str, encapsulation, zone, address: &str, length| Interface {
        name: name.into(),
        port: port.into(),
        encapsulation,
        zone,
        addresses: vec![InterfaceAddress { address: address.parse().unwrap(), length }],
        mtu: 1500,
        mac: None,
        proxy_arp: false,
    };
    p.interfaces.push(interface("lan.100", "lan", Encapsulation::Vlan(100), 1, "10.0.0.1", 24));
    p.interfaces.push(interface("wan", "wan", Encapsulation::Untagged, 0, "198.51.100.2", 24));
    let default = Prefix::new("0.0.0.0".parse().unwrap(), 0).unwrap();
    p.routes.push(Route { zone: 1, prefix: default, target: RouteTarget::Zone(0), metric: 0 });
    let via = RouteTarget::Via("198.51.100.1".parse().unwrap());
    p.routes.push(Route { zone: 0, prefix: default, target: via, metric: 5 });
    p.pools.push(Pool::new("blue-public", vec![range("198.51.100.10", "198.51.100.11")]));
    p.counters.push("mail".into());
    let ports = vec![PortRange { first: 25, last: 25 }, PortRange { first: 465, last: 587 }];
    p.hooks[Hook::Forward.index()].rules = vec![
        rule(20, vec![MatchKey::State(states::ESTABLISHED | states::RELATED)], vec![Action::Accept]),
        rule(
            21,
            vec![MatchKey::Zone(vec![1]), MatchKey::Protocol(vec![6]), MatchKey::DestinationPort(ports)],
            vec![Action::Count(0), Action::Reject(RejectKind::Default)],
        ),
    ];
    p.hooks[Hook::Forward.index()].zone_policies = vec![(1, PolicyVerdict::Drop)];
    let snat = Snat { source: SourceChoice::Pool(0), ports: None, random: false, persistent: false };
    p.hooks[Hook::Postrouting.index()].rules = vec![rule(
        14,
        vec![
            MatchKey::Zone(vec![1]),
            MatchKey::Egress(vec![1]),
            MatchKey::Source(vec![range("10.0.0.0", "10.0.0.255")]),
        ],
        vec![Action::Snat(snat)],
    )];
    p.validate().unwrap();
    p
}

fn fake() -> Fake {
    let fake = Fake::with_program(&program());
    for (directory, slot, number, name) in [
        (Directory::Zones, 0, 0, "main"),
        (Directory::Zones, 1, 1, "blue"),
        (Directory::Interfaces, 0, 0, "lan.100"),
        (Directory::Interfaces, 1, 0, "wan"),
        (Directory::Named, 0, 0, "mail"),
    ] {
        fake.counters.register(directory, slot, number, name).unwrap();
    }
    for worker in 0..2 {
        let block = fake.counters.worker(worker).unwrap();
        block.created.store(1_000_000, Relaxed);
        block.ended.store(400_000, Relaxed);
        block.ports[1].tx_packets.store(1234, Relaxed);
        block.drops[DropReason::Rule.index()].store(5, Relaxed);
        block.refused[DropReason::ZoneLimit.index()].store(2, Relaxed);
        block.counters[Counter::ClashRemapped.index()].store(1, Relaxed);
        block.cpu.store(u32::try_from(worker).unwrap() + 2, Relaxed);
        let zone = fake.counters.zone(worker, 1).unwrap();
        zone.created.store(30, Relaxed);
        zone.ended.store(10, Relaxed);
        zone.drops[DropReason::Policy.index()].store(3, Relaxed);
        fake.counters.interface(worker, 0).unwrap().rx_bytes.store(600, Relaxed);
        fake.counters.named(worker, 0).unwrap().packets.store(50, Relaxed);
    }
    fake
}

/// A table's row that begins with a word, its cells separated by two blanks or more.
fn row(out: &str, first: &str) -> Vec<String> {
    let line =
        out.lines().find(|l| l.split_whitespace().next() == Some(first)).unwrap_or_else(|| panic!("{first}: {out}"));
    line.split("  ").map(str::trim).filter(|c| !c.is_empty()).map(str::to_owned).collect()
}

#[test]
fn zones_have_their_limits_and_counters_over_all_workers() {
    let shown = fake().erhu("show zones");
    assert_eq!(row(&shown.out, "NAME"), ["NAME", "ID", "LIMIT", "LIVE", "CREATED", "ENDED", "DROPS"]);
    assert_eq!(row(&shown.out, "blue"), ["blue", "1", "60,000", "40", "60", "20", "6"]);
    assert_eq!(row(&shown.out, "main"), ["main", "0", "-", "0", "0", "0", "0"]);
    let json = fake().erhu("show zones --json").json();
    assert_eq!(
        (&json[1]["live"], &json[1]["drops"]["policy"], &json[1]["drops"]["rule"]),
        (&40.into(), &6.into(), &0.into())
    );
}

#[test]
fn ports_and_interfaces_show_facts_and_traffic() {
    let shown = fake().erhu("show ports");
    assert_eq!(row(&shown.out, "wan")[..4], ["wan", "net_null0", "00:00:00:00:00:00", "up"]);
    assert!(row(&shown.out, "wan").contains(&"2,468".to_owned()));
    let shown = fake().erhu("show interfaces");
    assert_eq!(row(&shown.out, "lan.100")[..6], ["lan.100", "lan", "100", "blue", "10.0.0.1/24", "1500"]);
    assert_eq!(row(&shown.out, "wan")[..4], ["wan", "wan", "-", "main"]);
    assert_eq!(fake().erhu("show interfaces --json").json()[0]["traffic"]["rx_bytes"], 1200);
}

#[test]
fn routes_are_connected_ones_then_the_script_s() {
    let shown = fake().erhu("show routes");
    let lines: Vec<Vec<&str>> = shown.out.lines().skip(1).map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["blue", "10.0.0.0/24", "interface", "lan.100", "0", "connected"]);
    assert_eq!(lines[2], ["blue", "0.0.0.0/0", "zone", "main", "0", "script"]);
    assert_eq!(lines[3], ["main", "0.0.0.0/0", "via", "198.51.100.1", "5", "script"]);
    assert_eq!(fake().erhu("show routes --json").json()[3]["kind"], "via");
}

#[test]
fn rules_read_as_the_script_wrote_them() {
    let shown = fake().erhu("show rules").out;
    assert!(shown.contains("#{ state: [\"established\", \"related\"] }"), "{shown}");
    let mail = "#{ zone: \"blue\", proto: \"tcp\", dport: [25, \"465-587\"] }, [count(\"mail\"), reject]";
    assert!(shown.contains(mail), "{shown}");
    assert!(shown.contains("#{ zone: \"blue\", egress: \"wan\", src: \"10.0.0.0/24\" }"), "{shown}");
    assert!(shown.contains("snat(#{ pool: \"blue-public\" })") && shown.contains("edge.rhai:14:1"), "{shown}");
    assert_eq!(row(&shown, "mail"), ["mail", "100", "0"]);
    let json = fake().erhu("show rules --json").json();
    assert_eq!(json["rules"][1]["number"], 2);
    assert!(json["policies"].as_array().unwrap().iter().any(|p| p["zone"] == "blue" && p["verdict"] == "drop"));
}

#[test]
fn neighbours_and_pools_come_from_the_dataplane() {
    let mut fake = fake();
    let neighbour = |address: &str, mac, is_static| NeighbourStatus {
        interface: "wan".into(),
        address: address.parse().unwrap(),
        mac,
        is_static,
        waiting: 3,
        age: 12,
    };
    fake.neighbours = vec![
        neighbour("198.51.100.1", Some([2, 0, 0, 0, 0, 1]), false),
        neighbour("198.51.100.7", None, false),
        neighbour("198.51.100.9", Some([2, 0, 0, 0, 0, 9]), true),
    ];
    let shown = fake.erhu("show neighbours");
    let states: Vec<&str> = shown.out.lines().skip(1).map(|l| l.split_whitespace().nth(3).unwrap()).collect();
    assert_eq!(states, ["known", "asked", "static"]);
    assert_eq!(fake.erhu("show neighbors --json").json()[0]["mac"], "02:00:00:00:00:01");
    fake.pools = vec![PoolStatus {
        name: "blue-public".into(),
        addresses: 2,
        hosts: 4,
        ports_in_use: vec![(6, 1500), (17, 2)],
        given: 2000,
        returned: 498,
        exhausted: 1,
    }];
    let shown = fake.erhu("show pools");
    assert_eq!(
        row(&shown.out, "blue-public"),
        ["blue-public", "198.51.100.10-198.51.100.11", "4", "tcp 1,500, udp 2", "2,000", "498", "1"]
    );
    assert_eq!(fake.erhu("show pools --json").json()[0]["in_use"]["tcp"], 1500);
}

#[test]
fn workers_show_cpu_and_share() {
    let shown = fake().erhu("show workers");
    assert_eq!(row(&shown.out, "1")[..2], ["1", "3"]);
    assert_eq!(fake().erhu("show workers --json").json()[1]["live"], 600_000);
}

#[test]
fn workers_show_how_long_their_loops_take_how_full_bursts_are_and_how_idle_they_are() {
    let mut fake = fake();
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    let block = fake.counters.worker(0).unwrap();
    for (counter, value) in [
        (&block.longest_loop_ns, 2_345_678),
        (&block.minute_longest_ns, 45_678),
        (&block.total_ns, 100_000),
        (&block.busy_ns, 90_000),
        (&block.minute_ns, 60_000),
        (&block.minute_busy_ns, 15_000),
        (&block.loop_times[10], 5_000),
        (&block.loop_times[21], 1),
        (&block.bursts[6], 77),
    ] {
        counter.store(value, relaxed);
    }
    let shown = fake.erhu("show workers");
    assert_eq!(row(&shown.out, "0")[8..], ["75.0%", "<2.0", "45.6", "2,345"], "{}", shown.out);
    assert_eq!(row(&shown.out, "1.0"), ["1.0 us", "2.0 us", "5,000", "0"], "{}", shown.out);
    assert_eq!(row(&shown.out, "2,097"), ["2,097 us", "4,194 us", "1", "0"], "{}", shown.out);
    assert_eq!(row(&shown.out, "64"), ["64", "128", "77", "0"], "{}", shown.out);
    let json = fake.erhu("show workers --json").json();
    let worker = &json[0];
    assert_eq!((&worker["loop_times"][10], &worker["bursts"][6]), (&5_000.into(), &77.into()));
    assert_eq!((&worker["minute_idle_percent"], &worker["idle_percent"]), (&75.0.into(), &10.0.into()));
    assert_eq!(worker["minute_longest_loop_ns"], 45_678);
}

#[test]
fn statistics_in_json_have_every_reason_and_are_the_same_each_time() {
    let json = fake().erhu("show stats --json").json();
    assert_eq!(json["ports"]["wan"], serde_json::json!({"rx_packets":0,"rx_bytes":0,"tx_packets":2468,"tx_bytes":0}));
    assert_eq!(json["zones"]["blue"]["id"], 1);
    for reason in DropReason::ALL {
        assert!(json["drops"][reason.name()].is_u64() && json["zones"]["blue"]["drops"][reason.name()].is_u64());
    }
    assert_eq!(json["drops"]["rule"], 10);
    assert_eq!(json["counters"]["clash_remapped"], 2);
    assert_eq!(json["connections"]["created"], 2_000_000);
    assert_eq!(json["connections"]["live"], 1_200_000);
    assert_eq!(json["connections"]["refused"]["zone_limit"], 4);
    assert_eq!(fake().erhu("show stats --json").out, fake().erhu("show stats --json").out);
    let shown = fake().erhu("show stats").out;
    assert_eq!(row(&shown, "live"), ["live", "1,200,000"]);
    assert_eq!(row(&shown, "rule"), ["rule", "10"]);
}

#[test]
fn before_the_first_rule_set_tables_are_those_of_an_empty_one() {
    let mut fake = Fake::new();
    assert_eq!(row(&fake.erhu("show zones").out, "main")[1], "0");
    assert_eq!(fake.erhu("show routes").status, 0);
    assert_eq!(fake.erhu("show interfaces --json").json(), serde_json::json!([]));
}

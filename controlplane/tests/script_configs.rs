//! The example scripts of `configs/`, and what the main one compiles to.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use erhu_controlplane::{Checked, Facts, check_script};
use erhu_planes::program::{
    Action, AddressRange, Encapsulation, Hook, HookRules, Interface, InterfaceAddress, Match, MatchKey, Pool,
    PortRange, Position, Prefix, Program, RejectKind, Route, RouteTarget, Rule, Snat, SourceChoice, TimeoutPolicy,
    Tracking, Zone, states,
};

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

fn check(name: &str) -> Checked {
    let facts = Facts { ports: Some(vec!["lan".into(), "wan".into()]), capacity: Some(1_000_000) };
    check_script(&configs().join(name), &facts).unwrap_or_else(|faults| {
        panic!("{}", faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
    })
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn zone(id: u16, name: &str, limit: Option<u32>) -> Zone {
    Zone { id, name: name.into(), limit, reserve: 0, rate: None, tracking: Tracking::Loose, timeout: 0 }
}

fn interface(name: &str, port: &str, encapsulation: Encapsulation, zone: u16, own: &str) -> Interface {
    Interface {
        name: name.into(),
        port: port.into(),
        encapsulation,
        zone,
        addresses: vec![InterfaceAddress { address: address(own), length: 24 }],
        mtu: 1500,
        mac: None,
        proxy_arp: false,
    }
}

fn pool(name: &str, first: &str, last: &str) -> Pool {
    Pool::new(name, vec![AddressRange { first: address(first), last: address(last) }])
}

fn rule(line: u32, column: u32, matches: Vec<MatchKey>, action: Action) -> Rule {
    let matches = matches.into_iter().map(|key| Match { negated: false, key }).collect();
    Rule { at: Position { source: 0, line, column }, matches, actions: vec![action] }
}

#[test]
fn the_main_example_compiles_to_this_program() {
    let checked = check("two-tenants.rhai");
    let everything = Prefix::new(address("0.0.0.0"), 0).unwrap();
    let route = |zone, target| Route { zone, prefix: everything, target, metric: 0 };
    let snat =
        |pool| Action::Snat(Snat { source: SourceChoice::Pool(pool), ports: None, random: false, persistent: false });
    let mut hooks = vec![HookRules::default(); Hook::COUNT];
    hooks[Hook::Postrouting.index()].rules = vec![
        rule(14, 5, vec![MatchKey::Egress(vec![2]), MatchKey::Zone(vec![1])], snat(0)),
        rule(14, 5, vec![MatchKey::Egress(vec![2]), MatchKey::Zone(vec![2])], snat(1)),
    ];
    hooks[Hook::Forward.index()].rules = vec![
        rule(18, 1, vec![MatchKey::State(states::ESTABLISHED | states::RELATED)], Action::Accept),
        rule(19, 1, vec![MatchKey::State(states::INVALID)], Action::Drop),
        rule(20, 1, vec![MatchKey::Ingress(vec![2]), MatchKey::State(states::NEW)], Action::Drop),
        rule(
            21,
            1,
            vec![
                MatchKey::Zone(vec![1]),
                MatchKey::Protocol(vec![6]),
                MatchKey::DestinationPort(vec![PortRange { first: 25, last: 25 }]),
            ],
            Action::Reject(RejectKind::Default),
        ),
    ];
    let expected = Program {
        sources: vec![configs().join("two-tenants.rhai").display().to_string()],
        zones: vec![zone(0, "main", None), zone(1, "blue", Some(60_000)), zone(2, "green", Some(60_000))],
        interfaces: vec![
            interface("lan.100", "lan", Encapsulation::Vlan(100), 1, "10.0.0.1"),
            interface("lan.200", "lan", Encapsulation::Vlan(200), 2, "10.0.0.1"),
            interface("wan", "wan", Encapsulation::Untagged, 0, "198.51.100.2"),
        ],
        routes: vec![
            route(1, RouteTarget::Zone(0)),
            route(2, RouteTarget::Zone(0)),
            route(0, RouteTarget::Via(address("198.51.100.1"))),
        ],
        neighbours: Vec::new(),
        pools: vec![
            pool("blue-public", "198.51.100.10", "198.51.100.11"),
            pool("green-public", "198.51.100.20", "198.51.100.20"),
        ],
        timeouts: vec![TimeoutPolicy { name: "default".into(), values: Vec::new(), udp_refresh: None }],
        chains: Vec::new(),
        hooks,
        counters: Vec::new(),
    };
    assert_eq!(checked.program, expected);
    assert!(checked.warnings.is_empty(), "{:?}", checked.warnings);
    let text = std::fs::read_to_string(configs().join("two-tenants.rhai")).unwrap();
    assert_eq!(checked.sources, [(configs().join("two-tenants.rhai"), text)]);
}

#[test]
fn a_thousand_tenants_compile_quickly_and_each_to_its_own() {
    let started = Instant::now();
    let checked = check("many-tenants.rhai");
    let took = started.elapsed();
    // Two seconds on a quiet machine with optimisation; tests run without, beside others.
    let most = if cfg!(debug_assertions) { 20 } else { 2 };
    assert!(took < Duration::from_secs(most), "{took:?}");
    assert!(checked.warnings.is_empty(), "{:?}", checked.warnings);

    let program = &checked.program;
    assert_eq!(program.zones.len(), 1001);
    assert_eq!(program.interfaces.len(), 1001);
    assert_eq!(program.hooks[Hook::Postrouting.index()].rules.len(), 1000);
    let publics: std::collections::HashSet<AddressRange> =
        program.pools.iter().flat_map(|pool| pool.addresses.iter().copied()).collect();
    assert_eq!(publics.len(), 1000);
    for (n, lan) in program.interfaces.iter().skip(1).enumerate() {
        assert_eq!(lan.zone, program.zones[n + 1].id);
        assert_eq!(lan.addresses, program.interfaces[1].addresses);
    }
    assert_eq!(Program::decode(&program.encode().unwrap()).as_ref(), Ok(program));
}

#[test]
fn every_example_script_checks_without_a_warning() {
    let mut seen = 0;
    for entry in std::fs::read_dir(configs()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "rhai") {
            let checked = check_script(&path, &Facts::default()).unwrap();
            assert!(checked.warnings.is_empty(), "{:?}", checked.warnings);
            seen += 1;
        }
    }
    assert!(seen >= 2);
}

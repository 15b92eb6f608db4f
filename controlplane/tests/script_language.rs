//! What scripts can do: names used before they are declared, loops, functions, imports, data; and what every value
//! compiles to.

mod script_common;

use erhu_controlplane::Facts;
use erhu_planes::program::{
    Action, Behaviour, DestinationChoice, Hook, MatchKey, PolicyVerdict, PortRange, RejectKind, RouteTarget,
    SourceChoice, Tracking, states,
};
use erhu_planes::timeouts::{TimeoutKey, UdpRefresh};
use script_common::{check_with, checked};

#[test]
fn every_option_reaches_the_program() {
    let (checked, warnings) = checked(
        r#"
        zone("main", #{ limit: 10, tracking: "strict" });
        zone("blue", #{ id: 7, limit: 0, rate: 5, tracking: "asymmetric", timeout: "slow" });
        timeout("slow", #{ udp: "5m", tcp_established: "2h", udp_refresh: "replied", gre: 1.5, generic: "500ms" });
        timeout("default", #{ icmp: 10 });
        interface("lan", #{ port: "p", vlan: 4094, zone: "blue", address: ["10.0.0.1/24", "10.0.1.1/31"], mtu: 9000,
                            mac: "02:00:00:00:00:0a", proxy_arp: true });
        interface("bare", #{ port: "q", address: [] });
        route("blue", "0.0.0.0/0", #{ zone: "main", metric: 5 });
        route("blue", "10.9.0.0/16", #{ via: "10.0.0.9" });
        route("blue", "10.8.0.0/16", #{ interface: "lan" });
        route("main", "192.0.2.1", #{ blackhole: true });
        neighbour("lan", "10.0.0.9", "02:00:00:00:00:09");
        pool("p", #{ addresses: ["192.0.2.0/30", "192.0.2.9"], ports: "2000-2999", mapping: "address_dependent",
                     preserve_port: false, parity: false, pairing: "arbitrary", reuse_delay: 120, hairpin: false,
                     zone: "main" });
        policy("forward", drop);
        policy("input", "blue", reject);
        chain("c");
        "#,
    );
    assert_eq!(warnings.len(), 2, "the pool and the chain are not used: {warnings:?}");
    let p = &checked.program;
    assert_eq!((p.zones[0].limit, p.zones[0].tracking, p.zones[0].timeout), (Some(10), Tracking::Strict, 0));
    let blue = &p.zones[1];
    assert_eq!((blue.id, blue.limit, blue.rate, blue.timeout), (7, Some(0), Some(5), 1));
    assert_eq!(p.timeouts[0].values, [(TimeoutKey::Icmp, 10_000)]);
    assert_eq!(
        p.timeouts[1].values,
        [
            (TimeoutKey::TcpEstablished, 7_200_000),
            (TimeoutKey::Udp, 300_000),
            (TimeoutKey::Gre, 1500),
            (TimeoutKey::Generic, 500)
        ]
    );
    assert_eq!(p.timeouts[1].udp_refresh, Some(UdpRefresh::Replied));
    let lan = &p.interfaces[0];
    assert_eq!((lan.zone, lan.mtu, lan.mac, lan.proxy_arp), (7, 9000, Some([2, 0, 0, 0, 0, 10]), true));
    assert_eq!(lan.addresses.len(), 2);
    assert_eq!((p.interfaces[1].zone, p.interfaces[1].mtu), (0, 1500));
    let targets: Vec<&RouteTarget> = p.routes.iter().map(|r| &r.target).collect();
    let hop = "10.0.0.9".parse().unwrap();
    assert_eq!(
        targets,
        [&RouteTarget::Zone(0), &RouteTarget::Via(hop), &RouteTarget::Interface(0), &RouteTarget::Blackhole]
    );
    assert_eq!((p.routes[0].metric, p.routes[3].prefix.length), (5, 32));
    assert_eq!((p.neighbours[0].interface, p.neighbours[0].address), (0, hop));
    let pool = &p.pools[0];
    assert_eq!(pool.addresses.iter().map(|r| r.count()).sum::<u64>(), 5);
    assert_eq!((pool.ports, pool.mapping), (PortRange { first: 2000, last: 2999 }, Behaviour::AddressDependent));
    assert!(!pool.preserve_port && !pool.parity && !pool.paired && !pool.hairpin);
    assert_eq!(pool.reuse_delay_ms, 120_000);
    assert_eq!(p.hooks[Hook::Forward.index()].policy, PolicyVerdict::Drop);
    assert_eq!(p.hooks[Hook::Input.index()].zone_policies, [(7, PolicyVerdict::Reject)]);
    assert_eq!(p.hooks[Hook::Input.index()].policy, PolicyVerdict::Accept);
}

#[test]
fn every_match_and_action_reaches_the_program() {
    let (checked, _) = checked(
        r#"
        interface("wan", #{ port: "p" });
        pool("pool", #{ addresses: "192.0.2.1" });
        chain("c");
        forward(#{ ingress: "wan", egress: not(["wan"]), zone: "main", egress_zone: "main", src: "10.0.0.0/8",
                   dst: not(not("10.0.0.1")), proto: ["tcp", "udp", 132], sport: "1-5", dport: [80, "443"],
                   state: ["new", "related"], mark: [7, "0x10/0xf0"] },
                [count("a"), mark("0x10"), continue_, jump("c"), reject("admin")]);
        forward(#{ icmp_type: [8, "3-5"], icmp_code: 0 }, [count("b"), count("a"), return_()]);
        rule("c", #{}, go_to("d"));
        chain("d");
        raw(#{}, notrack);
        postrouting(#{ proto: "tcp" }, snat(#{ pool: "pool", ports: 5, random: true }));
        postrouting(#{ proto: "udp" }, snat(#{ to: ["192.0.2.1-192.0.2.3"], persistent: true }));
        postrouting(#{ proto: "icmp" }, masquerade);
        postrouting(#{}, masquerade(#{ ports: "5-6", random: true }));
        "#,
    );
    let p = &checked.program;
    let forward = &p.hooks[Hook::Forward.index()].rules;
    let negated: Vec<bool> = forward[0].matches.iter().map(|m| m.negated).collect();
    assert_eq!(negated.iter().filter(|n| **n).count(), 1);
    assert!(forward[0].matches.iter().any(|m| m.negated && m.key == MatchKey::Egress(vec![0])));
    let has = |key: MatchKey| forward.iter().flat_map(|r| &r.matches).any(|m| m.key == key);
    assert!(has(MatchKey::Protocol(vec![6, 17, 132])));
    assert!(has(MatchKey::SourcePort(vec![PortRange { first: 1, last: 5 }])));
    assert!(has(MatchKey::DestinationPort(vec![
        PortRange { first: 80, last: 80 },
        PortRange { first: 443, last: 443 }
    ])));
    assert!(has(MatchKey::State(states::NEW | states::RELATED)));
    assert!(has(MatchKey::Mark(vec![(7, u32::MAX), (0x10, 0xf0)])));
    assert!(has(MatchKey::IcmpType(vec![PortRange { first: 8, last: 8 }, PortRange { first: 3, last: 5 }])));
    assert_eq!(p.counters, ["a", "b"]);
    assert_eq!(
        forward[0].actions,
        [Action::Count(0), Action::Mark(16), Action::Continue, Action::Jump(0), Action::Reject(RejectKind::Admin)]
    );
    assert_eq!(forward[1].actions, [Action::Count(1), Action::Count(0), Action::Return]);
    assert_eq!(p.chains[0].rules[0].actions, [Action::GoTo(1)]);
    assert_eq!(p.hooks[Hook::Raw.index()].rules[0].actions, [Action::Notrack]);
    let post: Vec<&Action> = p.hooks[Hook::Postrouting.index()].rules.iter().map(|r| &r.actions[0]).collect();
    let Action::Snat(first) = post[0] else { panic!() };
    assert_eq!(
        (&first.source, first.ports, first.random),
        (&SourceChoice::Pool(0), Some(PortRange { first: 5, last: 5 }), true)
    );
    let Action::Snat(second) = post[1] else { panic!() };
    assert!(matches!(&second.source, SourceChoice::To(ranges) if ranges[0].count() == 3) && second.persistent);
    assert_eq!(post[2], &Action::Masquerade { ports: None, random: false });
    assert_eq!(post[3], &Action::Masquerade { ports: Some(PortRange { first: 5, last: 6 }), random: true });
}

#[test]
fn destinations_are_translated_as_written() {
    let (checked, _) = checked(
        r#"
        zone("blue", #{ id: 1 });
        prerouting(#{ dport: 80 }, dnat(#{ to: "10.0.0.5:8080", zone: "blue" }));
        prerouting(#{ dport: 81 }, dnat(#{ to: ["10.0.0.5", "10.0.0.8-10.0.0.9"], ports: "1-9", persistent: true }));
        prerouting(#{ dport: 82 }, [connmark(5), redirect(53)]);
        prerouting(#{ dst: "198.18.7.0/24" }, netmap("10.1.0.0/24"));
        postrouting(#{ src: "10.1.0.0/24" }, netmap("198.18.7.0/24"));
        "#,
    );
    let p = &checked.program;
    let rules = &p.hooks[Hook::Prerouting.index()].rules;
    let Action::Dnat(one) = &rules[0].actions[0] else { panic!() };
    let port = |first, last| Some(PortRange { first, last });
    assert_eq!((one.ports, one.zone, one.random, one.persistent), (port(8080, 8080), Some(1), false, false));
    let Action::Dnat(several) = &rules[1].actions[0] else { panic!() };
    assert_eq!((several.ports, several.zone, several.persistent), (port(1, 9), None, true));
    assert!(matches!(&several.destination, DestinationChoice::To(ranges) if ranges[1].count() == 2));
    assert_eq!(rules[2].actions[0], Action::ConnMark(5));
    assert!(matches!(&rules[2].actions[1], Action::Dnat(d) if d.destination == DestinationChoice::Ingress));
    assert!(matches!(rules[3].actions[0], Action::Netmap(p) if p.length == 24));
    assert!(matches!(p.hooks[Hook::Postrouting.index()].rules[0].actions[0], Action::Netmap(_)));
}

#[test]
fn a_pool_that_is_open_to_all_lets_its_ports_rest() {
    let rest = |options: &str| {
        let (checked, _) = checked(&format!("pool(\"p\", #{{ addresses: \"192.0.2.1\", {options} }});"));
        let pool = &checked.program.pools[0];
        (pool.filtering, pool.reuse_delay_ms, pool.hairpin)
    };
    assert_eq!(rest(""), (Behaviour::AddressPortDependent, 0, true));
    assert_eq!(rest("filtering: \"endpoint_independent\""), (Behaviour::EndpointIndependent, 120_000, true));
    assert_eq!(rest("filtering: \"address_dependent\", hairpin: false"), (Behaviour::AddressDependent, 0, false));
    assert_eq!(rest("filtering: \"endpoint_independent\", reuse_delay: 5").1, 5000);
}

#[test]
fn constants_and_functions_work_everywhere_and_values_can_be_kept() {
    let (checked, _) = checked(
        r#"
        const DAY = "1d";
        fn tenant(name, id) { zone(name, #{ id: id, limit: global::DAY.len() }); deny(name, drop); }
        fn deny(name, what) { forward(#{ zone: name }, what); }
        tenant("blue", 1);
        let verdict = if true { reject } else { accept };
        for name in ["green", "red"] { zone(name, #{ id: name.len() }); deny(name, verdict); }
        let captured = "blue";
        let close = |what| forward(#{ zone: captured, proto: "tcp" }, what);
        close.call(accept);
        fn each(ports) { ports.for_each(|port| forward(#{ dport: port }, reject)); }
        each([80]);
        [25, 465].for_each(|port| forward(#{ dport: port }, [count("mail"), drop]));
        "#,
    );
    assert_eq!(checked.program.hooks[Hook::Forward.index()].rules.len(), 7);
}

#[test]
fn imported_files_declare_once_and_their_functions_see_everything() {
    let files = [
        (
            "lib/nat.rhai",
            r#"import "deeper/zones" as zones;
fn out(zone, pool) {
    postrouting(#{ zone: zone }, if pool == () { masquerade } else { snat(#{ pool: pool }) });
}
fn wrong() { forward(#{ prot: "tcp" }, drop); }"#,
        ),
        ("lib/deeper/zones.rhai", "const ID = 7;\nzone(\"blue\", #{ id: ID });"),
    ];
    let script = r#"import "lib/nat" as nat;
import "lib/nat.rhai" as again;
import "lib/deeper/zones" as zones;
nat::out("blue", ());
again::out("main", "p");
pool("p", #{ addresses: "192.0.2.1" });"#;
    let (checked, _) = check_with(script, &files, &Facts::default()).unwrap();
    assert_eq!(checked.program.zones.len(), 2);
    assert_eq!(checked.program.sources.len(), 3);
    assert!(checked.program.sources[1].ends_with("rules/lib/nat.rhai"));
    assert!(checked.program.sources[2].ends_with("rules/lib/deeper/zones.rhai"));
    let rules = &checked.program.hooks[Hook::Postrouting.index()].rules;
    assert_eq!((rules[0].at.source, rules[0].at.line), (1, 3));
    assert_eq!(checked.sources[2].1, files[1].1);

    let wrong = format!("{script}\nnat::wrong();");
    assert_eq!(
        check_with(&wrong, &files, &Facts::default()).unwrap_err(),
        ["lib/nat.rhai:5:14: forward: unknown key `prot`, did you mean `proto`?"]
    );
}

#[test]
fn errors_in_imported_files_name_those_files() {
    let cases = [
        ("\n  let = 5;", "lib.rhai:2:7: syntax error: Expecting name of a variable"),
        ("zone(\"a\", #{});", "lib.rhai:1:1: zone: missing key `id`"),
        ("\nthrow 5;", "lib.rhai:2:1: throw: 5"),
        ("fn f() { acept }", "lib.rhai:1:10: unknown name `acept`, did you mean `accept`?"),
        ("import \"lib\" as me;", "lib.rhai:1:8: import: lib.rhai imports itself, directly or through others"),
        ("import \"none\" as none;", "lib.rhai:1:8: import: none.rhai: No such file or directory (os error 2)"),
    ];
    for (text, expected) in cases {
        let found = check_with("import \"lib\" as l;", &[("lib.rhai", text)], &Facts::default()).unwrap_err();
        assert_eq!(found, [expected]);
    }
}

#[test]
fn data_is_read_as_values() {
    let json = r#"{ "tenants": [ { "name": "blue", "id": 1, "limit": null, "slow": true, "wait": 2.5 } ] }"#;
    let script = r#"
        for t in data("in/tenants.json").tenants {
            zone(t.name, #{ id: t.id, limit: t.limit ?? 5, timeout: if t.slow { "slow" } else { "default" } });
            timeout("slow", #{ udp: t.wait });
        }"#;
    let (checked, _) = check_with(script, &[("in/tenants.json", json)], &Facts::default()).unwrap();
    assert_eq!((checked.program.zones[1].limit, checked.program.zones[1].timeout), (Some(5), 1));
    assert_eq!(checked.program.timeouts[1].values, [(TimeoutKey::Udp, 2500)]);
    assert_eq!(checked.program.sources.len(), 1);
    assert_eq!(checked.sources.len(), 2);
    assert_eq!(checked.sources[1].1, json);

    let broken = check_with("data(\"x.json\");", &[("x.json", "{\n  oops }")], &Facts::default()).unwrap_err();
    assert_eq!(broken, ["t.rhai:1:1: data: x.json:2:3: key must be a string"]);
    let missing = check_with("data(\"y.json\");", &[], &Facts::default()).unwrap_err();
    assert_eq!(missing, ["t.rhai:1:1: data: y.json: No such file or directory (os error 2)"]);
}

#[test]
fn what_a_script_prints_is_told_with_the_warnings() {
    let (_, warnings) = checked("print(\"hello\");\ndebug(5);");
    assert_eq!(warnings, ["t.rhai: print: hello", "t.rhai:2:1: debug: 5"]);
}

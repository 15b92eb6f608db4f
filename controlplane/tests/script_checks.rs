//! Warnings: what they find, and where they must stay silent.

mod script_common;

use erhu_controlplane::Facts;
use script_common::{check_with, warnings};

const TENANTS: &str = include_str!("../../configs/two-tenants.rhai");

fn with_facts(script: &str) -> Vec<String> {
    let facts = Facts { ports: Some(vec!["lan".into(), "wan".into()]), capacity: Some(100_000) };
    check_with(script, &[], &facts).unwrap().1
}

/// Warnings that one more line makes in the main example, places left out.
fn added(line: &str) -> Vec<String> {
    let found = warnings(&format!("{TENANTS}\n{line}"));
    found.iter().map(|w| w.split_once(": ").map_or(w.clone(), |(_, rest)| rest.to_owned())).collect()
}

const SHADOWED: &str = "forward: never reached: the rule on line 23 ends every packet that this one matches";

#[test]
fn a_rule_behind_a_wider_final_one_is_never_reached() {
    for line in [
        r#"forward(#{ src: "10.0.0.0/8" }, drop); forward(#{ src: "10.1.0.0/16", proto: "tcp" }, accept);"#,
        r#"forward(#{ dport: [25, 26] }, drop); forward(#{ dport: 25 }, accept);"#,
        r#"forward(#{ dport: "20-30" }, drop); forward(#{ dport: [21, "25-30"] }, accept);"#,
        r#"forward(#{ src: not("10.0.0.0/8") }, drop); forward(#{ src: "11.0.0.1" }, accept);"#,
        r#"forward(#{ src: not("10.0.0.0/16") }, drop); forward(#{ src: not("10.0.0.0/8") }, accept);"#,
        r#"forward(#{ zone: "blue" }, drop); forward(#{ ingress: "lan.100" }, accept);"#,
        r#"forward(#{ egress_zone: "main" }, drop); forward(#{ egress: "wan", dport: 5 }, accept);"#,
        r#"forward(#{ mark: "5/7" }, drop); forward(#{ mark: "5/7", dport: 5 }, accept);"#,
        r#"forward(#{}, return_()); forward(#{ dport: 5 }, accept);"#,
        r#"forward(#{ dport: 5 }, drop); forward(#{ dport: 5 }, drop);"#,
    ] {
        assert_eq!(added(line), [SHADOWED], "{line}");
    }
}

#[test]
fn a_rule_that_can_still_match_is_left_alone() {
    for line in [
        r#"forward(#{ src: "10.1.0.0/16" }, drop); forward(#{ src: "10.0.0.0/8" }, accept);"#,
        r#"forward(#{ dport: 25, proto: "tcp" }, drop); forward(#{ dport: 25 }, accept);"#,
        r#"forward(#{ dport: 25 }, count("x")); forward(#{ dport: 25 }, accept);"#,
        r#"forward(#{ zone: "green" }, drop); forward(#{ ingress: "lan.100" }, accept);"#,
        r#"forward(#{ mark: "5/7" }, drop); forward(#{ mark: 5 }, accept);"#,
        r#"forward(#{ mark: 5 }, drop); forward(#{}, mark(5)); forward(#{ mark: 5 }, accept);"#,
        r#"chain("c"); rule("c", #{ dport: 5 }, drop); forward(#{}, jump("c")); forward(#{ dport: 6 }, drop);"#,
        r#"input(#{ dport: 5 }, drop); forward(#{ dport: 5 }, drop);"#,
        r#"forward(#{ dport: not(5) }, drop); forward(#{ proto: "icmp" }, drop);"#,
        r#"forward(#{ src: "0.0.0.0/0" }, drop); forward(#{ src: "2001:db8::/32" }, drop);"#,
        r#"forward(#{ src: not("10.0.0.0/8"), dst: "2001:db8::1" }, drop);"#,
        r#"forward(#{ proto: ["icmp", "icmpv6"], dst: "2001:db8::1", icmp_type: 128 }, drop);"#,
    ] {
        assert_eq!(added(line), Vec::<String>::new(), "{line}");
    }
}

#[test]
fn a_rule_that_contradicts_itself_never_matches() {
    for (keys, why) in [
        (r#"ingress: "lan.100", zone: "green""#, "interface `lan.100` is in zone `blue`"),
        (r#"egress: "wan", egress_zone: "green""#, "interface `wan` is in zone `main`"),
        (r#"proto: "icmp", dport: 5"#, "`proto` has no ports"),
        (r#"src: "10.0.0.5", dst: "2001:db8::1""#, "addresses and protocol are of IPv4 and of IPv6"),
        (r#"src: "10.0.0.5", proto: "icmpv6""#, "addresses and protocol are of IPv4 and of IPv6"),
        (r#"dst: "2001:db8::/32", proto: "icmp""#, "addresses and protocol are of IPv4 and of IPv6"),
        (r#"proto: "udp", icmp_type: 8"#, "`proto` has no ICMP type"),
        (r#"sport: 5, icmp_type: 8"#, "nothing has ports and an ICMP type"),
        (r#"state: not(["new", "established", "related", "invalid", "untracked"])"#, "`state` leaves nothing"),
    ] {
        assert_eq!(added(&format!("forward(#{{ {keys} }}, drop);")), [format!("forward: never matches: {why}")]);
    }
}

#[test]
fn actions_behind_a_final_one_never_run() {
    let found = added("forward(#{ dport: 5 }, [accept, count(\"x\")]);");
    assert_eq!(found, ["forward: action: what follows the action number 1 never runs"]);
}

fn crossing(from: &str, by: &str, other: &str) -> String {
    format!(
        "t.rhai:13:5: route: zone `{from}` can leave by `{by}` of zone `main` without SNAT, and zone `{other}` has \
         addresses of its 10.0.0.0/24 too"
    )
}

#[test]
fn overlapping_tenants_that_cross_without_snat_are_told() {
    let one = TENANTS.replace("postrouting(", "if tenant == \"blue\" { postrouting(").replace("` }));", "` })); }");
    let found = warnings(&one);
    assert!(found.contains(&crossing("green", "wan", "blue")), "{found:?}");
    assert!(!found.contains(&crossing("blue", "wan", "green")), "{found:?}");

    // Another interface of the zone they cross into, which the rule for `wan` does not cover.
    let mgmt = r#"interface("mgmt", #{ port: "lan", vlan: 9, address: ["192.168.0.1/24"] });"#;
    let found = warnings(&format!("{TENANTS}\n{mgmt}"));
    assert_eq!(found, [crossing("blue", "mgmt", "green"), crossing("green", "mgmt", "blue")]);

    // What forward rules stop does not cross.
    for stop in [
        r#"forward(#{ egress: "mgmt" }, drop);"#,
        r#"chain("c"); rule("c", #{ egress: not("mgmt") }, return_()); rule("c", #{}, drop);
           forward(#{ state: "new" }, jump("c"));"#,
        r#"policy("forward", drop); forward(#{ egress: "wan", state: "new" }, accept);"#,
        r#"policy("forward", "blue", drop); policy("forward", "green", reject);"#,
    ] {
        assert_eq!(warnings(&format!("{TENANTS}\n{mgmt}\n{stop}")), Vec::<String>::new(), "{stop}");
    }
}

#[test]
fn tenants_that_overlap_with_nobody_who_crosses_may_go_as_they_are() {
    let script = r#"
        zone("a", #{ id: 1 }); zone("b", #{ id: 2 });
        interface("a", #{ port: "lan", vlan: 1, zone: "a", address: "10.0.0.1/24" });
        interface("b", #{ port: "lan", vlan: 2, zone: "b", address: "10.0.0.1/24" });
        interface("wan", #{ port: "wan", address: "192.0.2.1/24" });
        route("a", "0.0.0.0/0", #{ zone: "main" });
        route("main", "0.0.0.0/0", #{ via: "192.0.2.254" });"#;
    assert_eq!(warnings(script), Vec::<String>::new());
    let other = script.replace("zone: \"b\", address: \"10.0.0.1/24\"", "zone: \"b\", address: \"10.0.1.1/24\"");
    assert_eq!(
        warnings(&format!("{other} route(\"b\", \"0.0.0.0/0\", #{{ zone: \"main\" }});")),
        Vec::<String>::new()
    );
}

#[test]
fn pools_smaller_than_what_uses_them_are_told() {
    let larger = TENANTS.replace("id: 2, limit: 60_000", "id: 2, limit: 70_000");
    let said = "t.rhai:10:1: pool: `green-public` has 64512 ports for each protocol, but `green` may have 70000 \
                connections: more addresses, or a lower `limit`, keep it from running dry";
    assert_eq!(warnings(&larger), [said]);
    // Without a limit, what the table holds is the limit, where that is known.
    let none = TENANTS.replace("id: 2, limit: 60_000", "id: 2");
    assert_eq!(warnings(&none), Vec::<String>::new());
    assert_eq!(with_facts(&none), [said.replace("70000", "100000")]);
    assert_eq!(with_facts(TENANTS), Vec::<String>::new());
    // Where a port serves many remotes, connections are not bounded by ports.
    let shared = larger.replace("\"198.51.100.20\"", "\"198.51.100.20\", mapping: \"address_port_dependent\"");
    assert_eq!(warnings(&shared), Vec::<String>::new());
}

#[test]
fn what_nothing_uses_is_told() {
    let found = added(
        r#"zone("red", #{ id: 3 }); pool("p", #{ addresses: "192.0.2.1" }); chain("c"); timeout("t", #{ udp: 5 });"#,
    );
    assert_eq!(
        found,
        [
            "zone: `red` has no interface, and no route leads into it",
            "pool: no rule uses `p`",
            "chain: no rule leads to `c`",
            "timeout: no zone uses `t`",
        ]
    );
}

#[test]
fn routes_that_lead_nowhere_are_told() {
    assert_eq!(
        added(r#"route("main", "9.0.0.0/8", #{ via: "203.0.113.1" });"#),
        ["route: via: no interface of zone `main` is connected to 203.0.113.1"]
    );
    // Connected, but in another zone.
    assert_eq!(
        added(r#"route("main", "9.0.0.0/8", #{ via: "10.0.0.9" });"#),
        ["route: via: no interface of zone `main` is connected to 10.0.0.9"]
    );
    assert_eq!(
        added(r#"route("main", "9.0.0.0/8", #{ via: "198.51.100.2" });"#),
        ["route: via: 198.51.100.2 is the router's own address in `main`"]
    );
    assert_eq!(
        added(r#"route("main", "9.0.0.0/8", #{ zone: "blue" }); route("blue", "9.0.0.0/8", #{ zone: "main" });"#),
        ["route: 9.0.0.0/8 leads in a circle: main, blue, main"]
    );
}

#[test]
fn pools_in_the_wrong_place_are_told() {
    assert_eq!(
        warnings(&TENANTS.replace("\"198.51.100.20\"", "\"198.51.100.2\"")),
        [
            "t.rhai:10:1: pool: addresses: 198.51.100.2 is the address of `wan`, which no longer answers for itself: what \
          a pool holds is never local"
        ]
    );
    let elsewhere = TENANTS.replace("\"198.51.100.20\"", "\"198.51.100.20\", zone: \"blue\"");
    assert_eq!(
        warnings(&elsewhere),
        [
            "t.rhai:14:5: postrouting: pool `green-public` has addresses of zone `blue`, but what this rule matches leaves \
          by zone `main`: replies will not find their connection"
        ]
    );
}

#[test]
fn ten_thousand_rules_are_analysed_in_a_moment() {
    let started = std::time::Instant::now();
    for script in [
        "for n in 0..10000 { forward(#{ src: `10.${n / 256}.${n % 256}.1`, dport: 5 }, drop); }",
        "for n in 0..10000 { forward(#{ src: `10.${n / 256}.${n % 256}.0/24` }, drop); }",
    ] {
        assert_eq!(warnings(script), Vec::<String>::new());
    }
    assert!(started.elapsed().as_secs() < 60);
}

#[test]
fn a_destination_without_a_route_is_told() {
    let to = |options: &str| added(&format!(r#"prerouting(#{{ ingress: "wan" }}, dnat(#{{ {options} }}));"#));
    for reached in [r#"to: "10.0.0.5", zone: "blue""#, r#"to: "10.9.0.5", zone: "green""#] {
        assert_eq!(to(reached), [""; 0], "connected, and by the default route");
    }
    let island = r#"zone("island", #{ id: 9 }); interface("lan.9", #{ port: "lan", vlan: 9, zone: "island" });"#;
    let lost = |rule: &str| added(&format!("{island} {rule}"));
    assert_eq!(
        lost(r#"prerouting(#{ ingress: "wan" }, dnat(#{ to: "10.0.0.5", zone: "island" }));"#),
        ["prerouting: dnat: no route of zone `island` leads to 10.0.0.5"]
    );
    assert_eq!(
        lost(r#"prerouting(#{ ingress: "lan.9" }, dnat(#{ to: "10.0.0.5" }));"#),
        ["prerouting: dnat: no route of zone `island` leads to 10.0.0.5; `zone` says whose routes to take"]
    );
    assert_eq!(lost(r#"prerouting(#{}, dnat(#{ to: "10.0.0.5" }));"#), [""; 0], "it may come by others");
}

#[test]
fn a_service_in_the_way_of_mappings_is_told() {
    let with = |pool: &str, port: &str| {
        added(&format!(
            r#"
            pool("open", #{{ addresses: "198.51.100.30", {pool} }});
            postrouting(#{{ zone: "blue", src: "10.0.0.99", egress: "wan" }}, snat(#{{ pool: "open" }}));
            prerouting(#{{ ingress: "wan", dst: "198.51.100.30", {port} }}, dnat(#{{ to: "10.0.0.5", zone: "blue" }}));
            "#
        ))
        .into_iter()
        .filter(|w| w.starts_with("prerouting"))
        .collect::<Vec<_>>()
    };
    let open = r#"filtering: "endpoint_independent""#;
    assert_eq!(
        with(open, "dport: 8080"),
        [
            "prerouting: port 8080 of 198.51.100.30 is one that pool `open` gives too: who calls a mapping there gets to \
          this rule"
        ]
    );
    assert_eq!(with(open, "dport: 443"), [""; 0]);
    assert_eq!(with("", "dport: 8080"), [""; 0], "nobody could call the mapping");
}

/// The main example with IPv6 on its outside and in zone blue.
fn dual_stack(pool: &str, rule: &str) -> Vec<String> {
    let script = format!(
        r#"
        zone("blue", #{{ id: 1 }});
        zone("green", #{{ id: 2 }});
        interface("blue", #{{ port: "lan", vlan: 100, zone: "blue", address: ["10.0.0.1/24", "fd00::1/64"] }});
        interface("green", #{{ port: "lan", vlan: 200, zone: "green", address: "10.0.0.1/24" }});
        interface("wan", #{{ port: "wan", address: ["198.51.100.2/24", "2001:db8::2/64"] }});
        pool("p", #{{ addresses: {pool} }});
        for tenant in ["blue", "green"] {{ route(tenant, "0.0.0.0/0", #{{ zone: "main" }}); }}
        route("blue", "::/0", #{{ zone: "main" }});
        {rule}
        "#
    );
    let found = warnings(&script);
    let found = found.iter().map(|w| w.split_once(": ").map_or(w.clone(), |(_, rest)| rest.to_owned()));
    found.filter(|w| w.contains("has no IPv")).collect()
}

#[test]
fn a_pool_without_an_address_of_a_family_that_its_rule_can_match_is_told() {
    let (v4, both) = (r#""198.51.100.10""#, r#"["198.51.100.10", "2001:db8::10"]"#);
    let v6 = r#""2001:db8::10-2001:db8::1f""#;
    let told = "postrouting: pool `p` has no IPv6 address, so IPv6 packets that this rule matches do not leave; \
                `src: \"0.0.0.0/0\"` leaves them alone";
    for rule in [
        r#"postrouting(#{ zone: "blue", egress: "wan" }, snat(#{ pool: "p" }));"#,
        r#"postrouting(#{ egress: "wan" }, snat(#{ pool: "p" }));"#,
        r#"postrouting(#{ src: not("10.0.0.0/24") }, snat(#{ pool: "p" }));"#,
    ] {
        assert_eq!(dual_stack(v4, rule), [told], "{rule}");
        assert_eq!(dual_stack(both, rule), Vec::<String>::new(), "{rule}");
        assert_eq!(dual_stack(v6, rule), [told.replace("IPv6", "IPv4").replace("0.0.0.0/0", "::/0")], "{rule}");
    }
    for rule in [
        r#"postrouting(#{ zone: "green", egress: "wan" }, snat(#{ pool: "p" }));"#,
        r#"postrouting(#{ zone: "blue", src: "10.0.0.0/24" }, snat(#{ pool: "p" }));"#,
        r#"postrouting(#{ zone: "blue", src: "0.0.0.0/0" }, snat(#{ pool: "p" }));"#,
        r#"postrouting(#{ zone: "blue", proto: "icmp" }, snat(#{ pool: "p" }));"#,
    ] {
        assert_eq!(dual_stack(v4, rule), Vec::<String>::new(), "{rule}");
    }
}

#[test]
fn tenants_with_the_same_addresses_that_meet_over_links_are_told() {
    let found = |route: &str, rule: &str| {
        let script = format!(
            r#"
            zone("blue", #{{ id: 1 }}); zone("green", #{{ id: 2 }});
            interface("blue", #{{ port: "lan", vlan: 1, zone: "blue", address: "10.0.0.1/24" }});
            interface("green", #{{ port: "lan", vlan: 2, zone: "green", address: "10.0.0.1/24" }});
            interface("wan", #{{ port: "wan", address: "198.51.100.2/24" }});
            link("blue-up", "blue-down", #{{ zones: ["blue", "main"] }});
            link("green-up", "green-down", #{{ zones: ["green", "main"] }});
            {route}
            {rule}
            "#
        );
        warnings(&script).into_iter().filter(|w| w.contains("without SNAT")).collect::<Vec<_>>()
    };
    let both =
        r#"for tenant in ["blue", "green"] { route(tenant, "192.0.2.0/24", #{ interface: `${tenant}-up` }); }"#;
    let told = |from, other| {
        format!(
            "t.rhai:8:47: route: zone `{from}` can leave by link `{from}-up` into zone `main` without SNAT, and zone \
             `{other}` has addresses of its 10.0.0.0/24 too"
        )
    };
    assert_eq!(found(both, ""), [told("blue", "green"), told("green", "blue")]);
    assert_eq!(found(both, r#"postrouting(#{ egress: "blue-up" }, masquerade);"#), [told("green", "blue")]);
    assert_eq!(found(both, r#"postrouting(#{ egress: ["blue-up", "green-up"] }, masquerade);"#), [""; 0]);
    assert_eq!(found("", ""), [""; 0]);
}

#[test]
fn tenants_overlap_in_the_family_that_they_cross_in() {
    let crossing = |route: &str, src: &str| {
        let script = format!(
            r#"
            zone("blue", #{{ id: 1 }}); zone("green", #{{ id: 2 }});
            interface("blue", #{{ port: "lan", vlan: 1, zone: "blue", address: ["10.0.0.1/24", "fd00:1::1/64"] }});
            interface("green", #{{ port: "lan", vlan: 2, zone: "green", address: ["10.0.0.1/24", "{src}"] }});
            interface("wan", #{{ port: "wan", address: ["198.51.100.2/24", "2001:db8::2/64"] }});
            for tenant in ["blue", "green"] {{ route(tenant, "{route}", #{{ zone: "main" }}); }}
            "#
        );
        warnings(&script).iter().filter(|w| w.contains("without SNAT")).count()
    };
    assert_eq!(crossing("0.0.0.0/0", "fd00:2::1/64"), 2, "both have 10.0.0.0/24");
    assert_eq!(crossing("::/0", "fd00:2::1/64"), 0, "their IPv6 is apart");
    assert_eq!(crossing("::/0", "fd00:1::1/64"), 2, "both have fd00:1::/64");
}

#[test]
fn a_link_too_narrow_for_ipv6_is_told() {
    let found =
        warnings(r#"interface("a", #{ port: "lan", mtu: 1279, address: ["10.0.0.1/24", "2001:db8::1/64"] });"#);
    assert!(found.iter().any(|w| w.contains("interface: mtu: 1279 is below 1280, which IPv6 needs")), "{found:?}");
    for interface in ["mtu: 1280, address: \"2001:db8::1/64\"", "mtu: 600, address: \"10.0.0.1/24\""] {
        let found = warnings(&format!("interface(\"a\", #{{ port: \"lan\", {interface} }});"));
        assert!(!found.iter().any(|w| w.contains("mtu")), "{found:?}");
    }
}

//! What a wrong script is told: every function and key, with the exact words.

mod script_common;

use erhu_controlplane::Facts;
use script_common::{check_with, checked, errors};

/// Scripts with all that is said about them, `t.rhai:` left out.
fn table(rows: &[(&str, &[&str])]) {
    for (script, expected) in rows {
        let found: Vec<String> = errors(script).iter().map(|line| line.replacen("t.rhai:", "", 1)).collect();
        assert_eq!(found, *expected, "in\n{script}");
    }
}

#[test]
fn zones_say_what_is_wrong_with_them() {
    table(&[
        (r#"zone("a", #{});"#, &["1:1: zone: missing key `id`"]),
        (r#"zone("a", #{ idd: 1 });"#, &["1:1: zone: unknown key `idd`, did you mean `id`?"]),
        (
            r#"zone("a", #{ id: 1, colour: 2 });"#,
            &["1:1: zone: unknown key `colour`, possible are `id`, `limit`, `reserve`, `rate`, `tracking` and \
               `timeout`"],
        ),
        (
            r#"zone("a", #{ id: 0 });"#,
            &["1:1: zone: id: expected a whole number from 1 to 65535, found the number 0"],
        ),
        (
            r#"zone("a", #{ id: 65536 });"#,
            &["1:1: zone: id: expected a whole number from 1 to 65535, found the number 65536"],
        ),
        (
            r#"zone("a", #{ id: "7" });"#,
            &["1:1: zone: id: expected a whole number from 1 to 65535, found the string \"7\""],
        ),
        (
            r#"zone("a", #{ id: 1, limit: -1 });"#,
            &["1:1: zone: limit: expected a whole number from 0 to 4294967295, found the number -1"],
        ),
        (
            r#"zone("a", #{ id: 1, reserve: 1.5 });"#,
            &["1:1: zone: reserve: expected a whole number from 0 to 4294967295, found the number 1.5"],
        ),
        (r#"zone("a", #{ id: 1, limit: 5, reserve: 6 });"#, &["1:1: zone: reserve: 6 is more than the limit of 5"]),
        (
            r#"zone("a", #{ id: 1, rate: 0 });"#,
            &["1:1: zone: rate: expected a whole number from 1 to 4294967295, found the number 0"],
        ),
        (
            r#"zone("a", #{ id: 1, tracking: "lose" });"#,
            &["1:1: zone: tracking: unknown value `lose`, did you mean `loose`?"],
        ),
        (
            r#"zone("a", #{ id: 1, tracking: 5 });"#,
            &["1:1: zone: tracking: expected `strict`, `loose`, `liberal` or `asymmetric`, found the number 5"],
        ),
        (
            r#"zone("a", #{ id: 1, timeout: "slow" }); timeout("slwo", #{});"#,
            &["1:1: zone: timeout: there is no timeout `slow`, did you mean `slwo`?"],
        ),
        (r#"zone("main", #{ id: 1 });"#, &["1:1: zone: id: zone `main` always has id 0"]),
        (r#"zone("", #{ id: 1 });"#, &["1:1: zone: name: \"\" is no name: 1 to 48 bytes without control characters"]),
        (r#"zone(5, #{ id: 1 });"#, &["1:1: zone: name: expected a name, found the number 5"]),
        (r#"zone("a");"#, &["1:1: zone: found 1 argument, it is called as zone(name, #{ id: … })"]),
        (r#"zone("a", [1]);"#, &["1:1: zone: expected a map `#{ … }`, found an array"]),
        (
            "zone(\"a\", #{ id: 1 });\nzone(\"a\", #{ id: 2 });\nzone(\"b\", #{ id: 1 });",
            &["2:1: zone: `a` is declared already on line 1", "3:1: zone: id: 1 is the id of zone `a`"],
        ),
    ]);
}

#[test]
fn interfaces_say_what_is_wrong_with_them() {
    table(&[
        (r#"interface("a", #{});"#, &["1:1: interface: missing key `port`"]),
        (r#"interface("a", #{ prot: "p" });"#, &["1:1: interface: unknown key `prot`, did you mean `port`?"]),
        (r#"interface("a", #{ port: 5 });"#, &["1:1: interface: port: expected a name, found the number 5"]),
        (
            r#"interface("a", #{ port: "p", vlan: 4095 });"#,
            &["1:1: interface: vlan: expected a whole number from 1 to 4094, found the number 4095"],
        ),
        (
            r#"interface("a", #{ port: "p", zone: "man" });"#,
            &["1:1: interface: zone: there is no zone `man`, did you mean `main`?"],
        ),
        (
            r#"interface("a", #{ port: "p", address: ["10.0.0.1"] });"#,
            &[
                "1:1: interface: address: expected an address with its prefix length such as \"10.0.0.1/24\", found the \
               string \"10.0.0.1\"",
            ],
        ),
        (
            r#"interface("a", #{ port: "p", address: "10.0.0.255/24" });"#,
            &["1:1: interface: address: \"10.0.0.255/24\" is the network or broadcast address of its prefix"],
        ),
        (
            r#"interface("a", #{ port: "p", address: "ff02::1/64" });"#,
            &["1:1: interface: address: ff02::1 is no host's address"],
        ),
        (
            r#"interface("a", #{ port: "p", mtu: 100 });"#,
            &["1:1: interface: mtu: expected a whole number from 576 to 9216, found the number 100"],
        ),
        (
            r#"interface("a", #{ port: "p", mac: "02:00" });"#,
            &[
                "1:1: interface: mac: expected a MAC address such as \"02:00:00:00:00:01\", found the string \"02:00\"",
            ],
        ),
        (
            r#"interface("a", #{ port: "p", proxy_arp: 1 });"#,
            &["1:1: interface: proxy_arp: expected true or false, found the number 1"],
        ),
        (
            "interface(\"a\", #{ port: \"p\" });\ninterface(\"b\", #{ port: \"p\" });",
            &["2:1: interface: port: interface `a` is untagged on `p` already"],
        ),
        (
            "interface(\"a\", #{ port: \"p\", vlan: 7 });\ninterface(\"b\", #{ port: \"p\", vlan: 7 });",
            &["2:1: interface: vlan: interface `a` has VLAN 7 of port `p` already"],
        ),
        (
            "interface(\"a\", #{ port: \"p\" });\ninterface(\"a\", #{ port: \"q\" });",
            &["2:1: interface: `a` is declared already on line 1"],
        ),
        (
            "interface(\"a\", #{ port: \"p\", address: \"10.0.0.1/24\" });\n\
             interface(\"b\", #{ port: \"q\", address: \"10.0.0.1/24\" });\n\
             interface(\"c\", #{ port: \"r\", address: \"10.0.0.9/24\" });",
            &[
                "2:1: interface: address: 10.0.0.1 is an address of interface `a` in zone `main` already",
                "3:1: interface: address: 10.0.0.0/24 is connected to `a` in zone `main` already",
            ],
        ),
    ]);
}

#[test]
fn routes_and_neighbours_say_what_is_wrong_with_them() {
    table(&[
        (
            r#"route("main", "10.0.0.0/8", #{});"#,
            &["1:1: route: one of `via`, `interface`, `zone` or `blackhole` is needed"],
        ),
        (
            r#"route("main", "10.0.0.0/8", #{ via: "10.0.0.1", blackhole: true });"#,
            &["1:1: route: `via` and `blackhole` exclude each other"],
        ),
        (
            r#"route("main", "10.0.0.0/8", #{ blackhole: false });"#,
            &["1:1: route: blackhole: a route that is no black hole leaves the key out"],
        ),
        (r#"route("main", "10.0.0.0/8", #{ vai: 1 });"#, &["1:1: route: unknown key `vai`, did you mean `via`?"]),
        (
            r#"route("main", "10.0.0.0/8", #{ via: "ten" });"#,
            &["1:1: route: via: expected an address such as \"10.0.0.1\", found the string \"ten\""],
        ),
        (
            r#"route("main", "10.0.0.1/8", #{ blackhole: true });"#,
            &["1:1: route: prefix: \"10.0.0.1/8\" has bits beyond its length, did you mean \"10.0.0.0/8\"?"],
        ),
        (
            r#"route("main", "2001:db8::/32", #{ via: "10.0.0.1" });"#,
            &["1:1: route: via: 10.0.0.1 is an IPv4 address, the prefix is IPv6"],
        ),
        (
            r#"route("main", "0.0.0.0/0", #{ via: "2001:db8::1" });"#,
            &["1:1: route: via: 2001:db8::1 is an IPv6 address, the prefix is IPv4"],
        ),
        (
            r#"route("bleu", "10.0.0.0/8", #{ zone: "main", metric: -1 }); zone("blue", #{ id: 1 });"#,
            &["1:1: route: metric: expected a whole number from 0 to 4294967295, found the number -1"],
        ),
        (
            r#"route("bleu", "10.0.0.0/8", #{ zone: "main" }); zone("blue", #{ id: 1 });"#,
            &["1:1: route: zone: there is no zone `bleu`, did you mean `blue`?"],
        ),
        (r#"route("main", "10.0.0.0/8", #{ zone: "main" });"#, &["1:1: route: zone: `main` cannot leak into itself"]),
        (
            r#"route("main", "10.0.0.0/8", #{ interface: "wan" });"#,
            &["1:1: route: interface: there is no interface `wan`"],
        ),
        (
            r#"zone("b", #{ id: 1 }); interface("i", #{ port: "p", zone: "b" });
route("main", "10.0.0.0/8", #{ interface: "i" });"#,
            &["2:1: route: interface: `i` is in zone `b`; `zone: \"b\"` leaks into that zone's table"],
        ),
        (
            "route(\"main\", \"10.0.0.0/8\", #{ blackhole: true });\nroute(\"main\", \"10.0.0.0/8\", #{ blackhole: true });",
            &["2:1: route: 10.0.0.0/8 of zone `main` is declared already on line 1"],
        ),
        (
            r#"route("main", "10.0.0.0/8");"#,
            &["1:1: route: found 2 arguments, it is called as route(zone, prefix, #{ via: … })"],
        ),
        (
            r#"neighbour("i", "10.0.0.1", "02:00:00:00:00:01");"#,
            &["1:1: neighbour: interface: there is no interface `i`"],
        ),
        (
            r#"neighbour("i", "224.0.0.1", "01:00:00:00:00:01");"#,
            &[
                "1:1: neighbour: ip: 224.0.0.1 is no host's address",
                "1:1: neighbour: mac: \"01:00:00:00:00:01\" is a group's or no address",
            ],
        ),
        (
            r#"interface("i", #{ port: "p" });
neighbour("i", "10.0.0.1", "02:00:00:00:00:01");
neighbour("i", "10.0.0.1", "02:00:00:00:00:02");"#,
            &["3:1: neighbour: 10.0.0.1 of `i` is declared already on line 2"],
        ),
    ]);
}

#[test]
fn pools_say_what_is_wrong_with_them() {
    table(&[
        (r#"pool("p", #{});"#, &["1:1: pool: missing key `addresses`"]),
        (
            r#"pool("p", #{ address: "192.0.2.1" });"#,
            &["1:1: pool: unknown key `address`, did you mean `addresses`?"],
        ),
        (
            r#"pool("p", #{ addresses: "192.0.2.9-192.0.2.1" });"#,
            &["1:1: pool: addresses: \"192.0.2.9-192.0.2.1\" ends before it begins"],
        ),
        (r#"pool("p", #{ addresses: "192.0.2.1", ports: 0 });"#, &["1:1: pool: ports: port 0 cannot be given"]),
        (
            r#"pool("p", #{ addresses: "192.0.2.1", mapping: "endpoint_independant" });"#,
            &["1:1: pool: mapping: unknown value `endpoint_independant`, did you mean `endpoint_independent`?"],
        ),
        (
            r#"pool("p", #{ addresses: "192.0.2.1", preserve_port: 1 });"#,
            &["1:1: pool: preserve_port: expected true or false, found the number 1"],
        ),
        (
            r#"pool("p", #{ addresses: "192.0.2.1", parity: "x" });"#,
            &["1:1: pool: parity: expected true or false, found the string \"x\""],
        ),
        (
            r#"pool("p", #{ addresses: "192.0.2.1", pairing: "pared" });"#,
            &["1:1: pool: pairing: unknown value `pared`, did you mean `paired`?"],
        ),
        (
            r#"pool("p", #{ addresses: "192.0.2.1", reuse_delay: "2 weeks" });"#,
            &[
                "1:1: pool: reuse_delay: expected a duration (seconds, or \"500ms\", \"30s\", \"5m\", \"2h\", \"1d\"), \
               found the string \"2 weeks\"",
            ],
        ),
        (
            r#"pool("p", #{ addresses: "192.0.2.1", zone: "man" });"#,
            &["1:1: pool: zone: there is no zone `man`, did you mean `main`?"],
        ),
        (
            "pool(\"p\", #{ addresses: \"192.0.2.1\" });\npool(\"q\", #{ addresses: \"192.0.2.0/30\" });",
            &["2:1: pool: addresses: 192.0.2.1 is in pool `p` already, with the same ports"],
        ),
        (
            r#"pool("p", #{ addresses: ["192.0.2.1", "192.0.2.0/30"] });"#,
            &["1:1: pool: addresses: 192.0.2.1 is in it twice"],
        ),
        (
            r#"pool("p", #{ addresses: "9.0.0.0/8" });"#,
            &["1:1: pool: addresses: 16777216 addresses are more than 65536"],
        ),
        (r#"pool("p", #{ addresses: "0.0.0.0/0" });"#, &["1:1: pool: addresses: 0.0.0.0 is no host's address"]),
        (
            "pool(\"p\", #{ addresses: \"192.0.2.1\" });\npool(\"p\", #{ addresses: \"192.0.2.2\" });",
            &["2:1: pool: `p` is declared already on line 1"],
        ),
    ]);
}

#[test]
fn pools_of_one_address_may_have_ports_apart() {
    checked(
        r#"pool("p", #{ addresses: "192.0.2.1", ports: "1024-2047" });
        pool("q", #{ addresses: "192.0.2.1", ports: "2048-4095" });"#,
    );
}

#[test]
fn timeouts_chains_and_policies_say_what_is_wrong_with_them() {
    table(&[
        (
            r#"timeout("t", #{ tcp_establisht: 5 });"#,
            &["1:1: timeout: unknown key `tcp_establisht`, did you mean `tcp_established`?"],
        ),
        (r#"timeout("t", #{ udp: 0 });"#, &["1:1: timeout: udp: a timeout of 0 would end every connection at once"]),
        (
            r#"timeout("t", #{ udp: "1000d" });"#,
            &["1:1: timeout: udp: the string \"1000d\" is out of range: 0 to 100 days"],
        ),
        (
            r#"timeout("t", #{ udp_refresh: "replies" });"#,
            &["1:1: timeout: udp_refresh: unknown value `replies`, did you mean `replied`?"],
        ),
        (
            "timeout(\"default\", #{});\ntimeout(\"default\", #{});",
            &["2:1: timeout: `default` is declared already on line 1"],
        ),
        ("chain(5);", &["1:1: chain: name: expected a name, found the number 5"]),
        ("chain(\"c\");\nchain(\"c\");", &["2:1: chain: `c` is declared already on line 1"]),
        (r#"policy("forwrd", drop);"#, &["1:1: policy: hook: unknown value `forwrd`, did you mean `forward`?"]),
        (
            r#"policy("raw", drop);"#,
            &["1:1: policy: hook: raw has no policy, only input, forward and output have one"],
        ),
        (r#"policy("input", "drop");"#, &["1:1: policy: verdict: drop is a constant, write it without quotes"]),
        (
            r#"policy("input", notrack);"#,
            &["1:1: policy: verdict: expected accept, drop or reject, found the action `notrack`"],
        ),
        (
            r#"policy("input", reject("admin"));"#,
            &["1:1: policy: verdict: a policy is plain reject; a last rule can choose the answer"],
        ),
        (r#"policy("input", "blue", drop);"#, &["1:1: policy: zone: there is no zone `blue`"]),
        ("policy(\"input\", drop);\npolicy(\"input\", accept);", &["2:1: policy: input has one already on line 1"]),
        (
            r#"policy("input");"#,
            &["1:1: policy: found 1 argument, it is called as policy(hook, verdict) or policy(hook, zone, verdict)"],
        ),
    ]);
}

#[test]
fn matches_say_what_is_wrong_with_them() {
    let rows: &[(&str, &str)] = &[
        (r#"ingress: 5"#, "ingress: expected a name, found the number 5"),
        (r#"ingress: "wan""#, "ingress: there is no interface `wan`"),
        (r#"egress: []"#, "egress: an empty array matches nothing"),
        (r#"egress: ["wan"]"#, "egress: there is no interface `wan`"),
        (r#"zone: "man""#, "zone: there is no zone `man`, did you mean `main`?"),
        (r#"egress_zone: not("man")"#, "egress_zone: there is no zone `man`, did you mean `main`?"),
        (r#"zone: ["main", not("main")]"#, "zone: `not` goes around the whole array, not around one value in it"),
        (r#"src: "10.0.0.5/24""#, "src: \"10.0.0.5/24\" has bits beyond its length, did you mean \"10.0.0.0/24\"?"),
        (r#"dst: "@bad""#, "dst: set references (`@bad`): not available yet"),
        (
            r#"dst: "2001:db8::5/64""#,
            "dst: \"2001:db8::5/64\" has bits beyond its length, did you mean \"2001:db8::/64\"?",
        ),
        (r#"proto: "tpc""#, "proto: unknown protocol `tpc`, did you mean `tcp`?"),
        (
            r#"proto: 256"#,
            "proto: expected a protocol (`tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, `dccp`, `gre` or `udplite`, or a \
             number from 0 to 255), found the number 256",
        ),
        (r#"sport: "5-3""#, "sport: \"5-3\" ends before it begins"),
        (r#"dport: 65536"#, "dport: expected a port or a range such as \"1024-65535\", found the number 65536"),
        (r#"dport: "@web""#, "dport: set references (`@web`): not available yet"),
        (r#"icmp_type: 256"#, "icmp_type: expected an ICMP type from 0 to 255, found the number 256"),
        (r#"icmp_code: "x""#, "icmp_code: expected an ICMP code from 0 to 255, found the string \"x\""),
        (r#"state: "nwe""#, "state: unknown value `nwe`, did you mean `new`?"),
        (r#"mark: "0x1/0x2""#, "mark: \"0x1/0x2\" never matches: the mark has bits that the mask has not"),
        (r#"mark: -1"#, "mark: expected a mark such as 7 or \"0x10/0xf0\", found the number -1"),
        (r#"ingres: "wan""#, "unknown key `ingres`, did you mean `ingress`?"),
        (r#"sorce: "10.0.0.1", dts: 5"#, "unknown key `dts`, did you mean `dst`?"),
    ];
    for (keys, expected) in rows {
        let found = errors(&format!("forward(#{{ {keys} }}, drop);"));
        assert_eq!(found[0], format!("t.rhai:1:1: forward: {expected}"), "{keys}");
    }
}

#[test]
fn actions_say_what_is_wrong_with_them() {
    table(&[
        (r#"forward(#{}, "drop");"#, &["1:1: forward: action: drop is no string, write it without quotes"]),
        (
            "forward(#{}, 5);",
            &["1:1: forward: action: expected an action such as accept, drop or snat(#{ … }), found the number 5"],
        ),
        ("forward(#{}, []);", &["1:1: forward: action: an empty array does nothing; `continue_` says so"]),
        ("forward(drop);", &["1:1: forward: found 1 argument, it is called as forward(#{ match }, action)"]),
        ("forward(5, drop);", &["1:1: forward: expected a map `#{ … }`, found the number 5"]),
        ("forward(#{}, accept());", &["1:14: `accept` is written without parentheses"]),
        ("forward(#{}, reject());", &["1:14: reject: without options it is written without parentheses"]),
        ("forward(#{}, return_);", &["1:14: `return_` is a function, it is written `return_(…)`"]),
        (r#"forward(#{}, reject("admn"));"#, &["1:14: reject: kind: unknown value `admn`, did you mean `admin`?"]),
        (r#"forward(#{}, jump("c"));"#, &["1:14: jump: chain: there is no chain `c`"]),
        (r#"forward(#{}, go_to("c"));"#, &["1:14: go_to: chain: there is no chain `c`"]),
        (r#"rule("c", #{}, drop);"#, &["1:1: rule: chain: there is no chain `c`"]),
        (
            r#"forward(#{}, mark("x"));"#,
            &[
                "1:14: mark: number: expected a mark: a number of 32 bits such as 7 or \"0x10\", found the string \"x\"",
            ],
        ),
        ("forward(#{}, count(5));", &["1:14: count: name: expected a name, found the number 5"]),
        ("postrouting(#{}, snat(#{}));", &["1:18: snat: one of `pool` or `to` is needed"]),
        (
            r#"postrouting(#{}, snat(#{ pool: "p", to: "192.0.2.1" }));"#,
            &["1:18: snat: `pool` and `to` exclude each other"],
        ),
        (
            r#"postrouting(#{}, snat(#{ pool: "bleu" })); pool("blue", #{ addresses: "192.0.2.1" });"#,
            &["1:18: snat: pool: there is no pool `bleu`, did you mean `blue`?"],
        ),
        (r#"postrouting(#{}, snat(#{ poool: "p" }));"#, &["1:18: snat: unknown key `poool`, did you mean `pool`?"]),
        (
            r#"postrouting(#{}, snat(#{ to: "224.0.0.1", ports: "0-5", random: 1, persistent: 1 }));"#,
            &[
                "1:18: snat: to: 224.0.0.1 is no host's address",
                "1:18: snat: ports: port 0 cannot be given",
                "1:18: snat: random: expected true or false, found the number 1",
                "1:18: snat: persistent: expected true or false, found the number 1",
            ],
        ),
        (
            "postrouting(#{}, masquerade(#{ port: 5 }));",
            &["1:18: masquerade: unknown key `port`, did you mean `ports`?"],
        ),
    ]);
}

#[test]
fn what_a_hook_may_not_do_is_refused_also_through_chains() {
    table(&[
        (
            "postrouting(#{}, drop);",
            &["1:1: postrouting: `drop` is not possible in postrouting, only in `raw`, `prerouting`, `input`, \
               `forward` and `output`"],
        ),
        (
            r#"forward(#{}, snat(#{ to: "192.0.2.1" }));"#,
            &["1:14: forward: `snat` is not possible in forward, only in `postrouting`"],
        ),
        ("forward(#{}, notrack);", &["1:1: forward: `notrack` is not possible in forward, only in `raw`"]),
        (
            "raw(#{}, reject);",
            &["1:1: raw: `reject` is not possible in raw, only in `input`, `forward` and `output`"],
        ),
        (r#"raw(#{ state: "new" }, drop);"#, &["1:1: raw: state: not known in raw"]),
        (
            r#"prerouting(#{ egress_zone: "main" }, drop);"#,
            &["1:1: prerouting: egress_zone: not known in prerouting"],
        ),
        (
            r#"interface("wan", #{ port: "wan" });
output(#{ ingress: "wan" }, accept);
input(#{ egress: "wan" }, accept);"#,
            &["2:1: output: ingress: not known in output", "3:1: input: egress: not known in input"],
        ),
        (
            r#"chain("c"); chain("d");
rule("c", #{}, jump("d"));
rule("d", #{ state: "new" }, masquerade);
postrouting(#{}, jump("c"));
raw(#{}, go_to("c"));"#,
            &[
                "3:1: rule: `masquerade` is not possible in raw, only in `postrouting` (raw leads to chain `d` on line 5)",
                "3:1: rule: state: not known in raw (raw leads to chain `d` on line 5)",
            ],
        ),
        (
            r#"chain("a"); chain("b");
rule("a", #{}, jump("b"));
rule("b", #{}, go_to("a"));"#,
            &["3:16: jump: chain: `a` leads back to itself"],
        ),
    ]);
}

#[test]
fn jumps_are_nested_sixteen_deep_and_no_deeper() {
    let script = |depth: usize| {
        let mut script = String::new();
        for n in 0..depth {
            script += &format!("chain(\"c{n}\");\n");
            if n > 0 {
                script += &format!("rule(\"c{}\", #{{}}, jump(\"c{n}\"));\n", n - 1);
            }
        }
        script + "forward(#{}, jump(\"c0\"));"
    };
    checked(&script(16));
    let found = errors(&script(17));
    assert!(found.len() == 1 && found[0].contains("jumps are nested deeper than 16"), "{found:?}");
    assert!(errors(&script(4000)).iter().any(|line| line.contains("jumps are nested deeper than 16")));
}

#[test]
fn what_comes_later_is_refused_by_name_and_never_ignored() {
    let functions = [
        r#"set("s", #{ type: "address" })"#,
        r#"service("s", #{})"#,
        r#"log("x")"#,
        "dscp(1)",
        r#"mss("pmtu")"#,
        "limit(#{ packets: 5 })",
        r#"add("@s", 5)"#,
        "tproxy(#{})",
        r#"queue("f")"#,
        "ct(#{})",
    ];
    for call in functions {
        let name = call.split('(').next().unwrap();
        assert_eq!(errors(call), [format!("t.rhai:1:1: {name}: not available yet")]);
        // As an action, alone and beside others, it is one error too.
        for rule in [format!("forward(#{{}}, {call});"), format!("forward(#{{}}, [count(\"n\"), {call}]);")] {
            let found = errors(&rule);
            assert!(found.len() == 1 && found[0].ends_with(&format!(" {name}: not available yet")), "{found:?}");
        }
    }
    let keys = [
        ("zone", r#"zone("z", #{ id: 1, KEY: 5 })"#, "pps bps ports_per_host"),
        ("interface", r#"interface("i", #{ KEY: 5, port: "p" })"#, "qinq vxlan geneve gre gretap ipip rpf"),
        ("interface", r#"interface("i", #{ KEY: #{} })"#, "vxlan geneve gre gretap ipip"),
        ("pool", r#"pool("p", #{ addresses: "192.0.2.1", KEY: 5 })"#, "block blocks_per_host deterministic"),
        (
            "timeout",
            r#"timeout("t", #{ KEY: 5 })"#,
            "sctp_closed sctp_cookie_wait sctp_cookie_echoed sctp_established sctp_shutdown_sent sctp_shutdown_recd \
             sctp_shutdown_ack_sent sctp_heartbeat_sent dccp_request dccp_respond dccp_partopen dccp_open \
             dccp_closereq dccp_closing dccp_timewait fragment_v4 fragment_v6",
        ),
        (
            "forward",
            r#"forward(#{ KEY: "x" }, accept)"#,
            "tcp_flags length dscp ttl fragment helper set over rate_over bytes_over packets_over \
             existing",
        ),
    ];
    for (function, script, names) in keys {
        for key in names.split_whitespace() {
            let found = errors(&script.replace("KEY", key));
            assert_eq!(found, [format!("t.rhai:1:1: {function}: {key}: not available yet")]);
        }
    }
}

#[test]
fn destinations_that_cannot_be_say_why() {
    table(&[
        (r#"prerouting(#{}, dnat(#{ to: "10.0.0.1:0" }));"#, &["1:17: dnat: to: port 0 cannot be given"]),
        (
            r#"prerouting(#{}, dnat(#{ to: "10.0.0.1:80", ports: 81 }));"#,
            &["1:17: dnat: ports: `to` names a port already"],
        ),
        (
            r#"prerouting(#{}, dnat(#{ to: ["10.0.0.1:80", "10.0.0.2:81"] }));"#,
            &["1:17: dnat: to: addresses with different ports; a rule with `ports` for each says which gets which"],
        ),
        (r#"prerouting(#{}, dnat(#{ ports: 80 }));"#, &["1:17: dnat: missing key `to`"]),
        (
            r#"prerouting(#{}, dnat(#{ to: "10.0.0.1", zone: "blu" }));"#,
            &["1:17: dnat: zone: there is no zone `blu`"],
        ),
        (
            r#"forward(#{}, dnat(#{ to: "10.0.0.1" }));"#,
            &["1:14: forward: `dnat` is not possible in forward, only in `prerouting`"],
        ),
        (
            r#"forward(#{}, netmap("10.0.0.0/24"));"#,
            &["1:14: forward: `netmap` is not possible in forward, only in `prerouting` and `postrouting`"],
        ),
        (
            r#"raw(#{}, connmark(1));"#,
            &[
                "1:10: raw: `connmark` is not possible in raw, only in `prerouting`, `input`, `forward` and `postrouting`",
            ],
        ),
        (r#"prerouting(#{}, redirect(0));"#, &["1:17: redirect: port: port 0 cannot be given"]),
    ]);
}

#[test]
fn misspelt_functions_and_names_are_all_found_in_one_go_with_other_errors() {
    table(&[(
        r#"zoen("blue", #{});
frward(#{}, acept);
let x = dorp;
forward(#{ sate: "new" }, x);
chian("c").len();"#,
        &[
            "1:1: unknown function `zoen`, did you mean `zone`?",
            "2:1: unknown function `frward`, did you mean `forward`?",
            "2:13: unknown name `acept`, did you mean `accept`?",
            "3:9: unknown name `dorp`, did you mean `drop`?",
            "4:1: forward: unknown key `sate`, did you mean `state`?",
            "5:1: unknown function `chian`, did you mean `chain`?",
        ],
    )]);
}

#[test]
fn errors_before_a_failing_line_are_reported_with_it() {
    table(&[
        (
            "zone(\"a\", #{});\nthrow \"no tenants\";\nzone(\"b\", #{});",
            &["1:1: zone: missing key `id`", "2:1: throw: no tenants"],
        ),
        // What was not declared because the run ended is no error of its own.
        (
            "forward(#{ zone: \"later\" }, drop);\nlet a = \"x\" - 1;\nzone(\"later\", #{ id: 1 });",
            &["2:13: `-` is not possible with (string, integer)"],
        ),
    ]);
}

#[test]
fn a_broken_declaration_is_not_reported_again_where_it_is_used() {
    table(&[(
        r#"zone("blue", #{ id: 1, colour: "blue" });
interface("lan", #{ port: "lan", vlan: 0, zone: "blue" });
pool("p", #{});
forward(#{ zone: "blue", ingress: "lan" }, accept);
postrouting(#{}, snat(#{ pool: "p" }));"#,
        &[
            "1:1: zone: unknown key `colour`, possible are `id`, `limit`, `reserve`, `rate`, `tracking` and `timeout`",
            "2:1: interface: vlan: expected a whole number from 1 to 4094, found the number 0",
            "3:1: pool: missing key `addresses`",
        ],
    )]);
}

#[test]
fn a_loop_that_repeats_an_error_says_so_once_and_one_that_varies_it_is_cut_short() {
    let found = errors("for n in 0..1000 { zone(`z${n}`, #{ id: n + 1, colour: n }); }");
    assert_eq!(found.len(), 1);
    let found = errors("for n in 0..1000 { zone(`z${n}`, #{ id: -n }); }");
    assert_eq!(found.len(), 25);
    assert_eq!(found[24], "t.rhai:1:20: zone: and 976 more like this");
}

#[test]
fn syntax_errors_name_their_place() {
    table(&[
        ("zone(\"a\", #{ id: 1 })\nlet x = ;", &["2:1: syntax error: Expecting ';' to terminate this statement"]),
        ("\n  let = 5;", &["2:7: syntax error: Expecting name of a variable"]),
        (r#"zone("a", #{ id: 1, id: 2 });"#, &["1:21: syntax error: Duplicated property for object map literal: id"]),
        ("eval(\"1\");", &["1:1: syntax error: reserved keyword 'eval' is disabled"]),
    ]);
}

#[test]
fn a_configuration_adds_its_own_errors() {
    let facts = Facts { ports: Some(vec!["lan".into(), "wan".into()]), capacity: Some(100_000) };
    let script = r#"interface("i", #{ port: "lam" });
zone("a", #{ id: 1, reserve: 60_000 });
zone("b", #{ id: 2, reserve: 60_000 });"#;
    let found = check_with(script, &[], &facts).unwrap_err();
    assert_eq!(
        found,
        [
            "t.rhai:1:1: interface: port: the configuration has no port `lam`, did you mean `lan`?",
            "t.rhai:3:1: zone: reserve: zones reserve 120000 connections, the table holds 100000",
        ]
    );
    checked(script);
}

#[test]
fn a_script_that_cannot_be_read_says_why() {
    let path = std::path::Path::new("/nonexistent/rules.rhai");
    let found = erhu_controlplane::check_script(path, &Facts::default()).unwrap_err();
    assert_eq!(found[0].to_string(), "/nonexistent/rules.rhai: No such file or directory (os error 2)");
}

#[test]
fn links_say_what_is_wrong_with_them() {
    table(&[
        (r#"link("a", "b", #{});"#, &["1:1: link: missing key `zones`"]),
        (
            r#"link("a", "b", #{ zones: "main" });"#,
            &["1:1: link: zones: expected an array of two, one for each end of the link, found the string \"main\""],
        ),
        (r#"link("a", "b", #{ zones: ["main", "main"] });"#, &["1:1: link: zones: both ends are in zone `main`"]),
        (
            r#"zone("blue", #{ id: 1 }); link("a", "b", #{ zones: ["blue", "main"], addresses: ["10.0.0.1/30"] });"#,
            &["1:27: link: addresses: expected an array of two, one for each end of the link, found an array"],
        ),
        (
            r#"zone("blue", #{ id: 1 }); link("a", "a", #{ zones: ["blue", "main"] });"#,
            &["1:27: interface: `a` is declared already on line 1"],
        ),
        (
            r#"zone("blue", #{ id: 1 }); link("a", "b", #{ zones: ["blue", "bleu"] });"#,
            &["1:27: link: zones: there is no zone `bleu`, did you mean `blue`?"],
        ),
        (
            r#"zone("blue", #{ id: 1 }); link("a", "b", #{ zones: ["main", "blue"], mtu: 1500 });"#,
            &["1:27: link: unknown key `mtu`, possible are `zones` and `addresses`"],
        ),
        (
            r#"zone("blue", #{ id: 1 }); link("a", "b", #{ zones: ["main", "blue"] });
               neighbour("a", "10.0.0.1", "02:00:00:00:00:01"); neighbour("b", "fe80::1", "02:00:00:00:00:01");"#,
            &[
                "2:16: neighbour: interface: `a` is an end of a link, which has none",
                "2:65: neighbour: interface: `b` is an end of a link, which has none",
            ],
        ),
        (
            r#"zone("blue", #{ id: 1 });
               interface("lan", #{ port: "lan", zone: "blue", address: "10.0.0.1/24" });
               link("a", "b", #{ zones: ["blue", "main"], addresses: ["10.0.0.1/30", "10.0.0.2/30"] });"#,
            &["3:16: link: address: 10.0.0.1 is an address of interface `lan` in zone `blue` already"],
        ),
        (
            r#"zone("blue", #{ id: 1 }); link("a", "b", #{ zones: ["blue", "main"] });
               route("main", "0.0.0.0/0", #{ interface: "a" });"#,
            &["2:16: route: interface: `a` is in zone `blue`; `zone: \"blue\"` leaks into that zone's table"],
        ),
    ]);
}

#[test]
fn statuses_and_directions_say_what_is_wrong_with_them() {
    table(&[
        (
            r#"forward(#{ status: "snatt" }, accept);"#,
            &["1:1: forward: status: unknown value `snatt`, did you mean `snat`?"],
        ),
        (
            r#"forward(#{ direction: ["original", "both"] }, accept);"#,
            &["1:1: forward: direction: expected `original` or `reply`, found the string \"both\""],
        ),
        (r#"raw(#{ status: "snat" }, drop);"#, &["1:1: raw: status: not known in raw"]),
        (r#"raw(#{ direction: "reply" }, drop);"#, &["1:1: raw: direction: not known in raw"]),
    ]);
}

//! `erhu conntrack`, as scripts use it, and what rules can say.

use erhu_testbed::packet::{Packet, ping, tcp, udp};
use erhu_testbed::scenario::{Entry, Scenario, Side};

use crate::{BLUE, GREEN, LAN, Talk, WAN, nat, plain, tenants, vlan_zones};

/// C4: a deletion with another source deletes nothing and says so; with the right tuple it deletes one.
#[test]
fn a_deletion_needs_the_right_tuple() {
    let tuple = "-p udp --sport 5353 --dport 53";
    let outcome = plain("")
        .send(0.0, LAN, udp("10.1.1.1:5353", "10.2.2.2:53"))
        .command(1.0, &format!("conntrack:-D -s 10.1.1.9 -d 10.2.2.2 {tuple}"))
        .command(2.0, "conntrack:-C")
        .command(3.0, &format!("conntrack:-D -s 10.1.1.1 -d 10.2.2.2 {tuple}"))
        .run();
    assert!(outcome.said(1).contains("0 flow entries have been deleted"), "{outcome}");
    assert_eq!(outcome.said(2).lines().next().map(str::trim), Some("1"));
    assert!(outcome.said(3).contains("1 flow entries have been deleted"), "{outcome}");
    outcome.table(&[]);
}

/// C5: filters show matching lines only; those of the reply side see the translated addresses.
#[test]
fn filters_show_what_matches() {
    let scenario = Talk::NAT.open(nat(), 0.0);
    let scenario = scenario
        .send(0.5, LAN, udp("10.0.0.5:5353", "192.0.2.1:53"))
        .send(0.5, LAN, udp("10.0.0.6:5354", "192.0.2.2:53"))
        .send(0.5, LAN, ping("10.0.0.5", "192.0.2.1", 7));
    let (t, a, b, e) = ("tcp", "10.0.0.5:5353", "10.0.0.6:5354", "#7");
    let filters: &[(&str, &[&str])] = &[
        ("-s 10.0.0.5", &[t, a, e]),
        ("-s 10.0.0.0/24", &[t, a, b, e]),
        ("-s 10.0.0.9", &[]),
        ("-d 192.0.2.2", &[b]),
        ("-r 192.0.2.1", &[t, a, e]),
        ("-q 198.51.100.10", &[t, a, b, e]),
        ("-q 10.0.0.5", &[]),
        ("-p udp", &[a, b]),
        ("-p icmp", &[e]),
        ("-p udp --sport 5353", &[a]),
        ("-p udp --dport 53", &[a, b]),
        ("-p tcp --state ESTABLISHED", &[t]),
        ("-p tcp --state SYN_SENT", &[]),
        ("-p udp -s 10.0.0.5", &[a]),
        ("-u ASSURED", &[t]),
        ("-n", &[t, a, b, e]),
        ("-w 1", &[t, a, b, e]),
        ("-w 0", &[]),
        ("--orig-zone 1", &[t, a, b, e]),
        ("--reply-zone 0", &[t, a, b, e]),
        ("--reply-zone 1", &[]),
    ];
    let outcome =
        filters.iter().fold(scenario, |s, (filter, _)| s.command(1.0, &format!("conntrack:-L {filter}"))).run();
    for (k, (filter, want)) in (1..).zip(filters) {
        let listed = outcome.listed(k);
        let fits = |line: &String| want.iter().any(|w| line.contains(w));
        assert!(listed.len() == want.len() && listed.iter().all(fits), "{filter} shows {listed:#?}");
        assert!(outcome.said(k).contains(&format!("{} flow entries have been shown", want.len())), "{filter}");
    }
}

/// C7: what is in a zone is listed and deleted there; another zone's list is empty.
#[test]
fn a_zone_is_listed_and_deleted_by_itself() {
    let outcome = vlan_zones("[1, 2]")
        .send(0.0, Side::vlan("lan", 1), udp("10.1.1.1:1", "10.2.2.2:2"))
        .command(1.0, "conntrack:-L -w 1")
        .command(1.0, "conntrack:-L -w 2")
        .command(2.0, "conntrack:-D -w 1 -s 10.1.1.1")
        .run();
    assert_eq!(outcome.listed(1), ["udp 10.1.1.1:1>10.2.2.2:2@1 10.2.2.2:2>10.1.1.1:1@1 [UNREPLIED]"]);
    assert!(outcome.listed(2).is_empty());
    outcome.table(&[]);
}

/// C8: the zones of original and reply are shown separately where they differ.
#[test]
fn zones_of_both_tuples_are_shown() {
    let outcome = tenants().send(0.0, BLUE, udp("10.0.0.5:1", "192.0.2.1:53")).run();
    let line = &outcome.lines[0];
    assert!(line.contains("sport=1 dport=53 zone-orig=1 packets=1 bytes=28 [UNREPLIED] src=192.0.2.1 "), "{line}");
    assert!(!line.contains("zone-reply") && !line.contains(" zone="), "{line}");
}

/// Lines are those of conntrack(8): words, order and blanks.
#[test]
fn lines_look_like_those_of_conntrack() {
    let scenario = Talk::NAT.open(nat(), 0.0);
    let outcome = scenario
        .send(0.5, LAN, ping("10.0.0.5", "192.0.2.1", 77))
        .send(0.5, LAN, udp("10.0.0.5:5353", "192.0.2.1:53"))
        .command(0.6, "conntrack:-L")
        .command(0.6, "conntrack:-L -o extended,id")
        .run();
    let said = outcome.said(1);
    let line = |start: &str| {
        let found = said.lines().find(|l| l.starts_with(start));
        found.unwrap_or_else(|| panic!("no line starts with {start:?}\n{said}")).trim_end().to_owned()
    };
    assert_eq!(
        line("tcp      6 "),
        "tcp      6 431999 ESTABLISHED src=10.0.0.5 dst=192.0.2.1 sport=40000 dport=80 zone-orig=1 packets=2 bytes=80 \
         src=192.0.2.1 dst=198.51.100.10 sport=80 dport=40000 packets=1 bytes=40 [ASSURED] mark=0 use=1"
    );
    assert_eq!(
        line("icmp     1 "),
        "icmp     1 29 src=10.0.0.5 dst=192.0.2.1 type=8 code=0 id=77 zone-orig=1 packets=1 bytes=28 [UNREPLIED] \
         src=192.0.2.1 dst=198.51.100.10 type=0 code=0 id=77 packets=0 bytes=0 mark=0 use=1"
    );
    let extended = outcome.said(2);
    assert!(extended.lines().any(|l| l.starts_with("ipv4     2 tcp      6 ")), "{extended}");
    assert!(extended.lines().filter(|l| l.contains("src=")).all(|l| Entry::parse(l).unwrap().id.is_some()));
}

/// `-G` shows one connection by its tuple, and fails for none.
#[test]
fn one_connection_is_fetched_by_its_tuple() {
    let outcome = plain("")
        .send(0.0, LAN, udp("10.1.1.1:5353", "10.2.2.2:53"))
        .send(0.0, LAN, udp("10.1.1.1:5354", "10.2.2.2:53"))
        .command(1.0, "conntrack:-G -p udp -s 10.1.1.1 -d 10.2.2.2 --sport 5353 --dport 53")
        .command(1.0, "conntrack:-G -p udp -s 10.1.1.1 -d 10.2.2.2 --sport 9 --dport 53")
        .command(1.0, "conntrack:-S")
        .run();
    assert_eq!(outcome.listed(1), ["udp 10.1.1.1:5353>10.2.2.2:53 10.2.2.2:53>10.1.1.1:5353 [UNREPLIED]"]);
    assert!(outcome.listed(2).is_empty() && !outcome.said(2).is_empty());
    assert!(!outcome.said(3).is_empty());
}

/// `--json` is JSON.
#[test]
fn json_is_printed_on_request() {
    let outcome = tenants()
        .send(0.0, BLUE, udp("10.0.0.5:1", "192.0.2.1:53"))
        .command(1.0, "conntrack:-L --json")
        .command(1.0, "show:zones --json")
        .run();
    for k in [1, 2] {
        let said = outcome.said(k);
        let end = said.rfind([']', '}']).unwrap_or_else(|| panic!("no JSON in {said:?}"));
        let value: Result<serde_json::Value, _> = serde_json::from_str(&said[..=end]);
        assert!(value.is_ok(), "{value:?}\n{said}");
    }
}

/// T166: what comes in is let in only after something went out.
#[test]
fn the_way_in_opens_after_the_way_out() {
    let rules = r#"
        forward(#{ state: "established" }, accept);
        forward(#{ ingress: "wan" }, drop);
    "#;
    let outcome = plain(rules)
        .send(0.0, WAN, udp("10.2.2.2:53", "10.1.1.1:1"))
        .send(1.0, LAN, udp("10.1.1.1:1", "10.2.2.2:53"))
        .send(2.0, WAN, udp("10.2.2.2:53", "10.1.1.1:1"))
        .run();
    outcome.count_left(LAN, 1);
    outcome.drops(&[("rule", 1)]);
}

/// T166: a datagram without payload passes; ranges of ports end exactly where they say, also where a byte overflows.
#[test]
fn ranges_end_where_they_say() {
    let rules = r#"
        forward(#{ proto: "udp", dport: "255-256" }, accept);
        forward(#{ proto: "udp", dport: "511-1024" }, accept);
        forward(#{ dst: "10.2.2.127-10.2.2.128" }, accept);
        policy("forward", drop);
    "#;
    let ports = [254, 255, 256, 257, 510, 511, 512, 1024, 1025];
    let to_port = ports.map(|port| udp("10.1.1.1:1", &format!("10.2.2.2:{port}")));
    let hosts = [126, 127, 128, 129];
    let to_host = hosts.map(|host| udp("10.1.1.1:1", &format!("10.2.2.{host}:9")));
    let outcome = plain(rules).send_all(0.0, LAN, to_port.into_iter().chain(to_host)).run();
    let through: Vec<_> = outcome.packets(WAN).iter().map(|s| s.destination().to_string()).collect();
    let want = [
        "10.2.2.2:255",
        "10.2.2.2:256",
        "10.2.2.2:511",
        "10.2.2.2:512",
        "10.2.2.2:1024",
        "10.2.2.127:9",
        "10.2.2.128:9",
    ];
    assert_eq!(through, want);
    outcome.drops(&[("policy", 6)]);
}

/// T166: ten thousand rules are all looked at, in their order.
#[test]
fn ten_thousand_rules_are_walked_in_order() {
    let rules = r#"
        for k in 0..10000 {
            let last = k % 250 + 1;
            let name = if k % 2 == 0 { "even" } else { "odd" };
            forward(#{ dst: `10.2.2.${last}`, dport: 1000 + k }, [count(name), accept]);
        }
        forward(#{ dport: 1000 }, accept);
        policy("forward", drop);
    "#;
    let to = |k: u32| -> Packet { udp("10.1.1.1:1", &format!("10.2.2.{}:{}", k % 250 + 1, 1000 + k)) };
    let outcome = plain(rules)
        .send_all(0.0, LAN, [0, 1, 63, 64, 65, 4095, 4096, 9998, 9999].map(to))
        .send(0.0, LAN, udp("10.1.1.1:1", "10.2.2.2:1000"))
        .send(0.0, LAN, udp("10.1.1.1:1", "10.2.2.2:1002"))
        .run();
    outcome.count_left(WAN, 10);
    outcome.drops(&[("policy", 1)]);
    assert_eq!((outcome.stat(&["named", "even", "packets"]), outcome.stat(&["named", "odd", "packets"])), (4, 5));
}

/// Jumps come back, `go_to` does not, `return_` leaves a chain.
#[test]
fn chains_are_walked_as_they_are_written() {
    let rules = r#"
        chain("a"); chain("b"); chain("c");
        rule("a", #{ dport: 1 }, return_());
        rule("a", #{ dport: [1, 2] }, drop);
        rule("b", #{ dport: 3 }, accept);
        rule("c", #{}, [mark(7), jump("a"), continue_]);
        forward(#{ dport: [1, 2] }, jump("c"));
        forward(#{ mark: 7 }, [count("marked"), accept]);
        forward(#{ dport: [3, 4] }, go_to("b"));
        forward(#{ dport: 4 }, accept);
        policy("forward", drop);
    "#;
    let packets = (1..=5).map(|port| udp("10.1.1.1:1", &format!("10.2.2.2:{port}")));
    let outcome = plain(rules).send_all(0.0, LAN, packets).run();
    outcome.left(WAN, &["udp 10.1.1.1:1 > 10.2.2.2:1", "udp 10.1.1.1:1 > 10.2.2.2:3"]);
    outcome.drops(&[("rule", 1), ("policy", 2)]);
    assert_eq!(outcome.stat(&["named", "marked", "packets"]), 1);
}

/// Features to come are refused by name, never ignored.
#[test]
fn what_is_not_available_yet_is_refused() {
    for declaration in [
        r#"set("x", #{ type: "address" });"#,
        r#"forward(#{ over: #{ connections: 3, per: "src" } }, drop);"#,
        r#"forward(#{}, limit(#{ packets: 3 }));"#,
        r#"interface("t", #{ vxlan: #{ vni: 5, local: "10.1.1.254", remote: "10.2.2.9" } });"#,
    ] {
        let error = plain(declaration).try_run().err().unwrap_or_else(|| panic!("{declaration} was accepted"));
        assert!(error.contains("not available yet"), "{declaration}: {error}");
    }
}

/// Protocols and packets that the router does not handle are dropped for that reason.
#[test]
fn what_is_not_handled_is_unsupported() {
    let outcome = plain("")
        .send(0.0, LAN, erhu_testbed::packet::ip_protocol("10.1.1.1", "10.2.2.2", 47).payload_len(40))
        .send(0.0, LAN, udp("10.1.1.1:1", "10.2.2.2:2").payload_len(64).fragment(0, true))
        .send(0.0, LAN, udp("10.1.1.1:1", "10.2.2.2:2").payload_len(64).fragment(64, false))
        .send(0.0, LAN, udp("[2001:db8::1]:1", "[2001:db8::2]:2").payload_len(64).fragment(64, false))
        .send(0.0, LAN, udp("127.0.0.1:1", "10.2.2.2:2"))
        .send(0.0, LAN, udp("10.1.1.1:1", "240.0.0.1:2"))
        .send(0.0, LAN, udp("10.1.1.1:1", "239.1.1.1:2"))
        .run();
    outcome.drops(&[("unsupported", 7)]);
    outcome.left(WAN, &[]);
}

/// Broken link and IP headers, and frames for others.
#[test]
fn broken_and_foreign_frames_are_dropped_by_name() {
    let good = || udp("10.1.1.1:1", "10.2.2.2:2").payload_len(20);
    let outcome = plain("")
        .send(0.0, LAN, good().cut(10))
        .send(0.0, LAN, good().cut(30))
        .send(0.0, LAN, good().ip_byte(0, 0x44))
        .send(0.0, LAN, good().ip_byte(0, 0x65))
        .send(0.0, LAN, good().ip_byte(2, 1))
        .send(0.0, LAN, good().bad_ip_checksum())
        .send(0.0, LAN, good().mac_to([2, 9, 9, 9, 9, 9]))
        .run();
    outcome.drops(&[("malformed", 5), ("bad_checksum", 1), ("not_for_us", 1)]);
    outcome.accounted();
}

/// ARP both ways: asked about its own, pool and proxied addresses the router answers; it asks for next hops and keeps
/// packets until it knows.
#[test]
fn arp_is_answered_and_asked() {
    use erhu_testbed::packet::{arp_reply, arp_request};
    let script = crate::nat_script(r#"addresses: "198.51.100.10-198.51.100.11""#, "");
    let scenario = Scenario::of(&script).silent_neighbours();
    let router = scenario.router_mac("wan");
    let outcome = scenario
        .send(0.0, WAN, arp_request("198.51.100.2", "198.51.100.1"))
        .send(0.1, WAN, arp_request("198.51.100.11", "198.51.100.1"))
        .send(0.2, WAN, arp_request("198.51.100.77", "198.51.100.1"))
        .send(0.3, WAN, arp_request("192.0.2.7", "198.51.100.1"))
        .run();
    let lines: Vec<_> = outcome.frames(WAN).iter().map(ToString::to_string).collect();
    let mac = router.map(|b| format!("{b:02x}")).join(":");
    assert_eq!(lines, [format!("arp 198.51.100.2 is-at {mac}"), format!("arp 198.51.100.11 is-at {mac}")]);

    let scenario = Scenario::of(&script).silent_neighbours();
    let outcome = scenario
        .send_all(0.0, LAN, (1..=70).map(|port| udp(&format!("10.0.0.5:{}", 2000 + port), "192.0.2.1:53")))
        .send(0.5, WAN, arp_reply("198.51.100.1", ("198.51.100.2", router)))
        .send(0.6, LAN, tcp("10.0.0.5:1", "192.0.2.1:80").flags("S"))
        .run();
    assert_eq!(outcome.frames(WAN)[0].to_string(), "arp who-has 198.51.100.1 tell 198.51.100.2");
    outcome.count_left(WAN, 64 + 1);
    assert!(outcome.packets(WAN).iter().all(|s| s.mac_to == [2, 0, 198, 51, 100, 1]));
    outcome.drops(&[("no_neighbour", 6)]);
    assert_eq!(outcome.counter("arp_queued"), 64);
}

/// A static neighbour is not asked for.
#[test]
fn a_static_neighbour_is_not_asked_for() {
    let outcome = plain(r#"neighbour("wan", "10.2.2.2", "02:aa:bb:cc:dd:ee");"#)
        .silent_neighbours()
        .send(0.0, LAN, udp("10.1.1.1:1", "10.2.2.2:2"))
        .run();
    assert_eq!(outcome.frames(WAN).len(), 1);
    assert_eq!(outcome.only(WAN).mac_to, [2, 0xaa, 0xbb, 0xcc, 0xdd, 0xee]);
}

/// Routes: longest prefix first, lower metric first, blackholes, and leaks into another zone's table.
#[test]
fn routes_are_chosen_by_length_and_metric() {
    let rules = r#"
        route("main", "172.16.0.0/12", #{ via: "10.2.2.1" });
        route("main", "172.16.5.0/24", #{ via: "10.2.2.5", metric: 10 });
        route("main", "172.16.5.0/24", #{ via: "10.2.2.6", metric: 5 });
        route("main", "172.16.5.9/32", #{ blackhole: true });
    "#;
    let to = |host: &str| udp("10.1.1.1:1", &format!("{host}:2"));
    let outcome = plain(rules).send_all(0.0, LAN, ["172.16.1.1", "172.16.5.1", "172.16.5.9"].map(to)).run();
    let hops: Vec<_> = outcome.packets(WAN).iter().map(|s| s.mac_to[5]).collect();
    assert_eq!(hops, [1, 6]);
    outcome.drops(&[("blackhole", 1)]);
}

/// Packets between two tenants pass only where a route leads from one into the other.
#[test]
fn tenants_do_not_reach_each_other() {
    let outcome = tenants()
        .send(0.0, BLUE, udp("10.0.0.5:1", "10.0.0.6:2"))
        .send(0.0, GREEN, udp("10.0.0.6:1", "10.0.0.5:2"))
        .run();
    // Each is a packet to a host of its own network, which the router sends back to where it came from.
    outcome.left(BLUE, &["udp 10.0.0.5:1 > 10.0.0.6:2"]);
    outcome.left(GREEN, &["udp 10.0.0.6:1 > 10.0.0.5:2"]);
}

/// C14: what `-L -z` printed counts from zero, and what came since is not lost.
#[test]
fn listing_with_zero_prints_the_counters_and_takes_them_off() {
    let packet = || udp("10.0.0.5:5353", "192.0.2.1:53");
    let outcome = nat()
        .send(0.0, LAN, packet())
        .send(0.5, LAN, packet())
        .command(1.0, "conntrack:-L -z")
        .command(2.0, "conntrack:-L")
        .send(3.0, LAN, packet())
        .command(4.0, "conntrack:-L")
        .run();
    assert!(outcome.said(1).contains("packets=2 bytes=56"), "{}", outcome.said(1));
    assert!(outcome.said(2).contains("packets=0 bytes=0"), "{}", outcome.said(2));
    assert!(!outcome.said(2).contains("packets=2"), "{}", outcome.said(2));
    assert!(outcome.said(3).contains("packets=1 bytes=28"), "{}", outcome.said(3));
}

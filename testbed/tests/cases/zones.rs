//! Zones and tenants.

use std::collections::{BTreeMap, BTreeSet};

use erhu_testbed::packet::{ping, udp};
use erhu_testbed::scenario::{EventKind, Outcome, Scenario, Side};

use crate::{BLUE, GREEN, LAN, Talk, WAN, known, plain, tenants, tenants_script, vlan_zones, vlan_zones_script};

/// T89: one tuple in two zones is two connections; each leaves from its own address and its replies go home.
#[test]
fn one_tuple_in_two_zones_is_two_connections() {
    let packet = || udp("10.0.0.5:5353", "192.0.2.1:53");
    let outcome = tenants()
        .send(0.0, BLUE, packet().payload(b"blue"))
        .send(0.0, GREEN, packet().payload(b"green"))
        .answered(WAN, 0.1, |left| Some(left.answer().payload(left.payload())))
        .run();
    outcome.left(WAN, &["udp 198.51.100.10:5353 > 192.0.2.1:53", "udp 198.51.100.20:5353 > 192.0.2.1:53"]);
    for (side, text) in [(BLUE, &b"blue"[..]), (GREEN, b"green")] {
        outcome.left(side, &["udp 192.0.2.1:53 > 10.0.0.5:5353"]);
        assert_eq!(outcome.only(side).payload(), text);
    }
    outcome.table(&[
        "udp 10.0.0.5:5353>192.0.2.1:53@1 192.0.2.1:53>198.51.100.10:5353",
        "udp 10.0.0.5:5353>192.0.2.1:53@2 192.0.2.1:53>198.51.100.20:5353",
    ]);
    outcome.drops(&[]);
}

/// T91: a port or a VLAN chooses the zone; a VLAN that belongs to no interface is dropped.
#[test]
fn port_and_vlan_choose_the_zone() {
    let script = r#"
        zone("port", #{ id: 7 });
        zone("vlan", #{ id: 8 });
        interface("a", #{ port: "lan", zone: "port", address: ["10.1.1.254/24"] });
        interface("b", #{ port: "lan", vlan: 100, zone: "vlan", address: ["10.1.1.254/24"] });
        interface("c", #{ port: "wan", zone: "port", address: ["10.2.2.254/24"] });
        interface("d", #{ port: "wan", vlan: 100, zone: "vlan", address: ["10.2.2.254/24"] });
    "#;
    let cases = [(None, Some(7)), (Some(100), Some(8)), (Some(101), None)];
    for (vlan, zone) in cases {
        let outcome =
            Scenario::of(script).send(0.0, Side { port: "lan", vlan }, udp("10.1.1.1:1", "10.2.2.2:2")).run();
        match zone {
            Some(zone) => {
                assert_eq!((outcome.entries[0].original.zone, outcome.entries[0].reply.zone), (zone, zone));
                outcome.left(Side { port: "wan", vlan }, &["udp 10.1.1.1:1 > 10.2.2.2:2"]);
                outcome.drops(&[]);
            }
            None => {
                outcome.table(&[]);
                outcome.drops(&[("no_interface", 1)]);
            }
        }
    }
}

/// An interface with a MAC address of its own takes what is for that, and its neighbours on the port what is for theirs.
#[test]
fn frames_must_be_for_the_interface_they_come_in_by() {
    let script = r#"
        interface("a", #{ port: "lan", vlan: 100, address: ["10.1.1.254/24"] });
        interface("b", #{ port: "lan", vlan: 200, address: ["10.3.3.254/24"], mac: "02:00:00:00:00:77" });
        interface("c", #{ port: "wan", address: ["10.2.2.254/24"] });
    "#;
    let own = [2, 0, 0, 0, 0, 0x77];
    let scenario = Scenario::of(script);
    let of_port = scenario.router_mac("lan");
    let outcome = scenario
        .send(0.0, BLUE, udp("10.1.1.1:1", "10.2.2.2:2").mac_to(of_port))
        .send(0.1, BLUE, udp("10.1.1.1:3", "10.2.2.2:2").mac_to(own))
        .send(0.2, GREEN, udp("10.3.3.3:4", "10.2.2.2:2").mac_to(own))
        .send(0.3, GREEN, udp("10.3.3.3:5", "10.2.2.2:2").mac_to(of_port))
        .run();
    outcome.left(WAN, &["udp 10.1.1.1:1 > 10.2.2.2:2", "udp 10.3.3.3:4 > 10.2.2.2:2"]);
    outcome.drops(&[("not_for_us", 2)]);
}

/// T92: the original tuple lives in the tenant's zone, the reply in `main`, and each is found only there.
#[test]
fn the_reply_lives_in_the_zone_it_comes_back_to() {
    let rules = r#"
        zone("inside", #{ id: 5 });
        interface("lan", #{ port: "lan", zone: "inside", address: ["10.1.1.254/24"] });
        interface("wan", #{ port: "wan", address: ["10.2.2.254/24"] });
        route("inside", "10.2.2.0/24", #{ zone: "main" });
        forward(#{ ingress: "wan", state: "new" }, drop);
    "#;
    let outcome = Scenario::of(rules)
        .send(0.0, LAN, udp("10.1.1.1:1", "10.2.2.2:2"))
        .send(0.1, WAN, udp("10.2.2.2:2", "10.1.1.1:1"))
        .send(0.2, LAN, udp("10.2.2.2:2", "10.1.1.1:1"))
        .run();
    // The second is a reply, although `main` has no route to its destination. The third is none in zone 5: it is a
    // connection of its own, whose port is changed because its reply would be the first one's original.
    let back = outcome.packets(LAN);
    assert_eq!((back.len(), back[0].to_string().as_str()), (2, "udp 10.2.2.2:2 > 10.1.1.1:1"));
    assert_eq!(outcome.counter("clash_remapped"), 1);
    assert_eq!(outcome.entries.len(), 2);
    assert_eq!(
        outcome.entry("10.1.1.1:1>10.2.2.2:2@5 10.2.2.2").to_string(),
        "udp 10.1.1.1:1>10.2.2.2:2@5 10.2.2.2:2>10.1.1.1:1"
    );
    assert!(outcome.lines.iter().any(|l| l.contains(" zone-orig=5 ") && !l.contains("zone=5")), "{outcome}");
    assert!(outcome.lines.iter().any(|l| l.contains(" zone=5 ")), "{outcome}");
    outcome.drops(&[]);
}

/// T95: tenants whose hosts have the same MAC and IP addresses, on two VLANs of one port.
#[test]
fn tenants_with_identical_hosts_are_kept_apart() {
    let mac = [2, 0, 0, 0, 0, 0x55];
    let packet = |dport: u16| udp("10.0.0.5:1", &format!("192.0.2.1:{dport}")).mac_from(mac);
    let outcome = tenants()
        .send(0.0, BLUE, packet(1))
        .send(0.0, GREEN, packet(2))
        .answered(WAN, 0.1, |left| Some(left.answer()))
        .run();
    for (side, line) in [(BLUE, "udp 192.0.2.1:1 > 10.0.0.5:1"), (GREEN, "udp 192.0.2.1:2 > 10.0.0.5:1")] {
        outcome.left(side, &[line]);
        assert_eq!(outcome.only(side).mac_to, mac);
    }
    outcome.drops(&[]);
}

/// T98: ten thousand connections of one zone are flushed under the other's traffic, which loses nothing; an empty
/// flush returns.
#[test]
fn a_flush_of_one_zone_does_not_touch_another() {
    let mut scenario = Scenario::of(&tenants_script("", "", "")).connections(40_000);
    for k in 0..10_000_u16 {
        scenario = scenario.send(f64::from(k) / 1e5, BLUE, udp(&format!("10.0.0.5:{}", k + 1000), "192.0.2.1:53"));
    }
    for k in 0..100_u16 {
        let at = 0.9 + f64::from(k) / 1000.0;
        scenario = scenario.send(at, GREEN, udp(&format!("10.0.0.5:{}", k % 10 + 1000), "192.0.2.1:53"));
    }
    let outcome = scenario
        .command(0.95, "conntrack:-F -w 1")
        .command(0.96, "conntrack:-F -w 1")
        .command(0.97, "conntrack:-C")
        .run();
    assert_eq!(outcome.said(3).lines().next().map(str::trim), Some("10"), "{outcome}");
    assert_eq!(outcome.entries.len(), 10);
    assert!(outcome.entries.iter().all(|e| e.original.zone == 2 && e.original_count == Some((10, 280))), "{outcome}");
    outcome.count_left(WAN, 10_100);
    outcome.drops(&[]);
    assert_eq!(outcome.count_events(EventKind::Destroy), 10_000);
}

/// T100: 32 packets of 32 zones in one burst.
#[test]
fn a_burst_of_many_zones_is_kept_apart() {
    let mut scenario = vlan_zones("1..33").burst(32);
    for round in 0..3 {
        for id in 1..=32_u16 {
            let packet = udp("10.1.1.1:1", "10.2.2.2:2").payload(&id.to_be_bytes());
            scenario = scenario.send(f64::from(round), Side::vlan("lan", id), packet);
        }
    }
    let outcome = scenario.run();
    for id in 1..=32_u16 {
        let through = outcome.packets(Side::vlan("wan", id));
        assert_eq!(through.len(), 3);
        assert!(through.iter().all(|s| s.payload() == id.to_be_bytes()), "{outcome}");
    }
    assert_eq!(outcome.entries.len(), 32);
    outcome.drops(&[]);
}

/// T106: what a raw rule leaves untracked is forwarded as it is and makes no entry.
#[test]
fn untracked_packets_leave_as_they_are() {
    let rules = r#"
        raw(#{ dport: 53 }, notrack);
        forward(#{ state: "untracked" }, [count("untracked"), accept]);
    "#;
    let script = tenants_script("", "", rules);
    let outcome = Scenario::of(&script).send(0.0, BLUE, udp("10.0.0.5:1", "192.0.2.1:53")).run();
    outcome.left(WAN, &["udp 10.0.0.5:1 > 192.0.2.1:53"]);
    outcome.table(&[]);
    assert_eq!(outcome.stat(&["named", "untracked", "packets"]), 1);
    outcome.drops(&[]);
}

/// T107: a wrong checksum of layer 4 makes a packet invalid and no entry; a wrong one of the IP header is dropped.
#[test]
fn bad_checksums_make_no_entry() {
    let broken = || [udp("10.1.1.1:1", "10.2.2.2:2").bad_checksum(), ping("10.1.1.1", "10.2.2.2", 7).bad_checksum()];
    let outcome = plain(r#"forward(#{ state: "invalid" }, drop);"#)
        .send_all(0.0, LAN, broken())
        .send(0.0, LAN, udp("10.1.1.1:1", "10.2.2.2:2").bad_ip_checksum())
        .run();
    outcome.drops(&[("rule", 2), ("bad_checksum", 1)]);
    outcome.table(&[]);
    // Where no rule drops what is invalid, it is forwarded as it is, unless it would have to be translated.
    let plain = plain("").send_all(0.0, LAN, broken()).run();
    plain.count_left(WAN, 2);
    let translated = tenants().send(0.0, BLUE, udp("10.0.0.5:1", "192.0.2.1:2").bad_checksum()).run();
    translated.left(WAN, &[]);
    let script = tenants_script("", "", r#"forward(#{}, accept);"#);
    let unruled = Scenario::of(&script).send(0.0, BLUE, udp("10.0.0.5:1", "192.0.2.1:2").bad_checksum()).run();
    unruled.left(WAN, &[]);
    unruled.drops(&[("invalid", 1)]);
}

/// T109: a thousand zones make and flush connections on four workers: the table is what it should be.
#[test]
fn many_zones_made_and_flushed_on_many_workers() {
    let (zones, flows) = (1000_u16, 16_u16);
    let mut scenario = vlan_zones("1..1001").workers(4).connections(100_000);
    let mut alive: BTreeSet<(u16, u16)> = BTreeSet::new();
    for round in 0..3_u16 {
        for id in 1..=zones {
            let packets = (0..flows).map(|k| udp(&format!("10.1.1.1:{}", 1000 + round * 100 + k), "10.2.2.2:53"));
            scenario = scenario.send_all(f64::from(round), Side::vlan("lan", id), packets);
            alive.extend((0..flows).map(|k| (id, 1000 + round * 100 + k)));
        }
        for id in (1..=zones).filter(|id| id % 97 == round) {
            scenario = scenario.command(f64::from(round) + 0.5, &format!("conntrack:-F -w {id}"));
            alive.retain(|(zone, _)| *zone != id);
        }
    }
    let outcome = scenario.run();
    let table: BTreeSet<_> = outcome.entries.iter().map(|e| (e.original.zone, e.original.source_port())).collect();
    assert!(table == alive, "{} connections, {} expected", table.len(), alive.len());
    outcome.drops(&[]);
}

/// N9: the first packets of both directions at one instant on two workers: one entry, nothing dropped, no port changed.
#[test]
fn both_directions_first_at_one_instant_make_one_connection() {
    for workers in 1..=4 {
        let mut scenario = plain("").workers(workers);
        for port in 1000..1064 {
            scenario = scenario.send(0.0, LAN, udp(&format!("10.1.1.1:{port}"), "10.2.2.2:4500")).send(
                0.0,
                WAN,
                udp("10.2.2.2:4500", &format!("10.1.1.1:{port}")),
            );
        }
        let outcome = scenario.run();
        assert_eq!(outcome.entries.len(), 64, "{workers} workers\n{outcome}");
        let ports = |side: Side, of: fn(&erhu_testbed::packet::read::Seen) -> u16| -> BTreeSet<u16> {
            outcome.packets(side).iter().map(|s| of(s)).collect()
        };
        assert_eq!(ports(WAN, |s| s.source().port()), (1000..1064).collect());
        assert_eq!(ports(LAN, |s| s.destination().port()), (1000..1064).collect());
        outcome.drops(&[]);
        assert_eq!(outcome.counter("clash_remapped"), 0);
    }
}

/// T170: random traffic, commands and time against a model of UDP: at every look the table is what the model says.
#[test]
fn random_udp_agrees_with_a_model() {
    const SEED: u64 = 20_240_607;
    println!("seed {SEED}");
    let mut state = SEED;
    let mut random = |limit: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) % limit
    };
    /// What the model knows of a connection: when its last packet came, and whether it was answered.
    struct Flow {
        last: f64,
        answered: bool,
    }
    let mut model: BTreeMap<(u16, u16), Flow> = BTreeMap::new();
    let script = vlan_zones_script("[1, 2, 3]", "", r#"timeout("default", #{ udp: "29500ms" });"#);
    let mut scenario = Scenario::of(&script);
    let mut looks: Vec<BTreeSet<(u16, u16, bool)>> = Vec::new();
    let mut commands = 0;
    let mut look_at = Vec::new();
    for step in 0..3600_u32 {
        // Deadlines fall on half seconds, between all that is sent or asked.
        let at = f64::from(step);
        let key = (u16::try_from(random(3) + 1).unwrap(), u16::try_from(1000 + random(40)).unwrap());
        let (inside, outside) = (format!("10.1.1.1:{}", key.1), "10.2.2.2:53");
        model.retain(|_, flow| flow.last + 29.5 > at);
        if step == 0 || random(4) != 0 {
            scenario = scenario.send(at, Side::vlan("lan", key.0), udp(&inside, outside));
            model.entry(key).or_insert(Flow { last: at, answered: false }).last = at;
            // Streams live longer; the model stays simple by never asking an answered flow again.
            if model[&key].answered {
                scenario = scenario.command(at + 0.2, &format!("conntrack:-D -w {} -p udp --sport {}", key.0, key.1));
                commands += 1;
                model.remove(&key);
            }
        } else if let Some(flow) = model.get_mut(&key).filter(|flow| !flow.answered) {
            scenario = scenario.send(at, Side::vlan("wan", key.0), udp(outside, &inside));
            (flow.last, flow.answered) = (at, true);
        }
        if random(200) == 0 {
            scenario = scenario.command(at + 0.25, &format!("conntrack:-F -w {}", key.0));
            commands += 1;
            model.retain(|(zone, _), _| *zone != key.0);
        }
        if random(60) == 0 {
            scenario = scenario.command(at + 0.3, "conntrack:-L");
            commands += 1;
            look_at.push(commands);
            looks.push(model.iter().map(|((zone, port), flow)| (*zone, *port, flow.answered)).collect());
        }
    }
    let outcome = scenario.run();
    for (position, want) in look_at.into_iter().zip(&looks) {
        let said = outcome.said(position);
        let shown =
            said.lines().filter(|l| l.contains("src=")).map(|l| erhu_testbed::scenario::Entry::parse(l).unwrap());
        let shown: BTreeSet<_> =
            shown.map(|e| (e.original.zone, e.original.source_port(), !e.is("UNREPLIED"))).collect();
        let extra: Vec<_> = shown.difference(want).collect();
        let missing: Vec<_> = want.difference(&shown).collect();
        assert!(extra.is_empty() && missing.is_empty(), "look {position}: extra {extra:?}, missing {missing:?}");
    }
    assert!(looks.len() > 20);
}

/// The same outcome, whatever the burst and however the packets are spread; a run repeated is the same byte for byte.
#[test]
fn bursts_and_workers_do_not_change_the_outcome() {
    let scenario = |workers, burst| {
        let mut scenario = known(tenants().workers(workers).burst(burst), &[BLUE, GREEN]);
        for port in 2000..2100 {
            let packet = || udp(&format!("10.0.0.5:{port}"), "192.0.2.1:53");
            scenario = scenario.send(1.0, BLUE, packet()).send(1.0, GREEN, packet());
        }
        Talk::BLUE.close(Talk::BLUE.open(scenario, 1.1), 1.5)
    };
    let reference = scenario(1, 32).run();
    for burst in [1, 2, 64] {
        assert!(scenario(1, burst).run().files == reference.files, "with bursts of {burst}");
    }
    assert!(scenario(1, 32).run().files == reference.files, "repeated");
    let lines = |outcome: &Outcome| -> BTreeSet<String> {
        outcome.packets(WAN).iter().map(|s| format!("{} > {}", s.ip().source, s.destination())).collect()
    };
    for workers in 2..=4 {
        let outcome = scenario(workers, 32).run();
        assert_eq!(lines(&outcome), lines(&reference));
        assert_eq!(outcome.packets(WAN).len(), reference.packets(WAN).len());
        outcome.drops(&[]);
        assert_eq!(outcome.entries.len(), reference.entries.len());
    }
}

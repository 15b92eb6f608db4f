//! New rule sets, and what becomes of connections that live.

use erhu_testbed::packet::{tcp, udp};
use erhu_testbed::scenario::{EventKind, Scenario};

use crate::{BLUE, FIREWALL, GREEN, LAN, Talk, WAN, nat, nat_script, plain, plain_script, tenants, tenants_script};

const PLAIN_ENTRY: &str = "10.1.1.1:40000>10.2.2.2:80";

/// N10: a new rule forbids a running connection: its next packet is dropped for that reason, in spite of an accept for
/// what is established; others keep their counters.
#[test]
fn a_connection_that_new_rules_forbid_ends_on_its_next_packet() {
    let talk = Talk::PLAIN;
    let accept = r#"forward(#{ state: "established" }, accept);"#;
    let forbid = format!(r#"{accept} forward(#{{ proto: "tcp", dport: 80 }}, drop);"#);
    let scenario = talk.open(plain(accept), 0.0).send(0.5, LAN, udp("10.1.1.1:1", "10.2.2.2:2").payload_len(10));
    let scenario = scenario.apply(1.0, &plain_script(&forbid));
    let scenario = talk.forth(scenario, 2.0, "PA", 101, 901);
    let outcome = scenario.send(3.0, LAN, udp("10.1.1.1:1", "10.2.2.2:2").payload_len(10)).run();
    outcome.count_left(WAN, 2 + 2);
    outcome.drops(&[("rule", 1)]);
    outcome.table(&["udp 10.1.1.1:1>10.2.2.2:2 10.2.2.2:2>10.1.1.1:1 [UNREPLIED]"]);
    assert_eq!(outcome.entry("udp").original_count, Some((2, 76)));
    assert_eq!(outcome.story(PLAIN_ENTRY).last(), Some(&EventKind::Destroy));
    assert_eq!(outcome.ended_at(PLAIN_ENTRY), [2.0]);
    assert_eq!(outcome.counter("ended_by_rules"), 1);
}

/// The reply direction is judged as the first packet was: a rule against it ends the connection too.
#[test]
fn a_reply_is_judged_as_the_first_packet_was() {
    let talk = Talk::PLAIN;
    let scenario = talk.open(plain(""), 0.0);
    let scenario = scenario.apply(1.0, &plain_script(r#"forward(#{ ingress: "lan", dport: 80 }, drop);"#));
    let outcome = talk.back(scenario, 2.0, "PA", 901, 101).run();
    assert_eq!(outcome.ended_at(PLAIN_ENTRY), [2.0]);
    assert_eq!(outcome.count_events(EventKind::Destroy), 1);
}

/// Postrouting sees the way out when connections are judged again, though no forward rule asks for it.
#[test]
fn translated_connections_outlive_a_reload_without_forward_rules() {
    let script = |to: &str| plain_script(&format!(r#"postrouting(#{{ egress: "wan" }}, snat(#{{ to: "{to}" }}));"#));
    let packet = || udp("10.1.1.1:1", "10.2.2.2:2");
    let outcome = Scenario::of(&script("10.2.2.200"))
        .send(0.0, LAN, packet())
        .apply(1.0, &script("10.2.2.200-10.2.2.201"))
        .send(2.0, LAN, packet())
        .apply(3.0, &script("10.2.2.202"))
        .send(4.0, LAN, packet())
        .run();
    outcome.left(
        WAN,
        &["udp 10.2.2.200:1 > 10.2.2.2:2", "udp 10.2.2.200:1 > 10.2.2.2:2", "udp 10.2.2.202:1 > 10.2.2.2:2"],
    );
    assert_eq!(outcome.count_events(EventKind::Destroy), 1);
    outcome.drops(&[]);
}

/// A connection is judged again from the mark on that its first packet came with, through the marks that rules then give:
/// not from the one that it ended with.
#[test]
fn marks_are_given_again_when_connections_are_judged_again() {
    let script = |rule: &str| {
        plain_script(&format!(
            r#"
            raw(#{{ ingress: "lan", proto: "udp" }}, [mark(1), continue_]);
            {rule}
            forward(#{{ mark: 1 }}, [mark(2), accept]);
            forward(#{{ ingress: "lan" }}, drop);
            postrouting(#{{ mark: 2 }}, [mark(3), snat(#{{ to: "10.2.2.200" }})]);
            "#
        ))
    };
    let packet = || udp("10.1.1.1:1", "10.2.2.2:2");
    let idle = r#"forward(#{ dport: 99 }, drop);"#;
    // Both ways that judging again can take: where all that is established is accepted the shorter one, with an idle rule
    // of prerouting the longer one.
    let established = r#"forward(#{ state: "established" }, accept);"#;
    for way in [idle, established, r#"prerouting(#{ src: "10.99.0.1" }, drop);"#] {
        let scenario = Scenario::of(&script("")).send(0.0, LAN, packet()).apply(1.0, &script(way));
        let outcome = scenario.send(2.0, LAN, packet()).run();
        outcome.left(WAN, &["udp 10.2.2.200:1 > 10.2.2.2:2"; 2]);
        assert_eq!(outcome.count_events(EventKind::Destroy), 0);
        outcome.drops(&[]);
    }
}

/// T101: a reload that keeps tenant and pool: connections go on, and the generation is one higher.
#[test]
fn a_reload_that_allows_it_disturbs_nothing() {
    let script = tenants_script("", "", "");
    let scenario = Talk::BLUE.open(tenants(), 0.0).send(0.5, GREEN, udp("10.0.0.5:5000", "192.0.2.1:53"));
    let scenario = scenario.apply(1.0, &format!("{script}\n forward(#{{ dport: 9 }}, drop);"));
    let scenario = Talk::BLUE.forth(scenario, 2.0, "A", 101, 901);
    let scenario = Talk::BLUE.back(scenario, 2.1, "A", 901, 101);
    let outcome = scenario
        .send(2.2, WAN, udp("192.0.2.1:53", "198.51.100.20:5000"))
        .apply(3.0, &script)
        .send(4.0, GREEN, udp("10.0.0.5:5000", "192.0.2.1:53"))
        .run();
    outcome.drops(&[]);
    assert_eq!(outcome.count_events(EventKind::Destroy), 0);
    assert_eq!(outcome.entry("tcp").original_count.map(|c| c.0), Some(3));
    outcome.left(GREEN, &["udp 192.0.2.1:53 > 10.0.0.5:5000"]);
    let generation = |k| -> u32 {
        let said = outcome.said(k);
        let line = said.lines().find_map(|l| l.strip_prefix("generation ")?.trim().parse().ok());
        line.unwrap_or_else(|| panic!("no generation in {said:?}"))
    };
    assert_eq!(generation(2), generation(1) + 1, "{outcome}");
}

/// T103: of two tenants that share a prefix, one is given another pool; the other's connections notice nothing.
#[test]
fn a_tenant_that_is_changed_does_not_touch_the_other() {
    let packet = || udp("10.0.0.5:5000", "192.0.2.1:53");
    let changed = tenants_script("", "", "").replace("198.51.100.20", "198.51.100.21");
    let outcome = tenants()
        .send(0.0, BLUE, packet())
        .send(0.0, GREEN, packet())
        .apply(1.0, &changed)
        .send(2.0, BLUE, packet())
        .send(2.1, GREEN, packet())
        .run();
    outcome.left(
        WAN,
        &[
            "udp 198.51.100.10:5000 > 192.0.2.1:53",
            "udp 198.51.100.20:5000 > 192.0.2.1:53",
            "udp 198.51.100.10:5000 > 192.0.2.1:53",
            "udp 198.51.100.21:5000 > 192.0.2.1:53",
        ],
    );
    assert_eq!(outcome.entry("@1").original_count.map(|c| c.0), Some(2));
    assert_eq!(outcome.entry("@2").original_count.map(|c| c.0), Some(1));
    assert_eq!(outcome.count_events(EventKind::Destroy), 1);
    outcome.drops(&[]);
}

/// T10: an interface with live connections is taken away: they are gone, nothing is translated, nothing crashes.
#[test]
fn an_interface_that_goes_takes_its_connections_along() {
    let script = tenants_script("", "", "");
    let without: String = script.lines().filter(|l| !l.contains("lan.200")).map(|l| format!("{l}\n")).collect();
    let packet = || udp("10.0.0.5:5000", "192.0.2.1:53");
    let outcome = tenants()
        .send(0.0, BLUE, packet())
        .send(0.0, GREEN, packet())
        .apply(1.0, &without)
        .send(2.0, GREEN, packet())
        .send(2.1, WAN, udp("192.0.2.1:53", "198.51.100.20:5000"))
        .send(2.2, BLUE, packet())
        .run();
    outcome.left(
        WAN,
        &[
            "udp 198.51.100.10:5000 > 192.0.2.1:53",
            "udp 198.51.100.20:5000 > 192.0.2.1:53",
            "udp 198.51.100.10:5000 > 192.0.2.1:53",
        ],
    );
    outcome.left(GREEN, &[]);
    outcome.drops(&[("no_interface", 1), ("no_mapping", 1)]);
    outcome.table(&["udp 10.0.0.5:5000>192.0.2.1:53@1 192.0.2.1:53>198.51.100.10:5000 [UNREPLIED]"]);
}

/// T128: a zone with live connections is taken away, interface, pool and all.
#[test]
fn a_zone_that_goes_takes_its_connections_along() {
    let script = tenants_script("", "", "");
    let gone = script.replace(r#"for tenant in ["blue", "green"]"#, r#"for tenant in ["blue"]"#);
    let gone: String = gone.lines().filter(|l| !l.contains("\"green")).map(|l| format!("{l}\n")).collect();
    let packet = || udp("10.0.0.5:5000", "192.0.2.1:53");
    let outcome = tenants()
        .send(0.0, GREEN, packet())
        .send(0.0, BLUE, packet())
        .apply(1.0, &gone)
        .send(2.0, GREEN, packet())
        .send(2.1, WAN, udp("192.0.2.1:53", "198.51.100.20:5000"))
        .send(2.2, BLUE, packet())
        .apply(3.0, &script)
        .send(4.0, GREEN, packet())
        .run();
    outcome.left(GREEN, &[]);
    outcome.count_left(WAN, 4);
    assert_eq!(outcome.ended_at("@2").len(), 1, "{outcome}");
    assert_eq!(outcome.entry("@2").original_count.map(|c| c.0), Some(1));
    assert_eq!(outcome.dropped()["no_interface"], 1);
}

/// T104, T118: a pool is shrunk: connections on what remains go on, others end, with an event.
#[test]
fn a_pool_that_shrinks_keeps_what_remains() {
    let pool = |range: &str| nat_script(&format!(r#"addresses: "{range}""#), "");
    let packet = |host: u16| udp(&format!("10.0.0.{host}:5000"), "192.0.2.1:53").id(host);
    let all = || (10..26).map(packet);
    let outcome = Scenario::of(&pool("198.51.100.10-198.51.100.13"))
        .send_all(0.0, LAN, all())
        .apply(1.0, &pool("198.51.100.10-198.51.100.11"))
        .send_all(2.0, LAN, all())
        .run();
    let (before, after): (Vec<_>, Vec<_>) =
        outcome.packets(WAN).into_iter().partition(|s| erhu_testbed::scenario::Outcome::seconds(s) < 1.0);
    assert_eq!((before.len(), after.len()), (16, 16));
    let mut moved = 0;
    for (old, new) in before.iter().zip(&after) {
        assert_eq!(old.ip().id, new.ip().id);
        let last = new.ip().source.octets()[3];
        assert!(last == 10 || last == 11, "{outcome}");
        if old.ip().source.octets()[3] <= 11 {
            assert_eq!(old.source(), new.source(), "{outcome}");
        } else {
            moved += 1;
        }
    }
    assert!(moved > 0, "no host was on the part that went");
    assert_eq!(outcome.count_events(EventKind::Destroy), moved);
    outcome.drops(&[]);
}

/// T175: a pool grows and shrinks again under traffic: no connection outside the part that came and went is lost.
#[test]
fn growing_and_shrinking_loses_only_what_was_added() {
    let pool = |range: &str| nat_script(&format!(r#"addresses: "{range}""#), "");
    let (small, large) = (pool("198.51.100.10"), pool("198.51.100.10-198.51.100.15"));
    let old = || (10..14).map(|host| udp(&format!("10.0.0.{host}:5000"), "192.0.2.1:53"));
    let young = || (20..40).map(|host| udp(&format!("10.0.0.{host}:5000"), "192.0.2.1:53"));
    let outcome = Scenario::of(&small)
        .send_all(0.0, LAN, old())
        .apply(1.0, &large)
        .send_all(2.0, LAN, old().chain(young()))
        .apply(3.0, &small)
        .send_all(4.0, LAN, old().chain(young()))
        .run();
    outcome.drops(&[]);
    for entry in &outcome.entries {
        assert_eq!(entry.reply.dst.to_string(), "198.51.100.10", "{outcome}");
    }
    for host in 10..14 {
        let entry = outcome.entry(&format!(" 10.0.0.{host}:5000>"));
        assert_eq!(entry.original_count.map(|c| c.0), Some(3), "{outcome}");
    }
    assert_eq!(outcome.entries.len(), 24);
}

/// T119: translation is taken away and comes back while a host talks.
#[test]
fn translation_taken_away_and_given_back() {
    let with = nat_script(r#"addresses: "198.51.100.10""#, "");
    let without: String = with.lines().filter(|l| !l.contains("postrouting")).map(|l| format!("{l}\n")).collect();
    let packet = || udp("10.0.0.5:5000", "192.0.2.1:53");
    let outcome = nat()
        .send(0.0, LAN, packet())
        .apply(1.0, &without)
        .send(2.0, LAN, packet())
        .apply(3.0, &with)
        .send(4.0, LAN, packet())
        .run();
    outcome.left(
        WAN,
        &[
            "udp 198.51.100.10:5000 > 192.0.2.1:53",
            "udp 10.0.0.5:5000 > 192.0.2.1:53",
            "udp 198.51.100.10:5000 > 192.0.2.1:53",
        ],
    );
    assert_eq!(outcome.count_events(EventKind::Destroy), 2);
    outcome.table(&["udp 10.0.0.5:5000>192.0.2.1:53@1 192.0.2.1:53>198.51.100.10:5000 [UNREPLIED]"]);
    outcome.drops(&[]);
}

/// T20: an address that comes is masqueraded to at once; when it goes, its connections end.
#[test]
fn masquerade_follows_the_interfaces_address() {
    let script = |address: &str| {
        format!(
            r#"
            zone("inside", #{{ id: 1 }});
            interface("lan", #{{ port: "lan", zone: "inside", address: ["10.0.0.1/24"] }});
            interface("wan", #{{ port: "wan", address: ["{address}/24"] }});
            route("inside", "0.0.0.0/0", #{{ zone: "main" }});
            route("main", "0.0.0.0/0", #{{ via: "198.51.100.1" }});
            postrouting(#{{ zone: "inside", egress: "wan" }}, masquerade);
            {FIREWALL}
            "#
        )
    };
    let packet = || udp("10.0.0.5:5000", "192.0.2.1:53");
    let outcome = Scenario::of(&script("198.51.100.2"))
        .send(0.0, LAN, packet())
        .apply(1.0, &script("198.51.100.3"))
        .send(2.0, LAN, packet())
        .run();
    outcome.left(WAN, &["udp 198.51.100.2:5000 > 192.0.2.1:53", "udp 198.51.100.3:5000 > 192.0.2.1:53"]);
    assert_eq!(outcome.ended_at("198.51.100.2"), [2.0]);
    outcome.table(&["udp 10.0.0.5:5000>192.0.2.1:53@1 192.0.2.1:53>198.51.100.3:5000 [UNREPLIED]"]);
}

/// A rollback brings the rules of before back.
#[test]
fn a_rollback_brings_the_old_rules_back() {
    let packet = || udp("10.1.1.1:1", "10.2.2.2:2");
    let outcome = plain("")
        .send(0.0, LAN, packet())
        .apply(1.0, &plain_script("forward(#{}, drop);"))
        .send(2.0, LAN, packet())
        .command(3.0, "rollback")
        .send(4.0, LAN, packet())
        .run();
    outcome.count_left(WAN, 2);
    outcome.drops(&[("rule", 1)]);
    assert_eq!(outcome.count_events(EventKind::New), 2);
}

/// A script with errors changes nothing; all of its errors are said.
#[test]
fn a_script_with_errors_changes_nothing() {
    let broken = plain_script(r#"forward(#{ dprot: 80 }, drop); forward(#{ proto: "tpc" }, drop);"#);
    let talk = Talk::PLAIN;
    let scenario = talk.open(plain(""), 0.0).apply(1.0, &broken);
    let outcome = talk.forth(scenario, 2.0, "A", 101, 901).run();
    let said = outcome.said(1);
    assert!(said.contains("dprot") && said.contains("dport") && said.contains("tpc"), "{said}");
    outcome.count_left(WAN, 3);
    outcome.drops(&[]);
    assert_eq!(outcome.count_events(EventKind::Destroy), 0);
    let refused = Scenario::of(&broken).try_run().unwrap_err();
    assert!(refused.contains("dprot") && refused.contains("tpc"), "{refused}");
}

/// A dry run says what would change, and changes nothing.
#[test]
fn a_dry_run_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("closed.rhai");
    std::fs::write(&path, plain_script("forward(#{}, drop);")).unwrap();
    let outcome = plain("")
        .send(0.0, LAN, udp("10.1.1.1:1", "10.2.2.2:2"))
        .command(1.0, &format!("apply:{} --dry-run", path.display()))
        .send(2.0, LAN, udp("10.1.1.1:1", "10.2.2.2:2"))
        .run();
    outcome.count_left(WAN, 2);
    assert!(!outcome.said(1).is_empty());
}

/// What was let through untranslated and would now be translated ends; so does the reverse.
#[test]
fn a_connection_whose_translation_changed_ends() {
    let to = |address: &str| {
        nat_script(
            r#"addresses: "198.51.100.10""#,
            &format!(r#"postrouting(#{{ zone: "inside" }}, snat(#{{ to: "{address}" }}));"#),
        )
    };
    let scenario = Scenario::of(&to("198.51.100.30"))
        .send(0.0, LAN, tcp("10.0.0.5:40000", "192.0.2.1:80").flags("S").seq(100))
        .send(0.1, WAN, tcp("192.0.2.1:80", "198.51.100.30:40000").flags("SA").seq(900).ack(101))
        .send(0.2, LAN, tcp("10.0.0.5:40000", "192.0.2.1:80").flags("A").seq(101).ack(901))
        .apply(1.0, &to("198.51.100.31"))
        .send(2.0, LAN, tcp("10.0.0.5:40000", "192.0.2.1:80").flags("A").seq(101).ack(901));
    let outcome = scenario.run();
    assert_eq!(outcome.ended_at("198.51.100.30:40000"), [2.0], "{outcome}");
    // The packet that ended it is a first packet: picked up in mid-stream, with the new address.
    assert_eq!(outcome.packets(WAN).last().unwrap().source().to_string(), "198.51.100.31:40000");
}

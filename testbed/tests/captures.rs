//! Real and hostile captures as a tenant's traffic.
//!
//! Every frame is rewritten to the router's MAC address and the tenant blue's VLAN and sent through replay with
//! `configs/two-tenants.rhai`. An oracle that shares no code with the router says, packet by packet, what must be
//! forwarded; whatever leaves must be translated and whole. What was forwarded and what was dropped for which reason is
//! compared with the reviewed table `testbed/captures.tsv`, which `testbed/CAPTURES.md` explains. A second pass
//! ([`talks`]) puts the callers of conversations inside and the called outside, so that real answers come home.
//!
//! The captures are those of the folder `ERHU_PCAPS`, else `../shared/pcaps` beside the repository, and a few of our
//! own in `tests/captures`, so that there are always some. With `ERHU_UPDATE=1` table and own captures are written.

#[path = "captures/oracle.rs"]
mod oracle;
#[path = "captures/own.rs"]
mod own;
#[path = "captures/talks.rs"]
mod talks;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use erhu_testbed::packet::ethertype;
use erhu_testbed::packet::read::{Content, Seen, Upper};
use erhu_testbed::pcap::{self, Record};
use erhu_testbed::scenario::{Outcome, Scenario, Side, repository, router_mac};
use oracle::{Oracle, Verdict};
use talks::Talks;

const BLUE: Side = Side::vlan("lan", 100);
const WAN: Side = Side::untagged("wan");

fn update() -> bool {
    std::env::var_os("ERHU_UPDATE").is_some()
}

fn own_folder() -> PathBuf {
    repository().join("testbed/tests/captures")
}

/// Captures by the name that the table has them under.
fn captures() -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    collect(&own_folder(), "own", &mut found);
    let shared = match std::env::var_os("ERHU_PCAPS") {
        Some(folder) => PathBuf::from(folder),
        None => repository().join("../shared/pcaps"),
    };
    if shared.is_dir() {
        collect(&shared, "", &mut found);
    } else {
        println!("only our own captures: {} is no folder (set ERHU_PCAPS)", shared.display());
    }
    found
}

fn collect(folder: &Path, prefix: &str, found: &mut BTreeMap<String, PathBuf>) {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for path in entries.map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if path.is_dir() {
            collect(&path, &name, found);
        } else if path.extension().is_some_and(|e| e == "pcap" || e == "pcapng") {
            found.insert(name, path);
        }
    }
}

/// A frame as blue sends it: its tags replaced by blue's, its destination by the router.
fn as_blue(frame: &[u8]) -> Vec<u8> {
    if frame.len() < 14 {
        return frame.to_vec();
    }
    let mut at = 12;
    while frame.len() >= at + 4
        && matches!(u16::from_be_bytes([frame[at], frame[at + 1]]), ethertype::VLAN | ethertype::QINQ | 0x9100)
    {
        at += 4;
    }
    let mut out = router_mac(0).to_vec();
    // Neither a group address nor all zeros is a source.
    out.extend([2, 0, 1]);
    out.extend(&frame[9..12]);
    out.extend([0x81, 0, 0, 100]);
    out.extend(&frame[at..]);
    out
}

/// A capture as blue's traffic: when each frame is sent, in seconds from the first, and the frame.
fn traffic(records: &[Record]) -> Vec<(f64, Vec<u8>)> {
    let mut latest_ns = records.first().map_or(0, |r| r.time_ns);
    let mut at = 0.0;
    let frames = records.iter().map(|record| {
        // Beyond what matters to any timeout, a jump in time is a jump.
        at += seconds(record.time_ns.saturating_sub(latest_ns)).min(1e6);
        latest_ns = latest_ns.max(record.time_ns);
        (at, as_blue(&record.data))
    });
    frames.collect()
}

/// RFC 1624, equation 3, for two bytes that changed.
fn adjust_checksum(frame: &mut [u8], at: usize, old: [u8; 2], new: [u8; 2]) {
    let Some(field) = frame.get(at..at + 2) else { return };
    let word = |bytes: &[u8]| u32::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    let mut sum = (0xffff - word(field)) + (0xffff - word(&old)) + word(&new);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = u16::try_from(0xffff - sum).unwrap();
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn scenario(traffic: &[(f64, Vec<u8>)]) -> Scenario {
    play_to(Scenario::of_file("configs/two-tenants.rhai"), traffic)
}

fn play_to(scenario: Scenario, traffic: &[(f64, Vec<u8>)]) -> Scenario {
    let scenario = scenario.connections(65_536);
    traffic.iter().fold(scenario, |scenario, (at, frame)| scenario.send_frame(*at, "lan", frame.clone()))
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a capture's length are what is needed")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn is_pool(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [198, 51, 100, 10 | 11])
}

/// Whether the router made it: an error has the address that the router has where it leaves.
fn is_routers(seen: &Seen) -> bool {
    matches!(&seen.content, Content::Ip(ip) if matches!(ip.source.octets(), [198, 51, 100, 2] | [10, 0, 0, 1]))
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    packets: usize,
    outside: usize,
    back: usize,
    drops: String,
    talks: Talks,
    remark: String,
}

impl Row {
    fn text(&self, name: &str) -> String {
        let Self { packets, outside, back, drops, talks, remark } = self;
        format!("{name}\t{packets}\t{outside}\t{back}\t{drops}\t{}\t{remark}\n", talks.text())
    }
}

/// What must hold of everything that leaves.
fn judge_output(name: &str, outcome: &Outcome) {
    for seen in outcome.port("wan") {
        assert!(seen.faults().is_empty(), "{name}: left wan broken: {seen}");
        match &seen.content {
            Content::Arp(arp) => assert_eq!(arp.sender.1, Ipv4Addr::new(198, 51, 100, 2), "{name}: {seen}"),
            Content::Ip(_) if is_routers(seen) => {}
            Content::Ip(ip) => {
                assert!(is_pool(ip.source), "{name}: left untranslated: {seen}");
                if let Upper::Icmp(icmp) = &ip.upper {
                    let quoted = icmp.quoted.as_ref();
                    assert!(
                        quoted.is_none_or(|q| matches!(q.destination, IpAddr::V4(to) if is_pool(to))),
                        "{name}: quoted untranslated: {seen}"
                    );
                }
            }
            _ => panic!("{name}: left wan: {seen}"),
        }
    }
    for seen in outcome.port("lan") {
        assert_eq!(seen.vlan(), Some(100), "{name}: left to nobody: {seen}");
        assert!(seen.faults().is_empty(), "{name}: left lan broken: {seen}");
    }
}

/// Every packet that the oracle wants forwarded is, in order; whatever else is forwarded is one that may be.
fn judge_forwarding(name: &str, traffic: &[(f64, Vec<u8>)], outcome: &Outcome) {
    let mut oracle = Oracle::default();
    let mut left = outcome.packets(WAN).into_iter().filter(|s| !is_routers(s)).peekable();
    for (number, (at, frame)) in (1..).zip(traffic) {
        let came = Seen::of(0, frame.clone());
        let verdict = oracle.judge(*at, &came);
        let is_it = |seen: &&Seen| oracle::is_translation(&came, seen);
        match verdict {
            Verdict::Must => assert!(
                left.next_if(is_it).is_some(),
                "{name}: packet {number} should have been forwarded: {came}\nnext left: {}\n{outcome}",
                left.peek().map_or("nothing".into(), ToString::to_string),
            ),
            Verdict::May => drop(left.next_if(is_it)),
            Verdict::MustNot => {}
        }
    }
    let surplus: Vec<_> = left.map(ToString::to_string).collect();
    assert!(surplus.is_empty(), "{name}: left without reason: {surplus:#?}\n{outcome}");
}

fn play(name: &str, path: &Path) -> Row {
    let capture = match pcap::read(path) {
        Ok(capture) => capture,
        Err(e) => {
            let remark = e.to_string().replace(&path.display().to_string(), "").trim_start_matches(": ").to_owned();
            return Row { packets: 0, outside: 0, back: 0, drops: String::new(), talks: Talks::default(), remark };
        }
    };
    let remark =
        capture.warning.map(|w| w.replace(&path.display().to_string(), "").trim_start_matches(": ").to_owned());
    let mut row = Row {
        packets: capture.records.len(),
        outside: 0,
        back: 0,
        drops: String::new(),
        talks: Talks::default(),
        remark: remark.unwrap_or_default(),
    };
    if capture.records.is_empty() {
        return row;
    }
    let traffic = traffic(&capture.records);
    let outcome = scenario(&traffic).run();
    judge_output(name, &outcome);
    judge_forwarding(name, &traffic, &outcome);
    row.talks = talks::judge(name, &traffic);
    row.outside = outcome.packets(WAN).len();
    row.back = outcome.packets(BLUE).len();
    row.drops = outcome.dropped().iter().map(|(reason, n)| format!("{reason}={n}")).collect::<Vec<_>>().join(",");
    row
}

#[test]
fn every_capture_goes_through() {
    let table = repository().join("testbed/captures.tsv");
    let head = "file\tpackets\toutside\tback\tdrops\ttalks\tremark\n";
    let reviewed = std::fs::read_to_string(&table).unwrap_or_default();
    let mut rows: BTreeMap<String, String> = reviewed
        .lines()
        .skip(1)
        .filter_map(|line| Some((line.split_once('\t')?.0.to_owned(), format!("{line}\n"))))
        .collect();
    let mut faults = Vec::new();
    let captures = captures();
    assert!(!captures.is_empty(), "there are captures of our own");
    for (name, path) in captures {
        let row = match std::panic::catch_unwind(|| play(&name, &path)) {
            Ok(row) => row.text(&name),
            Err(panic) => {
                let why = panic.downcast_ref::<String>().cloned();
                faults.push(why.unwrap_or_else(|| format!("{name}: a panic without words")));
                continue;
            }
        };
        match rows.insert(name, row.clone()) {
            Some(old) if old == row => {}
            _ if update() => {}
            old => faults.push(format!("reviewed: {}now:      {row}", old.unwrap_or_else(|| "nothing\n".into()))),
        }
    }
    if update() {
        let rows: String = rows.into_values().collect();
        std::fs::write(&table, format!("{head}{rows}")).unwrap();
    }
    for fault in &faults {
        println!("{fault}");
    }
    assert!(faults.is_empty(), "{} captures; see above; ERHU_UPDATE=1 writes the table", faults.len());
}

#[test]
fn our_own_captures_are_what_makes_them() {
    for (name, records) in own::captures() {
        let path = own_folder().join(name);
        let mut bytes = Vec::new();
        pcap::write_to(&mut bytes, &records, false).unwrap();
        if update() {
            std::fs::write(&path, &bytes).unwrap();
        }
        let found = std::fs::read(&path).unwrap_or_default();
        assert!(
            found == bytes,
            "{} is not what tests/captures/own.rs makes; ERHU_UPDATE=1 writes it",
            path.display()
        );
    }
}

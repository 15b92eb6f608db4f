//! What a run left behind, and assertions on it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;
use std::path::Path;

use erhu_planes::reason::DropReason;
use serde_json::Value;

use super::table::{Entry, Event, EventKind};
use super::{START_NS, Side};
use crate::packet::read::Seen;
use crate::pcap;
use crate::replay;

/// What a run left behind.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Every output file by its path within the output folder, byte for byte.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The lines of `-L -o extended,id` at the end.
    pub lines: Vec<String>,
    /// The same, read.
    pub entries: Vec<Entry>,
    /// What happened to connections, in order.
    pub events: Vec<Event>,
    /// The statistics.
    pub stats: Value,
    /// What left, by port, in order.
    sent: BTreeMap<String, Vec<Seen>>,
}

impl Outcome {
    /// Reads the outputs of a run.
    pub(super) fn read(folder: &Path, options: &replay::Options, ports: &[&'static str]) -> Self {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(&options.out).expect("the output folder, which was made before the run") {
            let path = entry.expect("an entry of the output folder").path();
            let name = path.file_name().expect("entries have names").to_string_lossy().into_owned();
            let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            // The run's own folder is in some messages; it differs between runs.
            let own = folder.to_string_lossy().into_owned();
            let bytes = match String::from_utf8(bytes) {
                Ok(text) => text.replace(&own, "").into_bytes(),
                Err(e) => e.into_bytes(),
            };
            files.insert(name, bytes);
        }
        let text = |name: &str| -> &str {
            let bytes = files.get(name).unwrap_or_else(|| panic!("replay wrote no {name}, only {:?}", files.keys()));
            std::str::from_utf8(bytes).unwrap_or_else(|e| panic!("{name}: {e}"))
        };
        let lines: Vec<_> = text("conntrack.txt").lines().map(str::to_owned).collect();
        let events = text("events.txt").lines().map(Event::parse).collect::<Result<_, _>>();
        let sent = ports.iter().map(|port| {
            let path = options.out.join(format!("{port}.pcap"));
            let capture = pcap::read(&path).unwrap_or_else(|e| panic!("every port has its output: {e}"));
            assert_eq!(capture.warning, None, "what replay writes is whole");
            ((*port).to_owned(), capture.records.iter().map(Seen::from).collect())
        });
        Self {
            entries: lines
                .iter()
                .map(|l| Entry::parse(l))
                .collect::<Result<_, _>>()
                .unwrap_or_else(|e| panic!("{e}")),
            lines: lines.clone(),
            events: events.unwrap_or_else(|e| panic!("{e}")),
            stats: serde_json::from_str(text("stats.json")).unwrap_or_else(|e| panic!("stats: {e}")),
            sent: sent.collect(),
            files,
        }
    }

    /// What must hold after every run.
    #[track_caller]
    pub(super) fn check(&self, clean: bool) {
        let count = |what: &str| self.stat(&["connections", what]);
        let (created, ended, live) = (count("created"), count("ended"), count("live"));
        assert_eq!(created - ended, live, "created - ended is what lives\n{self}");
        assert_eq!(live, self.entries.len() as u64, "the table shows what lives\n{self}");
        let ids: BTreeSet<_> = self.entries.iter().map(|e| e.id).collect();
        assert_eq!(ids.len(), self.entries.len(), "every connection is shown once, with an id of its own\n{self}");
        let mut taken = HashSet::new();
        for entry in &self.entries {
            for tuple in [&entry.original, &entry.reply] {
                assert!(taken.insert((entry.proto_number, tuple)), "{tuple} leads to two connections\n{self}");
            }
        }
        for (name, sent) in &self.sent {
            assert!(sent.is_sorted_by_key(|s| s.time_ns), "{name} is not in time order\n{self}");
            for seen in sent {
                assert!(!clean || seen.faults().is_empty(), "left {name} broken: {seen}\n{self}");
            }
        }
        let known: BTreeSet<_> = DropReason::ALL.iter().map(|r| r.name().to_owned()).collect();
        let shown: BTreeSet<_> =
            self.stats["drops"].as_object().map(|o| o.keys().cloned().collect()).unwrap_or_default();
        assert_eq!(shown, known, "every drop reason is present, and no other");
    }

    /// Seconds from time 0 at which a frame left.
    #[expect(clippy::cast_precision_loss, reason = "scenarios last days, not centuries")]
    pub fn seconds(seen: &Seen) -> f64 {
        (seen.time_ns - START_NS) as f64 / 1e9
    }

    /// Packets that left by a side, ARP and neighbour discovery left out.
    pub fn packets(&self, side: Side) -> Vec<&Seen> {
        self.frames(side).into_iter().filter(|s| !s.is_neighbour_talk()).collect()
    }

    /// Frames that left by a side, ARP and all.
    pub fn frames(&self, side: Side) -> Vec<&Seen> {
        let tags = usize::from(side.vlan.is_some());
        let of_port = self.sent.get(side.port).map(Vec::as_slice).unwrap_or_default();
        of_port.iter().filter(|s| s.tags.len() == tags && s.vlan() == side.vlan).collect()
    }

    /// All frames that left by a port, whatever their tags.
    pub fn port(&self, port: &str) -> &[Seen] {
        self.sent.get(port).map(Vec::as_slice).unwrap_or_default()
    }

    /// Asserts that these packets left by a side, in this order, and no others. ARP is left out.
    #[track_caller]
    pub fn left(&self, side: Side, lines: &[&str]) {
        let left: Vec<_> = self.packets(side).iter().map(ToString::to_string).collect();
        assert_eq!(left, lines, "what left {side:?}\n{self}");
    }

    /// Asserts how many packets left by a side. ARP is left out.
    #[track_caller]
    pub fn count_left(&self, side: Side, count: usize) {
        assert_eq!(self.packets(side).len(), count, "packets that left {side:?}\n{self}");
    }

    /// The only packet that left by a side.
    #[track_caller]
    pub fn only(&self, side: Side) -> &Seen {
        let packets = self.packets(side);
        assert_eq!(packets.len(), 1, "packets that left {side:?}\n{self}");
        packets[0]
    }

    /// Asserts what was dropped, by reason, and that nothing else was.
    #[track_caller]
    pub fn drops(&self, reasons: &[(&str, u64)]) {
        let want: BTreeMap<_, _> = reasons.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        assert_eq!(self.dropped(), want, "drops\n{self}");
    }

    /// What was dropped: reasons that are not 0.
    pub fn dropped(&self) -> BTreeMap<String, u64> {
        let drops = self.stats["drops"].as_object().into_iter().flatten();
        drops.filter_map(|(name, count)| Some((name.clone(), count.as_u64()?))).filter(|(_, n)| *n != 0).collect()
    }

    /// Packets of a zone that were dropped for a reason.
    #[track_caller]
    pub fn zone_drops(&self, zone: &str, reason: &str) -> u64 {
        self.stat(&["zones", zone, "drops", reason])
    }

    /// A number of the statistics by its path.
    #[track_caller]
    pub fn stat(&self, path: &[&str]) -> u64 {
        let found = path.iter().fold(&self.stats, |value, key| &value[*key]);
        found.as_u64().unwrap_or_else(|| panic!("statistics have no number at {path:?}\n{self}"))
    }

    /// A counter of what is no drop.
    #[track_caller]
    pub fn counter(&self, name: &str) -> u64 {
        self.stat(&["counters", name])
    }

    /// Asserts that the table holds these connections, in the short form of [`super::table`], in any order.
    #[track_caller]
    pub fn table(&self, lines: &[&str]) {
        let mut shown: Vec<_> = self.entries.iter().map(ToString::to_string).collect();
        let mut want: Vec<_> = lines.iter().map(|l| (*l).to_owned()).collect();
        shown.sort();
        want.sort();
        assert_eq!(shown, want, "the table\n{self}");
    }

    /// The only connection whose short form contains a text.
    #[track_caller]
    pub fn entry(&self, containing: &str) -> &Entry {
        let mut found = self.entries.iter().filter(|e| e.to_string().contains(containing));
        let first = found.next().unwrap_or_else(|| panic!("no connection is like {containing:?}\n{self}"));
        assert_eq!(found.count(), 0, "further connections are like {containing:?}\n{self}");
        first
    }

    /// Asserts the seconds that a connection has left, give or take the one that printing may round away.
    #[track_caller]
    pub fn expires_in(&self, containing: &str, seconds: u64) {
        let left = self.entry(containing).timeout.expect("lines of the table have a time");
        assert!(left.abs_diff(seconds) <= 1, "{containing}: {left} s left, not {seconds}\n{self}");
    }

    /// The kinds of events of connections whose short form contains a text, in order.
    pub fn story(&self, containing: &str) -> Vec<EventKind> {
        let of = self.events.iter().filter(|e| e.entry.to_string().contains(containing));
        of.map(|e| e.kind).collect()
    }

    /// How many events of a kind there were.
    pub fn count_events(&self, kind: EventKind) -> usize {
        self.events.iter().filter(|e| e.kind == kind).count()
    }

    /// Seconds from time 0 at which the connections whose short form contains a text ended.
    #[expect(clippy::cast_precision_loss, reason = "scenarios last days, not centuries")]
    pub fn ended_at(&self, containing: &str) -> Vec<f64> {
        let ended = self.events.iter().filter(|e| e.kind == EventKind::Destroy);
        let of = ended.filter(|e| e.entry.to_string().contains(containing));
        of.map(|e| (e.time_us - START_NS / 1000) as f64 / 1e6).collect()
    }

    /// What the command that was given at a position (from 1) printed.
    #[track_caller]
    pub fn said(&self, position: usize) -> String {
        let name = format!("at-{position}.txt");
        let bytes = self.files.get(&name).unwrap_or_else(|| panic!("there is no {name}\n{self}"));
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// The lines that such a command printed and that show connections, in their short form, sorted.
    #[track_caller]
    pub fn listed(&self, position: usize) -> Vec<String> {
        let said = self.said(position);
        let shown = said.lines().filter(|l| l.contains("src=")).map(Entry::parse);
        let mut lines: Vec<_> =
            shown.map(|e| e.unwrap_or_else(|fault| panic!("{fault}\n{self}")).to_string()).collect();
        lines.sort();
        lines
    }

    /// Asserts that every packet that came is accounted for: it left, was consumed, or was dropped for one reason;
    /// what left besides was made by the router. Holds where no packet still waits for a neighbour.
    #[track_caller]
    pub fn accounted(&self) {
        let ports = self.stats["ports"].as_object().cloned().unwrap_or_default();
        let total = |what: &str| ports.values().filter_map(|p| p[what].as_u64()).sum::<u64>();
        let came = total("rx_packets") + self.counter("originated");
        let went = total("tx_packets") + self.counter("consumed") + self.dropped().values().sum::<u64>();
        assert_eq!(came, went, "packets that came or were made, and where they went\n{self}");
    }
}

/// What helps to see why an assertion failed.
impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 40;
        let mut text = String::new();
        for (port, sent) in &self.sent {
            let _ = writeln!(text, "--- left {port}: {}", sent.len());
            for seen in sent.iter().take(SHOWN) {
                let vlan = seen.vlan().map(|id| format!(" vlan {id}")).unwrap_or_default();
                let _ = writeln!(text, "{:12.6}{vlan} {seen}", Self::seconds(seen));
            }
        }
        let _ = writeln!(text, "--- table: {}", self.lines.len());
        for line in self.lines.iter().take(SHOWN) {
            let _ = writeln!(text, "{line}");
        }
        let _ = writeln!(text, "--- drops: {:?}", self.dropped());
        for (name, bytes) in self.files.iter().filter(|(name, _)| name.starts_with("at-")) {
            let said = String::from_utf8_lossy(bytes);
            let _ = writeln!(text, "--- {name}");
            for line in said.lines().take(SHOWN) {
                let _ = writeln!(text, "{line}");
            }
        }
        f.write_str(&text)
    }
}

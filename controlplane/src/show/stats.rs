//! Counters, summed over workers, and the statistics document that replay and `show stats --json` share.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use erhu_planes::stats::{Directory, StatsRegion};
use erhu_planes::{Counter, DropReason};
use serde_json::{Map, Value, json};

use crate::cli::Io;
use crate::cli::table::{Align, Table, grouped};

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Received and sent packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
}

impl Traffic {
    pub fn port(stats: &StatsRegion, slot: usize) -> Self {
        let mut sum = Self::default();
        for counters in (0..stats.workers()).filter_map(|w| stats.worker(w)?.ports.get(slot)) {
            sum.rx_packets += load(&counters.rx_packets);
            sum.rx_bytes += load(&counters.rx_bytes);
            sum.tx_packets += load(&counters.tx_packets);
            sum.tx_bytes += load(&counters.tx_bytes);
        }
        sum
    }

    pub fn interface(stats: &StatsRegion, slot: usize) -> Self {
        let mut sum = Self::default();
        for counters in (0..stats.workers()).filter_map(|w| stats.interface(w, slot)) {
            sum.rx_packets += load(&counters.rx_packets);
            sum.rx_bytes += load(&counters.rx_bytes);
            sum.tx_packets += load(&counters.tx_packets);
            sum.tx_bytes += load(&counters.tx_bytes);
        }
        sum
    }

    pub fn json(self) -> Value {
        json!({
            "rx_packets": self.rx_packets, "rx_bytes": self.rx_bytes,
            "tx_packets": self.tx_packets, "tx_bytes": self.tx_bytes,
        })
    }

    /// The sum of both.
    pub fn and(self, other: Self) -> Self {
        Self {
            rx_packets: self.rx_packets + other.rx_packets,
            rx_bytes: self.rx_bytes + other.rx_bytes,
            tx_packets: self.tx_packets + other.tx_packets,
            tx_bytes: self.tx_bytes + other.tx_bytes,
        }
    }

    pub fn cells(self) -> [String; 4] {
        [self.rx_packets, self.rx_bytes, self.tx_packets, self.tx_bytes].map(grouped)
    }
}

/// A zone's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ZoneCounts {
    pub created: u64,
    pub ended: u64,
    pub drops: [u64; DropReason::COUNT],
}

impl ZoneCounts {
    pub fn of(stats: &StatsRegion, slot: usize) -> Self {
        let mut sum = Self::default();
        for block in (0..stats.workers()).filter_map(|w| stats.zone(w, slot)) {
            sum.created += load(&block.created);
            sum.ended += load(&block.ended);
            add_drops(&mut sum.drops, &block.drops);
        }
        sum
    }

    pub fn live(&self) -> u64 {
        self.created.saturating_sub(self.ended)
    }

    pub fn dropped(&self) -> u64 {
        self.drops.iter().sum()
    }
}

fn add_drops(sum: &mut [u64; DropReason::COUNT], slots: &[AtomicU64]) {
    for (sum, slot) in sum.iter_mut().zip(slots) {
        *sum += load(slot);
    }
}

/// Drops of packets that came in by an interface.
pub(super) fn interface_drops(stats: &StatsRegion, slot: usize) -> u64 {
    stats.sum(|w| stats.interface_drops(w, slot).map_or(0, |block| block.drops.iter().map(load).sum()))
}

/// Slots by name, so that thousands of zones are found quickly.
pub(super) fn slots(stats: &StatsRegion, directory: Directory) -> HashMap<(u16, String), usize> {
    stats.names(directory).into_iter().map(|(slot, number, name)| ((number, name), slot)).collect()
}

/// Slots by name alone, for what has no number of its own.
pub(super) fn slots_by_name(stats: &StatsRegion, directory: Directory) -> HashMap<String, usize> {
    stats.names(directory).into_iter().map(|(slot, _, name)| (name, slot)).collect()
}

/// Totals of a dataplane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    created: u64,
    ended: u64,
    drops: [u64; DropReason::COUNT],
    refused: [u64; DropReason::COUNT],
    counters: [u64; Counter::COUNT],
}

impl Totals {
    fn of(stats: &StatsRegion) -> Self {
        let mut sum = Self::default();
        for block in (0..stats.workers()).filter_map(|w| stats.worker(w)) {
            sum.created += load(&block.created);
            sum.ended += load(&block.ended);
            add_drops(&mut sum.drops, &block.drops);
            add_drops(&mut sum.refused, &block.refused);
            for (sum, slot) in sum.counters.iter_mut().zip(&block.counters) {
                *sum += load(slot);
            }
        }
        sum
    }

    fn live(&self) -> u64 {
        self.created.saturating_sub(self.ended)
    }
}

/// By reason, all of them, zeros too.
pub(super) fn by_reason(counts: &[u64; DropReason::COUNT]) -> Value {
    let object: Map<String, Value> = DropReason::ALL
        .iter()
        .zip(counts)
        .map(|(reason, count)| (reason.name().to_owned(), (*count).into()))
        .collect();
    Value::Object(object)
}

/// Every counter that does not depend on the machine or on real time: ports, zones, drops, counters, connections and
/// named counters. Equal runs give equal documents.
pub fn document(stats: &StatsRegion) -> Value {
    let totals = Totals::of(stats);
    let ports: Map<String, Value> = stats
        .names(Directory::Ports)
        .into_iter()
        .map(|(slot, _, name)| (name, Traffic::port(stats, slot).json()))
        .collect();
    let mut by_name: BTreeMap<String, Traffic> = BTreeMap::new();
    for (slot, _, name) in stats.names(Directory::Interfaces) {
        // One that became an end of a link has counters of either.
        let all = by_name.entry(name).or_default();
        *all = all.and(Traffic::interface(stats, slot));
    }
    let interfaces: Map<String, Value> = by_name.into_iter().map(|(name, traffic)| (name, traffic.json())).collect();
    let zones: Map<String, Value> = stats
        .names(Directory::Zones)
        .into_iter()
        .map(|(slot, id, name)| {
            let counts = ZoneCounts::of(stats, slot);
            let (live, created, ended) = (counts.live(), counts.created, counts.ended);
            let drops = by_reason(&counts.drops);
            (name, json!({ "id": id, "live": live, "created": created, "ended": ended, "drops": drops }))
        })
        .collect();
    let named: Map<String, Value> = stats
        .names(Directory::Named)
        .into_iter()
        .map(|(slot, _, name)| {
            let (packets, bytes) = named_counter(stats, slot);
            (name, json!({ "packets": packets, "bytes": bytes }))
        })
        .collect();
    let counters: Map<String, Value> = Counter::ALL
        .iter()
        .zip(totals.counters)
        .map(|(counter, count)| (counter.name().to_owned(), count.into()))
        .collect();
    json!({
        "ports": ports,
        "interfaces": interfaces,
        "zones": zones,
        "drops": by_reason(&totals.drops),
        "counters": counters,
        "named": named,
        "connections": {
            "created": totals.created,
            "ended": totals.ended,
            "live": totals.live(),
            "refused": by_reason(&totals.refused),
        },
    })
}

/// Packets and bytes of a named counter.
pub(super) fn named_counter(stats: &StatsRegion, slot: usize) -> (u64, u64) {
    let packets = stats.sum(|w| stats.named(w, slot).map_or(0, |counter| load(&counter.packets)));
    let bytes = stats.sum(|w| stats.named(w, slot).map_or(0, |counter| load(&counter.bytes)));
    (packets, bytes)
}

/// `erhu show stats`.
pub(super) fn show(io: &mut Io<'_>, stats: &StatsRegion) -> io::Result<()> {
    if io.json {
        return writeln!(io.out, "{:#}", document(stats));
    }
    let totals = Totals::of(stats);
    let columns = |heading| Table::new(&[(heading, Align::Left), ("COUNT", Align::Right)]);
    let mut connections = columns("CONNECTIONS");
    for (name, count) in [("live", totals.live()), ("created", totals.created), ("ended", totals.ended)] {
        connections.row([name.to_owned(), grouped(count)]);
    }
    for (reason, count) in DropReason::ALL.iter().zip(totals.refused).filter(|(_, count)| *count > 0) {
        connections.row([format!("refused: {reason}"), grouped(count)]);
    }
    connections.print(io.out)?;
    let mut counters = columns("COUNTERS");
    for (counter, count) in Counter::ALL.iter().zip(totals.counters) {
        counters.row([counter.name().to_owned(), grouped(count)]);
    }
    writeln!(io.out)?;
    counters.print(io.out)?;
    let mut drops = columns("DROPS");
    for (reason, count) in DropReason::ALL.iter().zip(totals.drops).filter(|(_, count)| *count > 0) {
        drops.row([reason.name().to_owned(), grouped(count)]);
    }
    drops.row(["all".to_owned(), grouped(totals.drops.iter().sum())]);
    writeln!(io.out)?;
    drops.print(io.out)
}

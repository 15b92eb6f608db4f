//! Statistics of a replay as JSON: what does not vary between runs, bursts or hash keys.

use std::sync::atomic::{AtomicU64, Ordering};

use erhu_planes::stats::{Directory, StatsRegion};
use erhu_planes::{Counter, DropReason};
use serde_json::{Map, Value, json};

use super::Plane;

/// Counters that say how packets were handled, not what became of them.
const INTERNAL: [Counter; 3] = [Counter::FastPath, Counter::SlowPath, Counter::HandedOver];
/// Reasons for which connections are refused.
const REFUSALS: [DropReason; 7] = [
    DropReason::ZoneLimit,
    DropReason::ZoneRate,
    DropReason::HostLimit,
    DropReason::TableFull,
    DropReason::Clash,
    DropReason::PoolExhausted,
    DropReason::Filtered,
];

/// The JSON text, keys in a fixed order, ending in a newline.
pub fn statistics(plane: &Plane) -> String {
    let stats = &plane.shared().stats;
    let mut ports = Map::new();
    for (number, port) in plane.ports().iter().enumerate() {
        let of = |pick: fn(&erhu_planes::stats::PortCounters) -> &AtomicU64| {
            stats.sum(|w| stats.worker(w).map_or(0, |b| pick(&b.ports[number]).load(Ordering::Relaxed)))
        };
        ports.insert(
            port.name.clone(),
            json!({
                "rx_packets": of(|p| &p.rx_packets), "rx_bytes": of(|p| &p.rx_bytes),
                "tx_packets": of(|p| &p.tx_packets), "tx_bytes": of(|p| &p.tx_bytes),
            }),
        );
    }
    let worker =
        |pick: &dyn Fn(&erhu_planes::stats::WorkerBlock) -> u64| stats.sum(|w| stats.worker(w).map_or(0, pick));
    let drops = named(DropReason::ALL, |r| (r.name(), worker(&|b| b.drops[r.index()].load(Ordering::Relaxed))));
    let counters: Vec<Counter> = Counter::ALL.iter().copied().filter(|c| !INTERNAL.contains(c)).collect();
    let counters = named(&counters, |c| (c.name(), worker(&|b| b.counters[c.index()].load(Ordering::Relaxed))));
    let refused = named(&REFUSALS, |r| (r.name(), worker(&|b| b.refused[r.index()].load(Ordering::Relaxed))));
    let created = worker(&|b| b.created.load(Ordering::Relaxed));
    let ended = worker(&|b| b.ended.load(Ordering::Relaxed));
    let text = serde_json::to_string_pretty(&json!({
        "ports": ports,
        "zones": zones(stats),
        "drops": drops,
        "counters": counters,
        "named": named_counters(stats),
        "connections": {
            "created": created,
            "ended": ended,
            "live": created.wrapping_sub(ended),
            "refused": refused,
        },
    }));
    text.unwrap_or_default() + "\n"
}

fn named<T: Copy>(all: &[T], row: impl Fn(T) -> (&'static str, u64)) -> Map<String, Value> {
    all.iter().map(|item| row(*item)).map(|(name, value)| (name.to_owned(), value.into())).collect()
}

fn zones(stats: &StatsRegion) -> Map<String, Value> {
    let mut zones = Map::new();
    for (slot, id, name) in stats.names(Directory::Zones) {
        let of =
            |pick: &dyn Fn(&erhu_planes::stats::ZoneBlock) -> u64| stats.sum(|w| stats.zone(w, slot).map_or(0, pick));
        let created = of(&|b| b.created.load(Ordering::Relaxed));
        let ended = of(&|b| b.ended.load(Ordering::Relaxed));
        let drops = named(DropReason::ALL, |r| (r.name(), of(&|b| b.drops[r.index()].load(Ordering::Relaxed))));
        zones.insert(
            name,
            json!({"id": id, "live": created.wrapping_sub(ended), "created": created, "ended": ended, "drops": drops}),
        );
    }
    zones
}

fn named_counters(stats: &StatsRegion) -> Map<String, Value> {
    let mut counters = Map::new();
    for (slot, _, name) in stats.names(Directory::Named) {
        let of = |pick: &dyn Fn(&erhu_planes::stats::NamedCounter) -> u64| {
            stats.sum(|w| stats.named(w, slot).map_or(0, pick))
        };
        let packets = of(&|c| c.packets.load(Ordering::Relaxed));
        let bytes = of(&|c| c.bytes.load(Ordering::Relaxed));
        counters.insert(name, json!({"packets": packets, "bytes": bytes}));
    }
    counters
}

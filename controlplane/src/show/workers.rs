//! `erhu show workers`: what each worker does, and how long its loops take.

use std::sync::atomic::{AtomicU64, Ordering};

use erhu_planes::stats::{BURST_BUCKETS, LOOP_BUCKETS, StatsRegion, WorkerBlock};
use serde_json::json;

use super::{LEFT, RIGHT, print};
use crate::cli::table::{Table, grouped};
use crate::cli::{Failure, Io};

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Hundredths of a share; nothing of nothing is unknown.
fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| (part.min(whole) as f64 / whole as f64 * 10_000.0).round() / 100.0)
}

/// The bound below which all but one in `one_in` of what a histogram counts lies: the end of a bucket of powers of two.
fn quantile(histogram: &[AtomicU64], one_in: u64) -> Option<u64> {
    let counts: Vec<u64> = histogram.iter().map(load).collect();
    let all: u64 = counts.iter().sum();
    let mut beyond = all;
    for (at, count) in counts.iter().enumerate().take_while(|_| all > 0) {
        beyond -= count;
        if beyond <= all / one_in {
            return Some(2 << at);
        }
    }
    None
}

/// Nanoseconds as microseconds with what matters of their fraction.
fn microseconds(ns: u64) -> String {
    if ns < 100_000 { format!("{}.{}", ns / 1000, ns % 1000 / 100) } else { grouped(ns / 1000) }
}

pub(super) fn show(io: &mut Io<'_>, stats: &StatsRegion) -> Result<(), Failure> {
    let mut table = Table::new(&[
        ("WORKER", RIGHT),
        ("CPU", RIGHT),
        ("GENERATION", RIGHT),
        ("LIVE", RIGHT),
        ("CREATED", RIGHT),
        ("ENDED", RIGHT),
        ("DROPS", RIGHT),
        ("LOOPS", RIGHT),
        ("IDLE", RIGHT),
        ("LOOP/US 99.9%", RIGHT),
        ("LONGEST 1 MIN", RIGHT),
        ("LONGEST EVER", RIGHT),
    ]);
    let mut rows = Vec::new();
    let blocks: Vec<(usize, &WorkerBlock)> =
        (0..stats.workers()).filter_map(|w| Some((w, stats.worker(w)?))).collect();
    for (worker, block) in &blocks {
        let cpu = Some(block.cpu.load(Ordering::Relaxed)).filter(|cpu| *cpu != u32::MAX);
        let generation = block.generation.load(Ordering::Relaxed);
        let (created, ended) = (load(&block.created), load(&block.ended));
        let live = created.saturating_sub(ended);
        let drops: u64 = block.drops.iter().map(load).sum();
        let (total, busy) = (load(&block.total_ns), load(&block.busy_ns));
        let (minute, minute_busy) = (load(&block.minute_ns), load(&block.minute_busy_ns));
        let idle = percent(total.saturating_sub(busy), total);
        // Before the first second is over the minute says nothing.
        let idle_now = percent(minute.saturating_sub(minute_busy), minute).or(idle);
        let counts = |histogram: &[AtomicU64]| histogram.iter().map(load).collect::<Vec<_>>();
        rows.push(json!({
            "worker": worker, "cpu": cpu, "generation": generation, "live": live,
            "created": created, "ended": ended, "drops": drops,
            "loops": load(&block.loops), "busy_loops": load(&block.busy_loops),
            "longest_loop_ns": load(&block.longest_loop_ns),
            "minute_longest_loop_ns": load(&block.minute_longest_ns),
            "total_ns": total, "busy_ns": busy, "napped_ns": load(&block.napped_ns),
            "minute_ns": minute, "minute_busy_ns": minute_busy,
            "idle_percent": idle, "minute_idle_percent": idle_now,
            "loop_times": counts(&block.loop_times), "bursts": counts(&block.bursts),
        }));
        let facts = [worker.to_string(), cpu.map_or_else(String::new, |cpu| cpu.to_string()), generation.to_string()];
        let times = [
            quantile(&block.loop_times, 1000).map_or_else(String::new, |ns| format!("<{}", microseconds(ns))),
            microseconds(load(&block.minute_longest_ns)),
            microseconds(load(&block.longest_loop_ns)),
        ];
        let numbers = [live, created, ended, drops, load(&block.loops)].map(grouped);
        let idle = idle_now.map_or_else(String::new, |idle| format!("{idle:.1}%"));
        table.row(facts.into_iter().chain(numbers).chain([idle]).chain(times));
    }
    print(io, &table, rows)?;
    if io.json {
        return Ok(());
    }
    let loops = |at: usize| (format!("{} us", microseconds(1 << at)), format!("{} us", microseconds(2 << at)));
    let counts: Vec<Vec<u64>> = blocks.iter().map(|(_, b)| b.loop_times.iter().map(load).collect()).collect();
    histogram(io, "LOOPS FROM", LOOP_BUCKETS, loops, &counts)?;
    let bursts = |at: usize| ((1_u64 << at).to_string(), (2_u64 << at).to_string());
    let counts: Vec<Vec<u64>> = blocks.iter().map(|(_, b)| b.bursts.iter().map(load).collect()).collect();
    histogram(io, "PACKETS FROM", BURST_BUCKETS, bursts, &counts)
}

/// Prints the buckets that any worker has something in, one column for each worker.
fn histogram(
    io: &mut Io<'_>,
    heading: &str,
    buckets: usize,
    bounds: impl Fn(usize) -> (String, String),
    counts: &[Vec<u64>],
) -> Result<(), Failure> {
    let workers: Vec<String> = (0..counts.len()).map(|worker| format!("WORKER {worker}")).collect();
    let columns = [(heading, LEFT), ("BELOW", LEFT)].into_iter().chain(workers.iter().map(|name| (&**name, RIGHT)));
    let mut table = Table::new(&columns.collect::<Vec<_>>());
    for at in 0..buckets {
        let row: Vec<u64> = counts.iter().map(|of| of.get(at).copied().unwrap_or(0)).collect();
        if row.iter().any(|count| *count > 0) {
            let (from, below) = bounds(at);
            table.row([from, below].into_iter().chain(row.into_iter().map(grouped)));
        }
    }
    writeln!(io.out)?;
    Ok(table.print(io.out)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(counts: &[u64]) -> Vec<AtomicU64> {
        counts.iter().map(|count| AtomicU64::new(*count)).collect()
    }

    #[test]
    fn a_quantile_is_the_end_of_the_bucket_that_holds_it() {
        assert_eq!(quantile(&of(&[0, 0, 0]), 1000), None);
        assert_eq!(quantile(&of(&[0, 5, 0]), 1000), Some(4));
        assert_eq!(quantile(&of(&[999, 0, 1]), 1000), Some(2));
        assert_eq!(quantile(&of(&[998, 0, 2]), 1000), Some(8));
    }

    #[test]
    fn a_share_of_nothing_is_unknown() {
        assert_eq!(percent(0, 0), None);
        assert_eq!(percent(1, 3), Some(33.33));
        assert_eq!(percent(9, 3), Some(100.0));
    }

    #[test]
    fn short_times_keep_a_fraction() {
        assert_eq!(microseconds(1_234), "1.2");
        assert_eq!(microseconds(99_999), "99.9");
        assert_eq!(microseconds(1_234_567), "1,234");
    }
}

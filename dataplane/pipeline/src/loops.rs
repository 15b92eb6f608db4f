//! How a poll loop spends its time: what each loop took, how full bursts were, how much of it was idle.
//!
//! Per loop this costs a handful of additions to lines that no other worker touches. Time is what the caller measured;
//! the sum of all loops and naps is this module's clock, so that "the last minute" is one of polling.

use std::sync::atomic::Ordering;

use erhu_planes::stats::{BURST_BUCKETS, LOOP_BUCKETS, WorkerBlock};

use crate::tally::Totals;

const SECOND_NS: u64 = 1_000_000_000;
/// Seconds that are remembered one by one.
const MINUTE: usize = 60;

/// One second of polling.
#[derive(Clone, Copy, Debug, Default)]
struct Second {
    /// Longest loop that ended in it.
    longest_ns: u64,
    busy_ns: u64,
    total_ns: u64,
}

/// Totals since the worker started, and the last minute.
#[derive(Clone, Debug)]
pub(crate) struct Loops {
    loops: u64,
    busy_loops: u64,
    total_ns: u64,
    busy_ns: u64,
    napped_ns: u64,
    longest_ns: u64,
    /// The present second, and when the next begins by `total_ns`.
    second: Second,
    ends_ns: u64,
    /// Longest loop of the remembered seconds.
    minute: Second,
    seconds: [Second; MINUTE],
    at: usize,
    times: Totals<LOOP_BUCKETS>,
    bursts: Totals<BURST_BUCKETS>,
}

impl Default for Loops {
    fn default() -> Self {
        Self {
            loops: 0,
            busy_loops: 0,
            total_ns: 0,
            busy_ns: 0,
            napped_ns: 0,
            longest_ns: 0,
            second: Second::default(),
            ends_ns: SECOND_NS,
            minute: Second::default(),
            seconds: [Second::default(); MINUTE],
            at: 0,
            times: Totals::new(),
            bursts: Totals::new(),
        }
    }
}

/// The bucket of a number: its log₂, 0 for 0, and the last one for what is beyond.
#[inline]
const fn bucket(number: u64, buckets: usize) -> usize {
    let log = (number | 1).ilog2() as usize;
    if log < buckets { log } else { buckets - 1 }
}

impl Loops {
    #[inline]
    pub fn looped(&mut self, packets: usize, ns: u64) {
        self.loops += 1;
        self.times.add(bucket(ns, LOOP_BUCKETS), 1);
        self.longest_ns = self.longest_ns.max(ns);
        self.second.longest_ns = self.second.longest_ns.max(ns);
        if packets > 0 {
            self.busy_loops += 1;
            self.busy_ns += ns;
            self.second.busy_ns += ns;
        }
        self.pass(ns);
    }

    #[inline]
    pub fn burst(&mut self, packets: usize) {
        if packets > 0 {
            self.bursts.add(bucket(packets as u64, BURST_BUCKETS), 1);
        }
    }

    pub fn napped(&mut self, ns: u64) {
        self.napped_ns += ns;
        self.pass(ns);
    }

    #[inline]
    fn pass(&mut self, ns: u64) {
        self.total_ns += ns;
        self.second.total_ns += ns;
        if self.total_ns >= self.ends_ns {
            self.turn();
        }
    }

    /// A second is over; more than one if the worker was stopped for so long.
    #[cold]
    fn turn(&mut self) {
        for _ in 0..MINUTE {
            if self.total_ns < self.ends_ns {
                break;
            }
            self.ends_ns += SECOND_NS;
            self.seconds[self.at] = std::mem::take(&mut self.second);
            self.at = (self.at + 1) % MINUTE;
        }
        self.ends_ns = (self.total_ns / SECOND_NS + 1) * SECOND_NS;
        self.minute = self.seconds.iter().fold(Second::default(), |sum, one| Second {
            longest_ns: sum.longest_ns.max(one.longest_ns),
            busy_ns: sum.busy_ns + one.busy_ns,
            total_ns: sum.total_ns + one.total_ns,
        });
    }

    pub fn publish(&self, block: &WorkerBlock) {
        let relaxed = Ordering::Relaxed;
        block.loops.store(self.loops, relaxed);
        block.busy_loops.store(self.busy_loops, relaxed);
        block.longest_loop_ns.store(self.longest_ns, relaxed);
        block.minute_longest_ns.store(self.minute.longest_ns.max(self.second.longest_ns), relaxed);
        block.total_ns.store(self.total_ns, relaxed);
        block.busy_ns.store(self.busy_ns, relaxed);
        block.napped_ns.store(self.napped_ns, relaxed);
        block.minute_ns.store(self.minute.total_ns, relaxed);
        block.minute_busy_ns.store(self.minute.busy_ns, relaxed);
        self.times.publish(&block.loop_times);
        self.bursts.publish(&block.bursts);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use erhu_planes::region::Region;
    use erhu_planes::stats::StatsRegion;

    use super::*;

    /// What a reader sees, by `pick`.
    fn seen<T>(loops: &Loops, pick: impl Fn(&WorkerBlock) -> T) -> T {
        let region = Region::anonymous("stats", StatsRegion::size(1)).unwrap();
        let stats = StatsRegion::create(region, 1, &[], 1).unwrap();
        let block = stats.worker(0).unwrap();
        loops.publish(block);
        pick(block)
    }

    #[test]
    fn loops_and_bursts_are_counted_by_the_power_of_two_below_them() {
        let mut loops = Loops::default();
        for (packets, ns) in [(0, 0), (0, 1), (1, 1023), (64, 1024), (64, u64::MAX / 4)] {
            loops.looped(packets, ns);
            loops.burst(packets);
        }
        let all = |buckets: &[AtomicU64]| buckets.iter().map(|n| n.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let (times, bursts) = seen(&loops, |b| (all(&b.loop_times), all(&b.bursts)));
        let filled: Vec<_> = times.iter().enumerate().filter(|(_, n)| **n > 0).map(|(at, n)| (at, *n)).collect();
        assert_eq!(filled, [(0, 2), (9, 1), (10, 1), (31, 1)]);
        assert_eq!(bursts, [1, 0, 0, 0, 0, 0, 2, 0]);
        assert_eq!(seen(&loops, |b| b.busy_loops.load(Ordering::Relaxed)), 3);
    }

    #[test]
    fn the_longest_loop_of_the_last_minute_is_forgotten_after_a_minute_and_the_longest_ever_is_not() {
        let longest = |loops: &Loops| {
            seen(loops, |b| [&b.longest_loop_ns, &b.minute_longest_ns].map(|n| n.load(Ordering::Relaxed)))
        };
        let mut loops = Loops::default();
        loops.looped(1, 5_000_000);
        assert_eq!(longest(&loops), [5_000_000; 2], "at once");
        for _ in 0..59 * 1000 {
            loops.looped(0, 1_000_000);
        }
        assert_eq!(longest(&loops), [5_000_000; 2]);
        for _ in 0..2 * 1000 {
            loops.looped(0, 1_000_000);
        }
        assert_eq!(longest(&loops), [5_000_000, 1_000_000]);
    }

    #[test]
    fn the_busy_share_of_the_last_minute_counts_naps_as_idle() {
        let mut loops = Loops::default();
        for _ in 0..200_000 {
            loops.looped(8, 250_000);
            loops.looped(0, 250_000);
            loops.napped(500_000);
        }
        let [minute, busy, napped] =
            seen(&loops, |b| [&b.minute_ns, &b.minute_busy_ns, &b.napped_ns].map(|n| n.load(Ordering::Relaxed)));
        assert_eq!((minute, busy, napped), (60 * SECOND_NS, 15 * SECOND_NS, 100 * SECOND_NS));
    }

    #[test]
    fn a_worker_that_was_stopped_for_hours_goes_on_counting() {
        let mut loops = Loops::default();
        loops.looped(0, 10_000 * SECOND_NS);
        loops.looped(1, 7);
        let [minute, longest] =
            seen(&loops, |b| [&b.minute_ns, &b.minute_longest_ns].map(|n| n.load(Ordering::Relaxed)));
        assert_eq!((minute, longest), (10_000 * SECOND_NS, 10_000 * SECOND_NS));
    }
}

//! What time it is, by the time stamp counter: two readings of the system's clocks cost more than an empty loop.
//!
//! The counter is compared with the system's clocks a thousand times a second, so neither its frequency nor a machine
//! that slept meanwhile matters for longer.

use erhu_pipeline::Now;
use rustix::time::{ClockId, clock_gettime};

/// Times a second that the system is asked.
const COMPARISONS: u64 = 1000;

/// Boot time and real time, as the system says.
pub fn now() -> Now {
    let ns = |id| {
        let t = clock_gettime(id);
        let seconds = u64::try_from(t.tv_sec).unwrap_or(0);
        seconds * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0)
    };
    Now::new(ns(ClockId::Boottime), ns(ClockId::Realtime))
}

/// One worker's clock. Boot time never goes back.
#[derive(Debug)]
pub struct Clock {
    /// Nanoseconds per tick, times 2³².
    scale: u64,
    /// Ticks after which the system is asked again.
    patience: u64,
    compared: u64,
    then: Now,
    latest_ns: u64,
}

impl Clock {
    /// For a counter of that frequency in Hz, which stands at `ticks`.
    pub fn new(hz: u64, ticks: u64) -> Self {
        let hz = hz.max(1);
        let then = now();
        let scale = u64::try_from((1_000_000_000_u128 << 32) / u128::from(hz)).unwrap_or(u64::MAX);
        Self { scale, patience: hz / COMPARISONS, compared: ticks, then, latest_ns: then.mono_ns }
    }

    /// Ticks as nanoseconds.
    #[inline]
    pub fn nanoseconds(&self, ticks: u64) -> u64 {
        u64::try_from((u128::from(ticks) * u128::from(self.scale)) >> 32).unwrap_or(u64::MAX)
    }

    /// The time when the counter stands at `ticks`.
    #[inline]
    pub fn at(&mut self, ticks: u64) -> Now {
        let passed = ticks.saturating_sub(self.compared);
        if passed >= self.patience {
            (self.compared, self.then) = (ticks, now());
            return self.forward(self.then);
        }
        let passed = self.nanoseconds(passed);
        self.forward(Now::new(self.then.mono_ns + passed, self.then.wall_ns + passed))
    }

    #[inline]
    fn forward(&mut self, time: Now) -> Now {
        self.latest_ns = self.latest_ns.max(time.mono_ns);
        if time.mono_ns == self.latest_ns { time } else { Now::new(self.latest_ns, time.wall_ns) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u64 = 2_300_000_000;

    #[test]
    fn ticks_are_nanoseconds_by_the_frequency() {
        let clock = Clock::new(HZ, 0);
        assert_eq!(clock.nanoseconds(0), 0);
        assert!(clock.nanoseconds(HZ).abs_diff(1_000_000_000) <= 1);
        assert!(clock.nanoseconds(23).abs_diff(10) <= 1);
    }

    #[test]
    fn between_comparisons_time_goes_on_with_the_counter() {
        let mut clock = Clock::new(HZ, 1_000);
        let first = clock.at(1_000);
        let second = clock.at(1_000 + HZ / 2000);
        assert!((second.mono_ns - first.mono_ns).abs_diff(500_000) <= 1);
        assert!((second.wall_ns - first.wall_ns).abs_diff(500_000) <= 1);
    }

    #[test]
    fn a_counter_with_another_frequency_than_it_says_is_set_right_and_time_never_goes_back() {
        // Runs ten times as fast as it says.
        let began = std::time::Instant::now();
        let mut clock = Clock::new(HZ / 10, 0);
        let mut latest = 0;
        while began.elapsed().as_millis() < 20 {
            let ticks = u64::try_from(began.elapsed().as_nanos()).unwrap() * 23 / 10;
            let time = clock.at(ticks);
            assert!(time.mono_ns >= latest);
            latest = time.mono_ns;
        }
        assert!(latest.abs_diff(now().mono_ns) < 20_000_000, "{latest}");
    }
}

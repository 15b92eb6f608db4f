//! Virtual time: capture time as real time, and a boot time that runs along.

use erhu_planes::TICKS_PER_SECOND;

use super::ReplayError;

const TICK_NS: u64 = 1_000_000_000 / TICKS_PER_SECOND as u64;
/// Boot time at time 0. Not 0, so that times before the first packet are not negative.
const BOOT_NS: u64 = 1_000 * 1_000_000_000;

/// The clock of a replay.
#[derive(Debug)]
pub struct Clock {
    start_ns: u64,
    /// Since the start.
    now_ns: u64,
}

impl Clock {
    /// At time 0, which is `start_ns` of real time.
    pub fn new(start_ns: u64) -> Self {
        Self { start_ns, now_ns: 0 }
    }

    /// Real time now.
    pub fn wall_ns(&self) -> u64 {
        self.start_ns + self.now_ns
    }

    /// Real time of an instant that an option gives in seconds.
    ///
    /// # Errors
    /// If it is no time.
    pub fn instant(&self, seconds: f64, option: &str) -> Result<u64, ReplayError> {
        if !(0.0..=1e9).contains(&seconds) {
            return Err(ReplayError::Option(format!("{option}: {seconds} is no time from 0 to 1e9 seconds")));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to fit just above")]
        let ns = (seconds * 1e9).round() as u64;
        Ok(self.start_ns + ns)
    }

    /// Goes on towards an instant: to the next tick, or right there if nothing waits for time to pass. Returns real and
    /// boot time, `None` once there.
    pub fn step(&mut self, until_wall_ns: u64, is_idle: bool) -> Option<(u64, u64)> {
        let until = until_wall_ns.saturating_sub(self.start_ns);
        if until <= self.now_ns {
            return None;
        }
        let next_tick = (self.now_ns / TICK_NS + 1) * TICK_NS;
        self.now_ns = if is_idle { until } else { next_tick.min(until) };
        Some((self.wall_ns(), BOOT_NS + self.now_ns))
    }

    /// Boot time at the start.
    pub const fn boot_ns() -> u64 {
        BOOT_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stops_at_every_tick_unless_nothing_waits() {
        let mut clock = Clock::new(5_000);
        let until = 5_000 + 2 * TICK_NS + 7;
        assert_eq!(clock.step(until, false), Some((5_000 + TICK_NS, BOOT_NS + TICK_NS)));
        assert_eq!(clock.step(until, true), Some((until, BOOT_NS + 2 * TICK_NS + 7)));
        assert_eq!(clock.step(until, true), None);
    }
}

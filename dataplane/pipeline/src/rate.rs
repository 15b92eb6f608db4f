//! Rate limits that workers share: one atomic word each, touched only off the fast path.

use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::{FromZeros, KnownLayout};

/// A token bucket as one word (GCRA): the theoretical arrival time of the next conforming event, nanoseconds.
#[derive(Debug, Default, FromZeros, KnownLayout)]
#[repr(C)]
pub struct RateLimit {
    next_ns: AtomicU64,
}

impl RateLimit {
    /// Takes one token if there is one: at most `per_second` a second in the long run, `burst` at once.
    pub fn take(&self, now_ns: u64, per_second: u32, burst: u32) -> bool {
        if per_second == 0 {
            return false;
        }
        let step = 1_000_000_000 / u64::from(per_second);
        let slack = step.saturating_mul(u64::from(burst.max(1)) - 1);
        // The word stands alone, so Relaxed is enough.
        self.next_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                let next = next.max(now_ns);
                (next - now_ns <= slack).then(|| next + step)
            })
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_one_per_step() {
        let limit = RateLimit::default();
        let passed = |at: u64, n: u32| (0..n).filter(|_| limit.take(at, 10, 3)).count();
        assert_eq!(passed(1_000_000_000, 10), 3);
        assert_eq!(passed(1_050_000_000, 10), 0);
        assert_eq!(passed(1_100_000_000, 10), 1);
        assert_eq!(passed(9_000_000_000, 10), 3);
    }

    #[test]
    fn a_rate_of_zero_admits_none() {
        assert!(!RateLimit::default().take(5, 0, 10));
    }
}

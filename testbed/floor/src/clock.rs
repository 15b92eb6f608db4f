//! Ticks of the time stamp counter, and a thread's own CPU time in them.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long the counter is compared with the system's clock.
const CALIBRATION: Duration = Duration::from_millis(50);

/// The time stamp counter now: wall time.
#[inline(always)]
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reading the counter has no precondition; every x86-64 has it.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        static START: OnceLock<Instant> = OnceLock::new();
        u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Ticks a second, compared once with the system's monotonic clock.
pub fn hz() -> f64 {
    static HZ: OnceLock<f64> = OnceLock::new();
    *HZ.get_or_init(|| {
        let (began, first) = (Instant::now(), ticks());
        while began.elapsed() < CALIBRATION {
            std::hint::spin_loop();
        }
        // The pair at the end is read as the pair at the beginning was.
        let (elapsed, last) = (began.elapsed(), ticks());
        (last - first) as f64 / elapsed.as_secs_f64()
    })
}

/// CPU time that this thread has used, in nanoseconds: what other threads of the machine do is not in it.
pub fn cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec to be filled, and every Linux has this clock. (Through libc and not rustix, which
    // looks for the vDSO that valgrind hides.)
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) } != 0;
    debug_assert!(!failed);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Measures a piece of work in ticks of this thread's CPU time.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(u64);

impl Stopwatch {
    /// From now on.
    pub fn start() -> Self {
        hz();
        Self(cpu_ns())
    }

    /// Ticks since the start.
    pub fn ticks(self) -> f64 {
        (cpu_ns() - self.0) as f64 * hz() / 1e9
    }
}

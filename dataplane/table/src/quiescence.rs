//! Quiescent states: knowing that no worker still uses what was taken away.
//!
//! # Overview
//!
//! One global epoch, and one word per worker: the epoch that the worker saw when it last held nothing, or
//! [`OFFLINE`]. Something taken out of sight before the epoch was advanced to *e* is unused once every worker's word
//! is at least *e*.
//!
//! # Synchronisation
//!
//! The advance is a Release that a worker's pass acquires, so whoever passed *e* sees what was taken away; the pass is
//! a Release that the check acquires, so all reads before it are over. A worker that comes online while a check runs
//! is covered by a pair of sequentially consistent fences: either the check sees it, or it sees what was taken away.

use crate::apart::Apart;
use crate::sync::{Arc, AtomicU64, Ordering, fence};

const OFFLINE: u64 = u64::MAX;

struct Epochs {
    global: Apart<AtomicU64>,
    workers: Box<[Apart<AtomicU64>]>,
}

/// The quiescent states of a fixed set of workers (or other threads that read what is shared). Clones are handles to
/// the same.
#[derive(Clone)]
pub struct Quiescence(Arc<Epochs>);

impl Quiescence {
    /// `workers` threads may be registered, none is yet.
    pub fn new(workers: usize) -> Self {
        let workers = (0..workers).map(|_| Apart::new(AtomicU64::new(OFFLINE))).collect();
        Self(Arc::new(Epochs { global: Apart::new(AtomicU64::new(1)), workers }))
    }

    /// From here on the thread's reads are waited for, until it passes or unregisters. Numbers beyond the count given
    /// at creation are ignored.
    pub fn register(&self, worker: usize) {
        let Some(own) = self.0.workers.get(worker) else { return };
        own.store(self.0.global.load(Ordering::Acquire), Ordering::Release);
        // Pairs with the fence in `advance`: if a check does not see us online, we see what it took away.
        fence(Ordering::SeqCst);
    }

    /// The thread holds nothing and will read nothing until it registers or passes again.
    pub fn unregister(&self, worker: usize) {
        if let Some(own) = self.0.workers.get(worker) {
            // Release; pairs with the Acquire in `is_past`.
            own.store(OFFLINE, Ordering::Release);
        }
    }

    /// The thread holds nothing that it read before. Registers it if it was not.
    #[inline]
    pub fn pass(&self, worker: usize) {
        let Some(own) = self.0.workers.get(worker) else { return };
        // Acquire; pairs with the Release in `advance`.
        let global = self.0.global.load(Ordering::Acquire);
        match own.load(Ordering::Relaxed) {
            seen if seen == global => {}
            OFFLINE => self.register(worker),
            // Release; pairs with the Acquire in `is_past`.
            _ => own.store(global, Ordering::Release),
        }
    }

    /// Starts a grace period for everything that was taken out of sight before this call.
    pub fn grace(&self) -> Grace {
        Grace { epoch: self.advance(), quiescence: self.clone() }
    }

    pub(crate) fn advance(&self) -> u64 {
        let epoch = self.0.global.fetch_add(1, Ordering::AcqRel) + 1;
        fence(Ordering::SeqCst);
        epoch
    }

    pub(crate) fn is_past(&self, epoch: u64) -> bool {
        // Acquire; pairs with the Releases in `pass` and `unregister`.
        self.0.workers.iter().all(|worker| worker.load(Ordering::Acquire) >= epoch)
    }
}

/// A period after which nobody uses any more what was taken out of sight before it began.
#[derive(Clone)]
pub struct Grace {
    quiescence: Quiescence,
    epoch: u64,
}

impl Grace {
    /// Whether every registered thread has passed since. Never waits.
    pub fn is_over(&self) -> bool {
        self.quiescence.is_past(self.epoch)
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    #[test]
    fn a_grace_period_ends_when_every_registered_worker_has_passed() {
        let all = Quiescence::new(3);
        all.register(0);
        all.pass(1);
        let grace = all.grace();
        assert!(!grace.is_over());
        all.pass(0);
        assert!(!grace.is_over(), "worker 1 has not passed");
        all.pass(1);
        assert!(grace.is_over());
        assert!(!all.grace().is_over(), "a later period is another one");
    }

    #[test]
    fn workers_that_have_not_started_or_have_stopped_hold_up_nothing() {
        let all = Quiescence::new(2);
        assert!(all.grace().is_over());
        all.register(0);
        let grace = all.grace();
        assert!(!grace.is_over());
        all.unregister(0);
        assert!(grace.is_over());
        all.pass(0);
        assert!(grace.is_over(), "what comes online later sees nothing old");
        assert!(!all.grace().is_over());
    }

    #[test]
    fn unknown_workers_are_ignored() {
        let none = Quiescence::new(0);
        none.register(0);
        none.pass(7);
        none.unregister(1);
        assert!(none.grace().is_over());
    }
}

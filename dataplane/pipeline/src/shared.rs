//! What all workers of a dataplane share, and how they hand things to each other.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_queue::ArrayQueue;
use erhu_nat::Nat;
use erhu_planes::events::EventsRegion;
use erhu_planes::protocol::Counted;
use erhu_planes::stats::StatsRegion;
use erhu_table::{Apart, Table};
use zerocopy::{FromZeros, KnownLayout};

use crate::neighbour::Adjacencies;
use crate::policy::Policy;
use crate::rate::RateLimit;

/// Packets that travel together to another worker.
pub const BATCH: usize = 16;
/// Batches that one worker may have on the way to another.
pub const RING: usize = 256;

/// A packet on its way to the worker that owns its connection.
#[derive(Debug)]
pub struct Handed<B> {
    /// The frame as it was received.
    pub buffer: B,
    /// Port it came in by; of a packet that crossed links, the slot of the end that it arrived by.
    pub from: u16,
    /// Links that it crossed.
    pub crossed: u8,
    /// Packet mark that raw rules gave it.
    pub mark: u32,
}

/// Packets that travel together.
pub type Batch<B> = Vec<Handed<B>>;

/// Work for every worker, from the main thread.
#[derive(Debug)]
pub struct Job {
    /// What to do.
    pub kind: JobKind,
    /// Workers that have not finished.
    pub remaining: AtomicU32,
    /// Connections ended, or discounted, so far.
    pub ended: AtomicU64,
}

/// What a [`Job`] asks.
#[derive(Debug)]
pub enum JobKind {
    /// End these `(line, id)`, each by its owner.
    Delete(Vec<(u32, u64)>),
    /// Take what was read off counters, each by its owner.
    Discount(Vec<Counted>),
    /// End all, or those with a tuple in a zone (0: both in `main`).
    Flush(Option<u16>),
}

impl Job {
    /// A job that every one of `workers` must finish.
    pub fn new(kind: JobKind, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            kind,
            remaining: AtomicU32::new(u32::try_from(workers).unwrap_or(0)),
            ended: AtomicU64::new(0),
        })
    }

    /// Connections that it ended or discounted, once every worker has finished.
    pub fn result(&self) -> Option<u64> {
        // Acquire; pairs with the workers' Release when they finish.
        (self.remaining.load(Ordering::Acquire) == 0).then(|| self.ended.load(Ordering::Relaxed))
    }
}

/// Per-zone state of admission, over all workers.
#[derive(Debug, FromZeros, KnownLayout)]
#[repr(C)]
pub struct ZoneAccount {
    /// Living connections with the original tuple here.
    pub live_original: AtomicU32,
    /// Living connections with either tuple here.
    pub live: AtomicU32,
    /// New connections per second.
    pub rate: RateLimit,
    /// ICMP errors per second.
    pub icmp: RateLimit,
}

/// An array of zeros. Where the type asks for no large alignment, pages are taken as they are written.
///
/// # Panics
/// If there is no address space for it.
pub(crate) fn zeroed<T: FromZeros>(count: usize) -> Box<[T]>
where
    [T]: KnownLayout<PointerMetadata = usize>,
{
    <[T]>::new_box_zeroed_with_elems(count).expect("megabytes of address space")
}

/// What was replaced or is done with.
#[derive(Debug, Default)]
struct Leftovers {
    policies: Vec<Arc<Policy>>,
    jobs: Vec<Arc<Job>>,
}

/// Everything that workers share.
#[derive(Debug)]
pub struct Shared<B> {
    /// Connections.
    pub table: Table,
    /// Pools' ports and mappings.
    pub nat: Nat,
    /// Next hops.
    pub adjacencies: Adjacencies,
    /// Counters.
    pub stats: StatsRegion,
    /// Event rings.
    pub events: EventsRegion,
    /// Names of ports, by number.
    pub ports: usize,
    /// Ids of connections count up in the order of creation, whichever worker makes them.
    pub ids_in_order: bool,
    accounts: Box<[ZoneAccount]>,
    /// Connections that reserves keep free now.
    pub reserved_free: Apart<AtomicI64>,
    policy: Mutex<Option<Arc<Policy>>>,
    /// What workers may still hold and none of them shall be the last to: freeing it would take one too long.
    leftovers: Mutex<Leftovers>,
    generation: AtomicU32,
    adopted: Box<[AtomicU32]>,
    rings: Box<[ArrayQueue<Batch<B>>]>,
    /// Of each worker, what it filled and others have emptied.
    empties: Box<[ArrayQueue<Batch<B>>]>,
    jobs: Box<[ArrayQueue<Arc<Job>>]>,
    workers: usize,
}

impl<B> Shared<B> {
    /// Puts the parts together for that many workers.
    pub fn new(
        table: Table,
        nat: Nat,
        stats: StatsRegion,
        events: EventsRegion,
        workers: usize,
        ports: usize,
    ) -> Self {
        Self {
            table,
            nat,
            adjacencies: Adjacencies::default(),
            stats,
            events,
            ports,
            ids_in_order: false,
            accounts: zeroed(1 << 16),
            reserved_free: Apart::default(),
            policy: Mutex::new(None),
            leftovers: Mutex::default(),
            generation: AtomicU32::new(0),
            adopted: (0..workers).map(|_| AtomicU32::new(0)).collect(),
            rings: (0..workers * workers).map(|_| ArrayQueue::new(RING)).collect(),
            empties: (0..workers).map(|_| ArrayQueue::new(RING)).collect(),
            jobs: (0..workers).map(|_| ArrayQueue::new(64)).collect(),
            workers,
        }
    }

    /// Number of workers.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// A zone's account.
    #[inline]
    pub fn account(&self, zone: u16) -> &ZoneAccount {
        &self.accounts[usize::from(zone)]
    }

    /// Makes a policy the one to run.
    pub fn publish(&self, policy: Arc<Policy>) {
        let generation = policy.generation;
        if policy.has_reserves || self.policy().is_some_and(|p| p.has_reserves) {
            let free = policy.zones().iter().map(|z| {
                let live = self.account(z.id).live_original.load(Ordering::Relaxed);
                i64::from(z.reserve.saturating_sub(live))
            });
            self.reserved_free.store(free.sum(), Ordering::Relaxed);
        }
        self.tidy();
        let replaced = self.policy.lock().unwrap_or_else(PoisonError::into_inner).replace(policy);
        self.leftovers().policies.extend(replaced);
        // Release; pairs with the Acquire in `newer_than`.
        self.generation.store(generation, Ordering::Release);
        self.stats.header().generation.store(generation, Ordering::Relaxed);
    }

    fn leftovers(&self) -> MutexGuard<'_, Leftovers> {
        self.leftovers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees policies and jobs that no worker holds any more. For the main thread, now and then; returns how many are
    /// left.
    pub fn tidy(&self) -> usize {
        let mut leftovers = self.leftovers();
        let free: (Vec<_>, Vec<_>) = (
            leftovers.policies.extract_if(.., |policy| Arc::strong_count(policy) == 1).collect(),
            leftovers.jobs.extract_if(.., |job| Arc::strong_count(job) == 1).collect(),
        );
        let left = leftovers.policies.len() + leftovers.jobs.len();
        drop(leftovers);
        drop(free);
        left
    }

    /// The policy to run.
    pub fn policy(&self) -> Option<Arc<Policy>> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The policy to run, if it is not the one of that generation.
    #[inline]
    pub fn newer_than(&self, generation: u32) -> Option<Arc<Policy>> {
        if self.generation.load(Ordering::Acquire) == generation { None } else { self.policy() }
    }

    /// The running generation; 0 before the first.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// A worker runs that generation from its next packet on.
    pub fn set_adopted(&self, worker: usize, generation: u32) {
        // Release; pairs with the Acquire in `all_adopted`.
        self.adopted[worker].store(generation, Ordering::Release);
    }

    /// Whether every worker runs that generation.
    pub fn all_adopted(&self, generation: u32) -> bool {
        self.adopted.iter().all(|a| a.load(Ordering::Acquire) == generation)
    }

    /// The ring from one worker to another.
    #[inline]
    pub fn ring(&self, from: usize, to: usize) -> &ArrayQueue<Batch<B>> {
        &self.rings[from * self.workers + to]
    }

    /// Batches that come back to the worker that sent them, empty, so that none is allocated in the long run.
    #[inline]
    pub fn empties(&self, worker: usize) -> &ArrayQueue<Batch<B>> {
        &self.empties[worker]
    }

    /// A worker's jobs.
    #[inline]
    pub fn jobs(&self, worker: usize) -> &ArrayQueue<Arc<Job>> {
        &self.jobs[worker]
    }

    /// Hands a job to every worker; `false` where one has too many already.
    pub fn start(&self, job: &Arc<Job>) -> bool {
        self.tidy();
        self.leftovers().jobs.push(job.clone());
        // To every worker, even where one has no room: those that got it finish it.
        self.jobs.iter().filter(|queue| queue.push(job.clone()).is_err()).count() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::buffer::HeapBuffer;
    use crate::worker::Own;

    type All = Shared<HeapBuffer>;

    #[test]
    fn what_workers_write_by_the_packet_or_the_opening_lies_on_no_line_that_every_packet_reads() {
        let lines = |at: usize, bytes: usize| at / 64..=(at + bytes - 1) / 64;
        let read = [
            lines(offset_of!(All, table), size_of::<Table>()),
            lines(offset_of!(All, nat), size_of::<Nat>()),
            lines(offset_of!(All, adjacencies), size_of::<Adjacencies>()),
            lines(offset_of!(All, stats), size_of::<StatsRegion>()),
            lines(offset_of!(All, events), size_of::<EventsRegion>()),
            lines(offset_of!(All, accounts), size_of::<Box<[ZoneAccount]>>()),
            lines(offset_of!(All, generation), size_of::<AtomicU32>()),
            lines(offset_of!(All, rings), size_of::<Box<[ArrayQueue<Batch<HeapBuffer>>]>>()),
            lines(offset_of!(All, empties), size_of::<Box<[ArrayQueue<Batch<HeapBuffer>>]>>()),
            lines(offset_of!(All, jobs), size_of::<Box<[ArrayQueue<Arc<Job>>]>>()),
            lines(offset_of!(All, workers), size_of::<usize>()),
        ];
        assert!(align_of::<All>() >= 64);
        for line in lines(offset_of!(All, reserved_free), size_of::<AtomicI64>()) {
            assert!(read.iter().all(|read| !read.contains(&line)), "line {line}");
        }
        // Counts of handles lie before what they lead to, with its alignment.
        assert!(align_of::<Own<All>>() >= 64 && align_of::<Own<Policy>>() >= 64);
    }

    #[test]
    fn the_ends_of_a_ring_lie_on_lines_of_their_own_and_rings_share_none() {
        // The queue keeps head and tail apart and aligned; with that alignment lost, rings would share lines, too.
        let ring = align_of::<ArrayQueue<Batch<HeapBuffer>>>();
        assert!(ring >= 64 && size_of::<ArrayQueue<Batch<HeapBuffer>>>() >= 3 * ring);
        assert!(align_of::<ArrayQueue<Arc<Job>>>() >= 64);
    }
}

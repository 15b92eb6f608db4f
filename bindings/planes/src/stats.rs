//! Counters in shared memory. One block per worker, written by that worker alone after each burst.
//!
//! A reader may see a burst partly counted, never a torn value. Totals since the dataplane started.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::reason::{COUNTER_SLOTS, DROP_SLOTS};
use crate::region::{Expect, Region, RegionError, RegionKind, Shared, layout_hash};
use crate::{MAX_PORTS, MAX_WORKERS};

/// Bytes of a name in a directory, UTF-8, zero-filled.
pub const NAME_BYTES: usize = 48;
/// Zones that can have counters of their own at once.
pub const MAX_ZONES: usize = 65_536;
/// Interfaces, likewise.
pub const MAX_INTERFACES: usize = 8192;
/// Named counters (`count`), likewise.
pub const MAX_NAMED: usize = 4096;
/// Buckets of the loop-time histogram: bucket `n` counts loops of 2ⁿ … 2ⁿ⁺¹−1 nanoseconds.
pub const LOOP_BUCKETS: usize = 32;
/// Buckets of the burst histogram: bucket `n` counts bursts of 2ⁿ … 2ⁿ⁺¹−1 packets, the last one larger ones too.
pub const BURST_BUCKETS: usize = 8;

/// A directory entry: the name behind a slot number. `[W]` main thread; a slot keeps its name for ever.
#[repr(C, align(64))]
pub struct NameEntry {
    /// 0 while unused; stored (Release) after the rest.
    pub used: AtomicU8,
    _pad: AtomicU8,
    /// Zone id for zones; port number for interfaces; else 0.
    pub number: AtomicU16,
    _pad2: AtomicU32,
    /// The name.
    pub name: [AtomicU8; NAME_BYTES],
    _reserved: [AtomicU64; 1],
}

/// Packets and bytes of a port, per worker. Bytes are those of the Ethernet frame without FCS.
#[repr(C)]
pub struct PortCounters {
    /// Received.
    pub rx_packets: AtomicU64,
    /// Received.
    pub rx_bytes: AtomicU64,
    /// Sent.
    pub tx_packets: AtomicU64,
    /// Sent.
    pub tx_bytes: AtomicU64,
}

/// One worker's counters.
#[repr(C, align(64))]
pub struct WorkerBlock {
    /// Loops, empty ones too: liveness.
    pub loops: AtomicU64,
    /// Loops that had packets.
    pub busy_loops: AtomicU64,
    /// CPU number, or `u32::MAX` where it is not pinned.
    pub cpu: AtomicU32,
    /// Generation of the rule set that it runs.
    pub generation: AtomicU32,
    /// Connections that it made.
    pub created: AtomicU64,
    /// Connections of it that ended.
    pub ended: AtomicU64,
    /// Longest loop in nanoseconds.
    pub longest_loop_ns: AtomicU64,
    /// Longest loop of the last minute, likewise.
    pub minute_longest_ns: AtomicU64,
    /// Nanoseconds that it has polled, naps included.
    pub total_ns: AtomicU64,
    /// Nanoseconds of loops that had packets.
    pub busy_ns: AtomicU64,
    /// Nanoseconds that it has slept because nothing came.
    pub napped_ns: AtomicU64,
    /// Nanoseconds of the last minute's whole seconds: 60 × 10⁹ once it has run for that long.
    pub minute_ns: AtomicU64,
    /// Nanoseconds of those that were in loops with packets.
    pub minute_busy_ns: AtomicU64,
    _line: [AtomicU64; 4],
    /// By [`crate::DropReason::index`].
    pub drops: [AtomicU64; DROP_SLOTS],
    /// By [`crate::Counter::index`].
    pub counters: [AtomicU64; COUNTER_SLOTS],
    /// First packets refused, by the drop reason's index.
    pub refused: [AtomicU64; DROP_SLOTS],
    /// Loops, by log₂ of their nanoseconds.
    pub loop_times: [AtomicU64; LOOP_BUCKETS],
    /// Bursts that were received, by log₂ of their packets.
    pub bursts: [AtomicU64; BURST_BUCKETS],
    /// By port number.
    pub ports: [PortCounters; MAX_PORTS],
}

/// One worker's counters of one zone.
#[repr(C, align(64))]
pub struct ZoneBlock {
    /// Connections with a tuple in this zone that this worker made.
    pub created: AtomicU64,
    /// … and that ended.
    pub ended: AtomicU64,
    _line: [AtomicU64; 6],
    /// Packets that came in by an interface of this zone and were dropped.
    pub drops: [AtomicU64; DROP_SLOTS],
}

/// One worker's counters of one interface. Where packets of thousands of interfaces come in, each touches these: nothing
/// else lies between them, so that they take as few lines and pages as can be.
#[repr(C, align(32))]
pub struct InterfaceBlock {
    /// Received.
    pub rx_packets: AtomicU64,
    /// Received.
    pub rx_bytes: AtomicU64,
    /// Sent.
    pub tx_packets: AtomicU64,
    /// Sent.
    pub tx_bytes: AtomicU64,
}

/// Packets that one worker received by one interface and dropped.
#[repr(C, align(64))]
pub struct InterfaceDrops {
    /// By [`crate::DropReason::index`].
    pub drops: [AtomicU64; DROP_SLOTS],
}

/// One worker's share of one named counter.
#[repr(C)]
pub struct NamedCounter {
    /// Packets.
    pub packets: AtomicU64,
    /// IP bytes.
    pub bytes: AtomicU64,
}

macro_rules! shared {
    ($($name:ident = $size:expr),+) => { $(
        // SAFETY: atomics only; the assertion below shows that there is no padding.
        unsafe impl Shared for $name {}
        const _: () = assert!(size_of::<$name>() == $size);
    )+ };
}
shared!(
    NameEntry = 64,
    PortCounters = 32,
    WorkerBlock = 128 + 8 * (2 * DROP_SLOTS + COUNTER_SLOTS + LOOP_BUCKETS + BURST_BUCKETS) + 32 * MAX_PORTS,
    ZoneBlock = 64 + 8 * DROP_SLOTS,
    InterfaceBlock = 32,
    InterfaceDrops = 8 * DROP_SLOTS,
    NamedCounter = 16
);

/// Second 64 bytes of the region.
#[repr(C, align(64))]
pub struct StatsHeader {
    /// `[I]` workers.
    pub workers: AtomicU32,
    /// `[I]` ports.
    pub ports: AtomicU32,
    /// `[W]` running generation, 0 before the first.
    pub generation: AtomicU32,
    _pad: AtomicU32,
    /// `[I]` nanoseconds of real time at start.
    pub started_ns: AtomicU64,
    _reserved: [AtomicU64; 5],
}
// SAFETY: atomics only.
unsafe impl Shared for StatsHeader {}
const _: () = assert!(size_of::<StatsHeader>() == 64);

/// Which directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Directory {
    /// Zones; `number` is the zone id.
    Zones,
    /// Interfaces; `number` is 1 for ends of links, else 0.
    Interfaces,
    /// Named counters.
    Named,
    /// Ports.
    Ports,
}

const HEADER_AT: usize = 64;
const PORTS_AT: usize = 4096;
const ZONES_AT: usize = PORTS_AT + MAX_PORTS * 64;
const INTERFACES_AT: usize = ZONES_AT + MAX_ZONES * 64;
const NAMED_AT: usize = INTERFACES_AT + MAX_INTERFACES * 64;
const WORKERS_AT: usize = (NAMED_AT + MAX_NAMED * 64).next_multiple_of(4096);
/// Bytes of a worker's own counters.
pub const WORKER_BYTES: usize = size_of::<WorkerBlock>().next_multiple_of(4096);
const ZONE_BLOCKS_AT: usize = WORKERS_AT + MAX_WORKERS * WORKER_BYTES;

/// Bytes that are taken whatever has counters: header and names of ports.
pub const FIXED: u64 = ZONES_AT as u64;

/// What a stats region must say to be accepted.
pub const EXPECT: Expect = Expect {
    kind: RegionKind::Stats,
    layout_version: 3,
    layout_hash: layout_hash(&[
        ZONES_AT,
        INTERFACES_AT,
        NAMED_AT,
        WORKERS_AT,
        WORKER_BYTES,
        ZONE_BLOCKS_AT,
        offset_of!(WorkerBlock, drops),
        offset_of!(WorkerBlock, loop_times),
        offset_of!(WorkerBlock, ports),
        offset_of!(ZoneBlock, drops),
        size_of::<InterfaceBlock>(),
        size_of::<InterfaceDrops>(),
    ]),
};

/// A mapped stats region, for its writer and its readers alike.
///
/// Address space is laid out for every zone and interface there could be; pages are taken as slots come into use
/// ([`StatsRegion::register`]). Blocks are grouped by worker, so that no line is written by two.
#[derive(Debug)]
pub struct StatsRegion {
    region: Region,
    workers: usize,
}

impl StatsRegion {
    /// Bytes of a region for that many workers.
    pub fn size(workers: usize) -> usize {
        Self::named_at(workers, workers)
    }

    fn zone_at(worker: usize) -> usize {
        ZONE_BLOCKS_AT + worker * MAX_ZONES * size_of::<ZoneBlock>()
    }

    fn interface_at(workers: usize, worker: usize) -> usize {
        Self::zone_at(workers) + worker * MAX_INTERFACES * size_of::<InterfaceBlock>()
    }

    fn interface_drops_at(workers: usize, worker: usize) -> usize {
        Self::interface_at(workers, workers) + worker * MAX_INTERFACES * size_of::<InterfaceDrops>()
    }

    fn named_at(workers: usize, worker: usize) -> usize {
        Self::interface_drops_at(workers, workers) + worker * MAX_NAMED * size_of::<NamedCounter>()
    }

    /// Prepares a fresh region of [`StatsRegion::size`] bytes and publishes its header.
    ///
    /// # Errors
    /// If the fixed part cannot be backed.
    pub fn create(region: Region, workers: usize, ports: &[String], instance_id: u64) -> Result<Self, RegionError> {
        let workers = workers.clamp(1, MAX_WORKERS);
        region.allocate(0, ZONES_AT)?;
        region.allocate(WORKERS_AT, workers * WORKER_BYTES)?;
        let this = Self { region, workers };
        let header = this.header();
        header.workers.store(u32::try_from(workers).unwrap_or(1), Ordering::Relaxed);
        header.ports.store(u32::try_from(ports.len()).unwrap_or(0), Ordering::Relaxed);
        header.started_ns.store(real_time_ns(), Ordering::Relaxed);
        for (slot, name) in ports.iter().enumerate().take(MAX_PORTS) {
            this.register(Directory::Ports, slot, 0, name)?;
        }
        this.region.publish_header(&EXPECT, instance_id);
        Ok(this)
    }

    /// Takes an attached region ([`Region::attach`] with [`EXPECT`]) and checks its sizes.
    ///
    /// # Errors
    /// [`RegionError::OutOfBounds`] if the file does not have the size that its header asks for.
    pub fn attached(region: Region) -> Result<Self, RegionError> {
        let header: &StatsHeader = region.get(HEADER_AT)?;
        let workers = header.workers.load(Ordering::Relaxed) as usize;
        if workers == 0 || workers > MAX_WORKERS || Self::size(workers) > region.len() {
            return Err(RegionError::OutOfBounds {
                path: "stats".into(),
                offset: 0,
                len: workers,
                size: region.len(),
            });
        }
        Ok(Self { region, workers })
    }

    /// The mapping itself.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The header.
    pub fn header(&self) -> &StatsHeader {
        self.region.get(HEADER_AT).expect("checked when the region was made")
    }

    /// Number of workers.
    pub fn workers(&self) -> usize {
        self.workers
    }

    fn directory(directory: Directory) -> (usize, usize) {
        match directory {
            Directory::Ports => (PORTS_AT, MAX_PORTS),
            Directory::Zones => (ZONES_AT, MAX_ZONES),
            Directory::Interfaces => (INTERFACES_AT, MAX_INTERFACES),
            Directory::Named => (NAMED_AT, MAX_NAMED),
        }
    }

    /// Gives a slot its name and number and backs its counters for every worker. Slots are taken from 0 on.
    ///
    /// # Errors
    /// If memory runs out, or the slot is beyond the directory.
    pub fn register(&self, kind: Directory, slot: usize, number: u16, name: &str) -> Result<(), RegionError> {
        let (at, max) = Self::directory(kind);
        let place = at + slot.min(max) * size_of::<NameEntry>();
        if slot >= max {
            return Err(RegionError::OutOfBounds { path: "stats".into(), offset: place, len: 64, size: max * 64 });
        }
        self.region.allocate(place, size_of::<NameEntry>())?;
        for worker in 0..self.workers {
            match kind {
                Directory::Ports => {}
                Directory::Zones => {
                    let size = size_of::<ZoneBlock>();
                    self.region.allocate(Self::zone_at(worker) + slot * size, size)?;
                }
                Directory::Interfaces => {
                    let size = size_of::<InterfaceBlock>();
                    self.region.allocate(Self::interface_at(self.workers, worker) + slot * size, size)?;
                    let size = size_of::<InterfaceDrops>();
                    self.region.allocate(Self::interface_drops_at(self.workers, worker) + slot * size, size)?;
                }
                Directory::Named => {
                    let size = size_of::<NamedCounter>();
                    self.region.allocate(Self::named_at(self.workers, worker) + slot * size, size)?;
                }
            }
        }
        let entry: &NameEntry = self.region.get(place)?;
        for (to, from) in entry.name.iter().zip(name.bytes().chain(std::iter::repeat(0))) {
            to.store(from, Ordering::Relaxed);
        }
        entry.number.store(number, Ordering::Relaxed);
        // Release; pairs with the Acquire in `names`.
        entry.used.store(1, Ordering::Release);
        Ok(())
    }

    /// Slots in use: `(slot, number, name)`.
    pub fn names(&self, kind: Directory) -> Vec<(usize, u16, String)> {
        let (at, max) = Self::directory(kind);
        let mut names = Vec::new();
        for slot in 0..max {
            let Ok(entry) = self.region.get::<NameEntry>(at + slot * size_of::<NameEntry>()) else { break };
            if entry.used.load(Ordering::Acquire) == 0 {
                break;
            }
            let bytes: Vec<u8> =
                entry.name.iter().map(|b| b.load(Ordering::Relaxed)).take_while(|b| *b != 0).collect();
            names.push((slot, entry.number.load(Ordering::Relaxed), String::from_utf8_lossy(&bytes).into_owned()));
        }
        names
    }

    /// A worker's own counters.
    pub fn worker(&self, worker: usize) -> Option<&WorkerBlock> {
        (worker < self.workers).then(|| self.region.get(WORKERS_AT + worker * WORKER_BYTES).ok()).flatten()
    }

    /// A worker's counters of the zone in a slot. Writers: only registered slots are backed.
    #[inline]
    pub fn zone(&self, worker: usize, slot: usize) -> Option<&ZoneBlock> {
        let inside = worker < self.workers && slot < MAX_ZONES;
        inside.then(|| self.region.get(Self::zone_at(worker) + slot * size_of::<ZoneBlock>()).ok()).flatten()
    }

    /// A worker's counters of the interface in a slot, likewise.
    #[inline]
    pub fn interface(&self, worker: usize, slot: usize) -> Option<&InterfaceBlock> {
        let inside = worker < self.workers && slot < MAX_INTERFACES;
        let at = Self::interface_at(self.workers, worker) + slot * size_of::<InterfaceBlock>();
        inside.then(|| self.region.get(at).ok()).flatten()
    }

    /// What a worker dropped that came in by the interface in a slot, likewise.
    pub fn interface_drops(&self, worker: usize, slot: usize) -> Option<&InterfaceDrops> {
        let inside = worker < self.workers && slot < MAX_INTERFACES;
        let at = Self::interface_drops_at(self.workers, worker) + slot * size_of::<InterfaceDrops>();
        inside.then(|| self.region.get(at).ok()).flatten()
    }

    /// A worker's counters of all interfaces, by slot; none of a worker that does not exist.
    #[inline]
    pub fn interfaces(&self, worker: usize) -> &[InterfaceBlock] {
        let all = (worker < self.workers)
            .then(|| self.region.slice(Self::interface_at(self.workers, worker), MAX_INTERFACES).ok());
        all.flatten().unwrap_or_default()
    }

    /// A worker's share of the named counter in a slot, likewise.
    pub fn named(&self, worker: usize, slot: usize) -> Option<&NamedCounter> {
        let inside = worker < self.workers && slot < MAX_NAMED;
        let at = Self::named_at(self.workers, worker) + slot * size_of::<NamedCounter>();
        inside.then(|| self.region.get(at).ok()).flatten()
    }

    /// The sum over workers of something.
    pub fn sum(&self, mut of: impl FnMut(usize) -> u64) -> u64 {
        (0..self.workers).map(&mut of).fold(0, u64::wrapping_add)
    }
}

/// Nanoseconds of real time.
pub fn real_time_ns() -> u64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}

/// Adds to a counter that only the caller writes: a load and a store, no locked instruction.
#[inline(always)]
pub fn add(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_registered_by_the_writer_is_named_and_counted_for_a_reader() {
        let region = Region::anonymous("stats", StatsRegion::size(2)).unwrap();
        let writer = StatsRegion::create(region, 2, &["lan".into(), "wan".into()], 5).unwrap();
        writer.register(Directory::Zones, 0, 0, "main").unwrap();
        writer.register(Directory::Zones, 1, 7, "blue").unwrap();
        writer.register(Directory::Interfaces, 0, 0, "lan.100").unwrap();
        writer.register(Directory::Named, 0, 0, "seen").unwrap();
        add(&writer.zone(0, 1).unwrap().created, 2);
        add(&writer.zone(1, 1).unwrap().created, 3);
        add(&writer.worker(1).unwrap().ports[1].tx_packets, 4);
        add(&writer.named(1, 0).unwrap().packets, 9);
        let reader = StatsRegion::attached(writer.region().reattach(&EXPECT).unwrap()).unwrap();
        assert_eq!(reader.names(Directory::Zones), [(0, 0, "main".into()), (1, 7, "blue".into())]);
        assert_eq!(reader.names(Directory::Ports).len(), 2);
        assert_eq!(reader.sum(|w| reader.zone(w, 1).unwrap().created.load(Ordering::Relaxed)), 5);
        assert_eq!(reader.worker(1).unwrap().ports[1].tx_packets.load(Ordering::Relaxed), 4);
        assert_eq!(reader.named(1, 0).unwrap().packets.load(Ordering::Relaxed), 9);
        assert!(reader.worker(2).is_none() && reader.zone(2, 0).is_none() && reader.zone(0, MAX_ZONES).is_none());
    }

    #[test]
    fn no_line_holds_counters_of_two_workers() {
        const WORKERS: usize = 3;
        let region = Region::anonymous("stats", StatsRegion::size(WORKERS)).unwrap();
        let stats = StatsRegion::create(region, WORKERS, &[], 5).unwrap();
        let lines = |address: usize, bytes: usize| address / 64..=(address + bytes - 1) / 64;
        let mut owners = std::collections::HashMap::new();
        for worker in 0..WORKERS {
            let mut own = vec![lines(std::ptr::from_ref(stats.worker(worker).unwrap()).addr(), WORKER_BYTES)];
            for slot in [0, 1, 2, 3, 4, 5, MAX_NAMED - 1] {
                let zone = std::ptr::from_ref(stats.zone(worker, slot).unwrap()).addr();
                let interface = std::ptr::from_ref(stats.interface(worker, slot).unwrap()).addr();
                let drops = std::ptr::from_ref(stats.interface_drops(worker, slot).unwrap()).addr();
                let named = std::ptr::from_ref(stats.named(worker, slot).unwrap()).addr();
                own.push(lines(zone, size_of::<ZoneBlock>()));
                own.push(lines(interface, size_of::<InterfaceBlock>()));
                own.push(lines(drops, size_of::<InterfaceDrops>()));
                own.push(lines(named, size_of::<NamedCounter>()));
            }
            for (last, block) in [(MAX_ZONES - 1, 0), (MAX_INTERFACES - 1, 1)] {
                let (at, size) = if block == 0 {
                    (std::ptr::from_ref(stats.zone(worker, last).unwrap()).addr(), size_of::<ZoneBlock>())
                } else {
                    (std::ptr::from_ref(stats.interface(worker, last).unwrap()).addr(), size_of::<InterfaceBlock>())
                };
                own.push(lines(at, size));
            }
            for line in own.into_iter().flatten() {
                assert_eq!(*owners.entry(line).or_insert(worker), worker, "line {line:#x}");
            }
        }
    }

    #[test]
    fn a_directory_does_not_grow_beyond_its_room() {
        let region = Region::anonymous("stats", StatsRegion::size(1)).unwrap();
        let writer = StatsRegion::create(region, 1, &[], 5).unwrap();
        assert!(writer.register(Directory::Named, MAX_NAMED, 0, "x").is_err());
    }
}

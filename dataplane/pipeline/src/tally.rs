//! A worker's private counters, published to shared memory once per burst.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use erhu_planes::reason::{COUNTER_SLOTS, DROP_SLOTS};
use erhu_planes::stats::WorkerBlock;
use erhu_planes::{Counter, DropReason, MAX_PORTS};

use crate::loops::Loops;

/// Packets and bytes of one port.
#[derive(Clone, Copy, Debug, Default)]
pub struct PortTally {
    /// Received.
    pub rx_packets: u64,
    /// Received.
    pub rx_bytes: u64,
    /// Sent.
    pub tx_packets: u64,
    /// Sent.
    pub tx_bytes: u64,
}

/// Frames in a row that left by one interface. They are counted where readers see them when another interface has its
/// turn, and at the end of the burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Port number.
    pub port: u16,
    /// Interface slot.
    pub slot: u16,
    /// How many.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Those that were not on the fast path: the first of a connection, or judged again.
    pub slow: u64,
}

impl Run {
    /// No frame, of no interface.
    pub const NONE: Self = Self::of(0, crate::policy::NO_SLOT);

    /// No frame yet.
    #[inline(always)]
    pub const fn of(port: u16, slot: u16) -> Self {
        Self { port, slot, packets: 0, bytes: 0, slow: 0 }
    }
}

/// Totals of one kind of events, and which of them changed since readers last saw them.
#[derive(Clone, Debug)]
pub(crate) struct Totals<const N: usize> {
    totals: [u64; N],
    /// A bit each. At first all: what readers saw may be of a worker before.
    changed: Cell<u32>,
}

impl<const N: usize> Totals<N> {
    pub const fn new() -> Self {
        const { assert!(N <= 32) };
        Self { totals: [0; N], changed: Cell::new(u32::MAX) }
    }

    #[inline(always)]
    pub fn add(&mut self, index: usize, by: u64) {
        if let Some(total) = self.totals.get_mut(index) {
            *total += by;
            *self.changed.get_mut() |= 1 << index;
        }
    }

    /// Stores those that changed: few of many in most bursts.
    pub fn publish(&self, to: &[AtomicU64; N]) {
        let mut changed = self.changed.replace(0);
        while changed != 0 {
            let index = changed.trailing_zeros() as usize;
            if let (Some(to), Some(total)) = (to.get(index), self.totals.get(index)) {
                to.store(*total, Ordering::Relaxed);
            }
            changed &= changed - 1;
        }
    }
}

/// Totals since the worker started.
#[derive(Clone, Debug)]
pub struct Tally {
    drops: Totals<DROP_SLOTS>,
    counters: Totals<COUNTER_SLOTS>,
    refused: Totals<DROP_SLOTS>,
    created: u64,
    ended: u64,
    loops: Loops,
    ports: [PortTally; MAX_PORTS],
    used_ports: usize,
}

impl Tally {
    /// All zero, for that many ports.
    pub fn new(ports: usize) -> Self {
        Self {
            drops: Totals::new(),
            counters: Totals::new(),
            refused: Totals::new(),
            created: 0,
            ended: 0,
            loops: Loops::default(),
            ports: [PortTally::default(); MAX_PORTS],
            used_ports: ports.min(MAX_PORTS),
        }
    }

    /// One packet that does not leave.
    #[inline]
    pub fn drop(&mut self, reason: DropReason) {
        self.drops.add(reason.index(), 1);
    }

    /// One first packet whose connection was refused.
    pub fn refuse(&mut self, reason: DropReason) {
        self.refused.add(reason.index(), 1);
    }

    /// One event.
    #[inline]
    pub fn count(&mut self, counter: Counter) {
        self.counters.add(counter.index(), 1);
    }

    /// Some events at once.
    #[inline]
    pub fn count_many(&mut self, counter: Counter, by: u64) {
        self.counters.add(counter.index(), by);
    }

    /// One connection more.
    pub fn created(&mut self) {
        self.created += 1;
    }

    /// Connections made since the worker started.
    #[inline]
    pub(crate) fn created_in_all(&self) -> u64 {
        self.created
    }

    /// One connection less.
    pub fn ended(&mut self) {
        self.ended += 1;
    }

    /// Frames came in.
    pub(crate) fn received(&mut self, port: u16, packets: u64, bytes: u64) {
        if let Some(port) = self.ports.get_mut(usize::from(port)) {
            port.rx_packets += packets;
            port.rx_bytes += bytes;
        }
    }

    /// Frames go out.
    pub(crate) fn sent_run(&mut self, run: Run) {
        if let Some(port) = self.ports.get_mut(usize::from(run.port)) {
            port.tx_packets += run.packets;
            port.tx_bytes += run.bytes;
        }
    }

    /// A frame goes out.
    #[inline]
    pub fn sent(&mut self, port: u16, bytes: usize) {
        if let Some(port) = self.ports.get_mut(usize::from(port)) {
            port.tx_packets += 1;
            port.tx_bytes += bytes as u64;
        }
    }

    /// A frame that was counted as sent did not fit into the port's queue.
    pub fn not_sent(&mut self, port: u16, bytes: usize) {
        if let Some(port) = self.ports.get_mut(usize::from(port)) {
            port.tx_packets -= 1;
            port.tx_bytes -= bytes as u64;
        }
        self.drop(DropReason::TransmitFull);
    }

    /// One loop that handled so many packets, and how long it took.
    #[inline]
    pub fn looped(&mut self, packets: usize, ns: u64) {
        self.loops.looped(packets, ns);
    }

    /// One burst of a receive queue; empty ones do not count.
    #[inline]
    pub fn burst(&mut self, packets: usize) {
        self.loops.burst(packets);
    }

    /// The worker has slept.
    pub fn napped(&mut self, ns: u64) {
        self.loops.napped(ns);
    }

    /// Stores everything where readers see it.
    pub fn publish(&self, block: &WorkerBlock, generation: u32) {
        let relaxed = Ordering::Relaxed;
        self.loops.publish(block);
        block.generation.store(generation, relaxed);
        block.created.store(self.created, relaxed);
        block.ended.store(self.ended, relaxed);
        self.drops.publish(&block.drops);
        self.counters.publish(&block.counters);
        self.refused.publish(&block.refused);
        for (to, from) in block.ports.iter().zip(&self.ports).take(self.used_ports) {
            to.rx_packets.store(from.rx_packets, relaxed);
            to.rx_bytes.store(from.rx_bytes, relaxed);
            to.tx_packets.store(from.tx_packets, relaxed);
            to.tx_bytes.store(from.tx_bytes, relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_published_and_at_first_everything() {
        let mut totals = Totals::<8>::new();
        let seen: [AtomicU64; 8] = std::array::from_fn(|_| AtomicU64::new(99));
        totals.add(3, 5);
        totals.publish(&seen);
        assert_eq!(seen.each_ref().map(|n| n.load(Ordering::Relaxed)), [0, 0, 0, 5, 0, 0, 0, 0]);
        seen[2].store(7, Ordering::Relaxed);
        totals.add(3, 1);
        totals.add(0, 2);
        totals.publish(&seen);
        assert_eq!(seen.each_ref().map(|n| n.load(Ordering::Relaxed)), [2, 0, 7, 6, 0, 0, 0, 0]);
    }
}

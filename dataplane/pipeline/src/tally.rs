//! A worker's private counters, published to shared memory once per burst.

use std::sync::atomic::Ordering;

use erhu_planes::reason::{COUNTER_SLOTS, DROP_SLOTS};
use erhu_planes::stats::{LOOP_BUCKETS, WorkerBlock};
use erhu_planes::{Counter, DropReason, MAX_PORTS};

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

/// Totals since the worker started.
#[derive(Clone, Debug)]
pub struct Tally {
    drops: [u64; DROP_SLOTS],
    counters: [u64; COUNTER_SLOTS],
    refused: [u64; DROP_SLOTS],
    loop_times: [u64; LOOP_BUCKETS],
    created: u64,
    ended: u64,
    loops: u64,
    busy_loops: u64,
    longest_loop_ns: u64,
    ports: [PortTally; MAX_PORTS],
    used_ports: usize,
}

impl Tally {
    /// All zero, for that many ports.
    pub fn new(ports: usize) -> Self {
        Self {
            drops: [0; DROP_SLOTS],
            counters: [0; COUNTER_SLOTS],
            refused: [0; DROP_SLOTS],
            loop_times: [0; LOOP_BUCKETS],
            created: 0,
            ended: 0,
            loops: 0,
            busy_loops: 0,
            longest_loop_ns: 0,
            ports: [PortTally::default(); MAX_PORTS],
            used_ports: ports.min(MAX_PORTS),
        }
    }

    /// One packet that does not leave.
    #[inline]
    pub fn drop(&mut self, reason: DropReason) {
        self.drops[reason.index()] += 1;
    }

    /// One first packet whose connection was refused.
    pub fn refuse(&mut self, reason: DropReason) {
        self.refused[reason.index()] += 1;
    }

    /// One event.
    #[inline]
    pub fn count(&mut self, counter: Counter) {
        self.counters[counter.index()] += 1;
    }

    /// Some events at once.
    #[inline]
    pub fn count_many(&mut self, counter: Counter, by: u64) {
        self.counters[counter.index()] += by;
    }

    /// One connection more.
    pub fn created(&mut self) {
        self.created += 1;
    }

    /// One connection less.
    pub fn ended(&mut self) {
        self.ended += 1;
    }

    /// A frame came in.
    #[inline]
    pub fn received(&mut self, port: u16, bytes: usize) {
        if let Some(port) = self.ports.get_mut(usize::from(port)) {
            port.rx_packets += 1;
            port.rx_bytes += bytes as u64;
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

    /// One loop, with or without packets, and how long it took.
    #[inline]
    pub fn looped(&mut self, busy: bool, ns: u64) {
        self.loops += 1;
        if busy {
            self.busy_loops += 1;
            let bucket = (63 - (ns | 1).leading_zeros() as usize).min(LOOP_BUCKETS - 1);
            self.loop_times[bucket] += 1;
            self.longest_loop_ns = self.longest_loop_ns.max(ns);
        }
    }

    /// Stores everything where readers see it.
    pub fn publish(&self, block: &WorkerBlock, generation: u32) {
        let relaxed = Ordering::Relaxed;
        block.loops.store(self.loops, relaxed);
        block.busy_loops.store(self.busy_loops, relaxed);
        block.longest_loop_ns.store(self.longest_loop_ns, relaxed);
        block.generation.store(generation, relaxed);
        block.created.store(self.created, relaxed);
        block.ended.store(self.ended, relaxed);
        for (to, from) in [
            (&block.drops[..], &self.drops[..]),
            (&block.counters[..], &self.counters[..]),
            (&block.refused[..], &self.refused[..]),
            (&block.loop_times[..], &self.loop_times[..]),
        ] {
            for (to, from) in to.iter().zip(from) {
                to.store(*from, relaxed);
            }
        }
        for (to, from) in block.ports.iter().zip(&self.ports).take(self.used_ports) {
            to.rx_packets.store(from.rx_packets, relaxed);
            to.rx_bytes.store(from.rx_bytes, relaxed);
            to.tx_packets.store(from.tx_packets, relaxed);
            to.tx_bytes.store(from.tx_bytes, relaxed);
        }
    }
}

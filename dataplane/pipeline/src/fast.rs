//! The fast path: an established packet of a connection that this worker owns.
//!
//! # Lines that a packet touches
//!
//! ```text
//! frame         1   headers, read and written
//! bucket        1   8 tags, 8 references (prefetched one stage earlier)
//! hot line      1   key, rewrite, decision, last_seen, packets, bytes: read and written (prefetched)
//! TCP line      1   TCP only: state (prefetched)
//! adjacency     1   shared, hot: MAC, port, VLAN, MTU
//! interface     2   this worker's counters of both interfaces, hot
//! ```
//!
//! The `cold` line of the connection is touched only when its timeout or status changes.

use std::sync::atomic::Ordering;

use erhu_planes::connections::{Hot4, flags};
use erhu_planes::stats::add;
use erhu_table::Reference;
use erhu_wire::rewrite::Rewrite4;
use erhu_wire::{Parsed, ethernet};

use crate::buffer::{Buffer, Buffers};
use crate::judge::Outcome;
use crate::neighbour::Egress;
use crate::worker::{Meta, Worker};

/// What the fast path made of a packet.
pub(crate) enum Fast {
    /// Rewritten; it leaves by that port.
    Sent(u16),
    /// Nothing was done: the slow path decides.
    NotHere,
    /// Tracking ran and found something that the slow path must carry out.
    Tracked(Outcome),
}

/// Directions with one of these never stay on the fast path.
const ODD: u16 = flags::DEAD | flags::PER_PACKET | flags::NOT_FORWARDED;

impl<P: Buffers> Worker<P> {
    /// Handles the packet if its connection is this worker's, current, and has nothing odd about it.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "halves of a word")]
    pub(crate) fn fast(&mut self, buffer: &mut P::Buffer, meta: &Meta, reference: Reference) -> Fast {
        let relaxed = Ordering::Relaxed;
        if !self.shared.table.matches4(reference, &meta.key) {
            return Fast::NotHere;
        }
        let hot = self.shared.table.hot4(reference);
        let bits = hot.flags.load(relaxed);
        let decision = hot.decision.load(relaxed);
        let usual = bits & ODD == 0
            && usize::from(bits >> flags::OWNER_SHIFT) == self.index
            && decision as u32 == self.policy.generation
            && hot.interface.load(relaxed) == meta.slot
            && meta.parsed.ttl > 1;
        if !usual {
            return Fast::NotHere;
        }
        let adjacency = self.shared.adjacencies.get((decision >> 32) as u32);
        let egress = adjacency.egress();
        let Some(destination) = egress.destination else { return Fast::NotHere };
        // Packets that still wait for this next hop go first.
        if meta.parsed.length > egress.mtu || adjacency.has_waiting() {
            return Fast::NotHere;
        }
        if bits & flags::STEADY != 0 {
            count(hot, self.clock.tick, meta.parsed.length);
        } else {
            match self.track(buffer.frame(), meta, reference) {
                Outcome::Accept | Outcome::Ignore => {}
                other => return Fast::Tracked(other),
            }
        }
        rewrite(buffer, &meta.parsed, self.shared.table.hot4(reference));
        if !encapsulate(buffer, &meta.parsed, &egress, destination) {
            return Fast::Tracked(Outcome::NoBuffer);
        }
        self.count_sent(egress.slot, buffer.frame().len());
        Fast::Sent(egress.port)
    }

    /// Counts a frame that leaves by an interface.
    #[inline(always)]
    pub(crate) fn count_sent(&self, slot: u16, bytes: usize) {
        if let Some(block) = self.shared.stats.interface(self.index, usize::from(slot)) {
            add(&block.tx_packets, 1);
            add(&block.tx_bytes, bytes as u64);
        }
    }
}

/// Counts a packet of a direction and notes that it was seen.
#[inline(always)]
pub(crate) fn count(hot: &Hot4, tick: u32, bytes: u16) {
    if hot.last_seen.load(Ordering::Relaxed) != tick {
        hot.last_seen.store(tick, Ordering::Relaxed);
    }
    add(&hot.packets, 1);
    add(&hot.bytes, u64::from(bytes));
}

/// Writes a direction's addresses, ports, checksums and decremented TTL.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "fields are cut out of the words on purpose")]
pub(crate) fn rewrite<B: Buffer>(buffer: &mut B, parsed: &Parsed, hot: &Hot4) {
    let packed = hot.ports_deltas.load(Ordering::Relaxed);
    let rewrite = Rewrite4 {
        addresses: hot.addresses.load(Ordering::Relaxed),
        ports: packed as u32,
        l3_delta: (packed >> 32) as u16,
        l4_delta: (packed >> 48) as u16,
    };
    rewrite.apply(buffer.frame_mut(), parsed);
}

/// Puts the Ethernet header of an adjacency before the IP packet and cuts padding behind it. `false` where the buffer
/// has no room.
#[inline(always)]
pub(crate) fn encapsulate<B: Buffer>(buffer: &mut B, parsed: &Parsed, egress: &Egress, destination: [u8; 6]) -> bool {
    let header: u16 = if egress.vlan.is_some() { 18 } else { 14 };
    if buffer.frame().len() != usize::from(parsed.end) && !buffer.set_len(usize::from(parsed.end)) {
        return false;
    }
    let by = i32::from(header) - i32::from(parsed.l3);
    if by != 0 && !buffer.move_start(by) {
        return false;
    }
    ethernet::write_header(buffer.frame_mut(), destination, egress.source, egress.vlan, ethernet::IPV4).is_some()
}

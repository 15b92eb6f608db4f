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
//! interfaces        this worker's counters: of the ingress, hot; of the egress once per run of packets of the same one
//! ```
//!
//! The `cold` line of the connection is touched only when its timeout or status changes.

use std::sync::atomic::Ordering;

use erhu_planes::Counter;
use erhu_planes::connections::{Hot4, flags};
use erhu_planes::stats::add;
use erhu_planes::tuple::proto;
use erhu_table::{Reference, Side};
use erhu_wire::rewrite::{self, Rewrite4};
use erhu_wire::{Addresses6, Parsed, ethernet, rewrite6};

use crate::buffer::{Buffer, Buffers};
use crate::judge::Outcome;
use crate::meta::Meta;
use crate::neighbour::{Adjacencies, Egress, Ready};
use crate::tally::Run;
use crate::worker::Worker;

/// Directions with one of these never stay on the fast path.
pub(crate) const ODD: u16 = flags::DEAD | flags::PER_PACKET | flags::NOT_FORWARDED;
/// The bits that name the owner.
pub(crate) const OWNER: u16 = u16::MAX << flags::OWNER_SHIFT;

/// What a direction of a connection must say to stay on the fast path, and what time it is: the same for a burst.
#[derive(Clone, Copy)]
pub(crate) struct Usual {
    pub generation: u32,
    pub owner: u16,
    pub tick: u32,
}

impl Usual {
    /// For a burst.
    #[expect(clippy::cast_possible_truncation, reason = "there are at most 256 workers")]
    pub fn new(generation: u32, worker: usize, tick: u32) -> Self {
        Self { generation, owner: (worker as u16) << flags::OWNER_SHIFT, tick }
    }

    /// Where the packet goes, if the hot line is of its connection and says what is usual, and nothing keeps it here.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low half of the word")]
    pub fn egress(self, hot: &Hot4, meta: &Meta, adjacencies: &Adjacencies) -> Option<Ready> {
        let relaxed = Ordering::Relaxed;
        // Relaxed: the reference was loaded with Acquire, and keys are fixed before it is stored.
        let wanted = meta.key();
        let key = (hot.key[0].load(relaxed) ^ wanted.0[0]) | (hot.key[1].load(relaxed) ^ wanted.0[1]);
        let decision = hot.decision.load(relaxed);
        let generation = decision as u32 ^ self.generation;
        let bits = (hot.flags.load(relaxed) ^ self.owner) & (OWNER | ODD);
        let interface = hot.interface.load(relaxed) ^ meta.slot;
        // One comparison, since nearly always nothing differs.
        let differs = key | u64::from(generation) | u64::from(bits | interface);
        if differs != 0 || meta.parsed.ttl <= 1 {
            return None;
        }
        adjacencies.get((decision >> 32) as u32).ready(meta.parsed.length)
    }

    /// Counts the packet, if that is all that it changes.
    #[inline(always)]
    pub fn counted(self, hot: &Hot4, bytes: u16) -> bool {
        let is_steady = hot.flags.load(Ordering::Relaxed) & flags::STEADY != 0;
        if is_steady {
            count(&Side::of4(hot), self.tick, bytes);
        }
        is_steady
    }
}

/// Translates a [`erhu_wire::Kind::Fast`] packet and gives it the Ethernet header that it leaves with. Returns the
/// frame's length; none where the buffer has no room.
#[inline(always)]
pub(crate) fn forward<B: Buffer>(buffer: &mut B, parsed: &Parsed, hot: &Hot4, egress: &Ready) -> Option<u16> {
    let header = if egress.vlan() == 0 { 14 } else { 18 };
    let frame = buffer.reframe(usize::from(parsed.end), i32::from(header) - i32::from(parsed.l3))?;
    let packet = ethernet::write_packed(frame, egress.destination, egress.source, egress.vlan(), ethernet::IPV4)?;
    rewrite_of(hot).apply_plain(packet, parsed.proto);
    Some(header + parsed.length)
}

impl<P: Buffers> Worker<P> {
    /// Tracks an established packet that changes more than counters.
    #[inline(never)]
    pub(crate) fn track_established<const V6: bool>(
        &mut self,
        frame: &[u8],
        meta: &Meta,
        reference: Reference,
    ) -> Outcome {
        let is_tcp = meta.parsed.proto == proto::TCP;
        if is_tcp
            && (self.track_plain::<V6>(frame, meta, reference) || self.track_in_order::<V6>(frame, meta, reference))
        {
            return Outcome::Accept;
        }
        self.track(frame, meta, reference)
    }

    /// Counts frames in a row that left by one interface, on the fast path but for those of which it is known otherwise.
    #[inline(never)]
    pub(crate) fn count_sent_run(&mut self) {
        let run = std::mem::replace(&mut self.sent, Run::NONE);
        self.tally.count_many(Counter::FastPath, run.packets - run.slow);
        self.tally.sent_run(run);
        if let Some(block) = self.shared.stats.interface(self.index, usize::from(run.slot)) {
            add(&block.tx_packets, run.packets);
            add(&block.tx_bytes, run.bytes);
        }
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
pub(crate) fn count(side: &Side<'_>, tick: u32, bytes: u16) {
    if side.last_seen.load(Ordering::Relaxed) != tick {
        side.last_seen.store(tick, Ordering::Relaxed);
    }
    add(side.packets, 1);
    add(side.bytes, u64::from(bytes));
}

impl<P: Buffers> Worker<P> {
    /// Translates a packet of a direction, off the fast path.
    pub(crate) fn rewrite(&self, buffer: &mut P::Buffer, meta: &Meta, reference: Reference) {
        let table = &self.shared.table;
        if meta.is_v6() {
            crate::fast6::rewrite(buffer, &meta.parsed, table.hot6(reference));
        } else {
            rewrite(buffer, &meta.parsed, table.hot4(reference));
        }
    }

    /// Takes one from the time to live of a packet that is forwarded as it is.
    pub(crate) fn forward(&self, buffer: &mut P::Buffer, meta: &Meta) {
        if meta.is_v6() {
            let addresses = Addresses6 { src: meta.key6.src, dst: meta.key6.dst };
            rewrite6::forward(buffer.frame_mut(), &meta.parsed, &addresses);
        } else {
            rewrite::forward(buffer.frame_mut(), &meta.parsed, meta.parsed.addresses);
        }
    }
}

/// Writes a direction's addresses, ports, checksums and decremented TTL.
pub(crate) fn rewrite<B: Buffer>(buffer: &mut B, parsed: &Parsed, hot: &Hot4) {
    rewrite_of(hot).apply(buffer.frame_mut(), parsed);
}

/// What a direction's packets become.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "fields are cut out of the words on purpose")]
fn rewrite_of(hot: &Hot4) -> Rewrite4 {
    let packed = hot.ports_deltas.load(Ordering::Relaxed);
    Rewrite4 {
        addresses: hot.addresses.load(Ordering::Relaxed),
        ports: packed as u32,
        l3_delta: (packed >> 32) as u16,
        l4_delta: (packed >> 48) as u16,
    }
}

/// Puts the Ethernet header of an adjacency before the IP packet and cuts padding behind it. `false` where the buffer
/// has no room.
pub(crate) fn encapsulate<B: Buffer>(
    buffer: &mut B,
    parsed: &Parsed,
    egress: &Egress,
    destination: [u8; 6],
    ethertype: u16,
) -> bool {
    let header: u16 = if egress.vlan.is_some() { 18 } else { 14 };
    if buffer.frame().len() != usize::from(parsed.end) && !buffer.set_len(usize::from(parsed.end)) {
        return false;
    }
    let by = i32::from(header) - i32::from(parsed.l3);
    if by != 0 && !buffer.move_start(by) {
        return false;
    }
    ethernet::write_header(buffer.frame_mut(), destination, egress.source, egress.vlan, ethertype).is_some()
}

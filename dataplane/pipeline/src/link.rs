//! Links: virtual wires between two zones.
//!
//! # Overview
//!
//! A link's two ends are interfaces without a port. A packet that leaves by one end, translated and its TTL decremented
//! as on any other way out, arrives by the other end in that end's zone: raw rules, look-up, and a connection of its own
//! if it is a first packet. So it can be translated twice.
//!
//! The next hop of an end is nobody's MAC address, hence never known: the fast path leaves such packets to the slow one
//! as it leaves those that wait for an answer, and pays nothing for links. Where they arrive, the fast path takes them
//! again.
//!
//! # Life-cycle
//!
//! Packets wait in a queue until the burst that they came with is decided, then go through the same stages, as bursts of
//! those that crossed equally many links; and so on until none is left, which is after [`MOST`] links at the latest.
//! The order of a flow is kept. A packet whose connection is another worker's is handed over as any other.
//!
//! # Limits
//!
//! [`MOST`] links for a packet; then it ends as `link_loop`. What the router itself sends in answer starts anew.

use std::collections::VecDeque;

use erhu_planes::DropReason;
use erhu_planes::stats::add;
use erhu_wire::Parsed;

use crate::BURST;
use crate::buffer::{Buffer, Buffers};
use crate::meta::Meta;
use crate::neighbour::Egress;
use crate::worker::Worker;

/// In place of the port number of a link's ends.
pub(crate) const LINK_PORT: u16 = u16::MAX;
/// Links that a packet may cross.
const MOST: u8 = 4;

/// A packet that crossed a link and has not arrived yet.
#[derive(Debug)]
struct Crossing<B> {
    /// Its frame, whose Ethernet header means nothing.
    buffer: B,
    /// Slot of the end that it arrives by.
    slot: u16,
    /// Links that it has crossed, this one included.
    crossed: u8,
}

/// Packets of one worker that are in the middle of links.
#[derive(Debug)]
pub(crate) struct Crossings<B> {
    queue: VecDeque<Crossing<B>>,
    /// Links that the packets of the burst under way have crossed.
    pub crossed: u8,
}

impl<B> Default for Crossings<B> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), crossed: 0 }
    }
}

impl<B> Crossings<B> {
    /// Whether any are there.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The next one, if it crossed as many links as the burst under way.
    fn next_alike(&mut self) -> Option<(B, u16)> {
        self.queue.front().filter(|next| next.crossed == self.crossed)?;
        self.queue.pop_front().map(|next| (next.buffer, next.slot))
    }
}

impl<P: Buffers> Worker<P> {
    /// A packet that is ready but for its frame leaves by an end of a link, having crossed so many before.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) fn cross(
        &mut self,
        mut buffer: P::Buffer,
        parsed: &Parsed,
        egress: &Egress,
        crossed: u8,
    ) -> Result<(), DropReason> {
        let peer = self.policy.interface(egress.slot).and_then(|end| end.peer).ok_or(DropReason::NoRoute)?;
        if crossed >= MOST {
            return Err(DropReason::LinkLoop);
        }
        let end = usize::from(parsed.end);
        if buffer.frame().len() != end && !buffer.set_len(end) {
            return Err(DropReason::NoBuffer);
        }
        self.count_sent(egress.slot, end);
        self.crossings.queue.push_back(Crossing { buffer, slot: peer, crossed: crossed + 1 });
        Ok(())
    }

    /// Takes packets that crossed a link through the stages, and again those that then cross another one, until none is
    /// left.
    #[inline(always)]
    pub(crate) fn take_crossings(&mut self) {
        if !self.crossings.is_empty() {
            self.arrive();
        }
    }

    #[cold]
    #[inline(never)]
    fn arrive(&mut self) {
        let (mut metas, mut burst) = (std::mem::take(&mut self.metas), std::mem::take(&mut self.scratch));
        if metas.len() < BURST {
            metas.resize(BURST, Meta::NOTHING);
        }
        while let Some(first) = self.crossings.queue.front() {
            self.crossings.crossed = first.crossed;
            for meta in &mut metas {
                let Some((buffer, slot)) = self.crossings.next_alike() else { break };
                self.arrive_by(slot, &buffer, meta);
                burst.push(buffer);
            }
            let places = metas.get_mut(..burst.len()).unwrap_or_default();
            self.decide_after_raw(&mut burst, places);
        }
        self.crossings.crossed = 0;
        (self.metas, self.scratch) = (metas, burst);
    }

    /// The first look at a packet that arrives by an end of a link.
    fn arrive_by(&mut self, slot: u16, buffer: &P::Buffer, meta: &mut Meta) {
        let (frame, trust) = (buffer.frame(), buffer.trust());
        meta.read_crossed(frame, trust, self.policy.interface(slot), &self.shared.table);
        if let Some(block) = self.shared.stats.interface(self.index, usize::from(meta.slot)) {
            add(&block.rx_packets, 1);
            add(&block.rx_bytes, frame.len() as u64);
        }
    }
}

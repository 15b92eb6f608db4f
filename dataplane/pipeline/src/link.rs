//! Links: virtual wires between two zones.
//!
//! A link's two ends are interfaces without a port. A packet that leaves by one end, translated and its TTL decremented
//! as on any other way out, arrives by the other end in that end's zone: raw rules, look-up, and a connection of its own
//! if it is a first packet. So it can be translated twice.
//!
//! The next hop of an end is nobody's MAC address, hence never known: the fast path leaves such packets to the slow one
//! as it leaves those that wait for an answer, and pays nothing for links. They arrive from a queue once the burst that
//! they came with is done, in their order; a connection of another worker's is handed over on the way.

use std::collections::VecDeque;

use erhu_planes::DropReason;
use erhu_planes::stats::add;

use crate::buffer::{Buffer, Buffers};
use crate::neighbour::Egress;
use crate::policy::NO_SLOT;
use crate::worker::Worker;

/// Port number of a link's ends.
pub(crate) const LINK_PORT: u16 = u16::MAX;
/// Links that a packet may cross.
const MOST: u8 = 4;

/// A packet that arrives by an end of a link.
#[derive(Debug)]
pub struct Crossing<B> {
    /// The frame, whose Ethernet header means nothing.
    pub buffer: B,
    /// Slot of the end.
    pub slot: u16,
    /// Links that it has crossed, this one included.
    pub crossed: u8,
    /// Packet mark, if raw rules have seen it already.
    pub raw_mark: Option<u32>,
}

/// Packets of one worker that are in the middle of links.
#[derive(Debug)]
pub(crate) struct Crossings<B> {
    queue: VecDeque<Crossing<B>>,
    /// Links that the packet under way has crossed.
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

    /// One more arrives.
    pub fn push(&mut self, crossing: Crossing<B>) {
        self.queue.push_back(crossing);
    }
}

impl<P: Buffers> Worker<P> {
    /// A packet, its IP packet ready and `end` bytes from the frame's start on its end, leaves by an end of a link.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) fn cross(&mut self, mut buffer: P::Buffer, end: usize, egress: &Egress) -> Result<(), DropReason> {
        let peer = self.policy.interface(egress.slot).and_then(|i| i.peer).ok_or(DropReason::NoRoute)?;
        if self.crossings.crossed >= MOST {
            return Err(DropReason::LinkLoop);
        }
        if buffer.frame().len() != end && !buffer.set_len(end) {
            return Err(DropReason::NoBuffer);
        }
        self.count_sent(egress.slot, buffer.frame().len());
        let crossed = self.crossings.crossed + 1;
        self.crossings.push(Crossing { buffer, slot: peer, crossed, raw_mark: None });
        Ok(())
    }

    /// Takes what crossed links through the slow path, until nothing is left that did.
    pub(crate) fn arrive(&mut self) {
        while let Some(Crossing { buffer, slot, crossed, raw_mark }) = self.crossings.queue.pop_front() {
            self.crossings.crossed = crossed;
            let Some(mut meta) = self.meta_at(slot, &buffer) else {
                self.count_drop(NO_SLOT, 0, DropReason::NoInterface);
                continue;
            };
            match raw_mark {
                Some(mark) => meta.mark = mark,
                None => {
                    if let Some(block) = self.shared.stats.interface(self.index, usize::from(slot)) {
                        add(&block.rx_packets, 1);
                        add(&block.rx_bytes, buffer.frame().len() as u64);
                    }
                    if self.policy.interface(slot).is_some_and(|i| i.has_raw) {
                        self.raw(&mut meta);
                    }
                }
            }
            self.dispatch(buffer, &mut meta);
        }
        self.crossings.crossed = 0;
    }
}

//! The fast path of IPv6: as [`crate::fast`], with two hot lines a direction.
//!
//! ```text
//! frame         1–2 headers, read and written
//! bucket        1   8 tags, 8 references (prefetched one stage earlier)
//! hot lines     2   key, decision, last_seen │ addresses to write, packets, bytes (both prefetched)
//! TCP line      1   TCP only: state (prefetched)
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

use erhu_planes::connections::{self, Hot6, flags};
use erhu_planes::tuple::{Key6, is_icmp};
use erhu_table::{Entry, Side};
use erhu_wire::rewrite6::Rewrite6;
use erhu_wire::{Addresses6, Parsed, ethernet};

use crate::buffer::Buffer;
use crate::fast::{ODD, OWNER, Usual, count};
use crate::meta::Meta;
use crate::neighbour::{Adjacencies, Ready};

impl Usual {
    /// As [`Usual::egress`].
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low half of the word")]
    pub fn egress6(self, hot: &Hot6, meta: &Meta, adjacencies: &Adjacencies) -> Option<Ready> {
        let relaxed = Ordering::Relaxed;
        let key = &meta.key6;
        // Relaxed: the reference was loaded with Acquire, and keys are fixed before it is stored.
        let other_key = (hot.src_low.load(relaxed) ^ key.src[0])
            | (hot.low.load(relaxed) ^ key.low)
            | (hot.src_high.load(relaxed) ^ key.src[1])
            | (hot.dst[0].load(relaxed) ^ key.dst[0])
            | (hot.dst[1].load(relaxed) ^ key.dst[1]);
        let decision = hot.decision.load(relaxed);
        let generation = decision as u32 ^ self.generation;
        let bits = (hot.flags.load(relaxed) ^ self.owner) & (OWNER | ODD);
        let interface = hot.interface.load(relaxed) ^ meta.slot;
        let differs = other_key | u64::from(generation) | u64::from(bits | interface);
        if differs != 0 || meta.parsed.ttl <= 1 {
            return None;
        }
        adjacencies.get((decision >> 32) as u32).ready(meta.parsed.length)
    }

    /// As [`Usual::counted`].
    #[inline(always)]
    pub fn counted6(self, lines: (&Hot6, &connections::Rewrite6), bytes: u16) -> bool {
        let is_steady = lines.0.flags.load(Ordering::Relaxed) & flags::STEADY != 0;
        if is_steady {
            count(&Side::of6(lines), self.tick, bytes);
        }
        is_steady
    }
}

/// Translates a [`erhu_wire::Kind::Fast6`] packet and gives it the Ethernet header that it leaves with. Returns the
/// frame's length; none where the buffer has no room.
#[inline(always)]
pub(crate) fn forward6<B: Buffer>(
    buffer: &mut B,
    parsed: &Parsed,
    lines: (&Hot6, &connections::Rewrite6),
    egress: &Ready,
) -> Option<u16> {
    let header = if egress.vlan() == 0 { 14 } else { 18 };
    let frame = buffer.reframe(usize::from(parsed.end), i32::from(header) - i32::from(parsed.l3))?;
    let packet = ethernet::write_packed(frame, egress.destination, egress.source, egress.vlan(), ethernet::IPV6)?;
    stored(lines).apply_plain(packet, parsed.proto);
    Some(header + parsed.length)
}

/// What a direction's packets become: both addresses, and the port word with its checksum delta.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "fields are cut out of the words on purpose")]
pub(crate) fn stored((hot, write): (&Hot6, &connections::Rewrite6)) -> Rewrite6 {
    let load = |pair: &[AtomicU64; 2]| [pair[0].load(Ordering::Relaxed), pair[1].load(Ordering::Relaxed)];
    let packed = hot.ports_deltas.load(Ordering::Relaxed);
    Rewrite6 {
        addresses: Addresses6 { src: load(&write.src), dst: load(&write.dst) },
        ports: packed as u32,
        l4_delta: (packed >> 48) as u16,
    }
}

/// Writes a direction's addresses, ports, checksum and decremented hop limit.
#[inline]
pub(crate) fn rewrite<B: Buffer>(buffer: &mut B, parsed: &Parsed, lines: (&Hot6, &connections::Rewrite6)) {
    stored(lines).apply(buffer.frame_mut(), parsed);
}

/// Writes what packets of a direction, which come with `key`, leave as: the other direction's turned round. Returns
/// whether that is a change.
#[expect(clippy::cast_possible_truncation, reason = "the low half of the word")]
pub(crate) fn store_rewrite(entry: Entry<'_>, direction: usize, key: &Key6, other: &Key6) -> bool {
    let relaxed = Ordering::Relaxed;
    let icmp = is_icmp(key.proto());
    let ports = if icmp { other.low as u32 } else { (other.low as u32).rotate_left(16) };
    let from = (Addresses6 { src: key.src, dst: key.dst }, key.low as u32);
    let rewrite = Rewrite6::new(key.proto(), from, (Addresses6 { src: other.dst, dst: other.src }, ports));
    let (hot, write) = entry.hot6(direction);
    for (words, value) in [(&write.src, rewrite.addresses.src), (&write.dst, rewrite.addresses.dst)] {
        words[0].store(value[0], relaxed);
        words[1].store(value[1], relaxed);
    }
    hot.ports_deltas.store(u64::from(rewrite.ports) | u64::from(rewrite.l4_delta) << 48, relaxed);
    // Of ICMPv6 the type differs between the directions, and only the identifier is written.
    let written = if icmp { 0xffff } else { u32::MAX };
    from.0 != rewrite.addresses || (from.1 ^ rewrite.ports) & written != 0
}

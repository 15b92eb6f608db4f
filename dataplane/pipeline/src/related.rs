//! ICMP errors about connections: translated both ways, the quoted packet included (RFC 5508 sections 4 and 5).
//!
//! An error about a packet of one direction travels in the other one, and is treated as a packet of that: its outer
//! destination and the quoted packet become what the receiver knows. It neither refreshes nor ends the connection.

use std::sync::atomic::Ordering;

use erhu_planes::connections::flags;
use erhu_planes::program::states;
use erhu_planes::tuple::{FAMILY_V4, FAMILY_V6, Key, Key4, pack_low, proto};
use erhu_table::Reference;
use erhu_wire::icmp::InnerV4;
use erhu_wire::icmp6::InnerV6;
use erhu_wire::{Addresses6, icmp, icmp6, ipv4, rewrite, rewrite6};

use crate::buffer::{Buffer, Buffers};
use crate::judge::{Judged, LOCAL};
use crate::meta::Meta;
use crate::worker::{Fate, Worker};

/// The packet that an error is about.
enum Quote {
    V4(InnerV4),
    V6(InnerV6),
}

impl<P: Buffers> Worker<P> {
    /// An ICMP error: related to a connection, or INVALID.
    pub(crate) fn related(&mut self, buffer: &mut P::Buffer, meta: &Meta) -> Fate {
        let Some((error, reference)) = self.quoted_connection(buffer, meta) else {
            return self.invalid(buffer, meta);
        };
        if let Some(owner) = self.other_owner(reference) {
            return Fate::HandOver(owner);
        }
        if !self.is_current(reference) {
            return self.invalid(buffer, meta);
        }
        self.pass_related(buffer, meta, &error, reference)
    }

    /// The connection that an error is about, by the direction that the error travels in.
    fn quoted_connection(&self, buffer: &P::Buffer, meta: &Meta) -> Option<(Quote, Reference)> {
        let (l3, l4, end) = (meta.parsed.l3, meta.parsed.l4, meta.parsed.end);
        let packet = buffer.frame().get(usize::from(l3)..usize::from(end))?;
        let at = usize::from(l4 - l3);
        let (quote, quoted) = if meta.is_v6() {
            let inner = icmp6::parse_error(packet, at)?.inner;
            let low = pack_low(inner.ports, inner.proto, FAMILY_V6, meta.zone);
            (Quote::V6(inner), inner.addresses.key(low).tuple())
        } else {
            let inner = icmp::parse_error(packet, at)?.inner;
            let low = pack_low(inner.ports, inner.proto, FAMILY_V4, meta.zone);
            (Quote::V4(inner), Key4([inner.addresses, low]).tuple())
        };
        if quoted.src != meta.addresses().1 {
            return None;
        }
        let reference = self.shared.table.find(&Key::from(&quoted.reversed()?))?;
        Some((quote, reference))
    }

    fn pass_related(&mut self, buffer: &mut P::Buffer, meta: &Meta, error: &Quote, reference: Reference) -> Fate {
        let shared = self.shared();
        let side = shared.table.side(reference);
        let decision = side.decision.load(Ordering::Relaxed);
        let bits = side.flags.load(Ordering::Relaxed);
        if bits & flags::NOT_FORWARDED != 0 && (decision >> 32) as u32 == LOCAL {
            return self.input_related(buffer, meta, reference);
        }
        if meta.parsed.ttl <= 1 {
            return self.ttl_expired(buffer, meta);
        }
        let adjacency = match self.judge_packet(meta, reference, states::RELATED) {
            Judged::Forward { adjacency, .. } => adjacency,
            other => return self.refuse_packet(buffer, meta, &other),
        };
        if let Some(fate) = self.too_big(buffer, meta, shared.adjacencies.get(adjacency).egress().mtu) {
            return fate;
        }
        let translated = match error {
            Quote::V4(inner) => self.translate_error(buffer, meta, inner, reference),
            Quote::V6(inner) => self.translate_error6(buffer, meta, inner, reference),
        };
        if translated.is_none() {
            return self.invalid(buffer, meta);
        }
        Fate::Send { adjacency }
    }

    /// Gives an error, and what it quotes, the addresses that its receiver knows. `None`: nothing was changed.
    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of the words on purpose")]
    fn translate_error(
        &self,
        buffer: &mut P::Buffer,
        meta: &Meta,
        inner: &InnerV4,
        reference: Reference,
    ) -> Option<()> {
        let hot = self.shared.table.hot4(reference);
        let addresses = hot.addresses.load(Ordering::Relaxed);
        let ports = hot.ports_deltas.load(Ordering::Relaxed) as u32;
        let quoted_ports = if inner.proto == proto::ICMP { ports } else { ports.rotate_left(16) };
        let (l3, l4, end) = (meta.parsed.l3, meta.parsed.l4, meta.parsed.end);
        let ihl = usize::from(l4 - l3);
        let packet = buffer.frame_mut().get_mut(usize::from(l3)..usize::from(end))?;
        icmp::rewrite_inner(packet, ihl, inner, addresses.rotate_left(32), quoted_ports)?;
        // RFC 5508 REQ-5c: an error from inside leaves with the mapped address as its source; one from outside keeps
        // its own.
        let [old_source, _] = ipv4::split_addresses(hot.key[0].load(Ordering::Relaxed));
        let [new_source, new_destination] = ipv4::split_addresses(addresses);
        let [own_source, _] = ipv4::split_addresses(meta.parsed.addresses);
        let source = if old_source == new_source { own_source } else { new_source };
        let outer = u64::from(source) | u64::from(new_destination) << 32;
        rewrite::forward(buffer.frame_mut(), &meta.parsed, outer);
        Some(())
    }

    /// As [`Worker::translate_error`], for IPv6.
    fn translate_error6(
        &self,
        buffer: &mut P::Buffer,
        meta: &Meta,
        inner: &InnerV6,
        reference: Reference,
    ) -> Option<()> {
        let lines = self.shared.table.hot6(reference);
        let to = crate::fast6::stored(lines);
        let quoted_ports = if inner.proto == proto::ICMPV6 { to.ports } else { to.ports.rotate_left(16) };
        let (l3, l4, end) = (meta.parsed.l3, meta.parsed.l4, meta.parsed.end);
        let packet = buffer.frame_mut().get_mut(usize::from(l3)..usize::from(end))?;
        icmp6::rewrite_inner(packet, usize::from(l4 - l3), inner, &to.addresses.swapped(), quoted_ports)?;
        let old_source = [lines.0.src_low.load(Ordering::Relaxed), lines.0.src_high.load(Ordering::Relaxed)];
        let src = if old_source == to.addresses.src { meta.key6.src } else { to.addresses.src };
        let outer = Addresses6 { src, dst: to.addresses.dst };
        rewrite6::forward(buffer.frame_mut(), &meta.parsed, &outer);
        Some(())
    }
}

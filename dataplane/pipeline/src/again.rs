//! Connections that new rules judge again, while their packets come in.
//!
//! After a reload every connection is judged once more, with its next packet. Those of the usual kind ([`crate::usual`]
//! has what that means for openings), with rules that are usual now, are judged here, with addresses and ports that are
//! numbers, and their packet goes on as the fast path's do. All others leave for [`Worker::reevaluate`], before anything
//! was changed; so do those that have to end.
//!
//! # Lines that a packet touches beside those of the fast path
//!
//! ```text
//! other hot line    1   interface and decision of the other direction (prefetched)
//! cold line         1   status, mark, timeout policy (prefetched)
//! adjacencies       2   shared, hot: who holds them
//! ```

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;

use erhu_planes::Counter;
use erhu_planes::connections::{flags, status};
use erhu_planes::program::{Hook, states};
use erhu_planes::tuple::{Key4, proto};
use erhu_rules::{Effects, Keys, Packet4};
use erhu_table::Entry;

use crate::buffer::Buffers;
use crate::fast::Usual;
use crate::judge::{Judged, refusal};
use crate::meta::Meta;
use crate::open::{agrees, translation_of};
use crate::policy::NO_SLOT;
use crate::worker::{Held, Worker};

/// As many packets of a burst that were judged again are a sign that those of the next one will be, too.
const SIGN: u64 = 4;

impl<P: Buffers> Worker<P> {
    /// Asks for what judging again needs of the connections that a burst's packets seem to be of, where the last burst's
    /// were judged again.
    #[cold]
    #[inline(never)]
    pub(crate) fn look_again(&mut self, held: Held<'_, P::Buffer>, metas: &[Meta]) {
        if self.judged_again >= SIGN {
            let table = &held.shared.table;
            metas.iter().filter_map(|meta| meta.candidate).for_each(|reference| table.prefetch_rest4(reference));
        }
        self.judged_again = 0;
    }

    /// A packet that cannot stay on the fast path. Where RSS knows nothing of owners, most of these are another worker's,
    /// and that is all there is to know of them; after a reload they wait to be judged again.
    #[cold]
    #[inline(never)]
    pub(crate) fn unusual(&mut self, held: Held<'_, P::Buffer>, buffer: P::Buffer, meta: &mut Meta) {
        let table = &held.shared.table;
        let Some(reference) = meta.candidate.filter(|reference| table.matches4(*reference, &meta.key())) else {
            return self.slow_path(held, buffer, meta);
        };
        let bits = table.hot4(reference).flags.load(Ordering::Relaxed);
        let owner = usize::from(bits >> flags::OWNER_SHIFT);
        if owner != self.index {
            self.tally.count(Counter::SlowPath);
            return self.hand_over(buffer, meta, owner);
        }
        if bits & flags::DEAD == 0 && self.renew(held, table.entry(reference)) {
            let usual = Usual::new(held.policy.generation, self.index, self.clock.tick);
            return self.look_up::<true>(held, usual, buffer, meta, reference);
        }
        self.slow_path(held, buffer, meta);
    }

    /// Judges a connection again, if rules other than the running ones did that last. `false`: nothing was done; the
    /// general way has to, or there is nothing to do.
    #[expect(clippy::cast_possible_truncation, reason = "the low half of the word")]
    fn renew(&mut self, held: Held<'_, P::Buffer>, entry: Entry<'_>) -> bool {
        let decision = entry.original4().decision.load(Ordering::Relaxed);
        if decision as u32 == held.policy.generation || self.renewed(held, entry).is_none() {
            return false;
        }
        self.tally.count(Counter::Reevaluated);
        self.judged_again += 1;
        self.retrack(entry, entry.zone(0));
        true
    }

    /// As [`Worker::reevaluate`]. `None`: nothing was done.
    fn renewed(&mut self, held: Held<'_, P::Buffer>, entry: Entry<'_>) -> Option<()> {
        let relaxed = Ordering::Relaxed;
        let Held { shared, policy } = held;
        let (original, other, cold) = (entry.original4(), entry.reply4(), entry.cold());
        let [key, reply] = [original, other].map(|hot| Key4([hot.key[0].load(relaxed), hot.key[1].load(relaxed)]));
        if !matches!(key.proto(), proto::UDP | proto::TCP)
            || cold.status.load(relaxed) & status::DST_NAT != 0
            || cold.egress.load(relaxed) == NO_SLOT
            || policy.rules.translates_destinations()
            || !policy.rules.accepts_all(Hook::Prerouting, states::NEW)
            || !policy.rules.accepts_all(Hook::Forward, states::ESTABLISHED)
            || policy.rules.asks_status()
        {
            return None;
        }
        let ingress = policy.interface(original.interface.load(relaxed)).filter(|i| i.zone == key.zone())?;
        let (src, dst) = key.addresses();
        let (back, there) = (policy.routes.way4(key.zone(), src)?, policy.routes.way4(key.zone(), dst)?);
        let (behind, egress) = (policy.interface_at(back.interface)?, policy.interface_at(there.interface)?);
        if behind.zone != key.zone()
            || egress.zone != reply.zone()
            || policy.pools.owns4(key.zone(), dst)
            || policy.pools.owns4(egress.zone, dst)
        {
            return None;
        }
        let mut keys = Keys::of(&Packet4 {
            ingress: ingress.index,
            zone: key.zone(),
            addresses: (src, dst),
            proto: key.proto(),
            ports: key.ports(),
            state: states::NEW,
            mark: cold.came_mark.load(relaxed),
        });
        keys.set_egress(egress.index, egress.zone);
        // Nothing is counted: no packet goes through the rules.
        let mut effects = Effects::default();
        let verdict = policy.rules.run_keys(Hook::Forward, &mut keys, &mut effects, &mut |_| {});
        if refusal(&verdict).is_some() {
            return None;
        }
        let mark_differs = effects.connmark.is_some_and(|mark| mark != cold.mark.load(relaxed));
        let packet_kind = effects.packet_kind || mark_differs;
        let verdict = policy.rules.run_keys(Hook::Postrouting, &mut keys, &mut effects, &mut |_| {});
        let source = Ipv4Addr::from(src).into();
        let translation = translation_of(policy, &verdict, source, egress).ok()?;
        let (external, port) = (Ipv4Addr::from(reply.addresses().1).into(), reply.ports().1);
        if !agrees(&translation, policy, source, (external, port), false) {
            return None;
        }
        let adjacency = self.hops.find_or_add4(&shared.adjacencies, egress, there.next_hop)?;
        let answers = self.hops.find_or_add4(&shared.adjacencies, behind, back.next_hop)?;
        other.interface.store(egress.slot, relaxed);
        cold.egress.store(egress.slot, relaxed);
        cold.first_mark.store(cold.came_mark.load(relaxed), relaxed);
        self.store_decision(entry, 0, &Judged::Forward { adjacency, egress: egress.slot, packet_kind });
        self.store_decision(
            entry,
            1,
            &Judged::Forward { adjacency: answers, egress: behind.slot, packet_kind: false },
        );
        Some(())
    }
}

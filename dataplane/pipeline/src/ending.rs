//! Connections that end together, most of them by their timers.
//!
//! Like an opening, an ending needs some ten lines that are nobody's but its connection's. So for up to [`TOGETHER`] of
//! them a loop asks for the lines, a second one for those that the first ones name, and a third ends one connection after
//! the other. [`Worker::end`] ends any; those of IPv4 whose destination is not translated are ended here on numbers in
//! registers, with the same outcome.

use std::sync::atomic::Ordering;

use erhu_conntrack::tcp::TcpState;
use erhu_nat::{Ahead, Given4, Opening4};
use erhu_planes::connections::{flags, status};
use erhu_planes::events::mask;
use erhu_planes::tuple::{Key, Key4, proto};
use erhu_table::Entry;

use crate::buffer::Buffers;
use crate::worker::{Held, Worker};

/// Connections that are ended together.
pub(crate) const TOGETHER: usize = 32;

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    line: u32,
    /// Original and reply, of those that are ended here.
    keys: Option<[Key4; 2]>,
    hashes: [u64; 2],
    ahead: Ahead,
}

/// Whether a connection's port may have to rest after it (RFC 6888 REQ-8a): one of TCP that was seen to close leaves none
/// to.
pub(crate) fn rests(entry: Entry<'_>, protocol: u8) -> bool {
    let closed = [TcpState::TimeWait as u8, TcpState::Close as u8];
    protocol != proto::TCP || !closed.contains(&entry.cold().state.load(Ordering::Relaxed))
}

impl<P: Buffers> Worker<P> {
    /// Ends the connections that were noted as due. They are on no timer.
    pub(crate) fn end_due(&mut self) {
        let (shared, policy) = (self.shared(), self.policy());
        let held = Held::<P::Buffer> { shared: &shared, policy: &policy };
        let mut due = std::mem::take(&mut self.due);
        for some in due.chunks_mut(TOGETHER) {
            some.iter_mut().for_each(|ending| self.seek_ending(held, ending));
            for ending in some.iter() {
                if let Some(entry) = shared.table.entry_at(ending.line) {
                    shared.nat.prefetch_host(&given(entry, Key4::default()));
                }
            }
            for ending in some.iter() {
                let Some(entry) = shared.table.entry_at(ending.line) else { continue };
                match ending.keys {
                    Some(keys) => self.end_usual(held, entry, keys, ending),
                    None => self.end(entry, false),
                }
            }
        }
        due.clear();
        self.due = due;
    }

    /// Notes a connection to be ended by [`Worker::end_due`].
    pub(crate) fn note_due(due: &mut Vec<Ending>, entry: Entry<'_>) {
        due.push(Ending { line: entry.line(), keys: None, hashes: [0; 2], ahead: Ahead::default() });
    }

    /// Asks for what an ending looks up.
    fn seek_ending(&self, held: Held<'_, P::Buffer>, ending: &mut Ending) {
        let Held { shared, .. } = held;
        let Some(entry) = shared.table.entry_at(ending.line) else { return };
        let (Key::V4(original), Key::V4(reply)) = (entry.key(0), entry.key(1)) else { return };
        if original == reply || entry.cold().status.load(Ordering::Relaxed) & status::DST_NAT != 0 {
            return;
        }
        ending.keys = Some([original, reply]);
        ending.hashes = [original, reply].map(|key| shared.table.hash4(&key));
        ending.hashes.iter().for_each(|hash| shared.table.prefetch_bucket(*hash));
        ending.ahead = shared.nat.ahead(original);
        shared.nat.prefetch_ending(&ending.ahead, &given(entry, reply), original.proto());
    }

    /// As [`Worker::end`].
    fn end_usual(
        &mut self,
        held: Held<'_, P::Buffer>,
        entry: Entry<'_>,
        [original, reply]: [Key4; 2],
        ending: &Ending,
    ) {
        let relaxed = Ordering::Relaxed;
        let shared = held.shared;
        for hot in [entry.original4(), entry.reply4()] {
            let bits = hot.flags.load(relaxed);
            if bits & flags::HOLDS_ADJACENCY != 0 {
                let number = u32::try_from(hot.decision.load(relaxed) >> 32).unwrap_or(0);
                shared.adjacencies.get(number).let_go();
            }
            hot.flags.store((bits | flags::DEAD) & !flags::HOLDS_ADJACENCY, relaxed);
        }
        let cold = entry.cold();
        cold.status.store(cold.status.load(relaxed) | status::DYING, relaxed);
        self.tell(entry, mask::DESTROY);
        let hashes = ending.hashes;
        shared.table.remove4(entry, hashes);
        let opening = Opening4 {
            zone: original.zone(),
            addresses: original.addresses(),
            ports: original.ports(),
            proto: original.proto(),
            outside: reply.zone(),
            now_tick: self.clock.tick,
        };
        let rests = rests(entry, opening.proto);
        shared.nat.close4(&given(entry, reply), &opening, &ending.ahead, rests);
        self.unbook(opening.zone, opening.outside);
        self.count_in_zones(opening.zone, opening.outside, |block| &block.ended);
        self.tally.ended();
        self.own.retire(&shared.table, entry);
        self.give_place_back();
    }
}

/// What a connection holds of a pool, `reply` being its reply tuple.
fn given(entry: Entry<'_>, reply: Key4) -> Given4 {
    let cold = entry.cold();
    let (kind, mapping) = (cold.nat_kind.load(Ordering::Relaxed), cold.mapping.load(Ordering::Relaxed));
    let (sport, dport) = reply.ports();
    let port = if reply.proto() == proto::ICMP { sport } else { dport };
    Given4 { kind, mapping, address: reply.addresses().1, port }
}

//! Asking for the lines that a burst's first packets will need.
//!
//! A first packet reads and writes some ten lines that are nobody's but its connection's: two buckets of the index, three
//! lines of the slab, and of translation its host, its mapping, and where these are found. Worked on one after the other,
//! each would wait for memory several times. So before any of them is worked on, a few loops over all of them ask for the
//! lines step by step. What they look at may change until then, and what they guess may be wrong: nothing depends on it.

use erhu_nat::Ahead;
use erhu_planes::Tuple;
use erhu_planes::tuple::Key;

use crate::buffer::Buffers;
use crate::open::translated_reply;
use crate::worker::{Meta, Worker};

impl<P: Buffers> Worker<P> {
    /// Looks ahead for those of a burst's packets that seem to have no connection.
    #[cold]
    pub(crate) fn look_ahead(&mut self, metas: &[Meta]) {
        let mut openings: Vec<(Tuple, Ahead)> = std::mem::take(&mut self.openings);
        openings.clear();
        for meta in metas.iter().filter(|meta| meta.seems_new()) {
            let original = meta.tuple();
            openings.push((original, self.shared.nat.prefetch_lookups(&original)));
        }
        for (_, ahead) in &mut openings {
            self.shared.nat.prefetch_records(ahead);
        }
        for (original, ahead) in &openings {
            let guess = self.shared.nat.prefetch_external(ahead, original, &self.policy.pools);
            if let Some(reply) = guess.and_then(|(zone, to, port)| translated_reply(original, zone, Some((to, port))))
            {
                self.shared.table.prefetch_bucket(self.shared.table.hash(&Key::from(&reply)));
            }
        }
        self.openings = openings;
    }
}

//! Asking for the lines that a burst's first packets will need.
//!
//! A first packet reads and writes some ten lines that are nobody's but its connection's: two buckets of the index, three
//! lines of the slab, and of translation its host, its mapping, and where these are found. Worked on one after the other,
//! each would wait for memory several times. So before any of them is worked on, a few loops over all of them ask for the
//! lines step by step. What they look at may change until then, and what they guess may be wrong: nothing depends on it.

use crate::buffer::Buffers;
use crate::meta::Meta;
use crate::worker::Worker;

impl<P: Buffers> Worker<P> {
    /// Looks ahead for those of a burst's packets that seem to have no connection.
    #[cold]
    pub(crate) fn look_ahead(&mut self, metas: &[Meta]) {
        let (nat, table) = (&self.shared.nat, &self.shared.table);
        for meta in metas.iter().filter(|meta| meta.seems_new()) {
            let ahead = nat.ahead(meta.key());
            nat.prefetch_lookups(&ahead);
            table.prefetch_room(meta.hash);
            self.openings.push((meta.key(), ahead));
        }
        for (_, ahead) in &mut self.openings {
            nat.prefetch_records(ahead);
        }
        self.replies.clear();
        for (key, ahead) in &mut self.openings {
            let guess = nat.prefetch_external(ahead, *key, &self.policy.pools);
            if let Some(reply) = guess.and_then(|(zone, address, port)| key.reply(zone, (address, port))) {
                let hash = table.hash4(&reply);
                table.prefetch_bucket(hash);
                self.replies.push(hash);
            }
        }
        for (_, ahead) in &self.openings {
            nat.prefetch_room(ahead);
        }
        for hash in &self.replies {
            table.prefetch_room(*hash);
        }
    }
}

//! Looking ahead: which lines the openings of a burst will need.
//!
//! Nothing here changes or promises anything. The steps are to be taken for all of a burst's first packets before the
//! next step is taken for the first: each asks for the lines that the next one reads.

use erhu_planes::tuple::Key4;

use crate::book::{As, external_hash_v4, inside_hash};
use crate::ports::Class;
use crate::{Given4, Nat, Pools, kind, kind_of};

/// What was found out of one first packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ahead {
    pub(crate) host: u64,
    pub(crate) inside: u64,
    /// Of the external endpoint that it will likely have alone.
    external: Option<u64>,
    /// Reference of the host, if there seems to be one.
    known: Option<u32>,
}

impl Nat {
    /// Where a packet's host and its mapping are looked up.
    #[inline]
    pub fn ahead(&self, key: Key4) -> Ahead {
        let class = Class::of(key.proto()).unwrap_or(Class::Udp);
        let host = self.hasher.two(u64::from(key.addresses().0), u64::from(key.zone()));
        Ahead { host, inside: inside_hash(&self.hasher, host, class, key.ports().0), external: None, known: None }
    }

    /// Asks for these places.
    #[inline]
    pub fn prefetch_lookups(&self, ahead: &Ahead) {
        self.book.prefetch(ahead.host);
        self.book.prefetch(ahead.inside);
    }

    /// Asks for what the end of a connection that was given this will look up.
    #[inline]
    pub fn prefetch_ending(&self, ahead: &Ahead, given: &Given4, proto: u8) {
        match given.kind {
            kind::ENDPOINT => {
                let class = Class::of(proto).unwrap_or(Class::Udp);
                self.prefetch_lookups(ahead);
                self.book.prefetch(external_hash_v4(&self.hasher, given.address, class, given.port));
                self.mappings.prefetch(given.mapping);
            }
            kind::POOL => {
                self.book.prefetch(ahead.host);
                self.hosts.prefetch_record(given.mapping);
            }
            _ => {}
        }
    }

    /// Then asks for the host's record.
    #[inline]
    pub fn prefetch_host(&self, given: &Given4) {
        if given.kind == kind::ENDPOINT {
            self.hosts.prefetch_record(self.mappings.get(given.mapping).host);
        }
    }

    /// Asks for the records of host and mapping.
    #[inline]
    pub fn prefetch_records(&self, ahead: &mut Ahead) {
        ahead.known = self.hosts.prefetch(&self.book, ahead.host);
        if let Some(mapping) = self.book.candidate(ahead.inside, As::Inside) {
            self.mappings.prefetch(mapping);
        }
    }

    /// Asks for where the mapping will be entered, and says which external zone, address and port the packet will
    /// likely get. `None` where that cannot be guessed.
    #[inline]
    pub fn prefetch_external(&self, ahead: &mut Ahead, key: Key4, pools: &Pools) -> Option<(u16, u32, u16)> {
        let guess = self.hosts.guess(ahead.known?)?;
        let class = Class::of(key.proto())?;
        let spec = pools.with_id(guess.pool)?;
        let wish = self.pool_wish(spec, None, class, key.ports().0, ahead.inside);
        let port = if kind_of(spec.mapping) == kind::POOL {
            wish.shared_first(self.secret4(key.addresses(), key.ports(), (key.proto(), key.zone())))
        } else {
            let port = wish.keep.unwrap_or_else(|| wish.first_tried(0));
            let external = external_hash_v4(&self.hasher, guess.address, class, port);
            self.book.prefetch(external);
            ahead.external = Some(external);
            port
        };
        let external = spec.spread(false)?.external(guess.place);
        if let Some(map) = self.external.at(external).map(external, class) {
            map.prefetch(port);
        }
        Some((guess.zone, guess.address, port))
    }

    /// Then asks for where the mapping will be entered if the lines that it belongs in are full.
    #[inline]
    pub fn prefetch_room(&self, ahead: &Ahead) {
        if let Some(external) = ahead.external {
            self.book.prefetch_room(ahead.inside);
            self.book.prefetch_room(external);
        }
    }
}

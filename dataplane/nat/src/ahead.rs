//! Looking ahead: which lines the openings of a burst will need.
//!
//! Nothing here changes or promises anything. The steps are to be taken for all of a burst's first packets before the
//! next step is taken for the first: each asks for the lines that the next one reads.

use std::net::IpAddr;

use erhu_planes::Tuple;

use crate::book::{As, external_hash, host_hash, inside_hash};
use crate::ports::Class;
use crate::{Nat, Pools, Rng, Target, Wish};

/// What was found out of one first packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ahead {
    host: u64,
    inside: u64,
    /// Reference of the host, if there seems to be one.
    known: Option<u32>,
}

impl Nat {
    /// Asks for where the packet's host and its mapping are looked up.
    #[inline]
    pub fn prefetch_lookups(&self, original: &Tuple) -> Ahead {
        let host = host_hash(&self.hasher, original.zone, original.src);
        let class = Class::of(original.proto).unwrap_or(Class::Udp);
        let inside = inside_hash(&self.hasher, host, class, original.sport);
        self.book.prefetch(host);
        self.book.prefetch(inside);
        Ahead { host, inside, known: None }
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
    pub fn prefetch_external(&self, ahead: &Ahead, original: &Tuple, pools: &Pools) -> Option<(u16, IpAddr, u16)> {
        let guess = self.hosts.guess(ahead.known?)?;
        let class = Class::of(original.proto)?;
        let spec = pools.with_id(guess.pool)?;
        let wish = Wish {
            target: Target::Pool(spec),
            ports: None,
            random: false,
            original: *original,
            zone: guess.zone,
            now_tick: 0,
        };
        let port = self.port_wish(&wish, class, ahead.inside, &mut Rng::new(0));
        let port = port.keep.unwrap_or_else(|| port.first_tried(0));
        let address = IpAddr::V4(guess.address);
        self.book.prefetch(external_hash(&self.hasher, address, class, port));
        Some((guess.zone, address, port))
    }
}

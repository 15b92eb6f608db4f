//! Where hosts and endpoint-independent mappings are found: one index of one-line buckets for all of them.
//!
//! An entry is a reference and what it is looked up as. Who looks up compares the record that the reference leads to.
//! The index has a fixed size, for so many connections; its pages come as they are touched. It is read without locks,
//! so that a worker can ask for the lines of a burst's openings before it begins with the first. An entry is added and
//! taken out under the lock of its host.

use std::io;
use std::net::IpAddr;

use erhu_planes::sizing;
use erhu_table::Index;

use crate::ports::Class;
use crate::random::Hasher;

/// References that entries can have: 30 bits, less the last one.
pub const REFERENCES: u32 = (1 << 26) - 2;

/// What an entry is looked up as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum As {
    /// A mapping, by its inside endpoint.
    Inside,
    /// A mapping, by its external endpoint.
    External,
    /// A host.
    Host,
}

/// See the module's text.
pub struct Book {
    index: Index,
    hosts: u32,
}

impl std::fmt::Debug for Book {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Book").field("bytes", &self.index.bytes()).finish_non_exhaustive()
    }
}

impl Book {
    /// For the mappings of so many connections, and for hosts.
    pub fn new(connections: u32, huge_pages: bool) -> io::Result<Self> {
        let entries = sizing::mapping_entries(connections);
        let index = Index::for_entries(entries, sizing::MAPPING_INDEX_LOAD, huge_pages)?;
        Ok(Self { index, hosts: sizing::indexed_hosts(connections) })
    }

    /// Hosts that it has room for; others are to be kept elsewhere.
    pub const fn hosts(&self) -> u32 {
        self.hosts
    }

    /// The reference with this hash and kind for which `is_it` holds.
    #[inline]
    pub fn find(&self, hash: u64, kind: As, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let bits = self.index.find(hash, |bits| bits & 3 == kind as u32 && is_it(bits >> 2))?;
        Some(bits >> 2)
    }

    /// Adds one that is not there yet; `false` if there is no room near its place.
    #[inline]
    pub fn add(&self, hash: u64, kind: As, reference: u32) -> bool {
        self.index.add(hash, reference << 2 | kind as u32)
    }

    /// Takes one out; `false` if it was not there.
    #[inline]
    pub fn remove(&self, hash: u64, kind: As, reference: u32) -> bool {
        self.index.drop_entry(hash, reference << 2 | kind as u32)
    }

    /// Asks for the line in which a hash is looked up.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// Asks for where an entry of that hash will lie, if that is not in the line in which it is looked up first.
    #[inline]
    pub fn prefetch_room(&self, hash: u64) {
        self.index.prefetch_room(hash);
    }

    /// Most likely the reference with this hash and kind, nothing compared: for prefetching.
    #[inline]
    pub fn candidate(&self, hash: u64, kind: As) -> Option<u32> {
        self.index.candidate(hash).filter(|bits| bits & 3 == kind as u32).map(|bits| bits >> 2)
    }

    /// Bytes of the index.
    pub fn bytes(&self) -> usize {
        self.index.bytes()
    }
}

/// The hash of a host, whatever its pool.
#[inline]
pub fn host_hash(hasher: &Hasher, zone: u16, address: IpAddr) -> u64 {
    hasher.address(address, u64::from(zone))
}

/// The hash of an inside endpoint, from that of its host.
#[inline]
pub fn inside_hash(hasher: &Hasher, host: u64, class: Class, port: u16) -> u64 {
    hasher.two(host, endpoint(class, port))
}

/// The hash of an external endpoint, whatever its zone.
#[inline]
pub fn external_hash(hasher: &Hasher, address: IpAddr, class: Class, port: u16) -> u64 {
    hasher.address(address, endpoint(class, port))
}

/// The same of an IPv4 address in host order.
#[inline]
pub fn external_hash_v4(hasher: &Hasher, address: u32, class: Class, port: u16) -> u64 {
    hasher.two(u64::from(address), endpoint(class, port))
}

/// Port and protocol as one word, apart from the zones that hosts have in its place.
const fn endpoint(class: Class, port: u16) -> u64 {
    port as u64 | (class as u64 + 1) << 16
}

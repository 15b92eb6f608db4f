//! What the two families of connections have in common, at the places where each has it.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use erhu_planes::connections::{Class, Hot4, Hot6, Rewrite6};
use erhu_planes::tuple::{FAMILY_V6, Key, Key4};

use crate::table::{Entry, Reference, Table};

/// One direction of a connection of either family. For paths on which a branch on the family does not count.
#[derive(Clone, Copy, Debug)]
pub struct Side<'t> {
    /// [`erhu_planes::connections::flags`].
    pub flags: &'t AtomicU16,
    /// Interface that its packets come in by.
    pub interface: &'t AtomicU16,
    /// Tick of its last refreshing packet.
    pub last_seen: &'t AtomicU32,
    /// Generation (low half) and adjacency, or whatever else was decided.
    pub decision: &'t AtomicU64,
    /// Packets.
    pub packets: &'t AtomicU64,
    /// Bytes of them: IP total length.
    pub bytes: &'t AtomicU64,
}

impl<'t> Side<'t> {
    /// Of an IPv4 connection.
    #[inline(always)]
    pub fn of4(hot: &'t Hot4) -> Self {
        let Hot4 { flags, interface, last_seen, decision, packets, bytes, .. } = hot;
        Self { flags, interface, last_seen, decision, packets, bytes }
    }

    /// Of an IPv6 connection.
    #[inline(always)]
    pub fn of6((hot, rewrite): (&'t Hot6, &'t Rewrite6)) -> Self {
        let Hot6 { flags, interface, last_seen, decision, .. } = hot;
        let Rewrite6 { packets, bytes, .. } = rewrite;
        Self { flags, interface, last_seen, decision, packets, bytes }
    }
}

impl<'t> Entry<'t> {
    /// A direction.
    #[inline]
    pub fn side(self, direction: usize) -> Side<'t> {
        if self.class().is_v6() { Side::of6(self.hot6(direction)) } else { Side::of4(self.hot4(direction)) }
    }

    /// The conntrack zone of a direction's tuple. The word that has it lies at one place in both families.
    #[inline]
    pub fn zone(self, direction: usize) -> u16 {
        self.hot4(direction).key_zone()
    }

    /// The IP protocol of its tuples.
    #[inline]
    pub fn proto(self) -> u8 {
        low_word(self.hot4(0)).proto()
    }
}

impl Table {
    /// Whether a direction is one of an IPv6 connection.
    #[inline]
    pub fn is_v6(&self, reference: Reference) -> bool {
        low_word(self.hot4(reference)).0[1] >> 40 & 0xff == u64::from(FAMILY_V6)
    }

    /// A direction.
    #[inline]
    pub fn side(&self, reference: Reference) -> Side<'_> {
        if self.is_v6(reference) { Side::of6(self.hot6(reference)) } else { Side::of4(self.hot4(reference)) }
    }

    /// Asks for both hot lines of a direction of an IPv6 connection.
    #[inline(always)]
    pub fn prefetch_hot6(&self, reference: Reference) {
        self.prefetch_line(reference.line());
        self.prefetch_line(reference.line() + 1);
    }

    /// Asks for the TCP line of an IPv6 TCP connection.
    #[inline(always)]
    pub fn prefetch_tcp6(&self, reference: Reference) {
        let back = if reference.is_reply() { Class::Tcp6.hot_lines() } else { 0 };
        self.prefetch_line(reference.line() + Class::Tcp6.tcp_at() - back);
    }

    /// As [`Table::find4`], of either family.
    #[inline]
    pub fn find_hashed(&self, hash: u64, key: &Key) -> Option<Reference> {
        match key {
            Key::V4(key) => self.find4(hash, key),
            Key::V6(key) => self.find6(hash, key),
        }
    }
}

/// Ports, protocol, family and zone: the second word of a line, whatever its family.
#[inline]
fn low_word(hot: &Hot4) -> Key4 {
    Key4([0, hot.key[1].load(Ordering::Relaxed)])
}

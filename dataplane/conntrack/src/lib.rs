//! How connections of each protocol live: states, timeouts, and what a packet changes.
//!
//! # Overview
//!
//! Pure functions over values and over the TCP line of a connection; no table, no clock, no packets beyond a slice
//! of the L4 header. The caller owns the connection, looks it up, and carries out what is returned: refreshes its
//! time stamp, stores its timeout and status, counts, and writes events.
//!
//! # Life-cycle
//!
//! A first packet asks [`tcp::open`], [`udp::first`], [`icmp::opens`] or [`generic::first`]; each later one
//! [`tcp::step`] or the `packet` function of its protocol. Behaviour and defaults are those of the Linux kernel.
//!
//! # Synchronisation
//!
//! A connection's owner alone calls these functions; atomics are loaded and stored relaxed.
#![forbid(unsafe_code)]

pub mod generic;
pub mod icmp;
pub mod tcp;
mod timeouts;
pub mod udp;

pub use timeouts::Timeouts;

use erhu_planes::connections::status;

/// What a packet of a protocol without states does to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refresh {
    /// Whether the connection's time stamp becomes now. The packet is counted either way.
    pub refresh: bool,
    /// The idle timeout from now on, in ticks; to be stored if `refresh` is set.
    pub timeout: u32,
    /// Status bits that were not set and are now. Not empty means an UPDATE event.
    pub set_status: u32,
    /// Once this result is stored, further packets of this direction change nothing but counters and the time stamp,
    /// until a packet of either direction sets a status bit or changes the timeout.
    pub steady: bool,
}

/// The status bit that an accepted packet of a direction (0 original, 1 reply) sets, if it is not set yet.
#[inline]
const fn newly_replied(status: u32, dir: usize) -> u32 {
    if dir == 0 { 0 } else { status::SEEN_REPLY & !status }
}

/// Every packet refreshes with one timeout, an answer sets SEEN_REPLY: the rule of protocols that are only watched.
#[inline]
const fn watch(status: u32, dir: usize, timeout: u32) -> Refresh {
    let fixed = status & status::FIXED_TIMEOUT != 0;
    Refresh { refresh: !fixed, timeout, set_status: newly_replied(status, dir), steady: !fixed }
}

//! What joins erhu's two planes: shared-memory layouts, the rule program, the control protocol.
//!
//! # Overview
//!
//! The dataplane creates an instance's folder and writes `stats`, `connections` and `events` in it;
//! whoever may watch maps them read-only. The control plane sends rule programs (in sealed memfds) and
//! commands over the folder's Unix socket. Neither side trusts the other's bytes: every region opens with
//! a [`region::RegionHeader`] that is checked on attaching, every program is decoded and validated before
//! use.
//!
//! # Synchronisation
//!
//! Everything in a region is an atomic word with one writer. Words that belong together are published
//! by a version word; see [`connections`] for connections and [`events`] for events.

pub mod connections;
pub mod events;
pub mod instance;
pub mod program;
pub mod protocol;
pub mod reason;
pub mod region;
pub mod sizing;
pub mod stats;
pub mod timeouts;
pub mod tuple;

pub use reason::{Counter, DropReason};
pub use tuple::Tuple;

/// Ticks per second of the coarse clock that deadlines and time stamps of connections use.
///
/// A `u32` of them lasts 8.5 years of uptime; a deadline is late by one tick at most, never early.
pub const TICKS_PER_SECOND: u32 = 16;

/// The largest number of workers that the layouts provide for.
pub const MAX_WORKERS: usize = 64;
/// The largest number of ports that the layouts provide for.
pub const MAX_PORTS: usize = 64;

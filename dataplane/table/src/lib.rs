//! The connection table: one slab and one index for all workers.
//!
//! # Overview
//!
//! A connection is an *entry* of a few cache lines in the shared slab ([`erhu_planes::connections`]) and two entries
//! of the *index*, one per direction. The index is an array of one-line buckets: eight tags that are compared at once
//! and eight [`Reference`]s. An established packet touches its bucket and its direction's hot line, and both can be
//! prefetched a burst ahead: [`Table::prefetch_bucket`], [`Table::candidate`], [`Table::prefetch_hot`],
//! [`Table::matches4`].
//!
//! # Life-cycle of an entry
//!
//! ```text
//! WorkerTable::alloc     Slot: reserved, blank; the owner writes keys, rewrites, state
//!   Table::insert        both tuples are in the index, or neither (then WorkerTable::discard)
//!   Entry::publish       readers outside see it from here
//!   Wheel::arm           … and its time runs
//! Wheel::advance         its time is over; or it ends for another reason (then Wheel::disarm)
//!   Table::remove        no look-up finds it any more
//!   WorkerTable::retire  readers outside see it no more; reusable when every worker has passed a quiescent state
//! ```
//!
//! # Synchronisation
//!
//! An entry is written by the worker that allocated it, and by nobody else. Buckets are locked to insert and to
//! remove, for some tens of instructions; look-ups take no lock and write nothing. What a look-up found stays what it
//! was until the thread that looked up is quiescent, so every such thread must be registered with the table's
//! [`Quiescence`] (a worker's first [`WorkerTable::quiesce`] does that).
//!
//! # Unsafe code
//!
//! Three promises, each with its reason where it is kept: the index memory is mapped once and valid while it is used;
//! a line of the slab is inside of the mapping whatever its number (numbers are clamped); a bucket number computed
//! from a hash is below the number of buckets. All shared words are atomics, so a wrong number can find wrong
//! *values*, never undefined behaviour.

mod apart;
mod hash;
mod index;
#[cfg(not(feature = "loom"))]
mod memory;
#[cfg(all(test, feature = "loom"))]
mod models;
mod prefetch;
mod quiescence;
mod side;
mod sync;
mod table;
mod wheel;
mod worker;

pub use apart::Apart;
pub use index::{Conflict, Index};
pub use prefetch::prefetch_line;
pub use quiescence::{Grace, Quiescence};
pub use side::Side;
pub use table::{Entry, HugePages, ORIGINAL, REPLY, Reference, Table, TableError, Taken};
pub use wheel::Wheel;
pub use worker::{Slot, WorkerTable};

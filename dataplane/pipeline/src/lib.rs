//! A packet's way through the dataplane.
//!
//! # Overview
//!
//! A [`Worker`] takes bursts of packets from its queues and decides each: [`Worker::receive`] reads as the packet's
//! itinerary. Established packets stay on the fast path (`fast`); everything else (first packets, oddities, errors,
//! packets for the router) takes the slow path (`slow`, `open`, `related`, `local`). Workers share a [`Shared`];
//! a [`Control`] adopts rule programs and answers requests on the main thread.
//!
//! # Synchronisation
//!
//! A connection is written by the worker that owns it. Packets that reach another worker are handed to the owner.
//! Policies are immutable and replaced by pointer between bursts.
//!
//! Time and packets come in as arguments, so the same code runs on NICs, on pcap vdevs and under a virtual clock.
#![forbid(unsafe_code)]

mod admission;
mod again;
mod ahead;
mod buffer;
mod control;
mod destination;
mod discovery;
mod ending;
mod fast;
mod fast6;
mod jobs;
mod judge;
mod link;
mod local;
mod loops;
mod meta;
pub mod neighbour;
mod open;
pub mod policy;
mod rate;
mod related;
pub mod rss;
mod shared;
mod slow;
pub mod steering;
mod tally;
mod track;
mod usual;
mod waiting;
mod worker;

pub use buffer::{Buffer, Buffers, HEADROOM, Heap, HeapBuffer};
pub use control::{Control, Pending, Steering};
pub use shared::{BATCH, Batch, Handed, Job, JobKind, Shared};
pub use tally::Tally;
pub use worker::{BURST, Now, Worker};

//! Replay, scenarios, live topologies, differential tests and benchmarks for erhu.
//!
//! [`pcap`] and [`merge`] read and write captures. [`packet`] builds frames for tests and reads frames back; it shares
//! no code with the router, so that it can judge it. [`scenario`] is what the tests in `tests/` are written in: a rule
//! script, timed packets, and what must leave where. [`kernel`] runs the same packets through Linux, [`netns`] makes
//! the network namespaces that it and the live tests need; [`nic`] stands in for a port that spreads packets over
//! workers. [`mod@bench`] measures the router. [`audit`] says after any of this whether the router's memory agrees with
//! itself.

#![forbid(unsafe_code)]

pub mod audit;
pub mod bench;
pub mod demo;
pub mod kernel;
pub mod merge;
pub mod netns;
pub mod nic;
pub mod packet;
pub mod pcap;
pub mod processes;
pub mod random;
pub mod replay;
pub mod scenario;

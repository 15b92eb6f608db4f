//! DPDK's ports, queues, memory pools and packets as owned, safe types.
//!
//! # Overview
//!
//! An [`Eal`] is DPDK initialised, once per process. From it come [`Mempool`]s (packet memory) and
//! [`Port`]s. A configured port that is started hands out its [`RxQueue`]s and [`TxQueue`]s; each is
//! owned by one worker, `Send` and not `Clone`. Queues move [`Mbuf`]s, owned packets that go back to
//! their pool when dropped, in bursts ([`MbufArray`], or plain slices of `Option<Mbuf>`).
//!
//! Workers are the program's own threads: they pin themselves and hold a [`ThreadGuard`] so that
//! DPDK keeps a packet cache for them.
//!
//! # Life-cycle
//!
//! Ports, pools, queues and thread guards each keep the EAL alive. A port stops and closes when its
//! handle and its last queue are gone. Pools live as long as the EAL: an `Mbuf` carries no reference
//! count, so no earlier moment is provably safe. The EAL is cleaned up when the last of them is
//! gone, on the thread that initialised it, if every packet is back in its pool; otherwise its
//! memory stays mapped until the process ends, and [`Eal::end`] says so.
//!
//! # Limits
//!
//! One process uses DPDK as a primary process. Packets are not cloned or attached, so an `Mbuf` is
//! always the only owner of its buffers.

mod burst;
mod eal;
mod error;
mod mbuf;
mod pool;
mod port;
mod queue;
mod rss;

pub use burst::{MbufArray, free_all};
pub use eal::{Eal, EalArgs, ThreadGuard, dpdk_version, log_to_stderr, runtime_dir, ticks, ticks_per_second};
pub use error::Error;
pub use mbuf::{Checksum, Mbuf, Segments};
pub use pool::{Mempool, PoolConfig};
pub use port::{Link, Port, PortConfig, PortId, PortInfo, PortStats, Queues, SinglePool};
pub use queue::{RxQueue, TxQueue};
pub use rss::{RssCapability, RssConfig, RssHash};

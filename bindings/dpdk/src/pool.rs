//! Packet memory.

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::{Arc, PoisonError};

use rte_sys as sys;

use crate::eal::{Eal, EalInner, PoolPointer};
use crate::error::{Error, last_errno, words};
use crate::mbuf::Mbuf;

/// Bytes of `struct rte_mbuf`, the two cache lines before a buffer. Asserted below.
const MBUF_BYTES: u32 = 128;
const _: () = assert!(size_of::<sys::rte_mbuf>() == MBUF_BYTES as usize);

/// Bytes of an ordinary page. Without huge pages no packet crosses one.
const PAGE_BYTES: usize = 4096;

/// Room in the packet buffers where nothing else is asked for: a frame of 1518 bytes with its VLAN
/// tags, and 128 bytes of headroom.
const DEFAULT_BUFFER_BYTES: u16 = 2176;
const _: () = assert!(DEFAULT_BUFFER_BYTES as u32 == sys::RTE_MBUF_DEFAULT_BUF_SIZE);

/// Bytes before the data of a fresh packet.
const HEADROOM_BYTES: u16 = 128;
const _: () = assert!(HEADROOM_BYTES as u32 == sys::RTE_PKTMBUF_HEADROOM);

/// The shape of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// Unique in the process; at most 25 bytes.
    pub name: String,
    /// Packets. One less than a power of two wastes no ring slot.
    pub packets: u32,
    /// Packets each thread keeps for itself; at most 512, and two thirds of `packets`.
    pub cache: u32,
    /// Bytes of a buffer, the 128 of headroom included.
    pub buffer_bytes: u16,
    /// NUMA node, or any.
    pub numa_node: Option<u16>,
}

impl PoolConfig {
    /// `packets` packets of 2048 bytes after the headroom, 256 of them cached per thread.
    pub fn new(name: impl Into<String>, packets: u32) -> Self {
        Self {
            name: name.into(),
            packets,
            cache: 256.min(packets / 2),
            buffer_bytes: DEFAULT_BUFFER_BYTES,
            numa_node: None,
        }
    }

    /// As many packets as `bytes` of memory hold, in the kind of pages the EAL has.
    pub fn from_memory(eal: &Eal, name: impl Into<String>, bytes: u64) -> Self {
        let mut config = Self::new(name, 0);
        let per_packet = config.bytes_per_packet(eal.has_huge_pages());
        config.packets = u32::try_from(bytes / per_packet).unwrap_or(u32::MAX);
        config.cache = 256.min(config.packets / 2);
        config
    }

    /// Memory one packet takes, in bytes, management included.
    fn bytes_per_packet(&self, huge_pages: bool) -> u64 {
        let element = MBUF_BYTES + u32::from(self.buffer_bytes);
        // SAFETY: pure arithmetic; a null third argument means no details are wanted.
        let object = unsafe { sys::rte_mempool_calc_obj_size(element, 0, std::ptr::null_mut()) } as usize;
        let ring_slot = size_of::<usize>() * 2;
        let occupied = if huge_pages {
            object
        } else if object <= PAGE_BYTES {
            PAGE_BYTES / (PAGE_BYTES / object)
        } else {
            object.next_multiple_of(PAGE_BYTES)
        };
        (occupied + ring_slot) as u64
    }
}

/// A pool of packet buffers. `Clone` makes another handle of the same pool.
///
/// Its memory is given back with the EAL's, not with the last handle.
#[derive(Clone)]
pub struct Mempool {
    pub(crate) raw: NonNull<sys::rte_mempool>,
    /// Bytes of a buffer after its headroom.
    data_bytes: u16,
    _eal: Arc<EalInner>,
}

// SAFETY: mempools are made for use from several threads: the ring behind them is multi-producer and
// multi-consumer, and caches are per lcore, which a ThreadGuard keeps unique.
unsafe impl Send for Mempool {}
// SAFETY: as above; no method hands out a reference to what DPDK changes.
unsafe impl Sync for Mempool {}

impl Mempool {
    /// Makes a pool.
    ///
    /// # Errors
    ///
    /// [`Error::Pool`] when memory is short, the name taken or the cache too large.
    pub fn new(eal: &Eal, config: &PoolConfig) -> Result<Self, Error> {
        let refuse = |reason: String| Error::Pool { name: config.name.clone(), reason };
        if config.packets == 0 {
            return Err(refuse("no room for a single packet".to_owned()));
        }
        if config.buffer_bytes <= HEADROOM_BYTES {
            return Err(refuse(format!("buffers of {} bytes have only headroom", config.buffer_bytes)));
        }
        let name = CString::new(config.name.as_str())?;
        let node = config.numa_node.map_or(-1, i32::from);
        // SAFETY: the EAL is initialised, `name` is a C string; DPDK checks the numbers.
        let raw = unsafe {
            sys::rte_pktmbuf_pool_create(name.as_ptr(), config.packets, config.cache, 0, config.buffer_bytes, node)
        };
        let raw = NonNull::new(raw).ok_or_else(|| {
            refuse(format!("{} packets of {} bytes: {}", config.packets, config.buffer_bytes, words(last_errno())))
        })?;
        eal.inner.pools.lock().unwrap_or_else(PoisonError::into_inner).push(PoolPointer(raw));
        let data_bytes = config.buffer_bytes.saturating_sub(HEADROOM_BYTES);
        Ok(Self { raw, data_bytes, _eal: Arc::clone(&eal.inner) })
    }

    /// An empty packet with 128 bytes of headroom, or `None` when the pool is exhausted.
    #[inline]
    pub fn take(&self) -> Option<Mbuf> {
        // SAFETY: the pool is alive; the packet it gives is ours alone.
        let raw = unsafe { sys::shim_rte_pktmbuf_alloc(self.raw.as_ptr()) };
        // SAFETY: as above: a fresh, single-segment packet.
        NonNull::new(raw).map(|raw| unsafe { Mbuf::from_raw(raw) })
    }

    /// A packet with a copy of `frame`; `None` when the pool is exhausted or the frame does not fit
    /// one buffer.
    pub fn copy_of(&self, frame: &[u8]) -> Option<Mbuf> {
        let mut packet = self.take()?;
        packet.append(u16::try_from(frame.len()).ok()?)?.copy_from_slice(frame);
        Some(packet)
    }

    /// Fills `slots` with empty packets, all or none; whether it did. Slots are overwritten: what was
    /// in them is freed.
    pub fn take_bulk(&self, slots: &mut [Option<Mbuf>]) -> bool {
        slots.fill_with(|| None);
        let Ok(count) = u32::try_from(slots.len()) else {
            return false;
        };
        // SAFETY: an empty `Option<Mbuf>` is a null pointer and a full one the pointer itself (Mbuf is
        // transparent over NonNull), so `slots` is a writable array of `count` mbuf pointers; all of
        // them are written on success and none on failure.
        count == 0
            || unsafe { sys::shim_rte_pktmbuf_alloc_bulk(self.raw.as_ptr(), slots.as_mut_ptr().cast(), count) == 0 }
    }

    /// Packets that can be taken now. Counts all caches: for display and tests, not for the fast path.
    pub fn available(&self) -> u32 {
        // SAFETY: the pool is alive.
        unsafe { sys::rte_mempool_avail_count(self.raw.as_ptr()) }
    }

    /// Packets out of the pool, in queues or owned by someone. As slow as [`available`](Self::available).
    pub fn in_use(&self) -> u32 {
        // SAFETY: the pool is alive.
        unsafe { sys::rte_mempool_in_use_count(self.raw.as_ptr()) }
    }

    /// Bytes of a received packet that one buffer holds.
    pub fn data_bytes(&self) -> u16 {
        self.data_bytes
    }

    /// Packets there are.
    pub fn capacity(&self) -> u32 {
        // SAFETY: the pool is alive; its size never changes.
        unsafe { (*self.raw.as_ptr()).size }
    }
}

impl Eal {
    /// Shorthand for [`Mempool::new`].
    ///
    /// # Errors
    ///
    /// As [`Mempool::new`].
    pub fn pool(&self, config: &PoolConfig) -> Result<Mempool, Error> {
        Mempool::new(self, config)
    }
}

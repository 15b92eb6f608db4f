//! One packet.

use std::marker::PhantomData;
use std::ptr::NonNull;

use rte_sys as sys;

use crate::pool::Mempool;
use crate::port::PortId;

/// What the NIC found out about a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Checksum {
    /// It was not looked at; verify it.
    Unknown,
    /// It was verified and is wrong.
    Bad,
    /// It was verified and is right.
    Good,
    /// The field is not filled in, but the data is known to be intact: the packet comes from a peer on
    /// this machine that left the checksum to its NIC. It has to be computed before the packet leaves.
    NotFilledIn,
}

/// An owned packet: a chain of one or more buffers of a [`Mempool`], given back when dropped.
///
/// Its bytes are those on the wire, Ethernet header first, FCS absent. Nearly all packets have one
/// segment; where that matters, see [`is_contiguous`](Self::is_contiguous).
#[repr(transparent)]
pub struct Mbuf {
    raw: NonNull<sys::rte_mbuf>,
}

// SAFETY: the packet and its buffers have one owner; freeing one is allowed on every thread.
unsafe impl Send for Mbuf {}
// SAFETY: through `&Mbuf` nothing is written.
unsafe impl Sync for Mbuf {}

// `Option<Mbuf>` stands for a nullable `*mut rte_mbuf` in arrays passed to DPDK.
const _: () = assert!(size_of::<Option<Mbuf>>() == size_of::<*mut sys::rte_mbuf>());

impl Mbuf {
    /// Takes over a packet.
    ///
    /// # Safety
    ///
    /// `raw` is the head of a valid chain whose segments all have a reference count of one and direct
    /// buffers, from a pool that lives as long as the EAL. Nobody else uses it any more.
    #[inline]
    pub unsafe fn from_raw(raw: NonNull<sys::rte_mbuf>) -> Self {
        Self { raw }
    }

    /// Gives the packet up. Whoever takes it has to free it.
    #[inline]
    pub fn into_raw(self) -> NonNull<sys::rte_mbuf> {
        let raw = self.raw;
        std::mem::forget(self);
        raw
    }

    /// The packet, still ours.
    #[inline]
    pub fn as_ptr(&self) -> *mut sys::rte_mbuf {
        self.raw.as_ptr()
    }

    /// Reads a field of the head.
    ///
    /// # Safety
    ///
    /// `offset` is one of rte-sys' `MBUF_OFFSET_*` and `T` the type of that field.
    #[inline(always)]
    unsafe fn field<T: Copy>(&self, offset: u32) -> T {
        // SAFETY: the head is valid while we own it; the caller vouches for offset and type, and DPDK
        // aligns its fields naturally.
        unsafe { self.raw.as_ptr().byte_add(offset as usize).cast::<T>().read() }
    }

    /// Writes a field of the head.
    ///
    /// # Safety
    ///
    /// As for [`Self::field`]; and the value keeps the packet valid.
    #[inline(always)]
    unsafe fn set_field<T>(&mut self, offset: u32, value: T) {
        // SAFETY: the head is valid and ours alone; the caller vouches for offset, type and value.
        unsafe { self.raw.as_ptr().byte_add(offset as usize).cast::<T>().write(value) }
    }

    /// Bytes of the first segment.
    #[inline]
    pub fn data(&self) -> &[u8] {
        // SAFETY: offset and type are those of the fields.
        let len = unsafe { self.field::<u16>(sys::MBUF_OFFSET_data_len) };
        // SAFETY: DPDK keeps data_off + data_len within the buffer, which is ours.
        unsafe { std::slice::from_raw_parts(self.start(), usize::from(len)) }
    }

    /// Bytes of the first segment, to change.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: offset and type are those of the fields.
        let len = unsafe { self.field::<u16>(sys::MBUF_OFFSET_data_len) };
        // SAFETY: as in `data`; `&mut self` makes this the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start(), usize::from(len)) }
    }

    #[inline(always)]
    fn start(&self) -> *mut u8 {
        // SAFETY: offsets and types are those of the fields; data_off lies within the buffer.
        unsafe {
            let buffer = self.field::<*mut u8>(sys::MBUF_OFFSET_buf_addr);
            buffer.add(usize::from(self.field::<u16>(sys::MBUF_OFFSET_data_off)))
        }
    }

    /// Asks the CPU to fetch the first cache line of the data (and, before it, reads the head).
    #[inline(always)]
    pub fn prefetch_data(&self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch has no effect but on caches, whatever the address.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(self.start().cast::<i8>());
        }
    }

    /// Asks the CPU to fetch the packet's head, for which nothing needs to be read.
    #[inline(always)]
    pub fn prefetch_head(&self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch has no effect but on caches, whatever the address.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(self.raw.as_ptr().cast::<i8>());
        }
    }

    /// Length of the whole packet in bytes, all segments.
    #[inline]
    pub fn len(&self) -> u32 {
        // SAFETY: offset and type are those of the field.
        unsafe { self.field(sys::MBUF_OFFSET_pkt_len) }
    }

    /// Whether the packet has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Buffers the packet is spread over; at least one.
    #[inline]
    pub fn segment_count(&self) -> u16 {
        // SAFETY: offset and type are those of the field.
        unsafe { self.field(sys::MBUF_OFFSET_nb_segs) }
    }

    /// Whether [`data`](Self::data) is the whole packet.
    #[inline]
    pub fn is_contiguous(&self) -> bool {
        self.segment_count() == 1
    }

    /// Moves all bytes into the first buffer. `false`, and nothing changed, if they do not fit after
    /// its headroom.
    pub fn linearize(&mut self) -> bool {
        // SAFETY: the chain is valid and ours.
        unsafe { sys::shim_rte_pktmbuf_linearize(self.raw.as_ptr()) == 0 }
    }

    /// The packet's bytes, segment by segment.
    pub fn segments(&self) -> Segments<'_> {
        Segments { next: self.raw.as_ptr(), _packet: PhantomData }
    }

    /// A copy in another pool, metadata included; `None` when that is exhausted. It has more segments
    /// than this one where the pool's buffers are smaller.
    pub fn copy_into(&self, pool: &Mempool) -> Option<Self> {
        // SAFETY: the chain is valid, and only read; the pool is alive. The copy is ours alone, and
        // direct, as rte_pktmbuf_copy copies data.
        let raw = unsafe { sys::rte_pktmbuf_copy(self.raw.as_ptr(), pool.raw.as_ptr(), 0, u32::MAX) };
        NonNull::new(raw).map(|raw| Self { raw })
    }

    /// Bytes that [`prepend`](Self::prepend) can still give.
    #[inline]
    pub fn headroom(&self) -> u16 {
        // SAFETY: offset and type are those of the field.
        unsafe { self.field(sys::MBUF_OFFSET_data_off) }
    }

    /// Bytes that [`append`](Self::append) can still give to a contiguous packet.
    #[inline]
    pub fn tailroom(&self) -> u16 {
        // SAFETY: the head is valid.
        unsafe { sys::shim_rte_pktmbuf_tailroom(self.raw.as_ptr()) }
    }

    /// Makes the packet `len` bytes longer at its front and returns them, their content arbitrary.
    /// `None`, and nothing changed, if the headroom is smaller.
    #[inline]
    pub fn prepend(&mut self, len: u16) -> Option<&mut [u8]> {
        // SAFETY: the chain is valid and ours.
        let start = unsafe { sys::shim_rte_pktmbuf_prepend(self.raw.as_ptr(), len) };
        // SAFETY: non-null, it is the start of the first segment, which begins with `len` new bytes.
        NonNull::new(start)
            .map(|start| unsafe { std::slice::from_raw_parts_mut(start.as_ptr().cast(), usize::from(len)) })
    }

    /// Makes the packet `len` bytes longer at its end (of the last segment) and returns them, their
    /// content arbitrary. `None`, and nothing changed, if the tailroom is smaller.
    #[inline]
    pub fn append(&mut self, len: u16) -> Option<&mut [u8]> {
        // SAFETY: the chain is valid and ours.
        let start = unsafe { sys::shim_rte_pktmbuf_append(self.raw.as_ptr(), len) };
        // SAFETY: non-null, it is the start of `len` new bytes at the end of the last segment.
        NonNull::new(start)
            .map(|start| unsafe { std::slice::from_raw_parts_mut(start.as_ptr().cast(), usize::from(len)) })
    }

    /// Removes `len` bytes from the front. `false`, and nothing changed, if the first segment is shorter.
    #[inline]
    #[must_use]
    pub fn adj(&mut self, len: u16) -> bool {
        // SAFETY: the chain is valid and ours.
        unsafe { !sys::shim_rte_pktmbuf_adj(self.raw.as_ptr(), len).is_null() }
    }

    /// Removes `len` bytes from the end. `false`, and nothing changed, if the last segment is shorter.
    #[inline]
    #[must_use]
    pub fn trim(&mut self, len: u16) -> bool {
        // SAFETY: the chain is valid and ours.
        unsafe { sys::shim_rte_pktmbuf_trim(self.raw.as_ptr(), len) == 0 }
    }

    /// Makes the packet `len` bytes long and lets it begin `by` bytes earlier (later, if negative) than it does; what
    /// is new has arbitrary content. `false`, and nothing changed, if the buffer has no room for that, and for packets
    /// that are not contiguous.
    #[inline]
    #[must_use]
    pub fn reframe(&mut self, len: u16, by: i32) -> bool {
        // SAFETY: offset and type are those of the field.
        let room = unsafe { self.field::<u16>(sys::MBUF_OFFSET_buf_len) };
        let Ok(start) = u16::try_from(i32::from(self.headroom()) - by) else { return false };
        if !self.is_contiguous() || start.checked_add(len).is_none_or(|end| end > room) {
            return false;
        }
        // SAFETY: offsets and types are those of the fields; data of one segment, within its buffer.
        unsafe {
            self.set_field::<u16>(sys::MBUF_OFFSET_data_off, start);
            self.set_field::<u16>(sys::MBUF_OFFSET_data_len, len);
            self.set_field::<u32>(sys::MBUF_OFFSET_pkt_len, u32::from(len));
        }
        true
    }

    /// Empties the packet: no data, no metadata, the headroom restored. Further segments stay linked
    /// out of sight, so this is for contiguous packets; `false`, and nothing changed, for others.
    #[inline]
    #[must_use]
    pub fn reset(&mut self) -> bool {
        if !self.is_contiguous() {
            return false;
        }
        // SAFETY: the packet is valid, ours and of one segment.
        unsafe { sys::shim_rte_pktmbuf_reset(self.raw.as_ptr()) };
        true
    }

    /// Port the packet was received on; meaningless for packets taken from a pool.
    #[inline]
    pub fn port(&self) -> PortId {
        // SAFETY: offset and type are those of the field.
        PortId(unsafe { self.field(sys::MBUF_OFFSET_port) })
    }

    /// The NIC's hash of the packet, if it gave one. Toeplitz with the port's key on most NICs.
    #[inline]
    pub fn rss_hash(&self) -> Option<u32> {
        if self.offload_flags() & sys::RTE_MBUF_F_RX_RSS_HASH == 0 {
            return None;
        }
        // SAFETY: offset and type are those of the field's first member.
        Some(unsafe { self.field(sys::MBUF_OFFSET_hash) })
    }

    /// DPDK's `ol_flags`, as they are.
    #[inline]
    pub fn offload_flags(&self) -> u64 {
        // SAFETY: offset and type are those of the field.
        unsafe { self.field(sys::MBUF_OFFSET_ol_flags) }
    }

    /// The IPv4 header's checksum, outermost header.
    #[inline]
    pub fn ip_checksum(&self) -> Checksum {
        match self.offload_flags() & sys::RTE_MBUF_F_RX_IP_CKSUM_MASK {
            sys::RTE_MBUF_F_RX_IP_CKSUM_GOOD => Checksum::Good,
            sys::RTE_MBUF_F_RX_IP_CKSUM_BAD => Checksum::Bad,
            sys::RTE_MBUF_F_RX_IP_CKSUM_NONE => Checksum::NotFilledIn,
            _ => Checksum::Unknown,
        }
    }

    /// The checksum of TCP, UDP or SCTP.
    #[inline]
    pub fn l4_checksum(&self) -> Checksum {
        match self.offload_flags() & sys::RTE_MBUF_F_RX_L4_CKSUM_MASK {
            sys::RTE_MBUF_F_RX_L4_CKSUM_GOOD => Checksum::Good,
            sys::RTE_MBUF_F_RX_L4_CKSUM_BAD => Checksum::Bad,
            sys::RTE_MBUF_F_RX_L4_CKSUM_NONE => Checksum::NotFilledIn,
            _ => Checksum::Unknown,
        }
    }
}

impl Drop for Mbuf {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the chain is valid and ours, and not used again.
        unsafe { sys::shim_rte_pktmbuf_free(self.raw.as_ptr()) };
    }
}

impl std::fmt::Debug for Mbuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mbuf")
            .field("len", &self.len())
            .field("segments", &self.segment_count())
            .field("port", &self.port())
            .finish_non_exhaustive()
    }
}

/// Bytes of a packet, segment by segment.
pub struct Segments<'p> {
    next: *mut sys::rte_mbuf,
    _packet: PhantomData<&'p Mbuf>,
}

impl<'p> Iterator for Segments<'p> {
    type Item = &'p [u8];

    fn next(&mut self) -> Option<&'p [u8]> {
        let raw = NonNull::new(self.next)?;
        // Not dropped: the packet is borrowed, and this is a segment of it.
        let segment = std::mem::ManuallyDrop::new(Mbuf { raw });
        // SAFETY: offset and type are those of the fields of a segment that the borrowed packet keeps
        // alive; data_off + data_len lie within its buffer.
        unsafe {
            self.next = segment.field(sys::MBUF_OFFSET_next);
            let len = usize::from(segment.field::<u16>(sys::MBUF_OFFSET_data_len));
            Some(std::slice::from_raw_parts(segment.start(), len))
        }
    }
}

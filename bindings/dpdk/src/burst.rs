//! Packets in a row, without allocation.

use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::{Deref, DerefMut};

use rte_sys as sys;

use crate::mbuf::Mbuf;

/// Up to `N` packets, in order. What a queue is polled into and sent from.
///
/// Dereferences to a slice of packets. Dropping or clearing it frees them in bulk.
pub struct MbufArray<const N: usize> {
    slots: [MaybeUninit<Mbuf>; N],
    /// Slots before it are initialised, the others are not.
    len: usize,
}

impl<const N: usize> MbufArray<N> {
    /// No packets.
    pub const fn new() -> Self {
        const { assert!(N <= u16::MAX as usize, "DPDK counts bursts in 16 bits") };
        Self { slots: [const { MaybeUninit::uninit() }; N], len: 0 }
    }

    /// Packets there is room for.
    #[inline]
    pub const fn free_slots(&self) -> usize {
        N - self.len
    }

    /// Whether there is no room left.
    #[inline]
    pub const fn is_full(&self) -> bool {
        self.len == N
    }

    /// Adds a packet at the end, or gives it back when there is no room.
    ///
    /// # Errors
    ///
    /// The packet, when the array is full.
    #[inline]
    pub fn push(&mut self, packet: Mbuf) -> Result<(), Mbuf> {
        match self.slots.get_mut(self.len) {
            Some(slot) => {
                slot.write(packet);
                self.len += 1;
                Ok(())
            }
            None => Err(packet),
        }
    }

    /// Takes the last packet.
    #[inline]
    pub fn pop(&mut self) -> Option<Mbuf> {
        self.len = self.len.checked_sub(1)?;
        // SAFETY: slots before the old length are initialised; this one no longer counts.
        Some(unsafe { self.slots.get_unchecked(self.len).assume_init_read() })
    }

    /// Takes all packets, in order. Those the iterator is dropped with are freed.
    #[inline]
    pub fn drain(&mut self) -> Drain<'_, N> {
        let len = std::mem::take(&mut self.len);
        Drain { array: self, next: 0, len }
    }

    /// Frees all packets at once.
    pub fn clear(&mut self) {
        let len = std::mem::take(&mut self.len);
        // SAFETY: the first `len` slots are initialised and no longer count.
        unsafe { free_raw(self.slots.as_mut_ptr().cast(), len) };
    }

    /// Where the free slots begin, for DPDK to write to.
    #[inline]
    pub(crate) fn free_ptr(&mut self) -> *mut *mut sys::rte_mbuf {
        // SAFETY: `len` is at most N, so this stays within the array or one past it.
        unsafe { self.slots.as_mut_ptr().add(self.len).cast() }
    }

    /// Where the packets begin, for DPDK to take from.
    #[inline]
    pub(crate) fn raw_ptr(&mut self) -> *mut *mut sys::rte_mbuf {
        self.slots.as_mut_ptr().cast()
    }

    /// Counts `more` of the free slots as packets.
    ///
    /// # Safety
    ///
    /// The first `more` free slots hold packets that are ours, and there are that many.
    #[inline]
    pub(crate) unsafe fn commit(&mut self, more: usize) {
        debug_assert!(more <= self.free_slots());
        self.len += more;
    }

    /// Forgets the first `count` packets and moves the others up.
    ///
    /// # Safety
    ///
    /// They were given away, and there are that many.
    #[inline]
    pub(crate) unsafe fn forget_first(&mut self, count: usize) {
        debug_assert!(count <= self.len);
        let rest = self.len - count;
        if count > 0 && rest > 0 {
            let base = self.slots.as_mut_ptr();
            // SAFETY: both ranges lie within the first `len` slots; they may overlap.
            unsafe { std::ptr::copy(base.add(count), base, rest) };
        }
        self.len = rest;
    }
}

impl<const N: usize> Default for MbufArray<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Deref for MbufArray<N> {
    type Target = [Mbuf];

    #[inline]
    fn deref(&self) -> &[Mbuf] {
        // SAFETY: the first `len` slots are initialised.
        unsafe { std::slice::from_raw_parts(self.slots.as_ptr().cast(), self.len) }
    }
}

impl<const N: usize> DerefMut for MbufArray<N> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [Mbuf] {
        // SAFETY: the first `len` slots are initialised.
        unsafe { std::slice::from_raw_parts_mut(self.slots.as_mut_ptr().cast(), self.len) }
    }
}

impl<const N: usize> Drop for MbufArray<N> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The packets of an [`MbufArray`], taken one by one.
pub struct Drain<'a, const N: usize> {
    array: &'a mut MbufArray<N>,
    next: usize,
    len: usize,
}

impl<const N: usize> Iterator for Drain<'_, N> {
    type Item = Mbuf;

    #[inline]
    fn next(&mut self) -> Option<Mbuf> {
        if self.next == self.len {
            return None;
        }
        // SAFETY: slots before `len` were initialised when the drain began, and each is read once.
        let packet = unsafe { self.array.slots.get_unchecked(self.next).assume_init_read() };
        self.next += 1;
        Some(packet)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.len - self.next;
        (left, Some(left))
    }
}

impl<const N: usize> ExactSizeIterator for Drain<'_, N> {}

impl<const N: usize> Drop for Drain<'_, N> {
    fn drop(&mut self) {
        let left = self.len - self.next;
        // SAFETY: the slots from `next` to `len` are initialised, and the array counts none of them.
        unsafe { free_raw(self.array.slots.as_mut_ptr().add(self.next).cast(), left) };
    }
}

/// Frees the packets of `slots`, leaving them empty: in runs, so that a pool is visited once for many.
pub fn free_all(slots: &mut [Option<Mbuf>]) {
    for run in slots.chunk_by_mut(|before, after| before.is_some() == after.is_some()) {
        if run.first().is_some_and(Option::is_some) {
            // SAFETY: every slot of the run is a non-null pointer to a packet of ours (see the layout
            // of Option<Mbuf>), forgotten below before anybody can see it again.
            unsafe { free_raw(run.as_mut_ptr().cast(), run.len()) };
            for slot in run {
                let _ = ManuallyDrop::new(slot.take());
            }
        }
    }
}

/// # Safety
///
/// `packets` points to `count` packets that are ours, and are not used again.
unsafe fn free_raw(packets: *mut *mut sys::rte_mbuf, count: usize) {
    if let (1.., Ok(count)) = (count, u32::try_from(count)) {
        // SAFETY: the caller's promise.
        unsafe { sys::rte_pktmbuf_free_bulk(packets, count) };
    }
}

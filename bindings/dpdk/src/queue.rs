//! Receive and transmit queues of a started port.

use std::sync::Arc;

use rte_sys as sys;

use crate::burst::MbufArray;
use crate::mbuf::Mbuf;
use crate::port::{OpenPort, PortId};

/// One receive queue. Owned by one worker: not `Clone`, and polling takes `&mut self`.
pub struct RxQueue {
    port: Arc<OpenPort>,
    queue: u16,
}

/// One transmit queue. Owned by one worker: not `Clone`, and sending takes `&mut self`.
pub struct TxQueue {
    port: Arc<OpenPort>,
    queue: u16,
}

impl RxQueue {
    pub(crate) fn new(port: Arc<OpenPort>, queue: u16) -> Self {
        Self { port, queue }
    }

    /// The port it belongs to.
    #[inline]
    pub fn port(&self) -> PortId {
        self.port.id
    }

    /// Its number within the port.
    #[inline]
    pub fn index(&self) -> u16 {
        self.queue
    }

    /// Moves waiting packets into the free slots of `burst` and returns how many. Never waits.
    ///
    /// Some drivers give none when there is room for fewer than 4 or 32 (vector receive): poll with
    /// 32 free slots or more.
    #[inline]
    pub fn poll<const N: usize>(&mut self, burst: &mut MbufArray<N>) -> usize {
        // A fresh array of at most u16::MAX slots, checked when it was made.
        #[allow(clippy::cast_possible_truncation)]
        let room = burst.free_slots() as u16;
        if room == 0 {
            return 0;
        }
        // SAFETY: `free_ptr` points to `room` writable slots, and DPDK fills at most that many, each
        // with a packet whose ownership passes to us. `&mut self` keeps this the only call in flight on
        // the queue, as rte_eth_rx_burst demands; the port is started as long as the queue exists.
        unsafe {
            let got = sys::shim_rte_eth_rx_burst(self.port.id.0, self.queue, burst.free_ptr(), room);
            burst.commit(usize::from(got));
            usize::from(got)
        }
    }

    /// As [`poll`](Self::poll), into the first slots of a slice. Packets in them are freed first.
    #[inline]
    pub fn poll_slots(&mut self, slots: &mut [Option<Mbuf>]) -> usize {
        for slot in slots.iter_mut() {
            *slot = None;
        }
        let room = u16::try_from(slots.len()).unwrap_or(u16::MAX);
        // SAFETY: as in `poll`; an Option<Mbuf> is a nullable mbuf pointer, and all slots are null.
        let got = usize::from(unsafe {
            sys::shim_rte_eth_rx_burst(self.port.id.0, self.queue, slots.as_mut_ptr().cast(), room)
        });
        for slot in slots.iter_mut().skip(got) {
            // SAFETY: overwritten without a drop: vector drivers store more pointers than they count,
            // and those are not ours.
            unsafe { std::ptr::write(slot, None) };
        }
        got
    }
}

impl TxQueue {
    pub(crate) fn new(port: Arc<OpenPort>, queue: u16) -> Self {
        Self { port, queue }
    }

    /// The port it belongs to.
    #[inline]
    pub fn port(&self) -> PortId {
        self.port.id
    }

    /// Its number within the port.
    #[inline]
    pub fn index(&self) -> u16 {
        self.queue
    }

    /// Hands packets to the port in order and returns how many it took. The others stay in `burst`,
    /// moved to its front. Never waits.
    #[inline]
    pub fn send<const N: usize>(&mut self, burst: &mut MbufArray<N>) -> usize {
        // At most u16::MAX slots, checked when the array was made.
        #[allow(clippy::cast_possible_truncation)]
        let count = burst.len() as u16;
        if count == 0 {
            return 0;
        }
        // SAFETY: `raw_ptr` points to `count` packets of ours; DPDK takes over the first ones, as many
        // as it returns. `&mut self` keeps this the only call in flight on the queue.
        unsafe {
            let sent = sys::shim_rte_eth_tx_burst(self.port.id.0, self.queue, burst.raw_ptr(), count);
            burst.forget_first(usize::from(sent));
            usize::from(sent)
        }
    }

    /// As [`send`](Self::send) for one packet.
    ///
    /// # Errors
    ///
    /// The packet, when the queue is full.
    #[inline]
    pub fn send_one(&mut self, packet: Mbuf) -> Result<(), Mbuf> {
        let mut raw = packet.into_raw();
        // SAFETY: `raw` is one packet of ours, NonNull being a plain pointer; see `send`.
        let sent =
            unsafe { sys::shim_rte_eth_tx_burst(self.port.id.0, self.queue, std::ptr::from_mut(&mut raw).cast(), 1) };
        if sent == 1 {
            return Ok(());
        }
        // SAFETY: not taken, the packet is still ours.
        Err(unsafe { Mbuf::from_raw(raw) })
    }
}

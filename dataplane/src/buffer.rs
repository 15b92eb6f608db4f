//! DPDK's packets as the pipeline's buffers.

use erhu_dpdk::{Checksum, Mbuf, Mempool};
use erhu_pipeline::{Buffer, Buffers};
use erhu_wire::Verify;

/// A packet of one segment.
#[derive(Debug)]
pub struct Packet(Mbuf);

impl Packet {
    /// Takes a received packet; one of several segments is made one, if it fits one buffer.
    pub fn received(mut mbuf: Mbuf) -> Option<Self> {
        (mbuf.is_contiguous() || mbuf.linearize()).then_some(Self(mbuf))
    }

    /// Gives the packet to a port.
    pub fn into_mbuf(self) -> Mbuf {
        self.0
    }
}

impl Buffer for Packet {
    #[inline]
    fn frame(&self) -> &[u8] {
        self.0.data()
    }

    #[inline]
    fn frame_mut(&mut self) -> &mut [u8] {
        self.0.data_mut()
    }

    #[inline]
    fn move_start(&mut self, by: i32) -> bool {
        match u16::try_from(by.unsigned_abs()) {
            Ok(n) if by >= 0 => self.0.prepend(n).is_some(),
            Ok(n) => self.0.adj(n),
            Err(_) => false,
        }
    }

    #[inline]
    fn set_len(&mut self, len: usize) -> bool {
        let now = self.0.data().len();
        if len <= now {
            u16::try_from(now - len).is_ok_and(|n| self.0.trim(n))
        } else {
            u16::try_from(len - now).is_ok_and(|n| self.0.append(n).is_some())
        }
    }

    #[inline]
    fn trust(&self) -> Verify {
        Verify::new(self.0.ip_checksum() == Checksum::Good, self.0.l4_checksum() == Checksum::Good)
    }
}

/// The pool that the router's own packets come from.
pub struct Pool(pub Mempool);

impl Buffers for Pool {
    type Buffer = Packet;

    fn allocate(&mut self) -> Option<Packet> {
        self.0.take().map(Packet)
    }
}

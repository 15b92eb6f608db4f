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
        let now = i32::try_from(self.0.data().len()).unwrap_or(i32::MAX);
        u16::try_from(now.saturating_add(by)).is_ok_and(|len| self.0.reframe(len, by))
    }

    #[inline]
    fn set_len(&mut self, len: usize) -> bool {
        u16::try_from(len).is_ok_and(|len| self.0.reframe(len, 0))
    }

    #[inline(always)]
    fn reframe(&mut self, end: usize, by: i32) -> Option<&mut [u8]> {
        let end = i32::try_from(end).ok()?;
        let len = u16::try_from(end.checked_add(by)?).ok()?;
        self.0.reframe(len, by).then(|| self.0.data_mut())
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

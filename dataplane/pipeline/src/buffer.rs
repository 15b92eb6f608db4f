//! What the pipeline asks of a packet buffer: DPDK mbufs on ports, heap memory in replay and tests.

use erhu_wire::Verify;

/// Bytes of headroom that a received buffer has at least: room for a tag.
pub const HEADROOM: usize = 64;

/// One packet, owned. The frame is contiguous.
pub trait Buffer {
    /// The Ethernet frame without FCS.
    fn frame(&self) -> &[u8];
    /// The same, to write.
    fn frame_mut(&mut self) -> &mut [u8];
    /// Moves the start of the frame: positive grows it into the headroom, negative cuts. `false`, and nothing
    /// changed, where there is no room.
    fn move_start(&mut self, by: i32) -> bool;
    /// Makes the frame `len` bytes long at its end. `false`, and nothing changed, where there is no room.
    fn set_len(&mut self, len: usize) -> bool;
    /// Cuts the frame to `end` bytes, moves its start by `by`, and gives it to write. `None` where there is no room: the
    /// frame is then good for nothing but to be dropped.
    #[inline(always)]
    fn reframe(&mut self, end: usize, by: i32) -> Option<&mut [u8]> {
        let fits = (self.frame().len() == end || self.set_len(end)) && (by == 0 || self.move_start(by));
        fits.then(|| self.frame_mut())
    }
    /// Which checksums whoever received it vouches for.
    fn trust(&self) -> Verify;
}

/// Where packets that the router itself originates come from.
pub trait Buffers {
    /// The buffers that it gives, and that the pipeline takes.
    type Buffer: Buffer;
    /// An empty buffer, or `None` when there is none.
    fn allocate(&mut self) -> Option<Self::Buffer>;
}

/// A buffer in heap memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeapBuffer {
    bytes: Vec<u8>,
    start: usize,
    trust: Trust,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    Nothing,
    Checksums,
}

impl HeapBuffer {
    /// A copy of a frame whose checksums nobody vouches for.
    pub fn new(frame: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(HEADROOM + frame.len().max(1536));
        bytes.resize(HEADROOM, 0);
        bytes.extend_from_slice(frame);
        Self { bytes, start: HEADROOM, trust: Trust::Nothing }
    }

    /// The same, vouched for as by a NIC that found the checksums good.
    pub fn trusted(frame: &[u8]) -> Self {
        Self { trust: Trust::Checksums, ..Self::new(frame) }
    }
}

impl Buffer for HeapBuffer {
    fn frame(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    fn frame_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..).unwrap_or_default()
    }

    fn move_start(&mut self, by: i32) -> bool {
        let Ok(start) = usize::try_from(i64::try_from(self.start).unwrap_or(i64::MAX) - i64::from(by)) else {
            return false;
        };
        let fits = start <= self.bytes.len();
        if fits {
            self.start = start;
        }
        fits
    }

    fn set_len(&mut self, len: usize) -> bool {
        self.bytes.resize(self.start + len, 0);
        true
    }

    fn trust(&self) -> Verify {
        match self.trust {
            Trust::Nothing => Verify::All,
            Trust::Checksums => Verify::TrustBoth,
        }
    }
}

/// Heap buffers without end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heap;

impl Buffers for Heap {
    type Buffer = HeapBuffer;

    fn allocate(&mut self) -> Option<HeapBuffer> {
        Some(HeapBuffer::new(&[]))
    }
}

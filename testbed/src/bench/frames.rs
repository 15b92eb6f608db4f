//! Packet buffers laid out like mbufs, and where they wait for their next use.

use std::collections::VecDeque;

use erhu_pipeline::{BURST, Buffer, Buffers};
use erhu_wire::Verify;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::measure::Source;

/// Frames in use, as the yardstick's loop has them.
const FRAMES: usize = 4096;
/// Frames that the router may take for packets of its own.
const SPARES: usize = 64;
/// Bytes that [`Supply::spares`] maps: whole pages of 2 MiB.
pub const SPARES_MAPPED: usize = (SPARES * size_of::<Memory>()).next_multiple_of(2 << 20);
/// Room before a received frame, as DPDK leaves it.
const HEADROOM: u16 = 128;
/// Bytes behind the header line: with it, the stride of an mbuf of the usual size.
const ROOM: usize = 2240;

/// A buffer in memory: a line that says where the frame is, then the frame's room.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(64))]
struct Memory {
    start: u16,
    len: u16,
    trusted: u8,
    _line: [u8; 59],
    bytes: [u8; ROOM],
}

/// A received frame. Dropping one loses it: a benchmark notices.
#[derive(Debug)]
pub struct Frame(&'static mut Memory);

impl Frame {
    /// Makes it a frame of `len` bytes just received, `trusted` if a NIC vouches for its checksums. Its first bytes are
    /// to be filled; what lies behind them is 0, as nobody writes there but who calls [`Supply::clear`] afterwards.
    #[inline(always)]
    pub fn receive<const N: usize>(&mut self, len: usize, trusted: bool) -> Option<&mut [u8; N]> {
        self.0.start = HEADROOM;
        self.0.len = u16::try_from(len).ok()?;
        self.0.trusted = u8::from(trusted);
        self.0.bytes.get_mut(usize::from(HEADROOM)..)?.first_chunk_mut()
    }

    /// Length, as a port that sends it asks.
    #[inline(always)]
    pub fn len(&self) -> usize {
        usize::from(self.0.len)
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }
}

impl Buffer for Frame {
    #[inline(always)]
    fn frame(&self) -> &[u8] {
        let start = usize::from(self.0.start);
        self.0.bytes.get(start..start + usize::from(self.0.len)).unwrap_or_default()
    }

    #[inline(always)]
    fn frame_mut(&mut self) -> &mut [u8] {
        let start = usize::from(self.0.start);
        self.0.bytes.get_mut(start..start + usize::from(self.0.len)).unwrap_or_default()
    }

    #[inline(always)]
    fn move_start(&mut self, by: i32) -> bool {
        let start = i32::from(self.0.start) - by;
        let (Ok(start), Ok(len)) = (u16::try_from(start), u16::try_from(i32::from(self.0.len) + by)) else {
            return false;
        };
        (self.0.start, self.0.len) = (start, len);
        true
    }

    #[inline(always)]
    fn set_len(&mut self, len: usize) -> bool {
        match u16::try_from(len) {
            Ok(len) if usize::from(self.0.start) + usize::from(len) <= ROOM => {
                self.0.len = len;
                true
            }
            _ => false,
        }
    }

    #[inline(always)]
    fn reframe(&mut self, end: usize, by: i32) -> Option<&mut [u8]> {
        let start = usize::try_from(i32::from(self.0.start) - by).ok()?;
        let len = usize::try_from(i32::try_from(end).ok()? + by).ok()?;
        let frame = self.0.bytes.get_mut(start..start + len)?;
        (self.0.start, self.0.len) = (u16::try_from(start).ok()?, u16::try_from(len).ok()?);
        Some(frame)
    }

    #[inline(always)]
    fn trust(&self) -> Verify {
        if self.0.trusted == 0 { Verify::All } else { Verify::TrustBoth }
    }
}

/// What the router takes for packets of its own.
#[derive(Debug)]
pub struct Spares(Vec<Frame>);

impl Buffers for Spares {
    type Buffer = Frame;

    fn allocate(&mut self) -> Option<Frame> {
        self.0.pop()
    }
}

/// Frames that wait for their next use, in the order in which they came back.
#[derive(Debug)]
pub struct Supply {
    waiting: VecDeque<Frame>,
    made: usize,
    is_huge: bool,
}

impl Supply {
    /// A new pool of frames, on huge pages if there are.
    pub fn new() -> Self {
        Self::of(FRAMES)
    }

    /// A new pool of so many frames.
    pub fn of(frames: usize) -> Self {
        let size = frames * size_of::<Memory>();
        let (bytes, is_huge) = erhu_floor::pages(size);
        let memory = <[Memory]>::mut_from_bytes(bytes.get_mut(..size).unwrap_or_default());
        let mut waiting: VecDeque<Frame> =
            memory.map_or_else(|_| VecDeque::new(), |m| m.iter_mut().map(Frame).collect());
        waiting.reserve(SPARES);
        Self { made: waiting.len(), waiting, is_huge }
    }

    /// Whether the frames lie on reserved huge pages.
    pub fn is_huge(&self) -> bool {
        self.is_huge
    }

    /// The frame that has waited longest.
    #[inline(always)]
    pub fn take(&mut self) -> Option<Frame> {
        self.waiting.pop_front()
    }

    /// Fills up a burst with packets of a source.
    #[inline(always)]
    pub fn fill(&mut self, burst: &mut Vec<Frame>, source: &mut impl Source) {
        while burst.len() < BURST {
            let Some(mut frame) = self.take() else { break };
            source.write(&mut frame);
            burst.push(frame);
        }
    }

    /// Takes a frame back.
    #[inline(always)]
    pub fn give(&mut self, frame: Frame) {
        self.waiting.push_back(frame);
    }

    /// Fills the frames that wait with 0, after a use that wrote more of them than others do.
    pub fn clear(&mut self) {
        self.waiting.iter_mut().for_each(|frame| frame.0.bytes.fill(0));
    }

    /// Frames that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// All frames that wait, for another pool.
    pub fn take_all(&mut self) -> impl Iterator<Item = Frame> + '_ {
        self.waiting.drain(..)
    }

    /// Frames that did not come back since the last call; they are given up.
    pub fn lost(&mut self) -> usize {
        let lost = self.made.saturating_sub(self.waiting.len());
        self.made = self.waiting.len();
        lost
    }

    /// Some frames for the router itself, out of a pool of their own.
    pub fn spares() -> Spares {
        let (bytes, _) = erhu_floor::pages(SPARES * size_of::<Memory>());
        let memory = <[Memory]>::mut_from_bytes(bytes.get_mut(..SPARES * size_of::<Memory>()).unwrap_or_default());
        Spares(memory.map_or_else(|_| Vec::new(), |m| m.iter_mut().map(Frame).collect()))
    }
}

impl Default for Supply {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_the_stride_of_an_mbuf() {
        assert_eq!(size_of::<Memory>(), 2304);
    }

    #[test]
    fn a_frame_grows_into_its_headroom_and_no_further() {
        let mut supply = Supply::new();
        let mut frame = supply.take().unwrap();
        frame.receive::<64>(64, true).unwrap().fill(7);
        assert!(frame.move_start(4) && frame.set_len(100));
        assert_eq!((frame.len(), frame.frame()[4]), (100, 7));
        assert!(frame.move_start(124) && !frame.move_start(1));
        assert_eq!((supply.lost(), supply.lost()), (1, 0));
    }
}

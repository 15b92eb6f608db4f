//! The connection slab as it lies in shared memory.
//!
//! # Overview
//!
//! The region is a header, a segment directory, and segments of 2 MiB. A segment is leased to one worker and holds
//! entries of one [`Class`], back to back. An entry is a few cache lines:
//!
//! ```text
//! Udp4  [ original ][ reply ][ cold ]                        192 bytes
//! Tcp4  [ original ][ reply ][ cold ][ tcp ]                 256
//! Udp6  [ original a ][ b ][ reply a ][ b ][ cold ]          320
//! Tcp6  [ original a ][ b ][ reply a ][ b ][ cold ][ tcp ]   384
//! ```
//!
//! A *line* number counts 64-byte lines from the start of the first segment; an entry is named by its first line. A
//! [`Hot4`] line holds everything that an established packet of that direction needs: its key, what to rewrite, where
//! it goes, and its counters. "Udp" classes serve every protocol that needs no further line.
//!
//! # Synchronisation
//!
//! The owning worker alone writes an entry. `Cold::id` is the version word: 0 while the entry is free or being made,
//! the connection's id (never used twice) while it lives. A reader loads `id` (Acquire), copies, issues an Acquire
//! fence and loads `id` again: equal and not 0 means that identity (keys, zones, id) is whole. Every other word is
//! valid alone.
//!
//! # Limits
//!
//! 2³¹ lines (128 GiB), since index references carry the direction in their lowest bit.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use crate::region::{Expect, Region, RegionError, RegionHeader, RegionKind, Shared, layout_hash};
use crate::tuple::{Key, Key4, Key6, Tuple};

/// Bytes of a line.
pub const LINE: usize = 64;
/// Bytes of a segment: one huge page.
pub const SEGMENT: usize = 2 << 20;
/// Lines of a segment.
pub const SEGMENT_LINES: u32 = 32_768;

/// The kinds of entries. The value is what the segment directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    /// IPv4, no protocol line.
    Udp4 = 1,
    /// IPv4 with a TCP line.
    Tcp4 = 2,
    /// IPv6, no protocol line.
    Udp6 = 3,
    /// IPv6 with a TCP line.
    Tcp6 = 4,
}

impl Class {
    /// All classes.
    pub const ALL: [Self; 4] = [Self::Udp4, Self::Tcp4, Self::Udp6, Self::Tcp6];

    /// The class of a directory byte.
    pub const fn from_u8(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Udp4),
            2 => Some(Self::Tcp4),
            3 => Some(Self::Udp6),
            4 => Some(Self::Tcp6),
            _ => None,
        }
    }

    /// Lines of one entry.
    pub const fn lines(self) -> u32 {
        match self {
            Self::Udp4 => 3,
            Self::Tcp4 => 4,
            Self::Udp6 => 5,
            Self::Tcp6 => 6,
        }
    }

    /// Lines of one direction's hot part.
    pub const fn hot_lines(self) -> u32 {
        if self.is_v6() { 2 } else { 1 }
    }

    /// Whether its addresses are IPv6.
    pub const fn is_v6(self) -> bool {
        matches!(self, Self::Udp6 | Self::Tcp6)
    }

    /// Whether it has a [`TcpLine`].
    pub const fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Tcp6)
    }

    /// Entries that fit into a segment.
    pub const fn per_segment(self) -> u32 {
        SEGMENT_LINES / self.lines()
    }

    /// Offset in lines of the cold line from the first.
    pub const fn cold_at(self) -> u32 {
        2 * self.hot_lines()
    }

    /// Offset in lines of the TCP line from the first; only for classes that have one.
    pub const fn tcp_at(self) -> u32 {
        self.cold_at() + 1
    }
}

/// One direction of an IPv4 connection: key, rewrite, destination, counters. `[O]` written by the owner.
#[repr(C, align(64))]
pub struct Hot4 {
    /// [`Key4`] of the packets of this direction. Fixed while the entry lives.
    pub key: [AtomicU64; 2],
    /// Source (low) and destination (high) address to write, as in the frame.
    pub addresses: AtomicU64,
    /// Low 32 bits: both ports to write, as in the frame (ICMP: the identifier in the low 16). Then 16 bits that are
    /// added to the IP checksum, then 16 for the L4 checksum, as ones' complement sums (RFC 1624, eqn. 3).
    pub ports_deltas: AtomicU64,
    /// Low 32 bits: the generation this rewrite was made under. High: adjacency number, or the drop reason.
    pub decision: AtomicU64,
    /// Tick of the last packet that refreshed the connection in this direction.
    pub last_seen: AtomicU32,
    /// Interface (its number in the dataplane) that packets of this direction come in by.
    pub interface: AtomicU16,
    /// [`flags`].
    pub flags: AtomicU16,
    /// Packets of this direction.
    pub packets: AtomicU64,
    /// Bytes of them: IP total length.
    pub bytes: AtomicU64,
}

impl Hot4 {
    /// The zone of the key.
    #[inline]
    pub fn key_zone(&self) -> u16 {
        Key4([0, self.key[1].load(Ordering::Relaxed)]).zone()
    }
}

/// One direction of an IPv6 connection, first line: identity and decision; as [`Hot4`].
#[repr(C, align(64))]
pub struct Hot6 {
    /// Source address, first half. An IPv4 key has its addresses here.
    pub src_low: AtomicU64,
    /// Ports, protocol, family 6, zone: where an IPv4 key has the same, so that the two never compare equal.
    pub low: AtomicU64,
    /// Source address, second half.
    pub src_high: AtomicU64,
    /// Destination address.
    pub dst: [AtomicU64; 2],
    /// As in [`Hot4`].
    pub decision: AtomicU64,
    /// As in [`Hot4`].
    pub last_seen: AtomicU32,
    /// As in [`Hot4`].
    pub interface: AtomicU16,
    /// As in [`Hot4`].
    pub flags: AtomicU16,
    /// As in [`Hot4`], without an IP checksum delta.
    pub ports_deltas: AtomicU64,
}

/// One direction of an IPv6 connection, second line: what to write, and counters.
#[repr(C, align(64))]
pub struct Rewrite6 {
    /// Source address to write.
    pub src: [AtomicU64; 2],
    /// Destination address to write.
    pub dst: [AtomicU64; 2],
    /// As in [`Hot4`].
    pub packets: AtomicU64,
    /// As in [`Hot4`].
    pub bytes: AtomicU64,
    _reserved: [AtomicU64; 2],
}

/// What the fast path of an established non-TCP packet never touches. `[O]` written by the owner.
#[repr(C, align(64))]
pub struct Cold {
    /// The version word: 0 or the connection's id.
    pub id: AtomicU64,
    /// When it was confirmed, nanoseconds of real time.
    pub created_ns: AtomicU64,
    /// Idle time after which it ends, in ticks from the later `last_seen`. TCP has it in its [`TcpLine`].
    pub timeout: AtomicU32,
    /// [`status`] bits, those of the kernel's `ip_conntrack_status`.
    pub status: AtomicU32,
    /// Connection mark.
    pub mark: AtomicU32,
    /// Packet mark that the first packet came to forward or input with: what these rules see of the connection.
    pub first_mark: AtomicU32,
    /// The mapping that gave its external port, or [`NO_REFERENCE`].
    pub mapping: AtomicU32,
    /// Next entry of the same timer slot.
    pub timer_next: AtomicU32,
    /// Previous entry of the same timer slot, or the slot itself.
    pub timer_prev: AtomicU32,
    /// [`Class`].
    pub class: AtomicU8,
    /// Owning worker.
    pub owner: AtomicU8,
    /// Protocol state for readers: a `TcpState` for TCP, else 0.
    pub state: AtomicU8,
    /// How its external port was chosen; meaning is the dataplane's.
    pub nat_kind: AtomicU8,
    /// Number of the timeout policy.
    pub timeout_policy: AtomicU16,
    /// Interface that original packets leave by.
    pub egress: AtomicU16,
    /// Tick from which a UDP connection that is answered counts as a stream. Set for all: two seconds after the beginning.
    pub stream_from: AtomicU32,
    /// Of a connection whose destination is translated: number of what its owner remembers of that, or
    /// [`NO_REFERENCE`].
    pub detour: AtomicU32,
    /// Packet mark that the first packet came to prerouting with: raw rules may have given it one.
    pub came_mark: AtomicU32,
}

/// What TCP tracking needs: state and windows of both directions, and what decides about an idle connection, so that a
/// packet that changes no state touches neither the cold line nor the other direction's. `[O]` written by the owner.
#[repr(C, align(64))]
pub struct TcpLine {
    /// Per direction: highest sequence number plus length sent.
    pub end: [AtomicU32; 2],
    /// Per direction: highest sequence number that the peer permits.
    pub max_end: [AtomicU32; 2],
    /// Per direction: largest window seen, scaled; 0 while nothing of this direction was seen.
    pub max_window: [AtomicU32; 2],
    /// Per direction: highest acknowledgement sent.
    pub max_ack: [AtomicU32; 2],
    /// Of the last ACK, or of the last packet that was let through: sequence number.
    pub last_seq: AtomicU32,
    /// Likewise: acknowledgement.
    pub last_ack: AtomicU32,
    /// Likewise: sequence number plus length.
    pub last_end: AtomicU32,
    /// Idle time after which the connection ends, in ticks from the later `last_seen`; in place of `Cold::timeout`.
    pub timeout: AtomicU32,
    /// Likewise: window as sent.
    pub last_window: AtomicU16,
    /// Number of the timeout policy, in the generation that the connection was judged under last.
    pub policy: AtomicU16,
    /// Per direction: window scale.
    pub scale: [AtomicU8; 2],
    /// Per direction: tracking flags.
    pub flags: [AtomicU8; 2],
    /// State; the same number as `Cold::state`.
    pub state: AtomicU8,
    /// Direction of the last packet.
    pub last_dir: AtomicU8,
    /// Class of the last packet (SYN, SYN/ACK, FIN, ACK, RST, none).
    pub last_index: AtomicU8,
    /// Times the last ACK was repeated.
    pub retransmissions: AtomicU8,
    /// Flags of the last ignored SYN, and of the opening.
    pub last_flags: AtomicU8,
    /// Window scale of the last ignored SYN.
    pub last_scale: AtomicU8,
    /// What tracking needs of `Cold::status`.
    pub status: AtomicU8,
    /// Number of the tracking mode, likewise of that generation.
    pub mode: AtomicU8,
}

macro_rules! lines {
    ($($name:ident),+) => { $(
        // SAFETY: atomics only; the assertion below shows that there is no padding.
        unsafe impl Shared for $name {}
        const _: () = assert!(size_of::<$name>() == LINE);
    )+ };
}
lines!(Hot4, Hot6, Rewrite6, Cold, TcpLine);
const _: () = assert!(offset_of!(TcpLine, mode) == LINE - 1);
const _: () = assert!(offset_of!(Hot4, flags) == 46 && offset_of!(Hot6, flags) == 54);
const _: () = assert!(offset_of!(Hot4, key) == 0 && offset_of!(Hot6, low) == 8);

/// No connection, mapping or timer.
pub const NO_REFERENCE: u32 = u32::MAX;

/// Bits of `Hot4::flags`.
pub mod flags {
    /// This line is the reply direction.
    pub const REPLY: u16 = 1 << 0;
    /// The connection has ended; the line waits for its grace period.
    pub const DEAD: u16 = 1 << 1;
    /// The entry has a TCP line that every packet must pass.
    pub const TCP: u16 = 1 << 2;
    /// Nothing but counters and `last_seen` changes with a packet of this direction.
    pub const STEADY: u16 = 1 << 3;
    /// Packets are translated.
    pub const TRANSLATE: u16 = 1 << 4;
    /// Packets of this direction must be judged one by one.
    pub const PER_PACKET: u16 = 1 << 5;
    /// Packets of this direction end here, the reason being in `decision`; or go to the router itself.
    pub const NOT_FORWARDED: u16 = 1 << 6;
    /// The decision's adjacency counts this direction among those that hold it.
    pub const HOLDS_ADJACENCY: u16 = 1 << 7;
    /// Where the owning worker's number starts.
    pub const OWNER_SHIFT: u32 = 8;
}

/// Bits of `Cold::status`: the kernel's numbers (`enum ip_conntrack_status`).
pub mod status {
    /// Foreseen by a helper.
    pub const EXPECTED: u32 = 1 << 0;
    /// A packet of the reply direction was seen.
    pub const SEEN_REPLY: u32 = 1 << 1;
    /// Not to be ended early.
    pub const ASSURED: u32 = 1 << 2;
    /// Its first packet left.
    pub const CONFIRMED: u32 = 1 << 3;
    /// The source is translated.
    pub const SRC_NAT: u32 = 1 << 4;
    /// The destination is translated.
    pub const DST_NAT: u32 = 1 << 5;
    /// Source translation was decided.
    pub const SRC_NAT_DONE: u32 = 1 << 7;
    /// Destination translation was decided.
    pub const DST_NAT_DONE: u32 = 1 << 8;
    /// It has ended.
    pub const DYING: u32 = 1 << 9;
    /// Its timeout is not refreshed.
    pub const FIXED_TIMEOUT: u32 = 1 << 10;
}

/// Names of the TCP states by number, as conntrack(8) prints them.
pub const TCP_STATES: [&str; 10] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];

/// Second page of the region: sizes and the id counter.
#[repr(C, align(64))]
pub struct SlabHeader {
    /// `[I]` number of segments.
    pub segments: AtomicU32,
    /// `[I]` connections that may live at once.
    pub capacity: AtomicU32,
    /// `[W]` last id given; ids start at 1. Workers take them in blocks with fetch-add.
    pub last_id: AtomicU64,
    /// `[W]` current tick, stored by workers about once per tick, for readers that print time left.
    pub now_tick: AtomicU32,
    _pad: AtomicU32,
    /// `[W]` real time in nanoseconds at `now_tick`.
    pub now_ns: AtomicU64,
    _reserved: [AtomicU64; 4],
}
// SAFETY: atomics only.
unsafe impl Shared for SlabHeader {}
const _: () = assert!(size_of::<SlabHeader>() == 64);

/// One segment's directory entry. A line each: the owner counts every opening and ending in it, and looks at the class
/// for most packets of TCP.
#[repr(C, align(64))]
pub struct SegmentEntry {
    /// [`Class`], 0 while free. Stored (Release) after the pages were taken and zeroed.
    pub class: AtomicU8,
    /// Worker that leases it.
    pub owner: AtomicU8,
    _pad: AtomicU16,
    /// `[O]` entries in use, for readers.
    pub used: AtomicU32,
    _reserved: [AtomicU64; 7],
}
// SAFETY: atomics only.
unsafe impl Shared for SegmentEntry {}
const _: () = assert!(size_of::<SegmentEntry>() == LINE);

const SLAB_HEADER_AT: usize = 64;
const DIRECTORY_AT: usize = 4096;

/// What a connections region must say to be accepted.
pub const EXPECT: Expect = Expect {
    kind: RegionKind::Connections,
    layout_version: 3,
    layout_hash: layout_hash(&[
        size_of::<RegionHeader>(),
        size_of::<SegmentEntry>(),
        SEGMENT,
        DIRECTORY_AT,
        offset_of!(Hot4, decision),
        offset_of!(Hot4, packets),
        offset_of!(Hot6, decision),
        offset_of!(Cold, status),
        offset_of!(Cold, class),
        offset_of!(Cold, egress),
        offset_of!(TcpLine, last_seq),
        offset_of!(TcpLine, timeout),
        offset_of!(TcpLine, state),
        offset_of!(SlabHeader, now_ns),
    ]),
};

/// Where things are in a region with that many segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabLayout {
    /// Number of segments.
    pub segments: u32,
}

impl SlabLayout {
    /// Enough segments for `capacity` connections of any class mix, spread over `workers` workers: each worker may
    /// have one segment of each class partly filled.
    pub fn for_capacity(capacity: u32, workers: usize) -> Self {
        let full = u64::from(capacity) * u64::from(Class::Tcp6.lines());
        let segments = full.div_ceil(u64::from(SEGMENT_LINES)) + (workers.max(1) * Class::ALL.len()) as u64;
        Self { segments: u32::try_from(segments).unwrap_or(u32::MAX).min(u32::MAX / 2 / SEGMENT_LINES) }
    }

    /// Byte offset of the first segment: behind header and directory, on a huge-page boundary.
    pub fn first_segment(self) -> usize {
        (DIRECTORY_AT + self.segments as usize * size_of::<SegmentEntry>()).next_multiple_of(SEGMENT)
    }

    /// Bytes of the whole region.
    pub fn size(self) -> usize {
        self.first_segment() + self.segments as usize * SEGMENT
    }
}

/// A mapped connections region, for its writer and its readers alike.
#[derive(Debug)]
pub struct ConnectionsRegion {
    region: Region,
    layout: SlabLayout,
    first: usize,
}

impl ConnectionsRegion {
    /// Prepares a fresh region of [`SlabLayout::size`] bytes and publishes its header.
    ///
    /// # Errors
    /// If header and directory cannot be backed.
    pub fn create(region: Region, layout: SlabLayout, capacity: u32, instance_id: u64) -> Result<Self, RegionError> {
        region.allocate(0, layout.first_segment())?;
        let this = Self { first: layout.first_segment(), region, layout };
        this.slab().segments.store(layout.segments, Ordering::Relaxed);
        this.slab().capacity.store(capacity, Ordering::Relaxed);
        this.region.publish_header(&EXPECT, instance_id);
        Ok(this)
    }

    /// Takes an attached region ([`Region::attach`] with [`EXPECT`]) and checks its sizes.
    ///
    /// # Errors
    /// [`RegionError::OutOfBounds`] if the directory does not fit the file.
    pub fn attached(region: Region) -> Result<Self, RegionError> {
        let slab: &SlabHeader = region.get(SLAB_HEADER_AT)?;
        let layout = SlabLayout { segments: slab.segments.load(Ordering::Relaxed).min(u32::MAX / 2 / SEGMENT_LINES) };
        region.slice::<SegmentEntry>(DIRECTORY_AT, layout.segments.max(1) as usize)?;
        if layout.size() != region.len() {
            return Err(RegionError::OutOfBounds {
                path: "connections".into(),
                offset: 0,
                len: layout.size(),
                size: region.len(),
            });
        }
        Ok(Self { first: layout.first_segment(), region, layout })
    }

    /// The mapping itself.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Sizes.
    pub fn layout(&self) -> SlabLayout {
        self.layout
    }

    /// The slab's own header.
    pub fn slab(&self) -> &SlabHeader {
        self.region.get(SLAB_HEADER_AT).expect("checked when the region was made")
    }

    /// The segment directory.
    pub fn directory(&self) -> &[SegmentEntry] {
        self.region.slice(DIRECTORY_AT, self.layout.segments as usize).expect("checked when the region was made")
    }

    /// Byte offset of a line in the region.
    pub fn offset_of_line(&self, line: u32) -> usize {
        self.first + line as usize * LINE
    }

    /// A line as the kind of line that it is.
    ///
    /// # Errors
    /// [`RegionError::OutOfBounds`] for a line beyond the last segment.
    pub fn line<T: Shared>(&self, line: u32) -> Result<&T, RegionError> {
        debug_assert_eq!(size_of::<T>(), LINE);
        self.region.get(self.offset_of_line(line))
    }

    /// Reads the entry that starts at a line, if it lives and was not changed meanwhile. Never waits.
    pub fn read(&self, class: Class, line: u32) -> Option<Connection> {
        let cold: &Cold = self.line(line + class.cold_at()).ok()?;
        // Acquire; pairs with the Release that publishes the id once everything else is written.
        let id = cold.id.load(Ordering::Acquire);
        let relaxed = Ordering::Relaxed;
        // Another class: the segment was given back and leased anew since the directory was read.
        if id == 0 || cold.class.load(relaxed) != class as u8 {
            return None;
        }
        let direction = |number: u32| -> Option<Direction> {
            let at = line + number * class.hot_lines();
            if class.is_v6() {
                let (hot, rewrite): (&Hot6, &Rewrite6) = (self.line(at).ok()?, self.line(at + 1).ok()?);
                let pair = |w: &[AtomicU64; 2]| [w[0].load(relaxed), w[1].load(relaxed)];
                Some(Direction {
                    tuple: Key::V6(Key6 {
                        src: [hot.src_low.load(relaxed), hot.src_high.load(relaxed)],
                        dst: pair(&hot.dst),
                        low: hot.low.load(relaxed),
                    })
                    .tuple(),
                    packets: rewrite.packets.load(relaxed),
                    bytes: rewrite.bytes.load(relaxed),
                    last_seen: hot.last_seen.load(relaxed),
                    interface: hot.interface.load(relaxed),
                    flags: hot.flags.load(relaxed),
                })
            } else {
                let hot: &Hot4 = self.line(at).ok()?;
                Some(Direction {
                    tuple: Key::V4(Key4([hot.key[0].load(relaxed), hot.key[1].load(relaxed)])).tuple(),
                    packets: hot.packets.load(relaxed),
                    bytes: hot.bytes.load(relaxed),
                    last_seen: hot.last_seen.load(relaxed),
                    interface: hot.interface.load(relaxed),
                    flags: hot.flags.load(relaxed),
                })
            }
        };
        let timeout = match class.is_tcp() {
            true => &self.line::<TcpLine>(line + class.tcp_at()).ok()?.timeout,
            false => &cold.timeout,
        };
        let connection = Connection {
            line,
            id,
            class,
            original: direction(0)?,
            reply: direction(1)?,
            created_ns: cold.created_ns.load(relaxed),
            timeout: timeout.load(relaxed),
            status: cold.status.load(relaxed),
            mark: cold.mark.load(relaxed),
            state: cold.state.load(relaxed),
            owner: cold.owner.load(relaxed),
        };
        fence(Ordering::Acquire);
        (cold.id.load(relaxed) == id).then_some(connection)
    }

    /// Walks the slab in order from a place (0 at first): up to `steps` entries are looked at, `each` gets the living
    /// ones. Returns where to go on, or `None` at the end.
    pub fn walk(&self, from: Cursor, steps: u32, mut each: impl FnMut(Connection)) -> Option<Cursor> {
        let mut cursor = from;
        let directory = self.directory();
        for _ in 0..steps.max(1) {
            let class = loop {
                let entry = directory.get(cursor.segment as usize)?;
                // Acquire; pairs with the Release of the lease.
                match Class::from_u8(entry.class.load(Ordering::Acquire)) {
                    Some(class) if cursor.index < class.per_segment() => break class,
                    _ => cursor = Cursor { segment: cursor.segment + 1, index: 0 },
                }
            };
            let line = cursor.segment * SEGMENT_LINES + cursor.index * class.lines();
            if let Some(connection) = self.read(class, line) {
                each(connection);
            }
            cursor.index += 1;
        }
        Some(cursor)
    }

    /// Every living connection, in slab order.
    pub fn for_each(&self, mut each: impl FnMut(Connection)) {
        let mut cursor = Some(Cursor::default());
        while let Some(from) = cursor {
            cursor = self.walk(from, 4096, &mut each);
        }
    }
}

/// A place in the slab.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Segment number.
    pub segment: u32,
    /// Entry number in it.
    pub index: u32,
}

/// A copy of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direction {
    /// Tuple with zone.
    pub tuple: Tuple,
    /// Packets.
    pub packets: u64,
    /// Bytes: IP total length.
    pub bytes: u64,
    /// Tick of the last refreshing packet.
    pub last_seen: u32,
    /// Interface number.
    pub interface: u16,
    /// [`flags`].
    pub flags: u16,
}

/// A copy of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// First line.
    pub line: u32,
    /// Id, never 0.
    pub id: u64,
    /// Class.
    pub class: Class,
    /// Original direction.
    pub original: Direction,
    /// Reply direction.
    pub reply: Direction,
    /// Nanoseconds of real time.
    pub created_ns: u64,
    /// Ticks.
    pub timeout: u32,
    /// [`status`] bits.
    pub status: u32,
    /// Connection mark.
    pub mark: u32,
    /// TCP state number, else 0.
    pub state: u8,
    /// Owning worker.
    pub owner: u8,
}

impl Connection {
    /// Tick at which it ends if nothing refreshes it.
    pub fn deadline(&self) -> u64 {
        u64::from(self.original.last_seen.max(self.reply.last_seen)) + u64::from(self.timeout)
    }

    /// Whole seconds left at a tick, rounded down as the kernel prints them; 0 if due.
    pub fn seconds_left(&self, now_tick: u32) -> u64 {
        self.deadline().saturating_sub(u64::from(now_tick)) / u64::from(crate::TICKS_PER_SECOND)
    }

    /// Whether a [`status`] bit is set.
    pub fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> ConnectionsRegion {
        let layout = SlabLayout::for_capacity(100, 1);
        ConnectionsRegion::create(Region::anonymous("connections", layout.size()).unwrap(), layout, 100, 1).unwrap()
    }

    #[test]
    fn a_reader_sees_an_entry_only_between_its_id_and_its_end() {
        let writer = region();
        writer.region().allocate(writer.offset_of_line(0), SEGMENT).unwrap();
        let reader = ConnectionsRegion::attached(writer.region().reattach(&EXPECT).unwrap()).unwrap();
        let tuple = Tuple {
            src: "10.0.0.1".parse().unwrap(),
            dst: "10.0.0.2".parse().unwrap(),
            sport: 1,
            dport: 2,
            proto: 17,
            zone: 9,
        };
        for (line, tuple) in [(3, tuple), (4, tuple.reversed().unwrap())] {
            let Key::V4(key) = Key::from(&tuple) else { unreachable!() };
            let hot: &Hot4 = writer.line(line).unwrap();
            hot.key[0].store(key.0[0], Ordering::Relaxed);
            hot.key[1].store(key.0[1], Ordering::Relaxed);
        }
        assert_eq!(reader.read(Class::Udp4, 3), None);
        let cold: &Cold = writer.line(5).unwrap();
        cold.class.store(Class::Udp4 as u8, Ordering::Relaxed);
        cold.id.store(77, Ordering::Release);
        let mut seen = Vec::new();
        reader.for_each(|c| seen.push(c));
        assert!(seen.is_empty(), "the segment is not leased yet");
        writer.directory()[0].class.store(Class::Udp4 as u8, Ordering::Release);
        reader.for_each(|c| seen.push(c));
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].id, seen[0].original.tuple, seen[0].line), (77, tuple, 3));
        cold.id.store(0, Ordering::Release);
        assert_eq!(reader.read(Class::Udp4, 3), None);
    }

    #[test]
    fn a_file_of_another_size_than_its_directory_says_is_refused() {
        let writer = region();
        writer.slab().segments.store(1, Ordering::Relaxed);
        assert!(ConnectionsRegion::attached(writer.region().reattach(&EXPECT).unwrap()).is_err());
        writer.slab().segments.store(u32::MAX, Ordering::Relaxed);
        assert!(ConnectionsRegion::attached(writer.region().reattach(&EXPECT).unwrap()).is_err());
    }

    #[test]
    fn lines_beyond_the_end_are_errors() {
        assert!(region().line::<Cold>(u32::MAX).is_err());
    }
}

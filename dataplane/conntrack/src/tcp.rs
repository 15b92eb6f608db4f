//! TCP as seen from between the hosts: the kernel's state table and the rules around it.
//!
//! # Life-cycle
//!
//! [`open`] judges a first packet and fills the connection's [`TcpLine`]; [`step`] takes every later one, stores what
//! it changes in the line, and says what is left to the caller. Sequence windows are not judged: the line's window
//! fields stay 0, but the last packet is remembered as the rules for ignored and repeated packets need it.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use erhu_planes::TICKS_PER_SECOND;
use erhu_planes::connections::TcpLine;
use erhu_planes::connections::status::{ASSURED, FIXED_TIMEOUT, SEEN_REPLY};
use erhu_planes::program::Tracking;
use erhu_planes::timeouts::TimeoutKey;

use crate::{Timeouts, newly_replied};

/// Bits of the header's flags byte (RFC 9293 section 3.1).
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 0x10;
}

/// State of a connection. The numbers are those of `erhu_planes::connections::TCP_STATES` and of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TcpState {
    /// No packet was seen.
    None,
    /// The opener's SYN was seen.
    SynSent,
    /// The SYN/ACK was seen.
    SynRecv,
    /// The handshake is over, or the connection was picked up.
    Established,
    /// The first FIN was seen.
    FinWait,
    /// That FIN was acknowledged.
    CloseWait,
    /// The second FIN was seen.
    LastAck,
    /// Both FINs are acknowledged.
    TimeWait,
    /// A RST was seen.
    Close,
    /// Both sides sent a SYN.
    SynSent2,
}

impl TcpState {
    /// All states in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::None,
        Self::SynSent,
        Self::SynRecv,
        Self::Established,
        Self::FinWait,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Close,
        Self::SynSent2,
    ];

    /// The state with a number; [`TcpState::None`] for a number that is none.
    #[inline]
    pub fn from_u8(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::None)
    }

    const fn timeout(self) -> TimeoutKey {
        match self {
            Self::None | Self::SynSent => TimeoutKey::TcpSynSent,
            Self::SynRecv => TimeoutKey::TcpSynRecv,
            Self::Established => TimeoutKey::TcpEstablished,
            Self::FinWait => TimeoutKey::TcpFinWait,
            Self::CloseWait => TimeoutKey::TcpCloseWait,
            Self::LastAck => TimeoutKey::TcpLastAck,
            Self::TimeWait => TimeoutKey::TcpTimeWait,
            Self::Close => TimeoutKey::TcpClose,
            Self::SynSent2 => TimeoutKey::TcpSynSent2,
        }
    }
}

/// What a packet is to the state table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PacketClass {
    /// SYN without ACK.
    Syn,
    /// SYN with ACK.
    SynAck,
    /// FIN.
    Fin,
    /// ACK without any of the others.
    Ack,
    /// RST, whatever else is set.
    Rst,
    /// None of these flags.
    None,
}

/// The class of a flags byte; RST before SYN before FIN before ACK.
#[inline]
pub const fn classify(flags: u8) -> PacketClass {
    if flags & flag::RST != 0 {
        PacketClass::Rst
    } else if flags & flag::SYN != 0 {
        if flags & flag::ACK != 0 { PacketClass::SynAck } else { PacketClass::Syn }
    } else if flags & flag::FIN != 0 {
        PacketClass::Fin
    } else if flags & flag::ACK != 0 {
        PacketClass::Ack
    } else {
        PacketClass::None
    }
}

/// What tracking reads of one segment. Numbers in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Class of its flags.
    pub class: PacketClass,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number as sent, whether or not ACK is set.
    pub ack: u32,
    /// Sequence number behind its last byte; SYN and FIN count one each.
    pub end: u32,
    /// Window as sent, not scaled.
    pub window: u16,
}

impl Segment {
    /// Reads a segment: the bytes from the start of the TCP header to the end of the IP packet. `None` if the header
    /// does not fit. Checksum and flags are judged elsewhere.
    #[inline]
    pub fn parse(l4: &[u8]) -> Option<Self> {
        let (fixed, _) = l4.split_first_chunk::<20>()?;
        let word = |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let header = usize::from(fixed[12] >> 4) * 4;
        let flags = fixed[13];
        if header < 20 {
            return None;
        }
        let payload = u32::try_from(l4.len().checked_sub(header)?).ok()?;
        let controls = u32::from(flags & flag::SYN != 0) + u32::from(flags & flag::FIN != 0);
        let seq = word(4);
        Some(Self {
            class: classify(flags),
            seq,
            ack: word(8),
            end: seq.wrapping_add(payload).wrapping_add(controls),
            window: u16::from_be_bytes([fixed[14], fixed[15]]),
        })
    }
}

/// What the table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    To(TcpState),
    Ignore,
    Invalid,
}

const SS: Cell = Cell::To(TcpState::SynSent);
const SR: Cell = Cell::To(TcpState::SynRecv);
const ES: Cell = Cell::To(TcpState::Established);
const FW: Cell = Cell::To(TcpState::FinWait);
const CW: Cell = Cell::To(TcpState::CloseWait);
const LA: Cell = Cell::To(TcpState::LastAck);
const TW: Cell = Cell::To(TcpState::TimeWait);
const CL: Cell = Cell::To(TcpState::Close);
const S2: Cell = Cell::To(TcpState::SynSent2);
const IG: Cell = Cell::Ignore;
const IV: Cell = Cell::Invalid;

/// `STEPS[direction][class][state]`: the kernel's table. Odd cells:
/// SS in the columns TW and CL means "may reopen": see [`step`].
/// TW from LA by an ACK is not believed if that ACK answers a SYN which we let through (RFC 5961 section 4).
/// SR by a reply ACK becomes ES after a simultaneous open.
#[rustfmt::skip]
const STEPS: [[[Cell; 10]; 6]; 2] = [
    [ // Original   NO  SS  SR  ES  FW  CW  LA  TW  CL  S2
      /* SYN     */ [SS, SS, IG, IG, IG, IG, IG, SS, SS, S2],
      /* SYN/ACK */ [IV, IV, SR, IV, IV, IV, IV, IV, IV, SR],
      /* FIN     */ [IV, IV, FW, FW, LA, LA, LA, TW, CL, IV],
      /* ACK     */ [ES, IV, ES, ES, CW, CW, TW, TW, CL, IV],
      /* RST     */ [IV, CL, CL, CL, CL, CL, CL, CL, CL, CL],
      /* none    */ [IV, IV, IV, IV, IV, IV, IV, IV, IV, IV] ],
    [ // Reply      NO  SS  SR  ES  FW  CW  LA  TW  CL  S2
      /* SYN     */ [IV, S2, IV, IV, IV, IV, IV, SS, IV, S2],
      /* SYN/ACK */ [IV, SR, IG, IG, IG, IG, IG, IG, IG, SR],
      /* FIN     */ [IV, IV, FW, FW, LA, LA, LA, TW, CL, IV],
      /* ACK     */ [IV, IG, SR, ES, CW, CW, TW, TW, CL, IG],
      /* RST     */ [IV, CL, CL, CL, CL, CL, CL, CL, CL, CL],
      /* none    */ [IV, IV, IV, IV, IV, IV, IV, IV, IV, IV] ],
];

/// `ONE_SIDED[class][state]`: where one direction may never be seen, any packet is believed about its own side.
#[rustfmt::skip]
const ONE_SIDED: [[Cell; 10]; 6] = [
      //            NO  SS  SR  ES  FW  CW  LA  TW  CL  S2
      /* SYN     */ [SS, SS, IG, IG, IG, IG, IG, SS, SS, SS],
      /* SYN/ACK */ [SR, SR, SR, IG, IG, IG, IG, IG, IG, SR],
      /* FIN     */ [FW, FW, FW, FW, LA, LA, LA, TW, CL, FW],
      /* ACK     */ [ES, ES, ES, ES, CW, CW, TW, TW, CL, ES],
      /* RST     */ [IV, CL, CL, CL, CL, CL, CL, CL, CL, CL],
      /* none    */ [IV, IV, IV, IV, IV, IV, IV, IV, IV, IV],
];

/// Bit of `TcpLine::flags`: this side sent the first FIN.
const CLOSE_INIT: u8 = 0x04;
/// Bit of `TcpLine::last_flags`: an ACK in LAST_ACK may answer the SYN that was let through.
const EXPECT_CHALLENGE: u8 = 0x40;
/// Bit of `TcpLine::last_flags`: both sides sent a SYN.
const SIMULTANEOUS: u8 = 0x80;

/// Repetitions of one ACK after which a connection gets at most `tcp_max_retrans`.
const MAX_REPEATS: u8 = 3;

/// Time left, in ticks, above which [`Step::lower_to`] applies.
pub const LOWER_ABOVE: u32 = 120 * TICKS_PER_SECOND;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It belongs to the connection: count it.
    Accept,
    /// It passes as it is; it is not counted and refreshes nothing.
    Ignore,
    /// It is INVALID; the connection stays.
    Invalid,
    /// A reset before any answer: count it, let it pass, and end the connection at once.
    KillAccept,
    /// A new connection on the same tuple: end this one and treat the packet as a first one.
    Reopen,
}

/// What a packet did to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What becomes of the packet.
    pub outcome: Outcome,
    /// The state after it; already in the line.
    pub state: TcpState,
    /// Whether that is another state than before: an UPDATE event.
    pub state_changed: bool,
    /// Status bits that were not set and are now: to be stored; not empty means an UPDATE event.
    pub set_status: u32,
    /// Whether the connection's time stamp becomes now.
    pub refresh: bool,
    /// The idle timeout in ticks if it is another one than before; already in the line, to be stored for readers.
    pub timeout: Option<u32>,
    /// Only with [`Outcome::Invalid`]: if more than [`LOWER_ABOVE`] ticks are left, the connection shall have no more
    /// than this many left from now on.
    pub lower_to: Option<u32>,
}

/// A first packet that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// State of the connection; already in the line.
    pub state: TcpState,
    /// Idle timeout in ticks; already in the line.
    pub timeout: u32,
}

/// The state that a first packet puts a connection into. `None`: it is INVALID.
pub const fn opens(segment: &Segment, mode: Tracking) -> Option<TcpState> {
    use PacketClass::{Ack, Fin, Syn, SynAck};
    match (segment.class, mode) {
        (Syn, _) => Some(TcpState::SynSent),
        (Ack, Tracking::Loose | Tracking::Liberal | Tracking::Asymmetric) => Some(TcpState::Established),
        (SynAck, Tracking::Asymmetric) => Some(TcpState::SynRecv),
        (Fin, Tracking::Asymmetric) => Some(TcpState::FinWait),
        _ => None,
    }
}

/// Judges a first packet and fills the whole line. `None`: the packet is INVALID, and the line is untouched.
///
/// A SYN opens; a plain ACK picks a connection up in mid-stream unless tracking is strict, for at most
/// `tcp_unacknowledged` until it is answered. Asymmetric tracking also starts at a SYN/ACK or FIN.
pub fn open(line: &TcpLine, segment: &Segment, mode: Tracking, timeouts: &Timeouts) -> Option<Opened> {
    let state = opens(segment, mode)?;
    for dir in 0..2 {
        for word in [&line.end, &line.max_end, &line.max_window, &line.max_ack] {
            word[dir].store(0, Relaxed);
        }
        line.scale[dir].store(0, Relaxed);
        line.flags[dir].store(0, Relaxed);
    }
    if state == TcpState::FinWait {
        line.flags[0].store(CLOSE_INIT, Relaxed);
    }
    line.last_seq.store(segment.seq, Relaxed);
    line.last_ack.store(segment.ack, Relaxed);
    line.last_end.store(segment.end, Relaxed);
    line.last_window.store(segment.window, Relaxed);
    line.last_dir.store(0, Relaxed);
    line.last_index.store(segment.class as u8, Relaxed);
    line.retransmissions.store(0, Relaxed);
    line.last_flags.store(0, Relaxed);
    line.last_scale.store(0, Relaxed);
    line.state.store(state as u8, Relaxed);
    let mut timeout = choose_timeout(line, segment.class, state, timeouts);
    if mode != Tracking::Asymmetric && state == TcpState::Established {
        timeout = timeout.min(timeouts.get(TimeoutKey::TcpUnacknowledged));
    }
    line.timeout.store(timeout, Relaxed);
    Some(Opened { state, timeout })
}

/// Takes a later packet of direction `dir` (0 original, 1 reply). `status` is the connection's before the packet.
///
/// A SYN in TIME_WAIT or CLOSE reopens if one side closed in order or the last packet was a reset from the same side;
/// otherwise it passes and is remembered, as any ignored packet, for the answer may show that the hosts know better.
#[inline]
pub fn step(line: &TcpLine, status: u32, dir: usize, segment: &Segment, mode: Tracking, timeouts: &Timeouts) -> Step {
    let dir = usize::from(dir != 0);
    let old = TcpState::from_u8(line.state.load(Relaxed));
    let class = segment.class;
    let cell = match mode {
        Tracking::Asymmetric => ONE_SIDED[class as usize][old as usize],
        _ => STEPS[dir][class as usize][old as usize],
    };
    let packet = Packet { line, status, dir, segment, one_sided: mode == Tracking::Asymmetric, timeouts };
    let last_is = |wanted: PacketClass| line.last_index.load(Relaxed) == wanted as u8;
    let from_same_side = usize::from(line.last_dir.load(Relaxed)) == dir;
    match cell {
        Cell::Invalid => packet.invalid(old),
        Cell::Ignore => packet.ignore(old),
        Cell::To(TcpState::SynSent) if matches!(old, TcpState::TimeWait | TcpState::Close) => {
            let closing = line.flags[0].load(Relaxed) | line.flags[1].load(Relaxed);
            if closing & CLOSE_INIT != 0 || (from_same_side && last_is(PacketClass::Rst)) {
                Step { outcome: Outcome::Reopen, ..packet.unchanged(old) }
            } else {
                packet.ignore(old)
            }
        }
        Cell::To(TcpState::TimeWait)
            if old == TcpState::LastAck
                && class == PacketClass::Ack
                && !from_same_side
                && last_is(PacketClass::Syn)
                && line.last_flags.load(Relaxed) & EXPECT_CHALLENGE != 0 =>
        {
            clear(&line.last_flags, EXPECT_CHALLENGE);
            packet.passed(old)
        }
        Cell::To(TcpState::SynSent2) => {
            set(&line.last_flags, SIMULTANEOUS);
            packet.accept(old, TcpState::SynSent2)
        }
        Cell::To(TcpState::SynRecv)
            if dir == 1 && class == PacketClass::Ack && line.last_flags.load(Relaxed) & SIMULTANEOUS != 0 =>
        {
            packet.accept(old, TcpState::Established)
        }
        Cell::To(new) => packet.accept(old, new),
    }
}

/// A packet and its connection.
struct Packet<'a> {
    line: &'a TcpLine,
    status: u32,
    dir: usize,
    segment: &'a Segment,
    one_sided: bool,
    timeouts: &'a Timeouts,
}

impl Packet<'_> {
    fn unchanged(&self, state: TcpState) -> Step {
        Step {
            outcome: Outcome::Invalid,
            state,
            state_changed: false,
            set_status: 0,
            refresh: false,
            timeout: None,
            lower_to: None,
        }
    }

    /// A packet that says "this is over", and is not believed, from both sides in turn: the hosts are out of step with
    /// us, so the connection shall not linger.
    #[cold]
    fn invalid(&self, old: TcpState) -> Step {
        let line = self.line;
        let ends = |class: u8| class == PacketClass::Fin as u8 || class == PacketClass::Rst as u8;
        let mut step = self.unchanged(old);
        if self.status & (ASSURED | FIXED_TIMEOUT) == ASSURED && ends(self.segment.class as u8) {
            if usize::from(line.last_dir.load(Relaxed)) != self.dir && ends(line.last_index.load(Relaxed)) {
                step.lower_to = Some(self.timeouts.get(TimeoutKey::TcpUnacknowledged));
            } else {
                self.remember_class();
            }
        }
        step
    }

    /// Passes without touching state, timeout or counters. It is an answer nevertheless if it is one.
    fn passed(&self, old: TcpState) -> Step {
        Step { outcome: Outcome::Ignore, set_status: newly_replied(self.status, self.dir), ..self.unchanged(old) }
    }

    #[cold]
    fn ignore(&self, old: TcpState) -> Step {
        let (line, segment) = (self.line, self.segment);
        if segment.class == PacketClass::SynAck
            && line.last_index.load(Relaxed) == PacketClass::Syn as u8
            && usize::from(line.last_dir.load(Relaxed)) != self.dir
            && segment.ack == line.last_end.load(Relaxed)
        {
            // It answers a SYN that we let through: the hosts agree and we were out of step. What that SYN said
            // replaces what we knew of its side; of this side we know nothing any more.
            let opener = self.dir ^ 1;
            let last_end = line.last_end.load(Relaxed);
            clear(&line.last_flags, EXPECT_CHALLENGE);
            line.end[opener].store(last_end, Relaxed);
            line.max_end[opener].store(last_end, Relaxed);
            line.max_window[opener].store(u32::from(line.last_window.load(Relaxed)).max(1), Relaxed);
            line.scale[opener].store(line.last_scale.load(Relaxed), Relaxed);
            line.flags[opener].store(line.last_flags.load(Relaxed), Relaxed);
            for word in [&line.end, &line.max_end, &line.max_window, &line.max_ack] {
                word[self.dir].store(0, Relaxed);
            }
            line.scale[self.dir].store(0, Relaxed);
            line.flags[self.dir].store(0, Relaxed);
            return self.accept(TcpState::SynSent, TcpState::SynRecv);
        }
        self.remember_class();
        line.last_seq.store(segment.seq, Relaxed);
        line.last_end.store(segment.end, Relaxed);
        line.last_window.store(segment.window, Relaxed);
        if segment.class == PacketClass::Syn && self.dir == 0 {
            // In LAST_ACK the answer may be a challenge ACK, which acknowledges no FIN.
            let armed = if old == TcpState::LastAck { EXPECT_CHALLENGE } else { 0 };
            line.last_flags.store(armed, Relaxed);
            line.last_scale.store(0, Relaxed);
        }
        if old == TcpState::SynSent && segment.class == PacketClass::Ack && self.dir == 1 {
            line.last_ack.store(segment.ack, Relaxed);
        }
        self.passed(old)
    }

    #[inline]
    fn accept(&self, old: TcpState, new: TcpState) -> Step {
        let (line, segment) = (self.line, self.segment);
        if segment.class == PacketClass::Ack {
            self.count_repeats();
        }
        self.remember_class();
        if new != old {
            line.state.store(new as u8, Relaxed);
            if new == TcpState::FinWait {
                set(&line.flags[self.dir], CLOSE_INIT);
            }
        }
        let replied = self.status & SEEN_REPLY != 0;
        let mut step = Step {
            outcome: Outcome::Accept,
            state_changed: new != old,
            set_status: newly_replied(self.status, self.dir),
            ..self.unchanged(new)
        };
        let mut timeout = choose_timeout(line, segment.class, new, self.timeouts);
        if !replied && !self.one_sided {
            if segment.class == PacketClass::Rst {
                return Step { outcome: Outcome::KillAccept, ..step };
            }
            if segment.class == PacketClass::Syn && old == TcpState::SynSent {
                // A repeated SYN must not keep alive what may have been decided wrongly, translation included.
                return Step { outcome: Outcome::Ignore, ..step };
            }
            if new == TcpState::Established {
                timeout = timeout.min(self.timeouts.get(TimeoutKey::TcpUnacknowledged));
            }
        } else if new == TcpState::Established && matches!(old, TcpState::SynRecv | TcpState::Established) {
            step.set_status |= ASSURED & !self.status;
        }
        if self.status & FIXED_TIMEOUT == 0 {
            step.refresh = true;
            if line.timeout.load(Relaxed) != timeout {
                line.timeout.store(timeout, Relaxed);
                step.timeout = Some(timeout);
            }
        }
        step
    }

    #[inline]
    fn remember_class(&self) {
        self.line.last_index.store(self.segment.class as u8, Relaxed);
        self.line.last_dir.store(u8::from(self.dir != 0), Relaxed);
    }

    /// Counts how often the same ACK came in a row from one side.
    #[inline]
    fn count_repeats(&self) {
        let (line, segment) = (self.line, self.segment);
        let same = usize::from(line.last_dir.load(Relaxed)) == self.dir
            && line.last_seq.load(Relaxed) == segment.seq
            && line.last_ack.load(Relaxed) == segment.ack
            && line.last_end.load(Relaxed) == segment.end
            && line.last_window.load(Relaxed) == segment.window;
        if same {
            line.retransmissions.store(line.retransmissions.load(Relaxed).saturating_add(1), Relaxed);
        } else {
            line.last_seq.store(segment.seq, Relaxed);
            line.last_ack.store(segment.ack, Relaxed);
            line.last_end.store(segment.end, Relaxed);
            line.last_window.store(segment.window, Relaxed);
            line.retransmissions.store(0, Relaxed);
        }
    }
}

/// The idle timeout after an accepted packet: the first that applies of repeated, reset, closed window, the state's.
#[inline]
fn choose_timeout(line: &TcpLine, class: PacketClass, state: TcpState, timeouts: &Timeouts) -> u32 {
    let usual = timeouts.get(state.timeout());
    let retransmitting = timeouts.get(TimeoutKey::TcpMaxRetrans);
    if line.retransmissions.load(Relaxed) >= MAX_REPEATS && usual > retransmitting {
        retransmitting
    } else if class == PacketClass::Rst {
        timeouts.get(TimeoutKey::TcpClose)
    } else if line.last_window.load(Relaxed) == 0 {
        usual.min(retransmitting)
    } else {
        usual
    }
}

fn set(word: &AtomicU8, bits: u8) {
    word.store(word.load(Relaxed) | bits, Relaxed);
}

fn clear(word: &AtomicU8, bits: u8) {
    word.store(word.load(Relaxed) & !bits, Relaxed);
}

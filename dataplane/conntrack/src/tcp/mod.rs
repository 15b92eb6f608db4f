//! TCP as seen from between the hosts: the kernel's state table, its sequence windows, and the rules around them.
//!
//! # Overview
//!
//! | module | holds |
//! |---|---|
//! | `segment` | what is read of a packet |
//! | `table` | states, and what each class of packet does in each |
//! | `window` | rules 1 to 9: what lies within the windows that both sides opened |
//! | `options` | window scale, SACK permitted, SACK |
//! | `reset` | which resets are believed, in the order (a) to (d) |
//! | `timeout` | how long a connection may be idle |
//!
//! # Life-cycle
//!
//! [`open`] judges a first packet and fills the connection's [`TcpLine`]; [`step`] takes every later one, stores what
//! it changes in the line, and says what is left to the caller. Most later ones are taken by [`step_plain`] or
//! [`step_in_order`] before it comes to that, with the same outcome. [`retrack`] puts a line under other rules. A line that
//! no packet opened, all zero but for its state, is followed from its first packet on.
//!
//! # Synchronisation
//!
//! The line holds everything that a packet needs, the status bits and the idle timeout included, so that a packet that
//! changes no state stays off the connection's other lines. The owner alone writes it. [`TcpLine::status`] has to
//! follow where somebody else changes a connection's status ([`kept_status`]).
//!
//! # Limits
//!
//! Sequence numbers are judged as they come in: nothing here changes them. ACKs that are repeated are counted up to
//! 255, where the kernel starts anew.

mod options;
mod reset;
mod segment;
mod table;
mod timeout;
mod window;

pub use segment::{PacketClass, Segment, classify, flag};
pub use table::TcpState;
pub use window::Bound;

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use erhu_planes::TICKS_PER_SECOND;
use erhu_planes::connections::TcpLine;
use erhu_planes::connections::status::{ASSURED, FIXED_TIMEOUT, SEEN_REPLY};
use erhu_planes::program::Tracking;
use erhu_planes::timeouts::TimeoutKey;

use crate::Timeouts;
use reset::Reset;
use table::{Cell, ONE_SIDED, STEPS};
use window::{Judgement, side};

/// Bit of `TcpLine::last_flags`: an ACK in LAST_ACK may answer the SYN that was let through.
const EXPECT_CHALLENGE: u8 = 0x40;
/// Bit of `TcpLine::last_flags`: both sides sent a SYN.
const SIMULTANEOUS: u8 = 0x80;

/// Bits of `TcpLine::status`.
const REPLIED: u8 = 0x02;
const SURE: u8 = 0x04;
const FIXED: u8 = 0x80;

/// Time left, in ticks, from which on [`Step::lower_to`] applies.
pub const LOWER_FROM: u32 = 120 * TICKS_PER_SECOND;

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
    /// Whether the connection's time stamp becomes now.
    pub refresh: bool,
    /// Whether the idle timeout, which is in the line, is shorter than before: a timer may be too late.
    pub shortened: bool,
    /// The bound that the packet went beyond, whatever became of it: to be counted.
    pub beyond: Option<Bound>,
    /// Status bits that were not set and are now, in the line already: to be stored; not empty means an UPDATE event.
    pub set_status: u32,
    /// Only with [`Outcome::Invalid`]: if at least [`LOWER_FROM`] ticks are left, and more than this, the connection
    /// shall have this many left from now on.
    pub lower_to: Option<u32>,
}

/// What an accepted packet did to its connection: the part of [`Step`] that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// As in [`Step`].
    pub state: TcpState,
    /// As in [`Step`].
    pub state_changed: bool,
    /// As in [`Step`].
    pub shortened: bool,
    /// As in [`Step`].
    pub set_status: u32,
}

/// A first packet that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// State of the connection; already in the line.
    pub state: TcpState,
    /// Idle timeout in ticks; already in the line.
    pub timeout: u32,
}

/// What [`TcpLine::status`] keeps of a connection's status.
pub fn kept_status(status: u32) -> u8 {
    let kept = [(SEEN_REPLY, REPLIED), (ASSURED, SURE), (FIXED_TIMEOUT, FIXED)];
    kept.into_iter().filter(|(bit, _)| status & bit != 0).fold(0, |all, (_, kept)| all | kept)
}

/// The state that a first packet puts a connection into. `None`: it is INVALID.
pub const fn opens(segment: &Segment<'_>, mode: Tracking) -> Option<TcpState> {
    use PacketClass::{Ack, Fin, Syn, SynAck};
    match (segment.class, mode) {
        (Syn, _) => Some(TcpState::SynSent),
        (Ack, Tracking::Loose | Tracking::Liberal | Tracking::Asymmetric) => Some(TcpState::Established),
        (SynAck, Tracking::Asymmetric) => Some(TcpState::SynRecv),
        (Fin, Tracking::Asymmetric) => Some(TcpState::FinWait),
        _ => None,
    }
}

/// Judges a first packet and fills the whole line but for [`TcpLine::policy`]; `status` is the connection's. `None`:
/// the packet is INVALID, and the line is untouched.
///
/// A SYN opens; a plain ACK picks a connection up in mid-stream unless tracking is strict, for at most
/// `tcp_unacknowledged` until it is answered. Asymmetric tracking also starts at a SYN/ACK or FIN.
pub fn open(
    line: &TcpLine,
    status: u32,
    segment: &Segment<'_>,
    mode: Tracking,
    timeouts: &Timeouts,
) -> Option<Opened> {
    let state = opens(segment, mode)?;
    forget(line);
    window::open(line, segment);
    if state == TcpState::FinWait {
        set(&line.flags[0], side::CLOSE_INIT);
    }
    // Of a packet in mid-stream only the window is remembered that asymmetric tracking goes by: whether it is repeated
    // is asked of those that the windows can judge.
    let is_judged = state == TcpState::SynSent || mode == Tracking::Asymmetric;
    line.last_window.store(if is_judged { segment.window } else { 0 }, Relaxed);
    line.last_dir.store(0, Relaxed);
    line.last_index.store(segment.class as u8, Relaxed);
    line.state.store(state as u8, Relaxed);
    line.status.store(kept_status(status), Relaxed);
    line.mode.store(mode as u8, Relaxed);
    let mut timeout = timeout::choose(line, segment.class, state, timeouts);
    if mode != Tracking::Asymmetric && state == TcpState::Established {
        timeout = timeout.min(timeouts.get(TimeoutKey::TcpUnacknowledged));
    }
    line.timeout.store(timeout, Relaxed);
    Some(Opened { state, timeout })
}

/// Forgets both sides and what the last packet was.
fn forget(line: &TcpLine) {
    for dir in 0..2 {
        for word in [&line.end, &line.max_end, &line.max_window, &line.max_ack] {
            word[dir].store(0, Relaxed);
        }
        line.scale[dir].store(0, Relaxed);
        line.flags[dir].store(0, Relaxed);
    }
    for word in [&line.last_seq, &line.last_ack, &line.last_end] {
        word.store(0, Relaxed);
    }
    for byte in [&line.retransmissions, &line.last_flags, &line.last_scale] {
        byte.store(0, Relaxed);
    }
}

/// Puts a connection under another tracking mode. Windows that were not followed so far are picked up as those of a
/// connection in mid-stream are.
pub fn retrack(line: &TcpLine, mode: Tracking) {
    let before = line.mode.swap(mode as u8, Relaxed);
    if before == Tracking::Asymmetric as u8 && mode != Tracking::Asymmetric {
        for dir in 0..2 {
            line.max_window[dir].store(0, Relaxed);
            line.flags[dir].store(side::SACK_PERMITTED | side::BE_LIBERAL, Relaxed);
        }
    }
}

/// As [`step`], for what nearly all packets of an assured connection are, given from the TCP header to the end of the IP
/// packet: it is accepted and changes neither state nor status. Says whether the idle timeout is shorter than before.
/// `None`: [`step`] has to judge, nothing was changed.
#[inline(always)]
pub fn step_plain(line: &TcpLine, dir: usize, l4: &[u8], timeouts: &Timeouts) -> Option<bool> {
    let dir = usize::from(dir != 0);
    let is_usual = line.state.load(Relaxed) == TcpState::Established as u8
        && line.status.load(Relaxed) == REPLIED | SURE
        && line.mode.load(Relaxed) != Tracking::Asymmetric as u8;
    let segment = Segment::parse_plain(l4).filter(|_| is_usual)?;
    if !window::judge_plain(line, dir, &segment) {
        return None;
    }
    line.last_index.store(PacketClass::Ack as u8, Relaxed);
    line.last_dir.store(u8::from(dir != 0), Relaxed);
    let timeout = timeout::choose(line, PacketClass::Ack, TcpState::Established, timeouts);
    let before = line.timeout.load(Relaxed);
    if before != timeout {
        line.timeout.store(timeout, Relaxed);
    }
    Some(timeout < before)
}

/// As [`step`], for what the packets of a life are that [`step_plain`] leaves, given as there: an answer, an end, an
/// acknowledgement, in order, of a connection whose timeout is not fixed: it is accepted and refreshes, and the state may
/// change. Everything is judged in registers, where [`step`] has it in memory.
/// `None`: [`step`] has to judge, nothing was changed.
#[inline(always)]
pub fn step_in_order(line: &TcpLine, dir: usize, l4: &[u8], timeouts: &Timeouts) -> Option<Change> {
    let dir = usize::from(dir != 0);
    // The table's odd cells are odd in a line that has one of these marks, or of segments that are not read here.
    let is_usual = line.mode.load(Relaxed) != Tracking::Asymmetric as u8
        && line.status.load(Relaxed) & FIXED == 0
        && line.last_flags.load(Relaxed) & (EXPECT_CHALLENGE | SIMULTANEOUS) == 0;
    if !is_usual {
        return None;
    }
    let old = TcpState::from_u8(line.state.load(Relaxed));
    let (class, new) = match Segment::parse_plain_or_fin(l4) {
        Some(segment) => {
            let new = next(dir, segment.class, old)?;
            if !window::judge_plain(line, dir, &segment) {
                return None;
            }
            (segment.class, new)
        }
        None => (PacketClass::SynAck, answer(line, dir, old, l4)?),
    };
    Some(accept(line, dir, class, (old, new), timeouts))
}

/// The state after a SYN/ACK of a side that sends for the first time, if it is one in order, as [`step_in_order`]. Apart
/// from there, because it comes once in a life and needs registers for options.
#[inline(never)]
fn answer(line: &TcpLine, dir: usize, old: TcpState, l4: &[u8]) -> Option<TcpState> {
    let segment = Segment::parse(l4).filter(|segment| segment.class == PacketClass::SynAck)?;
    let new = next(dir, segment.class, old)?;
    window::judge_answer(line, dir, &segment).then_some(new)
}

/// The state that the table says, if it says one.
#[inline(always)]
fn next(dir: usize, class: PacketClass, old: TcpState) -> Option<TcpState> {
    match STEPS[dir & 1][class as usize][old as usize] {
        Cell::To(new) => Some(new),
        Cell::Ignore | Cell::Invalid => None,
    }
}

/// Takes a later packet of direction `dir` (0 original, 1 reply). `timeouts` are those of the policy that the line
/// names.
///
/// A SYN in TIME_WAIT or CLOSE reopens if one side closed in order or the last packet was a reset from the same side;
/// otherwise it passes and is remembered, as any ignored packet, for the answer may show that the hosts know better.
#[inline]
pub fn step(line: &TcpLine, dir: usize, segment: &Segment<'_>, timeouts: &Timeouts) -> Step {
    let packet = Packet { line, dir: usize::from(dir != 0), segment, timeouts };
    let old = TcpState::from_u8(line.state.load(Relaxed));
    // What nearly all packets are. The table says ESTABLISHED of it, in every mode.
    if old == TcpState::Established && segment.class == PacketClass::Ack {
        return packet.judge(old, old);
    }
    packet.unusual(old)
}

/// A packet and its connection.
struct Packet<'a> {
    line: &'a TcpLine,
    dir: usize,
    segment: &'a Segment<'a>,
    timeouts: &'a Timeouts,
}

impl Packet<'_> {
    fn is(&self, status: u8) -> bool {
        self.line.status.load(Relaxed) & status != 0
    }

    fn mode_is(&self, mode: Tracking) -> bool {
        self.line.mode.load(Relaxed) == mode as u8
    }

    fn last_is(&self, class: PacketClass) -> bool {
        self.line.last_index.load(Relaxed) == class as u8
    }

    fn last_from_same_side(&self) -> bool {
        usize::from(self.line.last_dir.load(Relaxed)) == self.dir
    }

    /// Everything but an ACK of an established connection: by the table.
    #[inline(never)]
    fn unusual(&self, old: TcpState) -> Step {
        let (line, class) = (self.line, self.segment.class);
        let one_sided = self.mode_is(Tracking::Asymmetric);
        let cell = match one_sided {
            true => ONE_SIDED[class as usize][old as usize],
            false => STEPS[self.dir][class as usize][old as usize],
        };
        match cell {
            Cell::Invalid => self.unchanged(Outcome::Invalid, old),
            Cell::Ignore => self.ignore(old),
            Cell::To(TcpState::SynSent) if matches!(old, TcpState::TimeWait | TcpState::Close) => {
                // Section 2.2, star.
                let closing = line.flags[0].load(Relaxed) | line.flags[1].load(Relaxed);
                if closing & side::CLOSE_INIT != 0 || (self.last_from_same_side() && self.last_is(PacketClass::Rst)) {
                    self.unchanged(Outcome::Reopen, old)
                } else {
                    self.ignore(old)
                }
            }
            Cell::To(TcpState::TimeWait)
                if old == TcpState::LastAck
                    && class == PacketClass::Ack
                    && !self.last_from_same_side()
                    && self.last_is(PacketClass::Syn)
                    && line.last_flags.load(Relaxed) & EXPECT_CHALLENGE != 0 =>
            {
                // Dagger: the answer to a stray SYN acknowledges no FIN (RFC 5961 section 4).
                clear(&line.last_flags, EXPECT_CHALLENGE);
                self.passed(old, None)
            }
            Cell::To(TcpState::SynSent2) => {
                set(&line.last_flags, SIMULTANEOUS);
                self.judge(old, TcpState::SynSent2)
            }
            Cell::To(TcpState::SynRecv)
                if self.dir == 1
                    && class == PacketClass::Ack
                    && line.last_flags.load(Relaxed) & SIMULTANEOUS != 0 =>
            {
                // Double dagger.
                self.judge(old, TcpState::Established)
            }
            Cell::To(TcpState::Close) if class == PacketClass::Rst && !one_sided => self.reset(old),
            Cell::To(new) => self.judge(old, new),
        }
    }

    fn unchanged(&self, outcome: Outcome, state: TcpState) -> Step {
        Step {
            outcome,
            state,
            state_changed: false,
            refresh: false,
            shortened: false,
            beyond: None,
            set_status: 0,
            lower_to: None,
        }
    }

    /// Section 2.4: resets.
    #[cold]
    fn reset(&self, old: TcpState) -> Step {
        let status = (self.is(REPLIED), self.is(SURE));
        match reset::judge(self.line, self.dir, self.segment, old, status) {
            Reset::Believed => self.accept(old, TcpState::Close, None),
            Reset::Judged => self.judge(old, TcpState::Close),
            Reset::Inexact => self.judge(old, old),
            Reset::Invalid => Step { beyond: Some(Bound::Reset), ..self.unchanged(Outcome::Invalid, old) },
        }
    }

    /// Section 2.3: accepts a packet that lies within the windows, or where nothing is made of it that it does not.
    #[inline]
    fn judge(&self, old: TcpState, new: TcpState) -> Step {
        if self.mode_is(Tracking::Asymmetric) {
            if self.segment.class == PacketClass::Ack {
                window::count_repeats(self.line, self.dir, self.segment);
            }
            return self.accept(old, new, None);
        }
        match window::judge(self.line, self.dir, self.segment) {
            Judgement::Within => self.accept(old, new, None),
            Judgement::Beyond(bound) => self.beyond(old, new, bound),
        }
    }

    #[cold]
    fn beyond(&self, old: TcpState, new: TcpState, bound: Bound) -> Step {
        let is_liberal =
            self.mode_is(Tracking::Liberal) || self.line.flags[self.dir & 1].load(Relaxed) & side::BE_LIBERAL != 0;
        if is_liberal {
            return self.accept(old, new, Some(bound));
        }
        let stays = TcpState::from_u8(self.line.state.load(Relaxed));
        if bound.is_harmless() {
            return self.passed(stays, Some(bound));
        }
        Step { beyond: Some(bound), lower_to: self.lower(), ..self.unchanged(Outcome::Invalid, stays) }
    }

    /// A packet that says "this is over", and is not believed, from both sides in turn: the hosts are out of step with
    /// us, so an assured connection shall not linger.
    fn lower(&self) -> Option<u32> {
        let ends = |class: u8| class == PacketClass::Fin as u8 || class == PacketClass::Rst as u8;
        if !self.is(SURE) || self.is(FIXED) || !ends(self.segment.class as u8) {
            return None;
        }
        if !self.last_from_same_side() && ends(self.line.last_index.load(Relaxed)) {
            return Some(self.timeouts.get(TimeoutKey::TcpUnacknowledged));
        }
        self.remember_class();
        None
    }

    /// Passes without touching state, timeout or counters. It is an answer nevertheless if it is one.
    #[cold]
    fn passed(&self, old: TcpState, beyond: Option<Bound>) -> Step {
        Step { beyond, set_status: replied(self.line, self.dir), ..self.unchanged(Outcome::Ignore, old) }
    }

    #[cold]
    fn ignore(&self, old: TcpState) -> Step {
        let (line, segment) = (self.line, self.segment);
        if segment.class == PacketClass::SynAck
            && self.last_is(PacketClass::Syn)
            && !self.last_from_same_side()
            && segment.ack == line.last_end.load(Relaxed)
        {
            self.resynchronise();
            return self.judge(TcpState::SynSent, TcpState::SynRecv);
        }
        self.remember_class();
        line.last_seq.store(segment.seq, Relaxed);
        line.last_end.store(segment.end, Relaxed);
        line.last_window.store(segment.window, Relaxed);
        if segment.class == PacketClass::Syn && self.dir == 0 {
            let (offer, scale) = window::offered(segment.options);
            // In LAST_ACK the answer may be a challenge ACK, which acknowledges no FIN.
            let armed = if old == TcpState::LastAck { EXPECT_CHALLENGE } else { 0 };
            line.last_flags.store(offer | armed, Relaxed);
            line.last_scale.store(scale, Relaxed);
        }
        if old == TcpState::SynSent && segment.class == PacketClass::Ack && self.dir == 1 {
            line.last_ack.store(segment.ack, Relaxed);
        }
        self.passed(old, None)
    }

    /// A SYN/ACK answers a SYN that we let through: the hosts agree and we were out of step. What that SYN said
    /// replaces what we knew of its side; of this side we know nothing any more.
    fn resynchronise(&self) {
        let (line, me, opener) = (self.line, self.dir & 1, (self.dir & 1) ^ 1);
        let last_end = line.last_end.load(Relaxed);
        clear(&line.last_flags, EXPECT_CHALLENGE);
        line.end[opener].store(last_end, Relaxed);
        line.max_end[opener].store(last_end, Relaxed);
        line.max_window[opener].store(u32::from(line.last_window.load(Relaxed)).max(1), Relaxed);
        line.scale[opener].store(line.last_scale.load(Relaxed), Relaxed);
        line.flags[opener].store(line.last_flags.load(Relaxed), Relaxed);
        for word in [&line.end, &line.max_end, &line.max_window, &line.max_ack] {
            word[me].store(0, Relaxed);
        }
        line.scale[me].store(0, Relaxed);
        line.flags[me].store(line.flags[me].load(Relaxed) & side::BE_LIBERAL, Relaxed);
    }

    #[inline]
    fn accept(&self, old: TcpState, new: TcpState, beyond: Option<Bound>) -> Step {
        let (line, class) = (self.line, self.segment.class);
        if !self.is(REPLIED) && !self.mode_is(Tracking::Asymmetric) {
            let outcome = match class {
                PacketClass::Rst => Outcome::KillAccept,
                // A repeated SYN must not keep alive what may have been decided wrongly, translation included.
                PacketClass::Syn if old == TcpState::SynSent => Outcome::Ignore,
                _ => Outcome::Accept,
            };
            if outcome != Outcome::Accept {
                enter(line, self.dir, class, (old, new));
                let set_status = replied(line, self.dir);
                return Step { beyond, state_changed: new != old, set_status, ..self.unchanged(outcome, new) };
            }
        }
        let refresh = !self.is(FIXED);
        let Change { state, state_changed, shortened, set_status } =
            accept(line, self.dir, class, (old, new), self.timeouts);
        Step { state_changed, refresh, shortened, beyond, set_status, ..self.unchanged(Outcome::Accept, state) }
    }

    #[inline]
    fn remember_class(&self) {
        remember(self.line, self.dir, self.segment.class);
    }
}

/// The status bit that a packet which passes sets, if it is an answer and the first one.
#[inline(always)]
fn replied(line: &TcpLine, dir: usize) -> u32 {
    if dir == 0 || line.status.load(Relaxed) & REPLIED != 0 {
        return 0;
    }
    set(&line.status, REPLIED);
    SEEN_REPLY
}

#[inline(always)]
fn remember(line: &TcpLine, dir: usize, class: PacketClass) {
    line.last_index.store(class as u8, Relaxed);
    line.last_dir.store(u8::from(dir != 0), Relaxed);
}

/// Stores a packet's class and the state that it leads to.
#[inline(always)]
fn enter(line: &TcpLine, dir: usize, class: PacketClass, (old, new): (TcpState, TcpState)) {
    remember(line, dir, class);
    if new != old {
        line.state.store(new as u8, Relaxed);
        if new == TcpState::FinWait {
            set(&line.flags[dir & 1], side::CLOSE_INIT);
        }
    }
}

/// What follows from a packet that is accepted and counts: state, status and timeout.
#[inline(always)]
fn accept(
    line: &TcpLine,
    dir: usize,
    class: PacketClass,
    (old, new): (TcpState, TcpState),
    timeouts: &Timeouts,
) -> Change {
    enter(line, dir, class, (old, new));
    let status = line.status.load(Relaxed);
    let mut change = Change { state: new, state_changed: new != old, shortened: false, set_status: 0 };
    let mut timeout = timeout::choose(line, class, new, timeouts);
    if status & (REPLIED | SURE) != REPLIED | SURE {
        change.set_status = replied(line, dir);
        let is_established = new == TcpState::Established;
        if status & REPLIED == 0 && line.mode.load(Relaxed) != Tracking::Asymmetric as u8 {
            if is_established {
                timeout = timeout.min(timeouts.get(TimeoutKey::TcpUnacknowledged));
            }
        } else if is_established && matches!(old, TcpState::SynRecv | TcpState::Established) && status & SURE == 0 {
            set(&line.status, SURE);
            change.set_status |= ASSURED;
        }
    }
    if status & FIXED == 0 {
        let before = line.timeout.load(Relaxed);
        if before != timeout {
            line.timeout.store(timeout, Relaxed);
            change.shortened = timeout < before;
        }
    }
    change
}

fn set(word: &AtomicU8, bits: u8) {
    word.store(word.load(Relaxed) | bits, Relaxed);
}

fn clear(word: &AtomicU8, bits: u8) {
    word.store(word.load(Relaxed) & !bits, Relaxed);
}

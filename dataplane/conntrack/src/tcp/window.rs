//! Which segments lie within the windows that both sides have opened (rules 1 to 9).
//!
//! The rules are those of the kernel, after Guido van Rooij, *Real Stateful TCP Packet Filtering in IP Filter*. Per
//! direction the line holds the end of what was sent, the end of what the peer permits, the largest window seen and
//! the highest acknowledgement. A segment is judged by four bounds, the names of which are in [`Bound`]. Numbers are
//! compared modulo 2³² (RFC 9293 section 3.4).

use std::sync::atomic::Ordering::Relaxed;

use erhu_planes::connections::TcpLine;

use super::options::{self, Offer};
use super::segment::{PacketClass, Segment, flag};
use super::table::TcpState;

/// Bits of `TcpLine::flags`, and of `last_flags` where a SYN left them: what is known of one side.
pub(super) mod side {
    /// It offered a window scale.
    pub const WINDOW_SCALE: u8 = 0x01;
    /// It understands SACK.
    pub const SACK_PERMITTED: u8 = 0x02;
    /// It sent the first FIN.
    pub const CLOSE_INIT: u8 = 0x04;
    /// Its violations are let through: it was picked up in mid-stream.
    pub const BE_LIBERAL: u8 = 0x08;
    /// It sent something that is not acknowledged.
    pub const UNACKNOWLEDGED: u8 = 0x10;
    /// Its highest acknowledgement is known.
    pub const MAX_ACK_KNOWN: u8 = 0x20;
}

/// The smallest distance below which an acknowledgement is too old, whatever the window.
const OLD_ACK: u32 = 66_000;

/// `a` comes before `b`.
#[inline]
pub(super) const fn before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() < 0
}

/// `a` comes after `b`.
#[inline]
pub(super) const fn after(a: u32, b: u32) -> bool {
    before(b, a)
}

/// The bound that a segment went beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Bound {
    /// I: it begins after what the receiver permits.
    SeqAbove,
    /// I, but by no more than one window, all else being right: the receiver will have to say.
    Overshoot,
    /// II: it ends before the receiver's window: an old segment sent again.
    SeqBelow,
    /// III: it acknowledges what was not sent.
    AckAbove,
    /// IV: it acknowledges what was acknowledged long ago.
    AckBelow,
    /// A reset that lies before what was acknowledged to its sender.
    Reset,
}

impl Bound {
    /// Whether a segment beyond it passes as it is; else it is INVALID.
    pub(super) const fn is_harmless(self) -> bool {
        matches!(self, Self::Overshoot | Self::SeqBelow | Self::AckBelow)
    }
}

/// What the windows say of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// It is within; the line knows of it.
    Within,
    /// It is beyond a bound. The line does not know of it, but for what an overshoot has to leave.
    Beyond(Bound),
}

/// The numbers that are judged: the segment's, but for what the rules put in their place.
struct Numbers {
    seq: u32,
    end: u32,
    ack: u32,
    sack: u32,
}

/// Judges a segment of direction `dir` (0 or 1) and, if it is within, takes note of it.
#[inline]
pub(super) fn judge(line: &TcpLine, dir: usize, segment: &Segment<'_>) -> Judgement {
    let (me, peer) = (dir & 1, (dir & 1) ^ 1);
    let mut numbers = Numbers { seq: segment.seq, end: segment.end, ack: segment.ack, sack: segment.ack };
    // `sack`: the right-most edge that is acknowledged, if the receiver advertised that it understands SACK.
    if !segment.options.is_empty() && line.flags[peer].load(Relaxed) & side::SACK_PERMITTED != 0 {
        numbers.sack = options::right_edge(segment.options, segment.ack);
    }
    let plain = segment.flags & (flag::SYN | flag::RST | flag::ACK) == flag::ACK;
    if (!plain || line.max_window[me].load(Relaxed) == 0) && prepare(line, me, segment, &mut numbers) {
        return Judgement::Within;
    }
    let known = Known::of(line, me);
    let right = known.right(&numbers);
    if right != ALL_RIGHT {
        return Judgement::Beyond(beyond(line, me, &known, &numbers, right));
    }
    note(line, me, &known, &numbers, segment);
    Judgement::Within
}

/// Judges a segment without SYN, RST and SACK, whose sender is known, and takes note of it. `false`: it is beyond a
/// bound, or its sender is not known, and nothing was changed.
#[inline(always)]
pub(super) fn judge_plain(line: &TcpLine, dir: usize, segment: &Segment<'_>) -> bool {
    let me = dir & 1;
    let numbers = Numbers { seq: segment.seq, end: segment.end, ack: segment.ack, sack: segment.ack };
    let known = Known::of(line, me);
    let is_within = known.my_window != 0 && known.right(&numbers) == ALL_RIGHT;
    if is_within {
        note(line, me, &known, &numbers, segment);
    }
    is_within
}

/// Judges a SYN/ACK whose sender is not known (rule 1), and takes note of it. `false`: it is beyond a bound, or its sender
/// is known, and nothing was changed.
#[inline(always)]
pub(super) fn judge_answer(line: &TcpLine, dir: usize, segment: &Segment<'_>) -> bool {
    let me = dir & 1;
    let mut numbers = Numbers { seq: segment.seq, end: segment.end, ack: segment.ack, sack: segment.ack };
    if !segment.options.is_empty() && line.flags[me ^ 1].load(Relaxed) & side::SACK_PERMITTED != 0 {
        numbers.sack = options::right_edge(segment.options, segment.ack);
    }
    let known = Known::of(line, me);
    // What its sender is known by once it has begun.
    let begun =
        Known { my_end: segment.end, my_max_end: segment.end, my_window: u32::from(segment.window).max(1), ..known };
    let is_within = known.my_window == 0 && begun.right(&numbers) == ALL_RIGHT;
    if is_within {
        begin(line, me, segment);
        note(line, me, &begun, &numbers, segment);
    }
    is_within
}

/// What is known of the sender and of its peer.
struct Known {
    my_end: u32,
    my_max_end: u32,
    my_window: u32,
    peer_end: u32,
    peer_window: u32,
}

/// Rules 4 to 7 hold: bits of I, III, II, IV, in the order in which they are asked.
const ALL_RIGHT: u8 = 0b1111;

impl Known {
    #[inline(always)]
    fn of(line: &TcpLine, me: usize) -> Self {
        let (me, peer) = (me & 1, (me & 1) ^ 1);
        Self {
            my_end: line.end[me].load(Relaxed),
            my_max_end: line.max_end[me].load(Relaxed),
            my_window: line.max_window[me].load(Relaxed),
            peer_end: line.end[peer].load(Relaxed),
            peer_window: line.max_window[peer].load(Relaxed),
        }
    }

    /// Which of rule 4 (I), rule 5 (III), rule 6 (II) and rule 7 (IV) hold.
    #[inline(always)]
    fn right(&self, numbers: &Numbers) -> u8 {
        let seq_right = before(numbers.seq, self.my_max_end.wrapping_add(1));
        let ack_right = before(numbers.sack, self.peer_end.wrapping_add(1));
        let reaches = after(numbers.end, self.my_end.wrapping_sub(self.peer_window).wrapping_sub(1));
        let oldest = self.peer_end.wrapping_sub(self.my_window.max(OLD_ACK)).wrapping_sub(1);
        let ack_recent = after(numbers.sack, oldest);
        let reaches = reaches | (self.peer_window == 0);
        u8::from(seq_right) | u8::from(ack_right) << 1 | u8::from(reaches) << 2 | u8::from(ack_recent) << 3
    }
}

/// Rules 8 and 9: what a segment says of its sender, and of what the receiver may send.
#[inline(always)]
fn note(line: &TcpLine, me: usize, before_it: &Known, numbers: &Numbers, segment: &Segment<'_>) {
    let (me, peer) = (me & 1, (me & 1) ^ 1);
    let Numbers { end, ack, sack, .. } = *numbers;
    let Known { my_end, my_max_end, my_window, peer_end, peer_window } = *before_it;
    let raw = u32::from(segment.window);
    let window = if segment.has(flag::SYN) { raw } else { raw << (line.scale[me].load(Relaxed) & 15) };
    let offered = window.wrapping_add(sack.wrapping_sub(ack));
    if my_window < offered {
        line.max_window[me].store(offered, Relaxed);
    }
    let known = line.flags[me].load(Relaxed);
    let mut flags = known;
    if after(end, my_end) {
        line.end[me].store(end, Relaxed);
        flags |= side::UNACKNOWLEDGED;
    }
    if segment.has(flag::ACK) {
        if flags & side::MAX_ACK_KNOWN == 0 || after(ack, line.max_ack[me].load(Relaxed)) {
            line.max_ack[me].store(ack, Relaxed);
        }
        flags |= side::MAX_ACK_KNOWN;
    }
    if flags != known {
        line.flags[me].store(flags, Relaxed);
    }
    if peer_window != 0 && after(end, my_max_end) {
        line.max_window[peer].store(peer_window.wrapping_add(end.wrapping_sub(my_max_end)), Relaxed);
    }
    let permitted = sack.wrapping_add(window);
    if after(permitted, line.max_end[peer].load(Relaxed).wrapping_sub(1)) {
        line.max_end[peer].store(permitted.wrapping_add(u32::from(window == 0)), Relaxed);
    }
    if ack == peer_end {
        let flags = line.flags[peer].load(Relaxed);
        if flags & side::UNACKNOWLEDGED != 0 {
            line.flags[peer].store(flags & !side::UNACKNOWLEDGED, Relaxed);
        }
    }
    if segment.class == PacketClass::Ack {
        count_repeats(line, me, segment);
    }
}

/// What precedes the bounds for segments that are no plain data of a side that is known. `true`: accepted at once.
#[cold]
fn prepare(line: &TcpLine, me: usize, segment: &Segment<'_>, numbers: &mut Numbers) -> bool {
    let (peer, state) = (me ^ 1, TcpState::from_u8(line.state.load(Relaxed)));
    let is_syn = segment.has(flag::SYN);
    let bare = !segment.has(flag::ACK);
    if line.max_window[me].load(Relaxed) == 0 {
        // Rule 1: the sender is unknown.
        if is_syn {
            begin(line, me, segment);
            if bare {
                return true;
            }
        } else {
            let window = (u32::from(segment.window) << (line.scale[me].load(Relaxed) & 15)).max(1);
            line.end[me].store(segment.end, Relaxed);
            line.max_window[me].store(window, Relaxed);
            line.max_end[me].store(segment.end.wrapping_add(window), Relaxed);
            let peer_end = line.end[peer].load(Relaxed);
            if line.max_window[peer].load(Relaxed) == 0 {
                line.end[peer].store(numbers.sack, Relaxed);
                line.max_end[peer].store(numbers.sack, Relaxed);
            } else if numbers.sack == peer_end.wrapping_add(1) {
                // The answer to a keep-alive, which carried one byte that was never seen.
                line.end[peer].store(numbers.sack, Relaxed);
            }
        }
    } else if is_syn
        && after(segment.end, line.end[me].load(Relaxed))
        && matches!(state, TcpState::SynSent | TcpState::SynRecv)
    {
        // Rule 2: a new try with a later initial sequence number.
        begin(line, me, segment);
        if bare && me == 1 {
            return true;
        }
    }
    // Rule 3: what does not acknowledge is taken as acknowledging everything; so is a RST with acknowledgement 0.
    if bare || (segment.has(flag::RST) && segment.ack == 0) {
        numbers.ack = line.end[peer].load(Relaxed);
        numbers.sack = numbers.ack;
    }
    if segment.has(flag::RST) && segment.seq == 0 && state == TcpState::SynSent {
        // Rule 3: it answers a SYN.
        numbers.seq = line.end[me].load(Relaxed);
        numbers.end = numbers.seq;
    }
    false
}

/// Rules 1 and 2: all that is known of a side is its SYN. Scaling holds only if both offered it (RFC 7323 section
/// 1.3), which is settled by what comes from the reply side. As in the kernel a SYN without any option leaves an
/// earlier offer standing.
#[inline(always)]
fn begin(line: &TcpLine, me: usize, segment: &Segment<'_>) {
    line.end[me].store(segment.end, Relaxed);
    line.max_end[me].store(segment.end, Relaxed);
    line.max_window[me].store(u32::from(segment.window).max(1), Relaxed);
    if !segment.options.is_empty() {
        store_offer(line, me, segment.options);
    }
    let both = line.flags[0].load(Relaxed) & line.flags[1].load(Relaxed) & side::WINDOW_SCALE != 0;
    if me == 1 && !both {
        line.scale[0].store(0, Relaxed);
        line.scale[1].store(0, Relaxed);
    }
}

/// What a SYN's options make of a side's flags: liberality stays, the rest is new.
fn store_offer(line: &TcpLine, me: usize, options: &[u8]) {
    let (bits, scale) = offered(options);
    line.scale[me].store(scale, Relaxed);
    line.flags[me].store((line.flags[me].load(Relaxed) & side::BE_LIBERAL) | bits, Relaxed);
}

/// A SYN's offer as flags and scale.
pub(super) fn offered(options: &[u8]) -> (u8, u8) {
    let Offer { scale, sack } = options::offer(options);
    let bits = if scale.is_some() { side::WINDOW_SCALE } else { 0 };
    (bits | if sack { side::SACK_PERMITTED } else { 0 }, scale.unwrap_or(0))
}

/// Rules 4 to 7, for a segment that fails one: the first one that fails, in the order I, III, II, IV.
///
/// Beyond I by no more than a window: a sender that sends more than it may. Its peer's acknowledgement must not be
/// beyond III afterwards, so the line takes note of the end.
#[cold]
fn beyond(line: &TcpLine, me: usize, known: &Known, numbers: &Numbers, right: u8) -> Bound {
    let overshoot = numbers.end.wrapping_sub(known.my_max_end).wrapping_add(1);
    let is_only_one = right | 0b0001 == ALL_RIGHT;
    let tolerable = known.peer_window != 0 && is_only_one && overshoot <= known.peer_window;
    match right.trailing_ones() {
        0 if tolerable => {
            line.end[me].store(numbers.end, Relaxed);
            line.flags[me].store(line.flags[me].load(Relaxed) | side::UNACKNOWLEDGED, Relaxed);
            Bound::Overshoot
        }
        0 => Bound::SeqAbove,
        1 => Bound::AckAbove,
        2 => Bound::SeqBelow,
        _ => Bound::AckBelow,
    }
}

/// Rule 9: counts how often the same ACK came in a row from one side.
#[inline(always)]
pub(super) fn count_repeats(line: &TcpLine, me: usize, segment: &Segment<'_>) {
    let same = usize::from(line.last_dir.load(Relaxed)) == me
        && line.last_seq.load(Relaxed) == segment.seq
        && line.last_ack.load(Relaxed) == segment.ack
        && line.last_end.load(Relaxed) == segment.end
        && line.last_window.load(Relaxed) == segment.window;
    if same {
        line.retransmissions.store(line.retransmissions.load(Relaxed).saturating_add(1), Relaxed);
        return;
    }
    line.last_seq.store(segment.seq, Relaxed);
    line.last_ack.store(segment.ack, Relaxed);
    line.last_end.store(segment.end, Relaxed);
    line.last_window.store(segment.window, Relaxed);
    line.retransmissions.store(0, Relaxed);
}

/// What [`super::open`] notes of a first packet's side: of a SYN its offer; of anything else only a guess, so that
/// window scaling, which was agreed on before, cannot be known: both sides are taken to understand SACK and their
/// violations are let through.
pub(super) fn open(line: &TcpLine, segment: &Segment<'_>) {
    let window = u32::from(segment.window).max(1);
    line.end[0].store(segment.end, Relaxed);
    line.max_window[0].store(window, Relaxed);
    if segment.has(flag::SYN) {
        line.max_end[0].store(segment.end, Relaxed);
        store_offer(line, 0, segment.options);
    } else {
        line.max_end[0].store(segment.end.wrapping_add(window), Relaxed);
        for flags in &line.flags {
            flags.store(side::SACK_PERMITTED | side::BE_LIBERAL, Relaxed);
        }
    }
}

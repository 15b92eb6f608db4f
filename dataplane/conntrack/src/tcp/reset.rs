//! Which resets are believed.
//!
//! A reset that does not carry exactly the next sequence number may be forged (RFC 5961 section 3); the host answers
//! it with a challenge ACK and goes on. What we believe must not differ from that, or the connection is lost here and
//! lives there.

use std::sync::atomic::Ordering::Relaxed;

use erhu_planes::connections::TcpLine;

use super::segment::{PacketClass, Segment};
use super::table::TcpState;
use super::window::{before, side};

/// What is to become of a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reset {
    /// It closes the connection, whatever the windows say.
    Believed,
    /// It closes the connection if it is within the windows.
    Judged,
    /// If it is within the windows it passes; the state stays, and the timeout is that of CLOSE. The challenge ACK
    /// that may follow puts it up again.
    Inexact,
    /// It is INVALID.
    Invalid,
}

/// Judges a reset of direction `dir`. `assured` is the connection's status.
#[cold]
pub(super) fn judge(
    line: &TcpLine,
    dir: usize,
    segment: &Segment<'_>,
    state: TcpState,
    (replied, assured): (bool, bool),
) -> Reset {
    let (me, peer) = (dir & 1, (dir & 1) ^ 1);
    let seq = segment.seq;
    // (a) A side has closed: the ports may have been used again already, and what we know of the windows be outdated.
    if state.is_closing() {
        return Reset::Believed;
    }
    let last_is = |class: PacketClass| line.last_index.load(Relaxed) == class as u8;
    let last_from = |dir: usize| usize::from(line.last_dir.load(Relaxed)) == dir;
    let last_end = line.last_end.load(Relaxed);
    // (b) What the peer acknowledged last is what an exact reset carries; unless a SYN was let through since.
    if line.flags[peer].load(Relaxed) & side::MAX_ACK_KNOWN != 0 && !last_is(PacketClass::Syn) {
        let established = state == TcpState::Established && assured;
        let max_ack = line.max_ack[peer].load(Relaxed);
        if seq == 0 && !established {
            return Reset::Judged;
        }
        if before(seq, max_ack) {
            return Reset::Invalid;
        }
        let follows_its_data = last_is(PacketClass::Ack) && last_from(me) && seq == last_end;
        if !established || seq == max_ack || follows_its_data {
            return Reset::Judged;
        }
        return Reset::Inexact;
    }
    // (c) It answers a SYN or an ACK that was let through, and may acknowledge what we ignored.
    let let_through = (replied && last_is(PacketClass::Syn)) || (!assured && last_is(PacketClass::Ack));
    if let_through && segment.ack == last_end {
        return Reset::Believed;
    }
    // (d) The opener refuses a challenge to its SYN.
    if state == TcpState::SynSent && last_is(PacketClass::Ack) && last_from(1) && seq == line.last_ack.load(Relaxed) {
        return Reset::Believed;
    }
    Reset::Judged
}

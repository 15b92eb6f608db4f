//! How long an idle connection lives.

use std::sync::atomic::Ordering::Relaxed;

use erhu_planes::connections::TcpLine;
use erhu_planes::timeouts::TimeoutKey;

use super::segment::PacketClass;
use super::table::TcpState;
use super::window::side;
use crate::Timeouts;

/// Repetitions of one ACK after which a connection gets at most `tcp_max_retrans`.
const MAX_REPEATS: u8 = 3;

/// The idle timeout after an accepted packet, in ticks: the first that applies of repeated, reset, not acknowledged,
/// closed window, the state's own. None of them but the reset's is longer than the state's.
#[inline]
pub(super) fn choose(line: &TcpLine, class: PacketClass, state: TcpState, timeouts: &Timeouts) -> u32 {
    let usual = timeouts.get(state.timeout());
    let lower = |key: TimeoutKey| usual.min(timeouts.get(key));
    let repeated = line.retransmissions.load(Relaxed) >= MAX_REPEATS;
    if repeated && usual > timeouts.get(TimeoutKey::TcpMaxRetrans) {
        return lower(TimeoutKey::TcpMaxRetrans);
    }
    if class == PacketClass::Rst {
        return timeouts.get(TimeoutKey::TcpClose);
    }
    let both = line.flags[0].load(Relaxed) | line.flags[1].load(Relaxed);
    if both & side::UNACKNOWLEDGED != 0 && usual > timeouts.get(TimeoutKey::TcpUnacknowledged) {
        return lower(TimeoutKey::TcpUnacknowledged);
    }
    if line.last_window.load(Relaxed) == 0 {
        return lower(TimeoutKey::TcpMaxRetrans);
    }
    usual
}

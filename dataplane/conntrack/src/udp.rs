//! UDP: unreplied, replied, and streams.

use erhu_planes::TICKS_PER_SECOND;
use erhu_planes::connections::status::{ASSURED, FIXED_TIMEOUT, SEEN_REPLY};
use erhu_planes::timeouts::{TimeoutKey, UdpRefresh};

use crate::{Refresh, Timeouts, newly_replied};

/// A flow that is answered and lives longer than this is a stream.
const STREAM_AFTER: u32 = 2 * TICKS_PER_SECOND;

/// The timeout of a new connection, in ticks.
pub fn first(timeouts: &Timeouts) -> u32 {
    timeouts.get(TimeoutKey::Udp)
}

/// The tick after which a connection whose first packet came at `now_tick` counts as a stream once it is answered.
pub const fn stream_from(now_tick: u32) -> u32 {
    now_tick.wrapping_add(STREAM_AFTER)
}

/// What a later packet does; `dir` is 0 for original, 1 for reply, `stream_from` is what [`stream_from`] gave.
///
/// As in the kernel the timeout is chosen before an answer is noticed: the first answer still gets the timeout of an
/// unreplied flow, and the first packet of either direction that comes later than two seconds after the first makes
/// an answered flow assured.
pub fn packet(status: u32, dir: usize, now_tick: u32, stream_from: u32, timeouts: &Timeouts) -> Refresh {
    let may_refresh = status & FIXED_TIMEOUT == 0;
    if status & SEEN_REPLY == 0 {
        let set_status = newly_replied(status, dir);
        let refresh = may_refresh && (set_status != 0 || timeouts.udp_refresh() == UdpRefresh::Any);
        return Refresh { refresh, timeout: first(timeouts), set_status, steady: refresh && set_status == 0 };
    }
    if now_tick <= stream_from {
        return Refresh { refresh: may_refresh, timeout: first(timeouts), set_status: 0, steady: false };
    }
    let timeout = timeouts.get(TimeoutKey::UdpStream);
    Refresh { refresh: may_refresh, timeout, set_status: ASSURED & !status, steady: may_refresh }
}

#[cfg(test)]
mod tests {
    use super::*;
    use erhu_planes::program::{Program, TimeoutPolicy};

    const UDP: u32 = 30 * 16;
    const STREAM: u32 = 120 * 16;

    fn refresh(timeout: u32, set_status: u32, steady: bool) -> Refresh {
        Refresh { refresh: true, timeout, set_status, steady }
    }

    #[test]
    fn a_one_way_flow_keeps_itself_alive_and_is_never_a_stream() {
        let timeouts = Timeouts::default();
        let from = stream_from(100);
        for now in [100, 132, 133, 100_000] {
            assert_eq!(packet(0, 0, now, from, &timeouts), refresh(UDP, 0, true));
        }
    }

    #[test]
    fn a_first_answer_after_any_time_gets_the_unreplied_timeout() {
        let timeouts = Timeouts::default();
        for now in [100, 133, 100_000] {
            assert_eq!(packet(0, 1, now, stream_from(100), &timeouts), refresh(UDP, SEEN_REPLY, false));
        }
    }

    #[test]
    fn an_answered_flow_is_a_stream_and_assured_only_beyond_two_seconds() {
        let timeouts = Timeouts::default();
        let from = stream_from(100);
        for dir in [0, 1] {
            assert_eq!(packet(SEEN_REPLY, dir, 132, from, &timeouts), refresh(UDP, 0, false));
            assert_eq!(packet(SEEN_REPLY, dir, 133, from, &timeouts), refresh(STREAM, ASSURED, true));
            assert_eq!(packet(SEEN_REPLY | ASSURED, dir, 134, from, &timeouts), refresh(STREAM, 0, true));
        }
    }

    #[test]
    fn with_replied_refresh_only_answered_flows_are_extended() {
        let mut program = Program::empty();
        let policy = TimeoutPolicy { name: "x".into(), values: vec![], udp_refresh: Some(UdpRefresh::Replied) };
        program.timeouts.push(policy);
        let timeouts = &Timeouts::compile_all(&program)[1];
        let one_way = packet(0, 0, 5, stream_from(0), timeouts);
        assert!(!one_way.refresh && !one_way.steady && one_way.set_status == 0);
        assert_eq!(packet(0, 1, 5, stream_from(0), timeouts), refresh(UDP, SEEN_REPLY, false));
        assert_eq!(packet(SEEN_REPLY, 0, 5, stream_from(0), timeouts), refresh(UDP, 0, false));
    }

    #[test]
    fn a_fixed_timeout_is_never_refreshed_but_status_still_changes() {
        let timeouts = Timeouts::default();
        let result = packet(FIXED_TIMEOUT | SEEN_REPLY, 0, 1000, 0, &timeouts);
        assert_eq!((result.refresh, result.set_status, result.steady), (false, ASSURED, false));
    }
}

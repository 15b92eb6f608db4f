//! ICMP and ICMPv6 queries.

use erhu_planes::timeouts::TimeoutKey;
use erhu_planes::tuple::proto;

use crate::{Refresh, Timeouts, watch};

/// Whether a message of this type may be the first of a connection: requests only (echo, time stamp, information,
/// address mask; for ICMPv6 echo).
pub const fn opens(protocol: u8, icmp_type: u8) -> bool {
    match protocol {
        proto::ICMP => matches!(icmp_type, 8 | 13 | 15 | 17),
        proto::ICMPV6 => icmp_type == 128,
        _ => false,
    }
}

/// The timeout of a new connection, in ticks.
pub fn first(protocol: u8, timeouts: &Timeouts) -> u32 {
    timeouts.get(if protocol == proto::ICMPV6 { TimeoutKey::Icmpv6 } else { TimeoutKey::Icmp })
}

/// What a later packet does; `dir` is 0 for original, 1 for reply. The connection outlives its first answer, so that
/// duplicates of it pass; it is never assured.
pub fn packet(protocol: u8, status: u32, dir: usize, timeouts: &Timeouts) -> Refresh {
    watch(status, dir, first(protocol, timeouts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use erhu_planes::connections::status::{FIXED_TIMEOUT, SEEN_REPLY};

    #[test]
    fn only_requests_open_a_connection() {
        let v4: Vec<u8> = (0..=255).filter(|t| opens(proto::ICMP, *t)).collect();
        let v6: Vec<u8> = (0..=255).filter(|t| opens(proto::ICMPV6, *t)).collect();
        assert_eq!((v4, v6), (vec![8, 13, 15, 17], vec![128]));
        assert!(!opens(proto::UDP, 8));
    }

    /// O32: two requests before any answer are one connection that is still unreplied.
    #[test]
    fn requests_refresh_and_only_an_answer_sets_seen_reply() {
        let timeouts = Timeouts::default();
        let again = packet(proto::ICMP, 0, 0, &timeouts);
        assert_eq!(again, Refresh { refresh: true, timeout: 480, set_status: 0, steady: true });
        assert_eq!(packet(proto::ICMP, 0, 1, &timeouts).set_status, SEEN_REPLY);
        assert_eq!(packet(proto::ICMP, SEEN_REPLY, 1, &timeouts).set_status, 0);
    }

    #[test]
    fn a_fixed_timeout_is_not_refreshed() {
        let result = packet(proto::ICMP, FIXED_TIMEOUT, 0, &Timeouts::default());
        assert!(!result.refresh && !result.steady);
    }
}

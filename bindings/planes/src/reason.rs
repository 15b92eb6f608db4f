//! Drop reasons and other named counters: one list for counters, metrics, traces and documentation.

macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[repr(u8)]
        pub enum $name { $($(#[$doc])* $variant),+ }

        impl $name {
            /// Every variant, in the order of its index.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in statistics, metrics, traces and documents.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// Position in [`Self::ALL`] and in counter arrays.
            pub const fn index(self) -> usize {
                self as usize
            }

            /// The variant at a position, if there is one.
            pub fn from_index(index: usize) -> Option<Self> {
                Self::ALL.get(index).copied()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

named! {
    /// Why a packet did not leave. Each packet that does not has exactly one.
    DropReason {
        /// The frame's port and VLAN belong to no interface.
        NoInterface = "no_interface",
        /// The frame is for another MAC address.
        NotForUs = "not_for_us",
        /// The link or IP header is broken or cut short.
        Malformed = "malformed",
        /// The IPv4 header checksum is wrong.
        BadChecksum = "bad_checksum",
        /// A protocol, address or feature that this router does not handle.
        Unsupported = "unsupported",
        /// Reverse path filter.
        Rpf = "rpf",
        /// Over the zone's packet or byte rate.
        Policed = "policed",
        /// A raw rule dropped it.
        RawRule = "raw_rule",
        /// Connection tracking calls it INVALID and it may not leave untranslated.
        Invalid = "invalid",
        /// A rule dropped or rejected it.
        Rule = "rule",
        /// A hook's policy dropped or rejected it.
        Policy = "policy",
        /// A datagram's fragments did not all come in time.
        FragmentTimeout = "fragment_timeout",
        /// Fragments of one datagram overlap.
        FragmentOverlap = "fragment_overlap",
        /// Too many fragments are waiting.
        FragmentLimit = "fragment_limit",
        /// The zone has as many connections as it may.
        ZoneLimit = "zone_limit",
        /// The zone makes connections faster than it may.
        ZoneRate = "zone_rate",
        /// The host has as many connections or ports as it may.
        HostLimit = "host_limit",
        /// The connection table is full.
        TableFull = "table_full",
        /// The reply tuple is taken and the rules leave no other choice.
        Clash = "clash",
        /// The pool has no free port for this connection.
        PoolExhausted = "pool_exhausted",
        /// For a pool address, but no connection or mapping knows it.
        NoMapping = "no_mapping",
        /// A mapping exists but its filtering refuses this remote.
        Filtered = "filtered",
        /// Its time to live ran out here.
        TtlExpired = "ttl_expired",
        /// No route.
        NoRoute = "no_route",
        /// A blackhole route.
        Blackhole = "blackhole",
        /// The next hop does not answer ARP or neighbour discovery.
        NoNeighbour = "no_neighbour",
        /// Larger than the egress MTU and not to be fragmented.
        TooBig = "too_big",
        /// Too many link crossings.
        LinkLoop = "link_loop",
        /// The hand-over ring to the owning worker is full.
        HandoverFull = "handover_full",
        /// The port's transmit queue is full.
        TransmitFull = "transmit_full",
        /// No packet buffer is free.
        NoBuffer = "no_buffer",
    }
}

named! {
    /// Events that are no drops.
    Counter {
        /// A source port was changed because the reply tuple was taken.
        ClashRemapped = "clash_remapped",
        /// An unassured connection was ended early because the table was full.
        EarlyDrop = "early_drop",
        /// An ICMP error was not sent because of the rate limit.
        IcmpRateLimited = "icmp_rate_limited",
        /// A packet waited for its next hop's MAC address.
        ArpQueued = "arp_queued",
        /// Packets handed to another worker.
        HandedOver = "handed_over",
        /// Packets that the fast path handled.
        FastPath = "fast_path",
        /// Packets that the slow path handled.
        SlowPath = "slow_path",
        /// Packets classified INVALID, dropped or not.
        InvalidPackets = "invalid_packets",
        /// TCP segments that begin after what the receiver permits.
        TcpSeqAbove = "tcp_seq_above",
        /// TCP segments that begin there by less than one window, all else being right; they pass.
        TcpOvershoot = "tcp_overshoot",
        /// TCP segments that end before the receiver's window; they pass.
        TcpSeqBelow = "tcp_seq_below",
        /// TCP segments that acknowledge what was not sent.
        TcpAckAbove = "tcp_ack_above",
        /// TCP segments that acknowledge what was acknowledged long ago; they pass.
        TcpAckBelow = "tcp_ack_below",
        /// TCP resets that lie before what was acknowledged to their sender.
        TcpResetBelow = "tcp_reset_below",
        /// Packets that the router itself consumed.
        Consumed = "consumed",
        /// Packets that the router itself originated.
        Originated = "originated",
        /// Connections judged again after a change of rules.
        Reevaluated = "reevaluated",
        /// Connections that a change of rules ended.
        EndedByRules = "ended_by_rules",
        /// Broken invariants that were survived; never above 0 in a healthy process.
        Bug = "bug",
    }
}

/// Room for drop reasons in shared memory; a multiple of a cache line, more than [`DropReason::COUNT`].
pub const DROP_SLOTS: usize = 32;
/// Room for counters in shared memory, likewise.
pub const COUNTER_SLOTS: usize = 32;

const _: () = assert!(DropReason::COUNT <= DROP_SLOTS && Counter::COUNT <= COUNTER_SLOTS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_contract_in_its_order() {
        let names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        let contract = "no_interface not_for_us malformed bad_checksum unsupported rpf policed raw_rule invalid rule \
            policy fragment_timeout fragment_overlap fragment_limit zone_limit zone_rate host_limit table_full clash \
            pool_exhausted no_mapping filtered ttl_expired no_route blackhole no_neighbour too_big link_loop \
            handover_full transmit_full no_buffer";
        assert_eq!(names, contract.split_whitespace().collect::<Vec<_>>());
    }

    #[test]
    fn every_index_leads_back_to_its_reason() {
        for (at, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(DropReason::from_index(at), Some(*reason));
            assert_eq!(reason.index(), at);
        }
        assert_eq!(DropReason::from_index(DropReason::COUNT), None);
    }
}

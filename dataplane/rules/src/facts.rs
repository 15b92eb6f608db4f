//! What goes into a walk and what comes out of it.

use std::net::IpAddr;

use erhu_planes::program::{PortRange, RejectKind};

/// What a packet shows at a hook. Numbers are in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Interface (index) it came in by; none in `output`.
    pub ingress: Option<u16>,
    /// Interface (index) it leaves by; none before routing and in `input`.
    pub egress: Option<u16>,
    /// Zone (id) of the ingress interface; in `output` the zone it is routed in. Chooses between zone policies.
    pub zone: Option<u16>,
    /// Zone (id) of the egress interface.
    pub egress_zone: Option<u16>,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IP protocol.
    pub proto: u8,
    /// Source port; not looked at unless `has_ports`.
    pub sport: u16,
    /// Destination port; not looked at unless `has_ports`.
    pub dport: u16,
    /// Whether the ports are known. Port matches hold only if so, and only for TCP, UDP, SCTP, DCCP and UDP-Lite.
    pub has_ports: bool,
    /// ICMP or ICMPv6 type and code.
    pub icmp: Option<(u8, u8)>,
    /// One bit of [`erhu_planes::program::states`].
    pub state: u8,
    /// [`erhu_planes::program::statuses`] bits of its connection.
    pub status: u8,
    /// It is of its connection's reply direction.
    pub is_reply: bool,
    /// Packet mark before the hook.
    pub mark: u32,
    /// IP bytes, for who counts; no match looks at them.
    pub bytes: u32,
}

/// What a walk does besides its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Effects {
    /// Packet mark after the hook. Every walk starts it at [`Facts::mark`].
    pub mark: u32,
    /// The connection's mark, if a `connmark` was run. Never cleared by a walk.
    pub connmark: Option<u32>,
    /// A `notrack` was run. Never cleared by a walk.
    pub notrack: bool,
    /// A `count` was run, so that the hook has to run for each packet of this direction. Never cleared by a walk.
    pub packet_kind: bool,
    /// The rule whose action was final; none if the policy decided.
    pub decided_by: Option<RuleId>,
}

/// A rule of the program that [`crate::Rules`] were compiled from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub(crate) u32);

impl RuleId {
    /// Position among all rules: those of the hooks in index order, then those of the chains.
    pub const fn index(self) -> u32 {
        self.0
    }
}

/// An `snat` action, see [`crate::Rules::snat`]. Means something only to the rules that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SnatRef(pub(crate) u32);

/// A `dnat` or `redirect` action, see [`crate::Rules::dnat`]. Means something only to the rules that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DnatRef(pub(crate) u32);

/// The prefix of a `netmap` action, see [`crate::Rules::netmap`]. Means something only to the rules that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetmapRef(pub(crate) u32);

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The hook lets it pass, by a rule or by its policy.
    Accept,
    /// A rule dropped it.
    DropByRule,
    /// No rule was final and the policy is to drop.
    DropByPolicy,
    /// A rule rejected it.
    RejectByRule(RejectKind),
    /// No rule was final and the policy is to reject.
    RejectByPolicy(RejectKind),
    /// Accepted, with its source to be translated.
    Snat {
        /// The action.
        action: SnatRef,
    },
    /// Accepted, with its source to be translated to the egress interface's address.
    Masquerade {
        /// Ports, instead of all.
        ports: Option<PortRange>,
        /// Choose the port at random.
        random: bool,
    },
    /// Accepted, with its destination to be translated.
    Dnat {
        /// The action.
        action: DnatRef,
    },
    /// Accepted, with the network part of its destination, or in postrouting of its source, to be exchanged.
    Netmap {
        /// The new network.
        prefix: NetmapRef,
    },
}

//! A policy: what a rule script declared, typed, with names as written and the place of each declaration.
//!
//! Names are resolved, and declarations compared with one another, in [`crate::compile`].

use std::collections::HashSet;
use std::net::IpAddr;

use erhu_planes::program::{
    AddressRange, Behaviour, Encapsulation, Hook, InterfaceAddress, PolicyVerdict, PortRange, Position, Prefix,
    RejectKind, Tracking,
};
use erhu_planes::timeouts::{TimeoutKey, UdpRefresh};

/// The zone that always exists.
pub const MAIN: &str = "main";
/// The timeout policy that always exists.
pub const DEFAULT: &str = "default";

/// Everything a script declared, in script order.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Zones; `main` only where the script gave it options.
    pub zones: Vec<Zone>,
    /// Interfaces.
    pub interfaces: Vec<Interface>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Static neighbours.
    pub neighbours: Vec<Neighbour>,
    /// Pools.
    pub pools: Vec<Pool>,
    /// Timeout policies.
    pub timeouts: Vec<TimeoutPolicy>,
    /// Chains.
    pub chains: Vec<Chain>,
    /// Verdicts of hooks.
    pub verdicts: Vec<HookVerdict>,
    /// Rules of all hooks and chains.
    pub rules: Vec<Rule>,
    /// Names whose declaration had an error; referring to them is not a second one.
    pub broken: HashSet<(Kind, String)>,
}

/// Kinds of things that have names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Conntrack zones.
    Zone,
    /// Interfaces.
    Interface,
    /// Pools.
    Pool,
    /// Timeout policies.
    Timeout,
    /// Chains.
    Chain,
}

impl Kind {
    /// The function that declares it, which is also what it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zone => "zone",
            Self::Interface => "interface",
            Self::Pool => "pool",
            Self::Timeout => "timeout",
            Self::Chain => "chain",
        }
    }
}

/// `zone(name, #{…})`.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Where.
    pub at: Position,
    /// Name.
    pub name: String,
    /// Conntrack zone id; 0 only for `main`.
    pub id: u16,
    /// Connections it may have.
    pub limit: Option<u32>,
    /// Connections kept free for it.
    pub reserve: u32,
    /// New connections per second.
    pub rate: Option<u32>,
    /// TCP tracking.
    pub tracking: Tracking,
    /// Name of a timeout policy.
    pub timeout: Option<String>,
}

/// `interface(name, #{…})`.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Where.
    pub at: Position,
    /// Name.
    pub name: String,
    /// Port of the dataplane's configuration; empty for an end of a link.
    pub port: String,
    /// Name of the other end of the link that it is an end of, if it is one.
    pub peer: Option<String>,
    /// Tag on the port.
    pub encapsulation: Encapsulation,
    /// Name of its zone.
    pub zone: String,
    /// Own addresses.
    pub addresses: Vec<InterfaceAddress>,
    /// Bytes.
    pub mtu: u16,
    /// Instead of the port's.
    pub mac: Option<[u8; 6]>,
    /// Answer ARP for others.
    pub proxy_arp: bool,
}

impl Interface {
    /// The function that declares it.
    pub fn function(&self) -> &'static str {
        if self.peer.is_some() { "link" } else { "interface" }
    }
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RouteTarget {
    /// Next hop.
    Via(IpAddr),
    /// Name of an interface.
    Interface(String),
    /// Name of a zone.
    Zone(String),
    /// Nowhere.
    Blackhole,
}

/// `route(zone, prefix, #{…})`.
#[derive(Clone, Debug)]
pub struct Route {
    /// Where.
    pub at: Position,
    /// Name of the zone whose table it is in.
    pub zone: String,
    /// Destination.
    pub prefix: Prefix,
    /// Where to.
    pub target: RouteTarget,
    /// Lower is preferred.
    pub metric: u32,
}

/// `neighbour(interface, ip, mac)`.
#[derive(Clone, Debug)]
pub struct Neighbour {
    /// Where.
    pub at: Position,
    /// Name of the interface.
    pub interface: String,
    /// IP address.
    pub address: IpAddr,
    /// MAC address.
    pub mac: [u8; 6],
}

/// `pool(name, #{…})`.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Where.
    pub at: Position,
    /// Name.
    pub name: String,
    /// Addresses as written.
    pub addresses: Vec<AddressRange>,
    /// Ports to give.
    pub ports: PortRange,
    /// Which remotes share a mapping.
    pub mapping: Behaviour,
    /// Which remotes may use it inbound.
    pub filtering: Behaviour,
    /// Keep the source port where free.
    pub preserve_port: bool,
    /// Keep odd odd and even even.
    pub parity: bool,
    /// A host keeps one address.
    pub paired: bool,
    /// Rest of a freed port, in milliseconds.
    pub reuse_delay_ms: u64,
    /// Reachable from inside by mapped addresses.
    pub hairpin: bool,
    /// Name of the zone whose addresses they are.
    pub zone: String,
}

/// `timeout(name, #{…})`.
#[derive(Clone, Debug)]
pub struct TimeoutPolicy {
    /// Where.
    pub at: Position,
    /// Name.
    pub name: String,
    /// Milliseconds by key.
    pub values: Vec<(TimeoutKey, u64)>,
    /// Whether one-way UDP extends itself.
    pub udp_refresh: Option<UdpRefresh>,
}

/// `chain(name)`.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Where.
    pub at: Position,
    /// Name.
    pub name: String,
}

/// `policy(hook, verdict)` and `policy(hook, zone, verdict)`.
#[derive(Clone, Debug)]
pub struct HookVerdict {
    /// Where.
    pub at: Position,
    /// Hook.
    pub hook: Hook,
    /// Name of a zone; `None`: all that have none of their own.
    pub zone: Option<String>,
    /// Verdict.
    pub verdict: PolicyVerdict,
}

/// Where a rule belongs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Directly in a hook.
    Hook(Hook),
    /// In a chain, by name.
    Chain(String),
}

impl Place {
    /// The function that declares a rule there.
    pub const fn function(&self) -> &'static str {
        match self {
            Self::Hook(hook) => hook.name(),
            Self::Chain(_) => "rule",
        }
    }
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Where.
    pub at: Position,
    /// Hook or chain.
    pub place: Place,
    /// All must hold.
    pub matches: Vec<Match>,
    /// In order.
    pub actions: Vec<Action>,
}

/// One condition.
#[derive(Clone, Debug)]
pub struct Match {
    /// It must not hold.
    pub negated: bool,
    /// What is compared.
    pub key: MatchKey,
}

/// What is compared; any value will do.
#[derive(Clone, Debug)]
pub enum MatchKey {
    /// Names of interfaces it came in by.
    Ingress(Vec<String>),
    /// Names of interfaces it leaves by.
    Egress(Vec<String>),
    /// Names of zones it came in.
    Zone(Vec<String>),
    /// Names of zones it leaves by.
    EgressZone(Vec<String>),
    /// Source addresses.
    Source(Vec<AddressRange>),
    /// Destination addresses.
    Destination(Vec<AddressRange>),
    /// IP protocols.
    Protocol(Vec<u8>),
    /// Source ports.
    SourcePort(Vec<PortRange>),
    /// Destination ports.
    DestinationPort(Vec<PortRange>),
    /// ICMP types.
    IcmpType(Vec<PortRange>),
    /// ICMP codes.
    IcmpCode(Vec<PortRange>),
    /// Bits of [`erhu_planes::program::states`].
    State(u8),
    /// Bits of [`erhu_planes::program::statuses`].
    Status(u8),
    /// Bits of [`erhu_planes::program::directions`].
    Direction(u8),
    /// `(value, mask)`.
    Mark(Vec<(u32, u32)>),
}

impl MatchKey {
    /// The key in scripts.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ingress(_) => "ingress",
            Self::Egress(_) => "egress",
            Self::Zone(_) => "zone",
            Self::EgressZone(_) => "egress_zone",
            Self::Source(_) => "src",
            Self::Destination(_) => "dst",
            Self::Protocol(_) => "proto",
            Self::SourcePort(_) => "sport",
            Self::DestinationPort(_) => "dport",
            Self::IcmpType(_) => "icmp_type",
            Self::IcmpCode(_) => "icmp_code",
            Self::State(_) => "state",
            Self::Status(_) => "status",
            Self::Direction(_) => "direction",
            Self::Mark(_) => "mark",
        }
    }

    /// Whether a packet has the property at a hook. Raw rules run before tracking, the first two hooks
    /// before routing; what the router sends came in nowhere, what it receives leaves nowhere.
    pub const fn known_in(&self, hook: Hook) -> bool {
        match self {
            Self::Ingress(_) => !matches!(hook, Hook::Output),
            Self::Egress(_) | Self::EgressZone(_) => !matches!(hook, Hook::Raw | Hook::Prerouting | Hook::Input),
            Self::State(_) | Self::Status(_) | Self::Direction(_) => !matches!(hook, Hook::Raw),
            _ => true,
        }
    }
}

/// One action.
#[derive(Clone, Debug)]
pub struct Action {
    /// Where its function was called; `None` for constants.
    pub at: Option<Position>,
    /// What it does.
    pub kind: ActionKind,
}

/// What an action does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActionKind {
    /// Final: go on to the next hook.
    Accept,
    /// Final: drop.
    Drop,
    /// Final: drop and answer.
    Reject(RejectKind),
    /// Leave untracked.
    Notrack,
    /// Final: translate the source.
    Snat(Snat),
    /// Final: translate the source to the egress interface's address.
    Masquerade {
        /// Instead of all ports.
        ports: Option<PortRange>,
        /// Choose at random.
        random: bool,
    },
    /// Final: translate the destination.
    Dnat(Dnat),
    /// Final: translate the destination to the ingress interface's address.
    Redirect(PortRange),
    /// Final: exchange the network part of an address.
    Netmap(Prefix),
    /// Run a chain by name, then go on.
    Jump(String),
    /// Run a chain by name instead of the rest.
    GoTo(String),
    /// End this chain.
    Return,
    /// Set the packet mark.
    Mark(u32),
    /// Set the connection's mark.
    ConnMark(u32),
    /// Count under a name.
    Count(String),
    /// Nothing.
    Continue,
}

impl ActionKind {
    /// The name in scripts.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Drop => "drop",
            Self::Reject(_) => "reject",
            Self::Notrack => "notrack",
            Self::Snat(_) => "snat",
            Self::Masquerade { .. } => "masquerade",
            Self::Dnat(_) => "dnat",
            Self::Redirect(_) => "redirect",
            Self::Netmap(_) => "netmap",
            Self::Jump(_) => "jump",
            Self::GoTo(_) => "go_to",
            Self::Return => "return_",
            Self::Mark(_) => "mark",
            Self::ConnMark(_) => "connmark",
            Self::Count(_) => "count",
            Self::Continue => "continue_",
        }
    }
}

/// `snat(#{…})`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snat {
    /// Addresses.
    pub source: SourceChoice,
    /// Instead of the pool's, or of all.
    pub ports: Option<PortRange>,
    /// Choose the port at random.
    pub random: bool,
    /// A host keeps its address.
    pub persistent: bool,
}

/// Where translated addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceChoice {
    /// A pool by name.
    Pool(String),
    /// Addresses.
    To(Vec<AddressRange>),
}

/// `dnat(#{…})`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dnat {
    /// Addresses.
    pub to: Vec<AddressRange>,
    /// Ports; `None`: the port stays.
    pub ports: Option<PortRange>,
    /// Name of the zone to route in.
    pub zone: Option<String>,
    /// Choose at random.
    pub random: bool,
    /// A source has the same address whatever it sends to.
    pub persistent: bool,
}

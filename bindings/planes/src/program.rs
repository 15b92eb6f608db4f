//! The rule program: a whole policy as the control plane hands it to the dataplane.
//!
//! # Format
//!
//! A 32-byte header ([`HEADER_BYTES`]: magic, layout version, length, CRC-32 of the body) and a body of at most
//! [`MAX_BYTES`], a [`Program`] in postcard encoding. Decoding checks structure; [`Program::validate`] checks meaning:
//! every index, range, bound and cross reference. The dataplane does both on a private copy before anything else
//! looks at it.

mod validate;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::timeouts::{TimeoutKey, UdpRefresh};

/// First word of an encoded program.
pub const MAGIC: u64 = u64::from_le_bytes(*b"erhuPRG1");
/// Version of the body's layout. A change of any type below is a change of this number.
pub const LAYOUT_VERSION: u32 = 3;
/// Bytes before the body.
pub const HEADER_BYTES: usize = 32;
/// Largest encoded program.
pub const MAX_BYTES: usize = 64 << 20;

/// Bounds on what a program may hold.
pub mod limits {
    /// Zones.
    pub const ZONES: usize = 65_536;
    /// Interfaces.
    pub const INTERFACES: usize = 8192;
    /// Addresses of one interface.
    pub const ADDRESSES: usize = 256;
    /// Routes.
    pub const ROUTES: usize = 1 << 20;
    /// Static neighbours.
    pub const NEIGHBOURS: usize = 1 << 18;
    /// Pools.
    pub const POOLS: usize = 16_384;
    /// Addresses of one pool.
    pub const POOL_ADDRESSES: u64 = 65_536;
    /// Timeout policies.
    pub const TIMEOUTS: usize = 4096;
    /// Chains.
    pub const CHAINS: usize = 4096;
    /// Rules of all hooks and chains together.
    pub const RULES: usize = 1 << 18;
    /// Matches or actions of one rule.
    pub const PER_RULE: usize = 64;
    /// Values of one match.
    pub const VALUES: usize = 65_536;
    /// Named counters.
    pub const NAMED: usize = crate::stats::MAX_NAMED;
    /// Bytes of a name.
    pub const NAME: usize = crate::stats::NAME_BYTES;
    /// Depth of jumps.
    pub const JUMPS: usize = 16;
    /// Rules that one walk may come by, every chain counted as often as it is jumped to.
    pub const WALK: u64 = 1 << 20;
    /// Longest timeout in milliseconds: 100 days.
    pub const TIMEOUT_MS: u64 = 8_640_000_000;
}

/// A whole policy.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Program {
    /// Script files, named by [`Position::source`]. The first is the script itself.
    pub sources: Vec<String>,
    /// Zones; the first is always `main`, id 0.
    pub zones: Vec<Zone>,
    /// Interfaces.
    pub interfaces: Vec<Interface>,
    /// Declared routes; connected ones follow from interface addresses.
    pub routes: Vec<Route>,
    /// Static neighbours.
    pub neighbours: Vec<Neighbour>,
    /// Address pools.
    pub pools: Vec<Pool>,
    /// Timeout policies; the first is always `default`.
    pub timeouts: Vec<TimeoutPolicy>,
    /// Chains for `jump` and `go_to`.
    pub chains: Vec<Chain>,
    /// Rules and policies by [`Hook::index`]; always [`Hook::COUNT`] of them.
    pub hooks: Vec<HookRules>,
    /// Names of counters that `count` actions refer to.
    pub counters: Vec<String>,
}

/// Where something was declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// Index into [`Program::sources`].
    pub source: u16,
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
}

/// How strictly TCP is followed in a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Tracking {
    /// No pickup in mid-stream.
    Strict,
    /// As the kernel with `tcp_loose=1`.
    #[default]
    Loose,
    /// As the kernel with `tcp_be_liberal=1`.
    Liberal,
    /// One direction may never be seen.
    Asymmetric,
}

/// A conntrack zone and routing table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// Conntrack zone id.
    pub id: u16,
    /// Name.
    pub name: String,
    /// Connections it may have; `None`: no limit.
    pub limit: Option<u32>,
    /// Connections kept free for it.
    pub reserve: u32,
    /// New connections per second; `None`: no limit.
    pub rate: Option<u32>,
    /// TCP tracking.
    pub tracking: Tracking,
    /// Index into [`Program::timeouts`].
    pub timeout: u16,
}

/// How frames come to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Encapsulation {
    /// No tag.
    Untagged,
    /// One 802.1Q tag, 1 to 4094.
    Vlan(u16),
    /// No port: one end of a virtual wire whose other end is that interface (index).
    Link(u16),
}

/// A logical interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Name of the port, as in the dataplane's configuration; empty for an end of a link.
    pub port: String,
    /// Encapsulation on the port.
    pub encapsulation: Encapsulation,
    /// Id of the zone.
    pub zone: u16,
    /// Own addresses.
    pub addresses: Vec<InterfaceAddress>,
    /// Largest IP packet, bytes.
    pub mtu: u16,
    /// MAC address; `None`: the port's.
    pub mac: Option<[u8; 6]>,
    /// Answer ARP for addresses that are routed elsewhere.
    pub proxy_arp: bool,
}

/// An own address with the length of its connected prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// Prefix length.
    pub length: u8,
}

/// A prefix; host bits are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Prefix {
    /// Network address.
    pub network: IpAddr,
    /// Length in bits.
    pub length: u8,
}

impl Prefix {
    /// Clears the host bits; `None` if the length is too large for the family.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let network = match address {
            IpAddr::V4(a) if length <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                Ipv4Addr::from(u32::from(a) & mask).into()
            }
            IpAddr::V6(a) if length <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                Ipv6Addr::from(u128::from(a) & mask).into()
            }
            _ => return None,
        };
        Some(Self { network, length })
    }

    /// Whether an address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.network.is_ipv4() == address.is_ipv4()
            && Self::new(address, self.length).is_some_and(|p| p.network == self.network)
    }

    /// An address with this prefix in place of its own first bits; `None` for one of the other family.
    pub fn over(&self, address: IpAddr) -> Option<IpAddr> {
        match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(a)) => {
                let host = u32::MAX.checked_shr(self.length.into()).unwrap_or(0);
                Some(Ipv4Addr::from(u32::from(network) | u32::from(a) & host).into())
            }
            (IpAddr::V6(network), IpAddr::V6(a)) => {
                let host = u128::MAX.checked_shr(self.length.into()).unwrap_or(0);
                Some(Ipv6Addr::from(u128::from(network) | u128::from(a) & host).into())
            }
            _ => None,
        }
    }
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RouteTarget {
    /// To a next hop; its interface follows from the zone's connected prefixes.
    Via(IpAddr),
    /// Directly out of an interface (index).
    Interface(u16),
    /// Look up again in that zone (id).
    Zone(u16),
    /// Nowhere.
    Blackhole,
}

/// A declared route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Id of the zone whose table it is in.
    pub zone: u16,
    /// Destination.
    pub prefix: Prefix,
    /// Where to.
    pub target: RouteTarget,
    /// Of equal prefixes the lowest metric wins.
    pub metric: u32,
}

/// A static neighbour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Index of the interface.
    pub interface: u16,
    /// IP address.
    pub address: IpAddr,
    /// MAC address.
    pub mac: [u8; 6],
}

/// RFC 4787 behaviours, for mapping and for filtering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Behaviour {
    /// For any remote.
    EndpointIndependent,
    /// Per remote address.
    AddressDependent,
    /// Per remote address and port.
    AddressPortDependent,
}

/// A range of addresses of one family, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AddressRange {
    /// First.
    pub first: IpAddr,
    /// Last, not below the first.
    pub last: IpAddr,
}

impl AddressRange {
    /// Whether an address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, self.last, address) {
            (IpAddr::V4(a), IpAddr::V4(b), IpAddr::V4(x)) => a <= x && x <= b,
            (IpAddr::V6(a), IpAddr::V6(b), IpAddr::V6(x)) => a <= x && x <= b,
            _ => false,
        }
    }

    /// Number of addresses, saturating.
    pub fn count(&self) -> u64 {
        match (self.first, self.last) {
            (IpAddr::V4(a), IpAddr::V4(b)) => u64::from(u32::from(b).saturating_sub(u32::from(a))) + 1,
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                u64::try_from(u128::from(b).saturating_sub(u128::from(a))).unwrap_or(u64::MAX).saturating_add(1)
            }
            _ => 0,
        }
    }
}

/// A range of numbers (ports, ICMP types), both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortRange {
    /// First.
    pub first: u16,
    /// Last, not below the first.
    pub last: u16,
}

/// Addresses to translate to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Name.
    pub name: String,
    /// Addresses, in the order written.
    pub addresses: Vec<AddressRange>,
    /// Ports to give.
    pub ports: PortRange,
    /// Which remotes share a mapping.
    pub mapping: Behaviour,
    /// Which remotes may use a mapping inbound.
    pub filtering: Behaviour,
    /// Keep the source port where it is free.
    pub preserve_port: bool,
    /// Keep odd ports odd and even ports even where possible.
    pub parity: bool,
    /// A host keeps one address (`paired`).
    pub paired: bool,
    /// Milliseconds that a freed port rests.
    pub reuse_delay_ms: u64,
    /// Inside hosts may reach each other by their mapped addresses.
    pub hairpin: bool,
    /// Id of the zone whose addresses they are.
    pub zone: u16,
}

impl Pool {
    /// A pool of zone `main` as it is where nothing else is asked for.
    pub fn new(name: &str, addresses: Vec<AddressRange>) -> Self {
        Self {
            name: name.into(),
            addresses,
            ports: PortRange { first: 1024, last: u16::MAX },
            mapping: Behaviour::EndpointIndependent,
            filtering: Behaviour::AddressPortDependent,
            preserve_port: true,
            parity: true,
            paired: true,
            reuse_delay_ms: 0,
            hairpin: true,
            zone: 0,
        }
    }
}

/// A named set of timeouts. Keys that are missing keep those of `default`, and there the kernel's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeoutPolicy {
    /// Name.
    pub name: String,
    /// Milliseconds by key.
    pub values: Vec<(TimeoutKey, u64)>,
    /// Whether one-way UDP extends itself.
    pub udp_refresh: Option<UdpRefresh>,
}

/// Fixed points where rules run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Hook {
    /// Before connection tracking.
    Raw,
    /// First packets, before routing.
    Prerouting,
    /// Packets for the router.
    Input,
    /// Packets that pass.
    Forward,
    /// Packets from the router.
    Output,
    /// First packets, before they leave.
    Postrouting,
}

impl Hook {
    /// All hooks in index order.
    pub const ALL: [Self; 6] =
        [Self::Raw, Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting];
    /// How many.
    pub const COUNT: usize = Self::ALL.len();

    /// Position in [`Program::hooks`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The name in scripts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

/// A hook's rules and what happens when none of them is final.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HookRules {
    /// In script order.
    pub rules: Vec<Rule>,
    /// Verdict where no rule was final.
    pub policy: PolicyVerdict,
    /// The same for packets of one zone (id); comes before `policy`.
    pub zone_policies: Vec<(u16, PolicyVerdict)>,
}

/// A hook's policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PolicyVerdict {
    /// Go on.
    #[default]
    Accept,
    /// Drop silently.
    Drop,
    /// Drop with an answer.
    Reject,
}

/// Rules that a `jump` leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Name.
    pub name: String,
    /// In script order.
    pub rules: Vec<Rule>,
}

/// One rule: all matches must hold, then the actions run in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Where it was declared.
    pub at: Position,
    /// All must hold; none means every packet.
    pub matches: Vec<Match>,
    /// In order; a final one ends the walk.
    pub actions: Vec<Action>,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Match {
    /// It must not hold.
    pub negated: bool,
    /// What is compared.
    pub key: MatchKey,
}

/// What a condition compares; any of the values will do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MatchKey {
    /// Interface (index) it came in by.
    Ingress(Vec<u16>),
    /// Interface (index) it leaves by.
    Egress(Vec<u16>),
    /// Zone (id) of the interface it came in by; for `output` the zone it is routed in.
    Zone(Vec<u16>),
    /// Zone (id) of the interface it leaves by.
    EgressZone(Vec<u16>),
    /// Source address.
    Source(Vec<AddressRange>),
    /// Destination address.
    Destination(Vec<AddressRange>),
    /// IP protocol.
    Protocol(Vec<u8>),
    /// Source port of TCP, UDP, SCTP, DCCP or UDP-Lite.
    SourcePort(Vec<PortRange>),
    /// Destination port, likewise.
    DestinationPort(Vec<PortRange>),
    /// ICMP or ICMPv6 type.
    IcmpType(Vec<PortRange>),
    /// ICMP or ICMPv6 code.
    IcmpCode(Vec<PortRange>),
    /// [`states`] bits.
    State(u8),
    /// [`statuses`] bits.
    Status(u8),
    /// [`directions`] bits.
    Direction(u8),
    /// Packet mark: `(value, mask)`.
    Mark(Vec<(u32, u32)>),
}

/// Bits of [`MatchKey::State`].
pub mod states {
    /// First packet of a connection.
    pub const NEW: u8 = 1;
    /// Of a known connection.
    pub const ESTABLISHED: u8 = 2;
    /// An ICMP error about a known connection, or an expected connection's first packet.
    pub const RELATED: u8 = 4;
    /// Not trackable, or against the protocol.
    pub const INVALID: u8 = 8;
    /// Excluded by `notrack`.
    pub const UNTRACKED: u8 = 16;
    /// All of them.
    pub const ALL: u8 = 31;
}

/// Bits of [`MatchKey::Status`]: what a packet's connection is. A packet without one has none.
pub mod statuses {
    /// Its source is translated.
    pub const SNAT: u8 = 1;
    /// Its destination is translated.
    pub const DNAT: u8 = 2;
    /// Assured: not ended early.
    pub const ASSURED: u8 = 4;
    /// An answer was seen.
    pub const SEEN_REPLY: u8 = 8;
    /// All of them.
    pub const ALL: u8 = 15;
}

/// Bits of [`MatchKey::Direction`], of which a packet of a connection has one. A packet without one has none.
pub mod directions {
    /// Of who began.
    pub const ORIGINAL: u8 = 1;
    /// Of who answers.
    pub const REPLY: u8 = 2;
    /// Both of them.
    pub const ALL: u8 = 3;
}

/// What `reject` answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RejectKind {
    /// TCP reset for TCP, port unreachable for the rest.
    Default,
    /// Administratively prohibited.
    Admin,
    /// Host unreachable.
    Host,
    /// Net unreachable.
    Net,
    /// Port unreachable.
    Port,
    /// TCP reset; port unreachable where it is not TCP.
    Reset,
}

/// Where translated addresses come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceChoice {
    /// A pool (index).
    Pool(u16),
    /// These addresses, as the kernel does: a port is shared towards different remotes.
    To(Vec<AddressRange>),
}

/// `snat(#{…})`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snat {
    /// Addresses.
    pub source: SourceChoice,
    /// Ports, instead of the pool's or all of them.
    pub ports: Option<PortRange>,
    /// Choose the port at random even if the original one is free.
    pub random: bool,
    /// A host keeps its address (only for `To`).
    pub persistent: bool,
}

/// Where a destination is translated to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DestinationChoice {
    /// One of these addresses.
    To(Vec<AddressRange>),
    /// The first address of the interface it came in by (`redirect`).
    Ingress,
}

/// `dnat(#{…})` and `redirect(port)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dnat {
    /// Addresses.
    pub destination: DestinationChoice,
    /// Ports; `None`: the port stays.
    pub ports: Option<PortRange>,
    /// Zone (id) whose routes lead there; `None`: that of the interface it came in by.
    pub zone: Option<u16>,
    /// Choose address and port at random.
    pub random: bool,
    /// A source has the same address whatever it sends to.
    pub persistent: bool,
}

/// One action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Final: this hook lets it pass.
    Accept,
    /// Final: dropped.
    Drop,
    /// Final: dropped with an answer.
    Reject(RejectKind),
    /// Only in `raw`: connection tracking leaves it alone.
    Notrack,
    /// Final in `postrouting`: translate the source.
    Snat(Snat),
    /// Final in `postrouting`: translate the source to the egress interface's address.
    Masquerade {
        /// Ports, instead of all.
        ports: Option<PortRange>,
        /// Choose the port at random.
        random: bool,
    },
    /// Final in `prerouting`: translate the destination.
    Dnat(Dnat),
    /// Final: exchange the network part of the destination (in `prerouting`) or source (in `postrouting`).
    Netmap(Prefix),
    /// Run a chain (index), then go on here.
    Jump(u16),
    /// Run a chain (index) instead of the rest of this one.
    GoTo(u16),
    /// End this chain; at a hook's top, its policy decides.
    Return,
    /// Set the packet mark.
    Mark(u32),
    /// Set the connection's mark.
    ConnMark(u32),
    /// Count in a named counter (index into [`Program::counters`]).
    Count(u16),
    /// Nothing; go on with the next rule.
    Continue,
}

impl Action {
    /// Whether the walk ends with it in a hook that allows it.
    pub const fn is_final(&self) -> bool {
        let translates = matches!(self, Self::Snat(_) | Self::Masquerade { .. } | Self::Dnat(_) | Self::Netmap(_));
        translates || matches!(self, Self::Accept | Self::Drop | Self::Reject(_))
    }

    /// Whether a hook allows it. Jumps are followed by [`Program::validate`].
    pub const fn allowed_in(&self, hook: Hook) -> bool {
        match self {
            Self::Accept | Self::Jump(_) | Self::GoTo(_) | Self::Return => true,
            Self::Mark(_) | Self::Count(_) | Self::Continue => true,
            Self::Drop => !matches!(hook, Hook::Postrouting),
            Self::Reject(_) => matches!(hook, Hook::Input | Hook::Forward | Hook::Output),
            Self::Notrack => matches!(hook, Hook::Raw),
            Self::Snat(_) | Self::Masquerade { .. } => matches!(hook, Hook::Postrouting),
            Self::Dnat(_) => matches!(hook, Hook::Prerouting),
            Self::Netmap(_) => matches!(hook, Hook::Prerouting | Hook::Postrouting),
            Self::ConnMark(_) => !matches!(hook, Hook::Raw | Hook::Output),
        }
    }
}

/// Why bytes are no program, or a program makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// Not a program's header.
    #[error("rule program: {0}")]
    Header(String),
    /// The checksum is wrong.
    #[error("rule program: checksum {found:#010x}, computed {computed:#010x}")]
    Checksum {
        /// In the header.
        found: u32,
        /// Of the body.
        computed: u32,
    },
    /// The body does not decode.
    #[error("rule program: {0}")]
    Decode(String),
    /// The body decodes but cannot be run.
    #[error("rule program: {0}")]
    Invalid(String),
}

impl Program {
    /// An empty policy: zone `main`, default timeouts, no interface, everything accepted.
    pub fn empty() -> Self {
        Self {
            sources: vec!["(empty)".into()],
            zones: vec![Zone {
                id: 0,
                name: "main".into(),
                limit: None,
                reserve: 0,
                rate: None,
                tracking: Tracking::Loose,
                timeout: 0,
            }],
            timeouts: vec![TimeoutPolicy { name: "default".into(), values: Vec::new(), udp_refresh: None }],
            hooks: vec![HookRules::default(); Hook::COUNT],
            ..Self::default()
        }
    }

    /// Encodes header and body.
    ///
    /// # Errors
    /// [`ProgramError::Invalid`] if the result would be larger than [`MAX_BYTES`].
    pub fn encode(&self) -> Result<Vec<u8>, ProgramError> {
        let body = postcard::to_stdvec(self).map_err(|e| ProgramError::Invalid(e.to_string()))?;
        if body.len() + HEADER_BYTES > MAX_BYTES {
            return Err(ProgramError::Invalid(format!("{} bytes are more than {MAX_BYTES}", body.len())));
        }
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend(LAYOUT_VERSION.to_le_bytes());
        bytes.extend(crc32fast::hash(&body).to_le_bytes());
        bytes.extend((body.len() as u64).to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        Ok(bytes)
    }

    /// Decodes and validates. The bytes must be private to the caller.
    ///
    /// # Errors
    /// Says what is wrong; never panics, whatever the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProgramError> {
        let word = |at: usize| -> Option<u64> { Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?)) };
        let half = |at: usize| -> Option<u32> { Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)) };
        let (Some(magic), Some(version), Some(found), Some(length), Some(reserved)) =
            (word(0), half(8), half(12), word(16), word(24))
        else {
            return Err(ProgramError::Header(format!("{} bytes are too few for a header", bytes.len())));
        };
        if magic != MAGIC {
            return Err(ProgramError::Header("the first bytes are not those of a program".into()));
        }
        if version != LAYOUT_VERSION {
            return Err(ProgramError::Header(format!(
                "layout version {version}, this dataplane runs {LAYOUT_VERSION}"
            )));
        }
        let body = &bytes[HEADER_BYTES..];
        if bytes.len() > MAX_BYTES || length != body.len() as u64 || reserved != 0 {
            return Err(ProgramError::Header(format!("length {length}, but {} bytes follow", body.len())));
        }
        let computed = crc32fast::hash(body);
        if found != computed {
            return Err(ProgramError::Checksum { found, computed });
        }
        let (program, rest): (Self, _) =
            postcard::take_from_bytes(body).map_err(|e| ProgramError::Decode(e.to_string()))?;
        if !rest.is_empty() {
            return Err(ProgramError::Decode(format!("{} bytes are left over", rest.len())));
        }
        program.validate()?;
        Ok(program)
    }

    /// Checks every index, range, bound and cross reference, so that running the program cannot break an invariant.
    ///
    /// # Errors
    /// [`ProgramError::Invalid`] with the first fault found.
    pub fn validate(&self) -> Result<(), ProgramError> {
        validate::Validator { program: self }.run().map_err(ProgramError::Invalid)
    }

    /// `script:line:column` of something declared.
    pub fn place(&self, at: Position) -> String {
        let source = self.sources.get(usize::from(at.source)).map_or("?", String::as_str);
        format!("{source}:{}:{}", at.line, at.column)
    }

    /// The zone with an id.
    pub fn zone(&self, id: u16) -> Option<&Zone> {
        self.zones.iter().find(|z| z.id == id)
    }
}

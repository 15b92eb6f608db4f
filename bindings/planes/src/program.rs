//! The rule program: a whole policy as the control plane hands it to the dataplane.
//!
//! # Format
//!
//! A 32-byte header ([`HEADER_BYTES`]: magic, layout version, length, CRC-32 of the body) and a body of at most
//! [`MAX_BYTES`], a [`Program`] in postcard encoding. Decoding checks structure; [`Program::validate`] checks meaning:
//! every index, range, bound and cross reference. The dataplane does both on a private copy before anything else
//! looks at it.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::timeouts::{TimeoutKey, UdpRefresh};

/// First word of an encoded program.
pub const MAGIC: u64 = u64::from_le_bytes(*b"erhuPRG1");
/// Version of the body's layout. A change of any type below is a change of this number.
pub const LAYOUT_VERSION: u32 = 1;
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

/// What a port's frames carry for an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Encapsulation {
    /// No tag.
    Untagged,
    /// One 802.1Q tag, 1 to 4094.
    Vlan(u16),
}

/// A logical interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Name of the port, as in the dataplane's configuration.
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
    /// Run a chain (index), then go on here.
    Jump(u16),
    /// Run a chain (index) instead of the rest of this one.
    GoTo(u16),
    /// End this chain; at a hook's top, its policy decides.
    Return,
    /// Set the packet mark.
    Mark(u32),
    /// Count in a named counter (index into [`Program::counters`]).
    Count(u16),
    /// Nothing; go on with the next rule.
    Continue,
}

impl Action {
    /// Whether the walk ends with it in a hook that allows it.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Accept | Self::Drop | Self::Reject(_) | Self::Snat(_) | Self::Masquerade { .. })
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
        Validator { program: self }.run().map_err(ProgramError::Invalid)
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

struct Validator<'p> {
    program: &'p Program,
}

type Fault = Result<(), String>;

fn within(what: &str, found: usize, most: usize) -> Fault {
    if found > most { Err(format!("{found} {what}, at most {most} are possible")) } else { Ok(()) }
}

fn name(what: &str, text: &str, seen: &mut HashSet<String>) -> Fault {
    if text.is_empty() || text.len() > limits::NAME || text.chars().any(char::is_control) {
        return Err(format!("{what} name {text:?} is empty, too long or not printable"));
    }
    if seen.insert(text.to_owned()) { Ok(()) } else { Err(format!("two {what}s are named {text:?}")) }
}

impl Validator<'_> {
    fn run(&self) -> Fault {
        let p = self.program;
        within("sources", p.sources.len(), 4096)?;
        self.zones()?;
        self.interfaces()?;
        self.routes()?;
        self.pools()?;
        self.timeouts()?;
        within("named counters", p.counters.len(), limits::NAMED)?;
        let mut seen = HashSet::new();
        p.counters.iter().try_for_each(|c| name("counter", c, &mut seen))?;
        self.rules()
    }

    fn zone_ids(&self) -> HashSet<u16> {
        self.program.zones.iter().map(|z| z.id).collect()
    }

    fn zones(&self) -> Fault {
        let p = self.program;
        within("zones", p.zones.len(), limits::ZONES)?;
        if p.zones.first().is_none_or(|z| z.id != 0) {
            return Err("the first zone is not main".into());
        }
        let (mut names, mut ids) = (HashSet::new(), HashSet::new());
        for zone in &p.zones {
            name("zone", &zone.name, &mut names)?;
            if !ids.insert(zone.id) {
                return Err(format!("two zones have id {}", zone.id));
            }
            if usize::from(zone.timeout) >= p.timeouts.len() {
                return Err(format!("zone {}: timeout policy {} does not exist", zone.name, zone.timeout));
            }
        }
        Ok(())
    }

    fn interfaces(&self) -> Fault {
        let p = self.program;
        within("interfaces", p.interfaces.len(), limits::INTERFACES)?;
        let zones = self.zone_ids();
        let (mut names, mut places) = (HashSet::new(), HashSet::new());
        for i in &p.interfaces {
            name("interface", &i.name, &mut names)?;
            if i.port.is_empty() || i.port.len() > limits::NAME {
                return Err(format!("interface {}: bad port name", i.name));
            }
            if !places.insert((&i.port, i.encapsulation)) {
                return Err(format!("interface {}: another one has the same port and VLAN", i.name));
            }
            if let Encapsulation::Vlan(tag) = i.encapsulation
                && !(1..=4094).contains(&tag)
            {
                return Err(format!("interface {}: VLAN {tag} is not in 1 to 4094", i.name));
            }
            if !zones.contains(&i.zone) {
                return Err(format!("interface {}: zone {} does not exist", i.name, i.zone));
            }
            if !(576..=9216).contains(&i.mtu) {
                return Err(format!("interface {}: mtu {} is not in 576 to 9216", i.name, i.mtu));
            }
            if let Some(mac) = i.mac
                && (mac[0] & 1 != 0 || mac == [0; 6])
            {
                return Err(format!("interface {}: the MAC address is multicast or zero", i.name));
            }
            within("addresses on one interface", i.addresses.len(), limits::ADDRESSES)?;
            for a in &i.addresses {
                if Prefix::new(a.address, a.length).is_none() || !is_host(a.address) {
                    return Err(format!("interface {}: {}/{} is no host address", i.name, a.address, a.length));
                }
            }
        }
        within("neighbours", p.neighbours.len(), limits::NEIGHBOURS)?;
        for n in &p.neighbours {
            if usize::from(n.interface) >= p.interfaces.len() {
                return Err(format!("neighbour {}: interface {} does not exist", n.address, n.interface));
            }
            if !is_host(n.address) || n.mac[0] & 1 != 0 || n.mac == [0; 6] {
                return Err(format!("neighbour {}: not a host's address or MAC", n.address));
            }
        }
        Ok(())
    }

    fn routes(&self) -> Fault {
        let p = self.program;
        within("routes", p.routes.len(), limits::ROUTES)?;
        let zones = self.zone_ids();
        for r in &p.routes {
            let at = format!("route {}/{} of zone {}", r.prefix.network, r.prefix.length, r.zone);
            if Prefix::new(r.prefix.network, r.prefix.length) != Some(r.prefix) {
                return Err(format!("{at}: not a prefix"));
            }
            if !zones.contains(&r.zone) {
                return Err(format!("{at}: the zone does not exist"));
            }
            match &r.target {
                RouteTarget::Via(hop) if hop.is_ipv4() != r.prefix.network.is_ipv4() || !is_host(*hop) => {
                    return Err(format!("{at}: {hop} is no next hop for it"));
                }
                RouteTarget::Interface(i) if usize::from(*i) >= p.interfaces.len() => {
                    return Err(format!("{at}: interface {i} does not exist"));
                }
                RouteTarget::Zone(z) if !zones.contains(z) || *z == r.zone => {
                    return Err(format!("{at}: zone {z} does not exist or is its own"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn pools(&self) -> Fault {
        let p = self.program;
        within("pools", p.pools.len(), limits::POOLS)?;
        let zones = self.zone_ids();
        let mut names = HashSet::new();
        for pool in &p.pools {
            name("pool", &pool.name, &mut names)?;
            ranges(&pool.addresses).map_err(|e| format!("pool {}: {e}", pool.name))?;
            let count = pool.addresses.iter().map(AddressRange::count).fold(0, u64::saturating_add);
            if count == 0 || count > limits::POOL_ADDRESSES {
                return Err(format!(
                    "pool {}: {count} addresses, 1 to {} are possible",
                    pool.name,
                    limits::POOL_ADDRESSES
                ));
            }
            if pool.ports.first > pool.ports.last || pool.ports.first == 0 {
                return Err(format!("pool {}: bad port range", pool.name));
            }
            if !zones.contains(&pool.zone) {
                return Err(format!("pool {}: zone {} does not exist", pool.name, pool.zone));
            }
            if pool.reuse_delay_ms > limits::TIMEOUT_MS {
                return Err(format!("pool {}: reuse delay too long", pool.name));
            }
        }
        Ok(())
    }

    fn timeouts(&self) -> Fault {
        let p = self.program;
        within("timeout policies", p.timeouts.len(), limits::TIMEOUTS)?;
        if p.timeouts.is_empty() {
            return Err("there is no default timeout policy".into());
        }
        let mut names = HashSet::new();
        for t in &p.timeouts {
            name("timeout policy", &t.name, &mut names)?;
            within("values in one timeout policy", t.values.len(), TimeoutKey::COUNT)?;
            if let Some((key, ms)) = t.values.iter().find(|(_, ms)| *ms == 0 || *ms > limits::TIMEOUT_MS) {
                return Err(format!("timeout policy {}: {} of {ms} ms is out of range", t.name, key.name()));
            }
        }
        Ok(())
    }

    fn rules(&self) -> Fault {
        let p = self.program;
        within("chains", p.chains.len(), limits::CHAINS)?;
        if p.hooks.len() != Hook::COUNT {
            return Err(format!("{} hooks instead of {}", p.hooks.len(), Hook::COUNT));
        }
        let mut names = HashSet::new();
        p.chains.iter().try_for_each(|c| name("chain", &c.name, &mut names))?;
        let total = p.hooks.iter().map(|h| h.rules.len()).chain(p.chains.iter().map(|c| c.rules.len())).sum();
        within("rules", total, limits::RULES)?;
        let zones = self.zone_ids();
        for hook in &p.hooks {
            within("zone policies", hook.zone_policies.len(), limits::ZONES)?;
            if hook.zone_policies.iter().any(|(z, _)| !zones.contains(z)) {
                return Err("a policy is for a zone that does not exist".into());
            }
        }
        let all = p.hooks.iter().flat_map(|h| &h.rules).chain(p.chains.iter().flat_map(|c| &c.rules));
        for rule in all {
            self.rule(rule).map_err(|e| format!("rule at {}: {e}", p.place(rule.at)))?;
        }
        self.jumps()
    }

    fn rule(&self, rule: &Rule) -> Fault {
        let p = self.program;
        within("matches", rule.matches.len(), limits::PER_RULE)?;
        within("actions", rule.actions.len(), limits::PER_RULE)?;
        for m in &rule.matches {
            let values = match &m.key {
                MatchKey::Ingress(v) | MatchKey::Egress(v) => {
                    if v.iter().any(|i| usize::from(*i) >= p.interfaces.len()) {
                        return Err("an interface does not exist".into());
                    }
                    v.len()
                }
                MatchKey::Zone(v) | MatchKey::EgressZone(v) => v.len(),
                MatchKey::Source(v) | MatchKey::Destination(v) => {
                    ranges(v)?;
                    v.len()
                }
                MatchKey::Protocol(v) => v.len(),
                MatchKey::SourcePort(v) | MatchKey::DestinationPort(v) => {
                    port_ranges(v, u16::MAX)?;
                    v.len()
                }
                MatchKey::IcmpType(v) | MatchKey::IcmpCode(v) => {
                    port_ranges(v, 255)?;
                    v.len()
                }
                MatchKey::State(bits) => usize::from(*bits != 0 && bits & !states::ALL == 0),
                MatchKey::Mark(v) => v.len(),
            };
            if values == 0 || values > limits::VALUES {
                return Err(format!("a match has {values} values"));
            }
        }
        for action in &rule.actions {
            match action {
                Action::Jump(c) | Action::GoTo(c) if usize::from(*c) >= p.chains.len() => {
                    return Err(format!("chain {c} does not exist"));
                }
                Action::Count(c) if usize::from(*c) >= p.counters.len() => {
                    return Err(format!("counter {c} does not exist"));
                }
                Action::Snat(snat) => {
                    match &snat.source {
                        SourceChoice::Pool(pool) if usize::from(*pool) >= p.pools.len() => {
                            return Err(format!("pool {pool} does not exist"));
                        }
                        SourceChoice::Pool(_) => {}
                        SourceChoice::To(v) => {
                            ranges(v)?;
                            let count = v.iter().map(AddressRange::count).fold(0, u64::saturating_add);
                            if count == 0 || count > limits::POOL_ADDRESSES {
                                return Err(format!("snat to {count} addresses"));
                            }
                        }
                    }
                    port_ranges(snat.ports.as_slice(), u16::MAX)?;
                }
                Action::Masquerade { ports, .. } => port_ranges(ports.as_slice(), u16::MAX)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Follows jumps: what a chain may do is what each hook that reaches it may; no loops, bounded depth.
    fn jumps(&self) -> Fault {
        let p = self.program;
        for hook in Hook::ALL {
            let mut done = vec![false; p.chains.len()];
            let mut path = Vec::new();
            self.follow(hook, &p.hooks[hook.index()].rules, &mut path, &mut done)?;
        }
        // Chains that no hook reaches must be free of loops too.
        let mut known = vec![None; p.chains.len()];
        for chain in 0..p.chains.len() {
            self.extent(chain, &mut known, &mut Vec::new())?;
        }
        for hook in Hook::ALL {
            let extent = self.list_extent(&p.hooks[hook.index()].rules, &mut known, &mut Vec::new())?;
            if extent.depth > limits::JUMPS {
                return Err(format!("jumps are nested deeper than {}", limits::JUMPS));
            }
            if extent.rules > limits::WALK {
                return Err(format!("a walk through {} could come by more than {} rules", hook.name(), limits::WALK));
            }
        }
        Ok(())
    }

    fn follow(&self, hook: Hook, rules: &[Rule], path: &mut Vec<usize>, done: &mut [bool]) -> Fault {
        for rule in rules {
            for action in &rule.actions {
                if !action.allowed_in(hook) {
                    return Err(format!("rule at {}: not possible in {}", self.program.place(rule.at), hook.name()));
                }
                if let Action::Jump(c) | Action::GoTo(c) = action {
                    let chain = usize::from(*c);
                    if path.contains(&chain) || path.len() > limits::JUMPS {
                        return Err(format!("chain {} leads back to itself", self.program.chains[chain].name));
                    }
                    if !done[chain] {
                        path.push(chain);
                        self.follow(hook, &self.program.chains[chain].rules, path, done)?;
                        path.pop();
                        done[chain] = true;
                    }
                }
            }
        }
        Ok(())
    }

    fn extent(&self, chain: usize, known: &mut [Option<Extent>], path: &mut Vec<usize>) -> Result<Extent, String> {
        if let Some(extent) = known[chain] {
            return Ok(extent);
        }
        if path.contains(&chain) || path.len() > limits::JUMPS {
            return Err(format!("chain {} leads back to itself or too deep", self.program.chains[chain].name));
        }
        path.push(chain);
        let extent = self.list_extent(&self.program.chains[chain].rules, known, path)?;
        path.pop();
        let extent = Extent { depth: extent.depth + 1, ..extent };
        known[chain] = Some(extent);
        Ok(extent)
    }

    fn list_extent(
        &self,
        rules: &[Rule],
        known: &mut [Option<Extent>],
        path: &mut Vec<usize>,
    ) -> Result<Extent, String> {
        let mut all = Extent { depth: 0, rules: rules.len() as u64 };
        for action in rules.iter().flat_map(|r| &r.actions) {
            if let Action::Jump(c) | Action::GoTo(c) = action {
                let one = self.extent(usize::from(*c), known, path)?;
                all.depth = all.depth.max(one.depth);
                all.rules = all.rules.saturating_add(one.rules);
            }
        }
        Ok(all)
    }
}

/// How far a walk through a list of rules can lead.
#[derive(Clone, Copy)]
struct Extent {
    /// Nested jumps.
    depth: usize,
    /// Rules that it can come by.
    rules: u64,
}

fn is_host(address: IpAddr) -> bool {
    let reserved = match address {
        IpAddr::V4(a) => a.is_broadcast() || a.octets()[0] == 0 || a.octets()[0] >= 240,
        IpAddr::V6(_) => false,
    };
    !address.is_unspecified() && !address.is_multicast() && !reserved
}

fn ranges(of: &[AddressRange]) -> Fault {
    for r in of {
        let ordered = match (r.first, r.last) {
            (IpAddr::V4(a), IpAddr::V4(b)) => a <= b,
            (IpAddr::V6(a), IpAddr::V6(b)) => a <= b,
            _ => false,
        };
        if !ordered {
            return Err(format!("{}-{} is no address range", r.first, r.last));
        }
    }
    Ok(())
}

fn port_ranges(of: &[PortRange], most: u16) -> Fault {
    match of.iter().find(|r| r.first > r.last || r.last > most) {
        Some(r) => Err(format!("{}-{} is no range up to {most}", r.first, r.last)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Program {
        let mut p = Program::empty();
        p.zones.push(Zone { id: 5, name: "blue".into(), ..p.zones[0].clone() });
        p.interfaces.push(Interface {
            name: "lan".into(),
            port: "lan".into(),
            encapsulation: Encapsulation::Vlan(100),
            zone: 5,
            addresses: vec![InterfaceAddress { address: "10.0.0.1".parse().unwrap(), length: 24 }],
            mtu: 1500,
            mac: None,
            proxy_arp: false,
        });
        p.chains.push(Chain {
            name: "c".into(),
            rules: vec![Rule { at: Position::default(), matches: vec![], actions: vec![Action::Return] }],
        });
        p.hooks[Hook::Forward.index()].rules.push(Rule {
            at: Position { source: 0, line: 3, column: 1 },
            matches: vec![Match { negated: true, key: MatchKey::Ingress(vec![0]) }],
            actions: vec![Action::Jump(0), Action::Drop],
        });
        p
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        let p = small();
        assert_eq!(Program::decode(&p.encode().unwrap()).unwrap(), p);
    }

    #[test]
    fn any_changed_byte_is_refused_by_the_checksum() {
        let bytes = small().encode().unwrap();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x41;
            assert!(Program::decode(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn any_changed_byte_with_a_right_checksum_is_refused_or_a_valid_program() {
        let bytes = small().encode().unwrap();
        for at in HEADER_BYTES..bytes.len() {
            for value in 0..=255 {
                let mut bad = bytes.clone();
                bad[at] = value;
                let sum = crc32fast::hash(&bad[HEADER_BYTES..]);
                bad[12..16].copy_from_slice(&sum.to_le_bytes());
                if let Ok(program) = Program::decode(&bad) {
                    program.validate().unwrap();
                }
            }
        }
    }

    #[test]
    fn a_cut_program_is_refused() {
        let bytes = small().encode().unwrap();
        for len in 0..bytes.len() {
            assert!(Program::decode(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn loops_of_chains_are_refused_even_if_no_hook_reaches_them() {
        let mut p = small();
        p.chains[0].rules[0].actions = vec![Action::Jump(0)];
        assert!(p.validate().unwrap_err().to_string().contains("leads back"));
        p.hooks[Hook::Forward.index()].rules.clear();
        assert!(p.validate().unwrap_err().to_string().contains("leads back"));
    }

    #[test]
    fn an_action_is_refused_in_a_hook_that_reaches_it_by_a_jump_and_may_not_do_it() {
        let mut p = small();
        p.chains[0].rules[0].actions = vec![Action::Notrack];
        assert!(p.validate().unwrap_err().to_string().contains("not possible in forward"));
    }

    #[test]
    fn chains_that_multiply_are_refused_before_a_walk_could_take_for_ever() {
        let mut p = small();
        let at = Position::default();
        p.chains = (0..12_u16)
            .map(|n| Chain {
                name: format!("c{n}"),
                rules: vec![Rule { at, matches: vec![], actions: vec![Action::Jump(n + 1); 60] }],
            })
            .collect();
        p.chains.push(Chain { name: "end".into(), rules: vec![Rule { at, matches: vec![], actions: vec![] }] });
        assert!(p.validate().unwrap_err().to_string().contains("more than 1048576 rules"));
    }

    #[test]
    fn prefixes_contain_what_they_should() {
        let p = Prefix::new("10.1.2.3".parse().unwrap(), 8).unwrap();
        assert!(p.contains("10.255.0.1".parse().unwrap()) && !p.contains("11.0.0.1".parse().unwrap()));
        let all = Prefix::new("::".parse().unwrap(), 0).unwrap();
        assert!(all.contains("2001:db8::1".parse().unwrap()) && !all.contains("1.2.3.4".parse().unwrap()));
    }
}

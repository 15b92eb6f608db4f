//! The fields of a packet that rules compare, as numbers, so that every match is a set of ranges.

use std::net::IpAddr;

use erhu_planes::program::{Match, MatchKey, PortRange, directions, states, statuses};

use crate::facts::Facts;
use crate::spans::{Key, Spans, complement, intersection, union};

/// What a range is about. The first [`Field::INDEXED`] can choose candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Field {
    Ingress,
    Egress,
    Zone,
    EgressZone,
    Protocol,
    SourcePort,
    DestinationPort,
    /// Type in bits 8 to 15, code below.
    Icmp,
    Mark,
    Source,
    Destination,
    IcmpCode,
}

impl Field {
    pub(crate) const ALL: [Self; 12] = [
        Self::Ingress,
        Self::Egress,
        Self::Zone,
        Self::EgressZone,
        Self::Protocol,
        Self::SourcePort,
        Self::DestinationPort,
        Self::Icmp,
        Self::Mark,
        Self::Source,
        Self::Destination,
        Self::IcmpCode,
    ];
    pub(crate) const COUNT: usize = Self::ALL.len();
    pub(crate) const INDEXED: usize = 11;

    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    pub(crate) const fn is_address(self) -> bool {
        matches!(self, Self::Source | Self::Destination)
    }

    /// Largest number that a negated match takes in. That the packet has no such field is [`ABSENT`]: taken in for
    /// interfaces and zones ("not that one" is true of none), left out for ports and ICMP, where a match is also
    /// about the protocol.
    const fn most(self) -> u32 {
        match self {
            Self::Ingress | Self::Egress | Self::Zone | Self::EgressZone => ABSENT,
            Self::Protocol | Self::IcmpCode => 0xff,
            Self::SourcePort | Self::DestinationPort | Self::Icmp => 0xffff,
            Self::Mark | Self::Source | Self::Destination => u32::MAX,
        }
    }
}

/// The number of a field that the packet does not have. Above all values of 16 bits.
pub(crate) const ABSENT: u32 = 0x1_0000;

/// Protocols with ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
const fn has_ports(proto: u8) -> bool {
    matches!(proto, 6 | 17 | 33 | 132 | 136)
}

/// A packet's fields as numbers: what rules look at. [`crate::Facts`] tell the same.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    /// By field; an IPv4 address too.
    narrow: [u32; Field::COUNT],
    /// IPv6 source and destination.
    wide: [Option<u128>; 2],
    pub(crate) state: u8,
    /// [`statuses`] of its connection, and above them its one of [`directions`]. 0 if it has none.
    connection: u8,
}

/// Directions lie above statuses.
const DIRECTION_SHIFT: u32 = 4;
const _: () = assert!(statuses::ALL >> DIRECTION_SHIFT == 0);

/// See [`Keys`].
#[inline(always)]
const fn connection(state: u8, status: u8, is_reply: bool) -> u8 {
    let direction = if is_reply { directions::REPLY } else { directions::ORIGINAL };
    match state {
        states::INVALID | states::UNTRACKED => 0,
        _ => status | direction << DIRECTION_SHIFT,
    }
}

/// What rules look at of a sound IPv4 packet before routing, the first of its connection. Numbers are in host order.
#[derive(Clone, Copy, Debug)]
pub struct Packet4 {
    /// Interface (index) it came in by.
    pub ingress: u16,
    /// Zone (id) of that.
    pub zone: u16,
    /// Source and destination address.
    pub addresses: (u32, u32),
    /// IP protocol: TCP, UDP or ICMP.
    pub proto: u8,
    /// Source and destination port; of ICMP nothing and `type << 8 | code`.
    pub ports: (u16, u16),
    /// One bit of [`erhu_planes::program::states`].
    pub state: u8,
    /// Packet mark.
    pub mark: u32,
}

impl Keys {
    /// Of an IPv4 packet, to be run with [`crate::Rules::run_keys`].
    #[inline(always)]
    pub fn of(packet: &Packet4) -> Self {
        let (src, dst) = packet.addresses;
        let (sport, dport) = (u32::from(packet.ports.0), u32::from(packet.ports.1));
        let is_icmp = !has_ports(packet.proto);
        let port = |port| if is_icmp { ABSENT } else { port };
        let icmp = |word| if is_icmp { word } else { ABSENT };
        let (ingress, zone, proto) = (packet.ingress.into(), packet.zone.into(), packet.proto.into());
        let (kind, code) = (icmp(dport), icmp(dport & 0xff));
        let (sport, dport) = (port(sport), port(dport));
        Self {
            narrow: [ingress, ABSENT, zone, ABSENT, proto, sport, dport, kind, packet.mark, src, dst, code],
            wide: [None, None],
            state: packet.state,
            connection: connection(packet.state, 0, false),
        }
    }

    /// Says by which interface (index) and into which zone (id) it leaves.
    #[inline(always)]
    pub fn set_egress(&mut self, interface: u16, zone: u16) {
        self.narrow[Field::Egress as usize] = interface.into();
        self.narrow[Field::EgressZone as usize] = zone.into();
    }

    pub(crate) fn new(facts: &Facts) -> Self {
        let optional = |value: Option<u16>| value.map_or(ABSENT, u32::from);
        let port = |port: u16| {
            if facts.has_ports && has_ports(facts.proto) { u32::from(port) } else { ABSENT }
        };
        let narrow = |address: IpAddr| match address {
            IpAddr::V4(a) => u32::from(a),
            IpAddr::V6(_) => 0,
        };
        let wide = |address: IpAddr| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(a) => Some(u128::from(a)),
        };
        Self {
            narrow: [
                optional(facts.ingress),
                optional(facts.egress),
                optional(facts.zone),
                optional(facts.egress_zone),
                u32::from(facts.proto),
                port(facts.sport),
                port(facts.dport),
                facts.icmp.map_or(ABSENT, |(kind, code)| u32::from(kind) << 8 | u32::from(code)),
                facts.mark,
                narrow(facts.src),
                narrow(facts.dst),
                facts.icmp.map_or(ABSENT, |(_, code)| u32::from(code)),
            ],
            wide: [wide(facts.src), wide(facts.dst)],
            state: facts.state,
            connection: connection(facts.state, facts.status, facts.is_reply),
        }
    }

    /// Whether its connection is one of `bits`, or with `negated` none of them.
    #[inline]
    pub(crate) fn is_of_connection(&self, bits: u8, negated: bool) -> bool {
        self.connection != 0 && (self.connection & bits != 0) != negated
    }

    #[inline]
    pub(crate) fn get(&self, field: Field) -> u32 {
        self.narrow[field as usize]
    }

    /// Whether a field is in a range; an address: and IPv4.
    #[inline(always)]
    pub(crate) fn is_between(&self, field: Field, first: u32, last: u32) -> bool {
        let key = self.get(field);
        first <= key && key <= last && (!field.is_address() || self.wide(field).is_none())
    }

    /// The IPv6 address in an address field.
    #[inline]
    pub(crate) fn wide(&self, field: Field) -> Option<u128> {
        self.wide[usize::from(matches!(field, Field::Destination))]
    }

    /// The zone of the ingress interface.
    #[inline]
    pub(crate) fn zone(&self) -> Option<u16> {
        u16::try_from(self.get(Field::Zone)).ok()
    }

    pub(crate) fn set_mark(&mut self, mark: u32) {
        self.narrow[Field::Mark as usize] = mark;
    }
}

/// The numbers of one field that satisfy a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) field: Field,
    pub(crate) narrow: Spans<u32>,
    /// IPv6 addresses; empty for all other fields.
    pub(crate) wide: Spans<u128>,
}

/// A rule's matches: all of both must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Conditions {
    /// At most one of each field.
    pub(crate) fields: Vec<Condition>,
    pub(crate) others: Vec<Other>,
}

/// A match that is no set of ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Other {
    State {
        bits: u8,
        negated: bool,
    },
    /// See [`Keys::is_of_connection`].
    Connection {
        bits: u8,
        negated: bool,
    },
    /// Any `(value, mask)`.
    Mark {
        values: Vec<(u32, u32)>,
        negated: bool,
    },
}

impl Conditions {
    pub(crate) fn of(matches: &[Match]) -> Self {
        let mut all = Self::default();
        for m in matches {
            all.add(m);
        }
        all
    }

    fn add(&mut self, m: &Match) {
        let (field, narrow, wide) = match &m.key {
            MatchKey::Ingress(v) => (Field::Ingress, numbers(v), Vec::new()),
            MatchKey::Egress(v) => (Field::Egress, numbers(v), Vec::new()),
            MatchKey::Zone(v) => (Field::Zone, numbers(v), Vec::new()),
            MatchKey::EgressZone(v) => (Field::EgressZone, numbers(v), Vec::new()),
            MatchKey::Protocol(v) => (Field::Protocol, numbers(v), Vec::new()),
            MatchKey::SourcePort(v) => (Field::SourcePort, port_ranges(v), Vec::new()),
            MatchKey::DestinationPort(v) => (Field::DestinationPort, port_ranges(v), Vec::new()),
            MatchKey::IcmpType(v) => {
                let of = |r: &PortRange| (u32::from(r.first) << 8, u32::from(r.last) << 8 | 0xff);
                (Field::Icmp, v.iter().map(of).collect(), Vec::new())
            }
            MatchKey::IcmpCode(v) => (Field::IcmpCode, port_ranges(v), Vec::new()),
            MatchKey::Source(v) | MatchKey::Destination(v) => {
                let source = matches!(m.key, MatchKey::Source(_));
                let (mut narrow, mut wide) = (Vec::new(), Vec::new());
                for r in v {
                    match (r.first, r.last) {
                        (IpAddr::V4(a), IpAddr::V4(b)) => narrow.push((u32::from(a), u32::from(b))),
                        (IpAddr::V6(a), IpAddr::V6(b)) => wide.push((u128::from(a), u128::from(b))),
                        _ => {}
                    }
                }
                (if source { Field::Source } else { Field::Destination }, narrow, wide)
            }
            MatchKey::State(bits) => {
                self.others.push(Other::State { bits: *bits, negated: m.negated });
                return;
            }
            MatchKey::Status(bits) => {
                self.others.push(Other::Connection { bits: *bits, negated: m.negated });
                return;
            }
            MatchKey::Direction(bits) => {
                self.others.push(Other::Connection { bits: bits << DIRECTION_SHIFT, negated: m.negated });
                return;
            }
            MatchKey::Mark(v) => match v.iter().map(mark_range).collect::<Option<Vec<_>>>() {
                Some(ranges) => (Field::Mark, ranges.into_iter().flatten().collect(), Vec::new()),
                None => {
                    self.others.push(Other::Mark { values: v.clone(), negated: m.negated });
                    return;
                }
            },
        };
        let (mut narrow, mut wide) = (union(narrow), union(wide));
        if m.negated {
            narrow = complement(&narrow, field.most());
            if field.is_address() {
                wide = complement(&wide, u128::MAX);
            }
        }
        match self.fields.iter_mut().find(|c| c.field == field) {
            Some(before) => {
                before.narrow = intersection(&before.narrow, &narrow);
                before.wide = intersection(&before.wide, &wide);
            }
            None => self.fields.push(Condition { field, narrow, wide }),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.fields.is_empty() && self.others.is_empty()
    }

    /// What a field must be, if there is a condition about it.
    pub(crate) fn field(&self, field: Field) -> Option<&Condition> {
        self.fields.iter().find(|c| c.field == field)
    }
}

fn numbers<T: Copy + Into<u32>>(values: &[T]) -> Vec<(u32, u32)> {
    values.iter().map(|&v| (v.into(), v.into())).collect()
}

fn port_ranges(ranges: &[PortRange]) -> Vec<(u32, u32)> {
    ranges.iter().map(|r| (r.first.into(), r.last.into())).collect()
}

/// The marks for which `mark & mask == value`: `None` if they are no range, no range in it if there are none.
#[expect(clippy::option_option, reason = "outer: is it a range; inner: is it empty")]
fn mark_range(&(value, mask): &(u32, u32)) -> Option<Option<(u32, u32)>> {
    if value & !mask != 0 {
        Some(None)
    } else if mask.leading_ones() + mask.trailing_zeros() >= u32::BITS {
        Some(Some((value, value | !mask)))
    } else {
        None
    }
}

/// First numbers of the parts into which a field's ranges cut it, without the lowest number of all.
pub(crate) fn boundaries<K: Key>(spans: impl Iterator<Item = (K, K)>) -> Vec<K> {
    let mut cuts: Vec<K> = spans.flat_map(|(first, last)| [Some(first), last.after()]).flatten().collect();
    cuts.retain(|cut| *cut != K::MIN);
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

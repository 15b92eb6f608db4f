//! Decisions that are made once per direction of a connection: route and forward rules.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use erhu_planes::DropReason;
use erhu_planes::connections::{flags, status};
use erhu_planes::program::{Hook, RejectKind, states, statuses};
use erhu_route::Found;
use erhu_rules::{Facts, Verdict};
use erhu_table::Entry;

use crate::buffer::Buffers;
use crate::neighbour::{Adjacencies, Hops};
use crate::policy::{Interface, Policy};
use crate::worker::Worker;

/// In place of an adjacency: packets go to the router itself.
pub(crate) const LOCAL: u32 = u32::MAX - 1;

/// What tracking says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It passes and counts.
    Accept,
    /// It passes; nothing is counted or refreshed.
    Ignore,
    /// INVALID.
    Invalid,
    /// It passes and the connection ends.
    Kill,
    /// The connection ends and the packet is a first packet.
    Reopen,
    /// It should have passed but its buffer has no room for the egress header.
    NoBuffer,
}

/// One direction of a connection on its way to a decision.
#[derive(Clone, Debug)]
pub(crate) struct Leg {
    /// Zone whose routes apply.
    pub route_zone: u16,
    /// Zone that its packets must leave in: that of the other direction's tuple, or its answers would not be found and
    /// what the rules translate for that zone would be missed.
    pub leaves_in: u16,
    /// As the forward hook sees its packets, but for the egress.
    pub facts: Facts,
    /// Chooses among equal routes.
    pub flow: u32,
    /// Mark of the connection.
    pub connmark: u32,
}

/// What was decided for a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// It goes out by an adjacency.
    Forward {
        /// Adjacency number.
        adjacency: u32,
        /// Interface slot of the egress.
        egress: u16,
        /// Its packets must be judged one by one.
        packet_kind: bool,
    },
    /// It is for the router itself.
    Local,
    /// It does not go on.
    Refuse {
        /// Why.
        reason: DropReason,
        /// How to answer.
        reject: Option<RejectKind>,
        /// Its packets must be judged one by one.
        packet_kind: bool,
    },
}

impl Judged {
    /// The same for one packet; others must be judged by themselves.
    pub const fn one_by_one(mut self) -> Self {
        if let Self::Forward { packet_kind, .. } | Self::Refuse { packet_kind, .. } = &mut self {
            *packet_kind = true;
        }
        self
    }
}

/// What a verdict of input, forward, output or prerouting means for the packet if it does not accept.
pub(crate) const fn refusal(verdict: &Verdict) -> Option<(DropReason, Option<RejectKind>)> {
    match verdict {
        Verdict::DropByRule => Some((DropReason::Rule, None)),
        Verdict::DropByPolicy => Some((DropReason::Policy, None)),
        Verdict::RejectByRule(kind) => Some((DropReason::Rule, Some(*kind))),
        Verdict::RejectByPolicy(kind) => Some((DropReason::Policy, Some(*kind))),
        _ => None,
    }
}

/// Where a route leads out, in the zone that packets must leave in; or what becomes of them otherwise.
fn way<'p>(policy: &'p Policy, found: &Found, leaves_in: u16) -> Result<(&'p Interface, IpAddr), Judged> {
    let refuse = |reason, reject| Err(Judged::Refuse { reason, reject, packet_kind: true });
    match *found {
        Found::Via { interface, next_hop } => match policy.interface_at(interface) {
            Some(interface) if interface.zone == leaves_in => Ok((interface, next_hop)),
            _ => refuse(DropReason::NoRoute, None),
        },
        Found::Local { .. } => Err(Judged::Local),
        Found::Blackhole => refuse(DropReason::Blackhole, None),
        Found::Broadcast { .. } => refuse(DropReason::Unsupported, None),
        Found::None => refuse(DropReason::NoRoute, Some(RejectKind::Net)),
    }
}

/// What rules see of a connection's status. Once it is established, an answer was seen.
const fn status_seen(bits: u32, state: u8) -> u8 {
    let mut seen = 0;
    if bits & status::SRC_NAT != 0 {
        seen |= statuses::SNAT;
    }
    if bits & status::DST_NAT != 0 {
        seen |= statuses::DNAT;
    }
    if bits & status::ASSURED != 0 {
        seen |= statuses::ASSURED;
    }
    if bits & status::SEEN_REPLY != 0 || state == states::ESTABLISHED {
        seen |= statuses::SEEN_REPLY;
    }
    seen
}

fn leave_by(
    hops: &mut Hops,
    adjacencies: &Adjacencies,
    interface: &Interface,
    hop: IpAddr,
    packet_kind: bool,
) -> Judged {
    match hops.find_or_add(adjacencies, interface, hop) {
        Some(adjacency) => Judged::Forward { adjacency, egress: interface.slot, packet_kind },
        None => Judged::Refuse { reason: DropReason::NoNeighbour, reject: None, packet_kind: true },
    }
}

impl<P: Buffers> Worker<P> {
    /// One direction of a connection as the forward hook sees its packets: addresses and ports after destination
    /// translation and before source translation.
    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of the words on purpose")]
    pub(crate) fn leg(&self, entry: Entry<'_>, direction: usize, state: u8) -> Leg {
        let relaxed = Ordering::Relaxed;
        let key = entry.key(direction);
        let (tuple, to) = (key.tuple(), entry.key(1 - direction.min(1)).tuple());
        let is_icmp = tuple.is_icmp();
        let interface = |direction| entry.side(direction).interface.load(relaxed);
        let (ingress, began) = (interface(direction), interface(0));
        let zone_of = |slot: u16| self.policy.interface(slot).map_or(tuple.zone, |i| i.zone);
        let facts = Facts {
            ingress: self.policy.interface(ingress).map(|i| i.index),
            egress: None,
            zone: Some(zone_of(ingress)),
            egress_zone: None,
            src: tuple.src,
            // Once translated, its packets are those of the other direction turned round.
            dst: to.src,
            proto: tuple.proto,
            sport: tuple.sport,
            dport: if is_icmp { tuple.dport } else { to.sport },
            has_ports: !is_icmp,
            icmp: is_icmp.then_some(((tuple.dport >> 8) as u8, tuple.dport as u8)),
            state,
            status: status_seen(entry.cold().status.load(relaxed), state),
            is_reply: direction != 0,
            mark: entry.cold().first_mark.load(relaxed),
            bytes: 0,
        };
        let flow = (self.shared.table.hash(&key) >> 16) as u32;
        let leaves_in = entry.zone(1 - direction.min(1));
        let turned = if direction == 0 { self.detours.route_zone(entry) } else { None };
        Leg {
            route_zone: turned.unwrap_or_else(|| zone_of(began)),
            leaves_in,
            facts,
            flow,
            connmark: entry.cold().mark.load(relaxed),
        }
    }

    /// Routes a direction and asks the forward rules.
    pub(crate) fn judge(&mut self, leg: &mut Leg) -> Judged {
        let policy = &*self.policy;
        let found = policy.routes.lookup(leg.route_zone, leg.facts.dst, leg.flow);
        if policy.rules.accepts_all(Hook::Forward, leg.facts.state) {
            return self.take(&found, leg.leaves_in);
        }
        let (interface, hop) = match way(policy, &found, leg.leaves_in) {
            Ok(way) => way,
            Err(judged) => return judged,
        };
        leg.facts.egress = Some(interface.index);
        leg.facts.egress_zone = Some(interface.zone);
        let (verdict, mut effects) = self.run_hook(Hook::Forward, &leg.facts);
        leg.facts.mark = effects.mark;
        // A mark that the connection does not have yet is for a packet to set.
        effects.packet_kind |= effects.connmark.is_some_and(|mark| mark != leg.connmark);
        if let Some((reason, reject)) = refusal(&verdict) {
            return Judged::Refuse { reason, reject, packet_kind: effects.packet_kind };
        }
        leave_by(&mut self.hops, &self.shared.adjacencies, interface, hop, effects.packet_kind)
    }

    /// Whether a direction's packets are judged so whatever their connection's status becomes as it lives.
    pub(crate) fn is_steady(&mut self, entry: Entry<'_>, direction: usize, judged: Judged) -> bool {
        let is_answered = entry.cold().status.load(Ordering::Relaxed) & status::SEEN_REPLY != 0;
        // Of one that is not answered yet, its further packets: its first was not translated yet.
        let further = (direction == 0 && !is_answered).then_some((states::NEW, 0));
        let established = [(states::ESTABLISHED, 0), (states::ESTABLISHED, statuses::ASSURED)];
        further.into_iter().chain(established).all(|(state, status)| {
            let mut leg = self.leg(entry, direction, state);
            leg.facts.status |= status;
            self.judge(&mut leg) == judged
        })
    }

    /// What becomes of packets that are routed there and that the rules accept. They must leave in a zone.
    pub(crate) fn take(&mut self, found: &Found, leaves_in: u16) -> Judged {
        match way(&self.policy, found, leaves_in) {
            Ok((interface, hop)) => leave_by(&mut self.hops, &self.shared.adjacencies, interface, hop, false),
            Err(judged) => judged,
        }
    }

    /// Stores a direction's decision under the running generation.
    pub(crate) fn store_decision(&self, entry: Entry<'_>, direction: usize, judged: &Judged) {
        let relaxed = Ordering::Relaxed;
        let hot = entry.side(direction);
        let mut bits = hot.flags.load(relaxed) & !(flags::PER_PACKET | flags::NOT_FORWARDED);
        let old = hot.decision.load(relaxed);
        let held = bits & flags::HOLDS_ADJACENCY != 0;
        bits &= !flags::HOLDS_ADJACENCY;
        let target = match judged {
            Judged::Forward { adjacency, packet_kind, .. } => {
                if *packet_kind {
                    bits |= flags::PER_PACKET;
                }
                if self.shared.adjacencies.get(*adjacency).hold() {
                    bits |= flags::HOLDS_ADJACENCY;
                }
                *adjacency
            }
            Judged::Local => {
                bits |= flags::NOT_FORWARDED;
                LOCAL
            }
            Judged::Refuse { reason, reject, packet_kind } => {
                bits |= flags::NOT_FORWARDED;
                if *packet_kind || reject.is_some() {
                    bits |= flags::PER_PACKET;
                }
                u32::try_from(reason.index()).unwrap_or(0)
            }
        };
        if held {
            self.shared.adjacencies.get(u32::try_from(old >> 32).unwrap_or(0)).let_go();
        }
        hot.decision.store(u64::from(self.policy.generation) | u64::from(target) << 32, relaxed);
        hot.flags.store(bits, relaxed);
    }
}

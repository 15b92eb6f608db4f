//! Where a first packet really goes: destinations that rules translate, mappings that packets come for, and hairpins.
//!
//! # Order
//!
//! A rule of `prerouting` that matches the packet comes first. Else, if the address belongs to a pool, the mapping at
//! its port, if there is one and the pool's `filtering` admits the sender. Else the packet goes where its address says.
//!
//! # Hairpin
//!
//! An address is *ours* where a pool owns it, where it is an own one, or where a translating rule of `prerouting` names
//! it. A packet to such an address that is routed to another interface than it came by is treated as if it left by that
//! interface and came back: `prerouting` runs as for that interface where its own ingress found no rule, and the source
//! becomes what `postrouting` would make of it there. The forward rules see it where it really comes and goes. Whose
//! source nobody would translate is not inside, and gets in by a mapping only if the pool's `filtering` admits it.
//! Pools that admit by address and port keep strangers out, not each other's hosts; but a host that calls its own
//! address is told what a stranger would be.
//!
//! # Memory
//!
//! What a translated destination adds to a connection (the zone whose routes lead there, the zone of the external
//! source address, a second mapping in use) lies in a record of the owning worker ([`Detours`]), so that other
//! connections pay nothing for it.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use erhu_nat::{Inside, Lease};
use erhu_planes::connections::{NO_REFERENCE, status};
use erhu_planes::program::{Behaviour, DestinationChoice, Dnat, Hook, PortRange, statuses};
use erhu_planes::{DropReason, Tuple};
use erhu_route::Found;
use erhu_rules::{Facts, Verdict};
use erhu_table::Entry;

use crate::buffer::Buffers;
use crate::meta::Meta;
use crate::open::{Opening, Translation};
use crate::policy::{Interface, Policy};
use crate::slow::flow;
use crate::worker::Worker;

/// Further ports of a rule's range that are tried where a reply tuple is taken, before the source port is changed.
const FURTHER_PORTS: u32 = 15;

/// What a destination becomes.
#[derive(Clone, Copy, Debug)]
enum Aim<'p> {
    /// What a `dnat` says.
    Rule(&'p Dnat),
    /// This address, its port kept: `redirect` without a port, or `netmap`.
    Address(IpAddr, Option<PortRange>),
    /// The endpoint behind a mapping at an address of a zone.
    Mapping(Inside, u16),
}

/// A first packet whose destination is translated, as the rules have it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn<'p> {
    aim: Aim<'p>,
    /// Zone whose routes lead there.
    pub route_zone: u16,
    /// Slot of the interface that the packet would have left by, if it comes from inside to an address of ours.
    outside: Option<u16>,
}

/// The same with an address and port chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course {
    address: IpAddr,
    /// Port, or ICMP identifier.
    port: u16,
    /// Ports that would do as well.
    ports: Option<PortRange>,
    /// Zone whose routes lead there.
    pub route_zone: u16,
    /// See [`Turn`].
    pub outside: Option<u16>,
    /// Zone of the address whose mapping it came for.
    by_mapping: Option<u16>,
}

impl Course {
    /// The tuple after translation of the destination, at an attempt to find a free reply tuple; and how many of the
    /// attempts are left to the source.
    pub fn aimed(&self, original: &Tuple, attempt: u32) -> (Tuple, u32) {
        if original.is_icmp() {
            return (Tuple { dst: self.address, sport: self.port, ..*original }, attempt);
        }
        let (mut port, mut step) = (self.port, 0);
        if let Some(range) = self.ports {
            step = attempt.min(FURTHER_PORTS).min(u32::from(range.last - range.first));
            for _ in 0..step {
                port = if port >= range.last { range.first } else { port + 1 };
            }
        }
        (Tuple { dst: self.address, dport: port, ..*original }, attempt - step)
    }

    /// Whether an attempt can bring out another reply tuple: the identifier of an echo that came for a mapping cannot
    /// be changed.
    pub fn leaves_a_choice(&self, original: &Tuple) -> bool {
        self.by_mapping.is_none() || !original.is_icmp()
    }
}

/// What a connection with a translated destination needs beside its entry.
#[derive(Clone, Copy, Debug, Default)]
struct Detour {
    /// Zone whose routes lead to the translated destination.
    route_zone: u16,
    /// Zone of the external source address.
    source_zone: u16,
    /// Remote address that the external source address was chosen for.
    remote: Option<IpAddr>,
    /// The mapping that it came in by.
    entered: Option<u32>,
}

/// Records of a worker's own connections, by the number in `Cold::detour`.
#[derive(Debug, Default)]
pub(crate) struct Detours {
    /// In chunks, so that growing moves nothing.
    chunks: Vec<Box<[Detour]>>,
    free: Vec<u32>,
}

/// Records of a chunk.
const CHUNK: usize = 256;

impl Detours {
    fn add(&mut self, detour: Detour) -> u32 {
        if self.free.is_empty() {
            let first = u32::try_from(self.chunks.len() * CHUNK).unwrap_or(NO_REFERENCE);
            self.chunks.push(vec![Detour::default(); CHUNK].into_boxed_slice());
            let count = u32::try_from(CHUNK).unwrap_or(0);
            self.free.extend((first..first.saturating_add(count)).rev());
        }
        let Some(number) = self.free.pop() else { return NO_REFERENCE };
        if let Some(place) = self.at(number) {
            *place = detour;
        }
        number
    }

    fn at(&mut self, number: u32) -> Option<&mut Detour> {
        let number = number as usize;
        self.chunks.get_mut(number / CHUNK)?.get_mut(number % CHUNK)
    }

    fn get(&self, entry: Entry<'_>) -> Option<Detour> {
        let cold = entry.cold();
        if cold.status.load(Ordering::Relaxed) & status::DST_NAT == 0 {
            return None;
        }
        let number = cold.detour.load(Ordering::Relaxed) as usize;
        self.chunks.get(number / CHUNK)?.get(number % CHUNK).copied()
    }

    /// The zone whose routes lead to a connection's translated destination.
    #[inline]
    pub fn route_zone(&self, entry: Entry<'_>) -> Option<u16> {
        self.get(entry).map(|d| d.route_zone)
    }
}

impl<P: Buffers> Worker<P> {
    /// What becomes of a first packet's destination, prerouting having ended with `verdict` for the packet as it came,
    /// whose `facts` these are. `None`: it stays. Facts of 0 bytes count nothing.
    ///
    /// # Errors
    /// Why a packet to a pool's address ends.
    pub(crate) fn turn<'p>(
        &mut self,
        policy: &'p Policy,
        facts: &Facts,
        (slot, flow): (u16, u32),
        verdict: &Verdict,
    ) -> Result<Option<Turn<'p>>, DropReason> {
        let (zone, dst) = (facts.zone.unwrap_or(0), facts.dst);
        let found = policy.routes.lookup(zone, dst, flow);
        let routed_to = match found {
            Found::Via { interface, .. } | Found::Local { interface, .. } => policy.interface_at(interface),
            _ => None,
        };
        let far = routed_to.filter(|o| o.slot != slot);
        let owner = policy.pools.owner(zone, dst).map(|pool| (zone, pool));
        let owner = owner.or_else(|| routed_to.and_then(|o| Some((o.zone, policy.pools.owner(o.zone, dst)?))));
        let is_ours = owner.is_some() || matches!(found, Found::Local { .. }) || policy.rules.publishes(dst);
        let outside = far.filter(|_| is_ours && policy.rules.translates_destinations());
        if let Some(turn) = by_rule(policy, verdict, facts, slot) {
            // A rule that holds for what comes from outside too makes this a hairpin.
            let as_if = outside.map(|o| (o, self.prerouting_as_from(o, &Facts { bytes: 0, ..*facts })));
            let outside = as_if.filter(|(o, (v, f))| by_rule(policy, v, f, o.slot).is_some()).map(|(o, _)| o.slot);
            return Ok(Some(Turn { outside, ..turn? }));
        }
        if let Some(o) = outside {
            let (verdict, as_if) = self.prerouting_as_from(o, facts);
            if let Some(turn) = by_rule(policy, &verdict, &as_if, o.slot) {
                return Ok(Some(Turn { outside: Some(o.slot), ..turn? }));
            }
        }
        match owner {
            Some((home, pool)) => self.by_mapping(policy, facts, far, (home, pool)).map(Some),
            None => Ok(None),
        }
    }

    /// Prerouting as it would be if the packet had come by another interface.
    fn prerouting_as_from(&mut self, interface: &Interface, facts: &Facts) -> (Verdict, Facts) {
        let as_if = Facts { ingress: Some(interface.index), zone: Some(interface.zone), ..*facts };
        (self.run_hook(Hook::Prerouting, &as_if).0, as_if)
    }

    /// A packet to an address of a pool that no rule translates: `home` is the address's zone, `far` where it is routed
    /// to if not to where it came from.
    fn by_mapping<'p>(
        &mut self,
        policy: &'p Policy,
        facts: &Facts,
        far: Option<&'p Interface>,
        (home, owner): (u16, usize),
    ) -> Result<Turn<'p>, DropReason> {
        let nat = &self.shared.nat;
        let is_icmp = facts.icmp.is_some();
        let (proto, port) = (facts.proto, if is_icmp { facts.sport } else { facts.dport });
        let Some(way) = nat.way_in(home, facts.dst, port, proto) else {
            let is_in_use = nat.mapping_at(home, facts.dst, port, proto, facts.src).is_some();
            return Err(if is_in_use { DropReason::Filtered } else { DropReason::NoMapping });
        };
        // Several pools may have the address, with other ports.
        let pool = policy.pools.get(owner).filter(|p| p.id() == way.inside.pool);
        let pool = pool.or_else(|| policy.pools.with_id(way.inside.pool)).ok_or(DropReason::NoMapping)?;
        let turn = Turn { aim: Aim::Mapping(way.inside, home), route_zone: way.inside.zone, outside: None };
        let is_inside = far.is_some_and(|o| self.would_leave_translated(policy, facts, o));
        if !is_inside {
            let admitted = self.shared.nat.admits(pool, way.mapping, facts.src);
            return if admitted { Ok(turn) } else { Err(DropReason::Filtered) };
        }
        let is_own = (facts.zone.unwrap_or(0), facts.src) == (way.inside.zone, way.inside.address);
        let is_filtered = is_own && pool.filtering != Behaviour::EndpointIndependent;
        // An identifier cannot be that of two mappings (RFC 5508 section 3.3 asks for it of Basic NAT only).
        if is_icmp || is_filtered || !pool.hairpin {
            return Err(DropReason::Filtered);
        }
        Ok(Turn { outside: far.map(|o| o.slot), ..turn })
    }

    /// Whether postrouting would translate the source of a packet if it left by an interface.
    fn would_leave_translated(&mut self, policy: &Policy, facts: &Facts, by: &Interface) -> bool {
        let as_if = Facts { egress: Some(by.index), egress_zone: Some(by.zone), bytes: 0, ..*facts };
        !matches!(self.translation(policy, &as_if, by), Ok(Translation::None))
    }

    /// Why a first packet to an address of a pool of its own zone ends, if it does. Asked before admission, so that
    /// what strangers try costs nobody's limits. Nothing is counted.
    pub(crate) fn unsolicited(&mut self, policy: &Policy, meta: &Meta, facts: &Facts) -> Option<DropReason> {
        let facts = Facts { bytes: 0, ..*facts };
        let (verdict, _) = self.run_hook(Hook::Prerouting, &facts);
        self.turn(policy, &facts, (meta.slot, flow(meta)), &verdict).err()
    }

    /// Gives a first packet's facts the destination that it will have, if that is another one.
    ///
    /// # Errors
    /// Why it ends.
    pub(crate) fn course(
        &mut self,
        policy: &Policy,
        meta: &Meta,
        facts: &mut Facts,
        verdict: &Verdict,
    ) -> Result<Option<Course>, DropReason> {
        let Some(turn) = self.turn(policy, facts, (meta.slot, flow(meta)), verdict)? else { return Ok(None) };
        let original = meta.tuple();
        let kept = if original.is_icmp() { original.sport } else { original.dport };
        let (address, port, ports) = match turn.aim {
            Aim::Rule(dnat) => {
                let DestinationChoice::To(ranges) = &dnat.destination else { return Err(DropReason::NoRoute) };
                let rng = dnat.random.then_some(&mut self.rng);
                let address = self.shared.nat.destination(ranges, &original, dnat.persistent, rng);
                (address.ok_or(DropReason::NoRoute)?, self.port_among(dnat.ports, dnat.random, kept), dnat.ports)
            }
            Aim::Address(address, ports) => (address, self.port_among(ports, false, kept), ports),
            Aim::Mapping(inside, _) => (inside.address, inside.port, None),
        };
        let by_mapping = match turn.aim {
            Aim::Mapping(_, home) => Some(home),
            _ => None,
        };
        let port = if original.is_icmp() && by_mapping.is_none() { kept } else { port };
        let Turn { route_zone, outside, .. } = turn;
        facts.status |= statuses::DNAT;
        facts.dst = address;
        if facts.icmp.is_none() {
            facts.dport = port;
        }
        Ok(Some(Course { address, port, ports, route_zone, outside, by_mapping }))
    }

    /// The port is kept if it is among those that the rule names, else it becomes the first of them.
    fn port_among(&mut self, ports: Option<PortRange>, random: bool, kept: u16) -> u16 {
        match ports {
            None => kept,
            Some(range) if random => {
                let count = u32::from(range.last - range.first) + 1;
                range.first + u16::try_from(self.rng.below(count)).unwrap_or(0)
            }
            Some(range) if (range.first..=range.last).contains(&kept) => kept,
            Some(range) => range.first,
        }
    }

    /// Whether the destination found by the route may be one of ours, so that [`Worker::course`] has to be asked.
    #[inline]
    pub(crate) fn may_be_ours(policy: &Policy, found: &Found, dst: IpAddr) -> bool {
        match found {
            Found::Via { interface, .. } => {
                policy.rules.publishes(dst)
                    || policy.interface_at(*interface).is_some_and(|i| policy.pools.owner(i.zone, dst).is_some())
            }
            Found::Local { .. } => policy.rules.translates_destinations(),
            _ => false,
        }
    }

    /// What postrouting makes of the source: for a hairpin as if the packet left by the interface that its untranslated
    /// destination is routed to.
    pub(crate) fn source_translation<'p>(
        &mut self,
        policy: &'p Policy,
        facts: &Facts,
        egress: &Interface,
        outside: Option<u16>,
        original: &Tuple,
    ) -> Result<Translation<'p>, DropReason> {
        let Some(outside) = outside.and_then(|slot| policy.interface(slot)) else {
            return self.translation(policy, facts, egress);
        };
        let dport = if facts.icmp.is_some() { facts.dport } else { original.dport };
        let as_if = Facts {
            egress: Some(outside.index),
            egress_zone: Some(outside.zone),
            dst: original.dst,
            dport,
            ..*facts
        };
        self.translation(policy, &as_if, outside)
    }

    /// The zone of a new connection's external source address.
    pub(crate) fn source_zone(&self, opening: &Opening<'_>) -> u16 {
        let outside = opening.course.and_then(|c| c.outside).and_then(|slot| self.policy.interface(slot));
        outside.map_or(opening.reply_zone, |o| o.zone)
    }

    /// Takes the use of the mapping that a new connection came for, if it came for one.
    ///
    /// # Errors
    /// It has just ended.
    pub(crate) fn enter(&self, opening: &Opening<'_>, original: &Tuple) -> Result<Option<u32>, DropReason> {
        let Some((course, home)) = opening.course.and_then(|c| Some((c, c.by_mapping?))) else { return Ok(None) };
        let port = if original.is_icmp() { original.sport } else { original.dport };
        let way = self.shared.nat.enter(home, original.dst, port, original.proto).ok_or(DropReason::NoMapping)?;
        let is_it = (way.inside.zone, way.inside.address, way.inside.port)
            == (course.route_zone, course.address, course.port);
        if !is_it {
            self.leave_mapping(Some(way.mapping));
        }
        if is_it { Ok(Some(way.mapping)) } else { Err(DropReason::NoMapping) }
    }

    /// Gives such a use back at once.
    pub(crate) fn leave_mapping(&self, entered: Option<u32>) {
        if let Some(mapping) = entered {
            self.shared.nat.leave(mapping, None);
        }
    }

    /// Writes down what a new connection's translated destination adds to it. Returns its bits of the status.
    pub(crate) fn note_detour(
        &mut self,
        entry: Entry<'_>,
        opening: &Opening<'_>,
        (original, reply): (&Tuple, &Tuple),
        entered: Option<u32>,
    ) -> u32 {
        let Some(course) = opening.course else { return 0 };
        let remote = course.outside.map(|_| original.dst);
        let source_zone = self.source_zone(opening);
        let detour = Detour { route_zone: course.route_zone, source_zone, remote, entered };
        entry.cold().detour.store(self.detours.add(detour), Ordering::Relaxed);
        let source = if original.is_icmp() { original.sport } else { reply.dport };
        let is_translated = (reply.dst, source) != (original.src, original.sport);
        status::DST_NAT | if is_translated { status::SRC_NAT } else { 0 }
    }

    /// Whether a connection's destination is one that the rules would give.
    pub(crate) fn keeps_its_course(
        &self,
        turn: Option<&Turn<'_>>,
        entry: Entry<'_>,
        (original, reply): (&Tuple, &Tuple),
    ) -> bool {
        let (turn, detour) = match (turn, self.detours.get(entry)) {
            (None, None) => return true,
            (Some(turn), Some(detour)) => (turn, detour),
            _ => return false,
        };
        let port_fits = |ports: Option<PortRange>| {
            let fits = ports.map_or(reply.sport == original.dport, |r| (r.first..=r.last).contains(&reply.sport));
            fits || original.is_icmp()
        };
        let fits = match turn.aim {
            Aim::Rule(dnat) => {
                let DestinationChoice::To(ranges) = &dnat.destination else { return false };
                ranges.iter().any(|r| r.contains(reply.src)) && port_fits(dnat.ports)
            }
            Aim::Address(address, ports) => address == reply.src && port_fits(ports),
            Aim::Mapping(inside, _) => inside.address == reply.src && inside.port == reply.sport,
        };
        let outside = turn.outside.and_then(|slot| self.policy.interface(slot)).map(|o| o.zone);
        let source_zone = outside.unwrap_or(reply.zone);
        let is_entered = matches!(turn.aim, Aim::Mapping(..));
        fits && (turn.route_zone, source_zone, is_entered)
            == (detour.route_zone, detour.source_zone, detour.entered.is_some())
    }

    /// What [`Turn`] says of the interface that a packet would have left by, for the source's sake.
    pub(crate) fn outside_of(turn: Option<&Turn<'_>>, egress: &Interface) -> Option<u16> {
        turn.and_then(|t| t.outside).filter(|slot| *slot != egress.slot)
    }

    /// At a connection's end: completes the lease of its source, and ends the use of the mapping that it came in by,
    /// whose port rests from now on if a time is given.
    pub(crate) fn end_detour(&mut self, entry: Entry<'_>, lease: &mut Option<Lease>, now_tick: Option<u32>) {
        let Some(detour) = self.detours.get(entry) else { return };
        let number = entry.cold().detour.load(Ordering::Relaxed);
        if let Some(lease) = lease {
            lease.zone = detour.source_zone;
            lease.remote = detour.remote.unwrap_or(lease.remote);
        }
        if let Some(mapping) = detour.entered {
            self.shared.nat.leave(mapping, now_tick);
        }
        self.detours.free.push(number);
    }
}

/// What a verdict of prerouting says of the destination, `slot` being the interface it holds for.
fn by_rule<'p>(
    policy: &'p Policy,
    verdict: &Verdict,
    facts: &Facts,
    slot: u16,
) -> Option<Result<Turn<'p>, DropReason>> {
    let zone = facts.zone.unwrap_or(0);
    let (aim, route_zone) = match verdict {
        Verdict::Dnat { action } => {
            let dnat = policy.rules.dnat(*action);
            let route_zone = dnat.zone.unwrap_or(zone);
            match dnat.destination {
                DestinationChoice::To(_) => (Aim::Rule(dnat), route_zone),
                DestinationChoice::Ingress => {
                    let own = policy.interface(slot).and_then(|i| i.primary_like(facts.dst));
                    let Some(own) = own else { return Some(Err(DropReason::NoRoute)) };
                    (Aim::Address(own, dnat.ports), route_zone)
                }
            }
        }
        Verdict::Netmap { prefix } => match policy.rules.netmap(*prefix).over(facts.dst) {
            Some(address) => (Aim::Address(address, None), zone),
            None => return Some(Err(DropReason::NoRoute)),
        },
        _ => return None,
    };
    Some(Ok(Turn { aim, route_zone, outside: None }))
}

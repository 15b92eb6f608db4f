//! The router as a host: ARP, echo to its own addresses, ICMP errors and resets that it sends.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::Ordering;

use erhu_planes::connections::status;
use erhu_planes::events::mask;
use erhu_planes::program::{Hook, RejectKind, states};
use erhu_planes::tuple::{icmp_answer, proto};
use erhu_planes::{Counter, DropReason};
use erhu_route::Found;
use erhu_rules::Facts;
use erhu_table::Reference;
use erhu_wire::{Addresses6, Parsed, Verify, arp, ethernet, icmp, icmp6, ipv4, ipv6, is_unforwardable_v4, tcp};

use crate::buffer::{Buffer, Buffers};
use crate::destination::Course;
use crate::judge::{Judged, refusal};
use crate::meta::{Meta, is_v6};
use crate::open::{Opening, Translation};
use crate::policy::{Interface, Policy};
use crate::worker::{Fate, Held, Worker};

/// ICMP errors and resets per second and zone.
const ERRORS_PER_SECOND: u32 = 1000;
/// … and at once.
const ERROR_BURST: u32 = 100;
/// Type of an echo request, by family.
const ECHO_REQUEST: [u8; 2] = [icmp::ECHO_REQUEST, icmp6::ECHO_REQUEST];
/// Where the IP header of a packet that the router makes starts.
const L3: usize = ethernet::HEADER_BYTES;
/// Room for a packet that the router makes: header and [`icmp6::LONGEST_ERROR`], the longer one.
const ROOM: usize = L3 + icmp6::LONGEST_ERROR;

impl<P: Buffers> Worker<P> {
    /// An ARP packet: learns from it, answers it if it asks for something that is here.
    pub(crate) fn arp(&mut self, mut buffer: P::Buffer, meta: &Meta) {
        let policy = self.policy();
        let l3 = usize::from(meta.parsed.l3);
        let parsed = buffer.frame().get(l3..).and_then(arp::parse);
        let (Some(packet), Some(interface)) = (parsed, policy.interface(meta.slot)) else {
            return self.finish(buffer, meta, Fate::Drop(DropReason::Malformed));
        };
        self.tally.count(Counter::Consumed);
        let is_near = interface.reaches(packet.spa.into());
        let may_learn = is_near || self.shared.adjacencies.knows(interface.slot, packet.spa.into());
        if may_learn && speaks_for_itself(&policy, interface, packet.spa, packet.sha) {
            let shared = self.shared();
            let learnt = shared.adjacencies.learn(interface, packet.spa.into(), packet.sha, self.clock.tick);
            if let Some(adjacency) = learnt {
                self.serve_neighbour(adjacency);
            }
        }
        let asks = packet.op == arp::REQUEST && packet.spa != packet.tpa;
        if !asks || !answers_for(&policy, interface, packet.tpa) {
            return;
        }
        let answer = packet.reply(interface.mac);
        let vlan = (interface.vlan != 0).then_some(interface.vlan);
        let fits = buffer.set_len(l3 + arp::BYTES);
        let frame = buffer.frame_mut();
        let written = frame.get_mut(l3..).and_then(|body| arp::write(&answer, body));
        if !fits || written.is_none() {
            return;
        }
        // A priority tag of the request is not repeated.
        let header =
            if vlan.is_some() { ethernet::HEADER_BYTES + ethernet::TAG_BYTES } else { ethernet::HEADER_BYTES };
        let by = i32::try_from(header).unwrap_or(0) - i32::from(meta.parsed.l3);
        if (by == 0 || buffer.move_start(by))
            && ethernet::write_header(buffer.frame_mut(), packet.sha, interface.mac, vlan, ethernet::ARP).is_some()
        {
            self.tally.count(Counter::Originated);
            self.count_sent(interface.slot, buffer.frame().len());
            self.push(interface.port, buffer);
        }
    }

    /// Asks who has a next hop's address.
    pub(crate) fn send_arp_request(&mut self, slot: u16, hop: Ipv4Addr) {
        let policy = self.policy();
        let Some(interface) = policy.interface(slot) else { return };
        let Some(IpAddr::V4(source)) = interface.source_like(hop.into()) else { return };
        let Some(mut buffer) = self.buffers.allocate() else { return };
        let vlan = (interface.vlan != 0).then_some(interface.vlan);
        let header = ethernet::HEADER_BYTES + if vlan.is_some() { ethernet::TAG_BYTES } else { 0 };
        if !buffer.set_len(header + arp::BYTES) {
            return;
        }
        let frame = buffer.frame_mut();
        let request = arp::Arp::request(interface.mac, source, hop);
        let start = ethernet::write_header(frame, ethernet::BROADCAST, interface.mac, vlan, ethernet::ARP);
        if start.and_then(|at| arp::write(&request, frame.get_mut(at..)?)).is_some() {
            self.tally.count(Counter::Originated);
            self.count_sent(interface.slot, header + arp::BYTES);
            self.push(interface.port, buffer);
        }
    }

    /// A first packet for one of the router's own addresses. Only echo is served, and only echo makes a connection.
    /// `facts` and `course` have the destination as rules translated it.
    pub(crate) fn open_local(
        &mut self,
        held: Held<'_, P::Buffer>,
        buffer: &mut P::Buffer,
        meta: &Meta,
        facts: &Facts,
        course: Option<&Course>,
    ) -> Option<Fate> {
        let (verdict, _) = self.run_hook(Hook::Input, facts);
        if let Some((reason, reject)) = refusal(&verdict) {
            let judged = Judged::Refuse { reason, reject, packet_kind: false };
            return Some(self.refuse_packet(buffer, meta, &judged));
        }
        if !asks_for_echo(facts) {
            return Some(self.no_service(buffer, meta));
        }
        let opening = Opening {
            meta,
            translation: Translation::None,
            reply_zone: meta.zone,
            course,
            egress: None,
            target: Judged::Local,
            mark: facts.mark,
            back: None,
        };
        match self.confirm(held, buffer, &opening) {
            Ok(line) => {
                let entry = held.shared.table.entry_at(line)?;
                Some(self.answer_echo(buffer, meta, Some(entry.reference(0))))
            }
            Err(None) => None,
            Err(Some(reason)) => {
                self.tally.refuse(reason);
                Some(Fate::Drop(reason))
            }
        }
    }

    /// A further packet of a connection to the router.
    pub(crate) fn local_established(&mut self, buffer: &mut P::Buffer, meta: &Meta, reference: Reference) -> Fate {
        let policy = self.policy();
        let own = self.leg(self.shared.table.entry(reference), reference.direction(), states::ESTABLISHED);
        let Facts { dst, dport, status, is_reply, .. } = own.facts;
        let facts = Facts { dst, dport, status, is_reply, ..meta.facts(&policy, states::ESTABLISHED) };
        let (verdict, _) = self.run_hook(Hook::Input, &facts);
        if let Some((reason, reject)) = refusal(&verdict) {
            let judged = Judged::Refuse { reason, reject, packet_kind: false };
            return self.refuse_packet(buffer, meta, &judged);
        }
        if reference.is_reply() { Fate::Consume } else { self.answer_echo(buffer, meta, Some(reference)) }
    }

    /// An ICMP error about something that the router sent.
    pub(crate) fn input_related(&mut self, buffer: &P::Buffer, meta: &Meta, reference: Reference) -> Fate {
        let policy = self.policy();
        let own = self.leg(self.shared.table.entry(reference), reference.direction(), states::RELATED);
        let Facts { status, is_reply, .. } = own.facts;
        let facts = Facts { status, is_reply, ..meta.facts(&policy, states::RELATED) };
        let (verdict, _) = self.run_hook(Hook::Input, &facts);
        match refusal(&verdict) {
            Some((reason, reject)) => {
                self.refuse_packet(buffer, meta, &Judged::Refuse { reason, reject, packet_kind: false })
            }
            None => Fate::Consume,
        }
    }

    /// An untracked or INVALID packet for one of the router's own addresses.
    pub(crate) fn input_stateless(&mut self, buffer: &mut P::Buffer, meta: &Meta, facts: &Facts) -> Fate {
        let (verdict, _) = self.run_hook(Hook::Input, facts);
        if let Some((reason, reject)) = refusal(&verdict) {
            let judged = Judged::Refuse { reason, reject, packet_kind: false };
            return self.refuse_packet(buffer, meta, &judged);
        }
        if facts.state == states::INVALID {
            return Fate::Drop(DropReason::Invalid);
        }
        if asks_for_echo(facts) {
            return self.answer_echo(buffer, meta, None);
        }
        self.no_service(buffer, meta)
    }

    /// The router is a host without services: it says so, as hosts do (RFC 1122 sections 3.2.2.1 and 4.2.2.13).
    fn no_service(&mut self, buffer: &P::Buffer, meta: &Meta) -> Fate {
        if matches!(meta.parsed.proto, proto::TCP | proto::UDP) {
            self.answer(buffer, &meta.parsed, meta.slot, meta.zone, RejectKind::Default);
        }
        Fate::Drop(DropReason::Unsupported)
    }

    /// Turns an echo request into its reply and sends that.
    fn answer_echo(&mut self, buffer: &mut P::Buffer, meta: &Meta, connection: Option<Reference>) -> Fate {
        let policy = self.policy();
        let mut facts = meta.facts(&policy, states::ESTABLISHED);
        (facts.src, facts.dst) = (facts.dst, facts.src);
        facts.icmp = icmp_answer(facts.proto, ECHO_REQUEST[usize::from(facts.dst.is_ipv6())]).map(|kind| (kind, 0));
        facts.ingress = None;
        match connection {
            Some(reference) => {
                let own = self.leg(self.shared.table.entry(reference), 1, states::ESTABLISHED);
                (facts.status, facts.is_reply) = (own.facts.status, true);
            }
            None => facts.state = states::UNTRACKED,
        }
        let Some((adjacency, verdict_allows)) = self.route_own(&policy, meta.slot, meta.zone, &mut facts) else {
            return Fate::Drop(DropReason::NoRoute);
        };
        if let Err(reason) = verdict_allows {
            return Fate::Drop(reason);
        }
        let range = usize::from(meta.parsed.l3)..usize::from(meta.parsed.end);
        let answer = if meta.is_v6() { icmp6::echo_reply_in_place } else { icmp::echo_reply_in_place };
        let answered = buffer.frame_mut().get_mut(range).and_then(answer);
        if answered.is_none() {
            return Fate::Drop(DropReason::Unsupported);
        }
        if let Some(reference) = connection {
            let shared = self.shared();
            let entry = shared.table.entry(reference);
            crate::fast::count(&entry.side(1), self.clock.tick, meta.parsed.length);
            let cold = entry.cold();
            let before = cold.status.load(Ordering::Relaxed);
            if before & status::SEEN_REPLY == 0 {
                cold.status.store(before | status::SEEN_REPLY, Ordering::Relaxed);
                self.tell(entry, mask::UPDATE);
            }
        }
        Fate::Originate { adjacency }
    }

    /// Where a packet of the router's own goes, and whether the output rules let it.
    fn route_own(
        &mut self,
        policy: &Policy,
        slot: u16,
        zone: u16,
        facts: &mut Facts,
    ) -> Option<(u32, Result<(), DropReason>)> {
        let (egress, next_hop) = if is_on_link(facts.dst) {
            (policy.interface(slot)?, facts.dst)
        } else {
            let Found::Via { interface, next_hop } = policy.routes.lookup(zone, facts.dst, 0) else { return None };
            // An answer stays in the zone of what it answers: a source that is routed to another one was not its own,
            // and the answer would leave there with addresses of this one.
            (policy.interface_at(interface).filter(|egress| egress.zone == zone)?, next_hop)
        };
        facts.egress = Some(egress.index);
        facts.egress_zone = Some(egress.zone);
        facts.zone = Some(zone);
        let (verdict, _) = self.run_hook(Hook::Output, facts);
        let adjacency = self.adjacency(egress, next_hop)?;
        Some((adjacency, refusal(&verdict).map_or(Ok(()), |(reason, _)| Err(reason))))
    }

    /// Answers a packet that is refused, as the rule or the default says.
    pub(crate) fn answer(&mut self, buffer: &P::Buffer, parsed: &Parsed, slot: u16, zone: u16, kind: RejectKind) {
        let is_tcp = parsed.proto == proto::TCP;
        if is_tcp && matches!(kind, RejectKind::Default | RejectKind::Reset) {
            return self.send_reset(buffer, parsed, slot, zone);
        }
        let (icmp_type, code) = if is_v6(parsed) {
            use icmp6::unreachable;
            let code = match kind {
                RejectKind::Default | RejectKind::Reset | RejectKind::Port => unreachable::PORT,
                RejectKind::Admin => unreachable::ADMIN,
                RejectKind::Host => unreachable::ADDRESS,
                RejectKind::Net => unreachable::NO_ROUTE,
            };
            (icmp6::UNREACHABLE, code)
        } else {
            use icmp::unreachable;
            let code = match kind {
                RejectKind::Default | RejectKind::Reset | RejectKind::Port => unreachable::PORT,
                RejectKind::Admin => unreachable::ADMIN,
                RejectKind::Host => unreachable::HOST,
                RejectKind::Net => unreachable::NET,
            };
            (icmp::UNREACHABLE, code)
        };
        self.answer_with(buffer, parsed, slot, zone, (icmp_type, code, 0));
    }

    fn may_send_error(&mut self, zone: u16) -> bool {
        let allowed = self.shared.account(zone).icmp.take(self.clock.mono_ns, ERRORS_PER_SECOND, ERROR_BURST);
        if !allowed {
            self.tally.count(Counter::IcmpRateLimited);
        }
        allowed
    }

    /// Sends an ICMP error `(type, code, rest)` about a packet, where one may be sent.
    pub(crate) fn answer_with(
        &mut self,
        buffer: &P::Buffer,
        parsed: &Parsed,
        slot: u16,
        zone: u16,
        (icmp_type, code, rest): (u8, u8, u32),
    ) {
        let policy = self.policy();
        let Some(original) = buffer.frame().get(usize::from(parsed.l3)..usize::from(parsed.end)) else { return };
        let Some((to, _)) = ends(buffer.frame(), parsed) else { return };
        let Some(from) = own_address(&policy, slot, zone, to) else { return };
        let may_answer = if is_v6(parsed) {
            icmp6::may_answer_with_error(original, false, icmp_type, code)
        } else {
            icmp::may_answer_with_error(original, false)
        };
        if !may_answer || !self.may_send_error(zone) {
            return;
        }
        let Some(mut answer) = self.buffers.allocate() else { return };
        if !answer.set_len(ROOM) {
            return;
        }
        let Some(body) = answer.frame_mut().get_mut(L3..) else { return };
        let built = match (from, to) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                // RFC 1812 section 4.3.2.5: precedence of errors is 6, internetwork control.
                let error = icmp::Error { src, dst, icmp_type, code, rest, ttl: ipv4::DEFAULT_TTL, tos: 0xc0, id: 0 };
                icmp::build_error(body, &error, original)
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let hop_limit = ipv6::DEFAULT_HOP_LIMIT;
                let error = icmp6::Error { src, dst, icmp_type, code, rest, hop_limit, traffic_class: 0 };
                icmp6::build_error(body, &error, original)
            }
            _ => None,
        };
        let Some(length) = built else { return };
        self.originate(answer, length, (slot, zone), Some((icmp_type, code)));
    }

    fn send_reset(&mut self, buffer: &P::Buffer, parsed: &Parsed, slot: u16, zone: u16) {
        let Some(original) = buffer.frame().get(usize::from(parsed.l3)..usize::from(parsed.end)) else { return };
        let Some(mut answer) = self.buffers.allocate() else { return };
        if !self.may_send_error(zone) || !answer.set_len(ROOM) {
            return;
        }
        let build = if is_v6(parsed) { tcp::build_reset6 } else { tcp::build_reset };
        let built = answer.frame_mut().get_mut(L3..).and_then(|body| build(body, original));
        if let Some(length) = built {
            self.originate(answer, length, (slot, zone), None);
        }
    }

    /// Sends an IP packet that the router made.
    fn originate(&mut self, mut buffer: P::Buffer, length: usize, (slot, zone): (u16, u16), icmp: Option<(u8, u8)>) {
        let policy = self.policy();
        let is_ipv6 = buffer.frame().get(L3).is_some_and(|version| version >> 4 == 6);
        let ethertype = if is_ipv6 { ethernet::IPV6 } else { ethernet::IPV4 };
        let placeholder = ethernet::write_header(buffer.frame_mut(), ethernet::ZERO, ethernet::ZERO, None, ethertype);
        if placeholder != Some(L3) || !buffer.set_len(L3 + length) {
            return;
        }
        let parsed = erhu_wire::parse(buffer.frame(), Verify::TrustBoth);
        let Some((src, dst)) = ends(buffer.frame(), &parsed) else { return };
        let (sport, dport) = erhu_planes::tuple::unpack_ports(parsed.proto, parsed.ports);
        let mut facts = Facts {
            ingress: None,
            egress: None,
            zone: Some(zone),
            egress_zone: None,
            src,
            dst,
            proto: parsed.proto,
            sport,
            dport,
            has_ports: icmp.is_none(),
            icmp,
            state: states::RELATED,
            status: 0,
            is_reply: true,
            mark: 0,
            bytes: u32::from(parsed.length),
        };
        match self.route_own(&policy, slot, zone, &mut facts) {
            Some((adjacency, Ok(()))) => {
                self.tally.count(Counter::Originated);
                self.send_or_wait(buffer, parsed, adjacency, None);
            }
            // What the rules keep it from saying is no packet that came: that one has its reason already.
            Some((_, Err(_))) | None => {}
        }
    }
}

/// The address to send errors from: the interface's that the packet came by, else one of its zone.
fn own_address(policy: &Policy, slot: u16, zone: u16, to: IpAddr) -> Option<IpAddr> {
    let own = policy.interface(slot).and_then(|i| i.source_like(to));
    own.or_else(|| policy.interfaces().filter(|i| i.zone == zone).find_map(|i| i.primary_like(to)))
}

/// Source and destination of an IP packet.
fn ends(frame: &[u8], parsed: &Parsed) -> Option<(IpAddr, IpAddr)> {
    if is_v6(parsed) {
        let (src, dst) = Addresses6::read(frame, parsed.l3)?.unpack();
        return Some((src.into(), dst.into()));
    }
    let [src, dst] = ipv4::unpack_addresses(parsed.addresses);
    Some((src.into(), dst.into()))
}

/// Whether an address means something on one link only.
const fn is_on_link(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Whether a packet asks for an echo, in its family's way.
fn asks_for_echo(facts: &Facts) -> bool {
    facts.icmp.is_some_and(|(kind, _)| kind == ECHO_REQUEST[usize::from(facts.src.is_ipv6())])
}

/// Whether an ARP packet's sender can be a host: a single one, that claims nothing of the router's.
fn speaks_for_itself(policy: &Policy, interface: &Interface, address: Ipv4Addr, mac: [u8; 6]) -> bool {
    let ip = IpAddr::V4(address);
    mac[0] & 1 == 0
        && mac != ethernet::ZERO
        && mac != interface.mac
        && !is_unforwardable_v4(u32::from_le_bytes(address.octets()))
        && !policy.routes.is_local(interface.zone, ip)
        && policy.pools.owner(interface.zone, ip).is_none()
}

/// Whether the router answers ARP for an address on an interface: its own, a pool's in a connected prefix, or, with
/// `proxy_arp`, what is routed elsewhere.
fn answers_for(policy: &Policy, interface: &Interface, address: Ipv4Addr) -> bool {
    let ip = IpAddr::V4(address);
    if policy.routes.is_local(interface.zone, ip) {
        return true;
    }
    if policy.pools.owner(interface.zone, ip).is_some() && interface.reaches(ip) {
        return true;
    }
    interface.proxy_arp
        && matches!(policy.routes.lookup(interface.zone, ip, 0),
            Found::Via { interface: egress, .. } if egress != interface.index)
}

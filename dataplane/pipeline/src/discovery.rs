//! The router as a neighbour: neighbour discovery (RFC 4861), and packets that stay on the link.
//!
//! What ARP is for IPv4: answers for own addresses, for pools' in a connected prefix and for proxied ones, learns from
//! who asks, asks for next hops. Reachability of what is known is not probed. Every interface with an IPv6 address has a
//! link-local one, from which the router asks. Routers are not advertised; solicitations for them are consumed.

use std::net::{IpAddr, Ipv6Addr};

use erhu_planes::program::states;
use erhu_planes::{Counter, DropReason};
use erhu_route::Found;
use erhu_wire::nd::{self, Advertisement, Message, Solicitation};
use erhu_wire::{Kind, Odd, ethernet, icmp6, ipv6, is_unforwardable_v6};

use crate::buffer::{Buffer, Buffers};
use crate::meta::Meta;
use crate::policy::{Interface, Policy};
use crate::worker::{Fate, Worker};

impl<P: Buffers> Worker<P> {
    /// A message of neighbour discovery: learns from it, answers it if it asks for something that is here.
    pub(crate) fn discovery(&mut self, buffer: P::Buffer, meta: &Meta) {
        let policy = self.policy();
        let (l3, end) = (usize::from(meta.parsed.l3), usize::from(meta.parsed.end));
        let at = usize::from(meta.parsed.l4) - l3;
        let message = buffer.frame().get(l3..end).and_then(|packet| nd::parse(packet, at));
        let sender = buffer.frame().get(6..12).and_then(|mac| <[u8; 6]>::try_from(mac).ok());
        let (Some(interface), Some(sender)) = (policy.interface(meta.slot), sender) else {
            return self.finish(buffer, meta, Fate::Drop(DropReason::Malformed));
        };
        match message {
            Some(Message::Solicitation(asks)) => self.solicited(&policy, interface, &asks, sender),
            Some(Message::Advertisement(tells)) => self.advertised(&policy, interface, &tells),
            None => return self.no_neighbours(buffer, meta),
        }
        self.finish(buffer, meta, Fate::Consume);
    }

    /// Discovery that is not about neighbours, or breaks the rules.
    fn no_neighbours(&mut self, buffer: P::Buffer, meta: &Meta) {
        let fate = match meta.icmp().map(|(kind, _)| kind) {
            Some(icmp6::ROUTER_SOLICITATION) if meta.parsed.ttl == nd::HOP_LIMIT => Fate::Consume,
            Some(icmp6::ROUTER_ADVERTISEMENT | icmp6::REDIRECT) => Fate::Drop(DropReason::Unsupported),
            _ => Fate::Drop(DropReason::Malformed),
        };
        self.finish(buffer, meta, fate);
    }

    fn solicited(&mut self, policy: &Policy, interface: &Interface, asks: &Solicitation, sender: [u8; 6]) {
        if let Some(mac) = asks.mac {
            let near = interface.link_local.is_some()
                && (asks.src.is_unicast_link_local() || interface.reaches(asks.src.into()));
            if near || self.shared.adjacencies.knows(interface.slot, asks.src.into()) {
                self.hear(policy, interface, asks.src, mac);
            }
        }
        let Some(overrides) = answers_for(policy, interface, asks.target).filter(|_| asks.src != asks.target) else {
            return;
        };
        let mut answer = asks.answer(interface.mac, true, overrides);
        if !interface.owns(asks.target.into()) {
            answer.src = interface.link_local.unwrap_or(answer.src);
        }
        let to = if answer.solicited { asks.mac.unwrap_or(sender) } else { ipv6::group_mac(answer.dst) };
        self.send_discovery(interface, to, |body| answer.write(body));
    }

    /// RFC 4861 section 7.2.5: only what is asked for or known is learned, and replaced only where the sender insists.
    fn advertised(&mut self, policy: &Policy, interface: &Interface, tells: &Advertisement) {
        let Some(mac) = tells.mac else { return };
        let (slot, target) = (interface.slot, IpAddr::V6(tells.target));
        let Some(known) = self.shared.adjacencies.known(slot, target) else { return };
        if tells.overrides || known.is_none_or(|known| known == mac) {
            self.hear(policy, interface, tells.target, mac);
        }
    }

    /// Learns where an address is, if that can be a host's.
    fn hear(&mut self, policy: &Policy, interface: &Interface, address: Ipv6Addr, mac: [u8; 6]) {
        let ip = IpAddr::V6(address);
        let words = erhu_planes::tuple::pack_v6(address);
        let speaks_for_itself = mac[0] & 1 == 0
            && mac != ethernet::ZERO
            && mac != interface.mac
            && (address.is_unicast_link_local() || !is_unforwardable_v6(words))
            && interface.link_local != Some(address)
            && !policy.routes.is_local(interface.zone, ip)
            && policy.pools.owner(interface.zone, ip).is_none();
        if speaks_for_itself {
            self.shared.adjacencies.learn(interface, ip, mac, self.clock.tick);
            self.serve_waiting();
        }
    }

    /// Asks who has a next hop's address.
    pub(crate) fn send_solicitation(&mut self, slot: u16, hop: Ipv6Addr) {
        let policy = self.policy();
        let Some(interface) = policy.interface(slot) else { return };
        let Some(source) = interface.link_local else { return };
        let question = Solicitation::new(source, interface.mac, hop);
        self.send_discovery(interface, ipv6::group_mac(question.dst), |body| question.write(body));
    }

    fn send_discovery(&mut self, interface: &Interface, to: [u8; 6], write: impl Fn(&mut [u8]) -> Option<usize>) {
        let Some(mut buffer) = self.buffers.allocate() else { return };
        let vlan = (interface.vlan != 0).then_some(interface.vlan);
        let header = ethernet::HEADER_BYTES + if vlan.is_some() { ethernet::TAG_BYTES } else { 0 };
        if !buffer.set_len(header + nd::BYTES) {
            return;
        }
        let frame = buffer.frame_mut();
        let start = ethernet::write_header(frame, to, interface.mac, vlan, ethernet::IPV6);
        let length = start.and_then(|at| write(frame.get_mut(at..)?));
        if length.is_some_and(|length| buffer.set_len(header + length)) {
            self.tally.count(Counter::Originated);
            self.count_sent(interface.slot, buffer.frame().len());
            self.push(interface.port, buffer);
        }
    }

    /// A packet from or to an address that means nothing beyond the link, or none of a single host: the router takes
    /// what is for its own addresses. Nobody else's connection can be meant, so it is not tracked.
    pub(crate) fn on_link(&mut self, buffer: &mut P::Buffer, meta: &Meta) -> Fate {
        let policy = self.policy();
        let (IpAddr::V6(src), IpAddr::V6(dst)) = meta.addresses() else { return Fate::Drop(DropReason::Unsupported) };
        let is_sound = matches!(meta.parsed.kind, Kind::Fast6 | Kind::Ipv6Odd(Odd::Options));
        let is_ours = policy.interface(meta.slot).is_some_and(|i| i.link_local == Some(dst))
            || policy.routes.is_local(meta.zone, dst.into());
        let is_host = src.is_unicast_link_local() || !is_unforwardable_v6(meta.key6.src);
        if !(is_sound && is_ours && is_host) {
            return Fate::Drop(DropReason::Unsupported);
        }
        let facts = meta.facts(&policy, states::UNTRACKED);
        self.input_stateless(buffer, meta, &facts)
    }
}

/// Whether the router answers for an address on an interface: its own, a pool's in a connected prefix, or, with
/// `proxy_arp`, what is routed elsewhere. `Some(true)`: nobody else may; what is proxied somebody may have come to have
/// (RFC 4861 section 7.2.8).
fn answers_for(policy: &Policy, interface: &Interface, address: Ipv6Addr) -> Option<bool> {
    let ip = IpAddr::V6(address);
    let is_own = interface.link_local == Some(address)
        || policy.routes.is_local(interface.zone, ip)
        || policy.pools.owner(interface.zone, ip).is_some() && interface.reaches(ip);
    if is_own {
        return Some(true);
    }
    let is_elsewhere = interface.proxy_arp
        && matches!(policy.routes.lookup(interface.zone, ip, 0),
            Found::Via { interface: egress, .. } if egress != interface.index);
    is_elsewhere.then_some(false)
}

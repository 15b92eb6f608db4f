//! Packets whose next hop has not answered yet.
//!
//! 64 per neighbour over all workers, and a bounded number per worker; requests go out at once and then every second,
//! three in all; then the packets end as `no_neighbour`, each answered host unreachable.

use std::collections::VecDeque;
use std::net::IpAddr;

use erhu_planes::program::RejectKind;
use erhu_planes::tuple::{Key, Key4, Key6};
use erhu_planes::{Counter, DropReason};
use erhu_wire::rewrite::Rewrite4;
use erhu_wire::rewrite6::Rewrite6;
use erhu_wire::{Addresses6, Kind, Odd, Parsed, Verify, checksum, ethernet};

use crate::buffer::{Buffer, Buffers};
use crate::fast::encapsulate;
use crate::worker::{Meta, Worker};

/// Packets that wait on one worker.
const PER_WORKER: usize = 4096;

/// A packet that waits: its IP packet is ready, its frame not.
#[derive(Debug)]
struct Packet<B> {
    buffer: B,
    parsed: Parsed,
    /// Where it came from, to answer it; `None` for the router's own.
    origin: Option<(u16, u16, Key)>,
}

#[derive(Debug)]
struct Group<B> {
    adjacency: u32,
    round: u32,
    packets: VecDeque<Packet<B>>,
}

/// All packets that wait on one worker, by adjacency.
#[derive(Debug)]
pub(crate) struct Waiting<B> {
    groups: Vec<Group<B>>,
    total: usize,
}

impl<B> Default for Waiting<B> {
    fn default() -> Self {
        Self { groups: Vec::new(), total: 0 }
    }
}

impl<B> Waiting<B> {
    /// Whether nothing waits.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }
}

impl<P: Buffers> Worker<P> {
    /// Sends an IP packet by an adjacency, or keeps it until the next hop is known.
    pub(crate) fn leave(&mut self, buffer: P::Buffer, meta: &Meta, adjacency: u32) {
        self.send_or_wait(buffer, meta.parsed, adjacency, Some((meta.slot, meta.zone, meta.packed())));
    }

    /// The same for packets of any origin.
    pub(crate) fn send_or_wait(
        &mut self,
        mut buffer: P::Buffer,
        parsed: Parsed,
        adjacency: u32,
        origin: Option<(u16, u16, Key)>,
    ) {
        let egress = self.shared.adjacencies.get(adjacency).egress();
        let others_wait = self.waiting.groups.iter().any(|g| g.adjacency == adjacency);
        if let Some(destination) = egress.destination {
            if others_wait {
                self.serve_waiting();
            }
            if encapsulate(&mut buffer, &parsed, &egress, destination, ethertype(&parsed)) {
                self.count_sent(egress.slot, buffer.frame().len());
                self.push(egress.port, buffer);
            } else {
                self.count_origin_drop(origin, DropReason::NoBuffer);
            }
            return;
        }
        let shared = self.shared();
        let line = shared.adjacencies.get(adjacency);
        if self.waiting.total >= PER_WORKER || !line.start_waiting() {
            return self.count_origin_drop(origin, DropReason::NoNeighbour);
        }
        self.tally.count(Counter::ArpQueued);
        self.waiting.total += 1;
        let packet = Packet { buffer, parsed, origin };
        match self.waiting.groups.iter_mut().find(|g| g.adjacency == adjacency) {
            Some(group) => group.packets.push_back(packet),
            None => {
                let group = Group { adjacency, round: line.round(), packets: VecDeque::from([packet]) };
                self.waiting.groups.push(group);
            }
        }
        if line.ask(self.clock.tick) == Some(true) {
            self.ask_neighbour(adjacency);
        }
    }

    fn count_origin_drop(&mut self, origin: Option<(u16, u16, Key)>, reason: DropReason) {
        let (slot, zone) = origin.map_or((crate::policy::NO_SLOT, 0), |(slot, zone, _)| (slot, zone));
        self.count_drop(slot, zone, reason);
    }

    /// Sends what can be sent by now, asks again for what is due, gives up what nobody answered.
    pub(crate) fn serve_waiting(&mut self) {
        let mut at = 0;
        while let Some(group) = self.waiting.groups.get(at) {
            let (adjacency, round) = (group.adjacency, group.round);
            let shared = self.shared();
            let line = shared.adjacencies.get(adjacency);
            let egress = line.egress();
            if let Some(destination) = egress.destination {
                let group = self.waiting.groups.remove(at);
                for mut packet in self.out_of_wait(group) {
                    let ethertype = ethertype(&packet.parsed);
                    if encapsulate(&mut packet.buffer, &packet.parsed, &egress, destination, ethertype) {
                        self.count_sent(egress.slot, packet.buffer.frame().len());
                        self.push(egress.port, packet.buffer);
                    } else {
                        self.count_origin_drop(packet.origin, DropReason::NoBuffer);
                    }
                }
                continue;
            }
            let given_up = line.round() != round;
            match if given_up { None } else { line.ask(self.clock.tick) } {
                Some(ask) => {
                    if ask {
                        self.ask_neighbour(adjacency);
                    }
                    at += 1;
                }
                None => {
                    if !given_up {
                        line.give_up();
                    }
                    let group = self.waiting.groups.remove(at);
                    for packet in self.out_of_wait(group) {
                        self.no_neighbour(packet);
                    }
                }
            }
        }
    }

    fn out_of_wait(&mut self, group: Group<P::Buffer>) -> VecDeque<Packet<P::Buffer>> {
        let line = self.shared.adjacencies.get(group.adjacency);
        group.packets.iter().for_each(|_| line.stop_waiting());
        self.waiting.total -= group.packets.len();
        group.packets
    }

    /// Ends a packet that waited in vain; its sender gets its own packet back, as it was before translation.
    fn no_neighbour(&mut self, mut packet: Packet<P::Buffer>) {
        self.count_origin_drop(packet.origin, DropReason::NoNeighbour);
        let Some((slot, zone, key)) = packet.origin else { return };
        match key {
            Key::V4(key) => restore(packet.buffer.frame_mut(), &packet.parsed, key),
            Key::V6(key) => restore6(packet.buffer.frame_mut(), &packet.parsed, &key),
        }
        self.answer(&packet.buffer, &packet.parsed, slot, zone, RejectKind::Host);
    }

    fn ask_neighbour(&mut self, adjacency: u32) {
        match self.shared.adjacencies.hop(adjacency) {
            Some((slot, IpAddr::V4(hop))) => self.send_arp_request(slot, hop),
            Some((slot, IpAddr::V6(hop))) => self.send_solicitation(slot, hop),
            None => {}
        }
    }
}

/// EtherType of an IP packet.
const fn ethertype(parsed: &Parsed) -> u16 {
    if crate::worker::is_v6(parsed) { ethernet::IPV6 } else { ethernet::IPV4 }
}

/// As [`restore`], for IPv6.
#[expect(clippy::cast_possible_truncation, reason = "the low half of the word")]
fn restore6(frame: &mut [u8], as_it_came: &Parsed, key: &Key6) {
    let now = erhu_wire::parse(frame, Verify::TrustBoth);
    let Some(addresses) = Addresses6::read(frame, now.l3) else { return };
    let came = Addresses6 { src: key.src, dst: key.dst };
    Rewrite6::new(now.proto, (addresses, now.ports), (came, key.low as u32)).apply(frame, &now);
    if let Some(hop_limit) = frame.get_mut(usize::from(as_it_came.l3) + 7) {
        *hop_limit = as_it_came.ttl;
    }
}

/// Undoes what was done to a packet on its way: tuple and time to live as they came in.
#[expect(clippy::cast_possible_truncation, reason = "the low half of the word")]
fn restore(frame: &mut [u8], as_it_came: &Parsed, key: Key4) {
    let now = erhu_wire::parse(frame, Verify::TrustBoth);
    let back = Rewrite4::new(now.proto, (now.addresses, now.ports), (key.0[0], key.0[1] as u32));
    if matches!(now.kind, Kind::Fast | Kind::Ipv4Odd(Odd::Options)) {
        back.apply(frame, &now);
    }
    let header = usize::from(as_it_came.l3)..usize::from(as_it_came.l4);
    if let Some(ip) = frame.get_mut(header) {
        if let Some(ttl) = ip.get_mut(8) {
            *ttl = as_it_came.ttl;
        }
        checksum::fill_ipv4(ip);
    }
}

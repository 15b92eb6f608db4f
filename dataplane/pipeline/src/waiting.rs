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
use hashbrown::HashMap;

use crate::buffer::{Buffer, Buffers};
use crate::fast::encapsulate;
use crate::link::LINK_PORT;
use crate::meta::Meta;
use crate::worker::Worker;

/// Packets that wait on one worker.
const PER_WORKER: usize = 4096;
/// Next hops that one loop looks at: whoever scans a connected prefix shall not make every loop longer.
const LOOKS: usize = 64;
/// Packets whose wait ends in one loop; those of the last next hop make it up to 63 more.
const PACKETS: usize = 64;

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
    /// Places in `groups` by adjacency.
    places: HashMap<u32, usize>,
    total: usize,
    /// Where the next loop goes on looking, at which instant that began, and how many are left to look at for it.
    hand: usize,
    since_ns: u64,
    left: usize,
}

impl<B> Default for Waiting<B> {
    fn default() -> Self {
        // Room from the start, so that no loop makes it.
        Self {
            groups: Vec::with_capacity(PER_WORKER),
            places: HashMap::with_capacity(PER_WORKER),
            total: 0,
            hand: 0,
            since_ns: 0,
            left: 0,
        }
    }
}

impl<B> Waiting<B> {
    /// Whether nothing waits.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    fn of(&mut self, adjacency: u32) -> Option<&mut Group<B>> {
        let place = *self.places.get(&adjacency)?;
        self.groups.get_mut(place)
    }

    fn add(&mut self, adjacency: u32, round: u32, packet: Packet<B>) {
        self.total += 1;
        match self.of(adjacency) {
            Some(group) => group.packets.push_back(packet),
            None => {
                self.places.insert(adjacency, self.groups.len());
                self.groups.push(Group { adjacency, round, packets: VecDeque::from([packet]) });
            }
        }
    }

    /// Takes a group out.
    fn take(&mut self, place: usize) -> VecDeque<Packet<B>> {
        let group = self.groups.swap_remove(place);
        self.places.remove(&group.adjacency);
        if let Some(moved) = self.groups.get(place) {
            self.places.insert(moved.adjacency, place);
        }
        self.total -= group.packets.len();
        group.packets
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
        let shared = self.shared();
        let line = shared.adjacencies.get(adjacency);
        let egress = line.egress();
        if let Some(destination) = egress.destination {
            self.serve_neighbour(adjacency);
            if encapsulate(&mut buffer, &parsed, &egress, destination, ethertype(&parsed)) {
                self.count_sent(egress.slot, buffer.frame().len());
                self.push(egress.port, buffer);
            } else {
                self.count_origin_drop(origin, DropReason::NoBuffer);
            }
            return;
        }
        if egress.port == LINK_PORT {
            let crossed = if origin.is_some() { self.crossings.crossed } else { 0 };
            if let Err(reason) = self.cross(buffer, &parsed, &egress, crossed) {
                self.count_origin_drop(origin, reason);
            }
            return;
        }
        if self.waiting.total >= PER_WORKER || !line.start_waiting() {
            return self.count_origin_drop(origin, DropReason::NoNeighbour);
        }
        self.tally.count(Counter::ArpQueued);
        self.waiting.add(adjacency, line.round(), Packet { buffer, parsed, origin });
        if line.ask(self.clock.tick) == Some(true) {
            self.ask_neighbour(adjacency);
        }
    }

    fn count_origin_drop(&mut self, origin: Option<(u16, u16, Key)>, reason: DropReason) {
        let (slot, zone) = origin.map_or((crate::policy::NO_SLOT, 0), |(slot, zone, _)| (slot, zone));
        self.count_drop(slot, zone, reason);
    }

    /// Sends what can be sent by now, asks again for what is due, gives up what nobody answered. Looks at some of the
    /// next hops that packets wait for; `true` when all were looked at since this instant began.
    pub(crate) fn serve_waiting(&mut self) -> bool {
        let now_ns = self.clock.mono_ns;
        if self.waiting.since_ns != now_ns || self.waiting.groups.len() <= LOOKS {
            (self.waiting.since_ns, self.waiting.left) = (now_ns, self.waiting.groups.len());
        }
        let mut served = 0;
        for _ in 0..LOOKS.min(self.waiting.groups.len()) {
            if self.waiting.hand >= self.waiting.groups.len() {
                self.waiting.hand = 0;
            }
            match self.serve_group(self.waiting.hand) {
                0 => {
                    self.waiting.hand += 1;
                    self.waiting.left = self.waiting.left.saturating_sub(1);
                }
                packets => served += packets,
            }
            if served >= PACKETS {
                return false;
            }
        }
        self.waiting.left.min(self.waiting.groups.len()) == 0
    }

    /// The same for one next hop at once.
    pub(crate) fn serve_neighbour(&mut self, adjacency: u32) {
        if let Some(place) = self.waiting.places.get(&adjacency) {
            self.serve_group(*place);
        }
    }

    /// Does for the packets of one next hop what can be done now. Returns the number of those that wait no longer.
    fn serve_group(&mut self, place: usize) -> usize {
        let Some(group) = self.waiting.groups.get(place) else { return 0 };
        let (adjacency, round) = (group.adjacency, group.round);
        let shared = self.shared();
        let line = shared.adjacencies.get(adjacency);
        let egress = line.egress();
        if let Some(destination) = egress.destination {
            let packets = self.out_of_wait(place, adjacency);
            let count = packets.len();
            for mut packet in packets {
                let ethertype = ethertype(&packet.parsed);
                if encapsulate(&mut packet.buffer, &packet.parsed, &egress, destination, ethertype) {
                    self.count_sent(egress.slot, packet.buffer.frame().len());
                    self.push(egress.port, packet.buffer);
                } else {
                    self.count_origin_drop(packet.origin, DropReason::NoBuffer);
                }
            }
            return count;
        }
        let given_up = line.round() != round;
        match if given_up { None } else { line.ask(self.clock.tick) } {
            Some(ask) => {
                if ask {
                    self.ask_neighbour(adjacency);
                }
                0
            }
            None => {
                if !given_up {
                    line.give_up();
                }
                let packets = self.out_of_wait(place, adjacency);
                let count = packets.len();
                for packet in packets {
                    self.no_neighbour(packet);
                }
                count
            }
        }
    }

    fn out_of_wait(&mut self, place: usize, adjacency: u32) -> VecDeque<Packet<P::Buffer>> {
        let packets = self.waiting.take(place);
        let line = self.shared.adjacencies.get(adjacency);
        packets.iter().for_each(|_| line.stop_waiting());
        packets
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
    if crate::meta::is_v6(parsed) { ethernet::IPV6 } else { ethernet::IPV4 }
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

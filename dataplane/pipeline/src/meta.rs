//! The first look at a packet: what it is, which interface it came in by, where its connection may be.
//!
//! Places for a burst are filled frame by frame ([`Meta::read`]), each asking for the bucket that its connection is in;
//! then [`find_candidates`] asks for the lines of what was found there.

use std::net::IpAddr;

use erhu_planes::tuple::{
    FAMILY_V4, FAMILY_V6, Key, Key4, Key6, is_icmp, pack_low, proto, unpack_ports, unpack_v4, unpack_v6,
};
use erhu_planes::{DropReason, Tuple};
use erhu_rules::{Facts, Packet4};
use erhu_table::{Reference, Table};
use erhu_wire::{Addresses6, Kind, Odd, Parsed, Verify, ethernet};

use crate::policy::{Arrival, Arrivals, Interface, NO_SLOT, Policy};

/// What is to become of a packet after the first look. With a byte of its own for which it is: each packet is asked more
/// than once, and within the reason's byte that takes four instructions instead of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Way {
    /// Look it up; the fast path may do.
    LookUp,
    /// The same, IPv6.
    LookUp6,
    /// IP, but not for the fast path.
    Slow,
    /// ARP.
    Arp,
    /// Neighbour discovery.
    Discovery,
    /// It ends here.
    Drop(DropReason),
}

impl Way {
    /// Of any frame that came in by an interface.
    #[cold]
    #[inline(never)]
    fn of(frame: &[u8], parsed: &Parsed, arrival: Arrival) -> Self {
        if arrival.slot == NO_SLOT {
            let is_frame = (14..=usize::from(u16::MAX)).contains(&frame.len());
            return Self::Drop(if is_frame { DropReason::NoInterface } else { DropReason::Malformed });
        }
        // Of a frame that is cut short, what is there.
        let Some(destination) = frame.first_chunk().copied().map(ethernet::pack_mac) else {
            return Self::Drop(DropReason::Malformed);
        };
        let group = ethernet::is_group(destination);
        if !group && destination != arrival.mac {
            return Self::Drop(DropReason::NotForUs);
        }
        match parsed.kind {
            Kind::Malformed => Self::Drop(DropReason::Malformed),
            Kind::Arp => Self::Arp,
            Kind::Ipv6Odd(Odd::Discovery) => Self::Discovery,
            _ if group => Self::Drop(DropReason::Unsupported),
            kind => Self::of_kind(kind),
        }
    }

    /// Of packets for this router, that are no neighbours' talk.
    fn of_kind(kind: Kind) -> Self {
        match kind {
            Kind::Fast => Self::LookUp,
            Kind::Fast6 => Self::LookUp6,
            Kind::Ipv4Odd(_) => Self::Slow,
            Kind::Ipv6Odd(odd) if odd != Odd::Discovery => Self::Slow,
            Kind::BadChecksum => Self::Drop(DropReason::BadChecksum),
            Kind::Malformed => Self::Drop(DropReason::Malformed),
            Kind::Arp | Kind::Ipv6Odd(_) | Kind::Other(_) => Self::Drop(DropReason::Unsupported),
        }
    }
}

/// What stages know about a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    pub parsed: Parsed,
    pub way: Way,
    /// Interface it came in by.
    pub slot: u16,
    /// Zone of that interface.
    pub zone: u16,
    /// Packet mark. Only raw rules give one, and [`Meta::forget_raw`] takes it back.
    pub mark: u32,
    /// A raw rule excluded it from tracking. As `mark`.
    pub notrack: bool,
    /// Second word of the key, whose first one are the addresses; meaningful where `way` is `LookUp` or the packet is
    /// trackable.
    low: u64,
    /// The key of IPv6 packets, all of which have one.
    pub key6: Key6,
    /// As `candidate`, of packets whose way is `LookUp6`.
    pub candidate6: Option<Reference>,
    pub hash: u64,
    /// What is most likely its connection. Whoever fills the place with another way than [`Way::LookUp`] sets none; for
    /// that one [`find_candidates`] says.
    pub candidate: Option<Reference>,
}

impl Meta {
    /// Of no packet yet. Metas are places that are filled again for each packet, never moved.
    pub const NOTHING: Self = Self {
        parsed: Parsed::NOTHING,
        way: Way::Slow,
        slot: NO_SLOT,
        zone: 0,
        mark: 0,
        notrack: false,
        low: 0,
        key6: Key6 { src: [0; 2], dst: [0; 2], low: 0 },
        candidate6: None,
        hash: 0,
        candidate: None,
    };

    /// Fills the place from a frame that came in by the port with these arrivals, and asks for the bucket that its
    /// connection is in.
    #[inline(always)]
    pub fn read(&mut self, frame: &[u8], trust: Verify, arrivals: &Arrivals, table: &Table) {
        if !erhu_wire::parse_common(frame, trust, &mut self.parsed) {
            return self.read6(frame, trust, arrivals, table);
        }
        let arrival = arrivals.likely_at(self.parsed.vlan);
        self.arrive(arrival);
        self.way = Way::LookUp;
        if self.parsed.destination != arrival.mac || arrival.slot == NO_SLOT {
            self.way = Way::of(frame, &self.parsed, arrivals.at(self.parsed.vlan));
            if self.way != Way::LookUp {
                self.candidate = None;
                return;
            }
        }
        self.seek(table);
    }

    /// [`Self::read`] of IPv6 frames, in a function of its own so that IPv4 pays nothing for it. Cold as seen from there:
    /// otherwise the compiler saves registers for the call that IPv4 does not make.
    #[cold]
    #[inline(never)]
    fn read6(&mut self, frame: &[u8], trust: Verify, arrivals: &Arrivals, table: &Table) {
        self.candidate = None;
        let Some(addresses) = erhu_wire::parse_common6(frame, trust, &mut self.parsed) else {
            return self.read_thoroughly(frame, trust, arrivals, table);
        };
        let arrival = arrivals.likely_at(self.parsed.vlan);
        let key = addresses.key(pack_low(self.parsed.ports, self.parsed.proto, FAMILY_V6, arrival.zone));
        self.enter(arrival);
        self.key6 = key;
        self.way = Way::LookUp6;
        if self.parsed.destination != arrival.mac || arrival.slot == NO_SLOT {
            self.way = Way::of(frame, &self.parsed, arrivals.at(self.parsed.vlan));
            if self.way != Way::LookUp6 {
                return;
            }
        }
        self.hash = table.hash6(&key);
        table.prefetch_bucket(self.hash);
    }

    /// [`Self::read`] of any frame.
    #[cold]
    #[inline(never)]
    fn read_thoroughly(&mut self, frame: &[u8], trust: Verify, arrivals: &Arrivals, table: &Table) {
        erhu_wire::parse_into(frame, trust, &mut self.parsed);
        let arrival = arrivals.at(self.parsed.vlan);
        self.arrive(arrival);
        self.way = Way::of(frame, &self.parsed, arrival);
        if self.way == Way::LookUp {
            self.seek(table);
        } else if self.is_v6() {
            self.read_v6(frame, arrival.zone, table);
        }
    }

    /// Fills the place from a packet that arrives by an end of a link, whatever its Ethernet header says.
    pub fn read_crossed(&mut self, frame: &[u8], trust: Verify, end: Option<&Interface>, table: &Table) {
        self.candidate = None;
        erhu_wire::parse_into(frame, trust, &mut self.parsed);
        let (slot, zone) = end.map_or((NO_SLOT, 0), |end| (end.slot, end.zone));
        self.arrive(Arrival { slot, zone, ..Arrival::NOWHERE });
        self.way = match end {
            Some(_) => Way::of_kind(self.parsed.kind),
            // It went with a policy while the packet was on its way to another worker.
            None => Way::Drop(DropReason::NoInterface),
        };
        if self.way == Way::LookUp {
            self.seek(table);
        } else if self.is_v6() {
            self.read_v6(frame, zone, table);
        }
    }

    /// The rest of [`Self::read`] for IPv6.
    fn read_v6(&mut self, frame: &[u8], zone: u16, table: &Table) {
        // A frame that was called IPv6 has both.
        let addresses = Addresses6::read(frame, self.parsed.l3).unwrap_or_default();
        self.key6 = addresses.key(pack_low(self.parsed.ports, self.parsed.proto, FAMILY_V6, zone));
        if self.way == Way::LookUp6 {
            self.hash = table.hash6(&self.key6);
            table.prefetch_bucket(self.hash);
        }
    }

    #[inline(always)]
    fn arrive(&mut self, arrival: Arrival) {
        let parsed = &self.parsed;
        self.low = pack_low(parsed.ports, parsed.proto, FAMILY_V4, arrival.zone);
        self.enter(arrival);
    }

    #[inline(always)]
    fn enter(&mut self, arrival: Arrival) {
        self.slot = arrival.slot;
        self.zone = arrival.zone;
    }

    /// The key of an IPv4 packet.
    #[inline(always)]
    pub fn key(&self) -> Key4 {
        Key4([self.parsed.addresses, self.low])
    }

    /// Takes back what raw rules said of the packet, as none may run for the next one that has the place.
    pub fn forget_raw(&mut self) {
        (self.mark, self.notrack) = (0, false);
    }

    /// Hashes the key and asks for its bucket.
    #[inline(always)]
    fn seek(&mut self, table: &Table) {
        self.hash = table.hash4(&self.key());
        table.prefetch_bucket(self.hash);
    }

    /// As [`Self::prefetch`], for IPv6.
    #[inline(always)]
    fn prefetch6(&self, table: &Table, reference: Reference) {
        table.prefetch_hot6(reference);
        if self.parsed.proto == proto::TCP {
            table.prefetch_tcp6(reference);
        }
    }

    /// Asks for what a packet of that direction will need.
    #[inline(always)]
    fn prefetch(&self, table: &Table, reference: Reference) {
        table.prefetch_hot(reference);
        if self.parsed.proto == proto::TCP {
            table.prefetch_tcp(reference);
        }
    }

    /// Source and destination address.
    #[expect(clippy::cast_possible_truncation, reason = "halves of a word")]
    pub fn addresses(&self) -> (IpAddr, IpAddr) {
        if self.is_v6() {
            return (unpack_v6(self.key6.src).into(), unpack_v6(self.key6.dst).into());
        }
        let word = self.parsed.addresses;
        (unpack_v4(word as u32).into(), unpack_v4((word >> 32) as u32).into())
    }

    /// The packet's key, of its family.
    pub fn packed(&self) -> Key {
        if self.is_v6() { Key::V6(self.key6) } else { Key::V4(self.key()) }
    }

    /// Whether it is an IPv6 packet.
    #[inline(always)]
    pub fn is_v6(&self) -> bool {
        is_v6(&self.parsed)
    }

    /// Type and code, of an ICMP or ICMPv6 message.
    #[expect(clippy::cast_possible_truncation, reason = "bytes of a word")]
    pub fn icmp(&self) -> Option<(u8, u8)> {
        let word = self.parsed.ports;
        (self.has_transport() && is_icmp(self.parsed.proto)).then_some(((word >> 16) as u8, (word >> 24) as u8))
    }

    /// The packet's tuple.
    pub fn tuple(&self) -> Tuple {
        self.packed().tuple()
    }

    /// Its tuple was looked up, and no connection seems to have it.
    pub(crate) fn seems_new(&self) -> bool {
        self.way == Way::LookUp && self.candidate.is_none()
    }

    /// The frame carries a sound transport header, or an ICMP message.
    fn has_transport(&self) -> bool {
        match self.parsed.kind {
            Kind::Fast | Kind::Fast6 => true,
            Kind::Ipv4Odd(odd) | Kind::Ipv6Odd(odd) => {
                !matches!(odd, Odd::Fragment | Odd::OtherProtocol | Odd::L4Fault)
            }
            _ => false,
        }
    }

    /// What rules see of it as it came in by an interface, of a packet whose way is [`Way::LookUp`].
    #[inline(always)]
    pub fn packet(&self, interface: &Interface, state: u8) -> Packet4 {
        Packet4 {
            ingress: interface.index,
            zone: self.zone,
            addresses: self.key().addresses(),
            proto: self.parsed.proto,
            ports: self.key().ports(),
            state,
            mark: self.mark,
        }
    }

    /// What rules see of it, as it came in.
    pub fn facts(&self, policy: &Policy, state: u8) -> Facts {
        let (src, dst) = self.addresses();
        let proto = self.parsed.proto;
        let (sport, dport) = unpack_ports(proto, self.parsed.ports);
        let (known, icmp) = (self.has_transport(), is_icmp(proto));
        Facts {
            ingress: policy.interface(self.slot).map(|i| i.index),
            egress: None,
            zone: Some(self.zone),
            egress_zone: None,
            src,
            dst,
            proto,
            sport,
            dport,
            has_ports: known && !icmp,
            icmp: self.icmp(),
            state,
            status: 0,
            is_reply: false,
            mark: self.mark,
            bytes: u32::from(self.parsed.length),
        }
    }
}

/// Whether a packet is IPv6.
#[inline(always)]
pub(crate) const fn is_v6(parsed: &Parsed) -> bool {
    matches!(parsed.kind, Kind::Fast6 | Kind::Ipv6Odd(_))
}

/// What [`find_candidates`] leaves to be done: packets without a candidate.
const MISSING: u8 = 1;
/// IPv6 packets.
const SIX: u8 = 2;

/// Finds what is most likely each IPv4 packet's connection, and asks for its lines. Returns what is left to be done.
#[inline(always)]
pub(crate) fn find_candidates(table: &Table, metas: &mut [Meta]) -> u8 {
    let mut left = 0;
    for meta in metas {
        if matches!(meta.way, Way::LookUp) {
            meta.candidate = table.candidate(meta.hash);
            match meta.candidate {
                Some(reference) => meta.prefetch(table, reference),
                None => left |= MISSING,
            }
        } else if matches!(meta.way, Way::LookUp6) {
            left |= SIX;
        }
    }
    left
}

/// Does what [`find_candidates`] left. Returns how many IPv4 packets seem to be the first of a connection.
#[inline(never)]
pub(crate) fn find_others(table: &Table, metas: &mut [Meta], left: u8) -> usize {
    if left & SIX != 0 {
        find_candidates6(table, metas);
    }
    if left & MISSING == 0 { 0 } else { find_displaced(table, metas) }
}

/// The same for IPv6 packets, those that found their home bucket full included.
fn find_candidates6(table: &Table, metas: &mut [Meta]) {
    let mut missing = false;
    for meta in metas.iter_mut().filter(|meta| meta.way == Way::LookUp6) {
        meta.candidate6 = table.candidate(meta.hash);
        match meta.candidate6 {
            Some(reference) => meta.prefetch6(table, reference),
            None => missing = true,
        }
    }
    if !missing {
        return;
    }
    for meta in metas.iter_mut().filter(|meta| meta.way == Way::LookUp6 && meta.candidate6.is_none()) {
        meta.candidate6 = table.displaced_candidate(meta.hash);
        if let Some(reference) = meta.candidate6 {
            meta.prefetch6(table, reference);
        }
    }
}

/// The same for those IPv4 packets that found their home bucket full: at capacity one connection in 17. Returns how many
/// seem to be the first of a connection.
fn find_displaced(table: &Table, metas: &mut [Meta]) -> usize {
    let mut first = 0;
    for meta in metas.iter_mut().filter(|meta| meta.seems_new()) {
        meta.candidate = table.displaced_candidate(meta.hash);
        match meta.candidate {
            Some(reference) => meta.prefetch(table, reference),
            None => first += 1,
        }
    }
    first
}

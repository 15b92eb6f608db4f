//! Adjacencies and neighbours: where packets go once they are routed.
//!
//! # Overview
//!
//! An adjacency is one line: egress interface, next hop, its MAC, and a copy of what the interface puts into frames.
//! Rewrites of connections hold its number, so that a neighbour's new MAC, or an interface's new one, changes one line
//! and no connection. Numbers are given by [`Adjacencies::find_or_add`] under a short lock; only first packets ask.
//!
//! # Synchronisation
//!
//! MAC and state are one word, the interface's part two more; readers load each once. `references` counts connections
//! that hold the number; an adjacency that never resolved and that nobody holds may be given to another next hop.
//!
//! # Limits
//!
//! A fixed number of adjacencies in all, and of all and of unresolved ones per interface, so that scanning a connected
//! prefix, or claiming every address of it, costs a tenant only its own.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use erhu_table::Apart;
use hashbrown::HashMap;
use zerocopy::{FromZeros, KnownLayout};

use crate::policy::{Interface, Policy};
use crate::shared::zeroed;

/// Adjacencies in all.
pub const ADJACENCIES: usize = 65_536;
/// Unresolved adjacencies of one interface.
pub const UNRESOLVED_PER_INTERFACE: u16 = 1024;
/// Adjacencies of one interface, resolved or not.
pub const PER_INTERFACE: u16 = 4096;
/// Adjacencies that the main thread looks at with one hold of the lock: first packets may wait for it.
const PART: usize = 256;
/// Packets that may wait for one next hop, over all workers.
pub const WAITING_PER_NEIGHBOUR: u32 = 64;

/// In place of the next hop's address on a link, where there is only one.
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const RESOLVED: u64 = 1 << 63;
const STATIC: u64 = 1 << 49;
/// Its interface went with the last policy: workers that have not adopted it yet may still use the number.
const GONE: u64 = 1 << 50;
const MAC: u64 = (1 << 48) - 1;

/// Packs a MAC address, first octet lowest.
pub fn pack_mac(mac: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

/// The inverse of [`pack_mac`].
pub fn unpack_mac(word: u64) -> [u8; 6] {
    let [a, b, c, d, e, f, _, _] = word.to_le_bytes();
    [a, b, c, d, e, f]
}

/// One next hop on one interface.
#[derive(Debug, FromZeros, KnownLayout)]
#[repr(C, align(64))]
pub struct Adjacency {
    /// Destination MAC, and whether it is known.
    state: AtomicU64,
    /// Source MAC (48 bits), port (16).
    source: AtomicU64,
    /// Interface slot (16), MTU (16), VLAN (16, 0 for none).
    egress: AtomicU64,
    /// Connections that hold the number. Those that found it resolved do not: what is resolved is not given away.
    references: AtomicU32,
    /// Packets that wait, over all workers.
    waiting: AtomicU32,
    /// Requests sent since it was last known.
    asked: AtomicU32,
    /// Tick of the last request, or of the last confirmation.
    since: AtomicU32,
    /// Times it was resolved or given up: lets those who wait notice.
    round: AtomicU32,
    _pad: [AtomicU32; 5],
}
const _: () = assert!(size_of::<Adjacency>() == 64);

/// What a frame needs to leave by an adjacency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Destination MAC; `None` while it is not known.
    pub destination: Option<[u8; 6]>,
    /// Source MAC.
    pub source: [u8; 6],
    /// Port number.
    pub port: u16,
    /// Interface slot.
    pub slot: u16,
    /// Largest IP packet.
    pub mtu: u16,
    /// VLAN tag.
    pub vlan: Option<u16>,
}

/// An [`Egress`] whose next hop is known, as the words of its line.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// Destination MAC in the low 48 bits.
    pub destination: u64,
    /// Source MAC, likewise.
    pub source: u64,
    egress: u64,
}

#[expect(clippy::cast_possible_truncation, reason = "fields are cut out of the words on purpose")]
impl Ready {
    /// Port number.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        (self.source >> 48) as u16
    }

    /// Interface slot.
    #[inline(always)]
    pub const fn slot(&self) -> u16 {
        self.egress as u16
    }

    #[inline(always)]
    const fn mtu(&self) -> u16 {
        (self.egress >> 16) as u16
    }

    /// VLAN tag, 0 for none.
    #[inline(always)]
    pub const fn vlan(&self) -> u16 {
        (self.egress >> 32) as u16
    }
}

impl Adjacency {
    /// Everything a frame needs, each word loaded once.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of the words on purpose")]
    pub fn egress(&self) -> Egress {
        let state = self.state.load(Ordering::Relaxed);
        let source = self.source.load(Ordering::Relaxed);
        let egress = self.egress.load(Ordering::Relaxed);
        let vlan = (egress >> 32) as u16;
        Egress {
            destination: (state & RESOLVED != 0).then(|| unpack_mac(state)),
            source: unpack_mac(source),
            port: (source >> 48) as u16,
            slot: egress as u16,
            mtu: (egress >> 16) as u16,
            vlan: (vlan != 0).then_some(vlan),
        }
    }

    /// The same as words, for packets of up to `length` bytes that need not wait: none if the next hop is not known, if
    /// they are too long, or if others wait for it already.
    #[inline(always)]
    pub fn ready(&self, length: u16) -> Option<Ready> {
        let state = self.state.load(Ordering::Relaxed);
        let ready = Ready {
            destination: state,
            source: self.source.load(Ordering::Relaxed),
            egress: self.egress.load(Ordering::Relaxed),
        };
        let is_ready = state & RESOLVED != 0 && length <= ready.mtu() && !self.has_waiting();
        is_ready.then_some(ready)
    }

    fn set_interface(&self, interface: &Interface) {
        self.source.store(pack_mac(interface.mac) | u64::from(interface.port) << 48, Ordering::Relaxed);
        let vlan = u64::from(interface.vlan) << 32;
        self.egress.store(u64::from(interface.slot) | u64::from(interface.mtu) << 16 | vlan, Ordering::Relaxed);
    }

    fn slot(&self) -> u16 {
        (self.egress.load(Ordering::Relaxed) & 0xffff) as u16
    }

    /// A connection uses the number from now on. `true` if it counts among those that hold it, and has to let it go:
    /// while the next hop is not known. Known ones need no count, and so openings write no line of other workers.
    pub fn hold(&self) -> bool {
        let counts = self.state.load(Ordering::Relaxed) & RESOLVED == 0;
        if counts {
            self.references.fetch_add(1, Ordering::Relaxed);
        }
        counts
    }

    /// … and no longer.
    pub fn let_go(&self) {
        self.references.fetch_sub(1, Ordering::Relaxed);
    }

    /// Takes one of the places for packets that wait.
    pub fn start_waiting(&self) -> bool {
        self.waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < WAITING_PER_NEIGHBOUR).then_some(n + 1))
            .is_ok()
    }

    /// Whether packets wait for it, on any worker.
    #[inline]
    pub fn has_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) != 0
    }

    /// Gives it back.
    pub fn stop_waiting(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// See the field.
    pub fn round(&self) -> u32 {
        self.round.load(Ordering::Acquire)
    }

    /// Whether the caller shall send a request now: the first at once, then one a second, three in all. `Some(true)`:
    /// send; `Some(false)`: not yet; `None`: nobody answered, give up.
    pub fn ask(&self, now_tick: u32) -> Option<bool> {
        let asked = self.asked.load(Ordering::Relaxed);
        let since = self.since.load(Ordering::Relaxed);
        let due = asked == 0 || now_tick.wrapping_sub(since) >= erhu_planes::TICKS_PER_SECOND;
        if !due {
            return Some(false);
        }
        if asked >= 3 {
            return None;
        }
        let mine = self.asked.compare_exchange(asked, asked + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if mine {
            self.since.store(now_tick, Ordering::Relaxed);
        }
        Some(mine)
    }

    /// Nobody answered: the next packet starts over.
    pub fn give_up(&self) {
        self.asked.store(0, Ordering::Relaxed);
        self.round.fetch_add(1, Ordering::Release);
    }
}

#[derive(Debug, Default)]
struct Book {
    numbers: HashMap<(u16, IpAddr), u32>,
    /// Next hop by number.
    hops: Vec<(u16, IpAddr)>,
    unresolved: HashMap<u16, u16>,
    /// All of an interface.
    of_interface: HashMap<u16, u16>,
    /// Numbers that lead to no next hop.
    free: Vec<usize>,
    /// Where the search for one to reuse goes on.
    hand: usize,
}

/// All adjacencies.
#[derive(Debug)]
pub struct Adjacencies {
    lines: Box<[Adjacency]>,
    /// What numbers lead to that were never given.
    nowhere: Adjacency,
    /// Workers that send to more next hops than they remember lock it for openings.
    book: Apart<Mutex<Book>>,
    /// Times that a number came to lead to another next hop, or to none.
    moves: Apart<AtomicU32>,
}

/// Next hops that one worker asked for lately, so that it needs no lock for them.
#[derive(Debug)]
pub(crate) struct Hops {
    known: Box<[Option<(u16, IpAddr, u32)>; HOPS]>,
    /// [`Adjacencies::moves`] as of the oldest of them.
    moves: u32,
}

/// Next hops that a worker remembers.
const HOPS: usize = 1024;

impl Default for Hops {
    fn default() -> Self {
        Self { known: Box::new([None; HOPS]), moves: 0 }
    }
}

impl Hops {
    /// As [`Hops::find_or_add`], for an IPv4 address in host order.
    #[inline]
    pub fn find_or_add4(&mut self, all: &Adjacencies, interface: &Interface, hop: u32) -> Option<u32> {
        // Acquire; pairs with the Release in `recycle`.
        if all.moves.load(Ordering::Acquire) == self.moves
            && let Some((slot, IpAddr::V4(known), number)) = self.known[Self::place(hop as usize, interface.slot)]
            && (slot, u32::from(known)) == (interface.slot, hop)
        {
            return Some(number);
        }
        self.find_or_add(all, interface, IpAddr::V4(hop.into()))
    }

    fn place(low: usize, slot: u16) -> usize {
        (low ^ usize::from(slot) << 5) % HOPS
    }

    /// As [`Adjacencies::find_or_add`].
    #[inline]
    pub fn find_or_add(&mut self, all: &Adjacencies, interface: &Interface, hop: IpAddr) -> Option<u32> {
        // Acquire; pairs with the Release in `recycle`.
        let moves = all.moves.load(Ordering::Acquire);
        if moves != self.moves {
            self.known.fill(None);
            self.moves = moves;
        }
        let low = match hop {
            IpAddr::V4(hop) => u32::from(hop) as usize,
            IpAddr::V6(hop) => usize::from(hop.segments()[7]),
        };
        let place = Self::place(low, interface.slot);
        match self.known[place] {
            Some((slot, known, number)) if slot == interface.slot && known == hop => Some(number),
            _ => {
                let number = all.find_or_add(interface, hop)?;
                self.known[place] = Some((interface.slot, hop, number));
                Some(number)
            }
        }
    }
}

/// A neighbour for display.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourEntry {
    /// Interface slot.
    pub slot: u16,
    /// IP address.
    pub address: IpAddr,
    /// MAC if known.
    pub mac: Option<[u8; 6]>,
    /// Declared in the script.
    pub is_static: bool,
    /// Packets waiting.
    pub waiting: u32,
    /// Tick of the last confirmation or request.
    pub since: u32,
}

impl Default for Adjacencies {
    fn default() -> Self {
        Self::new(ADJACENCIES)
    }
}

impl Adjacencies {
    /// Room for that many.
    ///
    /// # Panics
    /// If there is no address space.
    pub fn new(capacity: usize) -> Self {
        Self {
            lines: zeroed(capacity),
            nowhere: Adjacency::new_zeroed(),
            book: Apart::default(),
            moves: Apart::default(),
        }
    }

    /// The adjacency of a number; numbers that were never given lead to an empty one.
    #[inline(always)]
    pub fn get(&self, number: u32) -> &Adjacency {
        self.lines.get(number as usize).unwrap_or(&self.nowhere)
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The number for a next hop on an interface, new if need be; `None` when there is no room for another unresolved
    /// one.
    pub fn find_or_add(&self, interface: &Interface, hop: IpAddr) -> Option<u32> {
        // A link has one next hop, whatever its address: the other end.
        let hop = if interface.peer.is_some() { ANY } else { hop };
        let mut book = self.book();
        if let Some(number) = book.numbers.get(&(interface.slot, hop)) {
            return Some(*number);
        }
        let unresolved = book.unresolved.get(&interface.slot).copied().unwrap_or(0);
        let all = book.of_interface.get(&interface.slot).copied().unwrap_or(0);
        if unresolved >= UNRESOLVED_PER_INTERFACE || all >= PER_INTERFACE {
            let freed = self.recycle(&mut book, Some(interface.slot))?;
            book.free.push(freed);
        }
        let key = (interface.slot, hop);
        let number = match book.free.pop() {
            Some(free) => free,
            None if book.hops.len() < self.lines.len() => {
                book.hops.push(key);
                book.hops.len() - 1
            }
            None => self.recycle(&mut book, None)?,
        };
        book.hops[number] = key;
        let line = &self.lines[number];
        line.state.store(0, Ordering::Relaxed);
        line.asked.store(0, Ordering::Relaxed);
        line.set_interface(interface);
        *book.unresolved.entry(interface.slot).or_default() += 1;
        *book.of_interface.entry(interface.slot).or_default() += 1;
        let number = u32::try_from(number).ok()?;
        book.numbers.insert(key, number);
        Some(number)
    }

    /// Takes one unresolved adjacency that nobody holds out of use, of an interface or of any. Looks at 4096 at most.
    fn recycle(&self, book: &mut Book, slot: Option<u16>) -> Option<usize> {
        for _ in 0..book.hops.len().min(4096) {
            book.hand = (book.hand + 1) % book.hops.len();
            let (number, key) = (book.hand, book.hops[book.hand]);
            let line = &self.lines[number];
            let idle = line.references.load(Ordering::Relaxed) == 0
                && line.waiting.load(Ordering::Relaxed) == 0
                && line.state.load(Ordering::Relaxed) & (RESOLVED | GONE) == 0
                && book.numbers.get(&key).is_some_and(|n| *n as usize == number);
            if idle && slot.is_none_or(|s| s == key.0) {
                book.numbers.remove(&key);
                for account in [&mut book.unresolved, &mut book.of_interface] {
                    if let Some(count) = account.get_mut(&key.0) {
                        *count = count.saturating_sub(1);
                    }
                }
                // Release; pairs with the Acquire in `Hops`.
                self.moves.fetch_add(1, Ordering::Release);
                return Some(number);
            }
        }
        None
    }

    /// Whether a next hop is known or asked for on an interface.
    pub fn knows(&self, slot: u16, hop: IpAddr) -> bool {
        self.book().numbers.contains_key(&(slot, hop))
    }

    /// Where a next hop is, if it is known (inner) or asked for (outer) on an interface.
    pub fn known(&self, slot: u16, hop: IpAddr) -> Option<Option<[u8; 6]>> {
        let number = self.book().numbers.get(&(slot, hop)).copied()?;
        Some(self.get(number).egress().destination)
    }

    /// Someone said where an address is. Makes the entry if need be; returns its number. Static entries stay.
    pub fn learn(&self, interface: &Interface, address: IpAddr, mac: [u8; 6], now_tick: u32) -> Option<u32> {
        // A link has no neighbours; nor does any frame come by it.
        if interface.peer.is_some() {
            return None;
        }
        let number = self.find_or_add(interface, address)?;
        self.resolve(number, mac, false, now_tick);
        Some(number)
    }

    fn resolve(&self, number: u32, mac: [u8; 6], is_static: bool, now_tick: u32) {
        let line = self.get(number);
        let old = line.state.load(Ordering::Relaxed);
        if old & STATIC != 0 && !is_static {
            return;
        }
        let kind = if is_static { RESOLVED | STATIC } else { RESOLVED };
        line.since.store(now_tick, Ordering::Relaxed);
        line.asked.store(0, Ordering::Relaxed);
        line.state.store(pack_mac(mac) & MAC | kind, Ordering::Relaxed);
        if old & RESOLVED == 0 {
            let mut book = self.book();
            if let Some(count) = book.unresolved.get_mut(&line.slot()) {
                *count = count.saturating_sub(1);
            }
            drop(book);
            line.round.fetch_add(1, Ordering::Release);
        }
    }

    /// Next hop of a number.
    pub fn hop(&self, number: u32) -> Option<(u16, IpAddr)> {
        self.book().hops.get(number as usize).copied()
    }

    /// Takes over a new policy: interfaces' MACs, MTUs and tags, static neighbours; entries of interfaces that are gone
    /// are forgotten.
    pub fn adopt(&self, policy: &Policy, now_tick: u32) {
        for first in (0..self.lines.len()).step_by(PART) {
            let mut book = self.book();
            let hops: Vec<_> = book.hops.iter().copied().enumerate().skip(first).take(PART).collect();
            if hops.is_empty() {
                break;
            }
            for (number, key) in hops {
                let line = &self.lines[number];
                match policy.interface(key.0) {
                    Some(interface) => {
                        line.set_interface(interface);
                        // A static entry that the new policy keeps is set again below.
                        let state = line.state.load(Ordering::Relaxed);
                        if state & (STATIC | GONE) != 0 {
                            line.state.store(state & !(STATIC | GONE), Ordering::Relaxed);
                        }
                    }
                    None => {
                        // One policy later no worker uses the number any more, and it may be given away.
                        let was_resolved = line.state.load(Ordering::Relaxed) & RESOLVED != 0;
                        line.state.store(if was_resolved { GONE } else { 0 }, Ordering::Relaxed);
                        if was_resolved {
                            *book.unresolved.entry(key.0).or_default() += 1;
                        }
                    }
                }
            }
        }
        for (slot, address, mac) in policy.static_neighbours() {
            if let Some(interface) = policy.interface(slot)
                && interface.peer.is_none()
                && let Some(number) = self.find_or_add(interface, address)
            {
                self.resolve(number, mac, true, now_tick);
            }
        }
    }

    /// All neighbours, by interface and address.
    pub fn list(&self) -> Vec<NeighbourEntry> {
        let mut list = Vec::new();
        for first in (0..self.lines.len()).step_by(PART) {
            list.reserve(PART);
            let book = self.book();
            let hops = book.hops.iter().enumerate().skip(first).take(PART);
            if hops.len() == 0 {
                break;
            }
            for (number, key) in hops.filter_map(|(at, key)| Some((u32::try_from(at).ok()?, key))) {
                if book.numbers.get(key) != Some(&number) || key.1 == ANY {
                    continue;
                }
                let line = self.get(number);
                let state = line.state.load(Ordering::Relaxed);
                list.push(NeighbourEntry {
                    slot: key.0,
                    address: key.1,
                    mac: (state & RESOLVED != 0).then(|| unpack_mac(state)),
                    is_static: state & STATIC != 0,
                    waiting: line.waiting.load(Ordering::Relaxed),
                    since: line.since.load(Ordering::Relaxed),
                });
            }
        }
        list.sort_by_key(|n| (n.slot, n.address));
        list
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn what_is_written_with_the_next_hop_lies_on_no_line_that_leads_to_adjacencies() {
        assert!(align_of::<Adjacencies>() >= 64);
        let read = offset_of!(Adjacencies, lines);
        for (written, bytes) in [
            (offset_of!(Adjacencies, book), size_of::<Mutex<Book>>()),
            (offset_of!(Adjacencies, moves), size_of::<AtomicU32>()),
        ] {
            assert!(written / 64 > (read + 15) / 64 || (written + bytes - 1) / 64 < read / 64);
        }
    }

    fn interface(slot: u16) -> Interface {
        Interface {
            name: "lan".into(),
            index: 0,
            slot,
            port: 2,
            peer: None,
            vlan: 100,
            zone: 1,
            mtu: 1500,
            mac: [2, 0, 0, 0, 0, 1],
            addresses: Vec::new(),
            link_local: None,
            proxy_arp: false,
            has_raw: false,
        }
    }

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + n).into()
    }

    #[test]
    fn an_adjacency_is_unresolved_until_somebody_says_where_it_is() {
        let all = Adjacencies::new(16);
        let number = all.find_or_add(&interface(3), address(1)).unwrap();
        assert_eq!(all.get(number).egress().destination, None);
        all.learn(&interface(3), address(1), [2, 1, 2, 3, 4, 5], 7);
        let egress = all.get(number).egress();
        assert_eq!(egress.destination, Some([2, 1, 2, 3, 4, 5]));
        assert_eq!((egress.port, egress.slot, egress.mtu, egress.vlan), (2, 3, 1500, Some(100)));
        let line = all.get(number);
        let ready = line.ready(1500).unwrap();
        assert_eq!(
            (unpack_mac(ready.destination), unpack_mac(ready.source)),
            ([2, 1, 2, 3, 4, 5], [2, 0, 0, 0, 0, 1])
        );
        assert_eq!((ready.port(), ready.slot(), ready.vlan()), (2, 3, 100));
        assert!(line.ready(1501).is_none());
        line.start_waiting();
        assert!(line.ready(64).is_none(), "those who wait go first");
        assert!(all.get(u32::MAX).ready(64).is_none(), "a number that was never given leads nowhere");
    }

    #[test]
    fn three_requests_a_second_apart_then_it_is_given_up() {
        let all = Adjacencies::new(16);
        let line = all.get(all.find_or_add(&interface(3), address(1)).unwrap());
        assert_eq!(line.ask(100), Some(true));
        assert_eq!(line.ask(100), Some(false));
        assert_eq!(line.ask(115), Some(false));
        assert_eq!(line.ask(116), Some(true));
        assert_eq!(line.ask(132), Some(true));
        assert_eq!(line.ask(147), Some(false));
        assert_eq!(line.ask(148), None);
        line.give_up();
        assert_eq!(line.ask(149), Some(true));
    }

    #[test]
    fn a_full_table_gives_up_unresolved_ones_that_nobody_holds_and_nothing_else() {
        let all = Adjacencies::new(3);
        let held = all.find_or_add(&interface(1), address(1)).unwrap();
        all.get(held).hold();
        all.learn(&interface(1), address(2), [2; 6], 0);
        let idle = all.find_or_add(&interface(1), address(3)).unwrap();
        assert_eq!(all.find_or_add(&interface(1), address(4)), Some(idle));
        assert_eq!(all.hop(idle), Some((1, address(4))));
        all.get(idle).hold();
        assert_eq!(all.find_or_add(&interface(1), address(5)), None);
        assert_eq!(all.find_or_add(&interface(1), address(1)), Some(held));
    }

    #[test]
    fn one_interface_cannot_fill_the_table_with_resolved_neighbours_either() {
        let all = Adjacencies::new(ADJACENCIES);
        for n in 0..20_000 {
            all.learn(&interface(1), address(n), [2; 6], 0);
        }
        assert_eq!(all.list().len(), usize::from(PER_INTERFACE));
        assert!(all.find_or_add(&interface(2), address(5000)).is_some());
    }

    #[test]
    fn one_interface_cannot_fill_the_table_with_unresolved_neighbours() {
        let all = Adjacencies::new(4096);
        for n in 0..u32::from(UNRESOLVED_PER_INTERFACE) {
            let number = all.find_or_add(&interface(1), address(n)).unwrap();
            all.get(number).hold();
        }
        assert_eq!(all.find_or_add(&interface(1), address(5000)), None);
        assert!(all.find_or_add(&interface(2), address(5000)).is_some());
    }
}

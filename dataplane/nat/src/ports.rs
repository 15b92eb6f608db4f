//! Ports in use of one external address and protocol.
//!
//! One bit a port, in pieces of 1 KiB made as needed, with two bits a word above them that say whether all its even
//! or all its odd ports are taken: the next free port, of a parity if wanted, is found in a few steps however full
//! the map is. A port is taken *alone* (by an endpoint-independent mapping), or *shared* by connections to different
//! remotes and then counted; one excludes the other. A port that was given back may rest before it is free again.

use std::collections::VecDeque;
use std::net::IpAddr;

use erhu_planes::program::PortRange;
use erhu_planes::tuple::proto;
use hashbrown::HashTable;

use crate::random::{Hasher, scale};

/// Protocols that have ports or identifiers to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    Tcp,
    Udp,
    Icmp,
}

impl Class {
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Icmp];

    /// The class of an IP protocol.
    pub const fn of(protocol: u8) -> Option<Self> {
        match protocol {
            proto::TCP => Some(Self::Tcp),
            proto::UDP => Some(Self::Udp),
            proto::ICMP | proto::ICMPV6 => Some(Self::Icmp),
            _ => None,
        }
    }

    /// The inverse of `as u32`.
    pub const fn from_bits(bits: u32) -> Self {
        match bits {
            0 => Self::Tcp,
            1 => Self::Udp,
            _ => Self::Icmp,
        }
    }

    /// The IP protocol for statistics.
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => proto::TCP,
            Self::Udp => proto::UDP,
            Self::Icmp => proto::ICMP,
        }
    }
}

const EVEN: u64 = 0x5555_5555_5555_5555;
const ODD: u64 = !EVEN;
/// Words of a piece.
const PIECE: usize = 128;
/// Pieces of a map.
const PIECES: usize = 8;
/// Words of a map.
const WORDS: usize = PIECE * PIECES;
/// Ports whose counts of users lie together.
const USERS: usize = 256;
/// Candidates that are offered to the caller's preference before any other is taken.
const PREFERENCE_TRIES: u32 = 128;
/// Ports from a start on that a shared choice looks at.
const WINDOW: u32 = 256;
/// Resting ports that one change wakes at most.
const WAKE: usize = 8;

/// Numbers a choice of port may use.
pub const ALL_PORTS: PortRange = PortRange { first: 0, last: u16::MAX };

/// Number of ports in a range.
const fn count(range: PortRange) -> u32 {
    range.last.saturating_sub(range.first) as u32 + 1
}

/// The port that many places after the range's first, which wraps within it.
fn nth(range: PortRange, place: u32) -> u16 {
    let offset = place % count(range);
    range.first.wrapping_add(u16::try_from(offset).unwrap_or(0))
}

/// What is wished of a port.
#[derive(Clone, Copy, Debug)]
pub struct PortWish {
    /// Where it must lie, unless `keep` is free.
    pub range: PortRange,
    /// The port to keep if that is possible; it has been found to be allowed.
    pub keep: Option<u16>,
    /// Even or odd, if that matters.
    pub parity: Option<u16>,
    /// Identifiers go upward from this one instead of at random.
    pub upward_from: Option<u16>,
    /// Random bits that choose where in the range a search for a port alone begins.
    pub start: u64,
}

impl PortWish {
    /// Where, from the first of its range on, the search for a port to share begins.
    #[inline]
    fn first_shared(&self, secret: u64) -> u32 {
        match self.upward_from {
            Some(wanted) => u32::from(wanted),
            None => scale(secret, count(self.range)),
        }
    }

    /// The port that a connection will share, if nothing is in the way.
    #[inline]
    pub fn shared_first(&self, secret: u64) -> u16 {
        self.keep.unwrap_or_else(|| nth(self.range, self.first_shared(secret)))
    }

    /// Where the search for a port alone begins.
    #[inline]
    pub fn first_tried(&self, attempt: u32) -> u16 {
        // Further attempts begin elsewhere.
        let bits = self.start ^ u64::from(attempt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let port = nth(self.range, scale(bits, count(self.range)));
        match self.parity {
            Some(parity) if port & 1 != parity & 1 && port < self.range.last => port + 1,
            _ => port,
        }
    }
}

/// A mapping that serves one remote address.
#[derive(Clone, Copy, Debug)]
struct Dependent {
    port: u16,
    mapping: u32,
    remote: IpAddr,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct PortMap {
    pieces: [Option<Box<[u64; PIECE]>>; PIECES],
    /// By parity: a bit for each word whose ports of that parity are all taken.
    full: [[u64; WORDS / 64]; 2],
    taken: u32,
    /// Connections that share a port, in pieces made as needed.
    users: Vec<Option<Box<[u16; USERS]>>>,
    dependent: HashTable<Dependent>,
    resting: VecDeque<(u32, u16)>,
}

impl PortMap {
    /// Ports taken or resting.
    pub const fn taken(&self) -> u32 {
        self.taken
    }

    fn word(&self, at: usize) -> u64 {
        self.pieces[at / PIECE].as_ref().map_or(0, |piece| piece[at % PIECE])
    }

    /// Asks for what taking a port will change.
    #[inline]
    pub fn prefetch(&self, port: u16) {
        let at = usize::from(port) / 64;
        if let Some(piece) = &self.pieces[at / PIECE] {
            erhu_table::prefetch_line(&piece[at % PIECE]);
        }
        if let Some(Some(piece)) = self.users.get(usize::from(port) / USERS) {
            erhu_table::prefetch_line(&piece[usize::from(port) % USERS]);
        }
    }

    /// Whether a port is taken or rests.
    pub fn is_taken(&self, port: u16) -> bool {
        self.word(usize::from(port) / 64) >> (port % 64) & 1 != 0
    }

    fn set(&mut self, port: u16, taken: bool) {
        let at = usize::from(port) / 64;
        let piece = self.pieces[at / PIECE].get_or_insert_with(|| Box::new([0; PIECE]));
        let word = &mut piece[at % PIECE];
        let bit = 1 << (port % 64);
        debug_assert_eq!(*word & bit == 0, taken);
        *word ^= bit;
        let word = *word;
        self.taken = if taken { self.taken + 1 } else { self.taken - 1 };
        for (full, mask) in self.full.iter_mut().zip([EVEN, ODD]) {
            let flag = 1 << (at % 64);
            if word & mask == mask {
                full[at / 64] |= flag;
            } else {
                full[at / 64] &= !flag;
            }
        }
    }

    /// The first free port from `from` to `to`, of a parity (0 even, 1 odd) if one is given.
    #[expect(clippy::cast_possible_truncation, reason = "a word's number and a bit's make a port")]
    fn free_between(&self, from: u16, to: u16, parity: Option<u16>) -> Option<u16> {
        if from > to {
            return None;
        }
        let mask = match parity {
            None => u64::MAX,
            Some(p) if p & 1 == 0 => EVEN,
            Some(_) => ODD,
        };
        let mut at = usize::from(from) / 64;
        let mut free = !self.word(at) & mask & (u64::MAX << (from % 64));
        while free == 0 {
            at = self.open_word(at + 1, parity)?;
            if at > usize::from(to) / 64 {
                return None;
            }
            free = !self.word(at) & mask;
        }
        let port = (at * 64) as u32 + free.trailing_zeros();
        u16::try_from(port).ok().filter(|p| *p <= to)
    }

    /// The first word from `from` on that has a free port.
    fn open_word(&self, from: usize, parity: Option<u16>) -> Option<usize> {
        let closed = |n: usize| match parity {
            None => self.full[0][n] & self.full[1][n],
            Some(p) => self.full[usize::from(p & 1)][n],
        };
        let mut n = from / 64;
        let mut open = if n < WORDS / 64 { !closed(n) & (u64::MAX << (from % 64)) } else { return None };
        while open == 0 {
            n += 1;
            if n == WORDS / 64 {
                return None;
            }
            open = !closed(n);
        }
        Some(n * 64 + open.trailing_zeros() as usize)
    }

    /// The first free port of a range from `start` on, wrapping.
    fn free_from(&self, range: PortRange, start: u16, parity: Option<u16>) -> Option<u16> {
        self.free_between(start, range.last, parity).or_else(|| {
            let before = start.checked_sub(1)?;
            self.free_between(range.first, before, parity)
        })
    }

    /// Chooses and takes a port for one endpoint alone. `attempt` counts choices that turned out to be of no use.
    ///
    /// The kept port comes first, then one that is `preferred`, then one of the wished parity, then any.
    pub fn take_alone(
        &mut self,
        wish: &PortWish,
        attempt: u32,
        now_tick: u32,
        preferred: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        self.wake(now_tick, WAKE);
        let mut chosen = self.find_alone(wish, attempt, &preferred);
        if chosen.is_none() && self.wake(now_tick, usize::MAX) {
            chosen = self.find_alone(wish, attempt, &preferred);
        }
        self.set(chosen?, true);
        chosen
    }

    fn find_alone(&self, wish: &PortWish, attempt: u32, preferred: &impl Fn(u16) -> bool) -> Option<u16> {
        if let Some(port) = wish.keep.filter(|p| attempt == 0 && !self.is_taken(*p)) {
            return Some(port);
        }
        if let Some(wanted) = wish.upward_from {
            let start = nth(ALL_PORTS, u32::from(wanted).wrapping_add(attempt));
            return self.free_from(ALL_PORTS, start, None);
        }
        let start = wish.first_tried(attempt);
        let mut fallback = None;
        // With the parity first; a preferred port of the other one still comes before one that is not preferred.
        for parity in wish.parity.map(Some).into_iter().chain([None]) {
            let Some(first) = self.free_from(wish.range, start, parity) else { continue };
            let mut port = first;
            for _ in 0..PREFERENCE_TRIES {
                if preferred(port) {
                    return Some(port);
                }
                let next = if port == wish.range.last { wish.range.first } else { port + 1 };
                match self.free_from(wish.range, next, parity) {
                    Some(next) if next != first => port = next,
                    _ => break,
                }
            }
            fallback = fallback.or(Some(first));
        }
        fallback
    }

    /// Chooses a port for one more connection beside those to other remotes, and counts it. `attempt` says how many
    /// choices turned out to be taken towards this remote; each gives another port. `secret` fixes where the search
    /// begins. With `remote` the port must not serve a mapping for that address yet.
    pub fn take_shared(
        &mut self,
        wish: &PortWish,
        attempt: u32,
        now_tick: u32,
        secret: u64,
        remote: Option<(IpAddr, &Hasher)>,
        preferred: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        self.wake(now_tick, WAKE);
        let mut chosen = self.find_shared(wish, attempt, secret, remote, &preferred);
        if chosen.is_none() && self.wake(now_tick, usize::MAX) {
            chosen = self.find_shared(wish, attempt, secret, remote, &preferred);
        }
        let port = chosen?;
        if !self.is_taken(port) {
            self.set(port, true);
        }
        let users = self.users_mut(port);
        *users = users.saturating_add(1);
        chosen
    }

    fn find_shared(
        &self,
        wish: &PortWish,
        mut attempt: u32,
        secret: u64,
        remote: Option<(IpAddr, &Hasher)>,
        preferred: &impl Fn(u16) -> bool,
    ) -> Option<u16> {
        let usable = |port: u16| {
            (!self.is_taken(port) || (1..u16::MAX).contains(&self.users(port)))
                && remote.is_none_or(|(address, hasher)| self.dependent(port, address, hasher).is_none())
        };
        if let Some(port) = wish.keep.filter(|p| usable(*p)) {
            if attempt == 0 {
                return Some(port);
            }
            attempt -= 1;
        }
        let range = if wish.upward_from.is_some() { ALL_PORTS } else { wish.range };
        let start = wish.first_shared(secret);
        // What the search below would come to first.
        let first = nth(range, start);
        let is_liked = wish.upward_from.is_some() || preferred(first);
        if attempt == 0 && Some(first) != wish.keep && is_liked && usable(first) {
            return Some(first);
        }
        let window = (0..count(range).min(WINDOW)).map(|n| nth(range, start.wrapping_add(n)));
        let candidates = window.filter(|p| Some(*p) != wish.keep && usable(*p));
        let liked = |port: u16| wish.upward_from.is_some() || preferred(port);
        let mut passed = 0;
        for port in candidates.clone().filter(|p| liked(*p)) {
            if passed == attempt {
                return Some(port);
            }
            passed += 1;
        }
        for port in candidates.filter(|p| !liked(*p)) {
            if passed == attempt {
                return Some(port);
            }
            passed += 1;
        }
        if passed != 0 {
            return None;
        }
        // Every port near the start belongs to somebody alone: go on with those that nobody has.
        let first = self.free_from(range, nth(range, start), None)?;
        let mut port = first;
        for _ in 0..attempt {
            let next = if port == range.last { range.first } else { port + 1 };
            port = self.free_from(range, next, None).filter(|p| *p != first)?;
        }
        Some(port)
    }

    fn users_mut(&mut self, port: u16) -> &mut u16 {
        let piece = usize::from(port) / USERS;
        if self.users.len() <= piece {
            self.users.resize_with(piece + 1, || None);
        }
        &mut self.users[piece].get_or_insert_with(|| Box::new([0; USERS]))[usize::from(port) % USERS]
    }

    /// Connections that share a port.
    fn users(&self, port: u16) -> u16 {
        let piece = self.users.get(usize::from(port) / USERS).and_then(Option::as_ref);
        piece.map_or(0, |piece| piece[usize::from(port) % USERS])
    }

    /// Gives back a port that was taken alone. With `rest` it rests until that tick.
    pub fn give_back_alone(&mut self, port: u16, rest: Option<u32>) {
        if !self.is_taken(port) {
            debug_assert!(false, "port {port} was not taken");
            return;
        }
        match rest {
            Some(until) => self.resting.push_back((until, port)),
            None => self.set(port, false),
        }
    }

    /// Gives back one share of a port.
    pub fn give_back_shared(&mut self, port: u16, rest: Option<u32>) {
        let users = self.users_mut(port);
        match *users {
            0 => debug_assert!(false, "port {port} was not shared"),
            1 => {
                *users = 0;
                self.give_back_alone(port, rest);
            }
            _ => *users -= 1,
        }
    }

    /// The mapping at a port that serves a remote address.
    pub fn dependent(&self, port: u16, remote: IpAddr, hasher: &Hasher) -> Option<u32> {
        let hash = hasher.address(remote, u64::from(port));
        self.dependent.find(hash, |d| d.port == port && d.remote == remote).map(|d| d.mapping)
    }

    /// Enters a mapping that serves a remote address at a port taken for it.
    pub fn add_dependent(&mut self, port: u16, remote: IpAddr, mapping: u32, hasher: &Hasher) {
        let hash_of = |d: &Dependent| hasher.address(d.remote, u64::from(d.port));
        let dependent = Dependent { port, mapping, remote };
        self.dependent.insert_unique(hash_of(&dependent), dependent, hash_of);
    }

    /// Takes such a mapping out.
    pub fn remove_dependent(&mut self, port: u16, remote: IpAddr, hasher: &Hasher) {
        let hash = hasher.address(remote, u64::from(port));
        if let Ok(entry) = self.dependent.find_entry(hash, |d| d.port == port && d.remote == remote) {
            entry.remove();
        }
    }

    /// Whether connections share this port.
    pub fn is_shared(&self, port: u16) -> bool {
        self.users(port) != 0
    }

    /// Frees ports that have rested, at most so many; whether there were any.
    pub fn wake(&mut self, now_tick: u32, most: usize) -> bool {
        let mut any = false;
        for _ in 0..most {
            match self.resting.front() {
                Some((until, port)) if *until <= now_tick => {
                    let port = *port;
                    self.resting.pop_front();
                    self.set(port, false);
                    any = true;
                }
                _ => break,
            }
        }
        any
    }

    /// Heap bytes.
    pub fn bytes(&self) -> usize {
        let pieces = self.pieces.iter().flatten().count() * size_of::<[u64; PIECE]>();
        let shared = self.users.capacity() * size_of::<Option<Box<[u16; USERS]>>>()
            + self.users.iter().flatten().count() * size_of::<[u16; USERS]>();
        pieces + shared + self.dependent.allocation_size() + self.resting.capacity() * size_of::<(u32, u16)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Rng;
    use proptest::prelude::*;
    use std::cell::Cell;
    use std::collections::BTreeSet;

    fn alone(first: u16, last: u16, parity: Option<u16>) -> PortWish {
        PortWish { range: PortRange { first, last }, keep: None, parity, upward_from: None, start: 0 }
    }

    /// The same with another start.
    fn starting(wish: PortWish, rng: &mut Rng) -> PortWish {
        PortWish { start: rng.next_u64(), ..wish }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn the_next_free_port_is_the_one_a_plain_search_finds(
            blocks in proptest::collection::vec((any::<u16>(), 1u16..2000, 1usize..4), 0..20),
            asked in proptest::collection::vec((any::<u16>(), any::<u16>(), 0u16..3), 1..20),
        ) {
            let mut map = PortMap::default();
            let mut taken = BTreeSet::new();
            for (start, length, step) in blocks {
                for port in (start..start.saturating_add(length)).step_by(step) {
                    if taken.insert(port) {
                        map.set(port, true);
                    }
                }
            }
            prop_assert_eq!(map.taken() as usize, taken.len());
            for (from, to, parity) in asked {
                let parity = (parity < 2).then_some(parity);
                let fits = |p: &u16| parity.is_none_or(|wanted| p % 2 == wanted);
                let expected = (from..=to).filter(fits).find(|p| !taken.contains(p));
                prop_assert_eq!(map.free_between(from, to, parity), expected);
            }
            for port in &taken {
                map.set(*port, false);
            }
            prop_assert_eq!((map.taken(), map.full), (0, [[0; WORDS / 64]; 2]));
        }
    }

    #[test]
    fn a_search_asks_for_preferences_a_bounded_number_of_times_however_full_the_map_is() {
        let (mut map, mut rng) = (PortMap::default(), Rng::new(1));
        let asked = Cell::new(0);
        for n in 0..64_512 {
            asked.set(0);
            let never = |_| {
                asked.set(asked.get() + 1);
                false
            };
            assert!(map.take_alone(&starting(alone(1024, 65535, Some(n % 2)), &mut rng), 0, 0, never).is_some());
            assert!(asked.get() <= 2 * PREFERENCE_TRIES);
        }
        assert_eq!(map.take_alone(&alone(1024, 65535, None), 0, 0, |_| true), None);
    }

    #[test]
    fn a_preferred_port_is_found_among_few() {
        let (mut map, mut rng) = (PortMap::default(), Rng::new(1));
        for port in (2000..2100).rev().filter(|p| p % 2 == 1) {
            let got = map.take_alone(&starting(alone(2000, 2099, Some(0)), &mut rng), 0, 0, |p| p == port);
            assert_eq!(got, Some(port), "though its parity is not the wished one");
        }
    }

    #[test]
    fn the_first_and_the_last_port_of_all_are_usable() {
        let (mut map, mut rng) = (PortMap::default(), Rng::new(1));
        for wanted in [u16::MAX, u16::MAX, 0] {
            let wish = PortWish { upward_from: Some(wanted), ..alone(5, 5, None) };
            assert!(map.take_alone(&starting(wish, &mut rng), 0, 0, |_| true).is_some());
        }
        assert_eq!([u16::MAX, 0, 1].map(|p| map.is_taken(p)), [true; 3]);
        map.give_back_alone(0, None);
        assert_eq!(map.taken(), 2);
    }

    #[test]
    fn a_shared_port_is_free_after_its_last_user() {
        let mut map = PortMap::default();
        let wish = PortWish { keep: Some(7000), ..alone(1024, 65535, None) };
        for _ in 0..3 {
            assert_eq!(map.take_shared(&wish, 0, 0, 1, None, |_| true), Some(7000));
        }
        for users in [3, 2, 1] {
            assert_eq!((map.users(7000), map.is_taken(7000)), (users, true));
            map.give_back_shared(7000, None);
        }
        assert_eq!((map.users(7000), map.is_taken(7000)), (0, false));
    }
}

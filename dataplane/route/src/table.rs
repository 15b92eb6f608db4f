//! Longest-prefix match of one address family over all zones.

use std::iter;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::{BitAnd, BitAndAssign, BitOrAssign, Not, Range};

use erhu_planes::program::Prefix;
use hashbrown::HashTable;

use crate::MAX_SHARES;

/// An address as a number, and a set of prefix lengths from 1 on: bit `length - 1`.
pub(crate) trait Address:
    Copy + Eq + BitAnd<Output = Self> + BitAndAssign + BitOrAssign + Not<Output = Self>
{
    /// No bits.
    const NONE: Self;
    /// All bits.
    const ALL: Self;
    /// Length of a host's prefix.
    const BITS: u8;

    /// The highest bits, `length` of them.
    fn mask(length: u8) -> Self;
    /// The bit that stands for a length, at least 1, in a set.
    fn bit(length: u8) -> Self;
    /// The largest length in a set, 0 if it is empty.
    fn longest(self) -> u8;
    /// How many bits are set.
    fn ones(self) -> u8;
    /// Low and high half.
    fn words(self) -> [u64; 2];
    /// The address.
    fn ip(self) -> IpAddr;
}

macro_rules! address {
    ($number:ty, $ip:ty, $bits:literal) => {
        impl Address for $number {
            const NONE: Self = 0;
            const ALL: Self = <$number>::MAX;
            const BITS: u8 = $bits;

            #[inline]
            fn mask(length: u8) -> Self {
                Self::MAX.checked_shl($bits - u32::from(length)).unwrap_or(0)
            }

            #[inline]
            fn bit(length: u8) -> Self {
                1 << (length - 1)
            }

            #[inline]
            #[expect(clippy::cast_possible_truncation, reason = "between 0 and 128")]
            fn longest(self) -> u8 {
                ($bits - self.leading_zeros()) as u8
            }

            #[expect(clippy::cast_possible_truncation, reason = "between 0 and 128")]
            fn ones(self) -> u8 {
                self.count_ones() as u8
            }

            #[inline]
            #[expect(clippy::cast_possible_truncation, reason = "cut in halves")]
            fn words(self) -> [u64; 2] {
                let wide = u128::from(self);
                [wide as u64, (wide >> 64) as u64]
            }

            fn ip(self) -> IpAddr {
                <$ip>::from(self).into()
            }
        }
    };
}

address!(u32, Ipv4Addr, 32);
address!(u128, Ipv6Addr, 128);

/// Consecutive targets, from 1 to [`MAX_SHARES`]: position of the first in the upper 24 bits, number in the lower 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group(u32);

impl Group {
    /// `None` if the position does not fit: with the limits of a program it does.
    pub(crate) fn new(first: usize, count: usize) -> Option<Self> {
        let first = u32::try_from(first).ok().filter(|first| first >> 24 == 0)?;
        let count = u32::try_from(count).ok().filter(|_| (1..=MAX_SHARES).contains(&count))?;
        Some(Self(first << 8 | count))
    }

    /// The position, of a group of one.
    #[inline]
    pub(crate) const fn only(self) -> Option<usize> {
        if self.0 & 0xff == 1 { Some((self.0 >> 8) as usize) } else { None }
    }

    pub(crate) const fn range(self) -> Range<usize> {
        let first = (self.0 >> 8) as usize;
        first..first + (self.0 & 0xff) as usize
    }
}

/// Prefixes of a quad.
const LANES: usize = 4;

/// Four prefixes of a small zone, to be compared at once: 48 bytes for IPv4, 144 for IPv6. Those that are there to fill
/// it up have no address in them.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Quad<A> {
    networks: [A; LANES],
    masks: [A; LANES],
    groups: [Group; LANES],
}

impl<A: Address> Quad<A> {
    const EMPTY: Self = Self { networks: [A::ALL; LANES], masks: [A::NONE; LANES], groups: [Group(0); LANES] };

    /// A bit for each prefix that an address lies in: without a branch, for which one it is nobody can foretell.
    #[inline(always)]
    fn hits(&self, address: A) -> u32 {
        let lane = |n: usize| u32::from(address & self.masks[n] == self.networks[n]) << n;
        lane(0) | lane(1) | lane(2) | lane(3)
    }

    fn prefixes(&self) -> impl Iterator<Item = (A, A, Group)> {
        let lanes = self.networks.into_iter().zip(self.masks).zip(self.groups);
        lanes.map(|((network, mask), group)| (network, mask, group)).filter(|(_, _, group)| *group != Group(0))
    }
}

/// A prefix of a large zone in the hash table. Packed: with its group 12 bytes for IPv4, 24 for IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, packed(4))]
struct Key<A> {
    network: A,
    zone: u16,
    length: u16,
}

const _: () = assert!(size_of::<Quad<u32>>() == 48 && size_of::<Quad<u128>>() == 144);
const _: () = assert!(size_of::<(Key<u32>, Group)>() == 12 && size_of::<(Key<u128>, Group)>() == 24);

/// Zones with at most so many prefixes are scanned. A prefix scanned costs a nanosecond, a
/// length probed several.
const SMALL: usize = 16;

/// Where the prefixes of a zone are, in one number so that a table full of zones without any is zeroed memory: in the
/// upper half a position, in the lower half a number of quads, or [`LARGE`].
type Place = u64;

/// In a [`Place`]: the position is in `lengths`.
const LARGE: u64 = u32::MAX as u64;

#[derive(Debug)]
pub(crate) struct Table<A: Copy> {
    /// By zone id; ids beyond the last have no prefixes.
    places: Box<[Place]>,
    /// Prefixes of small zones, those of one zone together and the longest first.
    small: Box<[Quad<A>]>,
    /// Lengths that occur in each large zone; 0 is not in the set and always probed.
    lengths: Box<[A]>,
    large: HashTable<(Key<A>, Group)>,
}

impl<A: Address> Table<A> {
    /// Takes prefixes that differ, with host bits 0 and lengths that fit, those of one zone together and the longest
    /// first.
    pub(crate) fn new(entries: &[(u16, A, u8, Group)]) -> Self {
        let last = entries.iter().map(|entry| entry.0).max();
        let mut places = vec![0; last.map_or(0, |zone| usize::from(zone) + 1)];
        let (mut small, mut lengths) = (Vec::new(), Vec::new());
        let in_zones = || entries.chunk_by(|a, b| a.0 == b.0);
        let in_large: usize = in_zones().map(<[_]>::len).filter(|count| *count > SMALL).sum();
        let mut large = HashTable::with_capacity(in_large);
        for of_zone in in_zones() {
            let is_small = of_zone.len() <= SMALL;
            let first = if is_small { small.len() } else { lengths.len() } as u64;
            let count = if is_small { of_zone.len().div_ceil(LANES) as u64 } else { LARGE };
            if is_small {
                small.extend(of_zone.chunks(LANES).map(|four| {
                    let mut quad = Quad::EMPTY;
                    for (lane, &(_, network, length, group)) in four.iter().enumerate() {
                        (quad.networks[lane], quad.masks[lane], quad.groups[lane]) =
                            (network, A::mask(length), group);
                    }
                    quad
                }));
            }
            let mut set = A::NONE;
            for &(zone, network, length, group) in of_zone {
                if let Some(place) = places.get_mut(usize::from(zone)) {
                    *place = first << 32 | count;
                }
                if is_small {
                    continue;
                }
                if length > 0 {
                    set |= A::bit(length);
                }
                let key = Key { network, zone, length: length.into() };
                large.insert_unique(key.hash(), (key, group), |(key, _)| key.hash());
            }
            if !is_small {
                lengths.push(set);
            }
        }
        Self { places: places.into(), small: small.into(), lengths: lengths.into(), large }
    }

    /// Goes through the prefixes of the zone that an address lies in, the longest first, until `accept` takes what
    /// one leads to.
    #[inline]
    pub(crate) fn find<R>(&self, zone: u16, address: A, mut accept: impl FnMut(Group) -> Option<R>) -> Option<R> {
        let place = *self.places.get(usize::from(zone))?;
        if place & LARGE == LARGE {
            return self.find_large(zone, *self.lengths.get(position(place))?, address, accept);
        }
        for quad in self.small(place) {
            let mut hits = quad.hits(address);
            while hits != 0 {
                if let Some(accepted) = accept(quad.groups[hits.trailing_zeros() as usize % LANES]) {
                    return Some(accepted);
                }
                hits &= hits - 1;
            }
        }
        None
    }

    fn find_large<R>(&self, zone: u16, mut left: A, address: A, accept: impl FnMut(Group) -> Option<R>) -> Option<R> {
        let mut ended = false;
        let lengths = iter::from_fn(|| {
            let length = left.longest();
            if length > 0 {
                left &= !A::bit(length);
            }
            (!mem::replace(&mut ended, length == 0)).then_some(length)
        });
        lengths.filter_map(|length| self.get(zone, address & A::mask(length), length)).find_map(accept)
    }

    /// What the host's own prefix leads to.
    pub(crate) fn exact(&self, zone: u16, address: A) -> Option<Group> {
        let place = *self.places.get(usize::from(zone))?;
        if place & LARGE == LARGE {
            return self.get(zone, address, A::BITS);
        }
        let host = (address, A::mask(A::BITS));
        let mut all = self.small(place).iter().flat_map(Quad::prefixes);
        all.find(|&(network, mask, _)| (network, mask) == host).map(|(_, _, group)| group)
    }

    /// The quads of a small zone.
    #[inline]
    fn small(&self, place: Place) -> &[Quad<A>] {
        let first = position(place);
        let count = usize::try_from(place & LARGE).unwrap_or(0);
        self.small.get(first..first + count).unwrap_or_default()
    }

    fn get(&self, zone: u16, network: A, length: u8) -> Option<Group> {
        let wanted = Key { network, zone, length: length.into() };
        self.large.find(wanted.hash(), |(key, _)| *key == wanted).map(|(_, group)| *group)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u16, Prefix, Group)> {
        let small =
            (0..).zip(&*self.places).filter(|(_, place)| *place & LARGE != LARGE).flat_map(|(zone, place)| {
                self.small(*place).iter().flat_map(Quad::prefixes).map(move |(network, mask, group)| {
                    (zone, Prefix { network: network.ip(), length: mask.ones() }, group)
                })
            });
        let large = self.large.iter().filter_map(|(key, group)| {
            let length = u8::try_from(key.length).ok()?;
            Some((key.zone, Prefix { network: { key.network }.ip(), length }, *group))
        });
        small.chain(large)
    }

    pub(crate) fn memory(&self) -> usize {
        size_of_val(&*self.places)
            + size_of_val(&*self.small)
            + size_of_val(&*self.lengths)
            + self.large.allocation_size()
    }
}

fn position(place: Place) -> usize {
    usize::try_from(place >> 32).unwrap_or(usize::MAX)
}

impl<A: Address> Key<A> {
    /// A folded multiplication. Networks come from the operator; packets cannot make entries collide.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the product is cut in halves")]
    fn hash(&self) -> u64 {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let fold = |word: u64| {
            let product = u128::from(word) * u128::from(ODD);
            (product >> 64) as u64 ^ product as u64
        };
        let [low, high] = { self.network }.words();
        fold(fold(high ^ u64::from(self.zone) << 32 ^ u64::from(self.length) << 48).wrapping_add(low))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_lengths_yields_the_longest_first_and_ends_with_zero() {
        let mut set = u32::NONE;
        for length in [8, 32, 1] {
            set |= u32::bit(length);
        }
        for length in [32, 8, 1] {
            assert_eq!(set.longest(), length);
            set &= !u32::bit(length);
        }
        assert_eq!(set.longest(), 0);
        assert_eq!(u128::bit(128).longest(), 128);
        assert_eq!((u32::mask(0), u32::mask(24), u32::mask(32)), (0, 0xffff_ff00, u32::MAX));
    }

    #[test]
    fn groups_refuse_what_they_cannot_hold() {
        assert_eq!(Group::new(7, 255).unwrap().range(), 7..262);
        assert_eq!(Group::new((1 << 24) - 1, 1).unwrap().range(), (1 << 24) - 1..1 << 24);
        assert_eq!(Group::new(1 << 24, 1), None);
        assert_eq!((Group::new(0, 0), Group::new(0, 256)), (None, None));
    }
}

//! The addresses of a pool and how many hosts have each.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use erhu_planes::program::{AddressRange, limits};

use crate::Lock;
use crate::pools::PoolState;

/// Addresses of one family that a list takes: as many as a program may give to a pool. What is kept of each place is
/// allocated at once, so a prefix of IPv6 must not decide how much that is.
#[expect(clippy::cast_possible_truncation, reason = "it is compared below")]
const MOST: u32 = limits::POOL_ADDRESSES as u32;
const _: () = assert!(MOST as u64 == limits::POOL_ADDRESSES);

/// An address as a number of its family.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

/// Numbers that are covered by ranges, each once.
#[derive(Debug, Default)]
pub struct Cover(BTreeMap<u128, u128>);

impl Cover {
    /// Adds a range and returns the parts of it that were not covered before, in order.
    pub fn add(&mut self, first: u128, last: u128) -> Vec<(u128, u128)> {
        let mut new = Vec::new();
        let mut at = Some(first);
        while let Some(start) = at.filter(|a| *a <= last) {
            if let Some((_, end)) = self.0.range(..=start).next_back().filter(|(_, end)| **end >= start) {
                at = end.checked_add(1);
                continue;
            }
            let gap_end = self.0.range(start..).next().map_or(last, |(next, _)| last.min(next - 1));
            new.push((start, gap_end));
            at = gap_end.checked_add(1);
        }
        self.0.extend(new.iter().copied());
        new
    }
}

/// Addresses of one family, in the order written, each once.
#[derive(Debug, PartialEq, Eq)]
pub struct AddressList {
    v6: bool,
    /// First address and its place in the list.
    ranges: Vec<(u128, u32)>,
    /// First, last, place of the first; by address.
    sorted: Vec<(u128, u128, u32)>,
    count: u32,
}

impl AddressList {
    /// The addresses of one family among ranges; `None` if there are none. Those beyond [`MOST`] are left out.
    pub fn new(ranges: &[AddressRange], v6: bool) -> Option<Self> {
        let mut list = Self { v6, ranges: Vec::new(), sorted: Vec::new(), count: 0 };
        let mut cover = Cover::default();
        for range in ranges.iter().filter(|r| r.first.is_ipv6() == v6) {
            for (first, last) in cover.add(number(range.first), number(range.last)) {
                let left = u128::from(MOST - list.count);
                let count = (last - first).saturating_add(1).min(left);
                if count != 0 {
                    list.ranges.push((first, list.count));
                    list.sorted.push((first, first + (count - 1), list.count));
                    list.count += u32::try_from(count).unwrap_or(0);
                }
            }
        }
        list.sorted.sort_unstable();
        (list.count != 0).then_some(list)
    }

    /// How many.
    pub const fn len(&self) -> u32 {
        self.count
    }

    /// The address at a place; places beyond the end wrap.
    #[expect(clippy::cast_possible_truncation, reason = "IPv4 addresses were made from 32 bits")]
    pub fn get(&self, place: u32) -> IpAddr {
        let place = place % self.count;
        let after = self.ranges.partition_point(|(_, base)| *base <= place);
        let (first, base) = self.ranges[after.saturating_sub(1)];
        let number = first + u128::from(place - base);
        if self.v6 { Ipv6Addr::from(number).into() } else { Ipv4Addr::from(number as u32).into() }
    }

    /// As [`AddressList::get`] of IPv4, in host order.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "IPv4 addresses were made from 32 bits")]
    pub fn get4(&self, place: u32) -> Option<u32> {
        let (first, base) = match self.ranges[..] {
            _ if self.v6 || place >= self.count => return None,
            [only] => only,
            _ => *self.ranges.get(self.ranges.partition_point(|(_, base)| *base <= place).checked_sub(1)?)?,
        };
        Some(first as u32 + (place - base))
    }

    /// The place of an address.
    pub fn place_of(&self, address: IpAddr) -> Option<u32> {
        if address.is_ipv6() != self.v6 {
            return None;
        }
        let wanted = number(address);
        let after = self.sorted.partition_point(|(first, _, _)| *first <= wanted);
        let (first, last, base) = *self.sorted.get(after.checked_sub(1)?)?;
        (wanted <= last).then(|| base + u32::try_from(wanted - first).unwrap_or(0))
    }

    /// Heap bytes.
    pub fn bytes(&self) -> usize {
        self.ranges.capacity() * size_of::<(u128, u32)>() + self.sorted.capacity() * size_of::<(u128, u128, u32)>()
    }
}

/// Counts of hosts by place, as a tree of minima.
#[derive(Debug)]
struct Balance {
    /// Leaves from `leaves` on; each inner node holds the smaller of its children at `2n` and `2n + 1`.
    tree: Vec<u32>,
    leaves: usize,
    /// Where the next search for a least used address begins.
    rotation: usize,
}

impl Balance {
    fn new(count: usize) -> Self {
        let leaves = count.next_power_of_two();
        let mut tree = vec![0; 2 * leaves];
        for leaf in count..leaves {
            tree[leaves + leaf] = u32::MAX;
        }
        let mut balance = Self { tree, leaves, rotation: 0 };
        for node in (1..leaves).rev() {
            balance.renew(node);
        }
        balance
    }

    fn renew(&mut self, node: usize) {
        self.tree[node] = self.tree[2 * node].min(self.tree[2 * node + 1]);
    }

    fn set(&mut self, place: usize, change: impl Fn(u32) -> u32) {
        let mut node = self.leaves + place;
        if let Some(leaf) = self.tree.get_mut(node) {
            *leaf = change(*leaf);
            while node > 1 {
                node /= 2;
                self.renew(node);
            }
        }
    }

    /// The first place from `from` on with the smallest count of all.
    fn least_from(&self, from: usize) -> Option<usize> {
        let least = self.tree[1];
        let mut node = self.leaves + from;
        if *self.tree.get(node)? == least {
            return Some(from);
        }
        loop {
            if node == 1 {
                return None;
            }
            if node.is_multiple_of(2) && self.tree[node + 1] == least {
                node += 1;
                break;
            }
            node /= 2;
        }
        while node < self.leaves {
            node = if self.tree[2 * node] == least { 2 * node } else { 2 * node + 1 };
        }
        Some(node - self.leaves)
    }

    fn pick(&mut self) -> usize {
        let place = self.least_from(self.rotation).or_else(|| self.least_from(0)).unwrap_or(0);
        self.set(place, |n| n.saturating_add(1));
        self.rotation = place + 1;
        place
    }
}

/// A pool's addresses of one family with the number of hosts on each. Lives as long as a rule set has the pool with
/// these addresses, or a host has one of them.
#[derive(Debug)]
pub struct Spread {
    /// The pool.
    pub pool: Arc<PoolState>,
    /// Its addresses.
    pub addresses: AddressList,
    balance: Lock<Balance>,
    /// By place: the reference that the address lately had among external ones, or one that leads nowhere.
    external: Box<[AtomicU32]>,
    /// Where a search for an address with a free port goes on.
    hint: AtomicU32,
}

impl Spread {
    /// No host has an address yet.
    pub fn new(pool: Arc<PoolState>, addresses: AddressList) -> Self {
        let balance = Lock::new(Balance::new(addresses.len() as usize));
        let external = (0..addresses.len()).map(|_| AtomicU32::new(u32::MAX)).collect();
        Self { pool, addresses, balance, external, hint: AtomicU32::new(0) }
    }

    /// Gives a new host the place with the fewest hosts; of equal ones the next in turn.
    pub fn pick(&self) -> u32 {
        u32::try_from(self.balance.lock().pick()).unwrap_or(0)
    }

    /// Counts a host at a place.
    pub fn join(&self, place: u32) {
        self.balance.lock().set(place as usize, |n| n.saturating_add(1));
    }

    /// Counts a host less.
    pub fn leave(&self, place: u32) {
        self.balance.lock().set(place as usize, |n| n.saturating_sub(1));
    }

    /// What [`Spread::note_external`] noted of a place.
    #[inline]
    pub fn external(&self, place: u32) -> u32 {
        self.external.get(place as usize).map_or(u32::MAX, |external| external.load(Relaxed))
    }

    /// Notes the reference of the address at a place, which whoever uses it verifies.
    pub fn note_external(&self, place: u32, reference: u32) {
        if let Some(external) = self.external.get(place as usize) {
            external.store(reference, Relaxed);
        }
    }

    /// Places to try when a host's own has no port left, at most `most`; each call goes on where the last one ended.
    pub fn further(&self, most: u32) -> impl Iterator<Item = u32> + '_ {
        let start = self.hint.load(Relaxed);
        let count = self.addresses.len();
        (0..most.min(count)).map(move |n| {
            let place = start.wrapping_add(n) % count;
            self.hint.store(place, Relaxed);
            place
        })
    }

    /// Heap bytes.
    pub fn bytes(&self) -> usize {
        let words = self.balance.lock().tree.capacity() + self.external.len();
        size_of::<Self>() + self.addresses.bytes() + words * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(first: &str, last: &str) -> AddressRange {
        AddressRange { first: first.parse().unwrap(), last: last.parse().unwrap() }
    }

    #[test]
    fn addresses_are_numbered_as_written_and_each_once() {
        let ranges = [
            range("10.0.0.8", "10.0.0.9"),
            range("2001:db8::1", "2001:db8::2"),
            range("10.0.0.1", "10.0.0.10"),
            range("10.0.0.2", "10.0.0.3"),
        ];
        let list = AddressList::new(&ranges, false).unwrap();
        let all: Vec<String> = (0..list.len()).map(|n| list.get(n).to_string()).collect();
        let last: Vec<u8> = all.iter().map(|a| a.rsplit('.').next().unwrap().parse().unwrap()).collect();
        assert_eq!(last, [8, 9, 1, 2, 3, 4, 5, 6, 7, 10]);
        for place in 0..list.len() {
            assert_eq!(list.place_of(list.get(place)), Some(place));
            assert_eq!(list.get4(place).map(|a| IpAddr::V4(a.into())), Some(list.get(place)));
        }
        for other in ["10.0.0.0", "10.0.0.11", "2001:db8::1"] {
            assert_eq!(list.place_of(other.parse().unwrap()), None);
        }
        let v6 = AddressList::new(&ranges, true).unwrap();
        assert_eq!((v6.len(), v6.get(1).to_string()), (2, "2001:db8::2".into()));
        assert_eq!((v6.get4(0), list.get4(list.len())), (None, None));
        let one = AddressList::new(&ranges[..1], false).unwrap();
        assert_eq!((one.get4(1), one.get4(2)), (Some(0x0a00_0009), None));
        assert_eq!(AddressList::new(&ranges[..1], true), None);
    }

    #[test]
    fn the_whole_of_ipv6_neither_overflows_nor_takes_memory_for_each_address() {
        let all = range("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
        let small = range("2001:db8::1", "2001:db8::2");
        let list = AddressList::new(&[small, all, all], true).unwrap();
        assert_eq!(list.len(), MOST);
        assert_eq!([list.get(0), list.get(2)], ["2001:db8::1", "::"].map(|a| a.parse::<IpAddr>().unwrap()));
        let spread = Spread::new(Arc::default(), list);
        assert!(spread.bytes() <= 13 * MOST as usize, "{} bytes", spread.bytes());
        let last = (0..MOST).map(|_| spread.pick()).max();
        assert_eq!(last, Some(MOST - 1), "each place once");
    }

    proptest! {
        #[test]
        fn the_least_used_address_in_turn_is_picked(count in 1usize..70, leaving in proptest::collection::vec(any::<usize>(), 0..300)) {
            let mut balance = Balance::new(count);
            let mut model = vec![0u32; count];
            let mut next = 0;
            for leave in leaving {
                if leave % 3 == 0 {
                    let place = leave % count;
                    balance.set(place, |n| n.saturating_sub(1));
                    model[place] = model[place].saturating_sub(1);
                } else {
                    let least = *model.iter().min().unwrap();
                    let expected = (0..count).map(|n| (next + n) % count).find(|p| model[*p] == least).unwrap();
                    prop_assert_eq!(balance.pick(), expected);
                    model[expected] += 1;
                    next = expected + 1;
                }
            }
        }
    }
}

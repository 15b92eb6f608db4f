//! Which part of a cut-up number space a number lies in.

use crate::checks::offset;

/// A search tree over 32-bit cuts with 16 to a node, so that a step costs one cache line and one vector comparison:
/// four steps for 65 000 cuts.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Level by level from the root; the last holds all cuts in order, the others the first cut of each node below.
    nodes: Vec<Node>,
    /// First node and number of nodes of each level.
    levels: [(u32, u32); LEVELS],
    depth: usize,
    cuts: usize,
    /// 1, but in memory: where the compiler knows it, it counts bits instead of adding up a vector, and x86-64 has no
    /// instruction for that in its baseline.
    one: u32,
}

const FANOUT: usize = 16;
/// Enough for 2³² cuts.
const LEVELS: usize = 8;

/// Sorted, with the sign bit inverted so that signed comparison orders them; filled up with the largest.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Node([i32; FANOUT]);

/// Signed order of the result is unsigned order of the argument.
const fn ordered(key: u32) -> i32 {
    i32::from_ne_bytes((key ^ 1 << 31).to_ne_bytes())
}

impl Node {
    /// How many of its cuts are not above a key, times `one`.
    #[inline]
    fn count(&self, key: i32, one: u32) -> u32 {
        let mut lanes = [0u32; 4];
        for row in self.0.chunks_exact(lanes.len()) {
            lanes.iter_mut().zip(row).for_each(|(lane, cut)| *lane += if *cut <= key { one } else { 0 });
        }
        (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])
    }
}

impl Tree {
    /// Takes sorted cuts.
    pub(crate) fn new(cuts: &[u32]) -> Self {
        let mut upwards: Vec<Vec<Node>> = Vec::new();
        let mut level: Vec<i32> = cuts.iter().copied().map(ordered).collect();
        while !level.is_empty() {
            let fill = |chunk: &[i32]| {
                let mut node = [i32::MAX; FANOUT];
                node[..chunk.len()].copy_from_slice(chunk);
                Node(node)
            };
            let nodes: Vec<Node> = level.chunks(FANOUT).map(fill).collect();
            level = if nodes.len() > 1 { nodes.iter().map(|node| node.0[0]).collect() } else { Vec::new() };
            upwards.push(nodes);
        }
        let mut tree =
            Self { nodes: Vec::new(), levels: [(0, 0); LEVELS], depth: upwards.len(), cuts: cuts.len(), one: 1 };
        for (level, nodes) in tree.levels.iter_mut().zip(upwards.into_iter().rev()) {
            *level = (offset(tree.nodes.len()), offset(nodes.len()));
            tree.nodes.extend(nodes);
        }
        tree
    }

    /// How many cuts are not above a key.
    #[inline]
    pub(crate) fn part(&self, key: u32) -> usize {
        let key = ordered(key);
        let (mut node, mut count) = (0, 0);
        for (first, nodes) in self.levels.iter().take(self.depth) {
            // Filling is counted by the largest key only, and would lead past the last node.
            node = node.min(*nodes as usize - 1);
            count =
                node * FANOUT + self.nodes.get(*first as usize + node).map_or(0, |n| n.count(key, self.one) as usize);
            // The last cut that is not above the key leads down.
            node = count.saturating_sub(1);
        }
        count.min(self.cuts)
    }
}

/// Sorted 128-bit cuts, searched by their upper half first: prefixes of IPv6 seldom differ below it.
#[derive(Debug)]
pub(crate) struct Wide {
    /// Distinct upper halves.
    upper: Vec<u64>,
    /// Where the cuts of each upper half begin, and where the last end.
    starts: Vec<u32>,
    /// Lower halves of all cuts.
    lower: Vec<u64>,
}

/// Upper and lower half.
fn halves(key: u128) -> (u64, u64) {
    let low = |key: u128| u64::try_from(key & u128::from(u64::MAX)).unwrap_or(0);
    (low(key >> 64), low(key))
}

impl Wide {
    /// Takes sorted cuts.
    pub(crate) fn new(cuts: &[u128]) -> Self {
        let mut wide = Self { upper: Vec::new(), starts: Vec::new(), lower: Vec::with_capacity(cuts.len()) };
        for (position, cut) in cuts.iter().enumerate() {
            let (upper, lower) = halves(*cut);
            if wide.upper.last() != Some(&upper) {
                wide.upper.push(upper);
                wide.starts.push(offset(position));
            }
            wide.lower.push(lower);
        }
        wide.starts.push(offset(cuts.len()));
        wide
    }

    /// Number of cuts.
    pub(crate) fn len(&self) -> usize {
        self.lower.len()
    }

    /// How many cuts are not above a key.
    #[inline]
    pub(crate) fn part(&self, key: u128) -> usize {
        let (upper, lower) = halves(key);
        let below = self.upper.partition_point(|cut| *cut < upper);
        let start = |at: usize| self.starts.get(at).map_or(self.lower.len(), |start| *start as usize);
        if self.upper.get(below) != Some(&upper) {
            return start(below);
        }
        let range = start(below)..start(below + 1);
        range.start + self.lower.get(range).map_or(0, |lows| lows.partition_point(|cut| *cut <= lower))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_lies_after_as_many_cuts_as_are_not_above_it() {
        for count in [0u32, 1, 2, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097, 5000] {
            for (offset, stride) in [(1, 1), (7, 5), (0x7fff_f000, 3)] {
                let cuts: Vec<u32> = (0..count).map(|i| offset + i * stride).collect();
                check(&cuts);
            }
            check(&(0..count).map(|i| u32::MAX - count + 1 + i).collect::<Vec<_>>());
        }
    }

    fn check(cuts: &[u32]) {
        let tree = Tree::new(cuts);
        let near = cuts.iter().flat_map(|c| [c.wrapping_sub(1), *c, c.wrapping_add(1)]);
        for key in near.chain([0, 1, u32::MAX - 1, u32::MAX]) {
            assert_eq!(tree.part(key), cuts.partition_point(|c| *c <= key), "{} cuts, key {key}", cuts.len());
        }
    }

    #[test]
    fn keys_of_128_bits_lie_after_as_many_cuts_as_are_not_above_them() {
        let top = u128::from(u64::MAX) << 64;
        let cuts = [1, 5, 1 << 64, 2 << 64, (2 << 64) + 1, (2 << 64) + 9, top, u128::MAX];
        for count in 0..=cuts.len() {
            let cuts = &cuts[..count];
            let wide = Wide::new(cuts);
            assert_eq!(wide.len(), count);
            let near = cuts.iter().flat_map(|c| [c.wrapping_sub(1), *c, c.wrapping_add(1)]);
            for key in near.chain([0, 3 << 64, u128::MAX]) {
                assert_eq!(wide.part(key), cuts.partition_point(|c| *c <= key), "{count} cuts, key {key}");
            }
        }
    }
}

//! Sets of numbers as sorted, disjoint ranges, both ends included.

/// A number that ranges are made of.
pub(crate) trait Key: Copy + Ord {
    const MIN: Self;
    fn after(self) -> Option<Self>;
    fn before(self) -> Option<Self>;
}

impl Key for u32 {
    const MIN: Self = Self::MIN;
    fn after(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn before(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

impl Key for u128 {
    const MIN: Self = Self::MIN;
    fn after(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn before(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

/// Sorted and disjoint; neighbouring ranges do not touch.
pub(crate) type Spans<K> = Vec<(K, K)>;

/// Sorts and joins.
pub(crate) fn union<K: Key>(mut ranges: Vec<(K, K)>) -> Spans<K> {
    ranges.sort_unstable();
    let mut joined: Spans<K> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(previous) if previous.1.after().is_none_or(|next| first <= next) => {
                previous.1 = previous.1.max(last);
            }
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// All numbers up to `most` that are not in the set.
pub(crate) fn complement<K: Key>(spans: &[(K, K)], most: K) -> Spans<K> {
    let mut gaps = Vec::with_capacity(spans.len() + 1);
    let mut from = Some(K::MIN);
    for &(first, last) in spans {
        if let (Some(start), Some(end)) = (from, first.before())
            && start <= end
        {
            gaps.push((start, end.min(most)));
        }
        from = last.after();
    }
    if let Some(start) = from
        && start <= most
    {
        gaps.push((start, most));
    }
    gaps
}

/// Numbers that are in both sets.
pub(crate) fn intersection<K: Key>(a: &[(K, K)], b: &[(K, K)]) -> Spans<K> {
    let (mut i, mut j) = (0, 0);
    let mut both = Vec::new();
    while let (Some(&(a_first, a_last)), Some(&(b_first, b_last))) = (a.get(i), b.get(j)) {
        let (first, last) = (a_first.max(b_first), a_last.min(b_last));
        if first <= last {
            both.push((first, last));
        }
        if a_last < b_last { i += 1 } else { j += 1 }
    }
    both
}

/// Whether a number is in the set.
pub(crate) fn contains<K: Key>(spans: &[(K, K)], key: K) -> bool {
    let at = spans.partition_point(|&(_, last)| last < key);
    spans.get(at).is_some_and(|&(first, _)| first <= key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_and_overlapping_ranges_become_one() {
        assert_eq!(union(vec![(7u32, 9), (1, 2), (3, 4), (8, 12)]), [(1, 4), (7, 12)]);
        assert_eq!(union(vec![(5, u32::MAX), (9, 9)]), [(5, u32::MAX)]);
    }

    #[test]
    fn the_complement_of_the_complement_is_the_set() {
        for spans in [vec![], vec![(0u32, 0)], vec![(3, 5), (9, 9)], vec![(0, 10)], vec![(4, 10)]] {
            assert_eq!(complement(&complement(&spans, 10), 10), spans);
        }
        assert_eq!(complement(&[(0u128, u128::MAX)], u128::MAX), []);
    }

    #[test]
    fn an_intersection_holds_what_both_hold() {
        let (a, b) = ([(1u32, 5), (8, 20)], [(0u32, 1), (4, 9), (20, 30)]);
        let both = intersection(&a, &b);
        assert_eq!(both, [(1, 1), (4, 5), (8, 9), (20, 20)]);
        for key in 0..40 {
            assert_eq!(contains(&both, key), contains(&a, key) && contains(&b, key));
        }
    }
}

//! What a condition accepts, as a set of numbers.

use std::net::IpAddr;

use erhu_planes::program::{Match, MatchKey, PortRange};

/// What a condition is about, in the order of [`MatchKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum About {
    Ingress,
    Egress,
    Zone,
    EgressZone,
    Source,
    Destination,
    Protocol,
    SourcePort,
    DestinationPort,
    IcmpType,
    IcmpCode,
    State,
    Status,
    Direction,
    Mark,
}

/// Ranges in order, not touching each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set(Vec<(u128, u128)>);

/// How a packet whose property lies in one set fares with a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    Always,
    Sometimes,
    Never,
}

impl Set {
    pub fn of(ranges: impl IntoIterator<Item = (u128, u128)>) -> Self {
        let mut all: Vec<(u128, u128)> = ranges.into_iter().collect();
        all.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    pub fn of_ids(ids: impl IntoIterator<Item = u16>) -> Self {
        Self::of(ids.into_iter().map(|id| (id.into(), id.into())))
    }

    pub fn of_addresses(first: IpAddr, last: IpAddr) -> Self {
        Self::of([(number(first), number(last))])
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn first(&self) -> Option<u128> {
        self.0.first().map(|range| range.0)
    }

    /// All values, if they are at most `most`.
    pub fn values(&self, most: u128) -> Option<Vec<u128>> {
        let mut left = most;
        for (first, last) in &self.0 {
            left = left.checked_sub((last - first).checked_add(1)?)?;
        }
        Some(self.0.iter().flat_map(|(first, last)| *first..=*last).collect())
    }

    pub fn is_within(&self, other: &Self) -> bool {
        self.0.iter().all(|(first, last)| {
            let after = other.0.partition_point(|(start, _)| start <= first);
            after.checked_sub(1).is_some_and(|at| *last <= other.0[at].1)
        })
    }

    pub fn meets(&self, other: &Self) -> bool {
        let (small, large) = if self.0.len() <= other.0.len() { (self, other) } else { (other, self) };
        small.0.iter().any(|(first, last)| {
            let after = large.0.partition_point(|(start, _)| start <= last);
            after.checked_sub(1).is_some_and(|at| *first <= large.0[at].1)
        })
    }

    /// How values of this set fare with a condition.
    pub fn fit(&self, condition: &Self) -> Fit {
        if self.is_within(condition) {
            Fit::Always
        } else if self.meets(condition) {
            Fit::Sometimes
        } else {
            Fit::Never
        }
    }

    pub fn all_but(&self, most: u128) -> Self {
        let mut left = Vec::with_capacity(self.0.len() + 1);
        let mut next = Some(0);
        for (first, last) in &self.0 {
            if let Some(start) = next.filter(|start| start < first) {
                left.push((start, first - 1));
            }
            next = last.checked_add(1);
        }
        left.extend(next.filter(|start| *start <= most).map(|start| (start, most)));
        Self(left)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => a.to_ipv6_mapped().into(),
        IpAddr::V6(a) => a.into(),
    }
}

/// A condition as the set it accepts; `None` for marks with a mask, which are no ranges.
pub fn condition(m: &Match) -> (About, Option<Set>) {
    let ids = |ids: &[u16]| Set::of_ids(ids.iter().copied());
    let ranges = |ranges: &[PortRange]| Set::of(ranges.iter().map(|r| (r.first.into(), r.last.into())));
    let (about, set, most): (About, Option<Set>, u128) = match &m.key {
        MatchKey::Ingress(v) => (About::Ingress, Some(ids(v)), u16::MAX.into()),
        MatchKey::Egress(v) => (About::Egress, Some(ids(v)), u16::MAX.into()),
        MatchKey::Zone(v) => (About::Zone, Some(ids(v)), u16::MAX.into()),
        MatchKey::EgressZone(v) => (About::EgressZone, Some(ids(v)), u16::MAX.into()),
        MatchKey::Source(v) | MatchKey::Destination(v) => {
            let set = Set::of(v.iter().map(|range| (number(range.first), number(range.last))));
            let about = if matches!(m.key, MatchKey::Source(_)) { About::Source } else { About::Destination };
            (about, Some(set), u128::MAX)
        }
        MatchKey::Protocol(v) => (About::Protocol, Some(Set::of(v.iter().map(|p| ((*p).into(), (*p).into())))), 255),
        MatchKey::SourcePort(v) => (About::SourcePort, Some(ranges(v)), u16::MAX.into()),
        MatchKey::DestinationPort(v) => (About::DestinationPort, Some(ranges(v)), u16::MAX.into()),
        MatchKey::IcmpType(v) => (About::IcmpType, Some(ranges(v)), 255),
        MatchKey::IcmpCode(v) => (About::IcmpCode, Some(ranges(v)), 255),
        MatchKey::State(bits) => {
            let set = (0..5u128).filter(|bit| bits >> bit & 1 == 1).map(|bit| (bit, bit));
            (About::State, Some(Set::of(set)), 4)
        }
        // Several can hold at once, and of packets without a connection not even the opposite: no set of values.
        MatchKey::Status(_) => (About::Status, None, 0),
        // Untracked and INVALID packets have neither, negated or not.
        MatchKey::Direction(_) => (About::Direction, None, 0),
        MatchKey::Mark(v) if v.iter().all(|(_, mask)| *mask == u32::MAX) => {
            (About::Mark, Some(Set::of(v.iter().map(|(mark, _)| ((*mark).into(), (*mark).into())))), u32::MAX.into())
        }
        MatchKey::Mark(_) => (About::Mark, None, 0),
    };
    (about, set.map(|set| if m.negated { set.all_but(most) } else { set }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_are_one() {
        assert_eq!(Set::of([(5, 9), (1, 4), (20, 30), (25, 26)]), Set(vec![(1, 9), (20, 30)]));
    }

    #[test]
    fn what_is_not_in_a_set_is_in_the_rest() {
        let set = Set::of([(0, 3), (10, 20), (250, 255)]);
        let rest = set.all_but(255);
        for value in 0..=255 {
            let one = Set::of([(value, value)]);
            assert_ne!(one.is_within(&set), one.is_within(&rest), "{value}");
        }
        assert!(Set::of([(0, u128::MAX)]).all_but(u128::MAX).is_empty());
        assert_eq!(Set::of([]).all_but(7), Set::of([(0, 7)]));
    }

    #[test]
    fn sets_know_how_they_lie_to_each_other() {
        let set = Set::of([(10, 20), (30, 40)]);
        for (other, fit) in [
            (Set::of([(12, 15), (30, 40)]), Fit::Always),
            (Set::of([(12, 25)]), Fit::Sometimes),
            (Set::of([(21, 29)]), Fit::Never),
            (Set::of([(0, 100)]), Fit::Sometimes),
        ] {
            assert_eq!(other.fit(&set), fit, "{other:?}");
        }
    }

    #[test]
    fn values_are_listed_only_if_they_are_few() {
        assert_eq!(Set::of([(1, 2), (7, 7)]).values(3), Some(vec![1, 2, 7]));
        assert_eq!(Set::of([(1, 2), (7, 8)]).values(3), None);
        assert_eq!(Set::of([(0, u128::MAX)]).values(u128::MAX), None);
    }
}

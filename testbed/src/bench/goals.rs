//! What is measured and what is wanted of it.

use super::measure::Spread;

/// What a figure is held against. `must` is to be reached, `aims` pursued; neither where a row has no target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// Ticks per packet or connection, as multiples of the floor with so many flows.
    Floors {
        /// Flows of the floor.
        flows: u32,
        /// At most so many floors.
        must: Option<f64>,
        /// The same.
        aims: Option<f64>,
    },
    /// Ticks, as multiples of another figure of the same round.
    Times {
        /// Which one.
        of: &'static str,
        /// At most so many times.
        must: f64,
        /// The same.
        aims: Option<f64>,
    },
    /// Ticks more than another figure of the same round.
    More {
        /// Which one.
        than: &'static str,
        /// At most so many.
        must: f64,
        /// The same.
        aims: f64,
    },
    /// How many times as fast as one worker: the greater the better.
    Faster {
        /// At least so many times.
        must: f64,
        /// The same.
        aims: f64,
    },
    /// So much of something: the less the better.
    AtMost {
        /// Of what.
        unit: Unit,
        /// At most so much.
        must: Option<f64>,
        /// The same.
        aims: Option<f64>,
    },
}

/// What amounts are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Of the time stamp counter.
    Ticks,
    /// Bytes.
    Bytes,
    /// Microseconds.
    Micros,
    /// Seconds.
    Seconds,
    /// Parts in a hundred.
    Percent,
    /// Packets.
    Packets,
}

impl Unit {
    /// As it stands behind a number.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Ticks => "",
            Self::Bytes => " B",
            Self::Micros => " µs",
            Self::Seconds => " s",
            Self::Percent => " %",
            Self::Packets => " pkt",
        }
    }

    /// As programs know it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ticks => "ticks",
            Self::Bytes => "bytes",
            Self::Micros => "microseconds",
            Self::Seconds => "seconds",
            Self::Percent => "percent",
            Self::Packets => "packets",
        }
    }
}

/// One round's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Round {
    /// The figure itself, `io` taken off where there is one.
    pub work: f64,
    /// Ticks per packet of the loop that does nothing.
    pub io: Option<f64>,
    /// Ticks per packet of the floor.
    pub floor: Option<f64>,
    /// The figure that `work` is compared with.
    pub base: Option<f64>,
}

impl Round {
    /// A figure without yardsticks.
    pub fn alone(work: f64) -> Self {
        Self { work, ..Self::default() }
    }
}

/// How far a figure got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What is pursued.
    AimReached,
    /// What must be.
    MustReached,
    /// Not what must be.
    Missed,
    /// Nothing is wanted of it.
    NoTarget,
    /// Something to compare it with is missing.
    NoYardstick,
}

impl Verdict {
    /// For people, and for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AimReached => "aim reached",
            Self::MustReached => "must reached",
            Self::Missed => "missed",
            Self::NoTarget => "no target",
            Self::NoYardstick => "no yardstick",
        }
    }
}

impl Goal {
    /// What `work` is counted in.
    pub const fn unit(self) -> Unit {
        match self {
            Self::AtMost { unit, .. } => unit,
            Self::Floors { .. } | Self::Times { .. } | Self::More { .. } | Self::Faster { .. } => Unit::Ticks,
        }
    }

    /// Behind a target or the number that is held against it.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Floors { .. } => " F",
            Self::Times { .. } | Self::Faster { .. } => " ×",
            Self::More { .. } => " more",
            Self::AtMost { unit, .. } => unit.suffix(),
        }
    }

    /// What must be reached and what is pursued.
    pub const fn targets(self) -> (Option<f64>, Option<f64>) {
        match self {
            Self::Floors { must, aims, .. } | Self::AtMost { must, aims, .. } => (must, aims),
            Self::Times { must, aims, .. } => (Some(must), aims),
            Self::More { must, aims, .. } | Self::Faster { must, aims } => (Some(must), Some(aims)),
        }
    }

    /// Flows of the floor that is measured beside it.
    pub const fn floor_flows(self) -> Option<u32> {
        match self {
            Self::Floors { flows, .. } => Some(flows),
            _ => None,
        }
    }

    /// What of a round is held against the targets.
    pub fn measure(self, round: &Round) -> Option<f64> {
        match self {
            Self::Floors { .. } => round.floor.filter(|f| *f > 0.0).map(|f| round.work / f),
            Self::Times { .. } | Self::Faster { .. } => round.base.filter(|b| *b > 0.0).map(|b| round.work / b),
            Self::More { .. } => round.base.map(|b| round.work - b),
            Self::AtMost { .. } => Some(round.work),
        }
    }

    /// The measure over all rounds. Of floors it is the ratio of medians, which moves least.
    pub fn measured(self, rounds: &[Round]) -> Option<Spread> {
        let spread = Spread::of(rounds.iter().filter_map(|r| self.measure(r)))?;
        let Self::Floors { .. } = self else { return Some(spread) };
        let work = Spread::of(rounds.iter().map(|r| r.work))?;
        let floor = Spread::of(rounds.iter().filter_map(|r| r.floor)).filter(|f| f.median > 0.0)?;
        Some(Spread { median: work.median / floor.median, ..spread })
    }

    /// Whether `a` is worse than `b`.
    pub fn is_worse(self, a: f64, b: f64) -> bool {
        if matches!(self, Self::Faster { .. }) { a < b } else { a > b }
    }

    /// How far a measure got.
    pub fn verdict(self, measured: Option<f64>) -> Verdict {
        let (must, aims) = self.targets();
        let Some(measured) = measured else { return Verdict::NoYardstick };
        let reached = |target: Option<f64>| target.is_some_and(|t| !self.is_worse(measured, t));
        if reached(aims) {
            Verdict::AimReached
        } else if reached(must) {
            Verdict::MustReached
        } else if must.is_none() {
            Verdict::NoTarget
        } else {
            Verdict::Missed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_to_the_floor_is_one_of_medians() {
        let goal = Goal::Floors { flows: 64, must: Some(2.0), aims: Some(1.5) };
        let round = |work, floor| Round { work, floor: Some(floor), ..Round::default() };
        let rounds = [round(100.0, 50.0), round(90.0, 60.0), round(400.0, 50.0)];
        let spread = goal.measured(&rounds).unwrap();
        assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.5, 8.0));
        assert_eq!(goal.verdict(Some(2.0)), Verdict::MustReached);
        assert_eq!(goal.verdict(Some(2.01)), Verdict::Missed);
        assert_eq!(goal.verdict(Some(1.5)), Verdict::AimReached);
        assert_eq!(goal.verdict(None), Verdict::NoYardstick);
    }

    #[test]
    fn of_a_speed_up_more_is_better() {
        let goal = Goal::Faster { must: 1.8, aims: 1.95 };
        assert_eq!(
            [1.7, 1.8, 2.0].map(|f| goal.verdict(Some(f))),
            [Verdict::Missed, Verdict::MustReached, Verdict::AimReached]
        );
        assert_eq!(goal.measured(&[Round { work: 38.0, base: Some(20.0), ..Round::default() }]).unwrap().median, 1.9);
    }

    #[test]
    fn a_row_without_targets_is_neither_reached_nor_missed() {
        let goal = Goal::AtMost { unit: Unit::Percent, must: None, aims: None };
        assert_eq!(goal.verdict(Some(7.0)), Verdict::NoTarget);
        let more = Goal::More { than: "without", must: 15.0, aims: 15.0 };
        let round = Round { work: 60.0, base: Some(50.0), ..Round::default() };
        assert_eq!(more.measure(&round), Some(10.0));
    }
}

//! Rules in the form in which they are run: exact checks and steps, in flat arrays.

use erhu_planes::program::{Action, Dnat, Prefix, Rule};

use crate::facts::{DnatRef, NetmapRef, RuleId, SnatRef, Verdict};
use crate::fields::{Condition, Conditions, Field, Keys, Other};
use crate::spans::contains;

/// A slice of one of the arrays of [`Store`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    start: u32,
    end: u32,
}

impl Part {
    pub(crate) fn of<T>(self, array: &[T]) -> &[T] {
        array.get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    pub(crate) fn append<T>(array: &mut Vec<T>, items: impl IntoIterator<Item = T>) -> Self {
        let start = offset(array.len());
        array.extend(items);
        Self { start, end: offset(array.len()) }
    }
}

/// Array positions fit in 32 bits because an encoded program, of which every item takes a byte, is below 2³² bytes.
pub(crate) fn offset(position: usize) -> u32 {
    u32::try_from(position).expect("a program is bounded")
}

#[derive(Clone, Copy, Debug)]
enum Check {
    /// The field is in one range; for addresses: and IPv4.
    Range {
        field: Field,
        first: u32,
        last: u32,
    },
    /// The field, not an address, is in one of the ranges.
    Ranges {
        field: Field,
        ranges: Part,
    },
    /// The address is in one of the ranges: an item of [`Store::addresses`].
    Address {
        field: Field,
        item: u32,
    },
    State {
        bits: u8,
        negated: bool,
    },
    /// Of the packet's connection: [`Keys::connection`] bits. Does not hold for packets without one.
    Connection {
        bits: u8,
        negated: bool,
    },
    Mark {
        values: Part,
        negated: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct Addresses {
    narrow: Part,
    wide: Part,
}

/// An action that has an effect.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Final(Verdict),
    Notrack,
    /// Of [`crate::Rules::chains`].
    Jump(u16),
    GoTo(u16),
    Return,
    Mark(u32),
    ConnMark(u32),
    Count(u16),
}

impl Step {
    /// Whether nothing after it in its list is run.
    fn ends_list(self) -> bool {
        matches!(self, Self::Final(_) | Self::GoTo(_) | Self::Return)
    }
}

/// A rule. What most rules need is in one cache line, the rest in [`Store`].
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Compiled {
    checks: [Check; NEAR],
    first: Step,
    more_checks: u32,
    more_steps: u32,
    pub(crate) id: RuleId,
    check_count: u8,
    more_step_count: u8,
}
const _: () = assert!(size_of::<Compiled>() == 64);

/// Checks in the rule's own line.
const NEAR: usize = 3;

/// What most rules fail by, in a sixth of their line: a state, and one field in one range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate {
    first: u32,
    /// Last number less the first.
    span: u32,
    field: Field,
    /// States in which the rule can match, [`NO_STATE`] for packets that have none.
    states: u8,
    /// The rule looks at nothing else.
    is_whole: bool,
}

/// Stands for the state of packets before tracking, which have none: a bit that no state has.
const NO_STATE: u8 = 1 << 7;
const _: () = assert!(erhu_planes::program::states::ALL & NO_STATE == 0);

impl Gate {
    fn of(rule: &Compiled) -> Self {
        let near = rule.checks.iter().take(rule.check_count.into());
        let mut gate = Self { first: 0, span: u32::MAX, field: Field::Protocol, states: u8::MAX, is_whole: true };
        let mut ranges = 0;
        for check in near {
            match *check {
                Check::State { bits, negated } => gate.states &= if negated { !bits } else { bits },
                Check::Range { field, first, last } => {
                    ranges += 1;
                    if selects(field, last - first) > selects(gate.field, gate.span) {
                        (gate.field, gate.first, gate.span) = (field, first, last - first);
                    }
                    // Of an address the gate does not see the family.
                    gate.is_whole &= !field.is_address();
                }
                _ => gate.is_whole = false,
            }
        }
        gate.is_whole &= ranges <= 1 && usize::from(rule.check_count) <= NEAR;
        gate
    }

    /// Whether a rule whose gate is open matches, without a further look at it.
    #[inline(always)]
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Whether the rule may match; if not, it does not.
    #[inline(always)]
    pub(crate) fn is_open(&self, keys: &Keys, state: u8) -> bool {
        // An IPv6 address is 0 here and no range of an IPv4 address holds for it.
        (self.states & state != 0) & (keys.get(self.field).wrapping_sub(self.first) <= self.span)
    }
}

/// A packet's state as gates have it.
#[inline(always)]
pub(crate) fn state_of(keys: &Keys) -> u8 {
    if keys.state == 0 { NO_STATE } else { keys.state }
}

/// How well a range of a field tells packets apart: that it is UDP is true of more of them than any port is.
const fn selects(field: Field, span: u32) -> u32 {
    let is_broad = matches!(field, Field::Protocol) && span < WELL_KNOWN;
    u32::MAX - if is_broad { WELL_KNOWN } else { span }
}

/// Ports that more packets have than most others.
const WELL_KNOWN: u32 = 1024;

/// The gates of a list's rules.
pub(crate) fn gates(rules: &[Compiled]) -> Vec<Gate> {
    rules.iter().map(Gate::of).collect()
}

/// What rules refer to.
#[derive(Debug, Default)]
pub(crate) struct Store {
    /// Beyond the first few of a rule.
    checks: Vec<Check>,
    /// Beyond a rule's first.
    steps: Vec<Step>,
    ranges: Vec<(u32, u32)>,
    wide_ranges: Vec<(u128, u128)>,
    addresses: Vec<Addresses>,
    marks: Vec<(u32, u32)>,
    pub(crate) snats: Vec<erhu_planes::program::Snat>,
    pub(crate) dnats: Vec<Dnat>,
    pub(crate) netmaps: Vec<Prefix>,
}

impl Store {
    /// Whether the rule's matches hold.
    #[inline(always)]
    pub(crate) fn matches(&self, rule: &Compiled, keys: &Keys) -> bool {
        let count = usize::from(rule.check_count);
        // Most rules that do not match fail at their first check, a range or a state.
        let near = rule.checks.iter().take(count).all(|check| match *check {
            Check::Range { field, first, last } => keys.is_between(field, first, last),
            Check::State { bits, negated } => (keys.state & bits != 0) != negated,
            _ => self.holds(check, keys),
        });
        near && (count <= NEAR || {
            let more = self.checks.iter().skip(rule.more_checks as usize).take(count - NEAR);
            more.into_iter().all(|check| self.holds(check, keys))
        })
    }

    fn holds(&self, check: &Check, keys: &Keys) -> bool {
        match *check {
            Check::Range { field, first, last } => keys.is_between(field, first, last),
            Check::Ranges { field, ranges } => contains(ranges.of(&self.ranges), keys.get(field)),
            Check::Address { field, item } => {
                self.addresses.get(item as usize).is_some_and(|addresses| match keys.wide(field) {
                    None => contains(addresses.narrow.of(&self.ranges), keys.get(field)),
                    Some(address) => contains(addresses.wide.of(&self.wide_ranges), address),
                })
            }
            Check::State { bits, negated } => (keys.state & bits != 0) != negated,
            Check::Connection { bits, negated } => keys.is_of_connection(bits, negated),
            Check::Mark { values, negated } => {
                let mark = keys.get(Field::Mark);
                values.of(&self.marks).iter().any(|&(value, mask)| mark & mask == value) != negated
            }
        }
    }

    /// States, as bits, in which the first rules of a list accept whatever else the packet is: those that nothing but a
    /// state check leads to `accept`, before any rule that could do something else in that state.
    pub(crate) fn accepted_states(rules: &[Compiled]) -> u8 {
        let (mut accepted, mut open) = (0, u8::MAX);
        for rule in rules {
            let (mut reached, mut is_exact) = (u8::MAX, usize::from(rule.check_count) <= NEAR);
            for check in rule.checks.iter().take(rule.check_count.into()) {
                match *check {
                    Check::State { bits, negated } => reached &= if negated { !bits } else { bits },
                    _ => is_exact = false,
                }
            }
            if is_exact && matches!(rule.first, Step::Final(Verdict::Accept)) {
                accepted |= reached & open;
            }
            open &= !reached;
        }
        accepted
    }

    /// The rule's actions in order.
    #[inline]
    pub(crate) fn steps<'s>(&'s self, rule: &'s Compiled) -> impl Iterator<Item = Step> + 's {
        let more = self.steps.iter().skip(rule.more_steps as usize).take(rule.more_step_count.into());
        std::iter::once(rule.first).chain(more.copied())
    }

    /// Compiles the rules of one list, of which the first is number `first`. Rules without effect and those that
    /// cannot be reached are left out.
    pub(crate) fn list(&mut self, rules: &[Rule], first: u32) -> (Vec<Compiled>, Vec<Conditions>) {
        let (mut compiled, mut conditions) = (Vec::new(), Vec::new());
        for (id, rule) in (first..).zip(rules) {
            let steps = self.actions(&rule.actions);
            let ([first, more_steps @ ..], Some(last)) = (&steps[..], steps.last()) else {
                continue;
            };
            let needs = Conditions::of(&rule.matches);
            let checks = self.checks(&needs);
            let (near, more_checks) = checks.split_at(checks.len().min(NEAR));
            let mut in_line = [Check::State { bits: 0, negated: false }; NEAR];
            in_line[..near.len()].copy_from_slice(near);
            compiled.push(Compiled {
                checks: in_line,
                first: *first,
                more_checks: offset(self.checks.len()),
                more_steps: offset(self.steps.len()),
                id: RuleId(id),
                check_count: u8::try_from(checks.len()).expect("a rule has at most 64 matches"),
                more_step_count: u8::try_from(more_steps.len()).expect("a rule has at most 64 actions"),
            });
            self.checks.extend(more_checks);
            self.steps.extend(more_steps);
            let always = needs.is_empty();
            conditions.push(needs);
            if always && last.ends_list() {
                break;
            }
        }
        (compiled, conditions)
    }

    fn actions(&mut self, actions: &[Action]) -> Vec<Step> {
        let mut steps = Vec::new();
        for action in actions {
            let step = match action {
                Action::Accept => Step::Final(Verdict::Accept),
                Action::Drop => Step::Final(Verdict::DropByRule),
                Action::Reject(kind) => Step::Final(Verdict::RejectByRule(*kind)),
                Action::Notrack => Step::Notrack,
                Action::Snat(snat) => {
                    self.snats.push(snat.clone());
                    Step::Final(Verdict::Snat { action: SnatRef(offset(self.snats.len() - 1)) })
                }
                Action::Masquerade { ports, random } => {
                    Step::Final(Verdict::Masquerade { ports: *ports, random: *random })
                }
                Action::Dnat(dnat) => {
                    self.dnats.push(dnat.clone());
                    Step::Final(Verdict::Dnat { action: DnatRef(offset(self.dnats.len() - 1)) })
                }
                Action::Netmap(prefix) => {
                    self.netmaps.push(*prefix);
                    Step::Final(Verdict::Netmap { prefix: NetmapRef(offset(self.netmaps.len() - 1)) })
                }
                Action::Jump(chain) => Step::Jump(*chain),
                Action::GoTo(chain) => Step::GoTo(*chain),
                Action::Return => Step::Return,
                Action::Mark(mark) => Step::Mark(*mark),
                Action::ConnMark(mark) => Step::ConnMark(*mark),
                Action::Count(counter) => Step::Count(*counter),
                Action::Continue => break,
            };
            steps.push(step);
            if step.ends_list() {
                break;
            }
        }
        steps
    }

    fn checks(&mut self, conditions: &Conditions) -> Vec<Check> {
        let mut checks = Vec::with_capacity(conditions.fields.len() + conditions.others.len());
        for Condition { field, narrow, wide } in &conditions.fields {
            checks.push(if let ([(first, last)], []) = (&narrow[..], &wide[..]) {
                Check::Range { field: *field, first: *first, last: *last }
            } else if field.is_address() {
                let narrow = Part::append(&mut self.ranges, narrow.iter().copied());
                let wide = Part::append(&mut self.wide_ranges, wide.iter().copied());
                self.addresses.push(Addresses { narrow, wide });
                Check::Address { field: *field, item: offset(self.addresses.len() - 1) }
            } else {
                Check::Ranges { field: *field, ranges: Part::append(&mut self.ranges, narrow.iter().copied()) }
            });
        }
        for other in &conditions.others {
            checks.push(match other {
                Other::State { bits, negated } => Check::State { bits: *bits, negated: *negated },
                Other::Connection { bits, negated } => Check::Connection { bits: *bits, negated: *negated },
                Other::Mark { values, negated } => {
                    Check::Mark { values: Part::append(&mut self.marks, values.iter().copied()), negated: *negated }
                }
            });
        }
        checks
    }
}

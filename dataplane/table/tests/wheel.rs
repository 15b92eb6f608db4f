//! The timer wheel against a model.
#![cfg(not(feature = "loom"))]

mod common;

use std::collections::BTreeMap;

use common::table_with;
use erhu_planes::connections::Class;
use erhu_table::{Slot, Table, Wheel, WorkerTable};
use proptest::prelude::*;

const LAP: u32 = 8191;

/// Entries of several classes, numbered.
fn entries(table: &Table, count: usize) -> (Vec<Slot>, BTreeMap<u32, usize>) {
    let mut worker = WorkerTable::new(0);
    let slots: Vec<_> = (0..count).map(|n| worker.alloc(table, Class::ALL[n % 4]).unwrap()).collect();
    let numbers = slots.iter().enumerate().map(|(n, slot)| (slot.entry(table).line(), n)).collect();
    (slots, numbers)
}

/// What fires in one call when everything that comes up ends.
fn fired(wheel: &mut Wheel, table: &Table, numbers: &BTreeMap<u32, usize>, now: u32) -> Vec<(u32, usize)> {
    let mut fired = Vec::new();
    assert!(wheel.advance(table, now, usize::MAX, |entry, tick| {
        fired.push((tick, numbers[&entry.line()]));
        None
    }));
    fired
}

#[test]
fn a_deadline_fires_when_its_tick_is_reached_and_not_before() {
    let table = table_with(10, 1, 4);
    let (slots, numbers) = entries(&table, 1);
    let mut wheel = Wheel::new();
    wheel.arm(&table, slots[0].entry(&table), 100);
    assert_eq!(fired(&mut wheel, &table, &numbers, 99), []);
    assert_eq!(fired(&mut wheel, &table, &numbers, 100), [(100, 0)]);
    wheel.arm(&table, slots[0].entry(&table), 100);
    assert_eq!(fired(&mut wheel, &table, &numbers, 100), [(100, 0)], "armed in the very tick");
    wheel.arm(&table, slots[0].entry(&table), 7);
    assert_eq!(fired(&mut wheel, &table, &numbers, 100), [(100, 0)], "armed too late");
    assert!(wheel.is_empty());
}

#[test]
fn of_one_tick_the_first_armed_fires_first_and_the_disarmed_never() {
    let table = table_with(10, 1, 4);
    let (slots, numbers) = entries(&table, 6);
    let mut wheel = Wheel::new();
    for slot in &slots {
        wheel.arm(&table, slot.entry(&table), 50);
    }
    for gone in [0, 3, 5, 5] {
        wheel.disarm(&table, slots[gone].entry(&table));
    }
    wheel.arm(&table, slots[1].entry(&table), 50);
    assert_eq!(wheel.len(), 3);
    assert_eq!(fired(&mut wheel, &table, &numbers, 60), [(50, 2), (50, 4), (50, 1)]);
}

#[test]
fn days_at_once_fire_in_the_order_of_deadlines_without_walking_through_them() {
    let table = table_with(10, 1, 4);
    let (slots, numbers) = entries(&table, 4);
    let mut wheel = Wheel::new();
    let deadlines = [6_912_000, 480, 6_911_999, 300_000];
    for (slot, deadline) in slots.iter().zip(deadlines) {
        wheel.arm(&table, slot.entry(&table), deadline);
    }
    let (mut ended, mut calls) = (Vec::new(), 0);
    assert!(wheel.advance(&table, 100_000_000, usize::MAX, |entry, tick| {
        calls += 1;
        let number = numbers[&entry.line()];
        if deadlines[number] > tick {
            return Some(deadlines[number]);
        }
        ended.push((tick, number));
        None
    }));
    assert_eq!(ended, [(480, 1), (300_000, 3), (6_911_999, 2), (6_912_000, 0)]);
    assert!(calls <= 2 * 6_912_000 / LAP + 45, "once a lap and entry: {calls}");
}

#[test]
fn a_budget_stops_in_the_middle_of_a_tick_and_the_next_call_goes_on_there() {
    let table = table_with(10, 1, 4);
    let (slots, numbers) = entries(&table, 5);
    let mut wheel = Wheel::new();
    for slot in &slots[..4] {
        wheel.arm(&table, slot.entry(&table), 10);
    }
    let mut seen = Vec::new();
    let mut step = |wheel: &mut Wheel, budget| {
        wheel.advance(&table, 20, budget, |entry, tick| {
            seen.push((tick, numbers[&entry.line()]));
            None
        })
    };
    assert!(!step(&mut wheel, 0));
    assert!(!step(&mut wheel, 3));
    wheel.arm(&table, slots[4].entry(&table), 5);
    assert!(!step(&mut wheel, 1));
    assert!(step(&mut wheel, 1), "nothing is left");
    assert_eq!(seen, [(10, 0), (10, 1), (10, 2), (10, 3), (10, 4)]);
}

#[test]
fn time_that_goes_back_changes_nothing() {
    let table = table_with(10, 1, 4);
    let (slots, numbers) = entries(&table, 1);
    let mut wheel = Wheel::new();
    assert_eq!(fired(&mut wheel, &table, &numbers, 1000), []);
    wheel.arm(&table, slots[0].entry(&table), 1001);
    assert_eq!(fired(&mut wheel, &table, &numbers, 500), []);
    assert_eq!(fired(&mut wheel, &table, &numbers, 1001), [(1001, 0)]);
}

#[derive(Clone, Debug)]
enum Step {
    Arm { entry: usize, after: u32 },
    Refresh { entry: usize, after: u32 },
    Disarm { entry: usize },
    Advance { by: u32, budget: usize },
}

fn delay() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0u32..40, 2 => 0u32..9000, 1 => 8180u32..8200, 1 => 0u32..200_000]
}

fn step() -> impl Strategy<Value = Step> {
    let entry = 0..24usize;
    prop_oneof![
        4 => (entry.clone(), delay()).prop_map(|(entry, after)| Step::Arm { entry, after }),
        2 => (entry.clone(), delay()).prop_map(|(entry, after)| Step::Refresh { entry, after }),
        1 => entry.prop_map(|entry| Step::Disarm { entry }),
        4 => (delay(), prop_oneof![Just(1), Just(3), Just(usize::MAX)]).prop_map(|(by, budget)| Step::Advance { by, budget }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_wheel_agrees_with_a_sorted_map(steps in proptest::collection::vec(step(), 1..200)) {
        let table = table_with(100, 1, 4);
        let (slots, numbers) = entries(&table, 24);
        let mut wheel = Wheel::new();
        // By tick and order of arming; and each entry's place there, if armed, and its true deadline.
        let mut model: BTreeMap<(u32, u64), usize> = BTreeMap::new();
        let mut places: [Option<(u32, u64)>; 24] = [None; 24];
        let mut deadlines = [0u32; 24];
        let (mut now, mut wheel_now, mut order) = (1u32, 0u32, 0u64);
        for step in steps {
            match step {
                Step::Arm { entry, after } => {
                    deadlines[entry] = now + after;
                    if let Some(old) = places[entry].take() {
                        model.remove(&old);
                    }
                    order += 1;
                    let place = (deadlines[entry].clamp(wheel_now, wheel_now + LAP), order);
                    places[entry] = Some(place);
                    model.insert(place, entry);
                    wheel.arm(&table, slots[entry].entry(&table), deadlines[entry]);
                }
                // A later packet: the deadline moves, the wheel is not told.
                Step::Refresh { entry, after } => deadlines[entry] = deadlines[entry].max(now + after),
                Step::Disarm { entry } => {
                    if let Some(old) = places[entry].take() {
                        model.remove(&old);
                    }
                    wheel.disarm(&table, slots[entry].entry(&table));
                }
                Step::Advance { by, budget } => {
                    now += by;
                    let mut calls = Vec::new();
                    let caught_up = wheel.advance(&table, now, budget, |entry, tick| {
                        let number = numbers[&entry.line()];
                        let again = Some(deadlines[number]).filter(|&deadline| deadline > tick);
                        calls.push((tick, number, again));
                        again
                    });
                    let mut expected = Vec::new();
                    let mut left = budget;
                    let model_caught_up = loop {
                        let Some((&(tick, seq), &entry)) = model.first_key_value().filter(|((tick, _), _)| *tick <= now) else {
                            wheel_now = now;
                            break true;
                        };
                        wheel_now = tick;
                        if left == 0 {
                            break false;
                        }
                        left -= 1;
                        model.remove(&(tick, seq));
                        let again = Some(deadlines[entry]).filter(|&deadline| deadline > tick);
                        expected.push((tick, entry, again));
                        places[entry] = again.map(|deadline| {
                            order += 1;
                            (deadline.min(tick + LAP), order)
                        });
                        if let Some(place) = places[entry] {
                            model.insert(place, entry);
                        }
                    };
                    prop_assert_eq!(&calls, &expected);
                    prop_assert_eq!(caught_up, model_caught_up);
                    prop_assert!(calls.is_sorted_by_key(|&(tick, ..)| tick));
                }
            }
            prop_assert_eq!(wheel.len(), model.len());
        }
    }
}

#[test]
fn looking_from_a_slot_sees_every_armed_entry_once_round_the_wheel() {
    let table = table_with(10, 1, 4);
    let (slots, numbers) = entries(&table, 5);
    let mut wheel = Wheel::new();
    for (slot, deadline) in slots.iter().zip([3, 70, 70, 5000, 64]) {
        wheel.arm(&table, slot.entry(&table), deadline);
    }
    let seen = |from: u32, most: usize| {
        let mut seen = Vec::new();
        wheel.look_from(&table, from, |entry| {
            seen.push(numbers[&entry.line()]);
            seen.len() == most
        });
        seen
    };
    assert_eq!(seen(0, 9), [0, 4, 1, 2, 3]);
    assert_eq!(seen(65, 9), [1, 2, 3, 0, 4]);
    assert_eq!(seen(5001, 9), [0, 4, 1, 2, 3]);
    assert_eq!(seen(65, 2), [1, 2]);
}

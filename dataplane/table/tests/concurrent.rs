//! What several workers do to the table at the same instant.
#![cfg(not(feature = "loom"))]

mod common;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use common::{end, insert, keys, table_with};
use erhu_planes::connections::Class;
use erhu_table::{Quiescence, Slot, Table, Taken, WorkerTable};

const FLOWS: u32 = 3000;
const ROUNDS: u32 = 100;

/// A small generator of its own, so that runs repeat as far as threads can.
fn shuffled(seed: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..FLOWS).collect();
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    for n in (1..order.len()).rev() {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        order.swap(n, state as usize % (n + 1));
    }
    order
}

/// Entries of a worker's segments that are not free.
fn used(table: &Table, worker: u32) -> u32 {
    let segments = table.region().directory().iter();
    let own = segments.filter(|segment| u32::from(segment.owner.load(Ordering::Relaxed)) == worker);
    own.map(|segment| segment.used.load(Ordering::Relaxed)).sum()
}

/// Opens every flow from one side; returns what this worker won.
fn open_all(table: &Table, worker: &mut WorkerTable, side: usize, order: &[u32]) -> Vec<(u32, Slot)> {
    let mut won = Vec::new();
    for (count, &flow) in order.iter().enumerate() {
        let mut keys = keys(Class::Udp4, flow);
        if side == 1 {
            keys.reverse();
        }
        match insert(table, worker, Class::Udp4, keys) {
            Ok(slot) => won.push((flow, slot)),
            Err(Taken::Original(other)) => {
                assert!(other.is_reply(), "the other side's connection has it as its reply")
            }
            Err(other) => panic!("{other:?}"),
        }
        if count % 64 == 63 {
            worker.quiesce(table);
        }
    }
    won
}

#[test]
fn two_workers_that_see_both_directions_at_once_make_one_connection_of_each_flow() {
    // An index smaller than it should be, so that many entries are displaced.
    let table = table_with(FLOWS * 9 / 10, 3, 4);
    let (done, barrier) = (AtomicBool::new(false), Barrier::new(2));
    let counts = [const { AtomicU32::new(0) }; 2];
    thread::scope(|scope| {
        let writers = [0u32, 1].map(|number| {
            let (table, barrier, counts, side) = (&table, &barrier, &counts, number as usize);
            scope.spawn(move || {
                let mut worker = WorkerTable::new(side);
                worker.quiesce(table);
                for round in 0..ROUNDS {
                    // The same order in both workers every other round: the same flow in the same instant.
                    let order = shuffled(if round % 2 == 0 { round } else { round * 2 + number });
                    barrier.wait();
                    let won = open_all(table, &mut worker, side, &order);
                    counts[side].store(u32::try_from(won.len()).unwrap(), Ordering::Relaxed);
                    barrier.wait();
                    let total: u32 = counts.iter().map(|count| count.load(Ordering::Relaxed)).sum();
                    assert_eq!(total, FLOWS, "one winner per flow");
                    for flow in 0..FLOWS {
                        let [a, b] = keys(Class::Udp4, flow).map(|key| table.find(&key).expect("each flow is found"));
                        assert_eq!(table.entry(a).line(), table.entry(b).line());
                        assert_ne!(a.direction(), b.direction());
                    }
                    let mut seen = 0;
                    table.region().for_each(|_| seen += 1);
                    assert_eq!(seen, FLOWS);
                    barrier.wait();
                    for (count, (flow, slot)) in won.into_iter().enumerate() {
                        let mine = keys(Class::Udp4, flow);
                        end(table, &mut worker, slot);
                        assert_eq!(mine.map(|key| table.find(&key)), [None, None]);
                        if count % 64 == 63 {
                            worker.quiesce(table);
                        }
                    }
                    barrier.wait();
                    worker.quiesce(table);
                }
                // Every entry comes back.
                while used(table, number) > 0 {
                    worker.quiesce(table);
                    thread::yield_now();
                }
                table.quiescence().unregister(side);
            })
        });
        scope.spawn(|| {
            // Whatever is found keeps its key until this thread is quiescent, dead or alive.
            table.quiescence().register(2);
            let mut found = 0u64;
            for round in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let flows = shuffled(round);
                let held: Vec<_> = flows[..32]
                    .iter()
                    .flat_map(|&flow| keys(Class::Udp4, flow))
                    .filter_map(|key| Some((key, table.find(&key)?)))
                    .collect();
                found += held.len() as u64;
                for _ in 0..50 {
                    for &(key, reference) in &held {
                        assert_eq!(table.entry(reference).key(reference.direction()), key);
                    }
                }
                table.quiescence().pass(2);
            }
            table.quiescence().unregister(2);
            assert!(found > 0, "the reader saw something");
        });
        for writer in writers {
            let result = writer.join();
            done.store(true, Ordering::Relaxed);
            result.unwrap();
        }
    });
}

#[test]
fn workers_that_fight_for_reply_tuples_share_them_out_exactly() {
    // As many original tuples as one likes, and few external ones: each goes to one connection at a time.
    const EXTERNAL: u32 = 200;
    let table = table_with(4 * EXTERNAL, 2, 4);
    let taken: Vec<AtomicU32> = (0..EXTERNAL).map(|_| AtomicU32::new(0)).collect();
    thread::scope(|scope| {
        for number in 0..2u32 {
            let (table, taken) = (&table, &taken);
            scope.spawn(move || {
                let mut worker = WorkerTable::new(number as usize);
                worker.quiesce(table);
                let mut mine: Vec<(u32, Slot)> = Vec::new();
                for step in 0..60_000u32 {
                    let external = step.wrapping_mul(2_654_435_761) % EXTERNAL;
                    let inside = keys(Class::Udp4, (1 << 20) + (number << 19) + step % 4096)[0];
                    let outside = keys(Class::Udp4, external)[1];
                    match insert(table, &mut worker, Class::Udp4, [inside, outside]) {
                        Ok(slot) => {
                            assert_eq!(taken[external as usize].fetch_add(1, Ordering::Relaxed), 0, "given twice");
                            mine.push((external, slot));
                        }
                        Err(Taken::Original(_) | Taken::Reply(_)) => {}
                        Err(Taken::IndexFull) => panic!("the index is large enough"),
                    }
                    if mine.len() > 50 {
                        let (external, slot) = mine.remove(step as usize % 50);
                        assert_eq!(taken[external as usize].fetch_sub(1, Ordering::Relaxed), 1);
                        end(table, &mut worker, slot);
                    }
                    if step % 32 == 0 {
                        worker.quiesce(table);
                    }
                }
                for (external, slot) in mine {
                    assert_eq!(taken[external as usize].fetch_sub(1, Ordering::Relaxed), 1);
                    end(table, &mut worker, slot);
                }
                table.quiescence().unregister(number as usize);
            });
        }
    });
    let mut seen = 0;
    table.region().for_each(|_| seen += 1);
    assert_eq!(seen, 0);
}

#[test]
fn what_a_publisher_takes_away_is_unused_when_its_grace_period_is_over() {
    let all = Quiescence::new(2);
    let (current, freed, done) = (AtomicU32::new(0), AtomicU32::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for number in 0..2u32 {
            let worker = number as usize;
            let (all, current, freed, done) = (all.clone(), &current, &freed, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    all.pass(worker);
                    let generation = current.load(Ordering::Acquire);
                    for _ in 0..20 {
                        assert!(freed.load(Ordering::Acquire) <= generation, "generation {generation} is in use");
                    }
                    if generation % 7 == number {
                        all.unregister(worker);
                    }
                }
                all.unregister(worker);
            });
        }
        for generation in 1..3000 {
            current.store(generation, Ordering::Release);
            let grace = all.grace();
            while !grace.is_over() {
                thread::yield_now();
            }
            freed.store(generation, Ordering::Release);
        }
        done.store(true, Ordering::Relaxed);
    });
}

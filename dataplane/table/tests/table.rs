//! What one worker sees of the table.
#![cfg(not(feature = "loom"))]

mod common;

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use common::{end, insert, keys, table, table_with, tuple};
use erhu_planes::connections::{
    Class, ConnectionsRegion, EXPECT, NO_REFERENCE, SEGMENT, SEGMENT_LINES, SlabLayout, flags,
};
use erhu_planes::region::Region;
use erhu_planes::tuple::Key;
use erhu_table::{ORIGINAL, REPLY, Reference, Slot, Table, TableError, Taken, WorkerTable};
use proptest::prelude::*;

const RELAXED: Ordering = Ordering::Relaxed;

/// A reference's raw bits, as [`Table::check`] takes them.
fn raw(reference: Reference) -> u32 {
    reference.line() << 1 | u32::from(reference.is_reply())
}

fn v4(key: Key) -> erhu_planes::tuple::Key4 {
    let Key::V4(key) = key else { panic!("not IPv4") };
    key
}

#[test]
fn a_connection_of_any_class_is_found_by_both_tuples_until_it_is_removed() {
    let table = table(100, 1);
    let mut worker = WorkerTable::new(0);
    for class in Class::ALL {
        let keys = keys(class, 7);
        let slot = insert(&table, &mut worker, class, keys).unwrap();
        for direction in [ORIGINAL, REPLY] {
            let found = table.find(&keys[direction]).unwrap();
            assert_eq!((found.direction(), found.is_reply()), (direction, direction == REPLY));
            let entry = table.entry(found);
            assert_eq!((entry.class(), entry.line()), (class, slot.entry(&table).line()));
            assert_eq!(entry.reference(direction), found);
            assert_eq!(entry.key(direction), keys[direction]);
            assert_eq!(entry.tcp().is_some(), class.is_tcp());
            assert_eq!(table.check(raw(found)), Some(found));
            assert_eq!(table.candidate(table.hash(&keys[direction])), Some(found));
        }
        let entry = slot.entry(&table);
        assert!(table.remove(entry, &keys[0], &keys[1]));
        assert!(!table.remove(entry, &keys[0], &keys[1]), "it is out already");
        assert_eq!(keys.map(|key| table.find(&key)), [None, None]);
    }
}

#[test]
fn a_burst_finds_its_packets_in_three_prefetched_passes() {
    let table = table(1000, 1);
    let mut worker = WorkerTable::new(0);
    for n in 0..500 {
        let _ = insert(&table, &mut worker, Class::Tcp4, keys(Class::Tcp4, n)).unwrap();
    }
    let burst: Vec<_> = (0..64).map(|n| v4(keys(Class::Tcp4, n * 31 % 600)[n as usize % 2])).collect();
    let hashes: Vec<_> = burst.iter().map(|key| table.hash4(key)).collect();
    hashes.iter().for_each(|&hash| table.prefetch_bucket(hash));
    let candidates: Vec<_> = hashes.iter().map(|&hash| table.candidate(hash)).collect();
    for &candidate in candidates.iter().flatten() {
        table.prefetch_hot(candidate);
        table.prefetch_tcp(candidate);
    }
    for (n, key) in burst.iter().enumerate() {
        let found = candidates[n].filter(|&c| table.matches4(c, key)).or_else(|| table.find4(hashes[n], key));
        assert_eq!(found.is_some(), n * 31 % 600 < 500);
        if let Some(found) = found {
            assert_eq!(found.is_reply(), n % 2 == 1);
            assert_eq!(table.hot4(found).key[1].load(RELAXED), key.0[1]);
        }
    }
}

#[test]
fn equal_tuples_in_two_zones_or_protocols_or_families_are_different_connections() {
    let table = table(100, 1);
    let mut worker = WorkerTable::new(0);
    let mut zoned = tuple(Class::Udp4, 1);
    let mut seen = Vec::new();
    for zone in 0..5 {
        zoned.zone = zone;
        let keys = [Key::from(&zoned), Key::from(&zoned.reversed().unwrap())];
        seen.push(insert(&table, &mut worker, Class::Udp4, keys).unwrap().entry(&table).line());
    }
    let _ = insert(&table, &mut worker, Class::Tcp4, keys(Class::Tcp4, 1)).unwrap();
    let _ = insert(&table, &mut worker, Class::Udp6, keys(Class::Udp6, 1)).unwrap();
    zoned.zone = 3;
    assert_eq!(table.entry(table.find(&Key::from(&zoned)).unwrap()).line(), seen[3]);
}

#[test]
fn either_tuple_that_is_taken_by_either_direction_refuses_the_whole_connection() {
    let table = table(100, 1);
    let mut worker = WorkerTable::new(0);
    let [a, b] = keys(Class::Udp4, 1);
    let [c, d] = keys(Class::Udp4, 2);
    let first = insert(&table, &mut worker, Class::Udp4, [a, b]).unwrap();
    let [original, reply] = [ORIGINAL, REPLY].map(|direction| first.entry(&table).reference(direction));
    let mut refused = |keys| insert(&table, &mut worker, Class::Udp4, keys).unwrap_err();
    assert_eq!(refused([a, b]), Taken::Original(original));
    assert_eq!(refused([b, a]), Taken::Original(reply), "the other direction came first on another worker");
    assert_eq!(refused([a, d]), Taken::Original(original));
    assert_eq!(refused([c, b]), Taken::Reply(reply), "its external port is taken");
    assert_eq!(refused([c, a]), Taken::Reply(original));
    assert_eq!((table.find(&c), table.find(&d)), (None, None));
}

#[test]
fn a_connection_with_itself_has_one_index_entry_that_comes_and_goes() {
    let table = table(100, 1);
    let mut worker = WorkerTable::new(0);
    let mut own = tuple(Class::Udp4, 1);
    (own.dst, own.dport) = (own.src, own.sport);
    let key = Key::from(&own);
    let slot = insert(&table, &mut worker, Class::Udp4, [key, key]).unwrap();
    assert!(!table.find(&key).unwrap().is_reply());
    end(&table, &mut worker, slot);
    assert_eq!(table.find(&key), None);
}

#[test]
fn a_reader_outside_sees_exactly_the_published_connections_with_consecutive_ids() {
    let table = table(10_000, 1);
    let reader = ConnectionsRegion::attached(table.region().region().reattach(&EXPECT).unwrap()).unwrap();
    let mut worker = WorkerTable::new(0);
    let mut slots: Vec<_> = (0..1000u32)
        .map(|n| {
            let class = Class::ALL[n as usize % 4];
            insert(&table, &mut worker, class, keys(class, n)).unwrap()
        })
        .collect();
    let ids = || {
        let mut ids = Vec::new();
        reader.for_each(|connection| ids.push(connection.id));
        ids.sort_unstable();
        ids
    };
    assert_eq!(ids(), (1..=1000).collect::<Vec<_>>());
    for slot in slots.drain(..500) {
        end(&table, &mut worker, slot);
    }
    assert_eq!(ids(), (501..=1000).collect::<Vec<_>>());
    assert_eq!(slots[0].entry(&table).id(), 501);
}

#[test]
fn two_workers_never_get_the_same_id() {
    let table = table(10, 2);
    let mut workers = [WorkerTable::new(0), WorkerTable::new(1)];
    let mut ids: Vec<_> = (0..1000).map(|n| workers[n / 3 % 2].next_id(&table)).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 1000);
    assert!(ids[0] > 0);
}

#[test]
fn exactly_the_capacity_is_admitted() {
    let table = table(3, 1);
    assert_eq!([0; 5].map(|_| table.try_admit()), [true, true, true, false, false]);
    assert_eq!((table.live(), table.capacity()), (3, 3));
    table.release_admission();
    assert!(table.try_admit());
    assert!(!table.try_admit());
}

#[test]
fn a_retired_entry_is_marked_dead_and_waits_for_every_worker() {
    let table = table(100, 2);
    let mut worker = WorkerTable::new(0);
    worker.quiesce(&table);
    table.quiescence().register(1);
    let key = keys(Class::Tcp4, 1);
    let slot = insert(&table, &mut worker, Class::Tcp4, key).unwrap();
    let line = slot.entry(&table).line();
    let held = table.find(&key[0]).unwrap();
    end(&table, &mut worker, slot);
    let entry = table.entry(held);
    assert_eq!(entry.id(), 0);
    for direction in [ORIGINAL, REPLY] {
        assert_ne!(entry.flags(direction).load(RELAXED) & flags::DEAD, 0);
    }
    let fresh = |worker: &mut WorkerTable| {
        let slot = worker.alloc(&table, Class::Tcp4).unwrap();
        let fresh = slot.entry(&table).line();
        worker.discard(&table, slot);
        fresh
    };
    for _ in 0..10 {
        worker.quiesce(&table);
        assert_ne!(fresh(&mut worker), line, "worker 1 may still look at it");
        assert!(table.matches4(held, &v4(key[0])));
    }
    table.quiescence().pass(1);
    worker.quiesce(&table);
    assert_eq!(fresh(&mut worker), line);
}

#[test]
fn alone_a_worker_gets_its_entries_back_after_two_quiescent_states() {
    let table = table(100, 4);
    let mut worker = WorkerTable::new(0);
    worker.quiesce(&table);
    let slot = insert(&table, &mut worker, Class::Udp4, keys(Class::Udp4, 1)).unwrap();
    let line = slot.entry(&table).line();
    end(&table, &mut worker, slot);
    worker.quiesce(&table);
    worker.quiesce(&table);
    assert_eq!(worker.alloc(&table, Class::Udp4).unwrap().entry(&table).line(), line);
}

#[test]
fn an_entry_that_is_used_again_is_blank() {
    for class in Class::ALL {
        let table = table(100, 1);
        let mut worker = WorkerTable::new(0);
        let slot = insert(&table, &mut worker, class, keys(class, 1)).unwrap();
        let (entry, line) = (slot.entry(&table), slot.entry(&table).line());
        for direction in [ORIGINAL, REPLY] {
            entry.flags(direction).store(0xffff, RELAXED);
            entry.last_seen(direction).store(5, RELAXED);
            entry.decision(direction).store(5, RELAXED);
            if class.is_v6() {
                entry.hot6(direction).1.packets.store(5, RELAXED);
            } else {
                entry.hot4(direction).packets.store(5, RELAXED);
            }
        }
        entry.cold().mapping.store(5, RELAXED);
        entry.cold().egress.store(5, RELAXED);
        entry.cold().state.store(5, RELAXED);
        if let Some(tcp) = entry.tcp() {
            tcp.max_end[1].store(5, RELAXED);
            tcp.last_scale.store(5, RELAXED);
        }
        end(&table, &mut worker, slot);
        worker.quiesce(&table);
        worker.quiesce(&table);
        let slot = worker.alloc(&table, class).unwrap();
        let entry = slot.entry(&table);
        assert_eq!(entry.line(), line);
        for direction in [ORIGINAL, REPLY] {
            assert_eq!(entry.flags(direction).load(RELAXED), 0);
            assert_eq!(entry.last_seen(direction).load(RELAXED), 0);
            assert_eq!(entry.decision(direction).load(RELAXED), 0);
            let packets = match class.is_v6() {
                true => &entry.hot6(direction).1.packets,
                false => &entry.hot4(direction).packets,
            };
            assert_eq!(packets.load(RELAXED), 0);
        }
        assert_eq!(entry.cold().mapping.load(RELAXED), NO_REFERENCE);
        assert_eq!(entry.cold().timer_prev.load(RELAXED), NO_REFERENCE);
        assert_eq!(entry.cold().egress.load(RELAXED), 0);
        assert_eq!(entry.cold().state.load(RELAXED), 0);
        assert_eq!(entry.cold().class.load(RELAXED), class as u8);
        if let Some(tcp) = entry.tcp() {
            assert_eq!((tcp.max_end[1].load(RELAXED), tcp.last_scale.load(RELAXED)), (0, 0));
        }
        worker.discard(&table, slot);
    }
}

#[test]
fn segments_are_leased_as_needed_and_given_back_when_empty() {
    let table = table_with(100_000, 1, 8);
    let mut worker = WorkerTable::new(0);
    worker.quiesce(&table);
    let per_segment = Class::Tcp4.per_segment();
    assert_eq!(table.slab_bytes_in_use(), 0);
    let mut slots: Vec<_> = (0..3 * per_segment + 1)
        .map(|n| insert(&table, &mut worker, Class::Tcp4, keys(Class::Tcp4, n)).unwrap())
        .collect();
    assert_eq!(table.slab_bytes_in_use(), 4 * SEGMENT);
    let used = || table.region().directory().iter().map(|entry| entry.used.load(RELAXED)).collect::<Vec<_>>();
    assert_eq!(used(), [per_segment, per_segment, per_segment, 1, 0, 0, 0, 0]);
    assert!(!worker.release_idle(&table));
    let kept = slots.remove(per_segment as usize + 5);
    for slot in slots {
        end(&table, &mut worker, slot);
    }
    assert!(!worker.release_idle(&table), "everything waits for its grace period");
    for _ in 0..3 * per_segment / 64 + 3 {
        worker.quiesce(&table);
    }
    assert_eq!(used(), [0, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!([0; 4].map(|_| worker.release_idle(&table)), [true, true, false, false], "one stays to be filled");
    assert_eq!(table.slab_bytes_in_use(), 2 * SEGMENT);
    assert_eq!(kept.entry(&table).id(), u64::from(per_segment) + 6);
    // The same memory serves another class, and is clean.
    let mut seen = 0;
    table.region().for_each(|_| seen += 1);
    assert_eq!(seen, 1);
    let slots: Vec<_> = (0..7 * Class::Udp6.per_segment())
        .map(|_| worker.alloc(&table, Class::Udp6).expect("six are free, and the one that stayed serves as well"))
        .collect();
    assert!(
        slots
            .iter()
            .all(|slot| slot.entry(&table).id() == 0 && slot.entry(&table).key(REPLY) == Key::V6(Default::default()))
    );
    assert!(worker.alloc(&table, Class::Udp6).is_none(), "the slab is full");
    assert!(worker.alloc(&table, Class::Tcp4).is_some());
}

#[test]
fn a_worker_without_memory_asks_again_after_a_while() {
    let table = table_with(100, 2, 1);
    let (mut rich, mut poor) = (WorkerTable::new(0), WorkerTable::new(1));
    let slot = rich.alloc(&table, Class::Tcp4).unwrap();
    assert!(poor.alloc(&table, Class::Tcp4).is_none());
    rich.discard(&table, slot);
    assert!(!rich.release_idle(&table), "it is the one that entries are taken from");
    for _ in 0..300 {
        poor.quiesce(&table);
    }
    assert!(poor.alloc(&table, Class::Tcp4).is_none());
    rich.quiesce(&table);
    assert!(poor.alloc(&table, Class::Tcp4).is_some(), "the other one heard that it has none, and had no use for it");
}

#[test]
fn segments_made_ready_ahead_are_used_first() {
    let table = table_with(100, 1, 3);
    assert_eq!(table.provision(2).unwrap(), 2);
    assert_eq!(table.provision(2).unwrap(), 2);
    let mut worker = WorkerTable::new(0);
    let slots = [Class::Udp4, Class::Tcp4, Class::Udp6].map(|class| worker.alloc(&table, class).unwrap());
    let lines = slots.each_ref().map(|slot| slot.entry(&table).line() / SEGMENT_LINES);
    assert_eq!(lines, [0, 1, 2]);
    assert_eq!(table.provision(2).unwrap(), 0, "there is none left");
}

#[test]
fn pages_of_segments_that_were_given_back_serve_again_or_go_and_come_back_zeroed() {
    let table = table_with(100_000, 1, 6);
    let mut worker = WorkerTable::new(0);
    worker.quiesce(&table);
    let backed = || (table.region().region().backed() - table.region().offset_of_line(0) as u64) / SEGMENT as u64;
    let bare = backed();
    let per_segment = Class::Udp4.per_segment();
    let slots: Vec<_> = (0..4 * per_segment)
        .map(|n| insert(&table, &mut worker, Class::Udp4, keys(Class::Udp4, n)).unwrap())
        .collect();
    assert_eq!(backed() - bare, 4);
    slots.into_iter().for_each(|slot| end(&table, &mut worker, slot));
    (0..4 * per_segment / 64 + 3).for_each(|_| worker.quiesce(&table));
    while worker.release_idle(&table) {}
    assert_eq!((table.slab_bytes_in_use(), backed() - bare), (SEGMENT, 4), "no system call by the worker");
    assert_eq!(table.provision(1).unwrap(), 1);
    assert_eq!(backed() - bare, 2, "one in use, one ready");
    let all = table.huge_pages();
    assert_eq!(all.segments + all.refused, 0, "what was used is used again, not prepared anew");
    // Three classes: the one that is ready, and two whose pages went.
    for class in [Class::Tcp4, Class::Udp6, Class::Tcp6] {
        let slots: Vec<_> = (0..class.per_segment()).map(|_| worker.alloc(&table, class).unwrap()).collect();
        assert!(slots.iter().all(|slot| {
            let entry = slot.entry(&table);
            let zero = if class.is_v6() { Key::V6(Default::default()) } else { Key::V4(Default::default()) };
            entry.id() == 0 && [ORIGINAL, REPLY].map(|side| entry.key(side)) == [zero; 2]
        }));
    }
    assert_eq!(backed() - bare, 4);
}

#[test]
fn raw_numbers_become_references_only_where_a_direction_lies() {
    let table = table_with(100, 1, 2);
    let mut worker = WorkerTable::new(0);
    let slot = worker.alloc(&table, Class::Udp6).unwrap();
    let lines = Class::Udp6.lines();
    let last = (Class::Udp6.per_segment() - 1) * lines;
    let good = [0, 2 << 1 | 1, lines << 1, last << 1, (last + 2) << 1 | 1];
    assert!(good.iter().all(|&raw| table.check(raw).is_some_and(|reference| self::raw(reference) == raw)));
    let bad = [1, 2 << 1, 1 << 1, 1 << 1 | 1, (last + lines) << 1, SEGMENT_LINES << 1, u32::MAX, u32::MAX - 1];
    assert!(bad.iter().all(|&raw| table.check(raw).is_none()));
    assert!(table.entry_at(lines).is_some());
    assert!([1, last + lines, SEGMENT_LINES, u32::MAX].iter().all(|&line| table.entry_at(line).is_none()));
    worker.discard(&table, slot);
}

#[test]
fn a_reference_of_a_larger_table_leads_nowhere_outside_of_a_smaller_one() {
    let (large, small) = (table_with(100, 1, 3), table_with(100, 1, 1));
    let mut worker = WorkerTable::new(0);
    let slots = Class::ALL[..3].iter().map(|&class| worker.alloc(&large, class).unwrap()).collect::<Vec<_>>();
    let foreign = slots[2].entry(&large).reference(REPLY);
    assert!(!small.matches4(foreign, &v4(keys(Class::Udp4, 1)[0])));
    let _ = (small.hot6(foreign), small.entry(foreign).cold().id.load(RELAXED));
    small.prefetch_hot(foreign);
    slots.into_iter().for_each(|slot| worker.discard(&large, slot));
}

#[test]
fn impossible_tables_are_refused() {
    let region = |segments| {
        let layout = SlabLayout { segments };
        ConnectionsRegion::create(Region::anonymous("connections", layout.size()).unwrap(), layout, 1, 1).unwrap()
    };
    assert!(matches!(Table::new(region(1), 0, 1, 1, false), Err(TableError::Capacity(0))));
    assert!(matches!(Table::new(region(1), 1, 0, 1, false), Err(TableError::Workers(0))));
    assert!(matches!(Table::new(region(1), 1, 65, 1, false), Err(TableError::Workers(65))));
    let writer = region(1);
    let reader = ConnectionsRegion::attached(writer.region().reattach(&EXPECT).unwrap()).unwrap();
    assert!(matches!(Table::new(reader, 1, 1, 1, false), Err(TableError::ReadOnly)));
}

#[test]
fn index_and_entry_of_a_tcp_connection_take_at_most_279_bytes() {
    let table = table_with(1_000_000, 1, 1);
    assert!(table.index_bytes() <= 23_000_000);
    assert_eq!(SEGMENT / Class::Tcp4.per_segment() as usize, 256);
}

#[derive(Clone, Debug)]
enum Step {
    Insert { original: u32, reply: u32 },
    End(u32),
    Quiesce,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0u32..80, 0u32..80).prop_map(|(original, reply)| Step::Insert { original, reply }),
        3 => (0u32..80).prop_map(Step::End),
        1 => Just(Step::Quiesce),
    ]
}

proptest! {
    #[test]
    fn the_table_agrees_with_two_maps(steps in proptest::collection::vec(step(), 1..400), v6: bool) {
        let class = if v6 { Class::Tcp6 } else { Class::Udp4 };
        let key = |n: u32| keys(class, n)[0];
        let table = table_with(64, 1, 1);
        let mut worker = WorkerTable::new(0);
        worker.quiesce(&table);
        // By tuple: the connection that has it and the direction; by connection: its two tuples.
        let mut tuples: HashMap<u32, (u32, usize)> = HashMap::new();
        let mut living: HashMap<u32, (Slot, [u32; 2])> = HashMap::new();
        for step in steps {
            match step {
                Step::Insert { original, reply } => {
                    let reference = |number: u32| tuples.get(&number)
                        .map(|&(line, direction)| table.check(line << 1).map(|r| table.entry(r).reference(direction)).unwrap());
                    let expected = match (reference(original), reference(reply)) {
                        (Some(taken), _) => Err(Taken::Original(taken)),
                        (None, Some(taken)) => Err(Taken::Reply(taken)),
                        (None, None) => Ok(()),
                    };
                    let result = insert(&table, &mut worker, class, [key(original), key(reply)]);
                    prop_assert_eq!(result.as_ref().map(|_| ()).map_err(|&taken| taken), expected);
                    if let Ok(slot) = result {
                        let line = slot.entry(&table).line();
                        prop_assert!(living.insert(line, (slot, [original, reply])).is_none(), "given twice");
                        tuples.insert(reply, (line, REPLY));
                        tuples.insert(original, (line, ORIGINAL));
                    }
                }
                Step::End(number) => {
                    let Some(&(line, _)) = tuples.get(&number) else { continue };
                    let (slot, numbers) = living.remove(&line).unwrap();
                    end(&table, &mut worker, slot);
                    for number in numbers {
                        tuples.remove(&number);
                    }
                }
                Step::Quiesce => worker.quiesce(&table),
            }
            for number in 0..80 {
                let found = table.find(&key(number)).map(|r| (table.entry(r).line(), r.direction()));
                prop_assert_eq!(found, tuples.get(&number).copied());
            }
        }
        let mut seen = 0;
        table.region().for_each(|_| seen += 1);
        prop_assert_eq!(seen, living.len());
    }
}

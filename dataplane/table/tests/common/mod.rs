//! What the table's tests share: a table in anonymous memory, and tuples by number.
#![allow(dead_code, reason = "each test file uses its part")]

use erhu_planes::connections::{Class, ConnectionsRegion, SlabLayout};
use erhu_planes::region::Region;
use erhu_planes::tuple::{Key, Tuple, proto};
use erhu_table::{ORIGINAL, REPLY, Slot, Table, Taken, WorkerTable};

/// A table for `capacity` connections over `segments` segments.
pub fn table_with(capacity: u32, workers: usize, segments: u32) -> Table {
    let layout = SlabLayout { segments };
    let region = Region::anonymous("connections", layout.size()).unwrap();
    let region = ConnectionsRegion::create(region, layout, capacity, 1).unwrap();
    Table::new(region, capacity, workers, 42, false).unwrap()
}

/// A table with as many segments as it should have.
pub fn table(capacity: u32, workers: usize) -> Table {
    table_with(capacity, workers, SlabLayout::for_capacity(capacity, workers).segments)
}

/// Tuple number `n` of a class's family and protocol.
pub fn tuple(class: Class, n: u32) -> Tuple {
    let (src, dst) = if class.is_v6() {
        (format!("fd00::{:x}:{:x}", n >> 16, n & 0xffff).parse(), "2001:db8::1".parse())
    } else {
        (format!("10.{}.{}.{}", n >> 16 & 255, n >> 8 & 255, n & 255).parse(), "192.0.2.1".parse())
    };
    let proto = if class.is_tcp() { proto::TCP } else { proto::UDP };
    Tuple { src: src.unwrap(), dst: dst.unwrap(), sport: 1000, dport: 53, proto, zone: (n >> 24) as u16 }
}

/// Both keys of flow `n`, as its opener's side sees them.
pub fn keys(class: Class, n: u32) -> [Key; 2] {
    let tuple = tuple(class, n);
    [Key::from(&tuple), Key::from(&tuple.reversed().unwrap())]
}

/// Reserves an entry, writes its keys and inserts it; gives the slot back if it is refused.
pub fn insert(table: &Table, worker: &mut WorkerTable, class: Class, keys: [Key; 2]) -> Result<Slot, Taken> {
    let slot = worker.alloc(table, class).expect("there is memory");
    let entry = slot.entry(table);
    entry.store_key(ORIGINAL, &keys[0]);
    entry.store_key(REPLY, &keys[1]);
    match table.insert(&slot, &keys[0], &keys[1]) {
        Ok(()) => {
            entry.publish(worker.next_id(table));
            Ok(slot)
        }
        Err(taken) => {
            worker.discard(table, slot);
            Err(taken)
        }
    }
}

/// Ends a connection.
pub fn end(table: &Table, worker: &mut WorkerTable, slot: Slot) {
    let entry = slot.entry(table);
    assert!(table.remove(entry, &entry.key(ORIGINAL), &entry.key(REPLY)));
    worker.retire(table, entry);
}

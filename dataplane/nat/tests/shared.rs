//! Translation without pools: as the kernel does.

mod common;

use std::collections::BTreeSet;

use common::*;
use erhu_nat::{ATTEMPTS, Exhausted, Lease, Nat, Target, Wish, kind};
use erhu_planes::Tuple;

const ADDRESS: &str = "203.0.113.1";

/// A connection table that knows nothing but reply tuples.
#[derive(Default)]
struct Table(BTreeSet<Tuple>);

impl Table {
    fn connect(&mut self, nat: &Nat, worker: &mut Worker, wish: &Wish<'_>) -> Result<Lease, Exhausted> {
        for attempt in 0.. {
            let lease = nat.choose(wish, attempt, &mut worker.rng, |_, _| true)?;
            if self.0.insert(reply(&wish.original, &lease)) {
                return Ok(lease);
            }
            nat.release_at_once(&lease);
        }
        unreachable!("attempts end");
    }
}

fn masquerade(original: Tuple) -> Wish<'static> {
    wish(Target::Address(ip(ADDRESS)), original)
}

#[test]
fn a_port_is_kept_towards_different_remotes_and_changed_towards_the_same() {
    let (nat, mut worker, mut table) = (Nat::new(1), Worker::new(1), Table::default());
    let a = table.connect(&nat, &mut worker, &masquerade(udp("10.0.0.1", 5000))).unwrap();
    let elsewhere = Tuple { dst: ip("192.0.2.2"), ..udp("10.0.0.2", 5000) };
    let b = table.connect(&nat, &mut worker, &masquerade(elsewhere)).unwrap();
    let c = table.connect(&nat, &mut worker, &masquerade(udp("10.0.0.3", 5000))).unwrap();
    assert_eq!((a.port, b.port, a.kind), (5000, 5000, kind::DIRECT));
    assert!(c.port != 5000 && c.port >= 1024);
    assert_eq!(nat.direct_status().ports_in_use, [(17, 3)]);
    [a, b, c].iter().for_each(|l| nat.release(l, 0));
    assert_eq!(nat.direct_status().ports_in_use, []);
    assert_eq!((nat.direct_status().given, nat.direct_status().returned), (4, 4));
}

/// O94.
#[test]
fn echo_ids_that_clash_go_upward() {
    let (nat, mut worker, mut table) = (Nat::new(1), Worker::new(1), Table::default());
    let ids = ["10.1.1.1", "10.1.1.3", "10.1.1.4"]
        .map(|host| table.connect(&nat, &mut worker, &masquerade(echo(host, 500))).unwrap().port);
    assert_eq!(ids, [500, 501, 502]);
    let last = ["10.1.1.1", "10.1.1.3"]
        .map(|host| table.connect(&nat, &mut worker, &masquerade(echo(host, u16::MAX))).unwrap().port);
    assert_eq!(last, [u16::MAX, 0]);
}

/// O95: one port, taken; the second connection is refused and counted, the first stays.
#[test]
fn a_single_port_that_is_taken_exhausts() {
    let (nat, mut worker, mut table) = (Nat::new(1), Worker::new(1), Table::default());
    let one = |original| Wish { ports: Some(ports(34_567, 34_567)), ..masquerade(original) };
    assert_eq!(table.connect(&nat, &mut worker, &one(tcp("10.0.0.1", 40_000))).unwrap().port, 34_567);
    assert_eq!(table.connect(&nat, &mut worker, &one(tcp("10.0.0.1", 40_001))), Err(Exhausted::Ports));
    assert_eq!((nat.direct_status().exhausted, nat.direct_status().ports_in_use), (1, vec![(6, 1)]));
}

/// O92.
#[test]
fn every_port_of_a_small_range_is_found() {
    let (nat, mut worker, mut table) = (Nat::new(1), Worker::new(1), Table::default());
    let mut given = BTreeSet::new();
    for sport in 0..100u16 {
        let small = Wish { ports: Some(ports(34_560, 34_659)), random: true, ..masquerade(tcp("10.0.0.1", sport)) };
        given.insert(table.connect(&nat, &mut worker, &small).unwrap().port);
    }
    assert_eq!(given, (34_560..34_660).collect());
}

#[test]
fn each_attempt_gives_another_port() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let asked = masquerade(udp("10.0.0.1", 5000));
    let mut given = BTreeSet::new();
    for attempt in 0..ATTEMPTS {
        let liked = |_, port: u16| port.is_multiple_of(3);
        let lease = nat.choose(&asked, attempt, &mut worker.rng, liked).unwrap();
        assert!(given.insert(lease.port), "attempt {attempt} gives {} again", lease.port);
        if (1..80).contains(&attempt) {
            assert_eq!(lease.port % 3, 0, "what is preferred comes first");
        }
        nat.release_at_once(&lease);
    }
    assert_eq!(nat.choose(&asked, ATTEMPTS, &mut worker.rng, |_, _| true), Err(Exhausted::Ports));
}

/// RFC 4787 REQ-3a.
#[test]
fn a_changed_port_stays_in_its_class() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    for (sport, class) in [(100, 1..=511), (53, 1..=511), (700, 600..=1023), (1024, 1024..=65535), (9, 1..=511)] {
        for attempt in 1..20 {
            let wish = masquerade(udp("10.0.0.1", sport));
            let port = nat.choose(&wish, attempt, &mut worker.rng, |_, _| true).unwrap().port;
            assert!(class.contains(&port), "{sport} became {port}");
        }
    }
}

#[test]
fn ports_held_alone_near_the_start_of_a_search_are_stepped_over() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let pools = compile(&nat, &[pool("p", ADDRESS)]);
    // All but the last ten of the range belong to a host alone.
    for sport in 1024..=65_525u16 {
        let host = format!("10.9.{}.1", sport >> 12);
        assert_eq!(worker.pool(&nat, &pools, 0, udp(&host, sport)).unwrap().port, sport);
    }
    let mut given = BTreeSet::new();
    for attempt in 0..10 {
        let lease = nat.choose(&masquerade(udp("10.0.0.1", 2000)), attempt, &mut worker.rng, |_, _| true).unwrap();
        given.insert(lease.port);
        nat.release_at_once(&lease);
    }
    assert_eq!(given, (65_526..=65_535).collect());
    assert_eq!(
        nat.choose(&masquerade(udp("10.0.0.1", 2000)), 10, &mut worker.rng, |_, _| true),
        Err(Exhausted::Ports)
    );
}

#[test]
fn addresses_are_spread_by_source_and_destination_and_persistent_ones_by_source_alone() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let ranges = [range("203.0.113.1-203.0.113.2"), range("2001:db8::1"), range("203.0.113.9-203.0.113.10")];
    for persistent in [false, true] {
        let target = Target::Addresses { ranges: &ranges, persistent };
        let mut of_host = BTreeSet::new();
        let mut all = BTreeSet::new();
        for n in 0..200u8 {
            let to = Tuple { dst: [192, 0, 2, n].into(), ..udp("10.0.0.1", 5000) };
            of_host.insert(worker.ask(&nat, &wish(target, to)).unwrap().address);
            let from = udp(&format!("10.0.0.{n}"), 6000);
            all.insert(worker.ask(&nat, &wish(target, from)).unwrap().address);
        }
        assert_eq!((of_host.len(), all.len()), (if persistent { 1 } else { 4 }, 4));
        assert!(all.iter().all(|a| ranges.iter().any(|r| r.contains(*a))));
    }
    let none = Target::Addresses { ranges: &ranges[1..2], persistent: false };
    assert_eq!(worker.ask(&nat, &wish(none, udp("10.0.0.1", 1))), Err(Exhausted::Family));
}

//! Connections that come in by mappings, and destinations among several.

mod common;

use std::collections::BTreeSet;

use common::*;
use erhu_nat::{Nat, Rng};
use erhu_planes::Tuple;
use erhu_planes::program::{AddressRange, Behaviour, Pool};
use erhu_planes::tuple::proto;

#[test]
fn a_mapping_is_a_way_in_and_lives_until_its_last_use() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let pools = compile(&nat, &[pool("p", "203.0.113.1")]);
    let lease = worker.pool(&nat, &pools, 0, udp("10.0.0.1", 5000)).unwrap();
    let at = |port| nat.way_in(0, ip("203.0.113.1"), port, proto::UDP);
    let way = at(5000).unwrap();
    assert_eq!((way.inside.zone, way.inside.address, way.inside.port), (1, ip("10.0.0.1"), 5000));
    assert_eq!(way.mapping, lease.mapping);
    assert_eq!((at(5001), nat.way_in(1, ip("203.0.113.1"), 5000, proto::UDP)), (None, None));
    assert_eq!(nat.way_in(0, ip("203.0.113.1"), 5000, proto::TCP), None);
    let entered = nat.enter(0, ip("203.0.113.1"), 5000, proto::UDP).unwrap();
    assert_eq!(entered, way);
    nat.release(&lease, 0);
    assert_eq!((at(5000), in_use(&nat, &pools, 0)), (Some(way), 1));
    nat.leave(entered.mapping, Some(0));
    assert_eq!((at(5000), in_use(&nat, &pools, 0)), (None, 0));
    assert_eq!(nat.status(&pools)[0].hosts, 0);
}

#[test]
fn ports_shared_between_remotes_are_no_way_in() {
    for mapping in [Behaviour::AddressDependent, Behaviour::AddressPortDependent] {
        let (nat, mut worker) = (Nat::new(1), Worker::new(1));
        let pools = compile(&nat, &[Pool { mapping, ..pool("p", "203.0.113.1") }]);
        worker.pool(&nat, &pools, 0, udp("10.0.0.1", 5000)).unwrap();
        assert_eq!(nat.way_in(0, ip("203.0.113.1"), 5000, proto::UDP), None);
    }
}

#[test]
fn filtering_by_address_admits_whom_the_mapping_has_a_connection_to() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let by_address = Pool { filtering: Behaviour::AddressDependent, ..pool("p", "203.0.113.1") };
    let pools = compile(&nat, &[by_address]);
    let towards = |n: u8| Tuple { dst: [192, 0, 2, n].into(), ..udp("10.0.0.1", 5000) };
    let leases = [1, 1, 2].map(|n| worker.pool(&nat, &pools, 0, towards(n)).unwrap());
    let mapping = leases[0].mapping;
    let admitted = || [1, 2, 3].map(|n| nat.admits(pools.get(0).unwrap(), mapping, [192, 0, 2, n].into()));
    assert_eq!(admitted(), [true, true, false]);
    nat.release(&leases[0], 0);
    assert_eq!(admitted(), [true, true, false]);
    nat.release(&leases[1], 0);
    assert_eq!(admitted(), [false, true, false]);
    // Whoever came in holds the mapping and opens it to nobody.
    nat.enter(0, ip("203.0.113.1"), 5000, proto::UDP).unwrap();
    nat.release(&leases[2], 0);
    assert_eq!(admitted(), [false; 3]);
    nat.leave(mapping, Some(0));
    assert_eq!(in_use(&nat, &pools, 0), 0);
}

#[test]
fn a_destination_of_several_is_the_same_for_the_same_ends_and_all_are_used() {
    let nat = Nat::new(1);
    let ranges = [
        AddressRange { first: ip("10.0.0.1"), last: ip("10.0.0.3") },
        AddressRange { first: ip("10.0.1.1"), last: ip("10.0.1.1") },
        AddressRange { first: ip("fd00::1"), last: ip("fd00::2") },
    ];
    let from = |n: u8, to: u8| Tuple { dst: [192, 0, 2, to].into(), ..udp(&format!("198.51.100.{n}"), 1) };
    let choose = |n, to, persistent| nat.destination(&ranges, &from(n, to), persistent, None).unwrap();
    let all: BTreeSet<_> = (0..=255).map(|n| choose(n, 1, false)).collect();
    assert_eq!(all, ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1"].map(ip).into());
    assert!(
        (0..=255).all(|n| choose(n, 1, false) == choose(n, 1, false) && choose(n, 1, true) == choose(n, 2, true))
    );
    assert!((0..=255).any(|n| choose(n, 1, false) != choose(n, 2, false)));
    let mut rng = Rng::new(7);
    let at_random: BTreeSet<_> =
        (0..200).map(|_| nat.destination(&ranges, &from(1, 1), true, Some(&mut rng)).unwrap()).collect();
    assert_eq!(at_random, all);
    assert_eq!(nat.destination(&ranges[2..], &from(1, 1), false, None), None, "none is of its family");
}

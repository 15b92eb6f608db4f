//! How pools give ports and addresses.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::*;
use erhu_nat::{ATTEMPTS, Exhausted, InUse, Inside, Lease, Nat, Target, Wish, kind};
use erhu_planes::Tuple;
use erhu_planes::program::{Behaviour, Pool};
use erhu_planes::tuple::proto;

/// F10: one inside endpoint keeps one external endpoint whatever the destination.
#[test]
fn an_inside_endpoint_has_one_external_endpoint_towards_everyone() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let pools = compile(&nat, &[pool("p", "203.0.113.1-203.0.113.4")]);
    let first = worker.pool(&nat, &pools, 0, udp("10.0.0.1", 5000)).unwrap();
    let mut leases = vec![first];
    for n in 2..200u8 {
        let elsewhere = Tuple { dst: [192, 0, 2, n].into(), dport: u16::from(n), ..udp("10.0.0.1", 5000) };
        let lease = worker.pool(&nat, &pools, 0, elsewhere).unwrap();
        assert_eq!((lease.address, lease.port), (first.address, first.port));
        leases.push(lease);
    }
    assert_eq!(in_use(&nat, &pools, 0), 1);
    for lease in &leases[1..] {
        nat.release(lease, 0);
        assert_eq!(in_use(&nat, &pools, 0), 1);
    }
    nat.release(&leases[0], 0);
    assert_eq!(in_use(&nat, &pools, 0), 0);
    assert_eq!(nat.status(&pools)[0].hosts, 0);
}

#[test]
fn the_same_endpoint_in_two_zones_is_two_hosts() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let pools = compile(&nat, &[pool("p", "203.0.113.1")]);
    let a = worker.pool(&nat, &pools, 0, udp("10.0.0.1", 5000)).unwrap();
    let b = worker.pool(&nat, &pools, 0, Tuple { zone: 2, ..udp("10.0.0.1", 5000) }).unwrap();
    assert_eq!(a.port, 5000);
    assert_ne!(b.port, 5000);
    assert_eq!(nat.status(&pools)[0].hosts, 2);
}

/// T5.
#[test]
fn a_pool_of_a_hundred_ports_serves_exactly_a_hundred_endpoints() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let pools = compile(&nat, &[Pool { ports: ports(2000, 2099), ..pool("p", "203.0.113.1") }]);
    let results: Vec<_> = (1..=200).map(|sport| worker.pool(&nat, &pools, 0, tcp("10.0.0.1", sport))).collect();
    let given: Vec<Lease> = results.iter().filter_map(|r| r.ok()).collect();
    assert_eq!(given.len(), 100);
    assert!(results[100..].iter().all(|r| *r == Err(Exhausted::Ports)));
    let distinct: BTreeSet<u16> = given.iter().map(|l| l.port).collect();
    assert_eq!(distinct, (2000..2100).collect());
    assert_eq!(nat.status(&pools)[0].exhausted, 100);
    // What is in use goes on; a port that comes back serves the next.
    nat.release(&given[42], 0);
    let next = worker.pool(&nat, &pools, 0, tcp("10.0.0.9", 9)).unwrap();
    assert_eq!(next.port, given[42].port);
    assert_eq!(in_use(&nat, &pools, 0), 100);
}

/// T28.
#[test]
fn three_ports_serve_three_of_five() {
    for mapping in [Behaviour::EndpointIndependent, Behaviour::AddressDependent, Behaviour::AddressPortDependent] {
        let (nat, mut worker) = (Nat::new(1), Worker::new(1));
        let small = Pool { ports: ports(1025, 1027), mapping, ..pool("p", "203.0.113.1") };
        let pools = compile(&nat, &[small]);
        let mut table = BTreeSet::new();
        let mut ports = BTreeSet::new();
        for sport in 1125..1130 {
            let original = udp("10.0.0.1", sport);
            let wish = wish(Target::Pool(pools.get(0).unwrap()), original);
            for attempt in 0.. {
                let Ok(lease) = nat.choose(&wish, attempt, &mut worker.rng, |_, _| true) else { break };
                if table.insert(reply(&original, &lease)) {
                    ports.insert(lease.port);
                    break;
                }
                nat.release_at_once(&lease);
            }
        }
        assert_eq!(ports, [1025, 1026, 1027].into(), "{mapping:?}");
        assert_eq!(in_use(&nat, &pools, 0), 3);
    }
}

/// T7, T1.
#[test]
fn tcp_and_udp_keep_the_same_port_beside_each_other_and_echo_its_id() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let pools = compile(&nat, &[pool("p", "203.0.113.1")]);
    for original in [tcp("10.0.0.1", 5000), udp("10.0.0.1", 5000), echo("10.0.0.1", 5000), echo("10.0.0.2", 7)] {
        let lease = worker.pool(&nat, &pools, 0, original).unwrap();
        assert_eq!((lease.port, lease.address, lease.kind), (original.sport, ip("203.0.113.1"), kind::ENDPOINT));
    }
    assert_eq!(nat.status(&pools)[0].ports_in_use, [(1, 2), (6, 1), (17, 1)]);
}

/// T8: each host keeps one address, and hosts are spread as evenly as can be.
#[test]
fn a_hundred_hosts_share_sixty_four_addresses_evenly() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let pools = compile(&nat, &[pool("p", "203.0.113.1-203.0.113.64")]);
    let mut address_of = BTreeMap::new();
    for round in 0..5 {
        for host in 0..100u8 {
            let lease = worker.pool(&nat, &pools, 0, udp(&format!("10.0.0.{host}"), 1024 + round)).unwrap();
            assert_eq!(*address_of.entry(host).or_insert(lease.address), lease.address);
        }
    }
    let mut hosts: BTreeMap<_, u32> = BTreeMap::new();
    address_of.values().for_each(|address| *hosts.entry(*address).or_default() += 1);
    assert_eq!(hosts.len(), 64);
    assert!(hosts.values().all(|n| (1..=2).contains(n)), "{hosts:?}");
    assert_eq!(nat.status(&pools)[0].hosts, 100);
}

#[test]
fn a_host_that_left_may_come_back_to_another_address() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let pools = compile(&nat, &[pool("p", "203.0.113.1-203.0.113.2")]);
    let first = worker.pool(&nat, &pools, 0, udp("10.0.0.1", 1)).unwrap();
    nat.release(&first, 0);
    let second = worker.pool(&nat, &pools, 0, udp("10.0.0.1", 1)).unwrap();
    assert_ne!(first.address, second.address);
}

#[test]
fn hosts_that_leave_make_room_for_others_on_their_addresses() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let pools = compile(&nat, &[pool("p", "203.0.113.1-203.0.113.4")]);
    let leases: Vec<Lease> =
        (0..16).map(|n| worker.pool(&nat, &pools, 0, udp(&format!("10.0.0.{n}"), 1024)).unwrap()).collect();
    let emptied = leases[2].address;
    leases.iter().filter(|l| l.address == emptied).for_each(|l| nat.release(l, 0));
    for n in 100..104 {
        assert_eq!(worker.pool(&nat, &pools, 0, udp(&format!("10.0.0.{n}"), 1024)).unwrap().address, emptied);
    }
}

#[test]
fn a_paired_host_stays_on_its_address_even_when_that_is_full_and_an_arbitrary_one_goes_on() {
    for paired in [true, false] {
        let (nat, mut worker) = (Nat::new(1), Worker::new(1));
        let two = Pool { ports: ports(1024, 1033), paired, ..pool("p", "203.0.113.1-203.0.113.2") };
        let pools = compile(&nat, &[two]);
        let leases: Vec<_> = (0..25).map(|n| worker.pool(&nat, &pools, 0, udp("10.0.0.1", 3000 + n))).collect();
        let given: Vec<Lease> = leases.iter().filter_map(|l| l.ok()).collect();
        let addresses: BTreeSet<_> = given.iter().map(|l| l.address).collect();
        assert_eq!((given.len(), addresses.len()), if paired { (10, 1) } else { (20, 2) });
        assert_eq!(nat.status(&pools)[0].exhausted, if paired { 15 } else { 5 });
    }
}

#[test]
fn a_new_host_is_not_bound_to_an_address_that_another_host_filled() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let two = Pool { ports: ports(1024, 1033), ..pool("p", "203.0.113.1-203.0.113.2") };
    let pools = compile(&nat, &[two]);
    let full: Vec<Lease> =
        (0..10).map(|n| worker.pool(&nat, &pools, 0, udp("10.0.0.1", 3000 + n)).unwrap()).collect();
    let b = worker.pool(&nat, &pools, 0, udp("10.0.0.2", 1)).unwrap();
    let c = worker.pool(&nat, &pools, 0, udp("10.0.0.3", 1)).unwrap();
    assert_eq!((b.address, c.address), (ip("203.0.113.2"), ip("203.0.113.2")));
    assert!(full.iter().all(|l| l.address == ip("203.0.113.1")));
    // Counted where it really is: the next host goes to the first address, which has one host less.
    nat.release(&full[0], 0);
    assert_eq!(worker.pool(&nat, &pools, 0, udp("10.0.0.4", 1)).unwrap().address, ip("203.0.113.1"));
}

/// T115, RFC 6056.
#[test]
fn ports_are_random_inside_the_range_neither_in_sequence_nor_repeated() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let range = Pool { ports: ports(10_000, 19_999), preserve_port: false, ..pool("p", "203.0.113.1") };
    let pools = compile(&nat, &[range]);
    let given: Vec<u16> =
        (0..5000).map(|n| worker.pool(&nat, &pools, 0, udp("10.0.0.1", 1024 + n)).unwrap().port).collect();
    assert!(given.iter().all(|p| (10_000..20_000).contains(p)));
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 5000);
    let in_sequence = given.windows(2).filter(|w| w[1].abs_diff(w[0]) <= 2).count();
    assert!(in_sequence < 20, "{in_sequence}");
    // Each tenth of the range gets about its share.
    let mut tenths = [0u32; 10];
    given.iter().for_each(|p| tenths[usize::from((p - 10_000) / 1000)] += 1);
    assert!(tenths.iter().all(|n| (350..650).contains(n)), "{tenths:?}");
    let other = compile(&Nat::new(1), &[pool("q", "203.0.113.1")]);
    assert_eq!(other.get(0).unwrap().addresses(), 1);
}

#[test]
fn one_seed_gives_one_result_and_another_seed_another() {
    let run = |seed| {
        let (nat, mut worker) = (Nat::new(seed), Worker::new(seed));
        let pools = compile(&nat, &[Pool { preserve_port: false, ..pool("p", "203.0.113.1-203.0.113.9") }]);
        let one = |n: u16| worker.pool(&nat, &pools, 0, udp(&format!("10.0.{}.{}", n % 7, n % 31), n)).unwrap();
        (0..500).map(one).map(|l| (l.address, l.port)).collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn parity_is_kept_while_there_are_ports_of_it_and_no_reason_to_refuse() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let range = Pool { ports: ports(2000, 2199), preserve_port: false, ..pool("p", "203.0.113.1") };
    let pools = compile(&nat, &[range]);
    let odd: Vec<u16> =
        (0..100).map(|n| worker.pool(&nat, &pools, 0, udp("10.0.0.1", 2 * n + 1)).unwrap().port).collect();
    assert!(odd.iter().all(|p| p % 2 == 1));
    assert_eq!(worker.pool(&nat, &pools, 0, udp("10.0.0.2", 1)).unwrap().port % 2, 0);
    assert_eq!(worker.pool(&nat, &pools, 0, udp("10.0.0.2", 2)).unwrap().port % 2, 0);
}

#[test]
fn precedence_is_mapping_then_port_then_preference_then_parity() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let pools = compile(&nat, &[pool("p", "203.0.113.1")]);
    let spec = Target::Pool(pools.get(0).unwrap());
    let liked = |_, port: u16| port % 16 == 5;
    let mut ask = |original| nat.choose(&wish(spec, original), 0, &mut worker.rng, liked).unwrap().port;
    assert_eq!(ask(udp("10.0.0.1", 4000)), 4000, "kept although another one is preferred");
    assert_eq!(ask(udp("10.0.0.2", 4000)) % 16, 5, "preferred although of the wrong parity");
    assert_eq!(ask(udp("10.0.0.1", 4000)), 4000, "the mapping's");
    let never = |_, _| false;
    let port = nat.choose(&wish(spec, udp("10.0.0.3", 4000)), 0, &mut worker.rng, never).unwrap().port;
    assert_eq!(port % 2, 0, "nothing is preferred: the parity counts");
}

#[test]
fn random_and_another_range_override_preservation() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let pools = compile(&nat, &[pool("p", "203.0.113.1")]);
    let target = Target::Pool(pools.get(0).unwrap());
    let random: Vec<u16> = (5000..5020)
        .map(|n| worker.ask(&nat, &Wish { random: true, ..wish(target, udp("10.0.0.1", n)) }).unwrap().port)
        .collect();
    assert!(random.iter().zip(5000..).filter(|(port, sport)| **port == *sport).count() <= 1);
    let other = Wish { ports: Some(ports(40_000, 40_009)), ..wish(target, udp("10.0.0.1", 6000)) };
    assert!((40_000..40_010).contains(&worker.ask(&nat, &other).unwrap().port));
    // Out of the pool's range: not kept (RFC 4787 REQ-3a).
    assert!(worker.pool(&nat, &pools, 0, udp("10.0.0.1", 80)).unwrap().port >= 1024);
}

/// O94, with a pool and with a plain address; ids are kept whatever the range of ports.
#[test]
fn echo_ids_that_clash_go_upward() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let pools = compile(&nat, &[pool("p", "203.0.113.1")]);
    let ids: Vec<u16> = ["10.1.1.1", "10.1.1.3", "10.1.1.4"]
        .iter()
        .map(|host| worker.pool(&nat, &pools, 0, echo(host, 500)).unwrap().port)
        .collect();
    assert_eq!(ids, [500, 501, 502]);
    let last = worker.pool(&nat, &pools, 0, echo("10.1.1.1", u16::MAX)).unwrap().port;
    let wrapped = worker.pool(&nat, &pools, 0, echo("10.1.1.3", u16::MAX)).unwrap().port;
    assert_eq!((last, wrapped), (u16::MAX, 0));
}

#[test]
fn a_mapping_that_clashes_cannot_change_but_a_new_one_tries_another_port() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let pools = compile(&nat, &[pool("p", "203.0.113.1")]);
    let asked = wish(Target::Pool(pools.get(0).unwrap()), udp("10.0.0.1", 5000));
    let first = worker.ask(&nat, &asked).unwrap();
    let mut again = |attempt| nat.choose(&asked, attempt, &mut worker.rng, |_, _| true);
    assert_eq!(again(1), Err(Exhausted::Clash));
    assert_eq!(nat.status(&pools)[0].exhausted, 0);
    nat.release_at_once(&first);
    let second = again(1).unwrap();
    assert_ne!(second.port, 5000);
    nat.release_at_once(&second);
    assert_eq!(again(ATTEMPTS), Err(Exhausted::Ports));
    assert_eq!((in_use(&nat, &pools, 0), nat.status(&pools)[0].hosts), (0, 0));
}

/// T88.
#[test]
fn a_freed_port_rests_unless_it_was_closed_in_order() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let resting = Pool { ports: ports(2000, 2001), reuse_delay_ms: 120_000, ..pool("p", "203.0.113.1") };
    let pools = compile(&nat, &[resting]);
    let target = Target::Pool(pools.get(0).unwrap());
    let mut ask = |sport, now_tick| worker.ask(&nat, &Wish { now_tick, ..wish(target, udp("10.0.0.1", sport)) });
    let (a, b) = (ask(1, 0).unwrap(), ask(2, 0).unwrap());
    nat.release(&a, 100);
    nat.release_at_once(&b);
    assert_eq!(in_use(&nat, &pools, 0), 0, "a resting port is nobody's");
    assert_eq!(nat.mapping_at(0, a.address, a.port, a.proto, a.remote), None);
    assert_eq!(ask(3, 101).unwrap().port, b.port);
    assert_eq!(ask(4, 100 + 120 * 16 - 1), Err(Exhausted::Ports));
    assert_eq!(ask(4, 100 + 120 * 16).unwrap().port, a.port);
}

#[test]
fn every_resting_port_comes_back() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let resting = Pool { ports: ports(2000, 2999), reuse_delay_ms: 1000, ..pool("p", "203.0.113.1") };
    let pools = compile(&nat, &[resting]);
    let target = Target::Pool(pools.get(0).unwrap());
    for round in 0..3u32 {
        let mut ask = |sport| {
            worker.ask(&nat, &Wish { now_tick: round * 100, ..wish(target, udp("10.0.0.1", sport)) }).unwrap()
        };
        let leases: Vec<Lease> = (0..1000).map(&mut ask).collect();
        leases.iter().for_each(|l| nat.release(l, round * 100));
    }
}

#[test]
fn ports_are_shared_towards_different_remotes_by_address_and_port_dependent_pools() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let small =
        Pool { ports: ports(2000, 2000), mapping: Behaviour::AddressPortDependent, ..pool("p", "203.0.113.1") };
    let pools = compile(&nat, &[small]);
    let mut leases = Vec::new();
    for n in 1..=50 {
        let original = Tuple { dst: [192, 0, 2, n].into(), ..udp(&format!("10.0.0.{n}"), 4000) };
        let lease = worker.pool(&nat, &pools, 0, original).unwrap();
        assert_eq!((lease.port, lease.kind), (2000, kind::POOL));
        leases.push(Lease::rebuild(lease.kind, lease.mapping, &reply(&original, &lease)).unwrap());
        assert_eq!(leases.last(), Some(&lease));
    }
    assert_eq!(in_use(&nat, &pools, 0), 50);
    assert_eq!(nat.mapping_at(0, ip("203.0.113.1"), 2000, 17, ip("192.0.2.77")), Some(InUse::Shared));
    leases.iter().for_each(|l| nat.release(l, 0));
    assert_eq!((in_use(&nat, &pools, 0), nat.status(&pools)[0].hosts), (0, 0));
    assert_eq!(nat.mapping_at(0, ip("203.0.113.1"), 2000, 17, ip("192.0.2.77")), None);
}

#[test]
fn an_address_dependent_mapping_serves_all_ports_of_one_remote_and_shares_with_others() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let two = Pool { ports: ports(2000, 2001), mapping: Behaviour::AddressDependent, ..pool("p", "203.0.113.1") };
    let pools = compile(&nat, &[two]);
    let to = |host: &str, remote: u8, dport| Tuple { dst: [192, 0, 2, remote].into(), dport, ..udp(host, 4000) };
    let mut ask = |original| worker.pool(&nat, &pools, 0, original);
    let a = ask(to("10.0.0.1", 1, 80)).unwrap();
    let a2 = ask(to("10.0.0.1", 1, 81)).unwrap();
    assert_eq!(a, a2, "the same mapping");
    let b = ask(to("10.0.0.2", 1, 80)).unwrap();
    assert_ne!(a.port, b.port, "one remote never sees one port of two hosts");
    assert_eq!(ask(to("10.0.0.3", 1, 90)), Err(Exhausted::Ports));
    let c = ask(to("10.0.0.3", 2, 80)).unwrap();
    assert!([a.port, b.port].contains(&c.port), "another remote may");
    assert_eq!(in_use(&nat, &pools, 0), 3);
    let inside = |host, zone| Some(InUse::Mapping(Inside { zone, address: ip(host), port: 4000, pool: 1 }));
    assert_eq!(nat.mapping_at(0, a.address, a.port, 17, ip("192.0.2.1")), inside("10.0.0.1", 1));
    assert_eq!(nat.mapping_at(0, b.address, b.port, 17, ip("192.0.2.1")), inside("10.0.0.2", 1));
    assert_eq!(nat.mapping_at(0, c.address, c.port, 17, ip("192.0.2.2")), inside("10.0.0.3", 1));
    assert_eq!(nat.mapping_at(0, a.address, a.port, 17, ip("192.0.2.9")), Some(InUse::Shared));
    [a, a2, b, c].iter().for_each(|l| nat.release(l, 0));
    assert_eq!((in_use(&nat, &pools, 0), nat.status(&pools)[0].hosts), (0, 0));
}

#[test]
fn alone_and_shared_users_of_one_port_keep_each_other_out() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let shared = Pool { mapping: Behaviour::AddressPortDependent, ..pool("shared", "203.0.113.1") };
    let pools = compile(&nat, &[pool("alone", "203.0.113.1"), shared]);
    let alone = worker.pool(&nat, &pools, 0, udp("10.0.0.1", 5000)).unwrap();
    let beside = worker.pool(&nat, &pools, 1, udp("10.0.0.2", 5000)).unwrap();
    let plain = worker.ask(&nat, &wish(Target::Address(ip("203.0.113.1")), udp("10.0.0.3", 5000))).unwrap();
    assert_eq!(alone.port, 5000);
    assert_ne!(beside.port, 5000);
    assert_ne!(plain.port, 5000);
    // The other way round.
    worker.pool(&nat, &pools, 1, udp("10.0.0.2", 6000)).unwrap();
    assert_ne!(worker.pool(&nat, &pools, 0, udp("10.0.0.1", 6000)).unwrap().port, 6000);
    // And in another zone the same address is another.
    let elsewhere = Wish { zone: 9, ..wish(Target::Address(ip("203.0.113.1")), udp("10.0.0.3", 5000)) };
    assert_eq!(worker.ask(&nat, &elsewhere).unwrap().port, 5000);
}

#[test]
fn what_lies_behind_an_external_port_is_known_while_it_is_in_use() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let pools = compile(&nat, &[pool("a", "198.51.100.1"), pool("b", "203.0.113.1")]);
    let lease = worker.pool(&nat, &pools, 1, tcp("10.0.0.7", 5000)).unwrap();
    let id = pools.get(1).unwrap().id();
    let expected = Inside { zone: 1, address: ip("10.0.0.7"), port: 5000, pool: id };
    let at = |zone, port, protocol| nat.mapping_at(zone, lease.address, port, protocol, ip("8.8.8.8"));
    assert_eq!(at(0, 5000, proto::TCP), Some(InUse::Mapping(expected)));
    assert_eq!(pools.with_id(id).map(|s| s.name.as_str()), Some("b"));
    assert_eq!([at(0, 5000, proto::UDP), at(0, 5001, proto::TCP), at(1, 5000, proto::TCP)], [None; 3]);
    assert_eq!(at(0, 5000, proto::GRE), None);
    nat.release(&lease, 0);
    assert_eq!(at(0, 5000, proto::TCP), None);
}

#[test]
fn every_pool_address_has_one_owner_in_its_zone() {
    let nat = Nat::new(1);
    let pools = compile(
        &nat,
        &[
            pool("a", "203.0.113.5-203.0.113.6,203.0.113.20"),
            Pool { zone: 7, ..pool("b", "203.0.113.0-203.0.113.255") },
            pool("c", "203.0.113.0-203.0.113.10,2001:db8::1-2001:db8::9"),
        ],
    );
    let owner = |zone, address| pools.owner(zone, ip(address));
    assert_eq!(owner(0, "203.0.113.5"), Some(0), "the first of two");
    assert_eq!([owner(0, "203.0.113.4"), owner(0, "203.0.113.7")], [Some(2); 2]);
    assert_eq!([owner(0, "203.0.113.11"), owner(0, "203.0.113.21"), owner(3, "203.0.113.5")], [None; 3]);
    assert_eq!([owner(7, "203.0.113.5"), owner(7, "203.0.113.255")], [Some(1); 2]);
    assert_eq!([owner(0, "2001:db8::9"), owner(0, "2001:db8::a"), owner(7, "2001:db8::1")], [Some(2), None, None]);
    assert_eq!(owner(0, "0.0.0.0"), None);
}

/// T19 in part: a family that a pool has no address of is refused without a trace.
#[test]
fn ipv6_hosts_get_ipv6_addresses_and_protocols_without_ports_are_refused() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let pools = compile(&nat, &[pool("v4", "203.0.113.1"), pool("both", "203.0.113.2,2001:db8::5")]);
    let v6 = Tuple { src: ip("fd00::1"), dst: ip("2001:db8:1::1"), ..udp("10.0.0.1", 5000) };
    assert_eq!(worker.pool(&nat, &pools, 0, v6), Err(Exhausted::Family));
    let lease = worker.pool(&nat, &pools, 1, v6).unwrap();
    assert_eq!((lease.address, lease.port), (ip("2001:db8::5"), 5000));
    let expected = Inside { zone: 1, address: v6.src, port: 5000, pool: pools.get(1).unwrap().id() };
    assert_eq!(nat.mapping_at(0, lease.address, 5000, 17, v6.dst), Some(InUse::Mapping(expected)));
    assert_eq!(worker.pool(&nat, &pools, 0, flow(proto::GRE, "10.0.0.1", 0)), Err(Exhausted::Protocol));
    assert_eq!(nat.status(&pools)[0].exhausted, 0);
    assert_eq!(
        worker.ask(&nat, &wish(Target::Address(ip("2001:db8::5")), udp("10.0.0.1", 1))),
        Err(Exhausted::Family)
    );
}

/// T101, T104: a pool is found again by its name; what it no longer has serves only the connections it serves.
#[test]
fn a_reload_keeps_mappings_that_the_pool_still_allows_and_moves_on_from_the_others() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let before = compile(&nat, &[pool("other", "198.51.100.9"), pool("p", "203.0.113.1-203.0.113.2")]);
    let a = worker.pool(&nat, &before, 1, udp("10.0.0.1", 5000)).unwrap();
    let b = worker.pool(&nat, &before, 1, udp("10.0.0.2", 5000)).unwrap();
    assert_eq!((a.address, b.address), (ip("203.0.113.1"), ip("203.0.113.2")));

    let after = compile(&nat, &[pool("p", "203.0.113.2-203.0.113.3")]);
    assert_eq!(after.get(0).unwrap().id(), before.get(1).unwrap().id());
    assert!(!after.get(0).unwrap().contains(a.address));
    let b2 = worker.pool(&nat, &after, 0, udp("10.0.0.2", 5000)).unwrap();
    assert_eq!((b2.address, b2.mapping), (b.address, b.mapping));
    let a2 = worker.pool(&nat, &after, 0, udp("10.0.0.1", 5000)).unwrap();
    assert_eq!((a2.address, a2.port), (ip("203.0.113.3"), 5000), "the least used of the new addresses");
    let a3 = worker.pool(&nat, &after, 0, udp("10.0.0.1", 5000)).unwrap();
    assert_eq!(a3.mapping, a2.mapping);
    assert!(matches!(nat.mapping_at(0, a.address, 5000, 17, a.remote), Some(InUse::Mapping(_))));
    assert_eq!(in_use(&nat, &after, 0), 3);
    drop(before);
    [a, b, b2, a2, a3].iter().for_each(|l| nat.release(l, 0));
    assert_eq!((in_use(&nat, &after, 0), nat.status(&after)[0].hosts), (0, 0));
    // And back again: the pool is known as long as something uses it.
    let again = compile(&nat, &[pool("p", "203.0.113.1-203.0.113.2")]);
    assert_eq!(nat.status(&again)[0].given, 3);
}

#[test]
fn an_identical_pool_after_a_reload_goes_on_where_it_was() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let mut pools = compile(&nat, &[pool("p", "203.0.113.1-203.0.113.64")]);
    let mut hosts: BTreeMap<_, u32> = BTreeMap::new();
    for host in 0..128u8 {
        let lease = worker.pool(&nat, &pools, 0, udp(&format!("10.0.0.{host}"), 1024)).unwrap();
        *hosts.entry(lease.address).or_default() += 1;
        pools = compile(&nat, &[pool("p", "203.0.113.1-203.0.113.64")]);
    }
    assert!(hosts.len() == 64 && hosts.values().all(|n| *n == 2), "{hosts:?}");
}

#[test]
fn a_nearly_full_pool_gives_its_last_ports() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let pools = compile(&nat, &[Pool { preserve_port: false, ..pool("p", "203.0.113.1") }]);
    let mut given = BTreeSet::new();
    for n in 0..64_512u32 {
        let host = format!("10.0.{}.1", n >> 12);
        let sport = u16::try_from(n & 0xfff).unwrap();
        let lease = worker.pool(&nat, &pools, 0, udp(&host, sport)).unwrap();
        assert!(given.insert(lease.port));
    }
    assert_eq!(given.first().zip(given.last()), Some((&1024, &65535)));
    assert_eq!(worker.pool(&nat, &pools, 0, udp("10.9.0.1", 1)), Err(Exhausted::Ports));
}

/// T104, T175: what a new rule set would no longer give is told apart from what may go on.
#[test]
fn only_what_the_rules_could_have_given_may_go_on() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let shared = Pool { mapping: Behaviour::AddressPortDependent, ..pool("shared", "203.0.113.1") };
    let before = compile(&nat, &[pool("p", "203.0.113.1-203.0.113.2"), pool("q", "203.0.113.1"), shared.clone()]);
    let target = |pools: &'static str| Target::Pool(before.iter().find(|p| p.name == pools).unwrap());
    let lease = worker.ask(&nat, &wish(target("p"), udp("10.0.0.1", 5000))).unwrap();
    let id = worker.ask(&nat, &wish(target("p"), echo("10.0.0.1", 3))).unwrap();
    let part = worker.ask(&nat, &wish(target("shared"), udp("10.0.0.2", 5001))).unwrap();
    let plain = worker.ask(&nat, &wish(Target::Address(ip("203.0.113.1")), udp("10.0.0.3", 5002))).unwrap();
    let gives = |lease: &Lease, target, range| nat.would_give(lease, &target, range);
    assert!(
        gives(&lease, target("p"), None) && gives(&id, target("p"), None) && gives(&part, target("shared"), None)
    );
    assert!(gives(&plain, Target::Address(plain.address), None));
    assert!(!gives(&lease, target("q"), None), "another pool with the same address");
    assert!(!gives(&lease, Target::Address(lease.address), None) && !gives(&plain, target("shared"), None));
    assert!(!gives(&plain, Target::Address(ip("203.0.113.9")), None));
    let ranges = [range("203.0.113.0-203.0.113.7")];
    let addresses = Target::Addresses { ranges: &ranges, persistent: false };
    assert!(gives(&plain, addresses, None) && gives(&plain, addresses, Some(ports(5002, 5002))));
    assert!(!gives(&plain, addresses, Some(ports(1, 5001))));

    let renamed = Pool { mapping: Behaviour::EndpointIndependent, ..shared };
    let after = compile(&nat, &[Pool { ports: ports(6000, 7000), ..pool("p", "203.0.113.1") }, renamed]);
    let now = |index| Target::Pool(after.get(index).unwrap());
    assert!(!gives(&lease, now(0), None), "the port is out of the range");
    assert!(gives(&lease, now(0), Some(ports(5000, 5000))) && gives(&id, now(0), None));
    assert!(!gives(&part, now(1), None), "the pool maps in another way");
    // Nor does the mapping serve new connections.
    let next = worker.ask(&nat, &wish(now(0), udp("10.0.0.1", 5000))).unwrap();
    assert!((6000..=7000).contains(&next.port));
    [lease, id, part, next].iter().for_each(|l| nat.release(l, 0));
    assert_eq!((in_use(&nat, &after, 0), in_use(&nat, &after, 1)), (0, 0));
}

//! Invariants under random use, from several threads, and the memory it takes.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use common::*;
use erhu_nat::{Exhausted, InUse, Inside, Lease, Nat, Pools, Target, Wish, kind};
use erhu_planes::Tuple;
use erhu_planes::program::{Behaviour, Pool};
use proptest::prelude::*;

fn some_pools() -> Vec<Pool> {
    vec![
        Pool { ports: ports(2000, 2030), ..pool("alone", "203.0.113.1-203.0.113.3") },
        Pool {
            ports: ports(2010, 2040),
            paired: false,
            preserve_port: false,
            ..pool("any", "203.0.113.3-203.0.113.4")
        },
        Pool { ports: ports(2000, 2003), mapping: Behaviour::AddressDependent, ..pool("address", "203.0.113.1") },
        Pool { ports: ports(2000, 2003), mapping: Behaviour::AddressPortDependent, ..pool("port", "203.0.113.3") },
    ]
}

/// A connection as a table has it.
struct Live {
    original: Tuple,
    lease: Lease,
    pool: usize,
}

/// Checks everything that must hold of what lives.
fn check(nat: &Nat, pools: &Pools, live: &[Live], exhausted: &[u64]) {
    let mut replies = BTreeSet::new();
    let mut alone: BTreeMap<(u16, IpAddr, u16, u8), Tuple> = BTreeMap::new();
    let mut mappings: BTreeMap<usize, BTreeSet<_>> = BTreeMap::new();
    let mut hosts: BTreeMap<usize, BTreeSet<_>> = BTreeMap::new();
    for connection in live {
        let (original, lease) = (&connection.original, &connection.lease);
        assert!(replies.insert(reply(original, lease)), "one reply tuple, one connection");
        assert_eq!(Lease::rebuild(lease.kind, lease.mapping, &reply(original, lease)), Some(*lease));
        let inside = (original.zone, original.src, original.sport, original.proto);
        let key = match lease.kind {
            kind::ENDPOINT => (inside, None, None),
            kind::ADDRESS => (inside, Some(original.dst), None),
            _ => (inside, Some(original.dst), Some(original.dport)),
        };
        mappings.entry(connection.pool).or_default().insert(key);
        if connection.pool != DIRECT {
            hosts.entry(connection.pool).or_default().insert((original.zone, original.src));
            assert!(pools.get(connection.pool).unwrap().contains(lease.address));
        }
        let at = nat.mapping_at(lease.zone, lease.address, lease.port, lease.proto, lease.remote);
        if lease.kind == kind::ENDPOINT || lease.kind == kind::ADDRESS {
            let pool = pools.get(connection.pool).unwrap().id();
            let expected = Inside { zone: original.zone, address: original.src, port: original.sport, pool };
            assert_eq!(at, Some(InUse::Mapping(expected)));
        } else {
            assert!(at.is_some());
        }
        if lease.kind == kind::ENDPOINT {
            let external = (lease.zone, lease.address, lease.port, lease.proto);
            let owner = Tuple { dst: original.src, dport: 0, ..*original };
            assert_eq!(*alone.entry(external).or_insert(owner), owner, "one port, one inside endpoint");
        }
    }
    for connection in live.iter().filter(|c| c.lease.kind != kind::ENDPOINT) {
        let lease = &connection.lease;
        assert!(!alone.contains_key(&(lease.zone, lease.address, lease.port, lease.proto)), "alone or shared");
    }
    for (index, status) in nat.status(pools).iter().enumerate() {
        let expected = mappings.get(&index).map_or(0, BTreeSet::len);
        assert_eq!(in_use(nat, pools, index), expected as u64);
        assert_eq!(status.hosts, hosts.get(&index).map_or(0, BTreeSet::len) as u64);
        assert_eq!(status.exhausted, exhausted[index]);
    }
    let direct = nat.direct_status();
    assert_eq!(direct.given - direct.returned, mappings.get(&DIRECT).map_or(0, BTreeSet::len) as u64);
}

const DIRECT: usize = 4;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn no_sequence_of_choices_and_ends_breaks_an_invariant(
        seed: u64,
        steps in proptest::collection::vec((0usize..5, 0u8..6, 0u16..12, 0u8..3, 0u16..3, 0u8..3, 0u8..4, any::<u16>()), 1..400),
    ) {
        let (nat, mut worker) = (Nat::new(seed), Worker::new(seed));
        let pools = compile(&nat, &some_pools());
        let mut live: Vec<Live> = Vec::new();
        let mut exhausted = [0; 5];
        for (number, (index, host, sport, remote, dport, protocol, action, pick)) in steps.into_iter().enumerate() {
            if action == 0 && !live.is_empty() {
                let gone = live.swap_remove(usize::from(pick) % live.len());
                nat.release(&gone.lease, 0);
            } else {
                let base = [udp("10.0.0.1", 0), tcp("10.0.0.1", 0), echo("10.0.0.1", 0)][usize::from(protocol)];
                let original = Tuple {
                    src: [10, 0, 0, host].into(),
                    dst: [192, 0, 2, remote].into(),
                    sport: 2005 + sport,
                    dport: if protocol == 2 { base.dport } else { dport },
                    zone: u16::from(host % 2),
                    ..base
                };
                if live.iter().any(|c| c.original == original && c.pool == index) {
                    continue;
                }
                let target = pools.get(index).map_or(Target::Address(ip("203.0.113.3")), Target::Pool);
                let wish = wish(target, original);
                for attempt in 0.. {
                    match nat.choose(&wish, attempt, &mut worker.rng, |_, port| port % 2 == 0) {
                        Ok(lease) if live.iter().any(|c| reply(&c.original, &c.lease) == reply(&original, &lease)) => {
                            nat.release_at_once(&lease);
                        }
                        Ok(lease) => {
                            live.push(Live { original, lease, pool: index });
                            break;
                        }
                        Err(error) => {
                            exhausted[index] += u64::from(error == Exhausted::Ports);
                            break;
                        }
                    }
                }
            }
            if number % 16 == 0 {
                check(&nat, &pools, &live, &exhausted);
            }
            if number % 50 == 0 {
                nat.tidy(0);
            }
        }
        check(&nat, &pools, &live, &exhausted);
        live.drain(..).for_each(|c| nat.release(&c.lease, 0));
        check(&nat, &pools, &[], &exhausted);
    }
}

#[test]
fn two_threads_that_choose_and_end_at_once_leave_exact_counts() {
    let nat = Nat::new(5);
    let pools = compile(
        &nat,
        &[
            Pool { ports: ports(2000, 2999), ..pool("alone", "203.0.113.1-203.0.113.2") },
            Pool {
                ports: ports(2000, 2999),
                mapping: Behaviour::AddressPortDependent,
                ..pool("port", "203.0.113.2")
            },
        ],
    );
    let refused = AtomicU64::new(0);
    let kept: Vec<Vec<(Tuple, Lease)>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2u64)
            .map(|number| {
                let (nat, pools, refused) = (&nat, &pools, &refused);
                scope.spawn(move || {
                    let mut worker = Worker::new(number + 10);
                    let mut live: Vec<(Tuple, Lease)> = Vec::new();
                    for _ in 0..60_000 {
                        let random = worker.rng.next_u64();
                        let byte = |at: u32| u8::try_from(random >> at & 0xff).unwrap();
                        if random % 100 < 48 && !live.is_empty() {
                            let at = usize::from(byte(8)) * live.len() / 256;
                            nat.release(&live.swap_remove(at).1, 0);
                            continue;
                        }
                        // Both threads use the same hosts, and so the same mappings.
                        let original = Tuple {
                            src: [10, 0, 0, byte(16) % 32].into(),
                            sport: 2000 + u16::from(byte(24)),
                            dport: u16::from(byte(32)),
                            ..udp("10.0.0.1", 0)
                        };
                        match worker.pool(nat, pools, usize::from(byte(40) % 2), original) {
                            Ok(lease) => live.push((original, lease)),
                            Err(_) => _ = refused.fetch_add(1, Ordering::Relaxed),
                        }
                        let at = nat.mapping_at(0, ip("203.0.113.2"), 2000 + u16::from(byte(48)), 17, original.dst);
                        if let Some(InUse::Mapping(inside)) = at {
                            assert_eq!(inside.zone, 1);
                        }
                    }
                    live
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let all: Vec<&(Tuple, Lease)> = kept.iter().flatten().collect();
    let mut owners = BTreeMap::new();
    for (original, lease) in all.iter().filter(|(_, l)| l.kind == kind::ENDPOINT) {
        let inside = (original.src, original.sport);
        assert_eq!(*owners.entry((lease.address, lease.port)).or_insert(inside), inside);
    }
    let shared = all.iter().filter(|(_, l)| l.kind == kind::POOL).count();
    assert_eq!(in_use(&nat, &pools, 0), owners.len() as u64);
    assert_eq!(in_use(&nat, &pools, 1), shared as u64);
    let exhausted: u64 = nat.status(&pools).iter().map(|s| s.exhausted).sum();
    assert_eq!(exhausted, refused.load(Ordering::Relaxed));
    all.iter().for_each(|(_, lease)| nat.release(lease, 0));
    for status in nat.status(&pools) {
        assert_eq!((status.given, status.hosts, status.ports_in_use), (status.returned, 0, vec![]));
    }
}

#[test]
fn two_hundred_thousand_mappings_cost_at_most_forty_bytes_each_and_give_most_back() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let pools = compile(&nat, &[Pool { preserve_port: false, ..pool("p", "203.0.113.1-203.0.113.16") }]);
    let idle = nat.bytes_in_use();
    assert!(idle < 512 * 1024, "{idle}");
    let mut leases = Vec::new();
    let mut worst = 0;
    for n in 0..200_000u32 {
        let host = format!("10.{}.{}.1", n % 4, n / 4 % 250);
        leases.push(worker.pool(&nat, &pools, 0, udp(&host, u16::try_from(n / 1000 + 1024).unwrap())).unwrap());
        let mappings = leases.len();
        if mappings >= 100_000 && mappings % 1000 == 0 {
            worst = worst.max(nat.bytes_in_use() / mappings);
        }
    }
    let each = nat.bytes_in_use() / leases.len();
    println!("{each} bytes each, {worst} at worst on the way");
    // Tables that are being resized exist twice for a while.
    assert!(each <= 40 && worst <= 46, "{each} {worst}");
    leases.iter().for_each(|l| nat.release(l, 0));
    nat.tidy(0);
    // The records stay for the next ones: 16 bytes each.
    let left = nat.bytes_in_use() - 200_000 * 16;
    assert!(left < 2 * 1024 * 1024, "{left}");
}

#[test]
fn an_idle_pool_address_costs_a_few_bytes_and_one_port_of_it_little_more_than_a_kibibyte() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let without = nat.bytes_in_use();
    let pools = compile(&nat, &[pool("p", "10.64.0.0-10.64.255.255")]);
    let with = nat.bytes_in_use();
    assert!((with - without) / 65_536 <= 16, "{}", with - without);
    let leases: Vec<Lease> = (0..1000u32)
        .map(|n| worker.pool(&nat, &pools, 0, udp(&format!("10.0.{}.{}", n >> 8, n & 0xff), 5000)).unwrap())
        .collect();
    let used: BTreeSet<IpAddr> = leases.iter().map(|l| l.address).collect();
    assert_eq!(used.len(), 1000);
    let each = (nat.bytes_in_use() - with) / 1000;
    assert!(each <= 3 * 1024, "{each}");
    leases.iter().for_each(|l| nat.release(l, 0));
    nat.tidy(0);
    assert!(nat.bytes_in_use() - with < 1024 * 1024, "{}", nat.bytes_in_use() - with);
}

#[test]
fn a_wish_is_answered_in_the_zone_it_names() {
    let (nat, mut worker) = (Nat::new(1), Worker::new(1));
    let pools = compile(&nat, &[Pool { zone: 4, ..pool("p", "203.0.113.1") }]);
    let asked = Wish { zone: 4, ..wish(Target::Pool(pools.get(0).unwrap()), udp("10.0.0.1", 5000)) };
    let lease = worker.ask(&nat, &asked).unwrap();
    assert_eq!(lease.zone, 4);
    assert!(nat.mapping_at(4, lease.address, 5000, 17, lease.remote).is_some());
    assert!(nat.mapping_at(0, lease.address, 5000, 17, lease.remote).is_none());
}

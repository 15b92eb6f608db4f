//! Invariants under random use, from several threads, and the memory it takes.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use common::*;
use erhu_nat::{Exhausted, Given4, InUse, Inside, Lease, Nat, Opening4, Pools, Rng, Target, Wish, kind};
use erhu_planes::Tuple;
use erhu_planes::program::{Behaviour, Pool};
use erhu_planes::tuple::{Key, Key4};
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
fn two_hundred_thousand_mappings_cost_at_most_forty_four_bytes_each_and_give_most_back() {
    const MAPPINGS: u32 = 200_000;
    let (nat, mut worker) = (Nat::for_connections(MAPPINGS, 1, false).unwrap(), Worker::new(1));
    let pools = compile(&nat, &[Pool { preserve_port: false, ..pool("p", "203.0.113.1-203.0.113.16") }]);
    // The index is there from the start, for all of them.
    let idle = nat.bytes_in_use();
    assert!(idle < 23 * MAPPINGS as usize + 1024 * 1024, "{idle}");
    let mut leases = Vec::new();
    for n in 0..MAPPINGS {
        let host = format!("10.{}.{}.1", n % 4, n / 4 % 250);
        leases.push(worker.pool(&nat, &pools, 0, udp(&host, u16::try_from(n / 1000 + 1024).unwrap())).unwrap());
    }
    let each = nat.bytes_in_use() / leases.len();
    println!("{each} bytes each");
    assert!(each <= 44, "{each}");
    leases.iter().for_each(|l| nat.release(l, 0));
    nat.tidy(0);
    // The records stay for the next ones: 16 bytes each.
    let left = nat.bytes_in_use() - idle - MAPPINGS as usize * 16;
    assert!(left < 1024 * 1024, "{left}");
}

#[test]
fn more_hosts_than_the_index_has_room_for_are_found_all_the_same() {
    let (nat, mut worker) = (Nat::for_connections(20_000, 1, false).unwrap(), Worker::new(1));
    let pools = compile(&nat, &[pool("p", "203.0.113.1-203.0.113.4")]);
    let hosts: Vec<String> = (0..20_000).map(|n| format!("10.0.{}.{}", n / 250, n % 250)).collect();
    let first: Vec<Lease> = hosts.iter().map(|h| worker.pool(&nat, &pools, 0, udp(h, 5000)).unwrap()).collect();
    assert_eq!((in_use(&nat, &pools, 0), nat.status(&pools)[0].hosts), (20_000, 20_000));
    for (host, lease) in hosts.iter().zip(&first) {
        let again = worker.pool(&nat, &pools, 0, Tuple { dport: 53, ..udp(host, 5000) }).unwrap();
        assert_eq!((again.address, again.port), (lease.address, lease.port));
        nat.release(&again, 0);
    }
    first.iter().for_each(|l| nat.release(l, 0));
    assert_eq!((in_use(&nat, &pools, 0), nat.status(&pools)[0].hosts), (0, 0));
}

#[test]
fn a_small_table_of_hosts_with_one_mapping_each_refuses_none() {
    for connections in [1u32, 1000, 1024, 20_000] {
        let (nat, mut worker) = (Nat::for_connections(connections, 1, false).unwrap(), Worker::new(1));
        let pools = compile(&nat, &[pool("p", "203.0.113.1-203.0.113.64")]);
        for n in 0..connections {
            let host = format!("10.{}.{}.{}", n >> 16, n >> 8 & 0xff, n & 0xff);
            worker.pool(&nat, &pools, 0, udp(&host, 5000)).unwrap();
        }
        assert_eq!(in_use(&nat, &pools, 0), u64::from(connections));
    }
}

/// What a worker asks for ahead is what it then takes, or the asking would be for nothing.
#[test]
fn the_external_endpoint_of_a_known_host_is_foretold() {
    for preserve_port in [true, false] {
        let (nat, mut worker) = (Nat::new(1), Worker::new(1));
        let pools = compile(&nat, &[Pool { preserve_port, ..pool("p", "203.0.113.1-203.0.113.4") }]);
        worker.pool(&nat, &pools, 0, udp("10.0.0.1", 999)).unwrap();
        let mut right = 0;
        for sport in 2000..2100 {
            let original = udp("10.0.0.1", sport);
            let mut ahead = nat.ahead(key(&original));
            nat.prefetch_lookups(&ahead);
            nat.prefetch_records(&mut ahead);
            let guess = nat.prefetch_external(&mut ahead, key(&original), &pools);
            nat.prefetch_room(&ahead);
            let guess = guess.map(|(zone, address, port)| (zone, IpAddr::V4(address.into()), port));
            let lease = worker.pool(&nat, &pools, 0, original).unwrap();
            right += usize::from(guess == Some((lease.zone, lease.address, lease.port)));
        }
        assert!(right >= 99, "{right} of 100 with preserve_port {preserve_port}");
        let unknown = key(&udp("10.0.0.2", 2000));
        assert_eq!(nat.prefetch_external(&mut nat.ahead(unknown), unknown, &pools), None);
    }
}

fn key(tuple: &Tuple) -> Key4 {
    match Key::from(tuple) {
        Key::V4(key) => key,
        Key::V6(_) => panic!("IPv4"),
    }
}

fn opening(original: &Tuple, now_tick: u32) -> Opening4 {
    let key = key(original);
    let (addresses, ports) = (key.addresses(), key.ports());
    Opening4 { zone: original.zone, addresses, ports, proto: original.proto, outside: 0, now_tick }
}

/// Two states with the same secrets and the same openings: in one they are all done the long way, in the other most are
/// done the short one.
struct Twins {
    nats: [Nat; 2],
    pools: [Pools; 2],
    rngs: [Rng; 2],
    live: Vec<(Tuple, Lease)>,
}

impl Twins {
    fn open(&mut self, pool: usize, original: Tuple, now_tick: u32) -> Result<(), TestCaseError> {
        let Self { nats: [short, long], pools, rngs, .. } = self;
        let spec = |of: usize| pools[of].get(pool).unwrap();
        let wish = |of| Wish { now_tick, ..wish(Target::Pool(spec(of)), original) };
        let given =
            short.open4(spec(0), None, &opening(&original, now_tick), &short.ahead(key(&original)), |_, _| true);
        // The one that has ports enough for all and asks for nothing special.
        prop_assert!(given.is_some() || pool != 2);
        let [rng, other] = rngs;
        let given = match given {
            Some(given) => Ok(given.lease(&opening(&original, now_tick))),
            None => short.choose(&wish(0), 0, rng, |_, _| true),
        };
        let expected = long.choose(&wish(1), 0, other, |_, _| true);
        prop_assert_eq!(given, expected);
        self.live.extend(given.ok().map(|lease| (original, lease)));
        Ok(())
    }

    fn end(&mut self, which: usize, rests: bool, now_tick: u32) {
        if self.live.is_empty() {
            return;
        }
        let [short, long] = &self.nats;
        let (original, lease) = self.live.swap_remove(which % self.live.len());
        let IpAddr::V4(address) = lease.address else { return };
        let given = Given4 { kind: lease.kind, mapping: lease.mapping, address: address.into(), port: lease.port };
        short.close4(&given, &opening(&original, now_tick), &short.ahead(key(&original)), rests);
        if rests { long.release(&lease, now_tick) } else { long.release_at_once(&lease) }
    }
}

proptest! {
    #[test]
    fn openings_and_endings_done_the_short_way_leave_what_the_long_way_leaves(
        steps in prop::collection::vec(
            (0u8..5, 0usize..5, 1u8..5, 0u16..60, prop_oneof![Just(1u8), Just(6), Just(17)], 0u8..3, any::<bool>()),
            0..400,
        ),
        seed: u64,
    ) {
        let wide = Pool { filtering: Behaviour::AddressDependent, ..pool("filtering", "203.0.113.9") };
        let rested = Pool { reuse_delay_ms: 2000, ports: ports(1, 60_000), ..pool("rested", "203.0.113.5-203.0.113.7") };
        let shared = Pool {
            mapping: Behaviour::AddressPortDependent,
            ports: ports(2010, 2600),
            ..pool("port", "203.0.113.3,203.0.113.8")
        };
        let chosen = Pool { preserve_port: false, parity: false, ports: ports(2000, 2700), ..pool("alone", "203.0.113.1") };
        let remote = Pool { mapping: Behaviour::AddressDependent, ..pool("address", "203.0.113.2") };
        let all = [chosen, shared, rested, wide, remote];
        let nats = [Nat::new(seed), Nat::new(seed)];
        let pools = nats.each_ref().map(|nat| compile(nat, &all));
        let mut twins = Twins { nats, pools, rngs: [Rng::new(seed), Rng::new(seed)], live: Vec::new() };
        for (now, (what, pool, host, port, proto, remote, rests)) in (0u32..).zip(steps) {
            match what {
                0 => twins.end(usize::from(port) * 7 + usize::from(host), rests, now),
                _ => {
                    let dst = IpAddr::from([192, 0, 2, remote]);
                    let original = match proto {
                        1 => echo(&format!("10.0.0.{host}"), port),
                        _ => flow(proto, &format!("10.0.0.{host}"), 2000 + port),
                    };
                    twins.open(pool, Tuple { dst, ..original }, now)?;
                }
            }
        }
        let statuses = || [0, 1].map(|of: usize| twins.nats[of].status(&twins.pools[of]));
        prop_assert_eq!(statuses()[0].clone(), statuses()[1].clone());
        while !twins.live.is_empty() {
            twins.end(0, false, 0);
        }
        let statuses = [0, 1].map(|of: usize| twins.nats[of].status(&twins.pools[of]));
        prop_assert_eq!(&statuses[0], &statuses[1]);
        prop_assert!(statuses[0].iter().all(|pool| pool.hosts == 0 && pool.given == pool.returned));
    }
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

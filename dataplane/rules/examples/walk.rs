//! What a walk of a hook costs, by number and shape of rules: `cargo run --release -p erhu-rules --example walk`.
//!
//! Each figure is the smallest mean of several rounds, all sizes of a shape in turn; packets are spread over all rules
//! of a shape, so that with many rules their walks do not find everything in the nearest cache. `floor` is the same
//! loop over a hook without rules. `compile` is for the largest size.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use erhu_planes::program::{Action, AddressRange, Hook, Match, MatchKey, PortRange, Position, Program, Rule};
use erhu_rules::{Effects, Facts, Rules};

const SIZES: [u32; 3] = [10, 1000, 10_000];
const PACKETS: usize = 4096;
const ROUNDS: usize = 15;

/// A kind of rule set: its `i`th rule of `n`, and a packet for the `i`th rule of `n`.
struct Shape {
    name: &'static str,
    rule: fn(u32, u32) -> Vec<MatchKey>,
    packet: fn(u32, u32) -> Facts,
}

const SHAPES: [Shape; 10] = [
    Shape {
        name: "by destination /24",
        rule: |i, _| vec![MatchKey::Destination(vec![subnet(i)])],
        packet: |i, _| Facts { dst: host(i << 8 | 77), ..udp() },
    },
    Shape {
        name: "by destination /24, none matches",
        rule: |i, _| vec![MatchKey::Destination(vec![subnet(i)])],
        packet: |i, n| Facts { dst: host((i + n) << 8 | 77), ..udp() },
    },
    Shape {
        name: "by IPv6 destination /64",
        rule: |i, _| vec![MatchKey::Destination(vec![AddressRange { first: host6(i, 0), last: host6(i, u64::MAX) }])],
        packet: |i, _| Facts { src: host6(u32::MAX, 1), dst: host6(i, 77), ..udp() },
    },
    Shape {
        name: "by protocol and port",
        rule: |i, _| vec![MatchKey::Protocol(vec![17]), port(i)],
        packet: |i, _| Facts { dport: number(i), ..udp() },
    },
    Shape {
        name: "by zone and egress",
        rule: |i, _| vec![MatchKey::Zone(vec![number(i)]), MatchKey::Egress(vec![1])],
        packet: |i, _| Facts { zone: Some(number(i)), ..udp() },
    },
    Shape {
        name: "100 ports of each /24",
        rule: |i, _| vec![MatchKey::Destination(vec![subnet(i / 100)]), port(i % 100)],
        packet: |i, _| Facts { dst: host((i / 100) << 8 | 9), dport: number(i % 100), ..udp() },
    },
    Shape {
        name: "four kinds of rules in turn",
        rule: |i, _| match i % 4 {
            0 => vec![MatchKey::Destination(vec![subnet(i)])],
            1 => vec![MatchKey::Protocol(vec![17]), port(i)],
            2 => vec![MatchKey::Source(vec![subnet(i)]), MatchKey::Zone(vec![number(i)])],
            _ => vec![MatchKey::Mark(vec![(i, u32::MAX)])],
        },
        packet: |i, _| match i % 4 {
            0 => Facts { dst: host(i << 8 | 7), ..udp() },
            1 => Facts { dport: number(i), ..udp() },
            2 => Facts { src: host(i << 8 | 9), zone: Some(number(i)), ..udp() },
            _ => Facts { mark: i, ..udp() },
        },
    },
    Shape {
        name: "one field each, others any, last matches",
        rule: |i, n| match (i + 1 == n, i % 6) {
            (true, _) => Vec::new(),
            (_, 0) => vec![MatchKey::Destination(vec![subnet(i)])],
            (_, 1) => vec![MatchKey::Source(vec![subnet(i)])],
            (_, 2) => vec![port(i)],
            (_, 3) => vec![MatchKey::Zone(vec![number(i)])],
            (_, 4) => vec![MatchKey::Ingress(vec![number(i)])],
            _ => vec![MatchKey::EgressZone(vec![number(i)])],
        },
        packet: |_, _| udp(),
    },
    Shape {
        name: "half the rules in each field, last matches",
        rule: |i, n| {
            let (a, b) = if i + 1 == n { (0, 1) } else { (i % 2, i % 2) };
            vec![MatchKey::Source(vec![subnet(a)]), MatchKey::Destination(vec![subnet(b)])]
        },
        packet: |_, _| Facts { src: host(5), dst: host(1 << 8 | 5), ..udp() },
    },
    Shape {
        name: "ranges of ports and addresses, all nested",
        rule: |i, _| {
            let ports = vec![PortRange { first: number(20_000 - i), last: number(30_000 + i) }];
            let addresses = vec![AddressRange { first: host(20_000 - i), last: host(30_000 + i) }];
            vec![MatchKey::SourcePort(ports), MatchKey::Destination(addresses)]
        },
        packet: |i, _| Facts { sport: number(20_000 - i), dst: host(30_000 + i), ..udp() },
    },
];

const SEED: u32 = 0x9e37_79b9;

/// The next of a row of random numbers (xorshift), so that no branch can be foreseen.
fn next(random: &mut u32) -> u32 {
    *random ^= *random << 13;
    *random ^= *random >> 17;
    *random ^= *random << 5;
    *random
}

fn number(i: u32) -> u16 {
    u16::try_from(i).unwrap_or(u16::MAX)
}

fn host(n: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + n).into()
}

fn host6(network: u32, host: u64) -> IpAddr {
    Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(network) << 64 | u128::from(host)).into()
}

fn subnet(i: u32) -> AddressRange {
    AddressRange { first: host(i << 8), last: host(i << 8 | 255) }
}

fn port(i: u32) -> MatchKey {
    MatchKey::DestinationPort(vec![PortRange { first: number(i), last: number(i) }])
}

/// A packet that no rule is about.
fn udp() -> Facts {
    Facts {
        ingress: Some(60_000),
        egress: Some(1),
        zone: Some(60_000),
        egress_zone: Some(60_000),
        src: Ipv4Addr::new(192, 0, 2, 1).into(),
        dst: Ipv4Addr::new(198, 51, 100, 1).into(),
        proto: 17,
        sport: 40_000,
        dport: 60_000,
        has_ports: true,
        icmp: None,
        state: 1,
        status: 0,
        is_reply: false,
        mark: u32::MAX,
        bytes: 60,
    }
}

fn program(shape: &Shape, count: u32) -> Program {
    let mut program = Program::empty();
    program.hooks[Hook::Forward.index()].rules = (0..count)
        .map(|i| Rule {
            at: Position::default(),
            matches: (shape.rule)(i, count).into_iter().map(|key| Match { negated: false, key }).collect(),
            actions: vec![Action::Drop],
        })
        .collect();
    program
}

/// Nanoseconds of a walk.
fn walk(rules: &Rules, packets: &[Facts]) -> f64 {
    let start = Instant::now();
    for facts in packets {
        let mut effects = Effects::default();
        let verdict = rules.run(Hook::Forward, black_box(facts), &mut effects, &mut |counter| {
            black_box(counter);
        });
        black_box((verdict, effects));
    }
    start.elapsed().as_secs_f64() * 1e9 / PACKETS as f64
}

fn main() {
    println!("seed {SEED:#x}, {PACKETS} packets, best of {ROUNDS}");
    println!(
        "{:44}{:>8}{:>8}{:>8}{:>8}{:>9}{:>14}",
        "ns per walk", "floor", 10, 1000, 10_000, "10k/10", "compile ms"
    );
    let empty = Rules::compile(&Program::empty());
    for shape in &SHAPES {
        let mut compile_ms = 0.0;
        let sets = SIZES.map(|count| {
            let program = program(shape, count);
            let start = Instant::now();
            let rules = Rules::compile(&program);
            compile_ms = start.elapsed().as_secs_f64() * 1e3;
            let mut random = SEED;
            let packets: Vec<Facts> =
                (0..PACKETS).map(|_| (shape.packet)(next(&mut random) % count, count)).collect();
            (rules, packets)
        });
        let (mut floor, mut best) = (f64::MAX, [f64::MAX; SIZES.len()]);
        for _ in 0..ROUNDS {
            for ((rules, packets), best) in sets.iter().zip(&mut best) {
                floor = floor.min(walk(&empty, packets));
                *best = best.min(walk(rules, packets));
            }
        }
        let ratio = best[2] / best[0];
        println!(
            "{:44}{floor:>8.1}{:>8.1}{:>8.1}{:>8.1}{ratio:>9.2}{compile_ms:>14.1}",
            shape.name, best[0], best[1], best[2]
        );
    }
}

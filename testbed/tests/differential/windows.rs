//! Random TCP conversations: data, windows, scaling, SACK, resets and what lies beyond the windows.
//!
//! Two hosts are modelled as far as they know what they sent and received; what is sent is right most of the time, else
//! off by something that matters. Sequence numbers begin near 2³² as often as elsewhere.

use crate::play::{Flow, Play, Random, Segment, Step, block, offer, one};
use crate::{blue, green, routers};

/// What a host knows.
#[derive(Clone, Debug, Default)]
struct Host {
    next: u32,
    acknowledged: u32,
    window: u16,
}

/// One conversation of so many packets.
fn conversation(random: &mut Random, flow: &Flow, packets: usize) -> Vec<Step> {
    let mut hosts = [Host::default(), Host::default()];
    for host in &mut hosts {
        host.next = match random.below(3) {
            0 => u32::MAX - u32::try_from(random.below(2000)).unwrap(),
            1 => u32::try_from(random.below(2000)).unwrap(),
            _ => u32::try_from(random.below(1 << 32)).unwrap(),
        };
        host.window = pick(random, &[1000, 8000, 64_240, 100]);
    }
    let mut steps = Vec::new();
    let mut sent: Vec<(bool, Segment)> = Vec::new();
    if random.below(8) != 0 {
        for (forward, flags) in [(true, "S"), (false, "SA"), (true, "A")] {
            let (me, peer) = sides(forward);
            let options = if flags == "A" { Vec::new() } else { random_offer(random) };
            let ack = if flags == "S" { 0 } else { hosts[peer].next };
            let segment = Segment {
                flags: flags.into(),
                seq: hosts[me].next,
                ack,
                window: hosts[me].window,
                payload: 0,
                options,
            };
            hosts[me].next = hosts[me].next.wrapping_add(u32::from(flags != "A"));
            sent.push((forward, segment.clone()));
            steps.push(one(flow, forward, segment));
            // Most handshakes are whole.
            if random.below(10) == 0 {
                break;
            }
        }
        for (me, peer) in [(0, 1), (1, 0)] {
            hosts[me].acknowledged = hosts[peer].next;
        }
    }
    while steps.len() < packets {
        let forward = random.below(2) == 0;
        let segment = match random.below(8) {
            0 if !sent.is_empty() => {
                let (forward, again) = sent[random.below(sent.len())].clone();
                steps.push(one(flow, forward, again));
                continue;
            }
            _ => next(random, &mut hosts, forward),
        };
        sent.push((forward, segment.clone()));
        steps.push(one(flow, forward, segment));
    }
    steps
}

fn sides(forward: bool) -> (usize, usize) {
    if forward { (0, 1) } else { (1, 0) }
}

fn pick<T: Copy>(random: &mut Random, of: &[T]) -> T {
    of[random.below(of.len())]
}

fn random_offer(random: &mut Random) -> Vec<u8> {
    match random.below(4) {
        0 => Vec::new(),
        1 => offer(None, true),
        _ => offer(Some(pick(random, &[0, 3, 7, 14])), random.below(3) != 0),
    }
}

/// What a host sends next.
fn next(random: &mut Random, hosts: &mut [Host; 2], forward: bool) -> Segment {
    let (me, peer) = sides(forward);
    let flags = match random.below(30) {
        0 => "S",
        1 => "SA",
        2 | 3 => "FA",
        4 => "R",
        5 => "RA",
        _ => pick(random, &["A", "A", "PA"]),
    };
    let is_syn = flags.starts_with('S');
    let window = hosts[me].window;
    let off = |random: &mut Random, scale: u32| match random.below(24) {
        0 => 1,
        1 => u32::MAX,
        2 => u32::from(window),
        3 => u32::from(window) + 1,
        4 => 0_u32.wrapping_sub(66_001),
        5 => 0_u32.wrapping_sub(u32::try_from(random.below(3000)).unwrap()),
        6 => u32::try_from(random.below(70_000)).unwrap() << (scale % 8),
        _ => 0,
    };
    let seq = match random.below(20) {
        0 => 0,
        1 => hosts[peer].acknowledged,
        k => hosts[me].next.wrapping_add(off(random, u32::try_from(k).unwrap())),
    };
    let ack = match random.below(20) {
        0 => 0,
        1 => hosts[me].acknowledged,
        _ => hosts[peer].next.wrapping_add(off(random, 0)),
    };
    let payload = match random.below(6) {
        _ if is_syn || flags.starts_with('R') => 0,
        0 => 1,
        1 => 100,
        2 => 1400,
        3 => usize::from(hosts[peer].window).min(1400),
        _ => 0,
    };
    let window = match random.below(8) {
        0 => 0,
        1 => 1,
        _ => window,
    };
    let options = match random.below(5) {
        _ if is_syn => random_offer(random),
        0 => {
            let right = hosts[peer].next.wrapping_add(pick(random, &[0, 0, 1, u32::MAX - 50]));
            block(right.wrapping_sub(50), right)
        }
        1 => vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
        _ => Vec::new(),
    };
    if seq == hosts[me].next && !is_syn {
        let taken = u32::try_from(payload).unwrap() + u32::from(flags == "FA");
        hosts[me].next = seq.wrapping_add(taken);
    }
    hosts[me].acknowledged = ack;
    Segment { flags: flags.into(), seq, ack, window, payload, options }
}

/// After every packet of every conversation: verdict, header, state, status and time as in the kernel.
#[test]
fn random_conversations_are_followed_alike() {
    let seed = std::env::var("ERHU_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_240_608);
    let rounds: u16 = std::env::var("ERHU_ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(25);
    println!("seed {seed} (ERHU_SEED), {rounds} conversations (ERHU_ROUNDS)");
    let (mut kernel, erhu) = routers();
    for round in 0..rounds {
        let mut random = Random::new(seed + u64::from(round) * 0x9e37_79b9);
        // The first numbers of a generator that was just seeded are alike.
        for _ in 0..8 {
            random.below(2);
        }
        let port = 20_000 + round;
        let flow = if random.below(2) == 0 { blue(port) } else { green(port) };
        let steps = conversation(&mut random, &flow, 30);
        Play::new(&format!("conversation {round} of seed {seed}"), steps).run(&mut kernel, &erhu);
    }
}

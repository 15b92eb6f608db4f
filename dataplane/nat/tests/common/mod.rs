//! What the tests of this crate share.
#![allow(dead_code, reason = "each test file uses a part")]

use std::net::IpAddr;

use erhu_nat::{Exhausted, Lease, Nat, Pools, Rng, Target, Wish};
use erhu_planes::Tuple;
use erhu_planes::program::{AddressRange, Pool, PortRange, Program};
use erhu_planes::tuple::proto;

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `"a"` or `"a-b"`.
pub fn range(text: &str) -> AddressRange {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    AddressRange { first: ip(first), last: ip(last) }
}

pub fn ports(first: u16, last: u16) -> PortRange {
    PortRange { first, last }
}

/// A pool as a script gives it by default.
pub fn pool(name: &str, addresses: &str) -> Pool {
    Pool::new(name, addresses.split(',').map(range).collect())
}

pub fn compile(nat: &Nat, pools: &[Pool]) -> Pools {
    nat.compile(&Program { pools: pools.to_vec(), ..Program::empty() })
}

/// One connection of `host` in zone 1 to a server.
pub fn flow(protocol: u8, host: &str, sport: u16) -> Tuple {
    Tuple { src: ip(host), dst: ip("192.0.2.1"), sport, dport: 443, proto: protocol, zone: 1 }
}

pub fn udp(host: &str, sport: u16) -> Tuple {
    flow(proto::UDP, host, sport)
}

pub fn tcp(host: &str, sport: u16) -> Tuple {
    flow(proto::TCP, host, sport)
}

pub fn echo(host: &str, id: u16) -> Tuple {
    Tuple { dport: 8 << 8, ..flow(proto::ICMP, host, id) }
}

pub fn wish(target: Target<'_>, original: Tuple) -> Wish<'_> {
    Wish { target, ports: None, random: false, original, zone: 0, now_tick: 0 }
}

/// A worker: its random numbers, no preference.
pub struct Worker {
    pub rng: Rng,
}

impl Worker {
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed) }
    }

    pub fn ask(&mut self, nat: &Nat, wish: &Wish<'_>) -> Result<Lease, Exhausted> {
        nat.choose(wish, 0, &mut self.rng, |_, _| true)
    }

    /// Asks for the pool at an index.
    pub fn pool(&mut self, nat: &Nat, pools: &Pools, index: usize, original: Tuple) -> Result<Lease, Exhausted> {
        self.ask(nat, &wish(Target::Pool(pools.get(index).unwrap()), original))
    }
}

/// Reply tuple of a translated connection.
pub fn reply(original: &Tuple, lease: &Lease) -> Tuple {
    let mut translated = *original;
    (translated.src, translated.sport, translated.zone) = (lease.address, lease.port, lease.zone);
    translated.reversed().unwrap()
}

/// Asserts that a pool's counters agree, and returns its ports in use.
pub fn in_use(nat: &Nat, pools: &Pools, index: usize) -> u64 {
    let status = &nat.status(pools)[index];
    let sum = status.ports_in_use.iter().map(|(_, n)| n).sum();
    assert_eq!(status.given - status.returned, sum);
    sum
}

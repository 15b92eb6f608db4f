//! The workloads by number: what each does and what is wanted of it.

use erhu_planes::connections::Class;

use super::established::{Load, Standing};
use super::flows6::Family;
use super::goals::{Goal, Round, Unit};
use super::script::{Mapping, Policy};
use super::{Bench, BenchError, calm, footprint, latency, opening, scale, together};

/// One figure of a workload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wanted {
    /// In words.
    pub what: &'static str,
    /// What it is held against.
    pub goal: Goal,
}

/// What runs a workload: its rounds for each figure.
type Run = fn(&mut Bench, &Policy, u32) -> Result<Vec<Vec<Round>>, BenchError>;

/// One number.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// It.
    pub id: &'static str,
    /// Its figures, in the order in which `run` has them.
    pub figures: &'static [Wanted],
    /// Flows or connections.
    pub flows: u32,
    /// What they go over.
    pub family: Family,
    /// Addresses of the pool.
    pub addresses: u32,
    /// Whether it is measured with every kind of pool. The others have the default.
    pub every_pool: bool,
    /// Scenes that live at the same time.
    pub scenes: u32,
    /// Runs it.
    pub run: Run,
}

/// How a pool is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// How it maps.
    pub mapping: Mapping,
    /// Whether it keeps ports.
    pub preserve_port: bool,
}

impl Variant {
    /// All four; the default of scripts first.
    pub const ALL: [Self; 4] = [
        Self { mapping: Mapping::EndpointIndependent, preserve_port: true },
        Self { mapping: Mapping::EndpointIndependent, preserve_port: false },
        Self { mapping: Mapping::AddressPortDependent, preserve_port: true },
        Self { mapping: Mapping::AddressPortDependent, preserve_port: false },
    ];

    /// In words.
    pub const fn name(self) -> &'static str {
        match (self.mapping, self.preserve_port) {
            (Mapping::EndpointIndependent, true) => "per endpoint, ports kept",
            (Mapping::EndpointIndependent, false) => "per endpoint, ports chosen",
            (Mapping::AddressPortDependent, true) => "per connection, ports kept",
            (Mapping::AddressPortDependent, false) => "per connection, ports chosen",
        }
    }
}

/// What one variant reached.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Which.
    pub variant: Variant,
    /// Rounds of each figure.
    pub figures: Vec<Vec<Round>>,
}

const K: u32 = 1 << 10;
const M: u32 = 1 << 20;

const fn floors(what: &'static str, flows: u32, must: f64, aims: f64) -> Wanted {
    Wanted { what, goal: Goal::Floors { flows, must: Some(must), aims: Some(aims) } }
}

const fn no_more(what: &'static str, unit: Unit, must: f64, aims: f64) -> Wanted {
    Wanted { what, goal: Goal::AtMost { unit, must: Some(must), aims: Some(aims) } }
}

/// Shown, without a target.
const fn shown(what: &'static str, unit: Unit) -> Wanted {
    Wanted { what, goal: Goal::AtMost { unit, must: None, aims: None } }
}

const fn times(what: &'static str, of: &'static str, must: f64, aims: f64) -> Wanted {
    Wanted { what, goal: Goal::Times { of, must, aims: Some(aims) } }
}

const fn row(id: &'static str, flows: u32, figures: &'static [Wanted], run: Run) -> Workload {
    Workload { id, figures, flows, family: Family::V4, addresses: 64, every_pool: false, scenes: 1, run }
}

const fn every_pool(workload: Workload) -> Workload {
    Workload { every_pool: true, ..workload }
}

const fn over_ipv6(workload: Workload) -> Workload {
    Workload { family: Family::V6, ..workload }
}

const fn two_scenes(workload: Workload) -> Workload {
    Workload { scenes: 2, ..workload }
}

/// All workloads, in the order in which they are measured.
pub const ALL: [Workload; 26] = [
    every_pool(row("A1", K, &[floors("established UDP, 1k flows", K, 3.5, 2.2)], established_udp)),
    every_pool(row("A2", 64 * K, &[floors("established UDP, 64k flows", 64 * K, 2.7, 1.8)], established_udp)),
    every_pool(row("A3", M, &[floors("established UDP, 1M flows", M, 2.3, 1.5)], established_udp)),
    Workload {
        addresses: 256,
        ..every_pool(row("A4", 4 * M, &[floors("established UDP, 4M flows", 4 * M, 2.0, 1.4)], established_udp))
    },
    // Musts and aims of A2 and A3, and half or a quarter more.
    every_pool(row(
        "A5",
        64 * K,
        &[floors("established TCP, both ways, 64k flows", 64 * K, 1.5 * 2.7, 1.25 * 1.8)],
        established_tcp,
    )),
    every_pool(row(
        "A5M",
        M,
        &[floors("established TCP, both ways, 1M flows", M, 1.5 * 2.3, 1.25 * 1.5)],
        established_tcp,
    )),
    two_scenes(row(
        "A6",
        M,
        &[
            times("IMIX, 1M flows", "64-byte frames", 1.05, 1.05),
            times("1500 bytes, 1M flows", "64-byte frames", 1.05, 1.05),
            Wanted { what: "IMIX, checksums in software", goal: Goal::Floors { flows: M, must: None, aims: None } },
            Wanted {
                what: "1500 bytes, checksums in software",
                goal: Goal::Floors { flows: M, must: None, aims: None },
            },
        ],
        frame_sizes,
    )),
    // As A5.
    over_ipv6(every_pool(row(
        "A7",
        64 * K,
        &[floors("established UDP over IPv6, 64k flows", 64 * K, 1.5 * 2.7, 1.25 * 1.8)],
        established_udp6,
    ))),
    over_ipv6(every_pool(row(
        "A7M",
        M,
        &[floors("established UDP over IPv6, 1M flows", M, 1.5 * 2.3, 1.25 * 1.5)],
        established_udp6,
    ))),
    every_pool(row(
        "B1",
        512 * K,
        &[
            floors("new UDP connection, 10 rules, from empty", M, 10.0, 5.0),
            floors("… as others end, table steady", M, 10.0, 5.0),
            Wanted { what: "… into memory never used", goal: Goal::Floors { flows: M, must: None, aims: None } },
        ],
        opening::new_connections,
    )),
    every_pool(row("B2", 256 * K, &[floors("TCP life, 7 packets", M, 30.0, 18.0)], opening::tcp_lives)),
    row(
        "B3",
        64 * K,
        &[Wanted {
            what: "every tenth packet new, 64k flows",
            goal: Goal::Times { of: "A2 + B1/10 here", must: 1.1, aims: None },
        }],
        opening::mixture,
    ),
    every_pool(row(
        "C1",
        M,
        &[
            no_more("a TCP connection, all included", Unit::Bytes, 320.0, 256.0),
            no_more("a UDP connection, all included", Unit::Bytes, 256.0, 224.0),
            shown("a router with 4096 connections", Unit::Bytes),
        ],
        footprint::connections,
    )),
    row(
        "C2",
        K,
        &[
            no_more("an idle zone with its interface", Unit::Bytes, 4096.0, 4096.0),
            no_more("an idle pool address", Unit::Bytes, 1024.0, 1024.0),
        ],
        footprint::idle,
    ),
    two_scenes(row(
        "D1",
        512 * K,
        &[
            times("10 000 rules: new connection", "10 rules", 1.5, 1.1),
            times("10 000 rules: established, 64k flows", "10 rules", 1.03, 1.0),
        ],
        scale::rules,
    )),
    two_scenes(row("D2", M, &[times("4096 zones × 256 flows", "one zone of 1M", 1.1, 1.0)], scale::zones)),
    two_scenes(row(
        "D3",
        64 * K,
        &[
            Wanted { what: "10 raw rules", goal: Goal::More { than: "none", must: 15.0, aims: 15.0 } },
            Wanted { what: "1000 raw rules", goal: Goal::More { than: "none", must: 30.0, aims: 30.0 } },
        ],
        scale::raw_rules,
    )),
    two_scenes(row(
        "GROWN",
        M,
        &[
            times("4096 zones, 10k rules, 100k routes: 1k flows", "small router", 1.1, 1.1),
            times("4096 zones, 10k rules, 100k routes: 64k flows", "small router", 1.1, 1.1),
            times("4096 zones, 10k rules, 100k routes: 1M flows", "small router", 1.1, 1.1),
        ],
        scale::growth,
    )),
    row(
        "E1",
        M,
        &[
            no_more("dump of 1M connections: slowdown", Unit::Percent, 5.0, 1.0),
            no_more("… CPU time of the dump", Unit::Seconds, 2.0, 0.5),
        ],
        calm::dump_while_forwarding,
    ),
    row(
        "E3",
        M,
        &[
            no_more("reload of 10k rules: packets lost", Unit::Packets, 0.0, 0.0),
            no_more("… longest loop", Unit::Micros, 100.0, 20.0),
            shown("… all loops but one in 10 000", Unit::Micros),
            shown("… longest loop by the wall", Unit::Micros),
            no_more("… script to adopted by all", Unit::Seconds, 1.0, 0.1),
        ],
        calm::reload,
    ),
    row(
        "E4",
        M,
        &[
            no_more("flush of a zone of 1M: longest loop", Unit::Micros, 100.0, 20.0),
            shown("… all but one in 10 000", Unit::Micros),
            shown("… by the wall", Unit::Micros),
        ],
        calm::flush,
    ),
    row("F1", M, &[faster("two workers, both ways, 1M flows", 1.85, 1.95)], together::two_workers),
    row(
        "F2",
        64 * K,
        &[
            no_more("host-affine RSS, ports chosen: handed over", Unit::Packets, 0.0, 0.0),
            no_more("no RSS: handed over beyond what must", Unit::Packets, 0.0, 0.0),
        ],
        together::handed_over,
    ),
    row(
        "F3",
        512 * K,
        &[
            Wanted { what: "a hand-over", goal: Goal::More { than: "at its owner's", must: 120.0, aims: 60.0 } },
            faster("new connections, two workers", 1.8, 1.95),
        ],
        together::hand_over_cost,
    ),
    row(
        "G1",
        M,
        &[
            no_more("expiry of 1M in a second: longest loop", Unit::Micros, 100.0, 20.0),
            shown("… all but one in 10 000", Unit::Micros),
            shown("… by the wall", Unit::Micros),
        ],
        calm::expiry,
    ),
    row(
        "H1",
        M,
        &[
            no_more("latency at half load, added to io: p50", Unit::Micros, 3.0, 1.0),
            no_more("… p99.9", Unit::Micros, 50.0, 20.0),
        ],
        latency::at_half_load,
    ),
];

const fn faster(what: &'static str, must: f64, aims: f64) -> Wanted {
    Wanted { what, goal: Goal::Faster { must, aims } }
}

impl Workload {
    /// Flows or connections, of which there may be less for a quick look.
    pub fn flows(&self, most: u32) -> u32 {
        self.flows.min(most)
    }

    /// Flows of the floor that its figures are compared with.
    pub fn floor_flows(&self, most: u32) -> Option<u32> {
        self.figures.iter().find_map(|f| f.goal.floor_flows()).map(|flows| flows.min(most))
    }

    /// Bytes that should lie on huge pages while it runs: the largest shape that it may have, and its floor.
    pub fn bytes(&self, most: u32) -> usize {
        let flows = self.flows(most);
        let twice = flows * 2 + (1 << 17);
        let class = match self.family {
            Family::V4 => Class::Tcp4,
            Family::V6 => Class::Tcp6,
        };
        let shape = super::scene::Shape::new(twice, class, Policy::small());
        self.scenes as usize * shape.bytes() + self.floor_flows(most).map_or(0, |f| f as usize * 144) + (64 << 20)
    }

    /// Runs it with one kind of pool.
    ///
    /// # Errors
    /// [`BenchError::Wrong`] if what the router did is not right: then there is no figure.
    pub fn run(&self, bench: &mut Bench, variant: Variant) -> Result<Outcome, BenchError> {
        let Variant { mapping, preserve_port } = variant;
        let policy =
            Policy { family: self.family, addresses: self.addresses, mapping, preserve_port, ..Policy::small() };
        let figures = (self.run)(bench, &policy, self.flows(bench.connections))?;
        Ok(Outcome { variant, figures })
    }
}

fn established(bench: &mut Bench, policy: &Policy, flows: u32, load: Load) -> Result<Vec<Vec<Round>>, BenchError> {
    let mut standing = Standing::new(bench, policy, load, flows, flows)?;
    let mut rounds = Vec::with_capacity(bench.rounds);
    for _ in 0..bench.rounds {
        let io = standing.io(bench)?;
        let all = standing.measure(bench)?;
        rounds.push(Round { work: all - io, io: Some(io), floor: bench.floor(), base: None });
    }
    standing.verify(bench)?;
    Ok(vec![rounds])
}

/// A1 to A4.
fn established_udp(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    established(bench, policy, flows, Load::Udp)
}

/// A7.
fn established_udp6(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    let rounds = established(bench, policy, flows, Load::Udp);
    // These frames are longer than those of others.
    bench.supply.clear();
    rounds
}

/// A5.
fn established_tcp(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    established(bench, policy, flows, Load::Tcp)
}

/// A6.
fn frame_sizes(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    let mut standing = Standing::new(bench, policy, Load::Udp, flows, flows)?;
    let loads = [Load::Imix, Load::Long, Load::ImixUnverified, Load::LongUnverified];
    let mut figures = vec![Vec::new(); loads.len()];
    for _ in 0..bench.rounds {
        standing.carry(Load::Udp);
        let io = standing.io(bench)?;
        let base = Some(standing.measure(bench)? - io);
        let floor = bench.floor();
        for (rounds, load) in figures.iter_mut().zip(loads) {
            standing.carry(load);
            let io = standing.io(bench)?;
            let work = standing.measure(bench)? - io;
            rounds.push(Round { work, io: Some(io), floor, base });
        }
    }
    for load in loads {
        standing.carry(load);
        standing.verify(bench)?;
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_not_given_twice() {
        let ids: std::collections::HashSet<&str> = ALL.iter().map(|w| w.id).collect();
        assert_eq!(ids.len(), ALL.len());
    }
}

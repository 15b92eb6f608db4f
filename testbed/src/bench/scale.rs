//! Small routers against large ones: what rules, zones and routes add.

use super::established::{Load, Standing};
use super::goals::Round;
use super::opening::Filling;
use super::script::{Policy, TENANTS};
use super::{Bench, BenchError};

/// Established packets through two routers by turns: the second's figure, with the first's as its base.
fn compare(
    bench: &mut Bench,
    small: &Policy,
    large: &Policy,
    flows: u32,
    fits: u32,
) -> Result<Vec<Round>, BenchError> {
    let mut small = Standing::new(bench, small, Load::Udp, flows, fits)?;
    let mut large = Standing::new(bench, large, Load::Udp, flows, fits)?;
    let mut rounds = Vec::new();
    for _ in 0..bench.rounds {
        // Each less its own generator: tags of thousands of tenants take a division, that of one does not.
        let base = -small.io(bench)? + small.measure(bench)?;
        let io = large.io(bench)?;
        let work = large.measure(bench)? - io;
        rounds.push(Round { work, io: Some(io), floor: bench.floor(), base: Some(base) });
    }
    small.verify(bench)?;
    large.verify(bench)?;
    Ok(rounds)
}

/// D1: 10 000 rules against 10, for new connections and for established packets.
pub fn rules(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    let many = Policy { rules: 10_000, ..policy.clone() };
    let mut few_filling = Filling::new(policy, flows)?;
    let mut filling = Filling::new(&many, flows)?;
    let mut opening = Vec::new();
    for round in 0..=bench.rounds {
        let (base, io) = few_filling.round(bench)?;
        let (work, _) = filling.round(bench)?;
        // The first fill of both is of memory never touched before.
        if round > 0 {
            opening.push(Round { work: work - io, io: Some(io), floor: None, base: Some(base - io) });
        }
    }
    filling.verify(bench)?;
    drop((few_filling, filling));
    let flows = bench.at_most(1 << 16);
    Ok(vec![opening, compare(bench, policy, &many, flows, flows)?])
}

/// D2: 4096 zones, 4094 of them with 256 flows each, against one zone with all the flows.
pub fn zones(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    let many = Policy { tenants: TENANTS.min(flows), further_zones: 1, routes: 0, ..policy.clone() };
    Ok(vec![compare(bench, policy, &many, flows, flows)?])
}

/// D3: established packets with 10 and with 1000 raw rules on their interface, against none.
pub fn raw_rules(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    [10, 1000]
        .into_iter()
        .map(|raw_rules| compare(bench, policy, &Policy { raw_rules, ..policy.clone() }, flows, flows))
        .collect()
}

/// 4096 zones and interfaces, 10 000 rules, 100 000 routes and 256 pools together, against one of each: A1, A2, A3.
pub fn growth(bench: &mut Bench, policy: &Policy, most: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    let grown = Policy { mapping: policy.mapping, preserve_port: policy.preserve_port, ..Policy::grown() };
    [1 << 10, 1 << 16, 1 << 20]
        .into_iter()
        .map(|flows| compare(bench, policy, &grown, most.min(flows), most.min(flows)))
        .collect()
}

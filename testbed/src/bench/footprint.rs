//! What things take of this process's memory.

use erhu_planes::connections::Class;

use super::established::{Load, open_all};
use super::frames::SPARES_MAPPED;
use super::goals::Round;
use super::scene::{Scene, Shape};
use super::script::{Policy, TENANTS};
use super::verify::Judge;
use super::{Bench, BenchError};

/// Bytes of memory that this process has, huge pages included, and nothing that it has freed.
fn resident() -> Result<usize, BenchError> {
    erhu_floor::give_back_freed();
    let text = std::fs::read_to_string("/proc/self/smaps_rollup")
        .map_err(|e| BenchError::Scene(format!("/proc/self/smaps_rollup: {e}")))?;
    let of = |name: &str| -> usize {
        let number = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok());
        number.unwrap_or(0)
    };
    // Pages of memfds are shared by name, and this process is the only one that has them.
    Ok((of("Rss:") + of("Private_Hugetlb:") + of("Shared_Hugetlb:")) * 1024)
}

/// What a router has of memory that it does not account for, at most: accounts of zones, next hops, statistics, event
/// rings; and what large pages round up.
const UNKNOWN: usize = 24 << 20;
/// Connections of the router that tells what a router has before it has any.
const FEW: u32 = 1 << 12;

/// Bytes that the process has more for a router, made for so many connections, that is full of them. What the router
/// knows of is held against that.
fn full(bench: &mut Bench, policy: &Policy, flows: u32, class: Class) -> Result<usize, BenchError> {
    let shape = Shape::new(flows, class, policy.clone());
    let program = shape.program()?;
    let mut judge = Judge::new(flows, policy);
    judge.touch();
    let before = resident()?;
    let mut scene = Scene::running(shape, program)?;
    let load = if class.is_tcp() { Load::Tcp } else { Load::Udp };
    open_all(bench, &mut scene, &mut judge, load)?;
    // Buffers for the router's own packets are the benchmark's, as a NIC's pool would be.
    let bytes = resident()?.saturating_sub(before + SPARES_MAPPED);
    let accounted: usize = scene.bytes_in_use().iter().sum();
    // The process has at least what the router knows of; a little slack for what it had before and gave back.
    if bytes + (4 << 20) < accounted {
        return Err(BenchError::Wrong(format!(
            "{accounted} bytes are in use, but the process has {bytes} more only"
        )));
    }
    if bytes > accounted + UNKNOWN {
        return Err(BenchError::Wrong(format!(
            "the process has {bytes} bytes more, of which {accounted} are in use"
        )));
    }
    Ok(bytes)
}

/// C1: bytes per connection, TCP and UDP: what the process has for a full router more than for a small one that is full,
/// by connection. And what it has for a small one.
pub fn connections(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    let few = FEW.min(flows / 2);
    let mut rows = Vec::new();
    let mut least = 0;
    for class in [Class::Tcp4, Class::Udp4] {
        least = full(bench, policy, few, class)?;
        let more = full(bench, policy, flows, class)?.saturating_sub(least);
        rows.push(vec![Round::alone(more as f64 / f64::from(flows - few))]);
    }
    rows.push(vec![Round::alone(least as f64)]);
    Ok(rows)
}

/// Bytes that one more of something takes: of a router that runs `small`, then `large`.
fn by_piece(small: &Policy, large: &Policy, pieces: u32) -> Result<Vec<Round>, BenchError> {
    let programs = [small, large].map(|policy| Shape::new(1 << 10, Class::Udp4, policy.clone()).program());
    let [small_program, large_program] = programs;
    let mut scene = Scene::running(Shape::new(1 << 10, Class::Udp4, small.clone()), small_program?)?;
    let before = resident()?;
    let (_, mut control) = scene.split();
    control.adopt(large_program?)?;
    // Workers let the old policy go.
    scene.settle();
    let after = resident()?;
    Ok(vec![Round::alone(after.saturating_sub(before) as f64 / f64::from(pieces))])
}

/// C2: bytes of an idle zone with its interface, routes, neighbour and translating rule; of an idle pool address.
pub fn idle(_: &mut Bench, policy: &Policy, _: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    let zones = Policy { tenants: TENANTS, routes: 0, ..policy.clone() };
    let addresses = Policy { addresses: 1 << 14, ..policy.clone() };
    Ok(vec![
        by_piece(policy, &zones, TENANTS - policy.tenants)?,
        by_piece(policy, &addresses, (1 << 14) - policy.addresses)?,
    ])
}

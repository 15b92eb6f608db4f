//! Nothing stalls a worker: dumps, reloads, flushes and expiry storms while packets come in.
//!
//! The worker runs on this thread; what disturbs it runs on another, on another CPU. The longest loop counts in CPU
//! time of the worker's thread: what other programs of the machine take from it is not the router's doing. By the wall
//! it is shown too.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use erhu_controlplane::cli::{self, Env};
use erhu_floor::clock;
use erhu_pipeline::BURST;

use super::established::{Load, Packets, Standing, refresh};
use super::frames::Supply;
use super::goals::Round;
use super::measure::{Handler, Io, Loops, Timed, Wait, pass, unseen};
use super::opening::{Aging, FirstPackets, UDP_TIMEOUT};
use super::scene::{ControlSide, Scene, Shape};
use super::script::{Policy, TENANTS};
use super::{Bench, BenchError};

/// Packets between two looks at whether it is time to stop.
const CHUNK: u32 = 64 * 64;
/// Packets after which what should end never will.
const PATIENCE: u64 = 1 << 32;
/// Established connections that go on while others end.
const BACKGROUND: u32 = 1 << 16;

/// Forwards until `done`. Ticks per packet, and packets.
fn forward_until(
    supply: &mut Supply,
    handler: &mut impl Handler,
    packets: &mut Packets,
    mut done: impl FnMut() -> bool,
) -> Result<(f64, u64), BenchError> {
    let (mut ticks, mut count) = (0.0, 0_u64);
    while !done() || count == 0 {
        ticks += pass(supply, CHUNK, handler, packets, unseen)?;
        count += 1;
        if count * u64::from(CHUNK) > PATIENCE {
            return Err(BenchError::Wrong("it never ends".into()));
        }
    }
    Ok((ticks / count as f64, count * u64::from(CHUNK)))
}

/// Three figures of loops in microseconds: the longest by CPU time, all but one in ten thousand, the longest by the wall.
/// Beside them those of as many loops that are as long on average and only watch the clock: what the machine does to any
/// thread meanwhile.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time, positive and short")]
fn of_loops(bench: &mut Bench, standing: &mut Standing, loops: &Loops) -> Result<[Round; 3], BenchError> {
    let count = loops.count().max(1);
    let mut wait = Wait((loops.all_ns as f64 / count as f64 * clock::hz() / 1e9) as u64);
    let mut nothing = Timed::new(&mut wait);
    let packets = u32::try_from(count * BURST as u64).unwrap_or(u32::MAX);
    pass(&mut bench.supply, packets, &mut nothing, &mut standing.packets, unseen)?;
    let idle = nothing.loops;
    let round = |ns: u64, io: u64| Round { io: Some(io as f64 / 1000.0), ..Round::alone(ns as f64 / 1000.0) };
    Ok([
        round(loops.cpu_ns, idle.cpu_ns),
        round(loops.nearly_all_ns(), idle.nearly_all_ns()),
        round(loops.wall_ns, idle.wall_ns),
    ])
}

/// Columns of rounds from rounds of columns.
fn columns<const N: usize>(rounds: Vec<[Round; N]>) -> Vec<Vec<Round>> {
    (0..N).map(|column| rounds.iter().map(|round| round[column]).collect()).collect()
}

/// Runs `disturb` on another CPU while the only worker forwards; both outcomes, once `disturb` has ended.
fn beside<T: Send>(
    bench: &mut Bench,
    standing: &mut Standing,
    disturb: impl FnOnce(ControlSide<'_>) -> Result<T, BenchError> + Send,
) -> Result<(T, f64, Loops), BenchError> {
    let (other, ended) = (bench.other_cpu, AtomicBool::new(false));
    let Standing { scene, packets, .. } = standing;
    scene.run();
    let (lanes, control) = scene.split();
    let outcome = thread::scope(|scope| {
        let disturbing = scope.spawn(|| {
            super::pin(other);
            let outcome = disturb(control);
            ended.store(true, Ordering::Release);
            outcome
        });
        let mut timed = Timed::new(&mut lanes[0]);
        let forwarded = forward_until(&mut bench.supply, &mut timed, packets, || ended.load(Ordering::Acquire));
        // A worker that stopped early must not keep the other waiting for ever.
        let loops = timed.loops;
        let disturbed = match &forwarded {
            Ok(_) => disturbing.join(),
            Err(_) => {
                while !disturbing.is_finished() {
                    lanes[0].idle();
                }
                disturbing.join()
            }
        };
        let disturbed = disturbed.map_err(|_| BenchError::Wrong("the other thread panicked".into()))??;
        Ok((disturbed, forwarded?.0, loops))
    });
    scene.stop();
    outcome
}

/// Counts lines and forgets them.
#[derive(Default)]
struct Lines(u64);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.iter().filter(|b| **b == b'\n').count() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `erhu conntrack -L -o extended,id`: lines, and seconds of CPU time.
fn dump(mut control: ControlSide<'_>) -> Result<(u64, f64), BenchError> {
    let (mut lines, mut said) = (Lines::default(), Vec::new());
    let began = clock::cpu_ns();
    let mut env = Env { out: &mut lines, err: &mut said, dataplane: Some(&mut control), is_terminal: false };
    let status = cli::run(["conntrack", "-L", "-o", "extended,id"].map(Into::into), &mut env);
    let seconds = (clock::cpu_ns() - began) as f64 / 1e9;
    if status == 0 { Ok((lines.0, seconds)) } else { Err(BenchError::Wrong(String::from_utf8_lossy(&said).into())) }
}

/// E1: a dump of all connections while packets of theirs are forwarded.
pub fn dump_while_forwarding(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    let mut standing = Standing::new(bench, policy, Load::Udp, flows, flows)?;
    let mut rounds = Vec::new();
    for _ in 0..bench.rounds {
        let io = timed_alone(bench, &mut standing, true)?;
        let base = timed_alone(bench, &mut standing, false)? - io;
        let ((lines, seconds), all, _) = beside(bench, &mut standing, dump)?;
        if lines != u64::from(flows) {
            return Err(BenchError::Wrong(format!("{lines} of {flows} connections were listed")));
        }
        let work = all - io;
        let slower = Round { io: Some(io), base: Some(base), ..Round::alone((work / base - 1.0) * 100.0) };
        rounds.push([slower, Round::alone(seconds)]);
    }
    standing.verify(bench)?;
    Ok(columns(rounds))
}

/// As measured beside something: loops timed one by one; or the same of the loop that does nothing.
fn timed_alone(bench: &mut Bench, standing: &mut Standing, io: bool) -> Result<f64, BenchError> {
    let Standing { scene, packets, .. } = standing;
    if io {
        return pass(&mut bench.supply, bench.packets, &mut Timed::new(&mut Io), packets, unseen);
    }
    scene.run();
    let ticks = pass(&mut bench.supply, bench.packets, &mut Timed::new(scene.lane()), packets, unseen);
    scene.stop();
    ticks
}

/// E3: another 10 000 rules under load: script to adoption, and every connection judged again.
pub fn reload(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    let many = Policy { rules: 10_000, ..policy.clone() };
    let mut standing = Standing::new(bench, &many, Load::Udp, flows, flows)?;
    let mut rounds = Vec::new();
    for round in 0..bench.rounds {
        // Another script every time: what is equal might be recognised.
        let rules = 10_000 + u32::try_from(round).unwrap_or(0) + 1;
        let shape = Shape::new(flows, standing.scene.shape.class, Policy { rules, ..many.clone() });
        let apply = move |mut control: ControlSide<'_>| {
            let began = clock::cpu_ns();
            let generation = control.adopt(shape.program()?)?;
            while !control.all_adopted(generation) {
                std::hint::spin_loop();
            }
            Ok((clock::cpu_ns() - began) as f64 / 1e9)
        };
        let (seconds, _, loops) = beside(bench, &mut standing, apply)?;
        // And every connection is judged again, some sooner, some later.
        let Standing { scene, packets, .. } = &mut standing;
        scene.run();
        let mut timed = Timed::new(scene.lane());
        pass(&mut bench.supply, flows * 4, &mut timed, packets, unseen)?;
        let after = timed.loops;
        scene.stop();
        let [cpu, nearly_all, wall] = of_loops(bench, &mut standing, &loops.and(&after))?;
        // `pass` ends the row where a packet is lost.
        rounds.push([Round::alone(0.0), cpu, nearly_all, wall, Round::alone(seconds)]);
        refresh(bench, &mut standing.scene, 0..flows, unseen)?;
    }
    standing.verify(bench)?;
    Ok(columns(rounds))
}

/// E4: 1M connections of one zone among 4096 are flushed while the other zones' packets go on.
pub fn flush(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    let background = bench.at_most(BACKGROUND);
    let tenants = TENANTS.min(background);
    let many = Policy { tenants, further_zones: 1, routes: 0, crowd_from: background, ..policy.clone() };
    let mut standing = Standing::new(bench, &many, Load::Udp, background, (background + flows) * 2)?;
    let mut rounds = Vec::new();
    for _ in 0..bench.rounds {
        standing.scene.provision()?;
        refresh(bench, &mut standing.scene, background..background + flows, unseen)?;
        standing.scene.balance(u64::from(background) + u64::from(flows))?;
        let flush = |control: ControlSide<'_>| {
            let job = control.flush(1);
            loop {
                if let Some(ended) = job.result() {
                    return Ok(ended);
                }
                std::hint::spin_loop();
            }
        };
        let (ended, _, loops) = beside(bench, &mut standing, flush)?;
        if ended != u64::from(flows) {
            return Err(BenchError::Wrong(format!("{ended} of {flows} connections were ended")));
        }
        rounds.push(of_loops(bench, &mut standing, &loops)?);
        standing.scene.balance(background.into())?;
        standing.scene.pass(1);
        refresh(bench, &mut standing.scene, 0..background, unseen)?;
    }
    standing.verify(bench)?;
    Ok(columns(rounds))
}

/// G1: 1M connections that began within one second end within one second, while other packets go on.
pub fn expiry(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    let background = bench.at_most(BACKGROUND);
    let mut standing = Standing::new(bench, policy, Load::Udp, background, (background + flows) * 2)?;
    let mut rounds = Vec::new();
    for _ in 0..bench.rounds {
        standing.scene.provision()?;
        let ns = 1_000_000_000 / (u64::from(flows) / BURST as u64).max(1);
        let mut source = FirstPackets::new(policy, flows, background);
        pass(&mut bench.supply, flows, &mut Aging { scene: &mut standing.scene, ns }, &mut source, unseen)?;
        standing.scene.balance(u64::from(background) + u64::from(flows))?;
        standing.scene.pass(UDP_TIMEOUT - 2);
        refresh(bench, &mut standing.scene, 0..background, unseen)?;
        // The clock has come to the last second before the first of them ends.
        let Standing { scene, packets, .. } = &mut standing;
        let loops = run_out(bench, scene, packets, background)?;
        standing.scene.balance(background.into())?;
        rounds.push(of_loops(bench, &mut standing, &loops)?);
        refresh(bench, &mut standing.scene, 0..background, unseen)?;
    }
    standing.verify(bench)?;
    Ok(columns(rounds))
}

/// Forwards in real time until no more than `background` connections live.
fn run_out(
    bench: &mut Bench,
    scene: &mut Scene,
    packets: &mut Packets,
    background: u32,
) -> Result<Loops, BenchError> {
    scene.run();
    let mut timed = Timed::new(scene.lane());
    let mut chunks = 0;
    let mut forwarded = Ok(());
    while forwarded.is_ok() && timed.handler().live() > background {
        forwarded = pass(&mut bench.supply, CHUNK, &mut timed, packets, unseen).map(drop);
        chunks += 1;
        if chunks > PATIENCE / u64::from(CHUNK) {
            forwarded = Err(BenchError::Wrong("some never end".into()));
        }
    }
    let loops = timed.loops;
    scene.stop();
    forwarded.map(|()| loops)
}

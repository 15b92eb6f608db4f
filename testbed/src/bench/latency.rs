//! Latency: packets that arrive at a steady pace, and how long each takes.

use erhu_floor::clock;
use erhu_pipeline::BURST;

use super::established::{Load, Standing};
use super::frames::{Frame, Supply};
use super::goals::Round;
use super::measure::{Handler, Io, Source};
use super::script::Policy;
use super::{Bench, BenchError};

/// Loops between two looks at whether the thread had its CPU to itself.
const WINDOW: usize = 512;
/// Nanoseconds of a window without the CPU above which its packets do not count: somebody else ran.
const AWAY_NS: f64 = 10_000.0;
/// Buckets of a histogram: of 16 ns each up to 1 ms.
const BUCKETS: usize = 1 << 16;
/// Nanoseconds of a bucket.
const BUCKET_NS: f64 = 16.0;

/// Latencies of packets.
struct Histogram(Vec<u32>);

impl Histogram {
    fn new() -> Self {
        Self(vec![0; BUCKETS])
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time, positive and bounded")]
    fn add(&mut self, ns: f64) {
        let at = ((ns / BUCKET_NS) as usize).min(BUCKETS - 1);
        self.0[at] += 1;
    }

    /// Microseconds below which so large a part lies.
    fn quantile(&self, part: f64) -> f64 {
        let all: u64 = self.0.iter().map(|n| u64::from(*n)).sum();
        let (wanted, mut seen) = (all as f64 * part, 0.0);
        let at = self.0.iter().position(|n| {
            seen += f64::from(*n);
            seen >= wanted
        });
        (at.unwrap_or(BUCKETS - 1) as f64 + 0.5) * BUCKET_NS / 1000.0
    }
}

/// Takes packets that arrive every `gap` ticks through a handler; their latencies, and the part of windows that did not
/// count.
fn paced(
    supply: &mut Supply,
    packets: u32,
    gap: f64,
    handler: &mut impl Handler,
    source: &mut impl Source,
) -> Result<(Histogram, f64), BenchError> {
    let ns_per_tick = 1e9 / clock::hz();
    let mut histogram = Histogram::new();
    let mut window: Vec<f64> = Vec::with_capacity(WINDOW * BURST);
    let (mut burst, mut sent): (Vec<Frame>, Vec<Frame>) = (Vec::with_capacity(BURST), Vec::with_capacity(2 * BURST));
    let (mut windows, mut disturbed, mut count) = (0_u32, 0_u32, 0_u32);
    while count < packets {
        let (cpu, wall) = (clock::cpu_ns(), clock::ticks());
        // When the next packet arrives. Each window starts anew: what lies between two is not the router's doing.
        let mut next = wall as f64;
        for _ in 0..WINDOW {
            let now = clock::ticks() as f64;
            let first = next;
            let port = source.begin();
            while next <= now && burst.len() < BURST {
                let Some(mut frame) = supply.take() else { break };
                source.write(&mut frame);
                burst.push(frame);
                next += gap;
            }
            let arrived = burst.len();
            handler.handle(port, &mut burst, &mut sent);
            if sent.len() != arrived {
                return Err(BenchError::Wrong(format!("of {arrived} packets {} were sent", sent.len())));
            }
            let left = clock::ticks() as f64;
            for (place, frame) in sent.drain(..).enumerate() {
                window.push((left - (first + place as f64 * gap)) * ns_per_tick);
                supply.give(frame);
            }
        }
        let wall_ns = (clock::ticks() - wall) as f64 * ns_per_tick;
        windows += 1;
        if wall_ns - (clock::cpu_ns() - cpu) as f64 > AWAY_NS {
            disturbed += 1;
        } else {
            count += u32::try_from(window.len()).unwrap_or(0);
            window.iter().for_each(|ns| histogram.add(*ns));
        }
        window.clear();
        // A machine that is never quiet gives no figure.
        if windows > 1000 && disturbed * 10 > windows * 9 {
            return Err(BenchError::Scene("other programs took the CPU in nine of ten windows".into()));
        }
    }
    Ok((histogram, f64::from(disturbed) / f64::from(windows)))
}

/// H1: packets of 1M flows arrive at half the rate that the router can take, one by one at equal distances; what it
/// adds to the latency of the loop that does nothing, at the median and at 99.9 %.
pub fn at_half_load(bench: &mut Bench, policy: &Policy, flows: u32) -> Result<Vec<Vec<Round>>, BenchError> {
    let mut standing = Standing::new(bench, policy, Load::Udp, flows, flows)?;
    let (mut middle, mut tail) = (Vec::new(), Vec::new());
    let gap = 2.0 * standing.measure(bench)?;
    let packets = bench.packets;
    for _ in 0..bench.rounds {
        let (io, _) = paced(&mut bench.supply, packets, gap, &mut Io, &mut standing.packets)?;
        let Standing { scene, packets: source, .. } = &mut standing;
        scene.run();
        let router = paced(&mut bench.supply, packets, gap, scene.lane(), source);
        scene.stop();
        let (router, _) = router?;
        let added = |part| router.quantile(part) - io.quantile(part);
        middle.push(Round { io: Some(io.quantile(0.5)), ..Round::alone(added(0.5)) });
        tail.push(Round { io: Some(io.quantile(0.999)), ..Round::alone(added(0.999)) });
    }
    standing.verify(bench)?;
    Ok(vec![middle, tail])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_bucket_below_which_so_large_a_part_lies() {
        let mut histogram = Histogram::new();
        (0..1000).for_each(|n| histogram.add(if n < 990 { 100.0 } else { 50_000.0 }));
        assert!((histogram.quantile(0.5) - 0.1).abs() < 0.02, "{}", histogram.quantile(0.5));
        assert!((histogram.quantile(0.999) - 50.0).abs() < 0.02, "{}", histogram.quantile(0.999));
    }
}

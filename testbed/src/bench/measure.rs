//! The loop that is measured: make a burst of frames, have it handled, take back what is sent.

use erhu_floor::clock::{self, Stopwatch};
use erhu_pipeline::BURST;

use super::BenchError;
use super::frames::{Frame, Supply};
use super::scene::{LAN, Lane};

/// Makes packets. A closure that writes one makes packets that come in by the tenant's port.
pub trait Source {
    /// Begins a burst; by which port it comes in.
    #[inline(always)]
    fn begin(&mut self) -> u16 {
        LAN
    }

    /// Writes the burst's next packet.
    fn write(&mut self, frame: &mut Frame);
}

impl<F: FnMut(&mut Frame)> Source for F {
    #[inline(always)]
    fn write(&mut self, frame: &mut Frame) {
        self(frame);
    }
}

/// A closure as a [`Source`] of packets that come in by another port.
#[derive(Debug)]
pub struct By<F>(pub u16, pub F);

impl<F: FnMut(&mut Frame)> Source for By<F> {
    #[inline(always)]
    fn begin(&mut self) -> u16 {
        self.0
    }

    #[inline(always)]
    fn write(&mut self, frame: &mut Frame) {
        self.1(frame);
    }
}

/// What handles a burst between receiving and sending.
pub trait Handler {
    /// Takes all of `burst`, which came in by a port; what leaves goes into `sent`, which is empty.
    fn handle(&mut self, port: u16, burst: &mut Vec<Frame>, sent: &mut Vec<Frame>);

    /// Why packets may be missing, as far as it knows.
    fn explain(&self) -> String {
        String::new()
    }
}

/// Sends on what was received: the yardstick `io`.
#[derive(Clone, Copy, Debug)]
pub struct Io;

impl Handler for Io {
    #[inline(always)]
    fn handle(&mut self, _: u16, burst: &mut Vec<Frame>, sent: &mut Vec<Frame>) {
        std::mem::swap(burst, sent);
    }
}

/// Sends on what was received after so many ticks: a loop as long as another, in which nothing happens.
#[derive(Clone, Copy, Debug)]
pub struct Wait(pub u64);

impl Handler for Wait {
    fn handle(&mut self, _: u16, burst: &mut Vec<Frame>, sent: &mut Vec<Frame>) {
        let began = clock::ticks();
        std::mem::swap(burst, sent);
        while clock::ticks() - began < self.0 {
            std::hint::spin_loop();
        }
    }
}

/// A worker of the router.
impl Handler for Lane {
    #[inline(always)]
    fn handle(&mut self, port: u16, burst: &mut Vec<Frame>, sent: &mut Vec<Frame>) {
        self.turn(port, burst, sent);
    }

    fn explain(&self) -> String {
        let drops = self.drops();
        if drops.is_empty() { drops } else { format!("; drops: {drops}") }
    }
}

/// A handler whose loops are timed one by one.
#[derive(Debug)]
pub struct Timed<'h, H> {
    handler: &'h mut H,
    /// What was seen so far.
    pub loops: Loops,
}

/// What some loops took.
#[derive(Clone, Debug)]
pub struct Loops {
    /// The longest in CPU time of its thread, nanoseconds. Counts: what other programs do meanwhile is not in it, but
    /// interrupts are, and whatever the hypervisor does without saying so.
    pub cpu_ns: u64,
    /// The longest by the wall, nanoseconds.
    pub wall_ns: u64,
    /// All of them together, in CPU time, nanoseconds.
    pub all_ns: u64,
    /// Loops by CPU time: sixteen buckets for each power of two.
    buckets: Box<[u32; BUCKETS]>,
}

/// Sixteenths of powers of two, of nanoseconds up to a minute.
const BUCKETS: usize = 32 * 16;

/// The bucket of a time.
#[inline(always)]
fn bucket(ns: u64) -> usize {
    let log = (ns | 16).ilog2();
    let within = (ns >> (log - 4)) & 15;
    ((log as usize - 4) * 16 + usize::try_from(within).unwrap_or(0)).min(BUCKETS - 1)
}

/// Where a bucket ends.
const fn end_of(bucket: usize) -> u64 {
    (16 + (bucket % 16) as u64 + 1) << (bucket / 16)
}

impl Default for Loops {
    fn default() -> Self {
        Self { cpu_ns: 0, wall_ns: 0, all_ns: 0, buckets: Box::new([0; BUCKETS]) }
    }
}

impl Loops {
    #[inline(always)]
    fn took(&mut self, cpu_ns: u64, wall_ns: u64) {
        self.cpu_ns = self.cpu_ns.max(cpu_ns);
        self.wall_ns = self.wall_ns.max(wall_ns);
        self.all_ns += cpu_ns;
        self.buckets[bucket(cpu_ns)] += 1;
    }

    /// Both together.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.cpu_ns = self.cpu_ns.max(other.cpu_ns);
        self.wall_ns = self.wall_ns.max(other.wall_ns);
        self.all_ns += other.all_ns;
        self.buckets.iter_mut().zip(other.buckets.iter()).for_each(|(to, from)| *to += from);
        self
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|n| u64::from(*n)).sum()
    }

    /// What all but one in ten thousand took less than, to a sixteenth, nanoseconds. A timer that interrupts 250 times a
    /// second is in fewer loops than that only where these are short, which is why [`Wait`] stands beside it.
    pub fn nearly_all_ns(&self) -> u64 {
        let all = self.count();
        let mut above = 0;
        for (at, count) in self.buckets.iter().enumerate().rev() {
            above += u64::from(*count);
            if above * 10_000 > all {
                return end_of(at).min(self.cpu_ns);
            }
        }
        0
    }
}

impl<'h, H> Timed<'h, H> {
    /// Nothing seen so far.
    pub fn new(handler: &'h mut H) -> Self {
        clock::hz();
        Self { handler, loops: Loops::default() }
    }

    /// What is timed.
    pub fn handler(&self) -> &H {
        self.handler
    }
}

impl<H: Handler> Handler for Timed<'_, H> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time, positive and short")]
    fn handle(&mut self, port: u16, burst: &mut Vec<Frame>, sent: &mut Vec<Frame>) {
        let (cpu, wall) = (clock::cpu_ns(), clock::ticks());
        self.handler.handle(port, burst, sent);
        let wall = clock::ticks() - wall;
        self.loops.took(clock::cpu_ns() - cpu, (wall as f64 / clock::hz() * 1e9) as u64);
    }

    fn explain(&self) -> String {
        self.handler.explain()
    }
}

/// Takes `packets` packets (whole bursts) through a handler. `look` sees what is sent. Returns ticks of CPU time per
/// packet.
///
/// # Errors
/// [`BenchError::Wrong`] if not all of them are sent, or what `look` says.
#[inline(never)]
pub fn pass(
    supply: &mut Supply,
    packets: u32,
    handler: &mut impl Handler,
    source: &mut impl Source,
    mut look: impl FnMut(&Frame) -> Result<(), String>,
) -> Result<f64, BenchError> {
    let bursts = packets as usize / BURST;
    let mut burst: Vec<Frame> = Vec::with_capacity(BURST);
    let mut sent: Vec<Frame> = Vec::with_capacity(2 * BURST);
    let mut bytes = 0;
    let mut count = 0;
    let watch = Stopwatch::start();
    for _ in 0..bursts {
        let port = source.begin();
        supply.fill(&mut burst, source);
        handler.handle(port, &mut burst, &mut sent);
        count += sent.len();
        for frame in sent.drain(..) {
            bytes += frame.len();
            look(&frame).map_err(BenchError::Wrong)?;
            supply.give(frame);
        }
    }
    let ticks = watch.ticks() / (bursts * BURST).max(1) as f64;
    std::hint::black_box(bytes);
    let lost = supply.lost();
    if count != bursts * BURST || lost != 0 {
        let offered = bursts * BURST;
        let why = handler.explain();
        return Err(BenchError::Wrong(format!("of {offered} packets {count} were sent ({lost} buffers lost){why}")));
    }
    Ok(ticks)
}

/// Looks at nothing.
#[inline(always)]
pub fn unseen(_: &Frame) -> Result<(), String> {
    Ok(())
}

/// Median and extremes of some figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The one in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of at least one figure.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let upper = *figures.get(middle)?;
        let median = if figures.len().is_multiple_of(2) { (upper + figures[middle - 1]) / 2.0 } else { upper };
        Some(Self { median, min: *figures.first()?, max: *figures.last()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearly_all_loops_are_all_but_one_in_ten_thousand() {
        let mut loops = Loops::default();
        (0..20_000).for_each(|_| loops.took(5_000, 6_000));
        loops.took(90_000, 1_000_000);
        loops.took(80_000, 0);
        let near = loops.nearly_all_ns();
        assert!((5_000..=5_400).contains(&near), "{near}");
        loops.took(70_000, 0);
        let near = loops.nearly_all_ns();
        assert!((70_000..=75_000).contains(&near), "{near}");
        assert_eq!((loops.cpu_ns, loops.wall_ns), (90_000, 1_000_000));
        let both = loops.clone().and(&loops);
        assert_eq!((both.nearly_all_ns(), both.all_ns), (near, 2 * loops.all_ns));
        assert_eq!(Loops::default().nearly_all_ns(), 0);
    }

    #[test]
    fn a_bucket_holds_what_is_below_its_end_and_no_more_than_a_sixteenth_below() {
        for ns in (0..100_000).chain([1 << 30, (1 << 35) + 7]) {
            let end = end_of(bucket(ns));
            assert!(ns < end && end <= ns + ns / 16 + 17, "{ns} {end}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert_eq!(Spread::of([4.0, 1.0, 3.0, 10.0]), Some(Spread { median: 3.5, min: 1.0, max: 10.0 }));
        assert_eq!(Spread::of([5.0]).map(|s| s.median), Some(5.0));
        assert_eq!(Spread::of([]), None);
    }
}

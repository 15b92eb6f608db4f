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

/// The longest of some loops.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loops {
    /// Loops.
    pub count: u64,
    /// The longest in CPU time of its thread, nanoseconds. Counts: what other programs do meanwhile is not in it.
    pub cpu_ns: u64,
    /// The longest by the wall, nanoseconds.
    pub wall_ns: u64,
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
        self.loops.cpu_ns = self.loops.cpu_ns.max(clock::cpu_ns() - cpu);
        self.loops.wall_ns = self.loops.wall_ns.max((wall as f64 / clock::hz() * 1e9) as u64);
        self.loops.count += 1;
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
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert_eq!(Spread::of([4.0, 1.0, 3.0, 10.0]), Some(Spread { median: 3.5, min: 1.0, max: 10.0 }));
        assert_eq!(Spread::of([5.0]).map(|s| s.median), Some(5.0));
        assert_eq!(Spread::of([]), None);
    }
}

//! The loop that is measured: make a burst of frames, have it handled, take back what is sent.

use erhu_floor::clock::Stopwatch;
use erhu_pipeline::BURST;

use super::BenchError;
use super::flows::FRAME;
use super::frames::{Frame, Supply};
use super::scene::Scene;

/// What handles a burst between receiving and sending.
pub trait Handler {
    /// Takes all of `burst`; what leaves goes into `sent`, which is empty.
    fn handle(&mut self, burst: &mut Vec<Frame>, sent: &mut Vec<Frame>);
}

/// Sends on what was received: the yardstick `io`.
#[derive(Clone, Copy, Debug)]
pub struct Io;

impl Handler for Io {
    #[inline(always)]
    fn handle(&mut self, burst: &mut Vec<Frame>, sent: &mut Vec<Frame>) {
        std::mem::swap(burst, sent);
    }
}

/// The router, with packets that come in by one port.
pub struct Router<'s> {
    /// It.
    pub scene: &'s mut Scene,
    /// Number of the port.
    pub port: u16,
}

impl Handler for Router<'_> {
    #[inline(always)]
    fn handle(&mut self, burst: &mut Vec<Frame>, sent: &mut Vec<Frame>) {
        self.scene.turn(self.port, burst, sent);
    }
}

/// Takes `packets` packets (whole bursts) through a handler. `write` makes each; `look` sees what is sent. Returns ticks
/// of CPU time per packet.
///
/// # Errors
/// [`BenchError::Wrong`] if not all of them are sent, or what `look` says.
#[inline(never)]
pub fn pass(
    supply: &mut Supply,
    packets: u32,
    handler: &mut impl Handler,
    mut write: impl FnMut(&mut [u8; FRAME]),
    mut look: impl FnMut(&Frame) -> Result<(), String>,
) -> Result<f64, BenchError> {
    let bursts = packets as usize / BURST;
    let mut burst: Vec<Frame> = Vec::with_capacity(BURST);
    let mut sent: Vec<Frame> = Vec::with_capacity(2 * BURST);
    let mut bytes = 0;
    let mut count = 0;
    let watch = Stopwatch::start();
    for _ in 0..bursts {
        while burst.len() < BURST {
            let Some(mut frame) = supply.take() else { break };
            if let Some(bytes) = frame.receive() {
                write(bytes);
            }
            burst.push(frame);
        }
        handler.handle(&mut burst, &mut sent);
        count += sent.len();
        for frame in sent.drain(..) {
            bytes += frame.len();
            look(&frame).map_err(BenchError::Wrong)?;
            supply.give(frame);
        }
    }
    let ticks = watch.ticks() / (bursts * BURST) as f64;
    std::hint::black_box(bytes);
    let lost = supply.lost();
    if count != bursts * BURST || lost != 0 {
        let offered = bursts * BURST;
        return Err(BenchError::Wrong(format!("of {offered} packets {count} were sent ({lost} buffers lost)")));
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

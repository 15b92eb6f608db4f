//! A worker's poll loop: ports in, pipeline, ports out.
//!
//! The time stamp counter is read once per loop: it ends one loop and begins the next, and is the pipeline's clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use erhu_dpdk::{MbufArray, ticks};
use erhu_pipeline::{BURST, Worker};
use erhu_planes::DropReason;

use crate::buffer::{Packet, Pool};
use crate::clock::Clock;
use crate::ports::Queues;

/// Empty loops after which a worker without a NIC of its own lets others have the CPU.
const PATIENCE: u32 = 2_000;
/// For how long.
const NAP: Duration = Duration::from_micros(20);
/// Times that a full transmit queue is offered the rest of a burst.
const RETRIES: usize = 4;
/// Nanoseconds between publications of counters while there are packets: storing all of them costs as much as some
/// packets do, and whoever reads them does so by hand. Where packets cease they are published at once.
const PUBLISH_EVERY_NS: u64 = 100_000;

/// How a worker polls.
#[derive(Clone, Copy, Debug)]
pub struct Polling {
    /// None of the ports is a NIC, and the CPU may be somebody else's too: sleep when nothing comes.
    pub may_nap: bool,
    /// Frequency of the time stamp counter, Hz.
    pub hz: u64,
}

/// Polls until told to stop.
pub fn run(mut worker: Worker<Pool>, mut queues: Queues, stop: &Arc<AtomicBool>, polling: Polling) {
    let mut received: MbufArray<BURST> = MbufArray::new();
    let mut sending: MbufArray<BURST> = MbufArray::new();
    let mut burst: Vec<Packet> = Vec::with_capacity(BURST);
    let mut idle = 0_u32;
    let mut begun = ticks();
    let mut clock = Clock::new(polling.hz, begun);
    let mut publish_at_ns = 0;
    while !stop.load(Ordering::Relaxed) {
        let now = clock.at(begun);
        let mut packets = 0;
        worker.between_bursts(now);
        for (port, queue) in &mut queues.receive {
            let got = queue.poll(&mut received);
            if got == 0 {
                continue;
            }
            packets += got;
            worker.tally_mut().burst(got);
            for mbuf in received.drain() {
                mbuf.prefetch_data();
                match Packet::received(mbuf) {
                    Some(packet) => burst.push(packet),
                    None => worker.tally_mut().drop(DropReason::NoBuffer),
                }
            }
            worker.receive(*port, &mut burst, now);
            transmit(&mut worker, &mut queues.transmit, &mut sending);
        }
        packets += worker.take_handed(now);
        worker.flush_handovers();
        transmit(&mut worker, &mut queues.transmit, &mut sending);
        let ended = ticks();
        worker.tally_mut().looped(packets, clock.nanoseconds(ended.saturating_sub(begun)));
        begun = ended;
        let was_busy = idle == 0;
        idle = if packets > 0 { 0 } else { idle.saturating_add(1) };
        if now.mono_ns >= publish_at_ns || (was_busy && idle > 0) {
            publish_at_ns = now.mono_ns + PUBLISH_EVERY_NS;
            worker.publish();
        }
        if polling.may_nap && idle > PATIENCE {
            std::thread::sleep(NAP);
            let woken = ticks();
            worker.tally_mut().napped(clock.nanoseconds(woken.saturating_sub(begun)));
            begun = woken;
        } else if idle > 0 {
            std::hint::spin_loop();
        }
    }
    worker.publish();
}

fn transmit(worker: &mut Worker<Pool>, queues: &mut [crate::ports::Transmit], sending: &mut MbufArray<BURST>) {
    for (port, queue) in queues.iter_mut().enumerate() {
        let Some(outbox) = worker.outbox(port) else { continue };
        if outbox.is_empty() {
            continue;
        }
        let mut ready = std::mem::take(outbox);
        let mut lost = Vec::new();
        let mut packets = ready.drain(..).peekable();
        while packets.peek().is_some() {
            while !sending.is_full() {
                let Some(packet) = packets.next() else { break };
                // There is room: checked just above.
                let _ = sending.push(packet.into_mbuf());
            }
            for _ in 0..RETRIES {
                queue.send(sending);
                if sending.is_empty() {
                    break;
                }
            }
            while let Some(mbuf) = sending.pop() {
                lost.push(mbuf.len() as usize);
            }
        }
        drop(packets);
        let number = u16::try_from(port).unwrap_or(u16::MAX);
        for bytes in lost {
            worker.tally_mut().not_sent(number, bytes);
        }
        if let Some(outbox) = worker.outbox(port) {
            *outbox = ready;
        }
    }
}

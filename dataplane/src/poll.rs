//! A worker's poll loop: ports in, pipeline, ports out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use erhu_dpdk::MbufArray;
use erhu_pipeline::{BURST, Now, Worker};
use erhu_planes::DropReason;
use rustix::time::{ClockId, clock_gettime};

use crate::buffer::{Packet, Pool};
use crate::ports::Queues;

/// Empty loops after which a worker without a NIC of its own lets others have the CPU.
const PATIENCE: u32 = 2_000;
/// For how long.
const NAP: Duration = Duration::from_micros(20);
/// Times that a full transmit queue is offered the rest of a burst.
const RETRIES: usize = 4;
/// Empty loops between publications of counters.
const PUBLISH_EVERY: u32 = 256;

/// Boot time and real time.
pub fn now() -> Now {
    let ns = |id| {
        let t = clock_gettime(id);
        let seconds = u64::try_from(t.tv_sec).unwrap_or(0);
        seconds * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0)
    };
    Now::new(ns(ClockId::Boottime), ns(ClockId::Realtime))
}

/// Polls until told to stop. `may_nap`: none of the ports is a NIC, and the CPU may be somebody else's too.
pub fn run(mut worker: Worker<Pool>, mut queues: Queues, stop: &Arc<AtomicBool>, may_nap: bool) {
    let mut received: MbufArray<BURST> = MbufArray::new();
    let mut sending: MbufArray<BURST> = MbufArray::new();
    let mut burst: Vec<Packet> = Vec::with_capacity(BURST);
    let mut idle = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        let begun = now();
        let mut packets = 0;
        worker.between_bursts(begun);
        for (port, queue) in &mut queues.receive {
            let got = queue.poll(&mut received);
            if got == 0 {
                continue;
            }
            packets += got;
            for mbuf in received.drain() {
                mbuf.prefetch_data();
                match Packet::received(mbuf) {
                    Some(packet) => burst.push(packet),
                    None => worker.tally_mut().drop(DropReason::NoBuffer),
                }
            }
            worker.receive(*port, &mut burst, begun);
            transmit(&mut worker, &mut queues.transmit, &mut sending);
        }
        packets += worker.take_handed(begun);
        worker.flush_handovers();
        transmit(&mut worker, &mut queues.transmit, &mut sending);
        if packets > 0 {
            idle = 0;
            worker.tally_mut().looped(true, now().mono_ns.saturating_sub(begun.mono_ns));
            worker.publish();
            continue;
        }
        worker.tally_mut().looped(false, 0);
        idle = idle.saturating_add(1);
        if idle.is_multiple_of(PUBLISH_EVERY) {
            worker.publish();
        }
        if may_nap && idle > PATIENCE {
            std::thread::sleep(NAP);
        } else {
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

//! What workers, and readers beside them, do to each other.

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use common::{INSIDE, OUTSIDE, Router, SERVER, first, program, udp};
use erhu_pipeline::{BURST, Buffer, Buffers, Heap, HeapBuffer};
use erhu_planes::connections::{self, ConnectionsRegion};
use erhu_planes::tuple::proto;
use erhu_planes::{Counter, DropReason};
use erhu_wire::Verify;

/// A datagram of one of the server's clients, with a number in its payload and no checksum.
fn numbered(client: u8, number: u32) -> HeapBuffer {
    let mut frame = udp(INSIDE, ([10, 1, 0, client], 5000), (SERVER, 53));
    frame[40..42].fill(0);
    frame[42..46].copy_from_slice(&number.to_be_bytes());
    HeapBuffer::new(&frame)
}

/// T169: a hand-over ring that is full takes no more, each packet that it does not take is counted, and those of one
/// flow that it took leave in their order.
#[test]
fn what_a_full_ring_does_not_take_is_counted_and_the_rest_keeps_its_order() {
    const CLIENTS: [u8; 4] = [2, 3, 4, 5];
    const OFFERED: u32 = 8192;
    let mut router = Router::new(1 << 12, 2, None, None, || Heap);
    let now = router.now();
    // The second worker's flows.
    router.workers[1].receive(INSIDE, &mut CLIENTS.map(|client| numbered(client, 0)).into(), now);
    router.workers[1].outbox(usize::from(OUTSIDE)).unwrap().clear();
    // All further packets come to the first, while the second does nothing.
    let mut rounds = (1..=OFFERED / 4).peekable();
    while rounds.peek().is_some() {
        let some = rounds.by_ref().take(BURST / CLIENTS.len());
        let mut burst = some.flat_map(|number| CLIENTS.map(|client| numbered(client, number))).collect();
        router.workers[0].receive(INSIDE, &mut burst, now);
        router.workers[0].flush_handovers();
    }
    let mut left = Vec::new();
    while router.workers[1].take_handed(now) > 0 {
        left.append(router.workers[1].outbox(usize::from(OUTSIDE)).unwrap());
    }
    let dropped = OFFERED - u32::try_from(left.len()).unwrap();
    assert!((1..OFFERED).contains(&dropped), "the ring takes some: {dropped} of {OFFERED} were dropped");
    assert_eq!(router.drops(), [(DropReason::HandoverFull, u64::from(dropped))]);
    let handed_over = router.block(0).counters[Counter::HandedOver.index()].load(Ordering::Relaxed);
    assert_eq!(handed_over, u64::from(OFFERED));
    let mut last: HashMap<u8, u32> = HashMap::new();
    for frame in &left {
        let (client, number) = (frame.frame()[29], frame.frame()[42..46].try_into().unwrap());
        let number = u32::from_be_bytes(number);
        assert!(last.insert(client, number).is_none_or(|before| before < number), "{number} of {client} is late");
    }
    assert_eq!(last.len(), CLIENTS.len());
}

/// O40: whoever received a frame may vouch for its checksums, and they are not computed; else what is wrong is invalid and
/// makes no connection. No rule here drops what is invalid.
#[test]
fn checksums_are_verified_unless_the_receiver_vouches_for_them() {
    let mut wrong = udp(INSIDE, ([10, 1, 0, 2], 5000), (SERVER, 53));
    wrong[45] ^= 1;
    let right = udp(INSIDE, ([10, 1, 0, 3], 5000), (SERVER, 53));
    let cases = [
        (HeapBuffer::trusted(&wrong), true),
        (HeapBuffer::new(&wrong), false),
        (HeapBuffer::trusted(&right), true),
        (HeapBuffer::new(&right), true),
    ];
    for (number, (buffer, is_valid)) in cases.into_iter().enumerate() {
        let mut router = Router::new(1 << 12, 1, None, None, || Heap);
        let now = router.now();
        router.workers[0].receive(INSIDE, &mut vec![buffer], now);
        let left = router.workers[0].outbox(usize::from(OUTSIDE)).unwrap().len();
        assert_eq!((left, router.shared.table.live()), (1, u32::from(is_valid)), "case {number}");
        let invalid = router.block(0).counters[Counter::InvalidPackets.index()].load(Ordering::Relaxed);
        assert_eq!((invalid, router.drops()), (u64::from(!is_valid), vec![]), "case {number}");
    }
}

/// A datagram whose worker is held up in the middle of sending it until it may go on.
struct Held {
    inner: HeapBuffer,
    until: Option<&'static Holding>,
}

#[derive(Default)]
struct Holding {
    is_held: AtomicBool,
    may_go_on: AtomicBool,
}

impl Buffer for Held {
    fn frame(&self) -> &[u8] {
        self.inner.frame()
    }

    fn frame_mut(&mut self) -> &mut [u8] {
        if let Some(holding) = self.until.take() {
            holding.is_held.store(true, Ordering::SeqCst);
            while !holding.may_go_on.load(Ordering::SeqCst) {
                thread::yield_now();
            }
        }
        self.inner.frame_mut()
    }

    fn move_start(&mut self, by: i32) -> bool {
        self.inner.move_start(by)
    }

    fn set_len(&mut self, len: usize) -> bool {
        self.inner.set_len(len)
    }

    fn trust(&self) -> Verify {
        self.inner.trust()
    }
}

struct NoSpares;

impl Buffers for NoSpares {
    type Buffer = Held;

    fn allocate(&mut self) -> Option<Held> {
        None
    }
}

/// A zone's limit is exact, even while a worker that has counted a burst's connections stands still.
#[test]
fn a_limit_is_exact_while_a_worker_is_held_up() {
    const LIMIT: u32 = 700;
    let holding: &'static Holding = Box::leak(Box::default());
    let mut router = Router::new(1 << 12, 2, None, None, || NoSpares);
    let mut limited = program(None);
    limited.zones[0].limit = Some(LIMIT);
    router.control.adopt(limited.encode().unwrap(), 0).unwrap();
    router.turn();
    let (now, shared) = (router.now(), router.shared.clone());
    let packets = |numbers: std::ops::Range<u32>, until: Option<&'static Holding>| -> Vec<Held> {
        let mut packets: Vec<_> = numbers.map(|n| Held { inner: HeapBuffer::new(&first(n)), until: None }).collect();
        packets.last_mut().unwrap().until = until;
        packets
    };
    let [mut quick, mut slow]: [_; 2] = std::mem::take(&mut router.workers).try_into().ok().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| slow.receive(INSIDE, &mut packets(0..64, Some(holding)), now));
        while !holding.is_held.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        for n in (1000..1000 + 2 * LIMIT).step_by(BURST) {
            quick.receive(INSIDE, &mut packets(n..n + 64, None), now);
        }
        holding.may_go_on.store(true, Ordering::SeqCst);
    });
    let live = shared.account(0).live.load(Ordering::Relaxed);
    assert_eq!((live, shared.table.live()), (LIMIT, LIMIT));
}

/// N5, T163: a list that is read while other connections come and go has each that lives throughout exactly once, none
/// that is half another, and counters that only grow; a reader that stops in the middle stops nobody.
#[test]
fn a_list_during_churn_has_every_lasting_connection_once_and_nothing_torn() {
    const LASTING: u32 = 500;
    const CHURNING: u32 = 4000;
    const LISTS: u32 = 40;
    let mut router = Router::new(1 << 13, 1, None, None, || Heap);
    let reader = router.shared.table.region().region().reattach(&connections::EXPECT).unwrap();
    let reader = ConnectionsRegion::attached(reader).unwrap();
    let (listed, paused) = (AtomicU32::new(0), AtomicBool::new(false));
    // Says when it has done some loops since the reader paused.
    let went_on = AtomicU32::new(0);
    let lasting = |n: u32| first(n);
    let feed = |router: &mut Router<Heap>, numbers: std::ops::Range<u32>| {
        let numbers: Vec<u32> = numbers.collect();
        for some in numbers.chunks(BURST) {
            let mut burst = some.iter().map(|n| HeapBuffer::new(&lasting(*n))).collect();
            let now = router.now();
            router.workers[0].receive(INSIDE, &mut burst, now);
            router.workers[0].outbox(usize::from(OUTSIDE)).unwrap().clear();
            router.turn();
        }
    };
    feed(&mut router, 0..LASTING);
    thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut packets: HashMap<u64, u64> = HashMap::new();
            for list in 0..LISTS {
                let mut seen: HashMap<(u16, [u8; 4]), u32> = HashMap::new();
                let mut count = 0;
                reader.for_each(|connection| {
                    count += 1;
                    let (original, reply) = (connection.original.tuple, connection.reply.tuple);
                    assert_eq!(original.proto, proto::UDP);
                    let turned = (reply.dst, reply.dport, reply.src, reply.sport);
                    assert_eq!(
                        (original.src, original.sport, original.dst, original.dport),
                        turned,
                        "two halves of two"
                    );
                    let std::net::IpAddr::V4(src) = original.src else { panic!("{original:?}") };
                    *seen.entry((original.sport, src.octets())).or_default() += 1;
                    let before = packets.insert(connection.id, connection.original.packets).unwrap_or(0);
                    assert!(before <= connection.original.packets, "the counters of {original:?} went back");
                    if list == LISTS / 2 && count == 10 {
                        went_on.store(0, Ordering::SeqCst);
                        paused.store(true, Ordering::SeqCst);
                        while went_on.load(Ordering::SeqCst) < 100 {
                            thread::yield_now();
                        }
                    }
                });
                for n in 0..LASTING {
                    let host = 2 + u8::try_from(n % 250).unwrap();
                    let key = (u16::try_from(n / 250 + 1).unwrap(), [10, 1, 0, host]);
                    assert_eq!(seen.get(&key), Some(&1), "list {list}: {key:?}");
                }
                listed.store(list + 1, Ordering::SeqCst);
            }
        });
        // Ten seconds a round: connections that are not seen again end after thirty.
        let mut next = LASTING;
        while !reading.is_finished() {
            feed(&mut router, 0..LASTING);
            feed(&mut router, next..next + CHURNING / 4);
            next = LASTING + (next + CHURNING / 4 - LASTING) % (4 * CHURNING);
            router.pass(Duration::from_secs(10));
            router.turn();
            if paused.load(Ordering::SeqCst) {
                went_on.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    assert_eq!(listed.load(Ordering::SeqCst), LISTS);
    let [made, gone] = router.made_and_ended();
    assert!(gone > u64::from(CHURNING), "{made} were made and {gone} ended: that is no churn");
    assert_eq!(made - gone, u64::from(router.shared.table.live()));
    assert_eq!(router.drops(), []);
}

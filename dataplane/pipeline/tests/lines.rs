//! Which cache lines a worker writes while it forwards established packets, found out by looking at all memory that
//! this process can write, before, during and after each loop. One test, alone in its process.
//!
//! What is written and put back while nobody looks is not seen: a lock, above all. Layout tests beside the structures
//! speak of those.

mod common;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use common::{INSIDE, OUTSIDE, Router, SERVER};
use erhu_pipeline::{BURST, Buffer, Buffers, HeapBuffer};
use erhu_planes::DropReason;
use erhu_planes::events::mask;
use erhu_planes::program::{AddressRange, Pool};
use erhu_planes::region::Region;
use erhu_wire::Verify;

const LINE: usize = 64;
const PAGE: usize = 4096;
/// Room for a snapshot. What is never touched takes none of it.
const ROOM: usize = 256 << 20;
/// Connections of each kind and worker.
const FLOWS: u16 = 40;
const ROUNDS: usize = 3;

thread_local! {
    /// A look into the middle of a burst.
    static MIDDLE: RefCell<Option<Snapshot>> = const { RefCell::new(None) };
}

/// The process's memory as others see it, without that of this test.
struct Memory {
    bytes: File,
    present: File,
    /// What may be written, in order.
    ranges: Vec<Range<usize>>,
}

/// What the pages of [`Memory`] held. Taking one allocates nothing, which would be seen.
struct Snapshot {
    memory: std::rc::Rc<Memory>,
    pages: Vec<usize>,
    bytes: Vec<u8>,
    entries: Vec<u8>,
    is_wanted: bool,
}

impl Snapshot {
    fn take(&mut self) {
        self.pages.clear();
        self.bytes.clear();
        let memory = self.memory.clone();
        for range in &memory.ranges {
            let part = self.entries.len() / 8 * PAGE;
            for start in range.clone().step_by(part) {
                let pages = (range.end - start).min(part) / PAGE;
                let entries = &mut self.entries[..pages * 8];
                memory.present.read_exact_at(entries, (start / PAGE * 8) as u64).expect("every page has an entry");
                // Bit 63: present; bit 62: swapped out.
                let mut is_there = entries.chunks_exact(8).map(|entry| entry[7] & 0xc0 != 0).peekable();
                let mut at = start;
                while let Some(there) = is_there.next() {
                    let first = at;
                    at += PAGE;
                    while is_there.next_if_eq(&there).is_some() {
                        at += PAGE;
                    }
                    if there {
                        let (place, length) = (self.bytes.len(), at - first);
                        assert!(place + length <= self.bytes.capacity(), "there is room for all of it");
                        self.bytes.resize(place + length, 0);
                        memory.bytes.read_exact_at(&mut self.bytes[place..], first as u64).expect("it may be read");
                        self.pages.extend((first..at).step_by(PAGE));
                    }
                }
            }
        }
    }

    /// Lines that differ. A page that was not there was all zeros.
    fn changed(&self, later: &Self, into: &mut BTreeSet<usize>) {
        let zeros = [0; PAGE];
        let mut at = 0;
        for (page, after) in later.pages.iter().zip(later.bytes.chunks_exact(PAGE)) {
            while self.pages.get(at).is_some_and(|earlier| earlier < page) {
                at += 1;
            }
            let is_old = self.pages.get(at) == Some(page);
            let before = if is_old { &self.bytes[at * PAGE..][..PAGE] } else { &zeros[..] };
            if before != after {
                let lines = before.chunks_exact(LINE).zip(after.chunks_exact(LINE)).enumerate();
                into.extend(lines.filter(|(_, (a, b))| a != b).map(|(n, _)| page + n * LINE));
            }
        }
    }
}

/// Snapshots before, during and after something.
struct Looks {
    before: Snapshot,
    after: Snapshot,
}

impl Looks {
    /// From here on no mapping may be made that is to be looked at.
    fn new() -> Self {
        let mut rooms = [(); 3].map(|()| {
            (Vec::<usize>::with_capacity(ROOM / PAGE), Vec::<u8>::with_capacity(ROOM), vec![0_u8; 16 * PAGE])
        });
        let mut text = String::with_capacity(1 << 20);
        File::open("/proc/self/maps").unwrap().read_to_string(&mut text).unwrap();
        let here = std::ptr::from_ref(&rooms).addr();
        let extent = |at: *const u8, bytes: usize| at.addr()..at.addr() + bytes;
        let mut own = Vec::from([extent(text.as_ptr(), text.capacity())]);
        for (pages, bytes, entries) in &rooms {
            own.push(extent(pages.as_ptr().cast(), pages.capacity() * size_of::<usize>()));
            own.push(extent(bytes.as_ptr(), bytes.capacity()));
            own.push(extent(entries.as_ptr(), entries.capacity()));
        }
        own.sort_by_key(|range| range.start);
        let number = |text| usize::from_str_radix(text, 16).unwrap();
        let mut ranges = Vec::new();
        for line in text.lines().filter(|line| line.split(' ').nth(1).unwrap().starts_with("rw")) {
            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let whole = number(start)..number(end);
            // The stack of this thread, with what is local to it, and that of the one which waits for it.
            if whole.contains(&here) || line.ends_with("[stack]") {
                continue;
            }
            let mut start = whole.start;
            for own in own.iter().filter(|own| own.start < whole.end && whole.start < own.end) {
                ranges.push(start..(own.start / PAGE * PAGE).max(start));
                start = own.end.next_multiple_of(PAGE).min(whole.end);
            }
            ranges.push(start..whole.end);
        }
        ranges.retain(|range| !range.is_empty());
        let open = |path| File::open(path).unwrap();
        let (bytes, present) = (open("/proc/self/mem"), open("/proc/self/pagemap"));
        let memory = std::rc::Rc::new(Memory { bytes, present, ranges });
        let mut room = || {
            let (pages, bytes, entries) = std::mem::take(&mut rooms[0]);
            rooms.rotate_left(1);
            Snapshot { memory: memory.clone(), pages, bytes, entries, is_wanted: true }
        };
        let looks = Self { before: room(), after: room() };
        MIDDLE.set(Some(room()));
        looks
    }

    /// The lines that something writes.
    fn written(&mut self, by: impl FnOnce()) -> BTreeSet<usize> {
        MIDDLE.with_borrow_mut(|middle| middle.as_mut().unwrap().is_wanted = true);
        self.before.take();
        by();
        self.after.take();
        let mut lines = BTreeSet::new();
        MIDDLE.with_borrow_mut(|middle| {
            let middle = middle.as_mut().unwrap();
            assert!(!middle.is_wanted, "somebody looked into the middle");
            self.before.changed(middle, &mut lines);
            middle.changed(&self.after, &mut lines);
        });
        self.before.changed(&self.after, &mut lines);
        lines
    }
}

/// A packet; one of a burst has all memory looked at when it is about to be rewritten.
struct Probe {
    buffer: HeapBuffer,
    looks: bool,
}

impl Buffer for Probe {
    fn frame(&self) -> &[u8] {
        self.buffer.frame()
    }

    fn frame_mut(&mut self) -> &mut [u8] {
        if self.looks {
            MIDDLE.with_borrow_mut(|middle| {
                if let Some(middle) = middle.as_mut().filter(|middle| middle.is_wanted) {
                    middle.is_wanted = false;
                    middle.take();
                }
            });
        }
        self.buffer.frame_mut()
    }

    fn move_start(&mut self, by: i32) -> bool {
        self.buffer.move_start(by)
    }

    fn set_len(&mut self, len: usize) -> bool {
        self.buffer.set_len(len)
    }

    fn trust(&self) -> Verify {
        self.buffer.trust()
    }
}

struct Probes;

impl Buffers for Probes {
    type Buffer = Probe;

    fn allocate(&mut self) -> Option<Probe> {
        Some(Probe { buffer: HeapBuffer::new(&[]), looks: false })
    }
}

/// An inside endpoint, what it is seen as outside, and how much either side has sent.
struct Flow {
    is_tcp: bool,
    inside: ([u8; 4], u16),
    outside: ([u8; 4], u16),
    sent: [u32; 2],
}

const SYN: u8 = 2;
const ACK: u8 = 16;

impl Flow {
    /// Its next packet from one side.
    fn packet(&mut self, port: u16, flags: u8) -> Vec<u8> {
        let server = (SERVER, 443);
        let (from, to) = if port == INSIDE { (self.inside, server) } else { (server, self.outside) };
        if !self.is_tcp {
            return common::udp(port, from, to);
        }
        let side = usize::from(port);
        let length = if flags & SYN == 0 { 10 } else { 0 };
        let ack = if flags & ACK == 0 { 0 } else { self.sent[1 - side] };
        let packet = common::tcp(port, from, to, (self.sent[side], ack), flags, length);
        self.sent[side] += u32::try_from(length).unwrap() + u32::from(flags & SYN != 0);
        packet
    }
}

/// Where translated frames come from.
fn source(frame: &[u8]) -> ([u8; 4], u16) {
    (*frame[26..].first_chunk().unwrap(), u16::from_be_bytes(*frame[34..].first_chunk().unwrap()))
}

/// Two workers with connections of their own, and packets of these for some bursts.
struct Scene {
    router: Router<Probes>,
    flows: [Vec<Flow>; 2],
    /// Packets to come, by worker and port. Whatever was sent stays, so that no memory changes hands.
    bursts: [[Vec<Vec<Probe>>; 2]; 2],
    sent: [Vec<Probe>; 2],
}

impl Scene {
    fn new() -> Self {
        let external = AddressRange { first: [203, 0, 113, 1].into(), last: [203, 0, 113, 4].into() };
        let pool = Pool::new("public", vec![external]);
        let mut router = Router::new(4096, 2, None, Some(pool), || Probes);
        router.shared.events.want(mask::NEW | mask::UPDATE | mask::DESTROY).unwrap();
        let flow = |worker: u8, n: u16| Flow {
            is_tcp: n.is_multiple_of(2),
            inside: ([10, 1, 0, 2 + 100 * worker + u8::try_from(n).unwrap()], 5000 + n),
            outside: ([0; 4], 0),
            sent: [1000, 2000],
        };
        let mut flows = [0, 1].map(|worker| (0..2 * FLOWS).map(|n| flow(worker, n)).collect::<Vec<_>>());
        router.settle();
        let play = |router: &mut Router<Probes>, flow: &mut Flow, worker: usize, port: u16, flags| {
            let buffer = HeapBuffer::new(&flow.packet(port, flags));
            let now = router.now();
            router.workers[worker].receive(port, &mut vec![Probe { buffer, looks: false }], now);
            let left = std::mem::take(router.workers[worker].outbox(usize::from(1 - port)).unwrap());
            assert_eq!(left.len(), 1, "{:?}", router.drops());
            source(left[0].frame())
        };
        let mut each = |play: &mut dyn FnMut(&mut Flow, usize)| {
            let flows = flows.iter_mut().enumerate();
            flows.for_each(|(worker, flows)| flows.iter_mut().for_each(|flow| play(flow, worker)));
        };
        each(&mut |flow, worker| {
            flow.outside = play(&mut router, flow, worker, INSIDE, SYN);
            play(&mut router, flow, worker, OUTSIDE, SYN | ACK);
            play(&mut router, flow, worker, INSIDE, ACK);
        });
        // Datagrams are a stream after some seconds.
        router.pass(Duration::from_secs(3));
        for _ in 0..2 {
            for port in [INSIDE, OUTSIDE] {
                each(&mut |flow, worker| _ = play(&mut router, flow, worker, port, ACK));
            }
        }
        router.settle();
        Self { router, flows, bursts: Default::default(), sent: Default::default() }
    }

    /// Makes packets for some bursts of each worker, half of them from either side.
    fn prepare(&mut self, bursts: usize) {
        for worker in 0..2 {
            for _ in 0..bursts {
                for port in [INSIDE, OUTSIDE] {
                    let flows = self.flows[worker].iter_mut().take(BURST);
                    let mut burst: Vec<Probe> = flows
                        .map(|flow| Probe { buffer: HeapBuffer::new(&flow.packet(port, ACK)), looks: false })
                        .collect();
                    burst[BURST / 2].looks = port == OUTSIDE;
                    self.bursts[worker][usize::from(port)].push(burst);
                }
            }
            // The last one is taken first.
            self.bursts[worker].iter_mut().for_each(|bursts| bursts.reverse());
            self.sent[worker].reserve(2 * BURST * bursts);
        }
    }

    /// Makes packets that are the first of their connections, for one burst by each port of each worker.
    fn prepare_openings(&mut self) {
        for (worker, host) in [(0, 3), (1, 203)] {
            for (port, from, to) in [(INSIDE, [10, 1, 0, host], SERVER), (OUTSIDE, SERVER, [10, 1, 0, host])] {
                let packet = |n: u16| HeapBuffer::new(&common::udp(port, (from, 30_000 + n), (to, 40_000 + n)));
                let looks = |n: usize| port == OUTSIDE && n == BURST / 2;
                let all = (0..).take(BURST).map(packet).enumerate();
                let burst = all.map(|(n, buffer)| Probe { buffer, looks: looks(n) }).collect();
                self.bursts[worker][usize::from(port)].push(burst);
            }
            self.sent[worker].reserve(2 * BURST);
        }
    }

    /// A worker's loop, as its poll loop does it, with a burst by each port.
    fn run(&mut self, worker: usize) {
        let now = self.router.now();
        let Self { router, bursts, sent, .. } = self;
        let (own, sent) = (&mut router.workers[worker], &mut sent[worker]);
        own.between_bursts(now);
        for port in [INSIDE, OUTSIDE] {
            let mut burst = bursts[worker][usize::from(port)].pop().expect("prepared");
            own.tally_mut().burst(burst.len());
            own.receive(port, &mut burst, now);
            sent.append(own.outbox(usize::from(1 - port)).unwrap());
            std::mem::forget(burst);
        }
        own.take_handed(now);
        own.flush_handovers();
        own.tally_mut().looped(2 * BURST, 20_000);
        own.publish();
    }
}

fn extent(region: &Region) -> Range<usize> {
    let start = std::ptr::from_ref(region.header()).addr();
    start..start + region.len()
}

fn inside<'l>(lines: &'l BTreeSet<usize>, range: &Range<usize>) -> impl Iterator<Item = usize> + 'l {
    lines.range(range.clone()).copied()
}

#[test]
fn no_line_is_written_by_two_workers_that_forward_established_packets() {
    let mut scene = Scene::new();
    scene.prepare(4 * ROUNDS);
    let shared = scene.router.shared.clone();
    let regions = [shared.table.region().region(), shared.stats.region(), shared.events.region()].map(extent);
    let [slab, stats, events] = &regions;
    let header = std::ptr::from_ref(shared.table.region().slab()).addr();
    let fast = |scene: &Scene| {
        let counter = erhu_planes::Counter::FastPath.index();
        [0, 1].map(|w| scene.router.block(w).counters[counter].load(std::sync::atomic::Ordering::Relaxed))
    };
    let before = fast(&scene);
    let mut looks = Looks::new();
    // What is done once only: pages that were never touched, the first publication of everything.
    for worker in [0, 1] {
        looks.written(|| scene.run(worker));
    }

    let mut written: [BTreeSet<usize>; 2] = Default::default();
    for _ in 0..ROUNDS {
        for worker in [0, 1] {
            written[worker].append(&mut looks.written(|| scene.run(worker)));
        }
    }
    let [of_first, of_second] = &written;
    let both: Vec<_> = of_first.intersection(of_second).map(|line| format!("{line:#x}")).collect();
    assert!(both.is_empty(), "{} and {} lines, of these both {both:?}", of_first.len(), of_second.len());
    for lines in &written {
        // Each of 64 connections in both directions, TCP lines, and counters: the test sees what there is to see.
        assert!(inside(lines, slab).count() >= 2 * BURST + BURST / 2, "{}", inside(lines, slab).count());
        assert!(inside(lines, stats).count() >= 4);
        assert_eq!(inside(lines, events).count(), 0);
        assert!(lines.len() > inside(lines, slab).count() + inside(lines, stats).count(), "the worker's own memory");
    }

    // A sixteenth of a second later: whoever passes first, and the other one too, says what time it is.
    let mut written: [BTreeSet<usize>; 2] = Default::default();
    for _ in 0..ROUNDS {
        scene.router.pass(Duration::from_millis(63));
        for worker in [0, 1] {
            written[worker].append(&mut looks.written(|| scene.run(worker)));
        }
    }
    let both: Vec<_> = written[0].intersection(&written[1]).copied().collect();
    assert!(both.iter().all(|line| *line == header), "{both:x?}");

    // Openings change the index, and take ids by the block; of the slab each writes what it leases, and nothing else.
    scene.prepare_openings();
    let opened = [0, 1].map(|worker| looks.written(|| scene.run(worker)));
    let both: Vec<_> = opened[0].intersection(&opened[1]).copied().collect();
    let shared_lines = regions.iter().flat_map(|region| both.iter().filter(|line| region.contains(line)));
    let shared_lines: Vec<_> =
        shared_lines.filter(|line| **line != header).map(|line| format!("{line:#x}")).collect();
    assert!(shared_lines.is_empty(), "{shared_lines:?} of {regions:x?}");
    assert_eq!(shared.table.live(), u32::from(2 * 2 * FLOWS) + 2 * 2 * 64);

    let after = fast(&scene);
    let packets = (1 + 2 * ROUNDS) * 2 * BURST;
    assert_eq!([0, 1].map(|w| after[w] - before[w]), [packets as u64; 2]);
    assert_eq!(scene.router.drops(), Vec::<(DropReason, u64)>::new());
}

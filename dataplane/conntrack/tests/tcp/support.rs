//! A connection as a table that keeps it would: its line, its status, and what each packet is expected to do.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering::Relaxed};

use erhu_conntrack::Timeouts;
use erhu_conntrack::tcp::{Bound, Outcome, PacketClass, Segment, Step, TcpState, classify, kept_status, open, step};
use erhu_planes::connections::TcpLine;
use erhu_planes::connections::status::{ASSURED, SEEN_REPLY};
use erhu_planes::program::Tracking;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

pub const ORIG: usize = 0;
pub const REPLY: usize = 1;

/// States by the names of the written table.
pub const COLUMNS: [&str; 10] = ["NO", "SS", "SR", "ES", "FW", "CW", "LA", "TW", "CL", "S2"];

pub fn state_named(name: &str) -> TcpState {
    let number = COLUMNS.iter().position(|c| *c == name).unwrap_or_else(|| panic!("no state {name}"));
    TcpState::from_u8(u8::try_from(number).unwrap())
}

/// A line that no packet opened.
pub fn line() -> TcpLine {
    let pair = || [AtomicU32::new(0), AtomicU32::new(0)];
    let bytes = || [AtomicU8::new(0), AtomicU8::new(0)];
    TcpLine {
        end: pair(),
        max_end: pair(),
        max_window: pair(),
        max_ack: pair(),
        last_seq: AtomicU32::new(0),
        last_ack: AtomicU32::new(0),
        last_end: AtomicU32::new(0),
        timeout: AtomicU32::new(0),
        last_window: AtomicU16::new(0),
        policy: AtomicU16::new(0),
        scale: bytes(),
        flags: bytes(),
        state: AtomicU8::new(0),
        last_dir: AtomicU8::new(0),
        last_index: AtomicU8::new(PacketClass::None as u8),
        retransmissions: AtomicU8::new(0),
        last_flags: AtomicU8::new(0),
        last_scale: AtomicU8::new(0),
        status: AtomicU8::new(0),
        mode: AtomicU8::new(Tracking::Loose as u8),
    }
}

/// Everything in a line, to compare.
pub fn words(line: &TcpLine) -> Vec<u32> {
    let pairs = [&line.end, &line.max_end, &line.max_window, &line.max_ack];
    let mut all: Vec<u32> = pairs.iter().flat_map(|p| p.iter().map(|w| w.load(Relaxed))).collect();
    all.extend([&line.last_seq, &line.last_ack, &line.last_end, &line.timeout].map(|w| w.load(Relaxed)));
    all.extend([&line.last_window, &line.policy].map(|w| u32::from(w.load(Relaxed))));
    let bytes = [
        &line.scale[0],
        &line.scale[1],
        &line.flags[0],
        &line.flags[1],
        &line.state,
        &line.last_dir,
        &line.last_index,
        &line.retransmissions,
        &line.last_flags,
        &line.last_scale,
        &line.status,
        &line.mode,
    ];
    all.extend(bytes.map(|b| u32::from(b.load(Relaxed))));
    all
}

/// A segment without options.
pub fn segment(flags: u8, seq: u32, ack: u32, window: u16, payload: u32) -> Segment<'static> {
    let controls = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    let end = seq.wrapping_add(payload).wrapping_add(controls);
    Segment { class: classify(flags), flags, seq, ack, end, window, options: &[] }
}

/// Options of a SYN that offers a window scale and SACK.
pub fn offer(scale: u8) -> &'static [u8] {
    vec![4, 2, 3, 3, scale, 0, 0, 0].leak()
}

/// One SACK block, its left edge being its right edge less one.
pub fn sack(right: u32) -> &'static [u8] {
    let mut bytes = vec![1, 1, 5, 10];
    bytes.extend(right.wrapping_sub(1).to_be_bytes());
    bytes.extend(right.to_be_bytes());
    bytes.leak()
}

/// Plays packets through one connection.
pub struct Flow {
    pub line: TcpLine,
    pub status: u32,
    pub timeouts: Timeouts,
}

impl Flow {
    pub fn open_as(mode: Tracking, first: Segment<'_>) -> Option<Self> {
        let (line, timeouts) = (line(), Timeouts::default());
        let opened = open(&line, 0, &first, mode, &timeouts)?;
        assert_eq!(line.state.load(Relaxed), opened.state as u8);
        assert_eq!(line.timeout.load(Relaxed), opened.timeout);
        Some(Self { line, status: 0, timeouts })
    }

    pub fn syn() -> Self {
        Self::open_as(Tracking::Loose, segment(SYN, 100, 0, 1000, 0)).unwrap()
    }

    /// Opened, answered, acknowledged: established and assured. The next sequence numbers are 101 and 901; each side
    /// has offered a window of 1000.
    pub fn established() -> Self {
        Self::established_as(Tracking::Loose)
    }

    pub fn established_as(mode: Tracking) -> Self {
        Self::handshake(mode, &[], &[])
    }

    /// Likewise, with these options in SYN and SYN/ACK.
    pub fn handshake(mode: Tracking, syn: &'static [u8], answer: &'static [u8]) -> Self {
        let mut flow = Self::open_as(mode, Segment { options: syn, ..segment(SYN, 100, 0, 1000, 0) }).unwrap();
        let answer = Segment { options: answer, ..segment(SYN | ACK, 900, 101, 1000, 0) };
        flow.expect(REPLY, answer, Outcome::Accept, "SR");
        flow.expect(ORIG, segment(ACK, 101, 901, 1000, 0), Outcome::Accept, "ES");
        assert_eq!(flow.status, SEEN_REPLY | ASSURED);
        flow
    }

    pub fn play(&mut self, dir: usize, packet: Segment<'_>) -> Step {
        let before = self.line.timeout.load(Relaxed);
        let result = step(&self.line, dir, &packet, &self.timeouts);
        assert_eq!(result.set_status & self.status, 0, "only new bits are reported");
        self.status |= result.set_status;
        assert_eq!(self.line.status.load(Relaxed), kept_status(self.status), "the line follows");
        assert_eq!(result.shortened, self.line.timeout.load(Relaxed) < before);
        assert_eq!(result.state as u8, self.line.state.load(Relaxed));
        result
    }

    #[track_caller]
    pub fn expect(&mut self, dir: usize, packet: Segment<'_>, outcome: Outcome, state: &str) {
        let result = self.play(dir, packet);
        assert_eq!((result.outcome, result.state), (outcome, state_named(state)), "{packet:?}");
    }

    /// A packet beyond a bound, which leaves the line as it was.
    #[track_caller]
    pub fn expect_beyond(&mut self, dir: usize, packet: Segment<'_>, outcome: Outcome, bound: Bound) {
        let before = words(&self.line);
        let result = self.play(dir, packet);
        assert_eq!((result.outcome, result.beyond), (outcome, Some(bound)), "{packet:?}");
        assert!(!result.refresh && !result.state_changed);
        assert_eq!(words(&self.line), before);
    }

    pub fn seconds(&self) -> u32 {
        self.line.timeout.load(Relaxed) / 16
    }

    pub fn set_status(&mut self, status: u32) {
        self.status = status;
        self.line.status.store(kept_status(status), Relaxed);
    }
}

//! A dataplane made of anonymous regions, for tests of commands.

#![allow(dead_code, reason = "each test file uses its part")]

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use erhu_controlplane::cli::{Env, run, split_command};
use erhu_controlplane::client::{AskError, Dataplane};
use erhu_planes::TICKS_PER_SECOND;
use erhu_planes::connections::{
    self, Class, Cold, ConnectionsRegion, Hot4, Hot6, Rewrite6, SEGMENT_LINES, SlabLayout, TcpLine,
};
use erhu_planes::events::{self, EventsRegion};
use erhu_planes::program::{MAX_BYTES, Program};
use erhu_planes::protocol::{
    Channel, NeighbourStatus, PoolStatus, PortStatus, Request, Response, Status, read_sealed, sealed,
};
use erhu_planes::region::{Region, RegionError};
use erhu_planes::stats::{self, StatsRegion};
use erhu_planes::tuple::{Key, Tuple, proto};

/// Ticks on the fake's clock.
pub const NOW: u32 = 1000 * TICKS_PER_SECOND;

pub struct Fake {
    pub slab: ConnectionsRegion,
    pub counters: StatsRegion,
    pub rings: EventsRegion,
    pub running: Option<(u32, Vec<u8>)>,
    pub neighbours: Vec<NeighbourStatus>,
    pub pools: Vec<PoolStatus>,
    pub asked: Vec<Request>,
    pub state: Option<PathBuf>,
    pub instance_id: u64,
    /// Refuse programs, with this reason.
    pub refuse: Option<String>,
    /// Adopt, and never answer.
    pub die_after_adopting: bool,
    used: [u32; 4],
}

/// What a connection is made of; zones are in the tuples.
#[derive(Clone, Copy)]
pub struct Entry {
    pub original: Tuple,
    pub reply: Tuple,
    pub id: u64,
    pub seconds: u32,
    pub status: u32,
    pub state: u8,
    pub mark: u32,
    pub counts: [u64; 4],
}

pub fn tuple(src: &str, dst: &str, protocol: u8, sport: u16, dport: u16, zone: u16) -> Tuple {
    Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap(), sport, dport, proto: protocol, zone }
}

impl Entry {
    /// An unanswered connection that is not translated.
    pub fn new(id: u64, original: Tuple) -> Self {
        let reply = original.reversed().unwrap();
        Self {
            original,
            reply,
            id,
            seconds: 28,
            status: connections::status::CONFIRMED,
            state: 0,
            mark: 0,
            counts: [0; 4],
        }
    }
}

impl Fake {
    pub fn new() -> Self {
        let layout = SlabLayout { segments: 4 };
        let region = Region::anonymous("connections", layout.size()).unwrap();
        let slab = ConnectionsRegion::create(region, layout, 1000, 1).unwrap();
        slab.slab().now_tick.store(NOW, Ordering::Relaxed);
        let ports = ["lan".to_owned(), "wan".to_owned()];
        let counters = Region::anonymous("stats", StatsRegion::size(2)).unwrap();
        let rings = Region::anonymous("events", EventsRegion::size(2, 64)).unwrap();
        Self {
            slab,
            counters: StatsRegion::create(counters, 2, &ports, 1).unwrap(),
            rings: EventsRegion::create(rings, 2, 64, 1).unwrap(),
            running: None,
            neighbours: Vec::new(),
            pools: Vec::new(),
            asked: Vec::new(),
            state: None,
            instance_id: 7,
            refuse: None,
            die_after_adopting: false,
            used: [0; 4],
        }
    }

    pub fn with_program(program: &Program) -> Self {
        let mut fake = Self::new();
        fake.running = Some((1, program.encode().unwrap()));
        fake
    }

    /// Stores a living connection.
    pub fn put(&mut self, entry: Entry) {
        let class = match (entry.original.src.is_ipv4(), entry.original.proto == proto::TCP) {
            (true, false) => Class::Udp4,
            (true, true) => Class::Tcp4,
            (false, false) => Class::Udp6,
            (false, true) => Class::Tcp6,
        };
        let segment = class as usize - 1;
        let line = u32::try_from(segment).unwrap() * SEGMENT_LINES + self.used[segment] * class.lines();
        self.used[segment] += 1;
        let bytes = class.lines() as usize * connections::LINE;
        self.slab.region().allocate(self.slab.offset_of_line(line), bytes).unwrap();
        let relaxed = Ordering::Relaxed;
        for (number, tuple) in (0..).zip([&entry.original, &entry.reply]) {
            let at = line + number * class.hot_lines();
            let counts = &entry.counts[number as usize * 2..][..2];
            match Key::from(tuple) {
                Key::V4(key) => {
                    let hot: &Hot4 = self.slab.line(at).unwrap();
                    hot.key[0].store(key.0[0], relaxed);
                    hot.key[1].store(key.0[1], relaxed);
                    hot.last_seen.store(NOW, relaxed);
                    hot.packets.store(counts[0], relaxed);
                    hot.bytes.store(counts[1], relaxed);
                }
                Key::V6(key) => {
                    let hot: &Hot6 = self.slab.line(at).unwrap();
                    hot.src_low.store(key.src[0], relaxed);
                    hot.src_high.store(key.src[1], relaxed);
                    hot.dst[0].store(key.dst[0], relaxed);
                    hot.dst[1].store(key.dst[1], relaxed);
                    hot.low.store(key.low, relaxed);
                    hot.last_seen.store(NOW, relaxed);
                    let rewrite: &Rewrite6 = self.slab.line(at + 1).unwrap();
                    rewrite.packets.store(counts[0], relaxed);
                    rewrite.bytes.store(counts[1], relaxed);
                }
            }
        }
        let cold: &Cold = self.slab.line(line + class.cold_at()).unwrap();
        cold.class.store(class as u8, relaxed);
        let timeout = match class.is_tcp() {
            true => &self.slab.line::<TcpLine>(line + class.tcp_at()).unwrap().timeout,
            false => &cold.timeout,
        };
        timeout.store(entry.seconds * TICKS_PER_SECOND, relaxed);
        cold.status.store(entry.status, relaxed);
        cold.mark.store(entry.mark, relaxed);
        cold.state.store(entry.state, relaxed);
        cold.created_ns.store(1_795_171_797_628_367_000, relaxed);
        cold.id.store(entry.id, Ordering::Release);
        self.slab.directory()[segment].class.store(class as u8, Ordering::Release);
    }

    pub fn ids(&self) -> Vec<u64> {
        let mut ids = Vec::new();
        self.slab.for_each(|connection| ids.push(connection.id));
        ids
    }

    fn end(&self, wanted: impl Fn(&connections::Connection) -> bool) -> u64 {
        let mut ended = Vec::new();
        self.slab.for_each(|c| {
            if wanted(&c) {
                ended.push(c)
            }
        });
        for c in &ended {
            let cold: &Cold = self.slab.line(c.line + c.class.cold_at()).unwrap();
            cold.id.store(0, Ordering::Release);
        }
        ended.len() as u64
    }

    /// Runs a command on this dataplane.
    pub fn erhu(&mut self, command: &str) -> Outcome {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut env = Env { out: &mut out, err: &mut err, dataplane: Some(self), is_terminal: false };
        let status = run(split_command(command).unwrap(), &mut env);
        Outcome::new(status, out, err)
    }
}

/// Answers at a socket as a dataplane process would, for as long as the test runs.
pub fn answer_at(socket: &Path, fake: &Arc<Mutex<Fake>>) {
    let listener = UnixListener::bind(socket).unwrap();
    let fake = Arc::clone(fake);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut channel = Channel::new(stream.unwrap());
            while let Ok(Some((request, file))) = channel.receive::<Request>() {
                let bytes = file.map(|file| read_sealed(file, MAX_BYTES).unwrap());
                let Ok((response, file)) = fake.lock().unwrap().ask(&request, bytes.as_deref()) else { break };
                let file = file.map(|bytes| sealed("program", &bytes).unwrap());
                channel.send(&response, file.as_ref().map(AsFd::as_fd)).unwrap();
            }
        }
    });
}

/// Runs a command without a dataplane at hand.
pub fn erhu(command: &str) -> Outcome {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut env = Env { out: &mut out, err: &mut err, dataplane: None, is_terminal: false };
    let args: Vec<OsString> = split_command(command).unwrap();
    let status = run(args, &mut env);
    Outcome::new(status, out, err)
}

/// What a command did.
#[derive(Debug)]
pub struct Outcome {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Outcome {
    fn new(status: i32, out: Vec<u8>, err: Vec<u8>) -> Self {
        Self { status, out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap() }
    }

    pub fn lines(&self) -> Vec<&str> {
        self.out.lines().collect()
    }

    /// The ids at the ends of lines, ascending.
    pub fn ids(&self) -> Vec<u64> {
        let mut ids: Vec<u64> =
            self.lines().iter().map(|l| l.rsplit("id=").next().unwrap().parse().unwrap()).collect();
        ids.sort_unstable();
        ids
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }
}

impl Dataplane for Fake {
    fn ask(&mut self, request: &Request, file: Option<&[u8]>) -> Result<(Response, Option<Vec<u8>>), AskError> {
        self.asked.push(request.clone());
        let response = match request {
            Request::Status => Response::Status(Status {
                version: "test".into(),
                instance: "test".into(),
                instance_id: self.instance_id,
                pid: 1,
                generation: self.running.as_ref().map_or(0, |(generation, _)| *generation),
                ports: ["lan", "wan"]
                    .map(|name| PortStatus {
                        name: name.into(),
                        device: "net_null0".into(),
                        link: true,
                        ..PortStatus::default()
                    })
                    .to_vec(),
                workers: vec![1, 2],
                capacity: 1000,
            }),
            Request::Adopt => match (&self.refuse, Program::decode(file.unwrap())) {
                (Some(reason), _) => Response::Refused { reason: reason.clone() },
                (None, Err(error)) => Response::Refused { reason: error.to_string() },
                (None, Ok(_)) => {
                    let generation = self.running.as_ref().map_or(0, |(generation, _)| *generation) + 1;
                    self.running = Some((generation, file.unwrap().to_vec()));
                    if self.die_after_adopting {
                        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
                    }
                    Response::Adopted { generation }
                }
            },
            Request::Program => {
                let generation = self.running.as_ref().map_or(0, |(generation, _)| *generation);
                return Ok((Response::Program { generation }, self.running.clone().map(|(_, bytes)| bytes)));
            }
            Request::Delete { connections } => {
                Response::Ended { connections: self.end(|c| connections.contains(&(c.line, c.id))) }
            }
            Request::Flush { zone } => Response::Ended {
                connections: self.end(|c| {
                    let zones = [c.original.tuple.zone, c.reply.tuple.zone];
                    zone.is_none_or(|z| if z == 0 { zones == [0, 0] } else { zones.contains(&z) })
                }),
            },
            Request::Discount { connections } => Response::Ended { connections: connections.len() as u64 },
            Request::Neighbours => Response::Neighbours { neighbours: self.neighbours.clone() },
            Request::Pools => Response::Pools { pools: self.pools.clone() },
            Request::WantEvents { .. } | Request::Shutdown => Response::Done,
        };
        Ok((response, None))
    }

    fn connections(&self) -> Result<ConnectionsRegion, RegionError> {
        ConnectionsRegion::attached(self.slab.region().reattach(&connections::EXPECT)?)
    }

    fn stats(&self) -> Result<StatsRegion, RegionError> {
        StatsRegion::attached(self.counters.region().reattach(&stats::EXPECT)?)
    }

    fn events(&self) -> Result<EventsRegion, RegionError> {
        EventsRegion::attached(self.rings.region().reattach(&events::EXPECT)?)
    }

    fn history(&self) -> Option<&Path> {
        self.state.as_deref()
    }
}

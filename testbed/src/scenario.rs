//! Scenarios: a rule script, timed packets per port, and what must come of them.
//!
//! A scenario writes its script, configuration and captures to a folder of its own, runs replay over them and reads
//! the outputs back, so that a test goes through the same files as a user. Topology, packets, outcome:
//!
//! ```no_run
//! use erhu_testbed::packet::udp;
//! use erhu_testbed::scenario::{Scenario, Side};
//!
//! const BLUE: Side = Side::vlan("lan", 100);
//! const WAN: Side = Side::untagged("wan");
//!
//! let outcome = Scenario::of_file("configs/two-tenants.rhai")
//!     .send(0.0, BLUE, udp("10.0.0.5:5353", "192.0.2.1:53"))
//!     .send(0.1, WAN, udp("192.0.2.1:53", "198.51.100.10:5353"))
//!     .run();
//! outcome.left(WAN, &["udp 198.51.100.10:5353 > 192.0.2.1:53"]);
//! outcome.left(BLUE, &["udp 192.0.2.1:53 > 10.0.0.5:5353"]);
//! outcome.table(&["udp 10.0.0.5:5353>192.0.2.1:53@1 192.0.2.1:53>198.51.100.10:5353"]);
//! outcome.drops(&[]);
//! ```
//!
//! Time 0 is the first packet, so some packet must be sent at it. Neighbours answer ARP and solicitations unless
//! [`Scenario::silent_neighbours`] says otherwise. Whatever a test asserts, [`Scenario::run`] checks that connections
//! made minus connections ended are those in the table, that no external tuple is given twice, and that frames leave
//! with right checksums if they came with right ones.

pub mod outcome;
pub mod table;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

pub use outcome::Outcome;
pub use table::{Entry, Event, EventKind, Tuple};

use crate::packet::read::Seen;
use crate::packet::{Mac, Packet};
use crate::pcap::{self, Record};
use crate::replay;

/// Time 0 of scenarios in the captures' own time, nanoseconds since 1970.
pub const START_NS: u64 = 1_700_000_000_000_000_000;

/// What the router's port at a position has for a MAC address, unless its configuration says otherwise.
pub fn router_mac(position: usize) -> Mac {
    [0x02, 0x65, 0x72, 0x68, 0x75, u8::try_from(position).expect("at most 256 ports")]
}

/// The repository's root.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in a folder of the repository")
}

/// Where hosts are attached: a port, and the VLAN their frames carry there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Side {
    /// Name of the port.
    pub port: &'static str,
    /// VLAN id of the only tag; `None`: untagged.
    pub vlan: Option<u16>,
}

impl Side {
    /// Untagged frames of a port.
    pub const fn untagged(port: &'static str) -> Self {
        Self { port, vlan: None }
    }

    /// Frames of a port with one 802.1Q tag.
    pub const fn vlan(port: &'static str, id: u16) -> Self {
        Self { port, vlan: Some(id) }
    }
}

/// What runs at an instant.
#[derive(Clone, Debug)]
enum Command {
    /// An `erhu` command, as `--at` has it.
    Erhu(String),
    /// `apply` of this script.
    Apply(String),
}

/// Everything that goes into one run of replay.
#[derive(Clone, Debug)]
pub struct Scenario {
    script: String,
    /// The folder that the script lies in, where it is a file of the repository: it may import or read others there.
    folder: Option<PathBuf>,
    ports: Vec<&'static str>,
    connections: Option<u32>,
    frames: Vec<(f64, &'static str, Vec<u8>)>,
    commands: Vec<(f64, Command)>,
    workers: usize,
    burst: usize,
    seed: u64,
    answer_arp: bool,
    until: Option<f64>,
}

impl Scenario {
    /// A rule script given as text, on the ports `lan` and `wan`.
    pub fn of(script: &str) -> Self {
        Self {
            script: script.into(),
            folder: None,
            ports: vec!["lan", "wan"],
            connections: None,
            frames: Vec::new(),
            commands: Vec::new(),
            workers: 1,
            burst: 32,
            seed: 1,
            answer_arp: true,
            until: None,
        }
    }

    /// A rule script of the repository, by its path from the root.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn of_file(path: &str) -> Self {
        let path = repository().join(path);
        let script = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { folder: path.parent().map(Path::to_owned), ..Self::of(&script) }
    }

    /// The ports, instead of `lan` and `wan`. Their positions decide their MAC addresses, and which of them comes
    /// first where packets come at one instant.
    #[must_use]
    pub fn ports(mut self, ports: &[&'static str]) -> Self {
        self.ports = ports.to_vec();
        self
    }

    /// Capacity of the connection table.
    #[must_use]
    pub fn connections(mut self, capacity: u32) -> Self {
        self.connections = Some(capacity);
        self
    }

    /// Sends a packet at a time. What it leaves open is filled in: the side's tag, the router's MAC address.
    ///
    /// # Panics
    /// If the side's port is not one of the ports.
    #[must_use]
    pub fn send(mut self, at: f64, side: Side, packet: Packet) -> Self {
        let packet = packet.mac_to_default(self.router_mac(side.port));
        let packet = match side.vlan {
            Some(id) => packet.vlan(id),
            None => packet,
        };
        self.frames.push((at, side.port, packet.bytes()));
        self
    }

    /// Sends packets at one time, in their order.
    #[must_use]
    pub fn send_all(self, at: f64, side: Side, packets: impl IntoIterator<Item = Packet>) -> Self {
        packets.into_iter().fold(self, |scenario, packet| scenario.send(at, side, packet))
    }

    /// Sends packets in their order, the first at a time and each further one so many seconds later.
    #[must_use]
    pub fn send_every(self, at: f64, step: f64, side: Side, packets: impl IntoIterator<Item = Packet>) -> Self {
        let mut time = at - step;
        packets.into_iter().fold(self, |scenario, packet| {
            time += step;
            scenario.send(time, side, packet)
        })
    }

    /// Sends a frame exactly as it is.
    #[must_use]
    pub fn send_frame(mut self, at: f64, port: &'static str, frame: Vec<u8>) -> Self {
        self.frames.push((at, port, frame));
        self
    }

    /// The MAC address of the router on a port.
    ///
    /// # Panics
    /// If there is no such port.
    pub fn router_mac(&self, port: &str) -> Mac {
        let position = self.ports.iter().position(|p| *p == port);
        router_mac(position.unwrap_or_else(|| panic!("no port is named {port:?}")))
    }

    /// Runs an `erhu` command at a time, before its packets: `conntrack:-F -w 1`. [`Outcome::said`] has its output.
    #[must_use]
    pub fn command(mut self, at: f64, command: &str) -> Self {
        self.commands.push((at, Command::Erhu(command.into())));
        self
    }

    /// Applies another script at a time, before its packets.
    #[must_use]
    pub fn apply(mut self, at: f64, script: &str) -> Self {
        self.commands.push((at, Command::Apply(script.into())));
        self
    }

    /// Number of workers.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Largest burst.
    #[must_use]
    pub fn burst(mut self, burst: usize) -> Self {
        self.burst = burst;
        self
    }

    /// What fixes hash keys and port choice.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Neighbours do not answer ARP or solicitations by themselves.
    #[must_use]
    pub fn silent_neighbours(mut self) -> Self {
        self.answer_arp = false;
        self
    }

    /// Lets the clock run on to a time.
    #[must_use]
    pub fn until(mut self, seconds: f64) -> Self {
        self.until = Some(seconds);
        self
    }

    /// Lets a peer answer: runs, and sends on the same side what `peer` makes of each packet (ARP and neighbour discovery left out) that left
    /// there, so many seconds after it. What is sent later does not change what left before, so the packets that were
    /// answered leave again.
    ///
    /// # Panics
    /// As [`Self::run`].
    #[must_use]
    pub fn answered(self, side: Side, after: f64, mut peer: impl FnMut(&Seen) -> Option<Packet>) -> Self {
        let outcome = self.run();
        let mut scenario = self;
        for seen in outcome.packets(side) {
            if let Some(answer) = peer(seen) {
                scenario = scenario.send(Outcome::seconds(seen) + after, side, answer);
            }
        }
        scenario
    }

    /// Runs it.
    ///
    /// # Panics
    /// If replay refuses, if an output cannot be read, or if what must always hold does not.
    #[track_caller]
    pub fn run(&self) -> Outcome {
        run(self)
    }

    /// Runs it where replay may refuse; the error is its message. Checks nothing.
    ///
    /// # Errors
    /// What replay says.
    ///
    /// # Panics
    /// If files of the run cannot be written or read.
    pub fn try_run(&self) -> Result<Outcome, String> {
        let folder = tempfile::tempdir().expect("a folder for the run's files");
        let options = self.write(folder.path());
        replay::run(&options).map_err(|e| e.to_string())?;
        Ok(Outcome::read(folder.path(), &options, &self.ports))
    }

    /// Writes the run's files into a folder and says how to run replay over them.
    fn write(&self, folder: &Path) -> replay::Options {
        let write = |name: &str, text: &str| -> PathBuf {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            path
        };
        let mut toml = String::new();
        if let Some(connections) = self.connections {
            let _ = writeln!(toml, "connections = {connections}");
        }
        for port in &self.ports {
            let _ = writeln!(toml, "[[port]]\nname = \"{port}\"");
        }
        if let Some(from) = &self.folder {
            copy_folder(from, folder);
        }
        let out = folder.join("out");
        std::fs::create_dir(&out).unwrap_or_else(|e| panic!("{}: {e}", out.display()));
        let inputs = self.ports.iter().map(|port| {
            let path = folder.join(format!("{port}.in.pcap"));
            pcap::write(&path, &self.records(port), false).expect("a capture of the scenario's own packets");
            ((*port).to_owned(), path)
        });
        let at = self.commands.iter().enumerate().map(|(k, (time, command))| match command {
            Command::Erhu(command) => (*time, command.clone()),
            Command::Apply(script) => {
                let path = write(&format!("apply-{}.rhai", k + 1), script);
                (*time, format!("apply:{}", path.display()))
            }
        });
        replay::Options {
            config: write("edge.toml", &toml),
            rules: write("rules.rhai", &self.script),
            inputs: inputs.collect(),
            out: out.clone(),
            workers: self.workers,
            burst: self.burst,
            seed: self.seed,
            answer_arp: self.answer_arp,
            until: self.until,
            at: at.collect(),
            conntrack: Some(out.join("conntrack.txt")),
            events: Some(out.join("events.txt")),
            stats: Some(out.join("stats.json")),
        }
    }

    /// The frames of a port in time order.
    fn records(&self, port: &str) -> Vec<Record> {
        let earliest = self.frames.iter().map(|(at, ..)| *at).fold(f64::INFINITY, f64::min);
        assert!(
            self.frames.is_empty() || earliest == 0.0,
            "time 0 is the first packet, but that is sent at {earliest}"
        );
        let of_port = self.frames.iter().filter(|(_, p, _)| *p == port);
        let mut records: Vec<_> = of_port
            .map(|(at, _, data)| Record { time_ns: START_NS + nanoseconds(*at), data: data.clone() })
            .collect();
        records.sort_by_key(|r| r.time_ns);
        records
    }

    /// Whether every frame that it sends is without fault.
    fn is_clean(&self) -> bool {
        self.frames.iter().all(|(_, _, data)| Seen::of(0, data.clone()).faults().is_empty())
    }
}

/// Seconds as nanoseconds, rounded to the microseconds of the scenario's captures.
fn nanoseconds(seconds: f64) -> u64 {
    assert!((0.0..1e9).contains(&seconds), "{seconds} is no time of a scenario");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded by the line above")]
    let micros = (seconds * 1e6).round() as u64;
    micros * 1000
}

fn copy_folder(from: &Path, to: &Path) {
    let entries = std::fs::read_dir(from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    for entry in entries {
        let entry = entry.expect("an entry of a folder of the repository");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir_all(&target).expect("a folder beside the script");
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("a file beside the script");
        }
    }
}

/// Runs a scenario and checks what must hold in every one; see the [module](self).
///
/// # Panics
/// If replay refuses, if an output cannot be read, or if what must always hold does not.
#[track_caller]
pub fn run(scenario: &Scenario) -> Outcome {
    match scenario.try_run() {
        Ok(outcome) => {
            outcome.check(scenario.is_clean());
            outcome
        }
        Err(message) => panic!("replay refused:\n{message}"),
    }
}

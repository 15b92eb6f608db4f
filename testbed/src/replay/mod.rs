//! Replay: the dataplane's own worker under a virtual clock, captures in, captures out.
//!
//! # Overview
//!
//! The same [`erhu_pipeline`] that runs on ports runs here over heap buffers. A rule script goes the way it goes in
//! production: compiled, encoded, decoded, validated, adopted; `--at` runs any `erhu` command in this process against
//! the same requests and the same shared memory that a live one has. Packets are offered at their capture times; between
//! them the clock goes on tick by tick, so that timers run when they would have run.
//!
//! # Determinism
//!
//! One thread, one order: at an instant first timers, then commands, then packets in order, then answers to what the
//! router asks neighbours. With several workers each packet is carried to its end, hand-over included, before the next.

mod clock;
mod neighbours;
mod plane;
mod report;

use std::path::{Path, PathBuf};

use erhu_controlplane::config::{Config, ConfigError, replay_mac};
use erhu_controlplane::history::{self, PublishError, Stored};
use erhu_controlplane::{Facts, check_script, cli};
use erhu_pipeline::policy::PortFacts;
use erhu_pipeline::{Buffer, HeapBuffer};
use erhu_planes::program::ProgramError;

use crate::audit;
use crate::merge::{Merged, merge};
use crate::pcap::{self, CaptureError, Record};

pub use plane::Plane;

use clock::Clock;
use neighbours::Answerer;

/// What to replay.
#[derive(Clone, Debug)]
pub struct Options {
    /// Configuration: ports and capacity.
    pub config: PathBuf,
    /// Rule script.
    pub rules: PathBuf,
    /// Captures: port and file.
    pub inputs: Vec<(String, PathBuf)>,
    /// Folder for what ports send.
    pub out: PathBuf,
    /// Workers.
    pub workers: usize,
    /// Packets of one instant that are offered together at most.
    pub burst: usize,
    /// Fixes hash keys and port choice.
    pub seed: u64,
    /// Answer the router's ARP requests and neighbour solicitations.
    pub answer_arp: bool,
    /// Run the clock on to this time, seconds.
    pub until: Option<f64>,
    /// Commands: seconds and text.
    pub at: Vec<(f64, String)>,
    /// Where to write the connection table.
    pub conntrack: Option<PathBuf>,
    /// Where to write events.
    pub events: Option<PathBuf>,
    /// Where to write statistics.
    pub stats: Option<PathBuf>,
}

/// What a replay did.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Report {
    /// Packets offered.
    pub offered: usize,
    /// Packets sent, by port in the configuration's order.
    pub sent: Vec<(String, usize)>,
    /// What went wrong without ending the run: commands, ends of captures.
    pub warnings: Vec<String>,
}

/// Why a replay could not run.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A capture.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The script; one line for each of its errors.
    #[error("{0}")]
    Script(String),
    /// The compiled program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// An option that makes no sense with the rest.
    #[error("{0}")]
    Option(String),
    /// Memory, or a refusal of the dataplane's.
    #[error("{0}")]
    Dataplane(String),
    /// What must hold of every router does not ([`crate::audit`]); the outputs have been written.
    #[error("the router contradicts itself:\n{}", .0.join("\n"))]
    Faults(Vec<String>),
    /// A file of the output.
    #[error("{}: {source}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Runs a replay from beginning to end.
///
/// # Errors
/// If an input cannot be used, the script does not check, or an output cannot be written.
pub fn run(options: &Options) -> Result<Report, ReplayError> {
    let config = Config::for_replay(&options.config)?;
    let facts = Facts::from(&config);
    let checked = check_script(&options.rules, &facts).map_err(|errors| {
        ReplayError::Script(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    })?;
    let ports: Vec<PortFacts> = config
        .ports
        .iter()
        .enumerate()
        .map(|(at, p)| PortFacts {
            name: p.name.clone(),
            mac: p.mac.unwrap_or(replay_mac(u8::try_from(at).unwrap_or(u8::MAX))),
        })
        .collect();
    let mut report = Report::default();
    let input = Input::read(options, &ports, &mut report)?;
    let mut plane = Plane::new(&ports, config.connections, options.workers, options.seed)?;
    plane.set_time(input.start_ns, 0);
    if options.events.is_some() {
        plane.want_events()?;
    }
    let script = std::fs::read_to_string(&options.rules)
        .map_err(|source| ReplayError::Output { path: options.rules.clone(), source })?;
    let first = Stored { program: checked.program.encode()?, script: Some(script) };
    let refused = |e: PublishError| ReplayError::Dataplane(e.to_string());
    {
        let history = history::open(&mut plane).map_err(refused)?;
        history::publish(&mut plane, history.as_ref(), &first).map_err(refused)?;
    }
    let mut run = Run {
        answerer: options.answer_arp.then(Answerer::default),
        sent: vec![Vec::new(); ports.len()],
        events: Vec::new(),
        clock: Clock::new(input.start_ns),
        plane,
        options,
        ports,
    };
    report.offered = input.packets.len();
    run.all(&input, &mut report)?;
    report.sent = run.ports.iter().zip(&run.sent).map(|(port, sent)| (port.name.clone(), sent.len())).collect();
    run.write(input.nanoseconds)?;
    match audit::faults(run.plane.shared()) {
        faults if faults.is_empty() => Ok(report),
        faults => Err(ReplayError::Faults(faults)),
    }
}

/// Everything that comes in.
struct Input {
    packets: Vec<Merged>,
    /// Port number of each input.
    ports: Vec<u16>,
    start_ns: u64,
    nanoseconds: bool,
}

impl Input {
    fn read(options: &Options, ports: &[PortFacts], report: &mut Report) -> Result<Self, ReplayError> {
        let mut records = Vec::new();
        let mut numbers = Vec::new();
        let mut nanoseconds = false;
        for (name, path) in &options.inputs {
            let number = ports.iter().position(|p| p.name == *name).ok_or_else(|| {
                let known: Vec<&str> = ports.iter().map(|p| p.name.as_str()).collect();
                ReplayError::Option(format!("--in {name}=…: there is no port {name} (ports: {})", known.join(", ")))
            })?;
            numbers.push(u16::try_from(number).unwrap_or(u16::MAX));
            let capture = pcap::read(path)?;
            nanoseconds |= capture.nanoseconds;
            report.warnings.extend(capture.warning);
            records.push(capture.records);
        }
        let packets = merge(records);
        let start_ns = packets.first().map_or(0, |p| p.record.time_ns);
        Ok(Self { packets, ports: numbers, start_ns, nanoseconds })
    }
}

struct Run<'o> {
    options: &'o Options,
    ports: Vec<PortFacts>,
    plane: Plane,
    clock: Clock,
    answerer: Option<Answerer>,
    sent: Vec<Vec<Record>>,
    events: Vec<String>,
}

impl Run<'_> {
    fn all(&mut self, input: &Input, report: &mut Report) -> Result<(), ReplayError> {
        let mut commands: Vec<(u64, usize)> = Vec::new();
        for (position, (seconds, _)) in self.options.at.iter().enumerate() {
            commands.push((self.clock.instant(*seconds, "--at")?, position));
        }
        commands.sort_by_key(|(at, _)| *at);
        let end = match self.options.until {
            Some(seconds) => self.clock.instant(seconds, "--until")?,
            None => 0,
        };
        let (mut next_packet, mut next_command) = (0, 0);
        loop {
            let packet_at = input.packets.get(next_packet).map(|p| p.record.time_ns);
            let command_at = commands.get(next_command).map(|(at, _)| *at);
            let Some(now) = packet_at.into_iter().chain(command_at).min() else { break };
            self.advance(now);
            while let Some((_, position)) = commands.get(next_command).filter(|(at, _)| *at <= now) {
                self.command(*position, report)?;
                next_command += 1;
            }
            let due = input.packets[next_packet..].iter().take_while(|p| p.record.time_ns <= now).count();
            self.offer(&input.packets[next_packet..next_packet + due], &input.ports);
            next_packet += due;
            self.answer();
        }
        self.advance(end);
        self.plane.publish();
        Ok(())
    }

    /// Lets time pass up to an instant; stops at every tick at which something may be due.
    fn advance(&mut self, until_ns: u64) {
        while let Some((wall_ns, mono_ns)) = self.clock.step(until_ns, self.plane.is_idle()) {
            self.plane.set_time(wall_ns, mono_ns);
            self.plane.settle();
            self.drain();
            self.answer();
        }
    }

    fn offer(&mut self, packets: &[Merged], ports: &[u16]) {
        let several = self.options.workers > 1;
        let most = if several { 1 } else { self.options.burst.clamp(1, erhu_pipeline::BURST) };
        let mut burst: Vec<HeapBuffer> = Vec::with_capacity(most);
        let mut at = 0;
        while let Some(first) = packets.get(at) {
            let port = ports[first.input];
            let run = packets[at..].iter().take(most).take_while(|p| ports[p.input] == port).count();
            for packet in &packets[at..at + run] {
                if let Some(answerer) = &mut self.answerer {
                    answerer.note(port, &packet.record.data);
                }
                burst.push(HeapBuffer::new(&packet.record.data));
            }
            let worker = if several { self.plane.worker_of(port, burst[0].frame()) } else { 0 };
            self.plane.offer(worker, port, &mut burst);
            self.drain();
            at += run;
        }
    }

    /// Takes what ports send and what happened.
    fn drain(&mut self) {
        for (port, sent) in self.sent.iter_mut().enumerate() {
            for frame in self.plane.take_sent(port) {
                if let Some(answerer) = &mut self.answerer {
                    answerer.heard(port, &frame, &self.plane);
                }
                sent.push(Record { time_ns: self.clock.wall_ns(), data: frame });
            }
        }
        if self.options.events.is_some() {
            self.plane.take_events(&mut self.events);
        }
    }

    /// Answers the router's ARP requests and neighbour solicitations until it asks no more.
    fn answer(&mut self) {
        while let Some((port, frame)) = self.answerer.as_mut().and_then(Answerer::next_answer) {
            let worker = self.plane.worker_of(port, &frame);
            self.plane.offer(worker, port, &mut vec![HeapBuffer::new(&frame)]);
            self.drain();
        }
    }

    fn command(&mut self, position: usize, report: &mut Report) -> Result<(), ReplayError> {
        let (seconds, text) = &self.options.at[position];
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status = match cli::split_command(text) {
            Ok(words) => {
                let mut env =
                    cli::Env { out: &mut out, err: &mut err, dataplane: Some(&mut self.plane), is_terminal: false };
                cli::run(words, &mut env)
            }
            Err(reason) => {
                err.extend(format!("{reason}\n").bytes());
                2
            }
        };
        self.drain();
        if status != 0 {
            let said = String::from_utf8_lossy(&err).trim().to_owned();
            report.warnings.push(format!("--at {seconds}={text}: exit status {status}: {said}"));
        }
        out.extend(err);
        write_file(&self.options.out.join(format!("at-{}.txt", position + 1)), &out)
    }

    fn write(&mut self, nanoseconds: bool) -> Result<(), ReplayError> {
        std::fs::create_dir_all(&self.options.out)
            .map_err(|source| ReplayError::Output { path: self.options.out.clone(), source })?;
        for (port, sent) in self.ports.iter().zip(&self.sent) {
            pcap::write(&self.options.out.join(format!("{}.pcap", port.name)), sent, nanoseconds)?;
        }
        if let Some(path) = &self.options.conntrack {
            write_file(path, &self.list(&["conntrack", "-L", "-o", "extended,id"]))?;
            let mut expectations = path.clone().into_os_string();
            expectations.push(".expect");
            write_file(Path::new(&expectations), &self.list(&["conntrack", "-L", "expect"]))?;
        }
        if let Some(path) = &self.options.events {
            let text: String = self.events.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
            write_file(path, text.as_bytes())?;
        }
        if let Some(path) = &self.options.stats {
            write_file(path, report::statistics(&self.plane).as_bytes())?;
        }
        Ok(())
    }

    fn list(&mut self, words: &[&str]) -> Vec<u8> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let words = words.iter().map(|w| (*w).into());
        let mut env = cli::Env { out: &mut out, err: &mut err, dataplane: Some(&mut self.plane), is_terminal: false };
        cli::run(words, &mut env);
        out
    }
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), ReplayError> {
    let fail = |source| ReplayError::Output { path: path.to_owned(), source };
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(fail)?;
    }
    std::fs::write(path, bytes).map_err(fail)
}

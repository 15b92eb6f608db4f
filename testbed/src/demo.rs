//! `erhu-testbed demo`: what `testbed/demo.sh` writes before the two processes run, and what it shows of them.
//!
//! # Life-cycle
//!
//! Each step works in the demo's folder, whose name is the instance's: [`prepare`] writes the captures that come in
//! and a configuration for this machine; [`show`] waits until the running dataplane has taken them all, and shows what
//! it sent and what `erhu` says of it; [`back`] replays the same captures with the server's answers, because a capture
//! cannot answer. `show` and `back` fail if a tenant's packet did not leave from its own pool, or an answer did not
//! find its tenant.

mod paper;
mod story;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Subcommand;
use erhu_controlplane::client::{Client, ClientError, Dataplane};
use erhu_planes::region::RegionError;
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::packet::read::Seen;
use crate::pcap::{self, CaptureError, Record};
use crate::replay::{self, ReplayError};
use paper::Paper;

/// How long the dataplane may take for a dozen packets; what takes time is its start.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// Until the server answers in the replay.
const ROUND_TRIP_NS: u64 = 20_000_000;

/// The steps of the demo.
#[derive(Debug, Subcommand)]
pub enum Step {
    /// Draw the topology; write captures and a configuration into the demo's folder
    #[command(after_help = "Example:\n  erhu-testbed demo prepare /tmp/demo --config configs/ci.toml")]
    Prepare {
        /// The demo's folder; its name becomes the instance's
        folder: PathBuf,
        /// The configuration to start from
        #[arg(long, value_name = "FILE.toml")]
        config: PathBuf,
    },
    /// Show what the running dataplane made of the captures
    #[command(after_help = "Example:\n  erhu-testbed demo show /tmp/demo --erhu target/debug/erhu")]
    Show {
        /// The demo's folder
        folder: PathBuf,
        /// The `erhu` program
        #[arg(long, value_name = "FILE")]
        erhu: PathBuf,
    },
    /// Replay the captures with the server's answers, and show where those go
    #[command(after_help = "Example:\n  erhu-testbed demo back /tmp/demo")]
    Back {
        /// The demo's folder
        folder: PathBuf,
    },
}

/// Why a step of the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A file, or the terminal.
    #[error("{what}: {source}")]
    System {
        /// What was tried, on what.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The configuration to start from.
    #[error("{0}")]
    Config(String),
    /// No dataplane.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Its counters cannot be read.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// A capture.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The replay.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The dataplane did not take its packets in time.
    #[error("the dataplane took {taken} of {offered} packets within {} s; its log is {}", PATIENCE.as_secs(), log.display())]
    Late {
        /// Packets it took.
        taken: u64,
        /// Packets in the captures.
        offered: u64,
        /// Its log.
        log: PathBuf,
    },
    /// The outcome is not what this router is for.
    #[error("this is not what should have happened:\n{0}")]
    Wrong(String),
}

/// The error of a system call, with what was tried.
fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> DemoError {
    let what = what.into();
    move |source| DemoError::System { what, source }
}

/// Runs one step and prints to `out`, with colours.
///
/// # Errors
/// [`DemoError`]: what cannot be done, or is not as it should be.
pub fn run(step: &Step, out: &mut dyn Write) -> Result<(), DemoError> {
    let mut paper = Paper::default();
    let outcome = match step {
        Step::Prepare { folder, config } => prepare(folder, config, &mut paper),
        Step::Show { folder, erhu } => show(folder, erhu, &mut paper),
        Step::Back { folder } => back(folder, &mut paper),
    };
    // What was found out before something went wrong helps to see what it was.
    out.write_all(paper.text().as_bytes()).map_err(system("standard output"))?;
    outcome
}

fn instance(folder: &Path) -> String {
    folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned()
}

/// What came in by a port, or went out by it.
fn capture(folder: &Path, port: &str, way: &str) -> PathBuf {
    folder.join(format!("{port}.{way}.pcap"))
}

fn configuration(folder: &Path) -> PathBuf {
    folder.join("demo.toml")
}

fn packets(path: &Path) -> Result<Vec<Seen>, DemoError> {
    Ok(pcap::read(path)?.records.iter().map(Seen::from).collect())
}

fn prepare(folder: &Path, config: &Path, paper: &mut Paper) -> Result<(), DemoError> {
    paper.title("The network");
    paper.plain(story::TOPOLOGY);
    std::fs::create_dir_all(folder).map_err(system(folder.display().to_string()))?;
    for (port, records) in [("lan", story::from_lan()), ("wan", story::from_wan())] {
        pcap::write(&capture(folder, port, "in"), &records, false)?;
    }
    let path = configuration(folder);
    let text = for_this_machine(config, &instance(folder))?;
    std::fs::write(&path, text).map_err(system(path.display().to_string()))
}

/// The configuration with this run's name, CPUs that this process may use, and its script by an absolute path.
fn for_this_machine(config: &Path, instance: &str) -> Result<String, DemoError> {
    let wrong = |reason: String| DemoError::Config(format!("{}: {reason}", config.display()));
    let text = std::fs::read_to_string(config).map_err(system(config.display().to_string()))?;
    let mut table: toml::Table = text.parse().map_err(|e: toml::de::Error| wrong(e.to_string()))?;
    let script = table.get("rules").and_then(toml::Value::as_str).unwrap_or("rules.rhai");
    let script = config.parent().unwrap_or(Path::new("")).join(script);
    let script = script.canonicalize().map_err(system(script.display().to_string()))?;
    let allowed = sched_getaffinity(None).map_err(|e| system("the CPUs of this process")(e.into()))?;
    let cpus: Vec<i64> =
        (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).filter_map(|c| c.try_into().ok()).collect();
    let main = cpus.first().copied().unwrap_or(0);
    let worker = cpus.get(1).copied().unwrap_or(main);
    table.insert("instance".into(), instance.into());
    table.insert("rules".into(), script.display().to_string().into());
    table.insert("main_core".into(), main.into());
    table.insert("workers".into(), toml::Value::Array(vec![worker.into()]));
    Ok(table.to_string())
}

fn show(folder: &Path, erhu: &Path, paper: &mut Paper) -> Result<(), DemoError> {
    let (lan, wan) = (packets(&capture(folder, "lan", "in"))?, packets(&capture(folder, "wan", "in"))?);
    wait(folder, (lan.len() + wan.len()) as u64)?;
    let sent =
        story::Sent { lan: packets(&capture(folder, "lan", "out"))?, wan: packets(&capture(folder, "wan", "out"))? };
    paper.title("What came in, and what became of it");
    let faults = story::out(paper, &lan, &wan, &sent);
    let instance = instance(folder);
    for words in [["conntrack", "-L"], ["show", "interfaces"], ["show", "zones"], ["show", "pools"]] {
        paper.command(&format!("erhu {}", words.join(" ")));
        say(paper, erhu, &instance, &words, |_| true)?;
    }
    paper.command("erhu show stats    (what is not 0)");
    say(paper, erhu, &instance, &["show", "stats"], |line| !line.ends_with(" 0"))?;
    judge(faults)
}

/// Waits until the running dataplane has taken as many packets as were offered, and sent what it made of them.
fn wait(folder: &Path, offered: u64) -> Result<(), DemoError> {
    let began = Instant::now();
    let name = instance(folder);
    loop {
        // Counters are published after a burst has left, so what is counted as received has been dealt with.
        let taken = taken(&name);
        match taken {
            Ok(taken) if taken >= offered => return Ok(()),
            Ok(taken) if began.elapsed() > PATIENCE => {
                return Err(DemoError::Late { taken, offered, log: folder.join("dataplane.log") });
            }
            Err(error) if began.elapsed() > PATIENCE => return Err(error),
            _ => std::thread::sleep(LOOK),
        }
    }
}

fn taken(instance: &str) -> Result<u64, DemoError> {
    let stats = Client::connect(Some(instance))?.stats()?;
    let of_worker = |worker| {
        let ports = stats.worker(worker).map(|block| &block.ports[..]).unwrap_or_default();
        ports.iter().map(|port| port.rx_packets.load(Ordering::Relaxed)).sum()
    };
    Ok(stats.sum(of_worker))
}

/// Runs an `erhu` command on the live process and prints the lines of its answer that are `wanted`.
fn say(
    paper: &mut Paper,
    erhu: &Path,
    instance: &str,
    words: &[&str],
    wanted: fn(&str) -> bool,
) -> Result<(), DemoError> {
    let what = format!("{} {}", erhu.display(), words.join(" "));
    let output = Command::new(erhu).args(["--instance", instance]).args(words).output().map_err(system(&what))?;
    if !output.status.success() {
        return Err(DemoError::Wrong(format!("{what}: {}", String::from_utf8_lossy(&output.stderr))));
    }
    for line in String::from_utf8_lossy(&output.stdout).lines().filter(|line| wanted(line)) {
        paper.folded(line, story::colour_of(line));
    }
    Ok(())
}

fn back(folder: &Path, paper: &mut Paper) -> Result<(), DemoError> {
    let answers = folder.join("answers.in.pcap");
    pcap::write(&answers, &[], false)?;
    let options = replay::Options {
        config: configuration(folder),
        rules: erhu_controlplane::config::Config::for_replay(&configuration(folder))
            .map_err(ReplayError::from)?
            .rules,
        inputs: vec![
            ("lan".into(), capture(folder, "lan", "in")),
            ("wan".into(), capture(folder, "wan", "in")),
            ("wan".into(), answers.clone()),
        ],
        out: folder.join("replay"),
        workers: 1,
        burst: 32,
        seed: 1,
        answer_arp: false,
        until: None,
        at: Vec::new(),
        conntrack: Some(folder.join("replay/conntrack.txt")),
        events: None,
        stats: None,
    };
    // Twice: which addresses and ports the server sees is known once the router has chosen them.
    replay::run(&options)?;
    let asked = packets(&options.out.join("wan.pcap"))?;
    let said: Vec<Seen> = asked.iter().filter_map(|seen| story::answer(seen, ROUND_TRIP_NS)).collect();
    let records: Vec<Record> = said.iter().map(|s| Record { time_ns: s.time_ns, data: s.frame.clone() }).collect();
    pcap::write(&answers, &records, false)?;
    replay::run(&options)?;
    paper.title("The way back: the same captures and rules replayed, and now the server answers");
    let faults = story::back(paper, &said, &packets(&options.out.join("lan.pcap"))?);
    judge(faults)
}

fn judge(faults: Vec<String>) -> Result<(), DemoError> {
    if faults.is_empty() { Ok(()) } else { Err(DemoError::Wrong(faults.join("\n"))) }
}

//! Benchmarks: the router's own workers between generators and sinks, beside two yardsticks.
//!
//! # Overview
//!
//! Each workload ([`workloads`]) sets a scene ([`scene`]): table, translation, a rule script ([`script`]) that went the
//! usual way, workers. Frames ([`frames`]) lie in buffers like mbufs, of flows ([`flows`]) in random order. A round
//! measures the loop with the router and, interleaved, `io` (the same loop doing nothing) and F (the floor, crate
//! `erhu-floor`). A figure is the loop less `io`, in ticks of the thread's own CPU time; medians over the rounds are
//! held against what is wanted ([`goals`]), for every kind of pool where it matters, and the worst counts.
//!
//! # What is checked
//!
//! Every first packet and every first answer, and a sample of the packets that follow, is read in full ([`verify`]):
//! translated to the pool, always alike, nobody else's, right to the last checksum; counters add up, connections and
//! ports too. Where something is wrong there is no figure.

mod calm;
mod compare;
mod established;
pub mod flows;
pub mod flows6;
mod footprint;
pub mod frames;
pub mod goals;
mod latency;
mod machine;
pub mod measure;
mod opening;
mod pages;
mod plot;
mod report;
mod scale;
pub mod scene;
pub mod script;
mod together;
pub mod verify;
pub mod workloads;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use erhu_floor::{Floor, clock};
use serde_json::{Value, json};

use frames::{Frame, Supply};
use measure::{Source, pass, unseen};
use pages::Reservation;
use report::Row;
use scene::Scene;
use workloads::{ALL, Variant, Workload};

/// What to measure, and how long.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Workloads by number (A1 to H1, GROWN); all if none is named
    #[arg(value_name = "WORKLOAD")]
    pub workloads: Vec<String>,
    /// Rounds of each measurement; medians over them are shown
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: u16,
    /// Packets of a round
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u32).range(64..))]
    pub packets: u32,
    /// Most flows and connections: smaller tables for a quick look, whose figures mean little
    #[arg(long, default_value_t = flows::MOST, value_parser = clap::value_parser!(u32).range(128..))]
    pub connections: u32,
    /// Measure with the default kind of pool only, instead of all four
    #[arg(long)]
    pub default_pool: bool,
    /// CPU to run on; the last one if none is named. What runs beside has the first other one
    #[arg(long)]
    pub cpu: Option<usize>,
    /// Let `perf record -D -1 --control fifo:PATH` look at the measured loops with the router, and at nothing else
    #[arg(long, value_name = "FIFO")]
    pub perf_control: Option<PathBuf>,
    /// Write everything measured to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw ticks per established packet against flows
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Say what moved beyond the noise since another run wrote this file
    #[arg(long, value_name = "OLD.json")]
    pub compare: Option<PathBuf>,
    /// Write bench.json and bench.svg into this folder and the table into its BENCHMARKS.md
    #[arg(long, value_name = "FOLDER")]
    pub record: Option<PathBuf>,
    /// Take the figures from a file that another run wrote, instead of measuring
    #[arg(long, value_name = "FILE.json", conflicts_with_all = ["workloads", "perf_control"])]
    pub from: Option<PathBuf>,
}

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// No memory, or a program that does not check.
    #[error("{0}")]
    Scene(String),
    /// The router did something wrong, or a packet got lost.
    #[error("wrong: {0}")]
    Wrong(String),
    /// An option.
    #[error("{0}")]
    Option(String),
    /// A file.
    #[error("{}: {what}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

fn file_error(path: &Path, what: impl ToString) -> BenchError {
    BenchError::File { path: path.to_owned(), what: what.to_string() }
}

/// What runs share.
#[derive(Debug)]
pub struct Bench {
    /// Frames.
    pub supply: Supply,
    /// Rounds of each measurement.
    pub rounds: usize,
    /// Packets of a round.
    pub packets: u32,
    /// Most connections.
    pub connections: u32,
    /// The CPU of what runs beside.
    pub other_cpu: usize,
    floor: Option<Floor>,
    profiler: Option<std::fs::File>,
}

impl Bench {
    /// So many flows, or as many as there may be.
    pub fn at_most(&self, flows: u32) -> u32 {
        flows.min(self.connections)
    }

    /// Ticks per packet of the floor now, where the workload has one.
    pub fn floor(&mut self) -> Option<f64> {
        let packets = self.packets as usize;
        self.floor.as_mut().map(|floor| floor.run(packets).ticks)
    }

    /// Lets the profiler look, or no longer. One that went away is no reason to stop.
    fn profile(&mut self, on: bool) {
        if let Some(profiler) = &mut self.profiler {
            let _ = profiler.write_all(if on { b"enable\n" } else { b"disable\n" });
        }
    }

    /// Ticks per packet of the loop with the router's first worker, its clock running.
    fn timed(&mut self, scene: &mut Scene, packets: u32, source: &mut impl Source) -> Result<f64, BenchError> {
        self.profile(true);
        scene.run();
        let ticks = pass(&mut self.supply, packets, scene.lane(), source, |frame: &Frame| unseen(frame));
        scene.stop();
        self.profile(false);
        ticks
    }
}

/// Moves this thread to a CPU, where that can be done.
fn pin(cpu: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
}

/// Runs the workloads and prints the table. Fails where a workload's outcome is wrong; a missed target is no failure.
pub fn run(options: &Options) -> ExitCode {
    match try_run(options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("erhu-testbed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_run(options: &Options) -> Result<bool, BenchError> {
    let old = options.compare.as_deref().map(read_json).transpose()?;
    let (all, all_right) = match &options.from {
        Some(path) => {
            let all = read_json(path)?;
            print!("{}", report::table(&all));
            let all_right = all["all_right"] == true;
            (all, all_right)
        }
        None => measure_all(options)?,
    };
    if let Some(old) = &old {
        print!("{}", compare::text(old, &all));
    }
    if let Some(path) = &options.json {
        write(path, &format!("{all:#}\n"))?;
    }
    if let Some(path) = &options.svg {
        write(path, &plot::svg(&all)?)?;
    }
    if let Some(folder) = &options.record {
        write(&folder.join("bench.json"), &format!("{all:#}\n"))?;
        write(&folder.join("bench.svg"), &plot::svg(&all)?)?;
        let page = folder.join("BENCHMARKS.md");
        let text = std::fs::read_to_string(&page).map_err(|e| file_error(&page, e))?;
        let text = report::with_table(&text, &all).ok_or_else(|| file_error(&page, report::NO_PLACE))?;
        write(&page, &text)?;
    }
    Ok(all_right)
}

fn read_json(path: &Path) -> Result<Value, BenchError> {
    let bytes = std::fs::read(path).map_err(|e| file_error(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| file_error(path, e))
}

fn write(path: &Path, text: &str) -> Result<(), BenchError> {
    std::fs::write(path, text).map_err(|e| file_error(path, e))
}

fn measure_all(options: &Options) -> Result<(Value, bool), BenchError> {
    let chosen = choose(&options.workloads)?;
    let (own, other_cpu) = cpus(options.cpu)?;
    pin(own);
    let most = if options.connections.is_power_of_two() {
        options.connections
    } else {
        options.connections.next_power_of_two() / 2
    }
    .min(flows::MOST);
    let machine = machine::description();
    println!("{machine}");
    println!("ticks of {:.0} MHz; {} rounds of {} packets", clock::hz() / 1e6, options.rounds, options.packets);
    let mut bench = Bench {
        supply: Supply::new(),
        rounds: options.rounds.into(),
        packets: options.packets,
        connections: most,
        other_cpu,
        floor: None,
        profiler: profiler(options)?,
    };
    println!("{}", report::heading());
    let (mut rows, mut all_right, mut pages) = (Vec::new(), true, Vec::new());
    for workload in chosen {
        let (reserved, said) = Reservation::of(workload.bytes(most));
        if !pages.contains(&said) {
            pages.push(said);
        }
        let row = row(&mut bench, workload, options.default_pool);
        all_right &= row.error.is_none();
        let row = report::json(&row);
        print!("{}", report::lines(&row));
        // A table that takes minutes is read while it grows.
        let _ = std::io::stdout().flush();
        rows.push(row);
        bench.floor = None;
        drop(reserved);
    }
    let all = json!({
        "machine": machine,
        "pages": pages,
        "tsc_hz": clock::hz(),
        "rounds": options.rounds,
        "packets": options.packets,
        "connections": most,
        "all_right": all_right,
        "rows": rows,
    });
    Ok((all, all_right))
}

/// The CPU to run on, and another one: the same where there is no other.
fn cpus(wanted: Option<usize>) -> Result<(usize, usize), BenchError> {
    let all: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|c| c.id).collect();
    let own = match wanted {
        Some(cpu) if all.contains(&cpu) => cpu,
        Some(cpu) => return Err(BenchError::Option(format!("--cpu {cpu}: this process may not run there"))),
        None => all.last().copied().unwrap_or(0),
    };
    Ok((own, all.iter().copied().find(|cpu| *cpu != own).unwrap_or(own)))
}

fn profiler(options: &Options) -> Result<Option<std::fs::File>, BenchError> {
    let open = |path: &PathBuf| std::fs::File::options().write(true).open(path).map_err(|e| file_error(path, e));
    options.perf_control.as_ref().map(open).transpose()
}

fn row(bench: &mut Bench, workload: Workload, default_pool: bool) -> Row {
    bench.floor = workload.floor_flows(bench.connections).and_then(|flows| Floor::new(flows as usize));
    let variants = if default_pool || !workload.every_pool { &Variant::ALL[..1] } else { &Variant::ALL[..] };
    let outcomes = variants.iter().map(|variant| workload.run(bench, *variant));
    let (outcomes, error) = match outcomes.collect::<Result<Vec<_>, _>>() {
        Ok(outcomes) => (outcomes, None),
        Err(error) => {
            // What was lost with it is lost; the next workload has new frames.
            bench.supply = Supply::new();
            (Vec::new(), Some(error.to_string()))
        }
    };
    Row { workload, flows: workload.flows(bench.connections), outcomes, error }
}

/// Workloads by number; `A5` is all of its rows.
fn choose(names: &[String]) -> Result<Vec<Workload>, BenchError> {
    if names.is_empty() {
        return Ok(ALL.to_vec());
    }
    let mut chosen = Vec::new();
    for name in names {
        let is_it = |w: &&Workload| {
            w.id.eq_ignore_ascii_case(name) || w.id.strip_suffix('M').is_some_and(|id| id.eq_ignore_ascii_case(name))
        };
        let before = chosen.len();
        chosen.extend(ALL.iter().filter(is_it).copied());
        if chosen.len() == before {
            let known: Vec<&str> = ALL.iter().map(|w| w.id).filter(|id| !id.ends_with('M')).collect();
            return Err(BenchError::Option(format!("there is no workload {name} (there are {})", known.join(", "))));
        }
    }
    Ok(chosen)
}

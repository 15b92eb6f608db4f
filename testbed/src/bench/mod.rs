//! Benchmarks: the router's own worker between a generator and a sink, beside two yardsticks.
//!
//! # Overview
//!
//! Each workload ([`workloads`]) sets a scene ([`scene`]): table, translation, a rule script that went the usual way,
//! one worker. Frames ([`frames`]) lie in buffers like mbufs, of flows ([`flows`]) in random order. A round measures
//! the loop with the router and, interleaved, `io` (the same loop doing nothing) and F (the floor, crate `erhu-floor`).
//! A figure is the loop less `io`, in ticks of the thread's own CPU time; medians over the rounds are shown, for every
//! kind of pool, and the worst counts.
//!
//! # What is checked
//!
//! Every first packet and every first answer, and a sample of the packets that follow, is read in full ([`verify`]):
//! translated to the pool, always alike, nobody else's, right to the last checksum; counters add up. Where something is
//! wrong there is no figure.

pub mod flows;
pub mod frames;
pub mod measure;
mod pages;
mod report;
pub mod scene;
pub mod verify;
pub mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;

use erhu_floor::{Floor, clock};
use serde_json::json;

use frames::Supply;
use pages::Reservation;
use report::Row;
use workloads::{ALL, Bench, Variant, Workload};

/// What to measure, and how long.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Workloads by number (A1 A2 A3 A4 B1 C1); all if none is named
    #[arg(value_name = "WORKLOAD")]
    pub workloads: Vec<String>,
    /// Rounds of each measurement; medians over them are shown
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: u16,
    /// Packets of a round
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u32).range(64..))]
    pub packets: u32,
    /// Most flows and connections: smaller tables for a quick look, whose figures mean little
    #[arg(long, default_value_t = flows::MOST, value_parser = clap::value_parser!(u32).range(64..))]
    pub connections: u32,
    /// Measure with the default kind of pool only, instead of all four
    #[arg(long)]
    pub default_pool: bool,
    /// CPU to run on
    #[arg(long)]
    pub cpu: Option<usize>,
    /// Let `perf record -D -1 --control fifo:PATH` look at the measured loops with the router, and at nothing else
    #[arg(long, value_name = "FIFO")]
    pub perf_control: Option<PathBuf>,
    /// Write everything measured to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
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
    /// The output file.
    #[error("{}: {source}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
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
    let chosen = choose(&options.workloads)?;
    if let Some(cpu) = options.cpu
        && !core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
    {
        return Err(BenchError::Option(format!("--cpu {cpu}: this thread cannot be moved there")));
    }
    let most = if options.connections.is_power_of_two() {
        options.connections
    } else {
        options.connections.next_power_of_two() / 2
    };
    let bytes = chosen.iter().map(|w| w.bytes(most)).max().unwrap_or(0);
    let (_pages, said) = Reservation::of(bytes);
    println!("{said}");
    println!("ticks of {:.0} MHz; {} rounds of {} packets", clock::hz() / 1e6, options.rounds, options.packets);
    let mut bench = Bench {
        supply: Supply::new(),
        rounds: options.rounds.into(),
        packets: options.packets,
        connections: most,
        profiler: profiler(options)?,
    };
    println!("{}", report::heading());
    let (mut rows, mut all_right) = (Vec::new(), true);
    for workload in chosen {
        match row(&mut bench, workload, options.default_pool) {
            Ok(row) => {
                print!("{}", report::text(&row));
                rows.push(row);
            }
            Err(error) => {
                println!("{:4} {:29} {error}", workload.id, workload.what);
                all_right = false;
            }
        }
    }
    if let Some(path) = &options.json {
        let all = json!({
            "tsc_hz": clock::hz(),
            "rounds": options.rounds,
            "packets": options.packets,
            "all_right": all_right,
            "rows": rows.iter().map(report::json).collect::<Vec<_>>(),
        });
        std::fs::write(path, format!("{all:#}\n"))
            .map_err(|source| BenchError::Output { path: path.clone(), source })?;
    }
    Ok(all_right)
}

fn profiler(options: &Options) -> Result<Option<std::fs::File>, BenchError> {
    let open = |path: &PathBuf| {
        let file = std::fs::File::options().write(true).open(path);
        file.map_err(|source| BenchError::Output { path: path.clone(), source })
    };
    options.perf_control.as_ref().map(open).transpose()
}

fn row(bench: &mut Bench, workload: Workload, default_pool: bool) -> Result<Row, BenchError> {
    let mut floor = workload.floor_flows(bench.connections).and_then(|flows| Floor::new(flows as usize));
    let variants = if default_pool { &Variant::ALL[..1] } else { &Variant::ALL[..] };
    let outcomes = variants.iter().map(|variant| workload.run(bench, *variant, &mut floor));
    let outcomes = outcomes.collect::<Result<_, _>>()?;
    Ok(Row { workload, flows: workload.flows(bench.connections), outcomes })
}

/// Workloads by number; `C1` is both of its rows.
fn choose(names: &[String]) -> Result<Vec<Workload>, BenchError> {
    if names.is_empty() {
        return Ok(ALL.to_vec());
    }
    let mut chosen = Vec::new();
    for name in names {
        let is_it = |w: &&Workload| w.id.strip_suffix('u').unwrap_or(w.id).eq_ignore_ascii_case(name);
        let before = chosen.len();
        chosen.extend(ALL.iter().filter(is_it).copied());
        if chosen.len() == before {
            let known: Vec<&str> = ALL.iter().map(|w| w.id).filter(|id| !id.ends_with('u')).collect();
            return Err(BenchError::Option(format!("there is no workload {name} (there are {})", known.join(", "))));
        }
    }
    Ok(chosen)
}

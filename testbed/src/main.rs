//! `erhu-testbed`: replay and benchmarks.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use erhu_testbed::{bench, demo, replay};

/// Replays captures through the router and measures it.
#[derive(Parser)]
#[command(name = "erhu-testbed", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs captures through the dataplane's own worker under a virtual clock
    #[command(
        after_help = "Example:\n  erhu-testbed replay --config configs/ci.toml --rules configs/two-tenants.rhai \\\n    \
        --in lan=lan.pcap --in wan=wan.pcap --out /tmp/out --answer-arp --conntrack /tmp/out/table"
    )]
    Replay(Replay),
    /// Measures the router's worker beside two yardsticks, and checks what it did
    #[command(
        after_help = "Examples:\n  erhu-testbed bench A3 B1 C1 --rounds 5 --json new.json --compare old.json\n  \
        erhu-testbed bench --record testbed      everything, into testbed/BENCHMARKS.md, bench.json and bench.svg"
    )]
    Bench(bench::Options),
    /// What testbed/demo.sh shows, step by step
    #[command(subcommand)]
    Demo(demo::Step),
}

#[derive(Args)]
struct Replay {
    /// Configuration: only the names (and MAC addresses) of its ports and `connections` count
    #[arg(long, value_name = "FILE.toml")]
    config: PathBuf,
    /// Rule script
    #[arg(long, value_name = "FILE.rhai")]
    rules: PathBuf,
    /// A capture (pcap or pcapng, Ethernet) that comes in by a port; can be repeated
    #[arg(long = "in", value_name = "PORT=FILE", value_parser = port_and_file)]
    inputs: Vec<(String, PathBuf)>,
    /// Folder for what ports send (PORT.pcap) and what commands print (at-K.txt)
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Workers; packets are spread over them by the RSS hash that a NIC would use
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Packets due at one instant that are offered together at most
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=64))]
    burst: u16,
    /// Fixes hash keys and the choice of ports
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Answer every ARP request and neighbour solicitation of the router that is not for its own addresses
    #[arg(long)]
    answer_arp: bool,
    /// Run the clock on to this time after the first packet
    #[arg(long, value_name = "SECONDS")]
    until: Option<f64>,
    /// Run an erhu command at a time after the first packet; can be repeated (5=apply:other.rhai, 9=conntrack:-F -w 1)
    #[arg(long, value_name = "SECONDS=COMMAND", value_parser = time_and_command)]
    at: Vec<(f64, String)>,
    /// Write the connection table at the end, as `conntrack -L -o extended,id` prints it
    #[arg(long, value_name = "FILE")]
    conntrack: Option<PathBuf>,
    /// Write events, as `conntrack -E -o timestamp,id` prints them
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// Write statistics as JSON
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
}

fn port_and_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((port, file)) if !port.is_empty() && !file.is_empty() => Ok((port.to_owned(), file.into())),
        _ => Err("PORT=FILE is wanted, as in lan=lan.pcap".into()),
    }
}

fn time_and_command(text: &str) -> Result<(f64, String), String> {
    let (seconds, command) = text.split_once('=').ok_or("SECONDS=COMMAND is wanted, as in 5=apply:other.rhai")?;
    let seconds = seconds.trim().parse().map_err(|_| format!("{seconds:?} is no number of seconds"))?;
    Ok((seconds, command.to_owned()))
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Replay(args) => replay(args),
        Command::Bench(options) => bench::run(&options),
        Command::Demo(step) => demo(&step),
    }
}

fn demo(step: &demo::Step) -> ExitCode {
    // Takes the colours out where they cannot be shown.
    match demo::run(step, &mut anstream::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("erhu-testbed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn replay(args: Replay) -> ExitCode {
    let options = replay::Options {
        config: args.config,
        rules: args.rules,
        inputs: args.inputs,
        out: args.out,
        workers: args.workers,
        burst: args.burst.into(),
        seed: args.seed,
        answer_arp: args.answer_arp,
        until: args.until,
        at: args.at,
        conntrack: args.conntrack,
        events: args.events,
        stats: args.stats,
    };
    match replay::run(&options) {
        Ok(report) => {
            for warning in &report.warnings {
                eprintln!("erhu-testbed: {warning}");
            }
            let sent: Vec<String> = report.sent.iter().map(|(port, n)| format!("{port} {n}")).collect();
            println!("{} packets offered; sent: {}", report.offered, sent.join(", "));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

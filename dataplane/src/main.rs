//! `erhu-dataplane`: the poll-mode process.
//!
//! The main thread starts the EAL and the ports, then serves the control socket; one pinned worker per configured CPU
//! polls. Workers start with the first rule set and from then on need nobody.

#![forbid(unsafe_code)]

mod buffer;
mod clock;
mod instance;
mod machine;
mod poll;
mod ports;
mod server;
mod start;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tracing::{error, info};

/// The poll-mode process of an erhu instance.
///
/// Starts the EAL and the ports, waits for its first rule set (from `erhu serve` or `erhu apply`), and forwards until
/// SIGTERM or SIGINT.
#[derive(Parser)]
#[command(
    name = "erhu-dataplane",
    version,
    after_help = "Example:\n  erhu-dataplane --config configs/bare-metal.toml &\n  erhu serve --config configs/bare-metal.toml"
)]
struct Cli {
    /// Facts of this machine: ports, CPUs, memory
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    match start::run(&cli.config) {
        Ok(()) => {
            info!("stopped");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            error!("{reason}");
            ExitCode::FAILURE
        }
    }
}

//! The far side of the testbed: what a router needs around it to be tested, in one process on DPDK
//! ports, written with capsule. Its packet library is not ours, so it judges what our wire code wrote.
//!
//! A port is a DPDK device: `net_vhost0,iface=/run/lan.sock` (the router has `net_virtio_user0,path=…`),
//! `net_tap0,iface=host0` (to be moved into a namespace), `net_af_packet0,iface=veth0`.

#![deny(unsafe_code)]

mod bytes;
mod frame;
mod nat_check;
mod plan;
mod report;
mod respond;
mod runtime;
mod trunk;

use std::net::Ipv4Addr;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::plan::Plan;
use crate::runtime::Settings;

/// Network functions facing the router: hosts, servers, a trunk, and a judge of its translation.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example: erhu-farside nat-check --inside net_vhost0,iface=/run/in.sock \
--outside net_vhost1,iface=/run/out.sock --tenant 100,10.0.0.1,10.0.0.10,203.0.113.16/30 \
--target 198.51.100.7:9000"
)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Joins untagged ports to one 802.1Q trunk, both ways, until a signal. Prints `ready` once it does.
    Trunk {
        /// An untagged port and its VLAN, e.g. `100=net_tap0,iface=tenant-a`. Repeat for each.
        #[arg(long = "access", value_name = "VLAN=DEVICE", required = true)]
        accesses: Vec<trunk::Access>,
        /// The tagged port.
        #[arg(long, value_name = "DEVICE")]
        trunk: String,
    },
    /// Answers ARP, ICMP echo and UDP (echo) for addresses, until a signal. Prints `ready` once it does.
    Respond {
        /// The port.
        #[arg(long, value_name = "DEVICE")]
        port: String,
        /// An address to answer for, in any VLAN. Repeat for more.
        #[arg(long = "address", required = true)]
        addresses: Vec<Ipv4Addr>,
    },
    /// Sends UDP flows from inside hosts and says what came back.
    Generate {
        /// The port towards the router's inside.
        #[arg(long, value_name = "DEVICE")]
        inside: String,
        #[command(flatten)]
        plan: PlanArgs,
        /// Packets per second.
        #[arg(long, default_value_t = 10_000)]
        rate: u64,
        /// Packets that must come back.
        #[arg(long, default_value_t = 0)]
        expect: u64,
    },
    /// Judges translated packets on the outside, and echoes them; ends when all came.
    Check {
        /// The port towards the router's outside.
        #[arg(long, value_name = "DEVICE")]
        outside: String,
        #[command(flatten)]
        plan: PlanArgs,
    },
    /// Both sides of the router: generates inside, judges and echoes outside, judges what returns.
    NatCheck {
        /// The port towards the router's inside.
        #[arg(long, value_name = "DEVICE")]
        inside: String,
        /// The port towards the router's outside.
        #[arg(long, value_name = "DEVICE")]
        outside: String,
        #[command(flatten)]
        plan: PlanArgs,
        /// Packets that may be lost.
        #[arg(long, default_value_t = 0)]
        allow_loss: u64,
    },
}

#[derive(Debug, Args)]
struct PlanArgs {
    #[command(flatten)]
    plan: Plan,
    /// Give up after so many seconds.
    #[arg(long, default_value_t = 60)]
    timeout_s: u64,
}

fn main() -> ExitCode {
    let Cli { settings, command } = Cli::parse();
    erhu_dpdk::log_to_stderr();
    let outcome = match command {
        Command::Trunk { accesses, trunk } => trunk::run(&settings, accesses, trunk).map(|()| true),
        Command::Respond { port, addresses } => respond::run(&settings, port, addresses).map(|()| true),
        Command::Generate { inside, plan, rate, expect } => {
            let goal = nat_check::Goal::Returned { rate, expect };
            nat_check::run(&settings, plan.plan, Some(inside), None, goal, plan.timeout_s)
        }
        Command::Check { outside, plan } => {
            nat_check::run(&settings, plan.plan, None, Some(outside), nat_check::Goal::Arrived, plan.timeout_s)
        }
        Command::NatCheck { inside, outside, plan, allow_loss } => {
            let goal = nat_check::Goal::RoundTrip { allow_loss };
            nat_check::run(&settings, plan.plan, Some(inside), Some(outside), goal, plan.timeout_s)
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("erhu-farside: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! capsule's runtime: one core, a few ports, until a signal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use capsule::batch::PacketRx;
use capsule::config::RuntimeConfig;
use capsule::{Mbuf, Runtime};
use clap::Args;
use serde_json::json;

/// How the process runs, whatever it does.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// CPU that polls all ports.
    #[arg(long, default_value_t = 0, global = true)]
    pub core: usize,
    /// Memory for packets, in MiB.
    #[arg(long, default_value_t = 128, global = true)]
    pub memory_mb: u32,
    /// Take it from huge pages.
    #[arg(long, global = true)]
    pub huge_pages: bool,
    /// Name of DPDK's runtime files; unique on the machine.
    #[arg(long, global = true)]
    pub file_prefix: Option<String>,
    /// Sleep so many microseconds when no port has packets; 0 polls without rest.
    #[arg(long, default_value_t = 50, global = true)]
    pub idle_us: u64,
    /// One more argument for the EAL, as it is.
    #[arg(long = "eal-arg", global = true, allow_hyphen_values = true)]
    pub eal_args: Vec<String>,
}

/// Packets in the pool. Without huge pages each takes a page.
const PACKETS_PER_MIB: u32 = 128;

/// Starts DPDK with `ports`, pairs of a name and a device.
pub fn build(settings: &Settings, ports: &[(String, String)]) -> Result<Runtime> {
    let ports: Vec<_> = ports
        .iter()
        .map(|(name, device)| {
            let (device, args) = device.split_once(',').unwrap_or((device, ""));
            json!({
                "name": name,
                "device": device,
                "args": (!args.is_empty()).then_some(args),
                "cores": [settings.core],
                "rxd": 1024,
                "txd": 1024,
                "promiscuous": true,
            })
        })
        .collect();
    let mut eal = format!("--no-telemetry --no-pci -m {}", settings.memory_mb);
    if !settings.huge_pages {
        eal.push_str(" --no-huge");
    }
    for argument in &settings.eal_args {
        eal.push(' ');
        eal.push_str(argument);
    }
    let prefix = match &settings.file_prefix {
        Some(prefix) => prefix.clone(),
        None => format!("erhu-farside-{}", std::process::id()),
    };
    // capsule's core numbers can only be made by deserialising them.
    let config: RuntimeConfig = serde_json::from_value(json!({
        "app_name": prefix,
        "master_core": settings.core,
        "dpdk_args": eal,
        "mempool": { "capacity": settings.memory_mb * PACKETS_PER_MIB - 1, "cache_size": 64 },
        "ports": ports,
    }))?;
    Runtime::build(config).context("DPDK or a port did not start; its log above has the details")
}

/// Runs until a signal, then cleans up.
pub fn execute(mut runtime: Runtime) -> Result<()> {
    let outcome = runtime.execute();
    drop(runtime);
    if let Some(folder) = erhu_dpdk::runtime_dir() {
        // DPDK leaves it behind; a name is used once.
        let _ = std::fs::remove_dir_all(folder);
    }
    outcome
}

/// Asks [`execute`] to return, from any thread. It has to be running.
pub fn stop() {
    if let Err(error) = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM) {
        eprintln!("erhu-farside: cannot stop: {error}");
    }
}

/// Puts the core to sleep when none of its ports had packets for a while.
pub struct Idle {
    rest: Duration,
    empty: AtomicU32,
    /// Say so on stdout when the first port is polled.
    announce: AtomicBool,
}

/// Empty receives in a row before a rest, all ports together.
const EMPTY_BEFORE_REST: u32 = 16;

impl Idle {
    /// One for all ports of the core.
    pub fn new(settings: &Settings) -> Arc<Self> {
        Arc::new(Self {
            rest: Duration::from_micros(settings.idle_us),
            empty: AtomicU32::new(0),
            announce: AtomicBool::new(false),
        })
    }

    /// As [`new`](Self::new); the line `ready` on stdout tells that all ports are started. From then on
    /// the interface of a `net_tap` may be moved into a namespace.
    pub fn announced(settings: &Settings) -> Arc<Self> {
        let idle = Self::new(settings);
        idle.announce.store(true, Ordering::Relaxed);
        idle
    }

    /// `rx`, with a rest when there is nothing to do.
    pub fn patient<Rx: PacketRx>(self: &Arc<Self>, rx: Rx) -> Patient<Rx> {
        Patient { rx, idle: Arc::clone(self) }
    }
}

/// A receiver that lets its core rest.
pub struct Patient<Rx> {
    rx: Rx,
    idle: Arc<Idle>,
}

impl<Rx: PacketRx> PacketRx for Patient<Rx> {
    fn receive(&mut self) -> Vec<Mbuf> {
        if self.idle.announce.swap(false, Ordering::Relaxed) {
            println!("ready");
        }
        let packets = self.rx.receive();
        if !packets.is_empty() {
            self.idle.empty.store(0, Ordering::Relaxed);
        } else if self.idle.empty.fetch_add(1, Ordering::Relaxed) >= EMPTY_BEFORE_REST && !self.idle.rest.is_zero() {
            self.idle.empty.store(0, Ordering::Relaxed);
            thread::sleep(self.idle.rest);
        }
        packets
    }
}

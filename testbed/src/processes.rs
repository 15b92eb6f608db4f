//! The real processes of one instance, and the far side that gives them traffic over vhost-user sockets.
//!
//! Needs no root, no huge pages and no NIC; and the programs, built by `cargo build -p erhu-dataplane -p
//! erhu-controlplane -p erhu-farside` (or `ERHU_BIN_DIR`).
//!
//! ```text
//!  erhu-farside                                        erhu-dataplane
//!  inside:  tenants in VLAN 100 and 200 --- lan.sock --- port lan
//!  outside: servers that judge and echo --- wan.sock --- port wan
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use erhu_planes::instance::InstanceDir;
use serde_json::Value;

use crate::netns::{self, Fault, Finished, Running};

/// How long a program may take that has little to do. The machine may have more to do.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Why something with the processes went wrong.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A program could not be run or did not do as it has to.
    #[error(transparent)]
    Program(#[from] Fault),
    /// The folder.
    #[error(transparent)]
    System(#[from] std::io::Error),
    /// What a program printed or left.
    #[error("{what}: {why}")]
    Wrong {
        /// Of what.
        what: String,
        /// With what it printed.
        why: String,
    },
}

/// Whether somebody listens at a socket: its file is there a moment before.
fn is_listening(socket: &Path) -> bool {
    let Some(name) = socket.to_str() else { return false };
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    // Flags 0x10000: it takes connections (unix(7), proc(5)).
    sockets.lines().any(|line| line.ends_with(name) && line.split_whitespace().nth(3) == Some("00010000"))
}

/// Which end of the sockets listens, and so must be there first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// The dataplane has `net_virtio_user` ports, the far side is the vhost server: one far side for each dataplane.
    FarSide,
    /// The dataplane is the vhost server: far sides come and go.
    Dataplane,
}

/// A folder with a configuration, the sockets of two ports and everything that the processes write.
#[derive(Debug)]
pub struct Instance {
    folder: tempfile::TempDir,
    listener: Listener,
}

impl Instance {
    /// Makes the folder, with `router.toml` for the ports `lan` and `wan` and that many workers; `rules` becomes its
    /// `rules.rhai`.
    ///
    /// # Errors
    /// The system's.
    pub fn new(listener: Listener, workers: u32, rules: &str) -> Result<Self, ProcessError> {
        let folder = tempfile::Builder::new().prefix("erhu-").tempdir()?;
        let this = Self { folder, listener };
        // The main thread's CPU last; one that is not there is no error.
        let cpus: Vec<String> = (1..=workers).map(|k| (k % workers.max(2)).to_string()).collect();
        let mut toml = format!(
            "instance = \"{}\"\nworkers = [{}]\nmain_core = 0\nconnections = 65536\nhugepages = false\n\
             memory_mb = 128\nrules = \"rules.rhai\"\n",
            this.name(),
            cpus.join(", ")
        );
        for (number, port) in ["lan", "wan"].into_iter().enumerate() {
            let device = this.device(number, port, listener == Listener::Dataplane, "");
            toml += &format!("[[port]]\nname = \"{port}\"\ndevice = \"{device}\"\n");
        }
        std::fs::write(this.path().join("router.toml"), toml)?;
        std::fs::write(this.path().join("rules.rhai"), rules)?;
        Ok(this)
    }

    fn device(&self, number: usize, port: &str, listens: bool, options: &str) -> String {
        let socket = self.socket(port);
        let socket = socket.display();
        if listens {
            format!("net_vhost{number},iface={socket},queues=1")
        } else {
            // Rings that hold all packets that the far side has under way.
            format!("net_virtio_user{number},path={socket},queues=1,queue_size=1024{options}")
        }
    }

    /// Its folder, in which all programs run.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The files of the running dataplane.
    pub fn files(&self) -> InstanceDir {
        InstanceDir::at(self.path().join("run").join(self.name()))
    }

    /// The vhost-user socket of a port.
    pub fn socket(&self, port: &str) -> PathBuf {
        self.path().join(format!("{port}.sock"))
    }

    /// A program with its arguments, to run in the folder.
    ///
    /// # Errors
    /// If it was not built.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Result<Command, Fault> {
        let mut command = Command::new(netns::binary(program)?);
        command
            .args(arguments)
            .current_dir(self.path())
            .env("ERHU_RUNTIME_DIR", self.path().join("run"))
            .env("ERHU_STATE_DIR", self.path().join("state"))
            // DPDK's own files.
            .env("RUNTIME_DIRECTORY", self.path())
            .env("XDG_RUNTIME_DIR", self.path());
        Ok(command)
    }

    /// Starts a dataplane; it then waits for its first rule set.
    ///
    /// # Errors
    /// If it does not get there; with what it printed.
    pub fn dataplane(&self) -> Result<Running, Fault> {
        let mut running = netns::start(self.command("erhu-dataplane", &["--config", "router.toml"])?)?;
        running.wait_for("waits for its first rule set", PATIENCE)?;
        Ok(running)
    }

    /// Starts a daemon, and waits until it has said something.
    ///
    /// # Errors
    /// If it does not say it; with what it printed.
    pub fn daemon(&self, words: &str) -> Result<Running, Fault> {
        let mut running = netns::start(self.command("erhu", &["serve", "--config", "router.toml"])?)?;
        running.wait_for(words, PATIENCE)?;
        Ok(running)
    }

    /// Runs an `erhu` command to its end.
    ///
    /// # Errors
    /// If it cannot be started or takes too long. That it fails is no error here.
    pub fn erhu(&self, arguments: &[&str]) -> Result<Finished, Fault> {
        netns::run(self.command("erhu", arguments)?, PATIENCE)
    }

    /// The document that an `erhu` command prints with `--json`.
    ///
    /// # Errors
    /// If it fails or prints something else.
    pub fn document(&self, arguments: &[&str]) -> Result<Value, ProcessError> {
        let said = self.erhu(&[arguments, &["--json"]].concat())?.success(&arguments.join(" "))?;
        serde_json::from_str(&said)
            .map_err(|e| ProcessError::Wrong { what: arguments.join(" "), why: format!("{e}\n{said}") })
    }

    /// Starts a far side that sends the plan's packets through the router and judges what arrives on both sides. Where
    /// it listens, its sockets take connections when this returns.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn far_side(&self, plan: Plan) -> Result<FarSide, ProcessError> {
        let [inside, outside] = self.far_devices();
        let numbers = [plan.hosts, plan.flows, plan.packets, plan.timeout_s].map(|n| n.to_string());
        let mut arguments = vec!["nat-check", "--inside", &inside, "--outside", &outside];
        arguments.extend(addresses());
        for (option, number) in ["--hosts", "--flows", "--packets", "--timeout-s"].into_iter().zip(&numbers) {
            arguments.extend([option, number]);
        }
        arguments.push("--endpoint-independent");
        let listens = self.listener == Listener::FarSide;
        if listens {
            for port in ["lan", "wan"] {
                // DPDK's server does not take the place of one that was killed.
                let _ = std::fs::remove_file(self.socket(port));
            }
        }
        let mut running = self.start_far("far", &arguments)?;
        if listens {
            let until = Instant::now() + PATIENCE;
            while !["lan", "wan"].into_iter().all(|port| is_listening(&self.socket(port))) {
                if !running.is_running() || Instant::now() >= until {
                    return Err(far_side_is_wrong("makes no sockets", &running));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(FarSide { running, plan })
    }

    /// Starts hosts that send so many packets per second whatever becomes of them, and a server that answers; until
    /// they are dropped. For a dataplane that listens.
    ///
    /// # Errors
    /// If they cannot be started.
    pub fn careless_hosts(&self, rate: u64) -> Result<[Running; 2], ProcessError> {
        let [inside, outside] = self.far_devices();
        let mut server = vec!["respond", "--port", &outside];
        for target in TARGETS {
            server.extend(["--address", target.split_once(':').map_or(target, |(address, _)| address)]);
        }
        let mut server = self.start_far("server", &server)?;
        server.wait_for("ready", PATIENCE)?;
        let rate = rate.to_string();
        let mut hosts = vec!["generate", "--inside", &inside, "--rate", &rate];
        hosts.extend(addresses());
        hosts.extend(["--packets", "1000000", "--timeout-s", "3600"]);
        Ok([self.start_far("hosts", &hosts)?, server])
    }

    fn far_devices(&self) -> [String; 2] {
        let listens = self.listener == Listener::FarSide;
        let device = |number, port| {
            let mac = format!(",mac=02:66:61:72:00:0{number}");
            self.device(number, port, listens, &mac)
        };
        [device(0, "lan"), device(1, "wan")]
    }

    fn start_far(&self, role: &str, arguments: &[&str]) -> Result<Running, ProcessError> {
        let prefix = format!("{}-{role}", self.name());
        let arguments = [arguments, &["--file-prefix", &prefix]].concat();
        Ok(netns::start(self.command("erhu-farside", &arguments)?)?)
    }
}

/// Options of the far side: whom it plays.
fn addresses<'a>() -> impl Iterator<Item = &'a str> {
    let tenants = TENANTS.into_iter().flat_map(|tenant| ["--tenant", tenant]);
    tenants.chain(TARGETS.into_iter().flat_map(|target| ["--target", target]))
}

/// The tenants of `configs/two-tenants.rhai`: equal addresses in two VLANs, and the pool of each.
const TENANTS: [&str; 2] =
    ["100,10.0.0.1,10.0.0.10,198.51.100.10-198.51.100.11", "200,10.0.0.1,10.0.0.10,198.51.100.20"];
/// One server is the next hop itself.
const TARGETS: [&str; 2] = ["198.51.100.1:9000", "192.0.2.1:9000"];

/// How much the far side sends.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Hosts of each tenant.
    pub hosts: u64,
    /// Flows of each host, to each of two servers.
    pub flows: u64,
    /// Packets of each flow.
    pub packets: u64,
    /// Seconds after which it gives up.
    pub timeout_s: u64,
}

impl Plan {
    /// Inside addresses and ports, which are as many mappings.
    pub fn endpoints(&self) -> u64 {
        TENANTS.len() as u64 * self.hosts * self.flows
    }

    /// Flows: each is a connection.
    pub fn connections(&self) -> u64 {
        self.endpoints() * TARGETS.len() as u64
    }

    /// All packets, one way.
    pub fn total(&self) -> u64 {
        self.connections() * self.packets
    }
}

fn far_side_is_wrong(why: &str, process: &Running) -> ProcessError {
    ProcessError::Wrong { what: "the far side".into(), why: format!("{why}\n{}", process.output()) }
}

/// A far side at work. Killed when dropped.
#[derive(Debug)]
pub struct FarSide {
    running: Running,
    plan: Plan,
}

impl FarSide {
    /// The process.
    pub fn process(&mut self) -> &mut Running {
        &mut self.running
    }

    /// Waits for its end and returns its report, in which every packet arrived, came back, and was right.
    ///
    /// # Errors
    /// If it takes too long, or anything was wrong; with its report and what the router counted.
    pub fn judgement(mut self, router: &Instance) -> Result<Value, ProcessError> {
        let status = self.running.wait(PATIENCE + Duration::from_secs(self.plan.timeout_s))?;
        let output = self.running.output();
        let wrong = |why: &str| {
            let stats = router.erhu(&["show", "stats"]).map(|said| said.stdout).unwrap_or_default();
            far_side_is_wrong(&format!("{why}, {status}\n{stats}"), &self.running)
        };
        let begin = output.find("{\n").ok_or_else(|| wrong("no report"))?;
        let mut documents = serde_json::Deserializer::from_str(&output[begin..]).into_iter::<Value>();
        let report = documents.next().and_then(Result::ok).ok_or_else(|| wrong("no report"))?;
        let total = Value::from(self.plan.total());
        let is_whole = ["planned", "sent", "arrived", "returned"].iter().all(|count| report[*count] == total);
        if !status.success() || !is_whole {
            return Err(wrong("not all as it has to be"));
        }
        Ok(report)
    }
}

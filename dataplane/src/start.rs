//! The main thread: start, control, shutdown.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use erhu_config::{Config, ConfigError};
use erhu_dpdk::{Eal, EalArgs, Mempool, PoolConfig};
use erhu_nat::Nat;
use erhu_pipeline::{Control, Pending, Shared, Worker};
use erhu_planes::connections::Class;
use erhu_planes::protocol::{Response, Status};
use erhu_planes::region::RegionError;
use erhu_table::{HugePages, Table, TableError};
use tracing::{info, warn};

use crate::buffer::{Packet, Pool};
use crate::instance::{Instance, InstanceError};
use crate::ports::{Ports, Queues, is_pci};
use crate::server::{self, Asked};
use crate::{clock, machine, poll, ports};

/// How often the main thread looks after what nobody asks for.
const HOUSEKEEPING: Duration = Duration::from_millis(100);
/// How often pages for connections are taken and given back.
const PROVISION: Duration = Duration::from_millis(5);
/// How often it looks whether the workers have done what it asked.
const CHECK: Duration = Duration::from_micros(200);
/// Packets below which no port can be served.
const FEWEST_PACKETS: u32 = 512;

/// Why the dataplane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The instance's folder.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// DPDK.
    #[error(transparent)]
    Dpdk(#[from] erhu_dpdk::Error),
    /// Huge pages are wanted and the machine has none.
    #[error(
        "hugepages = true, but no huge page is reserved; `echo 1024 > /proc/sys/vm/nr_hugepages` reserves 2 GiB, \
         `hugepages = false` does without"
    )]
    NoHugePages,
    /// Too little memory for packets.
    #[error("memory_mb = {memory_mb} holds {packets} packets, fewer than {FEWEST_PACKETS}")]
    TooFewPackets {
        /// As configured.
        memory_mb: u32,
        /// What it holds.
        packets: u32,
    },
    /// Shared memory.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The connection table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Signals, threads, the socket.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The answer.
        source: std::io::Error,
    },
}

struct Dataplane {
    eal: Eal,
    pool: Mempool,
    /// Shared with what steers them for the control side, on the same thread.
    ports: Arc<Mutex<Ports>>,
    queues: Vec<Queues>,
    shared: Arc<Shared<Packet>>,
    control: Control<Packet>,
    config: Config,
    seed: u64,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// Whether connections lie on huge pages was logged.
    said_huge: bool,
}

fn locked(ports: &Mutex<Ports>) -> MutexGuard<'_, Ports> {
    ports.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Segments of the slab that are kept ready: a sixteenth of the table, so that [`PROVISION`] suffices for several million
/// openings a second, and no more than 64 MiB.
fn spare_segments(connections: u32, workers: usize) -> usize {
    let sixteenth = connections / (16 * Class::Udp4.per_segment());
    (sixteenth as usize).max(2 * workers).min(32.max(workers))
}

/// Takes pages for connections ahead of need, and gives back those of which there is none any more, so that no worker
/// waits for the kernel.
fn look_after_pages(shared: &Shared<Packet>, spare: usize, stop: &AtomicBool) {
    let mut has_failed = false;
    while !stop.load(Ordering::Relaxed) {
        let outcome = shared.table.provision(spare);
        if let Err(error) = &outcome
            && !has_failed
        {
            warn!("no memory for connections beyond those leased: {error}");
        }
        has_failed = outcome.is_err();
        std::thread::sleep(PROVISION);
    }
}

/// Starts, serves, stops.
pub fn run(config: &Path) -> Result<(), StartError> {
    let config = Config::load(config)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, stop.clone())
            .map_err(|source| StartError::System { what: "handle signals", source })?;
    }
    let instance = Instance::take(&config.instance)?;
    let result = start_and_serve(config, &instance, stop);
    // DPDK is at rest: its handles went with the dataplane. What it leaves is of no use to a later process.
    if let Some(folder) = erhu_dpdk::runtime_dir() {
        let _ = std::fs::remove_dir_all(folder);
    }
    result
}

fn start_and_serve(config: Config, instance: &Instance, stop: Arc<AtomicBool>) -> Result<(), StartError> {
    let mut dataplane = Dataplane::start(config, instance, stop)?;
    let (sender, requests) = channel();
    server::listen(&instance.dir.socket(), sender)
        .map_err(|source| StartError::System { what: "open the control socket", source })?;
    info!("instance {} waits for its first rule set", instance.dir.name());
    dataplane.serve(&requests)?;
    dataplane.end();
    Ok(())
}

impl Dataplane {
    fn start(config: Config, instance: &Instance, stop: Arc<AtomicBool>) -> Result<Self, StartError> {
        if config.hugepages && !machine::has_huge_pages() {
            return Err(StartError::NoHugePages);
        }
        let eal = Eal::init(&EalArgs {
            no_huge: !config.hugepages,
            memory_mb: Some(config.memory_mb),
            main_core: machine::is_usable(config.main_core, "main_core").then_some(config.main_core),
            pci: config.ports.iter().filter(|p| is_pci(&p.device)).map(|p| p.device.clone()).collect(),
            extra: config.eal_args.clone(),
            ..EalArgs::new(format!("erhu-{}", config.instance))
        })?;
        let workers = config.workers.len();
        // Rings and queues of the ports take their part of the memory too.
        let packets = PoolConfig::from_memory(&eal, "packets", (u64::from(config.memory_mb) * 3 / 4) << 20);
        if packets.packets < FEWEST_PACKETS {
            return Err(StartError::TooFewPackets { memory_mb: config.memory_mb, packets: packets.packets });
        }
        let pool = eal.pool(&packets)?;
        let (ports, queues) = ports::Ports::start(&eal, &pool, &config.ports, workers)?;
        let names: Vec<String> = config.ports.iter().map(|p| p.name.clone()).collect();
        let (slab, stats, events) = instance.regions(config.connections, workers, &names, config.hugepages)?;
        let seed = instance.id;
        let table = Table::new(slab, config.connections, workers, seed, config.hugepages)?;
        for (index, cpu) in config.workers.iter().enumerate() {
            if let Some(block) = stats.worker(index) {
                block.cpu.store(*cpu, Ordering::Relaxed);
            }
        }
        let nat = Nat::for_connections(config.connections, seed.rotate_left(17), config.hugepages)
            .map_err(|source| StartError::System { what: "map memory for mappings", source })?;
        let shared = Arc::new(Shared::new(table, nat, stats, events, workers, config.ports.len()));
        let status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            instance: config.instance.clone(),
            instance_id: instance.id,
            pid: std::process::id(),
            generation: 0,
            ports: ports.status.clone(),
            workers: config.workers.clone(),
            capacity: config.connections,
        };
        let control = Control::new(shared.clone(), ports.facts.clone(), status);
        let ports = Arc::new(Mutex::new(ports));
        let steered = ports.clone();
        let control = control.steering(Box::new(move |roles| locked(&steered).steer(roles)));
        Ok(Self {
            eal,
            pool,
            ports,
            queues,
            shared,
            control,
            config,
            seed,
            stop,
            threads: Vec::new(),
            said_huge: false,
        })
    }

    /// Answers requests until a signal or a request says to stop.
    fn serve(&mut self, requests: &Receiver<Asked>) -> Result<(), StartError> {
        let mut looked = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            match requests.recv_timeout(HOUSEKEEPING) {
                Ok(asked) => self.answer(asked)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            if looked.elapsed() >= HOUSEKEEPING {
                looked = Instant::now();
                self.look_after();
            }
        }
        Ok(())
    }

    fn look_after(&mut self) {
        locked(&self.ports).refresh(&mut self.control.status_mut().ports);
        self.shared.nat.tidy(clock::now().tick);
        self.shared.tidy();
        let huge = self.shared.table.huge_pages();
        if !self.said_huge && huge != HugePages::default() {
            self.said_huge = true;
            if huge.refused == 0 {
                info!("connections lie on 2 MiB pages");
            } else {
                warn!("the kernel gave no 2 MiB pages for connections: a million of them will cost more time");
            }
        }
    }

    fn answer(&mut self, asked: Asked) -> Result<(), StartError> {
        let pending = self.control.request(&asked.request, asked.bytes, clock::now().tick);
        if let Pending::Adoption(generation) = pending {
            if self.threads.is_empty() {
                self.start_workers()?;
            }
            locked(&self.ports).refresh(&mut self.control.status_mut().ports);
            info!("rule set generation {generation} published");
        }
        let response = loop {
            match self.control.poll(&pending) {
                Some(response) => break response,
                None if self.stop.load(Ordering::Relaxed) => {
                    break Response::Refused { reason: "the dataplane is stopping".into() };
                }
                None => std::thread::sleep(CHECK),
            }
        };
        let bytes = match pending {
            Pending::Ready(_, bytes) => bytes,
            Pending::Shutdown => {
                self.stop.store(true, Ordering::Relaxed);
                None
            }
            _ => None,
        };
        // A client that went away does not want its answer any more.
        let _ = asked.answer.send((response, bytes));
        Ok(())
    }

    fn start_workers(&mut self) -> Result<(), StartError> {
        let Some(policy) = self.shared.policy() else { return Ok(()) };
        let polling = poll::Polling {
            may_nap: !self.config.ports.iter().any(|p| is_pci(&p.device)),
            hz: erhu_dpdk::ticks_per_second(&self.eal),
        };
        let spare = spare_segments(self.config.connections, self.config.workers.len());
        // Those of the first rush, before it comes.
        self.shared.table.provision(spare)?;
        let (shared, stop) = (self.shared.clone(), self.stop.clone());
        let thread = std::thread::Builder::new()
            .name("pages".into())
            .spawn(move || look_after_pages(&shared, spare, &stop))
            .map_err(|source| StartError::System { what: "start a thread", source })?;
        self.threads.push(thread);
        for (index, queues) in std::mem::take(&mut self.queues).into_iter().enumerate() {
            let cpu = self.config.workers.get(index).copied().unwrap_or(0);
            let pool = Pool(self.pool.clone());
            let (shared, policy, seed) = (self.shared.clone(), policy.clone(), self.seed);
            let (eal, stop) = (self.eal.handle(), self.stop.clone());
            let body = move || {
                let core = core_affinity::CoreId { id: cpu as usize };
                if !core_affinity::set_for_current(core) {
                    warn!("worker {index} cannot be pinned to CPU {cpu}: it runs where the system puts it");
                }
                let _guard = match eal.register_thread() {
                    Ok(guard) => Some(guard),
                    Err(e) => {
                        warn!("worker {index} runs without packet caches: {e}");
                        None
                    }
                };
                let worker = Worker::new(shared, index, policy, pool, seed);
                poll::run(worker, queues, &stop, polling);
            };
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(body)
                .map_err(|source| StartError::System { what: "start a worker", source })?;
            self.threads.push(thread);
        }
        info!(workers = self.config.workers.len(), "polling");
        Ok(())
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                warn!("a thread had died");
            }
        }
        self.queues.clear();
        for port in &mut locked(&self.ports).ports {
            if let Err(e) = port.stop() {
                warn!("{e}");
            }
        }
    }
}

//! A dataplane in this process: the same parts as in the real one, but for ports and threads.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use erhu_controlplane::client::{AskError, Dataplane};
use erhu_controlplane::conntrack::format::{LineOptions, event_line};
use erhu_nat::Nat;
use erhu_pipeline::policy::PortFacts;
use erhu_pipeline::rss::Hashed;
use erhu_pipeline::{Buffer, Control, Heap, HeapBuffer, Now, Pending, Shared, Worker};
use erhu_planes::connections::{self, ConnectionsRegion, SlabLayout};
use erhu_planes::events::{self, EventsRegion, Read};
use erhu_planes::protocol::{PortStatus, Request, Response, Status};
use erhu_planes::region::{Region, RegionError};
use erhu_planes::stats::{self, StatsRegion};
use erhu_table::Table;

use super::ReplayError;
use super::clock::Clock;
use crate::nic;

/// Events that a worker's ring holds; drained after every instant.
const EVENTS: usize = 1 << 16;
/// Loops after which something that should settle never will.
const PATIENCE: usize = 10_000_000;
/// The instance id of every replay: output must not vary.
const INSTANCE: u64 = 1;

/// See the module's text.
pub struct Plane {
    shared: Arc<Shared<HeapBuffer>>,
    control: Control<HeapBuffer>,
    workers: Vec<Worker<Heap>>,
    seed: u64,
    now: Now,
    ports: Vec<PortFacts>,
    next_event: Vec<u64>,
    /// Lines of events that were taken out of the rings already.
    told: Vec<String>,
    history: tempfile::TempDir,
}

fn memory(error: impl ToString) -> ReplayError {
    ReplayError::Dataplane(error.to_string())
}

impl Plane {
    /// Makes the shared parts; workers come with the first program.
    pub fn new(ports: &[PortFacts], capacity: u32, workers: usize, seed: u64) -> Result<Self, ReplayError> {
        if workers == 0 || workers > erhu_planes::MAX_WORKERS {
            return Err(ReplayError::Option(format!("--workers {workers}: 1 to {}", erhu_planes::MAX_WORKERS)));
        }
        let layout = SlabLayout::for_capacity(capacity, workers);
        let slab = Region::anonymous("connections", layout.size()).map_err(memory)?;
        let slab = ConnectionsRegion::create(slab, layout, capacity, INSTANCE).map_err(memory)?;
        let table = Table::new(slab, capacity, workers, seed, false).map_err(memory)?;
        let names: Vec<String> = ports.iter().map(|p| p.name.clone()).collect();
        let stats = Region::anonymous("stats", StatsRegion::size(workers)).map_err(memory)?;
        let stats = StatsRegion::create(stats, workers, &names, INSTANCE).map_err(memory)?;
        let events = Region::anonymous("events", EventsRegion::size(workers, EVENTS)).map_err(memory)?;
        let events = EventsRegion::create(events, workers, EVENTS, INSTANCE).map_err(memory)?;
        let nat = Nat::for_connections(capacity, seed, false).map_err(memory)?;
        let mut shared = Shared::new(table, nat, stats, events, workers, ports.len());
        shared.ids_in_order = true;
        let shared = Arc::new(shared);
        let status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            instance: "replay".into(),
            instance_id: INSTANCE,
            pid: 0,
            generation: 0,
            ports: ports
                .iter()
                .map(|p| PortStatus {
                    name: p.name.clone(),
                    device: "replay".into(),
                    mac: p.mac,
                    link: true,
                    speed: 0,
                    queues: u16::try_from(workers).unwrap_or(u16::MAX),
                    rss: if workers > 1 { "modelled" } else { "none" }.into(),
                })
                .collect(),
            workers: (0..u32::try_from(workers).unwrap_or(0)).collect(),
            capacity,
        };
        let control = Control::new(shared.clone(), ports.to_vec(), status);
        Ok(Self {
            control: control.steering(Box::new(move |roles| nic::spreads(roles, workers))),
            workers: Vec::with_capacity(workers),
            seed,
            now: Now::new(Clock::boot_ns(), 0),
            ports: ports.to_vec(),
            next_event: vec![1; workers],
            told: Vec::new(),
            history: tempfile::tempdir().map_err(memory)?,
            shared,
        })
    }

    /// The worker whose queue a port would put a frame into.
    pub fn worker_of(&self, port: u16, frame: &[u8]) -> usize {
        let hashed = Hashed::of(frame);
        let policy = self.shared.policy();
        let affinity = policy.as_ref().and_then(|policy| policy.affinity.as_ref());
        affinity.zip(hashed).and_then(|(affinity, hashed)| affinity.worker_of(port, &hashed)).unwrap_or(0)
    }

    /// Makes the workers, once there is a policy for them.
    fn start_workers(&mut self) {
        let Some(policy) = self.shared.policy().filter(|_| self.workers.is_empty()) else { return };
        for index in 0..self.shared.workers() {
            self.workers.push(Worker::new(self.shared.clone(), index, policy.clone(), Heap, self.seed));
        }
    }

    /// Events of all kinds from now on.
    pub fn want_events(&self) -> Result<(), ReplayError> {
        let kinds = events::mask::NEW | events::mask::UPDATE | events::mask::DESTROY;
        self.shared.events.want(kinds).map_err(memory)
    }

    /// Sets the clock: real time and boot time. A boot time of 0 stands for the start.
    pub fn set_time(&mut self, wall_ns: u64, mono_ns: u64) {
        self.now = Now::new(mono_ns.max(Clock::boot_ns()), wall_ns);
    }

    /// Whether nothing waits for time to pass.
    pub fn is_idle(&self) -> bool {
        self.workers.iter().all(Worker::is_idle)
    }

    /// Runs timers, jobs and hand-overs until nothing that is due is left.
    pub fn settle(&mut self) {
        for _ in 0..PATIENCE {
            let mut quiet = true;
            for worker in &mut self.workers {
                quiet &= worker.between_bursts(self.now);
                quiet &= worker.take_handed(self.now) == 0;
                quiet &= !worker.flush_handovers();
            }
            // Much can end at one instant; the rings hold only so much.
            if self.shared.events.wanted() != 0 {
                self.hear();
            }
            if quiet {
                return;
            }
        }
    }

    /// Gives a burst to a worker and carries it to its end.
    pub fn offer(&mut self, worker: usize, port: u16, burst: &mut Vec<HeapBuffer>) {
        let now = self.now;
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.receive(port, burst, now);
            worker.flush_handovers();
        }
        if self.workers.len() > 1 {
            self.settle();
        }
    }

    /// What a port sends, in order.
    pub fn take_sent(&mut self, port: usize) -> Vec<Vec<u8>> {
        let outboxes = self.workers.iter_mut().filter_map(|w| w.outbox(port));
        outboxes.flat_map(|outbox| outbox.drain(..).map(|b| b.frame().to_vec())).collect()
    }

    /// Appends events that were written since the last call.
    pub fn take_events(&mut self, lines: &mut Vec<String>) {
        self.hear();
        lines.append(&mut self.told);
    }

    fn hear(&mut self) {
        let options = LineOptions { timestamp: true, id: true, ..LineOptions::default() };
        for (worker, next) in self.next_event.iter_mut().enumerate() {
            loop {
                match self.shared.events.read(worker, *next) {
                    Read::Event(event) => {
                        self.told.push(event_line(&event, options));
                        *next += 1;
                    }
                    Read::NotYet => break,
                    Read::LostBefore(sequence) => *next = sequence,
                }
            }
        }
    }

    /// Whether an address is one of the router's own.
    pub fn owns(&self, address: IpAddr) -> bool {
        self.shared.policy().is_some_and(|p| p.interfaces().any(|i| i.owns(address)))
    }

    /// Publishes every worker's counters.
    pub fn publish(&self) {
        self.workers.iter().for_each(Worker::publish);
    }

    /// What all workers share.
    pub fn shared(&self) -> &Shared<HeapBuffer> {
        &self.shared
    }

    /// Ports in the configuration's order.
    pub fn ports(&self) -> &[PortFacts] {
        &self.ports
    }
}

impl Dataplane for Plane {
    fn ask(&mut self, request: &Request, file: Option<&[u8]>) -> Result<(Response, Option<Vec<u8>>), AskError> {
        let pending = self.control.request(request, file.map(<[u8]>::to_vec), self.now.tick);
        self.start_workers();
        self.settle();
        for _ in 0..PATIENCE {
            if let Some(response) = self.control.poll(&pending) {
                let bytes = if let Pending::Ready(_, bytes) = pending { bytes } else { None };
                self.publish();
                return Ok((response, bytes));
            }
            self.settle();
        }
        Err(AskError::Unexpected("the workers never finish".into()))
    }

    fn connections(&self) -> Result<ConnectionsRegion, RegionError> {
        ConnectionsRegion::attached(self.shared.table.region().region().reattach(&connections::EXPECT)?)
    }

    fn stats(&self) -> Result<StatsRegion, RegionError> {
        self.publish();
        StatsRegion::attached(self.shared.stats.region().reattach(&stats::EXPECT)?)
    }

    fn events(&self) -> Result<EventsRegion, RegionError> {
        EventsRegion::attached(self.shared.events.region().reattach(&events::EXPECT)?)
    }

    fn history(&self) -> Option<&Path> {
        Some(self.history.path())
    }
}

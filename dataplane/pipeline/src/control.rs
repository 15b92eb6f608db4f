//! The main thread's side: adopts rule programs and answers requests.

use std::sync::Arc;

use erhu_planes::TICKS_PER_SECOND;
use erhu_planes::program::Program;
use erhu_planes::protocol::{NeighbourStatus, PoolStatus, Request, Response, Status};
use erhu_planes::stats::Directory;

use crate::policy::{Policy, PortFacts, Registries, Registry};
use crate::shared::{Job, JobKind, Shared};
use crate::steering::{Affinity, Role, Spread, roles};

/// An answer, or what it waits for.
#[derive(Debug)]
pub enum Pending {
    /// The answer, with bytes to send along.
    Ready(Response, Option<Vec<u8>>),
    /// Every worker running this generation.
    Adoption(u32),
    /// A job of the workers.
    Job(Arc<Job>),
    /// Stop the dataplane.
    Shutdown,
}

/// Makes ports spread packets as suits what they lead to, and says how each does; one per port.
pub type Steering = Box<dyn FnMut(&[Role]) -> Vec<Option<Spread>> + Send>;

/// The control side of a dataplane.
pub struct Control<B> {
    shared: Arc<Shared<B>>,
    ports: Vec<PortFacts>,
    registries: Registries,
    registered: [Vec<String>; 3],
    status: Status,
    generation: u32,
    encoded: Option<Vec<u8>>,
    steering: Option<Steering>,
}

impl<B> Control<B> {
    /// For these ports; `status` is what does not change while the dataplane runs.
    pub fn new(shared: Arc<Shared<B>>, ports: Vec<PortFacts>, status: Status) -> Self {
        Self {
            shared,
            ports,
            registries: Registries::default(),
            registered: Default::default(),
            status,
            generation: 0,
            encoded: None,
            steering: None,
        }
    }

    /// The same, which has ports spread packets over several workers as each policy needs it.
    #[must_use]
    pub fn steering(self, steering: Steering) -> Self {
        Self { steering: Some(steering), ..self }
    }

    /// Port facts of the status, to update what can change (links).
    pub fn status_mut(&mut self) -> &mut Status {
        &mut self.status
    }

    /// Takes a program over: decodes, validates, compiles, publishes. Workers adopt it between bursts.
    ///
    /// # Errors
    /// Why not; the running policy stays.
    pub fn adopt(&mut self, bytes: Vec<u8>, now_tick: u32) -> Result<u32, String> {
        let program = Program::decode(&bytes).map_err(|e| e.to_string())?;
        let generation = self.generation + 1;
        let mut policy = Policy::build(program, generation, &self.ports, &mut self.registries, &self.shared.nat)
            .map_err(|e| e.to_string())?;
        let kinds = [
            (Directory::Zones, &self.registries.zones),
            (Directory::Interfaces, &self.registries.interfaces),
            (Directory::Named, &self.registries.counters),
        ];
        for ((kind, registry), done) in kinds.into_iter().zip(&mut self.registered) {
            register(&self.shared, kind, registry, done)?;
        }
        self.shared.table.provision(self.shared.workers()).map_err(|e| e.to_string())?;
        if let Some(steer) = self.steering.as_mut().filter(|_| self.shared.workers() > 1) {
            policy.affinity = Affinity::new(steer(&roles(&policy.program, &self.ports)));
        }
        self.shared.adjacencies.adopt(&policy, now_tick);
        self.shared.publish(Arc::new(policy));
        (self.generation, self.encoded) = (generation, Some(bytes));
        Ok(generation)
    }

    /// Does what a request asks, as far as it can be done at once. `bytes` are those of the memfd that came along.
    pub fn request(&mut self, request: &Request, bytes: Option<Vec<u8>>, now_tick: u32) -> Pending {
        let refused = |reason: String| Pending::Ready(Response::Refused { reason }, None);
        match request {
            Request::Status => {
                let status = Status { generation: self.generation, ..self.status.clone() };
                Pending::Ready(Response::Status(status), None)
            }
            Request::Adopt => match bytes.ok_or_else(|| "no program came along".to_owned()) {
                Ok(bytes) => match self.adopt(bytes, now_tick) {
                    Ok(generation) => Pending::Adoption(generation),
                    Err(reason) => refused(reason),
                },
                Err(reason) => refused(reason),
            },
            Request::Program => {
                Pending::Ready(Response::Program { generation: self.generation }, self.encoded.clone())
            }
            Request::Delete { connections } => self.start(JobKind::Delete(connections.clone())),
            Request::Discount { connections } => self.start(JobKind::Discount(connections.clone())),
            Request::Flush { zone } => self.start(JobKind::Flush(*zone)),
            Request::Neighbours => {
                Pending::Ready(Response::Neighbours { neighbours: self.neighbours(now_tick) }, None)
            }
            Request::Pools => Pending::Ready(Response::Pools { pools: self.pools() }, None),
            Request::WantEvents { kinds } => match self.shared.events.want(*kinds) {
                Ok(()) => Pending::Ready(Response::Done, None),
                Err(e) => refused(e.to_string()),
            },
            Request::Shutdown => Pending::Shutdown,
        }
    }

    fn start(&self, kind: JobKind) -> Pending {
        if self.shared.policy().is_none() {
            return Pending::Ready(Response::Ended { connections: 0 }, None);
        }
        let job = Job::new(kind, self.shared.workers());
        if self.shared.start(&job) {
            Pending::Job(job)
        } else {
            Pending::Ready(Response::Refused { reason: "too many jobs are under way".into() }, None)
        }
    }

    /// The answer to what was pending, once there is one.
    pub fn poll(&self, pending: &Pending) -> Option<Response> {
        match pending {
            Pending::Ready(response, _) => Some(response.clone()),
            Pending::Adoption(generation) => {
                let done = self.shared.all_adopted(*generation);
                done.then_some(Response::Adopted { generation: *generation })
            }
            Pending::Job(job) => job.result().map(|connections| Response::Ended { connections }),
            Pending::Shutdown => Some(Response::Done),
        }
    }

    fn neighbours(&self, now_tick: u32) -> Vec<NeighbourStatus> {
        let names = self.registries.interfaces.names();
        let list = self.shared.adjacencies.list().into_iter();
        list.map(|n| NeighbourStatus {
            interface: names.get(usize::from(n.slot)).map(|(name, _)| name.clone()).unwrap_or_default(),
            address: n.address,
            mac: n.mac,
            is_static: n.is_static,
            waiting: n.waiting,
            age: u64::from(now_tick.saturating_sub(n.since) / TICKS_PER_SECOND),
        })
        .collect()
    }

    fn pools(&self) -> Vec<PoolStatus> {
        self.shared.policy().map_or_else(Vec::new, |policy| self.shared.nat.status(&policy.pools))
    }
}

/// Names that have come up since the last time get their counters.
fn register<B>(
    shared: &Shared<B>,
    kind: Directory,
    registry: &Registry,
    done: &mut Vec<String>,
) -> Result<(), String> {
    for (slot, (name, number)) in registry.names().iter().enumerate() {
        if done.get(slot) != Some(name) {
            shared.stats.register(kind, slot, *number, name).map_err(|e| e.to_string())?;
            done.truncate(slot);
            done.push(name.clone());
        }
    }
    Ok(())
}

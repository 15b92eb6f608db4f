//! Both sides of a translating router, or one of them.
//!
//! # Overview
//!
//! Inside, hosts of several tenants, with equal addresses, send marked UDP packets; outside, servers
//! judge what arrives and echo it; inside again, what returns is judged. capsule's parser and
//! checksums do the judging.
//!
//! # Life-cycle
//!
//! Per tenant: ask for the gateway's link address, then send warm-up packets until one has come back
//! (the router may drop packets while it looks for neighbours), then the plan. At most [`WINDOW`]
//! packets are under way; those that stay out for [`PATIENCE`] are given up. A watching thread ends
//! the run when all is done, nothing happens any more, or time is up.
//!
//! # Synchronisation
//!
//! All pipelines run on one core; the lock is for the watching thread.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use capsule::batch::{Batch, Either, Poll, poll_fn};
use capsule::net::MacAddr;
use capsule::packets::{Packet, Udp4};
use capsule::{Mbuf, PortQueue};

use crate::bytes;
use crate::frame::{self, Asked, Station};
use crate::plan::{Endpoint, Mark, Plan};
use crate::report::Report;
use crate::runtime::{self, Idle, Settings};

/// Packets under way at most.
const WINDOW: u64 = 256;
/// Packets made at once.
const BURST: u64 = 32;
/// After so long without progress, what is under way is lost.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two requests for a neighbour, or two warm-up packets.
const RETRY: Duration = Duration::from_millis(200);
/// How often the watching thread looks.
const WATCH: Duration = Duration::from_millis(20);

/// What has to be reached.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// All is sent at a rate (packets per second), and `expect` packets come back.
    Returned { rate: u64, expect: u64 },
    /// All packets of the plan arrive outside.
    Arrived,
    /// All packets of the plan come back, but for `allow_loss`.
    RoundTrip { allow_loss: u64 },
}

/// Runs the plan on the sides there are, prints the report, returns whether all was right.
pub fn run(
    settings: &Settings,
    plan: Plan,
    inside: Option<String>,
    outside: Option<String>,
    goal: Goal,
    timeout_s: u64,
) -> Result<bool> {
    let ports: Vec<_> = [("inside", inside), ("outside", outside)]
        .into_iter()
        .filter_map(|(name, device)| Some((name.to_owned(), device?)))
        .collect();
    let mut runtime = runtime::build(settings, &ports)?;
    let idle = Idle::new(settings);
    let shared = Shared(Arc::new(Mutex::new(State::new(plan, goal))));

    for (name, _) in &ports {
        let (idle, state) = (idle.clone(), shared.clone());
        if name == "inside" {
            runtime.add_pipeline_to_port(name, move |queue: PortQueue| {
                let (state, output) = (state.clone(), queue.clone());
                Poll::new(idle.patient(queue)).filter_map(move |mbuf| state.lock().inside(mbuf)).send(output)
            })?;
            let state = shared.clone();
            runtime.add_pipeline_to_port(name, move |queue: PortQueue| {
                let state = state.clone();
                poll_fn(move || state.lock().generate()).map(Ok).send(queue)
            })?;
        } else {
            runtime.add_pipeline_to_port(name, move |queue: PortQueue| {
                let (state, mac, output) = (state.clone(), queue.mac_addr(), queue.clone());
                Poll::new(idle.patient(queue)).filter_map(move |mbuf| state.lock().outside(mbuf, mac)).send(output)
            })?;
        }
    }

    let watched = shared.clone();
    let deadline = Duration::from_secs(timeout_s);
    let watch = thread::spawn(move || {
        // The clock starts with the first poll: capsule listens for the signal from then on.
        while !watched.lock().is_over(deadline) {
            thread::sleep(WATCH);
        }
        runtime::stop();
    });
    shared.lock().begin();
    runtime::execute(runtime)?;
    shared.lock().interrupt();
    let _ = watch.join();

    let mut state = shared.lock();
    let report = state.conclude();
    println!("{}", serde_json::to_string_pretty(report)?);
    Ok(report.ok)
}

#[derive(Clone)]
struct Shared(Arc<Mutex<State>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A side of a tenant, as the generator sees it.
#[derive(Debug, Clone, Copy, Default)]
struct Awake {
    gateway: Option<MacAddr>,
    warmed_up: bool,
    last_try: Option<Instant>,
}

struct State {
    plan: Plan,
    goal: Goal,
    report: Report,
    tenants: Vec<Awake>,
    started: Option<Instant>,
    last_progress: Instant,
    interrupted: bool,
    /// Packets given up.
    lost: u64,
    /// Outside endpoint by inside endpoint and target (0 for all, if it has to be the same).
    mappings: HashMap<(Endpoint, u16), (Ipv4Addr, u16)>,
    /// Inside endpoint by outside endpoint and target.
    owners: HashMap<(Ipv4Addr, u16, u16), Endpoint>,
    arrived: Seen,
    returned: Seen,
}

/// Packets seen at one place.
#[derive(Default)]
struct Seen {
    all: HashSet<Mark>,
    last: HashMap<(Endpoint, u16), u32>,
}

impl Seen {
    /// What is wrong with seeing a packet now.
    fn add(&mut self, mark: Mark) -> Option<&'static str> {
        if !self.all.insert(mark) {
            return Some("duplicate");
        }
        let last = self.last.insert((mark.from, mark.target), mark.sequence);
        last.is_some_and(|last| last > mark.sequence).then_some("out of order")
    }
}

impl State {
    fn new(plan: Plan, goal: Goal) -> Self {
        Self {
            report: Report { planned: plan.total(), ..Report::default() },
            tenants: vec![Awake::default(); plan.tenants.len()],
            plan,
            goal,
            started: None,
            last_progress: Instant::now(),
            interrupted: false,
            lost: 0,
            mappings: HashMap::new(),
            owners: HashMap::new(),
            arrived: Seen::default(),
            returned: Seen::default(),
        }
    }

    fn begin(&mut self) {
        self.started = Some(Instant::now());
        self.last_progress = Instant::now();
    }

    fn interrupt(&mut self) {
        self.interrupted = true;
    }

    fn progress(&mut self) {
        self.last_progress = Instant::now();
    }

    /// Whether the run has nothing left to do.
    fn is_over(&self, deadline: Duration) -> bool {
        let Some(started) = self.started else {
            return false;
        };
        if self.interrupted || started.elapsed() > deadline {
            return true;
        }
        let all = self.report.planned;
        let quiet = self.last_progress.elapsed() > PATIENCE;
        match self.goal {
            Goal::Returned { .. } => self.report.sent == all && (self.report.returned == all || quiet),
            // A moment after the last packet, for duplicates and what is still echoed.
            Goal::Arrived => self.report.arrived >= all && quiet,
            Goal::RoundTrip { .. } => {
                self.report.sent == all && (self.report.returned + self.lost >= all || quiet) && self.report.sent > 0
            }
        }
    }

    fn conclude(&mut self) -> &Report {
        let report = &mut self.report;
        report.mappings = self.owners.len();
        let reached = match self.goal {
            Goal::Returned { expect, .. } => report.sent == report.planned && report.returned >= expect,
            Goal::Arrived => report.arrived == report.planned,
            Goal::RoundTrip { allow_loss } => {
                report.sent == report.planned && report.returned + allow_loss >= report.planned
            }
        };
        for (tenant, awake) in self.plan.tenants.iter().zip(&self.tenants) {
            if matches!(self.goal, Goal::Arrived) || awake.warmed_up {
                continue;
            }
            let what = if awake.gateway.is_none() { "does not answer ARP" } else { "returned no warm-up packet" };
            report.examples.push(format!("gateway {} in VLAN {:?} {what}", tenant.gateway, tenant.vlan));
        }
        report.ok = reached && report.faults.is_empty();
        report
    }

    /// The next packets from the inside.
    fn generate(&mut self) -> Vec<Mbuf> {
        let mut packets = Vec::new();
        if let Err(error) = self.add_packets(&mut packets) {
            self.report.fault("could not make a packet", || error.to_string());
        }
        packets
    }

    fn add_packets(&mut self, packets: &mut Vec<Mbuf>) -> Result<()> {
        let Some(started) = self.started else {
            return Ok(());
        };
        for index in 0..self.plan.tenants.len() {
            self.wake(index, packets)?;
        }
        if self.tenants.iter().any(|tenant| !tenant.warmed_up) {
            self.progress();
            return Ok(());
        }
        let under_way = self.report.sent - (self.report.returned + self.lost).min(self.report.sent);
        let room = match self.goal {
            Goal::Returned { rate, .. } => {
                let due = started.elapsed().as_micros() * u128::from(rate) / 1_000_000;
                u64::try_from(due).unwrap_or(u64::MAX).saturating_sub(self.report.sent)
            }
            Goal::Arrived | Goal::RoundTrip { .. } => {
                if under_way > 0 && self.last_progress.elapsed() > PATIENCE {
                    self.lost += under_way;
                    self.progress();
                }
                WINDOW.saturating_sub(under_way)
            }
        };
        let left = self.report.planned - self.report.sent;
        for _ in 0..room.min(BURST).min(left) {
            let mark = self.plan.mark(self.report.sent);
            packets.push(self.packet(mark)?);
            self.report.sent += 1;
            self.progress();
        }
        Ok(())
    }

    /// Looks for a tenant's gateway, then wakes the way through it.
    fn wake(&mut self, index: usize, packets: &mut Vec<Mbuf>) -> Result<()> {
        let tenant = &self.plan.tenants[index];
        let awake = &mut self.tenants[index];
        if awake.warmed_up || awake.last_try.is_some_and(|last| last.elapsed() < RETRY) {
            return Ok(());
        }
        awake.last_try = Some(Instant::now());
        if awake.gateway.is_none() {
            packets.push(frame::arp_request(self.plan.mac(0), tenant.host(0), tenant.gateway, tenant.vlan)?);
        } else if matches!(self.goal, Goal::Returned { expect: 0, .. }) {
            awake.warmed_up = true; // Nobody may be there to send anything back.
        } else {
            packets.push(self.packet(self.plan.warm_up(u16::try_from(index)?))?);
        }
        Ok(())
    }

    fn packet(&self, mark: Mark) -> Result<Mbuf> {
        let tenant = &self.plan.tenants[usize::from(mark.from.tenant)];
        let gateway = self.tenants[usize::from(mark.from.tenant)].gateway.unwrap_or(MacAddr::UNSPECIFIED);
        let target = self.plan.targets[usize::from(mark.target)];
        let from = Station {
            mac: self.plan.mac(mark.from.host),
            address: tenant.host(mark.from.host),
            port: self.plan.port(mark.from.flow),
        };
        let to = Station { mac: gateway, address: *target.ip(), port: target.port() };
        frame::udp(from, to, &mark.payload(self.plan.payload), tenant.vlan)
    }

    /// A frame that came in from the router's inside.
    fn inside(&mut self, mbuf: Mbuf) -> Result<Either<Mbuf>> {
        let vlan = frame::vlan(&mbuf);
        let Some(index) = self.plan.tenants.iter().position(|tenant| tenant.vlan == vlan) else {
            return Ok(Either::Drop(mbuf));
        };
        let (plan, tenant) = (&self.plan, &self.plan.tenants[index]);
        let mac_of = |address| tenant.host_of(address, plan.hosts).map(|host| plan.mac(host));
        match frame::serve(mbuf, mac_of)? {
            Asked::Answered(answer) => Ok(Either::Keep(answer)),
            Asked::Other(mbuf) => Ok(Either::Drop(mbuf)),
            Asked::Neighbour(address, mac) => {
                if address == tenant.gateway {
                    self.tenants[index].gateway = Some(mac);
                    self.tenants[index].last_try = None;
                }
                anyhow::bail!("an ARP reply, consumed")
            }
            Asked::Udp(udp) => {
                self.judge_inside(&udp, index);
                Ok(Either::Drop(udp.reset()))
            }
        }
    }

    fn judge_inside(&mut self, udp: &Udp4, tenant_index: usize) {
        let Some(mark) = self.read(udp, "inside") else {
            return;
        };
        let tenant = &self.plan.tenants[tenant_index];
        let target = self.plan.targets[usize::from(mark.target)];
        let ip = udp.envelope();
        let says = || describe(udp, mark);
        if usize::from(mark.from.tenant) != tenant_index {
            self.report.fault("returned to another tenant", says);
        } else if ip.dst() != tenant.host(mark.from.host) || udp.dst_port() != self.plan.port(mark.from.flow) {
            self.report.fault("returned to another endpoint", says);
        } else if ip.src() != *target.ip() || udp.src_port() != target.port() {
            self.report.fault("returned from another address", says);
        } else if ip.envelope().dst() != self.plan.mac(mark.from.host) {
            self.report.fault("returned to another link address", says);
        } else if mark.sequence == Mark::WARM_UP {
            self.tenants[tenant_index].warmed_up = true;
        } else {
            match self.returned.add(mark) {
                Some("duplicate") => self.report.fault("returned twice", says),
                Some(_) => {
                    self.report.returned += 1;
                    self.report.fault("returned out of order", says);
                }
                None => self.report.returned += 1,
            }
        }
        self.progress();
    }

    /// A frame that came in from the router's outside.
    fn outside(&mut self, mbuf: Mbuf, mac: MacAddr) -> Result<Either<Mbuf>> {
        let targets = &self.plan.targets;
        let mac_of = |address| targets.iter().any(|target| *target.ip() == address).then_some(mac);
        match frame::serve(mbuf, mac_of)? {
            Asked::Answered(answer) => Ok(Either::Keep(answer)),
            Asked::Other(mbuf) => Ok(Either::Drop(mbuf)),
            Asked::Neighbour(..) => anyhow::bail!("an ARP reply nobody asked for"),
            Asked::Udp(udp) => {
                self.judge_outside(&udp);
                Ok(Either::Keep(frame::echo(udp, mac)))
            }
        }
    }

    fn judge_outside(&mut self, udp: &Udp4) {
        let Some(mark) = self.read(udp, "outside") else {
            return;
        };
        let tenant = &self.plan.tenants[usize::from(mark.from.tenant)];
        let target = self.plan.targets[usize::from(mark.target)];
        let ip = udp.envelope();
        let (address, port) = (ip.src(), udp.src_port());
        let says = || describe(udp, mark);
        let in_pool = match tenant.pool {
            Some((first, last)) => (first..=last).contains(&address),
            None => tenant.host_of(address, self.plan.hosts).is_none(),
        };
        if !in_pool {
            self.report.fault("source outside of the tenant's pool", says);
        }
        if ip.dst() != *target.ip() || udp.dst_port() != target.port() {
            self.report.fault("arrived at another target", says);
        }
        let by_target = if self.plan.endpoint_independent { 0 } else { mark.target };
        if *self.mappings.entry((mark.from, by_target)).or_insert((address, port)) != (address, port) {
            self.report.fault("mapping changed", says);
        }
        if *self.owners.entry((address, port, mark.target)).or_insert(mark.from) != mark.from {
            self.report.fault("mapping shared by two endpoints", says);
        }
        if mark.sequence != Mark::WARM_UP {
            match self.arrived.add(mark) {
                Some("duplicate") => self.report.fault("arrived twice", says),
                Some(_) => {
                    self.report.arrived += 1;
                    self.report.fault("arrived out of order", says);
                }
                None => self.report.arrived += 1,
            }
        }
        self.progress();
    }

    /// Checks that hold on both sides; the packet's mark if it can be trusted.
    fn read(&mut self, udp: &Udp4, side: &'static str) -> Option<Mark> {
        let ip = udp.envelope();
        let payload = bytes::of(udp.mbuf()).get(udp.payload_offset()..).unwrap_or(&[]);
        let says = || format!("{side}, {ip:?} {udp:?}");
        if !frame::has_right_header_checksum(ip) {
            self.report.fault("wrong IPv4 checksum", says);
        }
        if !frame::has_right_udp_checksum(udp) {
            self.report.fault("wrong UDP checksum or length", says);
        }
        if ip.ttl() != frame::TTL - 1 {
            self.report.fault("TTL not one less", says);
        }
        let mark = Mark::read(payload, &self.plan);
        if mark.is_none() {
            self.report.fault("payload not as sent", says);
        }
        mark
    }
}

fn describe(udp: &Udp4, mark: Mark) -> String {
    let ip = udp.envelope();
    format!("{mark:?} as {}:{} -> {}:{}", ip.src(), udp.src_port(), ip.dst(), udp.dst_port())
}

//! Makes a rule program of a policy: resolves names and compares declarations with one another.
//!
//! Every error is found, not only the first, and blamed on the call that made the declaration. What the compiler
//! lets pass, [`Program::validate`] takes too; that it does is checked here as well.

mod names;
mod overlaps;
mod rules;

use erhu_planes::program::{
    Encapsulation, Hook, HookRules, Interface, Neighbour, Pool, Position, Program, Route, RouteTarget, TimeoutPolicy,
    Zone, limits,
};

use crate::policy::{self, DEFAULT, Kind, MAIN, Policy};
use crate::script::{Facts, Fault};
use names::Names;

/// Makes a program of everything a script declared. `sources` are the names of its files.
///
/// # Errors
/// Every fault found; none if all there is to tell has been told where the script ran.
pub(crate) fn compile(policy: &Policy, sources: Vec<String>, facts: &Facts) -> Result<Program, Vec<Fault>> {
    let mut compiler =
        Compiler { policy, names: Names::of(policy), faults: Vec::new(), is_whole: policy.broken.is_empty() };
    compiler.bounds();
    compiler.duplicates();
    overlaps::find(policy, &mut compiler.faults);
    compiler.facts(facts);
    let timeouts = compiler.timeouts();
    let mut program = Program {
        sources,
        zones: compiler.zones(),
        interfaces: compiler.interfaces(),
        routes: compiler.routes(),
        neighbours: compiler.neighbours(),
        pools: compiler.pools(),
        timeouts,
        chains: Vec::new(),
        hooks: vec![HookRules::default(); Hook::COUNT],
        counters: Vec::new(),
    };
    rules::compile(&mut compiler, &mut program);
    if compiler.faults.is_empty() && compiler.is_whole {
        // Nothing should be left for these to find; if something is, the operator learns it here and not from the
        // dataplane.
        let whole = program.validate().and_then(|()| program.encode().map(|_| ()));
        compiler.faults.extend(whole.err().map(|e| Fault::new(Position::default(), "", e.to_string())));
    }
    if compiler.faults.is_empty() && compiler.is_whole { Ok(program) } else { Err(compiler.faults) }
}

pub(crate) struct Compiler<'p> {
    policy: &'p Policy,
    names: Names<'p>,
    faults: Vec<Fault>,
    /// No declaration is missing for an error of its own.
    is_whole: bool,
}

impl Compiler<'_> {
    fn fault(&mut self, at: Position, function: &str, message: impl Into<String>) {
        self.faults.push(Fault::new(at, function, message));
    }

    /// The index of something named, or for zones the id. Unknown names are faults and give 0, which no program will
    /// show: there is none with a fault.
    fn resolve(&mut self, kind: Kind, name: &str, at: Position, function: &str, key: &str) -> u16 {
        match self.names.get(kind, name) {
            Ok(index) => index,
            Err(hint) => {
                let kind = kind.name();
                if !hint.is_silent {
                    self.fault(at, function, format!("{key}: there is no {kind} `{name}`{}", hint.text));
                }
                0
            }
        }
    }

    fn bounds(&mut self) {
        let policy = self.policy;
        let count = |kind: &str, found: usize, most: usize, last: Option<Position>| {
            let at = last.filter(|_| found > most)?;
            Some(Fault::new(at, kind, format!("{found} are declared, at most {most} are possible")))
        };
        let last_zone = policy.zones.last().map(|z| z.at);
        let last_rule = policy.rules.last().map(|r| r.at);
        self.faults.extend(
            [
                count("zone", policy.zones.len(), limits::ZONES - 1, last_zone),
                count(
                    "interface",
                    policy.interfaces.len(),
                    limits::INTERFACES,
                    policy.interfaces.last().map(|i| i.at),
                ),
                count("route", policy.routes.len(), limits::ROUTES, policy.routes.last().map(|r| r.at)),
                count(
                    "neighbour",
                    policy.neighbours.len(),
                    limits::NEIGHBOURS,
                    policy.neighbours.last().map(|n| n.at),
                ),
                count("pool", policy.pools.len(), limits::POOLS, policy.pools.last().map(|p| p.at)),
                count("timeout", policy.timeouts.len(), limits::TIMEOUTS - 1, policy.timeouts.last().map(|t| t.at)),
                count("chain", policy.chains.len(), limits::CHAINS, policy.chains.last().map(|c| c.at)),
                count("rule", policy.rules.len(), limits::RULES, last_rule),
            ]
            .into_iter()
            .flatten(),
        );
        for interface in &policy.interfaces {
            let found = interface.addresses.len();
            if found > limits::ADDRESSES {
                let message = format!("address: {found} are more than {}", limits::ADDRESSES);
                self.faults.push(Fault::new(interface.at, interface.function(), message));
            }
        }
    }

    fn duplicates(&mut self) {
        let policy = self.policy;
        fn named(kind: Kind, all: Vec<(&str, Position)>) -> impl Iterator<Item = Fault> {
            overlaps::repeated(all.into_iter()).map(move |(name, at, first)| {
                Fault::new(at, kind.name(), format!("`{name}` is declared already on line {}", first.line))
            })
        }
        let mut found: Vec<Fault> = Vec::new();
        found.extend(named(Kind::Zone, policy.zones.iter().map(|z| (z.name.as_str(), z.at)).collect()));
        found.extend(named(Kind::Interface, policy.interfaces.iter().map(|i| (i.name.as_str(), i.at)).collect()));
        found.extend(named(Kind::Pool, policy.pools.iter().map(|p| (p.name.as_str(), p.at)).collect()));
        found.extend(named(Kind::Timeout, policy.timeouts.iter().map(|t| (t.name.as_str(), t.at)).collect()));
        found.extend(named(Kind::Chain, policy.chains.iter().map(|c| (c.name.as_str(), c.at)).collect()));
        self.faults.extend(found);
    }

    fn facts(&mut self, facts: &Facts) {
        let policy = self.policy;
        if let Some(ports) = &facts.ports {
            for interface in policy.interfaces.iter().filter(|i| i.peer.is_none() && !ports.contains(&i.port)) {
                let near = crate::script::did_you_mean(&interface.port, ports.iter().map(String::as_str));
                let message = format!("port: the configuration has no port `{}`{near}", interface.port);
                self.fault(interface.at, "interface", message);
            }
        }
        let reserved: u64 = policy.zones.iter().map(|zone| u64::from(zone.reserve)).sum();
        if let (Some(capacity), Some(last)) = (facts.capacity, policy.zones.iter().rfind(|zone| zone.reserve > 0))
            && reserved > u64::from(capacity)
        {
            let message = format!("reserve: zones reserve {reserved} connections, the table holds {capacity}");
            self.fault(last.at, "zone", message);
        }
    }

    fn timeouts(&mut self) -> Vec<TimeoutPolicy> {
        let mut all = vec![TimeoutPolicy { name: DEFAULT.into(), values: Vec::new(), udp_refresh: None }];
        for policy in &self.policy.timeouts {
            let made = TimeoutPolicy {
                name: policy.name.clone(),
                values: policy.values.clone(),
                udp_refresh: policy.udp_refresh,
            };
            if policy.name == DEFAULT {
                all[0] = made;
            } else {
                all.push(made);
            }
        }
        all
    }

    fn zones(&mut self) -> Vec<Zone> {
        let mut all: Vec<Zone> = Program::empty().zones;
        for zone in &self.policy.zones {
            let timeout = zone
                .timeout
                .as_deref()
                .map_or(0, |name| self.resolve(Kind::Timeout, name, zone.at, "zone", "timeout"));
            let made = Zone {
                id: zone.id,
                name: zone.name.clone(),
                limit: zone.limit,
                reserve: zone.reserve,
                rate: zone.rate,
                tracking: zone.tracking,
                timeout,
            };
            if zone.name == MAIN {
                all[0] = made;
            } else {
                all.push(made);
            }
        }
        all
    }

    fn interfaces(&mut self) -> Vec<Interface> {
        let policy = self.policy;
        let make = |interface: &policy::Interface| Interface {
            name: interface.name.clone(),
            port: interface.port.clone(),
            encapsulation: match &interface.peer {
                Some(peer) => {
                    Encapsulation::Link(self.resolve(Kind::Interface, peer, interface.at, "link", "interface"))
                }
                None => interface.encapsulation,
            },
            zone: match &interface.peer {
                Some(_) => self.resolve(Kind::Zone, &interface.zone, interface.at, "link", "zones"),
                None => self.resolve(Kind::Zone, &interface.zone, interface.at, "interface", "zone"),
            },
            addresses: interface.addresses.clone(),
            mtu: interface.mtu,
            mac: interface.mac,
            proxy_arp: interface.proxy_arp,
        };
        policy.interfaces.iter().map(make).collect()
    }

    fn routes(&mut self) -> Vec<Route> {
        let mut all = Vec::with_capacity(self.policy.routes.len());
        for route in &self.policy.routes {
            let zone = self.resolve(Kind::Zone, &route.zone, route.at, "route", "zone");
            let target = match &route.target {
                policy::RouteTarget::Via(hop) => RouteTarget::Via(*hop),
                policy::RouteTarget::Interface(name) => {
                    let index = self.resolve(Kind::Interface, name, route.at, "route", "interface");
                    self.same_zone(route, name);
                    RouteTarget::Interface(index)
                }
                policy::RouteTarget::Zone(name) if *name == route.zone => {
                    self.fault(route.at, "route", format!("zone: `{name}` cannot leak into itself"));
                    RouteTarget::Blackhole
                }
                policy::RouteTarget::Zone(name) => {
                    RouteTarget::Zone(self.resolve(Kind::Zone, name, route.at, "route", "zone"))
                }
                policy::RouteTarget::Blackhole => RouteTarget::Blackhole,
            };
            all.push(Route { zone, prefix: route.prefix, target, metric: route.metric });
        }
        all
    }

    /// A packet changes zones by leaking, not by an interface of another zone.
    fn same_zone(&mut self, route: &policy::Route, interface: &str) {
        let Some(found) = self.policy.interfaces.iter().find(|i| i.name == interface) else { return };
        if found.zone != route.zone {
            let message = format!(
                "interface: `{interface}` is in zone `{}`; `zone: \"{}\"` leaks into that zone's table",
                found.zone, found.zone
            );
            self.fault(route.at, "route", message);
        }
    }

    fn neighbours(&mut self) -> Vec<Neighbour> {
        let policy = self.policy;
        for neighbour in &policy.neighbours {
            if policy.interfaces.iter().any(|i| i.name == neighbour.interface && i.peer.is_some()) {
                let message = format!("interface: `{}` is an end of a link, which has none", neighbour.interface);
                self.fault(neighbour.at, "neighbour", message);
            }
        }
        let make = |neighbour: &policy::Neighbour| Neighbour {
            interface: self.resolve(Kind::Interface, &neighbour.interface, neighbour.at, "neighbour", "interface"),
            address: neighbour.address,
            mac: neighbour.mac,
        };
        policy.neighbours.iter().map(make).collect()
    }

    fn pools(&mut self) -> Vec<Pool> {
        let policy = self.policy;
        let make = |pool: &policy::Pool| Pool {
            name: pool.name.clone(),
            addresses: pool.addresses.clone(),
            ports: pool.ports,
            mapping: pool.mapping,
            filtering: pool.filtering,
            preserve_port: pool.preserve_port,
            parity: pool.parity,
            paired: pool.paired,
            reuse_delay_ms: pool.reuse_delay_ms,
            hairpin: pool.hairpin,
            zone: self.resolve(Kind::Zone, &pool.zone, pool.at, "pool", "zone"),
        };
        policy.pools.iter().map(make).collect()
    }
}

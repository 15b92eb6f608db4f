//! `erhu show`: what runs, as tables with counters.

pub mod rules;
pub mod stats;
mod workers;

use clap::{Args, ValueEnum};
use erhu_planes::program::{Encapsulation, Interface, Prefix, Program, RouteTarget};
use erhu_planes::protocol::{NeighbourStatus, PoolStatus, Request, Response};
use erhu_planes::stats::Directory;
use serde_json::{Value, json};

use crate::cli::table::{Align, Table, grouped, mac};
use crate::cli::{Failure, Io};
use crate::client::{Dataplane, demand, running_program, status, unexpected};
use crate::conntrack::format::protocol_name;
use stats::{Traffic, ZoneCounts, interface_drops, slots};

/// What runs: tables with counters
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  erhu show zones\n  erhu show stats --json")]
pub struct ShowArgs {
    /// What to show
    what: What,
}

/// What can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Ports of the machine
    Ports,
    /// Logical interfaces
    Interfaces,
    /// Zones and their connections
    Zones,
    /// Routing tables
    Routes,
    /// Neighbours known and asked for
    #[value(alias = "neighbors")]
    Neighbours,
    /// Address pools
    Pools,
    /// Not available yet
    Sets,
    /// Not available yet
    Services,
    /// Rules, policies and named counters
    Rules,
    /// Workers
    Workers,
    /// Connections, drops and other counters
    Stats,
}

impl ShowArgs {
    /// Refuses what is still to come, before a dataplane is looked for.
    ///
    /// # Errors
    /// [`Failure::NotYet`].
    pub fn check(&self) -> Result<(), Failure> {
        match self.what {
            What::Sets => Err(Failure::NotYet("show sets".into())),
            What::Services => Err(Failure::NotYet("show services".into())),
            _ => Ok(()),
        }
    }
}

/// Shows one thing.
///
/// # Errors
/// [`Failure`], explained.
pub(crate) fn run(args: &ShowArgs, io: &mut Io<'_>, dataplane: &mut dyn Dataplane) -> Result<(), Failure> {
    args.check()?;
    match args.what {
        What::Ports => ports(io, dataplane),
        What::Interfaces => interfaces(io, dataplane),
        What::Zones => zones(io, dataplane),
        What::Routes => routes(io, dataplane),
        What::Neighbours => neighbours(io, dataplane),
        What::Pools => pools(io, dataplane),
        What::Rules => {
            let program = running_program(dataplane)?;
            Ok(rules::show(io, &program, &dataplane.stats()?)?)
        }
        What::Workers => workers::show(io, &dataplane.stats()?),
        What::Stats => Ok(stats::show(io, &dataplane.stats()?)?),
        What::Sets | What::Services => Ok(()),
    }
}

const LEFT: Align = Align::Left;
const RIGHT: Align = Align::Right;

/// Prints rows either as a table or as an array of objects.
fn print(io: &mut Io<'_>, table: &Table, rows: Vec<Value>) -> Result<(), Failure> {
    if io.json {
        writeln!(io.out, "{:#}", Value::Array(rows))?;
    } else {
        table.print(io.out)?;
    }
    Ok(())
}

fn ports(io: &mut Io<'_>, dataplane: &mut dyn Dataplane) -> Result<(), Failure> {
    let (status, stats) = (status(dataplane)?, dataplane.stats()?);
    let mut table = Table::new(&[
        ("NAME", LEFT),
        ("DEVICE", LEFT),
        ("MAC", LEFT),
        ("LINK", LEFT),
        ("MBIT/S", RIGHT),
        ("QUEUES", RIGHT),
        ("RSS", LEFT),
        ("RX PACKETS", RIGHT),
        ("RX BYTES", RIGHT),
        ("TX PACKETS", RIGHT),
        ("TX BYTES", RIGHT),
    ]);
    let mut rows = Vec::new();
    for (slot, port) in status.ports.into_iter().enumerate() {
        let traffic = Traffic::port(&stats, slot);
        let speed = if port.speed == 0 { String::new() } else { grouped(port.speed.into()) };
        let link = if port.link { "up" } else { "down" };
        let address = mac(port.mac);
        rows.push(json!({
            "name": port.name, "device": port.device, "mac": address, "link": port.link, "speed": port.speed,
            "queues": port.queues, "rss": port.rss, "traffic": traffic.json(),
        }));
        let facts = [port.name, port.device, address, link.into(), speed, port.queues.to_string(), port.rss];
        table.row(facts.into_iter().chain(traffic.cells()));
    }
    print(io, &table, rows)
}

fn vlan(interface: &Interface) -> Option<u16> {
    match interface.encapsulation {
        Encapsulation::Untagged | Encapsulation::Link(_) => None,
        Encapsulation::Vlan(tag) => Some(tag),
    }
}

/// The interface's port, or the other end of its link.
fn port_name(program: &Program, interface: &Interface) -> String {
    match interface.encapsulation {
        Encapsulation::Link(peer) => {
            format!("link to {}", program.interfaces.get(usize::from(peer)).map_or("?", |other| &other.name))
        }
        _ => interface.port.clone(),
    }
}

fn zone_name(program: &Program, id: u16) -> String {
    program.zone(id).map_or_else(|| id.to_string(), |zone| zone.name.clone())
}

fn interfaces(io: &mut Io<'_>, dataplane: &mut dyn Dataplane) -> Result<(), Failure> {
    let (program, stats) = (running_program(dataplane)?, dataplane.stats()?);
    let slots = slots(&stats, Directory::Interfaces);
    let mut table = Table::new(&[
        ("NAME", LEFT),
        ("PORT", LEFT),
        ("VLAN", RIGHT),
        ("ZONE", LEFT),
        ("ADDRESSES", LEFT),
        ("MTU", RIGHT),
        ("RX PACKETS", RIGHT),
        ("RX BYTES", RIGHT),
        ("TX PACKETS", RIGHT),
        ("TX BYTES", RIGHT),
        ("DROPS", RIGHT),
    ]);
    let mut rows = Vec::new();
    for interface in &program.interfaces {
        let is_link = matches!(interface.encapsulation, Encapsulation::Link(_));
        let slot = slots.get(&(is_link.into(), interface.name.clone()));
        let traffic = slot.map_or_else(Traffic::default, |slot| Traffic::interface(&stats, *slot));
        let drops = slot.map_or(0, |slot| interface_drops(&stats, *slot));
        let zone = zone_name(&program, interface.zone);
        let addresses: Vec<String> =
            interface.addresses.iter().map(|a| format!("{}/{}", a.address, a.length)).collect();
        rows.push(json!({
            "name": interface.name, "port": port_name(&program, interface), "vlan": vlan(interface), "zone": zone,
            "addresses": addresses, "mtu": interface.mtu, "mac": interface.mac.map(mac),
            "traffic": traffic.json(), "drops": drops,
        }));
        let facts = [
            interface.name.clone(),
            port_name(&program, interface),
            vlan(interface).map_or_else(String::new, |tag| tag.to_string()),
            zone,
            addresses.join(" "),
            interface.mtu.to_string(),
        ];
        table.row(facts.into_iter().chain(traffic.cells()).chain([grouped(drops)]));
    }
    print(io, &table, rows)
}

fn zones(io: &mut Io<'_>, dataplane: &mut dyn Dataplane) -> Result<(), Failure> {
    let (program, stats) = (running_program(dataplane)?, dataplane.stats()?);
    let slots = slots(&stats, Directory::Zones);
    let mut table = Table::new(&[
        ("NAME", LEFT),
        ("ID", RIGHT),
        ("LIMIT", RIGHT),
        ("LIVE", RIGHT),
        ("CREATED", RIGHT),
        ("ENDED", RIGHT),
        ("DROPS", RIGHT),
    ]);
    let mut rows = Vec::new();
    for zone in &program.zones {
        let slot = slots.get(&(zone.id, zone.name.clone()));
        let counts = slot.map_or_else(ZoneCounts::default, |slot| ZoneCounts::of(&stats, *slot));
        rows.push(json!({
            "name": zone.name, "id": zone.id, "limit": zone.limit, "live": counts.live(), "created": counts.created,
            "ended": counts.ended, "drops": stats::by_reason(&counts.drops),
        }));
        let limit = zone.limit.map_or_else(String::new, |limit| grouped(limit.into()));
        let numbers = [counts.live(), counts.created, counts.ended, counts.dropped()].map(grouped);
        table.row([zone.name.clone(), zone.id.to_string(), limit].into_iter().chain(numbers));
    }
    print(io, &table, rows)
}

fn routes(io: &mut Io<'_>, dataplane: &mut dyn Dataplane) -> Result<(), Failure> {
    let program = running_program(dataplane)?;
    let mut table =
        Table::new(&[("ZONE", LEFT), ("PREFIX", LEFT), ("TO", LEFT), ("METRIC", RIGHT), ("SOURCE", LEFT)]);
    let mut rows = Vec::new();
    let mut add = |zone: u16, prefix: Prefix, to: [String; 2], metric: u32, source: &str| {
        let zone = zone_name(&program, zone);
        let prefix = format!("{}/{}", prefix.network, prefix.length);
        let [kind, target] = &to;
        rows.push(json!({
            "zone": zone, "prefix": prefix, "kind": kind, "target": target, "metric": metric, "source": source,
        }));
        table.row([zone, prefix, to.join(" ").trim_end().to_owned(), metric.to_string(), source.to_owned()]);
    };
    for interface in &program.interfaces {
        for address in &interface.addresses {
            if let Some(prefix) = Prefix::new(address.address, address.length) {
                add(interface.zone, prefix, ["interface".into(), interface.name.clone()], 0, "connected");
            }
        }
    }
    for route in &program.routes {
        let to = match &route.target {
            RouteTarget::Via(hop) => ["via".into(), hop.to_string()],
            RouteTarget::Interface(index) => {
                let name = program.interfaces.get(usize::from(*index)).map_or("?", |i| &i.name);
                ["interface".into(), name.to_owned()]
            }
            RouteTarget::Zone(id) => ["zone".into(), zone_name(&program, *id)],
            RouteTarget::Blackhole => ["blackhole".into(), String::new()],
        };
        add(route.zone, route.prefix, to, route.metric, "script");
    }
    print(io, &table, rows)
}

fn neighbours(io: &mut Io<'_>, dataplane: &mut dyn Dataplane) -> Result<(), Failure> {
    let neighbours: Vec<NeighbourStatus> = match demand(dataplane, &Request::Neighbours, None)?.0 {
        Response::Neighbours { neighbours } => neighbours,
        other => return Err(unexpected(&other).into()),
    };
    let mut table = Table::new(&[
        ("INTERFACE", LEFT),
        ("ADDRESS", LEFT),
        ("MAC", LEFT),
        ("STATE", LEFT),
        ("WAITING", RIGHT),
        ("AGE/S", RIGHT),
    ]);
    let mut rows = Vec::new();
    for n in neighbours {
        let state = match (n.is_static, n.mac) {
            (true, _) => "static",
            (false, Some(_)) => "known",
            (false, None) => "asked",
        };
        let (address, mac) = (n.address.to_string(), n.mac.map(mac));
        rows.push(json!({
            "interface": n.interface, "address": address, "mac": mac, "state": state, "waiting": n.waiting,
            "age": n.age,
        }));
        let age = if n.is_static { String::new() } else { n.age.to_string() };
        table.row([n.interface, address, mac.unwrap_or_default(), state.into(), n.waiting.to_string(), age]);
    }
    print(io, &table, rows)
}

fn pools(io: &mut Io<'_>, dataplane: &mut dyn Dataplane) -> Result<(), Failure> {
    let program = running_program(dataplane)?;
    let pools: Vec<PoolStatus> = match demand(dataplane, &Request::Pools, None)?.0 {
        Response::Pools { pools } => pools,
        other => return Err(unexpected(&other).into()),
    };
    let mut table = Table::new(&[
        ("NAME", LEFT),
        ("ADDRESSES", LEFT),
        ("HOSTS", RIGHT),
        ("IN USE", LEFT),
        ("GIVEN", RIGHT),
        ("RETURNED", RIGHT),
        ("EXHAUSTED", RIGHT),
    ]);
    let mut rows = Vec::new();
    for pool in pools {
        let declared = program.pools.iter().find(|p| p.name == pool.name);
        let ranges: Vec<String> =
            declared.map_or_else(Vec::new, |p| p.addresses.iter().map(rules::range_text).collect());
        let in_use: Vec<(String, u64)> = pool
            .ports_in_use
            .iter()
            .map(|(protocol, count)| match protocol_name(*protocol) {
                "unknown" => (protocol.to_string(), *count),
                name => (name.to_owned(), *count),
            })
            .collect();
        let by_protocol: serde_json::Map<String, Value> =
            in_use.iter().map(|(name, count)| (name.clone(), (*count).into())).collect();
        rows.push(json!({
            "name": pool.name, "addresses": pool.addresses, "ranges": ranges, "hosts": pool.hosts,
            "in_use": by_protocol, "given": pool.given, "returned": pool.returned, "exhausted": pool.exhausted,
        }));
        let in_use: Vec<String> = in_use.iter().map(|(name, count)| format!("{name} {}", grouped(*count))).collect();
        table.row([
            pool.name,
            if ranges.is_empty() { grouped(pool.addresses) } else { ranges.join(" ") },
            grouped(pool.hosts),
            in_use.join(", "),
            grouped(pool.given),
            grouped(pool.returned),
            grouped(pool.exhausted),
        ]);
    }
    print(io, &table, rows)
}

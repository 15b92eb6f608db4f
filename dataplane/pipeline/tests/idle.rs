//! What idle tenants and idle addresses cost. One test, alone in its process: it measures the process.

use std::sync::Arc;

use erhu_nat::Nat;
use erhu_pipeline::policy::PortFacts;
use erhu_pipeline::{Control, HeapBuffer, Shared};
use erhu_planes::connections::{ConnectionsRegion, SlabLayout};
use erhu_planes::events::EventsRegion;
use erhu_planes::program::{
    AddressRange, Behaviour, Encapsulation, Interface, InterfaceAddress, Pool, PortRange, Prefix, Program, Route,
    RouteTarget, Zone,
};
use erhu_planes::protocol::Status;
use erhu_planes::region::Region;
use erhu_planes::sizing;
use erhu_planes::stats::StatsRegion;
use erhu_table::Table;

const ZONES: u16 = 2000;

/// So many zones on VLANs, each with an interface, a default route and a pool of `addresses`.
fn program(zones: u16, addresses: u32) -> Program {
    let mut program = Program::empty();
    let template = program.zones[0].clone();
    for id in 1..=zones {
        let [high, low] = id.to_be_bytes();
        program.zones.push(Zone { name: format!("tenant-{id}"), id, ..template.clone() });
        program.interfaces.push(Interface {
            name: format!("lan.{id}"),
            port: "a".into(),
            encapsulation: Encapsulation::Vlan(id),
            zone: id,
            addresses: vec![InterfaceAddress { address: [10, 0, 0, 1].into(), length: 24 }],
            mtu: 1500,
            mac: None,
            proxy_arp: false,
        });
        program.routes.push(Route {
            zone: id,
            prefix: Prefix::new([0, 0, 0, 0].into(), 0).unwrap(),
            target: RouteTarget::Zone(0),
            metric: 0,
        });
        let first = u32::from_be_bytes([100, 64, 0, 0]) + u32::from(high) * 65_536 + u32::from(low) * 256;
        program.pools.push(Pool {
            name: format!("public-{id}"),
            addresses: vec![AddressRange {
                first: std::net::Ipv4Addr::from(first).into(),
                last: std::net::Ipv4Addr::from(first + addresses - 1).into(),
            }],
            ports: PortRange { first: 1024, last: u16::MAX },
            mapping: Behaviour::EndpointIndependent,
            filtering: Behaviour::AddressPortDependent,
            preserve_port: true,
            parity: true,
            paired: true,
            reuse_delay_ms: 0,
            hairpin: true,
            zone: 0,
        });
    }
    program
}

/// Resident memory of this process, shared memory included.
fn resident() -> i64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap() * 4096
}

fn shared() -> Arc<Shared<HeapBuffer>> {
    let layout = SlabLayout::for_capacity(1000, 1);
    let slab = Region::anonymous("connections", layout.size()).unwrap();
    let slab = ConnectionsRegion::create(slab, layout, 1000, 1).unwrap();
    let table = Table::new(slab, 1000, 1, 7, false).unwrap();
    let stats = Region::anonymous("stats", StatsRegion::size(1)).unwrap();
    let stats = StatsRegion::create(stats, 1, &["a".into()], 1).unwrap();
    let events = Region::anonymous("events", EventsRegion::size(1, 64)).unwrap();
    let events = EventsRegion::create(events, 1, 64, 1).unwrap();
    Arc::new(Shared::new(table, Nat::new(3), stats, events, 1, 1))
}

/// Bytes that a router with a program takes from its adoption on. It is kept, so that the next one finds no memory that
/// this one gave back.
fn cost(program: &Program) -> i64 {
    let shared = shared();
    let ports = vec![PortFacts { name: "a".into(), mac: [2, 0, 0, 0, 0, 1] }];
    let mut control = Control::new(shared.clone(), ports, Status::default());
    let bytes = program.encode().unwrap();
    let backed = shared.stats.region().backed();
    let before = resident();
    control.adopt(bytes, 0).unwrap();
    // Pages of the statistics count where they are backed: nobody has touched them yet.
    let stats = i64::try_from(shared.stats.region().backed() - backed).unwrap();
    let cost = resident() - before + stats;
    std::mem::forget((control, shared));
    cost
}

#[test]
fn an_idle_zone_costs_less_than_4_kib_and_an_idle_pool_address_less_than_1_kib() {
    // The allocator's own growth is in the first.
    cost(&program(10, 1));
    let few = cost(&program(1, 1));
    let zones = (cost(&program(ZONES, 1)) - few) / i64::from(ZONES - 1);
    let wide = cost(&program(ZONES, 1));
    let addresses = (cost(&program(ZONES, 251)) - wide) / (i64::from(ZONES) * 250);
    println!("an idle zone {zones} bytes, an idle pool address {addresses} bytes");
    assert!(zones <= 4096, "{zones} bytes a zone, its interface, route, pool and counters");
    assert!(addresses <= 1024 && addresses <= 2 * i64::try_from(sizing::POOL_ADDRESS).unwrap(), "{addresses} bytes");
}

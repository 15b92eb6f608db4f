//! The table against a linear scan over the program.

use std::net::IpAddr;

use erhu_planes::program::{Encapsulation, Interface, InterfaceAddress, Prefix, Program, Route, RouteTarget, Zone};
use erhu_route::{Found, Routes, Target, Way4};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const ZONES: u16 = 4;

/// Few addresses, so that prefixes meet.
fn address(v6: bool) -> impl Strategy<Value = IpAddr> {
    let byte = || select(vec![0u8, 1, 2, 3, 127, 128, 254, 255]);
    (byte(), byte(), byte()).prop_map(move |(a, b, c)| {
        if v6 {
            IpAddr::from([0x20, 1, 0, 0, a, 0, 0, 0, b, 0, 0, 0, 0, 0, 0, c])
        } else {
            IpAddr::from([10, a, b, c])
        }
    })
}

fn length(v6: bool) -> impl Strategy<Value = u8> {
    if v6 {
        select(vec![0u8, 32, 40, 64, 72, 127, 128]).boxed()
    } else {
        select(vec![0u8, 8, 16, 24, 25, 30, 31, 32]).boxed()
    }
}

fn interfaces() -> impl Strategy<Value = Vec<Interface>> {
    let own = any::<bool>().prop_flat_map(|v6| {
        (address(v6), length(v6)).prop_map(|(address, length)| InterfaceAddress { address, length })
    });
    vec((0..ZONES, vec(own, 0..3)), 1..6).prop_map(|list| {
        (0..)
            .zip(list)
            .map(|(number, (zone, addresses))| Interface {
                name: format!("if-{number}"),
                port: "port".into(),
                encapsulation: Encapsulation::Vlan(1 + number),
                zone,
                addresses,
                mtu: 1500,
                mac: None,
                proxy_arp: false,
            })
            .collect()
    })
}

fn route(interfaces: u16) -> impl Strategy<Value = Route> {
    any::<bool>().prop_flat_map(move |v6| {
        let target = prop_oneof![
            4 => address(v6).prop_map(RouteTarget::Via),
            1 => (0..interfaces).prop_map(RouteTarget::Interface),
            2 => (0..ZONES).prop_map(RouteTarget::Zone),
            1 => Just(RouteTarget::Blackhole),
        ];
        // Zone 0 gets more than are scanned one by one.
        let zone = prop_oneof![Just(0), 0..ZONES];
        (zone, address(v6), length(v6), target, 0..3u32).prop_map(|(zone, network, length, target, metric)| Route {
            zone,
            prefix: Prefix::new(network, length).unwrap(),
            target,
            metric,
        })
    })
}

fn program() -> impl Strategy<Value = Program> {
    interfaces().prop_flat_map(|interfaces| {
        let count = u16::try_from(interfaces.len()).unwrap();
        prop_oneof![vec(route(count), 0..24), vec(route(count), 60..120)].prop_map(move |mut routes| {
            routes.retain(|r| r.target != RouteTarget::Zone(r.zone));
            let mut program = Program::empty();
            let zone = |id| Zone { id, name: format!("zone-{id}"), ..program.zones[0].clone() };
            let more: Vec<Zone> = (1..ZONES).map(zone).collect();
            program.zones.extend(more);
            program.interfaces = interfaces.clone();
            program.routes = routes;
            program.validate().unwrap();
            program
        })
    })
}

/// Every claim on `dst` in a zone, as (prefix length, rank: lower is better, where it leads).
fn claims(program: &Program, zone: u16, dst: IpAddr, with_hops: bool) -> Vec<(u8, u64, Target)> {
    let mut all = Vec::new();
    for (index, interface) in (0..).zip(&program.interfaces).filter(|(_, i)| i.zone == zone) {
        for own in &interface.addresses {
            let host = if own.address.is_ipv4() { 32 } else { 128 };
            let prefix = Prefix::new(own.address, own.length).unwrap();
            if own.address == dst {
                all.push((host, 0, Target::Local(index)));
            }
            if prefix.contains(dst) {
                all.push((own.length, 1, Target::Connected(index)));
            }
            if let (IpAddr::V4(network), IpAddr::V4(dst)) = (prefix.network, dst) {
                let last = u64::from(u32::from(network)) + (1u64 << (32 - own.length)) - 1;
                if own.length <= 30 && (dst == network || u64::from(u32::from(dst)) == last) {
                    all.push((32, 1, Target::Broadcast(index)));
                }
            }
        }
    }
    for route in program.routes.iter().filter(|r| r.zone == zone && r.prefix.contains(dst)) {
        let target = match route.target {
            RouteTarget::Via(_) if !with_hops => continue,
            RouteTarget::Via(next_hop) => match scan(program, zone, next_hop, 0, false) {
                Found::Via { interface, .. } => Target::Via { interface, next_hop },
                _ => continue,
            },
            RouteTarget::Interface(interface) => Target::Interface(interface),
            RouteTarget::Zone(zone) => Target::Zone(zone),
            RouteTarget::Blackhole => Target::Blackhole,
        };
        all.push((route.prefix.length, 2 + u64::from(route.metric), target));
    }
    all
}

fn scan(program: &Program, mut zone: u16, dst: IpAddr, flow: u32, with_hops: bool) -> Found {
    for _ in 0..9 {
        let claims = claims(program, zone, dst, with_hops);
        let Some(longest) = claims.iter().map(|c| c.0).max() else { return Found::None };
        let rank = claims.iter().filter(|c| c.0 == longest).map(|c| c.1).min().unwrap();
        let mut best = Vec::new();
        for (length, _, target) in claims.iter().filter(|c| c.1 == rank) {
            if *length == longest && !best.contains(target) {
                best.push(*target);
            }
        }
        if rank < 2 {
            best.truncate(1);
        }
        match best[(best.len() as u64 * u64::from(flow) / (1 << 32)) as usize] {
            Target::Local(interface) => return Found::Local { zone, interface },
            Target::Broadcast(interface) => return Found::Broadcast { interface },
            Target::Connected(interface) | Target::Interface(interface) => {
                return Found::Via { interface, next_hop: dst };
            }
            Target::Via { interface, next_hop } => return Found::Via { interface, next_hop },
            Target::Zone(next) => zone = next,
            Target::Blackhole => return Found::Blackhole,
        }
    }
    Found::None
}

/// The interface of the longest connected prefix.
fn connected(program: &Program, zone: u16, address: IpAddr) -> Option<u16> {
    let mut best: Option<(u8, u16)> = None;
    for (index, interface) in (0..).zip(&program.interfaces).filter(|(_, i)| i.zone == zone) {
        for own in &interface.addresses {
            let contains = Prefix::new(own.address, own.length).unwrap().contains(address);
            // A host prefix holds nobody but the interface itself.
            let host = if own.address.is_ipv4() { 32 } else { 128 };
            if contains && own.length < host && best.is_none_or(|(length, _)| own.length > length) {
                best = Some((own.length, index));
            }
        }
    }
    best.map(|(_, index)| index)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_table_answers_as_a_linear_scan_does(
        program in program(),
        asked in vec((0..ZONES, any::<bool>().prop_flat_map(address), any::<u32>()), 40),
    ) {
        let routes = Routes::build(&program);
        for (zone, dst, flow) in asked {
            prop_assert_eq!(routes.lookup(zone, dst, flow), scan(&program, zone, dst, flow, true), "{} in {}", dst, zone);
            if let IpAddr::V4(dst) = dst {
                let (found, every) = routes.lookup_all(zone, dst.into(), flow);
                let expected = match found {
                    Found::Via { interface, next_hop: IpAddr::V4(next_hop) } if every => {
                        Some(Way4 { interface, next_hop: next_hop.into() })
                    }
                    _ => None,
                };
                prop_assert_eq!(routes.way4(zone, dst.into()), expected, "{} in {}", dst, zone);
            }
            prop_assert_eq!(routes.connected(zone, dst), connected(&program, zone, dst), "{} in {}", dst, zone);
            let own = program.interfaces.iter().any(|i| i.zone == zone && i.addresses.iter().any(|a| a.address == dst));
            prop_assert_eq!(routes.is_local(zone, dst), own);
        }
    }

    #[test]
    fn every_declared_route_is_in_the_table_or_displaced_or_unresolved(program in program()) {
        let routes = Routes::build(&program);
        for (index, route) in (0..).zip(&program.routes) {
            let shown = routes.iter().any(|e| (e.zone, e.prefix) == (route.zone, route.prefix));
            prop_assert!(shown || routes.unresolved().contains(&index), "{:?}", route);
        }
    }
}

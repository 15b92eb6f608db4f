//! What the table answers, case by case.

use std::net::IpAddr;

use erhu_planes::program::{Encapsulation, Interface, InterfaceAddress, Prefix, Program, Route, RouteTarget, Zone};
use erhu_route::{Found, Routes, Target};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> Prefix {
    let (network, length) = text.split_once('/').unwrap();
    Prefix::new(ip(network), length.parse().unwrap()).unwrap()
}

fn zone(id: u16) -> Zone {
    Zone { id, name: format!("zone-{id}"), ..Program::empty().zones[0].clone() }
}

fn interface(number: u16, zone: u16, addresses: &[&str]) -> Interface {
    let address = |text: &&str| {
        let (address, length) = text.split_once('/').unwrap();
        InterfaceAddress { address: ip(address), length: length.parse().unwrap() }
    };
    Interface {
        name: format!("if-{number}"),
        port: "port".into(),
        encapsulation: Encapsulation::Vlan(1 + number),
        zone,
        addresses: addresses.iter().map(address).collect(),
        mtu: 1500,
        mac: None,
        proxy_arp: false,
    }
}

fn route(zone: u16, to: &str, target: RouteTarget, metric: u32) -> Route {
    Route { zone, prefix: prefix(to), target, metric }
}

/// Interface n has what is at position n; zones are those that occur.
fn routes(interfaces: &[(u16, &[&str])], routes: Vec<Route>) -> Routes {
    let mut program = Program::empty();
    for (number, (zone_id, addresses)) in (0..).zip(interfaces) {
        program.interfaces.push(interface(number, *zone_id, addresses));
    }
    let leaks = routes.iter().filter_map(|r| match r.target {
        RouteTarget::Zone(zone) => Some(zone),
        _ => None,
    });
    let mut ids: Vec<u16> = interfaces
        .iter()
        .map(|i| i.0)
        .chain(routes.iter().map(|r| r.zone))
        .chain(leaks)
        .filter(|id| *id != 0)
        .collect();
    ids.sort_unstable();
    ids.dedup();
    program.zones.extend(ids.into_iter().map(zone));
    program.routes = routes;
    program.validate().unwrap();
    Routes::build(&program)
}

fn via(interface: u16, next_hop: &str) -> Found {
    Found::Via { interface, next_hop: ip(next_hop) }
}

/// Two tenants with the same network, and a router behind `main`.
fn two_tenants() -> Routes {
    routes(
        &[(1, &["10.0.0.1/24"]), (2, &["10.0.0.1/24"]), (0, &["198.51.100.2/24"])],
        vec![
            route(1, "0.0.0.0/0", RouteTarget::Zone(0), 0),
            route(2, "0.0.0.0/0", RouteTarget::Zone(0), 0),
            route(0, "0.0.0.0/0", RouteTarget::Via(ip("198.51.100.1")), 0),
        ],
    )
}

#[test]
fn tenants_with_equal_addresses_reach_their_own_hosts_and_share_the_way_out() {
    let routes = two_tenants();
    assert_eq!(routes.lookup(1, ip("10.0.0.5"), 0), via(0, "10.0.0.5"));
    assert_eq!(routes.lookup(2, ip("10.0.0.5"), 0), via(1, "10.0.0.5"));
    assert_eq!(routes.lookup(0, ip("10.0.0.5"), 0), via(2, "198.51.100.1"));
    for zone in [0, 1, 2] {
        assert_eq!(routes.lookup(zone, ip("192.0.2.1"), 0), via(2, "198.51.100.1"));
        assert_eq!(routes.lookup(zone, ip("198.51.100.9"), 0), via(2, "198.51.100.9"));
    }
    assert_eq!(routes.lookup(3, ip("192.0.2.1"), 0), Found::None, "no such zone");
}

#[test]
fn own_addresses_are_local_in_the_zone_that_has_them_also_through_a_leak() {
    let routes = two_tenants();
    assert_eq!(routes.lookup(2, ip("10.0.0.1"), 0), Found::Local { zone: 2, interface: 1 });
    assert_eq!(routes.lookup(1, ip("198.51.100.2"), 0), Found::Local { zone: 0, interface: 2 });
    assert!(routes.is_local(1, ip("10.0.0.1")) && routes.is_local(0, ip("198.51.100.2")));
    assert!(!routes.is_local(1, ip("198.51.100.2")) && !routes.is_local(0, ip("10.0.0.1")));
    assert!(!routes.is_local(1, ip("10.0.0.2")) && !routes.is_local(1, ip("10.0.0.255")));
}

#[test]
fn both_ends_of_a_connected_prefix_are_broadcast_but_not_in_a_slash_31() {
    let routes = routes(&[(0, &["10.0.0.1/24", "10.1.0.0/31", "10.2.0.1/30", "10.3.0.1/32"])], vec![]);
    for end in ["10.0.0.0", "10.0.0.255", "10.2.0.0", "10.2.0.3"] {
        assert_eq!(routes.lookup(0, ip(end), 0), Found::Broadcast { interface: 0 }, "{end}");
        assert_eq!(routes.connected(0, ip(end)), Some(0), "{end}");
    }
    assert_eq!(routes.lookup(0, ip("10.1.0.1"), 0), via(0, "10.1.0.1"));
    assert_eq!(routes.lookup(0, ip("10.1.0.0"), 0), Found::Local { zone: 0, interface: 0 });
    assert_eq!(routes.lookup(0, ip("10.3.0.1"), 0), Found::Local { zone: 0, interface: 0 });
    assert_eq!(routes.lookup(0, ip("10.3.0.0"), 0), Found::None);
}

#[test]
fn connected_asks_for_the_longest_connected_prefix_whatever_is_routed() {
    let routes = routes(
        &[(0, &["10.0.0.1/8"]), (0, &["10.1.0.1/16"]), (1, &["172.16.0.1/24"])],
        vec![
            route(0, "10.1.2.0/24", RouteTarget::Via(ip("10.0.0.9")), 0),
            route(0, "172.16.0.0/16", RouteTarget::Zone(1), 0),
            route(0, "192.168.0.0/16", RouteTarget::Interface(0), 0),
        ],
    );
    assert_eq!(routes.connected(0, ip("10.1.2.3")), Some(1));
    assert_eq!(routes.connected(0, ip("10.1.0.1")), Some(1), "an own address lies in its prefix");
    assert_eq!(routes.connected(0, ip("10.2.0.1")), Some(0));
    assert_eq!(routes.connected(0, ip("172.16.0.5")), None, "leaks do not count");
    assert_eq!(routes.connected(0, ip("192.168.0.5")), None, "declared routes do not count");
    assert_eq!(routes.connected(1, ip("172.16.0.5")), Some(2));
}

#[test]
fn the_longest_prefix_wins_then_the_lowest_metric_and_what_is_connected_wins_over_all_metrics() {
    let routes = routes(
        &[(0, &["10.0.0.1/24"]), (0, &["10.0.1.1/24"])],
        vec![
            route(0, "10.0.0.0/24", RouteTarget::Blackhole, 0),
            route(0, "10.0.0.1/32", RouteTarget::Blackhole, 0),
            route(0, "0.0.0.0/0", RouteTarget::Via(ip("10.0.0.2")), 20),
            route(0, "0.0.0.0/0", RouteTarget::Via(ip("10.0.1.2")), 10),
            route(0, "192.0.2.0/24", RouteTarget::Blackhole, 100),
            route(0, "192.0.2.128/25", RouteTarget::Via(ip("10.0.0.3")), 100),
        ],
    );
    assert_eq!(routes.lookup(0, ip("10.0.0.7"), 0), via(0, "10.0.0.7"));
    assert_eq!(routes.lookup(0, ip("10.0.0.1"), 0), Found::Local { zone: 0, interface: 0 });
    assert_eq!(routes.lookup(0, ip("8.8.8.8"), u32::MAX), via(1, "10.0.1.2"));
    assert_eq!(routes.lookup(0, ip("192.0.2.127"), 0), Found::Blackhole);
    assert_eq!(routes.lookup(0, ip("192.0.2.128"), 0), via(0, "10.0.0.3"));
}

#[test]
fn equal_routes_share_flows_evenly_and_keep_each_flow_on_its_way() {
    let hops = ["10.0.0.2", "10.0.0.3", "10.0.0.4"];
    let equal = hops.iter().chain(&["10.0.0.2"]).map(|hop| route(0, "0.0.0.0/0", RouteTarget::Via(ip(hop)), 5));
    let routes = routes(&[(0, &["10.0.0.1/24"])], equal.collect());
    let mut used = [0; 3];
    for i in 0..30_000u32 {
        let flow = i.wrapping_mul(0x9e37_79b9);
        let found = routes.lookup(0, ip("8.8.8.8"), flow);
        assert_eq!(found, routes.lookup(0, ip("8.8.8.8"), flow));
        let at = hops.iter().position(|hop| found == via(0, hop)).unwrap();
        used[at] += 1;
    }
    assert!(used.iter().all(|n| (9_900..10_100).contains(n)), "a route declared twice counts once: {used:?}");
}

#[test]
fn next_hops_resolve_through_connected_prefixes_interface_routes_and_leaks() {
    let routes = routes(
        &[(1, &["10.0.0.1/24"]), (0, &["198.51.100.2/24"]), (1, &[])],
        vec![
            route(1, "198.51.100.0/24", RouteTarget::Zone(0), 0),
            route(1, "20.0.0.0/8", RouteTarget::Via(ip("198.51.100.1")), 0),
            route(1, "203.0.113.1/32", RouteTarget::Interface(2), 0),
            route(1, "30.0.0.0/8", RouteTarget::Via(ip("203.0.113.1")), 0),
        ],
    );
    assert_eq!(routes.lookup(1, ip("20.1.1.1"), 0), via(1, "198.51.100.1"));
    assert_eq!(routes.lookup(1, ip("30.1.1.1"), 0), via(2, "203.0.113.1"));
    assert_eq!(routes.lookup(1, ip("203.0.113.1"), 0), via(2, "203.0.113.1"));
    assert!(routes.unresolved().is_empty());
}

#[test]
fn routes_whose_next_hop_no_interface_leads_to_are_left_out_and_the_next_best_serves() {
    let routes = routes(
        &[(0, &["10.0.0.1/24"])],
        vec![
            route(0, "0.0.0.0/0", RouteTarget::Via(ip("192.0.2.1")), 1), // lies behind this very route
            route(0, "0.0.0.0/0", RouteTarget::Via(ip("10.0.0.1")), 2),  // ourselves
            route(0, "0.0.0.0/0", RouteTarget::Via(ip("10.0.0.255")), 3), // broadcast
            route(0, "0.0.0.0/0", RouteTarget::Via(ip("10.0.0.9")), 4),
        ],
    );
    assert_eq!(routes.unresolved(), [0, 1, 2]);
    assert_eq!(routes.lookup(0, ip("8.8.8.8"), 0), via(0, "10.0.0.9"));
}

#[test]
fn a_chain_of_eight_leaks_is_followed_and_a_ninth_or_a_loop_leads_nowhere() {
    let mut chain: Vec<Route> = (1..=9).map(|z| route(z, "0.0.0.0/0", RouteTarget::Zone(z + 1), 0)).collect();
    chain.push(route(11, "0.0.0.0/0", RouteTarget::Zone(12), 0));
    chain.push(route(12, "0.0.0.0/0", RouteTarget::Zone(11), 0));
    let routes = routes(&[(10, &["10.0.0.1/24"])], chain);
    assert_eq!(routes.lookup(2, ip("10.0.0.5"), 0), via(0, "10.0.0.5"));
    assert_eq!(routes.lookup(1, ip("10.0.0.5"), 0), Found::None);
    assert_eq!(routes.lookup(11, ip("10.0.0.5"), 0), Found::None);
}

#[test]
fn both_families_live_side_by_side() {
    let routes = routes(
        &[(3, &["10.0.0.1/24", "2001:db8::1/64"])],
        vec![
            route(3, "::/0", RouteTarget::Via(ip("2001:db8::2")), 0),
            route(3, "2001:db8:1::/48", RouteTarget::Blackhole, 0),
        ],
    );
    assert_eq!(routes.lookup(3, ip("2001:db8::1"), 0), Found::Local { zone: 3, interface: 0 });
    assert_eq!(routes.lookup(3, ip("2001:db8::"), 0), via(0, "2001:db8::"), "IPv6 has no broadcast");
    assert_eq!(routes.lookup(3, ip("2001:db8::ffff"), 0), via(0, "2001:db8::ffff"));
    assert_eq!(routes.lookup(3, ip("2001:db9::1"), 0), via(0, "2001:db8::2"));
    assert_eq!(routes.lookup(3, ip("2001:db8:1::1"), 0), Found::Blackhole);
    assert_eq!(routes.lookup(3, ip("8.8.8.8"), 0), Found::None);
    assert!(routes.is_local(3, ip("2001:db8::1")) && !routes.is_local(3, ip("2001:db8::2")));
    assert_eq!(routes.connected(3, ip("2001:db8::7")), Some(0));
}

#[test]
fn all_entries_can_be_shown() {
    let routes = two_tenants();
    let mut shown: Vec<_> = routes.iter().filter(|e| e.zone == 1).collect();
    shown.sort_by_key(|e| (e.prefix.length, e.prefix.network));
    let shown: Vec<_> = shown.iter().map(|e| (e.prefix, e.targets)).collect();
    assert_eq!(
        shown,
        [
            (prefix("0.0.0.0/0"), &[Target::Zone(0)][..]),
            (prefix("10.0.0.0/24"), &[Target::Connected(0)]),
            (prefix("10.0.0.0/32"), &[Target::Broadcast(0)]),
            (prefix("10.0.0.1/32"), &[Target::Local(0)]),
            (prefix("10.0.0.255/32"), &[Target::Broadcast(0)]),
        ]
    );
    assert_eq!(routes.iter().count(), 15);
}

#[test]
fn an_idle_zone_takes_less_than_200_bytes_and_a_route_less_than_100() {
    for zones in [900, 1000, 4096, 8000] {
        let mut program = Program::empty();
        for id in 1..=zones {
            program.zones.push(zone(id));
            program.interfaces.push(interface(id - 1, id, &["10.0.0.1/24"]));
            program.routes.push(route(id, "0.0.0.0/0", RouteTarget::Zone(0), 0));
        }
        let each = Routes::build(&program).memory() / usize::from(zones);
        assert!(each < 200, "{each} bytes each of {zones} zones");
    }
    for count in [60_000u32, 100_000, 120_000] {
        let mut program = Program::empty();
        program.interfaces.push(interface(0, 0, &["10.0.0.1/8", "2001:db8::1/32"]));
        for i in 0..count {
            let hop = ip(&format!("10.1.{}.{}", i >> 8 & 0xff, i & 0xff));
            let to = Prefix::new(IpAddr::V4((0x5000_0000 + (i << 8)).into()), 24).unwrap();
            program.routes.push(Route { zone: 0, prefix: to, target: RouteTarget::Via(hop), metric: 0 });
        }
        let routes = Routes::build(&program);
        let each = routes.memory() / count as usize;
        assert!(each < 100, "{each} bytes each of {count} routes");
        assert_eq!(routes.lookup(0, ip("80.0.1.7"), 0), via(0, "10.1.0.1"));
    }
}

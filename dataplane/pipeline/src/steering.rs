//! Which worker a packet reaches: how ports spread packets over queues, and how external ports are chosen so that
//! answers come back to the worker that owns the connection.
//!
//! # Overview
//!
//! A port spreads in one of these ways ([`Fields`]):
//!
//! - *host-affine*: ports to inside hash the source address only, ports to outside the destination address and port
//!   only. All of a host's packets and mappings are one worker's, and an external address and port leads to one worker
//!   whatever the remote: the owner chooses among those that lead to itself, and nothing is handed over.
//! - *plain*: all addresses and ports. An answer's hash can be foretold for one remote only, which serves
//!   connections and mappings that have one.
//! - *none*: one queue, or a NIC that does not say how it spreads.
//!
//! It is a preference: precedence is existing mapping, `preserve_port`, this, parity. What comes elsewhere is handed to
//! its owner.
//!
//! # Life-cycle
//!
//! A policy says which ports lead outside ([`roles`]); whoever has the NICs programs them, reads back what they took,
//! and says so as one [`Spread`] per port; the policy carries that to the workers ([`Affinity`]).

use std::net::IpAddr;
use std::sync::Arc;

use erhu_planes::program::{Action, Hook, Interface, MatchKey, Prefix, Program, RouteTarget, SourceChoice};
use erhu_planes::tuple::proto;

use crate::policy::PortFacts;
use crate::rss::{Hashed, Toeplitz};

/// What a port leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sources of what comes by it are translated elsewhere, or nothing is.
    Inside,
    /// What leaves by it is translated.
    Outside,
    /// Interfaces of both kinds, as a trunk has.
    Both,
}

/// Fields that a port hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fields {
    /// All addresses and ports: plain.
    Plain,
    /// The source address: host-affine, inside.
    Source,
    /// The destination address and port: host-affine, outside.
    Destination,
}

impl Fields {
    /// As status shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Source => "host-affine (source)",
            Self::Destination => "host-affine (destination)",
        }
    }
}

/// What fields each port should hash. `can` says whether a port can hash some; who can neither stays plain.
///
/// Inside ports hash on the source only where every answer comes by a port that hashes on the destination: else one
/// busy host would be one worker's for nothing.
pub fn fields(roles: &[Role], can: impl Fn(usize, Fields) -> bool) -> Vec<Fields> {
    let is_outside = |at: usize| roles[at] == Role::Outside && can(at, Fields::Destination);
    let outside = roles.iter().filter(|role| **role != Role::Inside).count();
    let is_affine = outside > 0 && (0..roles.len()).filter(|at| is_outside(*at)).count() == outside;
    let choose = |(at, role): (usize, &Role)| match role {
        Role::Outside if is_outside(at) => Fields::Destination,
        Role::Inside if is_affine && can(at, Fields::Source) => Fields::Source,
        _ => Fields::Plain,
    };
    roles.iter().enumerate().map(choose).collect()
}

/// What each port leads to under a program.
pub fn roles(program: &Program, ports: &[PortFacts]) -> Vec<Role> {
    let outside = outside(program);
    let of_port = |port: &PortFacts| {
        let its = program.interfaces.iter().zip(&outside).filter(|(i, _)| i.port == port.name);
        let its: Vec<bool> = its.map(|(_, outside)| *outside).collect();
        match (its.contains(&true), its.contains(&false)) {
            (true, false) => Role::Outside,
            (true, true) => Role::Both,
            _ => Role::Inside,
        }
    };
    ports.iter().map(of_port).collect()
}

/// Whether what leaves by each interface is translated: those that a translating rule names by interface or zone, else
/// those of the zone that its pool's addresses are in; of a zone's only those by which its default routes leave, where
/// there are such.
fn outside(program: &Program) -> Vec<bool> {
    let mut outside = vec![false; program.interfaces.len()];
    let postrouting = program.hooks.get(Hook::Postrouting as usize).into_iter().flat_map(|list| &list.rules);
    for rule in postrouting.chain(program.chains.iter().flat_map(|chain| &chain.rules)) {
        let pool_zone = rule.actions.iter().find_map(|action| match action {
            Action::Masquerade { .. } => Some(None),
            Action::Snat(snat) => Some(match snat.source {
                SourceChoice::Pool(pool) => program.pools.get(usize::from(pool)).map(|pool| pool.zone),
                SourceChoice::To(_) => None,
            }),
            _ => None,
        });
        let Some(pool_zone) = pool_zone else { continue };
        let keys = || rule.matches.iter().filter(|m| !m.negated).map(|m| &m.key);
        let interfaces = keys().find_map(|key| if let MatchKey::Egress(named) = key { Some(named) } else { None });
        if let Some(interfaces) = interfaces {
            for interface in interfaces {
                outside.get_mut(usize::from(*interface)).into_iter().for_each(|o| *o = true);
            }
            continue;
        }
        let zones =
            keys().find_map(|key| if let MatchKey::EgressZone(named) = key { Some(&named[..]) } else { None });
        let zones = zones.or(pool_zone.as_ref().map(std::slice::from_ref));
        let in_zone = |i: &Interface| zones.is_none_or(|zones| zones.contains(&i.zone));
        let is_default = |i: &Interface| leads_on(program, i);
        let narrow = program.interfaces.iter().any(|i| in_zone(i) && is_default(i));
        for (interface, outside) in program.interfaces.iter().zip(&mut outside) {
            *outside |= in_zone(interface) && (!narrow || is_default(interface));
        }
    }
    outside
}

/// Whether a default route of its zone leaves by an interface.
fn leads_on(program: &Program, interface: &Interface) -> bool {
    let reaches = |hop: IpAddr| {
        let mut prefixes = interface.addresses.iter().filter_map(|a| Prefix::new(a.address, a.length));
        prefixes.any(|prefix| prefix.contains(hop))
    };
    let mut routes = program.routes.iter().filter(|route| route.zone == interface.zone && route.prefix.length == 0);
    routes.any(|route| match &route.target {
        RouteTarget::Via(hop) => reaches(*hop),
        RouteTarget::Interface(index) => {
            program.interfaces.get(usize::from(*index)).is_some_and(|i| i.name == interface.name)
        }
        _ => false,
    })
}

/// How a port spreads packets over workers, as read back from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    fields: Fields,
    hash: Arc<Toeplitz>,
    /// The worker of the queue of each entry of the redirection table.
    workers: Box<[u16]>,
}

impl Spread {
    /// From what a port hashes, its key, and the worker behind each entry of its redirection table. `None` if the table
    /// is empty.
    pub fn new(fields: Fields, key: &[u8], workers: impl IntoIterator<Item = u16>) -> Option<Self> {
        let workers: Box<[u16]> = workers.into_iter().collect();
        (!workers.is_empty()).then(|| Self { fields, hash: Arc::new(Toeplitz::new(key)), workers })
    }

    /// What it hashes.
    pub fn fields(&self) -> Fields {
        self.fields
    }

    #[inline]
    fn worker(&self, hash: u32) -> u16 {
        self.workers[hash as usize % self.workers.len()]
    }

    /// The worker that such a packet reaches.
    pub fn worker_of(&self, packet: &Hashed) -> usize {
        let hash = &self.hash;
        let width = width(packet.dst);
        let sum = match self.fields {
            Fields::Source => hash.address(0, packet.src),
            Fields::Destination => {
                hash.address(0, packet.dst) ^ packet.ports.map_or(0, |(_, to)| hash.port(width, to))
            }
            Fields::Plain => {
                let ports =
                    packet.ports.map_or(0, |(from, to)| hash.port(2 * width, from) ^ hash.port(2 * width + 2, to));
                hash.address(0, packet.src) ^ hash.address(width, packet.dst) ^ ports
            }
        };
        usize::from(self.worker(sum))
    }
}

/// Bytes of an address.
const fn width(address: IpAddr) -> usize {
    if address.is_ipv4() { 4 } else { 16 }
}

/// How all ports spread, for workers that choose external ports.
#[derive(Clone, Debug)]
pub struct Affinity {
    spreads: Vec<Option<Spread>>,
}

impl Affinity {
    /// One per port, in the order of their numbers. `None` where no port spreads in a known way.
    pub fn new(spreads: Vec<Option<Spread>>) -> Option<Self> {
        spreads.iter().any(Option::is_some).then_some(Self { spreads })
    }

    /// The worker that a packet reaches which comes by a port; `None` where that is not known.
    pub fn worker_of(&self, port: u16, packet: &Hashed) -> Option<usize> {
        Some(self.spreads.get(usize::from(port))?.as_ref()?.worker_of(packet))
    }

    /// What leads answers that come by `port` from a remote's address and port to `worker`. `None` where nothing does:
    /// the port does not say how it spreads, or spreads by no port of these packets, or never to that worker.
    pub fn towards(
        &self,
        port: u16,
        worker: usize,
        protocol: u8,
        (remote, remote_port): (IpAddr, u16),
    ) -> Option<Towards<'_>> {
        let spread = self.spreads.get(usize::from(port))?.as_ref()?;
        let worker = u16::try_from(worker).ok().filter(|worker| spread.workers.contains(worker))?;
        if !matches!(protocol, proto::TCP | proto::UDP) {
            return None;
        }
        let width = width(remote);
        let (base, address_at, port_at) = match spread.fields {
            Fields::Source => return None,
            Fields::Destination => (0, 0, width),
            Fields::Plain => {
                let base = spread.hash.address(0, remote) ^ spread.hash.port(2 * width, remote_port);
                (base, width, 2 * width + 2)
            }
        };
        Some(Towards { spread, worker, base, address_at, port_at })
    }
}

/// See [`Affinity::towards`].
#[derive(Clone, Copy, Debug)]
pub struct Towards<'a> {
    spread: &'a Spread,
    worker: u16,
    base: u32,
    address_at: usize,
    port_at: usize,
}

impl Towards<'_> {
    /// Whether answers to this external address and port reach the worker: six look-ups for IPv4.
    #[inline]
    pub fn is_reached_by(&self, address: IpAddr, port: u16) -> bool {
        let hash = &self.spread.hash;
        let sum = self.base ^ hash.address(self.address_at, address) ^ hash.port(self.port_at, port);
        self.spread.worker(sum) == self.worker
    }
}

#[cfg(test)]
mod tests {
    use erhu_planes::program::{Encapsulation, InterfaceAddress, Match, Position, Route, Rule};

    use super::*;
    use crate::rss::DEFAULT_KEY;

    const SRC: Fields = Fields::Source;
    const DST: Fields = Fields::Destination;
    const PLAIN: Fields = Fields::Plain;

    #[test]
    fn host_affinity_needs_every_way_out_to_hash_on_the_destination() {
        use Role::{Both, Inside, Outside};
        let all = |_: usize, _: Fields| true;
        assert_eq!(fields(&[Inside, Outside, Inside], all), [SRC, DST, SRC]);
        assert_eq!(fields(&[Inside, Outside, Outside], |at, _| at != 2), [PLAIN, DST, PLAIN]);
        assert_eq!(fields(&[Inside, Outside], |_, wanted| wanted == DST), [PLAIN, DST]);
        assert_eq!(fields(&[Inside, Outside], |_, wanted| wanted == SRC), [PLAIN, PLAIN]);
        assert_eq!(fields(&[Inside, Outside, Both], all), [PLAIN, DST, PLAIN], "a trunk of both kinds");
        assert_eq!(fields(&[Both], all), [PLAIN]);
        assert_eq!(fields(&[Inside, Inside], all), [PLAIN, PLAIN], "nothing is translated");
    }

    /// Interfaces with port, VLAN and zone, default routes by `wan`, and a masquerading rule that matches so.
    fn roles_of(interfaces: &[(&str, &str, u16)], matches: Vec<MatchKey>) -> Vec<Role> {
        let mut program = Program::empty();
        for (net, (name, port, zone)) in (0..).zip(interfaces) {
            program.interfaces.push(Interface {
                name: (*name).into(),
                port: (*port).into(),
                encapsulation: Encapsulation::Untagged,
                zone: *zone,
                addresses: vec![InterfaceAddress { address: [10, 0, net, 1].into(), length: 24 }],
                mtu: 1500,
                mac: None,
                proxy_arp: false,
            });
            if *name == "wan" {
                let (prefix, target) = (Prefix::new([0; 4].into(), 0), RouteTarget::Via([10, 0, net, 9].into()));
                program.routes.push(Route { zone: *zone, prefix: prefix.unwrap(), target, metric: 0 });
            }
        }
        program.hooks[Hook::Postrouting as usize].rules.push(Rule {
            at: Position::default(),
            matches: matches.into_iter().map(|key| Match { negated: false, key }).collect(),
            actions: vec![Action::Masquerade { ports: None, random: false }],
        });
        let port = |name: &str| PortFacts { name: name.into(), mac: [2; 6] };
        roles(&program, &[port("p0"), port("p1"), port("unused")])
    }

    #[test]
    fn outside_is_where_translated_packets_leave() {
        use Role::{Both, Inside, Outside};
        let tenants = [("lan", "p0", 1), ("wan", "p1", 0)];
        assert_eq!(roles_of(&tenants, vec![MatchKey::Egress(vec![1])]), [Inside, Outside, Inside]);
        assert_eq!(roles_of(&tenants, vec![MatchKey::EgressZone(vec![0])]), [Inside, Outside, Inside]);
        assert_eq!(roles_of(&tenants, vec![MatchKey::Zone(vec![1])]), [Inside, Outside, Inside], "the default route");
        let one_zone = [("lan", "p0", 0), ("wan", "p1", 0)];
        assert_eq!(roles_of(&one_zone, vec![]), [Inside, Outside, Inside]);
        let trunk = [("lan", "p0", 1), ("wan", "p0", 0), ("dmz", "p1", 0)];
        assert_eq!(roles_of(&trunk, vec![]), [Both, Inside, Inside]);
        assert_eq!(roles_of(&trunk, vec![MatchKey::Egress(vec![2])]), [Inside, Outside, Inside]);
    }

    fn reply(address: IpAddr, port: u16, remote: (IpAddr, u16)) -> Hashed {
        Hashed { src: remote.0, dst: address, ports: Some((remote.1, port)) }
    }

    #[test]
    fn what_is_said_to_lead_to_a_worker_does_for_every_port_and_nothing_else_does() {
        for (address, remote) in [("198.51.100.7", "203.0.113.9"), ("2001:db8::7", "2001:db8:ffff::1:9")] {
            let (address, remote): (IpAddr, (IpAddr, u16)) =
                (address.parse().unwrap(), (remote.parse().unwrap(), 443));
            for fields in [DST, PLAIN] {
                let spread = Spread::new(fields, &DEFAULT_KEY, (0..128).map(|n| n % 3)).unwrap();
                let affinity = Affinity::new(vec![None, Some(spread.clone())]).unwrap();
                let mut led = 0;
                for worker in 0..3 {
                    let towards = affinity.towards(1, worker, proto::UDP, remote).unwrap();
                    for port in 0..=u16::MAX {
                        let leads = towards.is_reached_by(address, port);
                        assert_eq!(leads, spread.worker_of(&reply(address, port, remote)) == worker);
                        led += usize::from(leads);
                    }
                }
                assert_eq!(led, 1 << 16, "each port leads to one worker");
            }
        }
    }

    #[test]
    fn host_affine_ports_lead_to_one_worker_whatever_the_remote() {
        let spread = Spread::new(DST, &DEFAULT_KEY, (0..64).map(|n| n % 4)).unwrap();
        let address: IpAddr = "198.51.100.7".parse().unwrap();
        for port in [1024, 40_000, 65_535] {
            let first = spread.worker_of(&reply(address, port, ("192.0.2.1".parse().unwrap(), 53)));
            for n in 0..200_u8 {
                let remote = ([203, 0, 113, n].into(), 1000 + u16::from(n));
                assert_eq!(spread.worker_of(&reply(address, port, remote)), first);
            }
        }
    }

    #[test]
    fn nothing_is_foretold_of_what_has_no_ports_of_workers_without_a_queue_and_of_unknown_ports() {
        let spread = Spread::new(DST, &DEFAULT_KEY, [0, 1]).unwrap();
        let affinity = Affinity::new(vec![Some(spread), None]).unwrap();
        let remote = ([203, 0, 113, 9].into(), 53);
        assert!(affinity.towards(0, 1, proto::TCP, remote).is_some());
        assert!(affinity.towards(0, 1, proto::ICMP, remote).is_none());
        assert!(affinity.towards(0, 2, proto::TCP, remote).is_none());
        assert!(affinity.towards(1, 0, proto::TCP, remote).is_none());
        assert!(affinity.towards(2, 0, proto::TCP, remote).is_none());
        assert!(Affinity::new(vec![None]).is_none());
        assert!(Spread::new(DST, &DEFAULT_KEY, []).is_none());
    }
}

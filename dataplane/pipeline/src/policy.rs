//! A rule program made ready for workers: immutable, shared by pointer, replaced as a whole.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use erhu_conntrack::Timeouts;
use erhu_nat::{Nat, Pools};
use erhu_planes::program::{Encapsulation, InterfaceAddress, Program, Tracking};
use erhu_route::Routes;
use erhu_rules::Rules;
use erhu_wire::ethernet::pack_mac;
use erhu_wire::ipv6;
use hashbrown::HashMap;

use crate::link::LINK_PORT;
use crate::steering::Affinity;

/// Marks a port and VLAN that belong to no interface.
pub const NO_SLOT: u16 = u16::MAX;
const TAGS: usize = 4096;
/// What an end of a link has for a MAC address; no frame carries it.
const LINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0];

/// A port as the policy needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortFacts {
    /// Name in the configuration.
    pub name: String,
    /// Its MAC address.
    pub mac: [u8; 6],
}

/// An interface of the running policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Index in the program; rules know it by this.
    pub index: u16,
    /// Stable number over reloads; connections, adjacencies and statistics know it by this.
    pub slot: u16,
    /// Port number; no port's for an end of a link.
    pub port: u16,
    /// Slot of the other end of the link that it is an end of, if it is one.
    pub peer: Option<u16>,
    /// VLAN tag, 0 for none.
    pub vlan: u16,
    /// Zone id.
    pub zone: u16,
    /// Largest IP packet.
    pub mtu: u16,
    /// Own MAC address.
    pub mac: [u8; 6],
    /// Own addresses.
    pub addresses: Vec<InterfaceAddress>,
    /// Own address on the link (RFC 4291 section 2.5.6), if there is any IPv6 address: one that is declared, else that
    /// of the MAC address.
    pub link_local: Option<Ipv6Addr>,
    /// Answers ARP for addresses that are routed elsewhere.
    pub proxy_arp: bool,
    /// Raw rules may touch its packets.
    pub has_raw: bool,
}

impl Interface {
    /// The first IPv4 address, if it has one.
    pub fn primary_v4(&self) -> Option<Ipv4Addr> {
        self.addresses.iter().find_map(|a| match a.address {
            IpAddr::V4(a) => Some(a),
            IpAddr::V6(_) => None,
        })
    }

    /// The first IPv6 address that means something beyond the link, if it has one.
    pub fn primary_v6(&self) -> Option<Ipv6Addr> {
        self.addresses.iter().find_map(|a| match a.address {
            IpAddr::V6(a) if !a.is_unicast_link_local() => Some(a),
            _ => None,
        })
    }

    /// The first address of the family that another one has.
    pub fn primary_like(&self, other: IpAddr) -> Option<IpAddr> {
        if other.is_ipv4() { self.primary_v4().map(IpAddr::V4) } else { self.primary_v6().map(IpAddr::V6) }
    }

    /// The own address to speak to a neighbour from: one whose prefix holds it, else the first of its family; to one
    /// that is known on the link alone, the link's own.
    pub fn source_like(&self, neighbour: IpAddr) -> Option<IpAddr> {
        if matches!(neighbour, IpAddr::V6(n) if n.is_unicast_link_local()) {
            return self.link_local.map(IpAddr::V6);
        }
        let near = self.addresses.iter().find(|a| self.holds(a, neighbour)).map(|a| a.address);
        near.or_else(|| self.primary_like(neighbour))
    }

    fn holds(&self, own: &InterfaceAddress, other: IpAddr) -> bool {
        erhu_planes::program::Prefix::new(own.address, own.length).is_some_and(|p| p.contains(other))
    }

    /// Whether an address is one of its own.
    pub fn owns(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.address == address)
    }

    /// Whether an address lies in one of its connected prefixes.
    pub fn reaches(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|a| self.holds(a, address))
    }
}

/// What the first look at a frame needs to know about the interface that it came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Own MAC address, packed ([`pack_mac`]). Where there is no interface it says nothing.
    pub mac: u64,
    /// Stable number of the interface, or [`NO_SLOT`] where there is none.
    pub slot: u16,
    /// Zone id.
    pub zone: u16,
}

impl Arrival {
    pub(crate) const NOWHERE: Self = Self { mac: u64::MAX, slot: NO_SLOT, zone: 0 };
}

/// Slot and zone of the interface that frames with one tag come in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    slot: u16,
    zone: u16,
}

impl Place {
    const NOWHERE: Self = Self { slot: NO_SLOT, zone: 0 };
}

/// Where frames of one port arrive. Four bytes a tag: packets of thousands of interfaces find theirs in the first-level
/// cache.
#[derive(Clone, Debug)]
pub struct Arrivals {
    places: [Place; TAGS],
    /// The interfaces' MAC address, packed, if all have the same; else one that no frame has.
    mac: u64,
    /// By tag, if they do not.
    macs: Vec<u64>,
    have_raw: bool,
}

impl Arrivals {
    /// Of a port without interfaces.
    const NONE: Self =
        Self { places: [Place::NOWHERE; TAGS], mac: Arrival::NOWHERE.mac, macs: Vec::new(), have_raw: false };

    fn set(&mut self, vlan: u16, arrival: Arrival, has_raw: bool) {
        let Arrival { mac, slot, zone } = arrival;
        let is_first = self.macs.is_empty() && self.mac == Arrival::NOWHERE.mac;
        if !is_first && self.macs.is_empty() && self.mac != mac {
            self.macs = vec![self.mac; TAGS];
        }
        if let Some(own) = self.macs.get_mut(usize::from(vlan)) {
            *own = mac;
        }
        self.mac = if self.macs.is_empty() { mac } else { Arrival::NOWHERE.mac };
        if let Some(place) = self.places.get_mut(usize::from(vlan)) {
            *place = Place { slot, zone };
        }
        self.have_raw |= has_raw;
    }

    /// The interface of a VLAN id, 0 for none.
    pub fn at(&self, vlan: u16) -> Arrival {
        if usize::from(vlan) >= TAGS {
            return Arrival { mac: self.mac, ..Arrival::NOWHERE };
        }
        let mac = self.macs.get(usize::from(vlan)).copied().unwrap_or(self.mac);
        Arrival { mac, ..self.likely_at(vlan) }
    }

    /// As [`Self::at`] for an id that fits into a tag, where the port's interfaces have the same MAC address; else with one
    /// that no frame has.
    #[inline(always)]
    pub fn likely_at(&self, vlan: u16) -> Arrival {
        let Place { slot, zone } = self.places[usize::from(vlan) % TAGS];
        Arrival { mac: self.mac, slot, zone }
    }

    /// Whether raw rules may touch packets of any of them.
    pub fn have_raw(&self) -> bool {
        self.have_raw
    }
}

fn link_local(addresses: &[InterfaceAddress], mac: [u8; 6]) -> Option<Ipv6Addr> {
    let own = || addresses.iter().filter_map(|a| if let IpAddr::V6(a) = a.address { Some(a) } else { None });
    own().find(Ipv6Addr::is_unicast_link_local).or_else(|| own().next().map(|_| ipv6::link_local(mac)))
}

/// A zone of the running policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneFacts {
    /// Zone id.
    pub id: u16,
    /// Its number in statistics.
    pub slot: u16,
    /// Connections it may have.
    pub limit: Option<u32>,
    /// Connections kept free for it.
    pub reserve: u32,
    /// New connections per second.
    pub rate: Option<u32>,
    /// TCP tracking.
    pub tracking: Tracking,
    /// Timeout policy.
    pub timeout: u16,
}

/// Stable numbers of names, over all generations. Kept by the main thread.
#[derive(Debug, Default)]
pub struct Registry {
    slots: HashMap<String, u16>,
    names: Vec<(String, u16)>,
}

impl Registry {
    /// The number of a name; the same name and `tag` always get the same one. `None` beyond `max`.
    pub fn slot(&mut self, name: &str, tag: u16, max: usize) -> Option<u16> {
        let key = format!("{name}\0{tag}");
        if let Some(slot) = self.slots.get(&key) {
            return Some(*slot);
        }
        let slot = u16::try_from(self.names.len()).ok().filter(|s| usize::from(*s) < max && *s != NO_SLOT)?;
        self.slots.insert(key, slot);
        self.names.push((name.to_owned(), tag));
        Some(slot)
    }

    /// The number of a tag, whatever its name is now; the name follows. `None` beyond `max`.
    pub fn slot_of_tag(&mut self, name: &str, tag: u16, max: usize) -> Option<u16> {
        let slot = self.slot("", tag, max)?;
        if let Some(entry) = self.names.get_mut(usize::from(slot)) {
            name.clone_into(&mut entry.0);
        }
        Some(slot)
    }

    /// Names and tags by number.
    pub fn names(&self) -> &[(String, u16)] {
        &self.names
    }
}

/// Sets a value in an array by id, which grows as needed.
fn set(by_id: &mut Vec<u16>, id: u16, value: u16) {
    if by_id.len() <= usize::from(id) {
        by_id.resize(usize::from(id) + 1, NO_SLOT);
    }
    by_id[usize::from(id)] = value;
}

/// The registries of everything that keeps its number over reloads.
#[derive(Debug, Default)]
pub struct Registries {
    /// Zones; the tag is the id.
    pub zones: Registry,
    /// Interfaces.
    pub interfaces: Registry,
    /// Named counters.
    pub counters: Registry,
}

/// Why a valid program cannot run here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The configuration has no such port.
    #[error("interface {interface}: there is no port {port} (ports: {ports})")]
    NoSuchPort {
        /// Interface.
        interface: String,
        /// Port that it names.
        port: String,
        /// Ports that there are.
        ports: String,
    },
    /// More names than there is room for, over all generations since the start.
    #[error("more than {max} {what} since the dataplane was started")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// Room.
        max: usize,
    },
}

/// A policy that workers run.
#[derive(Debug)]
pub struct Policy {
    /// Generation number, from 1.
    pub generation: u32,
    /// The program itself.
    pub program: Program,
    /// Compiled rules.
    pub rules: Rules,
    /// Compiled routes.
    pub routes: Routes,
    /// Compiled pools.
    pub pools: Pools,
    /// Compiled timeout policies.
    pub timeouts: Vec<Timeouts>,
    interfaces: Vec<Option<Interface>>,
    slot_of_index: Vec<u16>,
    arrivals: Vec<Box<Arrivals>>,
    zones: Vec<ZoneFacts>,
    /// What a zone is that nobody declared: without options, counted with `main`.
    undeclared: ZoneFacts,
    /// Positions in `zones` by id, as far as the largest; [`NO_SLOT`] for none.
    zone_at: Vec<u16>,
    /// Numbers in statistics by zone id, of all generations: connections may outlive the declaration of their zone.
    zone_slots: Vec<u16>,
    /// Stable numbers of named counters, by index in the program.
    pub counter_slots: Vec<u16>,
    /// Sum of the zones' reserves.
    pub has_reserves: bool,
    /// How ports spread packets over workers, where there are several workers and that is known.
    pub affinity: Option<Affinity>,
}

impl Policy {
    /// Compiles a validated program for these ports.
    ///
    /// # Errors
    /// [`PolicyError`] if it names a port that does not exist or there are too many names.
    pub fn build(
        program: Program,
        generation: u32,
        ports: &[PortFacts],
        registries: &mut Registries,
        nat: &Nat,
    ) -> Result<Self, PolicyError> {
        use erhu_planes::stats::{MAX_INTERFACES, MAX_NAMED, MAX_ZONES};
        let too_many = |what, max| PolicyError::TooMany { what, max };
        let rules = Rules::compile(&program);
        let mut interfaces: Vec<Option<Interface>> = Vec::new();
        let mut slot_of_index = Vec::new();
        let mut arrivals = vec![Box::new(Arrivals::NONE); ports.len()];
        for (index, i) in program.interfaces.iter().enumerate() {
            let named = || {
                let port = ports.iter().position(|p| p.name == i.port);
                port.ok_or_else(|| PolicyError::NoSuchPort {
                    interface: i.name.clone(),
                    port: i.port.clone(),
                    ports: ports.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", "),
                })
            };
            let (port, vlan) = match i.encapsulation {
                Encapsulation::Untagged => (Some(named()?), 0),
                Encapsulation::Vlan(tag) => (Some(named()?), tag),
                Encapsulation::Link(_) => (None, 0),
            };
            // An interface that becomes an end of a link is another one, whatever its name.
            let slot = registries
                .interfaces
                .slot(&i.name, port.is_none().into(), MAX_INTERFACES)
                .ok_or_else(|| too_many("interfaces", MAX_INTERFACES))?;
            let index = u16::try_from(index).map_err(|_| too_many("interfaces", MAX_INTERFACES))?;
            let has_raw = rules.raw_rules_for(index);
            let mac = i.mac.unwrap_or(port.map_or(LINK_MAC, |port| ports[port].mac));
            if let Some(port) = port {
                arrivals[port].set(vlan, Arrival { mac: pack_mac(mac), slot, zone: i.zone }, has_raw);
            }
            if interfaces.len() <= usize::from(slot) {
                interfaces.resize(usize::from(slot) + 1, None);
            }
            slot_of_index.push(slot);
            interfaces[usize::from(slot)] = Some(Interface {
                name: i.name.clone(),
                index,
                slot,
                port: port
                    .map_or(Ok(LINK_PORT), u16::try_from)
                    .map_err(|_| too_many("ports", erhu_planes::MAX_PORTS))?,
                peer: None,
                vlan,
                zone: i.zone,
                mtu: i.mtu,
                mac,
                link_local: link_local(&i.addresses, mac),
                addresses: i.addresses.clone(),
                proxy_arp: i.proxy_arp,
                has_raw,
            });
        }
        for (end, i) in slot_of_index.iter().zip(&program.interfaces) {
            if let (Encapsulation::Link(peer), Some(end)) = (i.encapsulation, &mut interfaces[usize::from(*end)]) {
                end.peer = slot_of_index.get(usize::from(peer)).copied();
            }
        }
        let mut zones = Vec::new();
        let mut zone_at = Vec::new();
        for zone in &program.zones {
            let slot = registries
                .zones
                .slot_of_tag(&zone.name, zone.id, MAX_ZONES)
                .ok_or_else(|| too_many("zones", MAX_ZONES))?;
            let at = u16::try_from(zones.len()).map_err(|_| too_many("zones", MAX_ZONES))?;
            set(&mut zone_at, zone.id, at);
            zones.push(ZoneFacts {
                id: zone.id,
                slot,
                limit: zone.limit,
                reserve: zone.reserve,
                rate: zone.rate,
                tracking: zone.tracking,
                timeout: zone.timeout,
            });
        }
        let mut zone_slots = Vec::new();
        for (slot, (_, id)) in (0_u16..).zip(registries.zones.names()) {
            set(&mut zone_slots, *id, slot);
        }
        let counters = program.counters.iter().map(|name| {
            registries.counters.slot(name, 0, MAX_NAMED).ok_or_else(|| too_many("named counters", MAX_NAMED))
        });
        let counter_slots = counters.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            generation,
            routes: Routes::build(&program),
            pools: nat.compile(&program),
            timeouts: Timeouts::compile_all(&program),
            counter_slots,
            has_reserves: zones.iter().any(|z| z.reserve > 0),
            undeclared: ZoneFacts {
                id: 0,
                slot: zones.first().map_or(0, |main| main.slot),
                limit: None,
                reserve: 0,
                rate: None,
                tracking: Tracking::Loose,
                timeout: 0,
            },
            affinity: None,
            rules,
            interfaces,
            slot_of_index,
            arrivals,
            zones,
            zone_at,
            zone_slots,
            program,
        })
    }

    /// The interface of a stable number.
    #[inline]
    pub fn interface(&self, slot: u16) -> Option<&Interface> {
        self.interfaces.get(usize::from(slot)).and_then(Option::as_ref)
    }

    /// The interface of a program index.
    pub fn interface_at(&self, index: u16) -> Option<&Interface> {
        self.slot_of_index.get(usize::from(index)).and_then(|s| self.interface(*s))
    }

    /// Where frames of a port arrive.
    #[inline]
    pub fn arrivals(&self, port: u16) -> &Arrivals {
        static NONE: Arrivals = Arrivals::NONE;
        self.arrivals.get(usize::from(port)).map_or(&NONE, |arrivals| arrivals)
    }

    /// A zone's facts; a zone that nobody declared has those of an empty declaration.
    #[inline]
    pub fn zone(&self, id: u16) -> &ZoneFacts {
        let at = self.zone_at.get(usize::from(id)).copied().unwrap_or(NO_SLOT);
        self.zones.get(usize::from(at)).unwrap_or(&self.undeclared)
    }

    /// A zone's number in statistics, declared now or once.
    pub fn zone_slot(&self, id: u16) -> u16 {
        let slot = self.zone_slots.get(usize::from(id)).copied().unwrap_or(NO_SLOT);
        if slot == NO_SLOT { self.undeclared.slot } else { slot }
    }

    /// All zones.
    pub fn zones(&self) -> &[ZoneFacts] {
        &self.zones
    }

    /// The timeouts of a zone.
    #[inline]
    pub fn timeouts_of(&self, zone: u16) -> &Timeouts {
        self.timeouts_numbered(self.zone(zone).timeout)
    }

    /// The timeouts of a policy by its number in this generation.
    #[inline]
    pub fn timeouts_numbered(&self, number: u16) -> &Timeouts {
        self.timeouts.get(usize::from(number)).unwrap_or(&self.timeouts[0])
    }

    /// Interfaces that exist.
    pub fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces.iter().flatten()
    }

    /// Declared neighbours: `(interface slot, address, MAC)`.
    pub fn static_neighbours(&self) -> impl Iterator<Item = (u16, IpAddr, [u8; 6])> {
        self.program
            .neighbours
            .iter()
            .filter_map(|n| Some((*self.slot_of_index.get(usize::from(n.interface))?, n.address, n.mac)))
    }
}

//! Where packets go: the routes of all zones in one compact table.
//!
//! # Overview
//!
//! [`Routes::build`] takes the interfaces and routes of a validated rule program and makes an immutable table:
//! declared routes with next hops resolved to interfaces, connected prefixes, own addresses, and the network and
//! broadcast addresses of connected IPv4 prefixes. [`Routes::lookup`] finds the way of a first packet; established
//! ones do not come here.
//!
//! # Structure
//!
//! Per family: the few prefixes of a small zone lie side by side, the longest first, and are compared four at a time; a
//! tenant's zone is one or two cache lines. Those of large zones are in a hash table keyed by zone, length and network,
//! which is probed for each length that occurs in the zone, from the longest. An IPv4 prefix takes 12 bytes in either
//! (small zones have a multiple of four, the hash table is half full at worst), a zone 8 more; what prefixes lead to is
//! stored once for all that lead to the same.
//!
//! # Precedence
//!
//! The longest prefix decides. Of equal prefixes an own address comes first, then what is connected, then the declared
//! routes with the lowest metric; these share packets by flow. Where two interfaces of a zone claim the same address
//! or prefix, the one declared first has it.

#![forbid(unsafe_code)]

mod build;
mod table;

use std::net::IpAddr;

use erhu_planes::program::Prefix;

use table::{Group, Table};

/// Zones that a look-up goes through after the first one before it gives up.
pub const MAX_LEAKS: usize = 8;

/// Routes that share packets; more of equal prefix and metric are not used.
pub const MAX_SHARES: usize = 255;

/// The routes of all zones. Immutable: a change of routes is a new one.
#[derive(Debug)]
pub struct Routes {
    v4: Table<u32>,
    v6: Table<u128>,
    /// What groups refer to.
    targets: Box<[Target]>,
    unresolved: Box<[u32]>,
}

/// What a look-up found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// An own address of an interface (index) of `zone`.
    Local {
        /// Id of the zone it was found in, after leaks.
        zone: u16,
        /// Index of the interface.
        interface: u16,
    },
    /// The network or broadcast address of an IPv4 prefix, of length 30 or less, connected to an interface (index).
    Broadcast {
        /// Index of the interface.
        interface: u16,
    },
    /// Out of an interface (index) to a neighbour.
    Via {
        /// Index of the interface.
        interface: u16,
        /// The neighbour: a router, or the destination itself.
        next_hop: IpAddr,
    },
    /// A blackhole route.
    Blackhole,
    /// No route, or more than [`MAX_LEAKS`] leaks.
    None,
}

/// The way of IPv4 packets to a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way4 {
    /// Index of the interface that they leave by.
    pub interface: u16,
    /// The neighbour, in host order: a router, or the destination itself.
    pub next_hop: u32,
}

/// Where one entry of the table leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Own address of an interface (index).
    Local(u16),
    /// Network or broadcast address of a prefix connected to an interface (index).
    Broadcast(u16),
    /// Prefix connected to an interface (index); destinations are neighbours.
    Connected(u16),
    /// Declared as directly behind an interface (index); destinations are neighbours.
    Interface(u16),
    /// By a router.
    Via {
        /// Index of the interface that the router is behind.
        interface: u16,
        /// The router.
        next_hop: IpAddr,
    },
    /// Look up again in another zone (id).
    Zone(u16),
    /// Nowhere.
    Blackhole,
}

/// One entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'r> {
    /// Id of the zone.
    pub zone: u16,
    /// Destination.
    pub prefix: Prefix,
    /// Where to; several share packets by flow.
    pub targets: &'r [Target],
}

impl Routes {
    /// The way to `dst` from `zone` (id).
    ///
    /// `flow` spreads flows over equal routes: any number that is the same for all packets of a flow and whose high
    /// bits are even over flows. An unknown zone has no routes.
    #[inline]
    pub fn lookup(&self, zone: u16, dst: IpAddr, flow: u32) -> Found {
        self.lookup_all(zone, dst, flow).0
    }

    /// As [`Routes::lookup`]; also whether every flow takes this way.
    pub fn lookup_all(&self, mut zone: u16, dst: IpAddr, flow: u32) -> (Found, bool) {
        let mut every = true;
        for _ in 0..=MAX_LEAKS {
            let group = match dst {
                IpAddr::V4(dst) => self.v4.find(zone, dst.into(), Some),
                IpAddr::V6(dst) => self.v6.find(zone, dst.into(), Some),
            };
            every &= group.is_none_or(|group| group.range().len() == 1);
            let found = match group.and_then(|group| self.share(group, flow)) {
                Some(Target::Local(interface)) => Found::Local { zone, interface },
                Some(Target::Broadcast(interface)) => Found::Broadcast { interface },
                Some(Target::Connected(interface) | Target::Interface(interface)) => {
                    Found::Via { interface, next_hop: dst }
                }
                Some(Target::Via { interface, next_hop }) => Found::Via { interface, next_hop },
                Some(Target::Blackhole) => Found::Blackhole,
                Some(Target::Zone(next)) => {
                    zone = next;
                    continue;
                }
                None => Found::None,
            };
            return (found, every);
        }
        (Found::None, every)
    }

    /// As [`Routes::lookup_all`] in few words, for where nearly all IPv4 packets go: to the one neighbour that the route
    /// of all flows leads to. `None` for whatever else a look-up may find.
    #[inline]
    pub fn way4(&self, mut zone: u16, dst: u32) -> Option<Way4> {
        for _ in 0..=MAX_LEAKS {
            match self.targets.get(self.v4.find(zone, dst, Some)?.only()?)? {
                Target::Zone(next) => zone = *next,
                Target::Connected(interface) | Target::Interface(interface) => {
                    return Some(Way4 { interface: *interface, next_hop: dst });
                }
                Target::Via { interface, next_hop: IpAddr::V4(next_hop) } => {
                    return Some(Way4 { interface: *interface, next_hop: u32::from(*next_hop) });
                }
                _ => return None,
            }
        }
        None
    }

    /// Whether an address is an own one of an interface of the zone (id). Leaks are not followed.
    pub fn is_local(&self, zone: u16, address: IpAddr) -> bool {
        let group = match address {
            IpAddr::V4(address) => self.v4.exact(zone, address.into()),
            IpAddr::V6(address) => self.v6.exact(zone, address.into()),
        };
        group.is_some_and(|group| matches!(self.targets(group), [Target::Local(_)]))
    }

    /// The interface (index) of the zone (id) whose connected prefix an address lies in, the longest one counting.
    /// Declared routes and leaks do not; the network and broadcast addresses of a prefix do lie in it.
    pub fn connected(&self, zone: u16, address: IpAddr) -> Option<u16> {
        let interface = |group| match self.targets(group) {
            [Target::Connected(interface)] => Some(*interface),
            _ => None,
        };
        match address {
            IpAddr::V4(address) => self.v4.find(zone, address.into(), interface),
            IpAddr::V6(address) => self.v6.find(zone, address.into(), interface),
        }
    }

    /// All entries, in no order, each prefix of a zone once: what does not win is not in the table.
    pub fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        let all = self.v4.iter().chain(self.v6.iter());
        all.map(|(zone, prefix, group)| Entry { zone, prefix, targets: self.targets(group) })
    }

    /// Positions in [`erhu_planes::program::Program::routes`] of routes whose next hop lies behind no interface; they
    /// are not in the table.
    pub fn unresolved(&self) -> &[u32] {
        &self.unresolved
    }

    /// Bytes of memory in use.
    pub fn memory(&self) -> usize {
        size_of::<Self>()
            + self.v4.memory()
            + self.v6.memory()
            + size_of_val(&*self.targets)
            + size_of_val(&*self.unresolved)
    }

    fn targets(&self, group: Group) -> &[Target] {
        self.targets.get(group.range()).unwrap_or_default()
    }

    fn share(&self, group: Group, flow: u32) -> Option<Target> {
        let targets = self.targets(group);
        // Multiply and shift: at most 255 × 2³², and the result is below the count.
        let at = (u64::from(flow) * targets.len() as u64) >> 32;
        targets.get(usize::try_from(at).ok()?).copied()
    }
}

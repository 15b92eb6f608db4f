//! Whether a program makes sense: every index, range, bound and cross reference.

use std::collections::HashSet;
use std::net::IpAddr;

use super::{
    Action, AddressRange, DestinationChoice, Dnat, Encapsulation, Hook, MatchKey, PortRange, Prefix, Program,
    RouteTarget, Rule, SourceChoice, directions, limits, states, statuses,
};
use crate::timeouts::TimeoutKey;

pub(super) struct Validator<'p> {
    pub(super) program: &'p Program,
}

pub(super) type Fault = Result<(), String>;

fn within(what: &str, found: usize, most: usize) -> Fault {
    if found > most { Err(format!("{found} {what}, at most {most} are possible")) } else { Ok(()) }
}

fn name(what: &str, text: &str, seen: &mut HashSet<String>) -> Fault {
    if text.is_empty() || text.len() > limits::NAME || text.chars().any(char::is_control) {
        return Err(format!("{what} name {text:?} is empty, too long or not printable"));
    }
    if seen.insert(text.to_owned()) { Ok(()) } else { Err(format!("two {what}s are named {text:?}")) }
}

impl Validator<'_> {
    pub(super) fn run(&self) -> Fault {
        let p = self.program;
        within("sources", p.sources.len(), 4096)?;
        self.zones()?;
        self.interfaces()?;
        self.routes()?;
        self.pools()?;
        self.timeouts()?;
        within("named counters", p.counters.len(), limits::NAMED)?;
        let mut seen = HashSet::new();
        p.counters.iter().try_for_each(|c| name("counter", c, &mut seen))?;
        self.rules()
    }

    fn zone_ids(&self) -> HashSet<u16> {
        self.program.zones.iter().map(|z| z.id).collect()
    }

    fn zones(&self) -> Fault {
        let p = self.program;
        within("zones", p.zones.len(), limits::ZONES)?;
        if p.zones.first().is_none_or(|z| z.id != 0) {
            return Err("the first zone is not main".into());
        }
        let (mut names, mut ids) = (HashSet::new(), HashSet::new());
        for zone in &p.zones {
            name("zone", &zone.name, &mut names)?;
            if !ids.insert(zone.id) {
                return Err(format!("two zones have id {}", zone.id));
            }
            if usize::from(zone.timeout) >= p.timeouts.len() {
                return Err(format!("zone {}: timeout policy {} does not exist", zone.name, zone.timeout));
            }
        }
        Ok(())
    }

    fn interfaces(&self) -> Fault {
        let p = self.program;
        within("interfaces", p.interfaces.len(), limits::INTERFACES)?;
        let zones = self.zone_ids();
        let (mut names, mut places) = (HashSet::new(), HashSet::new());
        for (index, i) in p.interfaces.iter().enumerate() {
            name("interface", &i.name, &mut names)?;
            if let Encapsulation::Link(peer) = i.encapsulation {
                let other = p.interfaces.get(usize::from(peer)).map(|other| other.encapsulation);
                let is_mutual = matches!(other, Some(Encapsulation::Link(back)) if usize::from(back) == index);
                if !is_mutual || usize::from(peer) == index || !i.port.is_empty() {
                    return Err(format!("interface {}: not one end of a link of two", i.name));
                }
            } else if i.port.is_empty() || i.port.len() > limits::NAME {
                return Err(format!("interface {}: bad port name", i.name));
            }
            if !places.insert((&i.port, i.encapsulation)) {
                return Err(format!("interface {}: another one has the same port and VLAN", i.name));
            }
            if let Encapsulation::Vlan(tag) = i.encapsulation
                && !(1..=4094).contains(&tag)
            {
                return Err(format!("interface {}: VLAN {tag} is not in 1 to 4094", i.name));
            }
            if !zones.contains(&i.zone) {
                return Err(format!("interface {}: zone {} does not exist", i.name, i.zone));
            }
            if !(576..=9216).contains(&i.mtu) {
                return Err(format!("interface {}: mtu {} is not in 576 to 9216", i.name, i.mtu));
            }
            if let Some(mac) = i.mac
                && (mac[0] & 1 != 0 || mac == [0; 6])
            {
                return Err(format!("interface {}: the MAC address is multicast or zero", i.name));
            }
            within("addresses on one interface", i.addresses.len(), limits::ADDRESSES)?;
            for a in &i.addresses {
                if Prefix::new(a.address, a.length).is_none() || !is_host(a.address) {
                    return Err(format!("interface {}: {}/{} is no host address", i.name, a.address, a.length));
                }
            }
        }
        within("neighbours", p.neighbours.len(), limits::NEIGHBOURS)?;
        for n in &p.neighbours {
            if usize::from(n.interface) >= p.interfaces.len() {
                return Err(format!("neighbour {}: interface {} does not exist", n.address, n.interface));
            }
            if matches!(p.interfaces[usize::from(n.interface)].encapsulation, Encapsulation::Link(_)) {
                return Err(format!("neighbour {}: a link has none", n.address));
            }
            if !is_host(n.address) || n.mac[0] & 1 != 0 || n.mac == [0; 6] {
                return Err(format!("neighbour {}: not a host's address or MAC", n.address));
            }
        }
        Ok(())
    }

    fn routes(&self) -> Fault {
        let p = self.program;
        within("routes", p.routes.len(), limits::ROUTES)?;
        let zones = self.zone_ids();
        for r in &p.routes {
            let at = format!("route {}/{} of zone {}", r.prefix.network, r.prefix.length, r.zone);
            if Prefix::new(r.prefix.network, r.prefix.length) != Some(r.prefix) {
                return Err(format!("{at}: not a prefix"));
            }
            if !zones.contains(&r.zone) {
                return Err(format!("{at}: the zone does not exist"));
            }
            match &r.target {
                RouteTarget::Via(hop) if hop.is_ipv4() != r.prefix.network.is_ipv4() || !is_host(*hop) => {
                    return Err(format!("{at}: {hop} is no next hop for it"));
                }
                RouteTarget::Interface(i) if usize::from(*i) >= p.interfaces.len() => {
                    return Err(format!("{at}: interface {i} does not exist"));
                }
                RouteTarget::Zone(z) if !zones.contains(z) || *z == r.zone => {
                    return Err(format!("{at}: zone {z} does not exist or is its own"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn pools(&self) -> Fault {
        let p = self.program;
        within("pools", p.pools.len(), limits::POOLS)?;
        let zones = self.zone_ids();
        let mut names = HashSet::new();
        for pool in &p.pools {
            name("pool", &pool.name, &mut names)?;
            ranges(&pool.addresses).map_err(|e| format!("pool {}: {e}", pool.name))?;
            let count = pool.addresses.iter().map(AddressRange::count).fold(0, u64::saturating_add);
            if count == 0 || count > limits::POOL_ADDRESSES {
                return Err(format!(
                    "pool {}: {count} addresses, 1 to {} are possible",
                    pool.name,
                    limits::POOL_ADDRESSES
                ));
            }
            if pool.ports.first > pool.ports.last || pool.ports.first == 0 {
                return Err(format!("pool {}: bad port range", pool.name));
            }
            if !zones.contains(&pool.zone) {
                return Err(format!("pool {}: zone {} does not exist", pool.name, pool.zone));
            }
            if pool.reuse_delay_ms > limits::TIMEOUT_MS {
                return Err(format!("pool {}: reuse delay too long", pool.name));
            }
        }
        Ok(())
    }

    fn timeouts(&self) -> Fault {
        let p = self.program;
        within("timeout policies", p.timeouts.len(), limits::TIMEOUTS)?;
        if p.timeouts.is_empty() {
            return Err("there is no default timeout policy".into());
        }
        let mut names = HashSet::new();
        for t in &p.timeouts {
            name("timeout policy", &t.name, &mut names)?;
            within("values in one timeout policy", t.values.len(), TimeoutKey::COUNT)?;
            if let Some((key, ms)) = t.values.iter().find(|(_, ms)| *ms == 0 || *ms > limits::TIMEOUT_MS) {
                return Err(format!("timeout policy {}: {} of {ms} ms is out of range", t.name, key.name()));
            }
        }
        Ok(())
    }

    fn rules(&self) -> Fault {
        let p = self.program;
        within("chains", p.chains.len(), limits::CHAINS)?;
        if p.hooks.len() != Hook::COUNT {
            return Err(format!("{} hooks instead of {}", p.hooks.len(), Hook::COUNT));
        }
        let mut names = HashSet::new();
        p.chains.iter().try_for_each(|c| name("chain", &c.name, &mut names))?;
        let total = p.hooks.iter().map(|h| h.rules.len()).chain(p.chains.iter().map(|c| c.rules.len())).sum();
        within("rules", total, limits::RULES)?;
        let zones = self.zone_ids();
        for hook in &p.hooks {
            within("zone policies", hook.zone_policies.len(), limits::ZONES)?;
            if hook.zone_policies.iter().any(|(z, _)| !zones.contains(z)) {
                return Err("a policy is for a zone that does not exist".into());
            }
        }
        let all = p.hooks.iter().flat_map(|h| &h.rules).chain(p.chains.iter().flat_map(|c| &c.rules));
        for rule in all {
            self.rule(rule).map_err(|e| format!("rule at {}: {e}", p.place(rule.at)))?;
        }
        self.jumps()
    }

    fn rule(&self, rule: &Rule) -> Fault {
        let p = self.program;
        within("matches", rule.matches.len(), limits::PER_RULE)?;
        within("actions", rule.actions.len(), limits::PER_RULE)?;
        for m in &rule.matches {
            let values = match &m.key {
                MatchKey::Ingress(v) | MatchKey::Egress(v) => {
                    if v.iter().any(|i| usize::from(*i) >= p.interfaces.len()) {
                        return Err("an interface does not exist".into());
                    }
                    v.len()
                }
                MatchKey::Zone(v) | MatchKey::EgressZone(v) => v.len(),
                MatchKey::Source(v) | MatchKey::Destination(v) => {
                    ranges(v)?;
                    v.len()
                }
                MatchKey::Protocol(v) => v.len(),
                MatchKey::SourcePort(v) | MatchKey::DestinationPort(v) => {
                    port_ranges(v, u16::MAX)?;
                    v.len()
                }
                MatchKey::IcmpType(v) | MatchKey::IcmpCode(v) => {
                    port_ranges(v, 255)?;
                    v.len()
                }
                MatchKey::State(bits) => usize::from(*bits != 0 && bits & !states::ALL == 0),
                MatchKey::Status(bits) => usize::from(*bits != 0 && bits & !statuses::ALL == 0),
                MatchKey::Direction(bits) => usize::from(*bits != 0 && bits & !directions::ALL == 0),
                MatchKey::Mark(v) => v.len(),
            };
            if values == 0 || values > limits::VALUES {
                return Err(format!("a match has {values} values"));
            }
        }
        for action in &rule.actions {
            match action {
                Action::Jump(c) | Action::GoTo(c) if usize::from(*c) >= p.chains.len() => {
                    return Err(format!("chain {c} does not exist"));
                }
                Action::Count(c) if usize::from(*c) >= p.counters.len() => {
                    return Err(format!("counter {c} does not exist"));
                }
                Action::Snat(snat) => {
                    match &snat.source {
                        SourceChoice::Pool(pool) if usize::from(*pool) >= p.pools.len() => {
                            return Err(format!("pool {pool} does not exist"));
                        }
                        SourceChoice::Pool(_) => {}
                        SourceChoice::To(v) => {
                            ranges(v)?;
                            let count = v.iter().map(AddressRange::count).fold(0, u64::saturating_add);
                            if count == 0 || count > limits::POOL_ADDRESSES {
                                return Err(format!("snat to {count} addresses"));
                            }
                        }
                    }
                    port_ranges(snat.ports.as_slice(), u16::MAX)?;
                }
                Action::Masquerade { ports, .. } => port_ranges(ports.as_slice(), u16::MAX)?,
                Action::Dnat(dnat) => self.dnat(dnat)?,
                Action::Netmap(prefix) if Prefix::new(prefix.network, prefix.length) != Some(*prefix) => {
                    return Err(format!("netmap to {}/{}, which is no prefix", prefix.network, prefix.length));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn dnat(&self, dnat: &Dnat) -> Fault {
        if let DestinationChoice::To(to) = &dnat.destination {
            ranges(to)?;
            let count = to.iter().map(AddressRange::count).fold(0, u64::saturating_add);
            if count == 0 || count > limits::POOL_ADDRESSES {
                return Err(format!("dnat to {count} addresses"));
            }
        }
        if dnat.ports.is_some_and(|r| r.first == 0) {
            return Err("dnat to port 0".into());
        }
        port_ranges(dnat.ports.as_slice(), u16::MAX)?;
        match dnat.zone {
            Some(zone) if self.program.zone(zone).is_none() => Err(format!("dnat: zone {zone} does not exist")),
            _ => Ok(()),
        }
    }

    /// Follows jumps: what a chain may do is what each hook that reaches it may; no loops, bounded depth.
    fn jumps(&self) -> Fault {
        let p = self.program;
        for hook in Hook::ALL {
            let mut done = vec![false; p.chains.len()];
            let mut path = Vec::new();
            self.follow(hook, &p.hooks[hook.index()].rules, &mut path, &mut done)?;
        }
        // Chains that no hook reaches must be free of loops too.
        let mut known = vec![None; p.chains.len()];
        for chain in 0..p.chains.len() {
            self.extent(chain, &mut known, &mut Vec::new())?;
        }
        for hook in Hook::ALL {
            let extent = self.list_extent(&p.hooks[hook.index()].rules, &mut known, &mut Vec::new())?;
            if extent.depth > limits::JUMPS {
                return Err(format!("jumps are nested deeper than {}", limits::JUMPS));
            }
            if extent.rules > limits::WALK {
                return Err(format!("a walk through {} could come by more than {} rules", hook.name(), limits::WALK));
            }
        }
        Ok(())
    }

    fn follow(&self, hook: Hook, rules: &[Rule], path: &mut Vec<usize>, done: &mut [bool]) -> Fault {
        for rule in rules {
            for action in &rule.actions {
                if !action.allowed_in(hook) {
                    return Err(format!("rule at {}: not possible in {}", self.program.place(rule.at), hook.name()));
                }
                if let Action::Jump(c) | Action::GoTo(c) = action {
                    let chain = usize::from(*c);
                    if path.contains(&chain) || path.len() > limits::JUMPS {
                        return Err(format!("chain {} leads back to itself", self.program.chains[chain].name));
                    }
                    if !done[chain] {
                        path.push(chain);
                        self.follow(hook, &self.program.chains[chain].rules, path, done)?;
                        path.pop();
                        done[chain] = true;
                    }
                }
            }
        }
        Ok(())
    }

    fn extent(&self, chain: usize, known: &mut [Option<Extent>], path: &mut Vec<usize>) -> Result<Extent, String> {
        if let Some(extent) = known[chain] {
            return Ok(extent);
        }
        if path.contains(&chain) || path.len() > limits::JUMPS {
            return Err(format!("chain {} leads back to itself or too deep", self.program.chains[chain].name));
        }
        path.push(chain);
        let extent = self.list_extent(&self.program.chains[chain].rules, known, path)?;
        path.pop();
        let extent = Extent { depth: extent.depth + 1, ..extent };
        known[chain] = Some(extent);
        Ok(extent)
    }

    fn list_extent(
        &self,
        rules: &[Rule],
        known: &mut [Option<Extent>],
        path: &mut Vec<usize>,
    ) -> Result<Extent, String> {
        let mut all = Extent { depth: 0, rules: rules.len() as u64 };
        for action in rules.iter().flat_map(|r| &r.actions) {
            if let Action::Jump(c) | Action::GoTo(c) = action {
                let one = self.extent(usize::from(*c), known, path)?;
                all.depth = all.depth.max(one.depth);
                all.rules = all.rules.saturating_add(one.rules);
            }
        }
        Ok(all)
    }
}

/// How far a walk through a list of rules can lead.
#[derive(Clone, Copy)]
struct Extent {
    /// Nested jumps.
    depth: usize,
    /// Rules that it can come by.
    rules: u64,
}

fn is_host(address: IpAddr) -> bool {
    let reserved = match address {
        IpAddr::V4(a) => a.is_broadcast() || a.octets()[0] == 0 || a.octets()[0] >= 240,
        IpAddr::V6(a) => a.is_loopback() || a.to_ipv4_mapped().is_some(),
    };
    !address.is_unspecified() && !address.is_multicast() && !reserved
}

fn ranges(of: &[AddressRange]) -> Fault {
    for r in of {
        let ordered = match (r.first, r.last) {
            (IpAddr::V4(a), IpAddr::V4(b)) => a <= b,
            (IpAddr::V6(a), IpAddr::V6(b)) => a <= b,
            _ => false,
        };
        if !ordered {
            return Err(format!("{}-{} is no address range", r.first, r.last));
        }
    }
    Ok(())
}

fn port_ranges(of: &[PortRange], most: u16) -> Fault {
    match of.iter().find(|r| r.first > r.last || r.last > most) {
        Some(r) => Err(format!("{}-{} is no range up to {most}", r.first, r.last)),
        None => Ok(()),
    }
}

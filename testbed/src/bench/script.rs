//! Rule scripts of the benchmarks: a router as small or as large as a workload wants it.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use super::flows::{GATEWAY_MAC, INSIDE_MAC, VLAN};
use super::flows6::Family;

/// The first pool's first address, 198.51.0.1, or what is there of an IPv6 one.
const POOL: u32 = 0xc633_0001;
/// Most tenants: VLANs of a port.
pub const TENANTS: u32 = 4094;

/// How a pool maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// One external port for an inside end, whatever the remote.
    EndpointIndependent,
    /// As the kernel does.
    AddressPortDependent,
}

impl Mapping {
    /// As scripts have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EndpointIndependent => "endpoint_independent",
            Self::AddressPortDependent => "address_port_dependent",
        }
    }
}

/// What a router is configured to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What the tenants' and the outer interfaces, their routes and the pools are of. Further interfaces, routes and rules
    /// are of IPv4.
    pub family: Family,
    /// Tenants, each a zone and an interface with a VLAN of its own. One has VLAN 100, many have 1 to their number.
    pub tenants: u32,
    /// Zones without an interface besides.
    pub further_zones: u32,
    /// Interfaces of `main` without traffic besides, on VLANs of the outer port.
    pub further_interfaces: u32,
    /// Forward rules, the translating ones not counted.
    pub rules: u32,
    /// Raw rules on the tenants' interfaces.
    pub raw_rules: u32,
    /// Routes in all.
    pub routes: u32,
    /// Pools; tenants take turns.
    pub pools: u32,
    /// Addresses of each pool.
    pub addresses: u32,
    /// How pools map.
    pub mapping: Mapping,
    /// Whether they keep ports where they can.
    pub preserve_port: bool,
    /// Connections that a tenant may have.
    pub limit: u32,
    /// Flows from this number on are all the first tenant's, the others' are spread over the others. None by default.
    pub crowd_from: u32,
    /// What postrouting does: `snat` to the pool, unless a test wants otherwise.
    pub postrouting: Option<&'static str>,
}

/// Addresses of a family, as scripts have them.
struct Side {
    wan: &'static str,
    wan_hop: &'static str,
    lan: &'static str,
    lan_hop: &'static str,
    /// Where the inside hosts are.
    hosts: &'static str,
    all: &'static str,
}

const SIDE_V4: Side = Side {
    wan: "198.51.255.254/16",
    wan_hop: "198.51.255.1",
    lan: "10.255.255.1/24",
    lan_hop: "10.255.255.2",
    hosts: "10.0.0.0/16",
    all: "0.0.0.0/0",
};

const SIDE_V6: Side = Side {
    wan: "2001:db8::ffff/64",
    wan_hop: "2001:db8::1",
    lan: "fd00:ff::1/64",
    lan_hop: "fd00:ff::2",
    hosts: "fd00::/64",
    all: "::/0",
};

impl Policy {
    /// One tenant, one pool of 64 addresses, ten rules.
    pub const fn small() -> Self {
        Self {
            family: Family::V4,
            tenants: 1,
            further_zones: 0,
            further_interfaces: 0,
            rules: 9,
            raw_rules: 0,
            routes: 3,
            pools: 1,
            addresses: 64,
            mapping: Mapping::EndpointIndependent,
            preserve_port: true,
            limit: 1 << 24,
            crowd_from: u32::MAX,
            postrouting: None,
        }
    }

    /// 4096 zones and interfaces, 10 000 rules, 100 000 routes, 256 pools.
    pub const fn grown() -> Self {
        Self {
            tenants: TENANTS,
            further_zones: 1,
            further_interfaces: 1,
            rules: 10_000,
            routes: 100_000,
            pools: 256,
            addresses: 4,
            ..Self::small()
        }
    }

    /// VLAN of a flow's tenant.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "at most 4094")]
    pub const fn vlan(&self, flow: u32) -> u16 {
        if self.tenants == 1 {
            VLAN
        } else if self.crowd_from == u32::MAX {
            (1 + flow % self.tenants) as u16
        } else if flow >= self.crowd_from {
            1
        } else {
            (2 + flow % (self.tenants - 1)) as u16
        }
    }

    /// Addresses of all pools, see [`Family::pool`].
    pub fn pool(&self) -> RangeInclusive<u32> {
        POOL..=POOL + self.pools * self.addresses - 1
    }

    /// The script.
    pub fn script(&self) -> String {
        let mut script = String::with_capacity(1 << 16);
        // Into a String: cannot fail.
        let _ = self.write(&mut script);
        script
    }

    fn write(&self, s: &mut String) -> std::fmt::Result {
        let mac = |m: [u8; 6]| m.map(|b| format!("{b:02x}")).join(":");
        let (inside, gateway) = (mac(INSIDE_MAC), mac(GATEWAY_MAC));
        for number in 0..self.pools {
            let first = POOL + number * self.addresses;
            let [first, last] = [first, first + self.addresses - 1].map(|address| self.family.pool(address));
            writeln!(
                s,
                r#"pool("public{number}", #{{ addresses: "{first}-{last}", mapping: "{}", preserve_port: {} }});"#,
                self.mapping.name(),
                self.preserve_port,
            )?;
        }
        let Side { wan, wan_hop, lan, lan_hop, hosts, all } = match self.family {
            Family::V4 => SIDE_V4,
            Family::V6 => SIDE_V6,
        };
        writeln!(
            s,
            r#"interface("wan", #{{ port: "wan", address: ["{wan}"] }});
neighbour("wan", "{wan_hop}", "{gateway}");
route("main", "{all}", #{{ via: "{wan_hop}" }});
fn tenant(id, vlan, pool) {{
    let name = `tenant${{id}}`;
    let lan = `lan${{id}}`;
    zone(name, #{{ id: id, limit: {} }});
    interface(lan, #{{ port: "lan", vlan: vlan, zone: name, address: ["{lan}"] }});
    neighbour(lan, "{lan_hop}", "{inside}");
    route(name, "{hosts}", #{{ via: "{lan_hop}" }});
    route(name, "{all}", #{{ zone: "main" }});
    postrouting(#{{ zone: name, egress: "wan" }}, {});
}}"#,
            self.limit,
            self.postrouting.unwrap_or("snat(#{ pool: `public${pool}` })"),
        )?;
        if self.tenants == 1 {
            writeln!(s, "tenant(1, {VLAN}, 0);")?;
        } else {
            writeln!(s, "for id in 1..={} {{ tenant(id, id, id % {}); }}", self.tenants, self.pools)?;
        }
        for number in 0..self.further_zones {
            writeln!(s, r#"zone("further{number}", #{{ id: {} }});"#, self.tenants + 1 + number)?;
        }
        for number in 0..self.further_interfaces {
            let (tag, net) = (1 + number, Ipv4Addr::from(0x0a80_0001 + number * 256));
            writeln!(s, r#"interface("further{number}", #{{ port: "wan", vlan: {tag}, address: ["{net}/24"] }});"#)?;
        }
        self.write_routes(s)?;
        self.write_rules(s)
    }

    /// Routes of every tenant in turn to networks that no packet goes to.
    fn write_routes(&self, s: &mut String) -> std::fmt::Result {
        let further = self.routes.saturating_sub(1 + 2 * self.tenants);
        if further == 0 {
            return Ok(());
        }
        writeln!(
            s,
            r#"for n in 0..{further} {{
    let round = n / {tenants};
    route(`tenant${{1 + n % {tenants}}}`, `${{20 + round % 100}}.${{round / 100}}.0.0/16`, #{{ zone: "main" }});
}}"#,
            tenants = self.tenants,
        )
    }

    fn write_rules(&self, s: &mut String) -> std::fmt::Result {
        if self.raw_rules > 0 {
            // Of an address that never sends, to many ports: none matches.
            writeln!(
                s,
                r#"for n in 0..{} {{ raw(#{{ src: "10.9.9.9", proto: "udp", dport: 1000 + n }}, drop); }}"#,
                self.raw_rules
            )?;
        }
        let first = [
            r#"forward(#{ state: ["established", "related"] }, accept);"#,
            r#"forward(#{ state: "invalid" }, drop);"#,
            r#"forward(#{ ingress: "wan", state: "new" }, drop);"#,
            r#"forward(#{ proto: "tcp", dport: 25 }, reject);"#,
            r#"forward(#{ proto: "udp", dport: 137 }, drop);"#,
            r#"forward(#{ proto: "udp", dport: 1900 }, drop);"#,
            r#"forward(#{ dst: "192.168.0.0/16" }, reject);"#,
            r#"forward(#{ dst: "172.16.0.0/12" }, reject);"#,
            r#"forward(#{ src: "10.1.0.0/16", proto: "tcp", dport: 22 }, drop);"#,
        ];
        first.iter().try_for_each(|rule| writeln!(s, "{rule}"))?;
        let further = self.rules.saturating_sub(9);
        if further == 0 {
            return Ok(());
        }
        // Each fits a packet of the benchmarks in something and in nothing as a whole: the protocol and port, the
        // remote network, the inside host.
        writeln!(
            s,
            r#"for n in 0..{further} {{
    let high = n / 256 % 256;
    let low = n % 256;
    switch n % 3 {{
        0 => forward(#{{ dst: `203.0.${{high}}.${{low}}`, proto: "udp", dport: 53 }}, drop),
        1 => forward(#{{ dst: `198.18.${{high}}.0/24`, proto: "tcp", dport: 1024 + n }}, drop),
        _ => forward(#{{ src: `10.0.${{high}}.${{low}}`, proto: "udp", dport: 1024 + n }}, drop),
    }}
}}"#
        )
    }
}

#[cfg(test)]
mod tests {
    use erhu_controlplane::{Facts, check_script};

    use super::*;

    fn program(policy: &Policy) -> erhu_planes::program::Program {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bench.rhai");
        std::fs::write(&path, policy.script()).unwrap();
        let facts = Facts { ports: Some(vec!["lan".into(), "wan".into()]), capacity: Some(1 << 20) };
        check_script(&path, &facts).unwrap_or_else(|errors| panic!("{errors:?}\n{}", policy.script())).program
    }

    #[test]
    fn the_small_policy_has_ten_rules() {
        let program = program(&Policy::small());
        let rules: usize = program.hooks.iter().map(|h| h.rules.len()).sum();
        assert_eq!((rules, program.zones.len(), program.interfaces.len(), program.routes.len()), (10, 2, 2, 3));
    }

    #[test]
    fn the_small_policy_is_of_either_family() {
        let program = program(&Policy { family: Family::V6, ..Policy::small() });
        let rules: usize = program.hooks.iter().map(|h| h.rules.len()).sum();
        assert_eq!((rules, program.zones.len(), program.interfaces.len(), program.routes.len()), (10, 2, 2, 3));
        let pool = &program.pools[0].addresses[0];
        assert_eq!((pool.first, pool.last), (Family::V6.pool(POOL), Family::V6.pool(POOL + 63)));
    }

    #[test]
    fn a_grown_policy_has_as_much_of_everything_as_it_says() {
        let policy = Policy { tenants: 20, rules: 100, routes: 300, pools: 7, raw_rules: 12, ..Policy::grown() };
        let program = program(&policy);
        let rules = |hook: erhu_planes::program::Hook| program.hooks[hook.index()].rules.len();
        use erhu_planes::program::Hook;
        assert_eq!((rules(Hook::Forward), rules(Hook::Raw), rules(Hook::Postrouting)), (100, 12, 20));
        assert_eq!((program.zones.len(), program.interfaces.len()), (22, 22));
        assert_eq!((program.routes.len(), program.pools.len()), (300, 7));
        assert_eq!(policy.pool().count(), 28);
        assert_eq!((policy.vlan(0), policy.vlan(19), policy.vlan(20)), (1, 20, 1));
    }
}

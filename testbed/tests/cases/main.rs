//! Behaviour cases, one test each, through replay.
//!
//! Every test's comment begins with the ids of the cases it stands for; `testbed/CASES.md` lists them all, and
//! `the_list_of_cases_is_true` keeps that list so.
//!
//! Three topologies serve most of them:
//!
//! ```text
//! plain:  10.1.1.0/24 --- lan [router] wan --- 10.2.2.0/24          zone main on both sides, nothing translated
//! nat:    10.0.0.0/24 --- lan [router] wan --- 198.51.100.0/24      zone inside (1); leaves as 198.51.100.10
//! blue:   10.0.0.0/24 --- lan.100 [router] wan --- 198.51.100.0/24  zone 1; leaves as 198.51.100.10
//! green:  10.0.0.0/24 --- lan.200 [router]                          zone 2; leaves as 198.51.100.20
//! ```

mod dnat;
mod dnat6;
mod expiry;
mod hairpin;
mod icmp;
mod ipv6;
mod kernel;
mod limits;
mod link;
mod list;
mod nat44;
mod ovs;
mod reload;
mod sides;
mod tcp;
mod tools;
mod usual;
mod zones;

use erhu_testbed::packet::{arp_request, tcp};
use erhu_testbed::scenario::{Scenario, Side};

const LAN: Side = Side::untagged("lan");
const WAN: Side = Side::untagged("wan");
const BLUE: Side = Side::vlan("lan", 100);
const GREEN: Side = Side::vlan("lan", 200);

/// The customary firewall.
const FIREWALL: &str = r#"
    forward(#{ state: ["established", "related"] }, accept);
    forward(#{ state: "invalid" }, drop);
    forward(#{ ingress: "wan", state: "new" }, drop);
"#;

/// Both sides in `main`, all forwarded, with further rules.
fn plain_script(rules: &str) -> String {
    format!(
        r#"
        interface("lan", #{{ port: "lan", address: ["10.1.1.254/24"] }});
        interface("wan", #{{ port: "wan", address: ["10.2.2.254/24"] }});
        {rules}
        "#
    )
}

fn plain(rules: &str) -> Scenario {
    Scenario::of(&plain_script(rules))
}

/// A tenant behind the pool `public`, whose keys are given, with further declarations and rules.
fn nat_script(pool: &str, rules: &str) -> String {
    format!(
        r#"
        zone("inside", #{{ id: 1 }});
        interface("lan", #{{ port: "lan", zone: "inside", address: ["10.0.0.1/24"] }});
        interface("wan", #{{ port: "wan", address: ["198.51.100.2/24"] }});
        pool("public", #{{ {pool} }});
        route("inside", "0.0.0.0/0", #{{ zone: "main" }});
        route("main", "0.0.0.0/0", #{{ via: "198.51.100.1" }});
        {rules}
        postrouting(#{{ zone: "inside", egress: "wan" }}, snat(#{{ pool: "public" }}));
        {FIREWALL}
        "#
    )
}

fn nat() -> Scenario {
    Scenario::of(&nat_script(r#"addresses: "198.51.100.10""#, ""))
}

fn nat_with(pool: &str) -> Scenario {
    Scenario::of(&nat_script(pool, ""))
}

/// Two tenants with the same network, each with keys of its own for its zone; and further rules, before the firewall.
fn tenants_script(blue: &str, green: &str, rules: &str) -> String {
    format!(
        r#"
        zone("blue",  #{{ id: 1, {blue} }});
        zone("green", #{{ id: 2, {green} }});
        interface("lan.100", #{{ port: "lan", vlan: 100, zone: "blue",  address: ["10.0.0.1/24"] }});
        interface("lan.200", #{{ port: "lan", vlan: 200, zone: "green", address: ["10.0.0.1/24"] }});
        interface("wan",     #{{ port: "wan", address: ["198.51.100.2/24"] }});
        pool("blue-public",  #{{ addresses: "198.51.100.10" }});
        pool("green-public", #{{ addresses: "198.51.100.20" }});
        for tenant in ["blue", "green"] {{
            route(tenant, "0.0.0.0/0", #{{ zone: "main" }});
            postrouting(#{{ zone: tenant, egress: "wan" }}, snat(#{{ pool: `${{tenant}}-public` }}));
        }}
        route("main", "0.0.0.0/0", #{{ via: "198.51.100.1" }});
        {rules}
        {FIREWALL}
        "#
    )
}

fn tenants() -> Scenario {
    Scenario::of(&tenants_script("", "", ""))
}

/// Zones with a network of their own on VLANs of both ports, nothing translated between; and zone `main` untagged.
/// `keys` go into each zone's declaration.
fn vlan_zones_script(ids: &str, keys: &str, rules: &str) -> String {
    format!(
        r#"
        for id in {ids} {{
            zone(`z${{id}}`, #{{ id: id, {keys} }});
            interface(`lan.${{id}}`, #{{ port: "lan", vlan: id, zone: `z${{id}}`, address: ["10.1.1.254/24"] }});
            interface(`wan.${{id}}`, #{{ port: "wan", vlan: id, zone: `z${{id}}`, address: ["10.2.2.254/24"] }});
        }}
        {}
        "#,
        plain_script(rules)
    )
}

fn vlan_zones(ids: &str) -> Scenario {
    Scenario::of(&vlan_zones_script(ids, "", ""))
}

/// Makes the next hop outside and the host on these sides known at time 0: more packets than may wait for an answer
/// can then be sent at once.
fn known(scenario: Scenario, inside: &[Side]) -> Scenario {
    inside
        .iter()
        .fold(scenario, |scenario, side| scenario.send(0.0, *side, arp_request("10.0.0.1", "10.0.0.5")))
        .send(0.0, WAN, arp_request("198.51.100.2", "198.51.100.1"))
}

/// A connection as its two ends see it: the client's side and end, the server's, and the client's end as the server
/// sees it.
#[derive(Clone, Copy, Debug)]
struct Talk {
    near: Side,
    client: &'static str,
    far: Side,
    server: &'static str,
    seen_as: &'static str,
}

impl Talk {
    /// Between the plain topology's networks.
    const PLAIN: Self =
        Self { near: LAN, client: "10.1.1.1:40000", far: WAN, server: "10.2.2.2:80", seen_as: "10.1.1.1:40000" };
    /// From inside, translated.
    const NAT: Self = Self {
        near: LAN,
        client: "10.0.0.5:40000",
        far: WAN,
        server: "192.0.2.1:80",
        seen_as: "198.51.100.10:40000",
    };
    /// From the tenant blue.
    const BLUE: Self = Self { near: BLUE, ..Self::NAT };

    /// A segment of the client: flags, sequence and acknowledgement number.
    fn forth(self, scenario: Scenario, at: f64, flags: &str, seq: u32, ack: u32) -> Scenario {
        scenario.send(at, self.near, tcp(self.client, self.server).flags(flags).seq(seq).ack(ack))
    }

    /// A segment of the server.
    fn back(self, scenario: Scenario, at: f64, flags: &str, seq: u32, ack: u32) -> Scenario {
        scenario.send(at, self.far, tcp(self.server, self.seen_as).flags(flags).seq(seq).ack(ack))
    }

    /// The handshake, within 20 ms: the client's next sequence number is 101, the server's 901.
    fn open(self, scenario: Scenario, at: f64) -> Scenario {
        let scenario = self.forth(scenario, at, "S", 100, 0);
        let scenario = self.back(scenario, at + 0.01, "SA", 900, 101);
        self.forth(scenario, at + 0.02, "A", 101, 901)
    }

    /// The client's close, within 30 ms, after [`Self::open`].
    fn close(self, scenario: Scenario, at: f64) -> Scenario {
        let scenario = self.forth(scenario, at, "FA", 101, 901);
        let scenario = self.back(scenario, at + 0.01, "A", 901, 102);
        let scenario = self.back(scenario, at + 0.02, "FA", 901, 102);
        self.forth(scenario, at + 0.03, "A", 102, 902)
    }
}

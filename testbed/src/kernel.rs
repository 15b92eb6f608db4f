//! Linux as the router: the same packets through its connection tracking, zones and NAT, to compare with.
//!
//! [`Kernel`] is a network namespace that forwards between devices, one per side, with nft rules and conntrack zones.
//! Their far ends lie in a second namespace, where packet sockets send and capture frames. [`compare`] says in what two
//! routers differ. Time is real here, so comparisons allow a second.

pub mod compare;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use compare::Observed;
use pnet_datalink::{Channel, Config, DataLinkReceiver, DataLinkSender};

use crate::netns::{Fault, Namespace, run};
use crate::packet::read::Seen;
use crate::packet::{Mac, Packet, host_mac};
use crate::scenario::{Entry, Side};

/// How long the kernel's programs may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// One device of the kernel's router. VLANs have a device of their own here, as they have an interface in a script.
#[derive(Clone, Debug)]
pub struct Device {
    /// What it stands for.
    pub side: Side,
    /// Its name in the router.
    pub name: &'static str,
    /// The MAC address that the router's port has there.
    pub mac: Mac,
    /// The router's addresses with prefix lengths, separated by blanks.
    pub address: &'static str,
    /// Hosts that are reached directly, with the MAC address of [`host_mac`]. They need not answer ARP or neighbour
    /// solicitations.
    pub hosts: &'static [&'static str],
}

/// A router made of the kernel's own parts.
pub struct Kernel {
    router: Namespace,
    _hosts: Namespace,
    wires: BTreeMap<Side, Wire>,
    /// Those that its devices have addresses of.
    families: Vec<&'static str>,
}

/// The far end of one device.
struct Wire {
    sender: Box<dyn DataLinkSender>,
    receiver: Box<dyn DataLinkReceiver>,
}

impl Kernel {
    /// Makes one: devices with addresses and neighbours, then `ip` commands (routes and rules), then an nft ruleset.
    /// TCP is tracked as it is by default, windows included, and counters are on.
    ///
    /// # Errors
    /// If anything is refused; where privileges are missing, with the remedy.
    pub fn new(devices: &[Device], ip_commands: &[&str], nft: &str) -> Result<Self, Fault> {
        let (router, hosts) = (Namespace::new("router")?, Namespace::new("hosts")?);
        for (parameter, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            // Answers to packets that are meant to be refused must not depend on how fast they come.
            ("ipv4/icmp_ratelimit", "0"),
            ("netfilter/nf_conntrack_acct", "1"),
            ("netfilter/nf_conntrack_tcp_be_liberal", "0"),
            ("netfilter/nf_conntrack_tcp_loose", "1"),
            ("netfilter/nf_conntrack_tcp_ignore_invalid_rst", "0"),
        ] {
            router.sysctl(&format!("net/{parameter}"), value)?;
        }
        let mut families = vec!["ipv4"];
        if devices.iter().any(|device| device.address.contains(':')) {
            families.push("ipv6");
            router.allow_ipv6()?;
            for (parameter, value) in [("conf/all/forwarding", "1"), ("icmp/ratelimit", "0")] {
                router.sysctl(&format!("net/ipv6/{parameter}"), value)?;
            }
        }
        let mut wires = BTreeMap::new();
        for device in devices {
            let Device { name, mac, address, .. } = device;
            let far = format!("{name}-far");
            router.veth(name, &hosts, &far)?;
            let mac = mac.map(|b| format!("{b:02x}")).join(":");
            router.ip(&format!("link set {name} address {mac}"))?;
            for address in address.split_whitespace() {
                let quiet = if address.contains(':') { " nodad" } else { "" };
                router.ip(&format!("address add {address} dev {name}{quiet}"))?;
            }
            for host in device.hosts {
                let mac = host_mac(host.parse::<IpAddr>().expect("a host is an address")).map(|b| format!("{b:02x}"));
                router.ip(&format!("neighbour add {host} lladdr {} dev {name} nud permanent", mac.join(":")))?;
            }
            wires.insert(device.side, hosts.inside(|| Wire::open(&far))??);
        }
        for command in ip_commands {
            router.ip(command)?;
        }
        let kernel = Self { router, _hosts: hosts, wires, families };
        kernel.rules(nft)?;
        Ok(kernel)
    }

    /// Replaces the nft ruleset.
    ///
    /// # Errors
    /// If nft refuses it.
    pub fn rules(&self, nft: &str) -> Result<(), Fault> {
        let folder = tempfile::tempdir().expect("a folder for the ruleset");
        let path = folder.path().join("rules.nft");
        std::fs::write(&path, format!("flush ruleset\n{nft}")).expect("a file in that folder");
        self.router.run(&format!("nft -f {}", path.display()), PATIENCE)?.success("nft").map(drop)
    }

    /// Forgets all connections.
    ///
    /// # Errors
    /// If `conntrack` fails.
    pub fn flush(&self) -> Result<(), Fault> {
        self.router.run("conntrack -F", PATIENCE)?.success("conntrack -F").map(drop)
    }

    /// Sends a packet into the router by a side. The side's tag is left out: the device stands for it.
    ///
    /// # Panics
    /// If there is no such side, or the frame cannot be sent.
    pub fn send(&mut self, side: Side, packet: &Packet) {
        let wire = self.wires.get_mut(&side).unwrap_or_else(|| panic!("the kernel has no {side:?}"));
        let sent = wire.sender.send_to(&packet.bytes(), None).expect("the socket takes whole frames");
        sent.unwrap_or_else(|e| panic!("sending {packet:?} into {side:?}: {e}"));
    }

    /// What has left by all sides, and the connections then, as `conntrack -L` prints them. Waits until so many packets
    /// came or two seconds passed; those that come while the connections are listed count too. ARP and discovery of
    /// neighbours and listeners are left out.
    ///
    /// # Errors
    /// If `conntrack` fails.
    ///
    /// # Panics
    /// If a line of it cannot be read.
    pub fn outcome(&mut self, expected: usize) -> Result<Observed, Fault> {
        let until = Instant::now() + Duration::from_secs(2);
        let mut left = self.waiting();
        // Forwarding over veth happens within the sending call, or nearly so.
        while left.len() < expected && Instant::now() < until {
            std::thread::sleep(Duration::from_micros(100));
            left.extend(self.waiting());
        }
        let table = self.table()?;
        left.extend(self.waiting());
        Ok(Observed { left, table })
    }

    fn waiting(&mut self) -> Vec<(Side, Seen)> {
        let all = self.wires.iter_mut().flat_map(|(side, wire)| wire.waiting().into_iter().map(|seen| (*side, seen)));
        all.filter(|(_, seen)| !seen.is_neighbour_talk() && !seen.is_listener_report()).collect()
    }

    fn table(&self) -> Result<Vec<Entry>, Fault> {
        let mut lines = String::new();
        for family in &self.families {
            let mut list = Command::new("conntrack");
            list.args(["-L", "-o", "extended", "-f", family]);
            // From a thread inside: `ip netns exec` makes a mount namespace too, and costs five times as much.
            lines += &self.router.inside(|| run(list, PATIENCE))??.success("conntrack -L")?;
        }
        Ok(lines.lines().map(|line| Entry::parse(line).unwrap_or_else(|fault| panic!("{fault}"))).collect())
    }
}

impl Wire {
    fn open(device: &str) -> Result<Self, Fault> {
        let found = pnet_datalink::interfaces().into_iter().find(|i| i.name == device);
        let interface = found.unwrap_or_else(|| panic!("{device} was made just now"));
        // A timeout of 0 ms: reading never waits.
        let config = Config { read_timeout: Some(Duration::ZERO), read_buffer_size: 65_536, ..Config::default() };
        match pnet_datalink::channel(&interface, config) {
            Ok(Channel::Ethernet(sender, receiver)) => Ok(Self { sender, receiver }),
            Ok(_) => panic!("an Ethernet device has an Ethernet channel"),
            Err(e) => Err(Fault::packet_socket(device, &e)),
        }
    }

    fn waiting(&mut self) -> Vec<Seen> {
        std::iter::from_fn(|| self.receiver.next().ok().map(|frame| Seen::of(0, frame.to_vec()))).collect()
    }
}

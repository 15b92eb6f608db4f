//! The demo's packets, what should become of them, and how that is told.

use std::fmt;
use std::net::Ipv4Addr;

use anstyle::Style;

use super::paper::{BLUE, GREEN, PLAIN, Paper, RED, Row};
use crate::packet::read::{Content, Seen, Upper};
use crate::packet::{Packet, arp_request, host_mac, ping, tcp, udp};
use crate::pcap::Record;
use crate::scenario::{START_NS, router_mac};

/// What `configs/two-tenants.rhai` declares.
pub const TOPOLOGY: &str = "
   tenant blue                 ┌────────────── erhu ───────────────┐
   10.0.0.5 ──── VLAN 100 ──┐  │  zone 1  SNAT ▶ 198.51.100.10-11  │
                            ├─ lan                               wan ── 198.51.100.1 ── 192.0.2.1
   10.0.0.5 ──── VLAN 200 ──┘  │  zone 2  SNAT ▶ 198.51.100.20     │    next hop        server
   tenant green                └───────────────────────────────────┘

   Both tenants have the same network, host, ports and ICMP id, and send at the same instant.";

const HOST: &str = "10.0.0.5";
const SERVER: &str = "192.0.2.1";
const NEXT_HOP: &str = "198.51.100.1";
const ROUTER: &str = "198.51.100.2";

struct Tenant {
    name: &'static str,
    vlan: u16,
    style: Style,
    pool: &'static [Ipv4Addr],
}

const TENANTS: [Tenant; 2] = [
    Tenant {
        name: "blue",
        vlan: 100,
        style: BLUE,
        pool: &[Ipv4Addr::new(198, 51, 100, 10), Ipv4Addr::new(198, 51, 100, 11)],
    },
    Tenant { name: "green", vlan: 200, style: GREEN, pool: &[Ipv4Addr::new(198, 51, 100, 20)] },
];

/// What the router sent, by port.
pub struct Sent {
    /// To the tenants.
    pub lan: Vec<Seen>,
    /// To the outside.
    pub wan: Vec<Seen>,
}

fn records(frames: impl IntoIterator<Item = Packet>) -> Vec<Record> {
    frames.into_iter().map(|packet| Record { time_ns: START_NS, data: packet.bytes() }).collect()
}

fn host_announces(address: &str) -> Packet {
    arp_request(address, address)
}

/// What the tenants send: the same, but for IP identifications, by which packets are found again; and a frame of a
/// VLAN that nobody declared.
pub fn from_lan() -> Vec<Record> {
    let server = |port: u16| format!("{SERVER}:{port}");
    let host = |port: u16| format!("{HOST}:{port}");
    let to_router = |packet: Packet| packet.mac_to(router_mac(0));
    let announcements = TENANTS.iter().map(|tenant| host_announces(HOST).vlan(tenant.vlan));
    let requests = TENANTS.iter().flat_map(|tenant| {
        let packets = [
            tcp(&host(40000), &server(443)).flags("S").seq(1000),
            udp(&host(5353), &server(53)).payload(b"who?"),
            ping(HOST, SERVER, 77).payload(b"ping"),
            tcp(&host(40025), &server(25)).flags("S").seq(1000),
        ];
        (1..).zip(packets).map(|(n, packet)| to_router(packet.id(tenant.vlan + n)).vlan(tenant.vlan))
    });
    let stray = to_router(udp(&host(5353), &server(53)).id(301)).vlan(300);
    records(announcements.chain(requests).chain([stray]))
}

/// What comes from outside: the next hop says where it is and asks whether the router lives; a stranger tries a pool
/// address.
pub fn from_wan() -> Vec<Record> {
    let to_router = |packet: Packet| packet.mac_to(router_mac(1));
    let next_hop = host_mac(Ipv4Addr::new(198, 51, 100, 1));
    records([
        host_announces(NEXT_HOP),
        to_router(ping(NEXT_HOP, ROUTER, 1).id(401)),
        to_router(udp("203.0.113.66:4444", "198.51.100.20:40000").id(402).mac_from(next_hop)),
    ])
}

/// Tells what became of each packet. Returns what is wrong.
pub fn out(paper: &mut Paper, lan: &[Seen], wan: &[Seen], sent: &Sent) -> Vec<String> {
    let mut faults = Vec::new();
    paper.plain("    ⇒ left as     ⇐ was answered with     ✗ did not leave: DROPS below says why");
    for tenant in &TENANTS {
        let came: Vec<_> = of_vlan(lan, Some(tenant.vlan)).map(|p| (p, fate(p, &sent.wan, &sent.lan))).collect();
        faults.extend(came.iter().filter_map(|(packet, fate)| tenant_fault(tenant, packet, fate)));
        paper.line(tenant.style, &format!("\n  {}, VLAN {}", tenant.name, tenant.vlan));
        tell(paper, &came, tenant.style);
    }
    paper.plain("\n  a VLAN that nobody declared, and the outside");
    let strays = of_vlan(lan, Some(300)).map(|p| (p, fate(p, &sent.wan, &sent.lan)));
    let others: Vec<_> = strays.chain(of_vlan(wan, None).map(|p| (p, fate(p, &sent.lan, &sent.wan)))).collect();
    tell(paper, &others, PLAIN);
    faults
}

fn of_vlan(packets: &[Seen], vlan: Option<u16>) -> impl Iterator<Item = &Seen> {
    packets.iter().filter(move |p| p.vlan() == vlan && matches!(p.content, Content::Ip(_)))
}

/// What became of a packet.
enum Fate<'s> {
    /// It left on the other side.
    Left(&'s Seen),
    /// Something was sent back to where it came from.
    Answered(&'s Seen),
    /// Neither.
    Dropped,
}

/// Finds a packet again: on the far side by its IP identification, which the router does not change; on the near side
/// by its ends, exchanged.
fn fate<'s>(came: &Seen, far: &'s [Seen], near: &'s [Seen]) -> Fate<'s> {
    let ip = |seen: &'s Seen| match &seen.content {
        Content::Ip(ip) => Some(ip),
        _ => None,
    };
    let left =
        far.iter().find(|s| ip(s).is_some_and(|ip| ip.id == came.ip().id && ip.protocol == came.ip().protocol));
    let is_answer = |s: &Seen| s.vlan() == came.vlan() && ends(s) == ends(came).exchanged();
    let answered = || near.iter().filter(|s| ip(s).is_some()).find(|s| is_answer(s));
    left.map(Fate::Left).or_else(|| answered().map(Fate::Answered)).unwrap_or(Fate::Dropped)
}

fn tell(paper: &mut Paper, packets: &[(&Seen, Fate<'_>)], style: Style) {
    let row = |(came, fate): &(&Seen, Fate<'_>)| {
        let (style, became) = match fate {
            Fate::Left(seen) => (style, format!("⇒ {}", ends(seen))),
            Fate::Answered(seen) => (style, format!("⇐ {}  {}", kind(seen), ends(seen))),
            Fate::Dropped => (RED, "✗".to_owned()),
        };
        let Ends(from, to) = ends(came);
        Row { kind: kind(came), from, to, style, became }
    };
    paper.rows(&packets.iter().map(row).collect::<Vec<_>>());
}

/// What is wrong with a tenant's packet: the script rejects blue's mail, everything else leaves from the own pool.
fn tenant_fault(tenant: &Tenant, came: &Seen, fate: &Fate<'_>) -> Option<String> {
    let is_mail = came.ip().protocol == 6 && came.destination().port() == 25;
    let is_right = match fate {
        Fate::Left(seen) => {
            tenant.pool.contains(&seen.ip().source)
                && seen.ip().destination == came.ip().destination
                && seen.faults().is_empty()
                && !(is_mail && tenant.name == "blue")
        }
        Fate::Answered(seen) => is_mail && tenant.name == "blue" && kind(seen) == "tcp RST+ACK",
        Fate::Dropped => false,
    };
    let became = match fate {
        Fate::Left(seen) | Fate::Answered(seen) => seen.to_string(),
        Fate::Dropped => "nothing".into(),
    };
    (!is_right).then(|| format!("{}: {came} became {became}", tenant.name))
}

/// What the server answers to a packet that left by `wan`, some time later.
pub fn answer(asked: &Seen, after_ns: u64) -> Option<Seen> {
    let Content::Ip(ip) = &asked.content else { return None };
    if ip.destination.to_string() != SERVER {
        return None;
    }
    let answer = asked.answer().mac_to(router_mac(1)).mac_from(asked.mac_to).id(ip.id);
    let answer = if ip.protocol == 6 { answer.flags("SA").seq(9000).ack(1001) } else { answer };
    Some(Seen::of(asked.time_ns + after_ns, answer.bytes()))
}

/// Tells where each answer went. Returns what is wrong.
pub fn back(paper: &mut Paper, answers: &[Seen], sent: &[Seen]) -> Vec<String> {
    let mut faults = Vec::new();
    for tenant in &TENANTS {
        let of_tenant = answers.iter().filter(|answer| tenant.pool.contains(&answer.ip().destination));
        let fates: Vec<_> = of_tenant.map(|answer| (answer, fate(answer, sent, &[]))).collect();
        faults.extend(fates.iter().filter_map(|(answer, fate)| answer_fault(tenant, answer, fate)));
        if fates.is_empty() {
            faults.push(format!("{}: the server was asked nothing", tenant.name));
        }
        paper.line(tenant.style, &format!("\n  to {}, VLAN {}", tenant.name, tenant.vlan));
        tell(paper, &fates, tenant.style);
    }
    faults
}

/// What is wrong with an answer: it goes to the host, in its tenant's VLAN.
fn answer_fault(tenant: &Tenant, answer: &Seen, fate: &Fate<'_>) -> Option<String> {
    match fate {
        Fate::Left(seen)
            if seen.vlan() == Some(tenant.vlan)
                && seen.ip().destination.to_string() == HOST
                && seen.faults().is_empty() =>
        {
            None
        }
        Fate::Left(seen) | Fate::Answered(seen) => Some(format!("{}: {answer} became {seen}", tenant.name)),
        Fate::Dropped => Some(format!("{}: {answer} did not arrive", tenant.name)),
    }
}

/// The style of a line of `erhu`: a tenant's, where it is about one.
pub fn colour_of(line: &str) -> Style {
    let mut words = line.split_whitespace();
    let is_about = |tenant: &&Tenant| {
        let zone = format!("zone-orig={}", tenant.vlan / 100);
        words.clone().any(|word| word == tenant.name || word == zone)
    };
    let found = TENANTS.iter().find(is_about).map_or(PLAIN, |tenant| tenant.style);
    // Headings name nobody.
    if words.next().is_some_and(|word| word.chars().all(char::is_uppercase)) { PLAIN } else { found }
}

#[derive(PartialEq, Eq)]
struct Ends(String, String);

impl Ends {
    fn exchanged(self) -> Self {
        Self(self.1, self.0)
    }
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}", self.0, self.1)
    }
}

fn ends(seen: &Seen) -> Ends {
    let ip = seen.ip();
    match &ip.upper {
        Upper::Udp(_) | Upper::Tcp(_) => Ends(seen.source().to_string(), seen.destination().to_string()),
        _ => Ends(ip.source.to_string(), ip.destination.to_string()),
    }
}

fn kind(seen: &Seen) -> String {
    const FLAGS: [(u8, &str); 4] = [(2, "SYN"), (1, "FIN"), (4, "RST"), (16, "ACK")];
    match &seen.ip().upper {
        Upper::Udp(_) => "udp".into(),
        Upper::Tcp(tcp) => {
            let flags = FLAGS.iter().filter(|(bit, _)| tcp.flags & bit != 0);
            format!("tcp {}", flags.map(|(_, name)| *name).collect::<Vec<_>>().join("+"))
        }
        Upper::Icmp(icmp) if icmp.kind == 8 => "ping".into(),
        Upper::Icmp(icmp) if icmp.kind == 0 => "pong".into(),
        _ => "ip".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(records: &[Record]) -> Vec<Seen> {
        records.iter().map(Seen::from).collect()
    }

    #[test]
    fn the_topology_fits_the_paper() {
        assert!(TOPOLOGY.lines().all(|line| line.chars().count() <= super::super::paper::WIDTH));
    }

    #[test]
    fn both_tenants_send_the_same_at_the_same_instant() {
        let lan = seen(&from_lan());
        let lines = |vlan| of_vlan(&lan, Some(vlan)).map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(lines(100).len(), 4);
        assert!(lan.windows(2).all(|w| w[0].time_ns == w[1].time_ns));
        let bare = |vlan| of_vlan(&lan, Some(vlan)).map(|p| ends(p).to_string()).collect::<Vec<_>>();
        assert_eq!(bare(100), bare(200));
    }

    #[test]
    fn a_packet_that_leaves_from_the_other_tenants_pool_is_a_fault() {
        let lan = seen(&from_lan());
        let came = of_vlan(&lan, Some(100)).next().unwrap();
        let left = tcp("198.51.100.20:40000", "192.0.2.1:443").flags("S").seq(1000).id(101).seen();
        assert!(tenant_fault(&TENANTS[0], came, &fate(came, std::slice::from_ref(&left), &[])).is_some());
        let left = tcp("198.51.100.11:40000", "192.0.2.1:443").flags("S").seq(1000).id(101).seen();
        assert_eq!(tenant_fault(&TENANTS[0], came, &fate(came, &[left], &[])), None);
        assert!(tenant_fault(&TENANTS[0], came, &fate(came, &[], &[])).is_some());
    }
}

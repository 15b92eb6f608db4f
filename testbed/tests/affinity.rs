//! Several workers: answers come back to the worker that owns the connection where ports can spread so, and are handed
//! over where they cannot.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use erhu_controlplane::client::Dataplane;
use erhu_controlplane::{Facts, check_script};
use erhu_pipeline::HeapBuffer;
use erhu_pipeline::policy::PortFacts;
use erhu_pipeline::rss::Hashed;
use erhu_planes::protocol::{Request, Response};
use erhu_planes::{Counter, DropReason};
use erhu_testbed::packet::{Packet, tcp, udp};
use erhu_testbed::replay::Plane;
use erhu_testbed::scenario::router_mac;

const LAN: u16 = 0;
const WAN: u16 = 1;
const HOSTS: u16 = 60;
const ROUNDS: u16 = 40;

/// `lan` 10.0.0.1/16 (tenant) — router — `wan` 198.51.100.1/24 (main). Hosts are 10.0.1.x, remotes 203.0.113.x behind
/// 198.51.100.254.
fn script(pool: &str) -> String {
    format!(
        r#"
zone("tenant", #{{ id: 1 }});
interface("lan", #{{ port: "lan", zone: "tenant", address: ["10.0.0.1/16"] }});
interface("wan", #{{ port: "wan", address: ["198.51.100.1/24"] }});
neighbour("lan", "10.0.0.2", "02:00:00:00:00:02");
neighbour("wan", "198.51.100.254", "02:00:00:00:00:fe");
route("tenant", "10.0.1.0/24", #{{ via: "10.0.0.2" }});
route("tenant", "0.0.0.0/0", #{{ zone: "main" }});
route("main", "0.0.0.0/0", #{{ via: "198.51.100.254" }});
pool("public", #{{ addresses: "198.51.100.10-198.51.100.13", {pool} }});
forward(#{{ ingress: "lan" }}, accept);
forward(#{{ state: ["established", "related"] }}, accept);
postrouting(#{{ zone: "tenant", egress: "wan" }}, snat(#{{ pool: "public" }}));
"#
    )
}

struct Router {
    plane: Plane,
    now_ns: u64,
}

impl Router {
    fn new(script: &str, workers: usize) -> Self {
        let ports: Vec<PortFacts> = ["lan", "wan"]
            .iter()
            .enumerate()
            .map(|(at, name)| PortFacts { name: (*name).into(), mac: router_mac(at) })
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rules.rhai");
        std::fs::write(&path, script).unwrap();
        let facts = Facts { ports: Some(vec!["lan".into(), "wan".into()]), capacity: Some(1 << 16) };
        let program = check_script(&path, &facts).unwrap().program.encode().unwrap();
        let mut plane = Plane::new(&ports, 1 << 16, workers, 1).unwrap();
        plane.set_time(1_700_000_000_000_000_000, 0);
        let answer = plane.ask(&Request::Adopt, Some(&program)).unwrap().0;
        assert_eq!(answer, Response::Adopted { generation: 1 });
        Self { plane, now_ns: 0 }
    }

    /// Offers a packet to the worker that the port's hash leads to; what leaves by the other port.
    fn send(&mut self, port: u16, packet: Packet) -> Vec<u8> {
        self.now_ns += 1_000;
        self.plane.set_time(1_700_000_000_000_000_000 + self.now_ns, self.now_ns);
        let frame = packet.mac_to_default(router_mac(usize::from(port))).bytes();
        let worker = self.plane.worker_of(port, &frame);
        self.plane.offer(worker, port, &mut vec![HeapBuffer::new(&frame)]);
        let mut sent = self.plane.take_sent(usize::from(LAN + WAN - port));
        assert_eq!(sent.len(), 1);
        sent.remove(0)
    }

    fn count(&self, counter: Counter) -> u64 {
        self.plane.publish();
        let stats = &self.plane.shared().stats;
        stats.sum(|w| stats.worker(w).unwrap().counters[counter.index()].load(std::sync::atomic::Ordering::Relaxed))
    }

    fn drops(&self) -> u64 {
        self.plane.publish();
        let stats = &self.plane.shared().stats;
        let of = |reason: &DropReason| {
            stats.sum(|w| stats.worker(w).unwrap().drops[reason.index()].load(std::sync::atomic::Ordering::Relaxed))
        };
        DropReason::ALL.iter().map(of).sum()
    }

    /// Every host opens connections of both protocols to ever other remotes, some from one of its ports; each is
    /// answered, speaks once more and is answered again, all by the way that the ports' hashes lead.
    fn traffic(&mut self) {
        for round in 0..ROUNDS {
            for host in 0..HOSTS {
                let inside = format!("10.0.1.{}:{}", 2 + host, 20_000 + round % 4);
                let remote = format!("203.0.113.{}:{}", 1 + (host * 7 + round) % 250, 1000 + round);
                let make: fn(&str, &str) -> Packet = if host % 2 == 0 { udp } else { tcp };
                let tcp_flags =
                    |flags: &str, packet: Packet| if host % 2 == 0 { packet } else { packet.flags(flags) };
                let out = self.send(LAN, tcp_flags("S", make(&inside, &remote)));
                let external = end(&out, 26, 34);
                let back = self.send(WAN, tcp_flags("SA", make(&remote, &external)));
                assert_eq!(end(&back, 30, 36), inside, "translated back");
                let out = self.send(LAN, tcp_flags("A", make(&inside, &remote)));
                assert_eq!(end(&out, 26, 34), external);
                self.send(WAN, tcp_flags("A", make(&remote, &external)));
            }
        }
        assert_eq!(self.drops(), 0);
    }

    /// For every connection: its owner, and the workers that its original and its reply tuple lead to.
    fn allocations(&self) -> Vec<(usize, usize, usize)> {
        let policy = self.plane.shared().policy().unwrap();
        let affinity = policy.affinity.as_ref().unwrap();
        let mut all = Vec::new();
        self.plane.connections().unwrap().for_each(|connection| {
            let worker = |port, tuple: erhu_planes::Tuple| {
                let hashed = Hashed { src: tuple.src, dst: tuple.dst, ports: Some((tuple.sport, tuple.dport)) };
                affinity.worker_of(port, &hashed).unwrap()
            };
            let (there, back) = (connection.original.tuple, connection.reply.tuple);
            all.push((usize::from(connection.owner), worker(LAN, there), worker(WAN, back)));
        });
        all
    }
}

/// An address and port of an untagged IPv4 frame.
fn end(frame: &[u8], address: usize, port: usize) -> String {
    let octets: [u8; 4] = frame[address..address + 4].try_into().unwrap();
    format!("{}:{}", Ipv4Addr::from(octets), u16::from_be_bytes([frame[port], frame[port + 1]]))
}

#[test]
fn without_preserved_ports_every_allocation_leads_back_to_its_owner_and_nothing_is_handed_over() {
    for mapping in ["endpoint_independent", "address_dependent", "address_port_dependent"] {
        for workers in [2, 3, 4, 7, 16] {
            let pool = format!("mapping: \"{mapping}\", preserve_port: false");
            let mut router = Router::new(&script(&pool), workers);
            router.traffic();
            let allocations = router.allocations();
            assert_eq!(allocations.len(), usize::from(HOSTS * ROUNDS));
            for (owner, there, back) in &allocations {
                assert_eq!((there, back), (owner, owner), "{mapping} on {workers} workers");
            }
            assert_eq!(router.count(Counter::HandedOver), 0, "{mapping} on {workers} workers");
            let mut owned: HashMap<usize, usize> = HashMap::new();
            allocations.iter().for_each(|(owner, ..)| *owned.entry(*owner).or_default() += 1);
            assert!(owned.len() > 1, "several workers work: {owned:?}");
        }
    }
}

#[test]
fn preserved_ports_hand_over_what_comes_back_elsewhere_and_lose_nothing() {
    for workers in [2, 4] {
        let mut router = Router::new(&script("preserve_port: true"), workers);
        router.traffic();
        let allocations = router.allocations();
        let elsewhere = allocations.iter().filter(|(owner, _, back)| owner != back).count();
        assert!(elsewhere > 0);
        // Two answers of each connection.
        assert_eq!(router.count(Counter::HandedOver), 2 * elsewhere as u64);
    }
}

#[test]
fn one_worker_hands_over_nothing_and_knows_of_no_spread() {
    let mut router = Router::new(&script("preserve_port: false"), 1);
    router.traffic();
    assert!(router.plane.shared().policy().unwrap().affinity.is_none());
    assert_eq!(router.count(Counter::HandedOver), 0);
}

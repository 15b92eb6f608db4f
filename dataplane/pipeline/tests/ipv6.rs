//! IPv6 through one worker: discovery, forwarding, tracking, translation, errors.
//!
//! ```text
//! blue:   fd00::/64 --- lan 100 [router] wan --- 2001:db8::/64   zone 1; leaves as 2001:db8::10
//! green:  fd00::/64 --- lan 200 [router]                         zone 2; leaves as 2001:db8::20
//! ```

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use erhu_nat::Nat;
use erhu_pipeline::policy::PortFacts;
use erhu_pipeline::{Buffer, Control, Heap, HeapBuffer, Now, Shared, Worker};
use erhu_planes::connections::{Connection, ConnectionsRegion, SlabLayout};
use erhu_planes::events::EventsRegion;
use erhu_planes::program::{
    Action, AddressRange, Behaviour, Encapsulation, Hook, Interface, InterfaceAddress, Match, MatchKey, Pool,
    PortRange, Position, Prefix, Program, RejectKind, Route, RouteTarget, Rule, Snat, SourceChoice, Zone, states,
};
use erhu_planes::protocol::Status;
use erhu_planes::region::Region;
use erhu_planes::stats::StatsRegion;
use erhu_planes::{DropReason, Tuple};
use erhu_table::Table;
use erhu_wire::nd::{Advertisement, Message, Solicitation};
use erhu_wire::{Addresses6, Kind, Odd, Verify, checksum, ethernet, icmp6, ipv6, nd, parse};

const LAN: u16 = 0;
const WAN: u16 = 1;
const HOST: &str = "fd00::5";
const SERVER: &str = "2001:db8:1::1";
const GATEWAY: &str = "2001:db8::1";
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

fn mac(port: u16) -> [u8; 6] {
    [2, 0, 0, 0, 0, u8::try_from(port + 1).unwrap()]
}

/// The MAC address of whoever has an address.
fn host_mac(address: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = address.octets();
    [2, 0xaa, a, b, c, d]
}

fn ip(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn rule(matches: Vec<MatchKey>, action: Action) -> Rule {
    let matches = matches.into_iter().map(|key| Match { negated: false, key }).collect();
    Rule { at: Position::default(), matches, actions: vec![action] }
}

fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap();
    Prefix::new(address.parse().unwrap(), length.parse().unwrap()).unwrap()
}

fn pool(name: &str, address: &str) -> Pool {
    let address: IpAddr = address.parse().unwrap();
    Pool {
        name: name.into(),
        addresses: vec![AddressRange { first: address, last: address }],
        ports: PortRange { first: 1024, last: 65_535 },
        mapping: Behaviour::EndpointIndependent,
        filtering: Behaviour::AddressPortDependent,
        preserve_port: true,
        parity: true,
        paired: true,
        reuse_delay_ms: 0,
        hairpin: true,
        zone: 0,
    }
}

fn program() -> Program {
    let mut program = Program::empty();
    let route = |zone, to, target| Route { zone, prefix: prefix(to), target, metric: 0 };
    for (number, name) in [(1, "blue"), (2, "green")] {
        program.zones.push(Zone { id: number, name: name.into(), ..program.zones[0].clone() });
        program.interfaces.push(Interface {
            name: format!("lan.{number}"),
            port: "lan".into(),
            encapsulation: Encapsulation::Vlan(number * 100),
            zone: number,
            addresses: vec![InterfaceAddress { address: ip("fd00::1").into(), length: 64 }],
            mtu: 1500,
            mac: None,
            proxy_arp: false,
        });
        program.routes.push(route(number, "::/0", RouteTarget::Zone(0)));
        program.pools.push(pool(name, ["2001:db8::10", "2001:db8::20"][usize::from(number) - 1]));
        let snat = Snat { source: SourceChoice::Pool(number - 1), ports: None, random: false, persistent: false };
        let matches = vec![MatchKey::Zone(vec![number]), MatchKey::EgressZone(vec![0])];
        program.hooks[Hook::Postrouting.index()].rules.push(rule(matches, Action::Snat(snat)));
    }
    program.interfaces.push(Interface {
        name: "wan".into(),
        port: "wan".into(),
        encapsulation: Encapsulation::Untagged,
        zone: 0,
        addresses: vec![
            InterfaceAddress { address: ip("2001:db8::2").into(), length: 64 },
            InterfaceAddress { address: [198, 51, 100, 2].into(), length: 24 },
        ],
        mtu: 1400,
        mac: None,
        proxy_arp: false,
    });
    program.routes.push(route(0, "2001:db8:1::/48", RouteTarget::Via(ip(GATEWAY).into())));
    let ingress = vec![MatchKey::Ingress(vec![2]), MatchKey::State(states::NEW)];
    program.hooks[Hook::Forward.index()].rules.push(rule(ingress, Action::Drop));
    program
}

/// A frame that left: its port, VLAN id, and the packet.
#[derive(Clone, Debug)]
struct Left {
    port: u16,
    frame: Vec<u8>,
}

impl Left {
    fn parsed(&self) -> erhu_wire::Parsed {
        parse(&self.frame, Verify::All)
    }

    fn l3(&self) -> &[u8] {
        &self.frame[usize::from(self.parsed().l3)..usize::from(self.parsed().end)]
    }

    fn ends(&self) -> (Ipv6Addr, Ipv6Addr) {
        Addresses6::read(&self.frame, self.parsed().l3).unwrap().unpack()
    }

    fn ports(&self) -> (u16, u16) {
        erhu_planes::tuple::unpack_ports(self.parsed().proto, self.parsed().ports)
    }

    fn tcp_flags(&self) -> u8 {
        self.frame[usize::from(self.parsed().l4) + 13]
    }

    /// Type, code and what stands behind the checksum, of an ICMPv6 message with a right checksum.
    fn icmp(&self) -> (u8, u8, u32) {
        let parsed = self.parsed();
        assert_eq!(parsed.proto, ICMPV6);
        assert_ne!(parsed.kind, Kind::Ipv6Odd(Odd::L4Fault), "{parsed:?}");
        let l4 = &self.frame[usize::from(parsed.l4)..];
        (l4[0], l4[1], u32::from_be_bytes(l4[4..8].try_into().unwrap()))
    }

    fn message(&self) -> Option<Message> {
        nd::parse(self.l3(), usize::from(self.parsed().l4 - self.parsed().l3))
    }

    /// `source > destination`, with ports, and the hop limit.
    fn line(&self) -> String {
        let (parsed, (src, dst), (sport, dport)) = (self.parsed(), self.ends(), self.ports());
        let is_fault = parsed.kind == Kind::Ipv6Odd(Odd::L4Fault);
        assert!(matches!(parsed.kind, Kind::Fast6 | Kind::Ipv6Odd(_)) && !is_fault, "{parsed:?}");
        format!("{} {src} {sport} > {dst} {dport} hl {}", parsed.vlan, parsed.ttl)
    }
}

struct Router {
    shared: Arc<Shared<HeapBuffer>>,
    control: Control<HeapBuffer>,
    worker: Worker<Heap>,
    now_ms: u64,
}

impl Router {
    fn new(program: &Program) -> Self {
        let (capacity, ports) = (1 << 12, ["lan", "wan"]);
        let layout = SlabLayout::for_capacity(capacity, 1);
        let slab = Region::anonymous("connections", layout.size()).unwrap();
        let slab = ConnectionsRegion::create(slab, layout, capacity, 1).unwrap();
        let table = Table::new(slab, capacity, 1, 7, false).unwrap();
        let stats = Region::anonymous("stats", StatsRegion::size(1)).unwrap();
        let stats = StatsRegion::create(stats, 1, &ports.map(String::from), 1).unwrap();
        let events = Region::anonymous("events", EventsRegion::size(1, 64)).unwrap();
        let events = EventsRegion::create(events, 1, 64, 1).unwrap();
        let shared = Arc::new(Shared::new(table, Nat::new(3), stats, events, 1, 2));
        let facts = (0..2).zip(ports).map(|(n, p)| PortFacts { name: p.into(), mac: mac(n) }).collect();
        let mut control = Control::new(shared.clone(), facts, Status::default());
        control.adopt(program.encode().unwrap(), 0).unwrap();
        let worker = Worker::new(shared.clone(), 0, shared.policy().unwrap(), Heap, 5);
        Self { shared, control, worker, now_ms: 1000 }
    }

    /// All neighbours that packets of these tests need are known.
    fn ready(program: &Program) -> Self {
        let mut router = Self::new(program);
        for (port, vlan, who) in [(LAN, 100, HOST), (LAN, 200, HOST), (WAN, 0, GATEWAY)] {
            let own = if port == LAN { ip("fd00::1") } else { ip("2001:db8::2") };
            assert_eq!(router.send(port, vlan, &solicitation(ip(who), own)).len(), 1);
        }
        router
    }

    fn now(&self) -> Now {
        Now::new(self.now_ms * 1_000_000, 0)
    }

    /// Offers a packet from its IPv6 header on, and returns what leaves.
    fn send(&mut self, port: u16, vlan: u16, packet: &[u8]) -> Vec<Left> {
        let (src, dst) = Addresses6::read(packet, 0).unwrap().unpack();
        let to = if dst.is_multicast() { ipv6::group_mac(dst) } else { mac(port) };
        let mut frame = vec![0; 18 + packet.len()];
        let tag = (vlan != 0).then_some(vlan);
        let at = ethernet::write_header(&mut frame, to, host_mac(src), tag, ethernet::IPV6).unwrap();
        frame.truncate(at);
        frame.extend_from_slice(packet);
        self.worker.receive(port, &mut vec![HeapBuffer::new(&frame)], self.now());
        self.collect()
    }

    fn wait(&mut self, ms: u64) -> Vec<Left> {
        self.now_ms += ms;
        while !self.worker.between_bursts(self.now()) {}
        self.collect()
    }

    fn collect(&mut self) -> Vec<Left> {
        self.worker.publish();
        let mut left = Vec::new();
        for port in [LAN, WAN] {
            let frames = std::mem::take(self.worker.outbox(usize::from(port)).unwrap());
            left.extend(frames.into_iter().map(|b| Left { port, frame: b.frame().to_vec() }));
        }
        left
    }

    /// Packets dropped so far, by reason.
    fn drops(&self) -> Vec<(DropReason, u64)> {
        let block = self.shared.stats.worker(0).unwrap();
        let counts = block.drops.iter().enumerate().filter_map(|(n, count)| {
            let count = count.load(Ordering::Relaxed);
            (count > 0).then(|| (DropReason::from_index(n).unwrap(), count))
        });
        counts.collect()
    }

    fn counter(&self, counter: erhu_planes::Counter) -> u64 {
        self.shared.stats.worker(0).unwrap().counters[counter.index()].load(Ordering::Relaxed)
    }

    fn connections(&self) -> Vec<Connection> {
        let mut all = Vec::new();
        self.shared.table.region().for_each(|c| all.push(c));
        all
    }
}

/// An IPv6 packet with an L4 packet whose checksum is filled in.
fn packet(src: Ipv6Addr, dst: Ipv6Addr, proto: u8, hop_limit: u8, l4: &[u8]) -> Vec<u8> {
    let payload = u16::try_from(l4.len()).unwrap();
    let header = ipv6::Header { src, dst, next: proto, hop_limit, traffic_class: 0, payload };
    let mut bytes = vec![0; 40 + l4.len()];
    header.write(&mut bytes).unwrap();
    bytes[40..].copy_from_slice(l4);
    checksum::fill_l4_v6(&mut bytes, 40, proto);
    bytes
}

fn udp_of(src: &str, sport: u16, dst: &str, dport: u16, hop_limit: u8, payload: usize) -> Vec<u8> {
    let mut l4 = vec![0; 8 + payload];
    l4[..2].copy_from_slice(&sport.to_be_bytes());
    l4[2..4].copy_from_slice(&dport.to_be_bytes());
    l4[4..6].copy_from_slice(&u16::try_from(8 + payload).unwrap().to_be_bytes());
    packet(ip(src), ip(dst), UDP, hop_limit, &l4)
}

fn udp(src: &str, sport: u16, dst: &str, dport: u16) -> Vec<u8> {
    udp_of(src, sport, dst, dport, 64, 4)
}

fn tcp(src: &str, sport: u16, dst: &str, dport: u16, flags: u8, seq: u32, ack: u32) -> Vec<u8> {
    let mut l4 = vec![0; 20];
    l4[..2].copy_from_slice(&sport.to_be_bytes());
    l4[2..4].copy_from_slice(&dport.to_be_bytes());
    l4[4..8].copy_from_slice(&seq.to_be_bytes());
    l4[8..12].copy_from_slice(&ack.to_be_bytes());
    (l4[12], l4[13], l4[14]) = (5 << 4, flags, 64);
    packet(ip(src), ip(dst), TCP, 64, &l4)
}

fn icmp(src: &str, dst: &str, kind: u8, code: u8, rest: u32, body: &[u8]) -> Vec<u8> {
    let l4 = [&[kind, code, 0, 0][..], &rest.to_be_bytes(), body].concat();
    packet(ip(src), ip(dst), ICMPV6, 64, &l4)
}

fn solicitation(src: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let mut bytes = vec![0; nd::BYTES];
    let asks = Solicitation::new(src, host_mac(src), target);
    let length = asks.write(&mut bytes).unwrap();
    bytes.truncate(length);
    bytes
}

fn advertisement(target: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let mut bytes = vec![0; nd::BYTES];
    let mac = Some(host_mac(target));
    let tells = Advertisement { src: target, dst: to, target, mac, router: false, solicited: true, overrides: true };
    let length = tells.write(&mut bytes).unwrap();
    bytes.truncate(length);
    bytes
}

fn lines(left: &[Left]) -> Vec<String> {
    left.iter().map(Left::line).collect()
}

#[test]
fn tenants_with_the_same_addresses_leave_each_from_its_own_pool_and_get_their_answers() {
    let mut router = Router::ready(&program());
    for (vlan, outside) in [(100, "2001:db8::10"), (200, "2001:db8::20")] {
        for _ in 0..3 {
            let out = router.send(LAN, vlan, &udp(HOST, 5353, SERVER, 53));
            assert_eq!(lines(&out), [format!("0 {outside} 5353 > {SERVER} 53 hl 63")]);
            assert_eq!((out[0].port, &out[0].frame[..6]), (WAN, &host_mac(ip(GATEWAY))[..]));
            let back = router.send(WAN, 0, &udp(SERVER, 53, outside, 5353));
            assert_eq!(lines(&back), [format!("{vlan} {SERVER} 53 > {HOST} 5353 hl 63")]);
        }
    }
    assert_eq!(router.connections().len(), 2);
    // Two of three packets each way needed no slow path.
    assert_eq!(router.counter(erhu_planes::Counter::FastPath), 2 * (2 + 3));
    for connection in router.connections() {
        assert_eq!([connection.original.packets, connection.reply.packets], [3, 3]);
        assert_eq!(connection.original.bytes, 3 * 52);
    }
    assert_eq!(router.drops(), []);
}

#[test]
fn echo_is_translated_by_its_identifier_and_tcp_runs_through_its_states() {
    let mut router = Router::ready(&program());
    let asked = router.send(LAN, 100, &icmp(HOST, SERVER, icmp6::ECHO_REQUEST, 0, 77 << 16 | 1, b"hello"));
    assert_eq!(asked[0].icmp(), (icmp6::ECHO_REQUEST, 0, 77 << 16 | 1));
    assert_eq!(asked[0].ends(), (ip("2001:db8::10"), ip(SERVER)));
    let answer = icmp(SERVER, "2001:db8::10", icmp6::ECHO_REPLY, 0, 77 << 16 | 1, b"hello");
    let answered = router.send(WAN, 0, &answer);
    assert_eq!((answered[0].ends(), answered[0].parsed().vlan), ((ip(SERVER), ip(HOST)), 100));
    let mine = |flags, seq, ack| tcp(HOST, 40_000, SERVER, 443, flags, seq, ack);
    let theirs = |flags, seq, ack| tcp(SERVER, 443, "2001:db8::10", 40_000, flags, seq, ack);
    let (syn, ack) = (0x02, 0x10);
    assert_eq!(router.send(LAN, 100, &mine(syn, 100, 0)).len(), 1);
    assert_eq!(router.send(WAN, 0, &theirs(syn | ack, 900, 101)).len(), 1);
    let third = router.send(LAN, 100, &mine(ack, 101, 901));
    assert_eq!(lines(&third), [format!("0 2001:db8::10 40000 > {SERVER} 443 hl 63")]);
    let tcp_state = router.connections().iter().find(|c| c.original.tuple.proto == TCP).unwrap().state;
    assert_eq!(erhu_planes::connections::TCP_STATES[usize::from(tcp_state)], "ESTABLISHED");
    // Nothing of ICMPv6 keeps its connection longer than its own timeout.
    router.wait(31_000);
    assert_eq!(router.connections().len(), 1);
    assert_eq!(router.drops(), []);
}

#[test]
fn an_unknown_next_hop_is_asked_for_three_times_and_its_packets_leave_once_it_answers() {
    let mut router = Router::new(&program());
    let asked = router.send(LAN, 100, &udp(HOST, 5353, SERVER, 53));
    let link_local = ipv6::link_local(mac(WAN));
    let Some(Message::Solicitation(question)) = asked[0].message() else { panic!("{asked:?}") };
    assert_eq!((asked.len(), asked[0].port), (1, WAN));
    assert_eq!((question.src, question.target, question.mac), (link_local, ip(GATEWAY), Some(mac(WAN))));
    assert_eq!(question.dst, ip("ff02::1:ff00:1"));
    assert_eq!(asked[0].frame[..6], [0x33, 0x33, 0xff, 0, 0, 1]);
    let sent = router.send(WAN, 0, &advertisement(ip(GATEWAY), link_local));
    assert_eq!(lines(&sent), [format!("0 2001:db8::10 5353 > {SERVER} 53 hl 63")]);
    // The host inside is not known yet, and never answers.
    let back = router.send(WAN, 0, &udp(SERVER, 53, "2001:db8::10", 5353));
    assert!(matches!(back[0].message(), Some(Message::Solicitation(q)) if q.target == ip(HOST)));
    assert_eq!(back[0].parsed().vlan, 100);
    for _ in 0..2 {
        assert_eq!(router.wait(1000).len(), 1);
    }
    let given_up = router.wait(1000);
    assert_eq!(given_up.len(), 1);
    assert_eq!(given_up[0].icmp(), (icmp6::UNREACHABLE, icmp6::unreachable::ADDRESS, 0));
    assert_eq!(given_up[0].ends(), (ip("2001:db8::2"), ip(SERVER)));
    // It quotes the packet as it came, to the pool's address and with its hop limit.
    assert_eq!(&given_up[0].l3()[48..], &udp(SERVER, 53, "2001:db8::10", 5353)[..]);
    assert_eq!(router.drops(), [(DropReason::NoNeighbour, 1)]);
}

#[test]
fn the_router_answers_for_its_own_and_its_pools_addresses_and_nobody_elses() {
    let mut router = Router::new(&program());
    let from = ip("fe80::aa");
    let link_local = ipv6::link_local(mac(WAN));
    for target in [ip("2001:db8::2"), ip("2001:db8::10"), link_local] {
        let answer = router.send(WAN, 0, &solicitation(from, target));
        let Some(Message::Advertisement(tells)) = answer[0].message() else { panic!("{target}: {answer:?}") };
        assert_eq!((tells.target, tells.mac, tells.dst), (target, Some(mac(WAN)), from));
        assert!(tells.router && tells.solicited && tells.overrides);
        assert_eq!(&answer[0].frame[..6], &host_mac(from));
    }
    for target in ["2001:db8::99", "fd00::1", "fe80::1"] {
        assert_eq!(router.send(WAN, 0, &solicitation(from, ip(target))).len(), 0, "{target}");
    }
    // Somebody wants to have what is ours (RFC 4862 section 5.4): all are told.
    let mut probe = vec![0; nd::BYTES];
    let asks = Solicitation { mac: None, ..Solicitation::new(Ipv6Addr::UNSPECIFIED, [0; 6], ip("2001:db8::10")) };
    let length = asks.write(&mut probe).unwrap();
    let told = router.send(WAN, 0, &probe[..length]);
    let Some(Message::Advertisement(tells)) = told[0].message() else { panic!("{told:?}") };
    assert_eq!((tells.dst, tells.solicited), (ipv6::ALL_NODES, false));
    assert_eq!(told[0].frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
    // What came through another router is not believed.
    let mut far = solicitation(from, ip("2001:db8::2"));
    far[7] = 254;
    assert_eq!(router.send(WAN, 0, &far).len(), 0);
    assert_eq!(router.drops(), [(DropReason::Malformed, 1)]);
}

#[test]
fn proxied_addresses_are_answered_for_without_insisting() {
    let mut program = program();
    program.interfaces[2].proxy_arp = true;
    let to = Route { zone: 0, prefix: prefix("2001:db8::8:0/112"), target: RouteTarget::Zone(1), metric: 0 };
    program.routes.push(to);
    program.routes.push(Route {
        zone: 1,
        prefix: prefix("2001:db8::8:0/112"),
        target: RouteTarget::Interface(0),
        metric: 0,
    });
    let mut router = Router::new(&program);
    let answer = router.send(WAN, 0, &solicitation(ip(GATEWAY), ip("2001:db8::8:1")));
    let Some(Message::Advertisement(tells)) = answer[0].message() else { panic!("{answer:?}") };
    assert_eq!((tells.target, tells.src), (ip("2001:db8::8:1"), ipv6::link_local(mac(WAN))));
    assert!(!tells.overrides && tells.solicited);
    assert_eq!(router.send(WAN, 0, &solicitation(ip(GATEWAY), ip("2001:db8::9"))).len(), 0);
}

#[test]
fn an_advertisement_that_does_not_insist_replaces_nothing_and_one_unasked_for_is_not_learned() {
    let mut router = Router::ready(&program());
    let tell = |overrides, mac| {
        let mut bytes = vec![0; nd::BYTES];
        let (target, dst) = (ip(GATEWAY), ipv6::ALL_NODES);
        let tells =
            Advertisement { src: target, dst, target, mac: Some(mac), router: true, solicited: false, overrides };
        tells.write(&mut bytes).unwrap();
        bytes
    };
    let next_hop = |router: &mut Router, bytes: &[u8]| {
        router.send(WAN, 0, bytes);
        router.send(LAN, 100, &udp(HOST, 5353, SERVER, 53))[0].frame[..6].to_vec()
    };
    let (first, other) = (host_mac(ip(GATEWAY)), [2, 9, 9, 9, 9, 9]);
    assert_eq!(next_hop(&mut router, &tell(false, other)), first);
    assert_eq!(next_hop(&mut router, &tell(true, other)), other);
    let before = router.shared.adjacencies.list().len();
    router.send(WAN, 0, &advertisement(ip("2001:db8::77"), ipv6::link_local(mac(WAN))));
    assert_eq!(router.shared.adjacencies.list().len(), before);
}

#[test]
fn hop_limit_mtu_and_routes_are_answered_with_errors() {
    let mut router = Router::ready(&program());
    let expired = router.send(LAN, 100, &udp_of(HOST, 5353, SERVER, 53, 1, 4));
    assert_eq!(expired[0].icmp(), (icmp6::TIME_EXCEEDED, 0, 0));
    assert_eq!((expired[0].ends(), expired[0].parsed().vlan), ((ip("fd00::1"), ip(HOST)), 100));
    let big = router.send(LAN, 100, &udp_of(HOST, 5353, SERVER, 53, 64, 1400));
    assert_eq!(big[0].icmp(), (icmp6::PACKET_TOO_BIG, 0, 1400));
    assert_eq!(big[0].l3().len(), 1280);
    let nowhere = router.send(LAN, 100, &udp(HOST, 5353, "2001:db8:2::1", 53));
    assert_eq!(nowhere[0].icmp(), (icmp6::UNREACHABLE, icmp6::unreachable::NO_ROUTE, 0));
    // An error is never about an error.
    let quoted = udp(SERVER, 53, HOST, 5353);
    let error = icmp(HOST, "2001:db8:2::1", icmp6::UNREACHABLE, 4, 0, &quoted);
    assert_eq!(router.send(LAN, 100, &error).len(), 0);
    assert_eq!(router.connections().len(), 0);
    use DropReason::{NoRoute, TooBig, TtlExpired};
    assert_eq!(router.drops(), [(TtlExpired, 1), (NoRoute, 2), (TooBig, 1)]);
    // Established packets are no exception.
    assert_eq!(router.send(LAN, 100, &udp(HOST, 5353, SERVER, 53)).len(), 1);
    let expired = router.send(LAN, 100, &udp_of(HOST, 5353, SERVER, 53, 1, 4));
    assert_eq!(expired[0].icmp(), (icmp6::TIME_EXCEEDED, 0, 0));
    assert_eq!(&expired[0].l3()[48..], &udp_of(HOST, 5353, SERVER, 53, 1, 4)[..]);
}

#[test]
fn rejects_say_what_the_rule_says_and_rules_match_icmpv6() {
    let mut program = program();
    let to = |n: u16| {
        vec![MatchKey::Protocol(vec![UDP]), MatchKey::DestinationPort(vec![PortRange { first: n, last: n }])]
    };
    let kinds = [RejectKind::Admin, RejectKind::Host, RejectKind::Net, RejectKind::Port];
    for (number, kind) in (1..).zip(kinds) {
        program.hooks[Hook::Forward.index()].rules.push(rule(to(number), Action::Reject(kind)));
    }
    let tcp_25 =
        vec![MatchKey::Protocol(vec![TCP]), MatchKey::DestinationPort(vec![PortRange { first: 25, last: 25 }])];
    program.hooks[Hook::Forward.index()].rules.push(rule(tcp_25, Action::Reject(RejectKind::Default)));
    let echo = PortRange { first: 128, last: 128 };
    let source = AddressRange { first: ip("fd00::5").into(), last: ip("fd00::6").into() };
    let pings =
        vec![MatchKey::Protocol(vec![ICMPV6]), MatchKey::IcmpType(vec![echo]), MatchKey::Source(vec![source])];
    program.hooks[Hook::Forward.index()].rules.push(rule(pings, Action::Reject(RejectKind::Admin)));
    let mut router = Router::ready(&program);
    for (port, code) in (1..).zip([1, 3, 0, 4]) {
        let answer = router.send(LAN, 100, &udp(HOST, 5353, SERVER, port));
        assert_eq!(answer[0].icmp(), (icmp6::UNREACHABLE, code, 0), "port {port}");
    }
    let reset = router.send(LAN, 100, &tcp(HOST, 40_000, SERVER, 25, 0x02, 7, 0));
    assert_eq!((reset[0].tcp_flags(), reset[0].ends()), (0x14, (ip(SERVER), ip(HOST))));
    let prohibited = router.send(LAN, 100, &icmp(HOST, SERVER, 128, 0, 7 << 16, &[]));
    assert_eq!(prohibited[0].icmp(), (icmp6::UNREACHABLE, icmp6::unreachable::ADMIN, 0));
    assert_eq!(router.send(LAN, 100, &icmp("fd00::7", SERVER, 128, 0, 7 << 16, &[])).len(), 1);
    assert_eq!(router.drops(), [(DropReason::Rule, 6)]);
}

#[test]
fn the_router_answers_echo_to_its_addresses_and_refuses_services() {
    let mut router = Router::ready(&program());
    let answer = router.send(LAN, 100, &icmp(HOST, "fd00::1", icmp6::ECHO_REQUEST, 0, 5 << 16, b"x"));
    assert_eq!((answer[0].icmp().0, answer[0].ends()), (icmp6::ECHO_REPLY, (ip("fd00::1"), ip(HOST))));
    assert_eq!(router.connections().len(), 1);
    // On the link: answered there, and no connection is made of it.
    let (host, own) = ("fe80::aa", ipv6::link_local(mac(LAN)));
    router.send(LAN, 200, &solicitation(ip(host), own));
    let answer = router.send(LAN, 200, &icmp(host, &own.to_string(), icmp6::ECHO_REQUEST, 0, 5 << 16, b"x"));
    assert_eq!((answer[0].icmp().0, answer[0].ends()), (icmp6::ECHO_REPLY, (own, ip(host))));
    assert_eq!((answer[0].parsed().vlan, router.connections().len()), (200, 1));
    let refused = router.send(LAN, 100, &udp(HOST, 5353, "fd00::1", 53));
    assert_eq!(refused[0].icmp(), (icmp6::UNREACHABLE, icmp6::unreachable::PORT, 0));
    let reset = router.send(LAN, 100, &tcp(HOST, 40_000, "fd00::1", 80, 0x02, 7, 0));
    assert_eq!(reset[0].tcp_flags(), 0x14);
    assert_eq!(router.drops(), [(DropReason::Unsupported, 2)]);
}

#[test]
fn errors_are_translated_both_ways_with_what_they_quote() {
    let mut router = Router::ready(&program());
    let out = router.send(LAN, 100, &udp(HOST, 5353, SERVER, 53));
    let error = icmp("2001:db8:1::9", "2001:db8::10", icmp6::PACKET_TOO_BIG, 0, 1300, out[0].l3());
    let told = router.send(WAN, 0, &error);
    assert_eq!(told[0].icmp(), (icmp6::PACKET_TOO_BIG, 0, 1300));
    assert_eq!((told[0].ends(), told[0].parsed().vlan), ((ip("2001:db8:1::9"), ip(HOST)), 100));
    // The quoted packet is the one that the host sent, but for the hop limit at which it was quoted.
    let mut sent = udp(HOST, 5353, SERVER, 53);
    sent[7] = 63;
    assert_eq!(&told[0].l3()[48..], &sent[..]);
    // From inside: about the answer, from the host and from a router inside; both leave as the pool's address.
    let back = router.send(WAN, 0, &udp(SERVER, 53, "2001:db8::10", 5353));
    for inside in [HOST, "fd00::77"] {
        let told = router.send(LAN, 100, &icmp(inside, SERVER, icmp6::UNREACHABLE, 4, 0, back[0].l3()));
        assert_eq!(told[0].icmp(), (icmp6::UNREACHABLE, 4, 0));
        assert_eq!(told[0].ends(), (ip("2001:db8::10"), ip(SERVER)));
        let mut answer = udp(SERVER, 53, "2001:db8::10", 5353);
        answer[7] = 63;
        assert_eq!(&told[0].l3()[48..], &answer[..]);
    }
    // About nothing that is known, to somebody else, with a wrong checksum: invalid.
    let unknown = udp("2001:db8::10", 9, SERVER, 53);
    let mut broken = icmp("2001:db8:1::9", "2001:db8::10", icmp6::UNREACHABLE, 4, 0, out[0].l3());
    broken[42] ^= 1;
    let elsewhere = icmp("2001:db8:1::9", "2001:db8::2", icmp6::UNREACHABLE, 4, 0, out[0].l3());
    for packet in [icmp("2001:db8:1::9", "2001:db8::10", 1, 4, 0, &unknown), broken, elsewhere] {
        assert_eq!(router.send(WAN, 0, &packet).len(), 0);
    }
    assert_eq!(router.counter(erhu_planes::Counter::InvalidPackets), 3);
    assert_eq!(router.connections()[0].original.packets, 1);
}

#[test]
fn extension_headers_are_walked_over_and_fragments_are_not_supported() {
    let mut router = Router::ready(&program());
    // Destination options: padding of six bytes.
    let inner = udp(HOST, 5353, SERVER, 53);
    let mut extended = inner.clone();
    extended.splice(40..40, [UDP, 0, 1, 4, 0, 0, 0, 0]);
    extended[4..6].copy_from_slice(&20_u16.to_be_bytes());
    extended[6] = 60;
    let out = router.send(LAN, 100, &extended);
    assert_eq!(lines(&out), [format!("0 2001:db8::10 5353 > {SERVER} 53 hl 63")]);
    assert_eq!(out[0].l3()[40..48], extended[40..48]);
    assert_eq!(lines(&router.send(LAN, 100, &inner)), lines(&out));
    let mut fragment = inner.clone();
    fragment.splice(40..40, [UDP, 0, 0, 1, 0, 0, 0, 9]);
    fragment[4..6].copy_from_slice(&20_u16.to_be_bytes());
    fragment[6] = 44;
    assert_eq!(router.send(LAN, 100, &fragment).len(), 0);
    // One more extension header than is looked at: nobody knows what it is.
    let mut long = inner[..40].to_vec();
    for _ in 0..=ipv6::MOST_EXTENSIONS {
        long.extend([60, 0, 1, 4, 0, 0, 0, 0]);
    }
    let length = u16::try_from(long.len() - 40).unwrap();
    long[4..6].copy_from_slice(&length.to_be_bytes());
    long[6] = 60;
    assert_eq!(router.send(LAN, 100, &long).len(), 0);
    assert_eq!(router.drops(), [(DropReason::Unsupported, 1), (DropReason::Invalid, 1)]);
}

#[test]
fn addresses_of_no_single_host_are_not_forwarded_and_router_solicitations_are_consumed() {
    let mut router = Router::ready(&program());
    for (src, dst) in [
        ("::", SERVER),
        ("::1", SERVER),
        ("ff02::5", SERVER),
        (HOST, "ff0e::1"),
        (HOST, "::1"),
        (HOST, "::"),
        (HOST, "::ffff:192.0.2.1"),
        ("fe80::5", SERVER),
        (HOST, "fe80::99"),
        (HOST, "ff02::1:ff00:1"),
    ] {
        assert_eq!(router.send(LAN, 100, &udp(src, 5353, dst, 53)).len(), 0, "{src} > {dst}");
    }
    assert_eq!(router.drops(), [(DropReason::Unsupported, 10)]);
    let consumed = router.counter(erhu_planes::Counter::Consumed);
    let mut asks = icmp("fe80::5", "ff02::2", icmp6::ROUTER_SOLICITATION, 0, 0, &[]);
    asks[7] = 255;
    assert_eq!(router.send(LAN, 100, &asks).len(), 0);
    assert_eq!(router.counter(erhu_planes::Counter::Consumed), consumed + 1);
    // Listener reports, advertisements of routers.
    assert_eq!(router.send(LAN, 100, &icmp("fe80::5", "ff02::16", 143, 0, 0, &[])).len(), 0);
    let mut tells = icmp("fe80::5", "ff02::1", icmp6::ROUTER_ADVERTISEMENT, 0, 0, &[0; 8]);
    tells[7] = 255;
    assert_eq!(router.send(LAN, 100, &tells).len(), 0);
    assert_eq!(router.drops(), [(DropReason::Unsupported, 12)]);
    assert_eq!(router.connections().len(), 0);
}

#[test]
fn a_datagram_without_checksum_is_translated_and_stays_without() {
    let mut router = Router::ready(&program());
    let mut bare = udp(HOST, 5353, SERVER, 53);
    bare[46..48].fill(0);
    let out = router.send(LAN, 100, &bare);
    assert_eq!(out[0].ends(), (ip("2001:db8::10"), ip(SERVER)));
    assert_eq!(out[0].l3()[46..48], [0, 0]);
}

#[test]
fn new_rules_end_what_they_would_translate_otherwise_and_keep_the_rest() {
    let mut router = Router::ready(&program());
    router.send(LAN, 100, &udp(HOST, 5353, SERVER, 53));
    router.send(LAN, 200, &udp(HOST, 5353, SERVER, 53));
    let ids = |router: &Router| {
        let mut all: Vec<(Tuple, u64)> = router.connections().iter().map(|c| (c.original.tuple, c.id)).collect();
        all.sort_unstable();
        all
    };
    let before = ids(&router);
    let mut changed = program();
    changed.pools[1].addresses = pool("green", "2001:db8::30").addresses;
    router.control.adopt(changed.encode().unwrap(), 0).unwrap();
    router.wait(1);
    let blue = router.send(LAN, 100, &udp(HOST, 5353, SERVER, 53));
    let green = router.send(LAN, 200, &udp(HOST, 5353, SERVER, 53));
    assert_eq!((blue[0].ends().0, green[0].ends().0), (ip("2001:db8::10"), ip("2001:db8::30")));
    let after = ids(&router);
    assert_eq!((before[0] == after[0], before[1] == after[1]), (true, false));
    assert_eq!(router.counter(erhu_planes::Counter::EndedByRules), 1);
}

#[test]
fn unsolicited_packets_to_a_pool_are_dropped() {
    let mut router = Router::ready(&program());
    assert_eq!(router.send(WAN, 0, &udp(SERVER, 53, "2001:db8::10", 5353)).len(), 0);
    router.send(LAN, 100, &udp(HOST, 5353, SERVER, 53));
    assert_eq!(router.send(WAN, 0, &udp("2001:db8:1::2", 53, "2001:db8::10", 5353)).len(), 0);
    assert_eq!(router.drops(), [(DropReason::NoMapping, 1), (DropReason::Filtered, 1)]);
}

/// Frames of every kind, each damaged in a few bytes, half of them with their checksum made right again. Whatever they
/// say, nothing of the tenants' addresses leaves by `wan`, and every frame is accounted for.
#[test]
fn damaged_packets_break_nothing_and_let_no_private_address_out() {
    let mut router = Router::ready(&program());
    let seed = 0x1966_u64;
    println!("seed {seed}");
    let mut rng = erhu_nat::Rng::new(seed);
    let quoted = udp(SERVER, 53, HOST, 5353);
    let good = [
        udp(HOST, 5353, SERVER, 53),
        tcp(HOST, 40_000, SERVER, 443, 0x02, 100, 0),
        tcp(HOST, 40_000, SERVER, 443, 0x10, 101, 901),
        icmp(HOST, SERVER, icmp6::ECHO_REQUEST, 0, 77 << 16 | 1, b"hello"),
        icmp(HOST, "fd00::1", icmp6::ECHO_REQUEST, 0, 77 << 16 | 1, b"hello"),
        icmp(HOST, SERVER, icmp6::UNREACHABLE, 4, 0, &quoted),
        solicitation(ip(HOST), ip("fd00::1")),
        advertisement(ip(HOST), ip("fd00::1")),
    ];
    let offered_before: u64 =
        router.shared.stats.worker(0).unwrap().ports.iter().map(|p| p.rx_packets.load(Ordering::Relaxed)).sum();
    for round in 0..20_000_u32 {
        let mut bytes = good[rng.below(8) as usize].clone();
        for _ in 0..=rng.below(3) {
            let at = rng.below(u32::try_from(bytes.len()).unwrap()) as usize;
            bytes[at] = u8::try_from(rng.below(256)).unwrap();
        }
        if rng.below(8) == 0 {
            bytes.truncate(rng.below(u32::try_from(bytes.len()).unwrap()) as usize);
        }
        if bytes.len() < 40 {
            continue;
        }
        if rng.below(2) == 0 {
            let proto = bytes[6];
            checksum::fill_l4_v6(&mut bytes, 40, proto);
        }
        for left in router.send(LAN, 100, &bytes) {
            let parsed = left.parsed();
            if left.port == WAN && matches!(parsed.kind, Kind::Fast6 | Kind::Ipv6Odd(_)) {
                assert!(left.ends().0.octets()[0] != 0xfd, "round {round}: {left:?}");
                // Nor in what errors quote; what a ping carries is its sender's business.
                let is_echo = left.frame.get(20) == Some(&58) && left.frame.get(54).is_some_and(|kind| *kind >= 128);
                assert!(
                    is_echo || !left.frame.windows(8).any(|w| w == [0xfd, 0, 0, 0, 0, 0, 0, 0]),
                    "round {round}: {left:?}"
                );
            }
        }
        if round % 64 == 0 {
            router.wait(100);
        }
    }
    for _ in 0..6 {
        router.wait(1000);
    }
    let block = router.shared.stats.worker(0).unwrap();
    let ports = |count: fn(&erhu_planes::stats::PortCounters) -> u64| block.ports.iter().map(count).sum::<u64>();
    let offered = ports(|p| p.rx_packets.load(Ordering::Relaxed));
    let sent = ports(|p| p.tx_packets.load(Ordering::Relaxed));
    let dropped: u64 = router.drops().iter().map(|(_, count)| count).sum();
    let (consumed, originated) =
        (router.counter(erhu_planes::Counter::Consumed), router.counter(erhu_planes::Counter::Originated));
    assert!(offered > offered_before + 10_000);
    assert_eq!(offered + originated, sent + dropped + consumed, "every packet is accounted for");
    assert_eq!(router.counter(erhu_planes::Counter::Bug), 0);
    let (created, ended) = (block.created.load(Ordering::Relaxed), block.ended.load(Ordering::Relaxed));
    assert_eq!(created - ended, u64::from(router.shared.table.live()));
}

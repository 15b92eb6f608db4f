//! Hostile input: frames, tenants, rule programs and shared memory that mean harm. Nothing panics, no private address
//! leaves by `wan`, and every packet stays accounted for.

#[path = "hostile/six.rs"]
mod six;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use erhu_controlplane::client::{AskError, Dataplane};
use erhu_controlplane::{Facts, check_script, cli};
use erhu_pipeline::HeapBuffer;
use erhu_pipeline::policy::PortFacts;
use erhu_planes::connections::{self, ConnectionsRegion};
use erhu_planes::events::{self, EventsRegion};
use erhu_planes::protocol::{Request, Response};
use erhu_planes::region::{Region, RegionError};
use erhu_planes::stats::{self, Directory, StatsRegion};
use erhu_testbed::audit;
use erhu_testbed::packet::{Packet, arp_request, icmp_error, ip_protocol, ping, tcp, udp};
use erhu_testbed::random::Random;
use erhu_testbed::replay::Plane;
use erhu_testbed::scenario::{EventKind, Scenario, Side, repository, router_mac};

const BLUE: Side = Side::vlan("lan", 100);
const GREEN: Side = Side::vlan("lan", 200);
const WAN: Side = Side::untagged("wan");
const MAIN: &str = "configs/two-tenants.rhai";

fn main_example() -> String {
    std::fs::read_to_string(repository().join(MAIN)).unwrap()
}

// ---- What a tenant may try ----

#[test]
fn answers_of_the_router_to_a_forged_source_do_not_leave_with_a_private_address() {
    let forged = "8.8.8.8";
    let outcome = Scenario::of_file(MAIN)
        .send(0.0, BLUE, udp("8.8.8.8:1000", "192.0.2.1:53").ttl(1))
        .send(0.1, BLUE, ping(forged, "10.0.0.1", 7))
        .send(0.2, BLUE, tcp("8.8.8.8:1000", "10.0.0.1:80").flags("S"))
        .send(0.3, BLUE, udp("8.8.8.8:1000", "10.0.0.1:53"))
        .send(0.4, BLUE, tcp("8.8.8.8:1000", "192.0.2.1:25").flags("S"))
        .until(10.0)
        .run();
    outcome.left(WAN, &[]);
    outcome.accounted();
}

#[test]
fn replies_of_a_connection_inside_a_tenant_do_not_leave_by_wan_untranslated() {
    // The sender's address is not one of blue's: the way back would lead through `main`.
    let outcome = Scenario::of_file(MAIN)
        .send(0.0, BLUE, udp("10.20.80.1:5000", "10.0.0.15:80"))
        .send(0.1, BLUE, udp("10.0.0.15:80", "10.20.80.1:5000"))
        .run();
    outcome.left(WAN, &[]);
}

#[test]
fn an_invalid_packet_stays_inside_where_translation_hangs_on_a_mark_of_prerouting() {
    let script = main_example()
        .replace("forward(#{ state: \"invalid\" }, drop);", "")
        .replace("postrouting(#{ zone: tenant,", "prerouting(#{ zone: tenant }, mark(7)); postrouting(#{ mark: 7,");
    let outcome = Scenario::of(&script)
        .send(0.0, BLUE, tcp("10.0.0.5:40000", "192.0.2.1:443").flags("SF"))
        .send(0.1, BLUE, tcp("10.0.0.5:40001", "192.0.2.1:443").flags("R"))
        .run();
    outcome.left(WAN, &[]);
    outcome.drops(&[("invalid", 2)]);
}

#[test]
fn an_invalid_packet_stays_inside_where_translation_hangs_on_a_mark_of_forward() {
    let script = main_example().replace("forward(#{ state: \"invalid\" }, drop);", "").replace(
        "postrouting(#{ zone: tenant,",
        "forward(#{ zone: tenant, state: \"new\" }, [mark(7), accept]); postrouting(#{ mark: 7,",
    );
    let outcome = Scenario::of(&script).send(0.0, BLUE, tcp("10.0.0.5:40000", "192.0.2.1:443").flags("SF")).run();
    outcome.left(WAN, &[]);
    outcome.drops(&[("invalid", 1)]);
}

#[test]
fn a_broadcast_address_of_a_connected_prefix_is_no_source() {
    let outcome = Scenario::of_file(MAIN).send(0.0, BLUE, udp("10.0.0.255:5", "192.0.2.1:53")).run();
    outcome.left(WAN, &[]);
    outcome.drops(&[("unsupported", 1)]);
}

#[test]
fn a_tenant_that_claims_every_address_of_its_prefix_leaves_neighbours_to_others() {
    let script = main_example().replacen("10.0.0.1/24", "10.0.0.1/8", 1);
    let claims = (0..66_000_u32).map(|n| {
        let claimed = Ipv4Addr::from(0x0a01_0000 + n).to_string();
        arp_request(&claimed, &claimed)
    });
    let outcome = Scenario::of(&script)
        .send_all(0.0, BLUE, claims)
        .send(1.0, GREEN, udp("10.0.0.5:5353", "192.0.2.1:53"))
        .run();
    outcome.left(WAN, &["udp 198.51.100.20:5353 > 192.0.2.1:53"]);
}

#[test]
fn a_related_error_larger_than_the_egress_mtu_does_not_leave() {
    let script = main_example().replacen("address: [\"10.0.0.1/24\"]", "address: [\"10.0.0.1/24\"], mtu: 600", 1);
    let first = Scenario::of(&script).send(0.0, BLUE, udp("10.0.0.5:5353", "192.0.2.1:53"));
    let public = first.run().only(WAN).source();
    let quoted = udp(&public.to_string(), "192.0.2.1:53").payload_len(900);
    let error = icmp_error("192.0.2.1", &public.ip().to_string(), 3, 3).about_whole(&quoted.l3()).df();
    let outcome = first.send(1.0, WAN, error).run();
    outcome.drops(&[("too_big", 1)]);
}

// ---- Counters ----

#[test]
fn what_the_router_may_not_send_itself_is_no_dropped_packet_of_somebody() {
    let outcome = Scenario::of(&(main_example() + "\noutput(#{}, drop);\n"))
        .send(0.0, BLUE, udp("10.0.0.5:5353", "192.0.2.1:53").ttl(1))
        .run();
    outcome.accounted();
}

#[test]
fn a_zone_that_a_reload_takes_away_or_renames_keeps_its_counts() {
    let gone = "interface(\"wan\", #{ port: \"wan\", address: [\"198.51.100.2/24\"] });";
    let renamed = main_example().replace("\"blue\"", "\"azure\"").replace("blue-public", "azure-public");
    for (script, name) in [(gone, "blue"), (&renamed, "azure")] {
        let outcome = Scenario::of_file(MAIN)
            .send(0.0, BLUE, udp("10.0.0.5:5353", "192.0.2.1:53"))
            .apply(1.0, script)
            .until(300.0)
            .run();
        for zone in ["main", name] {
            assert_eq!(outcome.stat(&["zones", zone, "live"]), 0, "{zone}\n{outcome}");
        }
    }
}

#[test]
fn every_end_is_told_when_more_end_at_once_than_a_ring_holds() {
    let script = main_example().replace("60_000", "100_000");
    let flows = (0..70_000_u32).map(|n| {
        let server = if n < 35_000 { "192.0.2.1:53" } else { "192.0.2.2:53" };
        udp(&format!("10.0.0.5:{}", 1024 + n % 35_000), server)
    });
    let outcome = Scenario::of(&script).connections(100_000).send_all(0.0, BLUE, flows).until(60.0).run();
    let [made, ended] = [EventKind::New, EventKind::Destroy].map(|kind| outcome.count_events(kind));
    assert_eq!(made, ended);
}

// ---- Replay ----

#[test]
fn who_answers_arp_does_not_depend_on_the_size_of_bursts() {
    // Two hosts use one address at the same instant; the router asks after the first of them.
    let scenario = Scenario::of_file(MAIN)
        .send(0.0, BLUE, ping("10.0.0.9", "10.0.0.1", 1).mac_from([2, 0, 0, 0, 0, 1]))
        .send(0.0, BLUE, ping("10.0.0.9", "10.0.0.1", 2).mac_from([2, 0, 0, 0, 0, 2]));
    let frames =
        |burst: usize| scenario.clone().burst(burst).run().frames(BLUE).into_iter().cloned().collect::<Vec<_>>();
    assert_eq!(frames(1), frames(64));
}

// ---- Seeded damage ----

fn ports() -> Vec<PortFacts> {
    let port = |(at, name): (usize, &str)| PortFacts { name: name.into(), mac: router_mac(at) };
    ["lan", "wan"].into_iter().enumerate().map(port).collect()
}

fn encoded(path: &Path) -> Vec<u8> {
    let facts = Facts { ports: Some(vec!["lan".into(), "wan".into()]), capacity: None };
    check_script(path, &facts).unwrap().program.encode().unwrap()
}

/// A plane with its clock, and what the tests ask of it after each step.
struct Router {
    plane: Plane,
    now_ns: u64,
}

const BOOT_NS: u64 = 1_000_000_000_000;

impl Router {
    fn new(workers: usize) -> Self {
        let mut router = Self { plane: Plane::new(&ports(), 4096, workers, 1).unwrap(), now_ns: 0 };
        router.pass(0);
        router
    }

    /// Lets time pass.
    fn pass(&mut self, ns: u64) {
        self.now_ns += ns;
        self.plane.set_time(1_700_000_000_000_000_000 + self.now_ns, BOOT_NS + self.now_ns);
        self.plane.settle();
    }

    fn adopt(&mut self, program: &[u8]) -> bool {
        matches!(self.plane.ask(&Request::Adopt, Some(program)), Ok((Response::Adopted { .. }, _)))
    }

    fn offer(&mut self, worker: usize, port: u16, frame: &[u8]) {
        self.plane.offer(worker, port, &mut vec![HeapBuffer::new(frame)]);
    }

    fn sent(&mut self) -> [Vec<Vec<u8>>; 2] {
        [self.plane.take_sent(0), self.plane.take_sent(1)]
    }

    /// Lets everything expire, in steps.
    fn outlive_all(&mut self) {
        for seconds in [1, 1, 1, 1, 60, 600, 10_000, 500_000, 100_000_000] {
            self.pass(seconds * 1_000_000_000);
        }
    }

    /// What is wrong with the counters.
    fn faults(&mut self, idle: bool) -> Vec<String> {
        self.plane.publish();
        let mut faults = audit::faults(self.plane.shared());
        if idle {
            let shared = self.plane.shared();
            let relaxed = Ordering::Relaxed;
            for (slot, _, name) in shared.stats.names(Directory::Zones) {
                let of = |pick: &dyn Fn(&stats::ZoneBlock) -> u64| {
                    shared.stats.sum(|w| shared.stats.zone(w, slot).map_or(0, pick))
                };
                let [created, ended] = [of(&|b| b.created.load(relaxed)), of(&|b| b.ended.load(relaxed))];
                if ended != created {
                    faults.push(format!("zone {name}: {created} created, {ended} ended"));
                }
            }
            if shared.table.live() != 0 {
                faults.push(format!("{} connections outlive every timeout", shared.table.live()));
            }
        }
        if idle && let Ok((Response::Pools { pools }, _)) = self.plane.ask(&Request::Pools, None) {
            for pool in pools {
                if pool.given != pool.returned {
                    faults.push(format!("pool {}: {} given, {} returned", pool.name, pool.given, pool.returned));
                }
            }
        }
        faults
    }
}

/// A frame as it comes from a side.
fn from(side: Side, packet: Packet) -> (u16, Vec<u8>) {
    let port = usize::from(side == WAN);
    let packet = packet.mac_to_default(router_mac(port));
    let packet = if let Some(id) = side.vlan { packet.vlan(id) } else { packet };
    (u16::try_from(port).unwrap(), packet.bytes())
}

/// A bit of everything.
fn frames() -> Vec<(u16, Vec<u8>)> {
    let inside = |side| {
        let host = "10.0.0.5";
        [
            arp_request("10.0.0.1", host),
            udp("10.0.0.5:5353", "192.0.2.1:53").payload(b"query"),
            tcp("10.0.0.5:40000", "192.0.2.1:443").flags("S").seq(1),
            ping(host, "192.0.2.1", 77).payload(b"abc"),
            ping(host, "10.0.0.1", 78),
            tcp("10.0.0.5:40001", "192.0.2.1:25").flags("S"),
            tcp("10.0.0.5:40002", "192.0.2.1:443").flags("SF"),
            tcp("10.0.0.5:40003", "192.0.2.1:443").flags("A").payload(b"data"),
            tcp("10.0.0.5:40003", "192.0.2.1:443").flags("R"),
            udp("10.0.0.5:1", "192.0.2.1:33434").ttl(1),
            udp("10.0.0.5:1", "192.0.2.1:33434").payload_len(1490).df(),
            udp("10.0.0.5:1", "10.0.0.255:9"),
            udp("10.0.0.5:1", "198.51.100.20:9"),
            udp("10.0.0.5:1", "198.51.100.2:9"),
            udp("10.0.0.5:1", "192.0.2.1:9").fragment(0, true),
            udp("10.0.0.5:1", "192.0.2.1:9").options(&[7, 7, 4, 0, 0, 0, 0, 0]),
            ip_protocol(host, "192.0.2.1", 47),
            icmp_error(host, "192.0.2.1", 3, 3).about(&udp("192.0.2.1:53", "10.0.0.5:5353").l3()),
        ]
        .into_iter()
        .map(move |packet| from(side, packet))
    };
    let outside = [
        arp_request("198.51.100.10", "198.51.100.1"),
        arp_request("198.51.100.20", "198.51.100.20"),
        udp("192.0.2.1:53", "198.51.100.10:5353"),
        tcp("192.0.2.1:443", "198.51.100.20:40000").flags("SA"),
        udp("192.0.2.1:53", "10.0.0.5:5353"),
        ping("192.0.2.1", "198.51.100.2", 5),
        icmp_error("192.0.2.9", "198.51.100.10", 11, 0).about(&udp("198.51.100.10:5353", "192.0.2.1:53").l3()),
    ];
    inside(BLUE).chain(inside(GREEN)).chain(outside.into_iter().map(|packet| from(WAN, packet))).collect()
}

/// Ends of an untagged IPv4 frame swapped: as good as an answer.
fn answer_to(frame: &[u8]) -> Option<Vec<u8>> {
    if frame.len() < 42 || frame[12..15] != [8, 0, 0x45] {
        return None;
    }
    let mut answer = frame.to_vec();
    answer[..6].copy_from_slice(&frame[6..12]);
    answer[6..12].copy_from_slice(&frame[..6]);
    answer[26..30].copy_from_slice(&frame[30..34]);
    answer[30..34].copy_from_slice(&frame[26..30]);
    match frame[23] {
        6 | 17 => {
            answer[34..36].copy_from_slice(&frame[36..38]);
            answer[36..38].copy_from_slice(&frame[34..36]);
        }
        1 if frame[34] == 8 => {
            answer[34] = 0;
            fix_checksums(&mut answer);
        }
        _ => return None,
    }
    Some(answer)
}

fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or(u16::MAX)
}

/// Makes the checksums of an IPv4 frame right again, so that damage reaches what lies behind them.
fn fix_checksums(frame: &mut [u8]) {
    let l3 = if frame.get(12..14) == Some(&[0x81, 0]) { 18 } else { 14 };
    let Some(packet) = frame.get_mut(l3..).filter(|p| p.len() >= 20 && p[0] >> 4 == 4) else { return };
    let (ihl, length) = (usize::from(packet[0] & 15) * 4, usize::from(u16::from_be_bytes([packet[2], packet[3]])));
    if ihl < 20 || length < ihl || length > packet.len() {
        return;
    }
    packet[10..12].fill(0);
    let header = sum(&packet[..ihl], 0);
    packet[10..12].copy_from_slice(&header.to_be_bytes());
    let proto = packet[9];
    let pseudo = !sum(&packet[12..20], u32::from(proto) + u32::try_from(length - ihl).unwrap());
    let (at, start) = match proto {
        1 => (2, 0),
        6 => (16, u32::from(pseudo)),
        17 => (6, u32::from(pseudo)),
        _ => return,
    };
    let upper = &mut packet[ihl..length];
    if upper.len() < at + 2 {
        return;
    }
    upper[at..at + 2].fill(0);
    let right = sum(upper, start);
    upper[at..at + 2].copy_from_slice(&right.to_be_bytes());
}

/// The same for L4 of an IPv6 packet, given from its header on, behind extension headers that are sound.
fn fix_checksums6(packet: &mut [u8]) {
    if packet.len() < 40 || packet[0] >> 4 != 6 {
        return;
    }
    let end = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    let (mut proto, mut at) = (packet[6], 40);
    while matches!(proto, 0 | 43 | 60) {
        let Some(&[next, units]) = packet.get(at..at + 2) else { return };
        (proto, at) = (next, at + 8 + usize::from(units) * 8);
    }
    let field = match proto {
        6 => 16,
        17 => 6,
        58 => 2,
        _ => return,
    };
    if end > packet.len() || at + field + 2 > end {
        return;
    }
    let pseudo = !sum(&packet[8..40], u32::from(proto) + u32::try_from(end - at).unwrap());
    let upper = &mut packet[at..end];
    upper[field..field + 2].fill(0);
    let right = match sum(upper, u32::from(pseudo)) {
        0 => u16::MAX,
        right => right,
    };
    upper[field..field + 2].copy_from_slice(&right.to_be_bytes());
}

/// Source of an IPv4 frame that leaves untagged.
fn source(frame: &[u8]) -> Option<Ipv4Addr> {
    let ip = frame.get(14..34).filter(|_| frame[12..14] == [8, 0])?;
    Some(Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]))
}

fn is_own(address: Ipv4Addr) -> bool {
    let [a, b, c, d] = address.octets();
    [a, b, c] == [198, 51, 100] && [2, 10, 11, 20].contains(&d)
}

#[test]
fn damaged_frames_break_nothing_and_let_no_private_address_out() {
    let (program, frames) = (encoded(&repository().join(MAIN)), frames());
    for workers in [1, 3] {
        let mut random = Random::new(7 + workers as u64);
        let mut router = Router::new(workers);
        assert!(router.adopt(&program));
        let (mut answers, mut leaks): (Vec<Vec<u8>>, Vec<String>) = (Vec::new(), Vec::new());
        for round in 0..60_000 {
            let (port, mut frame) = match answers.pop() {
                Some(answer) if random.below(2) == 0 => (1, answer),
                _ => frames[random.below(frames.len())].clone(),
            };
            for _ in 0..random.below(4) {
                let at = random.below(frame.len().max(1)).max(if random.below(4) == 0 { 0 } else { 14 });
                match random.below(8) {
                    0 => frame.truncate(at),
                    1 => frame.resize(frame.len() + random.below(64), 0xee),
                    _ => {
                        let value = random.byte();
                        if let Some(byte) = frame.get_mut(at) {
                            *byte = value;
                        }
                    }
                }
            }
            if random.below(4) != 0 {
                fix_checksums(&mut frame);
            }
            router.offer(random.below(workers), port, &frame);
            let [_, left] = router.sent();
            for sent in left {
                if let Some(address) = source(&sent).filter(|address| !is_own(*address)) {
                    leaks.push(format!("round {round}: {address} leaves by wan, after {frame:02x?}"));
                }
                answers.extend(answer_to(&sent).filter(|_| answers.len() < 64));
            }
            if round % 8 == 0 {
                router.pass(random.next() % 2_000_000_000);
                router.sent();
            }
            if round % 5000 == 0 {
                assert_eq!(router.faults(false), [""; 0], "round {round}, {workers} workers");
                assert!(router.adopt(&program));
            }
        }
        router.outlive_all();
        assert_eq!(router.faults(true), [""; 0], "at the end, {workers} workers");
        assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks[..leaks.len().min(10)].join("\n"));
    }
}

#[test]
fn memory_that_contradicts_itself_is_noticed() {
    let mut router = Router::new(1);
    assert!(router.adopt(&encoded(&repository().join(MAIN))));
    for packet in [udp("10.0.0.5:5353", "192.0.2.1:53"), ping("10.0.0.5", "192.0.2.1", 77)] {
        let (port, frame) = from(BLUE, packet);
        router.offer(0, port, &frame);
    }
    assert_eq!(router.faults(false), [""; 0]);
    let shared = router.plane.shared();
    let mut lines = Vec::new();
    shared.table.region().for_each(|connection| lines.push(connection.line));
    let entry = shared.table.entry_at(lines[0]).unwrap();
    let block = shared.stats.worker(0).unwrap();
    let zone = shared.stats.zone(0, 1).unwrap();
    let (hot, cold, relaxed) = (entry.hot4(0), entry.cold(), Ordering::Relaxed);
    // Each change is its own undoing.
    let changes: [(&str, &dyn Fn()); 8] = [
        ("does not leave as", &|| _ = hot.addresses.fetch_xor(1 << 32, relaxed)),
        ("does not leave as", &|| _ = hot.ports_deltas.fetch_xor(1, relaxed)),
        ("does not leave as", &|| _ = hot.ports_deltas.fetch_xor(1 << 63, relaxed)),
        ("the index finds", &|| _ = hot.key[0].fetch_xor(1, relaxed)),
        ("connections hold", &|| _ = cold.nat_kind.fetch_xor(erhu_nat::kind::ENDPOINT, relaxed)),
        ("that live", &|| _ = block.created.fetch_xor(8, relaxed)),
        ("packets came", &|| _ = block.ports[0].rx_packets.fetch_xor(8, relaxed)),
        ("live in all", &|| _ = zone.created.fetch_xor(8, relaxed)),
    ];
    for (number, (what, change)) in changes.into_iter().enumerate() {
        change();
        let faults = audit::faults(shared).join("\n");
        assert!(faults.contains(what), "change {number}: {what:?} is not in {faults:?}");
        change();
    }
    assert_eq!(audit::faults(shared), [""; 0]);
}

/// CRC-32 as programs carry it (IEEE 802.3, reflected).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

const HEADER: usize = 32;

/// Makes length and checksum of a damaged program right again.
fn sealed(mut program: Vec<u8>) -> Vec<u8> {
    if program.len() >= HEADER {
        let body = (program.len() - HEADER) as u64;
        program[16..24].copy_from_slice(&body.to_le_bytes());
        let sum = crc32(&program[HEADER..]);
        program[12..16].copy_from_slice(&sum.to_le_bytes());
    }
    program
}

/// Runs traffic under the good program, a damaged one and the good one again; what is wrong after that.
fn run_damaged(good: &[u8], damaged: &[u8], frames: &[(u16, Vec<u8>)]) -> Option<Vec<String>> {
    let mut router = Router::new(1);
    assert!(router.adopt(good));
    let traffic = |router: &mut Router| {
        for (port, frame) in frames {
            router.offer(0, *port, frame);
        }
        let [_, left] = router.sent();
        for answer in left.iter().filter_map(|sent| answer_to(sent)) {
            router.offer(0, 1, &answer);
        }
        router.sent();
        router.pass(500_000_000);
    };
    traffic(&mut router);
    if !router.adopt(damaged) {
        return None;
    }
    traffic(&mut router);
    traffic(&mut router);
    let mut faults = router.faults(false);
    assert!(router.adopt(good));
    traffic(&mut router);
    router.outlive_all();
    faults.extend(router.faults(true));
    Some(faults)
}

#[test]
fn a_rule_program_with_bytes_changed_is_refused_or_runs_without_harm() {
    let (good, frames) = (encoded(&repository().join(MAIN)), frames());
    assert_eq!(sealed(good.clone()), good);
    let mut random = Random::new(11);
    let (mut ran, mut harmful) = (0, Vec::new());
    for round in 0..2000 {
        let mut damaged = good.clone();
        let at = HEADER + random.below(good.len() - HEADER);
        damaged[at] = if round % 2 == 0 { random.byte() } else { damaged[at] ^ 1 << random.below(8) };
        if damaged != good {
            assert!(erhu_planes::program::Program::decode(&damaged).is_err(), "byte {at}: the checksum must tell");
        }
        let value = damaged[at];
        match run_damaged(&good, &sealed(damaged), &frames) {
            Some(faults) if faults.is_empty() => ran += 1,
            Some(faults) => harmful.push(format!("byte {at} = {value:#x}: {}", faults.join("; "))),
            None => {}
        }
    }
    assert!(ran > 100, "only {ran} changes were accepted: the test tests nothing");
    assert!(harmful.is_empty(), "{} of {ran} harm:\n{}", harmful.len(), harmful[..harmful.len().min(20)].join("\n"));
}

#[test]
fn a_rule_program_that_is_cut_short_is_refused_at_any_length() {
    let good = encoded(&repository().join(MAIN));
    let mut router = Router::new(1);
    assert!(router.adopt(&good));
    for length in 0..good.len() {
        for damaged in [good[..length].to_vec(), sealed(good[..length].to_vec())] {
            assert!(!router.adopt(&damaged), "{length} of {} bytes", good.len());
        }
    }
    assert_eq!(router.plane.shared().generation(), 1);
}

// ---- Shared memory ----

/// A plane whose regions are read from damaged copies.
struct Damaged<'p> {
    plane: &'p mut Plane,
    folder: PathBuf,
}

impl Dataplane for Damaged<'_> {
    fn ask(&mut self, request: &Request, file: Option<&[u8]>) -> Result<(Response, Option<Vec<u8>>), AskError> {
        self.plane.ask(request, file)
    }

    fn connections(&self) -> Result<ConnectionsRegion, RegionError> {
        ConnectionsRegion::attached(Region::attach(&self.folder.join("connections"), &connections::EXPECT)?)
    }

    fn stats(&self) -> Result<StatsRegion, RegionError> {
        StatsRegion::attached(Region::attach(&self.folder.join("stats"), &stats::EXPECT)?)
    }

    fn events(&self) -> Result<EventsRegion, RegionError> {
        EventsRegion::attached(Region::attach(&self.folder.join("events"), &events::EXPECT)?)
    }

    fn history(&self) -> Option<&Path> {
        self.plane.history()
    }
}

/// Copies a region into a file that can be written.
fn copy(region: &Region, path: &Path) -> Region {
    let from = region.slice::<AtomicU8>(0, region.len()).unwrap();
    let copy = Region::create(path, region.len(), 0o600).unwrap();
    copy.allocate(0, region.len()).unwrap();
    for (to, from) in copy.slice::<AtomicU8>(0, region.len()).unwrap().iter().zip(from) {
        let byte = from.load(Ordering::Relaxed);
        if byte != 0 {
            to.store(byte, Ordering::Relaxed);
        }
    }
    copy
}

#[test]
fn readers_survive_any_bytes_in_shared_memory() {
    let mut router = Router::new(1);
    router.plane.want_events().unwrap();
    assert!(router.adopt(&encoded(&repository().join(MAIN))));
    for (port, frame) in frames() {
        router.offer(0, port, &frame);
    }
    router.plane.publish();
    let folder = tempfile::tempdir().unwrap();
    let copies = {
        let shared = router.plane.shared();
        let regions = [
            ("connections", shared.table.region().region()),
            ("stats", shared.stats.region()),
            ("events", shared.events.region()),
        ];
        regions.map(|(name, region)| copy(region, &folder.path().join(name)))
    };
    let commands = [
        "conntrack -L -o extended,id",
        "conntrack -L --json",
        "conntrack -C",
        "conntrack -S",
        "conntrack -G -p udp -s 10.0.0.5 -d 192.0.2.1 --sport 5353 --dport 53 -w 1",
        "show stats",
        "show zones",
        "show interfaces",
        "show ports",
        "show workers",
        "show rules",
        "show pools",
    ];
    let mut random = Random::new(13);
    let mut damaged = Damaged { plane: &mut router.plane, folder: folder.path().into() };
    for round in 0..150 {
        for region in &copies {
            let bytes = region.slice::<AtomicU8>(0, region.len()).unwrap();
            let reach = [128, 1 << 13, 1 << 17, 1 << 22, region.len()][random.below(5)].min(region.len());
            for _ in 0..random.below(200) {
                let value = [0, 1, 0x7f, 0xff, random.byte()][random.below(5)];
                bytes[64 + random.below(reach - 64)].store(value, Ordering::Relaxed);
            }
        }
        let command = commands[round % commands.len()];
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let words = cli::split_command(command).unwrap();
        let mut env = cli::Env { out: &mut out, err: &mut err, dataplane: Some(&mut damaged), is_terminal: false };
        let status = cli::run(words, &mut env);
        assert!(status != 2, "{command}: {}", String::from_utf8_lossy(&err));
        if let Ok(region) = damaged.events() {
            for worker in 0..region.workers().min(64) {
                for sequence in [0, 1, 2, random.next(), u64::MAX, region.newest(worker)] {
                    let _ = region.read(worker, sequence);
                }
            }
        }
    }
}

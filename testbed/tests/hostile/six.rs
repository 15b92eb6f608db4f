//! IPv6 that means harm: what is wrong with each frame is counted once, under the reason that it has, and whatever bytes
//! are changed nothing breaks and no private address gets out.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::path::Path;

use erhu_testbed::packet::read::Content;
use erhu_testbed::packet::{
    Packet, icmp_error, ip_protocol, neighbour_advertisement, neighbour_solicitation, ping, raw, tcp, udp,
};
use erhu_testbed::random::Random;
use erhu_testbed::scenario::Scenario;

use super::{BLUE, Router, WAN, encoded, from};

/// A tenant behind a pool, and nothing of IPv4.
const SCRIPT: &str = r#"
    zone("blue", #{ id: 1 });
    interface("lan.100", #{ port: "lan", vlan: 100, zone: "blue", address: ["fd00::1/64"] });
    interface("wan", #{ port: "wan", address: ["2001:db8::2/64"] });
    pool("public", #{ addresses: "2001:db8::10" });
    route("blue", "::/0", #{ zone: "main" });
    route("main", "::/0", #{ via: "2001:db8::1" });
    postrouting(#{ zone: "blue", egress: "wan" }, snat(#{ pool: "public" }));
    forward(#{ state: ["established", "related"] }, accept);
    forward(#{ state: "invalid" }, drop);
    forward(#{ ingress: "wan", state: "new" }, drop);
"#;

const HOST: &str = "fd00::5";
const SERVER: &str = "2001:db8:1::1";

fn datagram() -> Packet {
    udp("[fd00::5]:1000", "[2001:db8:1::1]:53").payload(b"sixteen bytes ok")
}

fn segment(flags: &str) -> Packet {
    tcp("[fd00::5]:1001", "[2001:db8:1::1]:443").flags(flags).seq(1)
}

/// A fragment header: what follows, offset in bytes, more.
fn fragment(packet: Packet, offset: u16, more: bool) -> Packet {
    let [high, low] = (offset | u16::from(more)).to_be_bytes();
    // The builder's second byte of an extension, its length, is reserved here, and 0 for eight bytes.
    packet.extension(44, &[high, low, 0, 0, 0, 9])
}

/// A neighbour solicitation's options begin here, from the IPv6 header on.
const ND_OPTIONS: usize = 40 + 24;

/// A packet whose bytes from the IPv6 header on are changed, and its ICMPv6 checksum made again if it has one.
fn changed(packet: &Packet, change: impl FnOnce(&mut Vec<u8>)) -> Packet {
    let mut bytes = packet.l3();
    change(&mut bytes);
    super::fix_checksums6(&mut bytes);
    raw(0x86dd, &bytes)
}

/// Frames of blue's by what is wrong with them, and what is counted: the only drop reason, or none where the router
/// consumes what it does not forward.
fn wrong() -> Vec<(&'static str, Packet, Option<&'static str>)> {
    let asks = || neighbour_solicitation("fd00::1", HOST);
    let tells = || neighbour_advertisement(HOST, ("fd00::1", super::router_mac(0)));
    let with = |packet: Packet, at: usize, value: u8| packet.ip_byte(at, value);
    vec![
        ("a hop-by-hop header behind another", datagram().extension(60, b"").extension(0, b""), Some("malformed")),
        (
            "an extension header longer than the packet",
            with(datagram().extension(60, b""), 41, 200),
            Some("malformed"),
        ),
        (
            "an extension header that ends in the frame's padding",
            with(datagram().extension(60, b""), 41, 4).padding(&[0; 64]),
            Some("malformed"),
        ),
        ("a payload longer than the frame", with(with(datagram(), 4, 1), 5, 0), Some("malformed")),
        ("no payload, where a datagram should be", with(with(datagram(), 4, 0), 5, 0), Some("rule")),
        (
            "no payload length, and no jumbo option",
            with(with(datagram().extension(0, b""), 4, 0), 5, 0),
            Some("malformed"),
        ),
        ("a jumbogram", with(with(datagram().extension(0, &[0xc2, 4, 0, 1, 0, 0]), 4, 0), 5, 0), Some("malformed")),
        ("a jumbo option with a length besides", datagram().extension(0, &[0xc2, 4, 0, 1, 0, 0]), None),
        ("another version", with(datagram(), 0, 0x50), Some("malformed")),
        ("a first fragment", fragment(datagram(), 0, true), Some("unsupported")),
        ("a later fragment", fragment(datagram(), 16, true), Some("unsupported")),
        ("a fragment that overlaps", fragment(datagram(), 8, false), Some("unsupported")),
        ("the last fragment at the end of all", fragment(datagram(), 0xfff8, false), Some("unsupported")),
        ("a fragment header that is cut", fragment(datagram(), 0, true).cut(18 + 40 + 4), Some("malformed")),
        (
            "a header of fragments in a header of fragments",
            fragment(fragment(datagram(), 0, true), 0, true),
            Some("unsupported"),
        ),
        ("a datagram shorter than its header", datagram().udp_length(7), Some("rule")),
        ("a datagram longer than its packet", datagram().udp_length(400), Some("rule")),
        ("a datagram with a wrong checksum", datagram().bad_checksum(), Some("rule")),
        ("a segment whose header is longer than it is", segment("S").data_offset(15), Some("rule")),
        ("a segment whose header is shorter than any", segment("S").data_offset(4), Some("rule")),
        ("flags that no host sends", segment("SF"), Some("rule")),
        ("an echo with a wrong checksum", ping(HOST, SERVER, 7).bad_checksum(), Some("rule")),
        ("an error that quotes nothing", icmp_error(HOST, SERVER, 1, 4), Some("rule")),
        (
            "an error that quotes extension headers without end",
            icmp_error(HOST, SERVER, 1, 4).about_bytes(&quoted().l3(), 48),
            Some("rule"),
        ),
        (
            "an error that quotes an error",
            icmp_error(HOST, SERVER, 1, 4).about(&icmp_error(SERVER, HOST, 1, 4).about(&datagram().l3()).l3()),
            Some("rule"),
        ),
        (
            "an error about a packet that nobody sent",
            icmp_error(HOST, SERVER, 1, 4).about(&udp("[2001:db8:1::1]:53", "[fd00::5]:1000").l3()),
            Some("rule"),
        ),
        ("a group as source", udp("[ff0e::5]:1", "[2001:db8:1::1]:53"), Some("unsupported")),
        ("nobody as source", udp("[::]:1", "[2001:db8:1::1]:53"), Some("unsupported")),
        ("loopback as source", udp("[::1]:1", "[2001:db8:1::1]:53"), Some("unsupported")),
        ("an address of one link as source", udp("[fe80::5]:1", "[2001:db8:1::1]:53"), Some("unsupported")),
        ("an address of IPv4 as source", udp("[::ffff:10.0.0.5]:1", "[2001:db8:1::1]:53"), Some("unsupported")),
        ("a group as destination", udp("[fd00::5]:1", "[ff0e::1]:53"), Some("unsupported")),
        // RFC 6946: a fragment that is all of its packet is no fragment. Nor is this a jumbogram.
        ("an atomic fragment", fragment(datagram(), 0, false), None),
        ("the router's own address as source", udp("[fd00::1]:1", "[2001:db8:1::1]:53"), None),
        ("a hop limit that ends here", datagram().ttl(1), Some("ttl_expired")),
        ("a hop limit that has ended", datagram().ttl(0), Some("ttl_expired")),
        ("a solicitation that came over a router", asks().ttl(254), Some("malformed")),
        ("a solicitation with a wrong checksum", asks().bad_checksum(), Some("unsupported")),
        ("a solicitation with a code", changed(&asks(), |b| b[41] = 1), Some("malformed")),
        ("a solicitation of a group", changed(&asks(), |b| b[48] = 0xff), Some("malformed")),
        (
            "a solicitation with an option of no length",
            changed(&asks(), |b| b[ND_OPTIONS + 1] = 0),
            Some("malformed"),
        ),
        (
            "a solicitation with an option beyond its end",
            changed(&asks(), |b| b[ND_OPTIONS + 1] = 9),
            Some("malformed"),
        ),
        ("a solicitation of nobody with a link address", changed(&asks(), |b| b[8..24].fill(0)), Some("malformed")),
        (
            "a solicitation that is cut",
            changed(&asks(), |b| {
                b.truncate(40 + 12);
                b[5] = 12;
            }),
            Some("malformed"),
        ),
        ("an advertisement that came over a router", tells().ttl(64), Some("malformed")),
        ("an advertisement for a group", changed(&tells(), |b| b[48] = 0xff), Some("malformed")),
        ("a router's advertisement", changed(&asks(), |b| b[40] = 134), Some("unsupported")),
        ("a redirect", changed(&asks(), |b| b[40] = 137), Some("unsupported")),
        ("no protocol that is known", ip_protocol(HOST, SERVER, 200), Some("unsupported")),
    ]
}

/// A datagram behind more extension headers than are walked.
fn quoted() -> Packet {
    let packet = udp("[2001:db8:1::1]:53", "[fd00::5]:1000").payload_len(8);
    (0..12).fold(packet, |packet, _| packet.extension(60, b""))
}

#[test]
fn each_fault_of_ipv6_is_counted_once_under_its_reason() {
    let mut faults = Vec::new();
    for (what, packet, reason) in wrong() {
        let outcome = Scenario::of(SCRIPT).send(0.0, BLUE, packet).until(1.0).run();
        outcome.accounted();
        let want: BTreeMap<String, u64> = reason.iter().map(|reason| ((*reason).to_owned(), 1)).collect();
        if outcome.dropped() != want {
            faults.push(format!("{what}: {:?} instead of {want:?}\n{outcome}", outcome.dropped()));
        }
        for left in outcome.packets(WAN) {
            if matches!(&left.content, Content::Ip6(ip) if !is_own(ip.source)) {
                faults.push(format!("{what}: left untranslated: {left}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A frame that ends early, wherever that is, is dropped once, or not at all where the router would have consumed it.
#[test]
fn a_frame_of_ipv6_that_is_cut_anywhere_is_counted_once() {
    let whole = [
        datagram().extension(0, b"").extension(60, &[0; 14]),
        segment("S").tcp_options(&[2, 4, 5, 0xb4]),
        ping(HOST, SERVER, 7),
        neighbour_solicitation("fd00::1", HOST),
        icmp_error(HOST, SERVER, 1, 4).about(&udp("[2001:db8:1::1]:53", "[fd00::5]:1000").l3()),
    ];
    for packet in whole {
        let (port, frame) = from(BLUE, packet);
        for length in 0..frame.len() {
            let outcome = Scenario::of(SCRIPT).send_frame(0.0, "lan", frame[..length].to_vec()).run();
            assert_eq!(port, 0);
            outcome.accounted();
            outcome.left(WAN, &[]);
            assert!(outcome.dropped().values().sum::<u64>() <= 1, "{length} bytes\n{outcome}");
            assert!(outcome.entries.is_empty(), "{length} bytes\n{outcome}");
        }
    }
}

/// Not private: of the router, of its pool, or of one link.
fn is_own(address: Ipv6Addr) -> bool {
    let [a, b, c, .., last] = address.segments();
    a == 0xfe80 || [a, b, c] == [0x2001, 0xdb8, 0] && [2, 0x10].contains(&last)
}

/// A bit of everything, wrong and right.
fn frames() -> Vec<(u16, Vec<u8>)> {
    let right = [
        datagram(),
        datagram().no_checksum(),
        datagram().extension(0, &[5, 2, 0, 0]).extension(60, &[0; 20]),
        segment("S"),
        segment("A").payload(b"data"),
        ping(HOST, SERVER, 7).payload(b"abc"),
        ping(HOST, "fd00::1", 8),
        neighbour_solicitation("fd00::1", HOST),
        neighbour_advertisement(HOST, ("fd00::1", super::router_mac(0))),
        udp("[fd00::5]:1", "[2001:db8:1::1]:33434").ttl(1),
        udp("[fd00::5]:1", "[2001:db8:1::1]:33434").payload_len(1460),
    ];
    let outside = [
        neighbour_solicitation("2001:db8::10", "2001:db8::1"),
        neighbour_advertisement("2001:db8::1", ("2001:db8::2", super::router_mac(1))),
        udp("[2001:db8:1::1]:53", "[2001:db8::10]:1000"),
        tcp("[2001:db8:1::1]:443", "[2001:db8::10]:1001").flags("SA").seq(9).ack(2),
        ping("2001:db8:1::1", "2001:db8::2", 5),
        icmp_error("2001:db8:9::9", "2001:db8::10", 3, 0)
            .about(&udp("[2001:db8::10]:1000", "[2001:db8:1::1]:53").l3()),
        icmp_error("2001:db8:9::9", "2001:db8::10", 2, 0).next_hop_mtu(1280).about(&datagram().l3()),
    ];
    let inside = right.into_iter().chain(wrong().into_iter().map(|(_, packet, _)| packet));
    inside.map(|p| from(BLUE, p)).chain(outside.into_iter().map(|p| from(WAN, p))).collect()
}

#[test]
fn damaged_frames_of_ipv6_break_nothing_and_let_no_private_address_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("six.rhai");
    std::fs::write(&path, SCRIPT).unwrap();
    let (program, frames) = (encoded(Path::new(&path)), frames());
    for workers in [1, 3] {
        let mut random = Random::new(17 + workers as u64);
        let mut router = Router::new(workers);
        assert!(router.adopt(&program));
        for round in 0..30_000 {
            let (port, mut frame) = frames[random.below(frames.len())].clone();
            for _ in 0..random.below(4) {
                let at = random.below(frame.len().max(1)).max(if random.below(4) == 0 { 0 } else { 14 });
                match random.below(8) {
                    0 => frame.truncate(at),
                    1 => frame.resize(frame.len() + random.below(64), 0xee),
                    _ => {
                        let value = random.byte();
                        frame.iter_mut().skip(at).take(1).for_each(|byte| *byte = value);
                    }
                }
            }
            if random.below(4) != 0 {
                let l3 = if port == 0 { 18 } else { 14 };
                frame.get_mut(l3..).into_iter().for_each(super::fix_checksums6);
            }
            router.offer(random.below(workers), port, &frame);
            let [_, left] = router.sent();
            for sent in left {
                let seen = erhu_testbed::packet::read::Seen::of(0, sent);
                let leaks = matches!(&seen.content, Content::Ip6(ip) if !is_own(ip.source));
                assert!(!leaks, "round {round}: {seen} leaves by wan, after {frame:02x?}");
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
    }
}

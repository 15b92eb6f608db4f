//! IPv6: what one pass over a frame finds, translation, addresses.

mod support;

use std::net::Ipv6Addr;

use erhu_wire::ethernet::pack_mac;
use erhu_wire::ipv6::{
    Chain, Header, group_mac, is_link_local, is_multicast, is_unforwardable_v6, link_local, solicited_node, walk,
};
use erhu_wire::rewrite6::{self, Rewrite6};
use erhu_wire::{Addresses6, Kind, Odd, Parsed, Verify, parse};
use proptest::collection::vec;
use proptest::prelude::*;
use support::six::*;
use support::{MAC_A, TCP, UDP, frame, icmp, tcp, udp, word};

const FAULT: Kind = Kind::Ipv6Odd(Odd::L4Fault);
const OPTIONS: Kind = Kind::Ipv6Odd(Odd::Options);

fn of_bytes(l3: &[u8]) -> Parsed {
    parse(&frame(&[], 0x86dd, l3), Verify::All)
}

fn of(packet: &Packet6) -> Parsed {
    of_bytes(&packet.bytes())
}

fn words_of(address: &str) -> [u64; 2] {
    Addresses6::new(ip(address), ip("::")).src
}

#[test]
fn a_udp_frame_on_a_vlan_is_read_at_once() {
    let packet = Packet6 { hop_limit: 17, class: 0xb8, ..Packet6::new(UDP, udp(0x1234, 53, b"question")) };
    let mut bytes = frame(&[(0x8100, 0xe064)], 0x86dd, &packet.bytes());
    bytes.extend([0xaa; 7]); // padding
    assert_eq!(
        parse(&bytes, Verify::All),
        Parsed {
            destination: pack_mac(MAC_A),
            addresses: 0,
            ports: u32::from_le_bytes([0x12, 0x34, 0, 53]),
            kind: Kind::Fast6,
            l3: 18,
            l4: 58,
            end: 74,
            vlan: 100,
            length: 56,
            proto: UDP,
            ttl: 17,
        }
    );
    assert_eq!(Addresses6::read(&bytes, 18), Some(Addresses6::new(packet.src, packet.dst)));
    assert_eq!(Addresses6::read(&bytes[..57], 18), None);
    assert_eq!(Addresses6::new(packet.src, packet.dst).unpack(), (packet.src, packet.dst));
}

#[test]
fn the_tuple_is_the_one_that_planes_packs() {
    use erhu_planes::tuple::{FAMILY_V6, Key, Tuple, pack_low};
    let cases = [
        (UDP, udp(1000, 2000, b""), 1000, 2000),
        (TCP, tcp(1001, 2001, 2, b""), 1001, 2001),
        (ICMPV6, icmp(128, 0, 77 << 16 | 5, b"ping"), 77, 128 << 8),
        (ICMPV6, icmp(129, 0, 78 << 16 | 5, b"ping"), 78, 129 << 8),
    ];
    for (proto, l4, sport, dport) in cases {
        let packet = Packet6::new(proto, l4);
        let bytes = frame(&[], 0x86dd, &packet.bytes());
        let found = parse(&bytes, Verify::All);
        let low = pack_low(found.ports, found.proto, FAMILY_V6, 9);
        let key = Key::V6(Addresses6::read(&bytes, found.l3).unwrap().key(low));
        let tuple = Tuple { src: packet.src.into(), dst: packet.dst.into(), sport, dport, proto, zone: 9 };
        assert_eq!((found.kind, key), (Kind::Fast6, Key::from(&tuple)));
    }
}

#[test]
fn two_tags_come_before_ipv6_too() {
    let packet = Packet6::new(UDP, udp(1, 2, b"")).bytes();
    let found = parse(&frame(&[(0x88a8, 100), (0x8100, 200)], 0x86dd, &packet), Verify::All);
    assert_eq!((found.kind, found.vlan, found.l3, found.l4), (Kind::Fast6, erhu_wire::VLAN_STACKED, 22, 62));
}

#[test]
fn extension_headers_are_walked_over_and_named() {
    let all =
        vec![options6(HOP_BY_HOP, 0), options6(DESTINATION, 2), options6(ROUTING, 0), options6(DESTINATION, 31)];
    for (proto, l4) in [(UDP, udp(5, 6, b"x")), (TCP, tcp(5, 6, 2, b"")), (ICMPV6, icmp(128, 0, 5 << 16, b""))] {
        for extensions in [all[..1].to_vec(), all[1..2].to_vec(), all.clone(), vec![fragment6(0, false)]] {
            let packet = Packet6 { extensions, ..Packet6::new(proto, l4.clone()) };
            let found = of(&packet);
            assert_eq!((found.kind, found.proto, usize::from(found.l4)), (OPTIONS, proto, 14 + packet.at()));
            assert_eq!(found.ports, of(&Packet6::new(proto, l4.clone())).ports);
        }
    }
}

#[test]
fn eight_extension_headers_are_walked_over_and_no_more() {
    for (number, kind, proto) in [(8, OPTIONS, UDP), (9, FAULT, DESTINATION), (20, FAULT, DESTINATION)] {
        let extensions = vec![options6(DESTINATION, 0); number];
        let found = of(&Packet6 { extensions, ..Packet6::new(UDP, udp(1, 2, b"")) });
        assert_eq!((found.kind, found.proto), (kind, proto), "{number}");
    }
}

#[test]
fn hop_by_hop_options_come_first_or_the_packet_is_malformed() {
    for extensions in [
        vec![options6(DESTINATION, 0), options6(HOP_BY_HOP, 0)],
        vec![options6(HOP_BY_HOP, 0), options6(HOP_BY_HOP, 0)],
        vec![fragment6(0, false), options6(HOP_BY_HOP, 0)],
    ] {
        let packet = Packet6 { extensions, ..Packet6::new(UDP, udp(1, 2, b"")) };
        assert_eq!(of(&packet).kind, Kind::Malformed);
    }
}

#[test]
fn a_fragment_is_named_and_its_l4_not_judged() {
    for (offset, more, first) in [(0, true, true), (1, false, false), (185, true, false)] {
        let extensions = vec![options6(HOP_BY_HOP, 0), fragment6(offset, more)];
        let packet = Packet6 { extensions, ..Packet6::new(UDP, vec![0xff; 16]) };
        let found = of(&packet);
        assert_eq!((found.kind, found.proto, found.ports), (Kind::Ipv6Odd(Odd::Fragment), UDP, 0));
        assert_eq!(usize::from(found.l4), 14 + packet.at());
        let at = u16::try_from(packet.at()).unwrap();
        assert_eq!(walk(&packet.bytes()), Chain::Fragment { proto: UDP, at, first });
    }
    // RFC 6946: a fragment header of the only piece is an extension header like others.
    assert_eq!(
        of(&Packet6 { extensions: vec![fragment6(0, false)], ..Packet6::new(UDP, udp(1, 2, b"")) }).kind,
        OPTIONS
    );
}

#[test]
fn broken_headers_are_malformed() {
    let good = Packet6 { extensions: vec![options6(DESTINATION, 0)], ..Packet6::new(UDP, udp(1, 2, b"")) }.bytes();
    let with = |at: usize, value: u8| {
        let mut bad = good.clone();
        bad[at] = value;
        bad
    };
    for (what, l3) in [
        ("version 4", with(0, 0x45)),
        ("payload beyond the frame", with(5, 17)),
        ("an extension header beyond the packet", with(41, 2)),
        ("no room for a header", good[..39].to_vec()),
        ("cut short", good[..50].to_vec()),
        ("payload ends in an extension header", with(5, 7)),
        ("payload ends before an extension header", with(5, 0)),
        (
            "a fragment header cut short",
            [&with(6, FRAGMENT)[..4], &[0, 7], &good[6..6], &[FRAGMENT], &good[7..]].concat(),
        ),
    ] {
        assert_eq!(of_bytes(&l3).kind, Kind::Malformed, "{what}");
    }
    for len in 0..54 {
        assert_eq!(parse(&frame(&[], 0x86dd, &good)[..len], Verify::All).kind, Kind::Malformed);
    }
    assert_eq!(of_bytes(&vec![0x60; 65_522]).kind, Kind::Malformed);
}

// T107, T79
#[test]
fn a_wrong_l4_checksum_is_a_fault_unless_the_nic_vouches_for_it() {
    for l4 in [(UDP, udp(1, 2, b"x")), (TCP, tcp(1, 2, 2, b"x")), (ICMPV6, icmp(128, 0, 9, b"x"))] {
        let mut l3 = Packet6::new(l4.0, l4.1).bytes();
        *l3.last_mut().unwrap() ^= 1;
        let frame = frame(&[], 0x86dd, &l3);
        // NICs do not know the ICMP checksum, whatever they report.
        let trusted = if l4.0 == ICMPV6 { FAULT } else { Kind::Fast6 };
        for (verify, kind) in
            [(Verify::All, FAULT), (Verify::TrustIp, FAULT), (Verify::TrustL4, trusted), (Verify::TrustBoth, trusted)]
        {
            let found = parse(&frame, verify);
            assert_eq!(found.kind, kind, "protocol {}", l4.0);
        }
    }
}

#[test]
fn the_checksum_covers_the_addresses() {
    for l4 in [(UDP, udp(1, 2, b"x")), (TCP, tcp(1, 2, 2, b"x")), (ICMPV6, icmp(128, 0, 9, b"x"))] {
        for at in [8, 39] {
            let mut l3 = Packet6::new(l4.0, l4.1.clone()).bytes();
            l3[at] ^= 1;
            assert_eq!(of_bytes(&l3).kind, FAULT, "protocol {}, byte {at}", l4.0);
        }
    }
}

// RFC 6935: tunnels send none.
#[test]
fn udp_without_checksum_and_udp_shorter_than_its_packet_are_sound() {
    let mut none = Packet6::new(UDP, udp(1, 2, b"data")).bytes();
    none[46..48].fill(0);
    assert_eq!(of_bytes(&none).kind, Kind::Fast6);
    let mut l4 = udp(1, 2, b"data");
    l4.extend(b"behind the datagram");
    assert_eq!(of(&Packet6::new(UDP, l4)).kind, Kind::Fast6);
}

#[test]
fn l4_headers_cut_short_or_contradicting_themselves_are_faults_that_keep_the_ports_they_have() {
    for (proto, l4) in
        [(UDP, udp(0x102, 0x304, b"")), (TCP, tcp(0x102, 0x304, 2, b"")), (ICMPV6, icmp(128, 5, 7, b""))]
    {
        for len in 0..l4.len() {
            let mut l3 = Packet6::new(99, l4[..len].to_vec()).bytes();
            l3[6] = proto;
            let found = of_bytes(&l3);
            let ports = match (proto, len) {
                (ICMPV6, 2..) => 0x0580_0000,
                (ICMPV6, _) | (_, 0..4) => 0,
                _ => 0x0403_0201,
            };
            assert_eq!((found.kind, found.ports), (FAULT, ports), "{proto} {len}");
        }
    }
    for length in [0u16, 7, 13, 0xffff] {
        let mut l4 = udp(1, 2, b"data");
        l4[4..6].copy_from_slice(&length.to_be_bytes());
        let mut l3 = Packet6::new(99, l4).bytes();
        (l3[6], l3[46], l3[47]) = (UDP, 0, 0);
        assert_eq!(of_bytes(&l3).kind, FAULT, "{length}");
    }
    for (offset, kind) in [(0x40, FAULT), (0x50, Kind::Fast6), (0x60, Kind::Fast6), (0x70, FAULT)] {
        let mut l4 = tcp(1, 2, 2, &[1, 1, 1, 0]);
        l4[12] = offset;
        assert_eq!(of(&Packet6::new(TCP, l4)).kind, kind, "{offset:x}");
    }
    let found = of(&Packet6::new(TCP, tcp(1, 2, 3, b"")));
    assert_eq!(found.kind, FAULT);
}

#[test]
fn icmp_types_are_sorted_into_errors_queries_discovery_listeners_and_others() {
    for icmp_type in 0..=255u8 {
        let found = of(&Packet6::new(ICMPV6, icmp(icmp_type, 3, 0xabcd_0001, &[0; 48])));
        let type_and_code = u32::from(icmp_type) << 16 | 3 << 24;
        let (kind, id) = match icmp_type {
            0..=127 => (Kind::Ipv6Odd(Odd::IcmpError), 0),
            128 | 129 => (Kind::Fast6, 0xcdab),
            130..=132 | 143 => (Kind::Ipv6Odd(Odd::Listener), 0),
            133..=137 => (Kind::Ipv6Odd(Odd::Discovery), 0),
            _ => (Kind::Ipv6Odd(Odd::IcmpOther), 0),
        };
        assert_eq!((found.kind, found.ports), (kind, type_and_code | id), "type {icmp_type}");
    }
}

#[test]
fn other_protocols_are_odd_and_a_packet_without_any_has_no_l4() {
    for proto in [1, 4, 41, 47, 50, 51, 132, 135] {
        let found = of(&Packet6::new(proto, vec![0; 8]));
        assert_eq!((found.kind, found.proto), (Kind::Ipv6Odd(Odd::OtherProtocol), proto));
    }
    assert_eq!([vec![], vec![1; 9]].map(|l4| of(&Packet6::new(59, l4)).kind), [FAULT; 2]);
}

#[test]
fn addresses_that_are_never_forwarded_are_known() {
    for address in
        ["::", "::1", "::ffff:192.0.2.1", "fe80::1", "febf:ffff::1", "ff02::1", "ff0e::1", "ffff::", "fe80:1::1"]
    {
        assert!(is_unforwardable_v6(words_of(address)), "{address}");
    }
    for address in
        ["::2", "::192.0.2.1", "1::", "2001:db8::1", "fc00::1", "fec0::1", "fe7f::1", "64:ff9b::1", "::1:0:0:1"]
    {
        assert!(!is_unforwardable_v6(words_of(address)), "{address}");
    }
    assert!(is_multicast(words_of("ff02::1")) && !is_multicast(words_of("fe80::1")));
    assert!(is_link_local(words_of("fe80::1")) && !is_link_local(words_of("fec0::1")));
}

#[test]
fn groups_and_link_local_addresses_follow_from_addresses() {
    // The examples of RFC 4291 section 2.7.1 and RFC 2464 sections 4 and 7.
    let group = solicited_node(ip("4037::1:800:200e:8c6c"));
    assert_eq!(group, ip("ff02::1:ff0e:8c6c"));
    assert_eq!(group_mac(group), [0x33, 0x33, 0xff, 0x0e, 0x8c, 0x6c]);
    assert_eq!(link_local([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]), ip("fe80::3656:78ff:fe9a:bcde"));
}

#[test]
fn a_header_is_written_as_it_is_read() {
    let (src, dst) = (ip("2001:db8::5"), ip("2001:db8:1::1"));
    let header = Header { src, dst, next: UDP, hop_limit: 64, traffic_class: 0xb8, payload: 9 };
    let mut buf = [0xee; 41];
    assert_eq!(header.write(&mut buf), Some(40));
    let mut expected = Packet6 { class: 0xb8, ..Packet6::new(UDP, vec![0; 9]) }.bytes();
    expected[2..4].fill(0); // flow label
    assert_eq!((&buf[..40], buf[40]), (&expected[..40], 0xee));
    assert_eq!(header.write(&mut buf[..39]), None);
}

/// What a packet should look like after translation.
fn translated(packet: &Packet6, src: Ipv6Addr, dst: Ipv6Addr, ports: [u16; 2]) -> Packet6 {
    let mut packet = Packet6 { src, dst, hop_limit: packet.hop_limit - 1, ..packet.clone() };
    if packet.proto == ICMPV6 {
        packet.l4[4..6].copy_from_slice(&ports[0].to_be_bytes());
    } else {
        packet.l4[..2].copy_from_slice(&ports[0].to_be_bytes());
        packet.l4[2..4].copy_from_slice(&ports[1].to_be_bytes());
    }
    packet
}

#[test]
fn packets_that_are_no_tuple_keep_their_l4() {
    let to = Addresses6::new(ip("2001:db8:9::9"), ip("2001:db8:1::1"));
    for packet in [
        Packet6::new(47, vec![7; 30]),
        Packet6 { extensions: vec![fragment6(0, true)], ..Packet6::new(UDP, vec![7; 16]) },
    ] {
        let mut bytes = frame(&[], 0x86dd, &packet.bytes());
        let parsed = parse(&bytes, Verify::All);
        Rewrite6 { addresses: to, ports: 0x0102_0304, l4_delta: 5 }.apply(&mut bytes, &parsed);
        let expected = Packet6 { src: ip("2001:db8:9::9"), hop_limit: 63, ..packet.clone() }.bytes();
        assert_eq!(bytes[14..54], expected[..40]);
        assert_eq!(bytes[54..], packet.bytes()[40..]);
    }
}

#[test]
fn a_forwarded_error_keeps_its_checksum_right_under_a_new_address_and_others_are_left_alone() {
    let to = Addresses6::new(ip("2001:db8:9::9"), ip("2001:db8:8::8"));
    let mut bytes = frame(&[], 0x86dd, &Packet6::new(ICMPV6, icmp(1, 4, 0, &[3; 48])).bytes());
    let parsed = parse(&bytes, Verify::All);
    rewrite6::forward(&mut bytes, &parsed, &to);
    assert_eq!((Addresses6::read(&bytes, 14), bytes[21]), (Some(to), 63));
    assert!(is_right6(&bytes[14..], 40, ICMPV6));

    let packet = Packet6::new(TCP, tcp(1, 2, 2, b"data"));
    let mut bytes = frame(&[], 0x86dd, &packet.bytes());
    let parsed = parse(&bytes, Verify::All);
    rewrite6::forward(&mut bytes, &parsed, &Addresses6::new(packet.src, packet.dst));
    assert_eq!(bytes[14..], Packet6 { hop_limit: 63, ..packet }.bytes());
}

#[test]
fn what_was_parsed_from_another_frame_changes_nothing() {
    let long = Packet6 { extensions: vec![options6(ROUTING, 9)], ..Packet6::new(UDP, udp(1, 2, &[9; 40])) };
    let parsed = of(&long);
    let before = frame(&[], 0x86dd, &Packet6::new(UDP, udp(1, 2, b"")).bytes());
    let mut bytes = before.clone();
    let addresses = Addresses6::default();
    Rewrite6 { addresses, ports: 0, l4_delta: 0 }.apply(&mut bytes, &parsed);
    rewrite6::forward(&mut bytes, &parsed, &addresses);
    rewrite6::forward(&mut bytes, &Parsed { l3: 40, ..parsed }, &addresses);
    assert_eq!(bytes, before);
}

/// The same by the book, for frames without tags.
fn by_the_book(packet: &[u8]) -> Kind {
    let malformed = Kind::Malformed;
    if packet.len() < 40 || packet[0] >> 4 != 6 {
        return malformed;
    }
    let length = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    if length > packet.len() {
        return malformed;
    }
    let packet = &packet[..length];
    let (mut proto, mut at, mut headers) = (packet[6], 40, 0);
    while [HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION].contains(&proto) {
        if proto == HOP_BY_HOP && headers > 0 {
            return malformed;
        }
        if headers == 8 {
            return FAULT;
        }
        let rest = &packet[at..];
        let size = match (proto, rest) {
            (FRAGMENT, _) => 8,
            (_, [_, units, ..]) => 8 + 8 * usize::from(*units),
            _ => return malformed,
        };
        if rest.len() < size {
            return malformed;
        }
        if proto == FRAGMENT && (u16::from_be_bytes([rest[2], rest[3]]) >> 3 != 0 || rest[3] & 1 != 0) {
            return Kind::Ipv6Odd(Odd::Fragment);
        }
        (proto, at, headers) = (rest[0], at + size, headers + 1);
    }
    let l4 = &packet[at..];
    let (fault, odd) = match proto {
        UDP => {
            let whole = l4.len() >= 8;
            let udp_length = if whole { usize::from(u16::from_be_bytes([l4[4], l4[5]])) } else { 0 };
            (!whole || udp_length < 8 || udp_length > l4.len() || !is_right6(packet, at, proto), None)
        }
        TCP => {
            let whole = l4.len() >= 20;
            let header = if whole { usize::from(l4[12] >> 4) * 4 } else { 0 };
            let valid = [0x02, 0x22, 0x12, 0x04, 0x14, 0x11, 0x31, 0x10, 0x30];
            (
                header < 20
                    || header > l4.len()
                    || !valid.contains(&(l4[13] & 0x37))
                    || !is_right6(packet, at, proto),
                None,
            )
        }
        ICMPV6 if l4.len() < 8 => (true, None),
        ICMPV6 => {
            let odd = match l4[0] {
                0..=127 => Some(Odd::IcmpError),
                128 | 129 => None,
                130..=132 | 143 => Some(Odd::Listener),
                133..=137 => Some(Odd::Discovery),
                _ => Some(Odd::IcmpOther),
            };
            (!is_right6(packet, at, proto), odd)
        }
        59 => (true, None),
        _ => (false, Some(Odd::OtherProtocol)),
    };
    match (fault, odd.or((headers > 0).then_some(Odd::Options))) {
        (true, _) => FAULT,
        (false, Some(odd)) => Kind::Ipv6Odd(odd),
        (false, None) => Kind::Fast6,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn no_bytes_make_it_panic_and_offsets_lie_in_the_frame(
        next in prop::sample::select(vec![0u8, 6, 17, 43, 44, 58, 60]),
        payload in 0u16..140,
        bytes in vec(prop_oneof![any::<u8>(), prop::sample::select(vec![0u8, 43, 44, 60, 58])], 0..160),
    ) {
        let mut l3 = [&[0x60, 0, 0, 0, 0, 0, next, 9][..], &bytes].concat();
        l3[4..6].copy_from_slice(&payload.to_be_bytes());
        for l3 in [&l3[..], &bytes] {
            let frame = frame(&[], 0x86dd, l3);
            for len in [frame.len(), frame.len() / 2, 60.min(frame.len())] {
                let found = parse(&frame[..len], Verify::All);
                prop_assert!(usize::from(found.end) <= len);
                if matches!(found.kind, Kind::Fast6 | Kind::Ipv6Odd(_)) {
                    prop_assert!(found.l3 == 14 && 54 <= found.l4 && found.l4 <= found.end);
                    prop_assert_eq!(found.l3 + found.length, found.end);
                }
                walk(l3.get(..len).unwrap_or(l3));
            }
        }
    }

    #[test]
    fn damaged_packets_are_judged_as_by_the_book(
        packet in trackable6(),
        harm in vec((0usize..90, any::<u8>()), 0..3),
        mend in any::<bool>(),
        cut in prop_oneof![4 => Just(0usize), 1 => 1usize..60],
        padding in 0usize..4,
    ) {
        let mut l3 = packet.bytes();
        for (at, value) in harm {
            let at = at % l3.len();
            l3[at] = value;
        }
        if mend {
            fix6(&mut l3, packet.at(), packet.proto);
        }
        l3.truncate(l3.len().saturating_sub(cut));
        l3.extend(std::iter::repeat_n(0, padding));
        let found = of_bytes(&l3);
        prop_assert_eq!(found.kind, by_the_book(&l3));
    }

    #[test]
    fn a_translated_packet_is_right_and_translated_back_is_the_original(
        packet in trackable6(), src in address6(), dst in address6(), a in word(), b in word(), none in any::<bool>(),
    ) {
        let packet = Packet6 { hop_limit: packet.hop_limit.max(2), ..packet };
        let without = none && packet.proto == UDP;
        let bytes = |packet: &Packet6| {
            let mut l3 = packet.bytes();
            if without {
                l3[packet.at() + 6..packet.at() + 8].fill(0);
            }
            frame(&[], 0x86dd, &l3)
        };
        let mut buf = bytes(&packet);
        let parsed = parse(&buf, Verify::All);
        let from = (Addresses6::read(&buf, 14).unwrap(), parsed.ports);
        let ports = u32::from(a.swap_bytes()) | u32::from(b.swap_bytes()) << 16;
        let to = (Addresses6::new(src, dst), ports);
        let rewrite = Rewrite6::new(packet.proto, from, to);
        let mut plain = buf.clone();
        rewrite.apply(&mut buf, &parsed);
        if parsed.kind == Kind::Fast6 {
            rewrite.apply_plain(&mut plain[14..], parsed.proto);
            prop_assert_eq!(&plain, &buf);
        }
        let expected = translated(&packet, src, dst, [a, b]);
        prop_assert_eq!(&buf, &bytes(&expected));

        let parsed = parse(&buf, Verify::All);
        prop_assert!(matches!(parsed.kind, Kind::Fast6 | OPTIONS));
        Rewrite6::new(packet.proto, to, from).apply(&mut buf, &parsed);
        prop_assert_eq!(buf, bytes(&Packet6 { hop_limit: packet.hop_limit - 2, ..packet }));
    }
}

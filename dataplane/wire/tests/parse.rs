//! What one pass over a frame finds.

mod support;

use erhu_wire::{Kind, Odd, Parsed, VLAN_STACKED, Verify, parse};
use proptest::collection::vec;
use proptest::prelude::*;
use support::*;

const FAST: Kind = Kind::Fast;
const FAULT: Kind = Kind::Ipv4Odd(Odd::L4Fault);

fn of(packet: &Packet) -> Parsed {
    parse(&frame(&[], 0x0800, &packet.bytes()), Verify::All)
}

#[test]
fn a_udp_frame_on_a_vlan_is_read_at_once() {
    let packet = Packet { ttl: 17, tos: 0xb8, ..Packet::new(UDP, udp(0x1234, 53, b"question")) };
    let mut bytes = frame(&[(0x8100, 0xe064)], 0x0800, &packet.bytes());
    bytes.extend([0xaa; 7]); // padding
    assert_eq!(
        parse(&bytes, Verify::All),
        Parsed {
            destination: 0x0a00_0000_0002,
            addresses: packed(packet.src, packet.dst),
            ports: u32::from_le_bytes([0x12, 0x34, 0, 53]),
            kind: FAST,
            l3: 18,
            l4: 38,
            end: 54,
            vlan: 100,
            length: 36,
            proto: UDP,
            ttl: 17,
        }
    );
}

#[test]
fn the_tuple_is_the_one_that_planes_packs() {
    use erhu_planes::tuple::{FAMILY_V4, Key, Key4, Tuple, pack_low};
    let cases = [
        (UDP, udp(1000, 2000, b""), 1000, 2000),
        (TCP, tcp(1001, 2001, 2, b""), 1001, 2001),
        (ICMP, icmp(8, 0, 77 << 16 | 5, b"ping"), 77, 8 << 8),
        (ICMP, icmp(14, 0, 78 << 16 | 5, &[0; 12]), 78, 14 << 8),
    ];
    for (proto, l4, sport, dport) in cases {
        let packet = Packet::new(proto, l4);
        let found = of(&packet);
        let key = Key::V4(Key4([found.addresses, pack_low(found.ports, found.proto, FAMILY_V4, 9)]));
        let tuple = Tuple { src: packet.src.into(), dst: packet.dst.into(), sport, dport, proto, zone: 9 };
        assert_eq!((found.kind, key), (FAST, Key::from(&tuple)));
    }
}

#[test]
fn one_tag_names_a_vlan_and_a_priority_tag_none() {
    let packet = Packet::new(UDP, udp(1, 2, b"")).bytes();
    for (tags, vlan, l3) in [
        (&[][..], 0, 14),
        (&[(0x8100, 0x2001)], 1, 18),
        (&[(0x8100, 0xf000)], 0, 18),
        (&[(0x8100, 4095)], 4095, 18),
        (&[(0x8100, 100), (0x8100, 200)], VLAN_STACKED, 22),
        (&[(0x8100, 0), (0x8100, 200)], VLAN_STACKED, 22),
        (&[(0x88a8, 100), (0x8100, 200)], VLAN_STACKED, 22),
        (&[(0x9100, 100), (0x8100, 200)], VLAN_STACKED, 22),
        (&[(0x88a8, 100)], VLAN_STACKED, 18),
        (&[(0x8100, 1), (0x88a8, 2), (0x8100, 3)], VLAN_STACKED, 26),
    ] {
        let found = parse(&frame(tags, 0x0800, &packet), Verify::All);
        assert_eq!((found.kind, found.vlan, found.l3), (FAST, vlan, l3), "{tags:x?}");
    }
    let four = [(0x8100, 1); 4];
    assert_eq!(parse(&frame(&four, 0x0800, &packet), Verify::All).kind, Kind::Other(0x8100));
}

#[test]
fn what_is_not_ipv4_is_named() {
    let kind = |ethertype| parse(&frame(&[(0x8100, 5)], ethertype, &[0; 46]), Verify::All);
    assert_eq!((kind(0x0806).kind, kind(0x0806).l3, kind(0x0806).vlan), (Kind::Arp, 18, 5));
    assert_eq!((kind(0x86dd).kind, kind(0x86dd).l3, kind(0x86dd).vlan), (Kind::Malformed, 18, 5), "no version 6");
    assert_eq!(kind(0x88cc).kind, Kind::Other(0x88cc));
    assert_eq!(kind(0x002e).kind, Kind::Other(0x002e), "an 802.3 length");
    assert_eq!(kind(0x0806).end, 64);
}

#[test]
fn broken_link_and_ip_headers_are_malformed() {
    let good = Packet::new(UDP, udp(1, 2, b"x")).bytes();
    // The checksum is wrong too then, which must not come first.
    let with = |at: usize, value: u8| {
        let mut bad = good.clone();
        bad[at] = value;
        bad
    };
    for (what, l3) in [
        ("version 6", with(0, 0x65)),
        ("header of 16 bytes", with(0, 0x44)),
        ("header beyond the packet", with(0, 0x48)),
        ("total length below the header", with(3, 19)),
        ("total length beyond the frame", with(3, 30)),
        ("no room for a header", good[..19].to_vec()),
        ("cut short", good[..28].to_vec()),
    ] {
        let found = parse(&frame(&[(0x8100, 7)], 0x0800, &l3), Verify::All);
        assert_eq!((found.kind, found.vlan), (Kind::Malformed, 7), "{what}");
    }
    for len in 0..14 {
        assert_eq!(parse(&frame(&[], 0x0800, &good)[..len], Verify::All).kind, Kind::Malformed);
    }
    assert_eq!(parse(&frame(&[(0x8100, 7)], 0x0800, &[])[..17], Verify::All).kind, Kind::Malformed);
    assert_eq!(parse(&vec![0; 65_536], Verify::All).kind, Kind::Malformed);
}

#[test]
fn a_wrong_ip_checksum_is_told_unless_the_nic_vouches_for_it() {
    for options in [vec![], vec![1; 8]] {
        let mut l3 = Packet { options, ..Packet::new(UDP, udp(1, 2, b"x")) }.bytes();
        l3[10] ^= 1;
        let frame = frame(&[], 0x0800, &l3);
        let sound = if l3[0] == 0x45 { FAST } else { Kind::Ipv4Odd(Odd::Options) };
        for (verify, kind) in [
            (Verify::All, Kind::BadChecksum),
            (Verify::TrustL4, Kind::BadChecksum),
            (Verify::TrustIp, sound),
            (Verify::TrustBoth, sound),
        ] {
            assert_eq!(parse(&frame, verify).kind, kind);
        }
    }
}

// T107, T79
#[test]
fn a_wrong_l4_checksum_is_a_fault_unless_the_nic_vouches_for_it() {
    for l4 in [(UDP, udp(1, 2, b"x")), (TCP, tcp(1, 2, 2, b"x")), (ICMP, icmp(8, 0, 9, b"x"))] {
        let mut l3 = Packet::new(l4.0, l4.1).bytes();
        *l3.last_mut().unwrap() ^= 1;
        let frame = frame(&[], 0x0800, &l3);
        // NICs do not know the ICMP checksum, whatever they report.
        let trusted = if l4.0 == ICMP { FAULT } else { FAST };
        for (verify, kind) in
            [(Verify::All, FAULT), (Verify::TrustIp, FAULT), (Verify::TrustL4, trusted), (Verify::TrustBoth, trusted)]
        {
            let found = parse(&frame, verify);
            assert_eq!(found.kind, kind, "protocol {}", l4.0);
        }
    }
}

#[test]
fn udp_without_checksum_and_udp_shorter_than_its_packet_are_sound() {
    let mut none = Packet::new(UDP, udp(1, 2, b"data")).bytes();
    none[26..28].fill(0);
    assert_eq!(parse(&frame(&[], 0x0800, &none), Verify::All).kind, FAST);
    let mut l4 = udp(1, 2, b"data");
    l4.extend(b"behind the datagram");
    assert_eq!(of(&Packet::new(UDP, l4)).kind, FAST);
    assert_eq!(of(&Packet::new(UDP, udp(1, 2, b""))).kind, FAST, "no payload");
}

#[test]
fn udp_lengths_that_contradict_the_packet_are_faults() {
    for length in [0u16, 7, 13, 0xffff] {
        let mut l4 = udp(1, 2, b"data");
        l4[4..6].copy_from_slice(&length.to_be_bytes());
        let mut l3 = Packet::new(0, l4).bytes();
        (l3[9], l3[26], l3[27]) = (UDP, 0, 0);
        fix_ip(&mut l3);
        assert_eq!(parse(&frame(&[], 0x0800, &l3), Verify::All).kind, FAULT, "{length}");
    }
}

#[test]
fn tcp_headers_that_contradict_the_packet_are_faults_and_options_are_not() {
    for (offset, kind) in [(0x40, FAULT), (0x50, FAST), (0x60, FAST), (0x70, FAULT), (0xf0, FAULT)] {
        let mut l4 = tcp(1, 2, 2, &[1, 1, 1, 0]);
        l4[12] = offset;
        assert_eq!(of(&Packet::new(TCP, l4)).kind, kind, "{offset:x}");
    }
}

// T79
#[test]
fn only_nine_sets_of_tcp_flags_are_sound_and_push_and_congestion_flags_do_not_matter() {
    let (f, s, r, a, u) = (1, 2, 4, 16, 32);
    let valid = [s, s | u, s | a, r, r | a, f | a, f | a | u, a, a | u];
    for flags in 0..=255u8 {
        let found = of(&Packet::new(TCP, tcp(1, 2, flags, b"")));
        let sound = valid.contains(&(flags & !(8 | 64 | 128)));
        assert_eq!(found.kind, if sound { FAST } else { FAULT }, "flags {flags:#x}");
    }
}

#[test]
fn icmp_types_are_sorted_into_queries_errors_others_and_unknown_ones() {
    for icmp_type in 0..=255u8 {
        let found = of(&Packet::new(ICMP, icmp(icmp_type, 3, 0xabcd_0001, &[0; 28])));
        let type_and_code = u32::from(icmp_type) << 16 | 3 << 24;
        let (kind, id) = match icmp_type {
            0 | 8 | 13..=18 => (FAST, 0xcdab),
            3 | 4 | 5 | 11 | 12 => (Kind::Ipv4Odd(Odd::IcmpError), 0),
            1 | 2 | 6 | 7 | 9 | 10 => (Kind::Ipv4Odd(Odd::IcmpOther), 0),
            _ => (FAULT, 0),
        };
        assert_eq!((found.kind, found.ports), (kind, type_and_code | id), "type {icmp_type}");
    }
}

#[test]
fn l4_headers_cut_short_are_faults_that_keep_the_ports_they_have() {
    for (proto, l4) in [(UDP, udp(0x102, 0x304, b"")), (TCP, tcp(0x102, 0x304, 2, b"")), (ICMP, icmp(8, 5, 7, b""))] {
        for len in 0..l4.len() {
            let mut l3 = Packet::new(0, l4[..len].to_vec()).bytes();
            l3[9] = proto;
            fix_ip(&mut l3);
            let found = parse(&frame(&[], 0x0800, &l3), Verify::All);
            let ports = match (proto, len) {
                (ICMP, 2..) => 0x0508_0000,
                (ICMP, _) | (_, 0..4) => 0,
                _ => 0x0403_0201,
            };
            assert_eq!((found.kind, found.ports), (FAULT, ports), "{proto} {len}");
        }
    }
}

#[test]
fn fragments_options_and_other_protocols_are_odd_and_l4_of_a_fragment_is_not_judged() {
    let good = Packet::new(UDP, udp(1, 2, b"12345678"));
    for fragment in [0x2000, 1, 0x2001, 0x1fff] {
        let packet = Packet { fragment, l4: vec![0xff; 16], proto: 200, ..good.clone() };
        let found = of(&packet);
        assert_eq!((found.kind, found.ports), (Kind::Ipv4Odd(Odd::Fragment), 0));
    }
    for fragment in [0x4000, 0x8000] {
        assert_eq!(of(&Packet { fragment, ..good.clone() }).kind, FAST, "not a fragment");
    }
    let optional = Packet { options: vec![0x83, 7, 4, 10, 0, 0, 1, 0], ..good.clone() };
    let found = of(&optional);
    assert_eq!((found.kind, found.l4, found.ports), (Kind::Ipv4Odd(Odd::Options), 14 + 28, 0x0200_0100));
    let error = Packet { options: vec![1; 4], ..Packet::new(ICMP, icmp(3, 1, 0, &[0; 28])) };
    assert_eq!(of(&error).kind, Kind::Ipv4Odd(Odd::IcmpError));
    let found = of(&Packet::new(47, vec![]));
    assert_eq!((found.kind, found.proto, found.ports), (Kind::Ipv4Odd(Odd::OtherProtocol), 47, 0));
}

/// The same by the book, for frames without or with one 802.1Q tag.
fn by_the_book(frame: &[u8]) -> Kind {
    let l3 = if frame[12..14] == [0x81, 0] { 18 } else { 14 };
    let packet = &frame[l3..];
    if packet.len() < 20 || packet[0] >> 4 != 4 || packet[0] & 15 < 5 {
        return Kind::Malformed;
    }
    let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    if length < ihl(packet) || length > packet.len() {
        return Kind::Malformed;
    }
    let packet = &packet[..length];
    if checksum(&packet[..ihl(packet)]) != 0 {
        return Kind::BadChecksum;
    }
    if u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0 {
        return Kind::Ipv4Odd(Odd::Fragment);
    }
    let (l4, proto) = (&packet[ihl(packet)..], packet[9]);
    let (fault, odd) = match proto {
        UDP => {
            let whole = l4.len() >= 8;
            let udp_length = if whole { usize::from(u16::from_be_bytes([l4[4], l4[5]])) } else { 0 };
            (!whole || udp_length < 8 || udp_length > l4.len() || !is_right(packet), None)
        }
        TCP => {
            let whole = l4.len() >= 20;
            let header = if whole { usize::from(l4[12] >> 4) * 4 } else { 0 };
            let valid = [0x02, 0x22, 0x12, 0x04, 0x14, 0x11, 0x31, 0x10, 0x30];
            (header < 20 || header > l4.len() || !valid.contains(&(l4[13] & 0x37)) || !is_right(packet), None)
        }
        ICMP if l4.len() < 8 => (true, None),
        ICMP => {
            let odd = match l4[0] {
                0 | 8 | 13..=18 => None,
                3 | 4 | 5 | 11 | 12 => Some(Odd::IcmpError),
                _ => Some(Odd::IcmpOther),
            };
            (l4[0] > 18 || !is_right(packet), odd)
        }
        _ => (false, Some(Odd::OtherProtocol)),
    };
    let options = (ihl(packet) > 20).then_some(Odd::Options);
    match (fault, odd.or(options)) {
        (true, _) => FAULT,
        (false, Some(odd)) => Kind::Ipv4Odd(odd),
        (false, None) => FAST,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn no_bytes_make_it_panic_and_offsets_lie_in_the_frame(
        start in prop::sample::select(vec![vec![], vec![0x08, 0], vec![0x81, 0, 0, 1, 8, 0], vec![0x88, 0xa8, 0, 1, 0x81, 0]]),
        bytes in vec(any::<u8>(), 0..120),
        verify in prop::sample::select(vec![Verify::All, Verify::TrustIp, Verify::TrustBoth]),
    ) {
        let frame = [&[0; 12][..], &start, &bytes].concat();
        for frame in [&frame, &bytes] {
            let found = parse(frame, verify);
            prop_assert!(usize::from(found.end) <= frame.len());
            if matches!(found.kind, Kind::Fast | Kind::Ipv4Odd(_)) {
                prop_assert!(14 <= found.l3 && found.l3 + 20 <= found.l4 && found.l4 <= found.end);
                prop_assert_eq!(found.l3 + found.length, found.end);
            }
        }
    }

    #[test]
    fn damaged_packets_are_judged_as_by_the_book(
        packet in trackable(),
        vlan in any::<bool>(),
        harm in vec((0usize..48, any::<u8>()), 0..3),
        mend_ip in any::<bool>(),
        mend_l4 in any::<bool>(),
        cut in prop_oneof![4 => Just(0usize), 1 => 1usize..40],
        padding in 0usize..4,
    ) {
        let mut l3 = packet.bytes();
        for (at, value) in harm {
            let at = at % l3.len();
            l3[at] = value;
        }
        if mend_l4 && l3.len() > ihl(&l3) + 8 {
            fix_l4(&mut l3);
        }
        if mend_ip && l3.len() >= ihl(&l3) && ihl(&l3) >= 20 {
            fix_ip(&mut l3);
        }
        l3.truncate(l3.len().saturating_sub(cut));
        l3.extend(std::iter::repeat_n(0, padding));
        let tags = [(0x8100, 12)];
        let frame = frame(if vlan { &tags } else { &[] }, 0x0800, &l3);
        let found = parse(&frame, Verify::All);
        prop_assert_eq!(found.kind, by_the_book(&frame));
        prop_assert_eq!(found.vlan, if vlan { 12 } else { 0 });
    }
}

//! ICMPv6: errors read, translated, built; echo; resets; neighbour discovery.

mod support;

use std::net::Ipv6Addr;

use erhu_wire::icmp6::{
    self, InnerV6, LONGEST_ERROR, build_error, echo_reply_in_place, may_answer_with_error, parse_error, rewrite_inner,
};
use erhu_wire::nd::{self, Advertisement, Message, Solicitation};
use erhu_wire::tcp::{ACK, FIN, RST, SYN, build_reset6};
use erhu_wire::{Addresses6, Kind, Odd, Verify, parse};
use proptest::prelude::*;
use support::six::*;
use support::{TCP, UDP, frame, icmp, tcp, udp, word};

/// An error about `inner`, of which `quoted` bytes are there, from its IPv6 header on.
fn error(extensions: &[(u8, Vec<u8>)], inner: &[u8], quoted: usize) -> Packet6 {
    let quote = &inner[..quoted.min(inner.len())];
    Packet6 { extensions: extensions.to_vec(), ..Packet6::new(ICMPV6, icmp(1, 4, 0, quote)) }
}

fn inner_of(packet: &Packet6) -> Option<InnerV6> {
    parse_error(&packet.bytes(), packet.at()).map(|error| error.inner)
}

// T136
#[test]
fn the_quoted_tuple_is_found_behind_extension_headers_and_with_only_8_bytes_of_l4() {
    for (proto, l4, ports) in [
        (UDP, udp(0x102, 0x304, b"data"), 0x0403_0201),
        (TCP, tcp(0x102, 0x304, 2, b""), 0x0403_0201),
        (ICMPV6, icmp(128, 0, 0x0102_0000, b"ping"), 0x0080_0201),
    ] {
        for extensions in [vec![], vec![options6(HOP_BY_HOP, 0), options6(DESTINATION, 2)], vec![fragment6(0, true)]]
        {
            let packet = Packet6 { extensions: extensions.clone(), ..Packet6::new(proto, l4.clone()) };
            let around = if extensions.len() == 2 { &extensions[..] } else { &[] };
            let outer = error(around, &packet.bytes(), packet.at() + 8);
            let found = parse_error(&outer.bytes(), outer.at()).unwrap();
            assert_eq!((found.icmp_type, found.code), (1, 4));
            let start = u16::try_from(outer.at()).unwrap() + 8;
            let l4 = start + u16::try_from(packet.at()).unwrap();
            let addresses = Addresses6::new(packet.src, packet.dst);
            assert_eq!(found.inner, InnerV6 { addresses, ports, proto, l3: start, l4, end: l4 + 8 });
        }
    }
}

// T137
#[test]
fn a_wrong_checksum_of_the_error_is_refused_and_a_wrong_quoted_one_is_not() {
    let good = error(&[], &Packet6::new(UDP, udp(1, 2, b"data")).bytes(), 100);
    let mut l3 = good.bytes();
    l3[42] ^= 1;
    assert_eq!(parse_error(&l3, 40), None);
    let mut l3 = good.bytes();
    l3[48 + 46] ^= 1;
    fix6(&mut l3, 40, ICMPV6);
    assert!(parse_error(&l3, 40).is_some());
}

#[test]
fn quotes_that_name_no_connection_are_refused() {
    let packet = Packet6::new(UDP, udp(1, 2, b"data"));
    let refused = |packet: &Packet6, quoted| inner_of(&error(&[], &packet.bytes(), quoted)).is_none();
    assert!(!refused(&packet, 48));
    assert!(refused(&packet, 47), "fewer than 8 bytes of L4");
    assert!(refused(&packet, 39), "less than a header");
    assert!(refused(&packet, 0), "nothing");
    let extended = Packet6 { extensions: vec![options6(ROUTING, 3)], ..packet.clone() };
    assert!(refused(&extended, 60), "less than its extension headers");
    assert!(refused(&Packet6 { extensions: vec![fragment6(1, true)], ..packet.clone() }, 100), "a later fragment");
    assert!(refused(&Packet6::new(47, vec![0; 20]), 100), "another protocol");
    assert!(refused(&Packet6::new(ICMPV6, icmp(3, 0, 0, &[0; 48])), 100), "an error");
    assert!(refused(&Packet6::new(ICMPV6, icmp(135, 0, 0, &[0; 48])), 100), "no query");
    let mut short = packet.bytes();
    short[5] = 7;
    assert!(inner_of(&error(&[], &short, 100)).is_none(), "its length leaves no room for 8 bytes");
    let mut version = packet.bytes();
    version[0] = 0x45;
    assert!(inner_of(&error(&[], &version, 100)).is_none(), "not IPv6");
    let not_an_error = Packet6::new(ICMPV6, icmp(128, 0, 0, &packet.bytes()));
    assert_eq!(inner_of(&not_an_error), None);
    assert_eq!(parse_error(&not_an_error.bytes(), 200), None);
}

// O58, F8
#[test]
fn a_translated_quote_is_the_packet_as_it_was_sent() {
    let sent = Packet6 { src: ip("fd00::1"), ..Packet6::new(TCP, tcp(5000, 80, 2, b"hello")) };
    let seen = Packet6 { src: ip("2001:db8:9::7"), ..Packet6::new(TCP, tcp(61234, 80, 2, b"hello")) };
    for quoted in [48, 57, 58, 59, 60, 65] {
        let outer = error(&[], &seen.bytes(), quoted);
        let mut l3 = outer.bytes();
        let inner = inner_of(&outer).unwrap();
        let ports = u32::from_le_bytes([0x13, 0x88, 0, 80]);
        rewrite_inner(&mut l3, 40, &inner, &Addresses6::new(sent.src, sent.dst), ports).unwrap();
        let mut expected = error(&[], &sent.bytes(), quoted);
        if quoted == 57 {
            // Half of the checksum is quoted: it cannot be mended and stays as it was.
            expected.l4[8 + 56] = seen.bytes()[56];
        }
        assert_eq!(l3, expected.bytes(), "{quoted}");
    }
}

#[test]
fn a_quote_that_is_not_where_it_was_said_to_be_is_left_alone() {
    let outer = error(&[], &Packet6::new(UDP, udp(1, 2, b"data")).bytes(), 100);
    let (good, found) = (outer.bytes(), inner_of(&outer).unwrap());
    let addresses = Addresses6::default();
    for wrong in [
        InnerV6 { end: found.end + 1, ..found },
        InnerV6 { end: found.l4 + 7, ..found },
        InnerV6 { l4: found.l3, ..found },
        InnerV6 { l4: found.l3 - 1, ..found },
        InnerV6 { l3: 47, ..found },
        InnerV6 { l3: 300, l4: 340, end: 360, ..found },
    ] {
        let mut l3 = good.clone();
        assert_eq!((rewrite_inner(&mut l3, 40, &wrong, &addresses, 2), l3), (None, good.clone()), "{wrong:?}");
    }
    for at in [0, 41, 100] {
        let mut l3 = good.clone();
        assert_eq!((rewrite_inner(&mut l3, at, &found, &addresses, 2), l3), (None, good.clone()));
    }
}

fn error_to_send(icmp_type: u8, code: u8, rest: u32) -> icmp6::Error {
    let (src, dst) = (ip("2001:db8::1"), ip("2001:db8::5"));
    icmp6::Error { src, dst, icmp_type, code, rest, hop_limit: 64, traffic_class: 0xc0 }
}

#[test]
fn an_error_quotes_the_packet_without_its_padding() {
    let original = Packet6::new(UDP, udp(1, 2, b"data")).bytes();
    let mut buf = [0xee; 1280];
    let padded = [&original[..], &[0; 14]].concat();
    let length = build_error(&mut buf, &error_to_send(2, 0, 1400), &padded).unwrap();
    let packet = Packet6::new(ICMPV6, icmp(2, 0, 1400, &original));
    let mut expected = Packet6 { src: ip("2001:db8::1"), dst: ip("2001:db8::5"), class: 0xc0, ..packet }.bytes();
    expected[2..4].fill(0); // flow label
    assert_eq!(buf[..length], expected);
    assert_eq!(buf[length], 0xee, "and not a byte more");
}

// RFC 4443 section 2.4(c)
#[test]
fn an_error_is_never_longer_than_1280_bytes_and_needs_room_for_all_of_it() {
    let original = Packet6::new(UDP, udp(1, 2, &[7; 1400])).bytes();
    let mut buf = [0; LONGEST_ERROR];
    assert_eq!(build_error(&mut buf, &error_to_send(3, 0, 0), &original), Some(1280));
    assert_eq!(buf[48..], original[..1232]);
    assert!(is_right6(&buf, 40, ICMPV6));
    let found = parse(&frame(&[], 0x86dd, &buf), Verify::All);
    assert_eq!(found.kind, Kind::Ipv6Odd(Odd::IcmpError));
    assert_eq!(parse_error(&buf, 40).unwrap().inner.proto, UDP);
    assert_eq!(build_error(&mut buf[..1279], &error_to_send(3, 0, 0), &original), None);
    assert_eq!(build_error(&mut buf, &error_to_send(3, 0, 0), &original[..39]), None);
}

// RFC 4443 section 2.4(e)
#[test]
fn errors_do_not_answer_errors_redirects_groups_or_sources_that_are_no_single_node() {
    let udp = Packet6::new(UDP, udp(1, 2, b""));
    let may = |packet: &Packet6| may_answer_with_error(&packet.bytes(), false, 1, 0);
    assert!(may(&udp));
    assert!(may(&Packet6::new(47, vec![])));
    assert!(may(&Packet6 { extensions: vec![fragment6(0, true)], ..udp.clone() }), "a first fragment");
    assert!(may(&Packet6 { extensions: vec![fragment6(5, true)], ..udp.clone() }), "a later one, but of UDP");
    for icmp_type in [1, 2, 3, 4, 100, 127, 137] {
        let message = Packet6::new(ICMPV6, icmp(icmp_type, 0, 0, &[0; 48]));
        assert!(!may(&message), "type {icmp_type}");
        for extension in [options6(DESTINATION, 0), fragment6(0, true), fragment6(3, false)] {
            assert!(!may(&Packet6 { extensions: vec![extension], ..message.clone() }), "type {icmp_type}");
        }
    }
    for icmp_type in [128, 129, 200] {
        assert!(may(&Packet6::new(ICMPV6, icmp(icmp_type, 0, 0, b""))), "type {icmp_type}");
    }
    assert!(!may(&Packet6::new(ICMPV6, vec![])), "no type at all");
    for source in ["::", "ff02::1"] {
        assert!(!may(&Packet6 { src: ip(source), ..udp.clone() }), "from {source}");
    }
    let group = Packet6 { dst: ip("ff02::1"), ..udp.clone() };
    for (packet, l2_is_group) in [(&group, true), (&group, false), (&udp, true)] {
        let may = |icmp_type, code| may_answer_with_error(&packet.bytes(), l2_is_group, icmp_type, code);
        assert!(!may(1, 0) && !may(3, 0) && !may(4, 1));
        assert!(may(2, 0) && may(4, 2), "too big, and options that must be understood");
    }
    for len in 0..40 {
        assert!(!may_answer_with_error(&udp.bytes()[..len], false, 1, 0));
    }
}

#[test]
fn an_echo_request_becomes_its_reply_in_place_and_nothing_else_does() {
    let request = Packet6 { hop_limit: 3, ..Packet6::new(ICMPV6, icmp(128, 0, 0x0001_0002, b"payload")) };
    let mut l3 = request.bytes();
    echo_reply_in_place(&mut l3).unwrap();
    let mut reply = Packet6 { src: request.dst, dst: request.src, hop_limit: 64, ..request.clone() };
    reply.l4[0] = 129;
    assert_eq!(l3, reply.bytes());
    for packet in [
        Packet6::new(ICMPV6, icmp(129, 0, 1, b"")),
        Packet6::new(ICMPV6, icmp(128, 1, 1, b"")),
        Packet6::new(UDP, udp(0x8000, 2, b"")),
        Packet6 { extensions: vec![options6(DESTINATION, 0)], ..request.clone() },
    ] {
        let before = packet.bytes();
        let mut l3 = before.clone();
        assert_eq!((echo_reply_in_place(&mut l3), l3), (None, before));
    }
    for len in 0..48 {
        assert_eq!(echo_reply_in_place(&mut request.bytes()[..len]), None);
    }
}

#[test]
fn a_reset_answers_as_a_closed_port_does() {
    for (flags, expected) in [
        (SYN, (0, 1_000_001, RST | ACK)),
        (SYN | ACK, (2_000_000, 0, RST)),
        (FIN, (0, 1_000_001, RST | ACK)),
        (ACK, (2_000_000, 0, RST)),
        (0, (0, 1_000_000, RST | ACK)),
    ] {
        for extensions in [vec![], vec![options6(DESTINATION, 1)]] {
            let original = Packet6 { extensions, ..Packet6::new(TCP, tcp(1000, 80, flags, b"")) };
            let mut buf = [0; 60];
            assert_eq!(build_reset6(&mut buf, &[&original.bytes()[..], &[0; 6]].concat()), Some(60));
            assert!(is_right6(&buf, 40, TCP));
            let word = |at: usize| u32::from_be_bytes(buf[at..at + 4].try_into().unwrap());
            assert_eq!((word(44), word(48), buf[53]), expected);
            assert_eq!((buf[40..44].to_vec(), buf[7]), (vec![0, 80, 0x03, 0xe8], 64));
            assert_eq!(Addresses6::read(&buf, 0), Some(Addresses6::new(original.dst, original.src)));
        }
    }
    let segment = Packet6::new(TCP, tcp(1000, 80, SYN, b"abc"));
    let mut buf = [0; 60];
    build_reset6(&mut buf, &segment.bytes()).unwrap();
    assert_eq!(buf[48..52], 1_000_004u32.to_be_bytes(), "data counts");
    assert_eq!(build_reset6(&mut buf[..59], &segment.bytes()), None);
    for no in [
        Packet6::new(TCP, tcp(1, 2, RST, b"")),
        Packet6::new(UDP, udp(1, 2, &[0; 20])),
        Packet6 { extensions: vec![fragment6(1, false)], ..segment.clone() },
        Packet6::new(TCP, vec![0; 19]),
    ] {
        assert_eq!(build_reset6(&mut buf, &no.bytes()), None);
    }
}

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn read(l3: &[u8]) -> Option<Message> {
    nd::parse(l3, 40)
}

/// A solicitation by the book, with an option.
fn solicitation() -> Packet6 {
    let body = [&ip("2001:db8::1").octets()[..], &[1, 1], &MAC].concat();
    Packet6 { dst: ip("ff02::1:ff00:1"), hop_limit: 255, ..Packet6::new(ICMPV6, icmp(135, 0, 0, &body)) }
}

#[test]
fn a_solicitation_is_written_and_read() {
    let ask = Solicitation::new(ip("2001:db8::5"), MAC, ip("2001:db8::1"));
    let mut buf = [0; nd::BYTES];
    assert_eq!(ask.write(&mut buf), Some(72));
    let mut expected = solicitation().bytes();
    expected[2..4].fill(0); // flow label
    assert_eq!(buf[..], expected);
    assert_eq!(read(&buf), Some(Message::Solicitation(ask)));
    assert_eq!(parse(&frame(&[], 0x86dd, &buf), Verify::All).kind, Kind::Ipv6Odd(Odd::Discovery));
    assert_eq!(ask.write(&mut buf[..71]), None);
    let without = Solicitation { mac: None, dst: ask.target, ..ask };
    assert_eq!(without.write(&mut buf), Some(64));
    assert_eq!(read(&buf[..64]), Some(Message::Solicitation(without)));
}

#[test]
fn an_advertisement_answers_who_asked_or_everybody() {
    let ask = Solicitation::new(ip("2001:db8::5"), MAC, ip("2001:db8::1"));
    let router = [2, 0, 0, 0, 0, 1];
    let (src, target, mac) = (ask.target, ask.target, Some(router));
    let answer = Advertisement { src, dst: ask.src, target, mac, router: true, solicited: true, overrides: true };
    assert_eq!(ask.answer(router, true, true), answer);
    let mut buf = [0; nd::BYTES];
    assert_eq!((answer.write(&mut buf), buf[44], &buf[64..66]), (Some(72), 0xe0, &[2, 1][..]));
    assert!(is_right6(&buf, 40, ICMPV6));
    assert_eq!(read(&buf), Some(Message::Advertisement(answer)));
    let probe = Solicitation { src: Ipv6Addr::UNSPECIFIED, mac: None, ..ask };
    let to_all = probe.answer(router, true, false);
    assert_eq!((to_all.dst, to_all.solicited, to_all.overrides), (ip("ff02::1"), false, false));
    assert_eq!((to_all.write(&mut buf), buf[44]), (Some(72), 0x80));
    assert_eq!(read(&buf), Some(Message::Advertisement(to_all)));
}

// RFC 4861 section 7.1
#[test]
fn messages_that_are_not_valid_are_not_read() {
    let good = solicitation();
    assert!(read(&good.bytes()).is_some());
    let with = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet.l4[at] = value;
        packet
    };
    let longer = |bytes: &[u8]| Packet6 { l4: [&good.l4[..], bytes].concat(), ..good.clone() };
    let advertisement = |flags: u8, dst| Packet6 { dst: ip(dst), ..with(0, 136) }.with_flags(flags);
    for (what, packet) in [
        ("hop limit", Packet6 { hop_limit: 254, ..good.clone() }),
        ("code", with(1, 1)),
        ("a multicast target", with(8, 0xff)),
        ("an option of length 0", with(25, 0)),
        ("an option beyond the end", with(25, 2)),
        ("half an option", longer(&[1])),
        ("an option cut short", longer(&[1, 1, 2, 0, 0, 0, 0])),
        ("too short", Packet6 { l4: good.l4[..23].to_vec(), ..good.clone() }),
        ("a multicast source", Packet6 { src: ip("ff02::1"), ..good.clone() }),
        ("a probe with a MAC address", Packet6 { src: ip("::"), ..good.clone() }),
        (
            "a probe to a node",
            Packet6 { src: ip("::"), dst: ip("2001:db8::1"), l4: good.l4[..24].to_vec(), ..good.clone() },
        ),
        ("a solicited answer to a group", advertisement(0x40, "ff02::1")),
        ("another type", with(0, 133)),
    ] {
        assert_eq!(read(&packet.bytes()), None, "{what}");
    }
    let mut wrong = good.bytes();
    wrong[42] ^= 1;
    assert_eq!(read(&wrong), None, "checksum");
    for (what, packet) in [
        ("a probe", Packet6 { src: ip("::"), l4: good.l4[..24].to_vec(), ..good.clone() }),
        ("an unknown option", longer(&[14, 1, 1, 2, 3, 4, 5, 6])),
        ("a solicited answer to a node", advertisement(0x40, "2001:db8::7")),
        ("an answer to a group", advertisement(0x20, "ff02::1")),
        ("an option longer than a MAC address", longer(&[1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
    ] {
        assert!(read(&packet.bytes()).is_some(), "{what}");
    }
    assert_eq!(nd::parse(&good.bytes(), 41), None);
}

impl Packet6 {
    fn with_flags(mut self, flags: u8) -> Self {
        self.l4[4] = flags;
        self
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn translating_a_quote_keeps_every_checksum_exact(
        inner in trackable6(), src in address6(), dst in address6(), a in word(), b in word(),
        extensions in extensions6(), cut in 8usize..100, no_checksum in any::<bool>(),
    ) {
        let bytes = |packet: &Packet6| {
            let mut bytes = packet.bytes();
            if no_checksum && packet.proto == UDP {
                bytes[packet.at() + 6..packet.at() + 8].fill(0);
            }
            bytes
        };
        let (quoted, original) = (inner.at() + cut, bytes(&inner));
        let outer = error(&extensions, &original, quoted);
        let mut l3 = outer.bytes();
        let found = inner_of(&outer).unwrap();
        let (ports, addresses) = (u32::from(a) | u32::from(b) << 16, Addresses6::new(src, dst));
        rewrite_inner(&mut l3, outer.at(), &found, &addresses, ports).unwrap();

        let mut expected = Packet6 { src, dst, ..inner.clone() };
        if inner.proto == ICMPV6 {
            expected.l4[4..6].copy_from_slice(&a.to_le_bytes());
        } else {
            expected.l4[..4].copy_from_slice(&ports.to_le_bytes());
        }
        let mut expected = error(&extensions, &bytes(&expected), quoted);
        if inner.proto == TCP && cut == 17 {
            expected.l4[8 + inner.at() + 16] = original[inner.at() + 16];
        }
        prop_assert_eq!(&l3, &expected.bytes());
        let again = parse_error(&l3, outer.at()).unwrap().inner;
        prop_assert_eq!((again.addresses, again.l3, again.l4, again.end), (addresses, found.l3, found.l4, found.end));
        rewrite_inner(&mut l3, outer.at(), &again, &found.addresses, found.ports).unwrap();
        prop_assert_eq!(l3, outer.bytes());
    }

    #[test]
    fn no_bytes_make_reading_or_translating_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..160), at in 0usize..100, mend in any::<bool>(),
        icmp_type in prop::sample::select(vec![1u8, 3, 128, 135, 136]), next in prop::sample::select(vec![0u8, 6, 17, 58]),
        inner in (any::<u8>(), 0u16..180, 0u16..180, 0u16..180),
    ) {
        if mend && bytes.len() > 100 {
            bytes[..7].copy_from_slice(&[0x60, 0, 0, 0, 0, 100, 58]);
            (bytes[7], bytes[40], bytes[41], bytes[48], bytes[52], bytes[54]) = (255, icmp_type, 0, 0x60, 0, next);
            fix6(&mut bytes, 40, ICMPV6);
        }
        for at in [at, 40] {
            parse_error(&bytes, at);
            nd::parse(&bytes, at);
        }
        may_answer_with_error(&bytes, false, 1, 0);
        let mut buf = [0; 1280];
        build_error(&mut buf, &error_to_send(1, 0, 0), &bytes);
        build_reset6(&mut buf, &bytes);
        let (proto, l3, l4, end) = inner;
        let inner = InnerV6 { addresses: Addresses6::default(), ports: 0, proto, l3, l4, end };
        let before = bytes.clone();
        if rewrite_inner(&mut bytes, at, &inner, &Addresses6::default(), 2).is_none() {
            prop_assert_eq!(&bytes, &before);
        }
        let before = bytes.clone();
        if echo_reply_in_place(&mut bytes).is_none() {
            prop_assert_eq!(bytes, before);
        }
    }
}

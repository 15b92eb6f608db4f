//! What the router builds by itself: ICMP errors, echo replies, resets, ARP, headers.

mod support;

use std::net::Ipv4Addr;

use erhu_wire::arp::{self, Arp};
use erhu_wire::ethernet::{self, BROADCAST, is_group, pack_mac, unpack_mac, write_header};
use erhu_wire::icmp::{self, build_error, echo_reply_in_place, may_answer_with_error};
use erhu_wire::ipv4::{Header, is_unforwardable_v4};
use erhu_wire::tcp::{ACK, FIN, PSH, RST, SYN, build_reset};
use erhu_wire::{Kind, Odd, Verify, parse};
use proptest::prelude::*;
use support::*;

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn error(icmp_type: u8, code: u8, rest: u32) -> icmp::Error {
    let (src, dst) = (ip("10.0.0.1"), ip("10.0.0.5"));
    icmp::Error { src, dst, icmp_type, code, rest, ttl: 64, tos: 0xc0, id: 7 }
}

#[test]
fn an_error_quotes_the_packet_without_its_padding() {
    let original = Packet::new(UDP, udp(1, 2, b"data")).bytes();
    let mut buf = [0xee; 600];
    let padded = [&original[..], &[0; 14]].concat();
    let length = build_error(&mut buf, &error(3, 4, 1400), &padded).unwrap();
    let mut expected = Packet::new(ICMP, icmp(3, 4, 1400, &original));
    (expected.src, expected.dst, expected.tos) = (ip("10.0.0.1"), ip("10.0.0.5"), 0xc0);
    let mut expected = expected.bytes();
    expected[4..6].copy_from_slice(&[0, 7]);
    fix_ip(&mut expected);
    assert_eq!(buf[..length], expected);
    assert_eq!(buf[length], 0xee, "and not a byte more");
}

#[test]
fn an_error_is_never_longer_than_576_bytes_and_needs_room_for_all_of_it() {
    let original = Packet::new(UDP, udp(1, 2, &[7; 1400])).bytes();
    let mut buf = [0; 576];
    assert_eq!(build_error(&mut buf, &error(11, 0, 0), &original), Some(576));
    assert_eq!(buf[28..], original[..548]);
    assert!(is_right(&buf));
    assert_eq!(build_error(&mut buf[..575], &error(11, 0, 0), &original), None);
    assert_eq!(build_error(&mut buf, &error(11, 0, 0), &original[..19]), None);
}

#[test]
fn an_error_can_be_read_again() {
    let original = Packet::new(TCP, tcp(1000, 80, SYN, b""));
    let mut buf = [0; 576];
    let length = build_error(&mut buf, &error(3, 1, 0), &original.bytes()).unwrap();
    let inner = icmp::parse_error(&buf[..length], 20).unwrap().inner;
    assert_eq!((inner.addresses, inner.proto), (packed(original.src, original.dst), TCP));
    let found = parse(&frame(&[], 0x0800, &buf[..length]), Verify::All);
    assert_eq!(found.kind, Kind::Ipv4Odd(Odd::IcmpError));
}

#[test]
fn errors_answer_packets_between_single_hosts() {
    let udp = Packet::new(UDP, udp(1, 2, b""));
    assert!(may_answer_with_error(&udp.bytes(), false));
    assert!(may_answer_with_error(&Packet { fragment: 0x2000, ..udp.clone() }.bytes(), false), "a first fragment");
    assert!(may_answer_with_error(&Packet::new(ICMP, icmp(8, 0, 1, b"")).bytes(), false));
    assert!(may_answer_with_error(&Packet::new(47, vec![]).bytes(), false));
}

#[test]
fn errors_do_not_answer_errors_broadcasts_later_fragments_or_sources_that_are_no_host() {
    let udp = Packet::new(UDP, udp(1, 2, b""));
    assert!(!may_answer_with_error(&udp.bytes(), true), "a link broadcast");
    assert!(!may_answer_with_error(&Packet { fragment: 0x2001, ..udp.clone() }.bytes(), false));
    for icmp_type in [3, 4, 5, 11, 12, 19, 255] {
        let message = Packet::new(ICMP, icmp(icmp_type, 0, 0, &[0; 28]));
        assert!(!may_answer_with_error(&message.bytes(), false), "type {icmp_type}");
    }
    assert!(!may_answer_with_error(&Packet::new(ICMP, vec![]).bytes(), false), "no type at all");
    for address in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"] {
        assert!(!may_answer_with_error(&Packet { src: ip(address), ..udp.clone() }.bytes(), false), "from {address}");
        assert!(!may_answer_with_error(&Packet { dst: ip(address), ..udp.clone() }.bytes(), false), "to {address}");
    }
    for len in 0..20 {
        assert!(!may_answer_with_error(&udp.bytes()[..len], false));
    }
}

#[test]
fn addresses_that_are_never_forwarded_are_known() {
    let unforwardable = |text| is_unforwardable_v4(u32::from_le_bytes(ip(text).octets()));
    for address in
        ["0.0.0.0", "0.255.0.1", "127.0.0.1", "127.255.255.255", "224.0.0.5", "240.0.0.1", "255.255.255.255"]
    {
        assert!(unforwardable(address), "{address}");
    }
    for address in ["1.0.0.0", "10.0.0.1", "126.255.255.255", "128.0.0.1", "169.254.1.1", "223.255.255.255"] {
        assert!(!unforwardable(address), "{address}");
    }
}

#[test]
fn an_echo_request_becomes_its_reply_in_place() {
    for options in [vec![], vec![7, 7, 4, 0, 0, 0, 0, 0]] {
        let request = Packet { ttl: 3, options, ..Packet::new(ICMP, icmp(8, 0, 0x0001_0002, b"payload")) };
        let mut l3 = request.bytes();
        echo_reply_in_place(&mut l3).unwrap();
        let mut reply = Packet { src: request.dst, dst: request.src, ttl: 64, ..request };
        reply.l4[0] = 0;
        assert_eq!(l3, reply.bytes());
    }
}

#[test]
fn nothing_else_becomes_an_echo_reply() {
    let echo = Packet::new(ICMP, icmp(8, 0, 1, b"payload"));
    for packet in [
        Packet::new(ICMP, icmp(0, 0, 1, b"payload")),
        Packet::new(ICMP, icmp(8, 1, 1, b"payload")),
        Packet::new(ICMP, icmp(13, 0, 1, b"payload")),
        Packet::new(UDP, udp(0x0800, 2, b"payload")),
        Packet { fragment: 0x2000, ..echo.clone() },
        Packet { options: vec![131, 7, 4, 10, 0, 0, 1, 0], ..echo.clone() },
        Packet { options: vec![1, 137, 7, 4, 10, 0, 0, 1], ..echo.clone() },
        Packet { options: vec![7, 1, 0, 0], ..echo.clone() },
        Packet { options: vec![7, 9, 0, 0], ..echo.clone() },
    ] {
        let before = packet.bytes();
        let mut l3 = before.clone();
        assert_eq!((echo_reply_in_place(&mut l3), l3), (None, before));
    }
    for len in 0..28 {
        assert_eq!(echo_reply_in_place(&mut echo.bytes()[..len]), None);
    }
}

/// Sequence and acknowledgement number of the reset that answers, and its flags.
fn reset_of(original: &Packet) -> (u32, u32, u8) {
    let mut buf = [0; 40];
    assert_eq!(build_reset(&mut buf, &[&original.bytes()[..], &[0; 6]].concat()), Some(40));
    assert!(is_right(&buf));
    let found = parse(&frame(&[], 0x0800, &buf), Verify::All);
    assert_eq!((found.kind, found.addresses), (Kind::Fast, packed(original.dst, original.src)));
    let ports = [&original.l4[2..4], &original.l4[..2]].concat();
    assert_eq!((found.ports.to_le_bytes().to_vec(), found.ttl), (ports, 64));
    let word = |at: usize| u32::from_be_bytes(buf[at..at + 4].try_into().unwrap());
    (word(24), word(28), buf[33])
}

// RFC 9293 section 3.10.7.1
#[test]
fn a_reset_takes_its_sequence_number_from_the_acknowledgement() {
    assert_eq!(reset_of(&Packet::new(TCP, tcp(1, 2, ACK | PSH, b"data"))), (2_000_000, 0, RST));
    assert_eq!(reset_of(&Packet::new(TCP, tcp(1, 2, SYN | ACK, b""))), (2_000_000, 0, RST));
}

#[test]
fn a_reset_acknowledges_what_a_segment_without_acknowledgement_took() {
    assert_eq!(reset_of(&Packet::new(TCP, tcp(1, 2, SYN, b""))), (0, 1_000_001, RST | ACK));
    assert_eq!(reset_of(&Packet::new(TCP, tcp(1, 2, SYN | FIN, b"data"))), (0, 1_000_006, RST | ACK));
    let mut optional = Packet::new(TCP, tcp(1, 2, SYN, &[1; 8]));
    (optional.l4[12], optional.options) = (0x70, vec![1; 4]);
    assert_eq!(reset_of(&optional), (0, 1_000_001, RST | ACK), "options take no sequence number");
}

#[test]
fn resets_later_fragments_and_headers_cut_short_get_no_reset() {
    let mut buf = [0; 40];
    let syn = Packet::new(TCP, tcp(1, 2, SYN, b""));
    assert_eq!(build_reset(&mut buf, &Packet::new(TCP, tcp(1, 2, RST, b"")).bytes()), None);
    assert_eq!(build_reset(&mut buf, &Packet::new(TCP, tcp(1, 2, RST | ACK, b"")).bytes()), None);
    assert_eq!(build_reset(&mut buf, &Packet::new(UDP, udp(1, 2, &[0; 30])).bytes()), None);
    assert_eq!(build_reset(&mut buf, &Packet { fragment: 1, ..syn.clone() }.bytes()), None);
    assert_eq!(build_reset(&mut buf[..39], &syn.bytes()), None);
    for len in 0..40 {
        assert_eq!(build_reset(&mut buf, &syn.bytes()[..len]), None);
    }
}

#[test]
fn arp_requests_are_answered_with_the_address_asked_for() {
    let request = Arp::request(MAC_A, ip("10.0.0.5"), ip("10.0.0.1"));
    let mut buf = [0xee; 46];
    assert_eq!(arp::write(&request, &mut buf), Some(28));
    assert_eq!(buf[..28], [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 0xa, 10, 0, 0, 5, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
    assert_eq!(arp::parse(&buf), Some(request));
    let reply = request.reply(MAC_B);
    assert_eq!(reply, Arp { op: arp::REPLY, sha: MAC_B, spa: request.tpa, tha: MAC_A, tpa: request.spa });
    arp::write(&reply, &mut buf).unwrap();
    assert_eq!(arp::parse(&buf), Some(reply));
    assert_eq!(arp::write(&reply, &mut buf[..27]), None);
}

#[test]
fn arp_of_other_kinds_is_not_read() {
    let mut good = [0; 28];
    arp::write(&Arp::request(MAC_A, ip("10.0.0.5"), ip("10.0.0.1")), &mut good).unwrap();
    for (at, value) in [(1, 6), (2, 0x86), (4, 8), (5, 16), (7, 0), (7, 3), (6, 1)] {
        let mut other = good;
        other[at] = value;
        assert_eq!(arp::parse(&other), None, "byte {at}");
    }
    assert_eq!(arp::parse(&good[..27]), None);
}

#[test]
fn link_headers_are_written_with_and_without_tag() {
    let mut buf = [0xee; 20];
    assert_eq!(write_header(&mut buf, MAC_A, MAC_B, None, ethernet::ARP), Some(14));
    assert_eq!(buf[..15], [&frame(&[], 0x0806, &[])[..], &[0xee]].concat());
    assert_eq!(write_header(&mut buf, MAC_A, MAC_B, Some(100), ethernet::IPV4), Some(18));
    assert_eq!(buf[..19], [&frame(&[(0x8100, 100)], 0x0800, &[])[..], &[0xee]].concat());
    assert_eq!(write_header(&mut buf[..13], MAC_A, MAC_B, None, ethernet::IPV4), None);
    assert_eq!(write_header(&mut buf[..17], MAC_A, MAC_B, Some(1), ethernet::IPV4), None);
    assert_eq!(unpack_mac(pack_mac(MAC_B)), MAC_B);
    assert!(is_group(pack_mac(BROADCAST)) && is_group(pack_mac([1, 0, 0x5e, 0, 0, 1])) && !is_group(pack_mac(MAC_A)));
}

#[test]
fn ip_headers_refuse_payloads_that_no_packet_can_have() {
    let header = Header {
        src: ip("10.0.0.1"),
        dst: ip("10.0.0.2"),
        proto: UDP,
        ttl: 9,
        tos: 4,
        id: 0x1234,
        dont_fragment: true,
        payload: 65_515,
    };
    let mut buf = [0; 20];
    assert_eq!(header.write(&mut buf), Some(20));
    assert_eq!((buf[2..4] == [0xff, 0xff], &buf[6..10], checksum(&buf)), (true, &[0x40, 0, 9, UDP][..], 0));
    assert_eq!(header.write(&mut buf[..19]), None);
    assert_eq!(Header { payload: 65_516, ..header }.write(&mut buf), None);
}

proptest! {
    #[test]
    fn builders_survive_any_original_and_any_room(bytes in prop::collection::vec(any::<u8>(), 0..100), room in 0usize..200,
                                                  version in any::<bool>()) {
        let mut original = bytes;
        if let (true, Some(first)) = (version, original.first_mut()) {
            *first = 0x45;
        }
        let mut buf = vec![0; room];
        for length in [build_error(&mut buf, &error(3, 3, 0), &original), build_reset(&mut buf, &original)].into_iter().flatten() {
            prop_assert!(length <= room);
        }
        may_answer_with_error(&original, false);
        arp::parse(&original);
        let before = original.clone();
        if echo_reply_in_place(&mut original).is_none() {
            prop_assert_eq!(original, before);
        }
    }
}

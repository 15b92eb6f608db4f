//! ICMP errors: reading the packet that they quote, and translating it.

mod support;

use erhu_wire::icmp::{InnerV4, is_error, parse_error, rewrite_inner};
use proptest::prelude::*;
use support::*;

/// An error about `inner`, of which `quoted` bytes are there, from its IPv4 header on.
fn error(outer_options: &[u8], inner: &[u8], quoted: usize) -> Vec<u8> {
    let quote = &inner[..quoted.min(inner.len())];
    Packet { options: outer_options.to_vec(), ..Packet::new(ICMP, icmp(3, 1, 0, quote)) }.bytes()
}

fn mended(mut l3: Vec<u8>) -> Vec<u8> {
    fix_l4(&mut l3);
    l3
}

fn inner_of(l3: &[u8]) -> Option<InnerV4> {
    parse_error(l3, ihl(l3)).map(|error| error.inner)
}

// T136
#[test]
fn the_quoted_tuple_is_found_behind_options_and_with_only_8_bytes_of_l4() {
    for (proto, l4, ports) in [
        (UDP, udp(0x102, 0x304, b"data"), 0x0403_0201),
        (TCP, tcp(0x102, 0x304, 2, b""), 0x0403_0201),
        (ICMP, icmp(8, 0, 0x0102_0000, b"ping"), 0x0008_0201),
    ] {
        for options in [vec![], vec![1; 12]] {
            let packet = Packet { options: options.clone(), ..Packet::new(proto, l4.clone()) };
            let inner = packet.bytes();
            let l3 = error(&options, &inner, packet.ihl() + 8);
            let found = parse_error(&l3, ihl(&l3)).unwrap();
            assert_eq!((found.icmp_type, found.code), (3, 1));
            let start = u16::try_from(ihl(&l3)).unwrap() + 8;
            let l4_at = start + u16::try_from(packet.ihl()).unwrap();
            assert_eq!(
                found.inner,
                InnerV4 {
                    addresses: packed(packet.src, packet.dst),
                    ports,
                    proto,
                    l3: start,
                    l4: l4_at,
                    end: l4_at + 8
                }
            );
        }
    }
}

#[test]
fn five_types_are_errors() {
    let errors: Vec<u8> = (0..=255).filter(|t| is_error(*t)).collect();
    assert_eq!(errors, [3, 4, 5, 11, 12]);
}

// T137; RFC 5508 REQ-3
#[test]
fn a_wrong_checksum_of_the_error_or_of_the_quoted_header_is_refused() {
    let inner = Packet::new(UDP, udp(1, 2, b"data")).bytes();
    let good = error(&[], &inner, 100);
    assert!(inner_of(&good).is_some());
    let mut outer = good.clone();
    outer[22] ^= 1;
    assert_eq!(inner_of(&outer), None);
    let mut quoted = good.clone();
    quoted[38] ^= 1;
    assert_eq!(inner_of(&mended(quoted)), None);
}

// RFC 5508 REQ-3c, 3d
#[test]
fn a_wrong_quoted_l4_checksum_and_bytes_behind_the_quote_do_not_matter() {
    let inner = Packet::new(UDP, udp(1, 2, b"data")).bytes();
    let mut l3 = error(&[], &inner, 100);
    l3[55] ^= 1;
    assert!(inner_of(&mended(l3)).is_some());
    let with_extension = [&inner[..], &[0; 96], &[0x20, 0, 0, 0, 0, 4, 1, 1]].concat();
    let found = inner_of(&error(&[], &with_extension, 200)).unwrap();
    assert_eq!(usize::from(found.end), 28 + inner.len());
}

#[test]
fn quotes_that_name_no_connection_are_refused() {
    let udp_packet = Packet::new(UDP, udp(1, 2, b"data"));
    let refused = |inner: Vec<u8>, quoted| inner_of(&error(&[], &inner, quoted)).is_none();
    assert!(refused(udp_packet.bytes(), 27), "fewer than 8 bytes of L4");
    assert!(refused(udp_packet.bytes(), 19), "less than a header");
    assert!(refused(udp_packet.bytes(), 0), "nothing");
    assert!(refused(Packet { options: vec![1; 40], ..udp_packet.clone() }.bytes(), 48), "less than its options");
    assert!(refused(Packet { fragment: 0x2001, ..udp_packet.clone() }.bytes(), 100), "a later fragment");
    assert!(!refused(Packet { fragment: 0x2000, ..udp_packet.clone() }.bytes(), 100), "a first fragment is fine");
    assert!(refused(Packet::new(47, vec![0; 20]).bytes(), 100), "another protocol");
    assert!(refused(Packet::new(ICMP, icmp(11, 0, 0, &[0; 28])).bytes(), 100), "an error");
    assert!(refused(Packet::new(ICMP, icmp(9, 0, 0, &[0; 28])).bytes(), 100), "no query");
    let mut short = udp_packet.bytes();
    (short[2], short[3]) = (0, 27);
    fix_ip(&mut short[..20]);
    assert!(refused(short, 100), "its total length leaves no room for 8 bytes");
    let mut version = udp_packet.bytes();
    version[0] = 0x65;
    fix_ip(&mut version[..20]);
    assert!(refused(version, 100), "not IPv4");
    let not_an_error = Packet::new(ICMP, icmp(8, 0, 0, &udp_packet.bytes())).bytes();
    assert_eq!(inner_of(&not_an_error), None);
    assert_eq!(parse_error(&not_an_error, 60), None);
}

// O53, O55, F8
#[test]
fn a_translated_quote_is_the_packet_as_it_was_sent() {
    let (sent, seen) = (
        Packet { src: "10.1.1.1".parse().unwrap(), ..Packet::new(TCP, tcp(5000, 80, 2, b"hello")) },
        Packet { src: "203.0.113.7".parse().unwrap(), ..Packet::new(TCP, tcp(61234, 80, 2, b"hello")) },
    );
    for quoted in [28, 37, 38, 39, 40, 45] {
        let mut l3 = error(&[], &seen.bytes(), quoted);
        let inner = inner_of(&l3).unwrap();
        let ports = u32::from_le_bytes([0x13, 0x88, 0, 80]);
        rewrite_inner(&mut l3, 20, &inner, packed(sent.src, sent.dst), ports).unwrap();
        let mut expected = error(&[], &sent.bytes(), quoted);
        if quoted == 37 {
            // Half of the checksum is quoted: it cannot be mended and stays as it was.
            expected[28 + 36] = seen.bytes()[36];
            expected = mended(expected);
        }
        assert_eq!(l3, expected, "{quoted}");
    }
}

#[test]
fn a_quote_that_is_not_where_it_was_said_to_be_is_left_alone() {
    let inner = Packet::new(UDP, udp(1, 2, b"data")).bytes();
    let good = error(&[], &inner, 100);
    let found = inner_of(&good).unwrap();
    for wrong in [
        InnerV4 { end: found.end + 1, ..found },
        InnerV4 { end: found.l4 + 7, ..found },
        InnerV4 { l4: found.l3, ..found },
        InnerV4 { l4: found.l3 - 1, ..found },
        InnerV4 { l3: 27, ..found },
        InnerV4 { l3: 200, l4: 220, end: 240, ..found },
    ] {
        let mut l3 = good.clone();
        assert_eq!((rewrite_inner(&mut l3, 20, &wrong, 1, 2), l3), (None, good.clone()), "{wrong:?}");
    }
    let mut l3 = good.clone();
    assert_eq!((rewrite_inner(&mut l3, 60, &found, 1, 2), l3), (None, good));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn translating_a_quote_keeps_every_checksum_exact(
        inner in trackable(), src in address(), dst in address(), a in word(), b in word(),
        outer_options in options(), cut in 8usize..100, no_checksum in any::<bool>(),
    ) {
        let without = no_checksum && inner.proto == UDP;
        let bytes = |packet: &Packet| {
            let mut bytes = packet.bytes();
            if without {
                let at = packet.ihl() + 6;
                bytes[at..at + 2].fill(0);
            }
            bytes
        };
        let quoted = inner.ihl() + cut;
        let mut l3 = error(&outer_options, &bytes(&inner), quoted);
        let outer = ihl(&l3);
        let found = inner_of(&l3).unwrap();
        let (ports, addresses) = (u32::from(a) | u32::from(b) << 16, packed(src, dst));
        rewrite_inner(&mut l3, outer, &found, addresses, ports).unwrap();

        let mut expected = Packet { src, dst, ..inner.clone() };
        if inner.proto == ICMP {
            expected.l4[4..6].copy_from_slice(&a.to_le_bytes());
        } else {
            expected.l4[..4].copy_from_slice(&ports.to_le_bytes());
        }
        let mut expected = error(&outer_options, &bytes(&expected), quoted);
        if inner.proto == TCP && cut == 17 {
            let at = outer + 8 + inner.ihl() + 16;
            expected[at] = bytes(&inner)[inner.ihl() + 16];
            expected = mended(expected);
        }
        prop_assert_eq!(&l3, &expected);
        prop_assert!(is_right(&l3));
        let again = inner_of(&l3).unwrap();
        prop_assert_eq!((again.addresses, again.l3, again.l4, again.end), (addresses, found.l3, found.l4, found.end));
    }

    #[test]
    fn no_bytes_make_reading_or_translating_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..120), ihl in 0usize..64, mend in any::<bool>(),
        inner in (any::<u8>(), 0u16..140, 0u16..140, 0u16..140),
    ) {
        if mend && bytes.len() > 50 {
            (bytes[0], bytes[9], bytes[20], bytes[28]) = (0x45, ICMP, 3, 0x45);
            fix_ip(&mut bytes[28..48]);
            fix_l4(&mut bytes);
        }
        parse_error(&bytes, ihl);
        parse_error(&bytes, 20);
        let (proto, l3, l4, end) = inner;
        let inner = InnerV4 { addresses: 0, ports: 0, proto, l3, l4, end };
        let before = bytes.clone();
        if rewrite_inner(&mut bytes, ihl, &inner, 1, 2).is_none() {
            prop_assert_eq!(bytes, before);
        }
    }
}

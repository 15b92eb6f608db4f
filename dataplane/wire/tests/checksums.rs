//! Computing, verifying and updating checksums, against RFC 1071 by the book.

mod support;

use erhu_wire::checksum::{
    TTL_DELTA, add, apply, apply_udp, delta, delta32, delta64, fill_ipv4, fill_l4_v4, fold, ipv4_header_ok, l4_ok_v4,
    sum,
};
use erhu_wire::rewrite::{Rewrite4, forward};
use erhu_wire::{Kind, Odd, Verify, parse};
use proptest::prelude::*;
use support::*;

#[test]
fn the_example_of_rfc_1071_sums_up() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(fold(sum(&bytes, 0)).to_le_bytes(), [0xdd, 0xf2]);
}

// RFC 1624 section 4: eqn. 2 (RFC 1141) gives 0xffff here.
#[test]
fn the_example_of_rfc_1624_comes_out_as_zero() {
    let mut field = [0xdd, 0x2f];
    apply(&mut field, delta(&[u16::from_le_bytes([0x55, 0x55])], &[u16::from_le_bytes([0x32, 0x85])]));
    assert_eq!(field, [0, 0]);
}

#[test]
fn a_udp_checksum_of_zero_is_stored_as_all_ones_and_none_stays_none() {
    let change = delta(&[u16::from_le_bytes([0x55, 0x55])], &[u16::from_le_bytes([0x32, 0x85])]);
    let mut field = [0xdd, 0x2f];
    apply_udp(&mut field, change);
    assert_eq!(field, [0xff, 0xff]);
    apply_udp(&mut field, delta(&[0x1234], &[0x1234]));
    assert_eq!(field, [0xff, 0xff], "no change, none");
    let mut none = [0, 0];
    apply_udp(&mut none, change);
    assert_eq!(none, [0, 0]);
}

#[test]
fn a_ttl_goes_down_by_one_for_every_value_and_protocol() {
    for ttl in 1..=255u8 {
        for proto in [0, 1, 6, 17, 255] {
            let mut l3 = Packet { ttl, proto, ..Packet::new(200, vec![]) }.bytes();
            l3[8] -= 1;
            let field = (&mut l3[10..12]).try_into().unwrap();
            apply(field, TTL_DELTA);
            let mut anew = l3.clone();
            fix_ip(&mut anew);
            assert_eq!(l3, anew);
        }
    }
}

#[test]
fn every_udp_port_keeps_the_checksum_exact() {
    let packet = Packet::new(UDP, udp(4000, 53, b"odd"));
    let (l3, from) = (packet.bytes(), (packed(packet.src, packet.dst), u32::from_le_bytes([0x0f, 0xa0, 0, 53])));
    let before = frame(&[], 0x0800, &l3);
    let parsed = parse(&before, Verify::All);
    let mut ones = 0;
    for port in 0..=u16::MAX {
        let mut after = before.clone();
        let [a, b] = port.to_be_bytes();
        Rewrite4::new(UDP, from, (from.0, u32::from_le_bytes([a, b, 0, 53]))).apply(&mut after, &parsed);
        let mut anew = after[14..].to_vec();
        fix_ip(&mut anew);
        fix_l4(&mut anew);
        assert_eq!(after[14..], anew, "port {port}");
        ones += u32::from(anew[26..28] == [0xff, 0xff]);
    }
    assert_eq!(ones, 1, "one port meets the corner");
}

#[test]
fn packets_that_are_no_fast_ones_are_forwarded_with_their_l4_untouched() {
    let udp = Packet { fragment: 0x2000, ..Packet::new(UDP, udp(1, 2, b"first fragment")) };
    let error = Packet::new(ICMP, icmp(3, 1, 0, &[0; 28]));
    let fault = Packet::new(TCP, tcp(1, 2, 0, b""));
    for packet in [udp, error, fault, Packet::new(47, vec![9; 9])] {
        let before = frame(&[], 0x0800, &packet.bytes());
        let parsed = parse(&before, Verify::All);
        let (src, dst) = ("203.0.113.9".parse().unwrap(), "192.0.2.77".parse().unwrap());
        let translated = |src, dst| {
            let mut header = Packet { src, dst, ttl: packet.ttl - 1, ..packet.clone() }.bytes();
            header.truncate(20);
            [&before[..14], &header, &before[34..]].concat()
        };
        let mut bytes = before.clone();
        forward(&mut bytes, &parsed, parsed.addresses);
        assert_eq!(bytes, translated(packet.src, packet.dst));
        let mut bytes = before.clone();
        forward(&mut bytes, &parsed, packed(src, dst));
        assert_eq!(bytes, translated(src, dst));
        let mut bytes = before.clone();
        let rewrite = Rewrite4::new(parsed.proto, (parsed.addresses, parsed.ports), (packed(src, dst), 7));
        rewrite.apply(&mut bytes, &parsed);
        assert_eq!(bytes, translated(src, dst));
    }
}

#[test]
fn nothing_too_short_is_right_or_touched() {
    let l3 = Packet::new(TCP, tcp(1, 2, 2, b"")).bytes();
    for len in 0..40 {
        let mut short = l3[..len].to_vec();
        assert!(!l4_ok_v4(&short, 20, TCP), "{len}");
        fill_l4_v4(&mut short, 20, TCP);
        fill_l4_v4(&mut short, 60, UDP);
        if len < 12 {
            fill_ipv4(&mut short);
        }
        if len < 38 {
            assert_eq!(short, l3[..len]);
        }
    }
}

/// A packet, and the tuple to translate it to.
fn translation() -> impl Strategy<Value = (Packet, u64, u32)> {
    (trackable(), address(), address(), word(), word())
        .prop_map(|(packet, src, dst, a, b)| (packet, packed(src, dst), u32::from(a) | u32::from(b) << 16))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn sums_do_not_depend_on_how_bytes_are_cut(bytes in words(100), at in 0usize..100) {
        let expected = !checksum(&bytes);
        prop_assert_eq!(u16::from_be_bytes(fold(sum(&bytes, 0)).to_le_bytes()), expected);
        let (a, b) = bytes.split_at((at * 2).min(bytes.len() & !1));
        prop_assert_eq!(u16::from_be_bytes(fold(sum(b, sum(a, 0))).to_le_bytes()), expected);
    }

    #[test]
    fn filling_and_verifying_agree_with_the_book(packet in trackable(), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let good = packet.bytes();
        let (header, proto) = (packet.ihl(), packet.proto);
        prop_assert!(ipv4_header_ok(&good[..header]) && l4_ok_v4(&good, header, proto));
        let mut made = good.clone();
        made[10..12].fill(0xa5);
        fill_ipv4(&mut made[..header]);
        let field = field(&made).unwrap();
        made[field..field + 2].fill(0xa5);
        fill_l4_v4(&mut made, header, proto);
        prop_assert_eq!(&made, &good);
        let mut bad = good.clone();
        let at = at.index(bad.len());
        bad[at] ^= flip;
        if ihl(&bad) == header && bad[9] == proto {
            prop_assert_eq!(ipv4_header_ok(&bad[..header]) , checksum(&bad[..header]) == 0);
            if proto != UDP || bad[header + 4..header + 6] == good[header + 4..header + 6] {
                let l4 = checksum(&bad[..header]) == 0;
                prop_assert_eq!(l4 && l4_ok_v4(&bad, header, proto), is_right(&bad));
            }
        }
    }

    #[test]
    fn a_delta_is_what_recomputing_gives(old in prop::collection::vec(word(), 1..8), new in prop::collection::vec(word(), 8),
                                         rest in words(20), first in 1u8..) {
        let bytes = |words: &[u16]| {
            let words: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            [&[first, 0][..], &words, &rest].concat()
        };
        let new = &new[..old.len()];
        let mut field = checksum(&bytes(&old)).to_be_bytes();
        apply(&mut field, delta(&old, new));
        prop_assert_eq!(field, checksum(&bytes(new)).to_be_bytes());
    }

    #[test]
    fn wide_deltas_are_those_of_their_words(a in [word(), word(), word(), word()], b in [word(), word(), word(), word()]) {
        let wide = |w: [u16; 4]| w.iter().rev().fold(0u64, |all, word| all << 16 | u64::from(*word));
        let halves = |w: [u16; 4]| u32::from(w[0]) | u32::from(w[1]) << 16;
        prop_assert_eq!(delta64(wide(a), wide(b)), delta(&a, &b));
        prop_assert_eq!(delta32(halves(a), halves(b)), delta(&a[..2], &b[..2]));
        prop_assert_eq!(add(delta(&a[..2], &b[..2]), delta(&a[2..], &b[2..])), delta(&a, &b));
    }

    #[test]
    fn a_translated_packet_is_the_packet_made_anew((packet, addresses, ports) in translation(), vlan in any::<bool>(), no_checksum in any::<bool>()) {
        let mut l3 = packet.bytes();
        let without = no_checksum && packet.proto == UDP;
        if without {
            let at = packet.ihl() + 6;
            l3[at..at + 2].fill(0);
        }
        let tags = [(0x8100, 12)];
        let mut bytes = frame(if vlan { &tags } else { &[] }, 0x0800, &l3);
        bytes.extend([0x77; 5]);
        let parsed = parse(&bytes, Verify::All);
        prop_assert!(!matches!(parsed.kind, Kind::Ipv4Odd(Odd::L4Fault)));
        let rewrite = Rewrite4::new(parsed.proto, (parsed.addresses, parsed.ports), (addresses, ports));
        let mut plain = bytes.clone();
        rewrite.apply(&mut bytes, &parsed);
        if parsed.kind == Kind::Fast {
            rewrite.apply_plain(&mut plain[usize::from(parsed.l3)..], parsed.proto);
            prop_assert_eq!(&plain, &bytes);
        }

        let mut expected = packet.clone();
        let (a, p) = (addresses.to_le_bytes(), ports.to_le_bytes());
        (expected.src, expected.dst) = ([a[0], a[1], a[2], a[3]].into(), [a[4], a[5], a[6], a[7]].into());
        expected.ttl -= 1;
        if packet.proto == ICMP {
            expected.l4[4..6].copy_from_slice(&p[..2]);
        } else {
            expected.l4[..4].copy_from_slice(&p);
        }
        let mut expected = expected.bytes();
        if without {
            let at = packet.ihl() + 6;
            expected[at..at + 2].fill(0);
        }
        let start = usize::from(parsed.l3);
        prop_assert_eq!(&bytes[start..start + expected.len()], &expected[..]);
        prop_assert!(bytes.ends_with(&[0x77; 5]), "padding is left alone");
    }

    #[test]
    fn there_and_back_again_changes_nothing_but_the_ttl((packet, addresses, ports) in translation()) {
        let before = frame(&[], 0x0800, &packet.bytes());
        let mut bytes = before.clone();
        let there = parse(&bytes, Verify::All);
        let to = (addresses, if packet.proto == ICMP { ports & 0xffff | there.ports & 0xffff_0000 } else { ports });
        Rewrite4::new(packet.proto, (there.addresses, there.ports), to).apply(&mut bytes, &there);
        let back = parse(&bytes, Verify::All);
        prop_assert_eq!((back.kind, back.addresses, back.ports), (there.kind, to.0, to.1));
        Rewrite4::new(packet.proto, to, (there.addresses, there.ports)).apply(&mut bytes, &back);
        bytes[22] = bytes[22].wrapping_add(2);
        fix_ip(&mut bytes[14..]);
        prop_assert_eq!(bytes, before);
    }

    #[test]
    fn a_rewrite_of_any_bytes_stays_in_the_packet_and_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..90), packet in trackable(), proto: u8) {
        let mut bytes = frame(&[], 0x0800, &bytes);
        let mut parsed = parse(&frame(&[], 0x0800, &packet.bytes()), Verify::All);
        parsed.proto = proto;
        prop_assert_eq!(matches!(parsed.kind, Kind::Malformed), false);
        let before = bytes.clone();
        Rewrite4::new(proto, (1, 2), (3, 4)).apply(&mut bytes, &parsed);
        let end = usize::from(parsed.end);
        if end > bytes.len() {
            prop_assert_eq!(bytes, before);
        } else {
            prop_assert_eq!(&bytes[end..], &before[end..]);
            prop_assert_eq!(&bytes[..14], &before[..14]);
        }
    }
}

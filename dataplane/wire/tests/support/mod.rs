//! Packets made and judged with nothing of the crate: big-endian arithmetic over vectors.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod six;

use std::net::Ipv4Addr;

use proptest::collection::vec;
use proptest::prelude::*;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

pub const MAC_A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
pub const MAC_B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

/// The checksum of RFC 1071, by the book.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 = 0;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).unwrap()
}

pub fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap().to_be_bytes()
}

/// A packet from its IPv4 header on, before checksums.
#[derive(Clone, Debug)]
pub struct Packet {
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub proto: u8,
    pub ttl: u8,
    pub tos: u8,
    pub fragment: u16,
    pub options: Vec<u8>,
    pub l4: Vec<u8>,
}

impl Packet {
    pub fn new(proto: u8, l4: Vec<u8>) -> Self {
        let (src, dst) = ("10.0.0.5".parse().unwrap(), "192.0.2.1".parse().unwrap());
        Self { src, dst, proto, ttl: 64, tos: 0, fragment: 0, options: Vec::new(), l4 }
    }

    pub fn ihl(&self) -> usize {
        20 + self.options.len()
    }

    /// Bytes with both checksums right.
    pub fn bytes(&self) -> Vec<u8> {
        let mut b = vec![0x40 | u8::try_from(self.ihl() / 4).unwrap(), self.tos];
        b.extend(length(self.ihl() + self.l4.len()));
        b.extend([0x12, 0x34]);
        b.extend(self.fragment.to_be_bytes());
        b.extend([self.ttl, self.proto, 0, 0]);
        b.extend(self.src.octets());
        b.extend(self.dst.octets());
        b.extend(&self.options);
        b.extend(&self.l4);
        fix_ip(&mut b);
        fix_l4(&mut b);
        b
    }
}

pub fn ihl(l3: &[u8]) -> usize {
    usize::from(l3[0] & 15) * 4
}

/// Where the L4 checksum is.
pub fn field(l3: &[u8]) -> Option<usize> {
    let at = match l3[9] {
        ICMP => 2,
        TCP => 16,
        UDP => 6,
        _ => return None,
    };
    (l3.len() >= ihl(l3) + at + 2).then_some(ihl(l3) + at)
}

pub fn fix_ip(l3: &mut [u8]) {
    let header = ihl(l3);
    l3[10..12].fill(0);
    let sum = checksum(&l3[..header]);
    l3[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Of the L4 packet with its pseudo header, over what is there.
pub fn l4_checksum(l3: &[u8]) -> u16 {
    let mut all = Vec::new();
    let mut l4 = &l3[ihl(l3)..];
    if l3[9] == UDP {
        l4 = &l4[..usize::from(u16::from_be_bytes([l4[4], l4[5]])).min(l4.len())];
    }
    if l3[9] != ICMP {
        all.extend(&l3[12..20]);
        all.extend([0, l3[9]]);
        all.extend(length(l4.len()));
    }
    all.extend(l4);
    checksum(&all)
}

pub fn fix_l4(l3: &mut [u8]) {
    let Some(at) = field(l3) else { return };
    l3[at..at + 2].fill(0);
    let sum = match l4_checksum(l3) {
        0 if l3[9] == UDP => 0xffff,
        sum => sum,
    };
    l3[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Whether both checksums are right; UDP without one is.
pub fn is_right(l3: &[u8]) -> bool {
    let none = l3[9] == UDP && field(l3).is_some_and(|at| l3[at..at + 2] == [0, 0]);
    checksum(&l3[..ihl(l3)]) == 0 && (none || l4_checksum(l3) == 0)
}

pub fn udp(sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    let mut b = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    b.extend(length(8 + payload.len()));
    b.extend([0, 0]);
    b.extend(payload);
    b
}

pub fn tcp(sport: u16, dport: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut b = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    b.extend(1_000_000u32.to_be_bytes());
    b.extend(2_000_000u32.to_be_bytes());
    b.extend([0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    b.extend(payload);
    b
}

/// A message with `rest` in place of identifier and sequence number.
pub fn icmp(icmp_type: u8, code: u8, rest: u32, payload: &[u8]) -> Vec<u8> {
    let mut b = vec![icmp_type, code, 0, 0];
    b.extend(rest.to_be_bytes());
    b.extend(payload);
    b
}

/// A frame from [`MAC_B`] to [`MAC_A`] with tags `(EtherType, control)`.
pub fn frame(tags: &[(u16, u16)], ethertype: u16, l3: &[u8]) -> Vec<u8> {
    let mut b = [MAC_A, MAC_B].concat();
    for (tag, control) in tags {
        b.extend(tag.to_be_bytes());
        b.extend(control.to_be_bytes());
    }
    b.extend(ethertype.to_be_bytes());
    b.extend(l3);
    b
}

/// Words with which ones' complement sums come out 0 more often than by chance.
pub fn word() -> impl Strategy<Value = u16> {
    prop_oneof![2 => any::<u16>(), 1 => Just(0), 1 => Just(0xffff), 1 => Just(0xff00)]
}

pub fn address() -> impl Strategy<Value = Ipv4Addr> {
    (word(), word()).prop_map(|(a, b)| (u32::from(a) << 16 | u32::from(b)).into())
}

pub fn words(most: usize) -> impl Strategy<Value = Vec<u8>> {
    (vec(word(), 0..most), any::<bool>()).prop_map(|(words, odd)| {
        let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_be_bytes()).collect();
        bytes.truncate(bytes.len() - usize::from(odd && !bytes.is_empty()));
        bytes
    })
}

/// IP options: none, or no-operations and an unknown option.
pub fn options() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![3 => Just(vec![]), 1 => Just(vec![1; 4]), 1 => Just(vec![0x94, 4, 0, 0]), 1 => Just(vec![1; 40])]
}

/// A packet that connection tracking can follow.
pub fn trackable() -> impl Strategy<Value = Packet> {
    let l4 = prop_oneof![
        (word(), word(), words(40)).prop_map(|(s, d, payload)| (UDP, udp(s, d, &payload))),
        (word(), word(), words(40)).prop_map(|(s, d, payload)| (TCP, tcp(s, d, 0x18, &payload))),
        (prop::sample::select(vec![0u8, 8, 13, 14, 15, 16, 17, 18]), any::<u32>(), words(40))
            .prop_map(|(t, rest, payload)| (ICMP, icmp(t, 0, rest, &payload))),
    ];
    (l4, address(), address(), 1u8.., options()).prop_map(|((proto, l4), src, dst, ttl, options)| Packet {
        src,
        dst,
        ttl,
        options,
        ..Packet::new(proto, l4)
    })
}

/// Frame words, as the crate has them.
pub fn packed(src: Ipv4Addr, dst: Ipv4Addr) -> u64 {
    let (s, d) = (src.octets(), dst.octets());
    u64::from_le_bytes([s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3]])
}

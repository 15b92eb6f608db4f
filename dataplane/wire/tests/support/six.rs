//! IPv6 packets, made and judged with nothing of the crate.

use std::net::Ipv6Addr;

use proptest::prelude::*;

use super::{TCP, UDP, checksum, icmp, length, tcp, udp, word, words};

pub const ICMPV6: u8 = 58;
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const DESTINATION: u8 = 60;

pub fn ip(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// A packet from its IPv6 header on, before checksums.
#[derive(Clone, Debug)]
pub struct Packet6 {
    pub src: Ipv6Addr,
    pub dst: Ipv6Addr,
    pub hop_limit: u8,
    pub class: u8,
    /// Extension headers: protocol, and bytes without the next header number.
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub proto: u8,
    pub l4: Vec<u8>,
}

impl Packet6 {
    pub fn new(proto: u8, l4: Vec<u8>) -> Self {
        let (src, dst) = (ip("2001:db8::5"), ip("2001:db8:1::1"));
        Self { src, dst, hop_limit: 64, class: 0, extensions: Vec::new(), proto, l4 }
    }

    /// Where L4 starts.
    pub fn at(&self) -> usize {
        40 + self.extensions.iter().map(|(_, body)| body.len() + 1).sum::<usize>()
    }

    /// Bytes with the L4 checksum right.
    pub fn bytes(&self) -> Vec<u8> {
        let mut b = (6u32 << 28 | u32::from(self.class) << 20 | 0xbeef).to_be_bytes().to_vec();
        b.extend(length(self.at() - 40 + self.l4.len()));
        b.push(self.extensions.first().map_or(self.proto, |first| first.0));
        b.push(self.hop_limit);
        b.extend(self.src.octets());
        b.extend(self.dst.octets());
        for (number, (_, body)) in self.extensions.iter().enumerate() {
            b.push(self.extensions.get(number + 1).map_or(self.proto, |next| next.0));
            b.extend(body);
        }
        b.extend(&self.l4);
        fix6(&mut b, self.at(), self.proto);
        b
    }
}

/// An extension header of options, `units` times 8 bytes beyond the first 8.
pub fn options6(protocol: u8, units: u8) -> (u8, Vec<u8>) {
    let mut body = vec![units];
    body.extend(vec![0; 6 + usize::from(units) * 8]);
    (protocol, body)
}

/// A fragment header: offset in units of 8 bytes, and whether more follow.
pub fn fragment6(offset: u16, more: bool) -> (u8, Vec<u8>) {
    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
    (FRAGMENT, vec![0, high, low, 0, 0, 0, 7])
}

fn field6(l3: &[u8], at: usize, proto: u8) -> Option<usize> {
    let offset = match proto {
        ICMPV6 => 2,
        TCP => 16,
        UDP => 6,
        _ => return None,
    };
    (l3.len() >= at + offset + 2).then_some(at + offset)
}

/// Of the L4 packet with its pseudo header, over what is there.
pub fn l4_checksum6(l3: &[u8], at: usize, proto: u8) -> u16 {
    let mut l4 = &l3[at..];
    if proto == UDP {
        l4 = &l4[..usize::from(u16::from_be_bytes([l4[4], l4[5]])).min(l4.len())];
    }
    let mut all = l3[8..40].to_vec();
    all.extend(u32::try_from(l4.len()).unwrap().to_be_bytes());
    all.extend([0, 0, 0, proto]);
    all.extend(l4);
    checksum(&all)
}

pub fn fix6(l3: &mut [u8], at: usize, proto: u8) {
    let Some(field) = field6(l3, at, proto) else { return };
    l3[field..field + 2].fill(0);
    let sum = match l4_checksum6(l3, at, proto) {
        0 if proto == UDP => 0xffff,
        sum => sum,
    };
    l3[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Whether the checksum is right; UDP without one is.
pub fn is_right6(l3: &[u8], at: usize, proto: u8) -> bool {
    let none = proto == UDP && field6(l3, at, proto).is_some_and(|field| l3[field..field + 2] == [0, 0]);
    none || l4_checksum6(l3, at, proto) == 0
}

pub fn address6() -> impl Strategy<Value = Ipv6Addr> {
    prop::array::uniform8(word()).prop_map(Ipv6Addr::from)
}

/// Extension headers that [`erhu_wire::ipv6::walk`] goes over.
pub fn extensions6() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    let one = prop_oneof![
        (prop::sample::select(vec![ROUTING, DESTINATION]), 0u8..4).prop_map(|(proto, units)| options6(proto, units)),
        Just(fragment6(0, false)),
    ];
    let more = prop_oneof![2 => Just(vec![]), 1 => prop::collection::vec(one, 1..4)];
    (prop::bool::weighted(0.2), more)
        .prop_map(|(hop_by_hop, more)| hop_by_hop.then(|| options6(HOP_BY_HOP, 1)).into_iter().chain(more).collect())
}

/// A packet that connection tracking can follow.
pub fn trackable6() -> impl Strategy<Value = Packet6> {
    let l4 = prop_oneof![
        (word(), word(), words(40)).prop_map(|(s, d, payload)| (UDP, udp(s, d, &payload))),
        (word(), word(), words(40)).prop_map(|(s, d, payload)| (TCP, tcp(s, d, 0x18, &payload))),
        (128u8..130, any::<u32>(), words(40)).prop_map(|(t, rest, payload)| (ICMPV6, icmp(t, 0, rest, &payload))),
    ];
    (l4, address6(), address6(), 1u8.., extensions6()).prop_map(|((proto, l4), src, dst, hop_limit, extensions)| {
        Packet6 { src, dst, hop_limit, extensions, ..Packet6::new(proto, l4) }
    })
}

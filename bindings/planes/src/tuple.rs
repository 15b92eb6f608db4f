//! Tuples: what identifies one direction of a connection, and their packed forms, the keys.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP protocol numbers (IANA).
pub mod proto {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// GRE.
    pub const GRE: u8 = 47;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// One direction of a connection: addresses, ports (or ICMP id, type and code), protocol, zone.
///
/// Ports are in host order. For ICMP and ICMPv6 queries `sport` is the identifier and `dport` is
/// `type << 8 | code`; the reply tuple has the type of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address; of the same family as `src`.
    pub dst: IpAddr,
    /// Source port or ICMP identifier.
    pub sport: u16,
    /// Destination port or ICMP `type << 8 | code`.
    pub dport: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Conntrack zone.
    pub zone: u16,
}

/// Whether a protocol's tuples have an identifier, type and code instead of ports.
#[inline]
pub const fn is_icmp(protocol: u8) -> bool {
    protocol == proto::ICMP || protocol == proto::ICMPV6
}

impl Tuple {
    /// Whether the two last fields are an identifier and `type << 8 | code`.
    pub const fn is_icmp(&self) -> bool {
        is_icmp(self.proto)
    }

    /// The tuple of the answer, before any translation, in the same zone; `None` for ICMP types that have none.
    pub fn reversed(&self) -> Option<Self> {
        let (sport, dport) = if self.is_icmp() {
            (self.sport, u16::from(icmp_answer(self.proto, (self.dport >> 8) as u8)?) << 8)
        } else {
            (self.dport, self.sport)
        };
        Some(Self { src: self.dst, dst: self.src, sport, dport, ..*self })
    }
}

/// The ICMP type that answers a query type, either way round: echo, time stamp, information and address mask for
/// ICMP (RFC 792, RFC 950), echo for ICMPv6 (RFC 4443). `None` for types that are not queries or answers.
pub const fn icmp_answer(protocol: u8, icmp_type: u8) -> Option<u8> {
    match (protocol, icmp_type) {
        (proto::ICMP, 8) => Some(0),
        (proto::ICMP, 0) => Some(8),
        (proto::ICMP, 13) => Some(14),
        (proto::ICMP, 14) => Some(13),
        (proto::ICMP, 15) => Some(16),
        (proto::ICMP, 16) => Some(15),
        (proto::ICMP, 17) => Some(18),
        (proto::ICMP, 18) => Some(17),
        (proto::ICMPV6, 128) => Some(129),
        (proto::ICMPV6, 129) => Some(128),
        _ => None,
    }
}

/// A packed IPv4 tuple: two words, made from the frame's own bytes without shuffling them.
///
/// Word 0: source and destination address as the 8 bytes at offset 12 of the IPv4 header, loaded as a little-endian
/// number. Word 1, from the low end: source port and destination port as the first 4 bytes of the L4 header in the
/// same way (for ICMP: identifier as in the frame, then type, then code), protocol (8 bits), family (8 bits, 4),
/// zone (16 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Key4(pub [u64; 2]);

/// A packed IPv6 tuple: source (2 words as in the frame, little-endian loads), destination (2 words), and word
/// 1 of [`Key4`] with family 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Key6 {
    /// Source address, frame bytes loaded little-endian.
    pub src: [u64; 2],
    /// Destination address, likewise.
    pub dst: [u64; 2],
    /// Ports, protocol, family, zone.
    pub low: u64,
}

/// Family mark in a key.
pub const FAMILY_V4: u8 = 4;
/// Family mark in a key.
pub const FAMILY_V6: u8 = 6;

/// Packs everything but the addresses. `ports` are four frame bytes loaded little-endian.
#[inline(always)]
pub const fn pack_low(ports: u32, protocol: u8, family: u8, zone: u16) -> u64 {
    ports as u64 | (protocol as u64) << 32 | (family as u64) << 40 | (zone as u64) << 48
}

/// Frame bytes of a tuple's port field, loaded little-endian (see [`Key4`]).
pub const fn pack_ports(protocol: u8, sport: u16, dport: u16) -> u32 {
    if is_icmp(protocol) {
        // identifier as in the frame, then type, then code
        sport.swap_bytes() as u32 | ((dport >> 8) as u32) << 16 | ((dport & 0xff) as u32) << 24
    } else {
        sport.swap_bytes() as u32 | (dport.swap_bytes() as u32) << 16
    }
}

/// The inverse of [`pack_ports`]: `(sport, dport)` in host order.
#[expect(clippy::cast_possible_truncation, reason = "fields are cut out of the word on purpose")]
pub const fn unpack_ports(protocol: u8, ports: u32) -> (u16, u16) {
    let sport = (ports as u16).swap_bytes();
    let high = (ports >> 16) as u16;
    if is_icmp(protocol) { (sport, (high & 0xff) << 8 | high >> 8) } else { (sport, high.swap_bytes()) }
}

/// An IPv4 address as four frame bytes loaded little-endian.
pub const fn pack_v4(address: Ipv4Addr) -> u32 {
    u32::from_le_bytes(address.octets())
}

/// The inverse of [`pack_v4`].
pub const fn unpack_v4(word: u32) -> Ipv4Addr {
    let b = word.to_le_bytes();
    Ipv4Addr::new(b[0], b[1], b[2], b[3])
}

/// An IPv6 address as two little-endian loads.
#[expect(clippy::cast_possible_truncation, reason = "halves of the word")]
pub fn pack_v6(address: Ipv6Addr) -> [u64; 2] {
    let v = u128::from_le_bytes(address.octets());
    [v as u64, (v >> 64) as u64]
}

/// The inverse of [`pack_v6`].
pub fn unpack_v6(words: [u64; 2]) -> Ipv6Addr {
    Ipv6Addr::from((u128::from(words[0]) | u128::from(words[1]) << 64).to_le_bytes())
}

#[expect(clippy::cast_possible_truncation, reason = "fields are cut out of the words on purpose")]
impl Key4 {
    /// The tuple that the key stands for.
    pub fn tuple(self) -> Tuple {
        let (protocol, zone) = ((self.0[1] >> 32) as u8, (self.0[1] >> 48) as u16);
        let (sport, dport) = unpack_ports(protocol, self.0[1] as u32);
        Tuple {
            src: unpack_v4(self.0[0] as u32).into(),
            dst: unpack_v4((self.0[0] >> 32) as u32).into(),
            sport,
            dport,
            proto: protocol,
            zone,
        }
    }

    /// The conntrack zone in the key.
    pub const fn zone(self) -> u16 {
        (self.0[1] >> 48) as u16
    }

    /// The protocol in the key.
    pub const fn proto(self) -> u8 {
        (self.0[1] >> 32) as u8
    }

    /// Source and destination address in host order.
    #[inline(always)]
    pub const fn addresses(self) -> (u32, u32) {
        ((self.0[0] as u32).swap_bytes(), ((self.0[0] >> 32) as u32).swap_bytes())
    }

    /// Source port or ICMP identifier, and destination port or ICMP `type << 8 | code`, in host order.
    #[inline(always)]
    pub const fn ports(self) -> (u16, u16) {
        unpack_ports(self.proto(), self.0[1] as u32)
    }

    /// The key of the answers that come in by a zone, the source having been translated to `external`, an address and a
    /// port or identifier in host order. `None` for ICMP types that have no answer.
    #[inline(always)]
    pub const fn reply(self, zone: u16, external: (u32, u16)) -> Option<Self> {
        let (address, port) = (external.0.swap_bytes(), external.1.swap_bytes());
        let ports = if is_icmp(self.proto()) {
            let Some(answer) = icmp_answer(self.proto(), (self.0[1] >> 16) as u8) else { return None };
            port as u32 | (answer as u32) << 16
        } else {
            (self.0[1] as u32) >> 16 | (port as u32) << 16
        };
        Some(Self([self.0[0] >> 32 | (address as u64) << 32, pack_low(ports, self.proto(), FAMILY_V4, zone)]))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "fields are cut out of the words on purpose")]
impl Key6 {
    /// The protocol in the key.
    pub const fn proto(self) -> u8 {
        (self.low >> 32) as u8
    }

    /// The tuple that the key stands for.
    pub fn tuple(self) -> Tuple {
        let (protocol, zone) = ((self.low >> 32) as u8, (self.low >> 48) as u16);
        let (sport, dport) = unpack_ports(protocol, self.low as u32);
        Tuple {
            src: unpack_v6(self.src).into(),
            dst: unpack_v6(self.dst).into(),
            sport,
            dport,
            proto: protocol,
            zone,
        }
    }
}

/// A packed tuple of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// IPv4.
    V4(Key4),
    /// IPv6.
    V6(Key6),
}

impl Key {
    /// The tuple that the key stands for.
    pub fn tuple(self) -> Tuple {
        match self {
            Self::V4(key) => key.tuple(),
            Self::V6(key) => key.tuple(),
        }
    }
}

impl From<&Tuple> for Key {
    /// Packs a tuple. Addresses of two families do not occur in a tuple; a v4 source decides.
    fn from(tuple: &Tuple) -> Self {
        let ports = pack_ports(tuple.proto, tuple.sport, tuple.dport);
        match (tuple.src, tuple.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => Self::V4(Key4([
                u64::from(pack_v4(src)) | u64::from(pack_v4(dst)) << 32,
                pack_low(ports, tuple.proto, FAMILY_V4, tuple.zone),
            ])),
            (src, dst) => {
                let v6 = |a: IpAddr| match a {
                    IpAddr::V4(a) => a.to_ipv6_mapped(),
                    IpAddr::V6(a) => a,
                };
                Self::V6(Key6 {
                    src: pack_v6(v6(src)),
                    dst: pack_v6(v6(dst)),
                    low: pack_low(ports, tuple.proto, FAMILY_V6, tuple.zone),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packing_is_lossless(v6 in any::<bool>(), a in any::<u128>(), b in any::<u128>(), sport: u16, dport: u16,
                               p in prop_oneof![Just(1u8), Just(6), Just(17), Just(58), any::<u8>()], zone: u16) {
            let ip = |x: u128| if v6 { IpAddr::V6(x.into()) } else { IpAddr::V4(unpack_v4(u32::try_from(x >> 96).unwrap())) };
            let tuple = Tuple { src: ip(a), dst: ip(b), sport, dport, proto: p, zone };
            prop_assert_eq!(Key::from(&tuple).tuple(), tuple);
        }

        #[test]
        fn the_key_of_answers_is_that_of_the_tuple_of_answers(
            a: u32, b: u32, sport: u16, kind: u8, dport: u16, p in prop_oneof![Just(1u8), Just(6), Just(17)], zone: u16,
            to: u32, port: u16, reply_zone: u16,
        ) {
            let dport = if p == proto::ICMP { u16::from(kind) << 8 } else { dport };
            let (src, dst) = (unpack_v4(a.swap_bytes()).into(), unpack_v4(b.swap_bytes()).into());
            let tuple = Tuple { src, dst, sport, dport, proto: p, zone };
            let Key::V4(key) = Key::from(&tuple) else { panic!("IPv4") };
            prop_assert_eq!(key.addresses(), (a, b));
            prop_assert_eq!(key.ports(), (sport, dport));
            let answers = tuple.reversed().map(|plain| {
                let plain = Tuple { zone: reply_zone, dst: unpack_v4(to.swap_bytes()).into(), ..plain };
                if p == proto::ICMP { Tuple { sport: port, ..plain } } else { Tuple { dport: port, ..plain } }
            });
            prop_assert_eq!(key.reply(reply_zone, (to, port)).map(Key::V4), answers.as_ref().map(Key::from));
        }
    }

    #[test]
    fn a_key_is_the_frame_bytes_themselves() {
        let tuple = Tuple {
            src: "10.0.0.5".parse().unwrap(),
            dst: "192.0.2.1".parse().unwrap(),
            sport: 40000,
            dport: 443,
            proto: proto::TCP,
            zone: 1,
        };
        let frame = [10, 0, 0, 5, 192, 0, 2, 1, 0x9c, 0x40, 0x01, 0xbb, 6, 4, 1, 0];
        let word = |at: usize| u64::from_le_bytes(frame[at..at + 8].try_into().unwrap());
        assert_eq!(Key::from(&tuple), Key::V4(Key4([word(0), word(8)])));
    }

    #[test]
    fn an_echo_is_answered_by_an_echo_reply_with_its_id() {
        let ask = Tuple {
            src: "10.0.0.5".parse().unwrap(),
            dst: "192.0.2.1".parse().unwrap(),
            sport: 77,
            dport: 8 << 8,
            proto: proto::ICMP,
            zone: 3,
        };
        let answer = ask.reversed().unwrap();
        assert_eq!((answer.src, answer.sport, answer.dport, answer.zone), (ask.dst, 77, 0, 3));
        assert_eq!(answer.reversed(), Some(ask));
        assert_eq!(Tuple { dport: 3 << 8, ..ask }.reversed(), None);
    }
}

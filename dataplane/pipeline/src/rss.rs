//! The hash by which a NIC spreads packets over queues (Toeplitz), in software.
//!
//! A NIC hashes a row of fields, the chosen ones only, without gaps: source address, destination address, source port,
//! destination port, in network order. A queue is what the redirection table holds at the hash's lowest bits.

use std::net::IpAddr;

use erhu_planes::tuple::{proto, unpack_ports, unpack_v4};
use erhu_wire::{Addresses6, Kind, Verify};

/// The key that most drivers start with (Microsoft's verification suite).
pub const DEFAULT_KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b,
    0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac,
    0x01, 0xfa,
];

/// Bytes of input that are ever hashed: two IPv6 addresses and two ports.
const LONGEST: usize = 36;

/// The Toeplitz hash of up to 36 bytes, bit by bit.
pub fn toeplitz(key: &[u8; 40], input: &[u8]) -> u32 {
    let mut window = u32::from_be_bytes([key[0], key[1], key[2], key[3]]);
    let mut hash = 0;
    for (byte, next) in input.iter().zip(key.iter().skip(4)) {
        for bit in (0..8).rev() {
            if byte >> bit & 1 == 1 {
                hash ^= window;
            }
            window = window << 1 | u32::from(next >> bit & 1);
        }
    }
    hash
}

/// The same for one key and any input, a byte at a time: what each byte adds at each place. The hash is linear, so the
/// hash of a row of fields is the exclusive or of what the fields add where they lie.
#[derive(Clone, PartialEq, Eq)]
pub struct Toeplitz {
    /// By place in the input.
    rows: Box<[[u32; 256]]>,
}

impl std::fmt::Debug for Toeplitz {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Toeplitz").field("input_bytes", &self.rows.len()).finish_non_exhaustive()
    }
}

impl Toeplitz {
    /// For a key. Input that it is too short for adds nothing.
    pub fn new(key: &[u8]) -> Self {
        let bit = |at: usize| key.get(at / 8).is_some_and(|byte| byte >> (7 - at % 8) & 1 == 1);
        let window = |at: usize| (0..32).fold(0_u32, |word, n| word << 1 | u32::from(bit(at + n)));
        let row = |place: usize| {
            let windows: [u32; 8] = std::array::from_fn(|n| window(place * 8 + n));
            std::array::from_fn(|byte| {
                windows.iter().enumerate().filter(|(n, _)| byte >> (7 - n) & 1 == 1).fold(0, |sum, (_, w)| sum ^ w)
            })
        };
        Self { rows: (0..key.len().saturating_sub(4).min(LONGEST)).map(row).collect() }
    }

    /// What these bytes add from a place of the input on.
    #[inline]
    pub fn part(&self, place: usize, bytes: &[u8]) -> u32 {
        let rows = self.rows.get(place..).unwrap_or_default();
        rows.iter().zip(bytes).fold(0, |sum, (row, byte)| sum ^ row[usize::from(*byte)])
    }

    /// What an address adds from a place on.
    #[inline]
    pub(crate) fn address(&self, place: usize, address: IpAddr) -> u32 {
        match address {
            IpAddr::V4(address) => self.part(place, &address.octets()),
            IpAddr::V6(address) => self.part(place, &address.octets()),
        }
    }

    /// What a port adds.
    #[inline]
    pub(crate) fn port(&self, place: usize, port: u16) -> u32 {
        self.part(place, &port.to_be_bytes())
    }
}

/// What a NIC sees of a packet to hash it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashed {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source and destination port, of TCP and UDP packets that are no fragments.
    pub ports: Option<(u16, u16)>,
}

impl Hashed {
    /// Of a frame; `None` where a NIC does not hash.
    #[expect(clippy::cast_possible_truncation, reason = "halves of a word")]
    pub fn of(frame: &[u8]) -> Option<Self> {
        let parsed = erhu_wire::parse(frame, Verify::TrustBoth);
        let (src, dst): (IpAddr, IpAddr) = match parsed.kind {
            Kind::Fast | Kind::Ipv4Odd(_) => {
                let both = parsed.addresses;
                (unpack_v4(both as u32).into(), unpack_v4((both >> 32) as u32).into())
            }
            Kind::Fast6 | Kind::Ipv6Odd(_) => {
                let (src, dst) = Addresses6::read(frame, parsed.l3)?.unpack();
                (src.into(), dst.into())
            }
            _ => return None,
        };
        let has_ports =
            matches!(parsed.kind, Kind::Fast | Kind::Fast6) && matches!(parsed.proto, proto::TCP | proto::UDP);
        Some(Self { src, dst, ports: has_ports.then(|| unpack_ports(parsed.proto, parsed.ports)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verification_suite_agrees() {
        // 66.9.149.187:2794 -> 161.142.100.80:1766
        let input = [66, 9, 149, 187, 161, 142, 100, 80, 0x0a, 0xea, 0x06, 0xe6];
        assert_eq!(toeplitz(&DEFAULT_KEY, &input[..8]), 0x323e_8fc2);
        assert_eq!(toeplitz(&DEFAULT_KEY, &input), 0x51cc_c178);
    }

    #[test]
    fn the_verification_suite_agrees_for_ipv6() {
        // 3ffe:2501:200:1fff::7 port 2794 -> 3ffe:2501:200:3::1 port 1766
        let table = Toeplitz::new(&DEFAULT_KEY);
        let [src, dst]: [IpAddr; 2] = ["3ffe:2501:200:1fff::7", "3ffe:2501:200:3::1"].map(|a| a.parse().unwrap());
        let addresses = table.address(0, src) ^ table.address(16, dst);
        assert_eq!(addresses, 0x2cc1_8cd5);
        assert_eq!(addresses ^ table.port(32, 2794) ^ table.port(34, 1766), 0x4020_7d3d);
    }

    #[test]
    fn byte_by_byte_is_bit_by_bit_for_any_input_and_any_split() {
        let table = Toeplitz::new(&DEFAULT_KEY);
        let mut state = 1_u32;
        for _ in 0..200 {
            let input: [u8; LONGEST] = std::array::from_fn(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            });
            let whole = toeplitz(&DEFAULT_KEY, &input);
            assert_eq!(table.part(0, &input), whole);
            let split = usize::from(input[0]) % LONGEST;
            assert_eq!(table.part(0, &input[..split]) ^ table.part(split, &input[split..]), whole);
        }
    }

    #[test]
    fn longer_keys_begin_with_the_same_windows() {
        let mut long = DEFAULT_KEY.to_vec();
        long.extend([0x55; 12]);
        let input: Vec<u8> = (0..36).collect();
        assert_eq!(Toeplitz::new(&long).part(0, &input), toeplitz(&DEFAULT_KEY, &input));
    }
}

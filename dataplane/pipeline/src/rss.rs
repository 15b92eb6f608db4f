//! The hash by which a NIC spreads packets over queues (Toeplitz), in software.

use erhu_wire::{Addresses6, Kind, Parsed};

/// The key that most drivers start with (Microsoft's verification suite).
pub const DEFAULT_KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b,
    0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac,
    0x01, 0xfa,
];

/// The Toeplitz hash of up to 36 bytes.
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

/// What a NIC that hashes addresses and, for TCP and UDP, ports gives a packet; 0 where it does not hash.
pub fn packet_hash(frame: &[u8], parsed: &Parsed) -> u32 {
    let mut input = [0; 36];
    let addresses = match parsed.kind {
        Kind::Fast | Kind::Ipv4Odd(_) => {
            input[..8].copy_from_slice(&parsed.addresses.to_le_bytes());
            8
        }
        Kind::Fast6 | Kind::Ipv6Odd(_) => {
            let Some(Addresses6 { src, dst }) = Addresses6::read(frame, parsed.l3) else { return 0 };
            for (bytes, word) in input.chunks_exact_mut(8).zip([src[0], src[1], dst[0], dst[1]]) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            32
        }
        _ => return 0,
    };
    let has_ports = matches!(parsed.kind, Kind::Fast | Kind::Fast6) && matches!(parsed.proto, 6 | 17);
    if has_ports {
        input[addresses..addresses + 4].copy_from_slice(&parsed.ports.to_le_bytes());
    }
    toeplitz(&DEFAULT_KEY, &input[..addresses + if has_ports { 4 } else { 0 }])
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
    fn the_verification_suite_agrees_on_ipv6() {
        // [3ffe:2501:200:1fff::7]:2794 -> [3ffe:2501:200:3::1]:1766
        let [src, dst]: [std::net::Ipv6Addr; 2] =
            ["3ffe:2501:200:1fff::7", "3ffe:2501:200:3::1"].map(|a| a.parse().unwrap());
        let input = [&src.octets()[..], &dst.octets(), &[0x0a, 0xea, 0x06, 0xe6]].concat();
        assert_eq!(toeplitz(&DEFAULT_KEY, &input[..32]), 0x2cc1_8cd5);
        assert_eq!(toeplitz(&DEFAULT_KEY, &input), 0x4020_7d3d);
    }
}

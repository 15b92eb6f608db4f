//! The keyed hash of tuples.

use erhu_planes::tuple::{Key4, Key6};

/// What an outsider must know to make tuples collide.
#[derive(Clone, Copy)]
pub struct Secrets([u64; 4]);

impl Secrets {
    /// Expands a seed (splitmix64) to odd secrets.
    pub fn new(seed: u64) -> Self {
        let mut state = seed;
        Self(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) | 1
        }))
    }

    /// Two folded multiplications: each is non-linear in both of its factors, which nobody outside knows.
    #[inline(always)]
    pub const fn hash4(&self, key: &Key4) -> u64 {
        let both = fold(key.0[0] ^ self.0[0], key.0[1] ^ self.0[1]);
        fold(both ^ self.0[2], self.0[3])
    }

    /// As [`Self::hash4`]; the two addresses' multiplications do not wait for each other.
    #[inline(always)]
    pub const fn hash6(&self, key: &Key6) -> u64 {
        let src = fold(key.src[0] ^ self.0[0], key.src[1] ^ self.0[1]);
        let dst = fold(key.dst[0] ^ self.0[2], key.dst[1] ^ self.0[3]);
        let both = fold(src ^ key.low ^ self.0[1], dst ^ self.0[0]);
        fold(both ^ self.0[2], self.0[3])
    }
}

/// The 128-bit product's halves, one over the other.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use erhu_planes::tuple::{FAMILY_V4, FAMILY_V6, pack_low};

    /// Chi-square over 1024 cells, for the bits that choose the bucket and for those that make the tag.
    fn spread(hashes: impl Iterator<Item = u64>) -> [f64; 2] {
        let mut cells = [[0u32; 1024]; 2];
        let mut count = 0f64;
        for hash in hashes {
            cells[0][(hash >> 54) as usize] += 1;
            cells[1][(hash & 1023) as usize] += 1;
            count += 1.0;
        }
        let expected = count / 1024.0;
        cells.map(|row| row.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum())
    }

    #[test]
    fn neighbouring_tuples_spread_like_random_ones_under_any_seed() {
        for seed in 0..20 {
            let secrets = Secrets::new(seed);
            let ports = (0..50_000u32)
                .map(|n| secrets.hash4(&Key4([0x0a00_0001_c000_0201, pack_low(n.swap_bytes(), 17, FAMILY_V4, 1)])));
            let hosts = (0..50_000u32).map(|n| {
                secrets.hash4(&Key4([u64::from(n.swap_bytes()) | 0x0102_0304 << 32, pack_low(9, 6, FAMILY_V4, 7)]))
            });
            let zones = (0..50_000u16).map(|n| secrets.hash4(&Key4([1, pack_low(9, 6, FAMILY_V4, n)])));
            let v6 = (0..50_000u32).map(|n| {
                let low = pack_low(n << 16, 17, FAMILY_V6, 0);
                secrets.hash6(&Key6 { src: [0xb80d_0120, 5], dst: [0xb80d_0120, 9], low })
            });
            for chi in [spread(ports), spread(hosts), spread(zones), spread(v6)].concat() {
                // 1023 degrees of freedom: mean 1023, deviation 45.
                assert!((800.0..1300.0).contains(&chi), "seed {seed}: {chi}");
            }
        }
    }

    #[test]
    fn the_secret_decides() {
        let key = Key4([1, 2]);
        assert_ne!(Secrets::new(1).hash4(&key), Secrets::new(2).hash4(&key));
        assert_eq!(Secrets::new(1).hash4(&key), Secrets::new(1).hash4(&key));
    }
}

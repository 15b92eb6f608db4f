//! Random numbers and keyed hashes.

/// A small generator for port choice: SplitMix64. One per worker, seeded by the caller, so that a run repeats.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Starts from a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`; 0 if that is 0.
    #[inline]
    pub fn below(&mut self, bound: u32) -> u32 {
        scale(self.next_u64(), bound)
    }
}

/// The finaliser of SplitMix64: every input bit changes every output bit with probability one half.
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The upper half of 64 random bits as a number below `bound`.
#[inline]
pub const fn scale(bits: u64, bound: u32) -> u32 {
    (((bits >> 32) * bound as u64) >> 32) as u32
}

/// A keyed hash of a few words by folded multiplication. Hosts choose what is hashed, so the key is secret.
#[derive(Clone, Debug)]
pub struct Hasher {
    secrets: [u64; 3],
}

impl Hasher {
    /// Derives the secrets from a seed.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        Self { secrets: [rng.next_u64() | 1, rng.next_u64() | 1, rng.next_u64()] }
    }

    /// Hashes two words.
    #[inline]
    pub fn two(&self, a: u64, b: u64) -> u64 {
        let once = fold(a ^ self.secrets[0], b ^ self.secrets[1]);
        fold(once ^ self.secrets[2], self.secrets[1])
    }

    /// Hashes three words.
    #[inline]
    pub fn three(&self, a: u64, b: u64, c: u64) -> u64 {
        let once = fold(a ^ self.secrets[0], b ^ self.secrets[1]);
        fold(once ^ c, self.secrets[2] | 1)
    }

    /// Hashes an address and a word.
    #[inline]
    pub fn address(&self, address: std::net::IpAddr, low: u64) -> u64 {
        match address {
            std::net::IpAddr::V4(a) => self.two(u64::from(u32::from(a)), low),
            std::net::IpAddr::V6(a) => {
                let (high, rest) = split(u128::from(a));
                self.three(high, rest, low)
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "cut in two on purpose")]
const fn split(word: u128) -> (u64, u64) {
    ((word >> 64) as u64, word as u64)
}

const fn fold(a: u64, b: u64) -> u64 {
    let (high, low) = split(a as u128 * b as u128);
    high ^ low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_below_a_bound_are_spread_evenly() {
        let mut rng = Rng::new(7);
        let mut seen = [0u32; 10];
        for _ in 0..100_000 {
            seen[rng.below(10) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (9_500..10_500).contains(n)), "{seen:?}");
        assert_eq!((rng.below(0), rng.below(1)), (0, 0));
    }

    #[test]
    fn hashes_depend_on_the_seed_and_spread_neighbouring_inputs() {
        let (a, b) = (Hasher::new(1), Hasher::new(2));
        assert_ne!(a.two(1, 2), b.two(1, 2));
        let mut buckets = [0u32; 64];
        for n in 0..64_000 {
            buckets[(a.two(n, 6) >> 58) as usize] += 1;
        }
        assert!(buckets.iter().all(|n| (800..1200).contains(n)), "{buckets:?}");
    }
}

//! The loop itself.
#![expect(
    unsafe_op_in_unsafe_fn,
    clippy::undocumented_unsafe_blocks,
    clippy::cast_possible_truncation,
    reason = "a yardstick without checks: frames, index and lines are whole allocations of the sizes used to index \
              them, and fields are cut out of words on purpose"
)]

use std::arch::x86_64::*;

use crate::Figure;
use crate::clock::{Stopwatch, ticks};
use crate::memory::{Pages, Zeroed};

const BURST: usize = 64;
const MBUFS: usize = 4096;
const MBUF_STRIDE: usize = 2304;
const EMPTY: u32 = u32::MAX;

/// One cache line of index: eight tags compared at once, eight slab indices.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tags: [u16; 8],
    flows: [u32; 8],
    _rest: [u32; 4],
}

/// One cache line per direction: the key that proves the hit, and what to do.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
struct Rewrite {
    key: [u32; 4], // source, destination, ports, protocol | zone << 8; network order as in the frame
    source: u32,
    destination: u32,
    ports: u32,
    l3_delta: u16,
    l4_delta: u16,
    egress: u32,
    generation: u32,
    deadline: u32,
    _rest: [u32; 5],
}

/// One cache line of counters.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
struct Counters {
    packets: u64,
    bytes: u64,
    last: u64,
    _rest: [u64; 5],
}

unsafe impl Zeroed for Bucket {}
unsafe impl Zeroed for Rewrite {}
unsafe impl Zeroed for Counters {}

#[inline]
#[target_feature(enable = "sse4.2")]
fn hash(k: &[u32; 4]) -> u32 {
    let a = _mm_crc32_u64(0x1234, k[0] as u64 | (k[1] as u64) << 32) as u32;
    let b = _mm_crc32_u64(0x9876, k[2] as u64 | (k[3] as u64) << 32) as u32;
    a ^ b.rotate_left(13)
}

/// The key of flow `i`: 64 zones, 65536 inside hosts, some ports.
#[inline(always)]
fn key_of(i: usize) -> [u32; 4] {
    let inside = 0x0a00_0000 + (i & 0xffff) as u32;
    let outside = 0xc612_0000 + (i >> 16) as u32;
    [inside.to_be(), outside.to_be(), 0x3500_1027 ^ ((i as u32 & 0xff) << 3), 17 | (1 + (i as u32 & 63)) << 8]
}

/// Writes a 64-byte VLAN frame of flow `k` at `p`.
#[inline(always)]
unsafe fn generate(p: *mut u8, k: &[u32; 4]) {
    p.cast::<u64>().write(0x0000_0200_0001_0002);
    p.add(8).cast::<u32>().write(0x0100_0202);
    p.add(12).cast::<u16>().write(0x0081);
    p.add(14).cast::<u16>().write(((k[3] >> 8) as u16).to_be());
    p.add(16).cast::<u16>().write(0x0008);
    let ip = p.add(18);
    ip.cast::<u64>().write_unaligned(0x0000_0000_3200_0045);
    ip.add(8).cast::<u32>().write_unaligned(0x0000_1140);
    ip.add(12).cast::<u32>().write_unaligned(k[0]);
    ip.add(16).cast::<u32>().write_unaligned(k[1]);
    ip.add(20).cast::<u32>().write_unaligned(k[2]);
    ip.add(24).cast::<u32>().write_unaligned(0x1234_1e00);
}

/// The key of the frame at `p`, or nothing where a real router would leave the fast path.
#[inline(always)]
unsafe fn parse(p: *const u8) -> Option<[u32; 4]> {
    let (ip, zone) = match p.add(12).cast::<u16>().read_unaligned() {
        0x0081 => (p.add(18), u16::from_be(p.add(14).cast::<u16>().read_unaligned()) & 0xfff),
        0x0008 => (p.add(14), 0),
        _ => return None,
    };
    let fragment = ip.add(6).cast::<u16>().read_unaligned() & 0xff3f;
    if *ip != 0x45 || *ip.add(8) < 2 || fragment != 0 {
        return None;
    }
    let word = |at: usize| ip.add(at).cast::<u32>().read_unaligned();
    Some([word(12), word(16), word(20), *ip.add(9) as u32 | (zone as u32) << 8])
}

/// Adds a ones' complement delta to the checksum at `p` (RFC 1624).
#[inline(always)]
unsafe fn adjust(p: *mut u8, delta: u32) {
    let mut sum = !p.cast::<u16>().read_unaligned() as u32 + delta;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    p.cast::<u16>().write_unaligned(!(sum as u16));
}

#[inline(always)]
unsafe fn apply(p: *mut u8, r: &Rewrite) {
    let ip = p.add(18);
    ip.add(12).cast::<u32>().write_unaligned(r.source);
    ip.add(16).cast::<u32>().write_unaligned(r.destination);
    ip.add(20).cast::<u32>().write_unaligned(r.ports);
    *ip.add(8) -= 1;
    adjust(ip.add(10), r.l3_delta as u32 + 0xfeff);
    if ip.add(26).cast::<u16>().read_unaligned() != 0 {
        adjust(ip.add(26), r.l4_delta as u32);
    }
    p.add(4).cast::<u64>().write_unaligned(0x0000_0300_0001_0003); // the VLAN tag goes, the MACs change
    p.add(12).cast::<u32>().write_unaligned(0x0200_0003);
}

/// A filled table and the pool that frames are made in.
#[derive(Debug)]
pub struct Floor {
    flows: usize,
    index: Pages<Bucket>,
    rewrites: Pages<Rewrite>,
    counters: Pages<Counters>,
    pool: Pages<u8>,
    random: u64,
    next_mbuf: usize,
}

impl Floor {
    /// A table of that many flows, a power of two (the next one is taken). `None` where this CPU lacks what the loop
    /// is compiled for.
    pub fn new(flows: usize) -> Option<Self> {
        let runs_here = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("sse4.2");
        // SAFETY: the features were just looked for.
        runs_here.then(|| unsafe { Self::fill(flows.next_power_of_two()) })
    }

    #[target_feature(enable = "sse4.2")]
    fn fill(flows: usize) -> Self {
        let buckets = (flows / 4).next_power_of_two().max(64);
        let mut index = Pages::<Bucket>::zeroed(buckets);
        let mut rewrites = Pages::<Rewrite>::zeroed(flows);
        index.fill(Bucket { tags: [0; 8], flows: [EMPTY; 8], _rest: [0; 4] });
        for i in 0..flows {
            let key = key_of(i);
            let h = hash(&key);
            rewrites[i] = Rewrite {
                key,
                source: 0x0102_0304,
                destination: key[1],
                ports: key[2] ^ 0x1111,
                l3_delta: 77,
                l4_delta: 99,
                egress: 1,
                generation: 1,
                deadline: 0,
                _rest: [0; 5],
            };
            let bucket = &mut index[h as usize & (buckets - 1)];
            if let Some(slot) = bucket.flows.iter().position(|&f| f == EMPTY) {
                bucket.tags[slot] = (h >> 16) as u16 | 1;
                bucket.flows[slot] = i as u32;
            } // a full bucket loses the flow: counted as a miss
        }
        Self {
            flows,
            index,
            rewrites,
            counters: Pages::zeroed(flows),
            pool: Pages::zeroed(MBUFS * MBUF_STRIDE),
            random: 0x9e37_79b9_7f4a_7c15,
            next_mbuf: 0,
        }
    }

    /// Whether everything lies on reserved huge pages.
    pub fn is_huge(&self) -> bool {
        self.index.is_huge() && self.rewrites.is_huge() && self.counters.is_huge() && self.pool.is_huge()
    }

    /// Takes about that many packets through the loop, after as many through the part that only makes them.
    pub fn run(&mut self, packets: usize) -> Figure {
        let bursts = (packets / BURST).max(1);
        let mut misses = 0;
        let passes = [true, false].map(|only_generate| {
            let watch = Stopwatch::start();
            // SAFETY: `new` looked for the features.
            misses += unsafe { self.pass(bursts, only_generate) };
            watch.ticks() / (bursts * BURST) as f64
        });
        let missed = misses as f64 / (bursts * BURST) as f64;
        Figure { ticks: passes[1] - passes[0], generating: passes[0], missed }
    }

    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt,sse4.2")]
    unsafe fn pass(&mut self, bursts: usize, only_generate: bool) -> u64 {
        let Self { flows, index, rewrites, counters, pool, .. } = self;
        let (flows, buckets, pool) = (*flows, index.len(), pool.as_mut_ptr());
        let (mut random, mut next_mbuf) = (self.random, self.next_mbuf);
        let (mut sink, mut misses) = (0u64, 0u64);
        let start = ticks();
        for _ in 0..bursts {
            let mut frames = [std::ptr::null_mut::<u8>(); BURST];
            for frame in &mut frames {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                *frame = pool.add(next_mbuf * MBUF_STRIDE);
                next_mbuf = (next_mbuf + 1) % MBUFS;
                generate(*frame, &key_of((random >> 8) as usize & (flows - 1)));
            }
            if only_generate {
                sink += frames.iter().map(|&f| *f.add(20) as u64).sum::<u64>();
                continue;
            }
            let (mut keys, mut hashes, mut found) = ([[0u32; 4]; BURST], [0u32; BURST], [EMPTY; BURST]);
            for j in 0..BURST {
                let Some(key) = parse(frames[j]) else { continue };
                hashes[j] = hash(&key);
                keys[j] = key;
                _mm_prefetch::<_MM_HINT_T0>(index.as_ptr().add(hashes[j] as usize & (buckets - 1)).cast());
            }
            for j in 0..BURST {
                let bucket = index.get_unchecked(hashes[j] as usize & (buckets - 1));
                let tags = _mm_load_si128(bucket.tags.as_ptr().cast());
                let wanted = _mm_set1_epi16(((hashes[j] >> 16) as u16 | 1) as i16);
                let hits = _mm_movemask_epi8(_mm_cmpeq_epi16(tags, wanted)) as u32;
                if hits != 0 {
                    found[j] = bucket.flows[(hits.trailing_zeros() / 2) as usize & 7];
                    if found[j] != EMPTY {
                        _mm_prefetch::<_MM_HINT_T0>(rewrites.as_ptr().add(found[j] as usize).cast());
                        _mm_prefetch::<_MM_HINT_T0>(counters.as_ptr().add(found[j] as usize).cast());
                    }
                }
            }
            for j in 0..BURST {
                let Some(rewrite) = rewrites.get_mut(found[j] as usize) else {
                    misses += 1;
                    continue;
                };
                let (stored, wanted) = (rewrite.key.as_ptr().cast(), keys[j].as_ptr().cast());
                let same = _mm_cmpeq_epi32(_mm_load_si128(stored), _mm_loadu_si128(wanted));
                if _mm_movemask_epi8(same) != 0xffff || rewrite.generation != 1 {
                    misses += 1;
                    continue;
                }
                if rewrite.deadline != 5 {
                    rewrite.deadline = 5;
                }
                let count = counters.get_unchecked_mut(found[j] as usize);
                count.packets += 1;
                count.bytes += 60;
                count.last = start;
                apply(frames[j], rewrite);
                sink += rewrite.egress as u64;
            }
        }
        std::hint::black_box(sink);
        (self.random, self.next_mbuf) = (random, next_mbuf);
        misses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn almost_every_packet_finds_its_flow_and_is_counted() {
        let Some(mut floor) = Floor::new(1 << 12) else { return };
        let figure = floor.run(64 * 1000);
        assert!(figure.missed < 0.05, "{figure:?}");
        let counted: u64 = floor.counters.iter().map(|c| c.packets).sum();
        assert!(counted >= 64 * 950, "{counted}");
    }
}

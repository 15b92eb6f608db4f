//! The floor: what this machine's memory system allows a flow table plus a rewrite to cost.
//!
//! [`Floor`] is a bare loop, not a router: it parses VLAN, IPv4 and UDP, looks flows up in one-line buckets, checks the
//! key, rewrites addresses, ports, checksums and MACs, and counts. Frames are made on the spot for a random flow each,
//! in a pool laid out like mbufs. Generating alone is measured first and subtracted. Benchmarks of the router divide
//! by its ticks.
//!
//! Besides, [`clock`] tells time in the ticks that all figures are in, and [`pages`] lends huge pages to benchmarks that
//! may not contain unsafe code themselves.

pub mod clock;
#[cfg(target_arch = "x86_64")]
mod floor;
mod memory;

#[cfg(target_arch = "x86_64")]
pub use floor::Floor;
#[cfg(not(target_arch = "x86_64"))]
pub use unavailable::Floor;

/// Packets that a measurement takes unless it is told otherwise.
pub const PACKETS: usize = 20_000_000;

/// What one measurement of the floor found, per packet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// TSC ticks of the loop, without those for making the packet.
    pub ticks: f64,
    /// TSC ticks for making the packet.
    pub generating: f64,
    /// Share of packets whose flow was not found: where a bucket was full.
    pub missed: f64,
}

/// Ticks per packet with this many flows, a power of two; `None` where this CPU cannot run the loop.
pub fn measure(flows: usize) -> Option<f64> {
    Floor::new(flows).map(|mut floor| floor.run(PACKETS).ticks)
}

/// Zeroed memory that is never given back, and whether it lies on reserved 2 MiB pages (else on what the kernel gives).
/// The length is rounded up to whole pages.
///
/// # Panics
/// If there is no memory at all.
pub fn pages(bytes: usize) -> (&'static mut [u8], bool) {
    let pages = Box::leak(Box::new(memory::Pages::<u8>::zeroed(bytes.next_multiple_of(memory::HUGE_PAGE))));
    let is_huge = pages.is_huge();
    (pages, is_huge)
}

/// Gives what was freed back to the system, so that a process's size is what it uses.
pub fn give_back_freed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the allocator's own function; it may be called at any time by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Asks for the cache line of a value that is needed soon.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that faults nowhere; SSE is part of every x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

#[cfg(not(target_arch = "x86_64"))]
mod unavailable {
    /// The loop is written for x86-64.
    #[derive(Debug)]
    pub struct Floor(std::convert::Infallible);

    impl Floor {
        /// None.
        pub fn new(_flows: usize) -> Option<Self> {
            None
        }

        /// Cannot be called.
        pub fn run(&mut self, _packets: usize) -> crate::Figure {
            match self.0 {}
        }
    }
}

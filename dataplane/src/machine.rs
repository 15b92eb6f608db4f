//! What this machine offers, asked before DPDK is.

use rustix::thread::{CpuSet, sched_getaffinity};
use tracing::warn;

/// Whether this process may run on a CPU; warns, naming the `key` of the configuration, if it may not.
pub fn is_usable(cpu: u32, key: &str) -> bool {
    let cpu = cpu as usize;
    let usable = sched_getaffinity(None).is_ok_and(|set| cpu < CpuSet::MAX_CPU && set.is_set(cpu));
    if !usable {
        warn!("{key}: this process may not run on CPU {cpu}: it runs where the system puts it");
    }
    usable
}

/// Whether any huge page, of any size, is reserved.
pub fn has_huge_pages() -> bool {
    let sizes = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    sizes
        .filter_map(|size| std::fs::read_to_string(size.path().join("nr_hugepages")).ok())
        .any(|count| count.trim() != "0")
}

//! The machine that figures are of, in one line.

use std::fs;

use erhu_floor::clock;

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Processor, caches, memory, kernel.
pub fn description() -> String {
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let count = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let cache = |index: u8| {
        let text = read(&format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size"));
        let kib: u32 = text.trim().trim_end_matches('K').parse().unwrap_or(0);
        if kib >= 1024 { format!("{} MiB", kib / 1024) } else { format!("{kib} KiB") }
    };
    let memory = read("/proc/meminfo");
    let kib =
        memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    format!(
        "{}, {count} CPUs, TSC {:.0} MHz; L2 {}, L3 {}; {} GiB; Linux {}",
        model.unwrap_or("a processor without a name").trim(),
        clock::hz() / 1e6,
        cache(2),
        cache(3),
        kib.unwrap_or(0).div_ceil(1 << 20),
        read("/proc/sys/kernel/osrelease").trim(),
    )
}

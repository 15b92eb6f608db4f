//! Whether a configuration's memory is there: the formula of [`erhu_planes::sizing`] beside what the machine has.

use std::path::Path;

use erhu_planes::connections::Class;
use erhu_planes::instance::InstanceDir;
use erhu_planes::program::Program;
use erhu_planes::sizing::{self, Sizing, Wanted};
use serde_json::{Value, json};

use crate::cli::table::{Align, Table, grouped};
use crate::config::Config;

/// Bytes that there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Memory, reserved huge pages included.
    pub memory: u64,
    /// What could be had at present.
    pub available: u64,
    /// Size of the file system that the instance's folder is in, if it is one in memory.
    pub folder: Option<u64>,
}

impl Machine {
    /// This one, as an instance of that name finds it. What cannot be read is 0.
    pub fn this(instance: &str) -> Self {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let folder = InstanceDir::named(instance);
        let there = folder.folder().ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let stat = rustix::fs::statfs(there).ok().filter(|stat| stat.f_type == TMPFS);
        let size = stat.map(|stat| stat.f_blocks.saturating_mul(u64::try_from(stat.f_bsize).unwrap_or(0)));
        // Of size 0 it may grow as long as there is memory.
        Self { folder: size.filter(|size| *size > 0), ..Self::read(&text) }
    }

    fn read(meminfo: &str) -> Self {
        let line = |key: &str| {
            let rest = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            rest.split_whitespace().next()?.parse::<u64>().ok()
        };
        let bytes = |key| line(key).unwrap_or(0) << 10;
        let huge = line("HugePages_Free").unwrap_or(0).saturating_mul(bytes("Hugepagesize"));
        Self { memory: bytes("MemTotal"), available: bytes("MemAvailable") + huge, folder: None }
    }
}

/// The type of file systems in memory (`tmpfs`), of linux/magic.h.
const TMPFS: i64 = 0x0102_1994;

/// What a configuration takes with a rule set.
pub(crate) fn of(config: &Config, program: &Program) -> Sizing {
    let wanted =
        Wanted { connections: config.connections, workers: config.workers.len(), memory_mb: config.memory_mb };
    Sizing::of(wanted, program)
}

fn fits(sizing: &Sizing, machine: &Machine) -> bool {
    let class = sizing.class;
    sizing.total(class) <= machine.memory && machine.folder.is_none_or(|size| sizing.folder(class) <= size)
}

/// As JSON, all in bytes.
pub(crate) fn json(sizing: &Sizing, machine: &Machine) -> Value {
    let names = ["udp4", "tcp4", "udp6", "tcp6"];
    let by_class = |of: &dyn Fn(Class) -> Value| -> Value {
        names
            .iter()
            .zip(Class::ALL)
            .map(|(name, class)| ((*name).to_owned(), of(class)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let slab =
        |class: Class| Class::ALL.iter().zip(sizing.slab).find(|(c, _)| **c == class).map_or(0, |(_, bytes)| bytes);
    json!({
        "slab": by_class(&|class| slab(class).into()),
        "index": sizing.index,
        "nat": sizing.nat,
        "stats": sizing.stats,
        "events": sizing.events,
        "rules": sizing.rules,
        "packets": sizing.packets,
        "rest": sizing.rest,
        "total": by_class(&|class| sizing.total(class).into()),
        "folder": by_class(&|class| sizing.folder(class).into()),
        "per_connection": by_class(&|class| ((sizing::connection(class) * 10.0).round() / 10.0).into()),
        "reckoned_class": if sizing.class.is_v6() { "tcp6" } else { "tcp4" },
        "per_mapping": sizing::MAPPING,
        "per_host": sizing::HOST,
        "per_zone": 2 * sizing::ZONE,
        "per_pool_address": sizing::POOL_ADDRESS,
        "per_busy_pool_address": sizing::BUSY_POOL_ADDRESS,
        "machine": machine.memory,
        "available": machine.available,
        "folder_size": machine.folder,
        "fits": fits(sizing, machine),
    })
}

/// For people.
pub(crate) fn text(sizing: &Sizing, machine: &Machine, out: &mut dyn std::io::Write) -> std::io::Result<()> {
    let class = sizing.class;
    let slab = Class::ALL.iter().zip(sizing.slab).find(|(c, _)| **c == class).map_or(0, |(_, bytes)| bytes);
    let connections = if class.is_v6() {
        "connections, all of them TCP over IPv6"
    } else {
        "connections, all of them TCP over IPv4"
    };
    let mut table = Table::new(&[("MEMORY", Align::Left), ("MIB", Align::Right)]);
    for (name, bytes) in [
        (connections, slab),
        ("index of connections", sizing.index),
        ("translation", sizing.nat),
        ("packets", sizing.packets),
        ("counters", sizing.stats),
        ("events", sizing.events),
        ("rule sets, old and new", sizing.rules),
        ("the rest", sizing.rest),
        ("all", sizing.total(class)),
    ] {
        table.row([name.to_owned(), mib(bytes)]);
    }
    writeln!(out)?;
    table.print(out)?;
    let (memory, available) = (mib(machine.memory), mib(machine.available));
    let verdict = if fits(sizing, machine) { "fits" } else { "does not fit" };
    write!(out, "this machine has {memory} MiB, {available} of them available")?;
    if let Some(folder) = machine.folder {
        write!(out, "; {} MiB have to fit into {} of the instance's folder", mib(sizing.folder(class)), mib(folder))?;
    }
    writeln!(out, ": it {verdict}")
}

fn mib(bytes: u64) -> String {
    grouped(bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       16384000 kB\nMemFree:   1 kB\nMemAvailable:    8192000 kB\n\
        HugePages_Total:     512\nHugePages_Free:      256\nHugepagesize:       2048 kB\n";

    #[test]
    fn what_a_machine_has_is_read_huge_pages_included() {
        let machine = Machine::read(MEMINFO);
        assert_eq!((machine.memory, machine.available), (16_384_000 << 10, (8_192_000 << 10) + (512 << 20)));
        assert_eq!(Machine::read("nothing"), Machine::default());
    }

    #[test]
    fn what_fits_memory_may_still_not_fit_the_folder() {
        let sizing = Sizing::of(Wanted { connections: 1_000_000, workers: 1, memory_mb: 64 }, &Program::empty());
        let machine = Machine::read(MEMINFO);
        assert!(fits(&sizing, &machine));
        assert!(!fits(&sizing, &Machine { folder: Some(64 << 20), ..machine }));
        assert!(!fits(&sizing, &Machine { memory: 64 << 20, ..machine }));
        let json = json(&sizing, &machine);
        assert_eq!((&json["fits"], &json["per_connection"]["tcp4"]), (&true.into(), &277.3.into()));
        assert_eq!((&json["reckoned_class"], &json["per_host"]), (&"tcp4".into(), &sizing::HOST.into()));
        let mut out = Vec::new();
        text(&sizing, &machine, &mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains("index of connections") && out.ends_with(": it fits\n"), "{out}");
    }
}

//! Reserving huge pages while a benchmark runs.

use std::fs;

const RESERVED: &str = "/proc/sys/vm/nr_hugepages";
const HUGE_PAGE: usize = 2 << 20;

/// Gives back what it reserved.
#[derive(Debug)]
pub struct Reservation {
    before: Option<usize>,
}

impl Reservation {
    /// Sees to it that so many bytes lie on free 2 MiB pages, if this may be done here. Also says what came of it.
    pub fn of(bytes: usize) -> (Self, String) {
        let wanted = bytes.div_ceil(HUGE_PAGE);
        let none = |said: String| (Self { before: None }, said);
        let Some(before) = read(RESERVED) else {
            return none("2 MiB pages: this system has none; figures will be worse".into());
        };
        let (all, free) = (count("Total").unwrap_or(before), count("Free").unwrap_or(0));
        if free >= wanted {
            return none(format!("2 MiB pages: {free} are free, {wanted} wanted"));
        }
        // All, with those that are in use beyond what was reserved: frames of an earlier benchmark.
        if let Err(e) = fs::write(RESERVED, (all + wanted - free).to_string()) {
            return none(format!(
                "2 MiB pages: {free} are free, {wanted} wanted, and {RESERVED}: {e}; transparent ones instead, \
                 figures will be worse"
            ));
        }
        let now = count("Free").unwrap_or(0);
        let worse = if now < wanted { "; transparent ones for the rest, figures will be worse" } else { "" };
        (
            Self { before: Some(before) },
            format!(
                "2 MiB pages: {now} are free now, {wanted} wanted ({RESERVED} was {before}, and will be again){worse}"
            ),
        )
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // What is still mapped goes when this process ends.
            let _ = fs::write(RESERVED, before.to_string());
        }
    }
}

fn read(path: &str) -> Option<usize> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A count of huge pages, by its name in the system's list.
fn count(which: &str) -> Option<usize> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("HugePages_")?.strip_prefix(which)?.strip_prefix(':'));
    line?.trim().parse().ok()
}

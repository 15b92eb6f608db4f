//! `erhu-floor`: prints the floor's ticks per packet for the flow counts of the benchmarks.
//!
//! Run it pinned and with huge pages reserved: `taskset -c 1 cargo run --release -p erhu-floor`.

use std::process::ExitCode;

use erhu_floor::{Floor, PACKETS};

fn main() -> ExitCode {
    for flows in [1 << 10, 1 << 16, 1 << 20, 1 << 22] {
        let Some(mut floor) = Floor::new(flows) else {
            eprintln!("this CPU lacks AVX2 or its relatives");
            return ExitCode::FAILURE;
        };
        let figure = floor.run(PACKETS);
        println!(
            "{flows:>8} flows: {:5.1} ticks per packet, generating {:4.1} more, {:.2} % missed{}",
            figure.ticks,
            figure.generating,
            figure.missed * 100.0,
            if floor.is_huge() { "" } else { "; no huge pages: worse than it could be" },
        );
    }
    ExitCode::SUCCESS
}

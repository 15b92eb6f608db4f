//! `erhu-count`: instructions per packet of the router's main paths, of a TCP connection from its first segment to its
//! last, and of the longest loop while much has to end.
//!
//! # Overview
//!
//! Time is noisy, instructions are not: the same program takes the same number of them on every run. `erhu-count` runs
//! itself under `valgrind --tool=callgrind` once for each [`Path`], with only the worker's loop collected, and compares
//! the numbers with those of `testbed/instructions.toml`. More than [`TOLERANCE`] above is a failure; as much below is
//! worth a lower number there. Caches and predictors are not in these numbers: `erhu-testbed bench` measures those.
//!
//! Of the paths called *longest* each loop is collected by itself, and the one with the most instructions counts. That
//! says what no timer can on a machine where others take turns: how much work of its own a loop does at most.
#![forbid(unsafe_code)]

mod plane;
mod traffic;

use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, ValueEnum};
use plane::{Family, Plane};
use traffic::{Side, Traffic};

/// Part of a committed number that a new one may differ from it without a word.
const TOLERANCE: f64 = 0.05;
/// Bursts whose instructions are collected.
const BURSTS: u32 = 256;
/// Bursts of connections that end at once: more than the counted loops can end.
const STORM: u32 = 128;
/// The function that valgrind looks at; see [`plane::Plane::one_counted_loop`].
const COUNTED: &str = "*one_counted_loop*";
/// The same, in full: a name that begins with a star ends no dump.
const ENDED: &str = "erhu_count::plane::Plane::one_counted_loop";

/// Counts instructions under valgrind, per packet, of a TCP life or of the longest loop, and compares them with the
/// committed numbers
#[derive(Parser)]
#[command(
    version,
    after_help = "Example:\n  cargo run --release -p erhu-count\n  cargo run --release -p erhu-count -- --update"
)]
struct Cli {
    /// Write what was counted into the file instead of comparing
    #[arg(long)]
    update: bool,
    /// The committed numbers
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../instructions.toml"))]
    numbers: PathBuf,
    /// Take one path's packets through the router and count nothing: what runs under valgrind
    #[arg(long, value_name = "PATH", hide = true)]
    run: Option<Path>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Path {
    /// Packets of established UDP connections, source translated, outward and back in turn.
    EstablishedUdp,
    /// The same over IPv6, between IPv6 addresses.
    EstablishedUdp6,
    /// The same of TCP over IPv4, with data in the window.
    EstablishedTcp,
    /// Whole lives of TCP connections: seven segments from the SYN to the last ACK, without data.
    TcpLife,
    /// First packets of UDP connections: ten rules, a route, a port of a pool.
    NewConnection,
    /// Loops without packets while thousands of connections, whose time has come at once, end.
    LongestExpiry,
    /// The same while a request ends them.
    LongestFlush,
    /// Bursts of first packets while thousands of connections, whose time has come at once, end: more for each opening.
    LongestOpening,
    /// Bursts of established connections, each of which is judged again by a new rule set.
    LongestReload,
}

impl Path {
    const ALL: [Self; 9] = [
        Self::EstablishedUdp,
        Self::EstablishedUdp6,
        Self::EstablishedTcp,
        Self::TcpLife,
        Self::NewConnection,
        Self::LongestExpiry,
        Self::LongestFlush,
        Self::LongestOpening,
        Self::LongestReload,
    ];

    const fn family(self) -> Family {
        if matches!(self, Self::EstablishedUdp6) { Family::V6 } else { Family::V4 }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::EstablishedUdp => "established-udp",
            Self::EstablishedUdp6 => "established-udp6",
            Self::EstablishedTcp => "established-tcp",
            Self::TcpLife => "tcp-life",
            Self::NewConnection => "new-connection",
            Self::LongestExpiry => "longest-expiry",
            Self::LongestFlush => "longest-flush",
            Self::LongestOpening => "longest-opening",
            Self::LongestReload => "longest-reload",
        }
    }

    /// Whether the longest loop counts, instead of a packet's share of all.
    const fn is_of_one_loop(self) -> bool {
        matches!(self, Self::LongestExpiry | Self::LongestFlush | Self::LongestOpening | Self::LongestReload)
    }
}

/// Why nothing was counted.
#[derive(Debug, thiserror::Error)]
enum CountError {
    /// The router in this process.
    #[error("the router: {0}")]
    Router(String),
    /// Not started at all.
    #[error("valgrind: {0} (Debian package valgrind)")]
    NoValgrind(std::io::Error),
    /// A place for what it writes.
    #[error("a folder for what valgrind writes: {0}")]
    NoFolder(std::io::Error),
    /// It ended without a number.
    #[error("valgrind said no number of instructions:\n{0}")]
    NoNumber(String),
    /// The numbers' file.
    #[error("{}: {what}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

type Numbers = BTreeMap<String, u64>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.run {
        Some(path) => run(path).map(|()| true),
        None => count_all().and_then(|found| {
            if cli.update { write(&cli.numbers, &found).map(|()| true) } else { compare(&cli.numbers, &found) }
        }),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("erhu-count: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The packets of one path; all but the counted loops is preparation.
fn run(path: Path) -> Result<(), CountError> {
    let family = path.family();
    let mut plane = Plane::new(family)?;
    match path {
        Path::NewConnection => {
            let mut traffic = Traffic::udp(family);
            // The first loops find everything cold that is only made once.
            traffic.open(&mut plane, 4, false)?;
            traffic.open(&mut plane, BURSTS, true)?;
        }
        Path::EstablishedUdp | Path::EstablishedUdp6 | Path::EstablishedTcp => {
            let is_tcp = path == Path::EstablishedTcp;
            let mut traffic = if is_tcp { Traffic::tcp(family) } else { Traffic::udp(family) };
            traffic.open(&mut plane, 16, false)?;
            traffic.establish(&mut plane)?;
            for at in 0..BURSTS {
                let side = if at % 2 == 0 { Side::Inside } else { Side::Outside };
                traffic.data(&mut plane, side, true)?;
            }
        }
        Path::TcpLife => {
            let mut traffic = Traffic::tcp(family);
            traffic.live(&mut plane, 4, false)?;
            traffic.live(&mut plane, BURSTS, true)?;
        }
        Path::LongestExpiry | Path::LongestFlush | Path::LongestOpening => {
            let mut traffic = Traffic::udp(family);
            traffic.open(&mut plane, STORM, false)?;
            // The last burst's openings let more end in the next loop.
            plane.turn(plane::LAN, &mut Vec::new(), false);
            if path == Path::LongestFlush {
                plane.flush()?;
            } else {
                plane.let_pass(31);
            }
            let before = plane.ended()?;
            if path == Path::LongestOpening {
                traffic.open(&mut plane, BURSTS / 8, true)?;
            } else {
                (0..BURSTS).for_each(|_| _ = plane.turn(plane::LAN, &mut Vec::new(), true));
            }
            let ended = plane.ended()? - before;
            if ended < u64::from(BURSTS) {
                return Err(CountError::Router(format!("only {ended} connections ended")));
            }
            plane.pass(0);
        }
        Path::LongestReload => {
            let mut traffic = Traffic::udp(family);
            traffic.open(&mut plane, BURSTS / 8, false)?;
            traffic.establish(&mut plane)?;
            plane.reload(family)?;
            (0..BURSTS / 4).try_for_each(|_| traffic.data(&mut plane, Side::Inside, true))?;
        }
    }
    plane.balance()
}

/// Instructions of every path.
fn count_all() -> Result<Numbers, CountError> {
    Path::ALL.iter().map(|path| Ok((path.name().to_owned(), count(*path)?))).collect()
}

/// Per packet, or of the longest loop.
fn count(path: Path) -> Result<u64, CountError> {
    let own = std::env::current_exe().map_err(CountError::NoValgrind)?;
    let folder = tempfile::tempdir().map_err(CountError::NoFolder)?;
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--collect-atstart=no"]).arg(format!("--toggle-collect={COUNTED}"));
    if path.is_of_one_loop() {
        valgrind.arg(format!("--dump-after={ENDED}"));
        valgrind.arg(format!("--callgrind-out-file={}", folder.path().join("loop").display()));
    } else {
        valgrind.arg("--callgrind-out-file=/dev/null");
    }
    let output = valgrind.arg(&own).args(["--run", path.name()]).output().map_err(CountError::NoValgrind)?;
    let said = String::from_utf8_lossy(&output.stderr);
    let counted = if path.is_of_one_loop() {
        longest(folder.path()).map_err(CountError::NoFolder)?
    } else {
        collected(&said).map(|all| all / (u64::from(BURSTS) * traffic::BURST as u64))
    };
    counted.filter(|n| output.status.success() && *n > 0).ok_or_else(|| CountError::NoNumber(said.into_owned()))
}

/// The largest number of all that callgrind wrote, a file for each loop with a line `totals: 456`.
fn longest(folder: &FilePath) -> std::io::Result<Option<u64>> {
    let mut most = None;
    for file in std::fs::read_dir(folder)? {
        let text = std::fs::read_to_string(file?.path())?;
        let totals = text.lines().filter_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
        most = most.max(totals.max());
    }
    Ok(most)
}

/// The number in callgrind's `==123== Collected : 456`.
fn collected(said: &str) -> Option<u64> {
    said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok())
}

fn file_error(path: &FilePath, what: impl ToString) -> CountError {
    CountError::File { path: path.to_owned(), what: what.to_string() }
}

/// What a table of the file holds.
#[derive(serde::Deserialize)]
struct File {
    instructions: Numbers,
}

fn compare(path: &FilePath, found: &Numbers) -> Result<bool, CountError> {
    let text = std::fs::read_to_string(path).map_err(|e| file_error(path, e))?;
    let File { instructions: committed } = toml::from_str(&text).map_err(|e| file_error(path, e))?;
    let mut all_right = true;
    println!("{:16} {:>9} {:>9} {:>8}", "instructions", "found", "committed", "");
    for (name, now) in found {
        let Some(before) = committed.get(name) else {
            return Err(file_error(path, format!("there is no number for {name}; this build has {now}")));
        };
        let (moved, verdict) = judge(*before, *now);
        println!("{name:16} {now:>9} {before:>9} {:>+7.1}%  {}", moved * 100.0, verdict.text());
        if verdict == Verdict::More {
            all_right = false;
        }
        if verdict != Verdict::Same {
            println!("{:16} to accept it, write `{name} = {now}` into {}", "", path.display());
        }
    }
    Ok(all_right)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    Less,
    More,
}

impl Verdict {
    const fn text(self) -> &'static str {
        match self {
            Self::Same => "ok",
            Self::Less => "less than before: lower the number, so that it stays so",
            Self::More => "REGRESSION: more than before",
        }
    }
}

/// How far a number moved, as a part of the one before, and whether that is worth a word.
fn judge(before: u64, now: u64) -> (f64, Verdict) {
    let moved = now as f64 / (before as f64).max(1.0) - 1.0;
    let verdict = if moved > TOLERANCE {
        Verdict::More
    } else if moved < -TOLERANCE {
        Verdict::Less
    } else {
        Verdict::Same
    };
    (moved, verdict)
}

const HEAD: &str = "\
# Instructions per packet of the router's main paths, of a whole life of a TCP connection (seven segments), and of the
# longest loop where much has to end or to be judged again; release profile, under valgrind's callgrind.
# `testbed/test.sh instructions` counts again and fails where a number grew by more than 5 %.
# To accept a change: write the new number here, or all of them: cargo run --release -p erhu-count -- --update

[instructions]
";

fn write(path: &FilePath, found: &Numbers) -> Result<(), CountError> {
    let lines: String = found.iter().map(|(name, n)| format!("{name} = {n}\n")).collect();
    std::fs::write(path, format!("{HEAD}{lines}")).map_err(|e| file_error(path, e))?;
    print!("{lines}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_takes_its_packets_through_the_router_and_the_counters_add_up() {
        for path in Path::ALL {
            run(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        }
    }

    #[test]
    fn six_percent_more_is_a_regression_and_four_are_not() {
        assert_eq!(judge(1000, 1060).1, Verdict::More);
        assert_eq!(judge(1000, 1040).1, Verdict::Same);
        assert_eq!(judge(1000, 940).1, Verdict::Less);
    }

    #[test]
    fn a_file_without_a_path_is_refused_by_name() {
        let folder = std::env::temp_dir().join(format!("erhu-count-{}", std::process::id()));
        std::fs::write(&folder, "[instructions]\nestablished-udp = 100\n").unwrap();
        let found = |name: &str, n| Numbers::from([(name.to_owned(), n)]);
        assert!(compare(&folder, &found("established-udp", 103)).unwrap());
        assert!(!compare(&folder, &found("established-udp", 106)).unwrap());
        let error = compare(&folder, &found("new-connection", 7)).unwrap_err().to_string();
        std::fs::remove_file(&folder).unwrap();
        assert!(error.contains("no number for new-connection; this build has 7"), "{error}");
    }

    #[test]
    fn the_longest_loop_is_the_largest_of_the_profiles() {
        let folder = tempfile::tempdir().unwrap();
        for (name, total) in [("loop.1", 900), ("loop.2", 1700), ("loop.3", 0)] {
            std::fs::write(folder.path().join(name), format!("events: Ir\nfn=(1) x\n7 5\n\ntotals: {total}\n"))
                .unwrap();
        }
        std::fs::write(folder.path().join("other"), "nothing").unwrap();
        assert_eq!(longest(folder.path()).unwrap(), Some(1700));
    }

    #[test]
    fn the_number_is_found_in_what_callgrind_says() {
        assert_eq!(collected("==7== Events    : Ir\n==7== Collected : 12345\n"), Some(12_345));
        assert_eq!(collected("==7== refused"), None);
    }
}

//! The two real processes on capture files: start, stop, being killed, and what they say when they cannot start.
//!
//! Needs no root, no huge pages and no NIC; and the programs, built by `cargo build -p erhu-dataplane -p
//! erhu-controlplane` (or `ERHU_BIN_DIR`). Packets and their judge are the demo's.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use erhu_planes::region::Region;
use erhu_planes::stats::{self, StatsRegion};
use erhu_testbed::netns::{self, Finished, Running};
use erhu_testbed::scenario::repository;
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(30);
/// Packets in the demo's captures.
const OFFERED: u64 = 14;

fn must<T>(result: Result<T, netns::Fault>) -> T {
    result.unwrap_or_else(|fault| panic!("{fault}"))
}

/// A folder with captures, a configuration and everything that the processes of an instance write.
struct Place {
    folder: tempfile::TempDir,
    /// The folder that instances share.
    run: PathBuf,
    /// The folder that keeps the history of rule sets.
    state: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("erhu-").tempdir().unwrap();
        let run = folder.path().join("run");
        Self::beside(folder, run)
    }

    /// Another instance of the same machine.
    fn neighbour(&self) -> Self {
        Self::beside(tempfile::Builder::new().prefix("erhu-").tempdir().unwrap(), self.run.clone())
    }

    fn beside(folder: tempfile::TempDir, run: PathBuf) -> Self {
        let state = folder.path().join("state");
        let place = Self { folder, run, state };
        let config = repository().join("configs/ci.toml");
        let path = place.path().display().to_string();
        must(
            must(place.testbed(&["demo", "prepare", &path, "--config", &config.display().to_string()]))
                .success("prepare"),
        );
        place
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn name(&self) -> String {
        self.path().file_name().unwrap().to_string_lossy().into_owned()
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.path()).env("ERHU_RUNTIME_DIR", &self.run).env("ERHU_STATE_DIR", &self.state);
        // DPDK's own files.
        command.env("RUNTIME_DIRECTORY", self.path()).env("XDG_RUNTIME_DIR", self.path());
        command
    }

    fn testbed(&self, arguments: &[&str]) -> Result<Finished, netns::Fault> {
        let mut command = self.command(Path::new(env!("CARGO_BIN_EXE_erhu-testbed")));
        command.args(arguments);
        netns::run(command, PATIENCE)
    }

    /// Starts a dataplane that then waits for its first rule set.
    fn dataplane(&self) -> Running {
        let mut running = self.start("erhu-dataplane", &["--config", "demo.toml"]);
        must(running.wait_for("waits for its first rule set", PATIENCE));
        running
    }

    /// Starts a daemon, and waits until it has said something.
    fn daemon(&self, words: &str) -> Running {
        let mut running = self.start("erhu", &["serve", "--config", "demo.toml"]);
        must(running.wait_for(words, PATIENCE));
        running
    }

    fn start(&self, program: &str, arguments: &[&str]) -> Running {
        let mut command = self.command(&must(netns::binary(program)));
        command.args(arguments);
        must(netns::start(command))
    }

    /// Runs a program to its end.
    fn run(&self, program: &str, arguments: &[&str]) -> Finished {
        let mut command = self.command(&must(netns::binary(program)));
        command.args(arguments);
        must(netns::run(command, PATIENCE))
    }

    fn connections(&self) -> String {
        let counted = self.run("erhu", &["--instance", &self.name(), "conntrack", "-C"]);
        must(counted.success("conntrack -C")).trim().to_owned()
    }

    /// Waits until all packets were taken, and asserts that each tenant's left from its own pool.
    fn is_right(&self) {
        let erhu = must(netns::binary("erhu")).display().to_string();
        let shown = must(self.testbed(&["demo", "show", &self.path().display().to_string(), "--erhu", &erhu]));
        must(shown.success("demo show"));
    }

    fn change_config(&self, from: &str, to: &str) {
        let path = self.path().join("demo.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from} is not in\n{text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
    }
}

fn kill(mut process: Running) {
    process.signal(Signal::KILL);
    must(process.wait(PATIENCE));
}

#[test]
fn two_tenants_go_out_through_two_processes_and_the_last_counters_are_there_after_the_end() {
    let place = Place::new();
    let (mut dataplane, mut daemon) = (place.dataplane(), place.daemon("published the configured script"));
    place.is_right();
    for process in [&mut dataplane, &mut daemon] {
        process.signal(Signal::TERM);
        assert!(must(process.wait(PATIENCE)).success(), "{}", process.output());
    }
    assert!(!place.run.join(place.name()).join("dataplane.sock").exists());
    let stats = Region::attach(&place.run.join(place.name()).join("stats"), &stats::EXPECT).unwrap();
    let stats = StatsRegion::attached(stats).unwrap();
    let taken: u64 = stats.worker(0).unwrap().ports.iter().map(|p| p.rx_packets.load(Ordering::Relaxed)).sum();
    assert_eq!(taken, OFFERED);
}

#[test]
fn two_workers_on_ports_of_one_queue_do_the_same() {
    let place = Place::new();
    let text = std::fs::read_to_string(place.path().join("demo.toml")).unwrap();
    let workers = text.lines().find(|line| line.starts_with("workers")).unwrap();
    // A CPU that may not be there: the worker then shares the main thread's.
    place.change_config(workers, "workers = [0, 1]");
    let _both = (place.dataplane(), place.daemon("published the configured script"));
    place.is_right();
}

/// As for a user without a home, who has but one folder in `/tmp`.
#[test]
fn what_runs_and_what_is_kept_may_lie_in_one_folder() {
    let mut place = Place::new();
    place.state.clone_from(&place.run);
    let _both = (place.dataplane(), place.daemon("published the configured script"));
    place.is_right();
    let script = repository().join("configs/many-tenants.rhai").display().to_string();
    for words in [&["apply", &script][..], &["rollback"]] {
        let done = place.run("erhu", words);
        assert!(done.status.success(), "{words:?}: {}", done.stderr);
    }
}

#[test]
fn a_second_dataplane_of_one_name_is_refused_and_the_first_goes_on() {
    let place = Place::new();
    let _first = place.dataplane();
    let second = place.run("erhu-dataplane", &["--config", "demo.toml"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(second.stderr.contains("is running already"), "{}", second.stderr);
    let _daemon = place.daemon("published the configured script");
    place.is_right();
}

#[test]
fn instances_run_side_by_side_and_commands_ask_which_one_is_meant() {
    let one = Place::new();
    let other = one.neighbour();
    let _processes = (
        one.dataplane(),
        other.dataplane(),
        one.daemon("published the configured script"),
        other.daemon("published the configured script"),
    );
    one.is_right();
    other.is_right();
    let unclear = one.run("erhu", &["conntrack", "-C"]);
    assert_eq!(unclear.status.code(), Some(1));
    assert!([&one, &other].iter().all(|place| unclear.stderr.contains(&place.name())), "{}", unclear.stderr);
}

#[test]
fn a_dataplane_that_was_killed_starts_again_and_gets_the_rules_that_ran_last() {
    let place = Place::new();
    let first = place.dataplane();
    let mut daemon = place.daemon("published the configured script");
    place.is_right();
    kill(first);
    let gone = place.run("erhu", &["show", "zones"]);
    assert_eq!(gone.status.code(), Some(1));
    let _second = place.dataplane();
    must(daemon.wait_for("published the rule set that ran last", PATIENCE));
    place.is_right();
}

#[test]
fn a_daemon_that_is_killed_is_not_missed_and_its_successor_adopts_what_runs() {
    let place = Place::new();
    let _dataplane = place.dataplane();
    kill(place.daemon("published the configured script"));
    place.is_right();
    let before = place.connections();
    // A script that would change everything: it is for a dataplane that runs none.
    std::fs::write(place.path().join("other.rhai"), "policy(\"forward\", drop);").unwrap();
    let text = std::fs::read_to_string(place.path().join("demo.toml")).unwrap();
    let rules = text.lines().find(|line| line.starts_with("rules")).unwrap();
    place.change_config(rules, "rules = \"other.rhai\"");
    let _daemon = place.daemon("adopted the rule set that runs");
    assert_eq!(place.connections(), before);
    place.is_right();
}

#[test]
fn a_script_with_errors_leaves_the_rules_as_they_are_and_names_every_place() {
    let place = Place::new();
    let _both = (place.dataplane(), place.daemon("published the configured script"));
    place.is_right();
    let before = place.run("erhu", &["show", "rules"]).stdout;
    std::fs::write(
        place.path().join("wrong.rhai"),
        "zone(\"a\", #{ idd: 1 });\nforward(#{ zone: \"b\" }, accept);\n",
    )
    .unwrap();
    let refused = place.run("erhu", &["apply", "wrong.rhai"]);
    assert_eq!(refused.status.code(), Some(1));
    for place in ["wrong.rhai:1:", "wrong.rhai:2:"] {
        assert!(refused.stderr.contains(place), "{}", refused.stderr);
    }
    assert_eq!(place.run("erhu", &["show", "rules"]).stdout, before);
}

#[test]
fn what_keeps_a_dataplane_from_starting_is_said_with_its_place_or_remedy() {
    let cases = [
        ("memory_mb", "memori_mb", "unknown key `memori_mb`, did you mean `memory_mb`?"),
        ("wan.in.pcap", "missing.pcap", "Couldn't open missing.pcap"),
        ("net_pcap1", "net_nonesuch1", "librte-net-*"),
        ("memory_mb = 64", "memory_mb = 1", "memory_mb"),
    ];
    for (from, to, words) in cases {
        let place = Place::new();
        place.change_config(from, to);
        let refused = place.run("erhu-dataplane", &["--config", "demo.toml"]);
        assert_eq!(refused.status.code(), Some(1), "{to}: {}", refused.stderr);
        assert!(refused.stderr.contains(words), "{to}: {}", refused.stderr);
    }
}

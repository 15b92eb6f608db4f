//! `erhu check`, `apply` and `rollback`.

mod cli_fake;

use std::path::{Path, PathBuf};

use cli_fake::{Fake, erhu};
use erhu_planes::program::Program;
use erhu_planes::protocol::Request;

const BLUE: &str = "zone(\"blue\", #{ id: 1, limit: 100 });\ninterface(\"wan\", #{ port: \"wan\" });\n";
const GREEN: &str = "zone(\"green\", #{ id: 2 });\ninterface(\"wan\", #{ port: \"wan\" });\n";

struct Bench {
    folder: tempfile::TempDir,
    fake: Fake,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut fake = Fake::new();
        fake.state = Some(folder.path().join("state"));
        Self { folder, fake }
    }

    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn apply(&mut self, text: &str) -> cli_fake::Outcome {
        let path = self.script("rules.rhai", text);
        self.fake.erhu(&format!("apply {}", path.display()))
    }

    fn zones(&self) -> Vec<String> {
        let (_, bytes) = self.fake.running.as_ref().unwrap();
        Program::decode(bytes).unwrap().zones.into_iter().map(|zone| zone.name).collect()
    }

    fn kept(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.folder.path().join("state/history"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn generation_in(out: &str) -> &str {
    out.lines().last().unwrap()
}

#[test]
fn apply_publishes_prints_the_generation_and_keeps_program_and_script() {
    let mut bench = Bench::new();
    let applied = bench.apply(BLUE);
    assert_eq!((applied.status, generation_in(&applied.out)), (0, "generation 1"), "{}", applied.err);
    assert_eq!(bench.zones(), ["main", "blue"]);
    assert_eq!(bench.kept(), ["1.program", "1.rhai", "life"]);
    assert_eq!(std::fs::read_to_string(bench.folder.path().join("state/history/1.rhai")).unwrap(), BLUE);
    let applied = bench.fake.erhu(&format!("apply --json {}", bench.folder.path().join("rules.rhai").display()));
    assert_eq!(applied.json()["generation"], 2);
}

#[test]
fn a_dry_run_publishes_nothing() {
    let mut bench = Bench::new();
    let path = bench.script("rules.rhai", BLUE);
    let shown = bench.fake.erhu(&format!("apply {} --dry-run", path.display()));
    assert_eq!(shown.status, 0);
    assert!(!shown.out.contains("generation"), "{}", shown.out);
    assert!(bench.fake.running.is_none() && !bench.fake.asked.contains(&Request::Adopt));
}

#[test]
fn a_script_with_errors_leaves_the_policy_as_it_was_and_prints_all_of_them() {
    let mut bench = Bench::new();
    bench.apply(BLUE);
    let before = bench.fake.running.clone();
    let refused = bench.apply("zone(\"a\", #{ idd: 1 });\nzone(\"b\", #{ id: 70000 });\n");
    assert_eq!((refused.status, refused.out.as_str()), (1, ""));
    assert!(refused.err.contains("rules.rhai:1:") && refused.err.contains("rules.rhai:2:"), "{}", refused.err);
    assert_eq!(bench.fake.running, before);
    assert_eq!(bench.kept(), ["1.program", "1.rhai", "life"]);
}

#[test]
fn a_script_for_ports_that_are_not_there_is_refused() {
    let mut bench = Bench::new();
    let refused = bench.apply("interface(\"x\", #{ port: \"dmz\" });\n");
    assert_eq!(refused.status, 1);
    assert!(refused.err.contains("dmz"), "{}", refused.err);
}

#[test]
fn a_refusal_of_the_dataplane_is_passed_on_and_nothing_is_kept() {
    let mut bench = Bench::new();
    bench.fake.refuse = Some("no room for 1 zone".into());
    let refused = bench.apply(BLUE);
    assert_eq!(refused.status, 1);
    assert!(refused.err.ends_with("erhu: the dataplane refuses: no room for 1 zone\n"), "{}", refused.err);
    assert_eq!(bench.kept(), ["life"]);
}

#[test]
fn an_apply_that_is_cut_off_after_adoption_is_in_the_history_of_the_next() {
    let mut bench = Bench::new();
    bench.apply(BLUE);
    bench.fake.die_after_adopting = true;
    let cut = bench.apply(GREEN);
    assert_eq!(cut.status, 1);
    assert!(cut.err.contains("does not answer"), "{}", cut.err);
    assert_eq!(bench.kept(), ["1.program", "1.rhai", "life", "pending.program", "pending.rhai"]);
    bench.fake.die_after_adopting = false;
    let back = bench.fake.erhu("rollback");
    assert_eq!((back.status, generation_in(&back.out)), (0, "generation 3: generation 1 again"), "{}", back.err);
    assert_eq!(bench.kept(), ["1.program", "1.rhai", "2.program", "2.rhai", "3.program", "3.rhai", "life"]);
    assert_eq!(bench.zones(), ["main", "blue"]);
    bench.fake.erhu("rollback 2");
    assert_eq!(bench.zones(), ["main", "green"]);
}

#[test]
fn rollback_goes_to_the_one_before_or_to_the_one_named() {
    let mut bench = Bench::new();
    assert!(bench.fake.erhu("rollback").err.contains("no earlier generation is kept"));
    bench.apply(BLUE);
    assert_eq!(bench.fake.erhu("rollback").status, 1);
    bench.apply(GREEN);
    let back = bench.fake.erhu("rollback");
    assert_eq!(generation_in(&back.out), "generation 3: generation 1 again");
    assert_eq!(bench.zones(), ["main", "blue"]);
    let back = bench.fake.erhu("rollback 2 --json").json();
    assert_eq!((&back["generation"], &back["same_as"]), (&4.into(), &2.into()));
    assert_eq!(bench.zones(), ["main", "green"]);
    let missing = bench.fake.erhu("rollback 9");
    assert_eq!(missing.status, 1);
    assert!(missing.err.contains("generation 9 is not kept; kept: 1, 2, 3, 4"), "{}", missing.err);
}

#[test]
fn a_kept_program_that_was_damaged_is_refused() {
    let mut bench = Bench::new();
    bench.apply(BLUE);
    bench.apply(GREEN);
    let path = bench.folder.path().join("state/history/1.program");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let refused = bench.fake.erhu("rollback 1");
    assert_eq!(refused.status, 1);
    assert!(refused.err.contains("generation 1 cannot be used any more"), "{}", refused.err);
    assert_eq!(bench.zones(), ["main", "green"]);
}

#[test]
fn without_a_state_folder_apply_works_and_rollback_says_why_it_does_not() {
    let mut bench = Bench::new();
    bench.fake.state = None;
    assert_eq!(bench.apply(BLUE).status, 0);
    let refused = bench.fake.erhu("rollback");
    assert_eq!(refused.status, 1);
    assert!(refused.err.contains("keeps no history"), "{}", refused.err);
}

#[test]
fn check_needs_no_dataplane_and_counts_what_it_found() {
    let bench = Bench::new();
    let path = bench.script("rules.rhai", BLUE);
    let checked = erhu(&format!("check {}", path.display()));
    assert_eq!(checked.status, 0, "{}", checked.err);
    assert!(checked.out.contains("no errors; 2 zones, 1 interfaces"), "{}", checked.out);
    assert_eq!(erhu(&format!("check {} --json", path.display())).json()["zones"], 2);
}

#[test]
fn check_with_a_configuration_knows_its_ports() {
    let bench = Bench::new();
    let path = bench.script("rules.rhai", BLUE);
    let check = |config: &Path| erhu(&format!("check {} --config {}", path.display(), config.display()));
    assert_eq!(check(&bench.script("good.toml", "[[port]]\nname = \"wan\"\n")).status, 0);
    let refused = check(&bench.script("bad.toml", "[[port]]\nname = \"lan\"\n"));
    assert_eq!(refused.status, 1);
    assert!(refused.err.contains("rules.rhai:2:"), "{}", refused.err);
    let refused = check(&bench.script("worse.toml", "[[ports]]\nname = \"lan\"\n"));
    assert_eq!(refused.status, 1);
    assert!(refused.err.contains("worse.toml:1:3: unknown key `ports`, did you mean `port`?"), "{}", refused.err);
}

#[test]
fn check_with_a_configuration_says_how_much_memory_it_takes_and_whether_that_is_there() {
    let bench = Bench::new();
    let path = bench.script("rules.rhai", BLUE);
    let config = "connections = 200_000\nmemory_mb = 64\nworkers = [0, 1]\n[[port]]\nname = \"wan\"\n";
    let config = bench.script("edge.toml", config);
    let text = format!("check {} --config {}", path.display(), config.display());
    let checked = erhu(&text);
    assert_eq!(checked.status, 0, "{}", checked.err);
    let line = |start: &str| checked.out.lines().find(|line| line.starts_with(start)).map(str::to_owned);
    assert!(line("packets").is_some_and(|line| line.ends_with(" 64")), "{}", checked.out);
    assert!(line("this machine has").is_some(), "{}", checked.out);
    let memory = &erhu(&format!("{text} --json")).json()["memory"];
    // 25 segments hold 200 000 connections, and each worker may have one that is partly filled.
    assert_eq!(memory["slab"]["tcp4"], 26 * (2 << 20));
    assert_eq!((&memory["per_connection"]["udp4"], &memory["packets"]), (&213.3.into(), &(64 << 20).into()));
    assert!(memory["fits"].is_boolean());
    assert!(erhu(&format!("check {} --json", path.display())).json()["memory"].is_null(), "nothing is configured");
}

#[test]
fn errors_of_a_check_are_data_in_json() {
    let bench = Bench::new();
    let path = bench.script("rules.rhai", "zone(\"a\", #{ idd: 1 });\n");
    let checked = erhu(&format!("check {} --json", path.display()));
    assert_eq!(checked.status, 1);
    assert!(checked.json()["errors"][0].as_str().unwrap().contains("rules.rhai:1:"), "{}", checked.out);
}

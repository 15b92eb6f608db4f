//! The `erhu` program itself and its daemon, against a dataplane's socket.

mod cli_fake;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cli_fake::{Fake, answer_at};
use erhu_controlplane::client::{Client, running, status};
use erhu_controlplane::serve::Daemon;
use erhu_planes::instance::InstanceDir;
use erhu_planes::program::Program;

const BLUE: &str = "zone(\"blue\", #{ id: 1 });\n";
const GREEN: &str = "zone(\"green\", #{ id: 2 });\n";

struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(machine.path("run")).unwrap();
        machine
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Starts a dataplane of that name.
    fn start(&self, instance: &str) -> Arc<Mutex<Fake>> {
        let folder = self.path("run").join(instance);
        std::fs::create_dir_all(&folder).unwrap();
        let fake = Arc::new(Mutex::new(Fake::new()));
        answer_at(&folder.join("dataplane.sock"), &fake);
        fake
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_erhu"));
        command.args(args).env("ERHU_RUNTIME_DIR", self.path("run")).env("ERHU_STATE_DIR", self.path("state"));
        command
    }

    fn erhu(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn daemon(&self, instance: &str) -> Daemon {
        let files = InstanceDir::at(self.path("run").join(instance));
        Daemon::new(files, self.path("state").join(instance), self.path("rules.rhai"))
    }
}

fn zones(fake: &Mutex<Fake>) -> Vec<String> {
    let fake = fake.lock().unwrap();
    let Some((_, bytes)) = &fake.running else { return Vec::new() };
    Program::decode(bytes).unwrap().zones.into_iter().map(|zone| zone.name).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_only_running_instance_needs_no_name_and_several_do() {
    let machine = Machine::new();
    let none = machine.erhu(&["show", "zones"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stderr).contains("no dataplane is running"), "{}", text(&none.stderr));

    machine.start("edge1");
    machine.write("rules.rhai", BLUE);
    let applied = machine.erhu(&["apply", machine.path("rules.rhai").to_str().unwrap()]);
    assert!(applied.status.success(), "{}", text(&applied.stderr));
    assert!(text(&applied.stdout).ends_with("generation 1\n"));
    assert!(machine.path("state/edge1/history/1.program").exists());

    machine.start("edge2");
    let several = machine.erhu(&["rollback"]);
    assert_eq!(several.status.code(), Some(1));
    assert!(
        text(&several.stderr).contains("(edge1, edge2); choose one with --instance"),
        "{}",
        text(&several.stderr)
    );
    let chosen = machine.erhu(&["--instance", "edge2", "rollback"]);
    assert!(text(&chosen.stderr).contains("no earlier generation is kept"), "{}", text(&chosen.stderr));
    let unknown = machine.erhu(&["rollback", "--instance", "edge3"]);
    assert!(
        text(&unknown.stderr).contains("edge3 is not running (running: edge1, edge2)"),
        "{}",
        text(&unknown.stderr)
    );
}

#[test]
fn a_socket_that_a_killed_process_left_behind_does_not_count() {
    let machine = Machine::new();
    machine.start("edge1");
    let folder = machine.path("run/dead");
    std::fs::create_dir_all(&folder).unwrap();
    drop(std::os::unix::net::UnixListener::bind(folder.join("dataplane.sock")).unwrap());
    assert!(text(&machine.erhu(&["rollback"]).stderr).contains("no earlier generation"));
    let dead = machine.erhu(&["rollback", "--instance", "dead"]);
    assert_eq!(dead.status.code(), Some(1));
    assert!(text(&dead.stderr).contains("dead does not answer"), "{}", text(&dead.stderr));
}

#[test]
fn help_and_wrong_usage_have_their_exit_statuses() {
    let machine = Machine::new();
    let help = machine.erhu(&["conntrack", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("erhu conntrack -L -o extended,id"));
    assert!(text(&machine.erhu(&["show"]).stderr).contains("Usage: erhu show"));
    assert_eq!(machine.erhu(&["--version"]).status.code(), Some(0));
    assert_eq!(machine.erhu(&["conntrack", "-L", "--bogus"]).status.code(), Some(2));
    assert_eq!(machine.erhu(&[]).status.code(), Some(2));
}

#[test]
fn a_client_carries_programs_both_ways() {
    let machine = Machine::new();
    let fake = machine.start("edge1");
    let mut client = Client::at(InstanceDir::at(machine.path("run/edge1")), machine.path("state/edge1")).unwrap();
    assert_eq!(status(&mut client).unwrap().generation, 0);
    assert_eq!(running(&mut client).unwrap(), None);
    let bytes = Program::empty().encode().unwrap();
    fake.lock().unwrap().running = Some((4, bytes.clone()));
    let now = running(&mut client).unwrap().unwrap();
    assert_eq!((now.generation, now.program().unwrap()), (4, Program::empty()));
    assert_eq!(now.bytes, bytes);
}

#[test]
fn the_daemon_applies_the_configured_script_only_where_nothing_runs() {
    let machine = Machine::new();
    machine.write("rules.rhai", BLUE);
    let mut daemon = machine.daemon("edge1");
    assert!(!daemon.look(), "no dataplane yet");
    let fake = machine.start("edge1");
    assert!(daemon.look());
    assert_eq!(zones(&fake), ["main", "blue"]);

    let machine = Machine::new();
    machine.write("rules.rhai", BLUE);
    let fake = machine.start("edge1");
    let bytes = Program::empty().encode().unwrap();
    fake.lock().unwrap().running = Some((9, bytes.clone()));
    let mut daemon = machine.daemon("edge1");
    assert!(daemon.look() && daemon.look());
    assert_eq!(zones(&fake), ["main"]);
    assert_eq!(std::fs::read(machine.path("state/edge1/history/9.program")).unwrap(), bytes);
}

#[test]
fn a_dataplane_that_is_started_anew_gets_what_ran_last() {
    let machine = Machine::new();
    machine.write("rules.rhai", BLUE);
    let fake = machine.start("edge1");
    let mut daemon = machine.daemon("edge1");
    assert!(daemon.look());
    machine.write("other.rhai", GREEN);
    assert!(machine.erhu(&["apply", machine.path("other.rhai").to_str().unwrap()]).status.success());
    assert!(daemon.look());
    {
        let mut fake = fake.lock().unwrap();
        (fake.instance_id, fake.running) = (8, None);
    }
    assert!(daemon.look());
    assert_eq!(zones(&fake), ["main", "green"]);
    let mut newcomer = machine.daemon("edge1");
    {
        let mut fake = fake.lock().unwrap();
        (fake.instance_id, fake.running) = (9, None);
    }
    assert!(newcomer.look());
    assert_eq!(zones(&fake), ["main", "blue"], "a daemon that saw nothing run takes the configured script");
}

#[test]
fn a_script_that_does_not_check_is_tried_again_when_it_changes() {
    let machine = Machine::new();
    machine.write("rules.rhai", "zone(\"blue\", #{ idd: 1 });\n");
    let fake = machine.start("edge1");
    let mut daemon = machine.daemon("edge1");
    assert!(!daemon.look() && !daemon.look());
    assert!(zones(&fake).is_empty());
    std::thread::sleep(Duration::from_millis(20));
    machine.write("rules.rhai", BLUE);
    assert!(daemon.look());
    assert_eq!(zones(&fake), ["main", "blue"]);
}

fn spawn_daemon(machine: &Machine, config: &Path) -> Child {
    let mut command = machine.command(&["serve", "--config", config.to_str().unwrap()]);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn wait_for(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(20), "it does not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_daemon_process_waits_for_its_dataplane_and_ends_cleanly_on_sigterm() {
    let machine = Machine::new();
    machine.write("rules.rhai", BLUE);
    let port = "[[port]]\nname = \"wan\"\ndevice = \"net_null0\"\n";
    machine.write("edge1.toml", &format!("instance = \"edge1\"\nworkers = [1]\n{port}"));
    let mut daemon = spawn_daemon(&machine, &machine.path("edge1.toml"));
    std::thread::sleep(Duration::from_millis(300));
    let fake = machine.start("edge1");
    wait_for(|| zones(&fake) == ["main", "blue"]);
    // A daemon that is killed costs nothing; its successor adopts what runs.
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    machine.write("rules.rhai", GREEN);
    let daemon = spawn_daemon(&machine, &machine.path("edge1.toml"));
    std::thread::sleep(Duration::from_millis(500));
    let id = daemon.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    let ended = daemon.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    assert!(text(&ended.stderr).contains("adopted the rule set that runs"), "{}", text(&ended.stderr));
    assert_eq!(zones(&fake), ["main", "blue"]);
}

#[test]
fn a_configuration_that_cannot_be_used_is_explained() {
    let machine = Machine::new();
    machine.write("edge1.toml", "instance = \"edge1\"\nwokers = [1]\n");
    let refused = machine.erhu(&["serve", "--config", machine.path("edge1.toml").to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("edge1.toml:2:1: unknown key `wokers`"), "{}", text(&refused.stderr));
}

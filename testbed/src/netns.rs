//! Network namespaces for live tests: made, filled with devices and programs, and taken away again.
//!
//! Everything here needs root; [`Fault`] says so where it is missing. A [`Namespace`] goes away when it is dropped,
//! with all that runs or lies in it, and a [`Running`] program is killed when it is dropped, so that a test that
//! panics leaves nothing behind. Names begin with `erhu-` and the process id: tests can run side by side.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What to do where namespaces cannot be made.
const REMEDY: &str = "network namespaces need root with CAP_SYS_ADMIN and CAP_NET_ADMIN: run as root, in a container \
                      with --privileged, and have iproute2, nftables and conntrack installed";

/// How long `ip` and its kind may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why a step of a topology failed.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct Fault {
    what: String,
    why: String,
}

impl Fault {
    fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into() }
    }

    /// A packet socket that could not be opened on a device.
    pub(crate) fn packet_socket(device: &str, error: &std::io::Error) -> Self {
        Self::new(format!("a packet socket on {device}"), format!("{error}; {REMEDY}"))
    }
}

/// What a program left behind.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// Its standard output, if it succeeded.
    ///
    /// # Errors
    /// If it did not, with what it printed.
    pub fn success(self, what: &str) -> Result<String, Fault> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        Err(Fault::new(what, format!("{}\n{}{}", self.status, self.stdout, self.stderr)))
    }
}

/// A program that runs beside the test. Killed, with its process group, when dropped.
#[derive(Debug)]
pub struct Running {
    what: String,
    child: Child,
    output: PathBuf,
    _folder: tempfile::TempDir,
}

/// Starts a program; both its outputs go to one file that [`Running::output`] reads.
///
/// # Errors
/// If it cannot be started.
pub fn start(mut command: Command) -> Result<Running, Fault> {
    let what = format!("{command:?}");
    let fault = |e: std::io::Error| Fault::new(what.clone(), e.to_string());
    let folder = tempfile::tempdir().map_err(fault)?;
    let output = folder.path().join("output");
    let file = File::create(&output).map_err(fault)?;
    let again = file.try_clone().map_err(fault)?;
    let child = command.stdin(Stdio::null()).stdout(file).stderr(again).process_group(0).spawn().map_err(fault)?;
    Ok(Running { what, child, output, _folder: folder })
}

/// Runs a program to its end, or kills it when the time is over. What it started and left running in its process group
/// is killed with it: it would hold the outputs open that are read to their ends here.
///
/// # Errors
/// If it cannot be started or takes too long. That it fails is no error here; see [`Finished::success`].
pub fn run(mut command: Command, patience: Duration) -> Result<Finished, Fault> {
    let what = format!("{command:?}");
    let fault = |e: std::io::Error| Fault::new(what.clone(), e.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(fault)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    // Readers of their own, or a program that prints much would wait for us while we wait for it.
    let out = std::thread::spawn(move || read_all(stdout));
    let err = std::thread::spawn(move || read_all(stderr));
    let status = wait(&mut child, patience).map_err(fault)?;
    kill_group(&child);
    let Some(status) = status else {
        let _ = child.wait();
        let text = |reader: std::thread::JoinHandle<String>| reader.join().unwrap_or_default();
        return Err(Fault::new(what, format!("not done after {patience:?}\n{}{}", text(out), text(err))));
    };
    Ok(Finished { status, stdout: out.join().unwrap_or_default(), stderr: err.join().unwrap_or_default() })
}

fn read_all(from: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        let _ = from.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn wait(child: &mut Child, patience: Duration) -> std::io::Result<Option<ExitStatus>> {
    let until = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn pid(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()).ok()?)
}

fn kill_group(child: &Child) {
    if let Some(pid) = pid(child) {
        let _ = kill_process_group(pid, Signal::KILL);
    }
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        std::fs::read(&self.output).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = pid(&self.child) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits until it has printed a text.
    ///
    /// # Errors
    /// If it ends before, or the time is over; with what it printed.
    pub fn wait_for(&mut self, text: &str, patience: Duration) -> Result<(), Fault> {
        let until = Instant::now() + patience;
        loop {
            if self.output().contains(text) {
                return Ok(());
            }
            if !self.is_running() || Instant::now() >= until {
                let state = if self.is_running() { "still runs" } else { "has ended" };
                return Err(Fault::new(&self.what, format!("{state} without printing {text:?}:\n{}", self.output())));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If the time is over; with what it printed.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus, Fault> {
        let status = wait(&mut self.child, patience).map_err(|e| Fault::new(&self.what, e.to_string()))?;
        status.ok_or_else(|| Fault::new(&self.what, format!("not done after {patience:?}:\n{}", self.output())))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        kill_group(&self.child);
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- output of {}:\n{}", self.what, self.output());
        }
    }
}

/// `ip` with arguments, in the namespace of the process.
///
/// # Errors
/// If it fails; with what it said.
pub fn ip(arguments: &str) -> Result<String, Fault> {
    let mut command = Command::new("ip");
    command.args(arguments.split_whitespace());
    run(command, PATIENCE)?.success(&format!("ip {arguments}"))
}

/// A network namespace. Without IPv6 until [`Namespace::allow_ipv6`], so that nothing is on the wire that a test did not
/// send.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one, with its loopback up. `label` is part of its name.
    ///
    /// # Errors
    /// If the system refuses; says what is needed.
    pub fn new(label: &str) -> Result<Self, Fault> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("erhu-{}-{count}-{label}", std::process::id());
        ip(&format!("netns add {name}")).map_err(|e| Fault::new(e.to_string(), REMEDY))?;
        let namespace = Self { name };
        namespace.ip("link set lo up")?;
        for scope in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1")?;
        }
        Ok(namespace)
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `ip` with arguments, inside.
    ///
    /// # Errors
    /// If it fails; with what it said.
    pub fn ip(&self, arguments: &str) -> Result<String, Fault> {
        ip(&format!("-n {} {arguments}", self.name))
    }

    /// A program to run inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a program, given with its arguments, inside.
    ///
    /// # Errors
    /// As [`run`].
    pub fn run(&self, line: &str, patience: Duration) -> Result<Finished, Fault> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().unwrap_or_default());
        command.args(words);
        run(command, patience)
    }

    /// Starts a program, given with its arguments, inside.
    ///
    /// # Errors
    /// As [`start`].
    pub fn start(&self, line: &str) -> Result<Running, Fault> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().unwrap_or_default());
        command.args(words);
        start(command)
    }

    /// Does something on a thread that is inside. What it opens there stays inside.
    ///
    /// # Errors
    /// If the thread cannot get in.
    ///
    /// # Panics
    /// If `what` does.
    pub fn inside<T: Send>(&self, what: impl FnOnce() -> T + Send) -> Result<T, Fault> {
        let path = format!("/run/netns/{}", self.name);
        let enter = || -> std::io::Result<()> {
            let file = File::open(&path)?;
            Ok(move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))?)
        };
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| enter().map(|()| what()));
            match thread.join() {
                Ok(done) => done.map_err(|e| Fault::new(format!("entering {path}"), format!("{e}; {REMEDY}"))),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Sets a kernel parameter, named by its path below `/proc/sys`.
    ///
    /// # Errors
    /// If it does not exist or cannot be set.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<(), Fault> {
        let path = format!("/proc/sys/{path}");
        self.inside(|| std::fs::write(&path, value))?
            .map_err(|e| Fault::new(format!("{path} = {value}"), e.to_string()))
    }

    /// Lets devices that are made from now on have IPv6, quietly: no address of their own, no questions for routers or
    /// duplicates.
    ///
    /// # Errors
    /// If the kernel has no IPv6.
    pub fn allow_ipv6(&self) -> Result<(), Fault> {
        for scope in ["all", "default"] {
            for (parameter, value) in [
                ("disable_ipv6", "0"),
                ("accept_ra", "0"),
                ("accept_dad", "0"),
                ("dad_transmits", "0"),
                ("router_solicitations", "0"),
                // No link-local address unless one is given.
                ("addr_gen_mode", "1"),
            ] {
                self.sysctl(&format!("net/ipv6/conf/{scope}/{parameter}"), value)?;
            }
        }
        Ok(())
    }

    /// Makes a pair of devices, one end here and one in another namespace, both up.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn veth(&self, device: &str, other: &Self, other_device: &str) -> Result<(), Fault> {
        let Self { name } = self;
        ip(&format!("link add {device} netns {name} type veth peer name {other_device} netns {}", other.name))?;
        self.ip(&format!("link set {device} up"))?;
        other.ip(&format!("link set {other_device} up"))?;
        Ok(())
    }

    /// Takes a device from the namespace of the process, once it is there, and sets it up.
    ///
    /// # Errors
    /// If it does not come within ten seconds, or `ip` fails.
    pub fn take(&self, device: &str) -> Result<(), Fault> {
        let until = Instant::now() + Duration::from_secs(10);
        while ip(&format!("link show dev {device}")).is_err() {
            if Instant::now() >= until {
                return Err(Fault::new(format!("device {device}"), "it does not appear"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        ip(&format!("link set dev {device} netns {}", self.name))?;
        self.ip(&format!("link set {device} up"))?;
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Processes keep a namespace alive; it must not outlive the test.
        if let Ok(pids) = ip(&format!("netns pids {}", self.name)) {
            for pid in pids.split_whitespace().filter_map(|p| Pid::from_raw(p.parse().ok()?)) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        if let Err(fault) = ip(&format!("netns delete {}", self.name)) {
            eprintln!("{fault}");
        }
    }
}

/// A binary of this workspace: in the folder that `ERHU_BIN_DIR` names, else beside the test (`target/debug`), where
/// `cargo build -p erhu-dataplane -p erhu-controlplane -p erhu-farside` puts it.
///
/// # Errors
/// If it is not there; says how to build it.
pub fn binary(name: &str) -> Result<PathBuf, Fault> {
    let beside = || {
        let test = std::env::current_exe().ok()?;
        // target/debug/deps/live-0123456789abcdef
        Some(test.parent()?.parent()?.to_owned())
    };
    let folder = std::env::var_os("ERHU_BIN_DIR").map(PathBuf::from).or_else(beside).unwrap_or_default();
    let path = folder.join(name);
    if path.is_file() {
        return Ok(path);
    }
    let remedy =
        "build it with `cargo build -p erhu-dataplane -p erhu-controlplane -p erhu-farside`, or set ERHU_BIN_DIR";
    Err(Fault::new(path.display().to_string(), format!("there is no such program: {remedy}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_takes_too_long_is_ended_with_what_it_printed() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo here; sleep 60"]);
        let began = Instant::now();
        let fault = run(command, Duration::from_millis(200)).unwrap_err().to_string();
        assert!(fault.contains("here") && fault.contains("not done"), "{fault}");
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn what_a_program_leaves_running_ends_with_it() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 60 & echo out; exit 3"]);
        let began = Instant::now();
        let finished = run(command, Duration::from_secs(10)).unwrap();
        assert_eq!((finished.status.code(), finished.stdout.as_str()), (Some(3), "out\n"));
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_failure_says_what_was_printed() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let fault = run(command, Duration::from_secs(10)).unwrap().success("trying").unwrap_err().to_string();
        assert!(fault.starts_with("trying") && fault.contains("out") && fault.contains("err"), "{fault}");
    }

    #[test]
    fn a_running_program_is_heard_and_killed() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo ready; sleep 60"]);
        let mut running = start(command).unwrap();
        running.wait_for("ready", Duration::from_secs(10)).unwrap();
        assert!(running.is_running());
        assert!(running.wait_for("never", Duration::from_millis(50)).is_err());
        running.signal(Signal::TERM);
        assert!(!running.wait(Duration::from_secs(10)).unwrap().success());
    }
}

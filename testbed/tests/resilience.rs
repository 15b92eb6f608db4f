//! What must not stop the router, under full load: killed processes, killed commands, scripts with errors, hostile
//! bytes on the control socket, spoilt shared memory.
//!
//! The load is a far side on vhost-user sockets that always has as many packets under way as its window allows, and
//! that fails if one of them is lost, changed, or sent twice. Needs no root, no huge pages and no NIC; and the
//! programs, built by `cargo build -p erhu-dataplane -p erhu-controlplane -p erhu-farside` (or `ERHU_BIN_DIR`).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use erhu_planes::program::{HEADER_BYTES, Program, ProgramError};
use erhu_planes::protocol::{Channel, MAX_MESSAGE, Request, Response, read_sealed, sealed};
use erhu_planes::region::Region;
use erhu_planes::stats::{self, StatsRegion};
use erhu_testbed::netns::{self, Running};
use erhu_testbed::processes::{FarSide, Instance, Listener, PATIENCE, Plan};
use erhu_testbed::random::Random;
use erhu_testbed::scenario::repository;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::process::Signal;
use serde_json::Value;

fn must<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// One at a time: each dataplane and each far side takes a CPU.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn rules() -> String {
    must(std::fs::read_to_string(repository().join("configs/two-tenants.rhai")))
}

/// As much as takes a few seconds.
const PLAN: Plan = Plan { hosts: 4, flows: 32, packets: 500, timeout_s: 120 };

/// Far sides, one after the other.
struct Load {
    far_side: Option<FarSide>,
    /// Those that have ended, and found everything right.
    rounds: u32,
}

impl Load {
    fn start(instance: &Instance) -> Self {
        let mut load = Self { far_side: Some(must(instance.far_side(PLAN))), rounds: 0 };
        load.wait_until_it_flows(instance);
        load
    }

    fn wait_until_it_flows(&mut self, instance: &Instance) {
        let (begin, until) = (taken(instance), Instant::now() + PATIENCE);
        while taken(instance) < begin + 2000 {
            let far_side = self.far_side.as_mut().unwrap();
            assert!(
                Instant::now() < until && far_side.process().is_running(),
                "nothing flows\n{}",
                far_side.process().output()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts another far side if the last one has ended.
    fn go_on(&mut self, instance: &Instance) {
        if !self.far_side.as_mut().unwrap().process().is_running() {
            self.end(instance);
            self.far_side = Some(must(instance.far_side(PLAN)));
            self.wait_until_it_flows(instance);
        }
    }

    /// Waits until all packets are through; none may be missing.
    fn end(&mut self, instance: &Instance) {
        must(self.far_side.take().unwrap().judgement(instance));
        self.rounds += 1;
    }
}

/// Packets that the dataplane has taken from its ports so far.
fn taken(instance: &Instance) -> u64 {
    let region = must(Region::attach(&instance.files().stats(), &stats::EXPECT));
    let region = must(StatsRegion::attached(region));
    region.sum(|w| region.worker(w).unwrap().ports.iter().map(|p| p.rx_packets.load(Ordering::Relaxed)).sum())
}

fn channel(instance: &Instance) -> Channel {
    let channel = must(Channel::connect(&instance.files().socket()));
    must(channel.stream().set_read_timeout(Some(PATIENCE)));
    must(channel.stream().set_write_timeout(Some(PATIENCE)));
    channel
}

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Policy {
    generation: u32,
    program: Vec<u8>,
    rules: Value,
}

impl Policy {
    fn program(instance: &Instance) -> (u32, Vec<u8>) {
        match must(channel(instance).ask(&Request::Program, None)) {
            (Response::Program { generation }, Some(file)) => (generation, must(read_sealed(file, 1 << 20))),
            other => panic!("{other:?}"),
        }
    }

    fn running(instance: &Instance) -> Self {
        loop {
            let (generation, program) = Self::program(instance);
            let rules = must(instance.document(&["show", "rules"]));
            // An adoption that a killed command had asked for may have come in between.
            if Self::program(instance) == (generation, program.clone()) {
                return Self { generation, program, rules };
            }
        }
    }
}

fn apply(instance: &Instance, script: &str) -> Policy {
    must(must(instance.erhu(&["apply", script])).success(script));
    Policy::running(instance)
}

fn kill(mut process: Running) {
    process.signal(Signal::KILL);
    must(process.wait(PATIENCE));
}

/// No invariant was found broken, and the table and the counters agree on how many connections live.
fn is_healthy(instance: &Instance) {
    let until = Instant::now() + PATIENCE;
    loop {
        let stats = must(instance.document(&["show", "stats"]));
        assert_eq!(stats["counters"]["bug"], 0, "{:#}", stats["counters"]);
        let count = |name: &str| stats["connections"][name].as_u64().unwrap();
        let live = count("created") - count("ended");
        let counted = must(must(instance.erhu(&["conntrack", "-C"])).success("conntrack -C"));
        // Counters are published every few milliseconds.
        if counted.trim() == live.to_string() {
            return;
        }
        assert!(Instant::now() < until, "{} connections live, {live} are counted", counted.trim());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn neither_a_killed_daemon_nor_a_killed_apply_costs_a_packet_or_leaves_half_a_policy() {
    const KILLS: u32 = 24;
    let _alone = alone();
    let instance = must(Instance::new(Listener::Dataplane, 1, &rules()));
    // Differs in every part, and allows the same traffic.
    let other = format!(
        "{}\nzone(\"red\", #{{ id: 3 }});\ninterface(\"lan.300\", #{{ port: \"lan\", vlan: 300, zone: \"red\", \
         address: [\"10.0.0.1/24\"] }});\nroute(\"red\", \"0.0.0.0/0\", #{{ zone: \"main\" }});\n\
         pool(\"red-public\", #{{ addresses: \"198.51.100.30\" }});\n\
         postrouting(#{{ zone: \"red\", egress: \"wan\" }}, snat(#{{ pool: \"red-public\" }}));\n\
         timeout(\"red-timeouts\", #{{ udp: \"20s\" }});\nfor port in 1..50 {{\n    forward(#{{ dport: port, proto: \
         \"tcp\" }}, drop);\n}}\n",
        rules()
    );
    must(std::fs::write(instance.path().join("other.rhai"), other));
    let _dataplane = must(instance.dataplane());
    let mut daemon = Some(must(instance.daemon("published the configured script")));
    let mut load = Load::start(&instance);

    let scripts = ["rules.rhai", "other.rhai"];
    let mut took = Vec::new();
    let policies = scripts.map(|script| {
        let begun = Instant::now();
        must(must(instance.erhu(&["apply", script])).success(script));
        took.push(begun.elapsed());
        Policy::running(&instance)
    });
    assert!(policies[0].program != policies[1].program && policies[0].rules != policies[1].rules);
    let whole = *took.iter().max().unwrap();

    let mut random = Random::new(5);
    let (mut under_load, mut adopted, mut attempts) = (0, 0, 0);
    while under_load < KILLS {
        attempts += 1;
        assert!(attempts <= 10 * KILLS, "only {under_load} of {attempts} commands were killed under load");
        load.go_on(&instance);
        let before = Policy::running(&instance);
        let target = usize::from(before.program == policies[0].program);
        let packets = taken(&instance);
        let command = must(netns::start(must(instance.command("erhu", &["apply", scripts[target]]))));
        // All of its life is tried, a slice after the other.
        std::thread::sleep(whole.mul_f64(1.1 * (f64::from(under_load) + random.fraction()) / f64::from(KILLS)));
        kill(command);
        let after = Policy::running(&instance);
        let is = |policy: &Policy| after.program == policy.program && after.rules == policy.rules;
        assert!(policies.iter().any(is), "neither the one nor the other runs: {:#}", after.rules);
        assert!(after.generation >= before.generation && after.generation <= before.generation + 2);
        under_load += u32::from(taken(&instance) > packets);
        adopted += u32::from(after.generation > before.generation);
        if under_load == KILLS / 2
            && let Some(daemon) = daemon.take()
        {
            kill(daemon);
        }
    }
    println!("{adopted} of {attempts} killed commands had their rule set adopted; an apply takes {whole:?}");

    // A successor takes what runs, and the history is in order.
    let before = Policy::running(&instance);
    let _daemon = must(instance.daemon("adopted the rule set that runs"));
    assert_eq!(Policy::running(&instance), before);
    let target = usize::from(before.program == policies[0].program);
    assert_eq!(apply(&instance, scripts[target]).rules, policies[target].rules);
    must(must(instance.erhu(&["rollback"])).success("rollback"));
    assert_eq!(Policy::running(&instance).program, before.program);
    load.end(&instance);
    println!("{} packets went through, each way", u64::from(load.rounds) * PLAN.total());
    is_healthy(&instance);
}

#[test]
fn a_script_with_errors_prints_all_of_them_and_changes_nothing() {
    let _alone = alone();
    let instance = must(Instance::new(Listener::Dataplane, 1, &rules()));
    let _dataplane = must(instance.dataplane());
    let before = apply(&instance, "rules.rhai");
    let mut load = Load::start(&instance);
    let wrong = format!(
        "{}\ninterface(\"lan.300\", #{{ port: \"lam\", zone: \"blue\" }});\nforward(#{{ zone: \"bleu\" }}, drop);\n\
         zone(\"purple\", #{{ idd: 4 }});\npostrouting(#{{ zone: \"blue\" }}, snat(#{{ pool: \"blue-pubic\" }}));\n",
        rules()
    );
    let lines = rules().lines().count();
    must(std::fs::write(instance.path().join("wrong.rhai"), wrong));
    let refused = must(instance.erhu(&["apply", "wrong.rhai"]));
    assert_eq!(refused.status.code(), Some(1));
    for (line, word) in (lines + 2..).zip(["lam", "bleu", "idd", "blue-pubic"]) {
        let is_said = refused.stderr.lines().any(|l| l.contains(&format!("wrong.rhai:{line}:")) && l.contains(word));
        assert!(is_said, "line {line}, {word}:\n{}", refused.stderr);
    }
    assert_eq!(Policy::running(&instance), before);
    load.end(&instance);
}

fn adopt(instance: &Instance, file: &OwnedFd) -> Response {
    must(channel(instance).ask(&Request::Adopt, Some(file.as_fd()))).0
}

/// The program with its checksum made right.
fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Err(ProgramError::Checksum { computed, .. }) = Program::decode(&bytes) {
        bytes[12..16].copy_from_slice(&computed.to_le_bytes());
    }
    bytes
}

/// A script with as many kinds of things as there are, so that every kind of byte is in its program.
const EVERYTHING: &str = r#"
    timeout("short", #{ udp: "10s", udp_stream: "20s", tcp_established: 600, udp_refresh: "replied" });
    zone("blue",  #{ id: 1, limit: 60_000, reserve: 100, rate: 50_000, timeout: "short" });
    zone("green", #{ id: 2, tracking: "liberal" });
    interface("lan.100", #{ port: "lan", vlan: 100, zone: "blue",  address: ["10.0.0.1/24"], mtu: 1400 });
    interface("lan.200", #{ port: "lan", vlan: 200, zone: "green", address: ["10.0.0.1/24"] });
    interface("wan",     #{ port: "wan", address: ["198.51.100.2/24"] });
    neighbour("wan", "198.51.100.77", "02:00:00:00:00:77");
    pool("blue-public",  #{ addresses: "198.51.100.10-198.51.100.11", ports: "2000-60000" });
    pool("green-public", #{ addresses: "198.51.100.20", mapping: "address_dependent" });
    for tenant in ["blue", "green"] {
        route(tenant, "0.0.0.0/0", #{ zone: "main" });
        route(tenant, "192.168.0.0/16", #{ blackhole: true });
        postrouting(#{ zone: tenant, egress: "wan" }, snat(#{ pool: `${tenant}-public` }));
    }
    route("main", "0.0.0.0/0", #{ via: "198.51.100.1" });
    route("main", "203.0.113.0/24", #{ interface: "wan" });
    chain("web");
    rule("web", #{ proto: "tcp", dport: [80, 443] }, accept);
    rule("web", #{ src: not("10.0.0.0/24") }, return_());
    rule("web", #{ sport: "10000-10003" }, [mark(7), count("marked"), accept]);
    chain("last");
    rule("last", #{}, count("last"));
    raw(#{ proto: "icmp", icmp_type: 13 }, notrack);
    prerouting(#{ ingress: "lan.100" }, mark(1));
    input(#{ proto: "udp", dport: 9 }, reject("admin"));
    forward(#{ state: ["established", "related"] }, accept);
    forward(#{ state: "invalid" }, drop);
    forward(#{ ingress: "wan", state: "new" }, drop);
    forward(#{ dst: ["192.0.2.1", "198.51.100.0/24"] }, jump("web"));
    forward(#{ egress_zone: "main", mark: 1 }, go_to("last"));
    policy("output", "blue", drop);
"#;

#[test]
fn a_program_with_any_byte_changed_is_refused_or_runs_and_breaks_nothing() {
    /// Packets that each program that is accepted has to do with.
    const TASTE: u64 = 64;
    let _alone = alone();
    let instance = must(Instance::new(Listener::Dataplane, 2, &rules()));
    must(std::fs::write(instance.path().join("everything.rhai"), EVERYTHING));
    let mut dataplane = must(instance.dataplane());
    let good = apply(&instance, "rules.rhai");
    let original = apply(&instance, "everything.rhai").program;
    let hosts = must(instance.careless_hosts(50_000));

    let wait_for_packets = || {
        let (begin, until) = (taken(&instance), Instant::now() + PATIENCE);
        while taken(&instance) < begin + TASTE {
            assert!(Instant::now() < until, "no packet is taken any more\n{}", hosts[0].output());
            std::thread::sleep(Duration::from_micros(500));
        }
    };
    wait_for_packets();
    let mut random = Random::new(6);
    let (mut ran, mut refused) = (0_u32, 0_u32);
    let mut control = channel(&instance);
    let mut ask = |bytes: &[u8]| must(control.ask(&Request::Adopt, Some(must(sealed("program", bytes)).as_fd()))).0;
    for at in 0..original.len() {
        let by = [1, 0xff, 0x80, u8::try_from(random.next() % 255 + 1).unwrap()];
        for by in by {
            let mut bytes = original.clone();
            bytes[at] = bytes[at].wrapping_add(by);
            let response = ask(&bytes);
            assert!(matches!(response, Response::Refused { .. }), "byte {at}, plus {by}: {response:?}");
            if at < HEADER_BYTES {
                continue;
            }
            match ask(&with_checksum(bytes)) {
                Response::Adopted { .. } => {
                    ran += 1;
                    wait_for_packets();
                }
                Response::Refused { .. } => refused += 1,
                other => panic!("byte {at}, plus {by}: {other:?}"),
            }
        }
    }
    println!("of a program of {} bytes {ran} changed ones ran, {refused} were refused", original.len());
    assert!(ran > 0 && refused > 0);
    drop(hosts);

    // Nothing is left of all that: every port is given back, and the good program does as it always did.
    assert!(matches!(ask(&good.program), Response::Adopted { .. }));
    must(must(instance.erhu(&["conntrack", "-F"])).success("conntrack -F"));
    is_healthy(&instance);
    let pools = must(instance.document(&["show", "pools"]));
    for pool in pools.as_array().unwrap() {
        assert_eq!(pool["given"], pool["returned"], "{pool:#}");
        assert_eq!(pool["hosts"], 0, "{pool:#}");
    }
    wait_until_no_packet_waits(&instance);
    let before = counter(&instance, "slow_path");
    must(must(instance.far_side(PLAN)).judgement(&instance));
    let slow = counter(&instance, "slow_path") - before;
    assert!(slow < PLAN.total() / 10, "{slow} packets of {} both ways were not on the fast path", 2 * PLAN.total());
    is_healthy(&instance);
    assert!(dataplane.is_running());
}

/// Until what was sent to a next hop that does not answer has been given up.
fn wait_until_no_packet_waits(instance: &Instance) {
    let until = Instant::now() + PATIENCE;
    loop {
        let neighbours = must(instance.document(&["show", "neighbours"]));
        let waiting: u64 = neighbours.as_array().unwrap().iter().map(|n| n["waiting"].as_u64().unwrap()).sum();
        if waiting == 0 {
            return;
        }
        assert!(Instant::now() < until, "{waiting} packets wait for ever: {neighbours:#}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A counter of all workers.
fn counter(instance: &Instance, name: &str) -> u64 {
    must(instance.document(&["show", "stats"]))["counters"][name].as_u64().unwrap()
}

/// What is no program, and what is no file for one.
fn wrong_files(good: &[u8]) -> Vec<(&'static str, OwnedFd)> {
    let memfd = |seal| {
        let flags = if seal { MemfdFlags::ALLOW_SEALING } else { MemfdFlags::empty() };
        let mut file = File::from(must(memfd_create("program", MemfdFlags::CLOEXEC | flags)));
        must(file.write_all(good));
        OwnedFd::from(file)
    };
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.to_vec();
        change(&mut bytes);
        must(sealed("program", &bytes))
    };
    let length = |by: i64| {
        changed(&|bytes| {
            let length = i64::from_le_bytes(bytes[16..24].try_into().unwrap()) + by;
            bytes[16..24].copy_from_slice(&length.to_le_bytes());
        })
    };
    vec![
        ("not sealed", memfd(true)),
        ("cannot be sealed", memfd(false)),
        ("empty", must(sealed("program", &[]))),
        ("header only", changed(&|bytes| bytes.truncate(HEADER_BYTES))),
        ("cut short", changed(&|bytes| bytes.truncate(bytes.len() - 1))),
        ("longer", changed(&|bytes| bytes.push(0))),
        ("length one less", length(-1)),
        ("length one more", length(1)),
        ("length negative", length(-1 << 40)),
        ("other version", changed(&|bytes| bytes[8] += 1)),
        ("too large", {
            let file = must(memfd_create("program", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING));
            must(ftruncate(&file, 1 << 40));
            must(fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL));
            file
        }),
        ("a device", OwnedFd::from(must(File::open("/dev/zero")))),
        ("a folder", OwnedFd::from(must(File::open("/")))),
    ]
}

#[test]
fn hostile_clients_are_refused_and_disturb_nobody() {
    let _alone = alone();
    let instance = must(Instance::new(Listener::Dataplane, 1, &rules()));
    let mut dataplane = must(instance.dataplane());
    let good = apply(&instance, "rules.rhai");
    let mut load = Load::start(&instance);

    for (what, file) in wrong_files(&good.program) {
        let response = adopt(&instance, &file);
        assert!(matches!(response, Response::Refused { .. }), "{what}: {response:?}");
    }
    let no_file = must(channel(&instance).ask(&Request::Adopt, None)).0;
    assert!(matches!(no_file, Response::Refused { .. }), "{no_file:?}");

    let message = |body: &[u8]| [&u32::try_from(body.len()).unwrap().to_le_bytes(), body].concat();
    let deep = "[".repeat(100_000);
    let garbage: Vec<Vec<u8>> = vec![
        message(b"{\"ask\": \"adopt\""),
        message(b"{\"ask\": \"dance\"}"),
        message(b"\xff\xfe\x00"),
        message(b""),
        message(deep.as_bytes()),
        (u32::try_from(MAX_MESSAGE).unwrap() + 1).to_le_bytes().to_vec(),
        u32::MAX.to_le_bytes().to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ];
    for bytes in garbage {
        let mut stream = must(UnixStream::connect(instance.files().socket()));
        must(stream.set_read_timeout(Some(PATIENCE)));
        // It may have hung up already.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!String::from_utf8_lossy(&answer).contains("adopted"));
    }

    // Clients that stop in the middle of what they say, and stay.
    let beginnings: [&[u8]; 4] = [b"", b"\x05", b"\x05\x00\x00\x00", b"\xff\x00\x00\x00{\"ask\""];
    let hanging: Vec<UnixStream> = (0..12)
        .map(|k| {
            let mut stream = must(UnixStream::connect(instance.files().socket()));
            must(stream.write_all(beginnings[k % beginnings.len()]));
            stream
        })
        .collect();
    assert_eq!(Policy::running(&instance), good);

    // Many at once: each is answered or turned away, and none waits for ever.
    let answered = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..40)
            .map(|_| {
                scope.spawn(|| {
                    let mut channel = channel(&instance);
                    (0..5).all(|_| channel.ask(&Request::Status, None).is_ok())
                })
            })
            .collect();
        clients.into_iter().map(|c| c.join().unwrap()).filter(|answered| *answered).count()
    });
    println!("{answered} of 40 clients at once were answered");
    assert!(answered > 0);
    // More than are let in: once they are gone, all is as before.
    let crowd: Vec<_> = (0..100).map(|_| must(UnixStream::connect(instance.files().socket()))).collect();
    drop((hanging, crowd));
    let until = Instant::now() + PATIENCE;
    while must(instance.erhu(&["show", "zones"])).status.code() != Some(0) {
        assert!(Instant::now() < until, "the control socket is still taken");
        std::thread::sleep(Duration::from_millis(20));
    }

    assert_eq!(Policy::running(&instance), good);
    load.end(&instance);
    assert!(dataplane.is_running());
    is_healthy(&instance);
}

/// N16: a header that is wrong in any field is refused where it is attached, and nobody crashes.
#[test]
fn shared_memory_of_another_layout_is_refused_with_its_place_and_the_router_does_not_care() {
    let _alone = alone();
    let instance = must(Instance::new(Listener::Dataplane, 1, &rules()));
    let _dataplane = must(instance.dataplane());
    apply(&instance, "rules.rhai");
    let mut load = Load::start(&instance);
    let fields = [("magic", 0), ("kind", 8), ("layout version", 12), ("layout hash", 16), ("size", 40)];
    let files =
        [(instance.files().stats(), ["show", "stats"]), (instance.files().connections(), ["conntrack", "-L"])];
    for (path, command) in files {
        let file = must(File::options().read(true).write(true).open(&path));
        for (field, at) in fields {
            let mut byte = [0];
            must(file.read_exact_at(&mut byte, at));
            must(file.write_all_at(&[byte[0] ^ 0x55], at));
            let refused = must(instance.erhu(&command));
            must(file.write_all_at(&byte, at));
            assert_eq!(refused.status.code(), Some(1), "{field}: {}{}", refused.stdout, refused.stderr);
            for word in [path.display().to_string().as_str(), field, "found", "expected"] {
                assert!(refused.stderr.contains(word), "{field}: {}", refused.stderr);
            }
        }
        // Cut short, as a file of its own: nobody but its owner can do that to the one that is mapped.
        let aside = path.with_extension("aside");
        must(std::fs::rename(&path, &aside));
        for size in [0, 63, 4096] {
            let mut bytes = vec![0; size];
            must(file.read_exact_at(&mut bytes, 0));
            must(std::fs::write(&path, bytes));
            let refused = must(instance.erhu(&command));
            assert_eq!(refused.status.code(), Some(1), "{size} bytes: {}{}", refused.stdout, refused.stderr);
            assert!(refused.stderr.contains(&path.display().to_string()), "{size} bytes: {}", refused.stderr);
        }
        must(std::fs::rename(&aside, &path));
        must(must(instance.erhu(&command)).success("as it was"));
    }
    load.end(&instance);
    is_healthy(&instance);
}

#[test]
fn a_dataplane_ends_soon_when_asked_to_and_starts_again_after_it_was_killed() {
    for listener in [Listener::FarSide, Listener::Dataplane] {
        ends_and_starts_again(listener);
    }
}

/// Whichever of the two has a socket to leave behind.
fn ends_and_starts_again(listener: Listener) {
    let _alone = alone();
    let instance = must(Instance::new(listener, 1, &rules()));
    let start = || match listener {
        Listener::FarSide => {
            let far_side = must(instance.far_side(PLAN));
            (must(instance.dataplane()), far_side)
        }
        Listener::Dataplane => (must(instance.dataplane()), must(instance.far_side(PLAN))),
    };
    let under_load = |far_side: FarSide| {
        let mut load = Load { far_side: Some(far_side), rounds: 0 };
        load.wait_until_it_flows(&instance);
        load
    };

    let (mut dataplane, far_side) = start();
    let mut daemon = must(instance.daemon("published the configured script"));
    let load = under_load(far_side);
    let before = taken(&instance);
    let asked = Instant::now();
    dataplane.signal(Signal::TERM);
    let status = must(dataplane.wait(PATIENCE));
    let took = asked.elapsed();
    assert!(status.success(), "{status}\n{}", dataplane.output());
    assert!(took < Duration::from_secs(2), "it took {took:?} to end\n{}", dataplane.output());
    println!("it took {took:?} to end under load");
    // The last counters are there; what speaks for a process or takes memory is not.
    assert!(taken(&instance) >= before);
    assert!(!instance.files().socket().exists() && !instance.files().connections().exists());
    drop(load);

    let (dataplane, far_side) = start();
    must(daemon.wait_for("published the rule set that ran last", PATIENCE));
    let load = under_load(far_side);
    kill(dataplane);
    assert!(instance.files().socket().exists() && instance.files().connections().exists());
    drop(load);

    let (mut dataplane, far_side) = start();
    must(far_side.judgement(&instance));
    is_healthy(&instance);
    assert!(taken(&instance) > 2 * PLAN.total());
    dataplane.signal(Signal::TERM);
    assert!(must(dataplane.wait(PATIENCE)).success(), "{}", dataplane.output());
}

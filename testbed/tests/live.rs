//! Real programs on real Linux hosts through two real processes.
//!
//! The dataplane polls three `net_tap` ports without huge pages; their network devices are moved into namespaces:
//!
//! ```text
//!  namespace blue   10.0.0.5 --- port blue ----+
//!                                              +--- erhu-dataplane --- port wan --- namespace server
//!  namespace green  10.0.0.5 --- port green ---+                                    198.51.100.1, 192.0.2.1
//! ```
//!
//! Or both tenants come in one port, tagged by a network function written with capsule in a third process:
//!
//! ```text
//!  namespace blue   10.0.0.5 --- tap, VLAN 100 ---+
//!                                                 +--- erhu-farside --- vhost --- port lan, erhu-dataplane --- …
//!  namespace green  10.0.0.5 --- tap, VLAN 200 ---+
//! ```
//!
//! Needs root; and the programs, built by `cargo build -p erhu-dataplane -p erhu-controlplane -p erhu-farside` (or
//! `ERHU_BIN_DIR`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use erhu_testbed::netns::{self, Finished, Namespace, Running};
use erhu_testbed::scenario::{Entry, Tuple, repository};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(30);

const RULES: &str = r#"
    zone("blue",  #{ id: 1 });
    zone("green", #{ id: 2 });
    interface("blue",  #{ port: "blue",  zone: "blue",  address: ["10.0.0.1/24"] });
    interface("green", #{ port: "green", zone: "green", address: ["10.0.0.1/24"] });
    interface("wan",   #{ port: "wan", address: ["198.51.100.2/24"] });
    pool("blue-public",  #{ addresses: "198.51.100.10" });
    pool("green-public", #{ addresses: "198.51.100.20" });
    for tenant in ["blue", "green"] {
        route(tenant, "0.0.0.0/0", #{ zone: "main" });
        postrouting(#{ zone: tenant, egress: "wan" }, snat(#{ pool: `${tenant}-public` }));
    }
    route("main", "0.0.0.0/0", #{ via: "198.51.100.1" });
    forward(#{ state: ["established", "related"] }, accept);
    forward(#{ state: "invalid" }, drop);
    forward(#{ ingress: "wan", state: "new" }, drop);
"#;

/// Public addresses of blue and of green; more than one where the rules are those of `configs/two-tenants.rhai`.
const POOLS: [&[&str]; 2] = [&["198.51.100.10", "198.51.100.11"], &["198.51.100.20"]];

/// Answers each datagram with the address that it came from.
const UDP_SERVER: &str = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("192.0.2.1", 9000))
print("serving", flush=True)
while True:
    _, peer = s.recvfrom(2000)
    s.sendto(peer[0].encode(), peer)
"#;

/// Sends datagrams from port 5353 and prints each answer.
const UDP_CLIENT: &str = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.bind(("10.0.0.5", 5353))
for _ in range(20):
    s.sendto(b"who am I?", ("192.0.2.1", 9000))
    print(s.recv(2000).decode())
"#;

/// The processes, three hosts. Taken down in the order of the fields.
struct Live {
    server_programs: Vec<Running>,
    control: Option<Running>,
    dataplane: Running,
    /// What tags the tenants' packets, where they share a port.
    trunk: Option<Running>,
    blue: Namespace,
    green: Namespace,
    server: Namespace,
    folder: tempfile::TempDir,
    /// One at a time: the machine has few cores, and each dataplane takes one of them whole.
    _alone: MutexGuard<'static, ()>,
}

fn must<T>(result: Result<T, netns::Fault>) -> T {
    result.unwrap_or_else(|fault| panic!("{fault}"))
}

/// A name for a network device: short, and not that of another run.
fn device(port: &str) -> String {
    format!("e{}{}", std::process::id(), &port[..1])
}

impl Live {
    /// A port for each tenant.
    fn start() -> Self {
        Self::start_with(RULES)
    }

    fn start_with(rules: &str) -> Self {
        let devices = ["blue", "green", "wan"].map(|port| (port, format!("iface={}", device(port))));
        let taps = devices.iter().enumerate().map(|(k, (port, options))| (*port, format!("net_tap{k},{options}")));
        let mut live = Self::boot(rules, &taps.collect::<Vec<_>>(), |_| None);
        live.serve();
        live.wait_until_it_forwards();
        live
    }

    /// One port for both tenants, who are told apart by their VLANs; rules that `erhu apply` brings.
    fn start_on_trunk() -> Self {
        let rules = std::fs::read_to_string(repository().join("configs/two-tenants.rhai")).unwrap();
        let lan = "net_virtio_user0,path=lan.sock,queues=1,queue_size=1024".to_owned();
        let wan = format!("net_tap0,iface={}", device("wan"));
        let mut live = Self::boot(&rules, &[("lan", lan), ("wan", wan)], |folder| {
            // It listens, so it is there first.
            let arguments = format!(
                "trunk --access 100=net_tap0,iface={} --access 200=net_tap1,iface={} --trunk net_vhost0,iface=lan.sock",
                device("blue"),
                device("green")
            );
            let mut trunk = must(netns::start(Self::command_in(folder, "erhu-farside", &arguments)));
            must(trunk.wait_for("ready\n", PATIENCE));
            Some(trunk)
        });
        must(live.erhu("apply rules.rhai").success("apply"));
        live.wait_until_it_forwards();
        live
    }

    /// Starts a dataplane with ports, given by name and device, after what has to be there before it; and wires hosts
    /// up. What runs then has no rules yet.
    fn boot(rules: &str, ports: &[(&str, String)], first: impl FnOnce(&Path) -> Option<Running>) -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let host = |label| must(Namespace::new(label));
        let (blue, green, server) = (host("blue"), host("green"), host("server"));
        let mut toml = "instance = \"live\"\nworkers = [1]\nmain_core = 0\nconnections = 65536\nhugepages = false\n\
                        memory_mb = 256\nrules = \"rules.rhai\"\n"
            .to_owned();
        for (k, (port, device)) in ports.iter().enumerate() {
            toml += &format!("[[port]]\nname = \"{port}\"\ndevice = \"{device}\"\nmac = \"02:65:72:68:75:0{k}\"\n");
        }
        std::fs::write(folder.path().join("live.toml"), toml).unwrap();
        std::fs::write(folder.path().join("rules.rhai"), rules).unwrap();
        let trunk = first(folder.path());
        let mut dataplane =
            must(netns::start(Self::command_in(folder.path(), "erhu-dataplane", "--config live.toml")));
        must(dataplane.wait_for("waits for its first rule set", PATIENCE));
        let mut live = Self {
            server_programs: Vec::new(),
            control: None,
            dataplane,
            trunk,
            blue,
            green,
            server,
            folder,
            _alone: alone,
        };
        live.wire(&["blue", "green", "wan"].map(device));
        live
    }

    fn command_in(folder: &Path, program: &str, arguments: &str) -> Command {
        let mut command = Command::new(must(netns::binary(program)));
        command.args(arguments.split_whitespace()).current_dir(folder);
        command.env("ERHU_RUNTIME_DIR", folder.join("run")).env("ERHU_STATE_DIR", folder.join("state"));
        // DPDK's own files.
        command.env("RUNTIME_DIRECTORY", folder).env("XDG_RUNTIME_DIR", folder);
        command
    }

    /// Moves the ports' devices to their hosts, with addresses and routes.
    fn wire(&mut self, devices: &[String; 3]) {
        for (namespace, device, last) in [(&self.blue, &devices[0], 1), (&self.green, &devices[1], 2)] {
            must(namespace.take(device));
            must(namespace.ip(&format!("link set {device} address 02:00:0a:00:00:0{last}")));
            must(namespace.ip(&format!("address add 10.0.0.5/24 dev {device}")));
            must(namespace.ip("route add default via 10.0.0.1"));
        }
        let device = &devices[2];
        must(self.server.take(device));
        must(self.server.ip(&format!("link set {device} address 02:00:c6:33:64:01")));
        must(self.server.ip(&format!("address add 198.51.100.1/24 dev {device}")));
        must(self.server.ip("address add 192.0.2.1/32 dev lo"));
        must(self.server.sysctl("net/ipv4/icmp_ratelimit", "0"));
    }

    /// Gives the hosts IPv6 too: tenants fd00::5, the server 2001:db8::1 on the link and 2001:db8:1::1 behind it.
    fn wire_ipv6(&self) {
        for (namespace, port) in [(&self.blue, "blue"), (&self.green, "green")] {
            must(namespace.allow_ipv6());
            must(namespace.ip(&format!("address add fd00::5/64 dev {} nodad", device(port))));
            must(namespace.ip("-6 route add default via fd00::1"));
        }
        must(self.server.allow_ipv6());
        must(self.server.ip(&format!("address add 2001:db8::1/64 dev {} nodad", device("wan"))));
        must(self.server.ip("address add 2001:db8:1::1/128 dev lo nodad"));
    }

    /// Starts the control plane's daemon.
    fn serve(&mut self) {
        let command = Self::command_in(self.folder.path(), "erhu", "serve --config live.toml");
        self.control = Some(must(netns::start(command)));
    }

    fn wait_until_it_forwards(&mut self) {
        let until = Instant::now() + PATIENCE;
        loop {
            let ping = |host: &Namespace| must(host.run("ping -n -c 1 -W 1 192.0.2.1", PATIENCE)).status.success();
            if ping(&self.blue) && ping(&self.green) {
                return;
            }
            let output = |process: &Option<Running>| process.as_ref().map(Running::output).unwrap_or_default();
            assert!(
                Instant::now() < until && self.dataplane.is_running(),
                "nothing is forwarded\n--- dataplane\n{}\n--- control plane\n{}\n--- trunk\n{}",
                self.dataplane.output(),
                output(&self.control),
                output(&self.trunk)
            );
        }
    }

    /// Runs an `erhu` command to its end.
    fn erhu(&self, arguments: &str) -> Finished {
        must(netns::run(Self::command_in(self.folder.path(), "erhu", arguments), PATIENCE))
    }

    /// The connections that live.
    fn table(&self) -> Vec<Entry> {
        let lines = must(self.erhu("conntrack -L").success("conntrack -L"));
        let shown = lines.lines().filter(|l| l.contains("src="));
        shown.map(|l| Entry::parse(l).unwrap_or_else(|fault| panic!("{fault}"))).collect()
    }

    /// Starts a program at the server, which goes on until the end.
    fn at_server(&mut self, line: &str) {
        self.server_programs.push(must(self.server.start(line)));
    }

    /// Serves files of a folder over HTTP from 192.0.2.1:8000; one is larger than what sockets hold.
    fn serve_files(&mut self) -> PathBuf {
        let files = self.folder.path().join("files");
        std::fs::create_dir(&files).unwrap();
        std::fs::write(files.join("small"), "hello\n").unwrap();
        let large: Vec<u8> = (0..30_000_000_u32).map(|k| u8::try_from(k * 31 % 251).unwrap()).collect();
        std::fs::write(files.join("large"), large).unwrap();
        self.at_server(&format!("python3 -u -m http.server 8000 --bind 192.0.2.1 --directory {}", files.display()));
        must(self.server_programs.last_mut().unwrap().wait_for("Serving HTTP", PATIENCE));
        files
    }

    /// Asserts that each tenant has one connection from 10.0.0.5 and this port or ICMP identifier, equal but for the
    /// zone and translated to an address of the tenant's own pool. Returns both.
    fn are_told_apart(&self, proto: &str, port: u16) -> [Entry; 2] {
        let mut both = self.table();
        both.retain(|e| e.proto == proto && e.original.source_port() == port);
        both.sort_by_key(|e| e.original.zone);
        let zones: Vec<_> = both.iter().map(|e| (e.original.zone, e.reply.zone)).collect();
        assert_eq!(zones, [(1, 0), (2, 0)], "{proto}: {both:?}");
        for (entry, pool) in both.iter().zip(POOLS) {
            assert_eq!(entry.original.src.to_string(), "10.0.0.5");
            assert!(pool.contains(&entry.reply.dst.to_string().as_str()), "{entry}");
        }
        let both = <[Entry; 2]>::try_from(both).expect("two zones");
        let zoneless = both.each_ref().map(|e| Tuple { zone: 0, ..e.original.clone() });
        assert_eq!(zoneless[0], zoneless[1]);
        both
    }

    fn tenants(&self) -> [&Namespace; 2] {
        [&self.blue, &self.green]
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // Let it go of its ports in order; what does not obey is killed with the fields.
        self.dataplane.signal(Signal::TERM);
        if std::thread::panicking() {
            eprintln!("--- statistics\n{}", self.erhu("show stats").stdout);
        }
        let _ = self.dataplane.wait(Duration::from_secs(5));
        if let Some(trunk) = &mut self.trunk {
            trunk.signal(Signal::TERM);
            let _ = trunk.wait(Duration::from_secs(5));
        }
    }
}

/// Starts a program on both tenants' hosts at the same time and returns what both printed, once they succeeded.
fn on_both(live: &Live, line: &str) -> [String; 2] {
    let results = std::thread::scope(|scope| {
        let runs = live.tenants().map(|host| scope.spawn(move || host.run(line, PATIENCE)));
        runs.map(|run| run.join().expect("running a program does not panic"))
    });
    results.map(|result| must(must(result).success(line)))
}

/// Both tenants download a large file from the same address and port, and get it whole.
fn both_download(live: &mut Live) {
    let files = live.serve_files();
    let large = std::fs::read(files.join("large")).unwrap();
    let path = |host: &Namespace| live.folder.path().join(host.name());
    // Slow enough that both are under way when the table is looked at. curl takes the first 10 MB at once all the same.
    let downloads = live.tenants().map(|host| {
        let out = path(host);
        must(host.start(&format!(
            "curl --silent --show-error --fail --max-time 25 --limit-rate 5M --local-port 40000 --output {} \
             http://192.0.2.1:8000/large",
            out.display()
        )))
    });
    let until = Instant::now() + PATIENCE;
    let is_established = |e: &&Entry| e.original.sport == Some(40_000) && e.state.as_deref() == Some("ESTABLISHED");
    loop {
        let table = live.table();
        if table.iter().filter(is_established).count() == 2 {
            break;
        }
        assert!(Instant::now() < until, "never both under way: {table:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    live.are_told_apart("tcp", 40_000);
    for mut download in downloads {
        let status = must(download.wait(PATIENCE));
        assert!(status.success(), "{}", download.output());
    }
    for host in live.tenants() {
        assert!(std::fs::read(path(host)).unwrap() == large, "{} got other bytes", host.name());
    }
    // The server has seen two clients.
    let log = live.server_programs.last().unwrap().output();
    for pool in POOLS {
        assert!(pool.iter().any(|address| log.contains(&format!("{address} -"))), "{log}");
    }
}

#[test]
fn tenants_with_the_same_address_and_port_download_at_the_same_time() {
    both_download(&mut Live::start());
}

#[test]
fn tenants_with_the_same_addresses_and_ports_share_one_trunk() {
    let mut live = Live::start_on_trunk();
    both_download(&mut live);

    for (name, script) in [("server.py", UDP_SERVER), ("client.py", UDP_CLIENT)] {
        std::fs::write(live.folder.path().join(name), script).unwrap();
    }
    let script = |name| format!("python3 {}", live.folder.path().join(name).display());
    let (server, client) = (script("server.py"), script("client.py"));
    live.at_server(&server);
    must(live.server_programs.last_mut().unwrap().wait_for("serving", PATIENCE));
    let seen = on_both(&live, &client);
    for (entry, seen) in live.are_told_apart("udp", 5353).iter().zip(seen) {
        let address = entry.reply.dst.to_string();
        assert_eq!(seen.lines().collect::<Vec<_>>(), [address.as_str(); 20]);
    }

    let wan = device("wan");
    live.at_server(&format!("tcpdump -n -l --immediate-mode -i {wan} icmp[icmptype]=icmp-echo"));
    must(live.server_programs.last_mut().unwrap().wait_for("listening", PATIENCE));
    for said in on_both(&live, "ping -n -e 77 -c 20 -i 0.05 -W 1 -s 1472 -M do 192.0.2.1") {
        assert!(said.contains("20 received"), "{said}");
    }
    let arrived = live.server_programs.last().unwrap().output();
    for entry in live.are_told_apart("icmp", 77) {
        let from = format!("IP {} > 192.0.2.1: ICMP echo request", entry.reply.dst);
        assert_eq!(arrived.matches(&from).count(), 20, "{from}\n{arrived}");
    }
}

#[test]
fn ping_and_traceroute_work_for_both_tenants() {
    let live = Live::start();
    for said in on_both(&live, "ping -n -c 20 -i 0.05 -W 1 192.0.2.1") {
        assert!(said.contains("20 received"), "{said}");
    }
    for said in on_both(&live, "ping -n -c 3 -i 0.1 -s 1472 -M do -W 1 192.0.2.1") {
        assert!(said.contains("3 received"), "{said}");
    }
    for said in on_both(&live, "traceroute -n -q 1 -w 2 -m 4 192.0.2.1") {
        let hops: Vec<_> = said.lines().skip(1).filter_map(|l| l.split_whitespace().nth(1)).collect();
        assert_eq!(hops, ["10.0.0.1", "192.0.2.1"], "{said}");
    }
    for said in on_both(&live, "ping -n -c 1 -W 1 10.0.0.1") {
        assert!(said.contains("1 received"), "{said}");
    }
}

/// [`RULES`] with IPv6: each tenant fd00::/64, translated to an address of its own.
fn dual_stack_rules() -> String {
    RULES
        .replace(r#"["10.0.0.1/24"]"#, r#"["10.0.0.1/24", "fd00::1/64"]"#)
        .replace(r#"["198.51.100.2/24"]"#, r#"["198.51.100.2/24", "2001:db8::2/64"]"#)
        .replace(r#""198.51.100.10""#, r#"["198.51.100.10", "2001:db8::10"]"#)
        .replace(r#""198.51.100.20""#, r#"["198.51.100.20", "2001:db8::20"]"#)
        + r#"
        for tenant in ["blue", "green"] { route(tenant, "::/0", #{ zone: "main" }); }
        route("main", "::/0", #{ via: "2001:db8::1" });
        "#
}

#[test]
fn ipv6_of_both_tenants_works_beside_their_ipv4() {
    let mut live = Live::start_with(&dual_stack_rules());
    live.wire_ipv6();
    for said in on_both(&live, "ping -6 -n -c 20 -i 0.05 -W 1 2001:db8:1::1") {
        // The first may wait for three neighbours.
        assert!(said.contains("20 received"), "{said}");
    }
    for said in on_both(&live, "ping -6 -n -c 3 -i 0.1 -s 1452 -M do -W 1 2001:db8:1::1") {
        assert!(said.contains("3 received"), "{said}");
    }
    for said in on_both(&live, "ping -6 -n -c 1 -W 1 fd00::1") {
        assert!(said.contains("1 received"), "{said}");
    }
    for said in on_both(&live, "traceroute -6 -n -q 1 -w 2 -m 4 2001:db8:1::1") {
        let hops: Vec<_> = said.lines().skip(1).filter_map(|l| l.split_whitespace().nth(1)).collect();
        assert_eq!(hops, ["fd00::1", "2001:db8:1::1"], "{said}");
    }

    let files = live.serve_files();
    let large = std::fs::read(files.join("large")).unwrap();
    live.at_server(&format!("python3 -u -m http.server 8006 --bind 2001:db8:1::1 --directory {}", files.display()));
    must(live.server_programs.last_mut().unwrap().wait_for("Serving HTTP", PATIENCE));
    let folder = live.folder.path().to_owned();
    let curl = |name: &str, url: &str| {
        let out = folder.join(name);
        format!("curl -gsSf --max-time 25 --local-port 40006 -o {} {url}/large", out.display())
    };
    let both = std::thread::scope(|scope| {
        let runs = live.tenants().map(|host| {
            let line = curl(host.name(), "http://[2001:db8:1::1]:8006");
            scope.spawn(move || host.run(&line, PATIENCE))
        });
        runs.map(|run| run.join().expect("running a program does not panic"))
    });
    for (host, finished) in live.tenants().into_iter().zip(both) {
        must(must(finished).success("curl"));
        assert!(std::fs::read(folder.join(host.name())).unwrap() == large, "{} got other bytes", host.name());
    }
    let mut table = live.table();
    table.retain(|e| e.original.sport == Some(40_006));
    table.sort_by_key(|e| e.original.zone);
    let ends: Vec<_> = table.iter().map(|e| (e.original.zone, e.original.src, e.reply.dst)).collect();
    let [host, blue, green] = ["fd00::5", "2001:db8::10", "2001:db8::20"].map(|text| text.parse().unwrap());
    assert_eq!(ends, [(1, host, blue), (2, host, green)], "{table:?}");
}

#[test]
fn iperf3_runs_for_both_tenants_at_once() {
    let mut live = Live::start();
    for port in [5201, 5202] {
        live.at_server(&format!("iperf3 --server --bind 192.0.2.1 --port {port} --forceflush"));
        must(live.server_programs.last_mut().unwrap().wait_for("listening", PATIENCE));
    }
    for options in ["", "--reverse", "--udp --bitrate 20M"] {
        let mut runs: Vec<_> = live
            .tenants()
            .into_iter()
            .zip([5201, 5202])
            .map(|(host, port)| {
                must(host.start(&format!("iperf3 --client 192.0.2.1 --port {port} --time 2 --json {options}")))
            })
            .collect();
        for run in &mut runs {
            let status = must(run.wait(PATIENCE));
            let report: serde_json::Value = serde_json::from_str(&run.output()).unwrap_or_default();
            let received = report["end"]["sum_received"]["bytes"].as_f64().or(report["end"]["sum"]["bytes"].as_f64());
            assert!(status.success() && received.unwrap_or(0.0) > 1e6, "iperf3 {options}: {}", run.output());
        }
    }
}

#[test]
fn killing_the_control_plane_costs_no_packet() {
    let mut live = Live::start();
    live.at_server("iperf3 --server --bind 192.0.2.1 --port 5201 --forceflush");
    must(live.server_programs[0].wait_for("listening", PATIENCE));
    let mut load = must(live.blue.start("iperf3 --client 192.0.2.1 --time 6 --json"));
    let mut pings = must(live.green.start("ping -n -c 250 -i 0.02 -W 1 192.0.2.1"));
    std::thread::sleep(Duration::from_secs(1));
    live.control.as_ref().unwrap().signal(Signal::KILL);
    // And in the middle of an apply: it is killed at whatever point it has reached.
    std::fs::write(live.folder.path().join("next.rhai"), format!("{RULES}\nforward(#{{ dport: 9 }}, drop);"))
        .unwrap();
    for pause in [0, 2, 5, 10, 20, 40] {
        let apply = must(netns::start(Live::command_in(live.folder.path(), "erhu", "apply next.rhai")));
        std::thread::sleep(Duration::from_millis(pause));
        apply.signal(Signal::KILL);
    }
    assert!(must(pings.wait(PATIENCE)).success(), "{}", pings.output());
    assert!(pings.output().contains(" 0% packet loss"), "{}", pings.output());
    assert!(must(load.wait(PATIENCE)).success(), "{}", load.output());
    // What runs is one whole policy, and a daemon that starts again adopts it.
    live.serve();
    let until = Instant::now() + PATIENCE;
    while !live.control.as_ref().unwrap().output().contains("adopted") {
        assert!(Instant::now() < until, "{}", live.control.as_ref().unwrap().output());
        std::thread::sleep(Duration::from_millis(50));
    }
    let zones = must(live.erhu("show zones").success("show zones"));
    assert!(zones.contains("blue") && zones.contains("green"), "{zones}");
    for said in on_both(&live, "ping -n -c 5 -i 0.05 -W 1 192.0.2.1") {
        assert!(said.contains("5 received"), "{said}");
    }
    let applied = live.erhu("apply next.rhai");
    assert!(applied.status.success(), "{}{}", applied.stdout, applied.stderr);
}

#[test]
fn a_new_rule_set_stops_what_it_forbids_and_nothing_else() {
    let mut live = Live::start();
    live.serve_files();
    let mut downloads = live.tenants().map(|host| {
        must(host.start(
            "curl --silent --show-error --fail --max-time 12 --limit-rate 5M --local-port 40000 --output /dev/null \
             http://192.0.2.1:8000/large",
        ))
    });
    std::thread::sleep(Duration::from_millis(800));
    // After the accept for what is established: it must not help.
    let forbid = format!("{RULES}\nforward(#{{ zone: \"blue\", proto: \"tcp\" }}, drop);");
    std::fs::write(live.folder.path().join("forbid.rhai"), forbid).unwrap();
    let applied = live.erhu("apply forbid.rhai");
    assert!(applied.status.success(), "{}{}", applied.stdout, applied.stderr);
    std::thread::sleep(Duration::from_millis(500));
    let zones: Vec<_> =
        live.table().into_iter().filter(|e| e.original.sport == Some(40_000)).map(|e| e.original.zone).collect();
    assert_eq!(zones, [2], "blue's connection has ended, green's has not");
    let [blue, green] = &mut downloads;
    assert!(must(green.wait(PATIENCE)).success(), "{}", green.output());
    assert!(!must(blue.wait(PATIENCE)).success(), "blue's download went on");
    // A script with an error changes nothing.
    std::fs::write(live.folder.path().join("broken.rhai"), "zone(\"blue\", #{ idd: 1 });").unwrap();
    let refused = live.erhu("apply broken.rhai");
    assert_eq!(refused.status.code(), Some(1), "{}{}", refused.stdout, refused.stderr);
    assert!(refused.stderr.contains("broken.rhai:1:") && refused.stderr.contains("idd"), "{}", refused.stderr);
    let rolled = live.erhu("rollback");
    assert!(rolled.status.success(), "{}{}", rolled.stdout, rolled.stderr);
    let again = must(live.blue.run("curl --silent --fail --max-time 5 http://192.0.2.1:8000/small", PATIENCE));
    assert_eq!(again.stdout, "hello\n");
}

#[test]
fn the_dataplane_stops_cleanly() {
    let mut live = Live::start();
    live.dataplane.signal(Signal::TERM);
    let status = must(live.dataplane.wait(PATIENCE));
    assert!(status.success(), "{status}\n{}", live.dataplane.output());
    let gone = live.erhu("conntrack -L");
    assert!(!gone.status.success());
}

//! Two tenants' hosts, real ones with equal addresses in namespaces, on one trunk; and a server.

mod common;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Farside, Folder};
use erhu_dpdk::MbufArray;

/// A namespace with one interface in it; both gone with this.
struct Host(String);

impl Host {
    /// Takes the interface `name`, and gives it an address.
    fn with_interface(name: &str, address: &str, mac: &str) -> Self {
        ip(&["netns", "add", name]);
        let host = Self(name.to_owned());
        ip(&["link", "set", name, "netns", name]);
        ip(&["-n", name, "link", "set", name, "address", mac]);
        ip(&["-n", name, "addr", "add", address, "dev", name]);
        ip(&["-n", name, "link", "set", name, "up"]);
        host
    }

    fn ping(&self, address: &str) -> Child {
        Command::new("ip")
            .args(["netns", "exec", &self.0, "ping", "-q", "-c", "4", "-i", "0.2", "-W", "5", "-s", "1472", address])
            .stdout(Stdio::null())
            .spawn()
            .expect("ping is installed")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn ip(arguments: &[&str]) {
    assert!(
        Command::new("ip").args(arguments).status().expect("iproute2 is installed").success(),
        "ip {arguments:?}"
    );
}

#[test]
fn equal_hosts_of_two_tenants_share_a_trunk() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let pid = std::process::id();
    a_kernel_host_pings_the_server(&format!("efs{pid}"));

    let folder = Folder::new("trunk");
    let socket = folder.0.join("trunk.sock");
    let taps = ["a", "b"].map(|tenant| format!("ef{tenant}{pid}"));
    let mut farside = Farside::start(&[
        "trunk",
        "--access",
        &format!("100=net_tap0,iface={}", taps[0]),
        "--access",
        &format!("200=net_tap1,iface={}", taps[1]),
        "--trunk",
        &format!("net_vhost0,iface={}", socket.display()),
    ]);
    let eal = common::eal("trunk");
    let pool = common::pool(&eal);
    let (port, mut queues) = common::virtio(&eal, &pool, 0, &socket);
    farside.wait_until_ready();
    let hosts = [0, 1].map(|n| Host::with_interface(&taps[n], "10.0.0.2/24", &format!("02:00:00:00:00:a{n}")));
    let mut pings = hosts.each_ref().map(|host| host.ping("10.0.0.1"));

    let mut macs_seen = [None, None];
    let mut results = [None, None];
    let patience = Instant::now() + Duration::from_secs(30);
    let mut burst = MbufArray::<32>::new();
    while results.iter().any(Option::is_none) {
        assert!(Instant::now() < patience, "{results:?} {macs_seen:?}");
        queues.rx[0].poll(&mut burst);
        let mut answers = MbufArray::<32>::new();
        for mut packet in burst.drain() {
            let frame = packet.data_mut();
            assert_eq!(frame[12..14], [0x81, 0], "everything on the trunk is tagged");
            let tenant = usize::from(u16::from_be_bytes([frame[14], frame[15]]) / 100 - 1);
            let from: [u8; 6] = frame[6..12].try_into().expect("six bytes");
            if answer(frame) {
                macs_seen[tenant] = Some(from);
                answers.push(packet).expect("as many as came");
            }
        }
        while !answers.is_empty() {
            queues.tx[0].send(&mut answers);
        }
        for (result, ping) in results.iter_mut().zip(&mut pings) {
            *result = ping.try_wait().expect("it is our child");
        }
    }
    assert!(results.iter().flatten().all(std::process::ExitStatus::success), "{results:?}");
    assert_eq!(macs_seen, [Some([2, 0, 0, 0, 0, 0xa0]), Some([2, 0, 0, 0, 0, 0xa1])]);
    drop((queues, port, pool, eal));
    common::remove_runtime_files();
}

fn a_kernel_host_pings_the_server(tap: &str) {
    let mut farside =
        Farside::start(&["respond", "--port", &format!("net_tap0,iface={tap}"), "--address", "192.0.2.1"]);
    farside.wait_until_ready();
    let host = Host::with_interface(tap, "192.0.2.2/24", "02:00:00:00:00:aa");
    assert!(host.ping("192.0.2.1").wait().expect("it is our child").success());
}

/// Turns a tagged ARP or echo request for 10.0.0.1 into its answer.
fn answer(frame: &mut [u8]) -> bool {
    const ADDRESS: [u8; 4] = [10, 0, 0, 1];
    let is_arp = frame[16..18] == [8, 6] && frame[25] == 1 && frame[42..46] == ADDRESS;
    let is_echo = frame[16..18] == [8, 0] && frame[27] == 1 && frame[38] == 8 && frame[34..38] == ADDRESS;
    if is_arp {
        frame[25] = 2;
        frame.copy_within(26..36, 36);
        frame[26..32].copy_from_slice(&common::ROUTER_MAC);
        frame[32..36].copy_from_slice(&ADDRESS);
    } else if is_echo {
        frame.copy_within(30..34, 34);
        frame[30..34].copy_from_slice(&ADDRESS);
        frame[38] = 0;
        frame[40..42].fill(0);
        let checksum = !common::sum(&frame[38..], 0);
        frame[40..42].copy_from_slice(&checksum.to_be_bytes());
    } else {
        return false;
    }
    frame.copy_within(6..12, 0);
    frame[6..12].copy_from_slice(&common::ROUTER_MAC);
    true
}

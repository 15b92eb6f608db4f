//! A kernel host in a namespace of its own pings an address behind a `net_tap` port.

mod common;

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use erhu_dpdk::{MbufArray, Port, PortConfig};

#[test]
fn a_host_in_a_namespace_pings_through_a_tap() {
    if !common::is_root() {
        return;
    }
    let eal = common::eal("tap");
    let pool = common::pool(&eal);
    let name = format!("etap{}", std::process::id());
    let mut port =
        Port::open(&eal, &format!("net_tap0,iface={name}")).expect("the driver is installed, /dev/net/tun there");
    let config = PortConfig { mac: Some([2, 0, 0, 0, 0, 1]), ..PortConfig::default() };
    port.configure(&config, &pool).expect("one queue each way");
    let mut queues = port.start().expect("configured");
    assert_eq!(port.mac().expect("it has one"), [2, 0, 0, 0, 0, 1]);

    let namespace = common::Made::namespace(&name);
    common::run("ip", &["link", "set", &name, "netns", &name]);
    let inside = |arguments: &[&str]| {
        common::run("ip", &[&["netns", "exec", &name, "ip"], arguments].concat());
    };
    // The driver gave the interface the port's own address; the host needs another.
    inside(&["link", "set", &name, "address", "02:00:00:00:00:02"]);
    inside(&["addr", "add", "192.0.2.2/24", "dev", &name]);
    inside(&["link", "set", &name, "up"]);
    let mut ping = Command::new("ip")
        .args(["netns", "exec", &name, "ping", "-c", "5", "-i", "0.2", "-W", "2", "192.0.2.1"])
        .spawn()
        .expect("ping is installed");

    let mut burst = MbufArray::<32>::new();
    let patience = Instant::now() + Duration::from_secs(20);
    let status = loop {
        queues.rx[0].poll(&mut burst);
        let mut answers = MbufArray::<32>::new();
        for mut packet in burst.drain() {
            if common::answer(packet.data_mut(), [2, 0, 0, 0, 0, 1], Ipv4Addr::new(192, 0, 2, 1)) {
                answers.push(packet).expect("as many as came");
            }
        }
        common::send_all(&mut queues.tx[0], &mut answers);
        if let Some(status) = ping.try_wait().expect("it is our child") {
            break status;
        }
        assert!(Instant::now() < patience, "ping hangs");
    };
    let stats = port.stats().expect("it counts");
    drop(namespace);
    assert!(status.success(), "{stats:?}");
    assert!(stats.rx_packets >= 6 && stats.tx_packets >= 6, "{stats:?}");
    drop(queues);
    port.close().expect("the queues are gone");
    drop((burst, pool));
    common::end(eal);
}

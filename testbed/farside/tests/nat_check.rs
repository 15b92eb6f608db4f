//! `nat-check` on both sides of a router that translates rightly, and of some that do not.

mod common;

use std::path::PathBuf;

use common::{Farside, Fault, Folder, Router};
use erhu_dpdk::{Eal, Mempool};
use serde_json::Value;

#[test]
fn a_right_router_passes_and_wrong_ones_are_told_why() {
    let folder = Folder::new("nat");
    let eal = common::eal("nat");
    let pool = common::pool(&eal);

    let (passed, report) = check(&folder, &eal, &pool, Fault::None);
    assert!(passed, "{report:#}");
    // 2 tenants, 3 hosts, 8 flows, 5 packets.
    for count in ["planned", "sent", "arrived", "returned"] {
        assert_eq!(report[count], 240, "{report:#}");
    }
    assert_eq!(report["mappings"], 48, "{report:#}");

    for (fault, wanted) in [
        (Fault::UdpChecksum, "wrong UDP checksum or length"),
        (Fault::ForeignPool, "source outside of the tenant's pool"),
        (Fault::SharedPort, "mapping shared by two endpoints"),
        (Fault::OtherTenant, "returned to another tenant"),
    ] {
        let (passed, report) = check(&folder, &eal, &pool, fault);
        assert!(!passed, "{fault:?} {report:#}");
        assert!(report["faults"][wanted].as_u64() > Some(0), "{fault:?} {report:#}");
    }
    let (passed, report) = check(&folder, &eal, &pool, Fault::Loss);
    assert!(!passed, "{report:#}");
    assert!(report["returned"].as_u64() < Some(240), "{report:#}");
    assert!(report["faults"].as_object().is_some_and(serde_json::Map::is_empty), "{report:#}");

    two_processes_can_be_the_two_sides(&folder, &eal, &pool);

    drop((pool, eal));
    common::remove_runtime_files();
}

/// The plan every test has.
const PLAN: [&str; 12] = [
    "--tenant",
    "100,10.0.0.1,10.0.0.10,203.0.113.10",
    "--tenant",
    "200,10.0.0.1,10.0.0.10,203.0.113.16/30",
    "--target",
    "198.51.100.7:9000",
    "--hosts",
    "3",
    "--flows",
    "8",
    "--packets",
    "5",
];

fn check(folder: &Folder, eal: &Eal, pool: &Mempool, fault: Fault) -> (bool, Value) {
    let sockets = ["in", "out"].map(|side| folder.0.join(format!("{fault:?}-{side}.sock")));
    let inside = format!("net_vhost0,iface={}", sockets[0].display());
    let outside = format!("net_vhost1,iface={}", sockets[1].display());
    // Some faults keep packets from ever coming back.
    let seconds = if matches!(fault, Fault::None | Fault::Loss) { "30" } else { "3" };
    let farside = Farside::start(
        &[&["nat-check", "--inside", &inside, "--outside", &outside, "--timeout-s", seconds], &PLAN[..]].concat(),
    );
    let mut sides = [farside];
    forward(&sockets, eal, pool, fault, &mut sides);
    let [farside] = sides;
    farside.outcome()
}

fn two_processes_can_be_the_two_sides(folder: &Folder, eal: &Eal, pool: &Mempool) {
    let sockets = ["generate", "check"].map(|side| folder.0.join(format!("{side}.sock")));
    let inside = format!("net_vhost0,iface={}", sockets[0].display());
    let outside = format!("net_vhost0,iface={}", sockets[1].display());
    let generate = ["generate", "--inside", &inside, "--rate", "2000", "--expect", "240"];
    let check = ["check", "--outside", &outside, "--timeout-s", "30"];
    let mut sides = [generate.as_slice(), &check].map(|words| Farside::start(&[words, &PLAN[..]].concat()));
    forward(&sockets, eal, pool, Fault::None, &mut sides);
    for side in sides {
        let (passed, report) = side.outcome();
        assert!(passed, "{report:#}");
    }
}

/// Is the router between two sockets until all far sides have ended.
fn forward(sockets: &[PathBuf; 2], eal: &Eal, pool: &Mempool, fault: Fault, sides: &mut [Farside]) {
    let mut router = Router::new(&[(100, [203, 0, 113, 10]), (200, [203, 0, 113, 17])], fault);
    let (inside_port, mut inside) = common::virtio(eal, pool, 0, &sockets[0]);
    let (outside_port, mut outside) = common::virtio(eal, pool, 1, &sockets[1]);
    while !sides.iter_mut().all(Farside::has_ended) {
        router.turn(pool, &mut inside, &mut outside);
        std::thread::sleep(std::time::Duration::from_micros(50));
    }
    drop((inside, outside));
    inside_port.close().expect("the queues are gone");
    outside_port.close().expect("the queues are gone");
}

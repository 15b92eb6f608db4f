//! Two tenants with the same addresses over virtio: `net_virtio_user` ports of a real dataplane against a vhost server
//! in a second process, a network function written with capsule that generates, answers and judges.
//!
//! Needs no root, no huge pages and no NIC; and the programs, built by `cargo build -p erhu-dataplane -p
//! erhu-controlplane -p erhu-farside` (or `ERHU_BIN_DIR`).

use erhu_testbed::processes::{Instance, Listener, PATIENCE, Plan};
use erhu_testbed::scenario::repository;
use rustix::process::Signal;
use serde_json::Value;

fn must<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// Counts by name that are not 0.
fn not_zero(counts: &Value) -> Vec<(&str, u64)> {
    let counts = counts.as_object().expect("an object of counts").iter();
    counts.map(|(name, count)| (name.as_str(), count.as_u64().unwrap())).filter(|(_, count)| *count > 0).collect()
}

fn every_packet_is_translated_there_and_back(workers: u32) {
    let rules = must(std::fs::read_to_string(repository().join("configs/two-tenants.rhai")));
    let instance = must(Instance::new(Listener::FarSide, workers, &rules));
    let plan = Plan { hosts: 4, flows: 16, packets: 50, timeout_s: 60 };
    let far_side = must(instance.far_side(plan));
    let mut dataplane = must(instance.dataplane());
    must(must(instance.erhu(&["apply", "rules.rhai"])).success("apply"));

    let report = must(far_side.judgement(&instance));
    // Each inside endpoint has one of its own at either server; the far side has seen that it is the same at both.
    assert_eq!(report["mappings"], plan.connections(), "{report:#}");

    let counted = must(must(instance.erhu(&["conntrack", "-C"])).success("conntrack -C"));
    let stats = must(instance.document(&["show", "stats"]));
    let connections = &stats["connections"];
    let (created, ended) = (connections["created"].as_u64().unwrap(), connections["ended"].as_u64().unwrap());
    assert_eq!(created, plan.connections(), "{connections:#}");
    assert_eq!(connections["live"], created - ended);
    assert_eq!(counted.trim(), (created - ended).to_string());
    assert_eq!(not_zero(&connections["refused"]), []);
    for zone in ["blue", "green"] {
        assert_eq!(stats["zones"][zone]["created"], plan.connections() / 2, "{:#}", stats["zones"]);
    }
    assert_eq!(not_zero(&stats["drops"]), []);
    assert_eq!(stats["counters"]["bug"], 0);
    // Each way, with what it takes to wake the ways up: ARP and a warm-up packet for each tenant.
    for port in ["lan", "wan"] {
        let traffic = &stats["ports"][port];
        for count in ["rx_packets", "tx_packets"] {
            let extra = traffic[count].as_u64().unwrap().checked_sub(plan.total());
            assert!(extra.is_some_and(|extra| extra > 0 && extra <= 64), "{port} {count}: {traffic:#}");
        }
    }
    let pools = must(instance.document(&["show", "pools"]));
    for pool in pools.as_array().unwrap() {
        assert_eq!(pool["in_use"]["udp"], plan.endpoints() / 2, "{pool:#}");
        assert_eq!(pool["exhausted"], 0, "{pool:#}");
    }

    dataplane.signal(Signal::TERM);
    assert!(must(dataplane.wait(PATIENCE)).success(), "{}", dataplane.output());
}

#[test]
fn one_worker_translates_every_packet_there_and_back() {
    every_packet_is_translated_there_and_back(1);
}

#[test]
fn two_workers_share_the_connections_of_ports_with_one_queue() {
    every_packet_is_translated_there_and_back(2);
}

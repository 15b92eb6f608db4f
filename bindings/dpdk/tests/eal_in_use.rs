//! The EAL pins its thread, and outlives whoever still uses it.

mod common;

use erhu_dpdk::{Eal, EalArgs, Error};

#[test]
fn a_packet_outlives_its_pool_and_the_eal() {
    let args = EalArgs {
        no_huge: true,
        memory_mb: Some(64),
        main_core: Some(0),
        ..EalArgs::new(format!("erhu-test-in-use-{}", std::process::id()))
    };
    assert_eq!(erhu_dpdk::runtime_dir(), None);
    let eal = Eal::init(&args).expect("DPDK starts");
    let status = std::fs::read_to_string("/proc/thread-self/status").expect("this is Linux");
    assert!(status.lines().any(|line| line == "Cpus_allowed_list:\t0"), "{status}");

    let pool = common::pool(&eal);
    let packet = pool.copy_of(b"still here").expect("the pool is full");
    drop(pool);
    assert_eq!(eal.end(), Err(Error::StillInUse { what: "1 packets are out of their pools".to_owned() }));
    assert_eq!(packet.data(), b"still here");
    drop(packet);
    common::remove_runtime_files();
}

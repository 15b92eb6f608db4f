//! Two ports on the ends of a veth pair.

mod common;

use erhu_dpdk::{MbufArray, Port, PortConfig};

#[test]
fn frames_cross_a_veth_pair() {
    if !common::is_root() {
        return;
    }
    let ends = ["a", "b"].map(|end| format!("eveth{}{end}", std::process::id()));
    let veth = common::Made::veth(&ends[0], &ends[1]);
    let eal = common::eal("af_packet");
    let pool = common::pool(&eal);
    let mut ports: Vec<Port> = ends
        .iter()
        .enumerate()
        .map(|(n, end)| Port::open(&eal, &format!("net_af_packet{n},iface={end}")).expect("the driver is installed"))
        .collect();
    let mut queues = Vec::new();
    for port in &mut ports {
        port.configure(&PortConfig { promiscuous: true, ..PortConfig::default() }, &pool)
            .expect("one queue each way");
        queues.push(port.start().expect("configured"));
    }

    let mut burst = MbufArray::<32>::new();
    for number in 0..20 {
        burst.push(pool.copy_of(&common::frame(number, 100)).expect("the pool is full")).expect("room for 32");
    }
    common::send_all(&mut queues[0].tx[0], &mut burst);
    // The kernel talks on the pair too (IPv6 neighbours); ours are told by their Ethertype.
    let mut seen = Vec::new();
    while seen.len() < 20 {
        let received: MbufArray<32> = common::receive(&mut queues[1].rx[0], 1);
        seen.extend(received.iter().filter(|packet| common::is_ours(packet)).map(|packet| packet.data().to_vec()));
    }
    assert_eq!(seen, (0..20).map(|number| common::frame(number, 100)).collect::<Vec<_>>());

    drop((queues, burst));
    for port in ports {
        port.close().expect("the queues are gone");
    }
    drop(veth);
    assert_eq!(pool.in_use(), 0);
    drop(pool);
    common::end(eal);
}

//! A ring between a transmit and a receive queue: order, and what does not fit stays ours.

mod common;

use erhu_dpdk::{MbufArray, Port, PortConfig};

#[test]
fn a_full_ring_leaves_packets_with_the_sender() {
    let eal = common::eal("ring");
    let pool = common::pool(&eal);
    let mut port = Port::open(&eal, "net_ring0").expect("the driver is installed");
    port.configure(&PortConfig::default(), &pool).expect("one queue each way");
    let mut queues = port.start().expect("configured");
    let (rx, tx) = (&mut queues.rx[0], &mut queues.tx[0]);

    let mut burst = MbufArray::<64>::new();
    let mut sent = 0_usize;
    let refused = loop {
        let number = u8::try_from(sent % 251).expect("below 251");
        let packet = pool.copy_of(&common::frame(number, 64)).expect("the pool is larger than the ring");
        match tx.send_one(packet) {
            Ok(()) => sent += 1,
            Err(packet) => break packet,
        }
    };
    assert!(sent > 100, "{sent}");
    burst.push(refused).expect("the burst is empty");
    assert_eq!(tx.send(&mut burst), 0);
    assert_eq!(burst.len(), 1, "the refused packet is still ours");

    let mut received = MbufArray::<32>::new();
    assert_eq!(rx.poll(&mut received), 32);
    for (number, packet) in received.iter().enumerate() {
        assert_eq!(usize::from(packet.data()[20]), number);
    }
    while burst.push(pool.copy_of(&common::frame(255, 64)).expect("the pool is larger than the ring")).is_ok() {}
    let went = tx.send(&mut burst);
    assert_eq!(went, 32, "as many as the poll made room for");
    assert_eq!(burst.len(), 32);

    // The ring belongs to the port; what is left in it would be lost to the pool.
    received.clear();
    let mut left = sent;
    while left > 0 {
        let got = rx.poll(&mut received);
        assert!(got > 0);
        left -= got;
        received.clear();
    }
    drop((burst, received, queues));
    port.close().expect("the queues are gone");
    assert_eq!(pool.in_use(), 0);
    drop(pool);
    common::end(eal);
}

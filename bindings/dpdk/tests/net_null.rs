//! Packets, pools, bursts, several workers and RSS, on a port that needs nothing outside.

mod common;

use erhu_dpdk::{Eal, EalArgs, Error, MbufArray, PoolConfig, Port, PortConfig, RssConfig, RssHash, free_all};

#[test]
fn null_port_and_packet_memory() {
    let eal = common::eal("null");
    assert_eq!(Eal::init(&EalArgs::new("again")).err(), Some(Error::AlreadyInitialised));
    let pool = common::pool(&eal);

    a_packet_grows_and_shrinks_at_both_ends(&pool);
    an_array_keeps_order_and_frees_what_it_holds(&pool);
    a_pool_fits_the_memory_it_is_given(&eal);
    an_unknown_port_is_refused_by_name(&eal);
    two_workers_poll_their_own_queue(&eal, &pool);
    rss_is_read_back(&eal, &pool);

    assert_eq!(pool.in_use(), 0);
    drop(pool);
    common::end(eal);
}

fn a_packet_grows_and_shrinks_at_both_ends(pool: &erhu_dpdk::Mempool) {
    let mut packet = pool.take().expect("the pool is full");
    assert!(packet.is_empty() && packet.is_contiguous());
    packet.append(4).expect("there is room").copy_from_slice(b"data");
    packet.prepend(6).expect("there is headroom").copy_from_slice(b"header");
    assert_eq!(packet.data(), b"headerdata");
    assert!(packet.adj(4) && packet.trim(2));
    assert_eq!((packet.data(), packet.len()), (&b"erda"[..], 4));
    assert!(!packet.adj(5) && !packet.trim(5), "more than there is");
    assert!(packet.prepend(packet.headroom() + 1).is_none());
    assert!(packet.append(packet.tailroom() + 1).is_none());
    assert!(packet.reframe(6, 4) && packet.data() == b"header" && packet.len() == 6);
    assert!(packet.reframe(4, -4));
    assert_eq!((packet.data(), packet.len()), (&b"erda"[..], 4));
    assert!(!packet.reframe(u16::MAX, 0) && !packet.reframe(4, i32::from(packet.headroom()) + 1), "no room");
    assert_eq!(packet.rss_hash(), None);
    assert_eq!(packet.ip_checksum(), erhu_dpdk::Checksum::Unknown);
    packet.data_mut()[0] = b'E';
    let copy = packet.copy_into(pool).expect("the pool has packets");
    assert_eq!(copy.data(), b"Erda");
    assert_eq!(packet.segments().collect::<Vec<_>>(), [b"Erda"]);
    assert!(packet.reset() && packet.is_empty());
    assert_eq!(pool.in_use(), 2);
    let raw = copy.into_raw();
    // SAFETY: just given up, and used by nobody else.
    drop(unsafe { erhu_dpdk::Mbuf::from_raw(raw) });
    drop(packet);
    assert_eq!(pool.in_use(), 0);
}

fn an_array_keeps_order_and_frees_what_it_holds(pool: &erhu_dpdk::Mempool) {
    let mut array = MbufArray::<4>::new();
    for fill in 0..4 {
        array.push(pool.copy_of(&common::frame(fill, 60)).expect("the pool has packets")).expect("room");
    }
    assert!(array.is_full());
    assert!(array.push(pool.take().expect("the pool has packets")).is_err());
    assert_eq!(array.pop().expect("four are in it").data()[20], 3);
    let mut drained = array.drain();
    assert_eq!(drained.len(), 3);
    assert_eq!(drained.next().expect("three are in it").data()[20], 0);
    drop(drained);
    assert_eq!(pool.in_use(), 0, "what was not taken from the drain is freed");

    let mut slots = [const { None }; 8];
    assert!(pool.take_bulk(&mut slots));
    slots[3] = None;
    free_all(&mut slots);
    assert!(slots.iter().all(Option::is_none));
    assert_eq!(pool.in_use(), 0);
}

fn a_pool_fits_the_memory_it_is_given(eal: &Eal) {
    let config = PoolConfig::from_memory(eal, "sized", 8 << 20);
    assert!((1500..3600).contains(&config.packets), "{config:?}");
    let sized = eal.pool(&config).expect("8 MiB of the 64");
    assert_eq!(sized.available(), config.packets);
    assert!(matches!(eal.pool(&config), Err(Error::Pool { .. })), "the name is taken");
    let too_large = PoolConfig::from_memory(eal, "too large", 1 << 30);
    assert!(matches!(eal.pool(&too_large), Err(Error::Pool { .. })));
}

fn an_unknown_port_is_refused_by_name(eal: &Eal) {
    let error = Port::open(eal, "net_nonsense0,a=b").err().expect("there is no such driver").to_string();
    assert!(error.contains("net_nonsense0,a=b"), "{error}");
}

fn two_workers_poll_their_own_queue(eal: &Eal, pool: &erhu_dpdk::Mempool) {
    let mut port = Port::open(eal, "net_null0,size=128,copy=1").expect("the driver is installed");
    assert!(matches!(Port::open(eal, "net_null0"), Err(Error::AlreadyOpen { .. })));
    assert!(matches!(port.start(), Err(Error::WrongState { .. })));
    let config = PortConfig { rx_queues: 2, tx_queues: 2, mac: Some([2, 0, 0, 0, 0, 9]), ..PortConfig::default() };
    let too_many = PortConfig { rx_queues: u16::MAX, ..config.clone() };
    assert!(matches!(port.configure(&too_many, pool), Err(Error::TooFewQueues { .. })));
    port.configure(&config, pool).expect("two queues");
    assert_eq!(port.mac().expect("it has one"), [2, 0, 0, 0, 0, 9]);
    let queues = port.start().expect("configured");
    assert!(port.link().expect("it has one").is_up);
    assert!(matches!(port.stop(), Err(Error::QueuesInUse { .. })));

    let workers: Vec<_> = queues
        .rx
        .into_iter()
        .zip(queues.tx)
        .map(|(mut rx, mut tx)| {
            let eal = eal.handle();
            std::thread::spawn(move || {
                let _registered = eal.register_thread().expect("lcores are free");
                assert!(eal.register_thread().is_err(), "once is enough");
                let mut burst = MbufArray::<32>::new();
                let mut forwarded = 0;
                while forwarded < 10_000 {
                    rx.poll(&mut burst);
                    assert!(burst.iter().all(|packet| packet.data().len() == 128));
                    forwarded += tx.send(&mut burst);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().expect("the worker did not panic");
    }
    let stats = port.stats().expect("it counts");
    assert!(stats.rx_packets >= 20_000 && stats.tx_packets >= 20_000, "{stats:?}");
    port.stop().expect("the queues are gone");
    port.close().expect("stopped");
}

fn rss_is_read_back(eal: &Eal, pool: &erhu_dpdk::Mempool) {
    let mut port = Port::open(eal, "net_null0,size=64").expect("a closed vdev can be made anew");
    let rss = port.info().expect("it is there").rss.expect("net_null pretends to scale");
    assert!(rss.hash.contains(RssHash::IPV4_UDP) && rss.table_len > 0, "{rss:?}");
    let key: Vec<u8> = (0..rss.key_len).collect();
    let wanted = RssConfig { hash: RssHash::IPV4_UDP | RssHash::IPV4_TCP, key: Some(key.clone()), exact: true };
    let config = PortConfig { rx_queues: 2, rss: Some(wanted), ..PortConfig::default() };
    port.configure(&config, pool).expect("it can hash that");
    let queues = port.start().expect("configured");
    port.set_rss(RssHash::IPV4_UDP | RssHash::IPV4_TCP, Some(&key)).expect("it takes a key");
    let (hash, read) = port.rss().expect("it tells");
    assert!(hash.contains(RssHash::IPV4_UDP));
    assert_eq!(read, key);
    let table: Vec<u16> = (0..rss.table_len).map(|entry| entry % 2).collect();
    port.set_redirection_table(&table).expect("both queues exist");
    assert_eq!(port.redirection_table().expect("it tells"), table);
    assert!(matches!(port.set_redirection_table(&[0]), Err(Error::Rss { .. })));
    drop(queues);
    let short = RssConfig { key: Some(vec![1, 2, 3]), ..RssConfig::default() };
    let config = PortConfig { rss: Some(short), ..PortConfig::default() };
    port.stop().expect("the queues are gone");
    assert!(matches!(port.configure(&config, pool), Err(Error::Rss { .. })));
}

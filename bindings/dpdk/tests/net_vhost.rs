//! The way a VM attaches: `net_vhost` here, `net_virtio_user` in a second process.

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use erhu_dpdk::{MbufArray, Port, PortConfig};

/// Set in the second process: path of the socket.
const SOCKET: &str = "ERHU_TEST_VHOST_SOCKET";
const FRAMES: usize = 500;

#[test]
fn frames_go_to_the_guest_and_back() {
    match std::env::var(SOCKET) {
        Ok(socket) => guest(&socket),
        Err(_) => host(),
    }
}

/// What the two say to each other: both bytes of the Ethernet type.
const READY: u8 = 0xfd;
const LEAVE: u8 = 0xfe;

/// Sends numbered frames, expects each back with its source changed.
fn host() {
    let socket = std::env::temp_dir().join(format!("erhu-vhost-{}.sock", std::process::id()));
    let eal = common::eal("vhost");
    let pool = common::pool(&eal);
    let mut port =
        Port::open(&eal, &format!("net_vhost0,iface={}", socket.display())).expect("the driver is installed");
    port.configure(&PortConfig::default(), &pool).expect("one queue each way");
    let mut queues = port.start().expect("configured");
    let mut guest = Command::new(std::env::current_exe().expect("we run from somewhere"))
        .args(["--exact", "frames_go_to_the_guest_and_back", "--nocapture"])
        .env(SOCKET, &socket)
        .spawn()
        .expect("our own binary");

    let patience = Instant::now() + Duration::from_secs(30);
    let (mut sent, mut back) = (0, Vec::new());
    let mut burst = MbufArray::<32>::new();
    let mut is_ready = false;
    while back.len() < FRAMES {
        assert!(Instant::now() < patience, "{sent} sent, {} back, guest ready: {is_ready}", back.len());
        assert!(guest.try_wait().expect("it is our child").is_none(), "the guest went away");
        // What lies in the guest's queue while it sets its device up is lost: it says when it has.
        while is_ready && sent < FRAMES && sent < back.len() + 64 && !burst.is_full() {
            let number = u8::try_from(sent % 256).expect("a byte");
            burst.push(pool.copy_of(&common::frame(number, 64 + sent)).expect("the pool has packets")).expect("room");
            sent += 1;
        }
        queues.tx[0].send(&mut burst);
        let mut received = MbufArray::<32>::new();
        queues.rx[0].poll(&mut received);
        is_ready |= received.iter().any(|packet| packet.data()[12] == READY);
        back.extend(received.iter().filter(|packet| common::is_ours(packet)).map(|packet| packet.data().to_vec()));
    }
    for (number, frame) in back.iter().enumerate() {
        let mut wanted = common::frame(u8::try_from(number % 256).expect("a byte"), 64 + number);
        wanted[6] = 0x12;
        assert_eq!(frame, &wanted);
    }
    burst.push(pool.copy_of(&word(LEAVE)).expect("the pool has packets")).expect("room");
    common::send_all(&mut queues.tx[0], &mut burst);
    assert!(guest.wait().expect("it is our child").success());
    drop((queues, burst));
    port.close().expect("the queues are gone");
    drop(pool);
    common::end(eal);
    let _ = std::fs::remove_file(socket);
}

/// A frame of one of the two words.
fn word(word: u8) -> Vec<u8> {
    let mut frame = common::frame(word, 64);
    frame[12..14].fill(word);
    frame
}

/// Says that it is ready until the host speaks, then sends every frame back with its source changed.
fn guest(socket: &str) {
    let eal = common::eal("virtio");
    let pool = common::pool(&eal);
    let mut port =
        Port::open(&eal, &format!("net_virtio_user0,path={socket},queues=1")).expect("the driver is installed");
    port.configure(&PortConfig::default(), &pool).expect("one queue each way");
    let mut queues = port.start().expect("configured");
    let mut burst = MbufArray::<32>::new();
    let patience = Instant::now() + Duration::from_secs(30);
    let (mut spoken_to, mut done) = (false, false);
    let mut next_word = Instant::now();
    while !done {
        assert!(Instant::now() < patience, "the host is silent");
        queues.rx[0].poll(&mut burst);
        spoken_to |= !burst.is_empty();
        if !spoken_to && Instant::now() >= next_word {
            next_word = Instant::now() + Duration::from_millis(10);
            let mut ready = MbufArray::<1>::new();
            ready.push(pool.copy_of(&word(READY)).expect("the pool has packets")).expect("room");
            queues.tx[0].send(&mut ready);
        }
        for packet in burst.iter_mut() {
            packet.data_mut()[6] = 0x12;
            done |= packet.data()[12] == LEAVE;
        }
        queues.tx[0].send(&mut burst);
    }
    drop((queues, burst));
    port.close().expect("the queues are gone");
    drop(pool);
    let _ = eal.end();
    common::remove_runtime_files();
}

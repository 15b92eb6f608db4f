//! A capture file in, a capture file out.

mod common;

use erhu_dpdk::{MbufArray, Port, PortConfig};

/// A capture file of microsecond stamps, Ethernet.
fn pcap(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(word.to_le_bytes());
    }
    for frame in frames {
        let len = u32::try_from(frame.len()).expect("frames are short");
        for word in [1, 2, len, len] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    }
    file
}

fn frames_of(file: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = &file[24..];
    let mut frames = Vec::new();
    while let Some((header, after)) = rest.split_at_checked(16) {
        let len = u32::from_le_bytes(header[8..12].try_into().expect("four bytes"));
        let (frame, after) = after.split_at(len as usize);
        frames.push(frame.to_vec());
        rest = after;
    }
    frames
}

#[test]
fn what_is_read_is_written() {
    let folder = std::env::temp_dir().join(format!("erhu-dpdk-pcap-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the temporary folder is writable");
    let (input, output) = (folder.join("in.pcap"), folder.join("out.pcap"));
    // The last one is larger than a buffer: it arrives in several segments.
    let frames: Vec<Vec<u8>> = (0..40).map(|n| common::frame(n, 60 + usize::from(n))).collect();
    let jumbo = common::frame(99, 5000);
    std::fs::write(&input, pcap(&[frames.clone(), vec![jumbo.clone()]].concat())).expect("writable");

    let eal = common::eal("pcap");
    let pool = common::pool(&eal);
    let device = format!("net_pcap0,rx_pcap={},tx_pcap={}", input.display(), output.display());
    let mut port = Port::open(&eal, &device).expect("the driver is installed");
    port.configure(&PortConfig::default(), &pool).expect("one queue each way");
    let mut queues = port.start().expect("configured");
    let (rx, tx) = (&mut queues.rx[0], &mut queues.tx[0]);

    let mut received: MbufArray<64> = common::receive(rx, 41);
    let large = received.last_mut().expect("41 packets");
    assert_eq!(large.len(), 5000);
    assert!(!large.is_contiguous());
    assert_eq!(large.segments().collect::<Vec<_>>().concat(), jumbo);
    assert!(!large.linearize(), "5000 bytes fit no buffer");
    assert_eq!(rx.poll(&mut received), 0, "the file is read once");
    common::send_all(tx, &mut received);

    let mut slots = [const { None }; 4];
    assert_eq!(rx.poll_slots(&mut slots), 0);
    let stats = port.stats().expect("it counts");
    assert_eq!((stats.rx_packets, stats.tx_packets), (41, 41));
    drop((received, queues));
    port.close().expect("the queues are gone");
    assert_eq!(frames_of(&std::fs::read(&output).expect("written")), [frames, vec![jumbo]].concat());

    assert_eq!(pool.in_use(), 0);
    drop(pool);
    common::end(eal);
    let _ = std::fs::remove_dir_all(folder);
}

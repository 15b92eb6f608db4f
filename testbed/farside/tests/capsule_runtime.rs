//! capsule 0.1.5 on today's DPDK, through capsule-ffi: a pipeline of its runtime really runs.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use capsule::batch::{Batch, Pipeline, Poll};
use capsule::config::RuntimeConfig;
use capsule::packets::ip::v4::Ipv4;
use capsule::packets::{Ethernet, Packet, Udp4};
use capsule::testils::byte_arrays::{IPV4_TCP_PACKET, IPV4_UDP_PACKET};
use capsule::{Mbuf, PortQueue, Runtime};
use pcap_file::pcap::{PcapPacket, PcapReader, PcapWriter};

/// Sends UDP packets on with another source, each with right checksums; drops the rest.
fn translate(queue: PortQueue) -> impl Pipeline {
    let output = queue.clone();
    Poll::new(queue)
        .map(|mbuf| mbuf.parse::<Ethernet>()?.parse::<Ipv4>()?.parse::<Udp4>())
        .map(|mut udp| {
            udp.set_src_ip(Ipv4Addr::new(203, 0, 113, 1).into())?;
            udp.set_src_port(40_000);
            udp.reconcile_all();
            Ok(udp)
        })
        .map(|udp| {
            // A packet of our own making beside the one that came: allocation works on this core.
            let own = Mbuf::from_bytes(&IPV4_UDP_PACKET)?;
            assert_eq!(own.data_len(), IPV4_UDP_PACKET.len());
            Ok(udp)
        })
        .send(output)
}

#[test]
fn a_pipeline_over_net_pcap_translates_what_it_reads() {
    let folder = std::env::temp_dir().join(format!("erhu-farside-pcap-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the temporary folder is writable");
    let (input, output) = (folder.join("in.pcap"), folder.join("out.pcap"));
    write(&input, &[&IPV4_UDP_PACKET, &IPV4_TCP_PACKET, &IPV4_UDP_PACKET]);

    let config: RuntimeConfig = toml::from_str(&format!(
        r#"
        app_name = "erhu-farside-pcap-{}"
        master_core = 0
        duration = 1
        dpdk_args = "--no-huge -m 64 --no-pci --no-telemetry"
        mempool = {{ capacity = 2047, cache_size = 32 }}
        ports = [{{ name = "file", device = "net_pcap0", args = "rx_pcap={},tx_pcap={}", cores = [0] }}]
        "#,
        std::process::id(),
        input.display(),
        output.display()
    ))
    .expect("the configuration is well-formed");
    let started = std::time::Instant::now();
    let mut runtime = Runtime::build(config).expect("DPDK starts");
    runtime.add_pipeline_to_port("file", translate).expect("the port exists");
    runtime.execute().expect("the runtime runs");
    drop(runtime);
    let _ = std::fs::remove_dir_all(erhu_dpdk::runtime_dir().expect("DPDK was started"));
    assert!(started.elapsed() < Duration::from_secs(20));

    let frames = read(&output);
    assert_eq!(frames.len(), 2, "two were UDP");
    for frame in frames {
        assert_eq!(frame.len(), IPV4_UDP_PACKET.len());
        assert_eq!(frame[26..30], [203, 0, 113, 1]);
        assert_eq!(frame[34..36], 40_000_u16.to_be_bytes());
        assert_eq!(sum(&frame[14..34], 0), 0xffff, "IPv4 checksum");
        let length = u32::try_from(frame.len() - 34).expect("short");
        assert_eq!(sum(&[&frame[26..34], &frame[34..]].concat(), 17 + length), 0xffff, "UDP checksum");
    }
    let _ = std::fs::remove_dir_all(folder);
}

/// Ones' complement sum.
fn sum(bytes: &[u8], start: u32) -> u32 {
    let mut sum = bytes
        .chunks(2)
        .fold(start, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

fn write(path: &Path, frames: &[&[u8]]) {
    let mut writer = PcapWriter::new(File::create(path).expect("writable")).expect("writable");
    for frame in frames {
        let len = u32::try_from(frame.len()).expect("short");
        writer.write_packet(&PcapPacket::new(Duration::ZERO, len, frame)).expect("writable");
    }
}

fn read(path: &Path) -> Vec<Vec<u8>> {
    let mut reader = PcapReader::new(File::open(path).expect("written")).expect("a capture file");
    let mut frames = Vec::new();
    while let Some(packet) = reader.next_packet() {
        frames.push(packet.expect("whole").data.into_owned());
    }
    frames
}

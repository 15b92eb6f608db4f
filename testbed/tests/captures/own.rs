//! Captures of our own: conversations, and frames of every kind that is not simply forwarded.

use erhu_testbed::packet::{Packet, arp_request, icmp_error, ip_protocol, ping, pong, raw, tcp, udp};
use erhu_testbed::pcap::Record;

/// Seconds since 1970 of their first packets.
const START_S: u64 = 1_600_000_000;

fn records(packets: impl IntoIterator<Item = Packet>) -> Vec<Record> {
    let frame = |(k, packet): (u64, Packet)| Record {
        time_ns: START_S * 1_000_000_000 + k * 10_000_000,
        data: packet.mac_to_default([2, 0, 0, 0, 0, 2]).bytes(),
    };
    (0..).zip(packets).map(frame).collect()
}

/// File names and frames.
pub fn captures() -> Vec<(&'static str, Vec<Record>)> {
    vec![("conversations.pcap", records(conversations())), ("oddities.pcap", records(oddities()))]
}

/// Both sides of a DNS query, a web request, a ping, and a connection that is refused.
fn conversations() -> Vec<Packet> {
    let (client, server) = ("10.0.0.5:40000", "192.0.2.1:80");
    let forth = |flags: &str, seq, ack| tcp(client, server).flags(flags).seq(seq).ack(ack);
    let back = |flags: &str, seq, ack| tcp(server, client).flags(flags).seq(seq).ack(ack);
    vec![
        udp("10.0.0.5:5353", "192.0.2.53:53").payload(b"where is example?"),
        udp("192.0.2.53:53", "10.0.0.5:5353").payload(b"at 192.0.2.1"),
        forth("S", 100, 0).tcp_options(&[2, 4, 5, 0xb4, 1, 3, 3, 7]),
        back("SA", 900, 101).tcp_options(&[2, 4, 5, 0xb4, 1, 3, 3, 7]),
        forth("A", 101, 901),
        forth("PA", 101, 901).payload(b"GET / HTTP/1.0\r\n\r\n"),
        back("PA", 901, 119).payload(b"HTTP/1.0 200 OK\r\n\r\n"),
        back("FA", 920, 119),
        forth("FA", 119, 921),
        back("A", 921, 120),
        ping("10.0.0.5", "192.0.2.1", 77).payload_len(56),
        pong("192.0.2.1", "10.0.0.5", 77).payload_len(56),
        tcp("10.0.0.5:40001", "192.0.2.1:81").flags("S").seq(7),
        tcp("192.0.2.1:81", "10.0.0.5:40001").flags("RA").ack(8),
    ]
}

/// Wrong, cut, fragmented, foreign and unsupported frames between sound ones.
fn oddities() -> Vec<Packet> {
    let good = || udp("10.0.0.5:6000", "192.0.2.1:6001").payload(b"sound");
    vec![
        good(),
        good().bad_checksum(),
        good().no_checksum(),
        good().bad_ip_checksum(),
        good().ttl(1),
        good().options(&[0x94, 4, 0, 0]),
        good().padding(&[0; 13]),
        good().cut(40),
        good().ip_byte(0, 0x44),
        good().udp_length(4),
        good().udp_length(400),
        good().fragment(0, true),
        good().fragment(8, false),
        tcp("10.0.0.5:6000", "192.0.2.1:6001").flags("SF"),
        tcp("10.0.0.5:6000", "192.0.2.1:6001").flags("SA"),
        tcp("10.0.0.5:6000", "192.0.2.1:6001").flags("S").data_offset(4),
        tcp("10.0.0.5:6000", "192.0.2.1:6001").flags("S").data_offset(15),
        icmp_error("10.0.0.5", "192.0.2.1", 3, 3).about(&udp("192.0.2.1:6001", "10.0.0.5:6000").l3()),
        icmp_error("10.0.0.5", "192.0.2.1", 3, 3).about(&udp("192.0.2.1:1", "10.0.0.5:2").l3()),
        pong("10.0.0.5", "192.0.2.1", 9),
        ip_protocol("10.0.0.5", "192.0.2.1", 47).payload_len(32),
        udp("10.0.0.5:6000", "224.0.0.251:5353"),
        udp("0.0.0.0:68", "255.255.255.255:67"),
        udp("127.0.0.1:1", "192.0.2.1:2"),
        arp_request("10.0.0.1", "10.0.0.5"),
        raw(0x86dd, &[0x60; 48]),
        good(),
    ]
}

//! What every test binary needs: one EAL of its own, a pool, frames.
//!
//! The EAL is once per process, so each file here has one test.

#![allow(dead_code)]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use erhu_dpdk::{Eal, EalArgs, Mbuf, MbufArray, Mempool, PoolConfig, RxQueue, TxQueue};

/// DPDK without huge pages, under a prefix nobody else has.
pub fn eal(test: &str) -> Eal {
    let args = EalArgs {
        no_huge: true,
        memory_mb: Some(64),
        ..EalArgs::new(format!("erhu-test-{test}-{}", std::process::id()))
    };
    Eal::init(&args).expect("DPDK starts")
}

/// Ends DPDK, all packets accounted for, and takes its runtime files away.
pub fn end(eal: Eal) {
    eal.end().expect("nothing is in use any more");
    remove_runtime_files();
}

/// What DPDK leaves behind.
pub fn remove_runtime_files() {
    let folder = erhu_dpdk::runtime_dir().expect("DPDK was started");
    let _ = std::fs::remove_dir_all(folder);
}

/// 2047 packets.
pub fn pool(eal: &Eal) -> Mempool {
    eal.pool(&PoolConfig::new("packets", 2047)).expect("memory is enough")
}

/// Whether the test may create network interfaces; says so where it may not.
pub fn is_root() -> bool {
    // SAFETY: reads a number.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Something `ip` made, and the words that take it away again, also when the test fails.
pub struct Made(Vec<String>);

impl Made {
    /// A network namespace.
    pub fn namespace(name: &str) -> Self {
        run("ip", &["netns", "add", name]);
        Self(["netns", "del", name].map(str::to_owned).to_vec())
    }

    /// A veth pair, both ends up.
    pub fn veth(one: &str, other: &str) -> Self {
        run("ip", &["link", "add", one, "type", "veth", "peer", "name", other]);
        for end in [one, other] {
            run("ip", &["link", "set", end, "up"]);
        }
        Self(["link", "del", one].map(str::to_owned).to_vec())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(&self.0).status();
    }
}

/// Runs a program and fails with its output if it fails.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program).args(arguments).output().expect("the program exists");
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Polls until `wanted` packets came, or fails after ten seconds.
pub fn receive<const N: usize>(queue: &mut RxQueue, wanted: usize) -> MbufArray<N> {
    let mut burst = MbufArray::new();
    let patience = Instant::now() + Duration::from_secs(10);
    while burst.len() < wanted {
        queue.poll(&mut burst);
        assert!(Instant::now() < patience, "{} of {wanted} packets came", burst.len());
    }
    burst
}

/// Sends all of `burst`, or fails after ten seconds.
pub fn send_all<const N: usize>(queue: &mut TxQueue, burst: &mut MbufArray<N>) {
    let patience = Instant::now() + Duration::from_secs(10);
    while !burst.is_empty() {
        queue.send(burst);
        assert!(Instant::now() < patience, "{} packets were not sent", burst.len());
    }
}

/// A broadcast frame of a local experimental Ethertype (IEEE 802), `len` bytes, `fill` after the header.
pub fn frame(fill: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![fill; len];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, fill]);
    frame[12..14].copy_from_slice(&0x88b5_u16.to_be_bytes());
    frame
}

/// Whether a packet is one of [`frame`]'s.
pub fn is_ours(packet: &Mbuf) -> bool {
    packet.data().get(12..14) == Some(&0x88b5_u16.to_be_bytes())
}

/// RFC 1071, over one piece.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

/// Turns an ARP request or an ICMP echo request for `address` into its answer, in place.
pub fn answer(frame: &mut [u8], mac: [u8; 6], address: Ipv4Addr) -> bool {
    let Some(kind) = frame.get(12..14).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]])) else {
        return false;
    };
    let answered = match kind {
        0x0806 if frame.len() >= 42 && frame[38..42] == address.octets() && frame[21] == 1 => {
            frame[21] = 2;
            frame.copy_within(22..32, 32);
            frame[22..28].copy_from_slice(&mac);
            frame[28..32].copy_from_slice(&address.octets());
            true
        }
        0x0800 if frame.len() >= 42 && frame[23] == 1 && frame[34] == 8 && frame[30..34] == address.octets() => {
            frame.copy_within(26..30, 30);
            frame[26..30].copy_from_slice(&address.octets());
            frame[34] = 0;
            frame[36..38].fill(0);
            let end = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            let checksum = internet_checksum(&frame[34..end]);
            frame[36..38].copy_from_slice(&checksum.to_be_bytes());
            true
        }
        _ => false,
    };
    if answered {
        frame.copy_within(6..12, 0);
        frame[6..12].copy_from_slice(&mac);
    }
    answered
}

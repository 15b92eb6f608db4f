//! The smallest router that translates, to show that the far side sees what is right and what is not.

#![allow(dead_code)]

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use erhu_dpdk::{Eal, EalArgs, MbufArray, Mempool, PoolConfig, Port, PortConfig, Queues};

/// DPDK without huge pages, under a prefix nobody else has.
pub fn eal(test: &str) -> Eal {
    let args = EalArgs {
        no_huge: true,
        memory_mb: Some(64),
        ..EalArgs::new(format!("erhu-farside-{test}-{}", std::process::id()))
    };
    Eal::init(&args).expect("DPDK starts")
}

/// What DPDK leaves behind.
pub fn remove_runtime_files() {
    let folder = erhu_dpdk::runtime_dir().expect("DPDK was started");
    let _ = std::fs::remove_dir_all(folder);
}

/// A folder for sockets, removed with this.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("erhu-farside-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the temporary folder is writable");
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Our binary; ended with this.
pub struct Farside(Option<Child>);

impl Farside {
    pub fn start(arguments: &[&str]) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_erhu-farside"))
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("cargo built it");
        Self(Some(child))
    }

    /// Waits for the line that tells its ports are started.
    pub fn wait_until_ready(&mut self) {
        let output = self.0.as_mut().and_then(|child| child.stdout.as_mut()).expect("it is piped");
        let mut line = [0; 6];
        output.read_exact(&mut line).expect("it says something");
        assert_eq!(&line, b"ready\n");
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.as_mut().is_some_and(|child| child.try_wait().expect("it is our child").is_some())
    }

    /// Exit status and report.
    pub fn outcome(mut self) -> (bool, serde_json::Value) {
        let output = self.0.take().expect("taken once").wait_with_output().expect("it is our child");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}")))
    }
}

impl Drop for Farside {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // Politely, so that it cleans up; it has ten seconds for that.
            let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
            let _ = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM));
            let patience = Instant::now() + Duration::from_secs(10);
            while Instant::now() < patience && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits until somebody listens at a socket: its file is there a moment before.
pub fn wait_for(path: &Path) {
    let patience = Instant::now() + Duration::from_secs(20);
    let name = path.to_str().expect("a path of our own");
    // Flags 0x10000: it takes connections (unix(7), proc(5)).
    let listens = |line: &str| line.ends_with(name) && line.split_whitespace().nth(3) == Some("00010000");
    while !std::fs::read_to_string("/proc/net/unix").is_ok_and(|sockets| sockets.lines().any(listens)) {
        assert!(Instant::now() < patience, "{} does not appear", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A virtio port on a vhost-user socket, started.
pub fn virtio(eal: &Eal, pool: &Mempool, number: u8, socket: &Path) -> (Port, Queues) {
    wait_for(socket);
    let device = format!("net_virtio_user{number},path={},queues=1", socket.display());
    let mut port = Port::open(eal, &device).expect("the socket answers");
    port.configure(&PortConfig::default(), pool).expect("one queue each way");
    let queues = port.start().expect("configured");
    (port, queues)
}

/// 4095 packets.
pub fn pool(eal: &Eal) -> Mempool {
    eal.pool(&PoolConfig::new("packets", 4095)).expect("memory is enough")
}

/// What the router does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    UdpChecksum,
    ForeignPool,
    SharedPort,
    OtherTenant,
    Loss,
}

pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Translates by VLAN; its gateway and outside address answer ARP.
pub struct Router {
    pub gateway: [u8; 4],
    pub outside: [u8; 4],
    pub target: [u8; 4],
    /// Outside address of each VLAN.
    pub pools: HashMap<u16, [u8; 4]>,
    pub fault: Fault,
    target_mac: Option<[u8; 6]>,
    by_inside: HashMap<(u16, [u8; 6]), u16>,
    by_outside: HashMap<([u8; 4], u16), Inside>,
    next_port: u16,
    forwarded: u64,
}

#[derive(Clone, Copy)]
struct Inside {
    vlan: u16,
    mac: [u8; 6],
    address: [u8; 4],
    port: [u8; 2],
}

impl Router {
    pub fn new(pools: &[(u16, [u8; 4])], fault: Fault) -> Self {
        Self {
            gateway: [10, 0, 0, 1],
            outside: [198, 51, 100, 1],
            target: [198, 51, 100, 7],
            pools: pools.iter().copied().collect(),
            fault,
            target_mac: None,
            by_inside: HashMap::new(),
            by_outside: HashMap::new(),
            next_port: 40_000,
            forwarded: 0,
        }
    }

    /// Forwards one burst from each side.
    pub fn turn(&mut self, pool: &Mempool, inside: &mut Queues, outside: &mut Queues) {
        let mut burst = MbufArray::<32>::new();
        let (mut to_inside, mut to_outside) = (MbufArray::<64>::new(), MbufArray::<64>::new());
        let put = |frame: Vec<u8>, there: &mut MbufArray<64>| {
            there.push(pool.copy_of(&frame).expect("the pool is large")).expect("room for all");
        };
        if self.target_mac.is_none() {
            put(arp(1, [0xff; 6], self.outside, [0; 6], self.target), &mut to_outside);
        }
        inside.rx[0].poll(&mut burst);
        for packet in burst.drain() {
            let Some((vlan, frame)) = untagged(packet.data()) else {
                continue;
            };
            if let Some(reply) = answer_arp(&frame, self.gateway) {
                put(tagged(vlan, &reply), &mut to_inside);
            } else if let Some(frame) = self.outwards(vlan, frame) {
                put(frame, &mut to_outside);
            }
        }
        outside.rx[0].poll(&mut burst);
        for packet in burst.drain() {
            let frame = packet.data().to_vec();
            if frame[12..14] == [8, 6] && frame[21] == 2 {
                self.target_mac = Some(frame[6..12].try_into().expect("six bytes"));
            } else if let Some(reply) = answer_arp(&frame, self.outside) {
                put(reply, &mut to_outside);
            } else if let Some(frame) = self.inwards(frame) {
                put(frame, &mut to_inside);
            }
        }
        for (queues, waiting) in [(inside, &mut to_inside), (outside, &mut to_outside)] {
            let patience = Instant::now() + Duration::from_millis(100);
            while !waiting.is_empty() && Instant::now() < patience {
                queues.tx[0].send(waiting);
            }
        }
    }

    fn outwards(&mut self, vlan: u16, mut frame: Vec<u8>) -> Option<Vec<u8>> {
        if !is_udp(&frame) {
            return None;
        }
        let address = *self.pools.get(&vlan)?;
        let source: [u8; 6] = [&frame[26..30], &frame[34..36]].concat().try_into().expect("six bytes");
        let inside = Inside {
            vlan,
            mac: frame[6..12].try_into().expect("six bytes"),
            address: frame[26..30].try_into().expect("four bytes"),
            port: frame[34..36].try_into().expect("two bytes"),
        };
        let shared = self.fault == Fault::SharedPort;
        let next = &mut self.next_port;
        let port = *self.by_inside.entry((vlan, source)).or_insert_with(|| {
            *next += u16::from(!shared);
            *next
        });
        self.by_outside.insert((address, port), inside);
        self.forwarded += 1;
        if self.fault == Fault::Loss && self.forwarded.is_multiple_of(10) {
            return None;
        }
        let address = if self.fault == Fault::ForeignPool { [203, 0, 113, 99] } else { address };
        frame[..6].copy_from_slice(&self.target_mac?);
        frame[26..30].copy_from_slice(&address);
        frame[34..36].copy_from_slice(&port.to_be_bytes());
        self.finish(&mut frame);
        Some(frame)
    }

    fn inwards(&mut self, mut frame: Vec<u8>) -> Option<Vec<u8>> {
        if !is_udp(&frame) {
            return None;
        }
        let address: [u8; 4] = frame[30..34].try_into().expect("four bytes");
        let port = u16::from_be_bytes([frame[36], frame[37]]);
        let inside = *self.by_outside.get(&(address, port))?;
        frame[..6].copy_from_slice(&inside.mac);
        frame[30..34].copy_from_slice(&inside.address);
        frame[36..38].copy_from_slice(&inside.port);
        self.finish(&mut frame);
        let vlan = if self.fault == Fault::OtherTenant { 300 - inside.vlan } else { inside.vlan };
        Some(tagged(vlan, &frame))
    }

    fn finish(&self, frame: &mut [u8]) {
        frame[6..12].copy_from_slice(&ROUTER_MAC);
        frame[22] -= 1;
        frame[24..26].fill(0);
        let header = !sum(&frame[14..34], 0);
        frame[24..26].copy_from_slice(&header.to_be_bytes());
        frame[40..42].fill(0);
        let len = u32::from(u16::from_be_bytes([frame[38], frame[39]]));
        let udp = !sum(&[&frame[26..34], &frame[34..]].concat(), 17 + len);
        let wrong = u16::from(self.fault == Fault::UdpChecksum);
        frame[40..42].copy_from_slice(&udp.wrapping_add(wrong).to_be_bytes());
    }
}

fn is_udp(frame: &[u8]) -> bool {
    frame.len() >= 42 && frame[12..14] == [8, 0] && frame[23] == 17
}

/// VLAN and frame without its tag.
fn untagged(frame: &[u8]) -> Option<(u16, Vec<u8>)> {
    (frame.get(12..14)? == [0x81, 0])
        .then(|| (u16::from_be_bytes([frame[14], frame[15]]) & 0xfff, [&frame[..12], &frame[16..]].concat()))
}

fn tagged(vlan: u16, frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &vlan.to_be_bytes(), &frame[12..]].concat()
}

fn arp(operation: u8, to: [u8; 6], from_address: [u8; 4], target: [u8; 6], target_address: [u8; 4]) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    [&to[..], &ROUTER_MAC, &[8, 6], &head, &ROUTER_MAC, &from_address, &target, &target_address].concat()
}

fn answer_arp(frame: &[u8], address: [u8; 4]) -> Option<Vec<u8>> {
    let asked = frame.get(12..14)? == [8, 6] && frame[21] == 1 && frame[38..42] == address;
    let asker: [u8; 6] = frame.get(22..28)?.try_into().ok()?;
    asked.then(|| arp(2, asker, address, asker, frame[28..32].try_into().expect("four bytes")))
}

/// Ones' complement sum.
pub fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = bytes
        .chunks(2)
        .fold(start, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

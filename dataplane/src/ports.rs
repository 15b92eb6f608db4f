//! Ports: opening, configuring, and sharing out their queues.

use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use erhu_dpdk::{Eal, Error, MbufArray, Mempool, Port, PortConfig, RssConfig, RxQueue, TxQueue};
use erhu_pipeline::policy::PortFacts;
use erhu_planes::protocol::PortStatus;
use tracing::{info, warn};

/// A transmit queue: a worker's own, or one that workers share where the port has too few.
pub enum Transmit {
    /// This worker's.
    Own(TxQueue),
    /// Shared by those that got none of their own.
    Shared(Arc<Mutex<TxQueue>>),
}

impl Transmit {
    /// Sends from the front; what did not fit stays.
    pub fn send<const N: usize>(&mut self, packets: &mut MbufArray<N>) -> usize {
        match self {
            Self::Own(queue) => queue.send(packets),
            Self::Shared(queue) => queue.lock().unwrap_or_else(PoisonError::into_inner).send(packets),
        }
    }
}

/// One worker's queues.
#[derive(Default)]
pub struct Queues {
    /// Receive queues with their port numbers.
    pub receive: Vec<(u16, RxQueue)>,
    /// Transmit queues by port number.
    pub transmit: Vec<Transmit>,
}

/// All ports, started.
pub struct Ports {
    /// In the configuration's order.
    pub ports: Vec<Port>,
    /// What the policy needs of them.
    pub facts: Vec<PortFacts>,
    /// What status requests show of them.
    pub status: Vec<PortStatus>,
}

impl Ports {
    /// Opens and starts every port, and shares the queues out over the workers.
    pub fn start(
        eal: &Eal,
        pool: &Mempool,
        ports: &[erhu_config::PortConfig],
        workers: usize,
    ) -> Result<(Self, Vec<Queues>), Error> {
        let mut queues: Vec<Queues> = (0..workers).map(|_| Queues::default()).collect();
        let mut all = Self { ports: Vec::new(), facts: Vec::new(), status: Vec::new() };
        for (number, wanted) in ports.iter().enumerate() {
            remove_stale_socket(&wanted.device);
            let mut port = Port::open(eal, &wanted.device)?;
            let facts = port.info()?;
            let count = u16::try_from(workers).unwrap_or(u16::MAX);
            let (rx, tx) = (count.min(facts.max_rx_queues).max(1), count.min(facts.max_tx_queues).max(1));
            let is_nic = is_pci(&wanted.device);
            let rss = (rx > 1 && facts.rss.is_some()).then(RssConfig::default);
            port.configure(
                &PortConfig {
                    rx_queues: rx,
                    tx_queues: tx,
                    rx_descriptors: wanted.rx_descriptors,
                    tx_descriptors: wanted.tx_descriptors,
                    mac: wanted.mac,
                    rss: rss.clone(),
                    rx_checksum: is_nic,
                    ..PortConfig::default()
                },
                pool,
            )?;
            let started = port.start()?;
            let mac = port.mac()?;
            let spread = if rss.is_some() { "addresses and ports" } else { "none" };
            info!(
                "port {}: {} ({}), MAC {}, {rx} receive and {tx} transmit queues, RSS: {spread}",
                wanted.name,
                wanted.device,
                facts.driver,
                mac_text(mac)
            );
            let number = u16::try_from(number).unwrap_or(u16::MAX);
            for (at, queue) in started.rx.into_iter().enumerate() {
                queues[at % workers].receive.push((number, queue));
            }
            share(started.tx, &mut queues);
            all.facts.push(PortFacts { name: wanted.name.clone(), mac });
            all.status.push(PortStatus {
                name: wanted.name.clone(),
                device: wanted.device.clone(),
                mac,
                link: false,
                speed: 0,
                queues: rx,
                rss: spread.into(),
            });
            all.ports.push(port);
        }
        Ok((all, queues))
    }

    /// Reads the links' state.
    pub fn refresh(&self, status: &mut [PortStatus]) {
        for (port, status) in self.ports.iter().zip(status) {
            if let Ok(link) = port.link() {
                status.link = link.is_up;
                status.speed = link.speed_mbps.unwrap_or(0);
            }
        }
    }
}

/// Whether a device is a PCI address, and so a NIC that is ours alone.
pub fn is_pci(device: &str) -> bool {
    device.starts_with(|c: char| c.is_ascii_hexdigit()) && device.contains(':')
}

/// The vhost-user socket that a virtual device would listen on.
fn listens_on(device: &str) -> Option<&Path> {
    let (name, options) = device.split_once(',')?;
    let option = |key: &str| options.split(',').find_map(|o| o.strip_prefix(key)?.strip_prefix('='));
    if name.starts_with("net_vhost") && option("client") != Some("1") {
        option("iface").map(Path::new)
    } else if name.starts_with("net_virtio_user") && option("server") == Some("1") {
        option("path").map(Path::new)
    } else {
        None
    }
}

/// Removes a socket that a killed process has left where a device is to listen: DPDK would refuse to start.
fn remove_stale_socket(device: &str) {
    let Some(path) = listens_on(device) else { return };
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    let is_stale = is_socket && UnixStream::connect(path).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
    if is_stale {
        match std::fs::remove_file(path) {
            Ok(()) => info!("removed {}, a socket that nobody listened on any more", path.display()),
            Err(e) => warn!("{}: a socket that nobody listens on stays: {e}", path.display()),
        }
    }
}

fn share(tx: Vec<TxQueue>, queues: &mut [Queues]) {
    let workers = queues.len();
    let mut tx: Vec<TxQueue> = tx;
    let shared = (tx.len() < workers).then(|| tx.pop()).flatten().map(|q| Arc::new(Mutex::new(q)));
    let mut own = tx.into_iter();
    for worker in queues {
        let transmit = match (own.next(), &shared) {
            (Some(queue), _) => Transmit::Own(queue),
            (None, Some(queue)) => Transmit::Shared(queue.clone()),
            (None, None) => continue,
        };
        worker.transmit.push(transmit);
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_virtual_device_that_listens_is_known_by_its_options() {
        let on = |device| listens_on(device).map(|path| path.display().to_string());
        assert_eq!(on("net_vhost0,iface=/run/lan.sock,queues=2").as_deref(), Some("/run/lan.sock"));
        assert_eq!(on("net_virtio_user0,server=1,path=/run/lan.sock").as_deref(), Some("/run/lan.sock"));
        for connects in
            ["net_vhost0,iface=/run/lan.sock,client=1", "net_virtio_user0,path=/run/lan.sock", "0000:3b:00.0"]
        {
            assert_eq!(on(connects), None, "{connects}");
        }
    }

    #[test]
    fn only_a_socket_that_nobody_listens_on_is_removed() {
        let folder = std::env::temp_dir().join(format!("erhu-ports-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (path, file) = (folder.join("lan.sock"), folder.join("file"));
        let device = |path: &Path| format!("net_vhost0,iface={}", path.display());
        let listener = UnixListener::bind(&path).unwrap();
        remove_stale_socket(&device(&path));
        assert!(path.exists());
        drop(listener);
        remove_stale_socket(&device(&path));
        assert!(!path.exists());
        std::fs::write(&file, "not a socket").unwrap();
        remove_stale_socket(&device(&file));
        assert!(file.exists());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

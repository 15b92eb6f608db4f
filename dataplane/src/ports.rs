//! Ports: opening, configuring, and sharing out their queues.

use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use erhu_dpdk::{
    Eal, Error, MbufArray, Mempool, Port, PortConfig, RssCapability, RssConfig, RssHash, RxQueue, TxQueue,
};
use erhu_pipeline::policy::PortFacts;
use erhu_pipeline::rss::DEFAULT_KEY;
use erhu_pipeline::steering::{self, Fields, Role, Spread};
use erhu_planes::protocol::PortStatus;
use tracing::{debug, info, warn};

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

/// How a port spreads packets over its receive queues, and can.
struct Steered {
    /// `None` with one queue, or where it cannot spread.
    capability: Option<RssCapability>,
    queues: u16,
    /// What it was asked to hash last.
    asked: Option<Fields>,
    /// What it does, where it says so.
    spread: Option<Spread>,
}

impl Steered {
    fn can(&self, fields: Fields) -> bool {
        let wanted = match fields {
            Fields::Plain => RssHash::NONE,
            Fields::Source => RssHash::IPV4 | RssHash::L3_SRC_ONLY,
            Fields::Destination => {
                RssHash::IPV4_TCP | RssHash::IPV4_UDP | RssHash::L3_DST_ONLY | RssHash::L4_DST_ONLY
            }
        };
        self.capability.is_some_and(|able| able.table_len > 0 && able.hash.contains(wanted))
    }

    fn name(&self) -> &'static str {
        match (&self.spread, self.capability) {
            (Some(spread), _) => spread.fields().name(),
            (None, Some(_)) => "plain, unread",
            (None, None) => "none",
        }
    }
}

/// What DPDK calls the fields. IPv4 packets of TCP and UDP count as IPv4 where their own types are left out.
fn hash_of(fields: Fields) -> RssHash {
    let by_address = RssHash::IPV4 | RssHash::IPV4_FRAGMENT | RssHash::IPV4_OTHER;
    let by_address = by_address | RssHash::IPV6 | RssHash::IPV6_FRAGMENT | RssHash::IPV6_OTHER;
    let by_port = RssHash::IPV4_TCP | RssHash::IPV4_UDP | RssHash::IPV6_TCP | RssHash::IPV6_UDP;
    match fields {
        Fields::Plain => RssHash::ALL_IP,
        Fields::Source => by_address | RssHash::L3_SRC_ONLY,
        Fields::Destination => by_address | by_port | RssHash::L3_DST_ONLY | RssHash::L4_DST_ONLY,
    }
}

/// Whether a port that says it hashes these types hashes the fields of TCP and UDP over IPv4.
fn hashes(said: RssHash, fields: Fields) -> bool {
    let ports = RssHash::IPV4_TCP | RssHash::IPV4_UDP;
    let modifiers = RssHash::L3_SRC_ONLY | RssHash::L3_DST_ONLY | RssHash::L4_SRC_ONLY | RssHash::L4_DST_ONLY;
    let (by_port, only) = match fields {
        Fields::Plain => (ports, RssHash::NONE),
        Fields::Source => (RssHash::NONE, RssHash::L3_SRC_ONLY),
        Fields::Destination => (ports, RssHash::L3_DST_ONLY | RssHash::L4_DST_ONLY),
    };
    said & ports == by_port && said & modifiers == only
}

/// Programs a started port, and reads back what it took. `None` where it does not say, or does something else.
fn program(port: &mut Port, able: RssCapability, queues: u16, fields: Fields, workers: usize) -> Option<Spread> {
    let hash = able.hash & hash_of(fields);
    let key: Vec<u8> = DEFAULT_KEY.iter().copied().cycle().take(usize::from(able.key_len)).collect();
    if port.set_rss(hash, Some(&key)).is_err() && port.set_rss(hash, None).is_err() {
        debug!("{}: it keeps hashing what it did", port.device());
    }
    let even: Vec<u16> = (0..able.table_len).map(|entry| entry % queues).collect();
    if let Err(e) = port.set_redirection_table(&even) {
        debug!("{}: it keeps its redirection table: {e}", port.device());
    }
    let (said, key) = port.rss().ok()?;
    let table = port.redirection_table().ok()?;
    let is_sound = key.len() >= DEFAULT_KEY.len() && table.iter().all(|queue| *queue < queues);
    let worker_of = |queue: u16| u16::try_from(usize::from(queue) % workers).unwrap_or(0);
    if !is_sound || !hashes(said, fields) {
        return None;
    }
    Spread::new(fields, &key, table.into_iter().map(worker_of))
}

/// All ports, started.
pub struct Ports {
    /// In the configuration's order.
    pub ports: Vec<Port>,
    steered: Vec<Steered>,
    workers: usize,
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
        let mut all = Self { ports: Vec::new(), steered: Vec::new(), workers, facts: Vec::new(), status: Vec::new() };
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
            let mut steered = Steered { capability: facts.rss, queues: rx, asked: None, spread: None };
            if rss.is_none() {
                steered.capability = None;
            }
            info!(
                "port {}: {} ({}), MAC {}, {rx} receive and {tx} transmit queues",
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
                rss: steered.name().into(),
            });
            all.ports.push(port);
            all.steered.push(steered);
        }
        Ok((all, queues))
    }

    /// Has each port hash what suits its role, and says how each spreads packets over workers.
    pub fn steer(&mut self, roles: &[Role]) -> Vec<Option<Spread>> {
        let fields = steering::fields(roles, |at, fields| self.steered.get(at).is_some_and(|s| s.can(fields)));
        let ports = self.ports.iter_mut().zip(&mut self.steered).zip(&self.facts).zip(fields);
        for (((port, steered), facts), fields) in ports {
            let Some(able) = steered.capability.filter(|_| steered.asked != Some(fields)) else { continue };
            steered.asked = Some(fields);
            steered.spread = program(port, able, steered.queues, fields, self.workers);
            if steered.spread.is_none() && fields != Fields::Plain {
                warn!("port {}: it does not hash {}, though it said it can", facts.name, fields.name());
                steered.spread = program(port, able, steered.queues, Fields::Plain, self.workers);
            }
            info!("port {}: RSS {}", facts.name, steered.name());
        }
        self.steered.iter().map(|steered| steered.spread.clone()).collect()
    }

    /// Reads the links' state.
    pub fn refresh(&self, status: &mut [PortStatus]) {
        for (steered, status) in self.steered.iter().zip(&mut *status) {
            steered.name().clone_into(&mut status.rss);
        }
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

    use erhu_dpdk::{EalArgs, PoolConfig};
    use erhu_pipeline::rss::Hashed;

    use super::*;

    const ALL: RssHash = RssHash(u64::MAX);

    fn steered(hash: RssHash, table_len: u16) -> Steered {
        let capability = Some(RssCapability { hash, key_len: 40, table_len });
        Steered { capability, queues: 2, asked: None, spread: None }
    }

    #[test]
    fn host_affinity_needs_both_modifiers_and_a_table_that_can_be_read() {
        let can = |s: &Steered| [Fields::Source, Fields::Destination].map(|fields| s.can(fields));
        assert_eq!(can(&steered(ALL, 128)), [true; 2]);
        assert_eq!(can(&steered(ALL, 0)), [false; 2]);
        assert_eq!(can(&steered(RssHash::ALL_IP, 128)), [false; 2]);
        assert_eq!(can(&steered(RssHash::ALL_IP | RssHash::L3_SRC_ONLY, 128)), [true, false]);
        assert_eq!(can(&steered(RssHash::ALL_IP | RssHash::L3_DST_ONLY, 128)), [false; 2]);
        let destination = RssHash::ALL_IP | RssHash::L3_DST_ONLY | RssHash::L4_DST_ONLY;
        assert_eq!(can(&steered(destination, 128)), [false, true]);
        let none = Steered { capability: None, queues: 1, asked: None, spread: None };
        assert_eq!((can(&none), none.name()), ([false; 2], "none"));
    }

    #[test]
    fn what_a_port_says_it_hashes_is_what_was_asked_or_it_is_not_trusted() {
        for fields in [Fields::Plain, Fields::Source, Fields::Destination] {
            for said in [Fields::Plain, Fields::Source, Fields::Destination] {
                assert_eq!(hashes(hash_of(said), fields), said == fields, "{said:?} for {fields:?}");
            }
        }
        assert!(!hashes(hash_of(Fields::Plain) | RssHash::L4_SRC_ONLY, Fields::Plain));
        assert!(!hashes(RssHash::IPV4, Fields::Plain), "addresses only");
    }

    /// `net_null` takes types, key and table as a NIC does, but no modifiers.
    #[test]
    fn a_port_is_programmed_once_and_what_is_read_back_is_used() {
        let args = EalArgs {
            no_huge: true,
            memory_mb: Some(64),
            ..EalArgs::new(format!("erhu-ports-{}", std::process::id()))
        };
        let eal = Eal::init(&args).unwrap();
        let pool = eal.pool(&PoolConfig::from_memory(&eal, "packets", 16 << 20)).unwrap();
        let wanted = |name: &str, device: &str| erhu_config::PortConfig {
            name: name.into(),
            device: device.into(),
            rx_descriptors: 64,
            tx_descriptors: 64,
            mac: None,
        };
        let wanted = [wanted("lan", "net_null0"), wanted("wan", "net_null1")];
        let (mut ports, queues) = Ports::start(&eal, &pool, &wanted, 2).unwrap();
        assert_eq!(queues.iter().map(|q| q.receive.len()).collect::<Vec<_>>(), [2, 2]);
        let spreads = ports.steer(&[Role::Inside, Role::Outside]);
        let spread = spreads[1].clone().unwrap();
        assert_eq!(spread.fields(), Fields::Plain);
        let table = ports.ports[1].redirection_table().unwrap();
        assert_eq!(Some(&spread), Spread::new(Fields::Plain, &DEFAULT_KEY, table).as_ref());
        // The verification suite's first packet: 0x51ccc178 is even.
        let ports_of = (2794, 1766);
        let packet = Hashed { src: [66, 9, 149, 187].into(), dst: [161, 142, 100, 80].into(), ports: Some(ports_of) };
        assert_eq!(spread.worker_of(&packet), 0);
        let mut status = ports.status.clone();
        ports.refresh(&mut status);
        assert_eq!(status[1].rss, "plain");
        // Somebody else's table: nothing is asked again, so what was read stays.
        let ones = vec![1; usize::from(ports.steered[1].capability.unwrap().table_len)];
        ports.ports[1].set_redirection_table(&ones).unwrap();
        assert_eq!(ports.steer(&[Role::Inside, Role::Outside]), spreads);
        assert_eq!(ports.ports[1].redirection_table().unwrap(), ones);
        drop(queues);
        drop(ports);
        if let Some(folder) = erhu_dpdk::runtime_dir() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }

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

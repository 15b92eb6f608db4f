//! Ports: from a device's name to queues.

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use rte_sys as sys;

use crate::eal::{Eal, EalInner, is_pci_address};
use crate::error::{Error, check, words};
use crate::pool::Mempool;
use crate::queue::{RxQueue, TxQueue};
use crate::rss::{RssCapability, RssConfig, RssHash};

/// DPDK's number of a port, unique among those open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

/// What a port is configured with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortConfig {
    /// Receive queues.
    pub rx_queues: u16,
    /// Transmit queues.
    pub tx_queues: u16,
    /// Packets a receive queue holds; adjusted to what the device allows.
    pub rx_descriptors: u16,
    /// Packets a transmit queue holds; adjusted to what the device allows.
    pub tx_descriptors: u16,
    /// The port's own address; `None` keeps the device's. A device that cannot change its address
    /// receives in promiscuous mode instead.
    pub mac: Option<[u8; 6]>,
    /// Bytes of an IP packet, without link headers; `None` keeps the device's (1500 mostly).
    pub mtu: Option<u16>,
    /// Spread packets over the receive queues. Without it a device with several queues decides itself.
    pub rss: Option<RssConfig>,
    /// Receive frames for every address.
    pub promiscuous: bool,
    /// Receive all multicast frames.
    pub all_multicast: bool,
    /// Let the device verify checksums where it can ([`Mbuf::ip_checksum`](crate::Mbuf::ip_checksum)).
    /// Virtio peers may then leave checksums unfilled, and `net_tap` verifies in software.
    pub rx_checksum: bool,
    /// Fast free of sent packets, where the device can.
    pub fast_free: Option<SinglePool>,
}

impl Default for PortConfig {
    /// One queue each way, 1024 descriptors, the device's own address, all multicast.
    fn default() -> Self {
        Self {
            rx_queues: 1,
            tx_queues: 1,
            rx_descriptors: 1024,
            tx_descriptors: 1024,
            mac: None,
            mtu: None,
            rss: None,
            promiscuous: false,
            all_multicast: true,
            rx_checksum: false,
            fast_free: None,
        }
    }
}

/// The promise that lets a device free what it sent in bulk, without looking at each packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinglePool(());

impl SinglePool {
    /// Makes the promise.
    ///
    /// # Safety
    ///
    /// All packets ever sent on one queue of the port come from one pool.
    pub unsafe fn promise() -> Self {
        Self(())
    }
}

/// What a device says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortInfo {
    /// Name of the driver, e.g. `net_tap`.
    pub driver: String,
    /// Receive queues it has at most.
    pub max_rx_queues: u16,
    /// Transmit queues it has at most.
    pub max_tx_queues: u16,
    /// Largest MTU in bytes.
    pub max_mtu: u16,
    /// NUMA node, where known.
    pub numa_node: Option<u16>,
    /// Receive-side scaling, where it has any.
    pub rss: Option<RssCapability>,
    /// DPDK's `RTE_ETH_RX_OFFLOAD_*` bits.
    pub rx_offloads: u64,
    /// DPDK's `RTE_ETH_TX_OFFLOAD_*` bits.
    pub tx_offloads: u64,
}

/// State of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Whether it is up.
    pub is_up: bool,
    /// Speed in Mbit/s, where known.
    pub speed_mbps: Option<u32>,
    /// Whether both directions work at once.
    pub is_full_duplex: bool,
}

/// A device's counters, since it was configured or [`Port::reset_stats`]. Bytes are of Ethernet
/// frames; whether the FCS counts depends on the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets lost because a receive queue was full.
    pub rx_missed: u64,
    /// Packets received damaged.
    pub rx_errors: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Times no packet could be taken from the pool.
    pub rx_no_mbuf: u64,
}

/// The queues of a started port, in order of their numbers.
pub struct Queues {
    /// Receive queues.
    pub rx: Vec<RxQueue>,
    /// Transmit queues.
    pub tx: Vec<TxQueue>,
}

/// A port of this process. One handle per device; control calls only, from one thread at a time.
pub struct Port {
    open: Arc<OpenPort>,
    configured: Option<Configured>,
    _not_sync: PhantomData<Cell<()>>,
}

struct Configured {
    rx_queues: u16,
    tx_queues: u16,
    /// Address the device could not take; see `PortConfig::mac`.
    mac_override: Option<[u8; 6]>,
}

/// Stops and closes the device when neither handle nor queue is left.
pub(crate) struct OpenPort {
    pub(crate) id: PortId,
    device: String,
    started: AtomicBool,
    eal: Arc<EalInner>,
}

impl Port {
    /// Opens a device: a PCI address, or a vdev string as given to the EAL. A vdev that the EAL was not
    /// started with is made now.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchPort`], [`Error::AlreadyOpen`].
    pub fn open(eal: &Eal, device: &str) -> Result<Self, Error> {
        let name = CString::new(device.split(',').next().unwrap_or(device))?;
        let id = match port_by_name(&name) {
            Some(id) => id,
            None => {
                let arguments = CString::new(device)?;
                // SAFETY: the EAL is initialised; the driver copies the string.
                let returned = unsafe { sys::rte_dev_probe(arguments.as_ptr()) };
                let refuse = |errno: i32| Error::NoSuchPort { device: device.to_owned(), message: words(errno) };
                if returned < 0 {
                    return Err(refuse(returned.saturating_neg()));
                }
                port_by_name(&name).ok_or_else(|| refuse(libc::ENODEV))?
            }
        };
        if !eal.inner.open_ports.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
            return Err(Error::AlreadyOpen { device: device.to_owned() });
        }
        Ok(Self {
            open: Arc::new(OpenPort {
                id: PortId(id),
                device: device.to_owned(),
                started: AtomicBool::new(false),
                eal: Arc::clone(&eal.inner),
            }),
            configured: None,
            _not_sync: PhantomData,
        })
    }

    /// The port's number.
    pub fn id(&self) -> PortId {
        self.open.id
    }

    /// The name it was opened by.
    pub fn device(&self) -> &str {
        &self.open.device
    }

    /// What the device says about itself.
    ///
    /// # Errors
    ///
    /// When the device is gone.
    pub fn info(&self) -> Result<PortInfo, Error> {
        let info = self.raw_info()?;
        let driver = if info.driver_name.is_null() {
            String::new()
        } else {
            // SAFETY: non-null, it is a static string of the driver.
            unsafe { CStr::from_ptr(info.driver_name) }.to_string_lossy().into_owned()
        };
        Ok(PortInfo {
            driver,
            max_rx_queues: info.max_rx_queues,
            max_tx_queues: info.max_tx_queues,
            max_mtu: info.max_mtu,
            numa_node: u16::try_from(self.numa_node()).ok(),
            rss: (info.flow_type_rss_offloads != 0).then_some(RssCapability {
                hash: RssHash(info.flow_type_rss_offloads),
                key_len: u8::try_from(key_len(&info)).unwrap_or(u8::MAX),
                table_len: info.reta_size,
            }),
            rx_offloads: info.rx_offload_capa,
            tx_offloads: info.tx_offload_capa,
        })
    }

    /// Configures a stopped port; received packets come from `pool`. Can be repeated.
    ///
    /// # Errors
    ///
    /// [`Error::WrongState`] while started, [`Error::QueuesInUse`], [`Error::TooFewQueues`],
    /// [`Error::Rss`], or what the driver says.
    pub fn configure(&mut self, config: &PortConfig, pool: &Mempool) -> Result<(), Error> {
        self.expect_unshared()?;
        if self.is_started() {
            return Err(self.wrong_state("it has to be stopped first"));
        }
        let info = self.raw_info()?;
        self.expect_queues("receive", config.rx_queues, info.max_rx_queues)?;
        self.expect_queues("transmit", config.tx_queues, info.max_tx_queues)?;
        self.configured = None;

        let mut conf = sys::rte_eth_conf::default();
        conf.rxmode.mtu = u32::from(config.mtu.unwrap_or(0));
        conf.rxmode.offloads = info.rx_offload_capa & wanted_rx_offloads(config, pool);
        conf.txmode.offloads = info.tx_offload_capa & sys::RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
        if config.fast_free.is_some() {
            conf.txmode.offloads |= info.tx_offload_capa & sys::RTE_ETH_TX_OFFLOAD_MBUF_FAST_FREE;
        }
        // Lives until rte_eth_dev_configure has copied it.
        let mut key = Vec::new();
        if let Some(rss) = &config.rss {
            self.add_rss(rss, &info, &mut conf, &mut key)?;
        }

        let (mut rx_descriptors, mut tx_descriptors) = (config.rx_descriptors, config.tx_descriptors);
        let id = self.open.id.0;
        // SAFETY: the port exists and is stopped, and no other thread controls it; `conf`, the key it
        // points to and the two counts outlive the calls.
        let (configured, adjusted) = unsafe {
            (
                sys::rte_eth_dev_configure(id, config.rx_queues, config.tx_queues, &raw const conf),
                sys::rte_eth_dev_adjust_nb_rx_tx_desc(id, &raw mut rx_descriptors, &raw mut tx_descriptors),
            )
        };
        self.check("rte_eth_dev_configure", configured)?;
        self.check("rte_eth_dev_adjust_nb_rx_tx_desc", adjusted)?;
        drop(key);

        // -1, unknown, becomes SOCKET_ID_ANY, which is the same bits.
        let node = u32::try_from(self.numa_node()).unwrap_or(u32::MAX);
        for queue in 0..config.rx_queues {
            // SAFETY: the port is configured with that many queues; null asks for the driver's default
            // thresholds; the pool lives as long as the EAL, and so longer than the port.
            let returned = unsafe {
                sys::rte_eth_rx_queue_setup(id, queue, rx_descriptors, node, std::ptr::null(), pool.raw.as_ptr())
            };
            self.check("rte_eth_rx_queue_setup", returned)?;
        }
        for queue in 0..config.tx_queues {
            // SAFETY: as above.
            let returned = unsafe { sys::rte_eth_tx_queue_setup(id, queue, tx_descriptors, node, std::ptr::null()) };
            self.check("rte_eth_tx_queue_setup", returned)?;
        }
        let mac_override = config.mac.map(|mac| self.set_mac(mac)).transpose()?.flatten();
        self.set_filters(config.promiscuous || mac_override.is_some(), config.all_multicast)?;
        self.configured = Some(Configured { rx_queues: config.rx_queues, tx_queues: config.tx_queues, mac_override });
        Ok(())
    }

    /// Starts a configured port and hands out its queues.
    ///
    /// # Errors
    ///
    /// [`Error::WrongState`] when not configured or started already, or what the driver says.
    pub fn start(&mut self) -> Result<Queues, Error> {
        let Some(configured) = &self.configured else {
            return Err(self.wrong_state("it has to be configured first"));
        };
        if self.is_started() {
            return Err(self.wrong_state("it is started already"));
        }
        // SAFETY: the port is configured, stopped, and no other thread controls it.
        let returned = unsafe { sys::rte_eth_dev_start(self.open.id.0) };
        self.check("rte_eth_dev_start", returned)?;
        self.open.started.store(true, Ordering::Release);
        Ok(Queues {
            rx: (0..configured.rx_queues).map(|queue| RxQueue::new(Arc::clone(&self.open), queue)).collect(),
            tx: (0..configured.tx_queues).map(|queue| TxQueue::new(Arc::clone(&self.open), queue)).collect(),
        })
    }

    /// Stops the port. It can be started or configured again.
    ///
    /// # Errors
    ///
    /// [`Error::QueuesInUse`] while one of its queues exists, or what the driver says.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.expect_unshared()?;
        if self.open.started.swap(false, Ordering::AcqRel) {
            // SAFETY: no queue exists, so nobody polls or sends.
            let returned = unsafe { sys::rte_eth_dev_stop(self.open.id.0) };
            self.check("rte_eth_dev_stop", returned)?;
        }
        Ok(())
    }

    /// Stops and closes the port now. A vdev disappears, and can be opened anew.
    ///
    /// # Errors
    ///
    /// [`Error::QueuesInUse`]: it then closes with its last queue.
    pub fn close(mut self) -> Result<(), Error> {
        self.stop()
    }

    /// Whether it is started.
    pub fn is_started(&self) -> bool {
        self.open.started.load(Ordering::Acquire)
    }

    /// The port's own address.
    ///
    /// # Errors
    ///
    /// When the device is gone.
    pub fn mac(&self) -> Result<[u8; 6], Error> {
        if let Some(mac) = self.configured.as_ref().and_then(|configured| configured.mac_override) {
            return Ok(mac);
        }
        let mut address = sys::rte_ether_addr::default();
        // SAFETY: `address` is writable.
        let returned = unsafe { sys::rte_eth_macaddr_get(self.open.id.0, &raw mut address) };
        self.check("rte_eth_macaddr_get", returned)?;
        Ok(address.addr_bytes)
    }

    /// Bytes of an IP packet the port carries.
    ///
    /// # Errors
    ///
    /// When the device is gone.
    pub fn mtu(&self) -> Result<u16, Error> {
        let mut mtu = 0;
        // SAFETY: `mtu` is writable.
        let returned = unsafe { sys::rte_eth_dev_get_mtu(self.open.id.0, &raw mut mtu) };
        self.check("rte_eth_dev_get_mtu", returned)?;
        Ok(mtu)
    }

    /// State of the link, without waiting for it.
    ///
    /// # Errors
    ///
    /// When the device cannot tell.
    pub fn link(&self) -> Result<Link, Error> {
        let mut link = sys::rte_eth_link::default();
        // SAFETY: `link` is writable.
        let returned = unsafe { sys::rte_eth_link_get_nowait(self.open.id.0, &raw mut link) };
        self.check("rte_eth_link_get_nowait", returned)?;
        let known = ![sys::RTE_ETH_SPEED_NUM_NONE, sys::RTE_ETH_SPEED_NUM_UNKNOWN].contains(&link.link_speed);
        Ok(Link {
            is_up: u32::from(link.link_status()) == sys::RTE_ETH_LINK_UP,
            speed_mbps: known.then_some(link.link_speed),
            is_full_duplex: u32::from(link.link_duplex()) == sys::RTE_ETH_LINK_FULL_DUPLEX,
        })
    }

    /// The device's counters.
    ///
    /// # Errors
    ///
    /// When it has none.
    pub fn stats(&self) -> Result<PortStats, Error> {
        let mut stats = sys::rte_eth_stats::default();
        // SAFETY: `stats` is writable.
        let returned = unsafe { sys::rte_eth_stats_get(self.open.id.0, &raw mut stats) };
        self.check("rte_eth_stats_get", returned)?;
        Ok(PortStats {
            rx_packets: stats.ipackets,
            tx_packets: stats.opackets,
            rx_bytes: stats.ibytes,
            tx_bytes: stats.obytes,
            rx_missed: stats.imissed,
            rx_errors: stats.ierrors,
            tx_errors: stats.oerrors,
            rx_no_mbuf: stats.rx_nombuf,
        })
    }

    /// Sets the device's counters to zero.
    ///
    /// # Errors
    ///
    /// When it cannot.
    pub fn reset_stats(&mut self) -> Result<(), Error> {
        // SAFETY: the port exists.
        let returned = unsafe { sys::rte_eth_stats_reset(self.open.id.0) };
        self.check("rte_eth_stats_reset", returned)
    }

    /// What a configured port hashes, and with which key.
    ///
    /// # Errors
    ///
    /// [`Error::Dpdk`] where the driver cannot tell.
    pub fn rss(&self) -> Result<(RssHash, Vec<u8>), Error> {
        // Longer than any key: drivers write their own length, not ours.
        let mut key = vec![0; usize::from(u8::MAX)];
        let mut conf =
            sys::rte_eth_rss_conf { rss_key: key.as_mut_ptr(), rss_key_len: u8::MAX, ..Default::default() };
        // SAFETY: `conf` is writable and points to as many bytes as it says.
        let returned = unsafe { sys::rte_eth_dev_rss_hash_conf_get(self.open.id.0, &raw mut conf) };
        self.check("rte_eth_dev_rss_hash_conf_get", returned)?;
        let said = usize::from(conf.rss_key_len);
        let listed = key_len(&self.raw_info()?);
        // Drivers that leave the length alone mean the one they list.
        key.truncate(if said == usize::from(u8::MAX) { listed } else { said });
        Ok((RssHash(conf.rss_hf), key))
    }

    /// Changes what is hashed, and the key where one is given, of a configured port.
    ///
    /// # Errors
    ///
    /// [`Error::Dpdk`] where the driver cannot.
    pub fn set_rss(&mut self, hash: RssHash, key: Option<&[u8]>) -> Result<(), Error> {
        let info = self.raw_info()?;
        let mut conf = sys::rte_eth_rss_conf { rss_hf: hash.0, ..Default::default() };
        let mut buffer = Vec::new();
        if let Some(key) = key {
            self.add_key(key, &info, &mut conf, &mut buffer)?;
        }
        // SAFETY: `conf` and the key it points to are writable and outlive the call.
        let returned = unsafe { sys::rte_eth_dev_rss_hash_update(self.open.id.0, &raw mut conf) };
        self.check("rte_eth_dev_rss_hash_update", returned)
    }

    /// The redirection table: entry `hash % length` is the queue a packet arrives on.
    ///
    /// # Errors
    ///
    /// [`Error::Rss`] where there is none, [`Error::Dpdk`] where it cannot be read.
    pub fn redirection_table(&self) -> Result<Vec<u16>, Error> {
        let len = self.table_len()?;
        let mut groups = self.table_groups(len, |_| 0);
        // SAFETY: `groups` is a writable array that covers `len` entries.
        let returned = unsafe { sys::rte_eth_dev_rss_reta_query(self.open.id.0, groups.as_mut_ptr(), len) };
        self.check("rte_eth_dev_rss_reta_query", returned)?;
        Ok(groups.iter().flat_map(|group| group.reta).take(usize::from(len)).collect())
    }

    /// Replaces the redirection table of a started port.
    ///
    /// # Errors
    ///
    /// [`Error::Rss`] when `queues` has not its length or names a queue there is not; [`Error::Dpdk`].
    pub fn set_redirection_table(&mut self, queues: &[u16]) -> Result<(), Error> {
        let len = self.table_len()?;
        let configured = self.configured.as_ref().map_or(0, |configured| configured.rx_queues);
        if queues.len() != usize::from(len) {
            return Err(self.rss_error(format!("the table has {len} entries, not {}", queues.len())));
        }
        if let Some(queue) = queues.iter().find(|&&queue| queue >= configured) {
            return Err(self.rss_error(format!("there is no queue {queue}, only {configured}")));
        }
        let mut groups = self.table_groups(len, |entry| queues.get(entry).copied().unwrap_or(0));
        // SAFETY: as in `redirection_table`.
        let returned = unsafe { sys::rte_eth_dev_rss_reta_update(self.open.id.0, groups.as_mut_ptr(), len) };
        self.check("rte_eth_dev_rss_reta_update", returned)
    }

    fn table_len(&self) -> Result<u16, Error> {
        match self.raw_info()?.reta_size {
            0 => Err(self.rss_error("the device has no redirection table".to_owned())),
            len => Ok(len),
        }
    }

    /// DPDK's form of a table: groups of 64 entries, each with a mask of those meant.
    #[allow(clippy::unused_self)]
    fn table_groups(&self, len: u16, queue_of: impl Fn(usize) -> u16) -> Vec<sys::rte_eth_rss_reta_entry64> {
        const GROUP: usize = sys::RTE_ETH_RETA_GROUP_SIZE as usize;
        (0..usize::from(len))
            .step_by(GROUP)
            .map(|first| {
                let mut group = sys::rte_eth_rss_reta_entry64::default();
                for (offset, entry) in (first..usize::from(len)).take(GROUP).enumerate() {
                    group.mask |= 1 << offset;
                    group.reta[offset] = queue_of(entry);
                }
                group
            })
            .collect()
    }

    fn add_rss(
        &self,
        rss: &RssConfig,
        info: &sys::rte_eth_dev_info,
        conf: &mut sys::rte_eth_conf,
        key: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let able = RssHash(info.flow_type_rss_offloads);
        if rss.exact && !able.contains(rss.hash) {
            return Err(self.rss_error(format!("it can hash {:#x}, not all of {:#x}", able.0, rss.hash.0)));
        }
        let hash = able & rss.hash;
        if hash.is_empty() {
            return Ok(());
        }
        conf.rxmode.mq_mode = sys::RTE_ETH_MQ_RX_RSS;
        conf.rxmode.offloads |= info.rx_offload_capa & sys::RTE_ETH_RX_OFFLOAD_RSS_HASH;
        conf.rx_adv_conf.rss_conf.rss_hf = hash.0;
        match &rss.key {
            Some(wanted) => self.add_key(wanted, info, &mut conf.rx_adv_conf.rss_conf, key),
            None => Ok(()),
        }
    }

    /// Points `conf` at a copy of `key` in `buffer`.
    fn add_key(
        &self,
        key: &[u8],
        info: &sys::rte_eth_dev_info,
        conf: &mut sys::rte_eth_rss_conf,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let needed = key_len(info);
        if key.len() != needed {
            return Err(self.rss_error(format!("its key has {needed} bytes, not {}", key.len())));
        }
        buffer.extend_from_slice(key);
        // Some drivers read their own length, whatever we say.
        buffer.resize(usize::from(u8::MAX), 0);
        conf.rss_key_len = u8::try_from(needed).unwrap_or(u8::MAX);
        conf.rss_key = buffer.as_mut_ptr();
        Ok(())
    }

    /// Gives the device its address; returns it back where the device has no way to take it.
    fn set_mac(&self, mac: [u8; 6]) -> Result<Option<[u8; 6]>, Error> {
        let mut address = sys::rte_ether_addr { addr_bytes: mac };
        // SAFETY: the port exists; the address outlives the call.
        let returned = unsafe { sys::rte_eth_dev_default_mac_addr_set(self.open.id.0, &raw mut address) };
        if returned == -libc::ENOTSUP {
            return Ok(Some(mac));
        }
        self.check("rte_eth_dev_default_mac_addr_set", returned)?;
        Ok(None)
    }

    /// Devices without filters receive everything anyway: their refusal is no error.
    fn set_filters(&self, promiscuous: bool, all_multicast: bool) -> Result<(), Error> {
        let id = self.open.id.0;
        // SAFETY: the port exists.
        let returned = unsafe {
            if promiscuous { sys::rte_eth_promiscuous_enable(id) } else { sys::rte_eth_promiscuous_disable(id) }
        };
        if returned != -libc::ENOTSUP {
            self.check("rte_eth_promiscuous_enable", returned)?;
        }
        // SAFETY: the port exists.
        let returned = unsafe {
            if all_multicast { sys::rte_eth_allmulticast_enable(id) } else { sys::rte_eth_allmulticast_disable(id) }
        };
        if returned != -libc::ENOTSUP {
            self.check("rte_eth_allmulticast_enable", returned)?;
        }
        Ok(())
    }

    fn raw_info(&self) -> Result<sys::rte_eth_dev_info, Error> {
        let mut info = sys::rte_eth_dev_info::default();
        // SAFETY: `info` is writable.
        let returned = unsafe { sys::rte_eth_dev_info_get(self.open.id.0, &raw mut info) };
        self.check("rte_eth_dev_info_get", returned)?;
        Ok(info)
    }

    /// -1 where unknown.
    fn numa_node(&self) -> i32 {
        // SAFETY: reads a number of the port.
        unsafe { sys::rte_eth_dev_socket_id(self.open.id.0) }
    }

    fn expect_unshared(&mut self) -> Result<(), Error> {
        match Arc::get_mut(&mut self.open) {
            Some(_) => Ok(()),
            None => Err(Error::QueuesInUse { device: self.open.device.clone() }),
        }
    }

    fn expect_queues(&self, direction: &'static str, wanted: u16, available: u16) -> Result<(), Error> {
        if wanted > available {
            return Err(Error::TooFewQueues { device: self.open.device.clone(), direction, wanted, available });
        }
        Ok(())
    }

    fn wrong_state(&self, needed: &'static str) -> Error {
        Error::WrongState { device: self.open.device.clone(), needed }
    }

    fn rss_error(&self, reason: String) -> Error {
        Error::Rss { device: self.open.device.clone(), reason }
    }

    fn check(&self, call: &'static str, returned: i32) -> Result<(), Error> {
        check(call, &self.open.device, returned)
    }
}

impl Drop for OpenPort {
    fn drop(&mut self) {
        let mut info = sys::rte_eth_dev_info::default();
        // SAFETY: neither a handle nor a queue is left, so nobody uses the port in any way. A vdev is
        // removed with its port, by the device pointer the port gave, so that it can be made anew.
        unsafe {
            let known = sys::rte_eth_dev_info_get(self.id.0, &raw mut info) == 0;
            if self.started.load(Ordering::Acquire) {
                sys::rte_eth_dev_stop(self.id.0);
            }
            sys::rte_eth_dev_close(self.id.0);
            if known && !info.device.is_null() && !is_pci_address(&self.device) {
                sys::rte_dev_remove(info.device);
            }
        }
        self.eal.open_ports.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id.0);
    }
}

/// Bytes of a device's key; those that list none (`net_null`) read DPDK's traditional 40.
fn key_len(info: &sys::rte_eth_dev_info) -> usize {
    if info.hash_key_size == 0 { 40 } else { usize::from(info.hash_key_size) }
}

fn port_by_name(name: &CStr) -> Option<u16> {
    let mut id = 0;
    // SAFETY: `name` is a C string, `id` is writable.
    let returned = unsafe { sys::rte_eth_dev_get_port_by_name(name.as_ptr(), &raw mut id) };
    (returned == 0).then_some(id)
}

fn wanted_rx_offloads(config: &PortConfig, pool: &Mempool) -> u64 {
    // Ethernet header, two VLAN tags and FCS beyond the MTU.
    const LINK_BYTES: u32 = 14 + 2 * 4 + 4;
    let mut wanted = sys::RTE_ETH_RX_OFFLOAD_SCATTER
        * u64::from(u32::from(config.mtu.unwrap_or(1500)) + LINK_BYTES > u32::from(pool.data_bytes()));
    if config.rx_checksum {
        wanted |= sys::RTE_ETH_RX_OFFLOAD_IPV4_CKSUM
            | sys::RTE_ETH_RX_OFFLOAD_UDP_CKSUM
            | sys::RTE_ETH_RX_OFFLOAD_TCP_CKSUM;
    }
    wanted
}

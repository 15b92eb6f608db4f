//! What `capsule` 0.1.5 expects of its binding crate, answered by `rte-sys`.
//!
//! capsule was written for DPDK 19.11. Most names are the same today and are re-exported; the rest
//! is renamed here, one line each: constants that got an `RTE_` prefix, static inlines that capsule
//! calls with a leading underscore, EAL options with new names, and the kernel NIC interface, gone
//! from DPDK, whose functions refuse (capsule calls them only for ports configured with `kni = true`).
//!
//! Not answered: the names of capsule's `pcap-dump` feature, which binds libpcap.

#![allow(non_camel_case_types)]

use std::ffi::CStr;
use std::os::raw::{c_char, c_int};

mod kni;

pub use kni::*;

// Types.
pub use rte_sys::{
    rte_cpuset_t, rte_eth_conf, rte_eth_dev_info, rte_eth_stats, rte_ether_addr, rte_mbuf, rte_mempool,
};

// Functions whose names and arguments are what they were.
pub use rte_sys::{
    rte_eal_cleanup, rte_eth_allmulticast_disable, rte_eth_allmulticast_enable, rte_eth_dev_adjust_nb_rx_tx_desc,
    rte_eth_dev_close, rte_eth_dev_configure, rte_eth_dev_get_port_by_name, rte_eth_dev_info_get,
    rte_eth_dev_socket_id, rte_eth_dev_start, rte_eth_dev_stop, rte_eth_macaddr_get, rte_eth_promiscuous_disable,
    rte_eth_promiscuous_enable, rte_eth_rx_queue_setup, rte_eth_stats_get, rte_eth_tx_queue_setup, rte_mempool_free,
    rte_mempool_in_use_count, rte_pktmbuf_pool_create, rte_socket_count, rte_socket_id, rte_socket_id_by_idx,
    rte_strerror, rte_thread_set_affinity,
};

// Static inlines, compiled by rte-sys.
pub use rte_sys::{
    shim_rte_errno as _rte_errno, shim_rte_eth_rx_burst as _rte_eth_rx_burst,
    shim_rte_eth_tx_burst as _rte_eth_tx_burst, shim_rte_mempool_put_bulk as _rte_mempool_put_bulk,
    shim_rte_pktmbuf_alloc as _rte_pktmbuf_alloc, shim_rte_pktmbuf_alloc_bulk as _rte_pktmbuf_alloc_bulk,
    shim_rte_pktmbuf_free as _rte_pktmbuf_free,
};

// Constants.
pub use rte_sys::{
    RTE_ETH_RSS_IP as ETH_RSS_IP, RTE_ETH_RSS_SCTP as ETH_RSS_SCTP, RTE_ETH_RSS_TCP as ETH_RSS_TCP,
    RTE_ETH_RSS_UDP as ETH_RSS_UDP, RTE_ETH_TX_OFFLOAD_MBUF_FAST_FREE as DEV_TX_OFFLOAD_MBUF_FAST_FREE,
    RTE_MBUF_DEFAULT_BUF_SIZE,
};

/// The enum as bindgen 0.57 wrote it: a module of constants.
pub mod rte_eth_rx_mq_mode {
    pub use rte_sys::RTE_ETH_MQ_RX_RSS as ETH_MQ_RX_RSS;
}

#[link(name = "numa")]
unsafe extern "C" {
    /// The NUMA node of a CPU, or -1 (libnuma, which DPDK itself links to).
    pub fn numa_node_of_cpu(cpu: c_int) -> c_int;
}

/// EAL options capsule writes, and what they are called since DPDK 20.11.
const RENAMED: [(&CStr, &CStr); 2] = [(c"--master-lcore", c"--main-lcore"), (c"--pci-whitelist", c"--allow")];

/// `rte_eal_init` with the names of two options brought up to date.
///
/// # Safety
///
/// As for `rte_eal_init`: `argv` points to `argc` writable pointers to C strings.
pub unsafe fn rte_eal_init(argc: c_int, argv: *mut *mut c_char) -> c_int {
    for index in 0..usize::try_from(argc).unwrap_or(0) {
        // SAFETY: the caller promises `argc` writable pointers to C strings; `index` is below it.
        unsafe {
            let argument = argv.add(index);
            for (old, new) in RENAMED {
                if CStr::from_ptr(*argument) == old {
                    // The EAL reorders pointers and reads text; it writes to no argument.
                    *argument = new.as_ptr().cast_mut();
                }
            }
        }
    }
    // SAFETY: the caller's promise, passed on.
    unsafe { rte_sys::rte_eal_init(argc, argv) }
}

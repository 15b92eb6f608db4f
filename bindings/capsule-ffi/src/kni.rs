//! The kernel NIC interface left DPDK; every function refuses or does nothing.

use std::os::raw::{c_char, c_int, c_uint};

use rte_sys::{rte_mbuf, rte_mempool};

/// Never made: [`rte_kni_alloc`] gives none out.
#[repr(C)]
pub struct rte_kni {
    _opaque: [u8; 0],
}

/// What capsule fills in for [`rte_kni_alloc`].
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct rte_kni_conf {
    /// Name of the kernel's interface.
    pub name: [c_char; 32],
    /// Port it belongs to.
    pub group_id: u16,
    /// Its MAC address.
    pub mac_addr: [u8; 6],
    /// Bytes of an mbuf.
    pub mbuf_size: c_uint,
}

/// Callbacks for what the kernel asks of the port.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct rte_kni_ops {
    /// Port the callbacks are for.
    pub port_id: u16,
    /// Change the MTU.
    pub change_mtu: Option<unsafe extern "C" fn(u16, c_uint) -> c_int>,
    /// Set the link up or down.
    pub config_network_if: Option<unsafe extern "C" fn(u16, u8) -> c_int>,
    /// Set the MAC address.
    pub config_mac_address: Option<unsafe extern "C" fn(u16, *mut u8) -> c_int>,
    /// Set promiscuous mode.
    pub config_promiscusity: Option<unsafe extern "C" fn(u16, u8) -> c_int>,
}

/// `-ENOTSUP`, as Linux numbers it on every architecture DPDK runs on.
const NOT_SUPPORTED: c_int = -95;

/// Refuses.
///
/// # Safety
///
/// None is needed; unsafe because capsule calls it so.
pub unsafe fn rte_kni_init(_max: c_uint) -> c_int {
    NOT_SUPPORTED
}

/// Gives no interface.
///
/// # Safety
///
/// None is needed; the arguments are not looked at.
pub unsafe fn rte_kni_alloc(
    _pool: *mut rte_mempool,
    _conf: *const rte_kni_conf,
    _ops: *mut rte_kni_ops,
) -> *mut rte_kni {
    std::ptr::null_mut()
}

/// Refuses.
///
/// # Safety
///
/// None is needed; the argument is not looked at.
pub unsafe fn rte_kni_release(_kni: *mut rte_kni) -> c_int {
    NOT_SUPPORTED
}

/// Does nothing.
///
/// # Safety
///
/// None is needed.
pub unsafe fn rte_kni_close() {}

/// An empty name.
///
/// # Safety
///
/// None is needed; the argument is not looked at.
pub unsafe fn rte_kni_get_name(_kni: *const rte_kni) -> *const c_char {
    c"".as_ptr()
}

/// Handles nothing.
///
/// # Safety
///
/// None is needed; the argument is not looked at.
pub unsafe fn rte_kni_handle_request(_kni: *mut rte_kni) -> c_int {
    NOT_SUPPORTED
}

/// Receives nothing.
///
/// # Safety
///
/// None is needed; the arguments are not looked at.
pub unsafe fn rte_kni_rx_burst(_kni: *mut rte_kni, _mbufs: *mut *mut rte_mbuf, _room: c_uint) -> c_uint {
    0
}

/// Sends nothing; the packets stay the caller's.
///
/// # Safety
///
/// None is needed; the arguments are not looked at.
pub unsafe fn rte_kni_tx_burst(_kni: *mut rte_kni, _mbufs: *mut *mut rte_mbuf, _count: c_uint) -> c_uint {
    0
}

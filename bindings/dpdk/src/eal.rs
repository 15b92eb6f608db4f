//! DPDK's environment: initialised once, cleaned up when nothing uses it any more.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_int};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rte_sys as sys;

use crate::error::{Error, check, last_errno, words};

/// Set by the first attempt; DPDK allows no second one, even after a failure.
static INITIALISED: AtomicBool = AtomicBool::new(false);

/// What the EAL is started with. `Default` is DPDK's own, with huge pages.
///
/// ```
/// let args = erhu_dpdk::EalArgs {
///     no_huge: true,
///     memory_mb: Some(128),
///     vdevs: vec!["net_null0".into()],
///     ..erhu_dpdk::EalArgs::new("example")
/// };
/// assert!(args.to_arguments().contains(&"--vdev=net_null0".to_owned()));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EalArgs {
    /// Names DPDK's runtime files, and with them the process: two with one prefix exclude each other.
    pub file_prefix: String,
    /// Ordinary pages instead of huge ones. Real NICs then need an IOMMU; `net_tap` works, as
    /// DPDK's `--in-memory` (which it does not tolerate) is not used.
    pub no_huge: bool,
    /// Memory to take at start, in MiB. Without huge pages it is also the limit (DPDK's default: 64).
    pub memory_mb: Option<u32>,
    /// CPU the initialising thread is pinned to; `None` leaves it where it may run now.
    pub main_core: Option<u32>,
    /// Virtual devices to make at start, e.g. `net_tap0,iface=lan0`. Not needed:
    /// [`Port::open`](crate::Port::open) makes what is missing, and explains failures better.
    pub vdevs: Vec<String>,
    /// PCI addresses to use; they have to be known at start. Empty: no PCI device is probed.
    pub pci: Vec<String>,
    /// Passed on as they are, last.
    pub extra: Vec<String>,
}

impl EalArgs {
    /// DPDK's defaults under a prefix of one's own.
    pub fn new(file_prefix: impl Into<String>) -> Self {
        Self { file_prefix: file_prefix.into(), ..Self::default() }
    }

    /// Adds a port of the configuration: a PCI address to `pci`, anything else to `vdevs`.
    pub fn add_device(&mut self, device: &str) {
        if is_pci_address(device) {
            self.pci.push(device.to_owned());
        } else {
            self.vdevs.push(device.to_owned());
        }
    }

    /// The command line, without the program's name.
    ///
    /// One lcore is asked for, the main one: workers are the program's own threads.
    pub fn to_arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("--lcores=0@{}", self.main_cpus()), "--no-telemetry".to_owned()];
        if !self.file_prefix.is_empty() {
            arguments.push(format!("--file-prefix={}", self.file_prefix));
        }
        if self.no_huge {
            arguments.push("--no-huge".to_owned());
        }
        if let Some(megabytes) = self.memory_mb {
            arguments.push("-m".to_owned());
            arguments.push(megabytes.to_string());
        }
        if self.pci.is_empty() {
            arguments.push("--no-pci".to_owned());
        }
        arguments.extend(self.pci.iter().map(|address| format!("--allow={address}")));
        arguments.extend(self.vdevs.iter().map(|device| format!("--vdev={device}")));
        arguments.extend(self.extra.iter().cloned());
        arguments
    }

    /// CPUs of the main lcore in the EAL's syntax: one number, or all this thread may use.
    fn main_cpus(&self) -> String {
        if let Some(cpu) = self.main_core {
            return cpu.to_string();
        }
        let cpus: Vec<String> = allowed_cpus().iter().map(usize::to_string).collect();
        if cpus.is_empty() { "0".to_owned() } else { format!("({})", cpus.join(",")) }
    }
}

/// Whether a device is named by PCI address (`0000:3b:00.0` or `3b:00.0`) rather than as a vdev.
pub(crate) fn is_pci_address(device: &str) -> bool {
    let address = device.split(',').next().unwrap_or(device);
    let fields: Vec<&str> = address.split([':', '.']).collect();
    (fields.len() == 3 || fields.len() == 4)
        && fields.iter().all(|field| !field.is_empty() && field.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn allowed_cpus() -> Vec<usize> {
    // SAFETY: cpu_set_t is plain bits, for which zero is valid; sched_getaffinity writes at most the
    // size passed; CPU_ISSET reads within it, as the indices stay below CPU_SETSIZE.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) != 0 {
            return Vec::new();
        }
        let bits = usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
        (0..bits).filter(|&cpu| libc::CPU_ISSET(cpu, &set)).collect()
    }
}

/// DPDK, initialised.
///
/// Ports, pools, queues and thread guards hold on to it, so the order in which they and this
/// handle are dropped does not matter.
pub struct Eal {
    pub(crate) inner: Arc<EalInner>,
}

pub(crate) struct EalInner {
    /// Every pool ever made: they are given back with the EAL.
    pub(crate) pools: Mutex<Vec<PoolPointer>>,
    /// Ports with a handle or a queue.
    pub(crate) open_ports: Mutex<BTreeSet<u16>>,
}

#[derive(Clone, Copy)]
pub(crate) struct PoolPointer(pub(crate) NonNull<sys::rte_mempool>);

// SAFETY: a mempool may be used from any thread; the pointer is valid as long as the EAL.
unsafe impl Send for PoolPointer {}

impl Eal {
    /// Starts DPDK. The calling thread becomes its main lcore: with `main_core` it is pinned there,
    /// and threads it starts inherit that until they pin themselves.
    ///
    /// DPDK's log goes to stderr. Drivers are loaded from the folder DPDK was built with.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyInitialised`] on a second call, even if the first failed; [`Error::Init`], for
    /// a vdev with an unknown driver too. Other troubles of a device show when its port is opened.
    pub fn init(args: &EalArgs) -> Result<Self, Error> {
        let mut arguments = vec![CString::new("erhu")?];
        for argument in args.to_arguments() {
            arguments.push(CString::new(argument)?);
        }
        if INITIALISED.swap(true, Ordering::AcqRel) {
            return Err(Error::AlreadyInitialised);
        }
        // DPDK keeps pointers to its arguments; they are its own for the life of the process.
        let mut pointers: Vec<*mut c_char> = arguments.into_iter().map(CString::into_raw).collect();
        let count = c_int::try_from(pointers.len()).unwrap_or(c_int::MAX);
        pointers.push(std::ptr::null_mut());
        log_to_stderr();
        // SAFETY: `pointers` holds `count` writable C strings and a null; the flag above makes this
        // the only call in the process.
        let parsed = unsafe { sys::rte_eal_init(count, pointers.as_mut_ptr()) };
        if parsed < 0 {
            return Err(Error::Init { message: words(last_errno()), arguments: args.to_arguments().join(" ") });
        }
        Ok(Self {
            inner: Arc::new(EalInner { pools: Mutex::new(Vec::new()), open_ports: Mutex::new(BTreeSet::new()) }),
        })
    }

    /// Makes the calling thread known to DPDK until the guard is dropped, so that pools keep a cache
    /// for it. Pin the thread first.
    ///
    /// # Errors
    ///
    /// When no lcore number is free (there are 128), or the thread has one already.
    pub fn register_thread(&self) -> Result<ThreadGuard, Error> {
        // SAFETY: reads a thread-local integer.
        if unsafe { sys::shim_rte_lcore_id() } != sys::LCORE_ID_ANY {
            return Err(Error::StillInUse { what: "this thread has an lcore number already".to_owned() });
        }
        // SAFETY: the EAL is initialised.
        let returned = unsafe { sys::rte_thread_register() };
        check("rte_thread_register", "", returned)?;
        Ok(ThreadGuard { _eal: Arc::clone(&self.inner), _not_send: PhantomData })
    }

    /// A further handle of the same EAL, for threads that register themselves.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }

    /// Whether packet memory is in huge pages.
    pub fn has_huge_pages(&self) -> bool {
        // SAFETY: the EAL is initialised.
        unsafe { sys::rte_eal_has_hugepages() != 0 }
    }

    /// Cleans up now, or says who still uses DPDK.
    ///
    /// # Errors
    ///
    /// [`Error::StillInUse`] when ports, queues or guards exist, packets are out of their pools, or
    /// this is not the thread that initialised. What is in use goes on working, and is cleaned up
    /// when it is dropped if it can be.
    pub fn end(self) -> Result<(), Error> {
        match Arc::try_unwrap(self.inner) {
            Ok(inner) => match inner.obstacle() {
                Some(what) => Err(Error::StillInUse { what }),
                None => Ok(()),
            },
            Err(shared) => {
                let holders = Arc::strong_count(&shared).saturating_sub(1);
                Err(Error::StillInUse { what: format!("{holders} ports, pools, queues or threads") })
            }
        }
    }
}

impl EalInner {
    /// What forbids cleaning up. Called with no queue, pool handle, port or registered thread left, so
    /// no packet can leave a pool any more; they can only come back.
    fn obstacle(&self) -> Option<String> {
        // SAFETY: both read integers the EAL set at start.
        let on_main = unsafe { sys::shim_rte_lcore_id() == sys::rte_get_main_lcore() };
        if !on_main {
            return Some("only the thread that initialised it can end it".to_owned());
        }
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: pools are never freed before the EAL is.
        let out: u32 = pools.iter().map(|pool| unsafe { sys::rte_mempool_in_use_count(pool.0.as_ptr()) }).sum();
        (out > 0).then(|| format!("{out} packets are out of their pools"))
    }
}

impl Drop for EalInner {
    fn drop(&mut self) {
        if self.obstacle().is_some() {
            return; // Mapped until the process ends: a packet somewhere may still be touched.
        }
        // SAFETY: no handle is left, every packet is in its pool (so none is reachable), and this is
        // the main lcore's thread.
        unsafe { sys::rte_eal_cleanup() };
    }
}

/// The calling thread has an lcore number of DPDK's while this lives. Stays on its thread.
pub struct ThreadGuard {
    _eal: Arc<EalInner>,
    _not_send: PhantomData<*const ()>,
}

impl Drop for ThreadGuard {
    fn drop(&mut self) {
        // SAFETY: this thread registered itself, and the guard cannot have left it.
        unsafe { sys::rte_thread_unregister() };
    }
}

/// The CPU's time stamp counter, in ticks of [`ticks_per_second`].
#[inline]
pub fn ticks() -> u64 {
    // SAFETY: reads a counter.
    unsafe { sys::shim_rte_rdtsc() }
}

/// Frequency of [`ticks`] in Hz, measured by the EAL at start.
pub fn ticks_per_second(_eal: &Eal) -> u64 {
    // SAFETY: the EAL is initialised.
    unsafe { sys::rte_get_tsc_hz() }
}

/// Sends DPDK's log to stderr; it would go to stdout. For programs that start the EAL otherwise than
/// with [`Eal::init`]: call it before.
pub fn log_to_stderr() {
    // SAFETY: stores a pointer to a stream that is never closed.
    unsafe { sys::shim_rte_openlog_stderr() };
}

/// Folder of DPDK's runtime files in this process; `None` before the EAL is started. It outlives the
/// process, and may be removed at its end.
pub fn runtime_dir() -> Option<PathBuf> {
    // SAFETY: the string is a static buffer, empty until the EAL writes it, once.
    let path = unsafe { CStr::from_ptr(sys::rte_eal_get_runtime_dir()) };
    (!path.is_empty()).then(|| PathBuf::from(path.to_string_lossy().into_owned()))
}

/// DPDK's version as it names itself, e.g. `DPDK 22.11.11`.
pub fn dpdk_version() -> String {
    // SAFETY: returns a static string; needs no EAL.
    unsafe { CStr::from_ptr(sys::rte_version()) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_addresses_are_told_from_vdevs() {
        assert!(is_pci_address("0000:3b:00.0"));
        assert!(is_pci_address("3b:00.1"));
        assert!(is_pci_address("0000:3b:00.0,representor=0"));
        assert!(!is_pci_address("net_tap0,iface=lan0"));
        assert!(!is_pci_address("net_pcap0,rx_pcap=a:b.c"));
        assert!(!is_pci_address(""));
    }

    #[test]
    fn without_pci_devices_none_is_probed() {
        let mut args = EalArgs { main_core: Some(3), no_huge: true, memory_mb: Some(64), ..EalArgs::new("p") };
        assert!(args.to_arguments().contains(&"--no-pci".to_owned()));
        args.add_device("0000:3b:00.0");
        args.add_device("net_null0,size=64");
        args.extra.push("--log-level=8".to_owned());
        assert_eq!(
            args.to_arguments().join(" "),
            "--lcores=0@3 --no-telemetry --file-prefix=p --no-huge -m 64 --allow=0000:3b:00.0 \
             --vdev=net_null0,size=64 --log-level=8"
        );
    }
}

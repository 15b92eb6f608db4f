//! Why DPDK, or this crate before asking it, refused.

use std::ffi::{CStr, NulError};

use rte_sys as sys;

/// Why an operation on the EAL, a port or a pool was refused. What existed before still does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `rte_eal_init` runs once per process, and not again after a failure.
    #[error("DPDK was already initialised in this process")]
    AlreadyInitialised,
    /// The EAL did not start; its own log, on stderr, has the details.
    #[error("DPDK did not start ({message}); its log on stderr has the details. Arguments: {arguments}")]
    Init {
        /// DPDK's words for its errno.
        message: String,
        /// The arguments it was given, separated by blanks.
        arguments: String,
    },
    /// No port answers to the name, and none could be made from it.
    #[error(
        "port {device}: no such device ({message}); for a vdev its driver's package (librte-net-*) must be installed, a PCI device must be bound to vfio-pci or its bifurcated driver"
    )]
    NoSuchPort {
        /// PCI address or vdev string.
        device: String,
        /// DPDK's words for its errno.
        message: String,
    },
    /// A second handle for a port was asked for.
    #[error("port {device} is already open")]
    AlreadyOpen {
        /// PCI address or vdev string.
        device: String,
    },
    /// The device has fewer queues than were asked for.
    #[error("port {device}: {wanted} {direction} queues wanted, the device has {available}")]
    TooFewQueues {
        /// PCI address or vdev string.
        device: String,
        /// `receive` or `transmit`.
        direction: &'static str,
        /// Queues asked for.
        wanted: u16,
        /// Queues there are.
        available: u16,
    },
    /// Queues of the port are still held by someone.
    #[error("port {device}: its queues are still in use")]
    QueuesInUse {
        /// PCI address or vdev string.
        device: String,
    },
    /// The port is not in the state the call needs.
    #[error("port {device}: {needed}")]
    WrongState {
        /// PCI address or vdev string.
        device: String,
        /// What has to come first.
        needed: &'static str,
    },
    /// The port has no receive-side scaling, or not what was asked of it.
    #[error("port {device}: receive-side scaling: {reason}")]
    Rss {
        /// PCI address or vdev string.
        device: String,
        /// What is missing.
        reason: String,
    },
    /// A pool of this shape cannot be made.
    #[error("memory pool {name}: {reason}")]
    Pool {
        /// Name of the pool.
        name: String,
        /// What is wrong with it, or DPDK's words for its errno.
        reason: String,
    },
    /// Packets or handles outlive [`Eal::end`](crate::Eal::end); memory stays mapped until the process ends.
    #[error("DPDK is still in use: {what}")]
    StillInUse {
        /// Who holds on to it.
        what: String,
    },
    /// A name with a NUL byte in it.
    #[error("a name contains a NUL byte at {0}")]
    NulInName(usize),
    /// Any other refusal by DPDK.
    #[error("{call} {subject}: {message} (errno {errno})")]
    Dpdk {
        /// The function that refused.
        call: &'static str,
        /// Port or pool it was about.
        subject: String,
        /// Positive errno.
        errno: i32,
        /// DPDK's words for it.
        message: String,
    },
}

impl From<NulError> for Error {
    fn from(error: NulError) -> Self {
        Self::NulInName(error.nul_position())
    }
}

impl Error {
    /// From a function that returns a negative errno.
    pub(crate) fn from_return(call: &'static str, subject: &str, returned: i32) -> Self {
        let errno = if returned == -1 { last_errno() } else { returned.saturating_neg() };
        Self::Dpdk { call, subject: subject.to_owned(), errno, message: words(errno) }
    }
}

/// `Ok` for zero and above, else [`Error::Dpdk`].
pub(crate) fn check(call: &'static str, subject: &str, returned: i32) -> Result<(), Error> {
    if returned < 0 { Err(Error::from_return(call, subject, returned)) } else { Ok(()) }
}

/// `rte_errno` of this thread.
pub(crate) fn last_errno() -> i32 {
    // SAFETY: reads a thread-local integer.
    unsafe { sys::shim_rte_errno() }
}

/// DPDK's words for a positive errno.
pub(crate) fn words(errno: i32) -> String {
    // SAFETY: rte_strerror accepts any number and returns a NUL-terminated string in storage of the
    // calling thread (or a literal), valid until its next call on this thread; it is copied at once.
    unsafe { CStr::from_ptr(sys::rte_strerror(errno)) }.to_string_lossy().into_owned()
}

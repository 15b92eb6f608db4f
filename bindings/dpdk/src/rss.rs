//! Receive-side scaling: which queue a packet arrives on.

use std::ops::{BitAnd, BitOr};

use rte_sys as sys;

/// What a port hashes, as DPDK's `RTE_ETH_RSS_*` bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct RssHash(pub u64);

impl RssHash {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// IPv4 addresses, for packets of no finer type.
    pub const IPV4: Self = Self(sys::RTE_ETH_RSS_IPV4);
    /// IPv4 fragments, by address.
    pub const IPV4_FRAGMENT: Self = Self(sys::RTE_ETH_RSS_FRAG_IPV4);
    /// TCP over IPv4, ports included.
    pub const IPV4_TCP: Self = Self(sys::RTE_ETH_RSS_NONFRAG_IPV4_TCP);
    /// UDP over IPv4, ports included.
    pub const IPV4_UDP: Self = Self(sys::RTE_ETH_RSS_NONFRAG_IPV4_UDP);
    /// SCTP over IPv4, ports included.
    pub const IPV4_SCTP: Self = Self(sys::RTE_ETH_RSS_NONFRAG_IPV4_SCTP);
    /// Anything else over IPv4, by address.
    pub const IPV4_OTHER: Self = Self(sys::RTE_ETH_RSS_NONFRAG_IPV4_OTHER);
    /// IPv6 addresses, for packets of no finer type.
    pub const IPV6: Self = Self(sys::RTE_ETH_RSS_IPV6);
    /// IPv6 fragments, by address.
    pub const IPV6_FRAGMENT: Self = Self(sys::RTE_ETH_RSS_FRAG_IPV6);
    /// TCP over IPv6, ports included.
    pub const IPV6_TCP: Self = Self(sys::RTE_ETH_RSS_NONFRAG_IPV6_TCP);
    /// UDP over IPv6, ports included.
    pub const IPV6_UDP: Self = Self(sys::RTE_ETH_RSS_NONFRAG_IPV6_UDP);
    /// SCTP over IPv6, ports included.
    pub const IPV6_SCTP: Self = Self(sys::RTE_ETH_RSS_NONFRAG_IPV6_SCTP);
    /// Anything else over IPv6, by address.
    pub const IPV6_OTHER: Self = Self(sys::RTE_ETH_RSS_NONFRAG_IPV6_OTHER);
    /// Modifier: of the addresses, the source only.
    pub const L3_SRC_ONLY: Self = Self(1 << sys::RTE_ETH_RSS_L3_SRC_ONLY_BIT);
    /// Modifier: of the addresses, the destination only.
    pub const L3_DST_ONLY: Self = Self(sys::RTE_ETH_RSS_L3_DST_ONLY);
    /// Modifier: of the ports, the source only.
    pub const L4_SRC_ONLY: Self = Self(sys::RTE_ETH_RSS_L4_SRC_ONLY);
    /// Modifier: of the ports, the destination only.
    pub const L4_DST_ONLY: Self = Self(sys::RTE_ETH_RSS_L4_DST_ONLY);

    /// Everything DPDK counts as IP, TCP, UDP and SCTP.
    pub const ALL_IP: Self =
        Self(sys::RTE_ETH_RSS_IP | sys::RTE_ETH_RSS_TCP | sys::RTE_ETH_RSS_UDP | sys::RTE_ETH_RSS_SCTP);

    /// Whether all of `other` is in here.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether it is nothing.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for RssHash {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for RssHash {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// What a port can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RssCapability {
    /// Types and modifiers it can be configured with.
    pub hash: RssHash,
    /// Length of its key in bytes; 40 mostly, 52 on some.
    pub key_len: u8,
    /// Entries of its redirection table; 0 where it cannot be read or changed.
    pub table_len: u16,
}

/// What is asked of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RssConfig {
    /// Types to hash. Those the port cannot hash are left out, unless `exact`.
    pub hash: RssHash,
    /// Key, of the port's length; `None` keeps the driver's own.
    pub key: Option<Vec<u8>>,
    /// Refuse if the port cannot hash all of `hash`.
    pub exact: bool,
}

impl Default for RssConfig {
    fn default() -> Self {
        Self { hash: RssHash::ALL_IP, key: None, exact: false }
    }
}

//! ARP for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use zerocopy::FromBytes;

use crate::ethernet::{IPV4, Mac, ZERO};
use crate::header;

/// Operation of a request.
pub const REQUEST: u16 = 1;
/// Operation of a reply.
pub const REPLY: u16 = 2;
/// Bytes of a packet.
pub const BYTES: usize = size_of::<header::Arp>();

/// An ARP request or reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// [`REQUEST`] or [`REPLY`].
    pub op: u16,
    /// Sender's MAC address.
    pub sha: Mac,
    /// Sender's address; 0.0.0.0 in a probe (RFC 5227).
    pub spa: Ipv4Addr,
    /// Target's MAC address; without meaning in a request.
    pub tha: Mac,
    /// Target's address.
    pub tpa: Ipv4Addr,
}

impl Arp {
    /// Asks for the MAC address of `target`.
    pub const fn request(sha: Mac, spa: Ipv4Addr, target: Ipv4Addr) -> Self {
        Self { op: REQUEST, sha, spa, tha: ZERO, tpa: target }
    }

    /// The reply to this request that says: the address asked for is at `mac`.
    pub const fn reply(&self, mac: Mac) -> Self {
        Self { op: REPLY, sha: mac, spa: self.tpa, tha: self.sha, tpa: self.spa }
    }
}

/// Reads a packet; bytes after it are padding. `None` if it is cut short, neither request nor reply, or not IPv4 over
/// Ethernet.
pub fn parse(bytes: &[u8]) -> Option<Arp> {
    let (arp, _) = header::Arp::ref_from_prefix(bytes).ok()?;
    let known = arp.hardware.get() == 1
        && arp.protocol.get() == IPV4
        && (arp.hardware_bytes, arp.protocol_bytes) == (6, 4)
        && matches!(arp.op.get(), REQUEST | REPLY);
    known.then(|| Arp { op: arp.op.get(), sha: arp.sha, spa: arp.spa.into(), tha: arp.tha, tpa: arp.tpa.into() })
}

/// Writes a packet and returns its length, [`BYTES`]; `None` if `buf` is shorter.
pub fn write(arp: &Arp, buf: &mut [u8]) -> Option<usize> {
    let (out, _) = header::Arp::mut_from_prefix(buf).ok()?;
    *out = header::Arp {
        hardware: 1.into(),
        protocol: IPV4.into(),
        hardware_bytes: 6,
        protocol_bytes: 4,
        op: arp.op.into(),
        sha: arp.sha,
        spa: arp.spa.octets(),
        tha: arp.tha,
        tpa: arp.tpa.octets(),
    };
    Some(BYTES)
}

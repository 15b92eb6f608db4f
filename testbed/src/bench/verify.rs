//! Whether what left the router is right. Frames are read by the testbed's own reader.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::flows::{Flow, GATEWAY_MAC, INSIDE_MAC, LAN_MAC, TTL, WAN_MAC};
use super::script::{Mapping, Policy};
use crate::packet::read::{Content, Ip, Ip6, Seen, Upper};

/// Follows the flows of one scene.
#[derive(Debug)]
pub struct Judge {
    /// Addresses of the pools, see [`super::flows6::Family::pool`].
    pool: RangeInclusive<u32>,
    policy: Policy,
    /// By flow: external address and port, or 0.
    external: Vec<u64>,
}

impl Judge {
    /// For flows 0 to `flows` and a router that is configured so.
    pub fn new(flows: u32, policy: &Policy) -> Self {
        Self { pool: policy.pool(), policy: policy.clone(), external: vec![0; flows as usize] }
    }

    /// Flows that it follows.
    pub fn flows(&self) -> u32 {
        u32::try_from(self.external.len()).unwrap_or(u32::MAX)
    }

    /// A frame that left to the outside: a translated packet of a flow, always translated alike. Returns the flow.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn left(&mut self, frame: &[u8]) -> Result<u32, String> {
        let seen = Seen::of(0, frame.to_vec());
        let Sound { number, source, destination } = Sound::of(&seen)?;
        if seen.mac_to != GATEWAY_MAC || seen.mac_from != WAN_MAC || !seen.tags.is_empty() {
            return Err(format!("wrong Ethernet header: {seen}"));
        }
        let family = self.policy.family;
        let place = self.external.get_mut(number as usize).ok_or_else(|| format!("of no flow: {seen}"))?;
        let flow = Flow::of(number);
        let address = family.of_pool(source.0).filter(|address| self.pool.contains(address) && source.1 >= 1024);
        let Some(address) = address else { return Err(format!("not translated to the pool: {seen}")) };
        if destination != (family.remote(flow.remote.0), flow.remote.1) {
            return Err(format!("flow {number} went to another remote: {seen}"));
        }
        let external = u64::from(address) << 16 | u64::from(source.1);
        if *place != 0 && *place != external {
            return Err(format!("flow {number} changed its external end: {seen}"));
        }
        *place = external;
        Ok(number)
    }

    /// A frame that came back to the inside.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn came_back(&self, frame: &[u8]) -> Result<u32, String> {
        let seen = Seen::of(0, frame.to_vec());
        let Sound { number, source, destination } = Sound::of(&seen)?;
        let (vlan, family) = (Some(self.policy.vlan(number)), self.policy.family);
        if seen.mac_to != INSIDE_MAC || seen.mac_from != LAN_MAC || seen.vlan() != vlan {
            return Err(format!("wrong Ethernet header: {seen}"));
        }
        let Flow { inside, remote } = Flow::of(number);
        if (source, destination) != ((family.remote(remote.0), remote.1), (family.inside(inside.0), inside.1)) {
            return Err(format!("flow {number} was not translated back: {seen}"));
        }
        Ok(number)
    }

    /// External address (see [`super::flows6::Family::pool`]) and port of a flow, once a packet of it was seen.
    pub fn external(&self, flow: u32) -> Option<(u32, u16)> {
        let word = *self.external.get(flow as usize)?;
        (word != 0).then_some((u32::try_from(word >> 16).ok()?, u16::try_from(word & 0xffff).ok()?))
    }

    /// Every flow has an external end of its own: alone with endpoint-independent mapping, else towards its remote.
    ///
    /// # Errors
    /// How many have none, or an example of two that share.
    pub fn all_apart(&self) -> Result<(), String> {
        let missing = self.external.iter().filter(|e| **e == 0).count();
        if missing > 0 {
            return Err(format!("{missing} flows were never seen to leave"));
        }
        self.seen_apart()
    }

    /// As [`Judge::all_apart`], of those flows that were seen.
    ///
    /// # Errors
    /// An example of two that share.
    pub fn seen_apart(&self) -> Result<(), String> {
        let towards = |n: u32| match self.policy.mapping {
            Mapping::EndpointIndependent => 0,
            Mapping::AddressPortDependent => Flow::of(n).remote.0,
        };
        let mut ends: Vec<(u64, u32, u32)> =
            (0u32..).zip(&self.external).filter(|(_, e)| **e != 0).map(|(n, e)| (*e, towards(n), n)).collect();
        ends.sort_unstable();
        match ends.windows(2).find(|w| (w[0].0, w[0].1) == (w[1].0, w[1].1)) {
            Some(pair) => Err(format!("flows {} and {} share an external end", pair[0].2, pair[1].2)),
            None => Ok(()),
        }
    }

    /// Touches all its memory, so that it grows no more.
    pub fn touch(&mut self) {
        self.external.fill(1);
        self.external.fill(0);
        std::hint::black_box(&self.external);
    }

    /// Forgets all flows.
    pub fn forget(&mut self) {
        self.external.fill(0);
    }
}

/// A UDP or TCP packet in which everything is right.
struct Sound {
    number: u32,
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
}

impl Sound {
    fn of(seen: &Seen) -> Result<Self, String> {
        let faults = seen.faults();
        if !faults.is_empty() {
            return Err(format!("{}: {seen}", faults.join(", ")));
        }
        let (source, destination, ttl, upper): (IpAddr, IpAddr, _, _) = match &seen.content {
            Content::Ip(ip) => (ip.source.into(), ip.destination.into(), ip.ttl, &ip.upper),
            Content::Ip6(ip) => (ip.source.into(), ip.destination.into(), ip.hop_limit, &ip.upper),
            _ => return Err(format!("no IP packet: {seen}")),
        };
        if ttl != TTL - 1 {
            return Err(format!("time to live {ttl} instead of {}: {seen}", TTL - 1));
        }
        let ports = match upper {
            Upper::Udp(udp) if udp.has_checksum => (udp.sport, udp.dport),
            Upper::Tcp(tcp) => (tcp.sport, tcp.dport),
            _ => return Err(format!("neither UDP with a checksum nor TCP: {seen}")),
        };
        let number = number_of(seen).ok_or_else(|| format!("without a number: {seen}"))?;
        Ok(Self { number, source: (source, ports.0), destination: (destination, ports.1) })
    }
}

/// The number that [`super::flows::Writer`] or [`super::flows6::Writer6`] has written into a packet.
pub fn number_of(seen: &Seen) -> Option<u32> {
    match &seen.content {
        Content::Ip(ip) if matches!(ip.upper, Upper::Tcp(_)) => Some(u32::from(ip.tos >> 2) << 16 | u32::from(ip.id)),
        Content::Ip(Ip { upper: Upper::Udp(udp), .. }) | Content::Ip6(Ip6 { upper: Upper::Udp(udp), .. }) => {
            udp.payload.first_chunk().map(|number| u32::from_be_bytes(*number))
        }
        _ => None,
    }
}

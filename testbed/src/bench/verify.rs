//! Whether what left the router is right. Frames are read by the testbed's own reader.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use erhu_planes::tuple::proto;

use super::flows::{Flow, GATEWAY_MAC, INSIDE_MAC, LAN_MAC, TTL, WAN_MAC};
use super::script::{Mapping, Policy};
use crate::packet::read::{Content, Ip, Seen, Upper};

/// Follows the flows of one scene.
#[derive(Debug)]
pub struct Judge {
    /// Addresses of the pools.
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
        let ip = sound(&seen)?;
        if seen.mac_to != GATEWAY_MAC || seen.mac_from != WAN_MAC || !seen.tags.is_empty() {
            return Err(format!("wrong Ethernet header: {seen}"));
        }
        let ports = match &ip.upper {
            Upper::Udp(udp) if udp.has_checksum => (udp.sport, udp.dport),
            Upper::Tcp(tcp) => (tcp.sport, tcp.dport),
            _ => return Err(format!("neither UDP with a checksum nor TCP: {seen}")),
        };
        let source = u32::from(ip.source);
        let number = number_of(ip).ok_or_else(|| format!("without a number: {seen}"))?;
        let place = self.external.get_mut(number as usize).ok_or_else(|| format!("of no flow: {seen}"))?;
        let flow = Flow::of(number);
        if !self.pool.contains(&source) || ports.0 < 1024 {
            return Err(format!("not translated to the pool: {seen}"));
        }
        if (u32::from(ip.destination), ports.1) != flow.remote {
            return Err(format!("flow {number} went to another remote: {seen}"));
        }
        let external = u64::from(source) << 16 | u64::from(ports.0);
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
        let ip = sound(&seen)?;
        let number = number_of(ip).ok_or_else(|| format!("without a number: {seen}"))?;
        let vlan = Some(self.policy.vlan(number));
        if seen.mac_to != INSIDE_MAC || seen.mac_from != LAN_MAC || seen.vlan() != vlan {
            return Err(format!("wrong Ethernet header: {seen}"));
        }
        let ports = match &ip.upper {
            Upper::Udp(udp) if udp.has_checksum => (udp.sport, udp.dport),
            Upper::Tcp(tcp) => (tcp.sport, tcp.dport),
            _ => return Err(format!("neither UDP with a checksum nor TCP: {seen}")),
        };
        let flow = Flow::of(number);
        let ends = [(ip.source, ports.0), (ip.destination, ports.1)];
        if ends != [flow.remote, flow.inside].map(|(a, p)| (Ipv4Addr::from(a), p)) {
            return Err(format!("flow {number} was not translated back: {seen}"));
        }
        Ok(number)
    }

    /// External address and port of a flow, once a packet of it was seen.
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

fn sound(seen: &Seen) -> Result<&Ip, String> {
    let faults = seen.faults();
    match &seen.content {
        _ if !faults.is_empty() => Err(format!("{}: {seen}", faults.join(", "))),
        Content::Ip(ip) if ip.ttl != TTL - 1 => {
            Err(format!("time to live {} instead of {}: {seen}", ip.ttl, TTL - 1))
        }
        Content::Ip(ip) if matches!(ip.protocol, proto::UDP | proto::TCP) => Ok(ip),
        _ => Err(format!("neither UDP nor TCP: {seen}")),
    }
}

/// The number that [`super::flows::Writer`] has written into a packet.
pub fn number_of(ip: &Ip) -> Option<u32> {
    match &ip.upper {
        Upper::Udp(udp) => udp.payload.first_chunk().map(|number| u32::from_be_bytes(*number)),
        Upper::Tcp(_) => Some(u32::from(ip.tos >> 2) << 16 | u32::from(ip.id)),
        _ => None,
    }
}

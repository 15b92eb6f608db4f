//! Frames in capsule's terms: tags, padding, answers, verified UDP.

use std::net::Ipv4Addr;

use anyhow::{Result, bail, ensure};
use capsule::Mbuf;
use capsule::net::MacAddr;
use capsule::packets::arp::{Arp4, OperationCodes};
use capsule::packets::checksum::{self, PseudoHeader};
use capsule::packets::icmp::v4::{Icmpv4, Icmpv4Types};
use capsule::packets::ip::ProtocolNumbers;
use capsule::packets::ip::v4::Ipv4;
use capsule::packets::{EtherTypes, Ethernet, Packet, Udp4};

use crate::bytes;

/// Where a VLAN tag is: after the two addresses.
const TAG_AT: usize = 12;
const TAG_LEN: usize = 4;
const DOT1Q: u16 = 0x8100;
/// VLAN identifier within the tag's control information, IEEE 802.1Q.
const VLAN_MASK: u16 = 0x0fff;

/// TTL of everything sent from here.
pub const TTL: u8 = 64;

/// The frame's VLAN, if it has an 802.1Q tag.
pub fn vlan(mbuf: &Mbuf) -> Option<u16> {
    match bytes::of(mbuf).get(TAG_AT..TAG_AT + TAG_LEN)? {
        &[a, b, c, d] if u16::from_be_bytes([a, b]) == DOT1Q => Some(u16::from_be_bytes([c, d]) & VLAN_MASK),
        _ => None,
    }
}

/// Pushes a tag of priority 0.
pub fn tag(mut mbuf: Mbuf, vlan: u16) -> Result<Mbuf> {
    mbuf.extend(TAG_AT, TAG_LEN)?;
    let [a, b] = DOT1Q.to_be_bytes();
    let [c, d] = vlan.to_be_bytes();
    mbuf.write_data_slice(TAG_AT, &[a, b, c, d])?;
    Ok(mbuf)
}

/// Pops the tag.
pub fn untag(mbuf: &mut Mbuf) -> Result<()> {
    mbuf.shrink(TAG_AT, TAG_LEN)
}

/// The frame as IPv4 without options, its Ethernet padding cut off: capsule takes everything up to the
/// buffer's end for payload.
pub fn ipv4(mbuf: Mbuf) -> Result<Ipv4> {
    let ethernet = mbuf.parse::<Ethernet>()?;
    let (ends_at, frame_len) = {
        let ip = ethernet.peek::<Ipv4>()?;
        ensure!(ip.version() == 4 && ip.ihl() == 5, "not plain IPv4");
        ensure!(!ip.more_fragments() && ip.fragment_offset() == 0, "a fragment");
        (ip.offset() + usize::from(ip.total_length()), ip.mbuf().data_len())
    };
    ensure!(ends_at <= frame_len, "shorter than its total length");
    let mut mbuf = ethernet.reset();
    if ends_at < frame_len {
        mbuf.truncate(ends_at)?;
    }
    mbuf.parse::<Ethernet>()?.parse::<Ipv4>()
}

/// Whether the IPv4 header's checksum is right, by capsule's reckoning.
pub fn has_right_header_checksum(ip: &Ipv4) -> bool {
    let header = bytes::of(ip.mbuf()).get(ip.offset()..ip.payload_offset());
    header.is_some_and(|header| checksum::compute(0, header) == 0)
}

/// Whether the UDP checksum is there and right, and the length what the IPv4 header says.
pub fn has_right_udp_checksum(udp: &Udp4) -> bool {
    let Some(segment) = bytes::of(udp.mbuf()).get(udp.offset()..) else {
        return false;
    };
    let pseudo = PseudoHeader::V4 {
        src: udp.envelope().src(),
        dst: udp.envelope().dst(),
        packet_len: udp.length(),
        protocol: ProtocolNumbers::Udp,
    };
    usize::from(udp.length()) == segment.len() && udp.checksum() != 0 && checksum::compute(pseudo.sum(), segment) == 0
}

/// What a frame is to somebody with an address here.
pub enum Asked {
    /// The answer, made of the frame itself.
    Answered(Mbuf),
    /// UDP for us.
    Udp(Udp4),
    /// An ARP reply: who, and where.
    Neighbour(Ipv4Addr, MacAddr),
    /// Nothing of the kind.
    Other(Mbuf),
}

/// Answers ARP and ICMP echo for the addresses `mac_of` knows; hands back UDP for them.
///
/// # Errors
///
/// On frames that are not what their headers say.
pub fn serve(mbuf: Mbuf, mac_of: impl Fn(Ipv4Addr) -> Option<MacAddr>) -> Result<Asked> {
    let ethernet = mbuf.parse::<Ethernet>()?;
    match ethernet.ether_type() {
        EtherTypes::Arp => serve_arp(ethernet.parse::<Arp4>()?, mac_of),
        EtherTypes::Ipv4 => {
            let ip = ipv4(ethernet.reset())?;
            let Some(mac) = mac_of(ip.dst()) else {
                return Ok(Asked::Other(ip.reset()));
            };
            match ip.protocol() {
                ProtocolNumbers::Udp => Ok(Asked::Udp(ip.parse::<Udp4>()?)),
                ProtocolNumbers::Icmpv4 => serve_icmp(ip.parse::<Icmpv4>()?, mac),
                _ => Ok(Asked::Other(ip.reset())),
            }
        }
        _ => Ok(Asked::Other(ethernet.reset())),
    }
}

fn serve_arp(mut arp: Arp4, mac_of: impl Fn(Ipv4Addr) -> Option<MacAddr>) -> Result<Asked> {
    let (asker, asker_mac) = (arp.sender_protocol_addr(), arp.sender_hardware_addr());
    if arp.operation_code() == OperationCodes::Reply {
        return Ok(Asked::Neighbour(asker, asker_mac));
    }
    let wanted = arp.target_protocol_addr();
    let (OperationCodes::Request, Some(mac)) = (arp.operation_code(), mac_of(wanted)) else {
        return Ok(Asked::Other(arp.reset()));
    };
    arp.set_operation_code(OperationCodes::Reply);
    arp.set_target_hardware_addr(asker_mac);
    arp.set_target_protocol_addr(asker);
    arp.set_sender_hardware_addr(mac);
    arp.set_sender_protocol_addr(wanted);
    arp.envelope_mut().set_dst(asker_mac);
    arp.envelope_mut().set_src(mac);
    Ok(Asked::Answered(arp.reset()))
}

fn serve_icmp(mut icmp: Icmpv4, mac: MacAddr) -> Result<Asked> {
    if icmp.msg_type() != Icmpv4Types::EchoRequest {
        return Ok(Asked::Other(icmp.reset()));
    }
    let type_at = icmp.offset();
    icmp.mbuf_mut().write_data(type_at, &Icmpv4Types::EchoReply.0)?;
    turn_round(icmp.envelope_mut(), mac);
    icmp.reconcile_all();
    Ok(Asked::Answered(icmp.reset()))
}

/// The packet, sent back to where it came from.
pub fn echo(mut udp: Udp4, mac: MacAddr) -> Mbuf {
    let (from, to) = (udp.src_port(), udp.dst_port());
    udp.set_src_port(to);
    udp.set_dst_port(from);
    turn_round(udp.envelope_mut(), mac);
    udp.reconcile_all();
    udp.reset()
}

fn turn_round(ip: &mut Ipv4, mac: MacAddr) {
    let (from, to) = (ip.src(), ip.dst());
    ip.set_src(to);
    ip.set_dst(from);
    ip.set_ttl(TTL);
    let sender = ip.envelope().src();
    ip.envelope_mut().set_dst(sender);
    ip.envelope_mut().set_src(mac);
}

/// An ARP request, tagged if asked.
pub fn arp_request(mac: MacAddr, address: Ipv4Addr, wanted: Ipv4Addr, vlan: Option<u16>) -> Result<Mbuf> {
    let mut ethernet = Mbuf::new()?.push::<Ethernet>()?;
    ethernet.set_src(mac);
    ethernet.set_dst(MacAddr::new(0xff, 0xff, 0xff, 0xff, 0xff, 0xff));
    ethernet.set_ether_type(EtherTypes::Arp);
    let mut arp = ethernet.push::<Arp4>()?;
    arp.set_operation_code(OperationCodes::Request);
    arp.set_sender_hardware_addr(mac);
    arp.set_sender_protocol_addr(address);
    arp.set_target_protocol_addr(wanted);
    arp.reconcile_all();
    with_tag(arp.reset(), vlan)
}

/// Where a packet comes from or goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Station {
    /// Link address.
    pub mac: MacAddr,
    /// Network address.
    pub address: Ipv4Addr,
    /// UDP port.
    pub port: u16,
}

/// A UDP packet, tagged if asked.
pub fn udp(from: Station, to: Station, payload: &[u8], vlan: Option<u16>) -> Result<Mbuf> {
    let mut ethernet = Mbuf::new()?.push::<Ethernet>()?;
    ethernet.set_src(from.mac);
    ethernet.set_dst(to.mac);
    let mut ip = ethernet.push::<Ipv4>()?;
    ip.set_src(from.address);
    ip.set_dst(to.address);
    ip.set_ttl(TTL);
    let mut udp = ip.push::<Udp4>()?;
    udp.set_src_port(from.port);
    udp.set_dst_port(to.port);
    let payload_at = udp.payload_offset();
    if payload.is_empty() {
        bail!("an empty payload tells nothing");
    }
    udp.mbuf_mut().extend(payload_at, payload.len())?;
    udp.mbuf_mut().write_data_slice(payload_at, payload)?;
    udp.reconcile_all();
    with_tag(udp.reset(), vlan)
}

fn with_tag(mbuf: Mbuf, vlan: Option<u16>) -> Result<Mbuf> {
    match vlan {
        Some(vlan) => tag(mbuf, vlan),
        None => Ok(mbuf),
    }
}

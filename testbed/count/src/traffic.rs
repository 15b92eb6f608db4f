//! Packets of many connections, and what their far ends answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use erhu_pipeline::{Buffer, HeapBuffer};
use erhu_wire::{checksum, ethernet, ipv4, ipv6};

use crate::CountError;
use crate::plane::{Family, LAN, MACS, NEIGHBOURS, Plane, VLAN, WAN};

/// Packets of a burst.
pub const BURST: usize = erhu_pipeline::BURST;
/// Bytes of payload of a data packet.
const PAYLOAD: usize = 6;
/// TCP flags.
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// From which side a packet comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The tenant's.
    Inside,
    /// The other one.
    Outside,
}

/// One connection as its ends know it.
#[derive(Clone, Copy, Debug)]
struct Flow {
    inside: SocketAddr,
    remote: SocketAddr,
    external: SocketAddr,
    /// Next sequence numbers, of the inside and of the remote.
    next: [u32; 2],
}

/// Connections of one protocol, in the order in which they began.
#[derive(Debug)]
pub struct Traffic {
    family: Family,
    is_tcp: bool,
    flows: Vec<Flow>,
    at: usize,
}

impl Traffic {
    /// UDP.
    pub const fn udp(family: Family) -> Self {
        Self { family, is_tcp: false, flows: Vec::new(), at: 0 }
    }

    /// TCP.
    pub const fn tcp(family: Family) -> Self {
        Self { family, is_tcp: true, flows: Vec::new(), at: 0 }
    }

    /// First packets of so many bursts of new connections.
    ///
    /// # Errors
    /// If one does not leave, translated.
    pub fn open(&mut self, plane: &mut Plane, bursts: u32, counted: bool) -> Result<(), CountError> {
        for _ in 0..bursts {
            let first = self.flows.len();
            for n in first..first + BURST {
                let [.., high, low] = (n as u64).to_be_bytes();
                let port = u16::from_be_bytes([high, low]).wrapping_mul(40_503) | 1024;
                let (host, remote) = (u16::from_be_bytes([high, low]), u16::from_be_bytes([low, high]));
                let (inside, remote): (IpAddr, IpAddr) = match self.family {
                    Family::V4 => ([10, 0, high, low].into(), [198, 18, low, high].into()),
                    Family::V6 => {
                        ([0xfd00, 0, 0, 0, 0, 0, 0, host].into(), [0x2001, 2, 0, 0, 0, 0, 0, remote].into())
                    }
                };
                let inside = SocketAddr::new(inside, port);
                self.flows.push(Flow {
                    inside,
                    remote: SocketAddr::new(remote, 443),
                    external: inside,
                    next: [1000, 9000],
                });
            }
            let mut burst = (first..first + BURST).map(|n| self.frame(n, Side::Inside, SYN, 0)).collect();
            let sent = plane.turn(LAN, &mut burst, counted);
            if sent.len() != BURST {
                return Err(CountError::Router(format!("of {BURST} first packets {} left", sent.len())));
            }
            for (flow, frame) in self.flows[first..].iter_mut().zip(sent) {
                flow.external = source(frame).filter(|end| is_external(end.ip())).ok_or_else(|| {
                    CountError::Router(format!("not translated to the pool: {:02x?}", frame.frame()))
                })?;
                flow.next[0] += u32::from(self.is_tcp);
            }
        }
        Ok(())
    }

    /// Answers all connections and lets them become what long-lived ones are.
    ///
    /// # Errors
    /// If a packet gets lost.
    pub fn establish(&mut self, plane: &mut Plane) -> Result<(), CountError> {
        self.all(plane, Side::Outside, SYN | ACK, 0)?;
        self.all(plane, Side::Inside, ACK, 0)?;
        // UDP is a stream two seconds after its first packet; timers of young connections come round once.
        for seconds in [3, 31] {
            plane.pass(seconds);
            self.all(plane, Side::Inside, ACK | PSH, PAYLOAD)?;
            self.all(plane, Side::Outside, ACK | PSH, PAYLOAD)?;
        }
        Ok(())
    }

    /// A burst of data, of the connections that come next.
    ///
    /// # Errors
    /// If a packet gets lost.
    pub fn data(&mut self, plane: &mut Plane, side: Side, counted: bool) -> Result<(), CountError> {
        self.burst(plane, side, ACK | PSH, PAYLOAD, counted)
    }

    /// So many bursts of TCP connections from their SYN to their last ACK: the tenant's side begins and ends them.
    ///
    /// # Errors
    /// If a packet gets lost.
    pub fn live(&mut self, plane: &mut Plane, bursts: u32, counted: bool) -> Result<(), CountError> {
        let rest = [
            (Side::Outside, SYN | ACK),
            (Side::Inside, ACK),
            (Side::Inside, FIN | ACK),
            (Side::Outside, ACK),
            (Side::Outside, FIN | ACK),
            (Side::Inside, ACK),
        ];
        for _ in 0..bursts {
            self.at = self.flows.len();
            let first = self.at;
            self.open(plane, 1, counted)?;
            for (side, flags) in rest {
                self.at = first;
                self.burst(plane, side, flags, 0, counted)?;
            }
        }
        Ok(())
    }

    fn all(&mut self, plane: &mut Plane, side: Side, flags: u8, payload: usize) -> Result<(), CountError> {
        self.at = 0;
        (0..self.flows.len() / BURST).try_for_each(|_| self.burst(plane, side, flags, payload, false))
    }

    fn burst(
        &mut self,
        plane: &mut Plane,
        side: Side,
        flags: u8,
        payload: usize,
        counted: bool,
    ) -> Result<(), CountError> {
        let numbers = self.at..self.at + BURST;
        self.at = (self.at + BURST) % self.flows.len();
        let mut burst = numbers.clone().map(|n| self.frame(n, side, flags, payload)).collect();
        if self.is_tcp {
            let sender = usize::from(side == Side::Outside);
            self.flows[numbers].iter_mut().for_each(|flow| {
                let controls = u32::from(flags & (SYN | FIN) != 0);
                flow.next[sender] += u32::try_from(payload).unwrap_or(0) + controls;
            });
        }
        let port = if side == Side::Inside { LAN } else { WAN };
        let sent = plane.turn(port, &mut burst, counted).len();
        if sent == BURST { Ok(()) } else { Err(CountError::Router(format!("of {BURST} packets {sent} left"))) }
    }

    fn frame(&self, number: usize, side: Side, flags: u8, payload: usize) -> HeapBuffer {
        let flow = &self.flows[number];
        let (from, to, own, other) = match side {
            Side::Inside => (flow.inside, flow.remote, flow.next[0], flow.next[1]),
            Side::Outside => (flow.remote, flow.external, flow.next[1], flow.next[0]),
        };
        let (l2, vlan, end) = if side == Side::Inside { (18, Some(VLAN), 0) } else { (14, None, 1) };
        let (proto, l4) = if self.is_tcp { (6, 20) } else { (17, 8) };
        let payload = if self.is_tcp { payload } else { PAYLOAD };
        let length = u16::try_from(l4 + payload).unwrap_or(0);
        let (header, ethertype) = match self.family {
            Family::V4 => (20, ethernet::IPV4),
            Family::V6 => (ipv6::HEADER_BYTES, ethernet::IPV6),
        };
        let mut bytes = vec![0; (l2 + header + usize::from(length)).max(60)];
        let written = ethernet::write_header(&mut bytes, MACS[end], NEIGHBOURS[end], vlan, ethertype)
            .and_then(|at| ip_header(&mut bytes[at..], from.ip(), to.ip(), proto, length));
        debug_assert!(written.is_some(), "the frame has room for its headers");
        let l4_at = l2 + header;
        bytes[l4_at..l4_at + 2].copy_from_slice(&from.port().to_be_bytes());
        bytes[l4_at + 2..l4_at + 4].copy_from_slice(&to.port().to_be_bytes());
        if self.is_tcp {
            let acknowledged = if flags & ACK == 0 { 0 } else { other };
            bytes[l4_at + 4..l4_at + 8].copy_from_slice(&own.to_be_bytes());
            bytes[l4_at + 8..l4_at + 12].copy_from_slice(&acknowledged.to_be_bytes());
            bytes[l4_at + 12..l4_at + 16].copy_from_slice(&[0x50, flags, 0xff, 0xff]);
        } else {
            bytes[l4_at + 4..l4_at + 6].copy_from_slice(&length.to_be_bytes());
        }
        let packet = &mut bytes[l2..l4_at + usize::from(length)];
        match self.family {
            Family::V4 => checksum::fill_l4_v4(packet, header, proto),
            Family::V6 => checksum::fill_l4_v6(packet, header, proto),
        }
        HeapBuffer::trusted(&bytes)
    }
}

/// Writes a header of the addresses' family.
fn ip_header(buf: &mut [u8], src: IpAddr, dst: IpAddr, proto: u8, payload: u16) -> Option<usize> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            ipv4::Header { src, dst, proto, ttl: 64, tos: 0, id: 0, dont_fragment: true, payload }.write(buf)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            ipv6::Header { src, dst, next: proto, hop_limit: 64, traffic_class: 0, payload }.write(buf)
        }
        _ => None,
    }
}

/// Whether an address is one of the pool's network.
fn is_external(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[..2] == [198, 51],
        IpAddr::V6(address) => address.segments()[..2] == [0x2001, 0xdb8],
    }
}

/// Source address and port of an untagged frame.
fn source(frame: &HeapBuffer) -> Option<SocketAddr> {
    let (link, packet) = frame.frame().split_first_chunk::<14>()?;
    let (address, l4): (IpAddr, _) = if link.ends_with(&ethernet::IPV6.to_be_bytes()) {
        let (header, l4) = packet.split_first_chunk::<{ ipv6::HEADER_BYTES }>()?;
        (Ipv6Addr::from(*header.get(8..)?.first_chunk::<16>()?).into(), l4)
    } else {
        let (header, l4) = packet.split_first_chunk::<20>()?;
        (Ipv4Addr::from(*header.get(12..)?.first_chunk::<4>()?).into(), l4)
    };
    Some(SocketAddr::new(address, u16::from_be_bytes(*l4.first_chunk()?)))
}

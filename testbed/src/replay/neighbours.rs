//! Hosts that answer the router's ARP requests.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

use erhu_wire::{arp, ethernet};

use super::Plane;

/// A place on a port: port number and VLAN id, 0 for none.
type Place = (u16, u16);

/// Answers every ARP request of the router that is not for its own addresses.
#[derive(Debug, Default)]
pub struct Answerer {
    seen: HashMap<(Place, Ipv4Addr), [u8; 6]>,
    /// Requests that wait for their answer: port, VLAN id, request.
    asked: VecDeque<(u16, u16, arp::Arp)>,
}

impl Answerer {
    /// Remembers the MAC address that a frame's sender uses.
    pub fn note(&mut self, port: u16, frame: &[u8]) {
        let parsed = erhu_wire::parse(frame, erhu_wire::Verify::TrustBoth);
        let Some(source) = frame.get(6..12).and_then(|m| <[u8; 6]>::try_from(m).ok()) else { return };
        let address = match parsed.kind {
            erhu_wire::Kind::Fast | erhu_wire::Kind::Ipv4Odd(_) => {
                erhu_wire::ipv4::unpack_addresses(parsed.addresses)[0]
            }
            erhu_wire::Kind::Arp => match frame.get(usize::from(parsed.l3)..).and_then(arp::parse) {
                Some(packet) => packet.spa,
                None => return,
            },
            _ => return,
        };
        self.seen.insert(((port, parsed.vlan), address), source);
    }

    /// Looks at a frame that the router sent; a request is answered by [`Answerer::next_answer`].
    pub fn heard(&mut self, port: usize, frame: &[u8], plane: &Plane) {
        let parsed = erhu_wire::parse(frame, erhu_wire::Verify::TrustBoth);
        if parsed.kind != erhu_wire::Kind::Arp {
            return;
        }
        let Some(request) = frame.get(usize::from(parsed.l3)..).and_then(arp::parse) else { return };
        let Ok(port) = u16::try_from(port) else { return };
        if request.op != arp::REQUEST || plane.owns(IpAddr::V4(request.tpa)) {
            return;
        }
        self.asked.push_back((port, parsed.vlan, request));
    }

    /// The next answer, with the port that it comes in by.
    ///
    /// It is made only now: who has the address is who used it last of all that came before the answer, however
    /// many packets were offered together.
    pub fn next_answer(&mut self) -> Option<(u16, Vec<u8>)> {
        let (port, vlan, request) = self.asked.pop_front()?;
        let made_up = {
            let [a, b, c, d] = request.tpa.octets();
            [2, 0, a, b, c, d]
        };
        let mac = self.seen.get(&((port, vlan), request.tpa)).copied().unwrap_or(made_up);
        let tag = (vlan != 0).then_some(vlan);
        let header = ethernet::HEADER_BYTES + if tag.is_some() { ethernet::TAG_BYTES } else { 0 };
        let mut answer = vec![0; header + arp::BYTES];
        let at = ethernet::write_header(&mut answer, request.sha, mac, tag, ethernet::ARP)?;
        arp::write(&request.reply(mac), answer.get_mut(at..)?)?;
        Some((port, answer))
    }
}

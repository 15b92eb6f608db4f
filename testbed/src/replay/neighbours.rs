//! Hosts that answer the router's ARP requests and neighbour solicitations.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use erhu_wire::ethernet::{self, Mac};
use erhu_wire::{Addresses6, Kind, Odd, Verify, arp, nd};

use super::Plane;
use crate::packet::host_mac;

/// A place on a port: port number and VLAN id, 0 for none.
type Place = (u16, u16);

/// What the router asked.
#[derive(Clone, Copy, Debug)]
enum Question {
    Arp(arp::Arp),
    /// With the MAC address that it came from.
    Nd(nd::Solicitation, Mac),
}

/// Answers every ARP request and neighbour solicitation of the router that is not for its own addresses.
#[derive(Debug, Default)]
pub struct Answerer {
    seen: HashMap<(Place, IpAddr), Mac>,
    /// What waits for its answer.
    asked: VecDeque<(Place, Question)>,
}

impl Answerer {
    /// Remembers the MAC address that a frame's sender uses.
    pub fn note(&mut self, port: u16, frame: &[u8]) {
        let parsed = erhu_wire::parse(frame, Verify::TrustBoth);
        let Some(source) = mac_from(frame) else { return };
        let address: IpAddr = match parsed.kind {
            Kind::Fast | Kind::Ipv4Odd(_) => erhu_wire::ipv4::unpack_addresses(parsed.addresses)[0].into(),
            Kind::Fast6 | Kind::Ipv6Odd(_) => match Addresses6::read(frame, parsed.l3) {
                Some(addresses) => addresses.unpack().0.into(),
                None => return,
            },
            Kind::Arp => match frame.get(usize::from(parsed.l3)..).and_then(arp::parse) {
                Some(packet) => packet.spa.into(),
                None => return,
            },
            _ => return,
        };
        self.seen.insert(((port, parsed.vlan), address), source);
    }

    /// Looks at a frame that the router sent; a question is answered by [`Answerer::next_answer`].
    pub fn heard(&mut self, port: usize, frame: &[u8], plane: &Plane) {
        let parsed = erhu_wire::parse(frame, Verify::TrustBoth);
        let Ok(port) = u16::try_from(port) else { return };
        let question = match parsed.kind {
            Kind::Arp => match frame.get(usize::from(parsed.l3)..).and_then(arp::parse) {
                Some(request) if request.op == arp::REQUEST => Question::Arp(request),
                _ => return,
            },
            Kind::Ipv6Odd(Odd::Discovery) => {
                let packet = frame.get(usize::from(parsed.l3)..usize::from(parsed.end)).unwrap_or_default();
                match (nd::parse(packet, usize::from(parsed.l4 - parsed.l3)), mac_from(frame)) {
                    (Some(nd::Message::Solicitation(asked)), Some(mac)) => Question::Nd(asked, mac),
                    _ => return,
                }
            }
            _ => return,
        };
        if !plane.owns(question.target()) {
            self.asked.push_back(((port, parsed.vlan), question));
        }
    }

    /// The next answer, with the port that it comes in by.
    ///
    /// It is made only now: who has the address is who used it last of all that came before the answer, however
    /// many packets were offered together.
    pub fn next_answer(&mut self) -> Option<(u16, Vec<u8>)> {
        let (place, question) = self.asked.pop_front()?;
        let (port, vlan) = place;
        let target = question.target();
        let mac = self.seen.get(&(place, target)).copied().unwrap_or_else(|| host_mac(target));
        let tag = (vlan != 0).then_some(vlan);
        let mut answer = vec![0; ethernet::HEADER_BYTES + ethernet::TAG_BYTES + nd::BYTES];
        let (to, ethertype) = match question {
            Question::Arp(request) => (request.sha, ethernet::ARP),
            Question::Nd(asked, mac) => (asked.mac.unwrap_or(mac), ethernet::IPV6),
        };
        let at = ethernet::write_header(&mut answer, to, mac, tag, ethertype)?;
        let body = answer.get_mut(at..)?;
        let length = match question {
            Question::Arp(request) => arp::write(&request.reply(mac), body)?,
            Question::Nd(asked, _) => asked.answer(mac, false, true).write(body)?,
        };
        answer.truncate(at + length);
        Some((port, answer))
    }
}

impl Question {
    fn target(&self) -> IpAddr {
        match self {
            Self::Arp(request) => request.tpa.into(),
            Self::Nd(asked, _) => asked.target.into(),
        }
    }
}

fn mac_from(frame: &[u8]) -> Option<Mac> {
    frame.get(6..12)?.try_into().ok()
}

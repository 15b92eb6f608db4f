//! A server: answers ARP, ICMP echo and UDP for its addresses.

use std::net::Ipv4Addr;

use anyhow::Result;
use capsule::batch::{Batch, Either, Poll};
use capsule::net::MacAddr;
use capsule::packets::Packet;
use capsule::{Mbuf, PortQueue};

use crate::frame::{self, Asked};
use crate::runtime::{self, Idle, Settings};

/// Answers until a signal.
pub fn run(settings: &Settings, device: String, addresses: Vec<Ipv4Addr>) -> Result<()> {
    let mut runtime = runtime::build(settings, &[("port".to_owned(), device)])?;
    let idle = Idle::announced(settings);
    runtime.add_pipeline_to_port("port", move |queue: PortQueue| {
        let (mac, addresses, output) = (queue.mac_addr(), addresses.clone(), queue.clone());
        Poll::new(idle.patient(queue)).filter_map(move |mbuf| answer(mbuf, mac, &addresses)).send(output)
    })?;
    runtime::execute(runtime)
}

fn answer(mbuf: Mbuf, mac: MacAddr, addresses: &[Ipv4Addr]) -> Result<Either<Mbuf>> {
    Ok(match frame::serve(mbuf, |address| addresses.contains(&address).then_some(mac))? {
        Asked::Answered(answer) => Either::Keep(answer),
        Asked::Udp(udp)
            if frame::has_right_header_checksum(udp.envelope()) && frame::has_right_udp_checksum(&udp) =>
        {
            Either::Keep(frame::echo(udp, mac))
        }
        Asked::Udp(udp) => Either::Drop(udp.reset()),
        Asked::Other(mbuf) => Either::Drop(mbuf),
        // The frame was consumed; there is nothing to send.
        Asked::Neighbour(..) => anyhow::bail!("an ARP reply nobody asked for"),
    })
}

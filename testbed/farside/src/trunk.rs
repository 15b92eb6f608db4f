//! Untagged ports on one side, an 802.1Q trunk on the other.

use std::str::FromStr;

use anyhow::Result;
use capsule::batch::{Batch, PacketTx, Poll};
use capsule::{Mbuf, PortQueue};

use crate::frame;
use crate::runtime::{self, Idle, Settings};

/// An untagged port and the VLAN it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    vlan: u16,
    device: String,
}

impl FromStr for Access {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (vlan, device) = text.split_once('=').ok_or("expected VLAN=DEVICE, e.g. 100=net_tap0,iface=a0")?;
        match vlan.parse() {
            Ok(vlan @ 1..=4094) => Ok(Self { vlan, device: device.to_owned() }),
            _ => Err(format!("{vlan} is no VLAN; they are 1 to 4094")),
        }
    }
}

/// Forwards until a signal.
pub fn run(settings: &Settings, accesses: Vec<Access>, trunk: String) -> Result<()> {
    let name = |access: &Access| format!("vlan{}", access.vlan);
    let mut ports = vec![("trunk".to_owned(), trunk)];
    ports.extend(accesses.iter().map(|access| (name(access), access.device.clone())));
    let mut runtime = runtime::build(settings, &ports)?;
    let idle = Idle::announced(settings);

    for access in &accesses {
        let (name, vlan, idle) = (name(access), access.vlan, idle.clone());
        runtime.add_pipeline_to_core(settings.core, move |mut queues| {
            let (access, trunk) = (queues.remove(&name), queues.remove("trunk"));
            let (access, trunk) = (access.expect("it is on this core"), trunk.expect("it is on this core"));
            Poll::new(idle.patient(access)).map(move |mbuf| frame::tag(mbuf, vlan)).send(trunk)
        })?;
    }
    runtime.add_pipeline_to_core(settings.core, move |mut queues| {
        let trunk = queues.remove("trunk").expect("it is on this core");
        let ways = accesses
            .iter()
            .map(|access| Way {
                vlan: access.vlan,
                queue: queues.remove(&name(access)).expect("it is on this core"),
                waiting: Vec::new(),
            })
            .collect();
        Poll::new(idle.patient(trunk)).map(Ok).send(Untag { ways })
    })?;
    runtime::execute(runtime)
}

/// Sends tagged frames, untagged, out of the port of their VLAN. Others are dropped.
struct Untag {
    ways: Vec<Way>,
}

struct Way {
    vlan: u16,
    queue: PortQueue,
    waiting: Vec<Mbuf>,
}

impl PacketTx for Untag {
    fn transmit(&mut self, packets: Vec<Mbuf>) {
        for mut mbuf in packets {
            let Some(vlan) = frame::vlan(&mbuf) else {
                continue;
            };
            let Some(way) = self.ways.iter_mut().find(|way| way.vlan == vlan) else {
                continue;
            };
            if frame::untag(&mut mbuf).is_ok() {
                way.waiting.push(mbuf);
            }
        }
        for way in &mut self.ways {
            // capsule panics on an empty burst.
            if !way.waiting.is_empty() {
                way.queue.transmit(std::mem::take(&mut way.waiting));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_port_names_its_vlan_first() {
        let access: Access = "100=net_tap0,iface=a=b".parse().expect("well-formed");
        assert_eq!(access, Access { vlan: 100, device: "net_tap0,iface=a=b".to_owned() });
        assert!("0=net_tap0".parse::<Access>().is_err());
        assert!("4095=net_tap0".parse::<Access>().is_err());
        assert!("net_tap0".parse::<Access>().is_err());
    }
}

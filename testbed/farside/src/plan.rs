//! What is sent: tenants with equal addresses, their hosts and flows, and the mark each packet bears.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

use capsule::net::MacAddr;
use clap::Args;

/// The traffic, the same on both sides of the router.
#[derive(Debug, Clone, Args)]
pub struct Plan {
    /// A tenant: VLAN (0: untagged), its gateway, its first host, and the addresses it may appear with
    /// outside (one, FIRST-LAST or a prefix; empty: any but its own). Repeat for each.
    #[arg(long = "tenant", value_name = "VLAN,GATEWAY,FIRST_HOST,POOL", required = true)]
    pub tenants: Vec<Tenant>,
    /// An outside server, ADDRESS:PORT. Repeat for more: every flow goes to each.
    #[arg(long = "target", value_name = "ADDRESS:PORT", required = true)]
    pub targets: Vec<SocketAddrV4>,
    /// Hosts per tenant, at consecutive addresses.
    #[arg(long, default_value_t = 4)]
    pub hosts: u16,
    /// Flows per host, from consecutive ports.
    #[arg(long, default_value_t = 16)]
    pub flows: u16,
    /// Packets per flow and target.
    #[arg(long, default_value_t = 4)]
    pub packets: u32,
    /// Bytes of UDP payload, at least 20.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(20..=1472))]
    pub payload: u16,
    /// A flow must keep one outside address and port whatever the target (RFC 4787 section 4.1).
    #[arg(long)]
    pub endpoint_independent: bool,
}

/// First source port.
const FIRST_PORT: u16 = 10_000;

/// One tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// `None`: untagged.
    pub vlan: Option<u16>,
    /// The router's inside address.
    pub gateway: Ipv4Addr,
    /// Address of host 0.
    pub first_host: Ipv4Addr,
    /// Outside addresses, first and last.
    pub pool: Option<(Ipv4Addr, Ipv4Addr)>,
}

impl FromStr for Tenant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split(',').collect();
        let [vlan, gateway, first_host, pool] = fields[..] else {
            return Err("expected VLAN,GATEWAY,FIRST_HOST,POOL".to_owned());
        };
        let address = |text: &str| text.parse::<Ipv4Addr>().map_err(|_| format!("{text} is no IPv4 address"));
        let vlan = match vlan.parse() {
            Ok(0) => None,
            Ok(vlan @ 1..=4094) => Some(vlan),
            _ => {
                return Err(format!("{vlan} is no VLAN; they are 1 to 4094, or 0 for none"));
            }
        };
        let pool = if pool.is_empty() {
            None
        } else if let Some((first, last)) = pool.split_once('-') {
            Some((address(first)?, address(last)?))
        } else if let Some((prefix, len)) = pool.split_once('/') {
            let host_bits = match len.parse::<u32>() {
                Ok(len @ 0..=32) => u32::MAX.checked_shr(len).unwrap_or(0),
                _ => return Err(format!("{len} is no prefix length")),
            };
            let base = u32::from(address(prefix)?) & !host_bits;
            Some((Ipv4Addr::from(base), Ipv4Addr::from(base | host_bits)))
        } else {
            Some((address(pool)?, address(pool)?))
        };
        Ok(Self { vlan, gateway: address(gateway)?, first_host: address(first_host)?, pool })
    }
}

impl Tenant {
    /// Address of a host.
    pub fn host(&self, host: u16) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.first_host).wrapping_add(u32::from(host)))
    }

    /// Which of `hosts` hosts has an address.
    pub fn host_of(&self, address: Ipv4Addr, hosts: u16) -> Option<u16> {
        let offset = u32::from(address).wrapping_sub(u32::from(self.first_host));
        u16::try_from(offset).ok().filter(|&host| host < hosts)
    }
}

/// One inside endpoint, over all tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// Index of the tenant.
    pub tenant: u16,
    /// Index of the host.
    pub host: u16,
    /// Index of the flow.
    pub flow: u16,
}

/// What a packet says about itself in its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mark {
    /// Where it was sent from.
    pub from: Endpoint,
    /// Index of its target.
    pub target: u16,
    /// Number within its flow and target; [`Mark::WARM_UP`] for those that only wake the router up.
    pub sequence: u32,
}

impl Mark {
    /// Sequence number of packets that are not counted.
    pub const WARM_UP: u32 = u32::MAX;
    const MAGIC: [u8; 4] = *b"erhu";
    const LEN: usize = 16;

    /// The payload, `len` bytes: the mark, then bytes that follow from it.
    pub fn payload(&self, len: u16) -> Vec<u8> {
        let mut payload = Self::MAGIC.to_vec();
        for field in [self.from.tenant, self.from.host, self.from.flow, self.target] {
            payload.extend(field.to_be_bytes());
        }
        payload.extend(self.sequence.to_be_bytes());
        let mut filler = self.sequence.wrapping_mul(31).wrapping_add(u32::from(self.from.flow));
        payload.resize_with(usize::from(len), || {
            filler = filler.wrapping_mul(1_103_515_245).wrapping_add(12_345);
            filler.to_be_bytes()[0]
        });
        payload
    }

    /// The mark of a payload, if every byte is as it was sent.
    pub fn read(payload: &[u8], plan: &Plan) -> Option<Self> {
        let fields = payload.strip_prefix(&Self::MAGIC)?.get(..Self::LEN - Self::MAGIC.len())?;
        let field = |at: usize| u16::from_be_bytes([fields[at], fields[at + 1]]);
        let mark = Self {
            from: Endpoint { tenant: field(0), host: field(2), flow: field(4) },
            target: field(6),
            sequence: u32::from_be_bytes([fields[8], fields[9], fields[10], fields[11]]),
        };
        let known = usize::from(mark.from.tenant) < plan.tenants.len()
            && mark.from.host < plan.hosts
            && mark.from.flow < plan.flows
            && usize::from(mark.target) < plan.targets.len();
        (known && mark.payload(plan.payload) == payload).then_some(mark)
    }
}

impl Plan {
    /// All packets, in the order they are sent: a round of all flows after the other.
    pub fn total(&self) -> u64 {
        self.flows_total() * u64::from(self.packets)
    }

    /// Flows, counted once per target.
    pub fn flows_total(&self) -> u64 {
        let endpoints = self.tenants.len() as u64 * u64::from(self.hosts) * u64::from(self.flows);
        endpoints * self.targets.len() as u64
    }

    /// The `number`th packet.
    pub fn mark(&self, number: u64) -> Mark {
        let mut rest = number;
        let mut index = |size: u64| {
            let index = rest % size.max(1);
            rest /= size.max(1);
            u16::try_from(index).unwrap_or(u16::MAX)
        };
        let tenant = index(self.tenants.len() as u64);
        let host = index(u64::from(self.hosts));
        let flow = index(u64::from(self.flows));
        let target = index(self.targets.len() as u64);
        let sequence = u32::try_from(rest).unwrap_or(Mark::WARM_UP);
        Mark { from: Endpoint { tenant, host, flow }, target, sequence }
    }

    /// A packet that only wakes the router up for a tenant.
    pub fn warm_up(&self, tenant: u16) -> Mark {
        Mark { from: Endpoint { tenant, host: 0, flow: 0 }, target: 0, sequence: Mark::WARM_UP }
    }

    /// Source port of a flow.
    pub fn port(&self, flow: u16) -> u16 {
        FIRST_PORT.wrapping_add(flow)
    }

    /// Link address of a host: equal for tenants too, as their networks are separate.
    pub fn mac(&self, host: u16) -> MacAddr {
        let [high, low] = host.to_be_bytes();
        MacAddr::new(2, 0xfa, 0x12, 0, high, low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            tenants: vec![
                "100,10.0.0.1,10.0.0.10,203.0.113.16/30".parse().expect("well-formed"),
                "0,10.0.0.1,10.0.0.10,".parse().expect("well-formed"),
            ],
            targets: vec![SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 7), 9000)],
            hosts: 3,
            flows: 5,
            packets: 2,
            payload: 40,
            endpoint_independent: false,
        }
    }

    #[test]
    fn a_tenant_is_vlan_gateway_host_and_pool() {
        let [one, two] = &plan().tenants[..] else { panic!("two tenants") };
        assert_eq!(one.vlan, Some(100));
        assert_eq!(one.pool, Some((Ipv4Addr::new(203, 0, 113, 16), Ipv4Addr::new(203, 0, 113, 19))));
        assert_eq!(one.host_of(Ipv4Addr::new(10, 0, 0, 12), 3), Some(2));
        assert_eq!(one.host_of(Ipv4Addr::new(10, 0, 0, 13), 3), None);
        assert_eq!((two.vlan, two.pool), (None, None));
        assert!("5000,10.0.0.1,10.0.0.2,".parse::<Tenant>().is_err());
        assert!("1,10.0.0.1,10.0.0.2,203.0.113.0/33".parse::<Tenant>().is_err());
        let all: Tenant = "1,10.0.0.1,10.0.0.2,0.0.0.0/0".parse().expect("well-formed");
        assert_eq!(all.pool, Some((Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST)));
    }

    #[test]
    fn every_packet_of_the_plan_has_its_own_mark_and_can_be_read_back() {
        let plan = plan();
        assert_eq!(plan.total(), 60);
        let marks: std::collections::BTreeSet<Mark> = (0..plan.total()).map(|n| plan.mark(n)).collect();
        assert_eq!(marks.len(), 60);
        for mark in marks {
            let mut payload = mark.payload(plan.payload);
            assert_eq!(payload.len(), 40);
            assert_eq!(Mark::read(&payload, &plan), Some(mark));
            *payload.last_mut().expect("40 bytes") ^= 1;
            assert_eq!(Mark::read(&payload, &plan), None);
        }
    }
}

//! Says what must become of a tenant's packet, from the packet alone and what came before it.
//!
//! All packets of a capture come from inside, those of clients and of servers alike, and nothing comes from outside in
//! the pass that is judged. So every packet is of an original direction, and only the upper half of the TCP table
//! counts (as the kernel has it): a connection is what one end sent.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use erhu_testbed::packet::read::{Content, Ip, Seen, Tcp, Upper};

/// The main example rejects a tenant's mail.
pub const REJECTED_PORT: u16 = 25;

/// What must become of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It leaves translated.
    Must,
    /// It may: the oracle does not know.
    May,
    /// It does not leave by the outside.
    MustNot,
}

/// TCP states that packets of one direction can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    SynSent,
    Established,
    FinWait,
    CloseWait,
    LastAck,
    TimeWait,
}

impl State {
    /// Seconds that it lasts. Of a connection picked up in mid-stream and never answered: five minutes.
    const fn seconds(self) -> f64 {
        match self {
            Self::SynSent | Self::FinWait | Self::TimeWait => 120.0,
            Self::Established => 300.0,
            Self::CloseWait => 60.0,
            Self::LastAck => 30.0,
        }
    }
}

/// A connection as its one end made it.
#[derive(Clone, Copy, Debug)]
struct Connection {
    state: State,
    deadline: f64,
    /// Sequence number behind its SYN, if it began with one: nothing is known of the other side then, and resets are
    /// held against it. A connection picked up in mid-stream is believed.
    end: Option<u32>,
}

/// What it has seen so far.
#[derive(Debug, Default)]
pub struct Oracle {
    tcp: HashMap<(SocketAddrV4, SocketAddrV4), Connection>,
    /// Who asked whom within the tenant's network, though its own answers would leave by the outside.
    within: HashSet<(Ipv4Addr, Ipv4Addr)>,
}

impl Oracle {
    /// Judges the next packet, at a time in seconds.
    pub fn judge(&mut self, now: f64, seen: &Seen) -> Verdict {
        let Content::Ip(ip) = &seen.content else { return Verdict::MustNot };
        if !ip.checksum_ok || ip.ttl <= 1 || !is_unicast(ip.source) || !is_unicast(ip.destination) {
            return Verdict::MustNot;
        }
        if is_inside(ip.destination) {
            // Of the tenant's own network, or the router's: never outside. Answers within it make it hard to say more.
            self.within.insert((ip.source, ip.destination));
            return Verdict::MustNot;
        }
        if self.within.contains(&(ip.destination, ip.source)) {
            // The answer of a connection within the zone does not leave the zone.
            return Verdict::May;
        }
        if matches!(&ip.upper, Upper::Tcp(tcp) if tcp.dport == REJECTED_PORT) {
            return Verdict::MustNot;
        }
        if is_outside_network(ip.destination) || is_router_or_pool(ip.source) || ip.length > 1500 || is_routed(ip) {
            return Verdict::May;
        }
        match &ip.upper {
            // Bytes between the datagram's end and the packet's: what its checksum covers is a matter of taste.
            Upper::Udp(udp) if 8 + udp.payload.len() < ip_payload_len(ip) => Verdict::May,
            Upper::Udp(udp) if udp.checksum_ok => Verdict::Must,
            Upper::Icmp(icmp) if !icmp.checksum_ok => Verdict::MustNot,
            Upper::Icmp(icmp) if icmp.kind == 8 => Verdict::Must,
            // Replies, errors and other messages: only if they belong to something.
            Upper::Icmp(_) => Verdict::May,
            Upper::Tcp(tcp) if tcp.checksum_ok && flags_are_sound(tcp.flags) => self.judge_tcp(now, seen, tcp),
            _ => Verdict::MustNot,
        }
    }

    fn judge_tcp(&mut self, now: f64, seen: &Seen, tcp: &Tcp) -> Verdict {
        let (key, flags) = ((seen.source(), seen.destination()), tcp.flags);
        let (syn, fin, rst, ack) = (flags & 2 != 0, flags & 1 != 0, flags & 4 != 0, flags & 16 != 0);
        let known = self.tcp.get(&key).copied();
        if known.is_some_and(|c| (c.deadline - now).abs() <= 1.5) {
            // Whether it has just ended is a matter of a timer's resolution: begin again.
            self.tcp.remove(&key);
            self.open(now, key, tcp);
            return Verdict::May;
        }
        let Some(connection) = known.filter(|c| c.deadline > now) else {
            self.tcp.remove(&key);
            return if self.open(now, key, tcp) { Verdict::Must } else { Verdict::MustNot };
        };
        use State::{CloseWait, Established, FinWait, LastAck, SynSent, TimeWait};
        if rst {
            // Beyond what the SYN's side may send, or acknowledging what the other side has not been seen to send.
            let acknowledges = ack && tcp.ack != 0 && tcp.ack.wrapping_neg() > 66_000;
            if connection.end.is_some_and(|end| (tcp.seq != 0 && is_after(tcp.seq, end)) || acknowledges) {
                return Verdict::MustNot;
            }
            // Never answered, so it ends at once.
            self.tcp.remove(&key);
            return Verdict::Must;
        }
        let next = match (connection.state, syn, fin, ack) {
            (_, true, _, true) => return Verdict::MustNot, // SYN/ACK of the opener
            // Sent again, perhaps with a later number: passes, extends nothing.
            (SynSent, true, ..) => {
                let end = connection.end.map(|end| if is_after(end_of(tcp), end) { end_of(tcp) } else { end });
                self.tcp.insert(key, Connection { end, ..connection });
                return Verdict::Must;
            }
            (Established | FinWait | CloseWait | LastAck, true, ..) => return Verdict::Must,
            (TimeWait, true, ..) => {
                self.open(now, key, tcp);
                return Verdict::Must;
            }
            (SynSent, ..) => return Verdict::MustNot,
            (Established, _, true, _) => FinWait,
            (Established, ..) => Established,
            (FinWait | CloseWait | LastAck, _, true, _) => LastAck,
            (FinWait | CloseWait, ..) => CloseWait,
            (LastAck | TimeWait, ..) => TimeWait,
        };
        self.tcp.insert(key, Connection { state: next, deadline: now + next.seconds(), ..connection });
        Verdict::Must
    }

    /// A first packet; whether it makes a connection.
    fn open(&mut self, now: f64, key: (SocketAddrV4, SocketAddrV4), tcp: &Tcp) -> bool {
        let (state, end) = match tcp.flags & 0x17 {
            2 => (State::SynSent, Some(end_of(tcp))),
            16 => (State::Established, None),
            _ => return false,
        };
        self.tcp.insert(key, Connection { state, deadline: now + state.seconds(), end });
        true
    }
}

/// The sequence number behind a SYN's data.
pub fn end_of(tcp: &Tcp) -> u32 {
    tcp.seq.wrapping_add(1).wrapping_add(u32::try_from(tcp.payload.len()).unwrap())
}

/// Whether one sequence number comes after another.
fn is_after(a: u32, b: u32) -> bool {
    let ahead = a.wrapping_sub(b);
    ahead != 0 && ahead < 1 << 31
}

/// SYN, SYN+ACK, RST, FIN+ACK, ACK, some with URG, whatever PSH, ECE and CWR say.
fn flags_are_sound(flags: u8) -> bool {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    const URG: u8 = 32;
    let seen = flags & (FIN | SYN | RST | ACK | URG);
    [SYN, SYN | URG, SYN | ACK, RST, RST | ACK, FIN | ACK, FIN | ACK | URG, ACK, ACK | URG].contains(&seen)
}

/// Not multicast, broadcast, 0/8, 127/8 or 240/4.
pub fn is_unicast(address: Ipv4Addr) -> bool {
    !matches!(address.octets()[0], 0 | 127 | 224..)
}

/// Of blue's own network.
fn is_inside(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [10, 0, 0, _])
}

/// Of the network outside, where some addresses are the router's or a pool's.
fn is_outside_network(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [198, 51, 100, _])
}

fn is_router_or_pool(address: Ipv4Addr) -> bool {
    is_outside_network(address) || address == Ipv4Addr::new(10, 0, 0, 1)
}

/// Whether its options ask for a route of their own.
pub fn is_routed(ip: &Ip) -> bool {
    ip.options.iter().any(|byte| matches!(byte, 131 | 137))
}

pub fn ip_payload_len(ip: &Ip) -> usize {
    usize::from(ip.length) - 20 - ip.options.len()
}

/// Whether one packet can be the other, its source translated: everything else is the same.
pub fn is_translation(came: &Seen, left: &Seen) -> bool {
    let (Content::Ip(a), Content::Ip(b)) = (&came.content, &left.content) else { return false };
    let same_port = match (&a.upper, &b.upper) {
        (Upper::Udp(a), Upper::Udp(b)) => a.dport == b.dport,
        (Upper::Tcp(a), Upper::Tcp(b)) => a.dport == b.dport,
        _ => true,
    };
    same_port && a.destination == b.destination && is_same_but_for_ends(a, b)
}

/// Whether one packet can be the other, its destination translated back: `came` has the host inside already.
pub fn is_translated_back(came: &Seen, left: &Seen) -> bool {
    let (Content::Ip(a), Content::Ip(b)) = (&came.content, &left.content) else { return false };
    let same_ports = match (&a.upper, &b.upper) {
        (Upper::Udp(a), Upper::Udp(b)) => (a.sport, a.dport) == (b.sport, b.dport),
        (Upper::Tcp(a), Upper::Tcp(b)) => (a.sport, a.dport) == (b.sport, b.dport),
        (Upper::Icmp(a), Upper::Icmp(b)) => a.rest == b.rest,
        _ => false,
    };
    same_ports && (a.source, a.destination) == (b.source, b.destination) && is_same_but_for_ends(a, b)
}

/// Header, but for the time to live and the ends, and payload are the same.
fn is_same_but_for_ends(came: &Ip, left: &Ip) -> bool {
    let same = |a: &Ip, b: &Ip| {
        (a.protocol, a.id, a.length, a.tos, a.df) == (b.protocol, b.id, b.length, b.tos, b.df)
            && a.ttl == b.ttl + 1
            && a.options == b.options
    };
    let payload = match (&came.upper, &left.upper) {
        (Upper::Udp(a), Upper::Udp(b)) => (&a.payload, a.has_checksum) == (&b.payload, b.has_checksum),
        (Upper::Tcp(a), Upper::Tcp(b)) => {
            (a.seq, a.ack, a.flags, a.window) == (b.seq, b.ack, b.flags, b.window)
                && (&a.options, &a.payload) == (&b.options, &b.payload)
        }
        (Upper::Icmp(a), Upper::Icmp(b)) => (a.kind, a.code, a.payload.len()) == (b.kind, b.code, b.payload.len()),
        _ => false,
    };
    same(came, left) && payload
}

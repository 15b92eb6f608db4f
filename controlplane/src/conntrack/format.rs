//! Lines as conntrack(8) 1.4.7 prints them, for connections and for events.
//!
//! Compared with the real tool on a recent kernel: a DESTROY line has the time left only where some was left (the
//! connection was deleted, it did not expire), and keeps the TCP state; counters are on DESTROY lines and never on the
//! others; only table lines have `use=`. The mark is always printed; the kernel leaves out a mark of 0 in
//! events about packets.

use std::fmt::Write as _;

use erhu_planes::TICKS_PER_SECOND;
use erhu_planes::connections::{Connection, TCP_STATES, status};
use erhu_planes::events::{Event, mask};
use erhu_planes::tuple::{Tuple, proto};

/// What lines show besides the usual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineOptions {
    /// The family first (`-o extended`).
    pub extended: bool,
    /// The id last (`-o id`).
    pub id: bool,
    /// The time of the event first (`-o timestamp`); nothing for connections.
    pub timestamp: bool,
}

/// UDP-Lite.
const UDPLITE: u8 = 136;
/// DCCP.
const DCCP: u8 = 33;

/// The name of an IP protocol as conntrack(8) prints it.
pub fn protocol_name(protocol: u8) -> &'static str {
    match protocol {
        proto::ICMP => "icmp",
        proto::TCP => "tcp",
        proto::UDP => "udp",
        DCCP => "dccp",
        proto::GRE => "gre",
        proto::ICMPV6 => "icmpv6",
        proto::SCTP => "sctp",
        UDPLITE => "udplite",
        _ => "unknown",
    }
}

/// The protocol of a name or a number.
pub fn protocol_number(text: &str) -> Option<u8> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let text = text.to_ascii_lowercase();
    let known = [proto::ICMP, proto::TCP, proto::UDP, DCCP, proto::GRE, proto::ICMPV6, proto::SCTP, UDPLITE];
    known.into_iter().find(|p| protocol_name(*p) == text)
}

/// Whether tuples of a protocol have ports.
pub fn has_ports(protocol: u8) -> bool {
    matches!(protocol, proto::TCP | proto::UDP | proto::SCTP | DCCP | UDPLITE)
}

/// `(name, address family number)` of a tuple.
pub(super) fn family(tuple: &Tuple) -> (&'static str, u8) {
    if tuple.src.is_ipv4() { ("ipv4", 2) } else { ("ipv6", 10) }
}

/// The name of a TCP state; `None` for other protocols and unknown numbers.
pub(super) fn state_name(protocol: u8, state: u8) -> Option<&'static str> {
    if protocol == proto::TCP { TCP_STATES.get(usize::from(state)).copied() } else { None }
}

/// A connection as one line of `conntrack -L`, without the line's end.
pub fn connection_line(connection: &Connection, now_tick: u32, options: LineOptions) -> String {
    let mut line = String::with_capacity(256);
    write_connection(&mut line, connection, now_tick, options);
    line
}

/// Appends what [`connection_line`] returns.
pub fn write_connection(line: &mut String, connection: &Connection, now_tick: u32, options: LineOptions) {
    let (original, reply) = (&connection.original, &connection.reply);
    Parts {
        original: &original.tuple,
        reply: &reply.tuple,
        counts: Some([[original.packets, original.bytes], [reply.packets, reply.bytes]]),
        seconds: Some(connection.seconds_left(now_tick)),
        state: connection.state,
        status: connection.status,
        mark: connection.mark,
        in_use: true,
        id: options.id.then_some(connection.id),
    }
    .write(line, options.extended);
}

/// An event as one line of `conntrack -E`, without the line's end.
///
/// The timeout of a DESTROY event is the time that was left; 0, for one that expired, is not printed.
pub fn event_line(event: &Event, options: LineOptions) -> String {
    let mut line = String::with_capacity(256);
    if options.timestamp {
        let micros = event.time_ns / 1000;
        push(&mut line, format_args!("[{}.{:06}]\t", micros / 1_000_000, micros % 1_000_000));
    }
    let ended = event.mask & mask::DESTROY != 0;
    line.push_str(if ended {
        "[DESTROY] "
    } else if event.mask & mask::NEW != 0 {
        "    [NEW] "
    } else {
        " [UPDATE] "
    });
    let seconds = u64::from(event.timeout / TICKS_PER_SECOND);
    Parts {
        original: &event.original,
        reply: &event.reply,
        counts: ended.then_some([event.original_count, event.reply_count]),
        seconds: (!ended || seconds > 0).then_some(seconds),
        state: event.state,
        status: event.status,
        mark: event.mark,
        in_use: false,
        id: options.id.then_some(event.id),
    }
    .write(&mut line, options.extended);
    line
}

/// What a line is made of.
struct Parts<'a> {
    original: &'a Tuple,
    reply: &'a Tuple,
    /// Packets and bytes by direction.
    counts: Option<[[u64; 2]; 2]>,
    seconds: Option<u64>,
    state: u8,
    status: u32,
    mark: u32,
    in_use: bool,
    id: Option<u64>,
}

/// Appends; a `String` takes everything.
fn push(line: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = line.write_fmt(what);
}

impl Parts<'_> {
    fn write(&self, line: &mut String, extended: bool) {
        if extended {
            let (name, number) = family(self.original);
            push(line, format_args!("{name:<8} {number} "));
        }
        let protocol = self.original.proto;
        push(line, format_args!("{:<8} {protocol} ", protocol_name(protocol)));
        if let Some(seconds) = self.seconds {
            push(line, format_args!("{seconds} "));
        }
        if let Some(state) = state_name(protocol, self.state) {
            push(line, format_args!("{state} "));
        }
        let (zone, same_zone) = (self.original.zone, self.original.zone == self.reply.zone);
        tuple(line, self.original);
        if !same_zone && zone != 0 {
            push(line, format_args!("zone-orig={zone} "));
        }
        if let Some([[packets, bytes], _]) = self.counts {
            push(line, format_args!("packets={packets} bytes={bytes} "));
        }
        if self.status & status::SEEN_REPLY == 0 {
            line.push_str("[UNREPLIED] ");
        }
        tuple(line, self.reply);
        if !same_zone && self.reply.zone != 0 {
            push(line, format_args!("zone-reply={} ", self.reply.zone));
        }
        if let Some([_, [packets, bytes]]) = self.counts {
            push(line, format_args!("packets={packets} bytes={bytes} "));
        }
        if self.status & status::ASSURED != 0 {
            line.push_str("[ASSURED] ");
        }
        push(line, format_args!("mark={}", self.mark));
        if same_zone && zone != 0 {
            push(line, format_args!(" zone={zone}"));
        }
        if self.in_use {
            line.push_str(" use=1");
        }
        if let Some(id) = self.id {
            push(line, format_args!(" id={id}"));
        }
    }
}

/// Appends addresses and whatever the protocol has in the place of ports.
fn tuple(line: &mut String, tuple: &Tuple) {
    push(line, format_args!("src={} dst={} ", tuple.src, tuple.dst));
    let Tuple { sport, dport, .. } = tuple;
    if tuple.is_icmp() {
        push(line, format_args!("type={} code={} id={sport} ", dport >> 8, dport & 0xff));
    } else if has_ports(tuple.proto) {
        push(line, format_args!("sport={sport} dport={dport} "));
    } else if tuple.proto == proto::GRE {
        push(line, format_args!("srckey={sport:#x} dstkey={dport:#x} "));
    }
}

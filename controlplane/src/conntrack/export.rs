//! The other forms of a table: `-o save`, `-o xml` (both as conntrack(8) 1.4.7 writes them) and JSON.

use std::fmt::Write as _;

use erhu_planes::connections::{Connection, Direction, status};
use erhu_planes::tuple::{Tuple, proto};
use serde::Serialize;

use super::format::{family, has_ports, protocol_name, state_name};

/// Names of status bits that conntrack(8) knows, in the order it writes them.
pub(super) const STATUS_NAMES: [(&str, u32); 4] = [
    ("EXPECTED", status::EXPECTED),
    ("SEEN_REPLY", status::SEEN_REPLY),
    ("ASSURED", status::ASSURED),
    ("FIXED_TIMEOUT", status::FIXED_TIMEOUT),
];

/// Whether a direction's address was translated, so that `-n` or `-g` says what the other tuple does not.
fn is_source_translated(connection: &Connection) -> bool {
    connection.has(status::SRC_NAT) && connection.reply.tuple.dst != connection.original.tuple.src
}

fn is_destination_translated(connection: &Connection) -> bool {
    connection.has(status::DST_NAT) && connection.reply.tuple.src != connection.original.tuple.dst
}

/// Appends the options of conntrack(8) that would make this connection, without the line's end.
pub(super) fn write_save(line: &mut String, connection: &Connection, now_tick: u32) {
    let (original, reply) = (&connection.original.tuple, &connection.reply.tuple);
    let names: Vec<&str> =
        STATUS_NAMES.iter().filter(|(_, bit)| connection.has(*bit)).map(|(name, _)| *name).collect();
    let names = if names.is_empty() { "UNSET".to_owned() } else { names.join(",") };
    push(line, format_args!("-A -t {} -u {names} ", connection.seconds_left(now_tick)));
    match (original.zone, reply.zone) {
        (0, 0) => {}
        (a, b) if a == b => push(line, format_args!("-w {a} ")),
        (a, b) => {
            if a != 0 {
                push(line, format_args!("--orig-zone {a} "));
            }
            if b != 0 {
                push(line, format_args!("--reply-zone {b} "));
            }
        }
    }
    let source = if is_destination_translated(connection) { "-g" } else { "-r" };
    let destination = if is_source_translated(connection) { "-n" } else { "-q" };
    push(
        line,
        format_args!(
            "-s {} -d {} {source} {} {destination} {} -p ",
            original.src, original.dst, reply.src, reply.dst
        ),
    );
    match protocol_name(original.proto) {
        "unknown" => push(line, format_args!("{}", original.proto)),
        name => line.push_str(name),
    }
    if original.is_icmp() {
        let name = protocol_name(original.proto);
        let (kind, code, id) = (original.dport >> 8, original.dport & 0xff, original.sport);
        push(line, format_args!(" --{name}-type {kind} --{name}-code {code} --{name}-id {id}"));
    } else if has_ports(original.proto) {
        push(line, format_args!(" --sport {} --dport {}", original.sport, original.dport));
        push(line, format_args!(" --reply-port-src {} --reply-port-dst {}", reply.sport, reply.dport));
    } else if original.proto == proto::GRE {
        push(line, format_args!(" --srckey {} --dstkey {}", original.sport, original.dport));
        push(line, format_args!(" --reply-key-src {} --reply-key-dst {}", reply.sport, reply.dport));
    }
    if let Some(state) = state_name(original.proto, connection.state) {
        push(line, format_args!(" --state {state}"));
    }
}

/// What opens an XML document.
pub(super) const XML_HEAD: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<conntrack>\n";
/// What closes it.
pub(super) const XML_TAIL: &str = "</conntrack>\n";

/// Appends a `flow` element, without a line's end.
pub(super) fn write_xml(line: &mut String, connection: &Connection, now_tick: u32) {
    let same_zone = connection.original.tuple.zone == connection.reply.tuple.zone;
    line.push_str("<flow>");
    for (name, direction) in [("original", &connection.original), ("reply", &connection.reply)] {
        let tuple = &direction.tuple;
        let (l3, l3_number) = family(tuple);
        push(line, format_args!("<meta direction=\"{name}\"><layer3 protonum=\"{l3_number}\" protoname=\"{l3}\">"));
        push(line, format_args!("<src>{}</src><dst>{}</dst></layer3>", tuple.src, tuple.dst));
        let l4 = protocol_name(tuple.proto);
        push(line, format_args!("<layer4 protonum=\"{}\" protoname=\"{l4}\">", tuple.proto));
        if has_ports(tuple.proto) {
            push(line, format_args!("<sport>{}</sport><dport>{}</dport>", tuple.sport, tuple.dport));
        } else if tuple.proto == proto::GRE {
            push(line, format_args!("<srckey>{:#x}</srckey><dstkey>{:#x}</dstkey>", tuple.sport, tuple.dport));
        }
        line.push_str("</layer4>");
        if !same_zone && tuple.zone != 0 {
            push(line, format_args!("<zone>{}</zone>", tuple.zone));
        }
        push(line, format_args!("<counters><packets>{}</packets>", direction.packets));
        push(line, format_args!("<bytes>{}</bytes></counters></meta>", direction.bytes));
    }
    line.push_str("<meta direction=\"independent\">");
    if let Some(state) = state_name(connection.original.tuple.proto, connection.state) {
        push(line, format_args!("<state>{state}</state>"));
    }
    push(line, format_args!("<timeout>{}</timeout>", connection.seconds_left(now_tick)));
    push(line, format_args!("<mark>{}</mark>", connection.mark));
    if same_zone && connection.original.tuple.zone != 0 {
        push(line, format_args!("<zone>{}</zone>", connection.original.tuple.zone));
    }
    push(line, format_args!("<use>1</use><id>{}</id>", connection.id));
    if !connection.has(status::SEEN_REPLY) {
        line.push_str("<unreplied/>");
    }
    if connection.has(status::ASSURED) {
        line.push_str("<assured/>");
    }
    line.push_str("</meta></flow>");
}

/// A connection in JSON.
#[derive(Debug, Serialize)]
pub(super) struct JsonConnection {
    id: u64,
    family: &'static str,
    proto: &'static str,
    protonum: u8,
    /// Seconds left.
    timeout: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    original: JsonDirection,
    reply: JsonDirection,
    status: Vec<&'static str>,
    mark: u32,
    /// Nanoseconds of real time.
    created_ns: u64,
}

/// One direction in JSON.
#[derive(Debug, Serialize)]
struct JsonDirection {
    src: String,
    dst: String,
    #[serde(flatten)]
    ports: JsonPorts,
    zone: u16,
    packets: u64,
    bytes: u64,
}

/// What identifies a direction besides addresses.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum JsonPorts {
    Ports {
        sport: u16,
        dport: u16,
    },
    Icmp {
        #[serde(rename = "type")]
        kind: u16,
        code: u16,
        id: u16,
    },
    Keys {
        srckey: u16,
        dstkey: u16,
    },
    Nothing {},
}

fn json_ports(tuple: &Tuple) -> JsonPorts {
    let Tuple { sport, dport, proto: protocol, .. } = *tuple;
    if tuple.is_icmp() {
        JsonPorts::Icmp { kind: dport >> 8, code: dport & 0xff, id: sport }
    } else if has_ports(protocol) {
        JsonPorts::Ports { sport, dport }
    } else if protocol == proto::GRE {
        JsonPorts::Keys { srckey: sport, dstkey: dport }
    } else {
        JsonPorts::Nothing {}
    }
}

fn json_direction(direction: &Direction) -> JsonDirection {
    JsonDirection {
        src: direction.tuple.src.to_string(),
        dst: direction.tuple.dst.to_string(),
        ports: json_ports(&direction.tuple),
        zone: direction.tuple.zone,
        packets: direction.packets,
        bytes: direction.bytes,
    }
}

impl JsonConnection {
    pub(super) fn new(connection: &Connection, now_tick: u32) -> Self {
        let nat = [("SRC_NAT", status::SRC_NAT), ("DST_NAT", status::DST_NAT)];
        let tuple = &connection.original.tuple;
        Self {
            id: connection.id,
            family: family(tuple).0,
            proto: protocol_name(tuple.proto),
            protonum: tuple.proto,
            timeout: connection.seconds_left(now_tick),
            state: state_name(tuple.proto, connection.state),
            original: json_direction(&connection.original),
            reply: json_direction(&connection.reply),
            status: STATUS_NAMES
                .iter()
                .chain(&nat)
                .filter(|(_, bit)| connection.has(*bit))
                .map(|(n, _)| *n)
                .collect(),
            mark: connection.mark,
            created_ns: connection.created_ns,
        }
    }
}

/// Appends; a `String` takes everything.
fn push(line: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = line.write_fmt(what);
}

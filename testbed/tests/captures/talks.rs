//! A capture's conversations with each end where it belongs: who called inside, who was called outside.
//!
//! Only conversations are played: TCP, UDP and echo between unicast addresses, unfragmented. Callers get addresses of
//! blue's network, those whom they called addresses outside; what the called sent comes in from outside, to where the
//! router translated its caller. So real answers meet real windows, under the tracking that tenants have by default.
//! Whom the capture never lets answer is given one answer, which fits what its caller says later.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use erhu_testbed::packet::read::{Content, Seen, Upper};
use erhu_testbed::packet::{Packet, arp_request};
use erhu_testbed::scenario::{EventKind, Outcome, START_NS, Scenario, router_mac};

use crate::oracle::{self, Verdict};
use crate::{BLUE, WAN, adjust_checksum, is_routers, judge_output, play_to, seconds};

/// An end of a conversation: address, and port or echo identifier.
type End = (Ipv4Addr, u16);

/// Protocol, caller, called.
type Key = (u8, End, End);

/// A packet of a conversation.
struct Turn {
    at: f64,
    key: Key,
    /// It is the caller's.
    calls: bool,
    /// With both ends' addresses as they are here, the caller not translated.
    frame: Vec<u8>,
}

/// What became of a capture's conversations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Talks {
    pub there: usize,
    pub home: usize,
    /// Packets of conversations that did not leave.
    pub lost: usize,
}

impl Talks {
    pub fn text(self) -> String {
        format!("{}/{}/{}", self.there, self.home, self.lost)
    }
}

/// Both ends of a packet that can be of a conversation.
fn ends(seen: &Seen) -> Option<(u8, End, End)> {
    let Content::Ip(ip) = &seen.content else { return None };
    let ports = match &ip.upper {
        Upper::Udp(udp) => (udp.sport, udp.dport),
        Upper::Tcp(tcp) => (tcp.sport, tcp.dport),
        Upper::Icmp(icmp) if matches!(icmp.kind, 0 | 8) => (icmp.id(), icmp.id()),
        _ => return None,
    };
    let is_whole = !ip.more && ip.offset == 0 && ip.checksum_ok;
    let is_unicast = oracle::is_unicast(ip.source) && oracle::is_unicast(ip.destination);
    (is_whole && is_unicast).then_some((ip.protocol, (ip.source, ports.0), (ip.destination, ports.1)))
}

/// Whether a conversation's first packet is the answer to one that the capture lacks.
fn is_answer(seen: &Seen) -> bool {
    match &seen.ip().upper {
        Upper::Tcp(tcp) => tcp.flags & 0x12 == 0x12,
        Upper::Icmp(icmp) => icmp.kind == 0,
        _ => false,
    }
}

/// Addresses that are given out in the order in which they are asked for.
#[derive(Default)]
struct Addresses {
    given: BTreeMap<Ipv4Addr, u32>,
}

impl Addresses {
    fn number(&mut self, of: Ipv4Addr) -> u32 {
        let next = u32::try_from(self.given.len()).unwrap();
        *self.given.entry(of).or_insert(next)
    }

    fn inside(&mut self, of: Ipv4Addr) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 2)) + self.number(of) % 250)
    }

    fn outside(&mut self, of: Ipv4Addr) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(203, 0, 0, 1)) + self.number(of) % 60_000)
    }
}

/// The conversations among blue's frames, in order.
fn turns(traffic: &[(f64, Vec<u8>)]) -> Vec<Turn> {
    let (mut inside, mut outside) = (Addresses::default(), Addresses::default());
    // Which of two ends called, by the ends in their order.
    let mut callers: BTreeMap<(u8, End, End), End> = BTreeMap::new();
    let turn = |(at, frame): &(f64, Vec<u8>)| {
        let seen = Seen::of(0, frame.clone());
        let (protocol, from, to) = ends(&seen)?;
        let pair = (protocol, from.min(to), from.max(to));
        let caller = *callers.entry(pair).or_insert(if is_answer(&seen) { to } else { from });
        let called = if caller == pair.1 { pair.2 } else { pair.1 };
        let key = (protocol, (inside.inside(caller.0), caller.1), (outside.outside(called.0), called.1));
        let calls = from == caller;
        let (source, destination) = if calls { (key.1, key.2) } else { (key.2, key.1) };
        Some(Turn { at: *at, key, calls, frame: readdressed(frame, source, destination) })
    };
    traffic.iter().filter_map(turn).collect()
}

/// Puts other ends into a tagged frame. Checksums stay as right or wrong as they were.
fn readdressed(frame: &[u8], source: End, destination: End) -> Vec<u8> {
    const IP: usize = 18; // behind the tag
    const UPPER_SUM: fn(u8) -> usize = |protocol| match protocol {
        6 => 16,
        17 => 6,
        _ => 2,
    };
    let mut frame = frame.to_vec();
    let (protocol, upper) = (frame[IP + 9], IP + usize::from(frame[IP] & 15) * 4);
    let sum = upper + UPPER_SUM(protocol);
    // A datagram without a checksum stays so.
    let has_sum = protocol != 17 || frame[sum..sum + 2] != [0, 0];
    let words = |end: End| {
        let [a, b, c, d] = end.0.octets();
        [[a, b], [c, d]]
    };
    let mut put = |at: usize, new: [u8; 2], sums: &[usize]| {
        let old = [frame[at], frame[at + 1]];
        frame[at..at + 2].copy_from_slice(&new);
        for sum in sums {
            adjust_checksum(&mut frame, *sum, old, new);
        }
    };
    let (of_ip, of_upper) = ([IP + 10], if has_sum { vec![sum] } else { vec![] });
    // ICMP has no pseudo-header.
    let of_both = if protocol == 1 { of_ip.to_vec() } else { [&of_ip[..], &of_upper].concat() };
    for (at, end) in [(IP + 12, source), (IP + 16, destination)] {
        let [high, low] = words(end);
        put(at, high, &of_both);
        put(at + 2, low, &of_both);
    }
    if protocol == 1 {
        put(upper + 4, source.1.to_be_bytes(), &of_upper);
    } else {
        put(upper, source.1.to_be_bytes(), &of_upper);
        put(upper + 2, destination.1.to_be_bytes(), &of_upper);
    }
    frame
}

/// A frame of blue's as the next hop outside sends it.
fn from_outside(frame: &[u8]) -> Vec<u8> {
    [&router_mac(1)[..], &frame[6..12], &frame[16..]].concat()
}

/// What the callers send, to the main example's router.
fn calling(turns: &[Turn]) -> Scenario {
    let calls: Vec<_> = turns.iter().filter(|t| t.calls).map(|t| (t.at, t.frame.clone())).collect();
    // Time begins with the capture, whoever speaks first in it.
    let scenario = Scenario::of_file("configs/two-tenants.rhai");
    play_to(scenario.send(0.0, WAN, arp_request("198.51.100.2", "198.51.100.1")), &calls)
}

/// What must become of the turns of a conversation, as far as that is told from them alone.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// When its caller last sent what must have left.
    called_at: Option<f64>,
    /// What answers the SYN it began with.
    acknowledges: Option<u32>,
}

impl State {
    /// Within these seconds an answer is in time, whatever the protocol.
    const IN_TIME: f64 = 29.0;

    /// TCP is judged by the table of what was lost; here only the handshake.
    fn judge(&mut self, turn: &Turn, seen: &Seen) -> Verdict {
        let ip = seen.ip();
        let is_in_time = self.called_at.is_some_and(|at| turn.at - at < Self::IN_TIME);
        let is_plain = ip.ttl > 1 && ip.length <= 1500 && !oracle::is_routed(ip);
        let must = is_plain
            && match &ip.upper {
                Upper::Udp(udp) => {
                    let is_whole = 8 + udp.payload.len() == oracle::ip_payload_len(ip);
                    udp.checksum_ok && is_whole && (turn.calls || is_in_time)
                }
                Upper::Icmp(icmp) => icmp.checksum_ok && (icmp.kind == 8) == turn.calls && (turn.calls || is_in_time),
                Upper::Tcp(tcp) if turn.calls => {
                    let opens = tcp.checksum_ok && tcp.flags & 0x3f == 2 && self.called_at.is_none();
                    self.acknowledges = opens.then(|| oracle::end_of(tcp));
                    opens
                }
                Upper::Tcp(tcp) => {
                    let answers = self.acknowledges.take() == Some(tcp.ack) && tcp.flags & 0x3f == 0x12;
                    tcp.checksum_ok && answers && is_in_time
                }
                _ => false,
            };
        if turn.calls {
            self.called_at = must.then_some(turn.at).or(self.called_at);
        }
        if must { Verdict::Must } else { Verdict::May }
    }
}

/// An answer to what left for one whom the capture never lets answer; none to resets, which end a connection.
fn made_answer(left: &Seen, later: &[&Turn]) -> Option<Packet> {
    let answer = match &left.ip().upper {
        Upper::Udp(_) | Upper::Icmp(_) => left.answer(),
        Upper::Tcp(tcp) if tcp.flags & 4 != 0 => return None,
        Upper::Tcp(tcp) if tcp.flags & 2 != 0 => {
            // What the caller acknowledges next says where the called began.
            let mut acknowledged = later.iter().filter_map(|turn| match Seen::of(0, turn.frame.clone()).ip().upper {
                Upper::Tcp(ref tcp) if tcp.flags & 0x10 != 0 => Some(tcp.ack),
                _ => None,
            });
            let began = acknowledged.next().map_or(5000, |ack| ack.wrapping_sub(1));
            left.answer().flags("SA").seq(began).ack(oracle::end_of(tcp))
        }
        Upper::Tcp(tcp) => {
            let next = tcp.seq.wrapping_add(u32::try_from(tcp.payload.len()).unwrap() + u32::from(tcp.flags & 1));
            left.answer().flags("A").seq(tcp.ack).ack(next)
        }
        _ => return None,
    };
    Some(answer.payload(b"an answer"))
}

/// Plays them; says what became of them.
pub fn judge(name: &str, traffic: &[(f64, Vec<u8>)]) -> Talks {
    let turns: Vec<Turn> = turns(traffic).into_iter().filter(|turn| turn.key.2.1 != oracle::REJECTED_PORT).collect();
    if turns.is_empty() {
        return Talks::default();
    }
    let calling = calling(&turns);
    // First the callers alone, to learn where each is seen outside; what they are answered may change that.
    let mut outcome = calling.run();
    let mut answers = answers(&turns, &outcome);
    for round in 0.. {
        let scenario = answers
            .iter()
            .fold(calling.clone(), |scenario, answer| scenario.send_frame(answer.at, "wan", answer.frame.clone()));
        outcome = scenario.run();
        let next = self::answers(&turns, &outcome);
        if next.iter().map(|a| &a.frame).eq(answers.iter().map(|a| &a.frame)) {
            break;
        }
        assert!(round < 8, "{name}: callers are seen as others whenever they are answered\n{outcome}");
        answers = next;
    }
    judge_output(name, &outcome);
    let mut states: BTreeMap<Key, State> = BTreeMap::new();
    let (mut out, mut home) = (Vec::new(), Vec::new());
    let mut known = answers.iter();
    for turn in &turns {
        let seen = Seen::of(0, turn.frame.clone());
        let verdict = states.entry(turn.key).or_default().judge(turn, &seen);
        if turn.calls {
            out.push((turn.at, seen, verdict));
        } else {
            let is_known = known.next().is_some_and(|answer| answer.is_known);
            home.push((turn.at, seen, if is_known { verdict } else { Verdict::May }));
        }
    }
    home.extend(known.map(|made| (made.at, Seen::of(0, made.inside.clone()), Verdict::Must)));
    home.sort_by(|a, b| a.0.total_cmp(&b.0));
    let came = out.len() + home.len();
    let made = came - turns.len();
    let there = judge_way(name, &out, &outcome.packets(WAN), oracle::is_translation, &outcome);
    let home = judge_way(name, &home, &outcome.packets(BLUE), oracle::is_translated_back, &outcome);
    Talks { there, home: home - made, lost: came - there - home }
}

/// What comes in from outside.
struct Answer {
    at: f64,
    frame: Vec<u8>,
    /// As it should come home.
    inside: Vec<u8>,
    /// It is sent to where its caller is seen.
    is_known: bool,
}

/// The turns of those who were called, in order, and then what is made up, all sent to where `outcome` shows their
/// callers.
fn answers(turns: &[Turn], outcome: &Outcome) -> Vec<Answer> {
    let seen_as = externals(outcome);
    let external = |key: &Key, at: f64| {
        let known = seen_as.get(&(key.0, key.1))?;
        known.iter().rev().find(|(since, _)| *since <= at + 1e-6).or(known.first()).map(|(_, end)| *end)
    };
    let of_capture = turns.iter().filter(|turn| !turn.calls).map(|turn| {
        let found = external(&turn.key, turn.at);
        let to = found.unwrap_or((Ipv4Addr::new(198, 51, 100, 10), turn.key.1.1));
        let frame = from_outside(&readdressed(&turn.frame, turn.key.2, to));
        Answer { at: turn.at, frame, inside: turn.frame.clone(), is_known: found.is_some() }
    });
    let mut all: Vec<Answer> = of_capture.collect();
    let mut answered: BTreeSet<_> = turns.iter().filter(|turn| !turn.calls).map(|turn| turn.key).collect();
    for (number, turn) in turns.iter().enumerate() {
        if answered.contains(&turn.key) {
            continue;
        }
        let came = Seen::of(0, turn.frame.clone());
        let is_it = |left: &&Seen| {
            !is_routers(left) && oracle::is_translation(&came, left) && Outcome::seconds(left) >= turn.at - 1e-6
        };
        let Some(left) = outcome.packets(WAN).into_iter().find(is_it) else { continue };
        answered.insert(turn.key);
        let later: Vec<_> = turns[number..].iter().filter(|t| t.key == turn.key).collect();
        if let Some(answer) = made_answer(left, &later) {
            let inside = readdressed(&answer.clone().vlan(100).bytes(), turn.key.2, turn.key.1);
            let frame = answer.mac_to(router_mac(1)).bytes();
            all.push(Answer { at: Outcome::seconds(left) + 1e-6, frame, inside, is_known: true });
        }
    }
    all
}

/// Where the ends inside are seen outside, and since when.
fn externals(outcome: &Outcome) -> BTreeMap<(u8, End), Vec<(f64, End)>> {
    let v4 = |address| match address {
        std::net::IpAddr::V4(address) => address,
        std::net::IpAddr::V6(_) => unreachable!("conversations are of IPv4"),
    };
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for event in outcome.events.iter().filter(|e| e.kind == EventKind::New) {
        let entry = &event.entry;
        let inside = (entry.proto_number, (v4(entry.original.src), entry.original.source_port()));
        let outside = (v4(entry.reply.dst), entry.reply.destination_port());
        found.entry(inside).or_default().push((seconds(event.time_us * 1000 - START_NS), outside));
    }
    found
}

/// Every packet that must leave does, in order, translated; whatever else left is one that may. Says how many left.
fn judge_way(
    name: &str,
    came: &[(f64, Seen, Verdict)],
    left: &[&Seen],
    is_it: fn(&Seen, &Seen) -> bool,
    outcome: &Outcome,
) -> usize {
    let mut left = left.iter().filter(|s| !is_routers(s)).peekable();
    let mut count = 0;
    for (at, packet, verdict) in came {
        let found = left.next_if(|seen| is_it(packet, seen)).is_some();
        count += usize::from(found);
        assert!(
            found || *verdict != Verdict::Must,
            "{name}: at {at} should have been forwarded: {packet}\nnext left: {}\n{outcome}",
            left.peek().map_or("nothing".into(), ToString::to_string)
        );
    }
    let surplus: Vec<_> = left.map(ToString::to_string).collect();
    assert!(surplus.is_empty(), "{name}: left without reason: {surplus:#?}\n{outcome}");
    count
}

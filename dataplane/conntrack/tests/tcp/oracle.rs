//! An oracle of TCP tracking: the rules as they are written down, one after the other, with numbers that are wide enough
//! to think in. It shares the written table with the other tests and nothing with the tracker.

use std::collections::BTreeMap;

use erhu_conntrack::tcp::{Bound, Outcome};

use crate::table::cells;

/// Sequence numbers are counted modulo this.
pub const M: i64 = 1 << 32;

/// A number brought back into range.
pub fn wrap(number: i64) -> i64 {
    number.rem_euclid(M)
}

/// How far `a` is ahead of `b`: from −2³¹ to 2³¹ − 1.
fn ahead(a: i64, b: i64) -> i64 {
    (a - b + M / 2).rem_euclid(M) - M / 2
}

/// `a < b`, and below likewise `a ≤ b` and `a ≥ b`, which are said as "less than the next" and "more than the one before".
fn less(a: i64, b: i64) -> bool {
    ahead(a, b) < 0
}

fn at_most(a: i64, b: i64) -> bool {
    less(a, b + 1)
}

fn at_least(a: i64, b: i64) -> bool {
    less(b - 1, a)
}

/// A segment as it lies on the wire.
#[derive(Clone, Debug)]
pub struct Wire {
    pub syn: bool,
    pub fin: bool,
    pub rst: bool,
    pub ack_set: bool,
    pub seq: i64,
    pub ack: i64,
    pub payload: i64,
    pub window: i64,
    /// Whether there are any options.
    pub has_options: bool,
    pub scale: Option<i64>,
    pub sack_permitted: bool,
    /// Right edges of SACK blocks.
    pub blocks: Vec<i64>,
}

impl Wire {
    pub fn class(&self) -> &'static str {
        match (self.rst, self.syn, self.fin, self.ack_set) {
            (true, ..) => "RST",
            (_, true, _, true) => "SYN/ACK",
            (_, true, ..) => "SYN",
            (_, _, true, _) => "FIN",
            (.., true) => "ACK",
            _ => "none",
        }
    }

    pub fn end(&self) -> i64 {
        wrap(self.seq + self.payload + i64::from(self.syn) + i64::from(self.fin))
    }
}

/// One direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    pub end: i64,
    pub maxend: i64,
    pub maxwin: i64,
    pub maxack: Option<i64>,
    pub scale: i64,
    pub wscale: bool,
    pub sack_perm: bool,
    pub close_init: bool,
    pub be_liberal: bool,
    pub data_unacked: bool,
}

impl Side {
    /// What a SYN's options say; a SYN without options says nothing.
    fn take_offer(&mut self, packet: &Wire) {
        if !packet.has_options {
            return;
        }
        *self = Self {
            end: self.end,
            maxend: self.maxend,
            maxwin: self.maxwin,
            be_liberal: self.be_liberal,
            scale: packet.scale.unwrap_or(0).min(14),
            wscale: packet.scale.is_some(),
            sack_perm: packet.sack_permitted,
            ..Self::default()
        };
    }
}

#[derive(Clone, Debug, Default)]
struct Last {
    dir: usize,
    class: &'static str,
    seq: i64,
    ack: i64,
    end: i64,
    win: i64,
    wscale: bool,
    scale: i64,
    sack_perm: bool,
    challenge: bool,
    simultaneous: bool,
}

/// Timeouts by state and key, in seconds.
#[derive(Clone, Debug)]
pub struct Seconds {
    pub states: BTreeMap<&'static str, u32>,
    pub retrans: u32,
    pub unacked: u32,
}

/// What is to be seen of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    pub outcome: Outcome,
    pub refresh: bool,
    pub lower: bool,
    pub beyond: Option<Bound>,
}

fn only(outcome: Outcome) -> Expected {
    Expected { outcome, refresh: false, lower: false, beyond: None }
}

/// How often each rule was followed.
pub type Hits = BTreeMap<String, u64>;

pub struct Oracle<'h> {
    table: &'static BTreeMap<(&'static str, usize, &'static str), &'static str>,
    hits: &'h mut Hits,
    be_liberal: bool,
    pub state: &'static str,
    pub sides: [Side; 2],
    last: Last,
    pub retrans: i64,
    pub replied: bool,
    pub assured: bool,
    pub fixed: bool,
    pub timeout: u32,
    seconds: Seconds,
}

/// The written table by class, direction and state.
pub fn table() -> BTreeMap<(&'static str, usize, &'static str), &'static str> {
    let class = |flags| match flags {
        0x02 => "SYN",
        0x12 => "SYN/ACK",
        0x11 => "FIN",
        0x10 => "ACK",
        0x14 => "RST",
        _ => "none",
    };
    cells().map(|(flags, dir, state, cell)| ((class(flags), dir, crate::support::COLUMNS[state]), cell)).collect()
}

/// The name under which a cell's hits are counted.
pub fn cell_name(class: &str, dir: usize, state: &str) -> String {
    format!("cell {class} {} {state}", ["orig", "reply"][dir])
}

const STATES: [&str; 10] = ["NO", "SS", "SR", "ES", "FW", "CW", "LA", "TW", "CL", "S2"];

fn state(name: &str) -> &'static str {
    STATES.into_iter().find(|s| *s == name).unwrap()
}

impl<'h> Oracle<'h> {
    /// A connection of which nothing is known but its state.
    pub fn blank(
        table: &'static BTreeMap<(&'static str, usize, &'static str), &'static str>,
        hits: &'h mut Hits,
        state: &'static str,
        be_liberal: bool,
        seconds: Seconds,
    ) -> Self {
        Self {
            table,
            hits,
            be_liberal,
            state,
            sides: [Side::default(), Side::default()],
            last: Last { class: "none", ..Last::default() },
            retrans: 0,
            replied: false,
            assured: false,
            fixed: false,
            timeout: 0,
            seconds,
        }
    }

    fn hit(&mut self, rule: &str) {
        *self.hits.entry(rule.to_owned()).or_default() += 1;
    }

    /// First packet of a flow. `false`: INVALID.
    pub fn first(&mut self, packet: &Wire, tcp_loose: bool) -> bool {
        self.hit(&cell_name(packet.class(), 0, "NO"));
        let side = &mut self.sides[0];
        side.end = packet.end();
        side.maxwin = packet.window.max(1);
        match packet.class() {
            "SYN" => {
                side.maxend = side.end;
                side.take_offer(packet);
                self.last.win = packet.window;
                self.state = "SS";
                self.hit("opened by a SYN");
            }
            "ACK" if tcp_loose => {
                side.maxend = wrap(side.end + side.maxwin);
                for side in &mut self.sides {
                    (side.sack_perm, side.be_liberal) = (true, true);
                }
                self.state = "ES";
                self.hit("picked up in mid-stream");
            }
            _ => {
                self.hit("first packet invalid");
                return false;
            }
        }
        (self.last.dir, self.last.class) = (0, packet.class());
        self.choose_timeout(packet.class());
        if self.state == "ES" {
            self.timeout = self.timeout.min(self.seconds.unacked);
        }
        true
    }

    pub fn packet(&mut self, dir: usize, packet: &Wire) -> Expected {
        let (class, old) = (packet.class(), self.state);
        let cell = self.table[&(class, dir, old)];
        self.hit(&cell_name(class, dir, old));
        let mut new = match cell {
            "IV" => return only(Outcome::Invalid),
            "IG" => return self.ignored(dir, packet),
            "SS*" => {
                if self.sides.iter().any(|s| s.close_init) {
                    self.hit("star: reopened after a close");
                    return only(Outcome::Reopen);
                }
                if self.last.dir == dir && self.last.class == "RST" {
                    self.hit("star: reopened after a reset");
                    return only(Outcome::Reopen);
                }
                self.hit("star: ignored");
                return self.ignored(dir, packet);
            }
            "TW+" => {
                let after_syn = self.last.class == "SYN" && self.last.dir != dir;
                if old == "LA" && self.last.challenge && after_syn {
                    self.hit("dagger");
                    self.last.challenge = false;
                    return self.passes(dir, None);
                }
                "TW"
            }
            "SR#" => {
                if self.last.simultaneous {
                    self.hit("double dagger");
                    "ES"
                } else {
                    "SR"
                }
            }
            name => name,
        };
        if new == "S2" {
            self.last.simultaneous = true;
        }
        let mut check_window = true;
        if class == "RST" {
            match self.reset(dir, packet) {
                "INVALID" => return Expected { beyond: Some(Bound::Reset), ..only(Outcome::Invalid) },
                "no check" => check_window = false,
                "keep" => new = old,
                _ => {}
            }
        }
        self.judged(dir, packet, old, new, check_window)
    }

    fn judged(&mut self, dir: usize, packet: &Wire, old: &str, new: &str, check_window: bool) -> Expected {
        let mut beyond = None;
        if check_window && let Err((bound, passes)) = self.window(dir, packet) {
            beyond = Some(bound);
            let liberal = if self.be_liberal {
                "liberal by mode"
            } else if self.sides[dir].be_liberal {
                "liberal by flag"
            } else {
                ""
            };
            if !liberal.is_empty() {
                self.hit(liberal);
            } else if passes {
                return self.passes(dir, beyond);
            } else {
                let lower = self.not_believed(dir, packet.class());
                return Expected { lower, beyond, ..only(Outcome::Invalid) };
            }
        }
        Expected { beyond, ..self.accepted(dir, packet.class(), old, new) }
    }

    /// It passes, state, timeout and what is remembered stay. A reply is a reply.
    fn passes(&mut self, dir: usize, beyond: Option<Bound>) -> Expected {
        self.replied |= dir == 1;
        Expected { beyond, ..only(Outcome::Ignore) }
    }

    fn ignored(&mut self, dir: usize, packet: &Wire) -> Expected {
        let class = packet.class();
        let answers_ignored_syn = class == "SYN/ACK" && self.last.class == "SYN" && self.last.dir != dir;
        if answers_ignored_syn && packet.ack == self.last.end {
            self.hit("resynchronised");
            let last = self.last.clone();
            self.last.challenge = false;
            self.sides[last.dir] = Side {
                end: last.end,
                maxend: last.end,
                maxwin: last.win.max(1),
                scale: last.scale,
                wscale: last.wscale,
                sack_perm: last.sack_perm,
                ..Side::default()
            };
            self.sides[dir] = Side { be_liberal: self.sides[dir].be_liberal, ..Side::default() };
            return self.judged(dir, packet, "SS", "SR", true);
        }
        let last = &mut self.last;
        (last.dir, last.class, last.seq, last.end, last.win) = (dir, class, packet.seq, packet.end(), packet.window);
        if class == "SYN" && dir == 0 {
            last.wscale = packet.scale.is_some();
            last.scale = packet.scale.unwrap_or(0).min(14);
            last.sack_perm = packet.sack_permitted;
            last.simultaneous = false;
            last.challenge = self.state == "LA";
        }
        if self.state == "SS" && class == "ACK" && dir == 1 {
            last.ack = packet.ack;
        }
        if self.last.challenge && class == "SYN" {
            self.hit("challenge armed");
        }
        self.passes(dir, None)
    }

    /// RST order (a) to (d).
    fn reset(&mut self, dir: usize, packet: &Wire) -> &'static str {
        let established = self.state == "ES" && self.assured;
        let last = self.last.clone();
        let (name, what) = if ["FW", "LA", "TW", "CL", "CW"].contains(&self.state) {
            ("reset (a)", "no check")
        } else if let (Some(maxack), true) = (self.sides[1 - dir].maxack, last.class != "SYN") {
            if packet.seq == 0 && !established {
                ("reset (b): number 0", "check")
            } else if less(packet.seq, maxack) {
                ("reset (b): before what was acknowledged", "INVALID")
            } else if !established {
                ("reset (b): not established", "check")
            } else if packet.seq == maxack {
                ("reset (b): exact", "check")
            } else if last.class == "ACK" && last.dir == dir && packet.seq == last.end {
                ("reset (b): follows its own data", "check")
            } else {
                ("reset (b): inexact", "keep")
            }
        } else if self.replied && last.class == "SYN" && packet.ack == last.end {
            ("reset (c): answers an ignored SYN", "no check")
        } else if !self.assured && last.class == "ACK" && packet.ack == last.end {
            ("reset (c): answers an ignored ACK", "no check")
        } else if self.state == "SS" && last.class == "ACK" && last.dir == 1 && packet.seq == last.ack {
            ("reset (d)", "no check")
        } else {
            ("reset: judged", "check")
        };
        self.hit(name);
        what
    }

    /// Rules 1 to 9. `Err`: the bound, and whether the packet passes nevertheless.
    fn window(&mut self, dir: usize, packet: &Wire) -> Result<(), (Bound, bool)> {
        let (me, peer) = (dir, 1 - dir);
        let (mut seq, mut end) = (packet.seq, packet.end());
        let (mut ack, mut sack) = (packet.ack, packet.ack);
        if self.sides[peer].sack_perm {
            for block in &packet.blocks {
                if less(sack, *block) {
                    sack = *block;
                }
            }
            if sack != ack {
                self.hit("SACK beyond the acknowledgement");
            }
        } else if packet.blocks.iter().any(|block| less(ack, *block)) {
            self.hit("SACK that was not permitted");
        }
        // Rule 1.
        if self.sides[me].maxwin == 0 {
            if packet.syn {
                self.initialise(me, packet);
                if !packet.ack_set {
                    self.hit("rule 1: bare SYN");
                    return Ok(());
                }
                self.hit("rule 1: SYN/ACK");
            } else {
                let window = (packet.window << self.sides[me].scale).max(1);
                self.sides[me].end = end;
                self.sides[me].maxwin = window;
                self.sides[me].maxend = wrap(end + window);
                if self.sides[peer].maxwin == 0 {
                    (self.sides[peer].end, self.sides[peer].maxend) = (sack, sack);
                    self.hit("rule 1: both unknown");
                } else if sack == wrap(self.sides[peer].end + 1) {
                    self.sides[peer].end = sack;
                    self.hit("rule 1: answer to a keep-alive");
                } else {
                    self.hit("rule 1: sender unknown");
                }
            }
        } else if packet.syn && ["SS", "SR"].contains(&self.state) {
            // Rule 2.
            if less(self.sides[me].end, end) {
                self.initialise(me, packet);
                self.hit(if dir == 0 { "rule 2: opener" } else { "rule 2: answerer" });
                if dir == 1 && !packet.ack_set {
                    self.hit("rule 2: bare SYN of the answerer");
                    return Ok(());
                }
            } else {
                self.hit("rule 2: not later");
            }
        }
        // Rule 3.
        if !packet.ack_set {
            (ack, sack) = (self.sides[peer].end, self.sides[peer].end);
            self.hit("rule 3: no ACK");
        } else if packet.rst && packet.ack == 0 {
            (ack, sack) = (self.sides[peer].end, self.sides[peer].end);
            self.hit("rule 3: RST+ACK with ack 0");
        }
        if packet.rst && packet.seq == 0 && self.state == "SS" {
            (seq, end) = (self.sides[me].end, self.sides[me].end);
            self.hit("rule 3: RST with seq 0 in SS");
        }
        let (sender, receiver) = (self.sides[me].clone(), self.sides[peer].clone());
        let one = at_most(seq, sender.maxend);
        let two = receiver.maxwin == 0 || at_least(end, sender.end - receiver.maxwin);
        let three = at_most(sack, receiver.end);
        let oldest = sender.maxwin.max(66_000);
        let four = at_least(sack, receiver.end - oldest);
        // Rule 4.
        if !one {
            let overshoot = wrap(end - sender.maxend + 1);
            let may = [receiver.maxwin != 0, two, three, four, overshoot <= receiver.maxwin];
            if may == [true; 5] {
                self.sides[me].end = end;
                self.sides[me].data_unacked = true;
                self.hit("rule 4: overshoot");
                return Err((Bound::Overshoot, true));
            }
            for (may, name) in may.into_iter().zip(["no window", "and II", "and III", "and IV", "by too much"]) {
                if !may {
                    self.hit(&format!("rule 4: invalid, {name}"));
                }
            }
            return Err((Bound::SeqAbove, false));
        }
        // Rules 5, 6, 7.
        if !three {
            self.hit("rule 5: invalid");
            return Err((Bound::AckAbove, false));
        }
        if !two {
            self.hit("rule 6: ignored");
            return Err((Bound::SeqBelow, true));
        }
        if !four {
            self.hit(if sender.maxwin > 66_000 { "rule 7: ignored, by window" } else { "rule 7: ignored, by 66000" });
            return Err((Bound::AckBelow, true));
        }
        if receiver.maxwin == 0 {
            self.hit("rule 6: no window known");
        }
        self.update(me, packet, (seq, end, ack, sack));
        Ok(())
    }

    /// Rules 8 and 9.
    fn update(&mut self, me: usize, packet: &Wire, (seq, end, ack, sack): (i64, i64, i64, i64)) {
        let (sender, receiver) = (self.sides[me].clone(), self.sides[1 - me].clone());
        let window = if packet.syn { packet.window } else { packet.window << sender.scale };
        let mut hits = Vec::new();
        if packet.syn && sender.scale > 0 {
            hits.push("rule 8: the window of a SYN is not scaled");
        }
        if sender.scale == 14 && !packet.syn {
            hits.push("rule 8: scaled by 14");
        }
        let mine = &mut self.sides[me];
        let offered = wrap(window + sack - ack);
        if mine.maxwin < offered {
            mine.maxwin = offered;
            hits.push("rule 8: window grows");
        }
        if less(mine.end, end) {
            mine.end = end;
            mine.data_unacked = true;
            hits.push("rule 8: end moves");
        }
        if packet.ack_set {
            match mine.maxack {
                None => hits.push("rule 8: first acknowledgement"),
                Some(before) if less(before, ack) => hits.push("rule 8: acknowledgement moves"),
                Some(before) => {
                    mine.maxack = Some(before);
                    hits.push("rule 8: acknowledgement stays");
                }
            }
            if mine.maxack.is_none_or(|before| less(before, ack)) {
                mine.maxack = Some(ack);
            }
        }
        let other = &mut self.sides[1 - me];
        if receiver.maxwin != 0 && less(sender.maxend, end) {
            other.maxwin = wrap(receiver.maxwin + wrap(end - sender.maxend));
            hits.push("rule 8: receiver's window grows");
        }
        if at_least(sack + window, receiver.maxend) {
            other.maxend = wrap(sack + window + i64::from(window == 0));
            hits.push(if window == 0 { "rule 8: window closes" } else { "rule 8: more is permitted" });
        }
        if ack == receiver.end {
            if other.data_unacked {
                hits.push("rule 8: all is acknowledged");
            }
            other.data_unacked = false;
        }
        if packet.class() == "ACK" {
            let last = &mut self.last;
            let known = (last.dir, last.seq, last.ack, last.end, last.win);
            if known == (me, seq, ack, end, packet.window) {
                self.retrans += 1;
                hits.push("rule 9: repeated");
            } else {
                (last.dir, last.seq, last.ack, last.end, last.win) = (me, seq, ack, end, packet.window);
                self.retrans = 0;
                hits.push("rule 9: fresh");
            }
        }
        for rule in hits {
            self.hit(rule);
        }
    }

    /// A SYN says where its side is.
    fn initialise(&mut self, me: usize, packet: &Wire) {
        let side = &mut self.sides[me];
        (side.end, side.maxend, side.maxwin) = (packet.end(), packet.end(), packet.window.max(1));
        side.take_offer(packet);
        if me == 1 {
            if self.sides.iter().all(|s| s.wscale) {
                self.hit("scaling agreed");
            } else {
                self.hit("scaling not agreed");
                self.sides[0].scale = 0;
                self.sides[1].scale = 0;
            }
        }
    }

    /// FIN or RST judged INVALID in both directions.
    fn not_believed(&mut self, dir: usize, class: &'static str) -> bool {
        if !self.assured || self.fixed || !["FIN", "RST"].contains(&class) {
            return false;
        }
        if self.last.dir != dir && ["FIN", "RST"].contains(&self.last.class) {
            self.hit("timeout lowered");
            return true;
        }
        (self.last.dir, self.last.class) = (dir, class);
        false
    }

    fn accepted(&mut self, dir: usize, class: &'static str, old: &str, new: &str) -> Expected {
        (self.last.dir, self.last.class) = (dir, class);
        let new = state(new);
        self.state = new;
        if new == "FW" && old != "FW" {
            self.sides[dir].close_init = true;
        }
        let before = self.timeout;
        self.choose_timeout(class);
        let chosen = std::mem::replace(&mut self.timeout, before);
        let was_replied = self.replied;
        self.replied |= dir == 1;
        if !was_replied && class == "RST" {
            self.hit("killed by a reset without reply");
            return only(Outcome::KillAccept);
        }
        if !was_replied && class == "SYN" && old == "SS" {
            self.hit("SYN sent again");
            return only(Outcome::Ignore);
        }
        let mut timeout = chosen;
        if !was_replied && new == "ES" {
            self.hit("established without reply");
            timeout = timeout.min(self.seconds.unacked);
        }
        if was_replied && ["SR", "ES"].contains(&old) && new == "ES" && !self.assured {
            self.hit("assured");
            self.assured = true;
        }
        if self.fixed {
            self.hit("fixed timeout");
            return only(Outcome::Accept);
        }
        self.timeout = timeout;
        Expected { refresh: true, ..only(Outcome::Accept) }
    }

    fn choose_timeout(&mut self, class: &str) {
        let own = self.seconds.states[self.state];
        let (rule, seconds) = if self.retrans >= 3 && own > self.seconds.retrans {
            ("timeout: retransmissions", self.seconds.retrans)
        } else if class == "RST" {
            ("timeout: reset", self.seconds.states["CL"])
        } else if self.sides.iter().any(|s| s.data_unacked) && own > self.seconds.unacked {
            ("timeout: unacknowledged", self.seconds.unacked)
        } else if self.last.win == 0 && own > self.seconds.retrans {
            ("timeout: closed window", self.seconds.retrans)
        } else {
            ("timeout: the state's", own)
        };
        self.hit(rule);
        self.timeout = seconds;
    }
}

//! Lines of `conntrack` as structs: the table (`-L -o extended,id`) and events (`-E -o timestamp,id`).
//!
//! Tests compare a short form, tuples with `@zone` where the zone is not 0, without times, marks of 0, counters, ids:
//!
//! ```text
//! tcp ESTABLISHED 10.0.0.5:40000>192.0.2.1:443@1 192.0.2.1:443>203.0.113.9:40000 [ASSURED]
//! udp 10.0.0.5:5353>192.0.2.1:53@5 192.0.2.1:53>10.0.0.5:5353@5 [UNREPLIED]
//! icmp 10.0.0.5>192.0.2.1#77 192.0.2.1>10.0.0.5#77 [UNREPLIED] mark=7
//! ```

use std::fmt;
use std::net::IpAddr;

/// One direction of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port; `None` for ICMP.
    pub sport: Option<u16>,
    /// Destination port; `None` for ICMP.
    pub dport: Option<u16>,
    /// ICMP type, code and identifier.
    pub icmp: Option<(u8, u8, u16)>,
    /// Conntrack zone.
    pub zone: u16,
}

impl Tuple {
    /// Source port; for ICMP the identifier.
    pub fn source_port(&self) -> u16 {
        self.sport.or(self.icmp.map(|(.., id)| id)).unwrap_or(0)
    }

    /// Destination port; for ICMP the identifier.
    pub fn destination_port(&self) -> u16 {
        self.dport.or(self.icmp.map(|(.., id)| id)).unwrap_or(0)
    }
}

/// A connection as a line shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Protocol name.
    pub proto: String,
    /// Protocol number.
    pub proto_number: u8,
    /// Seconds until it ends; absent in DESTROY events.
    pub timeout: Option<u64>,
    /// TCP state.
    pub state: Option<String>,
    /// Original direction.
    pub original: Tuple,
    /// Reply direction.
    pub reply: Tuple,
    /// `UNREPLIED`, `ASSURED` and what else stands in brackets.
    pub status: Vec<String>,
    /// Connection mark.
    pub mark: u32,
    /// Id, where printed.
    pub id: Option<u64>,
    /// Packets and bytes of the original direction, where printed.
    pub original_count: Option<(u64, u64)>,
    /// Packets and bytes of the reply direction, where printed.
    pub reply_count: Option<(u64, u64)>,
}

/// What happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// It was confirmed.
    New,
    /// It changed.
    Update,
    /// It ended.
    Destroy,
}

/// One line of `-E -o timestamp,id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Microseconds since 1970.
    pub time_us: u64,
    /// What happened.
    pub kind: EventKind,
    /// The connection.
    pub entry: Entry,
}

impl Entry {
    /// Reads a line, with or without the family before it.
    ///
    /// # Errors
    /// Says what it stumbled over.
    pub fn parse(line: &str) -> Result<Self, String> {
        let fault = |what: &str| format!("{what} in {line:?}");
        let mut words = line.split_whitespace().peekable();
        if words.next_if(|w| matches!(*w, "ipv4" | "ipv6")).is_some() {
            words.next();
        }
        let proto = words.next().ok_or_else(|| fault("no protocol"))?.to_owned();
        let number = words.next().and_then(|w| w.parse().ok());
        let proto_number = number.ok_or_else(|| fault("no protocol number"))?;
        let timeout = words.next_if(|w| w.bytes().all(|b| b.is_ascii_digit())).and_then(|w| w.parse().ok());
        let state = words.next_if(|w| !w.contains('=') && !w.starts_with('[')).map(str::to_owned);

        let mut halves: Vec<Half> = Vec::new();
        let (mut status, mut mark, mut id, mut zone) = (Vec::new(), 0, None, None);
        for word in words {
            if let Some(flag) = word.strip_prefix('[') {
                status.push(flag.trim_end_matches(']').to_owned());
                continue;
            }
            let (key, value) = word.split_once('=').ok_or_else(|| fault(&format!("{word:?}")))?;
            if key == "src" {
                halves.push(Half::default());
            }
            let bad = |_| fault(&format!("the value of {key}"));
            let number = || value.parse::<u64>().map_err(|e| bad(e.to_string()));
            match key {
                "mark" => mark = number()?.try_into().map_err(|_| fault("mark"))?,
                "id" if halves.last().is_none_or(|h| h.icmp.len() != 2) => id = Some(number()?),
                "zone" => zone = Some(number()?.try_into().map_err(|_| fault("zone"))?),
                "use" | "secctx" => {}
                _ => {
                    let half = halves.last_mut().ok_or_else(|| fault(key))?;
                    half.set(key, value).ok_or_else(|| fault(word))?;
                }
            }
        }
        let [original, reply] = <[Half; 2]>::try_from(halves).map_err(|_| fault("not two tuples"))?;
        let (original_count, reply_count) = (original.count(), reply.count());
        let tuple = |half: Half| half.tuple(zone).ok_or_else(|| fault("a tuple without its addresses"));
        let (original, reply) = (tuple(original)?, tuple(reply)?);
        let entry = Self {
            proto,
            proto_number,
            timeout,
            state,
            original,
            reply,
            status,
            mark,
            id,
            original_count,
            reply_count,
        };
        Ok(entry)
    }

    /// Whether something stands in brackets.
    pub fn is(&self, status: &str) -> bool {
        self.status.iter().any(|s| s == status)
    }

    /// Whether the source is translated.
    pub fn is_translated(&self) -> bool {
        (self.original.src, self.original.sport) != (self.reply.dst, self.reply.dport)
            || self.original.icmp.map(|i| i.2) != self.reply.icmp.map(|i| i.2)
    }
}

/// A tuple while it is read.
#[derive(Default)]
struct Half {
    src: Option<IpAddr>,
    dst: Option<IpAddr>,
    sport: Option<u16>,
    dport: Option<u16>,
    /// Type, code and id as they come.
    icmp: Vec<u16>,
    zone: Option<u16>,
    packets: Option<u64>,
    bytes: Option<u64>,
}

impl Half {
    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "src" => self.src = Some(value.parse().ok()?),
            "dst" => self.dst = Some(value.parse().ok()?),
            "sport" => self.sport = Some(value.parse().ok()?),
            "dport" => self.dport = Some(value.parse().ok()?),
            "type" | "code" | "id" => self.icmp.push(value.parse().ok()?),
            "zone-orig" | "zone-reply" => self.zone = Some(value.parse().ok()?),
            "packets" => self.packets = Some(value.parse().ok()?),
            "bytes" => self.bytes = Some(value.parse().ok()?),
            _ => return None,
        }
        Some(())
    }

    fn count(&self) -> Option<(u64, u64)> {
        Some((self.packets?, self.bytes?))
    }

    fn tuple(self, zone: Option<u16>) -> Option<Tuple> {
        let icmp = match self.icmp[..] {
            [kind, code, id] => Some((u8::try_from(kind).ok()?, u8::try_from(code).ok()?, id)),
            _ => None,
        };
        let zone = zone.or(self.zone).unwrap_or(0);
        Some(Tuple { src: self.src?, dst: self.dst?, sport: self.sport, dport: self.dport, icmp, zone })
    }
}

impl Event {
    /// Reads a line.
    ///
    /// # Errors
    /// Says what it stumbled over.
    pub fn parse(line: &str) -> Result<Self, String> {
        let fault = |what: &str| format!("{what} in {line:?}");
        let (time, rest) = line.trim_start().strip_prefix('[').and_then(|l| l.split_once(']')).unwrap_or(("", line));
        let (seconds, micros) = time.split_once('.').ok_or_else(|| fault("no time"))?;
        let number = |text: &str| text.parse::<u64>().map_err(|_| fault("the time"));
        if micros.len() != 6 {
            return Err(fault("a time without six digits after the point"));
        }
        let time_us = number(seconds)? * 1_000_000 + number(micros)?;
        let (kind, rest) =
            rest.trim_start().strip_prefix('[').and_then(|l| l.split_once(']')).ok_or_else(|| fault("no kind"))?;
        let kind = match kind {
            "NEW" => EventKind::New,
            "UPDATE" => EventKind::Update,
            "DESTROY" => EventKind::Destroy,
            _ => return Err(fault("the kind")),
        };
        Ok(Self { time_us, kind, entry: Entry::parse(rest)? })
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |f: &mut fmt::Formatter<'_>, address: &IpAddr, port: Option<u16>| match (address, port) {
            (IpAddr::V6(_), Some(port)) => write!(f, "[{address}]:{port}"),
            (_, Some(port)) => write!(f, "{address}:{port}"),
            (_, None) => write!(f, "{address}"),
        };
        end(f, &self.src, self.sport)?;
        f.write_str(">")?;
        end(f, &self.dst, self.dport)?;
        if let Some((.., id)) = self.icmp {
            write!(f, "#{id}")?;
        }
        if self.zone != 0 {
            write!(f, "@{}", self.zone)?;
        }
        Ok(())
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.proto)?;
        if let Some(state) = &self.state {
            write!(f, " {state}")?;
        }
        write!(f, " {} {}", self.original, self.reply)?;
        self.status.iter().try_for_each(|status| write!(f, " [{status}]"))?;
        if self.mark != 0 {
            write!(f, " mark={}", self.mark)?;
        }
        Ok(())
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "NEW",
            Self::Update => "UPDATE",
            Self::Destroy => "DESTROY",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_conntrack_read_as_they_are_meant() {
        let lines = [
            (
                "tcp      6 431998 ESTABLISHED src=10.0.0.5 dst=192.0.2.1 sport=40000 dport=443 zone-orig=1 packets=3 \
                 bytes=180 src=192.0.2.1 dst=203.0.113.9 sport=443 dport=40000 packets=2 bytes=120 [ASSURED] mark=0 \
                 use=1",
                "tcp ESTABLISHED 10.0.0.5:40000>192.0.2.1:443@1 192.0.2.1:443>203.0.113.9:40000 [ASSURED]",
            ),
            (
                "udp      17 28 src=10.0.0.5 dst=192.0.2.1 sport=5353 dport=53 [UNREPLIED] src=192.0.2.1 dst=10.0.0.5 \
                 sport=53 dport=5353 mark=0 zone=5 use=1",
                "udp 10.0.0.5:5353>192.0.2.1:53@5 192.0.2.1:53>10.0.0.5:5353@5 [UNREPLIED]",
            ),
            (
                "icmp     1 28 src=10.0.0.5 dst=192.0.2.1 type=8 code=0 id=77 [UNREPLIED] src=192.0.2.1 dst=10.0.0.5 \
                 type=0 code=0 id=78 mark=9 use=1 id=5",
                "icmp 10.0.0.5>192.0.2.1#77 192.0.2.1>10.0.0.5#78 [UNREPLIED] mark=9",
            ),
            (
                "ipv6     10 tcp      6 118 SYN_SENT src=2001:db8::5 dst=2001:db8:1::1 sport=40001 dport=443 \
                 [UNREPLIED] src=2001:db8:1::1 dst=2001:db8::5 sport=443 dport=40001 mark=0 use=1 id=242492168",
                "tcp SYN_SENT [2001:db8::5]:40001>[2001:db8:1::1]:443 [2001:db8:1::1]:443>[2001:db8::5]:40001 \
                 [UNREPLIED]",
            ),
        ];
        for (line, short) in lines {
            assert_eq!(Entry::parse(line).unwrap().to_string(), short);
        }
        let first = Entry::parse(lines[0].0).unwrap();
        assert_eq!(
            (first.timeout, first.original_count, first.reply_count),
            (Some(431_998), Some((3, 180)), Some((2, 120)))
        );
        assert!(first.is_translated() && first.is("ASSURED"));
        let echo = Entry::parse(lines[2].0).unwrap();
        assert_eq!((echo.id, echo.original.icmp, echo.is_translated()), (Some(5), Some((8, 0, 77)), true));
        assert_eq!(Entry::parse(lines[3].0).unwrap().id, Some(242_492_168));
        assert!(!Entry::parse(lines[1].0).unwrap().is_translated());
    }

    #[test]
    fn events_bear_their_time() {
        let line = "[1795171797.628367]\t    [NEW] udp      17 29 src=10.0.0.7 dst=192.0.2.1 sport=5353 dport=53 \
                    [UNREPLIED] src=192.0.2.1 dst=10.0.0.7 sport=53 dport=5353 mark=0 id=707211218";
        let event = Event::parse(line).unwrap();
        assert_eq!((event.time_us, event.kind), (1_795_171_797_628_367, EventKind::New));
        assert_eq!((event.entry.id, event.entry.timeout), (Some(707_211_218), Some(29)));
        let destroy = line.replace("[NEW]", "[DESTROY]").replace("17 29", "17");
        assert_eq!(Event::parse(&destroy).unwrap().entry.timeout, None);
    }

    #[test]
    fn what_is_no_line_is_named() {
        assert!(Entry::parse("udp 17 29 src=10.0.0.7").unwrap_err().contains("not two tuples"));
        assert!(Event::parse("[NEW] udp").unwrap_err().contains("no time"));
    }
}

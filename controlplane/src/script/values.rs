//! Values as scripts write them: addresses, ports, protocols, durations.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use erhu_planes::program::{AddressRange, InterfaceAddress, PortRange, Prefix, directions, states, statuses};
use rhai::{Array, Dynamic, Map};

use super::suggest::{did_you_mean, list};
use crate::policy::Action;

/// Why a value is not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Problem {
    /// It comes from a call whose error has been recorded.
    Reported,
    /// To be recorded by whoever knows place, function and key.
    Says(String),
}

impl<S: Into<String>> From<S> for Problem {
    fn from(message: S) -> Self {
        Self::Says(message.into())
    }
}

/// A value read.
pub type Parsed<T> = Result<T, Problem>;

/// What a call returns whose error has been recorded; whoever is given it stays silent.
#[derive(Clone, Debug)]
pub struct Broken;

/// `not(value)`.
#[derive(Clone, Debug)]
pub struct Negated(pub Dynamic);

/// An action, as constants and functions give it.
#[derive(Clone, Debug)]
pub struct ScriptAction(pub Action);

/// IANA protocol numbers with the names that scripts know.
pub const PROTOCOLS: [(&str, u8); 8] = [
    ("tcp", 6),
    ("udp", 17),
    ("icmp", 1),
    ("icmpv6", 58),
    ("sctp", 132),
    ("dccp", 33),
    ("gre", 47),
    ("udplite", 136),
];

/// Connection states with their bits.
pub const STATES: [(&str, u8); 5] = [
    ("new", states::NEW),
    ("established", states::ESTABLISHED),
    ("related", states::RELATED),
    ("invalid", states::INVALID),
    ("untracked", states::UNTRACKED),
];

/// What can be asked of a packet's connection, with its bit.
pub const STATUSES: [(&str, u8); 4] = [
    ("snat", statuses::SNAT),
    ("dnat", statuses::DNAT),
    ("assured", statuses::ASSURED),
    ("seen_reply", statuses::SEEN_REPLY),
];

/// Directions of a connection, with their bits.
pub const DIRECTIONS: [(&str, u8); 2] = [("original", directions::ORIGINAL), ("reply", directions::REPLY)];

/// The name scripts have for a protocol.
pub fn protocol_name(number: u8) -> Option<&'static str> {
    PROTOCOLS.iter().find(|(_, n)| *n == number).map(|(name, _)| *name)
}

/// The names of states whose bits are set.
pub fn state_names(bits: u8) -> impl Iterator<Item = &'static str> {
    STATES.iter().filter(move |(_, bit)| bits & bit != 0).map(|(name, _)| *name)
}

/// The names of statuses whose bits are set.
pub fn status_names(bits: u8) -> impl Iterator<Item = &'static str> {
    STATUSES.iter().filter(move |(_, bit)| bits & bit != 0).map(|(name, _)| *name)
}

/// The names of directions whose bits are set.
pub fn direction_names(bits: u8) -> impl Iterator<Item = &'static str> {
    DIRECTIONS.iter().filter(move |(_, bit)| bits & bit != 0).map(|(name, _)| *name)
}

/// A value in words, for errors.
pub fn describe(value: &Dynamic) -> String {
    if let Some(text) = text(value) {
        let mut short: String = text.chars().take(40).collect();
        if short.len() < text.len() {
            short.push('…');
        }
        return format!("the string {short:?}");
    }
    if let Ok(number) = value.as_int() {
        return format!("the number {number}");
    }
    if let Ok(number) = value.as_float() {
        return format!("the number {number}");
    }
    if let Ok(flag) = value.as_bool() {
        return flag.to_string();
    }
    let words = if value.is_unit() {
        "nothing"
    } else if value.is_array() {
        "an array"
    } else if value.is_map() {
        "a map"
    } else if value.is_fnptr() {
        "a function"
    } else if value.is_char() {
        "a character"
    } else if let Some(action) = value.read_lock::<ScriptAction>() {
        return format!("the action `{}`", action.0.kind.name());
    } else if value.is::<Negated>() {
        "not(…)"
    } else {
        "something else"
    };
    words.into()
}

/// `expected …, found …`; silent about [`Broken`].
pub fn expected(what: &str, found: &Dynamic) -> Problem {
    if found.is::<Broken>() {
        Problem::Reported
    } else {
        format!("expected {what}, found {}", describe(found)).into()
    }
}

/// The text of a string, shared or not.
pub fn text(value: &Dynamic) -> Option<String> {
    value.read_lock::<rhai::ImmutableString>().map(|text| text.to_string())
}

/// A string.
pub fn string(value: &Dynamic, what: &str) -> Parsed<String> {
    text(value).ok_or_else(|| expected(what, value))
}

/// A name of at most as many bytes as programs hold.
pub fn name(value: &Dynamic) -> Parsed<String> {
    let text = string(value, "a name")?;
    let most = erhu_planes::program::limits::NAME;
    if text.is_empty() || text.len() > most || text.chars().any(char::is_control) {
        return Err(format!("{text:?} is no name: 1 to {most} bytes without control characters").into());
    }
    Ok(text)
}

/// `true` or `false`.
pub fn flag(value: &Dynamic) -> Parsed<bool> {
    value.as_bool().map_err(|_| expected("true or false", value))
}

/// A whole number from `least` to `most`.
pub fn number(value: &Dynamic, least: u32, most: u32) -> Parsed<u32> {
    let what = format!("a whole number from {least} to {most}");
    let number = value.as_int().map_err(|_| expected(&what, value))?;
    match u32::try_from(number) {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(expected(&what, value)),
    }
}

/// As [`number`], for what is stored in 16 bits.
pub fn short(value: &Dynamic, least: u16, most: u16) -> Parsed<u16> {
    let number = number(value, least.into(), most.into())?;
    u16::try_from(number).map_err(|_| expected("a small number", value))
}

/// One of a few words.
pub fn choice<T: Copy>(value: &Dynamic, choices: &[(&str, T)]) -> Parsed<T> {
    let known = || choices.iter().map(|(name, _)| *name);
    let text = string(value, &list(known()))?;
    match choices.iter().find(|(name, _)| *name == text) {
        Some((_, choice)) => Ok(*choice),
        None => match did_you_mean(&text, known()) {
            near if near.is_empty() => Err(expected(&list(known()), value)),
            near => Err(format!("unknown value `{text}`{near}").into()),
        },
    }
}

/// One value or an array of them, never empty, as one list.
pub fn any_of<T>(value: &Dynamic, one: impl Fn(&Dynamic) -> Parsed<T>) -> Parsed<Vec<T>> {
    let Some(items) = value.read_lock::<Array>() else { return Ok(vec![one(value)?]) };
    if items.is_empty() {
        return Err("an empty array matches nothing".into());
    }
    items
        .iter()
        .map(|item| {
            if item.is::<Negated>() {
                Err("`not` goes around the whole array, not around one value in it".into())
            } else {
                one(item)
            }
        })
        .collect()
}

/// A map.
pub fn map(value: &Dynamic, what: &str) -> Parsed<Map> {
    value.read_lock::<Map>().map(|map| map.clone()).ok_or_else(|| expected(what, value))
}

/// Seconds as a number, or a string with units: `"500ms"`, `"2h"`, `"1h30m"`. In milliseconds, up to 100 days.
pub fn duration(value: &Dynamic) -> Parsed<u64> {
    const MOST: f64 = erhu_planes::program::limits::TIMEOUT_MS as f64;
    let what = "a duration (seconds, or \"500ms\", \"30s\", \"5m\", \"2h\", \"1d\")";
    let ms = if let Ok(seconds) = value.as_int() {
        seconds as f64 * 1000.0
    } else if let Ok(seconds) = value.as_float() {
        seconds * 1000.0
    } else {
        text(value).and_then(|text| units(&text)).ok_or_else(|| expected(what, value))?
    };
    if !(0.0..=MOST).contains(&ms) {
        return Err(format!("{} is out of range: 0 to 100 days", describe(value)).into());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded above")]
    Ok(ms.round() as u64)
}

fn units(text: &str) -> Option<f64> {
    let mut rest = text.trim();
    let mut ms = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        ms += number
            * match &rest[..unit] {
                "ms" => 1.0,
                "s" => 1000.0,
                "m" => 60_000.0,
                "h" => 3_600_000.0,
                "d" => 86_400_000.0,
                _ => return None,
            };
        rest = rest[unit..].trim_start();
    }
    Some(ms)
}

const ADDRESS: &str = "an address, a prefix or a range such as \"10.0.0.0/24\" or \"203.0.113.1-203.0.113.4\"";

/// One address.
pub fn address(value: &Dynamic) -> Parsed<IpAddr> {
    let what = "an address such as \"10.0.0.1\"";
    let text = string(value, what)?;
    text.parse().map_err(|_| expected(what, value))
}

/// One address that a host can have.
pub fn host(value: &Dynamic) -> Parsed<IpAddr> {
    let address = address(value)?;
    if is_host(address) { Ok(address) } else { Err(format!("{address} is no host's address").into()) }
}

/// Whether a host can have it: not unspecified, multicast, broadcast or reserved; of IPv6 not loopback and not
/// IPv4-mapped either.
pub fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.octets()[0] != 0 && a.octets()[0] < 224,
        IpAddr::V6(a) => !a.is_unspecified() && !a.is_multicast() && !a.is_loopback() && a.to_ipv4_mapped().is_none(),
    }
}

/// `"ip/len"`, host bits kept.
pub fn interface_address(value: &Dynamic) -> Parsed<InterfaceAddress> {
    let what = "an address with its prefix length such as \"10.0.0.1/24\"";
    let text = string(value, what)?;
    let (address, length) = text.split_once('/').ok_or_else(|| expected(what, value))?;
    let address = address.parse().map_err(|_| expected(what, value))?;
    let length = parse_length(length).ok_or_else(|| expected(what, value))?;
    let Some(prefix) = Prefix::new(address, length) else { return Err(expected(what, value)) };
    if !is_host(address) {
        return Err(format!("{address} is no host's address").into());
    }
    let AddressRange { first, last } = whole(prefix);
    // RFC 3021: a /31 has two hosts and neither a network nor a broadcast address.
    if address.is_ipv4() && length < 31 && (address == first || address == last) {
        return Err(format!("{text:?} is the network or broadcast address of its prefix").into());
    }
    Ok(InterfaceAddress { address, length })
}

/// `"ip/len"` without host bits, or one address.
pub fn prefix(value: &Dynamic) -> Parsed<Prefix> {
    let what = "a prefix such as \"10.0.0.0/24\"";
    let text = string(value, what)?;
    parse_prefix(&text).unwrap_or_else(|| Err(expected(what, value)))
}

/// An address, a prefix or a range.
pub fn address_range(value: &Dynamic) -> Parsed<AddressRange> {
    let text = string(value, ADDRESS)?;
    if text.starts_with('@') {
        return Err(format!("set references (`{text}`): not available yet").into());
    }
    if let Some((first, last)) = text.split_once('-') {
        let parse = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| expected(ADDRESS, value));
        let (first, last) = (parse(first)?, parse(last)?);
        if first.is_ipv4() != last.is_ipv4() {
            return Err(format!("{text:?} begins as IPv4 and ends as IPv6, or the other way round").into());
        }
        if first > last {
            return Err(format!("{text:?} ends before it begins").into());
        }
        return Ok(AddressRange { first, last });
    }
    parse_prefix(&text).unwrap_or_else(|| Err(expected(ADDRESS, value))).map(whole)
}

/// As [`address_range`], of addresses that hosts can have.
pub fn host_range(value: &Dynamic) -> Parsed<AddressRange> {
    let range = address_range(value)?;
    for end in [range.first, range.last] {
        if !is_host(end) {
            return Err(format!("{end} is no host's address").into());
        }
    }
    Ok(range)
}

/// What a destination is translated to: addresses, and the port in `"address:port"` (`"[address]:port"` for IPv6).
pub fn destination(value: &Dynamic) -> Parsed<(AddressRange, Option<PortRange>)> {
    let written = text(value).unwrap_or_default();
    let split = match written.strip_prefix('[') {
        Some(rest) => rest.split_once("]:"),
        None => written.split_once(':').filter(|(_, port)| !port.contains(':')),
    };
    let Some((address, port)) = split else { return host_range(value).map(|range| (range, None)) };
    let ports = given_ports(&port.to_owned().into())?;
    host_range(&address.to_owned().into()).map(|range| (range, Some(ports)))
}

/// `None` if the text is no prefix at all; an error if it nearly is one.
fn parse_prefix(text: &str) -> Option<Parsed<Prefix>> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address.parse::<IpAddr>().ok()?, parse_length(length)?),
        None => {
            let address: IpAddr = text.parse().ok()?;
            (address, if address.is_ipv4() { 32 } else { 128 })
        }
    };
    let prefix = Prefix::new(address, length)?;
    Some(if prefix.network == address {
        Ok(prefix)
    } else {
        Err(format!("{text:?} has bits beyond its length, did you mean \"{}/{length}\"?", prefix.network).into())
    })
}

fn parse_length(text: &str) -> Option<u8> {
    if text.is_empty() || text.len() > 3 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// All addresses of a prefix.
pub fn whole(prefix: Prefix) -> AddressRange {
    let last = match prefix.network {
        IpAddr::V4(a) => {
            let host = u32::MAX.checked_shr(prefix.length.into()).unwrap_or(0);
            Ipv4Addr::from(u32::from(a) | host).into()
        }
        IpAddr::V6(a) => {
            let host = u128::MAX.checked_shr(prefix.length.into()).unwrap_or(0);
            Ipv6Addr::from(u128::from(a) | host).into()
        }
    };
    AddressRange { first: prefix.network, last }
}

/// `"02:00:00:00:00:01"`, of one host.
pub fn mac(value: &Dynamic) -> Parsed<[u8; 6]> {
    let what = "a MAC address such as \"02:00:00:00:00:01\"";
    let text = string(value, what)?;
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|p| (1..=2).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_hexdigit()));
        *byte = part.and_then(|p| u8::from_str_radix(p, 16).ok()).ok_or_else(|| expected(what, value))?;
    }
    if parts.next().is_some() {
        return Err(expected(what, value));
    }
    if bytes[0] & 1 != 0 || bytes == [0; 6] {
        return Err(format!("{text:?} is a group's or no address").into());
    }
    Ok(bytes)
}

/// A port or a range of ports.
pub fn port_range(value: &Dynamic) -> Parsed<PortRange> {
    if let Some(text) = text(value)
        && text.starts_with('@')
    {
        return Err(format!("set references (`{text}`): not available yet").into());
    }
    numbers(value, u16::MAX, "a port or a range such as \"1024-65535\"")
}

/// Ports that can be given: not 0.
pub fn given_ports(value: &Dynamic) -> Parsed<PortRange> {
    let range = port_range(value)?;
    if range.first == 0 { Err("port 0 cannot be given".into()) } else { Ok(range) }
}

/// A number up to `most` or a range of them.
pub fn numbers(value: &Dynamic, most: u16, what: &str) -> Parsed<PortRange> {
    let fits = |n: Option<u16>| n.filter(|n| *n <= most);
    if let Ok(number) = value.as_int() {
        let number = fits(u16::try_from(number).ok()).ok_or_else(|| expected(what, value))?;
        return Ok(PortRange { first: number, last: number });
    }
    let text = string(value, what)?;
    let parse = |text: &str| {
        let text = text.trim();
        fits(text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit())))
    };
    let (first, last) = text.split_once('-').unwrap_or((&text, &text));
    match (parse(first), parse(last)) {
        (Some(first), Some(last)) if first <= last => Ok(PortRange { first, last }),
        (Some(_), Some(_)) => Err(format!("{text:?} ends before it begins").into()),
        _ => Err(expected(what, value)),
    }
}

/// A protocol by name or number.
pub fn protocol(value: &Dynamic) -> Parsed<u8> {
    let what = format!("a protocol ({}, or a number from 0 to 255)", list(PROTOCOLS.iter().map(|p| p.0)));
    if let Ok(number) = value.as_int() {
        return u8::try_from(number).map_err(|_| expected(&what, value));
    }
    let text = string(value, &what)?;
    match PROTOCOLS.iter().find(|(name, _)| *name == text) {
        Some((_, number)) => Ok(*number),
        None => match did_you_mean(&text, PROTOCOLS.iter().map(|p| p.0)) {
            near if near.is_empty() => Err(expected(&what, value)),
            near => Err(format!("unknown protocol `{text}`{near}").into()),
        },
    }
}

/// A number of 32 bits, or text of it in decimal or hexadecimal.
pub fn mark(value: &Dynamic) -> Parsed<u32> {
    let what = "a mark: a number of 32 bits such as 7 or \"0x10\"";
    if let Ok(number) = value.as_int() {
        return u32::try_from(number).map_err(|_| expected(what, value));
    }
    parse_mark(&string(value, what)?).ok_or_else(|| expected(what, value))
}

/// As [`mark`], with an optional mask: `"0x10/0xf0"`.
pub fn masked_mark(value: &Dynamic) -> Parsed<(u32, u32)> {
    let Some(text) = text(value).filter(|text| text.contains('/')) else {
        let what = "a mark such as 7 or \"0x10/0xf0\"";
        return mark(value).map(|mark| (mark, u32::MAX)).map_err(|_| expected(what, value));
    };
    let both = text.split_once('/').and_then(|(mark, mask)| Some((parse_mark(mark)?, parse_mark(mask)?)));
    let (mark, mask) = both.ok_or_else(|| expected("a mark such as 7 or \"0x10/0xf0\"", value))?;
    if mark & !mask != 0 {
        return Err(format!("{text:?} never matches: the mark has bits that the mask has not").into());
    }
    Ok((mark, mask))
}

fn parse_mark(text: &str) -> Option<u32> {
    let text = text.trim();
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_hexdigit()) => u32::from_str_radix(digits, 16).ok(),
        Some(_) => None,
        None if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says<T: std::fmt::Debug>(parsed: Parsed<T>) -> String {
        match parsed {
            Err(Problem::Says(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn durations_are_seconds_or_have_units() {
        for (written, ms) in [
            (Dynamic::from(30_i64), 30_000),
            (Dynamic::from(0.5), 500),
            ("500ms".into(), 500),
            ("2h".into(), 7_200_000),
            ("1h30m".into(), 5_400_000),
            ("1.5s".into(), 1500),
            ("5m".into(), 300_000),
            ("1d".into(), 86_400_000),
            ("100d".into(), 8_640_000_000),
        ] {
            assert_eq!(duration(&written), Ok(ms), "{written}");
        }
        for wrong in ["", "5", "h", "5 parsecs", "1..5s", "-5s", "5s!", "101d", "9".repeat(400).as_str()] {
            assert!(duration(&wrong.into()).is_err(), "{wrong}");
        }
        for wrong in [f64::NAN, f64::INFINITY, -0.1] {
            assert!(duration(&wrong.into()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_prefixes_and_ranges_become_ranges() {
        let range = |text: &str| address_range(&text.into()).map(|r| format!("{}-{}", r.first, r.last)).unwrap();
        assert_eq!(range("10.0.0.1"), "10.0.0.1-10.0.0.1");
        assert_eq!(range("10.0.0.0/24"), "10.0.0.0-10.0.0.255");
        assert_eq!(range("0.0.0.0/0"), "0.0.0.0-255.255.255.255");
        assert_eq!(range("203.0.113.1-203.0.113.4"), "203.0.113.1-203.0.113.4");
        assert_eq!(range("2001:db8::1"), "2001:db8::1-2001:db8::1");
        assert_eq!(range("2001:db8::/126"), "2001:db8::-2001:db8::3");
        assert_eq!(range("2001:db8::1-2001:db8::ffff"), "2001:db8::1-2001:db8::ffff");
        assert_eq!(range("::/0"), "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
    }

    #[test]
    fn no_host_has_an_address_of_everybody_nobody_or_another_family() {
        for address in ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1", "::ffff:10.0.0.1"] {
            assert!(host(&address.into()).is_err(), "{address}");
        }
        for address in ["10.0.0.1", "2001:db8::1", "fe80::1", "fd00::1"] {
            assert!(host(&address.into()).is_ok(), "{address}");
        }
    }

    #[test]
    fn addresses_that_are_none_say_why() {
        for (text, part) in [
            ("10.0.0.300", "expected an address"),
            ("10.0.0.1/33", "expected an address"),
            ("10.0.0.1/+8", "expected an address"),
            ("10.0.0.5/24", "did you mean \"10.0.0.0/24\"?"),
            ("10.0.0.5-10.0.0.1", "ends before it begins"),
            ("10.0.0.5-2001:db8::1", "begins as IPv4 and ends as IPv6"),
            ("2001:db8::5/32", "did you mean \"2001:db8::/32\"?"),
            ("2001:db8::/129", "expected an address"),
            ("2001:db8::5-2001:db8::1", "ends before it begins"),
            ("@bad", "set references (`@bad`): not available yet"),
        ] {
            let said = says(address_range(&text.into()));
            assert!(said.contains(part), "{text}: {said}");
        }
    }

    #[test]
    fn destinations_are_addresses_with_or_without_a_port() {
        let read = |text: &str| {
            destination(&text.into()).map(|(r, p)| (r.first.to_string(), r.count(), p.map(|p| (p.first, p.last))))
        };
        assert_eq!(read("10.0.0.5"), Ok(("10.0.0.5".into(), 1, None)));
        assert_eq!(read("10.0.0.5-10.0.0.8"), Ok(("10.0.0.5".into(), 4, None)));
        assert_eq!(read("10.0.0.5:8080"), Ok(("10.0.0.5".into(), 1, Some((8080, 8080)))));
        assert_eq!(read("10.0.0.5:8080-8090"), Ok(("10.0.0.5".into(), 1, Some((8080, 8090)))));
        for wrong in ["10.0.0.5:", "10.0.0.5:0", ":80", "10.0.0.5:80:81", "10.0.0.5:http", "0.0.0.0"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_ends_of_a_prefix_are_no_interface_address_but_both_of_a_31_are() {
        assert!(interface_address(&"10.0.0.0/24".into()).is_err());
        assert!(interface_address(&"10.0.0.255/24".into()).is_err());
        assert!(interface_address(&"10.0.0.0/31".into()).is_ok());
        assert!(interface_address(&"10.0.0.1/32".into()).is_ok());
        // IPv6 has no broadcast; the first address is the routers' anycast address, which a router may have.
        assert!(interface_address(&"2001:db8::/64".into()).is_ok());
        assert!(interface_address(&"2001:db8::ffff:ffff:ffff:ffff/64".into()).is_ok());
        assert!(interface_address(&"::1/128".into()).is_err());
    }

    #[test]
    fn marks_are_decimal_or_hexadecimal_with_an_optional_mask() {
        assert_eq!(masked_mark(&"0x10/0xf0".into()), Ok((0x10, 0xf0)));
        assert_eq!(masked_mark(&7.into()), Ok((7, u32::MAX)));
        assert_eq!(mark(&"0xffffffff".into()), Ok(u32::MAX));
        for wrong in ["0x", "-1", "0x1/0x2/0x3", "0x100000000", "+7", "7/"] {
            assert!(masked_mark(&wrong.into()).is_err(), "{wrong}");
        }
        assert!(says(masked_mark(&"0x10/0x0f".into())).contains("never matches"));
    }

    #[test]
    fn ports_protocols_and_macs_are_strict() {
        assert_eq!(port_range(&"1024-65535".into()), Ok(PortRange { first: 1024, last: 65535 }));
        for wrong in [Dynamic::from(-1_i64), 65536.into(), "80-".into(), "-80".into(), "1-2-3".into(), 80.5.into()] {
            assert!(port_range(&wrong).is_err(), "{wrong}");
        }
        assert_eq!(protocol(&"udplite".into()), Ok(136));
        assert!(says(protocol(&"tpc".into())).contains("did you mean `tcp`?"));
        assert_eq!(mac(&"2:0:0:0:0:a".into()), Ok([2, 0, 0, 0, 0, 10]));
        for wrong in
            ["02:00:00:00:00", "02:00:00:00:00:01:02", "01:00:5e:00:00:01", "00:00:00:00:00:00", "0g:0:0:0:0:0"]
        {
            assert!(mac(&wrong.into()).is_err(), "{wrong}");
        }
    }
}

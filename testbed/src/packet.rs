//! Frames for tests: a builder, and in [`read`] a reader that judges what left.
//!
//! Both are written from the RFCs and share no code with the router. A packet is built by naming its ends and then
//! what is special about it; everything else (lengths, checksums, identification) is as a host would send it:
//!
//! ```
//! use erhu_testbed::packet::{icmp_error, tcp, udp};
//!
//! let query = udp("10.0.0.5:5353", "192.0.2.1:53").ttl(9).payload(b"who?");
//! let reset = tcp("10.0.0.5:40000", "192.0.2.1:443").flags("RA").seq(7).ack(9);
//! let error = icmp_error("192.0.2.1", "10.0.0.5", 3, 3).about(&query.l3());
//! assert_eq!(error.seen().to_string(), "icmp 192.0.2.1 > 10.0.0.5 3/3 about udp 10.0.0.5:5353 > 192.0.2.1:53");
//! ```
//!
//! IPv6 is built by the same functions, from IPv6 addresses: `udp("[2001:db8::5]:5353", "[2001:db8:1::1]:53")`. ICMP is
//! ICMPv6 then, time to live the hop limit, and a fragment has a fragment header.

pub mod read;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use read::Seen;

/// A MAC address.
pub type Mac = [u8; 6];

/// The broadcast MAC address.
pub const BROADCAST: Mac = [0xff; 6];

/// Ethertypes.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// 802.1Q.
    pub const VLAN: u16 = 0x8100;
    /// 802.1ad.
    pub const QINQ: u16 = 0x88a8;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// TCP flag bits and their letters, in the order in which flags are printed.
pub const TCP_FLAGS: [(u8, char); 8] =
    [(2, 'S'), (1, 'F'), (4, 'R'), (8, 'P'), (16, 'A'), (32, 'U'), (64, 'E'), (128, 'C')];

/// A UDP or TCP end.
///
/// # Panics
/// If the text is none. For tests; so do the functions below.
fn end(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is not an address with a port"))
}

/// An address.
fn address(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is not an address"))
}

/// An IPv4 address.
fn address4(text: &str) -> Ipv4Addr {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is not an IPv4 address"))
}

/// An IPv6 address.
fn address6(text: &str) -> Ipv6Addr {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is not an IPv6 address"))
}

/// The MAC address of a host without one of its own: `02:00` and the last four bytes of its address, as replay's
/// answers to ARP and neighbour solicitations have it.
pub fn host_mac(address: impl Into<IpAddr>) -> Mac {
    let [a, b, c, d] = match address.into() {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => std::array::from_fn(|i| address.octets()[12 + i]),
    };
    [2, 0, a, b, c, d]
}

/// The group that solicitations for an IPv6 address go to, and its MAC address (RFC 4291 section 2.7.1, RFC 2464
/// section 7).
pub fn solicited_node(address: Ipv6Addr) -> (Ipv6Addr, Mac) {
    let [.., a, b, c] = address.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    (group, [0x33, 0x33, 0xff, a, b, c])
}

/// One frame to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    source_mac: Option<Mac>,
    destination_mac: Option<Mac>,
    tags: Vec<(u16, u16)>,
    body: Body,
    padding: Vec<u8>,
    cut: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Body {
    Arp { operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr) },
    Ip(Ip),
    Raw { ethertype: u16, bytes: Vec<u8> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Ip {
    source: IpAddr,
    /// Of the same family.
    destination: IpAddr,
    ttl: u8,
    tos: u8,
    id: u16,
    /// Flags and offset as they stand in the IPv4 header.
    fragment: u16,
    options: Vec<u8>,
    /// IPv6 extension headers: protocol, and bytes after the next header number.
    extensions: Vec<(u8, Vec<u8>)>,
    upper: Upper,
    payload: Vec<u8>,
    /// Header bytes to overwrite at last, by offset: what breaks a header on purpose.
    overwrite: Vec<(usize, u8)>,
    checksum: Checksum,
    upper_checksum: Checksum,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Upper {
    Udp { sport: u16, dport: u16, length: Option<u16> },
    Tcp { sport: u16, dport: u16, seq: u32, ack: u32, flags: u8, window: u16, options: Vec<u8>, offset: Option<u8> },
    Icmp { kind: u8, code: u8, rest: [u8; 4] },
    Other(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checksum {
    Right,
    Wrong,
    Zero,
}

fn ip(source: IpAddr, destination: IpAddr, upper: Upper) -> Packet {
    assert_eq!(source.is_ipv4(), destination.is_ipv4(), "{source} and {destination} are of one family");
    let ip = Ip {
        source,
        destination,
        ttl: 64,
        tos: 0,
        id: 0x1234,
        fragment: 0,
        options: Vec::new(),
        extensions: Vec::new(),
        upper,
        payload: Vec::new(),
        overwrite: Vec::new(),
        checksum: Checksum::Right,
        upper_checksum: Checksum::Right,
    };
    Packet::with(Body::Ip(ip))
}

/// A UDP datagram between two ends (`"10.0.0.5:5353"`), without payload.
///
/// # Panics
/// If an end is not an address with a port, or they are of two families; so do the other builders.
pub fn udp(from: &str, to: &str) -> Packet {
    let (from, to) = (end(from), end(to));
    ip(from.ip(), to.ip(), Upper::Udp { sport: from.port(), dport: to.port(), length: None })
}

/// A TCP segment between two ends, without flags, payload or options; window 64 240.
pub fn tcp(from: &str, to: &str) -> Packet {
    let (from, to) = (end(from), end(to));
    let upper = Upper::Tcp {
        sport: from.port(),
        dport: to.port(),
        seq: 0,
        ack: 0,
        flags: 0,
        window: 64_240,
        options: Vec::new(),
        offset: None,
    };
    ip(from.ip(), to.ip(), upper)
}

/// An ICMP echo request with sequence number 1.
pub fn ping(from: &str, to: &str, id: u16) -> Packet {
    let [a, b] = id.to_be_bytes();
    icmp(from, to, if address(from).is_ipv4() { 8 } else { 128 }, 0, [a, b, 0, 1])
}

/// An ICMP echo reply with sequence number 1.
pub fn pong(from: &str, to: &str, id: u16) -> Packet {
    let [a, b] = id.to_be_bytes();
    icmp(from, to, if address(from).is_ipv4() { 0 } else { 129 }, 0, [a, b, 0, 1])
}

/// Any ICMP message: type, code and the four bytes that follow the checksum.
pub fn icmp(from: &str, to: &str, kind: u8, code: u8, rest: [u8; 4]) -> Packet {
    ip(address(from), address(to), Upper::Icmp { kind, code, rest })
}

/// An ICMP error; [`Packet::about`] says what it quotes.
pub fn icmp_error(from: &str, to: &str, kind: u8, code: u8) -> Packet {
    icmp(from, to, kind, code, [0; 4])
}

/// An IP packet of any protocol, without payload.
pub fn ip_protocol(from: &str, to: &str, protocol: u8) -> Packet {
    ip(address(from), address(to), Upper::Other(protocol))
}

/// A frame of any ethertype.
pub fn raw(ethertype: u16, bytes: &[u8]) -> Packet {
    Packet::with(Body::Raw { ethertype, bytes: bytes.to_vec() })
}

/// A broadcast ARP request for `whose`, sent by the host `asker`.
pub fn arp_request(whose: &str, asker: &str) -> Packet {
    let asker = address4(asker);
    let sender = (host_mac(asker), asker);
    let arp = Packet::with(Body::Arp { operation: 1, sender, target: ([0; 6], address4(whose)) });
    arp.mac_to(BROADCAST)
}

/// An ARP reply of the host `whose` with its [`host_mac`], to `asker` at a MAC address.
pub fn arp_reply(whose: &str, asker: (&str, Mac)) -> Packet {
    let whose = address4(whose);
    let target = (asker.1, address4(asker.0));
    Packet::with(Body::Arp { operation: 2, sender: (host_mac(whose), whose), target }).mac_to(asker.1)
}

/// A neighbour solicitation for `whose`, sent by the host `asker` to the solicited-node group (RFC 4861 section 4.3).
pub fn neighbour_solicitation(whose: &str, asker: &str) -> Packet {
    let (whose, asker) = (address6(whose), address6(asker));
    let (group, mac) = solicited_node(whose);
    let body = [&whose.octets()[..], &[1, 1], &host_mac(asker)].concat();
    ip(asker.into(), group.into(), Upper::Icmp { kind: 135, code: 0, rest: [0; 4] })
        .ttl(255)
        .payload(&body)
        .mac_to(mac)
}

/// The advertisement of the host `whose`, solicited and overriding, with its [`host_mac`], to `asker` at a MAC address
/// (RFC 4861 section 4.4).
pub fn neighbour_advertisement(whose: &str, asker: (&str, Mac)) -> Packet {
    let whose = address6(whose);
    let body = [&whose.octets()[..], &[2, 1], &host_mac(whose)].concat();
    let upper = Upper::Icmp { kind: 136, code: 0, rest: [0x60, 0, 0, 0] };
    ip(whose.into(), address(asker.0), upper).ttl(255).payload(&body).mac_to(asker.1)
}

impl Packet {
    fn with(body: Body) -> Self {
        Self { source_mac: None, destination_mac: None, tags: Vec::new(), body, padding: Vec::new(), cut: None }
    }

    fn ip_mut(&mut self) -> &mut Ip {
        match &mut self.body {
            Body::Ip(ip) => ip,
            other => panic!("{other:?} has no IP header"),
        }
    }

    fn change(mut self, what: impl FnOnce(&mut Ip)) -> Self {
        what(self.ip_mut());
        self
    }

    fn tcp_mut(self, what: impl FnOnce(&mut u32, &mut u32, &mut u8, &mut u16, &mut Vec<u8>)) -> Self {
        self.change(|ip| match &mut ip.upper {
            Upper::Tcp { seq, ack, flags, window, options, .. } => what(seq, ack, flags, window, options),
            other => panic!("{other:?} is not TCP"),
        })
    }

    /// Source MAC address; by default the one of [`host_mac`].
    #[must_use]
    pub fn mac_from(mut self, mac: Mac) -> Self {
        self.source_mac = Some(mac);
        self
    }

    /// Destination MAC address; where none is set, what sends the packet sets the router's.
    #[must_use]
    pub fn mac_to(mut self, mac: Mac) -> Self {
        self.destination_mac = Some(mac);
        self
    }

    /// Sets the destination MAC address if none is set.
    #[must_use]
    pub fn mac_to_default(mut self, mac: Mac) -> Self {
        self.destination_mac.get_or_insert(mac);
        self
    }

    /// Adds an 802.1Q tag inside those that are there.
    #[must_use]
    pub fn vlan(self, id: u16) -> Self {
        self.tag(ethertype::VLAN, id)
    }

    /// Adds a tag: type, and priority with VLAN id as in the frame.
    #[must_use]
    pub fn tag(mut self, kind: u16, control: u16) -> Self {
        self.tags.push((kind, control));
        self
    }

    /// Time to live.
    #[must_use]
    pub fn ttl(self, ttl: u8) -> Self {
        self.change(|ip| ip.ttl = ttl)
    }

    /// Type of service byte.
    #[must_use]
    pub fn tos(self, tos: u8) -> Self {
        self.change(|ip| ip.tos = tos)
    }

    /// IP identification.
    #[must_use]
    pub fn id(self, id: u16) -> Self {
        self.change(|ip| ip.id = id)
    }

    /// Don't fragment.
    #[must_use]
    pub fn df(self) -> Self {
        self.change(|ip| ip.fragment |= 0x4000)
    }

    /// Makes it a fragment as it stands: offset in bytes, and whether more follow. IPv6: the fragment header comes last.
    #[must_use]
    pub fn fragment(self, offset: u16, more: bool) -> Self {
        self.change(|ip| {
            if ip.source.is_ipv6() {
                let [high, low] = (offset & !7 | u16::from(more)).to_be_bytes();
                let [a, b] = ip.id.to_be_bytes();
                ip.extensions.push((44, vec![0, high, low, 0, 0, a, b]));
                return;
            }
            ip.fragment = (ip.fragment & 0x4000) | (offset / 8) | if more { 0x2000 } else { 0 };
        })
    }

    /// Adds an IPv6 extension header behind those that are there: its protocol, and options, padded as they must be.
    #[must_use]
    pub fn extension(self, protocol: u8, options: &[u8]) -> Self {
        self.change(|ip| {
            let length = (2 + options.len()).next_multiple_of(8);
            let units = u8::try_from(length / 8 - 1).expect("at most 2048 bytes");
            let mut body = [&[units], options].concat();
            match length - 1 - body.len() {
                0 => {}
                1 => body.push(0), // Pad1
                more => {
                    body.extend([1, u8::try_from(more - 2).expect("below 8")]); // PadN
                    body.resize(length - 1, 0);
                }
            }
            ip.extensions.push((protocol, body));
        })
    }

    /// IP options; padded with end-of-list to four bytes.
    #[must_use]
    pub fn options(self, options: &[u8]) -> Self {
        self.change(|ip| {
            ip.options = options.to_vec();
            ip.options.resize(options.len().next_multiple_of(4), 0);
        })
    }

    /// What follows the transport header.
    #[must_use]
    pub fn payload(self, bytes: &[u8]) -> Self {
        self.change(|ip| ip.payload = bytes.to_vec())
    }

    /// A payload of so many bytes, each its own position.
    #[must_use]
    pub fn payload_len(self, length: usize) -> Self {
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(length).collect();
        self.payload(&bytes)
    }

    /// TCP flags by their letters (S F R P A U E C).
    #[must_use]
    pub fn flags(self, letters: &str) -> Self {
        let of = |letter| {
            let found = TCP_FLAGS.iter().find(|(_, l)| *l == letter);
            found.unwrap_or_else(|| panic!("{letter:?} is no TCP flag")).0
        };
        let bits = letters.chars().map(of).sum();
        self.tcp_mut(|_, _, flags, _, _| *flags = bits)
    }

    /// TCP sequence number.
    #[must_use]
    pub fn seq(self, number: u32) -> Self {
        self.tcp_mut(|seq, _, _, _, _| *seq = number)
    }

    /// TCP acknowledgement number.
    #[must_use]
    pub fn ack(self, number: u32) -> Self {
        self.tcp_mut(|_, ack, _, _, _| *ack = number)
    }

    /// TCP window as in the header.
    #[must_use]
    pub fn window(self, size: u16) -> Self {
        self.tcp_mut(|_, _, _, window, _| *window = size)
    }

    /// TCP options; padded with end-of-list to four bytes.
    #[must_use]
    pub fn tcp_options(self, bytes: &[u8]) -> Self {
        self.tcp_mut(|_, _, _, _, options| {
            *options = bytes.to_vec();
            options.resize(bytes.len().next_multiple_of(4), 0);
        })
    }

    /// A TCP data offset (in words) of its own, right or wrong.
    #[must_use]
    pub fn data_offset(self, words: u8) -> Self {
        self.change(|ip| match &mut ip.upper {
            Upper::Tcp { offset, .. } => *offset = Some(words),
            other => panic!("{other:?} is not TCP"),
        })
    }

    /// A UDP length field of its own, right or wrong.
    #[must_use]
    pub fn udp_length(self, bytes: u16) -> Self {
        self.change(|ip| match &mut ip.upper {
            Upper::Udp { length, .. } => *length = Some(bytes),
            other => panic!("{other:?} is not UDP"),
        })
    }

    /// What an ICMP error quotes of a packet (from its IP header on): the IP header and 8 bytes, the least there is.
    #[must_use]
    pub fn about(self, l3: &[u8]) -> Self {
        let first = l3.first().copied().unwrap_or(0x45);
        let header = if first >> 4 == 6 { 40 } else { usize::from(first & 15) * 4 };
        self.about_bytes(l3, header + 8)
    }

    /// As [`Self::about`], but the whole packet.
    #[must_use]
    pub fn about_whole(self, l3: &[u8]) -> Self {
        self.about_bytes(l3, l3.len())
    }

    /// As [`Self::about`], so many bytes of it.
    #[must_use]
    pub fn about_bytes(self, l3: &[u8], bytes: usize) -> Self {
        self.payload(&l3[..bytes.min(l3.len())])
    }

    /// The four bytes after an ICMP message's checksum.
    #[must_use]
    pub fn icmp_rest(self, bytes: [u8; 4]) -> Self {
        self.change(|ip| match &mut ip.upper {
            Upper::Icmp { rest, .. } => *rest = bytes,
            other => panic!("{other:?} is not ICMP"),
        })
    }

    /// The next-hop MTU of "fragmentation needed" (RFC 1191) or "packet too big" (RFC 4443 section 3.2).
    #[must_use]
    pub fn next_hop_mtu(self, mtu: u16) -> Self {
        let [a, b] = mtu.to_be_bytes();
        self.icmp_rest([0, 0, a, b])
    }

    /// A UDP datagram without checksum (field 0).
    #[must_use]
    pub fn no_checksum(self) -> Self {
        self.change(|ip| ip.upper_checksum = Checksum::Zero)
    }

    /// A wrong checksum of layer 4.
    #[must_use]
    pub fn bad_checksum(self) -> Self {
        self.change(|ip| ip.upper_checksum = Checksum::Wrong)
    }

    /// A wrong checksum of the IP header.
    #[must_use]
    pub fn bad_ip_checksum(self) -> Self {
        self.change(|ip| ip.checksum = Checksum::Wrong)
    }

    /// Overwrites a byte of the IP header, extension headers included, before its checksum is made: a header that is
    /// broken but sound in itself.
    #[must_use]
    pub fn ip_byte(self, offset: usize, value: u8) -> Self {
        self.change(|ip| ip.overwrite.push((offset, value)))
    }

    /// Bytes after the IP packet, as Ethernet pads short frames.
    #[must_use]
    pub fn padding(mut self, bytes: &[u8]) -> Self {
        self.padding = bytes.to_vec();
        self
    }

    /// Cuts the frame to so many bytes.
    #[must_use]
    pub fn cut(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }

    /// The packet from its layer-3 header on.
    pub fn l3(&self) -> Vec<u8> {
        match &self.body {
            Body::Arp { operation, sender, target } => {
                let mut bytes = vec![0, 1, 8, 0, 6, 4];
                bytes.extend(operation.to_be_bytes());
                for (mac, address) in [sender, target] {
                    bytes.extend(mac);
                    bytes.extend(address.octets());
                }
                bytes
            }
            Body::Ip(ip) => ip.bytes(),
            Body::Raw { bytes, .. } => bytes.clone(),
        }
    }

    /// The frame from its destination MAC address on. Without one set, the destination is all zero.
    pub fn bytes(&self) -> Vec<u8> {
        let (source, kind) = match &self.body {
            Body::Arp { sender, .. } => (sender.0, ethertype::ARP),
            Body::Ip(ip) if ip.source.is_ipv6() => (host_mac(ip.source), ethertype::IPV6),
            Body::Ip(ip) => (host_mac(ip.source), ethertype::IPV4),
            Body::Raw { ethertype, .. } => ([2, 0, 0, 0, 0, 1], *ethertype),
        };
        let mut frame = self.destination_mac.unwrap_or_default().to_vec();
        frame.extend(self.source_mac.unwrap_or(source));
        for (kind, control) in &self.tags {
            frame.extend(kind.to_be_bytes());
            frame.extend(control.to_be_bytes());
        }
        frame.extend(kind.to_be_bytes());
        frame.extend(self.l3());
        frame.extend(&self.padding);
        frame.truncate(self.cut.unwrap_or(usize::MAX));
        frame
    }

    /// The packet as the reader sees it.
    pub fn seen(&self) -> Seen {
        Seen::of(0, self.bytes())
    }
}

impl Ip {
    fn bytes(&self) -> Vec<u8> {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (self.source, self.destination) else {
            return self.bytes6();
        };
        let upper = self.upper_bytes();
        let header = 20 + self.options.len();
        let length = u16::try_from(header + upper.len()).expect("no test sends more than 64 KiB");
        let mut bytes = vec![0x40 | u8::try_from(header / 4).expect("at most 15 words"), self.tos];
        bytes.extend(length.to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([self.ttl, self.protocol(), 0, 0]);
        bytes.extend(source.octets());
        bytes.extend(destination.octets());
        bytes.extend(&self.options);
        for (offset, value) in &self.overwrite {
            bytes[*offset] = *value;
        }
        let sum = self.checksum.over(internet_checksum(&bytes));
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(upper);
        bytes
    }

    fn bytes6(&self) -> Vec<u8> {
        let upper = self.upper_bytes();
        let extensions: usize = self.extensions.iter().map(|(_, body)| 1 + body.len()).sum();
        let length = u16::try_from(extensions + upper.len()).expect("no test sends more than 64 KiB");
        let next = |number: usize| self.extensions.get(number).map_or(self.protocol(), |(protocol, _)| *protocol);
        let mut bytes = (6 << 28 | u32::from(self.tos) << 20).to_be_bytes().to_vec();
        bytes.extend(length.to_be_bytes());
        bytes.extend([next(0), self.ttl]);
        for address in [self.source, self.destination] {
            bytes.extend(octets(address));
        }
        for (number, (_, body)) in self.extensions.iter().enumerate() {
            bytes.push(next(number + 1));
            bytes.extend(body);
        }
        for (offset, value) in &self.overwrite {
            bytes[*offset] = *value;
        }
        bytes.extend(upper);
        bytes
    }

    fn protocol(&self) -> u8 {
        match &self.upper {
            Upper::Udp { .. } => 17,
            Upper::Tcp { .. } => 6,
            Upper::Icmp { .. } if self.source.is_ipv6() => 58,
            Upper::Icmp { .. } => 1,
            Upper::Other(protocol) => *protocol,
        }
    }

    fn upper_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let checksum_at = match &self.upper {
            Upper::Udp { sport, dport, length } => {
                let whole = u16::try_from(8 + self.payload.len()).expect("no test sends more than 64 KiB");
                for field in [*sport, *dport, length.unwrap_or(whole), 0] {
                    bytes.extend(field.to_be_bytes());
                }
                6
            }
            Upper::Tcp { sport, dport, seq, ack, flags, window, options, offset } => {
                bytes.extend(sport.to_be_bytes());
                bytes.extend(dport.to_be_bytes());
                bytes.extend(seq.to_be_bytes());
                bytes.extend(ack.to_be_bytes());
                let words = u8::try_from(5 + options.len() / 4).expect("at most 15 words");
                bytes.extend([offset.unwrap_or(words) << 4, *flags]);
                bytes.extend(window.to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend(options);
                16
            }
            Upper::Icmp { kind, code, rest } => {
                bytes.extend([*kind, *code, 0, 0]);
                bytes.extend(rest);
                2
            }
            Upper::Other(_) => return self.payload.clone(),
        };
        bytes.extend(&self.payload);
        let length = u16::try_from(bytes.len()).expect("no test sends more than 64 KiB");
        let pseudo = pseudo_header(self.source, self.destination, self.protocol(), length);
        let right = internet_checksum(&[&pseudo[..], &bytes].concat());
        let right = if matches!(self.upper, Upper::Udp { .. }) && right == 0 { 0xffff } else { right };
        let sum = self.upper_checksum.over(right);
        bytes[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// What checksums of layer 4 cover besides the segment (RFC 9293 section 3.1, RFC 8200 section 8.1); of ICMP for IPv4
/// nothing.
fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: u16) -> Vec<u8> {
    if protocol == 1 {
        return Vec::new();
    }
    let mut bytes = octets(source);
    bytes.extend(octets(destination));
    // IPv6 has a word for each of the two; zeros do not change the sum.
    bytes.extend([0, protocol]);
    bytes.extend(length.to_be_bytes());
    bytes
}

/// The checksum of RFC 1071 over bytes whose checksum field is 0; over bytes with a right one it is 0.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 = 0;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded above")
}

impl Checksum {
    fn over(self, right: u16) -> u16 {
        match self {
            Self::Right => right,
            Self::Wrong => right ^ 0x5555,
            Self::Zero => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        assert_eq!(internet_checksum(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(internet_checksum(&[0x12]), !0x1200);
    }

    #[test]
    fn a_known_datagram_comes_out_byte_for_byte() {
        // The checksums were worked out by other means.
        let packet = udp("10.0.0.5:40000", "192.0.2.1:53").id(0x0102).df().payload(b"hi\n").mac_to([1; 6]);
        let mut want = vec![1, 1, 1, 1, 1, 1, 2, 0, 10, 0, 0, 5, 8, 0];
        want.extend([0x45, 0, 0, 31, 1, 2, 0x40, 0, 64, 17, 0x6d, 0xc6, 10, 0, 0, 5, 192, 0, 2, 1]);
        want.extend([0x9c, 0x40, 0, 53, 0, 11, 0x24, 0xf3, b'h', b'i', b'\n']);
        assert_eq!(packet.bytes(), want);
    }

    #[test]
    fn a_known_datagram_of_ipv6_comes_out_byte_for_byte() {
        let packet = udp("[2001:db8::5]:40000", "[2001:db8:1::1]:53").ttl(63).payload(b"hi\n").mac_to([1; 6]);
        let mut want = vec![1, 1, 1, 1, 1, 1, 2, 0, 0, 0, 0, 5, 0x86, 0xdd];
        want.extend([0x60, 0, 0, 0, 0, 11, 17, 63]);
        want.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
        want.extend([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        // The checksum was worked out by other means.
        want.extend([0x9c, 0x40, 0, 53, 0, 11, 0x95, 0x80, b'h', b'i', b'\n']);
        assert_eq!(packet.bytes(), want);
    }

    #[test]
    fn extension_headers_stand_in_their_order_and_are_padded() {
        let l3 = udp("[::5]:1", "[::6]:2").extension(0, &[5, 2, 0, 0]).extension(60, b"").fragment(1480, true).l3();
        assert_eq!((l3[6], &l3[40..48]), (0, &[60, 0, 5, 2, 0, 0, 1, 0][..]));
        assert_eq!(&l3[48..64], &[44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 5, 0xc9, 0, 0, 0x12, 0x34]);
    }

    #[test]
    fn tags_stand_before_the_ethertype_and_cuts_are_last() {
        let frame = ping("10.0.0.1", "10.0.0.2", 7).tag(ethertype::QINQ, 100).vlan(0x2005).bytes();
        assert_eq!(&frame[12..22], &[0x88, 0xa8, 0, 100, 0x81, 0, 0x20, 5, 8, 0]);
        assert_eq!(ping("10.0.0.1", "10.0.0.2", 7).padding(&[9; 4]).cut(20).bytes().len(), 20);
    }
}

//! Capture files: pcap and pcapng in, pcap out.
//!
//! Only Ethernet is read. Times are nanoseconds since 1970, whatever the file's own resolution. Packets that a capture
//! cut short are passed on as they were captured.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use pcap_file::pcap::{PcapHeader, PcapReader, PcapWriter, RawPcapPacket};
use pcap_file::pcapng::PcapNgReader;
use pcap_file::pcapng::blocks::Block;
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::{DataLink, Endianness, PcapError, TsResolution};

/// Largest packet that is written, and the snapshot length that written files state.
const SNAPSHOT_BYTES: u32 = 262_144;

/// One captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// The frame from its destination MAC address on, without FCS, as far as it was captured.
    pub data: Vec<u8>,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Capture {
    /// Frames in file order.
    pub records: Vec<Record>,
    /// Whether the file's times are finer than microseconds.
    pub nanoseconds: bool,
    /// Set where the file ends in something that is no packet: file, number of that packet (from 1) and why. The
    /// packets before it are in `records`.
    pub warning: Option<String>,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// It cannot be opened, read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no pcap and no pcapng.
    #[error("{}: not a capture: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It was captured on another kind of link.
    #[error("{}: link type {link} ({name}), only Ethernet (1) can be read", path.display())]
    Link {
        /// The file.
        path: PathBuf,
        /// The link type's number.
        link: u32,
        /// And its name, where known.
        name: String,
    },
}

/// Reads a whole file, pcap or pcapng by its first bytes.
///
/// # Errors
/// If the file cannot be read, is no capture, or holds anything but Ethernet. A fault after the first packet is no
/// error: reading stops there and [`Capture::warning`] says so.
pub fn read(path: &Path) -> Result<Capture, CaptureError> {
    let io = |source| CaptureError::Io { path: path.into(), source };
    let mut file = File::open(path).map_err(io)?;
    let mut magic = [0; 4];
    let got = file.read(&mut magic).map_err(io)?;
    if got < magic.len() {
        return Err(CaptureError::Format { path: path.into(), reason: format!("{got} bytes are too few") });
    }
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    if magic == [0x0a, 0x0d, 0x0d, 0x0a] { read_pcapng(path, file) } else { read_pcap(path, file) }
}

fn format_error(path: &Path, error: PcapError) -> CaptureError {
    match error {
        PcapError::IoError(source) if source.kind() != std::io::ErrorKind::UnexpectedEof => {
            CaptureError::Io { path: path.into(), source }
        }
        other => CaptureError::Format { path: path.into(), reason: reason(&other) },
    }
}

fn reason(error: &PcapError) -> String {
    match error {
        PcapError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => "the file ends within it".into(),
        PcapError::IoError(e) => e.to_string(),
        other => other.to_string(),
    }
}

fn only_ethernet(path: &Path, link: DataLink) -> Result<(), CaptureError> {
    // The upper bits of the field may tell the length of a frame check sequence.
    let number = u32::from(link) & 0x03ff_ffff;
    if number == u32::from(DataLink::ETHERNET) {
        return Ok(());
    }
    Err(CaptureError::Link { path: path.into(), link: number, name: format!("{link:?}") })
}

fn warning(path: &Path, packets: usize, why: &str) -> String {
    format!("{}: packet {}: {why}; the packets before it are used", path.display(), packets + 1)
}

fn read_pcap(path: &Path, file: File) -> Result<Capture, CaptureError> {
    let mut reader = PcapReader::new(file).map_err(|e| format_error(path, e))?;
    let header = reader.header();
    only_ethernet(path, header.datalink)?;
    let nanoseconds = header.ts_resolution == TsResolution::NanoSecond;
    let fraction_ns = if nanoseconds { 1 } else { 1000 };
    let mut capture = Capture { nanoseconds, ..Capture::default() };
    // Raw packets, because the checked ones refuse what real captures hold: packets longer than the snapshot length.
    while let Some(packet) = reader.next_raw_packet() {
        match packet {
            Ok(packet) => capture.records.push(Record {
                time_ns: u64::from(packet.ts_sec) * 1_000_000_000 + u64::from(packet.ts_frac) * fraction_ns,
                data: packet.data.into_owned(),
            }),
            Err(e) => {
                capture.warning = Some(warning(path, capture.records.len(), &reason(&e)));
                break;
            }
        }
    }
    Ok(capture)
}

/// How an interface of a pcapng section counts time.
#[derive(Clone, Copy)]
struct Clock {
    /// Units per second.
    units: u128,
    /// Seconds to add.
    offset: u64,
}

impl Clock {
    fn of(interface: &InterfaceDescriptionBlock<'_>) -> Self {
        let mut clock = Self { units: 1_000_000, offset: 0 };
        for option in &interface.options {
            match option {
                InterfaceDescriptionOption::IfTsResol(exponent) => {
                    let base: u128 = if exponent & 0x80 == 0 { 10 } else { 2 };
                    clock.units = base.checked_pow(u32::from(exponent & 0x7f)).unwrap_or(u128::MAX);
                }
                InterfaceDescriptionOption::IfTsOffset(seconds) => clock.offset = *seconds,
                _ => {}
            }
        }
        clock
    }

    /// Nanoseconds since 1970; times beyond the year 2554 become the last one that fits.
    fn ns(self, units: u64) -> u64 {
        let ns =
            u128::from(units).saturating_mul(1_000_000_000) / self.units + u128::from(self.offset) * 1_000_000_000;
        u64::try_from(ns).unwrap_or(u64::MAX)
    }
}

fn read_pcapng(path: &Path, file: File) -> Result<Capture, CaptureError> {
    let mut reader = PcapNgReader::new(file).map_err(|e| format_error(path, e))?;
    let mut capture = Capture::default();
    let mut clocks: Vec<Clock> = Vec::new();
    let mut latest_ns = 0;
    loop {
        let is_little = reader.section().endianness == Endianness::Little;
        let Some(block) = reader.next_block() else { break };
        // (interface, time in the interface's units or none, length on the wire, data)
        let packet = match block {
            Ok(Block::SectionHeader(_)) => {
                clocks.clear();
                None
            }
            Ok(Block::InterfaceDescription(interface)) => {
                only_ethernet(path, interface.linktype)?;
                let clock = Clock::of(&interface);
                capture.nanoseconds |= clock.units > 1_000_000;
                clocks.push(clock);
                None
            }
            Ok(Block::EnhancedPacket(p)) => {
                // The library takes the 64-bit count for nanoseconds; it is in units of `if_tsresol`.
                let units = u64::try_from(p.timestamp.as_nanos()).unwrap_or(u64::MAX);
                Some((p.interface_id as usize, Some(units), p.original_len, p.data.into_owned()))
            }
            Ok(Block::Packet(p)) => {
                // Two 32-bit halves, the upper one first, whatever the byte order.
                let units = p.timestamp.rotate_left(if is_little { 32 } else { 0 });
                Some((usize::from(p.interface_id), Some(units), p.original_len, p.data.into_owned()))
            }
            Ok(Block::SimplePacket(p)) => Some((0, None, p.original_len, p.data.into_owned())),
            Ok(_) => None,
            Err(e) => {
                capture.warning = Some(warning(path, capture.records.len(), &reason(&e)));
                break;
            }
        };
        let Some((interface, units, length, mut data)) = packet else { continue };
        let Some(clock) = clocks.get(interface) else {
            let why = format!("of interface {interface}, which the file does not describe");
            capture.warning = Some(warning(path, capture.records.len(), &why));
            break;
        };
        if units.is_none() {
            // A simple packet's data still has the padding to four bytes.
            data.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        }
        // Simple packets bear no time: they happen when the one before them did.
        latest_ns = units.map_or(latest_ns, |units| clock.ns(units));
        capture.records.push(Record { time_ns: latest_ns, data });
    }
    Ok(capture)
}

/// Writes frames as pcap, Ethernet, little-endian: the same records make the same bytes.
///
/// With `nanoseconds` the file has nanosecond times, else microseconds, rounded down. Seconds are written modulo 2³²,
/// as the format has no more room for them.
///
/// # Errors
/// If the file cannot be written, or a frame is longer than 262 144 bytes.
pub fn write(path: &Path, records: &[Record], nanoseconds: bool) -> Result<(), CaptureError> {
    let io = |source| CaptureError::Io { path: path.into(), source };
    let file = File::create(path).map_err(io)?;
    let mut out = BufWriter::new(file);
    write_to(&mut out, records, nanoseconds).map_err(io)?;
    out.flush().map_err(io)
}

/// As [`write`], to anything.
///
/// # Errors
/// If writing fails, or a frame is longer than 262 144 bytes.
pub fn write_to(out: &mut impl Write, records: &[Record], nanoseconds: bool) -> std::io::Result<()> {
    let to_io = |e| match e {
        PcapError::IoError(e) => e,
        other => std::io::Error::other(other.to_string()),
    };
    let header = PcapHeader {
        snaplen: SNAPSHOT_BYTES,
        datalink: DataLink::ETHERNET,
        ts_resolution: if nanoseconds { TsResolution::NanoSecond } else { TsResolution::MicroSecond },
        endianness: Endianness::Little,
        ..PcapHeader::default()
    };
    let mut writer = PcapWriter::with_header(out, header).map_err(to_io)?;
    for record in records {
        let length = u32::try_from(record.data.len()).ok().filter(|n| *n <= SNAPSHOT_BYTES);
        let Some(length) = length else {
            return Err(std::io::Error::other(format!("a frame of {} bytes is too long", record.data.len())));
        };
        let (seconds, fraction_ns) = (record.time_ns / 1_000_000_000, record.time_ns % 1_000_000_000);
        let fraction = if nanoseconds { fraction_ns } else { fraction_ns / 1000 };
        let packet = RawPcapPacket {
            ts_sec: u32::try_from(seconds & 0xffff_ffff).unwrap_or(0),
            ts_frac: u32::try_from(fraction).unwrap_or(0),
            incl_len: length,
            orig_len: length,
            data: record.data.as_slice().into(),
        };
        writer.write_raw_packet(&packet).map_err(to_io)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(time_ns: u64, data: &[u8]) -> Record {
        Record { time_ns, data: data.to_vec() }
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn pcap(records: &[Record], nanoseconds: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_to(&mut bytes, records, nanoseconds).unwrap();
        bytes
    }

    /// A pcapng file of one section: blocks of type and body, in little-endian order.
    fn pcapng(blocks: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let mut section = 0x1a2b_3c4d_u32.to_le_bytes().to_vec();
        section.extend([1, 0, 0, 0]);
        section.extend(u64::MAX.to_le_bytes());
        let mut bytes = Vec::new();
        for (kind, body) in std::iter::once(&(0x0a0d_0d0a, section)).chain(blocks) {
            let length = u32::try_from(12 + body.len()).unwrap().to_le_bytes();
            bytes.extend(kind.to_le_bytes());
            bytes.extend(length);
            bytes.extend(body);
            bytes.extend(length);
        }
        bytes
    }

    fn interface(link: u16, options: &[u8]) -> (u32, Vec<u8>) {
        let mut body = link.to_le_bytes().to_vec();
        body.extend([0, 0, 0, 0, 4, 0]);
        body.extend(options);
        (1, body)
    }

    fn enhanced(units: u64, data: &[u8; 4]) -> (u32, Vec<u8>) {
        let mut body = vec![0; 4];
        body.extend(u32::try_from(units >> 32).unwrap().to_le_bytes());
        body.extend(u32::try_from(units & 0xffff_ffff).unwrap().to_le_bytes());
        body.extend([4, 0, 0, 0, 4, 0, 0, 0]);
        body.extend(data);
        (6, body)
    }

    #[test]
    fn what_is_written_reads_back_with_its_precision() {
        let records = [record(1_700_000_000_123_456_789, b"one"), record(1_700_000_001_000_000_001, b"")];
        let fine = read(file(&pcap(&records, true)).path()).unwrap();
        assert_eq!(fine, Capture { records: records.to_vec(), nanoseconds: true, warning: None });
        let coarse = read(file(&pcap(&records, false)).path()).unwrap();
        assert!(!coarse.nanoseconds);
        assert_eq!(coarse.records[0].time_ns, 1_700_000_000_123_456_000);
        assert_eq!(coarse.records[1].time_ns, 1_700_000_001_000_000_000);
        assert_eq!(pcap(&records, true), pcap(&records, true));
    }

    #[test]
    fn other_links_are_refused_by_name() {
        let mut bytes = pcap(&[], false);
        bytes[20] = 113;
        let file = file(&bytes);
        let error = read(file.path()).unwrap_err().to_string();
        assert!(error.contains("113") && error.contains("LINUX_SLL"), "{error}");
        assert!(error.contains(file.path().to_str().unwrap()), "{error}");
    }

    #[test]
    fn what_is_no_capture_is_refused() {
        assert!(read(file(b"abc").path()).unwrap_err().to_string().contains("too few"));
        assert!(read(file(&[7; 64]).path()).unwrap_err().to_string().contains("magic"));
        assert!(read(Path::new("/nonexistent/x.pcap")).unwrap_err().to_string().contains("/nonexistent/x.pcap"));
    }

    #[test]
    fn a_broken_tail_keeps_what_came_before_it() {
        let records = [record(5_000, b"one"), record(6_000, b"two")];
        let mut bytes = pcap(&records, false);
        bytes.truncate(bytes.len() - 1);
        let capture = read(file(&bytes).path()).unwrap();
        assert_eq!(capture.records, [records[0].clone()]);
        assert!(capture.warning.unwrap().contains("packet 2: the file ends within it"));
    }

    #[test]
    fn a_packet_longer_than_the_snapshot_length_is_read() {
        let mut bytes = pcap(&[record(5_000, b"longer")], false);
        bytes[16..20].copy_from_slice(&[2, 0, 0, 0]);
        assert_eq!(read(file(&bytes).path()).unwrap().records[0].data, b"longer");
    }

    #[test]
    fn a_captures_own_cut_is_kept() {
        let mut bytes = pcap(&[record(5_000, b"head")], false);
        bytes[24 + 12] = 200; // length on the wire
        assert_eq!(read(file(&bytes).path()).unwrap().records[0].data, b"head");
    }

    #[test]
    fn pcapng_times_count_in_the_interfaces_units() {
        let micro = read(file(&pcapng(&[interface(1, &[]), enhanced(5_000_000, b"data")])).path()).unwrap();
        assert_eq!(micro.records, [record(5_000_000_000, b"data")]);
        assert!(!micro.nanoseconds);
        let resolution = [9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        let nano = read(file(&pcapng(&[interface(1, &resolution), enhanced(5_000_000, b"data")])).path()).unwrap();
        assert_eq!(nano.records, [record(5_000_000, b"data")]);
        assert!(nano.nanoseconds);
        let binary = [9, 0, 1, 0, 0x8a, 0, 0, 0, 0, 0, 0, 0];
        let kibi = read(file(&pcapng(&[interface(1, &binary), enhanced(1536, b"data")])).path()).unwrap();
        assert_eq!(kibi.records, [record(1_500_000_000, b"data")]);
    }

    #[test]
    fn simple_packets_lose_their_padding_and_take_the_time_before_them() {
        let simple = (3, [&[3_u8, 0, 0, 0][..], b"abc\0"].concat());
        let bytes = pcapng(&[interface(1, &[]), enhanced(7, b"data"), simple]);
        assert_eq!(read(file(&bytes).path()).unwrap().records[1], record(7_000, b"abc"));
    }

    #[test]
    fn a_pcapng_interface_that_is_not_ethernet_is_refused() {
        let bytes = pcapng(&[interface(1, &[]), interface(101, &[])]);
        assert!(matches!(read(file(&bytes).path()), Err(CaptureError::Link { link: 101, .. })));
    }

    #[test]
    fn a_packet_of_an_unknown_interface_ends_the_file() {
        let capture = read(file(&pcapng(&[enhanced(7, b"data")])).path()).unwrap();
        assert!(capture.records.is_empty());
        assert!(capture.warning.unwrap().contains("interface 0"));
    }

    #[test]
    fn seconds_beyond_the_formats_range_wrap() {
        let late = record((1 << 32) * 1_000_000_000 + 5_000_000_000, b"x");
        assert_eq!(read(file(&pcap(&[late], false)).path()).unwrap().records[0].time_ns, 5_000_000_000);
    }
}

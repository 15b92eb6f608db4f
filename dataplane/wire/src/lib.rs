//! Packet bytes: header views, what one pass over a frame finds, checksums, answers.
//!
//! # Overview
//!
//! [`parse`] reads a frame once and leaves a [`Parsed`]: offsets, the tuple in the packed form of
//! [`erhu_planes::tuple::Key4`], and the kind of treatment the packet needs. [`rewrite`] stores a translation.
//! [`icmp`], [`tcp`] and [`arp`] build the router's own answers. There is no I/O, no clock and no state.
//!
//! IPv6 goes the same way: its addresses are [`Addresses6`], read from the frame when they are needed; [`rewrite6`],
//! [`icmp6`] and [`nd`] are what [`rewrite`], [`icmp`] and [`arp`] are for IPv4.
//!
//! # Limits
//!
//! Nothing here panics, whatever the bytes: every length is checked against the buffer before it is used, and what
//! does not fit is a result that the caller must name. Structure is judged strictly, meaning is not judged: an
//! unassigned port or a TTL of 0 is for others to care about.
//!
//! # Byte order
//!
//! Header views have fields in network order and accessors that return numbers. Addresses and ports of tuples, and
//! the words that checksum arithmetic works on, are *frame words*: the frame's bytes loaded little-endian.

#![forbid(unsafe_code)]

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod header;
pub mod icmp;
pub mod icmp6;
pub mod ipv4;
pub mod ipv6;
pub mod nd;
mod parse;
pub mod rewrite;
pub mod rewrite6;
pub mod tcp;

pub use ipv4::is_unforwardable_v4;
pub use ipv6::{Addresses6, is_unforwardable_v6};
pub use parse::{Kind, Odd, Parsed, VLAN_STACKED, Verify, parse, parse_common, parse_common6, parse_into};

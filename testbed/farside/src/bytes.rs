//! The bytes of a packet as a slice, which capsule gives as a pointer.

#![allow(unsafe_code)]

use capsule::Mbuf;

/// The packet's first segment, all there is of packets no larger than a buffer.
pub fn of(mbuf: &Mbuf) -> &[u8] {
    match mbuf.read_data_slice::<u8>(0, mbuf.data_len()) {
        // SAFETY: the pointer covers `data_len` bytes of a buffer the packet owns, and both are borrowed
        // for as long as the slice lives.
        Ok(bytes) => unsafe { &*bytes.as_ptr() },
        Err(_) => &[], // An empty packet.
    }
}

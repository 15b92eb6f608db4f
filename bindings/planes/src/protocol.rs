//! The control protocol: requests to the dataplane's main thread over the instance's Unix socket.
//!
//! Each message is one JSON text behind a little-endian `u32` length; a rule program travels as a sealed memfd
//! with the request that names it. The socket's permissions and the peer's credentials decide who may ask; a client
//! that runs as another user than the dataplane or root may only read.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// Largest message without its memfd, bytes.
pub const MAX_MESSAGE: usize = 16 << 20;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Request {
    /// Who are you.
    Status,
    /// Adopt the program in the memfd that comes with this. Answered once every worker runs it.
    Adopt,
    /// The running program, as bytes of its encoding, in a memfd.
    Program,
    /// End these connections if they still are the ones named.
    Delete {
        /// `(line, id)`.
        connections: Vec<(u32, u64)>,
    },
    /// Take these numbers off the counters of connections that still are the ones named, so that what a reader printed
    /// counts from there.
    Discount {
        /// What was read.
        connections: Vec<Counted>,
    },
    /// End every connection, or those with either tuple in a zone (0: both tuples in `main`).
    Flush {
        /// Zone id.
        zone: Option<u16>,
    },
    /// Neighbours known and waited for.
    Neighbours,
    /// Use of pools.
    Pools,
    /// Event kinds ([`crate::events::mask`]) to write from now on.
    WantEvents {
        /// Bits.
        kinds: u32,
    },
    /// Clean end.
    Shutdown,
}

impl Request {
    /// Whether it changes anything, and so needs the right to.
    pub const fn is_write(&self) -> bool {
        !matches!(self, Self::Status | Self::Program | Self::Neighbours | Self::Pools)
    }
}

/// Counters of a connection as a reader found them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// First line.
    pub line: u32,
    /// Id.
    pub id: u64,
    /// Packets and bytes, original then reply.
    pub counters: [u64; 4],
}

/// What the dataplane answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Adopt`]: every worker runs this generation.
    Adopted {
        /// The new generation.
        generation: u32,
    },
    /// To [`Request::Program`]; the memfd comes with it. Generation 0: none runs and no memfd comes.
    Program {
        /// The running generation.
        generation: u32,
    },
    /// To [`Request::Delete`], [`Request::Flush`] and [`Request::Discount`].
    Ended {
        /// Connections that this request ended, or whose counters it changed.
        connections: u64,
    },
    /// To [`Request::Neighbours`].
    Neighbours {
        /// All, in the order of interface and address.
        neighbours: Vec<NeighbourStatus>,
    },
    /// To [`Request::Pools`].
    Pools {
        /// In the program's order.
        pools: Vec<PoolStatus>,
    },
    /// Done, nothing to say.
    Done,
    /// Refused; nothing was changed.
    Refused {
        /// Why.
        reason: String,
    },
}

/// The dataplane's state.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Instance name.
    pub instance: String,
    /// Random number of this dataplane process.
    pub instance_id: u64,
    /// Process id.
    pub pid: u32,
    /// Running generation; 0: none yet.
    pub generation: u32,
    /// Ports.
    pub ports: Vec<PortStatus>,
    /// CPU of each worker.
    pub workers: Vec<u32>,
    /// Connections that may live at once.
    pub capacity: u32,
}

/// A port's facts.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PortStatus {
    /// Name in the configuration.
    pub name: String,
    /// PCI address or vdev.
    pub device: String,
    /// MAC address.
    pub mac: [u8; 6],
    /// Whether the link is up.
    pub link: bool,
    /// Mbit/s, 0 if unknown.
    pub speed: u32,
    /// Receive queues.
    pub queues: u16,
    /// How packets are spread over queues.
    pub rss: String,
}

/// A neighbour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighbourStatus {
    /// Interface name.
    pub interface: String,
    /// IP address.
    pub address: IpAddr,
    /// MAC address; `None` while it is asked for.
    pub mac: Option<[u8; 6]>,
    /// Declared in the script.
    pub is_static: bool,
    /// Packets that wait for it.
    pub waiting: u32,
    /// Seconds since it was last confirmed.
    pub age: u64,
}

/// How full a pool is.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Name.
    pub name: String,
    /// Addresses.
    pub addresses: u64,
    /// Inside hosts that have an address.
    pub hosts: u64,
    /// Mappings or connections by protocol number.
    pub ports_in_use: Vec<(u8, u64)>,
    /// Ports given since start.
    pub given: u64,
    /// Ports returned since start.
    pub returned: u64,
    /// Times that no port was free.
    pub exhausted: u64,
}

/// One end of a control connection.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
}

impl Channel {
    /// Connects to a dataplane's socket.
    ///
    /// # Errors
    /// The system's.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self { stream: UnixStream::connect(path)? })
    }

    /// Takes an accepted stream.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// The stream, for time limits and polling.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The user id of the process at the other end.
    ///
    /// # Errors
    /// The system's.
    pub fn peer_uid(&self) -> io::Result<u32> {
        Ok(rustix::net::sockopt::socket_peercred(&self.stream)?.uid.as_raw())
    }

    /// Sends a message, with a file where there is one.
    ///
    /// # Errors
    /// The system's, or [`io::ErrorKind::InvalidInput`] for a message that is too large.
    pub fn send<T: Serialize>(&mut self, message: &T, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let body = serde_json::to_vec(message)?;
        if body.len() > MAX_MESSAGE {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is too large"));
        }
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
        if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(io::Error::other("no room for the file"));
        }
        let sent = sendmsg(self.stream.as_fd(), &[IoSlice::new(&length)], &mut ancillary, SendFlags::NOSIGNAL)?;
        self.stream.write_all(&length[sent..])?;
        self.stream.write_all(&body)
    }

    /// Receives a message, with the file that came with it. `None` at the orderly end.
    ///
    /// # Errors
    /// The system's, or [`io::ErrorKind::InvalidData`] for what is no message.
    pub fn receive<T: for<'de> Deserialize<'de>>(&mut self) -> io::Result<Option<(T, Option<OwnedFd>)>> {
        let mut length = [0; 4];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut length)];
        let got = recvmsg(self.stream.as_fd(), &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
        let mut file = None;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                file = files.last();
            }
        }
        if got == 0 {
            return Ok(None);
        }
        self.stream.read_exact(&mut length[got..])?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_MESSAGE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too large"));
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Some((serde_json::from_slice(&body)?, file)))
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// As [`Channel::send`] and [`Channel::receive`]; [`io::ErrorKind::UnexpectedEof`] if the dataplane hangs up.
    pub fn ask(
        &mut self,
        request: &Request,
        file: Option<BorrowedFd<'_>>,
    ) -> io::Result<(Response, Option<OwnedFd>)> {
        self.send(request, file)?;
        self.receive()?.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the dataplane hung up"))
    }
}

/// Puts bytes into a memfd that can be neither changed nor shrunk any more.
///
/// # Errors
/// The system's.
pub fn sealed(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    Ok(file.into())
}

/// Copies what is in a sealed memfd; at most `most` bytes.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if it is not sealed against shrinking and writing or is too large; the system's.
pub fn read_sealed(file: OwnedFd, most: usize) -> io::Result<Vec<u8>> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let seals = fcntl_get_seals(&file).map_err(|_| invalid("the file is no memfd that can be sealed"))?;
    if !seals.contains(SealFlags::SHRINK | SealFlags::WRITE) {
        return Err(invalid("the memfd is not sealed against shrinking and writing"));
    }
    let file = std::fs::File::from(file);
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if size > most {
        return Err(invalid("the memfd is too large"));
    }
    let mut bytes = vec![0; size];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_their_files_arrive_whole() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut client, mut server) = (Channel::new(a), Channel::new(b));
        let program = sealed("program", b"hello").unwrap();
        client.send(&Request::Adopt, Some(program.as_fd())).unwrap();
        let (request, file) = server.receive::<Request>().unwrap().unwrap();
        assert_eq!(request, Request::Adopt);
        assert_eq!(read_sealed(file.unwrap(), 100).unwrap(), b"hello");
        server.send(&Response::Adopted { generation: 3 }, None).unwrap();
        let (response, file) = client.receive::<Response>().unwrap().unwrap();
        assert_eq!(response, Response::Adopted { generation: 3 });
        assert!(file.is_none());
        drop(client);
        assert!(server.receive::<Request>().unwrap().is_none());
    }

    #[test]
    fn a_file_that_could_still_change_is_refused() {
        let fd = memfd_create("open", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(read_sealed(fd, 100).unwrap_err().to_string().contains("not sealed"));
        let big = sealed("big", &[0; 101]).unwrap();
        assert!(read_sealed(big, 100).unwrap_err().to_string().contains("too large"));
    }
}

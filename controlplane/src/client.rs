//! The way to a dataplane: what commands need from one, and the client that speaks over its socket.
//!
//! Commands are written against [`Dataplane`], so that they run unchanged against a live process and inside a
//! replay.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use erhu_planes::connections::{self, ConnectionsRegion};
use erhu_planes::events::{self, EventsRegion};
use erhu_planes::instance::{InstanceDir, runtime_root, state_root};
use erhu_planes::program::{MAX_BYTES, Program, ProgramError};
use erhu_planes::protocol::{Channel, Request, Response, Status, read_sealed, sealed};
use erhu_planes::region::{Region, RegionError};
use erhu_planes::stats::{self, StatsRegion};

/// How long a client waits for an answer. Adoption waits for every worker, which takes one burst.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What a command needs from a dataplane.
pub trait Dataplane {
    /// Asks one thing. `file` are the bytes of a program that goes with the request; bytes that come back with the
    /// answer are returned beside it. [`Response::Refused`] is an answer, not an error.
    ///
    /// # Errors
    /// If no answer comes; whether the request was carried out is then unknown.
    fn ask(&mut self, request: &Request, file: Option<&[u8]>) -> Result<(Response, Option<Vec<u8>>), AskError>;

    /// The connection slab, attached read-only.
    ///
    /// # Errors
    /// If it cannot be attached or is of another layout.
    fn connections(&self) -> Result<ConnectionsRegion, RegionError>;

    /// The counters, attached read-only.
    ///
    /// # Errors
    /// As for [`Dataplane::connections`].
    fn stats(&self) -> Result<StatsRegion, RegionError>;

    /// The event rings, attached read-only.
    ///
    /// # Errors
    /// As for [`Dataplane::connections`].
    fn events(&self) -> Result<EventsRegion, RegionError>;

    /// The folder that keeps the history of rule sets; `None` where none is kept.
    fn history(&self) -> Option<&Path>;
}

/// Why a request has no useful answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The connection broke or timed out.
    #[error("the dataplane does not answer: {0}")]
    Io(#[from] io::Error),
    /// The dataplane said no; nothing was changed.
    #[error("the dataplane refuses: {0}")]
    Refused(String),
    /// The answer belongs to another question.
    #[error("the dataplane gave an answer that does not belong to the question: {0}")]
    Unexpected(String),
    /// What it calls its running program cannot be read.
    #[error("the dataplane's running program: {0}")]
    Program(#[from] ProgramError),
}

/// Asks, and turns a refusal into an error.
///
/// # Errors
/// As [`Dataplane::ask`], and [`AskError::Refused`].
pub fn demand(
    dataplane: &mut dyn Dataplane,
    request: &Request,
    file: Option<&[u8]>,
) -> Result<(Response, Option<Vec<u8>>), AskError> {
    match dataplane.ask(request, file)? {
        (Response::Refused { reason }, _) => Err(AskError::Refused(reason)),
        answer => Ok(answer),
    }
}

/// An answer of the wrong kind, as an error.
pub(crate) fn unexpected(answer: &Response) -> AskError {
    AskError::Unexpected(format!("{answer:?}"))
}

/// The dataplane's state.
///
/// # Errors
/// As [`demand`].
pub fn status(dataplane: &mut dyn Dataplane) -> Result<Status, AskError> {
    match demand(dataplane, &Request::Status, None)?.0 {
        Response::Status(status) => Ok(status),
        other => Err(unexpected(&other)),
    }
}

/// A rule set as the dataplane runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its generation.
    pub generation: u32,
    /// Its encoding.
    pub bytes: Vec<u8>,
}

impl Running {
    /// The program in the bytes.
    ///
    /// # Errors
    /// If they do not decode, or not to a valid program.
    pub fn program(&self) -> Result<Program, ProgramError> {
        Program::decode(&self.bytes)
    }
}

/// The running rule set; `None` while there is none.
///
/// # Errors
/// As [`demand`].
pub fn running(dataplane: &mut dyn Dataplane) -> Result<Option<Running>, AskError> {
    match demand(dataplane, &Request::Program, None)? {
        (Response::Program { generation: 0 }, _) => Ok(None),
        (Response::Program { generation }, Some(bytes)) => Ok(Some(Running { generation, bytes })),
        (other, _) => Err(unexpected(&other)),
    }
}

/// The running program, or the empty one while there is none.
///
/// # Errors
/// As [`running`], and if it does not decode.
pub fn running_program(dataplane: &mut dyn Dataplane) -> Result<Program, AskError> {
    Ok(match running(dataplane)? {
        Some(running) => running.program()?,
        None => Program::empty(),
    })
}

/// A connection to a live dataplane.
#[derive(Debug)]
pub struct Client {
    channel: Channel,
    files: InstanceDir,
    state: PathBuf,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No instance was named and none runs.
    #[error("no dataplane is running (none has a socket below {})", folder.display())]
    NoneRunning {
        /// Where instances have their folders.
        folder: PathBuf,
    },
    /// No instance was named and several run.
    #[error("several instances are running ({}); choose one with --instance", .0.join(", "))]
    Several(Vec<String>),
    /// The named instance has no socket.
    #[error("instance {name} is not running{}", others(.running))]
    NotRunning {
        /// As asked for.
        name: String,
        /// Those that have a socket.
        running: Vec<String>,
    },
    /// There is a socket, but nobody behind it, or it is not for this user.
    #[error("instance {name} does not answer: {source}")]
    NoAnswer {
        /// Instance.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
}

fn others(running: &[String]) -> String {
    if running.is_empty() { String::new() } else { format!(" (running: {})", running.join(", ")) }
}

impl Client {
    /// Connects to the named instance, or to the only one that runs.
    ///
    /// # Errors
    /// [`ClientError`], saying which instances there are.
    pub fn connect(instance: Option<&str>) -> Result<Self, ClientError> {
        let running = InstanceDir::running();
        if let Some(name) = instance {
            if !running.iter().any(|r| r == name) {
                return Err(ClientError::NotRunning { name: name.to_owned(), running });
            }
            return Self::open(name);
        }
        match running.as_slice() {
            [] => Err(ClientError::NoneRunning { folder: runtime_root() }),
            [only] => Self::open(only),
            several => {
                // Sockets of processes that were killed stay behind; whoever answers runs.
                let mut answering: Vec<Self> = several.iter().filter_map(|name| Self::open(name).ok()).collect();
                match (answering.len(), answering.pop()) {
                    (1, Some(client)) => Ok(client),
                    (0, _) => Err(ClientError::NoneRunning { folder: runtime_root() }),
                    _ => Err(ClientError::Several(running)),
                }
            }
        }
    }

    fn open(name: &str) -> Result<Self, ClientError> {
        Self::at(InstanceDir::named(name), state_root().join(name))
            .map_err(|source| ClientError::NoAnswer { name: name.to_owned(), source })
    }

    /// Connects to the dataplane whose files are in `files`; its history is kept in `state`.
    ///
    /// # Errors
    /// The system's.
    pub fn at(files: InstanceDir, state: PathBuf) -> io::Result<Self> {
        let channel = Channel::connect(&files.socket())?;
        channel.stream().set_read_timeout(Some(ANSWER_TIMEOUT))?;
        channel.stream().set_write_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self { channel, files, state })
    }

    /// The instance's name.
    pub fn instance(&self) -> String {
        self.files.name()
    }
}

impl Dataplane for Client {
    fn ask(&mut self, request: &Request, file: Option<&[u8]>) -> Result<(Response, Option<Vec<u8>>), AskError> {
        let file = file.map(|bytes| sealed("erhu-program", bytes)).transpose()?;
        let (response, file) = self.channel.ask(request, file.as_ref().map(AsFd::as_fd))?;
        let bytes = file.map(|file| read_sealed(file, MAX_BYTES)).transpose()?;
        Ok((response, bytes))
    }

    fn connections(&self) -> Result<ConnectionsRegion, RegionError> {
        ConnectionsRegion::attached(Region::attach(&self.files.connections(), &connections::EXPECT)?)
    }

    fn stats(&self) -> Result<StatsRegion, RegionError> {
        StatsRegion::attached(Region::attach(&self.files.stats(), &stats::EXPECT)?)
    }

    fn events(&self) -> Result<EventsRegion, RegionError> {
        EventsRegion::attached(Region::attach(&self.files.events(), &events::EXPECT)?)
    }

    fn history(&self) -> Option<&Path> {
        Some(&self.state)
    }
}

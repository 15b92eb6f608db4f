//! The control socket: a thread per client reads requests, the main thread answers them.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use erhu_planes::program::MAX_BYTES;
use erhu_planes::protocol::{Channel, Request, Response, read_sealed, sealed};
use tracing::{debug, warn};

/// Clients at once.
const CLIENTS: usize = 32;
/// … of whom so many may be such as may only read: they cannot lock the others out.
const READERS: usize = 16;
/// How long a client may take to read its answer.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// A request on its way to the main thread.
pub struct Asked {
    /// What is asked.
    pub request: Request,
    /// Bytes of the program that came along.
    pub bytes: Option<Vec<u8>>,
    /// Where the answer goes, with bytes to send along.
    pub answer: Sender<(Response, Option<Vec<u8>>)>,
}

/// Listens on the socket and sends what clients ask to `requests`, for ever.
///
/// # Errors
/// If the socket cannot be made.
pub fn listen(path: &Path, requests: Sender<Asked>) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Anyone may ask; what they may ask is decided by their credentials.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    let (all, readers) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    std::thread::Builder::new().name("control".into()).spawn(move || {
        for stream in listener.incoming() {
            let channel = match stream {
                Ok(stream) => Channel::new(stream),
                Err(e) => {
                    warn!("control socket: {e}");
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            let may_write = channel.peer_uid().is_ok_and(may_write);
            let seats =
                [Seat::take(&all, CLIENTS), Seat::take(&readers, if may_write { usize::MAX } else { READERS })];
            if seats.iter().any(Option::is_none) {
                warn!("control socket: too many clients at once, one was turned away");
                continue;
            }
            // Writers leave the readers' account alone.
            let [seat, reader] = seats;
            let reader = if may_write { None } else { reader };
            let requests = requests.clone();
            let serve = move || {
                let _seats = (seat, reader);
                if let Err(e) = client(channel, &requests) {
                    debug!("control client: {e}");
                }
            };
            if let Err(e) = std::thread::Builder::new().name("client".into()).spawn(serve) {
                warn!("control client: {e}");
            }
        }
    })?;
    Ok(())
}

/// One of a number of places, given back on drop.
struct Seat(Arc<AtomicUsize>);

impl Seat {
    fn take(taken: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let seat = Self(taken.clone());
        // The seat exists, and gives itself back, even if it is one too many.
        (taken.fetch_add(1, Ordering::Relaxed) < most).then_some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a user may change this instance: its owner and root may.
fn may_write(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::getuid().as_raw()
}

fn client(mut channel: Channel, requests: &Sender<Asked>) -> io::Result<()> {
    channel.stream().set_write_timeout(Some(SEND_TIMEOUT))?;
    let peer = channel.peer_uid()?;
    let may_write = may_write(peer);
    while let Some((request, file)) = channel.receive::<Request>()? {
        let (response, bytes) = if request.is_write() && !may_write {
            let reason = format!("user {peer} may not change this instance; its owner and root may");
            (Response::Refused { reason }, None)
        } else {
            match file.map(|f| read_sealed(f, MAX_BYTES)).transpose() {
                Ok(bytes) => ask(requests, request, bytes)?,
                Err(e) => (Response::Refused { reason: e.to_string() }, None),
            }
        };
        let file = bytes.map(|b| sealed("program", &b)).transpose()?;
        channel.send(&response, file.as_ref().map(std::os::fd::AsFd::as_fd))?;
    }
    Ok(())
}

fn ask(
    requests: &Sender<Asked>,
    request: Request,
    bytes: Option<Vec<u8>>,
) -> io::Result<(Response, Option<Vec<u8>>)> {
    let (answer, answered) = channel();
    let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the dataplane is stopping");
    requests.send(Asked { request, bytes, answer }).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())
}

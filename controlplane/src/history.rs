//! The history of an instance's rule sets, in its state folder.
//!
//! # Overview
//!
//! ```text
//! STATE/lock                     held by whoever publishes
//! STATE/history/life             which dataplane process the generations below belong to
//! STATE/history/N.program        what generation N runs; it exists, whole, or it does not
//! STATE/history/N.rhai           the script it came from
//! STATE/history/pending.*        what is being published; its generation is not known yet
//! STATE/before/                  the history of the dataplane process before this one
//! ```
//!
//! # Life-cycle
//!
//! [`History::prepare`] writes what will be published, the dataplane adopts it, [`History::commit`] gives it its
//! generation. Every file is written under another name, synchronised, and renamed. Whoever is killed in between
//! leaves a pending program; [`History::recover`] compares it with what runs and keeps or drops it. A dataplane
//! that starts anew counts generations from 1 again: the history so far is put aside as a whole.
//!
//! # Limits
//!
//! The last [`KEPT`] generations of a dataplane process.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use erhu_planes::protocol::{Request, Response};
use rustix::fs::{FlockOperation, flock};

use crate::client::{AskError, Dataplane, Running, demand, running, status, unexpected};

/// Generations that are kept.
pub const KEPT: usize = 32;
/// How long to wait for another command that publishes.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

const PENDING: &str = "pending";

/// The history of one instance, locked against other publishers while it is open.
#[derive(Debug)]
pub struct History {
    state: PathBuf,
    _lock: File,
}

/// What one generation was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Encoded program.
    pub program: Vec<u8>,
    /// The script's text, where it is known.
    pub script: Option<String>,
}

/// Why the history cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The system refused.
    #[error("history: {}: {action}: {source}", path.display())]
    System {
        /// File or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Another command holds the lock.
    #[error("another apply or rollback is at work on this instance")]
    Busy,
    /// That generation is not kept.
    #[error("generation {wanted} is not kept{}", kept(.generations))]
    NotKept {
        /// Asked for.
        wanted: u32,
        /// What is there.
        generations: Vec<u32>,
    },
    /// There is nothing before the running generation.
    #[error("no earlier generation is kept")]
    NothingEarlier,
    /// Where nothing is kept.
    #[error("this dataplane keeps no history")]
    None,
}

fn kept(generations: &[u32]) -> String {
    if generations.is_empty() {
        return " (none is)".into();
    }
    format!("; kept: {}", generations.iter().map(u32::to_string).collect::<Vec<_>>().join(", "))
}

fn system(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> HistoryError {
    move |source| HistoryError::System { path: path.to_owned(), action, source }
}

impl History {
    /// Opens the history in a state folder (made if it is not there) for the dataplane process `life`
    /// ([`Status::instance_id`](erhu_planes::protocol::Status)). Waits a while for another publisher.
    ///
    /// # Errors
    /// [`HistoryError::Busy`], or the system's refusal.
    pub fn open(state: &Path, life: u64) -> Result<Self, HistoryError> {
        fs::create_dir_all(state).map_err(system(state, "create"))?;
        let path = state.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(system(&path, "open"))?;
        let start = Instant::now();
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if start.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(HistoryError::Busy),
                Err(e) => return Err(system(&path, "lock")(e.into())),
            }
        }
        let this = Self { state: state.to_owned(), _lock: lock };
        this.begin_life(life)?;
        Ok(this)
    }

    /// Puts the history of another dataplane process aside.
    fn begin_life(&self, life: u64) -> Result<(), HistoryError> {
        let (folder, before) = (self.folder(), self.state.join("before"));
        let name = format!("{life:016x}");
        match fs::read_to_string(folder.join("life")) {
            Ok(found) if found == name => return Ok(()),
            Ok(_) if self.generations().is_empty() => {}
            Ok(_) => {
                match fs::remove_dir_all(&before) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(system(&before, "remove")(e)),
                    _ => {}
                }
                fs::rename(&folder, &before).map_err(system(&folder, "put aside"))?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(system(&folder, "read")(e)),
        }
        fs::create_dir_all(&folder).map_err(system(&folder, "create"))?;
        self.write("life", name.as_bytes())
    }

    fn folder(&self) -> PathBuf {
        self.state.join("history")
    }

    fn file(&self, name: &str, kind: &str) -> PathBuf {
        self.folder().join(format!("{name}.{kind}"))
    }

    /// Writes a file so that it is there whole or not at all.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), HistoryError> {
        let path = self.folder().join(name);
        let temporary = self.folder().join(format!("{name}.tmp"));
        let mut file = File::create(&temporary).map_err(system(&temporary, "create"))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(system(&temporary, "write"))?;
        fs::rename(&temporary, &path).map_err(system(&path, "rename to"))?;
        self.sync()
    }

    /// Makes renames last.
    fn sync(&self) -> Result<(), HistoryError> {
        let folder = self.folder();
        File::open(&folder).and_then(|f| f.sync_all()).map_err(system(&folder, "synchronise"))
    }

    fn remove(&self, name: &str, kind: &str) -> Result<(), HistoryError> {
        let path = self.file(name, kind);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(system(&path, "remove")(e)),
            _ => Ok(()),
        }
    }

    /// Writes what is about to be published.
    ///
    /// # Errors
    /// The system's refusal; then nothing should be published.
    pub fn prepare(&self, what: &Stored) -> Result<(), HistoryError> {
        self.discard()?;
        if let Some(script) = &what.script {
            self.write(&format!("{PENDING}.rhai"), script.as_bytes())?;
        }
        self.write(&format!("{PENDING}.program"), &what.program)
    }

    /// Gives what was prepared the generation that the dataplane gave it, and forgets the oldest.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn commit(&self, generation: u32) -> Result<(), HistoryError> {
        let name = generation.to_string();
        // The script first: a generation exists from its program on.
        for kind in ["rhai", "program"] {
            let (from, to) = (self.file(PENDING, kind), self.file(&name, kind));
            match fs::rename(&from, &to) {
                Err(e) if e.kind() != io::ErrorKind::NotFound || kind == "program" => {
                    return Err(system(&to, "rename to")(e));
                }
                _ => {}
            }
        }
        self.sync()?;
        let generations = self.generations();
        for old in &generations[..generations.len().saturating_sub(KEPT)] {
            self.remove(&old.to_string(), "program")?;
            self.remove(&old.to_string(), "rhai")?;
        }
        Ok(())
    }

    /// Forgets what was prepared.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn discard(&self) -> Result<(), HistoryError> {
        self.remove(PENDING, "program")?;
        self.remove(PENDING, "rhai")
    }

    /// Brings the history in line with what runs, after a publisher was killed or something else published.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn recover(&self, now: &Running) -> Result<(), HistoryError> {
        if !self.generations().contains(&now.generation) {
            if fs::read(self.file(PENDING, "program")).is_ok_and(|bytes| bytes == now.bytes) {
                return self.commit(now.generation);
            }
            self.prepare(&Stored { program: now.bytes.clone(), script: None })?;
            return self.commit(now.generation);
        }
        self.discard()
    }

    /// Kept generations of this dataplane process, ascending.
    pub fn generations(&self) -> Vec<u32> {
        generations(&self.folder())
    }

    /// What a kept generation was.
    ///
    /// # Errors
    /// [`HistoryError::NotKept`], or the system's refusal.
    pub fn load(&self, generation: u32) -> Result<Stored, HistoryError> {
        match read(&self.folder(), generation)? {
            Some(stored) => Ok(stored),
            None => Err(HistoryError::NotKept { wanted: generation, generations: self.generations() }),
        }
    }

    /// The latest kept generation before one.
    pub fn before(&self, generation: u32) -> Option<u32> {
        self.generations().into_iter().rfind(|g| *g < generation)
    }

    /// What ran last: the newest of this dataplane process, else the newest of the one before.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn last(&self) -> Result<Option<Stored>, HistoryError> {
        for folder in [self.folder(), self.state.join("before")] {
            if let Some(newest) = generations(&folder).last() {
                return read(&folder, *newest);
            }
        }
        Ok(None)
    }
}

fn generations(folder: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".program")?.parse().ok())
        .collect();
    found.sort_unstable();
    found
}

fn read(folder: &Path, generation: u32) -> Result<Option<Stored>, HistoryError> {
    let path = folder.join(format!("{generation}.program"));
    let program = match fs::read(&path) {
        Ok(program) => program,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(system(&path, "read")(e)),
    };
    let script = fs::read_to_string(folder.join(format!("{generation}.rhai"))).ok();
    Ok(Some(Stored { program, script }))
}

/// Why a rule set was not published. Unless the dataplane did not answer, what ran before still runs.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The dataplane refused or did not answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The history cannot be kept.
    #[error(transparent)]
    History(#[from] HistoryError),
}

/// Opens a dataplane's history and brings it in line with what runs; `None` where none is kept.
///
/// # Errors
/// If the dataplane does not answer or the history cannot be opened.
pub fn open(dataplane: &mut dyn Dataplane) -> Result<Option<History>, PublishError> {
    let Some(state) = dataplane.history().map(Path::to_owned) else { return Ok(None) };
    let history = History::open(&state, status(dataplane)?.instance_id)?;
    if let Some(now) = running(dataplane)? {
        history.recover(&now)?;
    }
    Ok(Some(history))
}

/// Publishes a rule set, waits until every worker has it, keeps it in the history, and returns its generation.
///
/// # Errors
/// [`PublishError`].
pub fn publish(dataplane: &mut dyn Dataplane, history: Option<&History>, what: &Stored) -> Result<u32, PublishError> {
    if let Some(history) = history {
        history.prepare(what)?;
    }
    match demand(dataplane, &Request::Adopt, Some(&what.program)) {
        Ok((Response::Adopted { generation }, _)) => {
            if let Some(history) = history {
                history.commit(generation)?;
            }
            Ok(generation)
        }
        Ok((other, _)) => Err(unexpected(&other).into()),
        Err(refused @ AskError::Refused(_)) => {
            if let Some(history) = history {
                history.discard()?;
            }
            Err(refused.into())
        }
        // Adopted or not, nobody knows; `recover` will.
        Err(unknown) => Err(unknown.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(text: &str) -> Stored {
        Stored { program: text.as_bytes().to_vec(), script: Some(format!("// {text}")) }
    }

    fn put(history: &History, generation: u32, text: &str) {
        history.prepare(&stored(text)).unwrap();
        history.commit(generation).unwrap();
    }

    fn now(generation: u32, text: &str) -> Running {
        Running { generation, bytes: text.as_bytes().to_vec() }
    }

    #[test]
    fn the_last_generations_are_kept_and_the_oldest_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path(), 1).unwrap();
        for generation in 1..=40 {
            put(&history, generation, &format!("g{generation}"));
        }
        assert_eq!(history.generations(), (9..=40).collect::<Vec<_>>());
        assert_eq!(history.load(9).unwrap(), stored("g9"));
        assert_eq!(history.before(40), Some(39));
        assert_eq!(history.before(9), None);
        assert!(history.load(8).unwrap_err().to_string().starts_with("generation 8 is not kept; kept: 9, 10"));
        let files = fs::read_dir(folder.path().join("history")).unwrap().count();
        assert_eq!(files, 2 * KEPT + 1);
    }

    #[test]
    fn a_publisher_killed_before_it_learnt_the_generation_is_made_good_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path(), 1).unwrap();
        put(&history, 1, "one");
        history.prepare(&stored("two")).unwrap();
        drop(history);
        let history = History::open(folder.path(), 1).unwrap();
        history.recover(&now(2, "two")).unwrap();
        assert_eq!(history.load(2).unwrap(), stored("two"));
    }

    #[test]
    fn a_publisher_killed_between_the_two_renames_is_made_good_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path(), 1).unwrap();
        history.prepare(&stored("one")).unwrap();
        fs::rename(history.file(PENDING, "rhai"), history.file("1", "rhai")).unwrap();
        assert!(history.generations().is_empty());
        history.recover(&now(1, "one")).unwrap();
        assert_eq!(history.load(1).unwrap(), stored("one"));
    }

    #[test]
    fn what_was_prepared_and_never_adopted_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path(), 1).unwrap();
        put(&history, 1, "one");
        history.prepare(&stored("two")).unwrap();
        history.recover(&now(1, "one")).unwrap();
        assert_eq!(history.generations(), [1]);
        assert!(!history.file(PENDING, "program").exists());
    }

    #[test]
    fn a_generation_published_by_somebody_else_is_kept_without_its_script() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path(), 1).unwrap();
        history.recover(&now(5, "five")).unwrap();
        assert_eq!(history.load(5).unwrap(), Stored { program: b"five".to_vec(), script: None });
    }

    #[test]
    fn a_new_dataplane_process_begins_a_new_history_and_the_last_rule_set_is_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path(), 1).unwrap();
        put(&history, 1, "one");
        put(&history, 2, "two");
        drop(history);
        let history = History::open(folder.path(), 2).unwrap();
        assert!(history.generations().is_empty());
        assert_eq!(history.last().unwrap(), Some(stored("two")));
        put(&history, 1, "again");
        drop(history);
        let history = History::open(folder.path(), 2).unwrap();
        assert_eq!(history.last().unwrap(), Some(stored("again")));
    }

    #[test]
    fn a_process_that_published_nothing_does_not_push_the_last_rule_set_out() {
        let folder = tempfile::tempdir().unwrap();
        put(&History::open(folder.path(), 1).unwrap(), 1, "one");
        for life in 2..5 {
            assert_eq!(History::open(folder.path(), life).unwrap().last().unwrap(), Some(stored("one")));
        }
    }

    #[test]
    fn two_publishers_wait_for_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let first = History::open(folder.path(), 1).unwrap();
        let path = folder.path().to_owned();
        let second = std::thread::spawn(move || History::open(&path, 1).map(|h| h.generations()));
        std::thread::sleep(Duration::from_millis(60));
        put(&first, 1, "one");
        drop(first);
        assert_eq!(second.join().unwrap().unwrap(), [1]);
    }
}

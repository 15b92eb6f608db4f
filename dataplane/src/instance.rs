//! The instance's folder: one running dataplane per name.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;

use erhu_planes::connections::{ConnectionsRegion, SlabLayout};
use erhu_planes::events::EventsRegion;
use erhu_planes::instance::InstanceDir;
use erhu_planes::region::{Region, RegionError};
use erhu_planes::sizing::EVENTS;
use erhu_planes::stats::StatsRegion;
use rustix::fs::{FlockOperation, flock};

/// Regions may be read by the group that may watch.
const MODE: u32 = 0o640;

/// A folder that is ours until we end.
pub struct Instance {
    /// Where its files are.
    pub dir: InstanceDir,
    /// Random; tells this process from the one before.
    pub id: u64,
    _lock: File,
}

/// Why the folder is not ours.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// The system refuses.
    #[error("{what} {path}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: String,
        /// The answer.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("instance {name} is running already (process {pid}); choose another `instance` name or stop it first")]
    Running {
        /// Instance name.
        name: String,
        /// Its process.
        pid: String,
    },
}

impl Instance {
    /// Makes the folder and takes it.
    pub fn take(name: &str) -> Result<Self, InstanceError> {
        let dir = InstanceDir::named(name);
        let system = |what, path: &std::path::Path, source| InstanceError::System {
            what,
            path: path.display().to_string(),
            source,
        };
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o755);
        builder.create(dir.folder()).map_err(|e| system("create", dir.folder(), e))?;
        // Not plainly `lock`: the history of rule sets has one, and its folder may be the same.
        let path = dir.folder().join("dataplane.lock");
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| system("open", &path, e))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let pid = std::fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
            return Err(InstanceError::Running { name: name.into(), pid });
        }
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(|e| system("write", &path, e))?;
        let mut id = [0; 8];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| system("read random numbers for", &path, e.into()))?;
        Ok(Self { dir, id: u64::from_le_bytes(id) | 1, _lock: lock })
    }

    /// Creates the three regions.
    pub fn regions(
        &self,
        capacity: u32,
        workers: usize,
        ports: &[String],
        huge_pages: bool,
    ) -> Result<(ConnectionsRegion, StatsRegion, EventsRegion), RegionError> {
        let layout = SlabLayout::for_capacity(capacity, workers);
        let slab = Region::create(&self.dir.connections(), layout.size(), MODE)?;
        if huge_pages {
            slab.advise_huge();
        }
        let slab = ConnectionsRegion::create(slab, layout, capacity, self.id)?;
        let stats = Region::create(&self.dir.stats(), StatsRegion::size(workers), MODE)?;
        let stats = StatsRegion::create(stats, workers, ports, self.id)?;
        let events = Region::create(&self.dir.events(), EventsRegion::size(workers, EVENTS), MODE)?;
        let events = EventsRegion::create(events, workers, EVENTS, self.id)?;
        Ok((slab, stats, events))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // The counters stay to be read; what takes memory or speaks for a process goes.
        for path in [self.dir.socket(), self.dir.connections(), self.dir.events()] {
            let _ = std::fs::remove_file(path);
        }
    }
}

//! What the main thread asks of workers: ending connections, taking what was read off counters. A little per loop.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use erhu_planes::connections::{Connection, Cursor};

use crate::buffer::Buffers;
use crate::shared::{Job, JobKind};
use crate::worker::Worker;

/// Connections that a job may end in one loop: each costs about as much as a first packet does.
const ENDS: usize = 16;
/// Slab entries that a flush takes at a time: they may all have to end.
const STEP: u32 = 16;
/// Connections that it may look at in one loop.
const LOOKS: usize = 128;

/// How far a job got: the place in its list, or in the slab.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    at: usize,
    cursor: Cursor,
}

impl<P: Buffers> Worker<P> {
    /// Goes on with the job at hand, or begins the next. `true` when none is left.
    pub(crate) fn run_jobs(&mut self) -> bool {
        let next = || self.shared.jobs(self.index).pop().map(|job| (job, Progress::default()));
        if let Some((job, progress)) = self.job.take().or_else(next) {
            match self.job_step(&job, progress) {
                Some(progress) => self.job = Some((job, progress)),
                // Release; pairs with the Acquire in `Job::result`. The main thread keeps the job until we let it go.
                None => drop(job.remaining.fetch_sub(1, Ordering::Release)),
            }
        }
        self.job.is_none() && self.shared.jobs(self.index).is_empty()
    }

    /// Does a bounded part. `None`: that was the last.
    fn job_step(&mut self, job: &Arc<Job>, mut progress: Progress) -> Option<Progress> {
        let done = match &job.kind {
            JobKind::Delete(wanted) => {
                let mut ended = 0;
                for (line, id) in wanted.iter().skip(progress.at).take(LOOKS) {
                    progress.at += 1;
                    ended += usize::from(self.end_if(*line, *id, job));
                    if ended == ENDS {
                        break;
                    }
                }
                progress.at >= wanted.len()
            }
            JobKind::Discount(read) => {
                let part = read.iter().skip(progress.at).take(LOOKS);
                progress.at += part.len();
                let discounted = part.filter(|counted| self.discount(counted)).count();
                job.ended.fetch_add(discounted as u64, Ordering::Relaxed);
                progress.at >= read.len()
            }
            JobKind::Flush(zone) => match self.flush_step(*zone, job, progress.cursor) {
                Some(cursor) => {
                    progress.cursor = cursor;
                    false
                }
                None => true,
            },
        };
        (!done).then_some(progress)
    }

    fn flush_step(&mut self, zone: Option<u16>, job: &Job, mut cursor: Cursor) -> Option<Cursor> {
        let (mut looked, mut ended) = (0, 0);
        while looked < LOOKS && ended < ENDS {
            let (mut doomed, mut count) = ([(0, 0); STEP as usize], 0);
            let next = self.shared.table.region().walk(cursor, STEP, |connection| {
                if usize::from(connection.owner) == self.index
                    && is_in_zone(&connection, zone)
                    && let Some(place) = doomed.get_mut(count)
                {
                    *place = (connection.line, connection.id);
                    count += 1;
                }
            });
            for (line, id) in doomed.into_iter().take(count) {
                ended += usize::from(self.end_if(line, id, job));
            }
            looked += STEP as usize;
            cursor = next?;
        }
        Some(cursor)
    }

    fn end_if(&mut self, line: u32, id: u64, job: &Job) -> bool {
        let shared = self.shared();
        let Some(entry) = Self::mine(&shared.table, self.index, line, id) else { return false };
        self.end(entry, true);
        job.ended.fetch_add(1, Ordering::Relaxed);
        true
    }
}

/// Whether a flush of a zone means a connection: all of them without a zone, those wholly in `main` for zone 0.
fn is_in_zone(connection: &Connection, zone: Option<u16>) -> bool {
    let (original, reply) = (connection.original.tuple.zone, connection.reply.tuple.zone);
    match zone {
        None => true,
        Some(0) => original == 0 && reply == 0,
        Some(zone) => original == zone || reply == zone,
    }
}

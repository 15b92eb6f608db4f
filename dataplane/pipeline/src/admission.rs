//! Who may make a connection: zone limits, rates, reserves and the table's capacity, before anything is allocated.

use std::sync::atomic::{AtomicU64, Ordering};

use erhu_planes::connections::status;
use erhu_planes::stats::ZoneBlock;
use erhu_planes::{Counter, DropReason};

use erhu_table::Entry;

use crate::buffer::Buffers;
use crate::policy::ZoneFacts;
use crate::worker::Worker;

/// Connections that are looked at for one to end early.
const SAMPLE: u32 = 64;
/// Connections that one worker may have counted and not told others of.
const UNTOLD: i32 = 64;

/// What a worker has counted since it last told others: where nobody has to know at once, because no limit is near, a
/// burst's openings and endings become one locked instruction per zone.
#[derive(Debug)]
pub(crate) struct Pending {
    /// By zone id: connections with the original tuple there, and with either.
    zones: Box<[[i32; 2]]>,
    /// Zones that have any; some may be named twice.
    touched: Vec<u16>,
    /// Connections in the table.
    admitted: i32,
}

impl Default for Pending {
    fn default() -> Self {
        Self {
            zones: vec![[0; 2]; usize::from(u16::MAX) + 1].into_boxed_slice(),
            touched: Vec::with_capacity(4 * crate::BURST),
            admitted: 0,
        }
    }
}

impl Pending {
    fn add(&mut self, zone: u16, original: i32, either: i32) {
        let [of_original, of_either] = &mut self.zones[usize::from(zone)];
        if (*of_original, *of_either) == (0, 0) {
            self.touched.push(zone);
        }
        *of_original += original;
        *of_either += either;
    }

    fn original(&self, zone: u16) -> i32 {
        self.zones[usize::from(zone)][0]
    }
}

impl<P: Buffers> Worker<P> {
    /// Whether a zone's limit allows one connection more.
    pub(crate) fn below_limit(&self, zone: &ZoneFacts) -> Result<(), DropReason> {
        let live = self.shared.account(zone.id).live.load(Ordering::Relaxed);
        match zone.limit {
            Some(limit) if live >= limit => Err(DropReason::ZoneLimit),
            _ => Ok(()),
        }
    }

    /// Takes one of the zone's new connections of this second.
    pub(crate) fn take_rate(&self, zone: &ZoneFacts) -> Result<(), DropReason> {
        match zone.rate {
            Some(rate) if !self.shared.account(zone.id).rate.take(self.clock.mono_ns, rate, rate) => {
                Err(DropReason::ZoneRate)
            }
            _ => Ok(()),
        }
    }

    /// Takes a place in the table if that is far from full and nothing in it is reserved.
    #[inline]
    pub(crate) fn take_distant_place(&mut self) -> bool {
        let table = &self.shared.table;
        let untold = u64::from(UNTOLD.unsigned_abs()) * self.shared.workers() as u64;
        let is_far_from_full = u64::from(table.live()) + 2 * untold < u64::from(table.capacity());
        if is_far_from_full && !self.policy.has_reserves {
            self.pending.admitted += 1;
            if self.pending.admitted >= UNTOLD {
                self.tell_admitted();
            }
            return true;
        }
        false
    }

    /// Takes a place in the table for a connection that begins in a zone, ending an unassured one of the greediest zone
    /// if need be.
    pub(crate) fn take_place(&mut self, zone: u16) -> bool {
        if self.take_distant_place() {
            return true;
        }
        self.tell_admitted();
        if self.leaves_reserves(zone) && self.shared.table.try_admit() {
            return true;
        }
        if self.end_early(zone) {
            self.tell_admitted();
            return self.leaves_reserves(zone) && self.shared.table.try_admit();
        }
        false
    }

    /// Gives a place in the table back.
    pub(crate) fn give_place_back(&mut self) {
        self.pending.admitted -= 1;
    }

    fn tell_admitted(&mut self) {
        let admitted = std::mem::take(&mut self.pending.admitted);
        if admitted != 0 {
            self.shared.table.count_admitted(admitted);
        }
    }

    /// Tells other workers what this one has counted. After every burst.
    #[inline]
    pub(crate) fn settle_accounts(&mut self) {
        if self.pending.admitted != 0 {
            self.tell_admitted();
        }
        while let Some(zone) = self.pending.touched.pop() {
            let [original, either] = std::mem::take(&mut self.pending.zones[usize::from(zone)]);
            let account = self.shared.account(zone);
            // Wrapping: a negative number is taken off.
            if original != 0 {
                account.live_original.fetch_add(original.cast_unsigned(), Ordering::Relaxed);
            }
            if either != 0 {
                account.live.fetch_add(either.cast_unsigned(), Ordering::Relaxed);
            }
        }
    }

    /// Connections with the original tuple in a zone, this worker's latest included.
    fn live_original(&self, zone: u16) -> u32 {
        let told = self.shared.account(zone).live_original.load(Ordering::Relaxed);
        told.wrapping_add_signed(self.pending.original(zone))
    }

    /// Whether one connection more of this zone leaves other zones what is reserved for them.
    fn leaves_reserves(&self, zone: u16) -> bool {
        if !self.policy.has_reserves {
            return true;
        }
        if self.live_original(zone) < self.policy.zone(zone).reserve {
            return true;
        }
        let reserved = self.shared.reserved_free.load(Ordering::Relaxed).max(0);
        i64::from(self.shared.table.live()) + reserved < i64::from(self.shared.table.capacity())
    }

    /// Ends one unassured connection of this worker: of a bounded sample, the one whose zone is furthest above its fair
    /// share. Zones at or below their share lose none to others. `false` if there was none.
    fn end_early(&mut self, zone: u16) -> bool {
        let shared = self.shared();
        let zones = self.policy.zones().iter();
        let active = zones.filter(|z| self.live_original(z.id) > 0).count().max(1);
        let fair = shared.table.capacity() / u32::try_from(active).unwrap_or(1);
        let (mut best, mut seen): (Option<(u32, Entry<'_>)>, u32) = (None, 0);
        let from = self.rng.below(u32::from(u16::MAX));
        if let Some(wheel) = self.wheel.as_ref() {
            wheel.look_from(&shared.table, from, |entry| {
                let its_zone = entry.zone(0);
                let live = self.live_original(its_zone);
                let may_go = its_zone == zone || live > fair;
                let is_assured = entry.cold().status.load(Ordering::Relaxed) & status::ASSURED != 0;
                if may_go && !is_assured && best.is_none_or(|(most, _)| live > most) {
                    best = shared.table.entry_at(entry.line()).map(|entry| (live, entry));
                }
                seen += 1;
                seen >= SAMPLE
            });
        }
        let Some((_, entry)) = best else { return false };
        self.tally.count(Counter::EarlyDrop);
        self.end(entry, true);
        true
    }

    /// Books a connection on its zones' accounts, if both have room for it.
    pub(crate) fn book(&mut self, original: u16, reply: u16) -> Result<(), DropReason> {
        self.book_zone(original)?;
        if reply != original
            && let Err(reason) = self.book_zone(reply)
        {
            self.pending.add(original, 0, -1);
            return Err(reason);
        }
        if self.policy.has_reserves {
            let own = self.shared.account(original).live_original.fetch_add(1, Ordering::Relaxed) + 1;
            if own <= self.policy.zone(original).reserve {
                self.shared.reserved_free.fetch_sub(1, Ordering::Relaxed);
            }
        } else {
            self.pending.add(original, 1, 0);
        }
        Ok(())
    }

    fn book_zone(&mut self, zone: u16) -> Result<(), DropReason> {
        let Some(limit) = self.policy.zone(zone).limit else {
            self.pending.add(zone, 0, 1);
            return Ok(());
        };
        let live = &self.shared.account(zone).live;
        let booked = live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < limit).then_some(n + 1));
        booked.map(drop).map_err(|_| DropReason::ZoneLimit)
    }

    /// Takes a connection off its zones' accounts.
    pub(crate) fn unbook(&mut self, original: u16, reply: u16) {
        if self.policy.has_reserves {
            let own = self.shared.account(original).live_original.fetch_sub(1, Ordering::Relaxed);
            if own <= self.policy.zone(original).reserve {
                self.shared.reserved_free.fetch_add(1, Ordering::Relaxed);
            }
        } else {
            self.pending.add(original, -1, 0);
        }
        self.unbook_zone(original);
        if reply != original {
            self.unbook_zone(reply);
        }
    }

    fn unbook_zone(&mut self, zone: u16) {
        if self.policy.zone(zone).limit.is_some() {
            self.shared.account(zone).live.fetch_sub(1, Ordering::Relaxed);
        } else {
            self.pending.add(zone, 0, -1);
        }
    }

    /// Counts a connection's beginning or end in the statistics of its zones.
    pub(crate) fn count_in_zones(&self, original: u16, reply: u16, pick: impl Fn(&ZoneBlock) -> &AtomicU64) {
        let count = |zone| {
            let slot = usize::from(self.policy.zone_slot(zone));
            if let Some(block) = self.shared.stats.zone(self.index, slot) {
                erhu_planes::stats::add(pick(block), 1);
            }
        };
        count(original);
        if reply != original {
            count(reply);
        }
    }
}

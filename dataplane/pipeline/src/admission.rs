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

    /// Takes a place in the table for a connection that begins in a zone, ending an unassured one of the greediest zone
    /// if need be.
    pub(crate) fn take_place(&mut self, zone: u16) -> bool {
        if self.leaves_reserves(zone) && self.shared.table.try_admit() {
            return true;
        }
        if self.end_early(zone) && self.leaves_reserves(zone) && self.shared.table.try_admit() {
            return true;
        }
        false
    }

    /// Whether one connection more of this zone leaves other zones what is reserved for them.
    fn leaves_reserves(&self, zone: u16) -> bool {
        if !self.policy.has_reserves {
            return true;
        }
        let live = self.shared.account(zone).live_original.load(Ordering::Relaxed);
        if live < self.policy.zone(zone).reserve {
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
        let active = zones.filter(|z| shared.account(z.id).live_original.load(Ordering::Relaxed) > 0).count().max(1);
        let fair = shared.table.capacity() / u32::try_from(active).unwrap_or(1);
        let (mut best, mut seen): (Option<(u32, Entry<'_>)>, u32) = (None, 0);
        let from = self.rng.below(u32::from(u16::MAX));
        if let Some(wheel) = self.wheel.as_ref() {
            wheel.look_from(&shared.table, from, |entry| {
                let its_zone = entry.hot4(0).key_zone();
                let live = shared.account(its_zone).live_original.load(Ordering::Relaxed);
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
    pub(crate) fn book(&self, original: u16, reply: u16) -> Result<(), DropReason> {
        self.book_zone(original)?;
        if reply != original
            && let Err(reason) = self.book_zone(reply)
        {
            self.shared.account(original).live.fetch_sub(1, Ordering::Relaxed);
            return Err(reason);
        }
        let own = self.shared.account(original).live_original.fetch_add(1, Ordering::Relaxed) + 1;
        if self.policy.has_reserves && own <= self.policy.zone(original).reserve {
            self.shared.reserved_free.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn book_zone(&self, zone: u16) -> Result<(), DropReason> {
        let limit = self.policy.zone(zone).limit.unwrap_or(u32::MAX);
        let live = &self.shared.account(zone).live;
        let booked = live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < limit).then_some(n + 1));
        booked.map(drop).map_err(|_| DropReason::ZoneLimit)
    }

    /// Takes a connection off its zones' accounts.
    pub(crate) fn unbook(&self, original: u16, reply: u16) {
        let own = self.shared.account(original).live_original.fetch_sub(1, Ordering::Relaxed);
        if self.policy.has_reserves && own <= self.policy.zone(original).reserve {
            self.shared.reserved_free.fetch_add(1, Ordering::Relaxed);
        }
        self.shared.account(original).live.fetch_sub(1, Ordering::Relaxed);
        if reply != original {
            self.shared.account(reply).live.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Counts a connection's beginning or end in the statistics of its zones.
    pub(crate) fn count_in_zones(&self, original: u16, reply: u16, pick: impl Fn(&ZoneBlock) -> &AtomicU64) {
        let zones = [Some(original), (reply != original).then_some(reply)];
        for zone in zones.into_iter().flatten() {
            let slot = usize::from(self.policy.zone_slot(zone));
            if let Some(block) = self.shared.stats.zone(self.index, slot) {
                erhu_planes::stats::add(pick(block), 1);
            }
        }
    }
}

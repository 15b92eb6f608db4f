//! Which rules of a list can match a packet, without trying them all.
//!
//! # Overview
//!
//! Rules that have conditions about the same fields form a *group*. Each field's numbers are cut into *parts* at the
//! ends of all ranges that rules name; within a part no rule's answer changes. For a field of a group a table gives
//! the *set* of the group's rules that hold in each part. A packet's candidates in a group are in the intersection of
//! its sets, over the fields in the order of how much they tell: a field that leaves a handful of rules ends the
//! look-up, and as a group's rules all have a condition about each of its fields, most sets are that small. Larger
//! ones are bit sets in blocks of a cache line, intersected block by block and only as far as the walk goes. The
//! groups' candidates are merged in the order of the rules.
//!
//! Candidates are a superset of what matches; each is checked exactly before its actions run.
//!
//! # Limits
//!
//! At most [`MAX_GROUPS`] groups: further ones join those with which they share most fields, and are found by those
//! fields alone. Tables take at most some tens of bytes for each range that a rule names. Sets of a whole program take
//! at most [`MEMORY`] bytes: where ranges are nested so deeply that they would take more, the widest are not entered,
//! and their rules are found by their other fields.

use std::collections::HashMap;

use crate::checks::offset;
use crate::fields::{Conditions, Field, Keys, boundaries};
use crate::search::{Tree, Wide};

/// Lists up to this length are faster tried rule by rule.
const LINEAR: usize = 16;
/// One for each indexed field and one for rules without any: merging always gets there.
const MAX_GROUPS: usize = Field::INDEXED + 1;
/// Small groups are put together up to this many rules: trying so many is cheaper than a look-up for each group.
const REST: usize = 8;
/// Bytes of all sets of a program.
const MEMORY: u64 = 64 << 20;
/// Sets up to this size are lists.
const LISTED: usize = 8;
/// Rules of a block.
const BLOCK: usize = 512;
/// Blocks of a [`Summary`].
const SUMMARY: usize = 64;

type Block = [u64; BLOCK / 64];

/// The index of one list.
#[derive(Debug)]
pub(crate) struct Index {
    parts: [Option<Parts>; Field::INDEXED],
    groups: Vec<Group>,
    /// Of [`Set::Listed`]: the length, then rules.
    lists: Vec<u32>,
    summaries: Vec<Summary>,
    blocks: Vec<Block>,
}

/// How a field's numbers are cut. IPv6 addresses come after all IPv4 addresses.
#[derive(Debug)]
struct Parts {
    tree: Tree,
    wide: Wide,
    /// Part of the lowest IPv6 address.
    wide_base: usize,
}

/// Rules with conditions about the same fields.
#[derive(Debug)]
struct Group {
    /// In order. Bit sets and positions in a group count in these.
    rules: Vec<u32>,
    /// The most telling first.
    tables: Vec<(Field, Table)>,
    /// Summaries of each bit set.
    summaries: usize,
}

/// A group's set for each part of a field.
#[derive(Debug)]
enum Table {
    /// By part.
    All(Vec<Set>),
    /// Where the group's rules name far fewer ranges than the others: parts from which on there is another set.
    Changes { from: Vec<u32>, sets: Vec<Set> },
}

/// Entries that a table may have for each set, for the sake of a quick look-up.
const STRETCH: usize = 4;

impl Table {
    fn new(changes: Vec<(u32, Set)>, parts: usize) -> Self {
        if parts > STRETCH * (changes.len() + 16) {
            let (from, sets) = changes.into_iter().unzip();
            return Self::Changes { from, sets };
        }
        let mut all = Vec::with_capacity(parts);
        let mut before = Set::Empty;
        for (part, set) in changes {
            all.resize(part as usize, before);
            before = set;
        }
        all.resize(parts, before);
        Self::All(all)
    }

    #[inline]
    fn get(&self, part: usize) -> Set {
        let set = match self {
            Self::All(all) => all.get(part),
            Self::Changes { from, sets } => {
                let after = from.partition_point(|from| *from as usize <= part);
                after.checked_sub(1).and_then(|at| sets.get(at))
            }
        };
        set.copied().unwrap_or(Set::Empty)
    }
}

/// Some of a group's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Empty,
    One(u32),
    /// Position in [`Index::lists`].
    Listed(u32),
    /// Position in [`Index::summaries`].
    Bits(u32),
}

/// 64 blocks of a bit set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Summary {
    /// Those with bits.
    present: u64,
    /// Position in [`Index::blocks`] of the first that is stored.
    base: u32,
    /// All are stored, else only those that are present.
    full: bool,
}

impl Summary {
    /// Position in [`Index::blocks`] of a block that is present.
    #[inline]
    fn position(self, block: u32) -> usize {
        let rank = if self.full { block } else { (self.present & !(u64::MAX << block)).count_ones() };
        (self.base + rank) as usize
    }
}

impl Parts {
    fn part(&self, field: Field, keys: &Keys) -> usize {
        if field.is_address()
            && let Some(address) = keys.wide(field)
        {
            return self.wide_base + self.wide.part(address);
        }
        self.tree.part(keys.get(field))
    }
}

/// The candidates of one packet.
#[derive(Debug)]
pub(crate) struct Candidates<'i> {
    index: &'i Index,
    /// The part of each field, or [`UNKNOWN`] while it was not looked up.
    parts: [u32; Field::INDEXED],
    cursors: [Cursor; MAX_GROUPS],
    open: usize,
    /// The cursor whose candidate was taken, and that has to advance before the next is.
    taken: Option<usize>,
}

const UNKNOWN: u32 = u32::MAX;

/// Where a group's candidates stand.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    /// The next candidate.
    rule: u32,
    /// Position behind it: in the list if there is one, else in the group.
    next: u32,
    /// End of its list; 0 if it goes by the group's tables.
    list_end: u32,
    group: u32,
}

impl Index {
    /// Finds the rules of the list that can match.
    #[inline]
    pub(crate) fn candidates(&self, keys: &Keys) -> Candidates<'_> {
        let mut candidates = Candidates {
            index: self,
            parts: [UNKNOWN; Field::INDEXED],
            cursors: [Cursor { rule: 0, next: 0, list_end: 0, group: 0 }; MAX_GROUPS],
            open: 0,
            taken: None,
        };
        candidates.open(keys, 0);
        candidates
    }
}

impl Candidates<'_> {
    /// The next candidate in the order of rules.
    #[inline]
    pub(crate) fn next(&mut self, keys: &Keys) -> Option<u32> {
        if let Some(at) = self.taken.take() {
            let mut cursor = *self.cursors.get(at)?;
            if self.advance(&mut cursor, keys) {
                self.cursors[at] = cursor;
            } else {
                self.open -= 1;
                self.cursors[at] = self.cursors[self.open];
            }
        }
        let cursors = self.cursors.get(..self.open)?.iter().enumerate();
        let (at, first) = cursors.min_by_key(|(_, cursor)| cursor.rule)?;
        self.taken = Some(at);
        Some(first.rule)
    }

    /// Starts again behind a rule that set another mark.
    pub(crate) fn mark_changed(&mut self, keys: &Keys, from: u32) {
        let mark = Field::Mark.index();
        if self.index.parts[mark].is_some() {
            self.parts[mark] = UNKNOWN;
            self.open(keys, from);
        }
    }

    /// Looks up all groups, from a rule on.
    fn open(&mut self, keys: &Keys, from: u32) {
        self.open = 0;
        self.taken = None;
        // The searches that are sure to be needed, together: none waits for what another finds.
        for group in &self.index.groups {
            if let Some((field, _)) = group.tables.first() {
                self.part(*field, keys);
            }
        }
        for (number, group) in (0..).zip(&self.index.groups) {
            let mut cursor = Cursor { rule: 0, next: 0, list_end: 0, group: number };
            let mut found = None;
            for (field, table) in &group.tables {
                match table.get(self.part(*field, keys)) {
                    Set::Bits(_) => {}
                    set => {
                        found = Some(set);
                        break;
                    }
                }
            }
            let is_open = match found {
                Some(Set::Empty) => false,
                Some(Set::One(rule)) => {
                    (cursor.rule, cursor.next, cursor.list_end) = (rule, 1, 1);
                    rule >= from
                }
                Some(Set::Listed(list)) => {
                    let length = self.index.lists.get(list as usize).copied().unwrap_or(0);
                    (cursor.next, cursor.list_end) = (list + 1, list + 1 + length);
                    loop {
                        if !self.advance(&mut cursor, keys) {
                            break false;
                        }
                        if cursor.rule >= from {
                            break true;
                        }
                    }
                }
                Some(Set::Bits(_)) | None => {
                    cursor.next =
                        if from == 0 { 0 } else { offset(group.rules.partition_point(|rule| *rule < from)) };
                    self.advance(&mut cursor, keys)
                }
            };
            if is_open && let Some(place) = self.cursors.get_mut(self.open) {
                *place = cursor;
                self.open += 1;
            }
        }
    }

    fn part(&mut self, field: Field, keys: &Keys) -> usize {
        let known = &mut self.parts[field.index()];
        if *known == UNKNOWN {
            *known = self.index.parts[field.index()].as_ref().map_or(0, |parts| offset(parts.part(field, keys)));
        }
        *known as usize
    }

    /// Goes to the group's next candidate; false if there is none.
    #[inline]
    fn advance(&mut self, cursor: &mut Cursor, keys: &Keys) -> bool {
        let rule = if cursor.list_end == 0 {
            let Some(position) = self.position(cursor.group, cursor.next as usize, keys) else {
                return false;
            };
            cursor.next = offset(position);
            self.index.groups.get(cursor.group as usize).and_then(|group| group.rules.get(position))
        } else if cursor.next < cursor.list_end {
            self.index.lists.get(cursor.next as usize)
        } else {
            None
        };
        cursor.next += 1;
        cursor.rule = rule.copied().unwrap_or(0);
        rule.is_some()
    }

    /// The first position in a group, not before `from`, that is in the sets of all its fields. All are bit sets.
    fn position(&mut self, group: u32, from: usize, keys: &Keys) -> Option<usize> {
        let index = self.index;
        let group = index.groups.get(group as usize)?;
        if group.tables.is_empty() {
            return (from < group.rules.len()).then_some(from);
        }
        let mut sets: [&[Summary]; Field::INDEXED] = [&[]; Field::INDEXED];
        for ((field, table), set) in group.tables.iter().zip(&mut sets) {
            let Set::Bits(start) = table.get(self.part(*field, keys)) else {
                return None;
            };
            *set = index.summaries.get(start as usize..)?.get(..group.summaries)?;
        }
        let sets = sets.get(..group.tables.len())?;
        let first = from / BLOCK;
        for s in first / SUMMARY..group.summaries {
            let mut present = sets.iter().fold(u64::MAX, |all, set| all & set.get(s).map_or(0, |s| s.present));
            if s == first / SUMMARY {
                present &= u64::MAX << (first % SUMMARY);
            }
            while present != 0 {
                let b = present.trailing_zeros();
                present &= present - 1;
                let mut all = [u64::MAX; BLOCK / 64];
                for set in sets {
                    let block = index.blocks.get(set.get(s)?.position(b))?;
                    all.iter_mut().zip(block).for_each(|(all, one)| *all &= one);
                }
                let start = (s * SUMMARY + b as usize) * BLOCK;
                if start < from {
                    let (word, bit) = ((from - start) / 64, (from - start) % 64);
                    all.iter_mut().take(word).for_each(|before| *before = 0);
                    all.iter_mut().skip(word).take(1).for_each(|word| *word &= u64::MAX << bit);
                }
                if all.iter().fold(0, |any, word| any | word) == 0 {
                    continue;
                }
                let (w, word) = all.iter().enumerate().find(|(_, word)| **word != 0)?;
                return Some(start + w * 64 + word.trailing_zeros() as usize);
            }
        }
        None
    }
}

// ---- Building.

/// Half-open range of parts in which a rule holds.
#[derive(Clone, Copy)]
struct Cover {
    rule: u32,
    first: u32,
    end: u32,
}

impl Index {
    /// Builds the index of one list of a program with `total` rules; `None` if the list needs none.
    pub(crate) fn build(conditions: &[Conditions], total: usize) -> Option<Self> {
        if conditions.len() <= LINEAR {
            return None;
        }
        let indexed = &Field::ALL[..Field::INDEXED];
        let used: Vec<Field> =
            indexed.iter().copied().filter(|f| conditions.iter().any(|c| c.field(*f).is_some())).collect();
        let share = conditions.len() as u64 / used.len().max(1) as u64;
        let budget = MEMORY * share / total.max(1) as u64;

        let mut signatures = vec![0u16; conditions.len()];
        let mut parts = [const { None }; Field::INDEXED];
        let mut covers = [const { Vec::new() }; Field::INDEXED];
        for field in used {
            let (cut, mut covered) = cut(field, conditions);
            let count = cut.count();
            drop_widest(&mut covered, count, conditions.len(), budget);
            let mut entered = vec![false; conditions.len()];
            covered.iter().for_each(|c| entered[c.rule as usize] = true);
            // A condition that no number satisfies covers nothing, and is entered: its rule is in no set.
            for (rule, condition) in conditions.iter().enumerate() {
                if let Some(c) = condition.field(field)
                    && (entered[rule] || c.narrow.is_empty() && c.wide.is_empty())
                {
                    signatures[rule] |= 1 << field.index();
                }
            }
            if !covered.is_empty() {
                parts[field.index()] = Some(cut);
            }
            covers[field.index()] = covered;
        }

        let mut index =
            Self { parts, groups: Vec::new(), lists: Vec::new(), summaries: Vec::new(), blocks: Vec::new() };
        for (signature, rules) in groups(&signatures) {
            index.add_group(signature, rules, &covers);
        }
        Some(index)
    }

    fn add_group(&mut self, signature: u16, rules: Vec<u32>, covers: &[Vec<Cover>; Field::INDEXED]) {
        let mut tables = Vec::new();
        for field in &Field::ALL[..Field::INDEXED] {
            if signature & 1 << field.index() == 0 {
                continue;
            }
            let parts = self.parts[field.index()].as_ref().map_or(1, Parts::count);
            tables.push(self.table(*field, parts, &rules, &covers[field.index()]));
        }
        tables.sort_by(|a, b| a.0.total_cmp(&b.0));
        let tables = tables.into_iter().map(|(_, field, table)| (field, table)).collect();
        self.groups.push(Group { summaries: rules.len().div_ceil(BLOCK * SUMMARY), rules, tables });
    }

    /// A group's sets by part, with the mean size of the sets in which its rules are.
    fn table(&mut self, field: Field, parts: usize, rules: &[u32], covers: &[Cover]) -> (f64, Field, Table) {
        // (part, position in the group, whether the rule begins to hold)
        let mut events = Vec::new();
        let mut rest = covers;
        for (position, rule) in (0u32..).zip(rules) {
            rest = &rest[rest.partition_point(|c| c.rule < *rule)..];
            for cover in rest.iter().take_while(|c| c.rule == *rule) {
                events.push((cover.first, position, true));
                events.push((cover.end, position, false));
            }
        }
        // Ends first: a rule's IPv6 range may begin where its last IPv4 range ends.
        events.sort_unstable_by_key(|e| (e.0, e.2));
        let mut running = Running::new(rules.len());
        let mut known = HashMap::new();
        let mut changes = Vec::new();
        let (mut sum, mut squares) = (0.0f64, 0.0f64);
        let mut events = &events[..];
        while let Some((part, ..)) = events.first() {
            let count = events.partition_point(|e| e.0 == *part);
            let (now, later) = events.split_at(count);
            events = later;
            for (_, position, holds) in now {
                running.set(*position as usize, *holds);
            }
            changes.push((*part, self.store(&running, rules, &mut known)));
            let width = f64::from(events.first().map_or(0, |e| e.0).saturating_sub(*part));
            let size = f64::from(offset(running.size));
            sum += width * size;
            squares += width * size * size;
        }
        let mean = if sum == 0.0 { 0.0 } else { squares / sum };
        (mean, field, Table::new(changes, parts))
    }

    /// Stores a set, or finds it where it is stored already.
    fn store(&mut self, running: &Running, rules: &[u32], known: &mut HashMap<u64, Set>) -> Set {
        let rule = |position: usize| rules[position];
        match running.size {
            0 => Set::Empty,
            1 => running.positions().next().map_or(Set::Empty, |position| Set::One(rule(position))),
            size if size <= LISTED => {
                let start = self.lists.len();
                self.lists.push(offset(size));
                self.lists.extend(running.positions().map(rule));
                if let Some(Set::Listed(before)) = known.get(&running.hash)
                    && self.lists[*before as usize..][..=size] == self.lists[start..]
                {
                    self.lists.truncate(start);
                    return Set::Listed(*before);
                }
                let set = Set::Listed(offset(start));
                known.insert(running.hash, set);
                set
            }
            _ => {
                if let Some(Set::Bits(before)) = known.get(&running.hash)
                    && self.is_stored(running, *before as usize)
                {
                    return Set::Bits(*before);
                }
                let set = Set::Bits(offset(self.summaries.len()));
                for (s, present) in running.present.iter().enumerate() {
                    let blocks = running.blocks[s * SUMMARY..].iter().take(SUMMARY);
                    let full = present.count_ones() as usize * 2 >= blocks.len();
                    self.summaries.push(Summary { present: *present, base: offset(self.blocks.len()), full });
                    self.blocks.extend(blocks.filter(|block| full || block.iter().any(|word| *word != 0)));
                }
                known.insert(running.hash, set);
                set
            }
        }
    }

    fn is_stored(&self, running: &Running, start: usize) -> bool {
        let stored = &self.summaries[start..][..running.present.len()];
        stored.iter().zip(&running.present).enumerate().all(|(s, (stored, present))| {
            let mut same = (0u32..).zip(running.blocks[s * SUMMARY..].iter().take(SUMMARY));
            stored.present == *present
                && same.all(|(b, block)| present & 1 << b == 0 || self.blocks[stored.position(b)] == *block)
        })
    }
}

impl Parts {
    fn count(&self) -> usize {
        self.wide_base + self.wide.len() + 1
    }
}

/// Cuts a field and says which parts its rules cover, in the order of rules.
fn cut(field: Field, conditions: &[Conditions]) -> (Parts, Vec<Cover>) {
    let about = || (0u32..).zip(conditions).filter_map(|(rule, c)| c.field(field).map(|c| (rule, c)));
    let narrow = boundaries(about().flat_map(|(_, c)| c.narrow.iter().copied()));
    let wide = boundaries(about().flat_map(|(_, c)| c.wide.iter().copied()));
    let wide_base = narrow.len() + 1;
    let parts = Parts { tree: Tree::new(&narrow), wide: Wide::new(&wide), wide_base };
    let mut covers = Vec::new();
    for (rule, condition) in about() {
        for (first, last) in &condition.narrow {
            let (first, end) = (parts.tree.part(*first), parts.tree.part(*last) + 1);
            covers.push(Cover { rule, first: offset(first), end: offset(end) });
        }
        for (first, last) in &condition.wide {
            let first = wide_base + parts.wide.part(*first);
            let end = wide_base + parts.wide.part(*last) + 1;
            covers.push(Cover { rule, first: offset(first), end: offset(end) });
        }
    }
    (parts, covers)
}

/// Leaves out the rules that cover most until the sets fit into the budget.
fn drop_widest(covers: &mut Vec<Cover>, parts: usize, rules: usize, budget: u64) {
    let mut width = vec![0u64; rules];
    covers.iter().for_each(|c| width[c.rule as usize] += u64::from(c.end - c.first));
    while memory(covers, parts, rules) > budget {
        let mut widths: Vec<u64> = width.iter().copied().filter(|w| *w != 0).collect();
        widths.sort_unstable();
        let Some(most) = widths.get(widths.len() * 7 / 8) else {
            return;
        };
        covers.retain(|c| width[c.rule as usize] < *most);
        width.iter_mut().filter(|w| **w >= *most).for_each(|w| *w = 0);
    }
}

/// Bytes of the sets of one field, if all rules were one group.
fn memory(covers: &[Cover], parts: usize, rules: usize) -> u64 {
    let mut change = vec![0i64; parts + 1];
    for cover in covers {
        change[cover.first as usize] += 1;
        change[cover.end as usize] -= 1;
    }
    let (blocks, summaries) = (rules.div_ceil(BLOCK), rules.div_ceil(BLOCK * SUMMARY));
    let mut size = 0;
    let bytes = change[..parts].iter().filter(|change| **change != 0).map(|change| {
        size += change;
        match usize::try_from(size).unwrap_or(0) {
            0 | 1 => 0,
            size if size <= LISTED => 4 * (size + 1),
            size => size_of::<Block>() * (2 * size).min(blocks) + size_of::<Summary>() * summaries,
        }
    });
    bytes.sum::<usize>() as u64
}

/// Sorts rules into groups by the fields that they have in common: `(fields, rules in order)`.
fn groups(signatures: &[u16]) -> Vec<(u16, Vec<u32>)> {
    let mut by_signature: HashMap<u16, Vec<u32>> = HashMap::new();
    for (rule, signature) in (0..).zip(signatures) {
        by_signature.entry(*signature).or_default().push(rule);
    }
    let mut groups: Vec<(u16, Vec<u32>)> = by_signature.into_iter().collect();
    groups.sort_unstable_by_key(|(signature, rules)| (rules.len(), *signature));
    let mut rest = Vec::new();
    while let Some((_, rules)) = groups.first()
        && rest.len() + rules.len() <= REST
    {
        rest.extend(groups.remove(0).1);
    }
    match groups.iter_mut().find(|(signature, _)| *signature == 0) {
        Some((_, rules)) => rules.extend(rest),
        None if rest.is_empty() => {}
        None => groups.push((0, rest)),
    }
    while groups.len() > MAX_GROUPS {
        groups.sort_unstable_by_key(|(signature, rules)| (rules.len(), *signature));
        // At more than one group per field, two share one.
        let sharing = |from: usize| {
            let own = groups[from].0;
            let shared = (from + 1..groups.len()).map(|with| ((groups[with].0 & own).count_ones(), with));
            shared.max_by_key(|(count, with)| (*count, std::cmp::Reverse(*with))).filter(|(count, _)| *count > 0)
        };
        let Some((from, with)) = (0..groups.len()).find_map(|from| sharing(from).map(|(_, with)| (from, with)))
        else {
            break;
        };
        let (signature, rules) = groups.remove(from);
        let (kept, joined) = &mut groups[with - 1];
        *kept &= signature;
        joined.extend(rules);
    }
    groups.iter_mut().for_each(|(_, rules)| rules.sort_unstable());
    groups.sort_unstable_by_key(|(_, rules)| rules.first().copied());
    groups
}

/// The set of rules that hold in the part that a sweep has reached.
struct Running {
    blocks: Vec<Block>,
    /// Which blocks have bits, as in [`Summary::present`].
    present: Vec<u64>,
    /// Ranges of each rule that cover the part.
    size: usize,
    hash: u64,
}

impl Running {
    fn new(rules: usize) -> Self {
        let summaries = rules.div_ceil(BLOCK * SUMMARY);
        Self { blocks: vec![[0; BLOCK / 64]; rules.div_ceil(BLOCK)], present: vec![0; summaries], size: 0, hash: 0 }
    }

    fn set(&mut self, position: usize, holds: bool) {
        let (b, bit) = (position / BLOCK, position % BLOCK);
        let block = &mut self.blocks[b];
        let mask = 1 << (bit % 64);
        if (block[bit / 64] & mask != 0) == holds {
            return;
        }
        block[bit / 64] ^= mask;
        let summary = &mut self.present[b / SUMMARY];
        if block.iter().any(|word| *word != 0) {
            *summary |= 1 << (b % SUMMARY);
        } else {
            *summary &= !(1 << (b % SUMMARY));
        }
        self.size = if holds { self.size + 1 } else { self.size - 1 };
        self.hash ^= scatter(position as u64);
    }

    fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.present.iter().enumerate().flat_map(move |(s, present)| {
            bits(*present).flat_map(move |b| {
                let block = s * SUMMARY + b;
                let words = self.blocks[block].iter().enumerate();
                words.flat_map(move |(w, word)| bits(*word).map(move |bit| block * BLOCK + w * 64 + bit))
            })
        })
    }
}

/// Positions of the bits that are set.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(bit)
    })
}

/// A number that looks random (the last steps of SplitMix64).
fn scatter(position: u64) -> u64 {
    let mut x = (position + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use erhu_planes::program::{Match, MatchKey, PortRange};

    use super::*;

    #[test]
    fn however_rules_differ_there_are_few_groups_each_by_fields_that_all_its_rules_have() {
        for stride in [1u32, 7, 31, 1023] {
            let signatures: Vec<u16> = (0..5000u32).map(|i| u16::try_from(i * stride % 2047).unwrap()).collect();
            let groups = groups(&signatures);
            assert!(groups.len() <= MAX_GROUPS);
            let mut all: Vec<u32> = groups.iter().flat_map(|(_, rules)| rules.clone()).collect();
            all.sort_unstable();
            assert_eq!(all, (0..5000).collect::<Vec<_>>());
            for (signature, rules) in &groups {
                assert!(rules.is_sorted());
                assert!(rules.iter().all(|rule| signatures[*rule as usize] & signature == *signature));
                assert!(*signature != 0 || rules.len() <= 100, "{} rules without a field", rules.len());
            }
        }
    }

    #[test]
    fn a_table_tells_the_same_whether_it_holds_all_parts_or_only_changes() {
        let changes = vec![(2, Set::One(1)), (3, Set::Empty), (9, Set::Listed(5)), (70, Set::One(3))];
        let (all, few) = (Table::new(changes.clone(), 80), Table::new(changes.clone(), 1000));
        assert!(matches!((&all, &few), (Table::All(_), Table::Changes { .. })));
        for part in 0..80u32 {
            let set = changes.iter().rev().find(|(from, _)| *from <= part).map_or(Set::Empty, |(_, set)| *set);
            assert_eq!((all.get(part as usize), few.get(part as usize)), (set, set), "part {part}");
        }
    }

    #[test]
    fn sets_of_deeply_nested_ranges_stay_within_their_memory() {
        let port = |i: u16| vec![PortRange { first: 30_000 - i, last: 30_000 + i }];
        let keys: [fn(Vec<PortRange>) -> MatchKey; 2] = [MatchKey::SourcePort, MatchKey::DestinationPort];
        for fields in 1..=keys.len() {
            let rule = |i: u16| {
                let matches = keys[..fields].iter().map(|key| Match { negated: false, key: key(port(i)) });
                Conditions::of(&matches.collect::<Vec<_>>())
            };
            let conditions: Vec<Conditions> = (0..20_000).map(rule).collect();
            let index = Index::build(&conditions, conditions.len()).unwrap();
            let bytes = index.blocks.len() * size_of::<Block>()
                + index.summaries.len() * size_of::<Summary>()
                + index.lists.len() * size_of::<u32>();
            assert!(bytes as u64 <= MEMORY, "{bytes} bytes for {fields} fields");
            assert!(bytes > 1 << 20, "{bytes} bytes: nothing was entered");
        }
    }
}

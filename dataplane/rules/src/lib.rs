//! Runs a program's rules for a packet: once for a connection's first, and for each packet where a rule counts.
//!
//! # Overview
//!
//! [`Rules::compile`] turns a validated [`Program`] into flat arrays of checks and steps, and each longer list of rules
//! (a hook's or a chain's) into an index. [`Rules::run`] walks a hook: in the order of the rules, those whose matches
//! all hold run their actions in order, until one is final.
//!
//! # What a walk means
//!
//! - `Accept`, `Drop`, `Reject`, `Snat`, `Masquerade`, `Dnat` and `Netmap` are final for the hook, in chains too.
//! - `Jump` runs a chain and, if that was not final, goes on with the next action. `GoTo` runs a chain in place of what
//!   is left of its own: whoever called that goes on. `Return` ends its chain. `Continue` goes on with the next rule
//!   and so skips its own rule's further actions.
//! - Where no rule was final, or the hook's own list was ended by `GoTo` or `Return`, the policy of the packet's zone
//!   decides, else the hook's. Of two policies of one zone the first counts.
//! - `Mark` is seen by all later matches. A mark matches if `mark & mask == value`, as in netfilter: a value with bits
//!   outside its mask never does.
//! - Several values of a match: any of them. Several matches: all of them, about the same field too.
//! - A match about what the packet does not have does not hold. Negated it holds for interfaces and zones (none is not
//!   that one) and for addresses of the other family, but not for ports and for ICMP types and codes: to name a port
//!   is also to say that there is one, as in netfilter, where such a match brings its protocol along. Nor does it hold
//!   for the status and direction of the connection of a packet that has none, as in netfilter too.
//!
//! # Cost
//!
//! Lists of up to 16 rules are tried rule by rule; of longer ones only rules that can match are looked at (`index`
//! tells how). What a walk costs then depends on how many different sets of fields the rules look at, hardly on how
//! many rules there are.
//! `cargo run --release -p erhu-rules --example walk` measures it, with the time to compile; on one core of an AMD
//! EPYC of family 26, nanoseconds per walk; of these, a hook without rules takes 8:
//!
//! | rules | 10 | 1000 | 10 000 | compile 10 000, ms |
//! |---|---|---|---|---|
//! | by destination /24 | 25 | 47 | 61 | 5 |
//! | by destination /24, none matches | 22 | 33 | 42 | 3 |
//! | by IPv6 destination /64 | 33 | 63 | 97 | 3 |
//! | by protocol and port | 34 | 49 | 63 | 4 |
//! | by zone and egress | 28 | 49 | 62 | 4 |
//! | 100 ports of each /24 | 34 | 70 | 82 | 4 |
//! | four kinds of rules in turn | 27 | 75 | 104 | 4 |
//! | one field each, others any, last matches | 21 | 94 | 96 | 3 |
//! | half the rules in each field, last matches | 34 | 55 | 120 | 3 |
//! | ranges of ports and addresses, all nested | 27 | 89 | 140 | 16 |
//!
//! Conditions on state, status and direction, on ICMP codes alone, and on marks under a mask with gaps choose no
//! candidates: thousands of rules that have no other are tried one by one.
//!
//! # Synchronisation
//!
//! Immutable once compiled; a walk allocates nothing and takes no lock.

#![forbid(unsafe_code)]

mod checks;
mod facts;
mod fields;
mod index;
mod published;
mod search;
mod sieve;
mod spans;

use std::net::IpAddr;

use erhu_planes::program::{
    Dnat, Hook, HookRules, MatchKey, PolicyVerdict, Position, Prefix, Program, RejectKind, Rule, Snat,
};

pub use facts::{DnatRef, Effects, Facts, NetmapRef, RuleId, SnatRef, Verdict};
pub use fields::{Keys, Packet4};

use checks::{Compiled, Gate, Step, Store, gates, offset, state_of};
use fields::{ABSENT, Conditions, Field};
use index::Index;
use published::Published;
use sieve::Sieves;
use spans::contains;

/// A program's rules, ready to be run. Immutable; workers share it.
#[derive(Debug)]
pub struct Rules {
    store: Store,
    hooks: Vec<HookList>,
    chains: Vec<List>,
    /// By [`RuleId`].
    positions: Vec<Position>,
    /// By interface: whether the walk of `raw` can do anything to its packets.
    raw: Vec<bool>,
    /// And to which of them.
    sieves: Sieves,
    published: Published,
    /// Some rule of `forward` or of a chain asks for the status of connections.
    asks_status: bool,
}

#[derive(Debug)]
struct HookList {
    list: List,
    policy: PolicyVerdict,
    /// By zone id, as far as the largest that has one of its own.
    zone_policies: Vec<Option<PolicyVerdict>>,
    /// No rule has an effect, and every zone's policy is to accept.
    is_idle: bool,
    /// States in which whatever the packet, nothing happens but that a rule accepts it.
    accepted_states: u8,
}

/// The rules of a hook or chain.
#[derive(Debug)]
struct List {
    rules: Vec<Compiled>,
    /// One for each rule.
    gates: Vec<Gate>,
    /// Finds candidates where trying one rule after the other would take longer.
    index: Option<Index>,
}

impl Rules {
    /// Compiles the rules of a validated program. Takes milliseconds for thousands of rules: not for a worker.
    pub fn compile(program: &Program) -> Self {
        let mut store = Store::default();
        let mut positions = Vec::new();
        let lists = program.hooks.iter().map(|h| &h.rules).chain(program.chains.iter().map(|c| &c.rules));
        let total = lists.clone().map(Vec::len).sum();
        let mut compile = |rules: &[Rule]| {
            let (compiled, conditions) = store.list(rules, offset(positions.len()));
            positions.extend(rules.iter().map(|rule| rule.at));
            let gates = gates(&compiled);
            (List { index: Index::build(&conditions, total), gates, rules: compiled }, conditions)
        };
        let (mut raw, mut sieves) = (Vec::new(), Sieves::default());
        let mut hooks = Vec::with_capacity(Hook::COUNT);
        for (index, hook) in program.hooks.iter().enumerate() {
            let (list, conditions) = compile(&hook.rules);
            let hook = HookList::new(hook, list);
            if index == Hook::Raw.index() {
                (raw, sieves) = touched_by_raw(program, &hook, &conditions);
            }
            hooks.push(hook);
        }
        let chains = program.chains.iter().map(|chain| compile(&chain.rules).0).collect();
        let published = Published::of(program);
        Self { store, hooks, chains, positions, raw, sieves, published, asks_status: asks_status(program) }
    }

    /// Runs a hook for a packet. Named counters that it hits go to `counted`, by their index in the program, as often
    /// as they are hit.
    ///
    /// `effects` can go through several hooks: the mark starts at [`Facts::mark`] each time, `decided_by` is that of
    /// this walk, and the rest accumulates.
    #[inline]
    pub fn run(&self, hook: Hook, facts: &Facts, effects: &mut Effects, counted: &mut impl FnMut(u16)) -> Verdict {
        effects.mark = facts.mark;
        effects.decided_by = None;
        match self.hooks.get(hook.index()) {
            Some(hook) if !hook.is_idle => self.run_list(hook, &mut Keys::new(facts), effects, counted),
            _ => Verdict::Accept,
        }
    }

    /// As [`Rules::run`], for a packet whose fields are numbers already. A mark that rules set stays in `keys`, for the
    /// hook that comes next.
    #[inline]
    pub fn run_keys(
        &self,
        hook: Hook,
        keys: &mut Keys,
        effects: &mut Effects,
        counted: &mut impl FnMut(u16),
    ) -> Verdict {
        effects.mark = keys.get(Field::Mark);
        effects.decided_by = None;
        match self.hooks.get(hook.index()) {
            Some(hook) if !hook.is_idle => self.run_list(hook, keys, effects, counted),
            _ => Verdict::Accept,
        }
    }

    #[inline(never)]
    fn run_list(
        &self,
        hook: &HookList,
        keys: &mut Keys,
        effects: &mut Effects,
        counted: &mut impl FnMut(u16),
    ) -> Verdict {
        if let Some(verdict) = self.walk(&hook.list, keys, effects, counted) {
            return verdict;
        }
        match hook.policy(keys.zone()) {
            PolicyVerdict::Accept => Verdict::Accept,
            PolicyVerdict::Drop => Verdict::DropByPolicy,
            PolicyVerdict::Reject => Verdict::RejectByPolicy(RejectKind::Default),
        }
    }

    /// Whether `raw` has to run for packets of an interface (index): false if no rule of it can match there and its
    /// policy there is to accept.
    pub fn raw_rules_for(&self, ingress: u16) -> bool {
        self.raw.get(usize::from(ingress)).copied().unwrap_or(!self.is_empty(Hook::Raw))
    }

    /// Whether `raw` has to run for a packet of an interface for which it may have to run at all: false if none of its
    /// rules matches the packet and its policy there is to accept. The other way round it may err.
    #[inline]
    pub fn raw_rules_about(&self, packet: &Packet4) -> bool {
        self.sieves.let_through(packet)
    }

    /// Whether running a hook would do nothing: it has no rule with an effect, and accepts in every zone.
    pub fn is_empty(&self, hook: Hook) -> bool {
        self.hooks.get(hook.index()).is_none_or(|h| h.is_idle)
    }

    /// Whether a hook accepts every packet that is in this state (one bit of [`erhu_planes::program::states`]), with no
    /// other effect: what the customary "established and related: accept" comes to. `false` where that takes a walk to
    /// tell.
    #[inline]
    pub fn accepts_all(&self, hook: Hook, state: u8) -> bool {
        self.hooks.get(hook.index()).is_none_or(|h| h.is_idle || h.accepted_states & state != 0)
    }

    /// Whether what `forward` says of a packet may depend on the status of its connection, which changes while that
    /// lives.
    pub fn asks_status(&self) -> bool {
        self.asks_status
    }

    /// An `snat` action of these rules.
    ///
    /// # Panics
    /// May, with a reference that other rules gave.
    pub fn snat(&self, action: SnatRef) -> &Snat {
        &self.store.snats[action.0 as usize]
    }

    /// A `dnat` or `redirect` action of these rules.
    ///
    /// # Panics
    /// May, with a reference that other rules gave.
    pub fn dnat(&self, action: DnatRef) -> &Dnat {
        &self.store.dnats[action.0 as usize]
    }

    /// The network of a `netmap` action of these rules.
    ///
    /// # Panics
    /// May, with a reference that other rules gave.
    pub fn netmap(&self, prefix: NetmapRef) -> &Prefix {
        &self.store.netmaps[prefix.0 as usize]
    }

    /// Whether some rule of `prerouting` translates destinations.
    pub fn translates_destinations(&self) -> bool {
        self.published.any
    }

    /// Whether a rule of `prerouting` that translates destinations names this address as one that packets come to.
    pub fn publishes(&self, address: IpAddr) -> bool {
        self.published.any && self.published.contains(address)
    }

    /// Where a rule was declared; the default position for one of other rules.
    pub fn place(&self, rule: RuleId) -> Position {
        self.positions.get(rule.0 as usize).copied().unwrap_or_default()
    }

    /// The verdict of a list; `None` if no rule was final.
    fn walk(
        &self,
        list: &List,
        keys: &mut Keys,
        effects: &mut Effects,
        counted: &mut impl FnMut(u16),
    ) -> Option<Verdict> {
        let Some(index) = &list.index else {
            let state = state_of(keys);
            for (at, gate) in list.gates.iter().enumerate() {
                if gate.is_open(keys, state)
                    && let Some(rule) = list.rules.get(at)
                    && (gate.is_whole() || self.store.matches(rule, keys))
                    && let End::List(verdict) = self.act(rule, keys, effects, counted)
                {
                    return verdict;
                }
            }
            return None;
        };
        let mut candidates = index.candidates(keys);
        while let Some(number) = candidates.next(keys) {
            let Some(rule) = list.rules.get(number as usize) else {
                break;
            };
            if !self.store.matches(rule, keys) {
                continue;
            }
            let mark = keys.get(Field::Mark);
            if let End::List(verdict) = self.act(rule, keys, effects, counted) {
                return verdict;
            }
            if keys.get(Field::Mark) != mark {
                candidates.mark_changed(keys, number + 1);
            }
        }
        None
    }

    /// Runs the actions of a rule that matches.
    fn act(&self, rule: &Compiled, keys: &mut Keys, effects: &mut Effects, counted: &mut impl FnMut(u16)) -> End {
        for step in self.store.steps(rule) {
            match step {
                Step::Final(verdict) => {
                    effects.decided_by = Some(rule.id);
                    return End::List(Some(verdict));
                }
                Step::Notrack => effects.notrack = true,
                Step::Jump(chain) => {
                    if let Some(chain) = self.chains.get(usize::from(chain))
                        && let Some(verdict) = self.walk(chain, keys, effects, counted)
                    {
                        return End::List(Some(verdict));
                    }
                }
                Step::GoTo(chain) => {
                    let chain = self.chains.get(usize::from(chain));
                    return End::List(chain.and_then(|chain| self.walk(chain, keys, effects, counted)));
                }
                Step::Return => return End::List(None),
                Step::Mark(mark) => {
                    effects.mark = mark;
                    keys.set_mark(mark);
                }
                Step::ConnMark(mark) => effects.connmark = Some(mark),
                Step::Count(counter) => {
                    effects.packet_kind = true;
                    counted(counter);
                }
            }
        }
        End::Rule
    }
}

/// Whether `forward` has a rule about the status of connections, or a chain, that it may lead to, has.
fn asks_status(program: &Program) -> bool {
    let forward = program.hooks.get(Hook::Forward.index()).map(|hook| &hook.rules);
    let mut lists = forward.into_iter().chain(program.chains.iter().map(|chain| &chain.rules));
    lists.any(|rules| rules.iter().flat_map(|rule| &rule.matches).any(|m| matches!(m.key, MatchKey::Status(_))))
}

/// What a rule's actions ended.
enum End {
    /// Themselves: the next rule follows.
    Rule,
    /// The list, with its verdict.
    List(Option<Verdict>),
}

impl HookList {
    fn new(hook: &HookRules, list: List) -> Self {
        let mut zone_policies = Vec::new();
        for (zone, policy) in hook.zone_policies.iter().rev() {
            let zone = usize::from(*zone);
            if zone >= zone_policies.len() {
                zone_policies.resize(zone + 1, None);
            }
            zone_policies[zone] = Some(*policy);
        }
        let accepts = |policy: &PolicyVerdict| *policy == PolicyVerdict::Accept;
        let is_idle = list.rules.is_empty() && accepts(&hook.policy) && zone_policies.iter().flatten().all(accepts);
        let accepted_states = Store::accepted_states(&list.rules);
        Self { list, policy: hook.policy, zone_policies, is_idle, accepted_states }
    }

    fn policy(&self, zone: Option<u16>) -> PolicyVerdict {
        let own = zone.and_then(|zone| self.zone_policies.get(usize::from(zone)).copied().flatten());
        own.unwrap_or(self.policy)
    }
}

/// By interface: whether some rule of `raw` can match its packets, or the policy is not to accept them. And the sieves.
fn touched_by_raw(program: &Program, hook: &HookList, rules: &[Conditions]) -> (Vec<bool>, Sieves) {
    let interfaces = &program.interfaces;
    let not_accepted: Vec<bool> =
        interfaces.iter().map(|i| hook.policy(Some(i.zone)) != PolicyVerdict::Accept).collect();
    let mut touched = not_accepted.clone();
    let mut about = Vec::with_capacity(rules.len());
    let by_index: Vec<(u32, usize)> = (0..).zip(0..interfaces.len()).collect();
    let mut by_zone: Vec<(u32, usize)> =
        interfaces.iter().enumerate().map(|(at, i)| (u32::from(i.zone), at)).collect();
    by_zone.sort_unstable();
    let all = [(0, u32::MAX)];
    let mut left = touched.iter().filter(|touched| !**touched).count();
    for rule in rules {
        let spans = |field| rule.field(field).map_or(&all[..], |condition| &condition.narrow);
        if !contains(spans(Field::Egress), ABSENT) || !contains(spans(Field::EgressZone), ABSENT) {
            continue;
        }
        let (ingress, zone) = (spans(Field::Ingress), spans(Field::Zone));
        if ingress == &all[..] && zone == &all[..] {
            touched.fill(true);
            left = 0;
            about.push((rule, Vec::new()));
            continue;
        }
        let (here, there) = (within(&by_index, ingress), within(&by_zone, zone));
        let fewer: Box<dyn Iterator<Item = usize>> =
            if here.clone().count() <= there.clone().count() { Box::new(here) } else { Box::new(there) };
        let mut its = Vec::new();
        for at in fewer {
            let zone_of = u32::from(interfaces[at].zone);
            if contains(ingress, offset(at)) && contains(zone, zone_of) {
                if its.len() <= sieve::FEW {
                    its.push(at);
                }
                if !touched[at] {
                    touched[at] = true;
                    left -= 1;
                }
            }
            if left == 0 && its.len() > sieve::FEW {
                break;
            }
        }
        if !its.is_empty() {
            about.push((rule, its));
        }
    }
    let sieves = Sieves::of(&about, &not_accepted);
    (touched, sieves)
}

/// What belongs to the keys in a set, out of pairs sorted by key.
fn within<'a>(sorted: &'a [(u32, usize)], spans: &'a [(u32, u32)]) -> impl Iterator<Item = usize> + Clone + 'a {
    spans.iter().flat_map(|&(first, last)| {
        let from = &sorted[sorted.partition_point(|(key, _)| *key < first)..];
        from[..from.partition_point(|(key, _)| *key <= last)].iter().map(|(_, at)| *at)
    })
}

//! Rules: names become indices, and each action must be possible wherever its rule runs.

use std::collections::{HashMap, HashSet};

use erhu_planes::program::{
    Action, Chain, DestinationChoice, Dnat, Hook, Match, MatchKey, PortRange, Position, Program, Rule, Snat,
    SourceChoice, limits,
};

use super::Compiler;
use crate::policy::{self, ActionKind, Kind, Place};
use crate::script::{Fault, list};

/// Fills in chains, hooks and counters.
pub fn compile(compiler: &mut Compiler, program: &mut Program) {
    let policy = compiler.policy;
    program.chains = policy.chains.iter().map(|c| Chain { name: c.name.clone(), rules: Vec::new() }).collect();
    let mut counters = Counters::default();
    for rule in &policy.rules {
        let made = self::rule(compiler, rule, &mut counters);
        match &rule.place {
            Place::Hook(hook) => program.hooks[hook.index()].rules.push(made),
            Place::Chain(name) => {
                let index = compiler.resolve(Kind::Chain, name, rule.at, "rule", "chain");
                program
                    .chains
                    .get_mut(usize::from(index))
                    .into_iter()
                    .for_each(|chain| chain.rules.push(made.clone()));
            }
        }
    }
    program.counters = counters.names;
    for verdict in &policy.verdicts {
        let hook = &mut program.hooks[verdict.hook.index()];
        match &verdict.zone {
            None => hook.policy = verdict.verdict,
            Some(name) => {
                let zone = compiler.resolve(Kind::Zone, name, verdict.at, "policy", "zone");
                hook.zone_policies.push((zone, verdict.verdict));
            }
        }
    }
    possible(compiler);
}

#[derive(Default)]
struct Counters {
    names: Vec<String>,
    index: HashMap<String, u16>,
}

impl Counters {
    /// `None` if there are too many.
    fn get(&mut self, name: &str) -> Option<u16> {
        if let Some(index) = self.index.get(name) {
            return Some(*index);
        }
        let index = u16::try_from(self.names.len()).ok().filter(|index| usize::from(*index) < limits::NAMED)?;
        self.names.push(name.to_owned());
        self.index.insert(name.to_owned(), index);
        Some(index)
    }
}

fn rule(compiler: &mut Compiler, rule: &policy::Rule, counters: &mut Counters) -> Rule {
    let function = rule.place.function();
    let matches =
        rule.matches.iter().map(|m| Match { negated: m.negated, key: key(compiler, rule, &m.key) }).collect();
    let mut actions = Vec::with_capacity(rule.actions.len());
    for action in &rule.actions {
        let at = action.at.unwrap_or(rule.at);
        let name = action.kind.name();
        actions.push(match &action.kind {
            ActionKind::Accept => Action::Accept,
            ActionKind::Drop => Action::Drop,
            ActionKind::Reject(kind) => Action::Reject(*kind),
            ActionKind::Notrack => Action::Notrack,
            ActionKind::Snat(snat) => Action::Snat(Snat {
                source: match &snat.source {
                    policy::SourceChoice::Pool(pool) => {
                        SourceChoice::Pool(compiler.resolve(Kind::Pool, pool, at, name, "pool"))
                    }
                    policy::SourceChoice::To(ranges) => SourceChoice::To(ranges.clone()),
                },
                ports: snat.ports,
                random: snat.random,
                persistent: snat.persistent,
            }),
            ActionKind::Masquerade { ports, random } => Action::Masquerade { ports: *ports, random: *random },
            ActionKind::Dnat(dnat) => Action::Dnat(Dnat {
                destination: DestinationChoice::To(dnat.to.clone()),
                ports: dnat.ports,
                zone: dnat.zone.as_ref().map(|zone| compiler.resolve(Kind::Zone, zone, at, name, "zone")),
                random: dnat.random,
                persistent: dnat.persistent,
            }),
            ActionKind::Redirect(ports) => Action::Dnat(redirect(Some(*ports))),
            ActionKind::Netmap(prefix) => Action::Netmap(*prefix),
            ActionKind::Jump(chain) => Action::Jump(compiler.resolve(Kind::Chain, chain, at, name, "chain")),
            ActionKind::GoTo(chain) => Action::GoTo(compiler.resolve(Kind::Chain, chain, at, name, "chain")),
            ActionKind::Return => Action::Return,
            ActionKind::Mark(mark) => Action::Mark(*mark),
            ActionKind::ConnMark(mark) => Action::ConnMark(*mark),
            ActionKind::Count(counter) => match counters.get(counter) {
                Some(index) => Action::Count(index),
                None => {
                    compiler.fault(at, function, format!("count: more than {} counters", limits::NAMED));
                    Action::Continue
                }
            },
            ActionKind::Continue => Action::Continue,
        });
    }
    Rule { at: rule.at, matches, actions }
}

const fn redirect(ports: Option<PortRange>) -> Dnat {
    Dnat { destination: DestinationChoice::Ingress, ports, zone: None, random: false, persistent: false }
}

fn key(compiler: &mut Compiler, rule: &policy::Rule, key: &policy::MatchKey) -> MatchKey {
    use policy::MatchKey as Key;
    let mut resolve = |kind: Kind, names: &[String]| -> Vec<u16> {
        let function = rule.place.function();
        names.iter().map(|name| compiler.resolve(kind, name, rule.at, function, key.name())).collect()
    };
    match key {
        Key::Ingress(names) => MatchKey::Ingress(resolve(Kind::Interface, names)),
        Key::Egress(names) => MatchKey::Egress(resolve(Kind::Interface, names)),
        Key::Zone(names) => MatchKey::Zone(resolve(Kind::Zone, names)),
        Key::EgressZone(names) => MatchKey::EgressZone(resolve(Kind::Zone, names)),
        Key::Source(ranges) => MatchKey::Source(ranges.clone()),
        Key::Destination(ranges) => MatchKey::Destination(ranges.clone()),
        Key::Protocol(numbers) => MatchKey::Protocol(numbers.clone()),
        Key::SourcePort(ranges) => MatchKey::SourcePort(ranges.clone()),
        Key::DestinationPort(ranges) => MatchKey::DestinationPort(ranges.clone()),
        Key::IcmpType(ranges) => MatchKey::IcmpType(ranges.clone()),
        Key::IcmpCode(ranges) => MatchKey::IcmpCode(ranges.clone()),
        Key::State(bits) => MatchKey::State(*bits),
        Key::Status(bits) => MatchKey::Status(*bits),
        Key::Direction(bits) => MatchKey::Direction(*bits),
        Key::Mark(marks) => MatchKey::Mark(marks.clone()),
    }
}

/// Where a rule of a chain may run: a hook, and the rule of it (or of a chain) that leads there.
type Reached = HashMap<String, Vec<(Hook, Position)>>;

/// Checks what each hook allows, through chains too, and that chains lead neither back to themselves nor too deep.
fn possible(compiler: &mut Compiler) {
    let policy = compiler.policy;
    let mut of_chain: HashMap<&str, Vec<&policy::Rule>> = HashMap::new();
    for rule in &policy.rules {
        if let Place::Chain(name) = &rule.place {
            of_chain.entry(name).or_default().push(rule);
        }
    }
    let mut reached = Reached::new();
    for hook in Hook::ALL {
        let mut open: Vec<(&str, Position)> = Vec::new();
        for rule in policy.rules.iter().filter(|rule| rule.place == Place::Hook(hook)) {
            open.extend(targets(rule).map(|(chain, at)| (chain, at.unwrap_or(rule.at))));
        }
        let mut seen: HashSet<&str> = HashSet::new();
        while let Some((chain, from)) = open.pop() {
            if seen.insert(chain) {
                reached.entry(chain.to_owned()).or_default().push((hook, from));
                let rules = of_chain.get(chain).into_iter().flatten();
                open.extend(rules.flat_map(|rule| targets(rule)).map(|(next, _)| (next, from)));
            }
        }
    }
    let mut faults = Vec::new();
    for rule in &policy.rules {
        match &rule.place {
            Place::Hook(hook) => check(rule, *hook, None, &mut faults),
            Place::Chain(name) => {
                for (hook, from) in reached.get(name).into_iter().flatten() {
                    check(rule, *hook, Some((name, *from)), &mut faults);
                }
            }
        }
    }
    compiler.faults.extend(faults);
    depths(compiler, &of_chain);
}

fn targets(rule: &policy::Rule) -> impl Iterator<Item = (&str, Option<Position>)> {
    rule.actions.iter().filter_map(|action| match &action.kind {
        ActionKind::Jump(chain) | ActionKind::GoTo(chain) => Some((chain.as_str(), action.at)),
        _ => None,
    })
}

fn check(rule: &policy::Rule, hook: Hook, through: Option<(&str, Position)>, faults: &mut Vec<Fault>) {
    let function = rule.place.function();
    let whence = through.map_or_else(String::new, |(chain, from)| {
        format!(" ({} leads to chain `{chain}` on line {})", hook.name(), from.line)
    });
    for action in &rule.actions {
        let name = action.kind.name();
        let allowed: Vec<&str> = Hook::ALL.iter().filter(|h| allowed(&action.kind, **h)).map(|h| h.name()).collect();
        if !allowed.contains(&hook.name()) {
            let only = list(allowed).replace(" or ", " and ");
            let message = format!("`{name}` is not possible in {}, only in {only}{whence}", hook.name());
            faults.push(Fault::new(action.at.unwrap_or(rule.at), function, message));
        }
    }
    for m in rule.matches.iter().filter(|m| !m.key.known_in(hook)) {
        let message = format!("{}: not known in {}{whence}", m.key.name(), hook.name());
        faults.push(Fault::new(rule.at, function, message));
    }
}

/// What the program allows, asked before names are resolved.
fn allowed(kind: &ActionKind, hook: Hook) -> bool {
    let action = match kind {
        ActionKind::Accept => Action::Accept,
        ActionKind::Drop => Action::Drop,
        ActionKind::Reject(kind) => Action::Reject(*kind),
        ActionKind::Notrack => Action::Notrack,
        ActionKind::Snat(_) | ActionKind::Masquerade { .. } => Action::Masquerade { ports: None, random: false },
        ActionKind::Dnat(_) | ActionKind::Redirect(_) => Action::Dnat(redirect(None)),
        ActionKind::Netmap(prefix) => Action::Netmap(*prefix),
        ActionKind::Jump(_) | ActionKind::GoTo(_) => Action::Jump(0),
        ActionKind::Return => Action::Return,
        ActionKind::Mark(mark) => Action::Mark(*mark),
        ActionKind::ConnMark(mark) => Action::ConnMark(*mark),
        ActionKind::Count(_) => Action::Count(0),
        ActionKind::Continue => Action::Continue,
    };
    action.allowed_in(hook)
}

/// Finds chains that lead back to themselves, and jumps that are nested too deep.
fn depths(compiler: &mut Compiler, of_chain: &HashMap<&str, Vec<&policy::Rule>>) {
    let policy = compiler.policy;
    let mut walk = Walk { of_chain, known: HashMap::new(), faults: Vec::new() };
    for chain in &policy.chains {
        if !walk.known.contains_key(chain.name.as_str()) {
            walk.depth(&chain.name, 1);
        }
    }
    let too_deep = |name: &str| walk.known.get(name).copied().flatten().is_some_and(|depth| depth > limits::JUMPS);
    if let Some(chain) = policy.chains.iter().find(|chain| too_deep(&chain.name)) {
        walk.faults.push(Fault::new(chain.at, "chain", too_many_jumps(&chain.name)));
    }
    compiler.faults.extend(walk.faults);
}

fn too_many_jumps(chain: &str) -> String {
    format!("`{chain}`: jumps are nested deeper than {}", limits::JUMPS)
}

struct Walk<'w, 'p> {
    of_chain: &'w HashMap<&'p str, Vec<&'p policy::Rule>>,
    /// Chains in a row from each one on; `None` while that is being found out.
    known: HashMap<&'p str, Option<usize>>,
    faults: Vec<Fault>,
}

impl<'p> Walk<'_, 'p> {
    /// `level` chains are under way, this one included: that bounds the recursion.
    fn depth(&mut self, chain: &'p str, level: usize) -> usize {
        self.known.insert(chain, None);
        let mut deepest = 0;
        for rule in self.of_chain.get(chain).into_iter().flatten() {
            for (next, at) in targets(rule) {
                let at = at.unwrap_or(rule.at);
                let below = match self.known.get(next) {
                    Some(Some(depth)) => *depth,
                    Some(None) => {
                        self.faults.push(Fault::new(at, "jump", format!("chain: `{next}` leads back to itself")));
                        0
                    }
                    None if level >= limits::JUMPS => {
                        self.faults.push(Fault::new(at, "jump", too_many_jumps(next)));
                        0
                    }
                    None => self.depth(next, level + 1),
                };
                deepest = deepest.max(below);
            }
        }
        self.known.insert(chain, Some(deepest + 1));
        deepest + 1
    }
}

//! The plain walk over a program, rule by rule: what the compiled rules have to agree with. And random programs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use erhu_planes::program::{
    Action, AddressRange, Chain, DestinationChoice, Dnat, Encapsulation, Hook, Interface, Match, MatchKey,
    PolicyVerdict, PortRange, Position, Prefix, Program, RejectKind, Rule, Snat, SourceChoice, Zone, states,
};
use erhu_rules::{Effects, Facts, Keys, Packet4, Rules, Verdict};

/// What a walk shows to the outside.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub ending: Ending,
    pub mark: u32,
    pub connmark: Option<u32>,
    pub notrack: bool,
    pub packet_kind: bool,
    pub counted: Vec<u16>,
    pub decided_by: Option<Position>,
}

/// A verdict with its translation spelt out.
#[derive(Debug, PartialEq)]
pub enum Ending {
    Verdict(Verdict),
    Snat(Snat),
    Dnat(Dnat),
    Netmap(Prefix),
}

/// Runs the compiled rules.
pub fn compiled(rules: &Rules, hook: Hook, facts: &Facts) -> Outcome {
    let (mut effects, mut counted) = (Effects::default(), Vec::new());
    let verdict = rules.run(hook, facts, &mut effects, &mut |counter| counted.push(counter));
    if let Some(mut keys) = keys(facts) {
        let (mut others, mut counts) = (Effects::default(), Vec::new());
        let same = rules.run_keys(hook, &mut keys, &mut others, &mut |counter| counts.push(counter));
        assert_eq!((same, others, &counts), (verdict, effects, &counted), "{facts:?}");
    }
    Outcome {
        ending: match verdict {
            Verdict::Snat { action } => Ending::Snat(rules.snat(action).clone()),
            Verdict::Dnat { action } => Ending::Dnat(rules.dnat(action).clone()),
            Verdict::Netmap { prefix } => Ending::Netmap(*rules.netmap(prefix)),
            other => Ending::Verdict(other),
        },
        mark: effects.mark,
        connmark: effects.connmark,
        notrack: effects.notrack,
        packet_kind: effects.packet_kind,
        counted,
        decided_by: effects.decided_by.map(|rule| rules.place(rule)),
    }
}

/// The same facts before routing, where they are those of a sound IPv4 packet.
pub fn packet(facts: &Facts) -> Option<Packet4> {
    let Facts { ingress: Some(ingress), zone: Some(zone), src: IpAddr::V4(src), dst: IpAddr::V4(dst), .. } = *facts
    else {
        return None;
    };
    let ports = match (facts.proto, facts.icmp) {
        (1, Some((kind, code))) if !facts.has_ports => (0, u16::from(kind) << 8 | u16::from(code)),
        (6 | 17, None) if facts.has_ports => (facts.sport, facts.dport),
        _ => return None,
    };
    if facts.status != 0 || facts.is_reply {
        return None;
    }
    let addresses = (src.into(), dst.into());
    let (proto, state, mark) = (facts.proto, facts.state, facts.mark);
    Some(Packet4 { ingress, zone, addresses, proto, ports, state, mark })
}

/// The same as numbers.
fn keys(facts: &Facts) -> Option<Keys> {
    let mut keys = Keys::of(&packet(facts)?);
    match (facts.egress, facts.egress_zone) {
        (Some(egress), Some(zone)) => keys.set_egress(egress, zone),
        (None, None) => {}
        _ => return None,
    }
    Some(keys)
}

/// Runs the program itself.
pub fn plain(program: &Program, hook: Hook, facts: &Facts) -> Outcome {
    let ending = Ending::Verdict(Verdict::Accept);
    let outcome = Outcome {
        ending,
        mark: facts.mark,
        connmark: None,
        notrack: false,
        packet_kind: false,
        counted: Vec::new(),
        decided_by: None,
    };
    let mut walk = Walk { program, facts, outcome };
    let hook = &program.hooks[hook.index()];
    if !walk.list(&hook.rules) {
        let own = hook.zone_policies.iter().find(|(zone, _)| Some(*zone) == facts.zone);
        walk.outcome.ending = Ending::Verdict(match own.map_or(hook.policy, |(_, policy)| *policy) {
            PolicyVerdict::Accept => Verdict::Accept,
            PolicyVerdict::Drop => Verdict::DropByPolicy,
            PolicyVerdict::Reject => Verdict::RejectByPolicy(RejectKind::Default),
        });
    }
    walk.outcome
}

struct Walk<'a> {
    program: &'a Program,
    facts: &'a Facts,
    outcome: Outcome,
}

impl Walk<'_> {
    /// Whether a rule of the list was final.
    fn list(&mut self, rules: &[Rule]) -> bool {
        'rules: for rule in rules {
            if !rule.matches.iter().all(|m| holds(m, self.facts, self.outcome.mark)) {
                continue;
            }
            for action in &rule.actions {
                let verdict = match action {
                    Action::Accept => Ending::Verdict(Verdict::Accept),
                    Action::Drop => Ending::Verdict(Verdict::DropByRule),
                    Action::Reject(kind) => Ending::Verdict(Verdict::RejectByRule(*kind)),
                    Action::Snat(snat) => Ending::Snat(snat.clone()),
                    Action::Dnat(dnat) => Ending::Dnat(dnat.clone()),
                    Action::Netmap(prefix) => Ending::Netmap(*prefix),
                    Action::ConnMark(mark) => {
                        self.outcome.connmark = Some(*mark);
                        continue;
                    }
                    Action::Masquerade { ports, random } => {
                        Ending::Verdict(Verdict::Masquerade { ports: *ports, random: *random })
                    }
                    Action::Notrack => {
                        self.outcome.notrack = true;
                        continue;
                    }
                    Action::Mark(mark) => {
                        self.outcome.mark = *mark;
                        continue;
                    }
                    Action::Count(counter) => {
                        self.outcome.packet_kind = true;
                        self.outcome.counted.push(*counter);
                        continue;
                    }
                    Action::Jump(chain) => {
                        if self.list(&self.program.chains[usize::from(*chain)].rules) {
                            return true;
                        }
                        continue;
                    }
                    Action::GoTo(chain) => {
                        return self.list(&self.program.chains[usize::from(*chain)].rules);
                    }
                    Action::Return => return false,
                    Action::Continue => continue 'rules,
                };
                self.outcome.ending = verdict;
                self.outcome.decided_by = Some(rule.at);
                return true;
            }
        }
        false
    }
}

fn holds(m: &Match, facts: &Facts, mark: u32) -> bool {
    let listed = |values: &[u16], value: Option<u16>| value.is_some_and(|value| values.contains(&value));
    let in_ranges = |ranges: &[PortRange], value: u16| ranges.iter().any(|r| r.first <= value && value <= r.last);
    let has_ports = facts.has_ports && [6, 17, 33, 132, 136].contains(&facts.proto);
    let found = match &m.key {
        MatchKey::Ingress(v) => listed(v, facts.ingress),
        MatchKey::Egress(v) => listed(v, facts.egress),
        MatchKey::Zone(v) => listed(v, facts.zone),
        MatchKey::EgressZone(v) => listed(v, facts.egress_zone),
        MatchKey::Source(v) => v.iter().any(|r| r.contains(facts.src)),
        MatchKey::Destination(v) => v.iter().any(|r| r.contains(facts.dst)),
        MatchKey::Protocol(v) => v.contains(&facts.proto),
        MatchKey::SourcePort(_) | MatchKey::DestinationPort(_) if !has_ports => return false,
        MatchKey::SourcePort(v) => in_ranges(v, facts.sport),
        MatchKey::DestinationPort(v) => in_ranges(v, facts.dport),
        MatchKey::IcmpType(v) => match facts.icmp {
            Some((kind, _)) => in_ranges(v, kind.into()),
            None => return false,
        },
        MatchKey::IcmpCode(v) => match facts.icmp {
            Some((_, code)) => in_ranges(v, code.into()),
            None => return false,
        },
        MatchKey::State(bits) => facts.state & bits != 0,
        MatchKey::Status(_) | MatchKey::Direction(_)
            if [states::INVALID, states::UNTRACKED].contains(&facts.state) =>
        {
            return false;
        }
        MatchKey::Status(bits) => facts.status & bits != 0,
        MatchKey::Direction(bits) => bits & if facts.is_reply { 2 } else { 1 } != 0,
        MatchKey::Mark(v) => v.iter().any(|(value, mask)| mark & mask == *value),
    };
    found != m.negated
}

/// Random numbers from a seed (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// Below a bound.
    pub fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.next() % u64::from(bound)).unwrap()
    }

    pub fn below16(&mut self, bound: u16) -> u16 {
        u16::try_from(self.below(bound.into())).unwrap()
    }

    pub fn percent(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(u32::try_from(of.len()).unwrap()) as usize]
    }
}

/// Interfaces and zones of [`base`].
pub const INTERFACES: u16 = 6;
const COUNTERS: u16 = 50;
const PROTOCOLS: [u8; 9] = [1, 6, 17, 33, 47, 58, 132, 136, 255];

/// A program with interfaces, zones and counters, without rules.
pub fn base() -> Program {
    let mut program = Program::empty();
    for id in 1..INTERFACES {
        program.zones.push(Zone { id, name: format!("z{id}"), ..program.zones[0].clone() });
    }
    for i in 0..INTERFACES {
        program.interfaces.push(Interface {
            name: format!("i{i}"),
            port: "lan".into(),
            encapsulation: Encapsulation::Vlan(100 + i),
            zone: i,
            addresses: Vec::new(),
            mtu: 1500,
            mac: None,
            proxy_arp: false,
        });
    }
    program.counters = (0..COUNTERS).map(|c| format!("c{c}")).collect();
    program
}

/// How many rules to make, and how far apart their values lie.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub rules: u32,
    pub chains: u16,
    pub chain_rules: u32,
    /// Distinct hosts and ports.
    pub spread: u16,
    /// Percent of rules that are final.
    pub finals: u32,
    /// How many choices of fields the rules are about, the first by far the most frequent; 0: each rule its own.
    pub kinds: u32,
}

/// A valid program whose rules are all in one hook, or in chains below it.
pub fn random_program(random: &mut Random, hook: Hook, shape: Shape) -> Program {
    let mut program = base();
    let mut line = 0;
    let fields = |random: &mut Random| {
        let count = random.pick(&[0, 1, 1, 1, 2, 2, 2, 3, 4]);
        (0..count).map(|_| random.below(FIELDS)).collect::<Vec<_>>()
    };
    let kinds: Vec<Vec<u32>> = (0..shape.kinds).map(|_| fields(random)).collect();
    let fields_of_rule = |random: &mut Random| match &kinds[..] {
        [] => fields(random),
        [first, ..] if random.percent(80) => first.clone(),
        kinds => kinds[random.below(shape.kinds) as usize].clone(),
    };
    let list = |random: &mut Random, count: u32, chains: std::ops::Range<u16>, line: &mut u32| {
        (0..count)
            .map(|_| {
                *line += 1;
                Rule {
                    at: Position { source: 0, line: *line, column: 1 },
                    matches: fields_of_rule(random)
                        .into_iter()
                        .map(|field| random_match(random, shape, field))
                        .collect(),
                    actions: random_actions(random, hook, shape, chains.clone()),
                }
            })
            .collect::<Vec<_>>()
    };
    program.hooks[hook.index()].rules = list(random, shape.rules, 0..shape.chains, &mut line);
    for chain in 0..shape.chains {
        let rules = list(random, shape.chain_rules, chain + 1..shape.chains, &mut line);
        program.chains.push(Chain { name: format!("chain{chain}"), rules });
    }
    let policies = [PolicyVerdict::Accept, PolicyVerdict::Drop, PolicyVerdict::Reject];
    program.hooks[hook.index()].policy = random.pick(&policies);
    for zone in 0..INTERFACES {
        if random.percent(30) {
            program.hooks[hook.index()].zone_policies.push((zone, random.pick(&policies)));
        }
    }
    // Chains can multiply beyond what a program may be: fewer of their jumps, then.
    for chain in 0..program.chains.len() {
        match program.validate() {
            Ok(()) => break,
            Err(e) if e.to_string().contains("could come by more than") => {
                for rule in &mut program.chains[chain].rules {
                    rule.actions.retain(|a| !matches!(a, Action::Jump(_) | Action::GoTo(_)));
                }
            }
            Err(e) => panic!("{e}"),
        }
    }
    program.validate().unwrap();
    program
}

fn random_actions(random: &mut Random, hook: Hook, shape: Shape, chains: std::ops::Range<u16>) -> Vec<Action> {
    let mut actions = Vec::new();
    for _ in 0..random.pick(&[0, 1, 1, 1, 2, 3]) {
        actions.push(match random.below(100) {
            0..20 if !chains.is_empty() => {
                let chain = chains.start + random.below16(chains.end - chains.start);
                if random.percent(75) { Action::Jump(chain) } else { Action::GoTo(chain) }
            }
            20..25 if random.percent(shape.finals) => Action::Return,
            25..50 => Action::Mark(random.pick(&[0, 1, 2, 0x10, 0x12, 0xffff_ffff])),
            50..55 => Action::Continue,
            55..60 if hook == Hook::Raw => Action::Notrack,
            55..60 if hook != Hook::Output => Action::ConnMark(random.below(3)),
            _ => Action::Count(random.below16(COUNTERS)),
        });
    }
    if random.percent(shape.finals) {
        let ports = random.percent(50).then_some(PortRange { first: 1, last: random.below16(1000) + 1 });
        actions.push(match hook {
            Hook::Postrouting => match random.below(4) {
                0 => Action::Accept,
                1 => Action::Netmap(Prefix::new(v4(random.below(9)), 28).unwrap()),
                2 => Action::Masquerade { ports, random: random.percent(50) },
                _ => {
                    let to = AddressRange { first: v4(random.below(9)), last: v4(random.below(9) + 10) };
                    let source = SourceChoice::To(vec![to]);
                    Action::Snat(Snat { source, ports, random: random.percent(50), persistent: false })
                }
            },
            Hook::Prerouting if random.percent(40) => {
                let to = AddressRange { first: v4(random.below(9)), last: v4(random.below(9) + 10) };
                let destination =
                    if random.percent(50) { DestinationChoice::Ingress } else { DestinationChoice::To(vec![to]) };
                let zone = random.percent(50).then_some(1);
                Action::Dnat(Dnat { destination, ports, zone, random: random.percent(50), persistent: false })
            }
            Hook::Raw | Hook::Prerouting if random.percent(50) => Action::Accept,
            Hook::Raw | Hook::Prerouting => Action::Drop,
            _ => match random.below(3) {
                0 => Action::Accept,
                1 => Action::Drop,
                _ => Action::Reject(random.pick(&[RejectKind::Default, RejectKind::Admin, RejectKind::Reset])),
            },
        });
    }
    actions
}

fn v4(host: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + host).into()
}

fn random_address(random: &mut Random, spread: u16) -> IpAddr {
    let host = random.below16(spread);
    match random.below(20) {
        0 => Ipv4Addr::UNSPECIFIED.into(),
        1 => Ipv4Addr::BROADCAST.into(),
        2 => Ipv6Addr::UNSPECIFIED.into(),
        3 => Ipv6Addr::from(u128::MAX).into(),
        4..9 => Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(host)).into(),
        _ => v4(host.into()),
    }
}

fn random_range(random: &mut Random, spread: u16) -> AddressRange {
    let address = random_address(random, spread);
    let bits = random.pick(&[0, 0, 0, 0, 1, 2, 3, 8, 31, 32]);
    match address {
        IpAddr::V4(a) => {
            let host = u32::MAX.checked_shr(32 - bits).unwrap_or(0);
            let a = u32::from(a);
            let plus = if random.percent(20) { 1 } else { 0 };
            let last = (a | host).saturating_add(plus);
            AddressRange { first: Ipv4Addr::from(a & !host).into(), last: Ipv4Addr::from(last).into() }
        }
        IpAddr::V6(a) => {
            let host = u128::MAX.checked_shr(128 - bits * 4).unwrap_or(0);
            let a = u128::from(a);
            AddressRange { first: Ipv6Addr::from(a & !host).into(), last: Ipv6Addr::from(a | host).into() }
        }
    }
}

fn random_port(random: &mut Random, spread: u16) -> u16 {
    match random.below(12) {
        0 => 0,
        1 => u16::MAX,
        _ => 100 + random.below16(spread),
    }
}

/// Numbers that [`random_match`] takes for a field.
const FIELDS: u32 = 18;

fn random_match(random: &mut Random, shape: Shape, field: u32) -> Match {
    let count = random.pick(&[1, 1, 1, 2, 5]);
    let spread = shape.spread;
    let ports = |random: &mut Random| {
        let range = |random: &mut Random| {
            let (a, b) = (random_port(random, spread), random_port(random, spread));
            if random.percent(70) {
                PortRange { first: a, last: a }
            } else {
                PortRange { first: a.min(b), last: a.max(b) }
            }
        };
        (0..count).map(|_| range(random)).collect::<Vec<_>>()
    };
    let small = |random: &mut Random, most: u16| {
        let range = |random: &mut Random| {
            let (a, b) = (random.pick(&[0, 3, 8, 11, most]), random.pick(&[0, 3, 8, 11, most]));
            PortRange { first: a.min(b), last: a.max(b) }
        };
        (0..count).map(|_| range(random)).collect::<Vec<_>>()
    };
    let numbers = |random: &mut Random| (0..count).map(|_| random.below16(INTERFACES)).collect::<Vec<_>>();
    let ranges = |random: &mut Random| (0..count).map(|_| random_range(random, spread)).collect::<Vec<_>>();
    let key = match field {
        0 => MatchKey::Ingress(numbers(random)),
        1 => MatchKey::Egress(numbers(random)),
        2 => MatchKey::Zone(numbers(random)),
        3 => MatchKey::EgressZone(numbers(random)),
        4..6 => MatchKey::Source(ranges(random)),
        6..8 => MatchKey::Destination(ranges(random)),
        8 => MatchKey::Protocol((0..count).map(|_| random.pick(&PROTOCOLS)).collect()),
        9 => MatchKey::SourcePort(ports(random)),
        10..12 => MatchKey::DestinationPort(ports(random)),
        12 => MatchKey::IcmpType(small(random, 255)),
        13 => MatchKey::IcmpCode(small(random, 255)),
        16 => MatchKey::Status(random.pick(&[1, 2, 3, 8, 10])),
        17 => MatchKey::Direction(random.pick(&[1, 2, 3])),
        14 => MatchKey::State(u8::try_from(random.below(u32::from(states::ALL)) + 1).unwrap()),
        _ => {
            let masks = [0xffff_ffff, 0xffff_ffff, 0xf0, 0xffff_fff0, 0xffff_0001, 0x11, 0];
            MatchKey::Mark((0..count).map(|_| (random.pick(&[0, 1, 2, 0x10, 0x12]), random.pick(&masks))).collect())
        }
    };
    Match { negated: random.percent(15), key }
}

/// A packet among the values of a shape's rules.
pub fn random_facts(random: &mut Random, spread: u16) -> Facts {
    let optional = |random: &mut Random| random.percent(85).then(|| random.below16(INTERFACES));
    let proto = random.pick(&PROTOCOLS);
    Facts {
        ingress: optional(random),
        egress: optional(random),
        zone: optional(random),
        egress_zone: optional(random),
        src: random_address(random, spread),
        dst: random_address(random, spread),
        proto,
        sport: random_port(random, spread),
        dport: random_port(random, spread),
        has_ports: random.percent(90),
        icmp: (proto == 1 || proto == 58).then(|| (random.pick(&[0, 3, 8, 9, 255]), random.pick(&[0, 3, 4, 255]))),
        state: 1 << random.below(5),
        status: random.pick(&[0, 1, 2, 3, 8, 15]),
        is_reply: random.percent(50),
        mark: random.pick(&[0, 1, 2, 0x10, 0x12, 0xffff_ffff]),
        bytes: 60,
    }
}

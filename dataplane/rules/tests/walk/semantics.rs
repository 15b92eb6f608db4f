//! What a walk means, case by case.

use std::net::IpAddr;

use erhu_planes::program::{
    Action, AddressRange, Chain, Hook, Match, MatchKey, PolicyVerdict, Pool, PortRange, Position, Program,
    RejectKind, Rule, Snat, SourceChoice, states,
};
use erhu_rules::{Facts, Packet4, Rules, Verdict};

use crate::support::{Ending, Outcome, base, compiled};

fn facts() -> Facts {
    Facts {
        ingress: Some(1),
        egress: Some(2),
        zone: Some(1),
        egress_zone: Some(2),
        src: address("10.0.0.5"),
        dst: address("192.0.2.1"),
        proto: 6,
        sport: 40_000,
        dport: 443,
        has_ports: true,
        icmp: None,
        state: states::NEW,
        status: 0,
        is_reply: false,
        mark: 0,
        bytes: 60,
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn is(key: MatchKey) -> Match {
    Match { negated: false, key }
}

fn not(key: MatchKey) -> Match {
    Match { negated: true, key }
}

fn port(first: u16, last: u16) -> MatchKey {
    MatchKey::DestinationPort(vec![PortRange { first, last }])
}

fn rule(matches: &[Match], actions: &[Action]) -> Rule {
    Rule { at: Position::default(), matches: matches.to_vec(), actions: actions.to_vec() }
}

/// A program with rules in one hook and in chains. Each rule's line is its position in its list, from 1, and its
/// column the list: 0 for the hook, else the chain from 1.
fn program(hook: Hook, rules: Vec<Rule>, chains: Vec<Vec<Rule>>) -> Program {
    let number = |mut rules: Vec<Rule>, column| {
        (1..).zip(&mut rules).for_each(|(line, rule)| rule.at = Position { source: 0, line, column });
        rules
    };
    let mut program = base();
    program.hooks[hook.index()].rules = number(rules, 0);
    for (column, rules) in (1..).zip(chains) {
        program.chains.push(Chain { name: format!("chain{column}"), rules: number(rules, column) });
    }
    program.validate().unwrap();
    program
}

fn forward(rules: Vec<Rule>, chains: Vec<Vec<Rule>>) -> Rules {
    Rules::compile(&program(Hook::Forward, rules, chains))
}

fn run(rules: &Rules, facts: &Facts) -> Outcome {
    compiled(rules, Hook::Forward, facts)
}

/// Whether a rule with these matches decides about the packet.
fn matches(of: &[Match], facts: &Facts) -> bool {
    run(&forward(vec![rule(of, &[Action::Drop])], vec![]), facts).ending == Ending::Verdict(Verdict::DropByRule)
}

fn decided(outcome: &Outcome) -> Option<(u32, u32)> {
    outcome.decided_by.map(|at| (at.line, at.column))
}

#[test]
fn the_first_final_rule_that_matches_decides_and_is_named() {
    let rules = forward(
        vec![
            rule(&[is(port(80, 80))], &[Action::Accept]),
            rule(&[is(MatchKey::Protocol(vec![6]))], &[Action::Reject(RejectKind::Admin)]),
            rule(&[], &[Action::Drop]),
        ],
        vec![],
    );
    let outcome = run(&rules, &facts());
    assert_eq!(outcome.ending, Ending::Verdict(Verdict::RejectByRule(RejectKind::Admin)));
    assert_eq!(decided(&outcome), Some((2, 0)));
    assert_eq!(run(&rules, &Facts { proto: 47, ..facts() }).ending, Ending::Verdict(Verdict::DropByRule));
    assert_eq!(run(&rules, &Facts { dport: 80, ..facts() }).ending, Ending::Verdict(Verdict::Accept));
}

#[test]
fn where_no_rule_is_final_the_policy_of_the_zone_decides_before_that_of_the_hook() {
    let mut program = program(Hook::Forward, vec![rule(&[], &[Action::Count(3)])], vec![]);
    let hook = &mut program.hooks[Hook::Forward.index()];
    hook.policy = PolicyVerdict::Drop;
    hook.zone_policies = vec![(1, PolicyVerdict::Reject), (4, PolicyVerdict::Accept)];
    let rules = Rules::compile(&program);
    for (zone, verdict) in [
        (Some(1), Verdict::RejectByPolicy(RejectKind::Default)),
        (Some(4), Verdict::Accept),
        (Some(2), Verdict::DropByPolicy),
        (Some(5), Verdict::DropByPolicy),
        (None, Verdict::DropByPolicy),
    ] {
        let outcome = run(&rules, &Facts { zone, ..facts() });
        assert_eq!((outcome.ending, outcome.decided_by), (Ending::Verdict(verdict), None), "{zone:?}");
    }
}

#[test]
fn packets_before_tracking_have_no_state_and_match_what_wants_none() {
    let state = |bits| is(MatchKey::State(bits));
    let raw = Facts { state: 0, ..facts() };
    assert!(matches(&[is(port(443, 443))], &raw));
    assert!(!matches(&[state(states::NEW)], &raw));
    assert!(matches(&[not(state(states::NEW).key)], &raw));
}

#[test]
fn what_is_said_to_be_accepted_in_a_state_is_what_no_earlier_rule_can_do_anything_to() {
    let state = |bits| is(MatchKey::State(bits));
    let (established, related, new) = (states::ESTABLISHED, states::RELATED, states::NEW);
    let customary = rule(&[state(established | related)], &[Action::Accept]);
    let accepts = |rules: Vec<Rule>, wanted: u8| {
        forward(rules, vec![vec![rule(&[], &[Action::Drop])]]).accepts_all(Hook::Forward, wanted)
    };
    let before = |first: Rule| vec![first, customary.clone(), rule(&[], &[Action::Drop])];
    assert!(accepts(vec![customary.clone(), rule(&[], &[Action::Drop])], established));
    assert!(!accepts(vec![customary.clone(), rule(&[], &[Action::Drop])], new));
    // Rules before it that are about other states change nothing, others do.
    assert!(accepts(before(rule(&[state(new), is(port(80, 80))], &[Action::Drop])), established));
    assert!(!accepts(before(rule(&[is(port(80, 80))], &[Action::Drop])), established));
    assert!(!accepts(before(rule(&[], &[Action::Count(3)])), established));
    assert!(!accepts(before(rule(&[not(state(new).key)], &[Action::Jump(0)])), established));
    assert!(accepts(before(rule(&[not(state(established).key)], &[Action::Drop])), established));
    // The rule itself must neither want nor do anything else.
    assert!(!accepts(vec![rule(&[state(established), is(port(1, 9))], &[Action::Accept])], established));
    assert!(!accepts(vec![rule(&[state(established)], &[Action::Count(3), Action::Accept])], established));
    assert!(!accepts(vec![rule(&[state(established)], &[Action::Drop])], established));
    // A hook without rules whose policy is to accept accepts everything.
    assert!(accepts(vec![], new));
    assert!(!accepts(vec![rule(&[], &[Action::Mark(1)])], new));
}

#[test]
fn a_jump_comes_back_to_the_next_action_and_a_go_to_to_whoever_called_its_chain() {
    let count = |c| Action::Count(c);
    let rules = forward(
        vec![
            rule(&[], &[count(1), Action::Jump(0), count(2)]),
            rule(&[], &[Action::GoTo(1), count(3)]),
            rule(&[], &[count(4), Action::Drop]),
        ],
        vec![
            vec![
                rule(&[], &[count(10), Action::GoTo(1)]),
                rule(&[], &[count(11)]), // never: the chain above ended this one
            ],
            vec![rule(&[], &[count(20), Action::Continue, count(21)]), rule(&[], &[Action::Return, Action::Drop])],
        ],
    );
    let outcome = run(&rules, &facts());
    assert_eq!(outcome.counted, [1, 10, 20, 2, 20]);
    // The go_to at the hook's top ended the hook: its policy accepts.
    assert_eq!((outcome.ending, outcome.decided_by), (Ending::Verdict(Verdict::Accept), None));
}

#[test]
fn return_at_the_top_leaves_it_to_the_policy() {
    let rules = forward(vec![rule(&[], &[Action::Return]), rule(&[], &[Action::Drop])], vec![]);
    assert_eq!(run(&rules, &facts()).ending, Ending::Verdict(Verdict::Accept));
}

#[test]
fn a_verdict_in_a_chain_is_final_for_the_hook_and_names_the_rule_in_the_chain() {
    let rules = forward(
        vec![rule(&[], &[Action::Jump(0)]), rule(&[], &[Action::Accept])],
        vec![vec![rule(&[is(port(80, 80))], &[Action::Accept]), rule(&[], &[Action::Drop])]],
    );
    let outcome = run(&rules, &facts());
    assert_eq!(outcome.ending, Ending::Verdict(Verdict::DropByRule));
    assert_eq!(decided(&outcome), Some((2, 1)));
}

#[test]
fn a_mark_is_seen_by_later_rules_and_by_those_after_a_chain_that_set_it() {
    let marked = |value, mask| is(MatchKey::Mark(vec![(value, mask)]));
    // Long enough for an index, so that a new mark has to be looked up anew.
    let mut list: Vec<Rule> = (100..160).map(|m| rule(&[marked(m, u32::MAX)], &[Action::Count(1)])).collect();
    list.insert(0, rule(&[marked(0, u32::MAX)], &[Action::Jump(0)]));
    list.insert(30, rule(&[marked(110, u32::MAX)], &[Action::Mark(0x2f)]));
    list.push(rule(&[marked(140, u32::MAX)], &[Action::Count(2)]));
    list.push(rule(&[marked(0x20, 0xf0)], &[Action::Count(3), Action::Mark(7)]));
    list.push(rule(&[not(MatchKey::Mark(vec![(7, u32::MAX)]))], &[Action::Drop]));
    let rules = forward(list, vec![vec![rule(&[], &[Action::Mark(110)])]]);
    let outcome = run(&rules, &facts());
    assert_eq!((outcome.counted, outcome.mark), (vec![1, 3], 7));
    assert_eq!(outcome.ending, Ending::Verdict(Verdict::Accept));
}

#[test]
fn a_mark_with_bits_outside_its_mask_matches_nothing() {
    let key = MatchKey::Mark(vec![(0x11, 0xf0)]);
    assert!(!matches(&[is(key.clone())], &Facts { mark: 0x11, ..facts() }));
    assert!(matches(&[not(key)], &Facts { mark: 0x11, ..facts() }));
}

#[test]
fn ports_match_only_protocols_that_have_them_negated_or_not() {
    let other = port(1, 2);
    for proto in [6, 17, 132, 33, 136] {
        assert!(matches(&[is(port(443, 443))], &Facts { proto, ..facts() }), "{proto}");
        assert!(matches(&[not(other.clone())], &Facts { proto, ..facts() }), "{proto}");
    }
    let icmp = Facts { proto: 1, icmp: Some((8, 0)), ..facts() };
    for facts in [icmp, Facts { proto: 47, ..facts() }, Facts { has_ports: false, ..facts() }] {
        assert!(!matches(&[is(port(0, u16::MAX))], &facts));
        assert!(!matches(&[not(other.clone())], &facts));
    }
}

#[test]
fn icmp_types_match_only_icmp_negated_or_not() {
    let kind = |first, last| MatchKey::IcmpType(vec![PortRange { first, last }]);
    let code = |first, last| MatchKey::IcmpCode(vec![PortRange { first, last }]);
    let unreachable = Facts { proto: 1, icmp: Some((3, 4)), ..facts() };
    assert!(matches(&[is(kind(3, 3)), is(code(4, 4))], &unreachable));
    assert!(!matches(&[is(kind(3, 3)), not(code(4, 4))], &unreachable));
    assert!(matches(&[not(kind(8, 8)), not(code(0, 3))], &unreachable));
    for never in [is(kind(0, 255)), not(kind(8, 8)), is(code(0, 255)), not(code(1, 1))] {
        assert!(!matches(&[never], &facts()));
    }
}

#[test]
fn an_interface_or_zone_that_a_packet_does_not_have_is_none_of_those_named() {
    let without = Facts { ingress: None, egress: None, zone: None, egress_zone: None, ..facts() };
    type Named = fn(Vec<u16>) -> MatchKey;
    let keys: [Named; 4] = [MatchKey::Ingress, MatchKey::Egress, MatchKey::Zone, MatchKey::EgressZone];
    for key in keys {
        assert!(!matches(&[is(key(vec![0, 1, 2]))], &without));
        assert!(matches(&[not(key(vec![0, 1, 2]))], &without));
        assert!(matches(&[is(key(vec![1, 2]))], &facts()));
        assert!(!matches(&[not(key(vec![1, 2]))], &facts()));
    }
}

#[test]
fn an_address_of_the_other_family_is_in_no_range_and_so_outside_every_one() {
    let v6 = Facts { src: address("2001:db8::5"), dst: address("2001:db8::1"), ..facts() };
    let ipv4 = vec![AddressRange { first: address("0.0.0.0"), last: address("255.255.255.255") }];
    let ipv6 = vec![AddressRange { first: address("::"), last: address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff") }];
    type Address = fn(Vec<AddressRange>) -> MatchKey;
    let keys: [Address; 2] = [MatchKey::Source, MatchKey::Destination];
    for key in keys {
        assert!(matches(&[is(key(ipv4.clone()))], &facts()) && !matches(&[is(key(ipv4.clone()))], &v6));
        assert!(matches(&[is(key(ipv6.clone()))], &v6) && !matches(&[is(key(ipv6.clone()))], &facts()));
        assert!(matches(&[not(key(ipv6.clone()))], &facts()) && !matches(&[not(key(ipv6.clone()))], &v6));
        assert!(matches(&[not(key(ipv4.clone()))], &v6) && !matches(&[not(key(ipv4.clone()))], &facts()));
    }
}

#[test]
fn two_matches_about_one_field_must_both_hold() {
    let both = [is(port(100, 500)), not(port(443, 443))];
    assert!(matches(&both, &Facts { dport: 442, ..facts() }));
    assert!(!matches(&both, &facts()) && !matches(&both, &Facts { dport: 99, ..facts() }));
}

#[test]
fn a_direction_meets_the_rules_again_only_if_a_count_was_run() {
    let rules = forward(
        vec![
            rule(&[is(port(80, 80))], &[Action::Count(1)]),
            rule(&[is(port(443, 443))], &[Action::Accept]),
            rule(&[], &[Action::Count(2)]),
        ],
        vec![],
    );
    assert!(!run(&rules, &facts()).packet_kind);
    assert!(run(&rules, &Facts { dport: 80, ..facts() }).packet_kind);
    assert_eq!(run(&rules, &Facts { dport: 81, ..facts() }).counted, [2]);
}

#[test]
fn more_counters_than_any_array_would_hold_are_all_reported() {
    let actions: Vec<Action> = (0..50).map(Action::Count).collect();
    let rules = forward(vec![rule(&[], &actions); 40], vec![]);
    let outcome = run(&rules, &facts());
    assert_eq!(outcome.counted, (0..50).collect::<Vec<_>>().repeat(40));
}

#[test]
fn translations_come_out_as_they_went_in() {
    let snat = |pool| Snat { source: SourceChoice::Pool(pool), ports: None, random: true, persistent: false };
    let mut program = base();
    for name in ["a", "b"] {
        program.pools.push(Pool::new(
            name,
            vec![AddressRange { first: address("203.0.113.1"), last: address("203.0.113.4") }],
        ));
    }
    let masquerade = Action::Masquerade { ports: Some(PortRange { first: 5, last: 6 }), random: true };
    program.hooks[Hook::Postrouting.index()].rules = vec![
        rule(&[is(MatchKey::Zone(vec![1]))], &[Action::Snat(snat(0))]),
        rule(&[is(MatchKey::Zone(vec![2]))], &[Action::Snat(snat(1))]),
        rule(&[], &[masquerade]),
    ];
    program.validate().unwrap();
    let rules = Rules::compile(&program);
    let ending = |zone| compiled(&rules, Hook::Postrouting, &Facts { zone: Some(zone), ..facts() }).ending;
    assert_eq!(ending(1), Ending::Snat(snat(0)));
    assert_eq!(ending(2), Ending::Snat(snat(1)));
    let verdict = Verdict::Masquerade { ports: Some(PortRange { first: 5, last: 6 }), random: true };
    assert_eq!(ending(3), Ending::Verdict(verdict));
}

#[test]
fn raw_is_run_for_hardly_a_packet_that_its_rules_do_not_name() {
    let addresses =
        |n: u8| MatchKey::Source(vec![AddressRange { first: [10, n, 0, 0].into(), last: [10, n, 0, 255].into() }]);
    let rules =
        (0..200).map(|n| rule(&[is(addresses(n)), is(MatchKey::Protocol(vec![17]))], &[Action::Drop])).collect();
    let rules = Rules::compile(&program(Hook::Raw, rules, vec![]));
    let packet = |source: u32| Packet4 {
        ingress: 1,
        zone: 1,
        addresses: (source, 1),
        proto: 17,
        ports: (1, 2),
        state: 0,
        mark: 0,
    };
    assert!((0..200).all(|n| rules.raw_rules_about(&packet(0x0a00_0007 | n << 16))));
    let others = (0..10_000).filter(|n| rules.raw_rules_about(&packet(0x0b00_0000 + (n << 16)))).count();
    assert!(others < 10_000 / 10, "{others} of 10 000");
}

#[test]
fn raw_is_run_only_for_interfaces_that_one_of_its_rules_or_policies_can_touch() {
    let touched = |matches: &[Match], policies: &[(u16, PolicyVerdict)]| {
        let mut program = program(Hook::Raw, vec![rule(matches, &[Action::Notrack])], vec![]);
        program.hooks[Hook::Raw.index()].zone_policies = policies.to_vec();
        let rules = Rules::compile(&program);
        (0..6).filter(|i| rules.raw_rules_for(*i)).collect::<Vec<u16>>()
    };
    // Interface n is in zone n.
    assert_eq!(touched(&[], &[]), [0, 1, 2, 3, 4, 5]);
    assert_eq!(touched(&[is(MatchKey::Ingress(vec![1, 4]))], &[]), [1, 4]);
    assert_eq!(touched(&[not(MatchKey::Ingress(vec![1, 4]))], &[]), [0, 2, 3, 5]);
    assert_eq!(touched(&[is(MatchKey::Zone(vec![2])), is(port(1, 1))], &[]), [2]);
    assert_eq!(touched(&[is(MatchKey::Zone(vec![2])), is(MatchKey::Ingress(vec![3]))], &[]), [0; 0]);
    assert_eq!(touched(&[is(MatchKey::Egress(vec![2]))], &[]), [0; 0]);
    assert_eq!(touched(&[is(MatchKey::EgressZone(vec![2]))], &[(5, PolicyVerdict::Drop)]), [5]);
    assert_eq!(touched(&[not(MatchKey::Egress(vec![2])), not(MatchKey::Zone(vec![1, 2]))], &[]), [0, 3, 4, 5]);
}

#[test]
fn a_hook_is_empty_if_its_walk_could_do_nothing() {
    let with = |rules: Vec<Rule>, policy| {
        let mut program = program(Hook::Forward, rules, vec![]);
        program.hooks[Hook::Forward.index()].zone_policies = vec![(3, policy)];
        Rules::compile(&program).is_empty(Hook::Forward)
    };
    assert!(with(vec![], PolicyVerdict::Accept));
    assert!(with(vec![rule(&[], &[Action::Continue, Action::Drop])], PolicyVerdict::Accept));
    assert!(!with(vec![], PolicyVerdict::Drop));
    assert!(!with(vec![rule(&[is(port(1, 1))], &[Action::Accept])], PolicyVerdict::Accept));
}

#[test]
fn status_and_direction_are_those_of_the_packets_connection() {
    use erhu_planes::program::directions::{ALL, ORIGINAL, REPLY};
    use erhu_planes::program::statuses::{DNAT, SNAT};
    let of = |status, is_reply| Facts { status, is_reply, ..facts() };
    assert!(matches(&[is(MatchKey::Status(DNAT | SNAT))], &of(DNAT, false)));
    assert!(!matches(&[is(MatchKey::Status(DNAT))], &of(SNAT, false)));
    assert!(matches(&[not(MatchKey::Status(DNAT))], &of(0, false)));
    assert!(matches(&[is(MatchKey::Direction(REPLY))], &of(0, true)));
    assert!(!matches(&[not(MatchKey::Direction(REPLY))], &of(0, true)));
    assert!(!matches(&[is(MatchKey::Direction(ORIGINAL))], &of(0, true)));
    assert!(
        matches(&[is(MatchKey::Direction(ALL))], &of(0, true)) && matches(&[is(MatchKey::Direction(ALL))], &facts())
    );
    // What has no connection is of neither direction.
    let loose = |state| Facts { state, ..facts() };
    for direction in [MatchKey::Direction(REPLY), MatchKey::Status(DNAT)] {
        for state in [states::INVALID, states::UNTRACKED] {
            assert!(!matches(&[is(direction.clone())], &loose(state)));
            assert!(!matches(&[not(direction.clone())], &loose(state)));
        }
    }
}

#[test]
fn rules_know_whether_forwarding_depends_on_the_status_of_connections() {
    let with = |key| forward(vec![rule(&[is(key)], &[Action::Drop])], vec![]);
    assert!(with(MatchKey::Status(erhu_planes::program::statuses::ASSURED)).asks_status());
    assert!(!with(MatchKey::Direction(1)).asks_status());
    let chain = vec![rule(&[is(MatchKey::Status(1))], &[Action::Drop])];
    assert!(forward(vec![rule(&[], &[Action::Jump(0)])], vec![chain]).asks_status());
}

//! The compiled rules against the plain walk over the program, on random programs and packets.

use erhu_planes::program::{
    Action, AddressRange, Hook, Match, MatchKey, PolicyVerdict, PortRange, Position, Program, Rule,
};
use erhu_rules::{Effects, Rules, Verdict};
use proptest::prelude::*;

use crate::support::{Random, Shape, base, compiled, packet, plain, random_facts, random_program};

const HOOKS: [Hook; 4] = [Hook::Raw, Hook::Prerouting, Hook::Forward, Hook::Postrouting];

fn agree(program: &Program, hook: Hook, random: &mut Random, packets: u32, spread: u16) -> Result<(), String> {
    let rules = Rules::compile(program);
    for _ in 0..packets {
        let facts = random_facts(random, spread);
        let (found, expected) = (compiled(&rules, hook, &facts), plain(program, hook, &facts));
        if found != expected {
            return Err(format!("{facts:?}: compiled {found:?}, plain {expected:?}"));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compiled_rules_do_what_the_program_says(
        seed: u64,
        hook in prop::sample::select(&HOOKS[..]),
        rules in prop_oneof![0u32..20, 17u32..200, 200u32..1500],
        chains in 0u16..5,
        chain_rules in prop_oneof![0u32..17, 17u32..80],
        spread in prop_oneof![1u16..20, 20u16..2000],
        finals in prop_oneof![Just(0u32), 1u32..5, 5u32..60],
        kinds in 0u32..6,
    ) {
        println!("seed {seed}");
        let mut random = Random(seed);
        let shape = Shape { rules, chains, chain_rules, spread, finals, kinds };
        let program = random_program(&mut random, hook, shape);
        agree(&program, hook, &mut random, 60, spread).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn a_packet_that_raw_rules_are_not_about_misses_nothing_when_raw_is_not_run(
        seed: u64,
        rules in 0u32..6,
        finals in 0u32..100,
    ) {
        println!("seed {seed}");
        let mut random = Random(seed);
        let shape = Shape { rules, chains: 1, chain_rules: 3, spread: 10, finals, kinds: 0 };
        let mut program = random_program(&mut random, Hook::Raw, shape);
        if random.percent(60) {
            program.hooks[Hook::Raw.index()].policy = PolicyVerdict::Accept;
        }
        let rules = Rules::compile(&program);
        for (number, interface) in (0u16..).zip(&program.interfaces) {
            for _ in 0..50 {
                let mut facts = random_facts(&mut random, 10);
                (facts.ingress, facts.zone) = (Some(number), Some(interface.zone));
                (facts.egress, facts.egress_zone) = (None, None);
                let is_about = packet(&facts).is_none_or(|packet| rules.raw_rules_about(&packet));
                if rules.raw_rules_for(number) && is_about {
                    continue;
                }
                let mut effects = Effects::default();
                let verdict = rules.run(Hook::Raw, &facts, &mut effects, &mut |_| panic!("counted"));
                prop_assert_eq!(verdict, Verdict::Accept);
                prop_assert_eq!(effects, Effects { mark: facts.mark, ..Effects::default() });
            }
        }
    }
}

fn rule(line: u32, matches: Vec<MatchKey>, actions: Vec<Action>) -> Rule {
    let matches = matches.into_iter().map(|key| Match { negated: false, key }).collect();
    Rule { at: Position { source: 0, line, column: 1 }, matches, actions }
}

#[test]
fn lists_longer_than_one_summary_of_a_bit_set_are_walked_to_their_end() {
    let mut random = Random(7);
    let mut program = base();
    let port = |first, last| MatchKey::DestinationPort(vec![PortRange { first, last }]);
    program.hooks[Hook::Forward.index()].rules = (0..70_000u32)
        .map(|i| {
            let matches = match i % 5 {
                0 => vec![MatchKey::Zone(vec![random.below16(6)]), port(100, 110)],
                1 => vec![MatchKey::Protocol(vec![6, 17]), MatchKey::Egress(vec![random.below16(6)])],
                2 => vec![
                    port(100, 101 + random.below16(20)),
                    MatchKey::SourcePort(vec![PortRange { first: 100, last: 105 }]),
                ],
                _ => vec![
                    MatchKey::Mark(vec![(random.below(3), u32::MAX)]),
                    MatchKey::Ingress(vec![random.below16(6)]),
                ],
            };
            let action = if i % 1000 == 3 { Action::Mark(i % 3) } else { Action::Count(random.below16(50)) };
            rule(i + 1, matches, vec![action])
        })
        .collect();
    program.validate().unwrap();
    agree(&program, Hook::Forward, &mut random, 40, 20).unwrap();
}

#[test]
fn ranges_nested_ten_thousand_deep_compile_in_bounded_memory_and_still_match_exactly() {
    let mut random = Random(8);
    let mut program = base();
    let nested = |i: u32| {
        let low = u16::try_from(20_000 - i).unwrap();
        let port = vec![PortRange { first: low, last: 30_000 }];
        let address = |n: u32| std::net::Ipv4Addr::from(0x0a00_0000 + n).into();
        let range = vec![AddressRange { first: address(20_000 - i), last: address(30_000 + i) }];
        vec![
            MatchKey::SourcePort(port.clone()),
            MatchKey::DestinationPort(port),
            MatchKey::Source(range.clone()),
            MatchKey::Destination(range),
        ]
    };
    program.hooks[Hook::Forward.index()].rules =
        (0..10_000).map(|i| rule(i + 1, nested(i), vec![Action::Drop])).collect();
    let rules = Rules::compile(&program);
    for _ in 0..200 {
        let mut facts = random_facts(&mut random, 1);
        let address = |random: &mut Random| std::net::Ipv4Addr::from(0x0a00_0000 + random.below(50_000)).into();
        (facts.src, facts.dst, facts.proto) = (address(&mut random), address(&mut random), 6);
        (facts.sport, facts.dport) = (random.below16(32_000), random.below16(32_000));
        assert_eq!(compiled(&rules, Hook::Forward, &facts), plain(&program, Hook::Forward, &facts), "{facts:?}");
    }
}

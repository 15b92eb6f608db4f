//! What differs between two rule programs, in lines for people.

mod text;

use std::collections::{BTreeMap, HashMap};

use erhu_planes::program::{Hook, Program, Rule};

pub use text::rule_text;

/// Most cells of the table that aligns two lists of rules.
const CELLS: usize = 4 << 20;

/// One line for each thing that is new (`+`), gone (`-`) or changed (`~`); none if both do the same.
///
/// Where something was declared makes no difference, nor does the order of what has a name. Rules are compared in
/// their order; one that only moved is gone at one place and new at another.
pub fn between(old: &Program, new: &Program) -> Vec<String> {
    let mut lines = Vec::new();
    named(&mut lines, "zone", text::zones(old), text::zones(new));
    named(&mut lines, "interface", text::interfaces(old), text::interfaces(new));
    listed(&mut lines, text::routes(old), text::routes(new));
    listed(&mut lines, text::neighbours(old), text::neighbours(new));
    named(&mut lines, "pool", text::pools(old), text::pools(new));
    named(&mut lines, "timeout", text::timeouts(old), text::timeouts(new));
    let chains = |p: &Program| p.chains.iter().map(|c| (c.name.clone(), Vec::new())).collect::<Vec<_>>();
    named(&mut lines, "chain", chains(old), chains(new));
    for hook in Hook::ALL {
        named(&mut lines, "policy", text::verdicts(old, hook), text::verdicts(new, hook));
        let of = |p: &Program| p.hooks.get(hook.index()).map(|h| h.rules.clone()).unwrap_or_default();
        rules(&mut lines, hook.name(), (old, &of(old)), (new, &of(new)));
    }
    let old_chains: HashMap<&str, &[Rule]> = old.chains.iter().map(|c| (c.name.as_str(), &c.rules[..])).collect();
    for chain in &new.chains {
        let before = old_chains.get(chain.name.as_str()).copied().unwrap_or_default();
        rules(&mut lines, &format!("chain {}", chain.name), (old, before), (new, &chain.rules));
    }
    for chain in old.chains.iter().filter(|chain| new.chains.iter().all(|c| c.name != chain.name)) {
        rules(&mut lines, &format!("chain {}", chain.name), (old, &chain.rules), (new, &[]));
    }
    lines
}

/// Properties of something named, in order.
type Properties = Vec<(&'static str, String)>;

fn named(lines: &mut Vec<String>, kind: &str, old: Vec<(String, Properties)>, new: Vec<(String, Properties)>) {
    let before: HashMap<&str, &Properties> = old.iter().map(|(name, of)| (name.as_str(), of)).collect();
    let after: HashMap<&str, &Properties> = new.iter().map(|(name, of)| (name.as_str(), of)).collect();
    for (name, of) in old.iter().filter(|(name, _)| !after.contains_key(name.as_str())) {
        lines.push(format!("- {kind} {name}{}", identity(of)));
    }
    for (name, now) in &new {
        let Some(was) = before.get(name.as_str()) else {
            lines.push(format!("+ {kind} {name}{}", identity(now)));
            continue;
        };
        let changed: Vec<String> = was
            .iter()
            .zip(now)
            .filter(|((_, was), (_, now))| was != now)
            .map(|((key, was), (_, now))| format!("{key} {was} -> {now}"))
            .collect();
        if !changed.is_empty() {
            lines.push(format!("~ {kind} {name}: {}", changed.join(", ")));
        }
    }
}

/// The first properties, which say what it is.
fn identity(of: &Properties) -> String {
    let shown: Vec<String> =
        of.iter().take(3).filter(|(_, v)| v != "none").map(|(k, v)| format!("{k} {v}")).collect();
    if shown.is_empty() { String::new() } else { format!(" ({})", shown.join(", ")) }
}

fn listed(lines: &mut Vec<String>, old: Vec<String>, new: Vec<String>) {
    let mut balance: BTreeMap<&str, isize> = BTreeMap::new();
    old.iter().for_each(|line| *balance.entry(line).or_default() -= 1);
    new.iter().for_each(|line| *balance.entry(line).or_default() += 1);
    lines.extend(balance.iter().filter(|(_, n)| **n < 0).map(|(line, _)| format!("- {line}")));
    lines.extend(balance.iter().filter(|(_, n)| **n > 0).map(|(line, _)| format!("+ {line}")));
}

fn rules(lines: &mut Vec<String>, place: &str, (old, was): (&Program, &[Rule]), (new, now): (&Program, &[Rule])) {
    let before: Vec<String> = was.iter().map(|rule| rule_text(old, rule)).collect();
    let after: Vec<String> = now.iter().map(|rule| rule_text(new, rule)).collect();
    for step in align(&before, &after) {
        lines.push(match step {
            Step::Gone(i) => format!("- {place} {} ({})", before[i], old.place(was[i].at)),
            Step::New(i) => format!("+ {place} {} ({})", after[i], new.place(now[i].at)),
        });
    }
}

/// A rule of one list that the other has not, by its index.
enum Step {
    Gone(usize),
    New(usize),
}

/// The shortest way from one list to the other; for very long lists that differ much, a longer one.
fn align(old: &[String], new: &[String]) -> Vec<Step> {
    let same = |pair: &(&String, &String)| pair.0 == pair.1;
    let head = old.iter().zip(new).take_while(same).count();
    let tail = old[head..].iter().rev().zip(new[head..].iter().rev()).take_while(same).count();
    let (a, b) = (&old[head..old.len() - tail], &new[head..new.len() - tail]);
    let gone = |i: usize| Step::Gone(head + i);
    let added = |j: usize| Step::New(head + j);
    if a.len().saturating_mul(b.len()) > CELLS {
        return (0..a.len()).map(gone).chain((0..b.len()).map(added)).collect();
    }
    // longest[i][j]: how many the rests from i and j on have in common.
    let width = b.len() + 1;
    let mut longest = vec![0u32; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i * width + j] = if a[i] == b[j] {
                longest[(i + 1) * width + j + 1] + 1
            } else {
                longest[(i + 1) * width + j].max(longest[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut steps) = (0, 0, Vec::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            (i, j) = (i + 1, j + 1);
        } else if i < a.len() && (j == b.len() || longest[(i + 1) * width + j] >= longest[i * width + j + 1]) {
            steps.push(gone(i));
            i += 1;
        } else {
            steps.push(added(j));
            j += 1;
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use erhu_planes::program::{Action, Match, MatchKey, PolicyVerdict, Position, Zone};

    use super::*;

    fn rule(line: u32, zone: u16, action: Action) -> Rule {
        let matches = vec![Match { negated: false, key: MatchKey::Zone(vec![zone]) }];
        Rule { at: Position { source: 0, line, column: 1 }, matches, actions: vec![action] }
    }

    fn base() -> Program {
        let mut program = Program::empty();
        program.sources = vec!["a.rhai".into()];
        program.zones.push(Zone { id: 1, name: "blue".into(), ..program.zones[0].clone() });
        let forward = &mut program.hooks[Hook::Forward.index()].rules;
        forward.extend((1..=5).map(|line| rule(line, 1, Action::Mark(line))));
        program
    }

    #[test]
    fn equal_programs_do_not_differ_wherever_they_were_declared() {
        let mut moved = base();
        moved.sources = vec!["b.rhai".into()];
        moved.hooks[Hook::Forward.index()].rules.iter_mut().for_each(|rule| rule.at.line += 7);
        assert_eq!(between(&base(), &moved), Vec::<String>::new());
        assert_eq!(between(&base(), &base()), Vec::<String>::new());
    }

    #[test]
    fn zones_come_go_and_change() {
        let mut new = base();
        new.zones[1].limit = Some(5);
        new.zones.push(Zone { id: 2, name: "green".into(), ..new.zones[0].clone() });
        assert_eq!(between(&base(), &new), ["~ zone blue: limit none -> 5", "+ zone green (id 2)"]);
        assert_eq!(between(&new, &base()), ["- zone green (id 2)", "~ zone blue: limit 5 -> none"]);
    }

    #[test]
    fn one_rule_more_is_one_line() {
        let mut new = base();
        new.hooks[Hook::Forward.index()].rules.insert(2, rule(9, 1, Action::Drop));
        assert_eq!(between(&base(), &new), ["+ forward #{ zone: \"blue\" }, drop (a.rhai:9:1)"]);
        assert_eq!(between(&new, &base()), ["- forward #{ zone: \"blue\" }, drop (a.rhai:9:1)"]);
    }

    #[test]
    fn a_rule_that_moved_is_gone_and_new() {
        let mut new = base();
        new.hooks[Hook::Forward.index()].rules.swap(0, 4);
        let lines = between(&base(), &new);
        assert_eq!(lines.iter().filter(|line| line.starts_with("- ")).count(), 2);
        assert_eq!(lines.iter().filter(|line| line.starts_with("+ ")).count(), 2);
    }

    #[test]
    fn zone_ids_that_change_do_not_change_rules_by_name() {
        let mut new = base();
        new.zones[1].id = 7;
        let forward = &mut new.hooks[Hook::Forward.index()].rules;
        forward.iter_mut().for_each(|rule| rule.matches[0].key = MatchKey::Zone(vec![7]));
        assert_eq!(between(&base(), &new), ["~ zone blue: id 1 -> 7"]);
    }

    #[test]
    fn policies_are_named_by_hook_and_zone() {
        let mut new = base();
        new.hooks[Hook::Forward.index()].policy = PolicyVerdict::Drop;
        new.hooks[Hook::Forward.index()].zone_policies.push((1, PolicyVerdict::Reject));
        let lines = between(&base(), &new);
        assert_eq!(
            lines,
            ["~ policy forward: verdict accept -> drop", "+ policy forward of zone blue (verdict reject)"]
        );
    }

    #[test]
    fn long_lists_that_share_nothing_are_compared_in_bounded_memory() {
        let list = |prefix: &str| (0..3000).map(|i| format!("{prefix}{i}")).collect::<Vec<_>>();
        assert_eq!(align(&list("a"), &list("b")).len(), 6000);
    }
}

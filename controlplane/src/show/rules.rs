//! `erhu show rules`: rules as a script would write them, policies, named counters.

use std::io;

use erhu_planes::program::{AddressRange, Hook, PolicyVerdict, Program, Rule};
use erhu_planes::stats::{Directory, StatsRegion};
use serde_json::{Value, json};

use super::stats::{named_counter, slots_by_name};
use super::zone_name;
use crate::cli::Io;
use crate::cli::table::{Align, Table, grouped};
use crate::diff::rule_text;

/// An address, or both ends of a range.
pub(super) fn range_text(range: &AddressRange) -> String {
    if range.first == range.last { range.first.to_string() } else { format!("{}-{}", range.first, range.last) }
}

fn verdict_name(verdict: PolicyVerdict) -> &'static str {
    match verdict {
        PolicyVerdict::Accept => "accept",
        PolicyVerdict::Drop => "drop",
        PolicyVerdict::Reject => "reject",
    }
}

/// Rules in the order they run in: those of hooks by name, then those of chains.
fn lists(program: &Program) -> Vec<(String, &[Rule])> {
    let hooks = Hook::ALL.iter().filter_map(|hook| Some((hook, program.hooks.get(hook.index())?)));
    let hooks = hooks.map(|(hook, of)| (hook.name().to_owned(), of.rules.as_slice()));
    hooks.chain(program.chains.iter().map(|c| (format!("chain {}", c.name), c.rules.as_slice()))).collect()
}

/// Hook, zone where it is for one, verdict.
fn policies(program: &Program) -> Vec<(&'static str, Option<String>, &'static str)> {
    let mut all = Vec::new();
    for (hook, of) in Hook::ALL.iter().zip(&program.hooks) {
        let by_zone = of.zone_policies.iter();
        all.extend(by_zone.map(|(id, v)| (hook.name(), Some(zone_name(program, *id)), verdict_name(*v))));
        all.push((hook.name(), None, verdict_name(of.policy)));
    }
    all
}

/// Prints everything that decides about packets.
pub(super) fn show(io: &mut Io<'_>, program: &Program, stats: &StatsRegion) -> io::Result<()> {
    let by_name = slots_by_name(stats, Directory::Named);
    let counters = program.counters.iter().map(|name| {
        let (packets, bytes) = by_name.get(name).map_or((0, 0), |slot| named_counter(stats, *slot));
        (name, packets, bytes)
    });
    let lists = lists(program);
    let rules = lists.iter().flat_map(|(list, rules)| (1..).zip(*rules).map(move |(at, rule)| (list, at, rule)));
    if io.json {
        let rule = |(list, at, rule): (&String, u32, &Rule)| json!({ "list": list, "number": at, "rule": rule_text(program, rule), "at": program.place(rule.at) });
        let policy = |(hook, zone, verdict)| json!({ "hook": hook, "zone": zone, "verdict": verdict });
        let counter = |(name, packets, bytes)| json!({ "name": name, "packets": packets, "bytes": bytes });
        let document = json!({
            "rules": rules.map(rule).collect::<Vec<Value>>(),
            "policies": policies(program).into_iter().map(policy).collect::<Vec<Value>>(),
            "counters": counters.map(counter).collect::<Vec<Value>>(),
        });
        return writeln!(io.out, "{document:#}");
    }
    let (left, right) = (Align::Left, Align::Right);
    let mut table = Table::new(&[("HOOK", left), ("NO", right), ("RULE", left), ("DECLARED AT", left)]);
    for (list, at, rule) in rules {
        table.row([list.clone(), at.to_string(), rule_text(program, rule), program.place(rule.at)]);
    }
    table.print(io.out)?;
    writeln!(io.out)?;
    let mut table = Table::new(&[("POLICY OF", left), ("ZONE", left), ("VERDICT", left)]);
    for (hook, zone, verdict) in policies(program) {
        table.row([hook.to_owned(), zone.unwrap_or_default(), verdict.to_owned()]);
    }
    table.print(io.out)?;
    if !program.counters.is_empty() {
        writeln!(io.out)?;
        let mut table = Table::new(&[("COUNTER", left), ("PACKETS", right), ("BYTES", right)]);
        for (name, packets, bytes) in counters {
            table.row([name.clone(), grouped(packets), grouped(bytes)]);
        }
        table.print(io.out)?;
    }
    Ok(())
}

//! Finds what a policy allows but hardly means. Warnings only: a program with all of them still runs.
//!
//! Each finding must be certain. Where a rule's effect depends on what a script cannot tell, nothing is said, and what
//! would take too long on a very large policy ([`BUDGET`]) is left out.

mod crossing;
mod destinations;
mod families;
pub(crate) mod memory;
mod rules;
mod sets;
mod sizing;
mod unused;

use erhu_planes::program::{Hook, Position, Program, Rule};

use crate::policy::Policy;
use crate::script::{Facts, Fault};

/// Comparisons that one kind of analysis may make.
const BUDGET: usize = 20_000_000;

/// Everything found, in no particular order. The program must be what the policy compiles to.
pub(crate) fn warnings(policy: &Policy, program: &Program, facts: &Facts) -> Vec<Fault> {
    let mut found = Vec::new();
    rules::find(program, &mut found);
    crossing::find(policy, program, &mut found);
    destinations::find(program, &mut found);
    families::find(policy, program, &mut found);
    sizing::find(policy, program, facts, &mut found);
    unused::find(policy, program, &mut found);
    found
}

/// All rule lists of a program: the hook if it is one's, the function that declares its rules, the rules.
fn lists(program: &Program) -> impl Iterator<Item = (Option<Hook>, &'static str, &[Rule])> {
    let hooks = Hook::ALL.iter().zip(&program.hooks).map(|(hook, list)| (Some(*hook), hook.name(), &list.rules[..]));
    hooks.chain(program.chains.iter().map(|chain| (None, "rule", &chain.rules[..])))
}

/// A place seen from another: the line alone where the file is the same.
fn seen_from(program: &Program, from: Position, at: Position) -> String {
    if from.source == at.source { format!("line {}", at.line) } else { program.place(at) }
}

/// The name of a zone.
fn zone_name(program: &Program, id: u16) -> &str {
    program.zone(id).map_or("?", |zone| &zone.name)
}

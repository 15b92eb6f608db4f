//! `check`, `apply` and `rollback`.

use std::path::Path;

use erhu_planes::program::Program;
use serde_json::json;

use super::{Failure, Io};
use crate::check::memory::{self, Machine};
use crate::client::{AskError, Dataplane, running, status};
use crate::config::Config;
use crate::diff;
use crate::history::{self, HistoryError, PublishError, Stored};
use crate::script::{Checked, Diagnostic, Facts, check_script};

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Ask(error) => error.into(),
            PublishError::History(error) => error.into(),
        }
    }
}

/// `erhu check SCRIPT [--config FILE]`.
pub(super) fn check(script: &Path, config: Option<&Path>, io: &mut Io<'_>) -> Result<(), Failure> {
    let config = config.map(Config::for_replay).transpose().map_err(|e| Failure::Refused(e.to_string()))?;
    let facts = config.as_ref().map_or_else(Facts::default, Facts::from);
    let checked = checked(script, &facts, io)?;
    let program = &checked.program;
    let rules: usize =
        program.hooks.iter().map(|h| h.rules.len()).chain(program.chains.iter().map(|c| c.rules.len())).sum();
    let found = [
        ("zones", program.zones.len()),
        ("interfaces", program.interfaces.len()),
        ("routes", program.routes.len()),
        ("pools", program.pools.len()),
        ("rules", rules),
    ];
    let memory = config.map(|config| (memory::of(&config, program), Machine::this(&config.instance)));
    if io.json {
        let mut object: serde_json::Map<_, _> = found.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        object.insert("errors".into(), json!([]));
        object.insert("warnings".into(), texts(&checked.warnings));
        if let Some((sizing, machine)) = &memory {
            object.insert("memory".into(), memory::json(sizing, machine));
        }
        writeln!(io.out, "{}", serde_json::Value::Object(object))?;
    } else {
        let found: Vec<String> = found.iter().map(|(name, count)| format!("{count} {name}")).collect();
        writeln!(io.out, "{}: no errors; {}", script.display(), found.join(", "))?;
        if let Some((sizing, machine)) = &memory {
            memory::text(sizing, machine, io.out)?;
        }
    }
    Ok(())
}

fn texts(diagnostics: &[Diagnostic]) -> serde_json::Value {
    diagnostics.iter().map(|d| serde_json::Value::from(d.to_string())).collect()
}

/// Checks a script, printing every error and warning.
fn checked(script: &Path, facts: &Facts, io: &mut Io<'_>) -> Result<Checked, Failure> {
    match check_script(script, facts) {
        Ok(checked) => {
            for warning in &checked.warnings {
                writeln!(io.err, "warning: {warning}")?;
            }
            Ok(checked)
        }
        Err(errors) => {
            for error in &errors {
                writeln!(io.err, "{error}")?;
            }
            if io.json {
                writeln!(io.out, "{}", json!({ "errors": texts(&errors) }))?;
            }
            Err(Failure::Said)
        }
    }
}

fn encoded(program: &Program) -> Result<Vec<u8>, Failure> {
    program.encode().map_err(|e| Failure::Refused(e.to_string()))
}

/// How a program differs from the running one, as lines; says so where nothing does.
fn changes(dataplane: &mut dyn Dataplane, program: &Program) -> Result<Vec<String>, Failure> {
    let before = match running(dataplane)? {
        None => Program::empty(),
        // One that this version cannot read can still be replaced.
        Some(now) => now.program().unwrap_or_else(|_| Program::empty()),
    };
    Ok(diff::between(&before, program))
}

/// `erhu apply SCRIPT [--dry-run]`.
pub(super) fn apply(
    script: &Path,
    dry_run: bool,
    io: &mut Io<'_>,
    dataplane: &mut dyn Dataplane,
) -> Result<(), Failure> {
    let facts = facts(dataplane)?;
    let checked = checked(script, &facts, io)?;
    let changes = changes(dataplane, &checked.program)?;
    if !io.json {
        for line in &changes {
            writeln!(io.out, "{line}")?;
        }
        if changes.is_empty() {
            writeln!(io.out, "no changes")?;
        }
    }
    if dry_run {
        if io.json {
            writeln!(io.out, "{}", json!({ "changes": changes, "warnings": texts(&checked.warnings) }))?;
        }
        return Ok(());
    }
    let text = checked.sources.first().map(|(_, text)| text.clone());
    let what = Stored { program: encoded(&checked.program)?, script: text };
    if io.is_terminal {
        writeln!(io.err, "waiting for every worker to have it")?;
    }
    let history = history::open(dataplane)?;
    let generation = history::publish(dataplane, history.as_ref(), &what)?;
    if io.json {
        let warnings = texts(&checked.warnings);
        writeln!(io.out, "{}", json!({ "generation": generation, "changes": changes, "warnings": warnings }))?;
    } else {
        writeln!(io.out, "generation {generation}")?;
    }
    Ok(())
}

/// What a live dataplane knows of its machine.
pub(crate) fn facts(dataplane: &mut dyn Dataplane) -> Result<Facts, AskError> {
    let status = status(dataplane)?;
    let ports = status.ports.into_iter().map(|port| port.name).collect();
    Ok(Facts { ports: Some(ports), capacity: Some(status.capacity) })
}

/// `erhu rollback [GENERATION]`.
pub(super) fn rollback(
    generation: Option<u32>,
    io: &mut Io<'_>,
    dataplane: &mut dyn Dataplane,
) -> Result<(), Failure> {
    let history = history::open(dataplane)?.ok_or(HistoryError::None)?;
    let wanted = match generation {
        Some(generation) => generation,
        None => {
            let now = status(dataplane)?.generation;
            history.before(now).ok_or(HistoryError::NothingEarlier)?
        }
    };
    let what = history.load(wanted)?;
    let program = Program::decode(&what.program)
        .map_err(|e| Failure::Refused(format!("generation {wanted} cannot be used any more: {e}")))?;
    let changes = changes(dataplane, &program)?;
    let new = history::publish(dataplane, Some(&history), &what)?;
    if io.json {
        writeln!(io.out, "{}", json!({ "generation": new, "same_as": wanted, "changes": changes }))?;
    } else {
        for line in &changes {
            writeln!(io.out, "{line}")?;
        }
        writeln!(io.out, "generation {new}: generation {wanted} again")?;
    }
    Ok(())
}

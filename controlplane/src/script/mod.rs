//! Rule scripts: a Rhai program that runs once and declares a policy.
//!
//! # Overview
//!
//! [`check_script`] reads a script, runs it under limits, and turns what it declared into a rule program. Each
//! function a script may call is an entry of `api`: it takes any arguments, records what it declares in the
//! session's [`Policy`](crate::policy::Policy), and records an error with its place where they make no sense, so
//! that one run reports all of them.
//!
//! # Life-cycle
//!
//! Compile; look for names that nothing defines; run; resolve names and compare declarations
//! ([`crate::compile`]); analyse ([`crate::check`]). A step that fails does not hide what earlier ones found.
//!
//! # Limits
//!
//! [`limits`]: operations, wall-clock time, depth, sizes. Files are read only from the script's own folder tree.
//! Nothing a script does lasts beyond its run.

mod api;
mod engine;
mod names;
mod options;
mod resolver;
mod session;
mod suggest;
mod values;

use std::fmt;
use std::path::{Path, PathBuf};

use erhu_planes::program::{Position, Program};

pub(crate) use suggest::{did_you_mean, list};
pub(crate) use values::{direction_names, protocol_name, state_names, status_names, whole};

/// Bounds on what a script may use.
pub mod limits {
    use std::time::Duration;

    /// Operations of the script and all it imports together.
    pub const OPERATIONS: u64 = 50_000_000;
    /// Wall-clock time of a run.
    pub const TIME: Duration = Duration::from_secs(10);
    /// Calls inside calls.
    pub const CALL_LEVELS: usize = 64;
    /// Expressions inside expressions.
    pub const EXPRESSION_DEPTH: usize = 128;
    /// Variables at one time.
    pub const VARIABLES: usize = 4096;
    /// Functions of one file.
    pub const FUNCTIONS: usize = 4096;
    /// Files that may be imported.
    pub const MODULES: usize = 1024;
    /// Bytes of all strings of one value.
    pub const STRING_BYTES: usize = 16 << 20;
    /// Elements of all arrays of one value.
    pub const ARRAY_ELEMENTS: usize = 1 << 20;
    /// Entries of all maps of one value.
    pub const MAP_ENTRIES: usize = 1 << 20;
    /// Bytes of one script or data file.
    pub const FILE_BYTES: u64 = 16 << 20;
    /// Stack of the thread a script runs on: more than the depths above need without optimisation.
    pub const STACK_BYTES: usize = 256 << 20;
    /// Errors or warnings reported for one place; a loop repeats itself.
    pub const PER_PLACE: usize = 24;
}

/// What is known of the machine a script is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Names of the configured ports; `None`: unknown, any will do.
    pub ports: Option<Vec<String>>,
    /// Connections that the table holds; `None`: unknown.
    pub capacity: Option<u32>,
}

/// A script without errors.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Valid, ready to be encoded.
    pub program: Program,
    /// What is allowed but hardly meant, and what the script printed.
    pub warnings: Vec<Diagnostic>,
    /// The script, then what it imported, then the data it read; paths as in diagnostics.
    pub sources: Vec<(PathBuf, String)>,
}

/// An error or a warning about one place of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// `path:line:column`, the path as the user wrote it; the path alone where no line is to blame.
    pub place: String,
    /// The function that was called; empty where none was.
    pub function: String,
    /// What is wrong, beginning with the key it is about.
    pub message: String,
    /// The place in numbers; line 0 where no line is to blame.
    pub at: Position,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, function, message, .. } = self;
        if function.is_empty() {
            write!(f, "{place}: {message}")
        } else {
            write!(f, "{place}: {function}: {message}")
        }
    }
}

impl std::error::Error for Diagnostic {}

/// A diagnostic that does not know the names of sources yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub at: Position,
    pub function: String,
    pub message: String,
}

impl Fault {
    pub fn new(at: Position, function: &str, message: impl Into<String>) -> Self {
        Self { at, function: function.into(), message: message.into() }
    }
}

/// Runs a script and makes a rule program of what it declares.
///
/// # Errors
/// Every error found, in the order of the script's lines; never empty.
pub fn check_script(path: &Path, facts: &Facts) -> Result<Checked, Vec<Diagnostic>> {
    let outcome = engine::run(path)?;
    let sources: Vec<String> = outcome.sources.iter().map(|(path, _)| path.display().to_string()).collect();
    let mut faults = outcome.faults;
    // A run that was cut short has not declared everything, so nothing can be said about missing names.
    let compiled = if outcome.complete {
        crate::compile::compile(&outcome.policy, sources.clone(), facts)
    } else {
        Err(Vec::new())
    };
    match compiled {
        Ok(program) if faults.is_empty() => {
            let mut warnings = outcome.printed;
            warnings.extend(crate::check::warnings(&outcome.policy, &program, facts));
            let mut files = outcome.sources;
            files.extend(outcome.data);
            Ok(Checked { program, warnings: report(warnings, &sources), sources: files })
        }
        Ok(_) => Err(report(faults, &sources)),
        Err(more) => {
            faults.extend(more);
            Err(report(faults, &sources))
        }
    }
}

/// Sorts by place, drops repetitions and shortens what one place says too often.
fn report(mut faults: Vec<Fault>, sources: &[String]) -> Vec<Diagnostic> {
    let place = |at: Position| (at.source, at.line, at.column);
    faults.sort_by_key(|fault| place(fault.at));
    let mut out = Vec::new();
    for group in faults.chunk_by(|a, b| place(a.at) == place(b.at)) {
        let mut distinct: Vec<&Fault> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        distinct.extend(group.iter().filter(|f| seen.insert((&f.function, &f.message))));
        let left_out = distinct.len().saturating_sub(limits::PER_PLACE);
        for fault in distinct.iter().take(limits::PER_PLACE) {
            out.push(diagnostic(fault.at, sources, &fault.function, &fault.message));
        }
        if let (1.., Some(last)) = (left_out, distinct.last()) {
            out.push(diagnostic(last.at, sources, &last.function, &format!("and {left_out} more like this")));
        }
    }
    out
}

fn diagnostic(at: Position, sources: &[String], function: &str, message: &str) -> Diagnostic {
    let source = sources.get(usize::from(at.source)).map_or("?", String::as_str);
    let place = match (at.line, at.column) {
        (0, _) => source.to_owned(),
        (line, 0) => format!("{source}:{line}"),
        (line, column) => format!("{source}:{line}:{column}"),
    };
    Diagnostic { place, function: function.into(), message: message.into(), at }
}

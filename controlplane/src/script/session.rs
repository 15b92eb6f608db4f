//! What one run of a script collects.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use erhu_planes::program::Position;
use rhai::{Module, Shared};

use super::Fault;
use super::resolver::Tree;
use crate::policy::Policy;

/// Shared by the engine's functions and the module resolver.
///
/// The lock is never held while script code runs, so that an import inside an import finds it free.
pub struct Session {
    /// Where files may be read.
    pub tree: Tree,
    state: Mutex<State>,
}

/// See [`Session`].
#[derive(Default)]
pub struct State {
    /// What was declared.
    pub policy: Policy,
    /// What was wrong.
    pub faults: Vec<Fault>,
    /// What was printed.
    pub printed: Vec<Fault>,
    /// The script and what it imported.
    pub sources: Vec<(PathBuf, String)>,
    /// Data files it read, in order of their names.
    pub data: BTreeMap<PathBuf, String>,
    /// Imported files by their real path.
    pub modules: HashMap<PathBuf, Shared<Module>>,
    /// Files whose import has begun and not ended.
    pub importing: HashSet<PathBuf>,
}

impl Session {
    /// Of a script in a folder.
    pub fn new(tree: Tree) -> Self {
        Self { tree, state: Mutex::default() }
    }

    /// The state. A function that panicked while it held it changed nothing half.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an error.
    pub fn fault(&self, at: Position, function: &str, message: impl Into<String>) {
        self.state().faults.push(Fault::new(at, function, message));
    }

    /// A place by the name of its source as the engine knows it.
    pub fn position(&self, source: Option<&str>, at: rhai::Position) -> Position {
        self.state().position(source, at)
    }
}

impl State {
    /// See [`Session::position`]. A source that is not known is the script itself.
    pub fn position(&self, source: Option<&str>, at: rhai::Position) -> Position {
        let index = source
            .map_or(0, |name| self.sources.iter().position(|(path, _)| path.as_os_str() == name).unwrap_or_default());
        let number = |n: Option<usize>| n.and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        Position { source: u16::try_from(index).unwrap_or(0), line: number(at.line()), column: number(at.position()) }
    }
}

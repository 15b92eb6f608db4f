//! Files that scripts read: imports and data, only from the script's own folder tree.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Weak};

use rhai::{Engine, EvalAltResult, Module, ModuleResolver, Position, Scope, Shared};

use super::session::Session;
use super::{Fault, engine, limits, names};

/// The folder of a script and all below it.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Without symbolic links.
    root: PathBuf,
    /// As the user wrote it; empty for the current folder.
    shown: PathBuf,
}

/// A file of the tree.
pub struct Found {
    /// Without symbolic links.
    pub real: PathBuf,
    /// As messages name it, beginning like the user's path of the script.
    pub shown: PathBuf,
    /// Contents.
    pub text: String,
}

impl Tree {
    /// Of the folder a script is in.
    pub fn of(script: &Path) -> Result<Self, String> {
        let shown = script.parent().unwrap_or_else(|| Path::new("")).to_owned();
        let folder = if shown.as_os_str().is_empty() { Path::new(".") } else { &shown };
        let root = folder.canonicalize().map_err(|e| format!("{}: {e}", folder.display()))?;
        Ok(Self { root, shown })
    }

    /// Finds and reads what a file of the tree asks for, relative to that file's folder.
    ///
    /// # Errors
    /// In words: outside of the tree (also by a symbolic link), missing, no ordinary file, too large, not UTF-8.
    pub fn read(&self, from: &Path, wanted: &str) -> Result<Found, String> {
        let (real, shown) = self.find(from, wanted)?;
        let kind = real.metadata().map_err(|e| format!("{}: {e}", shown.display()))?;
        if !kind.is_file() {
            return Err(format!("{} is no ordinary file", shown.display()));
        }
        let text = read_text(&real).map_err(|e| format!("{}: {e}", shown.display()))?;
        Ok(Found { real, shown, text })
    }

    fn find(&self, from: &Path, wanted: &str) -> Result<(PathBuf, PathBuf), String> {
        let outside = || format!("{wanted:?} is outside of the script's folder");
        let folder = from.parent().unwrap_or_else(|| Path::new(""));
        let mut inside = folder.strip_prefix(&self.shown).unwrap_or(folder).to_owned();
        for part in Path::new(wanted).components() {
            match part {
                Component::Normal(part) => inside.push(part),
                Component::CurDir => {}
                Component::ParentDir if inside.pop() => {}
                _ => return Err(outside()),
            }
        }
        let shown = self.shown.join(&inside);
        let real = self.root.join(&inside).canonicalize().map_err(|e| format!("{}: {e}", shown.display()))?;
        if real.starts_with(&self.root) { Ok((real, shown)) } else { Err(outside()) }
    }
}

/// A file's text, of at most [`limits::FILE_BYTES`].
pub fn read_text(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| e.to_string())?;
    file.take(limits::FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > limits::FILE_BYTES {
        return Err(format!("larger than {} MiB", limits::FILE_BYTES >> 20));
    }
    String::from_utf8(bytes).map_err(|_| "not UTF-8 text".into())
}

/// Resolves `import "path" as name`. A file runs once, however often it is imported.
pub struct Resolver {
    session: Weak<Session>,
}

impl Resolver {
    /// For a session, which must outlive the run.
    pub fn new(session: &Arc<Session>) -> Self {
        Self { session: Arc::downgrade(session) }
    }
}

impl ModuleResolver for Resolver {
    fn resolve(
        &self,
        engine: &Engine,
        source: Option<&str>,
        path: &str,
        at: Position,
    ) -> Result<Shared<Module>, Box<EvalAltResult>> {
        let Some(session) = self.session.upgrade() else { return Err(engine::reported(at)) };
        let place = session.position(source, at);
        let refuse = |message: String| {
            session.fault(place, "import", message);
            engine::reported(at)
        };
        let wanted = if path.ends_with(".rhai") { path.to_owned() } else { format!("{path}.rhai") };
        let found = session.tree.read(Path::new(source.unwrap_or_default()), &wanted).map_err(refuse)?;
        let name = found.shown.display().to_string();
        {
            let mut state = session.state();
            if let Some(module) = state.modules.get(&found.real) {
                return Ok(Shared::clone(module));
            }
            let count = state.sources.len();
            let again = !state.importing.insert(found.real.clone());
            let full = count > limits::MODULES;
            if !again && !full {
                state.sources.push((found.shown.clone(), found.text.clone()));
            }
            drop(state);
            if again {
                return Err(refuse(format!("{name} imports itself, directly or through others")));
            }
            if full {
                return Err(refuse(format!("more than {} files are imported", limits::MODULES)));
            }
        }
        let outcome = run(engine, &session, &name, &found.text);
        let mut state = session.state();
        state.importing.remove(&found.real);
        match outcome {
            Ok(module) => {
                state.modules.insert(found.real, Shared::clone(&module));
                Ok(module)
            }
            Err(fault) => {
                state.faults.extend(fault);
                Err(engine::reported(at))
            }
        }
    }
}

/// Runs an imported file. The error is `None` if it has been recorded.
fn run(engine: &Engine, session: &Session, name: &str, text: &str) -> Result<Shared<Module>, Option<Fault>> {
    let fail = |error: &EvalAltResult| engine::fault(engine, session, error, Some(name));
    let mut ast = engine.compile(text).map_err(|error| fail(&error.into()))?;
    ast.set_source(name);
    let unknown = names::unknown(engine, &ast);
    for wrong in &unknown {
        session.fault(session.position(Some(name), wrong.at), "", wrong.message.clone());
    }
    Module::eval_ast_as_new(Scope::new(), &ast, engine).map(Into::into).map_err(|error| fail(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_tree_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rules");
        std::fs::create_dir_all(root.join("lib/deep")).unwrap();
        std::fs::write(root.join("lib/nat.rhai"), "1").unwrap();
        std::fs::write(dir.path().join("secret.rhai"), "2").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret.rhai"), root.join("lib/out.rhai")).unwrap();
        std::os::unix::fs::symlink(dir.path(), root.join("up")).unwrap();
        std::os::unix::fs::symlink(root.join("lib/nat.rhai"), root.join("in.rhai")).unwrap();
        let script = root.join("main.rhai");
        let tree = Tree::of(&script).unwrap();
        let read = |from: &Path, wanted: &str| tree.read(from, wanted).map(|f| f.shown);

        assert_eq!(read(&script, "lib/nat.rhai"), Ok(root.join("lib/nat.rhai")));
        assert_eq!(read(&script, "./lib/../lib/nat.rhai"), Ok(root.join("lib/nat.rhai")));
        assert_eq!(read(&script, "in.rhai"), Ok(root.join("in.rhai")));
        let deep = root.join("lib/deep/x.rhai");
        assert_eq!(read(&deep, "../nat.rhai"), Ok(root.join("lib/nat.rhai")));

        let absolute = dir.path().join("secret.rhai").display().to_string();
        let escapes = ["../secret.rhai", "lib/../../secret.rhai", &absolute, "lib/out.rhai", "up/secret.rhai", "/"];
        for wanted in escapes {
            assert!(read(&script, wanted).unwrap_err().contains("outside of the script's folder"), "{wanted}");
        }
        assert!(read(&deep, "../../../secret.rhai").unwrap_err().contains("outside"));
        assert!(read(&script, "lib").unwrap_err().contains("no ordinary file"));
        assert!(read(&script, "none.rhai").unwrap_err().contains("No such file"));
    }
}

//! Where an instance's files are.

use std::path::{Path, PathBuf};

/// Environment variable that replaces the default runtime folder.
pub const RUNTIME_DIR_VARIABLE: &str = "ERHU_RUNTIME_DIR";
/// Environment variable that replaces the default state folder.
pub const STATE_DIR_VARIABLE: &str = "ERHU_STATE_DIR";

/// The folder that holds one folder per running instance: `$ERHU_RUNTIME_DIR`, else `/run/erhu` for root, else
/// `$XDG_RUNTIME_DIR/erhu`, else `/tmp/erhu-UID`.
pub fn runtime_root() -> PathBuf {
    root(RUNTIME_DIR_VARIABLE, "/run/erhu", "XDG_RUNTIME_DIR")
}

/// The folder that keeps what outlives an instance (rule-set history): `$ERHU_STATE_DIR`, else `/var/lib/erhu` for
/// root, else `$XDG_STATE_HOME/erhu`, else `/tmp/erhu-UID`.
pub fn state_root() -> PathBuf {
    root(STATE_DIR_VARIABLE, "/var/lib/erhu", "XDG_STATE_HOME")
}

fn root(variable: &str, for_root: &str, for_user: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let uid = rustix::process::getuid();
    if uid.is_root() {
        return for_root.into();
    }
    match std::env::var_os(for_user) {
        Some(path) => Path::new(&path).join("erhu"),
        None => format!("/tmp/erhu-{}", uid.as_raw()).into(),
    }
}

/// The files of one running instance.
#[derive(Clone, Debug)]
pub struct InstanceDir {
    folder: PathBuf,
}

impl InstanceDir {
    /// The folder of the instance of that name below [`runtime_root`]; nothing is created.
    pub fn named(name: &str) -> Self {
        Self { folder: runtime_root().join(name) }
    }

    /// An instance whose files are in `folder`.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The instance's name: the folder's.
    pub fn name(&self) -> String {
        self.folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The dataplane's control socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("dataplane.sock")
    }

    /// The statistics region.
    pub fn stats(&self) -> PathBuf {
        self.folder.join("stats")
    }

    /// The connections region.
    pub fn connections(&self) -> PathBuf {
        self.folder.join("connections")
    }

    /// The events region.
    pub fn events(&self) -> PathBuf {
        self.folder.join("events")
    }

    /// Names of the instances that have a control socket below [`runtime_root`], sorted.
    pub fn running() -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(runtime_root()) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .flatten()
            .filter(|e| e.path().join("dataplane.sock").exists())
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

//! Scripts in a folder of their own.

#![allow(dead_code, reason = "each test file uses a part of it")]

use erhu_controlplane::{Checked, Diagnostic, Facts, check_script};

/// Checks a script, with files beside it, all in a folder that is gone afterwards.
pub fn check_with(
    script: &str,
    files: &[(&str, &str)],
    facts: &Facts,
) -> Result<(Checked, Vec<String>), Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("rules");
    std::fs::create_dir_all(&root).unwrap();
    for (name, text) in files {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let path = root.join("t.rhai");
    std::fs::write(&path, script).unwrap();
    // Paths begin with the folder, which has another name each time.
    let prefix = format!("{}/", root.display());
    let lines = |all: &[Diagnostic]| all.iter().map(|d| d.to_string().replace(&prefix, "")).collect::<Vec<_>>();
    match check_script(&path, facts) {
        Ok(checked) => {
            let warnings = lines(&checked.warnings);
            Ok((checked, warnings))
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            Err(lines(&errors))
        }
    }
}

/// The errors of a script that has some.
pub fn errors(script: &str) -> Vec<String> {
    match check_with(script, &[], &Facts::default()) {
        Err(errors) => errors,
        Ok(_) => panic!("no error in\n{script}"),
    }
}

/// A script that has none, and its warnings.
pub fn checked(script: &str) -> (Checked, Vec<String>) {
    check_with(script, &[], &Facts::default()).unwrap_or_else(|errors| panic!("{}\nin\n{script}", errors.join("\n")))
}

/// The warnings of a script without errors.
pub fn warnings(script: &str) -> Vec<String> {
    checked(script).1
}

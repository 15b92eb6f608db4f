//! The documents say what is there: no drop reason, counter or dependency is missing, none is left over, and what the
//! README tells people to type works. That needs the programs, built by `cargo build -p erhu-dataplane -p
//! erhu-controlplane` (or `ERHU_BIN_DIR`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use erhu_planes::{Counter, DropReason};
use erhu_testbed::netns;
use erhu_testbed::scenario::repository;

fn document(path: &str) -> String {
    let path = repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The names in code quotes in the first column of the table rows below a heading, up to the next heading.
fn listed(text: &str, heading: &str) -> BTreeSet<String> {
    let part = text.split_once(&format!("## {heading}\n")).unwrap_or_else(|| panic!("there is no {heading}")).1;
    let rows = part.lines().take_while(|line| !line.starts_with("## ")).filter_map(|line| line.strip_prefix("| `"));
    rows.flat_map(|row| {
        let cell = row.split(" |").next().unwrap_or_default();
        cell.split(", ").map(|name| name.trim_matches('`').to_owned()).collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn every_drop_reason_and_counter_is_explained() {
    let names = DropReason::ALL.iter().map(|r| r.name()).chain(Counter::ALL.iter().map(|c| c.name()));
    let names: BTreeSet<_> = names.map(str::to_owned).collect();
    assert_eq!(listed(&document("dataplane/README.md"), "Drop reasons"), names);
}

/// Manifests of the workspace's crates, and of those that it replaces.
fn manifests(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            manifests(&path, found);
        } else if name == "Cargo.toml" {
            found.push(path);
        }
    }
}

/// Names below every table of dependencies, however deep (`[target.….dependencies]`).
fn dependencies(table: &toml::Table, names: &mut BTreeSet<String>) {
    for (key, value) in table {
        let Some(inner) = value.as_table() else { continue };
        match key.as_str() {
            "dependencies" | "dev-dependencies" | "build-dependencies" => names.extend(inner.keys().cloned()),
            // What the workspace offers is a dependency of those who take it.
            "workspace" => {}
            _ => dependencies(inner, names),
        }
    }
}

#[test]
fn every_dependency_has_its_reason_in_the_readme_and_no_other_has() {
    let mut paths = Vec::new();
    manifests(repository(), &mut paths);
    let (mut names, mut own) = (BTreeSet::new(), BTreeSet::new());
    for path in &paths {
        let manifest: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
        own.extend(manifest.get("package").and_then(|p| p.get("name")?.as_str()).map(str::to_owned));
        dependencies(&manifest, &mut names);
    }
    assert!(paths.len() > 10);
    let others: BTreeSet<_> = names.difference(&own).cloned().collect();
    assert_eq!(listed(&document("README.md"), "Dependencies"), others);
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    for path in [
        "README.md",
        "bindings/README.md",
        "dataplane/README.md",
        "dataplane/FASTPATH.md",
        "controlplane/README.md",
        "testbed/README.md",
        "testbed/BENCHMARKS.md",
        "testbed/CAPTURES.md",
    ] {
        let folder = repository().join(path);
        let text = document(path);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if !target.contains("://") && !file.is_empty() {
                let there = folder.parent().unwrap().join(file);
                assert!(there.exists(), "{path}: {target}");
            }
        }
    }
}

/// The commands below a heading, up to the next heading.
fn commands(text: &str, heading: &str) -> String {
    let part = text.split_once(&format!("## {heading}\n")).unwrap_or_else(|| panic!("there is no {heading}")).1;
    let part = part.split("\n## ").next().unwrap_or_default();
    let blocks = part.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.collect()
}

#[test]
fn what_the_readme_tells_to_type_works() {
    let folder = tempfile::Builder::new().prefix("erhu-").tempdir().unwrap();
    let programs =
        netns::binary("erhu").and_then(|_| netns::binary("erhu-dataplane")).unwrap_or_else(|e| panic!("{e}"));
    let readme = document("README.md");
    let script = ["Five minutes", "Replay"].map(|heading| commands(&readme, heading)).join("");
    assert!(script.contains("${CARGO_TARGET_DIR:-$PWD/target}/debug") && script.contains("/tmp/tour"), "{script}");
    let script = script
        .replace("${CARGO_TARGET_DIR:-$PWD/target}/debug", &programs.parent().unwrap().display().to_string())
        .replace("/tmp/tour", &folder.path().display().to_string())
        // While a person types, the captures pass.
        .replacen(
            "erhu conntrack -L ",
            "until erhu conntrack -C | grep -qx 8; do sleep 0.1; done\nerhu conntrack -L ",
            1,
        );
    let mut command = Command::new("bash");
    // What was told to end has to end.
    command.args(["-ec", &(script + "\nwait\n")]).current_dir(repository());
    // DPDK's own files.
    command.env("RUNTIME_DIRECTORY", folder.path()).env("XDG_RUNTIME_DIR", folder.path());
    let said = netns::run(command, Duration::from_secs(60)).and_then(|f| f.success("the tour"));
    let said = said.unwrap_or_else(|e| panic!("{e}"));
    for words in ["no errors", "generation 1", "zone-orig=2", "generation 3: generation 1 again", "[DESTROY] tcp"] {
        assert!(said.contains(words), "{words} is missing:\n{said}");
    }
}

//! Keeps `testbed/CASES.md` true.

use std::collections::BTreeSet;
use std::path::Path;

/// Where tests lie that stand for cases, from this crate's folder: here, and what cannot be seen by replay.
const FOLDERS: [&str; 6] = [
    "tests",
    "tests/cases",
    "tests/hostile",
    "../dataplane/conntrack/tests/tcp",
    "../dataplane/pipeline/tests",
    "../dataplane/table/tests",
];

/// Tests by the ids in the comments above them: `/// KP1, N9: …`.
fn tests_by_id() -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    let folders = FOLDERS.map(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join(folder));
    let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    for path in entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        let text = std::fs::read_to_string(path).unwrap();
        let (mut ids, mut is_test): (Vec<String>, _) = (Vec::new(), false);
        for line in text.lines().map(str::trim) {
            if let Some((before, _)) = line.strip_prefix("/// ").and_then(|comment| comment.split_once(':')) {
                ids.extend(before.split(", ").filter(|word| is_id(word)).map(str::to_owned));
            } else if line == "#[test]" {
                is_test = true;
            } else if let Some(name) = line.strip_prefix("fn ").and_then(|rest| rest.split_once('(')).map(|(n, _)| n)
            {
                if is_test {
                    found.extend(ids.iter().map(|id| (id.clone(), name.to_owned())));
                }
                (ids, is_test) = (Vec::new(), false);
            }
        }
    }
    found
}

/// Letters and then digits: `KP1`, `T113`.
fn is_id(word: &str) -> bool {
    let letters = word.trim_end_matches(|c: char| c.is_ascii_digit());
    !letters.is_empty() && letters.len() < word.len() && letters.chars().all(|c| c.is_ascii_uppercase())
}

#[test]
fn the_list_of_cases_is_true() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("CASES.md");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "));
    let listed: BTreeSet<_> = rows
        .filter(|(id, _)| is_id(id))
        .map(|(id, name)| (id.to_owned(), name.trim_matches('`').to_owned()))
        .collect();
    let tests = tests_by_id();
    if std::env::var_os("ERHU_UPDATE").is_some() {
        let head = text.split_inclusive("| --- | --- |\n").next().unwrap_or_default();
        let row = |(id, name): &(String, String)| format!("| {id} | `{name}` |\n");
        let mut sorted: Vec<_> = tests.iter().collect();
        sorted.sort_by_key(|(id, name)| {
            let letters = id.trim_end_matches(|c: char| c.is_ascii_digit());
            (letters.to_owned(), id[letters.len()..].parse::<u32>().unwrap_or(0), name.clone())
        });
        let rows: String = sorted.into_iter().map(row).collect();
        std::fs::write(&path, format!("{head}{rows}")).unwrap();
        return;
    }
    let missing: Vec<_> = tests.difference(&listed).collect();
    let stale: Vec<_> = listed.difference(&tests).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "{}: missing {missing:?}, no longer there {stale:?}; run this test with ERHU_UPDATE=1",
        path.display()
    );
}

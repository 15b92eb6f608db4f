//! What a script cannot do: run for ever, grow without end, read elsewhere, harm its host.

mod script_common;

use std::os::unix::fs::symlink;

use erhu_controlplane::{Facts, check_script};
use script_common::{checked, errors};

fn ends_with(script: &str, said: &str) {
    let found = one_error(script);
    assert!(found.ends_with(said), "{found}");
}

fn one_error(script: &str) -> String {
    let mut found = errors(script);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn a_loop_without_end_ends_with_a_clear_error() {
    // Whether operations or time run out first depends on the machine.
    let said = "is there a loop that does not end?";
    ends_with("loop { }", said);
    // Closures called by the engine itself count with the rest.
    ends_with("for n in 0..9223372036854775807 { [1, 2, 3].map(|x| x + 1); }", said);
}

#[test]
fn a_function_that_calls_itself_without_end_ends_with_a_clear_error() {
    let said = "calls are nested deeper than 64: does a function call itself without end?";
    ends_with("fn f(n) { f(n + 1) } f(0);", said);
    // The deepest calls of the deepest expressions fit the stack.
    let deep = format!("fn f(n) {{ {}f(n + 1){} }} f(0);", "[".repeat(35), "]".repeat(35));
    ends_with(&deep, said);
    let deep = format!("fn f(n) {{ {}f(n + 1){} }} f(0);", "if true { ".repeat(20), " }".repeat(20));
    ends_with(&deep, said);
}

#[test]
fn values_do_not_grow_without_end() {
    for script in [
        "let s = \"x\"; loop { s += s; }",
        "let a = [1]; loop { a += a; }",
        "let a = [1]; loop { a = [a, a]; }",
        "let m = #{}; loop { m = #{ a: m, b: m }; }",
        "let a = []; a.pad(100000000, 0);",
        "let s = \"\"; s.pad(100000000, 'x');",
        "let b = blob(100000000);",
    ] {
        let said = one_error(script);
        assert!(said.contains("too large") || said.contains("does not end"), "{script}: {said}");
    }
}

#[test]
fn deeply_nested_text_is_refused() {
    for (open, count) in [
        ("[", 100_000),
        ("(", 100_000),
        ("{", 100_000),
        ("#{a:", 50_000),
        ("!", 100_000),
        ("1+", 100_000),
        ("f(", 50_000),
        ("`${", 20_000),
        ("|x| ", 20_000),
        ("true && ", 50_000),
        ("1 ?? ", 50_000),
        ("switch 1 { 1 => ", 10_000),
        ("if true {} else ", 10_000),
    ] {
        assert!(one_error(&open.repeat(count)).contains("syntax error"), "{open}");
    }
    for (start, more) in [("a", ".b"), ("a", "[0]"), ("a", "?.b")] {
        let script = format!("{start}{}", more.repeat(50_000));
        assert!(one_error(&script).contains("syntax error"), "{start}{more}");
    }
}

#[test]
fn there_is_no_waiting_and_no_clock() {
    let started = std::time::Instant::now();
    for script in ["sleep(1000);", "sleep(1000.0);", "1000.sleep();", "Fn(\"sleep\").call(1000);"] {
        assert!(one_error(script).ends_with("sleep: a rule script declares and never waits"), "{script}");
    }
    assert!(started.elapsed().as_secs() < 100);
    assert!(one_error("timestamp();").contains("unknown function `timestamp`"));
}

#[test]
fn imports_and_data_stay_in_the_folder_of_the_script() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("rules");
    std::fs::create_dir_all(root.join("sub")).unwrap();
    std::fs::write(dir.path().join("secret.rhai"), "zone(\"secret\", #{ id: 1 });").unwrap();
    std::fs::write(dir.path().join("secret.json"), "{}").unwrap();
    symlink(dir.path().join("secret.rhai"), root.join("link.rhai")).unwrap();
    symlink(dir.path().join("secret.json"), root.join("link.json")).unwrap();
    symlink(dir.path(), root.join("up")).unwrap();
    let absolute = dir.path().display();
    let escapes = [
        "import \"../secret\" as s;".to_owned(),
        "import \"sub/../../secret\" as s;".into(),
        format!("import \"{absolute}/secret\" as s;"),
        "import \"link\" as s;".into(),
        "import \"up/secret\" as s;".into(),
        "data(\"../secret.json\");".into(),
        "data(\"link.json\");".into(),
        "data(\"up/secret.json\");".into(),
        format!("data(\"{absolute}/secret.json\");"),
        "data(\"/proc/self/environ\");".into(),
        // Catching the error does not help: it has been recorded.
        "try { import \"../secret\" as s; } catch { }".into(),
    ];
    let path = root.join("t.rhai");
    for script in escapes {
        std::fs::write(&path, &script).unwrap();
        let found = check_script(&path, &Facts::default()).unwrap_err();
        assert_eq!(found.len(), 1, "{script}");
        assert!(found[0].message.contains("is outside of the script's folder"), "{script}: {}", found[0]);
    }
    // The script itself may be a link: its folder is the one the user named.
    std::fs::write(root.join("sub/real.rhai"), "import \"ok\" as ok;").unwrap();
    std::fs::write(root.join("ok.rhai"), "zone(\"ok\", #{ id: 1 });").unwrap();
    std::fs::remove_file(&path).unwrap();
    symlink(root.join("sub/real.rhai"), &path).unwrap();
    assert_eq!(check_script(&path, &Facts::default()).unwrap().program.zones.len(), 2);
}

#[test]
fn thousands_of_files_are_not_imported() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..1100 {
        std::fs::write(dir.path().join(format!("m{n}.rhai")), "").unwrap();
    }
    let path = dir.path().join("t.rhai");
    std::fs::write(&path, "for n in 0..1100 { import `m${n}` as m; }").unwrap();
    let found = check_script(&path, &Facts::default()).unwrap_err();
    assert!(found[0].message.contains("more than 1024 files are imported"), "{}", found[0]);
}

#[test]
fn long_scripts_and_long_policies_are_fine() {
    let (checked, _) = checked(
        "for n in 0..10000 { forward(#{ src: `10.${n / 256}.${n % 256}.0/24`, dport: [n % 1000, 1000 + n] }, drop); }",
    );
    assert_eq!(checked.program.hooks[3].rules.len(), 10_000);
    let long: String = (1..=5000).map(|n| format!("zone(\"zone-{n}\", #{{ id: {n} }});\n")).collect();
    assert_eq!(script_common::checked(&long).0.program.zones.len(), 5001);
}

//! No script, however odd, makes the control plane panic; what checks is a program the dataplane takes.

use std::path::PathBuf;

use erhu_controlplane::{Facts, check_script};
use erhu_planes::program::Program;
use proptest::prelude::*;

fn check(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("t.rhai");
    std::fs::write(&path, bytes).unwrap();
    match check_script(&path, &Facts::default()) {
        Ok(checked) => {
            let encoded = checked.program.encode().unwrap();
            assert_eq!(Program::decode(&encoded).as_ref(), Ok(&checked.program));
        }
        Err(errors) => assert!(!errors.is_empty()),
    }
}

/// Pieces of scripts, so that random ones get past the parser.
fn piece() -> impl Strategy<Value = String> {
    let function = prop::sample::select(vec![
        "zone",
        "interface",
        "route",
        "neighbour",
        "pool",
        "timeout",
        "chain",
        "policy",
        "raw",
        "prerouting",
        "input",
        "forward",
        "output",
        "postrouting",
        "rule",
        "snat",
        "masquerade",
        "jump",
        "go_to",
        "return_",
        "mark",
        "count",
        "reject",
        "not",
        "data",
        "link",
        "limit",
    ]);
    let key = prop::sample::select(vec![
        "id",
        "limit",
        "reserve",
        "rate",
        "tracking",
        "timeout",
        "port",
        "vlan",
        "zone",
        "address",
        "mtu",
        "via",
        "interface",
        "blackhole",
        "metric",
        "addresses",
        "ports",
        "pool",
        "to",
        "src",
        "dst",
        "proto",
        "sport",
        "dport",
        "state",
        "mark",
        "ingress",
        "egress",
        "icmp_type",
        "udp",
        "typo",
    ]);
    let value = prop_oneof![
        Just("\"a\"".to_owned()),
        Just("\"main\"".to_owned()),
        Just("\"10.0.0.1/24\"".to_owned()),
        Just("\"10.0.0.0/24\"".to_owned()),
        Just("\"192.0.2.1-192.0.2.9\"".to_owned()),
        Just("\"tcp\"".to_owned()),
        Just("\"new\"".to_owned()),
        Just("accept".to_owned()),
        Just("drop".to_owned()),
        Just("true".to_owned()),
        Just("()".to_owned()),
        Just("[]".to_owned()),
        Just("not(5)".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        (1u16..9).prop_map(|n| n.to_string()),
        any::<f32>().prop_filter("a number", |f| f.is_finite()).prop_map(|f| format!("{f:.3}")),
        "[ -~]{0,8}".prop_map(|text| format!("{text:?}")),
    ];
    let map = prop::collection::btree_map(key, value.clone(), 0..5).prop_map(|m| {
        format!("#{{ {} }}", m.iter().map(|(k, v)| format!("{k}: {v}")).collect::<Vec<_>>().join(", "))
    });
    let argument = prop_oneof![value, map];
    let leaf = argument.boxed();
    let call = (function, prop::collection::vec(leaf, 0..4)).prop_map(|(f, a)| format!("{f}({})", a.join(", ")));
    let nested = (call.clone(), call.clone()).prop_map(|(a, b)| {
        a.strip_suffix(')').map_or(a.clone(), |start| format!("{start}, {b})").replace("(, ", "("))
    });
    prop_oneof![call, nested].prop_map(|call| format!("{call};\n"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&bytes);
    }

    #[test]
    fn random_text_never_panics(text in "[a-z(){}\\[\\]#\":;,. 0-9=+|&!`$\\n-]{0,200}") {
        check(text.as_bytes());
    }

    #[test]
    fn random_declarations_never_panic_and_what_checks_is_valid(pieces in prop::collection::vec(piece(), 1..12)) {
        check(pieces.concat().as_bytes());
    }

    #[test]
    fn a_changed_byte_of_the_main_example_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut script = include_bytes!("../../configs/two-tenants.rhai").to_vec();
        let at = at.index(script.len());
        script[at] = byte;
        check(&script);
    }
}

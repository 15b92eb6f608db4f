//! Actions that take arguments.

use erhu_planes::program::RejectKind;
use rhai::Dynamic;

use super::Call;
use crate::policy::{Action, ActionKind, Snat, SourceChoice};
use crate::script::options::Options;
use crate::script::values::{
    Broken, ScriptAction, any_of, choice, flag, given_ports, host_range, mark as mark_value, name,
};

/// All actions there are.
pub const NAMES: &[&str] = &[
    "accept",
    "drop",
    "reject",
    "notrack",
    "snat",
    "masquerade",
    "jump",
    "go_to",
    "return_",
    "mark",
    "count",
    "continue_",
];

fn made(call: &Call, kind: Option<ActionKind>) -> Dynamic {
    match kind {
        Some(kind) => Dynamic::from(ScriptAction(Action { at: Some(call.at), kind })),
        None => Dynamic::from(Broken),
    }
}

pub fn reject(call: &Call) -> Dynamic {
    let kinds = [
        ("admin", RejectKind::Admin),
        ("host", RejectKind::Host),
        ("net", RejectKind::Net),
        ("port", RejectKind::Port),
        ("reset", RejectKind::Reset),
    ];
    made(call, call.argument(0, "kind", |v| choice(v, &kinds)).map(ActionKind::Reject))
}

pub fn jump(call: &Call) -> Dynamic {
    made(call, call.argument(0, "chain", name).map(ActionKind::Jump))
}

pub fn go_to(call: &Call) -> Dynamic {
    made(call, call.argument(0, "chain", name).map(ActionKind::GoTo))
}

pub fn return_(call: &Call) -> Dynamic {
    made(call, Some(ActionKind::Return))
}

pub fn mark(call: &Call) -> Dynamic {
    made(call, call.argument(0, "number", mark_value).map(ActionKind::Mark))
}

pub fn count(call: &Call) -> Dynamic {
    made(call, call.argument(0, "name", name).map(ActionKind::Count))
}

pub fn snat(call: &Call) -> Dynamic {
    let Some(argument) = call.arguments.first() else { return Dynamic::from(Broken) };
    let options = Options::new(call, argument, &["pool", "to", "ports", "random", "persistent"], &[]);
    let source = match options.one_of(&["pool", "to"]) {
        Some(key @ "pool") => options.get(key, name).map(SourceChoice::Pool),
        Some(key) => options
            .get(key, |value| {
                let ranges = any_of(value, host_range)?;
                let count = ranges.iter().map(erhu_planes::program::AddressRange::count).fold(0, u64::saturating_add);
                let most = erhu_planes::program::limits::POOL_ADDRESSES;
                if count > most { Err(format!("{count} addresses are more than {most}").into()) } else { Ok(ranges) }
            })
            .map(SourceChoice::To),
        None => None,
    };
    let ports = options.get("ports", given_ports);
    let random = options.get("random", flag).unwrap_or(false);
    let persistent = options.get("persistent", flag).unwrap_or(false);
    let snat = source.filter(|_| !options.failed()).map(|source| Snat { source, ports, random, persistent });
    made(call, snat.map(ActionKind::Snat))
}

pub fn masquerade(call: &Call) -> Dynamic {
    let Some(argument) = call.arguments.first() else { return Dynamic::from(Broken) };
    let options = Options::new(call, argument, &["ports", "random"], &[]);
    let ports = options.get("ports", given_ports);
    let random = options.get("random", flag).unwrap_or(false);
    made(call, (!options.failed()).then_some(ActionKind::Masquerade { ports, random }))
}

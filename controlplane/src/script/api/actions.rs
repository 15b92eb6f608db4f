//! Actions that take arguments.

use erhu_planes::program::{AddressRange, PortRange, RejectKind, limits};
use rhai::Dynamic;

use super::Call;
use crate::policy::{Action, ActionKind, Dnat, Snat, SourceChoice};
use crate::script::options::Options;
use crate::script::values::{
    Broken, Parsed, ScriptAction, any_of, choice, destination, flag, given_ports, host_range, mark as mark_value,
    name, prefix,
};

/// All actions there are.
pub const NAMES: &[&str] = &[
    "accept",
    "drop",
    "reject",
    "notrack",
    "snat",
    "masquerade",
    "dnat",
    "redirect",
    "netmap",
    "jump",
    "go_to",
    "return_",
    "mark",
    "connmark",
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

pub fn connmark(call: &Call) -> Dynamic {
    made(call, call.argument(0, "number", mark_value).map(ActionKind::ConnMark))
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
                few(&ranges).map(|()| ranges)
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

/// No more addresses than a pool may have.
fn few(ranges: &[AddressRange]) -> Parsed<()> {
    let count = ranges.iter().map(AddressRange::count).fold(0, u64::saturating_add);
    let most = limits::POOL_ADDRESSES;
    if count > most { Err(format!("{count} addresses are more than {most}").into()) } else { Ok(()) }
}

pub fn dnat(call: &Call) -> Dynamic {
    let Some(argument) = call.arguments.first() else { return Dynamic::from(Broken) };
    let options = Options::new(call, argument, &["to", "ports", "zone", "random", "persistent"], &[]);
    let to = options.required("to", |value| {
        let all: Vec<(AddressRange, Option<PortRange>)> = any_of(value, destination)?;
        let ports = all.first().and_then(|(_, ports)| *ports);
        if all.iter().any(|(_, other)| *other != ports) {
            return Err("addresses with different ports; a rule with `ports` for each says which gets which".into());
        }
        let ranges: Vec<AddressRange> = all.into_iter().map(|(range, _)| range).collect();
        few(&ranges).map(|()| (ranges, ports))
    });
    let mut ports = options.get("ports", given_ports);
    if let Some((_, Some(own))) = to {
        if ports.is_some() {
            options.refuse(Some("ports"), "`to` names a port already".into());
        }
        ports = Some(own);
    }
    let zone = options.get("zone", name);
    let random = options.get("random", flag).unwrap_or(false);
    let persistent = options.get("persistent", flag).unwrap_or(false);
    let dnat = to.filter(|_| !options.failed()).map(|(to, _)| Dnat { to, ports, zone, random, persistent });
    made(call, dnat.map(ActionKind::Dnat))
}

pub fn redirect(call: &Call) -> Dynamic {
    made(call, call.argument(0, "port", given_ports).map(ActionKind::Redirect))
}

pub fn netmap(call: &Call) -> Dynamic {
    made(call, call.argument(0, "prefix", prefix).map(ActionKind::Netmap))
}

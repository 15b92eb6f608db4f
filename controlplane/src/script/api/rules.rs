//! Rules: what they match and where they belong.

use erhu_planes::program::Hook;
use rhai::{Array, Dynamic};

use super::Call;
use super::actions::NAMES;
use crate::policy::{Action, Match, MatchKey, Place, Rule};
use crate::script::options::Options;
use crate::script::values::{
    DIRECTIONS, Parsed, Problem, STATES, STATUSES, ScriptAction, address_range, any_of, choice, expected,
    masked_mark, name, numbers, port_range, protocol, text,
};

const KEYS: &[&str] = &[
    "ingress",
    "egress",
    "zone",
    "egress_zone",
    "src",
    "dst",
    "proto",
    "sport",
    "dport",
    "icmp_type",
    "icmp_code",
    "state",
    "status",
    "direction",
    "mark",
];

const LATER: &[&str] = &[
    "tcp_flags",
    "length",
    "dscp",
    "ttl",
    "fragment",
    "helper",
    "set",
    "over",
    "rate_over",
    "bytes_over",
    "packets_over",
    "existing",
];

pub fn hook(call: &Call, hook: Hook) -> Dynamic {
    declare(call, Some(Place::Hook(hook)), 0)
}

pub fn rule(call: &Call) -> Dynamic {
    declare(call, call.argument(0, "chain", name).map(Place::Chain), 1)
}

fn declare(call: &Call, place: Option<Place>, first: usize) -> Dynamic {
    let unit = Dynamic::UNIT;
    let argument = |index: usize| call.arguments.get(index).unwrap_or(&unit);
    let options = Options::new(call, argument(first), KEYS, LATER);
    let matches = matches(&options);
    let actions = call.argument(first + 1, "action", actions);
    if let (Some(place), Some(actions), false) = (place, actions, options.failed()) {
        call.session.state().policy.rules.push(Rule { at: call.at, place, matches, actions });
    }
    Dynamic::UNIT
}

fn matches(options: &Options) -> Vec<Match> {
    let mut matches = Vec::new();
    for key in KEYS {
        let parsed = options.get_negatable(key, |value| {
            Ok(match *key {
                "ingress" => MatchKey::Ingress(any_of(value, name)?),
                "egress" => MatchKey::Egress(any_of(value, name)?),
                "zone" => MatchKey::Zone(any_of(value, name)?),
                "egress_zone" => MatchKey::EgressZone(any_of(value, name)?),
                "src" => MatchKey::Source(any_of(value, address_range)?),
                "dst" => MatchKey::Destination(any_of(value, address_range)?),
                "proto" => MatchKey::Protocol(any_of(value, protocol)?),
                "sport" => MatchKey::SourcePort(any_of(value, port_range)?),
                "dport" => MatchKey::DestinationPort(any_of(value, port_range)?),
                "icmp_type" => MatchKey::IcmpType(any_of(value, |v| numbers(v, 255, "an ICMP type from 0 to 255"))?),
                "icmp_code" => MatchKey::IcmpCode(any_of(value, |v| numbers(v, 255, "an ICMP code from 0 to 255"))?),
                "state" => MatchKey::State(any_of(value, |v| choice(v, &STATES))?.into_iter().fold(0, |a, b| a | b)),
                "status" => {
                    MatchKey::Status(any_of(value, |v| choice(v, &STATUSES))?.into_iter().fold(0, |a, b| a | b))
                }
                "direction" => {
                    MatchKey::Direction(any_of(value, |v| choice(v, &DIRECTIONS))?.into_iter().fold(0, |a, b| a | b))
                }
                _ => MatchKey::Mark(any_of(value, masked_mark)?),
            })
        });
        matches.extend(parsed.map(|(negated, key)| Match { negated, key }));
    }
    matches
}

fn actions(value: &Dynamic) -> Parsed<Vec<Action>> {
    let Some(items) = value.read_lock::<Array>() else { return Ok(vec![action(value)?]) };
    let most = erhu_planes::program::limits::PER_RULE;
    if items.is_empty() {
        return Err("an empty array does nothing; `continue_` says so".into());
    }
    if items.len() > most {
        return Err(format!("{} actions are more than {most}", items.len()).into());
    }
    // All that are wrong have been reported where they were made; here the first one counts.
    items.iter().map(action).collect()
}

fn action(value: &Dynamic) -> Parsed<Action> {
    if let Some(action) = value.read_lock::<ScriptAction>() {
        return Ok(action.0.clone());
    }
    if let Some(word) = text(value).filter(|text| NAMES.contains(&text.as_str())) {
        return Err(Problem::Says(format!("{word} is no string, write it without quotes")));
    }
    Err(expected("an action such as accept, drop or snat(#{ … })", value))
}

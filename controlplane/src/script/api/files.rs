//! `data(file)`: JSON from the script's folder tree.

use std::path::Path;

use rhai::{Array, Dynamic, Map};
use serde_json::Value;

use super::Call;
use crate::script::values::{Broken, string};

pub fn data(call: &Call) -> Dynamic {
    let Some(wanted) = call.argument(0, "file", |v| string(v, "the name of a JSON file")) else {
        return Dynamic::from(Broken);
    };
    let from = call.context.call_source().unwrap_or_default();
    let found = match call.session.tree.read(Path::new(from), &wanted) {
        Ok(found) => found,
        Err(message) => {
            call.fault(message);
            return Dynamic::from(Broken);
        }
    };
    let parsed = serde_json::from_str::<Value>(&found.text);
    match parsed {
        Ok(value) => {
            call.session.state().data.insert(found.shown, found.text);
            dynamic(value)
        }
        Err(error) => {
            let text = error.to_string();
            let what = text.split(" at line ").next().unwrap_or(&text);
            call.fault(format!("{}:{}:{}: {what}", found.shown.display(), error.line(), error.column()));
            Dynamic::from(Broken)
        }
    }
}

/// JSON as a script sees it; `null` is `()`. The depth is what the parser of JSON allows.
fn dynamic(value: Value) -> Dynamic {
    match value {
        Value::Null => Dynamic::UNIT,
        Value::Bool(flag) => flag.into(),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => whole.into(),
            None => number.as_f64().unwrap_or(f64::NAN).into(),
        },
        Value::String(text) => text.into(),
        Value::Array(items) => items.into_iter().map(dynamic).collect::<Array>().into(),
        Value::Object(entries) => {
            entries.into_iter().map(|(key, value)| (key.into(), dynamic(value))).collect::<Map>().into()
        }
    }
}

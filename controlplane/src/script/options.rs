//! The map of options that most functions take.

use std::cell::{Cell, RefCell};

use rhai::{Dynamic, Map};

use super::api::Call;
use super::suggest::{list, nearest};
use super::values::{Broken, Negated, Parsed, Problem, map};

/// A map whose keys are read once each. Every error is recorded where the function was called.
pub struct Options<'c> {
    call: &'c Call<'c>,
    map: Map,
    failed: Cell<bool>,
    /// Known keys that unknown ones were probably meant to be.
    misspelt: RefCell<Vec<&'static str>>,
}

impl<'c> Options<'c> {
    /// Takes an argument. `later` are keys of functions that do not exist yet: they are refused, never ignored.
    pub fn new(call: &'c Call<'c>, value: &Dynamic, known: &'static [&'static str], later: &[&'static str]) -> Self {
        let options = Self { call, map: Map::new(), failed: Cell::new(false), misspelt: RefCell::default() };
        let map = match map(value, "a map `#{ … }`") {
            Ok(map) => map,
            Err(problem) => {
                options.refuse(None, problem);
                return options;
            }
        };
        for key in map.keys().map(|key| key.as_str()) {
            if known.contains(&key) {
                continue;
            }
            if later.contains(&key) {
                options.refuse(Some(key), "not available yet".into());
                continue;
            }
            let near = nearest(key, known.iter().chain(later).copied());
            options.misspelt.borrow_mut().extend(known.iter().filter(|k| Some(**k) == near));
            let hint = match near {
                Some(near) => format!(", did you mean `{near}`?"),
                None if known.is_empty() => String::new(),
                None => format!(", possible are {}", list(known.iter().copied()).replace(" or ", " and ")),
            };
            options.refuse(None, format!("unknown key `{key}`{hint}").into());
        }
        Self { map, ..options }
    }

    /// Whether a key was given.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Whether there was any error so far.
    pub fn failed(&self) -> bool {
        self.failed.get()
    }

    /// Records an error, about a key where one is named.
    pub fn refuse(&self, key: Option<&str>, problem: Problem) {
        self.failed.set(true);
        if let Problem::Says(message) = problem {
            self.call.fault(match key {
                Some(key) => format!("{key}: {message}"),
                None => message,
            });
        }
    }

    /// A key's value; `None` if it was not given or makes no sense.
    pub fn get<T>(&self, key: &str, parse: impl FnOnce(&Dynamic) -> Parsed<T>) -> Option<T> {
        let value = self.map.get(key)?;
        self.read(key, value, parse)
    }

    /// A key's value that may stand inside `not(…)`.
    pub fn get_negatable<T>(&self, key: &str, parse: impl FnOnce(&Dynamic) -> Parsed<T>) -> Option<(bool, T)> {
        let value = self.map.get(key)?;
        let (mut negated, mut inner) = (false, value.clone());
        while let Some(next) = inner.read_lock::<Negated>().map(|n| n.0.clone()) {
            (negated, inner) = (!negated, next);
        }
        Some((negated, self.read(key, &inner, parse)?))
    }

    fn read<T>(&self, key: &str, value: &Dynamic, parse: impl FnOnce(&Dynamic) -> Parsed<T>) -> Option<T> {
        let parsed = if value.is::<Broken>() { Err(Problem::Reported) } else { parse(value) };
        parsed.map_err(|problem| self.refuse(Some(key), problem)).ok()
    }

    /// As [`Options::get`]; that it is missing is an error, unless it seems to be there misspelt.
    pub fn required<T>(&self, key: &'static str, parse: impl FnOnce(&Dynamic) -> Parsed<T>) -> Option<T> {
        if !self.has(key) {
            let is_told = self.misspelt.borrow().contains(&key) || (self.failed() && self.map.is_empty());
            if !is_told {
                self.refuse(None, format!("missing key `{key}`").into());
            }
            self.failed.set(true);
        }
        self.get(key, parse)
    }

    /// The one key given of several that exclude each other; `None` with an error recorded if it is not one.
    pub fn one_of(&self, keys: &[&'static str]) -> Option<&'static str> {
        let given: Vec<&'static str> = keys.iter().filter(|key| self.has(key)).copied().collect();
        match given.as_slice() {
            [one] => return Some(one),
            [] if self.misspelt.borrow().iter().any(|key| keys.contains(key)) => {}
            [] if self.failed() && self.map.is_empty() => {}
            [] => self.refuse(None, format!("one of {} is needed", list(keys.iter().copied())).into()),
            [first, second, ..] => {
                self.refuse(None, format!("`{first}` and `{second}` exclude each other").into());
            }
        }
        self.failed.set(true);
        None
    }
}

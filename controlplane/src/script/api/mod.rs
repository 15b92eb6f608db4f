//! The functions and constants a script may use.
//!
//! Each is registered for any number of arguments of any type, so that a wrong call is an error of ours, with a
//! suggestion, instead of the engine's "function not found"; and so that the run goes on to the next error.

mod actions;
mod declare;
mod files;
mod rules;

use std::any::TypeId;
use std::sync::Arc;

use erhu_planes::program::{Hook, Position, RejectKind};
use rhai::{Dynamic, Engine, Module, NativeCallContext};

use super::session::Session;
use super::values::{Broken, Negated, Problem, ScriptAction};
use crate::policy::{Action, ActionKind};

/// One call of a function of ours.
pub struct Call<'c> {
    /// Collects what it declares.
    pub session: &'c Session,
    /// The engine's view of the call.
    pub context: &'c NativeCallContext<'c>,
    /// Name of the function.
    pub function: &'static str,
    /// Where it is called.
    pub at: Position,
    /// Copies of its arguments.
    pub arguments: Vec<Dynamic>,
}

impl Call<'_> {
    /// Records an error.
    pub fn fault(&self, message: impl Into<String>) {
        self.session.fault(self.at, self.function, message);
    }

    /// Records an error about an argument, unless that has been done.
    pub fn refuse(&self, argument: &str, problem: Problem) {
        if let Problem::Says(message) = problem {
            self.fault(format!("{argument}: {message}"));
        }
    }

    /// Reads an argument that exists.
    pub fn argument<T>(
        &self,
        index: usize,
        name: &str,
        parse: impl FnOnce(&Dynamic) -> Result<T, Problem>,
    ) -> Option<T> {
        let value = self.arguments.get(index)?;
        if value.is::<Broken>() {
            return None;
        }
        parse(value).map_err(|problem| self.refuse(name, problem)).ok()
    }
}

/// A function of ours.
struct Function {
    name: &'static str,
    /// How it is called, for errors.
    usage: &'static str,
    /// Numbers of arguments it takes.
    counts: &'static [usize],
    run: fn(&Call) -> Dynamic,
}

/// Most arguments that are refused by us and not by the engine.
const MOST_ARGUMENTS: usize = 6;

const FUNCTIONS: &[Function] = &[
    Function { name: "zone", usage: "zone(name, #{ id: … })", counts: &[2], run: declare::zone },
    Function { name: "interface", usage: "interface(name, #{ port: … })", counts: &[2], run: declare::interface },
    Function { name: "link", usage: "link(a, b, #{ zones: [a, b] })", counts: &[3], run: declare::link },
    Function { name: "route", usage: "route(zone, prefix, #{ via: … })", counts: &[3], run: declare::route },
    Function { name: "neighbour", usage: "neighbour(interface, ip, mac)", counts: &[3], run: declare::neighbour },
    Function { name: "pool", usage: "pool(name, #{ addresses: … })", counts: &[2], run: declare::pool },
    Function { name: "timeout", usage: "timeout(name, #{ … })", counts: &[2], run: declare::timeout },
    Function { name: "chain", usage: "chain(name)", counts: &[1], run: declare::chain },
    Function {
        name: "policy",
        usage: "policy(hook, verdict) or policy(hook, zone, verdict)",
        counts: &[2, 3],
        run: declare::policy,
    },
    Function { name: "raw", usage: "raw(#{ match }, action)", counts: &[2], run: |c| rules::hook(c, Hook::Raw) },
    Function {
        name: "prerouting",
        usage: "prerouting(#{ match }, action)",
        counts: &[2],
        run: |c| rules::hook(c, Hook::Prerouting),
    },
    Function {
        name: "input",
        usage: "input(#{ match }, action)",
        counts: &[2],
        run: |c| rules::hook(c, Hook::Input),
    },
    Function {
        name: "forward",
        usage: "forward(#{ match }, action)",
        counts: &[2],
        run: |c| rules::hook(c, Hook::Forward),
    },
    Function {
        name: "output",
        usage: "output(#{ match }, action)",
        counts: &[2],
        run: |c| rules::hook(c, Hook::Output),
    },
    Function {
        name: "postrouting",
        usage: "postrouting(#{ match }, action)",
        counts: &[2],
        run: |c| rules::hook(c, Hook::Postrouting),
    },
    Function { name: "rule", usage: "rule(chain, #{ match }, action)", counts: &[3], run: rules::rule },
    Function { name: "reject", usage: "reject(kind)", counts: &[1], run: actions::reject },
    Function { name: "jump", usage: "jump(chain)", counts: &[1], run: actions::jump },
    Function { name: "go_to", usage: "go_to(chain)", counts: &[1], run: actions::go_to },
    Function { name: "return_", usage: "return_()", counts: &[0], run: actions::return_ },
    Function { name: "mark", usage: "mark(number)", counts: &[1], run: actions::mark },
    Function { name: "count", usage: "count(name)", counts: &[1], run: actions::count },
    Function { name: "snat", usage: "snat(#{ pool: … })", counts: &[1], run: actions::snat },
    Function { name: "masquerade", usage: "masquerade(#{ ports: … })", counts: &[1], run: actions::masquerade },
    Function { name: "connmark", usage: "connmark(number)", counts: &[1], run: actions::connmark },
    Function { name: "dnat", usage: "dnat(#{ to: … })", counts: &[1], run: actions::dnat },
    Function { name: "redirect", usage: "redirect(port)", counts: &[1], run: actions::redirect },
    Function { name: "netmap", usage: "netmap(prefix)", counts: &[1], run: actions::netmap },
    Function { name: "not", usage: "not(value)", counts: &[1], run: not },
    Function { name: "data", usage: "data(\"file.json\")", counts: &[1], run: files::data },
    Function { name: "sleep", usage: "", counts: &[], run: |_| Dynamic::UNIT },
];

/// Functions of the language whose feature does not exist yet: refused, never ignored.
const LATER: &[&str] = &["set", "service", "log", "dscp", "mss", "limit", "add", "tproxy", "queue", "ct"];

/// Actions that are written without parentheses.
const CONSTANTS: &[(&str, ActionKind)] = &[
    ("accept", ActionKind::Accept),
    ("drop", ActionKind::Drop),
    ("reject", ActionKind::Reject(RejectKind::Default)),
    ("notrack", ActionKind::Notrack),
    ("masquerade", ActionKind::Masquerade { ports: None, random: false }),
    ("continue_", ActionKind::Continue),
];

/// Names of all functions.
pub fn functions() -> impl Iterator<Item = &'static str> {
    FUNCTIONS.iter().map(|f| f.name).filter(|name| *name != "sleep").chain(LATER.iter().copied())
}

/// Names of all constants.
pub fn constants() -> impl Iterator<Item = &'static str> {
    CONSTANTS.iter().map(|(name, _)| *name)
}

/// Registers everything.
pub fn register(engine: &mut Engine, session: &Arc<Session>) {
    constants_everywhere(engine);
    for function in FUNCTIONS {
        for count in 0..=MOST_ARGUMENTS {
            let types = vec![TypeId::of::<Dynamic>(); count];
            let session = Arc::clone(session);
            engine.register_raw_fn(function.name, types, move |context, arguments| {
                Ok(function.call(&session, &context, arguments))
            });
        }
    }
    for name in LATER {
        for count in 0..=MOST_ARGUMENTS {
            let types = vec![TypeId::of::<Dynamic>(); count];
            let session = Arc::clone(session);
            engine.register_raw_fn(*name, types, move |context, _| {
                let at = session.position(context.call_source(), context.call_position());
                session.fault(at, name, "not available yet");
                Ok(Dynamic::from(Broken))
            });
        }
    }
    // The engine's own would be found first by their exact types.
    let whole = Arc::clone(session);
    engine.register_fn("sleep", move |context: NativeCallContext, _: i64| no_sleep(&whole, &context));
    let part = Arc::clone(session);
    engine.register_fn("sleep", move |context: NativeCallContext, _: f64| no_sleep(&part, &context));
}

/// Makes constants known in functions, in imported files and in closures. Constants of a global module would do for the
/// first two, but a closure captures every name that is not its own, and only a resolver can give it such a value.
fn constants_everywhere(engine: &mut Engine) {
    let constant = |kind: &ActionKind| Dynamic::from(ScriptAction(Action { at: None, kind: kind.clone() }));
    let constants: Vec<(&str, Dynamic)> = CONSTANTS.iter().map(|(name, kind)| (*name, constant(kind))).collect();
    #[expect(deprecated, reason = "that is how the crate marks what may change with its next version")]
    engine.on_var(move |name, index, context| {
        // An index is that of a variable of the script.
        let found = constants.iter().filter(|_| index == 0).find(|(constant, _)| *constant == name);
        Ok(found.filter(|_| !context.scope().contains(name)).map(|(_, value)| value.clone()))
    });
}

/// Makes unknown names harmless, so that a run can go on to other errors. They have been reported.
pub fn forgive<'n>(
    engine: &mut Engine,
    variables: impl Iterator<Item = &'n str>,
    functions: impl Iterator<Item = &'n str>,
) {
    let mut module = Module::new();
    for name in variables {
        module.set_var(name, Broken);
    }
    engine.register_global_module(module.into());
    for name in functions {
        for count in 0..=MOST_ARGUMENTS {
            let types = vec![TypeId::of::<Dynamic>(); count];
            engine.register_raw_fn(name, types, |_, _| Ok(Dynamic::from(Broken)));
        }
    }
}

fn no_sleep(session: &Session, context: &NativeCallContext) {
    let at = session.position(context.call_source(), context.call_position());
    session.fault(at, "sleep", "a rule script declares and never waits");
}

impl Function {
    fn call(
        &'static self,
        session: &Session,
        context: &NativeCallContext,
        arguments: &mut [&mut Dynamic],
    ) -> Dynamic {
        let call = Call {
            session,
            context,
            function: self.name,
            at: session.position(context.call_source(), context.call_position()),
            arguments: arguments.iter().map(|argument| argument.flatten_clone()).collect(),
        };
        if self.name == "sleep" {
            no_sleep(session, context);
            return Dynamic::UNIT;
        }
        if !self.counts.contains(&arguments.len()) {
            let found = arguments.len();
            if found == 0 && constants().any(|name| name == self.name) {
                call.fault("without options it is written without parentheses");
            } else {
                let s = if found == 1 { "" } else { "s" };
                call.fault(format!("found {found} argument{s}, it is called as {}", self.usage));
            }
            return Dynamic::from(Broken);
        }
        (self.run)(&call)
    }
}

fn not(call: &Call) -> Dynamic {
    match call.arguments.first() {
        Some(value) if !value.is::<Broken>() => Dynamic::from(Negated(value.clone())),
        _ => Dynamic::from(Broken),
    }
}

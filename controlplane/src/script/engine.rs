//! The sandbox: an engine with our functions, its limits, and its errors in our words.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use rhai::{Dynamic, Engine, EvalAltResult, OptimizationLevel, ParseErrorType, Scope};

use super::resolver::{Resolver, Tree, read_text};
use super::session::{Session, State};
use super::values::{Broken, Negated, ScriptAction};
use super::{Diagnostic, Fault, api, limits, names};
use crate::policy::Policy;

/// What a run left.
pub struct Outcome {
    /// What was declared.
    pub policy: Policy,
    /// What was wrong.
    pub faults: Vec<Fault>,
    /// What was printed.
    pub printed: Vec<Fault>,
    /// The script and what it imported.
    pub sources: Vec<(PathBuf, String)>,
    /// Data it read.
    pub data: Vec<(PathBuf, String)>,
    /// It ran to its end.
    pub complete: bool,
}

/// Error token of [`reported`].
#[derive(Clone)]
struct Reported;

/// Ends a run whose error has been recorded.
pub fn reported(at: rhai::Position) -> Box<EvalAltResult> {
    EvalAltResult::ErrorRuntime(Dynamic::from(Reported), at).into()
}

/// Reads and runs a script.
///
/// # Errors
/// One, if it cannot be read or run at all.
pub fn run(path: &Path) -> Result<Outcome, Vec<Diagnostic>> {
    let refuse = |message: String| {
        let place = path.display().to_string();
        vec![Diagnostic { place, function: String::new(), message, at: erhu_planes::program::Position::default() }]
    };
    let text = read_text(path).map_err(refuse)?;
    let tree = Tree::of(path).map_err(refuse)?;
    let session = Arc::new(Session::new(tree));
    session.state().sources.push((path.to_owned(), text.clone()));
    // A thread of its own: the stack that the depth limits need is larger than what a caller may have left.
    let worker = {
        let session = Arc::clone(&session);
        let name = path.display().to_string();
        thread::Builder::new()
            .name("rule script".into())
            .stack_size(limits::STACK_BYTES)
            .spawn(move || evaluate(&session, &name, &text))
    };
    let worker = worker.map_err(|e| refuse(format!("cannot start the script engine: {e}")))?;
    let complete = worker.join().map_err(|_| refuse("the script engine failed; nothing was declared".into()))?;
    let State { policy, faults, printed, sources, data, .. } = std::mem::take(&mut *session.state());
    Ok(Outcome { policy, faults, printed, sources, data: data.into_iter().collect(), complete })
}

/// Runs a script to its end if it has one.
fn evaluate(session: &Arc<Session>, name: &str, text: &str) -> bool {
    let mut engine = build(session);
    let failed = |engine: &Engine, error: &EvalAltResult| {
        let fault = fault(engine, session, error, Some(name));
        session.state().faults.extend(fault);
        false
    };
    let mut ast = match engine.compile(text) {
        Ok(ast) => ast,
        Err(error) => return failed(&engine, &error.into()),
    };
    ast.set_source(name);
    let unknown = names::unknown(&engine, &ast);
    for wrong in &unknown {
        session.fault(session.position(None, wrong.at), "", wrong.message.clone());
    }
    let of_kind = |is_function| unknown.iter().filter(move |u| u.is_function == is_function).map(|u| u.name.as_str());
    api::forgive(&mut engine, of_kind(false), of_kind(true));
    match engine.run_ast_with_scope(&mut Scope::new(), &ast) {
        Ok(()) => true,
        Err(error) => failed(&engine, &error),
    }
}

fn build(session: &Arc<Session>) -> Engine {
    let mut engine = Engine::new();
    engine
        .set_optimization_level(OptimizationLevel::None)
        .set_max_operations(limits::OPERATIONS)
        .set_max_call_levels(limits::CALL_LEVELS)
        .set_max_expr_depths(limits::EXPRESSION_DEPTH, limits::EXPRESSION_DEPTH)
        .set_max_variables(limits::VARIABLES)
        .set_max_functions(limits::FUNCTIONS)
        .set_max_modules(limits::MODULES)
        .set_max_string_size(limits::STRING_BYTES)
        .set_max_array_size(limits::ARRAY_ELEMENTS)
        .set_max_map_size(limits::MAP_ENTRIES)
        .set_module_resolver(Resolver::new(session))
        .disable_symbol("eval")
        .register_type_with_name::<ScriptAction>("action")
        .register_type_with_name::<Negated>("not(…)");
    // The engine counts each import and each callback on its own; this counts all of them.
    let (started, operations) = (Instant::now(), AtomicU64::new(0));
    engine.on_progress(move |_| {
        let count = operations.fetch_add(1, Ordering::Relaxed);
        if count >= limits::OPERATIONS {
            return Some(too_many().into());
        }
        // The clock is read now and then only: it costs more than an operation.
        let is_late = count.is_multiple_of(1024) && started.elapsed() > limits::TIME;
        is_late.then(|| {
            format!("ran longer than {} s: is there a loop that does not end?", limits::TIME.as_secs()).into()
        })
    });
    let printing = Arc::clone(session);
    engine.on_print(move |text| printed(&printing, "print", text, None, rhai::Position::NONE));
    let debugging = Arc::clone(session);
    engine.on_debug(move |text, source, at| printed(&debugging, "debug", text, source, at));
    api::register(&mut engine, session);
    engine
}

fn too_many() -> String {
    format!("more than {} operations: is there a loop that does not end?", limits::OPERATIONS)
}

fn printed(session: &Session, function: &str, text: &str, source: Option<&str>, at: rhai::Position) {
    const MOST: usize = 1000;
    let mut state = session.state();
    if state.printed.len() < MOST {
        let at = state.position(source, at);
        state.printed.push(Fault::new(at, function, text.chars().take(MOST).collect::<String>()));
    }
}

/// An error of the engine in our words; `None` if it has been recorded.
pub fn fault(engine: &Engine, session: &Session, error: &EvalAltResult, source: Option<&str>) -> Option<Fault> {
    // The place that counts is the innermost one, in the file whose function it is.
    match error {
        EvalAltResult::ErrorInFunctionCall(_, inner_source, inner, _) => {
            let source = if inner_source.is_empty() { source } else { Some(inner_source.as_str()) };
            return fault(engine, session, inner, source);
        }
        EvalAltResult::ErrorInModule(_, inner, _) => return fault(engine, session, inner, source),
        EvalAltResult::ErrorRuntime(value, _) if value.is::<Reported>() => return None,
        _ => {}
    }
    let mut function = String::new();
    // What a wrong call gave back cannot be computed with; that call has been reported.
    if error.to_string().contains(std::any::type_name::<Broken>()) {
        return None;
    }
    let message = match error {
        EvalAltResult::ErrorParsing(ParseErrorType::VariableUndefined(name), _) => {
            names::variable_message(name, std::iter::empty())
        }
        EvalAltResult::ErrorParsing(kind, _) => format!("syntax error: {kind}"),
        EvalAltResult::ErrorVariableNotFound(name, _) => names::variable_message(name, std::iter::empty()),
        EvalAltResult::ErrorFunctionNotFound(signature, _) => not_found(engine, signature),
        EvalAltResult::ErrorTooManyOperations(_) => too_many(),
        EvalAltResult::ErrorTerminated(why, _) => why.to_string(),
        EvalAltResult::ErrorStackOverflow(_) => {
            format!("calls are nested deeper than {}: does a function call itself without end?", limits::CALL_LEVELS)
        }
        EvalAltResult::ErrorTooManyVariables(_) => format!("more than {} variables", limits::VARIABLES),
        EvalAltResult::ErrorTooManyModules(_) => format!("more than {} files are imported", limits::MODULES),
        EvalAltResult::ErrorRuntime(value, _) => {
            function = "throw".into();
            value.to_string()
        }
        other => {
            let text = other.to_string();
            let place = other.position();
            let suffix = format!(" ({place})");
            text.strip_suffix(&suffix).unwrap_or(&text).to_owned()
        }
    };
    Some(Fault { at: session.position(source, error.position()), function, message })
}

/// The engine knows functions with their types; its signature reads `name (type, type)`.
fn not_found(engine: &Engine, signature: &str) -> String {
    let (name, types) = signature.split_once(" (").unwrap_or((signature, ")"));
    let types = types
        .trim_end_matches(')')
        .replace("&str | ImmutableString | String", "string")
        .replace("i64", "integer")
        .replace("f64", "float");
    let known = names::engine_functions(engine);
    if !name.starts_with(|c: char| c.is_alphabetic() || c == '_') {
        format!("`{name}` is not possible with ({types})")
    } else if known.contains(name) {
        format!("`{name}` cannot be called with ({types})")
    } else {
        names::function_message(name, std::iter::empty(), known)
    }
}

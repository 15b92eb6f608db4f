//! Finds names that nothing defines before a script runs, so that one run reports all of them.

use std::collections::HashSet;
use std::sync::OnceLock;

use rhai::{AST, ASTNode, Engine, Expr, Position, Stmt};

use super::api;
use super::suggest::did_you_mean;

/// A name that nothing defines.
pub struct Unknown {
    /// Where it is used.
    pub at: Position,
    /// The name.
    pub name: String,
    /// Whether it is called.
    pub is_function: bool,
    /// What to tell.
    pub message: String,
}

/// Names the engine treats like functions.
const BUILT_IN: [&str; 9] =
    ["print", "debug", "type_of", "call", "curry", "Fn", "is_def_fn", "is_def_var", "is_shared"];

/// All uses of functions and variables that are defined nowhere in a file, nor by the engine, nor by us. What is
/// defined somewhere, but not where it is used, is left to the run.
pub fn unknown(engine: &Engine, ast: &AST) -> Vec<Unknown> {
    let mut declared: HashSet<String> = HashSet::new();
    let mut defined: HashSet<String> = HashSet::new();
    for function in ast.iter_functions() {
        defined.insert(function.name.to_string());
        declared.extend(function.params.iter().map(ToString::to_string));
    }
    ast.walk(&mut |path: &[ASTNode]| {
        if let Some(ASTNode::Stmt(statement)) = path.last() {
            declare(statement, &mut declared);
        }
        true
    });
    let known = engine_functions(engine);
    let is_function = |name: &str| defined.contains(name) || known.contains(name) || BUILT_IN.contains(&name);
    let mut found = Vec::new();
    ast.walk(&mut |path: &[ASTNode]| {
        match path.last() {
            Some(ASTNode::Stmt(Stmt::FnCall(call, at)) | ASTNode::Expr(Expr::FnCall(call, at)))
                if call.op_token.is_none() && call.namespace.is_empty() && is_identifier(&call.name) =>
            {
                let name = call.name.as_str();
                if !is_function(name) && !declared.contains(name) {
                    let message = function_message(name, defined.iter().map(String::as_str), known);
                    found.push(Unknown { at: *at, name: name.into(), is_function: true, message });
                }
            }
            Some(ASTNode::Expr(Expr::Variable(variable, None, at)))
                if variable.0.is_none() && variable.2.is_empty() =>
            {
                let name = variable.1.as_str();
                if !declared.contains(name) && !defined.contains(name) && !api::constants().any(|c| c == name) {
                    let message = variable_message(name, declared.iter().map(String::as_str));
                    found.push(Unknown { at: *at, name: name.into(), is_function: false, message });
                }
            }
            _ => {}
        }
        true
    });
    found
}

fn declare(statement: &Stmt, declared: &mut HashSet<String>) {
    match statement {
        Stmt::Var(variable, ..) => {
            declared.insert(variable.0.name.to_string());
        }
        Stmt::For(parts, _) => {
            declared.insert(parts.0.name.to_string());
            declared.extend(parts.1.as_ref().map(|counter| counter.name.to_string()));
        }
        Stmt::TryCatch(parts, _) => {
            if let Expr::Variable(variable, ..) = &parts.expr {
                declared.insert(variable.1.to_string());
            }
        }
        Stmt::Share(captured) => declared.extend(captured.iter().map(|(name, _)| name.name.to_string())),
        _ => {}
    }
}

/// What to tell about a function that is not defined.
pub fn function_message<'n>(
    name: &str,
    defined: impl Iterator<Item = &'n str>,
    known: &'n HashSet<String>,
) -> String {
    if api::constants().any(|constant| constant == name) {
        return format!("`{name}` is written without parentheses");
    }
    // Ours first: of equally near names it is the likelier one.
    let mut rest: Vec<&str> = defined.chain(known.iter().map(String::as_str)).filter(|n| is_identifier(n)).collect();
    rest.sort_unstable();
    let mut all: Vec<&str> = api::functions().collect();
    all.extend(rest);
    format!("unknown function `{name}`{}", did_you_mean(name, all))
}

/// What to tell about a variable that is not defined.
pub fn variable_message<'n>(name: &str, declared: impl Iterator<Item = &'n str>) -> String {
    if api::functions().any(|function| function == name) {
        return format!("`{name}` is a function, it is written `{name}(…)`");
    }
    let mut rest: Vec<&str> = declared.collect();
    rest.sort_unstable();
    let mut all: Vec<&str> = api::constants().collect();
    all.extend(rest);
    format!("unknown name `{name}`{}", did_you_mean(name, all))
}

/// Names of all functions that any engine of ours has.
pub fn engine_functions(engine: &Engine) -> &'static HashSet<String> {
    static NAMES: OnceLock<HashSet<String>> = OnceLock::new();
    NAMES.get_or_init(|| {
        let signatures = engine.gen_fn_signatures(true);
        signatures.iter().filter_map(|s| s.split_once('(')).map(|(name, _)| name.trim().to_owned()).collect()
    })
}

fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

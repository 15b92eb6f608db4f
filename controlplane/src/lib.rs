//! erhu's control plane: what turns an operator's rule script into a published rule program, and what
//! reads back what the dataplane does.
//!
//! # Overview
//!
//! [`script`] runs a Rhai script once to collect a [`policy`]: typed declarations with their positions.
//! [`compile`] resolves its names into a rule program, [`check`] looks for what is allowed but hardly meant,
//! [`diff`] says how two programs differ. [`check_script`] is all of that in one call.
//!
//! [`client`] speaks to the dataplane, [`serve`] is the daemon, [`cli`] the commands, [`conntrack`] and
//! [`show`] what they print.

#![forbid(unsafe_code)]

pub mod check;
pub mod cli;
pub mod client;
pub mod compile;
pub mod config;
pub mod conntrack;
pub mod diff;
pub mod history;
pub mod policy;
pub mod script;
pub mod serve;
pub mod show;

pub use script::{Checked, Diagnostic, Facts, check_script};

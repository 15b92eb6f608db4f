//! Walks of compiled rules, through the crate's public side.

mod oracle;
mod semantics;
mod support;

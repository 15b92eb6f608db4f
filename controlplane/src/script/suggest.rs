//! Suggestions for misspelt names.

pub use erhu_config::suggest::{did_you_mean, list, nearest};

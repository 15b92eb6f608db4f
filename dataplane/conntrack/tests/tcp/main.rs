//! TCP tracking: the state table, the windows, resets and timeouts, by themselves and against an independent oracle.

mod lives;
mod oracle;
mod random;
mod support;
mod table;
mod windows;

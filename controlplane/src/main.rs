//! The `erhu` command.

#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use erhu_controlplane::cli::{self, Env};

fn main() -> ExitCode {
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let is_terminal = err.is_terminal();
    let mut env = Env { out: &mut out, err: &mut err, dataplane: None, is_terminal };
    let status = cli::run(std::env::args_os().skip(1), &mut env);
    let _ = io::stdout().flush();
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}

//! The `erhu` command line.
//!
//! # Overview
//!
//! [`run`] parses, runs and returns the exit status: 0 for success, 1 for a refusal that was explained, 2 for wrong
//! usage. Everything it touches comes in by [`Env`], so that the same commands serve the real process, a replay (which
//! lends its own dataplane) and tests.

pub mod rules;
pub mod table;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use erhu_planes::region::RegionError;

use crate::client::{AskError, Client, ClientError, Dataplane};
use crate::conntrack::ConntrackArgs;
use crate::history::HistoryError;
use crate::show::ShowArgs;

/// What a command line touches.
pub struct Env<'a> {
    /// Standard output.
    pub out: &'a mut (dyn Write + 'a),
    /// Standard error.
    pub err: &'a mut (dyn Write + 'a),
    /// The dataplane to work on; `None`: the running one that `--instance` names.
    pub dataplane: Option<&'a mut (dyn Dataplane + 'a)>,
    /// Whether a person is looking on: long work then says that it goes on.
    pub is_terminal: bool,
}

/// Where a command writes.
pub(crate) struct Io<'a> {
    pub(crate) out: &'a mut (dyn Write + 'a),
    pub(crate) err: &'a mut (dyn Write + 'a),
    pub(crate) is_terminal: bool,
    /// Data as JSON.
    pub(crate) json: bool,
}

/// Why a command ends with another status than 0.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Wrong usage: status 2.
    #[error("{0}")]
    Usage(String),
    /// What a later version will do.
    #[error("{0}: not available yet")]
    NotYet(String),
    /// A refusal, explained.
    #[error("{0}")]
    Refused(String),
    /// Already explained.
    #[error("refused")]
    Said,
    /// No dataplane.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The dataplane refused or did not answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// Shared memory cannot be read.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The history cannot be kept.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// Output cannot be written.
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
}

impl Failure {
    fn status(&self) -> i32 {
        match self {
            Self::Usage(_) => 2,
            // Whoever read our output has seen enough.
            Self::Write(e) if e.kind() == io::ErrorKind::BrokenPipe => 0,
            _ => 1,
        }
    }

    fn is_silent(&self) -> bool {
        matches!(self, Self::Said) || self.status() == 0
    }
}

/// How a summary line opens: program, version, command.
pub(crate) fn banner(command: &str) -> String {
    format!("erhu v{} ({command})", env!("CARGO_PKG_VERSION"))
}

/// Rules, connections and counters of an erhu virtual router
#[derive(Debug, Parser)]
#[command(
    name = "erhu",
    version,
    after_help = "Example:\n  erhu check rules.rhai && erhu apply rules.rhai && erhu show zones"
)]
struct Cli {
    /// The instance to work on; needed only where several run
    #[arg(long, global = true, value_name = "NAME")]
    instance: Option<String>,
    /// Print data as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Evaluate and analyse a rule script without a dataplane
    #[command(after_help = "Example:\n  erhu check rules.rhai --config /etc/erhu/edge1.toml")]
    Check {
        /// The rule script
        script: PathBuf,
        /// Check against this dataplane configuration's ports and capacity too
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Check a rule script, show what it changes, publish it and wait until every worker has it
    #[command(after_help = "Example:\n  erhu apply rules.rhai --dry-run")]
    Apply {
        /// The rule script
        script: PathBuf,
        /// Show what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Publish an earlier rule set again, by default the one before the running one
    #[command(after_help = "Example:\n  erhu rollback 12")]
    Rollback {
        /// Its generation
        generation: Option<u32>,
    },
    Show(ShowArgs),
    Conntrack(Box<ConntrackArgs>),
    /// The control plane's daemon: adopts the rule set that runs, or applies the configured one
    #[command(after_help = "Example:\n  erhu serve --config /etc/erhu/edge1.toml")]
    Serve {
        /// The dataplane's configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Not available yet: change a set at run time
    #[command(after_help = "Example:\n  erhu set add blocked 192.0.2.7")]
    Set(Later),
    /// Not available yet: a live terminal view
    #[command(after_help = "Example:\n  erhu top")]
    Top(Later),
    /// Not available yet: follow packets through every stage
    #[command(after_help = "Example:\n  erhu trace -s 10.0.0.5")]
    Trace(Later),
    /// Not available yet: packets as pcapng
    #[command(after_help = "Example:\n  erhu capture wan -w out.pcapng")]
    Capture(Later),
}

/// Arguments of a command that is still to come.
#[derive(Args, Debug)]
#[command(about = None, long_about = None)]
struct Later {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs one command line (without the program's name) and returns its exit status.
pub fn run(args: impl IntoIterator<Item = OsString>, env: &mut Env<'_>) -> i32 {
    let cli = match Cli::try_parse_from(std::iter::once("erhu".into()).chain(args)) {
        Ok(cli) => cli,
        Err(error) => {
            let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let text = error.render();
            // There is nobody left to tell that this could not be written.
            let _ = if asked_for { write!(env.out, "{text}") } else { write!(env.err, "{text}") };
            return if asked_for { 0 } else { 2 };
        }
    };
    let mut io = Io { out: &mut *env.out, err: &mut *env.err, is_terminal: env.is_terminal, json: cli.json };
    let dataplane = env.dataplane.as_deref_mut();
    let result =
        execute(cli.command, cli.instance.as_deref(), &mut io, dataplane).and_then(|()| Ok(io.out.flush()?));
    match result {
        Ok(()) => 0,
        Err(failure) => {
            if !failure.is_silent() {
                let _ = writeln!(env.err, "erhu: {failure}");
            }
            failure.status()
        }
    }
}

fn execute(
    command: Command,
    instance: Option<&str>,
    io: &mut Io<'_>,
    lent: Option<&mut (dyn Dataplane + '_)>,
) -> Result<(), Failure> {
    // Connected only by commands that need it, after they know that they make sense.
    let mut client = None;
    match command {
        Command::Check { script, config } => rules::check(&script, config.as_deref(), io),
        Command::Apply { script, dry_run } => rules::apply(&script, dry_run, io, reach(lent, &mut client, instance)?),
        Command::Rollback { generation } => rules::rollback(generation, io, reach(lent, &mut client, instance)?),
        Command::Show(args) => {
            args.check()?;
            crate::show::run(&args, io, reach(lent, &mut client, instance)?)
        }
        Command::Conntrack(args) => {
            args.check()?;
            crate::conntrack::run(&args, io, reach(lent, &mut client, instance)?)
        }
        Command::Serve { .. } if lent.is_some() => Err(Failure::Refused("serve is a process of its own".into())),
        Command::Serve { config } => crate::serve::run(&config),
        Command::Set(_) => Err(Failure::NotYet("set".into())),
        Command::Top(_) => Err(Failure::NotYet("top".into())),
        Command::Trace(_) => Err(Failure::NotYet("trace".into())),
        Command::Capture(_) => Err(Failure::NotYet("capture".into())),
    }
}

/// The dataplane that was lent, else the running one.
fn reach<'a, 'd>(
    lent: Option<&'a mut (dyn Dataplane + 'd)>,
    client: &'a mut Option<Client>,
    instance: Option<&str>,
) -> Result<&'a mut (dyn Dataplane + 'd), Failure> {
    match lent {
        Some(dataplane) => Ok(dataplane),
        None => Ok(client.insert(Client::connect(instance)?)),
    }
}

/// The arguments for [`run`] of a command in one text, `COMMAND` or `COMMAND:ARGUMENTS` (`apply:other.rhai`,
/// `conntrack:-F -w 1`): words are separated by blanks; quotes and backslashes keep them together as in a shell.
///
/// # Errors
/// If a quote is not closed.
pub fn split_command(text: &str) -> Result<Vec<OsString>, String> {
    let text = text.trim_start();
    let name = text.find(|c: char| c.is_whitespace() || c == ':').unwrap_or(text.len());
    let (command, arguments) = text.split_at(name);
    let mut words: Vec<OsString> = vec![command.into()];
    words.extend(shell_words(arguments.strip_prefix(':').unwrap_or(arguments))?);
    Ok(words)
}

fn shell_words(text: &str) -> Result<Vec<OsString>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(chars.next()),
            (None, c) if c.is_whitespace() => words.extend(word.take().map(OsString::from)),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(quote) = quote {
        return Err(format!("{quote} is not closed in `{text}`"));
    }
    words.extend(word.map(OsString::from));
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_every_command_has_an_example() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        for sub in command.get_subcommands().filter(|s| s.get_name() != "help") {
            let help = sub.clone().render_long_help().to_string();
            assert!(help.contains("Example"), "{}", sub.get_name());
            assert!(help.contains("--instance") && help.contains("--json"), "{}", sub.get_name());
        }
    }

    #[test]
    fn a_command_in_one_text_is_split_as_a_shell_would() {
        let split = |text: &str| -> Vec<String> {
            split_command(text).unwrap().into_iter().map(|w| w.into_string().unwrap()).collect()
        };
        assert_eq!(split("apply:other.rhai"), ["apply", "other.rhai"]);
        assert_eq!(split("apply:'my rules/other.rhai' --dry-run"), ["apply", "my rules/other.rhai", "--dry-run"]);
        assert_eq!(split("conntrack:-F -w 1"), ["conntrack", "-F", "-w", "1"]);
        assert_eq!(split("conntrack -G -s 2001:db8::1"), ["conntrack", "-G", "-s", "2001:db8::1"]);
        assert_eq!(split(r#"apply:a\ b "c\"d" """#), ["apply", "a b", "c\"d", ""]);
        assert_eq!(split("rollback"), ["rollback"]);
        assert!(split_command("apply:'x").is_err());
    }
}

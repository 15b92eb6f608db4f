//! `erhu serve`: the control plane's daemon.
//!
//! # Life-cycle
//!
//! Waits for the instance's dataplane. One that already runs a rule set keeps it; one that runs none gets the
//! configured script, or, if it is the successor of one that this daemon has seen, the rule set that ran last. The
//! daemon looks again twice a second, so a dataplane that is started anew is noticed by its instance id. A script that
//! does not check is tried again when its file changes. Ends on SIGTERM and SIGINT, between two looks.
//!
//! The dataplane needs the daemon for nothing else: killing it costs no packet.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use erhu_planes::instance::{InstanceDir, state_root};
use signal_hook::consts::{SIGINT, SIGTERM};
use tracing::{error, info, warn};

use crate::cli::Failure;
use crate::cli::rules::facts;
use crate::client::{AskError, Client, status};
use crate::config::Config;
use crate::history::{self, PublishError, Stored};
use crate::script::check_script;

/// Between two looks at a dataplane that has what it needs.
const CALM: Duration = Duration::from_millis(500);
/// Between two looks for one that is not there or has no rule set.
const EAGER: Duration = Duration::from_millis(100);

/// Runs the daemon until a signal ends it.
///
/// # Errors
/// [`Failure::Refused`] if the configuration is wrong or signals cannot be caught.
pub fn run(config: &Path) -> Result<(), Failure> {
    let config = Config::load(config).map_err(|e| Failure::Refused(e.to_string()))?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    // Fails only where a subscriber is set already, and then that one serves.
    let _ = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .try_init();
    let files = InstanceDir::named(&config.instance);
    let state = state_root().join(&config.instance);
    info!(instance = config.instance, socket = %files.socket().display(), "waiting for the dataplane");
    Daemon::new(files, state, config.rules).run(&stop);
    info!("ended by a signal; the dataplane goes on");
    Ok(())
}

/// What the daemon remembers between two looks.
#[derive(Debug)]
pub struct Daemon {
    files: InstanceDir,
    state: PathBuf,
    script: PathBuf,
    /// The dataplane process seen last.
    known: Option<u64>,
    /// Whether it was there at the last look.
    is_there: bool,
    /// Its generation at the last look.
    generation: u32,
    /// Whether some dataplane ran a rule set while this daemon looked.
    has_seen_rules: bool,
    /// What was tried in vain: a script that did not change is not tried again.
    failed: Option<Option<SystemTime>>,
}

/// Why a dataplane was left without a rule set.
#[derive(Debug, thiserror::Error)]
enum SettleError {
    #[error("{0}")]
    Script(String),
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl From<AskError> for SettleError {
    fn from(error: AskError) -> Self {
        Self::Publish(error.into())
    }
}

impl Daemon {
    /// A daemon for the dataplane whose files are in `files`, with its history in `state` and its first rule set in
    /// `script`.
    pub fn new(files: InstanceDir, state: PathBuf, script: PathBuf) -> Self {
        Self {
            files,
            state,
            script,
            known: None,
            is_there: false,
            generation: 0,
            has_seen_rules: false,
            failed: None,
        }
    }

    /// Looks again and again until `stop`.
    pub fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let is_settled = self.look();
            std::thread::sleep(if is_settled { CALM } else { EAGER });
        }
    }

    /// Looks once, and does what there is to do. Returns whether the dataplane is there and has a rule set.
    pub fn look(&mut self) -> bool {
        let client = Client::at(self.files.clone(), self.state.clone());
        let answer = client.map_err(AskError::from).and_then(|mut client| Ok((status(&mut client)?, client)));
        let (status, mut client) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                if self.is_there {
                    warn!(%error, "the dataplane is gone; waiting for it");
                }
                self.is_there = false;
                return false;
            }
        };
        if self.known != Some(status.instance_id) {
            info!(pid = status.pid, version = status.version, generation = status.generation, "found the dataplane");
            (self.known, self.failed, self.generation) = (Some(status.instance_id), None, 0);
        }
        self.is_there = true;
        if status.generation == 0 {
            return self.settle(&mut client);
        }
        if status.generation != self.generation {
            // Brings the history in line with what runs, whoever published it and however far they got.
            match history::open(&mut client) {
                Ok(_) => info!(generation = status.generation, "adopted the rule set that runs"),
                Err(error) => {
                    warn!(%error, generation = status.generation, "the running rule set is not in the history")
                }
            }
        }
        (self.generation, self.has_seen_rules) = (status.generation, true);
        true
    }

    /// Gives a rule set to a dataplane that has none.
    fn settle(&mut self, client: &mut Client) -> bool {
        let changed = std::fs::metadata(&self.script).and_then(|m| m.modified()).ok();
        if self.failed == Some(changed) {
            return false;
        }
        match self.publish(client) {
            Ok(generation) => {
                (self.generation, self.has_seen_rules, self.failed) = (generation, true, None);
                true
            }
            // It may have been busy starting; the next look tries again.
            Err(SettleError::Publish(PublishError::Ask(AskError::Io(error)))) => {
                warn!(%error, "no answer while publishing");
                false
            }
            Err(error) => {
                error!("{error}");
                error!(script = %self.script.display(), "no rule set yet: mend the script, or use `erhu apply`");
                self.failed = Some(changed);
                false
            }
        }
    }

    fn publish(&self, client: &mut Client) -> Result<u32, SettleError> {
        let history = history::open(client)?;
        if self.has_seen_rules
            && let Some(history) = &history
            && let Some(last) = history.last().map_err(PublishError::from)?
        {
            match history::publish(client, Some(history), &last) {
                Ok(generation) => {
                    info!(generation, "published the rule set that ran last");
                    return Ok(generation);
                }
                Err(error) => warn!(%error, "what ran last cannot be used; taking the configured script"),
            }
        }
        let checked = check_script(&self.script, &facts(client)?).map_err(|errors| {
            SettleError::Script(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        })?;
        for warning in &checked.warnings {
            warn!("{warning}");
        }
        let program = checked.program.encode().map_err(|e| SettleError::Script(e.to_string()))?;
        let script = checked.sources.first().map(|(_, text)| text.clone());
        let generation = history::publish(client, history.as_ref(), &Stored { program, script })?;
        info!(generation, script = %self.script.display(), "published the configured script");
        Ok(generation)
    }
}

//! The dataplane's configuration: facts of the machine, in TOML. Policy is the script's.

#![forbid(unsafe_code)]

pub mod suggest;

use std::ops::Range;
use std::path::{Path, PathBuf};

use erhu_planes::{MAX_PORTS, MAX_WORKERS};
use serde::Deserialize;

pub use suggest::did_you_mean;

/// What the dataplane and the daemon are told about their machine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Names the shared-memory folder; several instances can run on one host.
    pub instance: String,
    /// CPU numbers: one pinned poll loop each.
    pub workers: Vec<u32>,
    /// CPU number of the main thread.
    pub main_core: u32,
    /// Connections that may live at once, all workers together.
    pub connections: u32,
    /// The rule script that the daemon applies at start; relative to the configuration's own folder.
    pub rules: PathBuf,
    /// Whether to use huge pages (`false`: `--no-huge`).
    pub hugepages: bool,
    /// Memory for packet buffers, MiB.
    pub memory_mb: u32,
    /// Passed to the EAL as they are.
    pub eal_args: Vec<String>,
    /// Ports; their position is their number.
    #[serde(rename = "port")]
    pub ports: Vec<PortConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            instance: String::new(),
            workers: Vec::new(),
            main_core: 0,
            connections: 1_000_000,
            rules: "rules.rhai".into(),
            hugepages: true,
            memory_mb: 1024,
            eal_args: Vec::new(),
            ports: Vec::new(),
        }
    }
}

/// One port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    /// The name that scripts use.
    pub name: String,
    /// PCI address or vdev; empty where it is not needed.
    #[serde(default)]
    pub device: String,
    /// Length of each receive ring.
    #[serde(default = "descriptors")]
    pub rx_descriptors: u16,
    /// Length of each transmit ring.
    #[serde(default = "descriptors")]
    pub tx_descriptors: u16,
    /// MAC address to use instead of the device's own.
    #[serde(default, deserialize_with = "mac")]
    pub mac: Option<[u8; 6]>,
}

const fn descriptors() -> u16 {
    1024
}

/// The MAC address that replay gives a port without one: `02:65:72:68:75:NN`, NN its position.
pub const fn replay_mac(position: u8) -> [u8; 6] {
    [0x02, 0x65, 0x72, 0x68, 0x75, position]
}

fn mac<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<[u8; 6]>, D::Error> {
    let text = String::deserialize(from)?;
    parse_mac(&text).map(Some).map_err(serde::de::Error::custom)
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2 && !part.starts_with('+')))
        .collect();
    let address: Option<[u8; 6]> = bytes.and_then(|b| b.try_into().ok());
    match address {
        Some(address) if address[0] & 1 == 0 && address != [0; 6] => Ok(address),
        Some(_) => Err(format!("`{text}` is a multicast or zero MAC address")),
        None => Err(format!("`{text}` is no MAC address like 02:00:00:00:00:01")),
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// File.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It is not TOML, or a key or value is wrong.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Text {
        /// File.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// Every value is possible, but not these together, or one is missing.
    #[error("{}: {message}", path.display())]
    Meaning {
        /// File.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

impl Config {
    /// Reads the configuration of a real process: `instance`, `workers` and every port's `device` must be there.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config = Self::for_replay(path)?;
        config.is_complete().map_err(|message| ConfigError::Meaning { path: path.to_owned(), message })?;
        Ok(config)
    }

    /// Reads a configuration of which only the ports' names must be there.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn for_replay(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config: Self = toml::from_str(&text).map_err(|e| explain(path, &text, &e))?;
        config.has_sense().map_err(|message| ConfigError::Meaning { path: path.to_owned(), message })?;
        if let Some(folder) = path.parent() {
            config.rules = folder.join(&config.rules);
        }
        Ok(config)
    }

    fn has_sense(&self) -> Result<(), String> {
        if self.ports.is_empty() {
            return Err("there is no [[port]]".into());
        }
        if self.ports.len() > MAX_PORTS {
            return Err(format!("{} ports, at most {MAX_PORTS} are possible", self.ports.len()));
        }
        for (at, port) in self.ports.iter().enumerate() {
            let name = &port.name;
            if name.is_empty() || name.len() > erhu_planes::stats::NAME_BYTES || name.contains(['/', '=']) {
                return Err(format!("port `{name}`: a name has 1 to 48 bytes, without / and ="));
            }
            if self.ports[..at].iter().any(|other| other.name == *name) {
                return Err(format!("two ports are named `{name}`"));
            }
            if port.rx_descriptors == 0 || port.tx_descriptors == 0 {
                return Err(format!("port `{name}`: a ring has at least one descriptor"));
            }
        }
        if self.workers.len() > MAX_WORKERS {
            return Err(format!("{} workers, at most {MAX_WORKERS} are possible", self.workers.len()));
        }
        if let Some(cpu) = self.workers.iter().enumerate().find(|(at, cpu)| self.workers[..*at].contains(cpu)) {
            return Err(format!("workers: CPU {} is named twice", cpu.1));
        }
        if self.connections == 0 {
            return Err("connections: at least 1".into());
        }
        if self.instance.contains('/')
            || self.instance.starts_with('.')
            || self.instance.contains(char::is_whitespace)
        {
            return Err(format!("instance: `{}` cannot name a folder", self.instance));
        }
        Ok(())
    }

    fn is_complete(&self) -> Result<(), String> {
        if self.instance.is_empty() {
            return Err("instance: missing; it names the instance, as in instance = \"edge1\"".into());
        }
        if self.workers.is_empty() {
            return Err("workers: missing; one CPU number per worker, as in workers = [1]".into());
        }
        match self.ports.iter().find(|port| port.device.is_empty()) {
            Some(port) => Err(format!("port `{}`: device: missing; a PCI address or a vdev", port.name)),
            None => Ok(()),
        }
    }
}

/// Says where in the file, and what may have been meant.
fn explain(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let Range { start, .. } = error.span().unwrap_or(0..0);
    let before = text.get(..start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    let message = error.message();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let message = match quoted.split_first() {
        Some((key, known)) if message.starts_with("unknown field") => {
            format!("unknown key `{key}`{}", did_you_mean(key, known.iter().copied()))
        }
        Some((key, _)) if message.starts_with("missing field") => format!("key `{key}` is missing"),
        _ => message.to_owned(),
    };
    ConfigError::Text { path: path.to_owned(), line, column, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
instance    = "edge1"
workers     = [1, 2]
main_core   = 0
connections = 1_000_000
rules       = "rules.rhai"
hugepages   = true
memory_mb   = 1024
eal_args    = []

[[port]]
name   = "lan"
device = "0000:3b:00.0"
rx_descriptors = 1024
tx_descriptors = 1024
mac    = "02:00:00:00:00:01"
"#;

    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("edge.toml");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    fn refusal(text: &str) -> String {
        let (_folder, path) = written(text);
        Config::load(&path).unwrap_err().to_string().replace(&path.display().to_string(), "FILE")
    }

    #[test]
    fn the_values_of_the_manual_are_the_defaults() {
        let (folder, path) = written(WHOLE);
        let whole = Config::load(&path).unwrap();
        assert_eq!(whole.rules, folder.path().join("rules.rhai"));
        assert_eq!(whole.ports[0].mac, Some([2, 0, 0, 0, 0, 1]));
        let (_other, path) =
            written("instance = \"edge1\"\nworkers = [1, 2]\n[[port]]\nname = \"lan\"\ndevice = \"0000:3b:00.0\"\n");
        let mut short = Config::load(&path).unwrap();
        short.rules.clone_from(&whole.rules);
        short.ports[0].mac = whole.ports[0].mac;
        assert_eq!(short, whole);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place_and_what_may_have_been_meant() {
        assert_eq!(
            refusal("instance = \"a\"\n  wokers = [1]\n"),
            "FILE:2:3: unknown key `wokers`, did you mean `workers`?"
        );
        let text = WHOLE.replace("rx_descriptors", "rx_descriptor");
        assert_eq!(refusal(&text), "FILE:14:1: unknown key `rx_descriptor`, did you mean `rx_descriptors`?");
    }

    #[test]
    fn a_wrong_type_is_refused_with_its_place() {
        let text = refusal("workers = 1\n");
        assert!(text.starts_with("FILE:1:11: invalid type: integer `1`"), "{text}");
        let text = refusal(&WHOLE.replace("02:00:00:00:00:01", "01:00:00:00:00:01"));
        assert!(text.starts_with("FILE:16:") && text.contains("multicast"), "{text}");
    }

    #[test]
    fn a_real_process_needs_instance_workers_and_devices_and_a_replay_needs_names_only() {
        for (line, what) in [("instance    = \"edge1\"", "instance"), ("workers     = [1, 2]", "workers")] {
            let text = refusal(&WHOLE.replace(line, ""));
            assert!(text.starts_with(&format!("FILE: {what}: missing")), "{text}");
        }
        assert!(refusal(&WHOLE.replace("device = \"0000:3b:00.0\"", "")).contains("port `lan`: device: missing"));
        let (_folder, path) = written("[[port]]\nname = \"lan\"\n[[port]]\nname = \"wan\"\n");
        assert_eq!(Config::for_replay(&path).unwrap().ports.len(), 2);
        assert_eq!(refusal("[[port]]\ndevice = \"x\"\n"), "FILE:1:1: key `name` is missing");
        assert!(refusal("").contains("no [[port]]"));
    }

    #[test]
    fn two_ports_of_one_name_or_two_workers_on_one_cpu_are_refused() {
        assert!(refusal("[[port]]\nname = \"a\"\n[[port]]\nname = \"a\"\n").contains("two ports are named `a`"));
        assert!(refusal(&WHOLE.replace("[1, 2]", "[1, 1]")).contains("CPU 1 is named twice"));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let text = Config::load(Path::new("/nonexistent/edge.toml")).unwrap_err().to_string();
        assert!(text.starts_with("/nonexistent/edge.toml: "), "{text}");
    }
}

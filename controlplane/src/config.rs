//! What a script is checked against, from the dataplane's configuration.

pub use erhu_config::{Config, ConfigError, PortConfig, replay_mac};

use crate::script::Facts;

impl From<&Config> for Facts {
    fn from(config: &Config) -> Self {
        Self {
            ports: Some(config.ports.iter().map(|port| port.name.clone()).collect()),
            capacity: Some(config.connections),
        }
    }
}

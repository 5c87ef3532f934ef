//! What is a node set to about blocks of other nodes, and how is it started?
//!
//! `[pull]` says whether others may pull from here (`listen`), and what nodes must know to pull from each
//! other. Without any of it there is neither.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kvtier::node::Node;
use kvtier::pull::{PullConfig, Puller, Secret, Source, SourceConfig};
use serde::Deserialize;
use tracing::{info, warn};

use super::config::{TierConfigError, invalid};
use crate::config::units::Time;

/// `[pull]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PullTable {
    listen: Option<String>,
    secret_file: Option<PathBuf>,
    insecure: Option<bool>,
    connections: Option<usize>,
    workers: Option<usize>,
    patience: Option<Time>,
    longest: Option<Time>,
    rest: Option<Time>,
}

/// Pulling from other nodes, and giving to them, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullSettings {
    /// Where others pull from here; `None` = nobody does.
    pub listen: Option<SocketAddr>,
    /// What has the secret of all nodes.
    pub secret_file: Option<PathBuf>,
    /// Anybody may pull, and be pulled from.
    pub insecure: bool,
    /// Connections of others at a time.
    pub connections: usize,
    /// Pulls at a time.
    pub workers: usize,
    /// How long an answer or a block may take.
    pub patience: Duration,
    /// How long a pull may take in all.
    pub longest: Duration,
    /// How long a node that failed is left alone.
    pub rest: Duration,
}

impl PullTable {
    /// `None` where there is nothing to pull from and nobody to give to.
    pub fn check(self) -> Result<Option<PullSettings>, TierConfigError> {
        let insecure = self.insecure.unwrap_or(false);
        let named = |text: &String| !text.is_empty();
        let listen = self.listen.filter(named).map(|text| {
            let why = || format!("{text:?} is no address and port, such as 0.0.0.0:50054");
            text.parse::<SocketAddr>().map_err(|_| invalid("pull.listen", why()))
        });
        let listen = listen.transpose()?;
        let secret_file = self.secret_file.filter(|path| !path.as_os_str().is_empty());
        if let Some(listen) = listen
            && !(listen.ip().is_loopback() || insecure || secret_file.is_some())
        {
            let why = "without pull.secret_file anybody who reaches it could read all blocks; give one, \
                       listen on 127.0.0.1, or say pull.insecure = true";
            return Err(invalid("pull.listen", why));
        }
        if listen.is_none() && secret_file.is_none() && !insecure {
            return Ok(None);
        }
        let within = |key, value: usize, most: usize| match value {
            n if (1..=most).contains(&n) => Ok(n),
            n => Err(invalid(key, format!("{n} is outside 1..{most}"))),
        };
        let time = |key, value: Option<Time>, default| {
            let value = value.map_or(Duration::from_millis(default), |time| time.0);
            within(key, value.as_millis() as usize, 600_000).map(|_| value)
        };
        Ok(Some(PullSettings {
            listen,
            secret_file,
            insecure,
            connections: within("pull.connections", self.connections.unwrap_or(32), 4096)?,
            workers: within("pull.workers", self.workers.unwrap_or(4), 256)?,
            patience: time("pull.patience (ms)", self.patience, 1000)?,
            longest: time("pull.longest (ms)", self.longest, 10_000)?,
            rest: time("pull.rest (ms)", self.rest, 2000)?,
        }))
    }
}

/// Both sides, running.
pub struct Pulling {
    /// Brings blocks here.
    pub puller: Arc<Puller>,
    /// Gives blocks to others.
    pub source: Option<Source>,
}

impl Pulling {
    /// # Errors
    ///
    /// Where the secret cannot be read or the address not be listened at.
    pub fn start(node: &Arc<Node>, settings: &PullSettings) -> anyhow::Result<Pulling> {
        let secret = match &settings.secret_file {
            None => Secret::none(),
            Some(path) => {
                let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
                // Editors end files with a line break.
                Secret::new(bytes.trim_ascii()).with_context(|| format!("use {}", path.display()))?
            }
        };
        if settings.insecure {
            warn!("pull.insecure is set: who reaches this node may read its blocks");
        }
        let config = PullConfig {
            secret: secret.clone(),
            insecure: settings.insecure,
            workers: settings.workers,
            patience: settings.patience,
            longest: settings.longest,
            rest: settings.rest,
            ..PullConfig::default()
        };
        let puller = Arc::new(Puller::start(node.clone(), config).context("start pulling")?);
        let source = settings.listen.map(|listen| {
            let listener = TcpListener::bind(listen).with_context(|| format!("give blocks at {listen}"))?;
            let (connections, patience) = (settings.connections, settings.patience);
            let source =
                Source::start(node.clone(), listener, SourceConfig { secret, connections, patience });
            let source = source.context("give blocks")?;
            info!(address = %source.address(), "other nodes can pull from here");
            anyhow::Ok(source)
        });
        Ok(Pulling { puller, source: source.transpose()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Option<PullSettings>, String> {
        let table: PullTable = toml::from_str(text).map_err(|error| error.to_string())?;
        table.check().map_err(|error| error.to_string())
    }

    #[test]
    fn nobody_unknown_is_let_in_from_elsewhere_unless_that_is_said() {
        assert_eq!(check(""), Ok(None));
        assert_eq!(check("connections = 3"), Ok(None));
        assert!(check("listen = \"127.0.0.1:0\"").unwrap().is_some());
        assert!(check("listen = \"[::1]:0\"").unwrap().is_some());
        assert!(check("listen = \"0.0.0.0:1\"").unwrap_err().contains("secret_file"));
        assert!(check("listen = \"0.0.0.0:1\"\nsecret_file = \"\"").unwrap_err().contains("secret_file"));
        assert!(check("listen = \"0.0.0.0:1\"\nsecret_file = \"/x\"").unwrap().is_some());
        assert!(check("listen = \"0.0.0.0:1\"\ninsecure = true").unwrap().unwrap().insecure);
        assert_eq!(check("secret_file = \"/x\"").unwrap().unwrap().listen, None);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, names) in [
            ("listen = \"node-1\"", "pull.listen"),
            ("insecure = true\nworkers = 0", "pull.workers"),
            ("insecure = true\nconnections = 5000", "pull.connections"),
            ("insecure = true\npatience = \"0ms\"", "pull.patience"),
        ] {
            assert!(check(text).unwrap_err().contains(names), "{text}");
        }
    }
}

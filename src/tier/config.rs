//! What is a node's tier process set to, and does it make sense?
//!
//! As in [`crate::config`], a value typed or from the environment wins over the file.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvtier::policy::{Ranking, Rate};
use kvtier::store::Backend;
use serde::Deserialize;

use super::pull::{PullSettings, PullTable};
use crate::config::security::{self, SecurityTable};
use crate::config::units::{Bytes, Time};
use crate::config::{FileError, written};
use crate::guard::SecurityConfig;
use crate::registration::check_bind;

/// Settings of `kvd tier` as they were typed.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TierArgs {
    /// TOML file with every other setting; deploy/kvd-tier.example.toml documents them.
    #[arg(long, env = "KVD_TIER_CONFIG", value_name = "FILE")]
    pub config: Option<OsString>,
    /// What the node is called, as pods are registered with.
    #[arg(long, env = "KVD_TIER_NODE", value_name = "NAME")]
    pub node: Option<String>,
    /// Where its files are.
    #[arg(long, env = "KVD_TIER_FOLDER", value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// RAM for each size of block, such as 64GiB; 0 = none.
    #[arg(long, env = "KVD_TIER_RAM", value_name = "BYTES")]
    pub ram: Option<String>,
    /// Disk for each size of block, such as 1024GiB; 0 = none.
    #[arg(long, env = "KVD_TIER_DISK", value_name = "BYTES")]
    pub disk: Option<String>,
    /// The Unix socket for engines.
    #[arg(long, env = "KVD_TIER_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Where to answer gRPC, host:port; port 0 takes a free one.
    #[arg(long, env = "KVD_TIER_GRPC_LISTEN", value_name = "ADDR")]
    pub grpc_listen: Option<String>,
    /// Where to answer HTTP (metrics, health), host:port; port 0 takes a free one.
    #[arg(long, env = "KVD_TIER_HTTP_LISTEN", value_name = "ADDR")]
    pub http_listen: Option<String>,
}

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    node: Option<String>,
    folder: Option<PathBuf>,
    socket: Option<PathBuf>,
    socket_mode: Option<u32>,
    engines: Option<usize>,
    workers: Option<usize>,
    ram: Option<Bytes>,
    disk: Option<Bytes>,
    pools: Option<usize>,
    backend: Option<String>,
    threads: Option<usize>,
    commit_every: Option<Time>,
    probe_every: Option<Time>,
    patience: Option<Time>,
    http_listen: Option<String>,
    grpc_listen: Option<String>,
    shared: SharedTable,
    pull: PullTable,
    security: SecurityTable,
    log_level: Option<String>,
    policy: PolicyTable,
    model: Vec<Model>,
}

/// `[shared]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct SharedTable {
    url: Option<String>,
    prefix: Option<String>,
    refresh_every: Option<Time>,
}

/// Storage that other nodes reach, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedConfig {
    /// Where: `file:///folder` or `s3://bucket`.
    pub url: String,
    /// What names of objects begin with.
    pub prefix: String,
    /// How often it is asked what others have put and removed.
    pub refresh_every: Duration,
}

/// `[policy]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PolicyTable {
    ranking: Option<String>,
    remembered: Option<u32>,
    pinned: Option<u32>,
    disk_writes_per_second: Option<u32>,
    shared_writes_per_second: Option<u32>,
    share_from: Option<u8>,
}

/// One `[[model]]`: where what is held of it is published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Model {
    /// The model, as engines and kvd call it.
    pub name: String,
    /// Where to publish, `tcp://*:5561`.
    pub publish: String,
    /// Where to answer replay requests, `tcp://*:5562`.
    pub replay: String,
}

/// Everything a tier process is set to, checked.
#[derive(Clone, Debug)]
pub struct TierConfig {
    /// What the node is called.
    pub node: String,
    /// Where its files are.
    pub folder: PathBuf,
    /// What engines connect to.
    pub agent: kvtier::agent::Config,
    /// Bytes of RAM per pool.
    pub ram_bytes: u64,
    /// Bytes of disk per pool.
    pub disk_bytes: u64,
    /// Sizes of block, at most.
    pub pools: usize,
    /// By which way to the disk.
    pub backend: Backend,
    /// Threads that make moves.
    pub threads: usize,
    /// How often what has changed is written down.
    pub commit_every: Duration,
    /// How often a disk that takes no writes is tried again.
    pub probe_every: Duration,
    /// How long an engine's offer waits for a slot.
    pub patience: Duration,
    /// Where to answer HTTP.
    pub http_listen: String,
    /// Where to answer gRPC.
    pub grpc_listen: String,
    /// Shared storage, where there is any.
    pub shared: Option<SharedConfig>,
    /// Pulling from other nodes and giving to them, where that is wanted.
    pub pull: Option<PullSettings>,
    /// What it is guarded by.
    pub security: SecurityConfig,
    /// What is logged.
    pub log_level: String,
    /// The policy.
    pub policy: kvtier::policy::Config,
    /// What is published.
    pub models: Vec<Model>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TierConfigError {
    /// The file, or one that it names, cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// `[security]` would guard less than it seems to.
    #[error(transparent)]
    Security(#[from] crate::config::ConfigError),
    /// A value that makes no sense.
    #[error("{key}: {why}")]
    Invalid {
        /// The key, with its table.
        key: &'static str,
        /// What is wrong and what would be right.
        why: String,
    },
}

pub(super) fn invalid(key: &'static str, why: impl Into<String>) -> TierConfigError {
    TierConfigError::Invalid { key, why: why.into() }
}

impl TierConfig {
    /// What `args`, the environment and the file they name come to.
    ///
    /// # Errors
    ///
    /// Names the key that cannot be used.
    pub fn load(args: &TierArgs) -> Result<TierConfig, TierConfigError> {
        let file = match args.config.as_ref().filter(|path| !path.is_empty()) {
            Some(path) => parse(&written::read(Path::new(path))?, Path::new(path))?,
            None => File::default(),
        };
        TierConfig::from(file, args)
    }

    fn from(file: File, args: &TierArgs) -> Result<TierConfig, TierConfigError> {
        let size = |key, typed: &Option<String>, written: Option<Bytes>| match typed {
            Some(text) => text.parse::<Bytes>().map(|b| b.0 as u64).map_err(|why| invalid(key, why)),
            None => Ok(written.map_or(0, |b| b.0 as u64)),
        };
        let node = args.node.clone().or(file.node).filter(|name| !name.is_empty());
        let folder = args.folder.clone().or(file.folder).filter(|folder| !folder.as_os_str().is_empty());
        let socket = args.socket.clone().or(file.socket).filter(|path| !path.as_os_str().is_empty());
        let SharedTable { url, prefix, refresh_every } = file.shared;
        let shared = url.filter(|url| !url.is_empty()).map(|url| SharedConfig {
            url,
            prefix: prefix.unwrap_or("kv".into()),
            refresh_every: refresh_every.map_or(Duration::from_secs(10), |t| t.0),
        });
        let policy = file.policy;
        let rate = |per_second: Option<u32>| per_second.map(|n| Rate { per_second: n, burst: n.max(64) });
        let config = TierConfig {
            node: node.ok_or_else(|| invalid("node", "is required (--node); pods are registered with it"))?,
            folder: folder.ok_or_else(|| invalid("folder", "is required (--folder)"))?,
            agent: kvtier::agent::Config {
                mode: file.socket_mode.unwrap_or(0o660),
                sessions: file.engines.unwrap_or(64),
                workers: file.workers.unwrap_or(8),
                ..kvtier::agent::Config::at(socket.unwrap_or_else(|| "/run/kvd/tier.sock".into()))
            },
            ram_bytes: size("ram", &args.ram, file.ram)?,
            disk_bytes: size("disk", &args.disk, file.disk)?,
            pools: file.pools.unwrap_or(4),
            backend: match file.backend.as_deref() {
                None | Some("auto") => Backend::Auto,
                Some("direct") => Backend::Direct,
                Some("mapped") => Backend::Mapped,
                Some(other) => {
                    return Err(invalid("backend", format!("{other:?}; use auto, direct or mapped")));
                }
            },
            threads: file.threads.unwrap_or(4),
            commit_every: file.commit_every.map_or(Duration::from_millis(50), |t| t.0),
            probe_every: file.probe_every.map_or(Duration::from_secs(2), |t| t.0),
            patience: file.patience.map_or(Duration::from_millis(100), |t| t.0),
            http_listen: args.http_listen.clone().or(file.http_listen).unwrap_or("0.0.0.0:8092".into()),
            grpc_listen: args.grpc_listen.clone().or(file.grpc_listen).unwrap_or("0.0.0.0:50053".into()),
            log_level: file.log_level.unwrap_or("info".into()),
            policy: kvtier::policy::Config {
                ranking: match policy.ranking.as_deref() {
                    None | Some("hazard") => Ranking::Hazard,
                    Some("lru") => Ranking::Lru,
                    Some("s3-fifo") => Ranking::S3Fifo,
                    Some("age-over-reuse") => Ranking::AgeOverReuse,
                    Some(other) => {
                        let why = format!("{other:?}; use hazard, lru, s3-fifo or age-over-reuse");
                        return Err(invalid("policy.ranking", why));
                    }
                },
                remembered: policy.remembered.unwrap_or(50_000),
                pinned: policy.pinned.unwrap_or(u32::MAX),
                disk_writes: rate(policy.disk_writes_per_second),
                // Without shared storage there is nothing to write to.
                shared_writes: rate(policy.shared_writes_per_second.or(Some(100)))
                    .filter(|_| shared.is_some()),
                share_from: policy.share_from.unwrap_or(2),
                ..kvtier::policy::Config::default()
            },
            shared,
            pull: file.pull.check()?,
            security: guarded(file.security)?,
            models: file.model,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), TierConfigError> {
        let within = |key, value: u64, range: std::ops::RangeInclusive<u64>| {
            let why = || format!("{value} is outside {}..{}", range.start(), range.end());
            if range.contains(&value) { Ok(()) } else { Err(invalid(key, why())) }
        };
        within("pools", self.pools as u64, 1..=64)?;
        within("threads", self.threads as u64, 1..=256)?;
        within("engines", self.agent.sessions as u64, 1..=4096)?;
        within("workers", self.agent.workers as u64, 1..=256)?;
        within("socket_mode", self.agent.mode.into(), 0..=0o777)?;
        within("commit_every (ms)", self.commit_every.as_millis() as u64, 1..=60_000)?;
        within("probe_every (ms)", self.probe_every.as_millis() as u64, 10..=3_600_000)?;
        within("patience (ms)", self.patience.as_millis() as u64, 0..=60_000)?;
        if self.ram_bytes == 0 && self.disk_bytes == 0 {
            return Err(invalid("disk", "there is neither RAM nor disk; give --ram or --disk"));
        }
        for (key, address) in [("http_listen", &self.http_listen), ("grpc_listen", &self.grpc_listen)] {
            if !address.contains(':') {
                return Err(invalid(key, format!("{address:?} has no port")));
            }
        }
        let mut seen = BTreeSet::new();
        for model in &self.models {
            if model.name.is_empty() || !seen.insert(&model.name) {
                return Err(invalid("model.name", format!("{:?} is empty or there twice", model.name)));
            }
            for (key, address) in [("model.publish", &model.publish), ("model.replay", &model.replay)] {
                // A free port is for tests; whoever is to dial has to know it.
                if !address.ends_with(":*") {
                    check_bind(key, address).map_err(|e| invalid(key, e.why))?;
                }
            }
        }
        Ok(())
    }
}

/// As kvd is; whom kvd speaks to, a tier does not.
fn guarded(table: SecurityTable) -> Result<SecurityConfig, TierConfigError> {
    let mut config = SecurityConfig::default();
    table.apply(&mut config);
    security::check(&config)?;
    let of_others = [&config.peer_ca, &config.peer_token, &config.tier_ca, &config.tier_token];
    match of_others.iter().all(|file| file.is_none()) {
        true => Ok(config),
        false => Err(invalid("security", "peer_ and tier_ keys are kvd's: a tier calls nobody")),
    }
}

fn parse(text: &str, path: &Path) -> Result<File, FileError> {
    written::parse(text, path, "deploy/kvd-tier.example.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../deploy/kvd-tier.example.toml");

    fn config(text: &str, args: &TierArgs) -> Result<TierConfig, String> {
        let file = parse(text, Path::new("test.toml")).map_err(|e| e.to_string())?;
        TierConfig::from(file, args).map_err(|e| e.to_string())
    }

    #[test]
    fn the_shipped_example_says_what_holds_without_it() {
        let args = TierArgs {
            node: Some("n1".into()),
            folder: Some("/tmp/x".into()),
            disk: Some("100GiB".into()),
            ..TierArgs::default()
        };
        let (shipped, bare) = (config(EXAMPLE, &args).unwrap(), config("", &args).unwrap());
        assert_eq!(format!("{shipped:?}"), format!("{bare:?}"));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let base = "node = \"n\"\nfolder = \"/x\"\ndisk = \"1GiB\"\n";
        let model = "[[model]]\nname = \"m\"\npublish = \"tcp://*:1\"\nreplay = \"tcp://*:2\"\n";
        assert!(config(&format!("{base}{model}"), &TierArgs::default()).is_ok());
        for (text, names) in [
            ("folder = \"/x\"\ndisk = 1".to_owned(), "node"),
            ("node = \"n\"\nfolder = \"/x\"".to_owned(), "neither RAM nor disk"),
            (format!("{base}threads = 0"), "threads"),
            (format!("{base}backend = \"tape\""), "backend"),
            (format!("{base}[policy]\nranking = \"best\""), "policy.ranking"),
            (format!("{base}{model}{model}"), "model.name"),
            (format!("{base}{}", model.replace("tcp://*:2", "udp://2")), "model.replay"),
            (format!("{base}nonsense = 1"), "nonsense"),
        ] {
            let error = config(&text, &TierArgs::default()).unwrap_err();
            assert!(error.contains(names), "{error}");
        }
    }
}

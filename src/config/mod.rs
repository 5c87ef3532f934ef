//! What is kvd set to, and does it make sense?
//!
//! [`Args`] (what was typed) and the TOML file (what was written, `file`) become a
//! [`Config`] (checked). A value from the command line or the environment wins over the
//! file, the file over [`Config::default`].

mod discovery;
mod file;
pub(crate) mod security;
mod transfers;
pub(crate) mod units;
mod valkey;
pub(crate) mod written;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use kvindex::{IndexConfig, TierWeights};
use tracing_subscriber::EnvFilter;

use crate::args::Args;
use crate::discovery::DiscoveryConfig;
use crate::guard::SecurityConfig;
use crate::ingest::{IngestConfig, Listen};
use crate::peers::PeersConfig;
use crate::publisher::PublisherSpec;
use crate::registration::{RegistrationError, check_bind, check_health_url, parse_engine};
use crate::serve::{Limits, WARMUP_LIMIT};
use crate::snapshot::Schedule;
use crate::traces::TracesConfig;
use file::{File, ListenTable};
pub use transfers::{OnValkey, Transfers};
pub use valkey::Valkey;
pub use written::FileError;

/// Everything kvd is set to, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to answer gRPC, `host:port`.
    pub grpc_listen: String,
    /// Where to answer HTTP, `host:port`.
    pub http_listen: String,
    /// Where to answer health checks alone, `host:port`; `None` = only where gRPC is answered.
    pub health_listen: Option<String>,
    /// Where registrations are kept; `None` = in memory only.
    pub data_dir: Option<PathBuf>,
    /// How long to wait for requests under way when told to stop.
    pub drain_timeout: Duration,
    /// How long to wait after a start for publishers to be followed from a proven place.
    pub warmup_timeout: Duration,
    /// When the index is written down.
    pub snapshot: Schedule,
    /// The other replicas.
    pub peers: PeersConfig,
    /// What is logged, in the syntax of `tracing_subscriber::EnvFilter`.
    pub log_level: String,
    /// How it is logged.
    pub log_format: LogFormat,
    /// Where spans go; `None` = nowhere.
    pub traces: Option<TracesConfig>,
    /// Limits of the index.
    pub index: IndexConfig,
    /// The index that replicas share; `None` = each has its own only.
    pub valkey: Option<Valkey>,
    /// Limits of a request.
    pub limits: Limits,
    /// Weights of the tiers where a request gives none.
    pub weights: TierWeights,
    /// Limits and addresses of ingest.
    pub ingest: IngestConfig,
    /// What transfers are set to.
    pub transfers: Transfers,
    /// Where engines are looked for.
    pub discovery: DiscoveryConfig,
    /// What it is guarded by.
    pub security: SecurityConfig,
    /// Engines to follow from the start.
    pub publishers: Vec<PublisherSpec>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            grpc_listen: "0.0.0.0:50051".to_owned(),
            http_listen: "0.0.0.0:8090".to_owned(),
            health_listen: None,
            data_dir: None,
            drain_timeout: Duration::from_secs(5),
            warmup_timeout: WARMUP_LIMIT,
            snapshot: Schedule::default(),
            peers: PeersConfig::default(),
            log_level: "info".to_owned(),
            log_format: LogFormat::Text,
            traces: None,
            index: IndexConfig::default(),
            valkey: None,
            limits: Limits::default(),
            weights: TierWeights::default(),
            ingest: IngestConfig::default(),
            transfers: Transfers::default(),
            discovery: DiscoveryConfig::default(),
            security: SecurityConfig::default(),
            publishers: Vec::new(),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file, or one that it names, cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A value that makes no sense.
    #[error("{key} = {value:?}: {why}")]
    Invalid {
        /// The key, with its table.
        key: String,
        /// What it was set to.
        value: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// A publisher that makes no sense.
    #[error("publisher number {number}: {error}")]
    Publisher {
        /// Its place among the `[[publisher]]`s, from 1.
        number: usize,
        /// What is wrong with it.
        error: RegistrationError,
    },
}

impl Config {
    /// What `args`, the environment and the file they name come to.
    ///
    /// # Errors
    /// Names the key and the value that cannot be used.
    pub fn load(args: &Args) -> Result<Config, ConfigError> {
        let mut config = match args.config.as_ref().filter(|path| !path.is_empty()) {
            Some(path) => Config::from_file(Path::new(path), args)?,
            None => Config::default(),
        };
        config.apply_args(args)?;
        config.check()?;
        Ok(config)
    }

    fn from_file(path: &Path, args: &Args) -> Result<Config, ConfigError> {
        Config::from_toml(&written::read(path)?, path, args)
    }

    fn from_toml(text: &str, path: &Path, args: &Args) -> Result<Config, ConfigError> {
        let mut file: File = written::parse(text, path, "deploy/kvd.example.toml")?;
        // Together with what the file says of other replicas.
        file.transfers.asked_at(args.transfers_replica.as_deref());
        let mut config = Config::default();
        config.apply_file(file)?;
        Ok(config)
    }

    fn apply_file(&mut self, file: File) -> Result<(), ConfigError> {
        let File {
            grpc_listen,
            http_listen,
            health_listen,
            data_dir,
            drain_timeout,
            warmup_timeout,
            snapshot,
            peers,
            log,
            traces,
            index,
            limits,
            weights,
            ingest,
            transfers,
            discovery,
            security,
            publisher,
            listen,
        } = file;
        set(&mut self.grpc_listen, grpc_listen);
        set(&mut self.http_listen, http_listen);
        self.health_listen = health_listen.filter(|a| !a.is_empty());
        set(&mut self.drain_timeout, drain_timeout.map(|d| d.0));
        set(&mut self.warmup_timeout, warmup_timeout.map(|d| d.0));
        snapshot.apply(&mut self.snapshot);
        peers.apply(&mut self.peers);
        self.data_dir = data_dir.filter(|d| !d.as_os_str().is_empty());
        set(&mut self.log_level, log.level);
        if let Some(format) = log.format {
            self.log_format = parse_log_format("log.format", &format)?;
        }
        self.traces = traces.check()?;
        self.valkey = index.apply(&mut self.index)?;
        limits.apply(&mut self.limits);
        weights.apply(&mut self.weights);
        ingest.apply(&mut self.ingest);
        transfers.apply(&mut self.transfers)?;
        if self.transfers.valkey.is_some() && self.valkey.is_none() {
            return Err(invalid("transfers.valkey", "true", "needs servers in index.valkey.urls"));
        }
        discovery.apply(&mut self.discovery)?;
        security.apply(&mut self.security);
        for (i, table) in listen.into_iter().enumerate() {
            self.ingest.listen.push(listen_at(i, table)?);
        }
        for (i, registration) in publisher.into_iter().enumerate() {
            let spec =
                registration.check().map_err(|error| ConfigError::Publisher { number: i + 1, error })?;
            self.publishers.push(spec);
        }
        Ok(())
    }

    fn apply_args(&mut self, args: &Args) -> Result<(), ConfigError> {
        let typed = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
        set(&mut self.grpc_listen, typed(&args.grpc_listen));
        set(&mut self.http_listen, typed(&args.http_listen));
        if let Some(address) = &args.health_listen {
            self.health_listen = Some(address.clone()).filter(|a| !a.is_empty());
        }
        set(&mut self.log_level, typed(&args.log_level));
        set(&mut self.ingest.threads, args.ingest_threads);
        if let Some(dir) = &args.data_dir {
            // Empty is how a flag takes back what the file says.
            self.data_dir = Some(PathBuf::from(dir)).filter(|_| !dir.is_empty());
        }
        if let Some(format) = typed(&args.log_format) {
            self.log_format = parse_log_format("log-format", &format)?;
        }
        if let Some(text) = typed(&args.drain_timeout) {
            self.drain_timeout =
                units::Time::from_str(&text).map_err(|why| invalid("drain-timeout", &text, why))?.0;
        }
        for bind in args.listen.iter().filter(|b| !b.is_empty()) {
            self.ingest.listen.push(Listen { bind: bind.clone(), ..Listen::default() });
        }
        Ok(())
    }

    fn check(&self) -> Result<(), ConfigError> {
        check_listen("grpc_listen", &self.grpc_listen)?;
        check_listen("http_listen", &self.http_listen)?;
        if let Some(address) = &self.health_listen {
            check_listen("health_listen", address)?;
        }
        security::check(&self.security)?;
        EnvFilter::builder()
            .parse(&self.log_level)
            .map_err(|e| invalid("log.level", &self.log_level, format!("{e}; an example is info")))?;
        for address in &self.peers.addresses {
            check_listen("peers.addresses", address)?;
        }
        for listen in &self.ingest.listen {
            check_bind("listen.bind", &listen.bind).map_err(|e| invalid(e.field, &listen.bind, e.why))?;
        }
        for (i, listen) in self.ingest.listen.iter().enumerate() {
            if self.ingest.listen[..i].iter().any(|other| other.bind == listen.bind) {
                return Err(invalid("listen.bind", &listen.bind, "is there twice"));
            }
        }
        for (key, value, range) in file::bounded(self) {
            if !range.contains(&value) {
                let why = format!("is outside {}..{}", range.start(), range.end());
                return Err(invalid(key, value, why));
            }
        }
        for (tier, weight) in kvproto::Tier::ALL.into_iter().zip(self.weights.by_tier) {
            if !(0.0..=1e6).contains(&weight) {
                return Err(invalid(format!("weights.{}", tier.name()), weight, "is outside 0..1000000"));
            }
        }
        let named =
            |p: &PublisherSpec| (p.tenant_id.clone(), p.model.clone(), p.instance_id.clone(), p.dp_rank);
        for (i, p) in self.publishers.iter().enumerate() {
            if self.publishers[..i].iter().any(|other| named(other) == named(p)) {
                let value = format!("{} rank {}", p.instance_id, p.dp_rank);
                return Err(invalid(
                    "publisher.instance_id",
                    value,
                    "is registered twice for one tenant and model",
                ));
            }
        }
        Ok(())
    }
}

fn set<T>(to: &mut T, from: Option<T>) {
    if let Some(value) = from {
        *to = value;
    }
}

fn invalid(key: impl Into<String>, value: impl ToString, why: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { key: key.into(), value: value.to_string(), why: why.into() }
}

fn parse_log_format(key: &str, text: &str) -> Result<LogFormat, ConfigError> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(invalid(key, text, "use text or json")),
    }
}

fn check_listen(key: &str, address: &str) -> Result<(), ConfigError> {
    let port =
        address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) => Ok(()),
        Some(Err(_)) | None => Err(invalid(key, address, "is no host:port; an example is 0.0.0.0:8090")),
    }
}

fn listen_at(place: usize, table: ListenTable) -> Result<Listen, ConfigError> {
    let defaults = Listen::default();
    let ListenTable { bind, tenant_id, engine, modelname, additionalsalt, health_url, max_publishers } =
        table;
    let engine = match engine {
        None => defaults.engine,
        Some(name) => parse_engine(&name).map_err(|e| invalid("listen.type", name, e.why))?,
    };
    if let Some(url) = &health_url {
        check_health_url(url).map_err(|e| invalid("listen.health_url", url, e.why))?;
    }
    let Some(bind) = bind else {
        return Err(invalid("listen.bind", "", format!("is missing in [[listen]] number {}", place + 1)));
    };
    Ok(Listen {
        bind,
        tenant_id: tenant_id.unwrap_or(defaults.tenant_id),
        engine,
        model: modelname.filter(|m| !m.is_empty()),
        additional_salt: additionalsalt.unwrap_or_default(),
        health_url,
        max_publishers: max_publishers.unwrap_or(defaults.max_publishers),
    })
}

#[cfg(test)]
mod tests;

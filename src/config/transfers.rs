//! What may be said about transfers, and does it make sense?

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tonic::transport::Endpoint;

use super::units::{Bytes, Time};
use super::{ConfigError, FileError, invalid, set, written};
use crate::serve::transfer::TransferConfig;
use crate::transfer::cost::Geometry;
use crate::transfer::home::{MAX_REPLICAS, Replicas};

/// The shortest key that is taken, in bytes: a digest's length, which nobody guesses.
const MIN_KEY: usize = 16;

/// Everything about transfers, checked.
#[derive(Clone, Debug)]
pub struct Transfers {
    /// Whether they are coordinated at all.
    pub enabled: bool,
    /// Times, limits and replicas.
    pub config: TransferConfig,
    /// What signs plan tokens; `None` = a key is made up, and kept in the data directory.
    pub key: Option<Vec<u8>>,
    /// Whether the ledger is on the servers of the index; `None` = it is this replica's own.
    pub valkey: Option<OnValkey>,
    /// Shapes of models' caches, by name.
    pub models: Vec<(String, Geometry)>,
}

/// How the ledger is shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnValkey {
    /// Where other replicas ask this one.
    pub address: String,
    /// Replicas of a server that must have heard of a change before it is answered.
    pub wait_replicas: u32,
}

impl Default for Transfers {
    fn default() -> Self {
        let config = TransferConfig::default();
        Transfers { enabled: true, config, key: None, valkey: None, models: Vec::new() }
    }
}

/// `[transfers]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TransfersTable {
    enabled: Option<bool>,
    valkey: Option<bool>,
    wait_replicas: Option<u32>,
    sync_plans: Option<bool>,
    key_file: Option<PathBuf>,
    replica: Option<String>,
    replicas: Vec<String>,
    forward_timeout: Option<Time>,
    max_live: Option<usize>,
    max_over: Option<usize>,
    prompt_memory: Option<Bytes>,
    planned: Option<Time>,
    prefilling: Option<Time>,
    ready: Option<Time>,
    pulling: Option<Time>,
    overall: Option<Time>,
    guard: Option<Time>,
    kept: Option<Time>,
    attempts: Option<u32>,
    nixl_lease: Option<Time>,
    transfers_per_source: Option<u32>,
    transfers_per_destination: Option<u32>,
    bytes_per_link: Option<Bytes>,
    pinned_bytes_per_pod: Option<Bytes>,
    prefills_per_pod: Option<u32>,
    model: Vec<ModelTable>,
}

/// `[[transfers.model]]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ModelTable {
    name: String,
    config: Option<PathBuf>,
    bytes_per_token: Option<u64>,
    cache_bytes: Option<u64>,
}

impl TransfersTable {
    /// This replica is asked at `typed` by others, where it has any.
    pub(super) fn asked_at(&mut self, typed: Option<&str>) {
        let has_others = self.valkey == Some(true) || !self.replicas.is_empty();
        if let Some(url) = typed.filter(|url| has_others && !url.is_empty()) {
            self.replica = Some(url.to_owned());
        }
    }

    pub(super) fn apply(self, to: &mut Transfers) -> Result<(), ConfigError> {
        let TransfersTable {
            enabled,
            valkey,
            wait_replicas,
            sync_plans,
            key_file,
            replica,
            replicas,
            forward_timeout,
            max_live,
            max_over,
            prompt_memory,
            planned,
            prefilling,
            ready,
            pulling,
            overall,
            guard,
            kept,
            attempts,
            nixl_lease,
            transfers_per_source,
            transfers_per_destination,
            bytes_per_link,
            pinned_bytes_per_pod,
            prefills_per_pod,
            model,
        } = self;
        let config = &mut to.config;
        set(&mut to.enabled, enabled);
        set(&mut config.sync_plans, sync_plans);
        set(&mut config.forward_timeout, forward_timeout.map(|t| t.0));
        set(&mut config.bounds.live, max_live);
        set(&mut config.bounds.over, max_over);
        set(&mut config.prompt_bytes, prompt_memory.map(|b| b.0));
        let timers = &mut config.timers;
        set(&mut timers.planned, planned.map(|t| t.0));
        set(&mut timers.prefilling, prefilling.map(|t| t.0));
        set(&mut timers.ready, ready.map(|t| t.0));
        set(&mut timers.pulling, pulling.map(|t| t.0));
        set(&mut timers.overall, overall.map(|t| t.0));
        set(&mut timers.guard, guard.map(|t| t.0));
        set(&mut timers.kept, kept.map(|t| t.0));
        set(&mut timers.max_attempts, attempts);
        set(&mut timers.nixl_lease, nixl_lease.map(|t| t.0));
        let caps = &mut config.caps;
        set(&mut caps.transfers_per_source, transfers_per_source);
        set(&mut caps.transfers_per_destination, transfers_per_destination);
        set(&mut caps.bytes_per_link, bytes_per_link.map(|b| b.0 as u64));
        set(&mut caps.pinned_bytes_per_pod, pinned_bytes_per_pod.map(|b| b.0 as u64));
        set(&mut caps.prefills_per_pod, prefills_per_pod);
        if let Some(path) = key_file {
            to.key = Some(read_key(&path)?);
        }
        if valkey == Some(true) {
            to.valkey = Some(read_sharing(replica, &replicas, wait_replicas.unwrap_or(0))?);
        } else {
            config.replicas = read_replicas(replica, replicas)?;
        }
        if config.replicas.len() > 1 && to.key.is_none() {
            return Err(invalid("transfers.key_file", "", "is needed where there are several replicas"));
        }
        let mut names = HashSet::new();
        for table in model {
            let (name, geometry) = read_model(table)?;
            if !names.insert(name.clone()) {
                return Err(invalid("transfers.model.name", name, "is there twice"));
            }
            to.models.push((name, geometry));
        }
        Ok(())
    }
}

#[cfg(test)]
impl TransfersTable {
    /// Whether each key is set; one that is added must be asked for here.
    pub(super) fn names_every_key(&self) -> bool {
        let complete = matches!(
            self,
            TransfersTable {
                enabled: Some(_),
                valkey: Some(_),
                wait_replicas: Some(_),
                sync_plans: Some(_),
                key_file: Some(_),
                replica: Some(_),
                replicas: _,
                forward_timeout: Some(_),
                max_live: Some(_),
                max_over: Some(_),
                prompt_memory: Some(_),
                planned: Some(_),
                prefilling: Some(_),
                ready: Some(_),
                pulling: Some(_),
                overall: Some(_),
                guard: Some(_),
                kept: Some(_),
                attempts: Some(_),
                nixl_lease: Some(_),
                transfers_per_source: Some(_),
                transfers_per_destination: Some(_),
                bytes_per_link: Some(_),
                pinned_bytes_per_pod: Some(_),
                prefills_per_pod: Some(_),
                model: _,
            }
        );
        let models = &self.model[..];
        complete
            && !self.replicas.is_empty()
            && matches!(
                models,
                [
                    ModelTable { config: Some(_), cache_bytes: Some(_), .. },
                    ModelTable { bytes_per_token: Some(_), .. }
                ]
            )
    }
}

fn read_key(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let key = std::fs::read(path)
        .map_err(|error| FileError::Unreadable { path: path.to_owned(), error })?
        .trim_ascii()
        .to_vec();
    if key.len() < MIN_KEY {
        let why = format!("holds {} bytes, a key has at least {MIN_KEY}", key.len());
        return Err(invalid("transfers.key_file", path.display(), why));
    }
    Ok(key)
}

fn read_sharing(
    replica: Option<String>,
    replicas: &[String],
    wait_replicas: u32,
) -> Result<OnValkey, ConfigError> {
    if !replicas.is_empty() {
        let why = "is not needed with transfers.valkey: replicas find each other by the servers";
        return Err(invalid("transfers.replicas", replicas.join(", "), why));
    }
    let address = replica.unwrap_or_default();
    if !is_address(&address) {
        let why = "is where other replicas ask this one; an example is http://kvd-0:50051";
        return Err(invalid("transfers.replica", address, why));
    }
    if wait_replicas > 5 {
        return Err(invalid("transfers.wait_replicas", wait_replicas, "must be from 0 to 5"));
    }
    Ok(OnValkey { address, wait_replicas })
}

fn is_address(url: &str) -> bool {
    url.starts_with("http://")
        && !url.contains(char::is_whitespace)
        && Endpoint::from_shared(url.to_owned()).is_ok()
}

fn read_replicas(replica: Option<String>, replicas: Vec<String>) -> Result<Replicas, ConfigError> {
    let key = "transfers.replicas";
    for url in &replicas {
        if !is_address(url) {
            return Err(invalid(key, url, "is no address; an example is http://kvd-0:50051"));
        }
    }
    if replicas.is_empty() {
        return match replica {
            None => Ok(Replicas::default()),
            Some(replica) => {
                Err(invalid("transfers.replica", replica, "is given without transfers.replicas"))
            }
        };
    }
    let me = replica.unwrap_or_default();
    let count = replicas.len();
    Replicas::new(replicas, &me).ok_or_else(|| {
        let why = format!(
            "is to be one of the {count} in transfers.replicas, of which there may be {MAX_REPLICAS}"
        );
        invalid("transfers.replica", me, why)
    })
}

fn read_model(table: ModelTable) -> Result<(String, Geometry), ConfigError> {
    let ModelTable { name, config, bytes_per_token, cache_bytes } = table;
    let key = "transfers.model";
    if name.is_empty() {
        return Err(invalid("transfers.model.name", "", "is missing"));
    }
    let geometry = match (config, bytes_per_token) {
        (None, Some(bytes @ 1..)) => Geometry::uniform(bytes),
        (Some(path), None) => Geometry::from_config_json(&written::read(&path)?, cache_bytes)
            .map_err(|error| invalid("transfers.model.config", path.display(), error.to_string()))?,
        (None, None) | (Some(_), Some(_)) | (None, Some(0)) => {
            return Err(invalid(key, name, "needs either config or bytes_per_token"));
        }
    };
    Ok((name, geometry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(text: &str) -> Result<Transfers, String> {
        let table: TransfersTable = toml::from_str(text).map_err(|e| e.to_string())?;
        let mut to = Transfers::default();
        table.apply(&mut to).map_err(|e| e.to_string())?;
        Ok(to)
    }

    #[test]
    fn replicas_need_a_key_that_they_share() {
        let two = "replica = \"http://a:1\"\nreplicas = [\"http://a:1\", \"http://b:1\"]\n";
        assert!(apply(two).unwrap_err().starts_with("transfers.key_file"));
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        let with_key = format!("{two}key_file = {key:?}\n");
        assert!(apply(&with_key).unwrap_err().contains("key"), "there is no such file");
        std::fs::write(&key, "short").unwrap();
        assert!(apply(&with_key).unwrap_err().contains("at least 16"));
        std::fs::write(&key, "a key that is long enough\n").unwrap();
        let set = apply(&with_key).unwrap();
        assert_eq!((set.config.replicas.len(), set.config.replicas.me()), (2, 0));
        assert_eq!(set.key.unwrap(), b"a key that is long enough");
    }

    #[test]
    fn a_replica_that_is_none_is_named() {
        for (text, wrong) in [
            ("replica = \"http://a:1\"", "transfers.replica"),
            ("replica = \"http://c:1\"\nreplicas = [\"http://a:1\"]", "transfers.replica"),
            ("replicas = [\"a:1\"]", "transfers.replicas"),
            ("replicas = [\"http://\"]", "transfers.replicas"),
        ] {
            let error = apply(text).unwrap_err();
            assert!(error.starts_with(wrong), "{text}: {error}");
        }
    }

    #[test]
    fn a_shared_ledger_needs_an_address_and_no_list_of_replicas() {
        let set = apply("valkey = true\nreplica = \"http://a:1\"\nwait_replicas = 1").unwrap();
        assert_eq!(set.valkey, Some(OnValkey { address: "http://a:1".to_owned(), wait_replicas: 1 }));
        assert!(set.config.replicas.is_empty() && set.key.is_none(), "tokens prove nothing there");
        for (text, wrong) in [
            ("valkey = true", "transfers.replica"),
            ("valkey = true\nreplica = \"http://a 1\"", "transfers.replica"),
            ("valkey = true\nreplica = \"http://a:1\"\nreplicas = [\"http://a:1\"]", "transfers.replicas"),
            ("valkey = true\nreplica = \"http://a:1\"\nwait_replicas = 9", "transfers.wait_replicas"),
        ] {
            let error = apply(text).unwrap_err();
            assert!(error.starts_with(wrong), "{text}: {error}");
        }
        assert_eq!(apply("valkey = false").unwrap().valkey, None);
    }

    #[test]
    fn a_model_says_how_large_its_cache_is_in_one_way() {
        let one = apply("[[model]]\nname = \"m\"\nbytes_per_token = 131072").unwrap();
        assert_eq!(one.models[0].1.bytes(0, 10), 1_310_720);
        for text in [
            "[[model]]\nname = \"m\"",
            "[[model]]\nname = \"m\"\nbytes_per_token = 0",
            "[[model]]\nname = \"m\"\nbytes_per_token = 1\nconfig = \"x\"",
            "[[model]]\nbytes_per_token = 1",
        ] {
            assert!(apply(text).is_err(), "{text}");
        }
        let twice = "[[model]]\nname = \"m\"\nbytes_per_token = 1\n".repeat(2);
        assert!(apply(&twice).unwrap_err().contains("twice"));
    }
}

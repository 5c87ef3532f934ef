//! Where are engines looked for?

use std::path::PathBuf;

use serde::Deserialize;

use super::{ConfigError, invalid, set};
use crate::discovery::{DiscoveryConfig, PodRules, PoolGroup, Select};
use crate::registration::{HashSeed, Registration};

/// Kinds of pods, and namespaces of one kind: each is a watch.
const MAX_WATCHES: usize = 64;

/// `[discovery]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct DiscoveryTable {
    file: Option<PathBuf>,
    kubeconfig: Option<PathBuf>,
    pods: Vec<PodsTable>,
}

/// One `[[discovery.pods]]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PodsTable {
    label_selector: Option<String>,
    pool_name: Option<String>,
    pool_group: Option<String>,
    service_name: Option<String>,
    namespaces: Option<Vec<String>>,
    serving_ports: Option<Vec<u16>>,
    ranks: Option<u32>,
    events_port_name: Option<String>,
    events_port: Option<u16>,
    replay_port_name: Option<String>,
    replay_port: Option<u16>,
    #[serde(rename = "type")]
    engine: Option<String>,
    #[serde(alias = "model", alias = "model_name")]
    modelname: Option<String>,
    tenant_id: Option<String>,
    block_size: Option<u32>,
    lora_name: Option<String>,
    #[serde(alias = "additional_salt")]
    additionalsalt: Option<String>,
    attention_chunk_size: Option<u32>,
    hash_algo: Option<String>,
    hash_seed: Option<HashSeed>,
}

impl DiscoveryTable {
    pub(super) fn apply(self, to: &mut DiscoveryConfig) -> Result<(), ConfigError> {
        let DiscoveryTable { file, kubeconfig, pods } = self;
        let given = |path: Option<PathBuf>| path.filter(|p| !p.as_os_str().is_empty());
        to.file = given(file);
        to.kubeconfig = given(kubeconfig);
        to.pods = pods.into_iter().map(PodsTable::rules).collect::<Result<_, _>>()?;
        let each = |p: &PodRules| match p.select {
            Select::Labels(_) => 1,
            Select::Pool { .. } | Select::Service { .. } => 2,
        };
        let watches: usize = to.pods.iter().map(|p| p.namespaces.len().max(1) * each(p)).sum();
        if watches > MAX_WATCHES {
            let why = format!("that many watches are too many, at most {MAX_WATCHES}; use one with \"*\"");
            return Err(invalid("discovery.pods.namespaces", watches, why));
        }
        Ok(())
    }

    /// Whether every key is there, so that a key which is added is added to the example as well.
    #[cfg(test)]
    pub(super) fn names_every_key(&self) -> bool {
        let DiscoveryTable { file: Some(_), kubeconfig: Some(_), pods } = self else { return false };
        let every = |p: &PodsTable| {
            matches!(
                p,
                PodsTable {
                    label_selector: Some(_),
                    // Another table's, see below.
                    pool_name: _,
                    pool_group: _,
                    service_name: _,
                    namespaces: Some(_),
                    serving_ports: Some(_),
                    ranks: Some(_),
                    events_port_name: Some(_),
                    events_port: Some(_),
                    replay_port_name: Some(_),
                    replay_port: Some(_),
                    engine: Some(_),
                    modelname: Some(_),
                    tenant_id: Some(_),
                    block_size: Some(_),
                    lora_name: Some(_),
                    additionalsalt: Some(_),
                    attention_chunk_size: Some(_),
                    hash_algo: Some(_),
                    hash_seed: Some(_),
                }
            )
        };
        pods.iter().any(every)
            && pods.iter().any(|p| p.pool_name.is_some() && p.pool_group.is_some())
            && pods.iter().any(|p| p.service_name.is_some())
    }
}

impl PodsTable {
    /// Which pods; `None` where nothing is said of it.
    fn select(&self) -> Result<Option<Select>, ConfigError> {
        let given = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
        let (pool, service) = (given(&self.pool_name), given(&self.service_name));
        let refuse =
            |key: &str, value: &str, why: &str| Err(invalid(format!("discovery.pods.{key}"), value, why));
        for (key, name) in [("pool_name", &pool), ("service_name", &service)] {
            let Some(name) = name else { continue };
            let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
            if name.len() > 253 || !name.chars().all(is_word) {
                return refuse(key, name, "is no name of Kubernetes: lower-case letters, digits, - and .");
            }
            if self.namespaces.iter().flatten().any(|n| n == "*") {
                return refuse(key, name, "is in a namespace: name that in namespaces instead of \"*\"");
            }
        }
        let group = match given(&self.pool_group) {
            None => PoolGroup::Stable,
            Some(text) => {
                text.parse().map_err(|why: String| invalid("discovery.pods.pool_group", &text, why))?
            }
        };
        match (pool, service) {
            (Some(pool), Some(_)) => refuse("pool_name", &pool, "and service_name: give one of both"),
            (Some(pool), None) if self.label_selector.is_some() => {
                refuse("pool_name", &pool, "selects pods by itself: leave label_selector out")
            }
            (Some(pool), None) if self.serving_ports.is_some() => {
                refuse("pool_name", &pool, "has target ports: leave serving_ports out")
            }
            (Some(name), None) => Ok(Some(Select::Pool { name, group })),
            (None, Some(name)) => {
                let labels = self.label_selector.clone().unwrap_or_default();
                Ok(Some(Select::Service { name, labels }))
            }
            (None, None) => Ok(self.label_selector.clone().map(Select::Labels)),
        }
    }

    fn rules(self) -> Result<PodRules, ConfigError> {
        let mut rules = PodRules::default();
        set(&mut rules.select, self.select()?);
        set(&mut rules.namespaces, self.namespaces);
        set(&mut rules.serving_ports, self.serving_ports);
        set(&mut rules.ranks, self.ranks);
        set(&mut rules.events_port_name, self.events_port_name);
        set(&mut rules.events_port, self.events_port);
        set(&mut rules.replay_port_name, self.replay_port_name);
        set(&mut rules.replay_port, self.replay_port);
        let fields = &mut rules.fields;
        let own = Registration {
            engine: self.engine.or(fields.engine.take()),
            modelname: self.modelname,
            tenant_id: self.tenant_id,
            block_size: self.block_size.or(fields.block_size),
            lora_name: self.lora_name,
            additionalsalt: self.additionalsalt,
            attention_chunk_size: self.attention_chunk_size,
            hash_algo: self.hash_algo,
            hash_seed: self.hash_seed,
            ..Registration::default()
        };
        *fields = own;
        check(&rules)?;
        Ok(rules)
    }
}

fn check(rules: &PodRules) -> Result<(), ConfigError> {
    if rules.events_port == 0 {
        return Err(invalid("discovery.pods.events_port", 0, "is no port"));
    }
    if rules.serving_ports.is_empty() || rules.serving_ports.contains(&0) {
        let ports = format!("{:?}", rules.serving_ports);
        return Err(invalid("discovery.pods.serving_ports", ports, "give at least one port, none of them 0"));
    }
    if rules.namespaces.iter().any(String::is_empty) {
        return Err(invalid("discovery.pods.namespaces", "", "use \"*\" for all"));
    }
    // What all pods of the kind would be refused for is better said now. The model may be the pods' own.
    let mut fields = rules.fields.clone();
    fields.modelname.get_or_insert_with(|| "model".to_owned());
    fields.endpoint = Some("tcp://10.0.0.1:5557".to_owned());
    fields.instance_id = Some("10.0.0.1:8000".to_owned());
    fields.dp_rank = Some(0);
    fields.node = Some("node".to_owned());
    let checked = fields.check().map(drop);
    checked.map_err(|e| invalid(format!("discovery.pods.{}", e.field), "", e.why))
}

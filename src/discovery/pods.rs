//! Which publishers does a pod have?
//!
//! Pure. What a pod does not say itself, by annotation or label, the rules say for all of its kind.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;

use k8s_openapi::api::core::v1::{ContainerPort, Pod, PodSpec, PodStatus};

use super::board::{Seen, Standing};
use super::pool::PoolGroup;
use super::watch::name;
use crate::publisher::PublisherSpec;
use crate::registration::{HashSeed, Registration};

/// Annotations and labels that say how a pod is followed begin with this.
pub const PREFIX: &str = "kvd/";
/// Ranks of one pod; more are a slip of the pen.
const MAX_RANKS: u32 = 256;

/// Which pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Select {
    /// Those with these labels, in Kubernetes' syntax.
    Labels(String),
    /// Those that an InferencePool selects. They serve at its target ports.
    Pool {
        /// Its name.
        name: String,
        /// Its kind's API.
        group: PoolGroup,
    },
    /// Those that EndpointSlices of a Service name, and endpoints of it that are no pods.
    Service {
        /// Its name.
        name: String,
        /// Only pods with these labels; empty = all.
        labels: String,
    },
}

/// Pods of one kind, and what is true of them where they do not say it themselves.
#[derive(Clone, Debug)]
pub struct PodRules {
    /// Which pods.
    pub select: Select,
    /// Where they are; none = in the namespace of kvd, "*" = in all.
    pub namespaces: Vec<String>,
    /// The fields of their registrations.
    pub fields: Registration,
    /// Where they serve, by rank; one port = all ranks are one instance there.
    pub serving_ports: Vec<u16>,
    /// Data-parallel ranks.
    pub ranks: u32,
    /// The container port that events of rank 0 come from, by name.
    pub events_port_name: String,
    /// The same where no port has that name.
    pub events_port: u16,
    /// The container port that replays of rank 0 come from, by name.
    pub replay_port_name: String,
    /// The same where no port has that name; 0 = there is none.
    pub replay_port: u16,
}

impl Default for PodRules {
    fn default() -> Self {
        PodRules {
            select: Select::Labels("llm-d.ai/inference-serving=true".to_owned()),
            namespaces: Vec::new(),
            fields: Registration {
                engine: Some("vLLM".to_owned()),
                block_size: Some(16),
                ..Registration::default()
            },
            serving_ports: vec![8000],
            ranks: 1,
            events_port_name: "kv-events".to_owned(),
            events_port: 5557,
            replay_port_name: "kv-replay".to_owned(),
            replay_port: 0,
        }
    }
}

impl PodRules {
    /// What is seen of `pod`.
    pub fn see(&self, pod: &Pod) -> Seen {
        let (spec, status) = (pod.spec.clone().unwrap_or_default(), pod.status.clone().unwrap_or_default());
        let engine = named_port(&spec, &self.events_port_name).map(|(container, _)| container);
        let engine = engine.or(spec.containers.first().map(|c| c.name.as_str())).unwrap_or_default();
        Seen {
            object: name(pod),
            identity: format!(
                "{}/{}",
                pod.metadata.uid.as_deref().unwrap_or_default(),
                container_id(&status, engine).unwrap_or_default(),
            ),
            standing: if is_ready(&status) { Standing::Serving } else { Standing::Paused },
            publishers: match address(pod, &status) {
                None => Ok(Vec::new()),
                Some(address) => self.publishers(pod, &spec, address),
            },
        }
    }

    fn publishers(&self, pod: &Pod, spec: &PodSpec, address: IpAddr) -> Result<Vec<PublisherSpec>, String> {
        let said = Said::of(pod);
        let ports = match said.get("serving-ports") {
            Some(text) => {
                text.split(',').map(|p| parse("serving-ports", p.trim())).collect::<Result<_, _>>()?
            }
            None => self.serving_ports.clone(),
        };
        let ranks = match said.parsed("ranks")? {
            Some(n) => n,
            None if ports.len() > 1 => ports.len() as u32,
            None => self.ranks,
        };
        if !(1..=MAX_RANKS).contains(&ranks) {
            return Err(format!("{PREFIX}ranks: {ranks} is outside 1..{MAX_RANKS}"));
        }
        if ports.is_empty() || (ports.len() > 1 && ports.len() < ranks as usize) {
            return Err(format!("{PREFIX}serving-ports: give one port, or one for each of {ranks} ranks"));
        }
        let port = |what: &'static str, name: &str, otherwise: u16| -> Result<u16, String> {
            let named = named_port(spec, name).and_then(|(_, p)| u16::try_from(p.container_port).ok());
            Ok(said.parsed(what)?.or(named).unwrap_or(otherwise))
        };
        let events = port("events-port", &self.events_port_name, self.events_port)?;
        let replay = port("replay-port", &self.replay_port_name, self.replay_port)?;
        let node = spec.node_name.clone();
        let one = |rank: u32| {
            let at = |what: &str, base: u16| {
                let port = u32::from(base) + rank;
                let port =
                    u16::try_from(port).map_err(|_| format!("{what} of rank {rank}: no port {port}"))?;
                Ok::<_, String>(format!("tcp://{}", join(address, port)))
            };
            let serving = ports.get(rank as usize).or(ports.first()).copied().unwrap_or_default();
            let registration = Registration {
                endpoint: Some(at("events port", events)?),
                replay_endpoint: (replay > 0).then(|| at("replay port", replay)).transpose()?,
                instance_id: Some(join(address, serving)),
                dp_rank: Some(rank),
                node: node.clone(),
                ..said.over(&self.fields)?
            };
            registration.check().map_err(|e| {
                format!(
                    "{}: {}; say it in the pod's annotation {PREFIX}{} or in discovery.pods",
                    e.field,
                    e.why,
                    annotation(e.field)
                )
            })
        };
        (0..ranks).map(one).collect()
    }
}

/// What a pod says of itself. Annotations win over labels, whose values may hold less.
struct Said<'p> {
    annotations: Option<&'p BTreeMap<String, String>>,
    labels: Option<&'p BTreeMap<String, String>>,
}

impl<'p> Said<'p> {
    fn of(pod: &'p Pod) -> Said<'p> {
        Said { annotations: pod.metadata.annotations.as_ref(), labels: pod.metadata.labels.as_ref() }
    }

    fn get(&self, what: &str) -> Option<&'p str> {
        let key = format!("{PREFIX}{what}");
        let of =
            |map: Option<&'p BTreeMap<String, String>>| map.and_then(|m| m.get(&key)).map(String::as_str);
        of(self.annotations).or_else(|| of(self.labels)).map(str::trim).filter(|text| !text.is_empty())
    }

    fn parsed<T: FromStr<Err: Display>>(&self, what: &str) -> Result<Option<T>, String> {
        self.get(what).map(|text| parse(what, text)).transpose()
    }

    /// The fields of a registration: what is said here, over `fields`.
    fn over(&self, fields: &Registration) -> Result<Registration, String> {
        let text = |what: &str, otherwise: &Option<String>| {
            self.get(what).map(str::to_owned).or_else(|| otherwise.clone())
        };
        Ok(Registration {
            engine: text("type", &fields.engine),
            modelname: text("model", &fields.modelname),
            tenant_id: text("tenant", &fields.tenant_id),
            block_size: self.parsed("block-size")?.or(fields.block_size),
            lora_name: text("lora-name", &fields.lora_name),
            additionalsalt: text("additional-salt", &fields.additionalsalt),
            attention_chunk_size: self.parsed("attention-chunk-size")?.or(fields.attention_chunk_size),
            hash_algo: text("hash-algo", &fields.hash_algo),
            hash_seed: self.get("hash-seed").map(|s| HashSeed(s.to_owned())).or(fields.hash_seed.clone()),
            ..Registration::default()
        })
    }
}

fn parse<T: FromStr<Err: Display>>(what: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|e| format!("{PREFIX}{what}: {text:?}: {e}"))
}

/// The annotation that a field of a registration is said by.
fn annotation(field: &str) -> &str {
    match field {
        "modelname" => "model",
        "tenant_id" => "tenant",
        "block_size" => "block-size",
        "lora_name" => "lora-name",
        "additionalsalt" => "additional-salt",
        "hash_algo" => "hash-algo",
        "hash_seed" => "hash-seed",
        other => other,
    }
}

/// Where the pod is reached; `None` where it is not yet, or is on its way out.
fn address(pod: &Pod, status: &PodStatus) -> Option<IpAddr> {
    // A pod that has ended keeps its address, which may be another's by now. One that is being deleted
    // finishes what it has: nobody is to be sent there any more.
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if over || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    status.pod_ip.as_deref()?.parse().ok()
}

fn is_ready(status: &PodStatus) -> bool {
    let conditions = status.conditions.iter().flatten();
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Which of all lives of a container this is.
fn container_id<'s>(status: &'s PodStatus, name: &str) -> Option<&'s str> {
    // A sidecar is an init container that goes on.
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    all.into_iter().find(|c| c.name == name)?.container_id.as_deref()
}

/// The port of that name, and its container.
fn named_port<'p>(spec: &'p PodSpec, name: &str) -> Option<(&'p str, &'p ContainerPort)> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut ports = containers.flat_map(|c| c.ports.iter().flatten().map(move |p| (c.name.as_str(), p)));
    ports.find(|(_, p)| p.name.as_deref() == Some(name))
}

fn join(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

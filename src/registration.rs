//! What does someone say who registers an engine, and does it make sense?
//!
//! The same fields come in a `[[publisher]]` of the configuration and in the body of
//! `POST /register`; this is what was written, [`PublisherSpec`] is what was checked.

use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use crate::publisher::{EngineType, HashAlgo, PublisherSpec};
use crate::serve::DEFAULT_TENANT;
use crate::serve::ask::MAX_BLOCK_SIZE;

/// A registration as it was written. Empty texts are as good as none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Registration {
    /// See [`PublisherSpec::endpoint`].
    pub endpoint: Option<String>,
    /// See [`PublisherSpec::replay_endpoint`].
    pub replay_endpoint: Option<String>,
    /// See [`PublisherSpec::engine`].
    #[serde(rename = "type")]
    pub engine: Option<String>,
    /// See [`PublisherSpec::model`].
    #[serde(alias = "model", alias = "model_name")]
    pub modelname: Option<String>,
    /// See [`PublisherSpec::tenant_id`].
    pub tenant_id: Option<String>,
    /// See [`PublisherSpec::instance_id`].
    pub instance_id: Option<String>,
    /// See [`PublisherSpec::block_size`].
    pub block_size: Option<u32>,
    /// See [`PublisherSpec::dp_rank`].
    pub dp_rank: Option<u32>,
    /// See [`PublisherSpec::lora_name`].
    pub lora_name: Option<String>,
    /// See [`PublisherSpec::additional_salt`].
    #[serde(alias = "additional_salt")]
    pub additionalsalt: Option<String>,
    /// See [`PublisherSpec::bind`].
    pub bind: Option<String>,
    /// See [`PublisherSpec::topic`].
    pub topic: Option<String>,
    /// See [`PublisherSpec::attention_chunk_size`].
    pub attention_chunk_size: Option<u32>,
    /// See [`PublisherSpec::hash_algo`].
    pub hash_algo: Option<String>,
    /// See [`PublisherSpec::hash_seed`].
    pub hash_seed: Option<HashSeed>,
    /// See [`PublisherSpec::node`].
    pub node: Option<String>,
    /// See [`PublisherSpec::health_url`].
    pub health_url: Option<String>,
    /// See [`PublisherSpec::lease_seconds`].
    pub lease_seconds: Option<u32>,
    /// See [`PublisherSpec::control_endpoint`].
    pub control_endpoint: Option<String>,
    /// See [`PublisherSpec::pull_endpoint`].
    pub pull_endpoint: Option<String>,
}

/// A `PYTHONHASHSEED`, written as a number or as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HashSeed(pub String);

/// A registration that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct RegistrationError {
    /// The field at fault, by the name it is written with.
    pub field: &'static str,
    /// What is wrong with it and what would be right.
    pub why: String,
}

/// The longest text a field may have, in bytes.
const MAX_TEXT: usize = 4096;

impl Registration {
    /// The registration, checked.
    ///
    /// # Errors
    /// Names the first field that is missing or makes no sense.
    pub fn check(self) -> Result<PublisherSpec, RegistrationError> {
        let endpoint = optional("endpoint", self.endpoint)?;
        let bind = optional("bind", self.bind)?;
        let replay_endpoint = optional("replay_endpoint", self.replay_endpoint)?;
        match (&endpoint, &bind) {
            (None, None) => {
                return Err(fault(
                    "endpoint",
                    "endpoint is required (or bind, to listen for an engine that dials in)",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(fault(
                    "bind",
                    "give endpoint (dial the engine) or bind (listen for it), not both",
                ));
            }
            (Some(endpoint), None) => check_dialled("endpoint", endpoint)?,
            (None, Some(bind)) => check_bind("bind", bind)?,
        }
        if let Some(replay) = &replay_endpoint {
            check_dialled("replay_endpoint", replay)?;
        }
        let attention_chunk_size = self.attention_chunk_size.filter(|n| *n > 0);
        let engine = parse_engine(&required("type", self.engine)?)?;
        let node = optional("node", self.node)?;
        let health_url = optional("health_url", self.health_url)?;
        if let Some(url) = &health_url {
            check_health_url(url)?;
        }
        let control_endpoint = optional("control_endpoint", self.control_endpoint)?;
        let pull_endpoint = optional("pull_endpoint", self.pull_endpoint)?;
        check_of_tiers("control_endpoint", control_endpoint.as_deref(), engine)?;
        check_of_tiers("pull_endpoint", pull_endpoint.as_deref(), engine)?;
        let block_size = match engine {
            // Its events name blocks of whatever size.
            EngineType::Kvtier if node.is_none() => {
                return Err(fault("node", "node is required of a node's tiers"));
            }
            EngineType::Kvtier => None,
            EngineType::Vllm | EngineType::Sglang | EngineType::Mooncake => {
                Some(check_block_size(self.block_size)?)
            }
        };
        Ok(PublisherSpec {
            engine,
            model: required("modelname", self.modelname)?,
            tenant_id: optional("tenant_id", self.tenant_id)?.unwrap_or_else(|| DEFAULT_TENANT.to_owned()),
            instance_id: required("instance_id", self.instance_id)?,
            dp_rank: self.dp_rank.ok_or_else(|| fault("dp_rank", "dp_rank is required"))?,
            block_size,
            lora_name: optional("lora_name", self.lora_name)?,
            additional_salt: optional("additionalsalt", self.additionalsalt)?.unwrap_or_default(),
            topic: optional("topic", self.topic)?,
            hash_algo: optional("hash_algo", self.hash_algo)?.map(|a| parse_hash_algo(&a)).transpose()?,
            hash_seed: optional("hash_seed", self.hash_seed.map(|s| s.0))?,
            endpoint,
            replay_endpoint,
            bind,
            attention_chunk_size,
            node,
            health_url,
            lease_seconds: self.lease_seconds.filter(|n| *n > 0),
            control_endpoint,
            pull_endpoint,
        })
    }
}

/// The engine of a registration's `type`, whatever its case.
///
/// # Errors
/// Lists the types there are.
pub fn parse_engine(name: &str) -> Result<EngineType, RegistrationError> {
    let known = [
        ("vllm", EngineType::Vllm),
        ("sglang", EngineType::Sglang),
        ("mooncake", EngineType::Mooncake),
        // These publish in vLLM's format.
        ("tensorrt-llm", EngineType::Vllm),
        ("tensorrtllm", EngineType::Vllm),
        ("trtllm", EngineType::Vllm),
        ("dynamo", EngineType::Vllm),
        ("lmcache", EngineType::Vllm),
        ("kvtier", EngineType::Kvtier),
    ];
    known.into_iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, e)| e).ok_or_else(|| {
        fault(
            "type",
            format!(
                "{name:?} is not known; use vLLM, SGLang, Mooncake, TensorRT-LLM, Dynamo, LMCache or kvtier"
            ),
        )
    })
}

/// Checks an address to listen at, `tcp://*:port` or `tcp://ip:port`, or `ipc://path`.
///
/// # Errors
/// Says what `field` should look like.
pub fn check_bind(field: &'static str, address: &str) -> Result<(), RegistrationError> {
    check_address(field, address, true)
}

/// Checks an address to dial, `tcp://host:port` or `ipc://path`.
///
/// # Errors
/// Says what `field` should look like.
pub fn check_dialled(field: &'static str, address: &str) -> Result<(), RegistrationError> {
    check_address(field, address, false)
}

/// Checks where an engine says whether it is well, `http://host:port/path`.
///
/// # Errors
/// Says what it should look like.
pub fn check_health_url(url: &str) -> Result<(), RegistrationError> {
    let wrong = |why: &str| {
        Err(fault("health_url", format!("{url:?} {why}; an example is http://10.0.0.1:8000/health")))
    };
    if url.bytes().any(|b| b.is_ascii_control() || b == b' ') {
        return wrong("contains a space or control character");
    }
    match url.strip_prefix("http://") {
        None => wrong("does not begin with http://"),
        Some(rest) if rest.is_empty() || rest.starts_with(['/', ':', '?']) => wrong("has no host"),
        Some(_) => Ok(()),
    }
}

/// Checks where a node's tiers are reached, `host:port`, where `field` says it.
///
/// # Errors
/// Says what it should look like, and of whom alone there is one.
pub fn check_of_tiers(
    field: &'static str,
    address: Option<&str>,
    engine: EngineType,
) -> Result<(), RegistrationError> {
    let Some(address) = address else { return Ok(()) };
    let wrong = |why: &str| fault(field, format!("{address:?} {why}; an example is 10.0.0.1:50053"));
    match engine {
        EngineType::Kvtier => {}
        EngineType::Vllm | EngineType::Sglang | EngineType::Mooncake => {
            return Err(fault(field, format!("{field} is of a node's tiers (type kvtier) alone")));
        }
    }
    let uri: axum::http::Uri =
        format!("http://{address}/").parse().map_err(|_| wrong("is no host and port"))?;
    match (uri.host(), uri.port_u16(), uri.path()) {
        (Some(host), Some(1..), "/") if !host.is_empty() => Ok(()),
        _ => Err(wrong("is no host and port")),
    }
}

fn check_address(field: &'static str, address: &str, listens: bool) -> Result<(), RegistrationError> {
    let example = if listens { "tcp://*:5557" } else { "tcp://10.0.0.1:5557" };
    let wrong = |why: &str| Err(fault(field, format!("{address:?} {why}; an example is {example}")));
    if address.bytes().any(|b| b.is_ascii_control() || b == b' ') {
        return wrong("contains a space or control character");
    }
    if let Some(path) = address.strip_prefix("ipc://") {
        return if path.is_empty() { wrong("has no path") } else { Ok(()) };
    }
    let Some(rest) = address.strip_prefix("tcp://") else {
        return wrong("does not begin with tcp:// or ipc://");
    };
    let Some((host, port)) = rest.rsplit_once(':') else { return wrong("has no port") };
    if host.is_empty() {
        return wrong("has no host");
    }
    if host == "*" && !listens {
        return wrong("cannot be dialled: * is how the engine listens, here stands where it is reached");
    }
    match port.parse::<u16>() {
        Ok(0) | Err(_) => wrong("has no port in 1..65535"),
        Ok(_) => Ok(()),
    }
}

fn check_block_size(size: Option<u32>) -> Result<u32, RegistrationError> {
    match size {
        None => Err(fault("block_size", "block_size is required")),
        Some(n) if (1..=MAX_BLOCK_SIZE).contains(&n) => Ok(n),
        Some(n) => Err(fault("block_size", format!("{n} is outside 1..{MAX_BLOCK_SIZE}"))),
    }
}

fn parse_hash_algo(name: &str) -> Result<HashAlgo, RegistrationError> {
    match name {
        "sha256" => Ok(HashAlgo::Sha256),
        "sha256_cbor" => Ok(HashAlgo::Sha256Cbor),
        "xxhash" => Ok(HashAlgo::Xxhash),
        "xxhash_cbor" => Ok(HashAlgo::XxhashCbor),
        _ => Err(fault(
            "hash_algo",
            format!("{name:?} is not known; use sha256, sha256_cbor, xxhash or xxhash_cbor"),
        )),
    }
}

fn required(field: &'static str, text: Option<String>) -> Result<String, RegistrationError> {
    optional(field, text)?.ok_or_else(|| fault(field, format!("{field} is required")))
}

fn optional(field: &'static str, text: Option<String>) -> Result<Option<String>, RegistrationError> {
    match text {
        Some(t) if t.len() > MAX_TEXT => Err(fault(field, format!("longer than {MAX_TEXT} bytes"))),
        text => Ok(text.filter(|t| !t.is_empty())),
    }
}

fn fault(field: &'static str, why: impl Into<String>) -> RegistrationError {
    RegistrationError { field, why: why.into() }
}

impl<'de> Deserialize<'de> for HashSeed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seed;
        impl Visitor<'_> for Seed {
            type Value = HashSeed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or text")
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<HashSeed, E> {
                Ok(HashSeed(n.to_string()))
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> Result<HashSeed, E> {
                Ok(HashSeed(n.to_string()))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<HashSeed, E> {
                Ok(HashSeed(text.to_owned()))
            }
        }
        deserializer.deserialize_any(Seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(change: impl FnOnce(&mut Registration)) -> Result<PublisherSpec, RegistrationError> {
        let mut r = Registration {
            endpoint: Some("tcp://10.0.0.1:5557".into()),
            engine: Some("vLLM".into()),
            modelname: Some("m".into()),
            instance_id: Some("10.0.0.1:8000".into()),
            block_size: Some(16),
            dp_rank: Some(0),
            ..Registration::default()
        };
        change(&mut r);
        r.check()
    }

    #[test]
    fn what_is_left_out_has_its_default_and_empty_is_as_good_as_none() {
        let spec = written(|r| r.lora_name = Some(String::new())).unwrap();
        assert_eq!(
            (spec.tenant_id.as_str(), spec.lora_name, spec.additional_salt.as_str()),
            ("default", None, "")
        );
    }

    #[test]
    fn each_required_field_is_missed_by_name() {
        let missed = [
            ("endpoint", written(|r| r.endpoint = None)),
            ("type", written(|r| r.engine = None)),
            ("modelname", written(|r| r.modelname = Some(String::new()))),
            ("instance_id", written(|r| r.instance_id = None)),
            ("block_size", written(|r| r.block_size = None)),
            ("dp_rank", written(|r| r.dp_rank = None)),
        ];
        for (field, result) in missed {
            assert_eq!(result.unwrap_err().field, field);
        }
    }

    #[test]
    fn fields_that_make_no_sense_are_refused_by_name() {
        let wrong = [
            ("type", written(|r| r.engine = Some("gpt".into()))),
            ("block_size", written(|r| r.block_size = Some(0))),
            ("block_size", written(|r| r.block_size = Some(65537))),
            ("hash_algo", written(|r| r.hash_algo = Some("md5".into()))),
            ("bind", written(|r| r.bind = Some("tcp://*:5557".into()))),
            ("instance_id", written(|r| r.instance_id = Some("x".repeat(5000)))),
            ("replay_endpoint", written(|r| r.replay_endpoint = Some("10.0.0.1:5558".into()))),
        ];
        for (field, result) in wrong {
            assert_eq!(result.unwrap_err().field, field);
        }
        for endpoint in [
            "10.0.0.1:5557",
            "tcp://10.0.0.1",
            "tcp://:5557",
            "tcp://h:0",
            "tcp://h:99999",
            "tcp://*:1",
            "ipc://",
            "tcp://a b:1",
        ] {
            let refused = written(|r| r.endpoint = Some(endpoint.into()));
            assert_eq!(refused.unwrap_err().field, "endpoint", "{endpoint}");
        }
    }

    #[test]
    fn only_tiers_are_controlled_and_at_a_host_and_port() {
        let tiers = |control: &str| {
            written(|r| {
                r.engine = Some("kvtier".into());
                r.node = Some("n1".into());
                r.control_endpoint = Some(control.into());
            })
        };
        for good in ["10.0.0.1:50053", "node-1:1", "[fd00::1]:50053"] {
            assert_eq!(tiers(good).unwrap().control_endpoint.as_deref(), Some(good));
        }
        for bad in ["node-1", "node-1:0", "http://node-1:1", "node-1:1/x", "node 1:1", ":5", "node-1:99999"] {
            assert_eq!(tiers(bad).unwrap_err().field, "control_endpoint", "{bad}");
        }
        let of_engine = written(|r| r.control_endpoint = Some("10.0.0.1:50053".into()));
        assert_eq!(of_engine.unwrap_err().field, "control_endpoint");
        let of_engine = written(|r| r.pull_endpoint = Some("10.0.0.1:50054".into()));
        assert_eq!(of_engine.unwrap_err().field, "pull_endpoint");
    }

    #[test]
    fn an_engine_that_dials_in_is_registered_by_where_kvd_listens() {
        let bound = written(|r| {
            r.endpoint = None;
            r.bind = Some("tcp://*:5557".into());
        });
        assert_eq!(bound.unwrap().bind.as_deref(), Some("tcp://*:5557"));
        assert!(written(|r| r.endpoint = Some("tcp://[fd00::1]:5557".into())).is_ok());
    }

    #[test]
    fn types_are_known_whatever_their_case() {
        assert_eq!(parse_engine("VLLM").unwrap(), EngineType::Vllm);
        assert_eq!(parse_engine("sglang").unwrap(), EngineType::Sglang);
        assert_eq!(parse_engine("MoonCake").unwrap(), EngineType::Mooncake);
        assert_eq!(parse_engine("TensorRT-LLM").unwrap(), EngineType::Vllm);
    }

    #[test]
    fn a_hash_seed_is_a_number_or_text() {
        let seed = |json: &str| serde_json::from_str::<HashSeed>(json).unwrap().0;
        assert_eq!((seed("42"), seed("\"42\""), seed("-1")), ("42".into(), "42".into(), "-1".into()));
    }
}

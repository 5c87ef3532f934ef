//! What a registration means to the index and to a follower, and whether it makes sense.

use kvindex::{EngineHashing, HolderSpec};
use kvproto::engine::Engine;
use kvproto::hash::vllm::Algo;

use super::RegisterError;
use super::follow::Profile;
use crate::publisher::{EngineType, HashAlgo, PublisherSpec};
use crate::registration::{RegistrationError, check_bind, check_dialled, check_health_url, check_of_tiers};

/// The longest text a registration may hold, in bytes.
const MAX_TEXT: usize = 4096;

/// Checks what can be said of `spec` by itself.
pub fn check(spec: &PublisherSpec) -> Result<(), RegisterError> {
    let invalid = |field, why: &str| Err(RegisterError::Invalid { field, why: why.to_owned() });
    for (field, text) in
        [("model", &spec.model), ("instance_id", &spec.instance_id), ("tenant_id", &spec.tenant_id)]
    {
        if text.is_empty() {
            return invalid(field, "is empty");
        }
        if text.len() > MAX_TEXT {
            return invalid(field, "is longer than 4096 bytes");
        }
    }
    let optional = [
        ("endpoint", &spec.endpoint),
        ("replay_endpoint", &spec.replay_endpoint),
        ("bind", &spec.bind),
        ("topic", &spec.topic),
        ("lora_name", &spec.lora_name),
        ("hash_seed", &spec.hash_seed),
        ("node", &spec.node),
        ("health_url", &spec.health_url),
        ("control_endpoint", &spec.control_endpoint),
        ("pull_endpoint", &spec.pull_endpoint),
    ];
    for (field, text) in optional {
        if text.as_ref().is_some_and(|t| t.len() > MAX_TEXT) {
            return invalid(field, "is longer than 4096 bytes");
        }
    }
    match (&spec.endpoint, &spec.bind) {
        (Some(endpoint), None) => check_dialled("endpoint", endpoint)?,
        (None, Some(bind)) => check_bind("bind", bind)?,
        (None, None) => return invalid("endpoint", "is missing, and so is bind"),
        (Some(_), Some(_)) => {
            return invalid("bind", "goes without endpoint: dial the engine or listen for it");
        }
    }
    if let Some(replay) = &spec.replay_endpoint {
        check_dialled("replay_endpoint", replay)?;
    }
    if let Some(url) = &spec.health_url {
        check_health_url(url)?;
    }
    if spec.lease_seconds == Some(0) {
        return invalid("lease_seconds", "is 0");
    }
    check_of_tiers("control_endpoint", spec.control_endpoint.as_deref(), spec.engine)?;
    check_of_tiers("pull_endpoint", spec.pull_endpoint.as_deref(), spec.engine)?;
    if spec.block_size == Some(0) {
        return invalid("block_size", "is 0");
    }
    if spec.attention_chunk_size == Some(0) {
        return invalid("attention_chunk_size", "is 0");
    }
    Ok(())
}

impl From<RegistrationError> for RegisterError {
    fn from(e: RegistrationError) -> Self {
        RegisterError::Invalid { field: e.field, why: e.why }
    }
}

/// What the index must know.
pub fn holder_spec(spec: &PublisherSpec) -> HolderSpec {
    HolderSpec {
        tenant: spec.tenant_id.clone(),
        model: spec.model.clone(),
        instance: spec.instance_id.clone(),
        rank: spec.dp_rank,
        salt: spec.additional_salt.clone(),
        lora: spec.lora_name.clone(),
        attention_chunk: spec.attention_chunk_size,
        offload_chunk: match spec.engine {
            // SGLang moves single pages to its host tier, and does so from the first event on.
            EngineType::Sglang => Some(1),
            EngineType::Vllm | EngineType::Mooncake | EngineType::Kvtier => None,
        },
        hashing: spec.hash_algo.map(|algo| EngineHashing {
            algo: match algo {
                HashAlgo::Sha256 => Algo::Sha256,
                HashAlgo::Sha256Cbor => Algo::Sha256Cbor,
                HashAlgo::Xxhash => Algo::Xxhash,
                HashAlgo::XxhashCbor => Algo::XxhashCbor,
            },
            seed: spec.hash_seed.clone(),
        }),
        node: spec.node.clone(),
        tiers: spec.engine == EngineType::Kvtier,
    }
}

/// What a follower must know; `name` is for its logs.
pub fn profile(spec: &PublisherSpec, name: String) -> Profile {
    Profile {
        name,
        engine: match spec.engine {
            // A node tells of its blocks as vLLM does.
            EngineType::Vllm | EngineType::Kvtier => Engine::Vllm,
            EngineType::Sglang => Engine::Sglang,
            EngineType::Mooncake => Engine::Mooncake,
        },
        // On a shared socket the topic has decided already, before the message got here.
        topic: spec.topic.as_ref().filter(|_| spec.bind.is_none()).map(|t| t.clone().into_bytes()),
        rank: spec.dp_rank,
        block_size: spec.block_size,
        replayable: spec.replay_endpoint.is_some(),
        dialled: spec.endpoint.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::testing::dialled;

    fn field(spec: &PublisherSpec) -> Option<&'static str> {
        check(spec).err().map(|e| match e {
            RegisterError::Invalid { field, .. } | RegisterError::Address { field, .. } => field,
            RegisterError::TooMany { .. } | RegisterError::Catalog(_) => "",
        })
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_the_name_of_the_field() {
        let good = dialled("a", "tcp://10.0.0.1:5557");
        assert_eq!(field(&good), None);
        let with = |change: fn(&mut PublisherSpec)| {
            let mut spec = good.clone();
            change(&mut spec);
            field(&spec)
        };
        assert_eq!(with(|s| s.model.clear()), Some("model"));
        assert_eq!(with(|s| s.instance_id = "x".repeat(5000)), Some("instance_id"));
        assert_eq!(with(|s| s.endpoint = None), Some("endpoint"));
        assert_eq!(with(|s| s.endpoint = Some("10.0.0.1:5557".into())), Some("endpoint"));
        assert_eq!(with(|s| s.endpoint = Some("tcp://*:5557".into())), Some("endpoint"));
        assert_eq!(with(|s| s.bind = Some("tcp://*:5557".into())), Some("bind"));
        assert_eq!(with(|s| s.replay_endpoint = Some("tcp://a:0".into())), Some("replay_endpoint"));
        assert_eq!(with(|s| s.block_size = Some(0)), Some("block_size"));
    }
}

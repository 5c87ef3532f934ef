//! The questions: what a scheduler asks before routing and tells afterwards.

use std::time::Duration;

use kvproto::Tier;
use kvproto::rpc::kv;

use crate::{Endpoint, Prompt};

/// How much of one prompt every candidate holds.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreCall {
    pub(crate) wire: kv::ScoreRequest,
}

impl ScoreCall {
    /// Asks about all instances of `model` in the default tenant. Counts are in blocks of each
    /// engine's own size, or of the size that the prompt's hashes are for.
    pub fn new(model: impl Into<String>, prompt: Prompt) -> ScoreCall {
        let block_size = prompt.block_size;
        ScoreCall {
            wire: kv::ScoreRequest {
                model: model.into(),
                prompt: Some(prompt.wire),
                block_size,
                ..kv::ScoreRequest::default()
            },
        }
    }

    /// Names the request; the answer carries the name.
    pub fn request_id(mut self, id: impl Into<String>) -> ScoreCall {
        self.wire.request_id = id.into();
        self
    }

    /// Asks in this tenant.
    pub fn tenant(mut self, tenant: impl Into<String>) -> ScoreCall {
        self.wire.tenant_id = tenant.into();
        self
    }

    /// Only these instances, named as they are registered.
    pub fn candidates<S: Into<String>>(mut self, instances: impl IntoIterator<Item = S>) -> ScoreCall {
        self.wire.candidates = instances.into_iter().map(Into::into).collect();
        self
    }

    /// Gives counts in blocks of this many tokens.
    pub fn block_size(mut self, tokens: u32) -> ScoreCall {
        self.wire.block_size = tokens;
        self
    }

    /// Replaces the configured weight of one tier.
    pub fn tier_weight(mut self, tier: Tier, weight: f64) -> ScoreCall {
        let tier = match tier {
            Tier::Gpu => kv::Tier::Gpu,
            Tier::Cpu => kv::Tier::Cpu,
            Tier::Disk => kv::Tier::Disk,
            Tier::Shared => kv::Tier::Shared,
            Tier::Unknown => kv::Tier::Unknown,
        };
        self.options().tier_weights.push(kv::TierWeight { tier: tier as i32, weight });
        self
    }

    /// Looks at no more than this many blocks.
    pub fn max_blocks(mut self, blocks: u32) -> ScoreCall {
        self.options().max_blocks = blocks;
        self
    }

    /// Counts blocks that routing announced, apart from those that are there.
    pub fn speculative(mut self) -> ScoreCall {
        self.options().include_speculative = true;
        self
    }

    /// Asks for the `k` best only.
    pub fn top_k(mut self, k: u32) -> ScoreCall {
        self.options().top_k = k;
        self
    }

    /// Asks for a token that stands for this prompt in [`Prompt::scored`].
    pub fn want_score_token(mut self) -> ScoreCall {
        self.options().want_score_token = true;
        self
    }

    fn options(&mut self) -> &mut kv::ScoreOptions {
        self.wire.options.get_or_insert_default()
    }
}

/// Where a request was routed.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutingCall {
    pub(crate) wire: kv::RecordRoutingRequest,
}

impl RoutingCall {
    /// Request `request_id` with this prompt went to no endpoint yet. A second call of the same
    /// id replaces the first.
    pub fn new(request_id: impl Into<String>, model: impl Into<String>, prompt: Prompt) -> RoutingCall {
        let block_size = prompt.block_size;
        RoutingCall {
            wire: kv::RecordRoutingRequest {
                request_id: request_id.into(),
                model: model.into(),
                prompt: Some(prompt.wire),
                block_size,
                ..kv::RecordRoutingRequest::default()
            },
        }
    }

    /// In this tenant.
    pub fn tenant(mut self, tenant: impl Into<String>) -> RoutingCall {
        self.wire.tenant_id = tenant.into();
        self
    }

    /// It went to these.
    pub fn to(mut self, endpoints: impl IntoIterator<Item = Endpoint>) -> RoutingCall {
        self.wire.endpoints = endpoints
            .into_iter()
            .map(|e| kv::RoutedEndpoint { instance_id: e.instance, dp_rank: e.rank })
            .collect();
        self
    }

    /// How long its blocks count unless they arrive, in whole milliseconds, at least one.
    pub fn ttl(mut self, ttl: Duration) -> RoutingCall {
        // Zero would mean the server's default.
        self.wire.ttl_ms = u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX).max(1);
        self
    }
}

/// How prompts of one model are to be hashed.
#[derive(Clone, Debug, PartialEq)]
pub struct HashSpecCall {
    pub(crate) wire: kv::GetHashSpecRequest,
}

impl HashSpecCall {
    /// Asks for `model` itself, in the default tenant.
    pub fn new(model: impl Into<String>) -> HashSpecCall {
        HashSpecCall {
            wire: kv::GetHashSpecRequest { model: model.into(), ..kv::GetHashSpecRequest::default() },
        }
    }

    /// Asks in this tenant.
    pub fn tenant(mut self, tenant: impl Into<String>) -> HashSpecCall {
        self.wire.tenant_id = tenant.into();
        self
    }

    /// Asks for prompts with this LoRA adapter.
    pub fn lora(mut self, name: impl Into<String>) -> HashSpecCall {
        self.wire.lora_name = name.into();
        self
    }

    /// Asks for engines with this deployment salt; needed only where the model's differ in it.
    pub fn additional_salt(mut self, salt: impl Into<String>) -> HashSpecCall {
        self.wire.additional_salt = Some(salt.into());
        self
    }
}

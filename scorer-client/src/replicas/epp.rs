//! The settings in the words of llm-d's endpoint picker.
//!
//! The `parameters` of its prefix-cache plugins, old and new, are read as they are: what has a meaning here
//! is taken, the rest is left alone, as those plugins leave each other's.

use kvproto::Tier;
use serde::Deserialize;

use super::settings::ReplicaSettings;

/// `parameters` of a prefix-cache plugin in an `EndpointPickerConfig`. docs/epp.md has them beside ours.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EppParameters {
    /// Tokens per block that counts are given in.
    pub block_size_tokens: Option<u32>,
    /// The old name of the approximate plugin: characters per block, of which four are taken for a token.
    pub hash_block_size: Option<u32>,
    /// Blocks of a prompt that are looked at; where both are given, `maxPrefixTokensToMatch` wins.
    pub max_prefix_blocks_to_match: Option<u32>,
    /// The same in tokens; 0 = the count of blocks decides.
    pub max_prefix_tokens_to_match: Option<u32>,
    /// Blocks per pod that are remembered for guesses.
    pub lru_capacity_per_server: Option<usize>,
    /// The precise plugin's block size.
    pub token_processor_config: Option<TokenProcessor>,
    /// The precise plugin's weights of tiers.
    pub indexer_config: Option<Indexer>,
    /// Counts blocks of requests that were routed and are not there yet.
    pub speculative_indexing: Option<bool>,
    /// How long those count, as Go writes durations: `2s`, `500ms`.
    #[serde(rename = "speculativeTTL")]
    pub speculative_ttl: Option<String>,
}

/// `tokenProcessorConfig`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TokenProcessor {
    /// Tokens per block.
    pub block_size_tokens: Option<u32>,
    /// The same under its old name.
    pub block_size: Option<u32>,
}

/// `indexerConfig`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Indexer {
    /// The weight of each tier.
    pub kv_cache_backend_configs: Vec<Backend>,
}

/// One of `kvCacheBackendConfigs`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Backend {
    /// The tier: `gpu`, `cpu`, `disk`, `shared_storage`, `object_store`.
    pub name: String,
    /// What a block there counts.
    pub weight: f64,
}

/// Parameters that cannot be followed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EppError {
    /// A tier that kvd does not tell apart.
    #[error("kvCacheBackendConfigs: unknown tier {name:?}")]
    Tier {
        /// Its name.
        name: String,
    },
    /// A weight is a number from 0 on.
    #[error("kvCacheBackendConfigs: weight {weight} of {name:?} is not a number from 0 on")]
    Weight {
        /// The tier.
        name: String,
        /// Its weight.
        weight: f64,
    },
    /// Not a duration such as `2s`.
    #[error("speculativeTTL: {text:?} is not a duration such as 2s")]
    Duration {
        /// What was given.
        text: String,
    },
    /// Blocks have 1 to 65536 tokens.
    #[error("a block size of {tokens} tokens is outside 1 to 65536")]
    BlockSize {
        /// What was given.
        tokens: u32,
    },
}

/// What the approximate plugin takes for a token.
const CHARACTERS_PER_TOKEN: u32 = 4;

impl EppParameters {
    /// Takes over into `settings` what these say.
    ///
    /// # Errors
    ///
    /// [`EppError`], which names the parameter.
    pub fn apply(&self, settings: &mut ReplicaSettings) -> Result<(), EppError> {
        let processor = self.token_processor_config.as_ref();
        let tokens = self
            .block_size_tokens
            .or_else(|| processor.and_then(|p| p.block_size_tokens.or(p.block_size)))
            .or_else(|| self.hash_block_size.map(|characters| characters / CHARACTERS_PER_TOKEN));
        if let Some(tokens) = tokens {
            if !(1..=65536).contains(&tokens) {
                return Err(EppError::BlockSize { tokens });
            }
            settings.block_size = tokens;
        }
        let by_tokens = self.max_prefix_tokens_to_match.filter(|tokens| *tokens > 0);
        if let Some(most) = by_tokens.filter(|_| settings.block_size > 0) {
            settings.max_blocks = (most / settings.block_size).max(1);
        } else if let Some(most) = self.max_prefix_blocks_to_match {
            settings.max_blocks = most;
        }
        if let Some(room) = self.lru_capacity_per_server {
            settings.remembered_blocks = room;
        }
        if let Some(indexer) = &self.indexer_config {
            settings.tier_weights = indexer.weights()?;
        }
        if let Some(speculative) = self.speculative_indexing {
            settings.speculative = speculative;
        }
        if let Some(text) = &self.speculative_ttl {
            let ttl =
                humantime::parse_duration(text).map_err(|_| EppError::Duration { text: text.clone() })?;
            settings.routing_ttl = Some(ttl);
        }
        Ok(())
    }
}

impl Indexer {
    fn weights(&self) -> Result<Vec<(Tier, f64)>, EppError> {
        let weight = |b: &Backend| {
            let tier = match b.name.to_ascii_lowercase().as_str() {
                "gpu" => Tier::Gpu,
                "cpu" => Tier::Cpu,
                "disk" | "ssd" | "nvme" => Tier::Disk,
                "shared" | "shared_storage" | "object_store" => Tier::Shared,
                _ => return Err(EppError::Tier { name: b.name.clone() }),
            };
            if !(b.weight >= 0.0 && b.weight.is_finite()) {
                return Err(EppError::Weight { name: b.name.clone(), weight: b.weight });
            }
            Ok((tier, b.weight))
        };
        self.kv_cache_backend_configs.iter().map(weight).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn settings(json: &str) -> Result<ReplicaSettings, EppError> {
        let parameters: EppParameters = serde_json::from_str(json).expect("parameters");
        let mut settings = ReplicaSettings::new(["kvd:1"]);
        parameters.apply(&mut settings).map(|()| settings)
    }

    #[test]
    fn the_precise_plugins_parameters_are_understood() {
        let got = settings(
            r#"{"tokenProcessorConfig": {"blockSize": 64, "hashSeed": "42"}, "speculativeIndexing": true,
                "speculativeTTL": "1m30s", "kvEventsConfig": {"topicFilter": "kv@"},
                "indexerConfig": {"tokenizersPoolConfig": null, "kvCacheBackendConfigs":
                    [{"name": "gpu", "weight": 1.0}, {"name": "cpu", "weight": 0.8}, {"name": "object_store", "weight": 0.2}]}}"#,
        );
        let want = ReplicaSettings {
            block_size: 64,
            speculative: true,
            routing_ttl: Some(Duration::from_secs(90)),
            tier_weights: vec![(Tier::Gpu, 1.0), (Tier::Cpu, 0.8), (Tier::Shared, 0.2)],
            ..ReplicaSettings::new(["kvd:1"])
        };
        assert_eq!(got, Ok(want));
    }

    #[test]
    fn the_approximate_plugins_parameters_are_understood_old_and_new() {
        let want = |block_size, max_blocks| ReplicaSettings {
            block_size,
            max_blocks,
            remembered_blocks: 31250,
            ..ReplicaSettings::new(["kvd:1"])
        };
        let old = r#"{"hashBlockSize": 64, "maxPrefixBlocksToMatch": 256, "lruCapacityPerServer": 31250}"#;
        assert_eq!(settings(old), Ok(want(16, 256)));
        let new = r#"{"autoTune": true, "blockSizeTokens": 16, "maxPrefixTokensToMatch": 131072,
            "maxPrefixBlocksToMatch": 2048, "lruCapacityPerServer": 31250}"#;
        assert_eq!(settings(new), Ok(want(16, 8192)));
        let by_blocks = new.replace("131072", "0");
        assert_eq!(settings(&by_blocks), Ok(want(16, 2048)));
        assert_eq!(settings("{}"), Ok(ReplicaSettings::new(["kvd:1"])));
    }

    #[test]
    fn what_cannot_be_followed_is_named() {
        let backend = |b: &str| format!(r#"{{"indexerConfig": {{"kvCacheBackendConfigs": [{b}]}}}}"#);
        for (json, says) in [
            (backend(r#"{"name": "tape", "weight": 1}"#), r#"unknown tier "tape""#),
            (backend(r#"{"name": "gpu", "weight": -1}"#), r#"weight -1 of "gpu""#),
            (r#"{"speculativeTTL": "soon"}"#.to_owned(), r#"speculativeTTL: "soon""#),
            (r#"{"hashBlockSize": 3}"#.to_owned(), "block size of 0"),
            (r#"{"blockSizeTokens": 99999}"#.to_owned(), "block size of 99999"),
        ] {
            let error = settings(&json).expect_err(&json).to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}

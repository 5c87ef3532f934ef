//! The shape of a model's cache, from its `config.json` as Hugging Face has it.
//!
//! Every family says the same in keys of its own. What is read is listed in `docs/transfers.md`;
//! a model this does not understand is an error, never a guess.

use serde_json::Value;

use super::geometry::{Geometry, Group, GroupKind, USUAL_PARITY};

/// Layers beyond this are taken for a mistake.
const MAX_LAYERS: u64 = 4096;
/// Any other number beyond this likewise.
const MAX_SIZE: u64 = 1 << 32;

/// Why a `config.json` tells no geometry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The text is no JSON object.
    #[error("not a JSON object: {why}")]
    NotAnObject {
        /// What the parser says.
        why: String,
    },
    /// A number that is needed is not there.
    #[error("no {key}")]
    Missing {
        /// Its key, or the first of several names for it.
        key: &'static str,
    },
    /// A value that cannot be.
    #[error("{key} is {value}")]
    OutOfRange {
        /// Its key.
        key: &'static str,
        /// What it says.
        value: String,
    },
    /// A kind of layer that is not known.
    #[error("layer {layer} is of unknown type {kind}")]
    UnknownLayer {
        /// Which, from 0.
        layer: usize,
        /// What it says.
        kind: String,
    },
}

/// How one layer keeps its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    Full,
    Window,
    Chunk,
    Recurrent,
    /// Keeps nothing: a layer of experts or a plain MLP that hybrid patterns count as a layer.
    None,
}

impl Geometry {
    /// Reads a `config.json`. `cache_bytes` is the size of one cached number where the engine
    /// stores another type than the model's own (1 for fp8).
    pub fn from_config_json(text: &str, cache_bytes: Option<u64>) -> Result<Geometry, ConfigError> {
        let whole: Value =
            serde_json::from_str(text).map_err(|e| ConfigError::NotAnObject { why: e.to_string() })?;
        if !whole.is_object() {
            return Err(ConfigError::NotAnObject { why: "some other value".to_owned() });
        }
        // Multimodal models keep the language model's shape in a part of its own.
        let text_part = ["text_config", "llm_config", "language_config"].iter().find_map(|k| whole.get(*k));
        let config = Config { part: text_part.unwrap_or(&whole), whole: &whole };
        let cached = match cache_bytes {
            Some(bytes) => bytes,
            None => config.dtype_bytes()?,
        };
        geometry(&config, cached)
    }
}

fn geometry(config: &Config<'_>, cached: u64) -> Result<Geometry, ConfigError> {
    let layers = layers(config)?;
    let (token_bytes, heads) = attention_bytes(config, cached)?;
    let window = config.number("sliding_window")?;
    let chunk = config.number("attention_chunk_size")?;
    let mut groups = Vec::new();
    for (layer, kind, window) in [
        (Layer::Full, GroupKind::Full, None),
        (Layer::Window, GroupKind::SlidingWindow, window),
        (Layer::Chunk, GroupKind::ChunkedLocal, chunk),
    ] {
        let count = layers.iter().filter(|l| **l == layer).count() as u64;
        if count > 0 {
            groups.push(Group {
                kind,
                layers: count as u32,
                token_bytes: count * token_bytes,
                state_bytes: 0,
                window: window.map(|w| w.min(u64::from(u32::MAX)) as u32),
                heads,
            });
        }
    }
    let recurrent = layers.iter().filter(|l| **l == Layer::Recurrent).count() as u64;
    if recurrent > 0 {
        let (state, heads) = state_bytes(config, cached)?;
        groups.push(Group {
            kind: GroupKind::Mamba,
            layers: recurrent as u32,
            token_bytes: 0,
            state_bytes: recurrent * state,
            window: None,
            heads,
        });
    }
    if groups.is_empty() {
        return Err(ConfigError::Missing { key: "layer_types" });
    }
    Ok(Geometry { groups, attention_parity: parity(config, &layers)? })
}

/// What each layer is, from the first to the last.
fn layers(config: &Config<'_>) -> Result<Vec<Layer>, ConfigError> {
    // Nemotron-H: a letter per layer.
    if let Some(pattern) = config.get("hybrid_override_pattern").and_then(Value::as_str) {
        let letter = |(layer, c)| match c {
            'M' => Ok(Layer::Recurrent),
            '*' => Ok(Layer::Full),
            '-' | 'E' => Ok(Layer::None),
            other => Err(ConfigError::UnknownLayer { layer, kind: other.to_string() }),
        };
        return pattern.chars().take(MAX_LAYERS as usize).enumerate().map(letter).collect();
    }
    // The usual list, and Jamba's and Zamba's names for it.
    let named = ["layer_types", "layers_block_type"].iter().find_map(|k| config.get(k)?.as_array());
    if let Some(list) = named.filter(|l| !l.is_empty()) {
        let name = |(layer, v): (usize, &Value)| match v.as_str().unwrap_or_default() {
            "full_attention" | "attention" | "global_attention" => Ok(Layer::Full),
            "sliding_attention" => Ok(Layer::Window),
            "chunked_attention" => Ok(Layer::Chunk),
            "linear_attention" | "mamba" | "mamba2" | "recurrent" => Ok(Layer::Recurrent),
            "mlp" | "moe" => Ok(Layer::None),
            "hybrid" => Ok(Layer::Full),
            _ => Err(ConfigError::UnknownLayer { layer, kind: v.to_string() }),
        };
        return list.iter().take(MAX_LAYERS as usize).enumerate().map(name).collect();
    }
    let count = config.needed("num_hidden_layers", MAX_LAYERS)? as usize;
    // Every so many layers one with full attention; Gemma's others have a window, Qwen3-Next's and
    // Jamba's a recurrent state.
    let every = |period: u64, offset: u64, other: Layer| {
        let is_full = |i: usize| i as u64 % period == offset % period;
        (0..count).map(|i| if is_full(i) { Layer::Full } else { other }).collect()
    };
    if let Some(period) = config.number("sliding_window_pattern")?.filter(|p| *p > 0)
        && config.number("sliding_window")?.is_some()
    {
        return Ok(every(period, period - 1, Layer::Window));
    }
    if let Some(period) = config.number("full_attention_interval")?.filter(|p| *p > 0) {
        return Ok(every(period, period - 1, Layer::Recurrent));
    }
    if let Some(period) = config.number("attn_layer_period")?.filter(|p| *p > 0) {
        let offset = config.number("attn_layer_offset")?.unwrap_or(0);
        return Ok(every(period, offset, Layer::Recurrent));
    }
    Ok(match windowed_throughout(config)? {
        true => vec![Layer::Window; count],
        false => vec![Layer::Full; count],
    })
}

/// Mistral's first models: every layer has the window. Qwen2 names one and does not use it.
fn windowed_throughout(config: &Config<'_>) -> Result<bool, ConfigError> {
    let used = config.get("use_sliding_window").and_then(Value::as_bool).unwrap_or(true);
    Ok(used && config.number("sliding_window")?.is_some())
}

/// Bytes per token of one attention layer, and into how many parts ranks split it.
fn attention_bytes(config: &Config<'_>, cached: u64) -> Result<(u64, u32), ConfigError> {
    if let Some(latent) = config.number("kv_lora_rank")?.filter(|l| *l > 0) {
        // MLA: one latent and one rotary part for all heads, the same on every rank.
        let rope = config.number("qk_rope_head_dim")?.unwrap_or(0);
        // DeepSeek V3.2's indexer keeps a key of fp8 beside it, with a scale of 4 bytes per 128.
        let index = config.number("index_head_dim")?.map_or(0, |d| d + d.div_ceil(128) * 4);
        return Ok(((latent + rope) * cached + index, 1));
    }
    let heads = config.attention_heads()?;
    let kv_heads = match config.number("num_key_value_heads")? {
        Some(n) if n > 0 => n,
        // Falcon's first models.
        _ if config.get("multi_query").and_then(Value::as_bool) == Some(true) => 1,
        _ => heads,
    };
    let dim = config.head_dim(heads)?;
    let value_dim = config.number("v_head_dim")?.unwrap_or(dim);
    let bytes = kv_heads.checked_mul(dim + value_dim).and_then(|n| n.checked_mul(cached));
    let bytes = bytes.filter(|b| *b <= MAX_SIZE);
    let bytes = bytes.ok_or_else(|| ConfigError::OutOfRange { key: "head_dim", value: dim.to_string() })?;
    Ok((bytes, kv_heads.min(u64::from(u32::MAX)) as u32))
}

/// Bytes of one recurrent layer's state, and into how many parts ranks split it.
fn state_bytes(config: &Config<'_>, cached: u64) -> Result<(u64, u32), ConfigError> {
    let (conv, state, heads);
    if let Some(value_heads) = config.number("linear_num_value_heads")? {
        // Gated delta net (Qwen3-Next).
        let key_heads = config.needed("linear_num_key_heads", MAX_SIZE)?;
        let key_dim = config.needed("linear_key_head_dim", MAX_SIZE)?;
        let value_dim = config.needed("linear_value_head_dim", MAX_SIZE)?;
        let kernel = config.number("linear_conv_kernel_dim")?.unwrap_or(4);
        conv = product([
            2 * product([key_heads, key_dim, 1])? + product([value_heads, value_dim, 1])?,
            kernel.saturating_sub(1),
            1,
        ])?;
        state = product([value_heads, key_dim, value_dim])?;
        heads = value_heads;
    } else if let Some(n) = config.either(&["mamba_num_heads", "mamba_n_heads", "n_mamba_heads"])? {
        // Mamba 2 (Nemotron-H, Granite 4, Bamba, Falcon-H1).
        let dim = config.either(&["mamba_head_dim", "mamba_d_head"])?;
        let dim = dim.ok_or(ConfigError::Missing { key: "mamba_head_dim" })?;
        let size = config.either(&["ssm_state_size", "mamba_d_state", "state_size"])?;
        let size = size.ok_or(ConfigError::Missing { key: "ssm_state_size" })?;
        let groups = config.either(&["n_groups", "mamba_n_groups", "mamba_ngroups"])?.unwrap_or(1);
        let kernel = config.either(&["conv_kernel", "mamba_d_conv"])?.unwrap_or(4);
        conv =
            product([product([n, dim, 1])? + 2 * product([groups, size, 1])?, kernel.saturating_sub(1), 1])?;
        state = product([n, dim, size])?;
        heads = n;
    } else {
        // Mamba 1 (Jamba): one state per channel.
        let hidden = config.needed("hidden_size", MAX_SIZE)?;
        let expand = config.number("mamba_expand")?.ok_or(ConfigError::Missing { key: "mamba_expand" })?;
        let size = config.number("mamba_d_state")?.ok_or(ConfigError::Missing { key: "mamba_d_state" })?;
        let kernel = config.number("mamba_d_conv")?.unwrap_or(4);
        let inner = product([hidden, expand, 1])?;
        conv = product([inner, kernel.saturating_sub(1), 1])?;
        state = product([inner, size, 1])?;
        heads = inner;
    }
    // States are kept in the model's type or wider; the cache's fp8 is for keys and values.
    let number = cached.max(2);
    Ok((product([conv + state, number, 1])?, heads.min(u64::from(u32::MAX)) as u32))
}

fn product(parts: [u64; 3]) -> Result<u64, ConfigError> {
    let all = parts.into_iter().try_fold(1u64, u64::checked_mul).filter(|n| *n <= MAX_SIZE);
    all.ok_or_else(|| ConfigError::OutOfRange { key: "size of a state", value: format!("{parts:?}") })
}

/// Where attention costs as much as everything else: parameters that a token passes, over the
/// multiplications of one token of context.
fn parity(config: &Config<'_>, layers: &[Layer]) -> Result<f64, ConfigError> {
    let full = layers.iter().filter(|l| **l == Layer::Full).count() as f64;
    let (Some(hidden), Ok(heads)) = (config.number("hidden_size")?, config.attention_heads()) else {
        return Ok(USUAL_PARITY);
    };
    // With MLA a query head meets keys of nope + rope and values of their own size.
    let nope = config.number("qk_nope_head_dim")?;
    let key = match nope {
        Some(nope) => nope + config.number("qk_rope_head_dim")?.unwrap_or(0),
        None => config.head_dim(heads)?,
    };
    let value = config.number("v_head_dim")?.unwrap_or(key);
    let kv_heads = config.number("num_key_value_heads")?.filter(|n| *n > 0).unwrap_or(heads);
    // A mixture of experts: those that a token is sent to.
    let experts = config.either(&["num_experts_per_tok", "num_experts_per_token"])?;
    let mlp = match (experts, config.number("moe_intermediate_size")?, config.number("intermediate_size")?) {
        (Some(experts), Some(size), _) => {
            let shared = config.number("n_shared_experts")?.unwrap_or(0);
            (experts + shared) as f64 * size as f64
        }
        (Some(experts), None, Some(size)) => experts as f64 * size as f64,
        (None, _, Some(size)) => size as f64,
        (_, _, None) => 4.0 * hidden as f64,
    };
    let (hidden, heads, kv_heads) = (hidden as f64, heads as f64, kv_heads as f64);
    let per_layer =
        hidden * (heads * key as f64 + kv_heads * (key + value) as f64 + heads * value as f64 + 3.0 * mlp);
    let per_context = heads * (key + value) as f64;
    if full == 0.0 || per_context == 0.0 {
        // Attention that does not grow with the context.
        return Ok(f64::from(u32::MAX));
    }
    Ok((per_layer * layers.len() as f64 / (per_context * full)).max(1.0))
}

/// A `config.json`: the language model's part, and the whole for what only that says.
struct Config<'a> {
    part: &'a Value,
    whole: &'a Value,
}

impl<'a> Config<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        let of = |v: &'a Value| v.get(key).filter(|v| !v.is_null());
        of(self.part).or_else(|| of(self.whole))
    }

    /// A number, if it is there.
    fn number(&self, key: &'static str) -> Result<Option<u64>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if n <= MAX_SIZE => Ok(Some(n)),
            // A list, one per layer, or a text: not what this key means elsewhere.
            Some(_) | None => {
                Err(ConfigError::OutOfRange { key, value: value.to_string().chars().take(40).collect() })
            }
        }
    }

    /// The first of several names for a number.
    fn either(&self, keys: &[&'static str]) -> Result<Option<u64>, ConfigError> {
        for key in keys {
            if let Some(n) = self.number(key)? {
                return Ok(Some(n));
            }
        }
        Ok(None)
    }

    fn needed(&self, key: &'static str, most: u64) -> Result<u64, ConfigError> {
        match self.number(key)? {
            Some(n) if (1..=most).contains(&n) => Ok(n),
            Some(n) => Err(ConfigError::OutOfRange { key, value: n.to_string() }),
            None => Err(ConfigError::Missing { key }),
        }
    }

    fn attention_heads(&self) -> Result<u64, ConfigError> {
        self.needed("num_attention_heads", MAX_SIZE)
    }

    fn head_dim(&self, heads: u64) -> Result<u64, ConfigError> {
        match self.either(&["head_dim", "attention_head_dim"])? {
            Some(dim) => Ok(dim),
            None => Ok(self.needed("hidden_size", MAX_SIZE)? / heads),
        }
    }

    /// Bytes of one number of the model.
    fn dtype_bytes(&self) -> Result<u64, ConfigError> {
        let name = ["torch_dtype", "dtype"].iter().find_map(|k| self.get(k)?.as_str());
        match name.map(|n| n.trim_start_matches("torch.")) {
            // Quantised models say the type they compute in, which is what they cache.
            Some("bfloat16" | "float16" | "half") | None => Ok(2),
            Some("float32" | "float") => Ok(4),
            Some(name) if name.starts_with("float8") => Ok(1),
            Some(name) => Err(ConfigError::OutOfRange { key: "torch_dtype", value: name.to_owned() }),
        }
    }
}

#[cfg(test)]
#[path = "config_json_tests.rs"]
mod tests;

//! What was asked while a stream was recorded, and what did the engine say it had cached?
//!
//! A capture is `NAME.json` (the requests and the engine's own counts) beside one
//! `.kvcap` stream per publisher. [`Capture::cut`] says how much of a stream had arrived
//! when a request was sent, and [`Capture::exclusions`] which requests nobody outside
//! the engine can be exact about, with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::ctl::kvcap::{self, KvcapError, Record};
use crate::publisher::EngineType;

/// One recorded run.
#[derive(Debug)]
pub struct Capture {
    /// File name without `.json`.
    pub name: String,
    /// What the run was.
    pub doc: Description,
    /// The recorded streams, in the order of `doc.streams`.
    pub streams: Vec<Vec<Record>>,
}

/// The json beside the streams. Fields that no check needs are not read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Description {
    /// Engine and version, in words.
    pub engine: String,
    /// Stream files, one per publisher.
    pub streams: Vec<String>,
    /// What happened, in order.
    #[serde(deserialize_with = "null_is_default")]
    pub steps: Vec<Step>,
    /// Where several engines share one stream: how each was configured.
    #[serde(deserialize_with = "null_is_default")]
    pub kv_events_configs: Vec<EventsConfig>,
    /// What the engine's settings came out as.
    #[serde(deserialize_with = "null_is_default")]
    pub resolved: Resolved,
    /// SGLang's block size.
    pub page_size: Option<u32>,
    /// SGLang's rank.
    pub attn_dp_rank: Option<u32>,
    /// vLLM's command line.
    #[serde(deserialize_with = "null_is_default")]
    pub server_args: Vec<String>,
    /// Tokens per chunk of chunked local attention.
    pub attention_chunk_size: Option<u32>,
    /// The events tell no positions: blocks are only found by the engine's own hashes.
    pub needs_hash: bool,
}

/// How one of several engines published.
#[derive(Debug, Deserialize)]
pub struct EventsConfig {
    /// The topic of its messages.
    pub topic: String,
}

/// Settings as the engine resolved them.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Resolved {
    /// Tokens per block.
    pub block_size: Option<u32>,
    /// The same in scheduler runs.
    pub scheduler_block_size: Option<u32>,
    /// Block-hash algorithm.
    pub hash_algo: Option<String>,
    /// What seeds the hash chain.
    pub none_hash_seed: Option<String>,
    /// Data-parallel rank.
    pub data_parallel_rank: Option<u32>,
}

/// Something that happened: a request where [`truth`](Self::truth) is `Some`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Step {
    /// What: a kind of request, `reset_prefix_cache`, `engine-restart`, ...
    pub op: Option<String>,
    /// HTTP status, where it was HTTP.
    pub status: Option<u16>,
    /// Whether it worked, where it was a call.
    pub ok: Option<bool>,
    /// The prompt as the engine saw it.
    pub prompt_token_ids: Option<Vec<u32>>,
    /// Salt of the request.
    pub cache_salt: Option<String>,
    /// Adapter of the request.
    pub lora: Option<Lora>,
    /// Multimodal items of the prompt.
    pub mm_features: Option<Vec<MmFeature>>,
    /// What the engine reported as cached, tokens.
    pub cached_tokens: Option<u64>,
    /// Messages of each stream that had arrived when it was sent.
    pub msgs_before: Option<Counts>,
    /// It ran beside others.
    #[serde(deserialize_with = "null_is_default")]
    pub concurrent: bool,
    /// How many requests were sent at once.
    pub together: Option<u32>,
    /// Asked for the prompt's log probabilities, which skips the cache.
    pub prompt_logprobs: Option<serde_json::Value>,
    /// Index of the stream it speaks of.
    pub stream: Option<usize>,
    /// The engine it was sent to, where several share a stream.
    pub engine_topic: Option<String>,
    /// The data-parallel rank it was sent to.
    pub data_parallel_rank_asked: Option<usize>,
}

/// A count per stream; old recordings give a single one.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Counts {
    /// Of the only stream.
    One(usize),
    /// Of each stream.
    Each(Vec<usize>),
}

/// The adapter of a request.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Lora {
    /// Its name.
    Name(String),
    /// Its name and where it was loaded from.
    Adapter {
        /// Name, as the engine's events give it.
        name: Option<String>,
        /// The same under another name.
        lora_name: Option<String>,
        /// Where it was loaded from.
        path: Option<String>,
    },
}

/// A multimodal item in a prompt.
#[derive(Clone, Debug, Deserialize)]
pub struct MmFeature {
    /// Names its content.
    pub identifier: String,
    /// First token.
    pub offset: u32,
    /// Number of tokens.
    pub length: u32,
}

/// A capture that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The description cannot be read.
    #[error("read {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The description is not of the form it must have.
    #[error("parse {}", path.display())]
    Json {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A stream cannot be read.
    #[error(transparent)]
    Stream(#[from] KvcapError),
}

/// Why a request is not held against the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Exclusion {
    /// Several engines; the recording does not say which one it went to.
    RankNotKnown,
    /// Ran beside others, whose blocks were not announced yet.
    Concurrent,
    /// Requests for prompt log probabilities do not read the cache.
    PromptLogprobs,
    /// The engine announces a reset only with its next step.
    ResetDelay,
    /// Nothing announces a restart before the new engine's first batch.
    RestartDelay,
    /// Two adapters of one name look the same in the events.
    AdaptersOfOneName,
    /// Nobody outside can know what a clear left in the offload tiers.
    OffloadAfterClear,
}

impl Exclusion {
    /// In words.
    pub fn reason(self) -> &'static str {
        match self {
            Exclusion::RankNotKnown => "rank not known",
            Exclusion::Concurrent => "concurrent",
            Exclusion::PromptLogprobs => "prompt_logprobs",
            Exclusion::ResetDelay => "reset delay",
            Exclusion::RestartDelay => "restart delay",
            Exclusion::AdaptersOfOneName => "adapters of one name",
            Exclusion::OffloadAfterClear => "offload tier after clear",
        }
    }
}

impl Step {
    /// Prompt and what the engine reported for it, if this is a request that was answered.
    pub fn truth(&self) -> Option<(&[u32], u64)> {
        if self.status.unwrap_or(200) != 200 {
            return None;
        }
        Some((self.prompt_token_ids.as_deref()?, self.cached_tokens?))
    }

    /// Name of the request's adapter.
    pub fn lora_name(&self) -> Option<&str> {
        match self.lora.as_ref()? {
            Lora::Name(name) => Some(name),
            Lora::Adapter { name, lora_name, .. } => {
                name.as_deref().filter(|n| !n.is_empty()).or(lora_name.as_deref())
            }
        }
    }

    fn is(&self, op: &str) -> bool {
        self.op.as_deref().is_some_and(|o| o.contains(op))
            && self.ok.unwrap_or(true)
            && self.status.unwrap_or(200) == 200
    }
}

impl Capture {
    /// Reads the description at `path` and the streams beside it.
    pub fn open(path: &Path) -> Result<Capture, CaptureError> {
        let text =
            std::fs::read(path).map_err(|source| CaptureError::Io { path: path.to_owned(), source })?;
        let doc: Description = serde_json::from_slice(&text)
            .map_err(|source| CaptureError::Json { path: path.to_owned(), source })?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let streams = doc.streams.iter().map(|f| kvcap::read(&dir.join(f))).collect::<Result<_, _>>()?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Capture { name, doc, streams })
    }

    /// Whether there is anything to compare with.
    pub fn has_truth(&self) -> bool {
        !self.streams.is_empty() && self.doc.steps.iter().any(|s| s.truth().is_some())
    }

    /// Several engines on one socket: told apart by topic.
    pub fn is_shared(&self) -> bool {
        !self.doc.kv_events_configs.is_empty()
    }

    /// Number of engines recorded.
    pub fn engines(&self) -> usize {
        if self.is_shared() { self.doc.kv_events_configs.len() } else { self.streams.len() }
    }

    /// The topic that tells `engine` from the others on its socket.
    pub fn topic(&self, engine: usize) -> Option<&str> {
        self.doc.kv_events_configs.get(engine).map(|c| c.topic.as_str())
    }

    /// Which engine a step speaks of, where the recording tells.
    pub fn engine_of(&self, step: &Step) -> Option<usize> {
        let engine = if step.stream.is_some() {
            step.stream
        } else if self.is_shared() {
            let topic = step.engine_topic.as_deref()?;
            self.doc.kv_events_configs.iter().position(|c| c.topic == topic)
        } else if self.streams.len() > 1 {
            step.data_parallel_rank_asked
        } else {
            Some(0)
        };
        engine.filter(|&e| e < self.engines())
    }

    /// The messages of one engine, each with its place in its stream.
    pub fn messages(&self, engine: usize) -> Vec<(usize, &Record)> {
        let topic = self.topic(engine).map(str::as_bytes);
        let stream = &self.streams[self.stream_of(engine)];
        stream.iter().enumerate().filter(|(_, r)| topic.is_none_or(|t| r.topic == t)).collect()
    }

    /// How many messages of `engine`'s stream had arrived before the step.
    pub fn cut(&self, step: &Step, engine: usize) -> Option<usize> {
        match step.msgs_before.as_ref()? {
            Counts::One(n) => Some(*n),
            Counts::Each(counts) => counts.get(self.stream_of(engine)).or(counts.first()).copied(),
        }
    }

    /// Tokens per block, where the description tells.
    pub fn block_size(&self) -> Option<u32> {
        let r = &self.doc.resolved;
        let flag = || {
            let at = self.doc.server_args.iter().position(|a| a == "--block-size")?;
            self.doc.server_args.get(at + 1)?.parse().ok()
        };
        r.block_size.or(r.scheduler_block_size).or(self.doc.page_size).or_else(flag)
    }

    /// Data-parallel rank of `engine`.
    pub fn rank(&self, engine: usize) -> u32 {
        if self.engines() > 1 && !self.is_shared() {
            return engine as u32;
        }
        self.doc.resolved.data_parallel_rank.or(self.doc.attn_dp_rank).unwrap_or(0)
    }

    /// What published.
    pub fn engine_type(&self) -> EngineType {
        if self.doc.engine.starts_with("sglang") { EngineType::Sglang } else { EngineType::Vllm }
    }

    /// The requests nobody outside the engine can be exact about, by step.
    pub fn exclusions(&self) -> BTreeMap<usize, Exclusion> {
        let mut out = BTreeMap::new();
        // Per engine: since when its stream lags behind what really happened to it.
        let mut waiting: BTreeMap<usize, (Exclusion, Option<usize>)> = BTreeMap::new();
        let mut paths: BTreeMap<&str, BTreeSet<Option<&str>>> = BTreeMap::new();
        for (i, step) in self.doc.steps.iter().enumerate() {
            let engines = match step.stream {
                Some(e) => e..e + 1,
                None => 0..self.engines(),
            };
            let delay = if step.is("reset_prefix_cache") {
                Some(Exclusion::ResetDelay)
            } else if step.op.as_deref() == Some("engine-restart") {
                Some(Exclusion::RestartDelay)
            } else {
                None
            };
            if let Some(delay) = delay {
                waiting.extend(engines.map(|e| (e, (delay, self.cut(step, e)))));
            }
            if step.truth().is_none() {
                continue;
            }
            if let Some(Lora::Adapter { name: Some(name), path, .. }) = &step.lora {
                paths.entry(name).or_default().insert(path.as_deref());
            }
            if let Some(reason) = self.exclusion(step, &waiting, &paths) {
                out.insert(i, reason);
            }
        }
        out
    }

    fn exclusion(
        &self,
        step: &Step,
        waiting: &BTreeMap<usize, (Exclusion, Option<usize>)>,
        paths: &BTreeMap<&str, BTreeSet<Option<&str>>>,
    ) -> Option<Exclusion> {
        let Some(engine) = self.engine_of(step) else { return Some(Exclusion::RankNotKnown) };
        if step.concurrent || step.together.is_some_and(|n| n > 1) {
            return Some(Exclusion::Concurrent);
        }
        if step.prompt_logprobs.is_some() {
            return Some(Exclusion::PromptLogprobs);
        }
        // Until a message arrives after the reset or restart, its announcement is still to come.
        if let Some((delay, since)) = waiting.get(&engine)
            && self.cut(step, engine).unwrap_or(0) <= since.unwrap_or(0)
        {
            return Some(*delay);
        }
        if step.lora_name().and_then(|n| paths.get(n)).is_some_and(|p| p.len() > 1) {
            return Some(Exclusion::AdaptersOfOneName);
        }
        None
    }

    fn stream_of(&self, engine: usize) -> usize {
        if self.is_shared() { 0 } else { engine }
    }
}

/// Recordings write null where a setting was left alone.
fn null_is_default<'de, T, D>(input: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> Capture {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/captures");
        Capture::open(&dir.join(format!("{name}.json"))).unwrap()
    }

    /// Requests that are compared, and those left out by reason.
    fn tally(name: &str) -> (usize, Vec<(&'static str, usize)>) {
        let capture = fixture(name);
        let excluded = capture.exclusions();
        let asked = capture.doc.steps.iter().filter(|s| s.truth().is_some()).count();
        let mut by_reason = BTreeMap::new();
        for reason in excluded.values() {
            *by_reason.entry(reason.reason()).or_insert(0) += 1;
        }
        (asked - excluded.len(), by_reason.into_iter().collect())
    }

    #[test]
    fn what_cannot_be_known_is_left_out_with_its_reason() {
        let main = [("concurrent", 40), ("prompt_logprobs", 1), ("reset delay", 2), ("restart delay", 1)];
        assert_eq!(tally("vllm032-main-b32"), (61, main.to_vec()));
        assert_eq!(tally("vllm032-dp2-b32"), (14, vec![("rank not known", 4), ("reset delay", 2)]));
        assert_eq!(tally("vllm032-sched-extrakeys"), (9, vec![("adapters of one name", 2)]));
        assert_eq!(tally("vllm032-sched-connect-mode"), (8, vec![]));
        assert_eq!(tally("sglang0523-radix-page16"), (119, vec![("reset delay", 1)]));
        assert_eq!(tally("vllm0221-lora-salt"), (144, vec![("concurrent", 23)]));
    }

    #[test]
    fn engines_that_share_a_socket_are_told_apart_by_topic() {
        let capture = fixture("vllm032-sched-connect-mode");
        assert_eq!((capture.streams.len(), capture.engines()), (1, 2));
        let (a, b) = (capture.messages(0), capture.messages(1));
        assert_eq!(a.len() + b.len(), capture.streams[0].len());
        assert!(b.iter().all(|(_, r)| r.topic == b"kv@10.0.0.2:8000@tiny"));
        let second = capture.doc.steps.iter().find(|s| capture.engine_of(s) == Some(1)).unwrap();
        // Counts are of the shared stream, whichever engine is asked about.
        assert_eq!(capture.cut(second, 0), capture.cut(second, 1));
    }

    #[test]
    fn rank_and_block_size_are_where_each_kind_of_run_wrote_them() {
        let dp = fixture("vllm032-dp2-b32");
        assert_eq!((dp.rank(0), dp.rank(1), dp.block_size()), (0, 1, Some(32)));
        let sched = fixture("vllm032-sched-dp-rank2");
        assert_eq!((sched.rank(0), sched.block_size()), (2, Some(16)));
        let sglang = fixture("sglang0523-page64-rank1");
        assert_eq!((sglang.rank(0), sglang.block_size()), (1, Some(64)));
        assert_eq!((sglang.engine_type(), dp.engine_type()), (EngineType::Sglang, EngineType::Vllm));
        assert!(!sglang.has_truth());
    }

    #[test]
    fn each_rank_has_its_own_cut() {
        let dp = fixture("vllm032-dp2-b32");
        let apart = dp.doc.steps.iter().find(|s| dp.cut(s, 0) != dp.cut(s, 1)).unwrap();
        assert!(matches!(&apart.msgs_before, Some(Counts::Each(c)) if dp.cut(apart, 1) == Some(c[1])));
    }

    #[test]
    fn a_description_that_is_none_is_an_error_with_its_path() {
        let err = Capture::open(Path::new("/nonexistent/x.json")).unwrap_err();
        assert_eq!(err.to_string(), "read /nonexistent/x.json");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        std::fs::write(&path, "[1]").unwrap();
        assert!(matches!(Capture::open(&path), Err(CaptureError::Json { .. })));
    }
}

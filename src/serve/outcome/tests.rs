//! Recorded runs, with what the engines really reported: nothing may be held against kvd. And the same
//! runs with a mistake made on purpose: it must be found.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvindex::{HolderId, Index, IndexConfig, Query, TierWeights};
use kvproto::SeqHash;
use kvproto::hash::canonical::{Namespace, PromptExtras, prompt_hashes};

use super::{Received, Report};
use crate::ctl::capture::{Capture, Exclusion, Step};
use crate::ingest::{IngestConfig, Publishers};
use crate::outcome::Verdict;
use crate::outcome::finding::Severity;
use crate::outcome::predictions::RequestName;
use crate::publisher::{HashAlgo, PublisherSpec};
use crate::serve::prompt::{OwnedItem, OwnedPrompt, PromptKey};
use crate::serve::routing::Endpoint;
use crate::serve::{Limits, Service};

/// Longer than a whole run takes: only what a run reviews by itself is reviewed, when it has delivered what
/// belongs to it.
const REVIEW: Duration = Duration::from_secs(3600);

/// What is done otherwise than it should be.
#[derive(Default)]
struct Mistakes {
    /// Asks about something else than was run.
    ask: Option<fn(OwnedPrompt) -> OwnedPrompt>,
    /// Reports something else than the engine did.
    report: Option<fn(u64) -> u64>,
    /// Reports name another rank, which hears nothing of the engine that ran it.
    other_rank: bool,
    /// Batches that never arrive.
    lost: Option<fn(&kvproto::Batch<'_>) -> bool>,
}

struct Run {
    service: Service,
    holders: Vec<HolderId>,
    capture: Capture,
    /// Messages of each engine delivered.
    delivered: Vec<usize>,
}

impl Run {
    fn new(capture: Capture, mistakes: &Mistakes) -> Run {
        let index = Arc::new(Index::new(IndexConfig::default()));
        let publishers = Publishers::start(Arc::clone(&index), IngestConfig::default(), None).unwrap();
        publishers.begin();
        let limits = Limits { outcome_review: REVIEW, ..Limits::default() };
        let service = Service::new(index, publishers, limits, TierWeights::default());
        let engines = capture.engines();
        let holders = (0..engines)
            .map(|engine| service.publishers.register(spec(&capture, engine)).unwrap().holder)
            .collect();
        if mistakes.other_rank {
            let spec = spec(&capture, 0);
            let spec = PublisherSpec { dp_rank: spec.dp_rank + 1, ..spec };
            service.publishers.register(spec).unwrap();
        }
        Run { service, holders, delivered: vec![0; engines], capture }
    }

    /// Delivers what had arrived of `engine` when its stream had `cut` messages, and waits until it is
    /// applied.
    fn advance(&mut self, engine: usize, cut: usize, mistakes: &Mistakes) {
        let messages = self.capture.messages(engine);
        // What ran side by side was not recorded in order.
        let from = self.delivered[engine];
        let until = messages.partition_point(|(place, _)| *place < cut).max(from);
        let publishers = &self.service.publishers;
        for (_, record) in &messages[from..until] {
            let batch = kvproto::engine::decode(kvproto::engine::Engine::Vllm, &record.payload);
            if !mistakes.lost.is_some_and(|lost| batch.as_ref().is_ok_and(lost)) {
                publishers.deliver(self.holders[engine], &record.topic, &record.seq, &record.payload);
            }
        }
        self.delivered[engine] = until;
        let holder = self.holders[engine];
        let began = Instant::now();
        while publishers.list().iter().any(|p| p.holder == holder && p.queued > 0)
            || publishers.freshness(holder).is_some_and(|f| f.oldest_queued.is_some())
        {
            assert!(began.elapsed() < Duration::from_secs(20), "batches are applied");
            std::thread::yield_now();
        }
    }

    fn advance_to(&mut self, step: usize, mistakes: &Mistakes) {
        for engine in 0..self.holders.len() {
            if let Some(cut) = self.capture.cut(&self.capture.doc.steps[step], engine) {
                self.advance(engine, cut, mistakes);
            }
        }
    }

    /// Asks about a step's prompt, as a scheduler that gives the request's number as its id.
    fn score(&self, step: usize, prompt: OwnedPrompt) {
        let prompt = Arc::new(prompt);
        let began = Instant::now();
        let asked = prompt.lend(|p| {
            let query = Query { block_size: prompt.block_size, ..Query::new("default", "m", p) };
            self.service.ask(&query).unwrap()
        });
        let id = step.to_string();
        self.service.remember(&[RequestName::Id(&id)], "default", "m", &prompt, &asked, began);
    }

    fn report(
        &self,
        step: usize,
        engine: usize,
        rank: u32,
        cached_tokens: u64,
        prompt_tokens: u64,
    ) -> Received {
        let instance = instance(&self.capture, engine);
        let report = Report {
            tenant: "default",
            model: "m",
            name: RequestName::Id(&step.to_string()),
            endpoint: Endpoint { instance, rank },
            cached_tokens,
            prompt_tokens: Some(prompt_tokens),
        };
        self.service.report_outcome(&report).unwrap()
    }

    /// Goes through all steps. Returns how many outcomes were reported.
    fn all(&mut self, mistakes: &Mistakes) -> usize {
        let excluded = self.capture.exclusions();
        let mut reported = 0;
        for step in 0..self.capture.doc.steps.len() {
            self.advance_to(step, mistakes);
            // Of requests side by side the events come after all of them.
            if !self.capture.doc.steps[step].concurrent
                && self.capture.doc.steps[step].together.is_none_or(|n| n < 2)
            {
                self.service.review(Instant::now() + 2 * REVIEW);
            }
            let known = &self.capture.doc.steps[step];
            let (Some((tokens, cached)), Some(engine)) = (known.truth(), self.capture.engine_of(known))
            else {
                continue;
            };
            // Whoever sent such a request knows that it skips the cache, or does not know where it ran;
            // and two adapters of one name nobody can tell apart.
            if let Some(Exclusion::PromptLogprobs | Exclusion::RankNotKnown | Exclusion::AdaptersOfOneName) =
                excluded.get(&step)
            {
                continue;
            }
            // Of requests side by side some were written down after later ones: kvd cannot go back to
            // what it knew when they were sent.
            let messages = self.capture.messages(engine);
            let sent = self.capture.cut(known, engine).unwrap_or(usize::MAX);
            if messages.partition_point(|(place, _)| *place < sent) < self.delivered[engine] {
                continue;
            }
            let length = tokens.len() as u64;
            let prompt = prompt(known, tokens);
            self.score(step, mistakes.ask.map_or(prompt.clone(), |ask| ask(prompt)));
            let cached = mistakes.report.map_or(cached, |report| report(cached));
            let rank = self.capture.rank(engine) + u32::from(mistakes.other_rank);
            let received = self.report(step, engine, rank, cached, length);
            assert!(!matches!(received, Received::NoPrediction | Received::Repeated), "{received:?}");
            reported += 1;
        }
        for engine in 0..self.holders.len() {
            self.advance(engine, usize::MAX, mistakes);
        }
        self.service.review(Instant::now() + 2 * REVIEW);
        reported
    }

    fn of(&self, verdict: Verdict) -> u64 {
        let now = Instant::now();
        self.holders
            .iter()
            .map(|h| self.service.publishers.account(*h).unwrap().tally(now).0.of(verdict))
            .sum()
    }

    /// Problems that are more than a note.
    fn problems(&self) -> Vec<String> {
        let findings = self.service.diagnose(Instant::now()).findings;
        let bad = findings.into_iter().filter(|f| f.severity > Severity::Note);
        bad.map(|f| format!("{}: {}", f.problem.name(), f.evidence)).collect()
    }
}

fn instance(capture: &Capture, engine: usize) -> String {
    if capture.is_shared() { format!("pod-{engine}") } else { "pod".to_owned() }
}

fn spec(capture: &Capture, engine: usize) -> PublisherSpec {
    let hashed = capture.doc.needs_hash;
    let algo = |name: &str| match name {
        "sha256" => HashAlgo::Sha256,
        "sha256_cbor" => HashAlgo::Sha256Cbor,
        "xxhash" => HashAlgo::Xxhash,
        "xxhash_cbor" => HashAlgo::XxhashCbor,
        other => panic!("{other}"),
    };
    let resolved = &capture.doc.resolved;
    PublisherSpec {
        dp_rank: capture.rank(engine),
        endpoint: Some("tcp://127.0.0.1:9".into()),
        topic: capture.topic(engine).map(Into::into),
        attention_chunk_size: capture.doc.attention_chunk_size,
        hash_algo: resolved.hash_algo.as_deref().filter(|_| hashed).map(algo),
        hash_seed: resolved.none_hash_seed.clone().filter(|_| hashed),
        ..PublisherSpec::new(capture.engine_type(), "m", instance(capture, engine))
    }
}

fn prompt(step: &Step, tokens: &[u32]) -> OwnedPrompt {
    let items = step.mm_features.iter().flatten();
    OwnedPrompt {
        key: PromptKey::Tokens(tokens.to_vec()),
        block_size: None,
        lora: step.lora_name().map(Into::into),
        cache_salt: step.cache_salt.clone(),
        items: items
            .map(|i| OwnedItem { identifier: i.identifier.clone(), offset: i.offset, length: i.length })
            .collect(),
    }
}

fn fixture(name: &str) -> Capture {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/captures");
    Capture::open(&dir.join(format!("{name}.json"))).unwrap()
}

/// What is found where `mistakes` are made in a recorded run.
fn found(name: &str, mistakes: Mistakes) -> Vec<String> {
    let mut run = Run::new(fixture(name), &mistakes);
    run.all(&mistakes);
    run.problems()
}

fn assert_found(name: &str, problem: &str, mistakes: Mistakes) {
    let found = found(name, mistakes);
    assert!(found.iter().any(|f| f.starts_with(problem)), "{name}: {found:?}");
}

#[test]
fn no_recorded_request_is_held_against_the_index() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/captures");
    let (mut reported, mut exact) = (0, 0);
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.extension().is_none_or(|e| e != "json") || name == "hash-vectors" {
            continue;
        }
        let capture = Capture::open(&path).unwrap();
        if !capture.has_truth() {
            continue;
        }
        let mistakes = Mistakes::default();
        let mut run = Run::new(capture, &mistakes);
        let of_run = run.all(&mistakes);
        for verdict in [Verdict::TooLow, Verdict::TooHigh] {
            assert_eq!(run.of(verdict), 0, "{name}: {}", verdict.name());
        }
        assert_eq!(run.problems(), [] as [&str; 0], "{name}");
        reported += of_run;
        exact += run.of(Verdict::Exact);
    }
    // All that are compared in docs/exactness.md, and those that ran beside others or after a reset.
    assert!(reported > 1000 && exact > 1000, "{exact} of {reported}");
}

#[test]
fn a_block_size_that_differs_is_found() {
    assert_found(
        "vllm032-main-b32",
        "wrong_block_size",
        Mistakes { report: Some(|cached| cached / 64 * 64), ..Mistakes::default() },
    );
}

#[test]
fn a_salt_that_nobody_asks_with_is_found() {
    let ask = |p: OwnedPrompt| OwnedPrompt { cache_salt: None, ..p };
    assert_found("vllm0221-lora-salt", "salt_mismatch", Mistakes { ask: Some(ask), ..Mistakes::default() });
}

#[test]
fn an_adapter_that_nobody_asks_with_is_found() {
    let ask = |p: OwnedPrompt| OwnedPrompt { lora: None, ..p };
    assert_found(
        "vllm0221-lora-salt",
        "adapter_mismatch",
        Mistakes { ask: Some(ask), ..Mistakes::default() },
    );
}

#[test]
fn an_adapter_of_another_name_is_found() {
    let ask = |p: OwnedPrompt| OwnedPrompt { lora: p.lora.map(|name| name + "-v2"), ..p };
    assert_found(
        "vllm0221-lora-salt",
        "adapter_mismatch",
        Mistakes { ask: Some(ask), ..Mistakes::default() },
    );
}

#[test]
fn hashes_of_another_seed_are_found() {
    fn hashed(prompt: OwnedPrompt) -> OwnedPrompt {
        let PromptKey::Tokens(tokens) = &prompt.key else { unreachable!("recorded prompts are tokens") };
        let seed = Namespace { salt: "another deployment", model: "m", lora: None }.seed();
        let hashes: Vec<SeqHash> = prompt_hashes(seed, tokens, 32, PromptExtras::default()).collect();
        OwnedPrompt { key: PromptKey::Canonical(hashes), block_size: Some(32), ..prompt }
    }
    assert_found("vllm032-main-b32", "hash_mismatch", Mistakes { ask: Some(hashed), ..Mistakes::default() });
}

#[test]
fn a_token_that_is_missing_at_the_beginning_is_found() {
    fn shorter(prompt: OwnedPrompt) -> OwnedPrompt {
        let PromptKey::Tokens(mut tokens) = prompt.key else { unreachable!("recorded prompts are tokens") };
        tokens.remove(0);
        OwnedPrompt { key: PromptKey::Tokens(tokens), ..prompt }
    }
    assert_found(
        "vllm032-main-b32",
        "token_mismatch",
        Mistakes { ask: Some(shorter), ..Mistakes::default() },
    );
}

#[test]
fn reports_that_are_always_nothing_are_found() {
    assert_found(
        "vllm032-main-b32",
        "prefix_caching_off",
        Mistakes { report: Some(|_| 0), ..Mistakes::default() },
    );
}

#[test]
fn ranks_that_are_mixed_up_are_found() {
    assert_found("vllm032-main-b32", "wrong_rank", Mistakes { other_rank: true, ..Mistakes::default() });
}

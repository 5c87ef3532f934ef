//! Are prompts named as the engine names them?

use std::collections::HashMap;

use super::{About, CASES, SIGNS, SURE};
use crate::outcome::account::{AskedBy, Comparison};
use crate::outcome::finding::{Finding, Problem, Severity, confidence};

/// The engine counts other tokens in the prompt than it was asked about with.
pub(super) fn token_count(about: &About<'_>) -> Option<Finding> {
    let known = about.count(|c| c.extra_tokens.is_some());
    let other: Vec<i64> = about.window().iter().filter_map(|c| c.extra_tokens).filter(|n| *n != 0).collect();
    let sure = confidence(other.len(), known);
    if other.len() < SIGNS || sure < SURE {
        return None;
    }
    let (most, times) = most_common(other.iter().copied())?;
    let evidence = format!(
        "the engine counted another number of tokens in {} of {known} prompts, {most:+} in {times} of them",
        other.len()
    );
    let remedy = "whoever asks kvd must tokenize as the engine does: the same chat template, tokenizer revision and special tokens (a difference of +1 is often the token that begins a sequence); the engine's own render or tokenize call gives just its tokens";
    about.find(Problem::Tokens, Severity::Error, sure, evidence, remedy)
}

/// A salt is known on one side only.
pub(super) fn salt(about: &About<'_>) -> Option<Finding> {
    let heard = &about.statement.heard;
    let asked = about.count(|c| c.salted);
    let missed = |salted: bool| about.count(|c| c.is_missed() && c.salted == salted);
    let (signs, evidence, remedy) = if asked == 0 && heard.salted_roots > 0 {
        let evidence = format!(
            "{} of {} first blocks that the engine stored have a salt, and no question about it named one",
            heard.salted_roots, heard.roots
        );
        (missed(false), evidence, "pass the request's cache_salt in Prompt.cache_salt when asking kvd")
    } else if asked > 0 && heard.salted_roots == 0 && heard.roots >= SIGNS as u64 {
        let evidence = format!(
            "{asked} questions named a salt, and none of {} first blocks that the engine stored has one",
            heard.roots
        );
        (
            missed(true),
            evidence,
            "pass cache_salt on to the engine as well; vLLM up to 0.16 does not announce salts: leave them out when asking about such an engine",
        )
    } else {
        return None;
    };
    if signs < SIGNS {
        return None;
    }
    let sure = about.sure(Comparison::is_missed, |c| c.is_telling() && c.salted == (asked > 0));
    about.find(Problem::Salt, Severity::Error, sure.max(SURE), evidence, remedy)
}

/// An adapter is known on one side only.
pub(super) fn adapter(about: &About<'_>) -> Option<Finding> {
    let heard = &about.statement.heard;
    let asked = about.count(|c| c.adapter_heard.is_some());
    let unknown = about.count(|c| c.adapter_heard == Some(false) && c.is_missed());
    if unknown >= SIGNS {
        let names: Vec<&str> = heard.adapters.iter().take(4).map(|a| &**a).collect();
        let heard = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let evidence = format!(
            "{unknown} prompts were asked about with an adapter that the engine's events do not name (they name: {heard})"
        );
        let remedy = "ask with the adapter's name as the engine has it (vLLM: the name in --lora-modules), or register the publisher with the lora_name of its events that name none";
        let sure = about.sure(Comparison::is_missed, |c| c.is_telling() && c.adapter_heard == Some(false));
        return about.find(Problem::Adapter, Severity::Error, sure.max(SURE), evidence, remedy);
    }
    let plain = about.count(|c| c.adapter_heard.is_none() && c.is_missed());
    if asked > 0 || plain < SIGNS || heard.with_adapter == 0 && about.adapter.is_none() {
        return None;
    }
    let evidence = match about.adapter {
        Some(name) => format!("the publisher is registered with adapter {name}, and no question named one"),
        None => format!("{} stores named an adapter, and no question did", heard.with_adapter),
    };
    let remedy = "pass the adapter's name in Prompt.lora_name when asking kvd; with vLLM the request's model is the adapter's name and kvd's model the base model's";
    let sure = about.sure(Comparison::is_missed, Comparison::is_telling);
    about.find(Problem::Adapter, Severity::Error, sure.max(SURE), evidence, remedy)
}

/// Nothing that is asked about is ever found, and the engine stores what it runs.
pub(super) fn nothing_matches(about: &About<'_>) -> Option<Finding> {
    let missed = about.count(Comparison::is_missed);
    if missed < CASES || about.count(|c| c.found > 0 || c.predicted > 0) > 0 {
        return None;
    }
    let sure = about.sure(Comparison::is_missed, Comparison::is_telling);
    if sure < SURE {
        return None;
    }
    let stored = about.statement.heard.stored;
    let evidence = format!(
        "of {missed} prompts that the engine has run not one block is found, although it announced {stored} blocks"
    );
    let by_hashes = about.count(|c| c.asked_by == AskedBy::Hashes);
    if by_hashes > missed / 2 {
        let remedy = "compute hashes as GetHashSpec says (seed, block size, adapter, salt) and check them with its vectors, or send token ids";
        return about.find(Problem::Hashes, Severity::Error, sure, evidence, remedy);
    }
    if about.by_engine_hash {
        let remedy = "this publisher's blocks are looked up by the engine's own hashes: register it with the hash_algo (vLLM: --prefix-caching-hash-algo) and hash_seed (PYTHONHASHSEED) that the engine runs with";
        return about.find(Problem::Hashes, Severity::Error, sure, evidence, remedy);
    }
    let remedy = "prompts differ from their first block on: whoever asks kvd must tokenize as the engine does (chat template, special tokens at the beginning), and name adapter, salt and multimodal items as the request does";
    about.find(Problem::Tokens, Severity::Error, sure * 0.8, evidence, remedy)
}

/// Different prompts stop to match at one and the same place.
pub(super) fn one_place(about: &About<'_>) -> Option<Finding> {
    let missed: Vec<&Comparison> = about.window().iter().filter(|c| c.is_missed()).collect();
    let (place, times) = most_common(missed.iter().map(|c| c.found))?;
    let sure = confidence(times, missed.len()) * 0.8;
    let lengths_vary = missed.iter().any(|c| c.whole != missed[0].whole);
    let beyond = about.count(|c| c.found > place);
    if times < CASES || place == 0 || !lengths_vary || beyond > 0 || sure < SURE {
        return None;
    }
    let evidence = format!(
        "{times} prompts of different length are found up to token {place} and no further, although the engine has run them"
    );
    let remedy = "the prompts that kvd is asked about differ from the engine's after that place, which often is where a chat template goes on (date, tools, role markers): render them as the engine does";
    about.find(Problem::Tokens, Severity::Error, sure, evidence, remedy)
}

/// The value that occurs most, and how often.
fn most_common<T: Copy + Eq + std::hash::Hash + Ord>(values: impl Iterator<Item = T>) -> Option<(T, usize)> {
    let mut counts: HashMap<T, usize> = HashMap::new();
    values.for_each(|v| *counts.entry(v).or_default() += 1);
    counts.into_iter().max_by_key(|(v, n)| (*n, *v))
}

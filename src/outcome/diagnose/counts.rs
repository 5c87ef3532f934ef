//! What do the numbers alone tell?

use std::collections::HashMap;

use kvindex::HolderId;

use super::{About, CASES, SIGNS, SURE};
use crate::outcome::account::Comparison;
use crate::outcome::finding::{Finding, Problem, Severity, confidence};
use crate::outcome::judge::Verdict;

/// Requests run, and not one block was ever announced.
pub(super) fn no_events(about: &About<'_>) -> Option<Finding> {
    let ran = about.count(|c| c.whole > 0);
    // What was heard is counted since kvd's start, and blocks may be known from before.
    if ran < SIGNS || about.statement.heard.stored > 0 || about.count(|c| c.found > 0) > 0 {
        return None;
    }
    let found = about.count(|c| c.reported > 0);
    let evidence = format!(
        "{ran} reported requests were at least a block long, {found} of them found cached tokens, and the engine announced no block"
    );
    let remedy = "enable KV-cache events and prefix caching on the engine (vLLM: --kv-events-config with enable_kv_cache_events and publisher zmq), and check that its endpoint is the registered one";
    about.find(Problem::NoEvents, Severity::Error, confidence(ran, ran), evidence, remedy)
}

/// The engine announces blocks and never finds any.
pub(super) fn caching_off(about: &About<'_>) -> Option<Finding> {
    let n = about.window().len();
    let high = about.count(|c| c.verdict == Verdict::TooHigh);
    if n < CASES || high < SIGNS || about.count(|c| c.reported > 0) > 0 {
        return None;
    }
    let evidence = format!("all {n} reports are 0, {high} of them where blocks were held");
    let remedy = "check that the engine runs with prefix caching and reports what it finds (vLLM: --enable-prefix-caching and --enable-prompt-tokens-details), and that whoever reports does not send 0 for \"not said\"";
    about.find(Problem::CachingOff, Severity::Error, confidence(n, n), evidence, remedy)
}

/// What one other candidate was predicted is what this one reported, again and again.
pub(super) fn another_fits(about: &About<'_>) -> Option<Finding> {
    let mut fits: HashMap<HolderId, usize> = HashMap::new();
    let is_sign = |c: &&Comparison| match c.verdict {
        Verdict::TooLow | Verdict::TooHigh => true,
        // Of a publisher that was never heard nothing else can be said.
        Verdict::Unclear => !c.fits.is_empty(),
        Verdict::Exact | Verdict::CameMeanwhile | Verdict::LeftMeanwhile => c.is_unrecognised(),
    };
    let errors = about.count(|c| is_sign(&c));
    for c in about.window().iter().filter(is_sign) {
        c.fits.iter().for_each(|h| *fits.entry(*h).or_default() += 1);
    }
    let (best, hits) = fits.into_iter().max_by_key(|(h, n)| (*n, std::cmp::Reverse(*h)))?;
    let sure = confidence(hits, errors);
    if hits < SIGNS || sure < SURE {
        return None;
    }
    let other = about.others.get(&best)?;
    let evidence =
        format!("{hits} of {errors} outcomes that do not fit are just what was expected of {other}");
    if other.instance == about.who.instance {
        let remedy = "requests and events disagree about the data-parallel rank: check that each rank's endpoint is registered under its own dp_rank (vLLM: base port + rank), and that reports name the rank that ran the request";
        return about.find(Problem::Rank, Severity::Error, sure, evidence, remedy);
    }
    let remedy = format!(
        "the events of one are taken for the other's, or reports name the wrong endpoint: check that {} and {} are registered with the endpoints they publish on, and where reports take the instance from",
        about.who.instance, other.instance
    );
    about.find(Problem::Endpoint, Severity::Error, sure, evidence, remedy)
}

/// What is reported is made of blocks of another size.
pub(super) fn block_size(about: &About<'_>) -> Option<Finding> {
    let reports: Vec<u64> = about.window().iter().map(|c| c.reported).filter(|r| *r > 0).collect();
    let ours = u64::from(about.window().iter().rev().map(|c| c.block_size).find(|b| *b > 0)?);
    let theirs = reports.iter().copied().fold(0, gcd);
    let odd = reports.iter().filter(|r| *r % ours != 0).count();
    let cut = about.count(|c| {
        c.verdict == Verdict::TooHigh && theirs > ours && c.predicted - c.predicted % theirs == c.reported
    });
    let wrong = about.count(|c| c.verdict.is_error());
    let mut highs = about.window().iter().filter(|c| c.verdict == Verdict::TooHigh).map(|c| c.reported);
    let first = highs.next();
    let varied = highs.any(|r| Some(r) != first);
    let sure = if odd >= SIGNS {
        confidence(odd, reports.len()).max(confidence(wrong, about.window().len()))
    } else if cut >= SIGNS && varied && confidence(cut, wrong) >= SURE {
        confidence(cut, wrong)
    } else {
        return None;
    };
    let evidence = format!(
        "all {} reports above 0 are multiples of {theirs} tokens; the events announce blocks of {ours}",
        reports.len()
    );
    let remedy = format!(
        "find out which it is: the engine's block size ({theirs}?) must be what its events say; a registration or hashes computed for another size, or an engine that only reuses several blocks together, look like this"
    );
    about.find(Problem::BlockSize, Severity::Error, sure, evidence, remedy)
}

/// Held by the events, and not there.
pub(super) fn removals_missing(about: &About<'_>) -> Option<Finding> {
    let n = about.window().len();
    let high = about.count(|c| c.verdict == Verdict::TooHigh);
    if high < SIGNS || 10 * high < n {
        return None;
    }
    let tokens: u64 = about
        .window()
        .iter()
        .filter(|c| c.verdict == Verdict::TooHigh)
        .map(|c| c.predicted - c.reported)
        .sum();
    let evidence = format!(
        "{high} of {n} reports found less than the events say is held, {} tokens in the mean, and no event took it away",
        tokens / high as u64
    );
    let remedy = "removals do not arrive: look for gaps and drops (kvctl publishers), give the publisher a replay endpoint, and unregister and register it to begin anew; requests that ask for prompt_logprobs skip the cache and should not be reported";
    about.find(Problem::RemovalsMissing, Severity::Error, confidence(high, n), evidence, remedy)
}

/// Found by the engine, and never announced.
pub(super) fn stores_missing(about: &About<'_>) -> Option<Finding> {
    let n = about.window().len();
    let missed = about.count(Comparison::is_missed);
    if missed < SIGNS || 10 * missed < n {
        return None;
    }
    let n = about.count(Comparison::is_telling);
    let evidence =
        format!("of {missed} of {n} prompts that the engine has run, not all blocks were announced");
    let remedy = "stores do not arrive: look for gaps and drops (kvctl publishers) and give the publisher a replay endpoint; where the engine has an offload tier, check that it publishes that tier's events too";
    about.find(Problem::StoresMissing, Severity::Error, confidence(missed, n), evidence, remedy)
}

/// Announced only after the request that found it was scored.
pub(super) fn events_late(about: &About<'_>) -> Option<Finding> {
    let n = about.window().len();
    let late = about.count(|c| c.verdict == Verdict::CameMeanwhile);
    if late < CASES || 4 * late < n {
        return None;
    }
    let evidence = format!("{late} of {n} requests found blocks that were announced after they were scored");
    let remedy = "requests with one prefix run side by side, or events come late: announce routings (RecordRouting) and ask with include_speculative; if they are sequential, look at the publisher's staleness";
    about.find(Problem::EventsLate, Severity::Note, confidence(late, n), evidence, remedy)
}

/// Blocks that do not count.
pub(super) fn distrusted(about: &About<'_>) -> Option<Finding> {
    let distrusted = about.statement.distrusted;
    if distrusted == 0 {
        return None;
    }
    let evidence = format!("{distrusted} blocks do not count in scores, because reports contradict them");
    let remedy = "they count again when the engine stores them, or after five minutes; the finding beside this one says why, if there is one";
    about.find(Problem::Distrusted, Severity::Warning, 1.0, evidence, remedy)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

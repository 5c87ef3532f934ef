//! Headers that llm-d's routing sidecar and engines read.

use super::leg;
use crate::transfer::plans::Brief;
use crate::transfer::types::LegKind;

/// Who decides prefill: the sidecar sends that leg there.
const PREFILLER: &str = "x-prefiller-host-port";
/// Whom a prefix is pulled from.
const SOURCE: &str = "x-kv-cache-source-host-port";
/// Data-parallel rank within the instance that the request goes to.
const RANK: &str = "x-data-parallel-rank";
const REQUEST: &str = "x-request-id";

pub(super) fn make(brief: &Brief<'_>) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut add = |name: &str, value: String| out.push((name.to_owned(), value));
    if let Some(prefill) = &brief.choice.prefill {
        add(PREFILLER, prefill.instance.to_string());
    }
    if let Some(pull) = leg(brief, LegKind::Pull) {
        add(SOURCE, pull.from.instance.to_string());
    }
    if let Some(rank) = brief.choice.decode.as_ref().map(|d| d.rank).filter(|r| *r > 0) {
        add(RANK, rank.to_string());
    }
    // A request id goes into a header only where it can stand in one.
    if !brief.request_id.is_empty() && brief.request_id.bytes().all(|b| b.is_ascii_graphic()) {
        add(REQUEST, brief.request_id.to_owned());
    }
    out
}

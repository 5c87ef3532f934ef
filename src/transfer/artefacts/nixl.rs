//! vLLM's NIXL connectors: prefill first, its answer is the decode leg.
//!
//! Pull and push mode begin alike; which it is, the prefill engine says in its answer.

use serde_json::Value;

use super::{Legs, object};
use crate::transfer::plans::Brief;

pub(super) fn legs(brief: &Brief<'_>) -> Legs {
    let prefill = object([
        ("do_remote_decode", Value::Bool(true)),
        ("do_remote_prefill", Value::Bool(false)),
        ("remote_engine_id", Value::Null),
        ("remote_block_ids", Value::Null),
        ("remote_host", Value::Null),
        ("remote_port", Value::Null),
    ]);
    // Word for word, with keys that later versions add. An engine that kept nothing answers
    // nothing; then the decode leg is a request like any other.
    Legs { prefill: Some(prefill), decode: brief.prefill_answer.cloned() }
}

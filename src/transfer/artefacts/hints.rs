//! The `kv_hints` envelope: a prefix that the engine may fetch by block hash.

use serde_json::{Value, json};

use super::rendezvous;
use crate::transfer::plans::Brief;
use crate::transfer::types::Leg;

/// Version of the envelope; of what is in it each action says its own.
const PROTOCOL: &str = "0.1";

/// `kv.fetch@1.0`, where the source's control endpoint and the hashes are known.
pub(super) fn fetch(brief: &Brief<'_>, pull: &Leg) -> Option<Value> {
    let control = (brief.wire)(&pull.from).control?;
    if brief.pull_hashes.is_empty() {
        return None;
    }
    let id = rendezvous(brief);
    // Without a scheme the engine's socket does not know what to open.
    let control = if control.contains("://") { control.to_string() } else { format!("tcp://{control}") };
    Some(json!({
        "protocol_version": PROTOCOL,
        "message_id": id,
        "actions": [{
            "action_id": format!("{id}-0"),
            "action_type": "kv.fetch",
            "action_version": "1.0",
            "payload": {
                "source_control_endpoint": control,
                "block_hashes": brief.pull_hashes,
                "mode": "copy",
            },
        }],
    }))
}

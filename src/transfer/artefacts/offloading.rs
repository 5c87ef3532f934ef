//! vLLM's offloading connector with its peer-to-peer tier: both legs at once, each key named after
//! the other side.

use serde_json::{Value, json};

use super::{Legs, address, object, rendezvous};
use crate::transfer::plans::Brief;
use crate::transfer::types::Leg;

/// The tier's usual port; each rank listens one higher.
const P2P_PORT: u16 = 5710;

pub(super) fn legs(brief: &Brief<'_>, handover: &Leg) -> Legs {
    let id = rendezvous(brief);
    let configured = (brief.wire)(&handover.from).p2p;
    let prefiller = address::of(configured.as_deref(), &handover.from, P2P_PORT, true);
    Legs {
        prefill: Some(object([("remote_decoder", json!({ "kv_request_id": id }))])),
        decode: prefiller.map(|(host, port)| object([("remote_prefiller", peer(&id, &host, port))])),
    }
}

/// `remote_kv_source`: whom to pull a prefix from. Only where the source has such a tier.
pub(super) fn source(brief: &Brief<'_>, pull: &Leg) -> Option<Value> {
    let configured = (brief.wire)(&pull.from).p2p?;
    let (host, port) = address::of(Some(&configured), &pull.from, P2P_PORT, true)?;
    // An id of its own: the source of a prefix knows nothing of the handover.
    Some(peer(&format!("{}-pull", rendezvous(brief)), &host, port))
}

fn peer(id: &str, host: &str, port: u16) -> Value {
    json!({ "kv_request_id": id, "remote_host": host, "remote_port": port })
}

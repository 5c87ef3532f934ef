//! vLLM's Mooncake connector: both legs at once, they meet by `transfer_id`.

use serde_json::Value;

use super::{Legs, address, object, rendezvous};
use crate::transfer::plans::Brief;
use crate::transfer::types::Leg;

/// The bootstrap server's usual port.
const BOOTSTRAP_PORT: u16 = 8998;

pub(super) fn legs(brief: &Brief<'_>, handover: &Leg) -> Legs {
    let wire = (brief.wire)(&handover.from);
    let id = rendezvous(brief);
    let prefill = object([
        ("do_remote_decode", Value::Bool(true)),
        ("do_remote_prefill", Value::Bool(false)),
        ("transfer_id", id.clone().into()),
    ]);
    let mut decode = object([
        ("do_remote_decode", Value::Bool(false)),
        ("do_remote_prefill", Value::Bool(true)),
        ("transfer_id", id.into()),
    ]);
    // One server per instance, whatever the rank.
    if let Some((host, port)) = address::of(wire.bootstrap.as_deref(), &handover.from, BOOTSTRAP_PORT, false)
    {
        // The engine appends "/query" and asks by HTTP.
        let url = format!("http://{}", address::join(&host, port));
        decode.insert("remote_bootstrap_addr".to_owned(), url.into());
    }
    // Who does not know it asks the bootstrap server and adds it.
    if let Some(engine) = wire.engine_id {
        decode.insert("remote_engine_id".to_owned(), (*engine).into());
    }
    Legs { prefill: Some(prefill), decode: Some(decode) }
}

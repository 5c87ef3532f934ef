//! SGLang: both legs at once, they meet in a room of the prefill pod's bootstrap server.

use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_64;

use super::{address, object, rendezvous};
use crate::transfer::plans::Brief;
use crate::transfer::types::Leg;

/// The bootstrap server's usual port.
const BOOTSTRAP_PORT: u16 = 8998;

/// Keys of both requests' bodies.
pub(super) fn body(brief: &Brief<'_>, handover: &Leg) -> Map<String, Value> {
    let configured = (brief.wire)(&handover.from).bootstrap;
    // Rooms are numbers up to 2^63 - 1. Transfers' ids are random, so rooms do not meet by chance.
    let room = xxh3_64(rendezvous(brief).as_bytes()) >> 1;
    let mut body = object([("bootstrap_room", room.into())]);
    if let Some((host, port)) = address::of(configured.as_deref(), &handover.from, BOOTSTRAP_PORT, false) {
        body.insert("bootstrap_host".to_owned(), host.into());
        body.insert("bootstrap_port".to_owned(), port.into());
    }
    body
}

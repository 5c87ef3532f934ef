//! What to send to the engines, so that they move what was planned?
//!
//! ```text
//! Brief ─▶ headers            for routers and sidecars
//!       ─▶ kv_transfer_params of the prefill leg and of the decode leg, by connector
//!       ─▶ kv_hints           where a prefix is fetched by hash
//!       ─▶ body               keys of both legs' bodies (SGLang)
//! ```
//!
//! A file per connector; what each key means to its engine is in `docs/transfers.md`. Keys that
//! kvd does not know are handed through, the engine's own answer untouched.

mod address;
mod headers;
mod hints;
mod mooncake;
mod nixl;
mod offloading;
mod sglang;

use serde_json::{Map, Value};

use super::plans::Brief;
use super::types::{Artefacts, Connector, Leg, LegKind};

/// Everything that the engines and who stands before them need to be told.
pub fn make(brief: &Brief<'_>) -> Artefacts {
    let mut out = Artefacts { headers: headers::make(brief), ..Artefacts::default() };
    let (pull, handover) = (leg(brief, LegKind::Pull), leg(brief, LegKind::Handover));
    if let Some(handover) = handover {
        let legs = match brief.connector {
            Connector::NixlPull | Connector::NixlPush => nixl::legs(brief),
            Connector::Mooncake => mooncake::legs(brief, handover),
            Connector::Offloading => offloading::legs(brief, handover),
            Connector::Sglang => {
                out.body = Some(sglang::body(brief, handover));
                Legs::default()
            }
        };
        (out.prefill_params, out.decode_params) = (legs.prefill, legs.decode);
    }
    if let Some(pull) = pull {
        // Whoever computes does the pulling.
        let params = match handover {
            Some(_) => &mut out.prefill_params,
            None => &mut out.decode_params,
        };
        match offloading::source(brief, pull) {
            Some(source) => {
                params.get_or_insert_default().insert("remote_kv_source".to_owned(), source);
            }
            None => out.kv_hints = hints::fetch(brief, pull),
        }
    }
    for params in [&mut out.prefill_params, &mut out.decode_params] {
        hand_through(brief.pass_through, params);
    }
    // Without another leg the caller's keys still belong to the one request there is.
    let single = out.decode_params.is_none() && handover.is_none() && !brief.pass_through.is_empty();
    if single {
        out.decode_params = Some(brief.pass_through.clone());
    }
    out
}

/// `kv_transfer_params` of the two requests.
#[derive(Debug, Default)]
struct Legs {
    prefill: Option<Map<String, Value>>,
    decode: Option<Map<String, Value>>,
}

fn leg<'a>(brief: &Brief<'a>, kind: LegKind) -> Option<&'a Leg> {
    brief.choice.legs.iter().find(|l| l.kind == kind)
}

/// Adds the caller's keys to an object that there is, unless they are said already.
fn hand_through(keys: &Map<String, Value>, params: &mut Option<Map<String, Value>>) {
    if let Some(params) = params {
        for (key, value) in keys {
            params.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
}

/// Where the two legs of one attempt meet. A new attempt must not meet an earlier one's leftovers.
fn rendezvous(brief: &Brief<'_>) -> String {
    format!("{}-{}", brief.transfer_id, brief.attempt)
}

/// An object of these keys.
fn object<const N: usize>(pairs: [(&str, Value); N]) -> Map<String, Value> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests;

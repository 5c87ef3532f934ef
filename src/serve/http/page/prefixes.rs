//! What is asked for most, and who has it? `/v1/prefixes`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use kvindex::HolderId;
use rustc_hash::FxHashMap;
use serde::Serialize;

use super::super::Http;
use crate::serve::Service;
use crate::traffic::{HALF_LIFE, Prefix, RATE, Root};

/// Prefixes of one answer.
const MOST: usize = 48;

/// `GET /v1/prefixes`
pub(super) async fn prefixes(State(http): State<Arc<Http>>) -> Response {
    http.views.prefixes.get(&http.service, |service| Hottest::of(service, Instant::now())).await
}

#[derive(Serialize)]
struct Hottest {
    half_life_seconds: f64,
    /// Queries a second that are looked at, at most; each stands for those passed over before it.
    looked_at_per_second: u64,
    roots: Vec<RootRow>,
    /// The heaviest first, each after the one it goes on from.
    prefixes: Vec<PrefixRow>,
    /// Who `held_by` numbers.
    pods: Vec<PodName>,
}

#[derive(Serialize)]
struct RootRow {
    tenant_id: String,
    model: String,
    lora_name: Option<String>,
}

#[derive(Serialize)]
struct PrefixRow {
    /// As text, since JavaScript rounds numbers beyond 2^53.
    id: String,
    parent: Option<usize>,
    root: usize,
    /// Its own tokens, from the first to before the last.
    tokens: [u64; 2],
    /// Part of the root's prompts that begin so.
    share: f64,
    /// Prompts that begin so, faded.
    prompts: f64,
    /// Pods that held all of it when it was asked for last, and pods asked about.
    holders: usize,
    candidates: usize,
    /// Some of them, as numbers of `pods`.
    held_by: Vec<usize>,
}

#[derive(Serialize)]
struct PodName {
    instance_id: String,
    dp_rank: u32,
}

impl Hottest {
    fn of(service: &Service, now: Instant) -> Hottest {
        let (roots, prefixes) = service.traffic.hottest(MOST, now);
        let mut pods = Vec::new();
        let mut numbers: FxHashMap<HolderId, Option<usize>> = FxHashMap::default();
        let mut number = |id: HolderId| {
            *numbers.entry(id).or_insert_with(|| {
                // One that is gone since is left out.
                let spec = service.index.spec(id)?;
                pods.push(PodName { instance_id: spec.instance.clone(), dp_rank: spec.rank });
                Some(pods.len() - 1)
            })
        };
        let row = |p: Prefix| PrefixRow {
            id: format!("{:016x}", p.id),
            parent: p.parent,
            root: p.root,
            tokens: [p.tokens.0, p.tokens.1],
            share: p.share,
            prompts: p.weight,
            holders: p.held.by,
            candidates: p.held.of,
            held_by: p.held.named.into_iter().filter_map(&mut number).collect(),
        };
        let prefixes = prefixes.into_iter().map(row).collect();
        let root = |r: Root| RootRow { tenant_id: r.tenant, model: r.model, lora_name: r.adapter };
        Hottest {
            half_life_seconds: HALF_LIFE,
            looked_at_per_second: RATE,
            roots: roots.into_iter().map(root).collect(),
            prefixes,
            pods,
        }
    }
}

//! How does the whole index go out in pieces, and go on where it stopped?
//!
//! Rows go out in the order of (tenant, model, instance, rank, block, tier). A resume token
//! names the last row sent by what it says rather than by a number of ours, so it holds
//! across a restart of kvd; a holder that is gone by then is stepped over.

use std::sync::Arc;

use kvindex::HolderId;
use kvproto::rpc::kv;
use kvproto::{EngineHash, Tier};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::convert::tier;
use crate::publisher::PublisherSpec;
use crate::serve::{AskError, Service, endpoint};

/// Rows of one chunk; with names of ordinary length well under the 4 MiB that gRPC clients
/// accept by default.
const ROWS: usize = 4096;

/// What is left to send.
pub(super) struct Dump {
    /// In the order they are sent.
    holders: Vec<(HolderId, PublisherSpec)>,
    /// The row to go on after, in the first holder.
    after: Option<(EngineHash, Tier)>,
}

/// The last row that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Position {
    tenant: String,
    model: String,
    instance: String,
    rank: u32,
    block: EngineHash,
    tier: Tier,
}

impl Dump {
    /// Whom the request asks for, and from where on.
    pub fn new(service: &Service, request: kv::DumpRequest) -> Result<Dump, AskError> {
        let from = match request.resume_token.as_str() {
            "" => None,
            token => Some(
                Position::parse(token)
                    .ok_or_else(|| AskError::invalid("resume_token", "not one that Dump gave out"))?,
            ),
        };
        let wanted = |asked: &str, is: &str| asked.is_empty() || asked == is;
        let mut holders: Vec<(HolderId, PublisherSpec)> = service
            .publishers
            .list()
            .into_iter()
            .map(|p| (p.holder, p.spec))
            .filter(|(_, spec)| {
                wanted(&request.tenant_id, &spec.tenant_id)
                    && wanted(&request.model, &spec.model)
                    && (request.instance_id.is_empty()
                        || endpoint::same(&request.instance_id, &spec.instance_id))
            })
            .filter(|(_, spec)| from.as_ref().is_none_or(|p| key(spec) >= p.key()))
            .collect();
        holders.sort_by(|(_, a), (_, b)| key(a).cmp(&key(b)));
        let after = match (from, holders.first()) {
            (Some(p), Some((_, first))) if key(first) == p.key() => Some((p.block, p.tier)),
            (Some(_) | None, _) => None,
        };
        Ok(Dump { holders, after })
    }
}

/// Sends `plan` as fast as it is read. What changes meanwhile is sent as it is when its turn comes.
pub(super) fn dump(service: Arc<Service>, plan: Dump) -> ReceiverStream<Result<kv::DumpChunk, Status>> {
    let (chunks, out) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        let mut after = plan.after;
        for (id, spec) in &plan.holders {
            loop {
                let rows = service.index.dump(*id, after, ROWS);
                let Some(last) = rows.last() else { break };
                let at = (last.block, last.tier);
                let chunk = chunk(spec, &rows, at);
                if chunks.blocking_send(Ok(chunk)).is_err() {
                    return;
                }
                after = Some(at);
            }
            after = None;
        }
    });
    ReceiverStream::new(out)
}

fn chunk(
    spec: &PublisherSpec,
    rows: &[kvindex::DumpRow],
    (block, last): (EngineHash, Tier),
) -> kv::DumpChunk {
    let position = Position {
        tenant: spec.tenant_id.clone(),
        model: spec.model.clone(),
        instance: spec.instance_id.clone(),
        rank: spec.dp_rank,
        block,
        tier: last,
    };
    let rows = rows
        .iter()
        .map(|r| kv::DumpRow {
            tenant_id: spec.tenant_id.clone(),
            model: spec.model.clone(),
            instance_id: spec.instance_id.clone(),
            dp_rank: spec.dp_rank,
            tier: tier(r.tier).into(),
            block: r.block.0,
            depth: r.depth,
            parent: r.parent.map(|p| p.0),
            block_size_tokens: r.block_size,
        })
        .collect();
    kv::DumpChunk { rows, resume_token: position.to_token() }
}

fn key(spec: &PublisherSpec) -> (&str, &str, &str, u32) {
    (&spec.tenant_id, &spec.model, &spec.instance_id, spec.dp_rank)
}

impl Position {
    fn key(&self) -> (&str, &str, &str, u32) {
        (&self.tenant, &self.model, &self.instance, self.rank)
    }

    /// `block.tier.rank.tenant bytes.model bytes.tenant model instance`: names may contain
    /// anything, so their lengths say where they end.
    fn to_token(&self) -> String {
        format!(
            "{:x}.{}.{}.{}.{}.{}{}{}",
            self.block.0,
            self.tier as u8,
            self.rank,
            self.tenant.len(),
            self.model.len(),
            self.tenant,
            self.model,
            self.instance
        )
    }

    fn parse(token: &str) -> Option<Position> {
        let mut parts = token.splitn(6, '.');
        let block = u64::from_str_radix(parts.next()?, 16).ok()?;
        let tier = *Tier::ALL.get(parts.next()?.parse::<usize>().ok()?)?;
        let rank = parts.next()?.parse().ok()?;
        let tenant_len = parts.next()?.parse().ok()?;
        let model_len = parts.next()?.parse().ok()?;
        let (tenant, rest) = parts.next()?.split_at_checked(tenant_len)?;
        let (model, instance) = rest.split_at_checked(model_len)?;
        Some(Position {
            tenant: tenant.to_owned(),
            model: model.to_owned(),
            instance: instance.to_owned(),
            rank,
            block: EngineHash(block),
            tier,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resume_token_survives_names_of_any_kind() {
        let p = Position {
            tenant: "a.b".to_owned(),
            model: "meta/Llama-3.1@é".to_owned(),
            instance: "[fd00::1]:8000".to_owned(),
            rank: 3,
            block: EngineHash(u64::MAX),
            tier: Tier::Shared,
        };
        assert_eq!(Position::parse(&p.to_token()), Some(p));
    }

    #[test]
    fn what_is_no_resume_token_is_refused() {
        for token in
            ["x", "1.0.0.0.0", "1.9.0.0.0.", "1.0.0.1.0.é", "1.0.-1.0.0.", "1.0.0.5.0.abc", "g.0.0.0.0."]
        {
            assert_eq!(Position::parse(token), None, "{token}");
        }
    }
}

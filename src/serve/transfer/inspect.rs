//! Which transfers are there, and who would be the best source?

use kvproto::rpc::kv;

use super::plan::PlanAsk;
use super::{TransferError, convert};
use crate::serve::{AskError, Service, endpoint};
use crate::transfer::types::LegKind;
use std::sync::Arc;

const DEFAULT_LIMIT: u32 = 100;
const MAX_LIMIT: u32 = 1000;

impl Service {
    /// Answers `ListTransfers`: those of this replica, or of all that share its ledger, the latest first.
    ///
    /// # Errors
    /// Names the field at fault.
    pub async fn list_transfers(
        &self,
        request: kv::ListTransfersRequest,
    ) -> Result<kv::ListTransfersResponse, TransferError> {
        let transfers = self.transfers()?;
        let limit = match request.limit {
            0 => DEFAULT_LIMIT,
            1..=MAX_LIMIT => request.limit,
            over => {
                let limit = MAX_LIMIT as usize;
                return Err(AskError::TooMany { field: "limit", limit, got: over as usize }.into());
            }
        };
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(read_page(token)?),
        };
        let wanted = |r: &crate::transfer::ledger::Record| {
            (request.states.is_empty() || request.states.contains(&convert::state(r.state).into()))
                && (request.model.is_empty() || *request.model == *r.model)
                && (request.instance_id.is_empty()
                    || r.pods().any(|p| endpoint::same(&p.instance, &request.instance_id)))
        };
        let place = |r: &crate::transfer::ledger::Record| (std::cmp::Reverse(r.planned_at), r.id);
        let mut found: Vec<_> = transfers.book(|b| {
            let all = b.records().filter(|r| wanted(r));
            all.filter(|r| after.is_none_or(|after| place(r) > after)).map(Arc::clone).collect()
        });
        let others = transfers.all_elsewhere().await?;
        let wanted = others.into_iter().filter(|r| wanted(r) && after.is_none_or(|after| place(r) > after));
        found.extend(wanted.map(Arc::new));
        found.sort_unstable_by_key(|r| place(r));
        let more = found.len() > limit as usize;
        found.truncate(limit as usize);
        let last = found.last().filter(|_| more).map(|r| format!("{}.{}", r.planned_at, r.id));
        Ok(kv::ListTransfersResponse {
            transfers: found.iter().map(|r| convert::transfer(r, transfers.enforcement(r))).collect(),
            next_page_token: last.unwrap_or_default(),
        })
    }

    /// Answers `SelectSource`.
    ///
    /// # Errors
    /// Names the field at fault.
    pub async fn select_source(
        self: &Arc<Self>,
        request: kv::SelectSourceRequest,
    ) -> Result<kv::SelectSourceResponse, TransferError> {
        let destination = request.destination.unwrap_or_default();
        if destination.instance_id.is_empty() {
            return Err(AskError::invalid("destination", "names no instance_id").into());
        }
        let (decode_instance_id, decode_dp_rank) = (destination.instance_id.clone(), destination.dp_rank);
        let mut pods = request.pods;
        if !pods.is_empty() {
            pods.retain(|p| p.instance_id != decode_instance_id || p.dp_rank != decode_dp_rank);
            pods.push(destination);
        }
        let request = kv::PlanTransferRequest {
            // Nothing is remembered, so the name of the request does not matter.
            request_id: "select-source".to_owned(),
            purpose: kv::TransferPurpose::Pull.into(),
            model: request.model,
            tenant_id: request.tenant_id,
            prompt: request.prompt,
            block_size: request.block_size,
            prompt_tokens: request.prompt_tokens,
            pods,
            decode_instance_id,
            decode_dp_rank,
            connector: request.connector,
            ..kv::PlanTransferRequest::default()
        };
        let ask = PlanAsk::read(self, request)?;
        let (plan, artefacts) = self.considered(&ask)?;
        let leg = plan.choice.legs.iter().find(|l| l.kind == LegKind::Pull).map(convert::leg);
        Ok(kv::SelectSourceResponse {
            leg,
            estimate: Some(convert::estimate_of(&plan.choice.estimate)),
            reason: convert::reason_name(plan.reason),
            explanation: plan.explanation,
            artefacts: Some(artefacts),
            enforcement: kv::Enforcement::Advisory.into(),
        })
    }
}

fn read_page(token: &str) -> Result<(std::cmp::Reverse<u64>, crate::transfer::ledger::TransferId), AskError> {
    let bad = || AskError::invalid("page_token", "is none");
    let (at, id) = token.split_once('.').ok_or_else(bad)?;
    Ok((std::cmp::Reverse(at.parse().map_err(|_| bad())?), id.parse().map_err(|()| bad())?))
}

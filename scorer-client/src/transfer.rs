//! Planning transfers, and saying what became of them.
//!
//! Calls carry the key under which kvd knows them (request id and purpose, or transfer and attempt),
//! so a call that got no answer is simply made again: [`Retry`] says how often.

use std::time::Duration;

use kvproto::rpc::kv;
use kvproto::rpc::kv::transfer_service_client::TransferServiceClient;
use tonic::{Code, Request, Response, Status};

use crate::connect::Link;
use crate::{Prompt, ScoreError, ScorerClient};

/// How often a call that got no answer is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Calls in all, at least one.
    pub attempts: u32,
    /// Pause before the second; it doubles with each.
    pub pause: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Retry { attempts: 3, pause: Duration::from_millis(10) }
    }
}

/// A question how a prompt is to be served.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanCall {
    wire: kv::PlanTransferRequest,
}

impl PlanCall {
    /// How request `id` with `prompt` is to be served by the pods of `model`. The same question under
    /// the same id gets the same plan, however often it is asked.
    pub fn new(id: impl Into<String>, model: impl Into<String>, prompt: Prompt) -> PlanCall {
        let block_size = prompt.block_size;
        PlanCall {
            wire: kv::PlanTransferRequest {
                request_id: id.into(),
                purpose: kv::TransferPurpose::PrefillDecode.into(),
                model: model.into(),
                prompt: Some(prompt.wire),
                block_size,
                ..kv::PlanTransferRequest::default()
            },
        }
    }

    /// Asks in this tenant.
    pub fn tenant(mut self, tenant: impl Into<String>) -> PlanCall {
        self.wire.tenant_id = tenant.into();
        self
    }

    /// What for; prefill and decode unless set.
    pub fn purpose(mut self, purpose: kv::TransferPurpose) -> PlanCall {
        self.wire.purpose = purpose.into();
        self
    }

    /// Only these pods.
    pub fn pods(mut self, pods: impl IntoIterator<Item = kv::TransferPod>) -> PlanCall {
        self.wire.pods = pods.into_iter().collect();
        self
    }

    /// The pod that decodes, or pulls, where that is settled.
    pub fn decode(mut self, instance: impl Into<String>, rank: u32) -> PlanCall {
        self.wire.decode_instance_id = instance.into();
        self.wire.decode_dp_rank = rank;
        self
    }

    /// How blocks travel; NIXL's pull unless set.
    pub fn connector(mut self, connector: kv::TransferConnector) -> PlanCall {
        self.wire.connector = connector.into();
        self
    }

    /// Tokens of the prompt, where it is given by hashes.
    pub fn prompt_tokens(mut self, tokens: u64) -> PlanCall {
        self.wire.prompt_tokens = tokens;
        self
    }

    /// What the caller insists on.
    pub fn constraints(mut self, constraints: kv::TransferConstraints) -> PlanCall {
        self.wire.constraints = Some(constraints);
        self
    }

    /// Keys to hand through to the engines untouched, a JSON object.
    pub fn pass_through(mut self, params: impl Into<String>) -> PlanCall {
        self.wire.kv_transfer_params = params.into();
        self
    }
}

/// A plan that somebody has, and reports on.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// What kvd answered.
    pub plan: kv::PlanTransferResponse,
}

impl Planned {
    /// Whether there is anything to report: blocks move.
    pub fn moves(&self) -> bool {
        !self.plan.plan_token.is_empty()
    }

    /// A report on this plan. The newest token goes along, so that any replica can hear it.
    pub fn report(&self, phase: kv::TransferPhase) -> ReportCall {
        let transfer = self.plan.transfer.clone().unwrap_or_default();
        ReportCall {
            wire: kv::ReportTransferRequest {
                transfer_id: transfer.transfer_id,
                attempt: transfer.attempt,
                epoch: transfer.epoch,
                phase: phase.into(),
                plan_token: self.plan.plan_token.clone(),
                ..kv::ReportTransferRequest::default()
            },
        }
    }

    /// Takes note of what a report was answered: the newest token, and another plan if there is one.
    pub fn answered(&mut self, reply: &kv::TransferReply) {
        if let Some(plan) = reply.replan.as_ref().filter(|p| !p.plan_token.is_empty()) {
            self.plan = plan.clone();
        } else {
            self.plan.transfer = reply.transfer.clone();
            self.plan.plan_token = reply.plan_token.clone();
        }
    }
}

/// Something that happened to a transfer.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportCall {
    wire: kv::ReportTransferRequest,
}

impl ReportCall {
    /// What the prefill engine answered, its JSON object untouched, and how long it keeps the blocks
    /// where that is known.
    pub fn prefill_answer(mut self, params: impl Into<String>, lease: Option<Duration>) -> ReportCall {
        self.wire.kv_transfer_params = params.into();
        self.wire.lease_ms = lease.map_or(0, |l| u32::try_from(l.as_millis()).unwrap_or(u32::MAX));
        self
    }

    /// Why it failed (a code of docs/transfers.md), and whether another plan is wanted.
    pub fn cause(mut self, cause: impl Into<String>, replan: bool) -> ReportCall {
        self.wire.cause = cause.into();
        self.wire.replan = replan;
        self
    }

    /// What was measured; kvd learns from it.
    pub fn measured(mut self, bytes: u64, transfer: Duration) -> ReportCall {
        self.wire.moved_bytes = bytes;
        self.wire.transfer_ms = u32::try_from(transfer.as_millis()).unwrap_or(u32::MAX).max(1);
        self
    }

    /// How long prefill took, and how many tokens it computed.
    pub fn prefilled(mut self, tokens: u64, took: Duration) -> ReportCall {
        self.wire.prefill_tokens = tokens;
        self.wire.prefill_ms = u32::try_from(took.as_millis()).unwrap_or(u32::MAX).max(1);
        self
    }
}

impl ScorerClient {
    /// How a prompt is to be served. What that takes is reserved until it is reported to be over.
    ///
    /// # Errors
    ///
    /// [`ScoreError`], after as many attempts as `retry` says.
    pub async fn plan(&self, call: PlanCall, retry: Retry) -> Result<Planned, ScoreError> {
        let plan = self.insist(call.wire, retry, |mut c, r| async move { c.plan_transfer(r).await }).await?;
        Ok(Planned { plan })
    }

    /// Says what happened to a transfer. Saying it twice does no harm.
    ///
    /// # Errors
    ///
    /// [`ScoreError`], after as many attempts as `retry` says.
    pub async fn report(&self, call: ReportCall, retry: Retry) -> Result<kv::TransferReply, ScoreError> {
        self.insist(call.wire, retry, |mut c, r| async move { c.report_transfer(r).await }).await
    }

    async fn insist<Q: Clone, A, F>(
        &self,
        message: Q,
        retry: Retry,
        call: impl Fn(TransferServiceClient<Link>, Request<Q>) -> F,
    ) -> Result<A, ScoreError>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut pause = retry.pause;
        let mut left = retry.attempts.max(1);
        loop {
            left -= 1;
            let mut request = Request::new(message.clone());
            request.set_timeout(self.deadline);
            let error = match tokio::time::timeout(self.deadline, call(self.transfers(), request)).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                // What kvd refuses it will refuse again.
                Ok(Err(status)) if status.code() != Code::Unavailable => {
                    return Err(ScoreError::from_status(&status, self.deadline));
                }
                Ok(Err(status)) => ScoreError::from_status(&status, self.deadline),
                Err(_) => ScoreError::Deadline { after: self.deadline },
            };
            if left == 0 {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
}

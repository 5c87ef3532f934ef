//! What is to be done instead, when a plan cannot go on?
//!
//! The planner is asked again, without what failed. Where kvd was restarted since, the prompt is
//! not known any more and the alternatives of the first plan have to do.

use std::sync::Arc;

use kvproto::rpc::kv;
use tracing::debug;

use super::holdings::{Asked, Without};
use super::prompts::Kept;
use super::{TransferError, convert};
use crate::serve::Service;
use crate::transfer::ledger::store::commit::Ticket;
use crate::transfer::ledger::{Cause, Event, NotApplied, NotPlanned, Record, Replan, State, TransferId};
use crate::transfer::types::{Choice, Decision, Plan, Reason};

impl Service {
    /// Ends the attempt for `cause` and begins another, if there is another way. The reply has the
    /// new plan in `replan`; without one, the transfer is over.
    pub(super) async fn replan(
        self: &Arc<Self>,
        id: TransferId,
        attempt: u32,
        epoch: u64,
        cause: Cause,
        adopted: bool,
    ) -> Result<kv::TransferReply, TransferError> {
        let transfers = self.transfers()?;
        let record = transfers.book(|b| b.get(id).map(Arc::clone)).ok_or(NotApplied::Unknown)?;
        crate::transfer::ledger::machine::fence(&record, attempt, epoch).map_err(NotApplied::from)?;
        let kept = transfers.prompts.lock().get(id);
        let (plan, asked) = self.plan_without(&record, kept.as_ref(), cause)?;
        let (record, ticket) = match plan.as_ref().and_then(|p| self.take_any(&record, p, cause)) {
            Some(taken) => taken,
            None => {
                let now = transfers.now();
                let failed = Event::Failed(cause);
                let (failed, ticket) =
                    transfers.change(|book, out| book.report(id, attempt, epoch, failed, now, out));
                (failed?.0, ticket)
            }
        };
        if let (Some(kept), true) = (&kept, record.live()) {
            if let Some(asked) = &asked {
                self.hold(&kept.ask, asked, &record);
            }
            let source = asked.and_then(|a| a.source(&record.choice));
            let kept = Kept { ask: Arc::clone(&kept.ask), source, looked: false };
            transfers.prompts.lock().keep(record.id, kept);
        }
        transfers.written(ticket).await?;
        if !transfers.is_home(&record) {
            return Err(TransferError::Homeless);
        }
        if record.id != id {
            transfers.take_key(&record, Some(id)).await?;
        }
        let mut reply = transfers.reply_with(&record, true, adopted);
        let advice = plan.filter(|p| p.choice.decision == Decision::Local && !record.live());
        let shown = record.live().then(|| convert::transfer(&record, transfers.enforcement(&record)));
        if shown.is_some() || advice.is_some() {
            let (choice, reason, explanation) = match &advice {
                Some(plan) => (&plan.choice, plan.reason, plan.explanation.clone()),
                None => (&record.choice, record.reason, record.explanation.to_string()),
            };
            let artefacts = match &kept {
                Some(kept) => {
                    let live = record.live().then_some(record.id);
                    transfers.artefacts(&kept.ask, choice, live, record.attempt, None)
                }
                None => transfers.artefacts_of(&record, choice),
            };
            reply.replan = Some(kv::PlanTransferResponse {
                transfer: shown,
                reason: convert::reason_name(reason),
                explanation,
                alternatives: record.alternatives.iter().map(convert::choice).collect(),
                artefacts: Some(artefacts),
                plan_token: if record.live() { transfers.token(&record) } else { String::new() },
                repeated: false,
            });
        }
        Ok(reply)
    }

    /// A plan that does without what `cause` says has failed.
    fn plan_without(
        &self,
        record: &Record,
        kept: Option<&Kept>,
        cause: Cause,
    ) -> Result<(Option<Plan>, Option<Asked>), TransferError> {
        let without = without(record, cause);
        if record.state == State::Done || record.state == State::Superseded {
            return Ok((None, None));
        }
        let Some(kept) = kept else {
            let usable = |c: &&Choice| {
                let prefills = c.prefill.as_ref();
                let reads = c.legs.iter().map(|l| &l.from);
                !c.legs.is_empty()
                    && !reads.chain(prefills).any(|p| without.sources.contains(p))
                    && (without.decode.is_none() || c.decode != without.decode)
            };
            let mut ways = record.alternatives.iter().filter(usable).cloned();
            let plan = ways.next().map(|choice| Plan {
                choice,
                reason: Reason::Faster,
                explanation: format!("an alternative of the first plan, because of {}", cause.name()),
                alternatives: ways.collect(),
            });
            return Ok((plan, None));
        };
        let transfers = self.transfers()?;
        let asked = self.holdings(&kept.ask)?;
        let plan = transfers.plans.plan(&transfers.question(&kept.ask, &asked, &without));
        Ok((Some(plan), Some(asked)))
    }

    /// Goes on with the first way that fits.
    fn take_any(&self, record: &Arc<Record>, plan: &Plan, cause: Cause) -> Option<(Arc<Record>, Ticket)> {
        let mut ways = std::iter::once(&plan.choice).chain(&plan.alternatives);
        ways.find_map(|choice| self.take_way(record, plan, choice, cause))
    }

    /// Goes on with `choice`, if it fits.
    fn take_way(
        &self,
        record: &Arc<Record>,
        plan: &Plan,
        choice: &Choice,
        cause: Cause,
    ) -> Option<(Arc<Record>, Ticket)> {
        let transfers = self.transfers().ok()?;
        if choice.legs.is_empty() || record.attempt >= transfers.config.timers.max_attempts {
            return None;
        }
        let now = transfers.now();
        if record.live() {
            let replan = Replan {
                because: cause,
                choice: choice.clone(),
                reason: plan.reason,
                explanation: plan.explanation.as_str().into(),
                alternatives: plan.alternatives.iter().filter(|a| *a != choice).cloned().collect(),
            };
            let (taken, ticket) = transfers
                .change(|book, out| book.apply(record.id, Event::Replanned(Box::new(replan)), now, out));
            return match taken {
                Ok((record, _)) => Some((record, ticket)),
                Err(not) => {
                    debug!(transfer = %record.id, %not, "another way does not fit");
                    None
                }
            };
        }
        if !matches!(record.state, State::Failed | State::Expired) {
            return None;
        }
        // What is over stays over; the request goes on as a transfer of its own.
        let next = Record {
            id: transfers.new_id(&record.request_id),
            choice: choice.clone(),
            reason: plan.reason,
            explanation: plan.explanation.as_str().into(),
            alternatives: vec![],
            state: State::Planned,
            attempt: record.attempt + 1,
            planned_at: now,
            changed_at: now,
            deadline: transfers.config.timers.deadline(State::Planned, choice, None, now),
            overall: record.overall.max(transfers.config.timers.overall(choice, now)),
            lease_ends: None,
            prefill_done: false,
            stale: None,
            warned: false,
            cause: None,
            strand: None,
            prefill_answer: None,
            ..(**record).clone()
        };
        let (taken, ticket) = transfers.change(|book, out| book.plan_after(record.id, next, now, out));
        match taken {
            Ok(record) => Some((record, ticket)),
            Err(NotPlanned::Exists(_) | NotPlanned::Full(_)) => None,
            Err(NotPlanned::TooMany { .. } | NotPlanned::TooMuchText { .. }) => None,
        }
    }
}

/// Who is not to be used again, because of `cause`.
fn without(record: &Record, cause: Cause) -> Without {
    let Choice { prefill, decode, legs, .. } = &record.choice;
    let sources = || legs.iter().map(|l| l.from.clone()).chain(prefill.clone()).collect();
    match cause {
        Cause::SourceGone
        | Cause::SourceRestarted
        | Cause::SourceEvicted
        | Cause::SourceCleared
        | Cause::PrefillFailed
        | Cause::PrefillTooSlow
        | Cause::NeverStarted => Without { sources: sources(), decode: None },
        Cause::DestinationGone | Cause::DestinationRestarted | Cause::Rejected => {
            Without { sources: decode.iter().cloned().collect(), decode: decode.clone() }
        }
        Cause::LoadFailed | Cause::PullTooSlow | Cause::Incompatible => {
            Without { sources: sources(), decode: None }
        }
        Cause::Cancelled
        | Cause::ClientGone
        | Cause::NeverPulled
        | Cause::LeaseExpired
        | Cause::TooLate
        | Cause::Superseded
        | Cause::Other => Without::default(),
    }
}

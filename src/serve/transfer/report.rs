//! What happened to a transfer, as its caller says?

use std::sync::Arc;
use std::time::Duration;

use kvproto::rpc::kv;

use super::plan::MAX_PARAMS;
use super::{TransferError, Transfers, convert};
use crate::serve::check::at_most;
use crate::serve::{AskError, Service};
use crate::transfer::ledger::store::commit::Ticket;
use crate::transfer::ledger::{Cause, Event, NotApplied, Record, State, TransferId};
use crate::transfer::plans::Brief;
use crate::transfer::types::{Choice, LegKind, Lesson};

/// What became of a caller's word.
struct Heard {
    record: Arc<Record>,
    applied: bool,
    ticket: Ticket,
}

impl Service {
    /// Answers `ReportTransfer`.
    ///
    /// # Errors
    /// Names the field at fault, or says that the transfer is not known or has another owner.
    pub async fn report_transfer(
        self: &Arc<Self>,
        request: kv::ReportTransferRequest,
    ) -> Result<kv::TransferReply, TransferError> {
        let transfers = self.transfers()?;
        let id = read_id(&request.transfer_id)?;
        self.check_text("cause", &request.cause)?;
        at_most("kv_transfer_params", MAX_PARAMS, request.kv_transfer_params.len())?;
        let event = read_event(&request)?;
        if let Some(answer) = transfers.forward(id, &request.plan_token, request.forwarded, &request).await? {
            return Ok(answer);
        }
        let adopted = transfers.adopt(id, &request.plan_token)?;
        if let (Event::Failed(cause), true) = (&event, request.replan) {
            return self.replan(id, request.attempt, request.epoch, *cause, adopted).await;
        }
        let heard = transfers.hear(id, request.attempt, request.epoch, event)?;
        if heard.applied {
            transfers.draw_lessons(&heard.record, &request);
        }
        transfers.reply(heard, adopted).await
    }

    /// Answers `RenewTransfer`.
    ///
    /// # Errors
    /// As [`report_transfer`](Self::report_transfer).
    pub async fn renew_transfer(
        self: &Arc<Self>,
        request: kv::RenewTransferRequest,
    ) -> Result<kv::TransferReply, TransferError> {
        let transfers = self.transfers()?;
        let id = read_id(&request.transfer_id)?;
        if let Some(answer) = transfers.forward(id, &request.plan_token, request.forwarded, &request).await? {
            return Ok(answer);
        }
        let adopted = transfers.adopt(id, &request.plan_token)?;
        let event = Event::Renewed { lease: millis(request.lease_ms) };
        let heard = transfers.hear(id, request.attempt, request.epoch, event)?;
        transfers.reply(heard, adopted).await
    }

    /// Answers `CancelTransfer`. Whoever cancels need not know the attempt: 0 means any.
    ///
    /// # Errors
    /// As [`report_transfer`](Self::report_transfer).
    pub async fn cancel_transfer(
        self: &Arc<Self>,
        request: kv::CancelTransferRequest,
    ) -> Result<kv::TransferReply, TransferError> {
        let transfers = self.transfers()?;
        let id = read_id(&request.transfer_id)?;
        self.check_text("cause", &request.cause)?;
        if let Some(answer) = transfers.forward(id, &request.plan_token, request.forwarded, &request).await? {
            return Ok(answer);
        }
        let adopted = transfers.adopt(id, &request.plan_token)?;
        let cause =
            if request.cause.is_empty() { Cause::Cancelled } else { Cause::from_name(&request.cause) };
        let attempt = match request.attempt {
            0 => transfers.book(|b| b.get(id).map_or(0, |r| r.attempt)),
            attempt => attempt,
        };
        let heard = transfers.hear(id, attempt, 0, Event::Cancelled(cause))?;
        transfers.reply(heard, adopted).await
    }

    /// Answers `GetTransfer`.
    ///
    /// # Errors
    /// Where the transfer is not known.
    pub async fn get_transfer(
        self: &Arc<Self>,
        request: kv::GetTransferRequest,
    ) -> Result<kv::TransferReply, TransferError> {
        let transfers = self.transfers()?;
        let purpose = convert::read_purpose(request.purpose)?;
        self.check_text("request_id", &request.request_id)?;
        let id = match (request.transfer_id.is_empty(), request.request_id.is_empty()) {
            (false, _) => read_id(&request.transfer_id)?,
            // Only the request's hash matters for finding its home.
            (true, false) => TransferId::new(&request.request_id, 0),
            (true, true) => return Err(AskError::invalid("transfer_id", "empty").into()),
        };
        let by_key = request.transfer_id.is_empty();
        let id = match by_key {
            true => transfers.find_key(&request.request_id, purpose).await?.unwrap_or(id),
            false => id,
        };
        if let Some(found) = transfers.read_elsewhere(id).await? {
            return Ok(transfers.reply_with(&found.record, false, false));
        }
        let before = transfers.meet(id, &request.plan_token)?;
        if let Some(record) = before {
            // A replica that took it over wants to know how far it was.
            let (_, ticket) = transfers.change(|_, _| ());
            return transfers.reply(Heard { record, applied: false, ticket }, false).await;
        }
        if let Some(answer) = transfers.forward(id, &request.plan_token, request.forwarded, &request).await? {
            return Ok(answer);
        }
        let (record, ticket) = transfers.change(|book, _| book.get(id).map(Arc::clone));
        let record = record.ok_or(NotApplied::Unknown)?;
        transfers.reply(Heard { record, applied: false, ticket }, false).await
    }
}

impl Transfers {
    fn hear(&self, id: TransferId, attempt: u32, epoch: u64, event: Event) -> Result<Heard, TransferError> {
        let now = self.now();
        let (heard, ticket) = self.change(|book, out| book.report(id, attempt, epoch, event, now, out));
        let (record, applied) = heard?;
        if !applied {
            self.tally.lock().unapplied += 1;
        }
        Ok(Heard { record, applied, ticket })
    }

    async fn reply(&self, heard: Heard, adopted: bool) -> Result<kv::TransferReply, TransferError> {
        let Heard { record, applied, ticket } = heard;
        // Also where nothing was applied: what is repeated here has to be as safe as it was said
        // to be the first time.
        self.written(ticket).await?;
        if !self.is_home(&record) {
            return Err(TransferError::Homeless);
        }
        Ok(self.reply_with(&record, applied, adopted))
    }

    pub(super) fn reply_with(&self, record: &Record, applied: bool, adopted: bool) -> kv::TransferReply {
        kv::TransferReply {
            transfer: Some(convert::transfer(record, self.enforcement(record))),
            applied,
            adopted,
            replan: None,
            decode_kv_transfer_params: self.decode_params(record),
            plan_token: self.token(record),
        }
    }

    /// The decode leg's object once prefill is done; empty before.
    pub(super) fn decode_params(&self, record: &Record) -> String {
        match &record.prefill_answer {
            Some(_) => self.artefacts_of(record, &record.choice).decode_kv_transfer_params,
            None => String::new(),
        }
    }

    /// What to send to the engines, as far as it follows from the record.
    pub(super) fn artefacts_of(&self, record: &Record, choice: &Choice) -> kv::TransferArtefacts {
        let parse = |text: &Option<Arc<str>>| {
            text.as_ref().and_then(|t| serde_json::from_str::<serde_json::Map<_, _>>(t).ok())
        };
        let id = record.id.to_string();
        let wire = |pod: &_| self.wire(pod, &[]);
        convert::artefacts(self.plans.artefacts(&Brief {
            choice,
            connector: record.connector,
            transfer_id: &id,
            attempt: record.attempt,
            request_id: &record.request_id,
            wire: &wire,
            pull_hashes: &[],
            prefill_answer: parse(&record.prefill_answer).as_ref(),
            pass_through: &parse(&record.pass_through).unwrap_or_default(),
        }))
    }

    /// What the measurements of a report teach about pods and links.
    fn draw_lessons(&self, record: &Record, request: &kv::ReportTransferRequest) {
        let Choice { prefill, legs, prefill_tokens, estimate, .. } = &record.choice;
        let phase = request.phase();
        if phase == kv::TransferPhase::PrefillDone
            && let (Some(pod), Some(took)) = (prefill, millis(request.prefill_ms))
        {
            let tokens = match request.prefill_tokens {
                0 => u64::from(*prefill_tokens),
                tokens => tokens,
            };
            let handed = legs.iter().find(|l| l.kind == LegKind::Handover);
            let prompt = handed.map_or(tokens, |l| u64::from(l.tokens)).max(tokens);
            let model = Arc::clone(&record.model);
            let lesson = Lesson::Prefilled { model, pod: pod.clone(), tokens, cached: prompt - tokens, took };
            self.learn(&lesson);
        }
        let last = legs.last();
        match (record.state, last) {
            (State::Done, Some(leg)) if phase == kv::TransferPhase::Done => {
                let bytes = if request.moved_bytes == 0 { leg.bytes } else { request.moved_bytes };
                let sharing = self.book(|b| b.reservations().pod(&leg.from).egress.transfers) + 1;
                let (zones, mut tally) = {
                    let pods = self.pods.read();
                    ((pods.zone(&leg.from), pods.zone(&leg.to)), self.tally.lock())
                };
                tally.moved(zones.0, zones.1, leg.tier, bytes);
                if let Some(took) = millis(request.transfer_ms) {
                    let expected =
                        if leg.kind == LegKind::Handover { estimate.handover } else { estimate.pull };
                    tally.measured(expected + estimate.setup, took);
                    drop(tally);
                    let (from, to) = (leg.from.clone(), leg.to.clone());
                    self.learn(&Lesson::Moved { from, to, bytes, took, sharing });
                }
            }
            (State::Failed, Some(leg)) if record.cause.is_some_and(links_fault) => {
                self.learn(&Lesson::Failed { from: leg.from.clone(), to: leg.to.clone() });
            }
            _ => {}
        }
    }
}

/// Whether a failure says something about the pair, and not about a request or a pod.
fn links_fault(cause: Cause) -> bool {
    matches!(cause, Cause::LoadFailed | Cause::PullTooSlow | Cause::Incompatible)
}

pub(super) fn read_id(text: &str) -> Result<TransferId, AskError> {
    text.parse().map_err(|()| AskError::invalid("transfer_id", "is none: 32 hexadecimal digits"))
}

fn read_event(request: &kv::ReportTransferRequest) -> Result<Event, AskError> {
    let unknown = || AskError::invalid("phase", format!("{} is none", request.phase));
    match kv::TransferPhase::try_from(request.phase).map_err(|_| unknown())? {
        kv::TransferPhase::Unspecified => Err(unknown()),
        kv::TransferPhase::PrefillStarted => Ok(Event::PrefillStarted),
        kv::TransferPhase::PrefillDone => {
            // Read here so that what is kept can be handed on later.
            let answer = convert::read_object(&request.kv_transfer_params)?;
            let answer = (!answer.is_empty()).then(|| serde_json::Value::Object(answer).to_string().into());
            Ok(Event::PrefillDone { lease: millis(request.lease_ms), answer })
        }
        kv::TransferPhase::PullStarted => Ok(Event::PullStarted),
        kv::TransferPhase::Done => Ok(Event::Done),
        kv::TransferPhase::Failed => Ok(Event::Failed(Cause::from_name(&request.cause))),
        kv::TransferPhase::Released => Ok(Event::Released),
    }
}

fn millis(ms: u32) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(u64::from(ms)))
}

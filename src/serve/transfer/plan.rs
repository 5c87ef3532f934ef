//! What is to be done with a prompt?
//!
//! A plan is made from a view of the book and taken into it under the lock, where limits hold; if
//! others were quicker it is made again from a newer view.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvproto::rpc::kv;
use serde_json::{Map, Value};
use xxhash_rust::xxh3::Xxh3;

use super::holdings::Without;
use super::pods::{self, Described};
use super::prompts::{Kept, Source};
use super::{TransferError, Transfers, convert, here_or_apart};
use crate::serve::check::at_most;
use crate::serve::grpc::convert::{Asking, or_default_tenant};
use crate::serve::prompt::{OwnedPrompt, PromptKey};
use crate::serve::{AskError, Service};
use crate::transfer::ledger::store::commit::Ticket;
use crate::transfer::ledger::{NotPlanned, Record, State, TransferId};
use crate::transfer::plans::Brief;
use crate::transfer::types::{
    Choice, Connector, Constraints, Decision, Endpoint, LegKind, Load, Plan, Purpose, Reason, Wire,
};

/// How often a plan is made anew because others took what it wanted.
const TRIES: usize = 3;
/// Bytes of `kv_transfer_params` that one request may bring.
pub(super) const MAX_PARAMS: usize = 1 << 20;

/// A `PlanTransferRequest`, read and checked.
pub(super) struct PlanAsk {
    pub request_id: Arc<str>,
    pub purpose: Purpose,
    pub tenant: Arc<str>,
    pub model: Arc<str>,
    pub prompt: Arc<OwnedPrompt>,
    /// Tokens of the prompt; 0 = as many as its blocks have.
    pub prompt_tokens: u32,
    /// Empty = all of the model.
    pub pods: Vec<(Endpoint, Described, Load)>,
    pub decode: Option<Endpoint>,
    pub connector: Connector,
    pub constraints: Constraints,
    pub pass_through: Map<String, Value>,
    pub fingerprint: u64,
}

impl PlanAsk {
    pub fn read(service: &Service, request: kv::PlanTransferRequest) -> Result<PlanAsk, AskError> {
        if request.request_id.is_empty() {
            return Err(AskError::invalid("request_id", "empty"));
        }
        service.check_text("request_id", &request.request_id)?;
        service.check_text("decode_instance_id", &request.decode_instance_id)?;
        if request.model.is_empty() {
            return Err(AskError::invalid("model", "empty"));
        }
        service.check_text("model", &request.model)?;
        let purpose = convert::read_purpose(request.purpose)?;
        let decode = (!request.decode_instance_id.is_empty())
            .then(|| Endpoint { instance: request.decode_instance_id.into(), rank: request.decode_dp_rank });
        if decode.is_none() && purpose != Purpose::PrefillDecode {
            return Err(AskError::invalid("decode_instance_id", "a pull needs the pod that pulls"));
        }
        at_most("pods", service.limits.max_candidates, request.pods.len())?;
        at_most("kv_transfer_params", MAX_PARAMS, request.kv_transfer_params.len())?;
        let prompt_tokens = u32::try_from(request.prompt_tokens)
            .ok()
            .filter(|n| *n as usize <= service.limits.max_tokens)
            .ok_or_else(|| AskError::invalid("prompt_tokens", "is over the limit of tokens"))?;
        let mut pods: Vec<(Endpoint, Described, Load)> = Vec::with_capacity(request.pods.len());
        for pod in request.pods {
            let load = pod.load.unwrap_or_default();
            let load = Load {
                waiting_requests: load.waiting_requests,
                waiting_tokens: load.waiting_tokens,
                running_requests: load.running_requests,
                cache_tokens: load.cache_tokens,
                committed_tokens: load.committed_tokens,
            };
            let (endpoint, described) = pods::read(service, pod)?;
            if pods.iter().any(|(known, ..)| *known == endpoint) {
                return Err(AskError::invalid("pods", format!("{endpoint} is there twice")));
            }
            pods.push((endpoint, described, load));
        }
        if let (Some(decode), false) = (&decode, pods.is_empty())
            && !pods.iter().any(|(known, ..)| known == decode)
        {
            pods.push((decode.clone(), Described::default(), Load::default()));
        }
        let tenant = or_default_tenant(request.tenant_id);
        let asking = Asking::new(service, tenant, request.model.clone(), request.prompt, request.block_size)?;
        let mut ask = PlanAsk {
            request_id: request.request_id.into(),
            purpose,
            tenant: asking.tenant.into(),
            model: request.model.into(),
            prompt: asking.prompt,
            prompt_tokens,
            pods,
            decode,
            connector: convert::read_connector(request.connector)?,
            constraints: read_constraints(request.constraints.unwrap_or_default())?,
            pass_through: convert::read_object(&request.kv_transfer_params)?,
            fingerprint: 0,
        };
        ask.fingerprint = ask.fingerprint();
        Ok(ask)
    }

    /// Tells a repetition from another question. Load is left out: it is a hint, and a caller that
    /// asks again may know better by then.
    fn fingerprint(&self) -> u64 {
        let mut hash = Xxh3::new();
        let mut text = |t: &str| {
            hash.update(&(t.len() as u64).to_le_bytes());
            hash.update(t.as_bytes());
        };
        text(&self.tenant);
        text(&self.model);
        text(self.prompt.lora.as_deref().unwrap_or_default());
        text(self.prompt.cache_salt.as_deref().unwrap_or_default());
        text(&Value::Object(self.pass_through.clone()).to_string());
        text(&format!("{:?} {:?} {:?}", self.connector, self.constraints, self.decode));
        for item in &self.prompt.items {
            text(&item.identifier);
            text(&format!("{} {}", item.offset, item.length));
        }
        let mut pods: Vec<&Endpoint> = self.pods.iter().map(|(p, ..)| p).collect();
        pods.sort();
        for pod in pods {
            text(&pod.instance);
            text(&pod.rank.to_string());
        }
        text(&format!("{:?} {}", self.prompt.block_size, self.prompt_tokens));
        match &self.prompt.key {
            PromptKey::Tokens(tokens) => tokens.iter().for_each(|t| hash.update(&t.to_le_bytes())),
            PromptKey::Canonical(h) => h.iter().for_each(|h| hash.update(&h.0.to_le_bytes())),
            PromptKey::Engine(h) => h.iter().for_each(|h| hash.update(&h.0.to_le_bytes())),
            PromptKey::Llmd(h) => h.iter().for_each(|h| hash.update(&h.0.to_le_bytes())),
        }
        hash.digest()
    }

    /// Bytes that keeping it takes, roughly.
    pub fn bytes(&self) -> usize {
        size_of::<PlanAsk>() + self.prompt.bytes() + self.pods.len() * 256
    }
}

fn read_constraints(c: kv::TransferConstraints) -> Result<Constraints, AskError> {
    Ok(Constraints {
        max_bytes: (c.max_bytes > 0).then_some(c.max_bytes),
        deadline: (c.deadline_ms > 0).then(|| Duration::from_millis(u64::from(c.deadline_ms))),
        min_gain: Duration::from_millis(u64::from(c.min_gain_ms)),
        within: convert::read_within(c.required_within)?,
    })
}

/// A plan that was taken in, or one that takes nothing.
pub(super) struct Planned {
    /// `None` = everyone is busy, and nothing is remembered.
    pub record: Option<Arc<Record>>,
    pub plan: Plan,
    pub repeated: bool,
}

impl Service {
    /// Answers `PlanTransfer`.
    ///
    /// # Errors
    /// Names the field at fault, or says why no plan can be taken in.
    pub async fn plan_transfer(
        self: &Arc<Self>,
        request: kv::PlanTransferRequest,
    ) -> Result<kv::PlanTransferResponse, TransferError> {
        let began = Instant::now();
        let transfers = self.transfers()?;
        if let Some(answer) = transfers.forward_plan(&request).await? {
            return Ok(answer);
        }
        let purpose = convert::read_purpose(request.purpose)?;
        let forgotten = match transfers.forward_planned(&request, purpose).await? {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(id) => Some(id),
        };
        let ask = Arc::new(PlanAsk::read(self, request)?);
        let service = Arc::clone(self);
        let length = ask.prompt.key.len();
        let work = {
            let ask = Arc::clone(&ask);
            move || service.planned(&ask)
        };
        let (planned, ticket) = here_or_apart(length, work).await?;
        if transfers.config.sync_plans || planned.repeated || transfers.is_shared() {
            transfers.written(ticket).await?;
        }
        if let Some(record) = &planned.record {
            if !transfers.is_home(record) {
                return Err(TransferError::Homeless);
            }
            transfers.take_key(record, forgotten).await?;
        }
        let answer = transfers.answer(&planned, &ask);
        if !planned.repeated {
            let mut tally = transfers.tally.lock();
            tally.planned(planned.plan.choice.decision, planned.plan.reason);
            tally.plan_seconds.observe(began.elapsed());
        }
        Ok(answer)
    }

    /// Answers `EstimateTransfer`: a plan that is not taken in.
    ///
    /// # Errors
    /// Names the field at fault.
    pub async fn estimate_transfer(
        self: &Arc<Self>,
        request: kv::PlanTransferRequest,
    ) -> Result<kv::EstimateTransferResponse, TransferError> {
        self.transfers()?;
        let ask = Arc::new(PlanAsk::read(self, request)?);
        let service = Arc::clone(self);
        let length = ask.prompt.key.len();
        let work = move || service.estimated(&ask);
        here_or_apart(length, work).await
    }

    fn estimated(&self, ask: &PlanAsk) -> Result<kv::EstimateTransferResponse, TransferError> {
        let (plan, artefacts) = self.considered(ask)?;
        Ok(kv::EstimateTransferResponse {
            choice: Some(convert::choice(&plan.choice)),
            reason: convert::reason_name(plan.reason),
            explanation: plan.explanation,
            alternatives: plan.alternatives.iter().map(convert::choice).collect(),
            artefacts: Some(artefacts),
            enforcement: kv::Enforcement::Advisory.into(),
        })
    }

    /// A plan that is not taken in, and its artefacts.
    pub(super) fn considered(&self, ask: &PlanAsk) -> Result<(Plan, kv::TransferArtefacts), TransferError> {
        let transfers = self.transfers()?;
        let asked = self.holdings(ask)?;
        let plan = transfers.plans.plan(&transfers.question(ask, &asked, &Without::default()));
        let source = asked.source(&plan.choice);
        let artefacts = transfers.artefacts(ask, &plan.choice, None, 0, source.as_ref());
        Ok((plan, artefacts))
    }

    fn planned(&self, ask: &Arc<PlanAsk>) -> Result<(Planned, Ticket), TransferError> {
        let transfers = self.transfers()?;
        if let (Some(repeated), ticket) =
            transfers.change(|book, _| book.find(&ask.request_id, ask.purpose).map(Arc::clone))
        {
            return Ok((transfers.repeated(&repeated, ask)?, ticket));
        }
        let asked = self.holdings(ask)?;
        for _ in 0..TRIES {
            let plan = transfers.plans.plan(&transfers.question(ask, &asked, &Without::default()));
            if plan.choice.decision == Decision::Busy {
                return Ok((Planned { record: None, plan, repeated: false }, Default::default()));
            }
            let record = transfers.record(ask, &plan);
            let id = record.id;
            let now = transfers.now();
            // Before the plan is known to anyone, so that nothing that happens to it is missed.
            let kept = Kept { ask: Arc::clone(ask), source: asked.source(&plan.choice), looked: false };
            if record.live() {
                transfers.prompts.lock().keep(id, kept);
            }
            let (taken, ticket) = transfers.change(|book, out| book.plan(record, now, out));
            match taken {
                Ok(record) => {
                    self.hold(ask, &asked, &record);
                    return Ok((Planned { record: Some(record), plan, repeated: false }, ticket));
                }
                Err(not) => {
                    transfers.prompts.lock().forget(id);
                    match not {
                        NotPlanned::Full(_) => {} // others were quicker
                        NotPlanned::Exists(record) => {
                            return Ok((transfers.repeated(&record, ask)?, ticket));
                        }
                        NotPlanned::TooMany { .. } | NotPlanned::TooMuchText { .. } => return Err(not.into()),
                    }
                }
            }
        }
        let choice = Choice {
            decision: Decision::Busy,
            prefill: None,
            decode: None,
            legs: vec![],
            prefill_tokens: 0,
            estimate: Default::default(),
        };
        let explanation =
            format!("others took what {TRIES} plans in a row needed, before they were reserved");
        let plan = Plan { choice, reason: Reason::Busy, explanation, alternatives: vec![] };
        Ok((Planned { record: None, plan, repeated: false }, Default::default()))
    }
}

impl Transfers {
    /// A plan as the book keeps it.
    pub(super) fn record(&self, ask: &PlanAsk, plan: &Plan) -> Record {
        let now = self.now();
        let timers = &self.config.timers;
        let moves = !plan.choice.legs.is_empty();
        let state = if moves { State::Planned } else { State::Done };
        let pass_through = (moves && !ask.pass_through.is_empty())
            .then(|| Value::Object(ask.pass_through.clone()).to_string().into());
        Record {
            id: self.new_id(&ask.request_id),
            request_id: Arc::clone(&ask.request_id),
            purpose: ask.purpose,
            tenant: Arc::clone(&ask.tenant),
            model: Arc::clone(&ask.model),
            connector: ask.connector,
            fingerprint: ask.fingerprint,
            choice: plan.choice.clone(),
            reason: plan.reason,
            explanation: plan.explanation.as_str().into(),
            alternatives: plan.alternatives.clone(),
            state,
            ended_in: None,
            attempt: 1,
            epoch: self.config.replicas.next_epoch(0),
            planned_at: now,
            changed_at: now,
            deadline: timers.deadline(state, &plan.choice, None, now),
            overall: timers.overall(&plan.choice, now),
            lease_ends: None,
            prefill_done: false,
            stale: None,
            recovered: false,
            warned: false,
            cause: None,
            strand: None,
            prefill_answer: None,
            pass_through,
        }
    }

    /// The plan that there is already, if it answers the same question.
    fn repeated(&self, record: &Arc<Record>, ask: &PlanAsk) -> Result<Planned, TransferError> {
        if record.fingerprint != ask.fingerprint {
            return Err(TransferError::Exists);
        }
        let plan = Plan {
            choice: record.choice.clone(),
            reason: record.reason,
            explanation: record.explanation.to_string(),
            alternatives: record.alternatives.clone(),
        };
        Ok(Planned { record: Some(Arc::clone(record)), plan, repeated: true })
    }

    pub(super) fn answer(&self, planned: &Planned, ask: &PlanAsk) -> kv::PlanTransferResponse {
        let Planned { record, plan, repeated } = planned;
        let transfer = match record {
            Some(record) => convert::transfer(record, self.enforcement(record)),
            None => kv::Transfer {
                request_id: ask.request_id.to_string(),
                choice: Some(convert::choice(&plan.choice)),
                enforcement: kv::Enforcement::Advisory.into(),
                ..kv::Transfer::default()
            },
        };
        let (id, attempt) = record.as_ref().map_or((None, 0), |r| (Some(r.id), r.attempt));
        let source = id.and_then(|id| self.prompts.lock().get(id)?.source);
        let token = record.as_ref().filter(|r| !r.choice.legs.is_empty()).map(|r| self.token(r));
        kv::PlanTransferResponse {
            transfer: Some(transfer),
            reason: convert::reason_name(plan.reason),
            explanation: plan.explanation.clone(),
            alternatives: plan.alternatives.iter().map(convert::choice).collect(),
            artefacts: Some(self.artefacts(ask, &plan.choice, id, attempt, source.as_ref())),
            plan_token: token.unwrap_or_default(),
            repeated: *repeated,
        }
    }

    /// What to send to the engines.
    pub(super) fn artefacts(
        &self,
        ask: &PlanAsk,
        choice: &Choice,
        id: Option<TransferId>,
        attempt: u32,
        source: Option<&Source>,
    ) -> kv::TransferArtefacts {
        let hashes = pull_hashes(ask, choice, source);
        let id = id.map(|id| id.to_string()).unwrap_or_default();
        let wire = |pod: &Endpoint| self.wire(pod, &ask.pods);
        let brief = Brief {
            choice,
            connector: ask.connector,
            transfer_id: &id,
            attempt,
            request_id: &ask.request_id,
            wire: &wire,
            pull_hashes: &hashes,
            prefill_answer: None,
            pass_through: &ask.pass_through,
        };
        convert::artefacts(self.plans.artefacts(&brief))
    }

    /// How a pod is reached: as the request says, else as it was described.
    pub(super) fn wire(&self, pod: &Endpoint, asked: &[(Endpoint, Described, Load)]) -> Wire {
        let described = self.pods.read().get(pod);
        match asked.iter().find(|(p, ..)| p == pod) {
            Some((_, said, _)) => said.clone().or(described).wire,
            None => described.wire,
        }
    }
}

/// The engine's names of the blocks to pull, where the prompt was given by them.
fn pull_hashes(ask: &PlanAsk, choice: &Choice, source: Option<&Source>) -> Vec<u64> {
    let leg = choice.legs.iter().find(|l| l.kind == LegKind::Pull);
    match (&ask.prompt.key, ask.prompt.block_size, leg, source) {
        (PromptKey::Engine(hashes), Some(size), Some(leg), Some(source)) => {
            let end = (source.tokens / size) as usize;
            let start = (source.tokens.saturating_sub(leg.tokens) / size) as usize;
            hashes.get(start..end.min(hashes.len())).unwrap_or_default().iter().map(|h| h.0).collect()
        }
        (PromptKey::Engine(_) | PromptKey::Tokens(_) | PromptKey::Canonical(_) | PromptKey::Llmd(_), ..) => {
            vec![]
        }
    }
}

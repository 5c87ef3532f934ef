//! How are transfers written as messages, and read from them?

use std::sync::Arc;
use std::time::Duration;

use kvproto::Tier;
use kvproto::rpc::kv;
use serde_json::{Map, Value};

use crate::serve::AskError;
use crate::transfer::ledger::{Enforcement, Notice, Record, State};
use crate::transfer::types::{
    Artefacts, Choice, Connector, Decision, Distance, Endpoint, Estimate, Leg, LegKind, Place, Purpose,
    Reason, Roles, Wire,
};

/// A record as callers see it, and who keeps what it counts on.
pub(super) fn transfer(record: &Record, by: Enforcement) -> kv::Transfer {
    let live = record.live();
    kv::Transfer {
        transfer_id: record.id.to_string(),
        request_id: record.request_id.to_string(),
        purpose: purpose(record.purpose).into(),
        model: record.model.to_string(),
        tenant_id: record.tenant.to_string(),
        state: state(record.state).into(),
        attempt: record.attempt,
        epoch: record.epoch,
        choice: Some(choice(&record.choice)),
        planned_at_ms: record.planned_at,
        changed_at_ms: record.changed_at,
        state_deadline_at_ms: if live { record.deadline } else { 0 },
        overall_deadline_at_ms: record.overall,
        lease_ends_at_ms: record.lease_ends.unwrap_or(0),
        enforcement: enforcement(by).into(),
        cause: record.cause.map(|c| c.name().to_owned()).unwrap_or_default(),
        stale: record.stale.is_some(),
        recovered: record.recovered,
        prefill_done: record.prefill_done,
        connector: connector(record.connector).into(),
    }
}

pub(super) fn choice(choice: &Choice) -> kv::TransferChoice {
    let Choice { decision, prefill, decode, legs, prefill_tokens: _, estimate } = choice;
    kv::TransferChoice {
        decision: decision_of(*decision).into(),
        prefill: prefill.as_ref().map(endpoint),
        decode: decode.as_ref().map(endpoint),
        legs: legs.iter().map(leg).collect(),
        estimate: Some(estimate_of(estimate)),
    }
}

pub(super) fn leg(leg: &Leg) -> kv::TransferLeg {
    kv::TransferLeg {
        from: Some(endpoint(&leg.from)),
        to: Some(endpoint(&leg.to)),
        tier: crate::serve::grpc::convert::tier(leg.tier).into(),
        tokens: u64::from(leg.tokens),
        blocks: leg.blocks,
        bytes: leg.bytes,
        pinned_bytes: leg.pinned_bytes,
        handover: leg.kind == LegKind::Handover,
    }
}

pub(super) fn estimate_of(estimate: &Estimate) -> kv::TransferEstimate {
    let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    kv::TransferEstimate {
        queue_us: us(estimate.queue),
        pull_us: us(estimate.pull),
        prefill_us: us(estimate.prefill),
        setup_us: us(estimate.setup),
        handover_us: us(estimate.handover),
        total_us: us(estimate.total),
        local_us: us(estimate.local),
        failure_probability: estimate.failure_probability,
    }
}

pub(super) fn endpoint(endpoint: &Endpoint) -> kv::RoutedEndpoint {
    kv::RoutedEndpoint { instance_id: endpoint.instance.to_string(), dp_rank: endpoint.rank }
}

pub(super) fn read_endpoint(
    field: &'static str,
    endpoint: Option<kv::RoutedEndpoint>,
) -> Result<Endpoint, AskError> {
    let endpoint = endpoint.filter(|e| !e.instance_id.is_empty());
    let endpoint = endpoint.ok_or_else(|| AskError::invalid(field, "names no instance_id"))?;
    Ok(Endpoint { instance: endpoint.instance_id.into(), rank: endpoint.dp_rank })
}

pub(super) fn artefacts(artefacts: Artefacts) -> kv::TransferArtefacts {
    let object =
        |map: Option<Map<String, Value>>| map.map(|m| Value::Object(m).to_string()).unwrap_or_default();
    kv::TransferArtefacts {
        headers: artefacts.headers.into_iter().collect(),
        prefill_kv_transfer_params: object(artefacts.prefill_params),
        decode_kv_transfer_params: object(artefacts.decode_params),
        kv_hints: artefacts.kv_hints.map(|v| v.to_string()).unwrap_or_default(),
        body: object(artefacts.body),
    }
}

/// A JSON object that a caller sent; empty text is an empty object.
pub(super) fn read_object(text: &str) -> Result<Map<String, Value>, AskError> {
    if text.is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(_) => Err(AskError::invalid("kv_transfer_params", "is no JSON object")),
        Err(error) => Err(AskError::invalid("kv_transfer_params", format!("is no JSON: {error}"))),
    }
}

pub(super) fn state(state: State) -> kv::TransferState {
    match state {
        State::Planned => kv::TransferState::Planned,
        State::Prefilling => kv::TransferState::Prefilling,
        State::Ready => kv::TransferState::Ready,
        State::Pulling => kv::TransferState::Pulling,
        State::Done => kv::TransferState::Done,
        State::Failed => kv::TransferState::Failed,
        State::Expired => kv::TransferState::Expired,
        State::Cancelled => kv::TransferState::Cancelled,
        State::Superseded => kv::TransferState::Superseded,
    }
}

pub(super) fn notice(notice: Notice) -> kv::transfer_event::Kind {
    match notice {
        Notice::State => kv::transfer_event::Kind::State,
        Notice::Stranded => kv::transfer_event::Kind::Stranded,
        Notice::Stale => kv::transfer_event::Kind::PlanStale,
        Notice::LeaseEnding => kv::transfer_event::Kind::LeaseEnding,
    }
}

fn purpose(purpose: Purpose) -> kv::TransferPurpose {
    match purpose {
        Purpose::PrefillDecode => kv::TransferPurpose::PrefillDecode,
        Purpose::Pull => kv::TransferPurpose::Pull,
        Purpose::Migrate => kv::TransferPurpose::Migrate,
    }
}

/// The purpose of that number; unspecified is prefill and decode.
pub(super) fn read_purpose(purpose: i32) -> Result<Purpose, AskError> {
    match kv::TransferPurpose::try_from(purpose) {
        Ok(kv::TransferPurpose::Unspecified | kv::TransferPurpose::PrefillDecode) => {
            Ok(Purpose::PrefillDecode)
        }
        Ok(kv::TransferPurpose::Pull) => Ok(Purpose::Pull),
        Ok(kv::TransferPurpose::Migrate) => Ok(Purpose::Migrate),
        Err(_) => Err(AskError::invalid("purpose", format!("{purpose} is not known"))),
    }
}

fn connector(connector: Connector) -> kv::TransferConnector {
    match connector {
        Connector::NixlPull => kv::TransferConnector::NixlPull,
        Connector::NixlPush => kv::TransferConnector::NixlPush,
        Connector::Mooncake => kv::TransferConnector::Mooncake,
        Connector::Offloading => kv::TransferConnector::Offloading,
        Connector::Sglang => kv::TransferConnector::Sglang,
    }
}

/// The connector of that number; unspecified is NIXL's pull.
pub(super) fn read_connector(connector: i32) -> Result<Connector, AskError> {
    match kv::TransferConnector::try_from(connector) {
        Ok(kv::TransferConnector::Unspecified | kv::TransferConnector::NixlPull) => Ok(Connector::NixlPull),
        Ok(kv::TransferConnector::NixlPush) => Ok(Connector::NixlPush),
        Ok(kv::TransferConnector::Mooncake) => Ok(Connector::Mooncake),
        Ok(kv::TransferConnector::Offloading) => Ok(Connector::Offloading),
        Ok(kv::TransferConnector::Sglang) => Ok(Connector::Sglang),
        Err(_) => Err(AskError::invalid("connector", format!("{connector} is not known"))),
    }
}

fn decision_of(decision: Decision) -> kv::TransferDecision {
    match decision {
        Decision::Local => kv::TransferDecision::Local,
        Decision::Disagg => kv::TransferDecision::Disagg,
        Decision::Pull => kv::TransferDecision::Pull,
        Decision::DisaggWithPull => kv::TransferDecision::DisaggWithPull,
        Decision::Busy => kv::TransferDecision::Busy,
    }
}

pub(super) fn enforcement(enforcement: Enforcement) -> kv::Enforcement {
    match enforcement {
        Enforcement::Advisory => kv::Enforcement::Advisory,
        Enforcement::EngineAcked => kv::Enforcement::EngineAcked,
        Enforcement::Enforced => kv::Enforcement::Enforced,
    }
}

/// A decision's name in metrics.
pub(crate) fn decision_name(decision: Decision) -> &'static str {
    match decision {
        Decision::Local => "local",
        Decision::Disagg => "disagg",
        Decision::Pull => "pull",
        Decision::DisaggWithPull => "disagg_with_pull",
        Decision::Busy => "busy",
    }
}

/// A connector's name in metrics.
pub(crate) fn connector_name(connector: Connector) -> &'static str {
    match connector {
        Connector::NixlPull => "nixl_pull",
        Connector::NixlPush => "nixl_push",
        Connector::Mooncake => "mooncake",
        Connector::Offloading => "offloading",
        Connector::Sglang => "sglang",
    }
}

/// A reason's name in answers and metrics: the one it is written down by.
pub(crate) fn reason_name(reason: Reason) -> String {
    match serde_json::to_value(reason) {
        Ok(Value::String(name)) => name,
        Ok(_) | Err(_) => "unknown".to_owned(),
    }
}

pub(super) fn read_within(level: i32) -> Result<Option<Distance>, AskError> {
    match kv::PlaceLevel::try_from(level) {
        Ok(kv::PlaceLevel::Unspecified) => Ok(None),
        Ok(kv::PlaceLevel::Host) => Ok(Some(Distance::Host)),
        Ok(kv::PlaceLevel::Rack) => Ok(Some(Distance::Rack)),
        Ok(kv::PlaceLevel::Zone) => Ok(Some(Distance::Zone)),
        Ok(kv::PlaceLevel::Region) => Ok(Some(Distance::Region)),
        Err(_) => Err(AskError::invalid("required_within", format!("{level} is not known"))),
    }
}

pub(super) fn read_place(place: kv::Place) -> Place {
    let kv::Place { host, rack, zone, region } = place;
    Place { host: text(host), rack: text(rack), zone: text(zone), region: text(region) }
}

pub(super) fn read_wire(wire: kv::PodWire) -> Wire {
    let kv::PodWire { bootstrap, p2p, engine_id, control } = wire;
    Wire { bootstrap: text(bootstrap), p2p: text(p2p), engine_id: text(engine_id), control: text(control) }
}

/// What the flags say; `None` where none is set.
pub(super) fn read_roles(pod: &kv::TransferPod) -> Option<Roles> {
    let roles = Roles { prefill: pod.can_prefill, decode: pod.can_decode, source: pod.can_source };
    (roles.prefill || roles.decode || roles.source).then_some(roles)
}

pub(super) fn text(text: String) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text.into())
}

/// Tokens that go into the first `tier`s from a score's blocks.
pub(super) fn held_in(cumulative: &[u32; 5], alone: &[u32; 5], tier: Tier) -> u32 {
    cumulative[tier as usize].max(alone[tier as usize])
}

//! Transfers over HTTP, for sidecars: the messages of `kv.v1.TransferService` as protobuf writes
//! them in JSON, under their fields' own names.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use kvproto::rpc::kv;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_stream::StreamExt;
use tonic::Code;

use super::error::{Refusal, json};
use super::params::{Params, read};
use super::{Http, body};
use crate::serve::transfer::TransferError;

type Answer = Result<Response, Refusal>;

/// Paths and methods of transfers.
pub(super) fn routes() -> Router<Arc<Http>> {
    Router::new()
        .route("/v1/transfers", post(plan).get(list))
        .route("/v1/transfers/estimate", post(estimate))
        .route("/v1/transfers/source", post(select_source))
        .route("/v1/transfers/watch", get(watch))
        .route("/v1/transfers/{id}", get(one))
        .route("/v1/transfers/{id}/report", post(report))
        .route("/v1/transfers/{id}/renew", post(renew))
        .route("/v1/transfers/{id}/cancel", post(cancel))
        .route("/v1/topology", post(topology))
        .route("/v1/links", post(report_link).get(links))
}

async fn plan(State(http): State<Arc<Http>>, request: Request) -> Answer {
    let message: kv::PlanTransferRequest = message(&http, request).await?;
    answer(http.service.plan_transfer(message).await)
}

async fn estimate(State(http): State<Arc<Http>>, request: Request) -> Answer {
    let message: kv::PlanTransferRequest = message(&http, request).await?;
    answer(http.service.estimate_transfer(message).await)
}

async fn select_source(State(http): State<Arc<Http>>, request: Request) -> Answer {
    let message: kv::SelectSourceRequest = message(&http, request).await?;
    answer(http.service.select_source(message).await)
}

async fn report(State(http): State<Arc<Http>>, Path(id): Path<String>, request: Request) -> Answer {
    let message: kv::ReportTransferRequest = message(&http, request).await?;
    answer(http.service.report_transfer(kv::ReportTransferRequest { transfer_id: id, ..message }).await)
}

async fn renew(State(http): State<Arc<Http>>, Path(id): Path<String>, request: Request) -> Answer {
    let message: kv::RenewTransferRequest = message(&http, request).await?;
    answer(http.service.renew_transfer(kv::RenewTransferRequest { transfer_id: id, ..message }).await)
}

async fn cancel(State(http): State<Arc<Http>>, Path(id): Path<String>, request: Request) -> Answer {
    let message: kv::CancelTransferRequest = message(&http, request).await?;
    answer(http.service.cancel_transfer(kv::CancelTransferRequest { transfer_id: id, ..message }).await)
}

async fn one(State(http): State<Arc<Http>>, Path(id): Path<String>) -> Answer {
    let message = kv::GetTransferRequest { transfer_id: id, ..kv::GetTransferRequest::default() };
    answer(http.service.get_transfer(message).await)
}

async fn topology(State(http): State<Arc<Http>>, request: Request) -> Answer {
    let message: kv::SetTopologyRequest = message(&http, request).await?;
    answer(http.service.set_topology(message))
}

async fn report_link(State(http): State<Arc<Http>>, request: Request) -> Answer {
    let message: kv::ReportLinkRequest = message(&http, request).await?;
    answer(http.service.report_link(message))
}

/// `?state=&instance_id=&model=&limit=&page_token=`
#[derive(Debug, Default, serde::Deserialize)]
struct Listed {
    state: Option<String>,
    instance_id: Option<String>,
    model: Option<String>,
    limit: Option<u32>,
    page_token: Option<String>,
}

async fn list(State(http): State<Arc<Http>>, params: Params<Listed>) -> Answer {
    let Listed { state, instance_id, model, limit, page_token } = read(params)?;
    let state = state.map(|name| {
        let full = format!("TRANSFER_STATE_{}", name.to_ascii_uppercase());
        kv::TransferState::from_str_name(&full)
            .ok_or_else(|| Refusal::bad("state", format!("{name:?} is none")))
    });
    let request = kv::ListTransfersRequest {
        states: state.transpose()?.map(i32::from).into_iter().collect(),
        instance_id: instance_id.unwrap_or_default(),
        model: model.unwrap_or_default(),
        limit: limit.unwrap_or_default(),
        page_token: page_token.unwrap_or_default(),
    };
    answer(http.service.list_transfers(request).await)
}

/// `?instance_id=`
#[derive(Debug, Default, serde::Deserialize)]
struct OfPod {
    instance_id: Option<String>,
}

async fn links(State(http): State<Arc<Http>>, params: Params<OfPod>) -> Answer {
    let instance_id = read(params)?.instance_id.unwrap_or_default();
    answer(http.service.list_links(kv::ListLinksRequest { instance_id }))
}

/// `?instance_id=&request_id=&include_live=`
#[derive(Debug, Default, serde::Deserialize)]
struct Watched {
    instance_id: Option<String>,
    request_id: Option<String>,
    include_live: Option<bool>,
}

/// An event a line, until the client goes.
async fn watch(State(http): State<Arc<Http>>, params: Params<Watched>) -> Answer {
    let Watched { instance_id, request_id, include_live } = read(params)?;
    let request = kv::WatchTransfersRequest {
        instance_id: instance_id.unwrap_or_default(),
        request_id: request_id.unwrap_or_default(),
        include_live: include_live.unwrap_or_default(),
    };
    let mut watcher = http.service.watch_transfers(request).map_err(refuse)?;
    let (lines, stream) = tokio::sync::mpsc::channel::<Bytes>(16);
    let mut readiness = http.service.readiness();
    tokio::spawn(async move {
        // A stream without end must not hold up the end of the process. That is not ready, but
        // neither is its beginning.
        let mut stopping = std::pin::pin!(async {
            let _ = readiness.wait_for(|ready| *ready).await;
            let _ = readiness.wait_for(|ready| !ready).await;
        });
        loop {
            let event = tokio::select! {
                event = watcher.next() => event,
                () = lines.closed() => None,
                () = &mut stopping => None,
            };
            let Some(event) = event else { return };
            let mut line = serde_json::to_vec(&event).expect("messages have string keys");
            line.push(b'\n');
            if lines.send(line.into()).await.is_err() {
                return;
            }
        }
    });
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream).map(Ok::<_, Infallible>);
    let kind = HeaderValue::from_static("application/x-ndjson");
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(stream)).into_response())
}

async fn message<T: DeserializeOwned>(http: &Http, request: Request) -> Result<T, Refusal> {
    let arrived = http.bodies.read(request).await?;
    let nothing = arrived.bytes.iter().all(u8::is_ascii_whitespace);
    body::parse(if nothing { b"{}" } else { &arrived.bytes })
}

fn answer<T: Serialize>(answer: Result<T, TransferError>) -> Answer {
    answer.map(|value| json(StatusCode::OK, &value)).map_err(refuse)
}

fn refuse(error: TransferError) -> Refusal {
    let status = match error.code() {
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied | Code::Unauthenticated => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let field = if error.field().is_empty() { "body" } else { error.field() };
    Refusal::new(status, field, error.to_string())
}

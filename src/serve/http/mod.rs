//! How is kvd asked over HTTP? In the shape of Mooncake Conductor (RFC #1403), described in
//! docs/http.md.
//!
//! One file per question; [`super::ask`] holds the rules, these files translate. A refusal is
//! always JSON that names the field at fault.

mod answer;
mod body;
pub(crate) mod connections;
mod dump;
mod error;
mod hashes;
mod inspect;
mod outcome;
mod page;
mod params;
mod query;
mod register;
#[cfg(test)]
mod tests;
mod tokens;
mod transfer;

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::routing::{get, post};
use tokio::net::TcpListener;

use super::Service;
use crate::guard::GateLayer;
use crate::guard::tls::ServerTls;
use crate::traces::Parents;
use body::Bodies;
use error::Refusal;

/// What every request can reach.
struct Http {
    service: Arc<Service>,
    bodies: Bodies,
    views: page::Views,
}

/// Every path and method.
pub fn router(service: Arc<Service>) -> Router {
    let bodies = Bodies::new(service.limits.max_body_bytes);
    let parents = Parents { wanted: service.traces.is_some() };
    Router::new()
        .route("/register", post(register::register))
        .route("/unregister", post(register::unregister))
        .route("/query", post(query::by_tokens))
        .route("/query_by_hash", post(query::by_hash))
        .route("/report_outcome", post(outcome::report))
        .route("/publishers", get(inspect::publishers))
        .route("/workers", get(inspect::workers))
        .route("/discovery", get(inspect::discovery))
        .route("/dump", get(dump::dump))
        .route("/healthz", get(inspect::healthz))
        .route("/readyz", get(inspect::readyz))
        .route("/metrics", get(inspect::export_metrics))
        .merge(transfer::routes())
        .merge(page::routes())
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(parents)
        .with_state(Arc::new(Http { service: Arc::clone(&service), bodies, views: page::Views::default() }))
        .layer(GateLayer::new(Arc::clone(&service.guard)))
}

/// Serves HTTP on `listener` until `shutdown` completes and the requests under way are answered.
pub async fn serve(
    service: Arc<Service>,
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    shutdown: impl Future<Output = ()>,
) {
    connections::serve(router(service), listener, tls, shutdown).await;
}

async fn unknown_path(uri: Uri) -> Refusal {
    let error = format!("there is no {}; GET / lists the paths there are", uri.path());
    Refusal::new(StatusCode::NOT_FOUND, "path", error)
}

async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    let error = format!("{} does not take {method}; GET / lists what does", uri.path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method", error)
}

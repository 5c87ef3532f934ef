//! Who is to be followed from now on, and who no longer? `/register` and `/unregister`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use super::error::{Refusal, json};
use super::{Http, body};
use crate::ingest::RegisterError;
use crate::publisher::{PublisherSpec, Selector};
use crate::registration::{Registration, RegistrationError};
use crate::serve::{DEFAULT_TENANT, endpoint};

#[derive(Serialize)]
struct Registered<'a> {
    status: &'static str,
    instance_id: &'a str,
}

#[derive(Serialize)]
struct Unregistered {
    status: &'static str,
    /// `instance|tenant|rank` of each.
    removed_instances: Vec<String>,
}

/// `POST /register`
pub(super) async fn register(State(http): State<Arc<Http>>, request: Request) -> Result<Response, Refusal> {
    let arrived = http.bodies.read(request).await?;
    let spec = body::parse::<Registration>(&arrived.bytes)?.check().map_err(refuse)?;
    let instance_id = spec.instance_id.clone();
    let publishers = Arc::clone(&http.service.publishers);
    // The registration is on disk before it is answered.
    off_the_loop(move || publishers.register(spec)).await?.map_err(refuse_by_ingest)?;
    Ok(json(StatusCode::OK, &Registered { status: "registered successfully", instance_id: &instance_id }))
}

/// `POST /unregister`. Removing what is not there is no error, so that it may be repeated.
pub(super) async fn unregister(State(http): State<Arc<Http>>, request: Request) -> Result<Response, Refusal> {
    let arrived = http.bodies.read(request).await?;
    let who: Registration = body::parse(&arrived.bytes)?;
    let non_empty = |text: Option<String>| text.filter(|t| !t.is_empty());
    let instance_id = non_empty(who.instance_id).ok_or_else(|| Refusal::missing("instance_id"))?;
    let selector = Selector {
        tenant_id: non_empty(who.tenant_id).unwrap_or_else(|| DEFAULT_TENANT.to_owned()),
        model: non_empty(who.modelname),
        dp_rank: who.dp_rank,
        instance_id,
    };
    let publishers = Arc::clone(&http.service.publishers);
    let removed = off_the_loop(move || {
        let mut removed = publishers.unregister(&selector)?;
        if let Some(instance_id) = endpoint::other_form(&selector.instance_id) {
            removed.extend(publishers.unregister(&Selector { instance_id, ..selector })?);
        }
        Ok::<Vec<PublisherSpec>, _>(removed)
    });
    let removed = removed.await?.map_err(refuse_by_ingest)?;
    let removed_instances =
        removed.iter().map(|p| format!("{}|{}|{}", p.instance_id, p.tenant_id, p.dp_rank)).collect();
    Ok(json(StatusCode::OK, &Unregistered { status: "unregistered successfully", removed_instances }))
}

/// Runs what may wait for a disk where waiting does no harm.
async fn off_the_loop<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> Result<R, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "registration ended early");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "body", "the registration ended early, see the log")
    })
}

fn refuse(error: RegistrationError) -> Refusal {
    Refusal::bad(error.field, error.to_string())
}

/// A refused registration, by the names that the fields have here.
fn refuse_by_ingest(error: RegisterError) -> Refusal {
    let (status, field) = match &error {
        RegisterError::Invalid { field, .. } | RegisterError::Address { field, .. } => {
            let field = if *field == "model" { "modelname" } else { field };
            (StatusCode::BAD_REQUEST, field)
        }
        RegisterError::TooMany { .. } => (StatusCode::TOO_MANY_REQUESTS, "instance_id"),
        RegisterError::Catalog(_) => {
            tracing::error!(%error, "registrations are not kept");
            (StatusCode::INTERNAL_SERVER_ERROR, "data_dir")
        }
    };
    Refusal::new(status, field, error.to_string())
}

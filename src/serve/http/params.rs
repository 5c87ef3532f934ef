//! What may stand behind the `?` of an address?

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use serde::Deserialize;

use super::error::Refusal;

/// The parameters of an address, or why they cannot be read.
pub(super) type Params<T> = Result<Query<T>, QueryRejection>;

/// `?format=`
#[derive(Debug, Default, Deserialize)]
pub(super) struct Format {
    format: Option<String>,
}

/// Whose answer shape is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Mooncake Conductor's, by tenant and instance.
    Conductor,
    /// That of Dynamo's standalone indexer.
    Dynamo,
}

/// `?model=&tenant_id=&instance_id=`; what is not named is not filtered by.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Filter {
    /// Model.
    pub model: Option<String>,
    /// Tenant.
    pub tenant_id: Option<String>,
    /// Instance.
    pub instance_id: Option<String>,
}

/// The parameters themselves.
pub(super) fn read<T>(params: Params<T>) -> Result<T, Refusal> {
    match params {
        Ok(Query(params)) => Ok(params),
        Err(error) => Err(Refusal::bad("query string", error.body_text())),
    }
}

/// The shape asked for.
pub(super) fn read_shape(params: Params<Format>) -> Result<Shape, Refusal> {
    match read(params)?.format.as_deref() {
        None | Some("mooncake") => Ok(Shape::Conductor),
        Some("dynamo") => Ok(Shape::Dynamo),
        Some(other) => Err(Refusal::bad("format", format!("{other:?} is not known; use mooncake or dynamo"))),
    }
}

//! What does a client read when its request cannot be served?

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// A refusal: a status and a JSON body that names the field at fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    status: StatusCode,
    body: RefusalBody,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct RefusalBody {
    error: String,
    /// A field of the body or of the query string; "body", "path" or "method" where the
    /// request as a whole is at fault.
    field: String,
}

impl Refusal {
    /// A refusal with `status`; `field` is what the client has to change.
    pub(super) fn new(status: StatusCode, field: impl Into<String>, error: impl Into<String>) -> Self {
        Refusal { status, body: RefusalBody { error: error.into(), field: field.into() } }
    }

    /// 400: `field` is not what it must be.
    pub(super) fn bad(field: impl Into<String>, error: impl Into<String>) -> Self {
        Refusal::new(StatusCode::BAD_REQUEST, field, error)
    }

    /// 400: `field` must be there.
    pub(super) fn missing(field: &'static str) -> Self {
        Refusal::bad(field, format!("{field} is required"))
    }

    #[cfg(test)]
    pub(super) fn parts(&self) -> (u16, &str, &str) {
        (self.status.as_u16(), &self.body.field, &self.body.error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        json(self.status, &self.body)
    }
}

/// A response of `value` as JSON.
pub(super) fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    // Only maps with keys that are no strings fail, and no answer has such.
    let body = serde_json::to_vec(value).expect("answers have string keys");
    let json = HeaderValue::from_static("application/json");
    (status, [(header::CONTENT_TYPE, json)], body).into_response()
}

//! How is it made sure that looking costs the same however many look?

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::Mutex;

use crate::serve::Service;

/// How old an answer may be.
pub const KEPT: Duration = Duration::from_millis(800);

/// The last answers.
#[derive(Debug, Default)]
pub(in crate::serve::http) struct Views {
    pub overview: View,
    pub prefixes: View,
}

/// One kind of answer, made when it is asked for and kept for [`KEPT`].
#[derive(Debug, Default)]
pub(in crate::serve::http) struct View(Mutex<Option<(Instant, Bytes)>>);

impl View {
    /// The answer, made anew if it is too old. Who asks meanwhile waits for it.
    pub async fn get<T: Serialize>(
        &self,
        service: &Arc<Service>,
        make: impl FnOnce(&Service) -> T + Send + 'static,
    ) -> Response {
        let mut kept = self.0.lock().await;
        let body = match &*kept {
            Some((at, body)) if at.elapsed() < KEPT => body.clone(),
            Some(_) | None => {
                let service = Arc::clone(service);
                // Takes locks that a registration may hold for a while.
                let made = tokio::task::spawn_blocking(move || {
                    serde_json::to_vec(&make(&service)).expect("answers have string keys")
                });
                let Ok(body) = made.await else {
                    return StatusCode::SERVICE_UNAVAILABLE.into_response();
                };
                let body = Bytes::from(body);
                *kept = Some((Instant::now(), body.clone()));
                body
            }
        };
        let json = HeaderValue::from_static("application/json");
        let once = HeaderValue::from_static("no-store");
        ([(header::CONTENT_TYPE, json), (header::CACHE_CONTROL, once)], body).into_response()
    }
}

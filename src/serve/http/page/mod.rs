//! What do people look at? A page at `/` and the JSON that it shows.
//!
//! The page is a few files inside the binary; it asks nobody but kvd. Its data is made at most once in
//! [`views::KEPT`], however many look, and never by walking the index.

mod explain;
mod files;
mod overview;
mod prefixes;
#[cfg(test)]
mod tests;
mod views;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

use super::Http;

pub(super) use views::Views;

/// Paths and methods of the page.
pub(super) fn routes() -> Router<Arc<Http>> {
    Router::new()
        .route("/", get(files::root))
        .route("/page/{name}", get(files::file))
        .route("/v1/overview", get(overview::overview))
        .route("/v1/prefixes", get(prefixes::prefixes))
        .route("/v1/explain", post(explain::explain))
}

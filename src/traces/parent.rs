//! Whose question is it? The caller's span, from the `traceparent` header of gRPC and HTTP alike.

use std::task::{Context as TaskContext, Poll};

use axum::http::{HeaderMap, Request};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tokio::task::futures::TaskLocalFuture;
use tower::{Layer, Service};

tokio::task_local! {
    static PARENT: Option<Context>;
}

/// The caller's span; none where it sent none, or asked on a stream.
pub(super) fn current() -> Context {
    PARENT.try_with(|p| p.clone().unwrap_or_default()).unwrap_or_default()
}

/// Keeps the caller's span at hand while its request is answered.
#[derive(Clone, Copy, Debug)]
pub struct Parents {
    /// Whether spans are made at all.
    pub wanted: bool,
}

impl<S> Layer<S> for Parents {
    type Service = WithParent<S>;

    fn layer(&self, inner: S) -> WithParent<S> {
        WithParent { inner, wanted: self.wanted }
    }
}

/// A service with the caller's span at hand.
#[derive(Clone, Debug)]
pub struct WithParent<S> {
    inner: S,
    wanted: bool,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for WithParent<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = TaskLocalFuture<Option<Context>, S::Future>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let asked = self.wanted && request.headers().contains_key("traceparent");
        let parent = asked.then(|| TraceContextPropagator::new().extract(&Headers(request.headers())));
        PARENT.scope(parent, self.inner.call(request))
    }
}

struct Headers<'h>(&'h HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|k| k.as_str()).collect()
    }
}

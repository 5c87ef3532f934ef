//! What every call passes, whichever transport it comes by.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::{BoxFuture, Either};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use tonic::Code;
use tower::{Layer, Service};

use super::access::Access;
use super::wire::Caller;
use super::{Admission, Guard, Permit, Refusal};

/// Puts a service behind the guard.
#[derive(Clone, Debug)]
pub struct GateLayer {
    guard: Arc<Guard>,
}

impl GateLayer {
    /// Of `guard`.
    pub fn new(guard: Arc<Guard>) -> GateLayer {
        GateLayer { guard }
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { inner, guard: Arc::clone(&self.guard) }
    }
}

/// A service behind the guard.
#[derive(Clone, Debug)]
pub struct Gate<S> {
    inner: S,
    guard: Arc<Guard>,
}

/// The body of an answer, and with it the transport.
pub trait Answer: Sized + Send + 'static {
    /// Which right a request needs.
    fn access<B>(request: &Request<B>) -> Access;
    /// How a refusal is said.
    fn refuse(refusal: Refusal) -> Response<Self>;
    /// The same body, which keeps `permit` until it ends.
    fn hold(self, permit: Permit) -> Self;
}

impl Answer for tonic::body::Body {
    fn access<B>(request: &Request<B>) -> Access {
        Access::of_grpc(request.uri().path())
    }

    fn refuse(refusal: Refusal) -> Response<Self> {
        let code = match refusal {
            Refusal::NoToken | Refusal::Unknown => Code::Unauthenticated,
            Refusal::Forbidden(_) => Code::PermissionDenied,
            // Another replica may know.
            Refusal::Unreviewed(_) => Code::Unavailable,
            Refusal::TooManyAtATime | Refusal::TooOften => Code::ResourceExhausted,
        };
        tonic::Status::new(code, refusal.to_string()).into_http()
    }

    fn hold(self, permit: Permit) -> Self {
        tonic::body::Body::new(Held { inner: self, _permit: permit })
    }
}

impl Answer for axum::body::Body {
    fn access<B>(request: &Request<B>) -> Access {
        Access::of_http(request.method(), request.uri().path())
    }

    fn refuse(refusal: Refusal) -> Response<Self> {
        let (status, field) = match refusal {
            Refusal::NoToken | Refusal::Unknown => (StatusCode::UNAUTHORIZED, "authorization"),
            Refusal::Forbidden(_) => (StatusCode::FORBIDDEN, "authorization"),
            Refusal::Unreviewed(_) => (StatusCode::SERVICE_UNAVAILABLE, "authorization"),
            Refusal::TooManyAtATime | Refusal::TooOften => (StatusCode::TOO_MANY_REQUESTS, "requests"),
        };
        let text = serde_json::json!({"error": refusal.to_string(), "field": field}).to_string();
        let mut response = Response::new(axum::body::Body::from(text));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    fn hold(self, permit: Permit) -> Self {
        axum::body::Body::new(Held { inner: self, _permit: permit })
    }
}

impl<S, B, R> Service<Request<B>> for Gate<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
    R: Answer,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<S::Future, BoxFuture<'static, Result<Response<R>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if self.guard.is_open() {
            return Either::Left(self.inner.call(request));
        }
        let nobody = Caller::default();
        let caller = request.extensions().get::<Caller>().unwrap_or(&nobody);
        match self.guard.admit(R::access(&request), request.headers(), caller) {
            Admission::Now(Ok(None)) => Either::Left(self.inner.call(request)),
            Admission::Now(Ok(Some(permit))) => {
                let answer = self.inner.call(request);
                Either::Right(Box::pin(async move { Ok(answer.await?.map(|body| body.hold(permit))) }))
            }
            Admission::Now(Err(refusal)) => {
                Either::Right(Box::pin(std::future::ready(Ok(R::refuse(refusal)))))
            }
            Admission::Later(admitted) => {
                // What is ready is this one, not its copy.
                let copy = self.inner.clone();
                let mut inner = std::mem::replace(&mut self.inner, copy);
                Either::Right(Box::pin(async move {
                    match admitted.await {
                        Ok(None) => inner.call(request).await,
                        Ok(Some(permit)) => Ok(inner.call(request).await?.map(|body| body.hold(permit))),
                        Err(refusal) => Ok(R::refuse(refusal)),
                    }
                }))
            }
        }
    }
}

/// A body, and what is kept until it ends.
struct Held<B> {
    inner: B,
    _permit: Permit,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Held<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

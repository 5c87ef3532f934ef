//! The connection to kvd and the calls on it.

use std::time::Duration;

use kvproto::rpc::kv;
use kvproto::rpc::kv::index_service_client::IndexServiceClient;
use kvproto::rpc::kv::transfer_service_client::TransferServiceClient;
use tonic::codegen::tokio_stream;
use tonic::{Request, Response, Status};

use crate::connect::{Dial, Link};
use crate::{
    ConnectError, HashSpec, HashSpecCall, Outcome, OutcomeCall, Outcomes, Routed, RoutingCall, ScoreCall,
    ScoreError, Scores, Security,
};

/// How a client connects and how long it waits.
#[derive(Clone, Debug)]
pub struct Builder {
    endpoint: String,
    dial: Dial,
    deadline: Duration,
}

impl Builder {
    /// Gives up dialling after this long; 1 s unless set.
    pub fn connect_timeout(self, timeout: Duration) -> Builder {
        Builder { dial: Dial { connect_timeout: timeout, ..self.dial }, ..self }
    }

    /// Encrypts, and shows what a guarded kvd asks for; nothing of it unless set. The address is then
    /// `https://host:port` where there is a CA.
    pub fn security(self, security: Security) -> Builder {
        Builder { dial: Dial { security, ..self.dial }, ..self }
    }

    /// Every call ends after this long, answered or not; 5 ms unless set.
    pub fn deadline(self, deadline: Duration) -> Builder {
        Builder { deadline, ..self }
    }

    /// Connects now.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] where the address makes no sense or nothing answers there in time.
    pub async fn connect(self) -> Result<ScorerClient, ConnectError> {
        match self.dial.endpoint(&self.endpoint, None)?.connect().await {
            Ok(channel) => Ok(ScorerClient::over(self.dial.link(channel), self.deadline)),
            Err(source) => Err(ConnectError::Unreachable { endpoint: self.endpoint, source }),
        }
    }

    /// Connects with the first call, so that a scheduler starts whether or not kvd is there.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Endpoint`] where the address makes no sense.
    pub fn connect_lazy(self) -> Result<ScorerClient, ConnectError> {
        let channel = self.dial.endpoint(&self.endpoint, None)?.connect_lazy();
        Ok(ScorerClient::over(self.dial.link(channel), self.deadline))
    }
}

/// A connection to kvd. Clones share it; it reconnects by itself after a loss.
#[derive(Clone, Debug)]
pub struct ScorerClient {
    pub(crate) inner: IndexServiceClient<Link>,
    transfers: TransferServiceClient<Link>,
    pub(crate) deadline: Duration,
}

impl ScorerClient {
    /// Connects to `http://host:port` with the default timeouts.
    ///
    /// # Errors
    ///
    /// As [`Builder::connect`].
    pub async fn connect(endpoint: impl Into<String>) -> Result<ScorerClient, ConnectError> {
        ScorerClient::builder(endpoint).connect().await
    }

    /// A client of `http://host:port` with other timeouts.
    pub fn builder(endpoint: impl Into<String>) -> Builder {
        Builder { endpoint: endpoint.into(), dial: Dial::default(), deadline: Duration::from_millis(5) }
    }

    /// The same connection with another deadline for its calls.
    pub fn with_deadline(&self, deadline: Duration) -> ScorerClient {
        ScorerClient { deadline, ..self.clone() }
    }

    /// A client on a connection that somebody else made.
    pub(crate) fn over(link: Link, deadline: Duration) -> ScorerClient {
        ScorerClient {
            inner: IndexServiceClient::new(link.clone()),
            transfers: TransferServiceClient::new(link),
            deadline,
        }
    }

    pub(crate) fn transfers(&self) -> TransferServiceClient<Link> {
        self.transfers.clone()
    }

    /// How much of a prompt every candidate holds.
    ///
    /// # Errors
    ///
    /// [`ScoreError`]; an unknown model or candidate is an answer, not an error.
    pub async fn score(&self, call: ScoreCall) -> Result<Scores, ScoreError> {
        let answer = self.within(call.wire, |mut c, r| async move { c.score(r).await }).await?;
        Ok(answer.into())
    }

    /// Notes where a request went: its blocks count as speculative there until they arrive.
    ///
    /// # Errors
    ///
    /// [`ScoreError`]; an unknown endpoint is an answer, not an error.
    pub async fn record_routing(&self, call: RoutingCall) -> Result<Routed, ScoreError> {
        let answer = self.within(call.wire, |mut c, r| async move { c.record_routing(r).await }).await?;
        Ok(answer.into())
    }

    /// Takes back what [`record_routing`](Self::record_routing) noted. False where nothing was.
    ///
    /// # Errors
    ///
    /// [`ScoreError`].
    pub async fn forget_routing(&self, request_id: impl Into<String>) -> Result<bool, ScoreError> {
        let request = kv::ForgetRoutingRequest { request_id: request_id.into() };
        let answer = self.within(request, |mut c, r| async move { c.forget_routing(r).await }).await?;
        Ok(answer.found)
    }

    /// Tells what an engine really had cached for a request that was scored.
    ///
    /// # Errors
    ///
    /// [`ScoreError`]; a request that kvd does not know (any more) is an answer, not an error.
    pub async fn report_outcome(&self, call: OutcomeCall) -> Result<Outcome, ScoreError> {
        let answer = self.within(call.wire, |mut c, r| async move { c.report_outcome(r).await }).await?;
        Ok(answer.into())
    }

    /// The same for many requests, which costs less than a call for each.
    ///
    /// # Errors
    ///
    /// [`ScoreError`]; a report that makes no sense is counted in the answer.
    pub async fn report_outcomes<I>(&self, calls: I) -> Result<Outcomes, ScoreError>
    where
        I: IntoIterator<Item = OutcomeCall>,
        I::IntoIter: Send + 'static,
    {
        let reports = tokio_stream::iter(calls.into_iter().map(|call| call.wire));
        let answer = self.within(reports, |mut c, r| async move { c.report_outcomes(r).await }).await?;
        Ok(answer.into())
    }

    /// How to hash prompts. Ask again when the model's engines change.
    ///
    /// # Errors
    ///
    /// [`ScoreError`].
    pub async fn hash_spec(&self, call: HashSpecCall) -> Result<HashSpec, ScoreError> {
        let answer = self.within(call.wire, |mut c, r| async move { c.get_hash_spec(r).await }).await?;
        Ok(answer.into())
    }

    /// Makes one call that ends at the deadline.
    async fn within<Q, A, F>(
        &self,
        message: Q,
        call: impl FnOnce(IndexServiceClient<Link>, Request<Q>) -> F,
    ) -> Result<A, ScoreError>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut request = Request::new(message);
        // Tells the server when to stop working on it. The timer here is what is relied on: it
        // also covers the answer's body and a connection that is still being made.
        request.set_timeout(self.deadline);
        match tokio::time::timeout(self.deadline, call(self.inner.clone(), request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(ScoreError::from_status(&status, self.deadline)),
            Err(_) => Err(ScoreError::Deadline { after: self.deadline }),
        }
    }
}

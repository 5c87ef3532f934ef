//! Which replica answers, and how is it asked?
//!
//! A transfer's home is the first replica that can be reached in the order of its request's
//! hash, so that callers may ask any. A replica that did not answer is not asked for a while.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvproto::rpc::kv;
use kvproto::rpc::kv::transfer_service_client::TransferServiceClient;
use parking_lot::Mutex;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};

use super::{TransferError, Transfers};
use crate::guard::Dialer;
use crate::guard::dial::Link;
use crate::transfer::home::Replicas;
use crate::transfer::ledger::{State, TransferId};

/// Connections that are kept to replicas that the ledger named.
const MAX_FOUND: usize = 256;

/// How long a replica that did not answer is left alone.
const LEFT_ALONE: Duration = Duration::from_secs(1);

/// Connections to the other replicas.
pub(super) struct Peers {
    began: Instant,
    timeout: Duration,
    peers: Vec<Option<Peer>>,
    /// Those that are found by their address alone.
    found: Mutex<HashMap<String, TransferServiceClient<Link>>>,
    dialer: Dialer,
}

struct Peer {
    client: TransferServiceClient<Link>,
    /// Milliseconds since `began`.
    alone_until: AtomicU64,
}

impl Peers {
    pub fn new(replicas: &Replicas, timeout: Duration, dialer: &Dialer) -> Peers {
        let peer = |place: usize| {
            let url = replicas.url(place).filter(|_| place != replicas.me())?;
            // An address that makes no sense was refused by the configuration.
            let endpoint = Endpoint::from_shared(url.to_owned()).ok()?.connect_timeout(timeout);
            let client = TransferServiceClient::new(dialer.connect_lazily(&endpoint, timeout));
            Some(Peer { client, alone_until: AtomicU64::new(0) })
        };
        let peers = if replicas.is_empty() { vec![] } else { (0..replicas.len()).map(peer).collect() };
        let (found, dialer) = (Mutex::default(), dialer.clone());
        Peers { began: Instant::now(), timeout, peers, found, dialer }
    }

    /// Asks the replica at `place`. `None` where there is none, or it is left alone.
    async fn ask<A, F: Future<Output = Result<tonic::Response<A>, Status>>>(
        &self,
        place: usize,
        call: impl FnOnce(TransferServiceClient<Link>) -> F,
    ) -> Option<Result<A, Status>> {
        let peer = self.peers.get(place)?.as_ref()?;
        let now = self.began.elapsed().as_millis() as u64;
        if now < peer.alone_until.load(Ordering::Relaxed) {
            return Some(Err(Status::unavailable("did not answer a moment ago")));
        }
        let answer = tokio::time::timeout(self.timeout, call(peer.client.clone())).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("did not answer in time")));
        let answer = answer.map(tonic::Response::into_inner);
        if answer.as_ref().is_err_and(unreachable) {
            peer.alone_until.store(now + LEFT_ALONE.as_millis() as u64, Ordering::Relaxed);
        }
        Some(answer)
    }

    /// Asks the replica at an address that the ledger named.
    pub async fn ask_at<A, F: Future<Output = Result<tonic::Response<A>, Status>>>(
        &self,
        address: &str,
        call: impl FnOnce(TransferServiceClient<Link>) -> F,
    ) -> Result<A, Status> {
        let client = {
            let mut found = self.found.lock();
            if found.len() >= MAX_FOUND && !found.contains_key(address) {
                // Replicas come and go; those that are there are found again.
                found.clear();
            }
            match found.get(address) {
                Some(client) => client.clone(),
                None => {
                    let endpoint = Endpoint::from_shared(address.to_owned());
                    let endpoint = endpoint.map_err(|e| Status::unavailable(format!("{address}: {e}")))?;
                    let endpoint = endpoint.connect_timeout(self.timeout);
                    let link = self.dialer.connect_lazily(&endpoint, self.timeout);
                    found.entry(address.to_owned()).or_insert(TransferServiceClient::new(link)).clone()
                }
            }
        };
        match tokio::time::timeout(self.timeout, call(client)).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::unavailable("the transfer's home did not answer in time, ask again")),
        }
    }

    pub async fn get(
        &self,
        place: usize,
        request: kv::GetTransferRequest,
    ) -> Option<Result<kv::TransferReply, Status>> {
        self.ask(place, |mut c| async move { c.get_transfer(request).await }).await
    }
}

/// A request about one transfer, which any replica may be asked.
pub(super) trait Forwardable: Clone + Send {
    /// Marks it, so that it goes no farther.
    fn forwarded(&mut self);
    /// Asks another replica.
    fn send(
        self,
        client: TransferServiceClient<Link>,
    ) -> impl Future<Output = Result<tonic::Response<kv::TransferReply>, Status>> + Send;
}

macro_rules! forwardable {
    ($message:ty, $call:ident) => {
        impl Forwardable for $message {
            fn forwarded(&mut self) {
                self.forwarded = true;
            }

            async fn send(
                self,
                mut client: TransferServiceClient<Link>,
            ) -> Result<tonic::Response<kv::TransferReply>, Status> {
                client.$call(Request::new(self)).await
            }
        }
    };
}

forwardable!(kv::ReportTransferRequest, report_transfer);
forwardable!(kv::RenewTransferRequest, renew_transfer);
forwardable!(kv::CancelTransferRequest, cancel_transfer);
forwardable!(kv::GetTransferRequest, get_transfer);

impl Transfers {
    /// Has the plan's home answer. `None` = this replica is to.
    pub(super) async fn forward_plan(
        &self,
        request: &kv::PlanTransferRequest,
    ) -> Result<Option<kv::PlanTransferResponse>, TransferError> {
        if request.forwarded || self.peers.peers.is_empty() || request.request_id.is_empty() {
            return Ok(None);
        }
        let home = TransferId::new(&request.request_id, 0).request;
        for place in self.config.replicas.homes(home) {
            if place == self.config.replicas.me() {
                return Ok(None);
            }
            let request = kv::PlanTransferRequest { forwarded: true, ..request.clone() };
            let answer = self.peers.ask(place, |mut c| async move { c.plan_transfer(request).await }).await;
            match answer {
                Some(Err(status)) if unreachable(&status) => {}
                None => {}
                Some(answer) => {
                    self.tally.lock().forwarded += 1;
                    return answer.map(Some).map_err(TransferError::Forwarded);
                }
            }
        }
        Ok(None)
    }

    /// Has the transfer's owner answer. `None` = this replica is to.
    pub(super) async fn forward<Q: Forwardable>(
        &self,
        id: TransferId,
        token: &str,
        forwarded: bool,
        request: &Q,
    ) -> Result<Option<kv::TransferReply>, TransferError> {
        if let Some(sharing) = &self.sharing {
            return self.forward_to_home(sharing, id, forwarded, request).await;
        }
        self.meet(id, token)?;
        let superseded =
            self.book(|b| b.get(id).map(|r| r.state == State::Superseded && !self.peers.peers.is_empty()));
        match superseded {
            Some(false) => return Ok(None),
            None if forwarded || self.peers.peers.is_empty() => return Ok(None),
            Some(true) if forwarded => return Ok(None),
            Some(true) | None => {}
        }
        let me = self.config.replicas.me();
        let owner = match token {
            "" => None,
            token => Some(self.config.replicas.owner(self.signer.open(token)?.epoch)),
        };
        let homes = self.config.replicas.homes(id.request);
        let others = homes.into_iter().filter(|p| Some(*p) != owner);
        for place in owner.into_iter().chain(others) {
            if place == me {
                if superseded.is_none() && !token.is_empty() {
                    return Ok(None); // whoever comes first and can be reached takes it over
                }
                continue;
            }
            let mut request = request.clone();
            request.forwarded();
            match self.peers.ask(place, |client| request.send(client)).await {
                None => {}
                Some(Err(status)) if unreachable(&status) || status.code() == Code::NotFound => {}
                Some(answer) => {
                    self.tally.lock().forwarded += 1;
                    return answer.map(Some).map_err(TransferError::Forwarded);
                }
            }
        }
        Ok(None)
    }
}

/// Whether another replica may do better.
fn unreachable(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Unimplemented | Code::Cancelled => true,
        Code::Ok
        | Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}

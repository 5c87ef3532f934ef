//! Which blocks will an engine hold soon, because a request was just routed to it?
//!
//! Schedulers announce their decisions; the blocks count as speculative until the time to
//! live is over. The index keeps no clock: deadlines are milliseconds since the service
//! began, and one task takes back what is due while there is anything to take back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvindex::{HolderId, Query};
use tokio::sync::Notify;

use super::check::at_most;
use super::{AskError, Counters, Service, Told, endpoint};

/// How late after its deadline an announcement may still count.
const EXPIRY_STEP: Duration = Duration::from_millis(20);

/// A request goes to a decode and perhaps a prefill and an encode endpoint; the rest is slack.
const MAX_ENDPOINTS: usize = 64;

/// When announcements are due.
#[derive(Debug, Default)]
pub(crate) struct RoutingClock {
    announced: Notify,
    /// The latest deadline of all, in milliseconds since the service began.
    last_due: AtomicU64,
}

/// An endpoint that a request was routed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The instance, either form of its name.
    pub instance: String,
    /// Data-parallel rank.
    pub rank: u32,
}

/// What an announcement came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// (Block, endpoint) pairs noted.
    pub blocks: usize,
    /// Endpoints that are not registered.
    pub missing: Vec<Endpoint>,
}

impl Service {
    /// Notes that the request was routed to `endpoints`; the prompt's blocks count as
    /// speculative there for `ttl` (`None` = the configured time). A second call for the same
    /// request replaces the first. Where a client said it, the nodes hear what they will be asked for.
    pub fn record_routing(
        &self,
        request_id: &str,
        query: &Query<'_>,
        endpoints: Vec<Endpoint>,
        ttl: Option<Duration>,
        told: Told,
    ) -> Result<Recorded, AskError> {
        self.check_request_id(request_id)?;
        let ttl = ttl.unwrap_or(self.limits.speculative_ttl);
        if ttl > self.limits.max_speculative_ttl {
            let most = self.limits.max_speculative_ttl.as_millis();
            return Err(AskError::invalid("ttl_ms", format!("{} is over {most}", ttl.as_millis())));
        }
        if endpoints.is_empty() {
            return Err(AskError::invalid("endpoints", "empty"));
        }
        at_most("endpoints", MAX_ENDPOINTS, endpoints.len())?;
        let names: Vec<&str> = endpoints.iter().map(|e| e.instance.as_str()).collect();
        let query = Query { instances: &names, ..*query };
        let due = self.uptime_ms() + ttl.as_millis() as u64;
        let (to_come, holders) = self.prepared(&query, |q| {
            let holders = self.holders(q.tenant, q.model, q.instances);
            let routed: Vec<HolderId> = holders
                .iter()
                .filter(|(_, spec)| endpoints.iter().any(|e| e.is(&spec.instance, spec.rank)))
                .map(|(id, _)| *id)
                .collect();
            if told == Told::ByClient {
                self.hint(q, &routed, ttl);
            }
            (self.index.to_come(q, &routed), holders)
        })?;
        // Who hears of it from a peer shares the servers with that peer, or should.
        if let (Some(mirror), Told::ByClient) = (&self.mirror, told) {
            mirror.announce(request_id, &to_come, ttl);
        }
        let blocks = self.index.announce_blocks(request_id, to_come, due);
        Counters::add(&self.counters.routings, 1);
        self.routing.last_due.fetch_max(due, Ordering::AcqRel);
        self.routing.announced.notify_one();
        let missing = endpoints
            .into_iter()
            .filter(|e| !holders.iter().any(|(_, spec)| e.is(&spec.instance, spec.rank)))
            .collect();
        Ok(Recorded { blocks, missing })
    }

    /// Takes back what [`record_routing`](Self::record_routing) noted; false where nothing was.
    pub fn forget_routing(&self, request_id: &str, told: Told) -> Result<bool, AskError> {
        self.check_request_id(request_id)?;
        let shared = match (&self.mirror, told) {
            (Some(mirror), Told::ByClient) => mirror.forget(request_id),
            (Some(_) | None, _) => false,
        };
        Ok(self.index.forget(request_id) || shared)
    }

    /// Takes announcements back when they are due. Never returns; one task runs it.
    pub async fn expire_routings(&self) {
        loop {
            self.routing.announced.notified().await;
            loop {
                tokio::time::sleep(EXPIRY_STEP).await;
                let now = self.uptime_ms();
                Counters::add(&self.counters.routings_expired, self.index.expire(now) as u64);
                // An announcement made since leaves a permit, which `notified` above consumes.
                if now >= self.routing.last_due.load(Ordering::Acquire) {
                    break;
                }
            }
        }
    }

    fn check_request_id(&self, request_id: &str) -> Result<(), AskError> {
        if request_id.is_empty() {
            return Err(AskError::invalid("request_id", "empty"));
        }
        self.check_text("request_id", request_id)
    }
}

impl Endpoint {
    fn is(&self, instance: &str, rank: u32) -> bool {
        self.rank == rank && endpoint::same(&self.instance, instance)
    }
}

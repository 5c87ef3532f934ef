//! Which pod holds which prefix, told by servers that all replicas share?
//!
//! ```text
//! Batch ─▶ kvindex::remote::changes ─▶ Writer (one per publisher) ─▶ Valkey ─▶ Shared::query ─▶ Answer
//! ```
//!
//! Read `keys` and `record` for what is written, then `apply` (what an event changes), `writer` (how it is
//! written and by whom), `reader` (how questions are answered); `routings` is what schedulers announce. What blocks are called, what an engine's events
//! tell and how it counts is [`kvindex::remote`]'s, so that both indexes answer alike.
//!
//! Not kept here: what one engine tells of names for others of its hash domain, the tiers of a node, what was
//! held before a loss, llm-d's request keys. Questions that need them are refused.

mod apply;
mod bytes;
mod keys;
mod news;
mod reader;
mod record;
mod routings;
mod server;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kvindex::{Answer, HolderId, HolderSpec, Query};
use kvproto::SeqHash;
use parking_lot::RwLock;
use redis::RedisError;

pub use keys::{Keys, PARTITIONS, escaped};
pub use reader::{Asked, QueryError, Standing, Vouched};
pub use record::{Cursor, Foreign, Health, MAX_NOTE};
pub use server::Config;
pub use writer::{Claim, WriteError, Writer};

/// The servers themselves, for who keeps something else there.
pub mod link {
    pub use crate::server::{Answers, Server, odd_answer};
}

use reader::Member;
use routings::Feed;
use server::Server;

/// A publisher that cannot be kept here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// It is a node's tiers.
    #[error("the shared index does not keep the tiers of a node")]
    Tiers,
}

/// The index, as one of those who share it sees it.
#[derive(Debug)]
pub struct Shared {
    server: Server,
    config: Arc<Config>,
    next_id: AtomicU32,
    members: RwLock<Vec<Arc<Member>>>,
    routings: Feed,
}

impl Shared {
    /// Connects to the servers.
    ///
    /// # Errors
    /// Where none of them can be reached, or they refuse.
    pub async fn connect(config: Config) -> Result<Shared, RedisError> {
        let server = Server::connect(&config).await?;
        let (next_id, members) = (AtomicU32::new(0), RwLock::default());
        let routings = Feed::new(&config.namespace, config.max_speculative);
        Ok(Shared { server, config: Arc::new(config), next_id, members, routings })
    }

    /// What it is set to.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Answers questions about a publisher from now on. Who else shares the index does not hear of it.
    ///
    /// # Errors
    /// For what cannot be kept here.
    pub fn attach(&self, spec: HolderSpec) -> Result<HolderId, AttachError> {
        let id = HolderId(self.next_id.fetch_add(1, Ordering::Relaxed));
        self.attach_as(id, spec).map(|()| id)
    }

    /// The same under an id that the caller gives out.
    ///
    /// # Errors
    /// For what cannot be kept here.
    pub fn attach_as(&self, id: HolderId, spec: HolderSpec) -> Result<(), AttachError> {
        if spec.tiers {
            return Err(AttachError::Tiers);
        }
        self.members.write().push(Arc::new(Member::new(id, &self.config.namespace, spec)));
        Ok(())
    }

    /// Answers no more questions about it. What is written stays until its writer retires it or it expires.
    pub fn detach(&self, id: HolderId) -> bool {
        let mut members = self.members.write();
        let before = members.len();
        members.retain(|m| m.id != id);
        members.len() < before
    }

    /// Tries to become the writer of an attached publisher, under a name that is this process's alone. `known` is
    /// what this process's last writer of it ended with ([`Writer::last`]).
    ///
    /// # Errors
    /// Where the servers do not answer, or another writer was faster.
    pub async fn claim(&self, id: HolderId, owner: &str, known: Option<&[u8]>) -> Result<Claim, WriteError> {
        let member = self.members.read().iter().find(|m| m.id == id).cloned();
        let spec = member.ok_or(WriteError::Lost)?.spec.clone();
        Writer::claim(&self.server, &self.config, spec, owner, known).await
    }

    /// How much of a prompt each candidate holds, and how far that can be trusted.
    ///
    /// # Errors
    /// For questions that are not answered from here, or where no server answers.
    pub async fn query(&self, query: &Query<'_>) -> Result<Asked, QueryError> {
        let query = &Query { block_size: query.block_size.filter(|&b| b > 0), ..*query };
        let (mut known, mut members) = (false, Vec::new());
        for m in self.members.read().iter() {
            if m.spec.tenant != query.tenant || m.spec.model != query.model {
                continue;
            }
            known = true;
            let asked = query.instances.is_empty() || query.instances.contains(&m.spec.instance.as_str());
            if asked && query.salt.is_none_or(|s| s == m.spec.salt) {
                members.push(Arc::clone(m));
            }
        }
        if !known {
            let answer = Answer { unknown_model: true, ..Answer::default() };
            return Ok(Asked { answer, vouched: Vec::new() });
        }
        reader::query(self, &members, query).await
    }

    /// Tells all who share the index that a request was routed to where it will store `blocks`: they count as
    /// speculative from now on, until the servers' `ttl` is over. A second call for a request replaces the first.
    /// Returns the (block, publisher) pairs; 0 where there would be too many, or of publishers that are not attached.
    ///
    /// # Errors
    /// Where the server does not answer; then they count for this process's own questions alone.
    pub async fn announce(
        &self,
        request: &str,
        blocks: &[(HolderId, Vec<SeqHash>)],
        ttl: Duration,
    ) -> Result<usize, RedisError> {
        let members = self.members.read().clone();
        let mut named: Vec<(HolderId, String, Arc<[SeqHash]>)> = Vec::with_capacity(blocks.len());
        for (holder, seqs) in blocks {
            let Some(m) = members.iter().find(|m| m.id == *holder) else { continue };
            let same = named.iter().find(|(_, _, known)| known[..] == seqs[..]);
            let seqs = same.map_or_else(|| seqs[..].into(), |(_, _, known)| Arc::clone(known));
            named.push((*holder, m.keys.id().to_owned(), seqs));
        }
        self.routings.announce(&self.server, request, named, ttl, |id| self.holder(id)).await
    }

    /// Takes a request's routing back, for all. False where there was none.
    ///
    /// # Errors
    /// Where the server does not answer; then it is forgotten here alone.
    pub async fn forget(&self, request: &str) -> Result<bool, RedisError> {
        self.routings.forget(&self.server, request).await
    }

    /// (Block, publisher) pairs that were announced, as far as this process has read.
    pub fn speculative(&self) -> usize {
        self.routings.known.pairs()
    }

    /// Takes in what was announced, or taken back, before this was called.
    async fn read_routings(&self) -> Result<(), RedisError> {
        self.routings.read(&self.server, |id| self.holder(id)).await
    }

    fn holder(&self, id: &str) -> Option<HolderId> {
        self.members.read().iter().rev().find(|m| m.keys.id() == id).map(|m| m.id)
    }
}

//! Which pod holds which prefix, in which tier?
//!
//! ```text
//! Batch ─▶ holder/ (what one engine's events say) ─▶ forest/ (strands of blocks, who holds what)
//!                                                       │
//! Query ─▶ walk (prompt → runs per candidate) ◀─────────┤ ─▶ score, hit ─▶ Answer
//! Blocks ─▶ matcher (prompt → levels) ◀─────────────────┘ ─▶ Matched
//! ```
//!
//! Read `types` for what goes in and out, then `forest`, `holder`, `walk`, `hit`. [`mod@reference`]
//! is the same in the slowest and most obvious way; every answer here must equal its answer, except
//! where one engine has two hashes for what its events describe alike (two adapters of one
//! name): nothing outside the engine can tell those apart. What one engine tells of a name also
//! holds for the others of its hash domain, so more may be known of an engine than it told itself.
//!
//! ```
//! use kvindex::{HolderSpec, Index, IndexConfig, Prompt, Query};
//! use kvproto::EngineHash;
//! use kvproto::event::{BatchBuilder, StoredFields};
//!
//! let index = Index::new(IndexConfig::default());
//! let pod = index.attach(HolderSpec::new("default", "llama", "10.0.0.1:8000", 0));
//! let mut batch = BatchBuilder::new(0.0, None);
//! let fields = StoredFields { block_size: 2, ..Default::default() };
//! batch.stored(fields, &[EngineHash(11), EngineHash(12)], &[1, 2, 3, 4], &[]);
//! index.apply(pod, &batch.build());
//!
//! let answer = index.query(&Query::new("default", "llama", Prompt::tokens(&[1, 2, 3, 4, 5])));
//! assert_eq!(answer.scores[0].cached, 2);
//! assert_eq!(answer.scores[0].cached_tokens, 4);
//! ```

mod announce;
mod below;
mod budget;
mod doubt;
mod forest;
mod hit;
mod holder;
mod inspect;
mod matcher;
mod names;
mod pool;
mod profile;
mod reach;
pub mod reference;
pub mod remote;
mod runs;
mod score;
pub mod snapshot;
pub mod types;
mod walk;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kvproto::hash::canonical::{Namespace, PromptExtras, prompt_hashes};
use kvproto::hash::llmd::{Llmd, RequestKey};
use kvproto::{Batch, SeqHash};
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;

pub use matcher::{Blocks, Continuation, Matched, Matcher};
pub use names::Named;
pub use types::*;

use announce::Announcements;
use forest::pin;
use pool::{Member, Pool, Seat};
use reach::Tiers;
use score::{Terms, score};

/// Limits of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexConfig {
    /// Distinct blocks that one holder may hold; more are refused and counted.
    pub max_blocks_per_holder: usize,
    /// (Block, holder) pairs that routing may announce.
    pub max_speculative: usize,
    /// Also names every block by llm-d's request keys of this deployment, so that
    /// [`Prompt::Llmd`] finds them. Costs one more hash and about 20 bytes a block.
    pub llmd: Option<Llmd>,
    /// Bytes that blocks, tables and holders may take together. Over it, the ends of the sequences
    /// that were in use longest ago are dropped and counted.
    pub max_bytes: u64,
}

impl Default for IndexConfig {
    fn default() -> Self {
        IndexConfig {
            max_blocks_per_holder: 8 << 20,
            max_speculative: 1 << 20,
            llmd: None,
            max_bytes: 8 << 30,
        }
    }
}

/// The index. All methods take `&self` and may be called from any thread; the batches of one
/// holder must be applied in order by one thread at a time.
#[derive(Debug)]
pub struct Index {
    config: IndexConfig,
    next_id: AtomicU32,
    directory: RwLock<Directory>,
    announcements: Mutex<Announcements>,
    /// Bytes of all pools, as they were after their last batch.
    bytes: AtomicU64,
    dropped: AtomicU64,
}

/// Who is attached where.
#[derive(Debug, Default)]
struct Directory {
    /// By tenant, then model.
    pools: HashMap<String, HashMap<String, Arc<Pool>>>,
    members: FxHashMap<HolderId, (Arc<Pool>, Arc<Member>)>,
    /// What holders held before a loss, the latest first.
    suspects: FxHashMap<HolderId, Vec<Arc<Member>>>,
}

impl Index {
    /// An empty index.
    pub fn new(config: IndexConfig) -> Index {
        Index {
            config,
            next_id: AtomicU32::new(0),
            directory: RwLock::default(),
            announcements: Mutex::default(),
            bytes: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// What the index was made with.
    pub fn config(&self) -> &IndexConfig {
        &self.config
    }

    /// Adds a holder that holds nothing yet.
    pub fn attach(&self, spec: HolderSpec) -> HolderId {
        let id = HolderId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let mut dir = self.directory.write();
        let models = dir.pools.entry(spec.tenant.clone()).or_default();
        let new = || Arc::new(Pool::new(self.config.llmd.is_some()));
        let pool = models.entry(spec.model.clone()).or_insert_with(new).clone();
        let member = pool.add(id, Arc::new(spec), self.config.max_blocks_per_holder, self.config.llmd);
        dir.members.insert(id, (pool, member));
        id
    }

    /// Takes a holder and all it holds out. False where it was not attached.
    pub fn detach(&self, id: HolderId) -> bool {
        self.drop_suspects(id);
        let Some((pool, member)) = self.directory.write().members.remove(&id) else { return false };
        pool.remove(&member);
        // A holder may have been attached to the pool meanwhile: look again under the lock.
        let mut dir = self.directory.write();
        let (tenant, model) = (&member.spec.tenant, &member.spec.model);
        if pool.members.read().iter().all(Option::is_none)
            && let Some(models) = dir.pools.get_mut(tenant)
        {
            if models.get(model).is_some_and(|p| Arc::ptr_eq(p, &pool)) {
                models.remove(model);
                self.bytes.fetch_sub(pool.counted.swap(0, Ordering::Relaxed), Ordering::Relaxed);
            }
            if models.is_empty() {
                dir.pools.remove(tenant);
            }
        }
        true
    }

    /// Applies a batch; what it says is visible to queries on return. Changes nothing for a
    /// holder that is not attached.
    pub fn apply(&self, id: HolderId, batch: &Batch<'_>) -> Applied {
        match self.member(id) {
            Some((pool, member)) => self.apply_to(&pool, &member, batch),
            None => Applied::default(),
        }
    }

    /// A way to apply one holder's batches that does not look the holder up for each.
    pub fn feed(&self, id: HolderId) -> Option<Feed<'_>> {
        let (pool, member) = self.member(id)?;
        Some(Feed { index: self, pool, member })
    }

    fn apply_to(&self, pool: &Pool, member: &Member, batch: &Batch<'_>) -> Applied {
        if member.doubted.load(Ordering::Relaxed) {
            return self.apply_doubted(pool, member, batch);
        }
        let applied = pool.write(|holders, desk| {
            let holder = holders.get_mut(member.slot as usize)?.as_mut()?;
            let applied = holder.apply(batch, desk);
            member.show(holder, desk);
            if let Some(p) = holder.changed_profile() {
                pool.set_profile(member, p);
            }
            Some(applied)
        });
        self.keep_budget(pool);
        applied.unwrap_or_default()
    }

    /// Forgets all a holder holds and all that was learnt of it: a restart, or a loss that
    /// cannot be repaired.
    pub fn clear(&self, id: HolderId) {
        self.drop_suspects(id);
        let Some((pool, member)) = self.member(id) else { return };
        pool.write(|holders, desk| {
            let Some(Some(holder)) = holders.get_mut(member.slot as usize) else { return };
            holder.reset(desk);
            member.show(holder, desk);
            member.partial.store(false, Ordering::Relaxed);
            if let Some(p) = holder.changed_profile() {
                pool.set_profile(&member, p);
            }
        });
    }

    /// What a holder was attached as.
    pub fn spec(&self, id: HolderId) -> Option<Arc<HolderSpec>> {
        self.directory.read().members.get(&id).map(|(_, m)| m.spec.clone())
    }

    /// What each of `ids` was attached as.
    pub fn specs(&self, ids: impl Iterator<Item = HolderId>) -> Vec<Option<Arc<HolderSpec>>> {
        let dir = self.directory.read();
        ids.map(|id| dir.members.get(&id).map(|(_, m)| m.spec.clone())).collect()
    }

    /// How much of a prompt each candidate holds.
    pub fn query(&self, query: &Query<'_>) -> Answer {
        self.query_with(query, |seats| Tiers::of(seats))
    }

    /// The same without what candidates reach in tiers of nodes: what they hold themselves.
    pub fn query_own(&self, query: &Query<'_>) -> Answer {
        self.query_with(query, |_| Tiers::none())
    }

    /// Whether tiers of nodes are attached for a model.
    pub fn has_tiers(&self, tenant: &str, model: &str) -> bool {
        self.pool(tenant, model).is_some_and(|pool| pool.seats().iter().any(reach::is_tiers))
    }

    fn query_with(&self, query: &Query<'_>, tiers: impl for<'s> Fn(&'s [Seat]) -> Tiers<'s>) -> Answer {
        let query = &in_blocks(query);
        let Some(pool) = self.pool(query.tenant, query.model) else {
            return Answer { unknown_model: true, ..Answer::default() };
        };
        let guard = pin();
        let seats = pool.seats();
        let walk = walk::walk_with(&pool, &seats, query, &guard, &tiers(&seats));
        drop(guard);
        let suspects = doubt::Suspects::of(&walk.columns);
        let mut scores: Vec<Score> = walk
            .columns
            .iter()
            .filter(|c| c.member.suspect_of.is_none())
            .map(|c| {
                let terms = Terms {
                    block_size: query.block_size,
                    prompt_tokens: prompt_tokens(query, c.block_size),
                    weights: &query.weights,
                    items: items(query),
                };
                let announced = if query.speculative { c.held_or_announced() } else { 0 };
                let partial = c.member.partial.load(Ordering::Relaxed);
                let score =
                    score(c.member.id, &c.member.spec, c.profile, c.block_size, &c.runs, announced, &terms);
                let suspect = suspects.held(c).map_or(score.cached, |n| terms.whole(n, c.block_size));
                Score { partial, suspect, ..score }
            })
            .collect();
        // Seats are in the order of slots, and those are used again.
        if !scores.is_sorted_by_key(|s| s.holder) {
            scores.sort_unstable_by_key(|s| s.holder);
        }
        Answer { unknown_model: false, scores, block_size_mismatch: walk.block_size_mismatch }
    }

    /// A way to ask about one model's pods for which only matched blocks are wanted, without what a
    /// full answer takes. `salt` is the deployment's, part of what names blocks of tokens. `None`
    /// where no such pod is attached; a matcher made before goes on with the pods of then.
    pub fn matcher(&self, tenant: &str, model: &str, salt: &str) -> Option<Matcher> {
        Some(Matcher::new(self.pool(tenant, model)?, tenant, model, salt))
    }

    /// Notes that the prompt was routed to `holders`: its blocks count as speculative there
    /// until [`expire`](Self::expire) is called with a `now` of at least `expires` (any clock,
    /// one unit for both).
    ///
    /// Idempotent by `request`: a second call replaces the first. Returns the (block, holder)
    /// pairs noted; 0 where that would exceed the limit, or for a prompt given by engine hashes,
    /// which do not tell the canonical blocks.
    pub fn announce(&self, request: &str, query: &Query<'_>, holders: &[HolderId], expires: u64) -> usize {
        self.announce_blocks(request, self.to_come(query, holders), expires)
    }

    /// What [`announce`](Self::announce) notes of each holder: the blocks that the prompt will have there.
    pub fn to_come(&self, query: &Query<'_>, holders: &[HolderId]) -> Vec<(HolderId, Vec<SeqHash>)> {
        let query = &in_blocks(query);
        let Some(pool) = self.pool(query.tenant, query.model) else { return Vec::new() };
        let of_keys = |keys: &[RequestKey]| {
            let (guard, keys) = (pin(), keys.iter().map(|k| k.0).collect::<Vec<_>>());
            let found = pool.forests.domains().map(|d| pool.forests.get(d).seqs_by_keys(&guard, &keys));
            found.max_by_key(Vec::len).unwrap_or_default()
        };
        let mut blocks: Vec<(HolderId, Vec<SeqHash>)> = Vec::new();
        for &id in holders {
            let Some((of, member)) = self.member(id) else { continue };
            if Arc::ptr_eq(&of, &pool) && !blocks.iter().any(|(h, _)| *h == id) {
                let seqs = match query.prompt {
                    Prompt::Llmd(keys) => of_keys(keys),
                    Prompt::Tokens { .. } | Prompt::Local(_) | Prompt::Canonical(_) | Prompt::Engine(_) => {
                        canonical_hashes(query, &member)
                    }
                };
                blocks.push((id, seqs));
            }
        }
        blocks
    }

    /// [`announce`](Self::announce) for who knows the blocks, all of one model.
    pub fn announce_blocks(
        &self,
        request: &str,
        blocks: Vec<(HolderId, Vec<SeqHash>)>,
        expires: u64,
    ) -> usize {
        let mut at = None;
        let mut placed = Vec::with_capacity(blocks.len());
        for (id, seqs) in blocks {
            let Some((pool, member)) = self.member(id) else { continue };
            placed.push((id, member.slot, seqs));
            at = Some(pool);
        }
        let Some(pool) = at else {
            self.announcements.lock().remove(request);
            return 0;
        };
        self.announcements.lock().add(request, &pool.announced, placed, expires, self.config.max_speculative)
    }

    /// Takes back what [`announce`](Self::announce) noted. False where nothing was.
    pub fn forget(&self, request: &str) -> bool {
        self.announcements.lock().remove(request)
    }

    /// Takes back all announcements due at `now`; returns how many requests'.
    pub fn expire(&self, now: u64) -> usize {
        self.announcements.lock().expire(now)
    }

    fn member(&self, id: HolderId) -> Option<(Arc<Pool>, Arc<Member>)> {
        self.directory.read().members.get(&id).cloned()
    }

    fn pool(&self, tenant: &str, model: &str) -> Option<Arc<Pool>> {
        self.directory.read().pools.get(tenant)?.get(model).cloned()
    }
}

/// Applies the batches of one holder. It lives as long as the holder is attached; after that it
/// changes nothing.
#[derive(Debug)]
pub struct Feed<'i> {
    index: &'i Index,
    pool: Arc<Pool>,
    member: Arc<Member>,
}

impl Feed<'_> {
    /// See [`Index::apply`].
    pub fn apply(&self, batch: &Batch<'_>) -> Applied {
        if self.member.replaced.load(Ordering::Acquire) {
            return self.index.apply(self.member.id, batch);
        }
        self.index.apply_to(&self.pool, &self.member, batch)
    }
}

/// The query with "blocks of no tokens" read as the engine's own.
fn in_blocks<'a>(query: &Query<'a>) -> Query<'a> {
    Query { block_size: query.block_size.filter(|&b| b > 0), ..*query }
}

/// Tokens of the prompt asked about. A prompt given by hashes is taken to go on after them.
fn prompt_tokens(query: &Query<'_>, block_size: u32) -> u64 {
    let by_hash = |n: usize| n as u64 * u64::from(block_size) + 1;
    match query.prompt {
        Prompt::Tokens { tokens, .. } => tokens.len() as u64,
        Prompt::Local(hashes) => by_hash(hashes.len()),
        Prompt::Canonical(hashes) => by_hash(hashes.len()),
        Prompt::Engine(hashes) => by_hash(hashes.len()),
        Prompt::Llmd(keys) => by_hash(keys.len()),
    }
}

fn items<'a>(query: &Query<'a>) -> &'a [kvproto::hash::canonical::MmItem<'a>] {
    match query.prompt {
        Prompt::Tokens { items, .. } => items,
        Prompt::Local(_) | Prompt::Canonical(_) | Prompt::Engine(_) | Prompt::Llmd(_) => &[],
    }
}

/// The canonical names of the prompt's blocks as this holder would store them.
fn canonical_hashes(query: &Query<'_>, member: &Member) -> Vec<SeqHash> {
    let profile = member.profile.read().clone();
    match query.prompt {
        Prompt::Tokens { tokens, lora, cache_salt, items } => {
            let block_size = match profile.block_size_for(query.block_size) {
                // Nothing stored yet: what the caller says is the best guess.
                0 => query.block_size.unwrap_or(0),
                n => n,
            };
            if block_size == 0 {
                return Vec::new();
            }
            let seed = Namespace { salt: &member.spec.salt, model: query.model, lora }.seed();
            let extras = PromptExtras { cache_salt, items, form: profile.form };
            prompt_hashes(seed, tokens, block_size, extras).collect()
        }
        Prompt::Canonical(hashes) => hashes.to_vec(),
        // Own hashes tell the namespace they were computed in to nobody.
        Prompt::Local(_) | Prompt::Engine(_) | Prompt::Llmd(_) => Vec::new(),
    }
}

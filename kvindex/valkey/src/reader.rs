//! Answers questions from what writers wrote.
//!
//! One transaction per hash tag asks for the blocks, the cursor, the generation and the lease of every publisher
//! there, so that what is said of a publisher is of one moment. Which generation to ask for is remembered from the
//! last answer and checked by this one.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::{join, join_all};
use kvindex::remote::{Announced, Chain, Engine, Routings, Unsupported};
use kvindex::{Answer, HolderId, HolderSpec, Query, Score};
use parking_lot::Mutex;
use redis::{Pipeline, RedisError, cmd};

use crate::Shared;
use crate::keys::Keys;
use crate::record::{Cursor, META, Meta, block_field, mask_of, name_field};
use crate::server::{Answers, Server};

/// How far an answer about a publisher can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Exact, as of the cursor.
    Live,
    /// Its writer says that it is behind, or that something is missing.
    Behind,
    /// Nobody writes it at present: what is written may be out of date.
    Unowned,
    /// Another server process answers than the one written to last, or something was evicted: the last words may
    /// be missing.
    Unproven,
    /// Nothing is written.
    Nothing,
    /// The server did not answer.
    Unreachable,
}

/// What is said of one publisher besides its score.
#[derive(Clone, Debug, PartialEq)]
pub struct Vouched {
    /// How far the score can be trusted.
    pub standing: Standing,
    /// All that the engine stored since its start is known.
    pub complete: bool,
    /// Where its stream stood.
    pub cursor: Cursor,
}

/// An answer, and how far to trust it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// As [`kvindex::Index::query`] gives it; nothing is suspect.
    pub answer: Answer,
    /// Parallel to the scores.
    pub vouched: Vec<Vouched>,
}

/// A question that gets no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// Not kept here.
    #[error("the shared index does not answer {0}")]
    Unsupported(#[from] Unsupported),
    /// No server answered.
    #[error("{0}")]
    Server(RedisError),
}

/// One publisher that questions are about.
#[derive(Debug)]
pub(crate) struct Member {
    pub id: HolderId,
    pub spec: Arc<HolderSpec>,
    pub keys: Keys,
    /// As it was when last asked.
    pub view: Mutex<Arc<View>>,
}

/// Where to look for a publisher's blocks.
#[derive(Clone, Debug)]
pub(crate) struct View {
    generation: u64,
    incarnation: u32,
    engine: Engine,
}

impl Member {
    pub fn new(id: HolderId, namespace: &str, spec: HolderSpec) -> Member {
        let (keys, spec) = (Keys::new(namespace, &spec), Arc::new(spec));
        let view = View { generation: 0, incarnation: 0, engine: Engine::new(Arc::clone(&spec)) };
        Member { id, spec, keys, view: Mutex::new(Arc::new(view)) }
    }
}

/// Blocks asked for at first: most prompts are not held beyond by most publishers.
const FIRST: usize = 64;

/// How often a question is asked again because the publisher began a new generation meanwhile.
const TRIES: usize = 4;

/// One publisher within one question.
struct Column<'m> {
    member: &'m Member,
    view: Arc<View>,
    chain: Chain,
    /// Blocks to ask for.
    upto: usize,
    masks: Vec<u32>,
    /// What schedulers announced; `None` = not looked up yet.
    announced: Option<Announced>,
    vouched: Option<Vouched>,
    partial: bool,
}

impl Column<'_> {
    fn chain_len(&self) -> usize {
        match &self.chain {
            Chain::Canonical(c) => c.len(),
            Chain::Engine(c) => c.len(),
            Chain::OtherBlockSize => 0,
        }
    }
}

pub(crate) async fn query(
    shared: &Shared,
    members: &[Arc<Member>],
    query: &Query<'_>,
) -> Result<Asked, QueryError> {
    let (server, routings) = (&shared.server, &shared.routings.known);
    let mut columns = Vec::with_capacity(members.len());
    for m in members {
        let view = m.view.lock().clone();
        columns.push(column(m, view, query, &columns)?);
    }
    let mut open: Vec<usize> = (0..columns.len()).collect();
    let mut failed = None;
    let mut news = query.speculative.then(|| shared.read_routings());
    for attempt in 0.. {
        let mut parts: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        open.iter().for_each(|&i| parts.entry(columns[i].member.keys.partition()).or_default().push(i));
        let asked = join_all(parts.values().map(|part| ask(server, &columns, part)));
        let asked = match news.take() {
            None => asked.await,
            Some(news) => {
                let (asked, news) = join(asked, news).await;
                // They are hints: an answer without the latest is better than none.
                if let Err(e) = news {
                    tracing::debug!(error = %e, "announced routings cannot be read");
                }
                asked
            }
        };
        let mut again = Vec::new();
        for (part, answer) in parts.values().zip(asked) {
            let answer = answer.inspect_err(|e| failed = Some(e.to_string()));
            let mut found = answer.map(Some).unwrap_or_else(|e| {
                tracing::debug!(error = %e, "a part of the shared index did not answer");
                None
            });
            for (at, &i) in part.iter().enumerate() {
                let found = found.as_mut().and_then(|all| all.get_mut(at)).map(std::mem::take);
                let c = &mut columns[i];
                let retry = match found {
                    None => {
                        c.vouched = Some(nothing(Standing::Unreachable));
                        false
                    }
                    Some(found) => c.take(found, query, routings)?,
                };
                if retry && attempt < TRIES {
                    again.push(i);
                } else if retry {
                    // It changes faster than can be asked.
                    c.masks.clear();
                    c.vouched = Some(nothing(Standing::Unproven));
                }
            }
        }
        open = again;
        if open.is_empty() {
            break;
        }
    }
    let unreachable =
        |c: &Column<'_>| c.vouched.as_ref().is_some_and(|v| v.standing == Standing::Unreachable);
    if let (Some(why), true) = (failed, columns.iter().all(unreachable)) {
        return Err(QueryError::Server((redis::ErrorKind::Io, "no server answered", why).into()));
    }
    let mut out = Asked { answer: Answer::default(), vouched: Vec::new() };
    for c in columns {
        if c.chain == Chain::OtherBlockSize {
            out.answer.block_size_mismatch.push(c.member.id);
            continue;
        }
        let announced =
            c.announced.unwrap_or_else(|| c.view.engine.announced(c.member.id, query, &c.chain, routings));
        let score = c.view.engine.score(c.member.id, query, &c.masks, &announced);
        out.answer.scores.push(Score { partial: c.partial, ..score });
        out.vouched.push(c.vouched.unwrap_or_else(|| nothing(Standing::Nothing)));
    }
    Ok(out)
}

fn nothing(standing: Standing) -> Vouched {
    Vouched { standing, complete: false, cursor: Cursor::default() }
}

fn column<'m>(
    member: &'m Member,
    view: Arc<View>,
    query: &Query<'_>,
    others: &[Column<'m>],
) -> Result<Column<'m>, Unsupported> {
    // Engines of one kind name the prompt's blocks alike: nearly always one chain does for all.
    let like = others.iter().find(|o| o.view.engine.names_alike(&view.engine));
    let chain = like.map_or_else(|| view.engine.chain(query), |o| Ok(o.chain.clone()))?;
    let (masks, announced, vouched) = (Vec::new(), None, None);
    let mut c = Column { member, view, chain, upto: 0, masks, announced, vouched, partial: false };
    let all = c.chain_len();
    c.upto = if all <= 2 * FIRST || c.view.engine.sees_past_gaps() { all } else { FIRST };
    Ok(c)
}

/// What a server said of one publisher.
#[derive(Default)]
struct Found {
    blocks: Vec<Option<Vec<u8>>>,
    meta: Option<Vec<u8>>,
    generation: Option<u64>,
    owned: bool,
    /// Whether the hash of blocks is there.
    whole: bool,
    run: String,
}

/// Asks for the publishers of one hash tag.
async fn ask(server: &Server, columns: &[Column<'_>], part: &[usize]) -> Result<Vec<Found>, RedisError> {
    let mut pipe = Pipeline::new();
    for &i in part {
        let Column { member: Member { keys, .. }, view, chain, upto, .. } = &columns[i];
        if *upto > 0 {
            let mut get = cmd("HMGET");
            match chain {
                Chain::Canonical(seqs) => {
                    get.arg(keys.blocks(view.generation, view.incarnation));
                    seqs[..*upto].iter().for_each(|s| _ = get.arg(&block_field(*s)[..]));
                }
                Chain::Engine(names) => {
                    get.arg(keys.names(view.generation));
                    names[..*upto].iter().for_each(|n| _ = get.arg(&name_field(*n)[..]));
                }
                Chain::OtherBlockSize => {}
            }
            pipe.add_command(get);
        }
        pipe.add_command(cmd("HGET").arg(keys.names(view.generation)).arg(META).take());
        pipe.add_command(cmd("GET").arg(keys.generation()).take());
        pipe.add_command(cmd("EXISTS").arg(keys.lease()).take());
        pipe.add_command(cmd("EXISTS").arg(keys.blocks(view.generation, view.incarnation)).take());
    }
    pipe.add_command(cmd("INFO").arg("server").take());
    let mut a = Answers::new(server.run(&mut pipe).await?);
    let mut out = Vec::with_capacity(part.len());
    for &i in part {
        out.push(Found {
            blocks: if columns[i].upto > 0 { a.list()? } else { Vec::new() },
            meta: a.bytes()?,
            generation: a.number()?,
            owned: a.number()? == Some(1),
            whole: a.number()? == Some(1),
            run: String::new(),
        });
    }
    let run = a.run_id()?;
    out.iter_mut().for_each(|f| f.run.clone_from(&run));
    Ok(out)
}

impl Column<'_> {
    /// Takes in what was found. True where it must be asked again.
    fn take(&mut self, found: Found, query: &Query<'_>, routings: &Routings) -> Result<bool, QueryError> {
        self.masks.clear();
        let generation = found.generation.unwrap_or(0);
        let meta = found.meta.as_deref().map(Meta::decode);
        let foreign = matches!(meta, Some(Err(_)));
        let meta = meta.and_then(Result::ok);
        if generation != self.view.generation {
            // Of the new generation's engine nothing is known until it is asked for by its number.
            self.look_at(View { generation, ..(*self.view).clone() }, query)?;
            return Ok(true);
        }
        let Some(meta) = meta else {
            if self.view.engine.block_size() != 0 {
                let engine = Engine::new(Arc::clone(&self.member.spec));
                self.look_at(View { generation, incarnation: 0, engine }, query)?;
            }
            let standing = if foreign { Standing::Unproven } else { Standing::Nothing };
            self.vouched = Some(nothing(standing));
            return Ok(false);
        };
        let engine = Engine::decode(Arc::clone(&self.member.spec), &meta.engine);
        let Some(engine) = engine else {
            self.vouched = Some(nothing(Standing::Unproven));
            return Ok(false);
        };
        let moved = meta.incarnation != self.view.incarnation || !engine.names_alike(&self.view.engine);
        let learnt = engine != self.view.engine;
        if moved || learnt {
            let (had_all, past_gaps) = (self.upto == self.chain_len(), engine.sees_past_gaps());
            self.look_at(View { generation, incarnation: meta.incarnation, engine }, query)?;
            if moved || (past_gaps && !had_all) {
                return Ok(true);
            }
            self.upto = found.blocks.len();
        }
        let engine = &self.view.engine;
        let announced = engine.announced(self.member.id, query, &self.chain, routings);
        // What is announced fills gaps.
        let past_gaps = engine.sees_past_gaps() || !announced.is_empty();
        for value in &found.blocks {
            let mask = match (value.as_deref(), &self.chain) {
                (None, _) => 0,
                (Some(v), Chain::Engine(_)) => {
                    crate::record::Name::decode(v, meta.incarnation).map(|n| n.mask()).unwrap_or(0)
                }
                (Some(v), _) => mask_of(v).unwrap_or(0),
            };
            if mask == 0 && !past_gaps {
                break;
            }
            self.masks.push(mask);
        }
        let reach =
            if announced.is_empty() { self.masks.len() } else { engine.reach(&self.masks, &announced) };
        self.announced = Some(announced);
        if reach >= self.upto && self.upto < self.chain_len() {
            // All that was asked for is there: ask for the whole, so that the answer is of one moment.
            self.upto = self.chain_len();
            return Ok(true);
        }
        let standing = match (found.owned, found.whole && found.run == meta.run, meta.health.live) {
            (_, false, _) => Standing::Unproven,
            (false, true, _) => Standing::Unowned,
            (true, true, false) => Standing::Behind,
            (true, true, true) => Standing::Live,
        };
        self.partial = meta.partial;
        self.vouched = Some(Vouched { standing, complete: meta.health.complete, cursor: meta.cursor });
        Ok(false)
    }

    fn look_at(&mut self, view: View, query: &Query<'_>) -> Result<(), Unsupported> {
        let view = Arc::new(view);
        *self.member.view.lock() = Arc::clone(&view);
        let Column { chain, upto, .. } = column(self.member, view.clone(), query, &[])?;
        (self.view, self.chain, self.upto) = (view, chain, upto);
        Ok(())
    }
}

//! What schedulers announced, told by the servers.
//!
//! ```text
//! announce ─▶ SET routing PX ttl + XADD news          (one transaction, one slot)
//! question ─▶ XRANGE news since the last ─▶ GET, PTTL of what is new ─▶ kvindex::remote::Routings
//! ```
//!
//! A routing is a key that the servers expire; a stream says which keys are new or gone, so that a question reads
//! each routing once and not all of them every time. Whoever asks has read what was announced before, by anyone.
//! A time to live goes over the wire as a duration, so that no clocks have to agree.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvindex::HolderId;
use kvindex::remote::Routings;
use kvproto::SeqHash;
use parking_lot::Mutex;
use redis::{Pipeline, RedisError, Value, cmd};
use rustc_hash::FxHashMap;
use xxhash_rust::xxh3::xxh3_128;

use crate::keys::RoutingKeys;
use crate::news::{Routing, Tag, Word};
use crate::server::{Answers, Server, odd_answer};

/// Words of the stream that are kept, about; who has not asked for longer misses older ones.
const KEPT: usize = 1 << 16;
/// Words and routings read in one go.
const PAGE: usize = 4096;
const AT_ONCE: usize = 256;
/// How long nobody may have asked before who announces reads, too: what is noted is what the bound is held by.
const IDLE: Duration = Duration::from_millis(500);

/// What one of those who share the servers knows of routings.
#[derive(Debug)]
pub(crate) struct Feed {
    keys: RoutingKeys,
    /// As far as it was read.
    pub known: Routings,
    /// (Block, publisher) pairs that may be noted.
    most: usize,
    began: Instant,
    /// How many questions began to wait for what is new.
    asked: AtomicU64,
    place: tokio::sync::Mutex<Place>,
    /// Announced here and not yet read back.
    mine: Mutex<FxHashMap<(Tag, u64), Mine>>,
    versions: RandomState,
    next: AtomicU64,
}

/// Of an entry of the stream: when it was made, by the server in milliseconds, and a number.
type Id = (u64, u64);

/// A routing of a process's own: its blocks need not be fetched.
#[derive(Debug)]
struct Mine {
    blocks: Vec<(HolderId, Arc<[SeqHash]>)>,
    due: u64,
}

/// How far the stream was read.
#[derive(Debug, Default)]
struct Place {
    /// All questions up to this one are served.
    served: u64,
    /// Which server process it was read from.
    run: String,
    last: Option<Id>,
    /// The versions that are noted, and until when.
    noted: FxHashMap<Tag, (u64, u64)>,
    read: Option<Instant>,
}

impl Feed {
    pub fn new(namespace: &str, most: usize) -> Feed {
        Feed {
            keys: RoutingKeys::new(namespace),
            known: Routings::default(),
            most,
            began: Instant::now(),
            asked: AtomicU64::new(0),
            place: tokio::sync::Mutex::default(),
            mine: Mutex::default(),
            versions: RandomState::new(),
            next: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Announces a request's blocks to all who share the servers; `names` are the publishers' ids.
    /// Returns the pairs announced, 0 where there would be more than the bound.
    pub async fn announce(
        &self,
        server: &Server,
        request: &str,
        blocks: Vec<(HolderId, String, Arc<[SeqHash]>)>,
        ttl: Duration,
        find: impl Fn(&str) -> Option<HolderId>,
    ) -> Result<usize, RedisError> {
        let pairs = blocks.iter().map(|(_, _, seqs)| seqs.len()).sum::<usize>();
        self.known.expire(self.now());
        if pairs == 0 || self.known.pairs() + pairs > self.most {
            self.forget(server, request).await?;
            return Ok(0);
        }
        let (tag, version) = (xxh3_128(request.as_bytes()), self.version());
        let due = self.now() + ttl.as_millis() as u64;
        let ttl = ttl.as_millis().clamp(1, u32::MAX.into()) as u32;
        let routing =
            Routing { version, blocks: blocks.iter().map(|(_, n, s)| (n.clone(), s.clone())).collect() };
        let own: Vec<_> = blocks.into_iter().map(|(holder, _, seqs)| (holder, seqs)).collect();
        let mut pipe = Pipeline::new();
        let key = self.keys.routing(tag);
        pipe.add_command(cmd("SET").arg(key).arg(routing.encode()).arg("PX").arg(ttl).take());
        self.say(&mut pipe, &Word { tag, version, ttl });
        self.keep(tag, version, Mine { blocks: own.clone(), due });
        if let Err(e) = server.run(&mut pipe).await {
            // Nobody else hears of it; here it counts all the same.
            self.mine.lock().remove(&(tag, version));
            self.known.note(&name(tag), &own, due, self.most);
            return Err(e);
        }
        let idle = self.place.try_lock().is_ok_and(|p| p.read.is_none_or(|at| at.elapsed() > IDLE));
        if idle {
            self.read(server, find).await?;
        }
        Ok(pairs)
    }

    /// Takes a request's blocks back, for all. False where there were none.
    pub async fn forget(&self, server: &Server, request: &str) -> Result<bool, RedisError> {
        let tag = xxh3_128(request.as_bytes());
        let mut pipe = Pipeline::new();
        pipe.add_command(cmd("DEL").arg(self.keys.routing(tag)).take());
        self.say(&mut pipe, &Word { tag, version: 0, ttl: 0 });
        let answered = server.run(&mut pipe).await;
        if answered.is_err() {
            self.known.forget(&name(tag));
        }
        Ok(Answers::new(answered?).number()? == Some(1))
    }

    /// Notes all that was announced, and forgets all that was taken back, before this was called.
    pub async fn read(
        &self,
        server: &Server,
        find: impl Fn(&str) -> Option<HolderId>,
    ) -> Result<(), RedisError> {
        let turn = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut place = self.place.lock().await;
        if place.served >= turn {
            // Somebody began to read after this was called: one reads for all who wait.
            return Ok(());
        }
        let serves = self.asked.load(Ordering::Acquire);
        let done = self.catch_up(server, &mut place, &find).await;
        self.known.expire(self.now());
        done?;
        place.served = serves;
        place.read = Some(Instant::now());
        Ok(())
    }

    async fn catch_up(
        &self,
        server: &Server,
        place: &mut Place,
        find: &impl Fn(&str) -> Option<HolderId>,
    ) -> Result<(), RedisError> {
        loop {
            let from = match place.last {
                None => "-".to_owned(),
                Some((ms, n)) => format!("{ms}-{}", n.saturating_add(1)),
            };
            let mut pipe = Pipeline::new();
            pipe.add_command(
                cmd("XRANGE").arg(self.keys.news()).arg(from).arg("+").arg("COUNT").arg(PAGE).take(),
            );
            pipe.add_command(cmd("INFO").arg("server").take());
            let mut a = Answers::new(server.run(&mut pipe).await?);
            let (words, run) = (words(a.value()?)?, a.run_id()?);
            if run != place.run {
                // Another process may lack words that were read, and have others under smaller numbers.
                let began_elsewhere = !std::mem::replace(&mut place.run, run).is_empty();
                if began_elsewhere && place.last.take().is_some() {
                    continue;
                }
            }
            let (read, last) = (words.len(), words.last().map(|(at, _)| *at));
            self.hear(server, place, words, find).await?;
            place.last = last.or(place.last);
            if read < PAGE {
                return Ok(());
            }
        }
    }

    /// Does what the words say, in their order.
    async fn hear(
        &self,
        server: &Server,
        place: &mut Place,
        words: Vec<(Id, Word)>,
        find: &impl Fn(&str) -> Option<HolderId>,
    ) -> Result<(), RedisError> {
        let newest = words.last().map_or(0, |((ms, _), _)| *ms);
        // Of several words about one request only the last matters.
        let mut last: FxHashMap<Tag, Word> = FxHashMap::default();
        for ((at, _), word) in words {
            let over = u64::from(word.ttl) <= newest.saturating_sub(at);
            last.insert(word.tag, if over { Word { version: 0, ttl: 0, ..word } } else { word });
        }
        let mut wanted = Vec::new();
        for word in last.into_values() {
            let own = self.mine.lock().remove(&(word.tag, word.version));
            match (word.ttl, own) {
                (0, _) => {
                    self.known.forget(&name(word.tag));
                    place.noted.remove(&word.tag);
                }
                (_, Some(m)) => self.note(place, word.tag, word.version, &m.blocks, m.due),
                (_, None) if place.noted.get(&word.tag).is_some_and(|(v, _)| *v == word.version) => {}
                (_, None) => wanted.push(word.tag),
            }
        }
        for tags in wanted.chunks(AT_ONCE) {
            let mut pipe = Pipeline::new();
            for tag in tags {
                pipe.add_command(cmd("GET").arg(self.keys.routing(*tag)).take());
                pipe.add_command(cmd("PTTL").arg(self.keys.routing(*tag)).take());
            }
            // From before the answer, so that none counts here for longer than on the servers.
            let now = self.now();
            let mut a = Answers::new(server.run(&mut pipe).await?);
            for tag in tags {
                let (value, left) = (a.bytes()?, a.number()?);
                let routing = value.and_then(|v| Routing::decode(&v).ok());
                let (Some(routing), Some(left)) = (routing, left) else {
                    self.known.forget(&name(*tag));
                    place.noted.remove(tag);
                    continue;
                };
                // Whom this process does not know it cannot be asked about.
                let known = |(id, seqs): (String, Arc<[SeqHash]>)| Some((find(&id)?, seqs));
                let blocks: Vec<_> = routing.blocks.into_iter().filter_map(known).collect();
                self.note(place, *tag, routing.version, &blocks, now + left);
            }
        }
        Ok(())
    }

    fn note(
        &self,
        place: &mut Place,
        tag: Tag,
        version: u64,
        blocks: &[(HolderId, Arc<[SeqHash]>)],
        due: u64,
    ) {
        let now = self.now();
        self.known.expire(now);
        self.known.note(&name(tag), blocks, due, self.most);
        if place.noted.len() == place.noted.capacity() {
            place.noted.retain(|_, (_, due)| *due > now);
        }
        place.noted.insert(tag, (version, due));
    }

    fn keep(&self, tag: Tag, version: u64, own: Mine) {
        let (now, mut mine) = (self.now(), self.mine.lock());
        if mine.len() == mine.capacity() {
            mine.retain(|_, m| m.due > now);
        }
        // What is not kept is read back like another's.
        if mine.len() < KEPT {
            mine.insert((tag, version), own);
        }
    }

    fn say(&self, pipe: &mut Pipeline, word: &Word) {
        let news = self.keys.news();
        let most = ["MAXLEN", "~"];
        pipe.add_command(
            cmd("XADD").arg(&news).arg(&most[..]).arg(KEPT).arg("*").arg("r").arg(&word.encode()[..]).take(),
        );
        // Long after the last routing is over.
        pipe.add_command(cmd("PEXPIRE").arg(&news).arg(u64::from(word.ttl).max(600_000) * 2).take());
    }

    /// A number that no other routing has.
    fn version(&self) -> u64 {
        self.versions.hash_one(self.next.fetch_add(1, Ordering::Relaxed)).max(1)
    }
}

fn name(tag: Tag) -> String {
    format!("{tag:032x}")
}

/// The words of a piece of the stream, and where they stand.
fn words(value: Value) -> Result<Vec<(Id, Word)>, RedisError> {
    let Value::Array(entries) = value else { return Err(odd_answer()) };
    let mut out = Vec::with_capacity(entries.len());
    for entry in entries {
        let Value::Array(parts) = entry else { return Err(odd_answer()) };
        let mut a = Answers::new(parts);
        let at = a.text()?.ok_or_else(odd_answer)?;
        let (ms, n) = at.split_once('-').ok_or_else(odd_answer)?;
        let at = (ms.parse().map_err(|_| odd_answer())?, n.parse().map_err(|_| odd_answer())?);
        let fields = a.list()?;
        let word = fields.get(1).and_then(Option::as_deref).and_then(Word::decode);
        // What no kvd wrote says nothing, but it has a place.
        out.push((at, word.unwrap_or_default()));
    }
    Ok(out)
}

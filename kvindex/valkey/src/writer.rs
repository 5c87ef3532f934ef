//! Writes one publisher's events, and makes sure that nobody else does.
//!
//! A publisher's keys carry a generation, and one number says which generation counts. Whoever takes the lease
//! raises the number and renames the keys, in one transaction: what a writer that was thought dead still sends
//! goes to keys that nobody reads and that expire. No commit asks the server to compare anything.
//!
//! A commit reads what its events touch, decides ([`crate::apply`]), and writes all of it and the cursor in one
//! transaction. What the cursor was before is read in both: where a replica took over and had not heard the last
//! commit, the next one notices, and until then readers see that the data is of another server process.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kvindex::remote::{Change, Engine};
use kvindex::{Applied, HolderSpec};
use kvproto::EngineHash;
use redis::{Cmd, Pipeline, RedisError, Value, cmd};

use crate::apply::{Before, Missing, Plan, Shelf, apply};
use crate::keys::Keys;
use crate::record::{
    Cursor, Foreign, Health, META, Meta, Name, Waiters, block_field, decode_held, encode_held, field_name,
    name_field, waiters_field,
};
use crate::server::{Answers, Config, Server, odd_answer};

/// Why nothing more can be written: claim the publisher again and go on from the cursor found.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A server did not answer, or not in time: what was sent may or may not have arrived.
    #[error("{0}")]
    Server(#[from] RedisError),
    /// Another writer took the publisher, or the lease ran out.
    #[error("the publisher is another writer's")]
    Lost,
    /// The servers lost the last commits: a replica took over, or a server restarted.
    #[error("the servers lost the last commits")]
    RolledBack,
    /// Values that no kvd wrote.
    #[error("{0}")]
    Foreign(#[from] Foreign),
}

/// What came of trying to become a publisher's writer.
#[derive(Debug)]
pub enum Claim {
    /// This one writes.
    Ours(Box<Writer>),
    /// Another does.
    Held {
        /// Its name.
        by: String,
    },
}

/// Rounds of reading that a commit may take: names, then those who wait for them, then theirs, and so on.
const MAX_ROUNDS: usize = 1024;

/// The one that writes a publisher's events.
#[derive(Debug)]
pub struct Writer {
    server: Server,
    config: Arc<Config>,
    owner: String,
    keys: Keys,
    generation: u64,
    /// The field `m` as it was written last; `None` = not yet.
    last: Option<Vec<u8>>,
    meta: Meta,
    engine: Engine,
    /// How far the sweep of idle names has come.
    swept: u64,
}

impl Writer {
    /// Tries to become the writer of `spec` under the name of `owner`. `known` is what the caller's own last
    /// writer of it ended with, see [`last`](Self::last).
    pub(crate) async fn claim(
        server: &Server,
        config: &Arc<Config>,
        spec: Arc<HolderSpec>,
        owner: &str,
        known: Option<&[u8]>,
    ) -> Result<Claim, WriteError> {
        let keys = Keys::new(&config.namespace, &spec);
        let lease = config.lease.as_millis() as u64;
        let mut pipe = Pipeline::new();
        pipe.add_command(cmd("SET").arg(keys.lease()).arg(owner).arg("NX").arg("PX").arg(lease).take());
        pipe.add_command(cmd("GET").arg(keys.lease()).take());
        // Never a number that was used before, though nobody remembers those.
        let first = since_epoch().as_millis() as u64;
        pipe.add_command(cmd("SET").arg(keys.generation()).arg(first).arg("NX").take());
        pipe.add_command(cmd("GET").arg(keys.generation()).take());
        let mut a = Answers::new(server.run(&mut pipe).await?);
        let _set = a.value()?;
        let holder = a.text()?.ok_or(WriteError::Lost)?;
        let (_set, generation) = (a.value()?, a.number()?.ok_or_else(odd_answer)?);
        if holder != owner {
            return Ok(Claim::Held { by: holder });
        }

        let mut pipe = Pipeline::new();
        pipe.add_command(cmd("HGET").arg(keys.names(generation)).arg(META).take());
        pipe.add_command(cmd("INFO").arg("server").take());
        let mut a = Answers::new(server.run(&mut pipe).await?);
        let (found, run) = (a.bytes()?, a.run_id()?);
        // On another server process than it was written to, it may lack the last commits, or be what one of
        // them made of data that lacked those before: only who knows its last words can tell.
        let meta = found.as_deref().map(Meta::decode).and_then(Result::ok);
        let proven = meta.as_ref().is_some_and(|m| m.run == run);
        let meta = meta.filter(|_| proven || found.as_deref() == known);
        let meta = match meta {
            // Where servers evict, one hash may be there without the other.
            Some(m) if exists(server, &keys.blocks(generation, m.incarnation)).await? => Some(m),
            Some(_) | None => None,
        };
        let engine = meta.as_ref().and_then(|m| Engine::decode(spec.clone(), &m.engine));
        let next = generation + 1;
        let mut pipe = Pipeline::new();
        pipe.add_command(cmd("INCR").arg(keys.generation()).take());
        let mut moves = Vec::new();
        if let (Some(_), Some(Meta { incarnation, .. })) = (&engine, &meta) {
            moves.push((keys.names(generation), keys.names(next)));
            moves.push((keys.blocks(generation, *incarnation), keys.blocks(next, *incarnation)));
        }
        for (from, to) in &moves {
            pipe.add_command(cmd("RENAMENX").arg(from).arg(to).take());
        }
        pipe.add_command(cmd("HGET").arg(keys.names(next)).arg(META).take());
        pipe.add_command(expire(&keys.generation(), config.ttl * 2));
        pipe.add_command(cmd("GET").arg(keys.lease()).take());
        let mut a = Answers::new(server.run(&mut pipe).await?);
        let counted = a.number()?;
        for _ in &moves {
            a.value()?;
        }
        let moved = a.bytes()?;
        let (_expire, holder) = (a.value()?, a.text()?);
        let expected = engine.as_ref().and(found);
        if counted != Some(next) || holder.as_deref() != Some(owner) || moved != expected {
            return Err(WriteError::Lost);
        }
        let (engine, meta) = match (engine, meta) {
            (Some(engine), Some(meta)) => (engine, meta),
            _ => (Engine::new(spec.clone()), Meta::default()),
        };
        Ok(Claim::Ours(Box::new(Writer {
            server: server.clone(),
            config: Arc::clone(config),
            owner: owner.to_owned(),
            keys,
            generation: next,
            last: moved,
            meta,
            engine,
            swept: 0,
        })))
    }

    /// Where the stream stands as far as it is written; batches after it are to be applied.
    pub fn cursor(&self) -> &Cursor {
        &self.meta.cursor
    }

    /// What it ended with, for the next claim by the same process: proves that nothing was lost meanwhile.
    pub fn last(&self) -> Option<&[u8]> {
        self.last.as_deref()
    }

    /// Who is written.
    pub fn spec(&self) -> &Arc<HolderSpec> {
        self.engine.spec()
    }

    /// Whether blocks were refused since the last clear.
    pub fn is_partial(&self) -> bool {
        self.meta.partial
    }

    /// Names that have copies.
    pub fn held(&self) -> u64 {
        self.meta.held
    }

    /// Writes what `changes`, which end at `cursor`, come to; on return readers see all of it.
    ///
    /// # Errors
    /// Then this writer is of no more use; nothing, or all of it, was written.
    pub async fn apply(
        &mut self,
        changes: &[Change],
        cursor: Cursor,
        health: Health,
    ) -> Result<Applied, WriteError> {
        let mut shelf = Shelf::default();
        let mut want = Missing::default();
        for change in changes {
            match change {
                Change::Store(s) => want.names.extend(s.names.iter().chain(&s.parent)),
                Change::Remove { names, .. } => want.names.extend(names),
                Change::Clear(_) => {}
            }
        }
        let seen = self.look(&want, &mut shelf).await?;
        let before = Before {
            engine: self.engine.clone(),
            incarnation: self.meta.incarnation,
            held: self.meta.held,
            partial: self.meta.partial,
            room: (4 * self.config.max_blocks).saturating_sub(seen.fields) as usize,
            most: self.config.max_blocks,
            now: since_epoch().as_secs() as u32,
        };
        let mut rounds = 0;
        let plan = loop {
            match apply(before.clone(), changes, &shelf) {
                Ok(plan) => break plan,
                Err(missing) if rounds < MAX_ROUNDS => self.read(&missing, &mut shelf).await?,
                Err(_) => return Err(Foreign.into()),
            }
            rounds += 1;
        };
        let applied = plan.applied;
        let meta = Meta {
            incarnation: plan.incarnation,
            cursor,
            health,
            partial: plan.partial,
            held: plan.held,
            run: seen.run,
            engine: plan.engine.clone(),
        };
        let engine = Engine::decode(self.engine.spec().clone(), &plan.engine).ok_or(Foreign)?;
        self.write(plan, &seen.idle, meta).await?;
        self.engine = engine;
        Ok(applied)
    }

    /// Says how far what is written can be trusted, keeps the lease, and keeps the data from expiring.
    ///
    /// # Errors
    /// As for [`apply`](Self::apply).
    pub async fn renew(&mut self, health: Health) -> Result<(), WriteError> {
        let cursor = self.meta.cursor.clone();
        self.apply(&[], cursor, health).await.map(|_| ())
    }

    /// Forgets everything, at once whatever there is: a restart, or a loss that cannot be repaired.
    ///
    /// # Errors
    /// As for [`apply`](Self::apply).
    pub async fn clear(&mut self) -> Result<(), WriteError> {
        self.next_generation(false).await?;
        self.generation += 1;
        self.last = None;
        self.meta = Meta::default();
        self.engine = Engine::new(self.engine.spec().clone());
        Ok(())
    }

    /// Takes the publisher out and ends writing it.
    ///
    /// # Errors
    /// As for [`apply`](Self::apply); what is left expires.
    pub async fn retire(mut self) -> Result<(), WriteError> {
        self.next_generation(true).await
    }

    /// Lets another write on from here at once.
    ///
    /// # Errors
    /// Then others must wait until the lease runs out.
    pub async fn release(mut self) -> Result<(), WriteError> {
        self.renew(Health { live: false, ..self.meta.health }).await?;
        let mut pipe = Pipeline::new();
        pipe.add_command(cmd("DEL").arg(self.keys.lease()).take());
        self.server.run(&mut pipe).await?;
        Ok(())
    }

    async fn next_generation(&mut self, leave: bool) -> Result<(), WriteError> {
        self.look(&Missing::default(), &mut Shelf::default()).await?;
        let mut pipe = Pipeline::new();
        pipe.add_command(cmd("INCR").arg(self.keys.generation()).take());
        pipe.add_command(expire(&self.keys.generation(), self.config.ttl * 2));
        pipe.add_command(cmd("UNLINK").arg(self.keys.names(self.generation)).take());
        pipe.add_command(cmd("UNLINK").arg(self.keys.blocks(self.generation, self.meta.incarnation)).take());
        match leave {
            true => pipe.add_command(cmd("DEL").arg(self.keys.lease()).take()),
            false => pipe.add_command(expire(&self.keys.lease(), self.config.lease)),
        };
        let mut a = Answers::new(self.server.run(&mut pipe).await?);
        if a.number()? != Some(self.generation + 1) {
            return Err(WriteError::Lost);
        }
        Ok(())
    }

    /// Reads `want`, and whether all is still as this writer left it.
    async fn look(&mut self, want: &Missing, shelf: &mut Shelf) -> Result<Seen, WriteError> {
        let names = self.keys.names(self.generation);
        let mut pipe = Pipeline::new();
        pipe.add_command(cmd("GET").arg(self.keys.generation()).take());
        pipe.add_command(cmd("GET").arg(self.keys.lease()).take());
        pipe.add_command(cmd("HGET").arg(&names).arg(META).take());
        pipe.add_command(cmd("INFO").arg("server").take());
        pipe.add_command(cmd("HLEN").arg(&names).take());
        pipe.add_command(cmd("EXISTS").arg(self.keys.blocks(self.generation, self.meta.incarnation)).take());
        // Idle names go as new ones come, so that a scan keeps up with any stream.
        let count = 16 + 2 * want.names.len();
        let scan = cmd("HSCAN").arg(&names).arg(self.swept).arg("COUNT").arg(count).take();
        pipe.add_command(scan);
        let list: Vec<EngineHash> = want.names.iter().copied().collect();
        add_names(&mut pipe, &names, &list, name_field);
        let mut a = Answers::new(self.server.run(&mut pipe).await?);
        if a.number()? != Some(self.generation) || a.text()?.as_deref() != Some(&self.owner) {
            return Err(WriteError::Lost);
        }
        if a.bytes()? != self.last {
            return Err(WriteError::RolledBack);
        }
        let (run, fields) = (a.run_id()?, a.number()?.unwrap_or(0));
        if a.number()? != Some(u64::from(self.last.is_some())) {
            return Err(WriteError::RolledBack);
        }
        let idle = self.idle(a.value()?)?;
        take_names(&mut a, &list, shelf, self.meta.incarnation)?;
        Ok(Seen { run, fields, idle })
    }

    /// Fields of names and waiters that nobody has touched for long, from one answer of a scan.
    fn idle(&mut self, scanned: Value) -> Result<Vec<Vec<u8>>, WriteError> {
        let Value::Array(parts) = scanned else { return Err(odd_answer().into()) };
        let mut a = Answers::new(parts);
        self.swept = a.number()?.ok_or_else(odd_answer)?;
        let before = since_epoch().saturating_sub(self.config.ttl).as_secs() as u32;
        let mut idle = Vec::new();
        for pair in a.list()?.chunks_exact(2) {
            let [Some(field), Some(value)] = pair else { return Err(odd_answer().into()) };
            let old = match field_name(field) {
                Some((_, true)) => Waiters::decode(value)?.touched < before,
                Some((_, false)) => {
                    let name = Name::decode(value, self.meta.incarnation)?;
                    name.copies.is_empty() && name.touched < before
                }
                None => false,
            };
            if old {
                idle.push(field.clone());
            }
        }
        Ok(idle)
    }

    /// Reads what a decision still needs.
    async fn read(&self, want: &Missing, shelf: &mut Shelf) -> Result<(), WriteError> {
        let (names_key, incarnation) = (self.keys.names(self.generation), self.meta.incarnation);
        if want.all {
            let mut pipe = Pipeline::new();
            pipe.add_command(cmd("HGETALL").arg(&names_key).take());
            let pairs = match Answers::new(self.server.run(&mut pipe).await?).value()? {
                Value::Map(pairs) => pairs.into_iter().flat_map(|(k, v)| [k, v]).collect(),
                Value::Array(all) => all,
                _ => return Err(odd_answer().into()),
            };
            let mut a = Answers::new(pairs);
            while let Ok(field) = a.bytes() {
                let (field, value) = (field.unwrap_or_default(), a.bytes()?.unwrap_or_default());
                if let Some((name, false)) = field_name(&field) {
                    shelf.names.insert(name, Some(Name::decode(&value, incarnation)?));
                }
            }
            shelf.all = true;
        }
        let names: Vec<EngineHash> = want.names.iter().copied().collect();
        let waited: Vec<EngineHash> = want.waiters.iter().copied().collect();
        let blocks: Vec<_> = want.blocks.iter().copied().collect();
        let mut pipe = Pipeline::new();
        add_names(&mut pipe, &names_key, &names, name_field);
        add_names(&mut pipe, &names_key, &waited, waiters_field);
        if !blocks.is_empty() {
            let mut get = cmd("HMGET");
            get.arg(self.keys.blocks(self.generation, incarnation));
            blocks.iter().for_each(|b| _ = get.arg(&block_field(*b)[..]));
            pipe.add_command(get);
        }
        if pipe.is_empty() {
            return Ok(());
        }
        let mut a = Answers::new(self.server.run(&mut pipe).await?);
        take_names(&mut a, &names, shelf, incarnation)?;
        if !waited.is_empty() {
            for (name, value) in waited.iter().zip(a.list()?) {
                let waiters = value.as_deref().map(Waiters::decode).transpose()?.unwrap_or_default();
                shelf.waiters.insert(*name, waiters);
            }
        }
        if !blocks.is_empty() {
            for (block, value) in blocks.iter().zip(a.list()?) {
                let held = value.as_deref().map(decode_held).transpose()?.unwrap_or_default();
                shelf.blocks.insert(*block, held);
            }
        }
        Ok(())
    }

    /// Writes a plan as one transaction.
    async fn write(&mut self, plan: Plan, idle: &[Vec<u8>], meta: Meta) -> Result<(), WriteError> {
        let names_key = self.keys.names(self.generation);
        let blocks_key = self.keys.blocks(self.generation, plan.incarnation);
        let bytes = meta.encode();
        let mut set = cmd("HSET");
        set.arg(&names_key).arg(META).arg(&bytes[..]);
        let mut unset = cmd("HDEL");
        unset.arg(&names_key);
        let mut dropped = 0;
        for (h, name) in &plan.names {
            match name {
                Some(name) => _ = set.arg(&name_field(*h)[..]).arg(name.encode()),
                None => (_, dropped) = (unset.arg(&name_field(*h)[..]), dropped + 1),
            }
        }
        for (h, waiters) in &plan.waiters {
            match waiters.names.is_empty() {
                false => _ = set.arg(&waiters_field(*h)[..]).arg(waiters.encode()),
                true => (_, dropped) = (unset.arg(&waiters_field(*h)[..]), dropped + 1),
            }
        }
        for field in idle {
            // Unless it was touched now.
            let touched = field_name(field).is_some_and(|(h, waits)| match waits {
                true => plan.waiters.iter().any(|(w, _)| *w == h),
                false => plan.names.iter().any(|(n, _)| *n == h),
            });
            if !touched {
                unset.arg(&field[..]);
                dropped += 1;
            }
        }
        let mut pipe = Pipeline::new();
        pipe.add_command(cmd("HGET").arg(&names_key).arg(META).take());
        pipe.add_command(cmd("GET").arg(self.keys.generation()).take());
        pipe.add_command(cmd("INFO").arg("server").take());
        pipe.add_command(set);
        if dropped > 0 {
            pipe.add_command(unset);
        }
        if plan.incarnation != self.meta.incarnation {
            let old = self.keys.blocks(self.generation, self.meta.incarnation);
            pipe.add_command(cmd("UNLINK").arg(old).take());
        }
        add_blocks(&mut pipe, &blocks_key, &plan);
        let ttl = self.config.ttl;
        pipe.add_command(expire(&names_key, ttl));
        pipe.add_command(expire(&blocks_key, ttl));
        pipe.add_command(expire(&self.keys.generation(), ttl * 2));
        pipe.add_command(expire(&self.keys.lease(), self.config.lease));
        let mut a = Answers::new(self.server.run(&mut pipe).await?);
        let (before, generation) = (a.bytes()?, a.number()?);
        if generation != Some(self.generation) {
            return Err(WriteError::Lost);
        }
        // Sent again after a lost answer, it finds its own words.
        if before != self.last && before.as_deref() != Some(&bytes[..]) {
            return Err(WriteError::RolledBack);
        }
        let run = a.run_id()?;
        if run != meta.run && before != self.last {
            return Err(WriteError::RolledBack);
        }
        self.last = Some(bytes);
        self.meta = meta;
        Ok(())
    }
}

/// What a look found.
struct Seen {
    /// The server process.
    run: String,
    /// Fields in the hash of names.
    fields: u64,
    /// Fields to drop.
    idle: Vec<Vec<u8>>,
}

fn add_names(pipe: &mut Pipeline, key: &str, names: &[EngineHash], field: fn(EngineHash) -> [u8; 9]) {
    if names.is_empty() {
        return;
    }
    let mut get = cmd("HMGET");
    get.arg(key);
    names.iter().for_each(|n| _ = get.arg(&field(*n)[..]));
    pipe.add_command(get);
}

fn take_names(
    a: &mut Answers,
    names: &[EngineHash],
    shelf: &mut Shelf,
    incarnation: u32,
) -> Result<(), WriteError> {
    if names.is_empty() {
        return Ok(());
    }
    for (name, value) in names.iter().zip(a.list()?) {
        let name_record = value.as_deref().map(|v| Name::decode(v, incarnation)).transpose()?;
        shelf.names.insert(*name, name_record);
    }
    Ok(())
}

fn add_blocks(pipe: &mut Pipeline, key: &str, plan: &Plan) {
    let (mut set, mut unset) = (cmd("HSET"), cmd("HDEL"));
    // Also without a block the hash is there: so it can be told from one that was evicted.
    set.arg(key).arg(META).arg(&[1][..]);
    unset.arg(key);
    let mut unsets = 0;
    for (seq, held) in &plan.blocks {
        match held.is_empty() {
            false => _ = set.arg(&block_field(*seq)[..]).arg(encode_held(held)),
            true => (_, unsets) = (unset.arg(&block_field(*seq)[..]), unsets + 1),
        }
    }
    pipe.add_command(set);
    if unsets > 0 {
        pipe.add_command(unset);
    }
}

fn expire(key: &str, after: Duration) -> Cmd {
    cmd("PEXPIRE").arg(key).arg(after.as_millis() as u64).take()
}

async fn exists(server: &Server, key: &str) -> Result<bool, RedisError> {
    let mut pipe = Pipeline::new();
    pipe.add_command(cmd("EXISTS").arg(key).take());
    Ok(Answers::new(server.run(&mut pipe).await?).number()? == Some(1))
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

//! Writes one publisher's events, and makes sure that nobody else does.
//!
//! A publisher's keys carry a generation, and one number says which generation counts. Whoever takes the lease
//! raises the number and renames the keys, in one transaction: what a writer that was thought dead still sends
//! goes to keys that nobody reads and that expire. No commit asks the server to compare anything.
//!
//! A commit reads what its events touch, decides ([`crate::apply`]), and writes all of it and the cursor in one
//! transaction. What the cursor was before is read in both: where a replica took over and had not heard the last
//! commit, the next one notices, and until then readers see that the data is of another server process.

mod commit;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kvindex::remote::{Change, Engine};
use kvindex::{Applied, HolderSpec};
use redis::{Cmd, Pipeline, RedisError, cmd};

use crate::apply::{Before, Missing, Shelf, apply};
use crate::keys::Keys;
use crate::record::{Cursor, Foreign, Health, META, Meta};
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

//! What does a commit read, is all as this writer left it, and how is it written?

use kvproto::EngineHash;
use redis::{Pipeline, Value, cmd};

use super::{WriteError, Writer, expire, since_epoch};
use crate::apply::{Missing, Plan, Shelf};
use crate::record::{
    META, Meta, Name, Waiters, block_field, decode_held, encode_held, field_name, name_field, waiters_field,
};
use crate::server::{Answers, odd_answer};

impl Writer {
    /// Reads `want`, and whether all is still as this writer left it.
    pub(super) async fn look(&mut self, want: &Missing, shelf: &mut Shelf) -> Result<Seen, WriteError> {
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
    pub(super) async fn read(&self, want: &Missing, shelf: &mut Shelf) -> Result<(), WriteError> {
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
    pub(super) async fn write(&mut self, plan: Plan, idle: &[Vec<u8>], meta: Meta) -> Result<(), WriteError> {
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
pub(super) struct Seen {
    /// The server process.
    pub run: String,
    /// Fields in the hash of names.
    pub fields: u64,
    /// Fields to drop.
    pub idle: Vec<Vec<u8>>,
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

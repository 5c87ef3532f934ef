//! What others keep: any replica reads any transfer.

use std::time::Duration;

use futures::future::try_join_all;
use kvindex_valkey::link::{Answers, Server, odd_answer};
use redis::{Pipeline, RedisError, cmd};

use super::keys::{self, ShelfKeys};
use super::shelf::{Terms, read};
use crate::transfer::ledger::record::{Record, TransferId};
use crate::transfer::ledger::store::codec;
use crate::transfer::ledger::timers::millis;
use crate::transfer::types::Purpose;

/// A transfer, as its home wrote it last.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The transfer.
    pub record: Record,
    /// Where its home is asked; `None` = nobody has it at present.
    pub home: Option<String>,
}

/// Reads all shelves.
#[derive(Clone)]
pub struct Library {
    server: Server,
    namespace: String,
}

impl Library {
    pub(super) fn new(server: Server, terms: &Terms) -> Library {
        Library { server, namespace: terms.namespace.clone() }
    }

    /// The transfer of that name, whoever is its home.
    ///
    /// # Errors
    /// Where a server does not answer.
    pub async fn find(&self, id: TransferId) -> Result<Option<Found>, RedisError> {
        let get = |transfers: String| cmd("HGET").arg(transfers).arg(&id.bytes()[..]).take();
        let shelves = names(&self.server, &self.namespace).await?;
        let asked = shelves.iter().map(|name| async move {
            let (value, home) = self.look(name, get).await?;
            let bytes = match value {
                redis::Value::BulkString(bytes) => bytes,
                _ => return Ok(None),
            };
            // What cannot be read here is another version's.
            Ok::<_, RedisError>(codec::decode(&bytes).ok().map(|record| Found { record, home }))
        });
        Ok(try_join_all(asked).await?.into_iter().flatten().next())
    }

    /// Every transfer, in no order.
    ///
    /// # Errors
    /// Where a server does not answer.
    pub async fn all(&self) -> Result<Vec<Record>, RedisError> {
        let get = |transfers: String| cmd("HGETALL").arg(transfers).take();
        let shelves = names(&self.server, &self.namespace).await?;
        let asked = shelves.iter().map(|name| async move {
            let (value, _) = self.look(name, get).await?;
            Ok::<_, RedisError>(read(Answers::new(vec![value]).list()?).0.records)
        });
        Ok(try_join_all(asked).await?.into_iter().flatten().collect())
    }

    /// Asks a shelf's hash of transfers, and who has the shelf.
    async fn look(
        &self,
        name: &str,
        get: impl Fn(String) -> redis::Cmd,
    ) -> Result<(redis::Value, Option<String>), RedisError> {
        let keys = ShelfKeys::new(&self.namespace, name);
        let mut pipe = Pipeline::new();
        pipe.add_command(cmd("GET").arg(keys.lease()).take());
        pipe.add_command(get(keys.transfers()));
        let mut a = Answers::new(self.server.run(&mut pipe).await?);
        let (holder, value) = (a.text()?, a.value()?);
        Ok((value, holder.and_then(|h| Some(h.split_once(' ')?.0.to_owned()))))
    }

    /// Which transfer has a request's key.
    ///
    /// # Errors
    /// Where the server does not answer.
    pub async fn by_key(&self, request_id: &str, purpose: Purpose) -> Result<Option<TransferId>, RedisError> {
        let found = self
            .server
            .ask(cmd("GET").arg(keys::request(&self.namespace, request_id, purpose)).take())
            .await?
            .bytes()?;
        Ok(found.as_deref().and_then(TransferId::from_bytes))
    }

    /// Gives a request's key to a transfer, unless another has it that is not `instead_of`. Says who has it.
    ///
    /// # Errors
    /// Where the server does not answer.
    pub async fn take_key(
        &self,
        record: &Record,
        instead_of: Option<TransferId>,
        kept: Duration,
    ) -> Result<TransferId, RedisError> {
        let key = keys::request(&self.namespace, &record.request_id, record.purpose);
        let long = record.overall.saturating_sub(record.planned_at) + millis(kept);
        let mut give = cmd("EVAL").arg(GIVE).arg(1).arg(&key).take();
        give.arg(&record.id.bytes()[..])
            .arg(long)
            .arg(instead_of.map(TransferId::bytes).as_ref().map_or(&[][..], |f| f));
        let has = self.server.ask(give).await?.bytes()?;
        has.as_deref().and_then(TransferId::from_bytes).ok_or_else(odd_answer)
    }
}

/// Key: a request's. Arguments: the transfer that is to have it, for how many ms, whose it may be until now.
const GIVE: &str = r"
local has = redis.call('GET', KEYS[1])
if has and has ~= ARGV[1] and has ~= ARGV[3] then return has end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
";

/// Shelves that there are.
async fn names(server: &Server, namespace: &str) -> Result<Vec<String>, RedisError> {
    let all = server.ask(cmd("HKEYS").arg(keys::shelves(namespace)).take()).await?.list()?;
    Ok(all.into_iter().flatten().filter_map(|name| String::from_utf8(name).ok()).collect())
}

/// Shelves that nobody has.
pub(super) async fn lapsed(server: &Server, namespace: &str) -> Result<Vec<String>, RedisError> {
    let asked = names(server, namespace).await?.into_iter().map(|name| async move {
        let held =
            server.ask(cmd("EXISTS").arg(ShelfKeys::new(namespace, &name).lease()).take()).await?.number()?
                == Some(1);
        Ok::<_, RedisError>((!held).then_some(name))
    });
    Ok(try_join_all(asked).await?.into_iter().flatten().collect())
}

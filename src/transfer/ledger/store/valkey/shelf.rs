//! Transfers that have one home, and who that is.
//!
//! Every write asks the server whether the shelf is still as the home left it, and is done in the same step: a
//! script, on one slot. Beside the transfers stands a *term*, which whoever takes the shelf over begins anew, and how often it was
//! written in that term. A write of an earlier term is another home's; one that counts less than what is there was overtaken
//! on its way; and where the server counts less than the home, a failover has lost something.

use std::time::{Duration, Instant};

use kvindex_valkey::link::{Answers, Server, odd_answer};
use redis::{Pipeline, RedisError, Value, cmd};

use super::Setup;
use super::keys::{META, ShelfKeys};
use crate::transfer::ledger::book::Write;
use crate::transfer::ledger::record::{Millis, TransferId};
use crate::transfer::ledger::store::{Kept, StoreError, codec};
use crate::transfer::ledger::timers::millis;

/// Transfers are over, and forgotten, long before that.
const LEAST_TTL: Duration = Duration::from_secs(3600);

/// Keys: lease, transfers. Arguments: owner, term, commits from and to which the shelf may be at, the new
/// commits and clock, 1 to begin with nothing, lease and ttl in ms, how many fields are set, these with their values, fields that
/// are dropped.
const PUT: &str = r"
local holder, meta = redis.call('GET', KEYS[1]), redis.call('HGET', KEYS[2], 'm')
if holder and holder ~= ARGV[1] then return 'lost' end
if meta then
  local term, at = string.match(meta, '^(%x+) (%d+) ')
  if term ~= ARGV[2] or tonumber(at) > tonumber(ARGV[4]) then return 'lost' end
  if ARGV[6] == '0' and tonumber(at) < tonumber(ARGV[3]) then return 'forgotten' end
elseif ARGV[6] == '0' then
  return 'forgotten'
end
if ARGV[6] == '1' then redis.call('DEL', KEYS[2]) end
redis.call('HSET', KEYS[2], 'm', ARGV[2] .. ' ' .. ARGV[5])
local sets = tonumber(ARGV[9])
for i = 10, 8 + 2 * sets, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
for i = 10 + 2 * sets, #ARGV do redis.call('HDEL', KEYS[2], ARGV[i]) end
redis.call('PEXPIRE', KEYS[2], ARGV[8])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[7])
return 'done'
";

/// Keys: lease, transfers. Arguments: owner, term, lease in ms.
const TAKE: &str = r"
if redis.call('EXISTS', KEYS[1]) == 1 then return false end
local meta = redis.call('HGET', KEYS[2], 'm')
if not meta then return false end
redis.call('HSET', KEYS[2], 'm', ARGV[2] .. string.match(meta, ' .*$'))
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return redis.call('HGETALL', KEYS[2])
";

/// Keys: lease, transfers. Arguments: owner, term, what the hash is to say from now on, ttl in ms. What stays of a
/// shelf says to a home that was paused that it is another's.
const RETIRE: &str = r"
local holder, meta = redis.call('GET', KEYS[1]), redis.call('HGET', KEYS[2], 'm')
if holder and holder ~= ARGV[1] then return 'lost' end
if not meta or string.match(meta, '^%x+') ~= ARGV[2] then return 'lost' end
redis.call('UNLINK', KEYS[2])
redis.call('HSET', KEYS[2], 'm', ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
redis.call('DEL', KEYS[1])
return 'done'
";

/// Keys: lease, transfers. Argument: owner.
const RELEASE: &str = r"
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 'done'
";

/// What all shelves of a replica have in common.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub namespace: String,
    /// This process's name on leases: where it is asked, a space, and what nobody else is called.
    pub owner: String,
    pub lease: Duration,
    /// How long a server may take to answer.
    pub timeout: Duration,
    /// How long transfers stay that nobody has any more.
    pub ttl: Duration,
    /// Replicas of a server that must have heard of a write.
    pub replicas: u32,
}

/// One shelf of which this process has the lease.
#[derive(Debug)]
pub(super) struct Shelf {
    keys: ShelfKeys,
    term: u64,
    /// How often it was written in all: the last write that was answered, and the last that was sent.
    answered: u64,
    sent: u64,
    /// Until when the lease is certain to be this process's.
    pub until: Instant,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// It is there.
    Done,
    /// Another has the shelf, or had it since.
    Lost,
    /// The servers lack what was written before.
    Forgotten,
}

impl Terms {
    pub fn new(setup: Setup) -> Terms {
        let Setup { servers, address, process, wait_replicas } = setup;
        Terms {
            namespace: servers.namespace,
            owner: format!("{address} {process}"),
            lease: servers.lease,
            timeout: servers.timeout,
            ttl: servers.ttl.max(LEAST_TTL),
            replicas: wait_replicas,
        }
    }

    /// A name for a shelf that no other has.
    pub fn new_name() -> String {
        format!("{:016x}{:016x}", random(), random())
    }
}

impl Shelf {
    /// A new one, of a name that nobody has used.
    pub async fn begin(server: &Server, terms: &Terms, name: &str) -> Result<Shelf, StoreError> {
        let (keys, term) = (ShelfKeys::new(&terms.namespace, name), random());
        let until = Instant::now() + terms.lease;
        let mut pipe = Pipeline::new();
        pipe.add_command(
            cmd("SET").arg(keys.lease()).arg(&terms.owner).arg("PX").arg(millis(terms.lease)).take(),
        );
        pipe.add_command(cmd("HSET").arg(keys.transfers()).arg(META).arg(meta(term, 0, 0)).take());
        pipe.add_command(cmd("PEXPIRE").arg(keys.transfers()).arg(millis(terms.ttl)).take());
        server.run(&mut pipe).await?;
        Ok(Shelf { keys, term, answered: 0, sent: 0, until })
    }

    /// Takes over one that nobody has, and what is on it. `None` where somebody has it, or there is nothing.
    pub async fn take(
        server: &Server,
        terms: &Terms,
        name: &str,
    ) -> Result<Option<(Shelf, Kept)>, StoreError> {
        let (keys, term) = (ShelfKeys::new(&terms.namespace, name), random());
        let until = Instant::now() + terms.lease;
        let mut take = keys.script(TAKE);
        take.arg(&terms.owner).arg(format!("{term:016x}")).arg(millis(terms.lease));
        let found = server.ask(take).await?.value()?;
        if found == Value::Nil {
            return Ok(None);
        }
        let (kept, commits) = read(Answers::new(vec![found]).list()?);
        Ok(Some((Shelf { keys, term, answered: commits, sent: commits, until }, kept)))
    }

    /// Writes what changed, and keeps the lease. With `anew` it is all there is.
    pub async fn put(
        &mut self,
        server: &Server,
        terms: &Terms,
        writes: &[&Write],
        clock: Millis,
        anew: bool,
    ) -> Result<Put, StoreError> {
        let begun = Instant::now();
        let mut put = self.keys.script(PUT);
        put.arg(&terms.owner).arg(format!("{:016x}", self.term)).arg(self.answered).arg(self.sent);
        self.sent += 1;
        put.arg(format!("{} {clock}", self.sent)).arg(u8::from(anew));
        put.arg(millis(terms.lease)).arg(millis(terms.ttl));
        put.arg(writes.iter().filter(|w| matches!(w, Write::Put(_))).count());
        for write in writes {
            if let Write::Put(record) = write {
                put.arg(&record.id.bytes()[..]).arg(codec::encode(record));
            }
        }
        for write in writes {
            if let Write::Delete(id) = write {
                put.arg(&id.bytes()[..]);
            }
        }
        match run(server, put).await?.as_deref() {
            Some("done") => {}
            Some("lost") => return Ok(Put::Lost),
            Some("forgotten") => return Ok(Put::Forgotten),
            Some(_) | None => return Err(odd_answer().into()),
        }
        (self.answered, self.until) = (self.sent, begun + terms.lease);
        if terms.replicas > 0 && !writes.is_empty() {
            server.heard_by(&self.keys.lease(), terms.replicas, terms.timeout).await?;
            // The connection may have broken meanwhile, and another server may have counted for what it never had.
            let there = server.ask(cmd("HGET").arg(self.keys.transfers()).arg(META).take()).await?.text()?;
            if there.is_none_or(|there| !there.starts_with(&format!("{:016x} {} ", self.term, self.sent))) {
                return Ok(Put::Forgotten);
            }
        }
        Ok(Put::Done)
    }

    /// Ends it: nothing is on it any more. False where another has it.
    pub async fn retire(self, server: &Server, terms: &Terms) -> Result<bool, RedisError> {
        let mut retire = self.keys.script(RETIRE);
        retire.arg(&terms.owner).arg(format!("{:016x}", self.term));
        retire.arg(meta(random(), 0, 0)).arg(millis(terms.ttl));
        Ok(run(server, retire).await?.as_deref() == Some("done"))
    }

    /// Lets another take it over at once.
    pub async fn release(&self, server: &Server, terms: &Terms) -> Result<(), RedisError> {
        let mut release = self.keys.script(RELEASE);
        release.arg(&terms.owner);
        run(server, release).await.map(drop)
    }
}

/// Runs one script that says a word.
async fn run(server: &Server, script: redis::Cmd) -> Result<Option<String>, RedisError> {
    server.ask(script).await?.text()
}

/// All that a shelf's hash has, and how often it was written.
pub(super) fn read(all: Vec<Option<Vec<u8>>>) -> (Kept, u64) {
    let (mut kept, mut commits) = (Kept::default(), 0);
    for pair in all.chunks_exact(2) {
        let [Some(field), Some(value)] = pair else { continue };
        if field == META {
            let words = std::str::from_utf8(value).unwrap_or_default().split(' ').skip(1);
            let mut numbers = words.map(|word| word.parse().unwrap_or(0));
            (commits, kept.clock) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
            continue;
        }
        match (TransferId::from_bytes(field), codec::decode(value)) {
            (Some(id), Ok(record)) if record.id == id => kept.records.push(record),
            _ => kept.unreadable += 1,
        }
    }
    (kept, commits)
}

/// Term, commits, and the latest time.
fn meta(term: u64, commits: u64, clock: Millis) -> String {
    format!("{term:016x} {commits} {clock}")
}

/// A number that no other process has.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(Instant::now())
}

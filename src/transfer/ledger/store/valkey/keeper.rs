//! All shelves of one replica: its own, and those it took over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvindex_valkey::link::Server;
use redis::cmd;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::runtime::Handle;
use tracing::{info, warn};

use super::library::{Library, lapsed};
use super::shelf::{Put, Shelf, Terms};
use super::{Setup, keys};
use crate::transfer::ledger::book::Write;
use crate::transfer::ledger::record::{Millis, TransferId};
use crate::transfer::ledger::store::{Kept, Store, StoreError};

/// The ledger on Valkey, as one replica has it. Blocks, on a thread that is none of the runtime's.
pub struct Valkey {
    server: Server,
    runtime: Handle,
    terms: Terms,
    /// The shelf that new transfers come on.
    own: Option<Arc<str>>,
    /// Whether as many servers know that there is this shelf as have to hear of a write.
    known: bool,
    shelves: FxHashMap<Arc<str>, Held>,
    /// Where each transfer is.
    place: FxHashMap<TransferId, Arc<str>>,
    /// What others have now, until that is said: also where a shelf was lost with nothing on it yet, because what was
    /// to be written there was not.
    lost: Option<Vec<TransferId>>,
    /// The latest time that was written, by whomever.
    clock: Millis,
}

struct Held {
    shelf: Shelf,
    transfers: FxHashSet<TransferId>,
    /// What is on the servers is not to be relied on: all of it is written at the next write.
    anew: bool,
}

impl Valkey {
    /// Connects; has nothing yet. Also gives what reads others' transfers.
    ///
    /// # Errors
    /// Where no server can be reached.
    pub async fn connect(setup: Setup) -> Result<(Valkey, Library), StoreError> {
        let server = Server::connect(&setup.servers).await?;
        let terms = Terms::new(setup);
        let library = Library::new(server.clone(), &terms);
        let (shelves, place) = (FxHashMap::default(), FxHashMap::default());
        let runtime = Handle::current();
        let nothing =
            Valkey { server, runtime, terms, own: None, known: false, shelves, place, lost: None, clock: 0 };
        Ok((nothing, library))
    }

    fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(what)
    }

    /// A shelf for what is new, where there is none.
    fn own(&mut self) -> Result<Arc<str>, StoreError> {
        if let Some(own) = &self.own {
            return Ok(Arc::clone(own));
        }
        let name: Arc<str> = Terms::new_name().into();
        let shelf = self.wait(Shelf::begin(&self.server, &self.terms, &name))?;
        self.shelves.insert(Arc::clone(&name), Held::of(shelf));
        // What is on a shelf that nobody knows of would be found by nobody.
        if let Err(error) = self.note_shelves() {
            self.shelves.remove(&name);
            return Err(error);
        }
        (self.own, self.known) = (Some(Arc::clone(&name)), self.terms.replicas == 0);
        Ok(name)
    }

    /// Says on the servers which shelves there are: who looks for one looks there.
    fn note_shelves(&self) -> Result<(), StoreError> {
        let mut set = cmd("HSET").arg(keys::shelves(&self.terms.namespace)).take();
        self.shelves.keys().for_each(|name| _ = set.arg(&**name).arg(&self.terms.owner));
        self.wait(self.server.ask(set))?;
        Ok(())
    }

    /// Writes to one shelf. If that is another's now, what was on it is lost, and nothing is written: what is new can
    /// be written to another shelf.
    fn put(&mut self, name: &Arc<str>, writes: &[&Write], clock: Millis) -> Result<(), StoreError> {
        let (server, terms, runtime) = (&self.server, &self.terms, &self.runtime);
        let Some(held) = self.shelves.get_mut(name) else { return Ok(()) };
        self.clock = self.clock.max(clock);
        match runtime.block_on(held.shelf.put(server, terms, writes, self.clock, held.anew))? {
            Put::Done => {
                let again = std::mem::take(&mut held.anew);
                for write in writes {
                    let id = write.about();
                    if matches!(write, Write::Put(_)) {
                        held.transfers.insert(id);
                        self.place.insert(id, Arc::clone(name));
                    } else {
                        held.transfers.remove(&id);
                        self.place.remove(&id);
                    }
                }
                // What forgot the shelf may have forgotten that there is one.
                if again { self.note_shelves() } else { Ok(()) }
            }
            Put::Forgotten => {
                warn!(shelf = %name, "the servers lost what was written last to the ledger: writing all of it again");
                held.anew = true;
                Err(StoreError::RolledBack)
            }
            Put::Lost => {
                warn!(shelf = %name, transfers = held.transfers.len(), "another replica has taken transfers over");
                let transfers = self.drop_shelf(name);
                self.lost.get_or_insert_default().extend(transfers);
                Ok(())
            }
        }
    }

    fn write_shelves(&mut self, writes: &[Write], clock: Millis) -> Result<(), StoreError> {
        let own = self.own()?;
        if !self.known {
            let Terms { namespace, timeout, replicas, .. } = &self.terms;
            self.wait(self.server.heard_by(&keys::shelves(namespace), *replicas, *timeout))?;
            self.known = true;
        }
        let mut by_shelf: FxHashMap<Arc<str>, Vec<&Write>> = FxHashMap::default();
        for write in writes {
            let name = match (self.place.get(&write.about()), write) {
                (Some(name), _) => name,
                (None, Write::Put(_)) => &own,
                (None, Write::Delete(_)) => continue,
            };
            by_shelf.entry(Arc::clone(name)).or_default().push(write);
        }
        self.put_all(by_shelf, clock)
    }

    /// Writes to several shelves, also where one of them cannot be written.
    fn put_all<'w>(
        &mut self,
        shelves: impl IntoIterator<Item = (Arc<str>, Vec<&'w Write>)>,
        clock: Millis,
    ) -> Result<(), StoreError> {
        let mut done = Ok(());
        for (name, writes) in shelves {
            match self.put(&name, &writes, clock) {
                Err(StoreError::RolledBack) => done = Err(StoreError::RolledBack),
                Err(error) if done.is_ok() => done = Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        done
    }

    /// Keeps the leases of all shelves.
    fn renew(&mut self, clock: Millis) -> Result<(), StoreError> {
        self.own()?;
        let fresh = self.terms.lease * 3 / 4;
        // One that was written a moment ago needs no more.
        let due = |h: &Held| h.shelf.until.saturating_duration_since(Instant::now()) < fresh;
        let due = self.shelves.iter().filter(|(_, held)| due(held));
        let due: Vec<_> = due.map(|(name, _)| (Arc::clone(name), Vec::new())).collect();
        self.put_all(due, clock)
    }

    /// Says what was lost, once. Whatever else went wrong is tried again after that, but for what is to be written
    /// anew: that has to be handed over first.
    fn say_lost(&mut self, done: Result<(), StoreError>) -> Result<(), StoreError> {
        if let Err(StoreError::RolledBack) = done {
            return done;
        }
        self.lost.take().map_or(done, |lost| Err(StoreError::Lost(lost)))
    }

    fn drop_shelf(&mut self, name: &Arc<str>) -> FxHashSet<TransferId> {
        if self.own.as_ref() == Some(name) {
            self.own = None;
        }
        let transfers = self.shelves.remove(name).map(|h| h.transfers).unwrap_or_default();
        transfers.iter().for_each(|id| _ = self.place.remove(id));
        transfers
    }

    /// Ends shelves that were taken over and are empty now.
    fn retire_empty(&mut self) -> Result<(), StoreError> {
        let empty = |(name, held): (&Arc<str>, &Held)| {
            (held.transfers.is_empty() && self.own.as_ref() != Some(name)).then(|| Arc::clone(name))
        };
        let over: Vec<Arc<str>> = self.shelves.iter().filter_map(empty).collect();
        for name in over {
            let Some(held) = self.shelves.remove(&name) else { continue };
            if !self.wait(held.shelf.retire(&self.server, &self.terms))? {
                continue;
            }
            self.wait(
                self.server.ask(cmd("HDEL").arg(keys::shelves(&self.terms.namespace)).arg(&*name).take()),
            )?;
        }
        Ok(())
    }

    /// Takes over what nobody has.
    fn take_free(&mut self) -> Result<Kept, StoreError> {
        let (mut all, mut failed) = (Kept::default(), None);
        for name in self.wait(lapsed(&self.server, &self.terms.namespace))? {
            match self.take(name.into()) {
                Ok(kept) => {
                    all.clock = self.clock;
                    all.unreadable += kept.unreadable;
                    all.records.extend(kept.records);
                }
                Err(error) => failed = Some(error),
            }
        }
        // What was taken is this process's, and has to be followed first.
        failed.filter(|_| all.records.is_empty()).map_or(Ok(all), Err)
    }

    /// Takes one shelf over, where nobody has it.
    fn take(&mut self, name: Arc<str>) -> Result<Kept, StoreError> {
        if self.shelves.contains_key(&name) {
            return Ok(Kept::default());
        }
        let taken = self.wait(Shelf::take(&self.server, &self.terms, &name))?;
        let Some((shelf, kept)) = taken else { return Ok(Kept::default()) };
        info!(shelf = %name, transfers = kept.records.len(), "transfers taken over");
        let mut held = Held::of(shelf);
        for record in &kept.records {
            held.transfers.insert(record.id);
            self.place.insert(record.id, Arc::clone(&name));
        }
        self.shelves.insert(name, held);
        self.clock = self.clock.max(kept.clock);
        Ok(kept)
    }
}

impl Held {
    fn of(shelf: Shelf) -> Held {
        Held { shelf, transfers: FxHashSet::default(), anew: false }
    }
}

impl Store for Valkey {
    fn load(&mut self) -> Result<Kept, StoreError> {
        self.own()?;
        // What the last life had is another's, or nobody's once its lease has run out.
        self.take_free()
    }

    fn write(&mut self, writes: &[Write], clock: Millis) -> Result<(), StoreError> {
        self.say_lost(Ok(()))?;
        let done = self.write_shelves(writes, clock);
        self.say_lost(done)
    }

    fn beat(&self) -> Option<Duration> {
        // Also how soon somebody takes over what a replica lets go of.
        Some((self.terms.lease / 4).min(Duration::from_secs(1)))
    }

    fn keep(&mut self, clock: Millis) -> Result<Kept, StoreError> {
        self.say_lost(Ok(()))?;
        let done = self.renew(clock);
        self.say_lost(done)?;
        // Also where the servers have lost it.
        self.note_shelves()?;
        self.retire_empty()?;
        self.take_free()
    }

    fn held_until(&self) -> Option<Instant> {
        // Without a shelf of its own nothing is certain.
        let of_all = self.shelves.values().map(|h| h.shelf.until).min();
        let now = Instant::now();
        Some(of_all.filter(|_| self.own.is_some()).unwrap_or(now))
    }

    fn leave(&mut self) {
        for held in self.shelves.values() {
            if let Err(error) = self.wait(held.shelf.release(&self.server, &self.terms)) {
                warn!(%error, "transfers are taken over when their lease has run out");
            }
        }
    }
}

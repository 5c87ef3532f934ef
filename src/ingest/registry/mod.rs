//! Who is followed, and what it takes to follow them.

mod hubs;
mod views;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crossbeam_channel::Sender;
use kvindex::{HolderId, Index};
use parking_lot::{Mutex, RwLock};
use tracing::{info, warn};

use crate::ingest::apply::Signal;
use crate::ingest::budget::Budget;
use crate::ingest::config::{IngestConfig, Listen};
use crate::ingest::follow::Limits;
use crate::ingest::hub::Hub;
use crate::ingest::lane::{Lane, Place};
use crate::ingest::queue::QueueLimits;
use crate::ingest::reader::{Inflow, Inlet, Readers};
use crate::ingest::replay::Patience;
use crate::ingest::socket::Address;
use crate::ingest::spec::{check, holder_spec, profile};
use crate::ingest::stats::{Counter, Totals};
use crate::ingest::{RegisterError, Registered};
use crate::outcome::Account;
use crate::publisher::{Followed, Origin, PublisherKey, PublisherSpec, Selector};
use crate::shared::Mirror;
use crate::state::Catalog;

/// Silence after which a replay endpoint is asked whether anything was missed.
const CHECK_AFTER: std::time::Duration = std::time::Duration::from_secs(30);

/// A registration in force.
struct Entry {
    lane: Arc<Lane>,
    hub: Option<Arc<Hub>>,
    origin: Origin,
}

impl Entry {
    /// Registered by its topic; comes again by itself and is not kept on disk.
    fn is_stranger(&self) -> bool {
        self.origin == Origin::Topic
    }
}

#[derive(Default)]
struct Book {
    /// Whether lanes begin as soon as they are registered; before, a snapshot may come for them.
    begun: bool,
    entries: BTreeMap<PublisherKey, Entry>,
    /// By address.
    hubs: HashMap<String, (u64, Arc<Hub>)>,
    next_hub: u64,
    /// What publishers that are gone have counted.
    retired: Totals,
}

impl Book {
    /// Renews the registration that is the same in everything, if there is one.
    fn renew(&mut self, spec: &PublisherSpec, origin: &Origin) -> Option<Registered> {
        let same = self.entries.get_mut(&spec.key()).filter(|e| e.lane.spec == *spec)?;
        same.origin = origin.clone();
        same.lane.renew();
        Some(Registered { replaced: false, holder: same.lane.holder })
    }
}

/// When a registration is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Occasion {
    /// Now, and whoever made it waits for the answer.
    Asked,
    /// Before a restart: an address that cannot be used now may be again.
    Reloaded,
}

/// All registrations.
pub struct Registry {
    index: Arc<Index>,
    config: IngestConfig,
    /// Of all queues together.
    budget: Arc<Budget>,
    readers: Arc<Readers>,
    appliers: Vec<Sender<Signal>>,
    next_applier: AtomicU64,
    book: Mutex<Book>,
    by_holder: RwLock<HashMap<HolderId, Arc<Lane>>>,
    /// Instances registered, and how often.
    pods: RwLock<HashMap<String, usize>>,
    catalog: Arc<Catalog>,
    /// Held while writing, so that the last writer's view is the newest.
    saving: Mutex<()>,
    /// Messages on shared sockets that belong to nobody.
    pub unclaimed: Counter,
    /// Blocks of all publishers that reports contradict.
    distrusted: Arc<AtomicUsize>,
    /// The index that replicas share, where there is one.
    mirror: Option<Arc<Mirror>>,
}

impl Registry {
    /// A registry of nobody yet.
    pub fn new(
        index: Arc<Index>,
        config: IngestConfig,
        readers: Arc<Readers>,
        appliers: Vec<Sender<Signal>>,
        catalog: Arc<Catalog>,
        mirror: Option<Arc<Mirror>>,
    ) -> Registry {
        Registry {
            index,
            budget: Budget::new(config.total_queue_bytes),
            config,
            readers,
            appliers,
            next_applier: AtomicU64::new(0),
            book: Mutex::default(),
            by_holder: RwLock::default(),
            pods: RwLock::default(),
            catalog,
            saving: Mutex::default(),
            unclaimed: Counter::default(),
            distrusted: Arc::default(),
            mirror,
        }
    }

    /// Listens for engines that register themselves.
    pub fn listen(self: &Arc<Self>, listen: Listen) -> zmq::Result<()> {
        let mut book = self.book.lock();
        let bind = listen.bind.clone();
        self.open_hub(&mut book, &bind, Some(listen)).map(drop)
    }

    /// Follows a publisher from now on and keeps the registration.
    pub fn register(self: &Arc<Self>, followed: Followed) -> Result<Registered, RegisterError> {
        let registered = self.follow(followed, Occasion::Asked)?;
        self.save()?;
        Ok(registered)
    }

    /// Follows whoever was registered before a restart.
    pub fn reload(self: &Arc<Self>, followed: Followed) -> Result<Registered, RegisterError> {
        self.follow(followed, Occasion::Reloaded)
    }

    /// Stops following `leave`, then follows `follow`, and keeps that once. What cannot be followed is
    /// returned.
    ///
    /// # Errors
    /// If that cannot be kept; it is in force nevertheless.
    pub fn change(
        self: &Arc<Self>,
        leave: &[PublisherKey],
        follow: Vec<Followed>,
    ) -> Result<Vec<(PublisherKey, RegisterError)>, RegisterError> {
        {
            let mut book = self.book.lock();
            leave.iter().for_each(|key| drop(self.leave(&mut book, key)));
            self.close_idle(&mut book);
        }
        let mut refused = Vec::new();
        for followed in follow {
            let key = followed.spec.key();
            if let Err(error) = self.follow(followed, Occasion::Asked) {
                refused.push((key, error));
            }
        }
        self.save()?;
        Ok(refused)
    }

    /// Follows a stranger on `hub`, if there is room for more.
    pub fn welcome(self: &Arc<Self>, hub: &Hub, spec: PublisherSpec) -> Option<Arc<Lane>> {
        let here = |e: &&Entry| e.is_stranger() && e.lane.spec.bind.as_deref() == Some(hub.bind.as_str());
        if self.book.lock().entries.values().filter(here).count() >= hub.max_strangers() {
            return None;
        }
        match self.follow(Followed { spec, origin: Origin::Topic }, Occasion::Asked) {
            Ok(registered) => self.lane(registered.holder),
            Err(e) => {
                warn!(bind = hub.bind, error = %e, "engine that dialled in cannot be followed");
                None
            }
        }
    }

    fn follow(self: &Arc<Self>, followed: Followed, occasion: Occasion) -> Result<Registered, RegisterError> {
        self.follow_by(followed, occasion, true)
    }

    /// `begins` is false where the lane is to wait though others begin at once.
    fn follow_by(
        self: &Arc<Self>,
        Followed { spec, origin }: Followed,
        occasion: Occasion,
        begins: bool,
    ) -> Result<Registered, RegisterError> {
        check(&spec)?;
        // Leases are renewed often: no name is to be looked up for that.
        if let Some(renewed) = self.book.lock().renew(&spec, &origin) {
            return Ok(renewed);
        }
        let dial = spec.endpoint.as_deref().map(Address::look_up);
        let replay = spec.replay_endpoint.as_deref().map(Address::look_up);
        let mut book = self.book.lock();
        if let Some(renewed) = book.renew(&spec, &origin) {
            return Ok(renewed);
        }
        let key = spec.key();
        if !book.entries.contains_key(&key) && book.entries.len() >= self.config.max_publishers {
            return Err(RegisterError::TooMany { max: self.config.max_publishers });
        }
        // The old registration's topic may be the new one's.
        let replaced = book.entries.remove(&key).map(|old| self.part(old));
        let hub = match &spec.bind {
            Some(bind) => self.join(&mut book, bind, &spec, occasion)?,
            None => None,
        };
        let holder = self.index.attach(holder_spec(&spec));
        let lane = self.lane_for(spec, holder, replay);
        if let Some(address) = &dial {
            let inlet = Inlet::Live(holder);
            match self.readers.sockets().dial(address) {
                Ok((socket, connections)) => {
                    self.readers.add(inlet, socket, Inflow::Lane { lane: Arc::clone(&lane), connections });
                }
                Err(e) if occasion == Occasion::Reloaded => unusable(&lane, "endpoint", e),
                Err(e) => {
                    self.index.detach(holder);
                    self.mirror.iter().for_each(|m| m.leave(holder));
                    self.close_idle(&mut book);
                    return Err(RegisterError::Address { field: "endpoint", why: e.to_string() });
                }
            }
        }
        match &hub {
            Some(hub) => hub.add(&lane),
            None if lane.spec.bind.is_some() => {
                lane.note_error("bind: the address cannot be used".to_owned())
            }
            None => {}
        }
        *self.pods.write().entry(lane.spec.instance_id.clone()).or_default() += 1;
        self.by_holder.write().insert(holder, Arc::clone(&lane));
        if book.begun && begins {
            lane.begin();
        }
        let name = name_of(&lane.spec);
        info!(publisher = %name, holder = holder.0, replaced = replaced.is_some(), "following");
        book.entries.insert(key, Entry { lane, hub, origin });
        if let Some(counted) = &replaced {
            book.retired.merge(counted);
        }
        self.close_idle(&mut book);
        Ok(Registered { replaced: replaced.is_some(), holder })
    }

    fn lane_for(&self, spec: PublisherSpec, holder: HolderId, replay: Option<Address>) -> Arc<Lane> {
        let c = &self.config;
        let queue = QueueLimits {
            messages: c.queue_messages,
            bytes: c.queue_bytes,
            budget: Arc::clone(&self.budget),
        };
        let patience =
            Patience { timeout: c.replay_timeout, attempts: c.replay_attempts, total: c.replay_total };
        let limits = Limits {
            patience,
            held_batches: c.held_batches,
            held_bytes: c.held_bytes,
            check_after: CHECK_AFTER,
            doubt_for: c.doubt_for,
            dead_after: c.dead_after,
        };
        let applier = self.next_applier.fetch_add(1, Relaxed) as usize % self.appliers.len();
        let profile = profile(&spec, name_of(&spec));
        let place = Place {
            index: Arc::clone(&self.index),
            holder,
            account: Arc::new(Account::new(Arc::clone(&self.distrusted))),
            catalog: Arc::clone(&self.catalog),
            key: spec.key(),
            probe: None,
            counters: Arc::default(),
            feed: self.mirror.as_ref().and_then(|m| m.follow(holder, &holder_spec(&spec))),
        };
        Arc::new(Lane::new(spec, place, replay, profile, (queue, limits), self.appliers[applier].clone()))
    }

    /// Stops following, and returns what was counted.
    fn part(&self, entry: Entry) -> Totals {
        let lane = &entry.lane;
        if let Some(hub) = &entry.hub {
            hub.remove(lane);
        }
        lane.close();
        self.readers.remove(Inlet::Live(lane.holder));
        self.readers.remove(Inlet::Replay(lane.holder));
        self.by_holder.write().remove(&lane.holder);
        let mut pods = self.pods.write();
        if let Some(n) = pods.get_mut(&lane.spec.instance_id) {
            *n -= 1;
            if *n == 0 {
                pods.remove(&lane.spec.instance_id);
            }
        }
        drop(pods);
        self.index.detach(lane.holder);
        self.mirror.iter().for_each(|m| m.leave(lane.holder));
        let mut counted = Totals::default();
        counted.add(&lane.counters);
        counted
    }

    /// Lets everyone begin who did not go on from a snapshot, and from now on whoever is registered.
    pub fn begin(&self) {
        let mut book = self.book.lock();
        book.begun = true;
        book.entries.values().for_each(|e| e.lane.begin());
    }

    /// Follows `spec` anew with nothing known, and waits with that for a snapshot or
    /// [`Lane::begin`]. `None` where it is not followed, or cannot be again.
    pub fn follow_anew(self: &Arc<Self>, spec: &PublisherSpec) -> Option<Arc<Lane>> {
        let origin = {
            let mut book = self.book.lock();
            let entry = book.entries.remove(&spec.key())?;
            let origin = entry.origin.clone();
            let counted = self.part(entry);
            book.retired.merge(&counted);
            self.close_idle(&mut book);
            origin
        };
        if origin == Origin::Topic {
            // Its next message registers it again.
            return None;
        }
        self.follow_by(Followed { spec: spec.clone(), origin }, Occasion::Reloaded, false).ok()?;
        self.lane_by(&spec.key())
    }

    /// Stops following the publishers that `selector` means, and returns them.
    pub fn unregister(&self, selector: &Selector) -> Result<Vec<PublisherSpec>, RegisterError> {
        let mut removed = Vec::new();
        {
            let mut book = self.book.lock();
            let keys: Vec<PublisherKey> = book
                .entries
                .iter()
                .filter(|(_, e)| e.lane.spec.matches(selector))
                .map(|(key, _)| key.clone())
                .collect();
            removed.extend(keys.iter().filter_map(|key| self.leave(&mut book, key)));
            self.close_idle(&mut book);
        }
        if !removed.is_empty() {
            self.save()?;
        }
        Ok(removed)
    }

    fn leave(&self, book: &mut Book, key: &PublisherKey) -> Option<PublisherSpec> {
        let entry = book.entries.remove(key)?;
        let spec = entry.lane.spec.clone();
        info!(publisher = %name_of(&spec), "no longer following");
        let counted = self.part(entry);
        book.retired.merge(&counted);
        Some(spec)
    }

    fn save(&self) -> Result<(), RegisterError> {
        let _saving = self.saving.lock();
        let mut all = self.followed();
        all.retain(|f| f.origin != Origin::Topic);
        Ok(self.catalog.keep_publishers(&all)?)
    }
}

fn unusable(lane: &Lane, field: &str, e: zmq::Error) {
    warn!(publisher = %lane.spec.instance_id, field, error = %e, "address of a registered publisher cannot be used");
    lane.note_error(format!("{field}: {e}"));
}

/// A publisher's name in logs.
fn name_of(spec: &PublisherSpec) -> String {
    format!("{}/{}/{}#{}", spec.tenant_id, spec.model, spec.instance_id, spec.dp_rank)
}

//! From engines' sockets into the index, in order and without silent loss.
//!
//! ```text
//! ZMQ ─ reader.rs ─▶ lane.rs ─▶ follow.rs ─▶ kvindex::Index
//!          │ hub.rs, route.rs:     │ cursor.rs: what came when
//!          │ whose message?        └ repair.rs, replay.rs: what to do about a loss
//! registry: who is followed ─▶ state::Catalog
//! ```
//!
//! Reader threads only move messages into each publisher's bounded queue; apply threads take
//! turns over the queues. Read `cursor`, then `follow` and `repair`: they hold the rules and
//! have no sockets or clocks in them. `docs/ingest.md` says the same from outside.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Sender, unbounded};
use kvindex::{HolderId, Index};
use parking_lot::Mutex;
use tracing::info;

mod apply;
mod budget;
pub mod config;
mod cursor;
mod desk;
mod follow;
#[cfg(test)]
mod follow_tests;
mod gauges;
mod held;
mod hub;
mod lane;
mod loss;
mod message;
mod passing;
mod queue;
mod reader;
mod registry;
mod remarks;
mod repair;
mod replay;
mod resume;
mod route;
mod rules;
mod socket;
mod spec;
mod stats;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod vital;

pub use config::{IngestConfig, Listen};
pub use stats::Totals;

/// Following without sockets, threads and clocks, for the simulation in `tests/sim/`.
#[doc(hidden)]
pub mod pure {
    pub use super::budget::Budget;
    pub use super::cursor::Position;
    pub use super::desk::{expire, settle, work};
    pub use super::follow::{Follower, Limits, Profile, Request, Sink};
    pub use super::message::Message;
    pub use super::queue::{Item, Queue, QueueLimits};
    pub use super::replay::Patience;
    pub use super::rules::{Rule, Rules};
    pub use super::stats::Counters;
    pub use super::vital::Sign;
}

use crate::outcome::Account;
use crate::publisher::{Followed, Freshness, Origin, PublisherKey, PublisherSpec, PublisherStatus, Selector};
use crate::shared::Mirror;
use crate::state::{Catalog, CatalogError};
use apply::Signal;
pub(crate) use cursor::Position;
pub(crate) use lane::Lane;
use reader::Readers;
use registry::Registry;
pub(crate) use vital::Sign;

/// A registration that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Whether one of the same tenant, model, instance and rank was replaced.
    pub replaced: bool,
    /// Its place in the index.
    pub holder: HolderId,
}

/// A registration that was not accepted or not kept.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// A field makes no sense.
    #[error("{field}: {why}")]
    Invalid {
        /// Which field of [`PublisherSpec`].
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// An address cannot be used here.
    #[error("{field}: {why}")]
    Address {
        /// Which field of [`PublisherSpec`].
        field: &'static str,
        /// What the system says.
        why: String,
    },
    /// There are as many publishers as there may be.
    #[error("{max} publishers are registered already")]
    TooMany {
        /// The limit.
        max: usize,
    },
    /// What was registered or unregistered is in force, but will not survive a restart.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// Ingest that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A registration that was kept makes no sense any more.
    #[error("registered publisher {instance}: {error}")]
    Reload {
        /// Its instance.
        instance: String,
        /// Why not.
        error: RegisterError,
    },
    /// An address to listen at cannot be used.
    #[error("listen at {bind}: {error}")]
    Listen {
        /// The address.
        bind: String,
        /// Why not.
        error: zmq::Error,
    },
    /// The system gives no sockets or threads.
    #[error("start ingest threads: {0}")]
    Threads(std::io::Error),
}

/// Everyone who is followed.
pub struct Publishers {
    registry: Arc<Registry>,
    catalog: Arc<Catalog>,
    readers: Arc<Readers>,
    appliers: Vec<Sender<Signal>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Publishers {
    /// Starts the threads and listens again to whoever is registered in `catalog`; `None` keeps
    /// registrations in memory only. [`begin`](Self::begin) makes it follow them.
    ///
    /// # Errors
    /// If an address to listen at cannot be used, or a registration that was kept makes no sense.
    pub fn start(
        index: Arc<Index>,
        config: IngestConfig,
        catalog: Option<Arc<Catalog>>,
    ) -> Result<Arc<Publishers>, StartError> {
        Publishers::start_with(index, config, catalog, None)
    }

    /// The same with an index that replicas share, which is told all that this one is.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub fn start_with(
        index: Arc<Index>,
        config: IngestConfig,
        catalog: Option<Arc<Catalog>>,
        mirror: Option<Arc<Mirror>>,
    ) -> Result<Arc<Publishers>, StartError> {
        let catalog = catalog.unwrap_or_else(|| Arc::new(Catalog::in_memory()));
        let specs = catalog.publishers();
        let n = config.threads.max(1);
        let listens = config.listen.clone();
        let system = |e: zmq::Error| StartError::Threads(std::io::Error::from_raw_os_error(e.to_raw()));
        let (readers, ends) =
            Readers::new(n, config.max_publishers, config.max_message_bytes).map_err(system)?;
        let readers = Arc::new(readers);
        let (appliers, signals): (Vec<_>, Vec<_>) = (0..n).map(|_| unbounded()).unzip();
        let publishers = Arc::new(Publishers {
            registry: Arc::new(Registry::new(
                index,
                config,
                Arc::clone(&readers),
                appliers.clone(),
                Arc::clone(&catalog),
                mirror,
            )),
            catalog,
            readers,
            appliers,
            threads: Mutex::default(),
        });
        for (i, end) in ends.into_iter().enumerate() {
            publishers.spawn(format!("kvd-read-{i}"), move || end.run())?;
        }
        for (i, signals) in signals.into_iter().enumerate() {
            let readers = Arc::clone(&publishers.readers);
            publishers.spawn(format!("kvd-apply-{i}"), move || apply::run(&signals, &readers))?;
        }
        for listen in listens {
            let bind = listen.bind.clone();
            publishers.registry.listen(listen).map_err(|error| StartError::Listen { bind, error })?;
        }
        let kept = specs.len();
        for followed in specs {
            let instance = followed.spec.instance_id.clone();
            publishers.registry.reload(followed).map_err(|error| StartError::Reload { instance, error })?;
        }
        info!(publishers = kept, threads = n, "ingest started");
        Ok(publishers)
    }

    fn spawn(&self, name: String, run: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
        let thread = thread::Builder::new().name(name).spawn(run).map_err(StartError::Threads)?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Follows a publisher from now on. One of the same tenant, model, instance and rank is
    /// replaced; if it is the same in everything, nothing happens. Looks host names up and
    /// writes to disk, so it may take a while. A specification alone is by a client.
    ///
    /// # Errors
    /// If the registration makes no sense, or cannot be kept.
    pub fn register(&self, followed: impl Into<Followed>) -> Result<Registered, RegisterError> {
        self.registry.register(followed.into())
    }

    /// Stops following `leave`, then follows `follow`, and writes that to disk once. Returns what cannot
    /// be followed.
    ///
    /// # Errors
    /// If that cannot be kept; it is in force nevertheless.
    pub fn change(
        &self,
        leave: &[PublisherKey],
        follow: Vec<Followed>,
    ) -> Result<Vec<(PublisherKey, RegisterError)>, RegisterError> {
        self.registry.change(leave, follow)
    }

    /// All registrations and who they are by, by tenant, model, instance and rank.
    pub fn followed(&self) -> Vec<Followed> {
        self.registry.followed()
    }

    /// Stops following, and returns whom.
    ///
    /// # Errors
    /// If that cannot be kept; it is in force nevertheless.
    pub fn unregister(&self, selector: &Selector) -> Result<Vec<PublisherSpec>, RegisterError> {
        self.registry.unregister(selector)
    }

    /// Registrations whose lease has ended, and those of dead engines that registered themselves.
    pub fn gone(&self) -> Vec<PublisherSpec> {
        self.registry.gone()
    }

    /// Follows in earnest from now on. Until then whoever is registered is listened to and held back,
    /// so that a snapshot can be put in first.
    pub fn begin(&self) {
        self.registry.begin();
    }

    /// Whether any lane waits for a snapshot.
    pub fn is_anyone_waiting(&self) -> bool {
        self.registry.lanes().iter().any(|lane| lane.is_waiting())
    }

    /// Follows anew with nothing known, once the lane begins or goes on from a snapshot.
    pub(crate) fn follow_anew(&self, spec: &PublisherSpec) -> Option<Arc<Lane>> {
        self.registry.follow_anew(spec)
    }

    /// The lane of a publisher.
    pub(crate) fn lane_by(&self, key: &PublisherKey) -> Option<Arc<Lane>> {
        self.registry.lane_by(key)
    }

    /// Every lane.
    pub(crate) fn lanes(&self) -> Vec<Arc<Lane>> {
        self.registry.lanes()
    }

    /// The lane of just this registration, unless it is seen to be of another engine now.
    pub(crate) fn lane_of(&self, spec: &PublisherSpec, origin: &Origin) -> Option<Arc<Lane>> {
        self.registry.lane_of(spec, origin)
    }

    /// Who a lane's registration is by.
    pub(crate) fn origin_of(&self, lane: &Lane) -> Origin {
        self.registry.origin_of(lane)
    }

    /// All publishers, by tenant, model, instance and rank.
    pub fn list(&self) -> Vec<PublisherStatus> {
        self.registry.list()
    }

    /// How far answers about `holder` can be trusted; `None` if nobody is registered under it.
    pub fn freshness(&self, holder: HolderId) -> Option<Freshness> {
        self.registry.freshness(holder)
    }

    /// How far answers about each of `holders` can be trusted, in their order.
    pub fn freshness_of(&self, holders: impl Iterator<Item = HolderId>) -> Vec<Option<Freshness>> {
        self.registry.freshness_of(holders)
    }

    /// Where registrations are kept.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// What came of answers about `holder`; `None` if nobody is registered under it.
    pub fn account(&self, holder: HolderId) -> Option<Arc<Account>> {
        self.registry.account(holder)
    }

    /// How a publisher was registered.
    pub fn spec(&self, holder: HolderId) -> Option<PublisherSpec> {
        self.registry.lane(holder).map(|lane| lane.spec.clone())
    }

    /// Blocks of all publishers that do not count, because reports contradict them.
    pub fn distrusted(&self) -> usize {
        self.registry.distrusted()
    }

    /// Hands a message to a publisher's lane, as its reader would.
    #[cfg(test)]
    pub(crate) fn deliver(&self, holder: HolderId, topic: &[u8], seq: &[u8], payload: &[u8]) {
        let message = [topic, seq, payload].iter().collect();
        let lane = self.registry.lane(holder).expect("it is registered");
        lane.push_sign(Sign::Greeted);
        lane.push_live(message, std::time::Instant::now());
    }

    /// Sums over all publishers, those that are gone too.
    pub fn totals(&self) -> Totals {
        self.registry.totals()
    }

    /// Stops the threads. Registrations stay on disk.
    pub fn stop(&self) {
        self.readers.stop();
        for applier in &self.appliers {
            // One that is gone has stopped.
            let _ = applier.send(Signal::Stop);
        }
        for thread in self.threads.lock().drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Drop for Publishers {
    fn drop(&mut self) {
        self.stop();
    }
}

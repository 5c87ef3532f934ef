//! How do several kvd know the same?
//!
//! ```text
//! start:   bootstrap ─▶ a warm peer's snapshot ─▶ snapshot::load ─▶ lanes go on from there
//! running: Service ─ outbox ─▶ link (one per peer) ─ Tell ─▶ api ─▶ the peer's Service
//! always:  digests ─ GetDigest ─▶ the same batch, the same blocks? else learn anew from the peer
//! ```
//!
//! Every replica follows every publisher by itself, so nothing here is needed for answers to be exact; it
//! makes a new replica warm sooner, and announced routings and registrations known everywhere. What is
//! sent is best effort, bounded and counted.

pub mod api;
pub mod book;
mod bootstrap;
mod digests;
mod link;
mod outbox;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::lookup_host;
use tokio::task::JoinHandle;
use tracing::{debug, info};

pub use book::Book;
pub use bootstrap::bootstrap;
pub use outbox::Outbox;

use crate::guard::Dialer;
use crate::serve::Service;

/// How often names are looked up again.
const LOOK_UP: Duration = Duration::from_secs(5);
/// Replicas that are spoken to; more are not one cluster's.
const MAX_PEERS: usize = 64;

/// Who the others are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeersConfig {
    /// Their gRPC addresses, `host:port`. A name may stand for several, as that of a headless service
    /// does, and this replica itself may be among them.
    pub addresses: Vec<String>,
    /// How often what publishers hold is compared with a peer; zero = never.
    pub compare_every: Duration,
}

impl Default for PeersConfig {
    fn default() -> Self {
        PeersConfig { addresses: Vec::new(), compare_every: Duration::from_secs(60) }
    }
}

/// What happened among replicas, counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// News sent.
    pub sent: AtomicU64,
    /// News that a peer was too slow for.
    pub dropped: AtomicU64,
    /// News heard.
    pub heard: AtomicU64,
    /// News refused: malformed, or of what is not known here.
    pub refused: AtomicU64,
    /// Digests compared.
    pub compared: AtomicU64,
    /// Digests that differed.
    pub differed: AtomicU64,
    /// Publishers learnt anew because of that.
    pub repaired: AtomicU64,
    /// Bytes of snapshots given to others.
    pub given: AtomicU64,
}

/// What a replica keeps about the others.
pub struct Peers {
    /// A number of this process.
    pub node: u64,
    /// News on their way.
    pub outbox: Outbox,
    /// What is known of registrations, and since when.
    pub book: Mutex<Book>,
    /// Counts.
    pub counts: Arc<Counts>,
    config: PeersConfig,
    /// How they are reached.
    dialer: Dialer,
    /// Peers that answered, and whether they are warm.
    alive: Mutex<HashMap<SocketAddr, bool>>,
    /// When the last snapshot for others was begun.
    giving: tokio::sync::Mutex<()>,
}

impl Peers {
    /// Knows nobody yet.
    pub fn new(config: PeersConfig, dialer: Dialer) -> Peers {
        let counts = Arc::new(Counts::default());
        Peers {
            node: random(),
            outbox: Outbox::new(Arc::clone(&counts)),
            book: Mutex::default(),
            counts,
            config,
            dialer,
            alive: Mutex::default(),
            giving: tokio::sync::Mutex::default(),
        }
    }

    /// How many others answer.
    pub fn connected(&self) -> usize {
        self.alive.lock().len()
    }

    /// Everyone at the configured addresses, this replica perhaps among them.
    async fn everyone(&self) -> Vec<SocketAddr> {
        let mut all = Vec::new();
        for address in &self.config.addresses {
            match lookup_host(address).await {
                Ok(found) => all.extend(found),
                // Other replicas' names come and go with them.
                Err(error) => debug!(address, %error, "peers not found"),
            }
        }
        all.sort_unstable();
        all.dedup();
        all.truncate(MAX_PEERS);
        all
    }

    fn note_alive(&self, address: SocketAddr, warm: Option<bool>) {
        let mut alive = self.alive.lock();
        let known = match warm {
            Some(warm) => alive.insert(address, warm).is_some(),
            None => alive.remove(&address).is_some(),
        };
        if known != warm.is_some() {
            info!(%address, connected = warm.is_some(), "peer");
        }
    }

    fn warm(&self) -> Vec<SocketAddr> {
        self.alive.lock().iter().filter(|(_, warm)| **warm).map(|(a, _)| *a).collect()
    }
}

/// Speaks with the others until dropped: links come and go with the addresses that names stand for.
pub async fn run(service: Arc<Service>) {
    let peers = &service.peers;
    if peers.config.addresses.is_empty() {
        return;
    }
    let comparing = tokio::spawn(digests::run(Arc::clone(&service)));
    let _stops_with_this = AbortOnDrop(comparing);
    let mut links: HashMap<SocketAddr, AbortOnDrop> = HashMap::new();
    loop {
        let everyone = peers.everyone().await;
        links.retain(|address, link| everyone.contains(address) && !link.0.is_finished());
        for address in everyone {
            links
                .entry(address)
                .or_insert_with(|| AbortOnDrop(tokio::spawn(link::run(Arc::clone(&service), address))));
        }
        tokio::time::sleep(LOOK_UP).await;
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A number that two replicas do not share.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // The standard library's seed comes from the system; the process id is for where it does not.
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
}

/// A part of `of`, at random, so that replicas which start together do not act together.
pub(crate) fn jitter(of: Duration) -> Duration {
    of.mul_f64((random() >> 11) as f64 / (1u64 << 53) as f64)
}

impl Counts {
    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }
}

//! Nodes that pull from each other over loopback, and sources that are not what they should be.

mod hostile;
mod pulls;

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::node::tests::{BYTES, Listener, config, key, payload, store};
use crate::node::{Node, PoolId, Tiers};
use crate::policy::Owner;

const PATIENCE: Duration = Duration::from_millis(300);

fn secret() -> Secret {
    Secret::new(b"sixteen bytes of it").unwrap()
}

/// A node that has had an engine of model `llama`.
struct Site {
    node: Arc<Node>,
    pool: PoolId,
    owner: Owner,
    _folder: TempDir,
}

impl Site {
    /// With 40 blocks of RAM and 80 of disk.
    fn new() -> Site {
        Site::with(40, 80)
    }

    fn with(ram: u64, disk: u64) -> Site {
        let folder = tempfile::tempdir().unwrap();
        let node = Site::open(folder.path(), ram, disk);
        let (pool, owner) = (node.pool(BYTES).unwrap(), node.owner("llama", "").unwrap());
        node.name_model(42, "llama").unwrap();
        Site { node, pool, owner, _folder: folder }
    }

    fn open(folder: &Path, ram: u64, disk: u64) -> Arc<Node> {
        let listener = Arc::new(Listener::default());
        let node = Node::open(config(folder, ram, disk, &Arc::new(AtomicU64::new(1000))), listener).unwrap();
        node.recover().unwrap();
        Arc::new(node)
    }

    fn store(&self, numbers: &[u64]) {
        let stored = store(&self.node, self.pool, self.owner, numbers);
        assert!(stored.iter().all(|stored| *stored == crate::node::Stored::Kept), "{stored:?}");
    }

    /// Whether this node has each of `numbers` in RAM or on disk, with the right bytes.
    fn has(&self, numbers: &[u64]) -> Vec<bool> {
        let reads = crate::node::tests::load(&self.node, self.pool, numbers);
        reads.into_iter().map(|read| read == crate::store::Read::Hit).collect()
    }

    fn source(&self) -> Source {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let config = SourceConfig { secret: secret(), connections: 4, patience: PATIENCE };
        Source::start(self.node.clone(), listener, config).unwrap()
    }

    fn puller(&self) -> Puller {
        self.puller_that_knows(secret())
    }

    fn puller_that_knows(&self, secret: Secret) -> Puller {
        let config =
            PullConfig { secret, patience: PATIENCE, workers: 2, waiting: 8, ..PullConfig::default() };
        Puller::start(self.node.clone(), config).unwrap()
    }
}

/// A wish for `numbers` from whoever listens at `source`.
fn wish(source: impl ToString, numbers: &[u64]) -> Wish {
    Wish {
        source: source.to_string(),
        model: "llama".into(),
        hashes: numbers.to_vec(),
        only: Default::default(),
        stay: 0,
    }
}

/// Wishes, and waits for what comes of it.
fn pull(puller: &Puller, wish: Wish) -> Pulled {
    let said = puller.wish(wish).expect("taken");
    said.recv_timeout(Duration::from_secs(20)).expect("nothing is stuck")
}

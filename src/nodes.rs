//! Connections to the tiers of nodes (`kvd tier`): one to each, made when it is first used.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kvproto::rpc::kv::tier_service_client::TierServiceClient;
use tokio::sync::Semaphore;
use tonic::transport::{Endpoint, Error};

use crate::guard::Dialer;
use crate::guard::dial::Link;

/// How long connecting and a call may take: after that, what it was for is over.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// Calls to one node under way at a time.
const AT_ONCE: usize = 4;
/// Nodes that connections are kept to. With more, all are made anew.
const MOST_NODES: usize = 4096;

/// A node.
#[derive(Clone)]
pub(crate) struct Node {
    pub client: TierServiceClient<Link>,
    /// One is taken for each call.
    pub calls: Arc<Semaphore>,
}

/// All that were reached, by `host:port`.
pub(crate) struct Nodes {
    dialer: Dialer,
    reached: HashMap<String, Node>,
}

impl Nodes {
    /// None yet; they are reached as `dialer` says.
    pub fn new(dialer: Dialer) -> Nodes {
        Nodes { dialer, reached: HashMap::new() }
    }

    /// The node at `to`. Its connection is made when it is used, and again when it broke.
    ///
    /// # Errors
    /// Where `to` is no address.
    pub fn at(&mut self, to: &str) -> Result<Node, Error> {
        if let Some(node) = self.reached.get(to) {
            return Ok(node.clone());
        }
        let endpoint =
            Endpoint::from_shared(format!("http://{to}"))?.connect_timeout(PATIENCE).tcp_nodelay(true);
        let client = TierServiceClient::new(self.dialer.connect_lazily(&endpoint, PATIENCE));
        let node = Node { client, calls: Arc::new(Semaphore::new(AT_ONCE)) };
        if self.reached.len() >= MOST_NODES {
            self.reached.clear();
        }
        self.reached.insert(to.to_owned(), node.clone());
        Ok(node)
    }
}

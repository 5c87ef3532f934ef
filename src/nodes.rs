//! Connections to the tiers of nodes (`kvd tier`): one to each, made when it is first used.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kvproto::rpc::kv::tier_service_client::TierServiceClient;
use tokio::sync::Semaphore;
use tonic::transport::{Channel, Endpoint, Error};

/// How long connecting and a call may take: after that, what it was for is over.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// Calls to one node under way at a time.
const AT_ONCE: usize = 4;
/// Nodes that connections are kept to. With more, all are made anew.
const MOST_NODES: usize = 4096;

/// A node.
#[derive(Clone)]
pub(crate) struct Node {
    pub client: TierServiceClient<Channel>,
    /// One is taken for each call.
    pub calls: Arc<Semaphore>,
}

/// All that were reached, by `host:port`.
#[derive(Default)]
pub(crate) struct Nodes(HashMap<String, Node>);

impl Nodes {
    /// The node at `to`. Its connection is made when it is used, and again when it broke.
    ///
    /// # Errors
    /// Where `to` is no address.
    pub fn at(&mut self, to: &str) -> Result<Node, Error> {
        if let Some(node) = self.0.get(to) {
            return Ok(node.clone());
        }
        let endpoint =
            Endpoint::from_shared(format!("http://{to}"))?.connect_timeout(PATIENCE).tcp_nodelay(true);
        let client = TierServiceClient::new(endpoint.connect_lazy());
        let node = Node { client, calls: Arc::new(Semaphore::new(AT_ONCE)) };
        if self.0.len() >= MOST_NODES {
            self.0.clear();
        }
        self.0.insert(to.to_owned(), node.clone());
        Ok(node)
    }
}

//! A server that speaks like S3, and what it is like when the way to it breaks or it dies.
//!
//! Between the nodes and the server stands a relay that can stop after so many bytes.

mod relay;
mod server;
mod speed;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use kvtier::shared::{Shared, store_at};
use kvtier::store::Read;
use object_store::aws::AmazonS3Builder;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};

use crate::contract::keeps_the_contract;
use crate::rig::{Rig, key};
use relay::{AtLimit, Relay};
use server::Server;

const BYTES: usize = 256 << 10;

/// A server, the way to it, and nodes.
struct Site {
    server: Server,
    relay: Relay,
    rig: Rig,
}

impl Site {
    /// `None`, and said so, where no server is named.
    fn new() -> Option<Site> {
        let server = Server::start()?;
        let relay = Relay::to(server.port());
        let rig = Rig::new(client(&at(relay.port())), BYTES);
        Some(Site { server, relay, rig })
    }
}

fn at(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

fn client(endpoint: &str) -> Arc<dyn ObjectStore> {
    // Whoever opened a bucket has what TLS needs, which any client wants to see.
    store_at("s3://bucket").unwrap();
    let backoff = BackoffConfig { init_backoff: Duration::from_millis(10), ..BackoffConfig::default() };
    let retry = RetryConfig { backoff, max_retries: 1, retry_timeout: Duration::from_secs(5) };
    let s3 = AmazonS3Builder::new()
        .with_bucket_name(server::BUCKET)
        .with_region("us-east-1")
        .with_access_key_id("test")
        .with_secret_access_key("test")
        .with_endpoint(endpoint)
        .with_allow_http(true)
        .with_retry(retry);
    Arc::new(s3.build().unwrap())
}

#[test]
fn a_server_keeps_the_contract() {
    let Some(site) = Site::new() else { return };
    keeps_the_contract(&site.rig);
}

#[test]
fn a_server_behind_tls_that_is_not_there_is_an_error_and_no_more() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let rig = Rig::new(client(&format!("https://{nobody}")), BYTES);
    let node = rig.node();
    assert_eq!((rig.put(&node, &[1]), node.failed()), (vec![false], 1));
}

#[test]
fn a_put_that_breaks_off_leaves_nothing_that_can_be_read() {
    let Some(site) = Site::new() else { return };
    let rig = &site.rig;
    // In the head, in a payload, in the trailer.
    let payloads = 4 * BYTES as u64;
    for limit in [10, 700, payloads / 3, payloads - 5, payloads + 300] {
        let node = rig.node();
        site.relay.limit(limit, AtLimit::Break);
        assert_eq!(rig.put(&node, &[1, 2, 3, 4]), [false; 4], "broken off after {limit} bytes");
        assert!(node.failed() > 0);
        site.relay.open();
        // What the server made of it is no object with a block, for whoever looks.
        let late = rig.node();
        assert_eq!(late.news().came, [], "broken off after {limit} bytes");
        assert_eq!(rig.get(&late, &[1, 2, 3, 4]), [Read::Miss; 4]);
    }
    // The same chain is put all the same when that works.
    assert_eq!(rig.put(&rig.node(), &[1, 2, 3, 4]), [true; 4]);
    assert_eq!(rig.get(&rig.late_node(), &[1, 2, 3, 4]), [Read::Hit; 4]);
}

#[test]
fn a_server_that_is_killed_in_mid_put_costs_the_put_and_what_it_forgot() {
    let Some(mut site) = Site::new() else { return };
    let rig = &site.rig;
    let node = rig.node();
    assert_eq!(rig.put(&node, &[1, 2]), [true; 2]);
    // Half of the next put has arrived when there is no server any more.
    site.relay.limit(2 * BYTES as u64, AtLimit::Hold);
    let put = std::thread::scope(|scope| {
        let putting = scope.spawn(|| rig.put(&node, &[11, 12, 13, 14]));
        site.relay.wait_until_held();
        site.server.kill();
        site.relay.open();
        putting.join().unwrap()
    });
    assert_eq!(put, [false; 4]);
    assert_eq!(rig.get(&node, &[1]), [Read::Lost]);
    assert!(node.failed() > 0);
    site.server.start_again();
    let left = node.news().left;
    // Whether or not it remembers what was whole, nobody reads what was not.
    assert_eq!(rig.get(&rig.late_node(), &[11, 12, 13, 14]), [Read::Miss; 4]);
    if site.server.forgets() {
        assert!(left.contains(&key(2)), "{left:?}");
        assert_eq!(rig.get(&node, &[1, 2]), [Read::Miss; 2]);
    } else {
        assert_eq!(rig.get(&node, &[1, 2]), [Read::Hit; 2]);
    }
    assert_eq!(rig.put(&node, &[1, 2]), [true; 2]);
    assert_eq!(rig.put(&node, &[11, 12, 13, 14]), [true; 4]);
    assert_eq!(rig.get(&node, &[1, 2, 11, 12, 13, 14]), [Read::Hit; 6]);
}

//! News on their way to peers: bounded, and a slow peer loses some rather than keeping others waiting.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use kvproto::rpc::kv::PeerNews;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};

use super::Counts;

/// News and bytes that may wait for one peer.
const MAX_NEWS: usize = 4096;
const MAX_BYTES: usize = 32 << 20;

/// Where news wait.
pub struct Outbox {
    to: Mutex<HashMap<SocketAddr, Lane>>,
    counts: Arc<Counts>,
}

#[derive(Clone)]
struct Lane {
    news: mpsc::Sender<(usize, PeerNews)>,
    bytes: Arc<AtomicUsize>,
}

impl Outbox {
    /// To nobody.
    pub fn new(counts: Arc<Counts>) -> Outbox {
        Outbox { to: Mutex::default(), counts }
    }

    /// Whether anybody hears.
    pub fn is_idle(&self) -> bool {
        self.to.lock().is_empty()
    }

    /// Tells everyone who is connected.
    pub fn tell(&self, news: &PeerNews) {
        let size = news.encoded_len();
        for lane in self.to.lock().values() {
            let fits = lane.bytes.fetch_add(size, Relaxed) + size <= MAX_BYTES;
            if fits && lane.news.try_send((size, news.clone())).is_ok() {
                Counts::add(&self.counts.sent, 1);
            } else {
                lane.bytes.fetch_sub(size, Relaxed);
                Counts::add(&self.counts.dropped, 1);
            }
        }
    }

    /// What is told from now on, for one peer, after `first`.
    pub fn connect(&self, peer: SocketAddr, first: Vec<PeerNews>) -> impl Stream<Item = PeerNews> + use<> {
        let (news, waiting) = mpsc::channel(MAX_NEWS);
        let bytes = Arc::new(AtomicUsize::new(0));
        self.to.lock().insert(peer, Lane { news, bytes: Arc::clone(&bytes) });
        let told = ReceiverStream::new(waiting).map(move |(size, news)| {
            bytes.fetch_sub(size, Relaxed);
            news
        });
        tokio_stream::iter(first).chain(told)
    }

    /// Nobody hears there any more.
    pub fn disconnect(&self, peer: SocketAddr) {
        self.to.lock().remove(&peer);
    }
}

#[cfg(test)]
mod tests {
    use kvproto::rpc::kv::{ForgetRoutingRequest, peer_news::News};

    use super::*;

    fn news(id: &str) -> PeerNews {
        PeerNews { news: Some(News::Forgotten(ForgetRoutingRequest { request_id: id.into() })) }
    }

    #[tokio::test]
    async fn a_peer_hears_in_order_and_one_that_does_not_listen_loses_some() {
        let counts = Arc::new(Counts::default());
        let outbox = Outbox::new(Arc::clone(&counts));
        outbox.tell(&news("before"));
        let mut heard = Box::pin(outbox.connect("127.0.0.1:1".parse().unwrap(), vec![news("first")]));
        for i in 0..MAX_NEWS + 5 {
            outbox.tell(&news(&i.to_string()));
        }
        assert_eq!((counts.sent.load(Relaxed), counts.dropped.load(Relaxed)), (MAX_NEWS as u64, 5));
        assert_eq!(heard.next().await, Some(news("first")));
        assert_eq!(heard.next().await, Some(news("0")));
        outbox.tell(&news("room again"));
        assert_eq!(counts.dropped.load(Relaxed), 5);
        outbox.disconnect("127.0.0.1:1".parse().unwrap());
        let mut still = 0;
        while heard.next().await.is_some() {
            still += 1;
        }
        assert_eq!(still, MAX_NEWS, "what waited still comes");
    }

    #[tokio::test]
    async fn bytes_that_wait_are_bounded() {
        let counts = Arc::new(Counts::default());
        let outbox = Outbox::new(Arc::clone(&counts));
        let _heard = outbox.connect("127.0.0.1:1".parse().unwrap(), vec![]);
        let large = news(&"x".repeat(MAX_BYTES / 4));
        (0..8).for_each(|_| outbox.tell(&large));
        assert!(counts.sent.load(Relaxed) < 4 && counts.dropped.load(Relaxed) > 4);
    }
}

//! Hears every feed and carries out what follows from it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::board::{Board, Wanted, Word};
use super::reconcile::decide;
use super::{Counts, DiscoveryConfig, Refused, Shown, file, kubernetes};
use crate::cluster::Cluster;
use crate::publisher::Source;
use crate::serve::Service;

/// Words that may wait; feeds wait when there are more.
const WAITING: usize = 4096;
/// A pass is made after this long without a word, too: for what could not be followed, and for what was
/// changed behind its back.
const NOW_AND_THEN: Duration = Duration::from_secs(15);

/// One place that is looked at, as what looks there speaks.
#[derive(Clone)]
pub struct Feed {
    number: usize,
    words: mpsc::Sender<(usize, Word)>,
}

/// Nobody listens any more.
#[derive(Debug)]
pub struct Gone;

/// How speaking ends.
pub type Deaf = Result<(), Gone>;

impl Feed {
    /// Says a word.
    ///
    /// # Errors
    /// If nobody listens any more.
    pub async fn say(&self, word: Word) -> Deaf {
        self.words.send((self.number, word)).await.map_err(|_| Gone)
    }
}

/// Follows what is seen until dropped.
pub async fn run(service: Arc<Service>, config: DiscoveryConfig, cluster: Option<Cluster>) {
    let mut board = Board::default();
    let (words, mut heard) = mpsc::channel(WAITING);
    let mut feeds = JoinSet::new();
    let discovery = Arc::clone(&service.discovery);
    let feed = |board: &mut Board, source, name| {
        let number = board.add_feed(source, name);
        Feed { number, words: words.clone() }
    };
    if let Some(path) = config.file {
        let feed = feed(&mut board, Source::File, path.display().to_string());
        feeds.spawn(file::watch(path, feed, Arc::clone(&discovery)));
    }
    if let Some(cluster) = &cluster {
        for rules in config.pods {
            for place in kubernetes::places(cluster, &rules, &discovery) {
                let feed = |name| feed(&mut board, Source::Kubernetes, name);
                feeds.spawn(kubernetes::follow(place, rules.clone(), feed));
            }
        }
    }
    drop(words);
    let mut known = BTreeSet::new();
    loop {
        let complete = board.is_complete();
        let wanted = board.wanted();
        let refused = carry_out(&service, wanted, &board, &mut known).await;
        // After the pass: whoever waits for it finds the publishers registered.
        if complete && !discovery.synced.swap(true, Relaxed) {
            let shown = discovery.shown();
            info!(publishers = shown.publishers, refused, "all that there is was seen");
        }
        match tokio::time::timeout(NOW_AND_THEN, heard.recv()).await {
            Ok(Some((feed, word))) => board.hear(feed, word),
            // Without a feed there is nothing to hear, and everything was left that was discovered before.
            Ok(None) => return,
            Err(_) => {}
        }
        // What came meanwhile is one pass.
        for _ in 0..WAITING {
            let Ok((feed, word)) = heard.try_recv() else { break };
            board.hear(feed, word);
        }
    }
}

/// Does what is to be done, and tells how much cannot be followed.
async fn carry_out(
    service: &Arc<Service>,
    wanted: Wanted,
    board: &Board,
    known: &mut BTreeSet<Refused>,
) -> usize {
    let discovery = &service.discovery;
    let mut shown =
        Shown { feeds: board.shown(), publishers: wanted.wishes.len(), refused: wanted.refused.clone() };
    let publishers = Arc::clone(&service.publishers);
    let work = move || {
        let changes = decide(&wanted, &publishers.followed());
        if changes.is_empty() {
            return (0, 0, Vec::new());
        }
        let (left, follow) = (changes.leave.len(), changes.follow.len());
        let failed = match publishers.change(&changes.leave, changes.follow) {
            Ok(failed) => failed,
            Err(error) => {
                error!(%error, "discovered publishers are followed, but not kept");
                Vec::new()
            }
        };
        let why = |(key, error): &(crate::publisher::PublisherKey, crate::ingest::RegisterError)| Refused {
            object: wanted.wishes.get(key).map(|w| w.sighting.object.clone()).unwrap_or_default(),
            why: format!("{} rank {}: {error}", key.instance_id, key.dp_rank),
        };
        (left, follow - failed.len(), failed.iter().map(why).collect())
    };
    let Ok((left, followed, failed)) = tokio::task::spawn_blocking(work).await else { return 0 };
    Counts::add(&discovery.counts.left, left);
    Counts::add(&discovery.counts.followed, followed);
    Counts::add(&discovery.counts.failed, failed.len());
    shown.refused.extend(failed);
    let refused: BTreeSet<_> = shown.refused.iter().cloned().collect();
    for Refused { object, why } in refused.difference(known) {
        warn!(object, why, "seen, but cannot be followed");
    }
    *known = refused;
    let n = shown.refused.len();
    *discovery.shown.lock() = shown;
    n
}

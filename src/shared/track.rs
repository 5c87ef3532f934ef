//! Writes one publisher while its lease is ours.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use kvindex::HolderId;
use kvindex_valkey::{Claim, Cursor, Health, Shared, WriteError, Writer};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::backlog::{Backlog, Resume};
use super::{Counts, Word};
use crate::ingest::Publishers;
use crate::publisher::PublisherState;

/// Names kept of what was told lately.
const BACKLOG: usize = 1 << 17;

/// Names in one commit, about.
const COMMIT: usize = 4096;

pub(super) struct Track {
    pub shared: Arc<Shared>,
    pub holder: HolderId,
    pub owner: String,
    pub publishers: Arc<OnceLock<Weak<Publishers>>>,
    /// Whether a word found no room.
    pub lost: Arc<AtomicBool>,
    pub counts: Arc<Counts>,
}

/// What lasts from one writer to the next.
struct State {
    backlog: Backlog,
    writer: Option<Box<Writer>>,
    /// What our last writer ended with.
    known: Option<Vec<u8>>,
    /// Whether something that was told is not on the servers and not in the backlog.
    broken: bool,
    /// Whether it is not yet known what of the backlog the servers have.
    undecided: bool,
    /// A failure was told already.
    told: bool,
}

impl Track {
    pub async fn run(self, mut words: mpsc::Receiver<Word>) {
        let backlog = Backlog::new(BACKLOG);
        let mut s =
            State { backlog, writer: None, known: None, broken: false, undecided: false, told: false };
        let mut tick = interval(self.shared.config().lease / 3);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = tokio::select! {
                word = words.recv() => {
                    // What came meanwhile goes into the same commit.
                    let mut word = word;
                    loop {
                        match word {
                            Some(Word::Batch(told)) => s.backlog.push(told),
                            Some(Word::After(seq, ts)) => s.backlog.begin_after(seq, ts),
                            Some(Word::Clear) => s.backlog.clear(),
                            Some(Word::Retire) => return self.end(s, true).await,
                            Some(Word::Release) | None => return self.end(s, false).await,
                        }
                        match words.try_recv() {
                            Ok(next) => word = Some(next),
                            Err(_) => break,
                        }
                    }
                    false
                }
                _ = tick.tick() => true,
            };
            if self.lost.swap(false, Ordering::AcqRel) {
                s.backlog.lose();
            }
            // Who was told nothing has nothing to go on from.
            if s.writer.is_none() && due && (s.known.is_some() || !s.backlog.is_empty()) {
                self.claim(&mut s).await;
            }
            if s.writer.is_some()
                && let Err(e) = self.write(&mut s, due).await
            {
                self.failed(&mut s, &e);
            }
        }
    }

    async fn claim(&self, s: &mut State) {
        match self.shared.claim(self.holder, &self.owner, s.known.as_deref()).await {
            Ok(Claim::Held { .. }) => {}
            Ok(Claim::Ours(writer)) => {
                info!(
                    instance = writer.spec().instance,
                    seq = writer.cursor().seq,
                    "writes to the shared index"
                );
                s.writer = Some(writer);
                self.counts.owned.fetch_add(1, Ordering::Relaxed);
                (s.undecided, s.told) = (true, false);
            }
            Err(e) => self.failed(s, &e),
        }
    }

    async fn write(&self, s: &mut State, due: bool) -> Result<(), WriteError> {
        let Some(writer) = &mut s.writer else { return Ok(()) };
        if s.undecided {
            match s.backlog.resume(writer.cursor()) {
                Resume::After => {}
                Resume::Wait if due => return writer.renew(Health::default()).await,
                Resume::Wait => return Ok(()),
                Resume::Anew | Resume::Broken => s.backlog.want_clear(),
            }
            s.undecided = false;
        }
        if s.backlog.wants_clear() {
            writer.clear().await?;
            s.broken = !s.backlog.was_cleared();
            self.counts.breaks.fetch_add(u64::from(s.broken), Ordering::Relaxed);
        }
        let mut wrote = false;
        while let Some(last) = s.backlog.next(COMMIT).last() {
            let cursor = Cursor { seq: Some(last.seq), ts: last.ts, note: Vec::new() };
            let (mut n, mut changes) = (0, Vec::new());
            for told in s.backlog.next(COMMIT) {
                n += 1;
                changes.extend(told.changes.iter().cloned());
            }
            let mut health = self.health(s.broken);
            // What waits here is not yet in what others are told.
            health.live &= n == s.backlog.len();
            writer.apply(&changes, cursor, health).await?;
            self.counts.commits.fetch_add(1, Ordering::Relaxed);
            s.backlog.drop_first(n);
            wrote = true;
        }
        if due && !wrote {
            writer.renew(self.health(s.broken)).await?;
        }
        Ok(())
    }

    /// How far this replica's lane vouches for what it told.
    fn health(&self, broken: bool) -> Health {
        let publishers = self.publishers.get().and_then(Weak::upgrade);
        let Some(f) = publishers.and_then(|p| p.freshness(self.holder)) else { return Health::default() };
        let live = match f.state {
            PublisherState::Live | PublisherState::Partial => true,
            PublisherState::Connecting
            | PublisherState::Replaying
            | PublisherState::Unreachable
            | PublisherState::Dead => false,
        };
        Health { live, complete: f.complete && !broken }
    }

    fn failed(&self, s: &mut State, error: &WriteError) {
        self.counts.failures.fetch_add(1, Ordering::Relaxed);
        if let Some(writer) = s.writer.take() {
            s.known = writer.last().map(<[u8]>::to_vec);
            self.counts.owned.fetch_sub(1, Ordering::Relaxed);
        }
        if !std::mem::replace(&mut s.told, true) {
            warn!(holder = self.holder.0, error = %error, "cannot write to the shared index, trying again");
        }
    }

    async fn end(&self, s: State, retire: bool) {
        let Some(writer) = s.writer else { return };
        self.counts.owned.fetch_sub(1, Ordering::Relaxed);
        let ended = if retire { writer.retire().await } else { writer.release().await };
        if let Err(e) = ended {
            warn!(holder = self.holder.0, error = %e, "the shared index forgets this one when it expires");
        }
    }
}

//! One publisher's messages, in order, from the readers to the index.
//!
//! Batches of one engine apply in the order it sent them, so the unit of scheduling is the
//! lane, never the batch: a lane is in at most one thread's hands, and after a turn it goes to
//! the end of the line, so that a flooding publisher delays only itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use kvindex::snapshot::Digest;
use kvindex::{HolderId, Index};
use kvproto::Batch;
use parking_lot::{Mutex, MutexGuard};

use super::apply::Signal;
use super::cursor::Position;
use super::desk;
use super::follow::{Follower, Limits, Profile, Request, Sink};
use super::gauges::{Gauges, Stamp};
use super::message::Message;
use super::queue::{Queue, QueueLimits};
use super::socket::Address;
use super::stats::Counters;
use super::vital::Sign;
use crate::outcome::Account;
use crate::publisher::{Freshness, Origin, PublisherKey, PublisherSpec, PublisherStatus};
use crate::shared::Feed;
use crate::state::Catalog;

/// Messages that a lane may apply before it is the next one's turn.
const TURN: usize = 64;

/// The longest text of a status, in characters.
const MAX_ERROR: usize = 300;

/// The index as one holder's follower sees it.
pub struct Place {
    /// The index.
    pub index: Arc<Index>,
    /// Whose place.
    pub holder: HolderId,
    /// What is also told what happens, after the index.
    pub account: Arc<Account>,
    /// Where lives are counted.
    pub catalog: Arc<Catalog>,
    /// By which name.
    pub key: PublisherKey,
    /// Who wants to know what is held as of a batch that is still to come.
    pub probe: Option<Probe>,
    /// Its counters.
    pub counters: Arc<Counters>,
    /// Its way into the index that replicas share, where there is one.
    pub feed: Option<Feed>,
}

/// A wish to know what is held as of one batch.
pub struct Probe {
    seq: u64,
    tell: Sender<(f64, Digest)>,
}

impl Sink for Place {
    fn apply(&mut self, batch: &Batch<'_>) {
        let applied = self.index.apply(self.holder, batch);
        self.counters.stored.add(applied.stored.into());
        self.counters.removed.add(applied.removed.into());
        if let Some(feed) = &mut self.feed {
            feed.apply(batch);
        }
        self.account.applied(batch, Instant::now());
    }

    fn clear(&mut self) {
        self.index.clear(self.holder);
        self.feed.iter_mut().for_each(Feed::clear);
        self.account.restarted(Instant::now());
    }

    fn doubt(&mut self) {
        self.index.doubt(self.holder);
        // What is in doubt is not kept there.
        self.feed.iter_mut().for_each(Feed::clear);
        self.account.lost(Instant::now());
    }

    fn drop_doubted(&mut self) {
        self.index.drop_suspects(self.holder);
    }

    fn applied(&mut self, seq: u64, ts: f64) {
        if let Some(feed) = &mut self.feed {
            feed.applied(seq, ts);
        }
        if self.probe.as_ref().is_some_and(|p| seq >= p.seq)
            && let Some(probe) = self.probe.take().filter(|p| p.seq == seq)
            && let Some(digest) = self.index.digest(self.holder)
        {
            // Whoever asked may have given up.
            let _ = probe.tell.try_send((ts, digest));
        }
    }

    fn begin_life(&mut self) {
        // Whoever is not kept on disk has only one life there.
        let _ = self.catalog.begin_life(&self.key);
    }
}

/// A publisher's lane.
pub struct Lane {
    /// The registration.
    pub spec: PublisherSpec,
    /// Its place in the index.
    pub holder: HolderId,
    /// Where to ask for a replay.
    pub replay: Option<Address>,
    /// Counters.
    pub counters: Arc<Counters>,
    /// What came of answers about it.
    pub account: Arc<Account>,
    limits: QueueLimits,
    index: Arc<Index>,
    since: Instant,
    /// When it was registered or registered again.
    renewed: Stamp,
    queue: Mutex<Queue>,
    follower: Mutex<Follower<Place>>,
    /// The deadline that the apply thread knows of.
    armed: Mutex<Option<Instant>>,
    gauges: Gauges,
    last_error: Mutex<Option<String>>,
    ready: Sender<Signal>,
}

/// A lane that holds still between two batches.
pub struct Still<'l> {
    lane: &'l Arc<Lane>,
    follower: Option<MutexGuard<'l, Follower<Place>>>,
}

impl Still<'_> {
    /// Where its stream stands; `None` where it has not begun.
    pub fn position(&self) -> Option<Position> {
        self.follower.as_ref().filter(|f| !f.is_waiting()).map(|f| f.position())
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        self.follower = None;
        self.lane.schedule();
    }
}

/// What a turn left to do.
pub struct Turn {
    /// Replay requests, in order.
    pub requests: Vec<Request>,
    /// When the lane wants to be woken, if the apply thread does not know yet.
    pub wake_at: Option<Instant>,
}

impl Lane {
    /// A lane that has not been scheduled yet, and that holds back what comes until it
    /// [`begin`](Self::begin)s or [`resume`](Self::resume)s.
    pub fn new(
        spec: PublisherSpec,
        place: Place,
        replay: Option<Address>,
        profile: Profile,
        limits: (QueueLimits, Limits),
        ready: Sender<Signal>,
    ) -> Lane {
        let counters = Arc::clone(&place.counters);
        let (holder, index, account) = (place.holder, Arc::clone(&place.index), Arc::clone(&place.account));
        let now = Instant::now();
        let follower = Follower::waiting(place, profile, limits.1, Arc::clone(&counters), now);
        let renewed = Stamp::default();
        renewed.set(Some(now));
        Lane {
            spec,
            holder,
            replay,
            counters,
            account,
            limits: limits.0,
            index,
            since: now,
            renewed,
            queue: Mutex::default(),
            follower: Mutex::new(follower),
            armed: Mutex::default(),
            gauges: Gauges::default(),
            last_error: Mutex::default(),
            ready,
        }
    }

    /// Takes a live message, or drops and counts it where the queue is full: the gap that it
    /// leaves is noticed and repaired like any other.
    pub fn push_live(self: &Arc<Self>, message: Message, at: Instant) {
        self.gauges.last_message.set(Some(at));
        let mut queue = self.queue.lock();
        if queue.closed {
            return;
        }
        if !queue.push_live(message, at, &self.limits) {
            return self.counters.dropped.add(1);
        }
        self.counters.messages.add(1);
        self.gauges.oldest_queued.set_if_none(at);
        self.line_up(&mut queue);
    }

    /// Notes that the socket of its live messages was connected again.
    pub fn push_connected(self: &Arc<Self>) {
        let mut queue = self.queue.lock();
        if !queue.closed {
            queue.push_connected();
            self.line_up(&mut queue);
        }
    }

    /// Notes a sign of whether the engine is there.
    pub fn push_sign(self: &Arc<Self>, sign: Sign) {
        let mut queue = self.queue.lock();
        if !queue.closed {
            queue.push_sign(sign);
            self.line_up(&mut queue);
        }
    }

    /// The registration was made again: its lease begins anew.
    pub fn renew(&self) {
        self.renewed.set(Some(Instant::now()));
    }

    /// Whether its lease has ended.
    pub fn is_expired(&self) -> bool {
        let lease = self.spec.lease_seconds.map(|s| Duration::from_secs(s.into()));
        lease.zip(self.renewed.get()).is_some_and(|(lease, at)| at.elapsed() > lease)
    }

    /// Takes an answer to request `ask`. False where there is no room: the request is cut off
    /// and the lane will ask for the rest.
    pub fn push_answer(self: &Arc<Self>, ask: u64, message: Message) -> bool {
        let mut queue = self.queue.lock();
        if queue.closed {
            return false;
        }
        let fits = queue.push_answer(ask, message, &self.limits);
        self.line_up(&mut queue);
        fits
    }

    /// Asks for a turn, whether or not there are messages.
    pub fn schedule(self: &Arc<Self>) {
        self.line_up(&mut self.queue.lock());
    }

    /// Goes to the end of the line, unless in it or having a turn.
    fn line_up(self: &Arc<Self>, queue: &mut Queue) {
        if !queue.scheduled {
            queue.scheduled = true;
            // Fails only when the apply threads have stopped, and then nothing is to be done.
            let _ = self.ready.send(Signal::Ready(Arc::clone(self)));
        }
    }

    /// Begins to follow with nothing known, unless it follows already.
    pub fn begin(self: &Arc<Self>) {
        let mut follower = self.follower.lock();
        if follower.is_waiting() {
            follower.begin(Instant::now());
        }
        drop(follower);
        self.schedule();
    }

    /// Goes on after a snapshot of this publisher that is in the index and ends at `position`. False
    /// where it has begun already.
    pub fn resume(self: &Arc<Self>, position: &Position) -> bool {
        let mut follower = self.follower.lock();
        let waits = follower.is_waiting();
        if waits {
            if let (Some(seq), Some(feed)) = (position.seq, &mut follower.sink_mut().feed) {
                feed.begin_after(seq, position.ts);
            }
            follower.resume(position, Instant::now());
        }
        drop(follower);
        self.schedule();
        waits
    }

    /// Whether it neither began nor went on yet.
    pub fn is_waiting(&self) -> bool {
        self.follower.lock().is_waiting()
    }

    /// Applies nothing while the answer lives; what comes meanwhile waits in the queue.
    pub fn hold_still(self: &Arc<Self>) -> Still<'_> {
        Still { lane: self, follower: Some(self.follower.lock()) }
    }

    /// What is held as of batch `seq`, and the engine's time of it; waits for it where it is still to come.
    /// `None` where it has passed, or does not come in time.
    pub fn digest_at(self: &Arc<Self>, seq: u64, patience: Duration) -> Option<(f64, Digest)> {
        let (tell, told) = crossbeam_channel::bounded(1);
        {
            let mut still = self.hold_still();
            let position = still.position()?;
            match position.seq {
                Some(at) if at == seq => return Some((position.ts?, self.index.digest(self.holder)?)),
                Some(at) if at > seq => return None,
                Some(_) | None => {}
            }
            still.follower.as_mut()?.sink_mut().probe = Some(Probe { seq, tell });
        }
        told.recv_timeout(patience).ok()
    }

    /// How long it has been followed.
    pub fn followed_for(&self) -> Duration {
        self.since.elapsed()
    }

    /// Drops what waits and takes nothing more.
    pub fn close(&self) {
        self.queue.lock().close();
    }

    /// Whether the publisher is no longer registered.
    pub fn is_closed(&self) -> bool {
        self.queue.lock().closed
    }

    /// Applies what waits, up to a limit, and lines up again if there is more.
    pub fn turn(self: &Arc<Self>) -> Turn {
        let Some(mut follower) = self.follower.try_lock() else {
            // Somebody looks at it, and lines it up again when done. An apply thread must not wait for
            // that: other lanes are in its line.
            let mut queue = self.queue.lock();
            queue.scheduled = false;
            if self.follower.try_lock().is_some() {
                self.line_up(&mut queue);
            }
            return Turn { requests: Vec::new(), wake_at: None };
        };
        let items = self.queue.lock().take(TURN);
        let mut requests = Vec::new();
        desk::work(&mut follower, items, Instant::now, &mut requests, |f, waiting| match waiting {
            Some(_) => self.show(f, waiting),
            // Nobody may read that nothing waits while something came in meanwhile.
            None => {
                let queue = self.queue.lock();
                self.show(f, queue.oldest());
            }
        });
        let now = Instant::now();
        desk::expire(&mut follower, now, &mut requests);
        let mut queue = self.queue.lock();
        desk::settle(&mut follower, &mut queue, now, &mut requests);
        self.show(&mut follower, queue.oldest());
        queue.scheduled = false;
        if !queue.is_empty() {
            self.line_up(&mut queue);
        }
        let deadline = follower.deadline().filter(|_| !queue.closed);
        Turn { requests, wake_at: deadline.filter(|d| self.arm(*d, now)) }
    }

    /// Whether the apply thread must be told of `deadline`.
    fn arm(&self, deadline: Instant, now: Instant) -> bool {
        let mut armed = self.armed.lock();
        let unknown = armed.is_none_or(|at| deadline < at || at <= now);
        if unknown {
            *armed = Some(deadline);
        }
        unknown
    }

    /// Makes visible where the follower stands.
    fn show(&self, follower: &mut Follower<Place>, waiting: Option<Instant>) {
        if let Some(error) = follower.take_error() {
            self.note_error(error);
        }
        let (held, held_since) = follower.held();
        self.gauges.set(follower.state(), follower.is_complete(), follower.last_seq(), held);
        self.gauges.oldest_queued.set(held_since.into_iter().chain(waiting).min());
    }

    /// Notes what went wrong outside the follower.
    pub fn note_error(&self, mut text: String) {
        if let Some((end, _)) = text.char_indices().nth(MAX_ERROR) {
            text.truncate(end);
        }
        *self.last_error.lock() = Some(text);
    }

    /// How far answers about this holder can be trusted.
    pub fn freshness(&self) -> Freshness {
        self.gauges.freshness()
    }

    /// Messages that wait to be applied, held back ones too.
    pub fn queued(&self) -> u64 {
        self.queue.lock().live() as u64 + self.gauges.held()
    }

    /// Everything worth knowing about the publisher.
    pub fn status(&self, origin: Origin) -> PublisherStatus {
        let c = &self.counters;
        PublisherStatus {
            spec: self.spec.clone(),
            origin,
            holder: self.holder,
            freshness: self.freshness(),
            batches: c.batches.get(),
            events: c.events.get(),
            events_skipped: c.events_skipped.get(),
            gaps: c.gaps.get(),
            restarts: c.restarts.get(),
            deaths: c.deaths.get(),
            replays: c.replays.get(),
            malformed: c.malformed.get(),
            losses: c.losses.get(),
            misranked: c.misranked.get(),
            dropped: c.dropped.get(),
            queued: self.queued(),
            last_error: self.last_error.lock().clone(),
        }
    }
}

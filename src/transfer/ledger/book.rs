//! Which transfers are there, and what is due?
//!
//! The book applies [`step`] to records and keeps everything that follows from them in line:
//! reservations, keys, deadlines, who takes part. It reads no clock and writes nothing; what is
//! to be written and told is put into an [`Outbox`].

use std::collections::BTreeSet;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::machine::{Event, Notice, Refused, Step, fence, step};
use super::record::{Millis, Record, State, TransferId};
use super::reserve::{Claim, Full, Reservations};
use super::timers::Timers;
use crate::transfer::types::{Caps, Endpoint, Purpose};

/// How much a book holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Transfers under way.
    pub live: usize,
    /// Transfers that are over and still remembered; the oldest are forgotten first.
    pub over: usize,
    /// Bytes of what engines answered and callers want handed through.
    pub text_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { live: 100_000, over: 100_000, text_bytes: 256 << 20 }
    }
}

/// Something to be written down.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// The transfer is now so.
    Put(Arc<Record>),
    /// The transfer is forgotten.
    Delete(TransferId),
}

impl Write {
    /// The transfer that it is about.
    pub fn about(&self) -> TransferId {
        match self {
            Write::Put(record) => record.id,
            Write::Delete(id) => *id,
        }
    }
}

/// Something to be told.
#[derive(Clone, Debug, PartialEq)]
pub struct News {
    /// What.
    pub notice: Notice,
    /// Of which transfer, as it is now.
    pub record: Arc<Record>,
    /// As it was before; `None` for a new one.
    pub before: Option<Arc<Record>>,
    /// When.
    pub at: Millis,
}

/// What a change comes to outside the book. In order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outbox {
    /// To be written.
    pub writes: Vec<Write>,
    /// To be told.
    pub news: Vec<News>,
    /// Left-behind blocks that are free now: where, bytes times milliseconds.
    pub unstranded: Vec<(Endpoint, u128)>,
}

/// A plan that is not taken into the book.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NotPlanned {
    /// The key is taken by this transfer.
    #[error("request_id: planned already")]
    Exists(Arc<Record>),
    /// A limit was reached since the plan was made.
    #[error(transparent)]
    Full(#[from] Full),
    /// There are as many transfers as there may be.
    #[error("{limit} transfers are under way already")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// What is to be handed through does not fit.
    #[error("kv_transfer_params: {limit} bytes of all transfers together are kept already")]
    TooMuchText {
        /// The limit.
        limit: usize,
    },
}

/// An event that is not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotApplied {
    /// There is no such transfer, or not any more.
    #[error("transfer_id: not known here")]
    Unknown,
    /// It does not go with the transfer.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A new plan does not fit.
    #[error(transparent)]
    Full(#[from] Full),
    /// What the engine answered does not fit.
    #[error("kv_transfer_params: {limit} bytes of all transfers together are kept already")]
    TooMuchText {
        /// The limit.
        limit: usize,
    },
}

/// Every transfer that is known.
#[derive(Clone, Debug, Default)]
pub struct Book {
    timers: Timers,
    bounds: Bounds,
    caps: Caps,
    records: FxHashMap<TransferId, Arc<Record>>,
    by_key: FxHashMap<(Arc<str>, Purpose), TransferId>,
    /// When something of a transfer ends.
    due: BTreeSet<(Millis, TransferId)>,
    /// Those that are over, by when.
    over: BTreeSet<(Millis, TransferId)>,
    /// Live ones, by who takes part.
    by_pod: FxHashMap<Endpoint, BTreeSet<TransferId>>,
    reservations: Reservations,
    text_bytes: usize,
    by_state: [usize; State::ALL.len()],
}

impl Book {
    /// An empty book.
    pub fn new(timers: Timers, bounds: Bounds, caps: Caps) -> Book {
        Book { timers, bounds, caps, ..Book::default() }
    }

    /// What no plan may exceed.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Times of the state machine.
    pub fn timers(&self) -> &Timers {
        &self.timers
    }

    /// What live transfers take up.
    pub fn reservations(&self) -> &Reservations {
        &self.reservations
    }

    /// The transfer of that name.
    pub fn get(&self, id: TransferId) -> Option<&Arc<Record>> {
        self.records.get(&id)
    }

    /// The transfer of that key.
    pub fn find(&self, request_id: &str, purpose: Purpose) -> Option<&Arc<Record>> {
        // Looking up by a borrowed pair would take a key type of its own.
        self.by_key.get(&(Arc::from(request_id), purpose)).and_then(|id| self.records.get(id))
    }

    /// Every transfer, in no order.
    pub fn records(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.records.values()
    }

    /// How many transfers are in `state`.
    pub fn count(&self, state: State) -> usize {
        self.by_state[state as usize]
    }

    /// How many are under way.
    pub fn live(&self) -> usize {
        State::ALL.iter().filter(|s| !s.terminal()).map(|s| self.count(*s)).sum()
    }

    /// When something is due next.
    pub fn next_due(&self) -> Option<Millis> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes a new transfer in, and what it needs with it.
    ///
    /// # Errors
    /// Where its key is taken or a limit would be exceeded. Nothing changed then.
    pub fn plan(&mut self, record: Record, now: Millis, out: &mut Outbox) -> Result<Arc<Record>, NotPlanned> {
        if let Some(there) = self.find(&record.request_id, record.purpose) {
            return Err(NotPlanned::Exists(Arc::clone(there)));
        }
        if record.live() {
            self.reservations.fits(&Claim::of(&record), &self.caps)?;
            if self.live() >= self.bounds.live {
                return Err(NotPlanned::TooMany { limit: self.bounds.live });
            }
        }
        if self.text_bytes + text_bytes(&record) > self.bounds.text_bytes {
            return Err(NotPlanned::TooMuchText { limit: self.bounds.text_bytes });
        }
        Ok(self.insert(record, now, out))
    }

    /// Takes a new transfer in for the request of `old`, which is over. The key is the new one's from
    /// now on.
    ///
    /// # Errors
    /// As [`plan`](Self::plan); [`NotPlanned::Exists`] where `old` is not over.
    pub fn plan_after(
        &mut self,
        old: TransferId,
        record: Record,
        now: Millis,
        out: &mut Outbox,
    ) -> Result<Arc<Record>, NotPlanned> {
        let key = (Arc::clone(&record.request_id), record.purpose);
        let held = self.by_key.get(&key) == Some(&old) && self.get(old).is_some_and(|r| !r.live());
        if held {
            self.by_key.remove(&key);
        }
        let planned = self.plan(record, now, out);
        if held && planned.is_err() {
            self.by_key.insert(key, old);
        }
        planned
    }

    /// Takes over a transfer that another process began, whatever the limits say: what it
    /// takes up is taken up already.
    pub fn adopt(&mut self, record: Record, epoch: u64, now: Millis, out: &mut Outbox) -> Arc<Record> {
        let id = record.id;
        if !self.records.contains_key(&id) {
            // A key that is taken stays with its transfer; this one is found by its id alone.
            self.insert(record, now, out);
        }
        let owned = self.apply(id, Event::Owned { epoch }, now, out);
        debug_assert!(owned.is_ok(), "any transfer may be owned");
        Arc::clone(&self.records[&id])
    }

    /// Takes in what was read back after a restart. What is due is found by the next
    /// [`tick`](Self::tick); no deadline moves.
    pub fn restore(&mut self, record: Record) {
        let record = Arc::new(record);
        self.link(&record);
        self.records.insert(record.id, record);
    }

    /// Takes over what another process was home to. No deadline moves.
    pub fn take_over(&mut self, record: Record, epoch: u64, now: Millis, out: &mut Outbox) {
        let id = record.id;
        if !self.records.contains_key(&id) {
            self.restore(record);
            // Any transfer may be owned; one that is over stays as it is.
            let _ = self.apply(id, Event::Owned { epoch }, now, out);
        }
    }

    /// Lets go of transfers that another process is home to: here they are superseded and forgotten, and nothing is
    /// written of that.
    pub fn let_go(&mut self, ids: &[TransferId], now: Millis, out: &mut Outbox) {
        let writes = std::mem::take(&mut out.writes);
        for id in ids {
            let _ = self.apply(*id, Event::Superseded, now, out);
            if let Some(record) = self.records.remove(id) {
                self.unlink(&record);
            }
        }
        out.writes = writes;
    }

    /// Writes everything again that has to survive a crash.
    pub fn write_all(&self, out: &mut Outbox) {
        let durable = self.records.values().filter(|r| durable(r));
        out.writes.extend(durable.map(|r| Write::Put(Arc::clone(r))));
    }

    /// Applies a caller's report.
    ///
    /// # Errors
    /// Where the transfer is not known, or its attempt or owner is another.
    pub fn report(
        &mut self,
        id: TransferId,
        attempt: u32,
        epoch: u64,
        event: Event,
        now: Millis,
        out: &mut Outbox,
    ) -> Result<(Arc<Record>, bool), NotApplied> {
        let record = self.records.get(&id).ok_or(NotApplied::Unknown)?;
        fence(record, attempt, epoch)?;
        if let Event::PrefillDone { answer: Some(answer), .. } = &event
            && self.text_bytes + answer.len() > self.bounds.text_bytes
        {
            return Err(NotApplied::TooMuchText { limit: self.bounds.text_bytes });
        }
        self.apply(id, event, now, out)
    }

    /// Applies `event`; says what the transfer is now and whether that is something new.
    ///
    /// # Errors
    /// Where the transfer is not known, the event does not go with it, or another plan would
    /// exceed a limit. Nothing changed then.
    pub fn apply(
        &mut self,
        id: TransferId,
        event: Event,
        now: Millis,
        out: &mut Outbox,
    ) -> Result<(Arc<Record>, bool), NotApplied> {
        let record = self.records.get(&id).ok_or(NotApplied::Unknown)?;
        let replans = matches!(event, Event::Replanned(_));
        match step(record, event, now, &self.timers)? {
            None => Ok((Arc::clone(record), false)),
            Some(Step { record: after, notices, unstranded }) => {
                if replans {
                    let before = Claim::of(record);
                    self.reservations.release(&before);
                    let fits = self.reservations.fits(&Claim::of(&after), &self.caps);
                    self.reservations.take(&before);
                    fits?;
                }
                let before = Arc::clone(record);
                let record = self.replace(after, out);
                out.news.extend(notices.into_iter().map(|notice| News {
                    notice,
                    record: Arc::clone(&record),
                    before: Some(Arc::clone(&before)),
                    at: now,
                }));
                out.unstranded.extend(unstranded);
                Ok((record, true))
            }
        }
    }

    /// Lets everything happen that is due, and forgets what is over for long.
    pub fn tick(&mut self, now: Millis, out: &mut Outbox) {
        while let Some(&(at, id)) = self.due.first()
            && at <= now
        {
            let applied = self.apply(id, Event::Time, now, out);
            // What is due changes when its time has come; that it stays due would loop forever.
            if !matches!(applied, Ok((_, true))) {
                debug_assert!(false, "{id} was due and nothing came of it");
                self.due.remove(&(at, id));
            }
        }
        let kept = u64::try_from(self.timers.kept.as_millis()).unwrap_or(u64::MAX);
        while let Some(&(since, id)) = self.over.first()
            && (since.saturating_add(kept) <= now || self.over.len() > self.bounds.over)
        {
            self.forget(id, out);
        }
    }

    /// Live transfers that `pod` takes part in.
    pub fn of_pod(&self, pod: &Endpoint) -> Vec<Arc<Record>> {
        let ids = self.by_pod.get(pod).into_iter().flatten();
        ids.filter_map(|id| self.records.get(id)).map(Arc::clone).collect()
    }

    /// Pods that take part in live transfers.
    pub fn pods(&self) -> impl Iterator<Item = &Endpoint> {
        self.by_pod.keys()
    }

    fn insert(&mut self, record: Record, now: Millis, out: &mut Outbox) -> Arc<Record> {
        let record = Arc::new(record);
        self.link(&record);
        self.records.insert(record.id, Arc::clone(&record));
        if durable(&record) {
            out.writes.push(Write::Put(Arc::clone(&record)));
        }
        out.news.push(News { notice: Notice::State, record: Arc::clone(&record), before: None, at: now });
        while self.over.len() > self.bounds.over
            && let Some(&(_, id)) = self.over.first()
        {
            self.forget(id, out);
        }
        record
    }

    fn replace(&mut self, record: Record, out: &mut Outbox) -> Arc<Record> {
        let record = Arc::new(record);
        if let Some(before) = self.records.insert(record.id, Arc::clone(&record)) {
            self.unlink(&before);
        }
        self.link(&record);
        if durable(&record) {
            out.writes.push(Write::Put(Arc::clone(&record)));
        }
        record
    }

    fn forget(&mut self, id: TransferId, out: &mut Outbox) {
        let Some(record) = self.records.remove(&id) else { return };
        self.unlink(&record);
        if let Some(strand) = &record.strand {
            // Forgotten before its time for want of room: counted as if it stayed to the end.
            let ms = strand.until.saturating_sub(strand.since);
            out.unstranded.push((strand.pod.clone(), u128::from(strand.bytes) * u128::from(ms)));
        }
        if durable(&record) {
            out.writes.push(Write::Delete(id));
        }
    }

    /// Enters everything that follows from `record`.
    fn link(&mut self, record: &Arc<Record>) {
        let id = record.id;
        self.by_key.entry((Arc::clone(&record.request_id), record.purpose)).or_insert(id);
        self.due.extend(self.timers.due(record).map(|at| (at, id)));
        self.by_state[record.state as usize] += 1;
        self.text_bytes += text_bytes(record);
        self.reservations.take(&Claim::of(record));
        if record.live() {
            for pod in record.pods() {
                self.by_pod.entry(pod.clone()).or_default().insert(id);
            }
        } else {
            self.over.insert((record.changed_at, id));
        }
    }

    /// Takes back what [`link`](Self::link) entered.
    fn unlink(&mut self, record: &Record) {
        let id = record.id;
        let key = (Arc::clone(&record.request_id), record.purpose);
        if self.by_key.get(&key) == Some(&id) && !self.records.contains_key(&id) {
            self.by_key.remove(&key);
        }
        if let Some(at) = self.timers.due(record) {
            self.due.remove(&(at, id));
        }
        self.by_state[record.state as usize] -= 1;
        self.text_bytes -= text_bytes(record);
        self.reservations.release(&Claim::of(record));
        if record.live() {
            for pod in record.pods() {
                if let Some(ids) = self.by_pod.get_mut(pod) {
                    ids.remove(&id);
                    if ids.is_empty() {
                        self.by_pod.remove(pod);
                    }
                }
            }
        } else {
            self.over.remove(&(record.changed_at, id));
        }
    }
}

/// Whether `record` has to survive a crash. A plan that moves nothing has no state to lose.
fn durable(record: &Record) -> bool {
    !record.choice.legs.is_empty()
}

fn text_bytes(record: &Record) -> usize {
    let len = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |t| t.len());
    len(&record.prefill_answer) + len(&record.pass_through)
}

//! How does a batch relate to the ones seen before?
//!
//! Pure: it looks at sequence numbers and timestamps and says what happened. Holding back,
//! asking for a replay and clearing are the business of [`super::follow`].
//!
//! A live socket is FIFO, so a number that does not rise on it means a new engine. Only a
//! replay can run ahead of the live socket; what it has brought already comes again.

use serde::{Deserialize, Serialize};

/// How a live batch relates to the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The first batch of this stream.
    First,
    /// Exactly the next one.
    Next,
    /// `missing` batches between the last applied one and this one are not there.
    Gap {
        /// How many.
        missing: u64,
    },
    /// A replay brought it already; drop it.
    Repeat,
    /// The number of the last live batch again, of which nothing could be applied: that one
    /// was noise and this is the batch itself.
    Proper,
    /// Nothing in it can be applied and it is not the next one: noise.
    Ignored,
    /// The engine began anew.
    Restart,
}

/// What is known of a batch before it is applied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Its sequence number.
    pub seq: u64,
    /// When the engine made it, by its clock.
    pub ts: f64,
    /// Whether it holds no event that can be applied.
    pub empty: bool,
}

/// Where one publisher's stream stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    /// Last batch applied or stepped over.
    last: Option<u64>,
    /// Timestamp of exactly that batch; `None` where it could not be read.
    last_ts: Option<f64>,
    /// Highest timestamp applied.
    newest_ts: Option<f64>,
    /// Last batch taken from the live socket, applied or held back, and whether it was empty.
    live: Option<(u64, bool)>,
}

/// Where a stream stood when what it told was written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Last batch applied or stepped over; `None` = none yet.
    pub seq: Option<u64>,
    /// The engine's time of exactly that batch; `None` where it could not be read.
    #[serde(with = "bits")]
    pub ts: Option<f64>,
    /// The latest time among all batches applied.
    #[serde(with = "bits")]
    pub newest_ts: Option<f64>,
    /// Whether all that the engine stored since its start, or since a clear, was known.
    pub complete: bool,
    /// Which life of the engine spoke, where its messages say so.
    pub life: Option<[u8; 16]>,
}

/// Times as their bits: read from decimals they may differ in the last one, and a batch with another time
/// is another life's.
mod bits {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(ts: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
        ts.map(f64::to_bits).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(f64::from_bits))
    }
}

impl Cursor {
    /// Goes on from `position`, which the live socket may have passed already.
    pub fn resume(&mut self, position: &Position) {
        let Position { seq, ts, newest_ts, .. } = *position;
        *self = Cursor { last: seq, last_ts: ts, newest_ts, live: self.live };
    }

    /// The time of the last batch applied, and the latest among all of them.
    pub fn times(&self) -> (Option<f64>, Option<f64>) {
        (self.last_ts, self.newest_ts)
    }

    /// Whether a batch that the live socket brought is of another life than what is applied.
    pub fn is_of_another_life(&self, batch: Seen) -> bool {
        self.last.is_some_and(|last| batch.seq <= last)
            && !batch.empty
            && (self.contradicts(batch.seq, batch.ts) || self.newest_ts.is_some_and(|t| batch.ts > t))
    }

    /// The last batch applied or stepped over.
    pub fn last(&self) -> Option<u64> {
        self.last
    }

    /// The last batch taken from the live socket.
    pub fn live(&self) -> Option<u64> {
        self.live.map(|(seq, _)| seq)
    }

    /// The batch to apply next; `None` after the last number there is.
    pub fn next(&self) -> Option<u64> {
        self.last.map_or(Some(0), |l| l.checked_add(1))
    }

    /// Whether `ts` contradicts what was stored of batch `seq`: another engine made this one.
    pub fn contradicts(&self, seq: u64, ts: f64) -> bool {
        self.last == Some(seq) && self.last_ts.is_some_and(|stored| stored.to_bits() != ts.to_bits())
    }

    /// Whether `held`, from the live socket, has the number after the last applied one and was made before
    /// it. A life's times rise with its numbers, and each life begins after the one before: it is an
    /// earlier life's.
    pub fn is_earlier(&self, held: Seen) -> bool {
        held.seq.checked_sub(1).is_some_and(|before| self.last == Some(before))
            && self.last_ts.is_some_and(|ts| held.ts < ts)
    }

    /// Classifies a live batch without moving the cursor.
    pub fn observe(&self, batch: Seen) -> Arrival {
        if batch.empty {
            return self.observe_empty(batch.seq);
        }
        if let Some((live, was_empty)) = self.live {
            if batch.seq < live {
                return Arrival::Restart;
            }
            if batch.seq == live {
                return match (was_empty, self.last > Some(live)) {
                    (true, false) => Arrival::Proper,
                    (true, true) => Arrival::Repeat,
                    (false, _) => Arrival::Restart,
                };
            }
        }
        match self.last {
            None if batch.seq == 0 => Arrival::First,
            None => Arrival::Gap { missing: batch.seq },
            Some(last) if batch.seq <= last => {
                if self.newest_ts.is_some_and(|newest| batch.ts > newest) {
                    Arrival::Restart
                } else {
                    Arrival::Repeat
                }
            }
            Some(last) if batch.seq - last == 1 => Arrival::Next,
            Some(last) => Arrival::Gap { missing: batch.seq - last - 1 },
        }
    }

    /// A batch without an applicable event counts only in its exact place, so that noise can
    /// neither make a gap nor a restart.
    fn observe_empty(&self, seq: u64) -> Arrival {
        let before = self.last.max(self.live());
        if before.map_or(Some(0), |b| b.checked_add(1)) != Some(seq) {
            return Arrival::Ignored;
        }
        match self.last {
            None if seq == 0 => Arrival::First,
            None => Arrival::Gap { missing: seq },
            Some(last) if seq - last == 1 => Arrival::Next,
            Some(last) => Arrival::Gap { missing: seq - last - 1 },
        }
    }

    /// Notes that `batch` was taken from the live socket, to be applied or held back.
    pub fn took_live(&mut self, batch: Seen) {
        self.live = Some((batch.seq, batch.empty));
    }

    /// Moves past an applied batch.
    pub fn applied(&mut self, batch: Seen) {
        self.last = Some(batch.seq);
        self.last_ts = Some(batch.ts);
        self.newest_ts = Some(self.newest_ts.map_or(batch.ts, |newest| newest.max(batch.ts)));
    }

    /// Moves past a batch that nothing could be read of.
    pub fn stepped_over(&mut self, seq: u64) {
        self.last = Some(seq);
        self.last_ts = None;
    }

    /// Forgets what came from the live socket: an earlier life sent it.
    pub fn forget_live(&mut self) {
        self.live = None;
    }

    /// Forgets what was applied: what is held back from the live socket comes next.
    pub fn forget_applied(&mut self) {
        *self = Cursor { live: self.live, ..Cursor::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(seq: u64) -> Seen {
        Seen { seq, ts: 100.0 + seq as f64, empty: false }
    }

    fn noise(seq: u64) -> Seen {
        Seen { empty: true, ..batch(seq) }
    }

    /// A cursor that took and applied 0..=seq from the live socket.
    fn at(seq: u64) -> Cursor {
        let mut c = Cursor::default();
        c.took_live(batch(seq));
        c.applied(batch(seq));
        c
    }

    #[test]
    fn the_first_number_is_the_first_batch_and_any_other_is_a_gap() {
        assert_eq!(Cursor::default().observe(batch(0)), Arrival::First);
        assert_eq!(Cursor::default().observe(batch(7)), Arrival::Gap { missing: 7 });
    }

    #[test]
    fn one_more_is_next_and_a_skipped_batch_is_a_gap() {
        assert_eq!(at(4).observe(batch(5)), Arrival::Next);
        assert_eq!(at(4).observe(batch(6)), Arrival::Gap { missing: 1 });
        assert_eq!(at(4).observe(batch(u64::MAX)), Arrival::Gap { missing: u64::MAX - 5 });
    }

    #[test]
    fn a_live_number_that_does_not_rise_is_a_restart() {
        assert_eq!(at(4).observe(batch(4)), Arrival::Restart);
        assert_eq!(at(4).observe(batch(0)), Arrival::Restart);
    }

    #[test]
    fn a_held_back_batch_counts_as_seen() {
        let mut c = at(4);
        c.took_live(batch(9));
        assert_eq!(c.observe(batch(10)), Arrival::Gap { missing: 5 });
        assert_eq!(c.observe(batch(9)), Arrival::Restart);
        assert_eq!(c.observe(batch(5)), Arrival::Restart, "a live socket does not go back to fill a hole");
    }

    #[test]
    fn what_a_replay_brought_comes_again_and_is_dropped() {
        let mut c = at(4);
        c.applied(batch(5));
        c.applied(batch(6));
        assert_eq!(c.observe(batch(5)), Arrival::Repeat);
        assert_eq!(c.observe(batch(6)), Arrival::Repeat);
        assert_eq!(c.observe(batch(7)), Arrival::Next);
    }

    #[test]
    fn a_number_that_a_replay_brought_with_a_later_time_is_a_restart() {
        let mut c = at(4);
        c.applied(batch(6));
        assert_eq!(c.observe(Seen { ts: 200.0, ..batch(5) }), Arrival::Restart);
    }

    #[test]
    fn noise_moves_the_cursor_only_in_its_exact_place() {
        assert_eq!(at(4).observe(noise(5)), Arrival::Next);
        for seq in [0, 3, 4, 6, u64::MAX] {
            assert_eq!(at(4).observe(noise(seq)), Arrival::Ignored, "{seq}");
        }
        assert_eq!(Cursor::default().observe(noise(3)), Arrival::Ignored);
        assert_eq!(Cursor::default().observe(noise(0)), Arrival::First);
    }

    #[test]
    fn noise_after_held_back_batches_is_held_back_in_its_place() {
        let mut c = at(4);
        c.took_live(batch(9));
        assert_eq!(c.observe(noise(10)), Arrival::Gap { missing: 5 });
        assert_eq!(c.observe(noise(5)), Arrival::Ignored);
    }

    #[test]
    fn the_number_of_noise_again_is_the_batch_itself() {
        let mut c = at(4);
        c.took_live(noise(5));
        c.applied(noise(5));
        assert_eq!(c.observe(batch(5)), Arrival::Proper);
        c.took_live(batch(5));
        c.applied(batch(5));
        assert_eq!(c.observe(batch(5)), Arrival::Restart);
        assert_eq!(c.observe(batch(6)), Arrival::Next);
    }

    #[test]
    fn after_the_last_number_there_is_no_next() {
        let c = at(u64::MAX);
        assert_eq!(c.next(), None);
        assert_eq!(c.observe(noise(0)), Arrival::Ignored);
        assert_eq!(c.observe(batch(0)), Arrival::Restart);
    }

    #[test]
    fn another_time_for_the_last_batch_contradicts() {
        let mut c = at(4);
        assert!(!c.contradicts(4, 104.0));
        assert!(c.contradicts(4, 105.0));
        assert!(!c.contradicts(3, 1.0), "nothing is stored of batches before the last");
        c.stepped_over(5);
        assert!(!c.contradicts(5, 1.0), "nothing is stored of a batch that could not be read");
    }

    #[test]
    fn a_position_that_was_written_down_has_the_same_times_to_the_last_bit() {
        for step in 0..10_000 {
            let ts = Some(1_764_083_889.0 + f64::from(step) * 0.123_456_7);
            let position = Position { seq: Some(1), ts, newest_ts: ts, ..Position::default() };
            let text = serde_json::to_vec(&position).expect("numbers");
            assert_eq!(serde_json::from_slice::<Position>(&text).expect("as written"), position);
        }
    }

    #[test]
    fn the_next_number_with_an_earlier_time_is_an_earlier_lifes() {
        let c = at(4);
        assert!(!c.is_earlier(batch(5)));
        assert!(c.is_earlier(Seen { ts: 50.0, ..batch(5) }));
        assert!(!c.is_earlier(Seen { ts: 50.0, ..batch(7) }), "there is a hole between");
        assert!(!Cursor::default().is_earlier(Seen { ts: 50.0, ..batch(0) }));
    }

    #[test]
    fn forgetting_what_was_applied_keeps_the_place_on_the_live_socket() {
        let mut c = at(4);
        c.took_live(batch(9));
        c.forget_applied();
        assert_eq!((c.last(), c.live()), (None, Some(9)));
        assert_eq!(c.observe(batch(10)), Arrival::Gap { missing: 10 });
    }
}

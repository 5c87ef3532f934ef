//! Live batches behind a hole, kept until the hole is filled or given up.

use std::collections::VecDeque;
use std::time::Instant;

use super::cursor::Seen;
use super::message::Message;

/// A batch held back.
#[derive(Debug)]
pub struct HeldBatch {
    /// Its number, time and whether it is empty.
    pub seen: Seen,
    /// The message it came in.
    pub message: Message,
    /// When it arrived.
    pub at: Instant,
}

/// Batches in the order they arrived, their numbers rising.
#[derive(Debug, Default)]
pub struct Held {
    batches: VecDeque<HeldBatch>,
    bytes: usize,
}

impl Held {
    /// Adds the newest.
    pub fn push(&mut self, batch: HeldBatch) {
        self.bytes += batch.message.cost();
        self.batches.push_back(batch);
    }

    /// Puts `batch` in the place of the newest if that has its number; else gives it back.
    pub fn replace_newest(&mut self, batch: HeldBatch) -> Option<HeldBatch> {
        match self.batches.back_mut() {
            Some(newest) if newest.seen.seq == batch.seen.seq => {
                self.bytes = self.bytes - newest.message.cost() + batch.message.cost();
                *newest = batch;
                None
            }
            Some(_) | None => Some(batch),
        }
    }

    /// Number of the oldest.
    pub fn front(&self) -> Option<u64> {
        self.batches.front().map(|b| b.seen.seq)
    }

    /// What is known of the oldest.
    pub fn oldest_seen(&self) -> Option<Seen> {
        self.batches.front().map(|b| b.seen)
    }

    /// Takes the oldest.
    pub fn pop(&mut self) -> Option<HeldBatch> {
        let batch = self.batches.pop_front()?;
        self.bytes -= batch.message.cost();
        Some(batch)
    }

    /// Where the last stretch without a hole begins.
    pub fn last_run(&self) -> Option<u64> {
        let mut start = self.batches.back()?.seen.seq;
        for batch in self.batches.iter().rev().skip(1) {
            if start - batch.seen.seq != 1 {
                break;
            }
            start = batch.seen.seq;
        }
        Some(start)
    }

    /// When the oldest arrived.
    pub fn oldest(&self) -> Option<Instant> {
        self.batches.front().map(|b| b.at)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.batches.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// What they cost in memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Drops all.
    pub fn clear(&mut self) {
        self.batches.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(seqs: &[u64]) -> Held {
        let mut held = Held::default();
        for &seq in seqs {
            held.push(batch(seq, b""));
        }
        held
    }

    fn batch(seq: u64, payload: &[u8]) -> HeldBatch {
        let seen = Seen { seq, ts: 0.0, empty: false };
        HeldBatch { seen, message: [payload].iter().collect(), at: Instant::now() }
    }

    #[test]
    fn the_last_run_begins_after_the_last_hole() {
        assert_eq!(held(&[]).last_run(), None);
        assert_eq!(held(&[4]).last_run(), Some(4));
        assert_eq!(held(&[4, 5, 6]).last_run(), Some(4));
        assert_eq!(held(&[4, 5, 8, 9]).last_run(), Some(8));
    }

    #[test]
    fn bytes_are_those_of_the_batches_that_are_there() {
        let mut h = held(&[4, 5]);
        let two = h.bytes();
        assert!(h.replace_newest(batch(5, &[0; 100])).is_none());
        assert_eq!(h.bytes(), two + 100);
        assert!(h.replace_newest(batch(6, b"")).is_some());
        while h.pop().is_some() {}
        assert_eq!(h.bytes(), 0);
    }
}

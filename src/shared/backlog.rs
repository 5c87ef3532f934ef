//! What was told of one publisher and is not certain to be in the shared index.
//!
//! Pure: says what to commit, given where the servers' cursor stands. Kept also by who does not write, so that it can go
//! on where a writer that is gone left off.

use std::collections::VecDeque;

use kvindex::remote::Change;
use kvindex_valkey::Cursor;

/// One batch.
#[derive(Clone, Debug)]
pub struct Told {
    /// What it changes.
    pub changes: Vec<Change>,
    /// Its number.
    pub seq: u64,
    /// When the engine made it.
    pub ts: f64,
}

impl Told {
    fn weight(&self) -> usize {
        let names = |c: &Change| match c {
            Change::Store(s) => s.names.len(),
            Change::Remove { names, .. } => names.len(),
            Change::Clear(_) => 0,
        };
        1 + self.changes.iter().map(names).sum::<usize>()
    }
}

/// How to go on from what the servers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// After the cursor.
    After,
    /// What is there is to be cleared; everything since the engine's start, or its last clear, is here.
    Anew,
    /// What is there is to be cleared, and what was told in between is not known any more.
    Broken,
    /// What is told has not come as far as the cursor: look again when more was.
    Wait,
}

/// Batches, oldest first.
#[derive(Debug)]
pub struct Backlog {
    batches: VecDeque<Told>,
    /// Names and batches kept.
    weight: usize,
    most: usize,
    /// Number and time of the batch before the first one here.
    before: Option<(u64, f64)>,
    /// Whether nothing was dropped since the publisher was first followed or cleared.
    whole: bool,
    /// Whether all before the first batch here is to be forgotten.
    cleared: bool,
}

impl Backlog {
    /// Of a publisher of which nothing was told, that keeps at most `most` names.
    pub fn new(most: usize) -> Backlog {
        Backlog { batches: VecDeque::new(), weight: 0, most, before: None, whole: true, cleared: false }
    }

    /// A batch was told.
    pub fn push(&mut self, told: Told) {
        self.weight += told.weight();
        self.batches.push_back(told);
        while self.weight > self.most
            && let Some(old) = self.batches.pop_front()
        {
            self.weight -= old.weight();
            self.before = Some((old.seq, old.ts));
            self.whole = false;
        }
    }

    /// What is told from now on goes on after this batch, which came some other way.
    pub fn begin_after(&mut self, seq: u64, ts: Option<f64>) {
        *self = Backlog { whole: false, before: ts.map(|ts| (seq, ts)), ..Backlog::new(self.most) };
    }

    /// All before is to be forgotten.
    pub fn clear(&mut self) {
        *self = Backlog { cleared: true, ..Backlog::new(self.most) };
    }

    /// Something was told that is not here.
    pub fn lose(&mut self) {
        *self = Backlog { cleared: true, whole: false, ..Backlog::new(self.most) };
    }

    /// What is on the servers is to be cleared; what is here is to be committed after that.
    pub fn want_clear(&mut self) {
        self.cleared = true;
    }

    /// Whether what is on the servers must be cleared before anything is committed.
    pub fn wants_clear(&self) -> bool {
        self.cleared
    }

    /// The servers were cleared.
    pub fn was_cleared(&mut self) -> bool {
        self.cleared = false;
        self.whole
    }

    /// Whether everything is committed.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty() && !self.cleared
    }

    /// What to do at a claim that found `cursor`; drops what is in there already.
    pub fn resume(&mut self, cursor: &Cursor) -> Resume {
        if self.cleared {
            return if self.whole { Resume::Anew } else { Resume::Broken };
        }
        let Some(last) = cursor.seq else {
            return if self.whole { Resume::Anew } else { Resume::Broken };
        };
        if let Some(at) = self.batches.iter().position(|t| t.seq == last && t.ts == cursor.ts) {
            self.drop_first(at + 1);
            return Resume::After;
        }
        if self.before == Some((last, cursor.ts)) {
            return Resume::After;
        }
        if self.batches.back().is_none_or(|newest| newest.seq < last && newest.ts < cursor.ts) {
            return Resume::Wait;
        }
        // A later life of the engine may have the same numbers, but not the same times.
        let follows = |t: &Told| last.checked_add(1) == Some(t.seq) && t.ts >= cursor.ts;
        match self.batches.front() {
            Some(first) if follows(first) => Resume::After,
            Some(_) if self.whole => Resume::Anew,
            Some(_) | None => Resume::Broken,
        }
    }

    /// The first batches, up to about `names` names.
    pub fn next(&self, names: usize) -> impl Iterator<Item = &Told> {
        let mut weight = 0;
        self.batches.iter().take_while(move |t| {
            let fits = weight < names;
            weight += t.weight();
            fits
        })
    }

    /// Batches that are here.
    pub fn len(&self) -> usize {
        self.batches.len()
    }

    /// The first `n` batches are on the servers.
    pub fn drop_first(&mut self, n: usize) {
        for told in self.batches.drain(..n) {
            self.weight -= told.weight();
            self.before = Some((told.seq, told.ts));
        }
        self.whole &= n == 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(seq: u64) -> Told {
        Told { changes: vec![], seq, ts: seq as f64 }
    }

    fn backlog(seqs: impl Iterator<Item = u64>) -> Backlog {
        let mut b = Backlog::new(100);
        seqs.for_each(|s| b.push(told(s)));
        b
    }

    fn cursor(seq: u64, ts: f64) -> Cursor {
        Cursor { seq: Some(seq), ts, note: vec![] }
    }

    #[test]
    fn it_goes_on_after_the_servers_cursor() {
        let mut b = backlog(3..7);
        assert_eq!(b.resume(&cursor(4, 4.0)), Resume::After);
        assert_eq!(b.next(100).map(|t| t.seq).collect::<Vec<_>>(), [5, 6]);
        assert_eq!(b.resume(&cursor(4, 4.0)), Resume::After, "the next batch is the first one here");
        b.drop_first(2);
        assert_eq!(b.resume(&cursor(6, 6.0)), Resume::After, "nothing came since");
    }

    #[test]
    fn batches_of_another_life_with_the_same_numbers_are_not_taken_for_known() {
        let mut b = backlog(0..7);
        assert_eq!(b.resume(&cursor(4, 2.5)), Resume::Anew);
        assert_eq!(b.next(100).count(), 7);
        assert_eq!(b.resume(&cursor(99, 2.5)), Resume::Anew, "it has begun to count again");
        let mut b = backlog(5..7);
        assert_eq!(b.resume(&cursor(4, 99.0)), Resume::Anew, "nothing was told before");
        b.drop_first(1);
        assert_eq!(b.resume(&cursor(4, 99.0)), Resume::Broken);
    }

    #[test]
    fn history_that_is_told_again_is_waited_for() {
        let mut b = backlog(0..7);
        assert_eq!(b.resume(&cursor(9, 9.0)), Resume::Wait);
        (7..12).for_each(|n| b.push(told(n)));
        assert_eq!(b.resume(&cursor(9, 9.0)), Resume::After);
        assert_eq!(b.next(100).map(|t| t.seq).collect::<Vec<_>>(), [10, 11]);
        assert_eq!(backlog(0..0).resume(&cursor(9, 9.0)), Resume::Wait);
    }

    #[test]
    fn what_was_dropped_is_a_break_unless_the_servers_have_it() {
        let mut b = backlog(0..150);
        assert_eq!(b.resume(&Cursor::default()), Resume::Broken);
        assert_eq!(b.resume(&cursor(20, 20.0)), Resume::Broken);
        assert_eq!(b.resume(&cursor(120, 120.0)), Resume::After);
        b.clear();
        assert_eq!(b.resume(&cursor(120, 120.0)), Resume::Anew);
        assert!(b.wants_clear() && b.was_cleared());
        b.lose();
        assert_eq!(b.resume(&Cursor::default()), Resume::Broken);
        let mut b = Backlog::new(9);
        b.begin_after(4, Some(4.0));
        b.push(told(5));
        assert_eq!(b.resume(&cursor(3, 3.0)), Resume::Broken, "what a snapshot had was not told");
        assert_eq!(b.resume(&cursor(4, 4.0)), Resume::After);
    }
}

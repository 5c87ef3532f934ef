//! Of two things said about one registration, which holds?
//!
//! Pure: the later one. Removals are remembered for a while, so that a replica that was away does not
//! bring back what was unregistered meanwhile.

use std::collections::HashMap;

use crate::publisher::{PublisherKey, PublisherSpec};

/// Removals remembered.
const MAX_REMOVED: usize = 4096;

/// What was said last about each publisher.
#[derive(Debug, Default)]
pub struct Book {
    said: HashMap<PublisherKey, Said>,
    removed: usize,
    latest: u64,
}

/// What was said of one publisher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// When, in milliseconds since 1970; 0 = before everything else.
    pub at_ms: u64,
    /// The registration; `None` = it was removed.
    pub spec: Option<PublisherSpec>,
}

impl Book {
    /// A time for what is said now: after everything that was said before.
    pub fn now(&mut self, clock_ms: u64) -> u64 {
        self.latest = clock_ms.max(self.latest + 1);
        self.latest
    }

    /// Notes what was said, and whether it is news.
    pub fn note(&mut self, key: PublisherKey, said: Said) -> bool {
        // A clock that is far ahead elsewhere moves this one along: what is said next is still later.
        self.latest = self.latest.max(said.at_ms);
        let before = self.said.get(&key);
        let news = match before {
            None => true,
            Some(b) => (said.at_ms, said.spec.is_none()) > (b.at_ms, b.spec.is_none()) && *b != said,
        };
        if news {
            let was_removed = before.is_some_and(|b| b.spec.is_none());
            self.removed = self.removed + usize::from(said.spec.is_none()) - usize::from(was_removed);
            self.said.insert(key, said);
            self.forget_oldest();
        }
        news
    }

    /// All that was said.
    pub fn all(&self) -> impl Iterator<Item = (&PublisherKey, &Said)> {
        self.said.iter()
    }

    fn forget_oldest(&mut self) {
        if self.removed <= MAX_REMOVED {
            return;
        }
        let oldest = self.said.iter().filter(|(_, s)| s.spec.is_none()).min_by_key(|(_, s)| s.at_ms);
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.said.remove(&key);
            self.removed -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::testing::dialled;

    fn said(at_ms: u64, endpoint: Option<&str>) -> Said {
        Said { at_ms, spec: endpoint.map(|e| dialled("a", e)) }
    }

    fn key(instance: &str) -> PublisherKey {
        dialled(instance, "tcp://a:1").key()
    }

    #[test]
    fn the_later_holds_in_whatever_order_they_come() {
        let words = [said(1, Some("tcp://a:1")), said(2, None), said(3, Some("tcp://a:2"))];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]] {
            let mut book = Book::default();
            for i in order {
                book.note(key("a"), words[i].clone());
            }
            assert_eq!(book.all().next().unwrap().1, &words[2]);
        }
    }

    #[test]
    fn what_was_removed_does_not_come_back_from_before() {
        let mut book = Book::default();
        assert!(book.note(key("a"), said(5, None)));
        assert!(!book.note(key("a"), said(0, Some("tcp://a:1"))), "of a replica that was away");
        assert!(book.note(key("a"), said(6, Some("tcp://a:1"))));
    }

    #[test]
    fn what_is_said_again_is_no_news() {
        let mut book = Book::default();
        assert!(book.note(key("a"), said(5, Some("tcp://a:1"))));
        assert!(!book.note(key("a"), said(5, Some("tcp://a:1"))));
    }

    #[test]
    fn what_is_said_here_is_later_than_all_that_was_heard() {
        let mut book = Book::default();
        book.note(key("a"), said(1_000_000, None));
        assert!(book.now(10) > 1_000_000, "though this clock is behind");
    }

    #[test]
    fn only_so_many_removals_are_remembered() {
        let mut book = Book::default();
        for i in 0..(MAX_REMOVED as u64 + 10) {
            book.note(key(&format!("p{i}")), said(i, None));
        }
        assert_eq!(book.all().count(), MAX_REMOVED);
        assert!(book.all().all(|(_, s)| s.at_ms >= 10));
    }
}

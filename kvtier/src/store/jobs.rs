//! Which read or write is next? Reads before writes: a request waits for a read.
//!
//! The threads are the caller's: each runs [`Jobs::work`] until [`Jobs::close`].

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};

use super::store::lock;

/// Who waits for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A request does.
    Read,
    /// Nobody does.
    Write,
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Waiting {
    reads: VecDeque<Job>,
    writes: VecDeque<Job>,
    closed: bool,
}

/// A bounded queue of jobs for a few threads.
pub struct Jobs {
    most: usize,
    waiting: Mutex<Waiting>,
    change: Condvar,
}

impl Jobs {
    /// A queue for at most `most` reads and as many writes.
    pub fn new(most: usize) -> Jobs {
        Jobs { most, waiting: Mutex::default(), change: Condvar::new() }
    }

    /// Queues a job. False where the queue is full or closed; then it is dropped.
    pub fn submit(&self, urgency: Urgency, job: impl FnOnce() + Send + 'static) -> bool {
        let mut waiting = lock(&self.waiting);
        let closed = waiting.closed;
        let queue = match urgency {
            Urgency::Read => &mut waiting.reads,
            Urgency::Write => &mut waiting.writes,
        };
        if closed || queue.len() >= self.most {
            return false;
        }
        queue.push_back(Box::new(job));
        drop(waiting);
        self.change.notify_one();
        true
    }

    /// Does jobs until the queue is closed and empty.
    pub fn work(&self) {
        while let Some(job) = self.next() {
            job();
        }
    }

    /// Takes no more jobs. Those that wait are still done.
    pub fn close(&self) {
        lock(&self.waiting).closed = true;
        self.change.notify_all();
    }

    fn next(&self) -> Option<Job> {
        let mut waiting = lock(&self.waiting);
        loop {
            let read = waiting.reads.pop_front();
            if let Some(job) = read.or_else(|| waiting.writes.pop_front()) {
                return Some(job);
            }
            if waiting.closed {
                return None;
            }
            waiting = self.change.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waiting = lock(&self.waiting);
        let (reads, writes) = (waiting.reads.len(), waiting.writes.len());
        f.debug_struct("Jobs").field("reads", &reads).field("writes", &writes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn reads_go_first_and_what_waits_is_done_before_the_end() {
        let (jobs, done) = (Jobs::new(2), Arc::new(Mutex::new(Vec::new())));
        let note = |what: &'static str| {
            let done = done.clone();
            move || lock(&done).push(what)
        };
        assert!(jobs.submit(Urgency::Write, note("write 1")));
        assert!(jobs.submit(Urgency::Write, note("write 2")));
        assert!(!jobs.submit(Urgency::Write, note("too many")));
        assert!(jobs.submit(Urgency::Read, note("read")));
        jobs.close();
        assert!(!jobs.submit(Urgency::Read, note("too late")));
        jobs.work();
        assert_eq!(*lock(&done), ["read", "write 1", "write 2"]);
    }

    #[test]
    fn several_threads_share_the_work() {
        let (jobs, count) = (Jobs::new(1000), Arc::new(Mutex::new(0)));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| jobs.work());
            }
            for _ in 0..500 {
                let count = count.clone();
                assert!(jobs.submit(Urgency::Read, move || *lock(&count) += 1));
            }
            jobs.close();
        });
        assert_eq!(*lock(&count), 500);
    }
}

//! A prefill pod that keeps blocks as vLLM's NIXL connector does, with time four times as fast.
//!
//! When prefill is done the blocks are kept for a lease of 7.5 s. A decode pod that has the request
//! sends a heartbeat every 1.25 s, each good for 5 s more, and a word when it is done, upon which the
//! blocks are free; the same word comes when it is given the request and told to abort it. Nothing
//! else frees them before the lease ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

pub const LEASE: Duration = Duration::from_millis(7500);
const HEARTBEAT: Duration = Duration::from_millis(1250);
const EXTENSION: Duration = Duration::from_secs(5);

/// A prefill engine. Clones are the same one.
#[derive(Clone, Default)]
pub struct Prefiller {
    held: Arc<Mutex<HashMap<String, Held>>>,
}

#[derive(Clone, Copy)]
struct Held {
    bytes: u64,
    /// When the engine frees them if nobody says anything.
    until: Instant,
    /// Since when nobody comes for them.
    abandoned: Option<Instant>,
    freed: Option<Instant>,
}

/// Bytes times seconds that blocks were kept for nobody: as it was, and as the engine's own
/// timeouts alone would have left it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stranded {
    pub was: f64,
    pub alone: f64,
}

impl std::ops::AddAssign for Stranded {
    fn add_assign(&mut self, other: Stranded) {
        self.was += other.was;
        self.alone += other.alone;
    }
}

impl Prefiller {
    /// Prefill of `request` is done; its blocks are kept.
    pub fn done(&self, request: &str, bytes: u64) {
        let held = Held { bytes, until: Instant::now() + LEASE, abandoned: None, freed: None };
        self.held.lock().unwrap().insert(request.to_owned(), held);
    }

    /// Whatever was to come for the blocks no longer does.
    pub fn abandoned(&self, request: &str) {
        let mut held = self.held.lock().unwrap();
        if let Some(held) = held.get_mut(request) {
            held.abandoned.get_or_insert_with(Instant::now);
        }
    }

    /// A decode pod read the blocks, or was given the request and told to abort it.
    pub fn released(&self, request: &str) {
        let mut held = self.held.lock().unwrap();
        if let Some(held) = held.get_mut(request) {
            held.freed.get_or_insert_with(Instant::now);
        }
    }

    /// Whether the blocks are still there to be read.
    pub fn readable(&self, request: &str) -> bool {
        let held = self.held.lock().unwrap();
        held.get(request).is_some_and(|h| h.freed.is_none() && Instant::now() < h.until)
    }

    /// A decode pod has the request and keeps the blocks alive until the answer is true.
    pub fn heartbeats(&self, request: &str, over: Arc<std::sync::atomic::AtomicBool>) {
        let (this, request) = (self.clone(), request.to_owned());
        thread::spawn(move || {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                if let Some(held) = this.held.lock().unwrap().get_mut(&request) {
                    held.until = held.until.max(Instant::now() + EXTENSION);
                }
                thread::sleep(HEARTBEAT);
            }
        });
    }

    /// How long blocks were kept for nobody. To be asked once all leases are over.
    pub fn stranded(&self) -> Stranded {
        let mut sum = Stranded::default();
        for held in self.held.lock().unwrap().values() {
            let Some(since) = held.abandoned else { continue };
            let end = held.freed.unwrap_or(held.until).min(held.until);
            let seconds = |end: Instant| end.saturating_duration_since(since).as_secs_f64();
            sum.was += held.bytes as f64 * seconds(end);
            sum.alone += held.bytes as f64 * seconds(held.until);
        }
        sum
    }
}

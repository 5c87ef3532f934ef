//! What an index must offer to be measured.

use crate::stream::Change;

/// A prompt's scores over all pods, in the few numbers that answers are compared by. A pod's score
/// is the blocks it has from the root without a gap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hit {
    /// The best score.
    pub best: u32,
    /// Pods with a score above 0.
    pub pods: u32,
    /// All scores together.
    pub sum: u64,
}

impl Hit {
    /// Takes in one pod's score.
    #[inline]
    pub fn add(&mut self, score: u32) {
        self.add_level(score, u32::from(score > 0));
    }

    /// Takes in `pods` pods that all have `score`.
    #[inline]
    pub fn add_level(&mut self, score: u32, pods: u32) {
        if pods > 0 && score > 0 {
            self.best = self.best.max(score);
            self.pods += pods;
            self.sum += u64::from(pods) * u64::from(score);
        }
    }
}

/// What a prompt is given by. It decides how much of the work of naming blocks is part of a query,
/// so rows with different keys say different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// One hash per block, of the block's own content: the index follows or chains them.
    Local,
    /// One hash per block, of the block and all before it, chained beforehand.
    Sequence,
    /// Token ids: hashing and chaining are part of the query, and hashing is part of the ingest.
    Tokens,
}

impl Key {
    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Key::Local => "local",
            Key::Sequence => "sequence",
            Key::Tokens => "tokens",
        }
    }
}

/// What an index is told before it is filled.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Pods there will be.
    pub pods: u32,
    /// Tokens per block.
    pub block_size: u32,
    /// Distinct blocks to size tables for, by an index that can; 0 = none, tables grow.
    pub expected_blocks: usize,
}

/// Asks an index from a thread other than the writer's.
pub type Reader<B> = Box<dyn FnMut(&[B]) -> Hit + Send>;

/// An index under test.
pub trait Peer: Sized {
    /// Its name in tables.
    const NAME: &'static str;
    /// What its queries give.
    const KEY: Key;
    /// Whether events are applied by a thread of the index's own.
    const OWN_WRITER: bool = false;
    /// The index's own event type, built outside the timed region.
    type Event: Send;
    /// One block of a prompt in the index's own type, built outside the timed region.
    type Block: Copy;

    /// An empty index.
    fn new(shape: Shape) -> Self;

    /// A change in the index's own terms.
    fn event(&self, change: Change<'_>) -> Self::Event;

    /// A block, by its hashes, in the index's own terms.
    fn block(local: u64, sequence: u64) -> Self::Block;

    /// A prompt in the index's own terms, from its blocks' local and sequence hashes.
    fn prompt(locals: &[u64], sequence: &[u64], out: &mut Vec<Self::Block>) {
        out.extend(locals.iter().zip(sequence).map(|(l, s)| Self::block(*l, *s)));
    }

    /// Applies the events in order; on return they are visible to readers. Returns how many the
    /// index refused.
    fn ingest(&mut self, events: Vec<Self::Event>) -> usize;

    /// Scores every pod, on the thread that writes.
    fn query(&mut self, prompt: &[Self::Block]) -> Hit;

    /// A reader for another thread; `None` for a single-threaded index.
    fn reader(&self) -> Option<Reader<Self::Block>>;

    /// What the index reports of itself when filled.
    fn note(&self) -> String {
        String::new()
    }
}

//! How fast and how right is an index on a stream, and what does it take?
//!
//! In this order: [`fill`] (all events, one writer), [`ask`] (the last questions on the final
//! state, then two readers), [`together`] (one reader beside a writer), [`replay`] (the stream as
//! it is). Every answer but those given while another thread writes is compared with the right one;
//! after those the same questions are asked again and compared. [`memory`] is apart, in a process
//! of its own.

mod ask;
pub mod clock;
mod fill;
mod memory;
mod replay;
mod together;

pub use ask::pick;
pub use memory::{Memory, memory};

use serde::{Deserialize, Serialize};

use crate::peer::{Hit, Peer, Shape};
use crate::peers::flat::{self, Holders};
use crate::stream::{Next, Question, Stream};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Questions asked on the final state, the last ones of the stream.
    pub questions: usize,
    /// How often each; the fastest counts.
    pub passes: usize,
    /// See [`Shape::expected_blocks`].
    pub expected_blocks: usize,
}

/// What one process measured of one index on one stream. Times in microseconds, rates per second.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub stream: String,
    pub peer: String,
    pub key: String,
    pub fill: fill::Fill,
    pub ask: ask::Asked,
    /// `None` for a single-threaded index, as the next.
    pub two_readers_per_cpu_s: Option<f64>,
    pub together: Option<together::Together>,
    pub replay: replay::Replay,
    pub note: String,
}

impl Record {
    /// Wrong answers of all kinds, and answers checked.
    pub fn wrong(&self) -> (u64, u64) {
        let after = self.together.as_ref().map_or(Right::default(), |t| t.after);
        let all = [self.ask.right, after, self.replay.right];
        (all.iter().map(|r| r.low + r.high).sum(), all.iter().map(|r| r.checked).sum())
    }
}

/// Answers compared with the right ones.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Right {
    pub checked: u64,
    /// Wrong ones that say too little, and others: too much, or as much of something else.
    pub low: u64,
    pub high: u64,
}

impl Right {
    fn check(&mut self, got: Hit, expected: Hit) {
        self.checked += 1;
        if got != expected {
            match got.sum < expected.sum {
                true => self.low += 1,
                false => self.high += 1,
            }
        }
    }
}

/// Percentiles of durations.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Spread {
    pub mean: f64,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Spread {
    /// Of nanoseconds.
    fn of(nanos: &mut [u64]) -> Spread {
        nanos.sort_unstable();
        let at = |p: f64| nanos.get(((nanos.len() as f64 * p) as usize).min(nanos.len().saturating_sub(1)));
        let micros = |p| at(p).map_or(f64::NAN, |n| *n as f64 / 1e3);
        let mean = nanos.iter().sum::<u64>() as f64 / nanos.len() as f64 / 1e3;
        Spread { mean, p50: micros(0.5), p99: micros(0.99), max: micros(1.0) }
    }
}

/// A question ready to be asked, and its right answer.
struct Ready<B> {
    prompt: Vec<B>,
    expected: Hit,
}

/// Everything of one index on one stream.
pub fn run<P: Peer>(name: &str, stream: &Stream, effort: Effort) -> Record {
    let questions = pick(stream, effort.questions);
    let truth = truth(stream, &questions);
    let shape =
        Shape { pods: stream.pods, block_size: stream.block_size, expected_blocks: effort.expected_blocks };
    let (mut peer, fill) = fill::fill::<P>(stream, shape);
    let ask = ask::ask(&mut peer, &questions, &truth, effort.passes);
    let two_readers = ask::two_readers(&peer, &questions, &truth);
    let note = peer.note();
    drop(peer);
    let together = together::together::<P>(stream, shape, &questions, &truth);
    let replay = replay::replay::<P>(stream, shape);
    Record {
        stream: name.to_owned(),
        peer: P::NAME.to_owned(),
        key: P::KEY.name().to_owned(),
        fill,
        ask,
        two_readers_per_cpu_s: two_readers,
        together,
        replay,
        note,
    }
}

/// The right answers at the end of the stream.
fn truth(stream: &Stream, questions: &[Question<'_>]) -> Vec<Hit> {
    let mut holders = Holders::default();
    for next in stream.iter() {
        match next {
            Next::Change(change) => holders.apply(&flat::event(change)),
            Next::Ask(_) => {}
        }
    }
    questions.iter().map(|q| holders.ask(q.sequence().into_iter())).collect()
}

/// The prompt in the index's own terms.
fn prompt<P: Peer>(question: &Question<'_>, out: &mut Vec<P::Block>) {
    out.clear();
    P::prompt(question.locals, &question.sequence(), out);
}

/// Some questions in the index's own terms, at most as many as fit in a processor's larger cache,
/// so that reading the prompts is not what is measured.
fn pool<P: Peer>(questions: &[Question<'_>], truth: &[Hit], from: usize) -> Vec<Ready<P::Block>> {
    const AT_MOST: usize = 256;
    let n = questions.len();
    (0..n.min(AT_MOST))
        .map(|i| {
            let at = (from + i * 7) % n;
            let mut ready = Vec::new();
            prompt::<P>(&questions[at], &mut ready);
            Ready { prompt: ready, expected: truth[at] }
        })
        .collect()
}

/// The stream's changes from step `from` up to `to` as events of the index, and their blocks.
fn events<P: Peer>(peer: &P, stream: &Stream, from: usize, to: usize) -> (Vec<P::Event>, u64) {
    let mut blocks = 0;
    let mut out = Vec::new();
    for i in from..to {
        if let Next::Change(change) = stream.step(i) {
            blocks += change.blocks();
            out.push(peer.event(change));
        }
    }
    (out, blocks)
}

//! Questions on the final state.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::clock::thread_cpu;
use super::{Right, Spread, pool, prompt};
use crate::peer::{Hit, Peer, Reader};
use crate::stream::{Next, Question, Stream};

/// How long two readers ask at once.
const READ_FOR: Duration = Duration::from_millis(800);

/// How long questions took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Asked {
    /// Of each question the fastest pass: what a neighbour on the machine took is not the index's.
    pub micros: Spread,
    /// Blocks asked for per second.
    pub blocks_per_s: f64,
    pub right: Right,
}

/// The last `n` questions of a stream.
pub fn pick(stream: &Stream, n: usize) -> Vec<Question<'_>> {
    let question = |i| match stream.step(i) {
        Next::Ask(q) => Some(q),
        Next::Change(_) => None,
    };
    (0..stream.len()).rev().filter_map(question).take(n).collect()
}

/// Asks every question `passes` times, on the thread that wrote.
pub fn ask<P: Peer>(peer: &mut P, questions: &[Question<'_>], truth: &[Hit], passes: usize) -> Asked {
    let mut least = vec![u64::MAX; questions.len()];
    let mut right = Right::default();
    let mut ready = Vec::new();
    for _ in 0..passes {
        for (i, q) in questions.iter().enumerate() {
            prompt::<P>(q, &mut ready);
            let began = Instant::now();
            let hit = black_box(peer.query(black_box(&ready)));
            least[i] = least[i].min(began.elapsed().as_nanos() as u64);
            right.check(hit, truth[i]);
        }
    }
    let blocks: usize = questions.iter().map(|q| q.locals.len()).sum();
    let blocks_per_s = blocks as f64 * 1e9 / least.iter().sum::<u64>() as f64;
    Asked { micros: Spread::of(&mut least), blocks_per_s, right }
}

/// Two readers at once: questions per second of their processor time, together.
pub fn two_readers<P: Peer>(peer: &P, questions: &[Question<'_>], truth: &[Hit]) -> Option<f64> {
    let readers = [(peer.reader()?, 0), (peer.reader()?, questions.len() / 2)];
    let start = Barrier::new(readers.len());
    let read = |mut reader: Reader<P::Block>, from: usize| {
        let pool = pool::<P>(questions, truth, from);
        start.wait();
        let (began, cpu) = (Instant::now(), thread_cpu());
        let mut asked = 0usize;
        while !asked.is_multiple_of(16) || began.elapsed() < READ_FOR {
            black_box(reader(black_box(&pool[asked % pool.len()].prompt)));
            asked += 1;
        }
        asked as f64 / (thread_cpu() - cpu)
    };
    Some(std::thread::scope(|scope| {
        let threads = readers.map(|(reader, from)| scope.spawn(move || read(reader, from)));
        threads.map(|t| t.join().expect("a reader does not panic")).iter().sum()
    }))
}

//! One reader beside a writer that never rests, against the same reader alone.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::clock::{WriterCpu, thread_cpu};
use super::{Right, Spread, events, pool};
use crate::peer::{Hit, Peer, Shape};
use crate::stream::{Question, Stream};

/// How long the reader asks alone.
const ALONE_FOR: Duration = Duration::from_millis(800);
/// Events that the writer is handed at a time.
const BATCH: usize = 64;

/// How each did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Together {
    /// Blocks per second of the writer's processor time, and of the clock's.
    pub blocks_per_cpu_s: f64,
    pub blocks_per_s: f64,
    /// The reader on the index half filled, nobody writing.
    pub alone: Spread,
    /// The reader while the second half is written.
    pub beside: Spread,
    /// Questions asked beside the writer.
    pub asked: u64,
    /// The same questions when the writer is done.
    pub after: Right,
}

/// Writes the second half of the stream while a reader asks.
pub fn together<P: Peer>(
    stream: &Stream,
    shape: Shape,
    questions: &[Question<'_>],
    truth: &[Hit],
) -> Option<Together> {
    let half = stream.len() / 2;
    let mut peer = P::new(shape);
    let mut reader = peer.reader()?;
    peer.ingest(events(&peer, stream, 0, half).0);
    let (rest, blocks) = events(&peer, stream, half, stream.len());
    let mut rest = rest.into_iter();
    let batches: Vec<Vec<P::Event>> =
        std::iter::from_fn(|| Some(rest.by_ref().take(BATCH).collect()).filter(|b: &Vec<_>| !b.is_empty()))
            .collect();

    let (start, done) = (Barrier::new(2), AtomicBool::new(false));
    let ((wall, cpu), mut alone, mut beside, after) = std::thread::scope(|scope| {
        let (start, done) = (&start, &done);
        let reading = scope.spawn(move || {
            let pool = pool::<P>(questions, truth, 0);
            let mut ask_until = |over: &dyn Fn(Instant) -> bool| {
                let (began, mut nanos) = (Instant::now(), Vec::new());
                while !over(began) {
                    let asked = Instant::now();
                    black_box(reader(black_box(&pool[nanos.len() % pool.len()].prompt)));
                    nanos.push(asked.elapsed().as_nanos() as u64);
                }
                nanos
            };
            let alone = ask_until(&|began| began.elapsed() >= ALONE_FOR);
            start.wait();
            let cpu = thread_cpu();
            let beside = ask_until(&|_| done.load(Ordering::Relaxed));
            let cpu = thread_cpu() - cpu;
            let mut after = Right::default();
            start.wait();
            pool.iter().for_each(|q| after.check(reader(&q.prompt), q.expected));
            (cpu, alone, beside, after)
        });
        start.wait();
        let (began, cpu) = (Instant::now(), WriterCpu::start(P::OWN_WRITER));
        for batch in batches {
            peer.ingest(batch);
        }
        let wall = began.elapsed().as_secs_f64();
        let cpu = cpu.stop();
        done.store(true, Ordering::Relaxed);
        start.wait();
        let (reader_cpu, alone, beside, after) = reading.join().expect("a reader does not panic");
        ((wall, cpu(reader_cpu)), alone, beside, after)
    });
    Some(Together {
        blocks_per_cpu_s: blocks as f64 / cpu,
        blocks_per_s: blocks as f64 / wall,
        alone: Spread::of(&mut alone),
        asked: beside.len() as u64,
        beside: Spread::of(&mut beside),
        after,
    })
}

//! Ingest: every event of the stream, by one writer.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::clock::WriterCpu;
use super::events;
use crate::peer::{Peer, Shape};
use crate::stream::Stream;

/// How fast it went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fill {
    /// Blocks stored and removed per second of the writer's processor time, and of the clock's.
    pub blocks_per_cpu_s: f64,
    pub blocks_per_s: f64,
    /// Events per second of the writer's processor time.
    pub events_per_cpu_s: f64,
    /// Events that the index refused.
    pub refused: u64,
}

/// Fills a new index.
pub fn fill<P: Peer>(stream: &Stream, shape: Shape) -> (P, Fill) {
    let mut peer = P::new(shape);
    let (events, blocks) = events(&peer, stream, 0, stream.len());
    let n = events.len() as f64;
    let (began, writer) = (Instant::now(), WriterCpu::start(P::OWN_WRITER));
    let refused = peer.ingest(events) as u64;
    let (cpu, wall) = (writer.stop()(0.0), began.elapsed().as_secs_f64());
    let fill = Fill {
        blocks_per_cpu_s: blocks as f64 / cpu,
        blocks_per_s: blocks as f64 / wall,
        events_per_cpu_s: n / cpu,
        refused,
    };
    (peer, fill)
}

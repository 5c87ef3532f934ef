//! The stream as it is: events and questions in order, every answer compared.

use std::hint::black_box;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Right, Spread, prompt};
use crate::peer::{Peer, Shape};
use crate::stream::{Next, Stream};

/// How it went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Replay {
    /// How long questions took, each asked once, between the events.
    pub micros: Spread,
    pub right: Right,
    /// The first answer that was not the right one.
    pub first_wrong: Option<String>,
}

/// Replays the stream.
pub fn replay<P: Peer>(stream: &Stream, shape: Shape) -> Replay {
    let mut peer = P::new(shape);
    let mut pending = Vec::new();
    let mut nanos = Vec::new();
    let mut right = Right::default();
    let mut first_wrong = None;
    let mut ready = Vec::new();
    for (i, next) in stream.iter().enumerate() {
        match next {
            Next::Change(change) => pending.push(peer.event(change)),
            Next::Ask(q) => {
                peer.ingest(std::mem::take(&mut pending));
                prompt::<P>(&q, &mut ready);
                let began = Instant::now();
                let hit = black_box(peer.query(black_box(&ready)));
                nanos.push(began.elapsed().as_nanos() as u64);
                right.check(hit, q.expected);
                if hit != q.expected && first_wrong.is_none() {
                    first_wrong = Some(format!("step {i}: {hit:?}, right is {:?}", q.expected));
                }
            }
        }
    }
    Replay { micros: Spread::of(&mut nanos), right, first_wrong }
}

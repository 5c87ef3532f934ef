//! What others do, and what could be done at most.
//!
//! Each is a cache of single blocks. Of a prompt the last block is accessed first, which makes
//! orders by time evict from the end of a prompt: the best that can be done for them.

mod arc;
mod belady;
mod list;
mod lru;
mod s3fifo;
mod sieve;
mod tiny;

pub use belady::belady;

use kvd::ctl::simulate::trace::Trace;

/// A cache of blocks.
pub trait Cache {
    /// Whether it has a block. Changes nothing.
    fn has(&self, block: u32) -> bool;
    /// A block is used: counted where it is there, brought in where it is not.
    fn access(&mut self, block: u32);
}

/// A rival: its name, and how to make one of so many blocks for a trace of so many distinct ones.
pub type Rival = (&'static str, fn(usize, usize) -> Box<dyn Cache>);

/// All of them.
pub const ALL: [Rival; 5] = [
    ("LRU", |capacity, blocks| Box::new(lru::Lru::new(capacity, blocks))),
    ("ARC", |capacity, blocks| Box::new(arc::Arc::new(capacity, blocks))),
    ("S3-FIFO", |capacity, blocks| Box::new(s3fifo::S3Fifo::new(capacity, blocks))),
    ("SIEVE", |capacity, blocks| Box::new(sieve::Sieve::new(capacity, blocks))),
    ("W-TinyLFU", |capacity, blocks| Box::new(tiny::WTinyLfu::new(capacity, blocks))),
];

/// The part of all blocks that a rival had when they were asked for, contiguous from the root.
pub fn hit_ratio(cache: &mut dyn Cache, trace: &Trace) -> f64 {
    let mut hits = 0;
    for request in &trace.requests {
        hits += request.chain.iter().take_while(|b| cache.has(**b)).count();
        for &block in request.chain.iter().rev() {
            cache.access(block);
        }
    }
    hits as f64 / trace.accesses() as f64
}

//! What must hold for every payload, whatever is in it.

use kvproto::Event;
use kvproto::engine::{Engine, decode};

pub fn check(engine: Engine, payload: &[u8]) {
    let Ok(batch) = decode(engine, payload) else { return };
    let skipped = batch.skipped.unknown + batch.skipped.malformed;
    assert_eq!(skipped > 0, batch.skipped.first.is_some());
    let mut items = 0;
    for event in batch.events() {
        match event {
            Event::Stored(s) => {
                items += s.hashes.len() + s.tokens.len();
                items += (0..s.hashes.len()).map(|i| s.extras(i).len()).sum::<usize>();
                assert!(s.block_size <= 65536);
                if s.is_dense() {
                    assert_eq!(s.tokens.len(), s.hashes.len() * s.block_size as usize);
                }
            }
            Event::Removed(r) => items += r.hashes.len(),
            Event::Cleared(_) => {}
        }
    }
    // Each took at least one byte: nothing is given out twice or made up.
    assert!(items + batch.len() + skipped as usize <= payload.len());
}

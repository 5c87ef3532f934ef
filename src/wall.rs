//! What does the wall clock say?

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970; a clock from before stands still.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

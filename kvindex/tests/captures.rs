//! What real engines recorded, straight through decoder and index: every request's cached
//! tokens must be what the engine itself reported.
//!
//! Requests that no index outside the engine can know are left out, each for a reason: they
//! ran beside others, came first after a reset (the engine announces it late) or a restart
//! (it does not announce it at all), asked for prompt log-probabilities (which skips the
//! cache), used two adapters of one name, or went to a rank that was not recorded.
//!
//! Again with a snapshot between any two requests: the index that asks on is put back from it.

#[path = "support/replant.rs"]
mod replant;

#[path = "support/recorded.rs"]
mod recorded;
#[allow(dead_code, reason = "no request was announced when these were recorded")]
#[path = "support/shadow.rs"]
mod shadow;

use recorded::check_all;
use shadow::Alone;

#[test]
fn every_recorded_request_is_predicted_exactly() {
    check_all(0, &mut Alone);
}

#[test]
fn every_recorded_request_is_predicted_exactly_by_an_index_put_back_from_a_snapshot() {
    check_all(5, &mut Alone);
}

//! What real engines recorded: every request's cached tokens must be what the engine itself reported, and every
//! number of the answer what the embedded index says.

#[allow(dead_code, reason = "no request was announced when these were recorded")]
#[path = "support/beside.rs"]
mod beside;
#[path = "../../tests/support/recorded.rs"]
mod recorded;
#[path = "../../tests/support/replant.rs"]
mod replant;
#[path = "support/servers.rs"]
mod servers;
#[allow(dead_code, reason = "no request was announced when these were recorded")]
#[path = "../../tests/support/shadow.rs"]
mod shadow;

use beside::Beside;
use kvindex_valkey::Shared;
use servers::Servers;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_recorded_request_is_predicted_exactly_by_the_shared_index() {
    let Some(servers) = Servers::start(3, 0).await else { return };
    let shared = Shared::connect(servers.config("captures")).await.expect("servers that answer");
    let mut beside = Beside::new(shared);
    recorded::check_all(0, &mut beside);
    assert_eq!((beside.same.get(), beside.refused.get()), (1046, 0));
}

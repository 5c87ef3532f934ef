//! Asking over gRPC as a scheduler does, with the client that schedulers link.

use std::time::Duration;

use scorer_client::{Prompt, ScoreCall, ScorerClient};

use crate::support::{Engine, Kvd, record, stored_payload};

#[test]
fn a_scheduler_is_told_how_much_each_candidate_holds() {
    let data = tempfile::tempdir().expect("a directory");
    let kvd = Kvd::start(data.path());
    let tokens: Vec<u32> = (0..64).collect();
    let mut engines: Vec<Engine> = ["10.0.0.1:8000", "10.0.0.2:8000"].map(Engine::open).into();
    for (e, blocks) in engines.iter_mut().zip([4usize, 2]) {
        e.register(&kvd, "vLLM", 16);
        e.publish(&[record(0, stored_payload(1.0, 100, &tokens[..16 * blocks], 16))]);
        kvd.wait_for_seq(&e.instance, 0);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = ScorerClient::builder(format!("http://{}", kvd.grpc))
            .deadline(Duration::from_secs(20))
            .connect()
            .await
            .expect("connect");
        let call = ScoreCall::new("m", Prompt::tokens(&tokens));
        let scores = client.score(call).await.expect("scores");
        let got: Vec<(String, u32, u64)> = scores
            .endpoints
            .iter()
            .map(|e| (e.endpoint.instance.clone(), e.cached_blocks, e.cached_tokens))
            .collect();
        // All four blocks are held, but the engine computes the last token again.
        assert_eq!(got, [("10.0.0.1:8000".to_owned(), 4, 48), ("10.0.0.2:8000".to_owned(), 2, 32)]);
        assert!(!scores.degraded && !scores.unknown_model);
        let other = client.score(ScoreCall::new("other", Prompt::tokens(&tokens))).await.expect("scores");
        assert!(other.unknown_model && other.endpoints.is_empty());
    });
}

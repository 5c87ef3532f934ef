//! How much each candidate has of a prompt, and how a client gets that.

use bytes::Bytes;
use kvproto::Tier;
use kvproto::rpc::indexer::GetPodScoresRequest;
use kvproto::rpc::indexer::indexer_service_client::IndexerServiceClient;
use kvproto::rpc::kv;
use kvproto::rpc::kv::prompt::Key;
use tokio_stream::StreamExt;
use tonic::Code;

use super::{A, B, Kvd, ask, prompt, short, tokens};

#[tokio::test]
async fn a_prompt_is_scored_for_every_candidate() {
    let kvd = Kvd::start().await;
    let (a, b) = (kvd.register(A, 0), kvd.register(B, 0));
    kvd.store(a, 3, Tier::Gpu);
    kvd.store(b, 1, Tier::Gpu);
    kvd.store(b, 2, Tier::Cpu);

    let request = kv::ScoreRequest { request_id: "r".to_owned(), seq: 7, ..ask(tokens(14)) };
    let r = kvd.index().score(request).await.unwrap().into_inner();
    assert_eq!((r.request_id.as_str(), r.seq, r.total_blocks, r.block_size_tokens), ("r", 7, 3, 4));
    assert_eq!(short(&r), [(A, 3, 12), (B, 2, 8)]);
    let b = &r.endpoints[1];
    assert_eq!((b.weighted_blocks, b.match_blocks), (1.8, 1));
    let count = |tier: kv::Tier, blocks| kv::TierCount { tier: tier.into(), blocks };
    assert_eq!(b.by_tier, [count(kv::Tier::Gpu, 1), count(kv::Tier::Cpu, 2)]);
    // Nothing was received over the publisher's socket, and the answer says so.
    let f = b.freshness.unwrap();
    assert_eq!((f.state(), f.complete, f.last_seq), (kv::PublisherState::Connecting, false, None));
    assert!(r.degraded);
    assert_eq!(r.coverage, 0.0);

    let bytes: Vec<u8> = (1..=14u32).flat_map(u32::to_le_bytes).collect();
    let by_bytes = kvd.index().score(ask(prompt(Key::TokenIdsLe(Bytes::from(bytes))))).await.unwrap();
    assert_eq!(short(&by_bytes.into_inner()), short(&r));

    // Worked on apart from the short ones.
    let long = kvd.index().score(ask(tokens(40_000))).await.unwrap().into_inner();
    assert_eq!((long.total_blocks, short(&long)), (10_000, vec![(A, 3, 12), (B, 2, 8)]));
}

#[tokio::test]
async fn candidates_are_found_by_either_form_of_their_name_and_the_others_are_missing() {
    let kvd = Kvd::start().await;
    let six = kvd.register("fd00::1:8000", 0);
    kvd.store(six, 1, Tier::Gpu);
    kvd.register(B, 0);
    let candidates = ["[fd00::1]:8000", "10.0.0.9:8000"].map(str::to_owned).to_vec();
    let r = kvd.index().score(kv::ScoreRequest { candidates, ..ask(tokens(5)) }).await.unwrap().into_inner();
    assert_eq!(short(&r), [("[fd00::1]:8000", 1, 4)]);
    assert_eq!(r.missing_candidates, ["10.0.0.9:8000"]);
    assert!(!r.unknown_model);
}

#[tokio::test]
async fn an_unknown_model_is_an_answer() {
    let kvd = Kvd::start().await;
    let request = kv::ScoreRequest { candidates: vec![A.to_owned()], ..ask(tokens(5)) };
    let r = kvd.index().score(request).await.unwrap().into_inner();
    assert!(r.unknown_model && r.degraded && r.endpoints.is_empty());
    assert_eq!(r.missing_candidates, [A]);
}

#[tokio::test]
async fn the_best_k_come_first() {
    let kvd = Kvd::start().await;
    for (instance, blocks) in [(A, 1), (B, 3), ("10.0.0.3:8000", 2)] {
        let holder = kvd.register(instance, 0);
        kvd.store(holder, blocks, Tier::Gpu);
    }
    let options = Some(kv::ScoreOptions { top_k: 2, ..Default::default() });
    let r = kvd.index().score(kv::ScoreRequest { options, ..ask(tokens(13)) }).await.unwrap().into_inner();
    assert_eq!(short(&r), [(B, 3, 12), ("10.0.0.3:8000", 2, 8)]);
}

#[tokio::test]
async fn a_stream_answers_in_order_and_goes_on_after_a_bad_question() {
    let kvd = Kvd::start().await;
    let a = kvd.register(A, 0);
    kvd.store(a, 2, Tier::Gpu);
    let questions: Vec<kv::ScoreRequest> = (0..100)
        .map(|seq| kv::ScoreRequest {
            seq,
            request_id: seq.to_string(),
            ..ask(tokens(if seq == 50 { 0 } else { 9 }))
        })
        .map(|q| if q.seq == 60 { kv::ScoreRequest { model: String::new(), ..q } } else { q })
        .collect();
    let mut answers = kvd.index().score_stream(tokio_stream::iter(questions)).await.unwrap().into_inner();
    for seq in 0..100 {
        let r = answers.next().await.unwrap().unwrap();
        assert_eq!((r.seq, r.request_id.as_str()), (seq, seq.to_string().as_str()));
        if seq == 60 {
            assert_eq!(
                (Code::from(r.error_code), r.error_message.as_str()),
                (Code::InvalidArgument, "model: empty")
            );
        } else {
            assert_eq!((r.error_code, r.endpoints[0].cached_blocks), (0, if seq == 50 { 0 } else { 2 }));
        }
    }
    assert!(answers.next().await.is_none());
}

#[tokio::test]
async fn llmd_clients_get_raw_scores_of_pods_with_the_first_block() {
    let kvd = Kvd::start().await;
    for (instance, rank, blocks) in [(A, 0, 2), (A, 1, 1), (B, 0, 3)] {
        let holder = kvd.register(instance, rank);
        kvd.store(holder, blocks, Tier::Cpu);
    }
    kvd.register("10.0.0.3:8000", 0);
    let mut client = IndexerServiceClient::new(kvd.channel.clone());
    let request = |prompt: &str, pods: &[&str]| GetPodScoresRequest {
        prompt: prompt.to_owned(),
        model_name: "m".to_owned(),
        pod_identifiers: pods.iter().map(|p| (*p).to_owned()).collect(),
    };
    let json = "[1,2,3,4,5,6,7,8,9,10,11,12,13]";
    let scores = client.get_pod_scores(request(json, &[])).await.unwrap().into_inner().scores;
    let got: Vec<_> = scores.iter().map(|s| (s.pod.as_str(), s.data_parallel_rank)).collect();
    assert_eq!(got, [(A, Some(0)), (A, Some(1)), (B, None)]);
    for (s, expected) in scores.iter().zip([1.6, 0.8, 2.4]) {
        assert!((s.score - expected).abs() < 1e-9, "{s:?}");
    }
    let only = client.get_pod_scores(request(json, &[B])).await.unwrap().into_inner().scores;
    assert_eq!(only.len(), 1);
    let refused = client.get_pod_scores(request("Hello", &[])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("no tokenizer"), "{refused}");
}

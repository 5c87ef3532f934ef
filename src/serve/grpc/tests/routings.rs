//! Requests that were routed, and count before an engine says so.

use std::time::Duration;

use kvproto::Tier;
use kvproto::rpc::kv;
use tonic::Code;

use super::{A, B, Kvd, ask, hashes, tokens};

/// Speculative blocks of `instance` for the prompt of 13 tokens.
async fn speculative(kvd: &Kvd, instance: &str) -> u32 {
    let options = Some(kv::ScoreOptions { include_speculative: true, ..Default::default() });
    let request = kv::ScoreRequest { options, candidates: vec![instance.to_owned()], ..ask(tokens(13)) };
    let r = kvd.index().score(request).await.unwrap().into_inner();
    assert_eq!(r.endpoints[0].cached_blocks, 1, "announced blocks are not cached ones");
    r.endpoints[0].speculative_blocks
}

#[tokio::test]
async fn routed_blocks_count_as_speculative_until_they_are_forgotten() {
    let kvd = Kvd::start().await;
    for instance in [A, B] {
        let holder = kvd.register(instance, 0);
        kvd.store(holder, 1, Tier::Gpu);
    }
    let to = |instance: &str, dp_rank| kv::RoutedEndpoint { instance_id: instance.to_owned(), dp_rank };
    let route = kv::RecordRoutingRequest {
        request_id: "r".to_owned(),
        model: "m".to_owned(),
        prompt: tokens(13),
        endpoints: vec![to(A, 0), to(A, 1), to("10.0.0.9:8000", 0)],
        ttl_ms: 60_000,
        ..Default::default()
    };
    let r = kvd.index().record_routing(route.clone()).await.unwrap().into_inner();
    assert_eq!(r.recorded_blocks, 3);
    assert_eq!(r.missing_endpoints, [to(A, 1), to("10.0.0.9:8000", 0)]);
    assert_eq!((speculative(&kvd, A).await, speculative(&kvd, B).await), (3, 1));

    let forget = || kv::ForgetRoutingRequest { request_id: "r".to_owned() };
    assert!(kvd.index().forget_routing(forget()).await.unwrap().into_inner().found);
    assert!(!kvd.index().forget_routing(forget()).await.unwrap().into_inner().found);
    assert_eq!(speculative(&kvd, A).await, 1);

    let refusals = [
        ("request_id: empty", kv::RecordRoutingRequest { request_id: String::new(), ..route.clone() }),
        ("endpoints: empty", kv::RecordRoutingRequest { endpoints: vec![], ..route.clone() }),
        ("ttl_ms: 60001 is over 60000", kv::RecordRoutingRequest { ttl_ms: 60_001, ..route.clone() }),
    ];
    for (message, request) in refusals {
        let refused = kvd.index().record_routing(request).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, message));
    }
    let many = kv::RecordRoutingRequest { endpoints: vec![to(A, 0); 65], ..route.clone() };
    assert_eq!(kvd.index().record_routing(many).await.unwrap_err().code(), Code::ResourceExhausted);
    let by_engine_hash =
        kv::RecordRoutingRequest { prompt: hashes(kv::HashKind::Engine, vec![100]), ..route };
    assert_eq!(kvd.index().record_routing(by_engine_hash).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn routed_blocks_stop_counting_by_themselves() {
    let kvd = Kvd::start().await;
    let a = kvd.register(A, 0);
    kvd.store(a, 1, Tier::Gpu);
    for ttl_ms in [1, 30] {
        let route = kv::RecordRoutingRequest {
            request_id: "r".to_owned(),
            model: "m".to_owned(),
            prompt: tokens(13),
            endpoints: vec![kv::RoutedEndpoint { instance_id: A.to_owned(), dp_rank: 0 }],
            ttl_ms,
            ..Default::default()
        };
        kvd.index().record_routing(route).await.unwrap();
        // Ends only if the expiry happens, whenever that is; the second round shows that the
        // task wakes up again.
        while speculative(&kvd, A).await != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

//! What the index holds, block by block, and who is followed.

use kvproto::Tier;
use kvproto::rpc::kv;
use kvproto::rpc::kv::ingest_service_client::IngestServiceClient;
use tokio_stream::StreamExt;
use tonic::Code;

use super::{A, B, Kvd, ask, tokens};

#[tokio::test]
async fn each_block_is_located() {
    let kvd = Kvd::start().await;
    for (instance, blocks) in [(A, 2), (B, 1)] {
        let holder = kvd.register(instance, 0);
        kvd.store(holder, blocks, Tier::Gpu);
    }
    let request = kv::LocateBlocksRequest { model: "m".to_owned(), prompt: tokens(13), ..Default::default() };
    let blocks: Vec<kv::BlockPlacement> =
        kvd.index().locate_blocks(request).await.unwrap().into_inner().map(Result::unwrap).collect().await;
    let who = |b: &kv::BlockPlacement| {
        (b.block, b.holders.iter().map(|h| h.instance_id.clone()).collect::<Vec<_>>(), b.seq_hash.is_some())
    };
    let expected = [(0, vec![A.to_owned(), B.to_owned()], true), (1, vec![A.to_owned()], true)];
    assert_eq!(blocks.iter().map(who).collect::<Vec<_>>(), expected);
    assert_eq!(blocks[0].holders[0].tiers, [i32::from(kv::Tier::Gpu)]);
}

#[tokio::test]
async fn a_dump_goes_on_after_any_of_its_chunks() {
    let kvd = Kvd::start().await;
    for (instance, blocks) in [(B, 9000), (A, 3)] {
        let holder = kvd.register(instance, 0);
        kvd.store(holder, blocks, Tier::Gpu);
    }
    let dump = async |resume_token: String| -> Vec<kv::DumpChunk> {
        let request = kv::DumpRequest { resume_token, ..Default::default() };
        kvd.admin().dump(request).await.unwrap().into_inner().map(Result::unwrap).collect().await
    };
    let chunks = dump(String::new()).await;
    let rows = |chunks: &[kv::DumpChunk]| chunks.iter().flat_map(|c| c.rows.clone()).collect::<Vec<_>>();
    let all = rows(&chunks);
    assert_eq!(all.len(), 9003);
    assert_eq!(
        (all[0].instance_id.as_str(), all[0].block, all[0].depth, all[0].parent),
        (A, 100, Some(0), None)
    );
    assert_eq!((all[1].block, all[1].depth, all[1].parent), (101, Some(1), Some(100)));
    assert_eq!(all[3].instance_id, B);
    assert!(chunks.len() >= 4);
    let mut sent = 0;
    for chunk in &chunks {
        sent += chunk.rows.len();
        assert_eq!(rows(&dump(chunk.resume_token.clone()).await), all[sent..]);
    }
    let request = kv::DumpRequest { resume_token: "nonsense".to_owned(), ..Default::default() };
    let refused = kvd.admin().dump(request).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "resume_token: not one that Dump gave out")
    );
    let only_a = kv::DumpRequest { instance_id: A.to_owned(), ..Default::default() };
    let only_a: Vec<_> =
        kvd.admin().dump(only_a).await.unwrap().into_inner().map(Result::unwrap).collect().await;
    assert_eq!(rows(&only_a), all[..3]);
}

#[tokio::test]
async fn a_score_is_explained_block_by_block() {
    let kvd = Kvd::start().await;
    let a = kvd.register(A, 0);
    kvd.store(a, 2, Tier::Gpu);
    let request = |instance: &str| kv::ExplainScoreRequest {
        score: Some(ask(tokens(13))),
        instance_id: instance.to_owned(),
        dp_rank: 0,
    };
    let r = kvd.admin().explain_score(request(A)).await.unwrap().into_inner();
    assert_eq!(r.score.unwrap().cached_tokens, 8);
    let tiers: Vec<usize> = r.blocks.iter().map(|b| b.tiers.len()).collect();
    assert_eq!(tiers, [1, 1, 0]);
    assert!(r.steps.last().unwrap().contains('8'), "{:?}", r.steps);
    let refused = kvd.admin().explain_score(request(B)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert_eq!(
        refused.message(),
        "instance_id: 10.0.0.2:8000 with dp_rank 0 is not registered for this model and tenant"
    );
}

#[tokio::test]
async fn publishers_come_and_go() {
    let kvd = Kvd::start().await;
    let mut client = IngestServiceClient::new(kvd.channel.clone());
    let spec = kv::PublisherSpec {
        model: "m".to_owned(),
        instance_id: "[fd00::1]:8000".to_owned(),
        r#type: "SGLang".to_owned(),
        endpoint: "tcp://127.0.0.1:9".to_owned(),
        block_size: 4,
        ..Default::default()
    };
    let request = || kv::RegisterPublisherRequest { publisher: Some(spec.clone()) };
    assert!(!client.register_publisher(request()).await.unwrap().into_inner().replaced);
    let listed = client.list_publishers(kv::ListPublishersRequest {}).await.unwrap().into_inner().publishers;
    assert_eq!(listed.len(), 1);
    let as_registered = kv::PublisherSpec { tenant_id: "default".to_owned(), ..spec.clone() };
    assert_eq!(listed[0].spec.as_ref(), Some(&as_registered));
    let stats = kvd.admin().stats(kv::StatsRequest {}).await.unwrap().into_inner();
    assert_eq!((stats.publishers, stats.live_publishers), (1, 0));

    let gone =
        kv::UnregisterPublisherRequest { instance_id: "fd00::1:8000".to_owned(), ..Default::default() };
    let removed = client.unregister_publisher(gone).await.unwrap().into_inner().removed;
    assert_eq!(removed, [as_registered]);
    assert!(kvd.index().score(ask(tokens(5))).await.unwrap().into_inner().unknown_model);
    let refused = client.register_publisher(kv::RegisterPublisherRequest::default()).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "publisher: missing"));
}

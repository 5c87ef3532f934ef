//! Ways to say which prompt is meant, and what is refused.

use bytes::Bytes;
use kvproto::Tier;
use kvproto::rpc::kv;
use kvproto::rpc::kv::prompt::Key;
use tonic::Code;

use super::{A, Kvd, ask, hashes, prompt, short, tokens};
use crate::serve::Limits;

#[tokio::test]
async fn blocks_can_be_asked_for_by_hash() {
    let kvd = Kvd::start().await;
    let a = kvd.register(A, 0);
    kvd.store(a, 2, Tier::Gpu);
    let engine = ask(hashes(kv::HashKind::Engine, vec![100, 101, 102]));
    let r = kvd.index().score(engine).await.unwrap().into_inner();
    assert_eq!((r.total_blocks, r.endpoints[0].cached_blocks), (3, 2));

    let spec = kv::GetHashSpecRequest { model: "m".to_owned(), ..Default::default() };
    let spec = kvd.index().get_hash_spec(spec).await.unwrap().into_inner();
    assert_eq!((spec.algorithm.as_str(), &spec.block_sizes[..]), ("kvd-xxh3-64/1", &[4][..]));
    let vector = &spec.vectors[0];
    assert_eq!(
        (vector.block_size, &vector.token_ids[..], vector.seq_hashes.len()),
        (4, &[1, 2, 3, 4, 5, 6, 7, 8, 9][..], 2)
    );
    // The example is the prompt stored above, so its hashes must find it.
    let canonical = |block_size| kv::ScoreRequest {
        block_size,
        ..ask(hashes(kv::HashKind::Canonical, vector.seq_hashes.clone()))
    };
    for block_size in [0, 4] {
        let r = kvd.index().score(canonical(block_size)).await.unwrap().into_inner();
        assert_eq!(r.endpoints[0].cached_blocks, 2, "block_size {block_size}");
    }
    let refused = kvd.index().score(canonical(8)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(
        refused.message(),
        "block_size: hashes are of 8-token blocks, the engines asked about use [4]"
    );
    let refused = kvd.index().score(ask(hashes(kv::HashKind::LlmdXxh64, vec![1]))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("hashes: llm-d's xxh64 keys are not indexed"), "{refused}");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_by_field() {
    let limits = Limits { max_tokens: 100, max_candidates: 2, max_text_bytes: 64, ..Limits::default() };
    let kvd = Kvd::start_with(limits).await;
    let a = kvd.register(A, 0);
    kvd.store(a, 1, Tier::Gpu);
    let item = |offset, length| kv::MmItem { hash: "i".to_owned(), offset, length };
    let with_items = |mm_items| tokens(8).map(|p| kv::Prompt { mm_items, ..p });
    let weights = |tier_weights| Some(kv::ScoreOptions { tier_weights, ..Default::default() });
    let weight = |tier: i32, weight| kv::TierWeight { tier, weight };
    let many = vec![A.to_owned(); 3];
    let cases: Vec<(Code, &str, kv::ScoreRequest)> = vec![
        (Code::InvalidArgument, "model: empty", kv::ScoreRequest { model: String::new(), ..ask(tokens(8)) }),
        (Code::InvalidArgument, "prompt: missing", ask(None)),
        (Code::InvalidArgument, "prompt: missing", ask(Some(kv::Prompt::default()))),
        (
            Code::InvalidArgument,
            "token_ids_le: 3 bytes are no multiple of 4",
            ask(prompt(Key::TokenIdsLe(Bytes::from_static(b"abc")))),
        ),
        (Code::ResourceExhausted, "token_ids: 101 is over the limit of 100", ask(tokens(101))),
        (
            Code::ResourceExhausted,
            "hashes: 101 is over the limit of 100",
            ask(hashes(kv::HashKind::Engine, vec![1; 101])),
        ),
        (
            Code::ResourceExhausted,
            "candidates: 3 is over the limit of 2",
            kv::ScoreRequest { candidates: many, ..ask(tokens(8)) },
        ),
        (
            Code::ResourceExhausted,
            "request_id: 65 is over the limit of 64",
            kv::ScoreRequest { request_id: "x".repeat(65), ..ask(tokens(8)) },
        ),
        (
            Code::InvalidArgument,
            "block_size: 65537 is outside 1..65536",
            kv::ScoreRequest { block_size: 65537, ..ask(tokens(8)) },
        ),
        (Code::InvalidArgument, "mm_items: item 0 has length 0", ask(with_items(vec![item(3, 0)]))),
        (
            Code::InvalidArgument,
            "tier_weights: a weight is outside 0..1000000",
            kv::ScoreRequest { options: weights(vec![weight(1, f64::NAN)]), ..ask(tokens(8)) },
        ),
        (
            Code::InvalidArgument,
            "tier_weights: 77 is no tier that has a weight",
            kv::ScoreRequest { options: weights(vec![weight(77, 1.0)]), ..ask(tokens(8)) },
        ),
        (
            Code::NotFound,
            "score_token: unknown or expired, send the prompt again",
            ask(prompt(Key::ScoreToken("x".to_owned()))),
        ),
    ];
    for (code, message, request) in cases {
        let refused = kvd.index().score(request).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (code, message));
    }
}

#[tokio::test]
async fn a_conversation_goes_on_with_its_new_tokens_alone() {
    let kvd = Kvd::start().await;
    let holder = kvd.register(A, 0);
    kvd.store(holder, 5, Tier::Gpu);
    let options = Some(kv::ScoreOptions { want_score_token: true, ..Default::default() });
    let first = kv::ScoreRequest { options: options.clone(), ..ask(tokens(10)) };
    let first = kvd.index().score(first).await.unwrap().into_inner();
    assert_eq!(short(&first), [(A, 2, 8)]);

    // Its last block was not whole; with what follows it is.
    let more = |continues: &str, ids: std::ops::RangeInclusive<u32>| {
        let key = Some(Key::Tokens(kv::TokenIds { ids: ids.collect() }));
        Some(kv::Prompt { key, continues: continues.to_owned(), ..kv::Prompt::default() })
    };
    let second = kv::ScoreRequest { options, ..ask(more(&first.score_token, 11..=17)) };
    let second = kvd.index().score(second).await.unwrap().into_inner();
    assert_eq!((short(&second), second.total_blocks), (vec![(A, 4, 16)], 4));
    let third = ask(more(&second.score_token, 18..=21));
    assert_eq!(short(&kvd.index().score(third).await.unwrap().into_inner()), [(A, 5, 20)]);

    let cases = [
        ("score_token: unknown or expired, send the prompt again", more("ff", 11..=17)),
        (
            "continues: that prompt was given in another form",
            Some(kv::Prompt {
                continues: first.score_token.clone(),
                ..hashes(kv::HashKind::Engine, vec![1]).unwrap_or_default()
            }),
        ),
        (
            "cache_salt: differs from that of the prompt that is continued",
            more(&first.score_token, 11..=17).map(|p| kv::Prompt { cache_salt: "s".to_owned(), ..p }),
        ),
        (
            "continues: a score_token already is a whole prompt",
            prompt(Key::ScoreToken(first.score_token.clone()))
                .map(|p| kv::Prompt { continues: first.score_token.clone(), ..p }),
        ),
    ];
    for (message, prompt) in cases {
        assert_eq!(kvd.index().score(ask(prompt)).await.unwrap_err().message(), message);
    }
}

#[tokio::test]
async fn a_score_token_stands_for_its_prompt() {
    let kvd = Kvd::start().await;
    let a = kvd.register(A, 0);
    kvd.store(a, 2, Tier::Gpu);
    let options = Some(kv::ScoreOptions { want_score_token: true, ..Default::default() });
    let r = kvd.index().score(kv::ScoreRequest { options, ..ask(tokens(9)) }).await.unwrap().into_inner();
    let again = kvd.index().score(ask(prompt(Key::ScoreToken(r.score_token)))).await.unwrap().into_inner();
    assert_eq!(short(&again), [(A, 2, 8)]);
    assert_eq!(again.total_blocks, 2);
    assert_eq!(again.score_token, "");
}

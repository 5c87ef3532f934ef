//! A client that already has llm-d's request keys asks by them.

use kvindex::{HolderSpec, Index, IndexConfig, Prompt, Query};
use kvproto::event::{BatchBuilder, StoredFields};
use kvproto::hash::llmd::{Algo, Llmd, RequestKey};
use kvproto::{EngineHash, ExtraKey, Tier};

fn cached(index: &Index, keys: &[RequestKey]) -> Vec<u32> {
    index.query(&Query::new("t", "m", Prompt::Llmd(keys))).scores.iter().map(|s| s.cached).collect()
}

fn keys(llmd: &Llmd, root: &str, tokens: &[u32], extras: &[&[&str]]) -> Vec<RequestKey> {
    let mut parent = llmd.root(root);
    tokens
        .chunks_exact(4)
        .enumerate()
        .map(|(i, block)| {
            parent = llmd.next(parent, block, extras.get(i).copied().unwrap_or(&[]));
            parent
        })
        .collect()
}

#[test]
fn llmd_keys_find_what_token_ids_find_with_both_algorithms() {
    for algo in [Algo::CborFnv, Algo::Xxh64] {
        let llmd = Llmd::new(algo, "42");
        let index = Index::new(IndexConfig { llmd: Some(llmd), ..IndexConfig::default() });
        let pods = ["a", "b"].map(|p| index.attach(HolderSpec::new("t", "m", p, 0)));
        let tokens: Vec<u32> = (100..112).collect();
        let fields = StoredFields { block_size: 4, ..StoredFields::default() };
        for (pod, blocks) in [(pods[0], 3usize), (pods[1], 2)] {
            let mut b = BatchBuilder::new(0.0, None);
            let hashes: Vec<_> = (0..blocks as u64).map(|h| EngineHash(h + 1)).collect();
            b.stored(fields, &hashes, &tokens[..4 * blocks], &[]);
            index.apply(pod, &b.build());
        }
        assert_eq!(cached(&index, &keys(&llmd, "m", &tokens, &[])), [3, 2], "{algo:?}");
        assert_eq!(cached(&index, &keys(&llmd, "other", &tokens, &[])), [0, 0], "{algo:?}");

        // Adapters take the model's place in the root; images stand in their blocks.
        let mut b = BatchBuilder::new(1.0, None);
        let image = [vec![ExtraKey::Item { identifier: "img-a", offset: 1 }], vec![]];
        let adapter = StoredFields { lora: Some("ad"), ..fields };
        b.stored(adapter, &[EngineHash(21), EngineHash(22)], &tokens[..8], &image);
        index.apply(pods[0], &b.build());
        assert_eq!(cached(&index, &keys(&llmd, "ad", &tokens[..8], &[&["img-a"]])), [2, 0], "{algo:?}");
        assert_eq!(cached(&index, &keys(&llmd, "ad", &tokens[..8], &[])), [0, 0], "{algo:?}");

        // What is dropped is not found any more.
        let mut b = BatchBuilder::new(2.0, None);
        b.removed(&[EngineHash(1)], Tier::Gpu, 0);
        index.apply(pods[0], &b.build());
        index.apply(pods[1], &{
            let mut b = BatchBuilder::new(2.0, None);
            b.removed(&[EngineHash(1)], Tier::Gpu, 0);
            b.build()
        });
        assert_eq!(cached(&index, &keys(&llmd, "m", &tokens, &[])), [0, 0], "{algo:?}");
    }
}

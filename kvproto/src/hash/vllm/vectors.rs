//! The engine's own numbers: vectors computed with vLLM's functions.

use serde_json::Value;

use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn tokens_of(v: &Value) -> Vec<u64> {
    v["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap()).collect()
}

/// One block's extra keys: in the tagged form, or as versions before tagging wrote them.
fn extras_of(keys: &Value) -> (Vec<Extra<'_>>, ExtraForm) {
    let mut form = ExtraForm::Tagged;
    let mut extras = vec![];
    for key in keys.as_array().into_iter().flatten() {
        let parts: Vec<&Value> = key.as_array().into_iter().flatten().collect();
        let text = |i: usize| parts[i].as_str().unwrap();
        extras.push(match parts.first().and_then(|p| p.as_str()) {
            Some("lora") => Extra::Lora { name: text(1), path: text(2) },
            Some("mm") => Extra::Mm { identifier: text(1), offset: parts[2].as_i64().unwrap() },
            Some("cache_salt") => Extra::CacheSalt(text(1)),
            Some(identifier) => {
                form = ExtraForm::Untagged;
                Extra::Mm { identifier, offset: parts[1].as_i64().unwrap() }
            }
            None => {
                form = ExtraForm::Untagged;
                match key.as_str().unwrap() {
                    name @ "adapter-a" => Extra::Lora { name, path: "not part of it" },
                    salt => Extra::CacheSalt(salt),
                }
            }
        });
    }
    (extras, form)
}

#[test]
fn every_vector_of_the_engine_is_reproduced() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/captures/hash-vectors.json");
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let vectors = file["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 92);
    for v in vectors {
        let what = format!("{} {} {}", v["algo"], v["seed"], v["case"]);
        let algo = Algo::from_name(v["algo"].as_str().unwrap()).unwrap();
        let block_size = v["block_size"].as_u64().unwrap() as usize;
        let mut chain = Chain::new(algo, v["seed"].as_str()).unwrap();
        assert_eq!(hex(chain.none_hash().as_bytes()), v["none_hash"].as_str().unwrap(), "{what}");
        let mut parent = None;
        for (i, block) in tokens_of(v).chunks_exact(block_size).enumerate() {
            let (extras, form) = extras_of(&v["extra_keys"][i]);
            chain = chain.with_form(form);
            let digest = chain.block(parent, block, &extras);
            if let (0, Some(input)) = (i, v["first_input"].as_str()) {
                assert_eq!(hex(chain.last_input()), input, "{what}");
            }
            assert_eq!(hex(digest.as_bytes()), v["hash"][i].as_str().unwrap(), "{what}, block {i}");
            assert_eq!(digest.to_engine_hash().0, v["u64"][i].as_u64().unwrap(), "{what}, block {i}");
            parent = Some(digest);
        }
    }
}

#[test]
fn a_prompt_gets_the_hashes_of_its_whole_blocks_and_the_salt_on_the_first() {
    let mut out = vec![];
    let tokens: Vec<u32> = (100..140).collect();
    prompt_hashes(Algo::Sha256, None, &tokens, 16, Some("tenant-a"), &mut out).unwrap();
    assert_eq!(out, [10519602348600196463, 11679257776919694545].map(EngineHash));
}

#[test]
fn an_xxhash_chain_without_a_seed_is_refused() {
    for algo in [Algo::Xxhash, Algo::XxhashCbor] {
        let mut out = vec![EngineHash(1)];
        let err = prompt_hashes(algo, None, &[1], 1, None, &mut out);
        assert_eq!(err, Err(ChainError::RandomSeed { algo }));
        assert!(out.is_empty());
    }
}

#[test]
fn an_older_engine_names_an_item_without_its_place() {
    let mut bare = Chain::new(Algo::Sha256, Some("0")).unwrap().with_form(ExtraForm::Bare);
    let item = [Extra::Mm { identifier: "img-aaaa", offset: 4 }];
    let salt = [Extra::CacheSalt("img-aaaa")];
    assert_eq!(bare.block(None, &[1u32, 2], &item), bare.block(None, &[1u32, 2], &salt));
}

/// Pickle starts a new frame every 64 KiB.
#[test]
fn a_block_beyond_one_pickle_frame_is_reproduced() {
    let tokens: Vec<u32> = (0..65536).map(|i| i * 3).collect();
    let digest = Chain::new(Algo::Sha256, Some("0")).unwrap().block(None, &tokens, &[]);
    assert_eq!(hex(digest.as_bytes()), "00ffe50a5aec27120e00297cb93d01650c943894cce172c922ee1be39c2abc1f");
}

#[test]
fn names_go_both_ways() {
    assert!(Algo::ALL.iter().all(|&a| Algo::from_name(a.name()) == Some(a)));
    assert_eq!(Algo::from_name("sha512"), None);
}

//! Random events against the reference model, as `kvindex/tests/random.rs` has them for the embedded index: after
//! each round every answer must be equal. Writers are replaced in the middle, and so is everything they know.

#[path = "../../tests/support/agree.rs"]
mod agree;
#[path = "../../tests/support/engines.rs"]
mod engines;
#[path = "support/servers.rs"]
mod servers;

use agree::Seen;
use engines::{Engine, FLAVOURS, Rng};
use kvindex::reference::Reference;
use kvindex::remote::changes;
use kvindex::{HolderId, HolderSpec, Prompt, Query};
use kvindex_valkey::{Claim, Cursor, Health, Shared, Standing, Writer};
use kvproto::event::BatchBuilder;
use kvproto::hash::canonical::MmItem;
use servers::Servers;

const HEALTH: Health = Health { live: true, complete: true };

struct Pod {
    id: HolderId,
    writer: Box<Writer>,
    engine: Engine,
    reference: Reference,
}

async fn claim(shared: &Shared, id: HolderId, owner: &str) -> Box<Writer> {
    match shared.claim(id, owner, None).await.expect("servers that answer") {
        Claim::Ours(writer) => writer,
        Claim::Held { by } => panic!("held by {by}"),
    }
}

async fn run(shared: &Shared, seed: u64, batches: u64, seen: &mut Seen) {
    let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let model = format!("m{seed}");
    let mut fleet = Vec::new();
    for mode in 0..5 {
        let mut spec = HolderSpec::new("t", &model, &format!("pod{mode}"), 0);
        spec.attention_chunk = Some(6);
        let block = if mode == 4 { 4 } else { 2 };
        let engine = Engine { mode, block, hash_seed: seed + mode, stored: vec![], adapters: 1 };
        let id = shared.attach(spec.clone()).expect("an engine");
        let writer = claim(shared, id, "a").await;
        fleet.push(Pod { id, writer, engine, reference: Reference::new(spec) });
    }
    for n in 0..batches {
        for pod in &mut fleet {
            let mut b = BatchBuilder::new(n as f64, None);
            for _ in 0..=rng.below(3) {
                pod.engine.event(&mut rng, &mut b);
            }
            let batch = b.build();
            pod.reference.apply(&batch);
            let told = changes(pod.writer.spec(), &batch);
            let cursor = Cursor { seq: Some(n), ts: batch.ts, note: vec![] };
            // The same batch twice would be told apart by its number: only what follows the cursor is applied.
            pod.writer.apply(&told, cursor, HEALTH).await.expect("servers that answer");
            if rng.one_in(20) {
                let old = std::mem::replace(&mut pod.writer, claim_after(shared, pod.id, n).await);
                old.release().await.expect_err("its generation is over");
            }
        }
        for _ in 0..4 {
            let f = FLAVOURS[rng.below(5) as usize];
            let tokens: Vec<u32> = (0..rng.below(18)).map(|_| u32::from(rng.one_in(9))).collect();
            let items: Vec<MmItem<'_>> = f.item.into_iter().collect();
            let prompt = Prompt::Tokens { tokens: &tokens, lora: f.lora, cache_salt: f.salt, items: &items };
            let mut query = Query::new("t", &model, prompt);
            query.block_size = [None, Some(2), Some(4), Some(3), Some(1)][rng.below(5) as usize];
            let asked = shared.query(&query).await.expect("servers that answer");
            for pod in &fleet {
                let at = asked.answer.scores.iter().position(|s| s.holder == pod.id).expect("a candidate");
                let got = &asked.answer.scores[at];
                let want = pod.reference.expect(&query);
                let at_what = format!("seed {seed}, batch {n}, mode {}, {query:?}", pod.engine.mode);
                assert_eq!(asked.vouched[at].standing, Standing::Live, "{at_what}");
                assert_eq!(asked.vouched[at].cursor.seq, Some(n), "{at_what}");
                seen.compare(got, &want, &at_what);
            }
        }
    }
    for pod in fleet {
        pod.writer.retire().await.expect("servers that answer");
        shared.detach(pod.id);
    }
}

/// Another writer under the same name: all it knows, it has from the servers.
async fn claim_after(shared: &Shared, id: HolderId, n: u64) -> Box<Writer> {
    let mut writer = claim(shared, id, "a").await;
    assert_eq!(writer.cursor().seq, Some(n), "it goes on where the last one ended");
    writer.renew(HEALTH).await.expect("servers that answer");
    writer
}

#[tokio::test]
async fn every_answer_equals_the_reference_after_random_events() {
    let Some(servers) = Servers::start(3, 0).await else { return };
    let shared = Shared::connect(servers.config("random")).await.expect("servers that answer");
    let mut seen = Seen::default();
    for seed in 1..=12 {
        run(&shared, seed, 40, &mut seen).await;
    }
    seen.assert_more_than(40);
    let left: Vec<String> = servers.ask(0, redis::cmd("KEYS").arg("*names*")).await.expect("keys");
    assert_eq!(left, Vec::<String>::new(), "nothing is left of publishers that were retired");
}

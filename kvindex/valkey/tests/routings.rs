//! Announced routings: what is told to one of those who share the servers counts for all, for as long as it was told,
//! and no longer, whoever dies meanwhile.

#[path = "support/servers.rs"]
mod servers;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kvindex::remote::changes;
use kvindex::{HolderId, HolderSpec, Index, IndexConfig, Prompt, Query};
use kvindex_valkey::{Claim, Config, Cursor, Health, Shared, Standing, Writer};
use kvproto::event::{BatchBuilder, StoredFields};
use kvproto::{EngineHash, SeqHash};
use servers::Servers;

const HEALTH: Health = Health { live: true, complete: true };
const BLOCK: usize = 4;
const LONG: Duration = Duration::from_secs(3600);
const PODS: [&str; 3] = ["p", "q", "r"];

/// Prompts that begin alike: of `blocks` blocks, the last `own` of which no other variant has.
fn prompt(blocks: usize, own: usize, variant: u32) -> Vec<u32> {
    let token = |i: usize| if i / BLOCK < blocks - own { i as u32 } else { 1_000 * variant + i as u32 };
    (0..blocks * BLOCK).map(token).collect()
}

/// Some who share the servers, and an index of their own that is told the same.
struct Rig {
    replicas: Vec<Shared>,
    index: Index,
    ids: Vec<HolderId>,
    /// Each has stored two blocks, so that its block size is known.
    _writers: Vec<Writer>,
}

impl Rig {
    async fn start(config: &Config, replicas: usize) -> Rig {
        let index = Index::new(IndexConfig { max_speculative: config.max_speculative, ..Default::default() });
        let mut rig = Rig { replicas: Vec::new(), index, ids: Vec::new(), _writers: Vec::new() };
        for pod in PODS {
            rig.ids.push(rig.index.attach(HolderSpec::new("t", "m", pod, 0)));
        }
        for _ in 0..replicas {
            rig.replicas.push(rig.another(config).await);
        }
        for (pod, id) in PODS.into_iter().zip(&rig.ids) {
            let mut b = BatchBuilder::new(0.0, None);
            let fields = StoredFields { block_size: BLOCK as u32, ..StoredFields::default() };
            b.stored(fields, &[EngineHash(1), EngineHash(2)], &prompt(2, 0, 0), &[]);
            let batch = b.build();
            rig.index.apply(*id, &batch);
            let Claim::Ours(mut writer) = rig.replicas[0].claim(*id, "a", None).await.expect("servers")
            else {
                panic!("nobody else writes")
            };
            let told = changes(&HolderSpec::new("t", "m", pod, 0), &batch);
            let cursor = Cursor { seq: Some(0), ..Cursor::default() };
            writer.apply(&told, cursor, HEALTH).await.expect("servers");
            rig._writers.push(*writer);
        }
        rig
    }

    /// One more who shares the servers.
    async fn another(&self, config: &Config) -> Shared {
        let shared = Shared::connect(config.clone()).await.expect("servers that answer");
        for (pod, id) in PODS.into_iter().zip(&self.ids) {
            shared.attach_as(*id, HolderSpec::new("t", "m", pod, 0)).expect("an engine");
        }
        shared
    }

    fn to_come(&self, tokens: &[u32], pods: &[usize]) -> Vec<(HolderId, Vec<SeqHash>)> {
        let to: Vec<HolderId> = pods.iter().map(|p| self.ids[*p]).collect();
        self.index.to_come(&Query::new("t", "m", Prompt::tokens(tokens)), &to)
    }

    async fn announce(
        &self,
        at: usize,
        request: &str,
        tokens: &[u32],
        pods: &[usize],
        ttl: Duration,
    ) -> usize {
        let blocks = self.to_come(tokens, pods);
        self.replicas[at].announce(request, &blocks, ttl).await.expect("servers that answer")
    }

    /// What a replica says of each pod, speculative blocks too.
    async fn ask(&self, at: usize, tokens: &[u32]) -> Vec<u32> {
        speculative(&self.replicas[at], tokens).await.expect("servers that answer")
    }
}

async fn speculative(shared: &Shared, tokens: &[u32]) -> Option<Vec<u32>> {
    let mut query = Query::new("t", "m", Prompt::tokens(tokens));
    query.speculative = true;
    let asked = shared.query(&query).await.ok()?;
    Some(asked.answer.scores.iter().map(|s| s.speculative).collect())
}

#[tokio::test]
async fn what_is_announced_to_one_counts_for_all_until_its_time_is_over_by_the_servers() {
    let Some(servers) = Servers::start(3, 0).await else { return };
    let config = servers.config("ttl");
    let rig = Rig::start(&config, 2).await;
    let tokens = prompt(5, 0, 0);
    assert_eq!(rig.ask(1, &tokens).await, [2, 2, 2], "what they hold");
    let began = Instant::now();
    let short = Duration::from_millis(1500);
    assert_eq!(rig.announce(0, "r1", &tokens, &[0, 2], short).await, 10);
    assert_eq!(rig.announce(1, "r2", &prompt(4, 1, 7), &[1], LONG).await, 4);
    for at in 0..2 {
        assert_eq!(rig.ask(at, &tokens).await, [5, 3, 5], "r2's last block is another");
    }
    // One that begins later learns it from the servers, and how much of its time is left.
    tokio::time::sleep(Duration::from_millis(900).saturating_sub(began.elapsed())).await;
    let third = rig.another(&config).await;
    let mut answers = vec![];
    while began.elapsed() < short * 2 {
        answers.push((began.elapsed(), speculative(&third, &tokens).await.expect("an answer")));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(answers[0].1, [5, 3, 5]);
    let over = answers.iter().find(|(_, a)| a == &[2, 3, 2]).expect("it ends").0;
    let spread = short - Duration::from_millis(5)..short + Duration::from_millis(800);
    assert!(spread.contains(&over), "not before its time, and not its whole time again: {over:?}");
    assert_eq!(rig.ask(0, &tokens).await, [2, 3, 2]);
    let at = servers.owner_of("{kvd:ttl:routings}:news").await;
    let keys: Vec<String> = servers.ask(at, redis::cmd("KEYS").arg("*:routing:*")).await.expect("keys");
    assert_eq!(keys.len(), 1, "what is over takes no memory on the servers");
    assert_eq!(rig.replicas[0].speculative(), 4, "nor here");
}

#[tokio::test]
async fn whichever_replica_is_told_forgets_or_replaces_for_all() {
    let Some(servers) = Servers::start(1, 0).await else { return };
    let rig = Rig::start(&servers.config("forget"), 3).await;
    let tokens = prompt(6, 0, 0);
    rig.announce(0, "r", &tokens, &[0], LONG).await;
    assert_eq!(rig.ask(1, &tokens).await, [6, 2, 2]);
    rig.announce(1, "r", &prompt(4, 0, 0), &[1], LONG).await;
    for at in 0..3 {
        assert_eq!(rig.ask(at, &tokens).await, [2, 4, 2], "a retry is not two requests");
    }
    assert!(rig.replicas[2].forget("r").await.expect("servers that answer"));
    assert!(!rig.replicas[0].forget("r").await.expect("servers that answer"), "there is nothing any more");
    for at in 0..3 {
        assert_eq!(rig.ask(at, &tokens).await, [2, 2, 2]);
    }
}

#[tokio::test]
async fn routings_announce_no_more_than_the_limit() {
    let Some(servers) = Servers::start(1, 0).await else { return };
    let config = Config { max_speculative: 10, ..servers.config("limit") };
    let rig = Rig::start(&config, 2).await;
    let tokens = prompt(6, 0, 0);
    assert_eq!(rig.announce(0, "a", &tokens, &[0], LONG).await, 6);
    rig.ask(1, &tokens).await;
    assert_eq!(rig.announce(1, "b", &tokens, &[1], LONG).await, 0);
    assert_eq!(rig.ask(0, &tokens).await, [6, 2, 2]);
    rig.replicas[1].forget("a").await.expect("servers that answer");
    rig.ask(1, &tokens).await;
    assert_eq!(rig.announce(1, "b", &tokens, &[1], LONG).await, 6, "what is forgotten makes room");
    assert_eq!(rig.ask(0, &tokens).await, [2, 6, 2]);
}

/// Several replicas are told in turns; each answers as an index of one's own that was told all of it.
#[tokio::test]
async fn random_announcements_count_as_in_an_index_of_ones_own() {
    let Some(servers) = Servers::start(3, 0).await else { return };
    let config = servers.config("random");
    let mut rig = Rig::start(&config, 3).await;
    let mut x = 77u32;
    let mut below = |n: u32| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((x >> 16) % n) as usize
    };
    let mut more = [0; 3];
    for step in 0..400 {
        let (at, request) = (below(3), format!("r{}", below(12)));
        let blocks = 1 + below(9);
        let tokens = prompt(blocks, below(3).min(blocks), below(3) as u32);
        match below(8) {
            0 | 1 => {
                let known = rig.replicas[at].forget(&request).await.expect("servers that answer");
                assert_eq!(known, rig.index.forget(&request), "step {step}");
            }
            2..=5 => {
                let pods = [vec![0], vec![1], vec![2], vec![0, 2]][below(4)].clone();
                let to_come = rig.to_come(&tokens, &pods);
                let noted = rig.replicas[at].announce(&request, &to_come, LONG).await.expect("servers");
                assert_eq!(noted, rig.index.announce_blocks(&request, to_come, u64::MAX), "step {step}");
            }
            6 if below(12) == 0 => rig.replicas[at] = rig.another(&config).await,
            _ => {}
        }
        let asked = prompt(9, below(3), below(3) as u32);
        let mut query = Query::new("t", "m", Prompt::tokens(&asked));
        query.speculative = true;
        let want: Vec<u32> = rig.index.query(&query).scores.iter().map(|s| s.speculative).collect();
        let at = below(3);
        assert_eq!(rig.ask(at, &asked).await, want, "step {step}, replica {at}");
        want.iter().zip(&mut more).for_each(|(n, more)| *more += usize::from(*n > 2));
    }
    assert!(more.iter().all(|n| *n > 50), "announcements mattered: {more:?}");
}

/// Waits until a node's replica has heard all that was written.
async fn replicated(servers: &Servers, at: usize) {
    let (began, what) = (Instant::now(), redis::cmd("INFO").arg("replication").take());
    loop {
        let info: String = servers.ask(at, &what).await.expect("a node that lives");
        let written = info.lines().find_map(|l| l.strip_prefix("master_repl_offset:")).expect("an offset");
        if info.contains(&format!("offset={},lag", written.trim())) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{info}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_server_that_dies_takes_no_answer_with_it_and_what_is_announced_after_it_counts_for_all() {
    let Some(mut servers) = Servers::start(3, 1).await else { return };
    let config = Config { timeout: Duration::from_millis(500), ..servers.config("dies") };
    let rig = Rig::start(&config, 2).await;
    let tokens = prompt(6, 0, 0);
    rig.announce(0, "before", &tokens, &[0], LONG).await;
    assert_eq!(rig.ask(1, &tokens).await, [6, 2, 2]);
    let died = servers.owner_of("{kvd:dies:routings}:news").await;
    // What publishers' writers wrote is on the same nodes, and losing that is another test's subject.
    replicated(&servers, died).await;
    servers.kill(died);

    // Until the failover nobody hears of it; what is told to one counts there.
    let blocks = rig.to_come(&tokens, &[1]);
    let told = rig.replicas[0].announce("meanwhile", &blocks, LONG).await;
    assert!(told.is_err(), "{told:?}");
    servers.healed(died).await;
    let mut announced = HashMap::new();
    let began = Instant::now();
    for n in 0.. {
        let request = format!("after {n}");
        match rig.replicas[1].announce(&request, &rig.to_come(&tokens, &[2]), LONG).await {
            Ok(noted) => announced.insert(request, noted),
            Err(e) if began.elapsed() > Duration::from_secs(20) => panic!("{e}"),
            Err(_) => continue,
        };
        break;
    }
    assert_eq!(announced.into_values().collect::<Vec<_>>(), [6]);
    // It has not asked since: who has which slots it may still have to find out, for each publisher. What it was told
    // itself while nobody answered counts, too.
    let heard = loop {
        let heard = speculative(&rig.replicas[0], &tokens).await;
        if heard.as_deref() == Some(&[6, 6, 6]) || began.elapsed() > Duration::from_secs(20) {
            break heard;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(heard.as_deref(), Some(&[6, 6, 6][..]));
    let mut query = Query::new("t", "m", Prompt::tokens(&tokens));
    query.speculative = true;
    let asked = rig.replicas[0].query(&query).await.expect("an answer");
    let dead = |s: &Standing| matches!(s, Standing::Unreachable);
    assert!(!asked.vouched.iter().any(|v| dead(&v.standing)), "{:?}", asked.vouched);
}

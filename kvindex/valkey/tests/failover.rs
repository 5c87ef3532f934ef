//! Takeovers, and nodes that die: what is said meanwhile is right or says that it may not be; afterwards it is exact.

#[path = "support/servers.rs"]
mod servers;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvindex::remote::changes;
use kvindex::{HolderId, HolderSpec, Prompt, Query};
use kvindex_valkey::{Claim, Config, Cursor, Health, Keys, Shared, Standing, WriteError, Writer};
use kvproto::event::{Batch, BatchBuilder, StoredFields};
use kvproto::{EngineHash, Tier};
use servers::Servers;

const HEALTH: Health = Health { live: true, complete: true };
const BLOCK: usize = 4;

fn tokens(blocks: usize) -> Vec<u32> {
    (0..(blocks * BLOCK) as u32).collect()
}

/// Stores block `n` of one sequence.
fn store(n: usize) -> Batch<'static> {
    let parent = n.checked_sub(1).map(|p| EngineHash(p as u64 + 100));
    let fields = StoredFields { block_size: BLOCK as u32, parent, ..StoredFields::default() };
    let mut b = BatchBuilder::new(n as f64, None);
    b.stored(fields, &[EngineHash(n as u64 + 100)], &tokens(n + 1)[n * BLOCK..], &[]);
    b.build()
}

/// A publisher whose batch `n` stores block `n`.
struct Pod {
    id: HolderId,
    spec: HolderSpec,
    writer: Option<Box<Writer>>,
    known: Option<Vec<u8>>,
}

impl Pod {
    fn attach(shared: &Shared, name: &str) -> Pod {
        let spec = HolderSpec::new("t", "m", name, 0);
        let id = shared.attach(spec.clone()).expect("an engine");
        Pod { id, spec, writer: None, known: None }
    }

    /// Writes batch `n`, or says why it cannot.
    async fn write(&mut self, n: usize) -> Result<(), WriteError> {
        let writer = self.writer.as_mut().ok_or(WriteError::Lost)?;
        let cursor = Cursor { seq: Some(n as u64), ts: n as f64, note: vec![] };
        writer.apply(&changes(&self.spec, &store(n)), cursor, HEALTH).await.map(|_| ())
    }

    /// Claims it again as a process does that has its batches from 0 on, and writes what is missing up to `n`.
    async fn recover(&mut self, shared: &Shared, n: usize) -> Result<(), WriteError> {
        if let Some(old) = self.writer.take() {
            self.known = old.last().map(<[u8]>::to_vec);
        }
        let Claim::Ours(writer) = shared.claim(self.id, "a", self.known.as_deref()).await? else {
            return Err(WriteError::Lost);
        };
        let from = writer.cursor().seq.map_or(0, |s| s as usize + 1);
        self.writer = Some(writer);
        for batch in from..=n {
            self.write(batch).await?;
        }
        self.writer.as_mut().expect("just put there").renew(HEALTH).await
    }
}

async fn fields(servers: &Servers, key: &str) -> usize {
    servers.ask(0, redis::cmd("HLEN").arg(key)).await.expect("an answer")
}

async fn score(shared: &Shared, id: HolderId, blocks: usize) -> (u32, Standing) {
    let tokens = tokens(blocks);
    let asked = shared.query(&Query::new("t", "m", Prompt::tokens(&tokens))).await;
    let Ok(asked) = asked else { return (0, Standing::Unreachable) };
    let at = asked.answer.scores.iter().position(|s| s.holder == id).expect("a candidate");
    (asked.answer.scores[at].cached, asked.vouched[at].standing)
}

/// Eight pods that have written their first batch.
async fn eight(shared: &Shared) -> Vec<Pod> {
    let mut pods: Vec<Pod> = (0..8).map(|n| Pod::attach(shared, &format!("pod{n}"))).collect();
    for pod in &mut pods {
        pod.recover(shared, 0).await.expect("servers that answer");
    }
    pods
}

/// What was said while the servers were in trouble.
#[derive(Default)]
struct Tally {
    exact: u32,
    degraded: u32,
    failed: u32,
}

impl Tally {
    /// Writes batch `n` of a pod, or recovers it, and asks what it holds: that is right, or may not be by its own word.
    async fn write_and_ask(&mut self, shared: &Shared, pod: &mut Pod, n: usize) {
        let written = match pod.write(n).await {
            Ok(()) => true,
            Err(_) => {
                self.failed += 1;
                pod.recover(shared, n).await.is_ok()
            }
        };
        match score(shared, pod.id, 100.max(n + 2)).await {
            (cached, Standing::Live) => {
                assert!(written, "batch {n} of {}: live, though not written", pod.spec.instance);
                assert_eq!(cached as usize, n + 1, "batch {n} of {}", pod.spec.instance);
                self.exact += 1;
            }
            // All that it may say is how things stand.
            _ => self.degraded += 1,
        }
    }
}

#[tokio::test]
async fn a_writer_that_was_thought_dead_changes_nothing() {
    let Some(servers) = Servers::start(1, 0).await else { return };
    let config = Config { lease: Duration::from_millis(300), ..servers.config("fence") };
    let (a, b) = (Shared::connect(config.clone()).await.unwrap(), Shared::connect(config).await.unwrap());
    let (mut old, mut new) = (Pod::attach(&a, "p"), Pod::attach(&b, "p"));
    old.recover(&a, 3).await.expect("nobody else writes");
    let held = b.claim(new.id, "b", None).await.expect("an answer");
    assert!(matches!(held, Claim::Held { by } if by == "a"), "while it lives nobody else may write");
    assert_eq!(score(&b, new.id, 9).await, (4, Standing::Live));

    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(score(&b, new.id, 9).await, (4, Standing::Unowned), "what is known, and that nobody writes");
    let Claim::Ours(writer) = b.claim(new.id, "b", None).await.expect("an answer") else {
        panic!("the lease ran out")
    };
    assert_eq!(writer.cursor().seq, Some(3), "it goes on where the other ended");
    new.writer = Some(writer);
    new.write(4).await.expect("it is the writer now");
    assert!(matches!(old.write(4).await, Err(WriteError::Lost)));
    assert_eq!(score(&a, old.id, 9).await, (5, Standing::Live), "both see the same");
    let prompts: [u32; 2] = [score(&b, new.id, 2).await.0, score(&b, new.id, 300).await.0];
    assert_eq!(prompts, [2, 5], "shorter and longer prompts too");
}

#[tokio::test]
async fn what_was_cleared_or_retired_never_counts_again() {
    let Some(servers) = Servers::start(1, 0).await else { return };
    let config =
        Config { lease: Duration::from_millis(900), ttl: Duration::from_secs(2), ..servers.config("clear") };
    let shared = Shared::connect(config.clone()).await.unwrap();
    let mut pod = Pod::attach(&shared, "p");
    pod.recover(&shared, 3).await.expect("nobody else writes");
    assert_eq!(score(&shared, pod.id, 4).await, (4, Standing::Live));
    pod.writer.as_mut().unwrap().clear().await.expect("an answer");
    assert_eq!(score(&shared, pod.id, 4).await, (0, Standing::Nothing));
    pod.write(3).await.expect("an answer");
    assert_eq!(score(&shared, pod.id, 4).await, (0, Standing::Live), "what stood before it is gone");

    // Whoever claims it after it was retired finds nothing.
    pod.writer.take().unwrap().retire().await.expect("an answer");
    let Claim::Ours(writer) = shared.claim(pod.id, "b", None).await.expect("an answer") else {
        panic!("free")
    };
    assert_eq!(writer.cursor(), &Cursor::default());
    drop(writer);

    // Nobody refreshes it any more: all of it goes by itself.
    let mut other = Pod::attach(&shared, "q");
    other.recover(&shared, 3).await.expect("nobody else writes");
    tokio::time::sleep(config.ttl * 2 + Duration::from_millis(300)).await;
    let left: Vec<String> = servers.ask(0, redis::cmd("KEYS").arg("*")).await.unwrap();
    assert_eq!(left, Vec::<String>::new());
    assert_eq!(score(&shared, other.id, 4).await.1, Standing::Nothing);
}

#[tokio::test]
async fn idle_names_go_and_a_publisher_over_its_limit_is_partial() {
    let Some(servers) = Servers::start(1, 0).await else { return };
    let config = Config { max_blocks: 5, ..servers.config("limit") };
    let shared = Shared::connect(config).await.unwrap();
    let mut pod = Pod::attach(&shared, "p");
    pod.recover(&shared, 7).await.expect("nobody else writes");
    let tokens = tokens(9);
    let asked = shared.query(&Query::new("t", "m", Prompt::tokens(&tokens))).await.unwrap();
    assert_eq!((asked.answer.scores[0].cached, asked.answer.scores[0].partial), (5, true));
    let keys = Keys::new("limit", &pod.spec);
    let generation: u64 = servers.ask(0, redis::cmd("GET").arg(keys.generation())).await.unwrap();
    let names = keys.names(generation);
    assert_eq!(fields(&servers, &names).await, 9, "8 names and where the stream stands");

    let config = Config { ttl: Duration::from_secs(1), ..servers.config("limit") };
    let shared = Shared::connect(config).await.unwrap();
    let mut pod = Pod::attach(&shared, "p");
    pod.recover(&shared, 7).await.expect("the same owner");
    let names = keys.names(generation + 1);
    let mut b = BatchBuilder::new(9.0, None);
    b.removed(&(0..8).map(|n| EngineHash(n + 100)).collect::<Vec<_>>(), Tier::Gpu, 0);
    let cursor = Cursor { seq: Some(8), ts: 9.0, note: vec![] };
    let writer = pod.writer.as_mut().unwrap();
    writer.apply(&changes(&pod.spec, &b.build()), cursor, HEALTH).await.unwrap();
    assert_eq!(fields(&servers, &names).await, 9, "a name is remembered for a while");
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        writer.renew(HEALTH).await.unwrap();
    }
    assert_eq!(fields(&servers, &names).await, 1, "and not for ever");
}

/// Writes on, with a node killed in the middle; what is asked meanwhile must be right or say that it may not be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_killed_in_the_middle_makes_no_answer_wrong() {
    let Some(mut servers) = Servers::start(3, 1).await else { return };
    let shared = Shared::connect(servers.config("failover")).await.unwrap();
    let mut pods = eight(&shared).await;
    let keys = Keys::new("failover", &pods[0].spec);
    let victim = servers.owner_of(&keys.lease()).await;
    let mut tally = Tally::default();
    let mut healed = None;
    for n in 1..90 {
        if n == 20 {
            servers.kill(victim);
        }
        for pod in &mut pods {
            tally.write_and_ask(&shared, pod, n).await;
        }
        if n == 40 {
            let began = Instant::now();
            servers.healed(victim).await;
            healed = Some(began.elapsed());
        }
    }
    let Tally { exact, degraded, failed } = tally;
    assert!(healed.is_some() && degraded > 0 && failed > 0, "the kill was felt: {degraded} {failed}");
    println!("{exact} exact, {degraded} degraded, {failed} failed writes");
    for pod in &mut pods {
        pod.recover(&shared, 89).await.expect("servers that answer again");
        assert_eq!(score(&shared, pod.id, 100).await, (90, Standing::Live), "{}", pod.spec.instance);
    }
    // The node that comes back is a replica of the one that took over, and nothing changes.
    servers.restart(victim);
    tokio::time::sleep(Duration::from_secs(1)).await;
    for pod in &mut pods {
        assert_eq!(score(&shared, pod.id, 100).await.0, 90, "{}", pod.spec.instance);
    }
}

/// Writes on while all that one node has moves to another, key by key: a cluster that is rebalanced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_move_make_no_answer_wrong() {
    let Some(servers) = Servers::start(3, 0).await else { return };
    let servers = Arc::new(servers);
    let shared = Shared::connect(servers.config("moving")).await.unwrap();
    let mut pods = eight(&shared).await;
    let keys = Keys::new("moving", &pods[0].spec);
    let from = servers.owner_of(&keys.lease()).await;
    let slots = servers.slots_in_use(from).await;
    let moving = {
        let servers = Arc::clone(&servers);
        tokio::spawn(async move {
            // There, back, and there again.
            let (mut moved, mut way) = (0, [from, (from + 1) % 3]);
            for _ in 0..3 {
                for slot in &slots {
                    moved += servers.move_slot(*slot, way[0], way[1], Duration::from_millis(15)).await;
                }
                way.reverse();
            }
            moved
        })
    };
    let (mut tally, mut n) = (Tally::default(), 0);
    while !moving.is_finished() || n < 20 {
        n += 1;
        for pod in &mut pods {
            tally.write_and_ask(&shared, pod, n).await;
        }
    }
    let moved = moving.await.expect("no panic");
    let Tally { exact, degraded, failed } = tally;
    println!("{moved} keys moved, {n} batches: {exact} exact, {degraded} degraded, {failed} failed writes");
    assert!(moved >= 12 && exact > degraded, "{moved} keys moved, {exact} exact, {degraded} degraded");
    for pod in &mut pods {
        pod.recover(&shared, n).await.expect("servers that answer");
        assert_eq!(
            score(&shared, pod.id, n + 2).await,
            (n as u32 + 1, Standing::Live),
            "{}",
            pod.spec.instance
        );
    }
}

/// A server that evicts takes one hash of the two.
#[tokio::test]
async fn what_a_server_evicted_is_missed() {
    let Some(servers) = Servers::start(1, 0).await else { return };
    let shared = Shared::connect(servers.config("evict")).await.unwrap();
    let mut pod = Pod::attach(&shared, "p");
    pod.recover(&shared, 3).await.expect("servers that answer");
    let keys: Vec<String> = servers.ask(0, redis::cmd("KEYS").arg("*:blocks:*")).await.unwrap();
    let evicted: usize = servers.ask(0, redis::cmd("DEL").arg(keys)).await.unwrap();
    assert_eq!((evicted, score(&shared, pod.id, 9).await), (1, (0, Standing::Unproven)));
    assert!(matches!(pod.write(4).await, Err(WriteError::RolledBack)));
    pod.recover(&shared, 4).await.expect("servers that answer");
    assert_eq!(score(&shared, pod.id, 9).await, (5, Standing::Live));
}

/// A server that lost everything, and one that is put back from before: neither is believed.
#[tokio::test]
async fn a_server_that_forgot_is_not_believed() {
    let Some(mut servers) = Servers::start(1, 0).await else { return };
    let shared = Shared::connect(servers.config("forgot")).await.unwrap();
    let mut pod = Pod::attach(&shared, "p");
    pod.recover(&shared, 3).await.expect("servers that answer");
    let _: String = servers.ask(0, &redis::cmd("SAVE")).await.unwrap();
    pod.write(4).await.expect("servers that answer");
    servers.kill(0);
    assert_eq!(score(&shared, pod.id, 9).await.1, Standing::Unreachable);
    servers.restart(0);
    let began = Instant::now();
    let said = loop {
        let (cached, standing) = score(&shared, pod.id, 9).await;
        if standing != Standing::Unreachable {
            break (cached, standing);
        }
        assert!(began.elapsed() < Duration::from_secs(10), "it never came back");
    };
    assert_eq!(said, (4, Standing::Unproven), "as of the file, and not vouched for");
    assert!(matches!(
        pod.write(5).await,
        Err(WriteError::RolledBack | WriteError::Lost | WriteError::Server(_))
    ));
    pod.recover(&shared, 5).await.expect("servers that answer");
    assert_eq!(score(&shared, pod.id, 9).await, (6, Standing::Live));
}

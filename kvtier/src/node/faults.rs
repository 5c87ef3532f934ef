//! No fault leads to a wrong byte, and hardly any to a lost block: a node whose process is killed, whose
//! files are damaged, swapped and brought back from another time, and whose file system is full.
//!
//! What is served is compared byte by byte: a block's content is told by its number.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read as _};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvproto::Event;
use kvproto::engine::{Engine, decode};

use super::tests::{config, key, load, store};
use super::*;
use crate::policy::random::Random;
use crate::store::{Read, StoreKey};

const BYTES: usize = 4096;
const FOLDER: &str = "KVTIER_TEST_NODE";
const SEED: &str = "KVTIER_TEST_SEED";
/// Blocks that a test knows.
const BLOCKS: u64 = 400;

/// Says on standard output what a node tells of its disk.
#[derive(Debug)]
struct Aloud;

impl Publish for Aloud {
    fn publish(&self, _stream: u32, _seq: u64, payload: &[u8]) {
        let batch = decode(Engine::Vllm, payload).unwrap();
        for event in batch.events() {
            let (word, hashes) = match event {
                Event::Stored(s) if s.tier == kvproto::Tier::Disk => ("came", s.hashes),
                Event::Removed(r) if r.tier == kvproto::Tier::Disk => ("left", r.hashes),
                Event::Stored(_) | Event::Removed(_) | Event::Cleared(_) => continue,
            };
            hashes.iter().for_each(|hash| println!("{word} {}", hash.0));
        }
    }
}

fn open(folder: &Path, publish: Arc<dyn Publish>) -> Node {
    let now = Arc::new(AtomicU64::new(1_000_000));
    let node = Node::open(config(folder, 24, 160, &now), publish).unwrap();
    node.recover().unwrap();
    node
}

/// Loads every block that there may be; how many were served.
fn load_all(node: &Node) -> usize {
    let pool = node.pool(BYTES).unwrap();
    let all: Vec<u64> = (0..BLOCKS).collect();
    load(node, pool, &all).iter().filter(|read| **read == Read::Hit).count()
}

#[test]
#[ignore = "the process that the next test kills"]
fn serves_and_commits_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let seed = std::env::var(SEED).ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let node = open(folder.as_ref(), Arc::new(Aloud));
    let (pool, owner) = (node.pool(BYTES).unwrap(), node.owner("llama", "").unwrap());
    println!("ready 0");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| node.work());
        }
        scope.spawn(|| {
            for round in 0u64.. {
                std::thread::sleep(Duration::from_millis(20));
                println!("begin {round}");
                node.commit().unwrap();
                println!("end {round}");
            }
        });
        let mut random = Random::new(seed);
        loop {
            let first = u64::from(random.below(50)) * 8;
            let chain: Vec<u64> = (first..first + 1 + u64::from(random.below(8))).collect();
            let keys: Vec<StoreKey> = chain.iter().map(|n| key(*n)).collect();
            node.touch(pool, &keys);
            load(&node, pool, &chain);
            store(&node, pool, owner, &chain);
            if random.below(12) == 0 {
                node.evict(pool, &keys);
            }
        }
    });
}

/// Runs a node in a process of its own and kills it. Returns what was committed 100 ms before that and
/// had not left since.
fn run_and_kill(folder: &Path, random: &mut Random) -> BTreeSet<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "node::faults::serves_and_commits_until_it_is_killed"])
        .env(FOLDER, folder)
        .env(SEED, (1 + random.below(1 << 30)).to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let lives = Duration::from_millis(150 + u64::from(random.below(350)));
    let (mut there, mut begun) = (BTreeSet::new(), BTreeSet::new());
    let mut committed: Vec<(Instant, BTreeSet<u64>)> = Vec::new();
    let mut left: Vec<(Instant, u64)> = Vec::new();
    let mut ready: Option<Instant> = None;
    let mut killed = None;
    for line in lines {
        let Some((word, number)) = line.rsplit_once(' ') else { continue };
        let Ok(number) = number.parse::<u64>() else { continue };
        let now = Instant::now();
        // The test runner has begun the first line already.
        match word.rsplit(' ').next().unwrap_or(word) {
            "came" => {
                there.insert(number);
            }
            "left" => {
                there.remove(&number);
                begun.remove(&number);
                left.push((now, number));
            }
            "begin" => begun = there.clone(),
            "end" => committed.push((now, begun.clone())),
            "ready" => ready = Some(now),
            _ => {}
        }
        if killed.is_none() && ready.is_some_and(|ready| ready.elapsed() > lives) {
            child.kill().unwrap();
            killed = Some(now);
        }
    }
    child.wait().unwrap();
    let killed = killed.expect("it runs until it is killed");
    let in_time =
        |(at, _): &&(Instant, BTreeSet<u64>)| killed.duration_since(*at) >= Duration::from_millis(100);
    let Some((at, mut safe)) = committed.iter().rev().find(in_time).cloned() else { return BTreeSet::new() };
    for (_, number) in left.iter().filter(|(when, _)| *when >= at) {
        safe.remove(number);
    }
    safe
}

#[test]
fn a_node_that_is_killed_serves_what_it_committed_and_tells_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random::new(5);
    let (mut committed, mut lost) = (0, 0);
    for round in 0..12 {
        let safe = run_and_kill(folder.path(), &mut random);
        let node = open(folder.path(), Arc::new(Unheard));
        let pool = node.pool(BYTES).unwrap();
        // The last batch is what this start had to set right.
        let told = node.streams()[0].next - 1;
        let listener = super::tests::Listener::default();
        let mut from = 0;
        while from < told {
            let batches = node.replay(0, from, (told - from).min(512) as usize).unwrap();
            from = batches.last().unwrap().0 + 1;
            batches.iter().for_each(|(_, payload)| listener.take(payload));
        }
        // A block that was being evicted may have had no time to say so but in the log.
        let in_log = listener.said(kvproto::Tier::Disk);
        let numbers: Vec<u64> = safe.into_iter().filter(|n| in_log.contains(n)).collect();
        let reads = load(&node, pool, &numbers);
        committed += numbers.len();
        lost += reads.iter().filter(|read| **read != Read::Hit).count();
        assert!(load_all(&node) > 0, "round {round}");
        // With that, the log and what is there agree.
        node.replay(0, told, 512).unwrap().iter().for_each(|(_, payload)| listener.take(payload));
        assert_eq!(listener.said(kvproto::Tier::Disk).len(), node.usage()[0].policy.disk as usize);
        assert_eq!(listener.said(kvproto::Tier::Cpu), [0; 0]);
    }
    assert!(committed > 300, "only {committed} blocks were committed in time");
    assert!(lost * 1000 <= committed, "{lost} of {committed} committed blocks are lost");
}

/// Where a store writes down what is in its slots.
const WRITTEN_DOWN: [&str; 2] = ["table", "journal"];

/// Does something to files at rest; how many faults that is.
fn harm(folder: &Path, old: &Path, random: &mut Random) -> u64 {
    let pool = folder.join(format!("pool-{BYTES}"));
    let segment = pool.join("segment-00000");
    let slots = fs::metadata(&segment).unwrap().len() / BYTES as u64;
    let file = OpenOptions::new().read(true).write(true).open(&segment).unwrap();
    let slot = |random: &mut Random| u64::from(random.below(slots as u32)) * BYTES as u64;
    let read = |at: u64| {
        let mut bytes = vec![0; BYTES];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    match random.below(6) {
        // Bits flip.
        0 | 1 => {
            for _ in 0..40 {
                let at = slot(random) + u64::from(random.below(BYTES as u32));
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                byte[0] ^= 1 << random.below(8);
                file.write_all_at(&byte, at).unwrap();
            }
            40
        }
        // Slots change places.
        2 => {
            for _ in 0..20 {
                let (a, b) = (slot(random), slot(random));
                let (was_a, was_b) = (read(a), read(b));
                file.write_all_at(&was_b, a).unwrap();
                file.write_all_at(&was_a, b).unwrap();
            }
            20
        }
        // Slots are as they were some time ago.
        3 => {
            let before = File::open(old.join("segment-00000")).unwrap();
            for _ in 0..40 {
                let at = slot(random);
                let mut bytes = vec![0; BYTES];
                before.read_exact_at(&mut bytes, at).unwrap();
                file.write_all_at(&bytes, at).unwrap();
            }
            40
        }
        // The table or the journal is as it was some time ago: every block that moved since is in a wrong place.
        4 => {
            let name = WRITTEN_DOWN[random.below(2) as usize];
            fs::copy(old.join(name), pool.join(name)).unwrap();
            1
        }
        // Half of a page of either is torn off.
        _ => {
            let name = WRITTEN_DOWN[random.below(2) as usize];
            let file = OpenOptions::new().write(true).open(pool.join(name)).unwrap();
            let last = file.metadata().unwrap().len() / 4096 - 1;
            // Not the headers of the table: without them the store starts empty.
            let first = if name == "table" { 2 } else { 0 };
            let page = last.min(first + u64::from(random.below(4)));
            file.write_all_at(&[0xff; 2048], page * 4096).unwrap();
            1
        }
    }
}

#[test]
fn no_damage_to_files_at_rest_leads_to_a_wrong_byte() {
    let (folder, old) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut random = Random::new(9);
    let (mut faults, mut served) = (0, 0);
    let rounds = std::env::var("KVTIER_ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(25);
    for round in 0..rounds {
        let node = open(folder.path(), Arc::new(Unheard));
        let (pool, owner) = (node.pool(BYTES).unwrap(), node.owner("llama", "").unwrap());
        for _ in 0..30 {
            let first = u64::from(random.below(50)) * 8;
            let chain: Vec<u64> = (first..first + 1 + u64::from(random.below(8))).collect();
            node.touch(pool, &chain.iter().map(|n| key(*n)).collect::<Vec<_>>());
            load(&node, pool, &chain);
            store(&node, pool, owner, &chain);
            if random.below(8) == 0 {
                node.evict(pool, &chain.iter().map(|n| key(*n)).collect::<Vec<_>>());
            }
            while node.step() {}
        }
        served += load_all(&node);
        node.drain();
        assert!(node.flush(pool));
        drop(node);
        if round % 5 == 0 {
            for name in ["segment-00000", "table", "journal"] {
                fs::copy(folder.path().join(format!("pool-{BYTES}")).join(name), old.path().join(name))
                    .unwrap();
            }
        }
        for _ in 0..14 {
            faults += harm(folder.path(), old.path(), &mut random);
        }
        let node = open(folder.path(), Arc::new(Unheard));
        served += load_all(&node);
        // What was found to be bad is known to be gone, and its slots work again.
        let pool = node.pool(BYTES).unwrap();
        node.scrub(pool, |_| true);
        assert_eq!(node.scrub(pool, |_| true).bad, 0);
        for _ in 0..160 {
            node.probe();
        }
    }
    assert!(faults > 5000 && served > 2000, "{faults} faults, {served} served");
}

/// A small file system of one's own, where the system lets one.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(mib: u64) -> Option<Small> {
        let folder = tempfile::tempdir().unwrap();
        let (image, at) = (folder.path().join("image"), folder.path().join("at"));
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        fs::create_dir(&at).unwrap();
        let run = |program: &str, args: &[&Path]| {
            let done = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
            done.is_ok_and(|status| status.success())
        };
        let made = run("mkfs.ext4", &[Path::new("-q"), &image])
            && run("mount", &[Path::new("-o"), Path::new("loop"), &image, &at]);
        made.then_some(Small(folder))
    }

    fn folder(&self) -> std::path::PathBuf {
        self.0.path().join("at")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.folder()).status();
    }
}

#[test]
fn a_full_file_system_stops_neither_reads_nor_the_node_and_is_recovered_from() {
    let Some(small) = Small::mount(64) else {
        eprintln!("not run: no file system can be mounted here");
        return;
    };
    let now = Arc::new(AtomicU64::new(0));
    // More than there is: refused, and nothing is left of it.
    let node = Node::open(config(&small.folder(), 0, 20_000, &now), Arc::new(Unheard)).unwrap();
    assert!(matches!(node.pool(BYTES), Err(PoolError::NoRoom { .. })));
    drop(node);
    fs::remove_dir_all(small.folder().join(format!("pool-{BYTES}"))).unwrap();

    let node = open(&small.folder(), Arc::new(Unheard));
    let (pool, owner) = (node.pool(BYTES).unwrap(), node.owner("llama", "").unwrap());
    let chain: Vec<u64> = (0..8).collect();
    store(&node, pool, owner, &chain);
    assert!(node.flush(pool));
    // The rest of the file system is taken by somebody else.
    let hog = small.folder().join("hog");
    let mut zeros = std::io::repeat(0).take(1 << 30);
    assert!(std::io::copy(&mut zeros, &mut File::create(&hog).unwrap()).is_err());
    let mut failed = 0;
    for first in (8..BLOCKS).step_by(8) {
        let chain: Vec<u64> = (first..first + 8).collect();
        store(&node, pool, owner, &chain);
        while node.step() {}
        failed += u64::from(node.commit().is_err());
        assert!(load(&node, pool, &chain).contains(&Read::Hit));
    }
    // Then it is given back.
    fs::remove_file(&hog).unwrap();
    assert!(node.probe() > 0);
    store(&node, pool, owner, &chain);
    node.drain();
    assert!(node.flush(pool), "nothing is written down after {failed} failures");
    let served = load_all(&node);
    drop(node);
    let node = open(&small.folder(), Arc::new(Unheard));
    assert!(load_all(&node) > 0 && served > 0);
    let told = node.streams()[0].clone();
    assert!(node.replay(0, told.first, 10).is_ok());
    assert_eq!(now.load(Ordering::Relaxed), 0);
}

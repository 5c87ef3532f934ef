//! No fault leads to a wrong byte: random use of a store on a disk that does its worst, and of one
//! whose process is killed. Every byte that is returned is compared.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::faulty::{Faults, FaultyDisk};
use super::medium::PAGE;
use super::tests::{LAYOUT, get, hits, key, open, payload, put};
use super::*;
use crate::policy::Owner;
use crate::policy::random::Random;

/// What a store may answer: of each block, the versions that were ever written to it.
struct Oracle {
    disk: FaultyDisk,
    store: Store,
    random: Random,
    /// By block: the version that is there, if none was lost.
    current: BTreeMap<u64, u64>,
    ever: BTreeSet<(u64, u64)>,
    /// Blocks that are committed and have not changed since.
    safe: BTreeMap<u64, u64>,
    versions: u64,
    served: u64,
    lost: u64,
}

impl Oracle {
    fn new(seed: u64) -> Oracle {
        let disk = FaultyDisk::new(seed);
        Oracle {
            store: open(&disk),
            disk,
            random: Random::new(seed + 99),
            current: BTreeMap::new(),
            ever: BTreeSet::new(),
            safe: BTreeMap::new(),
            versions: 0,
            served: 0,
            lost: 0,
        }
    }

    fn put(&mut self) {
        let first = u64::from(self.random.below(40));
        let numbers: Vec<u64> = (first..first + 1 + u64::from(self.random.below(4))).collect();
        self.versions += 1;
        let version = self.versions;
        let payloads: Vec<Vec<u8>> =
            numbers.iter().map(|n| payload(*n, version, LAYOUT.block_bytes)).collect();
        let block = |(n, payload): (&u64, _)| Put { key: key(*n), after: None, owner: Owner(0), payload };
        let blocks: Vec<Put<'_>> =
            numbers.iter().zip(payloads.iter().map(Vec::as_slice)).map(block).collect();
        let puts = self.store.stats().puts;
        let results = self.store.put(&blocks);
        let mut written = 0;
        for (n, result) in numbers.iter().zip(results) {
            self.ever.insert((*n, version));
            if result.is_ok() && !self.current.contains_key(n) {
                self.current.insert(*n, version);
                written += 1;
            }
        }
        assert_eq!(self.store.stats().puts - puts, written);
    }

    /// Every byte returned is compared. `strict`: with the version that is there, not any.
    fn get(&mut self, strict: bool, step: &str) {
        let first = u64::from(self.random.below(40));
        let count = 1 + self.random.below(5) as usize;
        let mut bytes = vec![0; count * LAYOUT.block_bytes];
        let mut blocks: Vec<Get<'_>> = (first..)
            .zip(bytes.chunks_mut(LAYOUT.block_bytes))
            .map(|(n, into)| Get { key: key(n), into })
            .collect();
        let reads = self.store.get(&mut blocks);
        for ((n, read), get) in (first..).zip(reads).zip(&blocks) {
            match read {
                Read::Hit if strict => {
                    let version = self.current.get(&n).unwrap_or_else(|| panic!("{step}: {n} is not there"));
                    assert!(
                        *get.into == payload(n, *version, LAYOUT.block_bytes),
                        "{step}: wrong bytes of {n}"
                    );
                    self.served += 1;
                }
                Read::Hit => {
                    let versions = self.ever.range((n, 0)..=(n, u64::MAX));
                    let known = |v: &(u64, u64)| *get.into == payload(n, v.1, LAYOUT.block_bytes);
                    assert!(versions.rev().any(known), "{step}: wrong bytes of {n}");
                    self.served += 1;
                }
                Read::Miss => assert!(!strict || !self.current.contains_key(&n), "{step}: {n} is not found"),
                Read::Lost => {
                    self.lost += 1;
                    self.current.remove(&n);
                    self.safe.remove(&n);
                }
                Read::Size => panic!("{step}: {n} has another size"),
            }
        }
    }

    fn remove(&mut self) {
        let n = u64::from(self.random.below(44));
        assert_eq!(self.store.remove(key(n)), self.current.remove(&n).is_some());
        self.safe.remove(&n);
    }

    fn commit(&mut self) {
        if self.store.commit().is_ok() {
            self.safe = self.current.clone();
        }
    }

    fn probe(&mut self) {
        let mut after = None;
        while let (_, Some(slot)) = self.store.probe(after) {
            after = Some(slot);
        }
    }

    fn step(&mut self, strict: bool, step: &str) {
        match self.random.below(20) {
            0..=6 => self.put(),
            7..=12 => self.get(strict, step),
            13..=15 => self.remove(),
            16 | 17 => self.commit(),
            _ => self.probe(),
        }
    }
}

#[test]
fn no_fault_of_a_running_disk_leads_to_a_wrong_byte() {
    let (mut injected, mut served, mut lost) = (0, 0, 0);
    for seed in 1..=8 {
        let mut oracle = Oracle::new(seed);
        let faults =
            Faults { write_fails: 30, full: 30, forgets: 40, read_fails: 30, read_flips: 50, sync_fails: 30 };
        for step in 0..900 {
            let bad = step % 100 < 70;
            oracle.disk.set(if bad { faults } else { Faults::default() });
            if bad {
                let name =
                    ["segment-00000", "segment-00001", "segment-00002"][oracle.random.below(3) as usize];
                oracle.disk.harm(name, LAYOUT.block_bytes);
            }
            oracle.step(true, &format!("seed {seed}, step {step}"));
        }
        injected += oracle.disk.injected();
        (served, lost) = (served + oracle.served, lost + oracle.lost);
    }
    assert!(injected > 6000 && served > 800 && lost > 500, "{injected} faults, {served} served, {lost} lost");
}

#[test]
fn no_crash_leads_to_a_wrong_byte_and_none_loses_what_was_committed() {
    let (mut crashes, mut kept) = (0, 0);
    for seed in 11..=16 {
        let mut oracle = Oracle::new(seed);
        for step in 0..700 {
            let what = format!("seed {seed}, step {step}");
            if oracle.random.below(25) > 0 {
                oracle.step(true, &what);
                continue;
            }
            oracle.disk.crash();
            crashes += 1;
            oracle.store = open(&oracle.disk);
            // A slot that was written to again since the commit is the only one that may be lost.
            let (mut bytes, mut there) = (vec![0; LAYOUT.block_bytes], BTreeMap::new());
            for n in 0..44 {
                let read = oracle.store.get(&mut [Get { key: key(n), into: &mut bytes }]);
                let safe = oracle.safe.get(&n);
                assert!(
                    safe.is_none() || read[0] == Read::Hit,
                    "{what}: {n} was committed and is {:?}",
                    read[0]
                );
                if read[0] == Read::Hit {
                    let versions: Vec<_> = oracle.ever.range((n, 0)..=(n, u64::MAX)).collect();
                    let known = versions.iter().rev().find(|v| bytes == payload(n, v.1, LAYOUT.block_bytes));
                    let version = known.unwrap_or_else(|| panic!("{what}: wrong bytes of {n}")).1;
                    assert!(safe.is_none_or(|safe| *safe == version), "{what}: {n} is of another time");
                    there.insert(n, version);
                    kept += u64::from(safe.is_some());
                }
            }
            oracle.safe = BTreeMap::new();
            oracle.current = there;
            oracle.probe();
        }
    }
    assert!(crashes > 100 && kept > 300, "{crashes} crashes, {kept} kept");
}

#[test]
fn crashes_among_all_other_faults_lead_to_no_wrong_byte() {
    let (mut injected, mut served) = (0, 0);
    for seed in 21..=30 {
        let mut oracle = Oracle::new(seed);
        for step in 0..900 {
            let what = format!("seed {seed}, step {step}");
            match oracle.random.below(40) {
                0 => {
                    oracle.disk.set(Faults::default());
                    oracle.disk.crash();
                    oracle.store = open(&oracle.disk);
                    let there = (0..50).filter(|n| oracle.store.has(key(*n)));
                    oracle.current = there.map(|n| (n, 0)).collect();
                    oracle.safe.clear();
                }
                1..=14 => {
                    let names = ["segment-00000", "segment-00001", "segment-00002", "table", "journal"];
                    let name = names[oracle.random.below(5) as usize];
                    let paged = name == "table" || name == "journal";
                    oracle.disk.harm(name, if paged { PAGE } else { LAYOUT.block_bytes });
                }
                15 => oracle.disk.set(Faults {
                    write_fails: oracle.random.below(100),
                    full: oracle.random.below(100),
                    forgets: oracle.random.below(100),
                    read_fails: oracle.random.below(60),
                    read_flips: oracle.random.below(60),
                    sync_fails: oracle.random.below(200),
                }),
                _ => oracle.step(false, &what),
            }
        }
        injected += oracle.disk.injected();
        served += oracle.served;
    }
    assert!(injected > 4000 && served > 500, "{injected} faults, {served} served");
}

/// Where the process that is to be killed has its store.
const FOLDER: &str = "KVTIER_TEST_FOLDER";

#[test]
#[ignore = "the process that the next test kills"]
fn stores_and_commits_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let (store, _) = Store::open(folder.as_ref(), LAYOUT, Backend::Auto).unwrap();
    for round in 0.. {
        let first = round * 3 % 40;
        for n in first..first + 12 {
            println!("removing {n}");
            store.remove(key(n));
        }
        let results = put(&store, first..first + 12);
        store.commit().unwrap();
        for (n, _) in (first..).zip(results).filter(|(_, result)| result.is_ok()) {
            println!("committed {n}");
        }
    }
}

#[test]
fn a_store_whose_process_is_killed_serves_what_it_committed() {
    let folder = tempfile::tempdir().unwrap();
    let this = std::env::current_exe().unwrap();
    let mut random = Random::new(4);
    for _ in 0..12 {
        let mut child = Command::new(&this)
            .args([
                "--ignored",
                "--exact",
                "--nocapture",
                "store::wrong_bytes::stores_and_commits_until_it_is_killed",
            ])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut committed: BTreeSet<u64> = BTreeSet::new();
        let said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let told = said.filter_map(|line| {
            let (what, n) = line.rsplit_once(' ')?;
            Some((what.to_owned(), n.parse::<u64>().ok()?))
        });
        let mut lines = 50 + random.below(400);
        // After the kill, what it had still said is in the pipe.
        for (what, n) in told {
            if what.ends_with("committed") {
                committed.insert(n);
            } else if what.ends_with("removing") {
                committed.remove(&n);
            }
            lines = lines.saturating_sub(1);
            if lines == 0 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let (store, _) = Store::open(folder.path(), LAYOUT, Backend::Auto).unwrap();
        let all = get(&store, 0..52);
        let lost: Vec<&u64> = committed.iter().filter(|n| all[**n as usize] != Read::Hit).collect();
        assert!(lost.is_empty(), "{lost:?} of {committed:?} are lost");
        assert!(hits(&all) > 0);
    }
}

//! A disk in memory that forgets what was not synced, and whatever else disks do.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex};

use super::medium::{Medium, PAGE, Segment};
use super::store::lock;
use crate::policy::random::Random;

/// What a disk writes at once, at least, in bytes.
const SECTOR: usize = 512;

/// Chances of a fault, in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A write fails with EIO; any part of it is written.
    pub write_fails: u32,
    /// A write fails with ENOSPC; nothing is written.
    pub full: u32,
    /// A write succeeds, and one of its pages is not written.
    pub forgets: u32,
    /// A read fails with EIO.
    pub read_fails: u32,
    /// A read has a flipped bit.
    pub read_flips: u32,
    /// A sync fails.
    pub sync_fails: u32,
}

#[derive(Debug, Default)]
struct Content {
    now: Vec<u8>,
    synced: Vec<u8>,
    /// Sectors that differ between the two.
    unsynced: BTreeSet<usize>,
    /// What pages held before they were last written.
    before: BTreeMap<usize, Vec<u8>>,
}

#[derive(Debug)]
struct Disk {
    files: BTreeMap<String, Content>,
    faults: Faults,
    random: Random,
    injected: u64,
}

/// The disk. Clones are the same one.
#[derive(Clone, Debug)]
pub struct FaultyDisk(Arc<Mutex<Disk>>);

impl FaultyDisk {
    pub fn new(seed: u64) -> FaultyDisk {
        let (files, faults) = (BTreeMap::new(), Faults::default());
        FaultyDisk(Arc::new(Mutex::new(Disk { files, faults, random: Random::new(seed), injected: 0 })))
    }

    pub fn set(&self, faults: Faults) {
        lock(&self.0).faults = faults;
    }

    /// Faults so far.
    pub fn injected(&self) -> u64 {
        lock(&self.0).injected
    }

    /// Power is lost: of what was not synced, any sectors are there and the others are not.
    pub fn crash(&self) {
        let disk = &mut *lock(&self.0);
        disk.injected += 1;
        for content in disk.files.values_mut() {
            for sector in std::mem::take(&mut content.unsynced) {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                if disk.random.below(2) == 0 {
                    let was = content.synced[range.clone()].to_vec();
                    content.now[range].copy_from_slice(&was);
                }
            }
            content.synced = content.now.clone();
        }
    }

    /// Something happens to a file at rest: a bit flips, two stretches of `slot` bytes change
    /// places, or one is as it was some time ago.
    pub fn harm(&self, name: &str, slot: usize) {
        let disk = &mut *lock(&self.0);
        disk.injected += 1;
        let Some(content) = disk.files.get_mut(name) else { return };
        let slots = content.now.len() / slot;
        let mut pick = || disk.random.below(slots as u32) as usize * slot;
        let (a, b) = (pick(), pick());
        match disk.random.below(3) {
            0 => {
                let bit = disk.random.below(content.now.len() as u32 * 8) as usize;
                content.now[bit / 8] ^= 1 << (bit % 8);
            }
            1 => {
                let [was_a, was_b] = [a, b].map(|at| content.now[at..at + slot].to_vec());
                content.now[a..a + slot].copy_from_slice(&was_b);
                content.now[b..b + slot].copy_from_slice(&was_a);
            }
            _ => {
                for page in (a / PAGE)..(a + slot) / PAGE {
                    if let Some(before) = content.before.get(&page) {
                        content.now[page * PAGE..(page + 1) * PAGE].copy_from_slice(before);
                    }
                }
            }
        }
        content.synced = content.now.clone();
        content.unsynced.clear();
    }
}

impl Medium for FaultyDisk {
    fn open(&self, name: &str, bytes: u64) -> io::Result<Box<dyn Segment>> {
        let mut disk = lock(&self.0);
        let content = disk.files.entry(name.to_owned()).or_default();
        content.now.resize(bytes as usize, 0);
        content.synced.resize(bytes as usize, 0);
        Ok(Box::new(FaultyFile { disk: self.clone(), name: name.to_owned() }))
    }
}

#[derive(Debug)]
struct FaultyFile {
    disk: FaultyDisk,
    name: String,
}

impl Disk {
    fn happens(&mut self, in_a_thousand: u32) -> bool {
        let happens = self.random.below(1000) < in_a_thousand;
        self.injected += u64::from(happens);
        happens
    }

    fn write(&mut self, name: &str, at: usize, bytes: &[u8]) {
        let Some(content) = self.files.get_mut(name) else { return };
        for (page, bytes) in bytes.chunks(PAGE).enumerate() {
            let range = at + page * PAGE..at + page * PAGE + bytes.len();
            let whole = range.start / PAGE * PAGE;
            content.before.insert(whole / PAGE, content.now[whole..whole + PAGE].to_vec());
            content.now[range].copy_from_slice(bytes);
        }
        content.unsynced.extend(at / SECTOR..(at + bytes.len()) / SECTOR);
    }
}

impl Segment for FaultyFile {
    fn read(&self, at: u64, into: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let disk = &mut *lock(&self.disk.0);
        if disk.happens(disk.faults.read_fails) {
            return Err(io::Error::from_raw_os_error(5));
        }
        let mut at = at as usize;
        assert!(at.is_multiple_of(PAGE));
        for part in into {
            assert!(part.len().is_multiple_of(PAGE), "{} bytes read", part.len());
            let range = at..at + part.len();
            at = range.end;
            part.copy_from_slice(&disk.files[&self.name].now[range]);
            if disk.happens(disk.faults.read_flips) {
                let bit = disk.random.below(part.len() as u32 * 8) as usize;
                part[bit / 8] ^= 1 << (bit % 8);
            }
        }
        Ok(())
    }

    fn write(&self, at: u64, from: &[IoSlice<'_>]) -> io::Result<()> {
        let disk = &mut *lock(&self.disk.0);
        let bytes = from.iter().map(|part| &part[..]).collect::<Vec<&[u8]>>().concat();
        let at = at as usize;
        assert!(at.is_multiple_of(PAGE) && bytes.len().is_multiple_of(PAGE));
        if disk.happens(disk.faults.full) {
            return Err(io::Error::from_raw_os_error(28));
        }
        let sectors = (bytes.len() / SECTOR) as u32;
        if disk.happens(disk.faults.write_fails) {
            let part = disk.random.below(sectors + 1) as usize * SECTOR;
            disk.write(&self.name, at, &bytes[..part]);
            return Err(io::Error::from_raw_os_error(5));
        }
        let forgotten =
            disk.happens(disk.faults.forgets).then(|| disk.random.below(sectors) as usize * SECTOR / PAGE);
        for (page, bytes) in bytes.chunks(PAGE).enumerate() {
            if forgotten != Some(page) {
                disk.write(&self.name, at + page * PAGE, bytes);
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let disk = &mut *lock(&self.disk.0);
        if disk.happens(disk.faults.sync_fails) {
            return Err(io::Error::from_raw_os_error(5));
        }
        if let Some(content) = disk.files.get_mut(&self.name) {
            for sector in std::mem::take(&mut content.unsynced) {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                content.synced[range.clone()].copy_from_slice(&content.now[range]);
            }
        }
        Ok(())
    }
}

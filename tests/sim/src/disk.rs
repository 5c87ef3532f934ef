//! A node's disk: it keeps the last snapshots over a restart, unless it forgets, is full or flips bits.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::rng::Rng;

/// Snapshots kept, as in the service.
const KEEP: usize = 2;
/// Bytes of a snapshot's header, of them the checksum the last.
const HEADER: usize = 32;
/// Bytes before a chunk's payload: its length and checksum.
const CHUNK_HEAD: usize = 12;

#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// The oldest first.
    files: Vec<Vec<u8>>,
    pub full: bool,
}

impl Disk {
    /// Keeps one more snapshot, in the place of the oldest. False where there is no room.
    pub fn keep(&mut self, bytes: Vec<u8>) -> bool {
        if self.full {
            return false;
        }
        if self.files.len() == KEEP {
            self.files.remove(0);
        }
        self.files.push(bytes);
        true
    }

    pub fn newest_first(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.files.iter().rev()
    }

    /// Forgets the end of the newest file, as if it had not been synced, or flips a bit of any. With
    /// `resum` the checksums are made to fit, which is as if nobody looked at them.
    pub fn damage(&mut self, rng: &mut Rng, resum: bool) {
        let Some(newest) = self.files.last_mut() else { return };
        if rng.one_in(3) && !resum {
            newest.truncate(rng.below(newest.len() as u64) as usize);
            return;
        }
        let at = rng.below(self.files.len() as u64) as usize;
        let file = &mut self.files[at];
        if file.len() <= HEADER + CHUNK_HEAD {
            return;
        }
        let byte = rng.between((HEADER + CHUNK_HEAD) as u64, file.len() as u64 - 1) as usize;
        file[byte] ^= 1 << rng.below(8);
        if resum {
            refit(file);
        }
    }
}

/// Makes every checksum fit what it stands for; see `docs/formats.md`.
fn refit(file: &mut [u8]) {
    let mut sum = xxh3_64(&file[..HEADER - 8]);
    file[HEADER - 8..HEADER].copy_from_slice(&sum.to_le_bytes());
    let mut at = HEADER;
    while at + CHUNK_HEAD <= file.len() {
        let len = u32::from_le_bytes(file[at..at + 4].try_into().expect("four bytes"));
        let end = at + CHUNK_HEAD + len as usize;
        if end > file.len() {
            return;
        }
        let mut h = Xxh3::with_seed(sum);
        h.update(&file[at..at + 4]);
        h.update(&file[at + CHUNK_HEAD..end]);
        sum = h.digest();
        file[at + 4..at + CHUNK_HEAD].copy_from_slice(&sum.to_le_bytes());
        at = end;
    }
}

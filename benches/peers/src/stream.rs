//! What happens to a fleet's caches and what is asked meanwhile, the same for every index.
//!
//! A stream is written once and replayed by each index. In a file, all numbers little-endian:
//! the magic `KVOPS002`, u32 pods, u32 tokens per block, u64 steps, u64 words, then the steps
//! (40 bytes each, see [`Step::to_bytes`]) and the words (u64 each) that the steps point into.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustc_hash::FxHashMap;

use crate::hash::sequence_hashes;
use crate::peer::Hit;

const MAGIC: &[u8; 8] = b"KVOPS002";
const HEADER_BYTES: usize = 32;
const STEP_BYTES: usize = 40;

/// What a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Asked = 0,
    Stored = 1,
    Removed = 2,
    Cleared = 3,
}

/// One change or question; hashes are in the stream's words.
#[derive(Clone, Copy, Debug)]
struct Step {
    kind: Kind,
    pod: u32,
    /// Blocks stored, removed or asked for.
    n: u32,
    /// Depth of the first block stored.
    position: u32,
    /// Stored: the sequence hash of the block before the first.
    parent: Option<u64>,
    /// Where the words begin. Stored: `n` pairs of local and sequence hash. Removed: `n`
    /// sequence hashes. Asked: `n` local hashes.
    at: u64,
    /// Asked: the right answer.
    expected: Hit,
    /// Removed: where in the words further copies are and how many. Not in the file.
    copies: (u64, u32),
}

/// Changes and questions in order.
#[derive(Debug)]
pub struct Stream {
    /// Caches that change; pods are numbered from 0.
    pub pods: u32,
    /// Tokens per block.
    pub block_size: u32,
    steps: Vec<Step>,
    words: Vec<u64>,
}

/// What happened to one pod's cache.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// Consecutive blocks came in; some may have been there already.
    Stored {
        pod: u32,
        /// Sequence hash of the block before the first.
        parent: Option<u64>,
        /// Depth of the first.
        position: u32,
        /// Local and sequence hash of each.
        blocks: &'a [[u64; 2]],
    },
    /// The pod has these blocks no more.
    Removed {
        pod: u32,
        blocks: &'a [u64],
        /// What an index that counts copies must be told besides: a block that was stored n times
        /// since the pod last lacked it is here n - 1 times, as an engine announces every copy.
        copies: &'a [u64],
    },
    /// The pod has nothing any more.
    Cleared { pod: u32 },
}

impl Change<'_> {
    /// Blocks stored or removed.
    pub fn blocks(&self) -> u64 {
        match self {
            Change::Stored { blocks, .. } => blocks.len() as u64,
            Change::Removed { blocks, .. } => blocks.len() as u64,
            Change::Cleared { .. } => 0,
        }
    }
}

/// A question, by the hash of every block.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub locals: &'a [u64],
    /// The right answer at this point of the stream.
    pub expected: Hit,
}

impl Question<'_> {
    /// The prompt's sequence hashes.
    pub fn sequence(&self) -> Vec<u64> {
        sequence_hashes(self.locals)
    }
}

/// A step as a replay sees it.
#[derive(Clone, Copy, Debug)]
pub enum Next<'a> {
    Change(Change<'a>),
    Ask(Question<'a>),
}

impl Stream {
    /// An empty stream.
    pub fn new(pods: u32, block_size: u32) -> Stream {
        Stream { pods, block_size, steps: Vec::new(), words: Vec::new() }
    }

    /// Appends a store of (local, sequence) pairs; of none, nothing.
    pub fn store(
        &mut self,
        pod: u32,
        parent: Option<u64>,
        position: u32,
        blocks: impl Iterator<Item = [u64; 2]>,
    ) {
        let at = self.words.len() as u64;
        self.words.extend(blocks.flatten());
        let n = (self.words.len() as u64 - at) as u32 / 2;
        if n > 0 {
            self.steps.push(Step { pod, n, position, parent, ..Step::new(Kind::Stored, at) });
        }
    }

    /// Appends a removal; of none, nothing.
    pub fn remove(&mut self, pod: u32, blocks: &[u64]) {
        if !blocks.is_empty() {
            let at = self.push_words(blocks);
            self.steps.push(Step { pod, n: blocks.len() as u32, ..Step::new(Kind::Removed, at) });
        }
    }

    /// Appends a clear.
    pub fn clear(&mut self, pod: u32) {
        self.steps.push(Step { pod, ..Step::new(Kind::Cleared, 0) });
    }

    /// Appends a question.
    pub fn ask(&mut self, locals: &[u64], expected: Hit) {
        let at = self.push_words(locals);
        self.steps.push(Step { n: locals.len() as u32, expected, ..Step::new(Kind::Asked, at) });
    }

    fn push_words(&mut self, words: &[u64]) -> u64 {
        let at = self.words.len() as u64;
        self.words.extend_from_slice(words);
        at
    }

    /// Changes and questions in all.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Step `i`.
    pub fn step(&self, i: usize) -> Next<'_> {
        let s = &self.steps[i];
        let n = s.n as usize;
        match s.kind {
            Kind::Asked => Next::Ask(Question { locals: self.words(s.at, n), expected: s.expected }),
            Kind::Stored => Next::Change(Change::Stored {
                pod: s.pod,
                parent: s.parent,
                position: s.position,
                blocks: self.words(s.at, 2 * n).as_chunks().0,
            }),
            Kind::Removed => Next::Change(Change::Removed {
                pod: s.pod,
                blocks: self.words(s.at, n),
                copies: self.words(s.copies.0, s.copies.1 as usize),
            }),
            Kind::Cleared => Next::Change(Change::Cleared { pod: s.pod }),
        }
    }

    /// Every step in order.
    pub fn iter(&self) -> impl Iterator<Item = Next<'_>> {
        (0..self.len()).map(|i| self.step(i))
    }

    fn words(&self, at: u64, n: usize) -> &[u64] {
        &self.words[at as usize..at as usize + n]
    }

    /// Finds out which removals end more than one copy.
    ///
    /// A simulated cache is a set: storing what it has changes nothing, one removal ends it.
    /// Engines instead announce each copy's coming and going, and kvd counts them.
    fn count_copies(&mut self) {
        let mut stored: FxHashMap<(u32, u64), u32> = FxHashMap::default();
        for i in 0..self.steps.len() {
            let s = self.steps[i];
            let (from, n) = (s.at as usize, s.n as usize);
            match s.kind {
                Kind::Asked => {}
                Kind::Stored => {
                    for block in self.words[from..from + 2 * n].as_chunks::<2>().0 {
                        *stored.entry((s.pod, block[1])).or_default() += 1;
                    }
                }
                Kind::Removed => {
                    let at = self.words.len() as u64;
                    for w in from..from + n {
                        let block = self.words[w];
                        let copies = stored.remove(&(s.pod, block)).unwrap_or(1);
                        self.words.extend(std::iter::repeat_n(block, copies as usize - 1));
                    }
                    self.steps[i].copies = (at, (self.words.len() as u64 - at) as u32);
                }
                Kind::Cleared => stored.retain(|(pod, _), _| *pod != s.pod),
            }
        }
    }

    /// What is in it, in a line.
    pub fn summary(&self) -> String {
        let of = |kind: Kind| self.steps.iter().filter(move |s| s.kind == kind);
        let blocks = |kind: Kind| of(kind).map(|s| u64::from(s.n)).sum::<u64>();
        let asked = of(Kind::Asked).count();
        let mean = |sum: u64| sum as f64 / asked.max(1) as f64;
        let best = of(Kind::Asked).map(|s| u64::from(s.expected.best)).sum();
        let pods = of(Kind::Asked).map(|s| u64::from(s.expected.pods)).sum();
        format!(
            "{} pods, {} tokens per block; {asked} questions of {:.0} blocks (best match {:.0}, {:.0} pods match); \
             {} blocks stored in {} events, {} removed in {}, {} clears",
            self.pods,
            self.block_size,
            mean(blocks(Kind::Asked)),
            mean(best),
            mean(pods),
            blocks(Kind::Stored),
            of(Kind::Stored).count(),
            blocks(Kind::Removed),
            of(Kind::Removed).count(),
            of(Kind::Cleared).count(),
        )
    }

    /// Writes the stream to a file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let mut w = BufWriter::with_capacity(1 << 20, file);
        w.write_all(MAGIC)?;
        w.write_all(&self.pods.to_le_bytes())?;
        w.write_all(&self.block_size.to_le_bytes())?;
        w.write_all(&(self.steps.len() as u64).to_le_bytes())?;
        w.write_all(&(self.words.len() as u64).to_le_bytes())?;
        for s in &self.steps {
            w.write_all(&s.to_bytes())?;
        }
        for x in &self.words {
            w.write_all(&x.to_le_bytes())?;
        }
        w.flush().context("write the stream")
    }

    /// Reads a stream that [`save`](Self::save) wrote.
    pub fn load(path: &Path) -> Result<Stream> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let mut r = BufReader::with_capacity(1 << 20, file);
        let mut header = [0; HEADER_BYTES];
        r.read_exact(&mut header)?;
        ensure!(header.starts_with(MAGIC), "{} is no stream", path.display());
        let mut s = Stream::new(u32_at(&header, 8), u32_at(&header, 12));
        let mut step = [0; STEP_BYTES];
        for _ in 0..u64_at(&header, 16) {
            r.read_exact(&mut step)?;
            s.steps.push(Step::from_bytes(&step)?);
        }
        let mut word = [0; 8];
        for _ in 0..u64_at(&header, 24) {
            r.read_exact(&mut word)?;
            s.words.push(u64::from_le_bytes(word));
        }
        s.count_copies();
        Ok(s)
    }
}

impl Step {
    fn new(kind: Kind, at: u64) -> Step {
        Step { kind, pod: 0, n: 0, position: 0, parent: None, at, expected: Hit::default(), copies: (0, 0) }
    }

    /// u8 kind, u8 whether there is a parent, 2 unused; u32 pod, n, position; u64 parent or, asked,
    /// the expected sum; u64 at; u32 expected best, pods.
    fn to_bytes(self) -> [u8; STEP_BYTES] {
        let mut b = [0; STEP_BYTES];
        let parent_or_sum = match self.kind {
            Kind::Asked => self.expected.sum,
            Kind::Stored | Kind::Removed | Kind::Cleared => self.parent.unwrap_or(0),
        };
        b[0] = self.kind as u8;
        b[1] = u8::from(self.parent.is_some());
        b[4..8].copy_from_slice(&self.pod.to_le_bytes());
        b[8..12].copy_from_slice(&self.n.to_le_bytes());
        b[12..16].copy_from_slice(&self.position.to_le_bytes());
        b[16..24].copy_from_slice(&parent_or_sum.to_le_bytes());
        b[24..32].copy_from_slice(&self.at.to_le_bytes());
        b[32..36].copy_from_slice(&self.expected.best.to_le_bytes());
        b[36..40].copy_from_slice(&self.expected.pods.to_le_bytes());
        b
    }

    fn from_bytes(b: &[u8; STEP_BYTES]) -> Result<Step> {
        let kind = [Kind::Asked, Kind::Stored, Kind::Removed, Kind::Cleared];
        let kind = *kind.get(usize::from(b[0])).context("a step of no known kind")?;
        let parent_or_sum = u64_at(b, 16);
        let expected = match kind {
            Kind::Asked => Hit { best: u32_at(b, 32), pods: u32_at(b, 36), sum: parent_or_sum },
            Kind::Stored | Kind::Removed | Kind::Cleared => Hit::default(),
        };
        Ok(Step {
            pod: u32_at(b, 4),
            n: u32_at(b, 8),
            position: u32_at(b, 12),
            parent: (b[1] != 0).then_some(parent_or_sum),
            expected,
            ..Step::new(kind, u64_at(b, 24))
        })
    }
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    b[at..at + 4].iter().rev().fold(0, |n, x| n << 8 | u32::from(*x))
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    b[at..at + 8].iter().rev().fold(0, |n, x| n << 8 | u64::from(*x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_back_the_stream_and_says_which_removals_end_several_copies() {
        let mut s = Stream::new(2, 16);
        s.store(0, None, 0, [[1, 11], [2, 12]].into_iter());
        s.store(0, Some(11), 1, [[2, 12]].into_iter());
        s.store(1, None, 0, [[1, 11]].into_iter());
        s.ask(&[1, 2], Hit { best: 2, pods: 2, sum: 3 });
        s.remove(0, &[11, 12]);
        s.clear(1);
        s.store(0, None, 0, [[2, 12]].into_iter());
        s.remove(0, &[12]);
        let dir = std::env::temp_dir().join(format!("peer-bench-{}", std::process::id()));
        s.save(&dir).unwrap();
        let back = Stream::load(&dir).unwrap();
        std::fs::remove_file(&dir).unwrap();

        assert_eq!((back.pods, back.block_size, back.len()), (2, 16, s.len()));
        let Next::Change(Change::Stored { parent, position, blocks, .. }) = back.step(1) else { panic!() };
        assert_eq!((parent, position, blocks), (Some(11), 1, [[2, 12]].as_slice()));
        let Next::Ask(q) = back.step(3) else { panic!() };
        assert_eq!((q.locals, q.expected), ([1, 2].as_slice(), Hit { best: 2, pods: 2, sum: 3 }));
        let Next::Change(Change::Removed { blocks, copies, .. }) = back.step(4) else { panic!() };
        assert_eq!((blocks, copies), ([11, 12].as_slice(), [12].as_slice()));
        let Next::Change(Change::Removed { copies, .. }) = back.step(7) else { panic!() };
        assert!(copies.is_empty());
    }
}

//! `records`: what does it cost to write down which block is in which slot, in the store's table and journal, and
//! in RocksDB?
//!
//! Both hold as many records as blocks are asked for, and then commit changes in groups, as a full disk
//! does that takes new blocks for old ones: in slots that lie in a row, and in slots anywhere. Only the
//! commits are measured: time, and bytes written by this process until all is at rest. Then both are
//! opened again without what the system had cached of them, up to an index of all blocks in memory.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kvtier::policy::{BlockId, Owner};
use kvtier::store::{Backend, Layout, Put, Record, Store, StoreKey, parents_first};
use rocksdb::{DB, IteratorMode, Options, WriteBatch, WriteOptions};
use rustix::fs::{Advice, fadvise};

use super::disk::written;
use crate::machine::{self, Watch};
use crate::report::{Passes, Table, Verdict, print_others};

/// Bytes of a block: payloads are not what is measured.
const BLOCK: usize = 4096;

/// See the module.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to: a folder on the disk to measure
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// Blocks
    #[arg(long, default_value_t = 1_000_000)]
    blocks: u32,
    /// Changes in one commit
    #[arg(long, default_value_t = 1000)]
    changes: u32,
    /// Commits of each kind
    #[arg(long, default_value_t = 300)]
    commits: u32,
}

/// Which slots change together.
#[derive(Clone, Copy)]
enum Order {
    InARow,
    Anywhere,
}

/// The slots of one commit.
fn slots(order: Order, args: &Args, commit: u32) -> Vec<u32> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(commit) + 1);
    let mut slots: Vec<u32> = (0..args.changes)
        .map(|at| match order {
            Order::InARow => (commit * args.changes + at) % args.blocks,
            Order::Anywhere => {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                (random % u64::from(args.blocks)) as u32
            }
        })
        .collect();
    slots.sort_unstable();
    slots.dedup();
    slots
}

fn key(life: u32, slot: u32) -> StoreKey {
    let mut hash = [7; 32];
    hash[..4].copy_from_slice(&life.to_le_bytes());
    hash[4..8].copy_from_slice(&slot.to_le_bytes());
    StoreKey::new(1, 0, &hash).expect("32 bytes are a hash")
}

/// Runs it.
pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let mut verdict = Verdict::default();
    let mut others = Passes::default();
    let watch = Watch::start(&[]);
    let mut table = Table::new(["what", "changes", "ms per commit", "bytes written per change"]);
    let folder = args.folder.join("kvd-benches-records");
    let mut reopened = Vec::new();
    for flat in [true, false] {
        std::fs::create_dir_all(&folder).context("make the folder")?;
        let name = if flat { "table and journal" } else { "RocksDB" };
        let mut place: Box<dyn Place> = match flat {
            true => Box::new(Flat::new(&folder, args)?),
            false => Box::new(Rocks::new(&folder, args)?),
        };
        for (order, words) in [(Order::InARow, "in a row"), (Order::Anywhere, "anywhere")] {
            let mut took = Passes::default();
            let (mut bytes, mut changes) = (0, 0);
            for commit in 0..args.commits {
                let slots = slots(order, args, commit);
                place.change(&slots)?;
                let (began, before) = (Instant::now(), written());
                place.commit()?;
                took.add(began.elapsed().as_secs_f64() * 1e3);
                bytes += written() - before;
                changes += slots.len() as u64;
            }
            let before = written();
            place.rest()?;
            bytes += written() - before;
            let per_change = format!("{:.0}", bytes as f64 / changes as f64);
            table.row(vec![name.into(), words.into(), took.cell(1), per_change]);
        }
        reopened.push((name, place.reopen(&folder, args)?));
        std::fs::remove_dir_all(&folder).context("remove the folder")?;
    }
    others.add(watch.others());
    table.print();
    print_others(&others);
    println!();
    for (name, Reopened { found, looked_up, in_order, busy }) in reopened {
        verdict.note((found != args.blocks as usize).then(|| format!("{name}: {found} blocks found again")));
        println!(
            "{name}: {found} blocks can be looked up after {:.2} s, are in order, parents first, after {:.2} s \
             ({:.2} s of processor time)",
            looked_up.as_secs_f64(),
            in_order.as_secs_f64(),
            busy.as_secs_f64()
        );
    }
    Ok(verdict)
}

/// How a restart went.
struct Reopened {
    found: usize,
    looked_up: Duration,
    in_order: Duration,
    busy: Duration,
}

/// Where records are.
trait Place {
    /// Other blocks for those in `slots`, not committed yet.
    fn change(&mut self, slots: &[u32]) -> anyhow::Result<()>;
    fn commit(&mut self) -> anyhow::Result<()>;
    /// Ends what goes on in the background.
    fn rest(&mut self) -> anyhow::Result<()>;
    fn reopen(self: Box<Self>, folder: &Path, args: &Args) -> anyhow::Result<Reopened>;
}

/// Forgets what the system has cached of a folder's files.
fn forget(folder: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let file = File::open(entry?.path())?;
        file.sync_all()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

struct Flat {
    store: Store,
    layout: Layout,
    /// By number: which life of the number is stored.
    lives: Vec<u32>,
}

impl Flat {
    fn new(folder: &Path, args: &Args) -> anyhow::Result<Flat> {
        let layout = Layout { block_bytes: BLOCK, slots: args.blocks, segment_slots: 1 << 18 };
        let (store, _) = Store::open(folder, layout, Backend::Direct).context("open the store")?;
        let flat = Flat { store, layout, lives: vec![0; args.blocks as usize] };
        let all: Vec<u32> = (0..args.blocks).collect();
        all.chunks(256).try_for_each(|numbers| flat.put(numbers))?;
        flat.store.commit().context("commit")?;
        Ok(flat)
    }

    fn put(&self, numbers: &[u32]) -> anyhow::Result<()> {
        let payload = [7; BLOCK];
        let block = |number: &u32| {
            let key_of = |number: u32| key(self.lives[number as usize], number);
            let after = number.checked_sub(1).map(|before| key_of(before).id());
            Put { key: key_of(*number), after, owner: Owner(0), payload: &payload }
        };
        let puts: Vec<Put<'_>> = numbers.iter().map(block).collect();
        ensure!(self.store.put(&puts).iter().all(Result::is_ok), "a block was not stored");
        Ok(())
    }
}

impl Place for Flat {
    fn change(&mut self, slots: &[u32]) -> anyhow::Result<()> {
        // Numbers were stored in the order of slots, and what comes takes the places of what leaves.
        for number in slots {
            self.store.remove(key(self.lives[*number as usize], *number));
            self.lives[*number as usize] += 1;
        }
        slots.chunks(256).try_for_each(|numbers| self.put(numbers))
    }

    fn commit(&mut self) -> anyhow::Result<()> {
        self.store.commit().context("commit")?;
        Ok(())
    }

    fn rest(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    fn reopen(self: Box<Self>, folder: &Path, _: &Args) -> anyhow::Result<Reopened> {
        let layout = self.layout;
        drop(self);
        forget(folder)?;
        let (began, before) = (Instant::now(), machine::thread_cpu());
        let (store, records) = Store::open(folder, layout, Backend::Direct).context("open it again")?;
        let looked_up = began.elapsed();
        let ordered = parents_first(&records).len();
        let (in_order, busy) = (began.elapsed(), machine::thread_cpu() - before);
        let found = ordered.min(store.stats().blocks);
        Ok(Reopened { found, looked_up, in_order, busy })
    }
}

struct Rocks {
    db: DB,
    batch: WriteBatch,
    lives: Vec<u32>,
}

impl Rocks {
    fn new(folder: &Path, args: &Args) -> anyhow::Result<Rocks> {
        let db = Rocks::open(folder)?;
        let mut rocks = Rocks { db, batch: WriteBatch::default(), lives: vec![0; args.blocks as usize] };
        let all: Vec<u32> = (0..args.blocks).collect();
        for slots in all.chunks(10_000) {
            rocks.change(slots)?;
            rocks.commit()?;
        }
        rocks.rest()?;
        Ok(rocks)
    }

    fn open(folder: &Path) -> anyhow::Result<DB> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_write_buffer_size(64 << 20);
        DB::open(&options, folder).context("open RocksDB")
    }
}

/// What the table keeps of a slot, but its checksum: RocksDB has its own.
fn encode(life: u32, slot: u32) -> Vec<u8> {
    let key = key(life, slot);
    let after = slot.checked_sub(1).map_or(0, |before| self::key(life, before).id().0);
    let mut value = Vec::with_capacity(96);
    value.extend(u64::from(life).to_le_bytes());
    value.extend(u64::from(slot).to_le_bytes());
    value.extend(0u16.to_le_bytes());
    value.push(u8::from(slot > 0));
    value.extend(after.to_le_bytes());
    value.extend(key.model.to_le_bytes());
    value.extend(key.group.to_le_bytes());
    value.extend(key.hash());
    value
}

fn decode(value: &[u8]) -> Option<Record> {
    let (generation, rest) = value.split_first_chunk()?;
    let (checksum, rest) = rest.split_first_chunk()?;
    let (owner, rest) = rest.split_first_chunk()?;
    let (has, rest) = rest.split_first()?;
    let (after, rest) = rest.split_first_chunk()?;
    let (model, rest) = rest.split_first_chunk()?;
    let (group, hash) = rest.split_first_chunk()?;
    Some(Record {
        key: StoreKey::new(u128::from_le_bytes(*model), u32::from_le_bytes(*group), hash).ok()?,
        generation: u64::from_le_bytes(*generation),
        checksum: u64::from_le_bytes(*checksum),
        after: (*has == 1).then_some(BlockId(u128::from_le_bytes(*after))),
        owner: Owner(u16::from_le_bytes(*owner)),
    })
}

impl Place for Rocks {
    fn change(&mut self, slots: &[u32]) -> anyhow::Result<()> {
        for slot in slots {
            let life = &mut self.lives[*slot as usize];
            *life += 1;
            self.batch.put(slot.to_be_bytes(), encode(*life, *slot));
        }
        Ok(())
    }

    fn commit(&mut self) -> anyhow::Result<()> {
        let mut durable = WriteOptions::default();
        durable.set_sync(true);
        self.db.write_opt(std::mem::take(&mut self.batch), &durable).context("write to RocksDB")
    }

    fn rest(&mut self) -> anyhow::Result<()> {
        self.db.flush().context("flush RocksDB")?;
        let is = |name: &str| self.db.property_int_value(name).ok().flatten().unwrap_or(0) > 0;
        while is("rocksdb.compaction-pending") || is("rocksdb.num-running-compactions") {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn reopen(self: Box<Self>, folder: &Path, args: &Args) -> anyhow::Result<Reopened> {
        drop(self);
        forget(folder)?;
        let (began, before) = (Instant::now(), machine::thread_cpu());
        let db = Rocks::open(folder)?;
        let mut records = Vec::with_capacity(args.blocks as usize);
        let mut index: HashMap<BlockId, (StoreKey, u32, u64, u64)> = HashMap::new();
        index.reserve(args.blocks as usize);
        for row in db.iterator(IteratorMode::Start) {
            let (slot, value) = row.context("read RocksDB")?;
            let slot = u32::from_be_bytes(slot[..].try_into().context("a slot")?);
            let record = decode(&value).context("a record")?;
            index.insert(record.key.id(), (record.key, slot, record.generation, record.checksum));
            records.push(record);
        }
        let looked_up = began.elapsed();
        let ordered = parents_first(&records).len();
        let (in_order, busy) = (began.elapsed(), machine::thread_cpu() - before);
        Ok(Reopened { found: ordered.min(index.len()), looked_up, in_order, busy })
    }
}

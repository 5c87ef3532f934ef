//! How do one holder's blocks hang together? Chains of them, tier by tier.
//!
//! A chain is a run of blocks without a fork, written as one line however long it is:
//!
//! ```text
//! 10.0.0.1:8000 rank 0  llama, blocks of 16 tokens
//!   gpu  62 blocks  █████████░ 97 % reach the root
//!     0-41  42 blocks  0x1f2e3d4c5b6a7988
//!       42-50  9 blocks  0x0011223344556677
//!       42-50  9 blocks  0x8899aabbccddeeff
//!     7-8  2 blocks  0x0123456789abcdef  after a block that is not here
//! ```

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use kvproto::rpc::kv::{DumpRow, Tier};

use crate::ctl::client::tier_name;
use crate::ctl::term::{Paint, clip, count, printable};

/// Forks deeper than this are not indented further.
const MAX_INDENT: usize = 8;

/// An instance's rank and its blocks.
pub struct Holder {
    tenant: String,
    model: String,
    instance: String,
    rank: u32,
    block_size: u32,
    tiers: BTreeMap<i32, Blocks>,
}

/// A holder's blocks in one tier, by hash.
#[derive(Default)]
struct Blocks {
    placed: HashMap<u64, Placed>,
    unplaced: usize,
}

#[derive(Clone, Copy)]
struct Placed {
    depth: u32,
    parent: Option<u64>,
}

/// Blocks that follow each other without a fork.
#[derive(Debug, PartialEq, Eq)]
struct Chain {
    indent: usize,
    first: u64,
    depth: u32,
    blocks: usize,
}

impl Holder {
    /// The holder that `row` speaks of, without blocks.
    pub fn of(row: &DumpRow) -> Holder {
        Holder {
            tenant: row.tenant_id.clone(),
            model: row.model.clone(),
            instance: row.instance_id.clone(),
            rank: row.dp_rank,
            block_size: row.block_size_tokens,
            tiers: BTreeMap::new(),
        }
    }

    /// Whether `row` speaks of this holder.
    pub fn is_of(&self, row: &DumpRow) -> bool {
        self.instance == row.instance_id
            && self.rank == row.dp_rank
            && self.model == row.model
            && self.tenant == row.tenant_id
    }

    /// Adds a row of this holder.
    pub fn add(&mut self, row: &DumpRow) {
        let tier = self.tiers.entry(row.tier).or_default();
        match row.depth {
            Some(depth) => _ = tier.placed.insert(row.block, Placed { depth, parent: row.parent }),
            None => tier.unplaced += 1,
        }
    }

    /// Writes the holder, at most `limit` chains per tier, in lines of at most `width`.
    pub fn write(&self, out: &mut dyn Write, limit: usize, paint: Paint, width: usize) -> io::Result<()> {
        let tenant = match self.tenant.as_str() {
            "" | "default" => String::new(),
            tenant => format!(" of {tenant}"),
        };
        let head = format!(
            "{} rank {}  {}{tenant}, blocks of {} tokens",
            self.instance, self.rank, self.model, self.block_size
        );
        writeln!(out, "{}", paint.bold(&clip(&printable(&head), width)))?;
        for (tier, blocks) in &self.tiers {
            let tier = Tier::try_from(*tier).unwrap_or(Tier::Unknown);
            blocks.write(out, tier_name(tier), limit, paint, width)?;
        }
        Ok(())
    }
}

impl Blocks {
    fn write(
        &self,
        out: &mut dyn Write,
        tier: &str,
        limit: usize,
        paint: Paint,
        width: usize,
    ) -> io::Result<()> {
        let trees = self.trees();
        let whole = |t: &&Vec<Chain>| t.first().is_some_and(|c| c.depth == 0);
        let size = |t: &Vec<Chain>| t.iter().map(|c| c.blocks).sum::<usize>();
        let rooted: usize = trees.iter().filter(whole).map(size).sum();
        let total = self.placed.len() + self.unplaced;
        let part = rooted as f64 / total.max(1) as f64;
        let head = format!(
            "  {tier}  {}  {} {:.0} % reach the root",
            count(total, "block"),
            bar(part),
            part * 100.0
        );
        writeln!(out, "{}", clip(&head, width))?;

        let (mut lines, mut left_chains, mut left_blocks) = (0, 0, 0);
        for chain in trees.iter().flatten() {
            if lines == limit {
                (left_chains, left_blocks) = (left_chains + 1, left_blocks + chain.blocks);
                continue;
            }
            lines += 1;
            let indent = "  ".repeat(chain.indent.min(MAX_INDENT));
            let last = u64::from(chain.depth) + chain.blocks as u64 - 1;
            let range = if chain.blocks == 1 { last.to_string() } else { format!("{}-{last}", chain.depth) };
            let line =
                format!("    {indent}{range}  {}  {:#018x}", count(chain.blocks, "block"), chain.first);
            let hole = chain.indent == 0 && chain.depth > 0;
            let note = if hole { "  after a block that is not here" } else { "" };
            let line = clip(&format!("{line}{note}"), width);
            writeln!(out, "{}", if hole { paint.odd(&line) } else { line })?;
        }
        if left_chains > 0 {
            let line = format!(
                "    ... {} more with {} (--chains N)",
                count(left_chains, "chain"),
                count(left_blocks, "block")
            );
            writeln!(out, "{}", paint.dim(&line))?;
        }
        let in_chains: usize = trees.iter().map(size).sum();
        // Blocks that name each other as parent belong to no tree.
        let lost = self.placed.len() - in_chains;
        if self.unplaced + lost > 0 {
            let line = format!("    {} at unknown positions", count(self.unplaced + lost, "block"));
            writeln!(out, "{}", paint.odd(&line))?;
        }
        Ok(())
    }

    /// The chains, tree by tree, the largest tree first; within a tree a chain before those
    /// that branch off its end.
    fn trees(&self) -> Vec<Vec<Chain>> {
        let mut children: HashMap<u64, Vec<u64>> = HashMap::new();
        let mut roots = Vec::new();
        for (&hash, block) in &self.placed {
            match block.parent.filter(|p| self.placed.contains_key(p)) {
                Some(parent) => children.entry(parent).or_default().push(hash),
                None => roots.push(hash),
            }
        }
        children.values_mut().for_each(|c| c.sort_unstable());
        let mut trees: Vec<Vec<Chain>> = roots.iter().map(|&r| self.tree(r, &children)).collect();
        let size = |t: &Vec<Chain>| t.iter().map(|c| c.blocks).sum::<usize>();
        trees.sort_by_key(|t| (std::cmp::Reverse(size(t)), t.first().map(|c| (c.depth, c.first))));
        trees
    }

    fn tree(&self, root: u64, children: &HashMap<u64, Vec<u64>>) -> Vec<Chain> {
        let mut chains = Vec::new();
        let mut starts = vec![(root, 0)];
        while let Some((first, indent)) = starts.pop() {
            let (mut blocks, mut at) = (1, first);
            while let Some([only]) = children.get(&at).map(Vec::as_slice) {
                (blocks, at) = (blocks + 1, *only);
            }
            let depth = self.placed.get(&first).map_or(0, |b| b.depth);
            chains.push(Chain { indent, first, depth, blocks });
            starts.extend(children.get(&at).into_iter().flatten().rev().map(|&c| (c, indent + 1)));
        }
        chains
    }
}

/// `part` of ten cells.
fn bar(part: f64) -> String {
    let full = (part * 10.0).round().clamp(0.0, 10.0) as usize;
    "█".repeat(full) + &"░".repeat(10 - full)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(block: u64, depth: Option<u32>, parent: Option<u64>) -> DumpRow {
        DumpRow {
            instance_id: "a:1".into(),
            model: "m".into(),
            tier: Tier::Gpu.into(),
            block,
            depth,
            parent,
            block_size_tokens: 16,
            ..DumpRow::default()
        }
    }

    fn written(rows: &[DumpRow], limit: usize) -> String {
        let mut holder = Holder::of(&rows[0]);
        rows.iter().for_each(|r| holder.add(r));
        let mut out = Vec::new();
        holder.write(&mut out, limit, Paint::none(), 100).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_run_without_a_fork_is_one_line_and_branches_stand_under_it() {
        let rows = [
            row(1, Some(0), None),
            row(2, Some(1), Some(1)),
            row(3, Some(2), Some(2)),
            row(4, Some(2), Some(2)),
            row(5, Some(3), Some(4)),
            // Its parent was evicted.
            row(9, Some(7), Some(8)),
            row(10, None, None),
        ];
        assert_eq!(
            written(&rows, 20),
            "a:1 rank 0  m, blocks of 16 tokens\n  \
             gpu  7 blocks  ███████░░░ 71 % reach the root\n    \
             0-1  2 blocks  0x0000000000000001\n      \
             2  1 block  0x0000000000000003\n      \
             2-3  2 blocks  0x0000000000000004\n    \
             7  1 block  0x0000000000000009  after a block that is not here\n    \
             1 block at unknown positions\n"
        );
    }

    #[test]
    fn what_is_left_out_is_counted() {
        let rows: Vec<_> = (0..30).map(|i| row(i + 1, Some(0), None)).collect();
        let text = written(&rows, 10);
        assert!(text.ends_with("    ... 20 chains more with 20 blocks (--chains N)\n"), "{text}");
        assert_eq!(text.lines().count(), 13);
    }

    #[test]
    fn blocks_that_name_each_other_as_parent_do_not_hang_the_writer() {
        let text = written(&[row(1, Some(1), Some(2)), row(2, Some(1), Some(1))], 20);
        assert!(text.ends_with("    2 blocks at unknown positions\n"), "{text}");
    }

    #[test]
    fn rows_of_another_rank_are_another_holder() {
        let first = row(1, Some(0), None);
        let holder = Holder::of(&first);
        assert!(holder.is_of(&first));
        assert!(!holder.is_of(&DumpRow { dp_rank: 1, ..first }));
    }
}

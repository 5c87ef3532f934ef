//! `kvctl tier copy` and `move`: blocks go to another tier of a node.

use std::io::{BufRead, Write};

use anyhow::Context;
use clap::{Args, ValueEnum};
use kvproto::rpc::kv::{BlockSet, CopyRequest, JobProgress, MoveRequest};
use serde_json::json;
use tonic::Streaming;

use crate::ctl::client::Kvd;
use crate::ctl::{Global, Outcome};

/// Which blocks.
#[derive(Debug, Args)]
struct BlocksArgs {
    /// The model, as engines were connected with
    #[arg(long)]
    model: String,
    /// The group of layers
    #[arg(long, default_value_t = 0)]
    group: u32,
    /// Bytes per block of the pool; every pool without it
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "BYTES")]
    block_bytes: u64,
    /// The engine's whole hashes in hex, root first; - reads them from the standard input, one a line
    #[arg(required = true, value_name = "HASH")]
    hashes: Vec<String>,
}

/// What `kvctl tier copy` is told.
#[derive(Debug, Args)]
pub(super) struct CopyArgs {
    /// Where to
    #[arg(long)]
    to: Tier,
    /// Another node's pull endpoint: what is not here is pulled from there first
    #[arg(long, default_value = "", hide_default_value = true, value_name = "HOST:PORT")]
    source: String,
    #[command(flatten)]
    blocks: BlocksArgs,
}

/// What `kvctl tier move` is told.
#[derive(Debug, Args)]
pub(super) struct MoveArgs {
    /// Where they are given up, unless they are pinned or blocks that follow need them there
    #[arg(long)]
    from: Local,
    /// Where to
    #[arg(long)]
    to: Tier,
    #[command(flatten)]
    blocks: BlocksArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Local {
    Cpu,
    Disk,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Tier {
    Cpu,
    Disk,
    Shared,
}

impl Tier {
    fn name(self) -> String {
        match self {
            Tier::Cpu => "cpu",
            Tier::Disk => "disk",
            Tier::Shared => "shared",
        }
        .to_owned()
    }
}

/// Copies.
pub(super) async fn copy(
    global: &Global,
    kvd: &Kvd,
    args: &CopyArgs,
    out: &mut dyn Write,
) -> anyhow::Result<Outcome> {
    let (to, source) = (args.to.name(), args.source.clone());
    let request = CopyRequest { blocks: Some(args.blocks.named()?), to, source };
    let said = kvd.tiers().copy(request).await.map_err(|s| kvd.failed("copy blocks", s))?;
    follow(global, kvd, said.into_inner(), out).await
}

/// Moves.
pub(super) async fn r#move(
    global: &Global,
    kvd: &Kvd,
    args: &MoveArgs,
    out: &mut dyn Write,
) -> anyhow::Result<Outcome> {
    let from = match args.from {
        Local::Cpu => "cpu".to_owned(),
        Local::Disk => "disk".to_owned(),
    };
    let request = MoveRequest { blocks: Some(args.blocks.named()?), from, to: args.to.name() };
    let said = kvd.tiers().r#move(request).await.map_err(|s| kvd.failed("move blocks", s))?;
    follow(global, kvd, said.into_inner(), out).await
}

/// Shows how far a job is until it ends; what it came to is written then.
async fn follow(
    global: &Global,
    kvd: &Kvd,
    mut said: Streaming<JobProgress>,
    out: &mut dyn Write,
) -> anyhow::Result<Outcome> {
    let bar = global.progress(0, "blocks");
    let mut last = JobProgress::default();
    while let Some(progress) = said.message().await.map_err(|s| kvd.failed("follow the job", s))? {
        bar.set_length(progress.found);
        bar.set_position(progress.done + progress.failed);
        last = progress;
    }
    bar.finish_and_clear();
    let JobProgress { found, done, failed, left, pulled } = last;
    if global.json {
        let said = json!({"found": found, "done": done, "failed": failed, "left": left, "pulled": pulled});
        writeln!(out, "{said}")?;
    } else {
        if pulled > 0 {
            writeln!(out, "{pulled} blocks pulled")?;
        }
        writeln!(out, "{found} blocks here, {done} there now, {failed} failed, {left} copies given up")?;
    }
    Ok(if failed == 0 { Outcome::Ok } else { Outcome::Failed })
}

impl BlocksArgs {
    fn named(&self) -> anyhow::Result<BlockSet> {
        let mut hashes = Vec::new();
        for word in &self.hashes {
            if word == "-" {
                for line in std::io::stdin().lock().lines() {
                    let line = line.context("read hashes")?;
                    hashes.extend(line.split_whitespace().map(hex).collect::<Result<Vec<_>, _>>()?);
                }
            } else {
                hashes.push(hex(word)?);
            }
        }
        Ok(BlockSet {
            model: self.model.clone(),
            group: self.group,
            hashes: hashes.into_iter().map(Into::into).collect(),
            block_bytes: self.block_bytes,
        })
    }
}

fn hex(text: &str) -> anyhow::Result<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |pair: &[u8]| match *pair {
        [high, low] => Some((digit(high)? << 4 | digit(low)?) as u8),
        _ => None,
    };
    let digits = text.strip_prefix("0x").unwrap_or(text).as_bytes();
    let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
    bytes.filter(|bytes| !bytes.is_empty()).with_context(|| format!("{text}: not a hash in hex"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_whole_bytes_in_hex() {
        assert_eq!(hex("0x0aFf").unwrap(), [0x0a, 0xff]);
        assert_eq!(hex("00").unwrap(), [0]);
        for bad in ["", "0x", "abc", "zz", "é", "+1"] {
            assert!(hex(bad).is_err(), "{bad}");
        }
    }
}

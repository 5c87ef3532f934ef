//! `kvctl tiers` and `kvctl tier`: what does a node keep below the GPU, and what is to be done about it?

mod blocks;
mod show;

use std::io::Write;
use std::time::Duration;

use clap::{Args, Subcommand};
use kvproto::rpc::kv::{DrainRequest, GetTierUsageRequest, GetTierUsageResponse, ScrubRequest};
use serde_json::json;

use crate::ctl::client::Kvd;
use crate::ctl::{Global, Outcome};

use blocks::{CopyArgs, MoveArgs};
use show::{as_json, write};

/// Which node, and what of it.
#[derive(Debug, Args)]
pub struct TiersArgs {
    /// The gRPC address of the node's `kvd tier`
    #[arg(long, env = "KVD_TIER_GRPC", value_name = "HOST:PORT", default_value = "127.0.0.1:50053")]
    at: String,
}

/// What `kvctl tier` is told.
#[derive(Debug, Args)]
pub struct TierArgs {
    #[command(flatten)]
    node: TiersArgs,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Read every block on disk, and give up those that are not what was written
    Scrub {
        /// Bytes per block of the pool; every pool without it
        #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "BYTES")]
        block_bytes: u64,
    },
    /// Copy what is in RAM alone to disk and take no more offers
    Drain {
        /// Take offers again
        #[arg(long)]
        undo: bool,
    },
    /// Copy blocks to another tier
    Copy(CopyArgs),
    /// Copy blocks to another tier and give them up where they were
    Move(MoveArgs),
    /// Show what a node holds and does as it changes, until Ctrl-C
    Top {
        /// How often
        #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
        every: Duration,
        /// How often at most; for ever without it
        #[arg(long, value_name = "N")]
        times: Option<u64>,
    },
}

/// Asks a node and prints what it holds.
pub async fn list(global: &Global, args: &TiersArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let kvd = global.kvd_at(&args.at).await?;
    let usage = ask(&kvd).await?;
    if global.json {
        usage.pools.iter().try_for_each(|pool| writeln!(out, "{}", as_json(&usage, pool)))?;
    } else {
        write(out, &usage, global.paint())?;
    }
    Ok(Outcome::Ok)
}

/// Does what is asked for.
pub async fn run(global: &Global, args: &TierArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let kvd = global.kvd_at(&args.node.at).await?;
    match &args.what {
        What::Scrub { block_bytes } => scrub(global, &kvd, *block_bytes, out).await,
        What::Drain { undo } => drain(global, &kvd, *undo, out).await,
        What::Copy(args) => blocks::copy(global, &kvd, args, out).await,
        What::Move(args) => blocks::r#move(global, &kvd, args, out).await,
        &What::Top { every, times } => {
            let mut left = times.unwrap_or(u64::MAX);
            while left > 0 {
                let usage = ask(&kvd).await?;
                write(out, &usage, global.paint())?;
                out.flush()?;
                left -= 1;
                if left > 0 {
                    tokio::select! {
                        () = tokio::time::sleep(every) => {}
                        _ = tokio::signal::ctrl_c() => break,
                    }
                }
            }
            Ok(Outcome::Ok)
        }
    }
}

async fn ask(kvd: &Kvd) -> anyhow::Result<GetTierUsageResponse> {
    let usage = kvd.tiers().get_tier_usage(GetTierUsageRequest {}).await;
    Ok(usage.map_err(|s| kvd.failed("read what the tiers hold", s))?.into_inner())
}

async fn scrub(global: &Global, kvd: &Kvd, block_bytes: u64, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let failed = |s| kvd.failed("scrub", s);
    let mut said = kvd.tiers().scrub(ScrubRequest { block_bytes }).await.map_err(failed)?.into_inner();
    let mut last = Vec::new();
    let bar = global.progress(0, "blocks");
    while let Some(progress) = said.message().await.map_err(failed)? {
        bar.set_length(progress.blocks);
        bar.set_position(progress.checked);
        last.retain(|p: &kvproto::rpc::kv::ScrubProgress| p.block_bytes != progress.block_bytes);
        last.push(progress);
    }
    bar.finish_and_clear();
    let bad: u64 = last.iter().map(|p| p.bad).sum();
    for p in &last {
        if global.json {
            let line = json!({"block_bytes": p.block_bytes, "checked": p.checked, "bad": p.bad});
            writeln!(out, "{line}")?;
        } else {
            writeln!(out, "blocks of {} bytes: {} read, {} bad", p.block_bytes, p.checked, p.bad)?;
        }
    }
    Ok(if bad == 0 { Outcome::Ok } else { Outcome::Failed })
}

async fn drain(global: &Global, kvd: &Kvd, undo: bool, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let failed = |s| kvd.failed("drain", s);
    let mut left = kvd.tiers().drain(DrainRequest { undo }).await.map_err(failed)?.into_inner().left;
    while left > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        left = kvd.tiers().drain(DrainRequest { undo }).await.map_err(failed)?.into_inner().left;
    }
    if global.json {
        writeln!(out, "{}", json!({"draining": !undo}))?;
    } else {
        writeln!(
            out,
            "{}",
            if undo { "takes offers again" } else { "drained: all that was in RAM is on disk" }
        )?;
    }
    Ok(Outcome::Ok)
}

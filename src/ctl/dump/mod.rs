//! `kvctl dump`: which blocks does kvd know of, where?

mod tree;

use std::io::Write;
use std::time::Duration;

use clap::Args;
use kvproto::rpc::kv::{DumpRequest, DumpRow};
use serde::Serialize;
use tonic::{Code, Status};

use crate::ctl::client::{Kvd, tier_name};
use crate::ctl::term;
use crate::ctl::{Global, Outcome};
use tree::Holder;

/// How often a dump that broke off is taken up again without anything new having come.
const ATTEMPTS: u32 = 5;

/// What `kvctl dump` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvctl dump
  kvctl dump --instance 10.0.0.1:8000 --chains 100
  kvctl dump --json | jq -c 'select(.tier == \"cpu\")'

With --json a line per instance, rank, tier and block:
  {\"instance\", \"dp_rank\", \"tier\", \"block\", \"depth\"}
depth counts from 0 and is null where the position is unknown; block is the engine's own hash.
A dump that breaks off goes on where it stopped.")]
pub struct DumpArgs {
    /// Only of this model
    #[arg(long, default_value = "", hide_default_value = true)]
    model: String,
    /// Only of this tenant
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Only this instance
    #[arg(long, default_value = "", hide_default_value = true)]
    instance: String,
    /// Chains of blocks to write per tier
    #[arg(long, default_value_t = 20, value_name = "N")]
    chains: usize,
}

/// Reads the whole dump and writes it.
pub async fn run(global: &Global, args: &DumpArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let kvd = global.kvd().await?;
    let mut holder: Option<Holder> = None;
    let mut holders = 0;
    let mut finish = |holder: Option<Holder>, out: &mut dyn Write| -> std::io::Result<()> {
        let Some(holder) = holder else { return Ok(()) };
        holders += 1;
        holder.write(out, args.chains, global.paint(), term::width())
    };
    each_row(&kvd, args, |row| {
        if global.json {
            return write_json(out, &row);
        }
        // Rows of one holder follow each other, so one holder at a time is kept.
        if !holder.as_ref().is_some_and(|h| h.is_of(&row)) {
            finish(holder.take(), out)?;
        }
        holder.get_or_insert_with(|| Holder::of(&row)).add(&row);
        Ok(())
    })
    .await?;
    finish(holder.take(), out)?;
    if !global.json && holders == 0 {
        writeln!(out, "no blocks")?;
    }
    Ok(Outcome::Ok)
}

/// Hands every row of the dump to `take`, in order, taking it up again where it broke off.
async fn each_row(
    kvd: &Kvd,
    args: &DumpArgs,
    mut take: impl FnMut(DumpRow) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let mut token = String::new();
    let mut failures = 0;
    loop {
        let request = DumpRequest {
            tenant_id: args.tenant.clone(),
            model: args.model.clone(),
            instance_id: args.instance.clone(),
            resume_token: token.clone(),
        };
        let broke: Status = match kvd.admin().dump(request).await {
            Err(status) => status,
            Ok(answer) => {
                let mut chunks = answer.into_inner();
                loop {
                    match chunks.message().await {
                        Ok(Some(chunk)) => {
                            chunk.rows.into_iter().try_for_each(&mut take)?;
                            (token, failures) = (chunk.resume_token, 0);
                        }
                        Ok(None) => return Ok(()),
                        Err(status) => break status,
                    }
                }
            }
        };
        failures += 1;
        let passing =
            matches!(broke.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled);
        if !passing || failures == ATTEMPTS {
            return Err(kvd.failed("dump the index", broke).into());
        }
        tokio::time::sleep(Duration::from_millis(100) * failures).await;
    }
}

/// A row as JSON.
#[derive(Serialize)]
struct Row<'r> {
    instance: &'r str,
    dp_rank: u32,
    tier: &'static str,
    block: u64,
    depth: Option<u32>,
}

fn write_json(out: &mut dyn Write, row: &DumpRow) -> std::io::Result<()> {
    let tier = tier_name(row.tier());
    let row =
        Row { instance: &row.instance_id, dp_rank: row.dp_rank, tier, block: row.block, depth: row.depth };
    serde_json::to_writer(&mut *out, &row)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvproto::rpc::kv::Tier;

    #[test]
    fn a_row_without_a_position_has_depth_null() {
        let row = DumpRow {
            instance_id: "a".into(),
            block: u64::MAX,
            tier: Tier::Gpu.into(),
            ..DumpRow::default()
        };
        let written = |row: &DumpRow| {
            let mut out = Vec::new();
            write_json(&mut out, row).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            written(&row),
            "{\"instance\":\"a\",\"dp_rank\":0,\"tier\":\"gpu\",\"block\":18446744073709551615,\"depth\":null}\n"
        );
        assert!(written(&DumpRow { depth: Some(0), ..row }).contains("\"depth\":0"));
    }
}

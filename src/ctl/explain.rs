//! `kvctl explain`: why did this pod get its number, block by block?

use std::io::Write;

use clap::Args;
use kvproto::rpc::kv::{ExplainScoreRequest, ExplainScoreResponse, ExplainedBlock};
use serde_json::{Value, json};

use crate::ctl::client::tier_name;
use crate::ctl::prompt::PromptArgs;
use crate::ctl::score::endpoint_json;
use crate::ctl::term::{self, Align, Cell, Paint, Table, printable};
use crate::ctl::{Global, Outcome};

/// What `kvctl explain` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvctl explain --model llama --instance 10.0.0.1:8000 --tokens-file prompt.json
  kvctl explain --model llama --instance 10.0.0.1:8000 --rank 1 --tokens 1,2,3 --all")]
pub struct ExplainArgs {
    #[command(flatten)]
    prompt: PromptArgs,
    /// The instance to explain
    #[arg(long)]
    instance: String,
    /// Its data-parallel rank
    #[arg(long, default_value_t = 0)]
    rank: u32,
    /// Write a row for every block, also where neighbours are alike
    #[arg(long)]
    all: bool,
}

/// Asks and prints.
pub async fn run(global: &Global, args: &ExplainArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let request = ExplainScoreRequest {
        score: Some(args.prompt.request(vec![args.instance.clone()])?),
        instance_id: args.instance.clone(),
        dp_rank: args.rank,
    };
    let kvd = global.kvd().await?;
    let what = || format!("explain the score of {} rank {}", args.instance, args.rank);
    let answer = kvd.admin().explain_score(request).await.map_err(|s| kvd.failed(what(), s))?.into_inner();
    if global.json {
        writeln!(out, "{}", as_json(&answer))?;
    } else {
        write(out, &answer, args.all, global.paint())?;
    }
    Ok(Outcome::Ok)
}

fn write(out: &mut dyn Write, answer: &ExplainScoreResponse, all: bool, paint: Paint) -> anyhow::Result<()> {
    let score = answer.score.clone().unwrap_or_default();
    let block_size = u64::from(score.block_size_tokens);
    let columns = [
        ("blocks", Align::Left),
        ("tokens", Align::Left),
        ("first hash", Align::Left),
        ("tiers", Align::Left),
        ("device groups", Align::Left),
        ("", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for run in runs(&answer.blocks, all) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        let range = |a: u64, b: u64| if a == b { a.to_string() } else { format!("{a}-{b}") };
        let tokens = (u64::from(first.block) * block_size, (u64::from(last.block) + 1) * block_size);
        let tiers: Vec<_> = first.tiers().map(tier_name).collect();
        let groups: Vec<_> = first.gpu_groups.iter().map(u32::to_string).collect();
        let tiers = if tiers.is_empty() {
            Cell::painted("not held", Paint::bad)
        } else {
            Cell::painted(tiers.join(" "), Paint::good)
        };
        table.row([
            range(first.block.into(), last.block.into()).into(),
            range(tokens.0, tokens.1.saturating_sub(1)).into(),
            first.seq_hash.map_or("-".to_owned(), |h| format!("{h:#018x}")).into(),
            tiers,
            groups.join(" ").into(),
            if first.speculative { "announced by routing" } else { "" }.into(),
        ]);
    }
    table.write(out, paint, term::width())?;
    writeln!(out)?;
    for step in &answer.steps {
        writeln!(out, "  {}", printable(step))?;
    }
    let line = format!("{} rank {}: {} tokens cached", score.instance_id, score.dp_rank, score.cached_tokens);
    writeln!(out, "{}", paint.bold(&printable(&line)))?;
    Ok(())
}

/// Neighbours that are held alike, unless `all` are wanted one by one.
fn runs(blocks: &[ExplainedBlock], all: bool) -> impl Iterator<Item = &[ExplainedBlock]> {
    blocks.chunk_by(move |a, b| {
        !all && a.tiers == b.tiers && a.gpu_groups == b.gpu_groups && a.speculative == b.speculative
    })
}

fn as_json(answer: &ExplainScoreResponse) -> Value {
    let blocks = answer.blocks.iter().map(|b| {
        json!({
            "block": b.block,
            "seq_hash": b.seq_hash,
            "tiers": b.tiers().map(tier_name).collect::<Vec<_>>(),
            "gpu_groups": b.gpu_groups,
            "speculative": b.speculative,
        })
    });
    json!({
        "score": answer.score.as_ref().map(endpoint_json),
        "blocks": blocks.collect::<Vec<_>>(),
        "steps": answer.steps,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvproto::rpc::kv::{EndpointScore, Tier};

    fn answer() -> ExplainScoreResponse {
        let block = |block, tiers: &[Tier]| ExplainedBlock {
            block,
            seq_hash: Some(0xab),
            tiers: tiers.iter().map(|&t| t.into()).collect(),
            gpu_groups: tiers.iter().filter(|&&t| t == Tier::Gpu).map(|_| 0).collect(),
            ..ExplainedBlock::default()
        };
        ExplainScoreResponse {
            score: Some(EndpointScore {
                instance_id: "a".into(),
                block_size_tokens: 16,
                cached_tokens: 32,
                ..EndpointScore::default()
            }),
            blocks: vec![block(0, &[Tier::Gpu]), block(1, &[Tier::Gpu]), block(2, &[])],
            steps: vec!["2 blocks from the root".into()],
        }
    }

    #[test]
    fn neighbours_held_alike_share_a_row() {
        let mut out = Vec::new();
        write(&mut out, &answer(), false, Paint::none()).unwrap();
        let text = String::from_utf8(out).unwrap();
        let rows: Vec<_> = text.lines().collect();
        assert!(rows[1].starts_with("0-1     0-31    0x00000000000000ab  gpu       0"), "{text}");
        assert!(rows[2].starts_with("2       32-47   0x00000000000000ab  not held"), "{text}");
        assert_eq!(rows[4..], ["  2 blocks from the root", "a rank 0: 32 tokens cached"]);
    }

    #[test]
    fn all_blocks_have_a_row_on_request() {
        assert_eq!(runs(&answer().blocks, true).count(), 3);
        assert_eq!(runs(&answer().blocks, false).count(), 2);
    }
}

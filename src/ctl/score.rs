//! `kvctl score`: how much of a prompt does every candidate hold?

use std::io::Write;

use clap::Args;
use kvproto::rpc::kv::{EndpointScore, ScoreResponse, Tier, TierCount};
use serde_json::{Map, Value, json};

use crate::ctl::client::{state_name, tier_name};
use crate::ctl::prompt::PromptArgs;
use crate::ctl::term::{self, Align, Cell, Paint, Table, printable};
use crate::ctl::{Global, Outcome};

/// Tiers that have a column.
const TIERS: [Tier; 4] = [Tier::Gpu, Tier::Cpu, Tier::Disk, Tier::Shared];

/// What `kvctl score` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvctl score --model llama --tokens 1,2,3,4
  kvctl score --model llama --tokens-file prompt.json --candidates 10.0.0.1:8000,10.0.0.2:8000
  kvctl score --model llama --hashes 0x1f2e,0x3d4c --hash-kind engine --block-size 16

Exit code 1 if no engine of the model is registered.")]
pub struct ScoreArgs {
    #[command(flatten)]
    prompt: PromptArgs,
    /// Only these instances (default: all of the model)
    #[arg(long, value_delimiter = ',', value_name = "INSTANCE,...")]
    candidates: Vec<String>,
}

/// Asks and prints.
pub async fn run(global: &Global, args: &ScoreArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let request = args.prompt.request(args.candidates.clone())?;
    let kvd = global.kvd().await?;
    let what = || format!("score a prompt of model {}", args.prompt.model());
    let answer = kvd.index().score(request).await.map_err(|s| kvd.failed(what(), s))?.into_inner();
    if global.json {
        writeln!(out, "{}", as_json(&answer))?;
    } else {
        write(out, args.prompt.model(), &answer, global.paint())?;
    }
    Ok(if answer.unknown_model { Outcome::Failed } else { Outcome::Ok })
}

fn write(out: &mut dyn Write, model: &str, answer: &ScoreResponse, paint: Paint) -> anyhow::Result<()> {
    if answer.unknown_model {
        writeln!(
            out,
            "no engine of model {} is registered; see `kvctl publishers`, `kvctl register`",
            printable(model)
        )?;
        return Ok(());
    }
    let size = match answer.block_size_tokens {
        0 => "blocks of each engine's size".to_owned(),
        n => format!("{} blocks of {n} tokens", answer.total_blocks),
    };
    writeln!(out, "{}", paint.bold(&format!("{}: {size}", printable(model))))?;
    let mut columns =
        vec![("instance", Align::Left), ("rank", Align::Right), ("cached tokens", Align::Right)];
    // Without a size asked for, each engine's blocks are of its own.
    let sizes_differ =
        answer.endpoints.windows(2).any(|two| two[0].block_size_tokens != two[1].block_size_tokens);
    if sizes_differ {
        columns.push(("block size", Align::Right));
    }
    columns.push(("blocks", Align::Right));
    columns.extend(TIERS.map(|t| (tier_name(t), Align::Right)));
    columns.extend([("weighted", Align::Right), ("state", Align::Left)]);
    let mut table = Table::new(&columns);
    for e in &answer.endpoints {
        let mut row: Vec<Cell> = vec![
            e.instance_id.as_str().into(),
            e.dp_rank.into(),
            Cell::painted(e.cached_tokens, Paint::bold),
        ];
        if sizes_differ {
            row.push(e.block_size_tokens.into());
        }
        row.push(e.cached_blocks.into());
        row.extend(TIERS.map(|t| Cell::from(blocks(&e.by_tier, t))));
        row.extend([format!("{:.1}", e.weighted_blocks).into(), state_cell(e)]);
        table.row(row);
    }
    table.write(out, paint, term::width())?;
    for name in &answer.missing_candidates {
        writeln!(out, "{}", paint.odd(&format!("{} is not registered", printable(name))))?;
    }
    for name in &answer.block_size_mismatch {
        let line = format!("{} has another block size than the hashes", printable(name));
        writeln!(out, "{}", paint.odd(&line))?;
    }
    if answer.degraded {
        let line = format!("{:.0} % of the candidates' streams are followed whole", answer.coverage * 100.0);
        writeln!(out, "{}", paint.odd(&line))?;
    }
    Ok(())
}

fn state_cell(e: &EndpointScore) -> Cell {
    let Some(f) = &e.freshness else { return "".into() };
    Cell::painted(state_name(f.state()), if f.complete { Paint::good } else { Paint::odd })
}

fn blocks(counts: &[TierCount], tier: Tier) -> u32 {
    counts.iter().find(|c| c.tier() == tier).map_or(0, |c| c.blocks)
}

fn as_json(answer: &ScoreResponse) -> Value {
    json!({
        "total_blocks": answer.total_blocks,
        "block_size": answer.block_size_tokens,
        "unknown_model": answer.unknown_model,
        "degraded": answer.degraded,
        "coverage": answer.coverage,
        "missing_candidates": answer.missing_candidates,
        "block_size_mismatch": answer.block_size_mismatch,
        "endpoints": answer.endpoints.iter().map(endpoint_json).collect::<Vec<_>>(),
    })
}

/// One candidate's score as JSON; `explain` writes it too.
pub fn endpoint_json(e: &EndpointScore) -> Value {
    let f = e.freshness.unwrap_or_default();
    json!({
        "instance": e.instance_id,
        "dp_rank": e.dp_rank,
        "block_size": e.block_size_tokens,
        "cached_tokens": e.cached_tokens,
        "cached_blocks": e.cached_blocks,
        "by_tier": tiers_json(&e.by_tier),
        "cumulative_by_tier": tiers_json(&e.cumulative_by_tier),
        "weighted_blocks": e.weighted_blocks,
        "speculative_blocks": e.speculative_blocks,
        "mm_match_blocks": e.mm_match_blocks,
        "suspect_blocks": e.suspect_blocks,
        "state": state_name(f.state()),
        "complete": f.complete,
        "last_seq": f.last_seq,
        "staleness_ms": f.staleness_ms,
    })
}

fn tiers_json(counts: &[TierCount]) -> Value {
    counts.iter().map(|c| (tier_name(c.tier()).to_owned(), c.blocks.into())).collect::<Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvproto::rpc::kv::{Freshness, PublisherState};

    #[test]
    fn a_candidate_has_a_row_and_a_missing_one_a_line() {
        let endpoint = EndpointScore {
            instance_id: "10.0.0.1:8000".into(),
            block_size_tokens: 16,
            cached_blocks: 3,
            by_tier: vec![TierCount { tier: Tier::Cpu.into(), blocks: 2 }],
            weighted_blocks: 2.6,
            cached_tokens: 48,
            freshness: Some(Freshness {
                state: PublisherState::Live.into(),
                complete: true,
                ..Freshness::default()
            }),
            ..EndpointScore::default()
        };
        let answer = ScoreResponse {
            total_blocks: 4,
            block_size_tokens: 16,
            endpoints: vec![endpoint],
            missing_candidates: vec!["b".into()],
            ..ScoreResponse::default()
        };
        let mut out = Vec::new();
        write(&mut out, "llama", &answer, Paint::none()).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "llama: 4 blocks of 16 tokens\n\
             instance       rank  cached tokens  blocks  gpu  cpu  disk  shared  weighted  state\n\
             10.0.0.1:8000     0             48       3    0    2     0       0       2.6  live\n\
             b is not registered\n"
        );
        assert_eq!(as_json(&answer)["endpoints"][0]["by_tier"], json!({"cpu": 2}));
    }

    #[test]
    fn engines_with_other_blocks_are_told_apart_by_their_size() {
        let endpoint = |block_size_tokens| EndpointScore { block_size_tokens, ..EndpointScore::default() };
        let headings = |sizes: [u32; 2]| {
            let mut out = Vec::new();
            let endpoints = sizes.map(endpoint).into();
            let answer = ScoreResponse { endpoints, ..ScoreResponse::default() };
            write(&mut out, "m", &answer, Paint::none()).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert!(headings([32, 64]).contains("block size"));
        assert!(!headings([32, 32]).contains("block size"));
    }

    #[test]
    fn a_model_nobody_serves_is_said_so() {
        let mut out = Vec::new();
        let answer = ScoreResponse { unknown_model: true, ..ScoreResponse::default() };
        write(&mut out, "nope", &answer, Paint::none()).unwrap();
        assert!(String::from_utf8(out).unwrap().starts_with("no engine of model nope is registered"));
    }
}

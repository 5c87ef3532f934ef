//! `kvctl publishers`: whom does kvd follow, and how is that going?

use std::io::Write;

use clap::Args;
use kvproto::rpc::kv::{OutcomeVerdict, PublisherSpec, PublisherStatus};
use serde_json::{Value, json};

use crate::ctl::client::state_name;
use crate::ctl::term::{self, Align, Cell, Paint, Table, printable};
use crate::ctl::{Global, Outcome};

/// What `kvctl publishers` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvctl publishers
  kvctl publishers --model llama --json")]
pub struct ListArgs {
    /// Only of this model
    #[arg(long)]
    model: Option<String>,
    /// Only this instance
    #[arg(long)]
    instance: Option<String>,
}

/// Lists publishers.
pub async fn list(global: &Global, args: &ListArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let kvd = global.kvd().await?;
    let mut all = kvd.publishers().await?;
    all.retain(|p| {
        let spec = p.spec.clone().unwrap_or_default();
        args.model.as_ref().is_none_or(|m| *m == spec.model)
            && args.instance.as_ref().is_none_or(|i| *i == spec.instance_id)
    });
    if global.json {
        for p in &all {
            writeln!(out, "{}", as_json(p))?;
        }
    } else if all.is_empty() {
        writeln!(out, "no publishers; add one with `kvctl register`")?;
    } else {
        write_table(out, &all, global.paint(), term::width())?;
    }
    let named = args.model.is_some() || args.instance.is_some();
    Ok(if named && all.is_empty() { Outcome::Failed } else { Outcome::Ok })
}

/// Writes publishers in rows, and below them what went wrong last with each; `watch` does too
/// where there is no terminal.
pub fn write_table(
    out: &mut dyn Write,
    publishers: &[PublisherStatus],
    paint: Paint,
    width: usize,
) -> std::io::Result<()> {
    let columns = [
        ("instance", Align::Left),
        ("rank", Align::Right),
        ("model", Align::Left),
        ("state", Align::Left),
        ("last seq", Align::Right),
        ("batches", Align::Right),
        ("events", Align::Right),
        ("blocks", Align::Right),
        ("gaps", Align::Right),
        ("restarts", Align::Right),
        ("queued", Align::Right),
        ("dropped", Align::Right),
        ("silent", Align::Right),
        ("exact", Align::Right),
        ("source", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for p in publishers {
        let spec = p.spec.clone().unwrap_or_default();
        let f = p.freshness.unwrap_or_default();
        let state = Cell::painted(state_name(f.state()), if f.complete { Paint::good } else { Paint::odd });
        table.row([
            spec.instance_id.into(),
            spec.dp_rank.into(),
            spec.model.into(),
            state,
            f.last_seq.map_or("-".to_owned(), |n| n.to_string()).into(),
            p.batches.into(),
            p.events.into(),
            p.blocks.into(),
            p.gaps.into(),
            p.restarts.into(),
            p.queued.into(),
            p.dropped.into(),
            silence(f.last_seq.is_some(), f.silent_ms).into(),
            Cell::painted(exactness(p), if errors(p) > 0 { Paint::odd } else { |_, text| text.to_owned() }),
            p.source.clone().into(),
        ]);
    }
    table.write(out, paint, width)?;
    for p in publishers.iter().filter(|p| !p.last_error.is_empty()) {
        let spec = p.spec.clone().unwrap_or_default();
        let line = format!("{} rank {}: {}", spec.instance_id, spec.dp_rank, p.last_error);
        writeln!(out, "{}", paint.odd(&printable(&line)))?;
    }
    Ok(())
}

/// Outcomes of a publisher with one of these verdicts.
fn outcomes(p: &PublisherStatus, verdicts: &[OutcomeVerdict]) -> u64 {
    p.outcomes.iter().filter(|c| verdicts.contains(&c.verdict())).map(|c| c.reports).sum()
}

fn errors(p: &PublisherStatus) -> u64 {
    outcomes(p, &[OutcomeVerdict::TooLow, OutcomeVerdict::TooHigh])
}

/// How many of the reported outcomes that can be judged are no error of kvd's, in few characters.
fn exactness(p: &PublisherStatus) -> String {
    let right = [OutcomeVerdict::Exact, OutcomeVerdict::CameMeanwhile, OutcomeVerdict::LeftMeanwhile];
    let right = outcomes(p, &right);
    match right + errors(p) {
        0 => "-".to_owned(),
        // Rounded down, so that only what is whole looks whole.
        judged => format!("{}%", 100 * right / judged),
    }
}

/// How long nothing has come, in few characters.
pub fn silence(heard: bool, ms: u64) -> String {
    match ms {
        _ if !heard => "-".into(),
        0..1_000 => format!("{ms}ms"),
        1_000..100_000 => format!("{}s", ms / 1_000),
        100_000..6_000_000 => format!("{}m", ms / 60_000),
        _ => format!("{}h", ms / 3_600_000),
    }
}

/// A publisher as JSON.
pub fn as_json(p: &PublisherStatus) -> Value {
    let f = p.freshness.unwrap_or_default();
    let mut out = spec_json(&p.spec.clone().unwrap_or_default());
    for (name, value) in [
        ("state", state_name(f.state()).into()),
        ("complete", f.complete.into()),
        ("last_seq", f.last_seq.into()),
        ("silent_ms", f.silent_ms.into()),
        ("staleness_ms", f.staleness_ms.into()),
        ("batches", p.batches.into()),
        ("events", p.events.into()),
        ("blocks", p.blocks.into()),
        ("gaps", p.gaps.into()),
        ("restarts", p.restarts.into()),
        ("replays", p.replays.into()),
        ("malformed", p.malformed.into()),
        ("dropped", p.dropped.into()),
        ("queued", p.queued.into()),
        ("observed_block_size", p.observed_block_size.into()),
        ("suspect_blocks", p.suspect_blocks.into()),
        ("losses", p.losses.into()),
        ("misranked", p.misranked.into()),
        ("deaths", p.deaths.into()),
        ("outcomes", outcomes_json(p)),
        ("distrusted_blocks", p.distrusted_blocks.into()),
        ("source", p.source.as_str().into()),
        ("source_object", p.source_object.as_str().into()),
        ("last_error", Value::from(p.last_error.as_str())),
    ] {
        out[name] = value;
    }
    out
}

fn outcomes_json(p: &PublisherStatus) -> Value {
    let of = |verdict| outcomes(p, &[verdict]);
    json!({
        "exact": of(OutcomeVerdict::Exact), "came_meanwhile": of(OutcomeVerdict::CameMeanwhile),
        "left_meanwhile": of(OutcomeVerdict::LeftMeanwhile), "too_low": of(OutcomeVerdict::TooLow),
        "too_high": of(OutcomeVerdict::TooHigh), "unclear": of(OutcomeVerdict::Unclear),
        "too_low_tokens": p.too_low_tokens, "too_high_tokens": p.too_high_tokens,
    })
}

/// A registration as JSON.
pub fn spec_json(s: &PublisherSpec) -> Value {
    json!({
        "tenant": s.tenant_id, "model": s.model, "instance": s.instance_id, "dp_rank": s.dp_rank,
        "type": s.r#type, "endpoint": s.endpoint, "replay_endpoint": s.replay_endpoint,
        "bind": s.bind, "topic": s.topic, "block_size": s.block_size, "lora_name": s.lora_name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvproto::rpc::kv::{Freshness, OutcomeCount, PublisherState};

    #[test]
    fn a_publisher_has_a_row_and_its_trouble_a_line() {
        let spec = PublisherSpec { instance_id: "a:1".into(), model: "m".into(), ..PublisherSpec::default() };
        let freshness =
            Freshness { state: PublisherState::Partial.into(), last_seq: Some(9), ..Freshness::default() };
        let p = PublisherStatus {
            spec: Some(spec),
            freshness: Some(freshness),
            batches: 10,
            last_error: "gap".into(),
            ..PublisherStatus::default()
        };
        let mut out = Vec::new();
        write_table(&mut out, std::slice::from_ref(&p), Paint::none(), 200).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.lines().nth(1).unwrap().starts_with("a:1          0  m      partial         9       10"),
            "{text}"
        );
        assert!(text.ends_with("a:1 rank 0: gap\n"), "{text}");
        assert_eq!((&as_json(&p)["last_seq"], &as_json(&p)["state"]), (&json!(9), &json!("partial")));
    }

    #[test]
    fn outcomes_are_a_part_and_errors_do_not_round_away() {
        let of = |verdict: OutcomeVerdict, reports| OutcomeCount { verdict: verdict.into(), reports };
        let status = |outcomes| PublisherStatus { outcomes, ..PublisherStatus::default() };
        assert_eq!(exactness(&status(vec![])), "-");
        assert_eq!(exactness(&status(vec![of(OutcomeVerdict::Unclear, 3)])), "-");
        let many = status(vec![of(OutcomeVerdict::Exact, 999), of(OutcomeVerdict::TooLow, 1)]);
        assert_eq!((exactness(&many), errors(&many)), ("99%".to_owned(), 1));
        assert_eq!(as_json(&many)["outcomes"]["too_low"], json!(1));
    }

    #[test]
    fn silence_is_said_in_few_characters() {
        let said = [0, 999, 1_000, 99_999, 100_000, 6_000_000].map(|ms| silence(true, ms));
        assert_eq!(said, ["0ms", "999ms", "1s", "99s", "1m", "1h"]);
        assert_eq!(silence(false, 5), "-");
    }
}

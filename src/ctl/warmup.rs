//! `kvctl warmup`: is it known again what the engines hold?

use std::io::Write;
use std::time::{Duration, Instant};

use clap::Args;
use kvproto::rpc::kv::{GetWarmupRequest, GetWarmupResponse, WarmupStage};
use serde_json::{Value, json};

use crate::ctl::client::state_name;
use crate::ctl::term::{self, Align, Paint, Table, printable};
use crate::ctl::{Global, Outcome};

/// How often it is asked while waiting.
const EVERY: Duration = Duration::from_millis(100);

/// What `kvctl warmup` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvctl warmup
  kvctl warmup --wait 60s

Exit codes: 0 schedulers may ask, 1 not yet.")]
pub struct WarmupArgs {
    /// Wait until schedulers may ask, at most so long
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
}

/// Asks and prints.
pub async fn run(global: &Global, args: &WarmupArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let kvd = global.kvd().await?;
    let until = args.wait.map(|wait| Instant::now() + wait);
    let warmup = loop {
        let asked = kvd.admin().get_warmup(GetWarmupRequest {}).await;
        let warmup = asked.map_err(|s| kvd.failed("read how warming up goes", s))?.into_inner();
        if warmup.ready || until.is_none_or(|at| Instant::now() >= at) {
            break warmup;
        }
        tokio::time::sleep(EVERY).await;
    };
    if global.json {
        writeln!(out, "{}", as_json(&warmup))?;
    } else {
        write(out, &warmup, global.paint())?;
    }
    Ok(if warmup.ready { Outcome::Ok } else { Outcome::Failed })
}

fn write(out: &mut dyn Write, w: &GetWarmupResponse, paint: Paint) -> std::io::Result<()> {
    let up = humantime::format_duration(Duration::from_millis(w.uptime_ms / 100 * 100));
    let limit = humantime::format_duration(Duration::from_millis(w.limit_ms));
    let what = match w.stage() {
        WarmupStage::Unspecified => "kvd does not say".to_owned(),
        WarmupStage::Restoring => "what was known before is still being fetched".to_owned(),
        WarmupStage::Discovering => {
            format!("it is not known yet which publishers there are, waiting at most {limit}")
        }
        WarmupStage::Warming => format!("waiting for {} publishers, at most {limit}", w.waiting.len()),
        WarmupStage::Warm => "every publisher is followed from a proven place".to_owned(),
        WarmupStage::GivenUp => {
            format!(
                "{} publishers did not come within {limit}; answers about them are degraded",
                w.waiting.len()
            )
        }
    };
    let head = format!("{}, up for {up}: {what}", stage_name(w.stage()));
    writeln!(out, "{}", if w.stage() == WarmupStage::Warm { paint.good(&head) } else { paint.odd(&head) })?;
    if !w.restored_from.is_empty() {
        let from = printable(&w.restored_from);
        writeln!(out, "from {from}: {} publishers, {} blocks", w.restored_publishers, w.restored_blocks)?;
    }
    if w.waiting.is_empty() {
        return Ok(());
    }
    let columns = [
        ("instance", Align::Left),
        ("rank", Align::Right),
        ("state", Align::Left),
        ("last seq", Align::Right),
        ("replay", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for p in &w.waiting {
        let (spec, f) = (p.spec.clone().unwrap_or_default(), p.freshness.unwrap_or_default());
        table.row([
            spec.instance_id.into(),
            spec.dp_rank.into(),
            state_name(f.state()).into(),
            f.last_seq.map_or("-".to_owned(), |n| n.to_string()).into(),
            spec.replay_endpoint.into(),
        ]);
    }
    table.write(out, paint, term::width())
}

fn stage_name(stage: WarmupStage) -> &'static str {
    match stage {
        WarmupStage::Unspecified => "unknown",
        WarmupStage::Restoring => "restoring",
        WarmupStage::Discovering => "discovering",
        WarmupStage::Warming => "warming",
        WarmupStage::Warm => "warm",
        WarmupStage::GivenUp => "given up",
    }
}

fn as_json(w: &GetWarmupResponse) -> Value {
    let waiting = w.waiting.iter().map(|p| {
        let (spec, f) = (p.spec.clone().unwrap_or_default(), p.freshness.unwrap_or_default());
        json!({
            "tenant": spec.tenant_id, "model": spec.model, "instance": spec.instance_id, "dp_rank": spec.dp_rank,
            "state": state_name(f.state()), "last_seq": f.last_seq,
        })
    });
    json!({
        "stage": stage_name(w.stage()).replace(' ', "_"), "ready": w.ready, "uptime_ms": w.uptime_ms,
        "limit_ms": w.limit_ms, "restored_from": w.restored_from, "restored_publishers": w.restored_publishers,
        "restored_blocks": w.restored_blocks, "waiting": waiting.collect::<Vec<_>>(),
    })
}

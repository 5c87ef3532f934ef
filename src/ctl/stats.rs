//! `kvctl stats`: what does the whole of kvd hold and do?

use std::io::Write;
use std::time::Duration;

use kvproto::rpc::kv::{StatsRequest, StatsResponse};
use serde_json::{Value, json};

use crate::ctl::term::{self, Align, Paint, Table};
use crate::ctl::{Global, Outcome};

/// Asks and prints.
pub async fn run(global: &Global, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let kvd = global.kvd().await?;
    let stats =
        kvd.admin().stats(StatsRequest {}).await.map_err(|s| kvd.failed("read stats", s))?.into_inner();
    if global.json {
        writeln!(out, "{}", as_json(&stats))?;
    } else {
        write(out, &stats, global.paint())?;
    }
    Ok(Outcome::Ok)
}

fn write(out: &mut dyn Write, s: &StatsResponse, paint: Paint) -> std::io::Result<()> {
    let up = Duration::from_secs(s.uptime_ms / 1000);
    let mut table = Table::new(&[("kvd", Align::Left), ("", Align::Right)]);
    table.row(["version".into(), s.version.as_str().into()]);
    table.row(["up for".into(), humantime::format_duration(up).into()]);
    for (name, value) in [
        ("publishers", s.publishers),
        ("publishers live", s.live_publishers),
        ("distinct blocks", s.blocks),
        ("blocks over all holders", s.entries),
        ("speculative blocks", s.speculative_entries),
        ("queries", s.queries),
        ("batches applied", s.batches),
        ("events applied", s.events),
        ("events skipped", s.events_skipped),
        ("messages dropped", s.messages_dropped),
    ] {
        table.row([name.into(), value.into()]);
    }
    table.write(out, paint, term::width())
}

fn as_json(s: &StatsResponse) -> Value {
    json!({
        "version": s.version, "uptime_ms": s.uptime_ms, "publishers": s.publishers,
        "live_publishers": s.live_publishers, "blocks": s.blocks, "entries": s.entries,
        "speculative_entries": s.speculative_entries, "queries": s.queries, "batches": s.batches,
        "events": s.events, "events_skipped": s.events_skipped, "messages_dropped": s.messages_dropped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_stand_beside_their_names() {
        let stats = StatsResponse {
            version: "0.1.0".into(),
            uptime_ms: 61_999,
            queries: 7,
            ..StatsResponse::default()
        };
        let mut out = Vec::new();
        write(&mut out, &stats, Paint::none()).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("up for                   1m 1s\n"), "{text}");
        assert!(text.contains("queries                      7\n"), "{text}");
        assert_eq!(as_json(&stats)["uptime_ms"], 61_999);
    }
}

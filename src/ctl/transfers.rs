//! `kvctl transfers`: which transfers are under way, and what became of them?

use std::io::Write;

use clap::Args;
use kvproto::rpc::kv;

use crate::ctl::client::Kvd;
use crate::ctl::term::{self, Align, Cell, Paint, Table};
use crate::ctl::{Global, Outcome, UsageError};
use crate::wall::unix_ms;

/// What `kvctl transfers` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvctl transfers --state ready
  kvctl transfers --instance 10.0.0.1:8000 --limit 20
  kvctl transfers --watch
  kvctl transfers --cancel 0f8e3c5d9a1b2c3d4e5f60718293a4b5")]
pub struct TransfersArgs {
    /// Only those in this state; may be given several times
    #[arg(long, value_name = "STATE")]
    state: Vec<String>,
    /// Only those that this instance takes part in
    #[arg(long, default_value = "", hide_default_value = true)]
    instance: String,
    /// Only those of this model
    #[arg(long, default_value = "", hide_default_value = true)]
    model: String,
    /// How many, the latest first
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Write what happens from now on, until interrupted
    #[arg(long, conflicts_with_all = ["state", "cancel"])]
    watch: bool,
    /// End this one
    #[arg(long, value_name = "ID")]
    cancel: Option<String>,
}

/// Asks and prints.
pub async fn run(global: &Global, args: &TransfersArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let kvd = global.kvd().await?;
    if let Some(id) = &args.cancel {
        let request = kv::CancelTransferRequest { transfer_id: id.clone(), ..Default::default() };
        let reply = kvd.transfers().cancel_transfer(request).await;
        let reply = reply.map_err(|s| kvd.failed(format!("cancel {id}"), s))?.into_inner();
        let shown: Vec<_> = reply.transfer.into_iter().collect();
        write(out, &shown, global, unix_ms())?;
        return Ok(if reply.applied { Outcome::Ok } else { Outcome::Failed });
    }
    if args.watch {
        return watch(global, args, &kvd, out).await;
    }
    let request = kv::ListTransfersRequest {
        states: args.state.iter().map(|s| read_state(s)).collect::<Result<_, _>>()?,
        instance_id: args.instance.clone(),
        model: args.model.clone(),
        limit: args.limit,
        page_token: String::new(),
    };
    let answer = kvd.transfers().list_transfers(request).await;
    let answer = answer.map_err(|s| kvd.failed("list transfers", s))?.into_inner();
    write(out, &answer.transfers, global, unix_ms())?;
    Ok(Outcome::Ok)
}

async fn watch(
    global: &Global,
    args: &TransfersArgs,
    kvd: &Kvd,
    out: &mut dyn Write,
) -> anyhow::Result<Outcome> {
    let request = kv::WatchTransfersRequest {
        instance_id: args.instance.clone(),
        request_id: String::new(),
        include_live: true,
    };
    let events = kvd.transfers().watch_transfers(request).await;
    let mut events = events.map_err(|s| kvd.failed("watch transfers", s))?.into_inner();
    while let Some(event) = events.message().await.map_err(|s| kvd.failed("watch transfers", s))? {
        if global.json {
            writeln!(out, "{}", serde_json::to_string(&event)?)?;
        } else {
            writeln!(out, "{}", line(&event))?;
        }
        out.flush()?;
    }
    Ok(Outcome::Ok)
}

fn line(event: &kv::TransferEvent) -> String {
    use kv::transfer_event::Kind;
    let t = event.transfer.clone().unwrap_or_default();
    let what = match event.kind() {
        Kind::State => {
            format!(
                "{}{}",
                state_name(t.state()),
                if t.cause.is_empty() { String::new() } else { format!(" ({})", t.cause) }
            )
        }
        Kind::Stranded => {
            let pod = pod(event.pod.as_ref());
            format!("STRANDED {} on {pod}, kept for {} ms more", bytes(event.bytes), event.lease_left_ms)
        }
        Kind::PlanStale => "PLAN STALE".to_owned(),
        Kind::LeaseEnding => format!("LEASE ENDING in {} ms", event.lease_left_ms),
        Kind::Lost => format!("{} events lost", event.lost),
        Kind::Unspecified => "?".to_owned(),
    };
    term::printable(&format!("{} {} attempt {}: {what}", t.transfer_id, t.request_id, t.attempt))
}

fn write(out: &mut dyn Write, all: &[kv::Transfer], global: &Global, now: u64) -> anyhow::Result<()> {
    if global.json {
        for transfer in all {
            writeln!(out, "{}", serde_json::to_string(transfer)?)?;
        }
        return Ok(());
    }
    let columns = [
        ("transfer", Align::Left),
        ("state", Align::Left),
        ("try", Align::Right),
        ("age", Align::Right),
        ("ends in", Align::Right),
        ("prefill", Align::Left),
        ("decode", Align::Left),
        ("moves", Align::Right),
        ("kept by", Align::Left),
        ("cause", Align::Left),
        ("request", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for t in all {
        let choice = t.choice.clone().unwrap_or_default();
        let moved = choice.legs.iter().map(|l| l.bytes).sum();
        let live = t.state_deadline_at_ms > 0;
        let deadline = t.state_deadline_at_ms.min(t.overall_deadline_at_ms).saturating_sub(now);
        let state = state_name(t.state());
        let paint = match t.state() {
            kv::TransferState::Failed | kv::TransferState::Expired => Paint::bad,
            _ => |_: Paint, text: &str| text.to_owned(),
        };
        table.row([
            t.transfer_id.as_str().into(),
            Cell::painted(if t.stale { format!("{state} stale") } else { state.to_owned() }, paint),
            t.attempt.into(),
            seconds(now.saturating_sub(t.planned_at_ms)).into(),
            if live { seconds(deadline) } else { String::new() }.into(),
            pod(choice.prefill.as_ref()).into(),
            pod(choice.decode.as_ref()).into(),
            bytes(moved).into(),
            enforcement_name(t.enforcement()).into(),
            t.cause.as_str().into(),
            t.request_id.as_str().into(),
        ]);
    }
    table.write(out, global.paint(), term::width())?;
    Ok(())
}

fn read_state(name: &str) -> Result<i32, UsageError> {
    let full = format!("TRANSFER_STATE_{}", name.to_ascii_uppercase());
    let state = kv::TransferState::from_str_name(&full).filter(|s| *s != kv::TransferState::Unspecified);
    state.map(i32::from).ok_or_else(|| {
        UsageError(format!(
            "--state {name}: use planned, prefilling, ready, pulling, done, failed, expired, cancelled or superseded"
        ))
    })
}

fn state_name(state: kv::TransferState) -> &'static str {
    match state {
        kv::TransferState::Unspecified => "unknown",
        kv::TransferState::Planned => "planned",
        kv::TransferState::Prefilling => "prefilling",
        kv::TransferState::Ready => "ready",
        kv::TransferState::Pulling => "pulling",
        kv::TransferState::Done => "done",
        kv::TransferState::Failed => "failed",
        kv::TransferState::Expired => "expired",
        kv::TransferState::Cancelled => "cancelled",
        kv::TransferState::Superseded => "superseded",
    }
}

pub(super) fn enforcement_name(enforcement: kv::Enforcement) -> &'static str {
    match enforcement {
        kv::Enforcement::Unspecified => "unknown",
        kv::Enforcement::Advisory => "nobody",
        kv::Enforcement::EngineAcked => "engine",
        kv::Enforcement::Enforced => "kvd",
    }
}

/// An instance, and its rank where it has several.
pub(super) fn pod(pod: Option<&kv::RoutedEndpoint>) -> String {
    match pod {
        None => "-".to_owned(),
        Some(p) if p.dp_rank == 0 => p.instance_id.clone(),
        Some(p) => format!("{}#{}", p.instance_id, p.dp_rank),
    }
}

/// Bytes, for people.
pub(super) fn bytes(n: u64) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..0x10_0000 => format!("{:.1} KiB", n as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", n as f64 / (1 << 20) as f64),
        _ => format!("{:.1} GiB", n as f64 / (1 << 30) as f64),
    }
}

fn seconds(ms: u64) -> String {
    format!("{:.1} s", ms as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        assert_eq!(
            [0, 1023, 1536, 5 << 20, 3 << 30].map(bytes),
            ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 GiB"]
        );
    }

    #[test]
    fn an_event_is_a_line() {
        let transfer = kv::Transfer {
            transfer_id: "ab".into(),
            request_id: "r\n1".into(),
            attempt: 2,
            state: kv::TransferState::Expired.into(),
            cause: "never_pulled".into(),
            ..kv::Transfer::default()
        };
        let mut event = kv::TransferEvent {
            kind: kv::transfer_event::Kind::State.into(),
            transfer: Some(transfer),
            ..kv::TransferEvent::default()
        };
        assert_eq!(line(&event), "ab r\u{fffd}1 attempt 2: expired (never_pulled)");
        event.kind = kv::transfer_event::Kind::Stranded.into();
        event.pod = Some(kv::RoutedEndpoint { instance_id: "p:1".into(), dp_rank: 1 });
        (event.bytes, event.lease_left_ms) = (1 << 30, 28_000);
        assert!(line(&event).ends_with("STRANDED 1.0 GiB on p:1#1, kept for 28000 ms more"));
    }

    #[test]
    fn a_state_that_is_none_is_named() {
        assert_eq!(read_state("ready").unwrap(), i32::from(kv::TransferState::Ready));
        assert!(read_state("unspecified").is_err() && read_state("x").unwrap_err().0.contains("--state x"));
    }
}

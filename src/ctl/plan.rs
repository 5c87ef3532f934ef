//! `kvctl plan`: how would a prompt be served, and why? Nothing is reserved.

use std::io::Write;
use std::time::Duration;

use clap::{Args, ValueEnum};
use kvproto::rpc::kv;

use crate::ctl::client::tier_name;
use crate::ctl::prompt::PromptArgs;
use crate::ctl::term::{self, Align, Paint, Table};
use crate::ctl::transfers::{bytes, pod};
use crate::ctl::{Global, Outcome};

/// What `kvctl plan` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvctl plan --model llama --tokens-file prompt.json
  kvctl plan --model llama --tokens-file prompt.json --decode 10.0.0.2:8000 --pods 10.0.0.1:8000,10.0.0.2:8000
  kvctl plan --model llama --tokens-file prompt.json --purpose pull --decode 10.0.0.2:8000")]
pub struct PlanArgs {
    #[command(flatten)]
    prompt: PromptArgs,
    /// Pods that may be used (default: all of the model)
    #[arg(long, value_delimiter = ',', value_name = "INSTANCE,...")]
    pods: Vec<String>,
    /// The pod that decodes, or pulls, where that is settled
    #[arg(long, default_value = "", hide_default_value = true, value_name = "INSTANCE")]
    decode: String,
    /// What for
    #[arg(long, value_enum, default_value = "prefill-decode")]
    purpose: Purpose,
    /// How blocks travel
    #[arg(long, value_enum, default_value = "nixl-pull")]
    connector: Connector,
    /// Tokens of the prompt, where it is given by --hashes
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "TOKENS")]
    prompt_tokens: u64,
    /// Write what would be sent to the engines, too
    #[arg(long)]
    artefacts: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Purpose {
    PrefillDecode,
    Pull,
    Migrate,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Connector {
    NixlPull,
    NixlPush,
    Mooncake,
    Offloading,
    Sglang,
}

/// Asks and prints.
pub async fn run(global: &Global, args: &PlanArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let scored = args.prompt.request(vec![])?;
    let pods = args.pods.iter().map(|p| kv::TransferPod { instance_id: p.clone(), ..Default::default() });
    let request = kv::PlanTransferRequest {
        request_id: "kvctl".to_owned(),
        purpose: match args.purpose {
            Purpose::PrefillDecode => kv::TransferPurpose::PrefillDecode,
            Purpose::Pull => kv::TransferPurpose::Pull,
            Purpose::Migrate => kv::TransferPurpose::Migrate,
        }
        .into(),
        model: scored.model,
        tenant_id: scored.tenant_id,
        prompt: scored.prompt,
        block_size: scored.block_size,
        prompt_tokens: args.prompt_tokens,
        pods: pods.collect(),
        decode_instance_id: args.decode.clone(),
        connector: match args.connector {
            Connector::NixlPull => kv::TransferConnector::NixlPull,
            Connector::NixlPush => kv::TransferConnector::NixlPush,
            Connector::Mooncake => kv::TransferConnector::Mooncake,
            Connector::Offloading => kv::TransferConnector::Offloading,
            Connector::Sglang => kv::TransferConnector::Sglang,
        }
        .into(),
        ..kv::PlanTransferRequest::default()
    };
    let kvd = global.kvd().await?;
    let answer = kvd.transfers().estimate_transfer(request).await;
    let answer = answer.map_err(|s| kvd.failed("plan", s))?.into_inner();
    if global.json {
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
    } else {
        write(out, &answer, args.artefacts, global.paint())?;
    }
    Ok(Outcome::Ok)
}

fn write(
    out: &mut dyn Write,
    answer: &kv::EstimateTransferResponse,
    artefacts: bool,
    paint: Paint,
) -> std::io::Result<()> {
    let choice = answer.choice.clone().unwrap_or_default();
    writeln!(out, "{}: {}", answer.reason, term::printable(&answer.explanation))?;
    let columns = [
        ("way", Align::Left),
        ("prefill", Align::Left),
        ("decode", Align::Left),
        ("first token", Align::Right),
        ("queue", Align::Right),
        ("pull", Align::Right),
        ("prefill", Align::Right),
        ("setup", Align::Right),
        ("handover", Align::Right),
        ("moves", Align::Left),
    ];
    let mut table = Table::new(&columns);
    for choice in std::iter::once(&choice).chain(&answer.alternatives) {
        let e = choice.estimate.unwrap_or_default();
        let legs: Vec<String> = choice.legs.iter().map(leg).collect();
        table.row([
            way(choice.decision()).into(),
            pod(choice.prefill.as_ref()).into(),
            pod(choice.decode.as_ref()).into(),
            ms(e.total_us).into(),
            ms(e.queue_us).into(),
            ms(e.pull_us).into(),
            ms(e.prefill_us).into(),
            ms(e.setup_us).into(),
            ms(e.handover_us).into(),
            legs.join(", ").into(),
        ]);
    }
    table.write(out, paint, term::width())?;
    let local = choice.estimate.unwrap_or_default().local_us;
    writeln!(out, "without moving anything: {}", ms(local))?;
    if let Some(a) = answer.artefacts.as_ref().filter(|_| artefacts) {
        let mut headers: Vec<_> = a.headers.iter().collect();
        headers.sort();
        for (name, value) in headers {
            writeln!(out, "{name}: {}", term::printable(value))?;
        }
        for (name, text) in [
            ("prefill kv_transfer_params", &a.prefill_kv_transfer_params),
            ("decode kv_transfer_params", &a.decode_kv_transfer_params),
            ("kv_hints", &a.kv_hints),
            ("body", &a.body),
        ] {
            if !text.is_empty() {
                writeln!(out, "{name}: {}", term::printable(text))?;
            }
        }
    }
    Ok(())
}

fn leg(leg: &kv::TransferLeg) -> String {
    let (from, to) = (pod(leg.from.as_ref()), pod(leg.to.as_ref()));
    format!("{} ({} tokens) {from} {} → {to}", bytes(leg.bytes), leg.tokens, tier_name(leg.tier()))
}

fn way(decision: kv::TransferDecision) -> &'static str {
    match decision {
        kv::TransferDecision::Unspecified => "unknown",
        kv::TransferDecision::Local => "local",
        kv::TransferDecision::Disagg => "disaggregated",
        kv::TransferDecision::Pull => "pull",
        kv::TransferDecision::DisaggWithPull => "pull, then disaggregated",
        kv::TransferDecision::Busy => "busy",
    }
}

fn ms(us: u64) -> String {
    let d = Duration::from_micros(us);
    if us == 0 { "-".to_owned() } else { format!("{:.1} ms", d.as_secs_f64() * 1e3) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_says_what_moves_and_what_it_takes() {
        let routed = |i: &str| Some(kv::RoutedEndpoint { instance_id: i.into(), dp_rank: 0 });
        let answer = kv::EstimateTransferResponse {
            choice: Some(kv::TransferChoice {
                decision: kv::TransferDecision::Disagg.into(),
                prefill: routed("p:1"),
                decode: routed("d:1"),
                legs: vec![kv::TransferLeg {
                    from: routed("p:1"),
                    to: routed("d:1"),
                    tier: kv::Tier::Gpu.into(),
                    tokens: 8192,
                    bytes: 1 << 30,
                    ..kv::TransferLeg::default()
                }],
                estimate: Some(kv::TransferEstimate {
                    total_us: 512_300,
                    local_us: 2_000_000,
                    ..Default::default()
                }),
            }),
            reason: "faster".into(),
            explanation: "saves 1.5 s".into(),
            ..kv::EstimateTransferResponse::default()
        };
        let mut out = Vec::new();
        write(&mut out, &answer, true, Paint::none()).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("faster: saves 1.5 s\n"), "{text}");
        assert!(text.contains("512.3 ms") && text.contains("1.0 GiB (8192 tokens) p:1 gpu → d:1"), "{text}");
        assert!(text.ends_with("without moving anything: 2000.0 ms\n"), "{text}");
    }
}

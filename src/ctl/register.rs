//! `kvctl register` and `unregister`: whom shall kvd follow?

use std::io::Write;

use clap::Args;
use kvproto::rpc::kv::{PublisherSpec, RegisterPublisherRequest, UnregisterPublisherRequest};
use serde_json::json;

use crate::ctl::publishers::spec_json;
use crate::ctl::term::printable;
use crate::ctl::{Global, Outcome};

/// What `kvctl register` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvctl register --model llama --instance 10.0.0.1:8000 --endpoint tcp://10.0.0.1:5557 \\
        --replay-endpoint tcp://10.0.0.1:5558 --block-size 16
  kvctl register --model llama --instance 10.0.0.1:8000 --bind 'tcp://*:5557' \\
        --topic kv@10.0.0.1:8000@llama

The same tenant, model, instance and rank with another endpoint replaces the old one.")]
pub struct RegisterArgs {
    /// Model name
    #[arg(long)]
    model: String,
    /// What a scheduler routes to, usually IP:PORT
    #[arg(long)]
    instance: String,
    /// Data-parallel rank
    #[arg(long, default_value_t = 0)]
    rank: u32,
    /// Tenant
    #[arg(long, default_value = "default")]
    tenant: String,
    /// What publishes: vLLM, SGLang, Mooncake
    #[arg(long, default_value = "vLLM", value_name = "ENGINE")]
    r#type: String,
    /// Where the engine publishes, tcp://HOST:PORT
    #[arg(long, required_unless_present = "bind", conflicts_with = "bind", value_name = "ADDR")]
    endpoint: Option<String>,
    /// Where to ask for what was missed, tcp://HOST:PORT
    #[arg(long, value_name = "ADDR")]
    replay_endpoint: Option<String>,
    /// Where kvd listens for an engine that dials in, tcp://*:PORT
    #[arg(long, value_name = "ADDR")]
    bind: Option<String>,
    /// The engine's exact topic, where several share a socket
    #[arg(long)]
    topic: Option<String>,
    /// Tokens per block that are expected; the events decide
    #[arg(long, value_name = "TOKENS")]
    block_size: Option<u32>,
    /// Adapter of events that name none
    #[arg(long)]
    lora: Option<String>,
    /// The deployment's salt
    #[arg(long, value_name = "SALT")]
    additional_salt: Option<String>,
    /// Tokens per chunk of chunked local attention
    #[arg(long, value_name = "TOKENS")]
    attention_chunk_size: Option<u32>,
    /// The engine's block-hash algorithm, for models without full attention
    #[arg(long, value_name = "ALGO")]
    hash_algo: Option<String>,
    /// The engine's PYTHONHASHSEED
    #[arg(long, value_name = "SEED")]
    hash_seed: Option<String>,
    /// The machine it runs on; with --type kvtier, the one whose tiers it is
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Where the engine says whether it is well
    #[arg(long, value_name = "URL")]
    health_url: Option<String>,
    /// How long the registration holds unless it is made again
    #[arg(long, value_name = "SECONDS")]
    lease_seconds: Option<u32>,
    /// With --type kvtier, where the node's `kvd tier` answers gRPC
    #[arg(long, value_name = "HOST:PORT")]
    control_endpoint: Option<String>,
    /// With --type kvtier, where other nodes pull from it
    #[arg(long, value_name = "HOST:PORT")]
    pull_endpoint: Option<String>,
}

/// What `kvctl unregister` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvctl unregister --instance 10.0.0.1:8000
  kvctl unregister --instance 10.0.0.1:8000 --model llama --rank 1

Exit code 1 if nothing of that name is registered.")]
pub struct UnregisterArgs {
    /// The instance, as registered
    #[arg(long)]
    instance: String,
    /// Only of this model
    #[arg(long)]
    model: Option<String>,
    /// Tenant
    #[arg(long, default_value = "default")]
    tenant: String,
    /// Only this rank
    #[arg(long)]
    rank: Option<u32>,
}

/// Registers one publisher.
pub async fn register(global: &Global, args: &RegisterArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let kvd = global.kvd().await?;
    let request = RegisterPublisherRequest { publisher: Some(args.spec()) };
    let what = || format!("register {} rank {}", args.instance, args.rank);
    let answer = kvd.ingest().register_publisher(request).await.map_err(|s| kvd.failed(what(), s))?;
    let replaced = answer.into_inner().replaced;
    if global.json {
        writeln!(out, "{}", json!({"instance": args.instance, "dp_rank": args.rank, "replaced": replaced}))?;
    } else {
        let how = if replaced { "replaced" } else { "registered" };
        writeln!(out, "{how} {} rank {} of {}", args.instance, args.rank, args.model)?;
    }
    Ok(Outcome::Ok)
}

/// Removes what is named.
pub async fn unregister(
    global: &Global,
    args: &UnregisterArgs,
    out: &mut dyn Write,
) -> anyhow::Result<Outcome> {
    let kvd = global.kvd().await?;
    let request = UnregisterPublisherRequest {
        tenant_id: args.tenant.clone(),
        model: args.model.clone().unwrap_or_default(),
        instance_id: args.instance.clone(),
        dp_rank: args.rank,
    };
    let what = || format!("unregister {}", args.instance);
    let removed = match kvd.ingest().unregister_publisher(request).await {
        Ok(answer) => answer.into_inner().removed,
        Err(s) if s.code() == tonic::Code::NotFound => Vec::new(),
        Err(s) => return Err(kvd.failed(what(), s).into()),
    };
    for spec in &removed {
        if global.json {
            writeln!(out, "{}", spec_json(spec))?;
        } else {
            let line = format!("unregistered {} rank {} of {}", spec.instance_id, spec.dp_rank, spec.model);
            writeln!(out, "{}", printable(&line))?;
        }
    }
    if removed.is_empty() {
        eprintln!("error: unregister {}: not registered; see `kvctl publishers`", args.instance);
        return Ok(Outcome::Failed);
    }
    Ok(Outcome::Ok)
}

impl RegisterArgs {
    fn spec(&self) -> PublisherSpec {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        PublisherSpec {
            tenant_id: self.tenant.clone(),
            model: self.model.clone(),
            instance_id: self.instance.clone(),
            dp_rank: self.rank,
            r#type: self.r#type.clone(),
            endpoint: text(&self.endpoint),
            replay_endpoint: text(&self.replay_endpoint),
            block_size: self.block_size.unwrap_or(0),
            lora_name: text(&self.lora),
            additional_salt: text(&self.additional_salt),
            bind: text(&self.bind),
            topic: text(&self.topic),
            attention_chunk_size: self.attention_chunk_size.unwrap_or(0),
            hash_algo: text(&self.hash_algo),
            hash_seed: text(&self.hash_seed),
            node: text(&self.node),
            health_url: text(&self.health_url),
            lease_seconds: self.lease_seconds.unwrap_or(0),
            control_endpoint: text(&self.control_endpoint),
            pull_endpoint: text(&self.pull_endpoint),
        }
    }
}

//! What may be typed to start kvd?
//!
//! Flags win over the environment, the environment over the file, the file over the
//! defaults. What is typed here is checked in [`crate::config`].

use std::ffi::OsString;

use clap::{Parser, Subcommand};

/// The command line of `kvd`.
#[derive(Debug, Parser)]
#[command(
    name = "kvd",
    version,
    about = "Which pod holds which prefix: the KV-cache index of an LLM-serving cluster"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `kvd` does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Follows engines and answers over gRPC and HTTP until it is told to stop.
    Serve(Args),
    /// Runs this node's tiers below the GPU until it is told to stop.
    Tier(crate::tier::TierArgs),
    /// Checks the configuration as `serve` would, and says what it comes to.
    CheckConfig(Args),
}

/// Settings as they were typed. What is left out, or empty in the environment, is taken from the
/// file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// TOML file with every other setting; deploy/kvd.example.toml documents them.
    #[arg(long, env = "KVD_CONFIG", value_name = "FILE")]
    pub config: Option<OsString>,
    /// Where to answer gRPC, host:port; port 0 takes a free one.
    #[arg(long, env = "KVD_GRPC_LISTEN", value_name = "ADDR")]
    pub grpc_listen: Option<String>,
    /// Where to answer HTTP, host:port; port 0 takes a free one.
    #[arg(long, env = "KVD_HTTP_LISTEN", value_name = "ADDR")]
    pub http_listen: Option<String>,
    /// Where to answer health checks alone (grpc.health.v1, never by TLS), host:port.
    #[arg(long, env = "KVD_HEALTH_LISTEN", value_name = "ADDR")]
    pub health_listen: Option<String>,
    /// Keeps registrations here, so that they survive a restart; empty = in memory only.
    #[arg(long, env = "KVD_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<OsString>,
    /// Listens here for engines that dial in, tcp://*:port; may be given several times.
    #[arg(long, env = "KVD_LISTEN", value_name = "ENDPOINT", value_delimiter = ',')]
    pub listen: Vec<String>,
    /// Threads that read sockets, and as many that apply batches.
    #[arg(long, env = "KVD_INGEST_THREADS", value_name = "N")]
    pub ingest_threads: Option<usize>,
    /// What to log: error, warn, info, debug, trace, or a filter such as kvd::ingest=debug.
    #[arg(long, env = "KVD_LOG_LEVEL", value_name = "FILTER")]
    pub log_level: Option<String>,
    /// How to log: text or json.
    #[arg(long, env = "KVD_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Where other replicas ask this one about transfers, instead of transfers.replica; nothing where it has no others.
    #[arg(long, env = "KVD_TRANSFERS_REPLICA", value_name = "URL")]
    pub transfers_replica: Option<String>,
    /// How long to wait for requests under way when told to stop, such as 5s.
    #[arg(long, env = "KVD_DRAIN_TIMEOUT", value_name = "DURATION")]
    pub drain_timeout: Option<String>,
}

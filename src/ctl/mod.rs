//! kvctl: what does kvd hold, and is it right?
//!
//! One file per command. [`kvcap`], [`capture`] and [`engine_sim`] (recorded streams, what was
//! asked beside them, and an engine's side of the wire) serve tests as well.

pub mod capture;
pub mod client;
#[cfg(test)]
mod docs;
mod doctor;
mod dump;
pub mod engine_sim;
mod explain;
mod follow;
mod http;
pub mod kvcap;
mod links;
mod plan;
mod prompt;
mod publishers;
mod register;
mod replay;
mod score;
pub mod simulate;
mod stats;
mod target;
mod term;
mod tier;
mod transfers;
mod verify;
mod warmup;
mod watch;

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use client::{ClientError, Kvd};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use term::Paint;

use crate::guard::Dialer;
use crate::guard::dial::DialConfig;

/// What kvctl is told.
#[derive(Debug, Parser)]
#[command(
    name = "kvctl",
    version,
    about = "Looks into a running kvd, feeds it recorded engine streams, and checks its answers",
    after_help = "\
Examples:
  kvctl doctor
  kvctl publishers
  kvctl score --model llama --tokens 1,2,3,4
  kvctl dump --json | head
  kvctl verify tests/fixtures/captures

Exit codes: 0 done, 1 a check failed or something was not found, 2 wrong usage, 3 kvd cannot be reached."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Under which every command's help lists what all commands take.
const HEADING: &str = "Options of every command";

/// What every command is told.
#[derive(Debug, Args)]
pub struct Global {
    /// kvd's gRPC address
    #[arg(long, global = true, help_heading = HEADING, value_name = "HOST:PORT")]
    #[arg(env = "KVD_GRPC", hide_env_values = true, default_value = "127.0.0.1:50051")]
    grpc: String,
    /// kvd's HTTP address
    #[arg(long, global = true, help_heading = HEADING, value_name = "HOST:PORT")]
    #[arg(env = "KVD_HTTP", hide_env_values = true, default_value = "127.0.0.1:8090")]
    http: String,
    /// Reaches kvd's gRPC by TLS; who signs its certificate, PEM
    #[arg(long, global = true, help_heading = HEADING, value_name = "FILE")]
    #[arg(env = "KVD_TLS_CA", hide_env_values = true)]
    tls_ca: Option<PathBuf>,
    /// The name in its certificate, where it is reached by another
    #[arg(long, global = true, help_heading = HEADING, value_name = "NAME")]
    #[arg(env = "KVD_TLS_NAME", hide_env_values = true)]
    tls_name: Option<String>,
    /// A certificate to show, PEM
    #[arg(long, global = true, help_heading = HEADING, value_name = "FILE", requires = "tls_key")]
    #[arg(env = "KVD_TLS_CERT", hide_env_values = true)]
    tls_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, global = true, help_heading = HEADING, value_name = "FILE", requires = "tls_cert")]
    #[arg(env = "KVD_TLS_KEY", hide_env_values = true)]
    tls_key: Option<PathBuf>,
    /// A file whose first line is a token to show
    #[arg(long, global = true, help_heading = HEADING, value_name = "FILE")]
    #[arg(env = "KVD_TOKEN_FILE", hide_env_values = true)]
    token_file: Option<PathBuf>,
    /// Write JSON, one object per line
    #[arg(long, global = true, help_heading = HEADING)]
    json: bool,
    /// Write no colours (also with NO_COLOR set, and where the output is no terminal)
    #[arg(long, global = true, help_heading = HEADING)]
    no_color: bool,
}

impl Global {
    /// kvd's gRPC interface.
    async fn kvd(&self) -> anyhow::Result<Kvd> {
        self.kvd_at(&self.grpc).await
    }

    /// The same at another address.
    async fn kvd_at(&self, address: &str) -> anyhow::Result<Kvd> {
        Ok(Kvd::connect(address, &self.dialer()?).await?)
    }

    /// How kvd is reached.
    fn dialer(&self) -> anyhow::Result<Dialer> {
        let given = |path: &Option<PathBuf>| path.clone().filter(|p| !p.as_os_str().is_empty());
        let dialer = Dialer::load(DialConfig {
            ca: given(&self.tls_ca),
            own: given(&self.tls_cert).zip(given(&self.tls_key)),
            name: self.tls_name.clone().filter(|n| !n.is_empty()),
            token: given(&self.token_file),
        });
        Ok(dialer.map_err(|e| UsageError(e.to_string()))?)
    }

    fn paint(&self) -> Paint {
        Paint::for_stdout(self.no_color)
    }

    /// A bar of `len` steps on the terminal; none where errors go elsewhere.
    fn progress(&self, len: u64, unit: &str) -> ProgressBar {
        let bar = ProgressBar::new(len);
        if self.json || !io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let template = format!("{{bar:30}} {{pos}}/{{len}} {unit} {{msg}}");
        match ProgressStyle::with_template(&template) {
            Ok(style) => bar.with_style(style),
            // Units are written in this crate; one that does not fit leaves the default look.
            Err(_) => bar,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write which blocks kvd knows of, where
    Dump(dump::DumpArgs),
    /// Write how much of a prompt every candidate holds
    Score(score::ScoreArgs),
    /// Write why one candidate got its score, block by block
    Explain(explain::ExplainArgs),
    /// Write whom kvd follows and how that is going
    Publishers(publishers::ListArgs),
    /// Write what is wrong, and what to do about it
    Doctor(doctor::DoctorArgs),
    /// Write what kvd as a whole holds and does
    Stats,
    /// Write whether it is known again, after a start, what the engines hold
    Warmup(warmup::WarmupArgs),
    /// Write which transfers are under way, and what became of them
    Transfers(transfers::TransfersArgs),
    /// Write how a prompt would be served, and why; reserves nothing
    Plan(plan::PlanArgs),
    /// Write what is known of the links between pods, and what goes over them
    Links(links::LinksArgs),
    /// Write what a node keeps below the GPU
    Tiers(tier::TiersArgs),
    /// Check, empty or watch a node's tiers below the GPU
    Tier(tier::TierArgs),
    /// Let kvd follow an engine
    Register(register::RegisterArgs),
    /// Let kvd forget an engine
    Unregister(register::UnregisterArgs),
    /// Publish recorded streams as the engine did, on real sockets
    Replay(replay::ReplayArgs),
    /// Show pods, tiers, rates and lag as they change
    Watch(watch::WatchArgs),
    /// Play a request trace against simulated pods by several routing rules, and compare them
    Simulate(simulate::SimulateArgs),
    /// Replay captures against kvd and compare its predictions with what the engines reported
    Verify(verify::VerifyArgs),
}

/// How a command that ran to its end came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Ok,
    /// A check failed, or nothing was found.
    Failed,
}

/// Ctrl-C ended a command before its time.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Something wrong in what was typed, beyond what clap sees.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Runs kvctl with this process's arguments.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: start: {e}");
            return ExitCode::from(1);
        }
    };
    let mut out = BufWriter::new(io::stdout());
    let result = runtime.block_on(run(&cli, &mut out)).and_then(|outcome| {
        out.flush()?;
        Ok(outcome)
    });
    match result {
        Ok(Outcome::Ok) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::from(1),
        // A reader that has seen enough (`| head`) is no error.
        Err(e) if is_closed_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {}", term::printable_lines(&format!("{e:#}")));
            ExitCode::from(exit_code(&e))
        }
    }
}

async fn run(cli: &Cli, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let global = &cli.global;
    match &cli.command {
        Command::Dump(args) => dump::run(global, args, out).await,
        Command::Simulate(args) => simulate::run(global, args, out),
        Command::Score(args) => score::run(global, args, out).await,
        Command::Explain(args) => explain::run(global, args, out).await,
        Command::Publishers(args) => publishers::list(global, args, out).await,
        Command::Doctor(args) => doctor::run(global, args, out).await,
        Command::Stats => stats::run(global, out).await,
        Command::Warmup(args) => warmup::run(global, args, out).await,
        Command::Transfers(args) => transfers::run(global, args, out).await,
        Command::Plan(args) => plan::run(global, args, out).await,
        Command::Links(args) => links::run(global, args, out).await,
        Command::Tiers(args) => tier::list(global, args, out).await,
        Command::Tier(args) => tier::run(global, args, out).await,
        Command::Register(args) => register::register(global, args, out).await,
        Command::Unregister(args) => register::unregister(global, args, out).await,
        Command::Replay(args) => replay::run(global, args, out).await,
        Command::Watch(args) => watch::run(global, args, out).await,
        Command::Verify(args) => verify::run(global, args, out).await,
    }
}

fn is_closed_pipe(e: &anyhow::Error) -> bool {
    e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// 2 for wrong usage, 3 where kvd cannot be reached, otherwise 1.
fn exit_code(e: &anyhow::Error) -> u8 {
    if e.downcast_ref::<UsageError>().is_some() {
        return 2;
    }
    match e.downcast_ref::<ClientError>() {
        Some(ClientError::Unreachable { .. }) => 3,
        Some(ClientError::Address { .. } | ClientError::BadRequest { .. }) => 2,
        Some(ClientError::Refused { .. }) | None => 1,
    }
}

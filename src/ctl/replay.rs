//! `kvctl replay`: be the engine that was recorded, on real sockets.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use kvproto::rpc::kv::PublisherSpec;
use serde_json::json;

use crate::ctl::engine_sim::{EngineSim, RING_BATCHES, ReplayFrames, SimConfig};
use crate::ctl::follow;
use crate::ctl::kvcap::{Reader, Record};
use crate::ctl::target::Target;
use crate::ctl::term::count;
use crate::ctl::{Global, Outcome, UsageError};

/// What `kvctl replay` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvctl replay run.kvcap --register --model llama --instance 10.0.0.1:8000 --block-size 16
  kvctl replay run.rank0.kvcap run.rank1.kvcap --pub 'tcp://*:5557' --replay-endpoint 'tcp://*:5657' \\
        --pace recorded --speed 10
  kvctl replay run.kvcap --connect tcp://127.0.0.1:5557 --pace max

Each file is a publisher with a rank of its own; rank r takes the ports of rank 0 plus r.
Nothing is sent before somebody subscribes.")]
pub struct ReplayArgs {
    /// Recorded streams, one per data-parallel rank
    #[arg(required = true, value_name = "FILE.kvcap")]
    files: Vec<PathBuf>,
    /// Where to publish, tcp://*:PORT for other machines
    #[arg(long, default_value = "tcp://127.0.0.1:*", value_name = "ADDR")]
    r#pub: String,
    /// Where to answer replay requests
    #[arg(long, default_value = "tcp://127.0.0.1:*", value_name = "ADDR")]
    replay_endpoint: String,
    /// Dial out to this address, where a subscriber listens, rather than listen
    #[arg(long, conflicts_with = "pub", value_name = "ADDR")]
    connect: Option<String>,
    /// How replay answers are framed: without the topic up to vLLM 0.25
    #[arg(long, value_enum, default_value = "with-topic", value_name = "FORM")]
    replay_frames: Frames,
    /// How fast: as recorded, each batch when kvd has applied the one before, or without a pause
    #[arg(long, value_enum, default_value = "lockstep")]
    pace: Pace,
    /// How many times faster than recorded
    #[arg(long, default_value_t = 1.0, value_name = "TIMES")]
    speed: f64,
    /// Register the publishers with kvd first
    #[arg(long)]
    register: bool,
    /// The instance they are (to be) registered as
    #[arg(long, value_name = "IP:PORT")]
    instance: Option<String>,
    /// The model they are (to be) registered for
    #[arg(long)]
    model: Option<String>,
    /// Rank of the first file; the others follow it
    #[arg(long, default_value_t = 0)]
    rank: u32,
    /// Tenant
    #[arg(long, default_value = "default")]
    tenant: String,
    /// What the publishers are: vLLM, SGLang, Mooncake
    #[arg(long, default_value = "vLLM", value_name = "ENGINE")]
    r#type: String,
    /// Tokens per block, for the registration
    #[arg(long, default_value_t = 16, value_name = "TOKENS")]
    block_size: u32,
    /// Tokens per chunk of chunked local attention, for the registration
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "TOKENS")]
    attention_chunk_size: u32,
    /// The address by which kvd reaches this machine
    #[arg(long, default_value = "127.0.0.1", value_name = "HOST")]
    advertise: String,
    /// How long kvd may take to apply a batch
    #[arg(long, default_value = "20s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Keep answering replay requests after the last batch, until Ctrl-C
    #[arg(long)]
    hold: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pace {
    Recorded,
    Lockstep,
    Max,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Frames {
    WithTopic,
    WithoutTopic,
}

/// Publishes every file to its end, or to Ctrl-C.
pub async fn run(global: &Global, args: &ReplayArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    args.check()?;
    // Reading everything once finds damage before anything is sent.
    let lengths = args.files.iter().map(|f| messages(f)).collect::<Result<Vec<_>, _>>()?;
    let mut lanes = Vec::new();
    for (file, rank) in args.files.iter().zip(args.rank..) {
        let sim = EngineSim::open(&args.sim(rank)?)?;
        lanes.push(Lane { sim, publisher: args.publisher(rank), file: file.clone(), sent: 0, last: None });
    }
    // Where kvd is not asked about progress, it need not be there.
    let target = match args.follows() {
        true => Some(Target::Grpc(global.kvd().await?)),
        false => None,
    };
    for lane in &mut lanes {
        lane.announce(args, target.as_ref()).await?;
        let line = json!({
            "file": lane.file, "dp_rank": lane.publisher.dp_rank, "pub": lane.sim.endpoint(),
            "replay": lane.sim.replay_endpoint(),
        });
        if global.json {
            writeln!(out, "{line}")?;
        } else {
            let replay = lane.sim.replay_endpoint().unwrap_or_default();
            writeln!(
                out,
                "{} publishes at {}, replays at {replay}",
                lane.file.display(),
                lane.sim.endpoint()
            )?;
        }
    }
    out.flush()?;

    let bar = global.progress(lengths.iter().sum(), "batches");
    let tasks = lanes.iter_mut().map(|lane| lane.run(args, target.as_ref(), &bar));
    let done = tokio::select! {
        done = all(tasks) => Some(done),
        _ = tokio::signal::ctrl_c() => None,
    };
    bar.finish_and_clear();
    let sent: u64 = lanes.iter().map(|l| l.sent).sum();
    let Some(done) = done else {
        writeln!(out, "interrupted after {}", batches(sent))?;
        return Ok(Outcome::Failed);
    };
    done?;
    if global.json {
        writeln!(out, "{}", json!({"batches": sent, "publishers": lanes.len()}))?;
    } else {
        writeln!(out, "sent {} of {}", batches(sent), count(lanes.len(), "publisher"))?;
    }
    if args.hold {
        out.flush()?;
        tokio::signal::ctrl_c().await.context("wait for Ctrl-C")?;
    }
    Ok(Outcome::Ok)
}

impl ReplayArgs {
    fn check(&self) -> Result<(), UsageError> {
        if self.register && (self.model.is_none() || self.instance.is_none()) {
            return Err(UsageError("--register needs --model and --instance".into()));
        }
        if self.pace == Pace::Lockstep && self.instance.is_none() {
            let text = "lockstep asks kvd how far it is: say whom it follows with --instance (and --register), \
                        or take --pace recorded or --pace max";
            return Err(UsageError(text.into()));
        }
        if !(self.speed.is_finite() && self.speed > 0.0) {
            return Err(UsageError(format!("--speed {}: expected a number above 0", self.speed)));
        }
        Ok(())
    }

    /// Whether kvd is asked how far it is.
    fn follows(&self) -> bool {
        self.instance.is_some()
    }

    fn sim(&self, rank: u32) -> anyhow::Result<SimConfig> {
        let frames = match self.replay_frames {
            Frames::WithTopic => ReplayFrames::WithTopic,
            Frames::WithoutTopic => ReplayFrames::WithoutTopic,
        };
        let offset = rank - self.rank;
        let endpoint = match &self.connect {
            Some(address) => address.clone(),
            None => at_rank(&self.r#pub, offset)?,
        };
        let replay_endpoint = Some(at_rank(&self.replay_endpoint, offset)?);
        Ok(SimConfig { endpoint, replay_endpoint, frames, ring: RING_BATCHES, replay_hwm: 0 })
    }

    /// How kvd knows, or shall know, the publisher of `rank`. The endpoints follow when bound.
    fn publisher(&self, rank: u32) -> PublisherSpec {
        PublisherSpec {
            tenant_id: self.tenant.clone(),
            model: self.model.clone().unwrap_or_default(),
            instance_id: self.instance.clone().unwrap_or_default(),
            dp_rank: rank,
            r#type: self.r#type.clone(),
            block_size: self.block_size,
            attention_chunk_size: self.attention_chunk_size,
            ..PublisherSpec::default()
        }
    }
}

/// One file on its way out.
struct Lane {
    sim: EngineSim,
    publisher: PublisherSpec,
    file: PathBuf,
    sent: u64,
    last: Option<u64>,
}

impl Lane {
    /// Registers the publisher if asked to.
    async fn announce(&mut self, args: &ReplayArgs, target: Option<&Target>) -> anyhow::Result<()> {
        let (true, Some(target)) = (args.register, target) else { return Ok(()) };
        let dialable = |bound: &str| bound.replacen("0.0.0.0", &args.advertise, 1);
        let p = &mut self.publisher;
        p.replay_endpoint = dialable(self.sim.replay_endpoint().unwrap_or_default());
        match &args.connect {
            Some(address) => {
                p.bind = address.clone();
                // Several engines may dial in there; the recorded topic tells this one apart.
                let first = Reader::open(&self.file)?.next().transpose()?;
                p.topic = first.map(|r| String::from_utf8_lossy(&r.topic).into_owned()).unwrap_or_default();
            }
            None => p.endpoint = dialable(self.sim.endpoint()),
        }
        Ok(target.register(p).await?)
    }

    async fn run(
        &mut self,
        args: &ReplayArgs,
        target: Option<&Target>,
        bar: &ProgressBar,
    ) -> anyhow::Result<()> {
        while self.sim.subscribers()? == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let before = match target {
            Some(target) => target.progress(&self.publisher).await?.and_then(|p| p.batches).unwrap_or(0),
            None => 0,
        };
        let mut previous: Option<Record> = None;
        for record in Reader::open(&self.file)? {
            let record = record?;
            // A recorded replay ends with a marker, which is no message of the live stream.
            if record.is_end_marker() {
                continue;
            }
            if let (Pace::Recorded, Some(previous)) = (args.pace, &previous) {
                let nanos = record.received_ns.saturating_sub(previous.received_ns);
                tokio::time::sleep(Duration::from_nanos((nanos as f64 / args.speed) as u64)).await;
            }
            // A new life empties the replay buffer: what kvd lacks of the old one is gone then.
            let new_life = self.last.is_some_and(|last| record.number() <= last);
            if args.pace == Pace::Lockstep || new_life {
                self.settle(args, target, before).await?;
            }
            self.sim.publish(&record)?;
            (self.sent, self.last) = (self.sent + 1, Some(record.number()));
            bar.inc(1);
            previous = Some(record);
            // The others and Ctrl-C get their turn.
            tokio::task::yield_now().await;
        }
        self.settle(args, target, before).await
    }

    /// Waits until kvd has applied what was sent, if kvd is asked at all.
    async fn settle(&self, args: &ReplayArgs, target: Option<&Target>, before: u64) -> anyhow::Result<()> {
        let (Some(target), Some(last)) = (target, self.last) else { return Ok(()) };
        follow::applied(target, &self.publisher, last, before + self.sent, args.timeout).await
    }
}

/// Runs all at once on this thread; fails with the first that fails.
async fn all(tasks: impl Iterator<Item = impl Future<Output = anyhow::Result<()>>>) -> anyhow::Result<()> {
    let mut tasks: Vec<_> = tasks.map(|t| Some(Box::pin(t))).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for slot in &mut tasks {
            let Some(task) = slot else { continue };
            match task.as_mut().poll(context) {
                std::task::Poll::Ready(Ok(())) => *slot = None,
                std::task::Poll::Ready(Err(e)) => return std::task::Poll::Ready(Err(e)),
                std::task::Poll::Pending => pending = true,
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(Ok(())) }
    })
    .await
}

fn messages(file: &std::path::Path) -> anyhow::Result<u64> {
    let mut n = 0;
    for record in Reader::open(file)? {
        n += u64::from(!record?.is_end_marker());
    }
    if n == 0 {
        bail!("{} holds no messages", file.display());
    }
    Ok(n)
}

fn batches(n: u64) -> String {
    if n == 1 { "1 batch".into() } else { format!("{n} batches") }
}

/// The address `rank` ranks on: its port plus `rank`, as engines count. A free port stays one.
fn at_rank(address: &str, rank: u32) -> Result<String, UsageError> {
    let bad = || UsageError(format!("{address}: not an address, expected tcp://HOST:PORT"));
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    if !host.starts_with("tcp://") {
        return Err(bad());
    }
    if port == "*" {
        return Ok(address.to_owned());
    }
    let port: u16 = port.parse().map_err(|_| bad())?;
    let port = u16::try_from(u32::from(port) + rank)
        .map_err(|_| UsageError(format!("{address}: no port is left for rank {rank}")))?;
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_takes_the_port_of_the_first_plus_its_own() {
        assert_eq!(at_rank("tcp://*:5557", 2).unwrap(), "tcp://*:5559");
        assert_eq!(at_rank("tcp://127.0.0.1:*", 2).unwrap(), "tcp://127.0.0.1:*");
        assert!(at_rank("tcp://*:65535", 1).is_err());
        assert!(at_rank("ipc:///tmp/x", 0).is_err() && at_rank("5557", 0).is_err());
    }

    #[tokio::test]
    async fn all_tasks_end_or_the_first_failure_is_told() {
        assert!(all((0..3).map(|_| async { Ok(()) })).await.is_ok());
        let failing = (0..3).map(|i| async move { if i == 1 { bail!("task {i}") } else { Ok(()) } });
        assert_eq!(all(failing).await.unwrap_err().to_string(), "task 1");
    }
}

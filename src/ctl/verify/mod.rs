//! `kvctl verify`: does kvd say what the engines themselves reported?
//!
//! For each capture: register its engines under names of this run, feed the messages that had
//! arrived before each request and no more, wait until they are applied, ask, and compare
//! with the engine's own count.

mod doubt;
mod feed;
mod report;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use kvproto::engine::Engine;
use kvproto::rpc::kv::PublisherSpec;

use crate::ctl::capture::{Capture, Exclusion, Step};
use crate::ctl::engine_sim::{EngineSim, ReplayFrames, SimConfig};
use crate::ctl::http::HttpKvd;
use crate::ctl::target::{Question, Target};
use crate::ctl::term;
use crate::ctl::{Global, Interrupted, Outcome};
use crate::publisher::EngineType;
use feed::Feed;
use report::{Mismatch, Report};

/// Block size said at registration where a recording does not tell; the events decide.
const ASSUMED_BLOCK_SIZE: u32 = 16;

/// What `kvctl verify` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kvctl verify tests/fixtures/captures
  kvctl verify tests/fixtures/captures/vllm032-main-b32.json --json
  kvctl --http 127.0.0.1:8090 verify --via http tests/fixtures/captures

Exit code 0 if every compared request is exact, 1 if any differs or a capture could not be
checked, 3 if kvd cannot be reached.")]
pub struct VerifyArgs {
    /// Captures (NAME.json beside their .kvcap streams), or directories of them
    #[arg(required = true, value_name = "DIR|FILE.json")]
    paths: Vec<PathBuf>,
    /// Go on after a capture that could not be checked
    #[arg(long)]
    keep_going: bool,
    /// Leave the engines registered afterwards
    #[arg(long)]
    leave: bool,
    /// The interface of kvd to check
    #[arg(long, value_enum, default_value = "grpc")]
    via: Via,
    /// The address by which kvd reaches this machine
    #[arg(long, default_value = "127.0.0.1", value_name = "HOST")]
    advertise: String,
    /// How long kvd may take to subscribe, or to apply what was sent
    #[arg(long, default_value = "20s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// An interface of kvd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Via {
    Grpc,
    Http,
}

/// Checks every capture named.
pub async fn run(global: &Global, args: &VerifyArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let files = capture_files(&args.paths)?;
    let target = match args.via {
        Via::Grpc => Target::Grpc(global.kvd().await?),
        Via::Http => Target::Http(HttpKvd::connect(&global.http, global.dialer()?).await?),
    };
    let kvd_host = match args.via {
        Via::Grpc => host(&global.grpc),
        Via::Http => host(&global.http),
    };
    let check = Check { target, args, kvd_host };
    let (mut reports, mut without_truth) = (Vec::new(), 0);
    let bar = global.progress(files.len() as u64, "captures");
    for file in &files {
        bar.set_message(file.file_stem().unwrap_or_default().to_string_lossy().into_owned());
        match check.file(file).await {
            Ok(Some(report)) => reports.push(report),
            Ok(None) => without_truth += 1,
            Err(e) if e.is::<Interrupted>() => {
                bar.finish_and_clear();
                return Err(e);
            }
            Err(e) => {
                let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                reports.push(Report { name, error: Some(format!("{e:#}")), ..Report::default() });
            }
        }
        bar.inc(1);
        if !args.keep_going && reports.last().is_some_and(|r| r.error.is_some()) {
            if bar.position() < files.len() as u64 {
                bar.suspend(|| {
                    eprintln!("stopped at the first capture that cannot be checked; see --keep-going")
                });
            }
            break;
        }
    }
    bar.finish_and_clear();
    if reports.is_empty() {
        bail!("no capture among {} file(s) has requests with a reported count to compare with", files.len());
    }
    if global.json {
        report::write_json(out, &reports, without_truth)?;
    } else {
        report::write_table(out, &reports, without_truth, global.paint(), term::width())?;
    }
    Ok(if reports.iter().all(Report::passed) { Outcome::Ok } else { Outcome::Failed })
}

/// The descriptions that `paths` name, those of a directory in order of their names.
fn capture_files(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let read = || format!("read {}", path.display());
        let entries = std::fs::read_dir(path).with_context(read)?;
        let mut found: Vec<PathBuf> =
            entries.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>().with_context(read)?;
        found.retain(|p| p.extension().is_some_and(|e| e == "json"));
        if found.is_empty() {
            bail!("{} holds no captures (NAME.json)", path.display());
        }
        found.sort();
        files.append(&mut found);
    }
    Ok(files)
}

/// The host of `HOST:PORT`.
fn host(address: &str) -> String {
    let bare = address.strip_prefix("http://").unwrap_or(address);
    bare.rsplit_once(':').map_or(bare, |(host, _)| host).to_owned()
}

/// What stays the same over all captures.
struct Check<'a> {
    target: Target,
    args: &'a VerifyArgs,
    kvd_host: String,
}

impl Check<'_> {
    /// Checks one capture; `None` if it has nothing to compare with.
    async fn file(&self, path: &Path) -> anyhow::Result<Option<Report>> {
        let capture = Capture::open(path)?;
        if !capture.has_truth() {
            return Ok(None);
        }
        let mut feeds = self.feeds(&capture)?;
        let checked = tokio::select! {
            checked = self.capture(&capture, &mut feeds) => checked,
            _ = tokio::signal::ctrl_c() => Err(Interrupted.into()),
        };
        if !self.args.leave {
            for feed in &feeds {
                // What went wrong before matters more than that this may fail as well.
                let removed = self.target.unregister(&feed.publisher).await;
                if checked.is_ok() {
                    removed?;
                }
            }
        }
        checked.map(Some)
    }

    /// Publishers of the capture's engines, on sockets of their own.
    fn feeds<'c>(&self, capture: &'c Capture) -> anyhow::Result<Vec<Feed<'c>>> {
        let listen = if capture.is_shared() { Some(free_port()?) } else { None };
        (0..capture.engines())
            .map(|engine| {
                let mut publisher = self.registration(capture, engine);
                let any = if self.is_local() { "tcp://127.0.0.1:*" } else { "tcp://*:*" };
                let endpoint = match listen {
                    Some(port) => format!("tcp://{}:{port}", self.kvd_host),
                    None => any.to_owned(),
                };
                let frames = ReplayFrames::of_engine(&capture.doc.engine);
                let replay_endpoint = Some(any.to_owned());
                let sim =
                    EngineSim::open(&SimConfig { endpoint, replay_endpoint, frames, ..SimConfig::local() })?;
                match listen {
                    Some(port) => {
                        publisher.bind =
                            format!("tcp://{}:{port}", if self.is_local() { "127.0.0.1" } else { "*" });
                        publisher.topic = capture.topic(engine).unwrap_or_default().into();
                    }
                    None => publisher.endpoint = self.dialable(sim.endpoint()),
                }
                publisher.replay_endpoint = self.dialable(sim.replay_endpoint().unwrap_or_default());
                let decoder = match capture.engine_type() {
                    EngineType::Vllm | EngineType::Kvtier => Engine::Vllm,
                    EngineType::Sglang => Engine::Sglang,
                    EngineType::Mooncake => Engine::Mooncake,
                };
                Ok(Feed::new(publisher, sim, decoder, capture.messages(engine)))
            })
            .collect()
    }

    /// Names that no other capture and no other run uses, so that nothing mixes.
    fn registration(&self, capture: &Capture, engine: usize) -> PublisherSpec {
        let run = format!("verify-{}-{}", std::process::id(), capture.name);
        let instance_id = if capture.is_shared() { format!("{run}-{engine}") } else { run.clone() };
        let mut publisher = PublisherSpec {
            tenant_id: "default".into(),
            model: run,
            instance_id,
            dp_rank: capture.rank(engine),
            r#type: match capture.engine_type() {
                EngineType::Vllm | EngineType::Kvtier => "vLLM".into(),
                EngineType::Sglang => "SGLang".into(),
                EngineType::Mooncake => "Mooncake".into(),
            },
            block_size: capture.block_size().unwrap_or(ASSUMED_BLOCK_SIZE),
            attention_chunk_size: capture.doc.attention_chunk_size.unwrap_or(0),
            ..PublisherSpec::default()
        };
        if capture.doc.needs_hash {
            publisher.hash_algo = capture.doc.resolved.hash_algo.clone().unwrap_or_default();
            publisher.hash_seed = capture.doc.resolved.none_hash_seed.clone().unwrap_or_default();
        }
        publisher
    }

    /// Feeds and asks, step by step.
    async fn capture(&self, capture: &Capture, feeds: &mut [Feed<'_>]) -> anyhow::Result<Report> {
        for feed in feeds.iter() {
            self.target.register(&feed.publisher).await?;
        }
        for feed in feeds.iter_mut() {
            feed.subscribed(&self.target, self.args.timeout).await?;
        }
        let excluded = capture.exclusions();
        let mut report = Report { name: capture.name.clone(), ..Report::default() };
        for (i, step) in capture.doc.steps.iter().enumerate() {
            for (engine, feed) in feeds.iter_mut().enumerate() {
                if let Some(cut) = capture.cut(step, engine) {
                    feed.advance(cut, &self.target, self.args.timeout).await?;
                }
            }
            let Some((tokens, reported)) = step.truth() else { continue };
            let feed = match (excluded.get(&i), capture.engine_of(step).and_then(|e| feeds.get(e))) {
                (Some(reason), _) => {
                    *report.excluded.entry(*reason).or_default() += 1;
                    continue;
                }
                (None, Some(feed)) => feed,
                (None, None) => bail!("step {i} speaks of an engine that the capture does not have"),
            };
            feed.applied(&self.target, self.args.timeout)
                .await
                .with_context(|| format!("before step {i}"))?;
            let predicted = self.target.cached_tokens(&question(feed, step, tokens)).await?;
            match predicted {
                Some(n) if n == reported => report.exact += 1,
                // kvd forgets offloaded blocks with a clear; the engine may still have found them.
                Some(n) if n < reported && feed.offload_is_doubtful() => {
                    *report.excluded.entry(Exclusion::OffloadAfterClear).or_default() += 1;
                    continue;
                }
                Some(_) | None => {
                    let prompt_tokens = tokens.len();
                    report.mismatches.push(Mismatch { step: i, prompt_tokens, predicted, reported });
                }
            }
            report.predicted += predicted.unwrap_or(0);
            report.reported += reported;
        }
        Ok(report)
    }

    fn is_local(&self) -> bool {
        self.args.advertise == "127.0.0.1" || self.args.advertise == "localhost"
    }

    /// The address that kvd dials for a socket bound here.
    fn dialable(&self, bound: &str) -> String {
        bound.replacen("0.0.0.0", &self.args.advertise, 1)
    }
}

fn question<'q>(feed: &'q Feed<'_>, step: &'q Step, tokens: &'q [u32]) -> Question<'q> {
    Question {
        publisher: &feed.publisher,
        tokens,
        lora: step.lora_name(),
        cache_salt: step.cache_salt.as_deref(),
        items: step.mm_features.as_deref().unwrap_or_default(),
    }
}

/// A port that is free now, for kvd to listen on.
fn free_port() -> anyhow::Result<u16> {
    let probe = std::net::TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(probe.local_addr().context("find a free port")?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_stands_for_its_descriptions_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.json", "a.json", "a.kvcap"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let files = capture_files(&[dir.path().to_owned(), "x.json".into()]).unwrap();
        assert_eq!(files, [dir.path().join("a.json"), dir.path().join("b.json"), "x.json".into()]);
        std::fs::create_dir(dir.path().join("empty")).unwrap();
        assert!(capture_files(&[dir.path().join("empty")]).is_err());
    }
}

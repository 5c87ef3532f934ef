//! `kvd serve`: starts ingest, gRPC and HTTP, and stops them in order.
//!
//! Exit codes: 0 told to stop, 1 could not start or go on, 2 wrong usage or configuration.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Parser;
use kvd::args::{Cli, Command};
use kvd::cluster::Cluster;
use kvd::config::{Config, LogFormat};
use kvd::discovery::{self, Discovery};
use kvd::guard::dial::DialConfig;
use kvd::guard::review::ReviewConfig;
use kvd::guard::tls::ServerTls;
use kvd::guard::{Dialer, Guard};
use kvd::ingest::Publishers;
use kvd::liveness;
use kvd::peers::{self, Peers};
use kvd::publisher::{Followed, Origin, PublisherSpec};
use kvd::serve::transfer::{Sharing, Transfers};
use kvd::serve::{Restored, Service, grpc, http};
use kvd::shared::Mirror;
use kvd::snapshot::{Files, Runner};
use kvd::state::Catalog;
use kvd::tier::{TierArgs, TierConfig};
use kvd::traces::Traces;
use kvd::transfer::cost::Starting;
use kvd::transfer::key;
use kvd::transfer::learned::Learned;
use kvd::transfer::ledger::store::Store;
use kvd::transfer::ledger::store::rocks::Rocks;
use kvd::transfer::ledger::store::valkey::{Setup, Valkey as OnServers};
use kvd::transfer::plan::Policy;
use kvd::warmup::Stage;
use kvindex::Index;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

const UNUSABLE: u8 = 2;
/// How often warming up is looked at while it goes on, and afterwards.
const EAGER: Duration = Duration::from_millis(20);
const CALM: Duration = Duration::from_secs(1);

/// How long the catalog may hold something back.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let args = match &command {
        Command::Serve(args) | Command::CheckConfig(args) => args,
        Command::Tier(args) => return tier(args),
    };
    let config = match Config::load(args) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("kvd: {error}");
            return ExitCode::from(UNUSABLE);
        }
    };
    let done = match command {
        Command::CheckConfig(_) => {
            println!("{}", summary(&config));
            Ok(())
        }
        Command::Serve(_) | Command::Tier(_) => start(config),
    };
    ended(done)
}

fn ended(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `kvd tier`: a node's tiers below the GPU.
fn tier(args: &TierArgs) -> ExitCode {
    let config = match TierConfig::load(args) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("kvd: {error}");
            return ExitCode::from(UNUSABLE);
        }
    };
    ended(start_log(&config.log_level, LogFormat::Text).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.context("start the runtime")?.block_on(kvd::tier::run::run(config))
    }))
}

/// What a configuration comes to, in one line.
fn summary(config: &Config) -> String {
    let kept = match &config.data_dir {
        Some(dir) => format!("kept in {}", dir.display()),
        None => "kept in memory only".to_owned(),
    };
    format!(
        "configuration ok: gRPC on {}, HTTP on {}, {} publishers, {} listeners, registrations {kept}",
        config.grpc_listen,
        config.http_listen,
        config.publishers.len(),
        config.ingest.listen.len(),
    )
}

fn start(config: Config) -> anyhow::Result<()> {
    start_log(&config.log_level, config.log_format)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let served = runtime.block_on(serve(config));
    // A task that still waits for a client must not keep the process.
    runtime.shutdown_background();
    served
}

fn start_log(level: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().parse(level).context("read the log level")?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}

async fn serve(config: Config) -> anyhow::Result<()> {
    // Before anything else, so that being told to stop early is not missed.
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;

    raise_file_limit(config.ingest.max_publishers);
    let kubeconfig = config.discovery.kubeconfig.as_deref();
    let cluster = match config.discovery.pods.is_empty() {
        true => None,
        false => Some(Cluster::find(kubeconfig).await?),
    };
    let of_tokens = match (&config.security.token_review, &cluster) {
        (None, _) => None,
        (Some(ReviewConfig { kubeconfig: None, .. }), Some(cluster)) => Some(cluster.client.clone()),
        (Some(review), _) => Some(Cluster::find(review.kubeconfig.as_deref().or(kubeconfig)).await?.client),
    };
    let guard = Arc::new(Guard::load(&config.security, of_tokens).context("guard")?);
    let tls = ServerTls::load(&config.security).context("read the certificate")?;
    let dialer = Dialer::load(DialConfig::of_peers(&config.security)).context("reach other replicas")?;
    let tiers = Dialer::load(DialConfig::of_tiers(&config.security)).context("reach nodes' tiers")?;
    let catalog = match &config.data_dir {
        Some(dir) => Catalog::open(dir)?,
        None => {
            info!("no data directory: registrations are kept in memory only");
            Catalog::in_memory()
        }
    };
    let catalog = Arc::new(catalog);
    let grpc_listener = listen("gRPC", "--grpc-listen", &config.grpc_listen).await?;
    let http_listener = listen("HTTP", "--http-listen", &config.http_listen).await?;
    let health_listener = match &config.health_listen {
        Some(address) => Some(listen("health", "--health-listen", address).await?),
        None => None,
    };
    let grpc_at = grpc_listener.local_addr().context("read the gRPC address")?;
    let http_at = http_listener.local_addr().context("read the HTTP address")?;

    let index = Arc::new(Index::new(config.index));
    let mirror = match &config.valkey {
        Some(valkey) => {
            let servers = valkey.load().context("reach the index on Valkey")?;
            let owner = format!("{grpc_at} {} {:016x}", std::process::id(), random_name());
            Some(Mirror::start(servers, valkey.answer, owner).await.context("reach the index on Valkey")?)
        }
        None => None,
    };
    let catalog_too = Some(Arc::clone(&catalog));
    let publishers = Publishers::start_with(Arc::clone(&index), config.ingest, catalog_too, mirror.clone())
        .context("start ingest")?;
    mirror.iter().for_each(|m| m.ask_health_of(&publishers));
    follow_configured(&publishers, config.publishers)?;
    let files =
        config.data_dir.as_deref().map(|dir| Files::open(dir, Arc::clone(&catalog), config.snapshot.keep));
    let files = files.transpose().context("use the snapshots")?;
    let mut service =
        Service::new(Arc::clone(&index), Arc::clone(&publishers), config.limits, config.weights);
    service.warmup_limit = config.warmup_timeout;
    service.traces = config.traces.as_ref().map(Traces::start).transpose().context("send traces")?;
    service.peers = Peers::new(config.peers, dialer.clone());
    service.mirror = mirror.clone();
    service.tiers = tiers.clone();
    service.guard = Arc::clone(&guard);
    service.discovery = Discovery::new(&config.discovery);
    if config.transfers.enabled {
        let (transfers, valkey) = (config.transfers, config.valkey.as_ref());
        let coordinating = coordinate(transfers, config.data_dir.as_deref(), valkey, &dialer).await?;
        service = service.with_transfers(coordinating);
    }
    let service = Arc::new(service);

    let (stop, stopping) = watch::channel(false);
    let told_to_stop = || {
        let mut stopping = stopping.clone();
        async move {
            // An error means that the sender is gone, and so is the reason to go on.
            let _ = stopping.wait_for(|stop| *stop).await;
        }
    };
    let mut servers = JoinSet::new();
    servers.spawn(grpc::serve(
        Arc::clone(&service),
        grpc_listener,
        health_listener,
        tls.clone(),
        told_to_stop(),
    ));
    let http = http::serve(Arc::clone(&service), http_listener, tls.clone(), told_to_stop());
    servers.spawn(async {
        http.await;
        Ok(())
    });
    // Answering goes on meanwhile: whoever asks is told that nothing is certain yet.
    let restoring = tokio::spawn(restore(Arc::clone(&service), files, config.snapshot.every));
    let hinting = tokio::spawn(kvd::hints::run(Arc::clone(&service)));
    let holding = tokio::spawn({
        let service = Arc::clone(&service);
        async move { service.keep_holds().await }
    });
    let discovering = tokio::spawn(discovery::run(Arc::clone(&service), config.discovery, cluster));
    // These end with the process.
    tokio::spawn(guard.keep_current());
    tokio::spawn(dialer.keep_current());
    tokio::spawn(tiers.keep_current());
    if let Some(tls) = tls {
        tokio::spawn(tls.keep_current());
    }
    let speaking = tokio::spawn(peers::run(Arc::clone(&service)));
    let warming = tokio::spawn(warm_up(Arc::clone(&service)));
    let watching = tokio::spawn(liveness::watch(Arc::clone(&service)));
    let flushing = tokio::spawn(flush_now_and_then(Arc::clone(&catalog)));
    announce(grpc_at, http_at, publishers.list().len());

    let ended = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = servers.join_next() => ended,
    };
    if let Some(ended) = ended {
        // Neither server ends by itself.
        ended.context("a server ended early")??;
        return Err(anyhow!("a server ended early"));
    }
    info!("told to stop, finishing requests under way");
    warming.abort();
    watching.abort();
    speaking.abort();
    hinting.abort();
    holding.abort();
    discovering.abort();
    service.set_ready(false);
    stop.send_replace(true);
    let drained = async { while servers.join_next().await.is_some() {} };
    tokio::select! {
        () = drained => {}
        () = tokio::time::sleep(config.drain_timeout) => warn!("some requests were still under way"),
        _ = terminate.recv() => warn!("told to stop again"),
        _ = interrupt.recv() => warn!("told to stop again"),
    }
    flushing.abort();
    // What is half put back is not written down: the snapshots there are stay as they are.
    restoring.abort();
    if let Some(mirror) = mirror {
        mirror.stop().await;
    }
    let letting_go = Arc::clone(&service);
    let let_go = move || letting_go.transfers().map(|t| t.stop()).unwrap_or_default();
    tokio::task::spawn_blocking(let_go).await.context("stop coordinating transfers")?;
    let stopped = tokio::task::spawn_blocking(move || {
        publishers.stop();
        if let Some(snapshots) = service.snapshots.get() {
            snapshots.finish();
        }
        if let Some(traces) = &service.traces {
            traces.stop();
        }
        catalog.sync()
    });
    stopped.await.context("stop ingest")?.context("keep the last state")?;
    info!("stopped");
    Ok(())
}

/// A number that no other process has.
fn random_name() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::time::SystemTime::now())
}

/// Follows whom the configuration names, and no longer whom it named at an earlier start.
fn follow_configured(publishers: &Publishers, configured: Vec<PublisherSpec>) -> anyhow::Result<()> {
    let mut gone: Vec<_> = publishers
        .followed()
        .into_iter()
        .filter(|f| f.origin == Origin::Config)
        .map(|f| f.spec.key())
        .collect();
    gone.retain(|key| configured.iter().all(|spec| spec.key() != *key));
    publishers.change(&gone, Vec::new()).context("leave who is no longer in the configuration")?;
    for spec in configured {
        let who = format!("follow {} rank {} of the configuration", spec.instance_id, spec.dp_rank);
        publishers.register(Followed { spec, origin: Origin::Config }).context(who)?;
    }
    Ok(())
}

/// Starts to coordinate transfers, from where the last process was.
async fn coordinate(
    config: kvd::config::Transfers,
    data_dir: Option<&Path>,
    valkey: Option<&kvd::config::Valkey>,
    dialer: &Dialer,
) -> anyhow::Result<Arc<Transfers>> {
    let key = match config.key {
        Some(key) => key,
        None => key::own(data_dir).context("get a key for plan tokens")?,
    };
    let plans = Learned::new(Starting::default(), Policy::default());
    for (name, geometry) in config.models {
        plans.set_model(&name, geometry);
    }
    let (store, sharing) = match (config.valkey, valkey) {
        (Some(shared), Some(valkey)) => {
            let kvd::config::OnValkey { address, wait_replicas } = shared;
            let servers = valkey.load().context("reach the ledger on Valkey")?;
            let process = format!("{} {:016x}", std::process::id(), random_name());
            let setup = Setup { servers, address: address.clone(), process, wait_replicas };
            let (store, library) = OnServers::connect(setup).await.context("reach the ledger on Valkey")?;
            (Some(Box::new(store) as Box<dyn Store>), Some(Sharing { library, address }))
        }
        _ => {
            let store = data_dir.map(|dir| Rocks::open(&dir.join("transfers"))).transpose()?;
            (store.map(|s| Box::new(s) as Box<dyn Store>), None)
        }
    };
    // The store on servers waits for them.
    let transfers = tokio::task::block_in_place(|| {
        Transfers::start(config.config, Arc::new(plans), store, &key, dialer)
    })?;
    Ok(Arc::new(match sharing {
        Some(sharing) => transfers.sharing(sharing),
        None => transfers,
    }))
}

/// Puts back what is known from before, lets publishers be followed from there, and begins to write
/// snapshots.
async fn restore(service: Arc<Service>, files: Option<Files>, every: Duration) -> anyhow::Result<()> {
    let from_peer = peers::bootstrap(&service).await;
    let work = move || {
        let Service { index, publishers, .. } = &*service;
        let from = from_peer.map(|(address, loaded)| (format!("peer {address}"), loaded));
        // What the peer does not have may be here.
        let waits = publishers.is_anyone_waiting();
        let mine = files.as_ref().filter(|_| waits).and_then(|f| f.load(publishers, index));
        let restored = match (from, mine) {
            (None, None) => Restored { from: "nothing".into(), ..Restored::default() },
            (from, mine) => {
                let both = from.into_iter().chain(mine.map(|l| ("snapshot".to_owned(), l)));
                both.fold(Restored::default(), |r, (from, l)| Restored {
                    from: if r.from.is_empty() { from } else { format!("{}, {from}", r.from) },
                    publishers: r.publishers + l.publishers,
                    blocks: r.blocks + l.blocks,
                })
            }
        };
        publishers.begin();
        service.restored.get_or_init(|| restored);
        if let Some(files) = files {
            let runner = Runner::start(files, every, Arc::clone(publishers), Arc::clone(index))?;
            service.snapshots.get_or_init(|| runner);
        }
        Ok(())
    };
    tokio::task::spawn_blocking(work).await.context("restore")?
}

/// Keeps an eye on warming up, and says when schedulers may ask.
async fn warm_up(service: Arc<Service>) {
    let mut before = Stage::Restoring;
    loop {
        let looking = Arc::clone(&service);
        // The list takes locks that a registration holds while it looks names up.
        let Ok(stage) = tokio::task::spawn_blocking(move || looking.look_at_warmup()).await else { return };
        if stage.is_ready() && !before.is_ready() {
            info!(stage = stage.name(), after_ms = service.uptime_ms(), "ready");
        }
        before = stage;
        tokio::time::sleep(if stage.is_ready() { CALM } else { EAGER }).await;
    }
}

/// The addresses, for who started kvd (standard output) and for the log.
fn announce(grpc: SocketAddr, http: SocketAddr, publishers: usize) {
    let version = env!("CARGO_PKG_VERSION");
    // Who started kvd may not be listening, which is no reason to stop.
    let _ = writeln!(std::io::stdout(), "kvd {version} grpc={grpc} http={http}");
    info!(%grpc, %http, publishers, version, "serving");
}

async fn listen(what: &str, flag: &str, address: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::AddrInUse => "another process has the port, stop it or choose another",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege, choose another",
            _ => "choose an address of this machine",
        };
        anyhow!("cannot answer {what} on {address}: {error}; {remedy} with {flag}")
    })
}

/// Takes as many open files as the system allows, because every publisher needs a few, and says
/// where that may not be enough.
fn raise_file_limit(publishers: usize) {
    /// Sockets and their wake-ups of one publisher, its replay included.
    const PER_PUBLISHER: u64 = 5;
    /// Everything else: listeners, clients, logs.
    const REST: u64 = 256;
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => {
            let wanted = publishers as u64 * PER_PUBLISHER + REST;
            if limit < wanted {
                warn!(
                    limit,
                    wanted, "open files may run out before max_publishers is reached; raise ulimit -n"
                );
            }
        }
        Err(error) => warn!(%error, "cannot raise the limit of open files"),
    }
}

/// Writes what the catalog holds back for the next write, where none comes.
async fn flush_now_and_then(catalog: Arc<Catalog>) {
    let mut failing = false;
    loop {
        tokio::time::sleep(FLUSH_EVERY).await;
        let catalog = Arc::clone(&catalog);
        let done = tokio::task::spawn_blocking(move || catalog.flush()).await;
        match done {
            Ok(Ok(())) => failing = false,
            Ok(Err(error)) if !failing => {
                warn!(%error, "cannot write the catalog, trying again");
                failing = true;
            }
            Ok(Err(_)) => {}
            // The runtime is being shut down.
            Err(_) => return,
        }
    }
}

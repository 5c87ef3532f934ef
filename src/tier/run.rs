//! What is started, and in which order it ends.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use kvproto::rpc::kv::tier_service_server::TierServiceServer;
use kvtier::agent::Agent;
use kvtier::node::{MakeShared, Node, NodeConfig, Tiers};
use kvtier::shared::{Objects, Shared, store_at};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::config::TierConfig;
use super::grpc::TierApi;
use super::metrics;
use super::publish::{Publisher, Sockets};
use super::pull::Pulling;
use crate::cluster::Cluster;
use crate::guard::tls::ServerTls;
use crate::guard::{GateLayer, Guard, wire};
use crate::serve::http::connections;
use crate::wall::unix_ms;

/// Largest gRPC request, in bytes.
const MOST_REQUEST: usize = 4 << 20;

/// A node that runs: its threads and sockets. Ends when it is told to, or dropped.
pub struct Running {
    /// The node itself.
    pub node: Arc<Node>,
    /// What is published.
    pub publisher: Arc<Publisher>,
    /// The sockets of each model.
    pub sockets: Vec<Sockets>,
    /// What engines are connected to.
    pub agent: Option<Agent>,
    /// What brings blocks of other nodes, and gives them blocks.
    pub pulling: Option<Pulling>,
    /// Makes requests to shared storage.
    runtime: Option<tokio::runtime::Runtime>,
    /// Set when what the disk holds can be looked up.
    ready: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    /// Starts a node. Its disks are opened in the background.
    ///
    /// # Errors
    ///
    /// Where its files or sockets cannot be used.
    pub fn start(config: &TierConfig) -> anyhow::Result<Running> {
        let publisher = Arc::new(Publisher::default());
        let mut runtime = None;
        let shared = match &config.shared {
            None => None,
            Some(shared) => {
                let store = store_at(&shared.url).context("open shared storage")?;
                // Requests have threads of their own: those that make moves wait for them.
                let made = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
                let handle = runtime.insert(made.context("start a runtime")?).handle().clone();
                let prefix = shared.prefix.clone();
                let make = move |bytes| -> Arc<dyn Shared> {
                    Arc::new(Objects::new(store.clone(), handle.clone(), &prefix, bytes))
                };
                Some(Box::new(make) as MakeShared)
            }
        };
        let node = Node::open(
            NodeConfig {
                name: config.node.clone(),
                folder: config.folder.clone(),
                ram_bytes: config.ram_bytes,
                disk_bytes: config.disk_bytes,
                pools: config.pools,
                backend: config.backend,
                policy: config.policy.clone(),
                patience: config.patience,
                clock: Arc::new(unix_ms),
                shared,
            },
            publisher.clone(),
        );
        let node = Arc::new(node.context("open the node")?);
        let mut sockets = Vec::new();
        for model in &config.models {
            let stream = node.stream_of(&model.name).context("open a stream")?;
            let opened = Sockets::open(&publisher, &node, stream, model);
            sockets.push(opened.with_context(|| format!("publish {}", model.name))?);
        }
        let mut running = Running {
            node,
            publisher,
            sockets,
            agent: None,
            pulling: None,
            runtime,
            ready: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        running.recover();
        for _ in 0..config.threads {
            let node = running.node.clone();
            running.threads.push(std::thread::spawn(move || node.work()));
        }
        running.write_down(config.commit_every, config.probe_every);
        if let Some(shared) = &config.shared {
            running.look_around(shared.refresh_every);
        }
        running.pulling = config.pull.as_ref().map(|pull| Pulling::start(&running.node, pull)).transpose()?;
        let tiers: Arc<dyn Tiers> = running.node.clone();
        let socket = config.agent.socket.display();
        if let Some(folder) = config.agent.socket.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        let agent = Agent::start(tiers, config.agent.clone());
        running.agent = Some(agent.with_context(|| format!("listen for engines at {socket}"))?);
        Ok(running)
    }

    fn recover(&mut self) {
        let (node, ready) = (self.node.clone(), self.ready.clone());
        self.threads.push(std::thread::spawn(move || {
            let began = Instant::now();
            if let Err(error) = node.recover() {
                error!(error = %anyhow::Error::new(error), "a disk cannot be used");
            }
            ready.store(true, Ordering::Release);
            let blocks: u32 = node.usage().iter().map(|pool| pool.policy.disk).sum();
            info!(blocks, ms = began.elapsed().as_millis() as u64, "disks are open");
        }));
    }

    fn write_down(&mut self, commit_every: Duration, probe_every: Duration) {
        let (node, stop) = (self.node.clone(), self.stop.clone());
        self.threads.push(std::thread::spawn(move || {
            let (mut probed, mut failing) = (Instant::now(), false);
            while !stop.load(Ordering::Acquire) {
                std::thread::sleep(commit_every);
                match node.commit() {
                    Ok(_) if failing => {
                        failing = false;
                        info!("changes are written down again");
                    }
                    Ok(_) => {}
                    Err(error) if !failing => {
                        failing = true;
                        warn!(error = %anyhow::Error::new(error), "changes are not written down");
                    }
                    Err(_) => {}
                }
                if probed.elapsed() >= probe_every {
                    node.probe();
                    probed = Instant::now();
                }
            }
        }));
    }

    fn look_around(&mut self, every: Duration) {
        let (node, stop) = (self.node.clone(), self.stop.clone());
        self.threads.push(std::thread::spawn(move || {
            let mut looked: Option<Instant> = None;
            while !stop.load(Ordering::Acquire) {
                if looked.is_none_or(|at| at.elapsed() >= every) {
                    node.refresh_shared();
                    looked = Some(Instant::now());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }));
    }

    /// Whether what the disks hold can be looked up.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Ends: makes the moves that wait, writes down what has changed, closes the sockets. What is in
    /// RAM alone is copied to disk first, if that is done within `patience`.
    pub fn end(mut self, patience: Duration) {
        let began = Instant::now();
        // Engines and other nodes first: what they have under way ends, and nothing more comes.
        self.agent = None;
        self.pulling = None;
        self.node.drain();
        while began.elapsed() < patience && self.node.usage().iter().any(|pool| pool.waiting[1] > 0) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.halt();
        if let Err(error) = self.node.commit() {
            warn!(error = %anyhow::Error::new(error), "the last changes are not written down");
        }
    }

    fn halt(&mut self) {
        self.agent = None;
        self.pulling = None;
        self.stop.store(true, Ordering::Release);
        self.node.close();
        for thread in self.threads.drain(..) {
            // What a thread that panicked had to say was said.
            let _ = thread.join();
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.halt();
    }
}

/// `kvd tier`: runs until it is told to stop.
///
/// # Errors
///
/// Where it cannot start.
pub async fn run(config: TierConfig) -> anyhow::Result<()> {
    // Before anything else, so that being told to stop early is not missed.
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    std::fs::create_dir_all(&config.folder).with_context(|| format!("make {}", config.folder.display()))?;
    let cluster = match &config.security.token_review {
        None => None,
        Some(review) => Some(Cluster::find(review.kubeconfig.as_deref()).await?.client),
    };
    let guard = Arc::new(Guard::load(&config.security, cluster).context("guard")?);
    let tls = ServerTls::load(&config.security).context("read the certificate")?;
    let http = TcpListener::bind(&config.http_listen)
        .await
        .with_context(|| format!("answer HTTP on {}", config.http_listen))?;
    let http_at = http.local_addr().context("read the HTTP address")?;
    let grpc = TcpListener::bind(&config.grpc_listen)
        .await
        .with_context(|| format!("answer gRPC on {}", config.grpc_listen))?;
    let grpc_at = grpc.local_addr().context("read the gRPC address")?;
    // It may wait for the disk, and brings a runtime of its own.
    let started = config.clone();
    let running = tokio::task::spawn_blocking(move || Running::start(&started)).await;
    let running = Arc::new(running.context("start the node")??);
    let (stop, mut stopping) = watch::channel(false);
    let mut told = stopping.clone();
    let puller = running.pulling.as_ref().map(|pulling| pulling.puller.clone());
    let service = TierServiceServer::new(TierApi::new(running.node.clone(), puller))
        .max_decoding_message_size(MOST_REQUEST);
    let gate = GateLayer::new(Arc::clone(&guard));
    let serve = tonic::transport::Server::builder().layer(gate.clone()).add_service(service);
    let incoming = wire::incoming(grpc, tls.clone());
    let grpc = tokio::spawn(serve.serve_with_incoming_shutdown(incoming, async move {
        let _ = told.wait_for(|stop| *stop).await;
    }));
    // These end with the process.
    tokio::spawn(guard.keep_current());
    if let Some(tls) = &tls {
        tokio::spawn(Arc::clone(tls).keep_current());
    }
    let server = tokio::spawn(connections::serve(router(&running).layer(gate), http, tls, async move {
        // An error means that the sender is gone, and so is the reason to go on.
        let _ = stopping.wait_for(|stop| *stop).await;
    }));
    // Who started it may not be listening, which is no reason to stop.
    let mut out = std::io::stdout();
    let (version, socket) = (env!("CARGO_PKG_VERSION"), config.agent.socket.display());
    let source = running.pulling.as_ref().and_then(|pulling| pulling.source.as_ref());
    let pull = source.map(|source| format!(" pull={}", source.address())).unwrap_or_default();
    let node = &config.node;
    let _ =
        writeln!(out, "kvd tier {version} node={node} grpc={grpc_at} http={http_at} socket={socket}{pull}");
    for sockets in &running.sockets {
        let Sockets { model, publish, replay, .. } = sockets;
        let _ = writeln!(out, "model={model} publish={publish} replay={replay}");
        info!(model, publish, replay, "publishing");
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("told to stop, writing down what there is");
    stop.send_replace(true);
    let _ = server.await;
    // A scrub that somebody looks at ends with the process.
    let _ = tokio::time::timeout(Duration::from_secs(2), grpc).await;
    match Arc::into_inner(running) {
        Some(running) => tokio::task::spawn_blocking(move || running.end(Duration::from_secs(10)))
            .await
            .context("end the node")?,
        // A connection that is still open has it, and drops it when it ends.
        None => warn!("a request is still under way"),
    }
    info!("stopped");
    Ok(())
}

fn router(running: &Arc<Running>) -> Router {
    let (of_metrics, of_ready) = (running.clone(), running.clone());
    let metrics = move || async move {
        let type_ = [("content-type", crate::metrics::CONTENT_TYPE)];
        (type_, metrics::render(&of_metrics))
    };
    let ready = move || async move {
        match of_ready.is_ready() {
            true => (StatusCode::OK, "ready\n"),
            false => (StatusCode::SERVICE_UNAVAILABLE, "reading the disk\n"),
        }
    };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
}

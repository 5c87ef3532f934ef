//! A Kubernetes API server: list in pages and watch, with resource versions, bookmarks, 410 Gone in both
//! forms, kinds that are not installed, connections that drop, and reviews of tokens.

mod answer;
mod reviews;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use serde_json::{Value, json};
use tokio::sync::watch;

/// Kinds, by the end of their path.
pub const PODS: &str = "api/v1/pods";
pub const SLICES: &str = "apis/discovery.k8s.io/v1/endpointslices";
pub const POOLS: &str = "apis/inference.networking.k8s.io/v1/inferencepools";
pub const OLD_POOLS: &str = "apis/inference.networking.x-k8s.io/v1alpha2/inferencepools";

/// The server and what is done to it.
pub struct Api {
    shared: Arc<Shared>,
    address: std::net::SocketAddr,
    /// Ends with it.
    _runtime: tokio::runtime::Runtime,
}

struct Shared {
    cluster: Mutex<Cluster>,
    /// Tells watches that something happened.
    changed: watch::Sender<u64>,
}

/// Objects by `namespace/name`.
type Objects = BTreeMap<String, Value>;

#[derive(Default)]
struct Cluster {
    version: u64,
    /// By kind; one that is not here is not installed.
    kinds: BTreeMap<String, Kind>,
    log: Vec<Change>,
    /// Objects as they were when a list of several pages was begun, by version: its pages are of one moment.
    paged: BTreeMap<u64, Arc<Objects>>,
    /// Watches from before this version are refused.
    oldest: u64,
    gone_by_status: bool,
    /// Watches of an earlier number end, without a word.
    cut: u64,
    down: bool,
    bookmarks: u64,
    /// By token.
    accounts: BTreeMap<String, reviews::Account>,
    reviews: u64,
    stalled: bool,
}

#[derive(Default)]
struct Kind {
    objects: Objects,
    asked: Asked,
}

/// What was asked about a kind so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub lists: u64,
    pub watches: u64,
    /// With 410.
    pub refused: u64,
}

#[derive(Clone)]
struct Change {
    kind: String,
    version: u64,
    /// `None`: it was deleted.
    after: Option<Value>,
    before: Option<Value>,
}

impl Api {
    /// A cluster that knows pods and EndpointSlices, and has none.
    pub fn start() -> Api {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let kinds = [PODS, SLICES].map(|kind| (kind.to_owned(), Kind::default())).into();
        let shared = Arc::new(Shared {
            cluster: Mutex::new(Cluster { version: 1, kinds, ..Cluster::default() }),
            changed: watch::Sender::new(0),
        });
        let router = Router::new().fallback(answer::answer).with_state(Arc::clone(&shared));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("bound");
        runtime.spawn(async move { axum::serve(listener, router).await });
        Api { shared, address, _runtime: runtime }
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.shared.cluster.lock().expect("no test panics inside")
    }

    fn change(&self, change: impl FnOnce(&mut Cluster)) {
        change(&mut self.cluster());
        self.shared.changed.send_modify(|n| *n += 1);
    }

    /// A file that says how it is reached, with `namespace` as kvd's own.
    pub fn kubeconfig(&self, folder: &Path, namespace: &str) -> PathBuf {
        let path = folder.join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "kvd", "user": {}}],
            "contexts": [{"name": "here",
                "context": {"cluster": "here", "user": "kvd", "namespace": namespace}}],
        });
        std::fs::write(&path, config.to_string()).expect("write");
        path
    }

    /// Makes the cluster know a kind.
    pub fn install(&self, kind: &str) {
        self.change(|c| {
            c.kinds.entry(kind.to_owned()).or_default();
        });
    }

    /// Makes an object what `object` says, from now on.
    pub fn put(&self, mut object: Value) {
        self.change(|c| {
            c.version += 1;
            object["metadata"]["resourceVersion"] = c.version.to_string().into();
            let name = kind_of(&object);
            let kind = c.kinds.get_mut(&name).unwrap_or_else(|| panic!("{name} is not installed"));
            let before = kind.objects.insert(key(&object), object.clone());
            c.log.push(Change { kind: name, version: c.version, after: Some(object), before });
        });
    }

    /// Takes a pod away.
    pub fn delete(&self, namespace: &str, name: &str) {
        self.delete_of(PODS, namespace, name);
    }

    /// Takes an object away.
    pub fn delete_of(&self, kind: &str, namespace: &str, name: &str) {
        self.change(|c| {
            let objects = &mut c.kinds.get_mut(kind).expect("a kind that there is").objects;
            let Some(mut before) = objects.remove(&format!("{namespace}/{name}")) else { return };
            c.version += 1;
            before["metadata"]["resourceVersion"] = c.version.to_string().into();
            let kind = kind.to_owned();
            c.log.push(Change { kind, version: c.version, after: None, before: Some(before) });
        });
    }

    /// Drops every watch's connection.
    pub fn cut(&self) {
        self.change(|c| c.cut += 1);
    }

    /// Forgets all changes so far; who asks from before is told 410, by an event or by the status.
    pub fn forget(&self, by_status: bool) {
        self.change(|c| {
            c.oldest = c.version;
            c.gone_by_status = by_status;
            c.log.clear();
            c.paged.clear();
        });
    }

    /// Lets time pass without an object that anybody looks at, and bookmarks it.
    pub fn bookmark(&self) {
        self.change(|c| {
            c.version += 1;
            c.bookmarks = c.version;
        });
    }

    /// Answers nothing but 503 from now on, or answers again.
    pub fn down(&self, down: bool) {
        self.change(|c| {
            c.down = down;
            c.cut += 1;
        });
    }

    /// What was asked about a kind so far.
    pub fn asked(&self, kind: &str) -> Asked {
        self.cluster().kinds.get(kind).map(|k| k.asked).unwrap_or_default()
    }
}

/// `namespace/name`.
fn key(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().expect("named").to_owned();
    format!("{}/{}", text("namespace"), text("name"))
}

/// The kind of an object, by the end of its path.
fn kind_of(object: &Value) -> String {
    let text = |field: &str| object[field].as_str().expect("every object says it").to_owned();
    let (version, plural) = (text("apiVersion"), text("kind").to_lowercase() + "s");
    let root = if version.contains('/') { "apis" } else { "api" };
    format!("{root}/{version}/{plural}")
}

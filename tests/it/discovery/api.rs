//! A Kubernetes API server that knows pods: list in pages and watch, with resource versions, bookmarks,
//! 410 Gone in both forms, and connections that drop.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::watch;

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

#[derive(Default)]
struct Cluster {
    version: u64,
    /// By `namespace/name`.
    pods: BTreeMap<String, Value>,
    log: Vec<Change>,
    /// The pods as they were when a list of several pages was begun, by version: its pages are of one moment.
    paged: BTreeMap<u64, Arc<BTreeMap<String, Value>>>,
    /// Watches from before this version are refused.
    oldest: u64,
    gone_by_status: bool,
    /// Watches of an earlier number end, without a word.
    cut: u64,
    down: bool,
    bookmarks: u64,
    lists: u64,
    watches: u64,
    refused: u64,
}

#[derive(Clone)]
struct Change {
    version: u64,
    /// `None`: it was deleted.
    after: Option<Value>,
    before: Option<Value>,
}

impl Api {
    /// A cluster without pods.
    pub fn start() -> Api {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let shared = Arc::new(Shared {
            cluster: Mutex::new(Cluster { version: 1, ..Cluster::default() }),
            changed: watch::Sender::new(0),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
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

    /// Makes a pod what `pod` says, from now on.
    pub fn put(&self, mut pod: Value) {
        self.change(|c| {
            c.version += 1;
            pod["metadata"]["resourceVersion"] = c.version.to_string().into();
            let before = c.pods.insert(key(&pod), pod.clone());
            c.log.push(Change { version: c.version, after: Some(pod), before });
        });
    }

    /// Takes a pod away.
    pub fn delete(&self, namespace: &str, name: &str) {
        self.change(|c| {
            let Some(mut before) = c.pods.remove(&format!("{namespace}/{name}")) else { return };
            c.version += 1;
            before["metadata"]["resourceVersion"] = c.version.to_string().into();
            c.log.push(Change { version: c.version, after: None, before: Some(before) });
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

    /// Lets time pass without a pod that anybody looks at, and bookmarks it.
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

    /// Lists, watches and watches refused with 410 so far.
    pub fn asked(&self) -> (u64, u64, u64) {
        let c = self.cluster();
        (c.lists, c.watches, c.refused)
    }
}

fn key(pod: &Value) -> String {
    let text = |field: &str| pod["metadata"][field].as_str().expect("named").to_owned();
    format!("{}/{}", text("namespace"), text("name"))
}

/// What is asked for.
#[derive(Clone)]
struct Asked {
    namespace: Option<String>,
    /// Only `key=value`, as the tests use.
    label: Option<(String, String)>,
}

impl Asked {
    fn wants(&self, pod: &Value) -> bool {
        let here = self.namespace.as_ref().is_none_or(|n| pod["metadata"]["namespace"] == **n);
        here && self.label.as_ref().is_none_or(|(k, v)| pod["metadata"]["labels"][k] == **v)
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    uri: Uri,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let namespace = match uri.path().trim_matches('/').split('/').collect::<Vec<_>>()[..] {
        ["api", "v1", "pods"] => None,
        ["api", "v1", "namespaces", namespace, "pods"] => Some(namespace.to_owned()),
        _ => return failure(404, "NotFound"),
    };
    let label = query.get("labelSelector").and_then(|s| s.split_once('='));
    let asked = Asked { namespace, label: label.map(|(k, v)| (k.to_owned(), v.to_owned())) };
    let number = |name: &str| query.get(name).and_then(|v| v.parse::<u64>().ok());
    let mut cluster = shared.cluster.lock().expect("no test panics inside");
    if cluster.down {
        return failure(503, "ServiceUnavailable");
    }
    if query.get("watch").is_some_and(|w| w == "true") {
        let from = number("resourceVersion").expect("a watch says where it begins");
        cluster.watches += 1;
        if from < cluster.oldest {
            cluster.refused += 1;
            if cluster.gone_by_status {
                return failure(410, "Expired");
            }
            let event = json!({"type": "ERROR", "object": status(410, "Expired")});
            return (StatusCode::OK, format!("{event}\n")).into_response();
        }
        let (cut, bookmarks) = (cluster.cut, query.get("allowWatchBookmarks").is_some_and(|b| b == "true"));
        drop(cluster);
        return follow(shared, asked, from, cut, bookmarks);
    }
    cluster.lists += u64::from(!query.contains_key("continue"));
    list(&mut cluster, &asked, number("limit"), query.get("continue").map(String::as_str))
}

fn list(cluster: &mut Cluster, asked: &Asked, limit: Option<u64>, token: Option<&str>) -> Response {
    let (version, after) = match token.and_then(|t| t.split_once(' ')) {
        Some((version, after)) => (version.parse().expect("ours"), after),
        None => (cluster.version, ""),
    };
    let Some(pods) = (match token {
        Some(_) => cluster.paged.get(&version).cloned(),
        None => Some(Arc::new(cluster.pods.clone())),
    }) else {
        return failure(410, "Expired");
    };
    let mut found = pods.iter().filter(|(k, p)| k.as_str() > after && asked.wants(p));
    let page: Vec<_> = found.by_ref().take(limit.map_or(usize::MAX, |n| n as usize)).collect();
    let more = found.next().is_some();
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let (true, Some((last, _))) = (more, page.last()) {
        metadata["continue"] = format!("{version} {last}").into();
        cluster.paged.insert(version, Arc::clone(&pods));
    }
    let items: Vec<_> = page.into_iter().map(|(_, p)| p).collect();
    let body = json!({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items});
    ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

fn follow(shared: Arc<Shared>, asked: Asked, from: u64, cut: u64, bookmarks: bool) -> Response {
    let changed = shared.changed.subscribe();
    let start = (shared, changed, from, 0);
    let events = stream::unfold(start, move |(shared, mut changed, mut at, mut marked)| {
        let asked = asked.clone();
        async move {
            loop {
                changed.borrow_and_update();
                let mut text = String::new();
                {
                    let cluster = shared.cluster.lock().expect("no test panics inside");
                    if cluster.cut != cut {
                        return None;
                    }
                    for change in cluster.log.iter().filter(|c| c.version > at) {
                        if let Some(event) = event(change, &asked) {
                            text.push_str(&format!("{event}\n"));
                        }
                    }
                    at = cluster.version.max(at);
                    if bookmarks && cluster.bookmarks > marked {
                        marked = cluster.bookmarks;
                        let object = json!({"kind": "Pod", "apiVersion": "v1",
                            "metadata": {"resourceVersion": marked.to_string()}});
                        text.push_str(&format!("{}\n", json!({"type": "BOOKMARK", "object": object})));
                    }
                }
                if !text.is_empty() {
                    let bytes = Bytes::from(text);
                    return Some((Ok::<_, Infallible>(bytes), (shared, changed, at, marked)));
                }
                // Real servers end watches by and by, too.
                if tokio::time::timeout(Duration::from_secs(60), changed.changed()).await.is_err() {
                    return None;
                }
            }
        }
    });
    Body::from_stream(events).into_response()
}

/// A change as who watches with a selector sees it.
fn event(change: &Change, asked: &Asked) -> Option<Value> {
    let is = |pod: &Option<Value>| pod.as_ref().is_some_and(|p| asked.wants(p));
    let (kind, object) = match (is(&change.before), is(&change.after)) {
        (false, false) => return None,
        (false, true) => ("ADDED", change.after.clone()),
        (true, true) => ("MODIFIED", change.after.clone()),
        (true, false) => ("DELETED", change.after.clone().or(change.before.clone())),
    };
    Some(json!({"type": kind, "object": object}))
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code})
}

fn failure(code: u16, reason: &str) -> Response {
    let code = StatusCode::from_u16(code).expect("a status");
    (code, [(header::CONTENT_TYPE, "application/json")], status(code.as_u16(), reason).to_string())
        .into_response()
}

//! What the API server answers.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde_json::{Value, json};

use super::{Change, Cluster, Objects, Shared, reviews};

/// What is asked for.
#[derive(Clone)]
struct Selector {
    kind: String,
    namespace: Option<String>,
    /// Only `key=value`s, as the tests use.
    labels: Vec<(String, String)>,
    name: Option<String>,
}

impl Selector {
    /// By the path and the query; `None` where the path is of no kind of objects.
    fn of(uri: &Uri, query: &HashMap<String, String>) -> Option<Selector> {
        let mut path: Vec<_> = uri.path().trim_matches('/').split('/').collect();
        let place = path.iter().position(|p| *p == "namespaces");
        let namespace = place.and_then(|at| {
            path.drain(at..)
                .collect::<Vec<_>>()
                .get(1..3)
                .map(|found| (found[0].to_owned(), found[1].to_owned()))
        });
        let (namespace, kind) = match namespace {
            Some((namespace, plural)) => (Some(namespace), format!("{}/{plural}", path.join("/"))),
            None => (None, path.join("/")),
        };
        let of = |selector: &str| -> Vec<(String, String)> {
            let all = query.get(selector).map(String::as_str).unwrap_or_default();
            let pairs = all.split(',').filter_map(|s| s.split_once('='));
            pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
        };
        let name = of("fieldSelector").into_iter().find(|(k, _)| k == "metadata.name").map(|(_, v)| v);
        (path.len() >= 2).then(|| Selector { kind, namespace, labels: of("labelSelector"), name })
    }

    fn wants(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        self.namespace.as_ref().is_none_or(|n| metadata["namespace"] == **n)
            && self.name.as_ref().is_none_or(|n| metadata["name"] == **n)
            && self.labels.iter().all(|(k, v)| metadata["labels"][k] == **v)
    }
}

pub(super) async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    Query(query): Query<HashMap<String, String>>,
    body: Bytes,
) -> Response {
    if shared.cluster.lock().expect("no test panics inside").down {
        return failure(503, "ServiceUnavailable");
    }
    if (&method, uri.path()) == (&Method::POST, reviews::PATH) {
        return reviews::review(&shared, &body).await;
    }
    let mut cluster = shared.cluster.lock().expect("no test panics inside");
    let selector = Selector::of(&uri, &query);
    let Some(selector) = selector.filter(|s| cluster.kinds.contains_key(&s.kind)) else {
        // So says it a real one, without a Status.
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    };
    let number = |name: &str| query.get(name).and_then(|v| v.parse::<u64>().ok());
    let oldest = cluster.oldest;
    let asked = &mut cluster.kinds.get_mut(&selector.kind).expect("it is there").asked;
    if query.get("watch").is_some_and(|w| w == "true") {
        let from = number("resourceVersion").expect("a watch says where it begins");
        asked.watches += 1;
        if from < oldest {
            asked.refused += 1;
            if cluster.gone_by_status {
                return failure(410, "Expired");
            }
            let event = json!({"type": "ERROR", "object": status(410, "Expired")});
            return (StatusCode::OK, format!("{event}\n")).into_response();
        }
        let (cut, bookmarks) = (cluster.cut, query.get("allowWatchBookmarks").is_some_and(|b| b == "true"));
        drop(cluster);
        return follow(shared, selector, from, cut, bookmarks);
    }
    asked.lists += u64::from(!query.contains_key("continue"));
    list(&mut cluster, &selector, number("limit"), query.get("continue").map(String::as_str))
}

fn list(cluster: &mut Cluster, selector: &Selector, limit: Option<u64>, token: Option<&str>) -> Response {
    let (version, after) = match token.and_then(|t| t.split_once(' ')) {
        Some((version, after)) => (version.parse().expect("ours"), after),
        None => (cluster.version, ""),
    };
    let objects: Option<Arc<Objects>> = match token {
        Some(_) => cluster.paged.get(&version).cloned(),
        None => cluster.kinds.get(&selector.kind).map(|kind| Arc::new(kind.objects.clone())),
    };
    let Some(objects) = objects else { return failure(410, "Expired") };
    let mut found = objects.iter().filter(|(k, o)| k.as_str() > after && selector.wants(o));
    let page: Vec<_> = found.by_ref().take(limit.map_or(usize::MAX, |n| n as usize)).collect();
    let more = found.next().is_some();
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let (true, Some((last, _))) = (more, page.last()) {
        metadata["continue"] = format!("{version} {last}").into();
        cluster.paged.insert(version, Arc::clone(&objects));
    }
    let items: Vec<_> = page.into_iter().map(|(_, o)| o).collect();
    let body = json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items});
    ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

fn follow(shared: Arc<Shared>, selector: Selector, from: u64, cut: u64, bookmarks: bool) -> Response {
    let changed = shared.changed.subscribe();
    let start = (shared, changed, from, 0);
    let events = stream::unfold(start, move |(shared, mut changed, mut at, mut marked)| {
        let selector = selector.clone();
        async move {
            loop {
                changed.borrow_and_update();
                let mut text = String::new();
                {
                    let cluster = shared.cluster.lock().expect("no test panics inside");
                    if cluster.cut != cut {
                        return None;
                    }
                    for change in cluster.log.iter().filter(|c| c.version > at && c.kind == selector.kind) {
                        if let Some(event) = event(change, &selector) {
                            text.push_str(&format!("{event}\n"));
                        }
                    }
                    at = cluster.version.max(at);
                    if bookmarks && cluster.bookmarks > marked {
                        marked = cluster.bookmarks;
                        let object = json!({"kind": "Bookmark", "apiVersion": "v1",
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
fn event(change: &Change, selector: &Selector) -> Option<Value> {
    let is = |object: &Option<Value>| object.as_ref().is_some_and(|o| selector.wants(o));
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

//! The page's files, and what a browser may do with them.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::super::error::Refusal;

/// Nothing but the page's own files, and data from where they came from. No inline script or style, no
/// frame around it, no form that leads away.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What who does not ask for a page reads at `/`.
const PATHS: &str = "kvd: POST /query /query_by_hash /report_outcome /register /unregister /v1/explain, \
     GET /publishers /workers /discovery /dump /healthz /readyz /metrics /v1/overview /v1/prefixes /v1/transfers; \
     see docs/http.md. A browser sees a page here.\n";

struct File {
    name: &'static str,
    kind: &'static str,
    text: &'static [u8],
    tag: LazyLock<HeaderValue>,
}

macro_rules! file {
    ($name:literal, $kind:literal) => {
        file!($name, $kind, concat!("assets/", $name))
    };
    ($name:literal, $kind:literal, $path:expr) => {
        File {
            name: $name,
            kind: $kind,
            text: include_bytes!($path),
            tag: LazyLock::new(|| tag(include_bytes!($path))),
        }
    };
}

/// The first is the page.
static FILES: [File; 11] = [
    file!("index.html", "text/html; charset=utf-8"),
    file!("style.css", "text/css; charset=utf-8"),
    file!("icon.svg", "image/svg+xml"),
    file!("main.js", "text/javascript; charset=utf-8"),
    file!("auth.js", "text/javascript; charset=utf-8"),
    file!("dom.js", "text/javascript; charset=utf-8"),
    file!("pods.js", "text/javascript; charset=utf-8"),
    file!("prefixes.js", "text/javascript; charset=utf-8"),
    file!("transfers.js", "text/javascript; charset=utf-8"),
    file!("explain.js", "text/javascript; charset=utf-8"),
    // What the page points to when something is wrong, so that it is of this version and needs no network.
    file!(
        "troubleshooting.md",
        "text/plain; charset=utf-8",
        concat!(env!("CARGO_MANIFEST_DIR"), "/docs/troubleshooting.md")
    ),
];

fn tag(bytes: &[u8]) -> HeaderValue {
    let tag = format!("\"{:016x}\"", xxhash_rust::xxh3::xxh3_64(bytes));
    HeaderValue::from_str(&tag).expect("hexadecimal digits in quotes")
}

/// `GET /`: the page for browsers, the paths for everybody else.
pub(super) async fn root(headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|a| a.to_str().ok()).unwrap_or_default();
    let mut response = match accept.contains("text/html") {
        true => send(&FILES[0], &headers),
        false => PATHS.into_response(),
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    response
}

/// `GET /page/NAME`
pub(super) async fn file(Path(name): Path<String>, headers: HeaderMap) -> Result<Response, Refusal> {
    let found = FILES.iter().find(|f| f.name == name);
    found.map(|f| send(f, &headers)).ok_or_else(|| {
        let error = format!("there is no /page/{name}; GET / lists the paths there are");
        Refusal::new(StatusCode::NOT_FOUND, "path", error)
    })
}

fn send(file: &File, headers: &HeaderMap) -> Response {
    let fixed = [
        (header::CONTENT_TYPE, file.kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        // Asked for again each time, so that page and data are of one version; mostly answered by 304.
        (header::CACHE_CONTROL, "no-cache"),
    ]
    .map(|(name, value)| (name, HeaderValue::from_static(value)));
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|asked| {
        let asked = asked.as_bytes();
        asked == b"*" || asked.windows(file.tag.len()).any(|w| w == file.tag.as_bytes())
    });
    let mut response = match known {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => file.text.into_response(),
    };
    for (name, value) in fixed {
        response.headers_mut().insert(name, value);
    }
    response.headers_mut().insert(header::ETAG, file.tag.clone());
    response
}

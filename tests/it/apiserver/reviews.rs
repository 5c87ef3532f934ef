//! Tokens of service accounts, and what the API server says of them.

use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::{Api, Shared};

/// Where they are reviewed.
pub(super) const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// Whose a token is.
pub(super) struct Account {
    namespace: String,
    name: String,
    audience: String,
    is_over: bool,
}

impl Api {
    /// A token of a service account that is meant for `audience`.
    pub fn issue(&self, namespace: &str, name: &str, audience: &str) -> String {
        let mut c = self.cluster();
        let token = format!("eyJhbGciOiJSUzI1NiJ9.{namespace}-{name}-{}.c2lnbmF0dXJl", c.accounts.len());
        let text = str::to_owned;
        let account = Account {
            namespace: text(namespace),
            name: text(name),
            audience: text(audience),
            is_over: false,
        };
        c.accounts.insert(token.clone(), account);
        token
    }

    /// Makes a token one that has expired.
    pub fn expire(&self, token: &str) {
        self.cluster().accounts.get_mut(token).expect("it was issued").is_over = true;
    }

    /// Takes a token back.
    pub fn revoke(&self, token: &str) {
        self.cluster().accounts.remove(token);
    }

    /// Answers no review from now on, and refuses none, or answers again.
    pub fn stall(&self, stalled: bool) {
        self.cluster().stalled = stalled;
    }

    /// Reviews asked for so far.
    pub fn reviews(&self) -> u64 {
        self.cluster().reviews
    }
}

pub(super) async fn review(shared: &Shared, body: &[u8]) -> Response {
    shared.cluster.lock().expect("no test panics inside").reviews += 1;
    while shared.cluster.lock().expect("no test panics inside").stalled {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut review: Value = serde_json::from_slice(body).expect("JSON");
    assert_eq!(
        (&review["apiVersion"], &review["kind"]),
        (&json!("authentication.k8s.io/v1"), &json!("TokenReview"))
    );
    let cluster = shared.cluster.lock().expect("no test panics inside");
    let account = cluster.accounts.get(review["spec"]["token"].as_str().expect("a token"));
    let asked = review["spec"]["audiences"].as_array().expect("whom it is meant for").clone();
    review["status"] = match account {
        None => json!({"error": "invalid bearer token"}),
        Some(a) if a.is_over => json!({"error": "[invalid bearer token, service account token has expired]"}),
        Some(a) if !asked.contains(&json!(a.audience)) => {
            json!({"error": "[invalid bearer token, token audiences is invalid for the target audiences]"})
        }
        Some(Account { namespace, name, audience, .. }) => json!({
            "authenticated": true, "audiences": [audience],
            "user": {
                "username": format!("system:serviceaccount:{namespace}:{name}"), "uid": "u",
                "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{namespace}"),
                    "system:authenticated"],
            },
        }),
    };
    (StatusCode::CREATED, [(header::CONTENT_TYPE, "application/json")], review.to_string()).into_response()
}

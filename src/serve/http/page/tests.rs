//! The page's files and its data, with batches put into the index by hand.

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use axum::response::Response;
use kvproto::Tier;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::serve::http::tests::{A, B, Kvd, prompt};

async fn fetch(kvd: &Kvd, path: &str, headers: &[(header::HeaderName, &str)]) -> Response {
    let mut request = Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    kvd.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

async fn text(response: Response) -> String {
    let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

const BROWSER: [(header::HeaderName, &str); 1] = [(header::ACCEPT, "text/html,*/*;q=0.8")];

#[tokio::test]
async fn a_browser_gets_the_page_and_a_program_the_paths() {
    let kvd = Kvd::start();
    let page = fetch(&kvd, "/", &BROWSER).await;
    assert_eq!(page.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
    assert_eq!(page.headers()[header::VARY], "accept");
    assert!(text(page).await.starts_with("<!doctype html>"));
    let paths = fetch(&kvd, "/", &[(header::ACCEPT, "*/*")]).await;
    assert!(text(paths).await.contains("/v1/overview"));
}

#[tokio::test]
async fn the_page_names_only_files_that_kvd_has_and_runs_nothing_inline() {
    let kvd = Kvd::start();
    let page = text(fetch(&kvd, "/", &BROWSER).await).await;
    let mut found = 0;
    let quoted = page.split('"').filter(|s| s.starts_with("/page/"));
    for path in quoted {
        let file = fetch(&kvd, path, &[]).await;
        assert_eq!(file.status(), StatusCode::OK, "{path}");
        let policy = file.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(file.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        let content = text(file).await;
        assert!(!content.is_empty());
        if path.ends_with(".js") {
            for import in content.split("from './").skip(1) {
                let name = import.split('\'').next().unwrap();
                let imported = fetch(&kvd, &format!("/page/{name}"), &[]).await;
                assert_eq!(imported.status(), StatusCode::OK, "{path} imports {name}");
            }
            for unsafe_way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
                assert!(!content.contains(unsafe_way), "{path} uses {unsafe_way}");
            }
        }
        found += 1;
    }
    assert!(found >= 8, "{found}");
    for forbidden in ["http://", "https://", "onclick", "style=", "<style", "<script>"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert_eq!(fetch(&kvd, "/page/none.js", &[]).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_a_browser_has_already_is_not_sent_again() {
    let kvd = Kvd::start();
    let first = fetch(&kvd, "/page/main.js", &[]).await;
    let tag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
    let again = fetch(&kvd, "/page/main.js", &[(header::IF_NONE_MATCH, &format!("\"x\", W/{tag}"))]).await;
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(text(again).await, "");
    let other = fetch(&kvd, "/page/main.js", &[(header::IF_NONE_MATCH, "\"0\"")]).await;
    assert_eq!(other.status(), StatusCode::OK);
}

#[tokio::test]
async fn the_overview_counts_what_pods_hold_and_what_was_asked() {
    let kvd = Kvd::start();
    let a = kvd.register(A, 0).await;
    kvd.register(B, 0).await;
    kvd.store(a, 0, 3, Tier::Gpu);
    kvd.store(a, 0, 1, Tier::Cpu);
    kvd.post("/query", prompt(24)).await;
    let o = kvd.get("/v1/overview").await;
    assert_eq!(o["states"], json!({"connecting": 2}));
    assert_eq!(o["index"]["blocks"], json!({"gpu": 3, "cpu": 1, "disk": 0, "shared": 0, "unknown": 0}));
    assert!(o["index"]["bytes"].as_u64().unwrap() > 0);
    assert_eq!((&o["queries"]["total"], &o["queries"]["tokens"]), (&json!(1), &json!(24)));
    assert_eq!(o["queries"]["cached_tokens"], 12);
    assert_eq!((&o["hit_ratio"]["best"], &o["hit_ratio"]["reported"]), (&json!(0.5), &Value::Null));
    let pods = o["pods"].as_array().unwrap();
    let seen: Vec<_> = pods.iter().map(|p| (&p["instance_id"], &p["blocks"], &p["would_hit"])).collect();
    assert_eq!(seen[0], (&json!(A), &json!([3, 1, 0, 0, 0]), &json!(0.5)));
    assert_eq!(seen[1], (&json!(B), &json!([0, 0, 0, 0, 0]), &json!(0.0)));
    assert_eq!(o["pods_omitted"], 0);
}

#[tokio::test]
async fn what_engines_report_is_shown_beside_what_was_possible() {
    let kvd = Kvd::start();
    let a = kvd.register(A, 0).await;
    kvd.store(a, 0, 3, Tier::Gpu);
    let mut asked = prompt(24);
    asked["request_id"] = json!("r1");
    kvd.post("/query", asked).await;
    let report =
        json!({"request_id": "r1", "model": "m", "instance_id": A, "cached_tokens": 6, "prompt_tokens": 24});
    kvd.post("/report_outcome", report.clone()).await;
    // Told again, it counts once.
    kvd.post("/report_outcome", report).await;
    let o = kvd.get("/v1/overview").await;
    assert_eq!((&o["hit_ratio"]["best"], &o["hit_ratio"]["reported"]), (&json!(0.5), &json!(0.25)));
    assert_eq!(o["pods"][0]["reported_hit"], 0.25);
    let (_, metrics) = kvd.send("GET", "/metrics", Body::empty()).await;
    for (name, value) in [("kvd_outcome_prompt_tokens_total", 24), ("kvd_outcome_cached_tokens_total", 6)] {
        assert!(metrics.contains(&format!("\n{name} {value}\n")), "{name}");
    }
}

#[tokio::test]
async fn an_overview_is_made_once_for_all_who_look() {
    let kvd = Kvd::start();
    let first = text(fetch(&kvd, "/v1/overview", &[]).await).await;
    kvd.register(A, 0).await;
    assert_eq!(text(fetch(&kvd, "/v1/overview", &[]).await).await, first);
    tokio::time::sleep(super::views::KEPT).await;
    assert_ne!(text(fetch(&kvd, "/v1/overview", &[]).await).await, first);
}

#[tokio::test]
async fn a_prefix_that_prompts_share_is_listed_with_who_holds_it() {
    let kvd = Kvd::start();
    let a = kvd.register(A, 0).await;
    kvd.register(B, 0).await;
    kvd.store(a, 0, 8, Tier::Gpu);
    kvd.post("/query", prompt(32)).await;
    let other: Vec<u32> = (1..=16).chain(100..116).collect();
    // Looks are 1/64 s apart.
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    kvd.post("/query", json!({"model": "m", "block_size": 4, "token_ids": other})).await;
    let hot = kvd.get("/v1/prefixes").await;
    assert_eq!(hot["roots"], json!([{"tenant_id": "default", "model": "m", "lora_name": null}]));
    let list = hot["prefixes"].as_array().unwrap();
    assert_eq!(list.len(), 1, "{list:?}");
    let p = &list[0];
    assert_eq!((&p["tokens"], &p["holders"], &p["candidates"]), (&json!([0, 16]), &json!(1), &json!(2)));
    assert_eq!((&p["held_by"], &hot["pods"]), (&json!([0]), &json!([{"instance_id": A, "dp_rank": 0}])));
}

#[tokio::test]
async fn one_prompt_is_explained_as_kvctl_explains_it_and_is_no_traffic() {
    let kvd = Kvd::start();
    let a = kvd.register(A, 0).await;
    let b = kvd.register(B, 0).await;
    kvd.store(a, 0, 3, Tier::Gpu);
    kvd.store(a, 0, 1, Tier::Cpu);
    kvd.store(b, 0, 1, Tier::Gpu);
    let e = kvd.post("/v1/explain", prompt(18)).await;
    assert_eq!((&e["prompt_tokens"], &e["candidates_total"]), (&json!(18), &json!(2)));
    let why = &e["explained"];
    assert_eq!((&why["instance_id"], &why["cached_tokens"]), (&json!(A), &json!(12)), "the best one");
    let runs: Vec<_> =
        why["runs"].as_array().unwrap().iter().map(|r| (&r["from"], &r["to"], &r["tiers"])).collect();
    assert_eq!(runs[0], (&json!(0), &json!(1), &json!(["gpu", "cpu"])));
    assert_eq!(runs[1], (&json!(1), &json!(3), &json!(["gpu"])));
    assert_eq!(runs[2], (&json!(3), &json!(4), &json!([])));
    assert_eq!(
        why["steps"].as_array().unwrap().last().unwrap(),
        "so the engine would report 12 tokens as cached"
    );
    let mut of_b = prompt(18);
    of_b["instance_id"] = json!(B);
    assert_eq!(kvd.post("/v1/explain", of_b).await["explained"]["cached_tokens"], 4);
    assert_eq!(kvd.get("/v1/overview").await["queries"]["total"], 0);
}

#[tokio::test]
async fn what_cannot_be_explained_is_refused_by_field() {
    let kvd = Kvd::start();
    let refused = |body: Value| kvd.refused("POST", "/v1/explain", body.to_string());
    assert_eq!(refused(json!({"model": "m"})).await.1, "token_ids");
    assert_eq!(refused(json!({"token_ids": [1]})).await.1, "model");
    kvd.register(A, 0).await;
    let (status, field, _) = refused(json!({"model": "m", "token_ids": [1], "instance_id": B})).await;
    assert_eq!((status, field.as_str()), (400, "instance_id"));
    let nobody = kvd.post("/v1/explain", json!({"model": "x", "token_ids": [1]})).await;
    assert_eq!((&nobody["explained"], &nobody["candidates"]), (&Value::Null, &json!([])));
}

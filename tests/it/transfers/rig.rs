//! A cluster of simulated pods around real replicas of kvd.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::engines::Prefiller;
use crate::support::Kvd;

/// Times of the ledger, four times as fast, as the engines' are.
const TIMERS: &str = r#"
planned = "1250ms"
prefilling = "7500ms"
ready = "500ms"
pulling = "2500ms"
overall = "30s"
guard = "500ms"
nixl_lease = "7500ms"
"#;

/// Bytes that a token takes in the model of these tests.
const TOKEN_BYTES: u64 = 131_072;
pub const PROMPT_TOKENS: u64 = 8192;

/// Starts a kvd; `more` goes into its `[transfers]`.
pub fn start(data: &Path, more: &str, args: &[&str]) -> Kvd {
    let file = data.join("kvd.toml");
    let model = format!("[[transfers.model]]\nname = \"m\"\nbytes_per_token = {TOKEN_BYTES}\n");
    std::fs::write(&file, format!("[transfers]\n{TIMERS}{more}\n{model}")).expect("write");
    let mut all = vec!["--config", file.to_str().expect("text")];
    all.extend(args);
    Kvd::start_with(data, &all)
}

/// Starts a replica whose ledger is on the servers at `urls`. Nothing ends by itself as soon as elsewhere: a
/// replica that takes another's place needs some seconds.
pub fn start_shared(data: &Path, urls: &[String], lease: Duration) -> Kvd {
    std::fs::create_dir_all(data).expect("a directory");
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = free.local_addr().expect("an address").to_string();
    drop(free);
    let file = data.join("kvd.toml");
    let urls = serde_json::to_string(urls).expect("text");
    let lease = lease.as_millis();
    let text = format!(
        r#"
[index.valkey]
urls = {urls}
namespace = "it"
lease = "{lease}ms"
timeout = "600ms"
[transfers]
valkey = true
replica = "http://{address}"
forward_timeout = "5s"
ready = "60s"
pulling = "60s"
prefilling = "12s"
nixl_lease = "120s"
[[transfers.model]]
name = "m"
bytes_per_token = {TOKEN_BYTES}
"#
    );
    std::fs::write(&file, text).expect("write");
    Kvd::start_with(
        &data.join("data"),
        &["--config", file.to_str().expect("text"), "--grpc-listen", &address],
    )
}

/// Starts replicas that know each other.
pub fn start_replicas(data: &[&Path]) -> Vec<Kvd> {
    let free: Vec<TcpListener> =
        data.iter().map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    let addresses: Vec<String> =
        free.iter().map(|l| l.local_addr().expect("an address").to_string()).collect();
    drop(free);
    let urls: Vec<String> = addresses.iter().map(|a| format!("http://{a}")).collect();
    let started = data.iter().zip(&addresses).zip(&urls).map(|((data, address), url)| {
        let key = data.join("key");
        std::fs::write(&key, "a key that all replicas share").expect("write");
        let more = format!("replica = {url:?}\nreplicas = {urls:?}\nkey_file = {key:?}\n");
        start(data, &more, &["--grpc-listen", address])
    });
    started.collect()
}

/// A pod of the test, registered so that the index sees it come and go.
pub fn register(kvd: &Kvd, instance: &str) {
    // Nobody publishes there, which is a pod without events.
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let body = json!({
        "endpoint": format!("tcp://127.0.0.1:{port}"), "type": "vLLM", "modelname": "m",
        "instance_id": instance, "block_size": 16, "dp_rank": 0,
    });
    kvd.ok("/register", &body);
}

pub fn unregister(kvd: &Kvd, instance: &str) {
    kvd.ok("/unregister", &json!({"instance_id": instance, "modelname": "m"}));
}

/// A question that is answered by prefill on `prefill` and decode on one of `decode`: those have
/// a long queue for prefill.
pub fn question(request: &str, prefill: &[&str], decode: &[&str]) -> Value {
    let queue = json!({"waiting_tokens": "400000", "waiting_requests": 50});
    let pods = prefill
        .iter()
        .map(|p| json!({"instance_id": p, "can_prefill": true, "can_source": true, "compat_class": "c"}))
        .chain(
            decode
                .iter()
                .map(|d| json!({"instance_id": d, "can_decode": true, "compat_class": "c", "load": queue})),
        );
    json!({
        "request_id": request, "model": "m", "purpose": "TRANSFER_PURPOSE_PREFILL_DECODE",
        "prompt": {"tokens": {"ids": (0..PROMPT_TOKENS).collect::<Vec<_>>()}},
        "pods": pods.collect::<Vec<_>>(),
        "connector": "TRANSFER_CONNECTOR_NIXL_PULL",
    })
}

/// Who takes care of one request: a sidecar.
pub struct Caller {
    pub plan: Value,
}

impl Caller {
    /// Plans `question`, which must come to a handover.
    pub fn plan(kvd: &Kvd, question: &Value) -> Caller {
        let plan = kvd.ok("/v1/transfers", question);
        let decision = &plan["transfer"]["choice"]["decision"];
        assert_eq!(decision, "TRANSFER_DECISION_DISAGG", "{}: {}", plan["reason"], plan["explanation"]);
        Caller { plan }
    }

    pub fn id(&self) -> String {
        self.plan["transfer"]["transfer_id"].as_str().expect("an id").to_owned()
    }

    pub fn prefill(&self) -> String {
        let pod = &self.plan["transfer"]["choice"]["prefill"]["instance_id"];
        pod.as_str().expect("who prefills").to_owned()
    }

    pub fn decode(&self) -> String {
        let pod = &self.plan["transfer"]["choice"]["decode"]["instance_id"];
        pod.as_str().expect("who decodes").to_owned()
    }

    pub fn bytes(&self) -> u64 {
        let leg = &self.plan["transfer"]["choice"]["legs"][0];
        leg["pinned_bytes"].as_str().expect("a number").parse().expect("a number")
    }

    /// Reports `phase`; says the status and the reply.
    pub fn try_report(&mut self, kvd: &Kvd, phase: &str, more: Value) -> (u16, Value) {
        let mut body = json!({
            "attempt": self.plan["transfer"]["attempt"],
            "phase": format!("TRANSFER_PHASE_{phase}"),
            "plan_token": self.plan["plan_token"],
        });
        for (key, value) in more.as_object().cloned().unwrap_or_default() {
            body[key] = value;
        }
        let (status, reply) = kvd.post(&format!("/v1/transfers/{}/report", self.id()), &body);
        if status == 200 {
            self.plan["plan_token"] = reply["plan_token"].clone();
            if reply["replan"]["plan_token"].is_string() {
                self.plan = reply["replan"].clone();
            }
        }
        (status, reply)
    }

    /// The same, which must succeed; says the state it came to.
    pub fn report(&mut self, kvd: &Kvd, phase: &str, more: Value) -> String {
        let (status, reply) = self.try_report(kvd, phase, more);
        assert_eq!(status, 200, "{phase}: {reply}");
        state(&reply["transfer"])
    }

    /// Prefill on its pod, until the blocks wait for the decode pod.
    pub fn prefilled(&mut self, kvd: &Kvd, engine: &Prefiller) {
        self.report(kvd, "PREFILL_STARTED", json!({}));
        engine.done(&self.id(), self.bytes());
        let answer = json!({
            "do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [[1, 2, 3]],
            "remote_engine_id": "p", "remote_request_id": self.id(), "remote_host": "10.0.0.1",
            "remote_port": 5600, "tp_size": 1,
        });
        let more = json!({"kv_transfer_params": answer.to_string()});
        assert_eq!(self.report(kvd, "PREFILL_DONE", more), "READY");
    }

    /// Keeps it alive while it waits in a queue; the transfer as it is then.
    pub fn renew(&self, kvd: &Kvd) -> Value {
        let body = json!({"attempt": 1, "plan_token": self.plan["plan_token"], "lease_ms": 7500});
        kvd.ok(&format!("/v1/transfers/{}/renew", self.id()), &body)["transfer"].take()
    }

    pub fn now(&self, kvd: &Kvd) -> Value {
        kvd.get(&format!("/v1/transfers/{}", self.id()))["transfer"].clone()
    }
}

/// The state of a transfer, without its prefix.
pub fn state(transfer: &Value) -> String {
    transfer["state"].as_str().unwrap_or_default().trim_start_matches("TRANSFER_STATE_").to_owned()
}

/// Hears what happens to transfers, and frees what is stranded: it gives the request to a decode pod
/// and has it aborted, which tells the prefill pod.
pub struct Agent {
    events: Arc<Mutex<Vec<Value>>>,
}

impl Agent {
    pub fn watch(kvd: &Kvd, engine: &Prefiller) -> Agent {
        let events = Arc::new(Mutex::new(Vec::new()));
        let (heard, engine) = (Arc::clone(&events), engine.clone());
        let http = kvd.http.clone();
        let url = format!("http://{http}/v1/transfers/watch?include_live=true");
        let answer = ureq::get(url).call().expect("watch");
        let mut lines = BufReader::new(answer.into_body().into_reader()).lines();
        thread::spawn(move || {
            // Ends with the replica.
            while let Some(Ok(line)) = lines.next() {
                let event: Value = serde_json::from_str(&line).expect("a line of JSON");
                let id = event["transfer"]["transfer_id"].as_str().unwrap_or_default().to_owned();
                let stranded = event["kind"] == "KIND_STRANDED";
                if stranded && event["decode_kv_transfer_params"].is_string() {
                    // The round trip over a decode pod.
                    thread::sleep(Duration::from_millis(5));
                    engine.released(&id);
                    let body = json!({
                        "attempt": event["transfer"]["attempt"], "phase": "TRANSFER_PHASE_RELEASED",
                    });
                    let agent = ureq::Agent::config_builder().http_status_as_error(false).build();
                    let url = format!("http://{http}/v1/transfers/{id}/report");
                    // Lost where the replica dies meanwhile, which is the same as no word.
                    let _ = ureq::Agent::new_with_config(agent).post(url).send(body.to_string());
                }
                heard.lock().unwrap().push(event);
            }
        });
        Agent { events }
    }

    /// Waits for an event of `kind` about `id` and returns it.
    pub fn wait(&self, kind: &str, id: &str, patience: Duration) -> Value {
        let began = Instant::now();
        loop {
            let found = self.find(kind, id);
            if let Some(event) = found {
                return event;
            }
            assert!(began.elapsed() < patience, "no {kind} of {id} within {patience:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn find(&self, kind: &str, id: &str) -> Option<Value> {
        let events = self.events.lock().unwrap();
        let is = |e: &&Value| e["kind"] == format!("KIND_{kind}") && e["transfer"]["transfer_id"] == id;
        events.iter().find(is).cloned()
    }
}

/// The sum of all samples of a metric.
pub fn sum(kvd: &Kvd, name: &str) -> f64 {
    let text = kvd.get("/metrics");
    let text = text.as_str().expect("text");
    let samples = text.lines().filter(|l| l.strip_prefix(name).is_some_and(|r| r.starts_with(['{', ' '])));
    samples.map(|l| l.rsplit_once(' ').expect("a value").1.parse::<f64>().expect("a number")).sum()
}

/// Nothing is reserved any more.
pub fn nothing_reserved(kvd: &Kvd) {
    kvd.wait("all reservations to be released", || {
        sum(kvd, "kvd_link_inflight_bytes") == 0.0 && sum(kvd, "kvd_pinned_bytes") == 0.0
    });
}

//! What is asked over gRPC, whether the answer is right, and what kvd says of its own time.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kvproto::rpc::kv;
use kvproto::rpc::kv::index_service_client::IndexServiceClient;
use tonic::transport::{Channel, Endpoint};

use crate::http_client::HttpClient;
use crate::report::differs;
use crate::server::{MODEL, Server};
use crate::workload::Prompt;

/// A client of the index service.
pub type Client = IndexServiceClient<Channel>;

/// A connection of its own to `server`.
pub async fn connect(server: &Server) -> anyhow::Result<Client> {
    let at = server.grpc.context("the server has no gRPC")?;
    let endpoint = Endpoint::from_shared(format!("http://{at}"))?.tcp_nodelay(true);
    Ok(IndexServiceClient::new(endpoint.connect().await.context("connect")?))
}

/// Asks about `prompt` and every pod, in the engines' own blocks.
pub fn request(prompt: &Prompt) -> kv::ScoreRequest {
    let bytes: Vec<u8> = prompt.tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
    let key = Some(kv::prompt::Key::TokenIdsLe(bytes.into()));
    kv::ScoreRequest {
        model: MODEL.to_owned(),
        prompt: Some(kv::Prompt { key, ..kv::Prompt::default() }),
        ..kv::ScoreRequest::default()
    }
}

/// What is wrong with an answer that should speak of all pods in the order of their `instances`.
pub fn fault(answer: &kv::ScoreResponse, instances: &[String], prompt: &Prompt) -> Option<String> {
    if answer.endpoints.len() != instances.len() {
        return differs("endpoints", answer.endpoints.len(), instances.len());
    }
    answer.endpoints.iter().zip(instances).enumerate().find_map(|(i, (e, instance))| {
        // Compared one by one, so that a right answer costs the client next to nothing.
        let right = e.instance_id == *instance
            && e.cached_blocks == prompt.held[i]
            && e.cached_tokens == prompt.cached_tokens(i);
        (!right).then(|| {
            let want = (prompt.held[i], prompt.cached_tokens(i));
            format!(
                "{} for pod {i}: {:?}, expected {want:?}",
                e.instance_id,
                (e.cached_blocks, e.cached_tokens)
            )
        })
    })
}

/// Asks until every answer is right: then all that was published has arrived.
pub async fn wait_until_right(
    client: &mut Client,
    instances: &[String],
    prompts: &[Prompt],
) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    for prompt in prompts {
        loop {
            let answer = client.score(request(prompt)).await?.into_inner();
            let Some(fault) = fault(&answer, instances, prompt) else { break };
            ensure!(Instant::now() < deadline, "never came to the right answer: {fault}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

/// kvd's own histogram of the time from a checked request to its answer.
#[derive(Clone, Debug, Default)]
pub struct ServerTimes {
    /// Upper bound in seconds, and how many took at most that.
    buckets: Vec<(f64, f64)>,
    sum: f64,
    count: f64,
}

impl ServerTimes {
    /// Reads it from /metrics.
    pub fn read(server: &Server) -> anyhow::Result<ServerTimes> {
        let mut client = HttpClient::connect(server.http)?;
        let answer = client.get("/metrics")?;
        let times = ServerTimes::parse(&String::from_utf8_lossy(answer.body));
        ensure!(!times.buckets.is_empty(), "/metrics has no {NAME}");
        Ok(times)
    }

    fn parse(text: &str) -> ServerTimes {
        let mut out = ServerTimes::default();
        for line in text.lines() {
            let Some((name, value)) = line.strip_prefix(NAME).and_then(|l| l.rsplit_once(' ')) else {
                continue;
            };
            let Ok(value) = value.parse() else { continue };
            if name.starts_with("_sum") {
                out.sum = value;
            } else if name.starts_with("_count") {
                out.count = value;
            } else if let Some(bound) = name.split("le=\"").nth(1).and_then(|l| l.split('"').next()) {
                out.buckets.push((bound.parse().unwrap_or(f64::INFINITY), value));
            }
        }
        out
    }

    /// Mean since `before`, in milliseconds.
    pub fn mean_since(&self, before: &ServerTimes) -> f64 {
        (self.sum - before.sum) / (self.count - before.count) * 1e3
    }

    /// The smallest bound that at least the part `p` of the times since `before` kept, in
    /// milliseconds.
    pub fn bound_since(&self, before: &ServerTimes, p: f64) -> f64 {
        let need = p * (self.count - before.count);
        let kept = self.buckets.iter().zip(&before.buckets).find(|(now, then)| now.1 - then.1 >= need);
        kept.map_or(f64::INFINITY, |(now, _)| now.0 * 1e3)
    }
}

const NAME: &str = "kvd_query_seconds";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_gives_bound_and_mean_of_what_came_since() {
        let text = |n: [u32; 5]| {
            format!(
                "# TYPE kvd_query_seconds histogram\nkvd_query_seconds_bucket{{le=\"0.001\"}} {}\n\
                 kvd_query_seconds_bucket{{le=\"0.002\"}} {}\nkvd_query_seconds_bucket{{le=\"+Inf\"}} {}\n\
                 kvd_query_seconds_sum {}\nkvd_query_seconds_count {}\n",
                n[0], n[1], n[2], n[3], n[4]
            )
        };
        let before = ServerTimes::parse(&text([5, 5, 5, 1, 5]));
        let after = ServerTimes::parse(&text([5, 104, 105, 2, 105]));
        assert_eq!(after.bound_since(&before, 0.99), 2.0);
        assert_eq!(after.bound_since(&before, 1.0), f64::INFINITY);
        assert!((after.mean_since(&before) - 10.0).abs() < 1e-9);
    }
}

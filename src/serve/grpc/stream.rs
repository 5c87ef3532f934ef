//! How does one long-lived stream carry many questions?
//!
//! Questions are worked on side by side, a bounded number at a time, and answered in their
//! order. What `Score` would have failed with is an answer here, so that one bad question
//! does not end the stream.

use std::sync::Arc;

use kvproto::rpc::kv;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::score::score;
use crate::serve::Service;

type Answer = Result<kv::ScoreResponse, Status>;

/// Answers `questions` in order until they end or nobody reads the answers any more.
pub(super) fn answers(
    service: Arc<Service>,
    questions: impl Stream<Item = Result<kv::ScoreRequest, Status>> + Send + Unpin + 'static,
) -> impl Stream<Item = Answer> + Send + 'static {
    let (working, mut done) = mpsc::channel(service.limits.stream_concurrency.max(1));
    tokio::spawn(work(service, questions, working));
    let (answers, out) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(job) = done.recv().await {
            if answers.send(collect(job).await).await.is_err() {
                return;
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(out)
}

/// A question's place among the answers.
enum Job {
    Scoring(JoinHandle<kv::ScoreResponse>),
    /// The stream itself failed; nothing comes after it.
    Broken(Status),
}

async fn work(
    service: Arc<Service>,
    mut questions: impl Stream<Item = Result<kv::ScoreRequest, Status>> + Send + Unpin,
    working: mpsc::Sender<Job>,
) {
    loop {
        // A place is taken before the question is read: what waits for one stays with the client.
        let Ok(place) = working.reserve().await else { return };
        match questions.next().await {
            None => return,
            Some(Ok(question)) => {
                let service = Arc::clone(&service);
                place.send(Job::Scoring(tokio::spawn(async move { in_band(&service, question).await })));
            }
            Some(Err(status)) => {
                place.send(Job::Broken(status));
                return;
            }
        }
    }
}

async fn collect(job: Job) -> Answer {
    match job {
        Job::Scoring(handle) => handle.await.map_err(|gone| Status::internal(gone.to_string())),
        Job::Broken(status) => Err(status),
    }
}

async fn in_band(service: &Arc<Service>, question: kv::ScoreRequest) -> kv::ScoreResponse {
    let (seq, request_id) = (question.seq, question.request_id.clone());
    score(service, question).await.unwrap_or_else(|status| kv::ScoreResponse {
        seq,
        request_id,
        error_code: status.code().into(),
        error_message: status.message().to_owned(),
        ..kv::ScoreResponse::default()
    })
}

//! Many questions over one long-lived stream, which saves each of them a call's set-up.

use std::time::Duration;

use kvproto::rpc::kv;
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::{ScoreCall, ScoreError, ScorerClient, Scores};

/// Asks. Dropping it ends the stream after the last answer.
#[derive(Debug)]
pub struct ScoreSender {
    questions: mpsc::Sender<kv::ScoreRequest>,
    next: u64,
}

/// Answers.
#[derive(Debug)]
pub struct ScoreReceiver {
    answers: Streaming<kv::ScoreResponse>,
    deadline: Duration,
}

/// One answer and the question it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamAnswer {
    /// The number that [`ScoreSender::send`] gave the question.
    pub seq: u64,
    /// What [`ScorerClient::score`] would have answered.
    pub scores: Result<Scores, ScoreError>,
}

impl ScorerClient {
    /// Opens a stream on which up to `in_flight` questions wait to be sent. The deadline is for
    /// opening it; on the stream the caller decides how long an answer is worth waiting for.
    ///
    /// # Errors
    ///
    /// [`ScoreError`] where the server does not take it.
    pub async fn score_stream(&self, in_flight: usize) -> Result<(ScoreSender, ScoreReceiver), ScoreError> {
        let (questions, sent) = mpsc::channel(in_flight.max(1));
        let mut inner = self.inner.clone();
        let opening = inner.score_stream(ReceiverStream::new(sent));
        match tokio::time::timeout(self.deadline, opening).await {
            Ok(Ok(answers)) => Ok((
                ScoreSender { questions, next: 1 },
                ScoreReceiver { answers: answers.into_inner(), deadline: self.deadline },
            )),
            Ok(Err(status)) => Err(ScoreError::from_status(&status, self.deadline)),
            Err(_) => Err(ScoreError::Deadline { after: self.deadline }),
        }
    }
}

impl ScoreSender {
    /// Asks, waiting for room, and gives the question's number, from 1.
    ///
    /// # Errors
    ///
    /// [`ScoreError::Unavailable`] where the stream has ended; [`ScoreReceiver::recv`] says why.
    pub async fn send(&mut self, call: ScoreCall) -> Result<u64, ScoreError> {
        let seq = self.next;
        let question = kv::ScoreRequest { seq, ..call.wire };
        if self.questions.send(question).await.is_err() {
            return Err(ScoreError::Unavailable { message: "the stream has ended".to_owned() });
        }
        self.next += 1;
        Ok(seq)
    }
}

impl ScoreReceiver {
    /// The next answer, in whatever order the server gives them; `None` after the last.
    ///
    /// # Errors
    ///
    /// [`ScoreError`] where the stream broke: the questions still open have no answer.
    pub async fn recv(&mut self) -> Result<Option<StreamAnswer>, ScoreError> {
        let answer = self.answers.message().await;
        let answer = answer.map_err(|status| ScoreError::from_status(&status, self.deadline))?;
        Ok(answer.map(|a| StreamAnswer {
            seq: a.seq,
            scores: match Code::from_i32(a.error_code) {
                Code::Ok => Ok(a.into()),
                code => Err(ScoreError::from_status(&Status::new(code, a.error_message), self.deadline)),
            },
        }))
    }
}

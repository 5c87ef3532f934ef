//! Who wants to hear what happens to transfers?

use std::collections::VecDeque;
use std::sync::Arc;

use kvproto::rpc::kv;
use tokio::sync::broadcast::{self, error::RecvError};

use super::{TransferError, Transfers, convert};
use crate::serve::{AskError, Service, endpoint};
use crate::transfer::ledger::{News, Notice, Record};

/// Someone who watches.
pub struct Watcher {
    transfers: Arc<Transfers>,
    news: broadcast::Receiver<Arc<News>>,
    /// What was live when it began.
    first: VecDeque<Arc<Record>>,
    instance: String,
    request_id: String,
}

impl Service {
    /// Watches from now on.
    ///
    /// # Errors
    /// Where there are as many watchers as there may be.
    pub fn watch_transfers(&self, request: kv::WatchTransfersRequest) -> Result<Watcher, TransferError> {
        let transfers = self.transfers()?;
        self.check_text("instance_id", &request.instance_id)?;
        self.check_text("request_id", &request.request_id)?;
        let limit = transfers.config.max_watchers;
        if transfers.news.receiver_count() >= limit {
            return Err(AskError::TooMany { field: "watchers", limit, got: limit + 1 }.into());
        }
        // Under the lock of the book, so that nothing is both in the list and among the news, or
        // in neither.
        let (news, first) = transfers.book(|book| {
            let live = book.records().filter(|r| request.include_live && r.live());
            (transfers.news.subscribe(), live.map(Arc::clone).collect())
        });
        Ok(Watcher {
            transfers: Arc::clone(transfers),
            news,
            first,
            instance: request.instance_id,
            request_id: request.request_id,
        })
    }
}

impl Watcher {
    /// The next event that is asked for; `None` once there will be none.
    pub async fn next(&mut self) -> Option<kv::TransferEvent> {
        while let Some(record) = self.first.pop_front() {
            if self.wants(&record) {
                return Some(self.event(Notice::State, &record, record.changed_at));
            }
        }
        loop {
            match self.news.recv().await {
                Ok(news) if self.wants(&news.record) => {
                    return Some(self.event(news.notice, &news.record, news.at));
                }
                Ok(_) => {}
                Err(RecvError::Lagged(lost)) => {
                    self.transfers.tally.lock().lost_news += lost;
                    return Some(kv::TransferEvent {
                        kind: kv::transfer_event::Kind::Lost.into(),
                        lost,
                        at_ms: self.transfers.now(),
                        ..kv::TransferEvent::default()
                    });
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn wants(&self, record: &Record) -> bool {
        let pod = |instance: &str| self.instance.is_empty() || endpoint::same(instance, &self.instance);
        let stranded = record.strand.as_ref().is_some_and(|s| pod(&s.pod.instance));
        (self.instance.is_empty() || stranded || record.pods().any(|p| pod(&p.instance)))
            && (self.request_id.is_empty() || *self.request_id == *record.request_id)
    }

    fn event(&self, notice: Notice, record: &Record, at: u64) -> kv::TransferEvent {
        let now = self.transfers.now();
        let mut event = kv::TransferEvent {
            kind: convert::notice(notice).into(),
            transfer: Some(convert::transfer(record, self.transfers.enforcement(record))),
            at_ms: at,
            ..kv::TransferEvent::default()
        };
        match (notice, &record.strand, record.pinned()) {
            (Notice::Stranded, Some(strand), _) => {
                event.pod = Some(convert::endpoint(&strand.pod));
                event.bytes = strand.bytes;
                event.lease_left_ms = strand.until.saturating_sub(now);
                event.decode_kv_transfer_params = self.transfers.decode_params(record);
            }
            (Notice::LeaseEnding, _, Some((pod, bytes))) => {
                event.pod = Some(convert::endpoint(pod));
                event.bytes = bytes;
                event.lease_left_ms = record.lease_ends.unwrap_or(now).saturating_sub(now);
            }
            (Notice::State | Notice::Stale | Notice::Stranded | Notice::LeaseEnding, ..) => {}
        }
        event
    }
}

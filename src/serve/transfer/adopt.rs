//! How does a transfer find its owner, whoever is asked?
//!
//! A token says who owned a transfer when it was given out. Whoever knows of a later owner steps
//! down; whoever knows nothing takes the transfer over, and tells the owner before it as soon as
//! that one can be reached. So two owners may exist while replicas cannot talk, but not after.

use std::sync::Arc;
use std::time::Duration;

use kvproto::rpc::kv;
use tracing::info;

use super::{TransferError, Transfers};
use crate::transfer::ledger::{Event, Record, TransferId};

/// How often the owner before this one is told.
const TELL_EVERY: Duration = Duration::from_millis(500);

impl Transfers {
    /// Looks at what `token` proves about a transfer that is known here. Returns the transfer as it
    /// was, if a later owner's token made this replica step down.
    pub(super) fn meet(&self, id: TransferId, token: &str) -> Result<Option<Arc<Record>>, TransferError> {
        if token.is_empty() || self.sharing.is_some() {
            return Ok(None);
        }
        let proof = self.signer.open(token)?;
        let now = self.now();
        let (before, _) = self.change(|book, out| {
            let before = book.get(id).filter(|_| proof.id == id).map(Arc::clone)?;
            let later = proof.epoch > before.epoch;
            let event = if later { Event::Superseded } else { Event::Inherited(Box::new(proof)) };
            // Either may happen to any transfer.
            let _ = book.apply(id, event, now, out);
            later.then_some(before)
        });
        Ok(before)
    }

    /// Takes a transfer over that is not known here but proven by `token`. False where it was known,
    /// or nothing proves it.
    pub(super) fn adopt(self: &Arc<Self>, id: TransferId, token: &str) -> Result<bool, TransferError> {
        if token.is_empty() || self.sharing.is_some() || self.book(|b| b.get(id).is_some()) {
            return Ok(false);
        }
        let record = self.signer.open(token)?;
        if record.id != id {
            return Err(super::TransferError::Token(crate::transfer::token::BadToken::Malformed));
        }
        let now = self.now();
        if !record.live() || record.overall <= now {
            return Err(TransferError::TooLate);
        }
        let before = self.config.replicas.owner(record.epoch);
        let epoch = self.config.replicas.next_epoch(record.epoch);
        let (record, _) = self.change(|book, out| book.adopt(record, epoch, now, out));
        self.tally.lock().adopted += 1;
        info!(transfer = %id, before, epoch, "transfer taken over from its token");
        if before != self.config.replicas.me() {
            tokio::spawn(Arc::clone(self).tell_owner(before, record));
        }
        Ok(true)
    }

    /// Tells the owner before this one, until it has heard or the transfer is over for good.
    async fn tell_owner(self: Arc<Self>, place: usize, taken: Arc<Record>) {
        let id = taken.id;
        while self.now() < taken.overall {
            let Some(record) = self.book(|b| b.get(id).map(Arc::clone)) else { return };
            let request = kv::GetTransferRequest {
                transfer_id: id.to_string(),
                plan_token: self.token(&record),
                forwarded: true,
                ..kv::GetTransferRequest::default()
            };
            match self.peers.get(place, request).await {
                Some(Ok(reply)) => {
                    self.heard_from_owner(id, &reply.plan_token);
                    return;
                }
                // It does not know the transfer (any more), so there is nobody to step down.
                Some(Err(status)) if status.code() == tonic::Code::NotFound => return,
                Some(Err(_)) => {}
                None => return,
            }
            tokio::time::sleep(TELL_EVERY).await;
        }
    }

    /// Goes on from where the owner before this one was; or steps down, where that one owns it
    /// again with a later epoch.
    fn heard_from_owner(&self, id: TransferId, token: &str) {
        let Ok(theirs) = self.signer.open(token) else { return };
        let now = self.now();
        self.change(|book, out| {
            let Some(mine) = book.get(id) else { return };
            let event = if theirs.epoch > mine.epoch {
                Event::Superseded
            } else {
                Event::Inherited(Box::new(theirs))
            };
            let _ = book.apply(id, event, now, out);
        });
    }
}

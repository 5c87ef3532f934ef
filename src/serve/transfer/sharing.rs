//! How do replicas share one ledger that none of them keeps?
//!
//! Whoever has a transfer's shelf is its home ([`crate::transfer::ledger::store::valkey`]). Others read it from the
//! servers, and hand reports on to its home. A request's key is given away there, so that two replicas that plan the same
//! request come to one plan. Tokens prove nothing here that the servers do not know better.

use kvproto::rpc::kv;
use tracing::{debug, info};

use super::forward::Forwardable;
use super::{TransferError, Transfers};
use crate::transfer::ledger::store::commit::{Change, Happened};
use crate::transfer::ledger::store::valkey::{Found, Library};
use crate::transfer::ledger::{Cause, Event, Record, TransferId};
use crate::transfer::types::Purpose;

/// A ledger that others share.
pub struct Sharing {
    /// Reads what they have.
    pub library: Library,
    /// Where this replica is asked.
    pub address: String,
}

impl Transfers {
    /// Shares the store's ledger with other replicas.
    #[must_use]
    pub fn sharing(mut self, sharing: Sharing) -> Transfers {
        self.sharing = Some(sharing);
        self
    }

    /// Whether other replicas share the ledger.
    pub(super) fn is_shared(&self) -> bool {
        self.sharing.is_some()
    }

    /// Follows what this replica has of the ledger.
    pub(super) fn follow_ledger(&self, happened: &Happened) {
        let now = self.now();
        match &happened.what {
            Change::Taken(kept) => {
                let live = kept.records.iter().filter(|r| r.live()).count();
                info!(
                    live,
                    all = kept.records.len(),
                    unreadable = kept.unreadable,
                    "home to transfers of another"
                );
                self.tally.lock().adopted += live as u64;
                self.change(|book, out| {
                    for record in &kept.records {
                        let epoch = self.config.replicas.next_epoch(record.epoch);
                        book.take_over(record.clone(), epoch, now, out);
                    }
                });
            }
            Change::Lost(ids) => _ = self.change(|book, out| book.let_go(ids, now, out)),
            Change::Forgotten => _ = self.change(|book, out| book.write_all(out)),
        }
    }

    /// Whether an answer may be given of `record`, which was written: false where it was taken over meanwhile.
    pub(super) fn is_home(&self, record: &Record) -> bool {
        self.sharing.is_none() || self.book(|b| b.get(record.id).is_some_and(|r| r.epoch == record.epoch))
    }

    /// Whether a caller's word can be heard: not while another may be home already.
    pub(super) fn hears(&self) -> Result<(), TransferError> {
        if self.committer.holds() { Ok(()) } else { Err(TransferError::Homeless) }
    }

    /// The transfer as its home wrote it last, where this replica does not have it itself.
    pub(super) async fn read_elsewhere(&self, id: TransferId) -> Result<Option<Found>, TransferError> {
        let Some(sharing) = &self.sharing else { return Ok(None) };
        if self.committer.holds() && self.book(|b| b.get(id).is_some()) {
            return Ok(None);
        }
        Ok(sharing.library.find(id).await?)
    }

    /// Every transfer that others are home to.
    pub(super) async fn all_elsewhere(&self) -> Result<Vec<Record>, TransferError> {
        let Some(sharing) = &self.sharing else { return Ok(Vec::new()) };
        let mut all = sharing.library.all().await?;
        self.book(|b| all.retain(|r| b.get(r.id).is_none()));
        Ok(all)
    }

    /// The transfer that has a request's key, whoever is home to it.
    pub(super) async fn find_key(
        &self,
        request_id: &str,
        purpose: Purpose,
    ) -> Result<Option<TransferId>, TransferError> {
        let own = self.book(|b| b.find(request_id, purpose).map(|r| r.id));
        match (own, &self.sharing) {
            (Some(id), _) => Ok(Some(id)),
            (None, None) => Ok(None),
            (None, Some(sharing)) => Ok(sharing.library.by_key(request_id, purpose).await?),
        }
    }

    /// Has the home of the request's transfer answer, if another replica is that. `Err` of the key's last transfer
    /// where that is forgotten.
    pub(super) async fn forward_planned(
        &self,
        request: &kv::PlanTransferRequest,
        purpose: Purpose,
    ) -> Result<Result<Option<kv::PlanTransferResponse>, TransferId>, TransferError> {
        let Some(sharing) = &self.sharing else { return Ok(Ok(None)) };
        self.hears()?;
        if self.book(|b| b.find(&request.request_id, purpose).is_some()) {
            return Ok(Ok(None));
        }
        let Some(id) = sharing.library.by_key(&request.request_id, purpose).await? else {
            return Ok(Ok(None));
        };
        let Some(found) = sharing.library.find(id).await? else { return Ok(Err(id)) };
        let home = self.home_of(&found, request.forwarded)?;
        let request = kv::PlanTransferRequest { forwarded: true, ..request.clone() };
        let answer = self.peers.ask_at(home, |mut c| async move { c.plan_transfer(request).await }).await;
        self.tally.lock().forwarded += 1;
        answer.map(|a| Ok(Some(a))).map_err(TransferError::Forwarded)
    }

    /// Has the transfer's home answer. `None` = this replica is that, or there is no such transfer.
    pub(super) async fn forward_to_home<Q: Forwardable>(
        &self,
        sharing: &Sharing,
        id: TransferId,
        forwarded: bool,
        request: &Q,
    ) -> Result<Option<kv::TransferReply>, TransferError> {
        self.hears()?;
        if self.book(|b| b.get(id).is_some()) {
            return Ok(None);
        }
        let Some(found) = sharing.library.find(id).await? else { return Ok(None) };
        let home = self.home_of(&found, forwarded)?;
        let mut request = request.clone();
        request.forwarded();
        let answer = self.peers.ask_at(home, |client| request.send(client)).await;
        self.tally.lock().forwarded += 1;
        answer.map(Some).map_err(TransferError::Forwarded)
    }

    /// Where the home of a transfer is asked that is not in this replica's book.
    fn home_of<'f>(&self, found: &'f Found, forwarded: bool) -> Result<&'f str, TransferError> {
        let me = self.sharing.as_ref().map(|s| s.address.as_str());
        match found.home.as_deref() {
            // Whoever forwarded knew another home; asked again, it will know the next.
            Some(home) if !forwarded && Some(home) != me => Ok(home),
            // Nobody's yet, or about to be this replica's.
            Some(_) | None => Err(TransferError::Homeless),
        }
    }

    /// Gives the request's key to a transfer that is written. Fails where another has it, which then counts.
    pub(super) async fn take_key(
        &self,
        record: &Record,
        instead_of: Option<TransferId>,
    ) -> Result<(), TransferError> {
        let Some(sharing) = self.sharing.as_ref().filter(|_| !record.choice.legs.is_empty()) else {
            return Ok(());
        };
        let kept = self.config.timers.kept;
        let has = sharing.library.take_key(record, instead_of, kept).await?;
        if has == record.id {
            return Ok(());
        }
        debug!(transfer = %record.id, by = %has, "planned elsewhere at the same time");
        let now = self.now();
        // It may have ended by itself.
        let _ = self.change(|book, out| book.apply(record.id, Event::Cancelled(Cause::Superseded), now, out));
        Err(TransferError::Homeless)
    }
}

//! Who is followed, how are they doing, and whose turn is it to be left?

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use kvindex::HolderId;

use super::{Entry, Registry};
use crate::ingest::lane::Lane;
use crate::ingest::stats::Totals;
use crate::outcome::Account;
use crate::publisher::{
    Followed, Freshness, Origin, PublisherKey, PublisherSpec, PublisherState, PublisherStatus,
};

impl Registry {
    /// The lane of a publisher.
    pub fn lane_by(&self, key: &PublisherKey) -> Option<Arc<Lane>> {
        self.book.lock().entries.get(key).map(|e| Arc::clone(&e.lane))
    }

    /// Every lane, in the order of their publishers.
    pub fn lanes(&self) -> Vec<Arc<Lane>> {
        self.book.lock().entries.values().map(|e| Arc::clone(&e.lane)).collect()
    }

    /// The lane of just this registration, unless it is seen to be of another engine now.
    pub fn lane_of(&self, spec: &PublisherSpec, origin: &Origin) -> Option<Arc<Lane>> {
        let book = self.book.lock();
        let same = |e: &&Entry| e.lane.spec == *spec && e.origin.may_be(origin);
        book.entries.get(&spec.key()).filter(same).map(|e| Arc::clone(&e.lane))
    }

    /// Who a lane's registration is by. One that has just ended says nothing that anybody goes by.
    pub fn origin_of(&self, lane: &Lane) -> Origin {
        let book = self.book.lock();
        let entry = book.entries.get(&lane.spec.key()).filter(|e| e.lane.holder == lane.holder);
        entry.map(|e| e.origin.clone()).unwrap_or_default()
    }

    /// Whose lease has ended, and strangers that are dead: they register themselves again.
    pub fn gone(&self) -> Vec<PublisherSpec> {
        let book = self.book.lock();
        let is_dead = |e: &Entry| e.is_stranger() && e.lane.freshness().state == PublisherState::Dead;
        let gone = book.entries.values().filter(|e| e.lane.is_expired() || is_dead(e));
        gone.map(|e| e.lane.spec.clone()).collect()
    }

    /// All registrations and who they are by, in the order of their publishers.
    pub fn followed(&self) -> Vec<Followed> {
        let book = self.book.lock();
        let followed = |e: &Entry| Followed { spec: e.lane.spec.clone(), origin: e.origin.clone() };
        book.entries.values().map(followed).collect()
    }

    /// All publishers, by tenant, model, instance and rank.
    pub fn list(&self) -> Vec<PublisherStatus> {
        self.book.lock().entries.values().map(|e| e.lane.status(e.origin.clone())).collect()
    }

    /// How far answers about `holder` can be trusted.
    pub fn freshness(&self, holder: HolderId) -> Option<Freshness> {
        self.by_holder.read().get(&holder).map(|lane| lane.freshness())
    }

    /// How far answers about each of `holders` can be trusted.
    pub fn freshness_of(&self, holders: impl Iterator<Item = HolderId>) -> Vec<Option<Freshness>> {
        let lanes = self.by_holder.read();
        holders.map(|h| lanes.get(&h).map(|lane| lane.freshness())).collect()
    }

    /// What came of answers about `holder`.
    pub fn account(&self, holder: HolderId) -> Option<Arc<Account>> {
        self.by_holder.read().get(&holder).map(|lane| Arc::clone(&lane.account))
    }

    /// Blocks of all publishers that reports contradict.
    pub fn distrusted(&self) -> usize {
        self.distrusted.load(Relaxed)
    }

    /// The lane of `holder`.
    pub fn lane(&self, holder: HolderId) -> Option<Arc<Lane>> {
        self.by_holder.read().get(&holder).cloned()
    }

    /// Whether `instance` is registered anywhere.
    pub fn is_registered(&self, instance: &str) -> bool {
        self.pods.read().contains_key(instance)
    }

    /// Sums over all publishers.
    pub fn totals(&self) -> Totals {
        let book = self.book.lock();
        let mut totals = book.retired;
        for entry in book.entries.values() {
            totals.add(&entry.lane.counters);
            totals.queued += entry.lane.queued();
            totals.live += u64::from(entry.lane.freshness().state == PublisherState::Live);
        }
        totals.publishers = book.entries.len() as u64;
        totals.unclaimed = self.unclaimed.get();
        totals
    }
}

//! What do time and the index do to transfers?
//!
//! No sidecar sees that a pod is gone, began anew or evicted what somebody is about to read. The
//! index does, and it is in the same process: a few times a second every live transfer is held
//! against what the index knows now.

use std::time::{Duration, Instant};

use kvindex::HolderId;
use rustc_hash::{FxHashMap, FxHashSet};
use tracing::info;

use super::Transfers;
use crate::publisher::PublisherState;
use crate::serve::{Service, endpoint};
use crate::transfer::ledger::{Cause, Event, Record};
use crate::transfer::types::{Endpoint, Lesson};

/// How long the keeper sleeps while it is not certain what this replica is home to.
const UNCERTAIN: Duration = Duration::from_millis(20);

/// How long the keeper sleeps at most.
const LONGEST: Duration = Duration::from_secs(1);

/// How publishers were when they were looked at last.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pods: FxHashMap<Endpoint, Publisher>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Publisher {
    holder: HolderId,
    restarts: u64,
    last_seq: Option<u64>,
}

/// What became of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Gone,
    Restarted,
}

impl Service {
    /// Keeps transfers in time and in step with the index. Never returns; one task runs it.
    pub async fn keep_transfers(&self) {
        let Some(transfers) = &self.transfers else {
            return std::future::pending().await;
        };
        let mut followed = Instant::now();
        let mut happenings = transfers.committer.happenings();
        loop {
            let (due, live) = transfers.book(|b| (b.next_due(), b.live() > 0));
            // Pods are looked at while nothing is under way, too: who begins anew then has to shake
            // hands again, and a plan made later is not to be blamed for what was before it.
            let every = if live { transfers.config.follow_every } else { LONGEST };
            let mut pause = every.saturating_sub(followed.elapsed());
            let holds = transfers.committer.holds();
            if let Some(due) = due.filter(|_| holds) {
                pause = pause.min(transfers.clock.until(due));
            }
            let happened = async {
                match &mut happenings {
                    Some(happenings) => happenings.recv().await,
                    None => None,
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = transfers.due.notified() => {}
                Some(happened) = happened => transfers.follow_ledger(&happened),
            }
            // What is another's, as far as is known, ends there and not here.
            if !transfers.committer.holds() {
                tokio::time::sleep(UNCERTAIN).await;
                continue;
            }
            let now = transfers.now();
            transfers.change(|book, out| book.tick(now, out));
            if followed.elapsed() >= every {
                followed = Instant::now();
                self.follow_pods(transfers);
            }
        }
    }

    fn follow_pods(&self, transfers: &Transfers) {
        let mut now = FxHashMap::default();
        let statuses = self.publishers.list();
        // Who is taken for dead is as gone as one that is unregistered.
        for status in statuses.into_iter().filter(|s| s.freshness.state != PublisherState::Dead) {
            let pod = Endpoint { instance: status.spec.instance_id.into(), rank: status.spec.dp_rank };
            let publisher = Publisher {
                holder: status.holder,
                restarts: status.restarts,
                last_seq: status.freshness.last_seq,
            };
            now.insert(pod, publisher);
        }
        let mut moved = FxHashSet::default();
        let mut fates = Vec::new();
        {
            let mut seen = transfers.seen.lock();
            for (pod, before) in &seen.pods {
                match now.get(pod) {
                    None => fates.push((pod.clone(), Fate::Gone)),
                    Some(p) if p.holder == before.holder && p.restarts > before.restarts => {
                        fates.push((pod.clone(), Fate::Restarted));
                    }
                    Some(_) => {}
                }
            }
            for (pod, publisher) in &now {
                if seen.pods.get(pod) != Some(publisher) {
                    moved.insert(pod.clone());
                    moved.extend(other_form(pod));
                }
            }
            seen.pods = now;
        }
        for (pod, fate) in fates {
            transfers.pod_is(&pod, fate);
            if let Some(other) = other_form(&pod) {
                transfers.pod_is(&other, fate);
            }
        }
        self.find_stale(transfers, &moved);
    }

    /// Finds plans whose source lost what they want to read.
    fn find_stale(&self, transfers: &Transfers, moved: &FxHashSet<Endpoint>) {
        let sources = transfers.prompts.lock().unattended(moved);
        for (id, ask, source) in sources {
            let Some(held) = self.still_held(&ask, &source) else { continue };
            if held >= source.tokens {
                continue;
            }
            let cause = if held == 0 { Cause::SourceCleared } else { Cause::SourceEvicted };
            info!(transfer = %id, source = %source.from, held, wanted = source.tokens, "plan is stale");
            let now = transfers.now();
            // One that ended meanwhile is not stale any more.
            let _ = transfers.change(|book, out| book.apply(id, Event::Stale(cause), now, out));
        }
    }
}

impl Transfers {
    fn pod_is(&self, pod: &Endpoint, fate: Fate) {
        // Whoever comes back by the name of one that is gone has shaken hands with nobody.
        self.learn(&Lesson::Restarted { pod: pod.clone() });
        let now = self.now();
        let ((), _) = self.change(|book, out| {
            for record in book.of_pod(pod) {
                let cause = cause(&record, pod, fate);
                info!(transfer = %record.id, %pod, cause = cause.name(), "transfer failed by its pod");
                // It was live under this very lock.
                let _ = book.apply(record.id, Event::Failed(cause), now, out);
            }
        });
    }
}

fn cause(record: &Record, pod: &Endpoint, fate: Fate) -> Cause {
    let prefills = record.choice.prefill.as_ref() == Some(pod);
    let source = prefills || record.choice.legs.iter().any(|l| l.from == *pod);
    match (source, fate) {
        (true, Fate::Gone) => Cause::SourceGone,
        (true, Fate::Restarted) => Cause::SourceRestarted,
        (false, Fate::Gone) => Cause::DestinationGone,
        (false, Fate::Restarted) => Cause::DestinationRestarted,
    }
}

fn other_form(pod: &Endpoint) -> Option<Endpoint> {
    let instance = endpoint::other_form(&pod.instance)?;
    Some(Endpoint { instance: instance.into(), rank: pod.rank })
}

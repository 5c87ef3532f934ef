//! The state machine again, as a table, in the slowest and most obvious way.
//!
//! It knows nothing of books, claims or steps: a transfer is a row, an event is looked up, and
//! what is taken up is summed over all rows.

use std::collections::BTreeMap;

use super::*;
use crate::transfer::types::Flow;

pub(super) type Links = BTreeMap<(Endpoint, Endpoint), Flow>;
/// Bytes kept, and prefills.
pub(super) type Pods = BTreeMap<Endpoint, (u64, u32)>;

#[derive(Clone, Debug)]
pub(super) struct Row {
    pub state: State,
    pub attempt: u32,
    pub done: bool,
    pub cause: Option<Cause>,
    pub choice: Choice,
    pub lease: Option<Millis>,
    pub deadline: Millis,
    pub overall: Millis,
}

impl Row {
    fn end(&mut self, state: State, cause: Option<Cause>, now: Millis) {
        // A decode pod that had the request has kept the blocks alive until just now.
        let gone = [Cause::SourceGone, Cause::LeaseExpired].map(Some).contains(&cause);
        if self.state == State::Pulling && self.done && state != State::Done && !gone {
            self.lease = self.lease.max(Some(now + 20_000));
        }
        (self.state, self.cause, self.deadline) = (state, cause, 0);
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Reference {
    pub rows: BTreeMap<TransferId, Row>,
}

impl Reference {
    pub fn plan(&mut self, record: &Record) {
        let row = Row {
            state: record.state,
            attempt: 1,
            done: false,
            cause: None,
            choice: record.choice.clone(),
            lease: None,
            deadline: record.planned_at + 5_000,
            overall: record.overall,
        };
        self.rows.insert(record.id, row);
    }

    pub fn apply(&mut self, id: TransferId, event: &Event, now: Millis) {
        use State::{Cancelled, Done, Expired, Failed, Planned, Prefilling, Pulling, Ready};
        let row = self.rows.get_mut(&id).expect("planned before");
        let over = matches!(row.state, Done | Failed | Expired | Cancelled | State::Superseded);
        let prefills = row.choice.decision == Decision::Disagg;
        let go = |row: &mut Row, state: State| {
            row.state = state;
            row.deadline = match state {
                Planned => now + 5_000,
                Prefilling => now + 30_000,
                Ready => {
                    let lease = row.lease.expect("prefill is done");
                    let guard = 2_000.min((lease - now) / 4);
                    (now + 2_000).min(lease - guard)
                }
                Pulling => now + 10_000,
                Done | Failed | Expired | Cancelled | State::Superseded => 0,
            };
        };
        let end = |row: &mut Row, state: State, cause: Option<Cause>| row.end(state, cause, now);
        match (row.state, event) {
            (Planned, Event::PrefillStarted) if prefills => go(row, Prefilling),
            (_, Event::PrefillDone { lease, .. }) if prefills && !row.done => {
                row.done = true;
                row.lease = Some(now + lease.unwrap_or(Duration::from_secs(30)).as_millis() as u64);
                if matches!(row.state, Planned | Prefilling) {
                    go(row, Ready);
                }
            }
            (Planned | Prefilling | Ready, Event::PullStarted) => go(row, Pulling),
            (_, Event::Done) if !over => end(row, Done, None),
            (_, Event::Failed(cause)) if !over => end(row, Failed, Some(*cause)),
            (_, Event::Cancelled(cause)) if !over => end(row, Cancelled, Some(*cause)),
            (_, Event::Renewed { lease }) if !over => {
                if lease.is_some() || row.lease.is_some() {
                    let more = lease.unwrap_or(Duration::from_secs(20)).as_millis() as u64;
                    row.lease = row.lease.max(Some(now + more));
                }
                if row.state == Ready {
                    go(row, Ready);
                }
            }
            (_, Event::Replanned(replan)) if !over => {
                if row.attempt == 3 {
                    return end(row, Failed, Some(replan.because));
                }
                let blocks_gone = replan.because != Cause::Rejected;
                let lease_good = row.lease.is_some_and(|l| l > now && now < l - 2_000.min((l - now) / 4));
                let keep =
                    row.done && !blocks_gone && lease_good && row.choice.prefill == replan.choice.prefill;
                row.attempt += 1;
                row.choice = replan.choice.clone();
                if keep {
                    go(row, Ready);
                } else {
                    (row.done, row.lease) = (false, None);
                    go(row, Planned);
                }
            }
            _ => {}
        }
    }

    pub fn time(&mut self, now: Millis) {
        for row in self.rows.values_mut() {
            let lost = row.lease.is_some_and(|l| l <= now);
            let lease_or = |cause| Some(if lost { Cause::LeaseExpired } else { cause });
            let live =
                matches!(row.state, State::Planned | State::Prefilling | State::Ready | State::Pulling);
            let ended = match row.state {
                _ if !live => None,
                _ if now >= row.overall => Some((State::Expired, lease_or(Cause::TooLate))),
                _ if now < row.deadline => None,
                State::Planned => Some((State::Expired, Some(Cause::NeverStarted))),
                State::Prefilling => Some((State::Failed, Some(Cause::PrefillTooSlow))),
                State::Ready => Some((State::Expired, lease_or(Cause::NeverPulled))),
                _ => Some((State::Failed, Some(Cause::PullTooSlow))),
            };
            if let Some((state, cause)) = ended {
                row.end(state, cause, now);
            }
        }
    }

    /// What all transfers under way take up: transfers and bytes per link, bytes and prefills per
    /// pod.
    pub fn taken(&self) -> (Links, Pods) {
        let mut links: BTreeMap<_, Flow> = BTreeMap::new();
        let mut pods: BTreeMap<_, (u64, u32)> = BTreeMap::new();
        for row in self.rows.values() {
            if !matches!(row.state, State::Planned | State::Prefilling | State::Ready | State::Pulling) {
                continue;
            }
            for leg in &row.choice.legs {
                let flow = links.entry((leg.from.clone(), leg.to.clone())).or_default();
                flow.transfers += 1;
                flow.bytes += leg.bytes;
                pods.entry(leg.from.clone()).or_default().0 += leg.pinned_bytes;
            }
            if let (Some(p), false) = (&row.choice.prefill, row.done) {
                pods.entry(p.clone()).or_default().1 += 1;
            }
        }
        (links, pods)
    }
}

//! The shared index beside the embedded one: told the same, it must answer the same.

use std::cell::Cell;
use std::collections::HashMap;
use std::time::Duration;

use kvindex::remote::changes;
use kvindex::{Answer, HolderId, HolderSpec, Query, Score};
use kvindex_valkey::{Claim, Cursor, Health, QueryError, Shared, Standing, Writer};
use kvproto::{Batch, SeqHash};
use tokio::runtime::Handle;

use crate::shadow::Shadow;

const HEALTH: Health = Health { live: true, complete: true };

/// Writers of all that is attached, and the questions they were compared by.
pub struct Beside {
    shared: Shared,
    runtime: Handle,
    writers: HashMap<HolderId, (Box<Writer>, u64)>,
    /// Until when, by request: the servers' own clock is too slow for a conversation.
    routed: HashMap<String, u64>,
    /// Answers that were the same.
    pub same: Cell<u32>,
    /// Questions that it says it does not answer.
    pub refused: Cell<u32>,
}

impl Beside {
    pub fn new(shared: Shared) -> Beside {
        let runtime = Handle::current();
        let (writers, routed) = (HashMap::new(), HashMap::new());
        Beside { shared, runtime, writers, routed, same: Cell::new(0), refused: Cell::new(0) }
    }

    fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        tokio::task::block_in_place(|| self.runtime.block_on(what))
    }
}

impl Shadow for Beside {
    fn attach(&mut self, id: HolderId, spec: &HolderSpec) {
        if self.shared.attach_as(id, spec.clone()).is_err() {
            return;
        }
        let claim = self.wait(self.shared.claim(id, "a", None)).expect("servers that answer");
        let Claim::Ours(mut writer) = claim else { panic!("nobody else writes") };
        self.wait(writer.renew(HEALTH)).expect("servers that answer");
        self.writers.insert(id, (writer, 0));
    }

    fn detach(&mut self, id: HolderId) {
        self.shared.detach(id);
        if let Some((writer, _)) = self.writers.remove(&id) {
            self.wait(writer.retire()).expect("servers that answer");
        }
    }

    fn apply(&mut self, id: HolderId, batch: &Batch<'_>) {
        let Some((mut writer, n)) = self.writers.remove(&id) else { return };
        let told = changes(writer.spec(), batch);
        let cursor = Cursor { seq: Some(n), ts: batch.ts, note: vec![] };
        self.wait(writer.apply(&told, cursor, HEALTH)).expect("servers that answer");
        self.writers.insert(id, (writer, n + 1));
    }

    fn clear(&mut self, id: HolderId) {
        let Some((mut writer, n)) = self.writers.remove(&id) else { return };
        self.wait(writer.clear()).expect("servers that answer");
        self.wait(writer.renew(HEALTH)).expect("servers that answer");
        self.writers.insert(id, (writer, n));
    }

    fn announce(&mut self, request: &str, blocks: &[(HolderId, Vec<SeqHash>)], until: u64) {
        let hour = Duration::from_secs(3600);
        let noted = self.wait(self.shared.announce(request, blocks, hour)).expect("servers that answer");
        self.routed.remove(request);
        if noted > 0 {
            self.routed.insert(request.to_owned(), until);
        }
    }

    fn forget(&mut self, request: &str) {
        let known = self.routed.remove(request).is_some();
        let forgotten = self.wait(self.shared.forget(request)).expect("servers that answer");
        assert_eq!(forgotten, known, "{request}");
    }

    fn expire(&mut self, now: u64) {
        let over = self.routed.iter().filter(|(_, until)| **until <= now).map(|(r, _)| r.clone());
        over.collect::<Vec<_>>().iter().for_each(|request| self.forget(request));
    }

    fn compare(&self, query: &Query<'_>, answer: &Answer) -> Result<(), String> {
        let asked = match self.wait(self.shared.query(query)) {
            Ok(asked) => asked,
            Err(QueryError::Unsupported(_)) => {
                self.refused.set(self.refused.get() + 1);
                return Ok(());
            }
            Err(e) => return Err(e.to_string()),
        };
        if let Some(v) = asked.vouched.iter().find(|v| v.standing != Standing::Live) {
            return Err(format!("the shared index vouches for nothing: {v:?}"));
        }
        // What is in doubt is not kept there.
        let plain =
            |s: &Score| Score { suspect: s.cached, weighted: (s.weighted * 1e6).round() / 1e6, ..s.clone() };
        let same = |a: &Answer| Answer { scores: a.scores.iter().map(plain).collect(), ..a.clone() };
        let (got, want) = (same(&asked.answer), same(answer));
        if got != want {
            return Err(format!("the shared index says\n  {got:?}\nand the embedded one\n  {want:?}"));
        }
        self.same.set(self.same.get() + 1);
        Ok(())
    }
}

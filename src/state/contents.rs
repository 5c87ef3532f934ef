//! What the catalog holds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::publisher::{Followed, Origin, PublisherKey, PublisherSpec};

/// Everything there is to know again after a restart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// How often kvd was started on this directory.
    pub incarnation: u64,
    /// The first life of a publisher that is registered from now on: above every life of every
    /// publisher that is gone, so that no snapshot's cursor is ever taken for another engine's.
    pub first_life: u64,
    /// Who is registered.
    pub publishers: BTreeMap<PublisherKey, Publisher>,
    /// Snapshots by file name.
    pub snapshots: BTreeMap<String, Snapshot>,
}

/// A registration, and which life of its engine is followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publisher {
    /// The registration.
    pub spec: PublisherSpec,
    /// Grows by one whenever the publisher is found to be a new engine. Does not begin at 0 for who was
    /// registered before.
    pub life: u64,
    /// Who it is by.
    #[serde(default)]
    pub origin: Origin,
}

/// A place in an engine's event stream.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cursor {
    /// Sequence number of the last batch applied.
    pub seq: u64,
    /// The time that batch tells.
    pub ts: f64,
}

/// A file that holds the index as it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Whether it can be used.
    pub state: SnapshotState,
    /// Bytes of the file.
    pub size: u64,
    /// XXH3-64 of the file.
    pub checksum: u64,
    /// When it was cut, milliseconds since 1970.
    pub cut_ms: u64,
    /// Whom it holds, and up to where.
    pub cursors: Vec<SnapshotCursor>,
}

/// Whether a snapshot can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    /// Written to its end and synced.
    Complete,
    /// Found not to be what was written.
    Bad,
}

/// Up to where a snapshot holds one publisher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotCursor {
    /// Who.
    pub publisher: PublisherKey,
    /// Which life of its engine.
    pub life: u64,
    /// The last batch in it; `None` = nothing was applied yet.
    pub cursor: Option<Cursor>,
}

impl Contents {
    /// Makes `all` the registrations, and no others.
    pub fn register(&mut self, all: &[Followed]) {
        let mut old = std::mem::take(&mut self.publishers);
        for Followed { spec, origin } in all {
            let key = spec.key();
            let life = match old.remove(&key) {
                Some(same) if same.spec == *spec && same.origin.may_be(origin) => same.life,
                // Another address or engine under the same name.
                Some(other) => other.life + 1,
                None => self.first_life,
            };
            self.publishers.insert(key, Publisher { spec: spec.clone(), life, origin: origin.clone() });
        }
        let gone = old.values().map(|p| p.life + 1);
        self.first_life = gone.chain([self.first_life]).max().unwrap_or_default();
    }

    /// Notes a new life of `key`'s engine; `None` where nobody is registered under it.
    pub fn begin_life(&mut self, key: &PublisherKey) -> Option<u64> {
        let life = &mut self.publishers.get_mut(key)?.life;
        *life += 1;
        Some(*life)
    }

    /// Begins a life for everyone that nobody ever had, as far as can be seen.
    pub fn renew_lives(&mut self) {
        let noted = self.snapshots.values().flat_map(|s| &s.cursors).map(|at| at.life);
        let lives = self.publishers.values().map(|p| p.life).chain(noted);
        // A damaged one may be anything; none is followed by another.
        let fresh =
            lives.map(|life| life.saturating_add(1)).chain([self.first_life]).max().unwrap_or_default();
        self.first_life = fresh;
        for p in self.publishers.values_mut() {
            p.life = fresh;
        }
    }

    /// Where the last complete snapshot has `key` in the life it is in now.
    pub fn cursor(&self, key: &PublisherKey) -> Option<Cursor> {
        let life = self.publishers.get(key)?.life;
        let has = |at: &&SnapshotCursor| at.publisher == *key && at.life == life;
        let good = self.snapshots.iter().filter(|(_, s)| s.state == SnapshotState::Complete);
        let with = good.filter_map(|(name, s)| Some((s.cut_ms, name, s.cursors.iter().find(has)?)));
        with.max_by_key(|(cut_ms, name, _)| (*cut_ms, *name)).and_then(|(_, _, at)| at.cursor)
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;
    use crate::ingest::testing::dialled;
    use crate::publisher::{Sighting, Source};

    fn contents(specs: &[PublisherSpec]) -> Contents {
        let mut contents = Contents::default();
        contents.register(&specs.iter().cloned().map(Followed::from).collect::<Vec<_>>());
        contents
    }

    fn snapshot(cut_ms: u64, key: &PublisherKey, life: u64, seq: u64) -> Snapshot {
        let cursor = Some(Cursor { seq, ts: seq as f64 });
        let cursors = vec![SnapshotCursor { publisher: key.clone(), life, cursor }];
        Snapshot { state: SnapshotState::Complete, size: 1, checksum: 2, cut_ms, cursors }
    }

    #[test]
    fn no_life_ever_comes_twice_under_one_name() {
        let (a, b) = (dialled("a", "tcp://10.0.0.1:1"), dialled("a", "tcp://10.0.0.1:2"));
        let key = a.key();
        let mut contents = contents(slice::from_ref(&a));
        assert_eq!(contents.publishers[&key].life, 0);
        contents.register(&[a.clone().into()]);
        assert_eq!(contents.publishers[&key].life, 0, "the same registration again is the same engine");
        assert_eq!(contents.begin_life(&key), Some(1));
        contents.register(&[b.into()]);
        assert_eq!(contents.publishers[&key].life, 2, "another address is another engine");
        contents.register(&[]);
        assert_eq!(contents.begin_life(&key), None);
        contents.register(&[a.into()]);
        assert_eq!(contents.publishers[&key].life, 3, "who was gone does not come back as who it was");
    }

    #[test]
    fn who_is_seen_to_be_another_engine_begins_a_life_though_nothing_else_differs() {
        let seen = |identity: &str| {
            let (source, object) = (Source::Kubernetes, "ns/a".to_owned());
            let origin = Origin::Discovered(Sighting { source, object, identity: identity.to_owned() });
            [Followed { spec: dialled("a", "tcp://10.0.0.1:1"), origin }]
        };
        let mut contents = Contents::default();
        let mut life = |all: &[Followed]| {
            contents.register(all);
            contents.publishers.values().next().map(|p| p.life)
        };
        assert_eq!(life(&seen("1")), Some(0));
        assert_eq!(life(&seen("1")), Some(0));
        assert_eq!(life(&seen("2")), Some(1));
        assert_eq!(life(&[dialled("a", "tcp://10.0.0.1:1").into()]), Some(1), "taken over by hand");
    }

    #[test]
    fn an_engine_is_followed_from_the_newest_good_snapshot_of_its_own_life() {
        let spec = dialled("a", "tcp://10.0.0.1:1");
        let key = spec.key();
        let mut contents = contents(&[spec]);
        assert_eq!(contents.cursor(&key), None);
        contents.snapshots.insert("z".into(), snapshot(100, &key, 0, 5));
        contents.snapshots.insert("a".into(), snapshot(200, &key, 0, 9));
        let seq = |c: &Contents| c.cursor(&key).map(|c| c.seq);
        assert_eq!(seq(&contents), Some(9));
        contents.snapshots.get_mut("a").unwrap().state = SnapshotState::Bad;
        assert_eq!(seq(&contents), Some(5));
        contents.begin_life(&key);
        assert_eq!(seq(&contents), None, "a snapshot of another engine says nothing");
        contents.snapshots.insert("b".into(), snapshot(300, &key, 1, 2));
        assert_eq!(seq(&contents), Some(2));
    }
}

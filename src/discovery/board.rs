//! What do all feeds see?
//!
//! Pure: words go in, what is wanted comes out.

use std::collections::BTreeMap;

use super::{FeedShown, Refused};
use crate::publisher::{PublisherKey, PublisherSpec, Sighting, Source};

/// What is said of things: by a feed, of what it sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word<T = Seen> {
    /// Everything there is, and nothing else.
    All(Vec<T>),
    /// Something is there, perhaps otherwise than before.
    Is(T),
    /// Something is gone.
    Gone(String),
    /// It cannot be read at the moment; what it said last holds.
    Failed(String),
}

/// Something seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// See [`Sighting::object`].
    pub object: String,
    /// See [`Sighting::identity`].
    pub identity: String,
    /// Whether it serves.
    pub standing: Standing,
    /// The publishers that it has, or why that cannot be told.
    pub publishers: Result<Vec<PublisherSpec>, String>,
}

/// Whether something seen serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It is there but not ready: who follows it goes on, because its cache may be as it was; nobody
    /// begins.
    Paused,
    /// It is ready.
    Serving,
}

/// A publisher that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// How it is followed.
    pub spec: PublisherSpec,
    /// Where it was seen.
    pub sighting: Sighting,
    /// Whether it serves.
    pub standing: Standing,
}

/// All that is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// By key.
    pub wishes: BTreeMap<PublisherKey, Wish>,
    /// Sources of which not all is known, so that what they do not show may be there nevertheless.
    pub unfinished: Vec<Source>,
    /// What cannot be followed.
    pub refused: Vec<Refused>,
}

#[derive(Clone, Debug)]
struct Feed {
    source: Source,
    name: String,
    complete: bool,
    error: Option<String>,
    objects: BTreeMap<String, Seen>,
}

/// What was said so far.
#[derive(Clone, Debug, Default)]
pub struct Board {
    feeds: Vec<Feed>,
}

impl Board {
    /// Makes room for one more feed, and returns its number.
    pub fn add_feed(&mut self, source: Source, name: String) -> usize {
        let objects = BTreeMap::new();
        self.feeds.push(Feed { source, name, complete: false, error: None, objects });
        self.feeds.len() - 1
    }

    /// Takes what a feed says.
    pub fn hear(&mut self, feed: usize, word: Word) {
        let Some(feed) = self.feeds.get_mut(feed) else { return };
        match word {
            Word::All(seen) => {
                feed.objects = seen.into_iter().map(|s| (s.object.clone(), s)).collect();
                feed.complete = true;
            }
            Word::Is(seen) => drop(feed.objects.insert(seen.object.clone(), seen)),
            Word::Gone(object) => drop(feed.objects.remove(&object)),
            Word::Failed(why) => {
                feed.error = Some(why);
                return;
            }
        }
        feed.error = None;
    }

    /// Whether every feed has said all that it sees.
    pub fn is_complete(&self) -> bool {
        self.feeds.iter().all(|f| f.complete)
    }

    /// Each feed, for people.
    pub fn shown(&self) -> Vec<FeedShown> {
        let shown = |f: &Feed| FeedShown {
            source: f.source,
            name: f.name.clone(),
            complete: f.complete,
            objects: f.objects.len(),
            error: f.error.clone(),
        };
        self.feeds.iter().map(shown).collect()
    }

    /// What all of them want.
    pub fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        for feed in &self.feeds {
            if !feed.complete && !wanted.unfinished.contains(&feed.source) {
                wanted.unfinished.push(feed.source);
            }
            for seen in feed.objects.values() {
                match &seen.publishers {
                    Ok(specs) => specs.iter().for_each(|spec| wanted.add(feed.source, seen, spec)),
                    Err(why) => {
                        wanted.refused.push(Refused { object: seen.object.clone(), why: why.clone() })
                    }
                }
            }
        }
        // Two feeds may see one pod.
        wanted.refused.sort();
        wanted.refused.dedup();
        wanted
    }
}

impl Wanted {
    fn add(&mut self, source: Source, seen: &Seen, spec: &PublisherSpec) {
        let sighting = Sighting { source, object: seen.object.clone(), identity: seen.identity.clone() };
        let wish = Wish { spec: spec.clone(), sighting, standing: seen.standing };
        // A file is written by somebody who means it. Of two pods at one address the one that serves is
        // there; otherwise it only matters that it is always the same.
        fn rank(w: &Wish) -> (Source, Standing, &str, &str) {
            (w.sighting.source, w.standing, &w.sighting.object, &w.sighting.identity)
        }
        let key = spec.key();
        if self.wishes.get(&key).is_none_or(|other| rank(other) < rank(&wish)) {
            self.wishes.insert(key, wish);
        }
    }
}

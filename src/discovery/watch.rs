//! What does the API server say of one kind of objects?
//!
//! `kube`'s watcher lists in pages, watches from there, goes on after a dropped connection from the last
//! version or bookmark it saw, and lists anew when the cluster has forgotten that version (410 Gone). The
//! pauses after errors are ours, and so is the case that 410 comes as the answer itself.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tracing::{debug, warn};

use super::board::Word;
use super::{Counts, Discovery};
use crate::cluster::said;

/// How long one watch goes on before it is asked for again. A connection that died without a word is
/// noticed this much later, and five seconds.
const WATCH: u32 = 60;
/// Objects of one answer.
const PAGE: u32 = 500;
/// Pauses after errors: the first, and the longest.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// What is said of a kind, without an end. A stream that is dropped asks no more.
pub type Words<T> = BoxStream<'static, Word<T>>;

/// Which objects are watched.
pub struct Selection {
    /// What they are, for people: "pods".
    pub kind: &'static str,
    /// In Kubernetes' syntax; empty = whatever their labels.
    pub labels: String,
    /// The only one of this name.
    pub name: Option<String>,
    /// What to say where the cluster has no such kind, which then has no objects; `None` = every cluster
    /// has it, so that an answer which denies it comes from somewhere else.
    pub optional: Option<String>,
}

/// Says all objects that there are, as `see` sees them, and then what changes.
pub fn watch<K, T>(
    api: Api<K>,
    selection: Selection,
    see: impl Fn(&K) -> T + Send + 'static,
    discovery: Arc<Discovery>,
) -> Words<T>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    T: Send + 'static,
{
    let Selection { kind, labels, name, optional } = selection;
    let mut what = watcher::Config::default().timeout(WATCH).page_size(PAGE);
    if !labels.is_empty() {
        what = what.labels(&labels);
    }
    if let Some(name) = name {
        what = what.fields(&format!("metadata.name={name}"));
    }
    let begin = move || watcher::watcher(api.clone(), what.clone()).boxed();
    let watching = Watching {
        events: begin(),
        begin,
        see,
        discovery,
        kind,
        optional,
        listed: Vec::new(),
        known: false,
        errors: 0,
        pause: None,
        after: None,
    };
    // The state is inside the stream: who gives up waiting for a word loses nothing.
    let said = stream::unfold(watching, |mut watching| async move {
        let word = watching.next().await;
        Some((word, watching))
    });
    said.boxed()
}

struct Watching<K, T, B, S> {
    events: BoxStream<'static, watcher::Result<Event<K>>>,
    begin: B,
    see: S,
    discovery: Arc<Discovery>,
    kind: &'static str,
    optional: Option<String>,
    listed: Vec<T>,
    /// Whether all was said once.
    known: bool,
    /// Since it last went well.
    errors: u32,
    /// Before anything else is asked.
    pause: Option<Duration>,
    /// To be said next.
    after: Option<Word<T>>,
}

impl<K, T, B, S> Watching<K, T, B, S>
where
    K: Resource,
    B: Fn() -> BoxStream<'static, watcher::Result<Event<K>>>,
    S: Fn(&K) -> T,
{
    async fn next(&mut self) -> Word<T> {
        if let Some(word) = self.after.take() {
            return word;
        }
        if let Some(pause) = self.pause.take() {
            tokio::time::sleep(pause).await;
        }
        loop {
            let word = match self.events.next().await {
                None => {
                    self.events = (self.begin)();
                    continue;
                }
                Some(Ok(Event::Init)) => {
                    self.listed.clear();
                    continue;
                }
                Some(Ok(Event::InitApply(object))) => {
                    self.listed.push((self.see)(&object));
                    continue;
                }
                Some(Ok(Event::InitDone)) => {
                    self.known = true;
                    Counts::add(&self.discovery.counts.listed, 1);
                    Word::All(std::mem::take(&mut self.listed))
                }
                Some(Ok(Event::Apply(object))) => Word::Is((self.see)(&object)),
                Some(Ok(Event::Delete(object))) => Word::Gone(name(&object)),
                Some(Err(error)) => return self.failed(&error),
            };
            self.errors = 0;
            return word;
        }
    }

    fn failed(&mut self, error: &watcher::Error) -> Word<T> {
        let missing = self.optional.as_ref().filter(|_| status(error) == Some(404));
        let why = missing.cloned().unwrap_or_else(|| said(error));
        Counts::add(&self.discovery.counts.errors, 1);
        if self.errors == 0 {
            warn!(error = why, kind = self.kind, "cannot be watched, trying again");
        } else {
            debug!(error = why, kind = self.kind, errors = self.errors, "cannot be watched");
        }
        self.pause = Some(pause(self.errors));
        self.errors += 1;
        if status(error) == Some(410) {
            // The watcher would ask for the version that is forgotten for ever.
            self.events = (self.begin)();
        }
        // Objects of a kind are deleted before the kind is: where there were some, it is the server that is
        // not itself yet.
        if missing.is_none() || self.known {
            return Word::Failed(why);
        }
        self.known = true;
        self.after = Some(Word::Failed(why));
        Word::All(Vec::new())
    }
}

/// `namespace/name`.
pub fn name<K: Resource>(object: &K) -> String {
    format!("{}/{}", object.meta().namespace.as_deref().unwrap_or_default(), object.name_any())
}

/// How long to wait after this many errors before the one that has just come.
fn pause(errors: u32) -> Duration {
    let longest = (PAUSE * 2u32.saturating_pow(errors.min(16))).min(LONGEST);
    // Replicas that lost the cluster together do not come back together.
    longest / 2 + crate::peers::jitter(longest / 2)
}

/// The status that the request was answered with.
fn status(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

//! Watches pods.
//!
//! `kube`'s watcher lists in pages, watches from there, goes on after a dropped connection from the last
//! version or bookmark it saw, and lists anew when the cluster has forgotten that version (410 Gone). The
//! pauses after errors are ours, and so is the case that 410 comes as the answer itself.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Config};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::board::Word;
use super::pods::{PodRules, name};
use super::{Discovery, DiscoveryConfig};

/// How long one watch goes on before it is asked for again. A connection that died without a word is
/// noticed this much later, and five seconds.
const WATCH: u32 = 60;
/// Pods of one answer.
const PAGE: u32 = 500;
/// How long connecting may take, and how long an answer may say nothing.
const CONNECT: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(90);
/// Pauses after errors: the first, and the longest.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// A cluster whose pods can be watched.
pub struct Cluster {
    client: Client,
    /// Where kvd is.
    namespace: String,
}

/// A cluster that cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// kvd is not a pod.
    #[error("discovery.pods: not in a cluster ({0}); set discovery.kubeconfig")]
    NotInside(#[source] kube::config::InClusterError),
    /// The file cannot be used.
    #[error("discovery.kubeconfig {}: {error}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        error: kube::config::KubeconfigError,
    },
    /// What the cluster's address or certificates say cannot be used.
    #[error("connect to the cluster: {0}")]
    Client(#[source] Box<kube::Error>),
}

impl Cluster {
    /// The cluster that `config` means; `None` where no pods are looked for. Nothing is sent yet.
    ///
    /// # Errors
    /// If it is not known how it is reached.
    pub async fn find(config: &DiscoveryConfig) -> Result<Option<Cluster>, ConnectError> {
        if config.pods.is_empty() {
            return Ok(None);
        }
        let mut how = match &config.kubeconfig {
            None => Config::incluster().map_err(ConnectError::NotInside)?,
            Some(path) => {
                let wrong = |error| ConnectError::Kubeconfig { path: path.clone(), error };
                let file = Kubeconfig::read_from(path).map_err(wrong)?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(file, &options).await.map_err(wrong)?
            }
        };
        how.connect_timeout = Some(CONNECT);
        how.read_timeout = Some(SILENCE);
        how.reset_reader_on_write = true;
        // The pauses are ours.
        how.default_retry = false;
        let namespace = how.default_namespace.clone();
        let client = Client::try_from(how).map_err(|e| ConnectError::Client(Box::new(e)))?;
        Ok(Some(Cluster { client, namespace }))
    }

    /// Where `rules` look: `None` = everywhere.
    pub(super) fn namespaces(&self, rules: &PodRules) -> Vec<Option<String>> {
        match rules.namespaces.as_slice() {
            [] => vec![Some(self.namespace.clone())],
            some if some.iter().any(|n| n == "*") => vec![None],
            some => some.iter().cloned().map(Some).collect(),
        }
    }

    /// Says what is seen of one namespace's pods until nobody listens any more.
    pub(super) fn watch(
        &self,
        namespace: Option<&str>,
        rules: Arc<PodRules>,
        feed: (usize, mpsc::Sender<(usize, Word)>),
        discovery: Arc<Discovery>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let pods: Api<Pod> = match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        async move {
            let (number, words) = feed;
            let mut errors = 0;
            loop {
                let what = watcher::Config::default().labels(&rules.label_selector);
                let what = what.timeout(WATCH).page_size(PAGE);
                let mut events = pin!(watcher::watcher(pods.clone(), what));
                let mut listed = Vec::new();
                while let Some(event) = events.next().await {
                    let word = match event {
                        Ok(Event::Init) => {
                            listed.clear();
                            continue;
                        }
                        Ok(Event::InitApply(pod)) => {
                            listed.push(rules.see(&pod));
                            continue;
                        }
                        Ok(Event::InitDone) => {
                            super::Counts::add(&discovery.counts.listed, 1);
                            Word::All(std::mem::take(&mut listed))
                        }
                        Ok(Event::Apply(pod)) => Word::Is(rules.see(&pod)),
                        Ok(Event::Delete(pod)) => Word::Gone(name(&pod)),
                        Err(error) => {
                            super::Counts::add(&discovery.counts.errors, 1);
                            if errors == 0 {
                                warn!(%error, "pods cannot be watched, trying again");
                            } else {
                                debug!(%error, errors, "pods cannot be watched");
                            }
                            if words.send((number, Word::Failed(said(&error)))).await.is_err() {
                                return;
                            }
                            tokio::time::sleep(pause(errors)).await;
                            errors += 1;
                            if is_forgotten(&error) {
                                break;
                            }
                            continue;
                        }
                    };
                    errors = 0;
                    if words.send((number, word)).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// How long to wait after this many errors before the one that has just come.
fn pause(errors: u32) -> Duration {
    let longest = (PAUSE * 2u32.saturating_pow(errors.min(16))).min(LONGEST);
    // Replicas that lost the cluster together do not come back together.
    longest / 2 + crate::peers::jitter(longest / 2)
}

/// Whether the version to go on from is refused outright: the watcher would ask for it for ever.
fn is_forgotten(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 410,
        _ => false,
    }
}

/// An error in a line.
fn said(error: &watcher::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = e.source();
    }
    text.chars().take(300).collect()
}

//! Which feeds does a kind of pods have?
//!
//! Pods with given labels are one. What selects pods by an object of its own has two: the object's, which
//! says whether it is there, and that of the pods which follow from it.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, Resource};

use super::Discovery;
use super::board::Seen;
use super::pods::{PodRules, Select};
use super::run::{Deaf, Feed};
use super::watch::{Selection, Words, watch};
use super::{pool, service};
use crate::cluster::Cluster;

/// A namespace that is looked at.
#[derive(Clone)]
pub struct Place {
    /// Asks the cluster.
    pub client: Client,
    /// `None` = all.
    pub namespace: Option<String>,
    /// Counts.
    pub discovery: Arc<Discovery>,
}

impl Place {
    /// Objects of a kind there.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// What is said of pods with these labels, as `rules` see them.
    pub fn pods(&self, labels: &str, rules: Arc<PodRules>) -> Words<Seen> {
        let api: Api<Pod> = self.api();
        let selection = Selection { kind: "Pod", labels: labels.to_owned(), name: None, optional: None };
        watch(api, selection, move |pod| rules.see(pod), Arc::clone(&self.discovery))
    }
}

/// Where `rules` look.
pub fn places(cluster: &Cluster, rules: &PodRules, discovery: &Arc<Discovery>) -> Vec<Place> {
    let namespaces = match rules.namespaces.as_slice() {
        [] => vec![Some(cluster.namespace.clone())],
        some if some.iter().any(|n| n == "*") => vec![None],
        some => some.iter().cloned().map(Some).collect(),
    };
    let place =
        |namespace| Place { client: cluster.client.clone(), namespace, discovery: Arc::clone(discovery) };
    namespaces.into_iter().map(place).collect()
}

/// Says what is seen there of pods that `rules` select, by feeds of the names that `feed` is given, until
/// nobody listens any more.
pub fn follow(
    place: Place,
    rules: PodRules,
    mut feed: impl FnMut(String) -> Feed,
) -> BoxFuture<'static, Deaf> {
    let at = place.namespace.clone().unwrap_or_else(|| "*".to_owned());
    match rules.select.clone() {
        Select::Labels(labels) => {
            let feed = feed(format!("pods {at} {labels}"));
            let mut words = place.pods(&labels, Arc::new(rules));
            async move {
                while let Some(word) = words.next().await {
                    feed.say(word).await?;
                }
                Ok(())
            }
            .boxed()
        }
        Select::Pool { name, group } => {
            let feeds = (
                feed(format!("inferencepools {at} {name}")),
                feed(format!("pods {at} of inferencepool {name}")),
            );
            pool::follow(place, rules, (name, group), feeds).boxed()
        }
        Select::Service { name, labels } => {
            let feeds =
                (feed(format!("endpointslices {at} {name}")), feed(format!("pods {at} of service {name}")));
            service::follow(place, rules, (name, labels), feeds).boxed()
        }
    }
}

//! Which pods, and which endpoints that are no pods, does a Service have?
//!
//! EndpointSlices name them. Pods are watched as well, because they say more of themselves than a slice
//! does: a pod is followed while some slice names it. An endpoint that is no pod is seen as one that says
//! what its slice says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, PodCondition, PodSpec, PodStatus};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;

use super::board::{Seen, Standing, Word};
use super::kubernetes::Place;
use super::pods::PodRules;
use super::run::{Deaf, Feed};
use super::watch::{Selection, name, watch};

/// The label that says whose a slice is.
const OF_SERVICE: &str = "kubernetes.io/service-name";

/// What a slice says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// `namespace/name`.
    pub name: String,
    /// Pods among its endpoints, by `namespace/name`.
    pub pods: BTreeSet<String>,
    /// The others.
    pub bare: Vec<Seen>,
}

/// Says what is seen of endpoints of the service `called`, until nobody listens any more.
pub async fn follow(
    place: Place,
    rules: PodRules,
    (called, labels): (String, String),
    (slices_feed, pods_feed): (Feed, Feed),
) -> Deaf {
    let rules = Arc::new(rules);
    let api: Api<EndpointSlice> = place.api();
    let selection = Selection {
        kind: "EndpointSlice",
        labels: format!("{OF_SERVICE}={called}"),
        name: None,
        optional: None,
    };
    let seen_by = Arc::clone(&rules);
    let mut slices =
        watch(api, selection, move |slice| Slice::read(slice, &seen_by), Arc::clone(&place.discovery));
    let mut pods = place.pods(&labels, rules);
    let mut members = Members::default();
    loop {
        tokio::select! {
            Some(word) = slices.next() => {
                let (of_slices, of_pods) = members.hear_slices(word);
                for word in of_slices {
                    slices_feed.say(word).await?;
                }
                for word in of_pods {
                    pods_feed.say(word).await?;
                }
            }
            Some(word) = pods.next() => {
                if let Some(word) = members.hear_pods(word) {
                    pods_feed.say(word).await?;
                }
            }
        }
    }
}

/// Pods, and slices that name some of them.
#[derive(Debug, Default)]
pub struct Members {
    /// By name; `None` until all are known.
    slices: Option<BTreeMap<String, Slice>>,
    /// The same, whether a slice names them or not: it may do so later.
    pods: Option<BTreeMap<String, Seen>>,
    /// Whom slices name.
    named: BTreeSet<String>,
}

impl Members {
    /// What follows from a word about slices: what to say of endpoints that are no pods, and of pods.
    pub fn hear_slices(&mut self, word: Word<Slice>) -> (Vec<Word>, Vec<Word>) {
        let first = self.slices.is_none();
        match (word, &mut self.slices) {
            (Word::All(all), slices) => {
                *slices = Some(all.into_iter().map(|s| (s.name.clone(), s)).collect());
            }
            (Word::Is(slice), Some(slices)) => drop(slices.insert(slice.name.clone(), slice)),
            (Word::Gone(name), Some(slices)) => drop(slices.remove(&name)),
            (Word::Failed(why), _) => return (vec![Word::Failed(why)], Vec::new()),
            // Nothing changes before everything is known.
            (Word::Is(_) | Word::Gone(_), None) => return (Vec::new(), Vec::new()),
        }
        let slices = self.slices.iter().flatten();
        let mut bare = vec![Word::All(slices.clone().flat_map(|(_, s)| s.bare.iter().cloned()).collect())];
        if slices.clone().next().is_none() {
            bare.push(Word::Failed("there is no EndpointSlice of that Service".to_owned()));
        }
        let named: BTreeSet<_> = slices.flat_map(|(_, s)| s.pods.iter().cloned()).collect();
        let before = std::mem::replace(&mut self.named, named);
        let Some(pods) = &self.pods else { return (bare, Vec::new()) };
        if first {
            return (bare, self.all().into_iter().collect());
        }
        let come = self.named.difference(&before).filter_map(|name| pods.get(name).cloned()).map(Word::Is);
        let gone = before.difference(&self.named).filter(|name| pods.contains_key(*name)).cloned();
        (bare, come.chain(gone.map(Word::Gone)).collect())
    }

    /// What follows from a word about pods.
    pub fn hear_pods(&mut self, word: Word) -> Option<Word> {
        match (word, &mut self.pods) {
            (Word::All(all), pods) => {
                *pods = Some(all.into_iter().map(|p| (p.object.clone(), p)).collect());
                self.all()
            }
            (Word::Is(pod), Some(pods)) => {
                pods.insert(pod.object.clone(), pod.clone());
                (self.slices.is_some() && self.named.contains(&pod.object)).then_some(Word::Is(pod))
            }
            (Word::Gone(name), Some(pods)) => {
                pods.remove(&name);
                (self.slices.is_some() && self.named.contains(&name)).then_some(Word::Gone(name))
            }
            (Word::Failed(why), _) => Some(Word::Failed(why)),
            (Word::Is(_) | Word::Gone(_), None) => None,
        }
    }

    /// All pods that slices name, where both are known.
    fn all(&self) -> Option<Word> {
        let (_, pods) = self.slices.as_ref().zip(self.pods.as_ref())?;
        Some(Word::All(self.named.iter().filter_map(|name| pods.get(name).cloned()).collect()))
    }
}

impl Slice {
    /// What `slice` says, with `rules` for endpoints that are no pods.
    pub fn read(slice: &EndpointSlice, rules: &PodRules) -> Slice {
        let mut read = Slice { name: name(slice), pods: BTreeSet::new(), bare: Vec::new() };
        let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
        for endpoint in &slice.endpoints {
            let pod = endpoint.target_ref.as_ref().filter(|r| r.kind.as_deref() == Some("Pod"));
            match pod.and_then(|r| r.name.as_deref()) {
                Some(name) => drop(read.pods.insert(format!("{namespace}/{name}"))),
                None => read.bare.extend(bare(slice, endpoint, rules)),
            }
        }
        read
    }
}

/// An endpoint that is no pod.
fn bare(slice: &EndpointSlice, endpoint: &Endpoint, rules: &PodRules) -> Option<Seen> {
    // Those after the first say nothing else.
    let address = endpoint.addresses.first()?;
    let pod = as_pod(slice, endpoint, address);
    if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
        let why = format!("an endpoint of type {} cannot be followed: IPv4 or IPv6 is", slice.address_type);
        return Some(Seen {
            object: name(&pod),
            identity: String::new(),
            standing: Standing::Paused,
            publishers: Err(why),
        });
    }
    // Where an engine begins anew without its endpoint going, nobody tells.
    Some(Seen { identity: String::new(), ..rules.see(&pod) })
}

/// The endpoint as a pod would be that says what its slice says.
fn as_pod(slice: &EndpointSlice, endpoint: &Endpoint, address: &str) -> Pod {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ports = slice.ports.iter().flatten().map(|port| ContainerPort {
        name: port.name.clone(),
        container_port: port.port.unwrap_or_default(),
        ..ContainerPort::default()
    });
    let container = Container { ports: Some(ports.collect()), ..Container::default() };
    // What is not said of an endpoint is well.
    let is_ready = conditions.ready != Some(false) && conditions.terminating != Some(true);
    let ready = PodCondition {
        type_: "Ready".to_owned(),
        status: if is_ready { "True" } else { "False" }.to_owned(),
        ..PodCondition::default()
    };
    Pod {
        metadata: ObjectMeta {
            namespace: slice.metadata.namespace.clone(),
            name: Some(address.to_owned()),
            labels: slice.metadata.labels.clone(),
            annotations: slice.metadata.annotations.clone(),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            node_name: endpoint.node_name.clone(),
            containers: vec![container],
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            pod_ip: Some(address.to_owned()),
            conditions: Some(vec![ready]),
            // One that finishes what it has is not to be sent more.
            phase: (conditions.terminating == Some(true)).then(|| "Succeeded".to_owned()),
            ..PodStatus::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Seen {
        let (identity, publishers) = (String::new(), Ok(Vec::new()));
        Seen { object: name.to_owned(), identity, standing: Standing::Serving, publishers }
    }

    fn slice(name: &str, pods: &[&str]) -> Slice {
        let pods = pods.iter().map(|p| (*p).to_owned()).collect();
        Slice { name: name.to_owned(), pods, bare: Vec::new() }
    }

    #[test]
    fn nothing_is_said_of_pods_before_pods_and_slices_are_known() {
        let mut members = Members::default();
        assert_eq!(members.hear_pods(Word::All(vec![pod("a"), pod("b")])), None);
        assert_eq!(members.hear_pods(Word::Is(pod("c"))), None);
        let (_, of_pods) = members.hear_slices(Word::All(vec![slice("s", &["a", "c", "d"])]));
        assert_eq!(of_pods, [Word::All(vec![pod("a"), pod("c")])]);

        let mut members = Members::default();
        assert_eq!(members.hear_slices(Word::All(vec![slice("s", &["a"])])).1, []);
        assert_eq!(members.hear_pods(Word::All(vec![pod("a"), pod("b")])), Some(Word::All(vec![pod("a")])));
    }

    #[test]
    fn a_pod_goes_with_the_last_slice_that_names_it() {
        let mut members = Members::default();
        members.hear_pods(Word::All(vec![pod("a"), pod("b")]));
        members.hear_slices(Word::All(vec![slice("s", &["a"]), slice("t", &["a", "b"])]));
        assert_eq!(members.hear_slices(Word::Gone("t".into())).1, [Word::Gone("b".into())]);
        assert_eq!(
            members.hear_slices(Word::Is(slice("s", &["b"]))).1,
            [Word::Is(pod("b")), Word::Gone("a".into())]
        );
        assert_eq!(members.hear_pods(Word::Gone("a".into())), None, "nobody names it");
        assert_eq!(members.hear_pods(Word::Gone("b".into())), Some(Word::Gone("b".into())));
        assert_eq!(members.hear_pods(Word::Is(pod("b"))), Some(Word::Is(pod("b"))));
    }
}

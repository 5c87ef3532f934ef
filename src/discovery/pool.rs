//! Which pods does an InferencePool select, and where do they serve?
//!
//! A pool is one object that may change, go and come back. While it is there its pods are watched by its
//! selector; when it goes they are nobody's.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use futures::StreamExt;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Resource};
use serde::Deserialize;

use super::board::{Seen, Standing, Word};
use super::kubernetes::Place;
use super::pods::PodRules;
use super::run::{Deaf, Feed};
use super::watch::{Selection, Words, name, watch};

/// The API that a pool is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolGroup {
    /// `inference.networking.k8s.io/v1`.
    Stable,
    /// `inference.networking.x-k8s.io/v1alpha2`, which came before.
    Experimental,
}

impl PoolGroup {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            PoolGroup::Stable => "inference.networking.k8s.io",
            PoolGroup::Experimental => "inference.networking.x-k8s.io",
        }
    }

    fn version(self) -> &'static str {
        match self {
            PoolGroup::Stable => "v1",
            PoolGroup::Experimental => "v1alpha2",
        }
    }
}

impl FromStr for PoolGroup {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [PoolGroup::Stable, PoolGroup::Experimental];
        let found = all.into_iter().find(|group| group.name() == text);
        found.ok_or_else(|| format!("use {} or {}", all[0].name(), all[1].name()))
    }
}

/// What a pool says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Labels of its pods, in Kubernetes' syntax.
    pub labels: String,
    /// Where they serve, by rank.
    pub ports: Vec<u16>,
}

impl Pool {
    /// What `object` says; `None` where it is on its way out.
    ///
    /// # Errors
    /// Says what cannot be used.
    pub fn read(object: &DynamicObject, group: PoolGroup) -> Result<Option<Pool>, String> {
        if object.meta().deletion_timestamp.is_some() {
            return Ok(None);
        }
        let spec = object.data.get("spec").cloned().unwrap_or_default();
        let wrong = |e: serde_json::Error| format!("spec: {e}");
        let (labels, ports) = match group {
            PoolGroup::Stable => {
                let Spec { selector, target_ports } = serde_json::from_value(spec).map_err(wrong)?;
                (selector.match_labels, target_ports.into_iter().map(|p| p.number).collect())
            }
            PoolGroup::Experimental => {
                let OldSpec { selector, target_port_number } = serde_json::from_value(spec).map_err(wrong)?;
                (selector, vec![target_port_number])
            }
        };
        if ports.is_empty() || ports.contains(&0) {
            return Err(format!("its target ports are {ports:?}"));
        }
        if labels.is_empty() {
            return Err("its selector is empty, which would be every pod of the namespace".to_owned());
        }
        let is_word = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if let Some((key, value)) = labels.iter().find(|(k, v)| !k.chars().chain(v.chars()).all(is_word)) {
            return Err(format!("its selector has no label {key:?}: {value:?}"));
        }
        let labels: Vec<_> = labels.into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        Ok(Some(Pool { labels: labels.join(","), ports }))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    selector: Selector,
    target_ports: Vec<Port>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Selector {
    match_labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Port {
    number: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OldSpec {
    selector: BTreeMap<String, String>,
    target_port_number: u16,
}

/// A pool as it was last seen: its name, and what it says.
type Sight = (String, Result<Option<Pool>, String>);

/// Says what is seen of the pool and of its pods, until nobody listens any more.
pub async fn follow(
    place: Place,
    rules: PodRules,
    pool: (String, PoolGroup),
    (pool_feed, pods_feed): (Feed, Feed),
) -> Deaf {
    let mut pools = watch_pool(&place, &pool.0, pool.1);
    let mut pods: Option<Words<Seen>> = None;
    let mut followed = Followed::default();
    loop {
        let next_pods = async {
            match &mut pods {
                Some(pods) => pods.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(word) = pools.next() => {
                let (words, then) = followed.hear(word);
                for word in words {
                    pool_feed.say(word).await?;
                }
                match then {
                    Then::Watch(pool) => {
                        let rules = PodRules { serving_ports: pool.ports, ..rules.clone() };
                        pods = Some(place.pods(&pool.labels, Arc::new(rules)));
                    }
                    Then::Leave => {
                        pods = None;
                        pods_feed.say(Word::All(Vec::new())).await?;
                    }
                    Then::Nothing => {}
                }
            }
            Some(word) = next_pods => pods_feed.say(word).await?,
        }
    }
}

fn watch_pool(place: &Place, pool: &str, group: PoolGroup) -> Words<Sight> {
    let kind = GroupVersionKind::gvk(group.name(), group.version(), "InferencePool");
    let kind = ApiResource::from_gvk_with_plural(&kind, "inferencepools");
    let api: Api<DynamicObject> = match &place.namespace {
        Some(namespace) => Api::namespaced_with(place.client.clone(), namespace, &kind),
        None => Api::all_with(place.client.clone(), &kind),
    };
    let missing = format!(
        "this cluster has no InferencePool of {}: install the Gateway API Inference Extension's CRDs, or set \
         pool_group or label_selector",
        kind.api_version
    );
    let selection = Selection {
        kind: "InferencePool",
        labels: String::new(),
        name: Some(pool.to_owned()),
        optional: Some(missing),
    };
    let see = move |object: &DynamicObject| (name(object), Pool::read(object, group));
    watch(api, selection, see, Arc::clone(&place.discovery))
}

/// What is to be done about pods.
#[derive(Debug, PartialEq, Eq)]
pub enum Then {
    /// As before.
    Nothing,
    /// These are its pods from now on.
    Watch(Pool),
    /// It has none any more.
    Leave,
}

/// The pool that is followed.
#[derive(Debug, Default)]
pub struct Followed {
    /// `None` = nothing was ever said of it.
    now: Option<Option<Pool>>,
}

impl Followed {
    /// What follows from what is said of the pool: what to say on, and what to do.
    pub fn hear(&mut self, word: Word<Sight>) -> (Vec<Word>, Then) {
        let sight = match word {
            Word::All(mut all) => all.pop(),
            Word::Is(sight) => Some(sight),
            Word::Gone(_) => None,
            Word::Failed(why) => return (vec![Word::Failed(why)], Then::Nothing),
        };
        match sight {
            Some((object, Ok(Some(pool)))) => {
                let words = vec![Word::All(vec![thing(object)])];
                if self.now.as_ref().is_some_and(|now| now.as_ref() == Some(&pool)) {
                    return (words, Then::Nothing);
                }
                self.now = Some(Some(pool.clone()));
                (words, Then::Watch(pool))
            }
            // A slip of the pen does not take a fleet away.
            Some((object, Err(why))) => {
                let words = vec![Word::All(vec![thing(object)]), Word::Failed(why)];
                match self.now {
                    None => (words, self.leave()),
                    Some(_) => (words, Then::Nothing),
                }
            }
            None | Some((_, Ok(None))) => {
                let gone = Word::Failed("there is no such InferencePool".to_owned());
                (vec![Word::All(Vec::new()), gone], self.leave())
            }
        }
    }

    fn leave(&mut self) -> Then {
        match self.now.replace(None) {
            Some(None) => Then::Nothing,
            None | Some(Some(_)) => Then::Leave,
        }
    }
}

/// Itself it publishes nothing.
fn thing(object: String) -> Seen {
    Seen { object, identity: String::new(), standing: Standing::Serving, publishers: Ok(Vec::new()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(labels: &str) -> Sight {
        let pool = Pool { labels: labels.to_owned(), ports: vec![8000] };
        ("ns/llama".to_owned(), Ok(Some(pool)))
    }

    #[test]
    fn a_pool_that_is_said_again_changes_nothing_and_another_selector_does() {
        let mut followed = Followed::default();
        assert!(matches!(followed.hear(Word::All(vec![sight("a=b")])).1, Then::Watch(_)));
        assert_eq!(followed.hear(Word::Is(sight("a=b"))).1, Then::Nothing);
        assert_eq!(followed.hear(Word::All(vec![sight("a=b")])).1, Then::Nothing);
        assert!(matches!(followed.hear(Word::Is(sight("a=c"))).1, Then::Watch(_)));
        assert_eq!(followed.hear(Word::Failed("the cluster is away".into())).1, Then::Nothing);
        assert_eq!(followed.hear(Word::Gone("ns/llama".into())).1, Then::Leave);
        assert_eq!(followed.hear(Word::All(Vec::new())).1, Then::Nothing, "it is gone already");
        assert!(matches!(followed.hear(Word::Is(sight("a=c"))).1, Then::Watch(_)));
    }

    #[test]
    fn a_pool_that_makes_no_sense_has_no_pods_at_the_start_and_those_before_later() {
        let wrong = || Word::Is(("ns/llama".to_owned(), Err("spec: missing field `selector`".to_owned())));
        let mut followed = Followed::default();
        let (words, then) = followed.hear(wrong());
        assert_eq!(then, Then::Leave, "so that all is known of it");
        assert!(matches!(&words[..], [Word::All(all), Word::Failed(_)] if all.len() == 1));
        assert!(matches!(followed.hear(Word::Is(sight("a=b"))).1, Then::Watch(_)));
        assert_eq!(followed.hear(wrong()).1, Then::Nothing);
    }

    #[test]
    fn a_selector_is_one_of_labels_and_nothing_else() {
        let read = |spec: serde_json::Value| {
            let kind = GroupVersionKind::gvk("g", "v", "InferencePool");
            let mut object = DynamicObject::new("llama", &ApiResource::from_gvk(&kind));
            object.data = serde_json::json!({"spec": spec});
            Pool::read(&object, PoolGroup::Stable)
        };
        let pool = |labels: serde_json::Value| {
            serde_json::json!({
                "selector": {"matchLabels": labels}, "targetPorts": [{"number": 8000}],
            })
        };
        let both = read(pool(serde_json::json!({"b": "2", "x.io/a": "1"}))).expect("sound").expect("there");
        assert_eq!(both.labels, "b=2,x.io/a=1");
        for (key, value) in [("a", "1,b=2"), ("a in (b)", "1"), ("!a", "")] {
            let why = read(pool(serde_json::json!({key: value}))).expect_err("it would mean something else");
            assert!(why.starts_with("its selector has no label"), "{why}");
        }
        assert!(
            read(serde_json::json!({"selector": {"matchLabels": {"a": "b"}}, "targetPorts": []})).is_err()
        );
        assert!(read(serde_json::json!({"selector": {"a": "b"}, "targetPortNumber": 8000})).is_err());
    }
}

//! Who speaks on a socket that several engines share?
//!
//! Pure. Nothing but the topic tells them apart, and anyone who can reach the socket can write
//! any topic: so it decides among the publishers of this socket only, and never for a pod that
//! is registered elsewhere.

use std::collections::HashMap;

use kvproto::frames::Topic;

/// Whom a message belongs to.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim<'a, T> {
    /// A publisher of this socket.
    Publisher(&'a T),
    /// A pod that nobody has registered and that says who it is.
    Stranger(Topic<'a>),
    /// Nobody.
    Nobody,
}

/// The publishers of one socket.
#[derive(Debug)]
pub struct Routes<T> {
    by_topic: HashMap<Vec<u8>, T>,
    /// Those without a topic, with their models.
    by_pod: HashMap<String, Vec<(String, T)>>,
}

impl<T> Default for Routes<T> {
    fn default() -> Self {
        Routes { by_topic: HashMap::new(), by_pod: HashMap::new() }
    }
}

impl<T> Routes<T> {
    /// Adds a publisher.
    pub fn add(&mut self, topic: Option<&str>, pod: &str, model: &str, publisher: T) {
        match topic {
            Some(topic) => {
                self.by_topic.insert(topic.as_bytes().to_vec(), publisher);
            }
            None => self.by_pod.entry(pod.to_owned()).or_default().push((model.to_owned(), publisher)),
        }
    }

    /// Whether a message could belong to this publisher and one that is there already.
    pub fn is_taken(&self, topic: Option<&str>, pod: &str, model: &str) -> bool {
        match topic {
            Some(topic) => self.by_topic.contains_key(topic.as_bytes()),
            None => self.by_pod.get(pod).is_some_and(|ranks| ranks.iter().any(|(m, _)| m == model)),
        }
    }

    /// Takes out the publishers that `gone` says.
    pub fn remove(&mut self, gone: impl Fn(&T) -> bool) {
        self.by_topic.retain(|_, publisher| !gone(publisher));
        self.by_pod.retain(|_, ranks| {
            ranks.retain(|(_, publisher)| !gone(publisher));
            !ranks.is_empty()
        });
    }

    /// Whether there is no publisher.
    pub fn is_empty(&self) -> bool {
        self.by_topic.is_empty() && self.by_pod.is_empty()
    }

    /// Whom `topic` speaks for. `is_registered` knows all pods, here and elsewhere.
    pub fn claim<'a>(&'a self, topic: &'a [u8], is_registered: impl Fn(&str) -> bool) -> Claim<'a, T> {
        if let Some(publisher) = self.by_topic.get(topic) {
            return Claim::Publisher(publisher);
        }
        let parsed = Topic::parse(topic);
        let (pod, model) = match (&parsed, loosely(topic)) {
            (Some(t), _) => (Some(t.pod.as_ref()), t.model),
            (None, Some((pod, model))) => (Some(pod), model),
            (None, None) => (None, ""),
        };
        if let Some(publishers) = pod.and_then(|p| self.by_pod.get(p)) {
            return match publishers.as_slice() {
                [(_, only)] => Claim::Publisher(only),
                several => match several.iter().find(|(m, _)| m == model) {
                    Some((_, publisher)) => Claim::Publisher(publisher),
                    None => Claim::Nobody,
                },
            };
        }
        if pod.is_some_and(is_registered) {
            return Claim::Nobody;
        }
        match parsed {
            Some(stranger) => Claim::Stranger(stranger),
            None => self.only().map_or(Claim::Nobody, Claim::Publisher),
        }
    }

    /// The only publisher without a topic: what nobody else can have sent is its.
    pub fn only(&self) -> Option<&T> {
        let mut pods = self.by_pod.values();
        match (pods.next().map(Vec::as_slice), pods.next()) {
            (Some([(_, only)]), None) => Some(only),
            _ => None,
        }
    }
}

/// Pod and model of a topic whose pod is no `host:port`, as older charts write it.
fn loosely(topic: &[u8]) -> Option<(&str, &str)> {
    str::from_utf8(topic).ok()?.strip_prefix("kv@")?.split_once('@')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody_else(_: &str) -> bool {
        false
    }

    fn routes(entries: &[(Option<&str>, &str, &str)]) -> Routes<usize> {
        let mut routes = Routes::default();
        for (i, (topic, pod, model)) in entries.iter().enumerate() {
            routes.add(*topic, pod, model, i);
        }
        routes
    }

    #[test]
    fn a_registered_topic_is_matched_exactly() {
        let r = routes(&[(Some("a"), "1.1.1.1:1", "m"), (Some("b"), "1.1.1.2:1", "m")]);
        assert_eq!(r.claim(b"b", nobody_else), Claim::Publisher(&1));
        assert_eq!(r.claim(b"bb", nobody_else), Claim::Nobody);
        assert_eq!(r.claim(b"", nobody_else), Claim::Nobody);
    }

    #[test]
    fn a_pod_is_known_by_its_topic() {
        let r = routes(&[(None, "1.1.1.1:1", "m"), (None, "1.1.1.2:1", "m"), (None, "1.1.1.3", "m")]);
        assert_eq!(r.claim(b"kv@1.1.1.2:1@org/m@v2", nobody_else), Claim::Publisher(&1));
        assert_eq!(r.claim(b"kv@1.1.1.3@m", nobody_else), Claim::Publisher(&2));
        assert_eq!(r.claim(b"", nobody_else), Claim::Nobody, "two could have sent it");
    }

    #[test]
    fn two_models_of_a_pod_are_told_apart_by_the_model() {
        let r = routes(&[(None, "1.1.1.1:1", "m"), (None, "1.1.1.1:1", "n")]);
        assert_eq!(r.claim(b"kv@1.1.1.1:1@n", nobody_else), Claim::Publisher(&1));
        assert_eq!(r.claim(b"kv@1.1.1.1:1@o", nobody_else), Claim::Nobody);
    }

    #[test]
    fn a_topic_never_speaks_for_a_pod_registered_elsewhere() {
        let r = routes(&[(None, "1.1.1.1:1", "m")]);
        assert_eq!(r.claim(b"kv@9.9.9.9:1@m", |pod| pod == "9.9.9.9:1"), Claim::Nobody);
        assert_eq!(r.claim(b"kv@pod-9@m", |pod| pod == "pod-9"), Claim::Nobody);
    }

    #[test]
    fn what_names_nobody_is_of_the_only_publisher() {
        let r = routes(&[(None, "1.1.1.1:1", "m"), (Some("x"), "1.1.1.2:1", "m")]);
        assert_eq!(r.claim(b"", nobody_else), Claim::Publisher(&0));
        assert_eq!(r.claim(b"\xff", nobody_else), Claim::Publisher(&0));
    }

    #[test]
    fn a_pod_that_nobody_registered_is_a_stranger() {
        let r = routes(&[(None, "1.1.1.1:1", "m")]);
        let claim = r.claim(b"kv@1.1.1.2:1@m", nobody_else);
        assert!(matches!(claim, Claim::Stranger(t) if t.pod == "1.1.1.2:1" && t.model == "m"));
    }

    #[test]
    fn a_publisher_taken_out_gets_nothing_more() {
        let mut r = routes(&[(Some("a"), "p", "m"), (None, "q", "m")]);
        assert!(r.is_taken(Some("a"), "z", "m") && r.is_taken(None, "q", "m") && !r.is_taken(None, "q", "n"));
        r.remove(|p| *p == 0);
        assert_eq!(r.claim(b"a", nobody_else), Claim::Publisher(&1));
        r.remove(|p| *p == 1);
        assert!(r.is_empty());
    }
}

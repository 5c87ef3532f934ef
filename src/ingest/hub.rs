//! A bound socket and the publishers that share it.

use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::RwLock;

use super::config::Listen;
use super::lane::Lane;
use super::message::Message;
use super::registry::Registry;
use super::route::{Claim, Routes};
use crate::publisher::PublisherSpec;

/// Hands each message of a bound socket to whom it belongs.
pub struct Hub {
    /// The address.
    pub bind: String,
    /// How strangers are registered, if they are.
    listen: Option<Listen>,
    routes: RwLock<Routes<Arc<Lane>>>,
    registry: Weak<Registry>,
}

impl Hub {
    /// A hub of no publishers yet.
    pub fn new(bind: String, listen: Option<Listen>, registry: Weak<Registry>) -> Hub {
        Hub { bind, listen, routes: RwLock::default(), registry }
    }

    /// Adds a publisher.
    pub fn add(&self, lane: &Arc<Lane>) {
        let spec = &lane.spec;
        self.routes.write().add(spec.topic.as_deref(), &spec.instance_id, &spec.model, Arc::clone(lane));
    }

    /// Takes a publisher out.
    pub fn remove(&self, lane: &Arc<Lane>) {
        self.routes.write().remove(|l| Arc::ptr_eq(l, lane));
    }

    /// Whether nobody uses the socket any more.
    pub fn is_idle(&self) -> bool {
        self.listen.is_none() && self.routes.read().is_empty()
    }

    /// How many strangers may register here.
    pub fn max_strangers(&self) -> usize {
        self.listen.as_ref().map_or(0, |l| l.max_publishers)
    }

    /// Whether another publisher here would get the same messages.
    pub fn is_taken(&self, spec: &PublisherSpec) -> bool {
        self.routes.read().is_taken(spec.topic.as_deref(), &spec.instance_id, &spec.model)
    }

    /// Hands on a message that arrived at `at`.
    pub fn push(self: &Arc<Self>, message: Message, at: Instant) {
        let Some(registry) = self.registry.upgrade() else { return };
        let lane = match self.claim(message.topic(), &registry) {
            Sender::Publisher(lane) => Some(lane),
            Sender::Stranger(spec) => registry.welcome(self, *spec),
            Sender::Nobody => None,
        };
        match lane {
            Some(lane) => lane.push_live(message, at),
            None => self.unclaimed(),
        }
    }

    /// Whose `topic` is, or how its sender would be registered.
    fn claim(&self, topic: &[u8], registry: &Registry) -> Sender {
        let routes = self.routes.read();
        match (routes.claim(topic, |pod| registry.is_registered(pod)), &self.listen) {
            (Claim::Publisher(lane), _) => Sender::Publisher(Arc::clone(lane)),
            (Claim::Nobody, _) => Sender::Nobody,
            (Claim::Stranger(t), Some(listen)) => {
                Sender::Stranger(Box::new(stranger(listen, topic, &t.pod, t.model)))
            }
            (Claim::Stranger(_), None) => routes.only().cloned().map_or(Sender::Nobody, Sender::Publisher),
        }
    }

    /// Counts a message that belongs to nobody.
    pub fn unclaimed(&self) {
        if let Some(registry) = self.registry.upgrade() {
            registry.unclaimed.add(1);
        }
    }
}

/// Who sent a message, as far as its topic tells.
enum Sender {
    Publisher(Arc<Lane>),
    /// Not registered; how it would be.
    Stranger(Box<PublisherSpec>),
    Nobody,
}

/// The registration of a pod that says by its topic who it is.
fn stranger(listen: &Listen, topic: &[u8], pod: &str, model: &str) -> PublisherSpec {
    let model = listen.model.as_deref().unwrap_or(model);
    PublisherSpec {
        tenant_id: listen.tenant_id.clone(),
        additional_salt: listen.additional_salt.clone(),
        bind: Some(listen.bind.clone()),
        // The topic was read as text, so it is text.
        topic: Some(String::from_utf8_lossy(topic).into_owned()),
        health_url: listen.health_url.as_ref().map(|url| url.replace("{instance}", pod)),
        ..PublisherSpec::new(listen.engine, model, pod)
    }
}

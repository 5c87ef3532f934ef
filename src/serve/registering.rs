//! Who is followed from now on, by whom it was said, and who else is to know?

use kvproto::rpc::kv;
use kvproto::rpc::kv::peer_news::News;
use tonic::Status;

use super::{Service, endpoint};
use crate::ingest::{RegisterError, Registered};
use crate::peers::book::Said;
use crate::publisher::{Followed, Origin, PublisherKey, PublisherSpec, Selector};
use crate::serve::grpc::{read_spec, write_spec};
use crate::wall::unix_ms;

/// Who tells something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Whoever uses this replica: the others are to know.
    ByClient,
    /// Another replica, which has told the others as well.
    ByPeer,
}

impl Service {
    /// Follows a publisher, here and at the other replicas.
    ///
    /// # Errors
    /// See [`crate::ingest::Publishers::register`].
    pub fn register(&self, spec: PublisherSpec) -> Result<Registered, RegisterError> {
        let registered = self.publishers.register(spec.clone())?;
        self.say(spec.key(), Some(spec));
        Ok(registered)
    }

    /// Follows no longer whoever `selector` means under either form of the instance's name, here and at the
    /// other replicas.
    ///
    /// # Errors
    /// See [`crate::ingest::Publishers::unregister`].
    pub fn unregister(&self, selector: &Selector) -> Result<Vec<PublisherSpec>, RegisterError> {
        let mut removed = self.publishers.unregister(selector)?;
        if let Some(instance_id) = endpoint::other_form(&selector.instance_id) {
            removed.extend(self.publishers.unregister(&Selector { instance_id, ..selector.clone() })?);
        }
        for spec in &removed {
            self.say(spec.key(), None);
        }
        Ok(removed)
    }

    /// Every registration, for a replica that has just come.
    pub(crate) fn registrations_as_news(&self) -> Vec<kv::PeerNews> {
        let mut book = self.peers.book.lock();
        for Followed { spec, origin } in self.publishers.followed() {
            match origin {
                // Known from before this process began: whoever knows better does.
                Origin::Client | Origin::Topic => {
                    book.note(spec.key(), Said { at_ms: 0, spec: Some(spec) });
                }
                // Every replica finds these by itself, and finds by itself that they are gone.
                Origin::Config | Origin::Discovered(_) => {}
            }
        }
        book.all().map(|(key, said)| news(key, said)).collect()
    }

    /// Takes what another replica says of a registration.
    pub(crate) fn hear_registration(&self, heard: kv::PeerRegistration) -> Result<(), Status> {
        let kv::PeerRegistration { publisher, removed, at_ms } = heard;
        let publisher = publisher.ok_or_else(|| Status::invalid_argument("publisher: missing"))?;
        if removed {
            let kv::PublisherSpec { tenant_id, model, instance_id, dp_rank, .. } = publisher;
            let key = PublisherKey { tenant_id, model, instance_id, dp_rank };
            if self.peers.book.lock().note(key.clone(), Said { at_ms, spec: None }) {
                let PublisherKey { tenant_id, model, instance_id, dp_rank } = key;
                let selector =
                    Selector { tenant_id, model: Some(model), instance_id, dp_rank: Some(dp_rank) };
                self.publishers.unregister(&selector)?;
            }
            return Ok(());
        }
        let spec = read_spec(publisher)?;
        if self.peers.book.lock().note(spec.key(), Said { at_ms, spec: Some(spec.clone()) }) {
            self.publishers.register(spec)?;
        }
        Ok(())
    }

    fn say(&self, key: PublisherKey, spec: Option<PublisherSpec>) {
        let mut book = self.peers.book.lock();
        let said = Said { at_ms: book.now(unix_ms()), spec };
        let told = news(&key, &said);
        book.note(key, said);
        drop(book);
        self.peers.outbox.tell(&told);
    }
}

fn news(key: &PublisherKey, said: &Said) -> kv::PeerNews {
    let publisher = match &said.spec {
        Some(spec) => write_spec(spec),
        None => kv::PublisherSpec {
            tenant_id: key.tenant_id.clone(),
            model: key.model.clone(),
            instance_id: key.instance_id.clone(),
            dp_rank: key.dp_rank,
            ..kv::PublisherSpec::default()
        },
    };
    let registration =
        kv::PeerRegistration { publisher: Some(publisher), removed: said.spec.is_none(), at_ms: said.at_ms };
    kv::PeerNews { news: Some(News::Registration(registration)) }
}

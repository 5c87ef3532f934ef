//! Which addresses are listened on, and who shares them?

use std::sync::{Arc, Weak};

use tracing::warn;

use super::{Book, Occasion, Registry};
use crate::ingest::RegisterError;
use crate::ingest::config::Listen;
use crate::ingest::hub::Hub;
use crate::ingest::reader::{Inflow, Inlet};
use crate::publisher::PublisherSpec;

impl Registry {
    /// The hub for a new publisher; `None` where the address cannot be used at the moment.
    pub(super) fn join(
        self: &Arc<Self>,
        book: &mut Book,
        bind: &str,
        spec: &PublisherSpec,
        occasion: Occasion,
    ) -> Result<Option<Arc<Hub>>, RegisterError> {
        let hub = match self.open_hub(book, bind, None) {
            Ok(hub) => hub,
            Err(e) if occasion == Occasion::Reloaded => {
                warn!(bind, error = %e, "cannot listen for a registered publisher");
                return Ok(None);
            }
            Err(e) => return Err(RegisterError::Address { field: "bind", why: e.to_string() }),
        };
        if hub.is_taken(spec) {
            let why =
                format!("another publisher on {bind} would get the same messages; give each its own topic");
            return Err(RegisterError::Invalid { field: "topic", why });
        }
        Ok(Some(hub))
    }

    pub(super) fn open_hub(
        self: &Arc<Self>,
        book: &mut Book,
        bind: &str,
        listen: Option<Listen>,
    ) -> zmq::Result<Arc<Hub>> {
        if let Some((_, hub)) = book.hubs.get(bind) {
            return Ok(Arc::clone(hub));
        }
        let inlet = Inlet::Hub(book.next_hub);
        let socket = self.bind_patiently(self.readers.desk_of(inlet), bind)?;
        let registry: Weak<Registry> = Arc::downgrade(self);
        let hub = Arc::new(Hub::new(bind.to_owned(), listen, registry));
        self.readers.add(inlet, socket, Inflow::Hub(Arc::clone(&hub)));
        book.hubs.insert(bind.to_owned(), (book.next_hub, Arc::clone(&hub)));
        book.next_hub += 1;
        Ok(hub)
    }

    /// libzmq lets go of an address some time after its socket was closed.
    fn bind_patiently(&self, desk: usize, bind: &str) -> zmq::Result<zmq::Socket> {
        for _ in 0..20 {
            match self.readers.sockets().listen(desk, bind) {
                Err(zmq::Error::EADDRINUSE) => std::thread::sleep(std::time::Duration::from_millis(25)),
                other => return other,
            }
        }
        self.readers.sockets().listen(desk, bind)
    }

    /// Closes bound sockets that nobody uses.
    pub(super) fn close_idle(&self, book: &mut Book) {
        book.hubs.retain(|_, (n, hub)| {
            let keep = !hub.is_idle();
            if !keep {
                self.readers.remove(Inlet::Hub(*n));
            }
            keep
        });
    }
}

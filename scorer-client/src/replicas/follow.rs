//! What goes on in the background: names are resolved again, replicas are asked for their health.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::places::{Place, Resolved};
use super::set::{Connection, SOUND, Shared};
use super::settings::ReplicaSettings;
use crate::ScorerClient;
use crate::connect::{Dial, Link};

/// The name by which kvd says whether schedulers may ask it.
const SERVICE: &str = "kv.v1.IndexService";
/// While nobody is known, names are resolved this often.
const HURRY: Duration = Duration::from_secs(1);
/// How often it is looked whether a replica that fell silent is to be tried again.
const LOOK: Duration = Duration::from_millis(25);
/// Connections that carry nothing are asked whether they live.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Resolves once, then goes on by itself.
pub(crate) async fn start(shared: &Arc<Shared>, places: Vec<Place>) -> JoinHandle<()> {
    let mut resolved = Resolved::default();
    resolve(shared, &places, &mut resolved).await;
    let shared = Arc::downgrade(shared);
    tokio::spawn(async move {
        loop {
            let Some(every) = upgrade(&shared, |s| s.settings.resolve_every) else { return };
            let nobody = resolved.addresses().is_empty();
            sleep(if nobody { HURRY.min(every) } else { every }).await;
            let Some(shared) = shared.upgrade() else { return };
            resolve(&shared, &places, &mut resolved).await;
        }
    })
}

fn upgrade<T>(shared: &Weak<Shared>, look: impl FnOnce(&Shared) -> T) -> Option<T> {
    shared.upgrade().map(|s| look(&s))
}

async fn resolve(shared: &Arc<Shared>, places: &[Place], resolved: &mut Resolved) {
    let limit = shared.settings.connect_timeout;
    let found = places.iter().map(|p| async move { timeout(limit, p.resolve()).await.ok().flatten() });
    resolved.update(join_all(found).await);
    let now = resolved.addresses();
    let addresses: Vec<SocketAddr> = now.iter().map(|(address, _)| *address).collect();
    let change = shared.board.lock().expect(SOUND).replace(&addresses);
    for address in change.went {
        if let Some(gone) = shared.connections().remove(&address) {
            gone.watch.abort();
        }
    }
    for address in change.came {
        let place = now.iter().find(|(a, _)| *a == address).map(|(_, place)| &places[*place]);
        if let Some(connection) = place.and_then(|place| connect(shared, place, address)) {
            shared.connections().insert(address, connection);
        }
    }
}

/// How replicas are dialled.
pub(crate) fn dial(settings: &ReplicaSettings) -> Dial {
    Dial {
        connect_timeout: settings.connect_timeout,
        keep_alive: Some(KEEP_ALIVE),
        security: settings.security.clone(),
    }
}

/// A connection that is dialled when it is used, and again after a loss. None where the address makes no
/// sense to the transport, which a resolved one does.
fn connect(shared: &Arc<Shared>, place: &Place, address: SocketAddr) -> Option<Connection> {
    let dial = dial(&shared.settings);
    let endpoint = dial.endpoint(&place.uri(address), Some(place.host())).ok()?;
    let link = dial.link(endpoint.connect_lazy());
    let client = ScorerClient::over(link.clone(), shared.settings.deadline);
    let watch = tokio::spawn(watch(Arc::downgrade(shared), address, link));
    Some(Connection { client, watch })
}

/// Asks one replica for its health as long as it is one of ours. The first question also makes the
/// connection, so that no scheduler's question has to wait for that.
async fn watch(shared: Weak<Shared>, address: SocketAddr, link: Link) {
    let mut client = HealthClient::new(link);
    loop {
        let Some(every) = upgrade(&shared, |s| s.settings.health_every) else { return };
        let request = HealthCheckRequest { service: SERVICE.to_owned() };
        // Longer than a question: a busy replica is not a silent one.
        let answer = timeout(every.max(Duration::from_millis(100)), client.check(request)).await;
        let serves = match answer {
            Ok(Ok(answer)) => Some(answer.into_inner().status() == ServingStatus::Serving),
            // Who has no such service may serve all the same.
            Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => Some(true),
            Ok(Err(_)) | Err(_) => None,
        };
        let health = |s: &Shared| s.board.lock().expect(SOUND).health(address, serves, Instant::now());
        if upgrade(&shared, health).is_none() {
            return;
        }
        let next = Instant::now() + every;
        while Instant::now() < next {
            sleep(LOOK.min(every)).await;
            let probe = |s: &Shared| s.board.lock().expect(SOUND).wants_probe(address, Instant::now());
            match upgrade(&shared, probe) {
                None => return,
                Some(true) => break,
                Some(false) => {}
            }
        }
    }
}

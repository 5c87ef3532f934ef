//! What was said of pods, besides what they hold?

use kvproto::rpc::kv;
use rustc_hash::FxHashMap;

use super::{Transfers, convert};
use crate::serve::{AskError, Service, endpoint};
use crate::transfer::types::{Endpoint, Place, Roles, Wire};
use std::sync::Arc;

/// Pods that were described.
#[derive(Debug, Default)]
pub(super) struct Pods {
    described: FxHashMap<Endpoint, Described>,
}

/// What was said of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Described {
    pub roles: Option<Roles>,
    pub class: Option<Arc<str>>,
    pub place: Place,
    pub wire: Wire,
}

impl Pods {
    /// What was said of `pod`, under either form of its name.
    pub fn get(&self, pod: &Endpoint) -> Described {
        let other = || {
            let instance = endpoint::other_form(&pod.instance)?;
            self.described.get(&Endpoint { instance: instance.into(), rank: pod.rank })
        };
        self.described.get(pod).or_else(other).cloned().unwrap_or_default()
    }

    /// The zone of `pod`, where that is known.
    pub fn zone(&self, pod: &Endpoint) -> Option<Arc<str>> {
        self.get(pod).place.zone
    }
}

impl Described {
    /// What a message says, with what was said before where it says nothing.
    pub fn or(self, before: Described) -> Described {
        let Described { roles, class, place, wire } = self;
        Described {
            roles: roles.or(before.roles),
            class: class.or(before.class),
            place: Place {
                host: place.host.or(before.place.host),
                rack: place.rack.or(before.place.rack),
                zone: place.zone.or(before.place.zone),
                region: place.region.or(before.place.region),
            },
            wire: Wire {
                bootstrap: wire.bootstrap.or(before.wire.bootstrap),
                p2p: wire.p2p.or(before.wire.p2p),
                engine_id: wire.engine_id.or(before.wire.engine_id),
                control: wire.control.or(before.wire.control),
            },
        }
    }
}

/// Who a message is about, and what it says of it. Load is not kept here.
pub(super) fn read(service: &Service, pod: kv::TransferPod) -> Result<(Endpoint, Described), AskError> {
    if pod.instance_id.is_empty() {
        return Err(AskError::invalid("instance_id", "empty"));
    }
    let roles = convert::read_roles(&pod);
    let place = pod.place.unwrap_or_default();
    let wire = pod.wire.unwrap_or_default();
    let texts = [
        ("instance_id", &pod.instance_id),
        ("compat_class", &pod.compat_class),
        ("host", &place.host),
        ("rack", &place.rack),
        ("zone", &place.zone),
        ("region", &place.region),
        ("bootstrap", &wire.bootstrap),
        ("p2p", &wire.p2p),
        ("engine_id", &wire.engine_id),
        ("control", &wire.control),
    ];
    for (field, text) in texts {
        service.check_text(field, text)?;
    }
    let described = Described {
        roles,
        class: convert::text(pod.compat_class),
        place: convert::read_place(place),
        wire: convert::read_wire(wire),
    };
    Ok((Endpoint { instance: pod.instance_id.into(), rank: pod.dp_rank }, described))
}

impl Transfers {
    /// Takes note of what pods are like. With `replace`, all others are forgotten.
    pub(super) fn describe(
        &self,
        pods: Vec<(Endpoint, Described)>,
        replace: bool,
    ) -> Result<usize, AskError> {
        let mut known = self.pods.write();
        let mut next = if replace { FxHashMap::default() } else { known.described.clone() };
        for (pod, said) in pods {
            let before = next.remove(&pod).unwrap_or_default();
            next.insert(pod, said.or(before));
        }
        if next.len() > self.config.max_pods {
            return Err(AskError::TooMany { field: "pods", limit: self.config.max_pods, got: next.len() });
        }
        known.described = next;
        Ok(known.described.len())
    }
}

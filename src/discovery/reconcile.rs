//! What is to be done so that just those are followed who are wanted?
//!
//! Pure, and told everything each time: what was done halfway, or behind its back, is put right by the
//! next pass.

use std::collections::HashMap;

use super::board::{Standing, Wanted, Wish};
use crate::publisher::{Followed, Origin, PublisherKey, Sighting};

/// What is to be done, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Whom to leave.
    pub leave: Vec<PublisherKey>,
    /// Whom to follow, perhaps in place of whoever is followed under that name.
    pub follow: Vec<Followed>,
}

impl Changes {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.leave.is_empty() && self.follow.is_empty()
    }
}

/// What to do about `followed` so that it becomes what is `wanted`.
pub fn decide(wanted: &Wanted, followed: &[Followed]) -> Changes {
    let mut changes = Changes::default();
    let now: HashMap<PublisherKey, &Followed> = followed.iter().map(|f| (f.spec.key(), f)).collect();
    for (key, wish) in &wanted.wishes {
        match now.get(key).map(|f| (&f.spec, &f.origin)) {
            None | Some((_, Origin::Topic)) => changes.begin(wish),
            // Somebody decided about it, and decides when it ends.
            Some((_, Origin::Client | Origin::Config)) => {}
            Some((_, Origin::Discovered(was))) if is_another(was, &wish.sighting) => {
                changes.leave.push(key.clone());
                changes.begin(wish);
            }
            Some((spec, Origin::Discovered(was))) => {
                if *spec != wish.spec || *was != wish.sighting {
                    changes.begin(wish);
                }
            }
        }
    }
    for f in followed {
        if let Origin::Discovered(was) = &f.origin {
            let key = f.spec.key();
            if !wanted.wishes.contains_key(&key) && !wanted.unfinished.contains(&was.source) {
                changes.leave.push(key);
            }
        }
    }
    changes
}

/// Whether what is seen now is an engine that has begun anew since.
fn is_another(was: &Sighting, is: &Sighting) -> bool {
    was.source == is.source && was.identity != is.identity
}

impl Changes {
    fn begin(&mut self, wish: &Wish) {
        match wish.standing {
            Standing::Serving => {
                let origin = Origin::Discovered(wish.sighting.clone());
                self.follow.push(Followed { spec: wish.spec.clone(), origin });
            }
            Standing::Paused => {}
        }
    }
}

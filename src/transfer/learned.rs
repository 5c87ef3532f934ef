//! The planner as the service uses it: with what was learnt so far, behind locks.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use super::artefacts;
use super::cost::geometry::USUAL_PARITY;
use super::cost::{CostBook, Geometry, Starting, book};
use super::plan::{Knowledge, Planner, Policy};
use super::plans::{Brief, LinkCost, Plans};
use super::types::{Artefacts, Endpoint, Lesson, Plan, Question};

/// Pods and links whose costs are remembered. A cluster of 256 pods has 65,280 links.
const PODS: usize = 8_192;
const LINKS: usize = 131_072;

/// Plans by what was reported, and learns from it.
pub struct Learned {
    book: RwLock<CostBook>,
    models: RwLock<HashMap<Arc<str>, Arc<Geometry>>>,
    policy: Policy,
    began: Instant,
}

thread_local! {
    /// Memory that a thread's questions share.
    static PLANNER: RefCell<Planner> = RefCell::default();
}

impl Learned {
    /// Knows nothing yet but `starting`.
    pub fn new(starting: Starting, policy: Policy) -> Learned {
        Learned {
            book: RwLock::new(CostBook::new(starting, PODS, LINKS)),
            models: RwLock::default(),
            policy,
            began: Instant::now(),
        }
    }

    /// Says what shape a model's cache has. Until it is said, nothing of the model is moved.
    pub fn set_model(&self, model: &str, geometry: Geometry) {
        self.models.write().insert(model.into(), Arc::new(geometry));
    }

    fn geometry(&self, model: &str) -> Option<Arc<Geometry>> {
        self.models.read().get(model).cloned()
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Plans for Learned {
    fn plan(&self, question: &Question) -> Plan {
        let geometry = self.geometry(&question.model);
        let book = self.book.read();
        let know =
            Knowledge { geometry: geometry.as_deref(), book: &book, policy: &self.policy, now: self.now() };
        PLANNER.with_borrow_mut(|planner| planner.plan(question, know))
    }

    fn artefacts(&self, brief: &Brief<'_>) -> Artefacts {
        artefacts::make(brief)
    }

    fn learn(&self, lesson: &Lesson) {
        let parity = match lesson {
            Lesson::Prefilled { model, .. } => {
                self.geometry(model).map_or(USUAL_PARITY, |g| g.attention_parity)
            }
            Lesson::Moved { .. }
            | Lesson::Failed { .. }
            | Lesson::Restarted { .. }
            | Lesson::Measured { .. } => USUAL_PARITY,
        };
        self.book.write().learn(lesson, parity, self.now());
    }

    fn link(&self, from: &Endpoint, to: &Endpoint) -> Option<LinkCost> {
        self.book.read().pair(from, to).map(cost)
    }

    fn links(&self) -> Vec<(Endpoint, Endpoint, LinkCost)> {
        self.book.read().pairs().map(|p| (p.from.clone(), p.to.clone(), cost(p))).collect()
    }
}

fn cost(pair: &book::Pair) -> LinkCost {
    LinkCost {
        bytes_per_second: pair.bytes_per_s().map_or(0, |b| b as u64),
        setup: Duration::from_secs_f64(pair.setup_s().unwrap_or(0.0)),
        warm: pair.warm,
        transfers: pair.transfers,
        failures: pair.failed,
    }
}

//! What does the router write down when it decides, and what does it learn later?

use kvd::ctl::simulate::workload::BLOCK;

use super::{Notice, State, World};
use crate::transfers::view::{Route, Told};

impl World<'_> {
    /// The router writes down what it decided.
    pub(super) fn book(&mut self, i: usize, route: Route) {
        let (job, bytes) = (&self.jobs[i], self.cluster.engine.token_bytes);
        let mut lacking = self.view.lacking(route.compute, job);
        if let Some((_, blocks)) = route.pull {
            lacking = lacking.min(job.tokens - (blocks as u32 * BLOCK).min(job.tokens - 1));
        }
        let handed = u64::from(self.view.lacking(route.decode, job)) * bytes;
        self.view.route(route.compute, &job.chain);
        let pods = &mut self.view.pods;
        pods[route.compute].prefill_tokens += u64::from(lacking);
        pods[route.compute].prefills += 1;
        pods[route.decode].active += 1;
        pods[route.decode].active_blocks += u64::from(job.tokens.div_ceil(BLOCK));
        if route.compute != route.decode {
            pods[route.compute].egress.0 += 1;
            pods[route.compute].egress.1 += handed;
            pods[route.decode].ingress.0 += 1;
            pods[route.decode].ingress.1 += handed;
            pods[route.compute].pinned += u64::from(job.tokens) * bytes;
        }
        let state = State {
            route,
            booked_tokens: u64::from(lacking),
            booked_bytes: handed,
            first: 0.0,
            ready: 0.0,
            prefilled: (0, 0, 0.0),
            had: 0,
        };
        self.states[i] = Some(state);
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Prefilled(i) => {
                let state = self.state(i).clone();
                self.view.forget(state.route.compute, &self.jobs[i].chain);
                let seen = &mut self.view.pods[state.route.compute];
                seen.prefill_tokens -= state.booked_tokens;
                seen.prefills -= 1;
                let (tokens, cached, took) = state.prefilled;
                self.router
                    .told(self.now, Told::Prefilled { pod: state.route.compute, tokens, cached, took });
            }
            Notice::Moved(id) => {
                let t = self.transfers[id].clone();
                for (pod, out) in [(t.from, true), (t.to, false)] {
                    let seen = &mut self.view.pods[pod];
                    let flow = if out { &mut seen.egress } else { &mut seen.ingress };
                    flow.0 -= 1;
                    flow.1 -= t.booked;
                }
                if t.handover {
                    let bytes = u64::from(self.jobs[t.job].tokens) * self.cluster.engine.token_bytes;
                    self.view.pods[t.from].pinned -= bytes;
                }
                let told =
                    Told::Moved { from: t.from, to: t.to, bytes: t.bytes, took: t.took, sharing: t.sharing };
                self.router.told(self.now, told);
            }
            Notice::Finished(i) => {
                let (job, state) = (&self.jobs[i], self.state(i).clone());
                let seen = &mut self.view.pods[state.route.decode];
                seen.active -= 1;
                seen.active_blocks -= u64::from(job.tokens.div_ceil(BLOCK));
                if job.gone && state.route.compute != state.route.decode {
                    // Given up: what was booked for the handover is free again.
                    let bytes = u64::from(job.tokens) * self.cluster.engine.token_bytes;
                    let from = &mut self.view.pods[state.route.compute];
                    (from.egress.0, from.egress.1) = (from.egress.0 - 1, from.egress.1 - state.booked_bytes);
                    from.pinned -= bytes;
                    let to = &mut self.view.pods[state.route.decode];
                    (to.ingress.0, to.ingress.1) = (to.ingress.0 - 1, to.ingress.1 - state.booked_bytes);
                }
            }
        }
    }
}

//! The rules of others, as their documents describe them.

use super::view::{Route, Router, Told, View};
use kvd::ctl::simulate::workload::{BLOCK, Job};

/// llm-d's scorers and deciders.
pub struct LlmD {
    /// Prefill elsewhere where the decode pod lacks at least so many tokens; `None` = never.
    pub threshold: Option<u32>,
    /// Whether the computing pod pulls from the one with the longest prefix in host memory.
    pub pulls: bool,
    /// Requests so far, for the choice among sources.
    pub count: u64,
}

impl Router for LlmD {
    fn route(&mut self, view: &View, job: &Job) -> Route {
        self.count += 1;
        let n = view.pods.len();
        let held: Vec<(usize, usize, usize)> = (0..n).map(|i| view.held(i, job)).collect();
        let total = job.chain.len().max(1) as f64;
        // Matched blocks count 1.0 on the GPU and 0.8 in host memory.
        let prefix = |i: usize| (held[i].0 as f64 + 0.8 * (held[i].1 - held[i].0) as f64) / total;
        let Some(threshold) = self.threshold else {
            let waiting = scale(view, view.decoders(), |s| s.waiting as f64);
            let pod = best(view.decoders(), |i| {
                3.0 * prefix(i) + 2.0 * waiting(i) + 2.0 * (1.0 - view.pods[i].usage)
            });
            return self.pull(view, &held, Route { compute: pod, decode: pod, pull: None });
        };
        let active = scale(view, view.decoders(), |s| f64::from(s.active));
        let decode = best(view.decoders(), |i| 3.0 * prefix(i) + 2.0 * active(i));
        if view.lacking(decode, job) < threshold.max(1) {
            return self.pull(view, &held, Route { compute: decode, decode, pull: None });
        }
        let waiting = scale(view, view.prefillers(), |s| s.waiting as f64);
        let compute = best(view.prefillers(), |i| {
            3.0 * prefix(i) + 2.0 * waiting(i) + 2.0 * (1.0 - view.pods[i].usage)
        });
        self.pull(view, &held, Route { compute, decode, pull: None })
    }

    fn told(&mut self, _: f64, _: Told) {}
}

impl LlmD {
    /// A source within one block of the longest prefix in host memory, by chance weighted by
    /// 1 / (1 + queue), if it has more than the pod that computes.
    fn pull(&self, view: &View, held: &[(usize, usize, usize)], route: Route) -> Route {
        let longest = held.iter().map(|h| h.2).max().unwrap_or(0);
        if !self.pulls || longest <= held[route.compute].1 {
            return route;
        }
        let near: Vec<usize> =
            (0..held.len()).filter(|i| *i != route.compute && held[*i].2 + 1 >= longest).collect();
        let weight = |i: &usize| 1.0 / (1.0 + view.pods[*i].waiting as f64);
        let sum: f64 = near.iter().map(weight).sum();
        let mut at =
            (self.count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as f64 / (1u64 << 53) as f64 * sum;
        for i in &near {
            at -= weight(i);
            if at <= 0.0 && held[*i].2 > held[route.compute].1 {
                return Route { pull: Some((*i, held[*i].2)), ..route };
            }
        }
        route
    }
}

/// 1 for the least of the candidates, 0 for the most.
fn scale(
    view: &View,
    pods: impl Iterator<Item = usize>,
    value: impl Fn(&super::view::Seen) -> f64,
) -> impl Fn(usize) -> f64 {
    let values: Vec<f64> = view.pods.iter().map(&value).collect();
    let (mut least, mut most) = (f64::INFINITY, 0.0f64);
    for i in pods {
        least = least.min(values[i]);
        most = most.max(values[i]);
    }
    move |i| if most > least { (most - values[i]) / (most - least) } else { 1.0 }
}

fn best(pods: impl Iterator<Item = usize>, score: impl Fn(usize) -> f64) -> usize {
    pods.max_by(|a, b| score(*a).total_cmp(&score(*b)).then(b.cmp(a))).expect("there are pods")
}

/// Dynamo's cost: blocks to prefill, those that wait included, and blocks of active requests.
pub struct Dynamo {
    pub kind: Conditional,
}

/// When Dynamo prefills on the decode pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conditional {
    /// There is only one kind of pod.
    Together,
    /// Never.
    Always,
    /// Less than 2048 tokens, and less than 0.7 of the prompt, are lacking there.
    Bounding,
    /// That, or the prefill pod has more than two steps' worth of tokens waiting.
    BoundingOrLoad,
}

/// Tokens that an engine computes in a step, and how many steps' worth count as busy.
const BUSY: u64 = 2 * 2048;

impl Router for Dynamo {
    fn route(&mut self, view: &View, job: &Job) -> Route {
        let own = (job.tokens / BLOCK) as f64;
        let prefill = |i: usize| {
            (view.pods[i].prefill_tokens + u64::from(view.lacking(i, job))) as f64 / f64::from(BLOCK)
        };
        let active = |i: usize| view.pods[i].active_blocks as f64 + own;
        let least = |pods: &mut dyn Iterator<Item = usize>, cost: &dyn Fn(usize) -> f64| {
            pods.min_by(|a, b| cost(*a).total_cmp(&cost(*b))).expect("there are pods")
        };
        let both = |i: usize| prefill(i) + active(i);
        let decode = match self.kind {
            // Overlap does not count where prefill is always elsewhere.
            Conditional::Always => least(&mut view.decoders(), &active),
            Conditional::Together | Conditional::Bounding | Conditional::BoundingOrLoad => {
                least(&mut view.decoders(), &both)
            }
        };
        let here = Route { compute: decode, decode, pull: None };
        if self.kind == Conditional::Together {
            return here;
        }
        let compute = least(&mut view.prefillers(), &prefill);
        let lacking = view.lacking(decode, job);
        let short = lacking < 2048 && f64::from(lacking) < 0.7 * f64::from(job.tokens);
        let busy = view.pods[compute].prefill_tokens > BUSY;
        let local = match self.kind {
            Conditional::Together => true,
            Conditional::Always => false,
            Conditional::Bounding => short,
            Conditional::BoundingOrLoad => short || busy,
        };
        if local { here } else { Route { compute, decode, pull: None } }
    }

    fn told(&mut self, _: f64, _: Told) {}
}

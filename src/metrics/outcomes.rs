//! What do engines report of what was said?

use super::{Metric, counter, gauge, load};

pub(super) const OUTCOMES: &[Metric] = &[
    counter("kvd_outcomes_total", "Outcomes reported.", |s| load(&s.service.outcomes.counts.reports)),
    counter("kvd_outcome_prompt_tokens_total", "Tokens of prompts that engines reported on.", |s| {
        s.service.traffic.sums().reported_tokens as f64
    }),
    counter("kvd_outcome_cached_tokens_total", "Of those, tokens that the engines had cached.", |s| {
        s.service.traffic.sums().reported_cached as f64
    }),
    counter(
        "kvd_outcomes_unmatched_total",
        "Outcomes reported of requests that were not scored here.",
        |s| load(&s.service.outcomes.counts.unmatched),
    ),
    counter("kvd_outcomes_repeated_total", "Outcomes reported more than once.", |s| {
        load(&s.service.outcomes.counts.repeated)
    }),
    counter(
        "kvd_outcomes_dropped_total",
        "Outcomes not compared, because too many were under review.",
        |s| load(&s.service.outcomes.counts.dropped),
    ),
    gauge("kvd_predictions", "Answers kept until their outcome is reported.", |s| {
        s.service.outcomes.predictions.size().0 as f64
    }),
    gauge("kvd_prediction_bytes", "Memory of those, prompts included.", |s| {
        s.service.outcomes.predictions.size().1 as f64
    }),
];

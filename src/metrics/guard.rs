//! Which calls were refused, and why?

use super::{Metric, counter, load};

pub(super) const GUARD: &[Metric] = &[
    counter("kvd_refused_unknown_total", "Calls refused without a token that is known.", |s| {
        load(&s.service.guard.refused.unknown)
    }),
    counter("kvd_refused_forbidden_total", "Calls refused whose token gives less.", |s| {
        load(&s.service.guard.refused.forbidden)
    }),
    counter(
        "kvd_refused_unreviewed_total",
        "Calls refused whose token the cluster could not be asked about.",
        |s| load(&s.service.guard.refused.unreviewed),
    ),
    counter("kvd_token_reviews_total", "Tokens that the cluster was asked about.", |s| {
        s.service.guard.reviewer.as_ref().map_or(0.0, |r| load(&r.counts.asked))
    }),
    counter("kvd_token_review_failures_total", "Of these, not answered.", |s| {
        s.service.guard.reviewer.as_ref().map_or(0.0, |r| load(&r.counts.failed))
    }),
    counter("kvd_refused_limited_total", "Calls refused over their client's limit.", |s| {
        load(&s.service.guard.refused.limited)
    }),
];

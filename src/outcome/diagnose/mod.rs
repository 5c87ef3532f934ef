//! Why does a publisher's engine not do what is predicted?
//!
//! Pure: from a window of comparisons and what is known of the publisher to findings. A cause that
//! accounts for what is seen ends the search, so that one mistake is not told five times; the rules
//! are tried from the narrowest to the widest.
//!
//! Two things count as a sign: an *error* ([`Verdict::is_error`]), and a prompt that is *not
//! recognised*: the engine has just run it, so its blocks must be there, and the index does not find
//! them although nothing left.

mod content;
mod counts;
#[cfg(test)]
mod stories;

use std::collections::HashMap;

use kvindex::HolderId;

use super::account::{Comparison, Statement};
use super::finding::{Finding, Problem, Severity, Who, confidence};
use super::judge::Verdict;

/// Signs that it takes to speak of a rule.
const SIGNS: usize = 4;
/// Comparisons that it takes to say that something never happens.
const CASES: usize = 8;
/// How sure a cause must be that ends the search.
const SURE: f64 = 0.5;

/// A publisher, for the diagnosis.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// Who it is.
    pub who: &'a Who,
    /// What came of its answers.
    pub statement: &'a Statement,
    /// Adapter of events that name none.
    pub adapter: Option<&'a str>,
    /// Whether its blocks are looked up by hashes that kvd computes as the engine would.
    pub by_engine_hash: bool,
    /// Everyone else.
    pub others: &'a HashMap<HolderId, Who>,
}

/// What is wrong with the answers about one publisher.
pub fn diagnose(about: &About<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let causes = [
        counts::another_fits,
        counts::no_events,
        counts::caching_off,
        content::token_count,
        counts::block_size,
        content::salt,
        content::adapter,
        content::nothing_matches,
        content::one_place,
    ];
    match causes.iter().find_map(|cause| cause(about)) {
        Some(found) => findings.push(found),
        None => findings
            .extend([counts::removals_missing(about), counts::stores_missing(about)].into_iter().flatten()),
    }
    findings.extend(counts::events_late(about));
    findings.extend(counts::distrusted(about));
    findings
}

impl About<'_> {
    fn window(&self) -> &[Comparison] {
        &self.statement.window
    }

    fn count(&self, is: impl Fn(&Comparison) -> bool) -> usize {
        self.window().iter().filter(|c| is(c)).count()
    }

    /// How sure the comparisons that are `signs` make that it is the rule among those that `tell`.
    fn sure(&self, signs: impl Fn(&Comparison) -> bool, tell: impl Fn(&Comparison) -> bool) -> f64 {
        confidence(self.count(|c| tell(c) && signs(c)), self.count(tell))
    }

    fn find(
        &self,
        problem: Problem,
        severity: Severity,
        confidence: f64,
        evidence: String,
        remedy: impl Into<String>,
    ) -> Option<Finding> {
        let who = Some(self.who.clone());
        Some(Finding { problem, severity, who, confidence, evidence, remedy: remedy.into() })
    }
}

impl Comparison {
    /// The engine has just run the prompt, and the index does not find what it must have.
    fn is_unrecognised(&self) -> bool {
        self.verdict != Verdict::Unclear && !self.disturbed && self.found < self.whole
    }

    /// Says that the index knows less of the prompt than the engine.
    fn is_missed(&self) -> bool {
        self.verdict == Verdict::TooLow || self.is_unrecognised()
    }

    /// Says whether prompts are recognised: nothing that left may be why not.
    fn is_telling(&self) -> bool {
        self.whole > 0 && (self.is_missed() || !self.disturbed)
    }
}

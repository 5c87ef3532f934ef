//! Is what the engine reported what was predicted, and if not, who was wrong?
//!
//! Pure. An engine looks its cache up some time after it was scored, and it reports later still. Events
//! of that time may explain a difference, and then nothing is wrong with the index. What nothing
//! explains is an error: *too low* where the engine had more than kvd said, *too high* where it
//! had less.
//!
//! ```text
//!            scored          looked up          judged
//!  index  ──── predicted ─────────?──────────────── now ───▶ time
//!  engine ────────────────────reported─────────────────────
//! ```
//!
//! While blocks only come, what the index knows of a prompt only grows; so an engine that had between
//! *predicted* and *now* is explained by what came meanwhile. It had less than predicted only if
//! one of the prompt's blocks left it, and that is an event too.

use super::trail::Since;

/// What came of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// Reported as predicted.
    Exact,
    /// More than predicted, by blocks that were announced after the prediction.
    CameMeanwhile,
    /// Less than predicted, or more and gone again, by blocks that left after the prediction.
    LeftMeanwhile,
    /// More than predicted, and nothing explains it.
    TooLow,
    /// Less than predicted, and nothing explains it.
    TooHigh,
    /// Nobody can say: the publisher was not followed without a loss, or too much happened since.
    Unclear,
}

impl Verdict {
    /// Every verdict, the good ones first.
    pub const ALL: [Verdict; 6] = [
        Verdict::Exact,
        Verdict::CameMeanwhile,
        Verdict::LeftMeanwhile,
        Verdict::TooLow,
        Verdict::TooHigh,
        Verdict::Unclear,
    ];

    /// Its name in metrics and answers.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Exact => "exact",
            Verdict::CameMeanwhile => "came_meanwhile",
            Verdict::LeftMeanwhile => "left_meanwhile",
            Verdict::TooLow => "too_low",
            Verdict::TooHigh => "too_high",
            Verdict::Unclear => "unclear",
        }
    }

    /// Whether the prediction was wrong, and not for what happened since.
    pub fn is_error(self) -> bool {
        match self {
            Verdict::TooLow | Verdict::TooHigh => true,
            Verdict::Exact | Verdict::CameMeanwhile | Verdict::LeftMeanwhile | Verdict::Unclear => false,
        }
    }
}

/// What one comparison is made of. All counts are tokens.
#[derive(Clone, Copy, Debug)]
pub struct Case<'t> {
    /// What was predicted, and is predicted now.
    pub predicted: u64,
    /// The same question asked again.
    pub now: u64,
    /// What the engine reported.
    pub reported: u64,
    /// Whether the publisher was live and complete when it was scored, and is now.
    pub vouched: bool,
    /// Whether messages of the publisher wait to be applied.
    pub lagging: bool,
    /// Whether the engine may hold blocks in lower tiers that a clear made kvd forget.
    pub offload_in_doubt: bool,
    /// What left since it was scored.
    pub since: &'t Since<'t>,
    /// Of the prompt's blocks from the first one on that the engine says it did not find: whether a
    /// copy left since.
    pub left: Left,
}

/// What is known of blocks that may have left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// One did.
    Yes,
    /// None did.
    No,
    /// The index does not know what they are called any more.
    Nameless,
}

/// So many removals in a row may make the index forget the names of blocks that nobody holds.
const NAMES_LAST: usize = 2048;

/// Judges one comparison.
pub fn judge(case: &Case<'_>) -> Verdict {
    let Case { predicted, now, reported, since, .. } = *case;
    if reported == predicted {
        return Verdict::Exact;
    }
    if case.lagging {
        return Verdict::Unclear;
    }
    if reported > predicted {
        return match case.left {
            _ if reported <= now => Verdict::CameMeanwhile,
            // It was said with the prediction that there may be more.
            _ if !case.vouched || case.offload_in_doubt => Verdict::Unclear,
            _ if since.cleared => Verdict::LeftMeanwhile,
            _ if !since.known => Verdict::Unclear,
            Left::Yes => Verdict::LeftMeanwhile,
            Left::Nameless if since.removals() > NAMES_LAST => Verdict::Unclear,
            Left::Nameless | Left::No => Verdict::TooLow,
        };
    }
    match case.left {
        _ if since.cleared || now <= reported => Verdict::LeftMeanwhile,
        _ if !since.known => Verdict::Unclear,
        Left::Yes => Verdict::LeftMeanwhile,
        Left::Nameless if since.removals() > NAMES_LAST => Verdict::Unclear,
        Left::Nameless | Left::No => Verdict::TooHigh,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use kvproto::EngineHash;

    use super::super::trail::Trail;
    use super::*;

    /// Predicted, now, reported; everything else as in quiet times.
    fn judged(predicted: u64, now: u64, reported: u64, change: impl FnOnce(&mut Case<'_>)) -> Verdict {
        let trail = Trail::new(4);
        let mut case = Case {
            predicted,
            now,
            reported,
            vouched: true,
            lagging: false,
            offload_in_doubt: false,
            since: &trail.since(Instant::now()),
            left: Left::No,
        };
        change(&mut case);
        judge(&case)
    }

    #[test]
    fn the_same_number_is_exact_whatever_happened_since() {
        assert_eq!(judged(64, 0, 64, |c| c.left = Left::Yes), Verdict::Exact);
        assert_eq!(judged(0, 512, 0, |_| {}), Verdict::Exact);
    }

    #[test]
    fn more_than_predicted_is_explained_by_what_came_until_now_and_by_no_more() {
        assert_eq!(judged(64, 512, 96, |_| {}), Verdict::CameMeanwhile);
        assert_eq!(judged(64, 512, 512, |_| {}), Verdict::CameMeanwhile);
        assert_eq!(judged(64, 512, 528, |_| {}), Verdict::TooLow);
        assert_eq!(judged(0, 0, 96, |_| {}), Verdict::TooLow);
    }

    #[test]
    fn who_was_not_vouched_for_may_have_more_but_not_less() {
        assert_eq!(judged(64, 64, 96, |c| c.vouched = false), Verdict::Unclear);
        assert_eq!(judged(64, 64, 32, |c| c.vouched = false), Verdict::TooHigh);
        assert_eq!(judged(64, 64, 96, |c| c.offload_in_doubt = true), Verdict::Unclear);
    }

    #[test]
    fn less_than_predicted_is_explained_only_by_blocks_of_this_prompt_that_left() {
        assert_eq!(judged(64, 64, 32, |_| {}), Verdict::TooHigh);
        assert_eq!(judged(64, 512, 32, |c| c.left = Left::Yes), Verdict::LeftMeanwhile);
        assert_eq!(judged(64, 32, 32, |_| {}), Verdict::LeftMeanwhile);
        // Forgotten names: a block that left and whose strand is gone cannot be told from one that
        // never was.
        assert_eq!(judged(64, 64, 32, |c| c.left = Left::Nameless), Verdict::TooHigh);
    }

    #[test]
    fn what_waits_to_be_applied_may_explain_anything() {
        assert_eq!(judged(64, 64, 32, |c| c.lagging = true), Verdict::Unclear);
        assert_eq!(judged(64, 64, 96, |c| c.lagging = true), Verdict::Unclear);
    }

    #[test]
    fn a_clear_or_a_trail_that_is_too_short_holds_nothing_against_anybody() {
        let began = Instant::now();
        let mut trail = Trail::new(4);
        trail.cleared(began + Duration::from_secs(1));
        let since = trail.since(began);
        for reported in [32, 96] {
            let verdict = judged(64, 64, reported, |c| c.left = Left::No);
            assert!(verdict.is_error());
            let trail = &since;
            let case = Case {
                predicted: 64,
                now: 64,
                reported,
                vouched: true,
                lagging: false,
                offload_in_doubt: false,
                since: trail,
                left: Left::No,
            };
            assert_eq!(judge(&case), Verdict::LeftMeanwhile);
        }
        let mut trail = Trail::new(1);
        for n in 0..9 {
            trail.removed(&[EngineHash(n)], began + Duration::from_secs(n));
        }
        let since = trail.since(began);
        let case = Case {
            predicted: 64,
            now: 64,
            reported: 32,
            vouched: true,
            lagging: false,
            offload_in_doubt: false,
            since: &since,
            left: Left::No,
        };
        assert_eq!(judge(&case), Verdict::Unclear);
    }
}

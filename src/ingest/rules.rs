//! The rules of recovery by name, so that the simulation in `tests/sim/` can leave each out and show
//! that it is needed. The service leaves none out.

use super::cursor::Arrival;
use super::replay::Answer;

/// One rule of following a publisher. Not here is what no engine of the simulation does: numbers that fall
/// within one replay, and messages that are no batches; nor what another rule hides: batches held back of an
/// earlier life, which are dropped already when a new connection is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A live batch that is not the next one waits until what is before it is there.
    Gap,
    /// A live number that does not rise is another life of the engine.
    Restart,
    /// What was applied already is not applied again.
    Repeat,
    /// Batches behind a hole are held back while a replay runs.
    Hold,
    /// A number left out within a replay is asked for again.
    HoleInReplay,
    /// A history that begins later than asked for is a loss.
    LateHistory,
    /// The last applied batch is asked for again, and another one in its place is another life.
    Anchor,
    /// A replay without the last applied batch is another life's.
    MissingAnchor,
    /// After the connection was lost, the last applied batch is asked for again before anything is
    /// applied; where that cannot be, what was known is lost.
    Reconnect,
    /// What comes after a snapshot is applied only when the snapshot's last batch came again.
    Proof,
    /// A replay that ends before the batches held back is not whole.
    EarlyEnd,
    /// A loss that cannot be repaired forgets what was known.
    ForgetOnLoss,
    /// After such a loss nothing is complete.
    PartialOnLoss,
    /// Another life forgets what was known.
    ForgetOnRestart,
    /// After silence the engine is asked whether anything was missed.
    CheckAfterSilence,
    /// What an engine held that is taken for dead is forgotten.
    ForgetOnDeath,
}

impl Rule {
    /// All of them.
    pub const ALL: [Rule; 16] = [
        Rule::Gap,
        Rule::Restart,
        Rule::Repeat,
        Rule::Hold,
        Rule::HoleInReplay,
        Rule::LateHistory,
        Rule::Anchor,
        Rule::MissingAnchor,
        Rule::Reconnect,
        Rule::Proof,
        Rule::EarlyEnd,
        Rule::ForgetOnLoss,
        Rule::PartialOnLoss,
        Rule::ForgetOnRestart,
        Rule::CheckAfterSilence,
        Rule::ForgetOnDeath,
    ];
}

/// Which rules hold: all, or all but one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    left_out: Option<Rule>,
}

impl Rules {
    /// All but `rule`.
    pub fn without(rule: Rule) -> Rules {
        Rules { left_out: Some(rule) }
    }

    /// Whether `rule` holds.
    pub(super) fn hold(self, rule: Rule) -> bool {
        self.left_out != Some(rule)
    }

    /// What a live batch is taken for.
    pub(super) fn of_live(self, arrival: Arrival) -> Arrival {
        match (self.left_out, arrival) {
            (Some(Rule::Gap), Arrival::Gap { .. }) | (Some(Rule::Repeat), Arrival::Repeat) => Arrival::Next,
            (Some(Rule::Restart), Arrival::Restart) => Arrival::Repeat,
            _ => arrival,
        }
    }

    /// What a replayed batch is taken for.
    pub(super) fn of_replayed(self, answer: Answer) -> Answer {
        match (self.left_out, answer) {
            (Some(Rule::Repeat), Answer::Known)
            | (Some(Rule::HoleInReplay), Answer::Hole { kept: true })
            | (Some(Rule::LateHistory), Answer::Hole { kept: false }) => Answer::Next,
            (Some(Rule::Anchor), Answer::Anchor) => Answer::Known,
            _ => answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_all_rules_everything_is_taken_for_what_it_is() {
        let rules = Rules::default();
        for arrival in [Arrival::First, Arrival::Gap { missing: 1 }, Arrival::Repeat, Arrival::Restart] {
            assert_eq!(rules.of_live(arrival), arrival);
        }
        for answer in [Answer::Backwards, Answer::Known, Answer::Anchor, Answer::Hole { kept: false }] {
            assert_eq!(rules.of_replayed(answer), answer);
        }
        assert!(Rule::ALL.iter().all(|r| rules.hold(*r)));
    }
}

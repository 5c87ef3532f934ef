//! What is left out or done wrong in a run, to see it noticed?

use kvd::ingest::pure::Rule;

/// What is left out or done wrong, to see it noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// Nothing: everything must be right.
    Nothing,
    /// A rule of following.
    Rule(Rule),
    /// Something about snapshots.
    Flaw(Flaw),
}

/// Something done wrong about snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Checksums fit whatever they stand for.
    ForgetsChecksum,
    /// The position written is the one before the last batches that are in.
    CursorBehind,
}

impl LeftOut {
    /// Everything that can be left out.
    pub fn all() -> impl Iterator<Item = LeftOut> {
        let flaws = [Flaw::ForgetsChecksum, Flaw::CursorBehind];
        Rule::ALL.into_iter().map(LeftOut::Rule).chain(flaws.map(LeftOut::Flaw))
    }
}
